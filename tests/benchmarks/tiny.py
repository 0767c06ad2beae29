"""Time and memory of many tiny trials, and of other large counts."""

import contextlib
import os
import resource
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rmsprop_jax as rj
from tests.benchmarks.runner import header, row

SPACE = {"learning_rate": rj.log_uniform(1e-4, 1.0), "decay": rj.uniform(0.1, 0.99)}


def train(hp, key):
    """Train 8 parameters for 100 steps."""
    solver = rj.rmsprop(hp["learning_rate"], decay=hp["decay"])
    params = jax.random.normal(key, (8,))

    def step(carry, _):
        params, state = carry
        loss, grads = jax.value_and_grad(lambda p: jnp.sum(p**2))(params)
        updates, state = solver.update(grads, state)
        return (optax.apply_updates(params, updates), state), loss

    return {"loss": jax.lax.scan(step, (params, solver.init(params)), length=100)[1]}


def number(hp, key):
    """Return a loss without training, so that only the sweep's own work takes time."""
    noise = 1e-3 * jax.random.normal(key)
    return {"loss": (hp["learning_rate"] - hp["decay"]) ** 2 + noise}


HALVED = rj.Training(
    lambda hp, key: hp["x"] * jax.random.normal(key, (4,)),
    lambda hp, x, key: (x / 2, {"loss": x[0]}),
)


class Timer(dict):
    """Seconds of named operations."""

    @contextlib.contextmanager
    def of(self, name):
        begin = time.perf_counter()
        yield
        self[name] = time.perf_counter() - begin


def many_points(n: int, folder: str) -> Timer:
    """Sweep n points, and use the result in every way."""
    timer, path = Timer(), os.path.join(folder, "sweep")
    with timer.of("`rj.grid`"):
        side = round(n**0.5)
        rj.grid(learning_rate=np.linspace(0, 1, side), decay=np.linspace(0, 1, side))
    with timer.of("`rj.sample`"):
        points = rj.sample(SPACE, n)
    with timer.of("`rj.sweep`"):
        rj.sweep(number, points, progress=False)
    with timer.of("`rj.sweep` with a path"):
        result = rj.sweep(number, points, path=path, progress=False)
    with timer.of("the same call again"):
        rj.sweep(number, points, path=path, progress=False)
    for name in ("best", "top", "sensitivity", "to_dataframe"):
        with timer.of(f"`result.{name}`"):
            getattr(result, name)()
    with timer.of("`result.save`"):
        result.save(os.path.join(folder, "saved"))
    with timer.of("`SweepResult.load`"):
        rj.SweepResult.load(path)
    return timer


def many_checkpoints(n: int, folder: str) -> Timer:
    """Write n checkpoints of two trials."""
    timer, path = Timer(), os.path.join(folder, "sweep")
    sweep = lambda: rj.sweep(
        HALVED, rj.grid(x=[1.0, 2.0]), steps=n, evaluate_every=1, path=path, checkpoint_seconds=0,
        progress=False,
    )  # fmt: skip
    with timer.of("`rj.sweep` with a path"):
        sweep()
    with timer.of("the same call again"):
        sweep()
    with timer.of("`SweepResult.load`"):
        rj.SweepResult.load(path)
    return timer


def many_seeds(n: int, folder: str) -> Timer:
    """Sweep two points with n seeds."""
    timer, points = Timer(), rj.grid(learning_rate=[0.1, 0.2], decay=[0.5])
    with timer.of("`rj.sweep`, a function"):
        result = rj.sweep(number, points, seeds=n, progress=False)
    with timer.of("`rj.sweep`, a `Training`"):
        rj.sweep(HALVED, rj.grid(x=[1.0, 2.0]), steps=3, seeds=n, progress=False)
    for name, given in {"best": (), "compare": points[:2], "to_dataframe": ()}.items():
        with timer.of(f"`result.{name}`"):
            getattr(result, name)(*given)
    return timer


LOADS = {
    "points": (many_points, 1_000_000),
    "checkpoints": (many_checkpoints, 10_000),
    "seeds": (many_seeds, 10_000),
}


def main(quick: bool):
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    yield "\n## Tiny trials: 8 parameters, 100 steps\n"
    yield header("trials", "compile s", "run s", "peak memory of the process, MiB")
    for trials in (10, 100) if quick else (1_000, 10_000, 100_000):
        result = rj.sweep(train, rj.sample(SPACE, trials), progress=False)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit
        compile_, run = f"{result.compile_seconds:.2f}", f"{result.run_seconds:.3f}"
        yield row(f"{trials:,}", compile_, run, peak)
    for what, (load, n) in LOADS.items():
        n = 100 if quick else n
        timers = []
        for count in (4, n // 10, n):  # the first compiles
            with tempfile.TemporaryDirectory() as folder:
                timers.append(load(count, folder))
        _, few, many = timers
        yield f"\n### {n:,} {what}\n"
        yield header("operation", f"s, {n // 10:,}", f"s, {n:,}", "ratio", "linear growth")
        for name, seconds in many.items():
            yield row(name, f"{few[name]:.3f}", f"{seconds:.3f}", f"{seconds / few[name]:.1f}", 10)
