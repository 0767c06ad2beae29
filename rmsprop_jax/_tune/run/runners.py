"""The order in which trials run: one round after another to its end, or all to each boundary."""

import collections
import functools
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import numpy as np

from rmsprop_jax._tune.experiment_spec import ExperimentSpec
from rmsprop_jax._tune.run.batch import Call, CompiledGroup, States, TrialBatch, clock, rows_of
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.run.data import BatchReader
from rmsprop_jax._tune.trials.checkpoints import CheckpointManager
from rmsprop_jax._tune.trials.decision_log import AppliedDecision, DecisionLog
from rmsprop_jax._tune.trials.table import Report, TrialTable

Structures = Generator[tuple[CompiledGroup, np.ndarray, float]]
"""Each structure, its trials that have not ended, and for how many seconds compiling held up."""


class Run(NamedTuple):
    """What both orders share."""

    plan: ExperimentSpec
    ledger: TrialTable
    keeper: CheckpointManager
    processes: Cluster
    callback: Callable[[Report], Any] | None

    def record(self, call: Call, compile_seconds: float = 0.0) -> None:
        """Enter what a call gave, and show it."""
        self.ledger.record(call, compile_seconds)
        self.ledger.show()
        if self.callback is not None and self.processes.first:
            self.callback(self.ledger.report(call.live.trials))


def functions(run: Run, structures: Structures) -> None:
    """Whole trainings: rounds of one structure after another."""
    # A CPU's devices share their cores: a round in advance would only take them from this one.
    ahead = 1 if run.processes.mesh.devices.flat[0].platform == "cpu" else 2
    for structure, trials, held_up in structures:
        pending: collections.deque = collections.deque()
        watch = clock()
        rounds = structure.form(trials, np.zeros(len(trials), int))
        live = next(rounds, None)
        while live is not None or pending:
            if live is not None:
                pending.append(structure.run_whole(live, run.ledger.numbers))
            if len(pending) == ahead or live is None:
                call = structure.fetch(pending.popleft())
                structure.timed(next(watch), call.live)
                run.record(call, held_up)
                held_up = 0.0
            live = next(rounds, None)


def one_after_another(run: Run, structures: Structures) -> None:
    """Trainings that nothing holds up: each round goes to its end, its states on the devices."""
    stages, ledger, keeper = run.plan.stages, run.ledger, run.keeper
    assert stages is not None
    for structure, trials, held_up in structures:
        watch = clock()
        for live in structure.form(trials, ledger.trials.steps_completed[trials]):
            structure.begin(live, ledger.numbers, keeper.take(live.trials) if live.step else None)
            pending: collections.deque = collections.deque()
            while live.step < stages.steps or pending:
                if live.step < stages.steps:
                    # The next segment waits for no one: its states are on the devices already.
                    pending.append(structure.advance(live, stages.after(live.step), None))
                if len(pending) == 2 or live.step == stages.steps:
                    run.record(structure.fetch(pending.popleft()), held_up)
                    held_up = 0.0
                if live.step < stages.steps and keeper.is_due():
                    while pending:
                        run.record(structure.fetch(pending.popleft()))
                    keeper.checkpoint([(live.trials, live.step, structure.states(live))])
            keeper.finish(live.trials, functools.partial(structure.states, live))
            structure.timed(next(watch), live)


class Fleet:
    """The rounds of one structure, all under way."""

    def __init__(self, structure: CompiledGroup, keeper: CheckpointManager):
        self.structure, self._keeper = structure, keeper
        self.lives: list[TrialBatch] = []

    def states(self, live: TrialBatch) -> States:
        """Of one of its rounds, on the host; of one that has not moved yet, from the folder."""
        if live.host is not None:
            return live.host
        if live.states is not None:
            return self.structure.states(live)
        return self._keeper.take(live.trials)

    def gather(self, boundary: int) -> tuple[np.ndarray, States]:
        """Its trials that stand there and their states, on the host."""
        here = [live for live in self.lives if live.step == boundary]
        trials = np.concatenate([np.zeros(0, int), *(live.trials for live in here)])
        leaves = zip(*map(self.states, here), strict=True)
        return trials, [np.concatenate(leaf) for leaf in leaves]

    def form_anew(self, trials: np.ndarray, states: States, reached: int) -> None:
        """Full rounds of these trials, which stand there and go on from these states."""
        self.lives, at = [live for live in self.lives if live.step != reached], 0
        for live in self.structure.form(trials, np.full(len(trials), reached)):
            live.host = rows_of(states, np.arange(at, at + len(live.trials)))
            self.lives.append(live)
            at += len(live.trials)


def boundary_by_boundary(
    run: Run, structures: Structures, decisions: DecisionLog | None, batches: BatchReader | None
) -> None:
    """All trials of all structures come to a boundary before any passes it."""
    stages, ledger, keeper = run.plan.stages, run.ledger, run.keeper
    assert stages is not None
    fleets: list[Fleet] = []
    advanced: set[int] = set()  # trials that came to the present boundary in this call

    def go(structure: CompiledGroup, live: TrialBatch, boundary: int, held_up: float = 0.0) -> None:
        while live.step < boundary:
            if live.states is None:
                states, live.host = live.host, None
                if states is None and live.step:
                    states = keeper.take(live.trials)
                structure.begin(live, ledger.numbers, states)
            stop = stages.after(live.step)
            data = batches.segment(live.step, stop) if batches else None
            running = structure.advance(live, stop, data)
            if batches:
                batches.prepare(stop)
            run.record(structure.fetch(running), held_up)
            held_up = 0.0
            advanced.update(live.trials.tolist())

    def decide(boundary: int) -> None:
        """Ask, write down, and only then do."""
        assert decisions is not None
        ledger.commit(np.array(sorted(advanced), int))  # what is decided on is on disk, too
        decided = decisions.at(boundary, lambda: ledger.table(boundary, advanced), keep_stopped)
        stopped = ledger.stop(decided)
        donors = ledger.copy(decided, sorted(advanced))
        changes = bool(donors) or not advanced.isdisjoint(stopped.tolist())
        for fleet in fleets if changes else ():
            trials, states = fleet.gather(boundary)
            row = {trial: i for i, trial in enumerate(trials.tolist())}
            taken = [donors.get(t, t) for t in trials.tolist()]
            if lost := set(taken) - row.keys():
                raise ValueError(
                    f"trials that start again take over, after step {boundary}, the states of "
                    f"{len(lost)} others, which have gone on from there. Move all rounds and "
                    "states away, so that all trials start again, or give another path."
                )
            on = np.flatnonzero(~np.isin(trials, stopped))
            states = rows_of(states, [row[t] for t in taken])
            fleet.form_anew(trials[on], rows_of(states, on), boundary)
        ledger.show()
        if donors or keeper.is_due():  # a copy is on disk before any trial goes on
            checkpoint()

    def keep_stopped(decided: AppliedDecision) -> None:
        """Before a decision is written down, after which these trials are not looked at again."""
        stopped = run.plan.trials_of(list(decided.stopped))
        for fleet in fleets if keeper.keeps_all else ():
            for live in fleet.lives:
                rows = np.flatnonzero(np.isin(live.trials, stopped))
                if len(rows):
                    keeper.keep(live.trials[rows], rows_of(fleet.states(live), rows))

    def checkpoint() -> None:
        """All states that are under way; a round that nothing has moved yet is on disk already."""
        keeper.checkpoint(
            [
                (live.trials, live.step, fleet.states(live))
                for fleet in fleets
                for live in fleet.lives
                if live.host is not None or live.states is not None
            ]
        )

    def after(boundary: int) -> None:
        if boundary == stages.steps:
            for fleet in fleets:
                for live in fleet.lives:
                    keeper.finish(live.trials, functools.partial(fleet.states, live))
        elif decisions is not None and boundary in stages.rungs:
            decide(boundary)
        elif keeper.is_due():
            checkpoint()
        advanced.clear()

    first, *others = stages.boundaries.tolist()
    for structure, trials, held_up in structures:
        fleets.append(fleet := Fleet(structure, keeper))
        watch = clock()
        for live in structure.form(trials, ledger.trials.steps_completed[trials]):
            go(structure, live, first, held_up)
            held_up = 0.0
            structure.timed(next(watch), live)
            fleet.lives.append(live)
    after(first)
    for boundary in others:
        for fleet in fleets:
            for live in fleet.lives:
                go(fleet.structure, live, boundary)
        after(boundary)
