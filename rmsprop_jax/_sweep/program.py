"""The compiled program of a piece of a training: rounds of jobs, on every device."""

import functools
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rmsprop_jax._sweep.deadlock import refuse_deadlock
from rmsprop_jax._sweep.fingerprint import hash_of_arrays
from rmsprop_jax._sweep.processes import Processes
from rmsprop_jax._sweep.tracing import constants, equations

BUFFER_BYTES = 16 * 2**20  # on each device, for what the jobs that share a call give
MOST_BATCHES = 4096  # in one call on each device
KEPT_PROGRAMS = 32  # compiled ones that are kept for the next call of sweep

SPLIT, WHOLE = PartitionSpec("trial"), PartitionSpec()


class Piece(NamedTuple):
    """A pure function that one job runs for one trial, and its abstract arguments."""

    call: Callable[[Any, Any], Any]
    """`call(job, args) -> out`, the job and what it gives trees of arrays."""
    job: Any


class Program:
    """One compiled program for all rounds of a piece.

    Each device runs some batches one after the other, each of `batch_size` jobs under one `vmap`.
    With a `batch_size` of 1 the piece runs as it is, and its numbers are bit for bit those of
    `jax.jit`. How many batches a device runs is an argument, from none to `capacity`: a short round
    runs nothing more, and one program serves rounds of every length.

    Args:
      piece: what runs.
      args: placed on the devices, the same for all jobs.
      processes: where to run.
      batch_size: at least 1.
      jobs: how many there are in all; capacity beyond is no use.

    Attributes:
      batch_size: as given.
      capacity: how many batches fit a call on each device.
    """

    def __init__(
        self, piece: Piece, args: Any, processes: Processes, *, batch_size: int, jobs: int
    ):
        self.batch_size, self._processes = batch_size, processes
        devices = processes.mesh.size

        def one_batch(batch, args):
            if batch_size == 1:
                only = jax.tree.map(lambda x: x[0], batch)
                return jax.tree.map(lambda x: x[None], piece.call(only, args))
            return jax.vmap(piece.call, (0, None))(batch, args)

        stack = lambda tree, *n: jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((*n, *x.shape), x.dtype), tree
        )
        out = jax.eval_shape(one_batch, stack(piece.job, batch_size), args)
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(out))
        most = -(-jobs // (batch_size * devices))
        self.capacity = max(1, min(most, MOST_BATCHES, BUFFER_BYTES // max(size, 1)))

        @functools.partial(
            jax.shard_map,
            mesh=processes.mesh,
            in_specs=(SPLIT, SPLIT, WHOLE),
            out_specs=SPLIT,
            check_vma=False,
        )
        def one_round(batches: Any, jobs: Any, args: Any) -> Any:
            def body(i, done):
                one = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, False), jobs)
                put = lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, i, 0)
                return jax.tree.map(put, done, one_batch(one, args))

            nothing = jax.tree.map(lambda x: jnp.zeros((self.capacity, *x.shape), x.dtype), out)
            return jax.lax.fori_loop(0, batches[0], body, nothing)

        split = NamedSharding(processes.mesh, SPLIT)
        on_mesh = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split)
        count = on_mesh(jax.ShapeDtypeStruct((devices,), np.int32))
        all_jobs = stack(piece.job, devices * self.capacity, batch_size)
        traced = jax.jit(one_round, out_shardings=split).trace(
            count, jax.tree.map(on_mesh, all_jobs), args
        )
        refuse_deadlock(traced.jaxpr, processes.mesh.devices.tolist())
        self._lowered: Any = traced.lower()
        self._key = _key(traced, self._lowered, processes)
        self._compiled: Any = None
        self._error: Exception | None = None

    def compile(self) -> "Program":
        """Compile, in any thread; what an earlier sweep of this process compiled is found."""
        if self._error is not None:
            raise self._error
        if self._compiled is None:
            try:
                self._compiled = _compiled(self._key, self._lowered)
            except Exception as error:  # to say it again where the program is wanted
                self._error = error
                raise
            self._lowered = None
        return self

    @property
    def memory(self) -> int:
        """Bytes that two rounds in flight need on each device, besides `args`."""
        analysis = self.compile()._compiled.memory_analysis()
        if analysis is None:
            return 0
        return analysis.temp_size_in_bytes + 2 * analysis.output_size_in_bytes

    def round_size(self, batches: int) -> int:
        """How many jobs a round of so many batches on each device has room for."""
        return self._processes.mesh.size * batches * self.batch_size

    def start(self, jobs: Any, count: int, args: Any) -> Any:
        """Start a round: what its jobs give, on the devices, for `fetch`.

        Args:
          jobs: a tree of NumPy arrays with a leading axis over the jobs.
          count: how many; at most `round_size(capacity)`. The lanes of a batch that is not full
            run its last job again.
          args: as placed.
        """
        place, batches = self._places(count)
        size = self._processes.mesh.size * self.capacity, self.batch_size
        fill = np.zeros(size, np.intp)  # which job each lane runs
        fill.reshape(-1)[place] = np.arange(count)
        short = -count % self.batch_size
        if short:
            fill.reshape(-1)[place[-1] + 1 : place[-1] + 1 + short] = count - 1
        laid = jax.tree.map(lambda x: np.asarray(x)[fill], jobs)
        placed = self._processes.place((batches.astype(np.int32), laid), "trial")
        return self._compiled(*placed, args)

    def fetch(self, out: Any, count: int) -> Any:
        """Wait for a round: what its jobs gave, each array with a leading axis over them."""
        place, _ = self._places(count)
        flat = lambda x: x.reshape(-1, *x.shape[2:])[place]
        return jax.tree.map(lambda x: flat(self._processes.gather(x)), out)

    def _places(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """For each job its lane in all batches of all devices; for each device its batches.

        The first batch goes to the first device, the second to the second, and so on round.
        """
        devices = self._processes.mesh.size
        batch, lane = np.divmod(np.arange(count), self.batch_size)
        row, device = np.divmod(batch, devices)
        place = (device * self.capacity + row) * self.batch_size + lane
        all_batches = -(-count // self.batch_size)
        return place, (all_batches + devices - 1 - np.arange(devices)) // devices


_KEPT: OrderedDict[str, Any] = OrderedDict()
_LOCK = threading.Lock()


def _compiled(key: str | None, lowered: Any) -> Any:
    """The compiled program, of this process' memory where it has it."""
    with _LOCK:
        if key in _KEPT:
            _KEPT.move_to_end(key)
            return _KEPT[key]
    compiled = lowered.compile()
    if key is not None:
        with _LOCK:
            _KEPT[key] = compiled
            while len(_KEPT) > KEPT_PROGRAMS:
                _KEPT.popitem(last=False)
    return compiled


def _key(traced: Any, lowered: Any, processes: Processes) -> str | None:
    """Equal for programs that may stand for each other; None for one that calls back into Python,
    whose text does not say what it calls."""
    if any("callback" in equation.primitive.name for equation in equations(traced.jaxpr)):
        return None
    settings = [getattr(jax.config, name) for name in ("jax_debug_nans", "jax_debug_infs")]
    where = [(device.platform, device.id) for device in processes.mesh.devices.tolist()]
    digest = hashlib.sha256(lowered.as_text().encode())
    # Names of hyperparameters and metrics are no part of the text.
    digest.update(repr((settings, where, lowered.in_tree, lowered.out_tree)).encode())
    digest.update(hash_of_arrays(list(constants(traced.jaxpr))).encode())
    return digest.hexdigest()
