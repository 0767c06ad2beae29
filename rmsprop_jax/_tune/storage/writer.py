"""The one writer of a sweep's folder.

Nothing is written or deleted before the first file of a call: a call that is refused, or
interrupted before that, leaves the folder as it was.
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
    file: str


class FolderWriter:
    """The one writer of a folder, until it is closed.

    Args:
      path: a folder, made where it is not there.
      spec: what is asked. A folder that holds a sweep must have been asked for the same, or for
        fewer points and seeds.
      objective: what ranks trials, noted for `load`: the objective, and the mode.

    Attributes:
      stored: of all the trials, what the folder held when it was opened; no rows for a new one.
      decisions: those of a scheduler, in order, as JSON.

    Raises:
      ValueError: for a folder of another sweep, or a damaged one.
      RuntimeError: where another process writes it.
      OSError: where it cannot be written.
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
                f"{self.path} has files ({found[0]}, say) but no {MANIFEST}, so it is no sweep's "
                "folder: give another path, of a new folder or an empty one."
            )
        self.places = np.array(places, int)
        self._point_at = {place: i for i, place in enumerate(self.places.tolist())}
        self._seed_at = {seed: i for i, seed in enumerate(self._spec.seeds)}
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
        """Return a trial by its point's place and its seed; −1 for one that is not asked for."""
        if place not in self._point_at or seed not in self._seed_at:
            return -1
        return self._point_at[place] * len(self._seed_at) + self._seed_at[seed]

    def _check_rest(self, asked: dict[str, Any], folder: Folder) -> None:
        """Refuse a folder whose unfinished trials cannot go on as it is asked for."""
        before, data = folder.manifest, self.stored
        training = before["training"]
        if training is None:
            return
        if asked["training"]["steps"] > training["steps"]:
            is_complete = (data.steps_completed > 0) & (data.steps_completed >= data.steps_asked)
            complete = data.number[is_complete].tolist()
            missing = sum(trial not in self._final_files for trial in complete)
            if missing:
                raise ValueError(
                    f"{self.path} holds a sweep with fewer steps, and not the state of each "
                    f"trial: {training['steps']} there, {asked['training']['steps']} here. "
                    f'{missing} finished trials have none: give keep_states="all" from the start.'
                )
        pruned = [int(point) for one in self.decisions for point in one["prune"]]
        ended = (data.steps_completed >= training["steps"]) | (data.pruned > 0)
        ended |= np.isin(data.number // len(self._spec.seeds), pruned)
        other = [name for name in ("objective", "mode") if asked[name] != before[name]]
        if training["scheduler"] and other and not ended.all():
            text = lambda one: " ".join(*one.items()) if isinstance(one, dict) else one
            then, now = (text(one[other[0]]) for one in (before, asked))
            raise ValueError(
                f"{self.path} holds a sweep with a scheduler and another {other[0]}: {then} "
                f"there, {now} here, and trials are left to run. Call sweep as it was called; "
                "when it has ended, result.best(by=..., mode=...) ranks by any objective."
            )

    @property
    def sweep(self) -> str:
        """The sweep's id."""
        return self._header.sweep

    def close(self) -> None:
        """Let others write. Where nothing was written, remove what this call made."""
        self._folder.close(is_new_kept=self._has_begun)

    def note_objective(self) -> None:
        """Note, once a call has ended well, what it ranked by: `load` ranks by the same."""
        names = ("objective", "mode")
        before = self._before
        if before is not None and any(before[name] != self._manifest[name] for name in names):
            self._begin()

    # What trials measured.

    def write(self, data: TrialData, columns: Mapping[str, slice], start: int = 0) -> None:
        """Write what some trials measured, whole or not at all.

        Args:
          data: of the trials.
          columns: for each series, which of the recorded steps its values are of.
          start: after which step they were measured.
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
        """Return for each trial its newest state whose metrics are on disk, too.

        A final state is there before the metrics. Under a scheduler no trial goes on from one.
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
        """Return the files of checkpoints."""
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
        """Return the states of trials, each from its file, with a leading axis over the trials."""
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
    """Return the arrays of a file of states; FileError where they are not those of `spec`."""
    arrays = leaves_of(stored)
    got = [(x.shape[1:], x.dtype) for x in arrays]
    if got != [(x.shape, x.dtype) for x in spec.data]:
        raise FileError(f"it holds states of other shapes or dtypes, {got}")
    return arrays
