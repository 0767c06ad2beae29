"""The distributions that `sample`, schedulers, and searches draw hyperparameters from."""

import abc
import dataclasses
import math
from collections.abc import Hashable, Sequence

import jax
import numpy as np

from rmsprop_jax._tune.space.points import static
from rmsprop_jax._tune.space.values import Json, Value, decode, encode, identity, is_number


@dataclasses.dataclass(frozen=True, repr=False)
class Distribution(abc.ABC):
    """The distribution of one hyperparameter, made by `uniform`, `choice`, and the like.

    Distributions with equal bounds or values are equal. All of them can be hashed and pickled; a
    `choice` can be pickled if its values can.
    """

    is_static: bool = dataclasses.field(default=False, kw_only=True)
    """Whether its values are static hyperparameters (`rj.static`)."""

    @abc.abstractmethod
    def quantile(self, u: float) -> Value:
        """Return the value at u, a number in [0, 1)."""

    @abc.abstractmethod
    def unit(self, value: float) -> float:
        """Return the u of a value: the approximate inverse of `quantile`.

        A value outside the range has a u outside [0, 1].
        """

    @property
    def nudge(self) -> float:
        """Return the distance in u between a value and a similar value.

        On a logarithmic scale it is a factor of 1.25. On a linear scale it is a tenth of the range,
        or the distance to the next value if that is larger.
        """
        return 0.1

    @property
    def is_numeric(self) -> bool:
        """Return whether all values are numbers. A bool is not a number."""
        return True

    @property
    @abc.abstractmethod
    def text(self) -> str:
        """Return the call that makes this distribution, without `static`."""

    def __repr__(self) -> str:
        return f"static({self.text})" if self.is_static else self.text

    def as_static(self) -> "Distribution":
        """Return the same distribution, with static values."""
        return dataclasses.replace(self, is_static=True)


@dataclasses.dataclass(frozen=True, repr=False)
class _Reals(Distribution):
    """A distribution over the numbers in [low, high)."""

    low: float
    high: float
    last: float
    """The largest value."""


@dataclasses.dataclass(frozen=True, repr=False)
class Uniform(_Reals):
    """The result of `uniform`."""

    def quantile(self, u: float) -> float:
        # Not low + (high − low) u, because the difference may be infinite.
        return min(max(self.low * (1 - u) + self.high * u, self.low), self.last)

    def unit(self, value: float) -> float:
        low, high = self.low / 2, self.high / 2
        return (value / 2 - low) / (high - low)

    @property
    def text(self) -> str:
        return f"uniform({_ends(self)})"


@dataclasses.dataclass(frozen=True, repr=False)
class LogUniform(_Reals):
    """The result of `log_uniform`."""

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
    """The result of `one_minus`."""

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
    """The result of `integers`."""

    low: int
    high: int
    """The largest value."""

    @property
    def count(self) -> int:
        """Return the number of values."""
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
    """The result of `choice`. Its values are compared by type and content, as points are."""

    values: tuple[Value, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choice) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> Hashable:
        return self.is_static, identity(self.values)

    def quantile(self, u: float) -> Value:
        return self.values[int(u * len(self.values))]

    def unit(self, value: float) -> float:
        nearest = min(range(len(self.values)), key=lambda i: abs(self.values[i] - value))
        return (nearest + 0.5) / len(self.values)

    @property
    def nudge(self) -> float:
        return 1 / len(self.values)

    @property
    def is_numeric(self) -> bool:
        return all(map(is_number, self.values))

    @property
    def text(self) -> str:
        return f"choice({list(self.values)})"


KINDS: dict[str, type[Distribution]] = {
    kind.__name__: kind for kind in (Uniform, LogUniform, OneMinus, Integers, Choice)
}


def encode_distribution(distribution: Distribution, name: str) -> Json:
    """Return a distribution as JSON, from which `decode_distribution` restores it.

    Args:
      distribution: one of this module's.
      name: the hyperparameter, for the error.

    Raises:
      ValueError: for choices that a folder cannot hold, or another distribution.
    """
    kind = type(distribution).__name__
    if KINDS.get(kind) is not type(distribution):
        raise ValueError(f"{name!r} must be a distribution of this package, got {distribution!r}.")
    fields = {x.name: getattr(distribution, x.name) for x in dataclasses.fields(distribution)}
    for field, value in fields.items():
        is_nested = isinstance(value, Distribution)
        fields[field] = encode_distribution(value, name) if is_nested else encode(value, name)
    return {"kind": kind, **fields}


def decode_distribution(stored: Json) -> Distribution:
    """Return the distribution that `encode_distribution` turned into this JSON.

    Raises:
      Exception: for JSON of another form, or values that no distribution has.
    """
    kind = KINDS[stored["kind"]]
    if kind is OneMinus:
        found = one_minus(decode_distribution(stored["distribution"]))
    elif kind is Choice:
        found = choice(decode(stored["values"]))
    elif kind is Integers:
        found = integers(stored["low"], stored["high"])
    else:
        make = log_uniform if kind is LogUniform else uniform
        found = make(stored["low"], stored["high"])
        _, last = _bounds("last", stored["low"], stored["last"])
        found = dataclasses.replace(found, last=last)
    return dataclasses.replace(found, is_static=bool(stored["is_static"]))


def uniform(low: float, high: float) -> Distribution:
    """Return the uniform distribution over the numbers in [low, high).

    Its numbers stay below `high` in float32, too.

    Args:
      low: the smallest value, a finite number.
      high: the upper end, a finite number above `low`.

    Raises:
      ValueError: unless low < high and both are finite.
    """
    low, high = _bounds("uniform", low, high)
    return Uniform(low, high, _below(low, high))


def log_uniform(low: float, high: float) -> Distribution:
    """Return the distribution over the numbers in [low, high) whose logarithm is uniform.

    Each order of magnitude is drawn equally often. The numbers stay below `high` in float32, too.

    Args:
      low: the smallest value, a number above 0.
      high: the upper end, a finite number above `low`.

    Raises:
      ValueError: unless 0 < low < high and both are finite.
    """
    low, high = _bounds("log_uniform", low, high)
    if low <= 0:
        raise ValueError(
            f"log_uniform: low must be above 0, got {low}. Pass a small positive number, for "
            "example log_uniform(1e-6, 1e-1)."
        )
    return LogUniform(low, high, _below(low, high))


def up_to(low: float, last: float, *, is_log: bool) -> Distribution:
    """Return the distribution over [low, last], both ends included, as Optuna's are.

    Args:
      low: the smallest value.
      last: the largest value.
      is_log: whether the logarithm is uniform, not the number.

    Raises:
      ValueError: for the same reasons as `uniform` and `log_uniform`.
    """
    above = np.float32(last)
    if above <= last:
        above = np.nextafter(above, np.float32(np.inf))
    # If `last` came from one of our distributions, its `high` was the shortest number that float32
    # rounds to the first float32 above `last`. Try that number first, so that a space survives the
    # way to Optuna and back.
    high = float(str(above))
    if _below(low, high) != last:
        high = float(np.nextafter(last, np.inf))
    distribution = log_uniform(low, high) if is_log else uniform(low, high)
    return dataclasses.replace(distribution, last=float(last))


def one_minus(distribution: Distribution) -> Distribution:
    """Return the distribution of 1 − x, where x comes from `distribution`.

    It suits a decay ρ, whose memory is about 1/(1 − ρ) steps. If x > 0, then 1 − x stays below 1,
    in float32 too.

    Args:
      distribution: the distribution of x, for example a `log_uniform`.

    Raises:
      ValueError: for anything that is not a distribution of numbers.

    Examples:
      >>> import rmsprop_jax as rj
      >>> rj.one_minus(rj.log_uniform(1e-3, 0.5))  # ρ from 0.5 to 0.999
      one_minus(log_uniform(0.001, 0.5))
    """
    if not isinstance(distribution, Distribution) or not distribution.is_numeric:
        raise ValueError(
            f"one_minus: distribution must be a distribution of numbers, got {distribution!r}. "
            "Pass, for example, one_minus(log_uniform(1e-3, 1e-1))."
        )
    return OneMinus(distribution, is_static=distribution.is_static)


def less_from_one(x: float) -> float:
    """Return 1 − x, which is below 1 in float32 if x > 0."""
    return min(1 - x, _below(0.0, 1.0)) if x > 0 else 1 - x


def integers(low: int, high: int) -> Distribution:
    """Return the uniform distribution over the integers low, low + 1, …, high.

    `train` gets it as a traced int32. For a shape, use `static(integers(low, high))`.

    Args:
      low: the smallest value, an int.
      high: the largest value, an int that is not below `low`.

    Raises:
      ValueError: for a bound that is not an int, or low > high.
    """
    for name, value in {"low": low, "high": high}.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise ValueError(
                f"integers: {name} must be a whole number, got {name}={value!r}. Pass an int, or "
                "use uniform(low, high)."
            )
    if low > high:
        raise ValueError(
            f"integers: low must be ≤ high, got low={low} and high={high}. Pass "
            f"integers({high}, {low})."
        )
    return Integers(int(low), int(high))


def choice(values: Sequence[Value]) -> Distribution:
    """Return the uniform distribution over a list of values.

    `choice(static([...]))` makes the values static hyperparameters.

    Args:
      values: a list, tuple, range, or 1-D array of at least one value. Numbers are traced. All
        other values are static.

    Raises:
      ValueError: for anything else, or no value.
    """
    if isinstance(values, np.ndarray | jax.Array) and values.ndim == 1:
        values = np.asarray(values).tolist()
    if not isinstance(values, list | tuple | range) or not len(values):
        raise ValueError(
            f"choice: values must be a list or tuple of at least one value, got {values!r}. Pass, "
            "for example, choice([0.0, 0.9])."
        )
    return Choice(tuple(values), is_static=isinstance(values, static))


def _ends(distribution: Uniform | LogUniform) -> str:
    """Return the bounds as text, with the largest value if the bounds do not imply it."""
    low, high, last = distribution.low, distribution.high, distribution.last
    return f"{low!r}, {high!r}" + (f", last={last!r}" if last != _below(low, high) else "")


def _bounds(name: str, low: object, high: object) -> tuple[float, float]:
    """Return both bounds as floats; ValueError unless they are finite and low < high."""
    if (
        not isinstance(low, int | float | np.number)
        or not isinstance(high, int | float | np.number)
        or not low < high
        or not (math.isfinite(low) and math.isfinite(high))
    ):
        raise ValueError(
            f"{name}: low and high must be finite numbers with low < high, got {low!r} and "
            f"{high!r}. Pass, for example, {name}(1e-4, 1e-1)."
        )
    return float(low), float(high)


def _below(low: float, high: float) -> float:
    """Return the largest number in (low, high) that float32 does not round to `high`.

    If float32 has no number in this range, return the largest float64 below `high`.
    """
    if abs(high) <= float(np.finfo(np.float32).max):
        last = float(np.nextafter(np.float32(high), np.float32(-np.inf)))
        if low < last < high:
            return last
    return float(np.nextafter(high, -np.inf))
