"""Rounds: their batches, what they keep, what is dispatched ahead of what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmsprop_jax as rj
from rmsprop_jax._sweep import compiling, program, rounds
from rmsprop_jax._sweep.processes import Processes
from tests.test_sweep import POINTS, alone, make_train


@pytest.fixture
def programs(monkeypatch):
    """All that the test's sweeps compile."""
    made = []

    class Noted(program.Program):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr("rmsprop_jax._sweep.compiling.Program", Noted)
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
    assert programs[0].round_size(1) == batch_size * jax.device_count()
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

    capacity = 1  # so rounds never grow

    def __init__(self, log, memory, batch_size, devices=1):
        self.log, self.batch_size, self._memory = log, batch_size, memory(batch_size)
        self.round_size = lambda batches: devices * batch_size * batches

    def compile(self):
        self.log.append(f"compile {self.batch_size}")
        if self._memory == np.inf:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: too large")
        self.memory = self._memory
        return self

    def start(self, jobs, count, args):
        self.log.append(f"start {jobs.tolist()}")
        assert len(jobs) == count
        return jobs

    def fetch(self, jobs, count):
        self.log.append(f"fetch {jobs.tolist()}")
        assert len(jobs) == count
        return jobs


def go(platform, trials):
    log, jobs = [], np.arange(trials)
    recorded = Recorded(log, lambda batch: batch, 1)
    got = rounds.run_rounds(recorded, jobs, trials, None, Processes([Device(platform)]))
    np.testing.assert_array_equal(np.concatenate([one.out for one in got]), jobs)
    return log


def test_on_an_accelerator_the_next_round_starts_before_the_last_is_fetched():
    order = ["start [0]", "start [1]", "fetch [0]", "start [2]", "fetch [1]", "fetch [2]"]
    assert go("gpu", trials=3) == order
    alternating = ["start [0]", "fetch [0]", "start [1]", "fetch [1]", "start [2]", "fetch [2]"]
    assert go("cpu", trials=3) == alternating


@pytest.mark.parametrize(
    ("free", "memory", "compiled"),
    [
        (1000, lambda batch: batch, [100]),  # all fit: one round
        (60, lambda batch: batch, [100, 50]),  # 54 would fit; two rounds of 50 need no more
        (40, lambda batch: 10 + batch, [100, 25]),
        (1000, lambda batch: np.inf if batch > 60 else batch, [100, 50]),  # the compiler gave up
        (1, lambda batch: 100 + batch, [100, 1]),  # nothing fits: 1, and the device has its say
    ],
)
def test_auto_takes_the_largest_batch_that_fits_an_accelerator(free, memory, compiled):
    log = []
    device = Device("gpu", free)
    make = lambda size: Recorded(log, memory, size)
    taken = compiling.largest(make, 100, compiling.free_memory([device]))
    assert log == [f"compile {size}" for size in compiled]
    assert taken.batch_size == compiled[-1]


def test_auto_is_1_on_a_cpu(programs):
    assert compiling.free_memory(jax.devices()) is None
    rj.sweep(make_train(), POINTS, progress=False)
    assert {one.batch_size for one in programs} == {1}


def test_a_short_round_runs_nothing_twice():
    """With a batch of 1; the lanes of a batch that is not full run its last job again."""
    for batch_size, calls in ((1, 3), (2, 4), ("auto", 3)):
        seen = []

        def train(hp, key, seen=seen):
            jax.debug.callback(lambda x: seen.append(float(x)), hp["x"])
            return {"loss": hp["x"]}

        points = rj.grid(x=[1.0, 2.0, 3.0])
        result = rj.sweep(train, points, batch_size=batch_size, progress=False)
        jax.effects_barrier()
        assert len(seen) == calls
        assert set(seen) == {1.0, 2.0, 3.0}
        assert result.objective.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13, 24])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_jobs_lie_where_they_are_fetched(count, batch_size):
    """Every job comes back in its place, and devices have as many batches, one more at most."""
    piece = program.Piece(
        lambda job, args: {"twice": 2 * job + args}, jax.ShapeDtypeStruct((), int)
    )
    processes = Processes(jax.devices())
    args = processes.place(jnp.int32(1))
    one = program.Program(piece, args, processes, batch_size=batch_size, jobs=24).compile()
    assert one.capacity * batch_size * jax.device_count() >= 24
    jobs = np.arange(count) * 10
    out = one.fetch(one.start(jobs, count, args), count)
    np.testing.assert_array_equal(out["twice"], 2 * jobs + 1)
    _, batches = one._places(count)
    assert batches.sum() == -(-count // batch_size)
    assert batches.max() - batches.min() <= 1


def test_the_memory_of_a_real_program_grows_with_its_batch(monkeypatch, programs):
    """`auto` on real programs: a device that pretends to have a certain amount of memory."""
    monkeypatch.setattr(compiling, "free_memory", lambda devices: 20_000)
    monkeypatch.setattr(program, "BUFFER_BYTES", 1)  # so that each round is one batch
    points = rj.grid(learning_rate=np.linspace(0.01, 0.1, 64), decay=[0.9], centered=[False])
    result = rj.sweep(make_train(steps=100), points, progress=False)
    unbatched = rj.sweep(make_train(steps=100), points, batch_size=1, progress=False)
    largest, taken = programs[:2]
    assert largest.batch_size == 64 // jax.device_count()
    assert largest.memory > 20_000 >= taken.memory
    assert 1 < taken.batch_size < largest.batch_size
    np.testing.assert_allclose(result.objective, unbatched.objective, rtol=1e-4)
