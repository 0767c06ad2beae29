"""The same 24 LSTM trials on one CPU device and on all: run seconds, compile apart, interleaved."""

import statistics
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

import rmsprop_jax as rj

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))


def main(quick: bool = False) -> None:
    from lstm_language_model import CharLSTM, evaluate, fit, load

    corpus = load(held_out=2_000 if quick else None)
    model = CharLSTM(len(corpus.characters), hidden=8 if quick else 64)
    steps = 10 if quick else 200

    def train(hp, key, text, validation):
        optimizer = rj.rmsprop(
            hp["learning_rate"], decay=hp["decay"], eps=1e-6, centered=hp["centered"]
        )
        params, losses = fit(model, optimizer, key, text, steps)
        return {"loss": losses, "validation": evaluate(model, params, validation)}

    rates = [1e-3, 1e-2] if quick else [1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
    points = rj.grid(
        learning_rate=rates,
        decay=[0.5, 0.9],
        centered=rj.static([False] if quick else [False, True]),
    )
    args = (jnp.asarray(corpus.train), jnp.asarray(corpus.validation))
    seconds = ([], [])
    for pair in range(1 if quick else 3):
        for i in (0, 1) if pair % 2 else (1, 0):
            devices = jax.devices()[:1] if i else jax.devices()
            result = rj.sweep(
                train, points, objective="validation", args=args, devices=devices, progress=False
            )
            seconds[i].append(result.run_seconds)
    all_, one = map(statistics.median, seconds)
    ratio = statistics.median(a / b for a, b in zip(*seconds, strict=True))
    print(f"\n## {len(points)} LSTM trials, {jax.device_count()} devices against one\n")
    print("| | run seconds, median |\n|---|---|")
    print(f"| one device | {one:.1f} |\n| {jax.device_count()} devices | {all_:.1f} |")
    print(f"\nRatio, median of {len(seconds[0])} interleaved pairs: {ratio:.2f}")
