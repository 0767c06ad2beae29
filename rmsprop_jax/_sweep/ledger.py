"""The finished trials of a sweep that runs."""

import contextlib
import time
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from rmsprop_jax._sweep.objective import Aim
from rmsprop_jax._sweep.plan import Plan, Trials
from rmsprop_jax._sweep.results import SweepResult


class Ledger:
    """What is finished, in memory and, where there is a folder, on disk.

    Args:
      plan: what is asked.
      aim: what is looked for.
      train: for the result, to train a point again.
      stored: what was finished before.
      write: writes a round, or None.
      start: when the sweep began, by `time.perf_counter`; until now it traced.
    """

    def __init__(
        self,
        plan: Plan,
        aim: Aim,
        train: Callable,
        stored: Trials,
        write: Callable[[Trials], None] | None,
        start: float,
    ):
        self._plan, self._aim, self._train, self._write = plan, aim, train, write
        self._trials = plan.no_trials(len(plan.points) * len(plan.seeds))
        self._done = np.zeros(len(self._trials.number), bool)
        self._judged = np.zeros(len(self._done), bool)
        self._objective = np.full(len(self._done), np.nan)
        self._failed, self._best = 0, np.nan
        self._enter(stored)
        self._judge(stored)
        self._trials.seconds[:] = stored.seconds
        self._since, self._tracing = start, time.perf_counter() - start

    def unfinished(self, points: Sequence[int]) -> np.ndarray:
        """The trials of these points that are not finished: places in points × seeds."""
        trials = self._plan.trials_of(points)
        return trials[~self._done[trials]]

    def record(
        self, trials: np.ndarray, metrics: dict[str, np.ndarray], compile_seconds: float
    ) -> None:
        """Enter a finished round. It is kept before the objective, which may raise, sees it."""
        now = time.perf_counter()
        compiling, self._tracing = self._tracing + compile_seconds, 0.0
        seconds = np.array([compiling, now - self._since - compiling])
        self._since = now
        self._trials.seconds[:] += seconds
        new = Trials(trials, metrics, seconds)
        self._enter(new)
        if self._write:
            self._write(new)
        self._judge(new)

    def _enter(self, new: Trials) -> None:
        for name, x in new.metrics.items():
            into = self._trials.metrics[name]
            into[(new.number, *map(slice, x.shape[1:]))] = x
        self._done[new.number] = True

    def _judge(self, new: Trials) -> None:
        values = self._objective[new.number] = self._aim.values(self._plan, new)
        self._judged[new.number] = True
        whole = values[np.isfinite(values)]
        self._failed += len(values) - len(whole)
        pick = np.fmin if self._aim.mode == "min" else np.fmax
        self._best = pick.reduce(whole, initial=self._best)

    def bar(self, progress: bool) -> tqdm:
        bar = tqdm(
            total=len(self._done),
            initial=int(self._done.sum()),
            unit="trial",
            disable=not progress,
        )
        bar.set_postfix_str(self.summary(), refresh=False)
        return bar

    def summary(self) -> str:
        best = "none" if np.isnan(self._best) else f"{self._best:.4g}"
        return f"failed {self._failed}, best {best}"

    def result(self) -> SweepResult:
        """What is finished. Where the objective raised, it counts as NaN."""
        if (late := np.flatnonzero(self._done & ~self._judged)).size:  # Ctrl-C came in between
            metrics = {name: x[late] for name, x in self._trials.metrics.items()}
            with contextlib.suppress(Exception, KeyboardInterrupt):
                self._judge(Trials(late, metrics, np.zeros(2)))
        number = np.flatnonzero(self._done)
        metrics = {name: x[number] for name, x in self._trials.metrics.items()}
        trials = Trials(number, metrics, self._trials.seconds.copy())
        return SweepResult(self._plan, trials, self._aim, self._objective[number], self._train)
