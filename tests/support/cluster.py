"""One process of a cluster, sweeping.

`python -m tests.support.cluster INDEX COUNT PORT PROBLEM OUT`; a problem is called with the path of
a folder, or None, and gives a result, or some by name.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import rmsprop_jax as rj
from rmsprop_jax._tune.run import jax_coordination as coordination
from tests.support import killed, sharded


def tiny(path):
    """Rounds grow, a trial fails, one metric is bfloat16, one axis is structure."""

    def train(hp, key, data):
        x = hp["x"] + data["scale"] * jax.random.uniform(key) + jax.random.uniform(data["key"])
        loss = jnp.where(hp["x"] == 7, jnp.nan, -x if hp["minus"] else x)
        return {"loss": loss * jnp.arange(3.0), "half": x.astype(jnp.bfloat16)}

    points = rj.grid(x=[float(i) for i in range(40)], minus=[False, True])
    args = ({"scale": 2, "key": jax.random.key(5)},)
    return rj.sweep(train, points, seeds=[3, 1], args=args, path=path)


def lstm(path):
    """The LSTM of the examples, small."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    from _characters import CharLSTM, evaluate, fit, load

    corpus = load(held_out=2_000)
    model = CharLSTM(len(corpus.characters), hidden=8)

    def train(hp, key, text, validation):
        solver = rj.rmsprop(hp["learning_rate"], decay=hp["decay"])
        params, losses = fit(model, solver, key, text, 10)
        return {"loss": losses, "validation": evaluate(model, params, validation)}

    points = rj.grid(learning_rate=[1e-3, 1e-2, 1e-1], decay=[0.5, 0.9])
    args = (corpus.train, corpus.validation)
    return rj.sweep(train, points, objective="validation", args=args, path=path)


LIMIT = 600  # seconds for processes to end; a slow machine takes two minutes for the longest
OPTIONS = {"steps": 20, "evaluate_every": 5, "checkpoint_seconds": 0, "keep_states": 2}


def kinds(path):
    """Trainings, with checkpoints, stopped, copied; then some that an error stops, and that go on:
    the processes are as ready as before."""
    # Here, since it makes an array, which would begin JAX before the cluster.
    from tests.support import trainings

    population = rj.PopulationBasedTraining(
        {"rate": rj.log_uniform(1e-3, 1.0)}, perturbation_interval=10
    )
    ways = {"plain": None, "halving": rj.SuccessiveHalving(3, 5), "population": population}
    points = [point for point in trainings.POINTS if point["centered"]]

    def run(name, **more):
        given = {"path": path and f"{path}/{name}", "scheduler": ways[name.split()[-1]]}
        return trainings.sweep(points=points, seeds=2, **OPTIONS | given | more)

    found = {name: run(name) for name in ways}
    found["in memory"] = run("population", path=None, keep_states="all")
    for name in ("stopped plain", "stopped population") if path else ():
        said = "enough"  # on both: the other process says what happened on the first
        stopped(said, lambda name=name: run(name, callback=enough))
        found[name] = run(name)
    return found | {"fed": fed(path)}


def enough(report):
    """A callback that stops its sweep, on the process that it is called on: the first."""
    assert jax.process_index() == 0
    if report.trials[0].step == 15:
        raise RuntimeError("enough")


def stopped(message, call):
    with pytest.raises((RuntimeError, OSError), match=message) as caught:
        call()
    assert 0 < caught.value.result.steps_completed.max() < 20


def fed(path):
    """With data from the host, which every process asks for; at first it fails in the middle."""
    asked = []

    def batches(t):
        asked.append(t)
        if t == 12 and asked.count(12) == 1 and path:
            raise OSError("the disk is away")
        return {"x": np.float32([t, 1.0])}

    def step(hp, w, key, batch):
        loss, slope = jax.value_and_grad(lambda w: jnp.mean((batch["x"] * w - 1) ** 2))(w)
        return w - hp["rate"] * slope, {"loss": loss}

    training = rj.Training(lambda hp, key: jax.random.uniform(key), step)
    run = lambda: rj.sweep(
        training, rj.grid(rate=[1e-4, 1e-3, 1e-2]), batches=batches, progress=False,
        path=path and f"{path}/fed", **OPTIONS,
    )  # fmt: skip
    if path:
        stopped("the disk is away", run)
    before = len(asked)
    result = run()
    assert set(asked[before:]) >= set(range(11, 21))
    return result


def long(path):
    return killed.sweep(path)


def members(path):
    return killed.sweep(path, kind="halving")


def fed_apart(path):
    """The data fails on the second process only."""

    def batches(t):
        if t == 12 and jax.process_index() == 1:
            raise OSError("the disk is away")
        return np.float32(t)

    step = lambda hp, s, key, t: (s + t, {"loss": s * hp["x"]})
    training = rj.Training(lambda hp, key: 0.0, step)
    return rj.sweep(training, rj.grid(x=[1.0, 2.0]), batches=batches, path=path, **OPTIONS)


def refused(path):
    """Only process 0 sees the folder, and the fault in it."""
    Path(path).mkdir(exist_ok=True)
    (Path(path) / "thesis.txt").write_text("mine")
    return tiny(path)


def baseline(path):
    from tests.support import baseline

    return baseline.process_of_two(path)


def apart(path):
    """Each process sweeps by itself, on its own devices."""
    result = rj.sweep(
        lambda hp, key: {"loss": hp["x"]},
        rj.grid(x=[1.0 + jax.process_index()]),
        devices=jax.local_devices(),
    )
    assert result.objective == 1.0 + jax.process_index()
    return result


# What may differ between two processes: name -> a call of sweep, from the process' index.

POINTS = [{"x": 1.0}, {"x": 2.0}]


def function(i=0, points=POINTS, scale=1.0, train=None, **options):
    shift = np.float32(scale)  # closed over
    train = train or (lambda hp, key: {"loss": hp["x"] + shift * jnp.arange(3.0)})
    return rj.sweep(train, points, **{"progress": False} | options)


def steps(i=0, **options):
    step = lambda hp, s, key, *batch: (s + hp["x"], {"loss": s})
    training = rj.Training(lambda hp, key: 0.0, step)
    return rj.sweep(training, POINTS, **{"steps": 20, "progress": False} | options)


def with_args(i, args):
    return function(train=lambda hp, key, data: {"loss": hp["x"] * data.sum()}, args=args)


class Own:
    """A scheduler of the user's own, which never stops anybody."""

    def __init__(self, rungs):
        self.steps_of_rungs = rungs

    def rungs(self, steps):
        return self.steps_of_rungs

    def decide(self, step, view):
        return None


def reseeded(i):
    """The first batch is alike; the others are drawn by a generator without a seed."""
    own = np.random.default_rng(i)
    return steps(batches=lambda t: np.float32(1.0 if t == 1 else own.random()))


def with_objective(i, objective):
    assert function(objective=objective).best().objective == 4.0
    return function(objective=objective)


def in_x64(i):
    with jax.enable_x64(bool(i)):
        return function()


def searched(devices):
    import optuna  # slow, and only for this one

    train = lambda hp, key: {"loss": hp["x"]}
    space = {"x": rj.uniform(0.0, 1.0)}
    study = optuna.create_study()
    return rj.search.optimize(train, study, space, n_trials=2, devices=devices, progress=False)


DIFFERENCES = {
    "points": lambda i: function(points=[{"x": 1.0}, {"x": 2.0 + i}]),
    "seeds": lambda i: steps(seeds=[i]),
    "mode": lambda i: function(mode=("min", "max")[i]),
    "objective": lambda i: function(objective=("loss", lambda metrics: metrics["loss"][0])[i]),
    "train": lambda i: function(train=lambda hp, key: {"loss": hp["x"] * (i + 1)}),
    "train, closed over": lambda i: function(scale=1.0 + i),
    "train, x64": in_x64,
    "args": lambda i: with_args(i, (np.float32([1.0, i]),)),
    "args, shapes": lambda i: with_args(i, (np.zeros(2 + i, np.float32),)),
    "points, static": lambda i: function(
        points=rj.grid(x=[1.0, 2.0], unit=rj.static([len, (min, max)[i]])),
        train=lambda hp, key: {"loss": hp["x"] * (hp["unit"] is not None)},
    ),
    "steps": lambda i: steps(steps=20 + i),
    "evaluate_every": lambda i: steps(evaluate_every=5 + i),
    "scheduler": lambda i: steps(evaluate_every=5, scheduler=(rj.SuccessiveHalving(2, 5), None)[i]),
    "scheduler, another": lambda i: steps(
        evaluate_every=5, scheduler=rj.SuccessiveHalving(2 + i, 10)
    ),
    "scheduler, rungs": lambda i: steps(evaluate_every=5, scheduler=Own([(5, 10)[i]])),
    "checkpoint_seconds": lambda i: steps(checkpoint_seconds=i),
    "devices": lambda i: function(devices=jax.devices()[:: (1, -1)[i]]),
    "devices, of a search": lambda i: searched(jax.devices()),
    "keep_states": lambda i: steps(keep_states=i),
    "batch_size": lambda i: function(batch_size=1 + i),
    "record_every": lambda i: function(record_every=1 + i),
    "batches": lambda i: steps(batches=(None, lambda t: np.float32(t))[i]),
    "batches, shapes": lambda i: steps(batches=lambda t: np.zeros(1 + i, np.float32)),
    "batches, first": lambda i: steps(batches=lambda t: np.float32(t + i)),
    "batches, later": reseeded,
    "callback, on process 1": lambda i: function(callback=(None, print)[i]),
    "path": lambda i: function(path=f"/tmp/never_made_{i}"),
}


def raises(i, culprit, error):
    if i == culprit:
        raise error


def fails_late(i, culprit, error):
    """An objective that raises once its sweep runs, on one process."""

    def objective(metrics):
        if metrics["loss"].any():
            raises(i, culprit, error)
        return metrics["loss"][0]

    return function(objective=objective)


def signalled(i, culprit, number, **options):
    """A signal comes to one process while it waits for the other, which takes its time."""

    def batches(t):
        if t == 12:
            if i == culprit:
                threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
            else:
                time.sleep(1.5)
        return np.float32(t)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return steps(batches=batches, evaluate_every=2)


def untraced(i, culprit):
    def train(hp, key):
        raises(i, culprit, RuntimeError("not traced"))
        return {"loss": hp["x"]}

    return function(train=train)


def in_batches(i, culprit, error):
    return steps(batches=lambda t: raises(i, culprit if t == 12 else None, error) or np.float32(t))


EXCEPTIONS = {
    "callback raises": lambda i: steps(
        callback=(lambda _: raises(i, 0, RuntimeError("enough")), None)[i]
    ),
    "callback exits": lambda i: steps(callback=lambda _: sys.exit(7)),
    "objective raises": lambda i: fails_late(i, 0, ValueError("no number")),
    "objective on zeros": lambda i: function(
        objective=lambda metrics: raises(i, 1, KeyError("absent")) or 0.0
    ),
    "trace on 0": lambda i: untraced(i, 0),
    "trace on 1": lambda i: untraced(i, 1),
    "an argument": lambda i: steps(steps=(20, -1)[i]),
    "batches raise": lambda i: in_batches(i, 1, OSError("the disk is away")),
    "batches raise, without a text": lambda i: in_batches(i, 0, RuntimeError("\ud800")),
    "exit in batches": lambda i: in_batches(i, 1, SystemExit(7)),
    "SIGINT on 0": lambda i: signalled(i, 0, signal.SIGINT),
    "SIGINT on 1": lambda i: signalled(i, 1, signal.SIGINT),
    "SIGTERM on 0": lambda i: signalled(i, 0, signal.SIGTERM),
    "SIGTERM on 1": lambda i: signalled(i, 1, signal.SIGTERM),
}


def canary(i):
    """Call the private functions of JAX that the sweep uses."""
    assert coordination.is_connected()
    coordination.write(f"canary/{i}", f"from {i}")
    with pytest.raises(RuntimeError):
        coordination.write(f"canary/{i}", "again")
    assert coordination.read(f"canary/{1 - i}", 10) == f"from {1 - i}"
    assert coordination.read("canary/2", 0.1) is None
    assert coordination.listed("canary/") == {"canary/0": "from 0", "canary/1": "from 1"}
    function()  # so that both have read
    if i == 0:
        coordination.delete("canary/")
    function()
    assert coordination.listed("canary/") == {}
    return function()


WORK = {
    "JAX's coordination service": canary,
    "search, each its own": lambda i: searched(None) and function(),
    "callback, on process 0": lambda i: function(callback=(lambda report: None, None)[i]),
    "progress": lambda i: function(progress=bool(i)),
    "another lambda": lambda i: with_objective(
        i, (lambda m: m["loss"][-1] + 1, lambda m: -m["loss"][0])[i]
    ),
}


def differences(path):
    """One call after another that differs between the processes, and what each came to."""
    i, came_to = jax.process_index(), {}
    for name, call in (DIFFERENCES | EXCEPTIONS | WORK).items():
        begin, error = time.monotonic(), None
        try:
            result = call(i)
        except BaseException as raised:
            result, error = getattr(raised, "result", None), raised
        came_to[name] = {
            "error": error and type(error).__name__,
            "says": str(error),
            "reached": None if result is None else result.steps_completed.tolist(),
            "objective": None if result is None else result.objective.tolist(),
            "seconds": time.monotonic() - begin,
        }
        Path(f"{Path(path).parent}/came_to{i}.json").write_text(json.dumps(came_to))
    return steps()  # the processes are as ready as before


def ends_early(path):
    """Process 1 ends without its call, as process 0 waits for it."""
    if jax.process_index() == 1:
        raise ValueError("no data")
    return steps()


def interrupted(path):
    """Ctrl-C on process 0 alone, while it waits for process 1."""
    return signalled(jax.process_index(), 0, signal.SIGINT)


# Trials within a process, and trials that span both.
SPLITS = {"4x2": ("training", "halving"), "1x8": ("function", "halving", "batches")}


def on_mesh(path):
    """Trials on several devices, in one process or across both; a mixed mesh is refused."""
    results = {}
    for name, kinds in SPLITS.items():
        for kind in kinds:
            folder = None if path is None or kind != "halving" else f"{path} {name}"
            result = sharded.sweep(kind, sharded.AUTOMATIC, mesh=sharded.mesh(name), path=folder)
            results[f"{kind} {name}"] = result
    devices = np.array(jax.devices()).reshape(2, 4).T.reshape(4, 2)
    if jax.process_count() > 1:
        half = Mesh(np.roll(devices, 1, 0), ("trial", "model"))
        with pytest.raises(ValueError, match="devices of one process, or all devices of several"):
            sharded.sweep("function", sharded.AUTOMATIC, mesh=half)
    table = np.arange(32, dtype=np.float32).reshape(4, 8)
    on = sharded.mesh("1x8")
    place = NamedSharding(on, PartitionSpec(None, "model"))
    table = jax.make_array_from_callback(table.shape, place, table.__getitem__)

    def train(hp, key, data):
        return {"loss": hp["x"] * jnp.sum(jnp.sin(data))}

    points = rj.grid(x=[1.0, 2.0])
    results["args"] = rj.sweep(train, points, args=(table,), mesh=on, progress=False, path=path)
    return results


PROBLEMS = {
    f.__name__: f
    for f in [
        *(tiny, lstm, long, members, kinds, fed_apart, refused, baseline, apart, on_mesh),
        *(differences, ends_early, interrupted),
    ]
}


def start(problem, out, count=2):
    """The processes, both at work."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, "-m", __name__, *map(str, (i, count, port, problem, out))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]


def words(processes):
    """Return the standard error of each process, after all have ended."""
    try:
        return [process.communicate(timeout=LIMIT)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()


if __name__ == "__main__":
    index, count, port, problem, out = sys.argv[1:]
    devices = 8 if problem == "on_mesh" else 2
    jax.config.update("jax_num_cpu_devices", devices // int(count))
    if int(count) > 1:
        jax.distributed.initialize(
            f"127.0.0.1:{port}", int(count), int(index), heartbeat_timeout_seconds=10
        )
    results = PROBLEMS[problem](f"{out}/folder")
    if not isinstance(results, dict):
        results.save(f"{out}/process{index}")
    else:
        for name, result in results.items():
            result.save(f"{out}/process{index}/{name}")
