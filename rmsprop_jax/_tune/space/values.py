"""Values of hyperparameters: which are equal, how they are shown, and how a folder stores them."""

import base64
import dataclasses
import struct
from collections.abc import Hashable
from typing import Any, TypeAlias, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

Value: TypeAlias = Any
"""Any value of a hyperparameter: a number, or any Python object if it is static."""

PyTree: TypeAlias = Any
"""Any pytree of arrays: an array, or containers that `jax.tree` flattens into arrays."""

Json: TypeAlias = Any
"""Anything that `json.loads` returns."""

# XLA turns int1 into bool, does not know uint1, and ends the process at a constant of float6.
NOT_RUN = {"int1", "uint1", "float6_e2m3fn", "float6_e3m2fn"}


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether this is a Python int or float. A bool is not a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_real(value: object) -> TypeGuard[int | float]:
    """Return whether this is a real number of Python or NumPy. A bool is not a number."""
    return is_number(value) or isinstance(value, np.integer | np.floating)


def is_int(value: object) -> TypeGuard[int]:
    """Return whether this is an integer of Python or NumPy. A bool is not an integer."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def identity(value: Value) -> Hashable:
    """Return a key that two values share if, and only if, their types and contents are equal.

    `True`, `1`, and `1.0` have three keys, and so do `(1,)` and `(1.0,)`. Arrays are compared by
    type, shape, dtype, and bytes. Dataclasses are compared by type and fields. All other objects
    are compared by type and `==`.
    """
    kind = type(value)
    if isinstance(value, float):
        return kind, struct.pack("d", value)  # NaN equals itself here, and −0.0 differs from 0.0
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
    """A key for an object of any other type.

    Two keys are equal if the types are equal and `==` between the objects is true. An object whose
    `==` raises, or returns no truth value, equals only itself.
    """

    def __init__(self, value: Value):
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


def is_key(value: object) -> TypeGuard[jax.Array]:
    """Return whether this is an array of typed PRNG keys."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def label(value: Value) -> str:
    """Return the text for a value in tables and pictures, at most 40 characters."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, np.ndarray | jax.Array) and not is_key(value):
        value = np.asarray(value).tolist()
    text = str(value)
    return text if len(text) <= 40 else text[:39] + "…"


# A folder stores values as JSON, with the type of each value, so that types survive.


def encode(value: Value, name: str) -> Json:
    """Return a value as JSON, from which `decode` restores its type and content.

    Args:
      value: a hyperparameter's value, or the structure of a state.
      name: the axis that has this value, for the error.

    Raises:
      ValueError: for a value that `decode` could not restore.
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
        library = "jax" if isinstance(value, jax.Array) else "numpy"
        array = np.asarray(value)
        scalar = [] if is_array else ["scalar"]
        return {library: [str(array.dtype), list(array.shape), _text(array.tobytes()), *scalar]}
    raise ValueError(
        f"the axis {name!r} must have values that a folder can hold (numbers, strings, None, "
        f"arrays, and containers of them), got {value!r}, a {kind.__name__}. Use a string instead, "
        f"and look the object up in train: OBJECTS[hp[{name!r}]]."
    )


def decode(value: Json) -> Value:
    """Return the value that `encode` turned into this JSON."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "dict":
        return {key: decode(item) for key, item in content.items()}
    if kind == "items":
        return {decode(key): decode(item) for key, item in content}
    if kind in ("tuple", "list"):
        return {"tuple": tuple, "list": list}[kind](map(decode, content))
    if kind == "complex":
        return complex(*content)
    if kind == "bytes":
        return base64.b64decode(content)
    dtype, shape, text, *scalar = content
    array = np.frombuffer(base64.b64decode(text), np.dtype(dtype)).reshape(shape).copy()
    if kind == "jax":
        return jnp.asarray(array)
    return array[()] if scalar else array


def untyped(x: np.ndarray) -> np.ndarray:
    """Return an array as a file stores it: plain bytes if its dtype is one of ml_dtypes."""
    return x.view(stored_dtype(x.dtype))


def typed(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return a stored array in its own dtype.

    Args:
      x: an array that `untyped` returned.
      dtype: the dtype that the array had before.

    Raises:
      ValueError: for an array that was not stored from this dtype.
    """
    if x.dtype != stored_dtype(dtype):
        raise ValueError(f"a stored array must have dtype {stored_dtype(dtype)}, got {x.dtype}")
    return x.view(dtype)


def stored_dtype(dtype: np.dtype) -> np.dtype:
    """Return the dtype that a file has for an array of this dtype.

    NumPy's files do not know the dtypes of ml_dtypes, so these arrays are stored as unsigned
    integers of the same size.
    """
    return np.dtype(f"u{dtype.itemsize}") if is_extended(dtype) else dtype


def is_extended(dtype: np.dtype) -> bool:
    """Return whether a dtype comes from ml_dtypes, as bfloat16, float8, and int4 do."""
    return dtype.isbuiltin == 2


def refuse_dtype(what: str, dtype: object) -> None:
    """Raise ValueError for a dtype that JAX has and cannot run.

    Args:
      what: what has this dtype, as the error's first words: "metric 'loss'".
      dtype: a dtype, or None.
    """
    if str(dtype) in NOT_RUN:
        raise ValueError(
            f"{what} must have a dtype that JAX can run, got {dtype}. Cast it: "
            "x.astype(jnp.int8) or x.astype(jnp.float8_e4m3fn)."
        )


def has_nan(dtype: np.dtype) -> bool:
    """Return whether a dtype has NaN. Floats of less than one byte do not."""
    return bool(jnp.issubdtype(dtype, jnp.floating) and np.isnan(np.float32(np.nan).astype(dtype)))


def _is_plain(dtype: np.dtype) -> bool:
    """Return whether the dtype's name describes it completely."""
    return dtype.kind in "biufcSU" or is_extended(dtype)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
