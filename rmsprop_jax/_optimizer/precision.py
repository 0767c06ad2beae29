# pyright: standard
"""Dtypes: arrays of any dtype enter the optimizer, which computes in at least float32."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from rmsprop_jax._optimizer import validation

_WIDE = frozenset(map(jnp.dtype, ("float32", "float64", "complex64", "complex128")))


def to_float(x: Any) -> jax.Array:
    """Return x in JAX's default float: float32, or float64 under x64."""
    return jnp.asarray(x, jnp.result_type(float))


def real_dtype(x: jax.Array) -> np.dtype:
    """Return the dtype of x, or of the parts of a complex x."""
    return jnp.finfo(x.dtype).dtype


@functools.cache
def largest_square(dtype: DTypeLike) -> float:
    """Return the largest |g|² that enters the average: 1e38 in float32, 1e308 in float64."""
    return 10.0 ** math.floor(math.log10(jnp.finfo(dtype).max))


def clip(x: jax.Array, limit: float) -> jax.Array:
    """Return x within ±limit, each part of a complex x by itself. NaN stays NaN."""
    if jnp.iscomplexobj(x):
        return jax.lax.complex(clip(x.real, limit), clip(x.imag, limit))
    return jax.lax.clamp(jnp.asarray(-limit, x.dtype), x, jnp.asarray(limit, x.dtype))


def cast(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Return x in another precision, at most the largest number of that precision."""
    if x.dtype == dtype:
        return x
    if jnp.iscomplexobj(x) and not jnp.issubdtype(dtype, jnp.complexfloating):
        x = x.real
    limit = float(jnp.finfo(dtype).max)
    return (clip(x, limit) if limit < float(jnp.finfo(x.dtype).max) else x).astype(dtype)


def zeros_like(p: Any, dtype: DTypeLike | None = None) -> jax.Array:
    """Return zeros that are placed as p is, also under `jax.jit`.

    With automatic sharding, the compiler puts plain zeros on one device, since nothing ties them to
    p. These zeros are computed from p. Under `jax.jit` on one device, XLA removes the computation.
    """
    dtype = jnp.dtype(p.dtype if dtype is None else dtype)
    if isinstance(p, jax.ShapeDtypeStruct):
        return jnp.zeros_like(p, dtype)
    p = jax.lax.stop_gradient(p)
    p = p if jnp.issubdtype(dtype, jnp.complexfloating) else p.real
    return jnp.where(jnp.zeros(p.shape, bool), p, jnp.zeros((), p.dtype)).astype(dtype)


def is_none(x: Any) -> bool:
    """Return whether x is `None`, the gradient of a frozen parameter, so that it is a leaf."""
    return x is None


def in_full_precision(
    inner: optax.GradientTransformation, reads_params: bool = False, short_nu: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Run `inner` in at least float32, keep the dtypes of its state, and cast its updates once.

    `inner` gets `params` only if it `reads_params`, and only the leaves that have a gradient. The
    other leaves may be anything that a model holds: `None`, functions, strings. With `short_nu`,
    the averages `nu` of the state are in bfloat16 on purpose.
    """
    inner = optax.with_extra_args_support(inner)

    def init_fn(params):
        return inner.init(jax.tree_util.tree_map_with_path(_widened_parameter, params))

    def update_fn(updates, state, params=None, **extra_args):
        grads, treedef = jax.tree.flatten(updates, is_leaf=is_none)
        beside = _params_of(treedef, params, reads_params)
        wide = treedef.unflatten(_widened(grads, updates, "gradient"))
        wide_params = None
        if reads_params and params is not None:
            beside = [None if g is None else p for g, p in zip(grads, beside, strict=True)]
            wide_params = treedef.unflatten(
                _widened(beside, params, "parameter that weight decay reads")
            )
        state = validation.as_arrays(state)
        if any(_is_half(x.dtype) for x in jax.tree.leaves(state)):
            validation.refuse_narrow_state(state, _is_half, short_nu)
        new, new_state = inner.update(wide, state, wide_params, **extra_args)
        new = map(_narrowed, treedef.flatten_up_to(new), grads, beside)
        return treedef.unflatten(new), jax.tree.map(_as_before, new_state, state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


# `_widen` and `_narrowed` run once per leaf: cheap tests come first, for the time of tracing.


def _widen(x):
    if x is None:
        return None
    x = x if isinstance(x, jax.Array) else jnp.asarray(x)
    return x if x.dtype in _WIDE else x.astype(jnp.float32)


def _widened(leaves, tree, what):
    try:
        return [_widen(x) for x in leaves]
    except (TypeError, ValueError) as error:
        raise ValueError(validation.not_numbers(tree, what, _widen)) from error


def _widened_parameter(path, p):
    """Return p in at least float32, abstract if p is; `None` for a PRNG key, which has no state."""
    if isinstance(p, jax.ShapeDtypeStruct):
        if jnp.issubdtype(p.dtype, jax.dtypes.prng_key):
            return None
        return p if p.dtype in _WIDE else p.update(dtype=jnp.dtype(jnp.float32))
    try:
        p = p if isinstance(p, jax.Array) else jnp.asarray(p)
        return None if jnp.issubdtype(p.dtype, jax.dtypes.prng_key) else _widen(p)
    except (TypeError, ValueError) as error:
        raise ValueError(validation.not_a_parameter(path, p)) from error


def _params_of(treedef, params, needed: bool) -> list[Any]:
    """Return the parameter of each gradient; `None` for all if `params` do not fit or are absent.

    Parameters that `inner` does not read only tell how wide the updates are.
    """
    nothing = [None] * treedef.num_leaves
    if params is None:
        return nothing
    try:
        return treedef.flatten_up_to(params)
    except ValueError as error:
        if not needed:
            return nothing
        raise ValueError(
            f"params must have the structure of the gradients, got another structure: {error}. "
            "Pass the parameters that were differentiated."
        ) from error


def _narrowed(u, g, p):
    """Return the update u in the wider dtype of the gradient g and the parameter p.

    In a bfloat16 gradient's dtype, the decoupled decay of a float32 parameter would be lost.
    """
    if u is None:
        return None
    dtype = _dtype(g)
    if isinstance(p, jax.Array | np.ndarray | float | complex) and _is_wider(_dtype(p), dtype):
        dtype = _dtype(p)
    return cast(u, dtype) if jnp.issubdtype(dtype, jnp.inexact) else u


def _dtype(x):
    return x.dtype if isinstance(x, jax.Array) else jnp.result_type(x)


def _is_wider(dtype, than) -> bool:
    """Return whether the first of two real, or two complex, dtypes is the wider."""
    if dtype == than or not jnp.issubdtype(than, jnp.inexact):
        return False
    kind = jnp.complexfloating if jnp.issubdtype(than, jnp.complexfloating) else jnp.floating
    return jnp.issubdtype(dtype, kind) and jnp.finfo(dtype).bits > jnp.finfo(than).bits


def _as_before(x, old):
    """Return x in its dtype before the step: a wide hyperparameter must not widen the state."""
    if x.dtype == old.dtype:
        return x
    if jnp.iscomplexobj(x) and not jnp.iscomplexobj(old):
        raise ValueError(validation.complex_gradient(x.dtype))
    return x.astype(old.dtype)


def _is_half(dtype) -> bool:
    return dtype not in _WIDE and jnp.issubdtype(dtype, jnp.floating)
