"""The equations of RMSProp for one array of parameters, in the order in which a step takes them.

    s ← ρ s + (1 − ρ) |g|²        θ ← θ − η g / (√s + ε)

In the code, s is `nu`, and the mean of the gradient is `mu`. All arrays are real. A gradient, and
its mean, is a tuple of parts: one for a real gradient, two for a complex one. |g|² sums over the
parts. The caller (`state.py`) handles dtypes, storage, and clipping.

The form of an equation decides its speed. Each new average must end in a sum, and two outputs may
share only arguments and each other. Otherwise, XLA keeps an intermediate array, and a step takes 2
to 7 times as long (`python -m tests.benchmarks step`).
"""

import functools
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

Parts: TypeAlias = tuple[jax.Array, ...]


class Numbers(NamedTuple):
    """The scalars of one step, in the dtype in which a leaf computes; `None` if not needed."""

    rho: jax.Array
    """ρ, the share of the averages that a step keeps."""
    w: jax.Array
    """1 − ρ, the weight of the new gradient."""
    eps: jax.Array
    """ε, at least the smallest normal number."""
    ratio: Any = None
    """w/ρ. With `centered` only."""
    weight: Any = None
    """W, the weight of all gradients in s. With `bias_correction` and without `centered` only."""
    start: Any = None
    """The share of s₀ in the corrected variance. With `bias_correction` and `centered` only."""
    first: Any = None
    """1 at the first gradient, then 0. With `bias_correction` and `centered` only."""


def second_moment(g: Parts, nu: jax.Array, n: Numbers) -> jax.Array:
    """s ← ρ s + (1 − ρ) |g|²"""
    return n.w * square(g) + n.rho * nu


def centered_moments(g: Parts, mu: Parts, nu: jax.Array, n: Numbers) -> tuple[Parts, jax.Array]:
    """m ← m + w (g − m)        v ← ρ v + (w/ρ) |g − m|², from the new m, with w = 1 − ρ

    This exponentially weighted Welford recurrence equals EMA(|g|²) − |EMA(g)|² in exact arithmetic.
    As a sum of squares, it is never negative. With the old m, w ρ |g − m|² would be equal, but it
    would access 1.4 times the bytes and need a temporary array.
    """
    mu = tuple(m + n.w * (x - m) for x, m in zip(g, mu, strict=True))
    deviation = tuple(x - m for x, m in zip(g, mu, strict=True))
    return mu, n.ratio * square(deviation) + n.rho * nu


def corrected(g: Parts, nu: jax.Array, n: Numbers) -> jax.Array:
    """v̂ = s / W. Centered averages are corrected already: v̂ = v + s₀ (1 − W)/W

    The variance of a single gradient is 0. In this case, v̂ is |g|² instead, so that |u| ≤ 1.
    """
    if n.weight is not None:
        return nu / n.weight
    if n.start is not None:
        return nu + n.start + n.first * square(g)
    return nu


def direction(g: Parts, v: jax.Array, n: Numbers, eps_in_sqrt: bool, floor: float) -> Parts:
    """u = g / (√v + ε), or g / √(v + ε)

    `floor`, the smallest normal number, gives 0/0 an answer and the root a finite derivative.
    """
    denominator = root(v + n.eps, floor) if eps_in_sqrt else root(v + floor, floor) + n.eps
    return tuple(x / denominator for x in g)


def square(x: Parts) -> jax.Array:
    """|x|²"""
    return sum((part * part for part in x[1:]), start=x[0] * x[0])


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def root(x: jax.Array, floor: float) -> jax.Array:
    """√x for x ≥ `floor`, with derivative 0 at the floor, where s = ε = 0.

    Only the floor bounds a centered step g/0. Its derivatives would overflow, and then be NaN.
    """
    del floor
    return jnp.sqrt(x)


@root.defjvp
def _root_jvp(floor: float, primals: Any, tangents: Any) -> Any:
    (x,), (tangent,) = primals, tangents
    value = jnp.sqrt(x)
    return value, jnp.where(x > floor, 0.5 / value, 0) * tangent
