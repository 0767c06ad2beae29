"""One optimiser step, ours against `optax.rmsprop`: bytes, temporaries, time, trace and compile.

Both sides get the same arguments (Optax's place of ε), are jitted and donated, and take turns in
one process. A ratio below 1 means that ours needs less.
"""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import optax

import rmsprop_jax as rj

VARIANTS = {
    "plain": {},
    "centered": {"centered": True},
    "centered + momentum": {"centered": True, "momentum": 0.9},
    "bias correction": {"bias_correction": True},
}


def solvers(settings):
    ours = rj.rmsprop(1e-3, eps_in_sqrt=True, **settings)
    return ours, optax.rmsprop(1e-3, eps_in_sqrt=True, **settings)


def train_step(solver):
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        updates, state = solver.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def compiled_for(solver, leaves: int, size: int):
    """The compiled step, the seconds of tracing and compiling, and arguments to run it on."""
    params = [jnp.ones(size, jnp.float32) for _ in range(leaves)]
    grads = [jnp.full(size, 1e-2, jnp.float32) for _ in range(leaves)]
    state = solver.init(params)
    start = time.perf_counter()
    compiled = train_step(solver).lower(params, state, grads).compile()
    return compiled, time.perf_counter() - start, (params, state, grads)


def one_leaf(settings, size: int, pairs: int):
    """Bytes ratio, our temporary bytes, time ratio of interleaved pairs: median and quartiles."""
    sides, carried = [], []
    for solver in solvers(settings):
        compiled, _, (params, state, grads) = compiled_for(solver, 1, size)
        sides.append(compiled)
        carried.append([params, state, grads])
    bytes_ = [side.cost_analysis()["bytes accessed"] for side in sides]
    temporary = sides[0].memory_analysis().temp_size_in_bytes

    def run(i):
        params, state, grads = carried[i]
        start = time.perf_counter()
        carried[i][:2] = jax.block_until_ready(sides[i](params, state, grads))
        return time.perf_counter() - start

    for i in (0, 1, 0, 1):
        run(i)
    ratios = []
    for pair in range(pairs):
        first = pair % 2
        times = {first: run(first), 1 - first: run(1 - first)}
        ratios.append(times[0] / times[1])
    low, median, high = statistics.quantiles(ratios, n=4)
    return bytes_[0] / bytes_[1], temporary, median, low, high


def compile_ratio(settings, leaves: int, pairs: int):
    """Our trace + compile seconds over Optax's: median of interleaved pairs, and both medians."""
    seconds = ([], [])
    for pair in range(pairs):
        order = (0, 1) if pair % 2 else (1, 0)
        for i in order:
            jax.clear_caches()
            seconds[i].append(compiled_for(solvers(settings)[i], leaves, 256)[1])
    ratio = statistics.median(a / b for a, b in zip(*seconds, strict=True))
    return ratio, *map(statistics.median, seconds)


def main(quick: bool = False) -> None:
    size, pairs = (1 << 16, 3) if quick else (1 << 24, 25)
    leaves, compiles = (20, 1) if quick else (1000, 5)
    print(
        f"\n## One step, ours / Optax: a leaf of {size:,} float32; compile over {leaves} leaves\n"
    )
    print("| settings | bytes | temporary | time (quartiles) | trace + compile (s, ours / Optax) |")
    print("|---|---|---|---|---|")
    for name, settings in VARIANTS.items():
        bytes_, temporary, median, low, high = one_leaf(settings, size, pairs)
        ratio, ours, theirs = compile_ratio(settings, leaves, compiles)
        print(
            f"| {name} | {bytes_:.3f} | {temporary} | {median:.2f} ({low:.2f}–{high:.2f}) "
            f"| {ratio:.2f} ({ours:.2f} / {theirs:.2f}) |",
            flush=True,
        )
