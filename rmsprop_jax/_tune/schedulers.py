"""Which trials go on: `SuccessiveHalving`, `PopulationBasedTraining`, a scheduler of your own."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from rmsprop_jax._tune.results.statistics import ranked
from rmsprop_jax._tune.space.distributions import Distribution
from rmsprop_jax._tune.space.values import is_int, is_real
from rmsprop_jax._tune.training.fingerprint import hash_of_arrays


class SchedulerView(NamedTuple):
    """What a scheduler sees at a step: all points as they stand there, in their order."""

    points: list[dict[str, Any]]
    """The hyperparameters, as they are now."""
    objective: np.ndarray
    """float64 array of shape (points, seeds): the objective at this step. NaN where it is not
    finite, and where a trial has ended before."""
    active: np.ndarray
    """bool array of shape (points,): which still run."""
    group: np.ndarray
    """int array of shape (points,): equal for points of one static group."""
    mode: str
    """"min" or "max"."""

    @property
    def has_objective(self) -> bool:
        """Whether the objective of any active point is finite, for one of its seeds at least."""
        return bool(np.isfinite(self.objective[self.active]).any())

    def ranked(self) -> np.ndarray:
        """The active points, best first by the mean over their seeds; those with a seed that is not
        finite after all whole ones; of equal ones the lower number first."""
        points = np.flatnonzero(self.active)
        return points[ranked(self.objective[points], self.mode)]


class Decision(NamedTuple):
    """What a scheduler answers."""

    prune: Sequence[int] = ()
    """Points that end here."""
    copy: Mapping[int, tuple[int, Mapping[str, float]]] = {}
    """For a point: another of its structure, whose state it takes over seed by seed, and the
    numbers with which it goes on. Neither is pruned, and no point is both giver and taker."""


class Scheduler(Protocol):
    """What `sweep` asks at each of the `rungs`. A scheduler of your own has these two.

    `decide` is a pure function of what it sees: it is called once for each rung, on one
    process, when all trials have come there, in no order of arrival; a sweep that was killed
    replays what it answered.

    A folder goes on with an equal scheduler only. A dataclass is compared by its fields; any other
    by its class, and by `fingerprint() -> str`, a method that you may add. Without that method, an
    object with attributes warns that its settings cannot be compared.
    """

    def rungs(self, steps: int) -> Sequence[int]:
        """At which steps, before the last, it wants to be asked. Trials are evaluated there."""
        ...

    def decide(self, step: int, view: SchedulerView) -> Decision | None:
        """Which points stop and which copy which, after this step; None for nothing."""
        ...


@dataclasses.dataclass(frozen=True)
class SuccessiveHalving:
    """Successive halving: at each rung the best 1/`reduction_factor` of the points go on.

    Rungs stand after `min_steps` · `reduction_factor`^k steps. A point counts by the mean of the
    objective over its seeds, which are pruned together; max(1, ⌈n/reduction_factor⌉) of n points
    survive, over all structures. One with a seed that is not finite ranks after all whole ones, and
    has failed where it does not survive. Where no point has a finite objective all go on, with a
    warning.

    It saves what the stopped trials would have run. With as many devices as trials that is little:
    the survivors take as long as ever. It can lose a point that starts slowly: set `min_steps`
    where learning curves have parted.

    Args:
      reduction_factor: at least 2; how many times fewer points go on from rung to rung.
      min_steps: the steps of the first rung; by default ⌈steps/reduction_factor²⌉, so two rungs.

    Raises:
      ValueError: for numbers out of range.

    Examples:
      >>> import rmsprop_jax as rj
      >>> rj.SuccessiveHalving(reduction_factor=3).rungs(steps=900)
      [100, 300]

    References:
      Jamieson and Talwalkar, [Non-stochastic Best Arm
      Identification](https://arxiv.org/abs/1502.07943), 2016; Li et al.,
      [Hyperband](https://arxiv.org/abs/1603.06560), 2018.
    """

    reduction_factor: int = 3
    min_steps: int | None = None

    def __post_init__(self):
        given = {"reduction_factor": (self.reduction_factor, 2)} | (
            {} if self.min_steps is None else {"min_steps": (self.min_steps, 1)}
        )
        for name, (value, least) in given.items():
            if not is_int(value) or value < least:
                raise ValueError(
                    f"{name} must be a whole number of at least {least}, got {value!r}."
                )

    def rungs(self, steps: int) -> list[int]:
        """`min_steps`, `min_steps` · reduction_factor, … below `steps`.

        Raises:
          ValueError: where the first is not.
        """
        rung = -(-steps // self.reduction_factor**2) if self.min_steps is None else self.min_steps
        if rung >= steps:
            raise ValueError(
                f"the first rung, at {rung} steps, is not before the end, at {steps}: give "
                "SuccessiveHalving(min_steps=...) below, or more steps."
            )
        found = []
        while rung < steps:
            found.append(rung)
            rung *= self.reduction_factor
        return found

    def decide(self, step: int, view: SchedulerView) -> Decision:
        """The best go on; all where no objective is finite."""
        if not view.has_objective:
            return Decision()
        ranked = view.ranked()
        return Decision(prune=ranked[max(1, -(-len(ranked) // self.reduction_factor)) :].tolist())


@dataclasses.dataclass(frozen=True)
class PopulationBasedTraining:
    """Population-based training: the worst members go on from the states of the best.

    At each rung a member of the worst takes over the state of one of the best, and goes on with
    its hyperparameters, changed a little or drawn anew.

    The points of a structure are a population; at least 4. Seed j of the worse copies seed j of the
    better, so that seeds are runs of the whole method. A member's random key stays its own. Of the
    numbers only those in `space` change; what only `init` reads is the donor's, with its state, and
    any other stays the member's own. A new number is near the donor's (a factor of 1.25 up or down
    where the distribution is logarithmic, a tenth of the range else, reflected at its ends) or, one
    time in four, drawn anew. `result.history` has the lineage.

    What it finds is a schedule, not a setting: what a heat map or `sensitivity` would say of the
    numbers at the end is not so.

    Args:
      space: for each hyperparameter that may change its distribution, as for `sample`.
      perturbation_interval: the steps between rungs; by default a tenth of all, at least 1.
      quantile_fraction: of a population, in (0, 0.5]: so many of the worst copy from so many
        of the best.
      seed: of the choices.

    Raises:
      ValueError: for an empty space, something else than a distribution of numbers in it, a static
        one, or a number out of range.

    Examples:
      >>> import rmsprop_jax as rj
      >>> space = {"learning_rate": rj.log_uniform(1e-5, 1e-1)}
      >>> rj.PopulationBasedTraining(space, perturbation_interval=25).rungs(steps=100)
      [25, 50, 75]

    References:
      Jaderberg et al., [Population Based Training of Neural
      Networks](https://arxiv.org/abs/1711.09846), 2017: truncation selection, perturb or resample.
    """

    space: Mapping[str, Distribution]
    perturbation_interval: int | None = None
    quantile_fraction: float = 0.25
    seed: int = 0

    def __post_init__(self):
        if not isinstance(self.space, Mapping) or not self.space:
            raise ValueError(
                "PopulationBasedTraining needs a dict of at least one distribution, got "
                f"{self.space!r}."
            )
        for name, distribution in self.space.items():
            if not isinstance(distribution, Distribution):
                raise ValueError(f"{name!r} is {distribution!r}, wanted a distribution.")
            if distribution.is_static or not distribution.is_numeric:
                raise ValueError(
                    f"{name!r} is {distribution}: structure cannot change within a trial, only "
                    "numbers can."
                )
        if self.perturbation_interval is not None and (
            not is_int(self.perturbation_interval) or self.perturbation_interval < 1
        ):
            raise ValueError(
                f"perturbation_interval must be a whole number of at least 1, "
                f"got {self.perturbation_interval!r}."
            )
        if not is_real(self.quantile_fraction) or not 0 < self.quantile_fraction <= 0.5:
            raise ValueError(
                f"quantile_fraction must be a number in (0, 0.5], got {self.quantile_fraction!r}."
            )
        if not is_int(self.seed):
            raise ValueError(f"seed must be a whole number, got {self.seed!r}.")

    def __repr__(self) -> str:
        return (
            f"PopulationBasedTraining({dict(self.space)}, "
            f"perturbation_interval={self.perturbation_interval}, "
            f"quantile_fraction={self.quantile_fraction}, "
            f"seed={self.seed})"
        )

    def rungs(self, steps: int) -> list[int]:
        """Each `perturbation_interval` steps, below `steps`.

        Raises:
          ValueError: where there is none.
        """
        every = (
            max(1, steps // 10)
            if self.perturbation_interval is None
            else self.perturbation_interval
        )
        if every >= steps:
            raise ValueError(
                f"PopulationBasedTraining(perturbation_interval={every}) has no rung before the "
                f"end, at {steps} steps: give a smaller perturbation_interval, or more steps."
            )
        return list(range(every, steps, every))

    def decide(self, step: int, view: SchedulerView) -> Decision:
        """The worst of each structure copy from the best."""
        ranked, copy = view.ranked(), {}
        for group in np.unique(view.group[ranked]).tolist():
            members = ranked[view.group[ranked] == group]
            count = max(1, math.floor(self.quantile_fraction * len(members)))
            best, worst = members[:count].tolist(), members[len(members) - count :].tolist()
            whole = [p for p in best if np.isfinite(view.objective[p]).all()]
            for point in worst if whole else ():
                rng = np.random.default_rng([abs(self.seed), self.seed < 0, step, point])
                donor = whole[rng.integers(len(whole))]
                had = view.points[donor]
                copy[point] = (
                    donor,
                    {
                        name: explored(distribution, had[name], rng)
                        for name, distribution in self.space.items()
                        if name in had
                    },
                )
        return Decision(copy=copy)


def explored(distribution: Distribution, value: float, rng: np.random.Generator) -> float:
    """A number near this one in the distribution's own coordinate, or one time in four any."""
    if rng.random() < 0.25:
        return distribution.quantile(float(rng.random()))
    u = distribution.unit(value) + distribution.nudge * (1 if rng.random() < 0.5 else -1)
    u = -u if u < 0 else u
    u = 2 - u if u > 1 else u
    return distribution.quantile(min(max(u, 0.0), float(np.nextafter(1.0, 0.0))))


def settings_of(scheduler: Any) -> tuple[dict[str, Any], bool]:
    """What tells a scheduler from others, as JSON: its class, and its `fingerprint()` or the fields
    of a dataclass; and whether that is all there is to compare. A subclass of a dataclass that is
    none itself counts as that dataclass."""
    name = type(scheduler).__qualname__
    if callable(fingerprint := getattr(scheduler, "fingerprint", None)):
        if not isinstance(text := fingerprint(), str):
            raise ValueError(
                f"the scheduler's fingerprint() must return a string, got {text!r}: return "
                "what tells its settings from others, such as repr(self)."
            )
        return {"class": name, "fingerprint": text}, True
    if not dataclasses.is_dataclass(scheduler):
        has_none = getattr(scheduler, "__dict__", None) == {}
        return {"class": name}, has_none
    unknown: list[Any] = []
    name = next(
        c.__qualname__ for c in type(scheduler).__mro__ if "__dataclass_fields__" in vars(c)
    )
    return {"class": name, "fields": comparable(scheduler, unknown)["fields"]}, not unknown


def comparable(value: Any, unknown: list[Any]) -> Any:
    """Return JSON that is equal for equal values: `3`, `3.0` and `np.int64(3)` are.

    A function stands by its qualified name. What cannot be compared stands by its class, and is
    added to `unknown`.
    """
    inside = lambda x: comparable(x, unknown)
    if value is None or isinstance(value, bool | str):
        return value
    if is_real(value):
        number = int(value) if isinstance(value, int | np.integer) else float(value)
        return int(number) if math.isfinite(number) and number == int(number) else repr(number)
    if isinstance(value, Mapping):
        return {"items": sorted(([inside(k), inside(x)] for k, x in value.items()), key=repr)}
    if isinstance(value, tuple | list):
        return [inside(x) for x in value]
    if isinstance(value, set | frozenset):
        return {"set": sorted(map(inside, value), key=repr)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [one.name for one in dataclasses.fields(value) if one.compare]
        each = {name: inside(getattr(value, name)) for name in fields}
        return {"class": type(value).__qualname__, "fields": each}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return {"array": hash_of_arrays(value)}
    if isinstance(value, functools.partial):
        return {"partial": [inside(x) for x in (value.func, value.args, value.keywords)]}
    if callable(value) and hasattr(value, "__qualname__"):
        return {"function": value.__qualname__}
    unknown.append(value)
    return {"class": type(value).__qualname__}
