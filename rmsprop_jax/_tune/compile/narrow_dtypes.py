"""Numbers of less than a byte, such as int4: outside of compiled programs they are of a whole one.

In jax 0.10 the arrays and the compiled programs disagree on their layout, so that a program refuses
an array that was placed on certain devices. Inside a program they are themselves.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def carrier(x: Any) -> jax.ShapeDtypeStruct:
    """Return an abstract array as it enters and leaves a program."""
    return jax.ShapeDtypeStruct(x.shape, _wide(x.dtype))


def carried(x: Any) -> Any:
    """Return an array as it enters and leaves a program; what is no array, as it is."""
    return uncarried(x, _wide(x.dtype)) if hasattr(x, "dtype") else x


def uncarried(x: Any, dtype: Any) -> Any:
    """Return an array that was `carried` in its own dtype."""
    return x if x.dtype == dtype else x.astype(dtype)


def _wide(dtype: Any) -> Any:
    """A dtype that holds all numbers of this one, in whole bytes."""
    if not isinstance(dtype, np.dtype) or dtype.isbuiltin != 2 or dtype.itemsize > 1:
        return dtype
    if jnp.issubdtype(dtype, jnp.floating):
        return np.dtype(jnp.float8_e4m3fn) if jnp.finfo(dtype).bits < 8 else dtype
    return np.dtype(np.int8 if jnp.issubdtype(dtype, jnp.signedinteger) else np.uint8)
