"""Functions that all benchmarks share: interleaved sides, medians with quartiles, Markdown rows.

A benchmark is a module of this folder with a generator `main(quick)` of Markdown lines.
`python -m tests.benchmarks` prints the lines, and `--output` writes them on the page.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import numpy as np

T = TypeVar("T")


def interleaved(sides: Mapping[str, Callable[[int], T]], rounds: int) -> dict[str, list[T]]:
    """Call each side once per round with its number. Each round starts with another side."""
    names = list(sides)
    results: dict[str, list[T]] = {name: [] for name in names}
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            results[name].append(sides[name](i))
    return results


def median(values: Iterable[float], digits: int = 2) -> str:
    """Return the median, with the quartiles in parentheses."""
    low, middle, high = np.quantile(list(values), [0.25, 0.5, 0.75])
    return f"{middle:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def header(*names: str) -> str:
    return f"{row(*names)}\n{'|---' * len(names)}|"


class Goal(NamedTuple):
    """A limit for a measured figure: an upper one ("≤") or a lower one ("≥")."""

    sign: str
    limit: float
    digits: int = 2
    """The digits after the point with which a figure that misses the goal is printed."""

    def __str__(self) -> str:
        return f"{self.sign} {self.limit}"

    def is_met(self, value: float) -> bool:
        return value <= self.limit if self.sign == "≤" else value >= self.limit


def goals_missed(measured: Iterable[tuple[str, float, Goal]]) -> str:
    """Return a sentence that names the measured figures that miss their goals."""
    missed = [
        f"{name} ({value:.{goal.digits}f}, goal {goal})"
        for name, value, goal in measured
        if not goal.is_met(value)
    ]
    return f"Goals missed: {'; '.join(missed)}." if missed else "All goals are met."


def machine() -> str:
    """Return the processor, cores, JAX devices, and the versions that figures depend on."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    devices = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    names = ("jax", "jaxlib", "optax", "flax", "numpy", "optuna", "torch")
    installed = [name for name in names if importlib.util.find_spec(name)]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in installed]
    return (
        f"{model[1] if model else platform.processor()} ({platform.machine()}), "
        f"{os.cpu_count()} cores; JAX devices: {devices}; "
        f"Python {platform.python_version()}, {', '.join(versions)}"
    )
