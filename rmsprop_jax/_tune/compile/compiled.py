"""A kernel compiled for the trials of a wave, on every device.

`kernels.py` has the table of the arrays that enter and leave.
"""

import functools
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from rmsprop_jax._tune.compile.collective_permute import refuse_uneven_permutes
from rmsprop_jax._tune.compile.kernels import Inputs, Kernel, stacked
from rmsprop_jax._tune.compile.layout import DeviceLayout
from rmsprop_jax._tune.compile.xla_deadlock import blocking_calls, refuse_deadlock
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.training.fingerprint import hash_of_arrays
from rmsprop_jax._tune.training.jaxprs import constants, equations, is_callback
from rmsprop_jax._tune.trial_mesh import SPLIT, TRIAL, WHOLE, map_specs, tracing

CACHED_PROGRAMS = 32  # compiled programs that the next call of sweep can use


class WaveInputs(NamedTuple):
    """The inputs of a wave besides the states."""

    count: Any
    """The number of batches that each submesh runs."""
    trials: Inputs
    """The inputs of the wave's trials."""


def wave_specs(layout: DeviceLayout) -> WaveInputs:
    """Return the sharding over the axis "trial" of each of a wave's inputs."""
    of_batch = WHOLE if layout.is_lockstep else SPLIT
    return WaveInputs(of_batch, Inputs(SPLIT, SPLIT, of_batch, WHOLE, WHOLE))


class CompiledKernel:
    """One compiled program for all waves of a kernel.

    Each submesh runs some batches one after the other, each of `batch_size` trials under one
    `vmap`. With a `batch_size` of 1 the kernel runs without `vmap`, and its numbers are bit for bit
    those of `jax.jit`. The number of batches of each submesh is an argument, from 0 to the
    capacity. One program therefore serves waves of every length, and a short wave takes less
    time.

    Args:
      kernel: the kernel.
      args: the sweep's `args`, placed on the devices.
      layout: the assignment of trials to slots.
      cluster: the processes and devices that run the waves.
    """

    def __init__(self, kernel: Kernel, args: Any, layout: DeviceLayout, cluster: Cluster):
        self._kernel, self._args = kernel, args
        self._layout, self._cluster = layout, cluster
        self._specs: Any = SPLIT  # of the counts, the starts, and the lengths of a wave
        if layout.is_lockstep:
            specs = wave_specs(layout)
            self._specs = specs.count, specs.trials.start, specs.trials.length
        jitted, abstract = wave_of(kernel, args, layout, cluster.mesh)
        traced = jitted.trace(*abstract)
        calls = blocking_calls(traced.jaxpr) if kernel.exported is None else kernel.exported
        refuse_deadlock(calls, cluster.devices)
        self._lowered: Any = traced.lower()
        self._key = _key(traced, self._lowered, cluster)
        self._compiled: Any = None
        self._error: Exception | None = None

    def compile(self) -> "CompiledKernel":
        """Compile, in any thread, unless an earlier sweep of this process compiled the program."""
        if self._error is not None:
            raise self._error
        if self._compiled is None:
            try:
                self._compiled = _compiled(self._key, self._lowered)
                if self._kernel.mesh is not None and self._cluster.devices[0].platform == "cpu":
                    refuse_uneven_permutes(self._compiled.as_text(), self._kernel.loops)
            except Exception as error:  # `compile` raises it again when the program is needed
                self._error = error
                raise
            self._lowered = None
        return self

    @property
    def executable(self) -> Any:
        """JAX's compiled object, with its text and its analyses."""
        return self.compile()._compiled

    @property
    def memory(self) -> int:
        """The bytes that two waves in flight need on each device, without `args`."""
        analysis = self.executable.memory_analysis()
        if analysis is None:
            return 0
        return analysis.temp_size_in_bytes + 2 * analysis.output_size_in_bytes

    def place(self, rows: Any, count: int, first: int = 0) -> Any:
        """Return arrays with a leading axis over `count` trials, on the devices.

        Args:
          rows: a tree of NumPy arrays, with a leading axis over the trials.
          count: the number of trials.
          first: the number of the submesh with the first trial.
        """
        return self._cluster.place(self._layout.lay(rows, count, first), SPLIT)

    def place_states(self, rows: list[np.ndarray], count: int, first: int = 0) -> list[jax.Array]:
        """Return states on the devices, sharded as they leave the program.

        Args:
          rows: for each leaf an array with a leading axis over the trials.
          count, first: as for `place`.
        """
        laid = self._layout.lay(rows, count, first)
        return self._cluster.place(laid, self._kernel.wave_states)

    def start(
        self, states: list[jax.Array], inputs: Inputs, count: int, first: int = 0
    ) -> tuple[list[jax.Array], Any]:
        """Start a wave; return its new states and its outputs, on the devices.

        Args:
          states: states on the devices. A kernel that returns new states consumes them.
          inputs: `trial` and `data`, placed on the devices; `start` and `length`, NumPy arrays that
            a kernel without them ignores. `args` is ignored: the sweep's args are used.
          count: the number of trials, at most the number of slots.
          first: the number of the submesh with the first trial.
        """
        layout, wanted, specs = self._layout, self._kernel.inputs, self._specs
        counts, start, length = self._cluster.place(
            (
                layout.batches_of(count, first),
                () if wanted.start == () else layout.lay(inputs.start, count, first),
                () if wanted.length == () else layout.lay_batches(inputs.length, first),
            ),
            specs,
        )
        trials = Inputs(inputs.trial, start, length, inputs.data, self._args)
        # A failed trial must not raise, even under `jax_debug_nans`, because it shares its wave.
        with jax.debug_nans(False), jax.debug_infs(False):
            return self._compiled(list(states), WaveInputs(counts, trials))

    def fetch(self, outputs: Any, count: int, first: int = 0) -> Any:
        """Wait for a wave; return its outputs, each with a leading axis over the trials."""
        slots = self._layout.slots_of(count, first)
        flat = lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])[slots]
        return jax.tree.map(lambda x: flat(self._cluster.gather(x)), outputs)


def wave_of(
    kernel: Kernel, args: Any, layout: DeviceLayout, mesh: Mesh
) -> tuple[Any, tuple[Any, ...]]:
    """Return a wave of this kernel as a jitted function, and its abstract arguments.

    Args:
      kernel: the kernel.
      args: the sweep's `args`, placed or abstract.
      layout: the assignment of trials to slots.
      mesh: the mesh of the devices, which may be described only.
    """
    size, capacity, specs = layout.batch_size, layout.capacity, wave_specs(layout)
    of_trial, split, batch = kernel.mesh, NamedSharding(mesh, SPLIT), kernel.batch(size)

    inputs = kernel.inputs._replace(args=args)
    one = inputs._replace(trial=stacked(inputs.trial, size), start=stacked(inputs.start, size))
    if of_trial is not None:  # the args are on a mesh with an axis "trial", which a kernel lacks
        one = one._replace(args=stacked(args))
    with tracing(of_trial and of_trial.wave):
        made, outputs = jax.eval_shape(batch, stacked(list(kernel.states), size), one)
    replaces = bool(made) and bool(kernel.states)

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(SPLIT, specs),
        out_specs=SPLIT,
        check_vma=False,
        **({} if of_trial is None else {"axis_names": {TRIAL}}),
    )
    def wave(states: Any, given: WaveInputs) -> Any:
        at = lambda tree, i: jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, False), tree
        )

        def body(i: Any, done: Any) -> Any:
            state = at(done[0] if replaces else states, i)
            trial, start, length = at(given.trials[:3], i)
            new = batch(state, Inputs(trial, start, length, *given.trials[3:]))
            put = lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, i, 0)
            return jax.tree.map(put, done, new)

        empty = lambda tree: jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), tree)
        begin = states if replaces else empty(made), empty(outputs)
        return jax.lax.fori_loop(0, given.count[0], body, begin)

    def on(tree: Any, specs: Any) -> Any:
        place = lambda spec, x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
        )
        return map_specs(place, specs, tree)

    rows = layout.submeshes * capacity
    counts = on(jax.ShapeDtypeStruct((layout.submeshes,), np.int32), specs.count)
    abstract = Inputs(
        trial=on(stacked(inputs.trial, rows, size), SPLIT),
        start=on(stacked(inputs.start, rows, size), SPLIT),
        length=on(stacked(inputs.length, rows), specs.trials.length),
        data=on(inputs.data, kernel.data_specs),
        args=args,
    )
    out_shardings: Any = split
    if of_trial is not None and made:
        of_states = None  # the compiler chooses
        if kernel.state_specs is not None:
            of_states = [NamedSharding(mesh, spec) for spec in kernel.wave_states]
        out_shardings = (of_states, split)
    jitted = jax.jit(
        wave,
        keep_unused=True,  # otherwise the program's text does not tell which inputs it reads
        out_shardings=out_shardings,
        donate_argnums=(0,) if replaces else (),
    )
    of_states = kernel.wave_states if kernel.states else SPLIT
    states = on(stacked(list(kernel.states), rows, size), of_states)
    return jitted, (states, WaveInputs(counts, abstract))


_CACHE: OrderedDict[Hashable, Any] = OrderedDict()
_LOCK = threading.Lock()


def clear_cache() -> None:
    """Forget the compiled programs, so that the next call compiles them."""
    with _LOCK:
        _CACHE.clear()


def _compiled(key: Hashable, lowered: Any) -> Any:
    """Return the compiled program, from this process's cache if it has the program."""
    with _LOCK:
        if key in _CACHE:
            _CACHE.move_to_end(key)
            return _CACHE[key]
    compiled = lowered.compile()
    if key is not None:
        with _LOCK:
            _CACHE[key] = compiled
            while len(_CACHE) > CACHED_PROGRAMS:
                _CACHE.popitem(last=False)
    return compiled


def _key(traced: Any, lowered: Any, cluster: Cluster) -> Hashable:
    """Return a key that two programs share if, and only if, one can replace the other.

    It is None for a program that calls back into Python, because its text does not name the called
    function.
    """
    if any(map(is_callback, equations(traced.jaxpr))):
        return None
    settings = [getattr(jax.config, name) for name in ("jax_debug_nans", "jax_debug_infs")]
    where = [(device.platform, device.id) for device in cluster.devices]
    where += [str(cluster.mesh)] if cluster.trial_mesh else []
    digest = hashlib.sha256(lowered.as_text().encode())
    # The program's text lacks the dtypes of random keys. It also lacks the names of hyperparameters
    # and metrics, which the two trees below have.
    taken = [(x.shape, str(x.dtype)) for x in jax.tree.leaves(lowered.args_info)]
    digest.update(repr((settings, where, taken)).encode())
    digest.update(hash_of_arrays(list(constants(traced.jaxpr))).encode())
    return digest.hexdigest(), lowered.in_tree, lowered.out_tree
