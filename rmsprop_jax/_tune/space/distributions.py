"""What `sample` draws from: the distributions of a hyperparameter."""

import abc
import dataclasses
import math
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np

from rmsprop_jax._tune.space.points import static
from rmsprop_jax._tune.space.values import identity, is_number


@dataclasses.dataclass(frozen=True, repr=False)
class Distribution(abc.ABC):
    """How one hyperparameter is drawn; `uniform` and its neighbours make it.

    Distributions with equal bounds or values are equal; all can be hashed and pickled (a `choice`
    where its values can).
    """

    is_static: bool = dataclasses.field(default=False, kw_only=True)
    """Whether its values are structure, by `static`."""

    @abc.abstractmethod
    def quantile(self, u: float) -> Any:
        """From u in [0, 1) to a value."""

    @abc.abstractmethod
    def unit(self, value: Any) -> float:
        """From a value to its u, about; beyond [0, 1] for one outside of the range."""

    @property
    def nudge(self) -> float:
        """A step in u from a value to another near it: a factor of 1.25 where it is logarithmic."""
        return 0.1

    @property
    def is_numeric(self) -> bool:
        """Whether all its values are numbers, bools being none."""
        return True

    @property
    @abc.abstractmethod
    def text(self) -> str:
        """As it was written, without `static`."""

    def __repr__(self) -> str:
        return f"static({self.text})" if self.is_static else self.text

    def as_static(self) -> "Distribution":
        """The same, its values structure."""
        return dataclasses.replace(self, is_static=True)


@dataclasses.dataclass(frozen=True, repr=False)
class _Reals(Distribution):
    """The numbers of [low, high)."""

    low: float
    high: float
    last: float
    """The largest value."""


@dataclasses.dataclass(frozen=True, repr=False)
class Uniform(_Reals):
    """Of `uniform`."""

    def quantile(self, u: float) -> float:
        # Not low + (high − low) u: the difference may be infinite.
        return min(max(self.low * (1 - u) + self.high * u, self.low), self.last)

    def unit(self, value: float) -> float:
        low, high = self.low / 2, self.high / 2
        return (value / 2 - low) / (high - low)

    @property
    def text(self) -> str:
        return f"uniform({_ends(self)})"


@dataclasses.dataclass(frozen=True, repr=False)
class LogUniform(_Reals):
    """Of `log_uniform`."""

    @property
    def _logs(self) -> tuple[float, float]:
        return math.log(self.low), math.log(self.high)

    def quantile(self, u: float) -> float:
        low, high = self._logs
        return min(max(math.exp(low * (1 - u) + high * u), self.low), self.last)

    def unit(self, value: float) -> float:
        low, high = self._logs
        return (math.log(max(value, 5e-324)) - low) / (high - low)

    @property
    def nudge(self) -> float:
        low, high = self._logs
        return min(math.log(1.25) / (high - low), 0.5)

    @property
    def text(self) -> str:
        return f"log_uniform({_ends(self)})"


@dataclasses.dataclass(frozen=True, repr=False)
class OneMinus(Distribution):
    """Of `one_minus`."""

    distribution: Distribution
    """The distribution of 1 − x."""

    def quantile(self, u: float) -> float:
        return less_from_one(self.distribution.quantile(u))

    def unit(self, value: float) -> float:
        return self.distribution.unit(1 - value)

    @property
    def nudge(self) -> float:
        return self.distribution.nudge

    @property
    def text(self) -> str:
        return f"one_minus({self.distribution.text})"


@dataclasses.dataclass(frozen=True, repr=False)
class Integers(Distribution):
    """Of `integers`."""

    low: int
    high: int
    """The largest value."""

    @property
    def count(self) -> int:
        """How many values it has."""
        return self.high - self.low + 1

    def quantile(self, u: float) -> int:
        return self.low + min(int(u * self.count), self.count - 1)

    def unit(self, value: float) -> float:
        return (value - self.low + 0.5) / self.count

    @property
    def nudge(self) -> float:
        return max(0.1, 1 / self.count)

    @property
    def text(self) -> str:
        return f"integers({self.low}, {self.high})"


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Choice(Distribution):
    """Of `choice`. Its values are compared by type and content, as points are."""

    values: tuple[Any, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choice) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> Hashable:
        return self.is_static, identity(self.values)

    def quantile(self, u: float) -> Any:
        return self.values[int(u * len(self.values))]

    def unit(self, value: float) -> float:
        near = min(range(len(self.values)), key=lambda i: abs(self.values[i] - value))
        return (near + 0.5) / len(self.values)

    @property
    def nudge(self) -> float:
        return 1 / len(self.values)

    @property
    def is_numeric(self) -> bool:
        return all(map(is_number, self.values))

    @property
    def text(self) -> str:
        return f"choice({list(self.values)})"


def uniform(low: float, high: float) -> Distribution:
    """Any number in [low, high), all alike; below `high` in float32, too.

    Args:
      low: a finite number.
      high: a larger one.

    Raises:
      ValueError: unless low < high, both finite.
    """
    low, high = _bounds("uniform", low, high)
    return Uniform(low, high, _below(low, high))


def log_uniform(low: float, high: float) -> Distribution:
    """Any number in [low, high), its logarithm uniform: as many of each order of magnitude.

    It is below `high` in float32, too.

    Args:
      low: above 0.
      high: a larger number, finite.

    Raises:
      ValueError: unless 0 < low < high, both finite.
    """
    low, high = _bounds("log_uniform", low, high)
    if low <= 0:
        raise ValueError(f"log_uniform needs low > 0, got {low}: zero has no logarithm.")
    return LogUniform(low, high, _below(low, high))


def up_to(low: float, last: float, *, is_log: bool) -> Distribution:
    """Any number in [low, last], both ends included, as Optuna has it.

    Raises:
      ValueError: as of `uniform` and `log_uniform`.
    """
    above = np.float32(last)
    if above <= last:
        above = np.nextafter(above, np.float32(np.inf))
    # What was written where this comes from `uniform`: the shortest number that float32 takes for
    # the first one above `last`.
    high = float(str(above))
    if _below(low, high) != last:
        high = float(np.nextafter(last, np.inf))
    made = log_uniform(low, high) if is_log else uniform(low, high)
    return dataclasses.replace(made, last=float(last))


def one_minus(distribution: Distribution) -> Distribution:
    """1 − x for x from `distribution`: for a decay ρ, whose memory is about 1/(1 − ρ) steps.

    Where x > 0 it is below 1, in float32 too.

    Args:
      distribution: of x, a `log_uniform` say.

    Raises:
      ValueError: for anything but a distribution of numbers.

    Examples:
      >>> import rmsprop_jax as rj
      >>> rj.one_minus(rj.log_uniform(1e-3, 0.5))  # ρ from .5 to .999
      one_minus(log_uniform(0.001, 0.5))
    """
    if not isinstance(distribution, Distribution) or not distribution.is_numeric:
        raise ValueError(
            f"one_minus needs a distribution of numbers, got {distribution!r}: "
            "one_minus(log_uniform(1e-3, 1e-1))."
        )
    return OneMinus(distribution, is_static=distribution.is_static)


def less_from_one(x: float) -> float:
    """1 − x, below 1 in float32 where x > 0."""
    return min(1 - x, _below(0.0, 1.0)) if x > 0 else 1 - x


def integers(low: int, high: int) -> Distribution:
    """Any of low, low + 1, …, high; both ends count. `static(integers(...))` for shapes.

    Args:
      low: a whole number; `train` gets them as int32.
      high: one that is not smaller.

    Raises:
      ValueError: for what is not whole, or low > high.
    """
    for name, value in {"low": low, "high": high}.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise ValueError(f"integers needs whole numbers, got {name}={value!r}.")
    if low > high:
        raise ValueError(f"integers needs low ≤ high, got {low} and {high}.")
    return Integers(int(low), int(high))


def choice(values: Sequence[Any]) -> Distribution:
    """Any of `values`, all alike; `choice(static([...]))` marks them as structure.

    Args:
      values: a list, tuple, range or 1-D array of at least one; numbers are traced, all else is
        structure.

    Raises:
      ValueError: for something else, or none.
    """
    if isinstance(values, np.ndarray | jax.Array) and values.ndim == 1:
        values = np.asarray(values).tolist()
    if not isinstance(values, list | tuple | range) or not len(values):
        raise ValueError(f"choice needs a list or tuple of at least one value, got {values!r}.")
    return Choice(tuple(values), is_static=isinstance(values, static))


def _ends(distribution: Uniform | LogUniform) -> str:
    """Its bounds, and its largest value where they do not say it."""
    low, high, last = distribution.low, distribution.high, distribution.last
    return f"{low!r}, {high!r}" + (f", last={last!r}" if last != _below(low, high) else "")


def _bounds(name: str, low: Any, high: Any) -> tuple[float, float]:
    if not all(isinstance(x, int | float | np.number) for x in (low, high)) or not low < high:
        raise ValueError(f"{name} needs numbers low < high, got {low!r} and {high!r}.")
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} needs finite numbers, got {low} and {high}.")
    return float(low), float(high)


def _below(low: float, high: float) -> float:
    """The largest number below `high` that float32 has and does not round to it; of float64, where
    float32 has none in the range."""
    if abs(high) <= float(np.finfo(np.float32).max):
        last = float(np.nextafter(np.float32(high), np.float32(-np.inf)))
        if low < last < high:
            return last
    return float(np.nextafter(high, -np.inf))
