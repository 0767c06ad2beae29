"""Programs compiled ahead of their turn, in threads, with a batch that fits the memory."""

import concurrent.futures
import os
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax

from rmsprop_jax._sweep.processes import Processes
from rmsprop_jax._sweep.program import Piece, Program

MEMORY_SHARE = 0.9  # of a device's free memory: allocators lose some of it in gaps

Maker = tuple[Callable[[], Program], Callable[[Program], Program]]


def maker(piece: Piece, args: Any, processes: Processes, batch_size: int | str, jobs: int) -> Maker:
    """Two steps to a program: lowered, with a batch of the size asked for or the largest; and
    compiled, with one that fits the memory."""
    devices = processes.mesh.devices.tolist()
    memory = free_memory(devices) if batch_size == "auto" else None
    most = -(-jobs // len(devices))
    if memory is None:
        size = 1 if batch_size == "auto" else min(int(batch_size), most)
    else:
        size, memory = most, processes.smallest(memory)
    make = lambda size: Program(piece, args, processes, batch_size=size, jobs=jobs)

    def finish(program: Program) -> Program:
        if memory is None:
            return program.compile()
        return largest(make, most, memory, program)

    return lambda: make(size), finish


def compiled_ahead(makers: Sequence[Maker]) -> Generator[tuple[Program, float]]:
    """Each program in turn, and for how many seconds it held up: others compile meanwhile, in
    threads (XLA leaves Python's lock), while rounds of earlier ones run."""
    workers = min(os.cpu_count() or 1, len(makers))
    pool = concurrent.futures.ThreadPoolExecutor(max(workers, 1), "compile")
    pending: list[tuple[Program, concurrent.futures.Future]] = []
    try:
        for i, (_, finish) in enumerate(makers):
            start = time.perf_counter()
            while len(pending) < min(workers, len(makers) - i):
                program = makers[i + len(pending)][0]()
                pending.append((program, pool.submit(program.compile)))
            program, future = pending.pop(0)
            concurrent.futures.wait([future])  # what failed there says so again in `finish`
            yield finish(program), time.perf_counter() - start
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def largest(
    make: Callable[[int], Program], most: int, memory: float, first: Program | None = None
) -> Program:
    """The compiled program of the largest batch, up to `most`, that needs no more memory.

    Args:
      make: a program from its batch size.
      most: jobs that a device has in all.
      memory: bytes.
      first: the program of `most`, where it is made already.
    """
    size, program = most, first
    while True:
        fits = 0.5  # a half, where the compiler itself finds too little memory
        program = program or make(size)
        try:
            fits = memory / max(program.compile().memory, 1)  # it grows about as the batch
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or size == 1:
                raise
        if fits >= 1 or size == 1:
            return program
        size = max(1, min(size - 1, int(size * fits)))
        size = -(-most // -(-most // size))  # no more than needed, so that the last round is full
        program = None


def free_memory(devices: Sequence[Any]) -> float | None:
    """Bytes to be used on the fullest device; None where it is not known, as on a CPU."""
    mine = [device for device in devices if device.process_index == jax.process_index()]
    stats = [device.memory_stats() for device in mine]
    if not all(stats):
        return None
    return MEMORY_SHARE * min(s["bytes_limit"] - s["bytes_in_use"] for s in stats)
