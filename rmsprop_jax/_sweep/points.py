"""The settings that a sweep tries: `Points`, `grid`, `static`."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

RESERVED = frozenset({"seed", "objective", "failed"})


class static(tuple):  # noqa: N801 (reads as a function where it is called)
    """Mark an axis as structure: `train` gets its values as the Python objects they are.

    One program is compiled for each combination of static values. Bools, strings and `None` are
    structure without this mark; shapes, layer counts and optimisers' names need it.

    Examples:
      >>> import rmsprop_jax as rj
      >>> points = rj.grid(hidden=rj.static([64, 128]), learning_rate=[1e-3, 1e-2])
      >>> points.static
      frozenset({'hidden'})
    """


class Points(Sequence[dict[str, Any]]):
    """An immutable sequence of settings with the same names, and which names are static.

    An index gives a dict, a slice or `filter` gives `Points`, `+` joins two of the same names.

    Args:
      points: mappings from name to value. Numbers (of any NumPy or JAX scalar type) are traced, all
        else is structure.
      static: the names whose numbers are structure too.

    Raises:
      ValueError: for settings whose names differ, a reserved name (`seed`, `objective`,
        `failed`), a NaN or an integer beyond int32.
    """

    def __init__(self, points: Iterable[Mapping[str, Any]], static: Iterable[str] = ()):
        rows = [dict(point) for point in points]
        self.static = frozenset(static)
        self.names: tuple[str, ...] = tuple(rows[0]) if rows else ()
        for i, row in enumerate(rows):
            if set(row) != set(self.names):
                raise ValueError(
                    f"all points need the same names: point 0 has {sorted(self.names)}, "
                    f"point {i} has {sorted(row)}."
                )
        if rows and (unknown := self.static - set(self.names)):
            raise ValueError(f"static names {sorted(unknown)}, but the points have {self.names}.")
        if clash := RESERVED & set(self.names):
            raise ValueError(
                f"{sorted(clash)} cannot name a hyperparameter: results have columns of that name."
            )
        self._points = tuple(
            {name: _plain(name, row[name], name in self.static) for name in self.names}
            for row in rows
        )

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> "Points": ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return Points(self._points[index], self.static if self._points[index] else ())
        return dict(self._points[index])

    def __len__(self) -> int:
        return len(self._points)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(point) for point in self._points)

    def __add__(self, other: "Points") -> "Points":
        if not isinstance(other, Points):
            return NotImplemented
        return Points(self._points + other._points, self.static | other.static)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Points):
            return NotImplemented
        return self._points == other._points and self.static == other.static

    __hash__ = None  # type: ignore[assignment]  # values need not be hashable

    def __repr__(self) -> str:
        return f"Points({len(self)} × {', '.join(self.names)})"

    def filter(self, keep: Callable[[dict[str, Any]], bool]) -> "Points":
        """The points for which `keep(point)` is true."""
        rows = [point for point in self if keep(point)]
        return Points(rows, self.static if rows else ())

    def to_dataframe(self):
        """A pandas DataFrame with a row a point and a column a hyperparameter.

        Raises:
          ImportError: without pandas, which the extra `data` installs.
        """
        return dataframe({name: [point[name] for point in self] for name in self.names})

    def is_traced(self, name: str, value: Any) -> bool:
        """Whether `train` gets this value as a traced number, not as a Python object."""
        return name not in self.static and is_number(value)

    def dtype(self, name: str) -> Any:
        """The dtype in which an axis' numbers are traced: int32, or JAX's default float."""
        numbers = [p[name] for p in self._points if self.is_traced(name, p[name])]
        if all(isinstance(x, int) for x in numbers):
            return np.dtype(np.int32)
        return np.dtype(np.float64 if jax.config.read("jax_enable_x64") else np.float32)


def grid(**axes: Any) -> Points:
    """Every combination of the axes' values, the last axis fastest.

    Args:
      **axes: for each hyperparameter a list, tuple, range, 1-D NumPy or JAX array, or
        `static([...])` around one. An axis with any float is traced as float32 (float64 under x64),
        one of ints as int32. Bools, strings, `None` and other objects are structure.

    Raises:
      ValueError: without an axis, for an empty axis, a scalar or an array that is not 1-D.

    Examples:
      >>> import rmsprop_jax as rj
      >>> points = rj.grid(learning_rate=[1e-3, 1e-2], decay=[0.9, 0.99])
      >>> len(points), points[1]
      (4, {'learning_rate': 0.001, 'decay': 0.99})
    """
    if not axes:
        raise ValueError("grid() needs at least one axis, e.g. grid(learning_rate=[1e-3, 1e-2]).")
    values = {}
    for name, axis in axes.items():
        if isinstance(axis, np.ndarray | jax.Array) and axis.ndim == 1:
            axis = np.asarray(axis).tolist()
        if not isinstance(axis, list | tuple | range):
            shape = f" of shape {np.shape(axis)}" if hasattr(axis, "shape") else ""
            raise ValueError(
                f"axis {name!r} is {type(axis).__name__}{shape}, wanted a list, tuple or 1-D array "
                f"of values: {name}=[...]."
            )
        if len(axis) == 0:
            raise ValueError(f"axis {name!r} is empty: the grid would have no points.")
        values[name] = list(axis)
    rows = [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]
    return Points(rows, (name for name, axis in axes.items() if isinstance(axis, static)))


def hyperparameters(points: Points, index: int) -> dict[str, Any]:
    """A point as `train` gets it: JAX scalars for numbers, Python objects for structure."""
    return {
        name: jnp.asarray(x, points.dtype(name)) if points.is_traced(name, x) else x
        for name, x in points[index].items()
    }


def dataframe(columns: dict[str, Any]):
    """A pandas DataFrame of these columns; ImportError without pandas."""
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError('to_dataframe needs pandas: pip install "rmsprop_jax[data]"') from error
    return pd.DataFrame(columns)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(name: str, value: Any, is_static: bool) -> Any:
    """NumPy and JAX scalars as Python numbers; static values as they are."""
    if is_static:
        return value
    if isinstance(value, np.generic) or (
        isinstance(value, np.ndarray | jax.Array) and value.ndim == 0
    ):
        value = value.item()
    if isinstance(value, np.ndarray | jax.Array):
        raise ValueError(
            f"{name!r} has an array of shape {value.shape} as one value, wanted a number; "
            f"mark the axis with static if an array is meant."
        )
    if is_number(value) and math.isnan(value):
        raise ValueError(f"{name!r} has the value NaN: leave that point out.")
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**31) <= value < 2**31:
        raise ValueError(f"{name!r} has the integer {value}, beyond int32: write it as a float.")
    return value
