"""Run waves one after another, each to its end: for sweeps without a scheduler or `batches`."""

import collections
import contextlib
import functools

import jax
import numpy as np

from rmsprop_jax._tune.compile.group_compiler import smaller_batch
from rmsprop_jax._tune.experiment import Experiment
from rmsprop_jax._tune.run.batch import OnDevice, TrialBatch
from rmsprop_jax._tune.run.local_devices import Handle, LocalDevices
from rmsprop_jax._tune.session import Session
from rmsprop_jax._tune.trials.checkpoints import BatchStates


class SequentialRunner:
    """A runner that runs each wave to its end before the next. States stay on the devices.

    Args:
      experiment: the experiment of the call.
      session: the session of the call.
      backend: the backend that runs batches; by default the devices of this call.
    """

    def __init__(
        self, experiment: Experiment, session: Session, backend: LocalDevices | None = None
    ):
        self._experiment, self._session = experiment, session
        self._backend = backend or LocalDevices(experiment, session)
        self._in_flight: collections.deque[Handle] = collections.deque()

    def run(self) -> None:
        """Run all trials. If the memory runs out with an automatic batch size, halve it and resume
        from the checkpoints."""
        most = None
        while True:
            sizes: list[int] = []
            try:
                with contextlib.closing(self._backend.compile(most)) as groups:
                    for group, trials, seconds in groups:
                        sizes.append(self._backend.layout(group).batch_size)
                        if self._run_group(group, trials, seconds):
                            return
                return
            except jax.errors.JaxRuntimeError as error:
                may_retry = self._experiment.cluster.count == 1
                most = smaller_batch(error, self._experiment.batch_size, sizes, may_retry)
            self._in_flight.clear()
            self._session.checkpoints.rewind()

    def _run_group(self, group: int, trials: np.ndarray, seconds: float) -> bool:
        """Run the trials of a static group until they end or the time is up.

        Args:
          group: the number of the static group.
          trials: its trials that have not ended.
          seconds: the seconds that they waited for their programs.

        Returns:
          Whether the time is up.
        """
        self._backend.wave_size(group).restart()
        steps = self._session.table.data.steps_completed[trials]
        for batch in self._backend.form(group, trials, steps):
            batch.waited, seconds = seconds, 0.0
            if self._run_wave(batch):
                return True
        self._drain()
        return False

    def _run_wave(self, batch: TrialBatch) -> bool:
        """Run a wave until it ends or the time is up.

        Returns:
          Whether the time is up.
        """
        schedule, checkpoints = self._experiment.spec.schedule, self._session.checkpoints
        while batch.step < schedule.end:
            # The next segment is dispatched before this one is fetched: its states are on the
            # devices.
            self._in_flight.append(self._backend.dispatch(batch, schedule.next_stop(batch.step)))
            if len(self._in_flight) == self._depth(batch):
                self._fetch()
            is_time_up = self._session.is_time_up
            if batch.step < schedule.end and (is_time_up or checkpoints.is_due()):
                self._drain()
                fetch = functools.partial(self._backend.states, batch)
                checkpoints.write([BatchStates(batch.trials, batch.step, fetch)])
            if is_time_up:
                self._drain()
                return True
        if _has_states(batch):
            self._drain()
        return False

    def _depth(self, batch: TrialBatch) -> int:
        """Return the largest number of segments in flight.

        The devices of a CPU share its cores: another wave of a function would slow this one down.
        """
        if _has_states(batch):
            return 2
        return 1 if self._experiment.cluster.mesh.devices.flat[0].platform == "cpu" else 2

    def _drain(self) -> None:
        """Fetch and record all segments in flight."""
        while self._in_flight:
            self._fetch()

    def _fetch(self) -> None:
        """Fetch the oldest segment and record it; at the end of its wave, finish the trials."""
        handle = self._in_flight.popleft()
        batch = handle.batch
        self._session.record(self._backend.fetch(handle))
        if handle.stop[0] < self._experiment.spec.schedule.end:
            return
        if self._experiment.state_specs:
            self._session.finish(batch.trials, functools.partial(self._backend.states, batch))
        self._backend.wave_size(batch.group).measure(len(batch.trials))


def _has_states(batch: TrialBatch) -> bool:
    return isinstance(batch.states, OnDevice) and bool(batch.states.leaves)
