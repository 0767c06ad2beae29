"""The loop that feeds a study: ask, run a segment of all, report, prune, tell."""

import collections
import contextlib
import functools
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optuna
from optuna.trial import TrialState
from tqdm import tqdm

from rmsprop_jax._tune.api import SweepInterrupted
from rmsprop_jax._tune.compile import group_compiler as compiling
from rmsprop_jax._tune.compile.batched_keys import fitting_batch_size
from rmsprop_jax._tune.compile.kernels import GroupKernels
from rmsprop_jax._tune.experiment_spec import FAILED, STOPPED, ExperimentSpec, Stages, no_trials
from rmsprop_jax._tune.options import (
    STAGES,
    check_args,
    check_callback,
    check_metrics,
    check_same_metrics,
    checked_batch_size,
    checked_devices,
    checked_every,
    checked_keep_states,
    checked_steps,
    count,
    refuse_stages,
    say_idle_cores,
    series,
    warn,
)
from rmsprop_jax._tune.results.result import SweepResult
from rmsprop_jax._tune.results.retrain import Retrainer
from rmsprop_jax._tune.run.batch import CompiledGroup, Dispatched, rows_of
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.run.continuous import Flight
from rmsprop_jax._tune.search.space import (
    MOST_STRUCTURES,
    Axis,
    axes_of,
    check_names,
    check_storable,
    examples,
    static_names,
)
from rmsprop_jax._tune.search.study_client import LostError, StudyClient, cause_of, is_feasible
from rmsprop_jax._tune.space.points import Points
from rmsprop_jax._tune.space.seeds import checked_seeds
from rmsprop_jax._tune.training.fingerprint import Fingerprint
from rmsprop_jax._tune.training.state_spec import Kept
from rmsprop_jax._tune.training.trace import (
    Group,
    Traces,
    group_points,
    trace_train,
    trace_training,
)
from rmsprop_jax._tune.training.training import Training
from rmsprop_jax._tune.trials.checkpoints import CheckpointManager
from rmsprop_jax._tune.trials.decision_log import AppliedDecision
from rmsprop_jax._tune.trials.objective import ObjectiveSpec, checked
from rmsprop_jax._tune.trials.table import TrialTable

OWN_ATTRIBUTES = {"seeds", "seconds", "std", "cause"}
"""That a study trial is given here."""
WAVES = 8  # where an accelerator's memory alone would bound how many trials are asked at once


class Asked(NamedTuple):
    """The arguments of `optimize`, as they were given."""

    n_trials: Any
    max_concurrent_trials: Any
    seeds: Any
    objective: Any
    args: Any
    batch_size: Any
    devices: Any
    progress: bool
    record_every: Any
    callback: Any
    study_callbacks: Any
    catch: Any
    attributes: Any
    steps: Any
    evaluate_every: Any
    keep_states: Any


class Flying(NamedTuple):
    """A trial of the study that is under way."""

    number: int
    """Its place among the points."""
    trial: optuna.Trial
    structure: int
    begun: float


def optimize(train: Any, study: Any, space: Any, asked: Asked, start: float) -> SweepResult:
    """See `rmsprop_jax.search.optimize`."""
    search = Search(train, study, space, asked, start)
    with search.book.open(), search.ledger.bar(asked.progress):
        try:
            search.run()
        except KeyboardInterrupt as interrupt:
            search.give_up(interrupt)
            raise SweepInterrupted(search.result()) from interrupt
        except BaseException as error:  # SystemExit, too, as a handler of SIGTERM raises it
            search.give_up(error)
            error.__dict__["result"] = search.result()
            error.add_note(f"What was finished is in this exception's .result: {error.result!r}")  # type: ignore[attr-defined]
            raise
    return search.result()


class Search:
    """What one call of `optimize` runs."""

    def __init__(self, train: Any, study: Any, space: Any, asked: Asked, start: float):
        if not isinstance(study, optuna.Study):
            raise ValueError(
                f"study must be an Optuna study, got {study!r}: optuna.create_study()."
            )
        self._train, self._axes = train, (axes := axes_of(space))
        if not isinstance(study._storage, optuna.storages.InMemoryStorage):
            check_storable(space)
        self._count = count("n_trials", asked.n_trials)
        self._catch, self._asks = _catch(asked.catch), 0
        self._in_flight = asked.max_concurrent_trials
        if asked.max_concurrent_trials is not None:
            self._in_flight = count("max_concurrent_trials", asked.max_concurrent_trials)
        self._seeds, self._args = checked_seeds(asked.seeds), asked.args
        check_args(asked.args)
        check_callback(asked.callback)
        self._callback, self._batch_size = asked.callback, checked_batch_size(asked.batch_size)
        devices = jax.local_devices() if asked.devices is None else asked.devices
        self._processes = Cluster(checked_devices(devices))
        if self._processes.count > 1:
            raise ValueError(
                "devices are of several processes: each runs a search of its own, on its own "
                "devices, all on one study with a database."
            )
        self._is_stepwise = isinstance(train, Training)
        steps = None
        if self._is_stepwise:
            steps = checked_steps(asked.steps, asked.evaluate_every, "optimize")
        else:
            refuse_stages(asked)

        # What can be known before anything runs: all structures, where they are few.
        self._structures: dict[Any, int | Exception] = {}
        self._flights: dict[int, Flight] = {}
        self._rows: list[dict[str, Any]] = []
        known = examples(axes)
        some = known or _some(axes, MOST_STRUCTURES if self._catch else 1)
        groups, self._traces = self._traced(group_points(some), some, known is not None)
        if known is not None:
            check = check_metrics if len(groups) == len(self._structures) else check_same_metrics
            check(groups, self._traces, some)
        stages = None
        if steps is not None:
            name = f"search by {type(study.sampler).__name__}, {type(study.pruner).__name__}"
            stages = Stages(*steps, (), {"class": name}, self._traces[0].evaluations)
        metrics = [series(one, stages) for one in self._traces]
        objectives = _objectives(asked.objective, study)
        first = objectives[0] if isinstance(objectives[0], str) else None
        every = checked_every(asked.record_every, metrics, first, stages)
        nothing = Fingerprint(groups, self._traces, self._args, needed=False)
        groups = [group._replace(indices=[]) for group in groups]
        self._runs: list[CompiledGroup | Exception | None] = [None for _ in groups]
        self._plan = ExperimentSpec(
            Points.of([], ()), self._seeds, every, groups, metrics, nothing, stages
        )
        self._aims = [
            checked(objective, _mode(direction), self._plan)
            for objective, direction in zip(objectives, study.directions, strict=True)
        ]
        aim = self._aims[0]
        if len(self._aims) > 1:
            aim = ObjectiveSpec(tuple(one.objective for one in self._aims), aim.mode)  # type: ignore[arg-type]
        self._reports = self._is_stepwise and len(self._aims) == 1
        # One that never prunes need not be asked, which costs a database some queries.
        self._prunes = self._reports and not isinstance(study.pruner, optuna.pruners.NopPruner)
        _refuse_pruner(study.pruner)
        keep = checked_keep_states(asked.keep_states, self._count) if stages else 0
        if len(self._aims) > 1 and keep not in (0, "all"):
            if asked.keep_states != STAGES["keep_states"]:
                raise ValueError(
                    f'with several objectives no trial is best: keep_states=0 or "all", not {keep}.'
                )
            keep = 0
        warn(self._traces, self._seeds, stacklevel=6)
        for i in range(len(self._traces)):
            self._fit_batch_size(i, stacklevel=7)
        if asked.progress and asked.devices is None:
            say_idle_cores(self._processes)

        room = no_trials(self._plan, self._count * len(self._seeds))
        self.ledger = TrialTable(self._plan, aim, room, None, start, self._processes)
        specs = [one.state for one in self._traces if one.state is not None]
        self._keeper = CheckpointManager(
            self._plan, self.ledger, specs, keep, math.inf, None, False, self._processes
        )
        self.book = StudyClient(study, axes, _callbacks(asked.study_callbacks))
        self._attributes = _attributes(asked.attributes, self._plan)
        self._placed: Any = None
        self._flying: dict[int, Flying] = {}
        self._causes: dict[int, str] = {}  # what was raised by an objective or an attribute
        self._held_up = 0.0
        if self._in_flight is not None:
            self._check_room()

    # Structures.

    def _traced(
        self, groups: Sequence[Group], points: Points, every: bool
    ) -> tuple[list[Group], list[Traces]]:
        """Those of the groups that trace, of which there must be one; every one, or the first."""
        traced: list[tuple[Group, Traces]] = []
        for group in groups:
            if traced and not every:
                break
            key = self._key(group, points)
            try:
                traces = self._trace(group, points)
            except self._catch as error:
                self._structures[key] = error
                continue
            self._structures[key] = len(traced)
            traced.append((group, traces))
        if not traced:
            raise next(x for x in self._structures.values() if isinstance(x, Exception))
        return [group for group, _ in traced], [traces for _, traces in traced]

    def _trace(self, group: Group, points: Points) -> Traces:
        if self._is_stepwise:
            return trace_training(self._train, group, points, self._args, None)
        return trace_train(self._train, group, points, self._args)

    @staticmethod
    def _key(group: Group, points: Points) -> Any:
        return frozenset(group.dtypes), points.key(group.structure)

    def _structure(self, point: dict[str, Any]) -> int:
        """The structure of a point; one that was not seen before is traced, and must fit."""
        points = Points.of([point], static_names(self._axes))
        (group,) = group_points(points)
        key = self._key(group, points)
        if key not in self._structures:
            try:
                self._structures[key] = self._new_structure(group, points)
            except Exception as error:  # for the next of its trials, where it is caught
                self._structures[key] = error
        found = self._structures[key]
        if isinstance(found, Exception):
            raise found
        return found

    def _new_structure(self, group: Group, points: Points) -> int:
        traces, plan = self._trace(group, points), self._plan
        new = series(traces, plan.stages)
        # The first trials' arrays are there already.
        if new != plan.metrics[0]:
            raise ValueError(
                f"the metrics of {group.structure} are {_said(new)}, those of "
                f"{plan.groups[0].structure} {_said(plan.metrics[0])}: return the same names, "
                "shapes and dtypes for all."
            )
        self._traces.append(traces)
        self._runs.append(None)
        plan.groups.append(group._replace(indices=[]))
        plan.metrics.append(new)
        self._fit_batch_size(len(self._traces) - 1, stacklevel=10)
        return len(plan.groups) - 1

    def _fit_batch_size(self, i: int, stacklevel: int) -> None:
        """Before a trial of this structure is begun."""
        pieces = [GroupKernels(self._traces[i], self._plan, i)]
        self._batch_size = fitting_batch_size(
            self._batch_size, pieces, self._args, self._processes, stacklevel
        )

    def _compiled(self, i: int) -> CompiledGroup:
        if self._runs[i] is None:
            start = time.perf_counter()
            try:
                self._runs[i] = self._compile(i)
            except Exception as error:  # for the next of its trials, where it is caught
                self._runs[i] = error
            self._held_up += time.perf_counter() - start
        run = self._runs[i]
        if isinstance(run, Exception):
            raise run
        assert run is not None
        return run

    def _compile(self, i: int) -> CompiledGroup:
        if self._placed is None:
            self._placed = self._processes.place(self._args)
        pieces = GroupKernels(self._traces[i], self._plan, i)
        jobs, auto = self._most_jobs(), self._batch_size
        maker = compiling.GroupCompiler(pieces, self._placed, self._processes, auto, jobs)
        programs = maker.finish(maker.make(maker.size))
        return CompiledGroup(pieces, programs, self._processes, self._placed)

    def _check_room(self) -> None:
        if self._is_stepwise:
            max_concurrent_trials = min(self._in_flight, self._count) * len(self._seeds)
            self._keeper.check_room(
                False, max_concurrent_trials, None, "a smaller max_concurrent_trials"
            )

    def _most_jobs(self) -> int:
        """That may share a call."""
        seeds, devices = len(self._seeds), self._processes.mesh.size
        batch = self._batch_size
        if batch == "auto" and self._processes.free_memory() is None:
            batch = 1
        if batch != "auto" and (self._is_stepwise or self._in_flight is None):
            return devices * int(batch)
        trials = -(-self._count // WAVES) if self._in_flight is None else self._in_flight
        return min(trials, self._count) * seeds

    # Trials.

    def run(self) -> None:
        """Until all are asked and told, or a callback stops the study."""
        self._ask()
        while self._flying:
            self._ask(self._segment() if self._is_stepwise else self._whole())

    def _ask(self, leaving: Sequence[int] = ()) -> None:
        """Have as many under way as there may be, in place of those that leave."""
        coming = []
        while self._asks < self._count and not self.book.is_stopped:
            if self._flying and len(self._flying) >= (self._in_flight or math.inf):
                break
            if (flying := self._ask_one()) is None:
                continue
            coming.append(flying)
            if self._in_flight is None:
                layout = self._compiled(flying.structure).layout
                slots = self._processes.mesh.size * layout.batch_size
                self._in_flight = -(-slots // len(self._seeds))
                self._check_room()
        if coming:
            points = Points.of(self._rows, static_names(self._axes))
            self._plan = self._plan._replace(points=points)
            self.ledger.extend(self._plan)
        if not self._is_stepwise:
            return
        taken = 0  # seats in rounds that are not full: the next is on the next device
        for i in dict.fromkeys([*self._flights, *(flying.structure for flying in coming)]):
            assert self._plan.stages is not None
            if i not in self._flights:
                self._flights[i] = Flight(self._compiled(i), self._plan.stages)
            new = [flying.number for flying in coming if flying.structure == i]
            gone = self._plan.trials_of(list(leaving))
            flight, devices = self._flights[i], self._processes.mesh.size
            batch = flight.structure.layout.batch_size
            first = -(-taken // batch) % devices
            flight.seat(gone, self._plan.trials_of(new), self.ledger.numbers, first)
            taken += flight.loose

    def _ask_one(self) -> Flying | None:
        """A new trial; None where it failed as it was asked, traced or compiled, and this is
        caught."""
        begun = time.perf_counter()
        trial = self.book.ask()
        self._asks += 1
        try:
            point = self.book.point(trial)
            structure = self._structure(point)
            self._compiled(structure)
        except self._catch as error:
            self._say_failed(trial, error)
            with contextlib.suppress(LostError):
                told = self.book.tell(trial, TrialState.FAIL, None, {"cause": cause_of(error)})
                self.book.call_back(told)
            return None
        except BaseException as error:
            self.book.fail(trial, cause_of(error))
            raise
        flying = Flying(len(self._rows), trial, structure, begun)
        self._rows.append(point)
        self._plan.groups[structure].indices.append(flying.number)
        self._flying[flying.number] = flying
        return flying

    def _segment(self) -> list[int]:
        """A segment of all under way; the trials that end with it."""
        ended: list[int] = []
        started = ((f.structure, one) for f in self._flights.values() for one in f.start())
        for number in self._arrived(started):
            if not self._decide(self._flying[number]):
                ended.append(number)
        for flight in self._flights.values():
            for live in flight.lives:
                rows = np.flatnonzero(np.isin(live.trials, self._plan.trials_of(ended)))
                if len(rows):
                    states = functools.partial(flight.structure.states, live)
                    self._keep(live.trials[rows], lambda s=states, r=rows: rows_of(s(), r))
        return ended

    def _keep(self, trials: np.ndarray, states: Any) -> None:
        finished = self.ledger.finished[trials]
        if finished.any():
            some = np.flatnonzero(finished)
            self._keeper.finish(trials[some], lambda: rows_of(states(), some))
        if self._keeper.keeps_all and not finished.all():
            some = np.flatnonzero(~finished)
            self._keeper.keep(trials[some], rows_of(states(), some))

    def _whole(self) -> list[int]:
        """All under way, from begin to end."""
        numbers = list(self._flying)
        for number in self._arrived(self._started(numbers)):
            self._decide(self._flying[number])
        return numbers

    def _started(self, numbers: Sequence[int]) -> Iterator[tuple[CompiledGroup, Dispatched]]:
        first = 0  # a round that is not full leaves devices to the next structure's
        for i in dict.fromkeys(self._flying[number].structure for number in numbers):
            mine = [number for number in numbers if self._flying[number].structure == i]
            trials, run = self._plan.trials_of(mine), self._compiled(i)
            for live in run.form(trials, np.zeros(len(trials), int), first):
                yield run, run.run_whole(live, self.ledger.numbers)
            first = (first + -(-len(trials) // run.layout.batch_size)) % self._processes.mesh.size

    def _arrived(self, started: Iterator[tuple[CompiledGroup, Dispatched]]) -> Iterator[int]:
        """Fetch what was started, the next running meanwhile: each trial once all its seeds are
        there."""
        pending: collections.deque[tuple[CompiledGroup, Dispatched]] = collections.deque()
        missing = dict.fromkeys(self._flying, len(self._seeds))
        for one in started:
            pending.append(one)
            if len(pending) == 2:
                yield from self._entered(pending.popleft(), missing)
        while pending:
            yield from self._entered(pending.popleft(), missing)

    def _entered(
        self, started: tuple[CompiledGroup, Dispatched], missing: dict[int, int]
    ) -> Iterator[int]:
        structure, dispatched = started
        call = structure.fetch(dispatched)
        held_up, self._held_up = self._held_up, 0.0
        try:
            self.ledger.record(call, held_up)
        except self._catch:  # of the objective, which raised for one or more of them
            self._judge_each(call.live.trials)
        self.ledger.show()
        if self._callback is not None:
            self._callback(self.ledger.report(call.live.trials))
        for number in (call.live.trials // len(self._seeds)).tolist():
            missing[number] -= 1
            if not missing[number]:
                yield number

    def _judge_each(self, trials: np.ndarray) -> None:
        """The objective of each trial of the study; those for which it raises fail."""
        numbers = trials // len(self._seeds)
        for number in np.unique(numbers).tolist():
            try:
                self.ledger.judge(trials[numbers == number])
            except self._catch as error:
                self._fail(self._flying[number], error)

    def _fail(self, flying: Flying, error: Exception) -> None:
        """What is computed of a trial's metrics raised: its objective is NaN."""
        self.ledger.fail(self._plan.trials_of([flying.number]))
        self._causes[flying.number] = cause_of(error)
        self._say_failed(flying.trial, error)

    @staticmethod
    def _say_failed(trial: optuna.Trial, error: Exception) -> None:
        text = f"search: study trial {trial.number} failed: {cause_of(error)}"
        tqdm.write(text, file=sys.stderr)

    def _decide(self, flying: Flying) -> bool:
        """Report a trial and ask, or tell how it ended; whether it goes on."""
        trials = self._plan.trials_of([flying.number])
        values = self.ledger.judged(trials)
        step = int(self.ledger.trials.steps_completed[trials[0]])
        is_whole, is_over = bool(np.isfinite(values).all()), bool(self.ledger.finished[trials[0]])
        # Where the trial is lost its numbers are kept, and the study has them from another.
        with contextlib.suppress(LostError):
            if is_whole and self._reports:
                self.book.report(flying.trial, float(values.mean()), step)
            goes_on = is_whole and not is_over
            if goes_on and not (self._prunes and self.book.prunes(flying.trial)):
                return True
        if not is_over:  # before it is told: a callback may raise
            why = STOPPED if is_whole else FAILED
            self.ledger.stop(AppliedDecision(step, {flying.number: why}, {}, []))
            self.ledger.show()
        with contextlib.suppress(LostError):
            self._tell(flying, values, is_over)
        del self._flying[flying.number]
        return False

    def _tell(self, flying: Flying, values: np.ndarray, is_over: bool) -> None:
        """Say how a trial ended, with its attributes, which the sampler's constraints may read."""
        trials = self._plan.trials_of([flying.number])
        known = self.ledger.trials.take(trials)
        mean = lambda aim: float(aim.values(self._plan, known).mean())
        seconds = round(time.perf_counter() - flying.begun, 3)
        attributes: dict[str, Any] = {"seeds": list(self._seeds), "seconds": seconds}
        try:
            attributes |= {name: mean(aim) for name, aim in self._attributes.items()}
        except self._catch as error:
            self._fail(flying, error)
            values = self.ledger.judged(trials)
        if flying.number in self._causes:
            attributes["cause"] = self._causes[flying.number]
        state, means = TrialState.PRUNED, None
        if not np.isfinite(values).all():
            state = TrialState.FAIL
        elif len(values) > 1:
            attributes["std"] = float(values.std(ddof=1))
        if state != TrialState.FAIL and is_over:
            state, means = TrialState.COMPLETE, list(map(mean, self._aims))
        told = self.book.tell(flying.trial, state, means, attributes)
        if told is not None:
            self.ledger.trials.feasible[trials] = is_feasible(told)
        self.book.call_back(told)

    def give_up(self, error: BaseException) -> None:
        """Tell what is finished, and that the rest has failed, and why."""
        self.book.hurry()
        for flying in self._flying.values():
            trials = self._plan.trials_of([flying.number])
            is_over = len(self._plan.points) > flying.number and self.ledger.finished[trials].all()
            values = self.ledger.judged(trials)
            if is_over and np.isfinite(values).all():
                with contextlib.suppress(Exception):  # there is an error already
                    self._tell(flying, values, True)
            self.book.fail(flying.trial, cause_of(error))  # what is not told

    # What is there.

    def result(self) -> SweepResult:
        """The trials of this call, as a sweep's."""
        plan = self._plan._replace(points=Points.of(self._rows, static_names(self._axes)))
        used = [i for i, group in enumerate(plan.groups) if group.indices]
        used = sorted(used, key=lambda i: plan.groups[i].indices[0]) or list(
            range(len(plan.groups))
        )
        groups = [plan.groups[i] for i in used]
        traces = [self._traces[i] for i in used]
        final = plan._replace(
            groups=groups,
            metrics=[plan.metrics[i] for i in used],
            fingerprint=Fingerprint(groups, traces, self._args, needed=False),
        )
        specs = [one.state for one in traces if one.state is not None]
        kept = Kept(self._keeper.kept, specs) if specs else None
        retrainer = Retrainer(self._train, groups, self._processes.mesh.local_devices[0])
        return self.ledger.result(final, retrainer=retrainer, kept=kept)


def _some(axes: Mapping[str, Axis], count: int) -> Points:
    """Points of some structures, where these are too many."""

    def value(axis: Axis, i: int) -> Any:
        if axis.examples:
            return axis.examples[i % len(axis.examples)]
        bounds: Any = axis.distribution
        return axis.value(bounds.low + (bounds.high - bounds.low) * i // count)

    rows = [{name: value(axis, i) for name, axis in axes.items()} for i in range(count)]
    return Points.of(rows, static_names(axes))


def _said(metrics: Any) -> str:
    return ", ".join(f"{n} {m.dtype}{list(m.shape)}" for n, m in metrics.items())


def _mode(direction: Any) -> str:
    return "max" if direction == optuna.study.StudyDirection.MAXIMIZE else "min"


def _objectives(objective: Any, study: optuna.Study) -> tuple[Any, ...]:
    several = objective if isinstance(objective, tuple | list) else (objective,)
    if len(several) != len(study.directions):
        raise ValueError(
            f"the study has {len(study.directions)} directions, and objective names "
            f"{len(several)}: {objective!r}. Give a tuple of as many metrics, or functions."
        )
    return tuple(several)


def _catch(catch: Any) -> tuple[type[Exception], ...]:
    kinds = tuple(catch) if isinstance(catch, Iterable) else (catch,)
    if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
        raise ValueError(
            f"catch must be a class of exceptions, or a tuple of some, got {catch!r}. Write "
            "catch=(ValueError,)."
        )
    return kinds


def _attributes(attributes: Any, plan: ExperimentSpec) -> dict[str, ObjectiveSpec]:
    """What each study trial is given besides its values; tried on zeros, as an objective is."""
    attributes = {} if attributes is None else attributes
    if not isinstance(attributes, Mapping):
        raise ValueError(
            f"attributes must be a dict of functions of one trial's metrics, got {attributes!r}. "
            "Write attributes={'norm': lambda metrics: metrics['norm'][-1]}."
        )
    check_names("attributes", attributes)
    if clash := sorted(OWN_ATTRIBUTES & attributes.keys()):
        raise ValueError(
            f"attributes must have other names than those that search gives, got {clash}. Rename "
            "these."
        )
    aims = {}
    for name, function in attributes.items():
        try:
            aims[name] = checked(function, "min", plan)
        except ValueError as error:
            raise ValueError(
                f"attributes[{name!r}] must be what an objective may be: {error}"
            ) from error
    return aims


def _refuse_pruner(pruner: Any) -> None:
    while pruner is not None:
        if isinstance(pruner, optuna.pruners.WilcoxonPruner):
            raise ValueError(
                "WilcoxonPruner compares trials on the same problem instances; here the values "
                "reported are one learning curve, step by step. Take MedianPruner or "
                "HyperbandPruner, say."
            )
        pruner = getattr(pruner, "_wrapped_pruner", None)


def _callbacks(callbacks: Any) -> list[Any]:
    if not isinstance(callbacks, list | tuple) or not all(map(callable, callbacks)):
        raise ValueError(
            f"study_callbacks must be a list of functions (study, frozen trial), got {callbacks!r}."
        )
    return list(callbacks)
