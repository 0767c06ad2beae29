"""How pictures look: colors, the kind of an axis, and matplotlib, imported when it is used."""

from collections.abc import Sequence
from typing import Any

import numpy as np

COLORS = {
    "RMSProp": "#009e73",
    "RMSProp, centered": "#56b4e9",
    "RMSProp + momentum": "#000000",
    "SGD": "#d55e00",
    "SGD + momentum": "#e69f00",
    "Adagrad": "#0072b2",
    "Adam": "#cc79a7",
}
"""A colour for each optimiser, the same in every picture; Okabe and Ito's, which the colour-blind
tell apart."""
BEST, GREY, PALE, FAINT = "#d62728", "0.6", "0.75", "0.85"


def line_colors(colors: Sequence[Any] | None, n: int) -> Sequence[Any]:
    """Given colours, or Okabe and Ito's eight."""
    colors = colors or (
        "#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#000000", "#f0e442",
    )  # fmt: skip
    if len(colors) < n:
        raise ValueError(f"{n} lines need as many colors, got {len(colors)}.")
    return colors


def pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            'rmsprop_jax.plots needs matplotlib: pip install "rmsprop_jax[plot]"'
        ) from error
    return pyplot


def axes_or_new(ax: Any) -> Any:
    return ax or pyplot().subplots(layout="constrained")[1]


def kind_of_axis(values: Any) -> str:
    """Linear, logarithmic where numbers span a factor of 30, logit for fractions close to 1."""
    low, high = np.min(values), np.max(values)
    if low > 0 and 0.9 < high < 1:
        return "logit"
    return "log" if low > 0 and high > 30 * low else "linear"
