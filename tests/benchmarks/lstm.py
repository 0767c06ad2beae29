"""The character LSTM of the examples as a `Training`, for several benchmarks."""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import rmsprop_jax as rj

EPS = 1e-6  # with `centered`, the std can be almost 0, and 1e-8 would allow huge steps


def optimizer(hp: dict[str, Any]) -> optax.GradientTransformation:
    return rj.rmsprop(hp["learning_rate"], decay=hp["decay"], centered=hp["centered"], eps=EPS)


def lstm(
    hidden: int, evaluated: bool = True, held_out: int | None = None
) -> tuple[rj.Training, tuple[jax.Array, ...]]:
    """Return the training and its `args`: the training, validation, and test text.

    Args:
      hidden: the size of the LSTM.
      evaluated: whether the training has an `evaluate`.
      held_out: the number of characters of the validation and test text, or `None` for all.
    """
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    import _characters as example

    corpus = example.load(held_out=held_out)
    model = example.CharLSTM(len(corpus.characters), hidden)

    def init(hp, key, text, *held_out):
        return example.first(model, optimizer(hp), key)

    def step(hp, state, key, text, *held_out):
        *state, loss = example.step(model, optimizer(hp), *state, key, text)
        return tuple(state), {"loss": loss}

    def score(hp, state, key, text, validation, test):
        return {
            "validation": example.evaluate(model, state[0], validation),
            "test": example.evaluate(model, state[0], test),
        }

    training = rj.Training(init, step, score if evaluated else None)
    return training, tuple(map(jnp.asarray, corpus[1:]))
