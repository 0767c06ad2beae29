"""What an accelerator is for, in one command, from the source folder and without an installation:
steps of four trees, and sweeps of an LSTM and of a convolutional net at several sizes.

Where JAX finds a CPU only, just the quick form runs: the figures would be of another machine.
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
    yield "\n## On an accelerator"
    if device.platform == "cpu" and not quick:
        yield "\nNot run: JAX finds no accelerator here."
        return
    yield f"\n{device.device_kind}."
    yield from trees.main(quick)
    steps, rounds = (3, 1) if quick else (50, 3)
    for trials in (2,) if quick else (64, 512, 4096):
        # The loop runs a part, and the rebuilding one 8; the seconds of the whole are scaled.
        shares = {"rebuilt": min(8, trials), "loop": min(64, trials), "vmap": trials}
        for name, work in {
            "an LSTM": functools.partial(sweep.lstm, trials, steps, 8 if quick else 64),
            "a convolutional net": functools.partial(convolutional, trials, steps),
        }.items():
            sides = shares | {"ours": trials}
            if trials > 64:  # what a compile costs is known by then
                del sides["rebuilt"]
            yield (
                f"\n### {trials:,} settings of {name}, {steps} steps each\n\nMedian (quartiles) of "
                f"{rounds} interleaved rounds; a side that runs fewer settings is scaled.\n"
            )
            yield from sweep.sides_of(work(), sides, rounds)
