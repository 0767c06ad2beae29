"""The processes that a sweep spans: how they wait for each other, agree, and exchange arrays.

Processes wait for each other in one way only: all of them *meet*. Each process reports its place in
the program. Once all have reported, the leader lets them continue together. While a process waits,
it checks twice a second whether another process has left the call by an exception, and then raises
as well. No process waits for one that will not come, and a signal is handled at once.
"""

import atexit
import concurrent.futures
import contextlib
import functools
import itertools
import json
import threading
import zlib
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from rmsprop_jax._tune.compile.narrow_dtypes import carried, carrier
from rmsprop_jax._tune.run import jax_coordination as coordination
from rmsprop_jax._tune.run.machine import MEMORY_SHARE, Device, Machine
from rmsprop_jax._tune.space.values import Json, PyTree
from rmsprop_jax._tune.trial_mesh import TRIAL, WHOLE, TrialMesh, map_specs, sharding_of

T = TypeVar("T")
GRACE = 3.0  # seconds for a meeting that began to end, after another process has left
LATE = 0.5  # seconds that the leader's answer may need to arrive
POLL = 0.5  # seconds between two checks whether another process has left
PATIENCE = 60.0  # seconds for which a process that left still takes part in a meeting that began

LONGEST_ERROR = 2_000  # characters of an exception that the other processes quote

LEFT, MEETINGS = "rmsprop_jax/left/", "rmsprop_jax/meetings/"  # keys of the coordination service
STOP = "stop"

_calls = itertools.count()  # equal in all processes, which make the same calls in the same order


class OtherProcessError(RuntimeError):
    """The error of a process that must leave the call because another process left it."""


class Cluster:
    """The processes that own some devices: this process alone, or all of a JAX cluster.

    Args:
      devices: devices of this process only, or of every process; or a mesh of them, with an axis
        "trial".
      machine: the clock and the memory that the call uses.

    Attributes:
      is_leader: whether this process is the leader, which writes, draws, and decides.
      count: the number of processes.
      devices: the devices.
      mesh: the devices on an axis "trial", and on the axes of a trial if it has several devices.
      trial_mesh: the same mesh if a trial has axes of its own; otherwise None.
      submeshes: the number of submeshes, on each of which one batch of trials runs at a time. A
        submesh is the devices of one trial.

    Raises:
      ValueError: for devices of some processes, but not all; or for a trial that shares a process
        with others and has devices of several.
    """

    def __init__(self, devices: Sequence[Device] | Mesh, machine: Machine | None = None):
        self._lay_out(devices)
        indices = {device.process_index for device in self.devices}
        if indices != {jax.process_index()} and len(indices) != jax.process_count():
            raise ValueError(
                "devices must be of this process only or of every process, got devices of the "
                f"processes {sorted(indices)} of {jax.process_count()}. Pass "
                "devices=jax.local_devices(), or some devices of every process."
            )
        self.count = len(indices)
        self.is_leader = self.count == 1 or jax.process_index() == 0
        self.machine = machine or Machine()
        self._refuse_mixed_submeshes()

    def _lay_out(self, devices: Sequence[Device] | Mesh) -> None:
        """Set the attributes that describe the devices."""
        is_mesh = isinstance(devices, Mesh)
        self.devices: list[Device] = devices.devices.flatten().tolist() if is_mesh else [*devices]
        self._line = Mesh(np.asarray(self.devices), (TRIAL,))  # for arrays of the whole sweep
        self.mesh, self.trial_mesh = self._line, None
        if is_mesh and len(devices.axis_names) > 1:
            self.trial_mesh = TrialMesh(devices)
            self.mesh = self.trial_mesh.mesh
        self.submeshes = self.mesh.shape[TRIAL]

    def _refuse_mixed_submeshes(self) -> None:
        """Raise ValueError if a trial has devices of several processes, but not all of theirs."""
        processes = [device.process_index for device in self.devices]
        for devices in self.trial_mesh.submeshes() if self.trial_mesh else ():
            here = [device.process_index for device in devices.flat]
            if len(set(here)) > 1 and any(here.count(i) < processes.count(i) for i in here):
                raise ValueError(
                    "mesh must give a trial devices of one process, or all devices of several, got "
                    f"a trial on devices of the processes {here}. Order the devices by process: "
                    "Mesh(np.array(jax.devices()).reshape(...), ('trial', ...))."
                )

    @contextlib.contextmanager
    def together(self, name: str) -> Generator[None]:
        """Run a call that every process makes: all processes finish it, or all raise.

        Args:
          name: the name of the called function, for errors.

        Raises:
          RuntimeError: if the processes are not in a JAX cluster.
          OtherProcessError: if another process left the call.
        """
        if self.count == 1:
            yield
            return
        if not coordination.is_connected():
            raise RuntimeError(
                f"{name} on the devices of {self.count} processes must have JAX's coordination "
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
        """Tell the other processes about an error, and finish the meeting that has begun."""
        if not isinstance(error, OtherProcessError):
            with contextlib.suppress(Exception):  # the first error counts
                text = f"{type(error).__name__}: {error}"[:LONGEST_ERROR]
                text = text.encode(errors="backslashreplace").decode()  # half a surrogate pair
                coordination.write(f"{LEFT}{self._call}/{jax.process_index()}", text)
        if self._taking_part is not None:
            self._taking_part.join(GRACE)
            if self._has_begun and not isinstance(error, OtherProcessError):
                self._taking_part.join(PATIENCE)

    def _why_over(self) -> str | None:
        """Return why another process left this call or never came to it; None if none did."""
        left = coordination.listed(LEFT)
        for i in range(jax.process_count()):
            if (text := left.get(f"{LEFT}{self._call}/{i}")) is not None:
                return (
                    f"process {i} left {self._name} with {text}\nIts own traceback shows the line. "
                    "Make the same call in every process again."
                )
        for i in range(jax.process_count()):
            if f"{LEFT}ended/{i}" in left:
                return (
                    f"process {i} ended, and {self._name} needs every process. Make the same calls "
                    "in each, or sweep separately with devices=jax.local_devices()."
                )
        return None

    @overload
    def meet(self, where: str, value: Json = None) -> list[Json]: ...
    @overload
    def meet(self, where: str, value: Json = None, *, then: Callable[[], T]) -> T: ...
    def meet(
        self, where: str, value: Json = None, then: Callable[[], T] | None = None
    ) -> list[Json] | T:
        """Wait until every process has reached this place in the program.

        Args:
          where: the place in the program, the same text in each process.
          value: the value that this process tells all others, anything that JSON holds.
          then: a function to call in each process after all have reached this place. It runs in a
            separate thread, without JAX's thread-local settings. Either all processes call it or
            none does, whatever signal arrives meanwhile.

        Returns:
          The result of `then`. Without `then`, the list of every process's value.

        Raises:
          RuntimeError: if the processes are at different places.
          OtherProcessError: if another process left the call.
        """
        folder = f"{MEETINGS}{self._call}/{next(self._meetings)}/"
        outcome: concurrent.futures.Future[list[Json] | T] = concurrent.futures.Future()

        def take_part() -> None:
            try:
                reports = self._reports(folder, json.dumps([where, value]))
                places = [place for place, _ in reports]
                if len(set(places)) > 1:
                    raise RuntimeError(
                        f"the processes must take the same path through {self._name}, got the "
                        f"places {places}, process by process. Make the same call, with the same "
                        "data, in each."
                    )
                outcome.set_result(then() if then else [value for _, value in reports])
            except BaseException as error:
                outcome.set_exception(error)

        # A daemon thread does not delay the exit of a process that left.
        self._has_begun = False
        self._taking_part = threading.Thread(target=take_part, daemon=True)
        self._taking_part.start()
        while not concurrent.futures.wait([outcome], POLL).done:
            # During `then`, another process may have failed in it, or may have finished the call.
            why = self._why_over() if self._has_begun else None
            if why and not concurrent.futures.wait([outcome], GRACE).done:
                raise OtherProcessError(why)
        return outcome.result()

    def _reports(self, folder: str, report: str) -> list[Json]:
        """Send this process's report, wait for all others, and return them by process.

        Args:
          folder: the meeting's keys.
          report: the report of this process, JSON.

        Raises:
          OtherProcessError: if another process left before.
        """
        if self.is_leader:
            texts, why = [report], None
            while len(texts) < self.count and not why:
                text = coordination.read(f"{folder}{len(texts)}", POLL)
                if text is None:
                    why = self._why_over()
                else:
                    texts.append(text)
            why = why or self._why_over()
            self._has_begun = not why
            coordination.write(f"{folder}all", STOP if why else json.dumps(texts))
            if why:
                raise OtherProcessError(why)
            self._delete_older(folder)
            return list(map(json.loads, texts))
        coordination.write(f"{folder}{jax.process_index()}", report)
        answer, why = None, None
        while answer is None and why is None:
            answer = coordination.read(f"{folder}all", POLL)
            why = self._why_over() if answer is None else None
        # The leader may have answered just before the other process left.
        answer = answer or coordination.read(f"{folder}all", LATE) or STOP
        if answer == STOP:
            raise OtherProcessError(why or self._why_over())
        self._has_begun = True
        return [json.loads(text) for text in json.loads(answer)]

    def _delete_older(self, folder: str) -> None:
        """Delete the previous meeting, or those of the previous call: all have left them."""
        number = int(folder.split("/")[-2])
        if number:
            coordination.delete(f"{MEETINGS}{self._call}/{number - 1}/")
        elif self._call:
            coordination.delete(f"{MEETINGS}{self._call - 1}/")

    def tell(self, what: str, value: Json) -> Json:
        """Return the leader's value on every process, as JSON decodes it.

        Args:
          what: a description of the value, the same text in each process.
          value: the value of the leader. The values of the other processes are ignored.
        """
        if self.count == 1:
            return json.loads(json.dumps(value))
        return self.meet(what, value if self.is_leader else None)[0]

    def refuse_different(self, what: str, tree: PyTree) -> None:
        """Raise ValueError on all processes unless all have the same arrays.

        Args:
          what: the call that made the arrays, for the error: "batches(3)".
          tree: the arrays of this process.
        """
        if self.count == 1:
            return
        checksums = self.meet(what, checksum(tree))
        if unlike := [i for i, number in enumerate(checksums) if number != checksums[0]]:
            raise ValueError(
                f"{what} must return the same arrays on every process, got different arrays on "
                f"process {unlike[0]} and process 0. Make it a function of the step alone, and "
                "seed generators with the step: numpy.random.default_rng(t)."
            )

    def free_memory(self) -> float | None:
        """Return the usable bytes of the fullest device; None if unknown, as on a CPU."""
        memory = self.machine.device_memory(self.devices)
        if self.count == 1:
            return memory
        each = self.meet("free memory", memory)
        return None if None in each else min(each)

    def on_leader(self, call: Callable[[], T]) -> T | None:
        """Call a function on the leader only, and return its result there.

        If it raises, the leader leaves the call, and the other processes raise, too.
        """
        return call() if self.is_leader else None

    def from_leader(self, array: np.ndarray) -> np.ndarray:
        """Return the leader's array, bit for bit, on every process.

        Args:
          array: the leader's array. Other processes pass any array of its shape and dtype.
        """
        if self.count == 1 or array.size == 0:
            return array
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        source = [device.process_index for device in self.devices].index(0)
        rows = lambda index: data[None] if index[0].start == source else np.zeros_like(data)[None]
        split = NamedSharding(self._line, PartitionSpec(TRIAL))
        x = jax.make_array_from_callback((len(self.devices), len(data)), split, rows)
        where = f"the leader's array, {array.dtype}{array.shape}"
        return self._whole(where, x, is_sum=True).view(array.dtype).reshape(array.shape)

    def gather(self, x: jax.Array) -> np.ndarray:
        """Return a whole array that is sharded along its first axis, on every process."""
        if self.count == 1:
            return np.asarray(x)
        if x.size == 0:
            return np.zeros(x.shape, x.dtype)
        return self._whole(f"a sharded array, {x.dtype}{x.shape}", x, is_sum=False)

    def _whole(self, where: str, x: jax.Array, is_sum: bool) -> np.ndarray:
        """Return an array, or its sum over the first axis, on every process."""
        mesh = self._line if is_sum else self.mesh
        replicate = _replication(mesh, x.shape, x.dtype, x.sharding, is_sum)

        def run() -> jax.Array:
            with jax.debug_nans(False), jax.debug_infs(False):
                return replicate(x).block_until_ready()

        return np.asarray(self.meet(where, then=run).addressable_data(0))

    def place(self, tree: PyTree, specs: PyTree = WHOLE) -> PyTree:
        """Put arrays on the devices.

        Args:
          tree: the arrays, each whole on every process.
          specs: the sharding of each array, or of whole subtrees; by default each array is copied
            to every device.
        """
        tree = jax.tree.map(carried, tree)
        if self.count == 1:
            shardings = jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs)
            return jax.device_put(tree, shardings)

        def leaf(spec: PartitionSpec, x: jax.Array | np.ndarray) -> jax.Array:
            sharding = NamedSharding(self.mesh, spec)
            if isinstance(x, jax.Array) and not x.is_fully_addressable:
                return jax.device_put(x, sharding)
            x = jnp.asarray(x)
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                data, impl = leaf(spec, jax.random.key_data(x)), jax.random.key_impl(x)
                return jax.random.wrap_key_data(data, impl=impl)
            host = np.asarray(x)
            return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)

        return map_specs(leaf, specs, tree)

    def addressable(self, tree: PyTree) -> PyTree:
        """Return arrays with those that are sharded over several processes whole, on the host."""
        is_split = lambda x: isinstance(x, jax.Array) and not x.is_fully_addressable

        def leaf(x: PyTree) -> PyTree:
            if not is_split(x):
                return x
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                data, impl = leaf(jax.random.key_data(x)), jax.random.key_impl(x)
                return jax.random.wrap_key_data(data, impl=impl)
            return self._whole(f"an array of args, {x.dtype}{x.shape}", x, is_sum=False)

        return jax.tree.map(leaf, tree)

    def shardings_of(self, what: str, tree: PyTree) -> PyTree:
        """Return the sharding over the axes of a trial of each array that a user passed.

        Args:
          what: the place of the tree, for errors: "args".
          tree: the arrays.

        Raises:
          ValueError: for a sharding over another axis.
        """
        if (mesh := self.trial_mesh) is None:
            return WHOLE
        place = lambda path: f"{what}{jax.tree_util.keystr(path)}"
        return jax.tree_util.tree_map_with_path(
            lambda path, x: sharding_of(place(path), x, mesh.axes), tree
        )


class DescribedDevices(Cluster):
    """Devices that are described, but do not exist. Programs are compiled for them, and never run.

    Args:
      devices: for example, those of `jax.experimental.topologies.get_topology_desc`; or a mesh of
        them, with an axis "trial".
      memory: the free bytes on each device; None if unknown.
    """

    def __init__(self, devices: Sequence[Device] | Mesh, memory: float | None = None):
        self.count, self.is_leader = 1, True
        self._lay_out(devices)
        usable = None if memory is None else MEMORY_SHARE * memory
        self.machine = Machine(device_memory=lambda devices: usable)

    def place(self, tree: PyTree, specs: PyTree = WHOLE) -> PyTree:
        """Return abstract arrays with the shardings that `Cluster.place` would give them."""
        abstract = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree))

        def place(spec: PartitionSpec, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            sharding = NamedSharding(self.mesh, spec)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        return map_specs(place, specs, jax.tree.map(carrier, abstract))


@functools.lru_cache(256)
def _replication(
    mesh: Mesh, shape: tuple[int, ...], dtype: np.dtype, sharding: Sharding, is_sum: bool
) -> jax.stages.Compiled:
    """Return the compiled program of `Cluster._whole`.

    It is compiled AOT, because a thread may run it under any JAX settings.
    """
    run = lambda x: x.sum(0, dtype=x.dtype) if is_sum else x
    whole = jax.jit(run, out_shardings=NamedSharding(mesh, PartitionSpec()))
    return whole.lower(jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)).compile()


@atexit.register
def _report_exit() -> None:
    """Tell the other processes that this one ends, because they may wait for it in a later call."""
    if coordination.is_connected():
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 has ended already
            coordination.write(f"{LEFT}ended/{jax.process_index()}", "")


def checksum(tree: PyTree) -> int:
    """Return a number that is equal for trees of arrays with equal bytes."""
    crc = 0
    for x in jax.tree.leaves(tree):
        crc = zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data, crc)
    return crc
