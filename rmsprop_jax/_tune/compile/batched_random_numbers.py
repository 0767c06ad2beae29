"""Refuse batches of random keys that would draw other numbers under `vmap` than alone.

XLA's own generator takes a single key. Under `jax.vmap`, JAX gives it the first key of the batch,
and cuts the numbers that it returns into pieces. Equal keys then no longer draw equal numbers
(https://docs.jax.dev/en/latest/jax.random.html#advanced-rng-configuration). Keys of `rbg` and
`unsafe_rbg` use this generator. Keys of `threefry2x32`, JAX's default, do not.
"""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from rmsprop_jax._tune.compile.compiled import wave_of
from rmsprop_jax._tune.compile.kernels import GroupKernels
from rmsprop_jax._tune.compile.layout import DeviceLayout
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.space.values import PyTree
from rmsprop_jax._tune.training.jaxprs import equations
from rmsprop_jax._tune.warn import warn_caller

if TYPE_CHECKING:
    from jax.extend.core import Literal, Var

SAFE = "key<fry>"  # the dtype of threefry2x32's keys, as JAX prints it
LENGTH = 7919  # of a batch that is only traced, a prime unlike the lengths of a training's arrays
GENERATOR = re.compile(rf"stablehlo\.rng_bit_generator\b.*->.*\b{LENGTH}x")
REASON = (
    "train draws with XLA's own generator (keys of rbg or unsafe_rbg). Under jax.vmap, it gives "
    "equal keys different numbers, so that points would not be compared on equal seeds"
)
REMEDY = (
    "Pass batch_size=1, or use keys of JAX's default implementation, "
    'jax.random.key(seed, impl="threefry2x32")'
)


def fitting_batch_size(
    batch_size: int | str,
    pieces: Sequence[GroupKernels],
    args: Callable[[], PyTree],
    cluster: Cluster,
) -> int | str:
    """Return the batch size, or 1 if "auto" would change the numbers that trials draw.

    Args:
      batch_size: a number, or "auto".
      pieces: the kernels of each static group.
      args: a function that returns the sweep's `args` on the devices.
      cluster: the processes and devices that run the trials.

    Raises:
      ValueError: for a number above 1 that would change the numbers that trials draw.

    Warns:
      UserWarning: if "auto" becomes 1 and would have been more.
    """
    if batch_size == 1 or not any(_draws_otherwise(one, args, cluster) for one in pieces):
        return batch_size
    if batch_size != "auto":
        raise ValueError(f"batch_size must be 1, got {batch_size}, because {REASON}. {REMEDY}.")
    if cluster.free_memory() is not None:  # otherwise "auto" is 1 in any case
        warn_caller(f"batch_size is 1, because {REASON}. {REMEDY}, which can share a batch.")
    return 1


def _draws_otherwise(pieces: GroupKernels, args: Callable[[], PyTree], cluster: Cluster) -> bool:
    """Return whether XLA's generator gets a batch of keys when trials share a `vmap`."""
    if not any(map(_may_draw, pieces.traces.pieces.values())):
        return False
    is_lockstep = cluster.trial_mesh is not None
    layout = DeviceLayout(cluster.submeshes, 1, LENGTH, is_lockstep)
    for kernel in pieces.each().values():
        wave, abstract = wave_of(kernel, args(), layout, cluster.mesh)
        if GENERATOR.search(wave.lower(*abstract).as_text()):
            return True
    return False


def _may_draw(piece: jax.stages.Traced) -> bool:
    """Return whether a program has XLA's generator, or keys that may use it."""
    return any(
        equation.primitive.name == "rng_bit_generator"
        or any(map(_is_other_key, [*equation.invars, *equation.outvars]))
        for equation in equations(piece.jaxpr)
    )


def _is_other_key(variable: "Var | Literal") -> bool:
    """Return whether a variable of a program is a key of another implementation than threefry."""
    dtype = getattr(variable.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and str(dtype) != SAFE
