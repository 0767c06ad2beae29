"""The points of a result as the trials of a study."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from rmsprop_jax._tune.search.space import Axis, Space, axes_of, params_of
from rmsprop_jax._tune.space.distributions import choice
from rmsprop_jax._tune.space.points import Points, static
from rmsprop_jax._tune.space.values import Value, identity
from rmsprop_jax._tune.trials.status import FAILED, PRUNED, UNFINISHED

LOG_RANGE = 100  # positive numbers that span this factor get a logarithmic distribution


class PointOutcomes(NamedTuple):
    """The points of a result, and what came of each with each seed."""

    points: Points
    seeds: tuple[int, ...]
    mode: str
    """"min" or "max"."""
    status: np.ndarray
    """Array of text, shape (points, seeds)."""
    objective: np.ndarray
    """float64 array, shape (points, seeds)."""
    feasible: np.ndarray
    """bool array, shape (points, seeds)."""
    steps: list[int]
    """The evaluation steps."""
    reported: np.ndarray
    """float64 array, shape (points, evaluation steps): the mean objective over the seeds at each;
    NaN where it is not known."""


def to_study(
    outcomes: PointOutcomes, space: Space | None, study: optuna.Study | None, storage: Any
) -> optuna.Study:
    """Return a study with a trial for each point of a result: see `SweepResult.to_study`.

    Args:
      outcomes: the points of the result.
      space: the distribution of each hyperparameter; None for that of the points, or their ranges.
      study: the study that gets the trials; None for a new one.
      storage: the storage of a new study.
    """
    points = outcomes.points
    axes = axes_of(space or points.space or _ranges(points))
    if study is not None:
        _check_study(study, storage, outcomes.mode, axes)
    trials: list[FrozenTrial] = []
    for i, point in enumerate(points):
        if UNFINISHED in outcomes.status[i]:
            continue
        state, value, attributes = _outcome(outcomes, i)
        each = zip(outcomes.steps, outcomes.reported[i].tolist(), strict=True)
        known = {step: x for step, x in each if not math.isnan(x)}
        trials.append(_trial(point, axes, state, value, attributes, known))
    if study is None:  # after the trials are checked
        direction = "maximize" if outcomes.mode == "max" else "minimize"
        study = optuna.create_study(storage=storage, direction=direction)
    study.add_trials(trials)
    return study


def _outcome(outcomes: PointOutcomes, i: int) -> tuple[TrialState, float | None, dict[str, Any]]:
    """Return the state, the value, and the user attributes of a point's study trial."""
    status, values, seeds = outcomes.status[i], outcomes.objective[i], outcomes.seeds
    attributes: dict[str, Any] = {"seeds": list(seeds)}
    if not outcomes.feasible[i].all():
        attributes["feasible"] = False
    if FAILED in status:
        failed = np.flatnonzero(status == FAILED).tolist()
        return TrialState.FAIL, None, attributes | {"failed_seeds": [seeds[i] for i in failed]}
    if len(values) > 1:
        attributes["std"] = float(values.std(ddof=1))
    if PRUNED in status:
        return TrialState.PRUNED, None, attributes
    return TrialState.COMPLETE, float(values.mean()), attributes


def _trial(
    point: Mapping[str, Value],
    axes: Mapping[str, Axis],
    state: TrialState,
    value: float | None,
    attributes: dict[str, Any],
    intermediate: dict[int, float],
) -> FrozenTrial:
    """Return a study trial; ValueError for a point outside the space."""
    params = params_of(point, axes)
    by_parameter = {axis.parameter: (name, axis) for name, axis in axes.items()}
    distributions = {parameter: by_parameter[parameter][1].distribution for parameter in params}
    for parameter, x in params.items():
        name, axis = by_parameter[parameter]
        ends = axis.distribution
        if isinstance(ends, FloatDistribution | IntDistribution) and not ends.low <= x <= ends.high:
            raise ValueError(
                f"each point must lie in the space, got {dict(point)}, whose {name!r} is not in "
                f"{ends}. Pass a wider space."
            )
    return optuna.trial.create_trial(
        state=state,
        value=value,
        params=params,
        distributions=distributions,
        user_attrs=attributes,
        intermediate_values=intermediate,
    )


def _ranges(points: Points) -> Space:
    """Return a space from the values of the points.

    Traced numbers get their range, logarithmic if all are positive and span a factor of 100. Other
    values, and axes of numbers and other values, are choices.
    """
    space: dict[str, Any] = {}
    for name in points.names:
        values = [point[name] for point in points if name in point]
        if not all(points.is_traced(name, x) for x in values):
            different = list({identity(x): x for x in values}.values())
            space[name] = choice(static(different) if name in points.static else different)
            continue
        low, high = min(values), max(values)
        is_log = low > 0 and high / low >= LOG_RANGE
        is_int = points.dtype(name).kind == "i"
        space[name] = (IntDistribution if is_int else FloatDistribution)(low, high, log=is_log)
    return space


def _check_study(study: optuna.Study, storage: Any, mode: str, axes: Mapping[str, Axis]) -> None:
    """Raise ValueError for a study that cannot get the trials."""
    if not isinstance(study, optuna.Study):
        raise ValueError(
            f"study must be an Optuna study, got {study!r}. Pass optuna.create_study()."
        )
    if storage is not None:
        raise ValueError(
            f"storage must be left out if study is given, got {storage!r}: the study has its own. "
            "Pass one of them."
        )
    modes = [direction.name[:3].lower() for direction in study.directions]
    if modes != [mode]:
        raise ValueError(
            f'study must have the direction of the result, mode="{mode}", got {modes}. Pass '
            f'optuna.create_study(direction="{mode}imize"), or a result.rescored(objective, mode).'
        )
    ours = {axis.parameter: axis.distribution for axis in axes.values()}
    for trial in study.get_trials(deepcopy=False):
        for parameter, theirs in trial.distributions.items():
            if parameter not in ours:
                continue
            try:
                optuna.distributions.check_distribution_compatibility(theirs, ours[parameter])
            except ValueError as error:
                raise ValueError(
                    f"space must have the study's distribution of {parameter!r}, {theirs}, got "
                    f"{ours[parameter]}. Pass the space of its other trials, or a new study."
                ) from error
