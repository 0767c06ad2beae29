"""The programs of static groups: how the batch size is chosen, and compiling in threads."""

import concurrent.futures
import os
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import jax

from rmsprop_jax._tune.compile.compiled import CompiledKernel
from rmsprop_jax._tune.compile.kernels import GroupKernels
from rmsprop_jax._tune.compile.layout import DeviceLayout
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.space.static_groups import naming


class GroupPrograms(NamedTuple):
    """All that one static group runs, in one layout."""

    layout: DeviceLayout
    segment: CompiledKernel
    init: CompiledKernel | None = None
    """Makes a state; a function has none."""
    evaluate: CompiledKernel | None = None

    def each(self) -> list[CompiledKernel]:
        return [program for program in self[1:] if program is not None]

    def compile(self) -> "GroupPrograms":
        """Compile all of them."""
        for program in self.each():
            program.compile()
        return self

    @property
    def memory(self) -> int:
        """Bytes that the largest of them needs on each device."""
        return max(program.memory for program in self.each())


class GroupCompiler:
    """Makes the programs of one static group, with a batch size that fits the memory.

    Args:
      kernels: what runs.
      args: of the sweep, placed on the devices.
      cluster: where to run.
      batch_size: how many trials share a batch, or "auto". "auto" is 1 where the free memory of the
        devices is not known, as on a CPU, where `vmap` gains nothing; else as many as fit.
      trials: how many there are in all.
      most: a limit for "auto"; None where the memory alone decides.

    Attributes:
      size: the batch size of the programs that are tried first.
    """

    def __init__(
        self,
        kernels: GroupKernels,
        args: Any,
        cluster: Cluster,
        batch_size: int | str,
        trials: int,
        most: int | None = None,
    ):
        self.kernels, self._args = kernels, args
        self._cluster, self._trials = cluster, trials
        self._most = min(-(-trials // cluster.mesh.size), most or trials)
        self._memory = cluster.free_memory() if batch_size == "auto" else None
        if self._memory is not None:
            self.size = self._most
        else:
            self.size = 1 if batch_size == "auto" else min(int(batch_size), self._most)

    def layout(self, size: int) -> DeviceLayout:
        """Return the layout for batches of `size` trials."""
        cluster = self._cluster
        return DeviceLayout.fit(
            cluster.mesh.size, size, self.kernels.bytes, self._trials, cluster.machine.buffer_bytes
        )

    def make(self, size: int) -> GroupPrograms:
        """Return the programs for batches of `size` trials, lowered and not compiled."""
        layout = self.layout(size)
        program = lambda kernel: CompiledKernel(kernel, self._args, layout, self._cluster)
        with naming(self.kernels.spec.groups[self.kernels.group]):
            each = {name: program(kernel) for name, kernel in self.kernels.each().items()}
        return GroupPrograms(layout, **each)

    def finish(self, programs: GroupPrograms) -> GroupPrograms:
        """Return these programs compiled, or those of the largest batch that fits the memory."""
        with naming(self.kernels.spec.groups[self.kernels.group]):
            if self._memory is None:
                return programs.compile()
            return largest_that_fits(self.make, self._most, self._memory, programs)

    def compile(self) -> GroupPrograms:
        """Return the programs, compiled in this thread."""
        return self.finish(self.make(self.size))


def compile_ahead(
    compilers: Sequence[GroupCompiler], clock: Callable[[], float]
) -> Generator[tuple[GroupPrograms, float]]:
    """Yield the programs of each group in turn, and for how many seconds the caller waited.

    Those of later groups compile in threads meanwhile: XLA releases Python's lock, and the trials
    of earlier groups run.
    """
    workers = max(min(os.cpu_count() or 1, len(compilers)), 1)
    pool = concurrent.futures.ThreadPoolExecutor(max(workers, 2), "compile")
    pending: list[tuple[GroupPrograms, list[concurrent.futures.Future[CompiledKernel]]]] = []
    try:
        for i, compiler in enumerate(compilers):
            start = clock()
            while len(pending) < min(workers, len(compilers) - i):
                next_compiler = compilers[i + len(pending)]
                programs = next_compiler.make(next_compiler.size)
                futures = [pool.submit(program.compile) for program in programs.each()]
                pending.append((programs, futures))
            programs, futures = pending.pop(0)
            concurrent.futures.wait(futures)  # `finish` raises the error of one that failed
            yield compiler.finish(programs), clock() - start
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def largest_that_fits(
    make: Callable[[int], GroupPrograms],
    most: int,
    memory: float,
    first: GroupPrograms | None = None,
) -> GroupPrograms:
    """Return the compiled programs of the largest batch that needs no more than `memory` bytes.

    Args:
      make: returns the programs for a batch size.
      most: the largest batch: the trials that a device has in all.
      memory: bytes on each device.
      first: the programs of `most`, where they are made already.
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
        size = -(-most // -(-most // size))  # no more than needed, so that the last wave is full
        programs = None


def smaller_batch(
    error: Exception, batch_size: int | str, sizes: list[int], may_retry: bool
) -> int:
    """Return how many trials a batch may have after this error, where that helps; else raise it.

    Args:
      error: of JAX.
      batch_size: as the call asked for it.
      sizes: of the batches of the groups that ran; empty where none was compiled.
      may_retry: whether the trials under way can begin again.
    """
    largest = max(sizes) if sizes else 1 if batch_size == "auto" else int(batch_size)
    if "RESOURCE_EXHAUSTED" in str(error) and largest > 1:
        if batch_size == "auto" and may_retry:
            return largest // 2
        error.add_note(
            f"The devices ran out of memory with batches of {largest} trials: give a smaller "
            "batch_size."
        )
    raise error
