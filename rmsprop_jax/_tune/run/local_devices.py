"""Batches on the devices of this call: formed, dispatched, fetched."""

import contextlib
from collections.abc import Generator, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from rmsprop_jax._tune.compile.group_compiler import GroupPrograms, SegmentOutputs, smaller_batch
from rmsprop_jax._tune.compile.kernels import GroupKernels
from rmsprop_jax._tune.compile.layout import DeviceLayout
from rmsprop_jax._tune.compile.narrow_dtypes import uncarried
from rmsprop_jax._tune.experiment import Experiment
from rmsprop_jax._tune.run.batch import (
    HostStates,
    NotStarted,
    OnDevice,
    OnDisk,
    OnHost,
    SegmentResult,
    TrialBatch,
)
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.session import Session
from rmsprop_jax._tune.training.state_spec import StateSpec

FIRST_WAVES = 4  # waves of one batch on each submesh, before waves grow; the first is slower
TIMED_WAVES = 10  # waves that are timed; later ones do not grow


class Handle(NamedTuple):
    """A segment that runs on the devices."""

    batch: TrialBatch
    start: np.ndarray
    stop: np.ndarray
    outputs: SegmentOutputs


class WaveSize:
    """The number of batches per submesh in a wave, which grows while waves are short.

    Args:
      layout: the layout of the waves.
      cluster: the processes, of which the leader decides.

    Attributes:
      batches: the number of batches per submesh.
    """

    def __init__(self, layout: DeviceLayout, cluster: Cluster):
        self._layout, self._cluster = layout, cluster
        self._timed, self._fastest, self.batches = 0, np.inf, 1
        self._last = cluster.machine.clock()

    def restart(self) -> None:
        """Begin to time a wave."""
        self._last = self._cluster.machine.clock()

    def measure(self, trials: int) -> None:
        """Record that a wave of this many trials ended, and begin to time the next wave."""
        now = self._cluster.machine.clock()
        seconds, self._last = now - self._last, now
        batches = max(1, int(self._layout.batches_of(trials)[0]))
        self._fastest = min(self._fastest, seconds / batches)
        self._timed += 1
        if self.batches < self._layout.capacity and FIRST_WAVES <= self._timed < TIMED_WAVES:
            most = self._cluster.machine.wave_seconds / self._fastest
            fit = min(int(most), self._layout.capacity)
            self.batches = max(self.batches, self._cluster.tell("batches of a wave", fit))


class CompiledGroup(NamedTuple):
    """One static group, ready to run."""

    programs: GroupPrograms
    state_spec: StateSpec | None
    wave_size: WaveSize


class LocalDevices:
    """The devices of this call, as the backend that runs batches of trials.

    Args:
      experiment: the experiment that the call asks for.
      session: the session, with the hyperparameters and the checkpoints of trials.
    """

    def __init__(self, experiment: Experiment, session: Session):
        self._experiment, self._cluster = experiment, experiment.cluster
        self._table, self._checkpoints = session.table, session.checkpoints
        self._groups: dict[int, CompiledGroup] = {}

    # Static groups.

    def compile(self, most: int | None = None) -> Generator[tuple[int, np.ndarray, float]]:
        """Yield each static group that has trials to run, once it is compiled.

        Args:
          most: a limit of the batch size; None for no limit.

        Yields:
          The number of the group, its trials that have not ended, and the seconds of the wait.
        """
        groups = enumerate(self._experiment.spec.groups)
        trials = {i: self._table.unfinished(group.points) for i, group in groups}
        counts = {i: len(x) for i, x in trials.items() if len(x)}
        with contextlib.closing(self._experiment.compile(counts, most)) as compiled:
            for kernels, programs, seconds in compiled:
                self.add(kernels, programs)
                yield kernels.group, trials[kernels.group], seconds

    def batches(self) -> Iterator[TrialBatch]:
        """Yield the trials that have not ended, in waves, group by group as groups are compiled.

        Run each wave before the next one is asked for: its time decides how large the next one is.
        """
        with contextlib.closing(self.compile()) as groups:
            for group, trials, seconds in groups:
                wave_size = self.wave_size(group)
                wave_size.restart()
                steps = self._table.data.steps_completed[trials]
                for batch in self.form(group, trials, steps):
                    batch.waited, seconds = seconds, 0.0
                    yield batch
                    wave_size.measure(len(batch.trials))

    @property
    def stops(self) -> list[int]:
        """The steps at which all trials wait for each other, with a scheduler or `batches`."""
        return self._experiment.spec.schedule.evaluation_steps.tolist()

    def add(self, kernels: GroupKernels, programs: GroupPrograms) -> None:
        """Add the compiled programs of a static group."""
        wave_size = WaveSize(programs.layout, self._cluster)
        self._groups[kernels.group] = CompiledGroup(programs, kernels.traces.state, wave_size)

    def layout(self, group: int) -> DeviceLayout:
        return self._groups[group].programs.layout

    def wave_size(self, group: int) -> WaveSize:
        return self._groups[group].wave_size

    # Batches of trials.

    def form(
        self, group: int, trials: np.ndarray, steps_completed: np.ndarray, first: int = 0
    ) -> Iterator[TrialBatch]:
        """Yield the trials of a static group in waves. The trials of a wave are at one step.

        Args:
          group: the number of the static group.
          trials: the numbers of the trials.
          steps_completed: the steps that each trial has run.
          first: the number of the submesh with the first trial of each wave.
        """
        for step in np.unique(steps_completed).tolist():
            here, at = trials[steps_completed == step], 0
            while at < len(here):
                size = self.layout(group).slots(self.wave_size(group).batches)
                part = here[at : at + size]
                states = OnDisk() if step else NotStarted()
                yield TrialBatch(group, part, np.full(len(part), step), first, states)
                at += size

    def dispatch(self, batch: TrialBatch, until: np.ndarray | int, data: Any = None) -> Handle:
        """Start a segment of a batch, and its evaluation.

        Trials may be at different steps. Those that share a `vmap` must run the same number of
        steps.

        Args:
          batch: a batch that this backend formed.
          until: the step at which the segment ends, one for all or one for each trial.
          data: the data of the steps, on the devices; None without `batches`.
        """
        start, stop = batch.steps_completed, np.full(len(batch.trials), until)
        programs, leaves = self._groups[batch.group].programs, self._on_devices(batch)
        batch.states = NotStarted()
        leaves, outputs = programs.start(leaves, batch.placed, start, stop, batch.first, data)
        batch.states, batch.steps_completed = OnDevice(leaves), stop
        return Handle(batch, start, stop, outputs)

    def begin(self, batch: TrialBatch) -> None:
        """Put a batch on the devices, and make its states if it has none."""
        batch.states = OnDevice(self._on_devices(batch))

    def _on_devices(self, batch: TrialBatch) -> list[jax.Array]:
        """Return a batch's states on the devices."""
        if isinstance(batch.states, OnDevice):
            return batch.states.leaves
        inputs = self._table.inputs(batch.trials, batch.group)
        states = None if isinstance(batch.states, NotStarted) else self.states(batch)
        programs, count = self._groups[batch.group].programs, len(batch.trials)
        batch.placed, leaves = programs.place(inputs, states, count, batch.first)
        return leaves

    def fetch(self, handle: Handle) -> SegmentResult:
        """Wait for a segment, and copy its metrics to the host."""
        batch, start, stop, outputs = handle
        programs = self._groups[batch.group].programs
        metrics, evaluations = programs.fetch(outputs, len(batch.trials), batch.first)
        waited, batch.waited = batch.waited, 0.0
        return SegmentResult(batch, start, stop, metrics, evaluations, waited)

    def advance(self, batches: Iterable[TrialBatch], until: int) -> Iterator[SegmentResult]:
        """Run batches to a step, one after another, and yield their segments.

        A batch that is at the step or past it does not run.

        Args:
          batches: batches that this backend formed.
          until: an evaluation step.
        """
        data, schedule = self._experiment.data, self._experiment.spec.schedule
        try:
            for batch in batches:
                while batch.step < until:
                    stop = schedule.next_stop(batch.step)
                    placed = data.segment(schedule, batch.step) if data else None
                    handle = self.dispatch(batch, stop, placed)
                    if data:
                        data.prepare(schedule, stop)
                    yield self.fetch(handle)
        except jax.errors.JaxRuntimeError as error:
            sizes = [self.layout(group).batch_size for group in self._groups]
            smaller_batch(error, self._experiment.batch_size, sizes, may_retry=False)

    def states(self, batch: TrialBatch) -> HostStates:
        """Return the states of a batch in the host's memory."""
        if isinstance(batch.states, OnHost):
            return batch.states.leaves
        if not isinstance(batch.states, OnDevice):
            return self._checkpoints.load(batch.trials)
        group = self._groups[batch.group]
        assert group.state_spec is not None
        fetch = group.programs.segment.fetch
        fetched = fetch(batch.states.leaves, len(batch.trials), batch.first)
        each = zip(fetched, group.state_spec.data, strict=True)
        return [uncarried(np.array(x), wanted.dtype) for x, wanted in each]
