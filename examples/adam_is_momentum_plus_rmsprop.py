"""Adam = momentum + RMSProp, to the last digit; and RMSProp with momentum is not Adam.

    RMSProp              s ← ρ s + (1−ρ) g²
                         θ ← θ − η g / (√s + ε)

    Adam                 s ← ρ s + (1−ρ) g²             the same s; Adam calls it v, and ρ β₂
                         m ← β m + (1−β) g              momentum: an average of gradients
                         θ ← θ − η m̂ / (√ŝ + ε)         m̂ = m/(1−βᵗ), ŝ = s/(1−ρᵗ): bias correction

    RMSProp + momentum   b ← μ b + η g / (√s + ε)       an average of scaled steps
                         θ ← θ − b

Both averages weigh the gradient of k steps ago by βᵏ. Adam divides all of them by today's √s;
RMSProp with momentum has divided each by the √s of its own day. While s stands still, that is the
same; when it moves, they part.
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
# Equal: |difference| ≤ LIMIT × the largest step. Sums in another order, and quotients instead of
# products, cost a few of float64's 2e-16.
LIMIT = 1e-14
N = 40  # steps before the gradient that parts Adam and RMSProp with momentum
TURN, NOISE = 100, 2.0  # the mean gradient is 1, after so many steps −1, under this noise


def steps(solver, gradients):
    """What `solver` subtracts from θ at every step, and its last state."""
    start = solver.init(jnp.zeros_like(gradients[0]))
    state, updates = jax.lax.scan(lambda s, g: solver.update(g, s)[::-1], start, gradients)
    return -np.asarray(updates), state


def adam_equations(gradients, beta, s=0.0):
    """Adam without bias correction, as its equations stand."""
    m, out = 0.0, []
    for g in gradients:
        m = beta * m + (1 - beta) * g
        s = RHO * s + (1 - RHO) * g**2
        out.append(ETA * m / (np.sqrt(s) + EPS))
    return np.array(out)


def identities(gradients):
    """What must be equal: (name, one side, the other side). And what noise leaves of the step."""
    run = lambda solver: steps(solver, jnp.asarray(gradients))
    nu = lambda state: np.asarray(optax.tree_utils.tree_get(state, "nu"))
    rmsprop, state = run(rj.rmsprop(ETA, RHO, EPS))
    corrected, _ = run(rj.rmsprop(ETA, RHO, EPS, bias_correction=True))
    adam, adam_state = run(optax.adam(ETA, b1=BETA, b2=RHO, eps=EPS))
    average = -run(optax.ema(BETA, debias=True))[0]
    # Without ε, which bias correction does not rescale.
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
    """Gradients of 1, one of 30, of 1 again; s starts at 1, so that at first it stands still."""
    gradients = np.ones(3 * N)
    gradients[N] = 30.0
    # η (1−μ): Adam's average has the weight 1 − β that the buffer lacks.
    solver = rj.rmsprop(ETA * (1 - BETA), RHO, EPS, initial_scale=1.0, momentum=BETA)
    buffered, _ = steps(solver, jnp.asarray(gradients))
    return gradients, adam_equations(gradients, BETA, s=1.0), buffered


def turning(seeds):
    """What plain RMSProp and Adam subtract when the mean gradient turns; (steps, seeds)."""
    t = np.arange(2 * TURN)[:, None]
    noise = np.random.default_rng(1).normal(size=(2 * TURN, seeds))
    gradients = jnp.asarray(np.where(t < TURN, 1.0, -1.0) + NOISE * noise)
    plain, _ = steps(rj.rmsprop(ETA, RHO, EPS, bias_correction=True), gradients)
    adam, _ = steps(optax.adam(ETA, b1=BETA, b2=RHO, eps=EPS), gradients)
    return plain, adam


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps of few parameters")
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
    print(row("these are equal:", "difference", "the largest, / the largest value"))
    for name, difference in differences.items():
        print(row(name, f"{difference:.1e}", ""))

    first = lambda corrected: (
        steps(rj.rmsprop(ETA, RHO, EPS, bias_correction=corrected), jnp.ones((1, 1)))[0].item()
        / ETA
    )
    print("\n" + row("what Adam adds to RMSProp", "measured", "closed form"))
    noise_left = f"√((1−β)/(1+β)) = {np.sqrt((1 - BETA) / (1 + BETA)):.3f}"
    print(row("β: steps under pure noise, Adam / RMSProp", f"{noise:.3f}", noise_left))
    large = f"1/√(1−ρ) = {1 / np.sqrt(1 - RHO):.3f}"
    print(row("first step / η, without bias correction", f"{first(False):.3f}", large))
    print(row("first step / η, with bias correction", f"{first(True):.3f}", "1"))

    params = jnp.zeros(1000, jnp.float32)
    kept = lambda solver: sum(leaf.nbytes for leaf in jax.tree.leaves(solver.init(params))) // 1000
    print("\n" + row("what they keep, bytes a parameter (float32)", "RMSProp", "Adam"))
    print(row("", kept(rj.rmsprop()), kept(optax.adam(1e-3))))
    print(row('with state_dtype="bfloat16"', kept(rj.rmsprop(state_dtype="bfloat16")), ""))

    plain, averaged = turning(50 if args.quick else 1000)
    before = slice(TURN // 2, TURN)
    print("\n" + row(f"mean gradient 1, then −1; noise of {NOISE:g}", "RMSProp", "Adam"))
    wrong = [f"{(x[before] < 0).mean():.1%}" for x in (plain, averaged)]
    print(row(f"steps the wrong way, of {TURN // 2 + 1} to {TURN}", *wrong))
    late = [str(np.argmax(x[TURN:].mean(1) < 0) + 1) for x in (plain, averaged)]
    print(row("steps until the mean step turns, too", *late))

    gradients, adam, buffered = parting()
    print(
        "\n" + row("Adam and RMSProp with momentum, by stretches", "difference", "the largest, / η")
    )
    parts = ["g = 1 (s stands still)", "one g = 30, then 1", "g = 1, later"]
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
        sys.exit(f"Not equal: a difference of more than {LIMIT:g}.")


def draw_turning(plain, adam, path):
    """One run of each, and the mean of all."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(2, figsize=(5.5, 6), layout="constrained", sharex=True, sharey=True)
    for ax, values, title in (
        (axes[0], (plain[:, 0], adam[:, 0]), "one run: Adam's steps are averages"),
        (axes[1], (plain.mean(1), adam.mean(1)), f"mean of {plain.shape[1]} runs: and turn later"),
    ):
        for name, steps in zip(("RMSProp", "Adam"), values, strict=True):
            ax.plot(steps / ETA, color=rj.plots.COLORS[name], label=name, lw=1.5)
        ax.axhline(0, color="k", lw=0.8)
        ax.axvline(TURN, color="0.5", ls=":")
        ax.set(title=title, ylabel="subtracted from θ, in η")
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
    bottom.set(xlabel="step t", ylabel="what is subtracted from θ, in η", ylim=(0, None))
    note = {"textcoords": "offset points", "arrowprops": {"arrowstyle": "->", "color": "0.4"}}
    bottom.annotate("s stands still:\nequal", (N // 2, 0.87), (40, -70), ha="center", **note)
    bottom.annotate(
        "Adam divides all that it\nremembers by the new √s;\nthe buffer holds steps that\n"
        "are divided, and rolls on",
        (N + 4, buffered[N + 3] / ETA),
        (30, 0),
        va="center",
        **note,
    )
    bottom.legend(loc="upper right")
    plt.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
