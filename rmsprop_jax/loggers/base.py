"""The work that all loggers share: which values are new, which run a trial has, when a run ends."""

import abc
import dataclasses
import importlib
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from rmsprop_jax._tune.interrupts import deferred
from rmsprop_jax._tune.space.values import Value, is_real, label
from rmsprop_jax._tune.trials.progress import Report, TrialReport
from rmsprop_jax._tune.trials.status import UNFINISHED

INTERRUPTED = "interrupted"
"""The end state of a trial that was under way when a call ended."""

Rows = dict[int, dict[str, float]]
"""For each step, in order, the values of the metrics."""


class End(NamedTuple):
    """How a run ended."""

    status: str
    """"complete", "pruned", "failed", or "interrupted"."""
    step: int
    """The steps that the trial had run."""


@dataclasses.dataclass
class Run:
    """An open run.

    Attributes:
      handle: the run's object, file, or id in the tracker.
      hyperparameters: the hyperparameters that the tracker has.
      last: the newest step of each metric that the tracker has.
      floor: a step up to which the tracker takes no more values.
      step: the steps of the trial up to which the tracker has all values.
    """

    handle: Any
    hyperparameters: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    last: dict[str, int] = dataclasses.field(default_factory=dict[str, int])
    floor: int = -1
    step: int = 0


class Logger(abc.ABC):
    """A callback that keeps one run per trial in a tracker.

    A resumed sweep reports steps again that ran after its newest checkpoint. The tracker itself
    says which steps it has, so that each value is written once. Ctrl-C waits for a call of the
    logger, so that no run is open in the tracker that the logger does not know.
    """

    def __init__(self):
        self._sweep: str | None = None
        self._ends: dict[int, End] = {}
        self._open: dict[int, Run] = {}

    @deferred()
    def start(self, sweep: str, report: Report) -> None:
        """Find the runs of the sweep in the tracker, and write what they lack of its folder.

        `rj.sweep` calls this method at the beginning of a call.

        Args:
          sweep: the id of the sweep.
          report: the trials that the sweep's folder has.
        """
        self._sweep, self._ends, self._open = sweep, {}, {}
        for number, end in self._find(sweep).items():
            if end is None:  # a kill left it open
                self._open[number] = self._reopen(number)
            else:
                self._ends[number] = end
        for trial in report:
            # A member of a population has its next hyperparameters already.
            self._log(trial, with_changes=trial.status != UNFINISHED)

    @deferred()
    def __call__(self, report: Report) -> None:
        """Write the new values of some trials, and end the runs of those that have ended."""
        if self._sweep is None:
            raise RuntimeError(
                f"a logger must hear how a call begins, but {type(self).__name__} got a report "
                "before start(sweep, report). Pass the logger itself, callback=logger, or call its "
                "start, pruned, and close from those of your own callback."
            )
        for trial in report:
            self._log(trial, with_changes=True)

    def pruned(self, report: Report) -> None:
        """End the runs of trials that a scheduler or a pruner ended."""
        self(report)

    @deferred()
    def close(self) -> None:
        """End all open runs as interrupted. `rj.sweep` calls this method when a call ends."""
        for number, run in list(self._open.items()):
            self._finish(number, End(INTERRUPTED, run.step))
        self._sweep = None

    def _log(self, trial: TrialReport, with_changes: bool) -> None:
        """Write a trial's new values, and end its run if the trial has ended.

        Args:
          trial: the report of the trial.
          with_changes: whether to write the numbers that a population changed.
        """
        has_ended, end = trial.status != UNFINISHED, self._ends.get(trial.number)
        if end is not None:  # the run is closed, with all values up to its end
            if end == (trial.status, trial.step) or (not has_ended and trial.step <= end.step):
                return
            del self._ends[trial.number]
            self._open[trial.number] = self._reopen(trial.number)
        elif trial.number not in self._open:
            self._open[trial.number] = self._create(trial.number)
        run = self._open[trial.number]
        point = {self._name(k): plain(v) for k, v in trial.point.items()} | {"seed": trial.seed}
        if missing := {k: v for k, v in point.items() if k not in run.hyperparameters}:
            self._describe(run, missing)
            run.hyperparameters |= missing
        values: dict[str, tuple[Any, Any]] = {
            name: trial.series.get(name, ([trial.step], [value]))
            for name, value in trial.metrics.items()
        }
        for name in self._changed(run, point) if with_changes else ():
            values[f"hp/{name}"] = [trial.step], [point[name]]
        if rows := self._new_rows(run, values):
            self._write(run, rows)
        run.step = max(run.step, trial.step)
        if has_ended:
            self._finish(trial.number, End(trial.status, trial.step))

    def _changed(self, run: Run, point: dict[str, Any]) -> list[str]:
        """Return the names of the numbers that a population has changed, now or before."""
        return [
            name
            for name, value in point.items()
            if is_real(value)
            and np.isfinite(value)  # W&B has no others
            and (f"hp/{name}" in run.last or float(run.hyperparameters[name]) != value)
        ]

    def _new_rows(self, run: Run, values: dict[str, tuple[Any, Any]]) -> Rows:
        """Return the values that the run lacks, by step, and note that it will have them."""
        rows: Rows = defaultdict(dict)
        for name, (steps, numbers) in values.items():
            name = self._name(name)
            first = np.searchsorted(steps, run.last.get(name, run.floor), side="right")
            new = np.asarray(numbers[first:], np.float64).tolist()
            for step, number in zip(np.asarray(steps[first:]).tolist(), new, strict=True):
                rows[step][name] = number
                run.last[name] = step
        return dict(sorted(rows.items()))

    def _finish(self, number: int, end: End) -> None:
        """End the run of a trial."""
        self._end(self._open[number], end)
        del self._open[number]
        self._ends[number] = end

    # The tracker.

    @abc.abstractmethod
    def _find(self, sweep: str) -> dict[int, End | None]:
        """Return how the run of each trial ended, by the trial's number; None for an open run."""

    @abc.abstractmethod
    def _create(self, number: int) -> Run:
        """Return a new run for a trial."""

    @abc.abstractmethod
    def _reopen(self, number: int) -> Run:
        """Return the run of a trial, opened again, and what the tracker has of it."""

    @abc.abstractmethod
    def _describe(self, run: Run, hyperparameters: dict[str, Any]) -> None:
        """Write hyperparameters: bools, numbers, and text."""

    @abc.abstractmethod
    def _write(self, run: Run, rows: Rows) -> None:
        """Write values that the tracker lacks."""

    @abc.abstractmethod
    def _end(self, run: Run, end: End) -> None:
        """Write how a run ended, and close it."""

    def _name(self, name: str) -> str:
        """Return the name that a metric or a hyperparameter has in the tracker."""
        return name


def plain(value: Value) -> bool | int | float | str:
    """Return a hyperparameter's value as a bool, a number, or text."""
    if isinstance(value, np.bool_ | np.integer | np.floating):
        return value.item()
    return value if isinstance(value, bool | str) or is_real(value) else label(value)


def library(module: str, extra: str) -> Any:
    """Import and return a module of a tracker.

    Args:
      module: the name of the module.
      extra: the extra of this package that installs the tracker.

    Raises:
      ImportError: if the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module.split('.')[0]} must be installed for this logger. Run: "
            f'pip install "rmsprop_jax[{extra}]".'
        ) from error
