"""The finished trials of a sweep that runs."""

import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from tqdm import tqdm

from rmsprop_jax._sweep.results import SweepResult
from rmsprop_jax._sweep.store import Plan, Trials

Objective: TypeAlias = str | Callable[[dict[str, np.ndarray]], float]


class Ledger:
    """What is finished, in memory and, where there is a folder, on disk.

    Args:
      plan: what is asked.
      objective: a metric's name or a function.
      stored: what was finished before.
      write: writes a round, or None.
      start: when the sweep began, by `time.perf_counter`; until now it traced.
    """

    def __init__(
        self,
        plan: Plan,
        objective: Objective,
        stored: Trials,
        write: Callable[[Trials], None] | None,
        start: float,
    ):
        self._plan, self._objective, self._write = plan, objective, write
        self._trials = plan.no_trials(len(plan.points) * len(plan.seeds))
        self._done = np.zeros(len(self._trials.number), bool)
        self._failed, self._best = 0, np.nan
        self._enter(stored.number, stored.metrics)
        self._trials.seconds[:] = stored.seconds
        self._since, self._tracing = start, time.perf_counter() - start

    def unfinished(self, points: Sequence[int]) -> np.ndarray:
        """The trials of these points that are not finished: places in points × seeds."""
        seeds = len(self._plan.seeds)
        trials = (np.asarray(points)[:, None] * seeds + np.arange(seeds)).reshape(-1)
        return trials[~self._done[trials]]

    def record(
        self, trials: np.ndarray, metrics: dict[str, np.ndarray], compile_seconds: float
    ) -> None:
        """Enter a finished round."""
        values = self._enter(trials, metrics)
        now = time.perf_counter()
        compiling, self._tracing = self._tracing + compile_seconds, 0.0
        seconds = np.array([compiling, now - self._since - compiling])
        self._since = now
        self._trials.seconds[:] += seconds
        if self._write:
            self._write(Trials(trials, metrics, values, seconds))

    def _enter(self, trials: np.ndarray, metrics: dict[str, np.ndarray]) -> np.ndarray:
        for name, x in metrics.items():
            self._trials.metrics[name][trials] = x
        values = self._trials.objective[trials] = _objectives(self._objective, metrics)
        self._done[trials] = True
        whole = values[np.isfinite(values)]
        self._failed += len(values) - len(whole)
        pick = np.fmin if self._plan.mode == "min" else np.fmax
        self._best = pick.reduce(whole, initial=self._best)
        return values

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
        number = np.flatnonzero(self._done)
        _, metrics, objective, seconds = self._trials
        metrics = {name: x[number] for name, x in metrics.items()}
        return SweepResult(self._plan, Trials(number, metrics, objective[number], seconds.copy()))


def _objectives(objective: Objective, metrics: dict[str, np.ndarray]) -> np.ndarray:
    """The objective of each trial of a round, float64."""
    if isinstance(objective, str):
        values = metrics[objective]
        return (values if values.ndim == 1 else values[:, -1]).astype(float)
    trials = len(next(iter(metrics.values())))
    each = ({name: array[j] for name, array in metrics.items()} for j in range(trials))
    return np.array([float(objective(one)) for one in each])
