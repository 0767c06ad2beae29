"""The objective of a sweep: a metric or a function of the metrics, and its direction."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from rmsprop_jax._tune.experiment_spec import ExperimentSpec
from rmsprop_jax._tune.trials.data import TrialData

Objective: TypeAlias = str | Callable[[dict[str, np.ndarray]], Any]


@dataclasses.dataclass(frozen=True)
class ObjectiveSpec:
    """The objective and its direction.

    A folder stores only its name. The values are computed from the metrics when these are read.
    """

    objective: Objective | tuple[Objective, ...]
    """The objective. Of a tuple, the first counts for a trial whose objectives are all finite."""
    mode: str
    """"min" or "max": which objective is better."""

    @property
    def name(self) -> str:
        """The name of the metric or of the function."""
        if isinstance(self.objective, tuple):
            return ", ".join(ObjectiveSpec(one, self.mode).name for one in self.objective)
        if isinstance(self.objective, str):
            return self.objective
        name = getattr(self.objective, "__name__", "objective")
        return "objective" if name == "<lambda>" else name

    @property
    def noted(self) -> dict[str, Any]:
        """The entries "objective" and "mode" of a manifest. A metric is stored by its name, and a
        function by its qualified name."""
        if isinstance(self.objective, tuple):
            objective = {"several": self.name}
        elif isinstance(self.objective, str):
            objective = {"metric": self.objective}
        else:
            kind = type(self.objective).__qualname__
            objective = {"function": getattr(self.objective, "__qualname__", kind)}
        return {"objective": objective, "mode": self.mode}

    def values(
        self, spec: ExperimentSpec, data: TrialData, groups: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the objective of each trial at its present step, float64.

        Args:
          spec: the experiment.
          data: the trials.
          groups: int array: the static group of each point; by default that in `spec`.
        """
        if isinstance(self.objective, tuple):
            parts = [ObjectiveSpec(one, self.mode) for one in self.objective]
            each = np.array([part.values(spec, data, groups) for part in parts])
            return np.where(np.isfinite(each).all(0), each[0], np.nan)
        if isinstance(self.objective, str):
            return data.newest.get(self.objective, data.metrics[self.objective]).astype(float)
        objective, counts = self.objective, recorded_counts(spec, data, groups)
        series = {n: read_only(x) for n, x in data.metrics.items()}
        each = (
            {n: x[i, : counts[n][i]] if n in counts else x[i] for n, x in series.items()}
            for i in range(len(data.number))
        )
        return np.array([as_float(objective(one), self.name) for one in each], float)


def recorded_counts(
    spec: ExperimentSpec, data: TrialData, groups: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return for each series the number of values that each trial has. The rest is padding.

    Args:
      spec: the experiment.
      data: the trials.
      groups: int array: the static group of each point; by default that in `spec`.
    """
    groups, counts = spec.group_of() if groups is None else groups, {}
    group = groups[data.number // len(spec.seeds)]
    for name, steps in spec.recorded_steps.items():
        lengths = np.array([metrics[name].shape[0] for metrics in spec.metrics])
        reached = spec.schedule.reach(lengths[group], data.steps_completed)
        counts[name] = np.searchsorted(steps, reached, side="right")
    return counts


def read_only(x: np.ndarray) -> np.ndarray:
    """Return a read-only view, because an objective gets arrays that the result holds."""
    view = x.view()
    view.flags.writeable = False
    return view


def as_float(value: Any, name: str) -> float:
    """Return the value of an objective as a float; ValueError if it is not a number."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind in "OUSc":
        returned = f"an array of shape {array.shape}" if array.ndim else repr(value)
        raise ValueError(
            f"the objective {name!r} must return one number, got {returned}. Return a float, such "
            "as metrics['loss'][-1]."
        )
    return float(array.reshape(()))


def checked_objective(objective: Any, mode: Any, spec: ExperimentSpec) -> ObjectiveSpec:
    """Return the objective, tested on metrics of zeros; ValueError if these do not give it."""
    if mode not in ("min", "max"):
        raise ValueError(f'mode must be "min" or "max", got {mode!r}. Pass mode="min".')
    checked, names = ObjectiveSpec(objective, mode), list(spec.metrics[0])
    shapes = {name: spec.shape(name) for name in names}
    has = ", ".join(f"{name} {list(shape) or 'scalar'}" for name, shape in shapes.items())
    if isinstance(objective, str):
        if objective not in names:
            raise ValueError(
                f"objective must be a metric's name or a function, got {objective!r}, but train "
                f"returned {sorted(names)}. Pass objective={sorted(names)[0]!r}, for example."
            )
        return checked
    if not callable(objective):
        raise ValueError(
            f"objective must be a metric's name or a function, got {type(objective).__name__}. "
            f"Pass objective={sorted(names)[0]!r}, for example."
        )
    zeros = {name: read_only(np.zeros(x, spec.dtype(name))) for name, x in shapes.items()}
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = objective(zeros)
    except (KeyError, TypeError, AttributeError, IndexError, NameError) as error:
        raise ValueError(
            f"the objective {checked.name!r} must be a function of one trial's metrics, but "
            f"raised {error!r} on metrics of zeros. Use these metrics, NumPy arrays: {has}."
        ) from error
    except Exception as error:  # such as a division by zero: real metrics may not be zero
        if "read-only" in str(error):
            raise ValueError(
                f"the objective {checked.name!r} must not write into the metrics, which are the "
                f"result's own arrays, but raised {error!r}. Copy them first: x = x.copy()."
            ) from error
        return checked
    as_float(value, checked.name)
    return checked
