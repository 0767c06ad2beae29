"""What a sweep found: `SweepResult`, its best points, what matters."""

import copy
import html
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rmsprop_jax._sweep import store
from rmsprop_jax._sweep.objective import Aim, Objective, checked, last
from rmsprop_jax._sweep.plan import Plan, Trials
from rmsprop_jax._sweep.points import dataframe, hyperparameters
from rmsprop_jax._sweep.seeds import key_of
from rmsprop_jax._sweep.statistics import (
    ABSENT,
    Comparison,
    Level,
    levels,
    mean_spread_interval,
    paired,
)
from rmsprop_jax._sweep.tracing import trace
from rmsprop_jax._sweep.values import is_number, label


class Record(NamedTuple):
    """A point and what its seeds gave."""

    hp: dict[str, Any]
    """As `train` gets it; `result.retrain(record)` trains it again."""
    point: dict[str, Any]
    """As it stands in the points."""
    keys: tuple[jax.Array, ...]
    """The random key of each seed, in order."""
    objective: float
    """The mean over the seeds that did not fail."""
    spread: float
    """The sample standard deviation over those seeds; NaN for one seed."""
    interval: tuple[float, float]
    """The 95% confidence interval of the mean, by Student's t; NaN for one seed."""

    def __repr__(self) -> str:
        text = f"Record({self.point}, objective {self.objective:.6g}"
        if not math.isnan(self.spread):
            low, high = self.interval
            text += f", spread {self.spread:.3g}, 95% {low:.6g} to {high:.6g}"
        return f"{text}, {len(self.keys)} seed{'s' * (len(self.keys) != 1)})"


class SweepResult:
    """The finished trials of a sweep, in the order of the points, then the seeds.

    Attributes:
      points: what was tried.
      seeds: the seeds, each for every point.
      point_index, seed_index: int arrays, for each trial its place in `points` and `seeds`.
      metrics: for each metric an array of shape (trials,) or (trials, steps). Where structures
        train for different numbers of steps, NaN follows the last of the shorter ones.
      steps: for each metric with one value a step, the steps that were kept, counted from 1.
      objective: float64 array, shape (trials,).
      failed: bool array: the objective is not finite.
      objective_name: the metric or the function that was the objective.
      mode: "min" or "max".
      compile_seconds: tracing, lowering, and waiting for what compiles.
      run_seconds: wall time of the rest. A resumed sweep has the sums over its calls.
    """

    def __init__(
        self,
        plan: Plan,
        trials: Trials,
        aim: Aim,
        objective: np.ndarray | None = None,
        train: Callable[..., Any] | None = None,
    ):
        order = np.argsort(trials.number)
        trials = trials._replace(
            number=trials.number[order], metrics={n: x[order] for n, x in trials.metrics.items()}
        )
        self._plan, self._trials, self._train = plan, trials, train
        self.points, self.seeds, self.mode = plan.points, plan.seeds, aim.mode
        self.objective_name = aim.name
        self.point_index, self.seed_index = np.divmod(trials.number, len(plan.seeds))
        self.metrics = trials.metrics
        self.steps = {name: plan.steps(name) for name in self.metrics if plan.has_steps(name)}
        self.objective = aim.values(plan, trials) if objective is None else objective[order]
        self.failed = ~np.isfinite(self.objective)
        self.compile_seconds, self.run_seconds = map(float, trials.seconds)

    def __getstate__(self) -> dict[str, Any]:
        """Without `train`, which is any function: a copy in another process cannot `retrain`."""
        return self.__dict__ | {"_train": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> "SweepResult":
        made = copy.copy(self)
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy(self.__getstate__(), memo), _train=self._train)
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
        plan, trials, (name, noted) = store.read(path)
        if objective is None:
            if name not in plan.metrics[0]:
                raise ValueError(
                    f"the objective of {path} was a function ({name}), which a folder cannot hold: "
                    f"give it, load(path, objective=...), or one of {sorted(plan.metrics[0])}."
                )
            objective = name
        return cls(plan, trials, checked(objective, mode or noted, plan))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a folder that `load` reads, and that `sweep(path=...)` goes on with (save where
        its `args` are larger than 64 MiB, which only a sweep with a `path` hashes).

        Raises:
          ValueError: for static values that would not come back as they were.
          OSError: for a folder that has files already, or cannot be written.
        """
        path = Path(path).expanduser()
        if path.exists() and any(path.iterdir()):
            raise FileExistsError(f"{path} has files already: give the path of a new folder.")
        folder = store.Store(path, self._plan, (self.objective_name, self.mode))
        try:
            folder.write(self._trials)
        finally:
            folder.close()

    def rescored(self, objective: Objective, mode: str | None = None) -> "SweepResult":
        """The same trials under another objective.

        Args:
          objective: a metric's name, or a function of one trial's metrics to a number.
          mode: "min" or "max"; by default this result's.

        Raises:
          ValueError: for an objective that is not to be had from the metrics.
        """
        aim = checked(objective, mode or self.mode, self._plan)
        return SweepResult(self._plan, self._trials, aim, train=self._train)

    def retrain(
        self,
        record: Record | dict[str, Any],
        *,
        seed: int | None = None,
        args: tuple[Any, ...] = (),
    ) -> dict[str, np.ndarray]:
        """Train a point again, as the sweep did: numbers traced, structure as Python objects.

        Args:
          record: of `best` or `top`, or a point as it stands in `points`.
          seed: any; by default the first of the sweep's.
          args: as `sweep` got them. They are not kept here, so that they can be freed.

        Returns:
          All that `train` returns, as NumPy arrays: bit for bit what the sweep found, where its
          batch_size was 1.

        Raises:
          ValueError: for a point that was not tried, or a result that was loaded or pickled, and so
            has no `train`.
        """
        if self._train is None:
            raise ValueError(
                "this result was loaded, and a folder holds no train: call sweep with its path "
                "again, which runs nothing twice, and retrain what that returns."
            )
        i = self.points.index_of(record.point if isinstance(record, Record) else record)
        group = next(group for group in self._plan.groups if i in group.indices)
        traced = trace(self._train, group, self.points, args).traced
        point = self.points[i]
        numbers = {name: np.asarray(point[name], dtype) for name, dtype in group.dtypes.items()}
        key = key_of(self.seeds[0] if seed is None else seed)
        return jax.device_get(traced.lower().compile()(numbers, key, args))

    def __len__(self) -> int:
        return len(self.objective)

    def __repr__(self) -> str:
        return (
            f"SweepResult({len(self)} of {len(self.points) * len(self.seeds)} trials, "
            f"{self.failed.sum()} failed; compiled in {self.compile_seconds:.1f} s, "
            f"ran {self.run_seconds:.1f} s)"
        )

    def by_point(self) -> np.ndarray:
        """The objectives, float64 of shape (points, seeds), NaN where failed or not finished."""
        table = np.full((len(self.points), len(self.seeds)), np.nan)
        table[self.point_index, self.seed_index] = np.where(self.failed, np.nan, self.objective)
        return table

    def means(self) -> np.ndarray:
        """Each point's mean objective over the seeds that did not fail, float64 of shape (points,);
        NaN where all failed."""
        table = self.by_point()
        count = np.isfinite(table).sum(1)
        sums = np.where(np.isfinite(table), table, 0.0).sum(1)
        return np.divide(sums, count, out=np.full(len(table), np.nan), where=count > 0)

    def best(self, *, by: Objective | None = None, mode: str | None = None) -> Record:
        """The point with the best mean objective over the seeds.

        A point with a failed or unfinished seed ranks after all whole ones. Of many points the
        best is in part the luckiest: its own objective is an optimistic estimate.

        Args:
          by: another objective, a metric's name or a function of the metrics.
          mode: "min" or "max"; by default the sweep's.

        Raises:
          ValueError: where every trial failed, or none finished.
        """
        return self.top(1, by=by, mode=mode)[0]

    def top(
        self, n: int = 10, *, by: Objective | None = None, mode: str | None = None
    ) -> list[Record]:
        """The `n` best points, in order; fewer where fewer have a finite objective.

        Args:
          n: how many at most.
          by: another objective, a metric's name or a function of the metrics.
          mode: "min" or "max"; by default the sweep's.

        Raises:
          ValueError: where every trial failed, or none finished.
        """
        if by is not None:
            return self.rescored(by, mode).top(n)
        if mode not in (None, self.mode):
            raise ValueError(f"mode={mode!r} without by: name the objective that it is for.")
        table, ranked = self.by_point(), self.ranked()
        if not len(ranked):
            raise ValueError(
                f"no best point: of {len(self)} finished trials, {int(self.failed.sum())} failed "
                "(their objective is not finite). Try smaller learning rates."
            )
        keys = tuple(map(key_of, self.seeds))
        return [
            Record(
                hyperparameters(self.points, int(i)),
                self.points[int(i)],
                keys,
                *mean_spread_interval(table[i][np.isfinite(table[i])]),
            )
            for i in ranked[:n]
        ]

    def ranked(self) -> np.ndarray:
        """The points with a finite objective, best first, those with a failed seed last: int array
        of places in `points`."""
        table, means = self.by_point(), self.means()
        order = np.lexsort((means if self.mode == "min" else -means, np.isnan(table).any(1)))
        return order[np.isfinite(means[order])]

    def compare(self, a: Record | dict[str, Any], b: Record | dict[str, Any]) -> Comparison:
        """How much larger the objective of `a` is than that of `b`, paired by seed.

        Seeds give all points the same keys, so that the pairs share their first parameters and
        batches, and their difference spreads less than either.

        Args:
          a: a record, or a point as it stands in `points`.
          b: another.

        Raises:
          ValueError: for a point that was not tried, or two that share no whole seed.
        """
        table = self.by_point()
        row = lambda one: self.points.index_of(one.point if isinstance(one, Record) else one)
        differences = table[row(a)] - table[row(b)]
        if np.isnan(differences).all():
            raise ValueError("these points share no seed that both finished without failing.")
        return paired(differences[~np.isnan(differences)])

    def sensitivity(self) -> dict[str, float]:
        """What matters: for each hyperparameter how far apart its values are, each at its best.

        A value counts by its best point, with all other hyperparameters free; the number is the
        difference between the best and the worst value, so 0 where any value will do once the rest
        is tuned. An axis of more than 12 numbers counts by eighths, one of a single value not at
        all. The largest number comes first.
        """
        found = {}
        for name in self.points.names:
            at_best = self.best_of(levels(self.points, name))[1]
            at_best = at_best[np.isfinite(at_best)]
            if len(at_best) > 1:
                found[name] = float(at_best.max() - at_best.min())
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def best_of(self, groups: list[Level]) -> tuple[np.ndarray, np.ndarray]:
        """The best point of each group and its mean objective; −1 and NaN where all failed."""
        means = self.means()
        pick = np.nanargmin if self.mode == "min" else np.nanargmax
        best = np.array(
            [
                level.points[pick(means[level.points])]
                if np.isfinite(means[level.points]).any()
                else -1
                for level in groups
            ]
        )
        return best, np.where(best >= 0, means[best], np.nan)

    def _repr_html_(self) -> str:
        """What a notebook shows: the five best points."""
        names = self.points.names
        rows = [["", *names, "objective", "95% interval over seeds"]]
        for i, record in enumerate(self.top(5) if (~self.failed).any() else [], start=1):
            low, high = record.interval
            interval = "one seed" if math.isnan(low) else f"{low:.4g} … {high:.4g}"
            values = [label(record.point.get(name, ABSENT)) for name in names]
            rows.append([str(i), *values, f"{record.objective:.4g}", interval])
        cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
        table = "".join(f"<tr>{row}</tr>" for row in cells)
        return f"<p>{html.escape(repr(self))}</p><table>{table}</table>"

    def to_dataframe(self):
        """A pandas DataFrame with a row a trial: the hyperparameters under their names, `seed`,
        each metric's last value under its name, `objective`, `failed`.

        Raises:
          ImportError: without pandas, which the extra `data` installs.
        """
        columns: dict[str, Any] = {
            name: [self.points[i].get(name) for i in self.point_index] for name in self.points.names
        }
        columns["seed"] = [self.seeds[i] for i in self.seed_index]
        for name, values in self.metrics.items():
            columns[name] = last(self._plan, name, values, self.point_index)
        return dataframe(columns | {"objective": self.objective, "failed": self.failed})

    def to_xarray(self):
        """An xarray Dataset with the dimensions `trial` (a point), `seed` and `step`.

        Hyperparameters are coordinates of `trial`: numbers (`None` among them is NaN), bools, or
        text. `step` counts from 1. Metrics whose steps differ have a dimension of their own,
        `step_NAME`. What is not finished is NaN, and False in `finished`. Where a hyperparameter or
        a metric has one of these names, ours ends in `_`. `to_netcdf` writes it.

        Raises:
          ImportError: without xarray, which the extra `data` installs.
        """
        try:
            import xarray
        except ImportError as error:
            raise ImportError('to_xarray needs xarray: pip install "rmsprop_jax[data]"') from error
        shape = len(self.points), len(self.seeds)
        finished, failed = np.zeros(shape, bool), np.zeros(shape, bool)
        finished[self.point_index, self.seed_index] = True
        failed[self.point_index, self.seed_index] = self.failed
        taken = {*self.points.names, *self.metrics}
        ours = lambda name: ours(name + "_") if name in taken else name

        def table(values):
            out = np.zeros((*shape, *values.shape[1:]), values.dtype)
            if not finished.all() or values.dtype.kind not in "biuf":  # xarray knows no bfloat16
                out = np.full(out.shape, np.nan)
            out[self.point_index, self.seed_index] = values
            return out

        alike = len({tuple(steps) for steps in self.steps.values()}) == 1
        dims = {name: ours("step" if alike else f"step_{name}") for name in self.steps}
        trial, seed = ours("trial"), "seed"
        coordinates: dict[str, Any] = {trial: np.arange(shape[0]), seed: list(self.seeds)}
        coordinates |= {dims[name]: steps for name, steps in self.steps.items()}
        for name in self.points.names:
            coordinates[name] = (trial, _column([point.get(name) for point in self.points]))
        data = {
            name: ((trial, seed, *([dims[name]] if name in dims else [])), table(values))
            for name, values in self.metrics.items()
        }
        data["objective"] = ((trial, seed), table(self.objective))
        data["failed"] = ((trial, seed), failed)
        data[ours("finished")] = ((trial, seed), finished)
        attributes = {"objective": self.objective_name, "objective_mode": self.mode}
        return xarray.Dataset(data, coordinates, attributes)


def _column(values: list[Any]) -> np.ndarray:
    """A hyperparameter as an array of numbers, bools or text; None among numbers is NaN."""
    if all(isinstance(x, bool) for x in values):
        return np.array(values)
    if all(x is None or is_number(x) for x in values) and any(x is not None for x in values):
        return np.array([np.nan if x is None else x for x in values])
    return np.array([x if isinstance(x, str) else label(x) for x in values])
