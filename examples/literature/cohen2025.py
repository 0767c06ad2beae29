"""RMSProp trains at the edge of stability. Cohen et al., "Central flows", ICLR 2025.

For a quadratic loss with the Hessian H, the step θ ← θ − P⁻¹ g is stable while the largest
eigenvalue of P⁻¹ H, the effective sharpness, is below 2. RMSProp has P = diag(√ŝ + ε)/η. ŝ holds
the gradient at θ already, and is corrected for its start at 0.

A small network learns a polynomial from all its data at once. Every 20 steps, power iteration
gives the effective sharpness. At three steps, `eigvalsh` of the whole matrix checks it.
"""

import argparse
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.flatten_util import ravel_pytree

import rmsprop_jax as rj

STATEMENT = """\
The paper: the effective sharpness of RMSProp rises to about 2 and stays there, and the steps become
shorter where the loss is sharp, because the oscillation makes √s larger."""
EVERY = 20  # steps between two measurements
WIDTH = 24  # 673 parameters
BASE = {"rate": 1e-4, "forget": 0.01, "eps": 1e-8}  # forget is 1 − ρ
CHANGES = {"forget": [0.1, 0.001], "rate": [3e-5, 3e-4], "eps": [1e-4, 1e-3]}

X = np.linspace(-1, 1, 20)[:, None]
Y = np.cos(4 * np.arccos(X[:, 0]))  # the fourth Chebyshev polynomial


def start(key):
    keys = jax.random.split(key, 3)
    sizes = (1, WIDTH), (WIDTH, WIDTH), (WIDTH, 1)
    return [
        (jax.random.normal(key, size) / size[0] ** 0.5, jnp.zeros(size[1]))
        for key, size in zip(keys, sizes, strict=True)
    ]


def loss(flat):
    unflatten = ravel_pytree(start(jax.random.key(0)))[1]
    (w1, b1), (w2, b2), (w3, b3) = unflatten(flat)
    hidden = jnp.tanh(jnp.tanh(X @ w1 + b1) @ w2 + b2)
    return jnp.mean(((hidden @ w3 + b3)[:, 0] - Y) ** 2)


gradient = jax.grad(loss)


def divisor(hp, rms, flat, state):
    """Return the diagonal of P at θ, with the gradient at θ in the average."""
    _, state = rms.update(gradient(flat), state)
    return (jnp.sqrt(state.nu) + hp["eps"]) / hp["rate"]  # `nu` is corrected


def scaled_hessian(p, flat, vector):
    """Return P^(−1/2) H P^(−1/2) v, which has the eigenvalues of P⁻¹ H and is symmetric."""
    root = jax.lax.rsqrt(p)
    return root * jax.jvp(gradient, (flat,), (root * vector,))[1]


def sharpness(p, flat, vector, steps=60):
    """Return the largest eigenvalue and its vector, by power iteration from `vector`.

    A shift by 1 keeps the largest positive eigenvalue in front of a negative one.
    """

    def step(carry, _):
        vector, _ = carry
        moved = scaled_hessian(p, flat, vector) + vector
        return (moved / jnp.linalg.norm(moved), vector @ moved - 1), None

    (vector, value), _ = jax.lax.scan(step, (vector, jnp.zeros(())), None, length=steps)
    return value, vector


def run(hp, key, steps):
    """Return the losses, the sharpnesses, the parameters, and P, each after `EVERY` steps."""
    rms = rj.scale_by_rms(1 - hp["forget"], hp["eps"], bias_correction=True)
    flat, _ = ravel_pytree(start(key))
    vector = jax.random.normal(jax.random.fold_in(key, 1), flat.shape)

    def step(carry, _):
        flat, state = carry
        direction, state = rms.update(gradient(flat), state)
        return (flat - hp["rate"] * direction, state), None

    def block(carry, _):
        flat, state, vector = carry
        (flat, state), _ = jax.lax.scan(step, (flat, state), None, length=EVERY)
        p = divisor(hp, rms, flat, state)
        value, vector = sharpness(p, flat, vector)
        return (flat, state, vector), (loss(flat), value, flat, p)

    carry = flat, rms.init(flat), vector / jnp.linalg.norm(vector)
    return jax.lax.scan(block, carry, None, length=steps // EVERY)[1]


def train(hp, key, steps):
    losses, values, _, _ = run(hp, key, steps)
    return {"loss": losses, "sharpness": values, "settled": values[-len(values) // 4 :].mean()}


def exact(p, flat):
    """Return the largest eigenvalue from the whole matrix."""
    rows = jax.vmap(lambda v: scaled_hessian(p, flat, v))(jnp.eye(len(flat)))
    return np.linalg.eigvalsh(np.asarray(rows, np.float64))[-1]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps: seconds")
    parser.add_argument("--output", type=Path, default="cohen2025_output")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_num_cpu_devices", os.cpu_count())  # before JAX is first used
    steps, seeds = (1000, 1) if args.quick else (20_000, 3)

    points = [BASE] + [BASE | {name: x} for name, values in CHANGES.items() for x in values]
    done = rj.sweep(
        lambda hp, key: train(hp, key, steps),
        points,
        seeds=seeds,
        objective="settled",
        progress=False,
    )
    # The first trial again, for its parameters: a trial equals `jax.jit` of its function.
    first = jax.jit(run, static_argnames="steps")
    _, values, flats, ps = first(BASE, jax.random.key(0), steps=steps)
    by_point = lambda name: done.metrics[name].reshape(len(points), seeds, -1)
    table = pd.DataFrame(points)
    table.insert(0, "ρ", 1 - table.pop("forget"))
    table = table.rename(columns={"rate": "η", "eps": "ε"})
    settled = by_point("settled")[..., 0]
    table["sharpness"] = settled.mean(1)
    table["least"], table["most"] = settled.min(1), settled.max(1)
    table["loss"] = by_point("loss")[..., -1].mean(1)
    table.to_csv(args.output / "sharpness.csv", index=False)
    print(
        f"{STATEMENT}\n\nHere: {len(flats[0])} parameters, {steps:,} steps. The effective "
        f"sharpness is the mean of the last\nquarter, over {seeds} seeds, with the seeds' least "
        "and most.\n"
    )
    print(table.to_string(index=False, float_format="{:.3g}".format))

    print("\nThe first row, seed 0, checked by eigvalsh:\n")
    for k in (len(values) // 8, len(values) // 2, len(values) - 1):
        found = exact(ps[k], flats[k])
        print(f"step {(k + 1) * EVERY}: power iteration {values[k]:.4f}, eigvalsh {found:.4f}")

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 1, figsize=(6.5, 8.5), sharex=True, layout="constrained")
    at = np.arange(1, steps // EVERY + 1) * EVERY
    titles = {"forget": "ρ", "rate": "η", "eps": "ε"}
    for ax, name in zip(axes, CHANGES, strict=True):
        settings = sorted([BASE[name], *CHANGES[name]])
        for x, color in zip(settings, ("#56B4E9", "#0072B2", "#000000"), strict=True):
            k = points.index(BASE | {name: x})
            shown = 1 - x if name == "forget" else x
            ax.plot(
                at,
                by_point("sharpness")[k, 0],
                color=color,
                lw=1,
                label=f"{titles[name]} = {shown:g}",
            )
        ax.axhline(2, color="#D55E00", ls="--", lw=1.2)
        ax.set(ylim=(0, 3.5), ylabel="effective sharpness")
        ax.legend(loc="lower right")
    axes[-1].set_xlabel("step")
    figure.savefig(args.output / "cohen2025.png", dpi=110)
    print("Wrote sharpness.csv and cohen2025.png.")


if __name__ == "__main__":
    main()
