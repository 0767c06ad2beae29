"""Fixtures that switch JAX's settings around a test, in how many processes the tests run, and the
cache of compiled programs that these processes share."""

import gc
import os
import shutil
import signal
import tempfile

import jax
import jax.numpy as jnp
import pytest

jax.config.update("jax_num_cpu_devices", 2)  # before JAX is first used: the sweep is tested on two


def pytest_configure(config):
    """Share compiled programs between tests, workers, and child processes.

    Each run has a new folder, unless JAX_COMPILATION_CACHE_DIR names one.
    """
    is_worker = hasattr(config, "workerinput")
    if not is_worker and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="rmsprop_jax_compiled_")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder  # for workers and child processes
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    seconds = float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"])
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


def pytest_collection_finish(session):
    """Collect garbage less often: most objects live to the end, and the search among them takes a
    tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


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
def ctrl_c():
    """SIGINT as a shell gives it, also where the tests run in the background of one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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
