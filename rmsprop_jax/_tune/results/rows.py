"""The rows of a result, one for each trial: its values and its objective."""

from collections.abc import Sequence

import numpy as np

from rmsprop_jax._tune.experiment_spec import ExperimentSpec
from rmsprop_jax._tune.trials.data import TrialData, empty_trials
from rmsprop_jax._tune.trials.decision_log import AppliedDecision
from rmsprop_jax._tune.trials.objective import ObjectiveSpec, recorded_counts


def all_rows(spec: ExperimentSpec, trials: TrialData) -> TrialData:
    """Return a row for each trial of an experiment, in order.

    Args:
      spec: the experiment of the sweep.
      trials: trials that have begun, in any order, and perhaps others.

    Returns:
      The given rows, and empty ones for the trials that are not given. The arrays are those of
      `trials` if these are all trials in order.
    """
    number = trials.number
    if len(number) < spec.trials:
        rows = empty_trials(spec, spec.trials)._replace(seconds=trials.seconds)
        for name, values in trials.metrics.items():
            rows.metrics[name][number] = values
        for name, values in trials.newest.items():
            rows.newest[name][number] = values
        rows.steps_completed[number] = trials.steps_completed
        rows.steps_asked[number] = trials.steps_asked
        rows.pruned[number], rows.feasible[number] = trials.pruned, trials.feasible
        return rows
    in_order = bool((number == np.arange(spec.trials)).all())
    return trials if in_order else trials.take(np.argsort(number))


def objectives(spec: ExperimentSpec, rows: TrialData, objective: ObjectiveSpec) -> np.ndarray:
    """Return the objective of each trial at the last step that it has run; NaN for a trial that has
    not begun."""
    begun = rows.steps_completed > 0
    if begun.all():
        return objective.values(spec, rows)
    values = np.full(len(begun), np.nan)
    for part in rows.parts(np.flatnonzero(begun)):
        values[part] = objective.values(spec, rows.take(part))
    return values


def last_steps(
    spec: ExperimentSpec, rows: TrialData, decisions: Sequence[AppliedDecision]
) -> np.ndarray:
    """Return the step at which each trial ends: the last, or the step at which it was pruned."""
    ends = np.full(spec.trials, spec.schedule.end)
    ends = np.where(rows.pruned > 0, rows.steps_completed, ends)
    for decision in decisions:  # a pruned trial with a missing file runs to the rung again
        ends[spec.trials_of(list(decision.pruned))] = decision.step
    return ends


def measured(spec: ExperimentSpec, rows: TrialData) -> dict[str, np.ndarray]:
    """Return for each metric a bool array of its shape: True for a measured value.

    The arrays are read-only. An array that is True everywhere takes no memory.
    """
    begun, found = rows.steps_completed > 0, {}
    counts = recorded_counts(spec, rows)
    for name, values in rows.metrics.items():
        if name in counts:
            count = np.where(begun, counts[name], 0)[:, None]
            columns = np.arange(values.shape[1])
            valid = True if (count == values.shape[1]).all() else columns < count
        else:
            valid = True if begun.all() else begun
        found[name] = np.broadcast_to(valid, values.shape)
    return found


def intermediate(spec: ExperimentSpec, rows: TrialData, objective: ObjectiveSpec) -> np.ndarray:
    """Return the objective of each trial at each evaluation step that it has reached.

    Args:
      spec: the experiment.
      rows: a row for each trial.
      objective: the objective.

    Returns:
      float64 array, shape (trials, evaluation steps). NaN at steps that a trial has not reached,
      and at steps of a series that `record_every` left out.
    """
    steps, name = spec.schedule.evaluation_steps, objective.objective
    found = np.full((len(rows.number), len(steps)), np.nan)
    if isinstance(name, str):
        recorded = spec.recorded_steps[name]
        columns = np.minimum(np.searchsorted(recorded, steps), len(recorded) - 1)
        known = recorded[columns] == steps
        found[:, known] = rows.metrics[name][:, columns[known]]
        found[rows.steps_completed[:, None] < steps] = np.nan
        return found
    for i, step in enumerate(steps.tolist()):
        for part in rows.parts(np.flatnonzero(rows.steps_completed >= step)):
            then = rows.take(part)._replace(steps_completed=np.full(len(part), step))
            found[part, i] = objective.values(spec, then)
    return found
