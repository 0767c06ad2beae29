"""How pictures look: colors, the scale of an axis, and matplotlib, imported when it is used."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes

COLORS = {
    "RMSProp": "#009e73",
    "RMSProp, centered": "#56b4e9",
    "RMSProp + momentum": "#000000",
    "SGD": "#d55e00",
    "SGD + momentum": "#e69f00",
    "Adagrad": "#0072b2",
    "Adam": "#cc79a7",
}
"""A color for each optimizer, the same in every picture. Okabe and Ito chose these colors so that
color-blind readers can tell them apart."""
BEST, GRAY, PALE, FAINT = "#d62728", "0.6", "0.75", "0.85"


def line_colors(
    colors: Sequence[str | tuple[float, ...]] | None, n: int
) -> Sequence[str | tuple[float, ...]]:
    """Return the given colors, by default Okabe and Ito's eight.

    Raises:
      ValueError: for fewer colors than `n` lines.
    """
    colors = colors or (
        "#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#000000", "#f0e442",
    )  # fmt: skip
    if len(colors) < n:
        raise ValueError(
            f"colors must have at least {n} entries, one for each line, got {len(colors)}. Pass "
            "colors=[...]."
        )
    return colors


def pyplot() -> Any:
    """Return `matplotlib.pyplot`, a module whose type is known only if matplotlib is installed."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            'matplotlib must be installed to draw pictures. Run: pip install "rmsprop_jax[plot]".'
        ) from error
    return pyplot


def axes_or_new(ax: "Axes | None") -> "Axes":
    """Return `ax`, or the Axes of a new figure."""
    return ax or pyplot().subplots(layout="constrained")[1]


def axis_scale(values: "npt.ArrayLike") -> str:
    """Return the scale of an axis with these values: "log" for a factor of more than 30, "logit"
    for fractions close to 1, else "linear"."""
    low, high = np.min(values), np.max(values)
    if low > 0 and 0.9 < high < 1:
        return "logit"
    return "log" if low > 0 and high > 30 * low else "linear"
