"""Trace the functions of a training, once per static group, and check what they return."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.sharding import AbstractMesh, PartitionSpec

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
from rmsprop_jax._tune.training.mesh_errors import explain_mesh, refuse_on_mesh
from rmsprop_jax._tune.training.state_spec import (
    REMEDY,
    StateSpec,
    TracedStructureError,
    check_leaves,
    check_same,
    check_same_shardings,
)
from rmsprop_jax._tune.training.trace_errors import explain
from rmsprop_jax._tune.training.training import Train, Training, evaluation_key, strong
from rmsprop_jax._tune.trial_mesh import (
    WHOLE,
    Placement,
    TrialMesh,
    map_specs,
    tracing,
    type_spec,
)

Hp: TypeAlias = dict[str, Value]
Arrays: TypeAlias = list[jax.Array]
Retrace: TypeAlias = Callable[[AbstractMesh | None], jax.stages.Traced]


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
    portable: Callable[[], dict[str, jax.stages.Traced]]
    """Returns the traced functions that a folder compares: equal for all meshes whose axes have the
    same names (`_portable`)."""

    @property
    def equations(self) -> int:
        """Return the number of equations of the longest program."""
        return max(sum(1 for _ in equations(piece.jaxpr)) for piece in self.pieces.values())


class Abstract(NamedTuple):
    """Abstract arguments of a traced function."""

    arrays: tuple[PyTree, ...] = ()
    """The arguments, trees of abstract arrays."""
    specs: PyTree = WHOLE
    """The sharding of each array over the axes of a trial, or of whole subtrees."""


class _Tracer:
    """A tracer of one static group's functions.

    Args:
      group: the static group.
      points: all points of the sweep.
      args: the sweep's `args`, not traced.
      placement: the mesh, and the shardings of what all trials share.
    """

    def __init__(
        self,
        group: StaticGroup,
        points: Points,
        args: tuple[PyTree, ...],
        placement: Placement,
    ):
        self._group, self._points, self._args = group, points, args
        self.mesh, self._arg_specs = placement.mesh, placement.args
        self.retrace: dict[str, Retrace] = {}
        self.reads: dict[str, set[str]] = {}
        self.pieces: dict[str, jax.stages.Traced] = {}
        self.reads_key = False
        # Without shardings, which are no part of the program or its fingerprint.
        abstract = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type)
        self._abstract_args = jax.tree.map(abstract, jax.eval_shape(lambda: args))

    def trace(self, name: str, call: Callable[..., PyTree], inputs: Abstract) -> PyTree:
        """Trace `call(hp, key, *inputs, *args)`, and return its result with abstract arrays.

        With a mesh, the function is traced twice: on the axes of a trial only, where the axis
        "trial" is unknown and naming it is an error, and on all axes, for kernels.

        Args:
          name: the function's name, "train", "init", "step", or "evaluate".
          call: the function.
          inputs: the arguments between the key and the args.
        """
        group, read = self._group, self.reads.setdefault(name, set())
        recorded = lambda numbers: _Recorded(group.static | numbers, self._points.names, read)
        args, dtypes, on = Abstract(self._abstract_args, self._arg_specs), group.dtypes, self.mesh
        # `retrace` must hold no args, because a result holds `retrace` until programs are hashed.
        retrace = lambda mesh: _traced(call, recorded, dtypes, (inputs, args), on, mesh)
        self.retrace[name] = retrace
        try:
            if self.mesh is None:
                traced = retrace(None)
                out = traced.out_info
            else:
                checked = retrace(self.mesh.whole)
                refuse_on_mesh(checked.jaxpr, name, self.mesh)
                out = jax.tree.map(_unplaced, checked.out_info)
                traced = retrace(self.mesh.kernel)
        except TracedStructureError as error:
            raise ValueError(str(error)) from None
        except Exception as error:
            if better := explain_mesh(error, name, self.mesh):
                raise better from error
            trace_with = lambda names: self._with_numbers(call, inputs, names)
            numbers = _python_numbers(self._args)
            if better := explain(error, trace_with, [*group.dtypes, *numbers], name):
                raise better from error
            raise
        self.pieces[name] = traced
        key, program = traced.jaxpr.jaxpr.invars[len(group.dtypes)], traced.jaxpr.jaxpr
        is_used = any(key is v for e in program.eqns for v in e.invars)
        self.reads_key |= is_used or any(key is v for v in program.outvars)
        return out

    def _with_numbers(
        self, call: Callable[..., PyTree], inputs: Abstract, names: Sequence[str]
    ) -> None:
        """Trace `call` with the named numbers of hp and args as Python numbers."""
        group, point = self._group, self._points[self._group.points[0]]
        static = group.static | {n: point[n] for n in names if n in group.dtypes}
        dtypes = {n: dtype for n, dtype in group.dtypes.items() if n not in names}
        leaves, treedef = jax.tree_util.tree_flatten_with_path(self._args)
        is_concrete = [f"args{jax.tree_util.keystr(path)}" in names for path, _ in leaves]
        abstract = treedef.flatten_up_to(self._abstract_args)
        specs = jax.tree.leaves(map_specs(lambda spec, _: spec, self._arg_specs, self._args))
        each = list(zip(abstract, specs, is_concrete, strict=True))
        traced = tuple(x for x, _, concrete in each if not concrete)
        traced_specs = tuple(spec for _, spec, concrete in each if not concrete)

        def with_args(hp: Hp, key: jax.Array, *rest: PyTree) -> PyTree:
            n = len(inputs.arrays)
            inner_inputs, traced_leaves = rest[:n], iter(rest[n:])
            each = zip(leaves, is_concrete, strict=True)
            args = treedef.unflatten(
                x if concrete else next(traced_leaves) for (_, x), concrete in each
            )
            return call(hp, key, *inner_inputs, *args)

        args = Abstract(traced, traced_specs)
        mesh = None if self.mesh is None else self.mesh.whole
        make_hp = lambda numbers: static | numbers
        _traced(with_args, make_hp, dtypes, (inputs, args), self.mesh, mesh)


def _traced(
    call: Callable[..., PyTree],
    make_hp: Callable[[Hp], Hp],
    dtypes: dict[str, np.dtype],
    arrays: tuple[Abstract, Abstract],
    trial_mesh: TrialMesh | None,
    mesh: AbstractMesh | None,
) -> jax.stages.Traced:
    """Trace `call(make_hp(numbers), key, *inputs, *args)` on a mesh.

    Args:
      call: the function.
      make_hp: a function from the traced hyperparameters to all.
      dtypes: the dtype of each traced hyperparameter.
      arrays: the inputs and the args.
      trial_mesh: the mesh of the sweep.
      mesh: the mesh for this trace; None for a trace without one.
    """
    numbers = {name: jax.ShapeDtypeStruct((), dtype) for name, dtype in dtypes.items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    trial = jax.jit(
        lambda numbers, key, inputs, args: call(make_hp(numbers), key, *inputs, *args),
        keep_unused=True,  # otherwise the program's text does not tell which inputs it reads
    )
    typed = [trial_mesh.typed(*x, mesh) if trial_mesh else x.arrays for x in arrays]
    with tracing(mesh):
        return trial.trace(numbers, key, *typed)


def _portable(tracer: _Tracer) -> Callable[[], dict[str, jax.stages.Traced]]:
    """Return a function that traces again what a folder compares.

    If no function names an axis, it traces without a mesh, so that the folder resumes without a
    mesh, too. Otherwise it traces with every axis at size 1, so that the folder resumes with any
    sizes. Functions that fail with size 1 are traced with their own sizes, and resume with these.
    """
    pieces, retraces, trial_mesh = tracer.pieces, tracer.retrace, tracer.mesh
    if trial_mesh is None:
        return lambda: pieces

    def portable() -> dict[str, jax.stages.Traced]:
        for mesh in (None, trial_mesh.smallest):
            with contextlib.suppress(Exception):
                return {name: retrace(mesh) for name, retrace in retraces.items()}
        return {name: retrace(trial_mesh.whole) for name, retrace in retraces.items()}

    return portable


def _unplaced(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Return an abstract array without a sharding."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def trace_train(
    train: Train,
    group: StaticGroup,
    points: Points,
    args: tuple[PyTree, ...],
    placement: Placement,
) -> Traces:
    """Trace a function for one static group, on abstract numbers.

    Args:
      train: the function that the sweep got.
      group: the static group.
      points: all points of the sweep.
      args: the sweep's `args`.
      placement: the mesh, and the shardings of what all trials share.

    Raises:
      ValueError: for a function that a sweep cannot run.
    """
    check_call(train, "train", "train(hp, key, *args)", args)
    tracer = _Tracer(group, points, args, placement)

    def call(hp: Hp, key: jax.Array, *args: PyTree) -> PyTree:
        metrics: object = train(hp, key, *args)
        if isinstance(metrics, dict):  # before JAX sorts the names
            check_names("train", list(metrics))
        return metrics

    with naming(group):
        try:
            metrics = tracer.trace("train", call, Abstract())
        except Exception as error:
            refuse_jitted(train, "train", group, error)
            raise
        checked = check_metrics("train", metrics, points, scalars=False)
    reads = tracer.reads, tracer.reads_key
    return Traces(tracer.pieces, checked, {}, None, *reads, _portable(tracer))


def trace_training(
    training: Training,
    group: StaticGroup,
    points: Points,
    args: tuple[PyTree, ...],
    batch: PyTree,
    placement: Placement,
) -> Traces:
    """Trace the functions of a `Training` for one static group, on abstract numbers.

    Args:
      training: the `Training` that the sweep got.
      group: the static group.
      points: all points of the sweep.
      args: the sweep's `args`.
      batch: the abstract batch of one step, or None without `batches`.
      placement: the mesh, and the shardings of what all trials share.

    Raises:
      ValueError: for functions that a sweep cannot run.
    """
    tracer = _Tracer(group, points, args, placement)
    specs: list[StateSpec] = []
    types: list[Sequence[PartitionSpec]] = []  # the shardings that belong to the state's types
    batch_args = () if batch is None else (batch,)
    check_calls(training, batch_args, args)

    def init(hp: Hp, key: jax.Array, *args: PyTree) -> Arrays:
        state = training.init(hp, jax.random.fold_in(key, 0), *args)
        check_leaves(state, "init")
        state = strong(state)
        specs.append(StateSpec.of(state))
        arrays = specs[0].flat(state)
        if placement.mesh:
            types.append(list(map(type_spec, arrays)))
        return arrays

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
        if types and jax.sharding.get_abstract_mesh().axis_names:
            check_same_shardings(spec, state, types[0])
        return spec.flat(state), check_metrics("step", metrics, points, scalars=True)

    evaluate_state = training.evaluate

    def evaluate(hp: Hp, key: jax.Array, arrays: Arrays, t: jax.Array, *args: PyTree) -> Metrics:
        assert evaluate_state is not None
        metrics = evaluate_state(hp, spec.tree(arrays), evaluation_key(key, t), *args)
        return check_metrics("evaluate", metrics, points, scalars=True)

    number = jax.ShapeDtypeStruct((), np.int32)
    with naming(group):
        try:
            tracer.trace("init", init, Abstract())
            spec = specs[0]
            state, state_types = list(spec.data), list(types[0]) if types else WHOLE
            inputs = Abstract(
                (state, number, *batch_args),
                (state_types, WHOLE, *(placement.batch for _ in batch_args)),
            )
            _, metrics = tracer.trace("step", step, inputs)
            evaluations = {}
            if evaluate_state is not None:
                inputs = Abstract((state, number), (state_types, WHOLE))
                evaluations = tracer.trace("evaluate", evaluate, inputs)
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
    reads = tracer.reads, tracer.reads_key
    return Traces(tracer.pieces, metrics, evaluations, spec, *reads, _portable(tracer))


def _python_numbers(args: PyTree) -> list[str]:
    """Return the places of the Python numbers in args: "args[0]"."""
    leaves = jax.tree_util.tree_flatten_with_path(args)[0]
    return [f"args{jax.tree_util.keystr(path)}" for path, x in leaves if is_number(x)]
