"""Data from the host, batch by batch: each step's batch is requested once, while devices work.

The caller's function runs on the caller's thread, because JAX's settings (x64, the PRNG
implementation, transfer guards) belong to a thread. Its arrays are copied, because a loader may
write the next batch into the same buffer.
"""

import concurrent.futures
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from rmsprop_jax._tune.run.cluster import Cluster, checksum
from rmsprop_jax._tune.space.values import PyTree, refuse_dtype
from rmsprop_jax._tune.training.schedule import Schedule
from rmsprop_jax._tune.trial_mesh import after, map_specs, names_of

Source = Callable[[int], Any]


class BatchReader:
    """The batches of `batches(t)`, segment by segment, on the devices.

    Args:
      source: a function from a step, counted from 1, to a batch, a pytree of arrays.
      cluster: the processes and devices that get the batches.
      first: the step whose batch is requested at once, for its shapes.
      sharding: the sharding of each array over the axes of a trial, or of whole subtrees. None: as
        the first batch is sharded.

    Attributes:
      abstract: the first batch, with abstract arrays.
      shapes: the path, dtype, and shape of each of its arrays, as text.
      checksum: the checksum of its arrays.
      specs: the sharding of each array over the axes of a trial.

    Raises:
      ValueError: for a source that is not a function, or a batch that is not a pytree of arrays.
    """

    def __init__(self, source: Source, cluster: Cluster, first: int, sharding: PyTree = None):
        if not callable(source):
            raise ValueError(
                f"batches must be a function from a step to a batch, got {source!r}. Pass, for "
                "example, batches=lambda t: data[t]."
            )
        self._source, self._cluster = source, cluster
        self._first: tuple[int, Any, list[Any]] | None = None
        batch = source(first)
        self._asked = {first: self._checked(first, batch)}
        self.specs = self._specs(cluster.shardings_of(f"batches({first})", batch), sharding)
        shape = lambda x: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))
        self.abstract = jax.tree.map(shape, self._asked[first])
        leaves = jax.tree.leaves_with_path(self.abstract)
        self.shapes = [f"{jax.tree_util.keystr(k)}{x.dtype}{list(x.shape)}" for k, x in leaves]
        self.checksum = checksum(self._asked[first])
        # A Future as a box for a result or an exception. It is filled on this thread (`prepare`).
        self._next: tuple[tuple[int, int], concurrent.futures.Future[Any]] | None = None
        self._placed: tuple[tuple[int, int], Any] | None = None

    def _specs(self, found: PyTree, asked: PyTree) -> PyTree:
        """Return the sharding of each array: that which the call asks for, or that of the batch.

        Raises:
          ValueError: for a sharding that does not fit the batch or the mesh.
        """
        if asked is None:
            return found
        mesh, batch = self._cluster.trial_mesh, next(iter(self._asked.values()))
        if mesh is None:
            raise ValueError(
                "batch_sharding must come with a mesh that has axes of a trial, got "
                f'{asked} and a mesh with the axis "trial" only. Leave batch_sharding out.'
            )
        try:
            specs = map_specs(lambda spec, _: spec, asked, batch)
        except ValueError as error:
            raise ValueError(
                f"batch_sharding must be one PartitionSpec or a tree of them like a batch, got "
                f"{asked} for {jax.tree.structure(batch)}. Pass "
                "batch_sharding=jax.sharding.PartitionSpec(None, 'model')."
            ) from error
        for spec, x in zip(jax.tree.leaves(specs), jax.tree.leaves(batch), strict=True):
            known = isinstance(spec, PartitionSpec) and set(names_of(spec)) <= set(mesh.axes)
            if not known or len(spec) > x.ndim:
                raise ValueError(
                    f"batch_sharding must name axes of a trial, {list(mesh.axes)}, for each "
                    f"dimension of an array of shape {x.shape}, got {spec}. Pass "
                    f"batch_sharding=jax.sharding.PartitionSpec({mesh.axes[0]!r})."
                )
        return specs

    def segment(self, schedule: Schedule, start: int) -> Any:
        """Return the batches of the segment that begins after step `start`, on the devices.

        Each leaf has a leading axis over the steps, as long as the longest segment.
        """
        stop = schedule.next_stop(start)
        if self._placed is None or self._placed[0] != (start, stop):
            if self._next is not None and self._next[0] == (start, stop):
                stacked = self._next[1].result()
            else:
                stacked = self._stacked(schedule, start)
            self._cluster.refuse_different(f"batches({start + 1}) to batches({stop})", stacked)
            steps_first = jax.tree.map(lambda spec: after(spec, None), self.specs)
            self._placed = (start, stop), self._cluster.place(stacked, steps_first)
        return self._placed[1]

    def prepare(self, schedule: Schedule, start: int) -> None:
        """Request the batches of the segment that begins after step `start`.

        Call this while the devices run the segment before. An exception of the caller's function
        is raised by `segment`, so that the segment under way is recorded first.
        """
        if start >= schedule.end:
            return
        ahead = start, schedule.next_stop(start)
        if self._next is None or self._next[0] != ahead:
            outcome: concurrent.futures.Future[Any] = concurrent.futures.Future()
            try:
                outcome.set_result(self._stacked(schedule, start))
            except Exception as error:
                outcome.set_exception(error)
            self._next = ahead, outcome

    def _stacked(self, schedule: Schedule, start: int) -> Any:
        """Return the batches of a segment on the host; the last one fills up a short segment."""
        each = []
        for t in range(start + 1, schedule.next_stop(start) + 1):
            batch = self._asked.pop(t, None)
            each.append(self._checked(t, self._source(t)) if batch is None else batch)
        short = schedule.longest - len(each)
        fill = lambda *xs: np.stack([*xs, *[xs[-1]] * short])
        return jax.tree.map(fill, *each)

    def _checked(self, t: int, batch: Any) -> Any:
        """Return a batch as NumPy arrays; ValueError if its form differs from the first batch."""
        try:
            arrays = jax.tree.map(np.array, batch)  # a copy
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"batches({t}) must be a pytree of arrays, but NumPy raised: {error}. Return, for "
                'example, {"x": x, "y": y}.'
            ) from error
        if not jax.tree.leaves(arrays) or any(x.dtype == object for x in jax.tree.leaves(arrays)):
            raise ValueError(
                f"batches({t}) must be a pytree of arrays, got {batch!r}. Return, for example, "
                '{"x": x, "y": y}.'
            )
        for x in jax.tree.leaves(arrays):
            refuse_dtype(f"an array of batches({t})", x.dtype)
        kinds = [(x.shape, str(x.dtype)) for x in jax.tree.leaves(arrays)]
        self._first = self._first or (t, jax.tree.structure(arrays), kinds)
        if self._first[1:] != (jax.tree.structure(arrays), kinds):
            raise ValueError(
                f"batches({t}) must have the structure, shapes, and dtypes of "
                f"batches({self._first[0]}), {self._first[2]}, got {kinds}. Make all batches alike."
            )
        return arrays
