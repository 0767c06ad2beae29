"""A training under an abstract trace: the points that share one, and what a sweep refuses."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rmsprop_jax._tune.space.points import RESERVED, Points
from rmsprop_jax._tune.space.static_groups import StaticGroup, naming
from rmsprop_jax._tune.space.values import is_number, refuse_dtype
from rmsprop_jax._tune.training.state_spec import REMEDY, StateSpec, check_leaves, check_same
from rmsprop_jax._tune.training.trace_errors import explain
from rmsprop_jax._tune.training.training import Training, evaluation_key, strong

Metrics = dict[str, jax.ShapeDtypeStruct]

LONGEST_NAME = 200  # characters of a metric's name


class _Recorded(dict):
    """A dict of hyperparameters that notes which names are read, and explains a missing one."""

    def __init__(self, values, names, read: set[str]):
        super().__init__(values)
        self._names, self._read = names, read

    def _all_read(self):
        self._read.update(super().keys())
        return self

    def __getitem__(self, name):
        self._read.add(name)
        return super().__getitem__(name)

    def __missing__(self, name):
        raise ValueError(
            f"train read hp[{name!r}], but no axis gives it: this point has {list(self)}, all "
            f"points together {list(self._names)}. Add the axis, or use hp.get({name!r}, default)."
        )

    def __getattr__(self, name):
        if not name.startswith("_"):
            raise AttributeError(f"hp is a dict: write hp[{name!r}] instead of hp.{name}.")
        raise AttributeError(name)

    def get(self, name, default=None):
        return self[name] if name in self else default  # noqa: SIM401 (get would call itself)

    def pop(self, name, *default):
        self._read.add(name)
        return super().pop(name, *default)

    def popitem(self):
        name, value = super().popitem()
        self._read.add(name)
        return name, value

    def setdefault(self, name, default=None):
        self._read.add(name)
        return super().setdefault(name, default)

    def __iter__(self):  # also reached by {**hp} and dict(hp)
        self._all_read()
        return super().__iter__()

    def items(self):
        return super(_Recorded, self._all_read()).items()

    def values(self):
        return super(_Recorded, self._all_read()).values()

    def copy(self):
        return super(_Recorded, self._all_read()).copy()

    def __or__(self, other):
        return super(_Recorded, self._all_read()).__or__(other)

    def __ror__(self, other):
        return super(_Recorded, self._all_read()).__ror__(other)

    def __eq__(self, other):
        return super(_Recorded, self._all_read()).__eq__(other)

    __hash__ = None  # type: ignore[assignment]  # as of any dict

    def __repr__(self):
        return super(_Recorded, self._all_read()).__repr__()

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()  # tracers are immutable


def _flatten(hp: _Recorded):
    names = tuple(sorted(dict.keys(hp)))
    hp._read.update(names)
    return [dict.__getitem__(hp, name) for name in names], (names, hp._names)


# So that train may hand hp to jax.tree.map or carry it through a scan, as it may a dict.
jax.tree_util.register_pytree_node(
    _Recorded,
    _flatten,
    lambda aux, leaves: _Recorded(zip(aux[0], leaves, strict=True), aux[1], set()),
)


class Traces(NamedTuple):
    """What one structure runs, each piece traced once: what is checked, hashed and compiled."""

    pieces: dict[str, jax.stages.Traced]
    """Of a function: `train`. Of a `Training`: `init`, `step`, and `evaluate` where there is one.

    All take (numbers, key, …, args); a state goes in and comes out as a list of plain arrays."""
    metrics: Metrics
    """Of `train`; of `step`, scalars."""
    evaluations: Metrics
    """Of `evaluate`, scalars."""
    state: StateSpec | None
    reads: dict[str, set[str]]
    """For each piece the names that it read."""
    reads_key: bool

    @property
    def equations(self) -> int:
        """How long the longest program is."""
        return max(sum(1 for _ in equations(piece.jaxpr)) for piece in self.pieces.values())


class _Tracer:
    """Traces the pieces of one structure.

    Args:
      group, points: of the sweep.
      args: of the sweep, not traced.
    """

    def __init__(self, group: StaticGroup, points: Points, args: tuple[Any, ...]):
        self._group, self._points, self._args = group, points, args
        self.reads: dict[str, set[str]] = {}
        self.pieces: dict[str, jax.stages.Traced] = {}
        self.reads_key = False
        # Where args lie is no part of the program, nor of its fingerprint.
        anywhere = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type)
        self._abstract_args = jax.tree.map(anywhere, jax.eval_shape(lambda: args))

    def trace(self, name: str, call: Callable[..., Any], *inputs: Any) -> Any:
        """Trace `call(hp, key, *inputs, *args)`; what it returns, abstract.

        Args:
          name: "train", "init", "step" or "evaluate".
          call: what runs.
          *inputs: abstract, between the key and the args.
        """
        group, read = self._group, self.reads.setdefault(name, set())
        recorded = lambda numbers: _Recorded(group.static | numbers, self._points.names, read)
        try:
            traced = self._traced(call, recorded, group.dtypes, inputs, self._abstract_args)
        except Exception as error:
            trace_with = lambda names: self._with_numbers(call, inputs, names)
            numbers = _python_numbers(self._args)
            if better := explain(error, trace_with, [*group.dtypes, *numbers], name):
                raise better from error
            raise
        self.pieces[name] = traced
        key, program = traced.jaxpr.jaxpr.invars[len(group.dtypes)], traced.jaxpr.jaxpr
        used = any(key is v for e in program.eqns for v in e.invars)
        self.reads_key |= used or any(key is v for v in program.outvars)
        return traced.out_info

    def _traced(self, call, make_hp, dtypes, inputs, args) -> jax.stages.Traced:
        numbers = {name: jax.ShapeDtypeStruct((), dtype) for name, dtype in dtypes.items()}
        key = jax.eval_shape(lambda: jax.random.key(0))
        trial = jax.jit(
            lambda numbers, key, inputs, args: call(make_hp(numbers), key, *inputs, *args),
            keep_unused=True,  # else the program's text does not say which of them it reads
        )
        return trial.trace(numbers, key, inputs, args)

    def _with_numbers(self, call, inputs, names: Sequence[str]) -> None:
        """Trace `call`, the named numbers of hp and args as Python numbers."""
        group, point = self._group, self._points[self._group.points[0]]
        structure = group.static | {n: point[n] for n in names if n in group.dtypes}
        dtypes = {n: dtype for n, dtype in group.dtypes.items() if n not in names}
        leaves, treedef = jax.tree_util.tree_flatten_with_path(self._args)
        is_known = [f"args{jax.tree_util.keystr(path)}" in names for path, _ in leaves]
        abstract = treedef.flatten_up_to(self._abstract_args)
        others = [x for x, known in zip(abstract, is_known, strict=True) if not known]

        def with_args(hp, key, *rest):
            given, own = rest[: len(inputs)], iter(rest[len(inputs) :])
            each = zip(leaves, is_known, strict=True)
            args = treedef.unflatten(x if known else next(own) for (_, x), known in each)
            return call(hp, key, *given, *args)

        self._traced(with_args, lambda numbers: structure | numbers, dtypes, inputs, tuple(others))


def trace_train(
    train: Callable[..., Any], group: StaticGroup, points: Points, args: tuple[Any, ...]
) -> Traces:
    """Trace a function on abstract numbers; ValueError for what a sweep cannot run."""
    check_call(train, "train", "train(hp, key, *args)", args)
    tracer = _Tracer(group, points, args)

    def call(hp, key, *args):
        metrics = train(hp, key, *args)
        if isinstance(metrics, dict):  # before JAX sorts the names
            _check_names("train", list(metrics))
        return metrics

    with naming(group):
        try:
            metrics = tracer.trace("train", call)
        except Exception as error:
            _refuse_jitted(train, "train", group, error)
            raise
        checked = check_metrics("train", metrics, points, scalars=False)
    return Traces(tracer.pieces, checked, {}, None, tracer.reads, tracer.reads_key)


def trace_training(
    training: Training, group: StaticGroup, points: Points, args: tuple[Any, ...], batch: Any
) -> Traces:
    """Trace a training's pieces on abstract numbers; ValueError for what a sweep cannot run.

    Args:
      training, group, points, args: of the sweep.
      batch: what `batches` gives for a step, abstract; None without `batches`.
    """
    tracer, found = _Tracer(group, points, args), []
    given = () if batch is None else (batch,)
    check_calls(training, given, args)

    def init(hp, key, *args):
        state = training.init(hp, jax.random.fold_in(key, 0), *args)
        check_leaves(state, "init")
        state = strong(state)
        found.append(StateSpec.of(state))
        return found[0].flat(state)

    def step(hp, key, state, t, *rest):
        key = jax.random.fold_in(key, t)
        returned = training.step(hp, spec.tree(state), key, *rest)
        if not isinstance(returned, tuple | list) or len(returned) != 2:
            raise ValueError(
                "step must return (state, metrics), got "
                f"{type(returned).__name__}: return (params, opt_state), {{'loss': loss}}."
            )
        state, metrics = returned
        check_leaves(state, "step")
        state = strong(state)
        check_same(spec, state)
        return spec.flat(state), check_metrics("step", metrics, points, scalars=True)

    of_state: Any = training.evaluate

    def evaluate(hp, key, state, t, *args):
        metrics = of_state(hp, spec.tree(state), evaluation_key(key, t), *args)
        return check_metrics("evaluate", metrics, points, scalars=True)

    number = jax.ShapeDtypeStruct((), np.int32)
    with naming(group):
        try:
            tracer.trace("init", init)
            spec = found[0]
            _, metrics = tracer.trace("step", step, list(spec.data), number, *given)
            evaluations = {}
            if of_state is not None:
                evaluations = tracer.trace("evaluate", evaluate, list(spec.data), number)
        except jax.errors.UnexpectedTracerError as error:
            raise ValueError(
                "a state holds a traced value that is not among its leaves, and does not outlive "
                f"its trace: {REMEDY}."
            ) from error
        except Exception as error:
            for name in ("init", "step", "evaluate"):
                _refuse_jitted(getattr(training, name), name, group, error)
            raise
        if clash := metrics.keys() & evaluations.keys():
            raise ValueError(f"step and evaluate both return {sorted(clash)}: rename those of one.")
        _check_names("step and evaluate", [*metrics, *evaluations])
    return Traces(tracer.pieces, metrics, evaluations, spec, tracer.reads, tracer.reads_key)


def _refuse_jitted(function: Any, name: str, group: StaticGroup, error: Exception) -> None:
    if hasattr(function, "lower") and group.static:  # of jax.jit: it traces what it gets
        raise ValueError(
            f"{name} is jitted by itself, and so its jax.jit traces the structure too, "
            f"{group.static}. Give the function that you jitted ({name}.__wrapped__): the "
            "sweep compiles it."
        ) from error


def check_calls(training: Training, given: tuple[Any, ...], args: tuple[Any, ...]) -> None:
    """ValueError where a training's functions cannot be called with these args.

    Args:
      training, args: of the sweep.
      given: what `step` gets between the key and the args, a batch or nothing.
    """
    check_call(training.init, "init", "init(hp, key, *args)", args)
    form = f"step(hp, state, key, {'batch, ' if given else ''}*args)"
    check_call(training.step, "step", form, (None, *given, *args), args)
    if training.evaluate is not None:
        form = "evaluate(hp, state, key, *args)"
        check_call(training.evaluate, "evaluate", form, (None, *args), args)


def check_call(
    function: Any, name: str, form: str, given: tuple[Any, ...], args: tuple[Any, ...] | None = None
) -> None:
    """ValueError where a function cannot be called so, or an argument is no array.

    Args:
      function, name, form: as they are said.
      given: all but hp and the key.
      args: the sweep's, where these are not all that is given.
    """
    args = given if args is None else args
    if not callable(function):
        raise ValueError(f"{name} must be a function {form}, got {function!r}.")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        signature = None
    if signature is not None:
        try:
            signature.bind(None, None, *given)
        except TypeError as error:
            raise ValueError(
                f"sweep calls {form} with {len(args)} args, but its signature is "
                f"{name}{signature}: {error}."
            ) from None
    for path, leaf in jax.tree_util.tree_flatten_with_path(args)[0]:
        place = f"args{jax.tree_util.keystr(path)}"
        if isinstance(leaf, Tracer):
            raise ValueError(
                f"{place} is traced: sweep was called inside jax.jit, vmap or grad, or inside "
                "another sweep's train. Call it outside; it compiles by itself."
            )
        try:
            jax.eval_shape(lambda leaf=leaf: leaf)
        except TypeError:
            raise ValueError(
                f"{place} is {leaf!r}, a {type(leaf).__name__}, wanted an array or a number: let "
                f"{name} close over it, or make it a static axis."
            ) from None
        refuse_dtype(place, getattr(leaf, "dtype", None))


def _python_numbers(args: Any) -> list[str]:
    leaves = jax.tree_util.tree_flatten_with_path(args)[0]
    return [f"args{jax.tree_util.keystr(path)}" for path, x in leaves if is_number(x)]


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a program, of the programs inside it too."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for inner in inner_programs(equation):
            yield from equations(inner)


def inner_programs(equation: Any) -> Iterator[Any]:
    """The programs that an equation runs: a scan's body, a branch, a jitted function."""
    for value in equation.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            if hasattr(getattr(inner, "jaxpr", inner), "eqns"):
                yield inner


def constants(jaxpr: Any) -> Iterator[Any]:
    """The arrays that a program closes over, those of the programs inside it too."""
    yield from getattr(jaxpr, "consts", ())
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield from (v.val for v in equation.invars if hasattr(v, "val") and np.ndim(v.val))
        for inner in inner_programs(equation):
            yield from constants(inner)


def check_metrics(what: str, metrics: Any, points: Points, scalars: bool) -> Metrics:
    """The metrics; ValueError where they are no named numbers."""
    if not isinstance(metrics, dict) or (not metrics and what != "step"):
        kind = "an array" if hasattr(metrics, "shape") else type(metrics).__name__
        kind = "an empty one" if isinstance(metrics, dict) else kind
        raise ValueError(
            f"{what} must return a dict of named metrics, got {kind}: "
            f'return {{"loss": {"loss" if scalars else "losses"}}}.'
        )
    _check_names(what, list(metrics))
    for name, metric in metrics.items():
        if name in points.names or name in RESERVED:
            raise ValueError(
                f"{what} returned a metric named {name!r}, which is a hyperparameter's or a "
                f"reserved name ({sorted(RESERVED)}): rename it."
            )
        if isinstance(metric, bool | int | float):
            continue
        if not hasattr(metric, "shape") or not hasattr(metric, "dtype"):
            raise ValueError(f"metric {name!r} is {type(metric).__name__}, wanted an array.")
        if scalars and metric.shape != ():
            raise ValueError(
                f"metric {name!r} of {what} has shape {metric.shape}, wanted a scalar: what "
                "belongs to the trial as a whole is a part of the state."
            )
        if len(metric.shape) > 1 or 0 in metric.shape:
            raise ValueError(
                f"metric {name!r} has shape {metric.shape}, wanted a scalar or one value a step."
            )
        if not jnp.issubdtype(metric.dtype, jnp.number) and metric.dtype != bool:
            raise ValueError(f"metric {name!r} has dtype {metric.dtype}, wanted numbers.")
        refuse_dtype(f"metric {name!r}", metric.dtype)
        if jnp.issubdtype(metric.dtype, jnp.complexfloating):
            raise ValueError(f"metric {name!r} is complex ({metric.dtype}), wanted real numbers.")
    return metrics


def _check_names(what: str, names: Sequence[Any]) -> None:
    """ValueError for names of metrics that a folder cannot hold, or cannot tell apart."""
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"{what} returned a metric named {name!r}; names must be strings.")
        is_text = "\0" not in name and name == name.encode("utf-8", "ignore").decode()
        if not is_text or not 0 < len(name) <= LONGEST_NAME:
            raise ValueError(
                f"{what} returned a metric named {name!r:.60}, of {len(name)} characters. A name "
                f"must be text of 1 to {LONGEST_NAME} characters without \\0 or lone surrogates: "
                "rename it."
            )
        if name + ".npy" in names:
            raise ValueError(
                f"{what} returned the metrics {name!r} and {name + '.npy'!r}. A name must not be "
                'another followed by ".npy", because NumPy drops that ending when it reads a '
                "folder: rename one."
            )
