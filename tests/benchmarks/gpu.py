"""Optimizer steps and sweeps on a GPU or TPU, with one command, from the source folder.

The command times steps on four trees, and sweeps of an LSTM and of a convolutional network at
several sizes. On a CPU, only the quick form runs.
"""

import functools
from collections.abc import Iterator

import jax

import rmsprop_jax as rj
from tests.benchmarks import convolution, sweep, trees


def convolutional(trials: int, steps: int) -> sweep.Work:
    def train(hp, key, x, labels):
        losses = convolution.train(hp, key, x, labels, steps)["loss"]
        return {"loss": losses, "validation": losses[-1]}

    return sweep.Work(train, rj.sample(sweep.SPACE, trials), convolution.pictures())


def main(quick: bool) -> Iterator[str]:
    device = jax.devices()[0]
    yield "\n## GPU"
    if device.platform == "cpu" and not quick:
        yield "\nNot run: JAX finds no GPU or TPU on this machine."
        return
    yield f"\n{device.device_kind}."
    yield from trees.main(quick)
    steps, rounds = (3, 1) if quick else (50, 3)
    for trials in (2,) if quick else (64, 512, 4096):
        # `loop` and `rebuilt` run a part of the points, and their seconds are scaled up.
        shares = {"rebuilt": min(8, trials), "loop": min(64, trials), "vmap": trials}
        for name, work in {
            "an LSTM": functools.partial(sweep.lstm, trials, steps, 8 if quick else 64),
            "a convolutional network": functools.partial(convolutional, trials, steps),
        }.items():
            sides = shares | {"ours": trials}
            if trials > 64:  # the smaller size shows the cost of a compile
                del sides["rebuilt"]
            yield (
                f"\n### {trials:,} points of {name}, {steps} steps each\n\nMedian (quartiles) of "
                f"{rounds} interleaved rounds. The seconds of a side that runs fewer points are "
                "scaled up.\n"
            )
            yield from sweep.sides_of(work(), sides, rounds)
