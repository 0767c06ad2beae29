"""`sample` and its distributions."""

import warnings

import numpy as np
import pytest

import rmsprop_jax as rj

SPACE = {
    "learning_rate": rj.log_uniform(1e-5, 1e-1),
    "decay": rj.one_minus(rj.log_uniform(1e-3, 5e-1)),
    "x": rj.uniform(-1.0, 3.0),
    "n": rj.integers(2, 5),
    "flag": rj.choice([False, True]),
    "width": rj.choice(rj.static([8, 16])),
}
methods = pytest.mark.parametrize("method", ["sobol", "latin_hypercube", "random"])


def column(points, name):
    return np.array([point[name] for point in points])


@methods
def test_every_axis_has_its_distribution(method):
    """Each axis, mapped back to [0, 1), is uniform (Kolmogorov); choices are as frequent."""
    n = 1024
    points = rj.sample(SPACE, n, method=method)
    assert len(points) == n
    assert points.static == {"width"}
    u = {
        "learning_rate": np.log10(column(points, "learning_rate") / 1e-5) / 4,
        "decay": np.log((1 - column(points, "decay")) / 1e-3) / np.log(500),
        "x": (column(points, "x") + 1) / 4,
    }
    for values in u.values():
        ranks = np.arange(n) / n
        distance = max(
            abs(np.sort(values) - ranks).max(), abs(np.sort(values) - ranks - 1 / n).max()
        )
        assert distance < (0.06 if method == "random" else 1.01 / n + 1e-6)
    spread = 100 if method == "random" else 2
    assert {type(p["n"]) for p in points} == {int}
    for name, values in {"n": [2, 3, 4, 5], "flag": [False, True], "width": [8, 16]}.items():
        seen, counts = np.unique(column(points, name), return_counts=True)
        assert seen.tolist() == values
        assert abs(counts - n / len(values)).max() <= spread


@methods
def test_a_seed_gives_the_same_points(method):
    first, same, other = (rj.sample(SPACE, 20, seed=s, method=method) for s in (3, 3, 4))
    assert first == same
    assert first != other
    if method != "latin_hypercube":
        assert rj.sample(SPACE, 50, seed=3, method=method)[:20] == first


def test_sobol_of_any_count_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [len(rj.sample(SPACE, n)) for n in (1, 2, 3, 7, 100)] == [1, 2, 3, 7, 100]


def test_sobol_fills_the_plane_where_random_leaves_holes():
    """64 points on an 8 × 8 board: each row and column holds 8, hardly any square is empty."""
    space = {"a": rj.uniform(0, 1), "b": rj.uniform(0, 1)}

    def empty(method):
        points = rj.sample(space, 64, method=method)
        squares = {(int(8 * p["a"]), int(8 * p["b"])) for p in points}
        return 64 - len(squares)

    assert empty("sobol") == 0
    assert empty("random") > 10


def test_ends_are_never_left():
    for distribution, low, high in [
        (rj.log_uniform(1e-5, 1e-1), 1e-5, 1e-1),
        (rj.uniform(0.5, 0.9), 0.5, 0.9),
        (rj.integers(2, 5), 2, 5),
    ]:
        for u in (0.0, 0.5, np.nextafter(1.0, 0.0)):
            assert low <= distribution.quantile(u) <= high


def test_samples_join_grids_and_become_a_table():
    space = {"a": rj.uniform(0, 1), "b": rj.choice(["x", None])}
    points = rj.grid(a=[0.5], b=["x"]) + rj.sample(space, 3)
    table = points.filter(lambda p: p["a"] > 0).to_dataframe()
    assert list(table) == ["a", "b"]
    assert table["a"].tolist() == [p["a"] for p in points]


def test_rmsprop_space_is_swept():
    def train(hp, key):
        solver = rj.rmsprop(
            hp["learning_rate"], hp["decay"], hp["eps"],
            momentum=hp["momentum"], centered=hp["centered"],
        )  # fmt: skip
        return {"loss": solver.update(1.0, solver.init(1.0))[0]}

    points = rj.sample(rj.rmsprop_space(), 6)
    result = rj.sweep(train, points, progress=False)
    assert len(result) == 6
    assert not result.failed.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rj.log_uniform(0, 1), "low > 0"),
        (lambda: rj.uniform(1, 1), "low < high"),
        (lambda: rj.uniform(0, np.inf), "finite"),
        (lambda: rj.uniform("a", "b"), "numbers"),
        (lambda: rj.integers(1.5, 2), r"low=1\.5"),
        (lambda: rj.integers(3, 2), "low ≤ high"),
        (lambda: rj.choice([]), "at least one"),
        (lambda: rj.one_minus(0.1), "distribution"),
        (lambda: rj.sample({}, 3), "at least one distribution"),
        (lambda: rj.sample({"a": [1, 2]}, 3), r"'a' is \[1, 2\].*choice"),
        (lambda: rj.sample(SPACE, 0), "got 0"),
        (lambda: rj.sample(SPACE, 3, method="halton"), "halton"),
        (lambda: rj.sample({"seed": rj.uniform(0, 1)}, 3), "seed"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
