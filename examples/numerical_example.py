"""RMSProp by hand: every number of every step, next to the library's numbers.

The script uses plain Python arithmetic, one line per equation. The script fails if `rmsprop_jax`
gives other numbers in float64. Pass your own gradients, for example --gradients="1,-2;0.5,-2" for
two steps of two parameters.
"""

import argparse
import csv
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rmsprop_jax as rj

# One parameter with large gradients and one with small gradients. At the end, the gradient of the
# first parameter falls, and the gradient of the second grows.
GRADIENTS = "4,0.01; 3,-0.02; -2,0.01; 0.5,0.04"
START = 1.0
NAMES = ["t", "i", "g", "g²", "ρs", "(1−ρ)g²", "s", "√s", "step", "θ", "library's θ"]
ULPS = 4


def by_hand(gradients, eta, rho, eps):
    """Return a row (NAMES without the last) for each parameter i at each step t."""
    rows, s, theta = [], [0.0] * len(gradients[0]), [START] * len(gradients[0])
    for t, gradient in enumerate(gradients, start=1):
        for i, g in enumerate(gradient):
            square = g**2
            kept = rho * s[i]
            new = (1 - rho) * square
            s[i] = kept + new
            root = math.sqrt(s[i])
            step = eta * (g / (root + eps)) if root + eps else 0.0
            theta[i] = theta[i] - step
            rows.append([t, i + 1, g, square, kept, new, s[i], root, step, theta[i]])
    return rows


def by_library(gradients, solver):
    """Return s, step, and θ of the same rows."""
    theta = jnp.full(len(gradients[0]), START)
    state, rows = solver.init(theta), []
    for gradient in gradients:
        updates, state = solver.update(jnp.array(gradient), state)
        theta = optax.apply_updates(theta, updates)
        rows += zip(optax.tree_utils.tree_get(state, "nu"), -updates, theta, strict=True)
    return np.array(rows)


def parse(text):
    """Return a list for each step: "1,-2;0.5,-2" becomes [[1.0, -2.0], [0.5, -2.0]]."""
    steps = []
    for step in text.strip().rstrip(";").split(";"):
        try:
            steps.append([float(number) for number in step.split(",")])
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"each step must be numbers separated by commas, got {step!r} for a step. Separate "
                'steps by semicolons: --gradients="1,-2;0.5,-2".'
            ) from None
        if len(steps[-1]) != len(steps[0]):
            raise argparse.ArgumentTypeError(
                "every step must have one gradient for each parameter, but "
                f"step 1 has {len(steps[0])} numbers and step {len(steps)} has {len(steps[-1])}. "
                "Add the missing numbers."
            )
        for g in steps[-1]:
            if g and not 1e-140 < abs(g) < 1e150:  # NaN, too
                raise argparse.ArgumentTypeError(
                    "a gradient must be 0 or have an absolute value between 1e-140 and 1e150, "
                    f"got a gradient of {g:g}, whose square is not a normal float64 number. Scale "
                    "the gradients."
                )
    return steps


def table(rows, markdown):
    cells = [NAMES] + [[str(x) if isinstance(x, int) else f"{x:.6g}" for x in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [[c.rjust(width) for c, width in zip(row, widths, strict=True)] for row in cells]
    if not markdown:
        return "\n".join("  ".join(line) for line in lines)
    lines.insert(1, ["-" * max(1, width - 1) + ":" for width in widths])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--gradients", type=parse, default=GRADIENTS, help='default: "%(default)s"')
    add("--eta", type=float, default=1e-3, help="the learning rate; default: %(default)s")
    add("--rho", type=float, default=0.9, help="default: %(default)s")
    add("--eps", type=float, default=1e-8, help="outside the root; default: %(default)s")
    add("--markdown", action="store_true", help="print the table as Markdown")
    add("--quick", action="store_true", help="only two steps")
    add("--output", type=Path, default="numerical_example_output", help="default: %(default)s")
    args = parser.parse_args(argv)
    jax.config.update("jax_enable_x64", True)
    gradients = args.gradients[: 2 if args.quick else None]
    try:
        solver = rj.rmsprop(args.eta, decay=args.rho, eps=args.eps)
    except ValueError as error:
        parser.error(str(error))
    args.output.mkdir(parents=True, exist_ok=True)

    rows = by_hand(gradients, args.eta, args.rho, args.eps)
    library = by_library(gradients, solver)
    ours = np.array(rows)[:, [6, 8, 9]]  # s, step, θ
    # θ may pass through 0, so its unit is at least the unit of its start.
    ulps = (abs(ours - library) / np.spacing(np.maximum(abs(ours), [0, 0, START]))).max(axis=0)
    rows = [[*row, theta] for row, theta in zip(rows, library[:, 2].tolist(), strict=True)]

    print(f"g: gradient; s = 0 and θ = {START:g} at the start.  ", end="")
    print(f"η = {args.eta:g}, ρ = {args.rho:g}, ε = {args.eps:g}")
    print("s ← ρs + (1−ρ)g²      step = η g/(√s + ε)      θ ← θ − step\n")
    print(table(rows, args.markdown))
    bound = args.eta / math.sqrt(1 - args.rho)
    print(f"\nThe first step is η/√(1−ρ) = {bound:.7g} for every gradient far above ε.")
    print("Largest difference from rmsprop_jax in float64, in units of the last place:")
    print(", ".join(f"{n} {x:g}" for n, x in zip(("s", "step", "θ"), ulps, strict=True)) + ".")
    with open(args.output / "steps.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([NAMES, *rows])
    draw(np.array(rows), bound, args.output / "steps.png")
    print(f"Wrote {args.output / 'steps.csv'} and {args.output / 'steps.png'}.")
    if not (ulps <= ULPS).all():
        sys.exit(f"The numbers differ by more than {ULPS} units of the last place.")


def draw(rows, bound, path):
    """Draw the two parts of s, and the step, for up to four parameters."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = range(1, min(4, int(rows[:, 1].max())) + 1)
    size = {"figsize": (5.5, 4.2 * len(shown)), "layout": "constrained"}
    _, axes = plt.subplots(2 * len(shown), **size)
    for i, (top, bottom) in zip(shown, axes.reshape(-1, 2), strict=True):
        t, _, g, _, kept, new, _, _, step = rows[rows[:, 1] == i].T[:9]
        top.bar(t, kept, color="#56b4e9", label="ρs, from earlier steps")
        top.bar(t, new, bottom=kept, color="#d55e00", label="(1−ρ)g², from this step")
        top.set_title(f"parameter {i}:  g = " + ", ".join(f"{x:g}" for x in g[:6]))
        top.ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=True)
        bottom.bar(t, step, color=rj.plots.COLORS["RMSProp"])
        bottom.axhline(0, color="k", lw=0.8)
        for sign in (-1, 1):
            bottom.axhline(sign * bound, color="0.4", ls=":")
        bottom.text(t[-1] + 0.4, 1.04 * bound, "η/√(1−ρ)", ha="right", va="bottom")
        bottom.margins(y=0.25)
        top.set_ylabel("s = ρs + (1−ρ)g²")
        bottom.set_ylabel("η g / (√s + ε)")
        for ax in (top, bottom):
            ax.set_xticks(t[:: -(-len(t) // 10)])
    axes[-2].legend(loc="upper left")
    axes[-1].set_xlabel("step t")
    plt.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
