"""Adaptive search: an Optuna study proposes points, and compiled programs train many at once.

It needs Optuna, which the extra `search` installs.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from rmsprop_jax._tune.jax_settings import own_settings
from rmsprop_jax._tune.results.result import SweepResult
from rmsprop_jax._tune.run.machine import Device, Machine
from rmsprop_jax._tune.space.distributions import Distribution
from rmsprop_jax._tune.space.values import PyTree, Value
from rmsprop_jax._tune.training.training import Train, Training
from rmsprop_jax._tune.trials.objective import Objective
from rmsprop_jax._tune.trials.progress import Report

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

__all__ = ["from_optuna", "optimize", "to_optuna", "to_params", "to_point"]


def __dir__() -> list[str]:
    return __all__


def optimize(
    train: Train | Training,
    study: Study,
    space: Mapping[str, Distribution | BaseDistribution],
    *,
    n_trials: int,
    max_concurrent_trials: int | None = None,
    seeds: int | Iterable[int] = 1,
    objective: Objective | Sequence[Objective] = "loss",
    args: tuple[PyTree, ...] = (),
    batch_size: int | str = "auto",
    devices: Sequence[Device] | None = None,
    progress: bool = True,
    record_every: int | Mapping[str, int] = 1,
    callback: Callable[[Report], object] | None = None,
    study_callbacks: Sequence[Callable[[Study, FrozenTrial], object]] = (),
    catch: type[Exception] | Iterable[type[Exception]] = (),
    attributes: Mapping[str, Objective] | None = None,
    steps: int | None = None,
    evaluate_every: int | None = None,
    keep_states: int | str = 1,
    timeout: float | None = None,
) -> SweepResult:
    """Let an Optuna study propose points, and train each with all its seeds.

    The study's sampler proposes points, its pruner ends bad ones between the segments of a
    `Training`, and its storage holds the results. The storage may be in memory, in a file, or in a
    database that any number of workers share. Each worker makes this call. As many trials as fit
    into one wave run at once, on all devices, through one compiled program per static group. When
    a trial ends, the next takes its place at once.

    A *study trial* is a trial of Optuna: a point with all its seeds. At each evaluation step, the
    mean objective over its seeds is reported under the step. The pruner is asked then, and ends
    all seeds together. A study trial fails (`TrialState.FAIL`) if the objective of any seed is not
    finite. For a function `train`, or a study with several directions, nothing is reported or
    pruned.

    Each study trial gets user attributes: `seeds`; `seconds`, from its ask to its end, including
    trials that shared its waves; and, for several seeds, `std`, the standard deviation of the
    objective.

    Study trials that wait in the study (from `enqueue_trial`, or to be retried) come first. They,
    and a `PartialFixedSampler`, may give hyperparameters under our names (`result.best().point`) or
    under the study's (`study.best_params`). A name that no axis has is refused.

    With a storage that has heartbeats (`RDBStorage(url, heartbeat_interval=60, ...)`), this worker
    records heartbeats for its study trials. Before each ask, it fails the study trials of workers
    whose heartbeats have stopped. With
    `heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback()`, these are tried again, from
    step 0 and with the same numbers. If a database is away, the search waits for 5 minutes. If it
    can never answer (no such table, read-only, full), the call ends at once. A study trial that
    another worker has taken over is not told a second time.

    Args:
      train: a function or a `Training`, as for `sweep`.
      study: a study of `optuna.create_study`. Its direction decides which objective is better. Its
        sampler and pruner are used as they are. Samplers that learn from each study trial should
        have `constant_liar=True` (TPE) if many run at once.
      space: a dict from each hyperparameter to its distribution, ours or Optuna's. For
        `one_minus(d)` under the name "x", the study has d under the name "1 - x". Numbers have the
        dtype of their distribution: float32 (float64 under x64) if it can give a float, else int32.
        Static numbers and all other values are static hyperparameters. Choices that no folder can
        hold, such as functions, need a study in memory.
      n_trials: the number of study trials that this call asks for, at least 1.
      max_concurrent_trials: the number of study trials that run at once, at least 1. `None`: as
        many as fill one wave on all devices, ⌈devices × `batch_size` / seeds⌉. More of them hide
        the time of database calls. With fewer, the sampler knows the results of more study trials
        when it proposes. An accelerator's "auto" batch holds at most an eighth of the trials.
      seeds: a count n, or the seeds, as for `sweep`. Every study trial gets the same keys.
      objective: a metric's name, or a function of one trial's metrics; for a study with several
        directions, a tuple with one of these per direction.
      args: arrays that every trial reads, as for `sweep`.
      batch_size: how many trials share one `vmap` on a device, as for `sweep`.
      devices: the devices to run on. `None`: all devices of this process.
      progress: whether to draw a progress bar.
      record_every: store every k-th value of a metric, as for `sweep`.
      callback: `callback(report)` is called after each wave, as for `sweep`.
      study_callbacks: functions to call with the study and the frozen study trial after each tell,
        as for `study.optimize`. After one calls `study.stop()`, no new study trials are asked for,
        and running ones finish.
      catch: exceptions that fail one study trial instead of ending the call, as for
        `study.optimize`. They may come from the study trial's values, from tracing and compiling
        its static group, from the objective, and from `attributes`. The user attribute `cause`
        holds the error. Any other exception ends the call, and running study trials are told as
        failed, with the cause.
      attributes: a dict from names to functions of one trial's metrics to a number, or to metrics'
        names. Each study trial gets the mean over its seeds as a user attribute before it is told,
        so that a sampler's `constraints_func` can read it.
      steps: the number of steps of a `Training`, as for `sweep`.
      evaluate_every: the steps between evaluations of a `Training`, as for `sweep`.
      keep_states: of how many of the best points of a `Training` to keep the last states, as for
        `sweep`. For a study with several directions, 0 or "all".
      timeout: the seconds, from the start of the call, after which no study trial is asked for any
        more. Running study trials finish.

    Returns:
      A `SweepResult` with the trials that this call asked for, in that order. The status of pruned
      trials is "pruned". With `batch_size=1`, each trial's numbers are bit for bit those of
      `jax.jit(train)` or, on a CPU and for at least 2 steps, of `jax.jit(training.run)`.
      `feasible` tells which trials meet the constraints of the study's sampler. The others rank
      after them, also for the states that are kept. `best()` raises if the study has several
      directions: see `study.best_trials`.

    Raises:
      ImportError: without Optuna, which the extra `search` installs.
      ValueError: before anything runs, for everything that `sweep` refuses; for a bad space, study,
        or callback; for several objectives and one direction; and for a `WilcoxonPruner`, which
        compares problem instances instead of learning curves. Later, for a waiting study trial with
        an impossible value, such as a NaN.
      RuntimeError: inside an objective or a callback of `study.optimize`.
      SweepInterrupted: on Ctrl-C. Its `.result` holds the finished trials, which are told. Running
        study trials are told as failed, with the user attribute `cause`. Any other exception also
        has `.result`, and so has the `SystemExit` of a signal handler.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optuna, rmsprop_jax as rj
      >>> def train(hp, key):
      ...     solver = rj.rmsprop(hp["learning_rate"], decay=hp["decay"])
      ...     params = jax.random.normal(key, (3,))
      ...     def step(carry, _):
      ...         params, state = carry
      ...         loss, grads = jax.value_and_grad(lambda p: jnp.sum(p**2))(params)
      ...         updates, state = solver.update(grads, state)
      ...         return (optax.apply_updates(params, updates), state), loss
      ...     return {"loss": jax.lax.scan(step, (params, solver.init(params)), length=100)[1]}
      >>> space = {
      ...     "learning_rate": rj.log_uniform(1e-4, 1e-1),
      ...     "decay": rj.one_minus(rj.log_uniform(1e-3, 0.5)),
      ... }
      >>> study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
      >>> result = rj.search.optimize(train, study, space, n_trials=8, progress=False)
      >>> len(study.trials), result.best().objective == study.best_value
      (8, True)

    References:
      Akiba et al., [Optuna: A Next-generation Hyperparameter Optimization
      Framework](https://arxiv.org/abs/1907.10902), KDD 2019.
    """
    machine = Machine()
    start = machine.clock()
    runner = _with_optuna("optimize", "runner")
    with own_settings("search.optimize"):
        return runner.optimize(
            study,
            space,
            objective,
            machine,
            start,
            train=train,
            n_trials=n_trials,
            max_concurrent_trials=max_concurrent_trials,
            seeds=seeds,
            args=args,
            batch_size=batch_size,
            devices=devices,
            progress=progress,
            record_every=record_every,
            callback=callback,
            study_callbacks=study_callbacks,
            catch=catch,
            attributes=attributes,
            steps=steps,
            evaluate_every=evaluate_every,
            keep_states=keep_states,
            timeout=timeout,
        )


def to_params(
    point: Mapping[str, Value], space: Mapping[str, Distribution | BaseDistribution]
) -> dict[str, Value]:
    """Return the study's parameters for a point.

    For `one_minus(d)` under the name "x", the study has d under the name "1 - x". For a choice that
    a database cannot hold, the study has a label.

    Args:
      point: some or all hyperparameters, for example `result.best().point`.
      space: the space, as for `optimize`.

    Raises:
      ImportError: without Optuna, which the extra `search` installs.
      ValueError: for a name that is not in the space, or a value that is not a number or not one of
        the choices.

    Examples:
      >>> import rmsprop_jax as rj
      >>> space = {"decay": rj.one_minus(rj.log_uniform(0.001, 0.5)), "size": rj.choice([(1, 2)])}
      >>> rj.search.to_params({"decay": 0.75, "size": (1, 2)}, space)
      {'1 - decay': 0.25, 'size': '(1, 2)'}
    """
    return _with_optuna("to_params", "space").to_params(point, space)


def to_point(
    params: Mapping[str, Value], space: Mapping[str, Distribution | BaseDistribution]
) -> dict[str, Value]:
    """Return the point for a study's parameters: the inverse of `to_params`.

    Args:
      params: some or all parameters, for example `study.best_params`.
      space: the space, as for `optimize`.

    Raises:
      ImportError: without Optuna, which the extra `search` installs.
      ValueError: for a name that is not in the space, or a value that is not a number or not one of
        the choices.

    Examples:
      >>> import rmsprop_jax as rj
      >>> space = {"decay": rj.one_minus(rj.log_uniform(0.001, 0.5))}
      >>> rj.search.to_point({"1 - decay": 0.25}, space)
      {'decay': 0.75}
    """
    return _with_optuna("to_point", "space").to_point(params, space)


def to_optuna(
    space: Mapping[str, Distribution | BaseDistribution],
) -> dict[str, BaseDistribution]:
    """Return the distributions that a study has for a space, by the study's names.

    `uniform` and `log_uniform` end at the last number below `high`. `one_minus(d)` under the name
    "x" becomes d under the name "1 - x". Choices that a database cannot hold become labels. The
    dict remembers the space, so that `from_optuna` returns it unchanged.

    Args:
      space: a dict from each hyperparameter to its distribution, ours or Optuna's.

    Raises:
      ImportError: without Optuna, which the extra `search` installs.
      ValueError: for an empty space, a value in it that is not a distribution, or choices with
        equal labels.

    Examples:
      >>> import rmsprop_jax as rj
      >>> rj.search.to_optuna({"decay": rj.one_minus(rj.log_uniform(0.001, 0.5))}).keys()
      dict_keys(['1 - decay'])
    """
    return _with_optuna("to_optuna", "space").to_optuna(space)


def from_optuna(distributions: Mapping[str, BaseDistribution]) -> dict[str, Distribution]:
    """Return our distributions for Optuna's: the inverse of `to_optuna`.

    The result is a space for `sample` and `PopulationBasedTraining`. A float keeps both ends of its
    range. A distribution with steps becomes a `choice` of the values. The dict that `to_optuna`
    returned becomes the space it came from. The distributions of a study
    (`study.trials[0].distributions`) lack the static names and the objects behind labels.

    Args:
      distributions: Optuna's distributions, by the study's names. "1 - x" becomes a `one_minus`
        under the name "x".

    Raises:
      ImportError: without Optuna, which the extra `search` installs.
      ValueError: for a distribution that this package does not have, such as an
        `IntDistribution` with `log`.

    Examples:
      >>> import optuna, rmsprop_jax as rj
      >>> rj.search.from_optuna({"x": optuna.distributions.FloatDistribution(0, 1)})
      {'x': uniform(0.0, 1.0000001)}
    """
    return _with_optuna("from_optuna", "space").from_optuna(distributions)


def _with_optuna(name: str, module: str) -> ModuleType:
    """Import a module that imports Optuna; ImportError without Optuna.

    Args:
      name: the public function that needs the module, for the error.
      module: the module's name in `rmsprop_jax._tune.search`.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ImportError(
            f'Optuna must be installed for search.{name}. Run: pip install "rmsprop_jax[search]"'
        )
    return importlib.import_module(f"rmsprop_jax._tune.search.{module}")
