"""How far each trial of a sweep is, what it gave, and what of that is on disk."""

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from rmsprop_jax._tune.experiment_spec import ExperimentSpec, TrialData, no_trials
from rmsprop_jax._tune.results.result import SweepResult
from rmsprop_jax._tune.run.batch import Call
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.schedulers import SchedulerView
from rmsprop_jax._tune.trials.decision_log import AppliedDecision
from rmsprop_jax._tune.trials.objective import ObjectiveSpec


class TrialReport(NamedTuple):
    """One trial as it stands after a round."""

    number: int
    """Its place in the points × the seeds."""
    point: dict[str, Any]
    """Its hyperparameters, as they are now."""
    seed: int
    """Its seed, of which its key is made."""
    step: int
    """The steps that it has behind it; of a function, those of its longest metric."""
    metrics: dict[str, float]
    """The newest value of each metric."""


class Report(tuple[TrialReport, ...]):
    """What a callback gets after each round: the trials in it."""

    __slots__ = ()

    @property
    def trials(self) -> tuple[TrialReport, ...]:
        """The same."""
        return tuple(self)


class TrialTable:
    """What is known of each trial, in memory and, where there is a folder, on disk.

    Args:
      plan: what is asked.
      aim: what is looked for.
      stored: what is known from before, of all trials, and taken over; or no rows. With more rows
        than the plan has trials there is room for points to come (`extend`).
      write: writes trials, or None.
      start: when the sweep began, by `time.perf_counter`; until now it traced.
      processes: of which the leader evaluates an objective.

    Attributes:
      trials: of all, in the order of the points, then the seeds.
      numbers: for each traced hyperparameter the number of every trial, as it is now.
      mode: "min" or "max".
    """

    def __init__(
        self,
        plan: ExperimentSpec,
        aim: ObjectiveSpec,
        stored: TrialData,
        write: Callable[[TrialData, dict[str, slice], int], None] | None,
        start: float,
        processes: Cluster,
    ):
        self._plan, self._aim, self._write, self.mode = plan, aim, write, aim.mode
        self._processes = processes
        self._steps = {name: plan.steps(name) for name in filter(plan.has_steps, plan.metrics[0])}
        known = stored if len(stored.number) else no_trials(plan, plan.trials)
        own = lambda x: np.require(x, requirements="W")  # what another process told is read-only
        of = lambda arrays: {name: own(arrays[name]) for name in plan.metrics[0] if name in arrays}
        number, metrics, newest, *rest = known
        self.trials = TrialData(number, of(metrics), of(newest), *map(own, rest))
        self.numbers: dict[str, np.ndarray] = {}
        self.extend(plan)
        self._judged = np.zeros(len(number), np.int64)
        self._objective = np.full(len(number), np.nan)
        self._committed = self.trials.steps_completed.copy()
        # Where each trial ends. A round of a stopped one may have been moved away.
        self._until = np.where(self.trials.stopped > 0, self.trials.steps_completed, self._end)
        self._since, self._tracing = start, time.perf_counter() - start
        self._pending = np.zeros(2)  # seconds that no written round has yet
        self.judge(np.flatnonzero(self.finished))
        self._bar: Any = None

    def extend(self, plan: ExperimentSpec) -> None:
        """More points are asked for: those of this plan, of which the first are known."""
        self._plan = plan
        for name, known in plan.numbers().items():
            self.numbers[name] = np.zeros(len(self.trials.number), known.dtype)
            self.numbers[name][: len(known)] = known

    # Where the trials stand.

    @property
    def _end(self) -> int:
        return self._plan.stages.steps if self._plan.stages else 1

    @property
    def finished(self) -> np.ndarray:
        """bool array: ran to the end."""
        return self.trials.steps_completed >= self._end

    @property
    def ended(self) -> np.ndarray:
        """bool array: ran to the end, or was stopped."""
        return self.trials.steps_completed >= self._until

    @property
    def over(self) -> np.ndarray:
        """bool array: ended, and written."""
        return self._committed >= self._until

    def unfinished(self, points: Sequence[int]) -> np.ndarray:
        """The trials of these points that have not ended: places in points × seeds."""
        trials = self._plan.trials_of(points)
        return trials[~self.ended[trials]]

    def go_back(self, trials: np.ndarray, reached: np.ndarray) -> None:
        """Trials whose newest state is of an earlier step than their metrics."""
        self.trials.steps_completed[trials] = reached
        self._committed[trials] = np.minimum(self._committed[trials], reached)

    # What comes in.

    def record(self, call: Call, compile_seconds: float) -> None:
        """Enter what a call gave, and take it out of there: it may be held while the next runs. It
        is kept before the objective, which may raise, sees it."""
        now = time.perf_counter()
        compiling, self._tracing = self._tracing + compile_seconds, 0.0
        seconds = np.array([compiling, now - self._since - compiling])
        self._since = now
        self.trials.seconds[:] += seconds
        self._pending += seconds
        trials, known = call.live.trials, self.trials
        spans = spans_of(call.start, call.stop)
        for name in list(call.metrics):
            x = call.metrics.pop(name)
            into = known.metrics[name]
            if name not in self._steps:
                into[trials] = x
            elif self._plan.stages:
                for start, stop, rows in spans:
                    at = self._columns(name, start, stop)
                    columns = self._steps[name][at] - start - 1
                    into[trials[rows], at] = x[np.ix_(rows, columns)]
                    known.newest[name][trials[rows]] = x[rows, stop - start - 1]
            else:
                into[trials, : x.shape[1]] = x
                known.newest[name][trials] = x[:, -1]
        for name, x in call.evaluations.items():
            for _, stop, rows in spans:
                at = self._columns(name, stop - 1, stop)
                known.metrics[name][trials[rows], at] = x[rows, None]
            known.newest[name][trials] = x
        known.steps_completed[trials], known.asked[trials] = call.stop, self._end
        if not self._plan.stages:
            self.commit(trials)
        self.judge(trials)

    def _columns(self, name: str, start: int, stop: int) -> slice:
        """Of the kept steps those in (start, stop]."""
        return slice(*np.searchsorted(self._steps[name], [start, stop], side="right").tolist())

    def commit(self, trials: np.ndarray) -> None:
        """Write what is known of these trials and not written yet."""
        if self._write is None:
            return
        since, now = self._committed[trials], self.trials.steps_completed[trials]
        for start, stop, some in spans_of(since, now):
            rows = trials[some]
            if start == stop:
                continue
            if self._plan.stages:
                columns = {name: self._columns(name, start, stop) for name in self._steps}
            else:
                ends = self._plan.ends()
                last = {n: int(end[rows // self._seeds].max()) for n, end in ends.items()}
                columns = {name: slice(0, stop) for name, stop in last.items()}
            known = self.trials
            cut = {n: x[:, columns[n]] if n in columns else x for n, x in known.metrics.items()}
            known = known._replace(metrics=cut)
            for part in known.parts(rows):
                some = known.take(part)._replace(seconds=self._pending)
                self._write(some, columns, start if self._plan.stages else 0)
                self._pending = np.zeros(2)
                self._committed[part] = stop

    @property
    def _seeds(self) -> int:
        return len(self._plan.seeds)

    # What is looked for.

    def judge(self, trials: np.ndarray) -> None:
        """Evaluate the objective of these trials where they stand, once for all processes."""
        if self._processes.count == 1 or isinstance(self._aim.objective, str):
            self._evaluate(trials)
            return
        if self._processes.first:
            self._evaluate(trials)
        self._objective[trials] = self._processes.from_first(self._objective[trials])
        self._judged[trials] = self.trials.steps_completed[trials]

    def _evaluate(self, trials: np.ndarray) -> None:
        known = self.trials
        if isinstance(self._aim.objective, str):  # where the newest value counts, copy no series
            known = known._replace(metrics=known.metrics | known.newest)
        for part in known.parts(trials):
            self._objective[part] = self._aim.values(self._plan, known.take(part))
            self._judged[part] = known.steps_completed[part]

    def fail(self, trials: np.ndarray) -> None:
        """The objective of these trials could not be computed: it is NaN."""
        self._objective[trials], self._judged[trials] = np.nan, self.trials.steps_completed[trials]

    def table(self, boundary: int, arrived: set[int]) -> SchedulerView:
        """All points as they stand after this step, for a scheduler; ValueError where trials of
        some did not arrive there just now."""
        shape = len(self._plan.points), self._seeds
        active = (self.trials.stopped == 0).reshape(shape).all(1)
        if not arrived.issuperset(self._plan.trials_of(np.flatnonzero(active).tolist()).tolist()):
            raise ValueError(
                f"what the scheduler decided after step {boundary} is missing from the folder, and "
                "cannot be decided again, since trials went on from it: put a copy of it back, or "
                "give another path."
            )
        objective = np.where(active[:, None], self._objective.reshape(shape), np.nan)
        objective = np.where(np.isfinite(objective), objective, np.nan)
        points = [self.point(i * self._seeds) for i in range(shape[0])]
        return SchedulerView(points, objective, active, self._plan.group_of(), self.mode)

    def final(self) -> np.ndarray:
        """What each point came to: float64 of shape (points, seeds), NaN where a trial did not
        finish, or failed."""
        values = np.where(self.finished & np.isfinite(self._objective), self._objective, np.nan)
        return values.reshape(-1, self._seeds)

    def feasible(self) -> np.ndarray:
        """bool array, shape (points,): whether each keeps the constraints of a study's sampler."""
        return np.all(self.trials.feasible.reshape(-1, self._seeds), axis=1)

    def point(self, trial: int) -> dict[str, Any]:
        """A trial's hyperparameters, as they are now."""
        return self._plan.points[trial // self._seeds] | self._numbers_of(trial)

    def _numbers_of(self, trial: int) -> dict[str, float]:
        traced = self._plan.points.traced(trial // self._seeds)
        return {name: self.numbers[name][trial].item() for name in traced}

    # What a scheduler decided.

    def stop(self, decided: AppliedDecision) -> np.ndarray:
        """End points; their trials."""
        for point, why in decided.stopped.items():
            trials = self._plan.trials_of([point])
            self.trials.stopped[trials], self._until[trials] = why, decided.boundary
        return self._plan.trials_of(list(decided.stopped))

    def copy(self, decided: AppliedDecision, trials: Iterable[int]) -> dict[int, int]:
        """Give those of these trials that copy the numbers with which they go on; for each the
        trial whose state it takes."""
        donors = {}
        for trial in trials:
            point, seed = divmod(trial, self._seeds)
            if point in decided.copies:
                donor, numbers = decided.copies[point]
                donors[trial] = donor * self._seeds + seed
                for name, number in numbers.items():
                    self.numbers[name][trial] = number
        return donors

    def stop_known(self, known: Sequence[AppliedDecision]) -> None:
        """Whom earlier decisions ended."""
        for decided in known:
            self.stop(decided)

    def replay(self, known: Sequence[AppliedDecision]) -> None:
        """With which numbers trials go on, whose states come from after a decision."""
        for decided in known:
            past = np.flatnonzero(self.trials.steps_completed >= decided.boundary)
            self.copy(decided, past.tolist())

    # What people see.

    def bar(self, progress: bool) -> tqdm:
        """Of steps, or of trials where a trial is one step."""
        self._bar = tqdm(
            total=self._total(),
            initial=int(self.trials.steps_completed.sum()),
            unit="step" if self._plan.stages else "trial",
            disable=not progress,
        )
        self._bar.set_postfix_str(self.summary(), refresh=False)
        return self._bar

    def show(self) -> None:
        """Move the bar to where the trials are."""
        if self._bar is not None:
            self._bar.total = self._total()
            self._bar.set_postfix_str(self.summary(), refresh=False)
            self._bar.update(int(self.trials.steps_completed.sum()) - self._bar.n)

    def _total(self) -> int:
        return int(self._until.sum())

    def summary(self) -> str:
        """Trials finished, stopped, failed, and the best objective so far."""
        seen = self._judged > 0
        failed = int((seen & ~np.isfinite(self._objective)).sum())
        pick = np.fmin if self.mode == "min" else np.fmax
        whole = self._objective[seen & np.isfinite(self._objective) & self.trials.feasible]
        best = pick.reduce(whole, initial=np.nan)
        text = f"failed {failed}, best {'none' if np.isnan(best) else f'{best:.4g}'}"
        if not self._plan.stages:
            return text
        stopped = int((self.trials.stopped > 0).sum())
        return f"finished {int(self.finished.sum())}, stopped {stopped}, {text}"

    def report(self, trials: np.ndarray) -> Report:
        """Of these trials."""
        known, plan = self.trials, self._plan
        ends = {} if plan.stages else plan.ends()

        def one(trial):
            newest = lambda name: known.newest.get(name, known.metrics[name])[trial].item()
            step = int(known.steps_completed[trial])
            if not plan.stages:
                last = (self._steps[n][end[trial // self._seeds] - 1] for n, end in ends.items())
                step = int(max(last, default=1))
            metrics = {name: newest(name) for name in known.metrics}
            seed = plan.seeds[trial % self._seeds]
            return TrialReport(int(trial), self.point(trial), seed, step, metrics)

        return Report(map(one, trials.tolist()))

    def judged(self, trials: np.ndarray) -> np.ndarray:
        """The objective of these trials where they stand, float64."""
        return self._objective[trials]

    def result(self, plan: ExperimentSpec | None = None, **known: Any) -> SweepResult:
        """What is there: of a function the finished trials, of a training all that has begun. Where
        the objective raised, it counts as NaN.

        Args:
          plan: for a result of its own; of the same trials, some of the steps.
          **known: what else a result is told.
        """
        late = np.flatnonzero(
            (self.trials.steps_completed > 0) & (self._judged != self.trials.steps_completed)
        )
        with contextlib.suppress(Exception, KeyboardInterrupt):  # Ctrl-C came in between
            self._evaluate(late)  # here, since other processes may have left
        rows = np.flatnonzero(self.trials.steps_completed > 0)
        # All is a view, no copy.
        every = slice(None) if len(rows) == len(self.trials.number) else rows
        trials, plan = self.trials.take(every), plan or self._plan
        for name, steps in self._steps.items():
            kept = np.isin(steps, plan.steps(name))
            if not kept.all():
                trials.metrics[name] = trials.metrics[name][:, kept]
        return SweepResult(
            plan,
            trials._replace(seconds=self.trials.seconds.copy()),
            self._aim,
            self._objective[every],
            **known,
        )


def spans_of(start: np.ndarray, stop: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
    """The spans of steps that some trials went, each once, and which of them went it."""
    found: dict[tuple[int, int], list[int]] = {}
    for i, pair in enumerate(zip(start.tolist(), stop.tolist(), strict=True)):
        found.setdefault(pair, []).append(i)
    return [(a, b, np.array(found[a, b])) for a, b in sorted(found)]
