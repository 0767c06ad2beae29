"""Trace the functions of a training, once per static group, and check what they return."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rmsprop_jax._tune.space.points import RESERVED, Points
from rmsprop_jax._tune.space.static_groups import StaticGroup, naming
from rmsprop_jax._tune.space.values import PyTree, Value, is_number, refuse_dtype
from rmsprop_jax._tune.training.state_spec import (
    REMEDY,
    StateSpec,
    TracedStructureError,
    check_leaves,
    check_same,
)
from rmsprop_jax._tune.training.trace_errors import explain
from rmsprop_jax._tune.training.training import Train, Training, evaluation_key, strong

if TYPE_CHECKING:
    from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

Metrics: TypeAlias = dict[str, jax.ShapeDtypeStruct]
Hp: TypeAlias = dict[str, Value]
Arrays: TypeAlias = list[jax.Array]

LONGEST_NAME = 200  # characters of a metric's name


# Registered as a pytree, so that train may pass hp to jax.tree.map or carry it through a scan.
@jax.tree_util.register_pytree_node_class
class _Recorded(Hp):
    """A dict of hyperparameters that records which names are read, and explains a missing name.

    Args:
      values: the hyperparameters.
      names: all names of the sweep, for errors.
      read: the set to which each name that is read is added.
    """

    def __init__(
        self, values: Hp | Iterable[tuple[str, Value]], names: Sequence[str], read: set[str]
    ):
        super().__init__(values)
        self._names, self._read = names, read

    def _all_read(self) -> "_Recorded":
        self._read.update(super().keys())
        return self

    def __getitem__(self, name: str) -> Value:
        self._read.add(name)
        return super().__getitem__(name)

    def __missing__(self, name: str) -> Value:
        raise ValueError(
            f"hp[{name!r}] must be a hyperparameter of the points, but no axis gives it: this "
            f"point has {list(self)}, all points together {list(self._names)}. Add the axis, or "
            f"use hp.get({name!r}, default)."
        )

    def __getattr__(self, name: str) -> Value:
        if not name.startswith("_"):
            raise AttributeError(f"hp is a dict. Write hp[{name!r}] instead of hp.{name}.")
        raise AttributeError(name)

    def get(self, name: str, default: Value = None) -> Value:
        return self[name] if name in self else default  # noqa: SIM401 (get would call itself)

    def pop(self, name: str, *default: Value) -> Value:
        self._read.add(name)
        return super().pop(name, *default)

    def popitem(self) -> tuple[str, Value]:
        name, value = super().popitem()
        self._read.add(name)
        return name, value

    def setdefault(self, name: str, default: Value = None) -> Value:
        self._read.add(name)
        return super().setdefault(name, default)

    def __iter__(self) -> Iterator[str]:  # {**hp} and dict(hp) come here, too
        self._all_read()
        return super().__iter__()

    def items(self):
        return super(_Recorded, self._all_read()).items()

    def values(self):
        return super(_Recorded, self._all_read()).values()

    def copy(self) -> Hp:
        return super(_Recorded, self._all_read()).copy()

    def __or__(self, other: Any) -> Any:  # Any: `dict` accepts, and returns, more types than Hp
        return super(_Recorded, self._all_read()).__or__(other)

    def __ror__(self, other: Any) -> Any:
        return super(_Recorded, self._all_read()).__ror__(other)

    def __eq__(self, other: object) -> bool:
        return super(_Recorded, self._all_read()).__eq__(other)

    __hash__ = None  # type: ignore[assignment]  # as for any dict

    def __repr__(self) -> str:
        return super(_Recorded, self._all_read()).__repr__()

    def __copy__(self) -> Hp:
        return self.copy()

    def __deepcopy__(self, memo: object) -> Hp:
        return self.copy()  # tracers are immutable

    def tree_flatten(self) -> tuple[list[Value], tuple[Sequence[str], Sequence[str]]]:
        """Return the values in the order of their sorted names, and the names."""
        names = tuple(sorted(dict.keys(self)))
        self._read.update(names)
        return [dict.__getitem__(self, name) for name in names], (names, self._names)

    @classmethod
    def tree_unflatten(
        cls, names: tuple[Sequence[str], Sequence[str]], values: Sequence[Value]
    ) -> "_Recorded":
        """Return the inverse of `tree_flatten`."""
        return cls(zip(names[0], values, strict=True), names[1], set())


class Traces(NamedTuple):
    """The traced functions of one static group, from which it is checked, hashed, and compiled."""

    pieces: dict[str, jax.stages.Traced]
    """The traced functions by name: "train" of a function; "init", "step", and, if there is one,
    "evaluate" of a `Training`.

    All take (numbers, key, …, args). A state enters and leaves as a list of plain arrays."""
    metrics: Metrics
    """The metrics of `train`, or the scalars that `step` returns."""
    evaluations: Metrics
    """The scalars that `evaluate` returns."""
    state: StateSpec | None
    """The spec of a `Training`'s state."""
    reads: dict[str, set[str]]
    """For each traced function the hyperparameters that it read."""
    reads_key: bool
    """Whether any of them reads its key."""

    @property
    def equations(self) -> int:
        """Return the number of equations of the longest program."""
        return max(sum(1 for _ in equations(piece.jaxpr)) for piece in self.pieces.values())


class _Tracer:
    """A tracer of one static group's functions.

    Args:
      group: the static group.
      points: all points of the sweep.
      args: the sweep's `args`, not traced.
    """

    def __init__(self, group: StaticGroup, points: Points, args: tuple[PyTree, ...]):
        self._group, self._points, self._args = group, points, args
        self.reads: dict[str, set[str]] = {}
        self.pieces: dict[str, jax.stages.Traced] = {}
        self.reads_key = False
        # Without shardings, which are no part of the program or its fingerprint.
        abstract = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type)
        self._abstract_args = jax.tree.map(abstract, jax.eval_shape(lambda: args))

    def trace(self, name: str, call: Callable[..., PyTree], *inputs: PyTree) -> PyTree:
        """Trace `call(hp, key, *inputs, *args)`, and return its result with abstract arrays.

        Args:
          name: the function's name, "train", "init", "step", or "evaluate".
          call: the function.
          *inputs: abstract arrays, the arguments between the key and the args.
        """
        group, read = self._group, self.reads.setdefault(name, set())
        recorded = lambda numbers: _Recorded(group.static | numbers, self._points.names, read)
        try:
            traced = self._traced(call, recorded, group.dtypes, inputs, self._abstract_args)
        except TracedStructureError as error:
            raise ValueError(str(error)) from None
        except Exception as error:
            trace_with = lambda names: self._with_numbers(call, inputs, names)
            numbers = _python_numbers(self._args)
            if better := explain(error, trace_with, [*group.dtypes, *numbers], name):
                raise better from error
            raise
        self.pieces[name] = traced
        key, program = traced.jaxpr.jaxpr.invars[len(group.dtypes)], traced.jaxpr.jaxpr
        is_used = any(key is v for e in program.eqns for v in e.invars)
        self.reads_key |= is_used or any(key is v for v in program.outvars)
        return traced.out_info

    def _traced(
        self,
        call: Callable[..., PyTree],
        make_hp: Callable[[Hp], Hp],
        dtypes: dict[str, np.dtype],
        inputs: tuple[PyTree, ...],
        args: tuple[PyTree, ...],
    ) -> jax.stages.Traced:
        """Trace `call(make_hp(numbers), key, *inputs, *args)`."""
        numbers = {name: jax.ShapeDtypeStruct((), dtype) for name, dtype in dtypes.items()}
        key = jax.eval_shape(lambda: jax.random.key(0))
        trial = jax.jit(
            lambda numbers, key, inputs, args: call(make_hp(numbers), key, *inputs, *args),
            keep_unused=True,  # otherwise the program's text does not tell which inputs it reads
        )
        return trial.trace(numbers, key, inputs, args)

    def _with_numbers(
        self, call: Callable[..., PyTree], inputs: tuple[PyTree, ...], names: Sequence[str]
    ) -> None:
        """Trace `call` with the named numbers of hp and args as Python numbers."""
        group, point = self._group, self._points[self._group.points[0]]
        static = group.static | {n: point[n] for n in names if n in group.dtypes}
        dtypes = {n: dtype for n, dtype in group.dtypes.items() if n not in names}
        leaves, treedef = jax.tree_util.tree_flatten_with_path(self._args)
        is_concrete = [f"args{jax.tree_util.keystr(path)}" in names for path, _ in leaves]
        abstract = treedef.flatten_up_to(self._abstract_args)
        traced = [x for x, concrete in zip(abstract, is_concrete, strict=True) if not concrete]

        def with_args(hp: Hp, key: jax.Array, *rest: PyTree) -> PyTree:
            inner_inputs, traced_leaves = rest[: len(inputs)], iter(rest[len(inputs) :])
            each = zip(leaves, is_concrete, strict=True)
            args = treedef.unflatten(
                x if concrete else next(traced_leaves) for (_, x), concrete in each
            )
            return call(hp, key, *inner_inputs, *args)

        self._traced(with_args, lambda numbers: static | numbers, dtypes, inputs, tuple(traced))


def trace_train(
    train: Train, group: StaticGroup, points: Points, args: tuple[PyTree, ...]
) -> Traces:
    """Trace a function for one static group, on abstract numbers.

    Args:
      train: the function that the sweep got.
      group: the static group.
      points: all points of the sweep.
      args: the sweep's `args`.

    Raises:
      ValueError: for a function that a sweep cannot run.
    """
    check_call(train, "train", "train(hp, key, *args)", args)
    tracer = _Tracer(group, points, args)

    def call(hp: Hp, key: jax.Array, *args: PyTree) -> PyTree:
        metrics: object = train(hp, key, *args)
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
    training: Training, group: StaticGroup, points: Points, args: tuple[PyTree, ...], batch: PyTree
) -> Traces:
    """Trace the functions of a `Training` for one static group, on abstract numbers.

    Args:
      training: the `Training` that the sweep got.
      group: the static group.
      points: all points of the sweep.
      args: the sweep's `args`.
      batch: the abstract batch of one step, or None without `batches`.

    Raises:
      ValueError: for functions that a sweep cannot run.
    """
    tracer = _Tracer(group, points, args)
    specs: list[StateSpec] = []
    batch_args = () if batch is None else (batch,)
    check_calls(training, batch_args, args)

    def init(hp: Hp, key: jax.Array, *args: PyTree) -> Arrays:
        state = training.init(hp, jax.random.fold_in(key, 0), *args)
        check_leaves(state, "init")
        state = strong(state)
        specs.append(StateSpec.of(state))
        return specs[0].flat(state)

    def step(
        hp: Hp, key: jax.Array, arrays: Arrays, t: jax.Array, *rest: PyTree
    ) -> tuple[Arrays, Metrics]:
        key = jax.random.fold_in(key, t)
        result: object = training.step(hp, spec.tree(arrays), key, *rest)
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise ValueError(
                f"step must return (state, metrics), got {type(result).__name__}. Return, for "
                "example, (params, opt_state), {'loss': loss}."
            )
        state, metrics = result
        check_leaves(state, "step")
        state = strong(state)
        check_same(spec, state)
        return spec.flat(state), check_metrics("step", metrics, points, scalars=True)

    evaluate_state = training.evaluate

    def evaluate(hp: Hp, key: jax.Array, arrays: Arrays, t: jax.Array, *args: PyTree) -> Metrics:
        assert evaluate_state is not None
        metrics = evaluate_state(hp, spec.tree(arrays), evaluation_key(key, t), *args)
        return check_metrics("evaluate", metrics, points, scalars=True)

    number = jax.ShapeDtypeStruct((), np.int32)
    with naming(group):
        try:
            tracer.trace("init", init)
            spec = specs[0]
            _, metrics = tracer.trace("step", step, list(spec.data), number, *batch_args)
            evaluations = {}
            if evaluate_state is not None:
                evaluations = tracer.trace("evaluate", evaluate, list(spec.data), number)
        except jax.errors.UnexpectedTracerError as error:
            raise ValueError(
                "a state must not hold traced values outside its leaves, because they end with "
                f"their trace. {REMEDY}."
            ) from error
        except Exception as error:
            for name in ("init", "step", "evaluate"):
                _refuse_jitted(getattr(training, name), name, group, error)
            raise
        if clash := metrics.keys() & evaluations.keys():
            raise ValueError(
                "step and evaluate must return metrics of different names, got "
                f"{sorted(clash)} from both. Rename these in one of them."
            )
        _check_names("step and evaluate", [*metrics, *evaluations])
    return Traces(tracer.pieces, metrics, evaluations, spec, tracer.reads, tracer.reads_key)


def _refuse_jitted(function: object, name: str, group: StaticGroup, error: Exception) -> None:
    """Raise ValueError if a jitted function failed because it traced the static values, too."""
    if hasattr(function, "lower") and group.static:  # `jax.jit` adds `lower`
        raise ValueError(
            f"{name} must be a function that is not jitted, because its own jax.jit traces the "
            f"static hyperparameters, too, got {group.static}. Pass the function that you "
            f"jitted, {name}.__wrapped__: the sweep compiles it."
        ) from error


def check_calls(
    training: Training, batch_args: tuple[PyTree, ...], args: tuple[PyTree, ...]
) -> None:
    """Raise ValueError unless a training's functions can be called with these arguments.

    Args:
      training: the `Training` that the sweep got.
      batch_args: the arguments of `step` between the key and the args: a batch, or nothing.
      args: the sweep's `args`.
    """
    check_call(training.init, "init", "init(hp, key, *args)", args)
    form = f"step(hp, state, key, {'batch, ' if batch_args else ''}*args)"
    check_call(training.step, "step", form, (None, *batch_args, *args), args)
    if training.evaluate is not None:
        form = "evaluate(hp, state, key, *args)"
        check_call(training.evaluate, "evaluate", form, (None, *args), args)


def check_call(
    function: object,
    name: str,
    form: str,
    inputs: tuple[PyTree, ...],
    args: tuple[PyTree, ...] | None = None,
) -> None:
    """Raise ValueError unless a function can be called like this, and all args are arrays.

    Args:
      function: the object that the user passed as a function.
      name: its name, for errors.
      form: how the sweep calls it, for errors: "train(hp, key, *args)".
      inputs: all arguments but hp and the key.
      args: the sweep's `args`, if `inputs` has more.
    """
    args = inputs if args is None else args
    if not callable(function):
        raise ValueError(
            f"{name} must be a function {form}, got {function!r}. Pass the function itself."
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        signature = None
    if signature is not None:
        try:
            signature.bind(None, None, *inputs)
        except TypeError as error:
            raise ValueError(
                f"{name} must accept the call {form} with {len(args)} args, but its signature is "
                f"{name}{signature}: {error}. Change the signature, or pass args=(...)."
            ) from None
    for path, leaf in jax.tree_util.tree_flatten_with_path(args)[0]:
        place = f"args{jax.tree_util.keystr(path)}"
        if isinstance(leaf, Tracer):
            raise ValueError(
                f"{place} must be a concrete array, got a traced value: sweep was called inside "
                "jax.jit, vmap, or grad, or inside another sweep's train. Call it outside: it "
                "compiles by itself."
            )
        try:
            jax.eval_shape(lambda leaf=leaf: leaf)
        except TypeError:
            raise ValueError(
                f"{place} must be an array or a number, got {leaf!r}, a {type(leaf).__name__}. "
                f"Let {name} close over it, or make it a static axis."
            ) from None
        refuse_dtype(place, getattr(leaf, "dtype", None))


def _python_numbers(args: PyTree) -> list[str]:
    """Return the places of the Python numbers in args: "args[0]"."""
    leaves = jax.tree_util.tree_flatten_with_path(args)[0]
    return [f"args{jax.tree_util.keystr(path)}" for path, x in leaves if is_number(x)]


def equations(jaxpr: "Jaxpr | ClosedJaxpr") -> Iterator["JaxprEqn"]:
    """Yield every equation of a program, those of its inner programs included."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for inner in inner_programs(equation):
            yield from equations(inner)


def inner_programs(equation: "JaxprEqn") -> Iterator["Jaxpr | ClosedJaxpr"]:
    """Yield the programs that an equation runs: a scan's body, a branch, a jitted function."""
    for value in equation.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            if hasattr(getattr(inner, "jaxpr", inner), "eqns"):
                yield inner


def constants(jaxpr: "Jaxpr | ClosedJaxpr") -> Iterator[jax.Array | np.ndarray]:
    """Yield the arrays that a program closes over, those of its inner programs included."""
    yield from getattr(jaxpr, "consts", ())
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        literals = (getattr(v, "val", None) for v in equation.invars)  # a variable has no `val`
        yield from (x for x in literals if x is not None and np.ndim(x))
        for inner in inner_programs(equation):
            yield from constants(inner)


def check_metrics(what: str, metrics: object, points: Points, scalars: bool) -> Metrics:
    """Return the metrics of a function; ValueError unless they are named real numbers.

    Args:
      what: the function's name, "train", "step", or "evaluate".
      metrics: the return value of the function.
      points: all points of the sweep.
      scalars: whether each metric must be a scalar.
    """
    if not isinstance(metrics, dict) or (not metrics and what != "step"):
        kind = "an array" if hasattr(metrics, "shape") else type(metrics).__name__
        kind = "an empty one" if isinstance(metrics, dict) else kind
        raise ValueError(
            f"{what} must return a dict of named metrics, got {kind}. "
            f'Return, for example, {{"loss": {"loss" if scalars else "losses"}}}.'
        )
    _check_names(what, list(metrics))
    for name, metric in metrics.items():
        if name in points.names or name in RESERVED:
            raise ValueError(
                f"{what} must return metrics whose names differ from the hyperparameters and from "
                f"{sorted(RESERVED)}, got {name!r}. Rename it."
            )
        if isinstance(metric, bool | int | float):
            continue
        if not hasattr(metric, "shape") or not hasattr(metric, "dtype"):
            raise ValueError(
                f"metric {name!r} must be an array, got {type(metric).__name__}. Return "
                "jnp.asarray(...)."
            )
        if scalars and metric.shape != ():
            raise ValueError(
                f"metric {name!r} of {what} must be a scalar, got shape {metric.shape}. Return a "
                "mean, for example, or keep the array in the state."
            )
        if len(metric.shape) > 1 or 0 in metric.shape:
            raise ValueError(
                f"metric {name!r} must be a scalar or have one value per step, got shape "
                f"{metric.shape}. Return a mean, for example."
            )
        if not jnp.issubdtype(metric.dtype, jnp.number) and metric.dtype != bool:
            raise ValueError(
                f"metric {name!r} must have numbers, got dtype {metric.dtype}. Convert it, or "
                "leave it out."
            )
        refuse_dtype(f"metric {name!r}", metric.dtype)
        if jnp.issubdtype(metric.dtype, jnp.complexfloating):
            raise ValueError(
                f"metric {name!r} must have real numbers, got {metric.dtype}. Return jnp.abs(x), "
                "or x.real."
            )
    return metrics


def _check_names(what: str, names: Sequence[object]) -> None:
    """Raise ValueError for names of metrics that a folder cannot hold or would confuse."""
    for name in names:
        if not isinstance(name, str):
            raise ValueError(
                f"{what} must return metrics whose names are strings, got {name!r}. Rename it: "
                f"{str(name)!r}."
            )
        is_text = "\0" not in name and name == name.encode("utf-8", "ignore").decode()
        if not is_text or not 0 < len(name) <= LONGEST_NAME:
            raise ValueError(
                f"{what} must return metrics whose names are text of 1 to {LONGEST_NAME} "
                f"characters without \\0 or lone surrogates, got {name!r:.60}, of {len(name)} "
                "characters. Rename it."
            )
        if name + ".npy" in names:
            raise ValueError(
                f'{what} must not return two metrics whose names differ only by ".npy" at the '
                f"end, got {name!r} and {name + '.npy'!r}. NumPy drops this ending when it reads a "
                "folder. Rename one."
            )
