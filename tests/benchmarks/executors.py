"""The cost of an executor: a sweep on the workers of a process pool, and on as many local devices.

Sides:

- local devices: one process with a CPU device per core;
- separate processes: each process of the pool sweeps a part of the points by itself, without an
  executor. Processes share no memory, so that they may slow each other more than devices do;
- workers: the same pool as an executor.

All sides train the same LSTM, and must give the same losses bit for bit. Each side first runs once
without a clock: the local side compiles, and every worker compiles. Then the sides take turns. The
table has the seconds of whole calls, and the run seconds of their results, without tracing and
exporting. The seconds in which the workers started and compiled are those of the first call.
"""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import jax
import numpy as np

import rmsprop_jax as rj
from tests.benchmarks.lstm import lstm
from tests.benchmarks.runner import Goal, goals_missed, header, interleaved, median, row

GOALS = {"workers": Goal("≤", 1.10)}
SPACE = {
    "learning_rate": rj.log_uniform(1e-3, 3e-2),
    "decay": rj.uniform(0.9, 0.99),
    "centered": rj.choice([False]),
}


class Call(NamedTuple):
    """A call of `rj.sweep`, or several side by side."""

    losses: np.ndarray
    run: float
    """The seconds without tracing and compiling."""
    seconds: float


def run(points: rj.Points, hidden: int, steps: int, executor: rj.Executor | None = None) -> Call:
    """Sweep these points."""
    training, args = lstm(hidden, evaluated=False, held_out=500)
    start = time.perf_counter()
    result = rj.sweep(
        training,
        points,
        steps=steps,
        evaluate_every=-(-steps // 3),
        args=args,
        executor=executor,
        keep_states=0,
        progress=False,
    )
    return Call(result.metrics["loss"], result.run_seconds, time.perf_counter() - start)


def main(quick: bool, hidden: int = 64, steps: int = 100, points: int = 32, rounds: int = 3):
    if quick:
        hidden, steps, points, rounds = 8, 6, 8, 1
    workers, drawn = len(jax.devices()), rj.sample(SPACE, points)
    size = -(-points // workers)

    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        executor = rj.Executor(pool, workers=workers, task_seconds=3)

        def separate(_):
            start = time.perf_counter()
            parts = [drawn[i : i + size] for i in range(0, points, size)]
            calls = [x.result() for x in [pool.submit(run, part, hidden, steps) for part in parts]]
            losses = np.concatenate([call.losses for call in calls])
            return Call(losses, max(call.run for call in calls), time.perf_counter() - start)

        sides = {
            "local devices": lambda _: run(drawn, hidden, steps),
            "separate processes": separate,
            "workers": lambda _: run(drawn, hidden, steps, executor),
        }
        first = interleaved(sides, 1)
        results = interleaved(sides, rounds)
    losses = first["local devices"][0].losses
    for call in (one for calls in [*first.values(), *results.values()] for one in calls):
        np.testing.assert_array_equal(call.losses, losses)

    yield (
        f"\n## An executor: {points} trials of an LSTM of {hidden} units, {steps} steps\n\n"
        f"*Local devices* is one process with {workers} CPU devices. *Workers* is a pool of "
        f"{workers} processes, with one CPU device each. *Separate processes* is the same pool, "
        "each process with a part of the points and a sweep of its own, without an executor. "
        "All sides give the same losses bit for bit. "
        "Each side ran once before. *First call* has the seconds of that call, in which the "
        f"programs compile and the workers start. All other seconds are medians (quartiles) of "
        f"{rounds} interleaved rounds.\n"
    )
    yield header("side", "first call s", "call s", "run s", "run ÷ local devices", "goal")
    local = np.array([call.run for call in results["local devices"]])
    ratios = {}
    for name, calls in results.items():
        seconds = np.array([call.run for call in calls])
        ratios[name] = float(np.median(seconds / local))
        yield row(
            name,
            f"{first[name][0].seconds:.2f}",
            median(call.seconds for call in calls),
            median(seconds),
            median(seconds / local, 3),
            GOALS.get(name, ""),
        )
    yield f"\n{goals_missed([(name, ratios[name], goal) for name, goal in GOALS.items()])}"
