"""Run trials side by side, each on two devices: a transformer whose parameters are split.

Eight devices form a mesh of 4 × 2: four trials run at a time, each on two devices. On a computer
without accelerators, JAX shows the CPU as eight devices. Successive halving ends the worse half of
the points after 50 steps, and the worse half of the others after 100.

At the end, the same trials run on one device each. This is faster wherever a trial fits one device.

The matrices of a block are split as in Megatron-LM (https://arxiv.org/abs/1909.08053): the first of
two by columns, the second by rows. The devices of a trial then add up one array after each pair.
The state of RMSProp is split like the parameters, because its init keeps their sharding.
"""

import argparse
import re
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _characters import BATCH, LENGTH, load, unigram
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

import rmsprop_jax as rj

TRIALS, DEVICES = 4, 2  # trials side by side, and devices of each
HEADS = 4
COLUMNS, ROWS = P(None, "model"), P("model", None)
SPLIT = {
    "query": COLUMNS,
    "key": COLUMNS,
    "value": COLUMNS,
    "out": ROWS,
    "up": COLUMNS,
    "down": ROWS,
}
COLLECTIVE = re.compile(r"= \S+ (all-reduce|all-gather|all-to-all|collective-permute)\(")


def split(params):
    """Return the parameters with the matrices of the blocks split over the devices of a trial."""
    constrained = jax.lax.with_sharding_constraint
    return {n: constrained(x, SPLIT[n]) if n in SPLIT else x for n, x in params.items()}


def whole(params):
    """Return the parameters as they are, for a trial on one device."""
    return params


def initial(key, symbols, width):
    shapes = {
        "embedding": (symbols, width),
        "position": (LENGTH, width),
        **dict.fromkeys(("query", "key", "value", "out"), (width, width)),
        "up": (width, 4 * width),
        "down": (4 * width, width),
        "logits": (width, symbols),
    }
    keys = jax.random.split(key, len(shapes))
    draw = lambda key, shape: jax.random.normal(key, shape) / shape[0] ** 0.5
    return {n: draw(k, shape) for k, (n, shape) in zip(keys, shapes.items(), strict=True)}


def norm(x):
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def loss(params, windows):
    """Return the mean loss in nats per character of one transformer block."""
    x = params["embedding"][windows[:, :-1]] + params["position"]
    heads = lambda name: (norm(x) @ params[name]).reshape(*x.shape[:2], HEADS, -1)
    seen = jax.nn.dot_product_attention(
        heads("query"), heads("key"), heads("value"), is_causal=True
    )
    x = x + seen.reshape(x.shape) @ params["out"]
    x = x + jax.nn.gelu(norm(x) @ params["up"]) @ params["down"]
    logits = norm(x) @ params["logits"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()


def windows_at(text, starts):
    return text[starts[:, None] + jnp.arange(LENGTH + 1)]


def trainer(symbols, width, place):
    """Return the training. Its args are the training and the validation text.

    `place` is `split` or `whole`.
    """
    solver = lambda hp: rj.rmsprop(hp["learning_rate"], decay=hp["decay"])

    def init(hp, key, text, validation):
        params = place(initial(key, symbols, width))
        return params, solver(hp).init(params)

    def step(hp, state, key, text, validation):
        params, opt_state = state
        starts = jax.random.randint(key, (BATCH,), 0, len(text) - LENGTH)
        value, gradient = jax.value_and_grad(loss)(params, windows_at(text, starts))
        updates, opt_state = solver(hp).update(place(gradient), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), {"loss": value}

    def evaluate(hp, state, key, text, validation):
        starts = jnp.arange(min(64, (len(validation) - 1) // LENGTH)) * LENGTH
        return {"validation": loss(state[0], windows_at(validation, starts))}

    return rj.Training(init, step, evaluate)


def collectives(training, mesh, args):
    """Return how often the devices of a trial exchange data in one step, by kind."""
    hp, key = {"learning_rate": 0.01, "decay": 0.9}, jax.random.key(0)
    submesh = Mesh(mesh.devices[0], ("model",))
    with jax.set_mesh(submesh):
        state = jax.jit(training.init)(hp, key, *args)
        text = jax.jit(training.step).lower(hp, state, key, *args).compile().as_text()
    return Counter(COLLECTIVE.findall(text))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model and few steps: seconds")
    parser.add_argument("--output", metavar="DIR", type=Path, help="default: sharded_output")
    args = parser.parse_args(argv)
    output = args.output or Path("quick_" * args.quick + "sharded_output")
    output.mkdir(parents=True, exist_ok=True)
    width, steps, first = (8, 16, 4) if args.quick else (128, 200, 50)

    jax.config.update("jax_num_cpu_devices", TRIALS * DEVICES)  # before JAX is first used
    devices = np.array(jax.devices()[: TRIALS * DEVICES]).reshape(TRIALS, DEVICES)
    mesh = Mesh(devices, ("trial", "model"), axis_types=(AxisType.Auto,) * 2)
    corpus = load(held_out=4_000 if args.quick else None)
    text, validation = jnp.asarray(corpus.train), jnp.asarray(corpus.validation)
    training = trainer(len(corpus.characters), width, split)

    points = rj.grid(learning_rate=[3e-4, 1e-3, 3e-3, 1e-2], decay=[0.9, 0.99])
    options = {
        "steps": steps,
        "evaluate_every": first // 2,
        "scheduler": rj.SuccessiveHalving(reduction_factor=2, min_steps=first),
        "objective": "validation",
        "args": (text, validation),
    }
    result = rj.sweep(training, points, mesh=mesh, path=output / "sweep", **options)
    print(f"{len(points)} points, {TRIALS} at a time, each on {DEVICES} devices.\n{result}")
    best = result.best()
    print(
        f"Best: {best.point}, validation loss {best.objective:.3f} nats per character (character "
        f"frequencies alone: {unigram(corpus, corpus.validation):.3f})."
    )

    params, opt_state = result.state(best, mesh=mesh)
    print(f"\n{'state':34}{'shape':>14}{'bytes':>10}{'on each device':>16}")
    rows = ["state,shape,bytes,bytes on each device"]
    total = Counter()
    leaves = jax.tree_util.tree_leaves_with_path({"params": params, "rmsprop": opt_state})
    for path, x in leaves:
        name, shard = jax.tree_util.keystr(path), x.addressable_shards[0].data
        print(f"{name:34}{x.shape!s:>14}{x.nbytes:10,}{shard.nbytes:16,}")
        rows.append(f'{name},"{x.shape}",{x.nbytes},{shard.nbytes}')
        total += Counter(whole=x.nbytes, shard=shard.nbytes)
    print(f"{'in all':48}{total['whole']:10,}{total['shard']:16,}")
    (output / "bytes.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    found = collectives(training, mesh, (text, validation))
    listed = ", ".join(f"{count} × {kind}" for kind, count in found.items())
    print(f"\nIn one step, the devices of a trial exchange data by {listed}.")

    alone = rj.sweep(trainer(len(corpus.characters), width, whole), points, **options)
    print(
        f"The trials ran {result.run_seconds:.1f} s. The same trials on one device each, "
        f"{TRIALS * DEVICES} at a time, ran {alone.run_seconds:.1f} s, with the best point "
        f"{alone.best().point} and a validation loss of {alone.best().objective:.3f}."
    )

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rc("font", size=11)  # so that the "small" font of a legend has 9 points
    rj.plots.curves(result, "validation", ax=plt.figure(layout="constrained").gca())
    plt.savefig(output / "sharded_trials.png", dpi=110)
    for name in ("bytes.csv", "sharded_trials.png"):
        print(f"Wrote {output / name}")


if __name__ == "__main__":
    main()
