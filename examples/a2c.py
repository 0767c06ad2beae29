"""Compare RMSProp presets for A2C (advantage actor-critic) on CartPole.

One sweep runs whole trainings, with the environment. The name of the optimizer is one axis of the
sweep. The first group is the published optimizers, each with its own loss, a sum or a mean. The
second group changes one argument of Stable-Baselines3's optimizer. The third group is the published
optimizers with the wrong loss. The learning rates are tuned on some seeds, and all figures come
from other seeds.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _cart_pole import GAMMA, apply, live, network, upright
from _settings import ADAM, CENTERED, PLAIN, Setting, compare, start, summary

import rmsprop_jax as rj

CARTS, HORIZON = 8, 5
BATCH = CARTS * HORIZON
SB3 = "Stable-Baselines3"
base = lambda **changes: lambda rate: rj.rmsprop(rate, **{"decay": 0.99, "eps": 1e-5} | changes)
clipped = lambda rate: optax.chain(optax.clip_by_global_norm(0.5), base()(rate))
BLACK, RED, ORANGE, BLUE = "#000000", "#d55e00", "#e69f00", "#0072b2"
SETTINGS = {
    SB3: Setting(lambda rate: rj.presets.torch(rate, alpha=0.99, eps=1e-5), BATCH, PLAIN),
    "A3C 2016": Setting(rj.presets.a3c2016, CARTS, RED),  # summed over the steps
    "IMPALA 2018": Setting(rj.presets.impala2018, 1, ORANGE),
    "DQN 2015": Setting(rj.presets.dqn2015, 1, CENTERED),
    "Optax's default": Setting(rj.presets.optax, BATCH, BLUE),
    "Adam": Setting(optax.adam, BATCH, ADAM),
    "Adam, ε = √1e-5": Setting(lambda rate: optax.adam(rate, eps=1e-5**0.5), BATCH, ADAM, "--"),
    "ε in the root": Setting(base(eps_in_sqrt=True), BATCH, BLUE),
    "s₀ = 1": Setting(base(initial_scale=1.0), BATCH, RED),
    "both (OpenAI Baselines)": Setting(base(eps_in_sqrt=True, initial_scale=1.0), BATCH, BLACK),
    "centered": Setting(base(centered=True), BATCH, CENTERED),
    "ρ = 0.9": Setting(base(decay=0.9), BATCH, ORANGE),
    "ε = 1e-8": Setting(base(eps=1e-8), BATCH, BLUE, "--"),
    "summed loss": Setting(base(), 1, PLAIN, "--"),
    "summed loss, clip 0.5": Setting(clipped, 1, PLAIN, ":"),
    "A3C 2016, mean": Setting(rj.presets.a3c2016, BATCH, RED, "--"),
    "IMPALA 2018, mean": Setting(rj.presets.impala2018, BATCH, ORANGE, "--"),
    "DQN 2015, mean": Setting(rj.presets.dqn2015, BATCH, CENTERED, "--"),
}
_NAMES = list(SETTINGS)
PICTURES = {
    "presets": _NAMES[:7],
    "changes": [SB3, *_NAMES[7:13]],
    "sum_or_mean": [SB3, *_NAMES[13:15], *_NAMES[1:4], *_NAMES[15:]],
}


def train(hp, key, updates):
    solver, divisor, *_ = SETTINGS[hp["setting"]]
    # 0.5 limits the norm for the mean. For a sum, the limit grows by the same factor as the loss.
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
            new, outcome = live(carts, actions == 1, begin)
            return new, (carts[0], actions, *outcome)

        begin = upright(begin_key, CARTS)
        carts, (states, actions, after, fell, ended) = jax.lax.scan(act, carts, noise)
        values = apply(params["value"], after)[..., 0]

        def discounted(future, now):
            value, fell, ended = now  # an episode that ended by its time limit has a future value
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


def main(argv=None):
    args = start(__doc__, "a2c_output", argv)
    updates = 50 if args.quick else 2000
    rates = np.array([1e-3, 1e-1]) if args.quick else np.geomspace(10**-3.5, 1, 8)
    steps = np.arange(1, 51) / 50 * updates * BATCH / 1000
    settings = dict(list(SETTINGS.items())[:: 9 if args.quick else 1])
    whole = lambda hp, key: train(hp, key, updates)
    compare(whole, settings, PICTURES, rates, steps, args.output)


if __name__ == "__main__":
    main()
