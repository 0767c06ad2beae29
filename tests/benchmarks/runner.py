"""What every benchmark shares: sides that take turns, medians with quartiles, Markdown rows.

A benchmark is a module of this folder with `main(quick)`, a generator of Markdown lines;
`python -m tests.benchmarks` prints them as they come, and `--output` writes the same page.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

T = TypeVar("T")


def interleaved(sides: Mapping[str, Callable[[int], T]], rounds: int) -> dict[str, list[T]]:
    """Calls every side once a round with the round's number; another side begins each round."""
    names = list(sides)
    results: dict[str, list[T]] = {name: [] for name in names}
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            results[name].append(sides[name](i))
    return results


def median(values: Iterable[float], digits: int = 2) -> str:
    """The median and, between brackets, the quartiles."""
    low, middle, high = np.quantile(list(values), [0.25, 0.5, 0.75])
    return f"{middle:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def header(*names: str) -> str:
    return f"{row(*names)}\n{'|---' * len(names)}|"


def machine() -> str:
    """Processor, cores, JAX's devices and the versions that figures depend on."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    devices = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    names = ("jax", "jaxlib", "optax", "flax", "numpy", "optuna", "torch")
    there = [name for name in names if importlib.util.find_spec(name)]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in there]
    return (
        f"{model[1] if model else platform.processor()} ({platform.machine()}), "
        f"{os.cpu_count()} cores; JAX devices: {devices}; "
        f"Python {platform.python_version()}, {', '.join(versions)}"
    )
