"""One optimizer step of ours and of `optax.rmsprop`: bytes, temporary bytes, time, compile time.

Both sides get the same arguments (with ε inside the root), are jitted with donated buffers, and
take turns in one process. A ratio below 1 means that ours needs less.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rmsprop_jax as rj
from tests.benchmarks.runner import header, interleaved, median, row

VARIANTS = {
    "plain": {},
    "centered": {"centered": True},
    "centered + momentum": {"centered": True, "momentum": 0.9},
    "bias correction": {"bias_correction": True},
}


def solvers(settings):
    sides = {"ours": rj.rmsprop, "optax": optax.rmsprop}
    return {name: make(1e-3, eps_in_sqrt=True, **settings) for name, make in sides.items()}


def train_step(solver):
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        updates, state = solver.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def compiled_for(solver, leaves: int, size: int, make=train_step):
    """Return the compiled function `make(solver)`, its seconds of trace and compile, and arguments.

    By default, the function is one training step.
    """
    params = [jnp.ones(size, jnp.float32) for _ in range(leaves)]
    grads = [jnp.full(size, 1e-2, jnp.float32) for _ in range(leaves)]
    state = solver.init(params)
    start = time.perf_counter()
    compiled = make(solver).lower(params, state, grads).compile()
    return compiled, time.perf_counter() - start, (params, state, grads)


def stepping(compiled, *carried, steps: int = 1):
    """Return a side that continues from its last call, and returns the seconds per step.

    Args:
      compiled: a compiled function that takes `steps` steps per call.
      carried: its first parameters, state, and gradients.
      steps: the steps per call.
    """

    def run(_):
        nonlocal carried
        *_, grads = carried
        start = time.perf_counter()
        params, state = jax.block_until_ready(compiled(*carried))
        seconds = time.perf_counter() - start
        carried = params, state, grads
        return seconds / steps

    return run


def one_leaf(settings, size: int, pairs: int):
    """Return the ratio of bytes, our temporary bytes, and the ratio of times of each pair."""
    sides, compiled = {}, {}
    for name, solver in solvers(settings).items():
        compiled[name], _, arguments = compiled_for(solver, 1, size)
        sides[name] = stepping(compiled[name], *arguments)
    bytes_ = {name: step.cost_analysis()["bytes accessed"] for name, step in compiled.items()}
    temporary = compiled["ours"].memory_analysis().temp_size_in_bytes
    interleaved(sides, 2)  # warm-up
    seconds = interleaved(sides, pairs)
    return bytes_["ours"] / bytes_["optax"], temporary, ratios(seconds)


def compile_seconds(settings, leaves: int, pairs: int, size: int = 256):
    """Return the seconds of trace and compile of both sides, from cold caches."""

    def run(name):
        jax.clear_caches()
        return compiled_for(solvers(settings)[name], leaves, size)[1]

    sides = {name: lambda _, name=name: run(name) for name in ("ours", "optax")}
    return interleaved(sides, pairs)


def ratios(seconds):
    return np.divide(seconds["ours"], seconds["optax"])


def main(quick: bool):
    size, pairs = (1 << 16, 3) if quick else (1 << 24, 25)
    leaves, compiles = (20, 1) if quick else (1000, 5)
    yield (
        f"\n## One optimizer step compared with Optax: an array of {size:,} float32\n\n"
        "Both sides have the same arguments and are jitted with donated buffers. Bytes and times "
        "are ours ÷ Optax's. The time is the median (quartiles) of "
        f"{pairs} interleaved pairs. Trace + compile is the median of {compiles} pairs, for a tree "
        f"of {leaves:,} arrays of 256 float32.\n"
    )
    yield header(
        "variant", "bytes accessed", "our temporary bytes", "time (quartiles)",
        "trace + compile (s, ours / Optax)",
    )  # fmt: skip
    for name, settings in VARIANTS.items():
        bytes_, temporary, time_ratios = one_leaf(settings, size, pairs)
        seconds = compile_seconds(settings, leaves, compiles)
        ours, theirs = (np.median(seconds[side]) for side in ("ours", "optax"))
        compile_ratio = f"{np.median(ratios(seconds)):.2f} ({ours:.2f} / {theirs:.2f})"
        yield row(name, f"{bytes_:.3f}", temporary, median(time_ratios), compile_ratio)
