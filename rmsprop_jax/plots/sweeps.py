"""Pictures of sweeps."""

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rmsprop_jax._tune.results.lineage import Stretch, most_advanced, path
from rmsprop_jax._tune.results.statistics import levels, mean_std_ci95
from rmsprop_jax._tune.space.values import is_number
from rmsprop_jax._tune.space.values import label as value_label
from rmsprop_jax.plots.style import BEST, FAINT, GREY, PALE, axes_or_new, kind_of_axis, pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rmsprop_jax._tune.results.result import SweepResult

WAYS = ("complete", "pruned", "unfinished", "failed")
MOST_RUNGS = 50  # more would be one grey field


def heatmap(
    result: "SweepResult",
    x: str,
    y: str,
    *,
    reduce: str = "best",
    limits: tuple[float, float] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """The objective over two hyperparameters, each cell the best, or the mean, over all others.

    Seeds are averaged first. A cell whose every trial failed, or that was not tried, is hatched;
    one in which nothing finished, but a scheduler stopped a trial or an interruption did, is grey
    and says how far it came. The best cell is framed. Values stand evenly spaced, in order; more
    than 12 numbers are cut into eight ranges.

    Args:
      result: a sweep with the axes `x` and `y`.
      x: the name of a hyperparameter.
      y: the name of another.
      reduce: "best" or "mean" over the hyperparameters that are not shown.
      limits: the lowest and the highest value of the colours, so that several pictures share them;
        those of the cells by default.
      ax: where to draw; a new figure by default.

    Raises:
      ValueError: for a name that the sweep has not, another `reduce`, limits that are not low <
        high, or a population, whose numbers changed on the way: `lineage` draws those.
      ImportError: without matplotlib, which the extra `plot` installs.
    """
    result.refuse_population("heatmap", "rj.plots.lineage or rj.plots.curves")
    if reduce not in ("best", "mean"):
        raise ValueError(f'reduce must be "best" or "mean", got {reduce!r}.')
    if limits is not None and not (len(limits) == 2 and limits[0] < limits[1]):
        raise ValueError(f"limits must be (low, high), got {limits!r}.")
    low, high = limits or (None, None)
    plt = pyplot()
    columns, rows = levels(result.points, x), levels(result.points, y)
    sign = 1.0 if result.mode == "min" else -1.0
    means = sign * result.means()
    cells = np.full((len(rows), len(columns)), np.nan)
    axes, standing = axes_or_new(ax), _standing(result)
    axes.set_facecolor("0.9")
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        points = np.intersect1d(row.points, column.points)
        here = means[points][np.isfinite(means[points])]
        on_the_way = points[np.isin(standing[points], ["pruned", "unfinished"])]
        if len(here):
            cells[i, j] = sign * (here.min() if reduce == "best" else here.mean())
        elif len(on_the_way):
            step = result.steps_completed[np.isin(result.point_index, on_the_way)].max()
            is_stopped = (standing[on_the_way] == "pruned").all()
            axes.text(
                j, i, f"{'stopped' if is_stopped else 'so far'}\nat {step}", ha="center",
                va="center", color="0.4", fontsize=8 if len(columns) <= 6 else 6,
            )  # fmt: skip
            axes.add_patch(plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, ec="w", lw=1))
        else:
            axes.add_patch(
                plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="///", ec="0.6", lw=0)
            )
    colours = plt.get_cmap("viridis" if result.mode == "max" else "viridis_r")
    image = axes.imshow(cells, origin="lower", aspect="auto", cmap=colours, vmin=low, vmax=high)
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
        axes.add_patch(plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, ec=BEST, lw=2.5))
        if np.isfinite(cells).sum() > 1:
            axes.figure.colorbar(image, ax=axes, label=result.objective_name)
    slanted = {"rotation": 30, "ha": "right"} if any(len(c.label) > 12 for c in columns) else {}
    axes.set_xticks(range(len(columns)), [level.label for level in columns], **slanted)
    axes.set_yticks(range(len(rows)), [level.label for level in rows])
    axes.set(xlabel=x, ylabel=y)
    better = "lower" if result.mode == "min" else "higher"
    axes.set_title(f"{_title(result, reduce, (x, y))} ({better} is better)")
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

    A point that a scheduler stopped is grey, since its objective is none of the end, and ends in a
    dot where it stopped. Faint vertical lines are the steps at which the scheduler decided, unless
    they are more than 50. A point that an interruption left unfinished ends in a ring; before any
    has finished, the best and the colours are by the objective so far. A member of a population is
    one line, which jumps where it copied another.

    Args:
      result: a sweep whose `train` returned `metric` with one value a step, or of a `Training`.
      metric: its name; by default the objective, or else the first metric with one value a step.
      smooth: values in the running mean; 1 draws them as they are. A trial with fewer values has
        their mean, where it ends.
      ax: where to draw; a new figure by default.

    Raises:
      ValueError: for a metric that the sweep has not, one that is a scalar, or a bad `smooth`.
      ImportError: without matplotlib, which the extra `plot` installs.
    """
    if metric is None:
        metric = next((n for n in (result.objective_name, *result.steps) if n in result.steps), "")
    if metric not in result.steps:
        raise ValueError(
            f"{metric!r} is no metric with one value a step; these are: {list(result.steps)}."
        )
    steps = result.steps[metric]
    if not 1 <= smooth <= len(steps):
        raise ValueError(f"smooth must be between 1 and the {len(steps)} steps, got {smooth}.")

    axes, outcomes = axes_or_new(ax), _outcomes(result)
    scale = _scale(result, outcomes)
    ends: dict[str, list[tuple[int, Any, Any]]] = {way: [] for way in WAYS}
    for (way, point, _), trials in _alike(result):
        at, lines = _lines(result, metric, trials, smooth)
        mean = lines.mean(0)
        if way == "failed":
            label = f"failed ({result.failed.sum()} of {len(result)} trials)"
            label = None if ends[way] else label
            axes.plot(at, mean, color=GREY, ls=":", lw=0.9, zorder=1.8, label=label)
        elif way != outcomes.way:
            axes.plot(at, mean, color=GREY, lw=0.9, zorder=1.9)
        elif point != outcomes.ranked[0]:
            axes.plot(at, mean, color=scale.to_rgba(outcomes.values[point]), lw=0.9)
        else:
            numbers = result.points[point] | result.history[trials[0]][-1][2]
            label = "best so far" if way == "unfinished" else "best"
            label += ", with its last numbers: " if result.is_population else ": "
            label += ", ".join(f"{name} {value_label(x)}" for name, x in numbers.items())
            axes.plot(at, mean, color=BEST, lw=2.5, zorder=3, label=label)
            if len(lines) > 1:
                label = f"its {len(lines)} seeds, lowest to highest"
                band = lines.min(0), lines.max(0)
                axes.fill_between(at, *band, color=BEST, alpha=0.2, lw=0, label=label)
        ends[way].append((point, at[-1], mean[-1]))
    for way, said, face in ("pruned", "stopped early", GREY), ("unfinished", "not finished", "w"):
        if ends[way]:
            points, x, y = zip(*ends[way], strict=True)
            label = f"{said} ({len(set(points))} of {len(result.points)} points)"
            axes.plot(x, y, "o", ms=4, color=GREY, mfc=face, label=label)
    rungs = [rung for rung in result.rungs if rung <= result.steps_completed.max(initial=0)]
    for rung in rungs if len(rungs) <= MOST_RUNGS else ():
        label = "the scheduler decides" if rung == rungs[0] else None
        axes.axvline(rung, color=FAINT, lw=0.8, zorder=0.9, label=label)
    if len(outcomes.ranked) > 1:
        axes.figure.colorbar(scale, ax=axes, label=result.objective_name + outcomes.so_far)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small")
    axes.set(xlabel="step", ylabel=metric if smooth == 1 else f"{metric} (mean of {smooth})")
    return axes


def lineage(result: "SweepResult", name: str, *, ax: "Axes | None" = None) -> "Axes":
    """The values that a hyperparameter had on the way, in every member of a population.

    Each member is a line, level from copy to copy. A copy is a thin line from the donor's value to
    a dot, the value with which the member goes on from the donor's state. The colour is the best
    final objective that came of a stretch, in the member itself or in those that copied it: what
    nobody went on from is grey. The bold line is the way to the best, `result.schedule(best)`. The
    seeds of a member copy together, so that one line is all of them; its objective is their mean.

    The axis is logarithmic, or logit, as that of `sensitivity`. In a sweep that was interrupted
    before any member finished, best and colours are by the objective so far.

    Args:
      result: a sweep whose scheduler was a `population`, or another that copies.
      name: of one of its hyperparameters with numbers. Members that have none of it are left out.
      ax: where to draw; a new figure by default.

    Raises:
      ValueError: for a name that the sweep has not, or that has no traced numbers, and for a result
        in which nothing was copied.
      ImportError: without matplotlib, which the extra `plot` installs.
    """
    points = result.points
    if name not in points.names:
        raise ValueError(f"the sweep has no axis {name!r}; it has {list(points.names)}.")
    has = lambda name: np.array([points.is_traced(name, point.get(name)) for point in points])
    if not has(name).any():
        raise ValueError(
            f"{name!r} is structure, which no copy changes; the axes of numbers are "
            f"{[other for other in points.names if has(other).any()]}."
        )
    if not result.is_population:
        raise ValueError(
            f"in this sweep nothing was copied, so that each {name!r} stayed as it was, and there "
            "is no lineage: draw rj.plots.curves or rj.plots.sensitivity."
        )
    axes, outcomes = axes_or_new(ax), _outcomes(result, has(name))
    stretches, copies = _stretches(result, name, has(name), outcomes.ranked)
    scale = _scale(result, outcomes)
    colours = [
        PALE if end is None else scale.to_rgba(outcomes.values[end])
        for end, lines in stretches.items()
        for _ in lines
    ]
    lines = list(itertools.chain(*stretches.values()))
    from matplotlib.collections import LineCollection

    axes.add_collection(LineCollection(lines, colors=colours, lw=1.6))
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
    axes.set_yscale(kind_of_axis([y for line in lines for _, y in line]))
    axes.autoscale_view()
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize="small", frameon=False)
    axes.set(xlabel="step", ylabel=name)
    return axes


def sensitivity(result: "SweepResult", name: str, *, ax: "Axes | None" = None) -> "Axes":
    """How much a hyperparameter matters: at each value the best point, with all others free.

    The line joins these best points; bars are their 95% intervals over the seeds. Every point is a
    faint dot, its mean over the seeds; a cross at the edge is a point whose every seed failed, a
    grey dot there one that a scheduler stopped, a ring one that an interruption left unfinished.
    Values stand evenly spaced, in order. More than 12 numbers stand where they belong, on a
    logarithmic axis where they span a factor of 30 (a logit axis for fractions close to 1), and the
    line joins the best of each eighth of them; beside other values (`None`, say) each eighth has
    one place.

    Args:
      result: a sweep.
      name: of one of its hyperparameters.
      ax: where to draw; a new figure by default.

    Raises:
      ValueError: for a name that the sweep has not, or a population, whose numbers changed on the
        way: `lineage` draws those.
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
        axes.set_xscale(kind_of_axis(place))
    else:
        place = np.zeros(len(result.points))
        for i, group in enumerate(groups):
            place[group.points] = i
        axes.set_xticks(range(len(groups)), [group.label for group in groups])
        axes.margins(x=0.1)
    axes.plot(place, means, "o", ms=4, color="#56b4e9", alpha=0.5, label="every point")
    standing = _standing(result)
    for i, (way, look) in enumerate(
        {
            "failed": {"marker": "x", "color": "#d55e00", "label": "every seed failed"},
            "pruned": {"marker": "o", "ms": 4, "color": GREY, "label": "stopped early"},
            "unfinished": {
                "marker": "o",
                "ms": 4,
                "color": GREY,
                "mfc": "w",
                "label": "not finished",
            },
        }.items()
    ):
        if (here := standing == way).any():
            edge = np.full(here.sum(), 0.98 - 0.04 * i if result.mode == "min" else 0.02 + 0.04 * i)
            axes.plot(place[here], edge, ls="", transform=axes.get_xaxis_transform(), **look)
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


class _Outcomes(NamedTuple):
    """What each point came to."""

    way: str
    """Which trials count: the finished, or, where none has, the unfinished, as they stand."""
    values: np.ndarray
    """Their mean over the seeds, of shape (points,); NaN where none counts."""
    ranked: np.ndarray
    """The points of which any counts, best first."""

    @property
    def so_far(self) -> str:
        return " so far" if self.way == "unfinished" else ""


def _outcomes(result: "SweepResult", among: Any = True) -> _Outcomes:
    """What these points came to."""
    ranked, values, way = result.ranked(), result.means(), "complete"
    if not len(ranked):
        counts = (result.status == "unfinished") & np.isfinite(result.objective)
        points, way = result.point_index[counts], "unfinished"
        count = np.bincount(points, minlength=len(values))
        total = np.bincount(points, result.objective[counts], len(values))
        values = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        order = np.argsort(values if result.mode == "min" else -values)  # NaN comes last
        ranked = order[: (count > 0).sum()]
    shown = np.broadcast_to(among, values.shape)
    return _Outcomes(way, np.where(shown, values, np.nan), ranked[shown[ranked]])


def _scale(result: "SweepResult", outcomes: _Outcomes) -> Any:
    """From an objective to its colour: the better the lighter."""
    plt, some = pyplot(), outcomes.values[outcomes.ranked]
    norm = plt.Normalize(*((some.min(), some.max()) if len(some) else ()))
    return plt.cm.ScalarMappable(norm, "viridis" if result.mode == "max" else "viridis_r")


def _lines(
    result: "SweepResult", metric: str, trials: list[int], smooth: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of trials that stand at one step the running means of a metric, (trials, values), NaN where
    it is not finite, and their steps."""
    at = result.steps[metric][result.valid[metric][trials[0]]]
    lines = result.metrics[metric][trials, : len(at)].astype(float)
    step = result.steps_completed[trials[0]]
    if not len(at) or at[-1] < step:  # not recorded, but known
        at = np.append(at, step)
        lines = np.c_[lines, result.newest[metric][trials].astype(float)]
    lines[~np.isfinite(lines)] = np.nan
    width = min(smooth, len(at))
    mean = lambda line: np.convolve(line, np.full(width, 1 / width), mode="valid")
    return at[width - 1 :], np.array([mean(line) for line in lines])


def _stretches(
    result: "SweepResult", name: str, has: np.ndarray, ranked: np.ndarray
) -> tuple[dict[int | None, list[Any]], list[Any]]:
    """The level lines of a population, and the copies, from the donor's number to the new one.

    The lines are by the best point that came of them, of these, worst first; None where none did.
    """
    came: dict[tuple[int, int], int] = {}  # for a member and a rung from which it went on
    for point in ranked.tolist():
        for stretch in _path(result, point):
            for at in (0, *result.rungs):
                if stretch.start <= at < stretch.stop:
                    came.setdefault((stretch.point, at), point)
    lines: dict[int | None, list[Any]] = {point: [] for point in (None, *ranked[::-1].tolist())}
    copies = []
    begun = np.unique(result.point_index[result.steps_completed > 0])
    for point in np.intersect1d(begun, np.flatnonzero(has)).tolist():
        rows = np.flatnonzero(result.point_index == point)
        row = int(rows[most_advanced(result.steps_completed[rows])])
        # After an interruption a member may not have gone on since it copied.
        history = [x for x in result.history[row] if x[0] < result.steps_completed[row]]
        stops = [*(start for start, *_ in history[1:]), int(result.steps_completed[row])]
        for (start, donor, numbers), stop in zip(history, stops, strict=True):
            y = numbers[name]
            cuts = [start, *(at for at in result.rungs if start < at < stop), stop]
            for a, b in itertools.pairwise(cuts):
                lines[came.get((point, a))].append([(a, y), (b, y)])
            if donor is not None:
                had = _path(result, donor // len(result.seeds), start)[-1].numbers[name]
                copies.append([(start, had), (start, y)])
    return lines, copies


def _path(result: "SweepResult", point: int, end: int | None = None) -> list[Stretch]:
    """Return the stretches that led to the state of a point at a step, by default its last."""
    table = result.steps_completed.reshape(len(result.points), len(result.seeds))
    return path(result.history, table, point, end)


def _standing(result: "SweepResult") -> np.ndarray:
    """How each point stands, as that of its seeds which came furthest; "" where none began."""
    found = np.full(len(result.points), "", result.status.dtype)
    begun = result.steps_completed > 0
    for way in reversed(WAYS):
        found[result.point_index[begun & (result.status == way)]] = way
    return found


def _alike(result: "SweepResult") -> list[tuple[tuple[str, int, int], list[int]]]:
    """The trials that are one line, with how they ended, their point, and where they stand: the
    seeds of a point that are alike in these, and each failed trial by itself; the failed last."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for trial in np.flatnonzero(result.steps_completed > 0).tolist():
        columns = (result.status, result.point_index, result.steps_completed)
        way, point, step = (column[trial].item() for column in columns)
        found.setdefault((way, point, step, trial if way == "failed" else -1), []).append(trial)
    return sorted(((key[:3], x) for key, x in found.items()), key=lambda x: WAYS.index(x[0][0]))


def _title(result: "SweepResult", reduce: str, shown: tuple[str, ...]) -> str:
    """What became of the hyperparameters that are not shown, and of the seeds."""
    points = result.points
    others = [n for n in points.names if n not in shown and len(levels(points, n)) > 1]
    reduced = {"best": "lowest" if result.mode == "min" else "highest"}.get(reduce, reduce)
    parts = [f"{reduced} over {', '.join(others)}"] if others else []
    parts += [f"mean of {len(result.seeds)} seeds"] if len(result.seeds) > 1 else []
    return "; ".join(parts) or result.objective_name
