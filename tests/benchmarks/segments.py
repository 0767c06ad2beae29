"""The cost of segments: a `Training` in segments compared with one whole `train` function.

All sides train the same LSTM in the same steps, and must give the same losses bit for bit. Sides:

- whole: a function `train`, with all steps in one `lax.scan`;
- one segment: a `Training` that is evaluated after its last step only;
- segments: a `Training` with several evaluation steps;
- segments, on disk: the same with a `path`, and the default time between checkpoints;
- one segment, again: the difference between two equal runs.

The seconds exclude compile time, because each side first runs once without a clock. The benchmark
counts the compiles of this first run and of the later runs: one for `train`, two for a `Training`
(`init` and a segment), and none for programs that an earlier side has compiled.
"""

import tempfile
from pathlib import Path

import jax
import numpy as np

import rmsprop_jax as rj
from rmsprop_jax._tune.compile import compiled as program
from tests.benchmarks.lstm import lstm
from tests.benchmarks.runner import Goal, goals_missed, header, interleaved, median, row

GOALS = {"segments": Goal("≤", 1.03, 3), "segments, on disk": Goal("≤", 1.05, 3)}


def main(quick: bool, hidden: int = 64, steps: int = 300, every: int = 20, rounds: int = 5):
    if quick:
        hidden, steps, every, rounds = 8, 6, 3, 1
    points = rj.grid(
        learning_rate=np.geomspace(1e-3, 3e-2, 2 if quick else 4), decay=[0.9, 0.99],
        centered=[False],
    )  # fmt: skip
    training, args = lstm(hidden, evaluated=False, held_out=500)
    whole = lambda hp, key, *args: training.run(hp, key, *args, steps=steps)[1]

    compiles = []

    def listen(event, seconds, fun_name="", **_):
        if event.endswith("backend_compile_duration") and fun_name == "jit(wave)":
            compiles.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)

    def run(train, on_disk=False, **options):
        before = len(compiles)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "sweep") if on_disk else None
            result = rj.sweep(train, points, args=args, path=path, progress=False, **options)
        return result, len(compiles) - before

    segment = lambda _: run(training, steps=steps, evaluate_every=steps)
    segments = {"steps": steps, "evaluate_every": every}
    sides = {
        "whole": lambda _: run(whole),
        "one segment": segment,
        "segments": lambda _: run(training, **segments),
        "segments, on disk": lambda _: run(training, on_disk=True, **segments),
        "one segment, again": segment,
    }
    program.clear_cache()
    first = interleaved(sides, 1)
    results = interleaved(sides, rounds)
    losses = first["whole"][0][0].metrics["loss"]
    for result, _ in (run for runs in results.values() for run in runs):
        np.testing.assert_array_equal(result.metrics["loss"], losses)

    yield (
        f"\n## Cost of segments: {len(points)} trials of an LSTM of {hidden} units, {steps} steps"
        "\n\n*Whole* is a function `train`. *One segment* is a `Training` that is evaluated once, "
        f"at the end. *Segments* is the same `Training`, evaluated every {every} steps. *On disk* "
        "adds a `path`. Seconds exclude compile time, and are medians (quartiles) of "
        f"{rounds} interleaved rounds.\n"
    )
    yield header("side", "compiles", "later compiles", "run s", "÷ one segment", "goal")
    base, measured = [result.run_seconds for result, _ in results["one segment"]], []
    for name, each in results.items():
        seconds = [result.run_seconds for result, _ in each]
        ratios = np.divide(seconds, base)
        if name in GOALS:
            measured.append((name, float(np.median(ratios)), GOALS[name]))
        yield row(
            name,
            first[name][0][1],
            sum(compiled for _, compiled in each),
            median(seconds),
            median(ratios, 3),
            GOALS.get(name, ""),
        )
    yield "\n" + goals_missed(measured)
