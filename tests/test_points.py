"""`grid`, `static`, `Points`."""

import jax.numpy as jnp
import numpy as np
import pytest

import rmsprop_jax as rj


def test_grid_is_every_combination_last_axis_fastest():
    points = rj.grid(a=[1, 2], b=("x", None), c=np.array([0.5]))
    assert list(points) == [
        {"a": a, "b": b, "c": 0.5} for a, b in [(1, "x"), (1, None), (2, "x"), (2, None)]
    ]
    assert points.names == ("a", "b", "c")


def test_points_are_immutable_and_behave_as_a_sequence():
    points = rj.grid(a=[1, 2, 3], k=rj.static([4]))
    points[0]["a"] = 9
    assert points[0] == {"a": 1, "k": 4}
    assert isinstance(points[1:], rj.Points)
    assert points[1:].static == {"k"}
    assert [p["a"] for p in points.filter(lambda p: p["a"] != 2)] == [1, 3]
    assert points[:1] + points[1:] == points
    assert len(points.filter(lambda p: False)) == 0


def test_only_the_non_numbers_of_a_mixed_axis_are_structure():
    points = rj.grid(momentum=[None, 0.9], flag=[True], n=rj.static([3]))
    assert [points.is_traced("momentum", v) for v in (None, 0.9)] == [False, True]
    assert not points.is_traced("flag", True)
    assert not points.is_traced("n", 3)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({}, "at least one axis"),
        ({"a": []}, "'a' is empty"),
        ({"a": 1e-3}, "'a' is float"),
        ({"a": "abc"}, "'a' is str"),
        ({"a": jnp.ones((2, 2))}, r"shape \(2, 2\)"),
        ({"seed": [1]}, "seed"),
        ({"a": [float("nan")]}, "NaN"),
        ({"a": [2**31]}, "int32"),
        ({"a": [jnp.ones(2)]}, "array"),
    ],
)
def test_refused(axes, message):
    with pytest.raises(ValueError, match=message):
        rj.grid(**axes)


def test_dicts_with_other_names_are_refused():
    with pytest.raises(ValueError, match="point 1 has"):
        rj.Points([{"a": 1}, {"b": 1}])
