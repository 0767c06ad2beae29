"""The progress of a call while it runs: a `Session`, opened and closed in one place."""

import contextlib
import math
import os
import secrets
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rmsprop_jax._tune.compile.layout import wave_bytes
from rmsprop_jax._tune.experiment import Experiment
from rmsprop_jax._tune.results.result import SweepResult
from rmsprop_jax._tune.run.batch import HostStates, SegmentResult, rows_of
from rmsprop_jax._tune.storage.kept_states import FinalFiles, KeptStates
from rmsprop_jax._tune.storage.writer import FolderWriter
from rmsprop_jax._tune.trials.checkpoints import CheckpointManager
from rmsprop_jax._tune.trials.data import TrialData, empty_trials
from rmsprop_jax._tune.trials.decision_log import AppliedDecision, DecisionLog
from rmsprop_jax._tune.trials.final_states import FinalStates
from rmsprop_jax._tune.trials.progress import Listener, ProgressBar, report_of
from rmsprop_jax._tune.trials.table import TrialTable

MEMORY_SHARE = 0.8  # of the host's free memory that states may take
EXTRA_WAVES = 6  # waves to allow for: empty slots take memory, and one wave is copied to the host


class Session:
    """The trial table, checkpoints, final states, decisions, progress bar, and folder of a call.

    Make it with `open`.

    Attributes:
      experiment: the experiment of the call.
      table: the progress and the metrics of each trial.
      checkpoints: the states of trials under way, on disk.
      final_states: the states of ended trials that are kept.
      decisions: the log of a scheduler's decisions; None without a scheduler.
    """

    def __init__(
        self, experiment: Experiment, folder: FolderWriter | None, stored: TrialData, start: float
    ):
        options, cluster, spec = experiment.options, experiment.cluster, experiment.spec
        self.experiment, self._folder = experiment, folder
        self._deadline = None if options.timeout is None else start + options.timeout
        capacity = 0 if len(spec.points) else options.n_trials * len(spec.seeds)
        write = folder.write if folder else None
        self.table = TrialTable(spec, experiment.objective, stored, write, start, cluster, capacity)
        states, has_folder = experiment.state_specs, options.path is not None
        self.checkpoints = CheckpointManager(
            self.table, states, options.checkpoint_seconds, folder, has_folder, cluster
        )
        self.final_states = FinalStates(
            self.table, states, experiment.keep_states, folder, has_folder, cluster
        )
        self.decisions: DecisionLog | None = None
        if options.scheduler is not None:
            self.decisions = DecisionLog(
                options.scheduler,
                spec,
                experiment.objective.name,
                experiment.init_only,
                folder.decisions if folder else [],
                folder.write_decision if folder else None,
                cluster,
            )
        self._final_files = self._told_final_files() if states and has_folder else None
        self._progress: ProgressBar | None = None

    @classmethod
    @contextlib.contextmanager
    def open(cls, experiment: Experiment, start: float) -> "Generator[Session]":
        """Open the session of a call, or resume from its folder.

        The order is: read the folder, mark the trials that decisions on disk pruned, rewind the
        other unfinished trials to their newest checkpoint, set the hyperparameters of copies, and
        check memory and disk. Nothing is written or deleted before the last check has passed.
        `storage/writer.py` lists the gaps between two files in which a kill may have come.

        Args:
          experiment: the experiment of the call.
          start: the time at which the call began, by the clock of the machine.

        Raises:
          ValueError: for a folder of another sweep, or states that need more memory or disk than is
            free.
        """
        with contextlib.ExitStack() as stack:
            folder, stored = _read_folder(experiment, stack)
            session = cls(experiment, folder, stored, start)
            session._mark_pruned()
            session.checkpoints.rewind()
            session._apply_copies()
            session._check_room()
            is_shown = experiment.options.progress and experiment.cluster.is_leader
            session._progress = ProgressBar(session.table, is_shown)
            stack.callback(session._progress.close)
            session._start_listener(stack)
            yield session

    # The steps of opening.

    def _mark_pruned(self) -> None:
        """End the trials that the folder's decisions pruned."""
        for decision in self.decisions.decisions if self.decisions else ():
            self.table.prune(decision)

    def _apply_copies(self) -> None:
        """Set the copied hyperparameters of trials that resume at or after the copy's rung."""
        if self.decisions is not None:
            self.table.apply_copies(self.decisions.decisions)

    def _check_room(self) -> None:
        """Check memory and disk, and warn of final states that an earlier call dropped."""
        if not self.experiment.state_specs or not len(self.table):
            return
        experiment, executor = self.experiment, self.experiment.options.executor
        # With `batches`, the trials of a local sweep share each batch. On an executor they do not.
        is_synchronous = experiment.data is not None and executor is None
        if self.decisions is not None or is_synchronous:
            under_way = len(self.table)
        elif executor is not None:
            largest = max(spec.bytes for spec in experiment.state_specs)
            most = executor.under_way(largest, int(experiment.batch_size))
            under_way = min(most, len(self.table))
        else:
            under_way = experiment.cluster.submeshes
        self.check_room(under_way, "path=..., which keeps final states on disk")
        self.final_states.warn_of_dropped()

    def _start_listener(self, stack: contextlib.ExitStack) -> None:
        """Tell a callback that listens how the call begins, and later that it ends."""
        callback = self.experiment.options.callback
        if not isinstance(callback, Listener) or not self.experiment.cluster.is_leader:
            return
        stack.callback(callback.close)
        self.table.judge_what_is_left()
        sweep = self._folder.sweep if self._folder else secrets.token_hex(16)
        begun = np.flatnonzero(self.table.data.steps_completed > 0)
        callback.start(sweep, report_of(self.table, begun))

    def check_room(self, under_way: int, remedy: str) -> None:
        """Refuse states that will not fit the memory or the disk.

        Args:
          under_way: the number of trials that run at once.
          remedy: another argument than keep_states that helps if memory is short.

        Raises:
          ValueError: for states that do not fit.
        """
        path, keep = self.experiment.options.path, self.final_states.keep_states
        largest = max(spec.bytes for spec in self.experiment.state_specs)
        trials, seeds = len(self.table.data.number), len(self.experiment.spec.seeds)
        kept = trials if keep == "all" else min(int(keep) * seeds, trials)
        memory = self.states_bytes(under_way, 0 if path else kept)
        free = self.experiment.cluster.machine.host_memory()
        if free is not None and memory > MEMORY_SHARE * free:
            raise ValueError(
                f"states must fit the memory, of which {free / 1e9:.3g} GB are free (a container's "
                f"limit counts), but {under_way} running trials and {0 if path else kept} kept "
                f"states need {memory / 1e9:.3g} GB. Pass a smaller keep_states, or {remedy}."
            )
        if self.experiment.options.executor is None:
            self._check_devices(under_way)
        if path is None:
            return
        folder = os.path.abspath(path)
        while not os.path.exists(folder):
            folder = os.path.dirname(folder)
        free, need = shutil.disk_usage(folder).free, (2 * under_way + kept) * largest
        if need > free:
            raise ValueError(
                f"states must fit the disk of {folder}, of which {free / 1e9:.3g} GB are free, but "
                f"{under_way} running trials (with two checkpoints each) and {kept} kept states "
                f"need {need / 1e9:.3g} GB. Pass a smaller keep_states, or another path."
            )

    def _check_devices(self, under_way: int) -> None:
        """Refuse states that will not fit the memory of the devices, if it is known."""
        specs, cluster = self.experiment.state_specs, self.experiment.cluster
        trials = -(-under_way // cluster.submeshes)
        free, need = cluster.free_memory(), trials * max(spec.device_bytes for spec in specs)
        if free is not None and need > free:
            raise ValueError(
                f"states must fit the memory of the devices, of which {free / 1e9:.3g} GB are free "
                f"on each, but the states of {trials} trials on each device need {need / 1e9:.3g} "
                "GB. Use more devices or fewer points, or split a trial over several devices, "
                'mesh=jax.sharding.Mesh(devices.reshape(4, 2), ("trial", "model")).'
            )

    def states_bytes(self, under_way: int, kept: int) -> int:
        """Return the most bytes of states that the host and the devices hold at once.

        Under a scheduler, states count twice: at a rung they go through the host, and allocators
        keep freed memory for a while.

        Args:
          under_way: the number of trials that run at once.
          kept: the number of final states in memory.
        """
        specs, cluster = self.experiment.state_specs, self.experiment.cluster
        whole = max(spec.bytes for spec in specs)
        # Each device of a trial holds the leaves that are not sharded.
        of_trial = len(cluster.devices) // cluster.submeshes
        placed = of_trial * max(spec.device_bytes for spec in specs)
        wave = wave_bytes(cluster.submeshes, placed, cluster.machine.buffer_bytes)
        copies = 0 if self.decisions is None else 1
        return under_way * (placed + copies * whole) + kept * whole + EXTRA_WAVES * wave

    def _told_final_files(self) -> FinalFiles:
        """Return the files of final states, those to come included, on every process."""
        folder, seeds = self._folder, self.experiment.spec.seeds
        known = [str(folder.path), folder.places.tolist(), folder.sweep] if folder else None
        path, places, sweep = self.experiment.cluster.tell("files of kept states", known)
        return FinalFiles(Path(path), np.array(places, int), seeds, sweep)

    # The steps of running.

    def record(
        self,
        result: SegmentResult,
        judge: Callable[[np.ndarray], None] | None = None,
    ) -> None:
        """Enter the metrics of a segment, evaluate the objective, and call the callback.

        Args:
          result: the metrics of the segment.
          judge: the function that evaluates the objective of trials; by default
            `TrialTable.judge`.
        """
        self.table.enter(result)
        if not self.experiment.state_specs:  # a `Training` writes metrics with its checkpoints
            self.table.commit(result.batch.trials)
        (judge or self.table.judge)(result.batch.trials)
        self.show()
        callback = self.experiment.options.callback
        if callback is not None and self.experiment.cluster.is_leader:
            callback(report_of(self.table, result.batch.trials))

    def prune(self, decision: AppliedDecision, arrived: set[int]) -> np.ndarray:
        """End the points that a decision prunes, and return their trials.

        Args:
          decision: the decision.
          arrived: the trials that reached its step in this call. A callback that listens hears of
            those among them that end.
        """
        pruned = self.table.prune(decision)
        self.show()
        ended, callback = pruned[np.isin(pruned, list(arrived))], self.experiment.options.callback
        if len(ended) and isinstance(callback, Listener) and self.experiment.cluster.is_leader:
            callback.pruned(report_of(self.table, ended))
        return pruned

    def show(self) -> None:
        """Show the progress of the trials in the bar."""
        if self._progress is not None:
            self._progress.show()

    @property
    def is_time_up(self) -> bool:
        """Whether the call has run for its `timeout`. All processes get the leader's answer."""
        if self._deadline is None:
            return False
        is_up = self.experiment.cluster.machine.clock() >= self._deadline
        return self.experiment.cluster.tell("whether the time is up", is_up)

    @property
    def seconds_left(self) -> float:
        """The seconds until the call has run for its `timeout`; infinite without one."""
        if self._deadline is None:
            return math.inf
        return max(0.0, self._deadline - self.experiment.cluster.machine.clock())

    def finish(self, trials: np.ndarray, fetch: Callable[[], HostStates]) -> None:
        """End trials that have run all their steps.

        Keep their final states, drop final states that are no longer among the best, write the
        metrics, and delete checkpoints, in this order (see `storage/writer.py`).

        Args:
          trials: trials of one static group.
          fetch: a function that returns their final states. It is not called if none is kept.
        """
        kept = self.final_states.may_be_best(trials)
        if kept.any():
            self.final_states.keep(trials[kept], rows_of(fetch(), np.flatnonzero(kept)))

        def write() -> None:
            self.final_states.drop()
            self.table.commit(trials)
            self.checkpoints.delete_stale()

        if self.experiment.options.path is None:
            self.final_states.drop()
        else:
            self.experiment.cluster.on_leader(write)

    def tidy(self) -> None:
        """Delete stale checkpoints, and write the objective to the manifest, if a call ended well.

        A call that had nothing to run has done neither before.
        """

        def tidy() -> None:
            self.checkpoints.delete_stale()
            if self._folder is not None:
                self._folder.note_objective()

        self.experiment.cluster.on_leader(tidy)

    # The result.

    def result(self) -> SweepResult:
        """Return the result so far. An objective that raises counts as NaN."""
        # Ctrl-C may come before the objective of the last segment is evaluated.
        with contextlib.suppress(Exception, KeyboardInterrupt):
            self.table.judge_what_is_left()  # in this process, because others may have left
        experiment, table, kept = self.experiment, self.table, None
        spec, groups = experiment.result_spec(table.points, table.groups)
        if experiment.state_specs:
            specs = [experiment.state_specs[i] for i in groups]
            kept = KeptStates(dict(self.final_states.in_memory), specs, self._final_files)
        begun = np.flatnonzero(table.data.steps_completed > 0)
        # A slice makes views of the arrays, not copies.
        rows: Any = slice(None) if len(begun) == len(table.data.number) else begun
        data = table.data.take(rows)
        # A search may have traced static groups that none of its points is in.
        is_whole = spec is experiment.spec
        for name, steps in () if is_whole else experiment.spec.recorded_steps.items():
            is_recorded = np.isin(steps, spec.recorded_steps[name])
            if not is_recorded.all():
                data.metrics[name] = data.metrics[name][:, is_recorded]
        return SweepResult(
            spec,
            data._replace(seconds=data.seconds.copy()),
            experiment.objective,
            table.objectives(rows),
            retrainer=experiment.retrainer(spec.groups),
            decisions=self.decisions.decisions if self.decisions else [],
            kept=kept,
        )


def _read_folder(
    experiment: Experiment, stack: contextlib.ExitStack
) -> tuple[FolderWriter | None, TrialData]:
    """Return the leader's writer of the folder, and the folder's trials on every process."""
    path, cluster, spec = experiment.options.path, experiment.cluster, experiment.spec
    if path is None:
        return None, empty_trials(spec, 0)
    noted = experiment.objective.noted

    def open_folder() -> FolderWriter:
        return stack.enter_context(contextlib.closing(FolderWriter(path, spec, noted)))

    folder = cluster.on_leader(open_folder)
    stored = folder.stored if folder else None
    count = cluster.tell("stored trials", len(stored.number) if stored else 0)
    stored = stored or empty_trials(spec, count)
    return folder, jax.tree.map(cluster.from_leader, stored)
