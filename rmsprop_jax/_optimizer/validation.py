# pyright: standard
"""Checks of arguments, states, and gradients. A concrete value out of range raises ValueError."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def scalar(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> Any:
    """Return `value` as a Python float or, if traced, as a scalar of at least float32.

    Below a `high` of 1, a JAX (or narrow NumPy) scalar of exactly 1 counts as the largest number
    below 1 of its dtype: a number close to 1 was rounded to it, for example by `inject_hyperparams`
    with bfloat16 parameters. Traced and concrete values do the same.
    """
    range_ = f"a number in [{low:g}, {high:g})" if low > -math.inf else "a finite number"
    example = {1.0: "0.9"}.get(high, "1e-3")
    fix = f"Pass, for example, {name}={example}."
    if isinstance(value, bool | np.bool_ | str) or value is None:
        raise ValueError(f"{name} must be {range_}, got {value!r}. {fix}")
    try:
        shape = np.shape(value)
    except ValueError as error:  # a ragged list
        raise ValueError(f"{name} must be {range_}, got {value!r}. {fix}") from error
    if shape != ():
        raise ValueError(
            f"{name} must be {range_}, got an array of shape {shape}. To try several values, "
            "jax.vmap over them, or use rmsprop_jax.sweep."
        )
    if isinstance(value, Tracer):
        if not jnp.issubdtype(value.dtype, jnp.floating):
            value = jnp.asarray(value, jnp.result_type(float))
        below = jnp.asarray(_below_one(value.dtype), value.dtype)
        value = jnp.where(value == 1, below, value) if high == 1.0 else value
        return value.astype(jnp.float32) if jnp.finfo(value.dtype).bits < 32 else value
    try:
        number = float(value)
        if number == high == 1.0 and _is_narrow(value):
            number = _below_one(value.dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be {range_}, got {value!r}. {fix}") from error
    if not (low <= number < high and math.isfinite(number)):
        raise ValueError(f"{name} must be {range_}, got {number}. {fix}")
    limit = float(jnp.finfo(jnp.result_type(float)).max)  # JAX makes larger numbers infinite
    return min(max(number, -limit), limit)


def _is_narrow(value: Any) -> bool:
    """Return whether a 1 of this type may have been rounded from a smaller number."""
    if isinstance(value, jax.Array):
        return jnp.issubdtype(value.dtype, jnp.floating)
    return isinstance(value, np.generic | np.ndarray) and value.dtype.itemsize < 8


def _below_one(dtype) -> float:
    """Return the largest number below 1."""
    return 1.0 - float(jnp.finfo(dtype).epsneg)


def flag(name: str, value: Any) -> bool:
    """Return `value` as a bool. A traced bool is refused."""
    if not isinstance(value, bool | np.bool_):
        hint = f"Pass {name}=True or {name}=False."
        if isinstance(value, Tracer):
            hint = (
                "A flag is static, and a jax.jit of your own traces the bools that it gets. Name "
                f"the flag in its static_argnames; in a sweep, make its axis static: "
                f"{name}=rmsprop_jax.static([False, True])."
            )
        raise ValueError(f"{name} must be True or False, got {value!r}. {hint}")
    return bool(value)


STORAGE = ("float32", "float64", "bfloat16")


def storage(name: str, state_dtype: Any) -> Any:
    """Return the dtype that `state_dtype` names, or None."""
    if state_dtype is None:
        return None
    try:
        # A dtype class is callable, and inject_hyperparams makes an array of its value.
        if isinstance(state_dtype, jax.Array | np.ndarray | np.generic):
            raise TypeError
        dtype = jnp.dtype(state_dtype)
    except TypeError:
        dtype = None
    if dtype is None or dtype.name not in STORAGE:
        why = ""
        if dtype is not None and dtype.name == "float16":
            why = " (the range of float16 ends at 65,504, below the square of a gradient of 256)"
        elif dtype is not None and dtype.itemsize == 1:
            why = " (states of 8 bits are not supported)"
        raise ValueError(
            f"{name} must be None, or one of {', '.join(map(repr, STORAGE))}, got "
            f"{state_dtype!r}{why}. optax.inject_hyperparams takes a dtype such as jnp.bfloat16 "
            'for a schedule: give it as text, state_dtype="bfloat16".'
        )
    if dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            f'{name}="float64" needs JAX\'s x64, which is off. Call '
            'jax.config.update("jax_enable_x64", True) before the first use of JAX.'
        )
    return dtype


def whole(name: str, value: Any) -> Any:
    """Return a whole number of 32 bits, or a traced number.

    `inject_hyperparams` makes a float array of a whole number, so a float without a fraction and a
    traced float are accepted.
    """
    fix = f"Pass a Python int, such as {name}=0."
    kind = getattr(value, "dtype", np.dtype(type(value)) if isinstance(value, int) else None)
    if kind is not None and jnp.issubdtype(kind, jax.dtypes.prng_key):
        raise ValueError(
            f"{name} must be a whole number, got a PRNG key. {fix[:-1]}, or draw one: "
            "jax.random.randint(key, (), 0, 2**31 - 1)."
        )
    if kind is None or np.shape(value) != ():
        raise ValueError(f"{name} must be a whole number, got {value!r}. {fix}")
    is_float = isinstance(value, jax.Array) and jnp.issubdtype(kind, jnp.floating)
    if not (is_float or jnp.issubdtype(kind, jnp.integer)):
        raise ValueError(f"{name} must be a whole number, got {value!r}. {fix}")
    if isinstance(value, Tracer):
        return value
    number = float(value)
    if not number.is_integer() or not -(2**31) <= number < 2**31:
        raise ValueError(f"{name} must be a whole number of 32 bits, got {value!r}. {fix}")
    return int(value)


def _non_negative(name: str, value: Any) -> Any:
    return scalar(name, value, 0.0)


def decay(name: str, value: Any) -> Any:
    """Return a decay in [0, 1), checked as `scalar` does, or a schedule unchanged."""
    return value if callable(value) else scalar(name, value, 0.0, 1.0)


# The check of each argument of `scale_by_rms`.
AVERAGES: dict[str, Callable[[str, Any], Any]] = {
    "decay": decay,
    "eps": _non_negative,
    "initial_scale": _non_negative,
    "eps_in_sqrt": flag,
    "bias_correction": flag,
    "centered": flag,
    "state_dtype": storage,
    "seed": whole,
}


def mask_of(mask: Any) -> Any:
    """Return `mask` or, for a single bool, a function that refuses it for several parameters."""
    single = isinstance(mask, bool | np.bool_) or (
        isinstance(mask, jax.Array | np.ndarray) and mask.shape == () and mask.dtype == bool
    )
    if not single:
        return mask

    def of(tree):
        if (leaves := len(jax.tree.leaves(tree))) != 1 or isinstance(mask, jax.Array):
            raise ValueError(
                "mask must be a tree of bools, or a function that returns one, but the given mask "
                f"is one bool, {mask}, for {leaves} parameters. optax.inject_hyperparams calls a "
                'mask function as if it were a schedule. Pass static_args=("mask",) to it.'
            )
        return bool(mask)

    return of


_INIT = "call init of the optimizer that you update with"


def state_of(
    state: Any, centered: bool, bias_correction: bool, weighs: bool, dtype: Any, scheduled: bool
) -> None:
    """Refuse a state that was made with other settings, because its averages differ in meaning."""
    is_short = dtype == jnp.bfloat16
    for nu in jax.tree.leaves(state.nu):
        if (nu.dtype == jnp.bfloat16) != is_short or (dtype and nu.dtype != dtype):
            raise ValueError(
                f"the state's nu must have the dtype state_dtype={dtype and dtype.name!r}, got "
                f"{nu.dtype}. To fix it, {_INIT}, or cast the state: "
                "state._replace(nu=jax.tree.map(lambda x: x.astype(dtype), state.nu))."
            )
    if not jax.tree.leaves(state.nu):
        return
    flags = {"centered": (centered, state.mu), "bias_correction": (bias_correction, state.step)}
    if is_short or scheduled:
        del flags["bias_correction"]  # the rounding and a schedule count steps, too
    if scheduled and state.step is None:
        raise ValueError(
            "decay must be a number for a state that was made with a number, and counts no steps, "
            f"got a schedule. To fix it, {_INIT}."
        )
    for name, (on, field) in flags.items():
        if on == (field is None):
            both = name == "bias_correction" and not on
            or_schedule = " or with a schedule as decay" if both else ""
            raise ValueError(
                f"{name} must be the same in init and update, got {name}={on} and a state that was "
                f"made with {name}={not on}{or_schedule}. To fix it, {_INIT}."
            )
    if weighs and state.weight is None:
        raise ValueError(
            "the state must hold its weight for bias_correction=True, got weight=None. If the "
            "decay has never changed, convert the state: state._replace(weight=("
            "1 - jnp.float32(decay) ** state.step, jnp.zeros(())))."
        )


def leaf(g: jax.Array, mu: jax.Array | None, nu: jax.Array | None) -> None:
    """Refuse a gradient that NumPy's rules would broadcast against its state, or make real."""
    fix = "Call init with the parameters that you train."
    if nu is None:
        raise ValueError(
            f"a gradient must have a state. For the one of shape {g.shape}, there is no state for "
            f"it, because init got None (or a PRNG key) in its place. {fix}"
        )
    if g.shape != nu.shape:
        raise ValueError(
            f"a gradient must have the shape of its parameter, got {g.shape} and a state of shape "
            f"{nu.shape}. {fix}"
        )
    if mu is not None and jnp.iscomplexobj(g) != jnp.iscomplexobj(mu):
        raise ValueError(complex_gradient(g.dtype, mu.dtype))


def complex_gradient(dtype: Any, parameter: Any = "real") -> str:
    """Return the error for a complex gradient of a real parameter, or the reverse."""
    return (
        f"a gradient must be real where its parameter is real, and complex where it is complex, "
        f"got {dtype} for a parameter that is {parameter}. Call init with the parameters that you "
        "train, or take the real part of the gradient."
    )


_VIEW = (
    "NumPy's files hold bfloat16 as raw bytes. Read them with x.view(jnp.bfloat16) where "
    'x.dtype.kind == "V".'
)


def _is_raw(x: Any) -> bool:
    return getattr(getattr(x, "dtype", None), "kind", "") == "V" and x.dtype.names is None


def as_arrays(state: Any) -> Any:
    """Return a state whose leaves are JAX arrays; a checkpoint may hold NumPy arrays."""

    def convert(path, x):
        if isinstance(x, jax.Array):
            return x
        try:
            return jnp.asarray(x)
        except TypeError as error:
            place, got = jax.tree_util.keystr(path), getattr(x, "dtype", type(x).__name__)
            fix = _VIEW if _is_raw(x) else f"To fix it, {_INIT}."
            raise ValueError(
                f"the state{place} must be an array of numbers, got {got}. {fix}"
            ) from error

    return jax.tree_util.tree_map_with_path(convert, state)


def not_numbers(tree: Any, what: str, convert: Callable[[Any], Any]) -> str:
    """Return an error that names the leaf of `tree` that must be an array of numbers."""
    for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
        try:
            convert(x)
        except (TypeError, ValueError):
            place = f"the leaf {jax.tree_util.keystr(path)}" if path else "the tree itself"
            dtype = getattr(x, "dtype", None)
            if dtype == jax.dtypes.float0:
                fix = (
                    "That is the gradient of an integer or a bool. Give None there: jax.tree.map("
                    "lambda g: None if g.dtype == jax.dtypes.float0 else g, grads), or "
                    "differentiate the inexact parameters only."
                )
                return f"each {what} must be an array of numbers, but {place} is float0. {fix}"
            got, fix = (dtype, _VIEW) if _is_raw(x) else (repr(x), "Give None there.")
            return f"each {what} must be an array of numbers, but {place} is {got}. {fix}"
    return f"each {what} must be an array of numbers."


def not_a_parameter(path: Any, p: Any) -> str:
    """Return the error for a leaf that `init` cannot make a state for."""
    got, fix = (p.dtype, _VIEW) if _is_raw(p) else (
        repr(p),
        "Pass the parameters that you train, of an Equinox model "
        "eqx.filter(model, eqx.is_inexact_array).",
    )  # fmt: skip
    return (
        f"params{jax.tree_util.keystr(path)} must be an array, an abstract array, or None in init, "
        f"got {got}. {fix}"
    )


def refuse_narrow_state(state: Any, is_half: Callable[[Any], bool], short_nu: bool) -> None:
    """Refuse a state that something has cast to half precision."""
    for path, x in jax.tree_util.tree_flatten_with_path(state)[0]:
        is_nu = any(getattr(key, "name", None) == "nu" for key in path)
        if is_half(x.dtype) and not (short_nu and is_nu and x.dtype == jnp.bfloat16):
            raise ValueError(
                f"the state's {jax.tree_util.keystr(path)} is {x.dtype}, and was made as float32. "
                "It must stay at least float32, because an average of squares stalls in half "
                "precision. A checkpoint or a cast of the whole tree narrowed it. Cast it back: "
                "state = jax.tree.map(lambda x, like: x.astype(like.dtype), state, "
                "jax.eval_shape(solver.init, params))"
            )
