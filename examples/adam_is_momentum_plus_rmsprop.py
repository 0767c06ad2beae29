"""Adam is momentum plus RMSProp, up to rounding. RMSProp with momentum is not Adam.

    RMSProp              s ← ρ s + (1−ρ) g²
                         θ ← θ − η g / (√s + ε)

    Adam                 s ← ρ s + (1−ρ) g²             the same s; Adam's names are v and β₂
                         m ← β m + (1−β) g              momentum: an average of gradients
                         θ ← θ − η m̂ / (√ŝ + ε)         m̂ = m/(1−βᵗ), ŝ = s/(1−ρᵗ): bias correction

    RMSProp + momentum   b ← μ b + η g / (√s + ε)       a decaying sum of scaled steps
                         θ ← θ − b

Adam's m and the buffer b weight the gradient of k steps ago by βᵏ and μᵏ. Adam divides the whole
average by the current √s. RMSProp with momentum divided each gradient by the √s of its own step.
For μ = β and a constant s, the steps differ only by a constant factor. When s changes, this is no
longer true.
"""

import argparse
import csv
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rmsprop_jax as rj

ETA, RHO, BETA, EPS = 1e-3, 0.99, 0.9, 1e-8
# Equal means |difference| ≤ LIMIT × the largest step. Another order of sums, and quotients instead
# of products, change a few units of float64's 2e-16.
LIMIT = 1e-14
N = 40  # steps before the large gradient, after which Adam and RMSProp with momentum differ
TURN, NOISE = 100, 2.0  # the mean gradient is 1 for 100 steps, then −1, with this noise


def steps(solver, gradients):
    """Return the step of `solver` at every gradient (subtracted from θ), and its last state."""
    start = solver.init(jnp.zeros_like(gradients[0]))
    state, updates = jax.lax.scan(lambda s, g: solver.update(g, s)[::-1], start, gradients)
    return -np.asarray(updates), state


def adam_equations(gradients, beta, s=0.0):
    """Return the steps of Adam without bias correction, from the equations."""
    m, out = 0.0, []
    for g in gradients:
        m = beta * m + (1 - beta) * g
        s = RHO * s + (1 - RHO) * g**2
        out.append(ETA * m / (np.sqrt(s) + EPS))
    return np.array(out)


def identities(gradients):
    """Return the equalities (name, one side, other side), and Adam's share of RMSProp's step."""
    run = lambda solver: steps(solver, jnp.asarray(gradients))
    nu = lambda state: np.asarray(optax.tree_utils.tree_get(state, "nu"))
    rmsprop, state = run(rj.rmsprop(ETA, RHO, EPS))
    corrected, _ = run(rj.rmsprop(ETA, RHO, EPS, bias_correction=True))
    adam, adam_state = run(optax.adam(ETA, b1=BETA, b2=RHO, eps=EPS))
    average = -run(optax.ema(BETA, debias=True))[0]
    # Without ε, because bias correction does not rescale ε.
    bare, bare_corrected = (
        run(rj.rmsprop(ETA, RHO, 0.0, bias_correction=b))[0] for b in (False, True)
    )
    factor = np.sqrt(1 - RHO ** np.arange(1, len(gradients) + 1))[:, None]
    late = slice(len(gradients) // 2, None)
    rms = lambda x: np.sqrt(np.mean(x[late] ** 2))
    return [
        ("Adam, β = 0, no bias correction: RMSProp", adam_equations(gradients, 0.0), rmsprop),
        (
            "Adam, β = 0: RMSProp with bias correction",
            run(optax.adam(ETA, b1=0.0, b2=RHO, eps=EPS))[0],
            corrected,
        ),
        ("Adam's second moment: RMSProp's s", nu(adam_state), nu(state)),
        ("Bias correction: a factor of √(1−ρᵗ)", bare * factor, bare_corrected),
        ("Adam: average g × (RMSProp's step / g)", average * (corrected / gradients), adam),
    ], rms(adam) / rms(corrected)


def parting():
    """Return gradients of 1 with one of 30, and both methods' steps. s starts at 1, its limit."""
    gradients = np.ones(3 * N)
    gradients[N] = 30.0
    # η (1−μ), because Adam's average has a factor 1 − β, and the buffer has none.
    solver = rj.rmsprop(ETA * (1 - BETA), RHO, EPS, initial_scale=1.0, momentum=BETA)
    buffered, _ = steps(solver, jnp.asarray(gradients))
    return gradients, adam_equations(gradients, BETA, s=1.0), buffered


def turning(seeds):
    """Return the steps of plain RMSProp and Adam, (steps, seeds), when the mean gradient turns."""
    t = np.arange(2 * TURN)[:, None]
    noise = np.random.default_rng(1).normal(size=(2 * TURN, seeds))
    gradients = jnp.asarray(np.where(t < TURN, 1.0, -1.0) + NOISE * noise)
    plain, _ = steps(rj.rmsprop(ETA, RHO, EPS, bias_correction=True), gradients)
    adam, _ = steps(optax.adam(ETA, b1=BETA, b2=RHO, eps=EPS), gradients)
    return plain, adam


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps and few parameters")
    parser.add_argument("--output", type=Path, default="adam_is_momentum_plus_rmsprop_output")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)
    print(__doc__)

    shape = (50, 10) if args.quick else (1000, 1000)
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=shape) * np.exp(3 * rng.normal(size=shape[1]))
    equal, noise = identities(gradients)
    differences = {name: abs(one - other).max() / abs(other).max() for name, one, other in equal}
    print(
        f"{shape[0]} random gradients for each of {shape[1]} parameters, in float64;\n"
        f"η = {ETA:g}, ρ = {RHO:g}, β = μ = {BETA:g}, ε = {EPS:g}.\n"
    )
    row = lambda *cells: "{:45} {:>10}   {}".format(*cells).rstrip()
    print(row("equal up to rounding:", "difference", "largest, / the largest value"))
    for name, difference in differences.items():
        print(row(name, f"{difference:.1e}", ""))

    first = lambda corrected: (
        steps(rj.rmsprop(ETA, RHO, EPS, bias_correction=corrected), jnp.ones((1, 1)))[0].item()
        / ETA
    )
    print("\n" + row("the parts that Adam adds to RMSProp", "measured", "closed form"))
    noise_left = f"√((1−β)/(1+β)) = {np.sqrt((1 - BETA) / (1 + BETA)):.3f}"
    print(row("β: steps under pure noise, Adam / RMSProp", f"{noise:.3f}", noise_left))
    large = f"1/√(1−ρ) = {1 / np.sqrt(1 - RHO):.3f}"
    print(row("first step / η, without bias correction", f"{first(False):.3f}", large))
    print(row("first step / η, with bias correction", f"{first(True):.3f}", "1"))

    params = jnp.zeros(1000, jnp.float32)
    kept = lambda solver: sum(leaf.nbytes for leaf in jax.tree.leaves(solver.init(params))) // 1000
    print("\n" + row("state, bytes per parameter (float32)", "RMSProp", "Adam"))
    print(row("", kept(rj.rmsprop()), kept(optax.adam(1e-3))))
    print(row('with state_dtype="bfloat16"', kept(rj.rmsprop(state_dtype="bfloat16")), ""))

    plain, averaged = turning(50 if args.quick else 1000)
    before = slice(TURN // 2, TURN)
    print("\n" + row(f"mean gradient 1, then −1; noise of {NOISE:g}", "RMSProp", "Adam"))
    wrong = [f"{(x[before] < 0).mean():.1%}" for x in (plain, averaged)]
    print(row(f"steps in the wrong direction, {TURN // 2 + 1} to {TURN}", *wrong))
    late = [str(np.argmax(x[TURN:].mean(1) < 0) + 1) for x in (plain, averaged)]
    print(row("steps until the mean step changes sign", *late))

    gradients, adam, buffered = parting()
    print("\n" + row("Adam and RMSProp with momentum", "difference", "largest in 40 steps, / η"))
    parts = ["g = 1 (s is constant)", "g = 30 once, then 1", "g = 1, later"]
    gaps = abs(adam - buffered).reshape(3, N).max(axis=1) / ETA
    for name, gap in zip(parts, gaps, strict=True):
        print(row(name, f"{gap:.1e}", ""))

    with open(args.output / "parting.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["t", "gradient", "adam", "rmsprop_with_momentum"])
        writer.writerows(zip(range(1, 3 * N + 1), gradients, adam, buffered, strict=True))
    draw_turning(plain, averaged, args.output / "beside.png")
    draw(gradients, adam, buffered, args.output / "parting.png")
    print(f"\nWrote parting.csv, parting.png and beside.png to {args.output}.")
    if not all(difference <= LIMIT for difference in [*differences.values(), gaps[0]]):
        sys.exit(f"A difference is larger than {LIMIT:g}.")


def draw_turning(plain, adam, path):
    """Draw one run of each optimizer, and the mean of all runs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(2, figsize=(5.5, 6), layout="constrained", sharex=True, sharey=True)
    for ax, values, title in (
        (axes[0], (plain[:, 0], adam[:, 0]), "one run: Adam averages"),
        (
            axes[1],
            (plain.mean(1), adam.mean(1)),
            f"mean of {plain.shape[1]} runs: Adam turns later",
        ),
    ):
        for name, steps in zip(("RMSProp", "Adam"), values, strict=True):
            ax.plot(steps / ETA, color=rj.plots.COLORS[name], label=name, lw=1.5)
        ax.axhline(0, color="k", lw=0.8)
        ax.axvline(TURN, color="0.5", ls=":")
        ax.set(title=title, ylabel="step / η")
    axes[0].legend(loc="lower left")
    axes[1].annotate("the mean gradient turns", (TURN, 0.9), (TURN + 4, 1.6), fontsize=9)
    axes[1].set_xlabel("step t")
    plt.savefig(path, dpi=110)
    plt.close()


def draw(gradients, adam, buffered, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _, (top, bottom) = plt.subplots(
        2, sharex=True, figsize=(5.5, 5.5), height_ratios=[1, 2.8], layout="constrained"
    )
    t = np.arange(1, 3 * N + 1)
    top.plot(t, gradients, color="0.3", drawstyle="steps-mid")
    top.set(yscale="log", ylabel="gradient g", title="RMSProp with momentum is not Adam")
    color = rj.plots.COLORS
    bottom.plot(
        t, buffered / ETA, color=color["RMSProp + momentum"], lw=3, label="RMSProp + momentum"
    )
    bottom.plot(t, adam / ETA, color=color["Adam"], lw=1.8, label="Adam, no bias correction")
    bottom.fill_between(t, adam / ETA, buffered / ETA, color="0.8", lw=0)
    bottom.set(xlabel="step t", ylabel="step / η", ylim=(0, None))
    note = {"textcoords": "offset points", "arrowprops": {"arrowstyle": "->", "color": "0.4"}}
    bottom.annotate("s is constant:\nequal steps", (N // 2, 0.87), (40, -70), ha="center", **note)
    bottom.annotate(
        "Adam divides the whole\naverage by the new √s.\nThe buffer holds gradients\n"
        "divided by earlier √s.",
        (N + 4, buffered[N + 3] / ETA),
        (30, 0),
        va="center",
        **note,
    )
    bottom.legend(loc="upper right")
    plt.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
