"""Values of every kind in every place: in an axis, in look-ups, tables and pictures, on disk."""

import dataclasses
import enum
import functools
import itertools
import json

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

from matplotlib import pyplot as plt

import rmsprop_jax as rj
from rmsprop_jax._tune.results.statistics import levels
from rmsprop_jax._tune.space.values import decode, encode, identity


@dataclasses.dataclass
class Config:
    width: object
    rate: float = 0.1


class Kind(enum.Enum):
    A = 1
    B = 2


# Each differs from each other in type or content, however alike `==` finds some of them.
DIFFERENT = [
    *(None, True, False, 1, 0, 1.0, 0.0, -0.0, "1", "", b"1", 1j, (), [], {}),
    *((1,), (True,), (1.0,), [1], [True], (1, (2,)), (1, [2]), {"a": 1}, {"a": True}, {"a": 1.0}),
    *({"opt": "adam"}, {"tuple": [1]}, {"list": []}, {1: "a"}, {"1": "a"}, {(1, 2): {"b": ()}}),
    *(np.array([8, 8]), np.array([8]), np.array([[8, 8]]), np.array([8.0, 8.0]), np.array(8)),
    *(np.int64(8), np.int32(8), np.float32(8), jnp.array([8, 8]), jnp.array(8), jnp.bfloat16(8)),
    *(np.array([True]), np.array(["a"]), float("inf"), float("-inf"), "x" * 100),
]  # fmt: skip
IN_MEMORY = [
    *(jnp.sin, jnp.cos, np.sin, functools.partial(jnp.sum, axis=0), object(), Kind.A, Kind.B),
    *(Config(1), Config(True), Config(1.0), Config(np.array([1, 2])), Config((1,)), {1, 2}),
    *(frozenset({1, 2}), jax.random.key(0), jax.random.key(1), np.dtype("float32"), jnp.float32),
]  # fmt: skip


@pytest.mark.parametrize("values", [DIFFERENT, DIFFERENT + IN_MEMORY], ids=["stored", "all"])
def test_values_are_told_apart_by_type_and_content(values):
    keys = [identity(value) for value in values]
    for (i, a), (j, b) in itertools.combinations(enumerate(keys), 2):
        assert a != b, (values[i], values[j])
    assert len(set(keys)) == len(values)


def copies(value):
    """Another object of the same content, where there can be one."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, jax.Array):
        return value + 0 if value.dtype != jax.random.key(0).dtype else jax.random.clone(value)
    if isinstance(value, tuple | list):
        return type(value)(map(copies, value))
    if isinstance(value, dict):
        return {k: copies(x) for k, x in reversed(value.items())}
    if isinstance(value, Config):
        return Config(copies(value.width))
    return value


@pytest.mark.parametrize("value", DIFFERENT + IN_MEMORY)
def test_a_copy_is_the_same(value):
    assert identity(copies(value)) == identity(value)
    assert hash(identity(copies(value))) == hash(identity(value))


POINTS = rj.Points([{"v": v, "x": x} for v in DIFFERENT for x in (1.0, 2.0)], ["v"])


def train(hp, key):
    """Each value of v has a loss of its own, by what `train` got."""
    number = [i for i, v in enumerate(DIFFERENT) if identity(v) == identity(hp["v"])]
    assert len(number) == 1
    return {"loss": hp["x"] * (1 + number[0]) * jnp.ones(3)}


@pytest.fixture(scope="module")
def result():
    return rj.sweep(train, POINTS, progress=False)


EXPECTED = [x * (1 + i) for i in range(len(DIFFERENT)) for x in (1.0, 2.0)]


@pytest.mark.slow
def test_every_value_is_trained_as_it_is(result):
    assert result.objective.tolist() == EXPECTED


def test_every_value_is_found_again(result):
    for i, point in enumerate(result.points):
        same = point | {"v": copies(point["v"])}
        assert result.points.index_of(same) == i
        assert result.compare(same, result.points[0]).difference == EXPECTED[i] - EXPECTED[0]
    assert [r.point for r in result.top(3)] == [result.points[i] for i in (0, 1, 2)]
    retrained = result.retrain(result.best())
    np.testing.assert_array_equal(retrained["loss"], result.metrics["loss"][0])


def test_every_value_is_a_level(result):
    found = levels(result.points, "v")
    assert sorted(tuple(level.points.tolist()) for level in found) == [
        (2 * i, 2 * i + 1) for i in range(len(DIFFERENT))
    ]
    assert result.sensitivity()["v"] == len(DIFFERENT) - 1


@pytest.mark.slow
def test_every_value_is_in_tables_and_pictures(result):
    assert len(result.to_dataframe()) == len(POINTS)
    assert result.to_xarray().objective.values[:, 0].tolist() == EXPECTED
    assert "<td>" in result._repr_html_()
    assert len(repr(result.best())) < 300
    for draw in (
        lambda: rj.plots.heatmap(result, "v", "x"),
        lambda: rj.plots.sensitivity(result, "v"),
        lambda: rj.plots.curves(result, "loss"),
    ):
        draw().figure.canvas.draw()
        plt.close("all")


@pytest.mark.slow
def test_every_value_comes_back_from_a_folder(result, tmp_path):
    result.save(tmp_path / "saved")
    swept = rj.sweep(train, POINTS, path=tmp_path / "swept", progress=False)
    for path in ("saved", "swept"):
        loaded = rj.SweepResult.load(tmp_path / path)
        assert loaded.points == POINTS
        assert [identity(p["v"]) for p in loaded.points] == [identity(p["v"]) for p in POINTS]
        assert loaded.objective.tolist() == EXPECTED
        assert loaded.points.index_of(POINTS[7]) == 7
        again = rj.sweep(train, POINTS[::-1], path=tmp_path / path, progress=False)
        assert again.objective.tolist() == EXPECTED[::-1]
    assert swept.objective.tolist() == EXPECTED


@pytest.mark.slow
@pytest.mark.parametrize("value", IN_MEMORY)
def test_what_would_not_come_back_is_refused(value, tmp_path):
    f = lambda hp, key: {"loss": hp["x"] + 0 * (hp["v"] is None)}
    points = rj.grid(v=rj.static([value]), x=[1.0])
    assert rj.sweep(f, points, progress=False).objective.tolist() == [1.0]
    with pytest.raises(ValueError, match=r"(?s)axis 'v'.*a string.*in train"):
        rj.sweep(f, points, path=tmp_path / "f", progress=False)
    assert not (tmp_path / "f").exists()


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
nests = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        | st.dictionaries(st.integers() | st.booleans(), inner, max_size=2)
    ),
    max_leaves=8,
)


@hypothesis.settings(deadline=None, database=None, derandomize=True, max_examples=100)
@hypothesis.given(nests)
def test_every_nest_comes_back_as_it_was(value):
    back = decode(json.loads(json.dumps(encode(value, "v"))))
    assert identity(back) == identity(value)
    assert repr(back) == repr(value)


def test_static_numbers_that_are_equal_and_not_alike_are_levels_of_their_own():
    points = rj.grid(v=rj.static([1, 1.0, True, 2]))
    seen = []
    f = lambda hp, key: seen.append(hp["v"]) or {"loss": jnp.float32(hp["v"])}
    rj.sweep(f, points, progress=False)
    assert list(map(repr, seen)) == ["1", "1.0", "True", "2"]
    assert [level.label for level in levels(points, "v")] == ["1", "1", "2", "True"]


def test_traced_numbers_are_the_same_however_written(tmp_path):
    """1000 beside .1 is 1000.0."""
    f = lambda hp, key: {"loss": hp["x"]}
    run = lambda values: rj.sweep(f, rj.grid(x=values), path=tmp_path, progress=False)
    first = run([1000, 0.1])
    assert first.points.index_of({"x": 1000.0}) == 0
    rounds = len(list(tmp_path.glob("round-*")))
    assert run([1000.0, np.float64(0.1)]).objective.tolist() == first.objective.tolist()
    assert len(list(tmp_path.glob("round-*"))) == rounds
    with pytest.raises(ValueError, match=r"'x' of another dtype: float32 in .* int32 in"):
        run([1000, 1])
