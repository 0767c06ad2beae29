"""The jobs of one structure, a round at a time: begun, gone on with, fetched, its states moved."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rmsprop_jax._tune.compile.compiled import DeviceLayout
from rmsprop_jax._tune.compile.group_compiler import GroupPrograms
from rmsprop_jax._tune.compile.kernels import GroupKernels, jobs_of
from rmsprop_jax._tune.compile.narrow_dtypes import uncarried
from rmsprop_jax._tune.run.cluster import Cluster

ROUND_SECONDS = (
    0.5  # tiny jobs share a round until a call lasts as long: progress is shown by calls
)
FIRST_CALLS = 4  # of one batch on each device, before rounds grow; the first is slower
TIMED_CALLS = 10  # after which none grows any more

States = list[np.ndarray]
"""A state's arrays, each with a leading axis over trials."""


class TrialBatch:
    """Some trials of a structure that run side by side, and where each stands.

    Args:
      trials: which.
      reached: the steps that each has behind it.
      first: the device of the first of them; the others follow in turn.
    """

    def __init__(self, trials: np.ndarray, reached: np.ndarray | int, first: int = 0):
        self.trials, self.steps_completed = trials, np.full(len(trials), reached)
        self.first = first
        self.states: list[jax.Array] | None = None
        """On the devices."""
        self.host: States | None = None
        """On the host, where they wait there."""
        self.jobs: Any = None
        """On the devices."""

    @property
    def step(self) -> int:
        """Where all of them stand."""
        assert (self.steps_completed == self.steps_completed[0]).all()
        return int(self.steps_completed[0])


class Call(NamedTuple):
    """What one call of a program gave, once it is fetched."""

    live: TrialBatch
    start: np.ndarray
    """For each trial the steps that it had behind it."""
    stop: np.ndarray
    """And has now."""
    metrics: dict[str, np.ndarray]
    """Of `train`, or of `step`: for each an array of shape (trials, steps of the longest
    segment)."""
    evaluations: dict[str, np.ndarray]
    """Of `evaluate`: for each an array of shape (trials,)."""


class Dispatched(NamedTuple):
    """A call on the devices, not waited for."""

    live: TrialBatch
    start: np.ndarray
    stop: np.ndarray
    out: Any
    evaluations: Any


class CompiledGroup:
    """One structure's programs, and what runs them.

    Args:
      pieces: what runs.
      programs: compiled.
      processes: where to run.
      args: placed.
    """

    def __init__(
        self, pieces: GroupKernels, programs: GroupPrograms, processes: Cluster, args: Any
    ):
        self.plan, self.group = pieces.plan, pieces.plan.groups[pieces.group]
        self._spec = pieces.traces.state
        self.programs, self._processes, self._args = programs, processes, args
        self._timed, self._fastest, self._batches = 0, np.inf, 1

    @property
    def layout(self) -> DeviceLayout:
        return self.programs.layout

    def form(self, trials: np.ndarray, reached: np.ndarray, first: int = 0) -> Iterator[TrialBatch]:
        """The trials in rounds, each as long as rounds are by then; those that stand at one step
        together.

        Args:
          trials: of this structure.
          reached: for each the steps that it has behind it.
          first: the device of the first of each round.
        """
        for step in np.unique(reached).tolist():
            mine, at = trials[reached == step], 0
            while at < len(mine):
                size = self.layout.room(self._batches)
                yield TrialBatch(mine[at : at + size], step, first)
                at += size

    def timed(self, seconds: float, live: TrialBatch) -> None:
        """A call took so long: how many batches should share one?"""
        batches = max(1, int(self.layout.batches(len(live.trials))[0]))
        self._fastest = min(self._fastest, seconds / batches)
        self._timed += 1
        if self._batches < self.layout.capacity and FIRST_CALLS <= self._timed < TIMED_CALLS:
            fit = min(int(ROUND_SECONDS / self._fastest), self.layout.capacity)
            fit = self._processes.tell("batches of a round", fit)
            self._batches = max(self._batches, fit)

    def run_whole(self, live: TrialBatch, numbers: dict[str, np.ndarray]) -> Dispatched:
        """Start a round of a function."""
        count = len(live.trials)
        run = self.programs.whole
        jobs = run.place(jobs_of(self.plan, self.group, live.trials, numbers), count, live.first)
        _, out = run.start(jobs, count, self._args, first=live.first)
        return Dispatched(live, live.steps_completed, live.steps_completed + 1, out, {})

    def begin(
        self, live: TrialBatch, numbers: dict[str, np.ndarray], states: States | None
    ) -> None:
        """Have the states of a round on the devices: made anew, or these.

        Args:
          live: the round.
          numbers: of every trial of the sweep.
          states: of its trials, where they have gone some steps already.
        """
        count, first = len(live.trials), live.first
        jobs = jobs_of(self.plan, self.group, live.trials, numbers)
        live.jobs = self.programs.init.place(jobs, count, first)
        if states is None:
            live.states, _ = self.programs.init.start(live.jobs, count, self._args, first=first)
        else:
            live.states = self.programs.init.place(states, count, first)

    def advance(self, live: TrialBatch, stop: np.ndarray | int, batches: Any) -> Dispatched:
        """Start the steps of a round up to `stop`, and what `evaluate` says of it there.

        Trials may stand at different steps; those that share a batch run equally many.
        """
        count, start = len(live.trials), live.steps_completed
        stop = np.full(count, stop)
        lengths = (stop - start)[:: self.layout.batch_size].astype(np.int32)
        states, live.states = live.states, None
        live.states, out = self.programs.segment.start(
            live.jobs, count, self._args, at=start.astype(np.int32), spans=lengths,
            states=states, batches=batches, first=live.first,
        )  # fmt: skip
        live.steps_completed, evaluations = stop, {}
        if self.programs.evaluate is not None:
            _, evaluations = self.programs.evaluate.start(
                live.jobs, count, self._args, at=stop.astype(np.int32), states=live.states,
                first=live.first,
            )  # fmt: skip
        return Dispatched(live, start, stop, out, evaluations)

    def fetch(self, started: Dispatched) -> Call:
        """Wait for a call."""
        live, start, stop, out, evaluations = started
        count = len(live.trials)
        of_program = self.programs.whole or self.programs.segment
        # One at a time, each then freed: together they may be large.
        fetch = lambda out, program: program.fetch(out, count, live.first)
        metrics = {name: fetch(out.pop(name), of_program) for name in list(out)}
        if self.plan.stages:
            longest = int((stop - start).max())
            metrics = {name: x[:, :longest] for name, x in metrics.items()}
        if self.programs.evaluate is not None:
            evaluations = fetch(evaluations, self.programs.evaluate)
        return Call(live, start, stop, metrics, evaluations)

    def states(self, live: TrialBatch) -> States:
        """The states of a round, on the host: copies of their own."""
        assert live.states is not None
        assert self._spec is not None
        fetched = self.programs.segment.fetch(live.states, len(live.trials), live.first)
        each = zip(fetched, self._spec.data, strict=True)
        return [uncarried(np.array(x), wanted.dtype) for x, wanted in each]


def clock() -> Iterator[float]:
    """The seconds between one `next` and the one before; at first, since the clock was made."""

    def seconds_since(last: float) -> Iterator[float]:
        while True:
            now = time.perf_counter()
            yield now - last
            last = now

    return seconds_since(time.perf_counter())


def rows_of(states: States, rows: Sequence[int] | np.ndarray) -> States:
    """Some trials' states."""
    return [x[np.asarray(rows, int)] for x in states]
