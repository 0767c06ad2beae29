"""Pictures of a sweep. Each function returns its Axes; calling one imports matplotlib."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rmsprop_jax._sweep.results import SweepResult


def heatmap(result: "SweepResult", x: str, y: str, *, ax: "Axes | None" = None) -> "Axes":
    """The objective over two hyperparameters, each cell the best over all others.

    Seeds are averaged first. A cell whose every trial failed, or that was not tried, is hatched;
    the best cell is framed.

    Args:
      result: a sweep with the axes `x` and `y`.
      x: name of a hyperparameter; its values are spaced evenly, in order.
      y: name of another.
      ax: where to draw; a new figure by default.

    Raises:
      ValueError: for a name that the sweep has not.
      ImportError: without matplotlib, which the extra `plot` installs.
    """
    plt = _pyplot()
    for name in (x, y):
        if name not in result.points.names:
            raise ValueError(f"the sweep has no axis {name!r}; it has {list(result.points.names)}.")
    columns, rows = _values(result, x), _values(result, y)
    sign = 1.0 if result.mode == "min" else -1.0
    cells = np.full((len(rows), len(columns)), np.inf)
    for point, row in zip(result.points, result.by_point(), strict=True):
        if np.isnan(row).all():
            continue
        at = rows.index(point[y]), columns.index(point[x])
        cells[at] = min(cells[at], sign * np.nanmean(row))
    cells = np.where(np.isfinite(cells), sign * cells, np.nan)

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
            axes.text(j, i, f"{value:.3g}", ha="center", va="center", color="w" if dark else "k")
    if not np.isnan(cells).all():
        flat = np.nanargmin(sign * cells)
        i, j = np.unravel_index(flat, cells.shape)
        axes.add_patch(plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, ec="#d62728", lw=2.5))
        axes.figure.colorbar(image, ax=axes, label="objective")
    axes.set_xticks(range(len(columns)), [_label(v) for v in columns])
    axes.set_yticks(range(len(rows)), [_label(v) for v in rows])
    axes.set(xlabel=x, ylabel=y)
    others = [n for n in result.points.names if n not in (x, y) and len(_values(result, n)) > 1]
    axes.set_title(f"best over {', '.join(others)}" if others else "objective")
    return axes


def curves(
    result: "SweepResult", metric: str, *, smooth: int = 1, ax: "Axes | None" = None
) -> "Axes":
    """A per-step metric of every trial; the colour is the objective, the best point is drawn bold.

    Args:
      result: a sweep whose `train` returned `metric` with one value a step.
      metric: its name.
      smooth: values in the running mean; 1 draws them as they are.
      ax: where to draw; a new figure by default.

    Raises:
      ValueError: for a metric that the sweep has not, one that is a scalar, or a bad `smooth`.
      ImportError: without matplotlib, which the extra `plot` installs.
    """
    plt = _pyplot()
    values = result.metrics.get(metric)
    if values is None or values.ndim != 2:
        per_step = [name for name, v in result.metrics.items() if v.ndim == 2]
        raise ValueError(f"{metric!r} is no metric with one value a step; these are: {per_step}.")
    steps = result.steps[metric]
    if not 1 <= smooth <= len(steps):
        raise ValueError(f"smooth must be between 1 and the {len(steps)} steps, got {smooth}.")
    kernel = np.full(smooth, 1 / smooth)

    axes = _axes(ax)
    whole = np.flatnonzero(~result.failed)
    best = result.best().point if len(whole) else None
    low_high = (result.objective[whole].min(), result.objective[whole].max()) if len(whole) else ()
    norm = plt.Normalize(*low_high)
    colours = plt.get_cmap("viridis" if result.mode == "max" else "viridis_r")
    at = steps[smooth - 1 :]
    for trial in range(len(result)):
        line = np.convolve(values[trial], kernel, mode="valid")
        point, style = result.points[result.point_index[trial]], {}
        if result.failed[trial]:
            style = {"color": "0.6", "ls": ":", "lw": 0.9}
        elif point == best:
            style = {"color": "#d62728", "lw": 2.5, "zorder": 3}
            if result.seed_index[trial] == 0:
                style["label"] = "best: " + ", ".join(f"{k} {_label(v)}" for k, v in point.items())
        else:
            style = {"color": colours(norm(result.objective[trial])), "lw": 0.9}
        axes.plot(at, np.where(np.isfinite(line), line, np.nan), **style)
    if best is not None:
        axes.figure.colorbar(plt.cm.ScalarMappable(norm, colours), ax=axes, label="objective")
        axes.legend(fontsize="small")
    axes.set(xlabel="step", ylabel=metric if smooth == 1 else f"{metric} (mean of {smooth})")
    return axes


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


def _values(result: "SweepResult", name: str) -> list[Any]:
    """An axis' values, each once; numbers in order."""
    values: list[Any] = []
    for point in result.points:
        if point[name] not in values:
            values.append(point[name])
    return sorted(values, key=lambda v: (0, v) if isinstance(v, int | float) else (1, 0))


def _label(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
