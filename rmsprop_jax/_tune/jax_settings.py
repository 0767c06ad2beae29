"""JAX's settings around a call of this package."""

import contextlib
from collections.abc import Generator

import jax
import numpy as np


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
