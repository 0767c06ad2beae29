"""Checks of what a user passes: a concrete value out of range raises, a traced one passes."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rmsprop_jax._optimizer.precision import to_float


def scalar(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> Any:
    """`value` as a Python float or, traced, as a scalar of at least float32; else ValueError.

    Below a `high` of 1, a JAX (or narrow NumPy) scalar of exactly 1 counts as the largest number
    below 1 of its dtype: a number close to 1 was rounded to it, by `inject_hyperparams` with
    bfloat16 parameters, say, or in a sweep. So traced and concrete values do the same.
    """
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
        if not jnp.issubdtype(value.dtype, jnp.floating):
            value = to_float(value)
        below = jnp.asarray(_below_one(value.dtype), value.dtype)
        value = jnp.where(value == 1, below, value) if high == 1.0 else value
        return value.astype(jnp.float32) if jnp.finfo(value.dtype).bits < 32 else value
    try:
        number = float(value)
        if number == high == 1.0 and _is_narrow(value):
            number = _below_one(value.dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be {wanted}, got {value!r}.") from error
    if not (low <= number < high and math.isfinite(number)):
        raise ValueError(f"{name} must be {wanted}, got {number}.")
    limit = float(jnp.finfo(jnp.result_type(float)).max)  # beyond it, JAX would make it infinite
    return min(max(number, -limit), limit)


def _is_narrow(value: Any) -> bool:
    """Whether 1 may be what a smaller number was rounded to."""
    if isinstance(value, jax.Array):
        return jnp.issubdtype(value.dtype, jnp.floating)
    return isinstance(value, np.generic | np.ndarray) and value.dtype.itemsize < 8


def _below_one(dtype) -> float:
    """The largest number below 1."""
    return 1.0 - float(jnp.finfo(dtype).epsneg)


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        hint = ""
        if isinstance(value, Tracer):
            hint = (
                ": a flag is structure and is not traced. A jax.jit of your own traces the bools "
                "that it gets, unless static_argnames has them; in a sweep an axis of bools is "
                "structure, and one of numbers is with rmsprop_jax.static([...])"
            )
        raise ValueError(f"{name} must be True or False, got {value!r}{hint}.")
    return bool(value)


STORAGE = ("float32", "float64", "bfloat16")


def storage(state_dtype: Any) -> Any:
    """The dtype that `state_dtype` names, or None."""
    if state_dtype is None:
        return None
    try:
        # A dtype class is callable, and what inject_hyperparams makes of it is an array.
        if isinstance(state_dtype, jax.Array | np.ndarray | np.generic):
            raise TypeError
        dtype = jnp.dtype(state_dtype)
    except TypeError:
        dtype = None
    if dtype is None or dtype.name not in STORAGE:
        why = {
            "float16": ": its range ends at 65,504, below the squares of gradients of 256",
            "int8": ": eight bits have no honest bound, and exact zeros give NaN",
            "uint8": ": eight bits have no honest bound, and exact zeros give NaN",
        }.get(dtype.name if dtype is not None else "", "")
        if dtype is not None and dtype.name.startswith("float8"):
            why = ": eight bits have no honest bound"
        raise ValueError(
            f"state_dtype must be None, or one of {', '.join(map(repr, STORAGE))}, got "
            f"{state_dtype!r}{why}. optax.inject_hyperparams takes a dtype such as jnp.bfloat16 "
            "for a schedule: give it as text."
        )
    if dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError('state_dtype="float64" needs JAX\'s x64: enable jax_enable_x64.')
    return dtype


def whole(name: str, value: Any) -> Any:
    """A whole number in int32, or traced (of any dtype, as inject_hyperparams has it)."""
    if isinstance(value, Tracer | jax.Array) and np.shape(value) == ():
        return value
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name} must be a whole number, got {value!r}.")
    if not -(2**31) <= value < 2**31:
        raise ValueError(f"{name} must be a whole number of 32 bits, got {value}.")
    return int(value)


def check_mask(mask: Any) -> Any:
    """`mask`, or, for one bool, a function that refuses it for a tree of several parameters."""
    one = isinstance(mask, bool | np.bool_) or (
        isinstance(mask, jax.Array | np.ndarray) and mask.shape == () and mask.dtype == bool
    )
    if not one:
        return mask

    def of(tree):
        if (leaves := len(jax.tree.leaves(tree))) != 1 or isinstance(mask, jax.Array):
            raise ValueError(
                f"mask is one bool, {mask}, for {leaves} parameters; wanted a tree of bools, or a "
                "function that gives one. optax.inject_hyperparams calls a mask function as if it "
                'were a schedule, and this is what it returned: pass static_args=("mask",).'
            )
        return bool(mask)

    return of


def check_state(state: Any, centered: bool, bias_correction: bool, state_dtype: Any = None) -> None:
    """Refuse the state of other flags, whose averages are of something else."""
    is_short = state_dtype == jnp.bfloat16
    for nu in jax.tree.leaves(state.nu):
        if (nu.dtype == jnp.bfloat16) != is_short or (state_dtype and nu.dtype != state_dtype):
            raise ValueError(
                f"the state's nu is {nu.dtype}, and this optimiser has state_dtype="
                f"{state_dtype and state_dtype.name!r}: call init of the optimiser that you update "
                "with, or cast: state._replace(nu=jax.tree.map(lambda x: x.astype(dtype), "
                "state.nu))."
            )
    flags = {"centered": (centered, state.mu), "bias_correction": (bias_correction, state.step)}
    if is_short:
        del flags["bias_correction"]  # its step is kept without, too
    for name, (on, field) in flags.items():
        if on == (field is None) and jax.tree.leaves(state.nu):
            raise ValueError(
                f"the state was made with {name}={not on}, and this optimiser has {name}={on}: "
                "call init of the optimiser that you update with."
            )


def check_gradient(g: jax.Array, mu: jax.Array | None, nu: jax.Array | None) -> None:
    """Refuse a gradient that NumPy's rules would broadcast against its state, or make real."""
    if nu is None:
        raise ValueError(
            f"there is a gradient of shape {g.shape}, but no state for it, because init got None "
            "(or a key) in its place: call init with the parameters that you train."
        )
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
