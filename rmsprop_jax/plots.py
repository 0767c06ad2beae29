"""Pictures of sweeps and of optimisers. Each function returns its Axes and imports matplotlib."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rmsprop_jax._sweep.statistics import levels, mean_spread_interval
from rmsprop_jax._sweep.values import is_number
from rmsprop_jax._sweep.values import label as value_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rmsprop_jax._sweep.results import SweepResult


def heatmap(
    result: "SweepResult", x: str, y: str, *, reduce: str = "best", ax: "Axes | None" = None
) -> "Axes":
    """The objective over two hyperparameters, each cell the best, or the mean, over all others.

    Seeds are averaged first. A cell whose every trial failed, or that was not tried, is hatched;
    the best cell is framed. Values stand evenly spaced, in order; more than 12 numbers are cut into
    eight ranges.

    Args:
      result: a sweep with the axes `x` and `y`.
      x: the name of a hyperparameter.
      y: the name of another.
      reduce: "best" or "mean" over the hyperparameters that are not shown.
      ax: where to draw; a new figure by default.

    Raises:
      ValueError: for a name that the sweep has not, or another `reduce`.
      ImportError: without matplotlib, which the extra `plot` installs.
    """
    if reduce not in ("best", "mean"):
        raise ValueError(f'reduce must be "best" or "mean", got {reduce!r}.')
    plt = _pyplot()
    columns, rows = levels(result.points, x), levels(result.points, y)
    sign = 1.0 if result.mode == "min" else -1.0
    means = sign * result.means()
    cells = np.full((len(rows), len(columns)), np.nan)
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        here = means[np.intersect1d(row.points, column.points)]
        here = here[np.isfinite(here)]
        if len(here):
            cells[i, j] = sign * (here.min() if reduce == "best" else here.mean())

    axes = _axes(ax)
    axes.set_facecolor("0.9")
    for i, j in np.argwhere(np.isnan(cells)):
        axes.add_patch(
            plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="///", ec="0.6", lw=0)
        )
    colours = plt.get_cmap("viridis" if result.mode == "max" else "viridis_r")
    image = axes.imshow(cells, origin="lower", aspect="auto", cmap=colours)
    for (i, j), value in np.ndenumerate(cells):
        if not np.isnan(value):
            red, green, blue, _ = colours(image.norm(value))
            dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
            axes.text(
                j, i, f"{value:.3g}", ha="center", va="center", color="w" if dark else "k",
                fontsize=10 if len(columns) <= 6 else 7,
            )  # fmt: skip
    if not np.isnan(cells).all():
        flat = np.nanargmin(sign * cells)
        i, j = np.unravel_index(flat, cells.shape)
        axes.add_patch(plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, ec="#d62728", lw=2.5))
        axes.figure.colorbar(image, ax=axes, label=result.objective_name)
    slanted = {"rotation": 30, "ha": "right"} if any(len(c.label) > 12 for c in columns) else {}
    axes.set_xticks(range(len(columns)), [level.label for level in columns], **slanted)
    axes.set_yticks(range(len(rows)), [level.label for level in rows])
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(_title(result, reduce, (x, y)))
    return axes


def curves(
    result: "SweepResult",
    metric: str | None = None,
    *,
    smooth: int = 1,
    ax: "Axes | None" = None,
) -> "Axes":
    """A per-step metric of every point, the mean over its seeds; the colour is the objective.

    The best point is drawn bold, with a band from its lowest to its highest seed where there are
    several. Trials that failed are dotted, each by itself, as far as they are finite.

    Args:
      result: a sweep whose `train` returned `metric` with one value a step.
      metric: its name; by default the objective, or else the first metric with one value a step.
      smooth: values in the running mean; 1 draws them as they are.
      ax: where to draw; a new figure by default.

    Raises:
      ValueError: for a metric that the sweep has not, one that is a scalar, or a bad `smooth`.
      ImportError: without matplotlib, which the extra `plot` installs.
    """
    plt = _pyplot()
    if metric is None:
        metric = next((n for n in (result.objective_name, *result.steps) if n in result.steps), "")
    if metric not in result.steps:
        raise ValueError(
            f"{metric!r} is no metric with one value a step; these are: {list(result.steps)}."
        )
    steps, values = result.steps[metric], result.metrics[metric]
    if not 1 <= smooth <= len(steps):
        raise ValueError(f"smooth must be between 1 and the {len(steps)} steps, got {smooth}.")
    kernel = np.full(smooth, 1 / smooth)
    lines = np.array([np.convolve(line, kernel, mode="valid") for line in values.astype(float)])
    lines, at = np.where(np.isfinite(lines), lines, np.nan), steps[smooth - 1 :]

    axes, means = _axes(ax), result.means()
    whole = means[np.isfinite(means)]
    best = int(result.ranked()[0]) if len(whole) else -1
    norm = plt.Normalize(*((whole.min(), whole.max()) if len(whole) else ()))
    colours = plt.get_cmap("viridis" if result.mode == "max" else "viridis_r")
    axes.plot(at, lines[result.failed].T, color="0.6", ls=":", lw=0.9)
    for i, mean in enumerate(means):
        mine = lines[(result.point_index == i) & ~result.failed]
        if not len(mine):
            continue
        if i == best:
            point = result.points[i]
            label = "best: " + ", ".join(f"{k} {value_label(v)}" for k, v in point.items())
            axes.plot(at, mine.mean(0), color="#d62728", lw=2.5, zorder=3, label=label)
            if len(mine) > 1:
                label = f"its {len(mine)} seeds, lowest to highest"
                ends = mine.min(0), mine.max(0)
                axes.fill_between(at, *ends, color="#d62728", alpha=0.2, lw=0, label=label)
        else:
            axes.plot(at, mine.mean(0), color=colours(norm(mean)), lw=0.9)
    if best >= 0:
        scale = plt.cm.ScalarMappable(norm, colours)
        axes.figure.colorbar(scale, ax=axes, label=result.objective_name)
        axes.legend(fontsize="small")
    axes.set(xlabel="step", ylabel=metric if smooth == 1 else f"{metric} (mean of {smooth})")
    return axes


def sensitivity(result: "SweepResult", name: str, *, ax: "Axes | None" = None) -> "Axes":
    """How much a hyperparameter matters: at each value the best point, with all others free.

    The line joins these best points; bars are their 95% intervals over the seeds. Every point is a
    faint dot, its mean over the seeds; a cross at the edge is a point whose every seed failed.
    Values stand evenly spaced, in order. More than 12 numbers stand where they belong, on a
    logarithmic axis where they span a factor of 30 (a logit axis for fractions close to 1), and the
    line joins the best of each eighth of them; beside other values (`None`, say) each eighth has
    one place.

    Args:
      result: a sweep.
      name: of one of its hyperparameters.
      ax: where to draw; a new figure by default.

    Raises:
      ValueError: for a name that the sweep has not.
      ImportError: without matplotlib, which the extra `plot` installs.
    """
    groups = levels(result.points, name)
    best, _ = result.best_of(groups)
    table, means = result.by_point(), result.means()
    axes = _axes(ax)
    numeric = all(is_number(value) for group in groups for value in group.values)
    if numeric and any(len(group.values) > 1 for group in groups):
        place = np.array([point[name] for point in result.points], float)
        low, high = place.min(), place.max()
        if low > 0 and 0.9 < high < 1:
            axes.set_xscale("logit")
        elif low > 0 and high > 30 * low:
            axes.set_xscale("log")
    else:
        place = np.zeros(len(result.points))
        for i, group in enumerate(groups):
            place[group.points] = i
        axes.set_xticks(range(len(groups)), [group.label for group in groups])
        axes.margins(x=0.1)
    axes.plot(place, means, "o", ms=4, color="#56b4e9", alpha=0.5, label="every point")
    if (failed := np.isnan(means)).any():
        edge = np.full(failed.sum(), 0.98 if result.mode == "min" else 0.02)
        axes.plot(
            place[failed], edge, "x", color="#d55e00", transform=axes.get_xaxis_transform(),
            label="every seed failed",
        )  # fmt: skip
    best = best[best >= 0]
    bars = [
        interval[1] - mean
        for mean, _, interval in (
            mean_spread_interval(row[np.isfinite(row)]) for row in table[best]
        )
    ]
    axes.errorbar(
        place[best], means[best], np.nan_to_num(bars), fmt="-o", color="#0072b2", capsize=3,
        label="the best of the rest" + (", 95% interval" if np.isfinite(bars).any() else ""),
    )  # fmt: skip
    axes.set(xlabel=name, ylabel=result.objective_name)
    axes.set_title(_title(result, "best", (name,)))
    axes.legend(fontsize="small", framealpha=0.6)
    return axes


def contour(
    f: Callable[[Any, Any], Any],
    paths: Mapping[str, Any],
    x: tuple[float, float],
    y: tuple[float, float],
    *,
    minima: Sequence[tuple[float, float]] = (),
    colors: Sequence[Any] | None = None,
    levels: int = 16,
    ax: "Axes | None" = None,
) -> "Axes":
    """Contours of a function of two parameters, with the paths that optimisers take on it.

    The contours lie evenly in the logarithm of the height above the lowest point of the window. A
    dot marks each step, a ring the start, a disc the end, a star a minimum. A path ends where it is
    not finite or more than ten windows away.

    Args:
      f: takes two arrays of one shape, the parameters, and returns an array of that shape.
      paths: for each label an array of shape (steps + 1, 2).
      x: the window of θ₁, (low, high).
      y: the window of θ₂, (low, high).
      minima: points to mark.
      colors: one for each path; Okabe and Ito's, which the colour-blind tell apart, by default.
      levels: how many contours.
      ax: where to draw; a new figure by default.

    Raises:
      ValueError: for a path of another shape, an empty window, too few colours or levels, an `f`
        that is not elementwise or nowhere finite.
      ImportError: without matplotlib, which the extra `plot` installs.

    Examples:
      >>> import numpy as np, rmsprop_jax as rj
      >>> path = 0.5 ** np.arange(9)[:, None] * [1.0, -1.0]
      >>> ax = rj.plots.contour(lambda a, b: a**2 + 9 * b**2, {"halving": path}, (-1, 2), (-2, 1))
    """
    points = {label: np.asarray(path, float) for label, path in paths.items()}
    for label, path in points.items():
        if path.ndim != 2 or path.shape[1] != 2 or not len(path):
            raise ValueError(f"path {label!r} must have shape (steps + 1, 2), got {path.shape}.")
    for name, (low, high) in {"x": x, "y": y}.items():
        if not low < high:
            raise ValueError(f"the window {name} must be (low, high), got {(low, high)}.")
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}.")
    shades = _colors(colors, len(points))
    columns, rows = np.meshgrid(np.linspace(*x, 300), np.linspace(*y, 300))
    heights = np.asarray(f(columns, rows), float)
    if heights.shape != rows.shape or not np.isfinite(heights).any():
        raise ValueError(
            f"f must be elementwise with finite values: of two arrays of shape {rows.shape} it "
            f"made {heights.shape}, {np.isfinite(heights).sum()} of them finite."
        )

    axes = _axes(ax)
    low, high = np.nanmin(heights), np.nanmax(heights[np.isfinite(heights)])
    at = low + (high - low) * np.geomspace(1e-5, 1, levels)
    if low < high:
        axes.contour(columns, rows, heights, at, colors="0.75", linewidths=0.7, zorder=1)
    middle, width = np.array([np.mean(x), np.mean(y)]), np.array([x[1] - x[0], y[1] - y[0]])
    thick = np.linspace(1.9, 1.2, len(points))  # so that a path under another shows
    for (label, path), color, lw in zip(points.items(), shades, thick, strict=False):
        # NaN compares false; np.argmin is the first step that is away.
        near = np.append((np.abs(path - middle) <= 10 * width).all(1), False)
        path = path[: np.argmin(near)]
        axes.plot(*path.T, "-o", ms=1 + lw, lw=lw, color=color, label=label)
        axes.plot(*path[-1:].T, "o", ms=7, mec="w", color=color, zorder=4)
        axes.plot(*path[:1].T, "o", ms=7, mfc="w", mec="k", zorder=5)
    axes.plot(*np.reshape(minima, (-1, 2)).T, "k*", ms=13, mec="w", zorder=3)
    axes.set(xlim=x, ylim=y, xlabel="θ₁", ylabel="θ₂")
    return axes


def effective_step(
    nu: Mapping[str, Any],
    learning_rate: Any,
    *,
    eps: float = 1e-8,
    eps_in_sqrt: bool = False,
    colors: Sequence[Any] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """The learning rate of each parameter over time: η/(√s + ε), or η/√(s + ε).

    For Adagrad `nu` is the sum of squared gradients instead of their average.

    Args:
      nu: for each label the second moment s after each step, shape (steps,);
        `optax.tree_utils.tree_get(state, "nu")` reads it from a state.
      learning_rate: η, a number or one for each step.
      eps: ε.
      eps_in_sqrt: whether ε stands inside the root, as in `optax.rmsprop` and `optax.adagrad`.
      colors: one for each label; Okabe and Ito's, which the colour-blind tell apart, by default.
      ax: where to draw; a new figure by default.

    Raises:
      ValueError: for a moment that is negative or not of shape (steps,), a learning rate of another
        length, a negative ε, too few colours.
      ImportError: without matplotlib, which the extra `plot` installs.

    Examples:
      >>> import numpy as np, rmsprop_jax as rj
      >>> nu = {"settles": 1 - 0.9 ** np.arange(1, 100)}
      >>> ax = rj.plots.effective_step(nu, 1e-3)
    """
    if not eps >= 0:
        raise ValueError(f"eps must be at least 0, got {eps}.")
    shades = _colors(colors, len(nu))
    lines = {}
    for label, moment in nu.items():
        moment, rate = np.asarray(moment, float), np.asarray(learning_rate, float)
        if moment.ndim != 1 or not (moment >= 0).all():
            raise ValueError(
                f"the second moment {label!r} must be at least 0, with shape (steps,); got "
                f"{np.nanmin(moment, initial=np.inf)} at the least, shape {moment.shape}."
            )
        if rate.shape not in ((), moment.shape):
            raise ValueError(
                f"learning_rate must be a number or of shape {moment.shape}, as {label!r}; "
                f"got shape {rate.shape}."
            )
        denominator = np.sqrt(moment + eps) if eps_in_sqrt else np.sqrt(moment) + eps
        # s = 0 and ε = 0: no rate, so no point.
        lines[label] = rate / np.where(denominator > 0, denominator, np.nan)

    axes = _axes(ax)
    for (label, line), color in zip(lines.items(), shades, strict=False):
        axes.plot(np.arange(1, len(line) + 1), line, lw=1.8, color=color, label=label)
    axes.set_yscale("log")
    axes.set(xlabel="step", ylabel="η/√(s + ε)" if eps_in_sqrt else "η/(√s + ε)")
    return axes


def _colors(colors: Sequence[Any] | None, n: int) -> Sequence[Any]:
    """Given colours, or Okabe and Ito's eight."""
    colors = colors or (
        "#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#000000", "#f0e442",
    )  # fmt: skip
    if len(colors) < n:
        raise ValueError(f"{n} lines need as many colors, got {len(colors)}.")
    return colors


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            'rmsprop_jax.plots needs matplotlib: pip install "rmsprop_jax[plot]"'
        ) from error
    return pyplot


def _axes(ax: Any) -> Any:
    return ax or _pyplot().subplots(layout="constrained")[1]


def _title(result: "SweepResult", reduce: str, shown: tuple[str, ...]) -> str:
    """What became of the hyperparameters that are not shown, and of the seeds."""
    points = result.points
    others = [n for n in points.names if n not in shown and len(levels(points, n)) > 1]
    parts = [f"{reduce} over {', '.join(others)}"] if others else []
    parts += [f"mean of {len(result.seeds)} seeds"] if len(result.seeds) > 1 else []
    return "; ".join(parts) or result.objective_name
