"""Adaptive search: an Optuna study, fed by compiled rounds of trials. The extra `search`."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rmsprop_jax._tune.jax_settings import own_settings
from rmsprop_jax._tune.results.result import SweepResult
from rmsprop_jax._tune.space.distributions import Distribution
from rmsprop_jax._tune.training.training import Train, Training
from rmsprop_jax._tune.trials.objective import Objective
from rmsprop_jax._tune.trials.progress import Report

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

__all__ = ["from_optuna", "optimize", "to_optuna", "to_params", "to_point"]


def optimize(
    train: Train | Training,
    study: Study,
    space: Mapping[str, Distribution | BaseDistribution],
    *,
    n_trials: int,
    max_concurrent_trials: int | None = None,
    seeds: int | Iterable[int] = 1,
    objective: Objective | Sequence[Objective] = "loss",
    args: tuple[Any, ...] = (),
    batch_size: int | str = "auto",
    devices: Sequence[Any] | None = None,
    progress: bool = True,
    record_every: int | Mapping[str, int] = 1,
    callback: Callable[[Report], Any] | None = None,
    study_callbacks: Sequence[Callable[[Study, FrozenTrial], Any]] = (),
    catch: type[Exception] | Iterable[type[Exception]] = (),
    attributes: Mapping[str, Objective] | None = None,
    steps: int | None = None,
    evaluate_every: int | None = None,
    keep_states: int | str = 1,
    timeout: float | None = None,
) -> SweepResult:
    """Let an Optuna study choose the settings, and train them as `sweep` does.

    The study's sampler proposes, its pruner stops trials between the segments of a `Training`, its
    storage holds what was told: in memory, in a file, or in a database that any number of workers
    share, each of which makes this call. As many trials as fit a round are under way at once, on
    all devices, through one compiled program a structure, whatever is asked; a trial that ends
    makes room for the next at once.

    A trial of the study is a setting with all its seeds. At each boundary the mean of the objective
    over its seeds is reported, under the step; then the pruner is asked, and its seeds stop
    together. One seed whose objective is not finite fails the trial (`TrialState.FAIL`). With a
    function `train`, or a study with several directions, nothing is reported and nothing pruned.
    Each trial has the user attributes `seeds`, `seconds` (from its being asked to its end, with
    what shared its rounds) and, for several seeds, `std`, their standard deviation.

    A trial that waits in the study (`enqueue_trial`, or one to be retried) comes first. It, and a
    `PartialFixedSampler`, may give hyperparameters under our names (`result.best().point`) or under
    the study's (`study.best_params`); a name that no axis has is refused.

    With a storage that has a heartbeat (`RDBStorage(url, heartbeat_interval=60, ...)`) this worker
    says for all its trials that they are alive, and before it asks fails those of workers that are
    not; with `heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback()` these are tried
    again, from step 0 and with the same numbers. A database that is away is waited for, 5 minutes
    long; one that is wrong (no such table, read-only, full) ends the call at once. What another
    worker took over meanwhile is not told a second time.

    Args:
      train: as for `sweep`, a function or a `Training`.
      study: of `optuna.create_study`; its direction says which objective is better, and its
        sampler and pruner are used as they are. Samplers that learn from each trial want
        `constant_liar=True` (TPE) where many are under way.
      space: for each hyperparameter a distribution, ours or Optuna's. Of `one_minus(d)` under the
        name "x" the study has d, under the name "1 - x". Numbers have the dtype of their
        distribution, whatever is asked: float32 (float64 under x64) where any may be a float, else
        int32; static ones and all else is structure. Choices that no folder can hold, such as
        functions, need a study in memory.
      n_trials: how many this call asks, at least 1.
      max_concurrent_trials: how many are under way at once, at least 1; by default as many as fill
        a round of all devices, ⌈devices × batch_size / seeds⌉. More hide the time that a database
        takes, fewer let the sampler know more: it has the results of all but those under way. An
        accelerator's "auto" batch is at most an eighth of the trials.
      seeds: as for `sweep`: a count n, or the seeds; every trial gets the same keys.
      objective: a metric's name, or a function of one trial's metrics; a tuple of as many for a
        study with several directions.
      args: as for `sweep`.
      batch_size: as for `sweep`.
      devices: by default all of this process.
      progress: draw a bar.
      record_every: as for `sweep`.
      callback: as for `sweep`: `callback(report)` after each round.
      study_callbacks: as for `study.optimize`: each is called with the study and the frozen trial
        after a trial is told, and may call `study.stop()`: then nothing more is asked, and what is
        under way goes on to its end.
      catch: exceptions that fail one study trial and not the call, as in `study.optimize`: those of
        the trial's values, of tracing and compiling its static group, of the objective and of
        `attributes`. Its attribute `cause` says what was raised. Any other exception ends the call;
        what was under way is told as failed, with the cause.
      attributes: for each name a function of one trial's metrics to a number, or a metric's name,
        as for `objective`. The study trial has the mean over its seeds as a user attribute before
        it is told, so that a sampler's `constraints_func` can read it.
      steps: as for `sweep`, of a `Training`.
      evaluate_every: as for `sweep`, of a `Training`.
      keep_states: as for `sweep`, of a `Training`; where the study has several directions, 0 or
        "all".
      timeout: the seconds, counted from the start of the call, after which no study trial is asked
        any more. Those under way finish.

    Returns:
      A `SweepResult` with the trials that this call asked, in the order in which they were; those
      that were pruned have the status "pruned". With a `batch_size` of 1 each trial's numbers are
      bit for bit those of `jax.jit(train)`, or on a CPU, for at least 2 steps, of
      `jax.jit(training.run)`. `feasible` says which keep the constraints of the study's sampler:
      the others rank after them, for the kept states, too. `best()` raises where the study has
      several directions: `study.best_trials` has what no other beats.

    Raises:
      ImportError: without Optuna, which the extra `search` installs.
      ValueError: before anything runs, for what `sweep` refuses, a space, a study or callbacks that
        are none, several objectives for one direction, or a `WilcoxonPruner`, which wants instances
        rather than curves. On the way, for a setting that waited in the study and has a NaN, say.
      RuntimeError: inside an objective or a callback of `study.optimize`.
      SweepInterrupted: on Ctrl-C; `.result` holds what was finished, which is told; what was under
        way is told as failed, with the attribute `cause`. Any other exception on the way has that
        `.result`, too, as has the `SystemExit` of a signal handler.

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
    start = time.perf_counter()
    runner = _with_optuna("optimize", "runner")
    with own_settings("search.optimize"):
        return runner.optimize(
            study,
            space,
            objective,
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
    point: Mapping[str, Any], space: Mapping[str, Distribution | BaseDistribution]
) -> dict[str, Any]:
    """The study's parameters for a point: other names and values than ours where it has others.

    The study has d for `one_minus(d)`, under the name "1 - x", and a label for a choice that a
    database cannot hold.

    Args:
      point: some or all hyperparameters, `result.best().point` say.
      space: as for `optimize`.

    Raises:
      ImportError: without Optuna, which the extra `search` installs.
      ValueError: for a name that the space has not, or a value that is no number or none of the
        choices.

    Examples:
      >>> import rmsprop_jax as rj
      >>> space = {"decay": rj.one_minus(rj.log_uniform(0.001, 0.5)), "size": rj.choice([(1, 2)])}
      >>> rj.search.to_params({"decay": 0.75, "size": (1, 2)}, space)
      {'1 - decay': 0.25, 'size': '(1, 2)'}
    """
    return _with_optuna("to_params", "space").to_params(point, space)


def to_point(
    params: Mapping[str, Any], space: Mapping[str, Distribution | BaseDistribution]
) -> dict[str, Any]:
    """The point for a study's parameters, as `train` gets it; the inverse of `to_params`.

    Args:
      params: some or all, `study.best_params` say.
      space: as for `optimize`.

    Raises:
      ImportError: without Optuna, which the extra `search` installs.
      ValueError: for a name that the space has not, or a value that is no number or none of the
        choices.

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
    """A space as Optuna's distributions, under the names that they have in a study.

    `uniform` and `log_uniform` end at the last number below `high`; `one_minus(d)` under the name
    "x" is d under the name "1 - x". Choices that a database cannot hold stand under their labels.
    The dict remembers the space, so that `from_optuna` gives it back as it was.

    Args:
      space: for each hyperparameter a distribution, ours or Optuna's.

    Raises:
      ImportError: without Optuna, which the extra `search` installs.
      ValueError: for an empty space, what is no distribution, or choices that cannot be told apart.

    Examples:
      >>> import rmsprop_jax as rj
      >>> rj.search.to_optuna({"decay": rj.one_minus(rj.log_uniform(0.001, 0.5))}).keys()
      dict_keys(['1 - decay'])
    """
    return _with_optuna("to_optuna", "space").to_optuna(space)


def from_optuna(distributions: Mapping[str, BaseDistribution]) -> dict[str, Distribution]:
    """Optuna's distributions as ours, for `sample` and `population`; the inverse of `to_optuna`.

    A float from low to high keeps both ends; steps become a `choice` of the values. What
    `to_optuna` returned becomes the space that it was made of. A study's own distributions
    (`study.trials[0].distributions`) do not tell what is static, nor what stands under a label.

    Args:
      distributions: of Optuna, under the names that they have in a study: of "1 - x" comes the
        `one_minus` of "x".

    Raises:
      ImportError: without Optuna, which the extra `search` installs.
      ValueError: for what has no like here, as an `IntDistribution` with `log`.

    Examples:
      >>> import optuna, rmsprop_jax as rj
      >>> rj.search.from_optuna({"x": optuna.distributions.FloatDistribution(0, 1)})
      {'x': uniform(0.0, 1.0000001)}
    """
    return _with_optuna("from_optuna", "space").from_optuna(distributions)


def _with_optuna(name: str, room: str) -> Any:
    """The room that needs Optuna, imported where one of its functions is called."""
    try:
        import optuna  # noqa: F401 (whether it is there)
    except ImportError as error:
        raise ImportError(
            f'search.{name} needs Optuna: pip install "rmsprop_jax[search]"'
        ) from error
    return importlib.import_module(f"rmsprop_jax._tune.search.{room}")
