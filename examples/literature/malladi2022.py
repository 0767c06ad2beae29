"""From a batch to a batch that is κ times larger. Malladi et al., NeurIPS 2022.

The square-root scaling rule for RMSProp: multiply the learning rate by √κ and 1 − ρ by κ, divide ε
(outside the root) by √κ, and take 1/κ of the steps. Then both trainings follow the same stochastic
differential equation, if the gradient is mostly noise.

The task is linear regression with 32 parameters, fresh data at every step, and noise in the labels.
The script trains with a batch of 4, and with a batch of 64 by four rules, and compares the loss on
which they settle. Without noise in the labels, the rule has no reason to hold.
"""

import argparse
import os
from pathlib import Path

import jax
import numpy as np
import pandas as pd

import rmsprop_jax as rj

STATEMENT = """\
The paper: if the gradient is mostly noise, a batch κ times larger trains in the same way with η √κ,
1 − κ (1 − ρ), and ε/√κ, in steps/κ. The linear rule, η κ, is that of SGD."""
PARAMETERS, BATCH, KAPPA = 32, 4, 16
RATE, FORGET = 0.001, 0.05 / KAPPA  # forget is 1 − ρ
NOISE = 1.0  # the standard deviation of the labels' noise
AWAY = 0.1  # of each parameter at the start, so that the noise dominates from there
SHOWN = 20  # the picture has the first 1/20 of the steps
RULES = {  # the powers of κ by which η, 1 − ρ, and ε are multiplied
    "square root": (0.5, 1, -0.5),
    "square root, same ε": (0.5, 1, 0),
    "linear": (1, 1, -0.5),
    "unchanged": (0, 0, 0),
}


def train(hp, key, steps, batch):
    """Return the loss above the floor, at first and at the end. The noise makes the floor."""
    key_truth, key_start, key_steps = jax.random.split(key, 3)
    truth = jax.random.normal(key_truth, (PARAMETERS,))
    solver = rj.rmsprop(hp["rate"], 1 - hp["forget"], hp["eps"])

    def step(carry, key):
        theta, state = carry
        key_x, key_y = jax.random.split(key)
        x = jax.random.normal(key_x, (batch, PARAMETERS))
        y = x @ truth + hp["noise"] * jax.random.normal(key_y, (batch,))
        gradient = x.T @ (x @ theta - y) / batch
        updates, state = solver.update(gradient, state)
        return (theta + updates, state), ((theta - truth) ** 2).sum() / 2

    theta = truth + AWAY * jax.random.normal(key_start, (PARAMETERS,))
    keys = jax.random.split(key_steps, steps)
    _, excess = jax.lax.scan(step, (theta, solver.init(theta)), keys)
    first = excess[: steps // SHOWN].reshape(50, -1).mean(1)
    return {"excess": first, "plateau": excess[steps // 2 :].mean()}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps and seeds: seconds")
    parser.add_argument("--output", type=Path, default="malladi2022_output")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_num_cpu_devices", os.cpu_count())  # before JAX is first used
    steps, seeds = (32_000, 2) if args.quick else (128_000, 8)

    tasks = [(NOISE, 1e-8), (NOISE, 1.0), (0.0, 1e-8)]  # noise and ε
    small = [{"rate": RATE, "forget": FORGET, "eps": eps, "noise": noise} for noise, eps in tasks]
    large = [
        point
        | {
            "rate": point["rate"] * KAPPA**rate,
            "forget": point["forget"] * KAPPA**forget,
            "eps": point["eps"] * KAPPA**eps,
        }
        for point in small
        for rate, forget, eps in RULES.values()
    ]
    options = {"seeds": seeds, "objective": "plateau", "progress": False}
    base = rj.sweep(lambda hp, key: train(hp, key, steps, BATCH), small, **options)
    other = rj.sweep(
        lambda hp, key: train(hp, key, steps // KAPPA, KAPPA * BATCH), large, **options
    )
    before = base.by_point().reshape(len(tasks), 1, seeds)
    after = other.by_point().reshape(len(tasks), len(RULES), seeds)

    rows = []
    for i, (noise, eps) in enumerate(tasks):
        floor = noise**2 / 2  # the loss of the true parameters
        for j, rule in enumerate(RULES):
            share = after[i, j] / before[i, 0]
            total = (after[i, j] + floor) / (before[i, 0] + floor)
            rows.append(
                {
                    "noise": f"{noise:g}",
                    "ε": f"{eps:g}",
                    "rule": rule,
                    "loss": total.mean(),
                    "above the floor": share.mean(),
                    "std": share.std(ddof=1),
                }
            )
    table = pd.DataFrame(rows)
    table.to_csv(args.output / "plateaus.csv", index=False)
    print(
        f"{STATEMENT}\n\nHere: κ = {KAPPA}, ρ = {1 - FORGET:g} and {1 - KAPPA * FORGET:g}, "
        f"{seeds} seeds, {steps:,} and {steps // KAPPA:,} steps. The\nloss of the last half, "
        f"divided by that of a batch of {BATCH}; the same for the loss above the floor of\nthe "
        "noise.\n"
    )
    print(table.to_string(index=False, float_format="{:.3f}".format))

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 1, figsize=(6.5, 7), layout="constrained")
    seen = np.arange(0.5, 50) * steps * BATCH / SHOWN / 50
    colors = "#0072B2", "#56B4E9", "#D55E00", "#CC79A7"
    for ax, i in zip(axes, (1, 2), strict=True):
        noise, eps = tasks[i]
        curve = base.metrics["excess"].reshape(len(tasks), seeds, -1)[i].mean(0)
        ax.semilogy(seen, curve, "k", lw=3, label=f"batch of {BATCH}")
        for j, (rule, color) in enumerate(zip(RULES, colors, strict=True)):
            curves = other.metrics["excess"].reshape(len(tasks), len(RULES), seeds, -1)
            ax.semilogy(seen, curves[i, j].mean(0), color=color, lw=1.5, label=rule)
        title = "with noise in the labels" if noise else "without noise"
        ax.set(title=f"{title}, ε = {eps:g}", ylabel="loss above the floor")
    handles = axes[0].get_legend_handles_labels()
    title = f"thin: a batch of {KAPPA * BATCH}, by rule"
    figure.legend(*handles, title=title, loc="outside lower center", ncols=3, fontsize=9)
    axes[1].set_xlabel("examples seen")
    figure.savefig(args.output / "malladi2022.png", dpi=110)
    print("Wrote plateaus.csv and malladi2022.png.")


if __name__ == "__main__":
    main()
