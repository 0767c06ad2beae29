"""What crosses into the optimiser, and out of it: any tree, whole models too, any dtype."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmsprop_jax._optimizer.precision import clip, components, join

_WIDE = frozenset(map(jnp.dtype, ("float32", "float64", "complex64", "complex128")))


def is_none(x: Any) -> bool:
    """So that a `None`, the gradient of what is not trained, counts as a leaf of its tree."""
    return x is None


def in_full_precision(
    inner: optax.GradientTransformation, reads_params: bool = False, short_nu: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Run `inner` in at least float32, keep its state's dtypes, cast its updates once.

    `inner` gets the parameters only where it `reads_params`, and of these only the leaves that have
    a gradient: the others may be `None`, functions, strings, or anything else that a model holds.
    With `short_nu` the averages `nu` of its state are meant to be in bfloat16.
    """
    inner = optax.with_extra_args_support(inner)

    def init_fn(params):
        return inner.init(jax.tree_util.tree_map_with_path(_like_parameter, params))

    def update_fn(updates, state, params=None, **extra_args):
        grads, treedef = jax.tree.flatten(updates, is_leaf=is_none)
        beside = _beside(treedef, params, reads_params)
        try:
            wide = treedef.unflatten(map(_up, grads))
        except (TypeError, ValueError) as error:
            raise ValueError(_unfit(updates)) from error
        of_grads = None
        if reads_params and params is not None:
            beside = [None if g is None else p for g, p in zip(grads, beside, strict=True)]
            try:
                of_grads = treedef.unflatten(map(_up, beside))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{_unfit(params)} Weight decay reads it.") from error
        state = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x), state)
        _refuse_narrow(state, short_nu)
        new, new_state = inner.update(wide, state, of_grads, **extra_args)
        new = map(_down, treedef.flatten_up_to(new), grads, beside)
        return treedef.unflatten(new), jax.tree.map(_keep, new_state, state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


# `_up` and `_down` run once a leaf: cheap tests first, they are a part of the tracing time.


def _up(x):
    if x is None:
        return None
    x = x if isinstance(x, jax.Array) else jnp.asarray(x)
    return x if x.dtype in _WIDE else x.astype(jnp.float32)


def _down(u, g, p):
    """The update u in the wider dtype of the gradient g and the parameter p, at most its largest.

    Else what decoupled weight decay takes from a float32 parameter is lost beside a step that comes
    from a bfloat16 gradient.
    """
    if u is None:
        return None
    dtype = _dtype(g)
    if isinstance(p, jax.Array | np.ndarray | float | complex) and _is_wider(_dtype(p), dtype):
        dtype = _dtype(p)
    if u.dtype == dtype or not jnp.issubdtype(dtype, jnp.inexact):
        return u
    if jnp.iscomplexobj(u) and not jnp.issubdtype(dtype, jnp.complexfloating):
        u = u.real
    limit = float(jnp.finfo(dtype).max)
    if limit < float(jnp.finfo(u.dtype).max):
        u = join([clip(x, limit) for x in components(u)])
    return u.astype(dtype)


def _dtype(x):
    return x.dtype if isinstance(x, jax.Array) else jnp.result_type(x)


def _is_wider(dtype, than) -> bool:
    """A dtype that differs in width alone, of real numbers or of complex ones."""
    if dtype == than or not jnp.issubdtype(than, jnp.inexact):
        return False
    kind = jnp.complexfloating if jnp.issubdtype(than, jnp.complexfloating) else jnp.floating
    return jnp.issubdtype(dtype, kind) and jnp.finfo(dtype).bits > jnp.finfo(than).bits


def _keep(x, old):
    """A hyperparameter of a wider dtype must not widen the state: lax.scan would refuse it."""
    if x.dtype == old.dtype:
        return x
    if jnp.iscomplexobj(x) and not jnp.iscomplexobj(old):
        raise ValueError(f"a gradient is {x.dtype}, but its parameter is real.")
    return x.astype(old.dtype)


def _like_parameter(path, p):
    """What the state of p is made from: p in at least float32, still abstract where p is.

    A PRNG key, which never has a gradient, has no state.
    """
    if isinstance(p, jax.ShapeDtypeStruct):
        if jnp.issubdtype(p.dtype, jax.dtypes.prng_key):
            return None
        return p if p.dtype in _WIDE else p.update(dtype=jnp.dtype(jnp.float32))
    try:
        p = p if isinstance(p, jax.Array) else jnp.asarray(p)
        return None if jnp.issubdtype(p.dtype, jax.dtypes.prng_key) else _up(p)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"init got {p!r} at params{jax.tree_util.keystr(path)}, wanted an array, an abstract "
            "one or None: give the parameters that you train, of an Equinox model "
            "eqx.filter(model, eqx.is_inexact_array)."
        ) from error


def _beside(treedef, params, needed: bool) -> list[Any]:
    """What of `params` lies at each leaf of the gradients; None for all where nothing is known."""
    nothing = [None] * treedef.num_leaves
    if params is None:
        return nothing
    try:
        return treedef.flatten_up_to(params)
    except ValueError as error:
        if not needed:  # then they only say how wide the updates are
            return nothing
        raise ValueError(f"params have another structure than the gradients: {error}") from error


def _unfit(tree) -> str:
    """Which leaf is no array of numbers."""
    for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
        try:
            _up(x)
        except (TypeError, ValueError):
            place = f"the leaf {jax.tree_util.keystr(path) or 'itself'}"
            if getattr(x, "dtype", None) == jax.dtypes.float0:
                return (
                    f"{place} is float0, the gradient of an integer or a bool: give None there, "
                    "jax.tree.map(lambda g: None if g.dtype == jax.dtypes.float0 else g, grads), "
                    "or differentiate the inexact parameters only."
                )
            return f"{place} is {x!r}, wanted an array of numbers."
    return "a leaf is no array of numbers."


def _refuse_narrow(state, short_nu: bool) -> None:
    """ValueError for a state that something cast to half precision."""
    if not any(_is_half(x.dtype) for x in jax.tree.leaves(state)):
        return
    for path, x in jax.tree_util.tree_flatten_with_path(state)[0]:
        is_nu = any(getattr(key, "name", None) == "nu" for key in path)
        if _is_half(x.dtype) and not (short_nu and is_nu and x.dtype == jnp.bfloat16):
            raise ValueError(
                f"the state's {jax.tree_util.keystr(path)} is {x.dtype}, and was made as float32: "
                "a checkpoint or a cast of the whole tree narrowed it, and there an average of "
                "squares stands still. Cast it back before you go on: state = "
                "jax.tree.map(lambda x, like: x.astype(like.dtype), state, "
                "jax.eval_shape(solver.init, params))"
            )


def _is_half(dtype) -> bool:
    return dtype not in _WIDE and jnp.issubdtype(dtype, jnp.floating)
