"""The seeds of a sweep and their keys."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from rmsprop_jax._tune.space.values import is_int, is_key


def key_of(seed: int) -> jax.Array:
    """The random key of a seed."""
    return jax.random.key(seed)


def checked_seeds(seeds: Any) -> tuple[int, ...]:
    """Return the seeds as Python's ints. Their keys all differ; ValueError for anything else.

    A count and seeds may be of NumPy and of JAX, too: scalars and arrays of ints.
    """
    count = _plain(seeds)
    if is_int(count):
        if count < 1:
            raise ValueError(f"seeds must be at least 1, got {count}.")
        return tuple(range(int(count)))
    is_text = isinstance(count, str | bytes) or not isinstance(count, Iterable)
    listed = [] if is_text or _are_keys(count) else list(map(_plain, count))
    if _are_keys(count) or any(map(_are_keys, listed)):
        raise ValueError(
            "seeds must be a count or a sequence of ints, got PRNG keys: each trial gets "
            "jax.random.key(s) for its seed s."
        )
    if not listed or not all(map(is_int, listed)):
        raise ValueError(f"seeds must be a count or a sequence of ints, got {seeds!r}.")
    listed = [int(seed) for seed in listed]
    for seed in listed:
        if not -(2**63) <= seed < 2**63:
            said = seed if seed.bit_length() < 100 else f"one of {seed.bit_length()} bits"
            raise ValueError(f"seeds must fit 64 bits, got {said}.")
    keys: dict[bytes, int] = {}
    for seed in listed:
        data = np.asarray(jax.random.key_data(key_of(seed))).tobytes()
        if data in keys:
            raise ValueError(
                f"seeds must differ from one another, got {keys[data]} and {seed}, which have the "
                "same key (without jax_enable_x64 they count modulo 2³²)."
            )
        keys[data] = seed
    return tuple(listed)


def _are_keys(value: Any) -> bool:
    """Whether this is an array of PRNG keys, typed ones or those of `jax.random.PRNGKey`."""
    is_raw = isinstance(value, jax.Array) and value.dtype == np.uint32 and value.ndim > 0
    return is_raw or is_key(value)


def _plain(value: Any) -> Any:
    """An array or a scalar of NumPy or JAX as Python's numbers; anything else as it is."""
    is_array = isinstance(value, np.ndarray | np.generic | jax.Array)
    return value.tolist() if is_array and not _are_keys(value) else value
