"""`sweep`: check every structure, compile each once, run its trials in rounds."""

import contextlib
import os
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from rmsprop_jax._sweep.batches import Batches
from rmsprop_jax._sweep.compiling import Maker, compiled_ahead
from rmsprop_jax._sweep.decisions import Decisions
from rmsprop_jax._sweep.engine import (
    Run,
    Structures,
    boundary_by_boundary,
    functions,
    one_after_another,
)
from rmsprop_jax._sweep.fingerprint import Fingerprint
from rmsprop_jax._sweep.keeping import Keeper
from rmsprop_jax._sweep.ledger import Ledger, Report
from rmsprop_jax._sweep.objective import Objective, checked
from rmsprop_jax._sweep.pieces import Pieces
from rmsprop_jax._sweep.plan import Plan, Stages, Trials, no_trials
from rmsprop_jax._sweep.points import Points
from rmsprop_jax._sweep.processes import Processes
from rmsprop_jax._sweep.results import SweepResult
from rmsprop_jax._sweep.rounds import Structure
from rmsprop_jax._sweep.schedulers import Scheduler, population
from rmsprop_jax._sweep.seeds import checked_seeds
from rmsprop_jax._sweep.states import Kept
from rmsprop_jax._sweep.store import Store
from rmsprop_jax._sweep.tracing import (
    Group,
    Metrics,
    Traces,
    group_points,
    trace_train,
    trace_training,
)
from rmsprop_jax._sweep.training import Training
from rmsprop_jax._sweep.values import is_int

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
    train: Callable[..., dict[str, jax.Array]] | Training,
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
    every: int | Mapping[str, int] = 1,
    callback: Callable[[Report], Any] | None = None,
    steps: int | None = None,
    evaluate_every: int | None = None,
    scheduler: Scheduler | None = None,
    keep_states: int | str = 1,
    batches: Callable[[int], Any] | None = None,
    checkpoint_seconds: float = 30,
) -> SweepResult:
    """Train every point with every seed: one compile for each structure, on every device.

    Args:
      train: `train(hp, key, *args) -> metrics`, a pure function that runs one whole training; or a
        `Training`, which the sweep can also show, stop, keep, go on with and change on the way.
        `hp` is a dict; its numbers arrive as traced scalars. Metrics are named arrays of rank 0
        (a value) or 1 (one value a step), with the same names, ranks and dtypes for all points;
        floats of a structure with fewer steps are followed by NaN.
        Build the optimiser inside: `rj.rmsprop(hp["learning_rate"], decay=hp["decay"])`.
      points: `Points`, or a list of dicts with the same names.
      seeds: a count n (0 … n−1), or the seeds. Every point gets the same keys `jax.random.key(s)`.
      objective: a metric's name (its last value counts), or a function on the host from one trial's
        metrics, as NumPy arrays, to a float; it is tried on zeros first. A trial whose objective
        is not finite has failed: it is kept and marked, is never best, and touches no other.
        Of a training's trial on the way, the last value is that at its present step, and a function
        gets the metrics cut to there.
      mode: "min" or "max".
      args: arrays (or pytrees of them) that every trial reads, copied to each device once.
      batch_size: how many trials share one `vmap` on a device. "auto" is 1 on a CPU, where `vmap`
        gains nothing, and elsewhere as many as fit the memory by the compiler's own analysis. A
        last batch that is not full runs its last trial again in the lanes that are left.
      devices: by default all, of every process after `jax.distributed.initialize()`; then every
        process makes the same call and gets the same result, and process 0 writes and draws. On
        CPU, give JAX one device a core before its first use:
        `jax.config.update("jax_num_cpu_devices", os.cpu_count())`.
      path: a folder for what is finished. The same call goes on where an earlier one was stopped
        or killed, on any number of devices and with any `batch_size`; with more points or seeds,
        only the new trials run. It holds metrics: another `objective` or `mode` reads the same.
        Plain `.json` and `.npz`; one writer at a time. Of a training it holds the states of trials
        on the way, too, and a scheduler's decisions, which are not asked for again; with a
        scheduler neither points nor seeds may be added.
      progress: draw a bar: steps or trials done, how many finished, stopped and failed, the best so
        far, the time left.
      every: of a metric with one value a step, keep each `every`-th step and the last, to save
        memory. Those are the metrics as long as the objective, or else the longest; a dict from
        metrics to numbers says it for each. A function as `objective` gets what is kept.
      callback: `callback(report)` on process 0 after each round of trials, with a tuple of
        `TrialReport`: number, point, seed, step, and the newest value of each metric. An exception
        in it stops the sweep on every process, with what is finished kept.
      steps: of a `Training`, as all that follow: how many each trial runs. With a folder in which
        all states are kept, without a scheduler, the same call with more steps goes on where that
        one ended.
      evaluate_every: the steps of a segment, after which `evaluate` is called, the callback told
        and, where it is due, a checkpoint written; by default the steps are cut into 20. A shorter
        last segment, or one that a scheduler cuts, compiles nothing again.
      scheduler: `halving`, `population`, or an object of your own with the two methods of
        `Scheduler`. With one, as with `batches`, all trials come to a boundary before any passes
        it, so that the devices hold the states of all.
      keep_states: of how many of the best points the last states, of all seeds, are kept for
        `result.state`: 0, a number, or "all". On disk, too, where there is a `path`.
      batches: `batches(t)`, a pure function from the step to a batch, a pytree of arrays of the
        same shapes and dtypes for every t, for data that does not fit a device. `step` gets it
        before `args`. It is called once a step for all trials, in a thread, for the next segment
        while this one runs; in every process.
      checkpoint_seconds: with a `path`, the least time between two checkpoints of the trials on the
        way; 0 writes one at each boundary. A kill costs what came since.

    A structure's programs compile once in a process, many side by side, while trials of others run:
    one for a function, one each for `init`, a segment of steps and `evaluate`.

    Returns:
      A `SweepResult`. With a `batch_size` of 1 its numbers are bit for bit those of
      `jax.jit(train)(hp, key)`, or on a CPU, for at least 2 steps, of `jax.jit(training.run)`;
      `vmap` rounds otherwise, in the last digits.

    Raises:
      ValueError: before anything runs, for points, seeds, metrics or an objective that do not fit,
        an axis that `train` never reads, a name that no axis gives, a traced number used as a
        shape or a bool, linear algebra that can hang this jaxlib on a CPU, a state that changes its
        structure, shapes or dtypes or whose leaves are no arrays, states that need more memory or
        disk than is free, or a `path` that holds another sweep, one by another JAX, or is damaged.
        On the way, for a scheduler's answer that cannot be followed, or a batch of another shape.
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
    options = Options(
        seeds, objective, mode, args, batch_size, devices, path, progress, every, callback, steps,
        evaluate_every, scheduler, keep_states, batches, checkpoint_seconds,
    )  # fmt: skip
    with _own_settings():
        return _sweep(train, points, options, start)


class Options(NamedTuple):
    """The arguments of `sweep`, as they were given."""

    seeds: Any
    objective: Any
    mode: Any
    args: Any
    batch_size: Any
    devices: Any
    path: Any
    progress: bool
    every: Any
    callback: Any
    steps: Any
    evaluate_every: Any
    scheduler: Any
    keep_states: Any
    batches: Any
    checkpoint_seconds: Any


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


def _sweep(train: Any, points: Any, asked: Options, start: float) -> SweepResult:
    if not isinstance(points, Points):
        points = Points(points)
    if not len(points):
        raise ValueError("sweep needs at least one point, got none.")
    seeds, args = checked_seeds(asked.seeds), asked.args
    if not isinstance(args, tuple):
        raise ValueError(f"args must be a tuple, got {type(args).__name__}: write args=(data,).")
    batch_size = asked.batch_size
    if batch_size != "auto":
        batch_size = _count("batch_size", batch_size, ' or "auto"')
    if asked.callback is not None and not callable(asked.callback):
        raise ValueError(f"callback must be a function of a report, got {asked.callback!r}.")
    processes = Processes(_devices(asked.devices))
    groups = group_points(points)
    with contextlib.ExitStack() as stack:
        batches = None
        if isinstance(train, Training):
            steps, evaluate_every, rungs = _stages(asked, points)
            if asked.batches is not None:
                batches = Batches(asked.batches, processes, first=1)
                stack.callback(batches.close)
            batch = batches.one if batches else None
            traces = [trace_training(train, group, points, args, batch) for group in groups]
            stages = Stages(
                steps, evaluate_every, rungs, _name_of(asked.scheduler), traces[0].evaluations
            )
            if batches:
                batches.along(stages)
        else:
            _refuse_stages(asked)
            traces = [trace_train(train, group, points, args) for group in groups]
            stages = None
        _check_metrics(groups, traces, points)
        _check_scheduler(asked.scheduler, groups, traces)
        metrics = [_series(one, stages) for one in traces]
        every = _every(asked.every, metrics, asked.objective, stages)
        fingerprint = Fingerprint(groups, traces, args, needed=asked.path is not None)
        plan = Plan(points, seeds, every, groups, metrics, fingerprint, stages)
        aim = checked(asked.objective, asked.mode, plan)
        keep = _keep_states(asked.keep_states, plan)
        _warn(traces, seeds)
        digest = lambda: _digest(plan, aim.name, aim.mode, batch_size, asked.path, keep)
        processes.refuse_different("points, seeds or options", digest)
        if asked.progress and processes.first and asked.devices is None:
            _say_idle_cores(processes)

        store, stored = _open(processes, plan, (aim.name, aim.mode), asked.path, stack)
        ledger = Ledger(plan, aim, stored, store.write if store else None, start)
        specs = [one.state for one in traces if one.state is not None]
        known = store.decisions if store else []
        decisions = None
        if asked.scheduler is not None:
            init_only = [one.reads["init"] - _read_after(one) for one in traces]
            note = store.write_decision if store else None
            decisions = Decisions(asked.scheduler, plan, init_only, known, note, processes)
            ledger.stop_known(decisions.known)
        keeper = Keeper(
            plan, ledger, specs, keep, asked.checkpoint_seconds, store, asked.path is not None,
            processes,
        )  # fmt: skip
        lockstep = decisions is not None or batches is not None
        if specs:
            keeper.check_room(lockstep, processes.mesh.size, asked.path)
        if decisions is not None:
            ledger.replay(decisions.known)
        memory = Kept(keeper.kept, specs, keeper.files()) if specs else None
        decided = decisions.known if decisions else []
        result = lambda: ledger.result(train=train, decided=decided, kept=memory)
        run = Run(plan, ledger, keeper, processes, asked.callback)
        try:
            with ledger.bar(asked.progress and processes.first):
                placed = processes.place(args)
                each = _structures(
                    plan, traces, batches, placed, processes, batch_size, ledger, stack
                )
                if stages is None:
                    functions(run, each)
                elif lockstep:
                    boundary_by_boundary(run, each, decisions, batches)
                else:
                    one_after_another(run, each)
        except KeyboardInterrupt as interrupt:
            raise SweepInterrupted(result()) from interrupt
        except Exception as error:
            error.__dict__["result"] = result()
            error.add_note(f"What was finished is in this exception's .result: {result()!r}")
            raise
        return result()


def _structures(
    plan: Plan,
    traces: Sequence[Traces],
    batches: Batches | None,
    args: Any,
    processes: Processes,
    batch_size: int | str,
    ledger: Ledger,
    stack: contextlib.ExitStack,
) -> Structures:
    """Each structure that has something left to run, compiled, in turn."""
    batch = batches.one if batches else None
    todo, makers = [], []
    for i, group in enumerate(plan.groups):
        trials = ledger.unfinished(group.indices)
        if len(trials):
            pieces = Pieces(traces[i], plan, i, batch)
            todo.append((i, trials))
            makers.append(Maker(pieces, plan, args, processes, batch_size, len(trials)))
    programs = stack.enter_context(contextlib.closing(compiled_ahead(makers)))
    for (i, trials), (compiled, held_up) in zip(todo, programs, strict=True):
        yield Structure(plan, i, compiled, processes, args), trials, held_up


def _stages(asked: Options, points: Points) -> tuple[int, int, tuple[int, ...]]:
    """The steps, how many lie between evaluations, and a scheduler's rungs."""
    if asked.steps is None:
        raise ValueError("a Training needs steps: sweep(training, points, steps=...).")
    steps = _count("steps", asked.steps)
    every = -(-steps // 20)
    if asked.evaluate_every is not None:
        every = min(_count("evaluate_every", asked.evaluate_every), steps)
    seconds = asked.checkpoint_seconds
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not seconds >= 0:
        raise ValueError(f"checkpoint_seconds must be a number of at least 0, got {seconds!r}.")
    rungs: list[int] = []
    if (scheduler := asked.scheduler) is not None:
        if isinstance(scheduler, type) or not callable(getattr(scheduler, "decide", None)):
            raise ValueError(
                f"scheduler must be an object with decide(boundary, table), got {scheduler!r}: "
                "rj.halving() or rj.population(space), say."
            )
        if hasattr(scheduler, "boundaries"):
            rungs = list(scheduler.boundaries(steps))
        else:  # whenever there is something new
            rungs = list(range(every, steps, every))
        if not all(is_int(rung) and 0 < rung < steps for rung in rungs):
            raise ValueError(
                f"the scheduler's boundaries must be whole numbers between 1 and {steps - 1}, got "
                f"{rungs}."
            )
    return steps, every, tuple(sorted(set(map(int, rungs))))


def _name_of(scheduler: Any) -> str:
    """What tells two schedulers apart on disk: what they print; one that prints its address, by its
    type."""
    text = "" if scheduler is None else repr(scheduler)
    return type(scheduler).__qualname__ if " at 0x" in text else text


def _refuse_stages(asked: Options) -> None:
    defaults = {
        "steps": None, "evaluate_every": None, "scheduler": None, "batches": None, "keep_states": 1,
    }  # fmt: skip
    if given := [name for name, default in defaults.items() if getattr(asked, name) != default]:
        raise ValueError(
            f"{', '.join(given)} is for a Training, whose steps sweep knows: train is a function, "
            "which runs as a whole. Write rj.Training(init, step)."
        )


def _keep_states(keep: Any, plan: Plan) -> int | str:
    if plan.stages is None:
        return 0
    if isinstance(keep, str) or not is_int(keep) or keep < 0:
        if keep == "all":
            return "all"
        raise ValueError(f'keep_states must be 0, a whole number, or "all", got {keep!r}.')
    if keep > len(plan.points):
        raise ValueError(
            f'keep_states={keep} is more than the {len(plan.points)} points: "all" keeps those.'
        )
    return int(keep)


def _series(traces: Traces, stages: Stages | None) -> Metrics:
    """What a trial gives: of a training the metrics of a step, each step, and evaluations."""
    if stages is None:
        return traces.metrics
    over = lambda m, n: jax.ShapeDtypeStruct((n,), m.dtype)
    of_steps = {name: over(m, stages.steps) for name, m in traces.metrics.items()}
    boundaries = len(stages.boundaries)
    return of_steps | {name: over(m, boundaries) for name, m in traces.evaluations.items()}


def _read_after(traces: Traces) -> set[str]:
    """The names that what follows `init` reads."""
    return set().union(*(names for piece, names in traces.reads.items() if piece != "init"))


def _check_scheduler(scheduler: Any, groups: list[Group], traces: list[Traces]) -> None:
    """A population changes numbers that `step` reads, among enough members."""
    if not isinstance(scheduler, population):
        return
    for group, one in zip(groups, traces, strict=True):
        for name in scheduler.space:
            if name not in group.dtypes:
                raise ValueError(
                    f"population changes {name!r}, which is no number of the points: these have "
                    f"{sorted(group.dtypes)}."
                )
            if name not in one.reads["step"]:
                raise ValueError(
                    f"population changes {name!r}, but step never reads it, so that a change would "
                    "do nothing: read it from hp in step, or leave it out of the space."
                )
        if len(group.indices) < 4:
            raise ValueError(
                f"a population needs at least 4 points of each structure, {group.structure} has "
                f"{len(group.indices)}."
            )


def _open(
    processes: Processes, plan: Plan, aim: tuple[str, str], path: Any, stack: contextlib.ExitStack
) -> tuple[Store | None, Trials]:
    """The folder, for the first process to write, and what is finished in it, for all."""
    if path is None:
        return None, no_trials(plan, 0)

    store = processes.on_first(
        lambda: stack.enter_context(contextlib.closing(Store(path, plan, aim)))
    )
    stored = store.finished if store else no_trials(plan, 0)
    count = int(processes.from_first(np.asarray(len(stored.number))))
    if not processes.first:
        stored = no_trials(plan, count)
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


def _every(
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


def _warn(traces: list[Traces], seeds: tuple[int, ...]) -> None:
    if len(seeds) > 1 and not any(one.reads_key for one in traces):
        warnings.warn(
            f"train never reads its key, so its {len(seeds)} seeds are {len(seeds)} times the same "
            "trial, with a spread of 0: use the key, or leave seeds out.",
            stacklevel=4,
        )
    if (longest := max(one.equations for one in traces)) > LONG_PROGRAM:
        warnings.warn(
            f"train is a program of {longest:,} equations, and may compile for minutes: a Python "
            "loop over steps or batches was unrolled. jax.lax.scan or jax.lax.fori_loop has its "
            "body once, and a Training takes it step by step.",
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


def _check_metrics(groups: list[Group], traces: list[Traces], points: Points) -> None:
    """All groups must return the same metrics, and read, together, every axis."""
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
            padded = alike and jnp.issubdtype(both[0].dtype, jnp.floating)  # with NaN
            if said[0] != said[1] and not padded:
                raise ValueError(
                    f"metric {name!r} differs between structures: {said[0]} with "
                    f"{groups[0].structure}, {said[1]} with {group.structure}. Return the same "
                    "names, ranks and dtypes for all, and integers of the same length (floats may "
                    "differ in length: NaN follows the last)."
                )
    if traces[0].state is not None and (clash := {"status", "reached"} & {*first, *points.names}):
        raise ValueError(f"{sorted(clash)}: a training's results have columns of that name.")
    read = set().union(*(names for one in traces for names in one.reads.values()))
    if unread := [name for name in points.names if name not in read]:
        raise ValueError(
            f"train never reads the axis {', '.join(map(repr, unread))}: it would repeat the same "
            "trials. Read it from hp, or leave it out."
        )
