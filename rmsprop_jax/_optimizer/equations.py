"""RMSProp's formula: one step of one leaf."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rmsprop_jax._optimizer.precision import clip, components, join
from rmsprop_jax._optimizer.two_bytes import round_to_bfloat16


class Scalars(NamedTuple):
    """The numbers of one step, the same for all leaves."""

    rho: jax.Array
    """ρ, what the averages keep."""
    w: jax.Array
    """1 − ρ, what they take in."""
    ratio: Any
    """w/ρ, and 0 where ρ is. Centred only."""
    eps: jax.Array
    total: Any
    """1 − ρᵗ, bias correction only."""
    s0: Any
    """What is left of s₀. Centred with bias correction only."""
    factor: Any
    """−η, where it is a number and nothing stands between it and the step."""

    def astype(self, dtype) -> "Scalars":
        scalars = jax.tree.map(lambda x: x.astype(dtype), self)
        return scalars._replace(eps=jnp.maximum(scalars.eps, float(jnp.finfo(dtype).tiny)))


# Jitted, so that leaves of one shape are traced once; the scalars come converted, so that no leaf
# compiles that again.
@functools.partial(jax.jit, static_argnums=(4, 5))
def step_leaf(g, mu, nu, scalars: Scalars, eps_in_sqrt: bool, bounded: bool, salt=None):
    """One step of one leaf: (u, new mu, new nu), all in the precision of the scalars.

    A complex g is a pair of real components with one |g|². A `nu` in bfloat16 is rounded by `salt`
    without bias, and the step is taken from what is stored, read back: that is its bound, and else
    XLA would keep both.

    The order of the operations decides the speed: each new state ends in a sum, and the outputs
    share nothing but arguments and one another; else XLA keeps an intermediate (2–7 × the time).

    Bound: g is clipped so that |g|² ≤ L, the largest square. Then |u| ≤ 1/√w for every g: by
    v ≥ w |g|² where w |g|² is at least the smallest normal number, by the denominator, at least
    that number's root, where it is not.
    """
    rho, w, ratio, eps, total, s0, factor = scalars
    dtype, stored = eps.dtype, nu.dtype
    nu = nu.astype(dtype)
    gs = components(g)
    limit = math.sqrt(largest_square(dtype) / len(gs))
    limit = limit if mu is None else limit / 2  # centred: |g − m|² ≤ L too
    gs = [clip(x.astype(dtype), limit) for x in gs]

    if mu is None:
        nu = _store(w * _square(gs) + rho * nu, stored, salt)
        v = nu.astype(dtype) if total is None else nu.astype(dtype) / total
    else:
        # The exponentially weighted Welford recurrence, from the new mean:
        # v = EMA(g²) − EMA(g)² in exact arithmetic, but a sum of squares.
        old = [m.astype(dtype) for m in components(mu)]
        ms = [m + w * (x - m) for x, m in zip(gs, old, strict=True)]
        nu = ratio * _square([x - m for x, m in zip(gs, ms, strict=True)]) + rho * nu
        nu = _store(nu, stored, salt)
        v = nu.astype(dtype) if s0 is None else nu.astype(dtype) + s0
        mu = join(ms).astype(mu.dtype)

    # The smallest normal number gives 0/0 an answer, and the root a finite derivative, at s = 0.
    # With ε inside the root, ε is at least as much.
    tiny = float(jnp.finfo(dtype).tiny)
    denominator = _root(v + eps) if eps_in_sqrt else _root(v + tiny) + eps
    us = [x / denominator for x in gs]
    if bounded:  # leaves a momentum buffer room to add up g/ε, which a centred step can be
        us = [clip(u, largest_square(dtype) / 1e8) for u in us]
    if factor is not None:
        us = [factor * u for u in us]
    return join(us), mu, nu


def _store(nu, dtype, salt):
    """In the dtype in which it is kept."""
    if salt is None:
        return nu.astype(dtype)
    return round_to_bfloat16(nu.astype(jnp.float32), salt)


@jax.custom_jvp
def _root(x):
    """√x for x of at least the smallest normal number.

    Its derivative is 0 there, where s = ε = 0: a centred step g/0 is bounded by that number alone,
    and what it is differentiated by would overflow, to NaN in the end.
    """
    return jnp.sqrt(x)


@_root.defjvp
def _root_jvp(primals, tangents):
    (x,), (tangent,) = primals, tangents
    root = jnp.sqrt(x)
    return root, jnp.where(x > jnp.finfo(x.dtype).tiny, 0.5 / root, 0) * tangent


def largest_square(dtype) -> float:
    """The largest g² that enters the average: 1e38 in float32, 1e308 in float64."""
    return 10.0 ** math.floor(math.log10(jnp.finfo(dtype).max))


def _square(xs):
    return sum((x * x for x in xs[1:]), start=xs[0] * xs[0])
