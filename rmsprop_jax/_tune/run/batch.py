"""Trials of one static group that run in one wave: a `TrialBatch`, and the place of its states."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

HostStates: TypeAlias = list[np.ndarray]
"""The leaves of states, each with a leading axis over trials."""


class NotStarted(NamedTuple):
    """No states yet: `init` makes them. Trials of a function have none."""


class OnDevice(NamedTuple):
    """States on the devices, as a wave returned them."""

    leaves: list[jax.Array]


class OnHost(NamedTuple):
    """States in the host's memory."""

    leaves: HostStates


class OnDisk(NamedTuple):
    """States in the checkpoints of the folder."""


NOT_STARTED = NotStarted()
TrialStates: TypeAlias = NotStarted | OnDevice | OnHost | OnDisk


@dataclasses.dataclass(eq=False)
class TrialBatch:
    """The trials of one wave: on each submesh some batches, of `batch_size` trials each.

    Args:
      group: the number of the static group.
      trials: the numbers of the trials among points × seeds.
      steps_completed: the steps that each trial has run.
      first: the number of the submesh with the first trial. The other trials follow in turn.
      states: the place of the states, by its type.
      placed: the hyperparameters and keys on the devices, after the first dispatch.
      waited: the seconds for which the batch waited for its programs, until they are recorded.
    """

    group: int
    trials: np.ndarray
    steps_completed: np.ndarray
    first: int = 0
    states: TrialStates = NOT_STARTED
    placed: Any = None
    waited: float = 0.0

    @property
    def step(self) -> int:
        """The steps that each of these trials has run. All of them must have run equally many."""
        assert (self.steps_completed == self.steps_completed[0]).all()
        return int(self.steps_completed[0])


class SegmentResult(NamedTuple):
    """The metrics of a segment of a batch, on the host."""

    batch: TrialBatch
    start: np.ndarray
    """int array: the steps that each trial had run before the segment."""
    stop: np.ndarray
    """int array: the steps that each trial has run after the segment."""
    metrics: dict[str, np.ndarray]
    """The metrics of `train` or `step`, each of shape (trials,) or (trials, segment values)."""
    evaluations: dict[str, np.ndarray]
    """The metrics of `evaluate`, each of shape (trials,)."""
    compile_seconds: float = 0.0
    """The seconds that the segment waited for its programs."""


def rows_of(states: HostStates, rows: Sequence[int] | np.ndarray) -> HostStates:
    """Return the states of some trials, copied."""
    return [x[np.asarray(rows, int)] for x in states]
