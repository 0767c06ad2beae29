"""Thousands of tiny trainings in one sweep: do time and memory grow as the trials do?"""

import resource
import sys

import jax
import jax.numpy as jnp
import optax

import rmsprop_jax as rj
from tests.benchmarks.runner import header, row


def train(hp, key):
    """100 steps on 8 parameters."""
    solver = rj.rmsprop(hp["learning_rate"], decay=hp["decay"])
    params = jax.random.normal(key, (8,))

    def step(carry, _):
        params, state = carry
        loss, grads = jax.value_and_grad(lambda p: jnp.sum(p**2))(params)
        updates, state = solver.update(grads, state)
        return (optax.apply_updates(params, updates), state), loss

    return {"loss": jax.lax.scan(step, (params, solver.init(params)), length=100)[1]}


def main(quick: bool):
    space = {"learning_rate": rj.log_uniform(1e-4, 1.0), "decay": rj.uniform(0.1, 0.99)}
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    yield "\n## Tiny trials: 8 parameters, 100 steps\n"
    yield header("trials", "compile s", "run s", "peak memory of the process, MiB")
    for trials in (10, 100) if quick else (1_000, 10_000, 100_000):
        result = rj.sweep(train, rj.sample(space, trials), progress=False)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit
        compile_, run = f"{result.compile_seconds:.2f}", f"{result.run_seconds:.3f}"
        yield row(f"{trials:,}", compile_, run, peak)
