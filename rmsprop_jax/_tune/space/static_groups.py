"""Points in static groups: trials that share their static hyperparameters share one program."""

import contextlib
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

from rmsprop_jax._tune.space.points import Points


class StaticGroup(NamedTuple):
    """The points that share their static hyperparameters."""

    static: dict[str, Any]
    """The values that `train` gets as Python objects."""
    dtypes: dict[str, Any]
    """The dtypes of the values that `train` gets as traced scalars."""
    points: list[int]
    """Which points."""

    def key(self, points: Points) -> Hashable:
        """Return what is equal for equal groups of these points."""
        return frozenset(self.dtypes), points.key(self.static)


def group_points(points: Points) -> list[StaticGroup]:
    """Return the points in static groups, in order of appearance."""
    groups: dict[Hashable, StaticGroup] = {}
    dtypes = {name: points.dtype(name) for name in points.names}
    for i, point in enumerate(points):
        traced = points.traced(i)
        static = {name: value for name, value in point.items() if name not in traced}
        group = StaticGroup(static, {name: dtypes[name] for name in traced}, [])
        groups.setdefault(group.key(points), group).points.append(i)
    return list(groups.values())


@contextlib.contextmanager
def naming(group: StaticGroup) -> Iterator[None]:
    """Note the static hyperparameters on an error that comes from one group."""
    try:
        yield
    except Exception as error:
        note = f"This happened with the static hyperparameters {group.static}."
        if group.static and note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise
