"""The seeds of a sweep and their random keys."""

from collections.abc import Iterable

import jax
import numpy as np

from rmsprop_jax._tune.space.values import is_int, is_key


def key_of(seed: int) -> jax.Array:
    """Return the key of every trial with this seed.

    `TrialTable` stacks the data of these keys, and gives each kernel the data of its trial
    (`inputs`). `GroupKernels` makes a key of the data again.
    """
    return jax.random.key(seed)


def key_data_of(seeds: Iterable[int]) -> np.ndarray:
    """Return the data of the key of each seed, a row each.

    The rows are joined on the host, because JAX would compile a program with one argument per seed.
    """
    return np.stack([np.asarray(jax.random.key_data(key_of(seed))) for seed in seeds])


def checked_seeds(seeds: object) -> tuple[int, ...]:
    """Return the seeds as Python ints whose keys all differ.

    Args:
      seeds: a count n, which stands for 0 … n−1, or an iterable of ints. Both may be NumPy or JAX
        scalars and arrays.

    Raises:
      ValueError: for any other argument, seeds beyond 64 bits, or two seeds with the same key.
    """
    count = _plain(seeds)
    if is_int(count):
        if count < 1:
            raise ValueError(f"seeds must be at least 1, got {count}. Pass seeds=1.")
        return tuple(range(int(count)))
    numbers: list[object] = []
    if isinstance(count, Iterable) and not isinstance(count, str | bytes) and not _are_keys(count):
        numbers = list(map(_plain, count))
    if _are_keys(count) or any(map(_are_keys, numbers)):
        raise ValueError(
            "seeds must be a count or a sequence of ints, got PRNG keys. Pass the ints that the "
            "keys come from: each trial gets jax.random.key(s) for its seed s."
        )
    ints = [int(number) for number in numbers if is_int(number)]
    if not ints or len(ints) < len(numbers):
        raise ValueError(
            f"seeds must be a count or a sequence of ints, got {seeds!r}. Pass seeds=3 or "
            "seeds=[0, 1, 2]."
        )
    for seed in ints:
        if not -(2**63) <= seed < 2**63:
            shown = seed if seed.bit_length() < 100 else f"one of {seed.bit_length()} bits"
            raise ValueError(f"seeds must fit 64 bits, got {shown}. Pass seeds=range(n).")
    keys: dict[bytes, int] = {}
    for seed, row in zip(ints, key_data_of(ints), strict=True):
        data = row.tobytes()
        if data in keys:
            raise ValueError(
                f"seeds must have keys that differ, got {keys[data]} and {seed}, which have the "
                "same key. Leave one out. (Without jax_enable_x64, seeds count modulo 2³².)"
            )
        keys[data] = seed
    return tuple(ints)


def _are_keys(value: object) -> bool:
    """Return whether these are PRNG keys: typed keys, or those of `jax.random.PRNGKey`."""
    is_raw = isinstance(value, jax.Array) and value.dtype == np.uint32 and value.ndim > 0
    return is_raw or is_key(value)


def _plain(value: object) -> object:
    """Return arrays and scalars of NumPy and JAX as Python numbers, other values unchanged."""
    is_array = isinstance(value, np.ndarray | np.generic | jax.Array)
    return value.tolist() if is_array and not _are_keys(value) else value
