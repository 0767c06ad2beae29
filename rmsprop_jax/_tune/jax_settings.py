"""JAX's settings around a call of this package."""

import contextlib
from collections.abc import Generator

import jax
import numpy as np


@contextlib.contextmanager
def own_settings(name: str) -> Generator[None]:
    """Leave the caller's mesh, `disable_jit`, and transfer guard, which are for other code.

    Args:
      name: of the function that a user called, for errors.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ())))
        except ValueError as error:  # JAX traces
            raise ValueError(
                f"{name} was called inside jax.jit, grad or vmap, or inside another sweep's train: "
                "call it outside; it compiles by itself."
            ) from error
        stack.enter_context(jax.disable_jit(False))
        stack.enter_context(jax.transfer_guard("allow"))
        yield
