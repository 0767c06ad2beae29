"""Whose RMSProp for A2C? Presets, learning rates and mix-ups on a pole that must not fall.

Whole trainings of an advantage actor-critic, each environment step included, run inside one sweep;
what names the optimiser is an axis of it. First the published settings, each with the loss that it
belongs to, summed or a mean; then Stable-Baselines3's with one thing changed; then the published
ones on the wrong loss. The rate is tuned on some seeds, and all that is said rests on others.

The pole on a cart: Barto, Sutton and Anderson, Neuronlike adaptive elements that can solve
difficult learning control problems, 1983, without friction, with the numbers of Gymnasium's
CartPole-v1.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import t as student

import rmsprop_jax as rj

LIMIT, GAMMA = 500, 0.99  # an episode ends after 500 steps, each with a reward of 1


def upright(key, carts):
    """Position, speed, angle and angular speed of each cart at the start of an episode."""
    return jax.random.uniform(key, (carts, 4), minval=-0.05, maxval=0.05)


def move(state, right):
    """.02 s under a force of 10 N: a cart of 1 kg, a pole of .1 kg and 1 m; and whether it fell."""
    _, speed, angle, turning = state.T
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    push = (jnp.where(right, 10.0, -10.0) + 0.05 * turning**2 * sin) / 1.1
    turn = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
    pull = push - 0.05 * turn * cos / 1.1
    after = state + 0.02 * jnp.stack([speed, pull, turning, turn], axis=1)
    return after, (abs(after[:, 0]) > 2.4) | (abs(after[:, 2]) > jnp.pi / 15)


def live(carts, right, begin):
    """A step of all carts, `(state, age, length of the last episode)`, and what came of it."""
    state, age, last = carts
    after, fell = move(state, right)
    age = age + 1
    ended = fell | (age == LIMIT)
    state = jnp.where(ended[:, None], begin, after)
    return (state, jnp.where(ended, 0, age), jnp.where(ended, age, last)), (after, fell, ended)


def network(key, outputs, last):
    """Two layers of 64 tanh; the last is `last` as large as 1/√inputs."""
    sizes, keys = [(4, 64), (64, 64), (64, outputs)], jax.random.split(key, 3)
    layers = zip(keys, sizes, [1, 1, last], strict=True)
    return [(s * jax.random.normal(k, n) / n[0] ** 0.5, jnp.zeros(n[1])) for k, n, s in layers]


def apply(layers, x):
    *hidden, (kernel, bias) = layers
    for w, b in hidden:
        x = jnp.tanh(x @ w + b)
    return x @ kernel + bias


class Setting(NamedTuple):
    solver: Callable  # from the learning rate
    divisor: int  # of the summed loss: 1 is the sum, the batch's size the mean
    color: str
    dashes: str = "-"


CARTS, HORIZON = 8, 5
BATCH = CARTS * HORIZON
SB3 = "Stable-Baselines3"
base = lambda **changes: lambda rate: rj.rmsprop(rate, **{"decay": 0.99, "eps": 1e-5} | changes)
clipped = lambda rate: optax.chain(optax.clip_by_global_norm(0.5), base()(rate))
SETTINGS = {
    SB3: Setting(lambda rate: rj.presets.torch(rate, alpha=0.99, eps=1e-5), BATCH, "#000000"),
    "A3C 2016": Setting(rj.presets.a3c2016, CARTS, "#d55e00"),  # summed over the steps
    "IMPALA 2018": Setting(rj.presets.impala2018, 1, "#009e73"),
    "DQN 2015": Setting(rj.presets.dqn2015, 1, "#0072b2"),
    "Optax's default": Setting(rj.presets.optax, BATCH, "#cc79a7"),
    "Adam": Setting(optax.adam, BATCH, "#e69f00"),
    "Adam, ε = √1e-5": Setting(lambda rate: optax.adam(rate, eps=1e-5**0.5), BATCH, "#56b4e9"),
    "ε in the root": Setting(base(eps_in_sqrt=True), BATCH, "#0072b2"),
    "s₀ = 1": Setting(base(initial_scale=1.0), BATCH, "#d55e00"),
    "both (OpenAI Baselines)": Setting(base(eps_in_sqrt=True, initial_scale=1.0), BATCH, "#009e73"),
    "centred": Setting(base(centered=True), BATCH, "#cc79a7"),
    "ρ = .9": Setting(base(decay=0.9), BATCH, "#e69f00"),
    "ε = 1e-8": Setting(base(eps=1e-8), BATCH, "#56b4e9"),
    "its loss summed": Setting(base(), 1, "#000000", "--"),
    "summed, clip left at .5": Setting(clipped, 1, "#000000", ":"),
    "A3C 2016, mean": Setting(rj.presets.a3c2016, BATCH, "#d55e00", "--"),
    "IMPALA 2018, mean": Setting(rj.presets.impala2018, BATCH, "#009e73", "--"),
    "DQN 2015, mean": Setting(rj.presets.dqn2015, BATCH, "#0072b2", "--"),
}
_NAMES = list(SETTINGS)
PICTURES = {
    "presets": _NAMES[:7],
    "changes": [SB3, *_NAMES[7:13]],
    "sum_or_mean": [SB3, *_NAMES[13:15], *_NAMES[1:4], *_NAMES[15:]],
}


def train(hp, key, updates):
    solver, divisor, *_ = SETTINGS[hp["setting"]]
    # The norm is clipped at .5 of the mean's units, so that it is the same clip for a sum.
    solver = optax.chain(optax.clip_by_global_norm(0.5 * BATCH / divisor), solver(hp["rate"]))

    def loss(params, states, actions, returns):
        log_p = jax.nn.log_softmax(apply(params["policy"], states))
        chosen = jnp.take_along_axis(log_p, actions[..., None], axis=-1)[..., 0]
        advantage = returns - apply(params["value"], states)[..., 0]
        each = 0.5 * advantage**2 - jax.lax.stop_gradient(advantage) * chosen
        return each.sum() / divisor

    def update(carry, key):
        params, opt_state, carts = carry
        act_key, begin_key = jax.random.split(key)
        noise = jax.random.gumbel(act_key, (HORIZON, CARTS, 2))

        def act(carts, noise):
            actions = jnp.argmax(apply(params["policy"], carts[0]) + noise, axis=1)
            new, came = live(carts, actions == 1, begin)
            return new, (carts[0], actions, *came)

        begin = upright(begin_key, CARTS)
        carts, (states, actions, after, fell, ended) = jax.lax.scan(act, carts, noise)
        values = apply(params["value"], after)[..., 0]

        def discounted(future, now):
            value, fell, ended = now  # one that ran out of time has a future
            future = 1 + GAMMA * jnp.where(fell, 0, jnp.where(ended, value, future))
            return future, future

        _, returns = jax.lax.scan(discounted, values[-1], (values, fell, ended), reverse=True)
        gradient = jax.grad(loss)(params, states, actions, returns)
        updates, opt_state = solver.update(gradient, opt_state)
        return (optax.apply_updates(params, updates), opt_state, carts), carts[2].mean()

    policy_key, value_key, begin_key, key = jax.random.split(key, 4)
    params = {"policy": network(policy_key, 2, 0.01), "value": network(value_key, 1, 1.0)}
    carts = upright(begin_key, CARTS), jnp.zeros(CARTS, int), jnp.zeros(CARTS, int)
    start = params, solver.init(params), carts
    _, length = jax.lax.scan(update, start, jax.random.split(key, updates))
    return summary(length)


def summary(length):
    """50 values for the curve, their mean, and the mean of the last tenth."""
    curve = length.reshape(50, -1).mean(axis=1)
    return {"curve": curve, "return": curve.mean(), "at the end": curve[-5:].mean()}


def mean_and_interval(values):
    """Over the last axis, the seeds: the mean, and half of its 95% interval by Student's t."""
    n = values.shape[-1]
    half = student.ppf(0.975, n - 1) * values.std(axis=-1, ddof=1) / n**0.5
    return values.mean(axis=-1), half


def compare(train, settings, pictures, rates, seeds, steps, folder, shared=None):
    """Tunes each setting's rate on `seeds` seeds, judges on three times as many others; draws.

    All are judged at one rate, too: the place `shared` in `rates`, or the best one of the first.
    """
    names, (first, *_) = list(settings), settings
    options = {"objective": "return", "mode": "max"}
    tuning = rj.sweep(train, rj.grid(setting=names, rate=rates), seeds=seeds, **options)
    tuned = tuning.by_point().reshape(len(names), len(rates), seeds)
    best = tuned.mean(axis=-1).argmax(axis=1)
    shared = best[0] if shared is None else shared
    # Each at its own best rate, one rate higher, and at the shared one.
    wanted = [[own, min(own + 1, len(rates) - 1), shared] for own in best]
    points = list(dict.fromkeys((i, at) for i, three in enumerate(wanted) for at in three))
    judged = rj.sweep(
        train,
        [{"setting": names[i], "rate": rates[at]} for i, at in points],
        seeds=range(seeds, 4 * seeds),
        **options,
    )
    places = [[points.index((i, at)) for at in three] for i, three in enumerate(wanted)]
    # Each by setting, by which of the three rates, by seed.
    found, end, curves = (
        np.array(np.split(judged.metrics[name], len(points)))[np.array(places)]
        for name in ("return", "at the end", "curve")
    )
    table = judged.to_dataframe().groupby(["setting", "rate"], sort=False)
    table[["return", "at the end"]].agg(["mean", "sem"]).to_csv(folder / "returns.csv")

    mean, half = mean_and_interval(found)
    less, doubt = mean_and_interval(found - found[0])
    apart = abs(less) > doubt
    lost, rate = (end < LIMIT / 2).sum(axis=-1), f"{rates[shared]:.2g}"
    n, factor = 3 * seeds, f"{rates[1] / rates[0]:.2g}"
    print(
        f"Steps without a fall, at most {LIMIT}, in the mean of a training. The best of "
        f"{len(rates)} rates by {seeds}\nseeds, then {n} other seeds: mean ± half of its 95% "
        f"interval; less {first},\nseed by seed (* where that interval leaves out 0); the last "
        f"tenth; and how many of the {n}\nare lost: fewer than {LIMIT // 2} steps in the last "
        "tenth.\n"
    )
    width = max(map(len, names))
    print(
        f"{'':{width}}    own best rate{'':33}× {factor:14}all at {rate}\n{'':{width}}    "
        "rate   mean       less          end  lost   mean       lost  mean       less        lost"
    )
    for i, name in enumerate(names):
        means = [f"{m:3.0f} ± {h:<3.0f}" for m, h in zip(mean[i], half[i], strict=True)]
        stars = [" *" if star else "" for star in apart[i]]
        gaps = [f"{less[i, k]:+.0f} ± {doubt[i, k]:.0f}{stars[k]}" if i else "" for k in range(3)]
        print(
            f"{name:{width}}{rates[best[i]]:8.2g}   {means[0]}  {gaps[0]:12}"
            f"{end[i, 0].mean():5.0f}  {lost[i, 0]:4}   {means[1]}  {lost[i, 1]:4}   "
            f"{means[2]}  {gaps[2]:11} {lost[i, 2]:4}"
        )
    for text, k in (("\nWith the rate tuned", 0), (f"All at a rate of {rate}", 2)):
        order = [i for i in less[:, k].argsort() if apart[i, k]]
        which = ", ".join(f"{names[i]} {less[i, k]:+.0f}" for i in order)
        print(f"{text}, apart from {first}: {which or 'none'}.")

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for picture, shown in pictures.items():
        figure, axes = plt.subplots(1, 3, figsize=(15, 4.8), sharey=True, layout="constrained")
        for name in (name for name in shown if name in settings):
            i, style = names.index(name), settings[name]
            lines = [(rates, tuned[i]), *((steps, curves[i, at].T) for at in (0, 2))]
            for ax, (x, values) in zip(axes, lines, strict=True):
                mean, half = mean_and_interval(values)
                look = {"color": style.color, "ls": style.dashes, "lw": 1.8, "label": name}
                ax.plot(x, mean, marker="o" if ax is axes[0] else "", ms=4, **look)
                ax.fill_between(x, mean - half, mean + half, color=style.color, alpha=0.13, lw=0)
        axes[0].set(xscale="log", xlabel="learning rate η", ylabel="steps without a fall")
        axes[0].set_title(f"mean of the training ({seeds} seeds)")
        axes[1].set_title(f"each at its own best rate ({3 * seeds} other seeds)")
        axes[2].set_title(f"all at a rate of {rate} (the same seeds)")
        for ax in axes[1:]:
            ax.set_xlabel("steps of the environment, thousands")
        axes[0].set_ylim(0, min(LIMIT, axes[0].get_ylim()[1]))
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        figure.savefig(folder / f"{picture}.png", dpi=110)
        plt.close(figure)
    print(f"Wrote returns.csv and the pictures {', '.join(pictures)}.")


def start(doc, folder, argv):
    """What both examples begin with: the arguments, the folder, one device a core."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--quick", action="store_true", help="short trainings, few rates: seconds")
    parser.add_argument("--output", type=Path, default=folder)
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_num_cpu_devices", os.cpu_count())  # before JAX is first used
    return args


def main(argv=None):
    args = start(__doc__, "a2c_output", argv)
    updates, seeds = (50, 2) if args.quick else (2000, 8)
    rates = np.array([1e-3, 1e-1]) if args.quick else np.geomspace(10**-3.5, 1, 8)
    steps = np.arange(1, 51) / 50 * updates * BATCH / 1000
    settings = dict(list(SETTINGS.items())[:: 5 if args.quick else 1])
    whole = lambda hp, key: train(hp, key, updates)
    compare(whole, settings, PICTURES, rates, seeds, steps, args.output)


if __name__ == "__main__":
    main()
