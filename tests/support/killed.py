"""A sweep to be killed: `python -m tests.support.killed FOLDER LOG DEVICES [KIND]`.

KIND is "function", "steps", "halving" or "population".
"""

import os
import sys

import jax
import jax.numpy as jnp

import rmsprop_jax as rj

POINTS = rj.grid(learning_rate=[0.001, 0.01, 0.1, 1.0, 2.0], centered=[False, True])
# A member of a population keeps its number, whatever it copies.
MEMBERS = rj.Points([point | {"number": i} for i, point in enumerate(POINTS)])
SEEDS = [3, 0]
STEPS = 1_000
SEGMENT = 50
LOGGED = 10  # each so-manieth step is: a callback takes longer than a step
SCHEDULERS = {
    "function": None,
    "steps": None,
    "halving": rj.SuccessiveHalving(2, 200),
    "population": rj.PopulationBasedTraining(
        {"learning_rate": rj.log_uniform(1e-3, 2.0)}, perturbation_interval=200
    ),
}


def train(hp, key, log, slow):
    """1,000 steps, each held up by `slow` sines; each trial that runs is logged."""
    solver = rj.rmsprop(hp["learning_rate"], centered=hp["centered"], momentum=0.9)
    params = jax.random.normal(key, (50,))
    jax.debug.callback(log, hp["learning_rate"], hp["centered"], jax.random.key_data(key)[-1])

    def step(carry, _):
        params, state = carry
        loss, grads = jax.value_and_grad(loss_of)(params, slow)
        updates, state = solver.update(grads, state)
        return (params + updates, state), loss

    losses = jax.lax.scan(step, (params, solver.init(params)), length=STEPS)[1]
    return {"loss": losses, "half": losses[STEPS // 2].astype(jnp.bfloat16)}


def loss_of(params, slow):
    drift = jax.lax.fori_loop(0, slow, lambda _, x: jnp.sin(x), jax.lax.stop_gradient(params))
    return jnp.sum((params - 0.01 * drift) ** 2)


def training(log):
    """The same in steps; those that run are logged: whose, its key, how many lie behind it."""

    def solver(hp):
        return rj.rmsprop(hp["learning_rate"], centered=hp["centered"], momentum=0.9)

    def init(hp, key, slow):
        params = jax.random.normal(key, (50,))
        return params, solver(hp).init(params), key, 0

    def step(hp, state, key, slow):
        params, opt_state, first, count = state
        say = lambda: jax.debug.callback(log, hp["number"], jax.random.key_data(first)[-1], count)
        jax.lax.cond(count % LOGGED == 0, say, lambda: None)
        loss, grads = jax.value_and_grad(loss_of)(params, slow)
        updates, opt_state = solver(hp).update(grads, opt_state)
        return (params + updates, opt_state, first, count + 1), {"loss": loss}

    def evaluate(hp, state, key, slow):
        return {"half": loss_of(state[0], 0).astype(jnp.bfloat16)}

    return rj.Training(init, step, evaluate)


def sweep(path, log=lambda *_: None, kind="function", **options):
    options = {"seeds": SEEDS, "args": (700,), "path": path, "progress": False} | options
    if kind == "function":
        return rj.sweep(lambda hp, key, slow: train(hp, key, log, slow), POINTS, **options)
    given = {
        "steps": STEPS,
        "evaluate_every": SEGMENT,
        "scheduler": SCHEDULERS[kind],
        "checkpoint_seconds": 0,
        "keep_states": 2,
    }
    return rj.sweep(training(log), MEMBERS, **given | options)


if __name__ == "__main__":
    folder, log_file, devices, *kind = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", int(devices))
    log = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    sweep(
        folder,
        log=lambda *what: os.write(log, f"{' '.join(map(format, what))}\n".encode()),
        kind=kind[0] if kind else "function",
    )
