"""Batches on the workers of an executor: each batch runs as one task after another."""

import os
import pickle
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import jax
import jax.export
import numpy as np

from rmsprop_jax._tune.compile.exported import export_group, plain_leaves
from rmsprop_jax._tune.compile.narrow_dtypes import uncarried
from rmsprop_jax._tune.executors import Executor, copied, most_trials
from rmsprop_jax._tune.experiment import Experiment
from rmsprop_jax._tune.jax_settings import present_settings
from rmsprop_jax._tune.run.batch import (
    HostStates,
    NotStarted,
    OnDisk,
    OnHost,
    SegmentResult,
    TrialBatch,
)
from rmsprop_jax._tune.run.task_pool import Submission, TaskPool
from rmsprop_jax._tune.run.worker import Batches, Done, Task, hash_of, versions
from rmsprop_jax._tune.session import Session
from rmsprop_jax._tune.space.static_groups import naming

TASKS_EACH = 4  # tasks for each worker at least, so that none waits long for the last one

Results: TypeAlias = list[SegmentResult]


class ExecutorBackend:
    """The workers of an executor, as the backend that runs batches of trials.

    Args:
      experiment: the experiment that the call asks for.
      session: the session, with the hyperparameters and the checkpoints of trials.
      options: the executor and its options.
    """

    def __init__(self, experiment: Experiment, session: Session, options: Executor):
        self._experiment, self._options = experiment, options
        self._table, self._checkpoints = session.table, session.checkpoints
        self._clock = experiment.cluster.machine.clock
        self._contents: dict[str, bytes] = {}  # what tasks need, by hashes
        self._programs: dict[int, str] = {}  # the hash of each static group's programs
        self._seconds: dict[int, float] = {}  # of a step of one trial, in each static group
        self._devices = 1  # of a worker, as far as any has answered
        args = list(map(np.asarray, plain_leaves(experiment.args_on_devices())))
        self._args, self._batches = self._content(args), None
        if (data := experiment.data) is not None:
            batches = Batches(copied(experiment.options.batches), data.checksum)
            self._batches = self._content(batches)
        self._pool = TaskPool(options, self._contents)

    def __enter__(self) -> "ExecutorBackend":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    @property
    def stops(self) -> list[int]:
        """The steps at which all trials wait for each other: the rungs and the end."""
        schedule = self._experiment.spec.schedule
        return [*schedule.rungs, schedule.end]

    # Static groups and batches of trials.

    def batches(self) -> Iterator[TrialBatch]:
        """Yield the trials that have not ended, in batches, group by group."""
        for group, spec in enumerate(self._experiment.spec.groups):
            trials = self._table.unfinished(spec.points)
            if len(trials):
                begun = self._clock()
                self._export(group, len(trials))
                seconds = self._clock() - begun
                for batch in self.form(group, trials, self._table.data.steps_completed[trials]):
                    batch.waited, seconds = seconds, 0.0
                    yield batch

    def form(
        self, group: int, trials: np.ndarray, steps_completed: np.ndarray
    ) -> Iterator[TrialBatch]:
        """Yield the trials of a static group in batches, of one task at a time each.

        Which trials share a `vmap` depends on their order only, never on time.

        Args:
          group: the number of the static group.
          trials: the numbers of the trials.
          steps_completed: the steps that each trial has run.
        """
        for step in np.unique(steps_completed).tolist():
            here, at = trials[steps_completed == step], 0
            while at < len(here):
                part = here[at : at + self._trials_of_task(group, len(here) - at, step)]
                states = OnDisk() if step else NotStarted()
                yield TrialBatch(group, part, np.full(len(part), step), states=states)
                at += len(part)

    def _export(self, group: int, trials: int) -> None:
        """Make the programs of a static group, for at most so many trials."""
        experiment = self._experiment
        kernels, args = experiment.kernels(group), experiment.args_on_devices()
        platforms = self._options.platforms or [jax.export.default_export_platform()]
        with naming(experiment.spec.groups[group]):
            programs = export_group(
                kernels, args, self._batch_size, self._most_trials(group, trials), platforms
            )
        self._programs[group] = self._content(programs)

    def _content(self, content: object) -> str:
        """Return the hash of an object that tasks need, and keep its bytes."""
        data = pickle.dumps(content)
        self._contents[hash_of(data)] = data
        return hash_of(data)

    # The size of tasks.

    @property
    def _batch_size(self) -> int:
        return int(self._experiment.batch_size)

    def _most_trials(self, group: int, left: int) -> int:
        """Return the largest number of trials of a task, in whole batches.

        Args:
          group: the number of the static group.
          left: the number of trials that are left to run.
        """
        most = -(-left // (TASKS_EACH * self._pool.workers))
        if specs := self._experiment.state_specs:
            most = min(most, most_trials(specs[group].bytes))
        return max(1, most // self._batch_size) * self._batch_size

    def _trials_of_task(self, group: int, left: int, step: int) -> int:
        """Return the number of trials of the next task.

        It is one batch for each device of a worker, or more if these take less than `task_seconds`.
        """
        least = self._batch_size * self._devices
        if group not in self._seconds:
            return least
        steps = next(stop for stop in self.stops if stop > step) - step
        fit = int(self._options.task_seconds / (self._seconds[group] * steps))
        fit = fit // self._batch_size * self._batch_size
        return max(least, min(self._most_trials(group, left), fit))

    def stop_of(self, batch: TrialBatch) -> int:
        """Return the evaluation step at which the next task of a batch ends, without a scheduler:
        the one nearest to `task_seconds`, or the first one before any time is known."""
        stops = self._experiment.spec.schedule.evaluation_steps
        stops = stops[stops > batch.step]
        if batch.group not in self._seconds:
            return int(stops[0])
        steps = self._options.task_seconds / (self._seconds[batch.group] * len(batch.trials))
        return int(stops[np.argmin(np.abs(stops - batch.step - steps))])

    # Tasks.

    @property
    def has_room(self) -> bool:
        """Whether another task may be submitted."""
        return len(self._pool) < self._pool.most

    @property
    def is_busy(self) -> bool:
        """Whether any task has not finished."""
        return len(self._pool) > 0

    def dispatch(self, batch: TrialBatch, until: int) -> None:
        """Submit a task that runs a batch through all segments up to a step."""
        schedule, states = self._experiment.spec.schedule, None
        stops = schedule.evaluation_steps
        if not isinstance(batch.states, NotStarted):
            batch.states = OnHost(states := self.states(batch))
        is_kept = until < schedule.end or self._experiment.keep_states != 0
        task = Task(
            group=self._programs[batch.group],
            args=self._args,
            batches=self._batches,
            inputs=self._table.inputs(batch.trials, batch.group),
            start=batch.step,
            stops=tuple(stops[(stops > batch.step) & (stops <= until)].tolist()),
            states=states,
            returns_states=is_kept,
            settings=present_settings(),
            versions=versions(),
            process=os.getpid(),
        )
        self._pool.add(Submission(task, batch))

    def arrived(self, seconds: float | None = None) -> Iterator[tuple[TrialBatch, Results]]:
        """Wait until a task finishes; yield each batch that has arrived, and its segments.

        Args:
          seconds: the longest time to wait; None for no limit.
        """
        for submission, done in self._pool.wait(seconds):
            yield submission.batch, self._results(submission.batch, done)

    def wind_down(self, seconds: float | None = None) -> Iterator[tuple[TrialBatch, Results]]:
        """Cancel the tasks that do not run yet, and yield the batches that arrive in time.

        Args:
          seconds: the longest time to wait for the tasks that run; None for `task_seconds`.
        """
        for submission, done in self._pool.stop(
            self._options.task_seconds if seconds is None else seconds
        ):
            yield submission.batch, self._results(submission.batch, done)

    def advance(self, batches: Iterable[TrialBatch], until: int) -> Iterator[SegmentResult]:
        """Run batches to a step, and yield their segments as tasks finish.

        On Ctrl-C, the segments of the tasks that run are yielded before KeyboardInterrupt is
        raised.
        """
        coming = iter(batches)
        try:
            while True:
                while self.has_room and (batch := next(coming, None)) is not None:
                    if batch.step < until:
                        self.dispatch(batch, until)
                if not self.is_busy:
                    return
                for _, results in self.arrived():
                    yield from results
        except KeyboardInterrupt:
            for _, results in self.wind_down():
                yield from results
            raise

    def _results(self, batch: TrialBatch, done: Done) -> Results:
        """Return the segments of a task, and move its batch to the task's end."""
        count, results = len(batch.trials), []
        steps = done.segments[-1].stop - batch.step
        self._devices = max(self._devices, len(done.worker.devices))
        self._seconds[batch.group] = max(done.seconds, 1e-6) / (count * steps)
        waited, batch.waited = done.compile_seconds + batch.waited, 0.0
        for segment in done.segments:
            span = np.full(count, segment.start), np.full(count, segment.stop)
            metrics, evaluations = segment.metrics, segment.evaluations
            results.append(SegmentResult(batch, *span, metrics, evaluations, waited))
            waited = 0.0
        batch.steps_completed, batch.states = results[-1].stop, NotStarted()
        if done.states is not None and self._experiment.state_specs:
            spec = self._experiment.state_specs[batch.group]
            each = zip(done.states, spec.data, strict=True)
            batch.states = OnHost([uncarried(x, wanted.dtype) for x, wanted in each])
        return results

    def states(self, batch: TrialBatch) -> HostStates:
        """Return the states of a batch in the host's memory."""
        if isinstance(batch.states, OnHost):
            return batch.states.leaves
        return self._checkpoints.load(batch.trials)
