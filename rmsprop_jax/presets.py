# pyright: standard
"""The RMSProps of other frameworks, with their argument names, order, and defaults.

Paste the framework's call, and leave out its list of parameters. Every learning rate, and every
decay, may also be a schedule (a function of the step, from 0). `momentum=0` allocates no buffer, as
in those frameworks, and `weight_decay=0` adds no term. A traced 0 allocates the buffer and adds the
term. Options that a gradient transformation cannot implement are refused.

Each update below is for one parameter θ with gradient g. s and m start at 0 unless the text gives
s₀.

**A large ε depends on the scale of the loss.** Your loss may be a mean over n where the framework
had a sum. The gradient is then n times smaller, and the same ε makes the steps shorter. Divide ε by
n² if it is inside the root, or by n if it is outside. Divide s₀ by n², and the clipping limits and
a coupled λ by n.

Every preset returns the same kind of transformation as `rmsprop`. Like `rmsprop`, it raises
ValueError for a concrete number out of range. The message names the argument of `rmsprop` that got
the number.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax as ox  # `optax` is a preset here
from jax.core import Tracer
from jax.typing import ArrayLike

from rmsprop_jax._optimizer.cautious import cautious
from rmsprop_jax._optimizer.precision import in_full_precision, to_float
from rmsprop_jax._optimizer.rmsprop import momentum_buffer, rmsprop, scale_by_rate
from rmsprop_jax._optimizer.state import Averages, averaging
from rmsprop_jax._optimizer.validation import flag, scalar

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


def __dir__() -> list[str]:
    return __all__


_Rate = ox.ScalarOrSchedule
_Transformation = ox.GradientTransformationExtraArgs


class _Nothing:
    """A default of 0 that is static: it allocates no buffer and adds no term.

    It prints, hashes, and compares as 0, but it is not a float. `optax.inject_hyperparams`, which
    turns every number into an array, therefore leaves it alone.
    """

    def __repr__(self) -> str:
        return "0"

    def __eq__(self, other: object) -> bool:
        return other == 0

    def __hash__(self) -> int:
        return hash(0)


_NONE: Any = _Nothing()


def optax(
    learning_rate: _Rate,
    decay: _Rate = 0.9,
    eps: ArrayLike = 1e-8,
    initial_scale: ArrayLike = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> _Transformation:
    """`optax.rmsprop` (Optax 0.2.8, `optax/_src/alias.py`).

    s ← ρ s + (1−ρ) |g|²;  b ← μ b + η g / √(s + ε);  θ ← θ − b.
    `centered` divides by √(s − |m|² + ε). `nesterov` and `initial_scale` are as in `rmsprop`.

    `bias_correction` divides by 1 − ρᵗ with the ρ of the current step, as Optax does. That is wrong
    after ρ has changed: use `rmsprop` then.

    Unlike the defaults of `rmsprop`: ε is inside the root, and the learning rate has no default.
    """
    averages = Averages(
        decay, eps, initial_scale, eps_in_sqrt, bias_correction, centered, constant_decay=True
    )
    return in_full_precision(
        ox.chain(
            averaging(averages),
            scale_by_rate(learning_rate),
            momentum_buffer(momentum, nesterov, averages.centered),
        )
    )


def torch(
    lr: _Rate = 1e-2,
    alpha: _Rate = 0.99,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = _NONE,
    momentum: ArrayLike = _NONE,
    centered: bool = False,
    capturable: bool = False,
    foreach: bool | None = None,
    maximize: bool = False,
    differentiable: bool = False,
) -> _Transformation:
    """`torch.optim.RMSprop` (PyTorch 2.13, `torch/optim/rmsprop.py`).

    g ← g + λθ;  s ← α s + (1−α) g²;  u = g / (√s + ε);  b ← μ b + u;  θ ← θ − lr b.
    `centered` divides by √(s − m²) + ε, with m ← α m + (1−α) g. `maximize` flips the sign of g
    first.

    Unlike the defaults of `rmsprop`: lr = 0.01, α = 0.99, and the learning rate is outside the
    buffer. Complex parameters count as pairs of reals, each with an s of its own. `capturable`,
    `foreach`, and `differentiable` choose between PyTorch's kernels. They change no number, and do
    nothing here.
    """
    del capturable, foreach, differentiable
    return _transformation(
        lr,
        decay=alpha,
        eps=eps,
        centered=centered,
        momentum=momentum,
        lr_in_momentum=False,
        weight_decay=weight_decay,
        before=[ox.scale(-1.0)] if flag("maximize", maximize) else [],
        around=ox.contrib.split_real_and_imaginary,
    )


def keras(
    learning_rate: _Rate = 0.001,
    rho: _Rate = 0.9,
    momentum: ArrayLike = _NONE,
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
    `centered` divides by √(s − m² + ε), with m ← ρ m + (1−ρ) g.

    Unlike the defaults of `rmsprop`: ε = 1e-7, inside the root. The weight decay is decoupled. The
    gradient is clipped first, by one of `clipnorm` (the norm of each array), `clipvalue`, and
    `global_clipnorm`. `use_ema`, `loss_scale_factor`, and `gradient_accumulation_steps` are
    refused. `ema_momentum`, `ema_overwrite_frequency`, and `name` do nothing here.

    Raises:
      ValueError: for a refused option, and for more than one way to clip.
    """
    del ema_momentum, ema_overwrite_frequency, name
    if flag("use_ema", use_ema):
        raise ValueError(
            "use_ema must be False, got use_ema=True, because a gradient transformation cannot "
            "replace parameters by their average. Apply optax.ema to your parameters in the "
            "training loop."
        )
    if loss_scale_factor is not None:
        raise ValueError(
            f"loss_scale_factor must be None, got {loss_scale_factor}, because a gradient "
            "transformation cannot scale the loss. Scale the loss yourself, and put "
            "optax.scale(1 / factor) first in the chain."
        )
    if gradient_accumulation_steps is not None:
        raise ValueError(
            f"gradient_accumulation_steps must be None, got {gradient_accumulation_steps}, because "
            "a preset does not skip steps. Wrap the optimizer: "
            f"optax.MultiSteps(..., {gradient_accumulation_steps})."
        )
    clips = {"clipnorm": clipnorm, "clipvalue": clipvalue, "global_clipnorm": global_clipnorm}
    given = {name: value for name, value in clips.items() if value is not None}
    if len(given) > 1:
        raise ValueError(
            f"clipnorm, clipvalue, and global_clipnorm must not be combined, got {given}. Pass one "
            "of them."
        )
    return _transformation(
        learning_rate,
        decay=rho,
        eps=epsilon,
        eps_in_sqrt=True,
        centered=centered,
        momentum=momentum,
        weight_decay=weight_decay,
        decoupled_weight_decay=True,
        before=_clipping(**clips),
    )


def tensorflow_v1(
    learning_rate: _Rate,
    decay: _Rate = 0.9,
    momentum: ArrayLike = _NONE,
    epsilon: ArrayLike = 1e-10,
    use_locking: bool = False,
    centered: bool = False,
    name: str = "RMSProp",
) -> _Transformation:
    """`tf.compat.v1.train.RMSPropOptimizer` (TensorFlow 2.21, `python/training/rmsprop.py`).

    s₀ = 1;  s ← ρ s + (1−ρ) g²;  b ← μ b + η g / √(s + ε);  θ ← θ − b.
    `centered` divides by √(s − m² + ε), with m ← ρ m + (1−ρ) g.

    Unlike the defaults of `rmsprop`: s starts at **1**, and ε = 1e-10 is inside the root.
    `use_locking` and `name` change no number, and do nothing here.
    """
    del use_locking, name
    return _transformation(
        learning_rate,
        decay=decay,
        eps=epsilon,
        initial_scale=1.0,
        eps_in_sqrt=True,
        centered=centered,
        momentum=momentum,
    )


def tf_keras_legacy(
    learning_rate: _Rate = 0.001,
    rho: _Rate = 0.9,
    momentum: ArrayLike = _NONE,
    epsilon: ArrayLike = 1e-7,
    centered: bool = False,
    name: str = "RMSprop",
    *,
    clipnorm: float | None = None,
    clipvalue: float | None = None,
    global_clipnorm: float | None = None,
) -> _Transformation:
    """`tf_keras.optimizers.legacy.RMSprop` (tf_keras 2.21, `optimizers/legacy/rmsprop.py`).

    Without momentum: s ← ρ s + (1−ρ) g²;  θ ← θ − η g / (√s + ε).
    With momentum: b ← μ b + η g / **√(s + ε)**;  θ ← θ − b.
    `centered` has s − m² in place of s, with m ← ρ m + (1−ρ) g.

    The momentum decides whether ε is inside the root. A traced momentum counts as a momentum, as a
    tensor does in tf_keras. Unlike the defaults of `rmsprop`: ε = 1e-7, and an ε of exactly 0 also
    means 1e-7. The gradient is clipped first, by value (`clipvalue`), then by the norm of each
    array (`clipnorm`) or of all arrays together (`global_clipnorm`). `name` does nothing here. The
    keyword `decay` does not exist here: pass η/(1 + decay·t) as a schedule.

    Raises:
      ValueError: for both `clipnorm` and `global_clipnorm`.
    """
    del name
    if clipnorm is not None and global_clipnorm is not None:
        raise ValueError(
            f"clipnorm and global_clipnorm must not be combined, got clipnorm={clipnorm} and "
            f"global_clipnorm={global_clipnorm}. Pass one of them."
        )
    epsilon = scalar("epsilon", epsilon, 0.0)
    if isinstance(epsilon, Tracer):
        epsilon = jnp.where(epsilon == 0, jnp.asarray(1e-7, epsilon.dtype), epsilon)
    return _transformation(
        learning_rate,
        decay=rho,
        eps=epsilon if isinstance(epsilon, Tracer) else epsilon or 1e-7,
        eps_in_sqrt=_WITH_MOMENTUM,
        centered=centered,
        momentum=momentum,
        before=_clipping(clipnorm, clipvalue, global_clipnorm),
    )


def timm(
    lr: _Rate = 1e-2,
    alpha: _Rate = 0.9,
    eps: ArrayLike = 1e-10,
    weight_decay: ArrayLike = _NONE,
    momentum: ArrayLike = _NONE,
    centered: bool = False,
    decoupled_decay: bool = False,
    corrected_weight_decay: bool = False,
    lr_in_momentum: bool = True,
    caution: bool = False,
    foreach: bool | None = None,
) -> _Transformation:
    """`timm.optim.RMSpropTF` (timm 1.0.31, `timm/optim/rmsprop_tf.py`).

    g ← g + λθ (or, decoupled, θ ← θ − lr λ θ);  s₀ = 1;  s ← s + (1−α)(g² − s);
    b ← μ b + lr g / √(s + ε);  θ ← θ − b.
    `centered` divides by √(s − m² + ε), with m ← m + (1−α)(g − m).
    `lr_in_momentum=False` has b ← μ b + g / √(s + ε);  θ ← θ − lr b.

    Unlike the defaults of `rmsprop`: lr = 0.01, s starts at 1, and ε = 1e-10 is inside the root.
    `foreach` changes no number, and does nothing here. `caution` masks the momentum buffer where it
    points against g + λθ, as `rmsprop_jax.cautious` does, and changes nothing without momentum.
    `corrected_weight_decay` is refused with a schedule. Without a schedule, it changes nothing.

    Raises:
      ValueError: for a refused option.
    """
    del foreach
    flag("corrected_weight_decay", corrected_weight_decay)
    if corrected_weight_decay and flag("decoupled_decay", decoupled_decay) and callable(lr):
        raise ValueError(
            "corrected_weight_decay must be False with a schedule, got "
            "corrected_weight_decay=True, because it needs the largest learning rate of the run. "
            "Leave weight_decay out here, and put optax.add_decayed_weights with a schedule of "
            "your own after this transformation."
        )
    return _transformation(
        lr,
        decay=alpha,
        eps=eps,
        initial_scale=1.0,
        eps_in_sqrt=True,
        centered=centered,
        momentum=momentum,
        lr_in_momentum=lr_in_momentum,
        weight_decay=weight_decay,
        decoupled_weight_decay=decoupled_decay,
        caution=flag("caution", caution),
    )


def stable_baselines3(
    lr: _Rate = 1e-2,
    alpha: _Rate = 0.99,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = _NONE,
    momentum: ArrayLike = _NONE,
    centered: bool = False,
) -> _Transformation:
    """`RMSpropTFLike` of Stable-Baselines3 2.9 (`common/sb2_compat/rmsprop_tf_like.py`).

    g ← g + λθ;  s₀ = 1;  s ← α s + (1−α) g²;  b ← μ b + g / √(s + ε);  θ ← θ − lr b.
    `centered` divides by √(s − m² + ε), with m ← α m + (1−α) g.

    Unlike the defaults of `rmsprop`: lr = 0.01, α = 0.99, s starts at 1, ε is inside the root, and
    the learning rate is outside the buffer. (The default of its A2C is PyTorch's RMSprop with
    eps = 1e-5.)
    """
    return timm(lr, alpha, eps, weight_decay, momentum, centered, lr_in_momentum=False)


def mlx(learning_rate: _Rate, alpha: _Rate = 0.99, eps: ArrayLike = 1e-8) -> _Transformation:
    """`mlx.optimizers.RMSprop` (MLX 0.32, `mlx/optimizers/optimizers.py`).

    s ← α s + (1−α) g²;  θ ← θ − η g / (√s + ε).

    Unlike the defaults of `rmsprop`: α = 0.99, and the learning rate has no default.
    """
    return rmsprop(learning_rate, alpha, eps)


def graves2013(
    lr: _Rate = 1e-4, alpha: _Rate = 0.95, momentum: ArrayLike = 0.9, eps: ArrayLike = 1e-4
) -> _Transformation:
    """Graves, [Generating Sequences With Recurrent Neural
    Networks](https://arxiv.org/abs/1308.0850), 2013, eq. 38–45.

    The argument names are those of Chainer's `RMSpropGraves`. The paper's ℵ and ℶ, both 0.95, are
    one `alpha`.

    s ← α s + (1−α) g²;  m ← α m + (1−α) g;  b ← μ b + lr g / √(s − m² + ε);  θ ← θ − b.

    ε is inside the root, where 1e-4 stands for 0.01 in units of the gradient. It belongs to a loss
    that is **summed** over a sequence (eq. 6).

    Unlike the defaults of `rmsprop`: lr = 1e-4, α = 0.95, centered, with momentum, and ε = 1e-4 is
    inside the root.
    """
    return _transformation(
        lr, decay=alpha, eps=eps, eps_in_sqrt=True, centered=True, momentum=momentum
    )


def dqn2015(
    learning_rate: _Rate = 2.5e-4,
    gradient_momentum: _Rate = 0.95,
    squared_gradient_momentum: _Rate = 0.95,
    min_squared_gradient: ArrayLike = 0.01,
) -> _Transformation:
    """Mnih et al., [Human-level control through deep reinforcement
    learning](https://doi.org/10.1038/nature14236), Nature 2015, Extended Data Table 1.

    m ← ρ m + (1−ρ) g;  s ← ρ s + (1−ρ) g²;  θ ← θ − η g / √(s − m² + min_squared_gradient).

    The table's "gradient momentum" is the decay of the mean m, as the authors' Lua code shows
    (`NeuralQLearner.lua`). No step is accumulated. Unlike the defaults of `rmsprop`: centered,
    η = 2.5e-4, ρ = 0.95, and ε = 0.01 is inside the root.

    ε = 0.01 belongs to a loss that is **summed** over the 32 transitions of a batch, as in that
    code. With a mean, the steps are 1.2 to 32 times too short: pass
    `min_squared_gradient=0.01 / 32**2`, as DQN Zoo does.

    Raises:
      ValueError: for two decays that differ, because s − m² would not be a variance, and could be
        negative. If both are traced and differ, the updates are NaN.
    """
    return rmsprop(
        learning_rate,
        _one_decay(gradient_momentum, squared_gradient_momentum),
        min_squared_gradient,
        eps_in_sqrt=True,
        centered=True,
    )


def a3c2016(
    learning_rate: _Rate = 7e-4, alpha: _Rate = 0.99, epsilon: ArrayLike = 0.1
) -> _Transformation:
    """Mnih et al., [Asynchronous Methods for Deep Reinforcement
    Learning](https://arxiv.org/abs/1602.01783), 2016, eq. S2–S3 (shared RMSProp).

    s ← α s + (1−α) g²;  θ ← θ − η g / √(s + ε).

    The paper gives α, drew η log-uniformly from 1e-4 to 1e-2, and does not give ε. Its first author
    wrote η = 7e-4 and ε = 0.1 to Yasuhiro Fujita (the [wiki of
    async-rl](https://github.com/muupan/async-rl/wiki)), with an η that falls linearly to 0: pass
    `optax.linear_schedule(7e-4, 0.0, steps)`. The losses of π and V are **summed** over five steps.
    With a mean over them, pass ε = 0.1/25.

    Unlike the defaults of `rmsprop`: η = 7e-4, α = 0.99, and ε = 0.1 is inside the root.
    """
    return rmsprop(learning_rate, alpha, epsilon, eps_in_sqrt=True)


def impala2018(
    learning_rate: _Rate = 4.8e-4,
    decay: _Rate = 0.99,
    momentum: ArrayLike = _NONE,
    epsilon: ArrayLike = 0.1,
) -> _Transformation:
    """Espeholt et al., [IMPALA](https://arxiv.org/abs/1802.01561), 2018: `tensorflow_v1` with the
    flags of its `experiment.py`.

    s₀ = 1;  s ← ρ s + (1−ρ) g²;  b ← μ b + η g / √(s + ε);  θ ← θ − b.

    In that code, η falls linearly to 0 over the training: pass
    `optax.linear_schedule(4.8e-4, 0.0, steps)`. ε = 0.1 and s₀ = 1 belong to a loss that is
    **summed** over time and batch, as in that code. For a mean over n = steps × batch, write
    `rj.rmsprop(4.8e-4, 0.99, 0.1 / n**2, initial_scale=1 / n**2, eps_in_sqrt=True)`.

    Unlike the defaults of `rmsprop`: η = 4.8e-4, ρ = 0.99, s starts at 1, and ε = 0.1 is inside the
    root.
    """
    return tensorflow_v1(learning_rate, decay, momentum, epsilon)


def pymarl(
    lr: _Rate = 5e-4, optim_alpha: _Rate = 0.99, optim_eps: ArrayLike = 1e-5
) -> _Transformation:
    """PyMARL's learners (Samvelyan et al., [The StarCraft Multi-Agent
    Challenge](https://arxiv.org/abs/1902.04043), 2019; `src/config/default.yaml`), which use
    PyTorch's RMSprop.

    s ← α s + (1−α) g²;  θ ← θ − lr g / (√s + ε).

    Unlike the defaults of `rmsprop`: lr = 5e-4, α = 0.99, ε = 1e-5.
    """
    return torch(lr, optim_alpha, optim_eps)


_WITH_MOMENTUM: Any = object()  # a flag that is True if there is a momentum buffer


def _transformation(
    learning_rate: _Rate,
    *,
    momentum: Any,
    weight_decay: Any = None,
    eps_in_sqrt: Any = False,
    before: Sequence[ox.GradientTransformation] = (),
    around: Callable[[ox.GradientTransformation], ox.GradientTransformation] = lambda inner: inner,
    decoupled_weight_decay: bool = False,
    caution: bool = False,
    **settings: Any,
) -> _Transformation:
    """Return `rmsprop`, where a momentum of 0 has no buffer and a weight decay of 0 no term.

    Args:
      learning_rate: η, as for `rmsprop`.
      momentum: μ; 0 and None allocate no buffer.
      weight_decay: λ; 0 and None add no term.
      eps_in_sqrt: whether ε is inside the root; `_WITH_MOMENTUM` for a preset in which the momentum
        decides.
      before: transformations of the gradient, in full precision.
      around: a wrapper around the whole chain, in full precision.
      decoupled_weight_decay: as for `rmsprop`.
      caution: whether to mask the momentum buffer. The masked part is between the two places of
        weight decay.
      **settings: more arguments of `rmsprop`.
    """
    decay = None if _is_zero(weight_decay) else weight_decay
    decoupled = flag("decoupled_weight_decay", decoupled_weight_decay)

    def make(momentum):
        inside = momentum is not None if eps_in_sqrt is _WITH_MOMENTUM else eps_in_sqrt
        build = functools.partial(
            rmsprop, learning_rate, momentum=momentum, eps_in_sqrt=inside, **settings
        )
        if not caution or momentum is None:
            inner = build(weight_decay=decay, decoupled_weight_decay=decoupled)
        else:
            inner = cautious(build())
            if decay is not None and decoupled:
                inner = ox.chain(inner, _decoupled_decay(learning_rate, decay))
            elif decay is not None:
                inner = ox.chain(ox.add_decayed_weights(scalar("weight_decay", decay, 0.0)), inner)
        return in_full_precision(around(ox.chain(*before, inner)), reads_params=decay is not None)

    if isinstance(momentum, jax.Array):
        return _by_momentum(make, momentum)
    return make(None if _is_zero(momentum) else momentum)


def _decoupled_decay(learning_rate: _Rate, weight_decay: Any) -> ox.GradientTransformation:
    """Return a transformation that adds −η λ θ to an update, with the η of the step."""
    decay_weights = ox.add_decayed_weights(scalar("weight_decay", weight_decay, 0.0))
    rate = scale_by_rate(learning_rate)

    def init_fn(params):
        return rate.init(params), decay_weights.init(params)

    def update_fn(updates, state, params=None):
        zeros = jax.tree.map(jnp.zeros_like, updates)
        decayed, decay_state = decay_weights.update(zeros, state[1], params)
        decayed, rate_state = rate.update(decayed, state[0])
        return jax.tree.map(jnp.add, updates, decayed), (rate_state, decay_state)

    return ox.GradientTransformation(init_fn, update_fn)


def _by_momentum(make: Callable[[Any], _Transformation], momentum: jax.Array) -> _Transformation:
    """Return `make(None)` for a momentum of 0, else `make(momentum)`.

    For a traced momentum, the state tells after `init` whether there is a buffer. So
    `inject_hyperparams` may pass an array of 0 to `init` and a traced number to `update`.
    """
    buffered, plain = make(momentum), make(None)

    def init_fn(params):
        return (plain if _is_zero(momentum) else buffered).init(params)

    def update_fn(updates, state, params=None, **extra_args):
        is_trace = lambda x: isinstance(x, ox.TraceState)
        if any(map(is_trace, jax.tree.leaves(state, is_leaf=is_trace))):
            return buffered.update(updates, state, params, **extra_args)
        if not isinstance(momentum, Tracer) and not _is_zero(momentum):
            raise ValueError(
                f"momentum must be 0 for a state that was made with momentum=0 and has no buffer, "
                f"got momentum={float(momentum):g}. Call init again with a momentum that is not 0."
            )
        new, state = plain.update(updates, state, params, **extra_args)
        if isinstance(momentum, Tracer):  # a trace cannot raise, but must not hide the mistake
            new = jax.tree.map(lambda u: jnp.where(momentum == 0, u, jnp.nan).astype(u.dtype), new)
        return new, state

    return ox.GradientTransformationExtraArgs(init_fn, update_fn)


def _is_zero(number: Any) -> bool:
    """Return whether this is a concrete 0 of any type of number."""
    if isinstance(number, jax.Array | np.ndarray | np.generic):
        concrete = not isinstance(number, Tracer) and number.shape == () and number.dtype != bool
        return concrete and bool(number == 0)
    return isinstance(number, int | float | _Nothing) and number is not False and number == 0


def _one_decay(mean: Any, square: Any) -> Any:
    """Return the decay of both averages; ValueError if they differ, NaN if they are traced."""
    if mean is square:
        return mean
    traced = [isinstance(decay, Tracer) for decay in (mean, square)]
    if all(traced):
        return jnp.where(mean == square, square, jnp.nan)
    if any(traced) or mean != square:
        said = ["a traced value" if t else x for t, x in zip(traced, (mean, square), strict=True)]
        raise ValueError(
            f"gradient_momentum and squared_gradient_momentum must be equal, got {said[0]} and "
            f"{said[1]}, because s − m² would not be a variance, and could be negative. Pass the "
            "same number for both."
        )
    return square


def _clipping(
    clipnorm: Any = None, clipvalue: Any = None, global_clipnorm: Any = None
) -> list[ox.GradientTransformation]:
    """Return the clipping of Keras as transformations, by value before by norm, as tf_keras does.

    A limit of 0 or less does not clip.

    Args:
      clipnorm: the largest norm of each array.
      clipvalue: the largest size of each number.
      global_clipnorm: the largest norm of all arrays together.
    """

    def by_norm(limit, norm):
        limit = jnp.asarray(limit, norm.dtype)
        return jnp.where(limit > 0, limit / jnp.maximum(norm, limit), 1)

    def each(limit):
        return lambda g: g * by_norm(limit, _norm([g])).astype(g.dtype)

    def by_value(limit):
        def one(g):
            high = jnp.where(limit > 0, limit, jnp.finfo(g.dtype).max).astype(g.dtype)
            return jnp.clip(g, -high, high)

        return one

    def all_(limit, updates):
        factor = by_norm(limit, _norm(jax.tree.leaves(updates)))
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates)

    parts = []
    for name, limit, clip in (
        ("clipvalue", clipvalue, lambda limit, gs: jax.tree.map(by_value(limit), gs)),
        ("clipnorm", clipnorm, lambda limit, gs: jax.tree.map(each(limit), gs)),
        ("global_clipnorm", global_clipnorm, all_),
    ):
        if limit is None:
            continue
        limit = scalar(name, limit)
        if isinstance(limit, Tracer) or limit > 0:
            parts.append(ox.stateless(lambda gs, _, clip=clip, limit=limit: clip(limit, gs)))
        else:  # a part that does nothing, so that the state has the structure of a traced limit
            parts.append(ox.identity())
    return parts


def _norm(arrays: Sequence[jax.Array]) -> jax.Array:
    """Return the Euclidean norm of all numbers, without a reshape, so that any sharding works."""
    return jnp.sqrt(to_float(sum(to_float(jnp.sum(jnp.square(jnp.abs(g)))) for g in arrays)))
