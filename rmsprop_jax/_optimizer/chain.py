"""The parts of RMSProp in their order: weight decay, scaling, learning rate, momentum."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from rmsprop_jax._optimizer.boundary import is_none
from rmsprop_jax._optimizer.state import scaling
from rmsprop_jax._optimizer.validation import check_mask, flag, scalar


def chain(
    learning_rate: optax.ScalarOrSchedule,
    decay: ArrayLike,
    eps: ArrayLike,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool = False,
    centered: bool = False,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    lr_in_momentum: bool = True,
    weight_decay: ArrayLike | None = None,
    decoupled_weight_decay: bool = False,
    mask: Any = None,
    state_dtype: Any = None,
    seed: ArrayLike = 0,
) -> optax.GradientTransformation:
    """`rmsprop`, its arguments in its order, for gradients of at least float32."""
    if not callable(learning_rate):
        learning_rate = scalar("learning_rate", learning_rate)
    buffer = decay_weights = optax.identity()
    nesterov, lr_in_momentum = flag("nesterov", nesterov), flag("lr_in_momentum", lr_in_momentum)
    if momentum is not None:
        buffer = _trace(scalar("momentum", momentum, 0.0, 1.0), nesterov)
    elif nesterov:
        raise ValueError(
            "nesterov=True needs a momentum, got momentum=None: pass momentum=0.9 or the like, "
            "or nesterov=False."
        )
    decoupled = flag("decoupled_weight_decay", decoupled_weight_decay) and weight_decay is not None
    if weight_decay is not None:
        strength = scalar("weight_decay", weight_decay, 0.0)
        decay_weights = optax.add_decayed_weights(strength, check_mask(mask))

    # A number goes into the leaf's own formula: one operation less to trace for each leaf.
    factor, rate = None, optax.scale_by_learning_rate(learning_rate)
    follows = (momentum is None or lr_in_momentum) and not decoupled
    if follows and not callable(learning_rate):
        factor, rate = -learning_rate, optax.identity()
    scaled = scaling(
        decay,
        eps,
        initial_scale,
        eps_in_sqrt,
        bias_correction,
        centered,
        bounded=momentum is not None,
        factor=factor,
        state_dtype=state_dtype,
        seed=seed,
    )
    if not decoupled:
        parts = [decay_weights, scaled, *([rate, buffer] if lr_in_momentum else [buffer, rate])]
    elif lr_in_momentum and momentum is not None:
        parts = [scaled, _rate_then_buffer(rate, buffer, decay_weights)]
    else:
        parts = [scaled, buffer, decay_weights, rate]
    return optax.chain(*parts)


def _trace(momentum: ArrayLike, nesterov: bool) -> optax.GradientTransformation:
    """`optax.trace`, which keeps the buffer of a leaf whose update is `None` (Optax drops it)."""
    inner = optax.trace(momentum, nesterov)

    def update_fn(updates, state, params=None):
        if not isinstance(state, optax.TraceState):
            raise ValueError(
                "the state has no momentum buffer: it was made with momentum=None. Call init of "
                "the optimiser that you update with."
            )
        new, new_state = inner.update(updates, state, params)
        trace: Any = new_state
        keep = lambda u, old, new: old if u is None else new
        kept = jax.tree.map(keep, updates, state.trace, trace.trace, is_leaf=is_none)
        return new, optax.TraceState(kept)

    return optax.GradientTransformation(inner.init, update_fn)


def _rate_then_buffer(
    rate: optax.GradientTransformation,
    buffer: optax.GradientTransformation,
    decay_weights: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """η u enters the buffer, η λ θ passes it by; one η, and one count, serves both."""

    def init_fn(params):
        return rate.init(params), buffer.init(params), decay_weights.init(params)

    def update_fn(updates, state, params=None):
        rate_state, buffer_state, decay_state = state
        zeros = jax.tree.map(jnp.zeros_like, updates)
        decayed, decay_state = decay_weights.update(zeros, decay_state, params)
        scaled: Any
        scaled, rate_state = rate.update((updates, decayed), rate_state)
        updates, decayed = scaled
        updates, buffer_state = buffer.update(updates, buffer_state)
        updates = jax.tree.map(jnp.add, updates, decayed)
        return updates, (rate_state, buffer_state, decay_state)

    return optax.GradientTransformation(init_fn, update_fn)
