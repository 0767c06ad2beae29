"""Find random keys that draw other numbers under `vmap` than alone, so that no batch has them.

XLA's own generator takes a single key. Under `jax.vmap`, JAX gives it the first key of the batch
and cuts the numbers that it returns, so that equal keys no longer draw equal numbers
(https://docs.jax.dev/en/latest/jax.random.html#advanced-rng-configuration). Keys of `rbg` and
`unsafe_rbg` use this generator; those of `threefry2x32`, JAX's default, do not.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rmsprop_jax._tune.compile.kernels import BATCHED, GroupKernels, stacked
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.training.trace import equations
from rmsprop_jax._tune.warn import warn_caller

SAFE = "key<fry>"  # as JAX prints the dtype of threefry2x32's keys
LENGTH = 7919  # of a batch that is traced only: no array of a training has this length
GENERATOR = re.compile(rf"stablehlo\.rng_bit_generator\b.*->.*\b{LENGTH}x")
REASON = (
    "train draws with XLA's own generator (keys of rbg or unsafe_rbg), which under jax.vmap gives "
    "equal keys different numbers, so that points would not be compared on equal seeds"
)


def fitting_batch_size(
    batch_size: int | str,
    pieces: Sequence[GroupKernels],
    args: tuple[Any, ...],
    cluster: Cluster,
) -> int | str:
    """Return the batch size, which is 1 where "auto" would change the numbers that are drawn.

    Args:
      batch_size: a number, or "auto".
      pieces: of each structure.
      args: of the sweep.
      cluster: where the trials run.

    Raises:
      ValueError: for a number above 1 that would change the numbers that are drawn.
    """
    if batch_size == 1 or not any(_draws_otherwise(one, args) for one in pieces):
        return batch_size
    if batch_size != "auto":
        raise ValueError(
            f"batch_size must be 1, because {REASON}, got {batch_size}. Pass batch_size=1, or use "
            'keys of JAX\'s default implementation, jax.random.key(seed, impl="threefry2x32").'
        )
    if cluster.free_memory() is not None:  # else it is 1 in any case
        warn_caller(
            f"batch_size is 1, because {REASON}. Pass batch_size=1, or use keys of JAX's default "
            'implementation, jax.random.key(seed, impl="threefry2x32"), which share a batch.'
        )
    return 1


def _draws_otherwise(pieces: GroupKernels, args: tuple[Any, ...]) -> bool:
    """Whether a generator of some piece gets a batch of keys where trials share a `vmap`."""
    if not any(map(_may_draw, pieces.traces.pieces.values())):
        return False
    abstract = jax.eval_shape(lambda: args)
    for kernel in pieces.each().values():
        inputs = kernel.inputs._replace(
            trial=stacked(kernel.inputs.trial, LENGTH),
            start=stacked(kernel.inputs.start, LENGTH),
            args=abstract,
        )
        batch = jax.jit(jax.vmap(kernel.call, BATCHED))
        text = batch.lower(stacked(list(kernel.states), LENGTH), inputs).as_text()
        if GENERATOR.search(text):
            return True
    return False


def _may_draw(piece: jax.stages.Traced) -> bool:
    """Whether it has the generator, or keys that are not known to draw without it."""
    return any(
        equation.primitive.name == "rng_bit_generator"
        or any(map(_is_other_key, [*equation.invars, *equation.outvars]))
        for equation in equations(piece.jaxpr)
    )


def _is_other_key(variable: Any) -> bool:
    dtype = getattr(variable.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and str(dtype) != SAFE
