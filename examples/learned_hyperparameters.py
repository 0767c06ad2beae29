"""Learn η and ρ by gradient descent through training.

Every number of `rmsprop` is differentiable, so the loss after training has a derivative with
respect to the learning rate and the decay. Adam follows this derivative from poor initial values.
The example compares the learned values with the best point of a grid. The values are learned on 8
tasks, and evaluated on 64 others.
"""

import argparse
import csv
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import rmsprop_jax as rj

STEPS = 50


def initial(key):
    """Return a network with one hidden layer of 16 units."""
    first, second = jax.random.split(key)
    return {
        "w1": 2 * jax.random.normal(first, (1, 16)),
        "b1": jnp.zeros(16),
        "w2": jax.random.normal(second, (16, 1)) / 4,
    }


def loss(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] - y) ** 2)


def train(hp, key):
    """Fit a sine wave with a random phase. Return the loss of each step, on 32 new points."""
    init_key, phase_key, data_key = jax.random.split(key, 3)
    phase = jax.random.uniform(phase_key, maxval=2 * jnp.pi)
    solver = rj.rmsprop(hp["learning_rate"], decay=hp["decay"])
    params = initial(init_key)

    def step(carry, key):
        params, state = carry
        x = jax.random.uniform(key, (32, 1), minval=-2.0, maxval=2.0)
        value, grads = jax.value_and_grad(loss)(params, x, jnp.sin(2 * x + phase))
        updates, state = solver.update(grads, state)
        return (optax.apply_updates(params, updates), state), value

    start = params, solver.init(params)
    losses = jax.lax.scan(step, start, jax.random.split(data_key, STEPS))[1]
    return {"loss": losses, "final": losses[-10:].mean()}


def hyperparameters(free):
    """Return η > 0 and ρ in (0, 1) for any two real numbers."""
    return {
        "learning_rate": jnp.exp(free["log_rate"]),
        "decay": jax.nn.sigmoid(free["logit_decay"]),
    }


def final(hp, keys):
    return jax.vmap(lambda key: train(hp, key)["final"])(keys).mean()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps: seconds")
    parser.add_argument("--output", type=Path, default="learned_hyperparameters_output")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_num_cpu_devices", os.cpu_count())  # before JAX is first used
    outer_steps = 5 if args.quick else 150
    tasks = jax.random.split(jax.random.key(0), 8)
    others = jax.random.split(jax.random.key(1), 64)

    # Clipped, because a long training is sometimes chaotic, and its derivative then huge.
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.05))
    free = {"log_rate": jnp.log(1e-3), "logit_decay": jax.scipy.special.logit(0.99)}

    @jax.jit
    def outer_step(free, state):
        value, grads = jax.value_and_grad(lambda free: final(hyperparameters(free), tasks))(free)
        updates, state = adam.update(grads, state)
        return optax.apply_updates(free, updates), state, value

    state, rows, start = adam.init(free), [], hyperparameters(free)
    for i in range(outer_steps):
        hp = hyperparameters(free)
        free, state, value = outer_step(free, state)
        rows.append([i, float(hp["learning_rate"]), float(hp["decay"]), float(value)])
    learned = hyperparameters(free)
    with open(args.output / "learning.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["step", "learning_rate", "decay", "loss"], *rows])

    points = rj.grid(
        learning_rate=[1e-3, 1e-1] if args.quick else [1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1],
        decay=[0.9] if args.quick else [0.5, 0.8, 0.9, 0.95, 0.99],
    )
    found = rj.sweep(train, points, seeds=2 if args.quick else 8, objective="final").best().hp
    test = jax.jit(lambda hp: final(hp, others))
    print(
        f"                   η      ρ   loss on {len(others)} other tasks, last 10 of {STEPS} steps"
    )
    for name, hp in {"start": start, "learned": learned, "best of grid": found}.items():
        print(f"{name:12} {hp['learning_rate']:7.4f} {hp['decay']:6.3f}   {test(hp):.4f}")

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(3, figsize=(5.5, 7.5), layout="constrained", sharex=True)
    _, rates, decays, losses = zip(*rows, strict=True)
    for ax, values, label in zip(
        axes, (rates, decays, losses), ("learning rate η", "decay ρ", "loss after training"),
        strict=True,
    ):  # fmt: skip
        ax.plot(values, color=rj.plots.COLORS["RMSProp"])
        ax.set_ylabel(label)
    axes[-1].set_xlabel("step of Adam on η and ρ")
    axes[0].set_yscale("log")
    axes[2].set_yscale("log")
    axes[0].axhline(float(found["learning_rate"]), ls=":", color="0.4", label="best of the grid")
    axes[1].axhline(float(found["decay"]), ls=":", color="0.4", label="best of the grid")
    axes[0].legend()
    axes[1].legend()
    plt.savefig(args.output / "learning.png", dpi=110)
    print(f"Wrote {args.output / 'learning.csv'} and {args.output / 'learning.png'}.")


if __name__ == "__main__":
    main()
