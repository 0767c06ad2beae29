"""A group's trials cut into rounds: how large they are, and one dispatched ahead of another."""

import collections
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rmsprop_jax._sweep.processes import Processes
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
    processes: Processes,
    batch_size: int | str,
) -> Iterator[Round]:
    """Compile a group's program and run its trials, a round at a time.

    Args:
      compile_: `compile_(batch_size=..., batches=...)` gives the program.
      rows, seeds: int arrays, for each trial the place of its point in the group and of its seed.
      processes: where the program runs.
      batch_size: how many trials share a `vmap`; "auto" is 1 on a CPU, and elsewhere as many as
        fit the device's memory.
    """
    devices = processes.mesh.devices.tolist()
    memory = free_memory(devices) if batch_size == "auto" else None
    most = -(-len(rows) // len(devices))
    if memory is not None:
        program = _largest(compile_, most, processes.smallest(memory))
    else:
        program = compile_(batch_size=1 if batch_size == "auto" else min(int(batch_size), most))
    compile_seconds = program.compile_seconds
    # A CPU's devices share their cores: a round in advance would only take them from this one.
    ahead = 1 if devices[0].platform == "cpu" else 2
    pending: collections.deque[tuple[slice, Program, dict[str, jax.Array]]] = collections.deque()
    at, seconds = 0, []
    while at < len(rows) or pending:
        start = time.perf_counter()
        while at < len(rows) and len(pending) < ahead:
            now = slice(at, min(at + program.round_size, len(rows)))
            pending.append((now, program, program.start(rows[now], seeds[now])))
            at = now.stop
        now, started, metrics = pending.popleft()
        yield Round(now, started.fetch(metrics, now.stop - now.start), compile_seconds)
        compile_seconds = 0.0
        seconds.append(time.perf_counter() - start)
        if len(seconds) == TIMED_ROUNDS and at < len(rows):
            grow = _batches(program, min(seconds[1:]), -(-(len(rows) - at) // program.round_size))
            if (batches := int(processes.from_first(np.asarray(grow)))) > 1:
                program = compile_(batch_size=program.batch_size, batches=batches)
                compile_seconds = program.compile_seconds


def _batches(program: Program, seconds: float, left: int) -> int:
    """How many batches a round should have, where one takes so long and so many are left."""
    if left * seconds < 2 * program.compile_seconds:  # a second compile has to pay for itself
        return 1
    return min(left, int(ROUND_SECONDS / seconds))


def _largest(compile_: Callable[..., Program], most: int, memory: float) -> Program:
    """The program of the largest batch, up to `most`, that needs no more memory."""
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
            return program
        size = max(1, min(size - 1, int(size * fits)))
        size = -(-most // -(-most // size))  # no more than needed, so that the last round is full


def free_memory(devices: Sequence[Any]) -> float | None:
    """Bytes to be used on the fullest device; None where it is not known, as on a CPU."""
    mine = [device for device in devices if device.process_index == jax.process_index()]
    stats = [device.memory_stats() for device in mine]
    if not all(stats):
        return None
    return MEMORY_SHARE * min(s["bytes_limit"] - s["bytes_in_use"] for s in stats)
