"""Draw the paths of optimizers on surfaces, and count their steps.

The first part compares SGD, Adagrad, and RMSProp in a ravine, with one learning rate and noisy
gradients. The ravine is along an axis, or turned by an angle. The second part compares six
optimizers on five surfaces without noise. For each optimizer and surface, `sweep` finds the
learning rate with the lowest loss at the end of 200 steps (geometric mean over 8 starts).

`--eta` and `--rho` set the learning rate and RMSProp's decay rate of the first part. The ravine
stays the same: SGD diverges from a learning rate of 0.053 on.
"""

import argparse
import functools
import itertools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rmsprop_jax as rj

STEPS = 200
RATE, DECAY = 0.05, 0.9  # of the first part
NOISE, SHOWN = 0.03, 150  # of each gradient; the number of steps in the picture
DESCENT = 20, 100  # steps
ANGLES, PICTURED = [0, 10, 30, 45], 10  # of the ravine, in degrees


def ravine(degrees):
    """Return a quadratic that is curved 200 times as much across the ravine as along it.

    The learning rate `RATE` is 0.95 of the limit above which SGD diverges.
    """
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    steep = 0.95 * 2 / RATE
    return lambda x, y: steep * ((cos * x + sin * y) ** 2 / 200 + (cos * y - sin * x) ** 2) / 2


def beale(x, y):
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


# f, start, minima (f is 0 there), range of x, and range of y.
SURFACES = {
    "ravine": (ravine(PICTURED), (-2.3, 0.15), [(0, 0)], (-2.7, 0.7), (-1.5, 0.8)),
    "ravine at 0°": (ravine(0), (-2.3, 0.5), [(0, 0)], (-2.7, 0.7), (-1.2, 1.2)),
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
OPTIMIZERS = {
    "SGD": optax.sgd,
    "SGD + momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "Adagrad": lambda rate: optax.adagrad(rate, initial_accumulator_value=0.0),
    "Adam": optax.adam,
    "RMSProp, centered": lambda rate: rj.rmsprop(rate, centered=True),
    "RMSProp": rj.rmsprop,
}
THREE = ["SGD", "Adagrad", "RMSProp"]
ONE_RATE = """\
All at η = {rate}, with {seeds} seeds. Each gradient is taken at a point with normal noise of
{noise} in each coordinate. Numbered columns: the distance to the minimum after so many steps
({start:.3g} at the start). off the floor: the root mean square distance from the bottom line of the
ravine in steps {low} to {high}. rate: the geometric mean of the two parameters' effective rates in
these steps, / η.
"""
CAPTION = """\
Without noise. rate: tuned for the loss at the end. end: this loss, the mean of the last 20 of
{steps} steps + 1e-8, as a geometric mean of {seeds} starts. turned back: steps that turn by more
than 90°, of the steps until the loss is 1% of its first value, from the start in the pictures.
falling: the loss at the end with a rate that falls to 0, and is tuned for this. steps: steps until
the loss stays below 0.1 at the tuned rate (median of the starts). fewest: the same at the fastest
rate.
"""


def descend(f, solver, first, noise):
    """Return the path from `first`, with each gradient taken at a point that is moved by noise."""

    def step(carry, moved):
        params, state = carry
        updates, state = solver.update(jax.grad(lambda p: f(*p))(params - moved), state)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, state)

    path, states = jax.lax.scan(step, (first, solver.init(first)), noise)[1]
    return jnp.concatenate([first[None], path]), states


def at_one_rate(steps, seeds, eta, rho):
    """Print a table over the angles of the ravine. Return the paths for the pictures."""
    keys = jax.random.split(jax.random.key(0), seeds)
    noise = NOISE * jax.vmap(lambda key: jax.random.normal(key, (steps, 2)))(keys)
    _, start, *_ = SURFACES["ravine"]
    away, (low, high) = np.hypot(*start), DESCENT
    after = [n for n in (25, 50, 100, 200, 1000) if n <= steps]
    solvers = {name: OPTIMIZERS[name](eta) for name in THREE} | {"RMSProp": rj.rmsprop(eta, rho)}
    cell = lambda x: f"{x:7.3f}" if x < 1000 else f"{x:7.0e}"  # a path that diverges
    paths = {}
    print(ONE_RATE.format(rate=eta, noise=NOISE, seeds=seeds, start=away, low=low, high=high))
    print(f"{'turned by':>9}  {'optimizer':9}" + "".join(f"{n:>7}" for n in after), end="")
    print("  off the floor   rate")
    for degrees, name in itertools.product(ANGLES, THREE):
        turn = np.radians(degrees - PICTURED)
        turn = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        run = functools.partial(descend, ravine(degrees), solvers[name], jnp.asarray(turn @ start))
        path, states = jax.device_get(jax.jit(jax.vmap(run))(noise))
        paths[degrees, name] = path
        floor = np.radians(degrees)
        off = path[:, low:high] @ [-np.sin(floor), np.cos(floor)]
        s = optax.tree_utils.tree_get(states, "nu" if name == "RMSProp" else "sum_of_squares")
        rate = 1.0 if s is None else np.exp(-0.5 * np.log(s[:, low:high]).mean())
        left = np.linalg.norm(path, axis=-1).mean(0)
        print(
            f"{degrees:8}°  {name:9}" + "".join(cell(left[n]) for n in after)
            + f"{cell(np.sqrt((off**2).mean())):>15}{rate:7.3f}"
        )  # fmt: skip
    return {name: paths[PICTURED, name] for name in THREE}


def draw_one_rate(plt, paths, eta, file):
    """Draw the first steps of the first seed, and the distances of all seeds."""
    f, _, minima, *window = SURFACES["ravine"]
    figure, (top, bottom) = plt.subplots(
        2, figsize=(5.5, 7.6), height_ratios=[1.25, 1], layout="constrained"
    )
    shown = {name: seeds[0, : SHOWN + 1] for name, seeds in paths.items()}
    rj.plots.contour(
        f, shown, *window, minima=minima, colors=[rj.plots.COLORS[n] for n in shown], ax=top
    )
    top.set_title(f"one rate, η = {eta}: the first {SHOWN} steps")
    top.legend(loc="lower right")
    arrow = {"arrowprops": {"arrowstyle": "->"}, "size": 11, "weight": "bold"}
    for name, word, at, to in (
        ("SGD", "zig-zag", 9, (-1.9, -1.2)),
        ("Adagrad", "slow", SHOWN, (-1.9, 0.4)),
        ("RMSProp", "steady", 55, (-0.9, -0.8)),
    ):
        top.annotate(word, shown[name][at], to, **arrow)
    for name, seeds in paths.items():
        distance = np.linalg.norm(seeds, axis=-1)
        steps = np.arange(1, distance.shape[1])
        color = rj.plots.COLORS[name]
        bottom.loglog(steps, distance.mean(0)[1:], color=color, label=name)
        low, high = np.quantile(distance, [0.1, 0.9], axis=0)[:, 1:]
        bottom.fill_between(steps, low, high, color=color, alpha=0.2, lw=0)
    bottom.set(xlabel="step", ylabel="distance to the minimum")
    bottom.set_title(f"mean, and 80% of {len(distance)} runs")
    figure.savefig(file, dpi=110)


def animate(plt, paths, eta, every):
    """Animate the three paths. The last frame is repeated."""
    from matplotlib.animation import FuncAnimation

    f, _, minima, *window = SURFACES["ravine"]
    figure, ax = plt.subplots(figsize=(5.5, 4.4), layout="constrained")
    rj.plots.contour(f, {}, *window, minima=minima, ax=ax)
    trails = [
        ax.plot(
            [], [], "-o", color=rj.plots.COLORS[name], label=name, ms=9, markevery=[-1], mec="w",
            lw=1.6,
        )[0]
        for name in paths
    ]  # fmt: skip
    ax.legend(loc="lower right")

    def frame(i):
        for trail, seeds in zip(trails, paths.values(), strict=True):
            trail.set_data(*seeds[0, : i + 1].T)
        ax.set_title(f"one learning rate, η = {eta}, noisy gradients: step {i}")

    frames = [*range(0, SHOWN + 1, every), *[SHOWN] * 24]
    return FuncAnimation(figure, frame, frames)


def train(hp, key):
    """Train without noise, from a random start near the start of the picture."""
    start = jnp.array(SURFACES[hp["surface"]][1])
    return measured(hp, start + 0.2 * jax.random.normal(key, (2,)))


def measured(hp, first):
    f = SURFACES[hp["surface"]][0]
    rate = optax.linear_schedule(hp["rate"], 0.0, STEPS) if hp["falling"] else hp["rate"]
    solver = OPTIMIZERS[hp["optimizer"]](rate)
    x, y = descend(f, solver, first, jnp.zeros((STEPS, 2)))[0].T
    loss = f(x, y)
    there = jnp.where(
        loss < 0.1, 0, jnp.arange(1, STEPS + 2)
    ).max()  # the first step after which it stays below 0.1
    there = jnp.where(there > STEPS, jnp.inf, there)
    end = jnp.log10(loss[-20:].mean() + 1e-8)
    return {"x": x, "y": y, "loss": loss, "there": there, "end": end}


def turned_back(path, loss):
    """Return the number of steps that turn by more than 90°, until the loss is 1% of the first."""
    steps = np.diff(path[: np.argmax(np.append(loss < loss[0] / 100, True)) + 1], axis=0)
    return f"{((steps[1:] * steps[:-1]).sum(1) < 0).sum()} of {len(steps)}"


def draw(plt, surface, runs):
    """Draw the paths at the tuned rates."""
    f, _, minima, *window = SURFACES[surface]
    figure, ax = plt.subplots(figsize=(5.5, 5.8), layout="constrained")
    mine = {name: runs[surface, name] for name in OPTIMIZERS}
    paths = {f"{name} {rate:.2g}": path for name, (rate, path, _) in mine.items()}
    colors = [rj.plots.COLORS[name] for name in mine]
    rj.plots.contour(f, paths, *window, minima=minima, colors=colors, ax=ax)
    ax.set_title(f"{surface}: each at its tuned rate")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def draw_losses(plt, surfaces, runs):
    figure, axes = plt.subplots(
        len(surfaces), figsize=(5.5, 2.2 * len(surfaces) + 1), layout="constrained", sharex=True,
        squeeze=False,
    )  # fmt: skip
    for ax, surface in zip(axes.flat, surfaces, strict=True):
        for name in OPTIMIZERS:
            ax.semilogy(runs[surface, name][2], color=rj.plots.COLORS[name], label=name)
        ax.set(title=surface, ylabel="loss", ylim=(1e-9, None))
    axes[-1, 0].set_xlabel("step")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one surface and few rates: seconds")
    parser.add_argument("--output", type=Path, default="trajectories_output")
    parser.add_argument("--eta", type=float, default=RATE, help="the one learning rate η")
    parser.add_argument("--rho", type=float, default=DECAY, help="the decay rate ρ of RMSProp")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_num_cpu_devices", os.cpu_count())  # before JAX is first used
    paths = at_one_rate(*((200, 2) if args.quick else (1000, 100)), args.eta, args.rho)

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

    runs, tuned = {}, []
    for (i, surface), (j, name) in itertools.product(enumerate(surfaces), enumerate(OPTIMIZERS)):
        hp = {"surface": surface, "optimizer": name, "falling": False}
        start, best = jnp.array(SURFACES[surface][1]), np.nanargmin(ends[i, j, 0])
        run = jax.jit(lambda rate, hp=hp, start=start: measured(hp | {"rate": rate}, start))
        metrics = jax.device_get(run(rates[best]))
        path, loss = np.stack([metrics["x"], metrics["y"]], 1), metrics["loss"]
        runs[surface, name] = rates[best], path, loss
        end, falling = 10 ** ends[i, j, 0, best], 10 ** np.nanmin(ends[i, j, 1])
        steps, fewest = there[i, j, 0, best], there[i, j, 0].min()
        turns = turned_back(path, loss)
        tuned.append([surface, name, rates[best], turns, end, falling, steps, fewest])

    import matplotlib
    import pandas as pd

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = ["surface", "optimizer", "rate", "turned back", "end", "falling", "steps", "fewest"]
    tuned = pd.DataFrame(tuned, columns=columns)
    tuned.to_csv(args.output / "tuned.csv", index=False)
    print("\n" + CAPTION.format(steps=STEPS, seeds=seeds))
    print(tuned.to_string(index=False, float_format="{:.3g}".format))
    fewest = tuned.set_index(["optimizer", "surface"]).fewest
    ratios = (fewest["RMSProp"] / fewest["Adam"]).dropna()
    print("\nFewest steps to 0.1, RMSProp / Adam:", end=" ")
    print(", ".join(f"{surface} {ratio:.2g}" for surface, ratio in ratios.items()) + ".")

    draw_one_rate(plt, paths, args.eta, args.output / "one_rate.png")
    animate(plt, paths, args.eta, 30 if args.quick else 2).save(
        args.output / "one_rate.gif", "pillow", fps=12, dpi=80
    )
    pictures = [surface for surface in surfaces if "°" not in surface]
    for surface in pictures:
        draw(plt, surface, runs).savefig(args.output / f"{surface}.png", dpi=110)
    draw_losses(plt, pictures, runs).savefig(args.output / "losses.png", dpi=110)
    print("Wrote tuned.csv, one_rate.png and .gif, losses.png and a picture of each surface.")


if __name__ == "__main__":
    main()
