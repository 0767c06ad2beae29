"""The programs of a sweep, compiled for devices that need not be there."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rmsprop_jax._sweep.batched_keys import fitting_batch_size
from rmsprop_jax._sweep.checks import checked_steps, series
from rmsprop_jax._sweep.compiling import Maker
from rmsprop_jax._sweep.fingerprint import Fingerprint
from rmsprop_jax._sweep.pieces import Pieces
from rmsprop_jax._sweep.plan import Plan, Stages
from rmsprop_jax._sweep.points import Points
from rmsprop_jax._sweep.processes import Processes
from rmsprop_jax._sweep.seeds import checked_seeds
from rmsprop_jax._sweep.tracing import group_points, trace_train, trace_training
from rmsprop_jax._sweep.training import Training


def makers(
    train: Callable[..., Any] | Training,
    points: Points | Iterable[Mapping[str, Any]],
    processes: Processes,
    *,
    args: tuple[Any, ...] = (),
    seeds: int = 1,
    batch_size: int | str = "auto",
    steps: int | None = None,
    evaluate_every: int | None = None,
) -> list[Maker]:
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
    plan = Plan(points, seeds_, {}, groups, metrics, fingerprint, stages)
    pieces = [Pieces(one, plan, i) for i, one in enumerate(traces)]
    batch_size = fitting_batch_size(batch_size, pieces, args, processes, stacklevel=3)
    placed = processes.place(args)
    return [
        Maker(
            one, placed, processes, batch_size,
            len(group.indices) * len(seeds_),
        )
        for group, one in zip(groups, pieces, strict=True)
    ]  # fmt: skip
