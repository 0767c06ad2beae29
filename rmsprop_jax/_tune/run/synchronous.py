"""Run all trials to an evaluation step before any passes it: for schedulers, and for `batches`.

A rung is an evaluation step at which a scheduler decides. `SynchronousRunner._decide` has the order
of the files and the effects of a decision.
"""

import contextlib
import functools
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Protocol

import numpy as np

from rmsprop_jax._tune.experiment import Experiment
from rmsprop_jax._tune.run.batch import (
    HostStates,
    NotStarted,
    OnDisk,
    OnHost,
    SegmentResult,
    TrialBatch,
    rows_of,
)
from rmsprop_jax._tune.session import Session
from rmsprop_jax._tune.trials.checkpoints import BatchStates
from rmsprop_jax._tune.trials.decision_log import AppliedDecision


class Backend(Protocol):
    """The devices or the workers that run batches: `LocalDevices`, or `ExecutorBackend`."""

    @property
    def stops(self) -> list[int]: ...
    def batches(self) -> Iterator[TrialBatch]: ...
    def form(
        self, group: int, trials: np.ndarray, steps_completed: np.ndarray
    ) -> Iterator[TrialBatch]: ...
    def advance(self, batches: Iterable[TrialBatch], until: int) -> Iterator[SegmentResult]: ...
    def states(self, batch: TrialBatch) -> HostStates: ...


class SynchronousRunner:
    """A runner that runs all trials from one step to the next: the `stops` of its backend.

    The devices, or the host after a rung, hold the states of all trials.

    Args:
      experiment: the experiment of the call.
      session: the session of the call.
      backend: the backend that runs batches.
    """

    def __init__(self, experiment: Experiment, session: Session, backend: Backend):
        self._experiment, self._session, self._backend = experiment, session, backend
        self._batches: dict[int, list[TrialBatch]] = {}
        """The batches of each static group."""
        self._arrived: set[int] = set()
        """The trials that reached the present step in this call."""

    def run(self) -> None:
        """Run all trials, until they end or the time is up."""
        with contextlib.closing(self._formed()) as formed:
            batches: Iterable[TrialBatch] = formed
            for stop in self._backend.stops:
                for result in self._backend.advance(batches, stop):
                    self._session.record(result)
                    self._arrived.update(result.batch.trials.tolist())
                if self._after(stop):
                    return
                batches = list(self._all_batches())

    def _formed(self) -> Generator[TrialBatch]:
        """Yield the batches of all trials, and keep them."""
        for batch in self._backend.batches():
            self._batches.setdefault(batch.group, []).append(batch)
            yield batch

    def _all_batches(self) -> Iterator[TrialBatch]:
        for batches in self._batches.values():
            yield from batches

    def _after(self, step: int) -> bool:
        """Finish the trials at the last step; at an earlier one decide and write a checkpoint.

        A checkpoint at a rung is written after the decision, never before it.
        `TrialTable.apply_copies` relies on this: a trial that resumes *at* a rung has the copied
        state, and gets the copied hyperparameters.

        A checkpoint always follows a copy. Without it, a kill in the middle of the next checkpoint
        could leave a donor past the rung, and the trial that must copy it again before the rung.

        Args:
          step: the evaluation step that all trials have reached.

        Returns:
          Whether the time is up. It is never up at a step that no trial reached in this call, so
          that every call makes progress.
        """
        schedule, is_time_up = self._experiment.spec.schedule, False
        if step == schedule.end:
            for batch in self._all_batches():
                self._session.finish(batch.trials, functools.partial(self._backend.states, batch))
        else:
            has_copied = step in schedule.rungs and self._decide(step)
            is_time_up = bool(self._arrived) and self._session.is_time_up
            if has_copied or is_time_up or self._session.checkpoints.is_due():
                self._checkpoint()
        self._arrived.clear()
        return is_time_up

    def _checkpoint(self) -> None:
        """Write the states of all trials under way, except those that are still on disk only."""
        self._session.checkpoints.write(
            [
                BatchStates(
                    batch.trials, batch.step, functools.partial(self._backend.states, batch)
                )
                for batch in self._all_batches()
                if not isinstance(batch.states, OnDisk)
            ]
        )

    def _decide(self, rung: int) -> bool:
        """Ask the scheduler, or replay its decision, and follow it.

        The order is: write the metrics, ask the scheduler, write the final states of pruned trials
        (with `keep_states="all"` only), write the decision, prune and copy, form new waves. Each
        step can be repeated after a kill, because it needs only files that are on disk:

        - The scheduler sees only metrics that are on disk.
        - Pruned trials never run again after the decision, so their final states are written
          before it. Other values of `keep_states` keep complete trials only.
        - No trial follows a decision that is not on disk.

        Args:
          rung: the evaluation step.

        Returns:
          Whether a trial copied another.
        """
        table, log = self._session.table, self._session.decisions
        assert log is not None
        table.commit(np.array(sorted(self._arrived), int))
        decision = log.find(rung)
        if decision is None:
            decision = log.ask(rung, lambda: table.view(rung, self._arrived))
            self._keep_pruned(decision)
            log.write(decision)
        pruned = self._session.prune(decision, self._arrived)
        donors = table.copy(decision, sorted(self._arrived))
        if donors or not self._arrived.isdisjoint(pruned.tolist()):
            for group in self._batches:
                self._form_waves(group, rung, pruned, donors)
        return bool(donors)

    def _keep_pruned(self, decision: AppliedDecision) -> None:
        """Keep the final states of pruned trials, with `keep_states="all"` only."""
        final_states = self._session.final_states
        pruned = self._experiment.spec.trials_of(list(decision.pruned))
        for batch in self._all_batches() if final_states.keeps_all else ():
            rows = np.flatnonzero(np.isin(batch.trials, pruned))
            if len(rows):
                states = rows_of(self._backend.states(batch), rows)
                final_states.keep(batch.trials[rows], states)

    def _form_waves(
        self, group: int, rung: int, pruned: np.ndarray, donors: Mapping[int, int]
    ) -> None:
        """Form full waves of the trials of a static group that continue after a rung.

        The states go through the host, one old wave at a time, so that the memory holds little more
        than all states once.

        Args:
          group: the number of the static group.
          rung: the evaluation step at which the scheduler decided.
          pruned: the trials that end at the rung.
          donors: the trial whose state each copying trial takes over.
        """
        here = [batch for batch in self._batches[group] if batch.step == rung]
        trials = np.concatenate([np.zeros(0, int), *(batch.trials for batch in here)])
        sources = [donors.get(trial, trial) for trial in trials.tolist()]
        if missing := set(sources) - set(trials.tolist()):
            raise ValueError(
                f"donors must be at step {rung} when trials copy their states, but {len(missing)} "
                "of them have already run past it. Move all round-*.npz and states-*.npz away, so "
                "that all trials start again, or pass another path."
            )
        go_on = trials[~np.isin(trials, pruned)]
        formed = list(self._backend.form(group, go_on, np.full(len(go_on), rung)))
        spec = self._experiment.state_specs[group]
        states = [[np.empty((len(x.trials), *a.shape), a.dtype) for a in spec.data] for x in formed]
        for old in here:
            leaves, old.states = self._backend.states(old), NotStarted()
            row_of = {trial: i for i, trial in enumerate(old.trials.tolist())}
            for new, into in zip(formed, states, strict=True):
                wanted = [row_of.get(donors.get(t, t), -1) for t in new.trials.tolist()]
                rows = np.array(wanted, int)
                for leaf, target in zip(leaves, into, strict=True):
                    target[rows >= 0] = leaf[rows[rows >= 0]]
        for batch, leaves in zip(formed, states, strict=True):
            batch.states = OnHost(leaves)
        others = [batch for batch in self._batches[group] if batch.step != rung]
        self._batches[group] = others + formed
