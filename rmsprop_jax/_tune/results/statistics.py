"""Statistics over seeds and points: means, ranks, intervals, comparisons, levels of an axis."""

import math
import warnings
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmsprop_jax._tune.space.points import Points
from rmsprop_jax._tune.space.values import is_number, label

STATISTICS = ("mean", "median", "iqm", "worst")
FEWEST_FOR_IQM = 4  # seeds; the interquartile mean of three values is their mean
# A 95% percentile bootstrap of a mean covers 0.74 with 3 seeds and 0.90 with 8; the t interval
# covers 0.94 to 0.96.
FEWEST_FOR_BOOTSTRAP = 20
MOST_FOR_SIGN_FLIPS = 12  # seeds, 4,096 assignments of signs
MOST_LEVELS = 12  # an axis of more numbers is cut into PARTS
PARTS = 8


class _Absent:
    """The value of a hyperparameter that a point does not have."""

    def __repr__(self) -> str:
        return "–"


ABSENT = _Absent()


class Comparison(NamedTuple):
    """The difference between two points, paired by seed."""

    difference: float
    """The mean over the seeds of the first point's objective minus the second's."""
    ci95: tuple[float, float]
    """The 95% confidence interval of the difference; NaN for one seed."""
    p_value: float
    """The p-value of the paired, two-sided t test; NaN for one seed."""
    seeds: int
    """The number of seeds of which both trials are complete."""
    wins: float
    """The share of the seeds with which the first point is better. A tie counts as half."""
    wins_ci95: tuple[float, float]
    """The 95% Wilson interval of `wins`."""
    improvement: float
    """The probability that the first point is better with one seed than the second point with
    another, unpaired, as in rliable (https://arxiv.org/abs/2108.13264)."""
    sign_flip_p_value: float
    """The exact p-value of the paired, two-sided sign-flip test; NaN for more than 12 seeds. With n
    seeds it is at least 2/2ⁿ: 0.25 for 3 seeds."""


class Level(NamedTuple):
    """The points that share a value of a hyperparameter, or a range of its values."""

    label: str
    """The value or the range, as a picture shows it."""
    values: list[Any]
    """The values, of any type that a hyperparameter may have."""
    points: np.ndarray
    """int array: the indices of the points."""


def means(table: np.ndarray) -> np.ndarray:
    """Return the mean of the finite values of each row; NaN for a row without one."""
    finite = np.isfinite(table)
    sums, count = np.where(finite, table, 0.0).sum(1), finite.sum(1)
    return np.divide(sums, count, out=np.full(len(table), np.nan), where=count > 0)


def summaries(table: np.ndarray, statistic: str, mode: str) -> np.ndarray:
    """Return a statistic of the finite values of each row; NaN for a row without one.

    Args:
      table: float array, shape (points, seeds).
      statistic: "mean", "median", "iqm" (the interquartile mean), or "worst".
      mode: "min" or "max", which decides what is worst.
    """
    if statistic == "mean":
        return means(table)

    def summary(values: np.ndarray) -> float:
        if not len(values):
            return math.nan
        if statistic == "median":
            return float(np.median(values))
        if statistic == "worst":
            return float(values.max() if mode == "min" else values.min())
        cut = len(values) // 4
        return float(np.sort(values)[cut : len(values) - cut].mean())

    return np.array([summary(row[np.isfinite(row)]) for row in table])


def check_statistic(statistic: str, seeds: int) -> None:
    """Raise ValueError for an unknown statistic, or one that has no meaning for so few seeds."""
    if statistic not in STATISTICS:
        raise ValueError(
            f"statistic must be one of {list(STATISTICS)}, got {statistic!r}. Pass "
            'statistic="median".'
        )
    if statistic == "iqm" and seeds < FEWEST_FOR_IQM:
        raise ValueError(
            f'statistic="iqm" must have at least {FEWEST_FOR_IQM} seeds, got {seeds}: without the '
            "lowest and the highest quarter, it is the mean of all. Run more seeds, or pass "
            'statistic="mean".'
        )


def ranked(
    table: np.ndarray,
    mode: str,
    feasible: np.ndarray | None = None,
    statistic: str = "mean",
) -> np.ndarray:
    """Return the rows of a table in the order of a statistic, best first.

    Feasible rows come first. Among them, and among the others, rows whose values are all finite
    come first, and rows without a finite value last. Then the statistic decides. Equal rows keep
    their order.

    Args:
      table: float array, shape (points, seeds).
      mode: "min" or "max".
      feasible: bool array, shape (points,); by default all are.
      statistic: the statistic over the seeds, one of `STATISTICS`.
    """
    best_first = summaries(table, statistic, mode)
    best_first = best_first if mode == "min" else -best_first
    feasible = np.ones(len(table), bool) if feasible is None else feasible
    return np.lexsort((best_first, ~np.isfinite(table).all(1), ~feasible))


def mean_std_ci95(values: np.ndarray) -> tuple[float, float, tuple[float, float]]:
    """Return the mean, the sample standard deviation, and the 95% confidence interval of the mean,
    by Student's t. One value has neither deviation nor interval: they are NaN."""
    mean = float(values.mean())
    if len(values) == 1:
        return mean, math.nan, (math.nan, math.nan)
    std = float(values.std(ddof=1))
    if std == 0:
        return mean, std, (mean, mean)
    return mean, std, _t_test(values)[1]


def paired(first: np.ndarray, second: np.ndarray, mode: str, interval: str = "t") -> Comparison:
    """Return the comparison of two points.

    Args:
      first: float array, shape (seeds,): the objectives of the first point, all finite.
      second: those of the second point, with the same seeds.
      mode: "min" or "max".
      interval: "t" for Student's t interval, or "bca" for a bootstrap.

    Raises:
      ValueError: for another interval, or a bootstrap of few seeds.
    """
    differences, count = first - second, len(first)
    mean, std, ci95 = mean_std_ci95(differences)
    if interval == "bca":
        ci95 = _bootstrap(differences)
    elif interval != "t":
        raise ValueError(f'interval must be "t" or "bca", got {interval!r}. Pass interval="t".')
    if count == 1:
        p_value = math.nan
    elif std == 0:
        p_value = float(mean == 0)
    else:
        p_value = _t_test(differences)[0]
    wins = _share_better(first, second, mode)
    each = _share_better(first[:, None], second[None, :], mode)
    flips = _sign_flips(differences)
    return Comparison(mean, ci95, p_value, count, wins, _wilson(wins, count), each, flips)


def _share_better(first: np.ndarray, second: np.ndarray, mode: str) -> float:
    """Return the share of pairs of which the first is better. A tie counts as half."""
    better = first < second if mode == "min" else first > second
    return float(np.mean(better + 0.5 * (first == second)))


def _wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95% Wilson interval of a share of `count` cases."""
    from scipy.special import ndtri

    z2 = float(ndtri(0.975)) ** 2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def _sign_flips(differences: np.ndarray) -> float:
    """Return the exact p-value of the sign-flip test; NaN for more than 12 differences."""
    count = len(differences)
    if count > MOST_FOR_SIGN_FLIPS:
        return math.nan
    signs = 1 - 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
    means = np.abs(signs @ differences)
    # Sums in another order round differently, so that equal means need not be equal numbers.
    least = np.abs(differences.sum()) - 1e-12 * np.abs(differences).sum()
    return float(np.mean(means >= least))


def _bootstrap(values: np.ndarray) -> tuple[float, float]:
    """Return the 95% BCa bootstrap interval of the mean.

    Raises:
      ValueError: for fewer than 20 values.
    """
    if len(values) < FEWEST_FOR_BOOTSTRAP:
        raise ValueError(
            f'interval="bca" must have at least {FEWEST_FOR_BOOTSTRAP} seeds, got {len(values)}: '
            'for fewer, a bootstrap interval is too narrow. Pass interval="t", Student\'s t, '
            "which holds for few seeds."
        )
    from scipy.stats import bootstrap  # takes half a second to import

    if (values == values[0]).all():
        return float(values[0]), float(values[0])
    found: Any = bootstrap((values,), np.mean, method="BCa", rng=np.random.default_rng(0))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _t_test(values: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Return the p-value of the two-sided t test of whether the mean is 0, and the mean's 95%
    confidence interval."""
    from scipy.stats import ttest_1samp  # takes half a second to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy warns of a loss of precision in nearly equal values
        test: Any = ttest_1samp(values, 0.0)  # SciPy's results have no types
    low, high = test.confidence_interval(0.95)
    return float(test.pvalue), (float(low), float(high))


def levels(points: Points, name: str) -> list[Level]:
    """Group points by their value of a hyperparameter.

    Numbers come first, in order; more than 12 are cut into eighths. Other values follow in the
    order of the points, and so does the group of points without the hyperparameter.

    Raises:
      ValueError: for a name that the points do not have.
    """
    if name not in points.names:
        raise ValueError(
            f"the name of a hyperparameter must be one of {list(points.names)}, got {name!r}. Pass "
            "one of these names."
        )
    alike: dict[Hashable, tuple[Any, list[int]]] = {}
    for i, point in enumerate(points):
        value = point.get(name, ABSENT)
        alike.setdefault(points.value_key(name, value), (value, []))[1].append(i)
    numbers = sorted((x for x in alike.values() if is_number(x[0])), key=lambda x: float(x[0]))
    parts = len(numbers) if len(numbers) <= MOST_LEVELS else PARTS
    found = []
    for part in np.array_split(np.arange(len(numbers)), parts) if parts else ():
        some = [numbers[i] for i in part]
        values = [value for value, _ in some]
        text = label(values[0])
        if len(values) > 1:
            text = " … ".join(f"{x:.{4 if 0.9 < x < 1 else 2}g}" for x in (values[0], values[-1]))
        found.append(Level(text, values, np.sort(np.concatenate([at for _, at in some]))))
    others = [x for x in alike.values() if not is_number(x[0])]
    return found + [Level(label(value), [value], np.array(at)) for value, at in others]


def edge(groups: Sequence[Level], at: int) -> str:
    """Return "lowest" or "highest" if the level is at an end of at least 3 levels of numbers, so
    that better values may lie beyond; else "".

    Args:
      groups: the levels of a hyperparameter, as `levels` returns them.
      at: the index of a level.
    """
    last = sum(is_number(group.values[0]) for group in groups) - 1
    if last < 2:
        return ""
    return {0: "lowest", last: "highest"}.get(at, "")


def best_of(
    groups: Sequence[Level], means: np.ndarray, feasible: np.ndarray, mode: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best point of each group and its mean; −1 and NaN for a group without a mean.

    Args:
      groups: groups of points.
      means: float array, shape (points,): the mean objective of each point, or NaN.
      feasible: bool array, shape (points,): a feasible point comes before one that is not.
      mode: "min" or "max".
    """
    pick = np.nanargmin if mode == "min" else np.nanargmax

    def best_among(points: np.ndarray) -> int:
        known = points[np.isfinite(means[points])]
        if feasible[known].any():
            known = known[feasible[known]]
        return int(known[pick(means[known])]) if len(known) else -1

    best = np.array([best_among(group.points) for group in groups])
    return best, np.where(best >= 0, means[best], np.nan)


def sensitivity(
    points: Points, means: np.ndarray, feasible: np.ndarray, mode: str
) -> dict[str, float]:
    """Return for each hyperparameter the range of its values' best means, the largest first."""
    found = {}
    for name in points.names:
        _, at_best = best_of(levels(points, name), means, feasible, mode)
        at_best = at_best[np.isfinite(at_best)]
        if len(at_best) > 1:
            found[name] = float(at_best.max() - at_best.min())
    return dict(sorted(found.items(), key=lambda item: -item[1]))
