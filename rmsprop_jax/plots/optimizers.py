"""Pictures of optimizers."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rmsprop_jax.plots.style import axes_or_new, line_colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def contour(
    f: Callable[[np.ndarray, np.ndarray], npt.ArrayLike],
    paths: Mapping[str, npt.ArrayLike],
    x: tuple[float, float],
    y: tuple[float, float],
    *,
    minima: Sequence[tuple[float, float]] = (),
    colors: Sequence[str | tuple[float, ...]] | None = None,
    levels: int = 16,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw contours of a function of two parameters, and the paths that optimizers take on it.

    The contours are evenly spaced in the logarithm of the height above the lowest point of the
    window. A dot marks each step, a ring the start, a disc the end, a star a minimum. A path ends
    before the first step that is not finite or is more than ten windows away.

    Args:
      f: a function of two arrays of the same shape, the parameters, that returns an array of that
        shape.
      paths: a dict from each label to an array of shape (steps + 1, 2).
      x: the window of the first parameter, (low, high).
      y: the window of the second parameter, (low, high).
      minima: points to mark.
      colors: a color for each path; by default Okabe and Ito's eight.
      levels: the number of contours, at least 2.
      ax: the Axes to draw on; by default those of a new figure.

    Returns:
      The Axes.

    Raises:
      ValueError: for a path of another shape, a window without low < high, too few colors or
        levels, or an `f` that is not elementwise or has no finite value in the window.
      ImportError: without matplotlib, which the extra `plot` installs.

    Examples:
      >>> import numpy as np, rmsprop_jax as rj
      >>> path = 0.5 ** np.arange(9)[:, None] * [1.0, -1.0]
      >>> ax = rj.plots.contour(lambda a, b: a**2 + 9 * b**2, {"halving": path}, (-1, 2), (-2, 1))
    """
    points = {label: np.asarray(path, float) for label, path in paths.items()}
    for label, path in points.items():
        if path.ndim != 2 or path.shape[1] != 2 or not len(path):
            raise ValueError(
                f"paths[{label!r}] must have shape (steps + 1, 2), got {path.shape}. Pass a row "
                "for the start and one for each step."
            )
    for name, (low, high) in {"x": x, "y": y}.items():
        if not low < high:
            raise ValueError(
                f"{name} must be (low, high) with low < high, got {(low, high)}. Pass "
                f"{name}=(-1.0, 1.0)."
            )
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}. Pass levels=16.")
    shades = line_colors(colors, len(points))
    columns, rows = np.meshgrid(np.linspace(*x, 300), np.linspace(*y, 300))
    heights = np.asarray(f(columns, rows), float)
    if heights.shape != rows.shape or not np.isfinite(heights).any():
        raise ValueError(
            f"f must be elementwise with finite values: for two arrays of shape {rows.shape} it "
            f"returned shape {heights.shape}, {np.isfinite(heights).sum()} of them finite. Pass an "
            "f such as lambda a, b: a**2 + b**2."
        )

    axes = axes_or_new(ax)
    low, high = np.nanmin(heights), np.nanmax(heights[np.isfinite(heights)])
    at = low + (high - low) * np.geomspace(1e-5, 1, levels)
    if low < high:
        axes.contour(columns, rows, heights, at, colors="0.75", linewidths=0.7, zorder=1)
    middle, width = np.array([np.mean(x), np.mean(y)]), np.array([x[1] - x[0], y[1] - y[0]])
    thick = np.linspace(1.9, 1.2, len(points))  # so that a path under another shows
    for (label, path), color, lw in zip(points.items(), shades, thick, strict=False):
        # NaN compares as False, so that np.argmin is the first step that is far away or NaN.
        near = np.append((np.abs(path - middle) <= 10 * width).all(1), False)
        path = path[: np.argmin(near)]
        axes.plot(*path.T, "-o", ms=1 + lw, lw=lw, color=color, label=label)
        axes.plot(*path[-1:].T, "o", ms=7, mec="w", color=color, zorder=4)
        axes.plot(*path[:1].T, "o", ms=7, mfc="w", mec="k", zorder=5)
    axes.plot(*np.reshape(minima, (-1, 2)).T, "k*", ms=13, mec="w", zorder=3)
    axes.set(xlim=x, ylim=y, xlabel="θ₁", ylabel="θ₂")
    return axes


def effective_step(
    nu: Mapping[str, npt.ArrayLike],
    learning_rate: npt.ArrayLike,
    *,
    eps: float = 1e-8,
    eps_in_sqrt: bool = False,
    colors: Sequence[str | tuple[float, ...]] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the effective step of each parameter over time: η/(√s + ε), or η/√(s + ε).

    For Adagrad `nu` is the sum of squared gradients instead of their average.

    Args:
      nu: a dict from each label to the second moment s after each step, shape (steps,).
        `optax.tree_utils.tree_get(state, "nu")` reads it from a state.
      learning_rate: the learning rate η, a number or an array of shape (steps,).
      eps: ε, at least 0.
      eps_in_sqrt: whether ε is inside the square root, as in `optax.rmsprop` and `optax.adagrad`.
      colors: a color for each label; by default Okabe and Ito's eight.
      ax: the Axes to draw on; by default those of a new figure.

    Returns:
      The Axes.

    Raises:
      ValueError: for a second moment that is negative or not of shape (steps,), a learning rate of
        another length, a negative ε, or too few colors.
      ImportError: without matplotlib, which the extra `plot` installs.

    Examples:
      >>> import numpy as np, rmsprop_jax as rj
      >>> nu = {"settles": 1 - 0.9 ** np.arange(1, 100)}
      >>> ax = rj.plots.effective_step(nu, 1e-3)
    """
    if not eps >= 0:
        raise ValueError(f"eps must be at least 0, got {eps}. Pass eps=1e-8.")
    shades = line_colors(colors, len(nu))
    lines = {}
    for label, moment in nu.items():
        moment, rate = np.asarray(moment, float), np.asarray(learning_rate, float)
        if moment.ndim != 1 or not (moment >= 0).all():
            raise ValueError(
                f"nu[{label!r}] must be at least 0, with shape (steps,); got a minimum of "
                f"{np.nanmin(moment, initial=np.inf)}, shape {moment.shape}. Pass the second "
                "moment after each step."
            )
        if rate.shape not in ((), moment.shape):
            raise ValueError(
                f"learning_rate must be a number or of shape {moment.shape}, as nu[{label!r}], got "
                f"shape {rate.shape}. Pass one value for each step."
            )
        denominator = np.sqrt(moment + eps) if eps_in_sqrt else np.sqrt(moment) + eps
        # With s = 0 and ε = 0 the step is not defined.
        lines[label] = rate / np.where(denominator > 0, denominator, np.nan)

    axes = axes_or_new(ax)
    for (label, line), color in zip(lines.items(), shades, strict=False):
        axes.plot(np.arange(1, len(line) + 1), line, lw=1.8, color=color, label=label)
    axes.set_yscale("log")
    axes.set(xlabel="step", ylabel="η/√(s + ε)" if eps_in_sqrt else "η/(√s + ε)")
    return axes
