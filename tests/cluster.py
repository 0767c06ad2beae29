"""One process of a cluster, sweeping: `python -m tests.cluster INDEX COUNT PORT PROBLEM OUT`."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp

import rmsprop_jax as rj
from tests import killed


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
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    from lstm_language_model import CharLSTM, evaluate, fit, load

    corpus = load(held_out=2_000)
    model = CharLSTM(len(corpus.characters), hidden=8)

    def train(hp, key, text, validation):
        solver = rj.rmsprop(hp["learning_rate"], decay=hp["decay"])
        params, losses = fit(model, solver, key, text, 10)
        return {"loss": losses, "validation": evaluate(model, params, validation)}

    points = rj.grid(learning_rate=[1e-3, 1e-2, 1e-1], decay=[0.5, 0.9])
    args = (corpus.train, corpus.validation)
    return rj.sweep(train, points, objective="validation", args=args, path=path)


def long(path):
    return killed.sweep(path)


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


PROBLEMS = {f.__name__: f for f in (tiny, lstm, long, refused, different, apart)}

if __name__ == "__main__":
    index, count, port, problem, out = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 2 // int(count))
    if int(count) > 1:
        jax.distributed.initialize(
            f"127.0.0.1:{port}", int(count), int(index), heartbeat_timeout_seconds=10
        )
    result = PROBLEMS[problem](f"{out}/folder")
    result.save(f"{out}/process{index}")
