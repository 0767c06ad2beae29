"""bfloat16 without bias: stochastic rounding by a hash of who is rounded, and when.

The bits come from a counter, not from a generator with a state: of the element's place in its
array, the leaf's number in its tree, the step and a seed, so that the same step rounds alike on
one device or on many, and after a resume.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Each buffer that is rounded has a salt of its own: with one for ν and θ alike, an element that was
# rounded up in one would be so in the other, and the two errors would not average out.
NU, PARAMETERS = 0x9E3779B9, 0x85EBCA6B

_KEPT = np.uint32(0xFFFF0000)  # of a float32 what a bfloat16 has: sign, exponent, 7 bits


def salt(buffer: int, seed: Any, step: Any) -> jax.Array:
    """What tells a buffer's step apart from others: uint32 scalar."""
    seed = jnp.asarray(seed).astype(jnp.int32).astype(jnp.uint32)
    return _hash(_hash(jnp.uint32(buffer) ^ _hash(seed)) + step.astype(jnp.uint32))


def of_leaf(salt: jax.Array, leaf: int) -> jax.Array:
    """For the leaf with this number."""
    return _hash(salt + jnp.uint32(leaf & 0xFFFFFFFF))


@jax.custom_jvp
def round_to_bfloat16(x: jax.Array, salt: jax.Array) -> jax.Array:
    """float32 as one of the two bfloat16 around it, the nearer the likelier: the mean is x.

    A number that bfloat16 has stays what it is. So do NaN and the infinities; no finite number
    becomes infinite. Derivatives pass straight through.

    Args:
      x: of any shape, float32.
      salt: of its buffer, step and leaf.
    """
    limit = float(jnp.finfo(jnp.bfloat16).max)
    bits = jax.lax.bitcast_convert_type(jnp.clip(x, -limit, limit), jnp.uint32)
    # The last 16 bits, over 2¹⁶, are the share of the way to the next: they carry into the rest
    # for as many of the 2¹⁶ numbers that the noise may be.
    noise = _hash(_places(x.shape) + salt) >> 16
    rounded = jax.lax.bitcast_convert_type((bits + noise) & _KEPT, jnp.float32)
    # A mask, and a cast that is exact: casts by way of uint16 cost XLA a temporary.
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


@round_to_bfloat16.defjvp
def _round_jvp(primals, tangents):
    return round_to_bfloat16(*primals), tangents[0].astype(jnp.bfloat16)


def _places(shape: tuple[int, ...]) -> jax.Array:
    """The place of each element, modulo 2³²: one iota a dimension, so that nothing is reshaped, or
    gathered from other devices."""
    place, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        iota = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        place = place + iota * np.uint32(stride & 0xFFFFFFFF)
        stride *= shape[axis]
    return place


def _hash(x: jax.Array) -> jax.Array:
    """A permutation of the 32-bit integers, each bit of which depends on all: two rounds of
    multiplication and xor-shift, with the constants of "lowbias32" (Chris Wellons, Prospecting for
    Hash Functions, 2018)."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)
