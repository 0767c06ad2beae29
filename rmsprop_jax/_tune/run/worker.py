"""The part of a sweep that runs on a worker of an executor: one task at a time.

The caller traces, decides, and writes. A worker gets programs, hyperparameters, and states, and
returns metrics and states. It keeps the last programs and args by their hashes. A task names hashes
only; a worker that lacks some says so (`Missing`), and the caller sends the task again with bytes.

`run_task` raises nothing. An exception may not pickle, `SystemExit` would end the caller, and each
engine wraps exceptions in its own way. Any exception of a future is therefore one of the engine.
"""

import contextlib
import hashlib
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

import jax
import jax.export
import jaxlib.version
import numpy as np

from rmsprop_jax._tune.compile.compiled import CompiledKernel
from rmsprop_jax._tune.compile.exported import ExportedGroup
from rmsprop_jax._tune.compile.group_compiler import GroupPrograms, SegmentOutputs
from rmsprop_jax._tune.compile.layout import DeviceLayout
from rmsprop_jax._tune.jax_settings import entered, own_settings
from rmsprop_jax._tune.run.batch import HostStates
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.run.data import BatchReader

KEPT = 8  # programs, args, and data readers that a worker keeps


class Task(NamedTuple):
    """Some trials of one static group, from one step to another."""

    group: str
    """The hash of the group's programs, a pickled `ExportedGroup`."""
    args: str
    """The hash of the sweep's `args`, a pickled list of arrays."""
    batches: str | None
    """The hash of the sweep's `batches`, a pickled `Batches`; None without it."""
    inputs: tuple[dict[str, np.ndarray], np.ndarray]
    """The hyperparameters, and the data of the keys, each with an axis over the trials."""
    start: int
    """The steps that each trial has run."""
    stops: tuple[int, ...]
    """The steps at which the segments of the task end."""
    states: HostStates | None
    """The states of the trials at `start`; None for trials that begin."""
    returns_states: bool
    """Whether the caller needs the states at the last stop."""
    settings: dict[str, Any]
    """The caller's settings of JAX."""
    versions: dict[str, str]
    """The versions of the caller's packages."""
    process: int
    """The process id of the caller."""

    @property
    def hashes(self) -> list[str]:
        """The hashes of everything that a worker needs."""
        return [self.group, self.args, *([self.batches] if self.batches else [])]


class Batches(NamedTuple):
    """The function `batches` of a sweep."""

    source: bytes
    """The function, by cloudpickle."""
    checksum: int
    """The checksum of its first batch in the caller."""


class Worker(NamedTuple):
    """A worker process."""

    host: str
    process: int
    platform: str
    """The platform of its devices, as `jax.export` names it."""
    devices: tuple[str, ...]
    """The ids of its devices on the host."""


class SegmentMetrics(NamedTuple):
    """The metrics of the trials of a task in one segment."""

    start: int
    stop: int
    metrics: dict[str, np.ndarray]
    evaluations: dict[str, np.ndarray]


class Done(NamedTuple):
    """A task that ran."""

    worker: Worker
    segments: list[SegmentMetrics]
    states: HostStates | None
    """The states at the last stop, if the caller needs them."""
    seconds: float
    """The seconds that the task ran."""
    compile_seconds: float
    """The seconds for its programs before."""


class Missing(NamedTuple):
    """A task that did not run, because the worker lacks programs, args, or data."""

    worker: Worker
    hashes: list[str]


class Failure(NamedTuple):
    """An exception of a task, as text."""

    kind: str
    message: str
    traceback: str


class RefusedTaskError(Exception):
    """The error of a worker that cannot run tasks."""


class _Loaded(NamedTuple):
    """The programs of a static group, loaded."""

    group: ExportedGroup
    programs: dict[str, GroupPrograms]
    """The compiled programs by the hash of their args."""


_lock = threading.Lock()  # a worker runs one task at a time, because a task uses all its devices
_kept: OrderedDict[str, Any] = OrderedDict()
compiled_groups = 0  # how many static groups this process has compiled


def versions() -> dict[str, str]:
    """Return the versions that a caller and its workers must share."""
    import rmsprop_jax

    ours = rmsprop_jax.__version__
    return {"jax": jax.__version__, "jaxlib": jaxlib.version.__version__, "rmsprop_jax": ours}


def hash_of(content: bytes) -> str:
    """Return the name under which a worker keeps some bytes."""
    return hashlib.sha256(content).hexdigest()


def run_task(
    task: Task, contents: Mapping[str, bytes], submission: str
) -> Done | Missing | Failure:
    """Run a task on this worker. It raises nothing.

    Args:
      task: the task.
      contents: programs, args, and data by their hashes, as far as the caller sends them.
      submission: an id that no other submission has, because some engines return the stored result
        of an equal call.
    """
    try:
        with _lock, _signals_ignored(task.process):
            return _run(task, contents)
    except BaseException as error:  # SystemExit and KeyboardInterrupt, too
        return Failure(type(error).__name__, _text(error), traceback.format_exc())


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(no text)"


@contextlib.contextmanager
def _signals_ignored(caller: int) -> Generator[None]:
    """Ignore Ctrl-C, which a terminal sends to all its processes: the caller waits for the task."""
    is_own_process = os.getpid() != caller and threading.current_thread() is threading.main_thread()
    if not is_own_process:
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _run(task: Task, contents: Mapping[str, bytes]) -> Done | Missing:
    _refuse_fork()
    if (here := versions()) != task.versions:
        raise RefusedTaskError(
            f"workers must have the versions of the caller, {task.versions}, got {here}. Install "
            "the same versions on all machines."
        )
    begun = time.perf_counter()
    with own_settings("sweep"), entered(task.settings):
        cluster = Cluster(jax.local_devices())
        worker = _this_worker(cluster)
        _keep(contents, cluster)
        if missing := [name for name in task.hashes if name not in _kept]:
            return Missing(worker, missing)
        for name in task.hashes:
            _kept.move_to_end(name)
        programs = _programs(task, worker.platform, cluster)
        ready = time.perf_counter()
        reader = _kept[task.batches] if task.batches else None
        parts = [_run_wave(task, rows, programs, reader) for rows in _waves(task, programs)]
        segments = [_joined(each) for each in zip(*(part[0] for part in parts), strict=True)]
        states = [np.concatenate(leaf) for leaf in zip(*(part[1] for part in parts), strict=True)]
        seconds = time.perf_counter() - ready, ready - begun
        return Done(worker, segments, states if task.returns_states else None, *seconds)


def _refuse_fork() -> None:
    if type(multiprocessing.current_process()).__name__ == "ForkProcess":
        raise RefusedTaskError(
            "an executor must start its processes by spawn, because JAX does not work after a "
            "fork, got a forked process. Pass ProcessPoolExecutor(..., "
            "mp_context=multiprocessing.get_context('spawn'))."
        )


def _this_worker(cluster: Cluster) -> Worker:
    platform = jax.export.default_export_platform()
    ids = [str(device.id) for device in cluster.devices]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if platform == "cuda" and visible is not None:  # JAX counts the visible devices only
        names = visible.split(",")
        ids = [names[int(i)].strip() for i in ids]
    return Worker(socket.gethostname(), os.getpid(), platform, tuple(ids))


def _keep(contents: Mapping[str, bytes], cluster: Cluster) -> None:
    """Load what the caller sent, and forget the entries that were unused for the longest time."""
    for name, content in contents.items():
        if name in _kept:
            continue
        loaded = pickle.loads(content)
        if isinstance(loaded, ExportedGroup):
            _kept[name] = _Loaded(loaded, {})
        elif isinstance(loaded, Batches):
            _kept[name] = _reader(loaded, cluster)
        else:
            _kept[name] = cluster.place(loaded)
    while len(_kept) > max(KEPT, len(contents)):
        _kept.popitem(last=False)


def _reader(batches: Batches, cluster: Cluster) -> BatchReader:
    source: Callable[[int], Any] = pickle.loads(batches.source)
    reader = BatchReader(source, cluster, 1)
    if reader.checksum != batches.checksum:
        raise RefusedTaskError(
            "batches must be a pure function of the step, got another batch for step 1 on a worker "
            "than in the caller. Make it a function of the step alone, and seed generators with "
            "the step: numpy.random.default_rng(t)."
        )
    return reader


def _programs(task: Task, platform: str, cluster: Cluster) -> GroupPrograms:
    """Return the compiled programs of a task's static group. They compile once per process."""
    global compiled_groups
    group, made = _kept[task.group]
    if task.args not in made:
        if platform not in group.platforms:
            raise RefusedTaskError(
                f"platforms must have the platform of the workers, {platform!r}, got "
                f"{list(group.platforms)}. Pass executor=rj.Executor(..., "
                f"platforms=[{platform!r}])."
            )
        layout = DeviceLayout.fit(
            cluster.submeshes,
            group.batch_size,
            group.trial_bytes,
            group.most_trials,
            cluster.machine.buffer_bytes,
        )
        program = lambda kernel: CompiledKernel(kernel.load(), _kept[task.args], layout, cluster)
        each = {name: program(kernel) for name, kernel in group.kernels.items()}
        made.clear()
        made[task.args] = GroupPrograms(layout, **each).compile()
        compiled_groups += 1
    return made[task.args]


def _waves(task: Task, programs: GroupPrograms) -> list[slice]:
    """Return the rows of each wave of a task's trials."""
    count, slots = len(task.inputs[1]), programs.layout.slots(programs.layout.capacity)
    return [slice(at, at + slots) for at in range(0, count, slots)]


def _run_wave(
    task: Task, rows: slice, programs: GroupPrograms, reader: BatchReader | None
) -> tuple[list[SegmentMetrics], HostStates]:
    """Run some trials of a task through all its segments, and return metrics and states."""
    schedule = _kept[task.group].group.schedule
    inputs = jax.tree.map(lambda x: x[rows], task.inputs)
    states = None if task.states is None else [x[rows] for x in task.states]
    count = len(inputs[1])
    placed, leaves = programs.place(inputs, states, count)
    segments: list[SegmentMetrics] = []

    def fetch(start: int, stop: int, outputs: SegmentOutputs) -> None:
        segments.append(SegmentMetrics(start, stop, *programs.fetch(outputs, count)))

    start, in_flight = task.start, None
    for stop in task.stops:
        data = jax.tree.leaves(reader.segment(schedule, start)) if reader else None
        steps = np.full(count, start), np.full(count, stop)
        leaves, outputs = programs.start(leaves, placed, *steps, data=data)
        if reader and stop != task.stops[-1]:
            reader.prepare(schedule, stop)
        if in_flight:
            fetch(*in_flight)
        in_flight, start = (start, stop, outputs), stop
    if in_flight:
        fetch(*in_flight)
    is_needed = task.returns_states and leaves
    return segments, programs.segment.fetch(leaves, count) if is_needed else []


def _joined(parts: tuple[SegmentMetrics, ...]) -> SegmentMetrics:
    """Return the metrics of a segment of all waves of a task."""
    together = lambda *xs: np.concatenate(xs)
    first = parts[0]
    metrics = jax.tree.map(together, *(part.metrics for part in parts))
    evaluations = jax.tree.map(together, *(part.evaluations for part in parts))
    return SegmentMetrics(first.start, first.stop, metrics, evaluations)
