"""A group's trials cut into rounds: how large they are, and one dispatched ahead of another."""

import collections
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rmsprop_jax._sweep.program import Program

ROUND_SECONDS = 0.5  # tiny trials share a round until it lasts as long: progress is shown by rounds
TIMED_ROUNDS = 4  # how many rounds run before that is decided; the first is slower than the others
MEMORY_SHARE = 0.9  # of a device's free memory: allocators lose some of it in gaps


class Round(NamedTuple):
    """What one round gave."""

    at: slice
    """Which of the group's trials."""
    metrics: dict[str, np.ndarray]
    """Each with a leading axis over them."""
    compile_seconds: float
    """Spent on compiling since the round before."""


def run_rounds(
    compile_: Callable[..., Program],
    rows: np.ndarray,
    seeds: np.ndarray,
    devices: Sequence[Any],
    batch_size: int | str,
) -> Iterator[Round]:
    """Compile a group's program and run its trials, a round at a time.

    Args:
      compile_: `compile_(batch_size=..., batches=...)` gives the program.
      rows, seeds: int arrays, for each trial the place of its point in the group and of its seed.
      devices: where the program runs.
      batch_size: how many trials share a `vmap`; "auto" is 1 on a CPU, and elsewhere as many as
        fit the device's memory.
    """
    total, left = len(rows), lambda size: -(-(len(rows) - at) // size)
    at = 0
    batch_size, program = _first_program(compile_, left(len(devices)), devices, batch_size)
    compile_seconds = program.compile_seconds
    # A CPU's devices share their cores: a round in advance would only take them from this one.
    ahead = 1 if devices[0].platform == "cpu" else 2
    pending: collections.deque[tuple[slice, dict[str, jax.Array]]] = collections.deque()
    seconds = []
    while at < total or pending:
        start = time.perf_counter()
        while at < total and len(pending) < ahead:
            now = slice(at, min(at + program.round_size, total))
            pending.append((now, program(rows[now], seeds[now])))
            at = now.stop
        now, out = pending.popleft()
        metrics = {name: np.asarray(x)[: now.stop - now.start] for name, x in out.items()}
        yield Round(now, metrics, compile_seconds)
        compile_seconds = 0.0
        seconds.append(time.perf_counter() - start)
        if len(seconds) == TIMED_ROUNDS and at < total:
            each = min(seconds[1:])
            # A second compile has to pay for itself.
            if left(program.round_size) * each > 2 * program.compile_seconds:
                batches = min(left(program.round_size), int(ROUND_SECONDS / each))
                if batches > 1:
                    program = compile_(batch_size=batch_size, batches=batches)
                    compile_seconds = program.compile_seconds


def _first_program(
    compile_: Callable[..., Program], most: int, devices: Sequence[Any], batch_size: int | str
) -> tuple[int, Program]:
    """The batch size and its program; `most` trials fall to a device."""
    memory = free_memory(devices) if batch_size == "auto" else None
    if memory is None:
        size = 1 if batch_size == "auto" else min(int(batch_size), most)
        return size, compile_(batch_size=size)
    start = time.perf_counter()
    size = most
    while True:
        program, fits = None, 0.5  # a half, where the compiler itself finds too little memory
        try:
            program = compile_(batch_size=size)
            fits = memory / max(program.memory, 1)  # it grows about linearly with the batch
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or size == 1:
                raise
        if program and (fits >= 1 or size == 1):
            program.compile_seconds = time.perf_counter() - start
            return size, program
        size = max(1, min(size - 1, int(size * fits)))
        size = -(-most // -(-most // size))  # no more than needed, so that the last round is full


def free_memory(devices: Sequence[Any]) -> float | None:
    """Bytes to be used on the fullest device; None where it is not known, as on a CPU."""
    mine = [device for device in devices if device.process_index == jax.process_index()]
    stats = [device.memory_stats() for device in mine]
    if not all(stats):
        return None
    return MEMORY_SHARE * min(s["bytes_limit"] - s["bytes_in_use"] for s in stats)
