"""What it costs that a training can be seen, stopped and kept: segments beside one whole `train`.

All sides train the same LSTM in the same steps, and must give the same losses bit for bit. Sides:

- whole: a function `train`, all steps in one `lax.scan`;
- one segment: a `Training`, looked at after its last step only;
- segments: looked at every so many steps;
- segments, on disk: the same with a `path`, and the default seconds between checkpoints;
- one segment, again: what differs between two runs of the same.

Compiling is left out of the seconds: each side runs once before the rounds that count. The compiles
of that run and of the later ones are counted: one for `train`, two (`init`, a segment) for a
`Training`, none for programs that an earlier side of this process has compiled.
"""

import tempfile
from pathlib import Path

import jax
import numpy as np

import rmsprop_jax as rj
from rmsprop_jax._tune.compile import compiled as program
from tests.benchmarks.lstm import lstm
from tests.benchmarks.runner import header, interleaved, median, row

WANTED = {"whole": "about 1", "segments": "≤ 1.03", "segments, on disk": "≤ 1.05"}


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
    for result, _ in (one for each in results.values() for one in each):
        np.testing.assert_array_equal(result.metrics["loss"], losses)

    yield (
        f"\n## {len(points)} trials of an LSTM of {hidden} units, {steps} steps: whole, and in "
        f"segments of {every}\n\nMedian (quartiles) of {rounds} interleaved rounds.\n"
    )
    yield header("side", "compiles", "later", "run s", "÷ one segment", "wanted")
    base = [result.run_seconds for result, _ in results["one segment"]]
    for name, each in results.items():
        seconds = [result.run_seconds for result, _ in each]
        yield row(
            name,
            first[name][0][1],
            sum(compiled for _, compiled in each),
            median(seconds),
            median(np.divide(seconds, base), 3),
            WANTED.get(name, ""),
        )
