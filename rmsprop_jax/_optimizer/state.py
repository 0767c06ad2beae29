# pyright: standard
"""The averages of RMSProp as an Optax state, and the step over all leaves of a tree."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rmsprop_jax._optimizer import equations, precision, two_bytes, validation
from rmsprop_jax._optimizer.equations import Numbers


class ScaleByRmsState(NamedTuple):
    """State of `scale_by_rms`. Unused fields are `None`.

    Each leaf has the shape of its parameter. Its dtype is float64 for float64 and complex128
    parameters, and float32 for all others. `mu` is complex if the parameter is. `nu` has the dtype
    `state_dtype`, if `state_dtype` is given.

    A leaf whose gradient is `None` keeps its averages in this step, but `weight` grows. With
    `bias_correction`, the averages of such a leaf hold a weight below W, and its later steps are
    longer.
    """

    step: jax.Array | None
    """The number of steps taken, int32 scalar. With `bias_correction`, a schedule as decay, or a
    bfloat16 `nu` only."""
    mu: Any
    """With `centered`, the weighted mean of the gradient. Else `None`."""
    nu: Any
    """The weighted mean of |g|². With `centered`, the weighted variance of g, never negative."""
    weight: tuple[jax.Array, jax.Array] | None = None
    """W ← ρ W + 1 − ρ, the weight of all gradients in the averages, with `bias_correction` only.

    The sum of two float scalars, the rounded W and its rounding error. For a constant ρ, W is
    1 − ρᵗ.
    """


@dataclasses.dataclass(frozen=True)
class Averages:
    """The checked arguments of `scale_by_rms`."""

    decay: Any = 0.9
    eps: Any = 1e-8
    initial_scale: Any = 0.0
    eps_in_sqrt: bool = False
    bias_correction: bool = False
    centered: bool = False
    state_dtype: Any = None
    seed: Any = 0
    constant_decay: bool = False
    """Use 1 − ρᵗ with the current ρ as the weight, as Optax does. Wrong after ρ has changed."""

    def __post_init__(self):
        for name, check in validation.AVERAGES.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))

    def decay_at(self, step: Any) -> Any:
        """Return ρ in a step, counted from 0. The value of a schedule is clipped to [0, 1), and NaN
        stays NaN."""
        if not callable(self.decay):
            return self.decay
        rho = precision.to_float(self.decay(step))
        return jnp.clip(rho, 0.0, 1.0 - float(jnp.finfo(rho.dtype).epsneg))

    @property
    def is_short(self) -> bool:
        """Return whether s is stored in two bytes."""
        return self.state_dtype == jnp.bfloat16


class Form(NamedTuple):
    """The static part of a leaf's step."""

    dtype: Any
    """The precision of the equations: the wider of the gradient's and the stored one."""
    bounds: Any
    """The precision that limits and floors come from: the narrower of both."""
    eps_in_sqrt: bool


def form_of(g: jax.Array, kept: Any, averages: Averages) -> Form:
    """Return the precisions of a leaf, from its average's dtype. bfloat16 counts as float32."""
    stored = jnp.dtype(jnp.float32) if averages.is_short else kept
    own = stored if averages.state_dtype is None else precision.real_dtype(g)
    narrow, wide = sorted((own, stored), key=lambda dtype: dtype.itemsize)
    return Form(wide, narrow, averages.eps_in_sqrt)


def averaging(averages: Averages) -> optax.GradientTransformation:
    """Return `scale_by_rms` for gradients of at least float32."""
    a = averages
    scheduled = callable(a.decay)
    counts = a.bias_correction or a.is_short or scheduled
    weighs = a.bias_correction and not a.constant_decay

    def init_fn(params: optax.Params) -> Any:
        leaves, treedef = jax.tree.flatten(params)
        nus = [_initial(p, a, i) for i, p in enumerate(leaves)]
        zero = lambda: jnp.zeros([], jnp.result_type(float))
        return ScaleByRmsState(
            step=jnp.zeros([], jnp.int32) if counts else None,
            mu=jax.tree.map(precision.zeros_like, params) if a.centered else None,
            nu=treedef.unflatten(nus),
            weight=(zero(), zero()) if weighs else None,
        )

    def update_fn(updates, state, params=None) -> Any:
        del params
        validation.state_of(state, a.centered, a.bias_correction, weighs, a.state_dtype, scheduled)
        decay = a.decay_at(state.step)
        step: Any = optax.safe_increment(state.step) if counts else None
        weight = _grown(state.weight, decay) if weighs else None
        numbers = _numbers(a, decay, step, state.weight, weight)
        salt = two_bytes.salt(two_bytes.NU, a.seed, step) if a.is_short else None

        leaves, treedef = jax.tree.flatten(updates, is_leaf=precision.is_none)
        nus = treedef.flatten_up_to(state.nu)
        mus = treedef.flatten_up_to(state.mu) if a.centered else [None] * len(leaves)
        out = []
        for i, (g, mu, nu) in enumerate(zip(leaves, mus, nus, strict=True)):
            if g is None:  # frozen in this step
                out.append((None, mu, nu))
                continue
            validation.leaf(g, mu, nu)
            form = form_of(g, nu.dtype, a)
            leaf_salt = None if salt is None else two_bytes.leaf_salt(salt, i, nu)
            u, *new = update_leaf(g, mu, nu, numbers(form), leaf_salt, form)
            out.append((u if a.state_dtype is None else precision.cast(u, g.dtype), *new))
        us, mus, nus = ([leaf[k] for leaf in out] for k in range(3))
        mus: Any = treedef.unflatten(mus) if a.centered else None
        return treedef.unflatten(us), ScaleByRmsState(step, mus, treedef.unflatten(nus), weight)

    return optax.GradientTransformation(init_fn, update_fn)


# Jitted, so that leaves of one shape are traced once. The numbers arrive converted, so that no leaf
# compiles the conversion again.
@functools.partial(jax.jit, static_argnames="form")
def update_leaf(
    g: jax.Array, mu: Any, nu: jax.Array, n: Numbers, salt: Any, form: Form
) -> tuple[jax.Array, Any, jax.Array]:
    """Return u and the new averages of one leaf: the equations between casts and clips.

    |g|² is clipped to L, the largest square, and with `centered` |g − m|² too. Then |u| ≤ 1/√w for
    every g: v ≥ w |g|² where w |g|² is a normal number, and the floor bounds u where it is not.
    """
    parts = lambda z: (z.real, z.imag) if jnp.iscomplexobj(z) else (z,)
    whole = lambda parts: jax.lax.complex(*parts) if len(parts) == 2 else parts[0]
    limit = (precision.largest_square(form.bounds) / len(parts(g))) ** 0.5
    limit = limit if mu is None else limit / 2
    wide = tuple(precision.clip(x.astype(form.dtype), limit) for x in parts(g))

    old = two_bytes.read(nu, salt) if nu.dtype == jnp.bfloat16 else nu
    old = old.astype(form.dtype)
    if mu is None:
        new_mu, new = None, equations.second_moment(wide, old, n)
    else:
        old_mu = tuple(x.astype(form.dtype) for x in parts(mu))
        new_mu, new = equations.centered_moments(wide, old_mu, old, n)
        new_mu = whole(new_mu).astype(mu.dtype)
    if nu.dtype == jnp.bfloat16:
        stored, new = two_bytes.store(new.astype(jnp.float32), salt)
    else:
        stored = new = new.astype(nu.dtype)  # the step is computed from the stored average
    v = equations.corrected(wide, new.astype(form.dtype), n)
    u = equations.direction(wide, v, n, form.eps_in_sqrt, float(jnp.finfo(form.bounds).tiny))
    return whole(u), new_mu, stored


def _initial(p: Any, a: Averages, number: int) -> jax.Array:
    """Return s₀ for a parameter. It is a sum, so that no two leaves share a buffer."""
    dtype = a.state_dtype or precision.real_dtype(p)
    largest = precision.largest_square(form_of(p, dtype, a).bounds)
    zeros = precision.zeros_like(p, jnp.float32 if a.is_short else dtype)
    start = zeros + jnp.minimum(precision.to_float(a.initial_scale), largest).astype(zeros.dtype)
    if not a.is_short:
        return start
    salt = two_bytes.leaf_salt(two_bytes.salt(two_bytes.NU, a.seed, 0), number, p)
    return two_bytes.rounded(start, salt)


def _grown(weight: Any, decay: Any) -> tuple[jax.Array, jax.Array]:
    """Return W + (1 − ρ)(1 − W) as a compensated sum.

    A single float32 drifts by 1.4e-2 over 10⁶ steps at ρ = 1 − 1e-7, this pair by 3e-8.
    """
    high, low = weight
    added = jnp.asarray(1 - decay).astype(high.dtype) * ((1 - high) - low) + low
    total = high + added
    return total, added - (total - high)


def _numbers(
    a: Averages, decay: Any, step: Any, before: Any, after: Any
) -> Callable[[Form], Numbers]:
    """Return the scalars of one step, as a function of the precision, computed once for each."""
    rho, w = map(precision.to_float, (decay, 1 - decay))  # 1 − ρ before it is rounded
    weight = start = first = None
    if a.bias_correction:
        if a.constant_decay:
            before, weight = one_minus_power(w, step - 1), one_minus_power(w, step)
            rest = 1 - weight
        else:
            before, weight = before[0] + before[1], after[0] + after[1]
            rest = (1 - after[0]) - after[1]
        if a.centered:  # the averages are corrected at each step, and forget s₀ at once
            start = precision.to_float(a.initial_scale) * rest / weight
            alone = (before == 0) & (start == 0) if a.constant_decay else before == 0
            first = alone.astype(w.dtype)
            rho, w, weight = rho * before / weight, w / weight, None

    @functools.cache
    def numbers(form: Form) -> Numbers:
        info = jnp.finfo(form.bounds)
        given = Numbers(rho, w, precision.to_float(a.eps), None, weight, start, first)
        n = jax.tree.map(lambda x: x.astype(form.dtype), given)
        n = n._replace(eps=jnp.maximum(n.eps, float(info.tiny)))
        if a.centered:  # below the floor of ρ, |g − m|² is rounding error alone
            ratio = n.w / jnp.maximum(n.rho, float(info.eps))
            n = n._replace(ratio=jnp.where(n.rho == 0, 0, ratio))
        return n

    return numbers


@jax.custom_jvp
def one_minus_power(w: jax.Array, t: jax.Array) -> jax.Array:
    """Return 1 − (1 − w)ᵗ without cancellation, for w in (0, 1] and an integer t ≥ 0."""
    log = jnp.where(w < 1, jnp.log1p(-jnp.where(w < 1, w, 0)), -1e9)  # not an infinity
    return -jnp.expm1(precision.to_float(t) * log)


@one_minus_power.defjvp
def _one_minus_power_jvp(primals: Any, tangents: Any) -> Any:
    w, t = primals[0], precision.to_float(primals[1])
    return one_minus_power(*primals), t * (1 - w) ** jnp.maximum(t - 1, 0) * tangents[0]
