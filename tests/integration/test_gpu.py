"""On the devices that JAX finds: what only an accelerator does, and that its numbers are right.

`python -m pytest -m gpu` runs from the source folder on a machine that has JAX, Optax, Flax and
pytest, without an installation; on a CPU it is a part of the suite, with smaller sizes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmsprop_jax as rj
from rmsprop_jax._optimizer.two_bytes import NU, leaf_salt, salt
from rmsprop_jax._optimizer.two_bytes import rounded as round_to_bfloat16
from rmsprop_jax._tune.compile import compiled as program
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.run.local_devices import LocalDevices
from rmsprop_jax._tune.run.machine import Machine, device_memory
from tests.benchmarks import convolution
from tests.benchmarks.step import train_step
from tests.optimizer.test_presets import CASES, FROZEN, assert_same, preset, way
from tests.support import engine, oracles, reference, trainings
from tests.support.aot import compilers
from tests.support.steps import travel

pytestmark = pytest.mark.gpu

on_cpu = lambda: jax.default_backend() == "cpu"
SPACE = {"learning_rate": rj.log_uniform(1e-4, 1e-2), "decay": rj.uniform(0.5, 0.99)}
ONE_EACH = list({case.preset: case for case in CASES.values()}.values())


@pytest.fixture(autouse=True)
def exact():
    """No products in 10 bits, which a GPU has by default."""
    with jax.default_matmul_precision("highest"):
        yield


# The optimiser.


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"centered": True, "eps": 1e-4},
        {"centered": True, "momentum": 0.9, "nesterov": True, "eps": 1e-4},
        {"bias_correction": True, "eps_in_sqrt": True},
        {"momentum": 0.9, "lr_in_momentum": False, "weight_decay": 0.01},
        {"weight_decay": 0.01, "decoupled_weight_decay": True, "initial_scale": 1.0},
    ],
    ids=lambda settings: " ".join(settings) or "plain",
)
def test_steps_follow_the_equations(settings):
    grads = np.random.default_rng(0).normal(size=(100, 1000)).astype(np.float32)
    solver = rj.rmsprop(0.01, **settings)

    _, updates = jax.jit(functools.partial(travel, solver))(grads, jnp.zeros(1000))
    expected = reference.rmsprop(grads, 0.01, **settings).cumsum(axis=0)
    assert_same(np.asarray(updates, np.float64).cumsum(axis=0), expected, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", ONE_EACH, ids=lambda case: case.name)
def test_presets_follow_their_frozen_runs(case):
    ours = way(preset(case), case.stream, jnp.float32)
    assert_same(ours[oracles.KEPT], FROZEN[case.name], 1e-5)


def test_a_donated_step_needs_no_temporary():
    size = 1 << 16 if on_cpu() else 1 << 25
    solver = rj.rmsprop(1e-3, centered=True)
    params = jnp.ones(size)
    compiled = train_step(solver).lower(params, solver.init(params), params).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 64
    assert compiled.memory_analysis().alias_size_in_bytes >= 3 * 4 * size


def test_rounding_to_two_bytes_gives_the_same_bits_as_on_a_cpu():
    x = jax.random.normal(jax.random.key(0), (1 << 14,))
    both = []
    for device in (jax.devices()[0], jax.devices("cpu")[0]):
        with jax.default_device(device):
            rounded = jax.jit(lambda x, t: round_to_bfloat16(x, leaf_salt(salt(NU, 0, t), 0)))
            both.append(np.asarray(rounded(jax.device_put(x, device), 7), np.float32))
    np.testing.assert_array_equal(*both)


# The sweep.


def small_train(hp, key, x, y):
    """What a CPU compiles in no time, a linear layer."""

    def step(carry, _):
        weights, state = carry
        loss, grads = jax.value_and_grad(lambda w: jnp.mean((x @ w - y) ** 2))(weights)
        updates, state = solver.update(grads, state)
        return (optax.apply_updates(weights, updates), state), loss

    solver = rj.rmsprop(hp["learning_rate"], decay=hp["decay"])
    weights = jax.random.normal(key, (8, 1))
    return {"loss": jax.lax.scan(step, (weights, solver.init(weights)), length=20)[1]}


def work():
    """A function, its points and its args."""
    if on_cpu():
        x = jax.random.normal(jax.random.key(1), (64, 8))
        return small_train, rj.sample(SPACE, 16), (x, x.sum(axis=1, keepdims=True))
    return convolution.train, rj.sample(SPACE, 256), convolution.pictures()


def sweep(train, points, args, **options):
    return rj.sweep(train, points, args=args, progress=False, **options)


@pytest.mark.slow
def test_batched_as_unbatched():
    train, points, args = work()
    points = points[:16]
    alone = jax.jit(train)
    expected = [alone(dict(point), jax.random.key(0), *args)["loss"] for point in points]
    for batch_size in (1, 4, "auto"):
        result = sweep(train, points, args, batch_size=batch_size)
        np.testing.assert_allclose(result.metrics["loss"], expected, atol=1e-4)


@pytest.mark.slow
def test_segments_as_the_whole():
    training, args = trainings.noisy(), (trainings.SCALE,)
    points = trainings.POINTS[1::2]
    whole = lambda hp, key, scale: training.run(hp, key, scale, steps=50)[1]
    options = {"batch_size": 4}
    in_steps = rj.sweep(training, points, steps=50, args=args, progress=False, **options)
    at_once = rj.sweep(whole, points, args=args, progress=False, **options)
    np.testing.assert_allclose(in_steps.metrics["loss"], at_once.metrics["loss"], rtol=1e-4)


def test_auto_fits_the_free_memory():
    train, points, args = work()
    free = device_memory(jax.devices())
    (compiler,) = compilers(train, points, Cluster(jax.devices()), args=args)
    programs = compiler.compile()
    if on_cpu():
        assert (free, programs.layout.batch_size) == (None, 1)
    else:
        assert programs.memory <= free
        assert programs.layout.batch_size == -(
            -len(points) // jax.device_count()
        )  # these are small


@pytest.mark.slow
def test_goes_on_with_another_batch_size(tmp_path):
    train, points, args = work()
    whole = sweep(train, points, args)
    calls = []

    def stop(report):
        calls.append(report)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(rj.SweepInterrupted) as stopped:
        sweep(train, points, args, path=tmp_path / "run", batch_size=2, callback=stop)
    finished = stopped.value.result
    done = finished.status == "complete"
    assert 0 < done.sum() < len(points)
    again = sweep(train, points, args, path=tmp_path / "run", batch_size=4)
    np.testing.assert_allclose(again.metrics["loss"], whole.metrics["loss"], atol=1e-4)
    assert np.isin(finished.objective[done], again.objective).all()  # they did not run again


def test_an_accelerators_next_round_starts_before_the_last_is_fetched(monkeypatch):
    log = []
    for name in ("dispatch", "fetch"):
        original = getattr(LocalDevices, name)
        noted = lambda self, *args, name=name, original=original: (
            log.append(name) or original(self, *args)
        )
        monkeypatch.setattr(LocalDevices, name, noted)
    train, points, args = work()
    sweep(train, points, args, batch_size=2)
    assert log.count("dispatch") == log.count("fetch") > 2
    ahead = 1 if on_cpu() else 2
    assert log[: ahead + 1] == ["dispatch"] * ahead + ["fetch"]


# Where the memory is too small after all.

LARGE = Machine(device_memory=lambda devices: 1e15)


@pytest.fixture
def called(monkeypatch):
    """The batch sizes of all calls. A device runs out of memory with more than 4 trials, in the
    third call."""
    start, called = program.CompiledKernel.start, []

    def fails(self, *args, **options):
        called.append(self._layout.batch_size)
        if self._layout.batch_size > 4 and len(called) > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating …")
        return start(self, *args, **options)

    monkeypatch.setattr(program.CompiledKernel, "start", fails)
    return called


@pytest.mark.slow
def test_a_function_that_runs_out_of_memory_goes_on_with_smaller_batches(called):
    """What is finished is not run again."""
    one = jax.devices()[:1]
    train = lambda hp, key: {"loss": hp["a"] * jax.random.uniform(key, (hp["n"],)).sum()}
    each = [{"a": float(a), "n": n} for n, count in ((2, 3), (3, 4), (5, 13)) for a in range(count)]
    points = rj.Points(each, static=["n"])
    result = engine.sweep(train, points, LARGE, devices=one)
    assert called == [3, 4, 13, 6, 3, 3, 3, 3, 3]
    expected = [train(point, jax.random.key(0))["loss"] for point in points]
    np.testing.assert_allclose(result.objective, expected, rtol=1e-6)


def tiny(**options):
    training = rj.Training(
        lambda hp, key: jax.random.uniform(key), lambda hp, x, key: (x - hp["a"] * x, {"loss": x})
    )
    points = rj.grid(a=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    return engine.sweep(training, points, LARGE, devices=jax.devices()[:1], **options)


def test_a_training_that_runs_out_of_memory_begins_again(called):
    options = {"steps": 10, "evaluate_every": 5}
    result = tiny(**options)
    assert set(called) == {6, 3}
    np.testing.assert_allclose(result.objective, tiny(batch_size=3, **options).objective, rtol=1e-6)
    assert (result.steps_completed == 10).all()


@pytest.mark.parametrize(
    ("options", "size"),
    [({"batch_size": 5}, 5), ({"scheduler": rj.SuccessiveHalving(reduction_factor=2)}, 6)],
    ids=["a size that was asked for", "all at each boundary"],
)
def test_where_no_smaller_batch_may_be_taken_the_error_says_what_to_do(called, options, size):
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED") as failed:
        tiny(steps=20, evaluate_every=5, **options)
    note = f"with batches of {size} trials. Pass a smaller batch_size"
    assert any(note in said for said in failed.value.__notes__)
