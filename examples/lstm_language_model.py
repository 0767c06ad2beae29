"""A character language model, one LSTM, trained by RMSProp and by three neighbours.

Every optimiser gets the same budget: four learning rates, the same steps, batches and
first parameters. The rate is chosen on validation topics and the result reported on
test topics, by which nothing was chosen.
"""

import argparse
import functools
import operator
import os
import zlib
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import rmsprop_jax as rj

BATCH, LENGTH = 32, 64
OPTIMIZERS = {
    "rmsprop": (rj.rmsprop, [3e-3, 1e-2, 3e-2, 1e-1]),
    "sgd": (optax.sgd, [1.0, 3.0, 10.0, 30.0]),
    "adagrad": (optax.adagrad, [0.3, 1.0, 3.0, 10.0]),
    "adam": (optax.adam, [3e-3, 1e-2, 3e-2, 1e-1]),
}


class Corpus(NamedTuple):
    characters: str  # of the training text; symbol i is characters[i], and 0 is any other
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def encode(characters, text):
    symbols = {c: i for i, c in enumerate(characters)}
    return np.array([symbols.get(c, 0) for c in text], np.int32)


def load(path=None, held_out=None):
    """Each topic goes to one part; a repeated paragraph counts once, in the longest topic."""
    pieces, parts, seen = topics, {"train": [], "validation": [], "test": []}, set()
    if path is not None:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SystemExit(f"--text {path} is no readable UTF-8 file: {error}") from None
        size = len(text) // 50 + 1
        pieces = {f"piece {i}": text[i * size : (i + 1) * size] for i in range(50)}
    for name, text in sorted(pieces.items(), key=lambda item: -len(item[1])):
        part = {0: "test", 1: "validation"}.get(zlib.crc32(name.encode()) % 10, "train")
        for paragraph in text.split("\n\n"):
            words = " ".join(paragraph.split())
            if words and words not in seen:
                seen.add(words)
                parts[part].append(paragraph.strip("\n"))
    texts = {part: "\n\n".join(paragraphs) for part, paragraphs in parts.items()}
    for part, least in {"train": 10_000, "validation": 500, "test": 500}.items():
        if len(texts[part]) < least:
            raise SystemExit(
                f"{path or 'pydoc_data.topics'} is too short: without repetitions its {part} part "
                f"has {len(texts[part]):,} characters and needs {least:,}. Give a longer text."
            )
    characters = "\N{REPLACEMENT CHARACTER}" + "".join(sorted(set(texts["train"])))
    train, validation, test = (encode(characters, text) for text in texts.values())
    return Corpus(characters, train, validation[:held_out], test[:held_out])


class CharLSTM(nn.Module):
    symbols: int
    hidden: int = 64

    @nn.compact
    def __call__(self, x, memory=None):
        x = nn.Embed(self.symbols, 32)(x)
        lstm = nn.RNN(nn.OptimizedLSTMCell(self.hidden), return_carry=True)
        memory, x = lstm(x, initial_carry=memory)
        return memory, nn.Dense(self.symbols)(x)


def cross_entropy(params, model, windows):
    """Mean nats a character; each window starts with an empty memory."""
    _, logits = model.apply(params, windows[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()


def first(model, optimizer, key):
    """The parameters to begin with, and the optimiser's state."""
    params = model.init(key, jnp.zeros((1, 1), jnp.int32))
    return params, optimizer.init(params)


def step(model, optimizer, params, state, key, text):
    """One step on random windows of `text`: the new parameters and state, and the loss."""
    starts = jax.random.randint(key, (BATCH,), 0, len(text) - LENGTH)
    windows = text[starts[:, None] + jnp.arange(LENGTH + 1)]
    loss, gradient = jax.value_and_grad(cross_entropy)(params, model, windows)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, loss


def fit(model, optimizer, key, text, steps):
    """Trains for so many steps; returns the parameters and the loss of every step."""
    init_key, steps_key = jax.random.split(key)

    def one(carry, key):
        *carry, loss = step(model, optimizer, *carry, key, text)
        return tuple(carry), loss

    start = first(model, optimizer, init_key)
    (params, _), losses = jax.lax.scan(one, start, jax.random.split(steps_key, steps))
    return params, losses


def evaluate(model, params, text):
    """Nats a character over `text`, in windows side by side; an incomplete last one is left out."""
    starts = np.arange((len(text) - 1) // LENGTH) * LENGTH
    return cross_entropy(params, model, text[starts[:, None] + np.arange(LENGTH + 1)])


def sample(model, params, key, prompt, n):
    """`n` symbols that the model draws after `prompt`, one at a time; never the unknown one."""

    def draw(carry, key):
        memory, logits = carry
        symbol = jax.random.categorical(key, logits[:, -1:].at[..., 0].set(-jnp.inf))
        return model.apply(params, symbol, memory), symbol[0, 0]

    memory, logits = model.apply(params, jnp.asarray(prompt)[None])
    return jax.lax.scan(draw, (memory, logits[:, -1:]), jax.random.split(key, n))[1]


def unigram(corpus, text):
    """Nats a character of the best guess without context: the baseline."""
    counts = np.bincount(corpus.train, minlength=len(corpus.characters)) + 1
    return -np.log(counts / counts.sum())[text].mean()


def start(doc, output, argv, more=()):
    """What the LSTM scripts begin with: arguments (`more` for one only), devices, text, model."""
    parser = argparse.ArgumentParser(description=doc)
    add = parser.add_argument
    add("--quick", action="store_true", help="a tiny model, few steps, few settings: seconds")
    add("--text", metavar="FILE", help="learn this UTF-8 file instead of Python's help topics")
    add("--output", metavar="DIR", type=Path, help=f"default: {output}, quick_{output}")
    for flag, options in more:
        add(flag, **options)
    args = parser.parse_args(argv)
    args.output = args.output or Path("quick_" * args.quick + output)
    jax.config.update("jax_num_cpu_devices", os.cpu_count())  # before JAX is first used
    corpus = load(args.text, held_out=4_000 if args.quick else None)
    args.output.mkdir(parents=True, exist_ok=True)
    print(
        f"Text: {args.text or 'pydoc_data.topics'}; {corpus.train.size:,} characters to train on, "
        f"{corpus.validation.size:,} to choose by, {corpus.test.size:,} to test on."
    )
    return args, corpus, CharLSTM(len(corpus.characters), hidden=8 if args.quick else 64)


def main(argv=None):
    args, corpus, model = start(__doc__, "lstm_language_model_output", argv)
    steps, some = (10, slice(1, 3)) if args.quick else (300, slice(None))
    optimizers = list(OPTIMIZERS)[: 2 if args.quick else None]

    def train(hp, key, text, validation, test):
        optimizer = OPTIMIZERS[hp["optimizer"]][0](hp["learning_rate"])
        params, losses = fit(model, optimizer, key, text, steps)
        score = functools.partial(evaluate, model, params)
        return {"loss": losses, "validation": score(validation), "test": score(test)}

    grid = lambda name: rj.grid(optimizer=[name], learning_rate=OPTIMIZERS[name][1][some])
    points = functools.reduce(operator.add, map(grid, optimizers))
    print(f"Sweep: {len(points)} trainings of {steps} steps: {', '.join(optimizers)}.")
    data = jax.tree.map(jnp.asarray, corpus[1:])
    result = rj.sweep(train, points, objective="validation", args=data)
    print(f"Compiled in {result.compile_seconds:.1f} s, ran in {result.run_seconds:.1f} s.\n")
    table = result.to_dataframe()
    table.to_csv(args.output / "trials.csv", index=False)

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
    window = max(1, steps // 15)
    row = "{:10} {:>6} {:>11.3f} {:>7.3f} {:>10.2f}  {}".format
    print("optimiser    rate  validation    test  test bits  (else nats a character; one seed)")
    best = table[~table.failed].sort_values("objective").drop_duplicates("optimizer")
    for i, trial in best.iterrows():
        name, rate = trial.optimizer, f"{trial.learning_rate:.3g}"
        rates = table[table.optimizer == name].learning_rate
        edge = "edge of its rates" if trial.learning_rate in (rates.min(), rates.max()) else ""
        print(row(name, rate, trial.validation, trial.test, trial.test / np.log(2), edge))
        losses = np.convolve(result.metrics["loss"][i], np.ones(window) / window, "valid")
        ax.plot(np.arange(window, steps + 1), losses, label=f"{name}, learning rate {rate}")
    base = unigram(corpus, corpus.test)
    print(row("unigram", "", unigram(corpus, corpus.validation), base, base / np.log(2), ""))
    ax.set_title(f"each at the best of {len(points) // len(optimizers)} learning rates")
    ax.set(xlabel="step", ylabel=f"training loss, nats a character (mean of {window} steps)")
    ax.legend()
    plt.savefig(args.output / "curves.png", dpi=120)
    print(f"\nWrote {args.output / 'trials.csv'} and {args.output / 'curves.png'}.")


if __name__ == "__main__":
    main()
