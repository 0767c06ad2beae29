"""Checkpoints: the states of trials under way, on disk."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rmsprop_jax._tune.run.batch import HostStates
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.storage.writer import Checkpoint, FolderWriter
from rmsprop_jax._tune.training.state_spec import StateSpec
from rmsprop_jax._tune.trials.table import TrialTable


class BatchStates(NamedTuple):
    """The states of some trials of one static group, at one step."""

    trials: np.ndarray
    """int array: the numbers of the trials."""
    step: int
    """The steps that each trial has run."""
    fetch: Callable[[], HostStates]
    """A function that copies the states to the host. It is called on every process."""


class CheckpointManager:
    """The checkpoints of a call. A trial resumes from its newest checkpoint.

    These methods write a checkpoint (`write`):

    - `SequentialRunner._run_wave`, of its wave, when a checkpoint is due or the time is up;
    - `SynchronousRunner._after`, of all trials, when a checkpoint is due, the time is up, or a
      trial copied another at this rung.

    An interrupt writes no checkpoint.

    Checkpoints are deleted (`delete_stale`) after each `write`, at the end of trials by
    `Session.finish`, and at the end of a call by `Session.tidy`.

    Args:
      table: the trial table.
      state_specs: the structure of the state of each static group; empty for functions.
      seconds: the least time between two checkpoints.
      folder: the folder of the sweep, on the leader; None elsewhere, and without a folder.
      has_folder: whether the leader has a folder.
      cluster: the processes, of which the leader reads and writes.
    """

    def __init__(
        self,
        table: TrialTable,
        state_specs: Sequence[StateSpec],
        seconds: float,
        folder: FolderWriter | None,
        has_folder: bool,
        cluster: Cluster,
    ):
        self._table, self._state_specs, self._seconds = table, state_specs, seconds
        self._folder, self._has_folder, self._cluster = folder, has_folder, cluster
        self._clock = cluster.machine.clock
        self._last = self._clock()
        stored = folder.checkpoints() if folder and state_specs else {}
        told = cluster.tell("checkpoints", {str(t): list(x) for t, x in stored.items()})
        self._newest = {int(trial): Checkpoint(*x) for trial, x in told.items()}

    def rewind(self) -> None:
        """Set each unfinished trial back to its newest checkpoint, or to its start."""
        if not self._state_specs:
            return
        trials = np.flatnonzero(~self._table.ended[: len(self._table)])
        none = Checkpoint(0, "")
        steps = [self._newest.get(trial, none).step for trial in trials.tolist()]
        self._table.rewind(trials, np.array(steps, int))

    def load(self, trials: np.ndarray) -> HostStates:
        """Return the states of trials of one static group at one step, from their checkpoints."""
        spec = self._spec_of(trials)

        def read() -> HostStates:
            assert self._folder is not None
            files = [(trial, self._newest[trial].file) for trial in trials.tolist()]
            return self._folder.read_states(files, spec)

        states = self._cluster.on_leader(read)
        if states is None:
            states = [np.zeros((len(trials), *x.shape), x.dtype) for x in spec.data]
        return [self._cluster.from_leader(x) for x in states]

    def _spec_of(self, trials: np.ndarray) -> StateSpec:
        return self._state_specs[self._table.group_of(trials[0])]

    def is_due(self) -> bool:
        """Return whether it is time for a checkpoint. All processes get the leader's answer."""
        if not self._has_folder:
            return False
        due = self._clock() - self._last >= self._seconds
        return self._cluster.tell("whether a checkpoint is due", bool(due))

    def write(self, batches: Sequence[BatchStates]) -> None:
        """Write the metrics and then the states of trials under way, and delete older checkpoints.

        The host holds the states of one batch at a time.
        """
        if not self._has_folder:
            return
        for batch in batches:
            self._cluster.on_leader(lambda batch=batch: self._table.commit(batch.trials))
        for batch in batches:
            states = batch.fetch()
            if self._cluster.is_leader:
                self._write(batch, states)
        self._cluster.on_leader(self.delete_stale)
        self._last = self._clock()

    def _write(self, batch: BatchStates, states: HostStates) -> None:
        """Write the states of one batch in one file, on the leader."""
        assert self._folder is not None
        form = self._spec_of(batch.trials).form
        name = self._folder.write_states(batch.trials, batch.step, states, form)
        self._newest |= dict.fromkeys(batch.trials.tolist(), Checkpoint(batch.step, name))

    def delete_stale(self) -> None:
        """Delete, on the leader, the files of checkpoints from which no trial would resume."""
        if self._folder is None or not self._state_specs:
            return
        written = self._table.written
        needed = {x.file for trial, x in self._newest.items() if not written[trial]}
        for name in self._folder.checkpoint_files() - needed:
            self._folder.delete(name)
