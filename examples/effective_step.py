"""Draw the effective learning rate of each parameter, η/(√s + ε), over time.

Four parts: Adagrad and RMSProp follow a target that jumps, with the same learning rate. The
effective rates of both for four kinds of gradient. The memory of s for several decays ρ. The effect
of ε inside and outside the root as s goes to 0.
"""

import argparse
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rmsprop_jax as rj

RATE, DECAY, PERIOD = 0.01, 0.9, 25
STRETCH, COMMON = 500, 0.1  # steps between two jumps of the target, and the common learning rate
DECAYS = [0.5, 0.9, 0.99, 0.999]
LIGHT_TO_DARK = ["#e69f00", "#56b4e9", "#0072b2", "#000000"]


def moments(solver, name, grads):
    """Return the second moment in the solver's state after each gradient."""

    def step(state, g):
        state = solver.update(g, state)[1]
        return state, optax.tree_utils.tree_get(state, name)

    return np.asarray(jax.jit(lambda g: jax.lax.scan(step, solver.init(g[0]), g)[1])(grads))


def streams(steps):
    """Return four sequences of gradients. The numbers in their names are |g|."""
    t = np.arange(steps)
    return {
        "large: 10": np.full(steps, 10.0),
        "small: 0.01": np.full(steps, 0.01),
        f"sparse: 1 in every {PERIOD}th step": np.where(t % PERIOD == 0, 1.0, 0.0),
        "switching: 1, then 0.03": np.where(t < steps // 2, 1.0, 0.03),
    }


def adagrad(rate):
    """Return Adagrad with s₀ = 0, as in Duchi et al. and PyTorch. Optax's default is 0.1."""
    return optax.adagrad(rate, initial_accumulator_value=0.0, eps=1e-8)


def draw_fault(plt, stretches, seeds, file):
    """Draw one parameter that follows a target with noisy gradients. The target jumps from 1 to −1.

    Returns rows for the table: the number of steps to half of the distance, for each jump.
    """
    t = np.arange(stretches * STRETCH)
    target = np.where(t // STRETCH % 2 == 0, 1.0, -1.0)
    noise = jax.random.normal(jax.random.key(0), (seeds, len(t)))
    figure, axes = plt.subplots(3, figsize=(5.5, 7.5), layout="constrained", sharex=True)
    half = {}
    for solver, name, moment in (
        (adagrad(COMMON), "Adagrad", "sum_of_squares"),
        (rj.rmsprop(COMMON, decay=DECAY), "RMSProp", "nu"),
    ):

        def follow(noise, solver=solver, moment=moment):
            def step(carry, now):
                (theta, state), (to, noise) = carry, now
                update, state = solver.update(theta - to + noise, state)
                after = optax.apply_updates(theta, update)
                return (after, state), (theta, optax.tree_utils.tree_get(state, moment))

            start = jnp.float32(-1.0)
            return jax.lax.scan(step, (start, solver.init(start)), (jnp.asarray(target), noise))[1]

        theta, s = jax.device_get(jax.jit(jax.vmap(follow))(noise))
        look = {"color": rj.plots.COLORS[name], "label": name, "lw": 1.3}
        axes[0].semilogy(t + 1, s[0], **look)
        axes[1].semilogy(t + 1, COMMON / np.sqrt(s[0]), **look)
        axes[2].plot(t + 1, theta[0], **look)
        there = (theta * target).reshape(seeds, stretches, STRETCH) > 0
        half[name] = np.where(there.any(-1), there.argmax(-1), np.inf)
    axes[2].plot(t + 1, target, "k--", lw=1, label="target")
    axes[0].set(ylabel="s", title="Adagrad's sum of squares only grows")
    axes[1].set(ylabel="η/√s", ylim=(1e-3, 1), title="Adagrad's effective rate falls like 1/√t")
    axes[2].set(
        ylabel="θ", xlabel="step", title=f"Adagrad follows more and more slowly (η = {COMMON})"
    )
    for ax, place in zip(axes, ("center right", "center right", "lower left"), strict=True):
        ax.legend(loc=place, fontsize=9, framealpha=0.9)
    figure.savefig(file, dpi=110)
    return [
        [jump + 1, *(np.median(half[name][:, jump]) for name in half)] for jump in range(stretches)
    ]


def draw_effective_step(plt, steps, file):
    """Draw both optimizers for the four gradients. Return rows for the table."""
    grads = streams(steps)
    stacked = jnp.stack(list(grads.values()), 1)
    sums = moments(adagrad(RATE), "sum_of_squares", stacked)
    averages = moments(rj.rmsprop(RATE, decay=DECAY), "nu", stacked)

    figure, (left, right) = plt.subplots(
        2, figsize=(5.5, 7.5), layout="constrained", sharex=True, sharey=True
    )
    nu = dict(zip(grads, sums.T, strict=True))
    rj.plots.effective_step(nu, RATE, eps=1e-8, eps_in_sqrt=True, ax=left)
    nu = dict(zip(grads, averages.T, strict=True))
    rj.plots.effective_step(nu, RATE, ax=right)
    left.set(title="Adagrad: falls like 1/√t", xscale="log")
    right.set(title=f"RMSProp, ρ = {DECAY}: settles, then adapts", xscale="log")
    handles = left.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2, title="gradient")
    figure.savefig(file, dpi=110)

    late = np.arange(steps // 4, steps // 2)  # before the switch
    rows = []
    for i, name in enumerate(grads):
        falling, settled = left.lines[i].get_ydata(), right.lines[i].get_ydata()
        exponent = np.polyfit(np.log(late + 1), np.log(falling[late]), 1)[0]
        # The limit of s: g², or for the sparse gradient its value after each 25th step.
        s = (1 - DECAY) / (1 - DECAY**PERIOD) if "sparse" in name else grads[name][-1] ** 2
        last, limit = settled[-PERIOD:].min(), RATE / (np.sqrt(s) + 1e-8)
        rows.append([name, falling[0], falling[-1], exponent, settled[0], last, limit])
    return rows


def draw_memory(plt, steps, file):
    """Draw s after the last gradient, and √s under a noisy gradient whose size jumps."""
    figure, (left, right) = plt.subplots(2, figsize=(5.5, 8), layout="constrained")
    jump = (np.arange(steps) // (steps // 3)) % 2
    noisy = np.random.default_rng(0).normal(size=steps) * np.where(jump, 10.0, 1.0)
    rows = []
    for decay, color in zip(DECAYS, LIGHT_TO_DARK, strict=True):
        solver = rj.scale_by_rms(decay, initial_scale=1.0)
        s = np.append(1.0, moments(solver, "nu", jnp.zeros(5000)))
        k = np.argmax(s <= 0.5)  # interpolated between k − 1 and k on the log scale
        measured = k - 1 + np.log(s[k - 1] / 0.5) / np.log(s[k - 1] / s[k])
        rows.append([decay, measured, np.log(2) / -np.log(decay)])
        left.semilogx(
            np.arange(1, 3001),
            s[1:3001],
            color=color,
            lw=2,
            label=f"ρ = {decay}: half after {measured:.3g}",
        )
        root = np.sqrt(moments(rj.scale_by_rms(decay), "nu", jnp.asarray(noisy)))
        right.plot(root, color=color, lw=1.3, label=f"ρ = {decay}")
    left.axhline(0.5, color="0.6", ls=":")
    left.set(
        xlabel="steps after the last gradient",
        ylabel="s / s at the last gradient",
        ylim=(-0.3, 1.05),
    )
    left.set_title("how long s remembers a gradient")
    right.plot(np.where(jump, 10.0, 1.0), color="#d55e00", ls="--", lw=1.5, label="true size")
    right.set(yscale="log", ylim=(0.03, 50), xlabel="step", ylabel="√s")
    right.set_title("√s under a noisy gradient whose size jumps")
    for ax in (left, right):
        ax.legend(ncols=2, fontsize=9, loc="lower left" if ax is left else "lower right")
    figure.savefig(file, dpi=110)
    return rows


def draw_epsilon(plt, file):
    """Draw |step|/η for a constant gradient, after s has reached g²."""
    sizes = jnp.geomspace(1e-13, 1.0, 400)
    figure, ax = plt.subplots(figsize=(5.5, 4.6), layout="constrained")
    rows = []
    for eps, color in ((1e-8, "#0072b2"), (1e-4, "#d55e00")):
        for inside in (False, True):
            solver = rj.scale_by_rms(0.5, eps=eps, eps_in_sqrt=inside)
            state = solver.init(sizes)
            for _ in range(60):  # s then lacks only 0.5⁶⁰ of g²
                steps, state = solver.update(sizes, state)
            formula = "g/√(s + ε)" if inside else "g/(√s + ε)"
            label = f"{formula}, ε = {eps:.0e}".replace("e-0", "e-")
            style = {"ls": "--", "zorder": 3} if inside else {"alpha": 0.7}
            ax.loglog(sizes, steps, color=color, lw=2, label=label, **style)
            half = np.exp(np.interp(np.log(0.5), np.log(steps), np.log(sizes)))
            exact = np.sqrt(eps / 3) if inside else eps
            rows.append([label, half, exact, 1 / (np.sqrt(eps) if inside else eps)])
    ax.axhline(0.5, color="0.6", ls=":")
    ax.set(
        xlabel="|g|, constant", ylabel="|step| / η", title="ε inside the root acts like √ε outside"
    )
    ax.legend(fontsize=9)
    figure.savefig(file, dpi=110)
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps: seconds")
    parser.add_argument("--output", type=Path, default="effective_step_output")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_num_cpu_devices", os.cpu_count())  # before JAX is first used

    import matplotlib
    import pandas as pd

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    stretches, seeds = (2, 4) if args.quick else (8, 100)
    show = {"index": False, "float_format": "{:.4g}".format}
    jumps = draw_fault(plt, stretches, seeds, args.output / "fault.png")
    print(
        f"The target jumps by 2 every {STRETCH} steps, with noise of 1 and η = {COMMON}. Steps to\n"
        f"half of the distance, median of {seeds} seeds.\n"
    )
    print(pd.DataFrame(jumps, columns=["target", "Adagrad", "RMSProp"]).to_string(**show))

    steps = 300 if args.quick else 3000
    columns = ["gradient", "Adagrad: step 1", f"step {steps}", "exponent of t"]
    columns += ["RMSProp: step 1", "at the end", "closed form"]
    rates = draw_effective_step(plt, steps, args.output / "effective_step.png")
    rates = pd.DataFrame(rates, columns=columns)
    rates.to_csv(args.output / "effective_step.csv", index=False)
    print(f"\nη/(√s + ε) with η = {RATE}, ρ = {DECAY}. The exponent is fitted before the switch.\n")
    print(rates.to_string(**show))

    print("\nSteps after the last gradient until s is half.\n")
    halves = draw_memory(plt, steps, args.output / "memory.png")
    print(pd.DataFrame(halves, columns=["ρ", "measured", "ln 2 / −ln ρ"]).to_string(**show))

    print("\nThe |g| at which ε halves the step, and the largest effective rate (at s = 0).\n")
    eps = draw_epsilon(plt, args.output / "epsilon.png")
    columns = ["step", "measured |g|", "closed form", "largest rate / η"]
    print(pd.DataFrame(eps, columns=columns).to_string(**show))
    print("Wrote effective_step.csv and fault, effective_step, memory and epsilon (.png).")


if __name__ == "__main__":
    main()
