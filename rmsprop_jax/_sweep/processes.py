"""The processes that a sweep spans: what they agree on, what they place and gather."""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rmsprop_jax._sweep.carriers import carried, carrier

T = TypeVar("T")

MEMORY_SHARE = 0.9  # of a device's free memory: allocators lose some of it in gaps


class Processes:
    """The processes whose devices these are: this one alone, or all of a JAX cluster.

    Args:
      devices: of this process only, or some of every process.

    Attributes:
      first: whether this process writes and draws.
      count: of the processes.
    """

    def __init__(self, devices: Sequence[Any]):
        indices = {device.process_index for device in devices}
        if indices != {jax.process_index()} and len(indices) != jax.process_count():
            raise ValueError(
                f"devices are of the processes {sorted(indices)}, of {jax.process_count()}: give "
                "those of this process, jax.local_devices(), or some of every process."
            )
        self.count = len(indices)
        self.first = self.count == 1 or jax.process_index() == 0
        self.mesh = Mesh(np.asarray(devices), ("trial",))

    def from_first(self, array: np.ndarray) -> np.ndarray:
        """The first process' array, bit for bit; the others give one of its shape and dtype."""
        if self.count == 1 or array.size == 0:
            return array
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        data = multihost_utils.broadcast_one_to_all(data)
        return np.asarray(data).view(array.dtype).reshape(array.shape)

    def tell(self, text: str) -> str:
        """The first process' text; the others give any."""
        if self.count == 1:
            return text
        data = np.frombuffer(text.encode(), np.uint8)
        size = int(self.from_first(np.asarray(len(data))))
        return self.from_first(data if self.first else np.zeros(size, np.uint8)).tobytes().decode()

    def tell_json(self, value: Any) -> Any:
        """What the first process has, as it comes back from JSON."""
        return json.loads(self.tell(json.dumps(value) if self.first else ""))

    def free_memory(self) -> float | None:
        """Bytes to be used on the fullest device; None where it is not known, as on a CPU."""
        memory = free_memory(self.mesh.devices.tolist())
        if self.count == 1 or memory is None:
            return memory
        return float(np.min(multihost_utils.process_allgather(np.float32(memory))))

    def on_first(self, call: Callable[[], T]) -> T | None:
        """Call on the first process only; where that raises, every process does."""
        result, error = None, None
        if self.first:
            try:
                result = call()
            except Exception as raised:
                error = raised
        failed = self.from_first(np.asarray(error is not None))
        if error:
            raise error
        if failed:
            raise RuntimeError("process 0 refused to go on; its own error says why.")
        return result

    def on_each(self, call: Callable[[], T]) -> T:
        """Call on every process; where that raises on one, every process does."""
        if self.count == 1:
            return call()
        results, error = [], None
        try:
            results.append(call())
        except Exception as raised:
            error = raised
        failed = multihost_utils.process_allgather(np.asarray(error is not None))
        if error:
            raise error
        if failed.any():
            raise RuntimeError(
                f"process {failed.argmax()} refused to go on; its own error says why."
            )
        return results[0]

    def refuse_different(self, what: str, digest: Callable[[], int]) -> None:
        """ValueError where the processes do not have the same."""
        if self.count > 1:
            digests = multihost_utils.process_allgather(np.uint32(digest()))
            if len(set(digests.tolist())) > 1:
                raise ValueError(
                    f"the processes called sweep with different {what}: call it alike in each."
                )

    def place(self, tree: Any, *axes: str) -> Any:
        """Arrays on the devices: cut along the first axis for `"trial"`, else whole on each."""
        sharding = NamedSharding(self.mesh, PartitionSpec(*axes))
        tree = jax.tree.map(carried, tree)
        if self.count == 1:
            return jax.device_put(tree, sharding)

        def leaf(x):
            x = jnp.asarray(x)
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                data, impl = leaf(jax.random.key_data(x)), jax.random.key_impl(x)
                return jax.random.wrap_key_data(data, impl=impl)
            host = np.asarray(x)
            return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)

        return jax.tree.map(leaf, tree)

    def gather(self, x: jax.Array) -> np.ndarray:
        """All of an array that is cut along the first axis."""
        if self.count == 1:
            return np.asarray(x)
        return multihost_utils.process_allgather(x, tiled=True)


class Described(Processes):
    """Devices that are described rather than there: programs are made and compiled for them, and
    run nowhere.

    Args:
      devices: of `jax.experimental.topologies.get_topology_desc`, say.
      memory: free bytes on each; None where they are not known.
    """

    def __init__(self, devices: Sequence[Any], memory: float | None = None):
        self.count, self.first = 1, True
        self.mesh = Mesh(np.asarray(devices), ("trial",))
        self._memory = memory

    def free_memory(self) -> float | None:
        """Bytes to be used on each device."""
        return None if self._memory is None else MEMORY_SHARE * self._memory

    def place(self, tree: Any, *axes: str) -> Any:
        """The arrays as abstract ones that lie there as `Processes.place` would lay them."""
        sharding = NamedSharding(self.mesh, PartitionSpec(*axes))
        lay = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        abstract = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree))
        return jax.tree.map(lay, jax.tree.map(carrier, abstract))


def free_memory(devices: Sequence[Any]) -> float | None:
    """Bytes to be used on the fullest of this process' devices; None where it is not known."""
    mine = [device for device in devices if device.process_index == jax.process_index()]
    stats = [device.memory_stats() for device in mine]
    if not all(stats):
        return None
    return MEMORY_SHARE * min(s["bytes_limit"] - s["bytes_in_use"] for s in stats)
