"""`sample` and its distributions."""

import copy
import pickle
import warnings

import jax.numpy as jnp
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
        (lambda: rj.log_uniform(0, 1), "log_uniform.*low.*got 0"),
        (lambda: rj.uniform(1, 1), "uniform.*low < high.*got 1 and 1"),
        (lambda: rj.uniform(0, np.inf), "uniform.*finite.*inf"),
        (lambda: rj.uniform("a", "b"), "uniform.*numbers.*'a' and 'b'"),
        (lambda: rj.integers(1.5, 2), r"integers.*low=1\.5"),
        (lambda: rj.integers(3, 2), "integers.*low.*≤ high"),
        (lambda: rj.choice([]), "choice.*at least one"),
        (lambda: rj.one_minus(0.1), r"one_minus.*got 0\.1.*log_uniform"),
        (lambda: rj.sample({}, 3), "at least one distribution"),
        (lambda: rj.sample({"a": [1, 2]}, 3), r"'a' .*\[1, 2\].*choice"),
        (lambda: rj.sample(SPACE, 0), "n must be.*got 0"),
        (lambda: rj.sample(SPACE, 3, method="halton"), "method must be.*halton"),
        (lambda: rj.sample({"seed": rj.uniform(0, 1)}, 3), "seed"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


ENDS = {
    "uniform": rj.uniform(0.5, 1.0),
    "narrow": rj.uniform(0.1, 0.1 + 1e-12),
    "log_uniform": rj.log_uniform(1e-3, 1.0),
    "one_minus": rj.one_minus(rj.log_uniform(1e-20, 0.1)),
    "one_minus of uniform": rj.one_minus(rj.uniform(1e-12, 0.5)),
    "wide": rj.uniform(-3e38, 3e38),
    "huge": rj.log_uniform(1e-30, 1e38),
}
UPPER = {"narrow": 0.1 + 1e-12, "wide": 3e38, "huge": 1e38}


@pytest.mark.parametrize("name", ENDS)
def test_draws_stop_below_their_upper_end_in_float32(name):
    """A decay that float32 rounds to 1 would be another setting."""
    high = np.float32(UPPER.get(name, 1.0))
    for u in (0.0, 1e-300, 0.5, 1 - 2.0**-30, np.nextafter(1.0, 0.0)):
        x = ENDS[name].quantile(u)
        assert np.isfinite(x)
        assert np.float32(x) < high or name == "narrow"  # no float32 lies within


def test_the_widest_ranges_are_drawn_from(x64):
    points = rj.sample({"x": rj.uniform(-1e308, 1e308), "y": rj.log_uniform(1e-320, 1e308)}, 64)
    x, y = column(points, "x"), column(points, "y")
    assert np.isfinite(x).all()
    assert x.min() < -9e307
    assert x.max() > 9e307
    assert y.min() < 1e-300
    assert y.max() > 1e295


def test_a_distribution_may_be_static():
    points = rj.sample({"width": rj.static(rj.integers(8, 64)), "x": rj.uniform(0, 1)}, 4)
    assert points.static == {"width"}
    assert all(type(p["width"]) is int for p in points)
    assert repr(rj.static(rj.integers(8, 64))) == "static(integers(8, 64))"
    array = rj.choice(np.array([1.0, 2.0]))
    assert {array.quantile(u) for u in (0.1, 0.9)} == {1.0, 2.0}


def test_one_minus_needs_numbers():
    with pytest.raises(ValueError, match=r"one_minus.*got choice.*log_uniform"):
        rj.one_minus(rj.choice(["a"]))


MAKE = {
    "uniform": lambda: rj.uniform(0.5, 0.9999996),
    "log_uniform": lambda: rj.log_uniform(1e-3, 1),
    "one_minus": lambda: rj.one_minus(rj.log_uniform(1e-3, 0.5)),
    "integers": lambda: rj.integers(np.int64(1), 3),
    "static": lambda: rj.static(rj.integers(1, 3)),
    "choice": lambda: rj.choice([1, True, (1, 2), None, "a", {"of": [1.0]}]),
    "choice of others": lambda: rj.choice([1.0, True, (1, 2), None, "a", {"of": [1.0]}]),
    "static choice": lambda: rj.choice(rj.static([1, 2])),
    "arrays": lambda: rj.choice(rj.static([np.arange(3), jnp.arange(3)])),
    "nearly uniform": lambda: rj.uniform(0.5, 1),
}


@pytest.mark.parametrize("name", MAKE)
def test_distributions_are_compared_hashed_pickled_and_frozen(name):
    one = MAKE[name]()
    for other in (MAKE[name](), pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
        assert other == one
        assert hash(other) == hash(one)
        assert repr(other) == repr(one)
        assert len({str([x.quantile(u) for u in (0.0, 0.4, 0.99)]) for x in (one, other)}) == 1
    others = [make() for key, make in MAKE.items() if key != name]
    assert one not in others
    assert repr(one) not in map(repr, others)
    assert one != repr(one)
    with pytest.raises(AttributeError):
        one.is_static = True
