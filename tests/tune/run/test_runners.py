"""Rounds: their batches, what they keep, what is dispatched ahead of what, what compiles."""

import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmsprop_jax as rj
from rmsprop_jax._tune.compile import compiled, group_compiler
from rmsprop_jax._tune.compile.compiled import CompiledKernel
from rmsprop_jax._tune.compile.kernels import Inputs, Kernel
from rmsprop_jax._tune.compile.layout import DeviceLayout
from rmsprop_jax._tune.run.batch import OnDevice, SegmentResult
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.run.local_devices import CompiledGroup, Handle, LocalDevices, WaveSize
from rmsprop_jax._tune.run.machine import Machine, device_memory
from rmsprop_jax._tune.run.sequential import SequentialRunner
from rmsprop_jax._tune.run.synchronous import SynchronousRunner
from rmsprop_jax._tune.training.schedule import Stepwise, WholeRun
from tests.support import engine
from tests.support.tables import crossed, few
from tests.tune.test_sweep import POINTS, alone, compiles, make_train


@pytest.fixture
def programs(monkeypatch):
    """All that the test's sweeps compile."""
    made = []

    class Noted(CompiledKernel):
        def __init__(self, kernel, args, layout, cluster):
            super().__init__(kernel, args, layout, cluster)
            self.layout = layout
            made.append(self)

    monkeypatch.setattr(group_compiler, "CompiledKernel", Noted)
    return made


# A training of which next to nothing has to be compiled.
TINY = rj.Training(
    lambda hp, key: jax.random.uniform(key),
    lambda hp, x, key: (x - hp["rate"] * x, {"loss": x}),
    lambda hp, x, key: {"end": x * hp["rate"]},
)


def tiny(**options):
    points = rj.grid(rate=[0.1, 0.2, 0.3, 0.4, 0.5])
    return rj.sweep(TINY, points, **{"steps": 100, "seeds": 2, "progress": False, **options})


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "batch_size"), crossed([1, 2], [2, 5, 1000], plain=["2-5"]))
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


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [2, 5])
def test_the_batch_size_is_obeyed(batch_size, programs):
    train = lambda hp, key: {"loss": hp["x"]}
    rj.sweep(train, rj.grid(x=np.arange(30.0)), batch_size=batch_size, progress=False)
    tiny(batch_size=batch_size)
    assert programs[0].layout.slots(1) == batch_size * jax.device_count()
    assert [one.layout.batch_size for one in programs] == [batch_size] * 4  # a train; three pieces


@pytest.mark.slow
def test_a_nan_stays_its_own_in_a_batch():
    def train(hp, key):
        loss = make_train()({**hp, "centered": True}, key)["loss"]
        return {"loss": jnp.where(hp["decay"] == 0.99, loss * jnp.nan, loss)}

    points = rj.grid(learning_rate=[0.01, 0.1], decay=[0.9, 0.99])
    result = rj.sweep(train, points, batch_size=4, progress=False)
    assert result.failed.tolist() == [False, True, False, True]


@pytest.mark.slow
@pytest.mark.parametrize("every", few([1, 3, 7, 20, 50], [7]))
def test_every_keeps_each_kth_step_and_the_last(every):
    whole = rj.sweep(make_train(), POINTS, progress=False)
    thin = rj.sweep(make_train(), POINTS, record_every=every, progress=False)
    steps = [t for t in range(1, 21) if t % every == 0 or t == 20]
    assert thin.steps["loss"].tolist() == steps
    np.testing.assert_array_equal(
        thin.metrics["loss"], whole.metrics["loss"][:, np.array(steps) - 1]
    )
    np.testing.assert_array_equal(thin.metrics["first"], whole.metrics["first"])
    np.testing.assert_array_equal(thin.objective, whole.objective)


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"batch_size": "all"}, {"record_every": 0}, {"record_every": True}],
)
def test_counts_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="must be an int of at least 1"):
        rj.sweep(make_train(), POINTS, progress=False, **options)


# The order in which rounds run.


class Device:
    """An accelerator with `free` bytes, as far as the engine looks at it."""

    process_index = 0

    def __init__(self, platform, free=None):
        self.platform = platform
        self.memory_stats = lambda: free and {"bytes_limit": free + 1000, "bytes_in_use": 1000}


class Recorded(LocalDevices):
    """A backend that runs nothing, notes what starts and what is fetched, and takes `seconds`.

    Every static group has the same number of trials.
    """

    def __init__(self, experiment, session, log, groups, capacity=1, seconds=lambda batch: None):
        super().__init__(experiment, session)
        self.log, self._groups_of, self._capacity, self._seconds = log, groups, capacity, seconds

    def compile(self, most=None):
        for group in range(self._groups_of):
            programs = types.SimpleNamespace(layout=DeviceLayout(1, self._capacity, 1))
            wave_size = WaveSize(programs.layout, self._cluster)
            self._groups[group] = CompiledGroup(programs, None, wave_size)
            yield group, np.arange(len(self._table.data.steps_completed)), 0.0

    def dispatch(self, batch, until, data=None):
        start = batch.steps_completed
        batch.steps_completed = np.full(len(start), until)
        has_state = isinstance(self._experiment.spec.schedule, Stepwise)
        batch.states = OnDevice(["a leaf"] if has_state else [])
        self.log.append(f"start {batch.trials.tolist()} to {until}")
        return Handle(batch, start, batch.steps_completed, None)

    def fetch(self, handle):
        self.log.append(f"fetch {handle.batch.trials.tolist()} to {handle.stop[0]}")
        self._seconds(handle.batch)
        return SegmentResult(handle.batch, handle.start, handle.stop, {}, {})


def go(runner, platform, trials, schedule=None, groups=1, clock=time.perf_counter, **options):
    """Return the actions of a sweep with this many trials per static group, and its records."""
    log, recorded = [], []
    schedule = schedule or WholeRun()
    session = types.SimpleNamespace(
        table=types.SimpleNamespace(
            data=types.SimpleNamespace(steps_completed=np.zeros(trials, int))
        ),
        checkpoints=types.SimpleNamespace(is_due=lambda: False),
        final_states=types.SimpleNamespace(may_be_best=lambda trials: np.zeros(1, bool)),
        record=lambda result: recorded.append((result.batch.trials.tolist(), result.stop[0])),
        is_time_up=False,
        finish=lambda trials, states: log.append(f"finish {trials.tolist()}"),
    )
    experiment = types.SimpleNamespace(
        spec=types.SimpleNamespace(schedule=schedule),
        cluster=Cluster([Device(platform)], Machine(clock)),
        state_specs=["of a training"] if isinstance(schedule, Stepwise) else [],
        data=None,
    )
    backend = Recorded(experiment, session, log, groups, **options)
    runner(experiment, session, backend).run()
    return log, recorded


def test_on_an_accelerator_the_next_wave_starts_before_the_last_is_fetched():
    at = lambda words: [f"{what} [{i}] to 1" for what, i in (word.split() for word in words)]
    ahead = at(["start 0", "start 1", "fetch 0", "start 2", "fetch 1", "fetch 2"])
    alternating = at(["start 0", "fetch 0", "start 1", "fetch 1", "start 2", "fetch 2"])
    for platform, order in (("gpu", ahead), ("cpu", alternating)):
        log, recorded = go(SequentialRunner, platform, 3)
        assert log == order
        assert recorded == [([0], 1), ([1], 1), ([2], 1)]


THREE = Stepwise(steps=5, evaluate_every=2, rungs=(), scheduler=None, evaluations={})
ONE = Stepwise(steps=5, evaluate_every=5, rungs=(), scheduler=None, evaluations={})


@pytest.mark.parametrize("platform", ["gpu", "cpu"])
def test_the_next_segment_starts_before_the_last_is_fetched(platform):
    """And a wave goes to its end before the next one begins."""
    of = lambda i: [
        f"start [{i}] to 2", f"start [{i}] to 4", f"fetch [{i}] to 2",
        f"start [{i}] to 5", f"fetch [{i}] to 4", f"fetch [{i}] to 5", f"finish [{i}]",
    ]  # fmt: skip
    log, recorded = go(SequentialRunner, platform, 2, THREE)
    assert log == of(0) + of(1)
    assert recorded == [([i], stop) for i in (0, 1) for stop in (2, 4, 5)]


def test_no_wave_passes_an_evaluation_step_before_all_have_come_there():
    """The waves of every static group."""
    _, recorded = go(SynchronousRunner, "cpu", 2, THREE, groups=2)
    assert recorded == [([i], stop) for stop in (2, 4, 5) for _ in range(2) for i in (0, 1)]


@pytest.mark.parametrize("schedule", [WholeRun(), ONE], ids=["function", "training"])
@pytest.mark.parametrize(
    ("seconds", "sizes"),
    [
        (1.0, [1] * 20),
        (0.1, [1, 1, 1, 1, 5, 5, 5, 1]),  # a wave of five lasts half a second
        (0.001, [1, 1, 1, 1, 8, 8]),  # as many as a call has room for
    ],
)
def test_waves_grow_as_far_as_their_trials_are_short(schedule, seconds, sizes):
    """Else a kill would cost, and the bar stand still for, more than half a second."""
    now = [0.0]

    def pass_by(batch):
        now[0] += seconds * len(batch.trials)

    clock = lambda: now[0]
    _, recorded = go(
        SequentialRunner, "cpu", 20, schedule, clock=clock, capacity=8, seconds=pass_by
    )
    assert [len(trials) for trials, _ in recorded] == sizes


# How large a batch is.


class Sized:
    """Programs that need `memory(batch)` bytes, and note what compiles."""

    def __init__(self, log, memory, size):
        self.log, self.size, self._memory = log, size, memory(size)

    def compile(self):
        self.log.append(f"compile {self.size}")
        if self._memory == np.inf:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: too large")
        self.memory = self._memory
        return self


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
    make = lambda size: Sized(log, memory, size)
    taken = group_compiler.largest_that_fits(make, 100, device_memory([device]))
    assert log == [f"compile {size}" for size in compiled]
    assert taken.size == compiled[-1]


def test_of_a_training_every_piece_must_fit():
    log, layout = [], DeviceLayout(1, 1, 1)
    for largest in ("init", "segment", "evaluate"):
        needs = {"init": 1, "segment": 2, "evaluate": 3} | {largest: 9}
        each = {name: Sized(log, lambda size, n=n: n, 1) for name, n in needs.items()}
        assert group_compiler.GroupPrograms(layout, **each).compile().memory == 9
    assert len(log) == 9


@pytest.mark.slow
def test_auto_is_1_on_a_cpu(programs):
    assert device_memory(jax.devices()) is None
    rj.sweep(make_train(), POINTS, progress=False)
    tiny()
    assert {one.layout.batch_size for one in programs} == {1}


@pytest.mark.slow
def test_a_short_round_runs_nothing_twice():
    """With a batch of 1; the lanes of a batch that is not full run its last job again."""
    for batch_size, calls in ((1, 3), (2, 4), ("auto", 3)):
        seen = []

        def train(hp, key, seen=seen):
            jax.debug.callback(lambda x: seen.append(float(x)), hp["x"])
            return {"loss": hp["x"]}

        def step(hp, state, key, train=train):
            return state, train(hp, key)

        points = rj.grid(x=[1.0, 2.0, 3.0])
        for what, steps in ((train, {}), (rj.Training(lambda hp, key: 0, step), {"steps": 4})):
            seen.clear()
            result = rj.sweep(what, points, batch_size=batch_size, progress=False, **steps)
            jax.effects_barrier()
            assert len(seen) == calls * steps.get("steps", 1)
            assert set(seen) == {1.0, 2.0, 3.0}
            assert result.objective.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(("count", "batch_size"), crossed([1, 2, 3, 5, 8, 13, 24], [1, 2, 3]))
def test_jobs_lie_where_they_are_fetched(count, batch_size):
    """Every job comes back in its place, and devices have as many batches, one more at most; states
    go on where they lie, each batch over its own span."""

    def call(states, inputs):
        (x,) = states
        outputs = {"sum": 2 * x + inputs.args + inputs.data}
        return [x + inputs.trial], outputs | {"at": inputs.start, "span": inputs.length}

    number = jax.ShapeDtypeStruct((), np.int32)
    kernel = Kernel(call, Inputs(number, number, number, number), (number,))
    cluster = Cluster(jax.devices())
    args, data = cluster.place(jnp.int32(1)), cluster.place(jnp.int32(100))
    layout = DeviceLayout.fit(jax.device_count(), batch_size, 4, trials=24, buffer_bytes=2**20)
    assert layout.capacity * batch_size * jax.device_count() >= 24
    one = CompiledKernel(kernel, args, layout, cluster).compile()
    jobs, first = np.arange(count) * 10, np.arange(count) + 7
    spans = np.arange(-(-count // batch_size)) * 3
    states, placed = one.place([first], count), one.place(jobs, count)
    for turn in range(3):
        states, out = one.start(states, Inputs(placed, first, spans, data), count)
        got = one.fetch(out, count)
        np.testing.assert_array_equal(got["sum"], 2 * (first + turn * jobs) + 101)
        np.testing.assert_array_equal(got["at"], first)
        np.testing.assert_array_equal(got["span"], np.repeat(spans, batch_size)[:count])
    np.testing.assert_array_equal(one.fetch(states, count)[0], first + 3 * jobs)
    each = layout.batches_of(count)
    assert each.sum() == -(-count // batch_size)
    assert each.max() - each.min() <= 1


@pytest.mark.slow
def test_the_memory_of_a_real_program_grows_with_its_batch(programs):
    """`auto` on real programs: a device that pretends to have a certain amount of memory."""
    small = Machine(device_memory=lambda devices: 20_000, buffer_bytes=1)  # a wave is one batch
    points = rj.grid(learning_rate=np.linspace(0.01, 0.1, 64), decay=[0.9], centered=[False])
    result = engine.sweep(make_train(steps=100), points, small)
    unbatched = rj.sweep(make_train(steps=100), points, batch_size=1, progress=False)
    largest, taken = programs[:2]
    assert largest.layout.batch_size == 64 // jax.device_count()
    assert largest.memory > 20_000 >= taken.memory
    assert 1 < taken.layout.batch_size < largest.layout.batch_size
    np.testing.assert_allclose(result.objective, unbatched.objective, rtol=1e-4)


# What compiles.

WAYS = {
    **{f"segments of {n}": {"evaluate_every": n} for n in (1, 7, 50, 100)},
    "halving": {"evaluate_every": 10, "scheduler": rj.SuccessiveHalving(2, 3)},
    "population": {
        "evaluate_every": 10,
        "scheduler": rj.PopulationBasedTraining(
            {"rate": rj.uniform(0.1, 0.9)}, perturbation_interval=7
        ),
    },
    "checkpoints": {"evaluate_every": 7, "checkpoint_seconds": 0},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "devices"),
    crossed(
        list(WAYS),
        [1, 2],
        plain=["segments of 7-2", "halving-1", "population-2", "checkpoints-1"],
    ),
)
def test_each_piece_compiles_once_however_the_steps_are_cut(way, devices, tmp_path):
    """Segments that do not divide the steps, rungs at odd ones, rounds that shrink."""
    options = WAYS[way] | {"devices": jax.devices()[:devices]}
    tiny(**options)  # the small programs around the rounds
    compiled._CACHE.clear()
    path = {"path": tmp_path} if way == "checkpoints" else {}
    with compiles() as count:
        result = tiny(**options, **path)
    assert len(count) == 3  # init, segment, evaluate
    assert result.steps_completed.max() == 100
