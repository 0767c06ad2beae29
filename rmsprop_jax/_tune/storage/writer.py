"""The one writer of a sweep's folder, and the order in which a call writes.

Each file appears whole or not at all (`LockedFolder.write`). The manifest comes before the first
other file of a call, and before the first deletion. Only half-written files of a killed call are
deleted before the manifest is written. A call that is refused, or interrupted before its first
file, leaves the folder unchanged. After the manifest, the order is:

- a wave of a function: its metrics;
- a checkpoint: the metrics of all its trials, their states, then the deletion of older checkpoints;
- a rung: the metrics of all trials, with `keep_states="all"` the final states of the pruned ones,
  the decision, then a checkpoint if a trial copied another, the time is up, or one is due;
- the end of a `Training`'s trials: final states of those that may be best, the deletion of final
  states that are no longer among the best, the metrics, then the deletion of checkpoints.

After a kill, `Session.open` reads the folder and ends the trials that decisions on disk pruned.
`CheckpointManager.rewind` sets each other unfinished trial back to its newest checkpoint, or to
step 0. The steps after this checkpoint run again, with the same values. A kill in a gap leaves:

- After the manifest: the manifest names the new points, seeds, or steps. No other file changed.
- Between two files of metrics: the trials and steps of the written file are saved. All others run
  again.
- After metrics and before states: the metrics are ahead of the newest checkpoint. The trial resumes
  from this checkpoint.
- Between two files of states: each file has one batch. Its trials resume from the new file, all
  others from an older one, which is deleted last.
- Before a deletion: an old checkpoint is left over. `checkpoints` takes the newest state of each
  trial, and the next `CheckpointManager.delete_stale` deletes the old file.
- After a final state and before metrics: `checkpoints` ignores a state that is ahead of its trial's
  metrics. The trial resumes from its checkpoint and writes both again. In the other order, the
  trial would have ended without its final state. If the deletion of a worse trial's final state
  came before the kill, `FinalStates.warn_of_dropped` may warn of it.
- After the metrics of a rung and before the decision: no checkpoint is at the rung, so that all
  trials run to it again. The scheduler is asked again, and its answer is the same.
- After a decision and before the checkpoint: pruned trials stay ended. The others run to the rung
  again, and `SynchronousRunner._decide` replays the decision. A trial whose checkpoint is at the
  rung already has its copied state, and `Session.open` sets its copied hyperparameters.
"""

import os
import secrets
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from rmsprop_jax._tune.experiment_spec import ExperimentSpec
from rmsprop_jax._tune.space.values import untyped
from rmsprop_jax._tune.storage.arrays import (
    Arrays,
    FileError,
    Header,
    damaged,
    open_arrays,
    write_arrays,
    write_json,
)
from rmsprop_jax._tune.storage.folder import (
    MANIFEST,
    STATE,
    Folder,
    Listing,
    checkpoint_file,
    checkpoint_number,
    final_file,
    place_and_seed,
)
from rmsprop_jax._tune.storage.locked_folder import LockedFolder
from rmsprop_jax._tune.storage.manifest import extended, manifest_of
from rmsprop_jax._tune.storage.paths import local_folder
from rmsprop_jax._tune.storage.rounds import read_rounds
from rmsprop_jax._tune.training.state_spec import StateForm, StateSpec, leaves_of
from rmsprop_jax._tune.trials.data import TrialData, empty_trials


class Checkpoint(NamedTuple):
    """A trial's newest state on disk."""

    step: int
    """The steps that the trial had run."""
    file: str
    """The name of the file."""


class FolderWriter:
    """The one writer of a folder, until it is closed.

    Args:
      path: a folder. It is made if it does not exist.
      spec: the experiment of the call. A folder of a sweep must agree with it (`extended`).
      objective: the objective and the mode, for the manifest, as `ObjectiveSpec.noted` returns
        them.

    Attributes:
      stored: the contents of the folder when it was opened, one row for each trial of `spec`; no
        rows for a folder without trials.
      decisions: the decisions of a scheduler in the folder, in order, as JSON.

    Raises:
      ValueError: for a folder of another sweep, or a damaged one.
      RuntimeError: if another sweep writes the folder.
      OSError: if the folder cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], spec: ExperimentSpec, objective: dict[str, Any]
    ):
        self.path, self._spec = local_folder(path), spec
        asked = manifest_of(spec, objective)
        self._has_begun = False
        self._folder = LockedFolder(self.path)
        try:
            self._read(asked)
        except BaseException:
            self.close()
            raise

    def _read(self, asked: dict[str, Any]) -> None:
        listing, points = Listing(self.path), self._spec.points
        self._next_round, self._left_over = listing.next("round"), listing.left_over()
        self._checkpoint_files = set(listing.names("states"))
        self._before: dict[str, Any] | None = None
        self.stored, self.decisions = empty_trials(self._spec, 0), []
        self._manifest, self._header = asked, Header(secrets.token_hex(16), 1)
        self._files: list[str] = []
        self._states_in: dict[str, list[tuple[int, int]]] = {}  # trial and step, by file
        folder, places = None, range(len(points))
        if (self.path / MANIFEST).exists():
            folder = Folder(self.path, listing)
            self._before = folder.manifest
            self._manifest, places = extended(
                asked, folder.manifest, points, folder.spec.points, self.path
            )
            self._header = Header(folder.header.sweep, folder.header.owner + 1)
        elif found := listing.written():
            raise ValueError(
                f"path must be a new folder, an empty one, or a sweep's, got {self.path}, which "
                f"has files such as {found[0]} and no {MANIFEST}. Pass another path."
            )
        self.places = np.array(places, int)
        self._point_at = {place: i for i, place in enumerate(self.places.tolist())}
        self._seed_at = {seed: i for i, seed in enumerate(self._spec.seeds)}
        # All final states by name, for deletion, also those of a call that lost the folder, which
        # do not count. `_states_in` below has only files that count, because trials resume from it.
        finals = {name: self._trial_at(*place_and_seed(name)) for name in listing.names("final")}
        self._final_files = {trial: name for name, trial in finals.items()}
        if folder is not None:
            self.stored, rounds = read_rounds(folder, self._spec, self.places, every=True)
            self.decisions = folder.decisions()
            for kind in ("states", "final"):
                self._states_in |= folder.each(kind, STATE, self._trials_and_steps)
            self._files = [*rounds, *listing.names("decision"), *self._states_in]
            self._check_rest(asked, folder)

    def _trials_and_steps(self, stored: Arrays) -> list[tuple[int, int]]:
        """Return the trials of a file of states, each with its step."""
        places = zip(stored.column("point"), stored.column("seed"), strict=True)
        trials = [self._trial_at(place, seed) for place, seed in places]
        return list(zip(trials, stored.column("step"), strict=True))

    def _trial_at(self, place: int, seed: int) -> int:
        """Return a trial by its point's place and its seed; −1 if the call does not have it."""
        if place not in self._point_at or seed not in self._seed_at:
            return -1
        return self._point_at[place] * len(self._seed_at) + self._seed_at[seed]

    def _check_rest(self, asked: dict[str, Any], folder: Folder) -> None:
        """Refuse a folder whose trials on disk cannot resume with this call's arguments.

        Args:
          asked: the manifest of the call.
          folder: the folder.

        Raises:
          ValueError: for more steps without the final state of each complete trial, or another
            objective or mode under a scheduler while trials are unfinished.
        """
        before, data = folder.manifest, self.stored
        training = before["training"]
        if training is None:
            return
        if asked["training"]["steps"] > training["steps"]:
            is_complete = (data.steps_completed > 0) & (data.steps_completed >= data.steps_asked)
            complete = data.number[is_complete].tolist()
            states = self.checkpoints()
            missing = sum(trial not in states for trial in complete)
            if missing:
                raise ValueError(
                    f"{self.path} must hold the final state of each complete trial to run "
                    f"{asked['training']['steps']} steps instead of {training['steps']}, but "
                    f'{missing} of them have none. Pass another path, and keep_states="all" from '
                    "the first call on."
                )
        pruned = [int(point) for one in self.decisions for point in one["prune"]]
        ended = (data.steps_completed >= training["steps"]) | (data.pruned > 0)
        ended |= np.isin(data.number // len(self._spec.seeds), pruned)
        other = [name for name in ("objective", "mode") if asked[name] != before[name]]
        if training["scheduler"] and other and not ended.all():
            text = lambda one: " ".join(*one.items()) if isinstance(one, dict) else one
            then, now = (text(one[other[0]]) for one in (before, asked))
            raise ValueError(
                f"{other[0]} must stay the same while a scheduler has trials left to run, got "
                f"{now}, but {self.path} was written with {then}. Make the same call as before. "
                "When all trials have ended, result.best(by=..., mode=...) ranks by any objective."
            )

    @property
    def sweep(self) -> str:
        """The id of the sweep."""
        return self._header.sweep

    def close(self) -> None:
        """Release the folder. If nothing was written, remove the folders that this call made."""
        self._folder.close(is_new_kept=self._has_begun)

    def note_objective(self) -> None:
        """Write the objective and the mode of a call that ended well, by which `load` ranks."""
        names = ("objective", "mode")
        before = self._before
        if before is not None and any(before[name] != self._manifest[name] for name in names):
            self._begin()

    # Metrics.

    def write(self, data: TrialData, columns: Mapping[str, slice], start: int = 0) -> None:
        """Write the metrics of some trials in one file, whole or not at all.

        Args:
          data: the trials. A series has only the columns in `columns`.
          columns: for each series the part of its recorded steps that `data` has.
          start: the step after which the metrics begin.
        """
        arrays = {**self._places_of(data.number), "seconds": data.seconds}
        for name, x in data.metrics.items():
            arrays["metric " + name] = x
        for name, part in columns.items():
            arrays["steps " + name] = self._spec.recorded_steps[name][part]
        progress = {
            "start": np.full(len(data.number), start),
            "steps_completed": data.steps_completed,
            "steps_asked": data.steps_asked,
            "pruned": data.pruned,
        }
        stored = self._spec.schedule.stored_progress
        arrays |= {name: x for name, x in progress.items() if name in stored}
        if "newest" in stored:
            arrays |= {"newest " + name: x for name, x in data.newest.items()}
        if not data.feasible.all():  # only a search has constraints
            arrays["feasible"] = data.feasible
        self._write_arrays(f"round-{self._next_round:06d}.npz", arrays)
        self._next_round += 1

    def _places_of(self, trials: np.ndarray) -> dict[str, np.ndarray]:
        points, seeds = np.divmod(trials, len(self._spec.seeds))
        seeds = np.asarray(self._spec.seeds, np.int64)[seeds]
        return {"point": self.places[points], "seed": seeds}

    # Checkpoints.

    def checkpoints(self) -> dict[int, Checkpoint]:
        """Return the newest state of each trial from which it can resume.

        A state that is ahead of its trial's metrics does not count: a kill came between a final
        state and its metrics, or a file of metrics was moved away.

        A final state counts, so that a complete trial can run more steps. It does not count under
        a scheduler. The final state of a pruned trial is written before the decision, and a trial
        that resumed from it would not reach the rung again, at which the decision is missing.
        """
        data = self.stored
        steps = dict(zip(data.number.tolist(), data.steps_completed.tolist(), strict=True))
        is_final_used = not self._spec.schedule.scheduler
        found: dict[int, Checkpoint] = {}
        for name, trials in self._states_in.items():
            for trial, step in trials if is_final_used or name.startswith("states-") else []:
                known = found[trial].step if trial in found else -1
                if known < step <= steps.get(trial, -1):
                    found[trial] = Checkpoint(step, name)
        return found

    def checkpoint_files(self) -> set[str]:
        """Return the names of all files of checkpoints in the folder."""
        return set(self._checkpoint_files)

    def write_states(
        self, trials: np.ndarray, step: int, states: list[np.ndarray], form: StateForm
    ) -> str:
        """Write the states of trials under way; return the file's name."""
        name = checkpoint_file(max(map(checkpoint_number, self._checkpoint_files), default=-1) + 1)
        self._write_arrays(name, self._state_arrays(trials, step, states, form))
        self._checkpoint_files.add(name)
        return name

    def read_states(self, files: list[tuple[int, str]], spec: StateSpec) -> list[np.ndarray]:
        """Return the states of trials, with a leading axis over the trials.

        Args:
          files: each trial, with the name of the file that has its state.
          spec: the structure of the states.
        """
        rows: dict[str, tuple[dict[int, int], list[np.ndarray]]] = {}
        for name in dict.fromkeys(name for _, name in files):
            file = self.path / name
            with damaged(file, STATE), open_arrays(file, self._header.sweep) as stored:
                trials = (trial for trial, _ in self._trials_and_steps(stored))
                rows[name] = {trial: i for i, trial in enumerate(trials)}, state_of(stored, spec)
        each = [[x[rows[name][0][trial]] for x in rows[name][1]] for trial, name in files]
        return [np.stack(leaves) for leaves in zip(*each, strict=True)] if spec.data else []

    def delete(self, checkpoint: str) -> None:
        """Delete a file of checkpoints."""
        self._remove(checkpoint)
        self._checkpoint_files.discard(checkpoint)

    # Final states.

    def final_states(self) -> set[int]:
        """Return the trials whose final state is on disk."""
        return set(self._final_files)

    def write_final_state(
        self, trial: int, step: int, state: list[np.ndarray], form: StateForm
    ) -> None:
        """Write the final state of one trial."""
        places = self._places_of(np.array([trial]))
        name = final_file(int(places["point"][0]), int(places["seed"][0]))
        self._write_arrays(name, self._state_arrays(np.array([trial]), step, state, form))
        self._final_files[trial] = name

    def drop_final_states(self, is_dropped: Callable[[int], bool]) -> None:
        """Delete the final states of these trials."""
        for trial in sorted(filter(is_dropped, self._final_files)):
            self._remove(self._final_files.pop(trial))

    def _state_arrays(
        self, trials: np.ndarray, step: int, states: list[np.ndarray], form: StateForm
    ) -> dict[str, np.ndarray]:
        return {
            **self._places_of(trials),
            "step": np.full(len(trials), step),
            **{f"leaf {i}": x for i, x in enumerate(states)},
            "dtypes": np.array([str(x.dtype) for x in states], str),
            "impls": np.array(form.impls, str),
            "tree": np.array(form.skeleton),
            "shardings": np.array(form.shardings, str),
        }

    # Decisions.

    def write_decision(self, decision: dict[str, Any]) -> None:
        """Write a scheduler's decision, as JSON, whole or not at all."""
        self._write_json(f"decision-{decision['step']:012d}.json", decision)

    # Files.

    def _begin(self) -> None:
        """Write the manifest, before the first file that needs it and before any is deleted."""
        if self._has_begun:
            return
        self._has_begun = True
        for left_over in self._left_over:
            self._folder.remove(left_over)
        content = self._manifest | {"files": self._files}
        self._folder.write(MANIFEST, lambda f: write_json(f, MANIFEST, self._header, content))

    def _remove(self, name: str) -> None:
        self._begin()
        self._folder.remove(name)

    def _write_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        stored = {key: untyped(np.asarray(x)) for key, x in arrays.items()}
        self._begin()
        self._folder.write(name, lambda file: write_arrays(file, name, self._header, stored))

    def _write_json(self, name: str, content: Any) -> None:
        self._begin()
        self._folder.write(name, lambda file: write_json(file, name, self._header, content))


def state_of(stored: Arrays, spec: StateSpec) -> list[np.ndarray]:
    """Return the arrays of a file of states; FileError if their shapes or dtypes differ from
    those of `spec`."""
    arrays = leaves_of(stored)
    got = [(x.shape[1:], x.dtype) for x in arrays]
    if got != [(x.shape, x.dtype) for x in spec.data]:
        raise FileError(f"it holds states of other shapes or dtypes, {got}")
    return arrays
