"""The compiled program of a group: rounds of its trials, on every device."""

import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jax.sharding import PartitionSpec

from rmsprop_jax._sweep.deadlock import refuse_deadlock
from rmsprop_jax._sweep.points import Points
from rmsprop_jax._sweep.processes import Processes
from rmsprop_jax._sweep.tracing import Group, TracedTrain


def kept_steps(steps: int, every: int) -> np.ndarray:
    """Which of `steps` steps are kept, counted from 1: each `every`-th, and the last."""
    return np.union1d(np.arange(every, steps + 1, every), [steps])


class Program:
    """The compiled program of one group: it runs rounds of trials on every device.

    Each device runs `batches` batches one after the other, each of `batch_size` trials under one
    `vmap`. With a `batch_size` of 1 `train` runs as it is, and a trial's numbers are bit for bit
    those of `jax.jit(train)`.

    Args:
      train, group: what `trace` and `group_points` gave.
      points, seeds: of the sweep.
      args: placed on the devices.
      processes: where to run.
      batch_size, batches: at least 1.
      every: of a metric with one value a step, keep each `every`-th and the last.

    Attributes:
      batch_size: as given.
      round_size: how many trials a round has room for.
      compile_seconds: what lowering and compiling took.
      memory: bytes that two rounds in flight need on each device, besides `args`.
    """

    def __init__(
        self,
        train: TracedTrain,
        group: Group,
        points: Points,
        seeds: Sequence[int],
        args: Any,
        processes: Processes,
        *,
        batch_size: int = 1,
        batches: int = 1,
        every: int = 1,
    ):
        start = time.perf_counter()
        self.round_size = processes.mesh.size * batches * batch_size
        self.batch_size, self._processes, self._args = batch_size, processes, args
        self._columns = {
            name: np.asarray([points[i][name] for i in group.indices], dtype)
            for name, dtype in group.dtypes.items()
        }
        keys = jnp.stack([jax.random.key(seed) for seed in seeds])
        self._key_data, impl = np.asarray(jax.random.key_data(keys)), jax.random.key_impl(keys)
        run = jaxpr_as_fun(train.traced.jaxpr)
        names = sorted(train.metrics)  # as JAX flattens a dict

        def one_trial(trial, args):
            numbers, key_data = trial
            key = jax.random.wrap_key_data(key_data, impl=impl)
            values = map(jnp.asarray, run(*jax.tree.leaves((numbers, key, args))))
            metrics = dict(zip(names, values, strict=True))
            if every == 1:
                return metrics
            kept = lambda x: x[kept_steps(len(x), every) - 1] if x.ndim else x
            return jax.tree.map(kept, metrics)

        def one_batch(trials, args):
            if batch_size == 1:
                only = jax.tree.map(lambda x: x[0], trials)
                return jax.tree.map(lambda x: x[None], one_trial(only, args))
            return jax.vmap(one_trial, (0, None))(trials, args)

        @functools.partial(
            jax.shard_map,
            mesh=processes.mesh,
            in_specs=(PartitionSpec("trial"), PartitionSpec()),
            out_specs=PartitionSpec("trial"),
            check_vma=False,
        )
        def one_round(trials: Any, args: Any) -> Any:
            if batches == 1:
                return one_batch(trials, args)
            cut = lambda x: x.reshape(batches, batch_size, *x.shape[1:])
            join = lambda x: x.reshape(batches * batch_size, *x.shape[2:])
            out = jax.lax.map(lambda batch: one_batch(batch, args), jax.tree.map(cut, trials))
            return jax.tree.map(join, out)

        nothing = np.zeros(1, int)
        traced = jax.jit(one_round).trace(self._inputs(nothing, nothing), args)
        refuse_deadlock(traced.jaxpr, processes.mesh.devices.tolist())
        self._compiled = traced.lower().compile()
        analysis = self._compiled.memory_analysis()
        self.memory = 0
        if analysis is not None:
            self.memory = analysis.temp_size_in_bytes + 2 * analysis.output_size_in_bytes
        self.compile_seconds = time.perf_counter() - start

    def _inputs(self, rows: np.ndarray, seeds: np.ndarray):
        pad = (0, self.round_size - len(rows))
        rows, seeds = np.pad(rows, pad, "edge"), np.pad(seeds, pad, "edge")
        numbers = {name: column[rows] for name, column in self._columns.items()}
        return self._processes.place((numbers, self._key_data[seeds]), "trial")

    def start(self, rows: np.ndarray, seeds: np.ndarray) -> dict[str, jax.Array]:
        """Start a round of up to `round_size` trials: its metrics, on the devices, for `fetch`.

        Args:
          rows: int array, the place of each trial's point in the group.
          seeds: int array, the place of each trial's seed in the seeds.
        """
        return self._compiled(self._inputs(rows, seeds), self._args)

    def fetch(self, metrics: dict[str, jax.Array], trials: int) -> dict[str, np.ndarray]:
        """Wait for a round: the metrics of its trials, each with a leading axis over them."""
        return {name: self._processes.gather(x)[:trials] for name, x in metrics.items()}
