"""The best of k points drawn at random, as a function of k: what more points would give."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from rmsprop_jax._tune.space.points import SAMPLED, Points
from rmsprop_jax._tune.space.values import is_int

MOST_BUDGETS = 64  # numbers of points, if the caller names none
NOT_A_SAMPLE = {
    "list": "were listed",
    "grid": "are a grid, which has no order in which its points could have been tried",
    "a + b": "are a sum of two sequences (a + b), and not draws from one space",
    "a * b": "are a product (a * b), whose points share values",
    "filter": "were filtered, which changes what a draw may give",
    "search": "were proposed by a study's sampler, each after the results of others",
}


class ExpectedBest(NamedTuple):
    """What the best of k points gives, for each number of points k."""

    budgets: np.ndarray
    """int array: the numbers of points k."""
    expected: np.ndarray
    """float64 array: the expected objective of the best of k points. It is optimistic: the best of
    many points is in part the luckiest. ∞ (−∞ for `mode="max"`) where all k points may have
    failed."""
    completes: np.ndarray
    """float64 array: the probability that k points contain one that completes."""
    held_out: np.ndarray
    """float64 array: the expected objective, with a seed that had no part in the choice, of the
    point that is best with the other seeds. NaN for one seed."""
    held_out_ci95: np.ndarray
    """float64 array of shape (budgets, 2): the 95% confidence interval of `held_out`, by Student's
    t over the left-out seeds, corrected for the seeds that their choices share. NaN for one
    seed."""
    draws: str
    """What k counts: "k random points", or "k of these n points, at random"."""


def expected_best(
    points: Points, table: np.ndarray, mode: str, budgets: Iterable[int] | None
) -> ExpectedBest:
    """Return what the best of k points gives.

    Args:
      points: a sample.
      table: float array, shape (points, seeds): the objective of each trial; NaN for a failed one.
      mode: "min" or "max".
      budgets: the numbers of points k.

    Raises:
      ValueError: for points that are not a sample, or a budget that is not between 1 and their
        number.
    """
    check_sample(points)
    count, seeds = table.shape
    chosen = _checked_budgets(budgets, count)
    sign = 1.0 if mode == "min" else -1.0
    has_failed = ~np.isfinite(table).all(1)
    costs = np.where(np.expand_dims(has_failed, 1), np.inf, sign * table)
    means = costs.mean(1)
    held_out, ci95 = np.full(len(chosen), np.nan), np.full((len(chosen), 2), np.nan)
    if seeds > 1:
        others = (np.delete(costs, seed, 1).mean(1) for seed in range(seeds))
        folds = np.array([_curve(x, costs[:, i], chosen) for i, x in enumerate(others)])
        held_out = folds.mean(0)
        finite = np.isfinite(held_out)
        ci95[finite] = _intervals(folds[:, finite])
    failed = int(np.sum(has_failed))
    return ExpectedBest(
        chosen,
        sign * _curve(means, means, chosen),
        1 - np.exp(_log_choose(failed, chosen) - _log_choose(count, chosen)),
        sign * held_out,
        np.sort(sign * ci95, axis=1),
        "k random points" if points.method == "random" else f"k of these {count} points, at random",
    )


def _intervals(folds: np.ndarray) -> np.ndarray:
    """Return the 95% confidence interval of the mean over folds, of shape (budgets, 2).

    Two folds choose their points by common seeds, so that their values depend on each other. The
    plain t interval is therefore too narrow: with normal noise and 3 to 8 seeds, it covers 0.80 to
    0.88. This interval has the variance of Nadeau and Bengio, with 1/n + 1/(n − 1) instead of 1/n,
    and covers 0.94 to 0.95 there. With other noise or 24 seeds, it covers 0.85 to 0.95
    (`python -m tests.support.coverage`).

    Args:
      folds: float array, shape (seeds, budgets).
    """
    from scipy.special import stdtrit

    seeds, mean, std = len(folds), folds.mean(0), folds.std(0, ddof=1)
    half = stdtrit(seeds - 1, 0.975) * std * np.sqrt(1 / seeds + 1 / (seeds - 1))
    return np.stack([mean - half, mean + half], axis=1)


def check_sample(points: Points) -> None:
    """Raise ValueError for points that are not a sample."""
    if points.method not in SAMPLED:
        raise ValueError(
            "result must be a sweep over a sample for expected_best, because it asks what k points "
            f"drawn at random give, but its points {NOT_A_SAMPLE[points.method]}. Pass "
            "rj.sample(space, n) to sweep, or a slice of it."
        )


def _checked_budgets(budgets: Iterable[int] | None, count: int) -> np.ndarray:
    """Return the budgets as an array; by default at most 64 of 1 … count."""
    if budgets is None:
        if count <= MOST_BUDGETS:
            return np.arange(1, count + 1)
        return np.unique(np.round(np.geomspace(1, count, MOST_BUDGETS)).astype(int))
    found = list(budgets)
    if not found or not all(is_int(k) and 1 <= k <= count for k in found):
        raise ValueError(
            f"budgets must be whole numbers between 1 and {count}, the points of the sweep, got "
            f"{found}. Pass budgets=[1, {count}], for example."
        )
    return np.array(found, int)


def _log_choose(n: np.ndarray | int, k: np.ndarray | int) -> np.ndarray:
    """Return the logarithm of the binomial coefficient C(n, k); −∞ for k > n."""
    from scipy.special import gammaln

    log = gammaln(np.add(n, 1)) - gammaln(np.add(k, 1)) - gammaln(np.maximum(n - k, 0) + 1)
    return np.where(np.greater(k, n), -np.inf, log)


def _curve(ranks: np.ndarray, values: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """Return the expected value of the point that ranks first among k drawn ones, for each k.

    The i-th of n points, in order, is the first of k drawn ones with the probability
    C(n − i, k − 1)/C(n, k), because the k − 1 others come from the n − i points after it.

    Args:
      ranks: float array, shape (points,): the lowest ranks first. Equal points are as likely.
      values: float array, shape (points,): the value of each point.
      budgets: int array: the numbers of drawn points k.
    """
    order, count = np.argsort(ranks, kind="stable"), len(ranks)
    _, group, size = np.unique(ranks[order], return_inverse=True, return_counts=True)
    in_order = (np.bincount(group, values[order]) / size)[group]
    after = np.arange(count - 1, -1, -1)
    found = np.full(len(budgets), np.inf)
    for at, k in enumerate(budgets.tolist()):
        may_be_first = slice(count - k + 1)
        if np.isfinite(in_order[may_be_first]).all():
            chances = np.exp(_log_choose(after[may_be_first], k - 1) - _log_choose(count, k))
            found[at] = chances @ in_order[may_be_first]
    return found
