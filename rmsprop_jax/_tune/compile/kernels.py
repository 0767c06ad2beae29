"""What one job runs for one trial, as a pure function of arrays; and the jobs' arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from rmsprop_jax._tune.compile.compiled import Kernel, stacked
from rmsprop_jax._tune.compile.narrow_dtypes import carried, carrier, uncarried
from rmsprop_jax._tune.experiment_spec import ExperimentSpec
from rmsprop_jax._tune.space.seeds import key_of
from rmsprop_jax._tune.training.trace import Group, Traces


class GroupKernels:
    """The pieces of one structure.

    Args:
      traces: what was traced.
      plan: what is asked.
      group: which of its groups.
      batch: what `batches` gives for a step, abstract, or None.
    """

    def __init__(self, traces: Traces, plan: ExperimentSpec, group: int, batch: Any = None):
        self.traces, self.plan, self.group, self._batch = traces, plan, group, batch
        key = key_of(0)  # for its implementation, and the shape of its data
        self._impl = jax.random.key_impl(key)
        dtypes = plan.groups[group].dtypes
        numbers = {name: jax.ShapeDtypeStruct((), dtype) for name, dtype in dtypes.items()}
        self._job = numbers, jax.eval_shape(jax.random.key_data, key)
        self._number = jax.ShapeDtypeStruct((), np.int32)
        self._state = [] if traces.state is None else list(map(carrier, traces.state.data))

    @property
    def bytes(self) -> int:
        """What a call holds for one job: its state, and the metrics of the longest segment."""
        stages, traces = self.plan.stages, self.traces
        size = lambda arrays: sum(x.size * x.dtype.itemsize for x in arrays)
        if stages is None:
            return size(traces.metrics.values())
        return size(self._state) + stages.longest * size(traces.metrics.values())

    def _run(self, name: str, job, *inputs: Any) -> list[jax.Array]:
        numbers, key_data = job
        key = jax.random.wrap_key_data(key_data, impl=self._impl)
        jaxpr = self.traces.pieces[name].jaxpr
        each = zip(jax.tree.leaves((numbers, key, *inputs)), jaxpr.in_avals, strict=True)
        given = [uncarried(x, aval.dtype) for x, aval in each]
        return list(map(jnp.asarray, jaxpr_as_fun(jaxpr)(*given)))

    def each(self) -> dict[str, Kernel]:
        """What each of the programs runs, by its name among them."""
        stages = self.plan.stages
        if stages is None:
            return {"whole": self.whole()}
        evaluate = self.evaluate()
        some = {} if evaluate is None else {"evaluate": evaluate}
        return {"init": self.init(), "segment": self.segment(stages.longest)} | some

    def whole(self) -> Kernel:
        """All of a function: from numbers and key to what is kept of its metrics."""
        names = sorted(self.traces.metrics)  # as JAX flattens a dict
        kept = {name: self.plan.kept(self.group, name) for name in self.plan.every}

        def call(job, at, span, state, batches, args):
            values = zip(names, self._run("train", job, args), strict=True)
            return [], {n: x[kept[n] - 1] if n in kept else x for n, x in values}

        return Kernel(call, self._job)

    def init(self) -> Kernel:
        """From numbers and key to a state."""

        def call(job, at, span, state, batches, args):
            return list(map(carried, self._run("init", job, args))), {}

        return Kernel(call, self._job)

    def segment(self, length: int) -> Kernel:
        """From a state to that of up to `length` steps later, and their metrics. How many there
        are is data, so that one program serves all."""
        names = sorted(self.traces.metrics)
        dtypes = [self.traces.metrics[name].dtype for name in names]

        def call(job, start, count, state, batches, args):
            def body(i, carry):
                state, series = carry
                batch = jax.tree.map(
                    lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, False), batches
                )
                out = self._run("step", job, state, start + i + 1, batch, args)
                state, values = list(map(carried, out[: len(state)])), out[len(state) :]
                put = lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, i, 0)
                return state, list(map(put, series, values))

            empty = [jnp.zeros(length, dtype) for dtype in dtypes]
            state, series = jax.lax.fori_loop(0, count, body, (state, empty))
            return state, dict(zip(names, series, strict=True))

        batches, number = stacked(jax.tree.map(carrier, self._batch), length), self._number
        return Kernel(call, self._job, number, number, self._state, batches)

    def evaluate(self) -> Kernel | None:
        """From a state to the metrics of `evaluate`."""
        if "evaluate" not in self.traces.pieces:
            return None
        names = sorted(self.traces.evaluations)

        def call(job, t, span, state, batches, args):
            values = self._run("evaluate", job, state, t, args)
            return [], dict(zip(names, values, strict=True))

        return Kernel(call, self._job, self._number, state=self._state)


def jobs_of(
    plan: ExperimentSpec, group: Group, trials: np.ndarray, numbers: dict[str, np.ndarray]
) -> Any:
    """The numbers and the key data of these trials of a group, NumPy arrays.

    Args:
      plan, group: of the sweep.
      trials: places in the points × the seeds.
      numbers: for each traced hyperparameter the number of every trial of the sweep.
    """
    keys = jnp.stack([key_of(seed) for seed in plan.seeds])
    data = np.asarray(jax.random.key_data(keys))[trials % len(plan.seeds)]
    return {name: numbers[name][trials].astype(dtype) for name, dtype in group.dtypes.items()}, data
