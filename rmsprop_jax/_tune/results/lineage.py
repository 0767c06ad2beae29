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


def histories(plan: ExperimentSpec, decided: Sequence[AppliedDecision]) -> list[list[Change]]:
    """Return the changes of each trial, in order."""
    seeds = len(plan.seeds)
    found = [
        [Change(0, None, plan.points.traced(point))]
        for point in range(len(plan.points))
        for _ in range(seeds)
    ]
    for decision in decided:
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
    """Return the stretches that led to the state of a point at a step, in order, over its donors.

    Args:
      history: the changes of each trial, as `histories` returns them.
      steps_completed: int array, shape (points, seeds): the steps that each trial has run.
      point: the place of the point.
      end: the step; by default the last that the point has run.
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

    The seeds of a point share their numbers, and have run different numbers of steps only after an
    interruption.
    """
    return int(steps_completed.argmax())
