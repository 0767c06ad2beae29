"""The status of a trial: unfinished, failed, pruned, or complete."""

import numpy as np

STATUSES = UNFINISHED, FAILED, PRUNED, COMPLETE = "unfinished", "failed", "pruned", "complete"


def statuses(under_way: np.ndarray, objective: np.ndarray, is_pruned: np.ndarray) -> np.ndarray:
    """Return the status of each trial, an array of text.

    Args:
      under_way: bool array, shape (trials,): whether a trial has not ended.
      objective: float array, shape (trials,).
      is_pruned: bool array, shape (trials,): whether a trial ended before its last step.
    """
    is_failed = ~np.isfinite(objective)
    return np.select([under_way, is_failed, is_pruned], [UNFINISHED, FAILED, PRUNED], COMPLETE)
