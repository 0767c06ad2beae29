"""The final states of the best trials, in memory or on disk: keep and drop them.

The best points of this module are those that may be best when the sweep ends: the best complete
points, and every point with a trial under way. `SweepResult.ranked` ranks the points as they are,
and a point with an unfinished trial comes after all complete ones. The progress bar shows the best
objective of a single trial (`ProgressBar.summary`).
"""

import numpy as np

from rmsprop_jax._tune.results.statistics import ranked
from rmsprop_jax._tune.run.batch import HostStates, rows_of
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.storage.writer import FolderWriter
from rmsprop_jax._tune.training.state_spec import StateSpec
from rmsprop_jax._tune.trials.table import TrialTable
from rmsprop_jax._tune.warn import warn_caller


class FinalStates:
    """The final states that a call keeps.

    Args:
      table: the trial table.
      state_specs: the structure of the state of each static group; empty for functions.
      keep: the number of best points whose states to keep, for all seeds; or "all".
      folder: the folder of the sweep, on the leader; None elsewhere, and without a folder.
      has_folder: whether the leader has a folder.
      cluster: the processes, of which the leader writes.

    Attributes:
      keep_states: the argument `keep`.
      in_memory: for each trial the leaves of its state; empty with a folder.
    """

    def __init__(
        self,
        table: TrialTable,
        state_specs: list[StateSpec],
        keep: int | str,
        folder: FolderWriter | None,
        has_folder: bool,
        cluster: Cluster,
    ):
        self._table, self._state_specs, self.keep_states = table, state_specs, keep
        self._folder, self._has_folder, self._cluster = folder, has_folder, cluster
        self._seeds = len(table.spec.seeds)
        self.in_memory: dict[int, HostStates] = {}

    @property
    def keeps_all(self) -> bool:
        return self.keep_states == "all"

    def may_be_best(self, trials: np.ndarray) -> np.ndarray:
        """Return, for each of these trials, whether its point may be among the best when the sweep
        ends, a bool array."""
        if self.keeps_all or self.keep_states == 0:
            return np.full(len(trials), self.keeps_all)
        return np.isin(trials // self._seeds, list(self._best_points()))

    def _best_points(self) -> set[int]:
        """Return the points that may be among the best when the sweep ends.

        These are the best `keep_states` points whose trials have all ended, at least one of them
        complete with a finite objective, and all points with a trial under way.
        """
        if self.keep_states == 0:
            return set()
        objectives = self._table.complete_objectives()
        under_way = ~np.all(self._table.ended.reshape(objectives.shape), axis=1)
        counts = np.isfinite(objectives).any(1) & ~under_way
        order = ranked(objectives, self._table.objective.mode, self._table.feasible_points())
        best = order[counts[order]][: int(self.keep_states)]
        return {*best.tolist(), *np.flatnonzero(under_way).tolist()}

    def keep(self, trials: np.ndarray, states: HostStates) -> None:
        """Keep the states of these trials."""
        if not self._has_folder:
            for i, trial in enumerate(trials.tolist()):
                self.in_memory[trial] = [x[i].copy() for x in states]
            return
        steps = self._table.data.steps_completed[trials].tolist()
        form = self._state_specs[self._table.group_of(trials[0])].form

        def write() -> None:
            assert self._folder is not None
            for i, (trial, step) in enumerate(zip(trials.tolist(), steps, strict=True)):
                self._folder.write_final_state(trial, step, rows_of(states, [i]), form)

        self._cluster.on_leader(write)

    def drop(self) -> None:
        """Drop the states of points that can no longer be among the best."""
        if self.keeps_all:
            return
        best = self._best_points()
        for trial in [t for t in self.in_memory if t // self._seeds not in best]:
            del self.in_memory[trial]
        if self._folder is not None:
            self._folder.drop_final_states(lambda trial: trial // self._seeds not in best)

    def warn_of_dropped(self) -> None:
        """Warn if an earlier call dropped states of trials that may now be among the best.

        This happens if a call asks for more seeds or states, or for another objective or mode.

        It can also happen after a kill at the end of a trial, between the deletion of a worse
        trial's final state and the metrics of the better trial. The better trial then runs again.
        """
        table, folder = self._table, self._folder
        if folder is None:
            return
        trials = np.flatnonzero(table.ended if self.keeps_all else table.complete)
        wanted = trials[self.may_be_best(trials)].tolist()
        kept = folder.final_states()
        if dropped := [trial for trial in wanted if trial not in kept]:
            point, seed = divmod(dropped[0], self._seeds)
            warn_caller(
                f"keep_states={self.keep_states!r} may need the states of {len(dropped)} finished "
                "trials that an earlier call did not keep, such as that of "
                f"{table.spec.points[point]} with seed {table.spec.seeds[seed]}. result.state "
                "raises for such a trial. Train it again with result.retrain, or pass "
                'keep_states=0. To add seeds later, pass keep_states="all" from the first call on.'
            )
