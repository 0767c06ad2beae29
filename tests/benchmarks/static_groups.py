"""Many static groups: 128 trials of a small network in 16 static groups, with compile time.

The first two sides start from cold caches: the sweep with one compile after another, each before
the trials of its group, and the sweep as it is, which compiles in threads. The third side is the
same call again, which finds its programs in the memory of the process.
"""

import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import rmsprop_jax as rj
from rmsprop_jax._tune import experiment
from rmsprop_jax._tune.compile import compiled as program
from rmsprop_jax._tune.compile.group_compiler import GroupCompiler
from tests.benchmarks.runner import header, interleaved, median, row

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


def train(hp, key):
    """Train a multilayer perceptron on a sine."""
    sizes = [1, *[hp["width"]] * hp["depth"], 1]
    keys = jax.random.split(key, len(sizes))
    params = [
        jax.random.normal(k, (m, n)) / m**0.5
        for k, m, n in zip(keys, sizes, sizes[1:], strict=False)
    ]
    solver = rj.rmsprop(hp["learning_rate"], centered=hp["centered"])
    x = jnp.linspace(-3.0, 3.0, 64)[:, None]

    def loss(params):
        h = x
        for weight in params[:-1]:
            h = ACTIVATIONS[hp["activation"]](h @ weight)
        return jnp.mean((h @ params[-1] - jnp.sin(x)) ** 2)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = solver.update(grads, state)
        return (jax.tree.map(jnp.add, params, updates), state), value

    return {"loss": jax.lax.scan(step, (params, solver.init(params)), length=100)[1]}


def one_after_another(compilers: Sequence[GroupCompiler], clock: Callable[[], float]):
    for compiler in compilers:
        start = clock()
        yield compiler.compile(), clock() - start


def main(quick: bool):
    points = rj.grid(
        depth=rj.static([1, 2] if quick else [1, 2, 3, 4]),
        width=rj.static([16, 32]),
        activation=["tanh"] if quick else ["tanh", "relu"],
        centered=[False],
        learning_rate=np.geomspace(1e-4, 1e-1, 2 if quick else 8),
    )
    groups = len({tuple(p[n] for n in ("depth", "width", "activation")) for p in points})
    ahead = experiment.compile_ahead

    def run(compiled, cold):
        if cold:
            jax.clear_caches()
            program.clear_cache()
        experiment.compile_ahead = compiled
        try:
            start = time.perf_counter()
            result = rj.sweep(train, points, progress=False)
            return time.perf_counter() - start, result
        finally:
            experiment.compile_ahead = ahead

    compiles = []
    listen = lambda event, *_, **__: (
        compiles.append(event) if event.endswith("backend_compile_duration") else None
    )
    sides = {
        "one after another": lambda _: run(one_after_another, cold=True),
        "in threads": lambda _: run(ahead, cold=True),
    }
    results = interleaved(sides, 1 if quick else 5)
    expected = results["one after another"][0][1].metrics["loss"]
    for _, result in results["in threads"]:
        np.testing.assert_array_equal(result.metrics["loss"], expected)
    jax.monitoring.register_event_duration_secs_listener(listen)
    again = [run(ahead, cold=False)[0] for _ in range(1 if quick else 5)]
    yield (
        f"\n## {len(points)} trials of a small network in {groups} static groups\n\nSeconds "
        "include compile time. Each static group needs one program.\n"
    )
    yield header("compiles", "total s", "compile s (tracing and waiting)", "÷ in threads")
    base = np.median([seconds for seconds, _ in results["in threads"]])
    for name, runs in results.items():
        seconds = [s for s, _ in runs]
        held = [result.compile_seconds for _, result in runs]
        yield row(name, median(seconds), median(held), f"{np.median(seconds) / base:.2f}")
    what = f"the same call again ({len(compiles)} compiles)"
    yield row(what, median(again), "", f"{np.median(again) / base:.2f}")
