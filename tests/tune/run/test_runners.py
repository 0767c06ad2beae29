"""Rounds: their batches, what they keep, what is dispatched ahead of what, what compiles."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmsprop_jax as rj
from rmsprop_jax._tune.compile import compiled as program
from rmsprop_jax._tune.compile import group_compiler as compiling
from rmsprop_jax._tune.experiment_spec import Stages
from rmsprop_jax._tune.run import batch as rounds
from rmsprop_jax._tune.run import runners as engine
from rmsprop_jax._tune.run.cluster import Cluster, free_memory
from tests.tune.test_sweep import POINTS, alone, compiles, make_train


@pytest.fixture
def programs(monkeypatch):
    """All that the test's sweeps compile."""
    made = []

    class Noted(program.CompiledKernel):
        def __init__(self, piece, args, layout, processes):
            super().__init__(piece, args, layout, processes)
            self.layout = layout
            made.append(self)

    monkeypatch.setattr("rmsprop_jax._tune.compile.group_compiler.Program", Noted)
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
    tiny(batch_size=batch_size)
    assert programs[0].layout.room(1) == batch_size * jax.device_count()
    assert [one.layout.batch_size for one in programs] == [batch_size] * 4  # a train; three pieces


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
    thin = rj.sweep(make_train(), POINTS, record_every=every, progress=False)
    steps = [t for t in range(1, 21) if t % every == 0 or t == 20]
    assert thin.steps["loss"].tolist() == steps
    np.testing.assert_array_equal(
        thin.metrics["loss"], whole.metrics["loss"][:, np.array(steps) - 1]
    )
    np.testing.assert_array_equal(thin.metrics["first"], whole.metrics["first"])
    np.testing.assert_array_equal(thin.objective, whole.objective)


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"batch_size": "all"}, {"record_every": 0}, {"record_every": True}]
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


class Recorded(rounds.CompiledGroup):
    """Rounds that run nothing, and note what starts and what is fetched; they take `seconds`."""

    def __init__(self, plan, log, processes, capacity=1, seconds=lambda live: None):
        programs = compiling.GroupPrograms(program.DeviceLayout(1, capacity, 1))
        pieces = types.SimpleNamespace(plan=plan, group=0, traces=types.SimpleNamespace(state=None))
        super().__init__(pieces, programs, processes, ())
        self.log, self._seconds = log, seconds

    def run_whole(self, live, numbers):
        return self._start(live, 0, 1)

    def begin(self, live, numbers, states):
        self.log.append(f"begin {live.trials.tolist()}")
        live.states = []

    def advance(self, live, stop, batches):
        start, live.steps_completed = live.steps_completed, np.full(len(live.trials), stop)
        return self._start(live, start, stop)

    def _start(self, live, start, stop):
        self.log.append(f"start {live.trials.tolist()} to {stop}")
        return rounds.Dispatched(live, start, stop, None, {})

    def fetch(self, started):
        live, start, stop, _, _ = started
        self.log.append(f"fetch {live.trials.tolist()} to {stop}")
        self._seconds(live)
        return rounds.Call(live, start, stop, {}, {})


def go(order, platform, trials, stages=None, structures=1, **options):
    """What a sweep of so many trials in each structure does, and what is recorded of it."""
    log, recorded = [], []
    ledger = types.SimpleNamespace(
        numbers={},
        trials=types.SimpleNamespace(steps_completed=np.zeros(trials, int)),
        record=lambda call, seconds: recorded.append((call.live.trials.tolist(), call.stop)),
        show=lambda: None,
    )
    keeper = types.SimpleNamespace(
        take=None,
        is_due=lambda: False,
        finish=lambda trials, states: log.append(f"finish {trials.tolist()}"),
    )
    processes = Cluster([Device(platform)])
    plan = types.SimpleNamespace(groups=[None], stages=stages)
    run = engine.Run(plan, ledger, keeper, processes, None)
    each = [
        (Recorded(plan, log, processes, **options), np.arange(trials), 0.0)
        for _ in range(structures)
    ]
    if order is engine.boundary_by_boundary:
        order(run, iter(each), None, None)
    else:
        order(run, iter(each))
    return log, recorded


def test_on_an_accelerator_the_next_round_starts_before_the_last_is_fetched():
    at = lambda words: [f"{what} [{i}] to 1" for what, i in (word.split() for word in words)]
    ahead = at(["start 0", "start 1", "fetch 0", "start 2", "fetch 1", "fetch 2"])
    alternating = at(["start 0", "fetch 0", "start 1", "fetch 1", "start 2", "fetch 2"])
    for platform, order in (("gpu", ahead), ("cpu", alternating)):
        log, recorded = go(engine.functions, platform, 3)
        assert log == order
        assert recorded == [([0], 1), ([1], 1), ([2], 1)]


THREE = Stages(steps=5, evaluate_every=2, rungs=(), scheduler="", evaluations={})


@pytest.mark.parametrize("platform", ["gpu", "cpu"])
def test_the_next_segment_starts_before_the_last_is_fetched(platform):
    """And a round goes to its end before the next one begins."""
    of = lambda i: [
        f"begin [{i}]", f"start [{i}] to 2", f"start [{i}] to 4", f"fetch [{i}] to 2",
        f"start [{i}] to 5", f"fetch [{i}] to 4", f"fetch [{i}] to 5", f"finish [{i}]",
    ]  # fmt: skip
    log, recorded = go(engine.one_after_another, platform, 2, THREE)
    assert log == of(0) + of(1)
    assert recorded == [([i], stop) for i in (0, 1) for stop in (2, 4, 5)]


def test_no_round_passes_a_boundary_before_all_have_come_there():
    """The rounds of every structure."""
    _, recorded = go(engine.boundary_by_boundary, "cpu", 2, THREE, structures=2)
    assert recorded == [([i], stop) for stop in (2, 4, 5) for _ in range(2) for i in (0, 1)]


@pytest.mark.parametrize("order", [engine.functions, engine.one_after_another])
@pytest.mark.parametrize(
    ("seconds", "sizes"),
    [
        (1.0, [1] * 20),
        (0.1, [1, 1, 1, 1, 5, 5, 5, 1]),  # a call of five lasts half a second
        (0.001, [1, 1, 1, 1, 8, 8]),  # as many as a call has room for
    ],
)
def test_rounds_grow_as_far_as_their_jobs_are_short(order, seconds, sizes, monkeypatch):
    """Else a kill would cost, and the bar stand still for, more than half a second."""
    now = [0.0]

    def pass_by(live):
        now[0] += seconds * len(live.trials)

    monkeypatch.setattr(rounds, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    one = None if order is engine.functions else THREE._replace(evaluate_every=5)
    _, recorded = go(order, "cpu", 20, one, capacity=8, seconds=pass_by)
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
    taken = compiling.largest(make, 100, free_memory([device]))
    assert log == [f"compile {size}" for size in compiled]
    assert taken.size == compiled[-1]


def test_of_a_training_every_piece_must_fit():
    log, layout = [], program.DeviceLayout(1, 1, 1)
    for largest in ("init", "segment", "evaluate"):
        needs = {"init": 1, "segment": 2, "evaluate": 3} | {largest: 9}
        each = {name: Sized(log, lambda size, n=n: n, 1) for name, n in needs.items()}
        assert compiling.GroupPrograms(layout, **each).compile().memory == 9
    assert len(log) == 9


def test_auto_is_1_on_a_cpu(programs):
    assert free_memory(jax.devices()) is None
    rj.sweep(make_train(), POINTS, progress=False)
    tiny()
    assert {one.layout.batch_size for one in programs} == {1}


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


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13, 24])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_jobs_lie_where_they_are_fetched(count, batch_size):
    """Every job comes back in its place, and devices have as many batches, one more at most; states
    go on where they lie, each batch over its own span."""

    def call(job, at, span, state, batches, args):
        (x,) = state
        return [x + job], {"sum": 2 * x + args + batches, "at": at, "span": span}

    number = jax.ShapeDtypeStruct((), np.int32)
    piece = program.Kernel(call, number, number, number, [number], number)
    processes = Cluster(jax.devices())
    args, batches = processes.place(jnp.int32(1)), processes.place(jnp.int32(100))
    layout = program.DeviceLayout.fit(jax.device_count(), batch_size, 4, jobs=24)
    assert layout.capacity * batch_size * jax.device_count() >= 24
    one = program.CompiledKernel(piece, args, layout, processes).compile()
    jobs, first = np.arange(count) * 10, np.arange(count) + 7
    spans = np.arange(-(-count // batch_size)) * 3
    states, placed = one.place([first], count), one.place(jobs, count)
    for turn in range(3):
        states, out = one.start(
            placed, count, args, at=first, spans=spans, states=states, batches=batches
        )
        got = one.fetch(out, count)
        np.testing.assert_array_equal(got["sum"], 2 * (first + turn * jobs) + 101)
        np.testing.assert_array_equal(got["at"], first)
        np.testing.assert_array_equal(got["span"], np.repeat(spans, batch_size)[:count])
    np.testing.assert_array_equal(one.fetch(states, count)[0], first + 3 * jobs)
    each = layout.batches(count)
    assert each.sum() == -(-count // batch_size)
    assert each.max() - each.min() <= 1


def test_the_memory_of_a_real_program_grows_with_its_batch(monkeypatch, programs):
    """`auto` on real programs: a device that pretends to have a certain amount of memory."""
    monkeypatch.setattr("rmsprop_jax._tune.run.cluster.free_memory", lambda devices: 20_000)
    monkeypatch.setattr(program, "BUFFER_BYTES", 1)  # so that each round is one batch
    points = rj.grid(learning_rate=np.linspace(0.01, 0.1, 64), decay=[0.9], centered=[False])
    result = rj.sweep(make_train(steps=100), points, progress=False)
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


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_each_piece_compiles_once_however_the_steps_are_cut(way, devices, tmp_path):
    """Segments that do not divide the steps, rungs at odd ones, rounds that shrink."""
    options = WAYS[way] | {"devices": jax.devices()[:devices]}
    tiny(**options)  # the small programs around the rounds
    program._KEPT.clear()
    path = {"path": tmp_path} if way == "checkpoints" else {}
    with compiles() as compiled:
        result = tiny(**options, **path)
    assert len(compiled) == 3  # init, segment, evaluate
    assert result.steps_completed.max() == 100
