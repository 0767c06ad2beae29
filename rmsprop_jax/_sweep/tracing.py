"""`train` under an abstract trace: the groups of points that share one, and what it refuses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rmsprop_jax._sweep.points import RESERVED, Points

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
    dtypes = {name: points.dtype(name) for name in points.names}
    groups: list[Group] = []
    for i, point in enumerate(points):
        traced = {n: dtypes[n] for n, value in point.items() if points.is_traced(n, value)}
        structure = {n: value for n, value in point.items() if n not in traced}
        for group in groups:
            if group.dtypes.keys() == traced.keys() and _same(group.structure, structure):
                group.indices.append(i)
                break
        else:
            groups.append(Group(structure, traced, [i]))
    return groups


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(x is b[n] or (type(x) is type(b[n]) and np.all(x == b[n])) for n, x in a.items())


class _Recorded(dict):
    """A dict of hyperparameters that notes which names are read, and explains a missing one."""

    def __init__(self, values, names, read: set[str]):
        super().__init__(values)
        self.names, self.read = names, read

    def __getitem__(self, name):
        self.read.add(name)
        return super().__getitem__(name)

    def __missing__(self, name):
        raise ValueError(
            f"train read hp[{name!r}], but no axis gives it: the points have {list(self.names)}. "
            f"Add the axis, or use hp.get({name!r}, default)."
        )

    def get(self, name, default=None):
        return self[name] if name in self else default  # noqa: SIM401 (get would call itself)

    def pop(self, name, *default):
        self.read.add(name)
        return super().pop(name, *default)

    def __iter__(self):  # also reached by {**hp} and dict(hp)
        self.read.update(super().keys())
        return super().__iter__()

    def items(self):
        self.read.update(super().keys())
        return super().items()

    def values(self):
        self.read.update(super().keys())
        return super().values()


def _flatten(hp: _Recorded):
    names = tuple(sorted(dict.keys(hp)))
    hp.read.update(names)
    return [dict.__getitem__(hp, name) for name in names], (names, hp.names)


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


def trace(train: Train, group: Group, points: Points, args: tuple[Any, ...]) -> TracedTrain:
    """Trace `train` on abstract numbers; ValueError for what a sweep cannot run."""
    read: set[str] = set()
    recorded = lambda numbers: _Recorded(group.structure | numbers, points.names, read)
    try:
        traced = _traced(train, recorded, group.dtypes, args)
    except (jax.errors.ConcretizationTypeError, TypeError, IndexError) as error:
        point = points[group.indices[0]]
        if culprits := _concrete_remedy(train, group, point, args):
            axes = " and ".join(map(repr, culprits))
            raise ValueError(
                f"train used {axes} as a shape, an index, a bool or a Python number, but the "
                "numbers of an axis are traced, so that one program serves all of them. Mark the "
                f"axis as structure, {culprits[0]}=rmsprop_jax.static([...]), or use jnp.where or "
                "jax.lax.cond."
            ) from error
        raise
    return TracedTrain(traced, _checked_metrics(traced.out_info, points), read)


def _traced(train: Train, make_hp: Callable, dtypes: dict[str, Any], args) -> jax.stages.Traced:
    numbers = {name: jax.ShapeDtypeStruct((), dtype) for name, dtype in dtypes.items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    trial = jax.jit(lambda numbers, key, args: train(make_hp(numbers), key, *args))
    # Where args lie is no part of the program, nor of its fingerprint.
    anywhere = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type)
    return trial.trace(numbers, key, jax.tree.map(anywhere, jax.eval_shape(lambda: args)))


def _concrete_remedy(train: Train, group: Group, point: dict[str, Any], args) -> list[str]:
    """The names that, given as Python numbers, make this error go away or change."""

    def outcome(names):
        structure = group.structure | {n: point[n] for n in names}
        dtypes = {n: dtype for n, dtype in group.dtypes.items() if n not in names}
        try:
            _traced(train, lambda numbers: structure | numbers, dtypes, args)
        except Exception as other:
            return str(other)
        return None

    before = outcome(())
    return [name for name in group.dtypes if outcome((name,)) != before]


def _checked_metrics(metrics: Any, points: Points) -> Metrics:
    if not isinstance(metrics, dict) or not metrics:
        raise ValueError(
            f"train must return a dict of named metrics, got {type(metrics).__name__}: "
            'return {"loss": losses}.'
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
