"""Six optimisers on four surfaces: zig-zag, stall and steady descent, seen and counted.

Each optimiser gets the learning rate that `sweep` finds best for it on that surface: the lowest
loss at the end of 200 steps (geometric mean over 8 starts). A second panel shows textbook rates.
"""

import argparse
import itertools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rmsprop_jax as rj

STEPS = 200


def ravine(degrees):
    """A quadratic 100 times as curved across as along, turned by an angle."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return lambda x, y: ((cos * x + sin * y) ** 2 + 100 * (cos * y - sin * x) ** 2) / 2


def beale(x, y):
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


# f, start, minima (where f is 0), window of x and of y.
SURFACES = {
    "ravine": (ravine(30), (-2.1, 0.0), [(0, 0)], (-2.6, 0.9), (-2, 0.8)),
    "ravine at 0°": (ravine(0), (-2.4, 0.8), [(0, 0)], (-3, 1), (-1.7, 1.7)),
    "beale": (beale, (1.0, 1.0), [(3, 0.5)], (0, 4), (-1.4, 1.4)),
    "rosenbrock": (
        lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2,
        (-1.2, 1.0), [(1, 1)], (-2, 2), (-1, 3),
    ),
    "saddle": (
        lambda x, y: 5 * x**2 + (y**2 - 1) ** 2 / 4,
        (1.0, 0.01), [(0, 1), (0, -1)], (-1.3, 1.3), (-1.3, 1.4),
    ),
}  # fmt: skip
# Of a learning rate; PyTorch's default rate; a colour (Okabe and Ito's). No default of SGD suits a
# surface of any scale: it gets .95 of 2/λ, the limit beyond which it diverges on a quadratic.
OPTIMIZERS = {
    "SGD": (optax.sgd, None, "#d55e00"),
    "momentum .9": (lambda rate: optax.sgd(rate, momentum=0.9), None, "#e69f00"),
    "Adagrad": (lambda rate: optax.adagrad(rate, initial_accumulator_value=0.0), 0.01, "#0072b2"),
    "Adam": (optax.adam, 0.001, "#cc79a7"),
    "centered": (lambda rate: rj.rmsprop(rate, centered=True), 0.01, "#56b4e9"),
    "RMSProp": (rj.rmsprop, 0.01, "#009e73"),
}
CAPTION = """\
Each rate is tuned for the loss at the end: mean of the last 20 of {STEPS} steps + 1e-8, geometric
mean of {seeds} starts. Turned back: steps by more than 90°, of those down to 1% of the loss, from
the start of the pictures. Falling: the loss at the end where the rate falls to 0, tuned for that.
Steps: until the loss stays below .1 (median of the starts) at the tuned rate; fewest: at the
quickest rate.
"""
COLORS = [color for *_, color in OPTIMIZERS.values()]


def descend(hp, first):
    f = SURFACES[hp["surface"]][0]
    rate = optax.linear_schedule(hp["rate"], 0.0, STEPS) if hp["falling"] else hp["rate"]
    solver = OPTIMIZERS[hp["optimizer"]][0](rate)

    def step(carry, _):
        params, state = carry
        updates, state = solver.update(jax.grad(lambda p: f(*p))(params), state)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    path = jax.lax.scan(step, (first, solver.init(first)), length=STEPS)[1]
    x, y = jnp.concatenate([first[None], path]).T
    loss = f(x, y)
    there = jnp.where(loss < 0.1, 0, jnp.arange(1, STEPS + 2)).max()  # below .1 for good
    there = jnp.where(there > STEPS, jnp.inf, there)
    end = jnp.log10(loss[-20:].mean() + 1e-8)
    return {"x": x, "y": y, "loss": loss, "there": there, "end": end}


def train(hp, key):
    """From a start of its own, near that of the picture."""
    start = jnp.array(SURFACES[hp["surface"]][1])
    return descend(hp, start + 0.2 * jax.random.normal(key, (2,)))


def textbook_rate(surface, optimizer):
    f, start, minima, *_ = SURFACES[surface]
    curvature = jax.hessian(lambda p: f(*p))
    sharpest = max(np.linalg.eigvalsh(curvature(jnp.array(p, float)))[-1] for p in (start, *minima))
    return OPTIMIZERS[optimizer][1] or 0.95 * 2 / float(sharpest)


def count(surface, path, loss):
    """Steps that turn back by more than 90°, of those down to 1% of the loss; distance left."""
    steps = np.diff(path[: np.argmax(np.append(loss < loss[0] / 100, True)) + 1], axis=0)
    first, last = np.linalg.norm(path[[0, -1], None] - SURFACES[surface][2], axis=-1).min(-1)
    return f"{((steps[1:] * steps[:-1]).sum(1) < 0).sum()} of {len(steps)}", last / first


def draw(plt, surface, runs):
    """Two panels: the paths at tuned and at textbook rates."""
    f, _, minima, *window = SURFACES[surface]
    figure, axes = plt.subplots(1, 2, figsize=(9, 5.6), layout="constrained")
    for ax, kind in zip(axes, ("tuned", "textbook"), strict=True):
        mine = {name: runs[surface, name, kind] for name in OPTIMIZERS}
        paths = {f"{name} {rate:.2g}": path for name, (rate, path, _) in mine.items()}
        rj.plots.contour(f, paths, *window, minima=minima, colors=COLORS, ax=ax)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
    axes[0].set_title(f"{surface}: each at its tuned rate")
    axes[1].set_title("textbook rates; SGD at .95 of its limit")
    if surface == "ravine":
        arrow = {"arrowprops": {"arrowstyle": "->"}, "size": 11, "weight": "bold"}
        for name, word, at, to in (
            ("SGD", "zig-zag", 9, (-0.3, -1.6)),
            ("Adagrad", "stall", -1, (-2.5, -0.9)),
            ("RMSProp", "steady descent", 120, (-0.75, -1.1)),
        ):
            axes[1].annotate(word, runs[surface, name, "textbook"][1][at], to, **arrow)
    return figure


def draw_losses(plt, surfaces, runs):
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.5), layout="constrained", sharex=True)
    for ax, surface in zip(axes.flat, surfaces, strict=False):
        for name, color in zip(OPTIMIZERS, COLORS, strict=True):
            ax.semilogy(runs[surface, name, "tuned"][2], color=color, label=name)
        ax.set(title=surface, xlabel="step", ylabel="loss", ylim=(1e-9, None))
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False
    )
    return figure


def animate(plt, runs, every):
    """All optimisers at once on the ravine, each with a trail of its last 25 steps."""
    from matplotlib.animation import FuncAnimation

    f, _, minima, *window = SURFACES["ravine"]
    figure, ax = plt.subplots(figsize=(6, 5), layout="constrained")
    rj.plots.contour(f, {}, *window, minima=minima, ax=ax)
    style = {"marker": "o", "ms": 9, "markevery": [-1], "mec": "w", "lw": 2}
    trails = [
        ax.plot([], [], color=color, label=name, **style)[0]
        for name, color in zip(OPTIMIZERS, COLORS, strict=True)
    ]
    ax.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)

    def frame(i):
        for trail, name in zip(trails, OPTIMIZERS, strict=True):
            trail.set_data(*runs["ravine", name, "tuned"][1][max(0, i - 25) : i + 1].T)
        ax.set_title(f"each at its tuned learning rate, step {i}")

    return FuncAnimation(figure, frame, range(0, STEPS + 1, every))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one surface, few rates: seconds")
    parser.add_argument("--output", type=Path, default="trajectories_output")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_num_cpu_devices", os.cpu_count())  # before JAX is first used
    surfaces = list(SURFACES)[: 1 if args.quick else None]
    rates = np.geomspace(1e-4, 10, 6 if args.quick else 41)
    seeds = 2 if args.quick else 8
    points = rj.grid(
        surface=surfaces, optimizer=list(OPTIMIZERS), falling=[False, True], rate=rates
    )
    result = rj.sweep(train, points, seeds=seeds, objective="end", progress=False)
    shape = len(surfaces), len(OPTIMIZERS), 2, len(rates), seeds
    ends = result.by_point().reshape(shape).mean(-1)  # NaN where a start diverges
    there = np.median(result.metrics["there"].reshape(shape), axis=-1)
    there[np.isnan(ends)] = np.inf

    runs, tuned, untuned = {}, [], []
    for (i, surface), (j, name) in itertools.product(enumerate(surfaces), enumerate(OPTIMIZERS)):
        hp = {"surface": surface, "optimizer": name, "falling": False}
        start = jnp.array(SURFACES[surface][1])
        run = jax.jit(lambda rate, hp=hp, start=start: descend(hp | {"rate": rate}, start))
        best = np.nanargmin(ends[i, j, 0])
        for kind, rate in {"tuned": rates[best], "textbook": textbook_rate(surface, name)}.items():
            metrics = jax.device_get(run(rate))
            path, loss = np.stack([metrics["x"], metrics["y"]], 1), metrics["loss"]
            runs[surface, name, kind] = rate, path, loss
        turns, _ = count(surface, *runs[surface, name, "tuned"][1:])
        end, falling = 10 ** ends[i, j, 0, best], 10 ** np.nanmin(ends[i, j, 1])
        steps, fewest = there[i, j, 0, best], there[i, j, 0].min()
        tuned.append([surface, name, rates[best], turns, end, falling, steps, fewest])
        untuned.append([surface, name, rate, *count(surface, path, loss), loss[-1]])

    import matplotlib
    import pandas as pd

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = ["surface", "optimiser", "rate", "turned back", "end", "falling", "steps", "fewest"]
    tuned = pd.DataFrame(tuned, columns=columns)
    untuned = pd.DataFrame(untuned, columns=[*columns[:4], "distance left", "loss"])
    tuned.to_csv(args.output / "tuned.csv", index=False)
    show = {"index": False, "float_format": "{:.3g}".format}
    print(CAPTION.format(STEPS=STEPS, seeds=seeds))
    print(tuned.to_string(**show))
    print(
        "\nTextbook rates, from the start of the pictures; distance left: of that at the start.\n"
    )
    print(untuned.to_string(**show))
    fewest = tuned.set_index(["optimiser", "surface"]).fewest
    ratios = (fewest["RMSProp"] / fewest["Adam"]).dropna()
    print("\nFewest steps to .1, RMSProp's / Adam's:", end=" ")
    print(", ".join(f"{surface} {ratio:.2g}" for surface, ratio in ratios.items()) + ".")

    pictures = [surface for surface in surfaces if "°" not in surface]
    for surface in pictures:
        draw(plt, surface, runs).savefig(args.output / f"{surface}.png", dpi=110)
    draw_losses(plt, pictures, runs).savefig(args.output / "losses.png", dpi=110)
    every = 40 if args.quick else 2
    animate(plt, runs, every).save(args.output / "ravine.gif", "pillow", fps=12, dpi=80)
    print(f"Wrote tuned.csv, ravine.gif, losses.png and {', '.join(pictures)} (.png).")


if __name__ == "__main__":
    main()
