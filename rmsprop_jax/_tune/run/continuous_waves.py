"""Waves of one static group in which trials are at different steps, may leave, and may begin.

`search.runner.ContinuousRunner` uses them.
"""

from collections.abc import Collection, Iterator

import numpy as np

from rmsprop_jax._tune.run.batch import HostStates, OnHost, TrialBatch, rows_of
from rmsprop_jax._tune.run.local_devices import LocalDevices
from rmsprop_jax._tune.training.schedule import Schedule


class ContinuousWaves:
    """The waves of one static group.

    Args:
      backend: the backend that runs the waves.
      schedule: the steps at which segments end.
      group: the number of the static group.

    Attributes:
      batches: the waves, each of one batch per submesh. One wave runs while the host reads the
        metrics of another.
    """

    def __init__(self, backend: LocalDevices, schedule: Schedule, group: int):
        self._backend, self._schedule, self._group = backend, schedule, group
        self.batches: list[TrialBatch] = []

    def next_stops(self, steps_completed: np.ndarray) -> np.ndarray:
        """Return the ends of the segments of trials at these steps."""
        return np.array([self._schedule.next_stop(step) for step in steps_completed.tolist()], int)

    @property
    def _slots(self) -> int:
        return self._backend.layout(self._group).slots(1)

    @property
    def loose(self) -> int:
        """The number of trials in waves that are not full."""
        return sum(len(batch.trials) % self._slots for batch in self.batches)

    def exchange(self, leaving: Collection[int], coming: np.ndarray, first: int) -> None:
        """Let trials leave, and others begin.

        A wave that loses or gets a trial is formed again: the states of the trials that stay go
        through the host. The states of other waves stay on the devices.

        Args:
          leaving: the trials that leave these waves.
          coming: the trials that begin.
          first: the number of the submesh with the first trial of a new wave.
        """
        kept: list[TrialBatch] = []
        staying: list[tuple[np.ndarray, np.ndarray, HostStates]] = []
        for batch in self.batches:
            stays = ~np.isin(batch.trials, list(leaving))
            has_slots = len(batch.trials) < self._slots and len(coming)
            if stays.all() and not has_slots and self._may_share(batch.steps_completed):
                kept.append(batch)
            elif stays.any():
                states = rows_of(self._backend.states(batch), np.flatnonzero(stays))
                staying.append((batch.trials[stays], batch.steps_completed[stays], states))
        self.batches = kept
        if not staying:
            self.batches += self._new(coming, first)
            return
        for batch in self._new(coming, 0):
            self._backend.begin(batch)
            begun = batch.trials, batch.steps_completed, self._backend.states(batch)
            staying.append(begun)
        trials, steps, states = zip(*staying, strict=True)
        leaves = [np.concatenate(leaf) for leaf in zip(*states, strict=True)]
        formed = self._formed(np.concatenate(trials), np.concatenate(steps), leaves, first)
        self.batches += formed

    def _may_share(self, steps_completed: np.ndarray) -> bool:
        """Return whether trials at these steps may share a wave.

        Trials that share a `vmap` must run the same number of steps.
        """
        lengths = self.next_stops(steps_completed) - steps_completed
        return self._backend.layout(self._group).batch_size == 1 or len(np.unique(lengths)) == 1

    def _new(self, trials: np.ndarray, first: int) -> Iterator[TrialBatch]:
        """Yield waves of trials that begin."""
        for at in range(0, len(trials), self._slots):
            part = trials[at : at + self._slots]
            yield TrialBatch(self._group, part, np.zeros(len(part), int), first)

    def _formed(
        self, trials: np.ndarray, steps: np.ndarray, leaves: HostStates, first: int
    ) -> Iterator[TrialBatch]:
        """Yield waves of trials at these steps, with these states."""
        parts = [np.arange(len(trials))]
        if not self._may_share(steps):
            lengths = self.next_stops(steps) - steps
            parts = [np.flatnonzero(lengths == n) for n in np.unique(lengths)]
        for part in parts:
            for at in range(0, len(part), self._slots):
                rows = part[at : at + self._slots]
                states = OnHost(rows_of(leaves, rows))
                yield TrialBatch(self._group, trials[rows], steps[rows], first, states)
