"""The loop that feeds a study: ask, run a segment of all, report, prune, tell."""

import collections
import contextlib
import functools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optuna
from optuna.trial import TrialState

from rmsprop_jax._search.space import Axis, axes_of, examples, static_names
from rmsprop_jax._search.study import Book, LostError
from rmsprop_jax._sweep import compiling
from rmsprop_jax._sweep.checks import (
    STAGES,
    check_args,
    check_callback,
    check_metrics,
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
from rmsprop_jax._sweep.decisions import Decided
from rmsprop_jax._sweep.fingerprint import Fingerprint
from rmsprop_jax._sweep.flight import Flight
from rmsprop_jax._sweep.keeping import Keeper
from rmsprop_jax._sweep.ledger import Ledger
from rmsprop_jax._sweep.objective import Aim, checked
from rmsprop_jax._sweep.pieces import Pieces
from rmsprop_jax._sweep.plan import FAILED, STOPPED, Plan, Stages, no_trials
from rmsprop_jax._sweep.points import Points
from rmsprop_jax._sweep.processes import Processes
from rmsprop_jax._sweep.results import SweepResult
from rmsprop_jax._sweep.rounds import Dispatched, Structure, rows_of
from rmsprop_jax._sweep.seeds import checked_seeds
from rmsprop_jax._sweep.states import Kept
from rmsprop_jax._sweep.sweep import SweepInterrupted
from rmsprop_jax._sweep.tracing import Group, Traces, group_points, trace_train, trace_training
from rmsprop_jax._sweep.training import Training

WAVES = 8  # where an accelerator's memory alone would bound how many trials are asked at once


class Asked(NamedTuple):
    """The arguments of `optimize`, as they were given."""

    n_trials: Any
    in_flight: Any
    seeds: Any
    objective: Any
    args: Any
    batch_size: Any
    devices: Any
    progress: bool
    every: Any
    callback: Any
    callbacks: Any
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
    search = Search(train, study, axes_of(space), asked, start)
    with search.book.open(), search.ledger.bar(asked.progress):
        try:
            search.run()
        except KeyboardInterrupt as interrupt:
            search.give_up()
            raise SweepInterrupted(search.result()) from interrupt
        except BaseException as error:  # SystemExit, too, as a handler of SIGTERM raises it
            search.give_up()
            error.__dict__["result"] = search.result()
            error.add_note(f"What was finished is in this exception's .result: {error.result!r}")  # type: ignore[attr-defined]
            raise
    return search.result()


class Search:
    """What one call of `optimize` runs."""

    def __init__(self, train: Any, study: Any, axes: dict[str, Axis], asked: Asked, start: float):
        if not isinstance(study, optuna.Study):
            raise ValueError(
                f"study must be an Optuna study, got {study!r}: optuna.create_study()."
            )
        self._train, self._axes = train, axes
        self._count = count("n_trials", asked.n_trials)
        self._in_flight = asked.in_flight
        if asked.in_flight is not None:
            self._in_flight = count("in_flight", asked.in_flight)
        self._seeds, self._args = checked_seeds(asked.seeds), asked.args
        check_args(asked.args)
        check_callback(asked.callback)
        self._callback, self._batch_size = asked.callback, checked_batch_size(asked.batch_size)
        devices = jax.local_devices() if asked.devices is None else asked.devices
        self._processes = Processes(checked_devices(devices))
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
        self._structures: dict[Any, int] = {}
        self._flights: dict[int, Flight] = {}
        self._rows: list[dict[str, Any]] = []
        known, static = examples(axes), static_names(axes)
        some = known or Points.of([{n: _any(a) for n, a in axes.items()}], static)
        groups = group_points(some)
        self._traces: list[Traces] = [self._trace(group, some) for group in groups]
        if known is not None:
            check_metrics(groups, self._traces, some)
        stages = None
        if steps is not None:
            name = f"search by {type(study.sampler).__name__}, {type(study.pruner).__name__}"
            stages = Stages(*steps, (), name, self._traces[0].evaluations)
        metrics = [series(one, stages) for one in self._traces]
        objectives = _objectives(asked.objective, study)
        first = objectives[0] if isinstance(objectives[0], str) else None
        every = checked_every(asked.every, metrics, first, stages)
        nothing = Fingerprint(groups, self._traces, self._args, needed=False)
        groups = [group._replace(indices=[]) for group in groups]
        for i, group in enumerate(groups):
            self._structures[self._key(group, some)] = i
        self._runs: list[Structure | None] = [None for _ in groups]
        self._plan = Plan(Points.of([], ()), self._seeds, every, groups, metrics, nothing, stages)
        self._aims = [
            checked(objective, _mode(direction), self._plan)
            for objective, direction in zip(objectives, study.directions, strict=True)
        ]
        aim = self._aims[0]
        if len(self._aims) > 1:
            aim = Aim(tuple(one.objective for one in self._aims), aim.mode)  # type: ignore[arg-type]
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
        if asked.progress and asked.devices is None:
            say_idle_cores(self._processes)

        room = no_trials(self._plan, self._count * len(self._seeds))
        self.ledger = Ledger(self._plan, aim, room, None, start, self._processes)
        specs = [one.state for one in self._traces if one.state is not None]
        self._keeper = Keeper(
            self._plan, self.ledger, specs, keep, math.inf, None, False, self._processes
        )
        self.book = Book(study, axes, _callbacks(asked.callbacks))
        self._placed: Any = None
        self._flying: dict[int, Flying] = {}
        self._held_up = 0.0
        if self._in_flight is not None:
            self._check_room()

    # Structures.

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
            traces, plan = self._trace(group, points), self._plan
            new = series(traces, plan.stages)
            # The first trials' arrays are there already.
            if new != plan.metrics[0]:
                raise ValueError(
                    f"the metrics of {group.structure} are {_said(new)}, those of "
                    f"{plan.groups[0].structure} {_said(plan.metrics[0])}: return the same names, "
                    "shapes and dtypes for all."
                )
            self._structures[key] = len(plan.groups)
            self._traces.append(traces)
            self._runs.append(None)
            plan.groups.append(group._replace(indices=[]))
            plan.metrics.append(new)
        return self._structures[key]

    def _compiled(self, i: int) -> Structure:
        run = self._runs[i]
        if run is None:
            start = time.perf_counter()
            if self._placed is None:
                self._placed = self._processes.place(self._args)
            pieces = Pieces(self._traces[i], self._plan, i)
            jobs, auto = self._most_jobs(), self._batch_size
            maker = compiling.Maker(pieces, self._plan, self._placed, self._processes, auto, jobs)
            programs = maker.finish(maker.make(maker.size))
            run = Structure(self._plan, i, programs, self._processes, self._placed)
            self._runs[i] = run
            self._held_up += time.perf_counter() - start
            if self._in_flight is None:
                slots = self._processes.mesh.size * programs.layout.batch_size
                self._in_flight = -(-slots // len(self._seeds))
                self._check_room()
        return run

    def _check_room(self) -> None:
        if self._is_stepwise:
            in_flight = min(self._in_flight, self._count) * len(self._seeds)
            self._keeper.check_room(False, in_flight, None, "a smaller in_flight")

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
        while len(self._rows) < self._count and not self.book.is_stopped:
            if self._flying and len(self._flying) >= (self._in_flight or math.inf):
                break
            coming.append(self._ask_one())
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

    def _ask_one(self) -> Flying:
        begun = time.perf_counter()
        trial, point = self.book.ask()
        try:
            structure = self._structure(point)
            self._compiled(structure)
        except BaseException:
            self.book.fail(trial)
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

    def _started(self, numbers: Sequence[int]) -> Iterator[tuple[Structure, Dispatched]]:
        first = 0  # a round that is not full leaves devices to the next structure's
        for i in dict.fromkeys(self._flying[number].structure for number in numbers):
            mine = [number for number in numbers if self._flying[number].structure == i]
            trials, run = self._plan.trials_of(mine), self._compiled(i)
            for live in run.form(trials, np.zeros(len(trials), int), first):
                yield run, run.run_whole(live, self.ledger.numbers)
            first = (first + -(-len(trials) // run.layout.batch_size)) % self._processes.mesh.size

    def _arrived(self, started: Iterator[tuple[Structure, Dispatched]]) -> Iterator[int]:
        """Fetch what was started, the next running meanwhile: each trial once all its seeds are
        there."""
        pending: collections.deque[tuple[Structure, Dispatched]] = collections.deque()
        missing = dict.fromkeys(self._flying, len(self._seeds))
        for one in started:
            pending.append(one)
            if len(pending) == 2:
                yield from self._entered(pending.popleft(), missing)
        while pending:
            yield from self._entered(pending.popleft(), missing)

    def _entered(
        self, started: tuple[Structure, Dispatched], missing: dict[int, int]
    ) -> Iterator[int]:
        structure, dispatched = started
        call = structure.fetch(dispatched)
        self.ledger.record(call, self._held_up)
        self._held_up = 0.0
        self.ledger.show()
        if self._callback is not None:
            self._callback(self.ledger.report(call.live.trials))
        for number in (call.live.trials // len(self._seeds)).tolist():
            missing[number] -= 1
            if not missing[number]:
                yield number

    def _decide(self, flying: Flying) -> bool:
        """Report a trial and ask, or tell how it ended; whether it goes on."""
        trials = self._plan.trials_of([flying.number])
        values = self.ledger.judged(trials)
        step = int(self.ledger.trials.reached[trials[0]])
        is_whole, is_over = bool(np.isfinite(values).all()), bool(self.ledger.finished[trials[0]])
        # Where the trial is lost its numbers are kept, and the study has them from another.
        with contextlib.suppress(LostError):
            if is_whole and self._reports:
                self.book.report(flying.trial, float(values.mean()), step)
            goes_on = is_whole and not is_over
            if goes_on and not (self._prunes and self.book.prunes(flying.trial)):
                return True
            self._tell(flying, values, is_over)
        del self._flying[flying.number]
        if not is_over:
            why = STOPPED if is_whole else FAILED
            self.ledger.stop(Decided(step, {flying.number: why}, {}, []))
            self.ledger.show()
        return False

    def _tell(self, flying: Flying, values: np.ndarray, is_over: bool) -> None:
        seconds = round(time.perf_counter() - flying.begun, 3)
        attributes: dict[str, Any] = {"seeds": list(self._seeds), "seconds": seconds}
        if not np.isfinite(values).all():
            self.book.tell(flying.trial, TrialState.FAIL, None, attributes)
            return
        if len(values) > 1:
            attributes["spread"] = float(values.std(ddof=1))
        if not is_over:
            self.book.tell(flying.trial, TrialState.PRUNED, None, attributes)
            return
        known = self.ledger.trials.take(self._plan.trials_of([flying.number]))
        means = [float(aim.values(self._plan, known).mean()) for aim in self._aims]
        self.book.tell(flying.trial, TrialState.COMPLETE, means, attributes)

    def give_up(self) -> None:
        """Tell what is finished, and that the rest has failed."""
        self.book.hurry()
        for flying in self._flying.values():
            trials = self._plan.trials_of([flying.number])
            is_over = len(self._plan.points) > flying.number and self.ledger.finished[trials].all()
            if is_over:
                with contextlib.suppress(Exception):  # there is an error already
                    self._tell(flying, self.ledger.judged(trials), True)
            else:
                self.book.fail(flying.trial)

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
        return self.ledger.result(final, train=self._train, kept=kept)


def _any(axis: Axis) -> Any:
    """A value of an axis, where its structures are too many."""
    if axis.examples:
        return axis.examples[0]
    return axis.value(axis.distribution.low)  # type: ignore[attr-defined]


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
            f"callbacks must be a list of functions (study, frozen trial), got {callbacks!r}."
        )
    return list(callbacks)
