"""Why RMSProp is faster on rare classes. Kunstner et al., NeurIPS 2024.

A linear softmax model has 255 classes in 8 groups: 1 class with 128 examples, 2 classes with 64
each, … 128 classes with 1 each. Each group has the same share of the loss. The inputs are uniform
in [0, 1]; their mean, which all examples share, makes the problem ill-conditioned. Gradient descent
and RMSProp train on all data at once, each with the learning rate that gives the lowest loss.
"""

import argparse
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

import rmsprop_jax as rj

STATEMENT = """\
The paper: with heavy-tailed class imbalance, gradient descent is slow on the loss of rare classes,
and Adam is not. Here, RMSProp takes the place of Adam: the momentum of Adam is not the cause."""
OPTIMIZERS = {"gradient descent": optax.sgd, "RMSProp": rj.rmsprop}
LAST = 10  # the losses are means of the last steps, because large rates oscillate


def data(groups, features, inputs, key):
    """Return the inputs, the labels, and the group of each example."""
    group_of_class = np.repeat(np.arange(groups), 2 ** np.arange(groups))
    labels = np.repeat(np.arange(len(group_of_class)), 2 ** (groups - 1 - group_of_class))
    draw = {"uniform": jax.random.uniform, "normal": jax.random.normal}[inputs]
    return draw(key, (len(labels), features)), labels, group_of_class[labels]


def train(hp, key, groups, features, steps):
    x, labels, group = data(groups, features, hp["inputs"], key)
    solver = OPTIMIZERS[hp["optimizer"]](hp["rate"])

    def step(carry, _):
        w, state = carry

        def loss(w):
            each = optax.softmax_cross_entropy_with_integer_labels(x @ w, labels)
            return each.mean(), jnp.zeros(groups).at[group].add(each) * groups / len(labels)

        (_, by_group), gradient = jax.value_and_grad(loss, has_aux=True)(w)
        updates, state = solver.update(gradient, state)
        return (optax.apply_updates(w, updates), state), by_group

    w = jnp.zeros((features, 2**groups - 1))
    _, by_group = jax.lax.scan(step, (w, solver.init(w)), None, length=steps)
    metrics = {f"group {k}": by_group[:, k] for k in range(groups)}
    return metrics | {"loss": by_group[-LAST:].mean()}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small problem: seconds")
    parser.add_argument("--output", type=Path, default="kunstner2024_output")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_num_cpu_devices", os.cpu_count())  # before JAX is first used
    groups, features, steps, seeds = (6, 64, 100, 1) if args.quick else (8, 512, 150, 3)
    per_decade = 2 if args.quick else 6
    rates = lambda low, high: np.geomspace(low, high, round(np.log10(high / low)) * per_decade + 1)
    grids = {
        ("uniform", "gradient descent"): rates(0.1, 10 if args.quick else 1),
        ("uniform", "RMSProp"): rates(1e-3, 0.1),
        ("normal", "gradient descent"): rates(1, 100),
        ("normal", "RMSProp"): rates(0.01, 1),
    }
    points = [
        {"inputs": inputs, "optimizer": optimizer, "rate": rate}
        for (inputs, optimizer), grid in grids.items()
        for rate in grid.tolist()
    ]
    done = rj.sweep(
        lambda hp, key: train(hp, key, groups, features, steps),
        points,
        seeds=seeds,
        objective="loss",
        progress=False,
    )
    means = done.means()
    rows, curves = [], {}
    for inputs, optimizer in grids:
        mine = [
            k for k, p in enumerate(points) if (p["inputs"], p["optimizer"]) == (inputs, optimizer)
        ]
        best = min(mine, key=lambda k: means[k] if np.isfinite(means[k]) else np.inf)
        by_group = np.stack(
            [
                done.metrics[f"group {g}"].reshape(len(points), seeds, steps)[best].mean(0)
                for g in range(groups)
            ]
        )
        curves[inputs, optimizer] = by_group
        end = by_group[:, -LAST:].mean(1)
        row = {"inputs": inputs, "optimizer": optimizer, "η": points[best]["rate"]}
        row |= {"loss": means[best]} | {f"{2**g}": end[g] for g in range(groups)}
        rows.append(row)
    table = pd.DataFrame(rows)
    table.to_csv(args.output / "groups.csv", index=False)
    print(
        f"{STATEMENT}\n\nHere: {2**groups - 1} classes, {features} inputs, {steps} steps, "
        f"{seeds} seeds. The loss starts at {np.log(2**groups - 1):.2f}.\nAt the best rate: the "
        f"loss, and that of the groups with 1, 2, … {2 ** (groups - 1)} classes, from frequent to "
        "rare.\n"
    )
    print(table.to_string(index=False, float_format="{:.3g}".format))

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
    colors = plt.get_cmap("cividis")(np.linspace(0, 0.95, groups))
    for ax, optimizer in zip(axes, OPTIMIZERS, strict=True):
        for g, color in enumerate(colors):
            label = f"{2 ** (groups - 1 - g)}"
            ax.plot(curves["uniform", optimizer][g], color=color, lw=1.5, label=label)
        ax.set(title=f"{optimizer}, at its best rate", xlabel="step", ylim=(0, 8))
    axes[0].set_ylabel("loss")
    axes[1].legend(title="examples\nper class", fontsize=9)
    figure.savefig(args.output / "kunstner2024.png", dpi=110)
    print("Wrote groups.csv and kunstner2024.png.")


if __name__ == "__main__":
    main()
