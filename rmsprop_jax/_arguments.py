"""Checks of what a user passes: a concrete value out of range raises, a traced one passes."""

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
    try:
        shape = np.shape(value)
    except ValueError as error:  # a ragged list
        raise ValueError(f"{name} must be {wanted}, got {value!r}.") from error
    if shape != ():
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
    limit = float(jnp.finfo(jnp.result_type(float)).max)  # beyond it, JAX would make it infinite
    return min(max(number, -limit), limit)


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise ValueError(
            f"{name} must be True or False, got {value!r}: a flag is structure and is not traced; "
            "in a sweep, give its axis as rmsprop_jax.static([False, True])."
        )
    return bool(value)


def check_gradient(g: jax.Array, mu: jax.Array | None, nu: jax.Array) -> None:
    """Refuse a gradient that NumPy's rules would broadcast against its state, or make real."""
    if g.shape != nu.shape:
        raise ValueError(
            f"a gradient has shape {g.shape}, but the state was made for a parameter of shape "
            f"{nu.shape}: call init with the parameters that you train."
        )
    if mu is not None and jnp.iscomplexobj(g) != jnp.iscomplexobj(mu):
        raise ValueError(
            f"a gradient is {g.dtype}, but the state was made for a parameter like {mu.dtype}: "
            "real parameters need real gradients, complex ones complex."
        )
