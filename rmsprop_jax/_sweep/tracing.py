"""`train` under an abstract trace: the groups of points that share one, and what it refuses."""

import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rmsprop_jax._sweep.blame import explain
from rmsprop_jax._sweep.points import RESERVED, Points
from rmsprop_jax._sweep.values import is_number

Train = Callable[..., dict[str, jax.Array]]
Metrics = dict[str, jax.ShapeDtypeStruct]


class Group(NamedTuple):
    """The points that share their structure, and so one compiled program."""

    structure: dict[str, Any]
    """The values that `train` gets as Python objects."""
    dtypes: dict[str, Any]
    """The dtypes of the values that it gets as traced scalars."""
    indices: list[int]
    """Which points."""


def group_points(points: Points) -> list[Group]:
    """Points by structure, in order of appearance."""
    groups: dict[Hashable, Group] = {}
    dtypes = {name: points.dtype(name) for name in points.names}
    for i, point in enumerate(points):
        traced = [name for name, value in point.items() if points.is_traced(name, value)]
        structure = {name: value for name, value in point.items() if name not in traced}
        key = frozenset(traced), points.key(structure)
        if key not in groups:
            groups[key] = Group(structure, {name: dtypes[name] for name in traced}, [])
        groups[key].indices.append(i)
    return list(groups.values())


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


class TracedTrain(NamedTuple):
    """`train` for one group, traced once: what is checked, hashed and compiled."""

    traced: jax.stages.Traced
    metrics: Metrics
    read: set[str]
    """The names that `train` read."""
    reads_key: bool

    @property
    def equations(self) -> int:
        """How long the program is."""
        return sum(1 for _ in equations(self.traced.jaxpr))


def trace(train: Train, group: Group, points: Points, args: tuple[Any, ...]) -> TracedTrain:
    """Trace `train` on abstract numbers; ValueError for what a sweep cannot run."""
    check_call(train, args)
    read: set[str] = set()
    recorded = lambda numbers: _Recorded(group.structure | numbers, points.names, read)
    try:
        traced = _traced(train, recorded, group.dtypes, args)
    except Exception as error:
        if hasattr(train, "lower") and group.structure:  # of jax.jit: it traces what it gets
            raise ValueError(
                f"train is jitted by itself, and so its jax.jit traces the structure too, "
                f"{group.structure}. Give the function that you jitted (train.__wrapped__): the "
                "sweep compiles it."
            ) from error
        point = points[group.indices[0]]
        numbers = _python_numbers(args)
        trace_with = lambda names: _with_numbers(train, group, point, args, names)
        if better := explain(error, trace_with, [*group.dtypes, *numbers], "train"):
            raise better from error
        raise
    key = traced.jaxpr.jaxpr.invars[len(group.dtypes)]
    used = any(key is v for e in traced.jaxpr.jaxpr.eqns for v in e.invars)
    reads_key = used or any(key is v for v in traced.jaxpr.jaxpr.outvars)
    return TracedTrain(traced, _checked_metrics(traced.out_info, points), read, reads_key)


def check_call(train: Train, args: tuple[Any, ...]) -> None:
    """ValueError where `train` cannot be called so, or an argument is no array."""
    if not callable(train):
        raise ValueError(f"train must be a function train(hp, key, *args), got {train!r}.")
    try:
        signature = inspect.signature(train)
    except (TypeError, ValueError):
        signature = None
    if signature is not None:
        try:
            signature.bind(None, None, *args)
        except TypeError as error:
            raise ValueError(
                f"sweep calls train(hp, key, *args) with {len(args)} args, but its signature is "
                f"train{signature}: {error}."
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
                "train close over it, or make it a static axis."
            ) from None


def _python_numbers(args: Any) -> list[str]:
    leaves = jax.tree_util.tree_flatten_with_path(args)[0]
    return [f"args{jax.tree_util.keystr(path)}" for path, x in leaves if is_number(x)]


def _traced(train: Train, make_hp: Callable, dtypes: dict[str, Any], args) -> jax.stages.Traced:
    numbers = {name: jax.ShapeDtypeStruct((), dtype) for name, dtype in dtypes.items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    trial = jax.jit(lambda numbers, key, args: train(make_hp(numbers), key, *args))
    # Where args lie is no part of the program, nor of its fingerprint.
    anywhere = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type)
    return trial.trace(numbers, key, jax.tree.map(anywhere, jax.eval_shape(lambda: args)))


def _with_numbers(
    train: Train, group: Group, point: dict[str, Any], args: Any, names: Sequence[str]
) -> None:
    """Trace `train`, the named numbers of hp and args as Python numbers."""
    structure = group.structure | {n: point[n] for n in names if n in group.dtypes}
    dtypes = {n: dtype for n, dtype in group.dtypes.items() if n not in names}
    leaves, treedef = jax.tree_util.tree_flatten_with_path(args)
    known = [x if f"args{jax.tree_util.keystr(path)}" in names else None for path, x in leaves]
    others = [x for x, python in zip([x for _, x in leaves], known, strict=True) if python is None]

    def call(hp, key, *others):
        rest = iter(others)
        return train(hp, key, *treedef.unflatten(next(rest) if x is None else x for x in known))

    _traced(call, lambda numbers: structure | numbers, dtypes, tuple(others))


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


def _checked_metrics(metrics: Any, points: Points) -> Metrics:
    if not isinstance(metrics, dict) or not metrics:
        arrays = {jax.ShapeDtypeStruct: "an array", dict: "an empty one"}
        raise ValueError(
            f"train must return a dict of named metrics, got "
            f'{arrays.get(type(metrics), type(metrics).__name__)}: return {{"loss": losses}}.'
        )
    for name, metric in metrics.items():
        if not isinstance(name, str):
            raise ValueError(f"train returned a metric named {name!r}; names must be strings.")
        if name in points.names or name in RESERVED:
            raise ValueError(
                f"train returned a metric named {name!r}, which is a hyperparameter's or a "
                f"reserved name ({sorted(RESERVED)}): rename it."
            )
        if not isinstance(metric, jax.ShapeDtypeStruct):
            raise ValueError(f"metric {name!r} is {type(metric).__name__}, wanted an array.")
        if len(metric.shape) > 1 or 0 in metric.shape:
            raise ValueError(
                f"metric {name!r} has shape {metric.shape}, wanted a scalar or one value a step."
            )
        if not jnp.issubdtype(metric.dtype, jnp.number) and metric.dtype != bool:
            raise ValueError(f"metric {name!r} has dtype {metric.dtype}, wanted numbers.")
        if jnp.issubdtype(metric.dtype, jnp.complexfloating):
            raise ValueError(f"metric {name!r} is complex ({metric.dtype}), wanted real numbers.")
    return metrics
