"""Numerics of a leaf: clipping, complex numbers, what would cancel."""

import jax
import jax.numpy as jnp


def clip(x, limit: float):
    """x within ±limit; NaN stays NaN."""
    return jax.lax.clamp(jnp.asarray(-limit, x.dtype), x, jnp.asarray(limit, x.dtype))


def components(z):
    """A complex array as its real and imaginary part, a real one as itself."""
    return (z.real, z.imag) if jnp.iscomplexobj(z) else (z,)


def join(xs):
    """The inverse of `components`."""
    return jax.lax.complex(*xs) if len(xs) == 2 else xs[0]


@jax.custom_jvp
def one_minus_power(w, t):
    """1 − (1 − w)ᵗ without cancellation, for w in (0, 1] and an integer t ≥ 0."""
    w = to_float(w)
    log = jnp.where(w < 1, jnp.log1p(-jnp.where(w < 1, w, 0)), -1e9)  # no infinity on the way
    return -jnp.expm1(to_float(t) * log)


@one_minus_power.defjvp
def _one_minus_power_jvp(primals, tangents):
    w, t = to_float(primals[0]), to_float(primals[1])
    return one_minus_power(*primals), t * (1 - w) ** jnp.maximum(t - 1, 0) * to_float(tangents[0])


def to_float(x):
    """x in JAX's default float: float32, or float64 under x64."""
    return jnp.asarray(x, jnp.result_type(float))
