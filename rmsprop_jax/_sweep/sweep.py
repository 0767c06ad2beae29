"""`sweep`: check every structure, compile each once, run its trials in rounds."""

import contextlib
import os
import sys
import time
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from rmsprop_jax._sweep.compiling import compiled_ahead, maker
from rmsprop_jax._sweep.fingerprint import Fingerprint
from rmsprop_jax._sweep.ledger import Ledger
from rmsprop_jax._sweep.objective import Objective, checked
from rmsprop_jax._sweep.pieces import jobs_of, whole
from rmsprop_jax._sweep.plan import Plan, Trials
from rmsprop_jax._sweep.points import Points
from rmsprop_jax._sweep.processes import Processes
from rmsprop_jax._sweep.results import SweepResult
from rmsprop_jax._sweep.rounds import run_rounds
from rmsprop_jax._sweep.seeds import checked_seeds, is_int
from rmsprop_jax._sweep.store import Store
from rmsprop_jax._sweep.tracing import Group, TracedTrain, Train, group_points, trace

LONG_PROGRAM = 20_000  # equations: a Python loop was unrolled, and compiles for minutes


class SweepInterrupted(KeyboardInterrupt):
    """Ctrl-C during a sweep; `result` holds the trials that were finished."""

    def __init__(self, result: SweepResult):
        super().__init__(
            f"interrupted; .result holds what is finished: {result!r}. What JAX has begun (a "
            "round, a compile) it brings to its end before this process can end."
        )
        self.result = result


def sweep(
    train: Train,
    points: Points | Sequence[Mapping[str, Any]],
    *,
    seeds: int | Iterable[int] = 1,
    objective: Objective = "loss",
    mode: str = "min",
    args: tuple[Any, ...] = (),
    batch_size: int | str = "auto",
    devices: Sequence[Any] | None = None,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
    every: int = 1,
) -> SweepResult:
    """Train every point with every seed: one compile for each structure, on every device.

    Args:
      train: `train(hp, key, *args) -> metrics`, a pure function that runs one whole training.
        `hp` is a dict; its numbers arrive as traced scalars. Metrics are named arrays of rank 0
        (a value) or 1 (one value a step), with the same names, ranks and dtypes for all points;
        floats of a structure with fewer steps are followed by NaN.
        Build the optimiser inside: `rj.rmsprop(hp["learning_rate"], decay=hp["decay"])`.
      points: `Points`, or a list of dicts with the same names.
      seeds: a count n (0 … n−1), or the seeds. Every point gets the same keys `jax.random.key(s)`.
      objective: a metric's name (its last value counts), or a function on the host from one trial's
        metrics, as NumPy arrays, to a float; it is tried on zeros first. A trial whose objective
        is not finite has failed: it is kept and marked, is never best, and touches no other.
      mode: "min" or "max".
      args: arrays (or pytrees of them) that every trial reads, copied to each device once.
      batch_size: how many trials share one `vmap` on a device. "auto" is 1 on a CPU, where `vmap`
        gains nothing, and elsewhere as many as fit the memory by the compiler's own analysis. A
        last batch that is not full runs its last trial again in the lanes that are left.
      devices: by default all, of every process after `jax.distributed.initialize()`; then every
        process makes the same call and gets the same result, and process 0 writes and draws. On
        CPU, give JAX one device a core before its first use:
        `jax.config.update("jax_num_cpu_devices", os.cpu_count())`.
      path: a folder for the finished rounds. The same call goes on where an earlier one was stopped
        or killed, on any number of devices and with any `batch_size`; with more points or seeds,
        only the new trials run. It holds metrics: another `objective` or `mode` reads the same.
        Plain `.json` and `.npz`; one writer at a time.
      progress: draw a bar: trials done, failed, best so far, time left.
      every: of a metric with one value a step, keep each `every`-th step and the last, to save
        memory. Those are the metrics as long as the objective, or else the longest; a dict from
        metrics to numbers says it for each. A function as `objective` gets what is kept.

    A structure's program compiles once in a process, many side by side, while trials of others run.

    Returns:
      A `SweepResult`. With a `batch_size` of 1 its numbers are bit for bit those of
      `jax.jit(train)(hp, key)`; `vmap` rounds otherwise, in the last digits.

    Raises:
      ValueError: before anything runs, for points, seeds, metrics or an objective that do not fit,
        an axis that `train` never reads, a name that no axis gives, a traced number used as a
        shape or a bool, linear algebra that can hang this jaxlib on a CPU, or a `path` that holds
        another sweep, one by another JAX, or is damaged.
      RuntimeError: where another process writes to `path`.
      OSError: where `path` cannot be written.
      SweepInterrupted: on Ctrl-C; `.result` holds the trials that were finished. Any other
        exception on the way has that `.result`, too.

    Warns:
      UserWarning: for several seeds of a `train` that never reads its key, and for a program so
        long that a Python loop must have been unrolled.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, rmsprop_jax as rj
      >>> def train(hp, key):
      ...     solver = rj.rmsprop(hp["learning_rate"], decay=hp["decay"])
      ...     params = jax.random.normal(key, (3,))
      ...     def step(carry, _):
      ...         params, state = carry
      ...         loss, grads = jax.value_and_grad(lambda p: jnp.sum(p**2))(params)
      ...         updates, state = solver.update(grads, state)
      ...         return (optax.apply_updates(params, updates), state), loss
      ...     return {"loss": jax.lax.scan(step, (params, solver.init(params)), length=100)[1]}
      >>> points = rj.grid(learning_rate=[1e-4, 1e-2], decay=[0.9, 0.99])
      >>> rj.sweep(train, points, progress=False).best().point["learning_rate"]
      0.01
    """
    start = time.perf_counter()
    with _own_settings():
        return _sweep(
            train, points, seeds, objective, mode, args, batch_size, devices, path, progress, every,
            start,
        )  # fmt: skip


@contextlib.contextmanager
def _own_settings() -> Iterator[None]:
    """A mesh, `disable_jit` and a transfer guard of the caller's are for code of another kind."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ())))
        except ValueError as error:  # JAX traces
            raise ValueError(
                "sweep was called inside jax.jit, grad or vmap, or inside another sweep's train: "
                "call it outside; it compiles by itself."
            ) from error
        stack.enter_context(jax.disable_jit(False))
        stack.enter_context(jax.transfer_guard("allow"))
        yield


def _sweep(
    train, points, seeds, objective, mode, args, batch_size, devices, path, progress, every, start
) -> SweepResult:
    if not isinstance(points, Points):
        points = Points(points)
    if not len(points):
        raise ValueError("sweep needs at least one point, got none.")
    seeds = checked_seeds(seeds)
    if not isinstance(args, tuple):
        raise ValueError(f"args must be a tuple, got {type(args).__name__}: write args=(data,).")
    if batch_size != "auto":
        batch_size = _count("batch_size", batch_size, ' or "auto"')
    processes = Processes(_devices(devices))

    groups = group_points(points)
    traced = [trace(train, group, points, args) for group in groups]
    _check_metrics(groups, traced, points)
    metrics = [one.metrics for one in traced]
    every = _every(every, metrics, objective)
    fingerprint = Fingerprint(groups, traced, args, needed=path is not None)
    plan = Plan(points, seeds, every, groups, metrics, fingerprint)
    aim = checked(objective, mode, plan)
    _warn(traced, seeds)
    digest = lambda: _digest(plan, aim.name, mode, batch_size, path)
    processes.refuse_different("points, seeds or options", digest)
    if progress and processes.first and devices is None:
        _say_idle_cores(processes)
    with contextlib.ExitStack() as stack:
        store, stored = _open(processes, plan, (aim.name, mode), path, stack)
        ledger = Ledger(plan, aim, train, stored, store.write if store else None, start)
        try:
            with ledger.bar(progress and processes.first) as bar:
                placed = processes.place(args)
                todo = [
                    (i, trials)
                    for i, group in enumerate(groups)
                    if len(trials := ledger.unfinished(group.indices))
                ]
                makers = [
                    maker(whole(traced[i], plan, i), placed, processes, batch_size, len(trials))
                    for i, trials in todo
                ]
                programs = stack.enter_context(contextlib.closing(compiled_ahead(makers)))
                for (i, trials), (program, seconds) in zip(todo, programs, strict=True):
                    jobs = jobs_of(plan, groups[i], trials)
                    for one in run_rounds(program, jobs, len(trials), placed, processes):
                        ledger.record(trials[one.at], one.out, seconds)
                        seconds = 0.0
                        bar.set_postfix_str(ledger.summary(), refresh=False)
                        bar.update(one.at.stop - one.at.start)
        except KeyboardInterrupt as interrupt:
            raise SweepInterrupted(ledger.result()) from interrupt
        except Exception as error:
            error.__dict__["result"] = ledger.result()
            error.add_note(f"What was finished is in this exception's .result: {ledger.result()!r}")
            raise
    return ledger.result()


def _open(
    processes: Processes, plan: Plan, aim: tuple[str, str], path: Any, stack: contextlib.ExitStack
) -> tuple[Store | None, Trials]:
    """The folder, for the first process to write, and what is finished in it, for all."""
    if path is None:
        return None, plan.no_trials(0)

    store = processes.on_first(
        lambda: stack.enter_context(contextlib.closing(Store(path, plan, aim)))
    )
    stored = store.finished if store else plan.no_trials(0)
    count = int(processes.from_first(np.asarray(len(stored.number))))
    if not processes.first:
        stored = plan.no_trials(count)
    return store, jax.tree.map(processes.from_first, stored)


def _digest(plan: Plan, *options: Any) -> int:
    """Of what all processes must have alike; objects in an axis count by their type."""
    plain = lambda x: x if isinstance(x, int | float | str) else type(x).__name__
    rows = [[(name, plain(x)) for name, x in point.items()] for point in plan.points]
    said = (rows, plan.seeds, plan.every, plan.metrics, list(map(str, options)))
    return zlib.crc32(repr(said).encode())


def _devices(devices: Any) -> list[Any]:
    if devices is None:
        return jax.devices()
    listed = list(devices) if isinstance(devices, Iterable) else [devices]
    if not listed:
        raise ValueError("devices is empty: leave it out to use all.")
    if not all(isinstance(device, jax.Device) for device in listed):
        raise ValueError(
            f"devices must be JAX devices, got {devices!r}: jax.devices({devices!r})."
            if isinstance(devices, str)
            else f"devices must be JAX devices, got {devices!r}: some of jax.devices()."
        )
    if len(set(listed)) < len(listed):
        raise ValueError(f"devices must differ from one another, got {listed}.")
    return listed


def _every(every: Any, metrics: list[dict[str, Any]], objective: Any) -> dict[str, int]:
    """Of which metrics each so-manieth step is kept."""
    has_steps = {
        name: max(one[name].shape[0] for one in metrics)
        for name, metric in metrics[0].items()
        if metric.shape
    }
    if isinstance(every, Mapping):
        if unknown := set(every) - set(has_steps):
            raise ValueError(
                f"every names {sorted(unknown)}, but the metrics with one value a step are "
                f"{sorted(has_steps)}."
            )
        return {name: k for name, x in every.items() if (k := _count(f"every[{name!r}]", x)) > 1}
    every = _count("every", every)
    if every == 1 or not has_steps:
        return {}
    # Another 1-D metric may be no series of steps: parameters, or the evaluations beside them.
    by_objective = has_steps.get(objective) if isinstance(objective, str) else None
    steps = by_objective or max(has_steps.values())
    return {name: every for name, length in has_steps.items() if length == steps}


def _warn(traced: list[TracedTrain], seeds: tuple[int, ...]) -> None:
    if len(seeds) > 1 and not any(one.reads_key for one in traced):
        warnings.warn(
            f"train never reads its key, so its {len(seeds)} seeds are {len(seeds)} times the same "
            "trial, with a spread of 0: use the key, or leave seeds out.",
            stacklevel=4,
        )
    if (longest := max(one.equations for one in traced)) > LONG_PROGRAM:
        warnings.warn(
            f"train is a program of {longest:,} equations, and may compile for minutes: a Python "
            "loop over steps or batches was unrolled. jax.lax.scan or jax.lax.fori_loop has its "
            "body once.",
            stacklevel=4,
        )


def _say_idle_cores(processes: Processes) -> None:
    mine = [d for d in processes.mesh.devices.tolist() if d.process_index == jax.process_index()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if mine[0].platform == "cpu" and len(mine) == 1 and (cores or 1) > 1:
        tqdm.write(
            f"sweep: 1 CPU device on {cores} cores. To use all, before JAX is first used: "
            f'jax.config.update("jax_num_cpu_devices", {cores})',
            file=sys.stderr,
        )


def _count(name: str, value: Any, other: str = "") -> int:
    if not is_int(value) or value < 1:
        raise ValueError(f"{name} must be an int of at least 1{other}, got {value!r}.")
    return int(value)


def _check_metrics(groups: list[Group], traced: list[TracedTrain], points: Points) -> None:
    """All groups must return the same metrics, and read, together, every axis."""
    metrics = traced[0].metrics
    for group, one in zip(groups, traced, strict=True):
        for name in metrics.keys() | one.metrics.keys():
            said = [
                f"{m[name].dtype}{list(m[name].shape)}" if name in m else "no such metric"
                for m in (metrics, one.metrics)
            ]
            both = [m[name] for m in (metrics, one.metrics) if name in m]
            alike = len(both) == 2 and both[0].dtype == both[1].dtype
            alike = alike and len(both[0].shape) == len(both[1].shape)
            padded = alike and jnp.issubdtype(both[0].dtype, jnp.floating)  # with NaN
            if said[0] != said[1] and not padded:
                raise ValueError(
                    f"metric {name!r} differs between structures: {said[0]} with "
                    f"{groups[0].structure}, {said[1]} with {group.structure}. Return the same "
                    "names, ranks and dtypes for all, and integers of the same length (floats may "
                    "differ in length: NaN follows the last)."
                )
    read = set().union(*(one.read for one in traced))
    if unread := [name for name in points.names if name not in read]:
        raise ValueError(
            f"train never reads the axis {', '.join(map(repr, unread))}: it would repeat the same "
            "trials. Read it from hp, or leave it out."
        )
