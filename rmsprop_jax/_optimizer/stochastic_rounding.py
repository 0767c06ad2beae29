"""`stochastic_rounding`: bfloat16 parameters that do not stall."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from rmsprop_jax._optimizer import two_bytes, validation
from rmsprop_jax._optimizer.precision import is_none


class StochasticRoundingState(NamedTuple):
    """State of `stochastic_rounding`."""

    rounding_steps: jax.Array
    """The number of steps taken, int32 scalar."""


def stochastic_rounding(seed: ArrayLike = 0) -> optax.GradientTransformationExtraArgs:
    """Make `optax.apply_updates` round bfloat16 parameters stochastically, without bias.

    A bfloat16 parameter that is rounded to nearest does not move if a step is below 2⁻⁹ of it. With
    this transformation, the parameter p becomes one of the two bfloat16 numbers around p + u, such
    that the mean is p + u. The updates of other parameters do not change.

    Put this transformation last in a chain. It must get the updates before they are rounded: cast
    bfloat16 gradients to float32 first. Put `optax.apply_if_finite` and `optax.MultiSteps` outside.

    The updates are differences of bfloat16 parameters, in their dtype. If the parameters differ by
    more than a factor of 2, bfloat16 may not have the difference. It is then rounded
    stochastically, too, such that the mean of the sum is right.

    Args:
      seed: the seed of the rounding, an int or a traced scalar. The same seed, step, and leaf
        round in the same way, on one device or many. Under `jax.vmap`, and in a sweep, all trials
        share their random bits. Give each group of `optax.partition` its own seed. For sharded
        parameters inside `jax.shard_map(..., check_vma=False)`, pass
        `seed=jax.lax.axis_index(axis)`.

    Returns:
      An Optax transformation whose `update` needs `params`. Its state counts `rounding_steps`.

    Raises:
      ValueError: for a seed that is not a whole number. In `update`, without `params`.

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
    seed = validation.whole("seed", seed)

    def init_fn(params: Any) -> Any:
        del params
        return StochasticRoundingState(jnp.zeros([], jnp.int32))

    def update_fn(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        del extra_args
        if params is None:
            raise ValueError(
                "params must be the parameters that the updates are for, got None. Call "
                "update(updates, state, params)."
            )
        steps: Any = optax.safe_increment(state.rounding_steps)
        salt = two_bytes.salt(two_bytes.PARAMETERS, seed, steps)
        leaves, treedef = jax.tree.flatten(updates, is_leaf=is_none)
        each = zip(leaves, treedef.flatten_up_to(params), strict=True)
        new = [_to_rounded(u, p, salt, i) for i, (u, p) in enumerate(each)]
        return treedef.unflatten(new), StochasticRoundingState(steps)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _to_rounded(u: Any, p: Any, salt: jax.Array, number: int) -> Any:
    """Return the bfloat16 number that, added to p, gives p + u rounded stochastically."""
    if u is None or getattr(p, "dtype", None) != jnp.bfloat16:
        return u
    p = jnp.asarray(p)
    return _step(jnp.asarray(u).astype(jnp.float32), p, two_bytes.leaf_salt(salt, number, p))


@jax.custom_jvp
def _step(u: jax.Array, p: jax.Array, salt: jax.Array) -> jax.Array:
    wide = p.astype(jnp.float32)
    new = two_bytes.rounded(wide + u, salt).astype(jnp.float32)
    # The difference lies between two bfloat16 numbers, which mostly are equal. The probability of
    # the second is such that the mean of p + update, as `apply_updates` rounds it, is the new
    # parameter.
    low, high, chance = two_bytes.between(new - wide, salt)
    sums = [(wide + x).astype(jnp.bfloat16).astype(jnp.float32) for x in (low, high)]
    gap = sums[1] - sums[0]
    share = (new - sums[0]) / jnp.where(gap == 0, 1, gap)
    step = jnp.where(chance < share, high, low)
    return jnp.where(jnp.isfinite(new), step, new).astype(jnp.bfloat16)


@_step.defjvp
def _step_jvp(primals: Any, tangents: Any) -> Any:
    return _step(*primals), two_bytes.rounded(tangents[0], two_bytes.tangent_salt(primals[2]))
