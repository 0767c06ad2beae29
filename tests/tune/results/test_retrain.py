"""`result.retrain`: a point once more as the sweep trained it, under whatever settings."""

import contextlib
import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmsprop_jax as rj
from tests.support.tables import crossed
from tests.support.trainings import plain
from tests.tune.test_sweep import AROUND

DATA = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(4, 3)
POINTS = rj.grid(x=[1.0, 2.0], wide=[False, True])


def function(hp, key, data):
    noise = jax.random.uniform(key, (3,), data.dtype)
    scale = 2 if hp["wide"] else 1
    losses = jnp.cumsum(data @ noise) * hp["x"] * scale
    return {"loss": losses, "digits": hp["x"] / 3}


def init(hp, key, data):
    return {"w": hp["x"] * jax.random.normal(key, (3,)), "t": 0}


def step(hp, state, key, data):
    noise = jax.random.normal(key, (3,)) * (2 if hp["wide"] else 1)
    loss = jnp.sum((data.astype(noise.dtype) @ state["w"] + 1) ** 2)
    w = state["w"] - 0.01 * hp["x"] * (state["w"] + noise)
    return {"w": w, "t": state["t"] + 1}, {"loss": loss}


def evaluate(hp, state, key, data):
    return {"norm": jnp.sum(state["w"] ** 2) + jax.random.uniform(key)}


TRAINING = rj.Training(init, step, evaluate)
KINDS = ("function", "training")


def sweep(kind, train=None, points=POINTS, **options):
    if kind == "training":
        options = {"steps": 4, "evaluate_every": 2, "keep_states": "all"} | options
    train = train or (TRAINING if kind == "training" else function)
    return rj.sweep(train, points, args=(DATA,), progress=False, **options)


def assert_trained_again(result, args=(DATA,), **options):
    """Each point's first seed, bit for bit."""
    for point in result.points:
        again = result.retrain(point, args=args, **options)
        row = np.flatnonzero(result.point_index == result.points.index_of(point))[0]
        if isinstance(again, tuple):
            state, metrics = again
            for x, y in zip(plain(state), plain(result.state(point)), strict=True):
                np.testing.assert_array_equal(x, y, strict=True)
            np.testing.assert_array_equal(metrics["norm"], result.metrics["norm"][row, -1])
        else:
            metrics = again
            np.testing.assert_array_equal(metrics["digits"], result.metrics["digits"][row])
        assert metrics["loss"].dtype == result.metrics["loss"].dtype
        np.testing.assert_array_equal(metrics["loss"], result.metrics["loss"][row])


@pytest.fixture(scope="module")
def results():
    return {kind: sweep(kind) for kind in KINDS}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), crossed(list(AROUND), KINDS))
def test_settings_around_it_change_nothing(results, kind, name):
    with AROUND[name]():
        assert_trained_again(results[kind])


OF_THE_SWEEP = {
    "x64": lambda: jax.enable_x64(True),
    "rbg": lambda: jax.default_prng_impl("rbg"),
    "partitionable": lambda: jax.threefry_partitionable(not jax.config.jax_threefry_partitionable),
    "precision": lambda: jax.default_matmul_precision("bfloat16"),
    "loose dtypes": lambda: jax.numpy_dtype_promotion("standard"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_THE_SWEEP)
def test_it_has_the_settings_that_the_sweep_had(name):
    """Where the call has others: a sweep in float64 is not trained again in float32."""
    with OF_THE_SWEEP[name]():
        result = sweep("function", points=POINTS[2:3])
    with jax.numpy_dtype_promotion("strict"):
        assert_trained_again(result)


@pytest.mark.slow
def test_a_training_and_its_batches_have_the_settings_that_the_sweep_had():
    def batches(t):
        return np.asarray(jax.random.normal(jax.random.key(t), (3,)))

    fed = lambda hp, state, key, batch, data: step(hp, state | {"w": state["w"] + batch}, key, data)
    with contextlib.ExitStack() as stack:
        for name in OF_THE_SWEEP:
            stack.enter_context(OF_THE_SWEEP[name]())
        training = rj.Training(init, fed, evaluate)
        result = sweep("training", training, points=POINTS[2:3], batches=batches)
    assert result.state(POINTS[2])["w"].dtype == np.float64
    with jax.numpy_dtype_promotion("strict"):
        assert_trained_again(result, batches=batches)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_where_the_args_are_changes_nothing(results, kind):
    """The sweep copies them to its devices, whatever devices hold them."""
    for device in jax.devices()[:2]:
        assert_trained_again(results[kind], (jax.device_put(DATA, device),))
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    assert_trained_again(results[kind], (jax.device_put(DATA, split),))

    both = lambda hp, key, x, y: {"loss": hp["x"] * (x.sum() + y.sum()) + hp["wide"]}
    args = tuple(jax.device_put(x, d) for x, d in zip(DATA[:2], jax.devices(), strict=False))
    result = rj.sweep(both, POINTS, args=args, progress=False)
    assert result.retrain(POINTS[1], args=args)["loss"] == result.metrics["loss"][1]


def test_it_runs_where_the_sweep_ran():
    stay = lambda hp, w, key: (w, {"loss": w})
    training, points = rj.Training(lambda hp, key: hp["x"], stay), rj.grid(x=[1.0])
    result = rj.sweep(training, points, steps=2, devices=jax.devices()[1], progress=False)
    assert result.retrain(points[0])[0].devices() == {jax.devices()[1]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_second_call_traces_and_compiles_nothing(kind):
    calls = []

    def counted(function):
        def call(*args):
            calls.append(function.__name__)
            return function(*args)

        return call

    if kind == "training":
        train = rj.Training(counted(init), counted(step), counted(evaluate))
    else:
        train = counted(function)
    result = sweep(kind, train)
    result.retrain(POINTS[0], args=(DATA,))
    calls.clear()
    metrics = lambda again: again[1] if kind == "training" else again
    first = metrics(result.retrain(POINTS[0], args=(DATA,)))["loss"]
    for other in (result, copy.copy(result), copy.deepcopy(result), result.rescored("loss", "max")):
        again = metrics(other.retrain(POINTS[0], args=(DATA,)))["loss"]
        np.testing.assert_array_equal(again, first)
        assert (metrics(other.retrain(POINTS[2], args=(DATA,)))["loss"] != first).any()
        assert (metrics(other.retrain(POINTS[0], seed=5, args=(DATA,)))["loss"] != first).any()
        assert (metrics(other.retrain(POINTS[0], args=(2 * DATA,)))["loss"] != first).any()
    assert calls == []
    result.retrain(POINTS[1], args=(DATA[:2],))  # another shape
    assert calls


@pytest.mark.parametrize("kind", KINDS)
def test_inside_a_jit_it_says_to_call_it_outside(results, kind):
    with pytest.raises(
        ValueError, match=r"retrain must be called outside jax\.jit.*Call it from plain"
    ):
        jax.jit(lambda x: results[kind].retrain(POINTS[0], args=(x,)))(DATA)


@pytest.mark.parametrize("kind", KINDS)
def test_args_that_do_not_fit_are_named(results, kind):
    with pytest.raises(ValueError, match="with 0 args"):
        results[kind].retrain(POINTS[0])
    with pytest.raises(ValueError, match=r"args\[0\] .*'data', a str"):
        results[kind].retrain(POINTS[0], args=("data",))


def test_a_member_of_a_population_is_trained_again_under_x64_and_strict_dtypes():
    """Its parts begin at a step of their own, whose dtype is promoted to no other."""
    population = rj.PopulationBasedTraining(
        {"x": rj.log_uniform(0.1, 10.0)}, perturbation_interval=2
    )
    points = rj.grid(x=[0.5, 1.0, 2.0, 4.0])
    move = lambda hp, w, key: (w + hp["x"], {"loss": w})
    training = rj.Training(lambda hp, key: jnp.zeros(()), move)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        result = rj.sweep(
            training, points, steps=4, scheduler=population, keep_states="all", progress=False
        )
    assert result.is_population
    for point in points:
        np.testing.assert_array_equal(result.retrain(point)[0], result.state(point), strict=True)
