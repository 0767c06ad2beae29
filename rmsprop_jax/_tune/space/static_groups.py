"""Static groups: points that share their static hyperparameters, and so their programs."""

import contextlib
from collections.abc import Generator, Hashable
from typing import NamedTuple

import numpy as np

from rmsprop_jax._tune.space.points import Points
from rmsprop_jax._tune.space.values import Value


class StaticGroup(NamedTuple):
    """The points that share their static hyperparameters."""

    static: dict[str, Value]
    """The static hyperparameters, which `train` gets as Python objects."""
    dtypes: dict[str, np.dtype]
    """The dtypes of the traced hyperparameters."""
    points: list[int]
    """The indices of the points."""

    def key(self, points: Points) -> Hashable:
        """Return a key that two groups of these points share if, and only if, they are equal.

        It has the names of the traced hyperparameters without their dtypes, because all groups of
        these points have the same dtype for a name (`Points.dtype`).
        """
        return frozenset(self.dtypes), points.key(self.static)


def group_points(points: Points) -> list[StaticGroup]:
    """Return the static groups of some points, in order of appearance.

    `Points.is_traced` says which hyperparameters are traced. All others are static.
    """
    groups: dict[Hashable, StaticGroup] = {}
    dtypes = {name: points.dtype(name) for name in points.names}
    for i, point in enumerate(points):
        traced = points.traced(i)
        static = {name: value for name, value in point.items() if name not in traced}
        group = StaticGroup(static, {name: dtypes[name] for name in traced}, [])
        groups.setdefault(group.key(points), group).points.append(i)
    return list(groups.values())


@contextlib.contextmanager
def naming(group: StaticGroup) -> Generator[None]:
    """Add a note to an exception that leaves this context: the static hyperparameters."""
    try:
        yield
    except Exception as error:
        note = f"This happened with the static hyperparameters {group.static}."
        if group.static and note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise
