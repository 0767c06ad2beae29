"""`sweep`: whole trainings over points and seeds."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from rmsprop_jax._tune.experiment import Experiment
from rmsprop_jax._tune.interrupts import interruptible
from rmsprop_jax._tune.jax_settings import own_settings
from rmsprop_jax._tune.options import Options
from rmsprop_jax._tune.results.result import SweepResult
from rmsprop_jax._tune.run.as_completed import AsCompletedRunner
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.run.executor_backend import ExecutorBackend
from rmsprop_jax._tune.run.local_devices import LocalDevices
from rmsprop_jax._tune.run.machine import Machine
from rmsprop_jax._tune.run.sequential import SequentialRunner
from rmsprop_jax._tune.run.synchronous import SynchronousRunner
from rmsprop_jax._tune.schedulers import Scheduler
from rmsprop_jax._tune.session import Session
from rmsprop_jax._tune.space.points import Points
from rmsprop_jax._tune.space.values import PyTree
from rmsprop_jax._tune.training.training import Train, Training
from rmsprop_jax._tune.trials.objective import Objective
from rmsprop_jax._tune.trials.progress import Report


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
    mesh: Mesh | None = None,
    executor: Any = None,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
    record_every: int | Mapping[str, int] = 1,
    callback: Callable[[Report], Any] | None = None,
    steps: int | None = None,
    evaluate_every: int | None = None,
    scheduler: Scheduler | None = None,
    keep_states: int | str = 1,
    batches: Callable[[int], Any] | None = None,
    batch_sharding: PyTree = None,
    checkpoint_seconds: float = 30,
    timeout: float | None = None,
) -> SweepResult:
    """Train every point with every seed, with one compile per static group, on every device.

    A *trial* is a point with one seed. Points that share their static hyperparameters form a
    *static group*, and share their compiled programs. A function has one program per static group.
    A `Training` has one each for `init`, a segment of steps, and `evaluate`. Programs compile in
    parallel while trials of other groups run, once per process.

    Args:
      train: `train(hp, key, *args) -> metrics`, a pure function that runs one whole training; or a
        `Training`, which the sweep can also show live, prune, save, resume, and change mid-run.
        `hp` is a dict, whose numbers are traced scalars. Metrics are arrays by name, of rank 0 (one
        value) or 1 (one value per step). All points must return metrics with the same names, ranks,
        and dtypes. A float metric may have fewer steps in some static groups: NaN follows the last
        value. Build the optimizer inside: `rj.rmsprop(hp["learning_rate"], decay=hp["decay"])`.
      points: `Points`, or a list of dicts with the same names.
      seeds: a count n, for the seeds 0 … n−1, or the seeds themselves. Every point gets the same
        keys, `jax.random.key(seed)`.
      objective: the number that ranks trials: a metric's name (its last value counts), or a
        function from one trial's metrics, as NumPy arrays on the host, to a float. The function is
        tried on zeros first. While a trial runs, the metrics up to the present step count. A trial
        whose objective is not finite has failed. A failed trial is saved and marked, counts in no
        mean, and does not affect other trials.
      mode: "min" or "max": which objective is better.
      args: a tuple of arrays, or pytrees of arrays, that every trial reads. The arrays are copied
        to each device once. With a `mesh`, an array may be sharded over the axes of a trial.
      batch_size: the number of trials that share one `vmap` on a device. "auto" is 1 on a CPU,
        where `vmap` is no faster. On other devices, "auto" is as many as fit the memory, by the
        compiler's own analysis. If memory runs out, the sweep halves an automatic batch size,
        except with `scheduler`, `batches`, or several processes. If trials draw with `rbg` or
        `unsafe_rbg` keys, whose numbers `vmap` changes, "auto" is 1, and a larger number is
        refused. With an `executor`, "auto" is 1, because the memory of the workers is unknown. The
        free slots of an incomplete batch run the last trial again.
      devices: the devices to run on. `None`: all devices, of every process after
        `jax.distributed.initialize()`. Every process must then make the same call, and gets the
        same result. Process 0 writes, draws the progress bar, asks the scheduler, and evaluates the
        objective. An exception on one process ends the call on all. On a CPU, give JAX one device
        per core before any other use of JAX:
        `jax.config.update("jax_num_cpu_devices", os.cpu_count())`.
      mesh: a mesh of devices for trials that need several, instead of `devices`. One of its axes is
        named "trial". Its other axes belong to a trial: a mesh of 4 × 2 devices with the axes
        ("trial", "model") runs 4 trials side by side, each on 2 devices. `train` names only the
        axes of a trial: `jax.lax.with_sharding_constraint(x, P(None, "model"))` for automatic axes,
        `jax.sharding.reshard` for explicit ones, or a `shard_map` without a mesh. The devices of a
        trial exchange data; trials exchange nothing. The state of a `Training` stays sharded
        between segments as the compiled `init` leaves it. The numbers equal those of one device
        within rounding. A folder resumes on a mesh of any shape whose trial axes have the same
        names, and without a mesh if `train` names no axis.
      executor: where trials run, instead of on the devices of this process: an executor, a
        function that makes one, or `Executor`, which has the options. An executor has
        `submit(fn, /, *args)` and returns a `concurrent.futures.Future`: a process pool that starts
        its processes by spawn, Dask's `client.get_executor()`, or Ray's `.future()`. This process
        traces, decides, and writes; the workers run compiled programs. The results are bit for bit
        those of a call without an executor. If a worker is lost, its trials run again. Programs
        cannot call back into Python. `batches` runs on the workers, copied by cloudpickle. Install
        the extra `executor`.
      path: a folder for the finished trials, as plain `.json` and `.npz`, with one writer at a
        time. After a call was stopped or killed, the same call resumes, on any number of devices
        and with any `batch_size`. With more points or seeds, only the new trials run. The folder
        holds metrics, so a later call may have another `objective` or `mode`. For a `Training`, the
        folder also holds checkpoints of running trials, and the decisions of a scheduler, which the
        same call replays. With a scheduler, points and seeds cannot be added.
      progress: whether to draw a progress bar: the steps or trials done, the numbers of complete,
        pruned, and failed trials, the best objective so far, and the time left.
      record_every: store only every k-th value of a metric with one value per step, and the last
        value, to save memory. A number k applies to metrics with as many values as the objective
        or, if the objective is not a metric per step, with the most values. A dict from metrics to
        numbers sets k for each. A function as `objective` gets the stored values.
      callback: `callback(report)` is called on process 0 after each wave, with a tuple of
        `TrialReport`, one for each trial of the wave: number, point, seed, step, the newest value
        of each metric, status, and series. If `callback` raises, the sweep stops on every process,
        and keeps the finished trials. `rj.loggers` has callbacks for trackers. An object that also
        has `start(sweep, report)`, `pruned(report)`, and `close()` hears of the whole call: `start`
        gets an id of the sweep, the same whenever its folder resumes, and a report of the trials
        that the folder has; `pruned` gets the trials that a scheduler or a pruner ended; `close` is
        called at the end, also after an exception.
      steps: the number of steps of each trial. This argument, and all up to `checkpoint_seconds`,
        are for a `Training`. The same call with more steps resumes a folder in which all states
        were kept, if there is no scheduler.
      evaluate_every: the steps of a segment, at least 1. After each segment `evaluate` runs, the
        callback is called, and a checkpoint is written if it is due. `None`: a twentieth of the
        steps. Shorter segments, at the end or before a rung, compile nothing again.
      scheduler: `SuccessiveHalving`, `PopulationBasedTraining`, or an object with the method
        `decide` of `Scheduler`. With a scheduler or `batches`, all trials reach an evaluation step
        before any passes it, so the devices must hold the states of all trials.
      keep_states: the number of best points whose final states are kept for `result.state`, with
        all their seeds: an int of at least 0, or "all". With `path`, the states are in the folder.
        With more seeds in a later call, another point may become the best. The states of this point
        are missing, unless all calls passed "all". The later call warns before it runs.
      batches: `batches(t)`, a pure function from the step to a batch, for data that does not fit a
        device. A batch is a pytree of arrays, with the same shapes and dtypes for every t. `step`
        gets the batch before `args`. `batches` is called once per step for all trials, in every
        process, on your thread, while the devices run the segment before. The arrays are copied, so
        `batches` may return the same buffer each time.
      batch_sharding: with a `mesh`, the sharding of the arrays of a batch over the axes of a trial:
        a `jax.sharding.PartitionSpec`, or a tree of them like a batch. `None`: each array as
        `batches` placed it; arrays of the host are copied to every device.
      checkpoint_seconds: with `path`, the shortest time between two checkpoints of running trials,
        in seconds. 0 writes a checkpoint at each evaluation step. A kill loses the steps since the
        last checkpoint.
      timeout: the time limit in seconds, from the start of the call, with tracing and compiling.
        After this time, the sweep stops at the next evaluation step or, for a function, after the
        next wave, and returns its result. With `path`, the sweep writes a checkpoint first, and the
        same call resumes. Every call advances at least one trial to the next evaluation step.
        `result.is_complete` tells whether all trials have ended.

    Returns:
      A `SweepResult`. With `batch_size=1`, the numbers are bit for bit those of
      `jax.jit(train)(hp, key)` or, on a CPU and for at least 2 steps, of `jax.jit(training.run)`.
      `vmap` rounds differently in the last digits.

    Raises:
      ValueError: before anything runs, for points, seeds, metrics, or an objective that do not fit;
        an axis that `train` never reads; a name that no axis gives; a traced number used as a shape
        or a bool; linear algebra that can hang with this jaxlib on a CPU; random keys whose numbers
        a `batch_size` above 1 would change; a mesh without an axis "trial", a name that the mesh
        lacks, callbacks into Python on a mesh, and loops that could hang on a mesh of CPU devices;
        a state that changes its structure, shapes, or dtypes,
        or has leaves that are not arrays; states that need more memory or disk than is free; a
        `path` that is damaged, or holds another sweep or a sweep of another version of JAX; and
        arguments that differ between processes (only `progress` may differ, and processes other
        than 0 may leave out `callback`). Later, for a decision of a scheduler that cannot be
        followed, and for a batch of another shape or a batch that differs between processes.
      RuntimeError: if another process writes to `path`, or the folder is moved or deleted
        meanwhile. Also, if another process of the same call raised an exception, which the message
        quotes. With an `executor`: if a task failed on a worker, or lost its worker too often; if
        no worker could start; or if an executor broke that the sweep cannot make again.
      OSError: if `path` cannot be written.
      SweepInterrupted: on Ctrl-C. The attribute `.result` holds the finished trials. All other
        exceptions while the sweep runs also have `.result`, as does the `SystemExit` of a signal
        handler.

    Warns:
      UserWarning: for several seeds of a `train` that never reads its key; for a program so long
        that a Python loop was probably unrolled; for states that `keep_states` asks for and an
        earlier call dropped; for a leaf of a state that each device of a trial holds whole,
        although others of its shape are sharded; for a rung (a step at which a scheduler decides)
        without a finite objective; and for an automatic `batch_size` that is 1 because of the
        random keys.

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
    machine = Machine()
    start = machine.clock()
    with own_settings("sweep"):
        if not isinstance(points, Points):
            points = Points(points)
        if not len(points):
            raise ValueError(
                "points must have at least one point, got none. Pass, for example, "
                "points=rj.grid(learning_rate=[1e-3, 1e-2])."
            )
        options = Options(
            train=train,
            points=points,
            seeds=seeds,
            objective=objective,
            mode=mode,
            args=args,
            batch_size=batch_size,
            devices=devices,
            mesh=mesh,
            executor=executor,
            path=path,
            progress=progress,
            record_every=record_every,
            callback=callback,
            steps=steps,
            evaluate_every=evaluate_every,
            scheduler=scheduler,
            keep_states=keep_states,
            batches=batches,
            batch_sharding=batch_sharding,
            checkpoint_seconds=checkpoint_seconds,
            timeout=timeout,
        )
        return run_sweep(options, machine, start)


def run_sweep(options: Options, machine: Machine, start: float) -> SweepResult:
    """Run `sweep` with these options.

    Args:
      options: the arguments of the call.
      machine: the clock and the memory that the call uses.
      start: the time at which the call began, by the clock of the machine.
    """
    cluster = Cluster(devices_of(options), machine)
    with cluster.together("sweep"):
        experiment = Experiment.prepare(options, cluster, "sweep")
        experiment.refuse_disagreement()
        experiment.note_idle_cores()
        experiment.shard_states()
        experiment.fit_batch_size(range(len(experiment.traces)))
        experiment.refuse_uneven_permutes()
        with Session.open(experiment, start) as session, interruptible(session):
            run_trials(experiment, session)
            session.tidy()
            return session.result()


def devices_of(options: Options) -> Sequence[Any] | Mesh:
    """Return the devices of a call: those that it passes, or all.

    With an executor, programs are traced for one device of this process.
    """
    if options.executor is not None:
        return jax.local_devices()[:1]
    if options.mesh is not None:
        return options.mesh
    return jax.devices() if options.devices is None else options.devices


def run_trials(experiment: Experiment, session: Session) -> None:
    """Run the trials with the runner that fits the call.

    With a scheduler, all trials reach a rung before any passes it. Local trials also wait for each
    other with `batches`, because they share each batch. Otherwise each wave runs to its end. The
    workers of an executor get new tasks as they finish others.
    """
    options = experiment.options
    if options.executor is not None:
        with ExecutorBackend(experiment, session, options.executor) as backend:
            if session.decisions is not None:
                SynchronousRunner(experiment, session, backend).run()
            else:
                AsCompletedRunner(experiment, session, backend).run()
    elif session.decisions is not None or experiment.data is not None:
        backend = LocalDevices(experiment, session)
        SynchronousRunner(experiment, session, backend).run()
    else:
        SequentialRunner(experiment, session).run()
