"""Short texts that the processes of a cluster leave for one another.

JAX's coordination service holds them, on process 0. JAX has no public name for it, so this is the
only module that touches `jax._src.distributed`.
"""

from typing import Any

import jax
from jax._src import distributed


def is_connected() -> bool:
    """Whether this process belongs to a cluster: `jax.distributed.initialize` was called."""
    return distributed.global_state.client is not None


def write(key: str, text: str) -> None:
    """Leave a text, for good; RuntimeError where the key has one already."""
    _client().key_value_set(key, text)


def read(key: str, seconds: float) -> str | None:
    """Wait for a text, so many seconds; None where it has not come."""
    try:
        return _client().blocking_key_value_get(key, max(1, round(1000 * seconds)))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" in str(error):
            return None
        raise


def listed(folder: str) -> dict[str, str]:
    """The texts whose keys begin with a folder's name, which ends in a slash; does not wait."""
    return dict(_client().key_value_dir_get(folder))


def delete(folder: str) -> None:
    """Remove the texts whose keys begin with a folder's name, which ends in a slash."""
    _client().key_value_delete(folder)


def _client() -> Any:
    return distributed.global_state.client
