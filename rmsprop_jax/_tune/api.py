"""`sweep`: whole trainings over points and seeds."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from rmsprop_jax._tune.experiment import Experiment
from rmsprop_jax._tune.interrupts import interruptible
from rmsprop_jax._tune.jax_settings import own_settings
from rmsprop_jax._tune.options import Options
from rmsprop_jax._tune.results.result import SweepResult
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.run.sequential import SequentialRunner
from rmsprop_jax._tune.run.synchronous import SynchronousRunner
from rmsprop_jax._tune.schedulers import Scheduler
from rmsprop_jax._tune.session import Session
from rmsprop_jax._tune.space.points import Points
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
    timeout: float | None = None,
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
      timeout: the seconds after which the call returns what it has, counted from its start, tracing
        and compiling included. `sweep` then ends at the next evaluation step, or wave of a
        function, and with a `path` writes a checkpoint there. The same call goes on. Each call
        advances at least one trial to its next evaluation step. `result.is_complete` says whether
        anything is left to run.

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
    with own_settings("sweep"):
        if not isinstance(points, Points):
            points = Points(points)
        if not len(points):
            raise ValueError("sweep needs at least one point, got none.")
        options = Options(
            train=train,
            points=points,
            seeds=seeds,
            objective=objective,
            mode=mode,
            args=args,
            batch_size=batch_size,
            devices=devices,
            path=path,
            progress=progress,
            record_every=record_every,
            callback=callback,
            steps=steps,
            evaluate_every=evaluate_every,
            scheduler=scheduler,
            keep_states=keep_states,
            batches=batches,
            checkpoint_seconds=checkpoint_seconds,
            timeout=timeout,
        )
        cluster = Cluster(jax.devices() if options.devices is None else options.devices)
        with cluster.together("sweep"):
            experiment = Experiment.prepare(options, cluster, "sweep")
            experiment.refuse_disagreement()
            experiment.note_idle_cores()
            experiment.fit_batch_size(range(len(experiment.traces)))
            with Session.open(experiment, start) as session, interruptible(session):
                runner_for(experiment, session).run()
                session.tidy()
                return session.result()


def runner_for(experiment: Experiment, session: Session) -> SequentialRunner | SynchronousRunner:
    """Return what runs the trials: all to each evaluation step where a scheduler decides or where
    they share the data of the steps, else each to its end."""
    if session.decisions is not None or experiment.data is not None:
        return SynchronousRunner(experiment, session)
    return SequentialRunner(experiment, session)
