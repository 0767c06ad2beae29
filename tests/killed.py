"""A sweep to be killed: `python -m tests.killed FOLDER LOG DEVICES`."""

import os
import sys

import jax
import jax.numpy as jnp

import rmsprop_jax as rj

POINTS = rj.grid(learning_rate=[0.001, 0.01, 0.1, 1.0, 2.0], centered=[False, True])
SEEDS = [3, 0]
STEPS = 1_000


def train(hp, key, log, slow):
    """1,000 steps, each held up by `slow` sines; each trial that runs is logged."""
    solver = rj.rmsprop(hp["learning_rate"], centered=hp["centered"], momentum=0.9)
    params = jax.random.normal(key, (50,))
    jax.debug.callback(log, hp["learning_rate"], hp["centered"], jax.random.key_data(key)[-1])

    def step(carry, _):
        params, state = carry
        drift = jax.lax.fori_loop(0, slow, lambda _, x: jnp.sin(x), params)
        loss, grads = jax.value_and_grad(lambda p: jnp.sum((p - 0.01 * drift) ** 2))(params)
        updates, state = solver.update(grads, state)
        return (params + updates, state), loss

    losses = jax.lax.scan(step, (params, solver.init(params)), length=STEPS)[1]
    return {"loss": losses, "half": losses[STEPS // 2].astype(jnp.bfloat16)}


def sweep(path, points=POINTS, seeds=SEEDS, log=lambda *_: None, **options):
    run = lambda hp, key, slow: train(hp, key, log, slow)
    return rj.sweep(run, points, seeds=seeds, args=(700,), path=path, progress=False, **options)


if __name__ == "__main__":
    folder, log_file, devices = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", int(devices))
    log = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    sweep(
        folder,
        log=lambda rate, centered, seed: os.write(log, f"{rate} {centered} {seed}\n".encode()),
    )
