"""The result of a sweep: its trials, their ranking, their states, and their export."""

import copy
import dataclasses
import importlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from rmsprop_jax._tune.experiment_spec import ExperimentSpec
from rmsprop_jax._tune.results.expected_best import ExpectedBest, check_sample, expected_best
from rmsprop_jax._tune.results.export import to_dataframe, to_xarray
from rmsprop_jax._tune.results.lineage import Change, Stretch, histories, path
from rmsprop_jax._tune.results.retrain import Retrainer
from rmsprop_jax._tune.results.rows import all_rows, intermediate, last_steps, measured, objectives
from rmsprop_jax._tune.results.states import kept_state, save_states
from rmsprop_jax._tune.results.statistics import (
    ABSENT,
    Comparison,
    Level,
    best_of,
    check_statistic,
    mean_std_ci95,
    means,
    paired,
    ranked,
    sensitivity,
    summaries,
)
from rmsprop_jax._tune.space.points import html_table, hyperparameters
from rmsprop_jax._tune.space.seeds import key_of
from rmsprop_jax._tune.space.values import label
from rmsprop_jax._tune.storage.kept_states import KeptStates
from rmsprop_jax._tune.storage.load import load_folder
from rmsprop_jax._tune.storage.paths import local_folder
from rmsprop_jax._tune.storage.writer import FolderWriter
from rmsprop_jax._tune.trial_mesh import submesh_of
from rmsprop_jax._tune.trials.data import TrialData
from rmsprop_jax._tune.trials.decision_log import AppliedDecision
from rmsprop_jax._tune.trials.objective import Objective, ObjectiveSpec, checked_objective
from rmsprop_jax._tune.trials.status import (
    COMPLETE,
    FAILED,
    PRUNED,
    STATUSES,
    UNFINISHED,
    statuses,
)

if TYPE_CHECKING:
    import pandas
    import xarray
    from optuna import Study
    from optuna.distributions import BaseDistribution

    from rmsprop_jax._tune.space.distributions import Distribution


@dataclasses.dataclass(frozen=True, repr=False)
class PointResult:
    """A point, and its objective over the seeds."""

    hp: dict[str, Any]
    """The hyperparameters as `train` gets them: JAX scalars, and Python objects."""
    point: dict[str, Any]
    """The hyperparameters as they are in `points`. A member of a population began with them;
    `result.schedule(point)` has those that followed."""
    keys: tuple[jax.Array, ...]
    """The random key of each seed, in order."""
    objective: float
    """The mean over the seeds whose trials are complete."""
    std: float
    """The sample standard deviation over those seeds; NaN for one seed."""
    ci95: tuple[float, float]
    """The 95% confidence interval of the mean, by Student's t; NaN for one seed."""
    index: int | None = None
    """The position of the point in `points`, which tells equal points apart."""

    def __repr__(self) -> str:
        text = f"PointResult({self.point}, objective {self.objective:.6g}"
        if not math.isnan(self.std):
            low, high = self.ci95
            text += f", std {self.std:.3g}, 95% {low:.6g} to {high:.6g}"
        return f"{text}, {len(self.keys)} seed{'s' * (len(self.keys) != 1)})"


class SweepResult:
    """The trials of a sweep: one row each, in the order of the points, then the seeds.

    Each trial that the call asked for has a row, whether it has begun or not. A loaded result has
    the trials that the folder's last call asked for, and a search has those of the study trials
    that it asked. A trial that has not begun has a NaN objective and no values. `best`, `top`,
    `compare`, `sensitivity`, and the pictures skip it.

    Attributes:
      points: the `Points` of the sweep.
      seeds: a tuple of ints; each point has one trial with each of them.
      point_index: int array, shape (trials,): the index of each trial's point in `points`.
      seed_index: int array, shape (trials,): the index of each trial's seed in `seeds`.
      metrics: a dict from each metric to an array of shape (trials,), or (trials, recorded steps)
        for a series, in the metric's own dtype. `valid` says which of the values were measured.
      newest: a dict from each metric to an array of shape (trials,): its value at the last step
        that each trial has run.
      steps: a dict from each series to an int array: the steps of its values, counted from 1.
      objective: float64 array, shape (trials,): the objective at the last step that each trial has
        run; NaN for a trial that has not begun.
      failed: bool array, shape (trials,): `status == "failed"`.
      status: array of text, shape (trials,): "unfinished" for a trial that is under way or has not
        begun. A trial that has ended is "failed" if its own objective is not finite, else "pruned"
        if a scheduler or pruner ended it, else "complete".
      feasible: bool array, shape (trials,): False for all trials of a point that violates a
        constraint of the study's sampler.
      steps_completed: int array, shape (trials,): the steps that each trial has run. A function
        has run 0 or 1.
      rungs: a tuple of the steps at which a scheduler decides; empty without a scheduler.
      objective_name: the name of the metric, or of the function, that is the objective.
      mode: "min" or "max".
      compile_seconds: the seconds that the sweep traced, lowered, and waited for compilers.
      run_seconds: the other seconds of wall time. A resumed sweep has the sums over its calls.
    """

    def __init__(
        self,
        spec: ExperimentSpec,
        trials: TrialData,
        objective: ObjectiveSpec,
        values: np.ndarray | None = None,
        *,
        retrainer: Retrainer | None = None,
        decisions: Sequence[AppliedDecision] = (),
        kept: KeptStates | None = None,
    ):
        rows = all_rows(spec, trials)
        self._spec, self._trials, self._retrainer, self._kept = spec, rows, retrainer, kept
        self._decisions, self._noted = tuple(decisions), objective.noted
        self._objective: ObjectiveSpec | None = objective
        self._last_numbers: dict[int, dict[str, float]] = {}
        for decision in decisions:
            self._last_numbers |= {i: numbers for i, (_, numbers) in decision.copies.items()}
        self.points, self.seeds, self.mode = spec.points, spec.seeds, objective.mode
        self.objective_name, self._several = objective.name, isinstance(objective.objective, tuple)
        self.point_index, self.seed_index = np.divmod(rows.number, len(spec.seeds))
        self.metrics, self.steps_completed = rows.metrics, rows.steps_completed
        self.newest = rows.metrics | rows.newest
        self.rungs = tuple(spec.schedule.rungs)
        self.steps = dict(spec.recorded_steps)
        if values is None:
            self.objective = objectives(spec, rows, objective)
        else:
            self.objective = np.full(len(rows.number), np.nan)
            self.objective[trials.number] = values
            self.objective[rows.steps_completed == 0] = np.nan
        self._last_steps = last_steps(spec, rows, decisions)
        completed, asked = rows.steps_completed, rows.steps_asked
        # A trial that ran all steps of an earlier call has ended, until a call with more steps
        # moves it.
        under_way = (completed == 0) | (completed < np.minimum(self._last_steps, asked))
        self.status = statuses(under_way, self.objective, self._last_steps < asked)
        self.failed, self.feasible = self.status == "failed", rows.feasible
        self.compile_seconds, self.run_seconds = map(float, rows.seconds)
        self._valid: dict[str, np.ndarray] | None = None
        self._history: list[list[Change]] | None = None
        self._mesh: Mesh | None = None

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to run: each trial ran to the last step or was pruned.

        If a call asks for more steps than an earlier one, the trials of the earlier call stay
        "complete" until the call moves them, and the result is not complete.
        """
        return bool((self.steps_completed >= self._last_steps).all())

    @property
    def valid(self) -> dict[str, np.ndarray]:
        """A dict from each metric to a bool array of its shape: True for a measured value.

        The series of a trial ends early if the trial was pruned, is unfinished, or trains for fewer
        steps than others. The rest of its row is not valid: NaN or, for integers and bools, 0. A
        NaN that `train` returned is valid.
        """
        if self._valid is None:
            self._valid = measured(self._spec, self._trials)
        return self._valid

    @property
    def history(self) -> Sequence[Sequence[tuple[int, int | None, dict[str, float]]]]:
        """A list for each trial: the changes of its traced hyperparameters, in order.

        A change is a tuple (step, donor, values): after that step the trial trained with these
        values, from the state of the trial `donor`. The first is (0, None, values). Only a
        scheduler that copies adds more.
        """
        if self._history is None:
            self._history = histories(self._spec, self._decisions)
        return self._history

    @property
    def is_population(self) -> bool:
        """Whether trials copied the states of others and changed their hyperparameters."""
        return bool(self._last_numbers)

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes without `train` and an objective, functions that pickle may
        refuse."""
        kept = None if self._kept is None else self._kept.without_structure()
        reset = {"_retrainer": None, "_kept": kept, "_valid": None, "_history": None, "_mesh": None}
        is_metric = self._objective is not None and isinstance(self._objective.objective, str)
        return self.__dict__ | reset | ({} if is_metric else {"_objective": None})

    def __deepcopy__(self, memo: dict[int, Any]) -> "SweepResult":
        made = copy.copy(self)
        memo[id(self)] = made
        state = copy.deepcopy(self.__getstate__(), memo)
        own = {"_retrainer": self._retrainer, "_kept": self._kept, "_objective": self._objective}
        made.__dict__.update(state | own)
        return made

    def __copy__(self) -> "SweepResult":
        made = type(self).__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        objective: Objective | None = None,
        mode: str | None = None,
        mesh: Mesh | None = None,
    ) -> "SweepResult":
        """Load the folder of `save` or of `sweep(path=...)`, also while that sweep runs.

        Args:
          path: the folder.
          objective: the name of a metric, or a function of one trial's metrics that returns a
            number. By default the metric that the folder's last call used. Required if that call
            used a function, since a folder holds no functions.
          mode: "min" or "max"; by default that of the folder's last call.
          mesh: the mesh on which `state` places states, if `state` gets no other.

        Raises:
          ValueError: for a folder that is damaged or is not a sweep's, an objective that the
            metrics do not give, or a missing `objective`.
        """
        spec, trials, noted, decisions, files = load_folder(path)
        if objective is None:
            ((kind, name),) = noted["objective"].items()
            if kind != "metric":
                name = name.split(".")[-1].replace("<lambda>", "objective")
                raise ValueError(
                    f"objective must be given for {path}: its last call used a function ({name}), "
                    "and a folder holds no functions. Pass load(path, objective=function), or one "
                    f"of {sorted(spec.metrics[0])}."
                )
            objective = name
        checked = checked_objective(objective, mode or noted["mode"], spec)
        made = cls(spec, trials, checked, decisions=decisions, kept=KeptStates(files=files))
        made._mesh = mesh and submesh_of(mesh)
        return made

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a folder that `load` reads and `sweep(path=...)` resumes.

        A sweep with a `path` hashes its `args`. This result has no hash of args above 64 MiB, so
        that `sweep` refuses to resume its folder.

        Args:
          path: a new or empty folder.

        Raises:
          ValueError: for static values that a folder cannot hold.
          OSError: for a folder that has files, or that cannot be written.
        """
        path = local_folder(path)
        if path.exists() and any(path.iterdir()):
            raise FileExistsError(f"path must be a new or empty folder, got {path}. Pass another.")
        folder = FolderWriter(path, self._spec, self._noted)
        try:
            columns = {n: slice(None) for n in self.metrics if self._spec.has_steps(n)}
            begun = self.steps_completed > 0
            folder.write(self._trials if begun.all() else self._trials.take(begun), columns)
            for decision in self._decisions:
                folder.write_decision(decision.encode())
            if self._kept is not None:
                group_of = self._spec.group_of()[self.point_index]
                save_states(self._kept, folder, group_of, self.steps_completed)
        finally:
            folder.close()

    def rescored(self, objective: Objective, mode: str | None = None) -> "SweepResult":
        """Return the same trials under another objective.

        Args:
          objective: the name of a metric, or a function of one trial's metrics that returns a
            number.
          mode: "min" or "max"; by default this result's.

        Returns:
          A `SweepResult` that shares its arrays with this one.

        Raises:
          ValueError: for an objective that the metrics do not give.
        """
        checked = checked_objective(objective, mode or self.mode, self._spec)
        return SweepResult(
            self._spec,
            self._trials,
            checked,
            retrainer=self._retrainer,
            decisions=self._decisions,
            kept=self._kept,
        )

    def retrain(
        self,
        record: PointResult | dict[str, Any],
        *,
        seed: int | None = None,
        args: tuple[Any, ...] = (),
        batches: Callable[[int], Any] | None = None,
        mesh: Mesh | None = None,
    ) -> Any:
        """Train a point again, as the sweep did. A pruned trial is trained to the last step.

        It runs on the first of the sweep's devices of this process or, after a sweep with a `mesh`,
        on the devices of one trial. JAX's settings are those of the
        sweep (x64, the implementation of PRNG keys, the precision of products), whatever they are
        now. Each static group compiles once, at the first call.

        Args:
          record: a `PointResult` of `best` or `top`, or a dict of `points`.
          seed: any int; by default the first of the sweep's. A member of a population follows its
            `schedule`, whatever the seed.
          args: the `args` of the sweep, which this result does not hold.
          batches: the `batches` of the sweep.
          mesh: another mesh than the sweep's, with the same axes of a trial. With an axis "trial",
            the devices of one trial are used.

        Returns:
          For a function, the metrics as NumPy arrays. For a `Training`, the last state as JAX
          arrays, and a dict with the metrics of every step and the metrics of `evaluate` after the
          last step. The values are bit for bit those of a sweep with a batch size of 1. On a mesh
          they are equal within rounding, and the state is sharded as `train` leaves it.

        Raises:
          ValueError: for a point that is not in the sweep, a seed that is not an int, args that
            `train` does not take, a result without `train` (it was loaded or pickled), or a call
            inside `jax.jit`.
        """
        if (retrainer := self._retrainer) is None:
            raise ValueError(
                "result must have its train to retrain a point, and this result was loaded or "
                "pickled. Call sweep with the same path again, which runs nothing twice, and "
                "retrain from its result."
            )
        point, end = self._index_of(record), self._spec.schedule.end
        way = lambda: self._path(point, end)
        return retrainer.run(self._spec, point, way, seed, args, batches, mesh)

    def _index_of(self, record: PointResult | dict[str, Any]) -> int:
        """Return the index of a point; ValueError for a point that is not in the sweep."""
        if not isinstance(record, PointResult):
            return self.points.index_of(record)
        first, index = self.points.index_of(record.point), record.index
        if index is None or index >= len(self.points):
            return first
        key = self.points.key  # the record of another sweep may have another index here
        return index if key(self.points[index]) == key(self.points[first]) else first

    def schedule(
        self, record: PointResult | dict[str, Any]
    ) -> list[tuple[int, int, dict[str, float]]]:
        """Return the traced hyperparameters that led to a point's last state, by steps.

        If a member of a population copied the state of a donor, the donor's hyperparameters come
        first. The seeds of a point copy together and share the schedule.

        Args:
          record: a `PointResult` of `best` or `top`, or a dict of `points`.

        Returns:
          A list of tuples (start, stop, values), in order, the first from 0: the steps t with
          start < t ≤ stop ran with these values. One tuple if nothing was copied. A function runs
          as a whole: (0, 1, values).

        Raises:
          ValueError: for a point that is not in the sweep, or of which no trial has begun.

        Examples:
          >>> import jax.numpy as jnp, rmsprop_jax as rj
          >>> train = lambda hp, key: {"loss": (hp["x"] - 2.0) ** 2}
          >>> result = rj.sweep(train, rj.grid(x=[1.0, 2.0]), progress=False)
          >>> result.schedule(result.best())
          [(0, 1, {'x': 2.0})]
        """
        point = self._index_of(record)
        if not (self.steps_completed[self.point_index == point] > 0).any():
            raise ValueError(
                f"record must be a point that has begun, got {self.points[point]}. Resume the "
                "sweep, or choose one of result.top()."
            )
        return [(start, stop, numbers) for start, stop, _, numbers in self._path(point)]

    def _path(self, point: int, end: int | None = None) -> list[Stretch]:
        """Return the stretches that led to a point's state at a step, by default at its last."""
        table = self.steps_completed.reshape(len(self.points), len(self.seeds))
        return path(self.history, table, point, end)

    def state(
        self,
        record: PointResult | dict[str, Any],
        seed: int | None = None,
        *,
        like: Any = None,
        mesh: Mesh | None = None,
    ) -> Any:
        """Return the final state of a trial: parameters, optimizer state, anything `init` made.

        Args:
          record: a `PointResult` of `best` or `top`, or a dict of `points`.
          seed: one of the sweep's; by default the first.
          like: a state of the same structure; its leaves may be `jax.ShapeDtypeStruct`. Required if
            the result was loaded or pickled and the state has other nodes than dicts, lists, and
            tuples.
          mesh: a mesh with the axes of a trial, on which to place the state. With an axis "trial",
            the devices of one trial are used. By default the `mesh` of `load`, or none.

        Returns:
          A pytree with the structure, shapes, and dtypes of `init`'s state. Its leaves are whole
          NumPy arrays, and JAX arrays for PRNG keys. With a mesh they are JAX arrays, sharded as in
          the sweep.

        Raises:
          ValueError: for a state that was not kept (see `keep_states`), a point or a seed that is
            not in the sweep, or a `like` that does not fit.
        """
        point = self._index_of(record)
        seed = self.seeds[0] if seed is None else seed
        if seed not in self.seeds:
            raise ValueError(f"seed must be one of the sweep's, {list(self.seeds)}, got {seed}.")
        trial = point * len(self.seeds) + self.seeds.index(seed)
        group, name = int(self._spec.group_of()[point]), f"{self.points[point]}, seed {seed}"
        return kept_state(
            self._kept, trial, group, name, like, self._mesh if mesh is None else mesh
        )

    def point_now(self, row: int) -> dict[str, Any]:
        """Return a trial's hyperparameters at its last step, with the changes of a scheduler."""
        point = int(self.point_index[row])
        return self.points[point] | self._last_numbers.get(point, {})

    def __len__(self) -> int:
        return len(self.objective)

    def __repr__(self) -> str:
        count = {name: int((self.status == name).sum()) for name in STATUSES}
        others = "".join(f", {count[name]} {name}" for name in (PRUNED, UNFINISHED) if count[name])
        return (
            f"SweepResult({count[COMPLETE]} of {len(self)} trials complete{others}, "
            f"{count[FAILED]} failed; compiled in {self.compile_seconds:.1f} s, "
            f"ran {self.run_seconds:.1f} s)"
        )

    def by_point(self) -> np.ndarray:
        """Return the objectives of the complete trials, float64 of shape (points, seeds).

        The others are NaN. After an interrupted call with more steps, so are the trials that have
        run fewer steps than another complete trial.
        """
        table = np.full((len(self.points), len(self.seeds)), np.nan)
        whole = self.status == "complete"
        if whole.any():
            whole &= self.steps_completed == self.steps_completed[whole].max()
        table[self.point_index, self.seed_index] = np.where(whole, self.objective, np.nan)
        return table

    def _feasible_points(self) -> np.ndarray:
        """Return for each point whether it keeps the constraints, bool of shape (points,)."""
        feasible = np.ones(len(self.points), bool)
        feasible[self.point_index[~self.feasible]] = False
        return feasible

    def means(self) -> np.ndarray:
        """Return the mean objective of each point over its complete seeds, float64 of shape
        (points,); NaN for a point without one."""
        return means(self.by_point())

    def best(
        self,
        *,
        by: Objective | None = None,
        mode: str | None = None,
        statistic: str = "mean",
    ) -> PointResult:
        """Return the point with the best objective over the seeds.

        Feasible points come first. Among them, and among the others, points whose trials are all
        complete come first. Then the statistic decides. The best of many points is in part the
        luckiest, so that its objective is an optimistic estimate.

        Args:
          by: another objective, as for `rescored`.
          mode: "min" or "max" for `by`; by default the sweep's.
          statistic: the statistic over the seeds that ranks points: "mean", "median", "iqm" (the
            interquartile mean, of at least 4 seeds), or "worst".

        Raises:
          ValueError: if no trial is complete, for several objectives without `by`, or for "iqm" of
            fewer than 4 seeds.
        """
        return self.top(1, by=by, mode=mode, statistic=statistic)[0]

    def top(
        self,
        n: int = 10,
        *,
        by: Objective | None = None,
        mode: str | None = None,
        statistic: str = "mean",
    ) -> list[PointResult]:
        """Return the `n` best points, best first; fewer if fewer have a complete trial.

        Args:
          n: the largest number of points.
          by: another objective, as for `rescored`.
          mode: "min" or "max" for `by`; by default the sweep's.
          statistic: as for `best`. The `objective` of each point is this statistic of its complete
            seeds. `std` and `ci95` are those of the seeds and of their mean.

        Raises:
          ValueError: if no trial is complete, for several objectives without `by`, or for "iqm" of
            fewer than 4 seeds.
        """
        check_statistic(statistic, len(self.seeds))
        if by is not None:
            return self.rescored(by, mode).top(n, statistic=statistic)
        if mode not in (None, self.mode):
            raise ValueError(
                f"mode must be that of the sweep, {self.mode!r}, without by, got {mode!r}. Pass "
                "by=..., the objective that it is for."
            )
        table, ranked = self.by_point(), self.ranked(statistic)
        if not len(ranked):
            raise ValueError(self._why_no_best())
        keys, chosen = tuple(map(key_of, self.seeds)), ranked[:n]
        values = summaries(table[chosen], statistic, self.mode).tolist()
        found = []
        for i, value in zip(chosen.tolist(), values, strict=True):
            mean, std, ci95 = mean_std_ci95(table[i][np.isfinite(table[i])])
            objective = mean if statistic == "mean" else value
            hp = hyperparameters(self.points, i)
            found.append(PointResult(hp, self.points[i], keys, objective, std, ci95, i))
        return found

    def ranked(self, statistic: str = "mean") -> np.ndarray:
        """Return the indices of the points that can be best, best first, int array.

        These are the points with at least one complete trial whose objective is finite. Feasible
        points come first. Among them, and among the others, points whose trials are all complete
        come first. Then the statistic decides.

        Args:
          statistic: as for `best`.

        Raises:
          ValueError: for several objectives.
        """
        if self._several:
            raise ValueError(
                f"objective must be one to rank points, got several: {self.objective_name}. Use "
                "result.rescored(...) with one of them, or study.best_trials."
            )
        table = self.by_point()
        order = ranked(table, self.mode, self._feasible_points(), statistic)
        return order[np.isfinite(table[order]).any(1)]

    def _why_no_best(self) -> str:
        count = {name: int((self.status == name).sum()) for name in STATUSES}
        if count[PRUNED] == len(self):
            return (
                f"a trial must be complete to be the best, and all {len(self)} trials were pruned. "
                "study.best_trial has the best of other calls on the study."
            )
        counts = ", ".join(f"{n} {name}" for name, n in count.items() if n)
        remedy = "Resume the sweep"
        if count[FAILED]:  # its objective is not finite
            remedy = "Try smaller learning rates: the objective of a failed trial is not finite"
        return f"a trial must be complete to be the best, got {counts}. {remedy}."

    def compare(
        self,
        a: PointResult | dict[str, Any],
        b: PointResult | dict[str, Any],
        *,
        interval: str = "t",
    ) -> Comparison:
        """Compare the objectives of two points, paired by seed.

        Trials with the same seed get the same key, so that they share their first parameters and
        batches. Their difference varies less than either.

        Args:
          a: a `PointResult` of `best` or `top`, or a dict of `points`.
          b: the other.
          interval: "t" for Student's t interval of the difference, or, with at least 20 seeds,
            "bca" for a bootstrap (bias-corrected and accelerated).

        Returns:
          A `Comparison` of a − b.

        Raises:
          ValueError: for a point that is not in the sweep, two points without a complete seed in
            common, a bootstrap of fewer than 20 seeds, or a population.
        """
        self.refuse_population("compare", "result.schedule, rj.plots.curves, or rj.plots.lineage")
        table = self.by_point()
        both = table[[self._index_of(a), self._index_of(b)]]
        both = both[:, np.isfinite(both).all(0)]
        if not both.size:
            raise ValueError(
                "a and b must have a seed of which both trials are complete, got none. Compare two "
                "points of result.top()."
            )
        return paired(both[0], both[1], self.mode, interval)

    def expected_best(self, budgets: Iterable[int] | None = None) -> ExpectedBest:
        """Return what the best of k points drawn at random gives, for each k: would more points
        have paid?

        The objective of the best of k points is optimistic, because the best is in part the
        luckiest. With several seeds, `held_out` is not: the other seeds choose the point, and the
        left-out seed tells its objective, averaged over the seeds. Use this number to compare
        numbers of points, or two spaces. A point of which a seed failed counts as failed.

        Args:
          budgets: the numbers k, between 1 and the number of points; by default all, or 64 of them.

        Returns:
          An `ExpectedBest`. The points of "sobol" and "latin_hypercube" fill the space more evenly
          than random ones, so that k counts some of these points, taken at random.

        Raises:
          ValueError: for points that are not a sample (a grid, a + b, a * b, `filter`, a list, a
            search); for a scheduler, which ends trials early; for unfinished trials; for a budget
            out of range.

        References:
          Dodge et al., [Show Your Work](https://arxiv.org/abs/1909.03004), EMNLP 2019. Tang et al.,
          [Showing Your Work Doesn't Always Work](https://arxiv.org/abs/2004.13705), ACL 2020: the
          estimator that draws with replacement is biased. This one draws without. Nadeau and
          Bengio, [Inference for the Generalization Error](https://doi.org/10.1023/A:1024068626366),
          Machine Learning 2003: the interval of `held_out`.
        """
        self.refuse_population("expected_best", "rj.plots.lineage")
        check_sample(self.points)
        if self.rungs:
            raise ValueError(
                "result must be a sweep without a scheduler for expected_best, got one with the "
                f"rungs {list(self.rungs)}, where trials end before their last step. Leave "
                "scheduler out of sweep."
            )
        if (count := int((self.status == UNFINISHED).sum())) > 0:
            raise ValueError(
                f"result must be complete for expected_best, got {count} unfinished trials. Make "
                "the same call of sweep again with its path, which resumes."
            )
        return expected_best(self.points, self.by_point(), self.mode, budgets)

    def sensitivity(self) -> dict[str, float]:
        """Return how much each hyperparameter matters.

        Each value of a hyperparameter is represented by the best point that has it. The number is
        the range of the objectives of these points: 0 if every value can reach the same objective.
        More than 12 numbers are cut into eighths. A hyperparameter with one value is left out.

        Returns:
          A dict from names to numbers, the largest first.

        Raises:
          ValueError: for a population.
        """
        self.refuse_population("sensitivity", "rj.plots.lineage")
        return sensitivity(self.points, self.means(), self._feasible_points(), self.mode)

    def refuse_population(self, what: str, instead: str) -> None:
        """Raise ValueError for a population, whose trials trained with more than their points.

        Args:
          what: the refused call, for the error.
          instead: the alternative, for the error.
        """
        if self.is_population:
            raise ValueError(
                f"{what} must get a sweep whose hyperparameters did not change, got a population. "
                f"Use {instead} instead."
            )

    def best_of(self, groups: list[Level]) -> tuple[np.ndarray, np.ndarray]:
        """Return the best point of each group and its mean objective; −1 and NaN for a group
        without a complete trial. A feasible point comes before one that is not."""
        return best_of(groups, self.means(), self._feasible_points(), self.mode)

    def _repr_html_(self) -> str:
        """Return the HTML for a notebook: a summary, and the five best points."""
        names = self.points.names
        rows = [["", *names, "objective", "95% interval over seeds"]]
        best = [] if self._several or not len(self.ranked()) else self.top(5)
        for i, record in enumerate(best, start=1):
            low, high = record.ci95
            interval = "one seed" if math.isnan(low) else f"{low:.4g} … {high:.4g}"
            values = [label(record.point.get(name, ABSENT)) for name in names]
            rows.append([str(i), *values, f"{record.objective:.4g}", interval])
        return html_table(repr(self), rows)

    def to_study(
        self,
        space: "Mapping[str, Distribution | BaseDistribution] | None" = None,
        *,
        study: "Study | None" = None,
        storage: Any = None,
    ) -> "Study":
        """Return an Optuna study with a trial for each point, for Optuna's pictures and dashboard,
        and for `search.optimize`, which continues from these trials.

        The value of a study trial is the mean of the objective over the seeds. A point of which a
        seed failed is a failed study trial without a value, whose user attribute `failed_seeds`
        names the seeds. A pruned point is a pruned study trial. The mean objective at each
        evaluation step is an intermediate value. Points with unfinished trials are left out. The
        user attributes `seeds` and `std` are as in a search.

        Args:
          space: a dict from each hyperparameter to its distribution, as for `search.optimize`; by
            default the space that `sample` drew the points from. Without one, traced numbers get
            the range of their values (logarithmic if all are positive and span a factor of 100),
            and other values are choices.
          study: the study that gets the trials; by default a new one.
          storage: the storage of a new study, as for `optuna.create_study`.

        Raises:
          ImportError: without Optuna, which the extra `search` installs.
          ValueError: before anything is stored, for a point outside the space; for a study with
            another direction or other distributions; for both `study` and `storage`; for several
            objectives; and for a population, whose hyperparameters changed.

        Examples:
          >>> import rmsprop_jax as rj
          >>> points = rj.sample({"x": rj.uniform(0.0, 4.0)}, 8)
          >>> result = rj.sweep(lambda hp, key: {"loss": hp["x"] ** 2}, points, progress=False)
          >>> study = result.to_study()
          >>> study.best_value == result.best().objective
          True
        """
        self.refuse_population("to_study", "rj.plots.lineage")
        if self._several:
            raise ValueError(
                f"result must have one objective for to_study, got several: {self.objective_name}. "
                "Pass result.rescored(...) with one of them."
            )
        try:
            from rmsprop_jax._tune.search.result_study import PointOutcomes, to_study
        except ImportError as error:
            raise ImportError(
                'Optuna must be installed for to_study. Run: pip install "rmsprop_jax[search]"'
            ) from error

        steps = self._spec.schedule.evaluation_steps
        values = np.full((len(self), len(steps)), np.nan)
        if self._spec.schedule.is_reported and self._objective is not None:
            values = intermediate(self._spec, self._trials, self._objective)
        by_point = lambda x: x.reshape(len(self.points), len(self.seeds), *x.shape[1:])
        outcomes = PointOutcomes(
            self.points,
            self.seeds,
            self.mode,
            by_point(self.status),
            by_point(self.objective),
            by_point(self.feasible),
            steps.tolist(),
            by_point(values).mean(1),
        )
        return to_study(outcomes, space, study, storage)

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write a report, one HTML file: the best point, how sure it is, what to try next,
        pictures, a table that can be sorted, and versions.

        The file needs no other file and no network. A table has at most the 1,000 best points.

        Args:
          path: the file, for example "report.html". It replaces an earlier one.

        Raises:
          ImportError: without matplotlib, which the extra `plot` installs.
          ValueError: for several objectives.
          OSError: if the file cannot be written.
        """
        # The pictures import results, and results import no pictures.
        text = importlib.import_module("rmsprop_jax.plots.report").report(self)
        local_folder(path).write_text(text, "utf-8")

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return a pandas DataFrame with a row for each trial.

        Its columns are the hyperparameters under their names (in a population those of the last
        step), `seed`, the newest value of each metric under its name, `objective`, `failed`,
        `status`, and `steps_completed`. A trial that has not begun has no values: NaN, or
        `pandas.NA` in a column of integers or bools, which then has a nullable dtype.

        Raises:
          ImportError: without pandas, which the extra `data` installs.
        """
        return to_dataframe(self)

    def to_xarray(self) -> "xarray.Dataset":
        """Return an xarray Dataset with the dimensions `trial` (a point), `seed`, and `step`.

        Hyperparameters are coordinates of `trial`: numbers (`None` among them is NaN), bools, or
        text; in a population those of the last step. `step` counts from 1. Metrics whose steps
        differ have a dimension of their own, `step_NAME`. Each metric, `objective`, `failed`,
        `status`, and `steps_completed` are variables. A value that is not `valid` is NaN; where a
        metric of integers or bools has one, all its values are floats. If a hyperparameter or a
        metric has the name of a dimension, the dimension's name ends in `_`. `to_netcdf` writes
        the Dataset to a file.

        Raises:
          ImportError: without xarray, which the extra `data` installs.
        """
        return to_xarray(self)
