"""Which hyperparameters led to a trial's state: its own, and those of the donors that it copied."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rmsprop_jax._tune.experiment_spec import ExperimentSpec
from rmsprop_jax._tune.trials.decision_log import AppliedDecision


class Change(NamedTuple):
    """From when a trial trained with these numbers."""

    start: int
    """The step after which it did; 0 at its beginning."""
    donor: int | None
    """The trial whose state it copied then; None at its beginning."""
    numbers: dict[str, float]
    """Its traced hyperparameters from then on."""


class Stretch(NamedTuple):
    """Steps of one trial with the same hyperparameters, on the way to a state."""

    start: int
    """The step after which they begin."""
    stop: int
    """The last of them."""
    point: int
    """The point of the trial that ran them."""
    numbers: dict[str, float]
    """Its traced hyperparameters."""


def histories(
    plan: ExperimentSpec, trials: np.ndarray, decided: Sequence[AppliedDecision]
) -> list[list[Change]]:
    """Return the changes of each of these trials, in order."""
    found: list[list[Change]] = []
    for trial in trials.tolist():
        point, seed = divmod(trial, len(plan.seeds))
        found.append([Change(0, None, plan.points.traced(point))])
        for decision in decided:
            if point in decision.copies:
                donor, numbers = decision.copies[point]
                donor = donor * len(plan.seeds) + seed
                found[-1].append(Change(decision.boundary, donor, numbers))
    return found


def path(
    history: Sequence[Sequence[Change]],
    point_index: np.ndarray,
    steps_completed: np.ndarray,
    seeds: int,
    point: int,
    end: int | None = None,
) -> list[Stretch]:
    """Return the stretches that led to the state of a point at a step, in order, over its donors.

    Args:
      history: the changes of each trial of a result.
      point_index: int array: the point of each trial.
      steps_completed: int array: the steps that each trial has run.
      seeds: how many the sweep has.
      point: the place of the point.
      end: the step; by default the last that the point has run.
    """
    found: list[Stretch] = []
    while True:
        row = furthest(point_index, steps_completed, point)
        end = int(steps_completed[row]) if end is None else end
        start, donor, numbers = [change for change in history[row] if change.start < end][-1]
        found.append(Stretch(start, end, point, numbers))
        if donor is None:
            return found[::-1]
        point, end = donor // seeds, start


def furthest(point_index: np.ndarray, steps_completed: np.ndarray, point: int) -> int:
    """Return the row of the point's most advanced trial.

    The seeds of a point share their numbers, and have run different numbers of steps only after an
    interruption.
    """
    rows = np.flatnonzero(point_index == point)
    return int(rows[steps_completed[rows].argmax()])
