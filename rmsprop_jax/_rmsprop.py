"""RMSProp: the state, `scale_by_rms`, `rmsprop`.

Read `step_leaf` in `_formula.py` first; what is here prepares its scalars and chains it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from rmsprop_jax._arguments import check_gradient, flag, scalar
from rmsprop_jax._formula import Scalars, largest_square, step_leaf
from rmsprop_jax._precision import in_full_precision, one_minus_power, to_float


class ScaleByRmsState(NamedTuple):
    """State of `scale_by_rms`. A field that the settings do not use is `None`.

    Each leaf has the shape of its parameter and at least float32: float64 for float64 (and
    complex128) parameters, float32 for every other; `mu` is complex where the parameter is.
    """

    step: jax.Array | None
    """Steps taken, int32 scalar. With `bias_correction` only."""
    mu: Any
    """Centred: the weighted mean of the gradient. Else `None`."""
    nu: Any
    """The weighted mean of |g|²; centred: the weighted variance of g, which is never negative."""


def scale_by_rms(
    decay: ArrayLike = 0.9,
    eps: ArrayLike = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool = False,
    bias_correction: bool = False,
    *,
    centered: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Divide each gradient by the root of a moving average of its square.

        s ← ρ s + (1 − ρ) |g|²        u = g / (√s + ε)

    The sign is kept: this is RMSProp without learning rate and momentum, for chains of your own.

    Args:
      decay: ρ in [0, 1), how much of the average is kept at each step. Number or traced scalar.
      eps: ε ≥ 0, in units of the gradient (of its square with `eps_in_sqrt`).
      initial_scale: s₀ ≥ 0, in units of the squared gradient.
      eps_in_sqrt: √(s + ε) instead of √s + ε. Optax's default is True, ours False.
      bias_correction: divide the averages by 1 − ρᵗ, as Adam does.
      centered: subtract the square of the gradient's moving average from s (Graves, 2013).

    Returns:
      An Optax transformation whose state is a `ScaleByRmsState`. Updates have the gradients' shapes
      and dtypes.

    Raises:
      ValueError: for a concrete scalar out of range; the message names it. Traced scalars are not
        checked.

    Examples:
      >>> import jax.numpy as jnp, optax, rmsprop_jax as rj
      >>> solver = optax.chain(rj.scale_by_rms(decay=0.0), optax.scale(-0.1))
      >>> updates, _ = solver.update(jnp.array([3.0, -4.0]), solver.init(jnp.zeros(2)))
      >>> print(updates)
      [-0.1  0.1]

    References:
      Tieleman and Hinton, Lecture 6.5: RMSProp, COURSERA: Neural Networks for Machine Learning,
      2012. Centred: Graves, [Generating Sequences With Recurrent Neural
      Networks](https://arxiv.org/abs/1308.0850), 2013, eq. 38–45.
    """
    return in_full_precision(
        _scale_by_rms(decay, eps, initial_scale, eps_in_sqrt, bias_correction, centered)
    )


def rmsprop(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    decay: ArrayLike = 0.9,
    eps: ArrayLike = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool = False,
    centered: bool = False,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    *,
    lr_in_momentum: bool = True,
    weight_decay: ArrayLike | None = None,
    decoupled_weight_decay: bool = False,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """RMSProp: a learning rate for each parameter, from the recent size of its gradient.

        s ← ρ s + (1 − ρ) |g|²        θ ← θ − η g / (√s + ε)

    Every argument of `optax.rmsprop`, in its order, with its meaning. **One default differs**: ε
    stands outside the root here; `eps_in_sqrt=True` gives Optax's √(s + ε). With `momentum` μ the
    scaled step u enters a buffer, b ← μ b + η u, and θ ← θ − b; with `nesterov`,
    θ ← θ − (η u + μ b). With `lr_in_momentum=False` the learning rate stays outside, as in PyTorch:
    b ← μ b + u, θ ← θ − η b. The two differ as soon as η changes. `rmsprop_jax.presets` has the
    calls of other frameworks.

    Numbers are computed and kept in float32 at least (float64 for float64), the momentum buffer
    too; the update is cast once, at the end, to the gradient's dtype, and stops at its largest
    number. A finite gradient never gives NaN. Gradients beyond the largest whose square is kept
    (1e19 in float32, half of it centred), infinite ones too, count as that; a NaN stays one.

    `centered` with a tiny ε under a nearly constant gradient takes huge (finite) steps, here and in
    every other implementation, because the variance goes to 0 and the step to g/ε. Graves took
    ε = 1e-4 and the DQN paper 0.01, both inside the root.

    Args:
      learning_rate: η, a finite number, a traced scalar or a schedule (step → η).
      decay: ρ in [0, 1). 0.9 remembers about 7 steps (half-life ln 2 / −ln ρ), 0.99 about 69.
      eps: ε ≥ 0, in units of the gradient (of its square with `eps_in_sqrt`).
      initial_scale: s₀ ≥ 0, in units of the squared gradient. TensorFlow 1 starts at 1.
      eps_in_sqrt: √(s + ε) instead of √s + ε.
      centered: divide by the standard deviation of the gradient instead of its root mean square.
      momentum: μ in [0, 1). `None` has no buffer; any number, 0.0 too, has one, so that a sweep
        over momentum has one state tree.
      nesterov: Nesterov's form of the momentum. Needs `momentum`.
      bias_correction: divide the averages by 1 − ρᵗ, as Adam does.
      lr_in_momentum: η inside the momentum buffer (Optax, TensorFlow) or outside (PyTorch).
      weight_decay: λ ≥ 0. `None` has none. Coupled, it adds λθ to the gradient first (PyTorch's
        L2 penalty).
      decoupled_weight_decay: subtract η λ θ from the parameters instead, with this step's η and
        past the momentum buffer (AdamW's manner, Keras').
      mask: which parameters decay, as in `optax.add_decayed_weights`: a tree of bools, a prefix of
        the parameters' tree, or a function from parameters to one.

    Every float may be a Python number or a traced scalar, so `jax.vmap` runs a grid of them.

    Returns:
      An Optax transformation; `update` needs `params` only with `weight_decay`.

    Raises:
      ValueError: for a concrete scalar out of range, an array where a scalar belongs, a flag that
        is not a bool, or `nesterov` without `momentum`. Traced scalars are not checked.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, rmsprop_jax as rj
      >>> solver = rj.rmsprop(learning_rate=0.1)
      >>> params = jnp.array([1.0, 20.0])
      >>> state = solver.init(params)
      >>> loss = lambda p: jnp.sum(p**2)
      >>> for _ in range(30):
      ...     updates, state = solver.update(jax.grad(loss)(params), state)
      ...     params = optax.apply_updates(params, updates)
      >>> print(bool(loss(params) < 401))
      True

    References:
      Tieleman and Hinton, Lecture 6.5: RMSProp, COURSERA: Neural Networks for Machine Learning,
      2012. Centred: Graves, [Generating Sequences With Recurrent Neural
      Networks](https://arxiv.org/abs/1308.0850), 2013. Arguments: `optax.rmsprop`, Optax 0.2.8.
    """
    if not callable(learning_rate):
        learning_rate = scalar("learning_rate", learning_rate)
    buffer = decay_weights = optax.identity()
    nesterov, lr_in_momentum = flag("nesterov", nesterov), flag("lr_in_momentum", lr_in_momentum)
    if momentum is not None:
        buffer = optax.trace(scalar("momentum", momentum, 0.0, 1.0), nesterov)
    elif nesterov:
        raise ValueError(
            "nesterov=True needs a momentum, got momentum=None: pass momentum=0.9 or the like, "
            "or nesterov=False."
        )
    decoupled = flag("decoupled_weight_decay", decoupled_weight_decay) and weight_decay is not None
    if weight_decay is not None:
        decay_weights = optax.add_decayed_weights(scalar("weight_decay", weight_decay, 0.0), mask)

    # A number goes into the leaf's own formula: one operation less to trace for each leaf.
    factor, rate = None, optax.scale_by_learning_rate(learning_rate)
    follows = (momentum is None or lr_in_momentum) and not decoupled
    if follows and not callable(learning_rate):
        factor, rate = -learning_rate, optax.identity()
    scaling = _scale_by_rms(
        decay,
        eps,
        initial_scale,
        eps_in_sqrt,
        bias_correction,
        centered,
        bounded=momentum is not None,
        factor=factor,
    )
    if not decoupled:
        parts = [decay_weights, scaling, *([rate, buffer] if lr_in_momentum else [buffer, rate])]
    elif lr_in_momentum and momentum is not None:
        parts = [scaling, _rate_then_buffer(rate, buffer, decay_weights)]
    else:
        parts = [scaling, buffer, decay_weights, rate]
    return in_full_precision(optax.chain(*parts))


def _rate_then_buffer(
    rate: optax.GradientTransformation,
    buffer: optax.GradientTransformation,
    decay_weights: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """η u enters the buffer, η λ θ passes it by; one η, and one count, serves both."""

    def init_fn(params):
        return rate.init(params), buffer.init(params), decay_weights.init(params)

    def update_fn(updates, state, params=None):
        rate_state, buffer_state, decay_state = state
        zeros = jax.tree.map(jnp.zeros_like, updates)
        decayed, decay_state = decay_weights.update(zeros, decay_state, params)
        scaled: Any
        scaled, rate_state = rate.update((updates, decayed), rate_state)
        updates, decayed = scaled
        updates, buffer_state = buffer.update(updates, buffer_state)
        updates = jax.tree.map(jnp.add, updates, decayed)
        return updates, (rate_state, buffer_state, decay_state)

    return optax.GradientTransformation(init_fn, update_fn)


def _scale_by_rms(
    decay: ArrayLike,
    eps: ArrayLike,
    initial_scale: ArrayLike,
    eps_in_sqrt: bool,
    bias_correction: bool,
    centered: bool,
    bounded: bool = False,
    factor: Any = None,
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

    def init_fn(params: optax.Params) -> Any:
        def nu_like(p):
            dtype = jnp.finfo(p.dtype).dtype  # the real dtype of a complex one
            s0 = jnp.minimum(to_float(initial_scale), largest_square(dtype))
            # A sum, so that no two leaves share a buffer.
            return jnp.zeros_like(p, dtype) + s0.astype(dtype)

        return ScaleByRmsState(
            step=jnp.zeros([], jnp.int32) if bias_correction else None,
            mu=jax.tree.map(jnp.zeros_like, params) if centered else None,
            nu=jax.tree.map(nu_like, params),
        )

    def update_fn(updates, state, params=None) -> Any:
        del params
        step: Any = optax.safe_increment(state.step) if bias_correction else None
        scalars = _scalars(step)

        leaves, treedef = jax.tree.flatten(updates)
        nus = treedef.flatten_up_to(state.nu)
        mus = treedef.flatten_up_to(state.mu) if centered else [None] * len(leaves)
        in_dtype = {dtype: scalars.astype(dtype) for dtype in {nu.dtype for nu in nus}}
        out = []
        for g, mu, nu in zip(leaves, mus, nus, strict=True):
            check_gradient(g, mu, nu)
            out.append(step_leaf(g, mu, nu, in_dtype[nu.dtype], eps_in_sqrt, bounded and centered))
        us, mus, nus = ([leaf[i] for leaf in out] for i in range(3))
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
        ratio = w / jnp.where(rho == 0, jnp.inf, rho) if centered else None
        eta = None if factor is None else to_float(factor)
        return Scalars(rho, w, ratio, to_float(eps), total, s0, eta)

    return optax.GradientTransformation(init_fn, update_fn)
