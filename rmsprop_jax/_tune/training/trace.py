"""Trace the functions of a training, once per static group, and check what they return."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import numpy as np

from rmsprop_jax._tune.space.points import Points
from rmsprop_jax._tune.space.static_groups import StaticGroup, naming
from rmsprop_jax._tune.space.values import PyTree, Value, is_number
from rmsprop_jax._tune.training.checks import (
    Metrics,
    check_call,
    check_calls,
    check_metrics,
    check_names,
    refuse_jitted,
)
from rmsprop_jax._tune.training.jaxprs import equations
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
    pass

Hp: TypeAlias = dict[str, Value]
Arrays: TypeAlias = list[jax.Array]


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
            check_names("train", list(metrics))
        return metrics

    with naming(group):
        try:
            metrics = tracer.trace("train", call)
        except Exception as error:
            refuse_jitted(train, "train", group, error)
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
                refuse_jitted(getattr(training, name), name, group, error)
            raise
        if clash := metrics.keys() & evaluations.keys():
            raise ValueError(
                "step and evaluate must return metrics of different names, got "
                f"{sorted(clash)} from both. Rename these in one of them."
            )
        check_names("step and evaluate", [*metrics, *evaluations])
    return Traces(tracer.pieces, metrics, evaluations, spec, tracer.reads, tracer.reads_key)


def _python_numbers(args: PyTree) -> list[str]:
    """Return the places of the Python numbers in args: "args[0]"."""
    leaves = jax.tree_util.tree_flatten_with_path(args)[0]
    return [f"args{jax.tree_util.keystr(path)}" for path, x in leaves if is_number(x)]
