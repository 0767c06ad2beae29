"""The parts that the LSTM examples share: a text, a character model, and its training."""

import argparse
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

BATCH, LENGTH = 32, 64


class Corpus(NamedTuple):
    characters: str  # of the training text: symbol i is characters[i], and 0 any other character
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def encode(characters, text):
    symbols = {c: i for i, c in enumerate(characters)}
    return np.array([symbols.get(c, 0) for c in text], np.int32)


def load(path=None, held_out=None):
    """Return the text as symbols, split into training, validation, and test.

    Each help topic goes to one split. A repeated paragraph counts once, in the longest topic.
    """
    pieces, parts, seen = topics, {"train": [], "validation": [], "test": []}, set()
    if path is not None:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SystemExit(
                f"--text must be a readable UTF-8 file, got {path}: {error}. Pass another file."
            ) from None
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
                f"{path or 'pydoc_data.topics'} must have at least {least:,} characters in its "
                f"{part} split, got {len(texts[part]):,} without repeated paragraphs. Pass a "
                "longer text."
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
    """Return the mean loss in nats per character. Each window starts with an empty LSTM state."""
    _, logits = model.apply(params, windows[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()


def first(model, optimizer, key):
    """Return the initial parameters and optimizer state."""
    params = model.init(key, jnp.zeros((1, 1), jnp.int32))
    return params, optimizer.init(params)


def step(model, optimizer, params, state, key, text):
    """Take one step on random windows of `text`. Return the parameters, the state, and the loss."""
    starts = jax.random.randint(key, (BATCH,), 0, len(text) - LENGTH)
    windows = text[starts[:, None] + jnp.arange(LENGTH + 1)]
    loss, gradient = jax.value_and_grad(cross_entropy)(params, model, windows)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, loss


def fit(model, optimizer, key, text, steps):
    """Train for `steps` steps. Return the parameters and the loss of every step."""
    init_key, steps_key = jax.random.split(key)

    def one(carry, key):
        *carry, loss = step(model, optimizer, *carry, key, text)
        return tuple(carry), loss

    start = first(model, optimizer, init_key)
    (params, _), losses = jax.lax.scan(one, start, jax.random.split(steps_key, steps))
    return params, losses


def evaluate(model, params, text):
    """Return the loss over consecutive windows of `text`, without an incomplete last window."""
    starts = np.arange((len(text) - 1) // LENGTH) * LENGTH
    return cross_entropy(params, model, text[starts[:, None] + np.arange(LENGTH + 1)])


def sample(model, params, key, prompt, n):
    """Draw `n` symbols after `prompt`, one at a time, and never the symbol 0."""

    def draw(carry, key):
        memory, logits = carry
        symbol = jax.random.categorical(key, logits[:, -1:].at[..., 0].set(-jnp.inf))
        return model.apply(params, symbol, memory), symbol[0, 0]

    memory, logits = model.apply(params, jnp.asarray(prompt)[None])
    return jax.lax.scan(draw, (memory, logits[:, -1:]), jax.random.split(key, n))[1]


def unigram(corpus, text):
    """Return the loss of the character frequencies, which use no context: the baseline."""
    counts = np.bincount(corpus.train, minlength=len(corpus.characters)) + 1
    return -np.log(counts / counts.sum())[text].mean()


def start(doc, output, argv, more=()):
    """Return the arguments of an LSTM script, its text, and its model, and set up the devices."""
    parser = argparse.ArgumentParser(description=doc)
    add = parser.add_argument
    add("--quick", action="store_true", help="a tiny model, few steps, and few points: seconds")
    add("--text", metavar="FILE", help="train on this UTF-8 file instead of Python's help topics")
    add("--output", metavar="DIR", type=Path, help=f"default: {output}, quick_{output}")
    for flag, options in more:
        add(flag, **options)
    args = parser.parse_args(argv)
    args.output = args.output or Path("quick_" * args.quick + output)
    jax.config.update("jax_num_cpu_devices", os.cpu_count())  # before JAX is first used
    corpus = load(args.text, held_out=4_000 if args.quick else None)
    args.output.mkdir(parents=True, exist_ok=True)
    print(
        f"Text: {args.text or 'pydoc_data.topics'}; {corpus.train.size:,} training, "
        f"{corpus.validation.size:,} validation, and {corpus.test.size:,} test characters."
    )
    return args, corpus, CharLSTM(len(corpus.characters), hidden=8 if args.quick else 64)
