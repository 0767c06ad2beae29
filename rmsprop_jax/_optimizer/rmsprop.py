# pyright: standard
"""`rmsprop` and `scale_by_rms`.

Read `equations.py` first. `state.py` carries their averages from step to step, `precision.py` wraps
both in casts, and `rmsprop` below puts weight decay, learning rate, and momentum around them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from rmsprop_jax._optimizer import precision, validation
from rmsprop_jax._optimizer.foreign_names import explains_foreign_names
from rmsprop_jax._optimizer.state import Averages, ScaleByRmsState, averaging

__all__ = ["ScaleByRmsState", "rmsprop", "scale_by_rms"]


@explains_foreign_names
def scale_by_rms(
    decay: optax.ScalarOrSchedule = 0.9,
    eps: ArrayLike = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool = False,
    bias_correction: bool = False,
    *,
    centered: bool = False,
    state_dtype: Any = None,
    seed: ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    """Divide each gradient by the root of a decaying average of its square.

        s ← ρ s + (1 − ρ) |g|²        u = g / (√s + ε)

    The update keeps the sign of the gradient. This is RMSProp without learning rate and momentum,
    for your own chains. All arguments have the meaning that they have in `rmsprop`.

    Args:
      decay: ρ in [0, 1), the share of the average that each step keeps. A number, a traced scalar,
        or a schedule (step → ρ, from step 0).
      eps: ε ≥ 0, in units of the gradient (of its square with `eps_in_sqrt`).
      initial_scale: s₀ ≥ 0, in units of the squared gradient.
      eps_in_sqrt: whether to divide by √(s + ε) instead of √s + ε. Optax's default is True, ours is
        False.
      bias_correction: whether to divide the averages by the weight of the gradients that they hold.
      centered: whether to subtract the square of the gradient's decaying average from s
        (Graves, 2013).
      state_dtype: the dtype of s: `None` (at least float32), "float32", "float64", or "bfloat16".
      seed: the seed of the rounding to bfloat16, an int or a traced scalar.

    Returns:
      An Optax transformation whose state is a `ScaleByRmsState`. Updates have the shapes and dtypes
      of the gradients, or the dtype of a wider parameter if `update` gets it.

    Raises:
      ValueError: for a concrete scalar out of range. Traced scalars are not checked. In `update`,
        for gradients or settings that the state was not made for.

    Examples:
      >>> import jax.numpy as jnp, optax, rmsprop_jax as rj
      >>> solver = optax.chain(rj.scale_by_rms(decay=0.0), optax.scale(-0.1))
      >>> updates, _ = solver.update(jnp.array([3.0, -4.0]), solver.init(jnp.zeros(2)))
      >>> print(updates)
      [-0.1  0.1]

    References:
      Tieleman and Hinton, [Lecture
      6.5](https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf): RMSProp,
      COURSERA: Neural Networks for Machine Learning, 2012. Centered: Graves, [Generating Sequences
      With Recurrent Neural Networks](https://arxiv.org/abs/1308.0850), 2013, eq. 38–45.
    """
    averages = Averages(
        decay, eps, initial_scale, eps_in_sqrt, bias_correction, centered, state_dtype, seed
    )
    return precision.in_full_precision(averaging(averages), short_nu=averages.is_short)


@explains_foreign_names
def rmsprop(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    decay: optax.ScalarOrSchedule = 0.9,
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
    state_dtype: Any = None,
    seed: ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    """Scale each parameter's learning rate by the recent size of its gradient.

        s ← ρ s + (1 − ρ) |g|²        θ ← θ − η g / (√s + ε)

    The arguments of `optax.rmsprop` come first, in its order and with its meaning. **One default
    value differs**: ε is outside the square root. Pass `eps_in_sqrt=True` for Optax's √(s + ε).

    With `momentum` μ, the scaled step u enters a buffer: b ← μ b + η u, then θ ← θ − b, or with
    `nesterov` θ ← θ − (η u + μ b). With `lr_in_momentum=False`, the learning rate is outside, as in
    PyTorch: b ← μ b + u, then θ ← θ − η b. The two forms differ as soon as η changes. The calls of
    other frameworks are in `rmsprop_jax.presets`.

    The averages and the momentum buffer are computed and stored in at least float32 (float64 for
    float64 parameters). The update is cast once, at the end, to the gradient's dtype, or to the
    dtype of a wider parameter if `update` gets it. A finite gradient never gives NaN. A gradient
    beyond 1e19 in float32 (half of that with `centered`), even an infinite one, counts as this
    limit, because its square would overflow. A NaN gradient stays NaN.

    With `centered`, a tiny ε, and a nearly constant gradient, steps are finite but huge: the
    variance goes to 0 and the step to η g/ε. Choose ε as a tenth to a hundredth of a typical
    gradient. Graves used 1e-4 and the DQN paper 0.01, both inside the root and for summed losses.

    Args:
      learning_rate: η, a finite number, a traced scalar, or a schedule (step → η, from step 0).
      decay: ρ in [0, 1). 0.9 has a half-life of about 7 steps (ln 2 / −ln ρ), 0.99 of about 69.
        It may change during training: by `optax.inject_hyperparams`, or by a schedule (step → ρ,
        from step 0), whose values are clipped to [0, 1).
      eps: ε ≥ 0, in units of the gradient (of its square with `eps_in_sqrt`).
      initial_scale: s₀ ≥ 0, in units of the squared gradient. TensorFlow 1 starts at 1.
      eps_in_sqrt: whether to divide by √(s + ε) instead of √s + ε.
      centered: whether to divide by the standard deviation of the gradient instead of its root mean
        square.
      momentum: μ in [0, 1). `None` allocates no buffer. Any number allocates a buffer, 0.0 too, so
        that a sweep over momentum has one state tree.
      nesterov: whether to use Nesterov's form of the momentum. It needs `momentum`.
      bias_correction: whether to divide the averages by W, the weight of the gradients that they
        hold. W is 1 − ρᵗ while ρ is constant, and stays right when ρ changes. With `centered`, the
        mean is corrected too, and the first step uses |g|², because the variance of one gradient
        is 0.
      lr_in_momentum: whether η is inside the momentum buffer (Optax, TensorFlow) or outside
        (PyTorch).
      weight_decay: λ ≥ 0, or `None`. It is coupled: λθ is added to the gradient first (PyTorch's L2
        penalty).
      decoupled_weight_decay: whether to subtract η λ θ from the parameters instead, with the η of
        the step and outside the momentum buffer (as AdamW and Keras do).
      mask: the parameters that decay, as in `optax.add_decayed_weights`: a tree of bools, a prefix
        of the parameters' tree, or a function from parameters to such a tree.
      state_dtype: the dtype of s, as text or a dtype: `None` for at least float32, "float32",
        "float64", or "bfloat16". "bfloat16" stores two bytes per parameter, rounded stochastically,
        so that the average has no bias and does not stall. One rounding moves s by at most 2⁻⁷ of
        it, and a step by 0.4%. All roundings together give s a relative standard deviation of at
        most 2⁻⁸/√(1 − ρ²), and of at most √(2⁻⁶/(1 + ρ)). The centered mean and the momentum stay
        in float32.
      seed: the seed of the rounding to bfloat16, an int or a traced scalar. The same seed, step,
        and leaf round in the same way. Give each group of `optax.partition` its own seed. For
        sharded parameters inside `jax.shard_map(..., check_vma=False)`, pass
        `seed=jax.lax.axis_index(axis)`.

    Every float may be a Python number or a traced scalar, so `jax.vmap` runs a grid of them.

    Returns:
      An Optax transformation. `update` needs `params` only with `weight_decay`. Updates have the
      shapes of the gradients. `optax.tree_utils.tree_get(state, "nu")` reads s from the state.

    Raises:
      ValueError: for a concrete scalar out of range, an array in place of a scalar, a flag that is
        not a bool, or `nesterov` without `momentum`. Traced scalars are not checked. In `update`,
        for gradients or settings that the state was not made for, and for `weight_decay` without
        `params`.

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
      Tieleman and Hinton, [Lecture
      6.5](https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf): RMSProp,
      COURSERA: Neural Networks for Machine Learning, 2012. Centered: Graves, [Generating Sequences
      With Recurrent Neural Networks](https://arxiv.org/abs/1308.0850), 2013. Arguments:
      `optax.rmsprop`, Optax 0.2.8.
    """
    rate = scale_by_rate(learning_rate)
    averages = Averages(
        decay, eps, initial_scale, eps_in_sqrt, bias_correction, centered, state_dtype, seed
    )
    inside = validation.flag("lr_in_momentum", lr_in_momentum)
    decoupled = validation.flag("decoupled_weight_decay", decoupled_weight_decay)
    buffer = momentum_buffer(momentum, nesterov, averages.centered)
    scaled, decay_weights = averaging(averages), optax.identity()
    if weight_decay is not None:
        strength = validation.scalar("weight_decay", weight_decay, 0.0)
        decay_weights = optax.add_decayed_weights(strength, validation.mask_of(mask))

    if weight_decay is None or not decoupled:
        chain = [decay_weights, scaled, *([rate, buffer] if inside else [buffer, rate])]
    elif inside and momentum is not None:
        chain = [scaled, _rate_then_buffer(rate, buffer, decay_weights)]
    else:
        chain = [scaled, buffer, decay_weights, rate]
    return precision.in_full_precision(
        optax.chain(*chain), reads_params=weight_decay is not None, short_nu=averages.is_short
    )


def scale_by_rate(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Return `optax.scale_by_learning_rate` with products in the dtype of each update."""
    if callable(learning_rate):
        return optax.scale_by_learning_rate(learning_rate)
    rate = validation.scalar("learning_rate", learning_rate)
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u: _times(-rate, u), updates))


def momentum_buffer(
    momentum: ArrayLike | None, nesterov: bool, centered: bool
) -> optax.GradientTransformation:
    """Return b ← μ b + u, whose update is b or, with `nesterov`, u + μ b.

    A leaf whose u is `None` keeps its buffer (`optax.trace` drops it). A centered u can be g/ε. It
    is clipped to 1e30 in float32, so that the buffer, a sum of up to 2²⁴ such steps, stays finite.
    """
    if validation.flag("nesterov", nesterov) and momentum is None:
        raise ValueError(
            "momentum must be a number with nesterov=True, got momentum=None. Pass momentum=0.9, "
            "or nesterov=False."
        )
    if momentum is None:
        return optax.identity()
    mu = validation.scalar("momentum", momentum, 0.0, 1.0)

    def init_fn(params):
        return optax.TraceState(jax.tree.map(precision.zeros_like, params))

    def step(u, b):
        if u is None:
            return None, b
        if jnp.iscomplexobj(u) and not jnp.iscomplexobj(b):
            raise ValueError(validation.complex_gradient(u.dtype, b.dtype))
        own, kept = map(precision.real_dtype, (u, b))
        u = precision.clip(u, precision.largest_square(own) / 1e8) if centered else u
        u = precision.cast(u, b.dtype) if own != kept else u
        b = _times(mu, b) + u
        return (_times(mu, b) + u if nesterov else b), b

    def update_fn(updates, state, params=None) -> Any:
        del params
        if not isinstance(state, optax.TraceState):
            raise ValueError(
                f"the state has no momentum buffer, because it was made with momentum=None. It "
                f"must have one for momentum={momentum}. Call init of the optimizer that you "
                "update with."
            )
        leaves, treedef = jax.tree.flatten(updates, is_leaf=precision.is_none)
        pairs = [step(*x) for x in zip(leaves, treedef.flatten_up_to(state.trace), strict=True)]
        new, buffers = ([pair[k] for pair in pairs] for k in range(2))
        return treedef.unflatten(new), optax.TraceState(treedef.unflatten(buffers))

    return optax.GradientTransformation(init_fn, update_fn)


def _times(number: Any, x: jax.Array) -> jax.Array:
    """Return the product in the dtype of x; `number` is a Python float or a scalar array."""
    return number * x if isinstance(number, float) else number.astype(x.dtype) * x


def _rate_then_buffer(
    rate: optax.GradientTransformation,
    buffer: optax.GradientTransformation,
    decay_weights: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Return b ← μ b + η u with the update b + η λ θ: one η, and one count, serves both."""

    def init_fn(params):
        return rate.init(params), buffer.init(params), decay_weights.init(params)

    def update_fn(updates, state, params=None):
        zeros = jax.tree.map(jnp.zeros_like, updates)
        decayed, decay_state = decay_weights.update(zeros, state[2], params)
        scaled: Any = rate.update((updates, decayed), state[0])
        (updates, decayed), rate_state = scaled
        updates, buffer_state = buffer.update(updates, state[1])
        return jax.tree.map(jnp.add, updates, decayed), (rate_state, buffer_state, decay_state)

    return optax.GradientTransformation(init_fn, update_fn)
