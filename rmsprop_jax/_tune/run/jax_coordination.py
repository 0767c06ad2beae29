"""Short texts that the processes of a cluster exchange, in JAX's coordination service.

The service runs on process 0. JAX has no public name for it, so this module alone touches
`jax._src.distributed`. The test `JAX's coordination service` holds what is used here.
"""

from typing import Any

import jax
from jax._src import distributed


def is_connected() -> bool:
    """Return whether this process is in a cluster: it called `jax.distributed.initialize`."""
    return distributed.global_state.client is not None


def write(key: str, text: str) -> None:
    """Write a text under a key; RuntimeError if the key has one already."""
    _client().key_value_set(key, text)


def read(key: str, seconds: float) -> str | None:
    """Wait for the text of a key, and return it; None if it does not come in time.

    Args:
      key: a key that some process writes.
      seconds: the longest time to wait.
    """
    try:
        return _client().blocking_key_value_get(key, max(1, round(1000 * seconds)))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" in str(error):
            return None
        raise


def listed(folder: str) -> dict[str, str]:
    """Return the texts by key of a folder, without waiting.

    Args:
      folder: the beginning of the keys, which ends in a slash.
    """
    return dict(_client().key_value_dir_get(folder))


def delete(folder: str) -> None:
    """Delete the texts of a folder.

    Args:
      folder: the beginning of the keys, which ends in a slash.
    """
    _client().key_value_delete(folder)


def _client() -> Any:  # JAX has no public type for it
    """Return the client of the coordination service."""
    return distributed.global_state.client
