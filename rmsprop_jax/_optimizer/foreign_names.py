"""Errors for arguments that other frameworks' RMSProp has under another name, or alone."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

OURS = {"lr": "learning_rate", "alpha": "decay", "rho": "decay", "epsilon": "eps"}
"""The arguments of `rmsprop` that have another name elsewhere."""


def explains_foreign_names(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function with a TypeError that names the right argument and the presets.

    The signature stays, because `optax.inject_hyperparams` reads it.
    """
    names = set(inspect.signature(function).parameters)

    @functools.wraps(function)
    def explained(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs.keys() - names:
            if presets := _presets_with(name):
                _refuse(function.__name__, name, kwargs[name], OURS.get(name), names, presets)
        return function(*args, **kwargs)

    return explained


def _refuse(
    function: str, name: str, value: object, ours: str | None, names: set[str], presets: list[str]
) -> None:
    if ours in names:
        fix = f"Pass {function}({ours}={value!r}), or call"
    elif ours is not None:
        fix = f"Pass rmsprop({ours}={value!r}), or call"
    else:
        fix = "Leave it out, or call"
    listed = " or ".join(f"rmsprop_jax.presets.{preset}" for preset in presets)
    raise TypeError(
        f"{function} must get {f'{ours} in place of {name}' if ours else 'its own arguments'}, got "
        f"{name}={value!r}. {fix} the preset of the framework with this argument: {listed}."
    )


def _presets_with(name: str) -> list[str]:
    """Return the presets with an argument of this name."""
    from rmsprop_jax import presets  # which imports this module's users

    has = lambda preset: name in inspect.signature(getattr(presets, preset)).parameters
    return [preset for preset in presets.__all__ if has(preset)]
