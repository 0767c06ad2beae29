"""The settings that a sweep tries: `Points`, `grid`, `static`."""

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rmsprop_jax._tune.space.values import identity, is_key, is_number

if TYPE_CHECKING:
    import pandas

RESERVED = frozenset({"seed", "objective", "failed", "status", "steps_completed"})
FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
MOST_BITS = 10_000  # of an integer: Python prints no more than 4,300 digits
MOST_LEVELS = 100  # of lists in lists: comparing and storing them recurses
LARGEST = float(np.finfo(np.float32).max)


class static(tuple):  # noqa: N801 (reads as a function where it is called)
    """Mark an axis, or a distribution, as structure: `train` gets the Python objects themselves.

    One program is compiled for each combination of static values. Bools, strings and `None` are
    structure without this mark; shapes, layer counts and optimisers' names need it. Its argument is
    a list, tuple, range or 1-D array for `grid`, or a distribution for `sample`.

    Raises:
      ValueError: for a string, a dict, a set or a single value.

    Examples:
      >>> import rmsprop_jax as rj
      >>> points = rj.grid(hidden=rj.static([64, 128]), learning_rate=[1e-3, 1e-2])
      >>> points.static
      frozenset({'hidden'})
    """

    def __new__(cls, values: Any):
        if hasattr(values, "as_static"):
            return values.as_static()
        if isinstance(values, str | bytes | dict | set | frozenset) or not isinstance(
            values, Iterable
        ):
            raise ValueError(
                f"static needs the values of an axis, got {values!r}: static([{values!r}]) has it "
                "as its one value."
            )
        return super().__new__(cls, values)


class Points(Sequence[dict[str, Any]]):
    """An immutable sequence of settings with the same names, and which names are static.

    An index gives a dict, a slice or `filter` gives `Points`. `+` joins two; where a name stands in
    one only, it is an axis of those points alone (`momentum` where the optimiser has one), and
    `train` finds it in `hp` there and not elsewhere. `*` combines each point of one with each of
    the other, which has other names.

    Args:
      points: mappings from name to value, all with the same names. Numbers (of any NumPy or JAX
        scalar type) are traced, all else is structure.
      static: the names whose numbers are structure too.

    Attributes:
      names: of the hyperparameters, in order, a tuple.
      static: those whose numbers are structure too, a frozenset.

    Raises:
      ValueError: for settings that are no mappings or whose names differ, a reserved name (`seed`,
        `objective`, `failed`, `status`, `steps_completed`), a NaN, an integer beyond int32, a
        float beyond float32, or a value that Python cannot print (more than 10,000 bits, 100 nested
        levels).
    """

    def __init__(self, points: Iterable[Mapping[str, Any]], static: Iterable[str] = ()):
        rows = _rows(points)
        for i, row in enumerate(rows):
            if set(row) != set(rows[0]):
                raise ValueError(
                    f"all points need the same names: point 0 has {sorted(rows[0])}, point {i} has "
                    f"{sorted(row)}. For an axis that only some have, join: Points([...]) + "
                    "Points([...])."
                )
        self._set(rows, static)

    def _set(self, rows: Sequence[Mapping[str, Any]], static: Iterable[str]) -> None:
        self.static = frozenset(static)
        self.names: tuple[str, ...] = tuple(dict.fromkeys(name for row in rows for name in row))
        if rows and (unknown := self.static - set(self.names)):
            raise ValueError(f"static names {sorted(unknown)}, but the points have {self.names}.")
        if clash := RESERVED & set(self.names):
            raise ValueError(
                f"{sorted(clash)} cannot name a hyperparameter: results have columns of that name."
            )
        self._points = tuple(
            {
                name: plain(name, row[name], name in self.static)
                for name in self.names
                if name in row
            }
            for row in rows
        )
        self._dtypes: dict[str, Any] = {}

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], static: Iterable[str]) -> "Points":
        """Points whose names may differ."""
        made = cls.__new__(cls)
        names = {name for row in rows for name in row}
        made._set(rows, names & set(static))
        return made

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> "Points": ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return Points.of(self._points[index], self.static)
        return dict(self._points[index])

    def __len__(self) -> int:
        return len(self._points)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(point) for point in self._points)

    def __add__(self, other: Any) -> "Points":
        if not isinstance(other, Points):
            if not isinstance(other, Sequence) or isinstance(other, str):
                return NotImplemented
            other = Points(other)
        return Points.of(self._points + other._points, self.static | other.static)

    def __radd__(self, other: Any) -> "Points":
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return Points(other) + self

    def __mul__(self, other: "Points") -> "Points":
        if not isinstance(other, Points):
            return NotImplemented
        if both := set(self.names) & set(other.names):
            raise ValueError(f"both Points have {sorted(both)}: a product needs other names.")
        rows = [a | b for a, b in itertools.product(self._points, other._points)]
        return Points.of(rows, self.static | other.static)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Points):
            return NotImplemented
        alike = self.static == other.static and len(self) == len(other)
        return alike and self.keys() == other.keys()

    __hash__ = None  # type: ignore[assignment]  # values need not be hashable

    def __repr__(self) -> str:
        return f"Points({len(self)} × {', '.join(self.names)})"

    def filter(self, keep: Callable[[dict[str, Any]], bool]) -> "Points":
        """The points for which `keep(point)` is true."""
        return Points.of([point for point in self if keep(point)], self.static)

    def to_dataframe(self) -> "pandas.DataFrame":
        """A pandas DataFrame with a row a point and a column a hyperparameter; `None` where a point
        has no such hyperparameter.

        Raises:
          ImportError: without pandas, which the extra `data` installs.
        """
        return dataframe({name: [point.get(name) for point in self] for name in self.names})

    def traced(self, index: int) -> dict[str, Any]:
        """A point's numbers that are no structure."""
        return {name: x for name, x in self._points[index].items() if self.is_traced(name, x)}

    def is_traced(self, name: str, value: Any) -> bool:
        """Whether `train` gets this value as a traced number, not as a Python object."""
        return name not in self.static and is_number(value)

    def dtype(self, name: str) -> Any:
        """The dtype in which an axis' numbers are traced: int32, or JAX's default float."""
        if name not in self._dtypes:
            numbers = (p[name] for p in self._points if self.is_traced(name, p.get(name)))
            self._dtypes[name] = all(isinstance(x, int) for x in numbers)
        return np.dtype(np.int32) if self._dtypes[name] else _float()

    def key(self, point: Mapping[str, Any]) -> Hashable:
        """Equal for two settings that train the same here: numbers by what is traced of them, all
        else by type and content."""
        return frozenset((name, self.value_key(name, value)) for name, value in point.items())

    def value_key(self, name: str, value: Any) -> Hashable:
        """Equal for two values of an axis that train the same."""
        if self.is_traced(name, value):
            return "number", identity(float(value) if self.dtype(name).kind == "f" else value)
        return identity(value)

    def keys(self) -> list[Hashable]:
        """The key of each point."""
        return [self.key(point) for point in self._points]

    def index_of(self, point: Mapping[str, Any]) -> int:
        """The first place of a setting.

        Raises:
          ValueError: for one that is not among these.
        """
        if isinstance(point, Mapping):
            plainly = {name: plain(name, x, name in self.static) for name, x in point.items()}
            wanted = self.key(plainly)
            for i, one in enumerate(self._points):
                if self.key(one) == wanted:
                    return i
        raise ValueError(f"{point!r} is not among the points of this sweep, {self}.")


def grid(*values: Any, **axes: Any) -> Points:
    """Every combination of the axes' values, the last axis fastest.

    Args:
      *values: refused, with what to write: an axis needs its name.
      **axes: for each hyperparameter a list, tuple, range, 1-D NumPy or JAX array, or
        `static([...])` around one. An axis with any float is traced as float32 (float64 under x64),
        one of ints as int32. Bools, strings, `None` and other objects are structure.

    Returns:
      `Points`, as many as the product of the axes' lengths.

    Raises:
      ValueError: without an axis, for an empty axis, a scalar or an array that is not 1-D, or two
        numbers that are one in the axis' dtype; for what `Points` refuses.

    Examples:
      >>> import rmsprop_jax as rj
      >>> points = rj.grid(learning_rate=[1e-3, 1e-2], decay=[0.9, 0.99])
      >>> len(points), points[1]
      (4, {'learning_rate': 0.001, 'decay': 0.99})
    """
    if values:
        star = "**" if isinstance(values[0], Mapping) else "learning_rate="
        raise ValueError(f"grid takes its axes by name: grid({star}{values[0]!r}).")
    if not axes:
        raise ValueError("grid() needs at least one axis, e.g. grid(learning_rate=[1e-3, 1e-2]).")
    listed = {name: _axis(name, axis) for name, axis in axes.items()}
    rows = [dict(zip(listed, row, strict=True)) for row in itertools.product(*listed.values())]
    points = Points(rows, (name for name, axis in axes.items() if isinstance(axis, static)))
    for name, axis in listed.items():
        _refuse_merged(points, name, axis)
    return points


def _axis(name: str, axis: Any) -> list[Any]:
    listed = isinstance(axis, list | tuple) and not isinstance(axis, static)
    if is_key(axis) or (listed and any(map(is_key, axis))):
        raise ValueError(
            f"axis {name!r} has PRNG keys: give integers, and make the key in train, "
            f"jax.random.key(hp[{name!r}]). For repetitions there is sweep(..., seeds=n)."
        )
    if isinstance(axis, np.ndarray | jax.Array) and axis.ndim == 1:
        axis = np.asarray(axis).tolist()
    if not isinstance(axis, list | tuple | range):
        kind = type(axis).__name__ if not isinstance(axis, jax.Array) else "an array"
        shape = f" of shape {np.shape(axis)}" if hasattr(axis, "shape") else ""
        hint = ": rj.sample draws from distributions" if hasattr(axis, "quantile") else ""
        raise ValueError(
            f"axis {name!r} is {kind}{shape}, wanted a list, tuple or 1-D array "
            f"of values: {name}=[...]{hint}."
        )
    if len(axis) == 0:
        raise ValueError(f"axis {name!r} is empty: the grid would have no points.")
    return list(axis)


def _refuse_merged(points: Points, name: str, axis: list[Any]) -> None:
    """ValueError for two numbers of an axis that its dtype rounds to one: they train alike."""
    dtype, seen = points.dtype(name), {}
    for value in axis:
        value = plain(name, value, name in points.static)
        if points.is_traced(name, value):
            other = seen.setdefault(dtype.type(value).item(), value)
            if float(other) != float(value):
                raise ValueError(
                    f"axis {name!r} has {other!r} and {value!r}, which are one number in {dtype}: "
                    "leave one out, or enable JAX's x64."
                )


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


def plain(name: str, value: Any, is_static: bool) -> Any:
    """NumPy and JAX scalars as Python numbers; static values as they are."""
    if isinstance(value, Tracer):
        raise ValueError(
            f"{name!r} has a traced value: points are made, and swept, outside jax.jit, vmap and "
            "grad, and outside another sweep's train."
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
            f"{name!r} has an array of shape {value.shape} as one value, wanted a number; "
            f"mark the axis with static if an array is meant."
        )
    if not is_number(value):
        return value
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{name!r} has the value NaN: leave that point out.")
    if isinstance(value, int) and not -(2**31) <= value < 2**31:
        raise ValueError(f"{name!r} has the integer {value}, beyond int32: write it as a float.")
    if isinstance(value, float) and value and math.isfinite(value) and _float() is FLOAT32:
        if abs(value) > LARGEST:
            raise ValueError(f"{name!r} has {value}, infinite in float32: enable JAX's x64.")
        if abs(value) < 1e-45 and np.float32(value) == 0:
            raise ValueError(f"{name!r} has {value}, 0 in float32: write 0, or enable JAX's x64.")
    return value


def _refuse_unwieldy(name: str, value: Any) -> None:
    """ValueError for what Python itself cannot print or compare: a huge integer, a deep nesting."""
    level = [value]
    for _ in range(MOST_LEVELS):
        if any(isinstance(x, int) and x.bit_length() > MOST_BITS for x in level):
            raise ValueError(
                f"{name!r} has an integer of more than {MOST_BITS:,} bits, which must have fewer. "
                "Write it as a float, or as text that train reads."
            )
        inside = itertools.chain.from_iterable(map(_items, level))
        level = list({id(x): x for x in inside}.values())
        if not level:
            return
    raise ValueError(
        f"{name!r} has a value nested {MOST_LEVELS} levels deep or more, which must have fewer. "
        "Flatten it, or build it in train from a name."
    )


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, tuple | list | set | frozenset) else ()


def _rows(points: Any) -> list[dict[str, Any]]:
    if isinstance(points, Mapping):
        raise ValueError(
            f"points are one dict, {points!r}, wanted a list of dicts: for every combination of "
            "the values of its axes write rj.grid(**points)."
        )
    rows = list(points)
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping) or not all(isinstance(name, str) for name in row):
            raise ValueError(
                f"point {i} is {row!r}, wanted a dict from names to values, "
                "such as {'learning_rate': 1e-3}."
            )
    return [dict(row) for row in rows]


def _float() -> Any:
    """JAX's default: float32, or float64 under x64."""
    return FLOAT64 if jax.config.read("jax_enable_x64") else FLOAT32
