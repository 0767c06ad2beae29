"""What a sweep found: `SweepResult`, its best points, what matters."""

import copy
import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from rmsprop_jax._tune.experiment_spec import ExperimentSpec
from rmsprop_jax._tune.results.export import to_dataframe, to_html, to_xarray
from rmsprop_jax._tune.results.lineage import Change, Stretch, histories, path
from rmsprop_jax._tune.results.retrain import Retrainer
from rmsprop_jax._tune.results.rows import (
    COMPLETE,
    FAILED,
    PRUNED,
    STATUSES,
    UNFINISHED,
    all_rows,
    last_steps,
    measured,
    objectives,
    statuses,
)
from rmsprop_jax._tune.results.statistics import (
    ABSENT,
    Comparison,
    Level,
    levels,
    mean_std_ci95,
    means,
    paired,
    ranked,
)
from rmsprop_jax._tune.space.points import hyperparameters
from rmsprop_jax._tune.space.seeds import key_of
from rmsprop_jax._tune.space.values import label
from rmsprop_jax._tune.storage.kept_states import KeptStates
from rmsprop_jax._tune.storage.load import load_folder
from rmsprop_jax._tune.storage.paths import local_folder
from rmsprop_jax._tune.storage.writer import FolderWriter
from rmsprop_jax._tune.training.state_spec import StateSpec
from rmsprop_jax._tune.trials.data import TrialData
from rmsprop_jax._tune.trials.decision_log import AppliedDecision
from rmsprop_jax._tune.trials.objective import Objective, ObjectiveSpec, checked_objective

if TYPE_CHECKING:
    import pandas
    import xarray


@dataclasses.dataclass(frozen=True, repr=False)
class PointResult:
    """A point and what its seeds gave."""

    hp: dict[str, Any]
    """As `train` gets it; `result.retrain(record)` trains it again."""
    point: dict[str, Any]
    """As it stands in the points; of a population the numbers that it began with
    (`result.schedule(record)` has all)."""
    keys: tuple[jax.Array, ...]
    """The random key of each seed, in order."""
    objective: float
    """The mean over the seeds that did not fail."""
    std: float
    """The sample standard deviation over those seeds; NaN for one seed."""
    ci95: tuple[float, float]
    """The 95% confidence interval of the mean, by Student's t; NaN for one seed."""
    index: int | None = None
    """Its place in the points, which tells equal ones apart."""

    def __repr__(self) -> str:
        text = f"PointResult({self.point}, objective {self.objective:.6g}"
        if not math.isnan(self.std):
            low, high = self.ci95
            text += f", std {self.std:.3g}, 95% {low:.6g} to {high:.6g}"
        return f"{text}, {len(self.keys)} seed{'s' * (len(self.keys) != 1)})"


class SweepResult:
    """The trials of a sweep: one row each, in the order of the points, then the seeds.

    Each trial that the call asked for has a row, whether it has begun or not; of a loaded folder,
    each trial that its last call asked for; of a search, each that the study was asked for. What
    has not begun has a NaN objective, no values, and no place in `best`, `top`, `compare`,
    `sensitivity`, or a picture.

    Attributes:
      points: what was tried, `Points`.
      seeds: a tuple of ints, each for every point.
      point_index: int array, shape (trials,): the place of each in `points`.
      seed_index: int array, shape (trials,): its place in `seeds`.
      metrics: for each metric an array of shape (trials,) or (trials, steps), in its own dtype.
        `valid` says which of its values were measured.
      newest: for each metric an array of shape (trials,): its value where each trial stands.
      steps: for each metric that is a series, an int array of the steps of its values, from 1.
      objective: float64 array, shape (trials,): the objective at the trial's last step so far; NaN
        for a trial that has not begun.
      failed: bool array, shape (trials,): `status == "failed"`.
      status: array of text, shape (trials,). "unfinished": the trial is under way, or has not
        begun. A trial that has ended is "failed" where its own objective is not finite, else
        "pruned" by a scheduler or pruner, or "complete".
      feasible: bool array, shape (trials,): False where a constraint of the study's sampler is
        violated, for all seeds of the point; True of a sweep.
      steps_completed: int array, shape (trials,): the steps that each trial has run; 0 before it
        begins; 1 of a function that has run.
      rungs: the steps at which a scheduler was to decide, a tuple; empty without one.
      objective_name: the metric or the function that was the objective.
      mode: "min" or "max".
      compile_seconds: of tracing, lowering, and waiting for what compiles.
      run_seconds: of the rest, wall time. A resumed sweep has the sums over its calls.
    """

    def __init__(
        self,
        plan: ExperimentSpec,
        trials: TrialData,
        aim: ObjectiveSpec,
        objective: np.ndarray | None = None,
        *,
        retrainer: Retrainer | None = None,
        decided: Sequence[AppliedDecision] = (),
        kept: KeptStates | None = None,
    ):
        rows = all_rows(plan, trials)
        self._plan, self._trials, self._retrainer, self._kept = plan, rows, retrainer, kept
        self._decided, self._noted = tuple(decided), aim.noted
        self._last_numbers: dict[int, dict[str, float]] = {}
        for decision in decided:
            self._last_numbers |= {i: numbers for i, (_, numbers) in decision.copies.items()}
        self.points, self.seeds, self.mode = plan.points, plan.seeds, aim.mode
        self.objective_name, self._several = aim.name, isinstance(aim.objective, tuple)
        self.point_index, self.seed_index = np.divmod(rows.number, len(plan.seeds))
        self.metrics, self.steps_completed = rows.metrics, rows.steps_completed
        self.newest = rows.metrics | rows.newest
        self.rungs = tuple(plan.schedule.rungs)
        self.steps = dict(plan.recorded_steps)
        if objective is None:
            self.objective = objectives(plan, rows, aim)
        else:
            self.objective = np.full(len(rows.number), np.nan)
            self.objective[trials.number] = objective
            self.objective[rows.steps_completed == 0] = np.nan
        self._last_steps = last_steps(plan, rows, decided)
        self.status = statuses(rows, self.objective, self._last_steps)
        self.failed, self.feasible = self.status == "failed", rows.feasible
        self.compile_seconds, self.run_seconds = map(float, rows.seconds)
        self._valid: dict[str, np.ndarray] | None = None
        self._history: list[list[Change]] | None = None

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to run: each trial ran to the last step, or was pruned."""
        return bool((self.steps_completed >= self._last_steps).all())

    @property
    def valid(self) -> dict[str, np.ndarray]:
        """For each metric a bool array of its shape: True where a value was measured.

        A series of a trial that was pruned, is unfinished, or trains for fewer steps than others
        ends before the last column. The rest of its row is NaN or, for integers and bools, 0. A NaN
        that `train` returned is a measured value.
        """
        if self._valid is None:
            self._valid = measured(self._plan, self._trials)
        return self._valid

    @property
    def history(self) -> Sequence[Sequence[tuple[int, int | None, dict[str, float]]]]:
        """For each trial its changes, a list of (from step, the donor's trial or None, the traced
        hyperparameters from then on). One entry, where the trial copied no other."""
        if self._history is None:
            self._history = histories(self._plan, self._decided)
        return self._history

    @property
    def is_population(self) -> bool:
        """Whether trials copied others, so that their numbers changed on the way."""
        return bool(self._last_numbers)

    def __getstate__(self) -> dict[str, Any]:
        """Without `train`, which is any function: a copy in another process cannot `retrain`."""
        kept = None if self._kept is None else self._kept.without_structure()
        made_anew = {"_retrainer": None, "_kept": kept, "_valid": None, "_history": None}
        return self.__dict__ | made_anew

    def __deepcopy__(self, memo: dict[int, Any]) -> "SweepResult":
        made = copy.copy(self)
        memo[id(self)] = made
        state = copy.deepcopy(self.__getstate__(), memo)
        made.__dict__.update(state, _retrainer=self._retrainer, _kept=self._kept)
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
    ) -> "SweepResult":
        """What `save` or `sweep(path=...)` wrote; of a sweep that still runs, what is finished.

        Args:
          path: the folder.
          objective: a metric's name or a function of the metrics. By default the metric that the
            last call there looked for. A folder holds no function: where that was one, give it.
          mode: "min" or "max"; by default that of the last call.

        Raises:
          ValueError: for a folder that is damaged or no sweep's, an objective that is not to be had
            from its metrics, or none given where the folder knows of no metric.
        """
        plan, trials, noted, decided, files = load_folder(path)
        if objective is None:
            ((kind, name),) = noted["objective"].items()
            if kind != "metric":
                name = name.split(".")[-1].replace("<lambda>", "objective")
                raise ValueError(
                    f"the objective of {path} was a function ({name}), which a folder cannot hold: "
                    f"give it, load(path, objective=...), or one of {sorted(plan.metrics[0])}."
                )
            objective = name
        aim = checked_objective(objective, mode or noted["mode"], plan)
        return cls(plan, trials, aim, decided=decided, kept=KeptStates(files=files))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a folder that `load` reads, and that `sweep(path=...)` goes on with (save where
        its `args` are larger than 64 MiB, which only a sweep with a `path` hashes).

        Raises:
          ValueError: for static values that would not come back as they were.
          OSError: for a folder that has files already, or cannot be written.
        """
        path = local_folder(path)
        if path.exists() and any(path.iterdir()):
            raise FileExistsError(f"{path} has files already: give the path of a new folder.")
        folder = FolderWriter(path, self._plan, self._noted)
        try:
            columns = {n: slice(None) for n in self.metrics if self._plan.has_steps(n)}
            begun = self.steps_completed > 0
            folder.write(self._trials if begun.all() else self._trials.take(begun), columns)
            for decision in self._decided:
                folder.write_decision(decision.encode())
            for trial in self._kept.trials() if self._kept else ():
                self._save_state(folder, trial)
        finally:
            folder.close()

    def _save_state(self, folder: FolderWriter, trial: int) -> None:
        assert self._kept is not None
        found = self._kept.get(trial, self._group_number(trial // len(self.seeds)))
        if found is not None:
            leaves, form, _ = found
            reached = int(self.steps_completed[trial])
            folder.write_final_state(trial, reached, [x[None] for x in leaves], form)

    def rescored(self, objective: Objective, mode: str | None = None) -> "SweepResult":
        """The same trials under another objective.

        Args:
          objective: a metric's name, or a function of one trial's metrics to a number.
          mode: "min" or "max"; by default this result's.

        Returns:
          Another `SweepResult`, which shares its arrays with this.

        Raises:
          ValueError: for an objective that is not to be had from the metrics.
        """
        aim = checked_objective(objective, mode or self.mode, self._plan)
        return SweepResult(
            self._plan,
            self._trials,
            aim,
            retrainer=self._retrainer,
            decided=self._decided,
            kept=self._kept,
        )

    def retrain(
        self,
        record: PointResult | dict[str, Any],
        *,
        seed: int | None = None,
        args: tuple[Any, ...] = (),
        batches: Callable[[int], Any] | None = None,
    ) -> Any:
        """Train a point again, as the sweep did: numbers traced, structure as Python objects. One
        that a scheduler stopped is trained to the end.

        It runs on the first of the sweep's devices of this process, and under the settings of JAX
        that the sweep had (x64, the implementation of PRNG keys, the precision of products),
        whatever is set now. Each structure compiles once, at the first call.

        Args:
          record: of `best` or `top`, or a point as it stands in `points`.
          seed: any; by default the first of the sweep's. In a population the numbers of `schedule`
            are followed, whatever the seed.
          args: as `sweep` got them. They are not kept here, so that they can be freed.
          batches: as `sweep` got it.

        Returns:
          All that `train` returns, as NumPy arrays; of a `Training` its last state, of JAX arrays,
          and the metrics of every step, with those of `evaluate` at the end. Bit for bit what the
          sweep found, where its batch_size was 1.

        Raises:
          ValueError: for a point that was not tried, a seed that is no int, args that `train` does
            not take, or a result that was loaded or pickled, and so has no `train`; inside
            `jax.jit`.
        """
        if (retrainer := self._retrainer) is None:
            raise ValueError(
                "this result was loaded, and a folder holds no train: call sweep with its path "
                "again, which runs nothing twice, and retrain what that returns."
            )
        point, end = self._place_of(record), self._plan.schedule.end
        way = lambda: self._path(point, end)
        return retrainer.run(self._plan, point, way, seed, args, batches)

    def _place_of(self, record: PointResult | dict[str, Any]) -> int:
        """Where a point stands; ValueError for one that was not tried."""
        if not isinstance(record, PointResult):
            return self.points.index_of(record)
        first, place = self.points.index_of(record.point), record.index
        if place is None or place >= len(self.points):
            return first
        key = self.points.key  # a record of another sweep may stand elsewhere in this
        return place if key(self.points[place]) == key(self.points[first]) else first

    def _group_number(self, point: int) -> int:
        return int(self._plan.group_of()[point])

    def schedule(
        self, record: PointResult | dict[str, Any]
    ) -> list[tuple[int, int, dict[str, float]]]:
        """With which numbers a point came to where it stands.

        In a population these are its lineage's: its donors' numbers as far as it took over their
        states, then its own. Its seeds copy together, so that they share them.

        Args:
          record: of `best` or `top`, or a point as it stands in `points`.

        Returns:
          A list of (from step, to step, numbers), in order, the first from 0: the steps t with
          from < t ≤ to ran with these. One entry where nothing was copied; of a function, which
          runs as a whole, it is (0, 1, numbers).

        Raises:
          ValueError: for a point that was not tried, or that an interrupted sweep never began.

        Examples:
          >>> import jax.numpy as jnp, rmsprop_jax as rj
          >>> train = lambda hp, key: {"loss": (hp["x"] - 2.0) ** 2}
          >>> result = rj.sweep(train, rj.grid(x=[1.0, 2.0]), progress=False)
          >>> result.schedule(result.best())
          [(0, 1, {'x': 2.0})]
        """
        point = self._place_of(record)
        if not (self.steps_completed[self.point_index == point] > 0).any():
            raise ValueError(f"{self.points[point]} was not begun when the sweep was interrupted.")
        return [(start, stop, numbers) for start, stop, _, numbers in self._path(point)]

    def _path(self, point: int, end: int | None = None) -> list[Stretch]:
        """Return the stretches that led to the point's state at a step, by default its last."""
        table = self.steps_completed.reshape(len(self.points), len(self.seeds))
        return path(self.history, table, point, end)

    def state(
        self, record: PointResult | dict[str, Any], seed: int | None = None, *, like: Any = None
    ) -> Any:
        """The last state of a trial: parameters, optimiser state, whatever `init` made.

        Args:
          record: of `best` or `top`, or a point as it stands in `points`.
          seed: one of the sweep's; by default the first.
          like: a state of the same structure, abstract or not. Needed where the result was loaded
            or pickled and the state is not of dicts, lists and tuples alone.

        Returns:
          A pytree of the structure, shapes and dtypes of `init`'s, its leaves NumPy arrays (PRNG
          keys as JAX's).

        Raises:
          ValueError: for a state that was not kept (`keep_states` says how many are), a point or a
            seed that was not tried, or a `like` that does not fit.
        """
        point = self._place_of(record)
        seed = self.seeds[0] if seed is None else seed
        if seed not in self.seeds:
            raise ValueError(f"seed {seed} is none of the sweep's: {list(self.seeds)}.")
        trial = point * len(self.seeds) + self.seeds.index(seed)
        found = None if self._kept is None else self._kept.get(trial, self._group_number(point))
        if found is None:
            raise ValueError(
                f"the state of {self.points[point]}, seed {seed}, was not kept: keep_states says "
                'of how many of the best points it is, or "all" (of a Training; a function has '
                "none). result.retrain(record, seed=...) trains it again."
            )
        arrays, _, spec = found
        if like is not None:
            wanted = StateSpec.like(like)
            shapes = lambda one: [(x.shape, x.dtype) for x in one.data]
            if shapes(wanted) != [(x.shape, x.dtype) for x in arrays]:
                raise ValueError(
                    f"like has leaves {shapes(wanted)}, but the state has "
                    f"{[(x.shape, x.dtype) for x in arrays]}."
                )
            spec = wanted
        if spec is None:
            raise ValueError(
                "the state is not of dicts, lists and tuples alone, and its structure is not "
                "stored: give like=, a state of that structure (jax.eval_shape of init, say)."
            )
        return spec.tree(arrays)

    def point_now(self, row: int) -> dict[str, Any]:
        """A trial's hyperparameters, as they were last."""
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
        """The objectives, float64 of shape (points, seeds), NaN where failed, stopped or not
        finished; or finished after fewer steps than others, where a call with more was interrupted.
        """
        table = np.full((len(self.points), len(self.seeds)), np.nan)
        whole = self.status == "complete"
        if whole.any():
            whole &= self.steps_completed == self.steps_completed[whole].max()
        table[self.point_index, self.seed_index] = np.where(whole, self.objective, np.nan)
        return table

    def _feasible_points(self) -> np.ndarray:
        """bool array, shape (points,)."""
        feasible = np.ones(len(self.points), bool)
        feasible[self.point_index[~self.feasible]] = False
        return feasible

    def means(self) -> np.ndarray:
        """Each point's mean objective over the seeds that did not fail, float64 of shape (points,);
        NaN where none finished."""
        return means(self.by_point())

    def best(self, *, by: Objective | None = None, mode: str | None = None) -> PointResult:
        """The point with the best mean objective over the seeds.

        A point with a failed or unfinished seed ranks after all whole ones, and one that is not
        `feasible` after all that are. Of many points the best is in part the luckiest: its own
        objective is an optimistic estimate.

        Args:
          by: another objective, a metric's name or a function of the metrics.
          mode: "min" or "max"; by default the sweep's.

        Raises:
          ValueError: where every trial failed or was pruned, or none finished.
        """
        return self.top(1, by=by, mode=mode)[0]

    def top(
        self, n: int = 10, *, by: Objective | None = None, mode: str | None = None
    ) -> list[PointResult]:
        """The `n` best points, in order; fewer where fewer have a finite objective.

        Args:
          n: how many at most.
          by: another objective, a metric's name or a function of the metrics.
          mode: "min" or "max"; by default the sweep's.

        Raises:
          ValueError: where every trial failed or was pruned, or none finished.
        """
        if by is not None:
            return self.rescored(by, mode).top(n)
        if mode not in (None, self.mode):
            raise ValueError(f"mode={mode!r} without by: name the objective that it is for.")
        table, ranked = self.by_point(), self.ranked()
        if not len(ranked):
            count = {name: int((self.status == name).sum()) for name in STATUSES}
            if count["pruned"] == len(self) > 0:
                raise ValueError(
                    f"no best point: all {len(self)} trials were pruned. What other calls on the "
                    "study completed is there: study.best_trial."
                )
            raise ValueError(
                f"no best point: of {len(self)} trials {count['failed']} failed (their objective "
                f"is not finite), {count['pruned']} were pruned, {count['unfinished']} are "
                "unfinished, and none is complete."
                + " Try smaller learning rates."
                * (count["failed"] > 0)
            )
        keys = tuple(map(key_of, self.seeds))
        return [
            PointResult(
                hyperparameters(self.points, int(i)),
                self.points[int(i)],
                keys,
                *mean_std_ci95(table[i][np.isfinite(table[i])]),
                int(i),
            )
            for i in ranked[:n]
        ]

    def ranked(self) -> np.ndarray:
        """The points with a finite objective, best first, those with a failed seed last, and after
        them those that are not feasible: int array of places in `points`.

        Raises:
          ValueError: for several objectives.
        """
        if self._several:
            raise ValueError(
                f"there are several objectives, {self.objective_name}, and so no best point: the "
                "study's best_trials has those that no other beats in all; best(by=...) the best "
                "by one."
            )
        table = self.by_point()
        order = ranked(table, self.mode, self._feasible_points())
        return order[np.isfinite(table[order]).any(1)]

    def compare(
        self, a: PointResult | dict[str, Any], b: PointResult | dict[str, Any]
    ) -> Comparison:
        """How much larger the objective of `a` is than that of `b`, paired by seed.

        Seeds give all points the same keys, so that the pairs share their first parameters and
        batches, and their difference spreads less than either.

        Args:
          a: a record, or a point as it stands in `points`.
          b: another.

        Raises:
          ValueError: for a point that was not tried, two that share no whole seed, or a population,
            whose numbers changed on the way.
        """
        self.refuse_population("compare", "result.schedule, or rj.plots.curves and lineage,")
        table = self.by_point()
        differences = table[self._place_of(a)] - table[self._place_of(b)]
        if np.isnan(differences).all():
            raise ValueError("these points share no seed that both finished without failing.")
        return paired(differences[~np.isnan(differences)])

    def sensitivity(self) -> dict[str, float]:
        """What matters: for each hyperparameter how far apart its values are, each at its best.

        A value counts by its best point, with all other hyperparameters free; the number is the
        difference between the best and the worst value, so 0 where any value will do once the rest
        is tuned. An axis of more than 12 numbers counts by eighths, one of a single value not at
        all. The largest number comes first.

        Raises:
          ValueError: for a population, whose numbers changed on the way.
        """
        self.refuse_population("sensitivity", "rj.plots.lineage")
        found = {}
        for name in self.points.names:
            at_best = self.best_of(levels(self.points, name))[1]
            at_best = at_best[np.isfinite(at_best)]
            if len(at_best) > 1:
                found[name] = float(at_best.max() - at_best.min())
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def refuse_population(self, what: str, instead: str) -> None:
        """ValueError where the numbers of a point changed on the way, so that they say little."""
        if self.is_population:
            raise ValueError(
                f"{what} is about settings, and in a population these changed on the way: look at "
                f"{instead} instead."
            )

    def best_of(self, groups: list[Level]) -> tuple[np.ndarray, np.ndarray]:
        """The best point of each group and its mean objective; −1 and NaN where none finished. One
        that is not feasible is best only where no feasible one finished."""
        means, feasible = self.means(), self._feasible_points()
        pick = np.nanargmin if self.mode == "min" else np.nanargmax

        def best_among(points):
            finished = points[np.isfinite(means[points])]
            if feasible[finished].any():
                finished = finished[feasible[finished]]
            return finished[pick(means[finished])] if len(finished) else -1

        best = np.array([best_among(level.points) for level in groups])
        return best, np.where(best >= 0, means[best], np.nan)

    def _repr_html_(self) -> str:
        """What a notebook shows: the five best points."""
        names = self.points.names
        rows = [["", *names, "objective", "95% interval over seeds"]]
        for i, record in enumerate(self.top(5) if len(self.ranked()) else [], start=1):
            low, high = record.ci95
            interval = "one seed" if math.isnan(low) else f"{low:.4g} … {high:.4g}"
            values = [label(record.point.get(name, ABSENT)) for name in names]
            rows.append([str(i), *values, f"{record.objective:.4g}", interval])
        return to_html(repr(self), rows)

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
