"""The points of a sweep: `Points`, `grid`, `static`."""

import copy
import functools
import html
import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rmsprop_jax._tune.space.values import Value, identity, is_key, is_number, label

if TYPE_CHECKING:
    import pandas

RESERVED = frozenset({"seed", "objective", "failed", "status", "steps_completed"})
FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
MOST_BITS = 10_000  # of an integer: Python prints no more than 4,300 digits
MOST_LEVELS = 100  # of nested containers: comparing and storing them recurses
LARGEST = float(np.finfo(np.float32).max)
MOST_SHOWN = 10  # rows in a notebook
SAMPLED = ("sobol", "latin_hypercube", "random")  # how `sample` makes points
MADE = (*SAMPLED, "list", "grid", "a + b", "a * b", "filter", "search")


class static(tuple[Value, ...]):  # noqa: N801 (reads as a function where it is called)
    """A mark for static hyperparameters: `train` gets the axis's values as Python objects.

    JAX compiles one program for each combination of static values. Bools, strings, and `None` are
    static without this mark. Shapes, layer counts, and optimizers' names need the mark. The
    argument is a list, tuple, range, or 1-D array for `grid`, and a distribution for `sample`.

    Raises:
      ValueError: for a string, a dict, a set, or a single value.

    Examples:
      >>> import rmsprop_jax as rj
      >>> points = rj.grid(hidden=rj.static([64, 128]), learning_rate=[1e-3, 1e-2])
      >>> points.static
      frozenset({'hidden'})
    """

    def __new__(cls, values: Value):
        if hasattr(values, "as_static"):
            return values.as_static()
        if isinstance(values, str | bytes | dict | set | frozenset) or not isinstance(
            values, Iterable
        ):
            raise ValueError(
                "static: values must be a list, tuple, range, or 1-D array of the axis's values, "
                f"got {values!r}. If this is the only value, pass static([{values!r}])."
            )
        return super().__new__(cls, values)


class Points(Sequence[dict[str, Value]]):
    """An immutable sequence of points, each a dict of hyperparameters.

    An index gives a dict. A slice or `filter` gives `Points`. `a + b` joins two sequences, whose
    names may differ. `train` finds a name in `hp` only for points that have it, for example
    `momentum` for the optimizer that uses momentum. `a * b` combines each point of a with each
    point of b, whose names must differ.

    Args:
      points: mappings from name to value, all with the same names. Numbers, of any NumPy or JAX
        scalar type, are traced. All other values are static.
      static: the names whose numbers are static, too.

    Attributes:
      names: the names of all hyperparameters in order, a tuple.
      static: the names whose numbers are static, too, a frozenset.
      method: how the points were made: "sobol", "latin_hypercube", or "random" by `sample`, also in
        a slice; else "list", "grid", "a + b", "a * b", "filter", or "search".
      space: the space that `sample` drew from, also in a slice; else `None`.

    Raises:
      ValueError: for points that are not mappings or whose names differ; for a reserved name
        (`seed`, `objective`, `failed`, `status`, `steps_completed`); for a NaN, an integer beyond
        int32, or a float beyond float32; and for a value that Python cannot print (more than 10,000
        bits, 100 nested levels).
    """

    def __init__(self, points: Iterable[Mapping[str, Value]], static: Iterable[str] = ()):
        rows = _rows(points)
        for i, row in enumerate(rows):
            if set(row) != set(rows[0]):
                raise ValueError(
                    f"points must all have the same names, got {sorted(rows[0])} for point 0 and "
                    f"{sorted(row)} for point {i}. For an axis that only some points have, join "
                    "two: Points([...]) + Points([...])."
                )
        self._set(rows, static)

    def _set(self, rows: Sequence[Mapping[str, Value]], static: Iterable[str]) -> None:
        self.static, self.method = frozenset(static), "list"
        self.space: dict[str, Any] | None = None  # a Distribution for each hyperparameter
        self.names: tuple[str, ...] = tuple(dict.fromkeys(name for row in rows for name in row))
        if rows and (unknown := self.static - set(self.names)):
            raise ValueError(
                f"static must name hyperparameters of the points, {self.names}, got "
                f"{sorted(unknown)}. Rename them, or leave them out."
            )
        if clash := RESERVED & set(self.names):
            raise ValueError(
                f"a hyperparameter must not be named {sorted(clash)}, because results have columns "
                "of that name. Rename it."
            )
        self._points = tuple(
            {
                name: plain(name, row[name], name in self.static)
                for name in self.names
                if name in row
            }
            for row in rows
        )
        self._has_ints: dict[str, bool] = {}
        """For each axis that was asked for, whether all its numbers are ints."""

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Value]], static: Iterable[str]) -> "Points":
        """Return points whose names may differ.

        Args:
          rows: mappings from name to value.
          static: the names whose numbers are static. Names that no row has are ignored.
        """
        points = cls.__new__(cls)
        names = {name for row in rows for name in row}
        points._set(rows, names & set(static))
        return points

    def drawn(self, method: str, space: Mapping[str, Any] | None = None) -> "Points":
        """Return the same points, which remember how they were made.

        Args:
          method: how the points were made.
          space: the space of a sample; `None` for other points.
        """
        points = copy.copy(self)
        points.method, points.space = method, None if space is None else dict(space)
        return points

    @overload
    def __getitem__(self, index: int) -> dict[str, Value]: ...
    @overload
    def __getitem__(self, index: slice) -> "Points": ...
    def __getitem__(self, index: int | slice) -> "dict[str, Value] | Points":
        if isinstance(index, slice):
            return Points.of(self._points[index], self.static).drawn(self.method, self.space)
        return dict(self._points[index])

    def __len__(self) -> int:
        return len(self._points)

    def __iter__(self) -> Iterator[dict[str, Value]]:
        return (dict(point) for point in self._points)

    def __add__(self, other: Sequence[Mapping[str, Value]]) -> "Points":
        if not isinstance(other, Points):
            if not isinstance(other, Sequence) or isinstance(other, str):
                return NotImplemented
            other = Points(other)
        return Points.of(self._points + other._points, self.static | other.static).drawn("a + b")

    def __radd__(self, other: Sequence[Mapping[str, Value]]) -> "Points":
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return Points(other) + self

    def __mul__(self, other: "Points") -> "Points":
        if not isinstance(other, Points):
            return NotImplemented
        if both := set(self.names) & set(other.names):
            raise ValueError(
                f"the factors of a product must have different names, got {sorted(both)} in both. "
                "Remove these axes from one of the factors."
            )
        rows = [a | b for a, b in itertools.product(self._points, other._points)]
        return Points.of(rows, self.static | other.static).drawn("a * b")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Points):
            return NotImplemented
        alike = self.static == other.static and len(self) == len(other)
        return alike and self.keys() == other.keys()

    __hash__ = None  # type: ignore[assignment]  # values need not be hashable

    def __repr__(self) -> str:
        return f"Points({len(self)} × {', '.join(self.names)})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: a summary, and the first points."""
        cell = lambda point, name: label(point[name]) if name in point else "–"
        rows = [[cell(point, name) for name in self.names] for point in self._points[:MOST_SHOWN]]
        more = len(self) - MOST_SHOWN
        heading = f"{self!r}{f', the first {MOST_SHOWN}' if more > 0 else ''}"
        return html_table(heading, [list(self.names), *rows])

    def filter(self, keep: Callable[[dict[str, Value]], bool]) -> "Points":
        """Return the points for which `keep(point)` is true.

        Args:
          keep: a function from a point, a dict, to a bool.
        """
        return Points.of([point for point in self if keep(point)], self.static).drawn("filter")

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return a pandas DataFrame with one row per point and one column per hyperparameter.

        A cell is `None` if its point does not have this hyperparameter.

        Raises:
          ImportError: without pandas, which the extra `data` installs.
        """
        return dataframe({name: [point.get(name) for point in self] for name in self.names})

    def traced(self, index: int) -> dict[str, int | float]:
        """Return the traced hyperparameters of a point."""
        return {name: x for name, x in self._points[index].items() if self.is_traced(name, x)}

    def is_traced(self, name: str, value: Value) -> bool:
        """Return whether `train` gets this value as a traced scalar, not as a Python object."""
        return name not in self.static and is_number(value)

    def dtype(self, name: str) -> np.dtype:
        """Return the dtype of an axis's traced scalars: int32, or JAX's default float."""
        if name not in self._has_ints:
            numbers = (p[name] for p in self._points if self.is_traced(name, p.get(name)))
            self._has_ints[name] = all(isinstance(x, int) for x in numbers)
        return np.dtype(np.int32) if self._has_ints[name] else _float()

    def key(self, point: Mapping[str, Value]) -> Hashable:
        """Return a key that two points share if, and only if, they train the same.

        Traced numbers are compared in the dtype of their axis, all other values by type and
        content.
        """
        return frozenset((name, self.value_key(name, value)) for name, value in point.items())

    def value_key(self, name: str, value: Value) -> Hashable:
        """Return a key that two values of an axis share if, and only if, they train the same."""
        if self.is_traced(name, value):
            return "number", identity(float(value) if self.dtype(name).kind == "f" else value)
        return identity(value)

    def keys(self) -> list[Hashable]:
        """Return the `key` of each point."""
        return [self.key(point) for point in self._points]

    @functools.cached_property
    def _first_index(self) -> dict[Hashable, int]:
        """For each key the index of the first point that has it."""
        return {key: i for i, key in reversed(list(enumerate(self.keys())))}

    def index_of(self, point: Mapping[str, Value]) -> int:
        """Return the index of the first point that equals this one.

        Args:
          point: a dict with all hyperparameters of a point.

        Raises:
          ValueError: for a point that is not in this sequence.
        """
        if isinstance(point, Mapping):
            plain_point = {name: plain(name, x, name in self.static) for name, x in point.items()}
            if (index := self._first_index.get(self.key(plain_point))) is not None:
                return index
        raise ValueError(
            f"point must be one of the points of this sweep, {self}, got {point!r}. Pass one of "
            "result.points."
        )


def grid(*values: Value, **axes: Value) -> Points:
    """Return every combination of the axes' values. The last axis varies fastest.

    Args:
      *values: refused with the call to write instead, because an axis needs its name.
      **axes: for each hyperparameter a list, tuple, range, or 1-D NumPy or JAX array, or
        `static([...])` around one of these. An axis with any float is traced as float32 (float64
        under x64). An axis of ints is traced as int32. Bools, strings, `None`, and other objects
        are static.

    Returns:
      `Points`. Their number is the product of the axes' lengths.

    Raises:
      ValueError: without an axis; for an empty axis, a scalar, an array that is not 1-D, or two
        numbers that are equal in the dtype of their axis; and for everything that `Points` refuses.

    Examples:
      >>> import rmsprop_jax as rj
      >>> points = rj.grid(learning_rate=[1e-3, 1e-2], decay=[0.9, 0.99])
      >>> len(points), points[1]
      (4, {'learning_rate': 0.001, 'decay': 0.99})
    """
    if values:
        star = "**" if isinstance(values[0], Mapping) else "learning_rate="
        raise ValueError(
            f"grid must get its axes by name, got {values[0]!r}. Pass grid({star}{values[0]!r})."
        )
    if not axes:
        raise ValueError(
            "grid must get at least one axis, got none. Pass, for example, "
            "grid(learning_rate=[1e-3, 1e-2])."
        )
    lists = {name: _axis(name, axis) for name, axis in axes.items()}
    rows = [dict(zip(lists, row, strict=True)) for row in itertools.product(*lists.values())]
    points = Points(rows, (name for name, axis in axes.items() if isinstance(axis, static)))
    for name, axis in lists.items():
        _refuse_merged(points, name, axis)
    return points.drawn("grid")


def _axis(name: str, axis: Value) -> list[Value]:
    """Return the values of an axis as a list; ValueError for anything that is not an axis."""
    is_list = isinstance(axis, list | tuple) and not isinstance(axis, static)
    if is_key(axis) or (is_list and any(map(is_key, axis))):
        raise ValueError(
            f"axis {name!r} must have numbers or Python objects as values, got PRNG keys. Pass "
            f"integers, and make the key in train: jax.random.key(hp[{name!r}]). To repeat each "
            "point with several keys, use sweep(..., seeds=n)."
        )
    if isinstance(axis, np.ndarray | jax.Array) and axis.ndim == 1:
        axis = np.asarray(axis).tolist()
    if not isinstance(axis, list | tuple | range):
        kind = type(axis).__name__ if not isinstance(axis, jax.Array) else "an array"
        shape = f" of shape {np.shape(axis)}" if hasattr(axis, "shape") else ""
        hint = " To draw from a distribution, use rj.sample." if hasattr(axis, "quantile") else ""
        raise ValueError(
            f"axis {name!r} must be a list, tuple, range, or 1-D array of values, got {kind}"
            f"{shape}. Pass {name}=[...].{hint}"
        )
    if len(axis) == 0:
        raise ValueError(
            f"axis {name!r} must have at least one value, got none. Pass a value, or leave the "
            "axis out."
        )
    return list(axis)


def _refuse_merged(points: Points, name: str, axis: list[Value]) -> None:
    """Raise ValueError for two numbers of an axis that are equal in its dtype."""
    dtype = points.dtype(name)
    seen: dict[float, float] = {}
    for value in axis:
        value = plain(name, value, name in points.static)
        if points.is_traced(name, value):
            other = seen.setdefault(dtype.type(value).item(), value)
            if float(other) != float(value):
                raise ValueError(
                    f"axis {name!r} must have values that differ in {dtype}, got {other!r} and "
                    f"{value!r}, which are one number in {dtype}. Leave one out, or enable x64: "
                    'jax.config.update("jax_enable_x64", True).'
                )


def hyperparameters(points: Points, index: int) -> dict[str, Value]:
    """Return a point as `train` gets it: JAX scalars for traced numbers, else Python objects."""
    return {
        name: jnp.asarray(x, points.dtype(name)) if points.is_traced(name, x) else x
        for name, x in points[index].items()
    }


def dataframe(columns: Mapping[str, Sequence[Value] | np.ndarray]) -> "pandas.DataFrame":
    """Return a pandas DataFrame of these columns; ImportError without pandas."""
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError(
            'pandas must be installed for to_dataframe. Run: pip install "rmsprop_jax[data]"'
        ) from error
    return pd.DataFrame(columns)


def html_table(heading: str, rows: Sequence[Sequence[str]]) -> str:
    """Return a heading and a table as HTML, with all cells escaped."""
    cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    table = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<p>{html.escape(heading)}</p><table>{table}</table>"


def plain(name: str, value: Value, is_static: bool) -> Value:
    """Return a value with NumPy and JAX scalars as Python numbers. Static values do not change.

    Args:
      name: the axis.
      value: one of its values.
      is_static: whether the axis is static.

    Raises:
      ValueError: for a value that cannot be trained with, or that is out of range.
    """
    if isinstance(value, Tracer):
        raise ValueError(
            f"{name!r} must be a concrete value, got a traced value. Make and sweep points outside "
            "jax.jit, vmap, and grad, and outside another sweep's train."
        )
    _refuse_unwieldy(name, value)
    if is_static:
        return value
    if is_key(value):
        _axis(name, value)
    if isinstance(value, np.generic) or (
        isinstance(value, np.ndarray | jax.Array) and value.ndim == 0
    ):
        value = value.item()
    if isinstance(value, np.ndarray | jax.Array):
        raise ValueError(
            f"{name!r} must have numbers as values, got an array of shape {value.shape} as one "
            f"value. If train needs the array, make the axis static: {name}=rj.static([...])."
        )
    if not is_number(value):
        return value
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{name!r} must be a number, got NaN. Leave that point out.")
    if isinstance(value, int) and not -(2**31) <= value < 2**31:
        raise ValueError(
            f"{name!r} must fit int32, got the integer {value}. Write it as a float, or make the "
            f"axis static: {name}=rj.static([...])."
        )
    if isinstance(value, float) and value and math.isfinite(value) and _float() is FLOAT32:
        enable = 'enable x64: jax.config.update("jax_enable_x64", True)'
        if abs(value) > LARGEST:
            raise ValueError(
                f"{name!r} must fit float32, got {value}, which float32 rounds to infinity. Use a "
                f"smaller number, or {enable}."
            )
        if abs(value) < 1e-45 and np.float32(value) == 0:
            raise ValueError(
                f"{name!r} must fit float32, got {value}, which float32 rounds to 0. Write 0, or "
                f"{enable}."
            )
    return value


def _refuse_unwieldy(name: str, value: Value) -> None:
    """Raise ValueError for a huge integer or a deep nesting, which Python cannot print."""
    level = [value]
    for _ in range(MOST_LEVELS):
        if any(isinstance(x, int) and x.bit_length() > MOST_BITS for x in level):
            raise ValueError(
                f"{name!r} must have integers of at most {MOST_BITS:,} bits, got one of more than "
                f"{MOST_BITS:,} bits. Write it as a float, or as a string that train reads."
            )
        contents = itertools.chain.from_iterable(map(_items, level))
        level = list({id(x): x for x in contents}.values())
        if not level:
            return
    raise ValueError(
        f"{name!r} must have values of fewer than {MOST_LEVELS} nested levels, got one that is "
        f"nested {MOST_LEVELS} levels deep or more. Flatten it, or build it in train from a name."
    )


def _items(value: Value) -> Iterable[Value]:
    """Return the items of a container, keys included; nothing for any other value."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, tuple | list | set | frozenset) else ()


def _rows(points: Iterable[Mapping[str, Value]]) -> list[dict[str, Value]]:
    """Return points as new dicts; ValueError for anything that is not a list of dicts."""
    if isinstance(points, Mapping):
        raise ValueError(
            f"points must be a list of dicts, got one dict, {points!r}. For every combination of "
            "the values of its axes, pass rj.grid(**points)."
        )
    rows = list(points)
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping) or not all(isinstance(name, str) for name in row):
            raise ValueError(
                f"point {i} must be a dict from names to values, got {row!r}. Pass, for example, "
                "{'learning_rate': 1e-3}."
            )
    return [dict(row) for row in rows]


def _float() -> np.dtype:
    """Return JAX's default float: float32, or float64 under x64."""
    return FLOAT64 if jax.config.read("jax_enable_x64") else FLOAT32
