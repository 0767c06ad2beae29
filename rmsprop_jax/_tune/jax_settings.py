"""JAX's settings around a call of this package."""

import contextlib
from collections.abc import Generator, Mapping
from typing import Any

import jax
import numpy as np

SETTINGS = {
    "jax_enable_x64": jax.enable_x64,
    "jax_default_prng_impl": jax.default_prng_impl,
    "jax_threefry_partitionable": jax.threefry_partitionable,
    "jax_default_matmul_precision": jax.default_matmul_precision,
    "jax_numpy_dtype_promotion": jax.numpy_dtype_promotion,
    "jax_numpy_rank_promotion": jax.numpy_rank_promotion,
}
"""The settings that decide the numbers of a program, or whether it traces."""


def present_settings() -> dict[str, Any]:
    """Return the present value of each of `SETTINGS`."""
    return {name: getattr(jax.config, name) for name in SETTINGS}


@contextlib.contextmanager
def entered(settings: Mapping[str, Any]) -> Generator[None]:
    """Run under settings from `present_settings`, in this thread."""
    with contextlib.ExitStack() as stack:
        for name, value in settings.items():
            stack.enter_context(SETTINGS[name](value))
        yield


@contextlib.contextmanager
def own_settings(name: str) -> Generator[None]:
    """Suspend the caller's mesh, `disable_jit`, and transfer guard, which are for other code.

    Args:
      name: the name of the function that a user called, for errors.

    Raises:
      ValueError: inside a function that JAX traces.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ())))
        except ValueError as error:  # JAX refuses to change the mesh while it traces
            raise ValueError(
                f"{name} must be called outside jax.jit, grad, and vmap, and outside another "
                "sweep's train, but was called inside one of them. Call it from plain Python code, "
                "because it compiles by itself."
            ) from error
        stack.enter_context(jax.disable_jit(False))
        stack.enter_context(jax.transfer_guard("allow"))
        yield
