"""The second moment and the parameters in two bytes: bytes, time, and final losses.

1. One optimizer step of ours compared with `optax.rmsprop` in float32. The step is jitted with
   donated buffers. It runs on one large array, and on the tree of an LSTM with an embedding, of
   about the same size. Parameters are float32 or bfloat16 (then with `rj.stochastic_rounding`).
2. Final losses of an LSTM and of a network with two layers. The state, or state and parameters, are
   in two bytes, rounded to nearest (Optax with a state cast to bfloat16) or stochastically. All
   variants use the learning rate that is best for float32.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rmsprop_jax as rj
from tests.benchmarks.runner import header, interleaved, median, row
from tests.benchmarks.step import stepping, train_step

BF16 = jnp.bfloat16


def up(dtype=jnp.float32):
    """Return a transformation that casts the gradients."""
    cast = lambda tree: jax.tree.map(lambda x: x.astype(dtype), tree)
    return optax.stateless(lambda g, _: cast(g))


def trees(size: int) -> dict[str, list[tuple[int, ...]]]:
    """Return the shapes of two trees of about `size` parameters."""
    hidden = max(8, int((size / 12) ** 0.5) // 8 * 8)
    gates = [(hidden, hidden)] * 8 + [(hidden,)] * 4
    return {
        "one array": [(size,)],
        "the tree of an LSTM": [(size // 3 // hidden, hidden), *gates],
    }


def compiled_for(solver, shapes, dtype):
    params = [jnp.ones(shape, dtype) for shape in shapes]
    grads = [jnp.full(shape, 1e-2, dtype) for shape in shapes]
    state = solver.init(params)
    return train_step(solver).lower(params, state, grads).compile(), (params, state, grads)


def steps(size: int, pairs: int):
    short = rj.rmsprop(1e-3, eps_in_sqrt=True, state_dtype="bfloat16")
    both = optax.chain(up(), short, rj.stochastic_rounding())
    rows = {
        "float32 parameters, float32 state": (rj.rmsprop(1e-3, eps_in_sqrt=True), jnp.float32),
        "float32 parameters, two-byte state": (short, jnp.float32),
        "two-byte parameters and state": (both, BF16),
    }
    yield (
        f"\n## One optimizer step in two bytes: about {size:,} parameters\n\n"
        "The comparison is with `optax.rmsprop` in float32. Times are medians (quartiles) of "
        f"{pairs} interleaved pairs.\n"
    )
    yield header(
        "tree", "variant", "bytes of state per parameter", "bytes accessed ÷ Optax",
        "temporary bytes", "time ÷ Optax",
    )  # fmt: skip
    for tree, shapes in trees(size).items():
        count = sum(map(np.prod, shapes))
        for name, (solver, dtype) in rows.items():
            theirs, carried = compiled_for(optax.rmsprop(1e-3), shapes, jnp.float32)
            ours, own = compiled_for(solver, shapes, dtype)
            state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(own[1])) / count
            bytes_ = [step.cost_analysis()["bytes accessed"] for step in (ours, theirs)]
            temporary = ours.memory_analysis().temp_size_in_bytes
            sides = {"ours": stepping(ours, *own), "optax": stepping(theirs, *carried)}
            del own, carried
            interleaved(sides, 2)
            seconds = interleaved(sides, pairs)
            ratio = np.divide(seconds["ours"], seconds["optax"])
            ratios = f"{bytes_[0] / bytes_[1]:.3f}"
            yield row(tree, name, f"{state:.2f}", ratios, f"{temporary:,}", median(ratio))


VARIANTS = ("float32", "nearest state", "stochastic state", "stochastic state and parameters")


def solver(hp):
    """Return the optimizer of a variant."""
    rate, decay, variant = hp["learning_rate"], hp["decay"], hp["variant"]
    if variant == "nearest state":  # as in Optax with bfloat16 parameters
        return nearest(optax.rmsprop(rate, decay))
    state_dtype = "bfloat16" if variant.startswith("stochastic") else None
    plain = rj.rmsprop(rate, decay, eps_in_sqrt=True, state_dtype=state_dtype)
    if "parameters" not in variant:
        return plain
    return optax.chain(up(), plain, rj.stochastic_rounding())


def nearest(inner):
    """Return `inner` with its float32 state stored in bfloat16, rounded to nearest."""
    cast = lambda tree, dtype: jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )

    def update(updates, state, params=None):
        updates, state = inner.update(updates, cast(state, jnp.float32), params)
        return updates, cast(state, BF16)

    return optax.GradientTransformation(lambda p: cast(inner.init(p), BF16), update)


def dtype_of(hp):
    return BF16 if "parameters" in hp["variant"] else jnp.float32


def narrow(params, hp):
    return jax.tree.map(lambda x: x.astype(dtype_of(hp)), params)


def wide(params):
    return jax.tree.map(lambda x: x.astype(jnp.float32), params)


def an_lstm(quick: bool):
    """Return the LSTM of the examples with its test loss, which is computed in float32."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    import _characters as example

    corpus = example.load(held_out=500 if quick else 8_000)
    model = example.CharLSTM(len(corpus.characters), 8 if quick else 32)

    def init(hp, key, text, held_out):
        params, _ = example.first(model, optax.sgd(0.1), key)
        params = narrow(params, hp)
        return params, solver(hp).init(params)

    def step(hp, state, key, text, held_out):
        params, opt_state = state
        starts = jax.random.randint(key, (example.BATCH,), 0, len(text) - example.LENGTH)
        windows = text[starts[:, None] + jnp.arange(example.LENGTH + 1)]
        loss_of = lambda p: example.cross_entropy(wide(p), model, windows)
        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = solver(hp).update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), {"loss": loss}

    def evaluate(hp, state, key, text, held_out):
        return {"end": example.evaluate(model, wide(state[0]), held_out)}

    args = jnp.asarray(corpus.train), jnp.asarray(corpus.test)
    return rj.Training(init, step, evaluate), args, [1e-3, 3e-3, 1e-2]


def a_net(quick: bool):
    """Return two layers that learn a smooth function, with the mean squared error on 2,000."""

    def truth(x):
        return jnp.sin(3 * x[:, 0]) * x[:, 1] + jnp.cos(2 * x[:, 2] + x[:, 3])

    def predict(params, x):
        (a, b), (c, d) = params
        return (jnp.tanh(x @ a + b) @ c + d)[:, 0]

    def error(params, x):
        return jnp.mean((predict(params, x) - truth(x)) ** 2)

    def init(hp, key):
        first, second = jax.random.split(key)
        layer = lambda key, n, m: (jax.random.normal(key, (n, m)) / n**0.5, jnp.zeros(m))
        params = narrow((layer(first, 8, 64), layer(second, 64, 1)), hp)
        return params, solver(hp).init(params)

    def step(hp, state, key):
        params, opt_state = state
        x = jax.random.normal(key, (64, 8))
        loss, grads = jax.value_and_grad(lambda p: error(wide(p), x))(params)
        updates, opt_state = solver(hp).update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), {"loss": loss}

    def evaluate(hp, state, key):
        return {"end": error(wide(state[0]), jax.random.normal(jax.random.key(7), (2_000, 8)))}

    return rj.Training(init, step, evaluate), (), [3e-4, 1e-3, 3e-3]


def endings(quick: bool):
    decays, seeds = ([0.9], 1) if quick else ([0.9, 0.99, 0.999], 3)
    titles = "Final test loss of an LSTM", "Final error of a network with two layers"
    for title, make, count in zip(titles, (an_lstm, a_net), (600, 6_000), strict=True):
        training, args, rates = make(quick)
        points = rj.grid(
            variant=list(VARIANTS), decay=decays, learning_rate=rates[:1] if quick else rates
        )
        result = rj.sweep(
            training, points, seeds=seeds, steps=6 if quick else count, objective="end", args=args,
            progress=False, keep_states=0,
        )  # fmt: skip
        table = result.to_dataframe()
        yield (
            f"\n## {title}\n\nMean ± std of {seeds} seeds, at the learning rate that is best "
            "for float32.\n"
        )
        yield header("decay", "learning rate", *VARIANTS)
        for decay in decays:
            mine = table[table.decay == decay]
            full = mine[mine.variant == "float32"].groupby("learning_rate").objective.mean()
            rate = full.idxmin()
            cells = []
            for variant in VARIANTS:
                found = mine[(mine.variant == variant) & (mine.learning_rate == rate)].objective
                cells.append(f"{found.mean():.5f} ± {found.std(ddof=min(1, len(found) - 1)):.5f}")
            yield row(decay, rate, *cells)


def main(quick: bool, size: int = 1 << 25, pairs: int = 25):
    if quick:
        size, pairs = 1 << 12, 2
    yield from steps(size, pairs)
    yield from endings(quick)
