"""Compare RMSProp settings for DQN (deep Q-network) on CartPole, with a summed and a mean loss.

One sweep runs whole trainings, with the replay memory and the target network. The paper's ε = 0.01
belongs to a loss that is summed over 32 transitions. The example compares this setting with the
same ε for a mean, DQN Zoo's 0.01/32² for a mean, and MinAtar's 0.01 outside the root for a mean. It
also compares the paper's setting without `centered`, the paper's setting with a tiny ε, and the
defaults of PyTorch's RMSprop and of Adam.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _cart_pole import GAMMA, apply, live, network, upright
from _settings import ADAM, CENTERED, PLAIN, Setting, compare, start, summary

import rmsprop_jax as rj

CARTS, BATCH = 4, 32  # four environment steps per optimizer step, as in the paper
FIRST, RENEW = 250, 100  # updates before the training, and between two copies to the target network
PAPER = "DQN 2015, sum"
minatar = lambda rate: rj.presets.torch(rate, alpha=0.95, eps=0.01, centered=True)
paper = lambda **changes: (
    lambda rate: rj.rmsprop(
        rate, **{"decay": 0.95, "eps": 0.01, "eps_in_sqrt": True, "centered": True} | changes
    )
)
SETTINGS = {
    PAPER: Setting(rj.presets.dqn2015, 1, CENTERED),
    "DQN 2015, mean": Setting(rj.presets.dqn2015, BATCH, "#0072b2"),
    "mean, ε = 0.01/32² (DQN Zoo)": Setting(paper(eps=0.01 / BATCH**2), BATCH, "#000000", ":"),
    "sum, not centered": Setting(paper(centered=False), 1, PLAIN),
    "sum, ε = 1e-8": Setting(paper(eps=1e-8), 1, "#e69f00"),
    "mean, ε = 0.01 outside (MinAtar)": Setting(minatar, BATCH, "#d55e00"),
    "mean, PyTorch's default": Setting(rj.presets.torch, BATCH, PLAIN, "--"),
    "mean, Adam": Setting(optax.adam, BATCH, ADAM),
}


def train(hp, key, updates):
    make, divisor, *_ = SETTINGS[hp["setting"]]
    solver = make(hp["rate"])
    net_key, begin_key, key = jax.random.split(key, 3)

    def loss(params, target, state, action, after, fell):
        future = jnp.where(fell, 0, apply(target, after).max(axis=1))
        q = jnp.take_along_axis(apply(params, state), action[:, None], axis=1)[:, 0]
        return optax.huber_loss(q, 1 + GAMMA * future).sum() / divisor

    def step(carry, inputs):
        params, target, opt_state, carts, memory = carry
        t, key = inputs
        begin_key, greedy_key, act_key, draw_key = jax.random.split(key, 4)
        explore = jnp.maximum(0.05, 1 - t / (0.1 * updates))
        guess = jax.random.bernoulli(greedy_key, explore, (CARTS,))
        anything = jax.random.randint(act_key, (CARTS,), 0, 2)
        action = jnp.where(guess, anything, apply(params, carts[0]).argmax(axis=1))
        new, (after, fell, _) = live(carts, action == 1, upright(begin_key, CARTS))
        row = carts[0], action, after, fell
        memory = jax.tree.map(lambda all, one: all.at[t].set(one), memory, row)

        row, cart = jax.random.randint(draw_key, (2, BATCH), 0, jnp.array([[t + 1], [CARTS]]))
        drawn = jax.tree.map(lambda all: all[row, cart], memory)
        gradient = jax.grad(loss)(params, target, *drawn)
        change, opt_state = jax.lax.cond(
            t < FIRST,
            lambda: (jax.tree.map(jnp.zeros_like, params), opt_state),
            lambda: solver.update(gradient, opt_state),
        )
        params = optax.apply_updates(params, change)
        target = jax.tree.map(lambda p, q: jnp.where(t % RENEW, q, p), params, target)
        return (params, target, opt_state, new, memory), new[2].mean()

    params, state = network(net_key, 2, 1.0), upright(begin_key, CARTS)
    carts = state, jnp.zeros(CARTS, int), jnp.zeros(CARTS, int)
    row = state, jnp.zeros(CARTS, int), state, jnp.zeros(CARTS, bool)
    memory = jax.tree.map(lambda one: jnp.zeros((updates, *one.shape), one.dtype), row)
    inputs = jnp.arange(updates), jax.random.split(key, updates)
    begin = params, params, solver.init(params), carts, memory
    _, length = jax.lax.scan(step, begin, inputs)
    return summary(length)


def main(argv=None):
    args = start(__doc__, "dqn_output", argv)
    updates = 500 if args.quick else 15000
    halves = [0, 1] if args.quick else range(-1, 5)
    rates = 2.5e-4 * 10 ** (np.array(halves) / 2)  # around the paper's rate
    steps = np.arange(1, 51) / 50 * updates * CARTS / 1000
    whole = lambda hp, key: train(hp, key, updates)
    settings = dict(list(SETTINGS.items())[:: 6 if args.quick else 1])
    paper = halves.index(0)
    compare(whole, settings, {"dqn": list(SETTINGS)}, rates, steps, args.output, paper)


if __name__ == "__main__":
    main()
