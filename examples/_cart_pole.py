"""A pole on a cart, many at once; and the net that looks at it.

Barto, Sutton and Anderson, Neuronlike adaptive elements that can solve difficult learning control
problems, 1983, without friction, with the numbers of Gymnasium's CartPole-v1.
"""

import jax
import jax.numpy as jnp

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
