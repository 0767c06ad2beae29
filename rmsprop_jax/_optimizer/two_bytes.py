# pyright: standard
"""bfloat16 without bias: stochastic rounding by a hash.

The random bits are a hash of the element's place in its array, the leaf's number in its tree, the
step, and a seed. A generator with a state is not needed. A step therefore rounds in the same way on
one device, on many devices, and after a resume.

JAX gives the tangent of a bfloat16 array the dtype bfloat16. Tangents and cotangents are therefore
rounded stochastically too. Rounded to nearest, the derivative of a long average would stall, as the
average itself would.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

# One salt per use. With a common salt, an element that is rounded up in ν would be rounded up in θ,
# too, and the two errors would not average out.
NU, PARAMETERS, TANGENT, COTANGENT = 0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F

_KEPT = np.uint32(0xFFFF0000)  # the part of a float32 that bfloat16 has: sign, exponent, 7 bits


def salt(buffer: int, seed: Any, step: Any) -> jax.Array:
    """Return the salt of a buffer at a step: uint32 scalar."""
    seed = jnp.asarray(seed).astype(jnp.int32).astype(jnp.uint32)
    return _hash(_hash(jnp.uint32(buffer) ^ _hash(seed)) + jnp.asarray(step).astype(jnp.uint32))


def leaf_salt(salt: jax.Array, number: int, leaf: Any = None) -> jax.Array:
    """Return the salt of the leaf with this number.

    Inside `jax.shard_map`, the shards of a leaf get different bits: the indices of the manual axes
    along which the `leaf` varies are hashed in. JAX tracks these axes only with `check_vma=True`.
    Elsewhere all shards round alike, as copies of a replicated leaf must.
    """
    salt = _hash(salt + jnp.uint32(number & 0xFFFFFFFF))
    for axis in sorted(varying_axes(leaf)):
        salt = _hash(salt + jax.lax.axis_index(axis).astype(jnp.uint32))
    return salt


def tangent_salt(salt: jax.Array) -> jax.Array:
    """Return the salt for the tangent of an array that is rounded with `salt`."""
    return _hash(salt ^ np.uint32(TANGENT))


def varying_axes(x: Any) -> frozenset[str]:
    """Return the manual axes along which x is known to vary (an attribute that JAX may rename)."""
    if not isinstance(x, jax.Array):
        return frozenset()
    return getattr(getattr(jax.typeof(x), "manual_axis_type", None), "varying", frozenset())


def rounded(x: jax.Array, salt: jax.Array) -> jax.Array:
    """Return float32 x as one of the two bfloat16 around it, such that the mean is x.

    Exact bfloat16 numbers, NaN, and infinities stay. No finite number becomes infinite.
    Derivatives pass straight through, and are rounded stochastically.

    Args:
      x: float32, any shape.
      salt: uint32 scalar, of the buffer, step, and leaf.
    """
    return _convert(x, salt, jnp.dtype(jnp.bfloat16))


@jax.custom_jvp
def store(x: jax.Array, salt: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return `rounded(x, salt)`, and the same read back in float32.

    A computation from the second array lets XLA drop x. The tangent of the second array is that of
    x, not rounded, so that the cotangents of both are added in float32.
    """
    short = rounded(x, salt)
    return short, short.astype(jnp.float32)


@store.defjvp
def _store_jvp(primals: Any, tangents: Any) -> Any:
    x, salt = primals
    return store(x, salt), (rounded(tangents[0], tangent_salt(salt)), tangents[0])


def read(x: jax.Array, salt: jax.Array) -> jax.Array:
    """Return bfloat16 x in float32. Cotangents are rounded with the salt in the backward pass."""
    return _convert(x, salt, jnp.dtype(jnp.float32))


def between(x: jax.Array, salt: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the two bfloat16 around float32 x, in float32, and a number uniform in [0, 1).

    The number is independent of the rounding by the same salt: it takes the other half of the bits.
    """
    bits = _bits(x)
    low, high = (_float(b & _KEPT) for b in (bits, bits + np.uint32(0xFFFF)))
    noise = _hash(_places(x.shape) + salt) & np.uint32(0xFFFF)
    return low, high, noise.astype(jnp.float32) * np.float32(2.0**-16)


def _round(x: jax.Array, salt: jax.Array) -> jax.Array:
    """Round float32 x; the salt has one axis per leading batch axis of x."""
    places = _places(x.shape[salt.ndim :])
    # The last 16 bits, over 2¹⁶, are the share of the way to the next number. They carry into the
    # rest for as many of the 2¹⁶ values that the noise may have.
    noise = _hash(places + salt.reshape(salt.shape + (1,) * places.ndim)) >> 16
    # A mask and an exact cast. A cast through uint16 would cost a temporary array.
    short = _float((_bits(x) + noise) & _KEPT)
    return jnp.where(jnp.isfinite(x), short, x).astype(jnp.bfloat16)


def _bits(x: jax.Array) -> jax.Array:
    limit = float(jnp.finfo(jnp.bfloat16).max)
    return jax.lax.bitcast_convert_type(jnp.clip(x, -limit, limit), jnp.uint32)


def _float(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _places(shape: tuple[int, ...]) -> jax.Array:
    """Return the place of each element, modulo 2³².

    One iota per dimension: nothing is reshaped or gathered from other devices.
    """
    place, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        iota = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        place = place + iota * np.uint32(stride & 0xFFFFFFFF)
        stride *= shape[axis]
    return place


def _hash(x: jax.Array) -> jax.Array:
    """Return a permutation of the 32-bit integers, each bit of which depends on all bits of x.

    Two rounds of multiplication and xor-shift, with the constants of "lowbias32" (Chris Wellons,
    Prospecting for Hash Functions, 2018).
    """
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


# The conversion is a primitive, because JAX must treat it as linear in both directions. To bfloat16
# it rounds stochastically, to float32 it is exact, and each is the transpose of the other.
# `jax.custom_derivatives.linear_call` would do the same, but has no rule for `jax.vmap`.

_convert_p = Primitive("rmsprop_jax_convert")


def _convert(x: jax.Array, salt: jax.Array, dtype: np.dtype) -> jax.Array:
    return _convert_p.bind(x, salt, dtype=dtype)


def _converted(x: jax.Array, salt: jax.Array, *, dtype: np.dtype) -> jax.Array:
    return _round(x, salt) if dtype == jnp.bfloat16 else x.astype(dtype)


def _jvp(primals, tangents, *, dtype):
    x, salt = primals
    tangent = ad.instantiate_zeros(tangents[0])
    return _convert(x, salt, dtype), _convert(tangent, tangent_salt(salt), dtype)


def _transpose(ct, x, salt, *, dtype):
    if type(ct) is ad.Zero:
        return ad.Zero(x.aval), None
    return _convert(ct, _hash(salt ^ np.uint32(COTANGENT)), x.aval.dtype), None


def _batch(args, axes, *, dtype):
    """Convert a batch, with its axis first in x and salt: the salt has each batch axis of x."""
    (x, salt), (x_axis, salt_axis) = args, axes
    size = (x if x_axis is not None else salt).shape[x_axis if x_axis is not None else salt_axis]
    first = lambda a, axis: (
        jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
    )
    return _convert(first(x, x_axis), first(salt, salt_axis), dtype), 0


_convert_p.def_impl(jax.jit(_converted, static_argnames="dtype"))
_convert_p.def_abstract_eval(lambda x, salt, *, dtype: x.update(dtype=dtype, weak_type=False))
ad.primitive_jvps[_convert_p] = _jvp
ad.primitive_transposes[_convert_p] = _transpose
batching.primitive_batchers[_convert_p] = _batch
mlir.register_lowering(_convert_p, mlir.lower_fun(_converted, multiple_results=False))
