"""The checks of the arguments of `search.optimize`, before anything runs."""

from collections.abc import Mapping
from typing import Any

import optuna

from rmsprop_jax._tune.experiment import Experiment
from rmsprop_jax._tune.experiment_spec import ExperimentSpec
from rmsprop_jax._tune.options import Options
from rmsprop_jax._tune.search.space import Axis, check_names, static_names
from rmsprop_jax._tune.space.points import Points
from rmsprop_jax._tune.trials.objective import Objective, ObjectiveSpec, checked_objective

OWN_ATTRIBUTES = {"seeds", "seconds", "std", "cause"}
"""The names of the user attributes that a search sets."""


def some_points(axes: Mapping[str, Axis], count: int) -> Points:
    """Return points of some static groups, for a space with too many to trace all.

    Args:
      axes: the axes of the space.
      count: the number of points.
    """

    def value(axis: Axis, i: int) -> Any:
        if axis.examples:
            return axis.examples[i % len(axis.examples)]
        bounds: Any = axis.distribution
        return axis.value(bounds.low + (bounds.high - bounds.low) * i // count)

    rows = [{name: value(axis, i) for name, axis in axes.items()} for i in range(count)]
    return Points.of(rows, static_names(axes))


def mode_of(direction: Any) -> str:
    """Return "min" or "max" for a direction of a study."""
    return "max" if direction == optuna.study.StudyDirection.MAXIMIZE else "min"


def checked_objectives(objective: Any, study: optuna.Study) -> tuple[Objective, ...]:
    """Return an objective for each direction of a study; ValueError for another number of them."""
    several = objective if isinstance(objective, tuple | list) else (objective,)
    if len(several) != len(study.directions):
        raise ValueError(
            f"objective must have one entry per direction of the study, {len(study.directions)}, "
            f"got {objective!r}. Pass a tuple of {len(study.directions)} metrics or functions."
        )
    return tuple(several)


def kept_of_several(experiment: Experiment) -> int | str:
    """Return `keep_states` for a study, in which no trial is best under several directions."""
    keep = experiment.keep_states
    if len(experiment.objectives) == 1 or keep in (0, "all"):
        return keep
    if keep != Options.keep_states:
        raise ValueError(
            'keep_states must be 0 or "all" for a study with several directions, in which no trial '
            f'is best, got {keep}. Pass keep_states="all".'
        )
    return 0


def checked_attributes(
    attributes: Mapping[str, Objective] | None, spec: ExperimentSpec
) -> dict[str, ObjectiveSpec]:
    """Return the functions of user attributes, each checked as an objective is.

    Args:
      attributes: metrics' names, or functions of one trial's metrics, by attribute; or None.
      spec: the experiment.

    Raises:
      ValueError: for a name that a search sets itself, or a value that no objective may be.
    """
    attributes = {} if attributes is None else attributes
    if not isinstance(attributes, Mapping):
        raise ValueError(
            f"attributes must be a dict of functions of one trial's metrics, got {attributes!r}. "
            "Pass attributes={'norm': lambda metrics: metrics['norm'][-1]}."
        )
    check_names("attributes", attributes)
    if clash := sorted(OWN_ATTRIBUTES & attributes.keys()):
        raise ValueError(
            f"attributes must have other names than those that a search sets itself, got {clash}. "
            "Rename them."
        )
    found = {}
    for name, function in attributes.items():
        try:
            found[name] = checked_objective(function, "min", spec)
        except ValueError as error:
            raise ValueError(f"attributes[{name!r}] must be a valid objective: {error}") from error
    return found


def refuse_pruner(pruner: Any) -> None:
    """Raise ValueError for a pruner that compares problem instances, also a wrapped one."""
    while pruner is not None:
        if isinstance(pruner, optuna.pruners.WilcoxonPruner):
            raise ValueError(
                "the study's pruner must compare learning curves, which a search reports, got a "
                "WilcoxonPruner, which compares problem instances. Pass, for example, "
                "optuna.pruners.MedianPruner() or HyperbandPruner() to create_study."
            )
        pruner = getattr(pruner, "_wrapped_pruner", None)
