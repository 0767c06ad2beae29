"""Fixtures that switch JAX's settings around a test."""

import jax
import jax.numpy as jnp
import pytest

jax.config.update("jax_num_cpu_devices", 2)  # before JAX is first used: the sweep is tested on two


@pytest.fixture
def strict():
    """No implicit promotion of dtypes or ranks: for our own code (Optax itself fails under it)."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def x64():
    """Float64, for derivatives and equalities that float32 would blur."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """The test runs once in each precision; it asks for this before it makes an array."""
    with jax.enable_x64(request.param == "float64"):
        yield jnp.dtype(request.param)
