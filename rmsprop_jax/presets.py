"""Other frameworks' RMSProps: their argument names, order and defaults, as calls of `rmsprop`.

Paste the call, leave out the parameter list. Every learning rate may also be a schedule
(step → η, from step 0). A momentum of exactly 0 has no buffer, as in those frameworks, and a weight
decay of 0 no term; a traced one has. Each update below is for one parameter θ with gradient g; s
and m start at 0 unless said. What a framework does that a gradient transformation cannot do is
refused.

**A large ε is tied to the scale of the loss.** Of a mean over n instead of a sum the gradient is n
times smaller, and with the same ε the steps are shorter: divide ε by n² where it is inside the
root, by n where it is outside, s₀ by n², what clips by n, a coupled λ by n.

Every preset returns what `rmsprop` does, and raises ValueError, like it, for a concrete number out
of range; the message names the argument of `rmsprop` that received it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax as ox  # `optax` is a preset here
from jax.core import Tracer
from jax.typing import ArrayLike

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

_Rate = ox.ScalarOrSchedule
_Transformation = ox.GradientTransformationExtraArgs


class _Nothing:
    """A default of 0 that is structure: no buffer, no term.

    It prints, hashes and compares as 0, but is no float, so that `optax.inject_hyperparams`, which
    makes an array of every number, leaves it alone.
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
    `nesterov` and `initial_scale` are `rmsprop`'s. `bias_correction` divides by 1 − ρᵗ with the ρ
    of the step, as Optax does, which is wrong once ρ has changed. Take `rmsprop` then.

    Unlike `rmsprop`'s defaults: ε inside the root; the learning rate has no default.
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
    alpha: ArrayLike = 0.99,
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
    `centered` has √(s − m²) with m ← α m + (1−α) g. `maximize` turns the sign of g first.

    Unlike `rmsprop`'s defaults: lr = .01, α = .99, and the learning rate outside the buffer.
    Complex parameters are pairs of reals, each with an s of its own. `capturable`, `foreach` and
    `differentiable` choose between PyTorch's kernels and change no number; here they do nothing.
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
    rho: ArrayLike = 0.9,
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
    `centered` has √(s − m² + ε) with m ← ρ m + (1−ρ) g.

    Unlike `rmsprop`'s defaults: ε = 1e-7, inside the root. Weight decay is decoupled. The gradient
    is clipped first, by one of `clipnorm` (each array's norm), `clipvalue` and `global_clipnorm`.
    `use_ema`, `loss_scale_factor` and `gradient_accumulation_steps` are refused; what goes with
    `use_ema`, and `name`, do nothing here.

    Raises:
      ValueError: for what is refused, and for more than one way to clip.
    """
    del ema_momentum, ema_overwrite_frequency, name
    if flag("use_ema", use_ema):
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
    clips = {"clipnorm": clipnorm, "clipvalue": clipvalue, "global_clipnorm": global_clipnorm}
    given = {name: value for name, value in clips.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"give one of clipnorm, clipvalue, global_clipnorm, got {given}.")
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
    decay: ArrayLike = 0.9,
    momentum: ArrayLike = _NONE,
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
    rho: ArrayLike = 0.9,
    momentum: ArrayLike = _NONE,
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
    The gradient is clipped first by each array's norm (`clipnorm`), then by value. `name` does
    nothing here. The keyword `decay` is not taken: η/(1 + decay·t) is a schedule.
    """
    del name
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
        before=_clipping(clipnorm, clipvalue),
    )


def timm(
    lr: _Rate = 1e-2,
    alpha: ArrayLike = 0.9,
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
    b ← μ b + lr g / √(s + ε);  θ ← θ − b. `centered` has √(s − m² + ε) with m ← m + (1−α)(g − m).
    `lr_in_momentum=False` has b ← μ b + g / √(s + ε);  θ ← θ − lr b.

    Unlike `rmsprop`'s defaults: lr = .01, s starts at 1, ε = 1e-10 is inside the root. `foreach`
    changes no number; here it does nothing. `caution` is refused, and `corrected_weight_decay` with
    a schedule; without one it changes nothing.

    Raises:
      ValueError: for what is refused.
    """
    del foreach
    flag("corrected_weight_decay", corrected_weight_decay)
    if corrected_weight_decay and flag("decoupled_decay", decoupled_decay) and callable(lr):
        raise ValueError(
            "corrected_weight_decay=True needs the largest learning rate of the run, which a "
            "schedule does not tell: leave the decay out here and chain "
            "optax.add_decayed_weights with a schedule of your own after."
        )
    if flag("caution", caution):
        raise ValueError(
            "caution=True masks the step by the gradient's sign, which is another optimiser "
            "(Cautious Optimizers, arXiv:2411.16085): leave it out, or write that mask as a "
            "transformation of your own."
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
    )


def stable_baselines3(
    lr: _Rate = 1e-2,
    alpha: ArrayLike = 0.99,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = _NONE,
    momentum: ArrayLike = _NONE,
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
    Networks](https://arxiv.org/abs/1308.0850), 2013, eq. 38–45.

    The names are those of Chainer's `RMSpropGraves`; ℵ and ℶ, both .95 in the paper, are one
    `alpha`.

    s ← α s + (1−α) g²;  m ← α m + (1−α) g;  b ← μ b + lr g / √(s − m² + ε);  θ ← θ − b.

    ε = 1e-4 is .01 in units of the gradient of a loss that is **summed** over a sequence (eq. 6).

    Unlike `rmsprop`'s defaults: centred, with momentum, ε inside the root.
    """
    return _transformation(
        lr, decay=alpha, eps=eps, eps_in_sqrt=True, centered=True, momentum=momentum
    )


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

    ε = .01 belongs to a loss that is **summed** over the 32 transitions of a batch, as in that
    code. With a mean the steps are 1.2 to 32 times too short; give
    `min_squared_gradient=0.01 / 32**2` then, as DQN Zoo does.

    Raises:
      ValueError: for two decays that differ: s − m² would be no variance, and could be negative.
        Where both are traced and differ, the updates are NaN.
    """
    return rmsprop(
        learning_rate,
        _one_decay(gradient_momentum, squared_gradient_momentum),
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

    The paper gives α, drew η log-uniformly from 1e-4 to 1e-2, and does not say ε. 7e-4 and ε = .1
    are what its first author wrote to Yasuhiro Fujita (the [wiki of
    async-rl](https://github.com/muupan/async-rl/wiki)), with η falling linearly to 0: pass
    `optax.linear_schedule(7e-4, 0.0, steps)`. The gradient is that of π's and V's losses **summed**
    over five steps; with a mean over them take ε = .1/25.
    Unlike `rmsprop`'s defaults: α = .99, ε = .1 inside the root.
    """
    return rmsprop(learning_rate, alpha, epsilon, eps_in_sqrt=True)


def impala2018(
    learning_rate: _Rate = 4.8e-4,
    decay: ArrayLike = 0.99,
    momentum: ArrayLike = _NONE,
    epsilon: ArrayLike = 0.1,
) -> _Transformation:
    """Espeholt et al., [IMPALA](https://arxiv.org/abs/1802.01561), 2018: the flags of its
    `experiment.py`, given to `tensorflow_v1`, so s starts at 1.

    s₀ = 1;  s ← ρ s + (1−ρ) g²;  b ← μ b + η g / √(s + ε);  θ ← θ − b. There η falls linearly to
    0 over the training: pass `optax.linear_schedule(4.8e-4, 0.0, steps)`. ε = .1 and s₀ = 1 belong
    to a loss that is **summed** over time and batch, as there; for a mean over n = steps × batch
    write `rj.rmsprop(4.8e-4, 0.99, 0.1 / n**2, initial_scale=1 / n**2, eps_in_sqrt=True)`.
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


_WITH_MOMENTUM: Any = object()  # a flag that is True where there is a momentum buffer


def _transformation(
    learning_rate: _Rate,
    *,
    momentum: Any,
    weight_decay: Any = None,
    eps_in_sqrt: Any = False,
    before: Sequence[ox.GradientTransformation] = (),
    around: Callable[[ox.GradientTransformation], ox.GradientTransformation] = lambda inner: inner,
    **settings: Any,
) -> _Transformation:
    """`rmsprop`, where a momentum of 0 is no buffer and a weight decay of 0 no term.

    What comes `before` and `around` it is done in full precision, too.
    """
    decay = None if _is_zero(weight_decay) else weight_decay

    def make(momentum):
        inside = momentum is not None if eps_in_sqrt is _WITH_MOMENTUM else eps_in_sqrt
        inner = rmsprop(
            learning_rate,
            momentum=momentum,
            weight_decay=decay,
            eps_in_sqrt=inside,
            **settings,
        )
        return in_full_precision(around(ox.chain(*before, inner)), reads_params=decay is not None)

    if isinstance(momentum, jax.Array):
        return _by_momentum(make, momentum)
    return make(None if _is_zero(momentum) else momentum)


def _by_momentum(make: Callable[[Any], _Transformation], momentum: jax.Array) -> _Transformation:
    """`make(None)` where the momentum is 0, else `make(momentum)`.

    Of a traced one that is not known; then, after `init`, the state says which. So
    `inject_hyperparams` may have an array of 0 in `init` and a traced one in `update`.
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
                f"the momentum is {float(momentum):g}, but the state was made with a momentum of "
                "0, which has no buffer: call init again, with a momentum that is not 0."
            )
        new, state = plain.update(updates, state, params, **extra_args)
        if isinstance(momentum, Tracer):  # it cannot raise, and must not pass in silence either
            new = jax.tree.map(lambda u: jnp.where(momentum == 0, u, jnp.nan).astype(u.dtype), new)
        return new, state

    return ox.GradientTransformationExtraArgs(init_fn, update_fn)


def _is_zero(number: Any) -> bool:
    """Whether this is a concrete 0, of any kind of number."""
    if isinstance(number, jax.Array | np.ndarray | np.generic):
        concrete = not isinstance(number, Tracer) and number.shape == () and number.dtype != bool
        return concrete and bool(number == 0)
    return isinstance(number, int | float | _Nothing) and number is not False and number == 0


def _one_decay(mean: Any, square: Any) -> Any:
    """The decay that both averages have; ValueError where they differ, NaN where that is traced."""
    if mean is square:
        return mean
    traced = [isinstance(decay, Tracer) for decay in (mean, square)]
    if all(traced):
        return jnp.where(mean == square, square, jnp.nan)
    if any(traced) or mean != square:
        said = ["a traced value" if t else x for t, x in zip(traced, (mean, square), strict=True)]
        raise ValueError(
            f"gradient_momentum and squared_gradient_momentum must be equal, got {said[0]} and "
            f"{said[1]}: with other weights s − m² is no variance and may be negative. Pass both, "
            "the same."
        )
    return square


def _clipping(
    clipnorm: Any = None, clipvalue: Any = None, global_clipnorm: Any = None
) -> list[ox.GradientTransformation]:
    """Keras' clipping of the gradients: each array's norm, the norm of all, each number.

    As there, a limit of 0 or less does not clip.
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
        ("clipnorm", clipnorm, lambda limit, gs: jax.tree.map(each(limit), gs)),
        ("global_clipnorm", global_clipnorm, all_),
        ("clipvalue", clipvalue, lambda limit, gs: jax.tree.map(by_value(limit), gs)),
    ):
        if limit is None:
            continue
        limit = scalar(name, limit)
        if isinstance(limit, Tracer) or limit > 0:
            parts.append(ox.stateless(lambda gs, _, clip=clip, limit=limit: clip(limit, gs)))
        else:  # a part all the same: traced, it would be one
            parts.append(ox.identity())
    return parts


def _norm(arrays: Sequence[jax.Array]) -> jax.Array:
    """The Euclidean norm of all numbers; no reshape, so that they may be sharded anyhow."""
    return jnp.sqrt(to_float(sum(to_float(jnp.sum(jnp.square(jnp.abs(g)))) for g in arrays)))
