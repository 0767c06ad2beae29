"""What `search.optimize` makes of its arguments before it runs."""

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
"""The user attributes that each study trial is given."""


def some_points(axes: Mapping[str, Axis], count: int) -> Points:
    """Return points of some static groups, where these are too many to trace all."""

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
    """Return an objective for each direction of a study."""
    several = objective if isinstance(objective, tuple | list) else (objective,)
    if len(several) != len(study.directions):
        raise ValueError(
            f"the study has {len(study.directions)} directions, and objective names "
            f"{len(several)}: {objective!r}. Give a tuple of as many metrics, or functions."
        )
    return tuple(several)


def kept_of_several(experiment: Experiment) -> int | str:
    """Return how many states are kept: of several objectives no trial is best."""
    keep = experiment.keep_states
    if len(experiment.objectives) == 1 or keep in (0, "all"):
        return keep
    if keep != Options.keep_states:
        raise ValueError(
            f'keep_states must be 0 or "all" where the study has several directions, got {keep}: '
            'no trial is best. Write keep_states="all".'
        )
    return 0


def checked_attributes(
    attributes: Mapping[str, Objective] | None, spec: ExperimentSpec
) -> dict[str, ObjectiveSpec]:
    """Return what each study trial is given besides its values; tried on zeros, as an objective."""
    attributes = {} if attributes is None else attributes
    if not isinstance(attributes, Mapping):
        raise ValueError(
            f"attributes must be a dict of functions of one trial's metrics, got {attributes!r}. "
            "Write attributes={'norm': lambda metrics: metrics['norm'][-1]}."
        )
    check_names("attributes", attributes)
    if clash := sorted(OWN_ATTRIBUTES & attributes.keys()):
        raise ValueError(
            f"attributes must have other names than those that search gives, got {clash}. Rename "
            "these."
        )
    found = {}
    for name, function in attributes.items():
        try:
            found[name] = checked_objective(function, "min", spec)
        except ValueError as error:
            raise ValueError(
                f"attributes[{name!r}] must be what an objective may be: {error}"
            ) from error
    return found


def refuse_pruner(pruner: Any) -> None:
    """Refuse a pruner that compares problem instances."""
    while pruner is not None:
        if isinstance(pruner, optuna.pruners.WilcoxonPruner):
            raise ValueError(
                "WilcoxonPruner compares trials on the same problem instances; here the values "
                "reported are one learning curve, step by step. Take MedianPruner or "
                "HyperbandPruner, say."
            )
        pruner = getattr(pruner, "_wrapped_pruner", None)
