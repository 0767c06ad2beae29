"""Fixtures that switch JAX's settings around a test, and in how many processes the tests run."""

import os

import jax
import jax.numpy as jnp
import pytest

jax.config.update("jax_num_cpu_devices", 2)  # before JAX is first used: the sweep is tested on two


def pytest_xdist_auto_num_workers(config):
    """Whole runs use the cores. Parts of the tests, and those of an accelerator, which one process
    takes for itself, run in this process."""
    is_whole = config.args == config.getini("testpaths") and not config.option.keyword
    return min(os.cpu_count() or 1, 4) if is_whole and "gpu" not in config.option.markexpr else 0


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
