"""Trainings that the tests share."""

import functools
import itertools

import jax
import jax.numpy as jnp

import rmsprop_jax as rj

SCALE = jnp.float32(2.0)


def noisy(curvature=None):
    """A quadratic with noise of its own at each step, a state of every kind of leaf, a structural
    axis; `evaluate` draws, too."""
    curvature = jnp.arange(1.0, 6.0) if curvature is None else curvature

    def solver(hp):
        return rj.rmsprop(hp["rate"], decay=hp["decay"], centered=hp["centered"], eps=1e-3)

    def init(hp, key, scale):
        params = scale * jax.random.normal(key, (5,))
        return {
            "params": params,
            "opt": solver(hp).init(params),
            "count": 0,
            "mean": 0.0,
            "half": jnp.zeros((), jnp.bfloat16),
            "key": jax.random.fold_in(key, 7),
            "nothing": None,
            "empty": jnp.zeros((0, 3)),
        }

    def step(hp, state, key, scale):
        noise = jax.random.normal(key) + jax.random.normal(state["key"])
        loss = lambda p: jnp.sum(p**2 * curvature) + 0.1 * noise * jnp.sum(p)
        value, grads = jax.value_and_grad(loss)(state["params"])
        updates, opt = solver(hp).update(grads, state["opt"])
        return state | {
            "params": state["params"] + updates,
            "opt": opt,
            "count": state["count"] + 1,
            "mean": 0.9 * state["mean"] + 0.1 * value,
            "half": state["half"] + 1.0,
            "key": jax.random.fold_in(state["key"], 1),
        }, {"loss": value, "count": state["count"]}

    def evaluate(hp, state, key, scale):
        noise = 1e-3 * jax.random.normal(key)
        return {"validation": jnp.sum(state["params"] ** 2) + noise, "seen": state["count"]}

    return rj.Training(init, step, evaluate)


POINTS = rj.grid(rate=[1e-3, 1e-2, 1e-1], decay=[0.9, 0.99], centered=[False, True])


def sweep(training=None, points=POINTS, **options):
    given = {"steps": 50, "objective": "validation", "args": (SCALE,), "progress": False}
    return rj.sweep(training or noisy(), points, **given | options)


def alone(training, point, seed, steps, args=(SCALE,), **options):
    """The trial by itself: one jitted scan, its numbers traced as a user would."""
    static = {k: v for k, v in point.items() if isinstance(v, bool | str) or v is None}
    numbers = {k: jnp.float32(v) for k, v in point.items() if k not in static}
    run = jitted(training, tuple(static.items()), steps)
    return run(numbers, jax.random.key(seed), args, **options)


@functools.cache
def jitted(training, static, steps):
    return jax.jit(
        lambda hp, key, args, **options: training.run(
            dict(static) | hp, key, *args, steps=steps, **options
        )
    )


def plain(tree):
    """The leaves as NumPy arrays, a key as its data."""
    data = lambda x: jax.random.key_data(x) if is_key(x) else x
    return [jax.device_get(data(x)) for x in jax.tree.leaves(tree)]


def is_key(x):
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def stop_at(count):
    """A callback that raises a Ctrl-C at a call of this number, counted from 1."""
    calls = itertools.count(1)

    def callback(report):
        if next(calls) == count:
            raise KeyboardInterrupt

    return callback
