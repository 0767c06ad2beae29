"""Rounds: their batches, what they keep, what is dispatched ahead of what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmsprop_jax as rj
from rmsprop_jax._sweep import rounds
from rmsprop_jax._sweep.processes import Processes
from tests.test_sweep import POINTS, alone, make_train


@pytest.fixture
def programs(monkeypatch):
    """All that the test's sweeps compile."""
    made = []

    class Noted(rounds.Program):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr("rmsprop_jax._sweep.sweep.Program", Noted)
    return made


@pytest.mark.parametrize("batch_size", [2, 5, 1000])
@pytest.mark.parametrize("devices", [1, 2])
def test_a_batch_gives_the_same_within_rounding(batch_size, devices):
    train, options = make_train(), {"seeds": 3, "progress": False}
    result = rj.sweep(
        train, POINTS, batch_size=batch_size, devices=jax.devices()[:devices], **options
    )
    unbatched = rj.sweep(train, POINTS, **options)
    assert len(result) == len(POINTS) * 3
    np.testing.assert_allclose(result.metrics["loss"], unbatched.metrics["loss"], rtol=1e-4)
    one = alone(train, POINTS[4], 2)
    np.testing.assert_allclose(result.metrics["loss"][4 * 3 + 2], one["loss"], rtol=1e-4)


@pytest.mark.parametrize("batch_size", [2, 5])
def test_the_batch_size_is_obeyed(batch_size, programs):
    train = lambda hp, key: {"loss": hp["x"]}
    rj.sweep(train, rj.grid(x=np.arange(30.0)), batch_size=batch_size, progress=False)
    assert programs[0].round_size == batch_size * jax.device_count()
    assert {program.batch_size for program in programs} == {batch_size}


def test_a_nan_stays_its_own_in_a_batch():
    def train(hp, key):
        loss = make_train()({**hp, "centered": True}, key)["loss"]
        return {"loss": jnp.where(hp["decay"] == 0.99, loss * jnp.nan, loss)}

    points = rj.grid(learning_rate=[0.01, 0.1], decay=[0.9, 0.99])
    result = rj.sweep(train, points, batch_size=4, progress=False)
    assert result.failed.tolist() == [False, True, False, True]


@pytest.mark.parametrize("every", [1, 3, 7, 20, 50])
def test_every_keeps_each_kth_step_and_the_last(every):
    whole = rj.sweep(make_train(), POINTS, progress=False)
    thin = rj.sweep(make_train(), POINTS, every=every, progress=False)
    steps = [t for t in range(1, 21) if t % every == 0 or t == 20]
    assert thin.steps["loss"].tolist() == steps
    np.testing.assert_array_equal(
        thin.metrics["loss"], whole.metrics["loss"][:, np.array(steps) - 1]
    )
    np.testing.assert_array_equal(thin.metrics["first"], whole.metrics["first"])
    np.testing.assert_array_equal(thin.objective, whole.objective)


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"batch_size": "all"}, {"every": 0}, {"every": True}]
)
def test_counts_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="must be an int of at least 1"):
        rj.sweep(make_train(), POINTS, progress=False, **options)


class Device:
    """An accelerator with `free` bytes, as far as `run_rounds` looks at it."""

    process_index = 0

    def __init__(self, platform, free=None):
        self.platform = platform
        self.memory_stats = lambda: free and {"bytes_limit": free + 1000, "bytes_in_use": 1000}


class Recorded:
    """A program that needs `memory(batch)` bytes and notes what starts and what is fetched."""

    def __init__(self, log, devices, memory, batch_size, batches=1):
        self.log, self.memory = log, memory(batch_size)
        if self.memory == np.inf:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: too large")
        self.batch_size, self.compile_seconds = batch_size, 1e9  # so rounds never grow
        self.round_size = devices * batch_size * batches
        log.append(f"compile {batch_size}")

    def start(self, rows, seeds):
        self.log.append(f"start {rows.tolist()}")
        return rows

    def fetch(self, rows, trials):
        self.log.append(f"fetch {rows.tolist()}")
        assert len(rows) == trials
        return {"loss": rows}


def go(platform, free=None, trials=5, devices=1, memory=lambda batch: batch, batch_size="auto"):
    log = []
    compile_ = lambda **options: Recorded(log, devices, memory, **options)
    numbers = np.arange(trials)
    got = list(
        rounds.run_rounds(
            compile_, numbers, numbers, Processes([Device(platform, free)] * devices), batch_size
        )
    )
    np.testing.assert_array_equal(np.concatenate([r.metrics["loss"] for r in got]), numbers)
    return log


def test_on_an_accelerator_the_next_round_starts_before_the_last_is_fetched():
    events = go("gpu", trials=3, batch_size=1)
    order = ["start [0]", "start [1]", "fetch [0]", "start [2]", "fetch [1]", "fetch [2]"]
    assert events == ["compile 1", *order]
    alternating = ["start [0]", "fetch [0]", "start [1]", "fetch [1]", "start [2]", "fetch [2]"]
    assert go("cpu", trials=3, batch_size=1) == ["compile 1", *alternating]


@pytest.mark.parametrize(
    ("free", "memory", "compiled"),
    [
        (1000, lambda batch: batch, [100]),  # all fit: one round
        (60, lambda batch: batch, [100, 50]),  # 54 would fit; two rounds of 50 need no more
        (40, lambda batch: 10 + batch, [100, 25]),
        (1000, lambda batch: np.inf if batch > 60 else batch, [50]),  # the compiler gave up at 100
        (1, lambda batch: 100 + batch, [100, 1]),  # nothing fits: 1, and the device has its say
    ],
)
def test_auto_takes_the_largest_batch_that_fits_an_accelerator(free, memory, compiled):
    events = go("gpu", free, trials=200, devices=2, memory=memory)
    sizes = [int(e.split()[1]) for e in events if e.startswith("compile")]
    assert sizes[: len(compiled)] == compiled


def test_auto_is_1_on_a_cpu():
    assert rounds.free_memory(jax.devices()) is None
    assert go("cpu")[0] == "compile 1"


def test_the_memory_of_a_real_program_grows_with_its_batch(monkeypatch, programs):
    """`auto` on real programs: a device that pretends to have a certain amount of memory."""
    monkeypatch.setattr(rounds, "free_memory", lambda devices: 20_000)
    points = rj.grid(learning_rate=np.linspace(0.01, 0.1, 64), decay=[0.9], centered=[False])
    result = rj.sweep(make_train(steps=100), points, progress=False)
    unbatched = rj.sweep(make_train(steps=100), points, batch_size=1, progress=False)
    largest, taken = programs[:2]
    assert largest.batch_size == 64 // jax.device_count()
    assert largest.memory > 20_000 >= taken.memory
    assert 1 < taken.batch_size < largest.batch_size
    np.testing.assert_allclose(result.objective, unbatched.objective, rtol=1e-4)
