"""`sweep`: check every group, compile it once, run its trials in rounds."""

import contextlib
import functools
import os
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rmsprop_jax._sweep.ledger import Ledger, Objective
from rmsprop_jax._sweep.points import Points
from rmsprop_jax._sweep.processes import Processes
from rmsprop_jax._sweep.program import Program
from rmsprop_jax._sweep.results import SweepResult
from rmsprop_jax._sweep.rounds import run_rounds
from rmsprop_jax._sweep.store import Plan, Store, Trials, fingerprint
from rmsprop_jax._sweep.tracing import Group, Metrics, TracedTrain, Train, group_points, trace


class SweepInterrupted(KeyboardInterrupt):
    """Ctrl-C during a sweep; `result` holds the trials that were finished."""

    def __init__(self, result: SweepResult):
        super().__init__(f"interrupted; .result holds what is finished: {result!r}")
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
        (a value) or 1 (one value a step), with the same names, shapes and dtypes for all points.
        Build the optimiser inside: `rj.rmsprop(hp["learning_rate"], decay=hp["decay"])`.
      points: `Points`, or a list of dicts with the same names.
      seeds: a count n (0 … n−1), or the seeds. Every point gets the same keys `jax.random.key(s)`.
      objective: a metric's name (its last value counts), or a function on the host from one trial's
        metrics, as NumPy arrays, to a float. A trial whose objective is not finite has failed: it
        is kept and marked, is never best, and touches no other.
      mode: "min" or "max".
      args: arrays (or pytrees of them) that every trial reads, copied to each device once.
      batch_size: how many trials share one `vmap` on a device. "auto" is 1 on a CPU, where `vmap`
        gains nothing, and elsewhere as many as fit the memory by the compiler's own analysis.
      devices: by default all, of every process after `jax.distributed.initialize()`; then every
        process makes the same call and gets the same result, and process 0 writes and draws. On
        CPU, give JAX one device a core before its first use:
        `jax.config.update("jax_num_cpu_devices", os.cpu_count())`.
      path: a folder for the finished rounds. The same call goes on where an earlier one was stopped
        or killed, on any number of devices and with any `batch_size`; with more points or seeds,
        only the new trials run. Plain `.json` and `.npz`; one writer at a time.
      progress: draw a bar: trials done, failed, best so far, time left.
      every: of a metric with one value a step, keep each `every`-th step and the last, to save
        memory. A function as `objective` gets what is kept.

    Returns:
      A `SweepResult`. With a `batch_size` of 1 its numbers are bit for bit those of
      `jax.jit(train)(hp, key)`; `vmap` rounds otherwise, in the last digits.

    Raises:
      ValueError: before anything runs, for points, seeds, metrics or an objective that do not fit,
        an axis that `train` never reads, a name that no axis gives, a traced number used as a
        shape or a bool, linear algebra that can hang this jaxlib on a CPU, or a `path` that holds
        another sweep or is damaged.
      RuntimeError: where another process writes to `path`.
      OSError: where `path` cannot be written.
      SweepInterrupted: on Ctrl-C; `.result` holds the trials that were finished. Any other
        exception on the way has that `.result`, too.

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
    if not isinstance(points, Points):
        points = Points(points)
    if not len(points):
        raise ValueError("sweep needs at least one point, got none.")
    seeds = _seeds(seeds)
    if mode not in ("min", "max"):
        raise ValueError(f'mode must be "min" or "max", got {mode!r}.')
    if not isinstance(args, tuple):
        raise ValueError(f"args must be a tuple, got {type(args).__name__}: write args=(data,).")
    if batch_size != "auto":
        batch_size = _count("batch_size", batch_size, ' or "auto"')
    every = _count("every", every)
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("devices is empty: leave it out to use all.")
    processes = Processes(devices)

    groups = group_points(points)
    traced = [trace(train, group, points, args) for group in groups]
    metrics = _check_metrics(groups, traced, points, objective)
    name = objective if isinstance(objective, str) else getattr(objective, "__name__", "function")
    hashes = functools.partial(fingerprint, groups, traced, args)
    plan = Plan(points, seeds, name, mode, every, metrics, hashes)
    processes.refuse_different("points, seeds or options", _digest(plan, batch_size, path))
    with contextlib.ExitStack() as stack:
        store, stored = _open(processes, plan, path, stack)
        ledger = Ledger(plan, objective, stored, store.write if store else None, start)
        try:
            with ledger.bar(progress and processes.first) as bar:
                placed = processes.place(args)
                for group, traced_train in zip(groups, traced, strict=True):
                    if not len(trials := ledger.unfinished(group.indices)):
                        continue
                    compile_ = functools.partial(
                        Program, traced_train, group, points, seeds, placed, processes, every=every
                    )
                    point_rows, seed_rows = np.divmod(trials, len(seeds))
                    rows = np.searchsorted(group.indices, point_rows)
                    for one in run_rounds(compile_, rows, seed_rows, processes, batch_size):
                        ledger.record(trials[one.at], one.metrics, one.compile_seconds)
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
    processes: Processes, plan: Plan, path: Any, stack: contextlib.ExitStack
) -> tuple[Store | None, Trials]:
    """The folder, for the first process to write, and what is finished in it, for all."""
    if path is None:
        return None, plan.no_trials(0)

    store = processes.on_first(lambda: stack.enter_context(contextlib.closing(Store(path, plan))))
    stored = store.finished if store else plan.no_trials(0)
    count = int(processes.from_first(np.asarray(len(stored.number))))
    if not processes.first:
        stored = plan.no_trials(count)
    return store, jax.tree.map(processes.from_first, stored)


def _digest(plan: Plan, *options: Any) -> int:
    """Of what all processes must have alike; objects in an axis count by their type."""
    plain = lambda x: x if isinstance(x, int | float | str) else type(x).__name__
    rows = [[plain(value) for value in point.values()] for point in plan.points]
    return zlib.crc32(repr((rows, plan[1:-1], list(map(str, options)))).encode())


def _seeds(seeds: Any) -> tuple[int, ...]:
    if _is_int(seeds):
        if seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {seeds}.")
        return tuple(range(int(seeds)))
    listed = list(seeds) if isinstance(seeds, Iterable) and not isinstance(seeds, str) else None
    if not listed or not all(map(_is_int, listed)):
        raise ValueError(f"seeds must be a count or a sequence of ints, got {seeds!r}.")
    if len(set(listed)) < len(listed):
        raise ValueError(f"seeds must differ from one another, got {listed}.")
    return tuple(map(int, listed))


def _count(name: str, value: Any, other: str = "") -> int:
    if not _is_int(value) or value < 1:
        raise ValueError(f"{name} must be an int of at least 1{other}, got {value!r}.")
    return int(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_metrics(
    groups: list[Group], traced: list[TracedTrain], points: Points, objective: Objective
) -> Metrics:
    """All groups must return the same metrics and read, together, every axis."""
    metrics = traced[0].metrics
    for group, one in zip(groups, traced, strict=True):
        for name in metrics.keys() | one.metrics.keys():
            shapes = [
                f"{m[name].dtype}{list(m[name].shape)}" if name in m else "no such metric"
                for m in (metrics, one.metrics)
            ]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"metric {name!r} differs between structures: {shapes[0]} with "
                    f"{groups[0].structure}, {shapes[1]} with {group.structure}. Return the same "
                    "names, shapes and dtypes for all."
                )
    read = set().union(*(one.read for one in traced))
    if unread := [name for name in points.names if name not in read]:
        raise ValueError(
            f"train never reads the axis {', '.join(map(repr, unread))}: it would repeat the same "
            "trials. Read it from hp, or leave it out."
        )
    if isinstance(objective, str):
        if objective not in metrics:
            raise ValueError(
                f"the objective is {objective!r}, but train returned {sorted(metrics)}: pass "
                "objective=... one of these, or a function of the metrics."
            )
    elif not callable(objective):
        raise ValueError(
            f"objective must be a metric's name or a function, got {type(objective).__name__}."
        )
    return metrics
