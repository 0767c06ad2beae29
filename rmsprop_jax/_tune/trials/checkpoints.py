"""Trials' states that outlive their round: of unfinished trials on disk, and of the best."""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmsprop_jax._tune.experiment_spec import ExperimentSpec
from rmsprop_jax._tune.options import warn_caller
from rmsprop_jax._tune.results.statistics import ranked
from rmsprop_jax._tune.run.batch import States, rows_of
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.storage.folder import FolderWriter
from rmsprop_jax._tune.training.state_spec import StateSpec
from rmsprop_jax._tune.trials.host_memory import free_bytes
from rmsprop_jax._tune.trials.table import TrialTable

MEMORY_SHARE = 0.8  # of the host's free memory, for states


class CheckpointManager:
    """Which states are kept, and where.

    Args:
      plan: what is asked.
      ledger: what is known of each trial.
      specs: for each structure its state; empty for functions.
      keep: 0, how many of the best points with all their seeds, or "all".
      seconds: between checkpoints of unfinished trials, at the least.
      store: the folder, on the first process; or None.
      on_disk: whether there is a folder, on any process.
      processes: that take part.

    Attributes:
      kept: in memory, for each trial its state's arrays.
    """

    def __init__(
        self,
        plan: ExperimentSpec,
        ledger: TrialTable,
        specs: Sequence[StateSpec],
        keep: int | str,
        seconds: float,
        store: FolderWriter | None,
        on_disk: bool,
        processes: Cluster,
    ):
        self._plan, self._ledger, self._specs, self._keep = plan, ledger, specs, keep
        self._seconds, self._store, self._on_disk = seconds, store, on_disk
        self._processes, self._last = processes, time.monotonic()
        self._group_of = plan.group_of()
        self.kept: dict[int, list[np.ndarray]] = {}
        self._stored: dict[int, tuple[int, str]] = {}
        if specs:
            known = store.states() if store else {}
            told = processes.tell("checkpoints", {str(t): list(x) for t, x in known.items()})
            self._stored = {int(t): (x[0], x[1]) for t, x in told.items()}
            self.resume()

    @property
    def keeps_all(self) -> bool:
        return self._keep == "all"

    def resume(self) -> None:
        """Unfinished trials go on from their states, or from the start."""
        trials = np.flatnonzero(~self._ledger.ended)
        reached = np.array([self._stored.get(t, (0, ""))[0] for t in trials.tolist()], int)
        self._ledger.go_back(trials, reached)

    def check_room(
        self,
        lockstep: bool,
        max_concurrent_trials: int,
        path: Any,
        remedy: str = "a path, for them to lie in",
    ) -> None:
        """ValueError where the states will not fit the memory, or the disk.

        Args:
          lockstep: whether all trials are under way at once.
          max_concurrent_trials: how many are, if not.
          path: the folder, or None.
          remedy: what helps, besides a smaller keep_states, where memory is short.
        """
        largest = max(spec.bytes for spec in self._specs)
        trials, seeds = len(self._ledger.trials.number), len(self._plan.seeds)
        kept = trials if self.keeps_all else min(int(self._keep) * seeds, trials)
        running = trials if lockstep else max_concurrent_trials
        memory = (running + (0 if path else kept)) * largest
        free = free_bytes()
        if free is not None and memory > MEMORY_SHARE * free:
            raise ValueError(
                f"the states of {running} trials under way and {0 if path else kept} kept need "
                f"{memory / 1e9:.3g} GB, and {free / 1e9:.3g} GB of memory are free (a container's "
                f"limit counts): give a smaller keep_states, or {remedy}."
            )
        if path is None:
            return
        where = os.path.abspath(os.path.expanduser(path))
        while not os.path.exists(where):
            where = os.path.dirname(where)
        free, need = shutil.disk_usage(where).free, (2 * running + kept) * largest
        if need > free:
            raise ValueError(
                f"the states of {running} trials under way (twice) and {kept} kept need "
                f"{need / 1e9:.3g} GB on disk, and {free / 1e9:.3g} GB are free at {where}: give a "
                "smaller keep_states, or another path."
            )

    def warn_of_gone_states(self) -> None:
        """Warn where an earlier call dropped the states of trials that may now be among the best:
        since more seeds are asked for, more states are, or another objective or mode.

        After a kill between two files of a sweep's end this may warn of a trial whose better one is
        not on disk yet.
        """
        ledger = self._ledger
        if self._store is None:
            return
        trials = np.flatnonzero(ledger.ended if self.keeps_all else ledger.finished)
        files = self._store.final_files()
        gone = [t for t in trials[self._wanted(trials)].tolist() if not files[t].exists()]
        if gone:
            point, seed = divmod(gone[0], len(self._plan.seeds))
            warn_caller(
                f"keep_states={self._keep!r} may want the states of {len(gone)} finished trials "
                "that an earlier call did not keep, such as that of "
                f"{self._plan.points[point]} with seed {self._plan.seeds[seed]}: result.state will "
                "raise for it. Train it again with result.retrain, or pass keep_states=0. To add "
                'seeds later, pass keep_states="all" from the start.'
            )

    def files(self) -> tuple[dict[int, Path], str]:
        """Where kept states lie on disk, or will, for the processes that see it; the sweep's id."""
        files = {} if self._store is None else self._store.final_files()
        sweep = "" if self._store is None else self._store.sweep
        plain = {str(trial): str(file) for trial, file in files.items()}
        told, sweep = self._processes.tell("files of kept states", [plain, sweep])
        return {int(trial): Path(file) for trial, file in told.items()}, sweep

    # Of unfinished trials.

    def take(self, trials: np.ndarray) -> States:
        """The stored states of these trials, which are of one structure and stand at one step."""
        spec = self._spec_of(trials)

        def read():
            assert self._store is not None
            return self._store.read_states([(t, self._stored[t][1]) for t in trials.tolist()], spec)

        states = self._processes.on_first(read)
        if not self._processes.first:
            states = [np.zeros((len(trials), *x.shape), x.dtype) for x in spec.data]
        return [self._processes.from_first(x) for x in states or []]

    def _spec_of(self, trials: np.ndarray) -> StateSpec:
        """Of trials of one structure."""
        return self._specs[int(self._group_of[trials[0] // len(self._plan.seeds)])]

    def is_due(self) -> bool:
        """Whether it is time for a checkpoint; all processes agree."""
        if not self._on_disk:
            return False
        due = time.monotonic() - self._last >= self._seconds
        return self._processes.tell("whether a checkpoint is due", bool(due))

    def checkpoint(self, under_way: Sequence[tuple[np.ndarray, int, States]]) -> None:
        """Write the states of these trials, with their metrics; then what was older is deleted."""

        def write():
            assert self._store is not None
            for trials, _, _ in under_way:
                self._ledger.commit(trials)
            for trials, reached, states in under_way:
                name = self._store.write_states(trials, reached, states, self._spec_of(trials).form)
                self._stored |= dict.fromkeys(trials.tolist(), (reached, name))
            self.forget()

        if self._on_disk:
            self._processes.on_first(write)
        self._last = time.monotonic()

    def forget(self) -> None:
        """On the first process: delete checkpoints that no trial goes on from, also those that a
        kill left over."""
        if self._store is None:
            return
        over = self._ledger.over
        still = {name for t, (_, name) in self._stored.items() if not over[t]}
        for name in self._store.checkpoints() - still:
            self._store.delete(name)

    # Of finished trials.

    def finish(self, trials: np.ndarray, states: Callable[[], States]) -> None:
        """Trials have come to their end: keep what is to be kept, and commit their metrics."""
        wanted = self._wanted(trials)
        if wanted.any():
            self.keep(trials[wanted], rows_of(states(), np.flatnonzero(wanted)))
        if not self._on_disk:
            self._drop()
            return

        def write():
            self._drop()
            self._ledger.commit(trials)
            self.forget()

        self._processes.on_first(write)

    def _wanted(self, trials: np.ndarray) -> np.ndarray:
        """bool array: which of these may be among those kept in the end."""
        if self._keep == 0 or self.keeps_all:
            return np.full(len(trials), self.keeps_all)
        return np.isin(trials // len(self._plan.seeds), list(self._best()))

    def _best(self) -> set[int]:
        """The points that may be among the best: those that are, and those not all finished."""
        table = self._ledger.final()
        open_ = ~np.all(self._ledger.ended.reshape(table.shape), axis=1)
        counts = np.isfinite(table).any(1) & ~open_
        order = ranked(table, self._ledger.mode, self._ledger.feasible())
        closed = order[counts[order]]
        return set(closed[: int(self._keep)].tolist()) | set(np.flatnonzero(open_).tolist())

    def keep(self, trials: np.ndarray, states: States) -> None:
        """Keep the last states of these trials."""
        if not self._on_disk:
            for i, trial in enumerate(trials.tolist()):
                self.kept[trial] = [x[i].copy() for x in states]
            return
        form, reached = self._spec_of(trials).form, self._ledger.trials.steps_completed[trials]

        def write():
            assert self._store is not None
            for i, trial in enumerate(trials.tolist()):
                self._store.keep_state(trial, int(reached[i]), rows_of(states, [i]), form)

        self._processes.on_first(write)

    def _drop(self) -> None:
        """Forget states that are no longer among the best."""
        if self.keeps_all:
            return
        best = self._best() if self._keep else set()
        seeds = len(self._plan.seeds)
        for trial in [t for t in self.kept if t // seeds not in best]:
            del self.kept[trial]
        if self._store is not None:
            self._store.drop_states(lambda trial: trial // seeds not in best)
