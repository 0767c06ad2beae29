"""Statistics over seeds and points: means, ranks, intervals, comparisons, levels of an axis."""

import math
import warnings
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmsprop_jax._tune.space.points import Points
from rmsprop_jax._tune.space.values import is_number, label

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
    """The 95% confidence interval of the difference, by Student's t; NaN for one seed."""
    p_value: float
    """The p-value of the paired, two-sided t test; NaN for one seed."""
    seeds: int
    """The number of seeds of which both trials are complete."""


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


def ranked(table: np.ndarray, mode: str, feasible: np.ndarray | None = None) -> np.ndarray:
    """Return the rows of a table in the order of their means, best first.

    Feasible rows come first. Among them, and among the others, rows whose values are all finite
    come first, and rows without a finite value last. Then the mean decides. Equal rows keep their
    order.

    Args:
      table: float array, shape (points, seeds).
      mode: "min" or "max".
      feasible: bool array, shape (points,); by default all are.
    """
    best_first = means(table) if mode == "min" else -means(table)
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


def paired(differences: np.ndarray) -> Comparison:
    """Return the paired t test of these differences."""
    mean, std, ci95 = mean_std_ci95(differences)
    if len(differences) == 1:
        p_value = math.nan
    elif std == 0:
        p_value = float(mean == 0)
    else:
        p_value = _t_test(differences)[0]
    return Comparison(mean, ci95, p_value, len(differences))


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
