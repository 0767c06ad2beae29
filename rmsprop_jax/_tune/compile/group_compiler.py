"""Compile the programs of static groups, in threads, and choose their batch size.

`GroupCompiler` chooses the batch size: the size that the call passes or, for "auto", the largest
that fits the memory of the devices. Three other places decide, too:

- `Experiment.fit_batch_size` makes "auto" 1, or refuses a larger size, if `vmap` would change the
  random numbers of trials (`compile/batched_random_numbers.py`).
- `SequentialRunner.run` passes a smaller `most` after an automatic batch has run out of memory.
- `ContinuousRunner._most_trials` passes the number of study trials that may share a call as
  `trials`, which limits the batch size of a search.
"""

import concurrent.futures
import os
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rmsprop_jax._tune.compile.compiled import CompiledKernel
from rmsprop_jax._tune.compile.kernels import GroupKernels, Inputs
from rmsprop_jax._tune.compile.layout import DeviceLayout
from rmsprop_jax._tune.run.batch import HostStates
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.space.static_groups import naming


class SegmentOutputs(NamedTuple):
    """The metrics of a wave's segment, on the devices."""

    metrics: dict[str, jax.Array]
    """The metrics of `train` or `step`."""
    evaluations: dict[str, jax.Array]
    """The metrics of `evaluate`."""


class GroupPrograms(NamedTuple):
    """The programs of one static group, in one layout."""

    layout: DeviceLayout
    segment: CompiledKernel
    init: CompiledKernel | None = None
    """The program that makes states; None for a function."""
    evaluate: CompiledKernel | None = None
    """The program of `evaluate`; None without it."""

    def each(self) -> list[CompiledKernel]:
        """Return the programs that exist."""
        return [program for program in self[1:] if program is not None]

    def compile(self) -> "GroupPrograms":
        """Compile all of them."""
        for program in self.each():
            program.compile()
        return self

    # One wave.

    def place(
        self, inputs: Any, states: HostStates | None, count: int, first: int = 0
    ) -> tuple[Any, list[jax.Array]]:
        """Return the inputs and the states of a wave on the devices.

        Args:
          inputs: the hyperparameters and the data of the keys, with an axis over the trials.
          states: the states of the trials; None to make them, if they have states.
          count: the number of trials.
          first: the number of the submesh with the first trial.
        """
        placed = self.segment.place(inputs, count, first)
        if states is not None:
            return placed, self.segment.place_states(states, count, first)
        if self.init is None:
            return placed, []
        return placed, self.init.start([], Inputs(placed), count, first)[0]

    def start(
        self,
        leaves: list[jax.Array],
        placed: Any,
        start: np.ndarray,
        stop: np.ndarray,
        first: int = 0,
        data: Any = None,
    ) -> tuple[list[jax.Array], SegmentOutputs]:
        """Start a segment of a wave, and its evaluation.

        Args:
          leaves: the states on the devices, which the segment consumes.
          placed: the inputs on the devices, from `place`.
          start: int array: the steps that each trial has run.
          stop: int array: the step at which each trial's segment ends.
          first: the number of the submesh with the first trial.
          data: the data of the steps, on the devices.

        Returns:
          The new states, and the metrics.
        """
        count, evaluations = len(start), {}
        lengths = (stop - start)[:: self.layout.batch_size].astype(np.int32)
        inputs = Inputs(placed, start.astype(np.int32), lengths, data)
        leaves, metrics = self.segment.start(leaves, inputs, count, first)
        if self.evaluate is not None:
            inputs = Inputs(placed, stop.astype(np.int32))
            _, evaluations = self.evaluate.start(leaves, inputs, count, first)
        return leaves, SegmentOutputs(metrics, evaluations)

    def fetch(
        self, outputs: SegmentOutputs, count: int, first: int = 0
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Wait for a segment; return its metrics and its evaluations on the host."""
        metrics, evaluations = outputs
        # Each metric is freed once it is copied, because together they may be large.
        fetched = {n: self.segment.fetch(metrics.pop(n), count, first) for n in list(metrics)}
        if self.evaluate is None:
            return fetched, {}
        return fetched, self.evaluate.fetch(evaluations, count, first)

    @property
    def memory(self) -> int:
        """The bytes that the largest of them needs on each device."""
        return max(program.memory for program in self.each())


class GroupCompiler:
    """A compiler of one static group's programs, with a batch size that fits the memory.

    Args:
      kernels: the kernels of the group.
      args: the sweep's `args`, placed on the devices.
      cluster: the processes and devices that run the programs.
      batch_size: how many trials share a batch, or "auto". "auto" is 1 if the free memory of the
        devices is unknown, as on a CPU, where `vmap` is no faster. Otherwise it is as many as fit
        the memory.
      trials: the number of trials that may share a call. No batch is larger than one submesh's part
        of them.
      most: a further limit of the batch size; None for no limit.

    Attributes:
      size: the batch size that is tried first.
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
        self._most = min(-(-trials // cluster.submeshes), most or trials)
        self._memory = cluster.free_memory() if batch_size == "auto" else None
        if self._memory is not None:
            self.size = self._most
        else:
            self.size = 1 if batch_size == "auto" else min(int(batch_size), self._most)

    def layout(self, size: int) -> DeviceLayout:
        """Return the layout for batches of `size` trials."""
        cluster = self._cluster
        return DeviceLayout.fit(
            cluster.submeshes,
            size,
            self.kernels.bytes,
            self._trials,
            cluster.machine.buffer_bytes,
            is_lockstep=cluster.trial_mesh is not None,
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
    """Yield the compiled programs of each group in turn, and the seconds that the caller waited.

    The programs of later groups compile in threads while the trials of earlier groups run, because
    XLA releases Python's global lock.
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
            concurrent.futures.wait(futures)  # `finish` raises the error of a failed program
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
      make: a function from a batch size to its programs, lowered and not compiled.
      most: the largest batch size to try: one device's part of the trials, or less.
      memory: the free bytes on each device.
      first: the programs for `most`, if they are lowered already.
    """
    size, programs = most, first
    while True:
        fits = 0.5  # for a batch with which the compiler itself runs out of memory
        programs = programs or make(size)
        try:
            # The memory is roughly proportional to the batch size.
            fits = memory / max(programs.compile().memory, 1)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or size == 1:
                raise
        if fits >= 1 or size == 1:
            return programs
        size = max(1, min(size - 1, int(size * fits)))
        size = -(-most // -(-most // size))  # the smallest size for this number of batches
        programs = None


def smaller_batch(
    error: Exception, batch_size: int | str, sizes: list[int], may_retry: bool
) -> int:
    """Return half of the batch size after JAX ran out of memory; raise any other error again.

    Args:
      error: JAX's error.
      batch_size: the `batch_size` of the call. An explicit size is never changed.
      sizes: the batch sizes of the groups that ran; empty if none was compiled.
      may_retry: whether the trials under way can start again.
    """
    largest = max(sizes) if sizes else 1 if batch_size == "auto" else int(batch_size)
    if "RESOURCE_EXHAUSTED" in str(error) and largest > 1:
        if batch_size == "auto" and may_retry:
            return largest // 2
        error.add_note(
            f"The devices ran out of memory with batches of {largest} trials. Pass a smaller "
            "batch_size."
        )
    raise error
