"""The hyperparameters that led to a trial's state: its own, and those of the donors it copied."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rmsprop_jax._tune.experiment_spec import ExperimentSpec
from rmsprop_jax._tune.trials.decision_log import AppliedDecision


class Change(NamedTuple):
    """A change of a trial's traced hyperparameters."""

    start: int
    """The step after which the trial trained with the new values; 0 for the first values."""
    donor: int | None
    """The trial whose state it copied at this step; None for the first values."""
    numbers: dict[str, float]
    """The new values of all its traced hyperparameters."""


class Stretch(NamedTuple):
    """A span of steps, before a state, with the same hyperparameters."""

    start: int
    """The step after which the stretch begins."""
    stop: int
    """The last step of the stretch."""
    point: int
    """The index of the point whose trial ran these steps."""
    numbers: dict[str, float]
    """The values of its traced hyperparameters."""


def histories(spec: ExperimentSpec, decisions: Sequence[AppliedDecision]) -> list[list[Change]]:
    """Return the changes of each trial, in order.

    Args:
      spec: the experiment of the sweep.
      decisions: the scheduler's decisions, in order.
    """
    seeds = len(spec.seeds)
    found = [
        [Change(0, None, spec.points.traced(point))]
        for point in range(len(spec.points))
        for _ in range(seeds)
    ]
    for decision in decisions:
        for point, (donor, numbers) in decision.copies.items():
            for seed in range(seeds):
                change = Change(decision.step, donor * seeds + seed, numbers)
                found[point * seeds + seed].append(change)
    return found


def path(
    history: Sequence[Sequence[tuple[int, int | None, dict[str, float]]]],
    steps_completed: np.ndarray,
    point: int,
    end: int | None = None,
) -> list[Stretch]:
    """Return the stretches that led to the state of a point at a step, in order, donors included.

    Args:
      history: the changes of each trial, as `histories` returns them.
      steps_completed: int array, shape (points, seeds): the steps that each trial has run.
      point: the index of the point.
      end: the step; None for the last step that the point has run.
    """
    found: list[Stretch] = []
    seeds = steps_completed.shape[1]
    while True:
        seed = most_advanced(steps_completed[point])
        end = int(steps_completed[point, seed]) if end is None else end
        *_, (start, donor, numbers) = (x for x in history[point * seeds + seed] if x[0] < end)
        found.append(Stretch(start, end, point, numbers))
        if donor is None:
            return found[::-1]
        point, end = donor // seeds, start


def most_advanced(steps_completed: np.ndarray) -> int:
    """Return the seed that has run the most steps.

    The seeds of a point share their hyperparameters. They have run different numbers of steps only
    after an interruption.

    Args:
      steps_completed: int array, shape (seeds,): the steps that each seed of a point has run.
    """
    return int(steps_completed.argmax())
