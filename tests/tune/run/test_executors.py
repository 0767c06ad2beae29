"""Sweeps on executors: the numbers of a local sweep, whatever happens to the workers."""

import collections
import functools
import os
import signal
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmsprop_jax as rj
from rmsprop_jax._tune.run import worker
from rmsprop_jax._tune.run.machine import Machine
from tests.support import engine, executors
from tests.support.executors import Counting, Inline, pool
from tests.support.tables import few
from tests.support.trainings import SCALE, noisy, plain
from tests.tune.storage.test_store import same

STEPS = 40


def train(hp, key):
    x = jax.random.normal(key, (4,))

    def step(x, _):
        x = x - hp["rate"] * jnp.sin(x) ** 2
        return x, jnp.sum(x)

    return {"loss": jax.lax.scan(step, x, length=10)[1], "last": x[0]}


POINTS = rj.grid(rate=[1e-3, 1e-2, 3e-2, 1e-1], decay=[0.9, 0.99], centered=[False])
FUNCTION_POINTS = rj.grid(rate=np.linspace(0.01, 0.5, 11).tolist())


def data(t):
    return np.random.default_rng(t).normal(size=(5,)).astype(np.float32)


def fed():
    """A training that reads a batch at each step."""
    init = lambda hp, key: jnp.zeros(5)

    def step(hp, state, key, batch):
        state = state - hp["rate"] * (state - batch)
        return state, {"loss": jnp.sum(state**2)}

    return rj.Training(init, step)


def wanted(kind):
    """The call of each kind, without the points."""
    halving = rj.SuccessiveHalving(min_steps=5)
    population = rj.PopulationBasedTraining({"rate": rj.log_uniform(1e-3, 1e-1)}, 10)
    options = {"steps": STEPS, "objective": "validation", "args": (SCALE,), "seeds": 2}
    return {
        "function": lambda: (train, FUNCTION_POINTS, {"seeds": 2}),
        "args": lambda: (
            lambda hp, key, own, tree: {"loss": hp["rate"] * jax.random.normal(own) + tree["x"]},
            FUNCTION_POINTS,
            {"args": (jax.random.key(3), {"x": jnp.bfloat16(2)})},
        ),
        "training": lambda: (noisy(), POINTS, options | {"keep_states": "all"}),
        "batch of 4": lambda: (noisy(), POINTS, options | {"batch_size": 4}),
        "halving": lambda: (noisy(), POINTS, options | {"scheduler": halving}),
        "population": lambda: (noisy(), POINTS, options | {"scheduler": population}),
        "batches": lambda: (fed(), FUNCTION_POINTS, {"steps": STEPS, "batches": data}),
    }[kind]()


def sweep(kind, executor=None, **more):
    what, points, options = wanted(kind)
    return rj.sweep(what, points, progress=False, executor=executor, **options | more)


@functools.cache
def local(kind):
    return sweep(kind)


@pytest.fixture(scope="module")
def workers():
    """A pool of two processes that outlives a sweep."""
    with pool() as executor:
        yield executor


KINDS = ["function", "args", "training", "batch of 4", "halving", "population", "batches"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", few(KINDS, ["args", "training", "halving"]))
def test_an_executor_gives_the_local_numbers(kind, workers):
    result = sweep(kind, rj.Executor(workers, workers=2, task_seconds=0.2))
    same(result, local(kind))
    if kind in ("training", "halving", "population"):
        best = result.best()
        for seed in result.seeds:
            states = [plain(x.state(best, seed)) for x in (result, local(kind))]
            for x, y in zip(*states, strict=True):
                assert x.dtype == y.dtype
                assert x.tobytes() == y.tobytes()


@pytest.mark.slow
def test_a_worker_compiles_each_group_once(workers):
    """Also for a second sweep; the hash of a program is that of the sweep before."""
    executor = rj.Executor(workers, workers=2, task_seconds=0.01)
    counts = lambda: dict(workers.submit(executors.compiled_groups).result() for _ in range(8))
    before = counts()
    for _ in range(2):
        sweep("function", executor, objective="last")
    after = counts()
    for process in after:
        assert after[process] - before.get(process, 0) <= 1


@pytest.mark.slow
def test_settings_of_jax_travel(workers, x64):
    points = rj.grid(rate=[0.1, 0.2])
    each = [rj.sweep(train, points, progress=False, executor=x) for x in (workers, None)]
    same(*each)
    assert each[0].metrics["loss"].dtype == np.float64


@pytest.mark.slow
def test_a_worker_uses_all_its_devices():
    make = lambda: pool(1, initializer=executors.two_devices)
    executor = rj.Executor(make, workers=1, task_seconds=5)
    same(sweep("training", executor), local("training"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", few(["function", "training", "halving", "batches"], ["training"]))
def test_folders_of_both_ways_are_one(kind, workers, tmp_path):
    """What one way began, the other continues: half of the trials, or half of the way."""
    ways = [rj.Executor(workers, workers=2, task_seconds=0.2), None]
    for name, order in {"first": ways, "last": ways[::-1]}.items():
        path = tmp_path / name
        clock = Clock(4)
        what, points, options = wanted(kind)
        options |= {"path": path, "timeout": 3, "checkpoint_seconds": 0}
        part = engine.sweep(what, points, Machine(clock), executor=order[0], **options)
        assert not part.is_complete
        assert part.steps_completed.any()
        same(sweep(kind, order[1], path=path, checkpoint_seconds=0), local(kind))


class Clock:
    """A clock that goes a second at each reading, from the given one on."""

    def __init__(self, begin):
        self.begin, self.reads = begin, 0

    def __call__(self):
        self.reads += 1
        return max(0.0, float(self.reads - self.begin))


def test_a_failed_trial_fails_alone(workers):
    fails = lambda hp, key: {"loss": jnp.log(hp["rate"])}
    points = rj.grid(rate=[0.1, -1.0, 0.2])
    result = rj.sweep(fails, points, progress=False, executor=workers)
    same(result, rj.sweep(fails, points, progress=False))
    assert result.status.tolist() == ["complete", "failed", "complete"]


# What goes wrong.


class UnpicklableError(Exception):
    def __init__(self, a, b):
        super().__init__(a)


def exits(t):
    return sys.exit("out") if t == 12 else data(t)


def raises(t):
    if t == 12:
        raise UnpicklableError("no", lambda: 0)
    return data(t)


ENDS = [(exits, "SystemExit: out"), (raises, "UnpicklableError")]


@pytest.mark.parametrize(("batches", "says"), ENDS)
def test_an_error_on_a_worker_ends_the_sweep(batches, says, workers):
    executor = rj.Executor(workers, workers=2)
    with pytest.raises(RuntimeError, match=says) as caught:
        sweep("batches", executor, batches=batches, evaluate_every=5)
    assert "the task of trial" in str(caught.value)
    assert any("in raises" in note or "in exits" in note for note in caught.value.__notes__)
    assert caught.value.result.steps_completed.max() < 12
    sweep("function", executor)  # the workers are well


def lost_once(path, kind):
    """A sweep on a pool of two, one of which is killed when the third task arrives."""
    counts, reports, made = collections.Counter(), [], []

    def callback(report):
        reports.append(report)
        if len(reports) == 3:
            executors.kill_a_worker(made[0])

    def make():
        made.append(pool())
        return Counting(made[-1], counts)

    executor = rj.Executor(make, workers=2, task_seconds=0.05)
    return sweep(kind, executor, callback=callback, path=path), counts


@pytest.mark.slow
@pytest.mark.parametrize("kind", few(["function", "training", "halving"], ["training"]))
def test_a_lost_worker_changes_nothing(kind, tmp_path):
    result, counts = lost_once(tmp_path / "a", kind)
    same(result, local(kind))
    assert 1 <= counts["lost"] <= 4
    assert counts["submitted"] == counts["done"] + counts["missing"] + counts["lost"]


@pytest.mark.slow
def test_without_a_factory_the_error_shows_the_line(tmp_path):
    reports, own = [], pool()

    def callback(report):
        reports.append(report)
        if len(reports) == 3:
            executors.kill_a_worker(own)

    executor = rj.Executor(own, workers=2, task_seconds=0.05)
    with pytest.raises(RuntimeError, match=r"executor=lambda: ProcessPoolExecutor\(2") as caught:
        sweep("function", executor, callback=callback, path=tmp_path / "a")
    assert (caught.value.result.status == "complete").sum() >= 3
    saved = rj.SweepResult.load(tmp_path / "a")
    assert (saved.status == "complete").sum() == (caught.value.result.status == "complete").sum()
    same(sweep("function", path=tmp_path / "a"), local("function"))


def killer(path, always):
    """Data that kill their worker at step 12: always, or the first time."""

    def batches(t):
        if t == 12 and (always or not os.path.exists(path)):
            open(path, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return data(t)

    return batches


@pytest.mark.slow
@pytest.mark.parametrize("always", few([False, True], [True]))
def test_the_task_that_kills_its_worker_is_known(always, tmp_path):
    batches = killer(str(tmp_path / "mark"), always)
    points = rj.grid(rate=[0.1, 0.2, 0.3])
    call = functools.partial(
        rj.sweep, fed(), points, steps=20, evaluate_every=5, progress=False, batches=batches
    )
    executor = rj.Executor(pool, workers=2, task_seconds=1e-4, retries=1)
    if not always:
        same(call(executor=executor), call(batches=data))
        return
    with pytest.raises(RuntimeError, match=r"the task of trial \d, steps 11 to 15, .* lost it 2 t"):
        call(executor=executor)


def test_workers_that_cannot_start_are_an_error():
    make = lambda: pool(initializer=executors.cannot_start)
    with pytest.raises(RuntimeError, match="broke before any worker answered"):
        sweep("function", rj.Executor(make, workers=2))


@pytest.mark.slow
def test_a_late_worker_joins(tmp_path):
    make = lambda: pool(initializer=executors.late, initargs=(str(tmp_path / "first"),))
    same(sweep("training", rj.Executor(make, workers=2, task_seconds=0.05)), local("training"))


def test_an_engine_that_loses_tasks_gets_them_again():
    """Each third future fails, as when Dask loses a worker."""
    count = iter(range(10_000))

    def change(outcome):
        if next(count) % 3 == 2:
            raise OSError("the worker is gone")
        return outcome

    same(sweep("training", Inline(change)), local("training"))
    with pytest.raises(RuntimeError, match="but the executor lost it 4 times, the last time with"):
        sweep("function", Inline(lambda outcome: 1 / 0))


@pytest.mark.slow
def test_the_executor_is_shut_down_by_who_made_it():
    made = []

    def make():
        made.append(Inline())
        return made[-1]

    sweep("function", make)
    assert [one.shut_down for one in made] == [1]
    own = Inline()
    sweep("function", own)
    assert own.shut_down == 0


class Elsewhere(Inline):
    """A worker with another version of JAX, as far as its task tells."""

    def submit(self, function, task, /, *args):
        return super().submit(
            function, task._replace(versions=task.versions | {"jax": "0.1"}), *args
        )


def on_device(process):
    return lambda outcome: outcome._replace(
        worker=worker.Worker("host", next(process), "cuda", ("0",))
    )


def forgetful(outcome):
    worker._kept.clear()
    return outcome


@pytest.mark.parametrize(
    ("executor", "says"),
    [
        (Elsewhere(), r"workers must have the versions of the caller.*'jax': '0.1'.*got.*Install"),
        (Inline(on_device(iter([1, 2, 1, 2, 1, 2]))), "processes 2 and 1 of host share the device"),
        (rj.Executor(Inline(), platforms=["tpu"]), "platforms must have the platform of the work"),
        (
            types.SimpleNamespace(submit=lambda *_: 3),
            r"must return a concurrent.futures.Future",
        ),
        (lambda: 3, "executor must be a function that makes an executor"),
    ],
)
def test_workers_that_cannot_be_used_are_named(executor, says):
    with pytest.raises((RuntimeError, ValueError), match=says):
        sweep("function", executor)


@pytest.mark.slow
def test_a_worker_that_forgets_asks_again():
    same(sweep("training", Inline(forgetful)), local("training"))


@pytest.mark.slow
def test_a_worker_keeps_the_last_eight():
    sweep("training", Inline())
    for i in range(9):
        sweep("args", Inline(), args=(jax.random.key(i), {"x": jnp.bfloat16(i)}))
    assert len(worker._kept) <= worker.KEPT


def test_data_must_be_a_pure_function_of_the_step():
    impure = lambda t, seen=[]: seen.append(t) or data(len(seen))
    with pytest.raises(RuntimeError, match="batches must be a pure function of the step"):
        sweep("batches", Inline(), batches=impure)


def test_ctrl_c_waits_for_the_tasks_that_run(tmp_path):
    def callback(report):
        raise KeyboardInterrupt

    executor = rj.Executor(pool, workers=2, task_seconds=20)
    with pytest.raises(rj.SweepInterrupted) as caught:
        sweep("function", executor, callback=callback, path=tmp_path / "a")
    complete = (caught.value.result.status == "complete").sum()
    assert complete >= 1
    saved = rj.SweepResult.load(tmp_path / "a")
    assert (saved.status == "complete").sum() == complete
    same(sweep("function", path=tmp_path / "a"), local("function"))


# Refused before anything runs.


def printing(hp, key):
    jax.debug.print("{}", hp["rate"])
    return train(hp, key)


MESH = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("trial", "model"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mesh": MESH}, "executor and mesh must not be passed together"),
        ({"devices": jax.devices()}, "executor and devices must not be passed together"),
        ({"executor": 3}, "executor must be a function that makes an executor.*got 3.*Pass exec"),
        ({"executor": lambda: rj.Executor(Inline(), workers=0)}, "workers must be an int of at l"),
        ({"executor": lambda: rj.Executor(Inline(), retries=-1)}, "retries must be an int"),
        ({"executor": lambda: rj.Executor(Inline(), task_seconds=0)}, "task_seconds must be a n"),
        ({"executor": lambda: rj.Executor(Inline(), platforms="cpu")}, "platforms must be a list"),
        ({"executor": lambda: rj.Executor(Inline(), platforms=["gpu"])}, "platforms must be a l"),
        ({"train": printing}, "train must not call back into Python with an executor"),
        ({"batches": lambda t, file=sys.stdout: data(t)}, "that cloudpickle can copy"),
    ],
)
def test_calls_that_are_refused_leave_no_folder(options, says, tmp_path):
    kind = "batches" if "batches" in options else "function"
    what, points, given = wanted(kind)
    given = given | {"executor": Inline(), "train": what, "path": tmp_path / "a"} | options
    call = lambda: given.pop("executor")() if callable(given["executor"]) else given
    with pytest.raises(ValueError, match=says):
        rj.sweep(points=points, progress=False, **call())
    assert not (tmp_path / "a").exists()


# Ordinary inputs that are easily forgotten, in this process.


def of_args(hp, key, *args):
    total = sum(jnp.sum(x).astype(jnp.float32) for x in jax.tree.leaves(args))
    return {"loss": hp["rate"] * total + 0.0 * hp.get("n", 0)}


def of_length(hp, key):
    """Training whose series are shorter with `short`."""
    steps = 5 if hp["short"] else 8
    return {"loss": hp["rate"] * jnp.arange(float(steps)), "n": jnp.int32(3)}


def narrow():
    """A training with a state of numbers of less than a byte, and other leaves."""

    def init(hp, key):
        state = {"four": jnp.arange(3, dtype=jnp.int4), "eight": jnp.ones(2, jnp.float8_e4m3fn)}
        return state | {"key": key, "none": None, "bool": jnp.array(True), "none at all": ()}

    def step(hp, state, key):
        drawn = jax.random.normal(state["key"])
        state = state | {"key": jax.random.fold_in(state["key"], 1), "bool": ~state["bool"]}
        return state, {"loss": hp["rate"] * drawn + state["four"].astype(jnp.float32).sum()}

    return rj.Training(init, step)


TWO = rj.grid(rate=[0.1, 0.2])
ODD = {
    "a Python number": (of_args, TWO, {"args": (2.0, 3, True)}),
    "trees": (of_args, TWO, {"args": ({"a": [np.ones(3), None]}, (), np.int8(2))}),
    "integers": (of_args, rj.grid(rate=[0.5], n=[1, 2, 3]), {"args": (jnp.ones(2),)}),
    "lengths": (of_length, rj.grid(rate=[0.1, 0.2], short=[False, True]), {"record_every": 3}),
    "a single trial": (train, rj.grid(rate=[0.1]), {"seeds": [7]}),
    "an objective": (train, TWO, {"objective": lambda m: float(m["loss"].max()), "mode": "max"}),
    "a batch": (train, FUNCTION_POINTS, {"batch_size": 4, "seeds": 3}),
    "one step": (narrow(), TWO, {"steps": 1}),
    "narrow states": (narrow(), TWO, {"steps": 7, "evaluate_every": 3, "keep_states": "all"}),
    "no states kept": (narrow(), TWO, {"steps": 7, "evaluate_every": 3, "keep_states": 0}),
    "halving of few": (narrow(), TWO, {"steps": 7, "scheduler": rj.SuccessiveHalving(2)}),
    "data in a batch": (fed(), FUNCTION_POINTS, {"steps": 9, "batches": data, "batch_size": 4}),
    "data and rungs": (
        fed(),
        FUNCTION_POINTS,
        {"steps": 9, "batches": data, "scheduler": rj.SuccessiveHalving(2, 2)},
    ),
}


@pytest.mark.parametrize(
    "name", few(list(ODD), ["a Python number", "narrow states", "data and rungs"])
)
def test_odd_inputs_in_this_process(name):
    what, points, options = ODD[name]
    call = functools.partial(rj.sweep, what, points, progress=False, **options)
    result, expected = call(executor=rj.Executor(Inline(), task_seconds=1e-3)), call()
    same(result, expected)
    if options.get("keep_states") == "all":
        for i in range(len(points)):
            states = [plain(x.state(x.top(2)[i])) for x in (result, expected)]
            for x, y in zip(*states, strict=True):
                assert x.dtype == y.dtype
                assert x.tobytes() == y.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("setting", [jax.debug_nans(True), jax.default_prng_impl("rbg")])
def test_settings_around_the_call(setting):
    with setting:
        same(sweep("training", Inline()), sweep("training"))


@pytest.mark.slow
def test_more_seeds_in_a_folder(tmp_path):
    """Only the new trials run."""
    sweep("function", Inline(), path=tmp_path / "a", seeds=1)
    counts = collections.Counter()
    same(sweep("function", Counting(Inline(), counts), path=tmp_path / "a"), local("function"))
    assert counts["done"] <= len(FUNCTION_POINTS)
