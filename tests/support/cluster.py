"""One process of a cluster, sweeping.

`python -m tests.support.cluster INDEX COUNT PORT PROBLEM OUT`; a problem is called with the path of
a folder, or None, and gives a result, or some by name.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmsprop_jax as rj
from tests.support import killed


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


OPTIONS = {"steps": 20, "evaluate_every": 5, "checkpoint_seconds": 0, "keep_states": 2}


def kinds(path):
    """Trainings, with checkpoints, stopped, copied; then some that an error stops, and that go on:
    the processes are as ready as before."""
    # Here, since it makes an array, which would begin JAX before the cluster.
    from tests.support import trainings

    population = rj.population({"rate": rj.log_uniform(1e-3, 1.0)}, every=10)
    ways = {"plain": None, "halving": rj.halving(3, 5), "population": population}
    points = [point for point in trainings.POINTS if point["centered"]]

    def run(name, **more):
        given = {"path": path and f"{path}/{name}", "scheduler": ways[name.split()[-1]]}
        return trainings.sweep(points=points, seeds=2, **OPTIONS | given | more)

    found = {name: run(name) for name in ways}
    found["in memory"] = run("population", path=None, keep_states="all")
    for name in ("stopped plain", "stopped population") if path else ():
        said = ("enough", "process 0 refused to go on")[jax.process_index()]
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
    assert 0 < caught.value.result.reached.max() < 20


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


def different(path):
    return rj.sweep(
        lambda hp, key: {"loss": hp["x"]}, rj.grid(x=[1.0, 2.0 + jax.process_index()]), path=path
    )


def apart(path):
    """Each process sweeps by itself, on its own devices."""
    result = rj.sweep(
        lambda hp, key: {"loss": hp["x"]},
        rj.grid(x=[1.0 + jax.process_index()]),
        devices=jax.local_devices(),
    )
    assert result.objective == 1.0 + jax.process_index()
    return result


PROBLEMS = {
    f.__name__: f for f in (tiny, lstm, long, members, kinds, fed_apart, refused, different, apart)
}

if __name__ == "__main__":
    index, count, port, problem, out = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 2 // int(count))
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
