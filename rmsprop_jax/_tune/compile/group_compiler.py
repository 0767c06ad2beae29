"""Programs compiled ahead of their turn, in threads, with a batch that fits the memory."""

import concurrent.futures
import os
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import jax

from rmsprop_jax._tune.compile.compiled import CompiledKernel, DeviceLayout
from rmsprop_jax._tune.compile.kernels import GroupKernels
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.training.trace import naming


class GroupPrograms(NamedTuple):
    """All that one structure runs, in one layout: `whole` of a function, else the others."""

    layout: DeviceLayout
    whole: Any = None
    init: Any = None
    segment: Any = None
    evaluate: Any = None

    def each(self) -> list[CompiledKernel]:
        return [program for program in self[1:] if program is not None]

    def compile(self) -> "GroupPrograms":
        """Compile all of them."""
        for program in self.each():
            program.compile()
        return self

    @property
    def memory(self) -> int:
        """Bytes that the largest of them needs."""
        return max(program.memory for program in self.each())


class GroupCompiler:
    """Makes the programs of one structure.

    Args:
      pieces: what runs.
      args: placed.
      processes: where.
      batch_size: a number, or "auto".
      jobs: how many there are in all.
      most: which "auto" does not exceed; None where the memory alone decides.
    """

    def __init__(
        self,
        pieces: GroupKernels,
        args: Any,
        processes: Cluster,
        batch_size: int | str,
        jobs: int,
        most: int | None = None,
    ):
        self.pieces, self._args = pieces, args
        self._processes, self._jobs = processes, jobs
        self.most = min(-(-jobs // processes.mesh.size), most or jobs)
        self.memory = processes.free_memory() if batch_size == "auto" else None
        if self.memory is not None:
            self.size = self.most
        else:
            self.size = 1 if batch_size == "auto" else min(int(batch_size), self.most)

    def layout(self, size: int) -> DeviceLayout:
        """For so many jobs in a batch."""
        return DeviceLayout.fit(self._processes.mesh.size, size, self.pieces.bytes, self._jobs)

    def make(self, size: int) -> GroupPrograms:
        """The programs for so many jobs in a batch, lowered."""
        layout = self.layout(size)
        program = lambda piece: CompiledKernel(piece, self._args, layout, self._processes)
        with naming(self.pieces.plan.groups[self.pieces.group]):
            each = {name: program(piece) for name, piece in self.pieces.each().items()}
        return GroupPrograms(layout, **each)

    def finish(self, programs: GroupPrograms) -> GroupPrograms:
        """These compiled, or those of the largest batch that fits the memory."""
        with naming(self.pieces.plan.groups[self.pieces.group]):
            if self.memory is None:
                return programs.compile()
            return largest(self.make, self.most, self.memory, programs)


def compiled_ahead(makers: Sequence[GroupCompiler]) -> Generator[tuple[GroupPrograms, float]]:
    """The programs of each in turn, and for how many seconds they held up: others compile in
    threads meanwhile (XLA leaves Python's lock), while rounds of earlier ones run."""
    workers = max(min(os.cpu_count() or 1, len(makers)), 1)
    pool = concurrent.futures.ThreadPoolExecutor(max(workers, 2), "compile")
    pending: list[tuple[GroupPrograms, list[concurrent.futures.Future]]] = []
    try:
        for i, maker in enumerate(makers):
            start = time.perf_counter()
            while len(pending) < min(workers, len(makers) - i):
                next_maker = makers[i + len(pending)]
                programs = next_maker.make(next_maker.size)
                futures = [pool.submit(program.compile) for program in programs.each()]
                pending.append((programs, futures))
            programs, futures = pending.pop(0)
            concurrent.futures.wait(futures)  # what failed there says so again in `finish`
            yield maker.finish(programs), time.perf_counter() - start
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def largest(make: Callable[[int], Any], most: int, memory: float, first: Any | None = None) -> Any:
    """The compiled programs of the largest batch, up to `most`, that needs no more memory.

    Args:
      make: the programs from a batch size.
      most: jobs that a device has in all.
      memory: bytes.
      first: those of `most`, where they are made already.
    """
    size, programs = most, first
    while True:
        fits = 0.5  # a half, where the compiler itself finds too little memory
        programs = programs or make(size)
        try:
            fits = memory / max(programs.compile().memory, 1)  # it grows about as the batch
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or size == 1:
                raise
        if fits >= 1 or size == 1:
            return programs
        size = max(1, min(size - 1, int(size * fits)))
        size = -(-most // -(-most // size))  # no more than needed, so that the last round is full
        programs = None
