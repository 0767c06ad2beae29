"""The processes that a sweep spans: what they agree on, what they place and gather.

A process waits for others in one way only: all of them *meet*. Each says where in the program it
is, and the leader lets all go on together once all have said so. While a process waits it looks,
twice a second, whether another has left the call by an exception; then it raises, too. So no
process waits for one that will not come, and a signal is heard at once.
"""

import atexit
import concurrent.futures
import contextlib
import functools
import itertools
import json
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rmsprop_jax._tune.compile.narrow_dtypes import carried, carrier
from rmsprop_jax._tune.run import jax_coordination as coordination

T = TypeVar("T")

MEMORY_SHARE = 0.9  # of a device's free memory: allocators lose some of it in gaps
GRACE = 3.0  # seconds for what has begun, once another process has left
LATE = 0.5  # seconds for which the leader's answer may be on its way
POLL = 0.5  # seconds between two looks at whether another process has left
PATIENCE = 60.0  # seconds for which a process that left still takes part in what has begun

LONGEST_ERROR = 2_000  # characters of an exception that the other processes quote

LEFT, MEETINGS = "rmsprop_jax/left/", "rmsprop_jax/meetings/"  # keys of the coordination service
STOP = "stop"

_calls = itertools.count()  # all processes make the same calls that span them


class OtherProcessError(RuntimeError):
    """Another process left the call, so that this one must leave it, too."""


class Cluster:
    """The processes whose devices these are: this one alone, or all of a JAX cluster.

    Args:
      devices: of this process only, or some of every process.

    Attributes:
      is_leader: whether this process is the leader, which writes, draws, and decides.
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
        self.is_leader = self.count == 1 or jax.process_index() == 0
        self.mesh = Mesh(np.asarray(devices), ("trial",))

    @contextlib.contextmanager
    def together(self, name: str) -> Iterator[None]:
        """A call that every process makes: each comes to its end, or each raises.

        Args:
          name: of the function, for errors.
        """
        if self.count == 1:
            yield
            return
        if not coordination.is_connected():
            raise RuntimeError(
                f"{name} on the devices of {self.count} processes needs JAX's coordination "
                "service. Call jax.distributed.initialize() before JAX is first used."
            )
        self._name, self._call, self._meetings = name, next(_calls), itertools.count()
        self._taking_part: threading.Thread | None = None
        self._has_begun = False
        try:
            yield
            self.meet("the end")
        except BaseException as error:
            self._leave(error)
            raise

    def _leave(self, error: BaseException) -> None:
        """Tell the others, unless they told this process; then do what they count on."""
        if not isinstance(error, OtherProcessError):
            with contextlib.suppress(Exception):  # there is an error already
                text = f"{type(error).__name__}: {error}"[:LONGEST_ERROR]
                text = text.encode(errors="backslashreplace").decode()  # half a surrogate pair
                coordination.write(f"{LEFT}{self._call}/{jax.process_index()}", text)
        if self._taking_part is not None:
            self._taking_part.join(GRACE)
            if self._has_begun and not isinstance(error, OtherProcessError):
                self._taking_part.join(PATIENCE)

    def _why_over(self) -> str | None:
        """What made a process leave this call, or end before it came to it."""
        left = coordination.listed(LEFT)
        for i in range(jax.process_count()):
            if (text := left.get(f"{LEFT}{self._call}/{i}")) is not None:
                return (
                    f"process {i} left {self._name} with {text}\nIts own traceback says where. "
                    "Make the same call in every process again."
                )
        for i in range(jax.process_count()):
            if f"{LEFT}ended/{i}" in left:
                return (
                    f"process {i} ended, and {self._name} needs every process. Make the same calls "
                    "in each, or sweep apart with devices=jax.local_devices()."
                )
        return None

    def meet(self, where: str, value: Any = None, then: Callable[[], Any] | None = None) -> Any:
        """Wait until every process is here.

        Args:
          where: the same text in each process, since each is at the same place of its program.
          value: to be told to all; anything that JSON holds.
          then: called in each process once all are here, in a thread of its own: the threads of
            all processes call it, or none does, whatever signal comes meanwhile. Without JAX's
            thread-local settings.

        Returns:
          What `then` gives; without it the list of every process' value.
        """
        folder = f"{MEETINGS}{self._call}/{next(self._meetings)}/"
        outcome: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def take_part():
            try:
                each = self._all_here(folder, json.dumps([where, value]))
                places = [place for place, _ in each]
                if len(set(places)) > 1:
                    raise RuntimeError(
                        f"the processes went different ways in {self._name}: process by process "
                        f"they are at {places}. Make the same call, with the same data, in each."
                    )
                outcome.set_result(then() if then else [value for _, value in each])
            except BaseException as error:
                outcome.set_exception(error)

        # A daemon, so that it does not hold up the end of a process that left.
        self._has_begun = False
        self._taking_part = threading.Thread(target=take_part, daemon=True)
        self._taking_part.start()
        while not concurrent.futures.wait([outcome], POLL).done:
            # In the middle of `then`: the other may have failed in it, or have come to its end.
            why = self._why_over() if self._has_begun else None
            if why and not concurrent.futures.wait([outcome], GRACE).done:
                raise OtherProcessError(why)
        return outcome.result()

    def _all_here(self, folder: str, mine: str) -> list[Any]:
        """What each process said, once all have; OtherProcessError where one left before."""
        if self.is_leader:
            said, why = [mine], None
            while len(said) < self.count and not why:
                text = coordination.read(f"{folder}{len(said)}", POLL)
                if text is None:
                    why = self._why_over()
                else:
                    said.append(text)
            why = why or self._why_over()
            self._has_begun = not why
            coordination.write(f"{folder}all", STOP if why else json.dumps(said))
            if why:
                raise OtherProcessError(why)
            self._delete_older(folder)
            return list(map(json.loads, said))
        coordination.write(f"{folder}{jax.process_index()}", mine)
        answer, why = None, None
        while answer is None and why is None:
            answer = coordination.read(f"{folder}all", POLL)
            why = self._why_over() if answer is None else None
        # The leader may have written it just before the other left.
        answer = answer or coordination.read(f"{folder}all", LATE) or STOP
        if answer == STOP:
            raise OtherProcessError(why or self._why_over())
        self._has_begun = True
        return [json.loads(text) for text in json.loads(answer)]

    def _delete_older(self, folder: str) -> None:
        """Delete the meeting before, or those of the call before: everybody has left them."""
        number = int(folder.split("/")[-2])
        if number:
            coordination.delete(f"{MEETINGS}{self._call}/{number - 1}/")
        elif self._call:
            coordination.delete(f"{MEETINGS}{self._call - 1}/")

    def tell(self, what: str, value: Any) -> Any:
        """The leader's value, as it comes back from JSON, on every process.

        Args:
          what: it is, in words.
          value: of the leader; those of the others do not count.
        """
        if self.count == 1:
            return json.loads(json.dumps(value))
        return self.meet(what, value if self.is_leader else None)[0]

    def refuse_different(self, what: str, tree: Any) -> None:
        """ValueError, on all, where the processes do not have the same arrays."""
        if self.count == 1:
            return
        each = self.meet(what, checksum(tree))
        if unlike := [i for i, one in enumerate(each) if one != each[0]]:
            raise ValueError(
                f"{what} must return the same arrays on every process, got others on process "
                f"{unlike[0]} than on process 0. Make it a function of the step alone: seed a "
                "generator with the step, numpy.random.default_rng(t)."
            )

    def free_memory(self) -> float | None:
        """Bytes to be used on the fullest device; None where it is not known, as on a CPU."""
        memory = free_memory(self.mesh.devices.tolist())
        if self.count == 1:
            return memory
        each = self.meet("free memory", memory)
        return None if None in each else min(each)

    def on_leader(self, call: Callable[[], T]) -> T | None:
        """Call on the leader only. Where that raises the leader leaves, and the others hear it."""
        return call() if self.is_leader else None

    def from_leader(self, array: np.ndarray) -> np.ndarray:
        """The leader's array, bit for bit; the others give one of its shape and dtype."""
        if self.count == 1 or array.size == 0:
            return array
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        devices = self.mesh.devices.tolist()
        source = [device.process_index for device in devices].index(0)
        rows = lambda index: data[None] if index[0].start == source else np.zeros_like(data)[None]
        split = NamedSharding(self.mesh, PartitionSpec("trial"))
        x = jax.make_array_from_callback((len(devices), len(data)), split, rows)
        whole = self._whole(f"what the leader has, {array.dtype}{array.shape}", x, is_sum=True)
        return whole.view(array.dtype).reshape(array.shape)

    def gather(self, x: jax.Array) -> np.ndarray:
        """All of an array that is cut along the first axis."""
        if self.count == 1:
            return np.asarray(x)
        if x.size == 0:
            return np.zeros(x.shape, x.dtype)
        return self._whole(f"what all have, {x.dtype}{x.shape}", x, is_sum=False)

    def _whole(self, where: str, x: jax.Array, is_sum: bool) -> np.ndarray:
        """An array, or its sum over the first axis, brought to every process."""
        bring = _bring(self.mesh, x.shape, x.dtype, x.sharding, is_sum)

        def run():
            with jax.debug_nans(False), jax.debug_infs(False):
                return bring(x).block_until_ready()

        return np.asarray(self.meet(where, then=run).addressable_data(0))

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


class DescribedDevices(Cluster):
    """Devices that are described rather than there: programs are made and compiled for them, and
    run nowhere.

    Args:
      devices: of `jax.experimental.topologies.get_topology_desc`, say.
      memory: free bytes on each; None where they are not known.
    """

    def __init__(self, devices: Sequence[Any], memory: float | None = None):
        self.count, self.is_leader = 1, True
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


@functools.lru_cache(256)
def _bring(mesh: Mesh, shape: tuple[int, ...], dtype: Any, sharding: Any, is_sum: bool) -> Any:
    """The compiled program of `Processes._whole`: a thread may run it under any settings."""
    run = lambda x: x.sum(0, dtype=x.dtype) if is_sum else x
    whole = jax.jit(run, out_shardings=NamedSharding(mesh, PartitionSpec()))
    return whole.lower(jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)).compile()


@atexit.register
def _say_that_this_process_ends() -> None:
    """The others may wait for it in a call that it never makes."""
    if coordination.is_connected():
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 is gone already
            coordination.write(f"{LEFT}ended/{jax.process_index()}", "")


def checksum(tree: Any) -> int:
    """Equal for trees of arrays with equal bytes."""
    crc = 0
    for x in jax.tree.leaves(tree):
        crc = zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data, crc)
    return crc


def free_memory(devices: Sequence[Any]) -> float | None:
    """Bytes to be used on the fullest of this process' devices; None where it is not known."""
    mine = [device for device in devices if device.process_index == jax.process_index()]
    stats = [device.memory_stats() for device in mine]
    if not all(stats):
        return None
    return MEMORY_SHARE * min(s["bytes_limit"] - s["bytes_in_use"] for s in stats)
