"""`stochastic_rounding`: parameters in two bytes that do not stand still."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from rmsprop_jax._optimizer.boundary import is_none
from rmsprop_jax._optimizer.two_bytes import PARAMETERS, of_leaf, round_to_bfloat16, salt
from rmsprop_jax._optimizer.validation import whole


class StochasticRoundingState(NamedTuple):
    """State of `stochastic_rounding`."""

    rounding_steps: jax.Array
    """Steps taken, int32 scalar."""


def stochastic_rounding(seed: ArrayLike = 0) -> optax.GradientTransformationExtraArgs:
    """Have `optax.apply_updates` round bfloat16 parameters stochastically, without bias.

    A bfloat16 parameter rounded to the nearest stands still where a step is under 2⁻⁹ of it. Here
    it becomes one of the two bfloat16 around p + u, the nearer the likelier, so that it arrives in
    the mean. Other parameters' updates stay as they are.

    It stands last in a chain, and must see the updates before they are rounded: cast bfloat16
    gradients to float32 first. `optax.apply_if_finite` and `optax.MultiSteps` go outside.

    Updates have the parameter's dtype: the difference of the new parameter and the old. It is exact
    where they are within a factor of 2 of each other; else the sum may miss the new parameter by a
    rounding, without bias.

    Args:
      seed: a whole number, or a traced one. The same seed, step and leaf round alike, on one device
        or on many; under `vmap`, and in a sweep, all trials share their bits.

    Returns:
      An Optax transformation whose `update` needs `params`; its state counts `rounding_steps`.

    Raises:
      ValueError: for a seed that is no whole number; in `update` without `params`.

    Examples:
      >>> import jax.numpy as jnp, optax, rmsprop_jax as rj
      >>> solver = optax.chain(rj.rmsprop(1e-4), rj.stochastic_rounding())
      >>> params = jnp.ones(10_000, jnp.bfloat16)
      >>> state = solver.init(params)
      >>> for _ in range(10):  # steps of 3.2e-4 to 1.2e-4, where bfloat16 has 2⁻⁸ below 1
      ...     updates, state = solver.update(jnp.ones(10_000, jnp.float32), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params.dtype, f"{params.astype(jnp.float32).mean():.4f}")
      bfloat16 0.9983

    References:
      Gupta et al., [Deep Learning with Limited Numerical
      Precision](https://arxiv.org/abs/1502.02551), 2015. Zamirai et al., [Revisiting BFloat16
      Training](https://arxiv.org/abs/2010.06192), 2020.
    """
    seed = whole("seed", seed)

    def init_fn(params: Any) -> Any:
        del params
        return StochasticRoundingState(jnp.zeros([], jnp.int32))

    def update_fn(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        del extra_args
        if params is None:
            raise ValueError(
                "stochastic_rounding rounds the parameters: call update(updates, state, params)."
            )
        steps: Any = optax.safe_increment(state.rounding_steps)
        of_step = salt(PARAMETERS, seed, steps)
        leaves, treedef = jax.tree.flatten(updates, is_leaf=is_none)
        each = zip(leaves, treedef.flatten_up_to(params), strict=True)
        new = [_to_rounded(u, p, of_leaf(of_step, i)) for i, (u, p) in enumerate(each)]
        return treedef.unflatten(new), StochasticRoundingState(steps)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _to_rounded(u: Any, p: Any, salt: jax.Array) -> Any:
    """From p to p + u, rounded."""
    if u is None or getattr(p, "dtype", None) != jnp.bfloat16:
        return u
    wide = jnp.asarray(p).astype(jnp.float32)
    rounded = round_to_bfloat16(wide + jnp.asarray(u).astype(jnp.float32), salt)
    return (rounded.astype(jnp.float32) - wide).astype(jnp.bfloat16)
