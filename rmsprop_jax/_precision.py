"""Compute in at least float32, whatever the dtypes, and without cancellation."""

import jax
import jax.numpy as jnp
import optax

_WIDE = frozenset(map(jnp.dtype, ("float32", "float64", "complex64", "complex128")))


def in_full_precision(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Run `inner` in at least float32, keep its state's dtypes, cast its updates once."""
    inner = optax.with_extra_args_support(inner)

    # Each runs once a leaf: cheap tests first, they are a part of the tracing time.
    def up(x):
        x = x if isinstance(x, jax.Array) else jnp.asarray(x)
        return x if x.dtype in _WIDE else x.astype(jnp.float32)

    def down(u, g):
        dtype = g.dtype if isinstance(g, jax.Array) else jnp.result_type(g)
        if u.dtype == dtype or not jnp.issubdtype(dtype, jnp.inexact):
            return u
        if jnp.iscomplexobj(u) and not jnp.issubdtype(dtype, jnp.complexfloating):
            u = u.real
        limit = float(jnp.finfo(dtype).max)
        if limit < float(jnp.finfo(u.dtype).max):
            u = join([clip(x, limit) for x in components(u)])
        return u.astype(dtype)

    def init_fn(params):
        return inner.init(jax.tree.map(up, params))

    def update_fn(updates, state, params=None, **extra_args):
        params = jax.tree.map(up, params)
        new, new_state = inner.update(jax.tree.map(up, updates), state, params, **extra_args)

        # A hyperparameter of a wider dtype must not widen the state: lax.scan would refuse it.
        def keep(x, old):
            if x.dtype == old.dtype:
                return x
            if jnp.iscomplexobj(x) and not jnp.iscomplexobj(old):
                raise ValueError(f"a gradient is {x.dtype}, but its parameter is real.")
            return x.astype(old.dtype)

        return jax.tree.map(down, new, updates), jax.tree.map(keep, new_state, state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


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
    return -jnp.expm1(to_float(t) * jnp.maximum(jnp.log1p(-to_float(w)), -1e9))


@one_minus_power.defjvp
def _one_minus_power_jvp(primals, tangents):
    w, t = to_float(primals[0]), to_float(primals[1])
    return one_minus_power(*primals), t * (1 - w) ** jnp.maximum(t - 1, 0) * to_float(tangents[0])


def to_float(x):
    """x in JAX's default float: float32, or float64 under x64."""
    return jnp.asarray(x, jnp.result_type(float))
