"""A small convolutional network on synthetic pictures, for several benchmarks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import rmsprop_jax as rj

PICTURES, SIDE, CLASSES, BATCH = 2048, 16, 10, 32


class Net(nn.Module):
    """Two convolutions with pooling, and a dense layer: about 24,000 parameters."""

    @nn.compact
    def __call__(self, x):
        for features in (32, 64):
            x = nn.relu(nn.Conv(features, (3, 3))(x))
            x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(CLASSES)(x.reshape(len(x), -1))


def pictures() -> tuple[jax.Array, jax.Array]:
    """Return pictures, (PICTURES, SIDE, SIDE, 1) float32, and their classes, (PICTURES,) int32.

    Each class has one pattern. The noise has twice the std of a pattern.
    """
    generator = np.random.default_rng(0)
    labels = generator.integers(CLASSES, size=PICTURES, dtype=np.int32)
    patterns = generator.normal(size=(CLASSES, SIDE, SIDE, 1))
    noise = generator.normal(scale=2.0, size=(PICTURES, SIDE, SIDE, 1))
    return jnp.asarray(patterns[labels] + noise, jnp.float32), jnp.asarray(labels)


def train(
    hp: dict[str, Any], key: jax.Array, x: jax.Array, labels: jax.Array, steps: int = 50
) -> dict[str, jax.Array]:
    """Train the network, and return the loss of each step."""
    net, solver = Net(), rj.rmsprop(hp["learning_rate"], decay=hp["decay"])
    init_key, steps_key = jax.random.split(key)

    def step(carry, key):
        params, state = carry
        rows = jax.random.randint(key, (BATCH,), 0, len(x))
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        loss = lambda params: cross_entropy(net.apply(params, x[rows]), labels[rows]).mean()
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = solver.update(grads, state)
        return (optax.apply_updates(params, updates), state), value

    params = net.init(init_key, x[:1])
    start = params, solver.init(params)
    return {"loss": jax.lax.scan(step, start, jax.random.split(steps_key, steps))[1]}
