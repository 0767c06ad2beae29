"""What is measured of trials, in columns: one row for each trial."""

import math
from typing import Any, NamedTuple

import numpy as np

from rmsprop_jax._tune.experiment_spec import ExperimentSpec
from rmsprop_jax._tune.space.values import has_nan

PRUNED, PRUNED_AS_FAILED = 1, 2  # why a scheduler or a pruner ended a trial
PART_BYTES = 32 * 2**20  # of metrics copied at a time: all of them may be much of the memory


class TrialData(NamedTuple):
    """What is known of some trials."""

    number: np.ndarray
    """int array: the place of each trial among points × seeds."""
    metrics: dict[str, np.ndarray]
    """For each metric an array of shape (trials,) or (trials, recorded steps)."""
    newest: dict[str, np.ndarray]
    """For each series an array of shape (trials,): its value at the trial's last step."""
    steps_completed: np.ndarray
    """int array: the steps that each trial has run; 1 for a trial of a function."""
    steps_asked: np.ndarray
    """int array: the steps that the call asked for that ran the trial last. A trial is complete
    once it has run as many."""
    pruned: np.ndarray
    """int array: 0; `PRUNED` for a worse objective; `PRUNED_AS_FAILED` where a seed of the point
    had failed."""
    feasible: np.ndarray
    """bool array: whether the trial keeps the constraints of a study's sampler; else True."""
    seconds: np.ndarray
    """Shape (2,): seconds of compiling, and all others."""

    def take(self, rows: Any) -> "TrialData":
        """Return some rows; the seconds are those of all."""
        of = lambda arrays: {name: x[rows] for name, x in arrays.items()}
        return TrialData(
            self.number[rows],
            of(self.metrics),
            of(self.newest),
            self.steps_completed[rows],
            self.steps_asked[rows],
            self.pruned[rows],
            self.feasible[rows],
            self.seconds,
        )

    def parts(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return the rows in parts, so that `take` of a part copies little at a time."""
        row_bytes = sum(x.nbytes for x in self.metrics.values()) / max(1, len(self.number))
        parts = max(1, math.ceil(len(rows) * row_bytes / PART_BYTES))
        return np.array_split(rows, min(parts, len(rows))) if len(rows) else []


def empty_trials(spec: ExperimentSpec, count: int) -> TrialData:
    """Return rows for `count` trials that have not begun; NaN where a dtype can hold it."""

    def empty(name: str, *shape: int) -> np.ndarray:
        dtype = spec.dtype(name)
        return np.full(shape, np.nan if has_nan(dtype) else 0, dtype)

    names = list(spec.metrics[0])
    return TrialData(
        np.arange(count),
        {name: empty(name, count, *spec.shape(name)) for name in names},
        {name: empty(name, count) for name in spec.recorded_steps},
        np.zeros(count, np.int64),
        np.zeros(count, np.int64),
        np.zeros(count, np.int8),
        np.ones(count, bool),
        np.zeros(2),
    )
