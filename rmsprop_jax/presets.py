"""Other frameworks' RMSProps: their argument names, order and defaults, as calls of `rmsprop`.

Paste the call, leave out the parameter list. Every learning rate may also be a schedule
(step → η, from step 0). A momentum of exactly 0 has no buffer, as in those frameworks; a traced
one has a buffer. Each update below is for one parameter θ with gradient g; s and m start at 0
unless said. What a framework does that a gradient transformation cannot do is refused.

Every preset raises ValueError, like `rmsprop`, for a concrete number out of range; the message
names the argument of `rmsprop` that received it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax as ox  # `optax` is a preset here
from jax.core import Tracer
from jax.typing import ArrayLike

from rmsprop_jax._rmsprop import rmsprop

__all__ = [
    "a3c2016",
    "dqn2015",
    "graves2013",
    "impala2018",
    "keras",
    "mlx",
    "optax",
    "pymarl",
    "stable_baselines3",
    "tensorflow_v1",
    "tf_keras_legacy",
    "timm",
    "torch",
]

_Rate = ox.ScalarOrSchedule
_Transformation = ox.GradientTransformationExtraArgs


def optax(
    learning_rate: _Rate,
    decay: ArrayLike = 0.9,
    eps: ArrayLike = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> _Transformation:
    """`optax.rmsprop` (Optax 0.2.8, `optax/_src/alias.py`).

    s ← ρ s + (1−ρ) |g|²;  b ← μ b + η g / √(s + ε);  θ ← θ − b. `centered` has s − |m|² for s;
    `nesterov`, `initial_scale` and `bias_correction` are `rmsprop`'s.

    Unlike `rmsprop`'s defaults: ε inside the root; the learning rate has no default.
    """
    return rmsprop(
        learning_rate,
        decay,
        eps,
        initial_scale,
        eps_in_sqrt,
        centered,
        momentum,
        nesterov,
        bias_correction,
    )


def torch(
    lr: _Rate = 1e-2,
    alpha: ArrayLike = 0.99,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 0,
    momentum: ArrayLike = 0,
    centered: bool = False,
    capturable: bool = False,
    foreach: bool | None = None,
    maximize: bool = False,
    differentiable: bool = False,
) -> _Transformation:
    """`torch.optim.RMSprop` (PyTorch 2.13, `torch/optim/rmsprop.py`).

    g ← g + λθ;  s ← α s + (1−α) g²;  u = g / (√s + ε);  b ← μ b + u;  θ ← θ − lr b.
    `centered` has √(s − m²) with m ← α m + (1−α) g. `maximize` turns the sign of g first.

    Unlike `rmsprop`'s defaults: lr = .01, α = .99, and the learning rate outside the buffer.
    Complex parameters are pairs of reals, each with an s of its own. `capturable`, `foreach` and
    `differentiable` choose between PyTorch's kernels and change no number; here they do nothing.
    """
    del capturable, foreach, differentiable
    inner = rmsprop(
        lr,
        alpha,
        eps,
        centered=centered,
        momentum=_unless_zero(momentum),
        lr_in_momentum=False,
        weight_decay=_unless_zero(weight_decay),
    )
    inner = ox.contrib.split_real_and_imaginary(inner)
    return ox.with_extra_args_support(ox.chain(ox.scale(-1.0), inner) if maximize else inner)


def keras(
    learning_rate: _Rate = 0.001,
    rho: ArrayLike = 0.9,
    momentum: ArrayLike = 0.0,
    epsilon: ArrayLike = 1e-7,
    centered: bool = False,
    weight_decay: ArrayLike | None = None,
    clipnorm: float | None = None,
    clipvalue: float | None = None,
    global_clipnorm: float | None = None,
    use_ema: bool = False,
    ema_momentum: float = 0.99,
    ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None,
    gradient_accumulation_steps: int | None = None,
    name: str | None = None,
) -> _Transformation:
    """`keras.optimizers.RMSprop` (Keras 3.15, `keras/src/optimizers/rmsprop.py`).

    s ← ρ s + (1−ρ) g²;  b ← μ b + η g / √(s + ε);  θ ← θ − η λ θ − b.
    `centered` has √(s − m² + ε) with m ← ρ m + (1−ρ) g.

    Unlike `rmsprop`'s defaults: ε = 1e-7, inside the root. Weight decay is decoupled. The gradient
    is clipped first, by one of `clipnorm` (each array's norm), `clipvalue` and `global_clipnorm`.
    `use_ema`, `loss_scale_factor` and `gradient_accumulation_steps` are refused.

    Raises:
      ValueError: for what is refused, and for more than one way to clip.
    """
    del ema_momentum, ema_overwrite_frequency, name
    if use_ema:
        raise ValueError(
            "use_ema=True replaces the parameters by an average, which a transformation of "
            "gradients cannot: keep optax.ema over your parameters in the training loop."
        )
    if loss_scale_factor is not None:
        raise ValueError(
            f"loss_scale_factor={loss_scale_factor} scales the loss too, which a transformation of "
            "gradients cannot: scale it yourself and chain optax.scale(1 / factor) before."
        )
    if gradient_accumulation_steps is not None:
        raise ValueError(
            f"gradient_accumulation_steps={gradient_accumulation_steps} skips steps: wrap the "
            f"optimiser in optax.MultiSteps(..., {gradient_accumulation_steps})."
        )
    inner = rmsprop(
        learning_rate,
        rho,
        epsilon,
        eps_in_sqrt=True,
        centered=centered,
        momentum=_unless_zero(momentum),
        weight_decay=weight_decay,
        decoupled_weight_decay=True,
    )
    clips = {"clipnorm": clipnorm, "clipvalue": clipvalue, "global_clipnorm": global_clipnorm}
    given = {name: value for name, value in clips.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"give one of clipnorm, clipvalue, global_clipnorm, got {given}.")
    return _clipped(inner, **clips)


def tensorflow_v1(
    learning_rate: _Rate,
    decay: ArrayLike = 0.9,
    momentum: ArrayLike = 0.0,
    epsilon: ArrayLike = 1e-10,
    use_locking: bool = False,
    centered: bool = False,
    name: str = "RMSProp",
) -> _Transformation:
    """`tf.compat.v1.train.RMSPropOptimizer` (TensorFlow 2.21, `python/training/rmsprop.py`).

    s₀ = 1;  s ← ρ s + (1−ρ) g²;  b ← μ b + η g / √(s + ε);  θ ← θ − b.
    `centered` has √(s − m² + ε) with m ← ρ m + (1−ρ) g.

    Unlike `rmsprop`'s defaults: s starts at **1**, and ε = 1e-10 is inside the root. `use_locking`
    and `name` change no number; here they do nothing.
    """
    del use_locking, name
    return rmsprop(
        learning_rate,
        decay,
        epsilon,
        initial_scale=1.0,
        eps_in_sqrt=True,
        centered=centered,
        momentum=_unless_zero(momentum),
    )


def tf_keras_legacy(
    learning_rate: _Rate = 0.001,
    rho: ArrayLike = 0.9,
    momentum: ArrayLike = 0.0,
    epsilon: ArrayLike = 1e-7,
    centered: bool = False,
    name: str = "RMSprop",
    *,
    clipnorm: float | None = None,
    clipvalue: float | None = None,
) -> _Transformation:
    """`tf_keras.optimizers.legacy.RMSprop` (tf_keras 2.21, `optimizers/legacy/rmsprop.py`).

    With momentum 0: s ← ρ s + (1−ρ) g²;  θ ← θ − η g / (√s + ε). With momentum:
    b ← μ b + η g / **√(s + ε)**;  θ ← θ − b. `centered` has s − m² with m ← ρ m + (1−ρ) g for s.

    The momentum decides where ε stands, and a traced one counts as one, as a tensor does there.
    Unlike `rmsprop`'s defaults: ε = 1e-7, which counts as this default where it is exactly 0.
    The gradient is clipped first by each array's norm (`clipnorm`), then by value. The keyword
    `decay` is not taken: η/(1 + decay·t) is a schedule.
    """
    del name
    buffer = _unless_zero(momentum)
    inner = rmsprop(
        learning_rate,
        rho,
        1e-7 if isinstance(epsilon, int | float) and epsilon == 0 else epsilon,
        eps_in_sqrt=buffer is not None,
        centered=centered,
        momentum=buffer,
    )
    return _clipped(inner, clipnorm, clipvalue)


def timm(
    lr: _Rate = 1e-2,
    alpha: ArrayLike = 0.9,
    eps: ArrayLike = 1e-10,
    weight_decay: ArrayLike = 0,
    momentum: ArrayLike = 0.0,
    centered: bool = False,
    decoupled_decay: bool = False,
    corrected_weight_decay: bool = False,
    lr_in_momentum: bool = True,
    caution: bool = False,
    foreach: bool | None = None,
) -> _Transformation:
    """`timm.optim.RMSpropTF` (timm 1.0.31, `timm/optim/rmsprop_tf.py`).

    g ← g + λθ (or, decoupled, θ ← θ − lr λ θ);  s₀ = 1;  s ← s + (1−α)(g² − s);
    b ← μ b + lr g / √(s + ε);  θ ← θ − b. `centered` has √(s − m² + ε) with m ← m + (1−α)(g − m).
    `lr_in_momentum=False` has b ← μ b + g / √(s + ε);  θ ← θ − lr b.

    Unlike `rmsprop`'s defaults: lr = .01, s starts at 1, ε = 1e-10 is inside the root. `foreach`
    changes no number; here it does nothing. `caution` is refused, and `corrected_weight_decay` with
    a schedule; without one it changes nothing.

    Raises:
      ValueError: for what is refused.
    """
    del foreach
    if corrected_weight_decay and decoupled_decay and callable(lr):
        raise ValueError(
            "corrected_weight_decay=True needs the largest learning rate of the run, which a "
            "schedule does not tell: leave the decay out here and chain "
            "optax.add_decayed_weights with a schedule of your own after."
        )
    if caution:
        raise ValueError(
            "caution=True masks the step by the gradient's sign, which is another optimiser "
            "(Cautious Optimizers, arXiv:2411.16085): leave it out, or write that mask as a "
            "transformation of your own."
        )
    return rmsprop(
        lr,
        alpha,
        eps,
        initial_scale=1.0,
        eps_in_sqrt=True,
        centered=centered,
        momentum=_unless_zero(momentum),
        lr_in_momentum=lr_in_momentum,
        weight_decay=_unless_zero(weight_decay),
        decoupled_weight_decay=decoupled_decay,
    )


def stable_baselines3(
    lr: _Rate = 1e-2,
    alpha: ArrayLike = 0.99,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 0,
    momentum: ArrayLike = 0,
    centered: bool = False,
) -> _Transformation:
    """`RMSpropTFLike` of Stable-Baselines3 2.9 (`common/sb2_compat/rmsprop_tf_like.py`).

    g ← g + λθ;  s₀ = 1;  s ← α s + (1−α) g²;  b ← μ b + g / √(s + ε);  θ ← θ − lr b.
    `centered` has √(s − m² + ε) with m ← α m + (1−α) g.

    Unlike `rmsprop`'s defaults: lr = .01, α = .99, s starts at 1, ε inside the root, and the
    learning rate outside the buffer. (A2C's own default there is PyTorch's RMSprop, eps = 1e-5.)
    """
    return timm(lr, alpha, eps, weight_decay, momentum, centered, lr_in_momentum=False)


def mlx(learning_rate: _Rate, alpha: ArrayLike = 0.99, eps: ArrayLike = 1e-8) -> _Transformation:
    """`mlx.optimizers.RMSprop` (MLX 0.32, `mlx/optimizers/optimizers.py`).

    s ← α s + (1−α) g²;  θ ← θ − η g / (√s + ε). Unlike `rmsprop`'s defaults: α = .99.
    """
    return rmsprop(learning_rate, alpha, eps)


def graves2013(
    lr: _Rate = 1e-4, alpha: ArrayLike = 0.95, momentum: ArrayLike = 0.9, eps: ArrayLike = 1e-4
) -> _Transformation:
    """Graves, [Generating Sequences With Recurrent Neural
    Networks](https://arxiv.org/abs/1308.0850), 2013, eq. 38–45; the names are those of Chainer's
    `RMSpropGraves` (ℵ and ℶ, both .95 in the paper, are one `alpha`).

    s ← α s + (1−α) g²;  m ← α m + (1−α) g;  b ← μ b + lr g / √(s − m² + ε);  θ ← θ − b.

    Unlike `rmsprop`'s defaults: centred, with momentum, ε inside the root.
    """
    return rmsprop(lr, alpha, eps, eps_in_sqrt=True, centered=True, momentum=_unless_zero(momentum))


def dqn2015(
    learning_rate: _Rate = 2.5e-4,
    gradient_momentum: ArrayLike = 0.95,
    squared_gradient_momentum: ArrayLike = 0.95,
    min_squared_gradient: ArrayLike = 0.01,
) -> _Transformation:
    """Mnih et al., [Human-level control through deep reinforcement
    learning](https://doi.org/10.1038/nature14236), Nature 2015, Extended Data Table 1.

    m ← ρ m + (1−ρ) g;  s ← ρ s + (1−ρ) g²;  θ ← θ − η g / √(s − m² + min_squared_gradient).

    What the table calls gradient momentum is the decay of the mean m (see the authors' Lua code,
    `NeuralQLearner.lua`); no step is accumulated. Unlike `rmsprop`'s defaults: centred, ρ = .95,
    ε inside the root.

    Raises:
      ValueError: for two decays that differ: s − m² would be no variance, and could be negative.
    """
    decays = gradient_momentum, squared_gradient_momentum
    concrete = not any(isinstance(decay, Tracer) for decay in decays)
    if decays[0] is not decays[1] and not (concrete and decays[0] == decays[1]):
        raise ValueError(
            "gradient_momentum and squared_gradient_momentum must be equal, got "
            f"{gradient_momentum} and {squared_gradient_momentum}: with other weights s − m² is no "
            "variance and may be negative."
        )
    return rmsprop(
        learning_rate,
        squared_gradient_momentum,
        min_squared_gradient,
        eps_in_sqrt=True,
        centered=True,
    )


def a3c2016(
    learning_rate: _Rate = 7e-4, alpha: ArrayLike = 0.99, epsilon: ArrayLike = 0.1
) -> _Transformation:
    """Mnih et al., [Asynchronous Methods for Deep Reinforcement
    Learning](https://arxiv.org/abs/1602.01783), 2016, eq. S2–S3 (shared RMSProp).

    s ← α s + (1−α) g²;  θ ← θ − η g / √(s + ε).

    The paper drew η log-uniformly from 1e-4 to 1e-2; 7e-4 is what implementations settled on.
    Unlike `rmsprop`'s defaults: α = .99, ε = .1 inside the root.
    """
    return rmsprop(learning_rate, alpha, epsilon, eps_in_sqrt=True)


def impala2018(
    learning_rate: _Rate = 4.8e-4,
    decay: ArrayLike = 0.99,
    momentum: ArrayLike = 0.0,
    epsilon: ArrayLike = 0.1,
) -> _Transformation:
    """Espeholt et al., [IMPALA](https://arxiv.org/abs/1802.01561), 2018: the flags of its
    `experiment.py`, given to `tensorflow_v1`, so s starts at 1.

    s₀ = 1;  s ← ρ s + (1−ρ) g²;  b ← μ b + η g / √(s + ε);  θ ← θ − b. There η falls linearly to
    0 over the training: pass `optax.linear_schedule(4.8e-4, 0.0, steps)`.
    """
    return tensorflow_v1(learning_rate, decay, momentum, epsilon)


def pymarl(
    lr: _Rate = 5e-4, optim_alpha: ArrayLike = 0.99, optim_eps: ArrayLike = 1e-5
) -> _Transformation:
    """PyMARL's learners (Samvelyan et al., [The StarCraft Multi-Agent
    Challenge](https://arxiv.org/abs/1902.04043), 2019; `src/config/default.yaml`), by PyTorch's
    RMSprop.

    s ← α s + (1−α) g²;  θ ← θ − lr g / (√s + ε). Unlike `rmsprop`'s defaults: lr, α and ε.
    """
    return torch(lr, optim_alpha, optim_eps)


def _unless_zero(number: Any) -> Any:
    """None for a concrete 0: no momentum buffer; no λθ, so that `update` needs no params."""
    return None if isinstance(number, int | float) and number == 0 else number


def _clipped(inner, clipnorm=None, clipvalue=None, global_clipnorm=None) -> _Transformation:
    """`inner` after Keras' clipping of the gradients."""
    parts = []
    if clipnorm:
        parts.append(ox.stateless(lambda updates, _: jax.tree.map(_clip_norm(clipnorm), updates)))
    if global_clipnorm:
        parts.append(ox.clip_by_global_norm(global_clipnorm))
    if clipvalue:
        parts.append(ox.clip(clipvalue))
    return ox.chain(*parts, inner) if parts else inner


def _clip_norm(limit: float):
    def clip(g):
        norm = jnp.linalg.norm(g.ravel().astype(jnp.promote_types(g.dtype, jnp.float32)))
        return g * (limit / jnp.maximum(norm, limit)).astype(g.dtype)

    return clip
