"""`sweep`: check every group, compile it once, run its trials in rounds."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from tqdm import tqdm

from rmsprop_jax._sweep.points import Points
from rmsprop_jax._sweep.program import (
    Group,
    Metrics,
    Program,
    Train,
    check,
    group_points,
    hyperparameters,
)
from rmsprop_jax._sweep.results import SweepResult

ROUND_SECONDS = 0.5  # tiny trials share a round until it lasts as long: progress is shown by rounds

Objective: TypeAlias = str | Callable[[dict[str, np.ndarray]], float]


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
    devices: Sequence[Any] | None = None,
    progress: bool = True,
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
      devices: by default all of this process. On CPU, give JAX one device a core before its first
        use: `jax.config.update("jax_num_cpu_devices", os.cpu_count())`.
      progress: draw a bar: trials done, failed, best so far, time left.

    Returns:
      A `SweepResult`. Its numbers are bit for bit those of `jax.jit(train)(hp, key)`.

    Raises:
      ValueError: before anything runs, for points, seeds, metrics or an objective that do not fit,
        an axis that `train` never reads, a name that no axis gives, or a traced number used as a
        shape or a bool.
      SweepInterrupted: on Ctrl-C; `.result` holds the trials that were finished.

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
    devices = jax.local_devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("devices is empty: leave it out to use all.")

    groups = group_points(points)
    metrics = _check_groups(train, groups, points, args, objective)
    group_of = {i: group for group in groups for i in group.indices}
    hp = lambda i: hyperparameters(group_of[i], points[i])
    compile_seconds = time.perf_counter() - start

    pick = np.nanmin if mode == "min" else np.nanmax
    total = len(points) * len(seeds)
    done = np.zeros(total, bool)
    stored = {name: np.zeros((total, *m.shape), m.dtype) for name, m in metrics.items()}
    values = np.full(total, np.nan)

    def result() -> SweepResult:
        trials = np.flatnonzero(done)
        kept = {name: array[trials] for name, array in stored.items()}
        seconds = time.perf_counter() - start - compile_seconds
        return SweepResult(
            points, seeds, hp, trials, kept, values[trials], mode, compile_seconds, seconds
        )

    bar = tqdm(total=total, unit="trial", disable=not progress)
    best, failed = np.nan, 0
    try:
        for group in groups:
            program = Program(train, group, points, seeds, args, devices)
            compile_seconds += program.compile_seconds
            rows = np.repeat(np.arange(len(group.indices)), len(seeds))
            seed_rows = np.tile(np.arange(len(seeds)), len(group.indices))
            trials = np.asarray(group.indices)[rows] * len(seeds) + seed_rows
            at, grown = 0, False
            while at < len(trials):
                begin = time.perf_counter()
                now = slice(at, at + program.round_size)
                out = program(rows[now], seed_rows[now])
                values[trials[now]] = _objectives(objective, out)
                for name, array in out.items():
                    stored[name][trials[now]] = array
                done[trials[now]] = True
                got = values[trials[now]]
                failed += int((~np.isfinite(got)).sum())
                whole = got[np.isfinite(got)]
                best = pick([best, *whole]) if len(whole) else best
                bar.set_postfix_str(
                    f"failed {failed}, best {'none' if np.isnan(best) else f'{best:.4g}'}",
                    refresh=False,
                )
                bar.update(len(got))
                seconds, first = time.perf_counter() - begin, at == 0
                at += len(got)
                left = -(-(len(trials) - at) // len(devices))
                # The first round is slower than the others; a second compile has to pay for itself.
                if not (grown or first) and left * seconds > 2 * program.compile_seconds:
                    grown = True
                    if (n := min(left, int(ROUND_SECONDS / seconds))) > 1:
                        program = Program(train, group, points, seeds, args, devices, n)
                        compile_seconds += program.compile_seconds
    except KeyboardInterrupt as interrupt:
        raise SweepInterrupted(result()) from interrupt
    finally:
        bar.close()
    return result()


def _seeds(seeds: Any) -> tuple[int, ...]:
    if isinstance(seeds, int | np.integer) and not isinstance(seeds, bool):
        if seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {seeds}.")
        return tuple(range(int(seeds)))
    listed = list(seeds) if isinstance(seeds, Iterable) and not isinstance(seeds, str) else None
    if not listed or not all(
        isinstance(s, int | np.integer) and not isinstance(s, bool) for s in listed
    ):
        raise ValueError(f"seeds must be a count or a sequence of ints, got {seeds!r}.")
    if len(set(listed)) < len(listed):
        raise ValueError(f"seeds must differ from one another, got {listed}.")
    return tuple(map(int, listed))


def _check_groups(
    train: Train, groups: list[Group], points: Points, args: tuple[Any, ...], objective: Objective
) -> Metrics:
    """Trace every group; all must return the same metrics and read, together, every axis."""
    metrics: Metrics = {}
    read: set[str] = set()
    for group in groups:
        got, names = check(train, group, points, args)
        read |= names
        if not metrics:
            metrics = got
        for name in metrics.keys() | got.keys():
            shapes = [
                f"{m[name].dtype}{list(m[name].shape)}" if name in m else "no such metric"
                for m in (metrics, got)
            ]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"metric {name!r} differs between structures: {shapes[0]} with "
                    f"{groups[0].structure}, {shapes[1]} with {group.structure}. Return the same "
                    "names, shapes and dtypes for all."
                )
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


def _objectives(objective: Objective, metrics: dict[str, np.ndarray]) -> np.ndarray:
    """The objective of each trial of a round, float64."""
    if isinstance(objective, str):
        values = metrics[objective]
        return values.reshape(len(values), -1)[:, -1].astype(float)
    trials = len(next(iter(metrics.values())))
    each = ({name: array[j] for name, array in metrics.items()} for j in range(trials))
    return np.array([float(objective(one)) for one in each])
