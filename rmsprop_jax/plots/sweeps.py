# pyright: standard
"""Pictures of sweeps."""

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rmsprop_jax._tune.results.lineage import Stretch, most_advanced, path
from rmsprop_jax._tune.results.statistics import edge, levels, mean_std_ci95
from rmsprop_jax._tune.space.values import is_int, is_number
from rmsprop_jax._tune.space.values import label as value_label
from rmsprop_jax.plots.style import BEST, FAINT, GRAY, PALE, axes_or_new, axis_scale, pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

    from rmsprop_jax._tune.results.result import SweepResult

STATUSES = ("complete", "pruned", "unfinished", "failed")  # in the order of drawing
BANDS = {"range": "lowest to highest", "ci95": "95% interval of the mean"}
NEXT = "#0072b2", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#000000"  # the points after the best
MOST_RUNGS = 50  # more vertical lines than this would be a gray field

Line = list[tuple[float, float]]
"""The (step, value) of both ends of a line."""


def heatmap(
    result: "SweepResult",
    x: str,
    y: str,
    *,
    reduce: str = "best",
    limits: tuple[float, float] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw the objective over two hyperparameters, each cell the best or the mean over the others.

    Seeds are averaged first. A cell is hatched if all its trials failed or none began. If no trial
    of a cell is complete, but one was pruned or is unfinished, the cell is gray and names the last
    step. The best cell is framed. The title says if it is at the edge of an axis of numbers, where
    better values may lie beyond. Values are evenly spaced, in order; more than 12 numbers are cut
    into eight ranges.

    Args:
      result: a sweep with the hyperparameters `x` and `y`.
      x: the name of the hyperparameter on the horizontal axis.
      y: the name of the hyperparameter on the vertical axis.
      reduce: "best" or "mean", over the hyperparameters that are not on the axes.
      limits: the ends of the color scale, (low, high), for pictures that share it; by default the
        lowest and the highest cell.
      ax: the Axes to draw on; by default those of a new figure.

    Returns:
      The Axes.

    Raises:
      ValueError: for a name that is not a hyperparameter of the sweep, another `reduce`, limits
        without low < high, or a population, whose hyperparameters changed (`lineage` draws them).
      ImportError: without matplotlib, which the extra `plot` installs.
    """
    result.refuse_population("heatmap", "rj.plots.lineage or rj.plots.curves")
    if reduce not in ("best", "mean"):
        raise ValueError(f'reduce must be "best" or "mean", got {reduce!r}. Pass reduce="best".')
    if limits is not None and not (len(limits) == 2 and limits[0] < limits[1]):
        raise ValueError(
            f"limits must be (low, high) with low < high, got {limits!r}. Pass limits=(0.0, 1.0)."
        )
    low, high = limits or (None, None)
    plt = pyplot()
    columns, rows = levels(result.points, x), levels(result.points, y)
    sign = 1.0 if result.mode == "min" else -1.0
    means = sign * result.means()
    cells = np.full((len(rows), len(columns)), np.nan)
    axes, furthest = axes_or_new(ax), _furthest_statuses(result)
    axes.set_facecolor("0.9")
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        points = np.intersect1d(row.points, column.points)
        known = means[points][np.isfinite(means[points])]
        begun = points[np.isin(furthest[points], ["pruned", "unfinished"])]
        if len(known):
            cells[i, j] = sign * (known.min() if reduce == "best" else known.mean())
        elif len(begun):
            step = result.steps_completed[np.isin(result.point_index, begun)].max()
            is_pruned = (furthest[begun] == "pruned").all()
            axes.text(
                j, i, f"{'stopped' if is_pruned else 'so far'}\nat {step}", ha="center",
                va="center", color="0.4", fontsize=8 if len(columns) <= 6 else 6,
            )  # fmt: skip
            axes.add_patch(plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, ec="w", lw=1))
        else:
            axes.add_patch(
                plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="///", ec="0.6", lw=0)
            )
    colors = plt.get_cmap("viridis" if result.mode == "max" else "viridis_r")
    image = axes.imshow(cells, origin="lower", aspect="auto", cmap=colors, vmin=low, vmax=high)
    for (i, j), value in np.ndenumerate(cells):
        if not np.isnan(value):
            red, green, blue, _ = colors(image.norm(value))
            dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
            axes.text(
                j, i, f"{value:.3g}", ha="center", va="center", color="w" if dark else "k",
                fontsize=10 if len(columns) <= 6 else 7,
            )  # fmt: skip
    beyond: list[str] = []
    if not np.isnan(cells).all():
        flat = np.nanargmin(sign * cells)
        i, j = np.unravel_index(flat, cells.shape)
        axes.add_patch(plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, ec=BEST, lw=2.5))
        ends = {x: edge(columns, int(j)), y: edge(rows, int(i))}
        at = " and ".join(f"the {end} {name}" for name, end in ends.items() if end)
        beyond = [f"best at {at}: better values may lie beyond"] if at else []
        if np.isfinite(cells).sum() > 1:
            axes.figure.colorbar(image, ax=axes, label=result.objective_name)
    slanted = {"rotation": 30, "ha": "right"} if any(len(c.label) > 12 for c in columns) else {}
    axes.set_xticks(range(len(columns)), [level.label for level in columns], **slanted)
    axes.set_yticks(range(len(rows)), [level.label for level in rows])
    axes.set(xlabel=x, ylabel=y)
    better = "lower" if result.mode == "min" else "higher"
    title = f"{_title(result, reduce, (x, y))} ({better} is better)"
    axes.set_title("\n".join([title, *beyond]))
    return axes


def curves(
    result: "SweepResult",
    metric: str | None = None,
    *,
    smooth: int = 1,
    top: int = 1,
    band: str = "range",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw a series of every point, the mean over its seeds; the color is the objective.

    The best point is bold. If it has several seeds, it has a band. With `top` above 1, so many of
    the best points are bold, each in a color of its own with its band, and all others are gray.
    Each failed trial is a dotted line of its own, where it is finite.

    A pruned point is gray and ends in a dot. An unfinished point ends in a ring; if no trial is
    complete, the best point and the colors are those of the objective so far. Faint vertical lines
    mark up to 50 rungs. A member of a population is one line, which jumps at a copy.

    Args:
      result: a sweep with a metric that is a series.
      metric: the name of the series; by default the objective, or else the first series.
      smooth: the number of values in a running mean; 1 draws the values as they are. A trial with
        fewer values has one mean, of all of them.
      top: the number of best points that are bold.
      band: what the band of a bold point covers at each step: "range", from the lowest to the
        highest seed, or "ci95", the 95% confidence interval of the mean, by Student's t.
      ax: the Axes to draw on; by default those of a new figure.

    Returns:
      The Axes.

    Raises:
      ValueError: for a metric that is not a series of the sweep, a `smooth` that is not between 1
        and the number of its values, a `top` that is not a whole number of at least 1, or another
        band.
      ImportError: without matplotlib, which the extra `plot` installs.
    """
    if metric is None:
        metric = next((n for n in (result.objective_name, *result.steps) if n in result.steps), "")
    if metric not in result.steps:
        raise ValueError(
            f"metric must be a series, one of {list(result.steps)}, got {metric!r}. Let train "
            "return one value for each step."
        )
    steps = result.steps[metric]
    if not 1 <= smooth <= len(steps):
        raise ValueError(
            f"smooth must be between 1 and {len(steps)}, the values of {metric!r}, got {smooth}. "
            "Pass smooth=1."
        )
    if not is_int(top) or top < 1:
        raise ValueError(f"top must be a whole number of at least 1, got {top!r}. Pass top=5.")
    if band not in BANDS:
        raise ValueError(f'band must be "range" or "ci95", got {band!r}. Pass band="ci95".')

    axes, outcomes = axes_or_new(ax), _outcomes(result)
    scale, bold = _scale(result, outcomes), outcomes.ranked[:top].tolist()
    rank_of = {point: rank for rank, point in enumerate(bold)}
    order = lambda curve: (STATUSES.index(curve.status), rank_of.get(curve.point, 0))
    ends: dict[str, list[tuple[int, float, float]]] = {status: [] for status in STATUSES}
    for curve in sorted(_curves(result), key=order):
        at, lines = _running_means(result, metric, curve.trials, smooth)
        mean, status = lines.mean(0), curve.status
        if status == "failed":
            label = f"failed ({result.failed.sum()} of {len(result)} trials)"
            label = None if ends[status] else label
            axes.plot(at, mean, color=GRAY, ls=":", lw=0.9, zorder=1.8, label=label)
        elif status != outcomes.status:
            axes.plot(at, mean, color=GRAY, lw=0.9, zorder=1.9)
        elif curve.point not in rank_of:
            color = PALE if top > 1 else scale.to_rgba(outcomes.values[curve.point])
            axes.plot(at, mean, color=color, lw=0.9)
        else:
            rank = rank_of[curve.point]
            label = f"best{outcomes.so_far}" if rank == 0 else f"no. {rank + 1}"
            label += ", with its last numbers: " if result.is_population else ": "
            hp = result.point_now(curve.trials[0])
            label += ", ".join(f"{name} {value_label(x)}" for name, x in hp.items())
            color = BEST if rank == 0 else NEXT[(rank - 1) % len(NEXT)]
            axes.plot(at, mean, color=color, lw=2.5, zorder=3, label=label)
            if len(lines) > 1:
                label = f"{'its' if top == 1 else 'bands:'} {len(lines)} seeds, {BANDS[band]}"
                label = label if rank == len(bold) - 1 else None
                low, high = _band(lines, band)
                axes.fill_between(at, low, high, color=color, alpha=0.2, lw=0, label=label)
        ends[status].append((curve.point, at[-1], mean[-1]))
    for status, text, face in (
        ("pruned", "stopped early", GRAY),
        ("unfinished", "not finished", "w"),
    ):
        if ends[status]:
            points, x, y = zip(*ends[status], strict=True)
            label = f"{text} ({len(set(points))} of {len(result.points)} points)"
            axes.plot(x, y, "o", ms=4, color=GRAY, mfc=face, label=label)
    rungs = [rung for rung in result.rungs if rung <= result.steps_completed.max(initial=0)]
    for rung in rungs if len(rungs) <= MOST_RUNGS else ():
        label = "the scheduler decides" if rung == rungs[0] else None
        axes.axvline(rung, color=FAINT, lw=0.8, zorder=0.9, label=label)
    if len(outcomes.ranked) > 1 and top == 1:
        axes.figure.colorbar(scale, ax=axes, label=result.objective_name + outcomes.so_far)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small")
    axes.set(xlabel="step", ylabel=metric if smooth == 1 else f"{metric} (mean of {smooth})")
    return axes


def lineage(result: "SweepResult", name: str, *, ax: "Axes | None" = None) -> "Axes":
    """Draw the values that a hyperparameter had over time in each member of a population.

    Each member is a line, level between copies. A copy is a thin line from the donor's value to a
    dot, the member's new value. The color of a stretch is the best final objective of the members
    whose states come from it; a stretch is gray if no final state does. The bold line is
    `result.schedule` of the best member. The seeds of a member copy together and are one line; its
    objective is their mean.

    The axis is linear, logarithmic, or logit, as that of `sensitivity`. If no trial is complete,
    the best member and the colors are those of the objective so far.

    Args:
      result: a sweep whose scheduler copied states, such as `PopulationBasedTraining`.
      name: a traced hyperparameter. Members without it are left out.
      ax: the Axes to draw on; by default those of a new figure.

    Returns:
      The Axes.

    Raises:
      ValueError: for a name that is not a traced hyperparameter of the sweep, or a result in which
        no trial copied another.
      ImportError: without matplotlib, which the extra `plot` installs.
    """
    points = result.points
    has = lambda name: np.array([points.is_traced(name, point.get(name)) for point in points])
    if name not in points.names or not has(name).any():
        raise ValueError(
            "name must be a traced hyperparameter, one of "
            f"{[other for other in points.names if has(other).any()]}, got {name!r}. Pass one of "
            "these."
        )
    if not result.is_population:
        raise ValueError(
            "result must be of a scheduler that copies states, and no trial copied another. Use "
            "rj.plots.curves or rj.plots.sensitivity."
        )
    axes, outcomes = axes_or_new(ax), _outcomes(result, has(name))
    stretches, copies = _stretches(result, name, has(name), outcomes.ranked)
    scale = _scale(result, outcomes)
    colors = [
        PALE if end is None else scale.to_rgba(outcomes.values[end])
        for end, lines in stretches.items()
        for _ in lines
    ]
    lines: list[Line] = list(itertools.chain(*stretches.values()))
    from matplotlib.collections import LineCollection

    axes.add_collection(LineCollection(lines, colors=colors, lw=1.6))
    axes.add_collection(LineCollection(copies, colors="0.5", lw=0.6, zorder=1.9))
    if len(outcomes.ranked):
        best = int(outcomes.ranked[0])
        bold = [(at, x.numbers[name]) for x in _path(result, best) for at in (x.start, x.stop)]
        label = f"the way to the best{outcomes.so_far}: {result.objective_name}"
        label += f" {outcomes.values[best]:.4g}"
        axes.plot(*np.transpose(bold), color=BEST, lw=2.5, zorder=3, label=label)
    if copies:
        label = "copies: at the dot the new number"
        axes.plot(*np.transpose([new for _, new in copies]), "o", ms=3, color="0.5", label=label)
    if stretches[None]:
        axes.plot([], [], color=PALE, lw=1.6, label="given up: nobody went on")
    if len(outcomes.ranked) > 1:
        axes.figure.colorbar(scale, ax=axes, label=result.objective_name + outcomes.so_far)
    axes.set_yscale(axis_scale([y for line in lines for _, y in line]))
    axes.autoscale_view()
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize="small", frameon=False)
    axes.set(xlabel="step", ylabel=name)
    return axes


def sensitivity(result: "SweepResult", name: str, *, ax: "Axes | None" = None) -> "Axes":
    """Draw how much a hyperparameter matters: at each value the best point, with all others free.

    A line joins these best points; bars are their 95% confidence intervals over the seeds. Each
    point is a faint dot, its mean over the seeds. Marks at the edge are points without a mean: a
    cross if every seed failed, a gray dot if a scheduler pruned it, a ring if it is unfinished.

    Values are evenly spaced, in order. More than 12 numbers are placed by their value, on a
    logarithmic axis if they span a factor of 30, on a logit axis if they are fractions close to 1;
    the line joins the best point of each eighth of them. If the hyperparameter has other values
    (`None`, say), the eighths are evenly spaced, too.

    Args:
      result: a sweep.
      name: the name of a hyperparameter.
      ax: the Axes to draw on; by default those of a new figure.

    Returns:
      The Axes.

    Raises:
      ValueError: for a name that is not a hyperparameter of the sweep, or a population, whose
        hyperparameters changed (`lineage` draws them).
      ImportError: without matplotlib, which the extra `plot` installs.
    """
    result.refuse_population("sensitivity", "rj.plots.lineage")
    groups = levels(result.points, name)
    best, _ = result.best_of(groups)
    table, means = result.by_point(), result.means()
    axes = axes_or_new(ax)
    numeric = all(is_number(value) for group in groups for value in group.values)
    if numeric and any(len(group.values) > 1 for group in groups):
        place = np.array([point[name] for point in result.points], float)
        axes.set_xscale(axis_scale(place))
    else:
        place = np.zeros(len(result.points))
        for i, group in enumerate(groups):
            place[group.points] = i
        axes.set_xticks(range(len(groups)), [group.label for group in groups])
        axes.margins(x=0.1)
    axes.plot(place, means, "o", ms=4, color="#56b4e9", alpha=0.5, label="every point")
    furthest = _furthest_statuses(result)
    for i, (status, look) in enumerate(
        {
            "failed": {"marker": "x", "color": "#d55e00", "label": "every seed failed"},
            "pruned": {"marker": "o", "ms": 4, "color": GRAY, "label": "stopped early"},
            "unfinished": {
                "marker": "o",
                "ms": 4,
                "color": GRAY,
                "mfc": "w",
                "label": "not finished",
            },
        }.items()
    ):
        if (marked := furthest == status).any():
            height = 0.98 - 0.04 * i if result.mode == "min" else 0.02 + 0.04 * i
            edge = np.full(marked.sum(), height)
            axes.plot(place[marked], edge, ls="", transform=axes.get_xaxis_transform(), **look)
    best = best[best >= 0]
    bars = [
        interval[1] - mean
        for mean, _, interval in (mean_std_ci95(row[np.isfinite(row)]) for row in table[best])
    ]
    axes.errorbar(
        place[best], means[best], np.nan_to_num(bars), fmt="-o", color="#0072b2", capsize=3,
        label="the best of the rest" + (", 95% interval" if np.isfinite(bars).any() else ""),
    )  # fmt: skip
    axes.set(xlabel=name, ylabel=result.objective_name)
    axes.set_title(_title(result, "best", (name,)))
    axes.legend(fontsize="small", framealpha=0.6)
    return axes


def expected_best(
    result: "SweepResult", budgets: Iterable[int] | None = None, *, ax: "Axes | None" = None
) -> "Axes":
    """Draw what the best of k points gives, for each k: whether more points would have paid.

    With several seeds, the bold line is the held-out objective, with its 95% confidence interval,
    and the faint line is the optimistic one, of the seeds that also chose the point. With one seed,
    only the optimistic line exists. The axis is hatched where all k points may have failed.

    Args:
      result: a complete sweep over a sample.
      budgets: the numbers of points k, as for `result.expected_best`.
      ax: the Axes to draw on; by default those of a new figure.

    Returns:
      The Axes.

    Raises:
      ValueError: for everything that `result.expected_best` refuses.
      ImportError: without matplotlib, which the extra `plot` installs.
    """
    found, axes = result.expected_best(budgets), axes_or_new(ax)
    k, several = found.budgets, len(result.seeds) > 1
    finite = np.isfinite(found.expected)
    if several:
        low, high = found.held_out_ci95.T
        label = f"with a left-out seed, 95% interval over the {len(result.seeds)} seeds"
        axes.plot(k[finite], found.held_out[finite], color=BEST, lw=2.5, label=label, zorder=3)
        axes.fill_between(k[finite], low[finite], high[finite], color=BEST, alpha=0.2, lw=0)
    label = "with the seeds that chose it: optimistic" if several else "one seed: optimistic"
    color = GRAY if several else BEST
    axes.plot(k[finite], found.expected[finite], color=color, lw=1.2, label=label)
    if not finite.all():
        failed = int(k[~finite].max())
        label = "all k points may have failed"
        axes.axvspan(k[0], failed, fill=False, hatch="///", ec=PALE, lw=0, label=label)
    axes.set_xscale("log" if k[-1] > 30 * k[0] else "linear")
    axes.set(xlabel=found.draws, ylabel=f"expected {result.objective_name} of the best")
    better = "lower" if result.mode == "min" else "higher"
    axes.set_title(f"the best of k points ({better} is better)")
    axes.legend(fontsize="small")
    return axes


class _Outcomes(NamedTuple):
    """The objective of each point, and their order."""

    status: str
    """The status of the trials that count: "complete", or "unfinished" if none is complete."""
    values: np.ndarray
    """float64 array, shape (points,): their mean over the seeds; NaN for a point without one."""
    ranked: np.ndarray
    """int array: the indices of the points with a mean, best first."""

    @property
    def so_far(self) -> str:
        return " so far" if self.status == "unfinished" else ""


def _outcomes(result: "SweepResult", among: np.ndarray | None = None) -> _Outcomes:
    """Return the outcomes of the points, or of those for which the bool array `among` is True."""
    ranked, values, status = result.ranked(), result.means(), "complete"
    if not len(ranked):
        counts = (result.status == "unfinished") & np.isfinite(result.objective)
        points, status = result.point_index[counts], "unfinished"
        count = np.bincount(points, minlength=len(values))
        total = np.bincount(points, result.objective[counts], len(values))
        values = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        order = np.argsort(values if result.mode == "min" else -values)  # NaN comes last
        ranked = order[: (count > 0).sum()]
    if among is None:
        return _Outcomes(status, values, ranked)
    return _Outcomes(status, np.where(among, values, np.nan), ranked[among[ranked]])


def _scale(result: "SweepResult", outcomes: _Outcomes) -> "ScalarMappable":
    """Return the color scale of the objective: the better, the lighter."""
    plt, known = pyplot(), outcomes.values[outcomes.ranked]
    norm = plt.Normalize(*((known.min(), known.max()) if len(known) else ()))
    return plt.cm.ScalarMappable(norm, "viridis" if result.mode == "max" else "viridis_r")


class _Curve(NamedTuple):
    """The trials that one line of `curves` shows: the seeds of a point, or one failed trial."""

    status: str
    point: int
    trials: list[int]
    """The rows of the trials, which have run the same number of steps."""


def _curves(result: "SweepResult") -> list[_Curve]:
    """Return the lines of the trials that have begun."""
    found: dict[tuple[str, int, int, int], list[int]] = {}
    for trial in np.flatnonzero(result.steps_completed > 0).tolist():
        columns = (result.status, result.point_index, result.steps_completed)
        status, point, step = (column[trial].item() for column in columns)
        alone = trial if status == "failed" else -1
        found.setdefault((status, point, step, alone), []).append(trial)
    return [_Curve(status, point, trials) for (status, point, *_), trials in found.items()]


def _band(lines: np.ndarray, band: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and the upper end of a band at each step.

    Args:
      lines: float array, shape (trials, steps), with at least 2 trials.
      band: one of `BANDS`.
    """
    if band == "range":
        return lines.min(0), lines.max(0)
    from scipy.special import stdtrit

    mean, count = lines.mean(0), len(lines)
    half = stdtrit(count - 1, 0.975) * lines.std(0, ddof=1) / np.sqrt(count)
    return mean - half, mean + half


def _running_means(
    result: "SweepResult", metric: str, trials: list[int], smooth: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return steps, and the running means of a series there, an array of shape (trials, steps).

    They are NaN where the series is not finite. The trials have run the same number of steps.
    """
    at = result.steps[metric][result.valid[metric][trials[0]]]
    lines = result.metrics[metric][trials, : len(at)].astype(float)
    step = result.steps_completed[trials[0]]
    if not len(at) or at[-1] < step:  # the newest value, which record_every left out
        at = np.append(at, step)
        lines = np.c_[lines, result.newest[metric][trials].astype(float)]
    lines[~np.isfinite(lines)] = np.nan
    width = min(smooth, len(at))
    mean = lambda line: np.convolve(line, np.full(width, 1 / width), mode="valid")
    return at[width - 1 :], np.array([mean(line) for line in lines])


def _stretches(
    result: "SweepResult", name: str, has: np.ndarray, ranked: np.ndarray
) -> tuple[dict[int | None, list[Line]], list[Line]]:
    """Return the level lines of a population, and its copies, from the donor's value to the new.

    Args:
      result: a population.
      name: a traced hyperparameter.
      has: bool array, shape (points,): which points have it.
      ranked: the points that count, best first.

    Returns:
      A dict from points, worst first, to the lines of which a point is the best whose state comes
      from them; under None are the lines from which no state comes. And the copies.
    """
    came_of: dict[tuple[int, int], int] = {}  # the best point for a member and a rung
    for point in ranked.tolist():
        for stretch in _path(result, point):
            for at in (0, *result.rungs):
                if stretch.start <= at < stretch.stop:
                    came_of.setdefault((stretch.point, at), point)
    lines: dict[int | None, list[Line]] = {point: [] for point in (None, *ranked[::-1].tolist())}
    copies: list[Line] = []
    for point in np.flatnonzero(has & (_step_table(result) > 0).any(1)).tolist():
        seed = most_advanced(_step_table(result)[point])
        row, last = point * len(result.seeds) + seed, int(_step_table(result)[point, seed])
        for (start, donor, numbers), stop in _changes(result, row, last):
            y = numbers[name]
            cuts = [start, *(at for at in result.rungs if start < at < stop), stop]
            for a, b in itertools.pairwise(cuts):
                lines[came_of.get((point, a))].append([(a, y), (b, y)])
            if donor is not None:
                had = _path(result, donor // len(result.seeds), start)[-1].numbers[name]
                copies.append([(start, had), (start, y)])
    return lines, copies


def _changes(
    result: "SweepResult", row: int, last: int
) -> Iterator[tuple[tuple[int, int | None, dict[str, float]], int]]:
    """Return the changes of a trial before its last step, each with the step at which it ends.

    After an interruption, a trial may have copied a state and not have run on from it.
    """
    changes = [change for change in result.history[row] if change[0] < last]
    stops = [*(start for start, *_ in changes[1:]), last]
    return zip(changes, stops, strict=True)


def _step_table(result: "SweepResult") -> np.ndarray:
    """Return the steps that each trial has run, an array of shape (points, seeds)."""
    return result.steps_completed.reshape(len(result.points), len(result.seeds))


def _path(result: "SweepResult", point: int, end: int | None = None) -> list[Stretch]:
    """Return the stretches that led to the state of a point at a step, by default its last."""
    return path(result.history, _step_table(result), point, end)


def _furthest_statuses(result: "SweepResult") -> np.ndarray:
    """Return for each point the status of its trials that comes first in `STATUSES`; "" for a point
    of which no trial has begun."""
    found = np.full(len(result.points), "", result.status.dtype)
    begun = result.steps_completed > 0
    for status in reversed(STATUSES):
        found[result.point_index[begun & (result.status == status)]] = status
    return found


def _title(result: "SweepResult", reduce: str, shown: tuple[str, ...]) -> str:
    """Return a title that says how hyperparameters that are not on the axes, and seeds, count."""
    points = result.points
    others = [n for n in points.names if n not in shown and len(levels(points, n)) > 1]
    reduced = {"best": "lowest" if result.mode == "min" else "highest"}.get(reduce, reduce)
    parts = [f"{reduced} over {', '.join(others)}"] if others else []
    parts += [f"mean of {len(result.seeds)} seeds"] if len(result.seeds) > 1 else []
    return "; ".join(parts) or result.objective_name
