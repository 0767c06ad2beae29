"""Schedulers: which trials a sweep prunes, and which it copies.

`SuccessiveHalving`, `PopulationBasedTraining`, and the protocol for a scheduler of your own.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from rmsprop_jax._tune.results.statistics import ranked
from rmsprop_jax._tune.space.distributions import Distribution
from rmsprop_jax._tune.space.values import Json, Value, is_int, is_real
from rmsprop_jax._tune.training.fingerprint import hash_of_arrays


class SchedulerView(NamedTuple):
    """A scheduler's view of all points at a rung, in the order of the points."""

    points: list[dict[str, Value]]
    """The current hyperparameters of each point."""
    objective: np.ndarray
    """float64 array of shape (points, seeds): the objective at this step. It is NaN where the
    objective is not finite and where the trial has ended."""
    active: np.ndarray
    """bool array of shape (points,): whether the point still runs."""
    group: np.ndarray
    """int array of shape (points,): the number of the point's static group."""
    mode: str
    """"min" or "max": which objective is better."""

    @property
    def has_objective(self) -> bool:
        """Return whether any active point has a finite objective for at least one seed."""
        return bool(np.isfinite(self.objective[self.active]).any())

    def ranked(self) -> np.ndarray:
        """Return the indices of the active points, best mean over seeds first.

        Points with a seed that is not finite come after all others. Ties keep their order.
        """
        points = np.flatnonzero(self.active)
        return points[ranked(self.objective[points], self.mode)]


class Decision(NamedTuple):
    """A scheduler's answer at a rung."""

    prune: Sequence[int] = ()
    """The indices of the points that end at this rung."""
    copy: Mapping[int, tuple[int, Mapping[str, float]]] = {}
    """For the index of a point, the pair (donor, numbers). The point takes over the donor's state,
    seed by seed, and continues with these numbers as hyperparameters. The donor must be in the same
    static group. Neither may be pruned, and no point may both give and take."""


class Scheduler(Protocol):
    """The methods that `sweep` calls on a scheduler: `rungs` once, `decide` at each rung.

    `decide` must be a pure function of its arguments. `sweep` calls it once per rung, on one
    process, after all trials have reached the rung. A sweep that resumes replays the decisions
    that its folder holds.

    A folder resumes with an equal scheduler only. Dataclasses are compared by their fields, other
    classes by their name and by `fingerprint() -> str`, a method that you may add. Without this
    method, an object with attributes causes a warning that its settings cannot be compared.
    """

    def rungs(self, steps: int) -> Sequence[int]:
        """Return the steps, before the last, at which `decide` is called.

        Trials are evaluated at these steps, too. Without this method, every evaluation step is a
        rung.

        Args:
          steps: the number of steps of each trial.
        """
        ...

    def decide(self, step: int, view: SchedulerView) -> Decision | None:
        """Decide which points to prune and which to copy after this step; `None` for nothing.

        Args:
          step: the step that all active trials have reached.
          view: all points at this step.
        """
        ...


@dataclasses.dataclass(frozen=True)
class SuccessiveHalving:
    """Successive halving, which keeps the best 1/`reduction_factor` of the points at each rung.

    Rungs are after `min_steps` · `reduction_factor`^k steps. Points are ranked by the mean
    objective over their seeds, and the seeds of a point are pruned together. At each rung,
    max(1, ⌈n/`reduction_factor`⌉) of n points survive, over all static groups. A point with a seed
    that is not finite ranks after all others, and has failed if it does not survive. If no point
    has a finite objective, all survive, with a warning.

    It saves the steps of the pruned trials. With as many devices as trials it saves little, because
    the survivors take as long as before. It can prune a point that starts slowly: choose a
    `min_steps` at which the learning curves have separated.

    Args:
      reduction_factor: how many times fewer points continue after each rung, an int of at least 2.
      min_steps: the step of the first rung, an int of at least 1. `None`:
        ⌈steps/`reduction_factor`²⌉, which gives two rungs.

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
        smallest = {"reduction_factor": 2, "min_steps": 1}
        for name, bound in smallest.items():
            value = getattr(self, name)
            if name == "min_steps" and value is None:
                continue
            if not is_int(value) or value < bound:
                raise ValueError(
                    f"{name} must be a whole number of at least {bound}, got {value!r}. Pass "
                    f"SuccessiveHalving({name}={bound})."
                )

    def rungs(self, steps: int) -> list[int]:
        """Return `min_steps`, `min_steps` · `reduction_factor`, … below `steps`.

        Args:
          steps: the number of steps of each trial.

        Raises:
          ValueError: if the first rung is not before the last step.
        """
        rung = -(-steps // self.reduction_factor**2) if self.min_steps is None else self.min_steps
        if rung >= steps:
            raise ValueError(
                f"min_steps must be below the number of steps, {steps}, got a first rung at "
                f"{rung}. Pass a smaller SuccessiveHalving(min_steps=...), or more steps."
            )
        rungs: list[int] = []
        while rung < steps:
            rungs.append(rung)
            rung *= self.reduction_factor
        return rungs

    def decide(self, step: int, view: SchedulerView) -> Decision:
        """Prune all points but the best; none if no objective is finite.

        Args:
          step: the step that all active trials have reached.
          view: all points at this step.
        """
        if not view.has_objective:
            return Decision()
        ranked = view.ranked()
        return Decision(prune=ranked[max(1, -(-len(ranked) // self.reduction_factor)) :].tolist())


@dataclasses.dataclass(frozen=True)
class PopulationBasedTraining:
    """Population-based training, in which the worst points copy the states of the best.

    At each rung, each of the worst points takes over the state of one of the best. It continues
    with the best point's hyperparameters, perturbed or drawn again.

    The points of a static group are a population, of at least 4. Seed j of the worse point copies
    seed j of the better point, so that each seed is one run of the whole method. The copy keeps its
    own random key. Only hyperparameters in `space` change. A hyperparameter that only `init` reads
    comes from the donor, inside its state. All others stay the copy's own.

    A new number is perturbed or, with probability 1/4, drawn again from its distribution. A
    perturbation goes up or down: by a factor of 1.25 if the distribution is logarithmic, else by a
    tenth of the range. It is reflected at the ends. `result.history` has the lineage.

    The result is a schedule, not a point. Do not read the best values from a heat map or from
    `sensitivity`: they would show the numbers of the last rung only.

    Args:
      space: a dict from each hyperparameter that may change to its distribution, as for `sample`.
      perturbation_interval: the steps between rungs, an int of at least 1. `None`: a tenth of all
        steps, at least 1.
      quantile_fraction: the fraction of a population that copies, in (0, 0.5]. The same number of
        best points may be copied.
      seed: the seed of the method's draws, an int.

    Raises:
      ValueError: for an empty space, a value in it that is not a distribution of traced numbers, or
        a number out of range.

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
                f"space must be a dict of at least one distribution, got {self.space!r}. Pass, for "
                "example, {'learning_rate': rj.log_uniform(1e-5, 1e-1)}."
            )
        for name, distribution in self.space.items():
            if not isinstance(distribution, Distribution):
                raise ValueError(
                    f"{name!r} must be a distribution, got {distribution!r}. Pass, for example, "
                    "rj.log_uniform(1e-5, 1e-1)."
                )
            if distribution.is_static or not distribution.is_numeric:
                raise ValueError(
                    f"{name!r} must be a distribution of traced numbers, got {distribution}, "
                    "because a static hyperparameter cannot change within a trial. Leave it out of "
                    "space."
                )
        if self.perturbation_interval is not None and (
            not is_int(self.perturbation_interval) or self.perturbation_interval < 1
        ):
            raise ValueError(
                "perturbation_interval must be a whole number of at least 1, got "
                f"{self.perturbation_interval!r}. Pass perturbation_interval=100."
            )
        if not is_real(self.quantile_fraction) or not 0 < self.quantile_fraction <= 0.5:
            raise ValueError(
                f"quantile_fraction must be a number in (0, 0.5], got {self.quantile_fraction!r}. "
                "Pass quantile_fraction=0.25."
            )
        if not is_int(self.seed):
            raise ValueError(f"seed must be a whole number, got {self.seed!r}. Pass seed=0.")

    def __repr__(self) -> str:
        return (
            f"PopulationBasedTraining({dict(self.space)}, "
            f"perturbation_interval={self.perturbation_interval}, "
            f"quantile_fraction={self.quantile_fraction}, "
            f"seed={self.seed})"
        )

    def rungs(self, steps: int) -> list[int]:
        """Return every `perturbation_interval`-th step below `steps`.

        Args:
          steps: the number of steps of each trial.

        Raises:
          ValueError: if there is no such step.
        """
        interval = self.perturbation_interval
        if interval is None:
            interval = max(1, steps // 10)
        if interval >= steps:
            raise ValueError(
                f"perturbation_interval must be below the number of steps, {steps}, got "
                f"{interval}. Pass a smaller perturbation_interval, or more steps."
            )
        return list(range(interval, steps, interval))

    def decide(self, step: int, view: SchedulerView) -> Decision:
        """Let the worst points of each static group copy the best.

        Args:
          step: the step that all active trials have reached.
          view: all points at this step.
        """
        ranked = view.ranked()
        copy: dict[int, tuple[int, dict[str, float]]] = {}
        for group in np.unique(view.group[ranked]).tolist():
            members = ranked[view.group[ranked] == group]
            count = max(1, math.floor(self.quantile_fraction * len(members)))
            best, worst = members[:count].tolist(), members[len(members) - count :].tolist()
            donors = [p for p in best if np.isfinite(view.objective[p]).all()]
            for point in worst if donors else ():
                rng = np.random.default_rng([abs(self.seed), self.seed < 0, step, point])
                donor = donors[rng.integers(len(donors))]
                hp = view.points[donor]
                copy[point] = (
                    donor,
                    {
                        name: explored(distribution, hp[name], rng)
                        for name, distribution in self.space.items()
                        if name in hp
                    },
                )
        return Decision(copy=copy)


def explored(distribution: Distribution, value: float, rng: np.random.Generator) -> float:
    """Return a number for a copy: near the donor's, or with probability 1/4 drawn again.

    Args:
      distribution: the hyperparameter's distribution. Steps are made in its own coordinate u.
      value: the donor's number.
      rng: the generator of the draws.
    """
    if rng.random() < 0.25:
        return distribution.quantile(float(rng.random()))
    u = distribution.unit(value) + distribution.nudge * (1 if rng.random() < 0.5 else -1)
    u = -u if u < 0 else u
    u = 2 - u if u > 1 else u
    return distribution.quantile(min(max(u, 0.0), float(np.nextafter(1.0, 0.0))))


def settings_of(scheduler: object) -> tuple[dict[str, Json], bool]:
    """Return the settings by which schedulers are compared, as JSON.

    Returns:
      The class's name, with the text of `fingerprint()` or the fields of a dataclass; and whether
      this describes the scheduler completely. A subclass of a dataclass that is not a dataclass
      itself counts as that dataclass.

    Raises:
      ValueError: if `fingerprint()` does not return a string.
    """
    name = type(scheduler).__qualname__
    if callable(fingerprint := getattr(scheduler, "fingerprint", None)):
        if not isinstance(text := fingerprint(), str):
            raise ValueError(
                f"the scheduler's fingerprint() must return a string, got {text!r}. Return the "
                "text of its settings, for example repr(self)."
            )
        return {"class": name, "fingerprint": text}, True
    if not dataclasses.is_dataclass(scheduler):
        has_no_attributes = getattr(scheduler, "__dict__", None) == {}
        return {"class": name}, has_no_attributes
    unknown: list[object] = []
    name = next(
        c.__qualname__ for c in type(scheduler).__mro__ if "__dataclass_fields__" in vars(c)
    )
    return {"class": name, "fields": comparable(scheduler, unknown)["fields"]}, not unknown


def comparable(value: Value, unknown: list[object]) -> Json:
    """Return JSON that is equal for equal values: `3`, `3.0`, and `np.int64(3)` are equal.

    Args:
      value: a setting of a scheduler. A function counts as its qualified name.
      unknown: the list to which this function adds each object that it cannot compare. Such an
        object counts as its class.
    """
    inner = lambda x: comparable(x, unknown)
    if value is None or isinstance(value, bool | str):
        return value
    if is_real(value):
        number = int(value) if isinstance(value, int | np.integer) else float(value)
        return int(number) if math.isfinite(number) and number == int(number) else repr(number)
    if isinstance(value, Mapping):
        return {"items": sorted(([inner(k), inner(x)] for k, x in value.items()), key=repr)}
    if isinstance(value, tuple | list):
        return [inner(x) for x in value]
    if isinstance(value, set | frozenset):
        return {"set": sorted(map(inner, value), key=repr)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.compare]
        fields = {name: inner(getattr(value, name)) for name in names}
        return {"class": type(value).__qualname__, "fields": fields}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return {"array": hash_of_arrays(value)}
    if isinstance(value, functools.partial):
        return {"partial": [inner(x) for x in (value.func, value.args, value.keywords)]}
    if callable(value) and hasattr(value, "__qualname__"):
        return {"function": value.__qualname__}
    unknown.append(value)
    return {"class": type(value).__qualname__}
