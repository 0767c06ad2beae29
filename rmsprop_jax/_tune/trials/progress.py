"""The progress of a sweep while it runs: the progress bar, and the report of a callback."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm

from rmsprop_jax._tune.trials.objective import read_only
from rmsprop_jax._tune.trials.status import UNFINISHED
from rmsprop_jax._tune.trials.table import TrialTable


class TrialReport(NamedTuple):
    """A trial's progress after a segment."""

    number: int
    """The number of the trial, its place among points × seeds."""
    point: dict[str, Any]
    """The trial's hyperparameters, as they are now."""
    seed: int
    """The trial's seed, from which its key is made."""
    step: int
    """The steps that the trial has run; for a function, those of its longest metric."""
    metrics: dict[str, float]
    """The newest value of each metric."""
    status: str = UNFINISHED
    """"unfinished" while the trial is under way, then "complete", "pruned", or "failed", as in
    `SweepResult.status`."""
    series: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # noqa: RUF012 (nobody writes to it)
    """The recorded steps and values of each series up to now, two read-only arrays of equal
    length."""


class Report(tuple[TrialReport, ...]):
    """The argument of a callback: a report of each trial of a wave."""

    __slots__ = ()

    @property
    def trials(self) -> tuple[TrialReport, ...]:
        """The reports of the trials, as a plain tuple."""
        return tuple(self)


@runtime_checkable
class Listener(Protocol):
    """A callback that also hears how a call begins and ends, and which trials are pruned.

    `rj.loggers` has such callbacks.
    """

    def start(self, sweep: str, report: Report) -> object: ...
    def __call__(self, report: Report) -> object: ...
    def pruned(self, report: Report) -> object: ...
    def close(self) -> object: ...


def report_of(table: TrialTable, trials: np.ndarray) -> Report:
    """Return the report of these trials."""
    spec, data = table.spec, table.data
    metrics = {name: read_only(values) for name, values in data.metrics.items()}

    def report(trial: int, status: str) -> TrialReport:
        newest = lambda name: data.newest.get(name, data.metrics[name])[trial].item()
        completed, group = int(data.steps_completed[trial]), table.group_of(trial)
        lengths = (spec.metrics[group][name].shape[0] for name in spec.recorded_steps)
        step = max((int(spec.schedule.reach(n, completed)) for n in lengths), default=completed)
        values, series = {name: newest(name) for name in data.metrics}, {}
        for name, steps in spec.recorded_steps.items():
            count = spec.count_recorded(group, name, completed)
            series[name] = read_only(steps[:count]), metrics[name][trial, :count]
        seed = spec.seeds[trial % len(spec.seeds)]
        return TrialReport(trial, table.point(trial), seed, step, values, status, series)

    return Report(map(report, trials.tolist(), table.statuses(trials).tolist()))


class ProgressBar:
    """A bar of the steps that all trials have run, or of the trials of a function.

    Args:
      table: the trial table.
      is_shown: whether to draw the bar.
    """

    def __init__(self, table: TrialTable, is_shown: bool):
        self._table = table
        self._bar = tqdm(
            total=table.steps_to_run,
            initial=int(table.data.steps_completed.sum()),
            unit=table.spec.schedule.unit,
            disable=not is_shown,
        )
        self._bar.set_postfix_str(self.summary(), refresh=False)

    def show(self) -> None:
        """Move the bar to the progress of the trials."""
        self._bar.total = self._table.steps_to_run
        self._bar.set_postfix_str(self.summary(), refresh=False)
        self._bar.update(int(self._table.data.steps_completed.sum()) - self._bar.n)

    def close(self) -> None:
        self._bar.close()

    def summary(self) -> str:
        """Return the numbers of complete, pruned, and failed trials, and the best objective.

        The best is a single trial's objective at its present step, also of a trial that is under
        way or pruned. `SweepResult.ranked` ranks points by their mean over complete seeds.
        """
        table, objectives = self._table, self._table.objectives()
        is_finite = np.isfinite(objectives)
        failed = int((table.judged & ~is_finite).sum())
        pick = np.fmin if table.objective.mode == "min" else np.fmax
        counted = objectives[table.judged & is_finite & table.data.feasible]
        best = pick.reduce(counted, initial=np.nan)
        text = f"failed {failed}, best {'none' if np.isnan(best) else f'{best:.4g}'}"
        if table.spec.schedule.unit == "trial":  # the bar itself says how many are complete
            return text
        pruned = int((table.data.pruned > 0).sum())
        return f"complete {int(table.complete.sum())}, pruned {pruned}, {text}"
