"""Settings drawn from distributions: `sample`, and what it draws from."""

import abc
import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rmsprop_jax._tune.space.points import Points, static
from rmsprop_jax._tune.space.values import identity, is_number

METHODS = ("sobol", "latin_hypercube", "random")


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


def sample(
    space: Mapping[str, Distribution], n: int, *, seed: int = 0, method: str = "sobol"
) -> Points:
    """Draw `n` settings, each hyperparameter from its distribution.

    Args:
      space: for each hyperparameter a `uniform`, `log_uniform`, `one_minus`, `integers` or
        `choice`.
      n: how many, at least 1.
      seed: a whole number, at least 0. The same seed gives the same points, and with "sobol" and
        "random" the first points of a larger n are those of a smaller.
      method: "sobol", a scrambled Sobol sequence, which fills the space evenly for every n (and
        best for a power of 2); "latin_hypercube", one point in each n-th of every axis; "random",
        independent.

    Returns:
      `Points`, for `sweep`.

    Raises:
      ValueError: for an empty space, something else than a distribution in it, a bad n or method.

    Examples:
      >>> import rmsprop_jax as rj
      >>> flags = rj.choice([False, True])
      >>> points = rj.sample({"learning_rate": rj.log_uniform(1e-5, 1e-1), "centered": flags}, n=8)
      >>> len(points), sum(point["centered"] for point in points)
      (8, 4)

    References:
      Bergstra and Bengio, [Random Search for Hyper-Parameter
      Optimization](https://jmlr.org/papers/v13/bergstra12a.html), JMLR 2012. Owen, Scrambling
      Sobol' and Niederreiter-Xing Points, 1998; here by `scipy.stats.qmc`.
    """
    if not isinstance(space, Mapping) or not space:
        raise ValueError(f"sample needs a dict of at least one distribution, got {space!r}.")
    for name, distribution in space.items():
        if not isinstance(distribution, Distribution):
            raise ValueError(
                f"{name!r} is {distribution!r}, wanted a distribution: uniform(low, high), "
                "log_uniform(low, high), integers(low, high) or choice([...])."
            )
    if not isinstance(n, int | np.integer) or isinstance(n, bool) or n < 1:
        raise ValueError(f"n must be a whole number of at least 1, got {n!r}.")
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}.")
    unit = _unit_cube(int(n), len(space), seed, method)
    rows = [
        {name: space[name].quantile(float(u)) for name, u in zip(space, row, strict=True)}
        for row in unit
    ]
    return Points(rows, (name for name in space if space[name].is_static))


def rmsprop_space() -> dict[str, Distribution]:
    """Where to look for RMSProp's hyperparameters when nothing is known; a dict, to be changed.

    η from 1e-5 to 1e-1; 1 − ρ from 1e-3 to .5 (a memory of 2 to 1,000 steps); ε from 1e-10 (TF1) to
    .1 (A3C, IMPALA); momentum 0, .9 or .95; centered or not.

    Examples:
      >>> import rmsprop_jax as rj
      >>> points = rj.sample(rj.rmsprop_space() | {"momentum": rj.choice([0.0])}, n=16)

    References:
      Choi et al., [On Empirical Comparisons of Optimizers for Deep
      Learning](https://arxiv.org/abs/1910.05446), 2019: rarely tuned ones, as ε is, belong in the
      space.
      The bounds of ε and ρ are those of the defaults in `rmsprop_jax.presets`.
    """
    return {
        "learning_rate": log_uniform(1e-5, 1e-1),
        "decay": one_minus(log_uniform(1e-3, 5e-1)),
        "eps": log_uniform(1e-10, 1e-1),
        "momentum": choice([0.0, 0.9, 0.95]),
        "centered": choice([False, True]),
    }


def _unit_cube(n: int, dimensions: int, seed: int, method: str) -> np.ndarray:
    """(n, dimensions) numbers in [0, 1)."""
    if method == "random":
        return np.random.default_rng(seed).random((n, dimensions))
    from scipy.stats import qmc  # takes half a second to import

    if method == "latin_hypercube":
        unit = qmc.LatinHypercube(dimensions, rng=seed).random(n)
    else:  # the whole power of 2, of which the first n
        unit = qmc.Sobol(dimensions, rng=seed).random_base2((n - 1).bit_length())[:n]
    return np.minimum(unit, np.nextafter(1.0, 0.0))


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
