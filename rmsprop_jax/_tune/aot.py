"""The programs of a sweep, compiled for devices that need not be there."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rmsprop_jax._tune.compile.batched_keys import fitting_batch_size
from rmsprop_jax._tune.compile.group_compiler import GroupCompiler
from rmsprop_jax._tune.compile.kernels import GroupKernels
from rmsprop_jax._tune.experiment_spec import ExperimentSpec, Stages
from rmsprop_jax._tune.options import checked_steps, series
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.space.points import Points
from rmsprop_jax._tune.space.seeds import checked_seeds
from rmsprop_jax._tune.training.fingerprint import Fingerprint
from rmsprop_jax._tune.training.trace import group_points, trace_train, trace_training
from rmsprop_jax._tune.training.training import Training


def makers(
    train: Callable[..., Any] | Training,
    points: Points | Iterable[Mapping[str, Any]],
    processes: Cluster,
    *,
    args: tuple[Any, ...] = (),
    seeds: int = 1,
    batch_size: int | str = "auto",
    steps: int | None = None,
    evaluate_every: int | None = None,
) -> list[GroupCompiler]:
    """For each structure what makes the programs that `sweep`, called alike, would run.

    Args:
      train: as for `sweep`, as is what follows but for the processes.
      processes: where; `Described` ones, say, of a TPU slice that this machine has no part of.

    Returns:
      Makers: `maker.finish(maker.make(maker.size))` compiles, and has the batch that `sweep` would
      choose.
    """
    points = points if isinstance(points, Points) else Points(points)
    groups, seeds_ = group_points(points), checked_seeds(seeds)
    if isinstance(train, Training):
        steps_, every = checked_steps(steps, evaluate_every, "sweep")
        traces = [trace_training(train, group, points, args, None) for group in groups]
        stages = Stages(steps_, every, (), None, traces[0].evaluations)
    else:
        traces = [trace_train(train, group, points, args) for group in groups]
        stages = None
    fingerprint = Fingerprint(groups, traces, args, needed=False)
    metrics = [series(one, stages) for one in traces]
    plan = ExperimentSpec(points, seeds_, {}, groups, metrics, fingerprint, stages)
    pieces = [GroupKernels(one, plan, i) for i, one in enumerate(traces)]
    batch_size = fitting_batch_size(batch_size, pieces, args, processes, stacklevel=3)
    placed = processes.place(args)
    return [
        GroupCompiler(
            one, placed, processes, batch_size,
            len(group.indices) * len(seeds_),
        )
        for group, one in zip(groups, pieces, strict=True)
    ]  # fmt: skip
