"""CartPole, many carts at once, and a neural network.

Barto, Sutton, and Anderson, Neuronlike adaptive elements that can solve difficult learning control
problems, 1983, without friction, with the constants of Gymnasium's CartPole-v1.
"""

import jax
import jax.numpy as jnp

LIMIT, GAMMA = 500, 0.99  # an episode has at most 500 steps, with a reward of 1 each


def upright(key, carts):
    """Return position, speed, angle, and angular speed of each cart at the start of an episode."""
    return jax.random.uniform(key, (carts, 4), minval=-0.05, maxval=0.05)


def move(state, right):
    """Return the state after 0.02 s with a force of 10 N, and whether the pole fell.

    The cart has 1 kg; the pole has 0.1 kg and a length of 1 m.
    """
    _, speed, angle, turning = state.T
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    push = (jnp.where(right, 10.0, -10.0) + 0.05 * turning**2 * sin) / 1.1
    turn = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
    pull = push - 0.05 * turn * cos / 1.1
    after = state + 0.02 * jnp.stack([speed, pull, turning, turn], axis=1)
    return after, (abs(after[:, 0]) > 2.4) | (abs(after[:, 2]) > jnp.pi / 15)


def live(carts, right, begin):
    """Move all carts, `(state, age, length of the last episode)`, by one step.

    Returns the new carts, and the state after the step, before a new episode begins, whether each
    pole fell, and whether each episode ended.
    """
    state, age, last = carts
    after, fell = move(state, right)
    age = age + 1
    ended = fell | (age == LIMIT)
    state = jnp.where(ended[:, None], begin, after)
    return (state, jnp.where(ended, 0, age), jnp.where(ended, age, last)), (after, fell, ended)


def network(key, outputs, last):
    """Return two tanh layers of 64 units and an output layer.

    The weights have a scale of 1/√inputs, times `last` in the output layer.
    """
    sizes, keys = [(4, 64), (64, 64), (64, outputs)], jax.random.split(key, 3)
    layers = zip(keys, sizes, [1, 1, last], strict=True)
    return [(s * jax.random.normal(k, n) / n[0] ** 0.5, jnp.zeros(n[1])) for k, n, s in layers]


def apply(layers, x):
    *hidden, (kernel, bias) = layers
    for w, b in hidden:
        x = jnp.tanh(x @ w + b)
    return x @ kernel + bias
