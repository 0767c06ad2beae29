"""An optimiser along a stream of gradients (one a step, along axis 0), by one scan.

A state that changed its types on the way would not pass.
"""

import jax
import jax.numpy as jnp
import optax


def travel(solver, grads, params, state=None):
    """The parameters move: these and the state at the end, and all updates."""

    def step(carry, g):
        params, state = carry
        updates, state = solver.update(g, state, params)
        return (optax.apply_updates(params, updates), state), updates

    return jax.lax.scan(step, (params, solver.init(params) if state is None else state), grads)


def stay(solver, grads, params=None):
    """The parameters stay where they are, at 0 by default: the state at the end, all updates."""
    params = jax.tree.map(lambda g: jnp.zeros_like(g[0]), grads) if params is None else params

    def step(state, g):
        updates, state = solver.update(g, state, params)
        return state, updates

    return jax.lax.scan(step, solver.init(params), grads)
