"""The errors, warnings, and notes of an experiment before anything runs."""

import os
import sys
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from tqdm import tqdm

from rmsprop_jax._tune.options import count
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.schedulers import PopulationBasedTraining, Scheduler
from rmsprop_jax._tune.space.points import Points
from rmsprop_jax._tune.space.static_groups import StaticGroup
from rmsprop_jax._tune.space.values import has_nan
from rmsprop_jax._tune.training.checks import Metrics
from rmsprop_jax._tune.training.jaxprs import equations, is_callback
from rmsprop_jax._tune.training.schedule import Schedule
from rmsprop_jax._tune.training.state_spec import StateSpec
from rmsprop_jax._tune.training.trace import Traces
from rmsprop_jax._tune.trial_mesh import TrialMesh
from rmsprop_jax._tune.trials.objective import Objective
from rmsprop_jax._tune.warn import warn_caller

LONG_PROGRAM = 20_000  # equations: probably an unrolled Python loop, which compiles for minutes


def check_reads(traces: Sequence[Traces], points: Points) -> None:
    """Raise ValueError for an axis that no static group reads."""
    read = set().union(*(names for one in traces for names in one.reads.values()))
    if unread := [name for name in points.names if name not in read]:
        raise ValueError(
            f"train must read every axis of the points, but never reads the axis "
            f"{', '.join(map(repr, unread))}, which would repeat the same trials. Read it from hp, "
            "or leave it out."
        )


def check_same_metrics(
    groups: Sequence[StaticGroup], traces: Sequence[Traces], points: Points
) -> None:
    """Raise ValueError for static groups whose metrics differ from the first group's."""
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
                    f"metric {name!r} must be the same in all static groups, got {said[0]} with "
                    f"{groups[0].static} and {said[1]} with {group.static}. Return the same names, "
                    "ranks, and dtypes for all, and integers of the same length. (Floats may "
                    "differ in length, because NaN follows the last value.)"
                )


def checked_record_every(
    record_every: int | Mapping[str, int],
    metrics: Sequence[Metrics],
    objective: Objective | tuple[Objective, ...],
    schedule: Schedule,
    evaluations: Metrics,
) -> dict[str, int]:
    """Return k for each series of which only every k-th value is recorded.

    Args:
      record_every: k for all, or for each of some series.
      metrics: all metrics of a trial in each static group.
      objective: the objective, or several.
      schedule: the schedule of the trials.
      evaluations: the abstract metrics of `evaluate`, which are always recorded.

    Raises:
      ValueError: for a name that is not a series, or a k that is not an int of at least 1.
    """
    lengths = {
        name: max(one[name].shape[0] for one in metrics)
        for name, metric in metrics[0].items()
        if metric.shape and name not in evaluations
    }
    if isinstance(record_every, Mapping):
        if unknown := set(record_every) - set(lengths):
            raise ValueError(
                "record_every must name metrics with one value per step, which are "
                f"{sorted(lengths)}, got {sorted(unknown)}. Leave other names out."
            )
        each = {name: count(f"record_every[{name!r}]", x) for name, x in record_every.items()}
        return {name: k for name, k in each.items() if k > 1}
    every = count("record_every", record_every)
    if every == 1 or not lengths:
        return {}
    # A 1-D metric of another length may not be a series of steps, but parameters or evaluations.
    steps = lengths.get(objective) if isinstance(objective, str) else None
    steps = steps or max(lengths.values())
    return {name: every for name, length in lengths.items() if length == steps}


def checked_keep_states(keep: int | str, points: int) -> int | str:
    """Return `keep_states` as an int or "all"; ValueError for more states than points."""
    if isinstance(keep, str):
        return keep
    if keep > points:
        raise ValueError(
            f"keep_states must be at most the number of points, {points}, got {keep}. Write "
            'keep_states="all" to keep all.'
        )
    return int(keep)


def check_population(
    scheduler: Scheduler | None, groups: Sequence[StaticGroup], traces: Sequence[Traces]
) -> None:
    """Raise ValueError for a population that has too few members, or whose changes `step` would
    not read."""
    if not isinstance(scheduler, PopulationBasedTraining):
        return
    for group, one in zip(groups, traces, strict=True):
        for name, distribution in scheduler.space.items():
            if name not in group.dtypes:
                raise ValueError(
                    "the space of PopulationBasedTraining must have traced hyperparameters of the "
                    f"points, which are {sorted(group.dtypes)}, got {name!r}. Rename it, or leave "
                    "it out of the space."
                )
            if name not in one.reads["step"]:
                raise ValueError(
                    "the space of PopulationBasedTraining must have hyperparameters that step "
                    f"reads, got {name!r}, but step never reads it. Read it from hp in step, or "
                    "leave it out of the space."
                )
            drawn = map(distribution.quantile, np.linspace(0.0, 1.0, 64, endpoint=False).tolist())
            if group.dtypes[name].kind == "i" and not all(float(x).is_integer() for x in drawn):
                raise ValueError(
                    f"{name!r} must be an axis of floats, because PopulationBasedTraining draws "
                    f"numbers from {distribution} that are not whole, got an axis of ints. Write "
                    f"its values as floats, such as {name}=[0.0]."
                )
        if len(group.points) < 4:
            raise ValueError(
                "PopulationBasedTraining must have at least 4 points of each static group, got "
                f"{len(group.points)} with {group.static}. Add points, or leave the group out."
            )


def refuse_callbacks(traces: Sequence[Traces]) -> None:
    """Raise ValueError for functions that call back into Python, which a worker cannot do."""
    for one in traces:
        for name, piece in one.pieces.items():
            for equation in equations(piece.jaxpr):
                if is_callback(equation):
                    raise ValueError(
                        f"{name} must not call back into Python with an executor, because its "
                        f"programs run on other machines, got {equation.primitive.name}. Leave "
                        "out jax.debug.print and other callbacks: the metrics show numbers of each "
                        "step."
                    )


def warn_of_traces(traces: Sequence[Traces], seeds: tuple[int, ...]) -> None:
    """Warn of a key that is never read, and of programs that compile for minutes.

    Args:
      traces: the traced functions of each static group.
      seeds: the seeds of the sweep.
    """
    if len(seeds) > 1 and not any(one.reads_key for one in traces):
        warn_caller(
            f"train never reads its key, so its {len(seeds)} seeds are {len(seeds)} times the same "
            "trial, with a standard deviation of 0. Use the key, or leave seeds out."
        )
    if (longest := max(one.equations for one in traces)) > LONG_PROGRAM:
        warn_caller(
            f"train is a program of {longest:,} equations, and may compile for minutes. A Python "
            "loop over steps or batches was probably unrolled. Use jax.lax.scan or "
            "jax.lax.fori_loop, whose body compiles once, or a Training, which runs in steps."
        )


def warn_of_whole_leaves(specs: Sequence[StateSpec], mesh: TrialMesh) -> None:
    """Warn of leaves of a state that every device of a trial holds whole, while others of their
    shape are sharded: an average of gradients without the sharding of its parameters.

    Args:
      specs: the structure of the state of each static group, with shardings.
      mesh: the mesh of the trials.
    """
    for spec in specs:
        paths = [jax.tree_util.keystr(path) for path in spec.paths]
        each = list(zip(paths, spec.data, spec.shardings or (), spec.shards, strict=True))
        sharded = {x.shape: sharding for _, x, sharding, shards in each if shards > 1}
        for path, x, _, shards in each:
            if shards == 1 and x.shape in sharded:
                shard = "sharding.reshard" if mesh.explicit else "lax.with_sharding_constraint"
                whole = sum(y.size * y.dtype.itemsize for _, y, _, n in each if n == 1)
                warn_caller(
                    f"each device of a trial holds the whole state{path}, {x.dtype}{list(x.shape)}"
                    f", {x.size * x.dtype.itemsize:,} bytes, although an array of this shape is "
                    f"sharded. The leaves that are not sharded take {whole:,} bytes on each "
                    f"device. Shard it in init: jax.{shard}(x, {sharded[x.shape]}). The init of "
                    "rj.rmsprop keeps the sharding of the parameters."
                )
                return


def note_idle_cores(cluster: Cluster) -> None:
    """Print how to use all cores, if the only device is a CPU with several cores."""
    here = [device for device in cluster.devices if device.process_index == jax.process_index()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if here[0].platform == "cpu" and len(here) == 1 and (cores or 1) > 1:
        tqdm.write(
            f"sweep: 1 CPU device on {cores} cores. To use all, before JAX is first used: "
            f'jax.config.update("jax_num_cpu_devices", {cores})',
            file=sys.stderr,
        )
