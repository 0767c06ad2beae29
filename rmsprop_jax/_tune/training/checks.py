"""Checks of a training's functions: how they are called, and which metrics they return."""

import inspect
from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.core import Tracer

from rmsprop_jax._tune.space.points import RESERVED, Points
from rmsprop_jax._tune.space.static_groups import StaticGroup
from rmsprop_jax._tune.space.values import PyTree, refuse_dtype
from rmsprop_jax._tune.training.training import Training

Metrics: TypeAlias = dict[str, jax.ShapeDtypeStruct]

LONGEST_NAME = 200  # characters of a metric's name


def refuse_jitted(function: object, name: str, group: StaticGroup, error: Exception) -> None:
    """Raise ValueError if a jitted function failed because it traced the static values, too."""
    if hasattr(function, "lower") and group.static:  # `jax.jit` adds `lower`
        raise ValueError(
            f"{name} must be a function that is not jitted, because its own jax.jit traces the "
            f"static hyperparameters, too, got {group.static}. Pass the function that you "
            f"jitted, {name}.__wrapped__: the sweep compiles it."
        ) from error


def check_calls(
    training: Training, batch_args: tuple[PyTree, ...], args: tuple[PyTree, ...]
) -> None:
    """Raise ValueError unless a training's functions can be called with these arguments.

    Args:
      training: the `Training` that the sweep got.
      batch_args: the arguments of `step` between the key and the args: a batch, or nothing.
      args: the sweep's `args`.
    """
    check_call(training.init, "init", "init(hp, key, *args)", args)
    form = f"step(hp, state, key, {'batch, ' if batch_args else ''}*args)"
    check_call(training.step, "step", form, (None, *batch_args, *args), args)
    if training.evaluate is not None:
        form = "evaluate(hp, state, key, *args)"
        check_call(training.evaluate, "evaluate", form, (None, *args), args)


def check_call(
    function: object,
    name: str,
    form: str,
    inputs: tuple[PyTree, ...],
    args: tuple[PyTree, ...] | None = None,
) -> None:
    """Raise ValueError unless a function can be called like this, and all args are arrays.

    Args:
      function: the object that the user passed as a function.
      name: its name, for errors.
      form: how the sweep calls it, for errors: "train(hp, key, *args)".
      inputs: all arguments but hp and the key.
      args: the sweep's `args`, if `inputs` has more.
    """
    args = inputs if args is None else args
    if not callable(function):
        raise ValueError(
            f"{name} must be a function {form}, got {function!r}. Pass the function itself."
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        signature = None
    if signature is not None:
        try:
            signature.bind(None, None, *inputs)
        except TypeError as error:
            raise ValueError(
                f"{name} must accept the call {form} with {len(args)} args, but its signature is "
                f"{name}{signature}: {error}. Change the signature, or pass args=(...)."
            ) from None
    for path, leaf in jax.tree_util.tree_flatten_with_path(args)[0]:
        place = f"args{jax.tree_util.keystr(path)}"
        if isinstance(leaf, Tracer):
            raise ValueError(
                f"{place} must be a concrete array, got a traced value: sweep was called inside "
                "jax.jit, vmap, or grad, or inside another sweep's train. Call it outside: it "
                "compiles by itself."
            )
        try:
            jax.eval_shape(lambda leaf=leaf: leaf)
        except TypeError:
            raise ValueError(
                f"{place} must be an array or a number, got {leaf!r}, a {type(leaf).__name__}. "
                f"Let {name} close over it, or make it a static axis."
            ) from None
        refuse_dtype(place, getattr(leaf, "dtype", None))


def check_metrics(what: str, metrics: object, points: Points, scalars: bool) -> Metrics:
    """Return the metrics of a function; ValueError unless they are named real numbers.

    Args:
      what: the function's name, "train", "step", or "evaluate".
      metrics: the return value of the function.
      points: all points of the sweep.
      scalars: whether each metric must be a scalar.
    """
    if not isinstance(metrics, dict) or (not metrics and what != "step"):
        kind = "an array" if hasattr(metrics, "shape") else type(metrics).__name__
        kind = "an empty one" if isinstance(metrics, dict) else kind
        raise ValueError(
            f"{what} must return a dict of named metrics, got {kind}. "
            f'Return, for example, {{"loss": {"loss" if scalars else "losses"}}}.'
        )
    check_names(what, list(metrics))
    for name, metric in metrics.items():
        if name in points.names or name in RESERVED:
            raise ValueError(
                f"{what} must return metrics whose names differ from the hyperparameters and from "
                f"{sorted(RESERVED)}, got {name!r}. Rename it."
            )
        if isinstance(metric, bool | int | float):
            continue
        if not hasattr(metric, "shape") or not hasattr(metric, "dtype"):
            raise ValueError(
                f"metric {name!r} must be an array, got {type(metric).__name__}. Return "
                "jnp.asarray(...)."
            )
        if scalars and metric.shape != ():
            raise ValueError(
                f"metric {name!r} of {what} must be a scalar, got shape {metric.shape}. Return a "
                "mean, for example, or keep the array in the state."
            )
        if len(metric.shape) > 1 or 0 in metric.shape:
            raise ValueError(
                f"metric {name!r} must be a scalar or have one value per step, got shape "
                f"{metric.shape}. Return a mean, for example."
            )
        if not jnp.issubdtype(metric.dtype, jnp.number) and metric.dtype != bool:
            raise ValueError(
                f"metric {name!r} must have numbers, got dtype {metric.dtype}. Convert it, or "
                "leave it out."
            )
        refuse_dtype(f"metric {name!r}", metric.dtype)
        if jnp.issubdtype(metric.dtype, jnp.complexfloating):
            raise ValueError(
                f"metric {name!r} must have real numbers, got {metric.dtype}. Return jnp.abs(x), "
                "or x.real."
            )
    return metrics


def check_names(what: str, names: Sequence[object]) -> None:
    """Raise ValueError for names of metrics that a folder cannot hold or would confuse."""
    for name in names:
        if not isinstance(name, str):
            raise ValueError(
                f"{what} must return metrics whose names are strings, got {name!r}. Rename it: "
                f"{str(name)!r}."
            )
        is_text = "\0" not in name and name == name.encode("utf-8", "ignore").decode()
        if not is_text or not 0 < len(name) <= LONGEST_NAME:
            raise ValueError(
                f"{what} must return metrics whose names are text of 1 to {LONGEST_NAME} "
                f"characters without \\0 or lone surrogates, got {name!r:.60}, of {len(name)} "
                "characters. Rename it."
            )
        if name + ".npy" in names:
            raise ValueError(
                f'{what} must not return two metrics whose names differ only by ".npy" at the '
                f"end, got {name!r} and {name + '.npy'!r}. NumPy drops this ending when it reads a "
                "folder. Rename one."
            )
