"""The trial table: the progress and the metrics of each trial, and how much is on disk."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rmsprop_jax._tune.experiment_spec import ExperimentSpec
from rmsprop_jax._tune.run.batch import SegmentResult
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.schedulers import SchedulerView
from rmsprop_jax._tune.space.seeds import key_data_of
from rmsprop_jax._tune.trials.data import TrialData, empty_trials
from rmsprop_jax._tune.trials.decision_log import AppliedDecision
from rmsprop_jax._tune.trials.objective import ObjectiveSpec
from rmsprop_jax._tune.trials.status import statuses

WriteTrials = Callable[[TrialData, Mapping[str, slice], int], None]


class TrialTable:
    """The progress and the metrics of each trial.

    Args:
      spec: the experiment.
      objective: the objective that ranks trials.
      stored: the trials of a folder, whose arrays the table uses; no rows without a folder.
      write: the function that writes trials to the folder; None without a folder.
      start: the time at which the call began, by the machine's clock. The time until now counts
        as compiling, because the call traced.
      cluster: the processes, of which the leader evaluates an objective that is a function.
      capacity: the number of trials of a search, whose points come later (`extend`); 0 for a
        sweep.

    Attributes:
      data: the rows of all trials, in the order of the points, then the seeds.
      points: the hyperparameters of each point at step 0.
      numbers: for each traced hyperparameter the current value of every trial.
    """

    def __init__(
        self,
        spec: ExperimentSpec,
        objective: ObjectiveSpec,
        stored: TrialData,
        write: WriteTrials | None,
        start: float,
        cluster: Cluster,
        capacity: int = 0,
    ):
        self.spec, self.objective = spec, objective
        self._write, self._cluster = write, cluster
        if len(stored.number):
            own = lambda x: np.require(x, requirements="W")  # an array of another process is not
            self.data = jax.tree.map(own, stored)
        else:
            self.data = empty_trials(spec, capacity or spec.trials)
        count, seeds = len(self.data.number), len(spec.seeds)
        self.points: list[Mapping[str, Any]] = []
        self._group = np.zeros(count // seeds, int)
        self.numbers: dict[str, np.ndarray] = {}
        self._key_data = key_data_of(spec.seeds)
        self.extend(spec.points, spec.group_of())
        self._judged = np.zeros(count, np.int64)
        self._objective = np.full(count, np.nan)
        self._committed = self.data.steps_completed.copy()
        # The last step of each trial. `prune` sets it again from the decision, because a file of
        # the trial's metrics may have been moved away.
        pruned = self.data.pruned > 0
        self._end = np.where(pruned, self.data.steps_completed, spec.schedule.end)
        self._clock = cluster.machine.clock
        self._since, self._tracing = start, self._clock() - start
        self._pending = np.zeros(2)  # seconds that no file has yet
        self.judge(np.flatnonzero(self.complete))

    def extend(self, points: Iterable[Mapping[str, Any]], groups: np.ndarray) -> None:
        """Add points, each with the number of its static group."""
        first, seeds = len(self.points), len(self.spec.seeds)
        self.points.extend(points)
        self._group[first : len(self.points)] = groups
        for group in np.unique(groups).tolist():
            added = first + np.flatnonzero(groups == group)
            trials = self.spec.trials_of(added)
            for name, dtype in self.spec.groups[group].dtypes.items():
                values = np.array([self.points[i][name] for i in added.tolist()])
                wide = np.dtype(np.float64 if dtype.kind == "f" else np.int64)
                if name not in self.numbers:
                    self.numbers[name] = np.zeros(len(self.data.number), wide)
                elif wide.kind == "f":
                    self.numbers[name] = self.numbers[name].astype(wide, copy=False)
                self.numbers[name][trials] = np.repeat(values.astype(wide), seeds)

    def __len__(self) -> int:
        """Return the number of trials whose points are known."""
        return len(self.points) * len(self.spec.seeds)

    # The progress of trials.

    @property
    def complete(self) -> np.ndarray:
        """bool array: whether each trial has run all steps."""
        return self.data.steps_completed >= self.spec.schedule.end

    @property
    def ended(self) -> np.ndarray:
        """bool array: whether each trial is complete or pruned."""
        return self.data.steps_completed >= self._end

    @property
    def written(self) -> np.ndarray:
        """bool array: whether each trial has ended and all its metrics are on disk."""
        return self._committed >= self._end

    @property
    def steps_to_run(self) -> int:
        """The sum of the steps at which the trials end."""
        return int(self._end.sum())

    def statuses(self, trials: np.ndarray) -> np.ndarray:
        """Return the status of each of these trials, an array of text."""
        is_pruned = self._end[trials] < self.spec.schedule.end
        return statuses(~self.ended[trials], self._objective[trials], is_pruned)

    def unfinished(self, points: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the trials of these points that have not ended."""
        trials = self.spec.trials_of(points)
        return trials[~self.ended[trials]]

    @property
    def groups(self) -> np.ndarray:
        """int array: for each point the number of its static group."""
        return self._group[: len(self.points)]

    def group_of(self, trial: int) -> int:
        """Return the number of a trial's static group."""
        return int(self._group[trial // len(self.spec.seeds)])

    def point(self, trial: int) -> dict[str, Any]:
        """Return a trial's current hyperparameters."""
        point = self.points[trial // len(self.spec.seeds)]
        traced = self.spec.groups[self.group_of(trial)].dtypes
        return dict(point) | {name: self.numbers[name][trial].item() for name in traced}

    def inputs(self, trials: np.ndarray, group: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return a kernel's inputs for trials of one static group.

        Returns:
          The traced hyperparameters, in the dtypes of the group, and the data of the keys. Trials
          with the same seed have the same key.
        """
        dtypes = self.spec.groups[group].dtypes
        numbers = {name: self.numbers[name][trials].astype(d) for name, d in dtypes.items()}
        return numbers, self._key_data[trials % len(self.spec.seeds)]

    def rewind(self, trials: np.ndarray, steps: np.ndarray) -> None:
        """Set trials back to the steps of their checkpoints.

        Args:
          trials: the numbers of the trials.
          steps: the step of each trial's checkpoint; 0 for a trial without one.
        """
        self.data.steps_completed[trials] = steps
        self._committed[trials] = np.minimum(self._committed[trials], steps)

    # The metrics.

    def enter(self, result: SegmentResult) -> None:
        """Enter the metrics of a segment, and remove them from the result to free memory."""
        self._count_seconds(result.compile_seconds)
        trials, group = result.batch.trials, result.batch.group
        spans = spans_of(result.start, result.stop)
        for name in list(result.metrics):
            x = result.metrics.pop(name)
            into = self.data.metrics[name]
            if not self.spec.has_steps(name):
                into[trials] = x
                continue
            for start, stop, rows in spans:
                columns = self._columns(group, name, start, stop)
                recorded = self.spec.recorded_steps[name][columns]
                values = x if len(rows) == len(trials) else x[rows]
                source = self.spec.schedule.columns_of(recorded, start)
                into[trials[rows], columns] = values[:, source]
                newest = self.spec.schedule.newest_column(start, stop)
                self.data.newest[name][trials[rows]] = values[:, newest]
        for name, x in result.evaluations.items():
            for _, stop, rows in spans:
                columns = self._columns(group, name, stop - 1, stop)
                self.data.metrics[name][trials[rows], columns] = x[rows, None]
            self.data.newest[name][trials] = x
        self.data.steps_completed[trials] = result.stop
        self.data.steps_asked[trials] = self.spec.schedule.end

    def _columns(self, group: int, name: str, start: int, stop: int) -> slice:
        """Return the columns of a series that belong to the steps (start, stop]."""
        counts = (self.spec.count_recorded(group, name, step) for step in (start, stop))
        return slice(*counts)

    def _count_seconds(self, compile_seconds: float) -> None:
        now = self._clock()
        # The workers of an executor compile side by side, and while others run.
        compiling, self._tracing = self._tracing + compile_seconds, 0.0
        compiling = min(compiling, now - self._since)
        seconds = np.array([compiling, now - self._since - compiling])
        self._since = now
        self.data.seconds[:] += seconds
        self._pending += seconds

    def commit(self, trials: np.ndarray) -> None:
        """Write the metrics of these trials that are not on disk yet."""
        if self._write is None:
            return
        now = self.data.steps_completed[trials]
        for start, stop, rows in spans_of(self._committed[trials], now):
            if start == stop:
                continue
            groups = np.unique(self._group[trials[rows] // len(self.spec.seeds)]).tolist()
            columns = {}
            for name in self.spec.recorded_steps:
                each = [self._columns(group, name, start, stop) for group in groups]
                columns[name] = slice(min(x.start for x in each), max(x.stop for x in each))
            metrics = self.data.metrics
            cut = {n: x[:, columns[n]] if n in columns else x for n, x in metrics.items()}
            known = self.data._replace(metrics=cut)
            for part in known.parts(trials[rows]):
                self._write(known.take(part)._replace(seconds=self._pending), columns, start)
                self._pending = np.zeros(2)
                self._committed[part] = stop

    # The objective.

    def judge(self, trials: np.ndarray) -> None:
        """Evaluate the objective of these trials at their present steps.

        The leader evaluates a function once, for all processes.
        """
        if self._cluster.count == 1 or isinstance(self.objective.objective, str):
            self._evaluate(trials)
            return
        if self._cluster.is_leader:
            self._evaluate(trials)
        self._objective[trials] = self._cluster.from_leader(self._objective[trials])
        self._judged[trials] = self.data.steps_completed[trials]

    def judge_what_is_left(self) -> None:
        """Evaluate objectives that are older than the metrics, in this process alone."""
        steps = self.data.steps_completed
        self._evaluate(np.flatnonzero((steps > 0) & (self._judged != steps)))

    def _evaluate(self, trials: np.ndarray) -> None:
        data = self.data
        if isinstance(self.objective.objective, str):  # only the newest value counts
            data = data._replace(metrics=data.metrics | data.newest)
        for part in data.parts(trials):
            values = self.objective.values(self.spec, data.take(part), self._group)
            self._objective[part] = values
            self._judged[part] = data.steps_completed[part]

    def set_failed(self, trials: np.ndarray) -> None:
        """Set the objective of these trials to NaN, because it could not be computed."""
        self._objective[trials], self._judged[trials] = np.nan, self.data.steps_completed[trials]

    def objectives(self, trials: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return the objective of trials at their present steps, float64."""
        return self._objective[trials]

    @property
    def judged(self) -> np.ndarray:
        """bool array: whether each trial's objective was evaluated. It may be NaN."""
        return self._judged > 0

    def view(self, step: int, arrived: set[int]) -> SchedulerView:
        """Return a scheduler's view of all points at a rung.

        Args:
          step: the rung.
          arrived: the trials that reached the rung in this call.

        Raises:
          ValueError: if a trial of an active point did not reach the rung in this call. Then an
            earlier call decided at this rung, and its file is missing.
        """
        shape = len(self.spec.points), len(self.spec.seeds)
        active = (self.data.pruned == 0).reshape(shape).all(1)
        if not arrived.issuperset(self.spec.trials_of(np.flatnonzero(active)).tolist()):
            raise ValueError(
                f"the folder must hold the scheduler's decision after step {step}, which trials "
                "have already followed, but it is missing. Put a copy of "
                f"decision-{step:012d}.json back, or pass another path."
            )
        objective = np.where(active[:, None], self._objective.reshape(shape), np.nan)
        objective = np.where(np.isfinite(objective), objective, np.nan)
        points = [self.point(i * shape[1]) for i in range(shape[0])]
        return SchedulerView(points, objective, active, self._group.copy(), self.objective.mode)

    def complete_objectives(self) -> np.ndarray:
        """Return the objectives, float64 of shape (points, seeds); NaN for a trial that is not
        complete, or that failed."""
        complete = self.complete & np.isfinite(self._objective)
        return np.where(complete, self._objective, np.nan).reshape(-1, len(self.spec.seeds))

    def feasible_points(self) -> np.ndarray:
        """Return for each point whether it meets the constraints of a study's sampler, a bool
        array."""
        return np.all(self.data.feasible.reshape(-1, len(self.spec.seeds)), axis=1)

    # Decisions of a scheduler or a pruner.

    def prune(self, decision: AppliedDecision) -> np.ndarray:
        """End the points that a decision prunes, and return their trials."""
        for point, reason in decision.pruned.items():
            trials = self.spec.trials_of([point])
            self.data.pruned[trials], self._end[trials] = reason, decision.step
        return self.spec.trials_of(list(decision.pruned))

    def copy(self, decision: AppliedDecision, trials: Iterable[int]) -> dict[int, int]:
        """Set the new hyperparameters of trials that copy another.

        Args:
          decision: the decision.
          trials: the trials to look at. Those that do not copy another do not change.

        Returns:
          For each trial that copies, the trial whose state it takes over.
        """
        donors, seeds = {}, len(self.spec.seeds)
        for trial in trials:
            point, seed = divmod(trial, seeds)
            if point in decision.copies:
                donor, numbers = decision.copies[point]
                donors[trial] = donor * seeds + seed
                for name, number in numbers.items():
                    self.numbers[name][trial] = number
        return donors

    def apply_copies(self, decisions: Sequence[AppliedDecision]) -> None:
        """Set the copied hyperparameters of trials that resume at or after the copy's rung.

        A checkpoint at a rung was written after the decision (`SynchronousRunner._after`), so that
        it has the copied state.

        Args:
          decisions: the decisions in the folder, in order.
        """
        for decision in decisions:
            past = np.flatnonzero(self.data.steps_completed >= decision.step)
            self.copy(decision, past.tolist())


def spans_of(start: np.ndarray, stop: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
    """Return each span of steps that some trials ran, with the rows of these trials.

    Args:
      start: int array: the step after which each trial's span begins.
      stop: int array: the last step of each trial's span.
    """
    found: dict[tuple[int, int], list[int]] = {}
    for i, span in enumerate(zip(start.tolist(), stop.tolist(), strict=True)):
        found.setdefault(span, []).append(i)
    return [(a, b, np.array(found[a, b])) for a, b in sorted(found)]
