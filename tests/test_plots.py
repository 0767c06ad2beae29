"""The pictures hold the numbers of the sweep."""

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

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


def test_curves_draws_each_trial_and_names_the_best(result):
    axes = rj.plots.curves(result, "curve")
    assert len(axes.lines) == len(result)
    assert axes.get_legend().get_texts()[0].get_text() == "best: x 2, y 0, z 4"
    np.testing.assert_allclose(axes.lines[9].get_ydata(), result.metrics["curve"][9])
    assert len(rj.plots.curves(result, "curve", smooth=3).lines[-1].get_ydata()) == 2


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda r: rj.plots.heatmap(r, "x", "w"), "'w'"),
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
    plt.close("all")
