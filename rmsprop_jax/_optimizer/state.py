"""The state, and the formula over all leaves of a tree."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from rmsprop_jax._optimizer.boundary import is_none
from rmsprop_jax._optimizer.equations import Scalars, largest_square, step_leaf
from rmsprop_jax._optimizer.precision import one_minus_power, to_float
from rmsprop_jax._optimizer.two_bytes import NU, of_leaf, salt
from rmsprop_jax._optimizer.validation import (
    check_gradient,
    check_state,
    flag,
    scalar,
    storage,
    whole,
)


class ScaleByRmsState(NamedTuple):
    """State of `scale_by_rms`. A field that the settings do not use is `None`.

    Each leaf has the shape of its parameter and at least float32: float64 for float64 (and
    complex128) parameters, float32 for every other; `mu` is complex where the parameter is. `nu`
    has the dtype that `state_dtype` names, where that is given.
    """

    step: jax.Array | None
    """Steps taken, int32 scalar. With `bias_correction`, or a `nu` in bfloat16, only."""
    mu: Any
    """Centred: the weighted mean of the gradient. Else `None`."""
    nu: Any
    """The weighted mean of |g|²; centred: the weighted variance of g, which is never negative."""


def scaling(
    decay: ArrayLike,
    eps: ArrayLike,
    initial_scale: ArrayLike,
    eps_in_sqrt: bool,
    bias_correction: bool,
    centered: bool,
    bounded: bool = False,
    factor: Any = None,
    state_dtype: Any = None,
    seed: ArrayLike = 0,
) -> optax.GradientTransformation:
    """`scale_by_rms` for gradients of at least float32, times a number `factor`.

    `bounded`: a centred step is at most 1e30.
    """
    decay = scalar("decay", decay, 0.0, 1.0)
    eps = scalar("eps", eps, 0.0)
    initial_scale = scalar("initial_scale", initial_scale, 0.0)
    eps_in_sqrt = flag("eps_in_sqrt", eps_in_sqrt)
    bias_correction = flag("bias_correction", bias_correction)
    centered = flag("centered", centered)
    state_dtype = storage(state_dtype)
    seed = whole("seed", seed)
    is_short = state_dtype == jnp.bfloat16
    counts = bias_correction or is_short

    def init_fn(params: optax.Params) -> Any:
        def nu_like(p):
            dtype = jnp.finfo(p.dtype).dtype  # the real dtype of a complex one
            dtype = state_dtype or dtype
            s0 = jnp.minimum(to_float(initial_scale), largest_square(dtype))
            # A sum, so that no two leaves share a buffer.
            return jnp.zeros_like(p, dtype) + s0.astype(dtype)

        return ScaleByRmsState(
            step=jnp.zeros([], jnp.int32) if counts else None,
            mu=jax.tree.map(jnp.zeros_like, params) if centered else None,
            nu=jax.tree.map(nu_like, params),
        )

    def update_fn(updates, state, params=None) -> Any:
        del params
        check_state(state, centered, bias_correction, state_dtype)
        step: Any = optax.safe_increment(state.step) if counts else None
        scalars = _scalars(step)
        of_step = salt(NU, seed, step) if is_short else None

        leaves, treedef = jax.tree.flatten(updates, is_leaf=is_none)
        nus = treedef.flatten_up_to(state.nu)
        mus = treedef.flatten_up_to(state.mu) if centered else [None] * len(leaves)
        in_dtype: dict[Any, Scalars] = {}
        out = []
        for i, (g, mu, nu) in enumerate(zip(leaves, mus, nus, strict=True)):
            if g is None:  # not trained in this step
                out.append((None, mu, nu))
                continue
            check_gradient(g, mu, nu)
            dtype = nu.dtype
            if state_dtype is not None:  # the leaf's own precision, at least that of its nu
                own, kept = jnp.finfo(g.dtype).dtype, jnp.dtype("float32") if is_short else nu.dtype
                dtype = max(own, kept, key=lambda x: x.itemsize)
            if dtype not in in_dtype:
                in_dtype[dtype] = scalars.astype(dtype)
            of = () if of_step is None else (of_leaf(of_step, i),)
            flags = eps_in_sqrt, bounded and centered
            u, *new = step_leaf(g, mu, nu, in_dtype[dtype], *flags, *of)
            out.append((u if state_dtype is None else u.astype(g.dtype), *new))
        us, mus, nus = ([leaf[k] for leaf in out] for k in range(3))
        state = ScaleByRmsState(
            step=step,
            mu=treedef.unflatten(mus) if centered else None,
            nu=treedef.unflatten(nus),
        )
        return treedef.unflatten(us), state

    def _scalars(step: Any) -> Scalars:
        rho, w = to_float(decay), to_float(1 - decay)  # 1 − ρ before it is rounded
        total = s0 = None
        if bias_correction:
            total = one_minus_power(w, step)  # the weight 1 − ρᵗ of all gradients so far
            if centered:  # the recurrence whose weight is (1 − ρ)/(1 − ρᵗ); it forgets s₀
                s0 = to_float(initial_scale) * (1 - total) / total
                rho, w = rho * one_minus_power(w, step - 1) / total, w / total
        ratio = None
        if centered:
            ratio = jnp.where(rho == 0, 0, w / jnp.where(rho == 0, 1, rho))
        eta = None if factor is None else to_float(factor)
        return Scalars(rho, w, ratio, to_float(eps), total, s0, eta)

    return optax.GradientTransformation(init_fn, update_fn)
