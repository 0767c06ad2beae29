"""What a sweep was asked to do, and what is finished of it: the data that the rest passes on."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rmsprop_jax._tune.space.points import Points
from rmsprop_jax._tune.space.values import has_nan
from rmsprop_jax._tune.training.fingerprint import Fingerprint
from rmsprop_jax._tune.training.trace import Group, Metrics

STOPPED, FAILED = 1, 2  # why a scheduler ended a trial
PART_BYTES = 32 * 2**20  # of metrics copied at a time: all of them may be much of the memory


class Stages(NamedTuple):
    """The way of a `Training`: where its trials are looked at."""

    steps: int
    evaluate_every: int
    rungs: tuple[int, ...]
    """Steps at which a scheduler decides, before the end."""
    scheduler: dict[str, Any] | None
    """What tells it from others (`schedulers.settings_of`); None where there is none."""
    evaluations: Metrics
    """What `evaluate` returns."""

    @property
    def boundaries(self) -> np.ndarray:
        """The steps at which a segment ends: at all of them `evaluate` runs."""
        return _boundaries(self.steps, self.evaluate_every, self.rungs)

    @property
    def longest(self) -> int:
        """The most steps of a segment."""
        return int(np.diff(self.boundaries, prepend=0).max())

    def after(self, step: int) -> int:
        """The end of the segment that begins after this step."""
        return int(self.boundaries[np.searchsorted(self.boundaries, step, side="right")])


@functools.cache
def _boundaries(steps: int, every: int, rungs: tuple[int, ...]) -> np.ndarray:
    found = np.unique(np.concatenate([np.arange(every, steps, every), rungs, [steps]]).astype(int))
    found.flags.writeable = False
    return found


class ExperimentSpec(NamedTuple):
    """What a sweep was asked to do."""

    points: Points
    seeds: tuple[int, ...]
    every: dict[str, int]
    """Of these metrics only each so-manieth value is kept, and the last."""
    groups: list[Group]
    """The points by their structure."""
    metrics: list[Metrics]
    """What each structure's `train` returns: the same names, dtypes and ranks. Of a `Training`,
    what `step` returns, as series over the steps, and what `evaluate` does, over the boundaries."""
    fingerprint: Fingerprint
    stages: Stages | None = None

    @property
    def trials(self) -> int:
        """How many."""
        return len(self.points) * len(self.seeds)

    def dtype(self, metric: str) -> np.dtype:
        return self.metrics[0][metric].dtype

    def has_steps(self, metric: str) -> bool:
        """Whether it is a series."""
        return len(self.metrics[0][metric].shape) == 1

    def steps(self, metric: str) -> np.ndarray:
        """The steps, counted from 1, at which values of a series are kept.

        A structure whose trainings are shorter keeps those that it has.
        """
        if self.stages and metric in self.stages.evaluations:
            return self.stages.boundaries
        every, found = self.every.get(metric, 1), []
        for length in {one[metric].shape[0] for one in self.metrics}:
            found += [np.arange(every, length + 1, every), [length]]
        return np.unique(np.concatenate(found))

    def kept(self, group: int, metric: str) -> np.ndarray:
        """The steps that trials of a group keep, that run to their end."""
        steps = self.steps(metric)
        if self.stages:
            return steps
        return steps[steps <= self.metrics[group][metric].shape[0]]

    def shape(self, metric: str) -> tuple[int, ...]:
        """Of what is kept of one trial's metric."""
        return (len(self.steps(metric)),) if self.has_steps(metric) else ()

    def ends(self) -> dict[str, np.ndarray]:
        """For each series of a function's metrics the number of values that each point keeps."""
        ends = {}
        for name in filter(self.has_steps, self.metrics[0]):
            ends[name] = np.zeros(len(self.points), int)
            for i, group in enumerate(self.groups):
                ends[name][group.indices] = len(self.kept(i, name))
        return ends

    def group_of(self) -> np.ndarray:
        """For each point its group, int array."""
        of = np.zeros(len(self.points), int)
        for i, group in enumerate(self.groups):
            of[group.indices] = i
        return of

    def trials_of(self, points: Sequence[int]) -> np.ndarray:
        """The trials of these points: places in points × seeds."""
        seeds = len(self.seeds)
        return (np.asarray(points, int)[:, None] * seeds + np.arange(seeds)).reshape(-1)

    def numbers(self) -> dict[str, np.ndarray]:
        """For each traced hyperparameter the number of every trial, as it begins; NaN or 0 where a
        point has none."""
        found = {}
        for name in self.points.names:
            dtype = np.dtype(np.float64) if self.points.dtype(name).kind == "f" else np.dtype(int)
            values = [
                point[name] if self.points.is_traced(name, point.get(name)) else 0
                for point in self.points
            ]
            found[name] = np.repeat(np.asarray(values, dtype), len(self.seeds))
        return found


class TrialData(NamedTuple):
    """What is known of some trials."""

    number: np.ndarray
    """int array: the place of each in the points × the seeds."""
    metrics: dict[str, np.ndarray]
    """For each metric an array of shape (trials,) or (trials, kept steps)."""
    newest: dict[str, np.ndarray]
    """For each series an array of shape (trials,): its value where the trial stands."""
    steps_completed: np.ndarray
    """int array: the steps that each has behind it. Of a function: 1, it is finished."""
    asked: np.ndarray
    """int array: the steps that were asked for when it last moved; it is complete once it has them
    behind it. 1 of a function."""
    stopped: np.ndarray
    """int array: 0, or why a scheduler ended it: `STOPPED` for a worse objective, `FAILED` where a
    seed of its point had failed."""
    feasible: np.ndarray
    """bool array: whether it keeps the constraints of a study's sampler; True where there are
    none."""
    seconds: np.ndarray
    """(2,): compiling, and the rest."""

    def take(self, rows: Any) -> "TrialData":
        """Some of them; the seconds are those of all."""
        of = lambda arrays: {name: x[rows] for name, x in arrays.items()}
        return TrialData(
            self.number[rows],
            of(self.metrics),
            of(self.newest),
            self.steps_completed[rows],
            self.asked[rows],
            self.stopped[rows],
            self.feasible[rows],
            self.seconds,
        )

    def parts(self, rows: np.ndarray) -> list[np.ndarray]:
        """The rows, cut so that `take` of a part copies little at a time."""
        bytes_ = sum(x.nbytes for x in self.metrics.values()) / max(1, len(self.number))
        parts = max(1, math.ceil(len(rows) * bytes_ / PART_BYTES))
        return np.array_split(rows, min(parts, len(rows))) if len(rows) else []


def no_trials(plan: ExperimentSpec, count: int) -> TrialData:
    """Room for so many; NaN where nothing is, in what can hold it."""

    def empty(name, *shape):
        dtype = plan.dtype(name)
        return np.full(shape, np.nan if has_nan(dtype) else 0, dtype)

    names = list(plan.metrics[0])
    return TrialData(
        np.arange(count),
        {name: empty(name, count, *plan.shape(name)) for name in names},
        {name: empty(name, count) for name in filter(plan.has_steps, names)},
        np.zeros(count, np.int64),
        np.zeros(count, np.int64),
        np.zeros(count, np.int8),
        np.ones(count, bool),
        np.zeros(2),
    )
