"""Data from the host: asked for once a step, whatever the number of trials; nothing lies whole on
the device."""

import collections
import contextlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmsprop_jax as rj
from tests.support.tables import crossed, few

DATA = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
STEPS = 23


def batch(t):
    rows = np.random.default_rng(t).integers(0, len(DATA), 16)
    return {"x": DATA[rows], "t": np.int64(t)}


def step(hp, params, key, batch, target):
    loss = lambda p: jnp.mean((batch["x"] @ p - target) ** 2)
    value, grads = jax.value_and_grad(loss)(params)
    grads = grads * (2.0 if hp["double"] else 1.0)
    return params - hp["rate"] * grads, {"loss": value, "t": batch["t"]}


TRAINING = rj.Training(lambda hp, key, target: jax.random.normal(key, (3,)), step)
POINTS = rj.grid(rate=[0.01, 0.03, 0.1], double=[False, True])
TARGET = jnp.float32(1.5)


class Source:
    """Notes who asks for what."""

    def __init__(self, source=batch):
        self.source, self.asked, self.threads = source, [], set()

    def __call__(self, t):
        assert isinstance(t, int)
        self.asked.append(t)
        self.threads.add(threading.current_thread().name)
        return self.source(t)


def sweep(batches, **options):
    given = {"steps": STEPS, "evaluate_every": 5, "args": (TARGET,), "progress": False, "seeds": 2}
    return rj.sweep(TRAINING, POINTS, batches=batches, **given | options)


@pytest.fixture(scope="module")
def expected():
    def one(point, seed):
        run = jax.jit(
            lambda rate, key: TRAINING.run(
                point | {"rate": rate}, key, TARGET, steps=STEPS, batches=batch
            )
        )
        return run(jnp.float32(point["rate"]), jax.random.key(seed))

    return [one(point, seed) for point in POINTS for seed in (0, 1)]


@pytest.mark.parametrize(("evaluate_every", "devices"), crossed([1, 5, 23], [2, 1], plain=["5-2"]))
def test_each_batch_is_asked_for_once_and_all_trials_get_it(devices, evaluate_every, expected):
    source = Source()
    result = sweep(
        source, devices=jax.devices()[:devices], evaluate_every=evaluate_every, keep_states="all"
    )
    assert collections.Counter(source.asked) == dict.fromkeys(range(1, STEPS + 1), 1)
    assert result.metrics["t"].tolist() == [list(range(1, STEPS + 1))] * 12
    for trial, (state, metrics) in enumerate(expected):
        np.testing.assert_array_equal(result.metrics["loss"][trial], metrics["loss"])
        kept = result.state(POINTS[trial // 2], trial % 2)
        np.testing.assert_array_equal(kept, state)


@pytest.mark.slow
def test_the_next_segment_is_prepared_while_this_one_runs():
    """Before the trials of the present segment are reported, and on the caller's thread."""
    source, order = Source(), []
    record = lambda trials: order.append(("reported", max(trial.step for trial in trials)))
    sweep(lambda t: order.append(("asked", t)) or source(t), callback=record)
    assert source.threads == {threading.current_thread().name}
    assert order.index(("asked", 6)) < order.index(("reported", 5))
    assert order.index(("asked", 11)) < order.index(("reported", 10))


def reused(buffer):
    """A loader that writes each batch into one buffer, as `readinto` and shared memory do."""

    def source(t):
        fresh = batch(t)
        buffer["x"][...], buffer["t"][...] = fresh["x"], fresh["t"]
        return buffer

    return source


@pytest.mark.slow
@pytest.mark.parametrize("evaluate_every", [5, STEPS])
def test_a_source_may_reuse_its_buffer(evaluate_every):
    """In the sweep, in `retrain`, and in `Training.run`."""
    buffer = {"x": np.zeros((16, 3), np.float32), "t": np.zeros((), np.int64)}
    want = sweep(batch, evaluate_every=evaluate_every)
    got = sweep(reused(buffer), evaluate_every=evaluate_every)
    assert got.metrics["t"].tolist() == want.metrics["t"].tolist()
    np.testing.assert_array_equal(got.metrics["loss"], want.metrics["loss"])
    best = want.best()
    for result in (want, got):
        state, metrics = result.retrain(best, args=(TARGET,), batches=reused(buffer))
        np.testing.assert_array_equal(state, want.state(best))
        assert metrics["t"].tolist() == list(range(1, STEPS + 1))


def drawn(t):
    """A batch that JAX draws, by its thread's settings."""
    key = jax.random.fold_in(jax.random.key(7), t)
    return {"x": np.asarray(jax.random.normal(key, (16, 3), jnp.float32)), "t": np.int64(t)}


SETTINGS = {
    "rbg": lambda: jax.default_prng_impl("rbg"),
    "partitionable": lambda: jax.threefry_partitionable(not jax.config.jax_threefry_partitionable),
    "x64": lambda: jax.enable_x64(True),
    "guard": lambda: jax.transfer_guard("disallow"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", few(list(SETTINGS), ["x64", "guard"]))
def test_the_source_sees_the_callers_settings(name):
    """They belong to a thread. Another thread would draw other data, in silence."""
    seen = []

    def source(t):
        seen.append((jnp.result_type(float), drawn(t)))
        return seen[-1][1]

    with SETTINGS[name]():
        sweep(source, args=(np.float32(1.5),), evaluate_every=4)
    with contextlib.nullcontext() if name == "guard" else SETTINGS[name]():
        expected = [(jnp.result_type(float), drawn(t)) for t in range(1, STEPS + 1)]
    for got, want in zip(seen, expected, strict=True):
        assert got[0] == want[0]
        np.testing.assert_array_equal(got[1]["x"], want[1]["x"])


def test_run_takes_stacked_batches_too(expected):
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *map(batch, range(1, STEPS + 1)))
    point = POINTS[0]
    run = jax.jit(
        lambda rate, key, batches: TRAINING.run(
            point | {"rate": rate}, key, TARGET, steps=STEPS, batches=batches
        )
    )
    state, _ = run(jnp.float32(point["rate"]), jax.random.key(0), stacked)
    np.testing.assert_array_equal(state, expected[0][0])


@pytest.mark.slow
def test_with_halving_and_a_resume(tmp_path):
    options = {"scheduler": rj.SuccessiveHalving(2, 5), "path": tmp_path, "checkpoint_seconds": 0}
    source = Source()

    def stop(report):
        if any(trial.step >= 15 for trial in report):
            raise KeyboardInterrupt

    with pytest.raises(rj.SweepInterrupted):
        sweep(source, callback=stop, **options)
    source.asked.clear()
    again = sweep(source, **options)
    assert max(collections.Counter(source.asked).values()) == 1
    assert min(set(source.asked) - {1}) > 5  # the first is asked for its shape
    whole = sweep(batch, scheduler=rj.SuccessiveHalving(2, 5))
    np.testing.assert_array_equal(again.metrics["loss"], whole.metrics["loss"])
    assert again.status.tolist() == whole.status.tolist()


def test_a_winner_is_trained_again_with_its_batches():
    result = sweep(batch)
    state, metrics = result.retrain(result.best(), args=(TARGET,), batches=batch)
    np.testing.assert_array_equal(state, result.state(result.best()))
    assert metrics["t"].tolist() == list(range(1, STEPS + 1))


WRONG = {
    "shape": (lambda t: {"x": DATA[: 16 if t < 12 else 8], "t": np.int64(t)}, r"batches\(12\)"),
    "dtype": (
        lambda t: {"x": DATA[:16] if t < 12 else DATA[:16].astype(np.float64), "t": np.int64(t)},
        r"batches\(12\) must have the structure, .* dtypes of batches\(1\).*alike",
    ),
    "structure": (
        lambda t: batch(t) if t < 12 else {"x": DATA[:16]},
        r"batches\(12\) must have the structure",
    ),
    "nothing": (lambda t: batch(t) if t < 12 else None, r"batches\(12\) must be a pytree"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_batch_that_changes_is_refused_and_what_is_finished_kept(case):
    source, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as caught:
        sweep(source)
    assert set(caught.value.result.steps_completed) == {10}
    whole = sweep(batch)
    if case == "dtype":
        return
    assert caught.value.result.metrics["t"][:, :10].tolist() == whole.metrics["t"][:, :10].tolist()


@pytest.mark.slow
def test_batches_that_raise_keep_what_is_finished(tmp_path):
    def source(t):
        if t == 17 and len(asked) == 0:
            asked.append(t)
            raise OSError("the disk is away")
        return batch(t)

    asked = []
    with pytest.raises(OSError, match="the disk is away") as caught:
        sweep(source, path=tmp_path, checkpoint_seconds=0)
    assert set(caught.value.result.steps_completed) == {15}
    again = sweep(source, path=tmp_path, checkpoint_seconds=0)
    np.testing.assert_array_equal(again.metrics["loss"], sweep(batch).metrics["loss"])


BAD = {
    "no function": ([1, 2], "a function from a step to a batch"),
    "no arrays": (lambda t: None, r"batches\(1\) must be a pytree of arrays"),
    "objects": (lambda t: {"x": object()}, r"batches\(1\) must be a pytree of arrays"),
    "ragged": (lambda t: [[1, 2], [3]], r".*"),
}


@pytest.mark.parametrize("case", ["no function", "no arrays", "objects"])
def test_batches_that_are_none_are_refused(case):
    batches, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        sweep(batches)


def test_a_step_that_takes_no_batch_is_told_so():
    with pytest.raises(ValueError, match=r"step\(hp, state, key, batch, \*args\).*signature"):
        rj.sweep(
            rj.Training(lambda hp, key: 0, lambda hp, s, key: (s, {"loss": hp["x"]})),
            rj.grid(x=[1.0]), steps=3, batches=batch, progress=False,
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"step\(hp, state, key, \*args\).*signature"):
        sweep(None)
