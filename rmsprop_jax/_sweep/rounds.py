"""A group's jobs cut into rounds: how large they are, and one dispatched ahead of another."""

import collections
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from rmsprop_jax._sweep.processes import Processes
from rmsprop_jax._sweep.program import Program

ROUND_SECONDS = 0.5  # tiny jobs share a round until it lasts as long: progress is shown by rounds
FIRST_ROUNDS = 4  # of one batch on each device, before any grows; the first is slower
TIMED_ROUNDS = 10  # after which none grows any more


class Round(NamedTuple):
    """What one round gave."""

    at: slice
    """Which of the jobs."""
    out: Any
    """A tree of NumPy arrays, each with a leading axis over them."""


def run_rounds(
    program: Program, jobs: Any, count: int, args: Any, processes: Processes
) -> Iterator[Round]:
    """Run a compiled program's jobs, a round at a time.

    Args:
      program: compiled.
      jobs: a tree of NumPy arrays with a leading axis over the jobs.
      count: how many.
      args: as placed.
      processes: where the program runs.
    """
    devices = processes.mesh.devices.tolist()
    # A CPU's devices share their cores: a round in advance would only take them from this one.
    ahead = 1 if devices[0].platform == "cpu" else 2
    pending: collections.deque[tuple[slice, Any, int]] = collections.deque()
    at, batches, fastest, timed = 0, 1, np.inf, 0
    while at < count or pending:
        start = time.perf_counter()
        while at < count and len(pending) < ahead:
            now = slice(at, min(at + program.round_size(batches), count))
            size = now.stop - now.start
            some = jax.tree.map(lambda x, now=now: x[now], jobs)
            pending.append((now, program.start(some, size, args), batches))
            at = now.stop
        now, out, its_batches = pending.popleft()
        yield Round(now, program.fetch(out, now.stop - now.start))
        fastest, timed = min(fastest, (time.perf_counter() - start) / its_batches), timed + 1
        if at < count and batches < program.capacity and FIRST_ROUNDS <= timed < TIMED_ROUNDS:
            fit = min(int(ROUND_SECONDS / fastest), program.capacity)
            batches = max(batches, int(processes.from_first(np.asarray(fit))))
