"""The kernels of one trial, which compiled programs run: pure functions of arrays.

A kernel is `call(states, inputs) -> (states, outputs)`. `wave_of` (compiled.py) runs it for all
trials of a wave. With D submeshes (the devices of one trial each), C batches on each (the
capacity), B trials in a batch, and a segment of at most L steps, these arrays enter and leave a
wave:

    array            shape              sharding  content
    states           (D·C, B, leaf…)    trial     each leaf of the state; donated to the new states
    count            (D,)               trial     the number of batches that the submesh runs
    inputs.trial     (D·C, B, …)        trial     the traced hyperparameters, and the key's data
    inputs.start     (D·C, B)           trial     the steps that the trial has run
    inputs.length    (D·C,)             trial     the steps that the batch runs now
    inputs.data      (L, …)             whole     the data of the steps (`batches`)
    inputs.args      (…)                whole     `args` of the sweep
    outputs          (D·C, B, L or …)   trial     the metrics

A kernel without a state or a start has an empty tree in its place.

With a mesh, a submesh has several devices. Then `states`, `inputs.data`, and `inputs.args` may also
be sharded over the axes of a trial; `count` and `inputs.length` are whole, and equal for all
submeshes (`DeviceLayout.is_lockstep`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jax.sharding import PartitionSpec

from rmsprop_jax._tune.compile.narrow_dtypes import carried, carrier, uncarried
from rmsprop_jax._tune.experiment_spec import ExperimentSpec
from rmsprop_jax._tune.space.seeds import key_of
from rmsprop_jax._tune.space.values import PyTree
from rmsprop_jax._tune.training.trace import Traces
from rmsprop_jax._tune.trial_mesh import SPLIT, TRIAL, WHOLE, Placement, TrialMesh, after


class Inputs(NamedTuple):
    """The inputs of a kernel besides the states. Each field is a tree of arrays."""

    trial: Any
    """The trial's traced hyperparameters, a dict, and the data of its key."""
    start: Any = ()
    """The steps that the trial has run."""
    length: Any = ()
    """The steps that the trial's batch runs now."""
    data: Any = None
    """The data of these steps, the same for all trials."""
    args: Any = ()
    """The sweep's `args`, the same for all trials."""


BATCHED = (0, Inputs(trial=0, start=0, length=None, data=None, args=None))
"""The axis over a batch's trials of each of a kernel's arguments; None without such an axis."""


class Kernel(NamedTuple):
    """A pure function for one trial, and its abstract arguments, except `args`."""

    call: Callable[[list[Any], Inputs], tuple[list[Any], Any]]
    """`call(states, inputs) -> (states, outputs)`. If states enter and leave, the new states
    replace the old ones on the devices."""
    inputs: Inputs
    """The abstract inputs."""
    states: tuple[Any, ...] = ()
    """The abstract leaves of the state; empty for a kernel that reads no state."""
    mesh: TrialMesh | None = None
    """The mesh of the trials; None for trials on one device each."""
    state_specs: tuple[PartitionSpec, ...] | None = None
    """The sharding over the axes of a trial of each leaf of the state, both of those that enter and
    of those that leave. None: the compiler chooses the sharding of the states that leave."""
    loops: int = 1
    """The number of loops around a user's function in a wave: over batches, and over steps."""
    data_specs: PyTree = WHOLE
    """The sharding of each leaf of the data."""
    exported: dict[str, int] | None = None
    """For a kernel from `compile/exported.py`, whose `call` runs a whole batch: the calls that
    `xla_deadlock.blocking_calls` cannot see in it. None for any other kernel."""

    def batch(self, size: int) -> Callable[[list[Any], Inputs], tuple[list[Any], Any]]:
        """Return the function that runs a batch of `size` trials.

        A single trial runs without `vmap`, so that its numbers are bit for bit those of `jax.jit`.
        """
        if self.exported is not None:
            return self.call
        if size > 1:
            return jax.vmap(self.call, BATCHED)

        def call(states: list[Any], inputs: Inputs) -> tuple[list[Any], Any]:
            only = lambda tree: jax.tree.map(lambda x: x[0], tree)
            own = inputs._replace(trial=only(inputs.trial), start=only(inputs.start))
            return jax.tree.map(lambda x: x[None], self.call(only(states), own))

        return call

    @property
    def wave_states(self) -> PyTree:
        """The sharding of the states in a wave, with the axis "trial"."""
        if self.state_specs is None:
            return SPLIT
        return [after(spec, TRIAL, None) for spec in self.state_specs]


class GroupKernels:
    """The kernels of one static group.

    Args:
      traces: the group's traced functions.
      spec: the experiment.
      group: the number of the group.
      data: the abstract batch of one step; None without `batches`.
      placement: the mesh, and the shardings of what all trials share.
    """

    def __init__(
        self,
        traces: Traces,
        spec: ExperimentSpec,
        group: int,
        data: Any = None,
        placement: Placement = Placement(),  # noqa: B008 (it is immutable)
    ):
        self.traces, self.spec, self.group, self._data = traces, spec, group, data
        self.mesh, self._data_specs = placement.mesh, placement.batch
        self._impl = jax.random.key_impl(key_of(0))
        numbers = {n: jax.ShapeDtypeStruct((), d) for n, d in spec.groups[group].dtypes.items()}
        self._trial = numbers, jax.eval_shape(jax.random.key_data, key_of(0))
        self._number = jax.ShapeDtypeStruct((), np.int32)
        self._states: tuple[Any, ...] = ()
        self._state_specs: tuple[PartitionSpec, ...] | None = None
        if traces.state is not None:
            self._states = tuple(map(carrier, traces.state.data))
            self._state_specs = traces.state.shardings

    @property
    def bytes(self) -> int:
        """The bytes of one trial in a wave, on each of its devices: its state, and the metrics of
        the longest segment."""
        state, metrics = self.traces.state, self.traces.metrics.values()
        of_step = sum(x.size * x.dtype.itemsize for x in metrics)
        return (state.device_bytes if state else 0) + self.spec.schedule.longest * of_step

    def each(self) -> dict[str, Kernel]:
        """Return the kernels that run, by their names in `GroupPrograms`."""
        return self.spec.schedule.kernels(self)

    def _run(self, name: str, trial: Any, *inputs: Any) -> list[jax.Array]:
        """Run a traced function, "train", "init", "step", or "evaluate"."""
        numbers, key_data = trial
        key = jax.random.wrap_key_data(key_data, impl=self._impl)
        jaxpr = self.traces.pieces[name].jaxpr
        each = zip(jax.tree.leaves((numbers, key, *inputs)), jaxpr.in_avals, strict=True)
        given = [uncarried(x, aval.dtype) for x, aval in each]
        call: Any = jaxpr_as_fun(jaxpr)
        if self.mesh is not None and self.mesh.explicit:
            # A wave is automatic, because jax 0.10 gathers explicit arrays that leave a shard_map.
            shardings = tuple(aval.sharding.spec for aval in jaxpr.in_avals)
            call = jax.sharding.explicit_axes(call, axes=self.mesh.explicit, in_sharding=shardings)
        return list(map(jnp.asarray, call(*given)))

    def whole_run(self) -> Kernel:
        """Return the kernel of a function, whose outputs are the recorded values of its metrics."""
        names = sorted(self.traces.metrics)  # as JAX flattens a dict
        recorded = {}
        for name in self.spec.record_every:
            count = self.spec.count_recorded(self.group, name, self.spec.schedule.end)
            recorded[name] = self.spec.recorded_steps[name][:count] - 1

        def call(states: list[Any], inputs: Inputs) -> tuple[list[Any], Any]:
            values = zip(names, self._run("train", inputs.trial, inputs.args), strict=True)
            return [], {n: x[recorded[n]] if n in recorded else x for n, x in values}

        return Kernel(call, Inputs(self._trial), mesh=self.mesh)

    def init(self) -> Kernel:
        """Return the kernel that makes a state."""

        def call(states: list[Any], inputs: Inputs) -> tuple[list[Any], Any]:
            return list(map(carried, self._run("init", inputs.trial, inputs.args))), {}

        return Kernel(call, Inputs(self._trial), (), self.mesh, self._state_specs)

    def segment(self, length: int) -> Kernel:
        """Return the kernel of a segment of at most `length` steps.

        It returns the state after the segment, and the metrics of its steps. The number of steps is
        an input, so that one program serves every segment.
        """
        names = sorted(self.traces.metrics)
        dtypes = [self.traces.metrics[name].dtype for name in names]

        def call(states: list[Any], inputs: Inputs) -> tuple[list[Any], Any]:
            def body(i: Any, carry: Any) -> Any:
                state, series = carry
                at = lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, False)
                t, data = inputs.start + i + 1, jax.tree.map(at, inputs.data)
                out = self._run("step", inputs.trial, state, t, data, inputs.args)
                state, values = list(map(carried, out[: len(state)])), out[len(state) :]
                put = lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, i, 0)
                return state, list(map(put, series, values))

            empty = [jnp.zeros(length, dtype) for dtype in dtypes]
            state, series = jax.lax.fori_loop(0, inputs.length, body, (states, empty))
            return state, dict(zip(names, series, strict=True))

        data = stacked(jax.tree.map(carrier, self._data), length)
        inputs = Inputs(self._trial, self._number, self._number, data)
        specs = jax.tree.map(lambda spec: after(spec, None), self._data_specs)
        return Kernel(call, inputs, self._states, self.mesh, self._state_specs, 2, specs)

    def evaluate(self) -> Kernel | None:
        """Return the kernel of `evaluate`, whose outputs are its metrics; None without it."""
        if "evaluate" not in self.traces.pieces:
            return None
        names = sorted(self.traces.evaluations)

        def call(states: list[Any], inputs: Inputs) -> tuple[list[Any], Any]:
            values = self._run("evaluate", inputs.trial, states, inputs.start, inputs.args)
            return [], dict(zip(names, values, strict=True))

        inputs = Inputs(self._trial, self._number)
        return Kernel(call, inputs, self._states, self.mesh, self._state_specs)


def stacked(tree: Any, *n: int) -> Any:
    """Return abstract arrays with leading axes of these lengths."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*n, *x.shape), x.dtype), tree)
