# pyright: standard
"""`cautious`: a step that moves no parameter along its gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from rmsprop_jax._optimizer import precision

LEAST_SHARE = 1e-3  # of a leaf's parameters that move, so that a step is at most 1,000 times longer


def cautious(
    transformation: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Mask the parts of each update that would move a parameter along its gradient, uphill.

        mask = 1 where u g < 0, else 0        u ← u · mask / max(mean of mask, 0.001)

    The gradient g enters `transformation`, and the update u comes from it. With momentum, u may
    point along the present gradient. Then the parameter waits. A part of u or g that is exactly 0
    is masked, too. The other parts of the same array become longer, so that the mean length stays.
    The state is that of `transformation`. A momentum buffer in the state is not masked.

    Put coupled weight decay before `cautious`, because g includes the decay. Put decoupled weight
    decay after `cautious`, because that decay is not masked:

        optax.chain(optax.add_decayed_weights(1e-4), rj.cautious(rj.rmsprop(1e-3, momentum=0.9)))

    `presets.timm(caution=True)` has this order. The mean is over one array. Inside `jax.shard_map`,
    the mean is over the device's shard of the array.

    Args:
      transformation: an optimizer whose updates are added to the parameters, with the learning rate
        in it, such as `rj.rmsprop(...)`.

    Returns:
      An Optax transformation with the state of `transformation`.

    Examples:
      >>> import jax.numpy as jnp, optax, rmsprop_jax as rj
      >>> solver = rj.cautious(optax.sgd(1.0, momentum=0.9))
      >>> state = solver.init(jnp.zeros(2))
      >>> _, state = solver.update(jnp.array([1.0, 1.0]), state)
      >>> updates, _ = solver.update(jnp.array([1.0, -0.5]), state)  # the second would go uphill
      >>> print(updates)
      [-3.8 -0. ]

    References:
      Liang et al., [Cautious Optimizers: Improving Training with One Line of
      Code](https://arxiv.org/abs/2411.16085), 2024, as timm 1.0.31 implements it.
    """
    inner = optax.with_extra_args_support(transformation)

    def update_fn(updates, state, params=None, **extra_args):
        new, state = inner.update(updates, state, params, **extra_args)
        new = jax.tree.map(_masked, updates, new, is_leaf=precision.is_none)
        return new, state

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)


def _masked(g: Any, u: Any) -> Any:
    """Return one array of the update, masked. The parts of a complex number count as two."""
    if g is None or u is None:
        return u
    g, u = map(jnp.asarray, (g, u))
    if jnp.iscomplexobj(u):
        parts = jnp.stack([u.real, u.imag])
        return jax.lax.complex(*_masked(jnp.stack([g.real, g.imag]), parts))
    dtype = jnp.promote_types(u.dtype, jnp.float32)
    # Signs, because a product of tiny numbers is 0. A NaN in u stays NaN: 0 · NaN is NaN.
    mask = (jnp.sign(u) * jnp.sign(g).astype(u.dtype) < 0).astype(dtype)
    share = jnp.sum(mask) / max(mask.size, 1)
    return precision.cast(u.astype(dtype) * (mask / jnp.maximum(share, LEAST_SHARE)), u.dtype)
