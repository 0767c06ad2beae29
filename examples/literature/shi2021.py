"""For which β₂ does RMSProp converge? Figure 1 of Shi et al., ICLR 2021.

The loss is linear in x, which stays in [−1, 1]. A period of C steps has the gradients C and −1.
Their sum is positive, so the best x is −1. A small β₂ forgets the rare large gradient, and x goes
to +1 instead. Reddi et al. (2018) found this example, and Shi et al. show that a large β₂
converges.

Two versions exist. In the authors' code, C comes twice in a period ("code"). In the text of the
paper, C comes once ("text").
"""

import argparse
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

import rmsprop_jax as rj

STATEMENT = """\
The paper: RMSProp diverges for a small β₂, and converges for each β₂ from a threshold below 1 on.
The threshold depends on the problem: here, it grows with C."""
VERSIONS = {"code": True, "text": False}  # whether C comes twice
CONVERGED = -2.0  # of the mean of lg |x + 1| over the last half of the steps


def train(hp, key, steps):
    """Return the mean of lg |x + 1| over the last half. This x is the one before a step."""
    solver = rj.rmsprop(
        lambda t: 1 / jnp.sqrt(t + 1.0), hp["decay"], eps=0.0, initial_scale=100.0 * hp["C"]
    )

    def step(carry, k):
        x, state, total = carry
        place = k % hp["C"]
        is_large = (place == 1) | (hp["twice"] & (place == 0))
        gradient = jnp.where(is_large, hp["C"], -1).astype(x.dtype)
        distance = jnp.log10(jnp.maximum(jnp.abs(x + 1), 1e-20))
        total += jnp.where(k > steps // 2, distance, 0.0)
        update, state = solver.update(gradient, state)
        return (jnp.clip(x + update, -1, 1), state, total), None

    x = jnp.array(100.0)  # as in the authors' code: the first step clips it to 1
    carry = x, solver.init(x), jnp.zeros(())
    (_, _, total), _ = jax.lax.scan(step, carry, jnp.arange(1, steps + 1))
    return {"distance": total / (steps - steps // 2)}


def distances(points, steps):
    """Train all points with a number of steps, and return their distances."""
    points = rj.Points(points)
    done = rj.sweep(
        lambda hp, key: train(hp, key, steps), points, objective="distance", progress=False
    )
    return done.metrics["distance"]


def on_grid(sizes, decays, steps):
    """Return the distances by version, C, and β₂."""
    points = rj.grid(twice=list(VERSIONS.values()), C=list(sizes), decay=decays.tolist())
    return distances(points, steps).reshape(len(VERSIONS), len(sizes), len(decays))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few C, β₂, and steps: seconds")
    parser.add_argument("--output", type=Path, default="shi2021_output")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_num_cpu_devices", os.cpu_count())  # before JAX is first used
    jax.config.update("jax_enable_x64", True)
    steps = 2000 if args.quick else 20_000
    sizes = [5, 10] if args.quick else [5, 8, 10, 15, 20, 25, 31]
    decays = np.arange(1, 1000, 25 if args.quick else 1) / 1000
    decays = np.append(decays, [0.9995, 0.9999])
    converged = on_grid(sizes, decays, steps) < CONVERGED

    rows = []
    for i, version in enumerate(VERSIONS):
        for j, size in enumerate(sizes):
            found = decays[converged[i, j]]
            ends = {"from": found.min(), "to": found.max()} if found.size else {}
            rows.append({"gradient": version, "C": size} | ends)
    table = pd.DataFrame(rows)
    table.to_csv(args.output / "thresholds.csv", index=False)
    print(f"{STATEMENT}\n\nHere, {steps:,} steps converge for β₂ (of {len(decays)}):\n")
    print(table.to_string(index=False, na_rep="none"))

    # A little below the threshold, four times as many steps.
    below = [
        {"twice": True, "C": row.C, "decay": row["from"] - 0.002}
        for _, row in table[table.gradient == "code"].iterrows()
    ]
    longer = distances(below, 4 * steps) < CONVERGED
    reached = [str(p["C"]) for p, ok in zip(below, longer, strict=True) if ok]
    print(
        f"\nAt 0.002 below the threshold of the code's gradient, {4 * steps:,} steps converge for "
        f"C = {', '.join(reached) or 'none'}."
    )

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = range(3, 33, 15 if args.quick else 1)
    exponents = np.arange(1, 62, 20 if args.quick else 1) / 20
    distance = on_grid(shown, 1 - 10**-exponents, steps)
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True, layout="constrained")
    for ax, version, values in zip(axes, VERSIONS, distance, strict=True):
        mesh = ax.pcolormesh(exponents, shown, values, cmap="cividis", vmin=-4, vmax=0.5)
        ax.contour(exponents, shown, values, [CONVERGED], colors="w", linewidths=2)
        ticks = [0.5, 0.9, 0.99, 0.999]
        ax.set_xticks(-np.log10(1 - np.array(ticks)), map(str, ticks))
        times = "twice" if VERSIONS[version] else "once"
        ax.set(title=f"{version}: C comes {times} in C steps", xlabel="β₂")
    axes[0].set_ylabel("C")
    figure.colorbar(mesh, ax=axes, label="mean of lg |x + 1|, last half", extend="both")
    figure.savefig(args.output / "shi2021.png", dpi=110)
    print("Wrote thresholds.csv and shi2021.png.")


if __name__ == "__main__":
    main()
