"""How sure a mean over seeds is, how two points compare, which points share a value."""

import math
from typing import Any, NamedTuple

import numpy as np

from rmsprop_jax._sweep.points import Points, is_number

MOST_LEVELS = 12  # an axis of more numbers is cut into PARTS
PARTS = 8


class Comparison(NamedTuple):
    """Two points, seed by seed."""

    difference: float
    """The mean over the seeds of the first's objective minus the second's."""
    interval: tuple[float, float]
    """Its 95% confidence interval, by Student's t; NaN for one seed."""
    p_value: float
    """Of the paired, two-sided t test; NaN for one seed."""
    seeds: int
    """How many seeds both finished without failing."""


class Level(NamedTuple):
    """The points that share a value of a hyperparameter, or a range of its values."""

    label: str
    values: list[Any]
    points: np.ndarray
    """int array: which."""


def mean_spread_interval(values: np.ndarray) -> tuple[float, float, tuple[float, float]]:
    """The mean, the sample standard deviation, and the mean's 95% interval by Student's t."""
    n, mean = len(values), float(values.mean())
    if n == 1:
        return mean, math.nan, (math.nan, math.nan)
    from scipy.stats import t  # takes half a second to import

    spread = float(values.std(ddof=1))
    half = float(t.ppf(0.975, n - 1)) * spread / math.sqrt(n)
    return mean, spread, (mean - half, mean + half)


def paired(differences: np.ndarray) -> Comparison:
    """The paired t test of these differences."""
    mean, spread, interval = mean_spread_interval(differences)
    n = len(differences)
    if n == 1:
        return Comparison(mean, interval, math.nan, n)
    from scipy.stats import t

    if spread == 0:
        return Comparison(mean, interval, float(mean == 0), n)
    p_value = 2 * float(t.sf(abs(mean) / (spread / math.sqrt(n)), n - 1))
    return Comparison(mean, interval, p_value, n)


def levels(points: Points, name: str) -> list[Level]:
    """The points by their value of a hyperparameter, numbers in order, then the rest; more than
    12 numbers by eighths of them.

    Raises:
      ValueError: for a name that the points have not.
    """
    if name not in points.names:
        raise ValueError(f"the sweep has no axis {name!r}; it has {list(points.names)}.")
    column = [point[name] for point in points]
    where_number = np.array([is_number(value) for value in column])
    numbers, of = np.unique([x for x in column if is_number(x)], return_inverse=True)
    parts = len(numbers) if len(numbers) <= MOST_LEVELS else PARTS
    found = []
    for part in np.array_split(np.arange(len(numbers)), parts) if parts else ():
        at = np.flatnonzero(where_number)[np.isin(of, part)]
        values = numbers[part].tolist() if parts < len(numbers) else [column[at[0]]]
        label = value_label(values[0])
        if len(values) > 1:
            label = " … ".join(f"{x:.{4 if 0.9 < x < 1 else 2}g}" for x in (values[0], values[-1]))
        found.append(Level(label, values, at))
    others: list[tuple[Any, list[int]]] = []
    for i in np.flatnonzero(~where_number).tolist():
        for value, at in others:
            if value == column[i]:
                at.append(i)
                break
        else:
            others.append((column[i], [i]))
    return found + [Level(value_label(value), [value], np.array(at)) for value, at in others]


def value_label(value: Any) -> str:
    """A hyperparameter's value as tables and pictures show it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
