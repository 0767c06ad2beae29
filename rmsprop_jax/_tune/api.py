"""`sweep`: check every structure, compile each once, run its trials in rounds."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rmsprop_jax._tune.agreement import described, refuse_disagreement
from rmsprop_jax._tune.compile.batched_keys import fitting_batch_size
from rmsprop_jax._tune.compile.group_compiler import GroupCompiler, compiled_ahead
from rmsprop_jax._tune.compile.kernels import GroupKernels
from rmsprop_jax._tune.experiment_spec import ExperimentSpec, Stages, TrialData, no_trials
from rmsprop_jax._tune.options import (
    check_args,
    check_callback,
    check_metrics,
    checked_batch_size,
    checked_devices,
    checked_every,
    checked_keep_states,
    checked_steps,
    own_settings,
    refuse_stages,
    say_idle_cores,
    series,
    warn,
    warn_caller,
)
from rmsprop_jax._tune.results.result import SweepResult
from rmsprop_jax._tune.results.retrain import Retrainer
from rmsprop_jax._tune.run.batch import CompiledGroup
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.run.data import BatchReader
from rmsprop_jax._tune.run.runners import (
    Run,
    Structures,
    boundary_by_boundary,
    functions,
    one_after_another,
)
from rmsprop_jax._tune.schedulers import PopulationBasedTraining, Scheduler, settings_of
from rmsprop_jax._tune.space.points import Points
from rmsprop_jax._tune.space.seeds import checked_seeds
from rmsprop_jax._tune.space.values import is_int, is_real
from rmsprop_jax._tune.storage.folder import FolderWriter, local_folder
from rmsprop_jax._tune.training.fingerprint import Fingerprint
from rmsprop_jax._tune.training.state_spec import Kept
from rmsprop_jax._tune.training.trace import (
    Group,
    Traces,
    group_points,
    trace_train,
    trace_training,
)
from rmsprop_jax._tune.training.training import Train, Training
from rmsprop_jax._tune.trials.checkpoints import CheckpointManager
from rmsprop_jax._tune.trials.decision_log import DecisionLog
from rmsprop_jax._tune.trials.objective import Objective, ObjectiveSpec, checked
from rmsprop_jax._tune.trials.table import Report, TrialTable


class SweepInterrupted(KeyboardInterrupt):
    """Ctrl-C during a sweep; `result` holds the trials that were finished.

    Attributes:
      result: a `SweepResult` of them, and of those under way, which are "unfinished".
    """

    def __init__(self, result: SweepResult):
        super().__init__(result)  # as `pickle` makes it again
        self.result = result

    def __str__(self) -> str:
        return (
            f"interrupted; .result holds what is finished: {self.result!r}. What JAX has begun (a "
            "round, a compile) it brings to its end before this process can end."
        )


def sweep(
    train: Train | Training,
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
    record_every: int | Mapping[str, int] = 1,
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
        gains nothing, and elsewhere as many as fit the memory by the compiler's own analysis; half
        as many where it runs out all the same (but for what waits at boundaries, or several
        processes). It is 1 where trials draw with keys of `rbg` or `unsafe_rbg`, whose numbers
        `vmap` changes, and a larger number is refused. A last batch that is not full runs its last
        trial again in the lanes that are left.
      devices: by default all, of every process after `jax.distributed.initialize()`; then every
        process makes the same call and gets the same result. Process 0 writes, draws, asks the
        scheduler, and evaluates the objective; an exception on one process ends all. On CPU, give
        JAX one device a core before its first use:
        `jax.config.update("jax_num_cpu_devices", os.cpu_count())`.
      path: a folder for what is finished. The same call goes on where an earlier one was stopped
        or killed, on any number of devices and with any `batch_size`; with more points or seeds,
        only the new trials run. It holds metrics: another `objective` or `mode` reads the same.
        Plain `.json` and `.npz`; one writer at a time. Of a training it holds the states of trials
        on the way, too, and a scheduler's decisions, which are not asked for again; with a
        scheduler neither points nor seeds may be added.
      progress: draw a bar: steps or trials done, how many finished, stopped and failed, the best so
        far, the time left.
      record_every: of a metric with one value a step, keep each `record_every`-th step and the
        last, to save memory. Those are the metrics as long as the objective, or else the longest; a
        dict from metrics to numbers says it for each. A function as `objective` gets what is kept.
      callback: `callback(report)` on process 0 alone after each round of trials, with a tuple of
        `TrialReport`: number, point, seed, step, and the newest value of each metric. An exception
        in it stops the sweep on every process, with what is finished kept.
      steps: of a `Training`, as all that follow: how many each trial runs. With a folder in which
        all states are kept, without a scheduler, the same call with more steps goes on where that
        one ended.
      evaluate_every: the steps of a segment, after which `evaluate` is called, the callback told
        and, where it is due, a checkpoint written; by default the steps are cut into 20. A shorter
        last segment, or one that a scheduler cuts, compiles nothing again.
      scheduler: `SuccessiveHalving`, `PopulationBasedTraining`, or an object of your own with the
        method `decide` of `Scheduler`. With one, as with `batches`, all trials come to
        a boundary before any passes it, so that the devices hold the states of all.
      keep_states: of how many of the best points the last states, of all seeds, are kept for
        `result.state`: 0, a number, or "all". On disk, too, where there is a `path`. With more
        seeds in a later call another point may become the best, whose state is gone, unless it was
        "all" from the start: that call warns before it runs.
      batches: `batches(t)`, a pure function from the step to a batch, a pytree of arrays of the
        same shapes and dtypes for every t, for data that does not fit a device. `step` gets it
        before `args`. It is called once a step for all trials, on your thread, for the next segment
        while the devices run this one; in every process. Its arrays are copied, so it may return
        the same buffer each time.
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
        shape or a bool, linear algebra that can hang this jaxlib on a CPU, random keys whose
        numbers a `batch_size` above 1 would change, a state that changes its structure, shapes or
        dtypes or whose leaves are no arrays, states that need more memory or disk than is free, or
        a `path` that holds another sweep, one by another JAX, or is damaged.
        Before anything runs, too, where several processes pass different arguments; only
        `progress` may differ, and `callback` may be missing on others than process 0. On the way,
        for a scheduler's answer that cannot be followed, a batch of another shape, or one that
        differs between processes.
      RuntimeError: where another process writes to `path`, where that folder was moved or deleted
        on the way, or where another of the processes that sweep together left by an exception,
        which the message quotes.
      OSError: where `path` cannot be written.
      SweepInterrupted: on Ctrl-C; `.result` holds the trials that were finished. Any other
        exception on the way has that `.result`, too, as has the `SystemExit` of a signal handler.

    Warns:
      UserWarning: for several seeds of a `train` that never reads its key, for a program so long
        that a Python loop must have been unrolled, for states that `keep_states` asks for and an
        earlier call dropped, for a rung at which no objective is finite, and for an automatic
        `batch_size` that is 1 because of its random keys.

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
        seeds, objective, mode, args, batch_size, devices, path, progress, record_every, callback,
        steps, evaluate_every, scheduler, keep_states, batches, checkpoint_seconds,
    )  # fmt: skip
    with own_settings("sweep"):
        processes = Cluster(checked_devices(devices))
        with processes.together("sweep"):
            return _sweep(train, points, options, processes, start)


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
    record_every: Any
    callback: Any
    steps: Any
    evaluate_every: Any
    scheduler: Any
    keep_states: Any
    batches: Any
    checkpoint_seconds: Any


def _sweep(
    train: Any, points: Any, asked: Options, processes: Cluster, start: float
) -> SweepResult:
    if not isinstance(points, Points):
        points = Points(points)
    if not len(points):
        raise ValueError("sweep needs at least one point, got none.")
    if asked.path is not None:
        local_folder(asked.path)
    seeds, args = checked_seeds(asked.seeds), asked.args
    check_args(args)
    batch_size = checked_batch_size(asked.batch_size)
    check_callback(asked.callback)
    groups = group_points(points)
    with contextlib.ExitStack() as stack:
        batches = None
        if isinstance(train, Training):
            steps, evaluate_every, rungs = _stages(asked, points)
            settings = _settings_of(asked)
            if asked.batches is not None:
                batches = BatchReader(asked.batches, processes, first=1)
            batch = batches.one if batches else None
            traces = [trace_training(train, group, points, args, batch) for group in groups]
            stages = Stages(steps, evaluate_every, rungs, settings, traces[0].evaluations)
            if batches:
                batches.along(stages)
        else:
            refuse_stages(asked)
            traces = [trace_train(train, group, points, args) for group in groups]
            stages = None
        check_metrics(groups, traces, points)
        _check_scheduler(asked.scheduler, groups, traces)
        metrics = [series(one, stages) for one in traces]
        every = checked_every(asked.record_every, metrics, asked.objective, stages)
        is_hashed = asked.path is not None or processes.count > 1
        fingerprint = Fingerprint(groups, traces, args, needed=is_hashed)
        plan = ExperimentSpec(points, seeds, every, groups, metrics, fingerprint, stages)
        aim = checked(asked.objective, asked.mode, plan)
        keep = checked_keep_states(asked.keep_states, len(points)) if stages else 0
        warn(traces, seeds, stacklevel=4)
        if processes.count > 1:
            given = _decisive(plan, aim, batch_size, keep, batches, processes, asked)
            refuse_disagreement(processes, given)
        if asked.progress and processes.first and asked.devices is None:
            say_idle_cores(processes)

        batch = batches.one if batches else None
        pieces = [GroupKernels(one, plan, i, batch) for i, one in enumerate(traces)]
        batch_size = fitting_batch_size(batch_size, pieces, args, processes, stacklevel=4)
        store, stored = _open(processes, plan, aim.noted, asked.path, stack)
        ledger = TrialTable(plan, aim, stored, store.write if store else None, start, processes)
        specs = [one.state for one in traces if one.state is not None]
        known = store.decisions if store else []
        decisions = None
        if asked.scheduler is not None:
            init_only = [one.reads["init"] - _read_after(one) for one in traces]
            note = store.write_decision if store else None
            decisions = DecisionLog(
                asked.scheduler, plan, aim.name, init_only, known, note, processes
            )
            ledger.stop_known(decisions.known)
        keeper = CheckpointManager(
            plan, ledger, specs, keep, asked.checkpoint_seconds, store, asked.path is not None,
            processes,
        )  # fmt: skip
        lockstep = decisions is not None or batches is not None
        if specs:
            keeper.check_room(lockstep, processes.mesh.size, asked.path)
            keeper.warn_of_gone_states()
        if decisions is not None:
            ledger.replay(decisions.known)
        memory = Kept(keeper.kept, specs, *keeper.files()) if specs else None
        decided = decisions.known if decisions else []
        retrainer = Retrainer(train, plan.groups, processes.mesh.local_devices[0])
        result = lambda: ledger.result(retrainer=retrainer, decided=decided, kept=memory)
        run = Run(plan, ledger, keeper, processes, asked.callback)
        try:
            with ledger.bar(asked.progress and processes.first):
                placed, most = processes.place(args), None
                while True:
                    sizes: list[int] = []
                    each = _structures(
                        plan, pieces, placed, processes, batch_size, most, ledger, sizes
                    )
                    try:
                        with contextlib.closing(each):
                            if stages is None:
                                functions(run, each)
                            elif lockstep:
                                boundary_by_boundary(run, each, decisions, batches)
                            else:
                                one_after_another(run, each)
                        break
                    except jax.errors.JaxRuntimeError as error:
                        alone = not lockstep and processes.count == 1
                        most = _smaller_batch(error, batch_size, sizes, alone)
                    if specs:
                        keeper.resume()
            processes.on_first(lambda: _tidy(store, keeper))
        except KeyboardInterrupt as interrupt:
            raise SweepInterrupted(result()) from interrupt
        except BaseException as error:  # SystemExit, too, as a handler of SIGTERM raises it
            error.__dict__["result"] = result()
            error.add_note(f"What was finished is in this exception's .result: {result()!r}")
            raise
        return result()


def _tidy(store: FolderWriter | None, keeper: CheckpointManager) -> None:
    """What the folder of a call that ended well still needs, though nothing may have run."""
    keeper.forget()
    if store is not None:
        store.note_aim()


def _structures(
    plan: ExperimentSpec,
    pieces: Sequence[GroupKernels],
    args: Any,
    processes: Cluster,
    batch_size: int | str,
    most: int | None,
    ledger: TrialTable,
    sizes: list[int],
) -> Structures:
    """Each structure that has something left to run, compiled, in turn; their batches' sizes."""
    todo, makers = [], []
    for i, group in enumerate(plan.groups):
        trials = ledger.unfinished(group.indices)
        if len(trials):
            todo.append((i, trials))
            makers.append(GroupCompiler(pieces[i], args, processes, batch_size, len(trials), most))
    with contextlib.closing(compiled_ahead(makers)) as programs:
        for (i, trials), (compiled, held_up) in zip(todo, programs, strict=True):
            sizes.append(compiled.layout.batch_size)
            yield CompiledGroup(pieces[i], compiled, processes, args), trials, held_up


def _smaller_batch(error: Exception, batch_size: int | str, sizes: list[int], may: bool) -> int:
    """How many trials a batch may have after this error, where that helps; else it goes on.

    Args:
      error: of JAX, while batches of these sizes ran.
      batch_size: as asked for.
      sizes: none where none was compiled.
      may: whether the trials under way can begin again.
    """
    largest = max(sizes) if sizes else 1 if batch_size == "auto" else int(batch_size)
    if "RESOURCE_EXHAUSTED" in str(error) and largest > 1:
        if batch_size == "auto" and may:
            return largest // 2
        error.add_note(
            f"The devices ran out of memory with batches of {largest} trials: give a smaller "
            "batch_size."
        )
    raise error


def _stages(asked: Options, points: Points) -> tuple[int, int, tuple[int, ...]]:
    """The steps, how many lie between evaluations, and a scheduler's rungs."""
    steps, every = checked_steps(asked.steps, asked.evaluate_every, "sweep")
    seconds = asked.checkpoint_seconds
    if not is_real(seconds) or not seconds >= 0:
        raise ValueError(f"checkpoint_seconds must be a number of at least 0, got {seconds!r}.")
    rungs: list[int] = []
    if (scheduler := asked.scheduler) is not None:
        if isinstance(scheduler, type) or not callable(getattr(scheduler, "decide", None)):
            raise ValueError(
                f"scheduler must be an object with decide(step, view), got {scheduler!r}: "
                "rj.SuccessiveHalving() or rj.PopulationBasedTraining(space), say."
            )
        if hasattr(scheduler, "rungs"):
            rungs = list(scheduler.rungs(steps))
        else:  # whenever there is something new
            rungs = list(range(every, steps, every))
        if not all(is_int(rung) and 0 < rung < steps for rung in rungs):
            raise ValueError(
                f"the scheduler's rungs must be whole numbers between 1 and {steps - 1}, got "
                f"{rungs}."
            )
    return steps, every, tuple(sorted(set(map(int, rungs))))


def _settings_of(asked: Options) -> dict[str, Any] | None:
    """What tells the scheduler from others, for a folder; a warning where that is not all."""
    if (scheduler := asked.scheduler) is None:
        return None
    settings, is_all = settings_of(scheduler)
    if asked.path is not None and not is_all:
        warn_caller(
            f"the settings of the scheduler {scheduler!r} cannot be compared, so that a later call "
            "with this path may go on with other settings, unnoticed: make it a dataclass of "
            "numbers and strings, or give it a method fingerprint() -> str."
        )
    return settings


def _read_after(traces: Traces) -> set[str]:
    """The names that what follows `init` reads."""
    return set().union(*(names for piece, names in traces.reads.items() if piece != "init"))


def _check_scheduler(scheduler: Any, groups: list[Group], traces: list[Traces]) -> None:
    """A population changes numbers that `step` reads, among enough members."""
    if not isinstance(scheduler, PopulationBasedTraining):
        return
    for group, one in zip(groups, traces, strict=True):
        for name, distribution in scheduler.space.items():
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
            drawn = map(distribution.quantile, np.linspace(0.0, 1.0, 64, endpoint=False).tolist())
            if group.dtypes[name].kind == "i" and not all(float(x).is_integer() for x in drawn):
                raise ValueError(
                    f"{name!r} must be an axis of floats, because population draws numbers from "
                    f"{distribution} that are not whole, got an axis of ints. Write its values "
                    f"as floats, such as {name}=[0.0]."
                )
        if len(group.indices) < 4:
            raise ValueError(
                f"a population needs at least 4 points of each structure, {group.structure} has "
                f"{len(group.indices)}."
            )


def _open(
    processes: Cluster,
    plan: ExperimentSpec,
    aim: dict[str, Any],
    path: Any,
    stack: contextlib.ExitStack,
) -> tuple[FolderWriter | None, TrialData]:
    """The folder, for the first process to write, and what is finished in it, for all."""
    if path is None:
        return None, no_trials(plan, 0)

    store = processes.on_first(
        lambda: stack.enter_context(contextlib.closing(FolderWriter(path, plan, aim)))
    )
    stored = store.finished if store else None
    count = processes.tell("stored trials", len(stored.number) if stored else 0)
    stored = stored or no_trials(plan, count)
    return store, jax.tree.map(processes.from_first, stored)


def _decisive(
    plan: ExperimentSpec,
    aim: ObjectiveSpec,
    batch_size: int | str,
    keep: int | str,
    batches: BatchReader | None,
    processes: Cluster,
    asked: Options,
) -> dict[str, Any]:
    """For each argument on which the processes must agree what decides it."""
    hashed, stages = plan.fingerprint, plan.stages
    metrics = {name: str(plan.dtype(name)) for name in sorted(plan.metrics[0])}
    return {
        "train": [hashed.programs, hashed.constants, metrics, jax.__version__],
        "points": [described(list(plan.points)), sorted(plan.points.static)],
        "seeds": plan.seeds,
        "objective": aim.name if isinstance(aim.objective, str) else f"function {aim.name}",
        "mode": aim.mode,
        "args": hashed.args,
        "batch_size": batch_size,
        "devices": [device.id for device in processes.mesh.devices.tolist()],
        "path": asked.path and os.fspath(asked.path),
        "record_every": plan.every,
        "steps": stages and stages.steps,
        "evaluate_every": stages and stages.evaluate_every,
        "scheduler": stages and [stages.scheduler, *stages.rungs],
        "keep_states": keep,
        "batches": batches and [batches.shapes, batches.checksum],
        "checkpoint_seconds": float(asked.checkpoint_seconds) if stages else None,
        "callback": asked.callback is not None,
    }
