"""RMSProp for people: `rmsprop` and `scale_by_rms`.

Read `step_leaf` in `equations.py` first, then `scaling` in `state.py`, which carries its state,
and `chain` in `chain.py`, which puts momentum, learning rate and weight decay around it.
"""

from typing import Any

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from rmsprop_jax._optimizer.boundary import in_full_precision
from rmsprop_jax._optimizer.chain import chain
from rmsprop_jax._optimizer.state import ScaleByRmsState, scaling
from rmsprop_jax._optimizer.validation import storage

__all__ = ["ScaleByRmsState", "rmsprop", "scale_by_rms"]


def scale_by_rms(
    decay: ArrayLike = 0.9,
    eps: ArrayLike = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool = False,
    bias_correction: bool = False,
    *,
    centered: bool = False,
    state_dtype: Any = None,
    seed: ArrayLike = 0,
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
      state_dtype: in which s is kept: `None` (at least float32), "float32", "float64" or
        "bfloat16", as for `rmsprop`.
      seed: of the rounding to bfloat16, a whole number or a traced one.

    Returns:
      An Optax transformation whose state is a `ScaleByRmsState`. Updates have the gradients' shapes
      and dtypes; a wider parameter's dtype, where `update` gets it.

    Raises:
      ValueError: for a concrete scalar out of range; the message names it. Traced scalars are not
        checked. In `update`, for gradients or settings that the state was not made for.

    Examples:
      >>> import jax.numpy as jnp, optax, rmsprop_jax as rj
      >>> solver = optax.chain(rj.scale_by_rms(decay=0.0), optax.scale(-0.1))
      >>> updates, _ = solver.update(jnp.array([3.0, -4.0]), solver.init(jnp.zeros(2)))
      >>> print(updates)
      [-0.1  0.1]

    References:
      Tieleman and Hinton, [Lecture
      6.5](https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf): RMSProp,
      COURSERA: Neural Networks for Machine Learning, 2012. Centred: Graves, [Generating Sequences
      With Recurrent Neural Networks](https://arxiv.org/abs/1308.0850), 2013, eq. 38–45.
    """
    parts = scaling(
        decay,
        eps,
        initial_scale,
        eps_in_sqrt,
        bias_correction,
        centered,
        state_dtype=state_dtype,
        seed=seed,
    )
    return in_full_precision(parts, short_nu=storage(state_dtype) == jnp.bfloat16)


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
    state_dtype: Any = None,
    seed: ArrayLike = 0,
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
    too; the update is cast once, at the end, to the gradient's dtype (to a wider parameter's, where
    `update` gets it), and stops at its largest number. A finite gradient never gives NaN. Gradients
    beyond the largest whose square is kept (1e19 in float32, half of it centred), infinite ones
    too, count as that; a NaN stays one.

    `centered` with a tiny ε under a nearly constant gradient takes huge (finite) steps, because the
    variance goes to 0 and the step to g/ε; elsewhere it rounds below 0, to NaN. An ε of a tenth to
    a hundredth of the gradients' usual size helps. Graves took 1e-4 and the DQN paper 0.01, both
    inside the root and for summed losses.

    Args:
      learning_rate: η, a finite number, a traced scalar or a schedule (step → η, from step 0).
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
      state_dtype: in which s is kept: `None`, at least float32; "float32" or "float64"; or
        "bfloat16", two bytes a parameter, rounded stochastically, so that the average has no bias
        and does not stall. Each rounding moves s by at most 2⁻⁷ of it, a step by .4%; the spread
        that remains in s is, as a share of it, at most 2⁻⁸/√(1 − ρ²) and √(2⁻⁶/(1 + ρ)). Text or a
        dtype. The centred mean and the momentum stay in float32.
      seed: of that rounding, a whole number or a traced one. The same seed, step and leaf round
        alike, on one device or on many.

    Every float may be a Python number or a traced scalar, so `jax.vmap` runs a grid of them.

    Returns:
      An Optax transformation; `update` needs `params` only with `weight_decay`. Updates have the
      shapes of the gradients; `optax.tree_utils.tree_get(state, "nu")` reads s from the state.

    Raises:
      ValueError: for a concrete scalar out of range, an array where a scalar belongs, a flag that
        is not a bool, or `nesterov` without `momentum`. Traced scalars are not checked. In
        `update`, for gradients or settings that the state was not made for, and for `weight_decay`
        without `params`.

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
      COURSERA: Neural Networks for Machine Learning, 2012. Centred: Graves, [Generating Sequences
      With Recurrent Neural Networks](https://arxiv.org/abs/1308.0850), 2013. Arguments:
      `optax.rmsprop`, Optax 0.2.8.
    """
    parts = chain(
        learning_rate,
        decay,
        eps,
        initial_scale,
        eps_in_sqrt,
        centered,
        momentum,
        nesterov,
        bias_correction,
        lr_in_momentum,
        weight_decay,
        decoupled_weight_decay,
        mask,
        state_dtype,
        seed,
    )
    reads = weight_decay is not None
    return in_full_precision(
        parts, reads_params=reads, short_nu=storage(state_dtype) == jnp.bfloat16
    )
