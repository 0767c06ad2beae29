"""Compare optimizers on CartPole: tune on some seeds, evaluate on other seeds, and draw."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from _cart_pole import LIMIT
from scipy.stats import t as student

import rmsprop_jax as rj

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


def compare(train, settings, pictures, rates, seeds, steps, folder, shared=None):
    """Tune each setting's rate on `seeds` seeds, evaluate on three times as many others, and draw.

    All settings are also evaluated at one shared rate: `rates[shared]`, or by default the best rate
    of the first setting.
    """
    names, (first, *_) = list(settings), settings
    options = {"objective": "return", "mode": "max"}
    tuning = rj.sweep(train, rj.grid(setting=names, rate=rates), seeds=seeds, **options)
    tuned = tuning.by_point().reshape(len(names), len(rates), seeds)
    best = tuned.mean(axis=-1).argmax(axis=1)
    shared = best[0] if shared is None else shared
    # Each setting at its best rate, at the next higher rate, and at the shared rate.
    chosen = [[place, min(place + 1, len(rates) - 1), shared] for place in best]
    points = list(dict.fromkeys((i, at) for i, places in enumerate(chosen) for at in places))
    evaluated = rj.sweep(
        train,
        [{"setting": names[i], "rate": rates[at]} for i, at in points],
        seeds=range(seeds, 4 * seeds),
        **options,
    )
    rows = [[points.index((i, at)) for at in places] for i, places in enumerate(chosen)]
    # Axes: setting, one of the three rates, seed.
    returns, end, curves = (
        np.array(np.split(evaluated.metrics[name], len(points)))[np.array(rows)]
        for name in ("return", "at the end", "curve")
    )
    table = evaluated.to_dataframe().groupby(["setting", "rate"], sort=False)
    table[["return", "at the end"]].agg(["mean", "sem"]).to_csv(folder / "returns.csv")

    mean, half = mean_and_interval(returns)
    difference, margin = mean_and_interval(returns - returns[0])
    is_different = abs(difference) > margin
    lost, rate = (end < LIMIT / 2).sum(axis=-1), f"{rates[shared]:.2g}"
    n, factor = 3 * seeds, f"{rates[1] / rates[0]:.2g}"
    print(
        f"Mean episode length over a training, in steps (at most {LIMIT}). Each rate is the best "
        f"of {len(rates)} on {seeds}\nseeds. The figures are from {n} other seeds: mean ± half of "
        f"the 95% interval.\ndiff: difference to {first}, paired by seed (* if its 95% interval "
        f"excludes 0).\nend: the last tenth of the training. lost: seeds, of {n}, with fewer than "
        f"{LIMIT // 2} steps at the end.\n"
    )
    width = max(map(len, names))
    print(
        f"{'':{width + 11}}{'at its best rate':37}{f'at {factor} × the rate':18}at {rate}\n"
        f"{'':{width}}    rate   mean       diff          end  lost   mean       lost  mean       "
        "diff        lost"
    )
    for i, name in enumerate(names):
        means = [f"{m:3.0f} ± {h:<3.0f}" for m, h in zip(mean[i], half[i], strict=True)]
        stars = [" *" if star else "" for star in is_different[i]]
        gaps = [
            f"{difference[i, k]:+.0f} ± {margin[i, k]:.0f}{stars[k]}" if i else "" for k in range(3)
        ]
        print(
            f"{name:{width}}{rates[best[i]]:8.2g}   {means[0]}  {gaps[0]:12}"
            f"{end[i, 0].mean():5.0f}  {lost[i, 0]:4}   {means[1]}  {lost[i, 1]:4}   "
            f"{means[2]}  {gaps[2]:11} {lost[i, 2]:4}"
        )
    for text, k in (("\nAt the best rate", 0), (f"At a rate of {rate}", 2)):
        order = [i for i in difference[:, k].argsort() if is_different[i, k]]
        listed = ", ".join(f"{names[i]} {difference[i, k]:+.0f}" for i in order)
        print(f"{text}, different from {first}: {listed or 'none'}.")

    named = lambda values: dict(zip(names, values, strict=True))
    at_best, at_shared = (named(curves[:, k].swapaxes(1, 2)) for k in (0, 2))
    panels = {
        f"mean over the training ({seeds} seeds)": (rates, named(tuned)),
        f"each at its best rate ({n} other seeds)": (steps, at_best),
        f"all at a rate of {rate} (the same {n} seeds)": (steps, at_shared),
    }
    for picture, shown in pictures.items():
        looks = {name: settings[name] for name in shown if name in settings}
        draw(looks, panels, folder / f"{picture}.png")
    print(f"Wrote returns.csv and the pictures {', '.join(pictures)}.")


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
