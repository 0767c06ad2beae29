"""Compare how optimizers follow a target that is constant, drifts, or jumps, or a rescaled loss.

Each optimizer follows θ* with noisy gradients, in ten parameters of curvature 0.1 to 10. `sweep`
tunes the learning rate on the first 1,000 steps. The evaluation uses other seeds, on these steps
and, at the same rate, nine thousand steps later.
"""

import argparse
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rmsprop_jax as rj

TARGETS = ["still", "drifting", "jumping", "rescaled"]
OPTIMIZERS = {
    "SGD": optax.sgd,
    "Adagrad": lambda rate: optax.adagrad(rate, initial_accumulator_value=0.0),
    "Adam": optax.adam,
    "Adam, β₂ .9": lambda rate: optax.adam(rate, b2=0.9),  # the decay of RMSProp
    "RMSProp": rj.rmsprop,
}


def train(hp, key, steps, window):
    walk, noise = jax.random.normal(key, (2, steps, 10))
    t = jnp.arange(steps)
    still = jnp.broadcast_to(walk[0], walk.shape)
    drifting = walk[0] + jnp.cumsum(0.03 * walk, axis=0)
    # Indexed by a number, so that all targets share one compiled program per optimizer.
    target = jnp.stack([still, drifting, walk[t // 250], drifting])[hp["target"]]
    # Rescaled: in every other block of 250 steps, the gradients are 1% as large.
    small = (hp["target"] == TARGETS.index("rescaled")) & (t // 250 % 2 == 1)
    scale = jnp.where(small, 0.01, 1.0)
    curvature = jnp.geomspace(0.1, 10.0, 10)
    solver = OPTIMIZERS[hp["optimizer"]](hp["rate"])

    def step(carry, now):
        params, state = carry
        target, scale, noise = now
        gradient = scale * curvature * (params - target + noise)
        updates, state = solver.update(gradient, state)
        return (optax.apply_updates(params, updates), state), params

    params = jnp.zeros(10)
    path = jax.lax.scan(step, (params, solver.init(params)), (target, scale, noise))[1]
    error = jnp.sqrt(jnp.mean((path - target) ** 2, axis=1))
    return {
        "error": error,
        "early": error[:window].mean(),
        "late": error[-window:].mean(),
        "followed": target[:, 4],  # one of the ten parameters, for the picture
        "follows": path[:, 4],
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps and rates: seconds")
    parser.add_argument("--output", type=Path, default="nonstationary_output")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_num_cpu_devices", os.cpu_count())  # before JAX is first used
    window, seeds, per_decade = (100, 2, 1) if args.quick else (1000, 8, 6)

    names, rates = list(OPTIMIZERS), np.geomspace(1e-3, 10, 4 * per_decade + 1)
    tuning = rj.sweep(
        lambda hp, key: train(hp, key, window, window),
        rj.grid(target=range(len(TARGETS)), optimizer=names, rate=rates),
        seeds=seeds,
        objective="early",
        progress=False,
    )
    errors = tuning.by_point().reshape(len(TARGETS), len(names), -1, seeds).mean(-1)
    best = rates[np.nanargmin(errors, axis=-1)]  # NaN where a seed diverges
    tuned = [
        {"target": i, "optimizer": name, "rate": best[i, j]}
        for i in range(len(TARGETS))
        for j, name in enumerate(names)
    ]
    judged = rj.sweep(
        lambda hp, key: train(hp, key, 10 * window, window),
        tuned,
        seeds=range(seeds, 2 * seeds),
        objective="late",
        progress=False,
    )
    table = judged.to_dataframe().groupby(["target", "optimizer", "rate"], sort=False)
    table = table[["early", "late"]].agg(["mean", "sem"])
    table.columns = ["early", "early ±", "late", "late ±"]
    table = table.reset_index().replace({"target": dict(enumerate(TARGETS))})
    table["late / early"] = table.late / table.early
    table.to_csv(args.output / "tracking.csv", index=False)
    print(
        f"Root mean square distance to the target: mean ± standard error of {seeds} seeds. The\n"
        f"rates are tuned on other seeds. early: steps 1 to {window}, for which the rates are\n"
        f"tuned. late: the last {window} of {10 * window} steps.\n"
    )
    print(table.to_string(index=False, float_format="{:.3g}".format))
    late = table.set_index(["target", "optimizer"]).late.unstack()
    for other in ("Adagrad", "Adam", "Adam, β₂ .9"):
        ratios = (late[other] / late["RMSProp"]).loc[TARGETS].items()
        text = ", ".join(f"{target} {ratio:.2f}" for target, ratio in ratios)
        print(f"Late error, {other} / RMSProp: {text}.")

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplot_mosaic(
        [["follows"], *([target] for target in TARGETS)], figsize=(5.5, 11), layout="constrained"
    )
    metrics = {
        name: values.reshape(len(TARGETS), len(names), seeds, -1)
        for name, values in judged.metrics.items()
    }
    jumping, end = TARGETS.index("jumping"), np.arange(9 * window, 10 * window)
    follows = axes["follows"]
    follows.plot(end, metrics["followed"][jumping, 0, 0, end], "k--", lw=1.5, label="target")
    smooth = np.full(window // 2, 2 / window)
    for j, name in enumerate(OPTIMIZERS):
        color = rj.plots.COLORS[name.split(",")[0]]
        style = {"color": color, "label": name, "lw": 1.6, "ls": "--" if "," in name else "-"}
        if name in ("Adagrad", "RMSProp"):
            follows.plot(end, metrics["follows"][jumping, j, 0, end], **style)
        for i, target in enumerate(TARGETS):
            line = np.convolve(metrics["error"][i, j].mean(0), smooth, "valid")
            axes[target].semilogx(np.arange(len(line)) + len(smooth), line, **style)
    follows.set(title="jumping: one parameter, at the end", xlabel="step", ylabel="θ")
    follows.legend(loc="lower left", fontsize=9)
    for target in TARGETS:
        axes[target].set(title=target, ylabel="distance", ylim=(0, None))
    axes[TARGETS[-1]].set_xlabel("step")
    handles = axes["still"].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3)
    figure.savefig(args.output / "nonstationary.png", dpi=110)
    print("Wrote tracking.csv and nonstationary.png.")


if __name__ == "__main__":
    main()
