"""Run batches on an executor, each to its end, in the order in which tasks finish."""

import collections
import contextlib
import functools
import math

from rmsprop_jax._tune.experiment import Experiment
from rmsprop_jax._tune.run.batch import NotStarted, SegmentResult, TrialBatch
from rmsprop_jax._tune.run.executor_backend import ExecutorBackend
from rmsprop_jax._tune.session import Session
from rmsprop_jax._tune.trials.checkpoints import BatchStates


class AsCompletedRunner:
    """A runner that keeps all workers busy: for sweeps on an executor without a scheduler.

    The tasks of a batch follow one another. Between two tasks the host holds its states.

    Args:
      experiment: the experiment of the call.
      session: the session of the call.
      backend: the workers.
    """

    def __init__(self, experiment: Experiment, session: Session, backend: ExecutorBackend):
        self._end, self._session = experiment.spec.schedule.end, session
        self._backend = backend
        self._ready: collections.deque[TrialBatch] = collections.deque()
        """The batches that wait for their next task."""
        self._unsaved: list[TrialBatch] = []
        """The batches whose states are newer than their checkpoint."""
        self._has_states, self._has_progress = bool(experiment.state_specs), False

    def run(self) -> None:
        """Run all trials until they end or the time is up."""
        try:
            is_over = self._run()
        except BaseException as error:
            # The tasks that run are waited for after Ctrl-C only.
            seconds = None if isinstance(error, KeyboardInterrupt) else 0.0
            for batch, results in self._backend.wind_down(seconds):
                with contextlib.suppress(Exception):  # a callback may raise again
                    self._record(batch, results)
            with contextlib.suppress(Exception):
                self._checkpoint()
            raise
        if not is_over:
            for batch, results in self._backend.wind_down():
                self._record(batch, results)
            self._checkpoint()

    def _run(self) -> bool:
        """Run trials. Return False if the time is up before all have ended."""
        coming = self._backend.batches()
        while True:
            while self._backend.has_room:
                batch = self._ready.popleft() if self._ready else next(coming, None)
                if batch is None:
                    break
                self._backend.dispatch(batch, self._backend.stop_of(batch))
            if not self._backend.is_busy:
                return True
            for batch, results in self._backend.arrived(self._patience):
                self._record(batch, results)
            if self._has_progress and self._session.is_time_up:
                return False
            if self._session.checkpoints.is_due():
                self._checkpoint()

    @property
    def _patience(self) -> float | None:
        """The seconds to wait for the next task; None for no limit."""
        left = self._session.seconds_left
        return left if self._has_progress and math.isfinite(left) else None

    def _record(self, batch: TrialBatch, results: list[SegmentResult]) -> None:
        """Record the segments of a batch, and finish its trials if they have ended."""
        if batch in self._unsaved:
            self._unsaved.remove(batch)
        for result in results:
            self._session.record(result)
        self._has_progress = True
        if batch.step < self._end:
            self._ready.append(batch)
            self._unsaved.append(batch)
            return
        if self._has_states:
            self._session.finish(batch.trials, functools.partial(self._backend.states, batch))
            batch.states = NotStarted()

    def _checkpoint(self) -> None:
        """Write the states of batches under way that no checkpoint has."""
        states = self._backend.states
        self._session.checkpoints.write(
            [
                BatchStates(batch.trials, batch.step, functools.partial(states, batch))
                for batch in self._unsaved
            ]
        )
        self._unsaved.clear()
