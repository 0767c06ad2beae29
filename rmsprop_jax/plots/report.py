"""A report of a result: one HTML file with the best points, how sure they are, and what to try."""

import base64
import contextlib
import html
import io
import math
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rmsprop_jax._tune.results.expected_best import ExpectedBest
from rmsprop_jax._tune.results.statistics import (
    ABSENT,
    MOST_FOR_SIGN_FLIPS,
    Comparison,
    edge,
    levels,
    mean_std_ci95,
)
from rmsprop_jax._tune.space.values import is_number, label
from rmsprop_jax._tune.trials.status import COMPLETE, STATUSES
from rmsprop_jax.plots.style import pyplot
from rmsprop_jax.plots.sweeps import curves, expected_best, heatmap, lineage, sensitivity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rmsprop_jax._tune.results.result import PointResult, SweepResult

MOST_ROWS = 1000  # of the table
MOST_BOLD = 5  # points in the picture of curves
MOST_SENSITIVITIES = 4  # pictures of one hyperparameter
MOST_SEEDS = 30  # to advise; more cost too much
NEIGHBORS = 10  # points that are compared with the best
NOTHING = math.nan, math.nan, (math.nan, math.nan)  # of a point without a complete trial
PACKAGES = ("rmsprop_jax", "jax", "jaxlib", "optax", "numpy", "matplotlib")


class _Facts(NamedTuple):
    """The result, and the statistics that several sections of the report use."""

    result: "SweepResult"
    best: list["PointResult"]
    """The best points, best first; empty if no trial is complete."""
    pairs: list[Comparison]
    """The best point compared with each next one. Empty for one seed and for a population."""
    expected: ExpectedBest | None
    """For half of the points and for all; None for a result that has no expected best."""


class _Picture(NamedTuple):
    """A picture of the report."""

    title: str
    alt: str
    """What the picture shows, for readers who do not see it."""
    draw: Callable[["Axes"], object]


def report(result: "SweepResult") -> str:
    """Return the HTML of a report: see `SweepResult.report`."""
    facts = _facts_of(result)
    sections = [
        _section("The best point", _best(facts)),
        _section("How sure", _items(_how_sure(facts))),
        _section("What to try next", _items(_what_next(facts))),
        _section("Pictures", "".join(map(_figure, _pictures(facts)))),
        _section("All points", _table(result)),
        _section("Versions", _versions()),
    ]
    page = (files("rmsprop_jax.plots") / "report.html").read_text("utf-8")
    title = f"Sweep of {len(result.points)} points: {result.objective_name}"
    filled = {"title": html.escape(title), "summary": html.escape(_summary(result))}
    for name, text in (filled | {"sections": "".join(sections)}).items():
        page = page.replace(f"<!-- {name} -->", text)
    return page


def _summary(result: "SweepResult") -> str:
    count = {x: int((result.status == x).sum()) for x in STATUSES}
    others = "".join(f", {count[x]} {x}" for x in STATUSES if count[x] and x != COMPLETE)
    better = {"min": "Lower", "max": "Higher"}[result.mode]
    return (
        f"{len(result.points)} points with {_seeds(result)} each: {count[COMPLETE]} of "
        f"{len(result)} trials complete{others}. Compiled in {result.compile_seconds:.1f} s, ran "
        f"{result.run_seconds:.1f} s. {better} {result.objective_name} is better."
    )


def _facts_of(result: "SweepResult") -> _Facts:
    best = result.top(NEIGHBORS) if len(result.ranked()) else []
    pairs: list[Comparison] = []
    if best and len(result.seeds) > 1 and not result.is_population:
        complete = np.isfinite(result.by_point())
        shared = lambda one: (complete[best[0].index] & complete[one.index]).sum()
        pairs = [result.compare(best[0], one) for one in best[1:] if shared(one) > 1]
    count, expected = len(result.points), None
    with contextlib.suppress(ValueError):
        expected = result.expected_best([max(1, count // 2), count])
    return _Facts(result, best, pairs, expected)


def _section(title: str, content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{content}</section>\n"


def _items(sentences: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(x)}</li>' for x in sentences)}</ul>"


# The best point, and how sure.


def _best(facts: _Facts) -> str:
    """Return the hyperparameters and the objective of the best point."""
    result, best, *_ = facts
    if not best:
        return _items(["No trial is complete."])
    first = best[0]
    rows = [(name, label(x)) for name, x in first.point.items()]
    if result.is_population:
        last = result.schedule(first)[-1][2]
        rows = [(name, label(last.get(name, x))) for name, x in first.point.items()]
    mean = f" (mean of {_seeds(result)})" if len(result.seeds) > 1 else ""
    rows.append((result.objective_name + mean, f"{first.objective:.6g}"))
    if not math.isnan(first.std):
        rows.append(("standard deviation over the seeds", f"{first.std:.3g}"))
        rows.append(("95% interval of the mean", _interval(first.ci95)))
    cells = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(text)}</td></tr>'
        for name, text in rows
    )
    return f"<table class='facts'>{cells}</table>"


def _how_sure(facts: _Facts) -> Iterator[str]:
    """Yield sentences about how sure the best point is."""
    result, best, pairs, expected = facts
    name = result.objective_name
    if not best:
        yield "Without a complete trial, there is nothing to compare."
        return
    if len(result.seeds) == 1:
        yield (
            "One seed cannot tell how much of a difference is luck. Nothing on this page has an "
            "interval."
        )
    if expected is not None and len(result.seeds) > 1:
        yield (
            f"The best mean, {best[0].objective:.6g}, is optimistic, because the best of "
            f"{len(result.points)} points is in part the luckiest. If the other seeds choose the "
            f"point, the left-out seed has a mean {name} of {expected.held_out[-1]:.6g} "
            f"(95% interval {_interval(tuple(expected.held_out_ci95[-1]))})."
        )
    if not pairs:
        return
    second = pairs[0]
    less = {"min": "lower", "max": "higher"}[result.mode]
    ours = f"With {second.seeds} seeds, the mean {name} of the best point is "
    yield (
        f"{ours}{abs(second.difference):.3g} {less} than that of the second-best point (95% "
        f"interval of the difference {_interval(second.ci95)}). The best point wins with "
        f"{second.wins:.0%} of the seeds (95% interval {_interval(second.wins_ci95)})."
    )
    if second.seeds <= MOST_FOR_SIGN_FLIPS:
        yield (
            f"The exact p-value of this difference, by sign flips, is "
            f"{second.sign_flip_p_value:.3g}. With {second.seeds} seeds, it cannot be below "
            f"{min(1, 2 / 2**second.seeds):.3g}."
        )
    unclear = sum(_is_unclear(one) for one in pairs)
    yield (
        f"Of the next {len(pairs)} points, {unclear} cannot be told from the best: the 95% "
        "interval of the difference contains 0."
    )


def _is_unclear(one: Comparison) -> bool:
    return one.ci95[0] <= 0 <= one.ci95[1]


# What to try next.


def _what_next(facts: _Facts) -> Iterator[str]:
    """Yield advice."""
    result, best, pairs, expected = facts
    count = {x: int((result.status == x).sum()) for x in ("unfinished", "failed")}
    if count["unfinished"]:
        yield (
            f"Finish the sweep: {count['unfinished']} of {len(result)} trials are unfinished. The "
            "same call of sweep with its path resumes."
        )
    if count["failed"]:
        yield (
            f"Look at the {count['failed']} failed trials, whose {result.objective_name} is not "
            "finite. Often the learning rate is too high for them."
        )
    if not best:
        return
    edges = [] if result.is_population else list(_edges(result, best[0]))
    for name, end, values in edges:
        further = {"lowest": "lower", "highest": "higher"}[end]
        yield (
            f"Try {further} values of {name}, if there are any: the best point has the {end} of "
            f"{values}."
        )
    if len(result.seeds) == 1:
        yield "Run the best points again with at least 5 seeds, to see how much they vary."
    elif pairs and _is_unclear(pairs[0]):
        yield _more_seeds(pairs[0])
    if expected is not None and len(result.seeds) > 1:
        yield _more_points(result.mode, expected)
    if pairs and not edges and not any(map(_is_unclear, pairs)):
        yield "The best point is clear, and lies inside the ranges: use it."


def _edges(result: "SweepResult", best: "PointResult") -> Iterator[tuple[str, str, str]]:
    """Yield the hyperparameters whose best value is at an end: the name, the end, the values."""
    for name in result.points.names:
        groups = levels(result.points, name)
        at = next((i for i, group in enumerate(groups) if best.index in group.points), -1)
        if at >= 0 and (end := edge(groups, at)):
            cut = any(len(group.values) > 1 for group in groups)
            yield name, end, f"{len(groups)} {'ranges' if cut else 'values'}"


def _more_seeds(second: Comparison) -> str:
    """Return how many seeds would tell the best point from the second."""
    advice = "Run the best points again with more seeds"
    half = (second.ci95[1] - second.ci95[0]) / 2
    if second.difference == 0 or not math.isfinite(half):
        return f"{advice}: these seeds cannot tell the first two apart."
    # The half-width shrinks with the root of the number of seeds.
    needed = math.ceil(second.seeds * (half / abs(second.difference)) ** 2)
    if needed > MOST_SEEDS:
        return (
            "Choose among the first two points by other criteria, such as their cost: about "
            f"{needed} seeds would tell them apart."
        )
    return (
        f"{advice}: about {needed} would tell the first two apart if their difference is what it "
        "seems."
    )


def _more_points(mode: str, expected: ExpectedBest) -> str:
    """Return whether more points would pay, by what the second half of the points gave."""
    (half, count), (before, after) = expected.budgets.tolist(), expected.held_out.tolist()
    if not math.isfinite(before):
        return f"Try more points: of {half} points, all may have failed."
    gain = (before - after) * (1 if mode == "min" else -1)
    low, high = expected.held_out_ci95[-1].tolist()
    text = f"from {half} to {count} points, the held-out best "
    if gain <= 0:
        return f"More points may not pay: {text}did not improve."
    if gain > (high - low) / 2:
        return f"Try more points: {text}improved by {gain:.3g}."
    return f"More points may not pay: {text}improved by {gain:.3g}, less than the noise over seeds."


# Pictures.


def _pictures(facts: _Facts) -> Iterator[_Picture]:
    """Yield the pictures that fit the result."""
    result, best, _, expected = facts
    better = {"min": "Lower", "max": "Higher"}[result.mode]
    if result.steps and (result.steps_completed > 0).any():
        top = min(MOST_BOLD, max(1, len(best)))
        band = "ci95" if len(result.seeds) > 1 else "range"
        yield _Picture(
            "Learning curves",
            f"A line for each point over the steps; the {top} best are bold. {better} is better.",
            lambda ax: curves(result, top=top, band=band, ax=ax),
        )
    if result.is_population:
        for name in result.points.names:
            if any(result.points.is_traced(name, point.get(name)) for point in result.points):
                yield _Picture(
                    f"{name} over time",
                    f"The {name} of each member of the population over the steps.",
                    lambda ax, name=name: lineage(result, name, ax=ax),
                )
        return
    matters = list(result.sensitivity())
    if len(matters) >= 2:
        x, y = matters[:2]
        yield _Picture(
            f"{x} and {y}",
            f"The best {result.objective_name} for each {x} and {y}. The table has the numbers.",
            lambda ax: heatmap(result, x, y, ax=ax),
        )
    for name in matters[:MOST_SENSITIVITIES]:
        yield _Picture(
            f"How much {name} matters",
            f"The best {result.objective_name} at each {name}, with all others free.",
            lambda ax, name=name: sensitivity(result, name, ax=ax),
        )
    if expected is not None:
        yield _Picture(
            "The best of k points",
            f"The expected {result.objective_name} of the best of k points, for each k.",
            lambda ax: expected_best(result, ax=ax),
        )


def _figure(picture: _Picture) -> str:
    """Return a picture as HTML. The image is part of the text."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    try:
        picture.draw(axes)
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=144, metadata={"Software": None})
    finally:
        plt.close(figure)
    source = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")
    alt, title = html.escape(picture.alt), html.escape(picture.title)
    return f'<figure><img src="{source}" alt="{alt}"><figcaption>{title}</figcaption></figure>'


# The table.


def _table(result: "SweepResult") -> str:
    """Return a table with a row for each point, best first, which the reader can sort."""
    names, table, ranked = result.points.names, result.by_point(), result.ranked()
    order = [*ranked.tolist(), *np.setdiff1d(np.arange(len(table)), ranked).tolist()]
    heads = [
        "rank",
        *names,
        result.objective_name,
        "std",
        "95% interval",
        "complete seeds",
        "status",
    ]
    rows, status = [], result.status.reshape(table.shape)
    for place, i in enumerate(order[:MOST_ROWS], start=1):
        point, known = result.points[i], table[i][np.isfinite(table[i])]
        mean, std, (low, high) = mean_std_ci95(known) if len(known) else NOTHING
        cells: list[tuple[str, Any]] = [(str(place), place)]
        cells += [_cell(point.get(name, ABSENT)) for name in names]
        cells.append(("–" if math.isnan(mean) else f"{mean:.6g}", mean))
        cells.append(("–" if math.isnan(std) else f"{std:.3g}", std))
        cells.append(("–" if math.isnan(low) else _interval((low, high)), low))
        complete = int((status[i] == COMPLETE).sum())
        cells.append((f"{complete} of {len(result.seeds)}", complete))
        each = ", ".join(dict.fromkeys(status[i].tolist()))
        cells.append((each, each))
        rows.append(cells)
    head = "".join(
        f'<th scope="col"{" aria-sort=ascending" if i == 0 else ""}>'
        f"<button type=button>{html.escape(name)}</button></th>"
        for i, name in enumerate(heads)
    )
    body = "".join(
        "<tr>" + "".join(
            f'<td data-sort="{html.escape(str(by))}">{html.escape(text)}</td>' for text, by in cells
        ) + "</tr>\n"
        for cells in rows
    )  # fmt: skip
    more = len(order) - MOST_ROWS
    left_out = f" The {more} worst points are left out." if more > 0 else ""
    caption = f"The points, best first. A button in the head sorts by its column.{left_out}"
    return (
        '<div class="scroll" role="region" aria-label="All points" tabindex="0">'
        f'<table class="sortable"><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(value: Any) -> tuple[str, Any]:
    """Return the text of a hyperparameter's value, and what it is sorted by."""
    return label(value), value if is_number(value) else label(value)


def _interval(ends: Sequence[float]) -> str:
    low, high = ends
    return f"{low:.4g} … {high:.4g}"


def _seeds(result: "SweepResult") -> str:
    return f"{len(result.seeds)} seed{'s' * (len(result.seeds) != 1)}"


def _versions() -> str:
    others = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    python = platform.python_version()
    return f"<p>This report was made by {others}, Python {python}.</p>"
