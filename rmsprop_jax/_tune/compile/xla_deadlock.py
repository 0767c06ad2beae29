"""Refuse a program that can hang for good on a CPU, where the installed jaxlib has that fault."""

import collections
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxlib.version import __version__ as jaxlib_version

MENDED = (0, 11, 2)  # the first jaxlib seen without the fault

# What runs as LAPACK or BLAS on a CPU. With a batch of more than one matrix each call waits, on a
# thread of XLA's pool, for other threads of the same pool; when all of them wait, nothing moves.
BLOCKING = {
    *("cholesky", "eig", "eigh", "geqp3", "geqrf", "hessenberg", "householder_product", "lu"),
    *("ormqr", "qr", "schur", "svd", "triangular_solve", "tridiagonal", "tridiagonal_solve"),
}


def refuse_deadlock(jaxpr: Any, devices: Sequence[Any]) -> None:
    """ValueError where as many batched calls could wait at once as the pool has threads."""
    if devices[0].platform != "cpu" or version() >= MENDED:
        return
    found = collections.Counter(_batched(jaxpr))
    here = sum(device.process_index == devices[0].process_index for device in devices)
    threads = max(int(os.environ.get("NPROC") or os.cpu_count() or 1), here)
    if found.total() * here < threads:
        return
    calls = ", ".join(f"{n} × {name}" for name, n in sorted(found.items()))
    raise ValueError(
        f"this program can hang for good: train has linear algebra on batches of matrices "
        f"({calls}) on {here} CPU devices, and with jaxlib {jaxlib_version} such calls block "
        f"the {threads} threads that they wait for. Install jax >= {'.'.join(map(str, MENDED))} "
        "(Python >= 3.12); or leave batch_size at 1 and, inside train, use jax.lax.map instead of "
        "jax.vmap around it, as for the initialisation of several orthogonal matrices."
    )


def version() -> tuple[int, ...]:
    """jaxlib's, to compare."""
    return tuple(int(n) for n in jaxlib_version.split(".")[:3])


def _batched(jaxpr: Any) -> Iterator[str]:
    """The names of such primitives, each as often as it stands in the program."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        shape = equation.invars[0].aval.shape if equation.invars else ()
        if equation.primitive.name in BLOCKING and np.prod(shape[:-2]) > 1:
            yield equation.primitive.name
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(getattr(inner, "jaxpr", inner), "eqns"):
                    yield from _batched(inner)
