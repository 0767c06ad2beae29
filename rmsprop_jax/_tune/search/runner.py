"""`search.optimize`: the runner of a search. It asks a study for points, runs a segment of every
trial under way, reports, prunes, and tells.

A search differs from `sweep` in this:

- Its points come from the study while it runs. `Experiment.group_for` adds new static groups.
- The study replaces the scheduler, and its storage replaces the folder. A search has no `path`,
  checkpoints, or `batches`, and runs in one process.
- After each segment of a wave, new study trials take the slots of those that ended
  (`ContinuousWaves`). A study trial ends early if its objective is not finite.
- Static groups compile on the calling thread. If the memory runs out, the call ends: a search does
  not try a smaller batch.
"""

import collections
import contextlib
import functools
import math
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optuna
from optuna.trial import TrialState
from tqdm import tqdm

from rmsprop_jax._tune.experiment import Examples, Experiment
from rmsprop_jax._tune.interrupts import interruptible
from rmsprop_jax._tune.options import Options
from rmsprop_jax._tune.results.result import SweepResult
from rmsprop_jax._tune.run.batch import TrialBatch, rows_of
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.run.continuous_waves import ContinuousWaves
from rmsprop_jax._tune.run.local_devices import Handle, LocalDevices
from rmsprop_jax._tune.run.machine import Machine
from rmsprop_jax._tune.search.arguments import (
    checked_attributes,
    checked_objectives,
    kept_of_several,
    mode_of,
    refuse_pruner,
    some_points,
)
from rmsprop_jax._tune.search.space import (
    MOST_STATIC_GROUPS,
    axes_of,
    check_storable,
    examples,
)
from rmsprop_jax._tune.search.study_client import (
    LostError,
    StudyClient,
    cause_of,
    is_feasible,
    is_in_memory,
)
from rmsprop_jax._tune.session import Session
from rmsprop_jax._tune.trials.data import PRUNED, PRUNED_AS_FAILED
from rmsprop_jax._tune.trials.decision_log import AppliedDecision
from rmsprop_jax._tune.trials.objective import ObjectiveSpec

WAVES = 8  # if only the memory limits a call, it holds an eighth of the study trials at most


class StudyTrial(NamedTuple):
    """A study trial under way: a point with all its seeds."""

    point: int
    """The number of its point."""
    trial: optuna.Trial
    """Optuna's object of the study trial."""
    group: int
    """The number of its static group."""
    begun: float
    """The time at which it was asked for, by the clock of the machine."""


def optimize(
    study: Any, space: Any, objective: Any, machine: Machine, start: float, **arguments: Any
) -> SweepResult:
    """Run `rmsprop_jax.search.optimize`, which documents the arguments.

    Args:
      study: a study of Optuna.
      space: the distribution of each hyperparameter.
      objective: a metric or a function, or a tuple of these.
      machine: the clock and the memory that the call uses.
      start: the time at which the call began, by the clock of the machine.
      **arguments: fields of `Options`.
    """
    if not isinstance(study, optuna.Study):
        raise ValueError(
            f"study must be an Optuna study, got {study!r}. Pass optuna.create_study()."
        )
    axes = axes_of(space)
    if not is_in_memory(study):
        check_storable(space)
    objectives = checked_objectives(objective, study)
    modes = tuple(map(mode_of, study.directions))
    is_single = len(objectives) == 1
    options = Options(
        objective=objectives[0] if is_single else objectives,
        mode=modes[0] if is_single else modes,
        **arguments,
    )
    devices = jax.local_devices() if options.devices is None else options.devices
    cluster = Cluster(devices, machine)
    if cluster.count > 1:
        raise ValueError(
            "devices must be of one process, got devices of several. Pass "
            "devices=jax.local_devices(), and let each process run its own search, all on one "
            "study with a database."
        )
    every = examples(axes)
    count = MOST_STATIC_GROUPS if options.catch else 1
    name = f"search by {type(study.sampler).__name__}, {type(study.pruner).__name__}"
    points = every or some_points(axes, count)
    experiment = Experiment.prepare(
        options, cluster, "optimize", Examples(points, every is not None, {"class": name})
    )
    refuse_pruner(study.pruner)
    experiment.keep_states = kept_of_several(experiment)
    experiment.fit_batch_size(range(len(experiment.traces)))
    experiment.note_idle_cores()
    client = StudyClient(study, axes, list(options.study_callbacks))
    attributes = checked_attributes(options.attributes, experiment.spec)
    with Session.open(experiment, start) as session:
        runner = ContinuousRunner(experiment, session, client, attributes)
        with client.open(), interruptible(session):
            try:
                runner.run()
            except BaseException as error:
                runner.give_up(error)
                raise
        return session.result()


class ContinuousRunner:
    """A runner that asks for a new study trial whenever one ends, up to `max_concurrent_trials`.

    Args:
      experiment: the experiment of the call.
      session: the session of the call.
      client: the study.
      attributes: the functions that compute further user attributes of each study trial.
    """

    def __init__(
        self,
        experiment: Experiment,
        session: Session,
        client: StudyClient,
        attributes: Mapping[str, ObjectiveSpec],
    ):
        self._experiment, self._session, self._client = experiment, session, client
        self._attributes, options = attributes, experiment.options
        self._clock = experiment.cluster.machine.clock
        self._backend = LocalDevices(experiment, session)
        self._seeds, self._catch = len(options.seeds), options.catch
        self._max_concurrent, self._asked = options.max_concurrent_trials, 0
        is_reported = experiment.spec.schedule.is_reported and len(experiment.objectives) == 1
        self._reports = is_reported
        self._prunes = is_reported and client.may_prune
        self._compiled: dict[int, Exception | None] = {}
        self._waves: dict[int, ContinuousWaves] = {}
        self._running: dict[int, StudyTrial] = {}
        self._causes: dict[int, str] = {}  # errors of objectives and attributes, by point
        self._waited = 0.0  # seconds for programs that no segment has recorded yet
        if self._max_concurrent is not None:
            self._check_room(self._max_concurrent)

    def run(self) -> None:
        """Run until all study trials are asked and told, or a callback stops the study."""
        self._ask()
        while self._running:
            self._ask(leaving=self._segment())

    # Ask.

    def _ask(self, leaving: Collection[int] = ()) -> None:
        """Ask for as many study trials as may run, and let them replace the points that leave.

        Args:
          leaving: the points whose study trials ended.
        """
        coming: list[StudyTrial] = []
        while self._asked < self._experiment.options.n_trials and not self._client.is_stopped:
            if self._asked and self._session.is_time_up:
                break
            if self._running and len(self._running) >= (self._max_concurrent or math.inf):
                break
            if (study_trial := self._ask_one()) is None:
                continue
            coming.append(study_trial)
            if self._max_concurrent is None:
                layout = self._backend.layout(study_trial.group)
                self._max_concurrent = -(-layout.slots(1) // self._seeds)
                self._check_room(self._max_concurrent)
        self._exchange(leaving, coming)

    def _ask_one(self) -> StudyTrial | None:
        """Return a new study trial, or None after a caught error.

        The error may come from the study trial's values, or from tracing or compiling its static
        group. The study trial is then told as failed.
        """
        begun = self._clock()
        trial = self._client.ask()
        self._asked += 1
        try:
            point = self._client.point(trial)
            group = self._experiment.group_for(point)
            self._compile(group)
        except self._catch as error:
            _note_failure(trial, error)
            with contextlib.suppress(LostError):
                cause = {"cause": cause_of(error)}
                self._client.call_back(self._client.tell(trial, TrialState.FAIL, None, cause))
            return None
        number = len(self._session.table) // self._seeds
        self._session.table.extend([point], np.array([group]))
        self._running[number] = StudyTrial(number, trial, group, begun)
        return self._running[number]

    def _compile(self, group: int) -> None:
        """Compile a static group at its first study trial; raise its error again at others."""
        if group not in self._compiled:
            start, self._compiled[group] = self._clock(), None
            try:
                compiler = self._experiment.compiler(group, self._most_trials())
                self._backend.add(compiler.kernels, compiler.compile())
            except Exception as error:  # raised below, and again for each of its study trials
                self._compiled[group] = error
            self._waited += self._clock() - start
        if (error := self._compiled[group]) is not None:
            raise error

    def _most_trials(self) -> int:
        """Return the number of trials that may share a call, which limits the batch size."""
        cluster, batch_size = self._experiment.cluster, self._experiment.batch_size
        if batch_size == "auto" and cluster.free_memory() is None:
            batch_size = 1
        if batch_size != "auto" and (self._experiment.state_specs or self._max_concurrent is None):
            return cluster.submeshes * int(batch_size)
        count = self._experiment.options.n_trials
        trials = self._max_concurrent or -(-count // WAVES)
        return min(trials, count) * self._seeds

    def _check_room(self, max_concurrent: int) -> None:
        """Check that the states of this many study trials fit the memory."""
        if self._experiment.state_specs:
            under_way = min(max_concurrent, self._experiment.options.n_trials) * self._seeds
            self._session.check_room(under_way, "a smaller max_concurrent_trials")

    def _exchange(self, leaving: Collection[int], coming: Sequence[StudyTrial]) -> None:
        """Let points leave the waves, and new study trials begin.

        Args:
          leaving: the points whose study trials ended.
          coming: the new study trials.
        """
        spec, submeshes = self._experiment.spec, self._experiment.cluster.submeshes
        gone = spec.trials_of(list(leaving)).tolist()
        # Trials in waves that are not full: the next such wave begins on the next free submesh.
        loose = 0
        for group in dict.fromkeys([*self._waves, *(one.group for one in coming)]):
            if group not in self._waves:
                self._waves[group] = ContinuousWaves(self._backend, spec.schedule, group)
            new = [one.point for one in coming if one.group == group]
            first = -(-loose // self._backend.layout(group).batch_size) % submeshes
            self._waves[group].exchange(gone, spec.trials_of(new), first)
            loose += self._waves[group].loose

    # Run a segment.

    def _segment(self) -> list[int]:
        """Run a segment of every study trial under way; return the points that end with it."""
        ended: list[int] = []
        for point in self._arriving():
            if not self._decide(self._running[point]):
                ended.append(point)
        trials = self._experiment.spec.trials_of(ended)
        for waves in self._waves.values() if self._experiment.state_specs else ():
            for batch in waves.batches:
                rows = np.flatnonzero(np.isin(batch.trials, trials))
                if len(rows):
                    self._end(batch, rows)
        return ended

    def _arriving(self) -> Iterator[int]:
        """Dispatch every wave, with two in flight; yield each point after its last seed."""
        in_flight: collections.deque[Handle] = collections.deque()
        missing = dict.fromkeys(self._running, self._seeds)
        batches = [batch for waves in self._waves.values() for batch in waves.batches]
        for batch in batches:
            stops = self._waves[batch.group].next_stops(batch.steps_completed)
            in_flight.append(self._backend.dispatch(batch, stops))
            if len(in_flight) == 2:
                yield from self._arrived(in_flight.popleft(), missing)
        while in_flight:
            yield from self._arrived(in_flight.popleft(), missing)

    def _arrived(self, handle: Handle, missing: dict[int, int]) -> Iterator[int]:
        """Fetch and record a wave; yield the points without missing seeds.

        Args:
          handle: the wave.
          missing: the number of seeds that did not arrive yet, by point, which this reduces.
        """
        waited, self._waited = self._waited, 0.0
        result = self._backend.fetch(handle)._replace(compile_seconds=waited)
        self._session.record(result, self._judge)
        for point in (result.batch.trials // self._seeds).tolist():
            missing[point] -= 1
            if not missing[point]:
                yield point

    def _judge(self, trials: np.ndarray) -> None:
        """Evaluate the objective. After a caught error, evaluate each study trial separately."""
        table, points = self._session.table, trials // self._seeds
        try:
            table.judge(trials)
        except self._catch:
            for point in np.unique(points).tolist():
                try:
                    table.judge(trials[points == point])
                except self._catch as error:
                    self._set_failed(self._running[point], error)

    def _set_failed(self, study_trial: StudyTrial, error: Exception) -> None:
        """Set a study trial's objective to NaN after an error of the objective or an attribute."""
        self._session.table.set_failed(self._trials_of(study_trial))
        self._causes[study_trial.point] = cause_of(error)
        _note_failure(study_trial.trial, error)

    def _trials_of(self, study_trial: StudyTrial) -> np.ndarray:
        return self._experiment.spec.trials_of([study_trial.point])

    # Report, prune, tell.

    def _decide(self, study_trial: StudyTrial) -> bool:
        """Report a study trial and ask the pruner, or tell the study how it ended.

        Returns:
          Whether the study trial continues.
        """
        table, trials = self._session.table, self._trials_of(study_trial)
        values, step = table.objectives(trials), int(table.data.steps_completed[trials[0]])
        is_finite, is_over = bool(np.isfinite(values).all()), bool(table.complete[trials[0]])
        # If another worker took over the trial, the study has the values of that worker.
        with contextlib.suppress(LostError):
            if is_finite and self._reports:
                self._client.report(study_trial.trial, float(values.mean()), step)
            goes_on = is_finite and not is_over
            if goes_on and not (self._prunes and self._client.prunes(study_trial.trial)):
                return True
        if not is_over:  # before it is told: a callback may raise
            reason = PRUNED if is_finite else PRUNED_AS_FAILED
            decision = AppliedDecision(step, {study_trial.point: reason}, {}, [])
            self._session.prune(decision, set(trials.tolist()))
        with contextlib.suppress(LostError):
            self._tell(study_trial, values, is_over)
        del self._running[study_trial.point]
        return False

    def _end(self, batch: TrialBatch, rows: np.ndarray) -> None:
        """Keep the final states of ended trials, as `keep_states` says.

        Args:
          batch: the batch of the trials.
          rows: the places of the ended trials in the batch.
        """
        fetch = lambda rows: rows_of(self._backend.states(batch), rows)
        is_complete = self._session.table.complete[batch.trials[rows]]
        complete, pruned = rows[is_complete], rows[~is_complete]
        if len(complete):
            self._session.finish(batch.trials[complete], functools.partial(fetch, complete))
        if len(pruned) and self._session.final_states.keeps_all:
            self._session.final_states.keep(batch.trials[pruned], fetch(pruned))

    def _tell(self, study_trial: StudyTrial, values: np.ndarray, is_over: bool) -> None:
        """Tell the study how a study trial ended.

        Its user attributes are set before, because the sampler's constraints may read them.

        Args:
          study_trial: the study trial.
          values: the objective of each seed.
          is_over: whether it has run all steps.
        """
        table, trials = self._session.table, self._trials_of(study_trial)
        data, spec = table.data.take(trials), self._experiment.spec
        groups = table.groups
        mean = lambda objective: float(objective.values(spec, data, groups).mean())
        seconds = round(self._clock() - study_trial.begun, 3)
        attributes: dict[str, Any] = {"seeds": list(spec.seeds), "seconds": seconds}
        try:
            attributes |= {name: mean(one) for name, one in self._attributes.items()}
        except self._catch as error:
            self._set_failed(study_trial, error)
            values = table.objectives(trials)
        if study_trial.point in self._causes:
            attributes["cause"] = self._causes[study_trial.point]
        state, means = TrialState.PRUNED, None
        if not np.isfinite(values).all():
            state = TrialState.FAIL
        elif len(values) > 1:
            attributes["std"] = float(values.std(ddof=1))
        if state != TrialState.FAIL and is_over:
            state, means = TrialState.COMPLETE, list(map(mean, self._experiment.objectives))
        told = self._client.tell(study_trial.trial, state, means, attributes)
        if told is not None:
            table.data.feasible[trials] = is_feasible(told)
        self._client.call_back(told)

    def give_up(self, error: BaseException) -> None:
        """Tell the finished study trials, and all others as failed, with the error as the cause."""
        self._client.hurry()
        table = self._session.table
        for study_trial in self._running.values():
            trials = self._trials_of(study_trial)
            values = table.objectives(trials)
            if table.complete[trials].all() and np.isfinite(values).all():
                with contextlib.suppress(Exception):  # `error` is raised in any case
                    self._tell(study_trial, values, True)
        self._client.fail_open(cause_of(error))


def _note_failure(trial: optuna.Trial, error: Exception) -> None:
    text = f"search: study trial {trial.number} failed: {cause_of(error)}"
    tqdm.write(text, file=sys.stderr)
