"""What a sweep was asked to do, and what is finished of it: the data that the rest passes on."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from rmsprop_jax._sweep.fingerprint import Fingerprint
from rmsprop_jax._sweep.points import Points
from rmsprop_jax._sweep.tracing import Group, Metrics


class Plan(NamedTuple):
    """What a sweep was asked to do."""

    points: Points
    seeds: tuple[int, ...]
    every: dict[str, int]
    """Of these metrics only each so-manieth value is kept, and the last."""
    groups: list[Group]
    """The points by their structure."""
    metrics: list[Metrics]
    """What each structure's `train` returns: the same names, dtypes and ranks."""
    fingerprint: Fingerprint

    def dtype(self, metric: str) -> np.dtype:
        return self.metrics[0][metric].dtype

    def has_steps(self, metric: str) -> bool:
        """Whether it has one value a step."""
        return len(self.metrics[0][metric].shape) == 1

    def steps(self, metric: str) -> np.ndarray:
        """The steps, counted from 1, that are kept of a metric with one value a step.

        A structure whose trainings are shorter keeps those that it has.
        """
        every, found = self.every.get(metric, 1), []
        for length in {one[metric].shape[0] for one in self.metrics}:
            found += [np.arange(every, length + 1, every), [length]]
        return np.unique(np.concatenate(found))

    def kept(self, group: int, metric: str) -> np.ndarray:
        """The steps that trials of a group keep."""
        steps = self.steps(metric)
        return steps[steps <= self.metrics[group][metric].shape[0]]

    def shape(self, metric: str) -> tuple[int, ...]:
        """Of what is kept of one trial's metric."""
        return (len(self.steps(metric)),) if self.has_steps(metric) else ()

    def lengths(self, metric: str) -> np.ndarray:
        """For each point how many values of a metric with one value a step are kept, int array."""
        lengths = np.zeros(len(self.points), int)
        for i, group in enumerate(self.groups):
            lengths[group.indices] = len(self.kept(i, metric))
        return lengths

    def no_trials(self, count: int) -> "Trials":
        """Room for so many; NaN where nothing is, in what can hold it."""
        empty = lambda dtype: np.nan if jnp.issubdtype(dtype, jnp.floating) else 0
        metrics = {
            name: np.full((count, *self.shape(name)), empty(m.dtype), m.dtype)
            for name, m in self.metrics[0].items()
        }
        return Trials(np.zeros(count, np.int64), metrics, np.zeros(2))

    def trials_of(self, points: Sequence[int]) -> np.ndarray:
        """The trials of these points: places in points × seeds."""
        seeds = len(self.seeds)
        return (np.asarray(points)[:, None] * seeds + np.arange(seeds)).reshape(-1)


class Trials(NamedTuple):
    """Finished trials, in any order, and what they took."""

    number: np.ndarray
    """int array: the place of each in the points × the seeds."""
    metrics: dict[str, np.ndarray]
    """For each metric an array of shape (trials,) or (trials, kept steps)."""
    seconds: np.ndarray
    """(2,): compiling, and the rest."""
