"""What a sweep found: `SweepResult`, its best points, what matters."""

import html
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rmsprop_jax._sweep import store
from rmsprop_jax._sweep.points import dataframe, hyperparameters, is_number
from rmsprop_jax._sweep.statistics import (
    Comparison,
    Level,
    levels,
    mean_spread_interval,
    paired,
    value_label,
)


class Record(NamedTuple):
    """A point and what its seeds gave."""

    hp: dict[str, Any]
    """As `train` gets it: `train(record.hp, record.keys[0])` trains it again."""
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


class SweepResult:
    """The finished trials of a sweep, in the order of the points, then the seeds.

    Attributes:
      points: what was tried.
      seeds: the seeds, each for every point.
      point_index, seed_index: int arrays, for each trial its place in `points` and `seeds`.
      metrics: for each metric an array of shape (trials,) or (trials, steps).
      steps: for each metric with one value a step, the steps that were kept, counted from 1.
      objective: float64 array, shape (trials,).
      failed: bool array: the objective is not finite.
      objective_name: the metric or the function that was the objective.
      mode: "min" or "max".
      compile_seconds: tracing, lowering and compiling of all groups.
      run_seconds: wall time of the rest. A resumed sweep has the sums over its calls.
    """

    def __init__(self, plan: store.Plan, trials: store.Trials):
        order = np.argsort(trials.number)
        self._plan = plan
        self.points, self.seeds, self.mode = plan.points, plan.seeds, plan.mode
        self.objective_name = plan.objective
        self.point_index, self.seed_index = np.divmod(trials.number[order], len(plan.seeds))
        self.metrics = {name: x[order] for name, x in trials.metrics.items()}
        self.steps = {name: plan.steps(name) for name, m in plan.metrics.items() if m.shape}
        self.objective = trials.objective[order]
        self.failed = ~np.isfinite(self.objective)
        self.compile_seconds, self.run_seconds = map(float, trials.seconds)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SweepResult":
        """What `save` or `sweep(path=...)` wrote; of a sweep that still runs, what is finished.

        Raises:
          ValueError: for a folder that is damaged or no sweep's.
        """
        return cls(*store.read(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a folder that `load` reads, and that `sweep(path=...)` goes on with.

        Raises:
          ValueError: for static values that JSON cannot hold.
          OSError: for a folder that has files already, or cannot be written.
        """
        if Path(path).exists() and any(Path(path).iterdir()):
            raise FileExistsError(f"{path} has files already: give the path of a new folder.")
        folder = store.Store(path, self._plan)
        try:
            number = self.point_index * len(self.seeds) + self.seed_index
            seconds = np.array([self.compile_seconds, self.run_seconds])
            folder.write(store.Trials(number, self.metrics, self.objective, seconds))
        finally:
            folder.close()

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

    def best(self) -> Record:
        """The point with the best mean objective over the seeds.

        A point with a failed or unfinished seed ranks after all whole ones. Of many points the
        best is in part the luckiest: its own objective is an optimistic estimate.

        Raises:
          ValueError: where every trial failed, or none finished.
        """
        return self.top(1)[0]

    def top(self, n: int = 10) -> list[Record]:
        """The `n` best points, in order; fewer where fewer have a finite objective.

        Raises:
          ValueError: where every trial failed, or none finished.
        """
        table, means = self.by_point(), self.means()
        ranked = np.lexsort((means if self.mode == "min" else -means, np.isnan(table).any(1)))
        ranked = ranked[np.isfinite(means[ranked])]
        if not len(ranked):
            raise ValueError(
                f"no best point: of {len(self)} finished trials, {int(self.failed.sum())} failed "
                "(their objective is not finite). Try smaller learning rates."
            )
        keys = tuple(jax.random.key(seed) for seed in self.seeds)
        return [
            Record(
                hyperparameters(self.points, int(i)),
                self.points[int(i)],
                keys,
                *mean_spread_interval(table[i][np.isfinite(table[i])]),
            )
            for i in ranked[:n]
        ]

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
        table, tried = self.by_point(), list(self.points)

        def row(one):
            point = one.point if isinstance(one, Record) else one
            if point not in tried:
                raise ValueError(f"{point} is not among the points of this sweep, {self.points}.")
            return table[tried.index(point)]

        differences = row(a) - row(b)
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
            values = [value_label(record.point[name]) for name in names]
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
            name: [self.points[i][name] for i in self.point_index] for name in self.points.names
        }
        columns["seed"] = [self.seeds[i] for i in self.seed_index]
        for name, values in self.metrics.items():
            columns[name] = values if values.ndim == 1 else values[:, -1]
        return dataframe(columns | {"objective": self.objective, "failed": self.failed})

    def to_xarray(self):
        """An xarray Dataset with the dimensions `trial` (a point), `seed` and `step`.

        Hyperparameters are coordinates of `trial`; `step` counts from 1. Metrics whose numbers of
        steps differ have a dimension of their own, `step_NAME`. What is not finished is NaN, and
        False in `finished`.

        Raises:
          ImportError: without xarray, which the extra `data` installs.
        """
        try:
            import xarray
        except ImportError as error:
            raise ImportError('to_xarray needs xarray: pip install "rmsprop_jax[data]"') from error
        shape = len(self.points), len(self.seeds)
        finished = np.zeros(shape, bool)
        finished[self.point_index, self.seed_index] = True

        def table(values):
            out = np.zeros((*shape, *values.shape[1:]), values.dtype)
            if not finished.all() or values.dtype.kind not in "biuf":  # xarray knows no bfloat16
                out = np.full(out.shape, np.nan)
            out[self.point_index, self.seed_index] = values
            return out

        alike = len({len(steps) for steps in self.steps.values()}) == 1
        dims, coordinates = {}, {}
        for name, steps in self.steps.items():
            dims[name] = "step" if alike else f"step_{name}"
            coordinates[dims[name]] = steps
        for name in self.points.names:
            values = [point[name] for point in self.points]
            column = np.empty(len(values), object)
            column[:] = values
            coordinates[name] = (
                "trial",
                np.array(values) if all(map(is_number, values)) else column,
            )
        data = {
            name: (("trial", "seed", *([dims[name]] if name in dims else [])), table(values))
            for name, values in self.metrics.items()
        }
        data["objective"] = (("trial", "seed"), table(self.objective))
        failed = np.zeros(shape, bool)
        failed[self.point_index, self.seed_index] = self.failed
        data["failed"], data["finished"] = (
            (("trial", "seed"), failed),
            (("trial", "seed"), finished),
        )
        attributes = {"mode": self.mode, "objective": self.objective_name}
        coordinates = {"trial": np.arange(shape[0]), "seed": list(self.seeds), **coordinates}
        return xarray.Dataset(data, coordinates, attributes)
