"""Refuse a program that can hang forever on a CPU, if the installed jaxlib has this fault."""

import collections
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxlib.version import __version__ as jaxlib_version

from rmsprop_jax._tune.run.machine import Device

if TYPE_CHECKING:
    from jax.extend.core import ClosedJaxpr, Jaxpr

FIXED_IN = (0, 11, 2)  # the first jaxlib seen without the fault

# The primitives that run as LAPACK or BLAS on a CPU. With a batch of more than one matrix, each
# call waits, on a thread of XLA's pool, for other threads of the same pool. When all threads wait,
# the program hangs.
BLOCKING = {
    *("cholesky", "eig", "eigh", "geqp3", "geqrf", "hessenberg", "householder_product", "lu"),
    *("ormqr", "qr", "schur", "svd", "triangular_solve", "tridiagonal", "tridiagonal_solve"),
}


def refuse_deadlock(calls: Mapping[str, int], devices: Sequence[Device]) -> None:
    """Raise ValueError if as many batched calls could wait at once as XLA's pool has threads.

    Args:
      calls: the batched calls of the program of one device, as `blocking_calls` counts them.
      devices: the devices that run it, of all processes.
    """
    if devices[0].platform != "cpu" or version() >= FIXED_IN:
        return
    local = sum(device.process_index == devices[0].process_index for device in devices)
    threads = max(int(os.environ.get("NPROC") or os.cpu_count() or 1), local)
    if sum(calls.values()) * local < threads:
        return
    text = ", ".join(f"{n} × {name}" for name, n in sorted(calls.items()))
    raise ValueError(
        f"train must make fewer calls of linear algebra on batches of matrices than XLA has "
        f"threads, {threads}, got {text} on {local} CPU devices. With jaxlib {jaxlib_version}, "
        "such calls block the threads that they wait for, and the program can hang forever. "
        f"Install jax>={'.'.join(map(str, FIXED_IN))} (Python >= 3.12). Or pass batch_size=1 and, "
        "inside train, use jax.lax.map instead of jax.vmap, for example to initialize several "
        "orthogonal matrices."
    )


def blocking_calls(jaxpr: "Jaxpr | ClosedJaxpr") -> dict[str, int]:
    """Return how often a program calls each blocking primitive with a batch of matrices."""
    return dict(collections.Counter(_batched(jaxpr)))


def version() -> tuple[int, ...]:
    """Return the version of jaxlib as numbers."""
    return tuple(int(n) for n in jaxlib_version.split(".")[:3])


def _batched(jaxpr: "Jaxpr | ClosedJaxpr") -> Iterator[str]:
    """Yield the name of each blocking primitive with a batch, once per equation."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        shape = getattr(equation.invars[0].aval, "shape", ()) if equation.invars else ()
        if equation.primitive.name in BLOCKING and np.prod(shape[:-2]) > 1:
            yield equation.primitive.name
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(getattr(inner, "jaxpr", inner), "eqns"):
                    yield from _batched(inner)
