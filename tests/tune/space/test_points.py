"""`grid`, `static`, `Points`."""

import jax
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


def test_only_the_non_numbers_of_a_mixed_axis_are_static():
    points = rj.grid(momentum=[None, 0.9], flag=[True], n=rj.static([3]))
    assert [points.is_traced("momentum", v) for v in (None, 0.9)] == [False, True]
    assert not points.is_traced("flag", True)
    assert not points.is_traced("n", 3)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({}, r"grid\(learning_rate="),
        ({"a": []}, "axis 'a'"),
        ({"a": 1e-3}, r"axis 'a'.*float.*a=\[\.\.\.\]"),
        ({"a": "abc"}, r"axis 'a'.*str.*a=\[\.\.\.\]"),
        ({"a": jnp.ones((2, 2))}, r"axis 'a'.*shape \(2, 2\)"),
        ({"seed": [1]}, r"\['seed'\]"),
        ({"a": [float("nan")]}, "'a'.*NaN.*[Ll]eave that point out"),
        ({"a": [2**31]}, "'a'.*int32.*float"),
        ({"a": [jnp.ones(2)]}, "'a'.*array of shape.*static"),
    ],
)
def test_refused(axes, message):
    with pytest.raises(ValueError, match=message):
        rj.grid(**axes)


def test_dicts_with_other_names_are_refused():
    with pytest.raises(ValueError, match=r"point 1.*Points\(\[\.\.\.\]\) \+ Points"):
        rj.Points([{"a": 1}, {"b": 1}])


# Joined, multiplied, and what is said of values that do not fit.


def test_a_product_is_each_with_each():
    drawn = rj.sample({"learning_rate": rj.log_uniform(1e-4, 1e-1)}, 3)
    points = rj.grid(optimizer=["sgd", "rmsprop"], width=rj.static([8])) * drawn
    assert len(points) == 6
    assert points.names == ("optimizer", "width", "learning_rate")
    assert points.static == {"width"}
    assert points[1] == {"optimizer": "sgd", "width": 8, **drawn[1]}
    with pytest.raises(ValueError, match=r"product.*\['optimizer'\]|\['optimizer'\].*product"):
        points * rj.grid(optimizer=["adam"])


def test_an_axis_of_some_points_only():
    """Momentum where the optimiser has one: no dummy value, and none in hp."""
    plain = rj.grid(optimizer=["plain"], x=[1.0, 2.0])
    with_momentum = rj.grid(optimizer=["momentum"], x=[1.0], momentum=[0.5, 0.9])
    points = plain + with_momentum
    assert points.names == ("optimizer", "x", "momentum")
    assert "momentum" not in points[0]
    seen = []

    def train(hp, key):
        seen.append(sorted(hp))
        return {"loss": hp["x"] + (hp["momentum"] if hp["optimizer"] == "momentum" else 10)}

    result = rj.sweep(train, points, progress=False)
    assert result.objective.tolist() == [11.0, 12.0, 1.5, pytest.approx(1.9)]
    assert seen == [["optimizer", "x"], ["momentum", "optimizer", "x"]]
    table = result.to_dataframe()
    assert table["momentum"].isna().tolist() == [True, True, False, False]
    assert result.best().point == {"optimizer": "momentum", "x": 1.0, "momentum": 0.5}
    assert sorted(result.best().hp) == ["momentum", "optimizer", "x"]
    assert np.isnan(result.to_xarray().momentum.values[:2]).all()
    assert result.sensitivity()["momentum"] > 8
    assert "–" in result._repr_html_()
    with pytest.raises(ValueError, match=r"hp\['momentum'\].*Add the axis"):
        rj.sweep(lambda hp, key: {"loss": hp["momentum"]}, points, progress=False)


def test_an_axis_of_some_points_only_on_disk(tmp_path):
    train = lambda hp, key: {"loss": hp["x"] + hp.get("y", 10.0)}
    points = rj.grid(x=[1.0]) + rj.grid(x=[2.0], y=[0.5])
    first = rj.sweep(train, points, path=tmp_path, progress=False)
    loaded = rj.SweepResult.load(tmp_path)
    assert loaded.points == points
    assert loaded.objective.tolist() == first.objective.tolist() == [11.0, 2.5]
    rounds = len(list(tmp_path.glob("round-*")))
    again = rj.sweep(train, points + rj.grid(x=[3.0]), path=tmp_path, progress=False)
    assert again.objective.tolist() == [11.0, 2.5, 13.0]
    assert len(list(tmp_path.glob("round-*"))) == rounds + 1


def test_lists_join_points():
    points = rj.grid(a=[1])
    more = [{"a": 2}]
    assert points + more == [{"a": 1}] + (points[:0] + more)
    with pytest.raises(TypeError):
        points + 3


def test_a_float64_axis_under_x64(x64):
    points = rj.grid(x=[1e-300, 1e300, 0.1, 0.1 + 1e-12])
    train = lambda hp, key: {"loss": hp["x"]}
    result = rj.sweep(train, points, progress=False)
    assert result.objective.tolist() == [1e-300, 1e300, 0.1, 0.1 + 1e-12]
    assert result.metrics["loss"].dtype == np.float64


SAID = {
    "one dict": (lambda: rj.sweep(print, {"lr": [0.1]}), r"points.*rj\.grid\(\*\*points\)"),
    "numbers": (lambda: rj.sweep(print, [0.1, 0.2]), r"point 0 .*0\.1.*{'learning_rate': 1e-3}"),
    "names": (lambda: rj.Points([{1: 2}]), "point 0 .*{1: 2}.*{'learning_rate': 1e-3}"),
    "grid of a dict": (lambda: rj.grid({"lr": [0.1]}), r"by name.*grid\(\*\*\{'lr'"),
    "grid of a list": (lambda: rj.grid([0.1]), r"by name.*grid\(learning_rate=\[0\.1\]"),
    "a key": (lambda: rj.grid(k=jax.random.split(jax.random.key(0), 2)), "PRNG keys.*seeds=n"),
    "keys": (lambda: rj.grid(k=[jax.random.key(0)]), r"PRNG keys.*jax\.random\.key\(hp\['k'\]\)"),
    "merged": (lambda: rj.grid(x=[0.99999999, 0.999999999]), r"'x'.*float32.*[Ll]eave one out"),
    "beyond": (lambda: rj.grid(x=[1e300]), r"'x'.*1e\+300.*enable.*x64"),
    "below": (lambda: rj.grid(x=[1e-60]), "'x'.*1e-60.*[Ww]rite 0"),
    "static of a word": (lambda: rj.static("adam"), r"got 'adam'.*static\(\['adam'\]\)"),
    "static of a number": (lambda: rj.static(3), r"static\(\[3\]\)"),
    "static of a dict": (lambda: rj.static({"a": 1}), r"static\(\[\{'a': 1\}\]\)"),
    "a distribution": (lambda: rj.grid(x=rj.uniform(0, 1)), r"axis 'x'.*rj\.sample"),
}


@pytest.mark.parametrize("case", SAID)
def test_what_does_not_fit_is_said_with_a_remedy(case):
    call, message = SAID[case]
    with pytest.raises(ValueError, match=message):
        call()


def nested(levels, value=0):
    for _ in range(levels):
        value = [value]
    return value


def itself():
    value = []
    value.append(value)
    return value


UNWIELDY = {
    "a huge integer": (10**5000, "10,000 bits.*Write it as a float"),
    "a huge integer in a list": ([1, (10**5000,)], "10,000 bits"),
    "a huge integer as a key": ({10**5000: 1}, "10,000 bits"),
    "a deep list": (nested(5000), "100 levels deep.*Flatten"),
    "a dict of deep lists": ({"a": nested(5000)}, "100 levels deep"),
    "a list of itself": (itself(), "100 levels deep"),
}


@pytest.mark.parametrize("case", UNWIELDY)
def test_values_that_python_cannot_print_are_refused(case):
    value, message = UNWIELDY[case]
    for make in (
        lambda: rj.grid(x=[1.0, value]),
        lambda: rj.grid(x=rj.static([value])),
        lambda: rj.Points([{"x": value}]),
    ):
        with pytest.raises(ValueError, match=rf"'x'.*{message}"):
            make()


def test_a_value_that_is_nested_less_is_compared_and_stored(tmp_path):
    points = rj.grid(x=[1.0], shape=rj.static([nested(98), nested(98, 1), 10**1000]))
    train = lambda hp, key: {"loss": hp["x"] + (hp["shape"] is None)}
    rj.sweep(train, points, path=tmp_path, progress=False)
    assert rj.SweepResult.load(tmp_path).points == points


def test_an_integer_beyond_every_float_is_said_to_be_beyond_int32():
    with pytest.raises(ValueError, match=r"'x'.*int32.*[Ww]rite it as a float"):
        rj.grid(x=[10**400])


def test_a_huge_seed_is_refused():
    with pytest.raises(ValueError, match=r"seeds must fit 64 bits.*16610 bits"):
        rj.sweep(lambda hp, key: {"loss": hp["x"]}, [{"x": 1.0}], seeds=[10**5000])


def test_a_notebook_shows_the_first_points_as_text():
    points = rj.grid(x=[1.0, 2.0], kind=["<b>", "c"]) + rj.grid(x=[1e-7])
    text = points._repr_html_()
    assert text.count("<tr>") == 1 + 5
    assert "<td>&lt;b&gt;</td>" in text
    assert "<td>1e-07</td><td>–</td>" in text
    many = rj.grid(x=list(range(1000)))._repr_html_()
    assert many.count("<tr>") == 1 + 10
    assert "the first 10" in many
