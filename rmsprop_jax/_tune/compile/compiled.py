"""The compiled program of a piece of a training: rounds of jobs, on every device."""

import functools
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rmsprop_jax._tune.compile.xla_deadlock import refuse_deadlock
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.training.fingerprint import hash_of_arrays
from rmsprop_jax._tune.training.trace import constants, equations

BUFFER_BYTES = 16 * 2**20  # on each device, for what the jobs that share a call give
MOST_BATCHES = 4096  # in one call on each device
KEPT_PROGRAMS = 32  # compiled ones that are kept for the next call of sweep

SPLIT, WHOLE = PartitionSpec("trial"), PartitionSpec()
BATCHED = (0, 0, None, 0, None, None)
"""Which arguments of a piece's `call` have a leading axis over the trials of a batch."""


class Kernel(NamedTuple):
    """A pure function that one job runs for one trial, and its abstract arguments.

    Each is a tree of arrays, those of the states a list.
    """

    call: Callable[[Any, Any, Any, list[Any], Any, Any], tuple[list[Any], Any]]
    """`call(job, at, span, state, batches, args) -> (state, out)`."""
    job: Any
    """Of each trial: its numbers and its key."""
    at: Any = ()
    """Of each trial: where it stands."""
    span: Any = ()
    """Of each batch of trials: how many steps."""
    state: Sequence[Any] = ()
    """Of each trial, kept on the devices from call to call. Where `call` returns one and gets one,
    the new takes the place of the old."""
    batches: Any = None
    """The same for all."""


class CompiledKernel:
    """One compiled program for all rounds of a piece.

    Each device runs some batches one after the other, each of `batch_size` jobs under one `vmap`.
    With a `batch_size` of 1 the piece runs as it is, and its numbers are bit for bit those of
    `jax.jit`. How many batches a device runs is an argument, from none to `capacity`: a short round
    runs nothing more, and one program serves rounds of every length.

    Args:
      piece: what runs.
      args: placed on the devices, the same for all jobs.
      layout: how jobs lie on the devices.
      processes: where to run.
    """

    def __init__(self, piece: Kernel, args: Any, layout: "DeviceLayout", processes: Cluster):
        self._layout, self._processes = layout, processes
        jitted, inputs = round_of(piece, args, layout, processes.mesh)
        traced = jitted.trace(*inputs)
        refuse_deadlock(traced.jaxpr, processes.mesh.devices.tolist())
        self._lowered: Any = traced.lower()
        self._key = _key(traced, self._lowered, processes)
        self._compiled: Any = None
        self._error: Exception | None = None

    def compile(self) -> "CompiledKernel":
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
    def executable(self) -> Any:
        """JAX's own compiled object, with its text and its analyses."""
        return self.compile()._compiled

    @property
    def memory(self) -> int:
        """Bytes that two rounds in flight need on each device, besides `args`."""
        analysis = self.executable.memory_analysis()
        if analysis is None:
            return 0
        return analysis.temp_size_in_bytes + 2 * analysis.output_size_in_bytes

    def place(self, jobs: Any, count: int, first: int = 0) -> Any:
        """On the devices: the jobs of some rounds to come, a tree of NumPy arrays with a leading
        axis over them; the first of them on the device `first`."""
        return self._processes.place(self._layout.lay(jobs, count, first), "trial")

    def start(
        self,
        jobs: Any,
        count: int,
        args: Any,
        *,
        at: Any = (),
        spans: Any = (),
        states: Any = (),
        batches: Any = None,
        first: int = 0,
    ) -> tuple[list[jax.Array], Any]:
        """Start a round: the states and what else its jobs give, on the devices.

        Args:
          jobs: as placed.
          count: how many; at most the layout's room.
          args: as placed.
          at: a tree of NumPy arrays with a leading axis over the jobs.
          spans: a tree of NumPy arrays with a leading axis over the batches.
          states: as an earlier round left them on the devices, for the same jobs. They are used up
            where this round makes new ones.
          batches: as placed.
          first: on which device the first of the jobs is.
        """
        layout = self._layout
        counts, spans = layout.batches(count, first), layout.lay_batches(spans, first)
        of_round = counts, layout.lay(at, count, first), spans
        counts, at, spans = self._processes.place(of_round, "trial")
        # A failed trial is marked and touches no other, whatever `jax_debug_nans` says.
        with jax.debug_nans(False), jax.debug_infs(False):
            return self._compiled(counts, jobs, at, spans, list(states), batches, args)

    def fetch(self, out: Any, count: int, first: int = 0) -> Any:
        """Wait for a round: what its jobs gave, each array with a leading axis over them."""
        place = self._layout.places(count, first)
        flat = lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])[place]
        return jax.tree.map(lambda x: flat(self._processes.gather(x)), out)


def round_of(
    piece: Kernel, args: Any, layout: "DeviceLayout", mesh: Mesh
) -> tuple[Any, tuple[Any, ...]]:
    """A round of this piece as a jitted function, and its abstract inputs: counts, jobs, where they
    stand, spans, states, batches and args.

    Args:
      piece: what runs.
      args: placed, or abstract.
      layout: how jobs lie on the devices.
      mesh: of them, which need not be there.
    """
    size, capacity = layout.batch_size, layout.capacity

    def one_batch(job, at, span, state, batches, args):
        if size == 1:
            only = lambda tree: jax.tree.map(lambda x: x[0], tree)
            out = piece.call(only(job), only(at), span, only(state), batches, args)
            return jax.tree.map(lambda x: x[None], out)
        return jax.vmap(piece.call, BATCHED)(job, at, span, state, batches, args)

    job, stand, state = (stacked(x, size) for x in (piece.job, piece.at, list(piece.state)))
    made, out = jax.eval_shape(one_batch, job, stand, piece.span, state, piece.batches, args)
    goes_on = bool(made) and bool(piece.state)

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(SPLIT, SPLIT, SPLIT, SPLIT, SPLIT, WHOLE, WHOLE),
        out_specs=SPLIT,
        check_vma=False,
    )
    def one_round(count, jobs, stands, spans, states, batches, args):
        at = lambda tree, i: jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, False), tree
        )

        def body(i, done):
            state = at(done[0] if goes_on else states, i)
            job, stand, span = at((jobs, stands, spans), i)
            new = one_batch(job, stand, span, state, batches, args)
            put = lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, i, 0)
            return jax.tree.map(put, done, new)

        empty = lambda tree: jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), tree)
        start = states if goes_on else empty(made), empty(out)
        return jax.lax.fori_loop(0, count[0], body, start)

    split, whole = (NamedSharding(mesh, spec) for spec in (SPLIT, WHOLE))
    on = lambda tree, sharding: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )
    rows = layout.devices * capacity
    inputs = (
        on(jax.ShapeDtypeStruct((layout.devices,), np.int32), split),
        on(stacked(piece.job, rows, size), split),
        on(stacked(piece.at, rows, size), split),
        on(stacked(piece.span, rows), split),
        on(stacked(list(piece.state), rows, size), split),
        on(piece.batches, whole),
        args,
    )
    jitted = jax.jit(
        one_round,
        keep_unused=True,  # else the program's text does not say which arguments it reads
        out_shardings=split,
        donate_argnums=(4,) if goes_on else (),
    )
    return jitted, inputs


class DeviceLayout(NamedTuple):
    """How jobs lie on the devices: (devices × capacity) rows of `batch_size` lanes.

    The first batch goes to the first device, or to that with the number `first`, the second to the
    next, and so on round.
    """

    devices: int
    capacity: int
    """How many batches fit a call on each device."""
    batch_size: int

    @classmethod
    def fit(cls, devices: int, batch_size: int, bytes_: int, jobs: int) -> "DeviceLayout":
        """Room for as many of these jobs, of so many bytes each, as a call may hold."""
        most = -(-jobs // (batch_size * devices))
        fit = BUFFER_BYTES // max(bytes_ * batch_size, 1)
        return cls(devices, max(1, min(most, MOST_BATCHES, fit)), batch_size)

    def room(self, batches: int) -> int:
        """For how many jobs, in so many batches on each device."""
        return self.devices * batches * self.batch_size

    def places(self, count: int, first: int = 0) -> np.ndarray:
        """The lane of each job, among all lanes of all devices."""
        batch, lane = np.divmod(np.arange(count), self.batch_size)
        return self._rows(batch, first) * self.batch_size + lane

    def _rows(self, batch: np.ndarray, first: int) -> np.ndarray:
        """Of each batch."""
        row, device = np.divmod(batch, self.devices)
        return (device + first) % self.devices * self.capacity + row

    def batches(self, count: int, first: int = 0) -> np.ndarray:
        """How many batches each device runs, int32."""
        every = -(-count // self.batch_size)
        each = (every + self.devices - 1 - np.arange(self.devices)) // self.devices
        return np.roll(each, first).astype(np.int32)

    def lay(self, jobs: Any, count: int, first: int = 0) -> Any:
        """Arrays of the jobs in their lanes; what is left of a batch has its last job."""
        place, fill = self.places(count, first), np.zeros(self.room(self.capacity), np.intp)
        fill[place] = np.arange(count)
        if count:
            fill[place[-1] + 1 : place[-1] + 1 + -count % self.batch_size] = count - 1
        fill = fill.reshape(-1, self.batch_size)
        return jax.tree.map(lambda x: np.asarray(x)[fill], jobs)

    def lay_batches(self, spans: Any, first: int = 0) -> Any:
        """Arrays of the batches in their rows."""

        def one(x):
            out = np.zeros(self.devices * self.capacity, x.dtype)
            out[self._rows(np.arange(len(x)), first)] = x
            return out

        return jax.tree.map(one, spans)


def stacked(tree: Any, *n: int) -> Any:
    """Abstract arrays with leading axes of these lengths."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*n, *x.shape), x.dtype), tree)


_KEPT: OrderedDict[Hashable, Any] = OrderedDict()
_LOCK = threading.Lock()


def _compiled(key: Hashable, lowered: Any) -> Any:
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


def _key(traced: Any, lowered: Any, processes: Cluster) -> Hashable:
    """Equal for programs that may stand for each other; None for one that calls back into Python,
    whose text does not say what it calls."""
    if any("callback" in equation.primitive.name for equation in equations(traced.jaxpr)):
        return None
    settings = [getattr(jax.config, name) for name in ("jax_debug_nans", "jax_debug_infs")]
    where = [(device.platform, device.id) for device in processes.mesh.devices.tolist()]
    digest = hashlib.sha256(lowered.as_text().encode())
    # The text has neither the names of hyperparameters and metrics nor the dtypes of random keys.
    taken = [(x.shape, str(x.dtype)) for x in jax.tree.leaves(lowered.args_info)]
    digest.update(repr((settings, where, taken)).encode())
    digest.update(hash_of_arrays(list(constants(traced.jaxpr))).encode())
    return digest.hexdigest(), lowered.in_tree, lowered.out_tree
