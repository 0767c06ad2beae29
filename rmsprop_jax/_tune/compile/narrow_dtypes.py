"""Numbers of less than a byte, such as int4, which take a whole byte outside compiled programs.

In jax 0.10, arrays and compiled programs disagree on the layout of such numbers, so that a program
refuses an array that was placed on certain devices. Arrays therefore enter and leave a program in a
dtype of whole bytes. Inside the program they have their own dtype.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from rmsprop_jax._tune.space.values import is_extended

AnyArray: TypeAlias = Any  # a NumPy, JAX, or abstract array: each function returns what it gets


def carrier(x: AnyArray) -> jax.ShapeDtypeStruct:
    """Return the abstract array in which x enters and leaves a program."""
    return jax.ShapeDtypeStruct(x.shape, _wide(x.dtype))


def carried(x: AnyArray) -> AnyArray:
    """Return x as it enters and leaves a program. An object without a dtype does not change."""
    return uncarried(x, _wide(x.dtype)) if hasattr(x, "dtype") else x


def uncarried(x: AnyArray, dtype: DTypeLike) -> AnyArray:
    """Return an array from `carried` in its own dtype."""
    return x if x.dtype == dtype else x.astype(dtype)


def _wide(dtype: np.dtype) -> np.dtype:
    """Return a dtype of whole bytes that holds all numbers of this dtype."""
    # The dtype of PRNG keys is not an `np.dtype`.
    if not isinstance(dtype, np.dtype) or not is_extended(dtype) or dtype.itemsize > 1:
        return dtype
    if jnp.issubdtype(dtype, jnp.floating):
        return np.dtype(jnp.float8_e4m3fn) if jnp.finfo(dtype).bits < 8 else dtype
    return np.dtype(np.int8 if jnp.issubdtype(dtype, jnp.signedinteger) else np.uint8)
