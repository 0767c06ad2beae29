"""A hyperparameter's value, of any kind: when two are the same, how one is shown, and stored."""

import base64
import dataclasses
import struct
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# XLA turns int1 into bool, does not know uint1, and ends the process over a constant of float6.
NOT_RUN = {"int1", "uint1", "float6_e2m3fn", "float6_e3m2fn"}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Whether this is a real number, of Python or NumPy, and no bool."""
    return is_number(value) or isinstance(value, np.integer | np.floating)


def is_int(value: Any) -> bool:
    """Whether this is a whole number, of Python or NumPy, and no bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def identity(value: Any) -> Hashable:
    """Equal for two values where they are alike in type and content, and only there.

    `True`, `1` and `1.0` differ, and so do `(1,)` and `(1.0,)`. Arrays are alike in kind, shape,
    dtype and bytes; dataclasses in their fields; other objects where they are of one type and `==`
    says so.
    """
    kind = type(value)
    if isinstance(value, float):
        return kind, struct.pack("d", value)  # NaN is like itself, −0.0 not like 0.0
    if value is None or isinstance(value, bool | int | str | bytes | complex):
        return kind, value
    if is_key(value):
        return (
            kind,
            str(jax.random.key_impl(value)),
            identity(np.asarray(jax.random.key_data(value))),
        )
    if isinstance(value, np.generic | np.ndarray | jax.Array) and value.dtype != object:
        array = np.asarray(value)
        kind = jax.Array if isinstance(value, jax.Array) else kind
        return kind, str(array.dtype), array.shape, array.tobytes()
    if isinstance(value, dict):
        return kind, frozenset((identity(k), identity(x)) for k, x in value.items())
    if isinstance(value, tuple | list):
        return kind, tuple(map(identity, value))
    if isinstance(value, set | frozenset):
        return kind, frozenset(map(identity, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return kind, tuple(identity(getattr(value, field.name, None)) for field in fields)
    return _Object(value)


class _Object:
    """An object that is compared by its own `==`, where that gives a truth, else by what it is."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return hash(type(self.value))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Object) or type(self.value) is not type(other.value):
            return False
        if self.value is other.value:
            return True
        try:
            return bool(self.value == other.value)
        except Exception:
            return False


def is_key(value: Any) -> bool:
    """Whether this is an array of typed PRNG keys."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def label(value: Any) -> str:
    """As tables and pictures show it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, np.ndarray | jax.Array) and not is_key(value):
        value = np.asarray(value).tolist()
    text = str(value)
    return text if len(text) <= 40 else text[:39] + "…"


# In a folder: JSON, in which each value says what it is, so that it comes back as it was.


def encode(value: Any, name: str) -> Any:
    """As JSON has it.

    Raises:
      ValueError: for what would not come back alike; the message names the axis.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (tuple, list):
        return {kind.__name__: [encode(x, name) for x in value]}
    if kind is dict:
        if all(type(key) is str for key in value):
            return {"dict": {key: encode(x, name) for key, x in value.items()}}
        return {"items": [[encode(k, name), encode(x, name)] for k, x in value.items()]}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    if kind is bytes:
        return {"bytes": _text(value)}
    is_array = isinstance(value, jax.Array) or kind is np.ndarray
    if (is_array or isinstance(value, np.generic)) and not is_key(value) and _is_plain(value.dtype):
        where = "jax" if isinstance(value, jax.Array) else "numpy"
        array = np.asarray(value)
        scalar = [] if is_array else ["scalar"]
        return {where: [str(array.dtype), list(array.shape), _text(array.tobytes()), *scalar]}
    raise ValueError(
        f"the axis {name!r} has the value {value!r}, a {kind.__name__}, which a folder "
        "cannot hold, since nothing is pickled: give a string, and look the object up in train."
    )


def decode(value: Any) -> Any:
    """The inverse of `encode`."""
    if not isinstance(value, dict):
        return value
    ((kind, x),) = value.items()
    if kind == "dict":
        return {key: decode(item) for key, item in x.items()}
    if kind == "items":
        return {decode(key): decode(item) for key, item in x}
    if kind in ("tuple", "list"):
        return {"tuple": tuple, "list": list}[kind](map(decode, x))
    if kind == "complex":
        return complex(*x)
    if kind == "bytes":
        return base64.b64decode(x)
    dtype, shape, text, *scalar = x
    array = np.frombuffer(base64.b64decode(text), np.dtype(dtype)).reshape(shape).copy()
    if kind == "jax":
        return jnp.asarray(array)
    return array[()] if scalar else array


def untyped(x: np.ndarray) -> np.ndarray:
    """Return an array as it is stored: its bytes, where NumPy's files do not know its dtype."""
    return x.view(stored_dtype(x.dtype))


def typed(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return an array as it was before it was stored.

    Raises:
      ValueError: for an array that was not stored from one of this dtype.
    """
    if x.dtype != stored_dtype(dtype):
        raise ValueError(f"an array of dtype {x.dtype} must be one of {stored_dtype(dtype)}")
    return x.view(dtype)


def stored_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype that an array of this one has in a file: NumPy's files hold those of ml_dtypes as
    plain bytes."""
    return np.dtype(f"u{dtype.itemsize}") if is_extended(dtype) else dtype


def is_extended(dtype: Any) -> bool:
    """Whether a dtype is one of ml_dtypes, as bfloat16, float8 and int4 are."""
    return dtype.isbuiltin == 2


def refuse_dtype(what: str, dtype: Any) -> None:
    """ValueError for a dtype that JAX has and cannot run."""
    if str(dtype) in NOT_RUN:
        raise ValueError(
            f"{what} has dtype {dtype}, which must be one that JAX can run. Cast it, to int2 or "
            "float8_e4m3fn say."
        )


def has_nan(dtype: Any) -> bool:
    """Whether a dtype holds NaN: a float, but for those of less than a byte."""
    return bool(jnp.issubdtype(dtype, jnp.floating) and np.isnan(np.float32(np.nan).astype(dtype)))


def _is_plain(dtype: Any) -> bool:
    """Whether the dtype's name says all of it."""
    return dtype.kind in "biufcSU" or is_extended(dtype)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
