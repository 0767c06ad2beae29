"""The pictures hold the numbers of the sweep."""

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

import jax
import jax.numpy as jnp
from matplotlib import pyplot as plt

import rmsprop_jax as rj


@pytest.fixture
def result():
    def train(hp, key):
        loss = jnp.where(hp["x"] == 3, jnp.nan, (hp["x"] - 2) ** 2 + hp["y"] + hp["z"])
        return {"loss": loss, "curve": loss * jnp.arange(1.0, 5.0)}

    points = rj.grid(x=[3.0, 1.0, 2.0], y=[0.0, 1.0], z=[5.0, 4.0])
    yield rj.sweep(train, points, progress=False)
    plt.close("all")


def test_heatmap_shows_the_best_of_the_rest(result):
    axes = rj.plots.heatmap(result, "x", "y")
    cells = np.asarray(axes.images[0].get_array().filled(np.nan))
    np.testing.assert_allclose(cells, [[5, 4, np.nan], [6, 5, np.nan]])
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "2", "3"]
    assert axes.get_title() == "best over z"
    frame = axes.patches[-1]
    assert frame.get_xy() == (0.5, -0.5)  # around x = 2, y = 0


def test_heatmap_can_show_the_mean_of_the_rest(result):
    axes = rj.plots.heatmap(result, "x", "y", reduce="mean")
    cells = np.asarray(axes.images[0].get_array().filled(np.nan))
    np.testing.assert_allclose(cells, [[5.5, 4.5, np.nan], [6.5, 5.5, np.nan]])
    assert axes.get_title() == "mean over z"


@pytest.fixture
def sampled():
    """An axis of 40 numbers, one near 1, five seeds, a few failures."""

    def train(hp, key):
        loss = (jnp.log10(hp["rate"]) + 3) ** 2 + hp["rho"] + 0.1 * jax.random.normal(key)
        loss = jnp.where(hp["rate"] > 0.05, jnp.nan, loss)
        return {"loss": loss, "curve": loss * jnp.arange(1.0, 5.0)}

    space = {"rate": rj.log_uniform(1e-5, 1e-1), "rho": rj.one_minus(rj.log_uniform(1e-3, 0.5))}
    yield rj.sweep(train, rj.sample(space, 40), seeds=5, progress=False)
    plt.close("all")


def test_heatmap_of_many_numbers_shows_ranges(sampled):
    axes = rj.plots.heatmap(sampled, "rate", "rho")
    cells = np.asarray(axes.images[0].get_array().filled(np.nan))
    assert cells.shape == (8, 8)
    assert np.nanmin(cells) == pytest.approx(sampled.best().objective)
    assert "…" in axes.get_xticklabels()[0].get_text()
    assert axes.get_title() == "mean of 5 seeds"


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
    assert [t.get_text()[:12] for t in axes.get_legend().get_texts()] == [
        "best: rate 0", "its 5 seeds,"
    ]  # fmt: skip


def test_curves_of_no_named_metric_are_the_objectives(result):
    assert rj.plots.curves(result).get_ylabel() == "curve"  # the objective has no steps
    train = lambda hp, key: {"b": hp["x"] * jnp.ones(3), "a": jnp.ones(3), "loss": hp["x"]}
    swept = rj.sweep(train, rj.grid(x=[1.0]), objective="b", progress=False)
    assert rj.plots.curves(swept).get_ylabel() == "b"
    swept = rj.sweep(lambda hp, key: {"loss": hp["x"]}, rj.grid(x=[1.0]), progress=False)
    with pytest.raises(ValueError, match="no metric with one value a step"):
        rj.plots.curves(swept)


def test_curves_stand_at_the_steps_that_were_kept():
    train = lambda hp, key: {"loss": hp["x"] * jnp.arange(1.0, 11.0)}
    result = rj.sweep(train, rj.grid(x=[1.0, 2.0]), every=4, progress=False)
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
    assert axes.get_title() == "best over y, z"


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
    assert (low, high) == pytest.approx(best.interval)


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
    # The four failed ones come first.
    np.testing.assert_allclose(axes.lines[9].get_ydata(), result.metrics["curve"][9])
    assert len(rj.plots.curves(result, "curve", smooth=3).lines[-1].get_ydata()) == 2


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda r: rj.plots.heatmap(r, "x", "w"), "'w'"),
        (lambda r: rj.plots.heatmap(r, "x", "y", reduce="worst"), "reduce"),
        (lambda r: rj.plots.sensitivity(r, "w"), "'w'"),
        (lambda r: rj.plots.curves(r, "loss"), "curve"),
        (lambda r: rj.plots.curves(r, "curve", smooth=0), "smooth"),
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
    rj.plots.curves(result, "loss")
    rj.plots.sensitivity(result, "x")
    plt.close("all")


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
    plt.close("all")


def test_contour_of_a_constant_has_no_lines():
    axes = rj.plots.contour(lambda x, y: 0 * x, {}, (0, 1), (0, 1))
    assert not axes.collections
    plt.close("all")


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
    plt.close("all")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: rj.plots.contour(bowl, {"a": np.zeros((3, 3))}, (0, 1), (0, 1)), r"'a'.*\(3, 3\)"),
        (lambda: rj.plots.contour(bowl, {"a": np.zeros((0, 2))}, (0, 1), (0, 1)), r"\(0, 2\)"),
        (lambda: rj.plots.contour(bowl, {}, (1, 0), (0, 1)), r"window x.*\(1, 0\)"),
        (lambda: rj.plots.contour(bowl, {}, (0, 1), (0, np.nan)), "window y"),
        (lambda: rj.plots.contour(bowl, {}, (0, 1), (0, 1), levels=1), "levels.*1"),
        (lambda: rj.plots.contour(lambda x, y: 3.0, {}, (0, 1), (0, 1)), "elementwise"),
        (lambda: rj.plots.contour(lambda x, y: x * np.nan, {}, (0, 1), (0, 1)), "0 of them"),
        (lambda: rj.plots.effective_step({"a": [1.0, -1.0]}, 0.1), "'a'.*-1.0"),
        (lambda: rj.plots.effective_step({"a": [1.0, np.nan]}, 0.1), "'a'"),
        (lambda: rj.plots.effective_step({"a": [[1.0]]}, 0.1), r"\(1, 1\)"),
        (lambda: rj.plots.effective_step({"a": [1.0]}, [0.1, 0.2]), r"\(2,\)"),
        (lambda: rj.plots.effective_step({"a": [1.0]}, 0.1, eps=-1.0), "eps.*-1.0"),
        (lambda: rj.plots.effective_step({c: [1.0] for c in "abcdefghi"}, 0.1), "9 .*got 8"),
        (lambda: rj.plots.effective_step({"a": [1.0], "b": [1.0]}, 0.1, colors=["k"]), "2 .*got 1"),
    ],
)
def test_bad_input_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
