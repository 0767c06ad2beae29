"""One step of four trees of parameters: ours, `optax.rmsprop`, PyTorch's, and a copy of the bytes.

JAX's sides are jitted and donated, and are timed twice: one step a call from Python, and as a
`lax.scan` of many steps in one call, with the same gradients in each. The limit is a program of the
same form that reads and writes what the step must (parameters, gradients, state) and only adds.
PyTorch's sides, where it is installed: `foreach`, and the same under `torch.compile`, on an
accelerator. All take turns in one process.
"""

import functools
import importlib.util
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rmsprop_jax as rj
from tests.benchmarks.runner import header, interleaved, row
from tests.benchmarks.step import VARIANTS, train_step

TREES = {"one of 32M": (1, 1 << 25), "50 of 65,536": (50, 65_536), "200 of 4,096": (200, 4096),
         "1,000 of 256": (1000, 256)}  # fmt: skip
QUICK = {"one of 65,536": (1, 65_536), "20 of 256": (20, 256)}
SETTINGS = ("plain", "centered", "centered + momentum")


def scanned(solver, steps: int):
    """Many steps in one call."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def run(params, state, grads):
        def step(carry, _):
            params, state = carry
            updates, state = solver.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), length=steps)[0]

    return run


def copying(buffers: int):
    """An optimiser that only adds to so many buffers."""

    def update(grads, state, params=None):
        return grads, [jax.tree.map(jnp.add, buffer, grads) for buffer in state]

    init = lambda params: [jax.tree.map(jnp.zeros_like, params) for _ in range(buffers)]
    return optax.GradientTransformation(init, update)


def jax_side(run, solver, leaves: int, size: int, steps: int):
    """Seconds of a step, and the compiled program; the seconds of tracing and compiling."""
    params = [jnp.ones(size, jnp.float32) for _ in range(leaves)]
    grads = [jnp.full(size, 1e-2, jnp.float32) for _ in range(leaves)]
    carried = params, solver.init(params)
    start = time.perf_counter()
    compiled = run.lower(*carried, grads).compile()
    seconds = time.perf_counter() - start

    def timed(_):
        nonlocal carried
        start = time.perf_counter()
        carried = jax.block_until_ready(compiled(*carried, grads))
        return (time.perf_counter() - start) / steps

    return timed, compiled, seconds


def torch_side(settings: dict, leaves: int, size: int, compiled: bool):
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
    step = torch.compile(solver.step) if compiled else solver.step

    def timed(_):
        start = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return timed


def tree(leaves: int, size: int, settings: dict, pairs: int, steps: int):
    """The cells of a row."""
    solvers = {
        "ours": rj.rmsprop(1e-3, eps_in_sqrt=True, **settings),
        "Optax": optax.rmsprop(1e-3, eps_in_sqrt=True, **settings),
        "a copy": copying(1 + bool(settings.get("centered")) + ("momentum" in settings)),
    }
    sides, scans, compiles, bytes_ = {}, {}, {}, {}
    for name, solver in solvers.items():
        jax.clear_caches()
        step = train_step(solver)
        sides[name], compiled, compiles[name] = jax_side(step, solver, leaves, size, 1)
        bytes_[name] = compiled.cost_analysis()["bytes accessed"]
        scans[name], *_ = jax_side(scanned(solver, steps), solver, leaves, size, steps)
    if importlib.util.find_spec("torch"):
        sides["PyTorch"] = torch_side(settings, leaves, size, compiled=False)
        if jax.default_backend() != "cpu":
            sides["PyTorch, compiled"] = torch_side(settings, leaves, size, compiled=True)
    interleaved(sides, 2)
    called = interleaved(sides, pairs)
    interleaved(scans, 1)
    scanned_ = interleaved(scans, max(3, pairs // 2))

    def against(seconds, name):
        if name not in seconds:
            return "–"
        ratios = np.divide(seconds["ours"], seconds[name])
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        return f"{middle:.2f} ({low:.2f}–{high:.2f})"

    return [
        f"{bytes_['ours'] / bytes_['Optax']:.3f}",
        f"{1e3 * np.median(called['ours']):.3g}",
        *(against(called, n) for n in ("Optax", "a copy", "PyTorch", "PyTorch, compiled")),
        f"{1e3 * np.median(scanned_['ours']):.3g}",
        *(against(scanned_, name) for name in ("Optax", "a copy")),
        f"{compiles['ours'] / compiles['Optax']:.2f}",
    ]


def main(quick: bool):
    trees, pairs, steps = (QUICK, 3, 3) if quick else (TREES, 15, 20)
    yield (
        "\n## A step of four trees\n\nMilliseconds a step, and ours ÷ each other side: median "
        f"(quartiles) of {pairs} interleaved rounds; in a scan of {steps} steps of "
        f"{max(3, pairs // 2)}. Trace + compile once, of a step.\n"
    )
    yield header(
        "float32 leaves", "settings", "bytes ÷ Optax's", "from Python, ms", "÷ Optax", "÷ a copy",
        "÷ PyTorch", "÷ PyTorch, compiled", "in a scan, ms", "÷ Optax", "÷ a copy",
        "trace + compile ÷ Optax's",
    )  # fmt: skip
    for name, (leaves, size) in trees.items():
        for settings in SETTINGS:
            yield row(name, settings, *tree(leaves, size, VARIANTS[settings], pairs, steps))
