"""The arguments of a sweep, checked, and what is said of them before anything runs."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from rmsprop_jax._tune.experiment_spec import Stages
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.space.points import Points
from rmsprop_jax._tune.space.values import has_nan, is_int
from rmsprop_jax._tune.training.trace import Group, Metrics, Traces

LONG_PROGRAM = 20_000  # equations: a Python loop was unrolled, and compiles for minutes
STAGES = {
    "steps": None, "evaluate_every": None, "scheduler": None, "batches": None, "keep_states": 1,
}  # fmt: skip
"""The arguments that are for a `Training`, as they are where they are not given."""


@contextlib.contextmanager
def own_settings(name: str) -> Iterator[None]:
    """A mesh, `disable_jit` and a transfer guard of the caller's are for code of another kind."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ())))
        except ValueError as error:  # JAX traces
            raise ValueError(
                f"{name} was called inside jax.jit, grad or vmap, or inside another sweep's train: "
                "call it outside; it compiles by itself."
            ) from error
        stack.enter_context(jax.disable_jit(False))
        stack.enter_context(jax.transfer_guard("allow"))
        yield


def count(name: str, value: Any, other: str = "") -> int:
    if not is_int(value) or value < 1:
        raise ValueError(f"{name} must be an int of at least 1{other}, got {value!r}.")
    return int(value)


def checked_devices(devices: Any) -> list[Any]:
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
    if away := [device for device in listed if not _is_there(device)]:
        raise ValueError(
            f"devices must be there to run on, got {away}, which are only described (of a topology "
            "to compile for): give some of jax.devices()."
        )
    return listed


def _is_there(device: Any) -> bool:
    try:
        return device in jax.devices(device.platform)
    except RuntimeError:  # JAX has no such platform here
        return False


def refuse_stages(asked: Any) -> None:
    """ValueError where a function is given what is for a `Training`."""
    given = {name: getattr(asked, name) for name in STAGES if hasattr(asked, name)}
    if unlike := [name for name, value in given.items() if value != STAGES[name]]:
        raise ValueError(
            f"{', '.join(unlike)} is for a Training, whose steps are known: train is a function, "
            "which runs as a whole. Write rj.Training(init, step)."
        )


def checked_steps(steps: Any, evaluate_every: Any, call: str) -> tuple[int, int]:
    """The steps of a `Training`, and how many lie between evaluations."""
    if steps is None:
        raise ValueError(f"a Training needs steps: {call}(training, ..., steps=...).")
    steps = count("steps", steps)
    every = -(-steps // 20)
    if evaluate_every is not None:
        every = min(count("evaluate_every", evaluate_every), steps)
    return steps, every


def checked_batch_size(batch_size: Any) -> int | str:
    return "auto" if batch_size == "auto" else count("batch_size", batch_size, ' or "auto"')


def check_args(args: Any) -> None:
    if not isinstance(args, tuple):
        raise ValueError(f"args must be a tuple, got {type(args).__name__}: write args=(data,).")


def check_callback(callback: Any) -> None:
    if callback is not None and not callable(callback):
        raise ValueError(f"callback must be a function of a report, got {callback!r}.")


def checked_keep_states(keep: Any, points: int) -> int | str:
    if isinstance(keep, str) or not is_int(keep) or keep < 0:
        if keep == "all":
            return "all"
        raise ValueError(f'keep_states must be 0, a whole number, or "all", got {keep!r}.')
    if keep > points:
        raise ValueError(f'keep_states={keep} is more than the {points} points: "all" keeps those.')
    return int(keep)


def series(traces: Traces, stages: Stages | None) -> Metrics:
    """What a trial gives: of a training the metrics of a step, each step, and evaluations."""
    if stages is None:
        return traces.metrics
    over = lambda m, n: jax.ShapeDtypeStruct((n,), m.dtype)
    of_steps = {name: over(m, stages.steps) for name, m in traces.metrics.items()}
    boundaries = len(stages.boundaries)
    return of_steps | {name: over(m, boundaries) for name, m in traces.evaluations.items()}


def checked_every(
    every: Any, metrics: list[dict[str, Any]], objective: Any, stages: Stages | None
) -> dict[str, int]:
    """Of which metrics each so-manieth step is kept."""
    has_steps = {
        name: max(one[name].shape[0] for one in metrics)
        for name, metric in metrics[0].items()
        if metric.shape and not (stages and name in stages.evaluations)
    }
    if isinstance(every, Mapping):
        if unknown := set(every) - set(has_steps):
            raise ValueError(
                f"record_every names {sorted(unknown)}, but the metrics with one value a step are "
                f"{sorted(has_steps)}."
            )
        return {
            name: k for name, x in every.items() if (k := count(f"record_every[{name!r}]", x)) > 1
        }
    every = count("record_every", every)
    if every == 1 or not has_steps:
        return {}
    # Another 1-D metric may be no series of steps: parameters, or the evaluations beside them.
    by_objective = has_steps.get(objective) if isinstance(objective, str) else None
    steps = by_objective or max(has_steps.values())
    return {name: every for name, length in has_steps.items() if length == steps}


def check_metrics(groups: list[Group], traces: list[Traces], points: Points) -> None:
    """All groups must return the same metrics, and read, together, every axis."""
    check_same_metrics(groups, traces, points)
    read = set().union(*(names for one in traces for names in one.reads.values()))
    if unread := [name for name in points.names if name not in read]:
        raise ValueError(
            f"train never reads the axis {', '.join(map(repr, unread))}: it would repeat the same "
            "trials. Read it from hp, or leave it out."
        )


def check_same_metrics(groups: list[Group], traces: list[Traces], points: Points) -> None:
    """All groups must return the same metrics."""
    first = traces[0].metrics | traces[0].evaluations
    for group, one in zip(groups, traces, strict=True):
        mine = one.metrics | one.evaluations
        for name in first.keys() | mine.keys():
            said = [
                f"{m[name].dtype}{list(m[name].shape)}" if name in m else "no such metric"
                for m in (first, mine)
            ]
            both = [m[name] for m in (first, mine) if name in m]
            alike = len(both) == 2 and both[0].dtype == both[1].dtype
            alike = alike and len(both[0].shape) == len(both[1].shape)
            padded = alike and has_nan(both[0].dtype)
            if said[0] != said[1] and not padded:
                raise ValueError(
                    f"metric {name!r} differs between structures: {said[0]} with "
                    f"{groups[0].structure}, {said[1]} with {group.structure}. Return the same "
                    "names, ranks and dtypes for all, and integers of the same length (floats may "
                    "differ in length: NaN follows the last)."
                )


def warn(traces: list[Traces], seeds: tuple[int, ...], stacklevel: int) -> None:
    """Warn at the user's line, so many calls above."""
    if len(seeds) > 1 and not any(one.reads_key for one in traces):
        warnings.warn(
            f"train never reads its key, so its {len(seeds)} seeds are {len(seeds)} times the same "
            "trial, with a spread of 0: use the key, or leave seeds out.",
            stacklevel=stacklevel,
        )
    if (longest := max(one.equations for one in traces)) > LONG_PROGRAM:
        warnings.warn(
            f"train is a program of {longest:,} equations, and may compile for minutes: a Python "
            "loop over steps or batches was unrolled. jax.lax.scan or jax.lax.fori_loop has its "
            "body once, and a Training takes it step by step.",
            stacklevel=stacklevel,
        )


def warn_caller(message: str) -> None:
    """Warn at the line that called this package, from anywhere in it."""
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("rmsprop_jax."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def say_idle_cores(processes: Cluster) -> None:
    mine = [d for d in processes.mesh.devices.tolist() if d.process_index == jax.process_index()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if mine[0].platform == "cpu" and len(mine) == 1 and (cores or 1) > 1:
        tqdm.write(
            f"sweep: 1 CPU device on {cores} cores. To use all, before JAX is first used: "
            f'jax.config.update("jax_num_cpu_devices", {cores})',
            file=sys.stderr,
        )
