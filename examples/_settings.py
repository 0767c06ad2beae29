"""Compare optimizers on CartPole: tune on some seeds, evaluate on other seeds, and draw."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from _cart_pole import LIMIT
from scipy.stats import bootstrap, trim_mean
from scipy.stats import t as student

import rmsprop_jax as rj

SEEDS = 8  # for tuning; three times as many others evaluate
PLAIN, CENTERED, ADAM = (rj.plots.COLORS[name] for name in ("RMSProp", "RMSProp, centered", "Adam"))


class Setting(NamedTuple):
    solver: Callable  # from the learning rate to the optimizer
    divisor: int  # of the summed loss: 1 gives the sum, the size of the batch the mean
    color: str
    dashes: str = "-"


def summary(length):
    """Return 50 values for the curve, their mean, and the mean of the last tenth."""
    curve = length.reshape(50, -1).mean(axis=1)
    return {"curve": curve, "return": curve.mean(), "at the end": curve[-5:].mean()}


def mean_and_interval(values):
    """Return the mean over the last axis, the seeds, and half of its 95% interval (Student's t)."""
    n = values.shape[-1]
    half = student.ppf(0.975, n - 1) * values.std(axis=-1, ddof=1) / n**0.5
    return values.mean(axis=-1), half


def iqm(values, axis=-1):
    """Return the interquartile mean: without the lowest and the highest quarter of the seeds."""
    return trim_mean(values, 0.25, axis=axis)


def compare(train, settings, pictures, rates, steps, folder, shared=None):
    """Tune each setting's rate on 8 seeds, evaluate on 24 others, and draw.

    All settings are also evaluated at one shared rate: `rates[shared]`, or by default the best rate
    of the first setting.
    """
    names, n = list(settings), 3 * SEEDS
    options = {"objective": "return", "mode": "max"}
    tuning = rj.sweep(train, rj.grid(setting=names, rate=rates), seeds=SEEDS, **options)
    tuned = tuning.by_point().reshape(len(names), len(rates), SEEDS)
    best = tuned.mean(axis=-1).argmax(axis=1)
    shared = best[0] if shared is None else shared
    # Each setting at its best rate, at the next higher rate, and at the shared rate.
    chosen = [[place, min(place + 1, len(rates) - 1), shared] for place in best]
    points = list(dict.fromkeys((i, at) for i, places in enumerate(chosen) for at in places))
    evaluated = rj.sweep(
        train,
        [{"setting": names[i], "rate": rates[at]} for i, at in points],
        seeds=range(SEEDS, SEEDS + n),
        **options,
    )
    # Axes: setting, one of the three rates.
    rows = np.array([[points.index((i, at)) for at in places] for i, places in enumerate(chosen)])
    by_point = evaluated.to_dataframe().groupby(["setting", "rate"], sort=False)
    by_point[["return", "at the end"]].agg(["mean", "sem", iqm]).to_csv(folder / "returns.csv")

    factor, rate = f"{rates[1] / rates[0]:.2g}", f"{rates[shared]:.2g}"
    print(
        f"The score of a training run is its mean episode length in steps, at most {LIMIT}. Of "
        f"{len(rates)} rates,\nthe best has the highest mean score over {SEEDS} seeds. All figures "
        f"are from {n} other seeds.\n\n"
        "IQM   mean of the middle half of the scores, and its 95% interval (BCa bootstrap)\n"
        "mean  mean of all scores\n"
        f"lost  seeds with fewer than {LIMIT // 2} steps in the last tenth of the training\n"
        "P     probability of improvement over the first row: of all pairs of a run with a run of\n"
        "      the first row, the share in which the first row scores lower (a tie: half)\n"
        f"wins  the same share of the {n} pairs with equal seeds, and its 95% interval (Wilson)"
    )
    print_table("Each at its best rate", evaluated, names, rows[:, 0])
    print_table(f"Each at {factor} × its best rate", evaluated, names, rows[:, 1])
    others = [0, *(i for i, place in enumerate(best) if i and place != shared)]
    title = f"At a rate of {rate}: the first row, and all rows with another best rate"
    print_table(title, evaluated, [names[i] for i in others], rows[others, 2])

    named = lambda values: dict(zip(names, values, strict=True))
    curves = np.array(np.split(evaluated.metrics["curve"], len(points)))[rows]
    at_best, at_shared = (named(curves[:, k].swapaxes(1, 2)) for k in (0, 2))
    panels = {
        f"mean over the training ({SEEDS} seeds)": (rates, named(tuned)),
        f"each at its best rate ({n} other seeds)": (steps, at_best),
        f"all at a rate of {rate} (the same {n} seeds)": (steps, at_shared),
    }
    for picture, shown in pictures.items():
        looks = {name: settings[name] for name in shown if name in settings}
        draw(looks, panels, folder / f"{picture}.png")
    print(f"Wrote returns.csv and the pictures {', '.join(pictures)}.")


def print_table(title, result, names, rows):
    """Print one line for each point in `rows`, and compare it with the first of them."""
    scores, means = result.by_point(), result.means()
    middle = {point.index: point.objective for point in result.top(len(means), statistic="iqm")}
    found = bootstrap((scores[rows],), iqm, axis=-1, method="BCa", rng=np.random.default_rng(0))
    ended = result.metrics["at the end"].reshape(scores.shape)
    lost = (ended < LIMIT / 2).sum(axis=-1)
    width = max(map(len, names))
    print(f"\n{title}\n{'':{width}}      rate  IQM [interval]   mean  lost     P  wins [interval]")
    for name, row, low, high in zip(names, rows, *found.confidence_interval, strict=True):
        line = (
            f"{name:{width}}{result.points[row]['rate']:10.2g}  {middle[row]:3.0f} "
            f"{f'[{low:.0f}, {high:.0f}]':11}{means[row]:6.0f}{lost[row]:6}"
        )
        if row != rows[0]:
            versus = result.compare(result.points[row], result.points[rows[0]])
            low, high = versus.wins_ci95
            line += f"{versus.improvement:6.2f}  {versus.wins:4.2f} [{low:.2f}, {high:.2f}]"
        print(line)


def draw(looks, panels, file):
    """Draw one panel per title: the mean of each setting and its interval."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, figsize=(5.5, 10.5), sharey=True, layout="constrained")
    for ax, (title, (x, values)) in zip(axes, panels.items(), strict=True):
        for name, style in looks.items():
            mean, half = mean_and_interval(values[name])
            look = {"color": style.color, "ls": style.dashes, "lw": 1.8, "label": name}
            ax.plot(x, mean, marker="o" if ax is axes[0] else "", ms=4, **look)
            ax.fill_between(x, mean - half, mean + half, color=style.color, alpha=0.13, lw=0)
        ax.set_title(title)
        ax.set(xlabel="environment steps (thousands)", ylabel="episode length (steps)")
    axes[0].set(xscale="log", xlabel="learning rate η")
    axes[0].set_ylim(0, min(LIMIT, axes[0].get_ylim()[1]))
    below = {"loc": "upper center", "bbox_to_anchor": (0.45, -0.2), "frameon": False}
    axes[0].legend(ncols=2, fontsize=9, handlelength=2.7, columnspacing=1, **below)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def start(doc, folder, argv):
    """Return the arguments, create the folder, and make each core a device."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--quick", action="store_true", help="short trainings, few rates: seconds")
    parser.add_argument("--output", type=Path, default=folder)
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_num_cpu_devices", os.cpu_count())  # before JAX is first used
    return args
