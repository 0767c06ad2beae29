"""The cost of an executor: a sweep on the workers of a process pool, and on as many local devices.

Both sides train the same LSTM, and must give the same losses bit for bit. Each side first runs once
without a clock: the local side compiles, and every worker compiles. Then the sides take turns. The
table has the seconds of whole calls, and the run seconds of their results, without tracing and
exporting. The seconds in which the workers started and compiled are those of the first call.
"""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import jax
import numpy as np

import rmsprop_jax as rj
from tests.benchmarks.lstm import lstm
from tests.benchmarks.runner import Goal, goals_missed, header, interleaved, median, row

GOAL = Goal("≤", 1.10)


def main(quick: bool, hidden: int = 64, steps: int = 300, points: int = 64, rounds: int = 3):
    if quick:
        hidden, steps, points, rounds = 8, 6, 8, 1
    workers = len(jax.devices())
    space = {
        "learning_rate": rj.log_uniform(1e-3, 3e-2),
        "decay": rj.uniform(0.9, 0.99),
        "centered": rj.choice([False]),
    }
    training, args = lstm(hidden, evaluated=False, held_out=500)

    def run(executor):
        start = time.perf_counter()
        result = rj.sweep(
            training,
            rj.sample(space, points),
            steps=steps,
            evaluate_every=-(-steps // 3),
            args=args,
            executor=executor,
            keep_states=0,
            progress=False,
        )
        return result, time.perf_counter() - start

    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        executor = rj.Executor(pool, workers=workers, task_seconds=10)
        sides = {"local devices": lambda _: run(None), "workers": lambda _: run(executor)}
        first = interleaved(sides, 1)
        results = interleaved(sides, rounds)
    losses = first["local devices"][0][0].metrics["loss"]
    for result, _ in (one for runs in [*first.values(), *results.values()] for one in runs):
        np.testing.assert_array_equal(result.metrics["loss"], losses)

    yield (
        f"\n## An executor: {points} trials of an LSTM of {hidden} units, {steps} steps\n\n"
        f"*Local devices* is one process with {workers} CPU devices. *Workers* is a pool of "
        f"{workers} processes, with one CPU device each. Both give the same losses bit for bit. "
        "Each side ran once before. *First call* has the seconds of that call, in which the "
        f"programs compile and the workers start. All other seconds are medians (quartiles) of "
        f"{rounds} interleaved rounds.\n"
    )
    yield header("side", "first call s", "call s", "run s", "run ÷ local devices", "goal")
    local = np.array([result.run_seconds for result, _ in results["local devices"]])
    ratio = 1.0
    for name, runs in results.items():
        seconds = np.array([result.run_seconds for result, _ in runs])
        ratio = float(np.median(seconds / local))
        yield row(
            name,
            f"{first[name][0][1]:.2f}",
            median(second for _, second in runs),
            median(seconds),
            median(seconds / local, 3),
            GOAL if name == "workers" else "",
        )
    yield f"\n{goals_missed([('workers', ratio, GOAL)])}"
