"""The pictures hold the numbers of the sweep."""

import ast
import collections
import pickle
from pathlib import Path

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

import jax
import jax.numpy as jnp
from matplotlib import pyplot as plt
from scipy import stats

import rmsprop_jax as rj


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.fixture
def result():
    def train(hp, key):
        loss = jnp.where(hp["x"] == 3, jnp.nan, (hp["x"] - 2) ** 2 + hp["y"] + hp["z"])
        return {"loss": loss, "curve": loss * jnp.arange(1.0, 5.0)}

    points = rj.grid(x=[3.0, 1.0, 2.0], y=[0.0, 1.0], z=[5.0, 4.0])
    return rj.sweep(train, points, progress=False)


def test_heatmap_shows_the_best_of_the_rest(result):
    axes = rj.plots.heatmap(result, "x", "y")
    cells = np.asarray(axes.images[0].get_array().filled(np.nan))
    np.testing.assert_allclose(cells, [[5, 4, np.nan], [6, 5, np.nan]])
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "2", "3"]
    assert axes.get_title() == "lowest over z (lower is better)"
    frame = axes.patches[-1]
    assert frame.get_xy() == (0.5, -0.5)  # around x = 2, y = 0


def test_heatmap_can_show_the_mean_of_the_rest(result):
    axes = rj.plots.heatmap(result, "x", "y", reduce="mean")
    cells = np.asarray(axes.images[0].get_array().filled(np.nan))
    np.testing.assert_allclose(cells, [[5.5, 4.5, np.nan], [6.5, 5.5, np.nan]])
    assert axes.get_title() == "mean over z (lower is better)"


def test_heatmap_of_what_is_to_be_high_says_so(result):
    axes = rj.plots.heatmap(result.rescored("loss", mode="max"), "x", "y")
    title, note = axes.get_title().split("\n")
    assert title == "highest over z (higher is better)"
    assert note == "best at the lowest x: better values may lie beyond"


@pytest.mark.slow
def test_heatmap_says_that_the_best_is_at_an_edge():
    train = lambda hp, key: {"loss": hp["x"] - hp["y"] + hp["flag"]}
    points = rj.grid(x=[1.0, 2.0, 3.0], y=[4, 5, 6], flag=[False, True])
    result = rj.sweep(train, points, progress=False)
    note = lambda *names: rj.plots.heatmap(result, *names).get_title().split("\n")[1:]
    assert note("x", "y") == [
        "best at the lowest x and the highest y: better values may lie beyond"
    ]
    assert note("flag", "y") == ["best at the highest y: better values may lie beyond"]
    two = rj.sweep(train, rj.grid(x=[1.0, 2.0], y=[4], flag=[False, True]), progress=False)
    assert "\n" not in rj.plots.heatmap(two, "x", "flag").get_title()


def test_heatmaps_share_limits(result):
    every = [rj.plots.heatmap(result, x, y, limits=(4.0, 9.0)).images[0] for x, y in ("xy", "xz")]
    assert [image.get_clim() for image in every] == [(4.0, 9.0)] * 2
    for bad in ((5.0, 4.0), (4.0, 4.0), (1.0, 2.0, 3.0), (np.nan, 1.0)):
        with pytest.raises(ValueError, match=r"limits.*\(low, high\)"):
            rj.plots.heatmap(result, "x", "y", limits=bad)


def test_pictures_read_public_names_only():
    """So that whoever draws another has all that these have."""
    for file in Path(rj.plots.__file__).parent.glob("*.py"):
        nodes = ast.walk(ast.parse(file.read_text("utf-8")))
        names = [node.attr for node in nodes if isinstance(node, ast.Attribute)]
        assert [name for name in names if name.startswith("_")] == [], file.name


def test_optimisers_have_a_colour_each():
    assert len(set(rj.plots.COLORS.values())) == len(rj.plots.COLORS)


@pytest.fixture
def sampled():
    """An axis of 40 numbers, one near 1, five seeds, a few failures."""

    def train(hp, key):
        loss = (jnp.log10(hp["rate"]) + 3) ** 2 + hp["rho"] + 0.1 * jax.random.normal(key)
        loss = jnp.where(hp["rate"] > 0.05, jnp.nan, loss)
        return {"loss": loss, "curve": loss * jnp.arange(1.0, 5.0)}

    space = {"rate": rj.log_uniform(1e-5, 1e-1), "rho": rj.one_minus(rj.log_uniform(1e-3, 0.5))}
    return rj.sweep(train, rj.sample(space, 40), seeds=5, progress=False)


def test_heatmap_of_many_numbers_shows_ranges(sampled):
    axes = rj.plots.heatmap(sampled, "rate", "rho")
    cells = np.asarray(axes.images[0].get_array().filled(np.nan))
    assert cells.shape == (8, 8)
    assert np.nanmin(cells) == pytest.approx(sampled.best().objective)
    assert "…" in axes.get_xticklabels()[0].get_text()
    title, note = axes.get_title().split("\n")
    assert title == "mean of 5 seeds (lower is better)"
    assert note == "best at the lowest rho: better values may lie beyond"


def test_curves_have_a_band_over_the_seeds_of_the_best(sampled):
    axes = rj.plots.curves(sampled, "curve")
    (band,) = axes.collections
    best = sampled.best()
    i = list(sampled.points).index(best.point)
    mine = sampled.metrics["curve"][sampled.point_index == i]
    vertices = band.get_paths()[0].vertices
    for t in range(4):
        at = vertices[vertices[:, 0] == t + 1, 1]
        assert (at.min(), at.max()) == pytest.approx((mine[:, t].min(), mine[:, t].max()))
    bold = next(line for line in axes.lines if line.get_lw() == 2.5)
    np.testing.assert_allclose(bold.get_ydata(), mine.mean(0), rtol=1e-6)
    assert [text[:12] for text in legend(axes)[:2]] == ["best: rate 0", "its 5 seeds,"]
    assert legend(axes)[2:] == [f"failed ({sampled.failed.sum()} of 200 trials)"]


@pytest.mark.slow
@pytest.mark.parametrize("band", ["range", "ci95"])
def test_curves_of_the_best_points_have_a_band_each(sampled, band):
    axes = rj.plots.curves(sampled, "curve", top=3, band=band)
    best = sampled.top(3)
    bold = [line for line in axes.lines if line.get_lw() == 2.5]
    assert len({line.get_color() for line in bold}) == len(axes.collections) == 3
    for record, line, area in zip(best, bold, axes.collections, strict=True):
        mine = sampled.metrics["curve"][sampled.point_index == record.index]
        np.testing.assert_allclose(line.get_ydata(), mine.mean(0), rtol=1e-6)
        vertices = area.get_paths()[0].vertices
        for t in range(4):
            at = vertices[vertices[:, 0] == t + 1, 1]
            ends = mine[:, t].min(), mine[:, t].max()
            if band == "ci95":
                test = stats.ttest_1samp(mine[:, t].astype(float), 0.0).confidence_interval(0.95)
                ends = test.low, test.high
            assert (at.min(), at.max()) == pytest.approx(ends, rel=1e-5)
    text = {"range": "lowest to highest", "ci95": "95% interval of the mean"}[band]
    assert [x[:12] for x in legend(axes)[:3]] == ["best: rate 0", "no. 2: rate ", "no. 3: rate "]
    assert legend(axes)[3] == f"bands: 5 seeds, {text}"
    many = rj.plots.curves(sampled, "curve", top=1000)
    assert sum(line.get_lw() == 2.5 for line in many.lines) == len(sampled.ranked())


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_expected_best_draws_the_held_out_line_and_the_optimistic_one(seeds, mode):
    def train(hp, key):
        loss = hp["x"] + 0.5 * jax.random.normal(key)
        return {"loss": jnp.where(hp["x"] > 0.9, jnp.nan, loss)}

    points = rj.sample({"x": rj.uniform(0.0, 1.0)}, 40, method="random")
    result = rj.sweep(train, points, seeds=seeds, mode=mode, progress=False)
    found, axes = result.expected_best(), rj.plots.expected_best(result)
    finite = np.isfinite(found.expected)
    assert 0 < (~finite).sum() < 20
    drawn = [found.held_out, found.expected] if seeds > 1 else [found.expected]
    for line, values in zip(axes.lines, drawn, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), values[finite])
    assert legend(axes)[-1] == "all k points may have failed"
    assert legend(axes)[0] == (
        "with a left-out seed, 95% interval over the 3 seeds"
        if seeds > 1
        else "one seed: optimistic"
    )
    assert axes.get_xlabel() == "k random points"
    assert axes.get_xscale() == "log"
    some = rj.plots.expected_best(result, [30, 40])
    assert some.lines[0].get_xdata().tolist() == [30, 40]


def test_curves_of_no_named_metric_are_the_objectives(result):
    assert rj.plots.curves(result).get_ylabel() == "curve"  # the objective has no steps
    train = lambda hp, key: {"b": hp["x"] * jnp.ones(3), "a": jnp.ones(3), "loss": hp["x"]}
    swept = rj.sweep(train, rj.grid(x=[1.0]), objective="b", progress=False)
    assert rj.plots.curves(swept).get_ylabel() == "b"
    swept = rj.sweep(lambda hp, key: {"loss": hp["x"]}, rj.grid(x=[1.0]), progress=False)
    with pytest.raises(ValueError, match=r"metric must be.*\[\]"):
        rj.plots.curves(swept)


def test_curves_stand_at_the_steps_that_were_kept():
    train = lambda hp, key: {"loss": hp["x"] * jnp.arange(1.0, 11.0)}
    result = rj.sweep(train, rj.grid(x=[1.0, 2.0]), record_every=4, progress=False)
    axes = rj.plots.curves(result, "loss")
    assert axes.lines[0].get_xdata().tolist() == [4, 8, 10]


def test_sensitivity_joins_the_best_of_the_rest(result):
    axes = rj.plots.sensitivity(result, "x")
    dots, failed, line = axes.lines[0], axes.lines[1], axes.lines[2]
    assert len(dots.get_ydata()) == len(result.points)
    assert failed.get_xdata().tolist() == [2] * 4  # x = 3
    assert line.get_xdata().tolist() == [0, 1]
    np.testing.assert_allclose(line.get_ydata(), [5, 4])
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "2", "3"]
    assert axes.get_title() == "lowest over y, z"


def test_sensitivity_of_numbers_stands_on_a_fitting_scale(sampled):
    rate, rho = (rj.plots.sensitivity(sampled, name) for name in ("rate", "rho"))
    assert (rate.get_xscale(), rho.get_xscale()) == ("log", "logit")
    best = sampled.best()
    line = rate.lines[2]
    at = int(np.argmin(line.get_ydata()))
    assert (line.get_xdata()[at], line.get_ydata()[at]) == pytest.approx(
        (best.point["rate"], best.objective)
    )
    (bars,) = rate.collections
    low, high = bars.get_segments()[at][:, 1]
    assert (low, high) == pytest.approx(best.ci95)


@pytest.mark.parametrize("other", [None, "auto"])
def test_sensitivity_of_many_numbers_beside_another_value_hides_nothing(other):
    """The best point is the one whose value is no number."""

    def train(hp, key):
        return {"loss": jnp.float32(0.1) if hp["x"] is other else (hp["x"] - 0.5) ** 2 + 1}

    points = rj.Points([{"x": other}, *({"x": x} for x in np.linspace(0, 1, 20).tolist())])
    result = rj.sweep(train, points, progress=False)
    axes = rj.plots.sensitivity(result, "x")
    dots, line = axes.lines[0], axes.lines[1]
    assert len(dots.get_xdata()) == 21
    assert np.isfinite(dots.get_xdata()).all()
    np.testing.assert_allclose(line.get_ydata()[-1], 0.1, rtol=1e-6)
    assert [t.get_text() for t in axes.get_xticklabels()][-1] == str(other)
    assert len(axes.get_xticklabels()) == 9
    axes.figure.canvas.draw()


def test_curves_draws_each_point_and_names_the_best(result):
    axes = rj.plots.curves(result, "curve")
    assert len(axes.lines) == len(result)
    assert axes.get_legend().get_texts()[0].get_text() == "best: x 2, y 0, z 4"
    # The four failed ones, x = 3, come last.
    np.testing.assert_allclose(axes.lines[5].get_ydata(), result.metrics["curve"][9])
    assert len(rj.plots.curves(result, "curve", smooth=3).lines[0].get_ydata()) == 2


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda r: rj.plots.heatmap(r, "x", "w"), "'w'"),
        (lambda r: rj.plots.heatmap(r, "x", "y", reduce="worst"), "reduce"),
        (lambda r: rj.plots.sensitivity(r, "w"), "'w'"),
        (lambda r: rj.plots.curves(r, "loss"), "curve"),
        (lambda r: rj.plots.curves(r, "curve", smooth=0), "smooth"),
        (lambda r: rj.plots.curves(r, "curve", top=0), "top must be"),
        (lambda r: rj.plots.curves(r, "curve", top=1.5), "top must be"),
        (lambda r: rj.plots.curves(r, "curve", band="std"), "band must be"),
        (lambda r: rj.plots.expected_best(r), "are a grid"),
    ],
)
def test_refused(result, draw, message):
    with pytest.raises(ValueError, match=message):
        draw(result)


def test_all_failed_still_draws():
    def train(hp, key):
        return {"loss": hp["x"] * hp["y"] * jnp.full(3, jnp.nan)}

    result = rj.sweep(train, rj.grid(x=[1.0], y=[1.0]), progress=False)
    rj.plots.heatmap(result, "x", "y")
    assert legend(rj.plots.curves(result, "loss")) == ["failed (1 of 1 trials)"]
    rj.plots.sensitivity(result, "x")


# Sweeps of which a scheduler stopped trials.

XY = rj.grid(x=[1.0, 2.0, 9.0], y=[0.0, 0.1, 0.2])
STOPS = {(1, 0.1): 12, (1, 0.2): 12, (2, 0): 4, (2, 0.1): 4, (2, 0.2): 4}  # of these x and y


def loss(hp, key, t):
    return hp["x"] + hp["y"] + 1 / t + 1e-3 * jax.random.normal(key)


DESCENT = rj.Training(
    lambda hp, key: 0,
    lambda hp, t, key: (t + 1, {"loss": loss(hp, key, t + 1), "count": t + 1}),
    lambda hp, t, key: {"validation": jnp.where(hp["x"] == 9, jnp.nan, loss(hp, key, t))},
)


def halve(**options):
    """3 of 9 points pass step 4, and 1 passes step 12. The point with x = 9 fails."""
    given = {"steps": 13, "evaluate_every": 5, "scheduler": rj.SuccessiveHalving(3, 4), "seeds": 2}
    given |= {"objective": "validation", "progress": False}
    return rj.sweep(DESCENT, XY, **given | options)


def interrupted(call, after):
    """Return the result when the first trials have reached a step."""

    def callback(report):
        if report[0].step >= after:
            raise KeyboardInterrupt

    with pytest.raises(rj.SweepInterrupted) as caught:
        call(callback=callback)
    return caught.value.result


@pytest.fixture(scope="module")
def halved():
    return halve()


@pytest.fixture(scope="module")
def cut_off():
    """6 of 9 points ended at step 4. The others have run 10 or 5 steps."""
    return interrupted(halve, 10)


def drawn(axes, **look):
    """The lines that look so, by their last value."""
    get = lambda line, name: getattr(line, f"get_{name}")()
    found = [x for x in axes.lines if all(get(x, name) == value for name, value in look.items())]
    return sorted((line.get_data() for line in found), key=lambda line: line[1][-1])


def labelled(axes, start):
    (line,) = [line for line in axes.lines if line.get_label().startswith(start)]
    return line


STOPPED = {"color": "0.6", "linestyle": "-"}


@pytest.mark.slow
def test_a_result_says_its_rungs(halved, result):
    assert halved.rungs == (4, 12)
    assert result.rungs == ()


@pytest.mark.parametrize("every", [1, 3])
def test_curves_of_stopped_points_end_where_they_stopped(halved, every):
    """With `every`, too: the value at the stop is known, though it is no kept one."""
    axes = rj.plots.curves(halved if every == 1 else halve(record_every=every), "loss")
    expected = []
    for (x, y), stop in STOPS.items():
        at = np.array([t for t in range(1, stop + 1) if t % every == 0 or t == stop])
        row = 2 * halved.points.index_of({"x": x, "y": y})
        expected.append((at, halved.metrics["loss"][row : row + 2].mean(0)[at - 1]))
    expected.sort(key=lambda line: line[1][-1])
    found = drawn(axes, **STOPPED)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    marks = labelled(axes, "stopped")
    assert (marks.get_marker(), marks.get_linestyle()) == ("o", "None")
    ends = sorted((at[-1], values[-1]) for at, values in found)
    assert sorted(zip(*marks.get_data(), strict=True)) == ends
    assert labelled(axes, "best").get_xdata()[-1] == 13
    assert len(axes.collections) == 1  # the band of the best
    assert len(axes.figure.axes) == 1  # one finished point needs no scale of colours
    assert [at[0] for at, _ in drawn(axes, color="0.85")] == [4, 12]
    assert len(drawn(axes, linestyle=":")) == 6
    assert legend(axes) == [
        "best: x 1, y 0", "its 2 seeds, lowest to highest", "failed (6 of 18 trials)",
        "stopped early (5 of 9 points)", "the scheduler decides",
    ]  # fmt: skip


def test_curves_of_whole_numbers_end_there_too(halved):
    axes = rj.plots.curves(halved, "count")
    curves = [x for x in axes.lines if x.get_color() != "0.85" and x.get_marker() == "None"]
    assert len(curves) == 1 + 5 + 6
    for line in curves:
        np.testing.assert_array_equal(*line.get_data())  # t after step t, and never 0


def test_curves_of_evaluations_stand_at_the_boundaries(halved):
    axes = rj.plots.curves(halved)
    assert axes.get_ylabel() == "validation"
    assert labelled(axes, "best").get_xdata().tolist() == [4, 5, 10, 12, 13]
    stopped = sorted(at.tolist() for at, _ in drawn(axes, **STOPPED))
    assert stopped == [[4], [4], [4], [4, 5, 10, 12], [4, 5, 10, 12]]
    assert sorted(labelled(axes, "stopped").get_xdata()) == [4, 4, 4, 12, 12]


def test_a_running_mean_stays_within_a_stopped_trial(halved):
    """One with fewer values than the mean takes has the mean of all its values, at its end."""
    axes = rj.plots.curves(halved, "loss", smooth=6)
    first, *_, last = drawn(axes, **STOPPED)
    values = halved.metrics["loss"][[2, 3]].mean(0)  # x = 1, y = 0.1
    np.testing.assert_array_equal(first[0], np.arange(6, 13))
    np.testing.assert_allclose(first[1], [values[t - 6 : t].mean() for t in range(6, 13)])
    values = halved.metrics["loss"][[10, 11]].mean(0)  # x = 2, y = 0.2
    np.testing.assert_allclose(last, [[4], [values[:4].mean()]], rtol=1e-6)
    assert sorted(labelled(axes, "stopped").get_xdata()) == [4, 4, 4, 12, 12]


def test_colours_of_curves_are_of_what_finished():
    result = halve(scheduler=rj.SuccessiveHalving(2, 8))  # 5 points, over a few of them
    axes, means = rj.plots.curves(result, "loss"), result.means()
    colours, norm = plt.get_cmap("viridis_r"), plt.Normalize(np.nanmin(means), np.nanmax(means))
    found = sorted(x.get_color() for x in axes.lines if not isinstance(x.get_color(), str))
    others = sorted(means[np.isfinite(means)])[1:]
    assert len(others) == 4
    assert found == sorted(colours(norm(mean)) for mean in others)
    assert axes.figure.axes[1].get_ylabel() == "validation"


def test_curves_of_an_interrupted_sweep_show_the_best_so_far(cut_off):
    assert set(cut_off.status) == {"pruned", "failed", "unfinished"}
    axes = rj.plots.curves(cut_off, "loss")
    marks = labelled(axes, "not finished (3 of 9 points)")
    assert sorted(marks.get_xdata()) == sorted(cut_off.steps_completed[:6:2])
    assert "best so far: x 1, y 0" in legend(axes)
    bar = axes.figure.axes[1]
    assert bar.get_ylabel() == "validation so far"
    means = cut_off.objective[:6].reshape(3, 2).mean(1)  # x = 1
    assert bar.get_ylim() == pytest.approx((means.min(), means.max()))
    assert [at[0] for at, _ in drawn(axes, color="0.85")] == [4]  # and not one to come
    axes.figure.canvas.draw()


def test_heatmap_says_where_trials_were_stopped(halved, cut_off):
    axes = rj.plots.heatmap(halved, "x", "y")
    cells = np.asarray(axes.images[0].get_array().filled(np.nan))
    assert np.isfinite(cells).tolist() == [[True, False, False], *[[False] * 3] * 2]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    stops = {(x - 1, round(10 * y)): f"stopped\nat {stop}" for (x, y), stop in STOPS.items()}
    assert texts == {(0, 0): f"{cells[0, 0]:.3g}", **stops}
    hatched = [patch.get_xy() for patch in axes.patches if patch.get_hatch()]
    assert hatched == [(1.5, -0.5), (1.5, 0.5), (1.5, 1.5)]  # x = 9 failed
    axes = rj.plots.heatmap(cut_off, "x", "y")
    counts = collections.Counter(text.get_text() for text in axes.texts)
    stand = [f"so far\nat {reached}" for reached in cut_off.steps_completed[:6:2]]
    assert counts == collections.Counter([*stand, *["stopped\nat 4"] * 3])


def test_sensitivity_tells_the_stopped_from_the_failed(halved, cut_off):
    axes = rj.plots.sensitivity(halved, "x")
    assert labelled(axes, "every seed failed").get_xdata().tolist() == [2] * 3
    assert labelled(axes, "stopped early").get_xdata().tolist() == [0, 0, 1, 1, 1]
    assert np.isfinite(labelled(axes, "every point").get_ydata()).sum() == 1
    axes = rj.plots.sensitivity(cut_off, "y")
    assert labelled(axes, "not finished").get_xdata().tolist() == [0, 1, 2]
    assert len(labelled(axes, "stopped early").get_xdata()) == 3
    axes.figure.canvas.draw()


def test_a_point_of_which_one_seed_failed_is_no_failed_one():
    def train(hp, key):
        return {"loss": jnp.where(jax.random.key_data(key)[1] == 1, jnp.nan, hp["x"])}

    axes = rj.plots.sensitivity(rj.sweep(train, [{"x": 1.0}], seeds=2, progress=False), "x")
    assert legend(axes) == ["every point", "the best of the rest"]


def test_what_never_began_has_no_mark_of_a_failed_one():
    run = lambda **more: rj.sweep(
        lambda hp, key: {"loss": hp["x"]}, rj.grid(x=[1.0, 2.0, 3.0]), progress=False,
        devices=jax.devices()[:1], **more,
    )  # fmt: skip
    axes = rj.plots.sensitivity(interrupted(run, 0), "x")
    assert legend(axes) == ["every point", "the best of the rest"]


# Populations.

RATES = [1e-3, 1e-2, 0.1, 0.3]
MEMBERS = rj.grid(rate=RATES, kind=["a"], own=[1, 2]) + rj.grid(rate=RATES, kind=["b"], big=[0.95])
EVOLUTION = rj.Training(
    lambda hp, key: jax.random.normal(key),
    lambda hp, x, key: (
        x * (1 - hp["rate"]) + 1e-3 * jax.random.normal(key),
        {"loss": x**2 + hp["own" if hp["kind"] == "a" else "big"]},
    ),
)


def evolve(**options):
    scheduler = rj.PopulationBasedTraining(
        {"rate": rj.log_uniform(1e-3, 1.0)}, perturbation_interval=10
    )
    given = {"steps": 45, "evaluate_every": 10, "scheduler": scheduler, "seeds": 2}
    return rj.sweep(EVOLUTION, MEMBERS, progress=False, **given | options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evolved")


@pytest.fixture(scope="module")
def evolved(folder):
    return evolve(path=folder / "run")


def way(result, point):
    """By hand: for each step the member whose state is this point's ancestor, and its numbers."""
    found, member = {}, point
    for t in range(result.steps_completed[2 * point], 0, -1):
        start, donor, numbers = [x for x in result.history[2 * member] if x[0] < t][-1]
        found[t] = member, numbers
        if t == start + 1 and donor is not None:
            assert donor % 2 == 0
            member = donor // 2
    return found


def check_lineage(result, axes, name):
    """Each step of each member is drawn once, in the colour of what came of it, and each copy; the
    bold line is the way to the best."""
    means = [result.objective[result.point_index == p].mean() for p in range(len(result.points))]
    ways = {p: way(result, p) for p, point in enumerate(result.points) if name in point}
    best = min(ways, key=lambda p: means[p])
    colours, norm = (
        plt.get_cmap("viridis_r"),
        plt.Normalize(means[best], max(means[p] for p in ways)),
    )
    expected, copies = [], []
    for member in ways:
        for t in range(1, result.steps_completed[2 * member] + 1):
            *_, (start, donor, numbers) = [x for x in result.history[2 * member] if x[0] < t]
            came = [means[p] for p in ways if ways[p].get(t, [None])[0] == member]
            colour = colours(norm(min(came))) if came else matplotlib.colors.to_rgba("0.75")
            expected.append((t, numbers[name], colour))
            if donor is not None and t == start + 1:
                *_, (_, _, had) = [x for x in result.history[donor] if x[0] < start]
                copies.append((start, had[name], numbers[name]))
    pieces, links = axes.collections[:2]
    found = [
        (t, y, tuple(colour))
        for ((start, y), (stop, _)), colour in zip(
            pieces.get_segments(), pieces.get_colors(), strict=True
        )
        for t in range(int(start) + 1, int(stop) + 1)
    ]
    assert sorted(found) == sorted(expected)
    np.testing.assert_array_equal(pieces.get_colors()[-1], colours(norm(means[best])))  # on top
    assert sorted((a[0], a[1], b[1]) for a, b in links.get_segments()) == sorted(copies)
    marks = labelled(axes, "copies: ").get_data()
    assert sorted(zip(*marks, strict=True)) == sorted((t, new) for t, _, new in copies)
    bold = labelled(axes, "the way")
    at, numbers = bold.get_xdata().astype(int), bold.get_ydata()
    along = {
        t: numbers[2 * i]
        for i in range(len(at) // 2)
        for t in range(at[2 * i] + 1, at[2 * i + 1] + 1)
    }
    assert along == {t: numbers[name] for t, (_, numbers) in ways[best].items()}
    axes.figure.canvas.draw()
    return copies


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rate", "own", "big"])
def test_lineage_draws_each_member_and_each_copy(evolved, name):
    axes = rj.plots.lineage(evolved, name)
    copies = check_lineage(evolved, axes, name)
    assert len(copies) == 4 * {"rate": 3, "own": 2, "big": 1}[name]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", name)
    scale = {"rate": "log", "own": "linear", "big": "logit"}[name]
    assert axes.get_yscale() == scale
    assert axes.figure.axes[1].get_ylabel() == "loss"
    starts = [text.split(":")[0] for text in legend(axes)]
    assert starts == ["the way to the best", "copies", "given up"]
    if name == "rate":
        assert legend(axes)[0].endswith(f"best: loss {evolved.best().objective:.4g}")


@pytest.mark.parametrize("kind", ["loaded", "saved", "pickled", "another mode"])
def test_lineage_of_a_result_from_elsewhere(evolved, folder, kind):
    if kind == "saved" and not (folder / "saved").exists():
        evolved.save(folder / "saved")
    result = {
        "loaded": lambda: rj.SweepResult.load(folder / "run"),
        "saved": lambda: rj.SweepResult.load(folder / "saved"),
        "pickled": lambda: pickle.loads(pickle.dumps(evolved)),
        "another mode": lambda: evolved.rescored(lambda m: -m["loss"][-1], "max"),
    }[kind]()
    axes, same = rj.plots.lineage(result, "rate"), rj.plots.lineage(evolved, "rate")
    for one, other in zip(axes.collections, same.collections, strict=True):
        np.testing.assert_array_equal(one.get_segments(), other.get_segments())
    np.testing.assert_array_equal(
        labelled(axes, "the way").get_data(), labelled(same, "the way").get_data()
    )


@pytest.mark.slow
def test_lineage_of_an_interrupted_sweep():
    """The first stand at step 30, others at 20, of which some have copied and not gone on."""
    result = interrupted(evolve, 30)
    assert set(result.steps_completed) == {20, 30}
    axes = rj.plots.lineage(result, "rate")
    check_lineage(result, axes, "rate")
    assert axes.figure.axes[1].get_ylabel() == "loss so far"
    assert legend(axes)[0].startswith("the way to the best so far: loss ")


def test_lineage_of_members_that_copied_nothing():
    """One copy in the other structure; of this one a member was stopped."""
    result = evolve(scheduler=Once())
    axes = rj.plots.lineage(result, "big")
    assert [text.split(":")[0] for text in legend(axes)] == ["the way to the best", "given up"]
    ends = [stop for _, (stop, _) in axes.collections[0].get_segments()]
    assert sorted(ends) == [10, 10, 10, 10, 45, 45, 45]
    assert not len(axes.collections[1].get_segments())
    axes = rj.plots.lineage(result, "rate")
    assert legend(axes)[1].startswith("copies")
    (copy,) = axes.collections[1].get_segments()
    assert copy.tolist() == [[10, MEMBERS[1]["rate"]], [10, 0.05]]


class Once:
    rungs = staticmethod(lambda steps: [10])

    def decide(self, step, view):
        return rj.Decision(prune=[8], copy={0: (1, {"rate": 0.05})})


@pytest.mark.slow
def test_curves_draw_no_more_rungs_than_can_be_told_apart():
    scheduler = rj.PopulationBasedTraining(
        {"rate": rj.log_uniform(1e-3, 1.0)}, perturbation_interval=1
    )
    axes = rj.plots.curves(evolve(steps=60, scheduler=scheduler), "loss")
    assert not drawn(axes, color="0.85")
    axes = rj.plots.curves(evolve(steps=51, scheduler=scheduler), "loss")
    assert len(drawn(axes, color="0.85")) == 50


def test_curves_of_a_population_name_the_numbers_at_the_end(evolved):
    axes = rj.plots.curves(evolved, "loss")
    point = evolved.best().point
    number = evolved.schedule(point)[-1][2]["rate"]
    assert legend(axes)[0].startswith(f"best, with its last numbers: rate {number:.4g}, kind ")


REFUSED = {
    "no such name": (
        lambda r, h: rj.plots.lineage(r, "w"),
        r"\['rate', 'own', 'big'\].*'w'",
    ),
    "structure": (
        lambda r, h: rj.plots.lineage(r, "kind"),
        r"\['rate', 'own', 'big'\].*'kind'",
    ),
    "no population": (
        lambda r, h: rj.plots.lineage(h, "x"),
        "result must be.*curves.*sensitivity",
    ),
    "heatmap": (lambda r, h: rj.plots.heatmap(r, "rate", "kind"), "heatmap.*population.*lineage"),
    "sensitivity": (
        lambda r, h: rj.plots.sensitivity(r, "rate"),
        "sensitivity.*population.*lineage",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_populations_and_others_are_told_apart(evolved, halved, case):
    draw, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        draw(evolved, halved)
    assert not plt.get_fignums()


def bowl(x, y):
    return x**2 + 100 * y**2


def test_contour_draws_each_path_until_it_leaves():
    away = np.array([[1.0, 1.0], [0.5, -2.0], [np.inf, 0.0], [0.0, 0.0]])
    far = np.array([[1.0, 1.0], [50.0, 0.0], [0.0, 0.0]])  # more than ten windows of 4
    paths = {"all": 0.5 ** np.arange(6)[:, None] * [2.0, 1.0], "away": away, "far": far}
    axes = rj.plots.contour(bowl, paths, (-2, 2), (-2, 2), minima=[(0, 0)], levels=7)
    handles, labels = axes.get_legend_handles_labels()
    assert labels == ["all", "away", "far"]
    for line, path in zip(handles, (paths["all"], away[:2], far[:1]), strict=True):
        np.testing.assert_allclose(np.stack(line.get_data(), 1), path)
    assert len({line.get_color() for line in handles}) == 3
    np.testing.assert_allclose(axes.lines[-1].get_data(), [[0], [0]])
    above = np.diff(axes.collections[0].levels)  # of levels even in the log above the lowest point
    np.testing.assert_allclose(np.diff(np.log10(above)), 5 / 6)
    assert len(above) == 6
    assert axes.get_xlim() == (-2, 2)


def test_contour_of_a_constant_has_no_lines():
    axes = rj.plots.contour(lambda x, y: 0 * x, {}, (0, 1), (0, 1))
    assert not axes.collections


def test_effective_step_is_the_rate_over_the_root():
    nu = {"a": [4.0, 9.0, 0.0], "b": [1.0, 1.0, 1.0]}
    axes = rj.plots.effective_step(nu, 0.1, eps=1.0)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.1 / 3, 0.1 / 4, 0.1])
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [1, 2, 3])
    inside = rj.plots.effective_step(nu, [0.1, 0.2, 0.3], eps=1.0, eps_in_sqrt=True, ax=axes)
    assert inside is axes
    np.testing.assert_allclose(axes.lines[2].get_ydata(), [0.1 / 5**0.5, 0.2 / 10**0.5, 0.3])
    assert axes.get_yscale() == "log"
    no_rate = rj.plots.effective_step(nu, 0.1, eps=0.0).lines[0].get_ydata()
    assert np.isnan(no_rate[2])


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: rj.plots.contour(bowl, {"a": np.zeros((3, 3))}, (0, 1), (0, 1)), r"'a'.*\(3, 3\)"),
        (lambda: rj.plots.contour(bowl, {"a": np.zeros((0, 2))}, (0, 1), (0, 1)), r"\(0, 2\)"),
        (lambda: rj.plots.contour(bowl, {}, (1, 0), (0, 1)), r"^x must be.*\(1, 0\)"),
        (lambda: rj.plots.contour(bowl, {}, (0, 1), (0, np.nan)), "^y must be"),
        (lambda: rj.plots.contour(bowl, {}, (0, 1), (0, 1), levels=1), "levels.*1"),
        (lambda: rj.plots.contour(lambda x, y: 3.0, {}, (0, 1), (0, 1)), "f must be"),
        (
            lambda: rj.plots.contour(lambda x, y: x * np.nan, {}, (0, 1), (0, 1)),
            "f must be.*0 of",
        ),
        (lambda: rj.plots.effective_step({"a": [1.0, -1.0]}, 0.1), "nu.*'a'.*-1.0"),
        (lambda: rj.plots.effective_step({"a": [1.0, np.nan]}, 0.1), "'a'"),
        (lambda: rj.plots.effective_step({"a": [[1.0]]}, 0.1), r"\(1, 1\)"),
        (lambda: rj.plots.effective_step({"a": [1.0]}, [0.1, 0.2]), r"learning_rate.*\(2,\)"),
        (lambda: rj.plots.effective_step({"a": [1.0]}, 0.1, eps=-1.0), "eps.*-1.0"),
        (
            lambda: rj.plots.effective_step({c: [1.0] for c in "abcdefghi"}, 0.1),
            "colors.*got 8",
        ),
        (
            lambda: rj.plots.effective_step({"a": [1.0], "b": [1.0]}, 0.1, colors=["k"]),
            "colors.*got 1",
        ),
    ],
)
def test_bad_input_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
