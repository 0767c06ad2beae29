"""An average in two bytes stalls with rounding to nearest, but not with stochastic rounding.

The script follows RMSProp's s for 1,000 elements. The gradient is 1, and later 0.1. s is stored in
float32, in bfloat16 with rounding to nearest, and in bfloat16 with stochastic rounding, by
`rj.scale_by_rms(state_dtype="bfloat16")`.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import rmsprop_jax as rj

DECAY, ELEMENTS = 0.999, 1_000


def averages(solver, gradients, dtype):
    """Return s after each step, of shape (steps, elements). With `dtype`, s is stored in it."""

    def step(state, g):
        if dtype is not None:
            state = state._replace(nu=state.nu.astype(jnp.float32))
        _, state = solver.update(jnp.full(ELEMENTS, g), state)
        if dtype is not None:
            state = state._replace(nu=state.nu.astype(dtype))
        return state, state.nu.astype(jnp.float32)

    start = solver.init(jnp.zeros(ELEMENTS))
    if dtype is not None:
        start = start._replace(nu=start.nu.astype(dtype))
    return np.asarray(jax.lax.scan(step, start, gradients)[1], float)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps: seconds")
    parser.add_argument("--output", metavar="DIR", type=Path, default=Path("two_byte_state_output"))
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    half = 200 if args.quick else 5_000
    gradients = jnp.repeat(jnp.array([1.0, 0.1]), half)

    full = rj.scale_by_rms(DECAY)
    short = rj.scale_by_rms(DECAY, state_dtype="bfloat16")
    found = {
        "float32": averages(full, gradients, None),
        "bfloat16, to nearest": averages(full, gradients, jnp.bfloat16),
        "bfloat16, stochastically": averages(short, gradients, None),
    }
    true = found["float32"][:, 0]
    print(f"s / exact s at ρ = {DECAY}: mean ± standard deviation of {ELEMENTS:,} elements")
    print(f"{'':26} step {half:5}         step {2 * half:5}")
    rows = ["step," + ",".join(f"{name} {what}" for name in found for what in ("mean", "sd"))]
    for name, s in found.items():
        at = [(s[i].mean() / true[i], s[i].std() / true[i]) for i in (half - 1, 2 * half - 1)]
        print(f"{name:26} " + "   ".join(f"{mean:.4f} ± {sd:.4f}" for mean, sd in at))
    for i in range(0, 2 * half, max(1, half // 100)):
        cells = [f"{x:.6g}" for s in found.values() for x in (s[i].mean(), s[i].std())]
        rows.append(f"{i + 1}," + ",".join(cells))
    (args.output / "averages.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
    steps = np.arange(1, 2 * half + 1)
    colors = ("#000000", "#d55e00", "#0072b2")
    for (name, s), color in zip(found.items(), colors, strict=True):
        style = {"float32": "--"}.get(name, "-")
        ax.plot(steps, s.mean(1), style, color=color, label=name, zorder=2 + (style == "--"))
        low, high = np.quantile(s, [0.05, 0.95], axis=1)
        ax.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
    ax.set(xlabel="step", ylabel="s, the average of g²", yscale="log")
    ax.set_ylim(bottom=true[0])
    ax.axvline(half, color="grey", linewidth=0.8)
    ax.annotate(
        "the gradient drops\nto a tenth", (half, true.max()), (half * 1.05, true.max() / 30)
    )
    ax.set_title(f"ρ = {DECAY}; bands: 90% of {ELEMENTS:,} elements")
    ax.legend(loc="lower center")
    plt.savefig(args.output / "stall.png", dpi=110)
    for name in ("stall.png", "averages.csv"):
        print(f"Wrote {args.output / name}")


if __name__ == "__main__":
    main()
