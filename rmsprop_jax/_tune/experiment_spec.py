"""The part of an experiment that a folder holds."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from rmsprop_jax._tune.space.points import Points
from rmsprop_jax._tune.space.static_groups import StaticGroup
from rmsprop_jax._tune.training.checks import Metrics
from rmsprop_jax._tune.training.fingerprint import Fingerprint
from rmsprop_jax._tune.training.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class ExperimentSpec:
    """The points and seeds of an experiment, and the metrics and schedule of its trials.

    Args:
      points: the points to try.
      seeds: the seeds of each point.
      record_every: for each series that is recorded in part, k: every k-th value and the last are
        recorded.
      groups: the points in static groups. The list grows during a search.
      metrics: the metrics of a trial in each static group, with equal names, dtypes, and ranks.
      fingerprint: the hashed part of the entries that must be equal for a folder to resume.
        `storage.manifest.extended` has the whole rule.
      schedule: the steps at which the segments of a trial end.
    """

    points: Points
    seeds: tuple[int, ...]
    record_every: dict[str, int]
    groups: list[StaticGroup]
    metrics: list[Metrics]
    fingerprint: Fingerprint
    schedule: Schedule

    @property
    def trials(self) -> int:
        """The number of trials."""
        return len(self.points) * len(self.seeds)

    def dtype(self, metric: str) -> np.dtype:
        return self.metrics[0][metric].dtype

    def has_steps(self, metric: str) -> bool:
        """Return whether a metric is a series."""
        return len(self.metrics[0][metric].shape) == 1

    @functools.cached_property
    def recorded_steps(self) -> dict[str, np.ndarray]:
        """The steps of each series, counted from 1, at which values are recorded.

        Static groups may train for different numbers of steps. This has the steps of all groups.
        """
        found = {}
        for name in filter(self.has_steps, self.metrics[0]):
            every = self.record_every.get(name, 1)
            lengths = {metrics[name].shape[0] for metrics in self.metrics}
            steps = [self.schedule.recorded_steps(name, length, every) for length in lengths]
            found[name] = steps[0] if len(steps) == 1 else np.unique(np.concatenate(steps))
        return found

    def count_recorded(self, group: int, metric: str, step: int) -> int:
        """Return how many values of a series are recorded once a trial has run `step` steps."""
        reached = self.schedule.reach(self.metrics[group][metric].shape[0], step)
        return int(np.searchsorted(self.recorded_steps[metric], reached, side="right"))

    def shape(self, metric: str) -> tuple[int, ...]:
        """Return the shape of the recorded values of one trial's metric."""
        return (len(self.recorded_steps[metric]),) if self.has_steps(metric) else ()

    def group_of(self) -> np.ndarray:
        """Return for each point the number of its static group."""
        found = np.zeros(len(self.points), int)
        for i, group in enumerate(self.groups):
            found[group.points] = i
        return found

    def trials_of(self, points: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the numbers of the trials of these points, places among points × seeds."""
        seeds = len(self.seeds)
        return (np.asarray(points, int)[:, None] * seeds + np.arange(seeds)).reshape(-1)
