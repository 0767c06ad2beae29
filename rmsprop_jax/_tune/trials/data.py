"""The measurements of trials, in columns: one row for each trial."""

import math
from typing import Any, NamedTuple

import numpy as np

from rmsprop_jax._tune.experiment_spec import ExperimentSpec
from rmsprop_jax._tune.space.values import has_nan

PRUNED, PRUNED_AS_FAILED = 1, 2  # reasons for which a scheduler or a pruner ended a trial
PART_BYTES = 32 * 2**20  # of metrics that are copied at a time, since all may fill the memory


class TrialData(NamedTuple):
    """The progress and the metrics of some trials, one row each."""

    number: np.ndarray
    """int array: the number of each trial, its place among points × seeds."""
    metrics: dict[str, np.ndarray]
    """For each metric an array of shape (trials,) or (trials, recorded steps)."""
    newest: dict[str, np.ndarray]
    """For each series an array of shape (trials,): its value at the trial's last step."""
    steps_completed: np.ndarray
    """int array: the steps that each trial has run; 1 for a trial of a function."""
    steps_asked: np.ndarray
    """int array: the number of steps in the last call that ran the trial. A trial with this many
    steps is complete."""
    pruned: np.ndarray
    """int array: 0 for a trial that was not pruned, `PRUNED` for a worse objective, or
    `PRUNED_AS_FAILED` if a seed of the point had failed."""
    feasible: np.ndarray
    """bool array: whether the trial meets the constraints of a study's sampler; True without."""
    seconds: np.ndarray
    """float64 array of shape (2,): the seconds of compiling, and all other seconds."""

    def take(self, rows: Any) -> "TrialData":
        """Return some rows. The seconds do not change."""
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
        """Return the rows in parts so that `take` of a part copies about `PART_BYTES` at most."""
        row_bytes = sum(x.nbytes for x in self.metrics.values()) / max(1, len(self.number))
        parts = max(1, math.ceil(len(rows) * row_bytes / PART_BYTES))
        return np.array_split(rows, min(parts, len(rows))) if len(rows) else []


def empty_trials(spec: ExperimentSpec, count: int) -> TrialData:
    """Return rows for `count` trials that have not begun, of NaN or, in dtypes without it, 0."""

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
