"""Errors for arguments of other frameworks that `rmsprop` does not have."""

import functools
import inspect
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

OURS = {"lr": "learning_rate", "alpha": "decay", "rho": "decay", "epsilon": "eps"}
"""The arguments of `rmsprop` that have another name elsewhere."""

PRESETS = {
    "alpha": ("a3c2016", "graves2013", "mlx", "stable_baselines3", "timm", "torch"),
    "epsilon": ("a3c2016", "impala2018", "keras", "tensorflow_v1", "tf_keras_legacy"),
    "gradient_momentum": ("dqn2015",),
    "squared_gradient_momentum": ("dqn2015",),
    "min_squared_gradient": ("dqn2015",),
    "lr": ("graves2013", "pymarl", "stable_baselines3", "timm", "torch"),
    "rho": ("keras", "tf_keras_legacy"),
    "clipnorm": ("keras", "tf_keras_legacy"),
    "clipvalue": ("keras", "tf_keras_legacy"),
    "global_clipnorm": ("keras", "tf_keras_legacy"),
    "use_ema": ("keras",),
    "ema_momentum": ("keras",),
    "ema_overwrite_frequency": ("keras",),
    "loss_scale_factor": ("keras",),
    "gradient_accumulation_steps": ("keras",),
    "name": ("keras", "tensorflow_v1", "tf_keras_legacy"),
    "optim_alpha": ("pymarl",),
    "optim_eps": ("pymarl",),
    "use_locking": ("tensorflow_v1",),
    "decoupled_decay": ("timm",),
    "corrected_weight_decay": ("timm",),
    "caution": ("timm",),
    "foreach": ("timm", "torch"),
    "capturable": ("torch",),
    "maximize": ("torch",),
    "differentiable": ("torch",),
}
"""For each argument that `rmsprop` does not have, the presets that have it; a test compares."""


def explains_foreign_names(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function with a TypeError that names the right argument and the presets.

    The signature stays, because `optax.inject_hyperparams` reads it.
    """
    names = set(inspect.signature(function).parameters)

    @functools.wraps(function)
    def explained(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in kwargs.items():
            if name in PRESETS and name not in names:
                _refuse(function.__name__, name, value, names)
        return function(*args, **kwargs)

    return explained


def _refuse(function: str, name: str, value: object, names: set[str]) -> NoReturn:
    """Raise TypeError with our argument, if there is one, and the presets.

    Args:
      function: the name of the called function.
      name: the other framework's argument.
      value: the value that it got.
      names: the arguments of the called function.
    """
    ours = OURS.get(name)
    if ours in names:
        fix = f"Pass {function}({ours}={value!r}), or call"
    elif ours is not None:
        fix = f"Pass rmsprop({ours}={value!r}), or call"
    else:
        fix = "Leave it out, or call"
    listed = " or ".join(f"rmsprop_jax.presets.{preset}" for preset in PRESETS[name])
    raise TypeError(
        f"{function} must get {f'{ours} in place of {name}' if ours else 'its own arguments'}, got "
        f"{name}={value!r}. {fix} the preset of the framework with this argument: {listed}."
    )
