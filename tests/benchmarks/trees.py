"""One optimizer step on four trees of parameters: ours, `optax.rmsprop`, PyTorch's, and a copy.

The sides in JAX are jitted with donated buffers and timed twice: one step per call from Python, and
many steps per call in a `lax.scan`. The gradients are the same at each step. The *copy* is a lower
limit: a program that reads and writes the same arrays (parameters, gradients, state) and only adds.
If PyTorch is installed, its `foreach` form runs, too, and on a GPU the same under `torch.compile`.
All sides take turns in one process.
"""

import functools
import importlib.util
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.benchmarks.runner import header, interleaved, median, row
from tests.benchmarks.step import VARIANTS, compile_seconds, compiled_for, solvers, stepping

TREES = {"one of 32M": (1, 1 << 25), "50 of 65,536": (50, 65_536), "200 of 4,096": (200, 4096),
         "1,000 of 256": (1000, 256)}  # fmt: skip
QUICK = {"one of 65,536": (1, 65_536), "20 of 256": (20, 256)}
SETTINGS = ("plain", "centered", "centered + momentum")


def scanned(solver, steps: int):
    """Return a jitted function of many steps."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def run(params, state, grads):
        def step(carry, _):
            params, state = carry
            updates, state = solver.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), length=steps)[0]

    return run


def copying(buffers: int):
    """Return an optimizer that only adds the gradients to this number of buffers."""

    def update(grads, state, params=None):
        return grads, [jax.tree.map(jnp.add, buffer, grads) for buffer in state]

    init = lambda params: [jax.tree.map(jnp.zeros_like, params) for _ in range(buffers)]
    return optax.GradientTransformation(init, update)


def torch_side(settings: dict, leaves: int, size: int, fused: bool):
    import torch

    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    params = [torch.ones(size, device=device, requires_grad=True) for _ in range(leaves)]
    for p in params:
        p.grad = torch.full_like(p, 1e-2)
    momentum = settings.get("momentum") or 0.0
    centered = settings.get("centered", False)
    solver = torch.optim.RMSprop(
        params, lr=1e-3, alpha=0.9, momentum=momentum, centered=centered, foreach=True
    )
    step = torch.compile(solver.step) if fused else solver.step

    def timed(_):
        start = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return timed


def tree(leaves: int, size: int, settings: dict, pairs: int, compiles: int, steps: int):
    """Return the cells of a row."""
    buffers = 1 + bool(settings.get("centered")) + ("momentum" in settings)
    optimizers = {**solvers(settings), "copy": copying(buffers)}
    sides, scans, bytes_, flops = {}, {}, {}, {}
    for name, solver in optimizers.items():
        program, _, arguments = compiled_for(solver, leaves, size)
        sides[name] = stepping(program, *arguments)
        analysis = program.cost_analysis()
        bytes_[name], flops[name] = analysis["bytes accessed"], analysis["flops"]
        make = functools.partial(scanned, steps=steps)
        program, _, arguments = compiled_for(solver, leaves, size, make)
        scans[name] = stepping(program, *arguments, steps=steps)
    if importlib.util.find_spec("torch"):
        sides["PyTorch"] = torch_side(settings, leaves, size, fused=False)
        if jax.default_backend() != "cpu":
            sides["PyTorch, compiled"] = torch_side(settings, leaves, size, fused=True)
    interleaved(sides, 2)
    called = interleaved(sides, pairs)
    interleaved(scans, 1)
    inside = interleaved(scans, max(3, pairs // 4))
    made = compile_seconds(settings, leaves, compiles, size)

    def against(seconds, name):
        return median(np.divide(seconds["ours"], seconds[name])) if name in seconds else "–"

    return [
        f"{bytes_['ours'] / bytes_['optax']:.3f}",
        " / ".join(f"{flops[name] / (leaves * size):.0f}" for name in ("ours", "optax")),
        f"{1e3 * np.median(called['ours']):.3g}",
        *(against(called, n) for n in ("optax", "copy", "PyTorch", "PyTorch, compiled")),
        f"{1e3 * np.median(inside['ours']):.3g}",
        *(against(inside, name) for name in ("optax", "copy")),
        against(made, "optax"),
    ]


def main(quick: bool):
    trees, pairs, compiles, steps = (QUICK, 4, 1, 3) if quick else (TREES, 60, 5, 20)
    yield (
        "\n## One optimizer step on four trees of parameters\n\nThe table has our milliseconds "
        "per step, and the ratio of ours to each other side. *Copy* is a program that reads and "
        "writes the same arrays and only adds. The figures are medians (quartiles) of "
        f"{pairs} interleaved rounds, of {max(3, pairs // 4)} rounds for a scan of {steps} steps, "
        f"and of {compiles} rounds for trace + compile of one step.\n\nOurs has two more "
        "operations per number (three with momentum), which keep g² from overflowing. They cost "
        "time if all arrays fit the caches, because arithmetic is then the bottleneck. Ours traces "
        "the formula once for all arrays of one shape. For a tree with a single array, this adds "
        "some hundredths of a second of compile time.\n"
    )
    yield header(
        "float32 arrays", "variant", "bytes ÷ Optax", "operations per number, ours / Optax",
        "from Python, ms", "÷ Optax", "÷ copy", "÷ PyTorch", "÷ PyTorch, compiled",
        "in a scan, ms", "÷ Optax", "÷ copy", "trace + compile ÷ Optax",
    )  # fmt: skip
    for name, (leaves, size) in trees.items():
        for settings in SETTINGS:
            given = VARIANTS[settings], pairs, compiles, steps
            yield row(name, settings, *tree(leaves, size, *given))
