"""Checks of arguments: a concrete value out of range raises, a traced one passes."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def scalar(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> Any:
    """`value` as a Python float or, traced, as a scalar of at least float32; else ValueError."""
    wanted = f"a number in [{low:g}, {high:g})" if low > -math.inf else "a finite number"
    if isinstance(value, bool | np.bool_ | str) or value is None:
        raise ValueError(f"{name} must be {wanted}, got {value!r}.")
    if (shape := np.shape(value)) != ():
        raise ValueError(
            f"{name} must be {wanted}, got an array of shape {shape}: to try several values, "
            "jax.vmap over them or use rmsprop_jax.sweep."
        )
    if isinstance(value, Tracer):
        half = jnp.issubdtype(value.dtype, jnp.floating) and jnp.finfo(value.dtype).bits < 32
        return value.astype(jnp.float32) if half else value
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be {wanted}, got {value!r}.") from error
    if not (low <= number < high and math.isfinite(number)):
        hint = ""
        if isinstance(value, jax.Array) and value.dtype.itemsize < 4:
            hint = (
                f" It came as {value.dtype}, which may have rounded it there; under "
                "optax.inject_hyperparams pass hyperparam_dtype=jnp.float32."
            )
        raise ValueError(f"{name} must be {wanted}, got {number}.{hint}")
    return number


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise ValueError(
            f"{name} must be True or False, got {value!r}: a flag is structure and is not traced; "
            "in a sweep, give its axis as rmsprop_jax.static([False, True])."
        )
    return bool(value)
