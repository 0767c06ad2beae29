"""What a sweep found: `SweepResult` and its best point."""

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rmsprop_jax._sweep import store
from rmsprop_jax._sweep.points import dataframe, hyperparameters


class Best(NamedTuple):
    """The best point of a sweep."""

    hp: dict[str, Any]
    """As `train` gets it: `train(best.hp, best.keys[0])` trains it again."""
    point: dict[str, Any]
    """As it stands in the points."""
    keys: tuple[jax.Array, ...]
    """The random key of each seed, in order."""
    objective: float
    """The mean over the seeds that did not fail."""
    spread: float
    """The sample standard deviation over those seeds; NaN for one seed."""


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
      mode: "min" or "max".
      compile_seconds: tracing, lowering and compiling of all groups.
      run_seconds: wall time of the rest. A resumed sweep has the sums over its calls.
    """

    def __init__(self, plan: store.Plan, trials: store.Trials):
        order = np.argsort(trials.number)
        self._plan = plan
        self.points, self.seeds, self.mode = plan.points, plan.seeds, plan.mode
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

    def best(self) -> Best:
        """The point with the best mean objective over the seeds.

        A point with a failed or unfinished seed ranks after all whole ones.

        Raises:
          ValueError: where every trial failed, or none finished.
        """
        table = self.by_point()
        sign = 1 if self.mode == "min" else -1
        ranked = [
            (bool(np.isnan(row).any()), sign * np.nanmean(row), i)
            for i, row in enumerate(table)
            if not np.isnan(row).all()
        ]
        if not ranked:
            raise ValueError(
                f"no best point: of {len(self)} finished trials, {int(self.failed.sum())} failed "
                "(their objective is not finite). Try smaller learning rates."
            )
        i = min(ranked)[2]
        mine = table[i][~np.isnan(table[i])]
        return Best(
            hp=hyperparameters(self.points, i),
            point=self.points[i],
            keys=tuple(jax.random.key(seed) for seed in self.seeds),
            objective=float(mine.mean()),
            spread=float(mine.std(ddof=1)) if len(mine) > 1 else math.nan,
        )

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
