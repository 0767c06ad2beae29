"""The jobs of one structure, a round at a time: begun, gone on with, fetched, its states moved."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rmsprop_jax._sweep.compiling import Programs
from rmsprop_jax._sweep.pieces import jobs_of
from rmsprop_jax._sweep.plan import Plan
from rmsprop_jax._sweep.processes import Processes
from rmsprop_jax._sweep.program import Layout

ROUND_SECONDS = (
    0.5  # tiny jobs share a round until a call lasts as long: progress is shown by calls
)
FIRST_CALLS = 4  # of one batch on each device, before rounds grow; the first is slower
TIMED_CALLS = 10  # after which none grows any more

States = list[np.ndarray]
"""A state's arrays, each with a leading axis over trials."""


class Live:
    """Some trials of a structure that run side by side, and where they stand."""

    def __init__(self, trials: np.ndarray, reached: int):
        self.trials, self.reached = trials, reached
        self.states: list[jax.Array] | None = None
        """On the devices."""
        self.host: States | None = None
        """On the host, where they wait there."""
        self.jobs: Any = None


class Call(NamedTuple):
    """What one call of a program gave, once it is fetched."""

    live: Live
    start: int
    """The steps that the trials had behind them."""
    stop: int
    """And have now."""
    metrics: dict[str, np.ndarray]
    """Of `train`, or of `step`: for each an array of shape (trials, steps of the segment)."""
    evaluations: dict[str, np.ndarray]
    """Of `evaluate`: for each an array of shape (trials,)."""


class Dispatched(NamedTuple):
    """A call on the devices, not waited for."""

    live: Live
    start: int
    stop: int
    out: Any
    evaluations: Any


class Structure:
    """One structure's programs, and what runs them.

    Args:
      plan, group: which of the plan's groups.
      programs: compiled.
      processes: where to run.
      args: placed.
    """

    def __init__(self, plan: Plan, group: int, programs: Programs, processes: Processes, args: Any):
        self.plan, self.group = plan, plan.groups[group]
        self.programs, self._processes, self._args = programs, processes, args
        self._timed, self._fastest, self._batches = 0, np.inf, 1

    @property
    def layout(self) -> Layout:
        return self.programs.layout

    def form(self, trials: np.ndarray, reached: np.ndarray) -> Iterator[Live]:
        """The trials in rounds, each as long as rounds are by then; those that stand at one step
        together.

        Args:
          trials: of this structure.
          reached: for each the steps that it has behind it.
        """
        for step in np.unique(reached).tolist():
            mine, at = trials[reached == step], 0
            while at < len(mine):
                size = self.layout.room(self._batches)
                yield Live(mine[at : at + size], step)
                at += size

    def timed(self, seconds: float, live: Live) -> None:
        """A call took so long: how many batches should share one?"""
        batches = max(1, int(self.layout.batches(len(live.trials))[0]))
        self._fastest = min(self._fastest, seconds / batches)
        self._timed += 1
        if self._batches < self.layout.capacity and FIRST_CALLS <= self._timed < TIMED_CALLS:
            fit = min(int(ROUND_SECONDS / self._fastest), self.layout.capacity)
            fit = int(self._processes.from_first(np.asarray(fit)))
            self._batches = max(self._batches, fit)

    def run_whole(self, live: Live, numbers: dict[str, np.ndarray]) -> Dispatched:
        """Start a round of a function."""
        count = len(live.trials)
        jobs = jobs_of(self.plan, self.group, live.trials, numbers)
        _, out = self.programs.whole.start(jobs, count, self._args)
        return Dispatched(live, 0, 1, out, {})

    def begin(self, live: Live, numbers: dict[str, np.ndarray], states: States | None) -> None:
        """Have the states of a round on the devices: made anew, or these.

        Args:
          live: the round.
          numbers: of every trial of the sweep.
          states: of its trials, where they have gone some steps already.
        """
        count = len(live.trials)
        live.jobs = jobs_of(self.plan, self.group, live.trials, numbers)
        if states is None:
            live.states, _ = self.programs.init.start(live.jobs, count, self._args)
        else:
            live.states = self._processes.place(self.layout.lay(states, count), "trial")

    def advance(self, live: Live, stop: int, batches: Any) -> Dispatched:
        """Start the steps of a round up to `stop`, and what `evaluate` says of it there."""
        count, start = len(live.trials), live.reached
        rows = np.full(-(-count // self.layout.batch_size), start, np.int32)
        spans = rows, np.full_like(rows, stop - start)
        states, live.states = live.states, None
        live.states, out = self.programs.segment.start(
            live.jobs, count, self._args, spans=spans, states=states, batches=batches
        )
        live.reached, evaluations = stop, {}
        if self.programs.evaluate is not None:
            _, evaluations = self.programs.evaluate.start(
                live.jobs, count, self._args, spans=np.full_like(rows, stop), states=live.states
            )
        return Dispatched(live, start, stop, out, evaluations)

    def fetch(self, started: Dispatched) -> Call:
        """Wait for a call."""
        live, start, stop, out, evaluations = started
        count = len(live.trials)
        of_program = self.programs.whole or self.programs.segment
        # One at a time, each then freed: together they may be large.
        metrics = {name: of_program.fetch(out.pop(name), count) for name in list(out)}
        if self.plan.stages:
            metrics = {name: x[:, : stop - start] for name, x in metrics.items()}
        if self.programs.evaluate is not None:
            evaluations = self.programs.evaluate.fetch(evaluations, count)
        return Call(live, start, stop, metrics, evaluations)

    def states(self, live: Live) -> States:
        """The states of a round, on the host: copies of their own."""
        assert live.states is not None
        fetched = self.programs.segment.fetch(live.states, len(live.trials))
        return [np.array(x) for x in fetched]


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
