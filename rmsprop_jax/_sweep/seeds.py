"""The seeds of a sweep and their keys."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from rmsprop_jax._sweep.values import is_int, is_key


def key_of(seed: int) -> jax.Array:
    """The random key of a seed."""
    return jax.random.key(seed)


def checked_seeds(seeds: Any) -> tuple[int, ...]:
    """The seeds, whose keys all differ; ValueError for anything else."""
    if is_int(seeds):
        if seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {seeds}.")
        return tuple(range(int(seeds)))
    if is_key(seeds):
        raise ValueError(
            "seeds must be a count or a sequence of ints, got PRNG keys: each trial gets "
            "jax.random.key(s) for its seed s."
        )
    listed = list(seeds) if isinstance(seeds, Iterable) and not isinstance(seeds, str) else None
    if not listed or not all(map(is_int, listed)):
        raise ValueError(f"seeds must be a count or a sequence of ints, got {seeds!r}.")
    listed = [int(seed) for seed in listed]
    for seed in listed:
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"seeds must fit 64 bits, got one of {seed.bit_length()} bits.")
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
