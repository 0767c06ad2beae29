"""A sweep's folder: what was asked in `manifest.json`, what is finished in `round-*.npz`.

Metrics are stored as they were measured, and nothing that can be computed from them. Nothing is
written or deleted before the first round, state, or decision of a call: a call that is refused, or
interrupted before that, leaves the folder as it was.
"""

import collections
import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import filelock
import numpy as np

from rmsprop_jax._tune.experiment_spec import ExperimentSpec, TrialData, no_trials
from rmsprop_jax._tune.space.values import typed, untyped
from rmsprop_jax._tune.storage.arrays import (
    Arrays,
    FileError,
    Header,
    damaged,
    open_arrays,
    read_json,
    write_arrays,
    write_json,
)
from rmsprop_jax._tune.storage.manifest import (
    bytes_of,
    extended,
    keys_of,
    manifest_of,
    plan_of,
    points_of,
)
from rmsprop_jax._tune.training.state_spec import StateForm, StateSpec, leaves_of
from rmsprop_jax._tune.trials.decision_log import AppliedDecision
from rmsprop_jax._tune.trials.host_memory import free_bytes

T = TypeVar("T")
MANIFEST = "manifest.json"
LOCK = ".lock"
NAMES = {
    "round": re.compile(r"round-([0-9]{6,})\.npz"),
    "states": re.compile(r"states-([0-9]{6,})\.npz"),
    "final": re.compile(r"final-([0-9]{6,})_(-?[0-9]+)\.npz"),
    "decision": re.compile(r"decision-([0-9]{12,})\.json"),
}
ROUND = "move it away, and the trials that it held run again"
STATE = "move it away, and the trials whose states it held start again"
DECISION = (
    "what was decided there cannot be decided again, since trials went on from it: put a copy of "
    "it back, or give another path"
)
WHOLE = "put a copy of it back, or give another path"


def local_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder that `path` names; ValueError for an address such as "gs://bucket/run".

    `pathlib` would take it for a local folder "gs:".
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(path)):
        raise ValueError(
            f"path must be a local folder, got {os.fspath(path)!r}. Remote folders are not "
            "supported: pass a local path, and copy the folder when the sweep has ended."
        )
    return Path(path).expanduser()


class Listing:
    """The files of a folder that this library can have written, by their names."""

    def __init__(self, path: Path):
        self._names = sorted(os.listdir(path))
        self.path = path

    def names(self, kind: str) -> list[str]:
        """Of a kind, in order."""
        return [name for name in self._names if NAMES[kind].fullmatch(name)]

    def next(self, kind: str) -> int:
        """A number that no file of this kind has; not their count, since one may be moved away."""
        return max((int(name[len(kind) + 1 : -4]) for name in self.names(kind)), default=-1) + 1

    def written(self) -> list[str]:
        """All but the lock, and what a killed writer left over."""
        return [name for name in self._names if name != LOCK and not _is_left_over(name)]

    def left_over(self) -> list[Path]:
        """What a killed writer left over."""
        files = (self.path / name for name in self._names if _is_left_over(name))
        return [file for file in files if file.is_file()]


def _is_left_over(name: str) -> bool:
    """Whether a file has the name of one of the library's that was not written to its end."""
    own = name.removeprefix(".").removesuffix(".tmp")
    is_own = own == MANIFEST or any(kind.fullmatch(own) for kind in NAMES.values())
    return is_own and name == f".{own}.tmp"


class Folder:
    """A folder that is read: its manifest, and which of its files count.

    A file counts that the manifest's owner wrote, and of earlier owners each that was there when
    this one began: a writer that lost the folder to another changes nothing. A decision counts
    whoever wrote it: it follows from what it was decided on, and may have been put back.

    Args:
      path: the folder, which has a manifest.
      listing: its files, listed before the manifest is read: whatever they need is in it.
    """

    def __init__(self, path: Path, listing: Listing):
        self.path, self.listing = path, listing
        with damaged(path / MANIFEST, WHOLE):
            self.header, self.manifest = read_json(path / MANIFEST)
            self.plan = plan_of(self.manifest)
        self._known = set(self.manifest["files"])

    def counts(self, name: str, header: Header) -> bool:
        if header.owner > self.header.owner:
            raise FileError(f"call {header.owner} wrote it, and the manifest is of an earlier one")
        return header.owner == self.header.owner or name in self._known

    def each(self, kind: str, remedy: str, use: Callable[[Arrays], T]) -> dict[str, T]:
        """What `use` makes of each file of a kind that counts, in order."""
        found = {}
        for name in self.listing.names(kind):
            file = self.path / name
            with damaged(file, remedy), open_arrays(file, self.header.sweep) as stored:
                if self.counts(name, stored.header):
                    found[name] = use(stored)
        return found

    def decisions(self) -> list[dict[str, Any]]:
        """In order."""
        found = []
        for name in self.listing.names("decision"):
            with damaged(self.path / name, DECISION):
                header, decided = read_json(self.path / name, self.header.sweep)
                self.counts(name, header)
                AppliedDecision.decode(decided)
                found.append(decided)
        return found


class FolderWriter:
    """The one writer of a folder, until it is closed.

    Args:
      path: a folder, made where it is not there.
      plan: what is asked. A folder that holds a sweep must have been asked for the same, or for
        fewer points and seeds.
      aim: what is looked for, noted for `load`: the objective, and the mode.

    Attributes:
      finished: of all the plan's trials, what the folder held when it was opened; no
        rows for a new one.
      decisions: those of a scheduler, in order.

    Raises:
      ValueError: for a folder of another sweep, or a damaged one.
      RuntimeError: where another process writes it.
      OSError: where it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], plan: ExperimentSpec, aim: dict[str, Any]):
        self._path, self._plan = local_folder(path), plan
        asked = manifest_of(plan, aim)
        self._has_begun = False
        with _explained(f"the sweep's folder {self._path} cannot be written"):
            self._made = _missing_folders(self._path)
            self._path.mkdir(parents=True, exist_ok=True)
            if not (self._path / LOCK).exists():
                self._made.append(self._path / LOCK)
            self._lock = filelock.FileLock(self._path / LOCK, timeout=0)
            try:
                self._lock.acquire()
            except filelock.Timeout:
                raise RuntimeError(
                    f"another sweep, of this process or another, is writing {self._path}: wait for "
                    "it, stop it, or give another path. If none does, a machine that broke down "
                    f"may have left its lock behind: delete {self._path / LOCK}."
                ) from None
            self._inode = _inode(self._path / LOCK)
        try:
            self._read(asked)
        except BaseException:
            self.close()
            raise

    def _read(self, asked: dict[str, Any]) -> None:
        listing = Listing(self._path)
        self._next, self._left_over = listing.next("round"), listing.left_over()
        self._folder: Folder | None = None
        self.finished, self.decisions = no_trials(self._plan, 0), []
        self._manifest, self._header = asked, Header(secrets.token_hex(16), 1)
        self._files: list[str] = []
        self._heads: dict[str, list[tuple[int, int]]] = {}  # of the files of states
        if (self._path / MANIFEST).exists():
            self._folder = folder = Folder(self._path, listing)
            self._manifest = extended(asked, folder.manifest, self._plan.points, self._path)
            self._header = Header(folder.header.sweep, folder.header.owner + 1)
        elif found := listing.written():
            raise ValueError(
                f"{self._path} has files ({found[0]}, say) but no {MANIFEST}, so it is no sweep's "
                "folder: give another path, of a new folder or an empty one."
            )
        stored = points_of(self._manifest)
        points = self._plan.points
        place = {key: i for i, key in enumerate(keys_of(points, stored))}
        self._places = np.array([place[key] for key in keys_of(points, points)])
        if self._folder is not None:
            folder = self._folder
            self.finished, rounds = _read_rounds(folder, self._plan, self._places, every=True)
            self.decisions = folder.decisions()
            for kind in ("states", "final"):
                self._heads |= folder.each(kind, STATE, self._head)
            self._files = [*rounds, *listing.names("decision"), *self._heads]
            self._check_rest(asked, folder)

    def _head(self, stored: Arrays) -> list[tuple[int, int]]:
        """Of a file of states: each trial, and its step."""
        trials = self._trials_at(stored.column("point"), stored.column("seed"))
        return list(zip(trials, stored.column("step"), strict=True))

    def _check_rest(self, asked: dict[str, Any], folder: Folder) -> None:
        """ValueError where what is left to run cannot go on as it is asked for."""
        before, known = folder.manifest, self.finished
        training = before["training"]
        if training is None:
            return
        if asked["training"]["steps"] > training["steps"]:
            ended = known.number[
                (known.steps_completed > 0) & (known.steps_completed >= known.asked)
            ]
            kept, files = set(folder.listing.names("final")), self.final_files()
            missing = sum(files[trial].name not in kept for trial in ended.tolist())
            if missing:
                raise ValueError(
                    f"{self._path} holds a sweep with fewer steps, and not the state of each "
                    f"trial: {training['steps']} there, {asked['training']['steps']} here. "
                    f'{missing} finished trials have none: give keep_states="all" from the start.'
                )
        pruned = [int(point) for one in self.decisions for point in one["prune"]]
        ended = (known.steps_completed >= training["steps"]) | (known.stopped > 0)
        ended |= np.isin(known.number // len(self._plan.seeds), pruned)
        other = [name for name in ("objective", "mode") if asked[name] != before[name]]
        if training["scheduler"] and other and not ended.all():
            said = lambda one: " ".join(*one.items()) if isinstance(one, dict) else one
            then, now = (said(one[other[0]]) for one in (before, asked))
            raise ValueError(
                f"{self._path} holds a sweep with a scheduler and another {other[0]}: {then} "
                f"there, {now} here, and trials are left to run. Call sweep as it was called; "
                "when it has ended, result.best(by=..., mode=...) ranks by any objective."
            )

    @property
    def sweep(self) -> str:
        """The sweep's id."""
        return self._header.sweep

    def close(self) -> None:
        """Let others write. Where nothing was written, what this call made is removed."""
        made = [] if self._has_begun else self._made
        with contextlib.suppress(OSError):
            if self._path / LOCK in made:
                (self._path / LOCK).unlink()
        self._lock.release()
        with contextlib.suppress(OSError):
            for folder in reversed(made):
                if folder != self._path / LOCK:
                    folder.rmdir()

    def note_aim(self) -> None:
        """The call has ended well: `load` looks for what it looked for."""
        if self._folder is not None and any(
            self._folder.manifest[name] != self._manifest[name] for name in ("objective", "mode")
        ):
            self._begin()

    def write(self, trials: TrialData, columns: Mapping[str, slice], start: int = 0) -> None:
        """Write what is known of some trials, whole or not at all.

        Args:
          trials: rows.
          columns: for each series, of which of the kept steps its values are.
          start: after which step of a `Training` they begin.
        """
        arrays = {**self._places_of(trials.number), "seconds": trials.seconds}
        for name, x in trials.metrics.items():
            arrays["metric " + name] = x
        for name, some in columns.items():
            arrays["steps " + name] = self._plan.steps(name)[some]
        if self._plan.stages:
            arrays |= {"start": np.full(len(trials.number), start)}
            arrays |= {"steps_completed": trials.steps_completed, "steps_asked": trials.asked}
            arrays |= {"pruned": trials.stopped}
            arrays |= {"newest " + name: x for name, x in trials.newest.items()}
        if not trials.feasible.all():  # only a search has constraints
            arrays["feasible"] = trials.feasible
        self._write_arrays(f"round-{self._next:06d}.npz", arrays)
        self._next += 1

    def _places_of(self, trials: np.ndarray) -> dict[str, np.ndarray]:
        points, seeds = np.divmod(trials, len(self._plan.seeds))
        seeds = np.asarray(self._plan.seeds, np.int64)[seeds]
        return {"point": self._places[points], "seed": seeds}

    def _trials_at(self, places: list[int], seeds: list[int]) -> list[int]:
        """The trials of these points and seeds; of those that are not asked for, −1."""
        point_at = {place: i for i, place in enumerate(self._places.tolist())}
        seed_at = {seed: i for i, seed in enumerate(self._plan.seeds)}
        known = lambda p, s: p in point_at and s in seed_at
        return [
            point_at[p] * len(seed_at) + seed_at[s] if known(p, s) else -1
            for p, s in zip(places, seeds, strict=True)
        ]

    # States.

    def states(self) -> dict[int, tuple[int, str]]:
        """For each trial with a state to go on from the step that it is of, and its file: the
        newest whose metrics are on disk, too (a last state is there before them). With a scheduler
        nobody goes on from a last state."""
        reached = dict(
            zip(self.finished.number.tolist(), self.finished.steps_completed, strict=True)
        )
        decides = self._plan.stages is not None and bool(self._plan.stages.scheduler)
        found: dict[int, tuple[int, str]] = {}
        for name, trials in self._heads.items():
            for trial, step in [] if decides and name.startswith("final-") else trials:
                if found.get(trial, (-1, ""))[0] < step <= reached.get(trial, -1):
                    found[trial] = step, name
        return found

    def write_states(
        self, trials: np.ndarray, step: int, states: list[np.ndarray], form: StateForm
    ) -> str:
        """Write the states of trials that are under way; the file's name."""
        name = f"states-{Listing(self._path).next('states'):06d}.npz"
        self._write_arrays(name, self._state_arrays(trials, step, states, form))
        return name

    def read_states(self, trials: list[tuple[int, str]], spec: StateSpec) -> list[np.ndarray]:
        """The states of these trials, from these files, arrays with a leading axis over them."""
        rows: dict[str, tuple[list[int], list[np.ndarray]]] = {}
        for name in dict.fromkeys(name for _, name in trials):
            file = self._path / name
            with damaged(file, STATE), open_arrays(file, self._header.sweep) as stored:
                at = self._trials_at(stored.column("point"), stored.column("seed"))
                rows[name] = at, state_of(stored, spec)
        each = [[x[rows[n][0].index(t)] for x in rows[n][1]] for t, n in trials]
        return [np.stack(leaves) for leaves in zip(*each, strict=True)] if spec.data else []

    def checkpoints(self) -> set[str]:
        """The files of states of trials under way."""
        return set(Listing(self._path).names("states"))

    def delete(self, name: str) -> None:
        """Remove a file of states."""
        self._begin()
        (self._path / name).unlink(missing_ok=True)

    def keep_state(self, trial: int, step: int, state: list[np.ndarray], form: StateForm) -> None:
        """Write the last state of one trial, to be kept."""
        arrays = self._state_arrays(np.array([trial]), step, state, form)
        self._write_arrays(self._final_name(trial), arrays)

    def _final_name(self, trial: int) -> str:
        places = self._places_of(np.array([trial]))
        return final_file(places["point"][0], places["seed"][0])

    def final_files(self) -> dict[int, Path]:
        """For each trial the file of its last state, whether it is there or not."""
        trials = np.arange(self._plan.trials)
        places = self._places_of(trials)
        pairs = zip(trials.tolist(), places["point"], places["seed"], strict=True)
        return {trial: self._path / final_file(p, s) for trial, p, s in pairs}

    def drop_states(self, is_dropped: Callable[[int], bool]) -> None:
        """Remove kept states of these trials."""
        for name in Listing(self._path).names("final"):
            place, seed = place_and_seed(name)
            if is_dropped(self._trials_at([place], [seed])[0]):
                self.delete(name)

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

    def write_decision(self, decided: dict[str, Any]) -> None:
        """Write a decision of a scheduler, encoded, whole or not at all."""
        self._write_json(f"decision-{decided['step']:012d}.json", decided)

    # Files.

    def _begin(self) -> None:
        """The manifest, before the first file that needs it, and before anything is deleted."""
        if self._has_begun:
            return
        self._has_begun = True
        for left_over in self._left_over:
            left_over.unlink(missing_ok=True)
        self._write_json(MANIFEST, self._manifest | {"files": self._files})

    def _write_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        stored = {key: untyped(np.asarray(x)) for key, x in arrays.items()}
        self._write(name, lambda file: write_arrays(file, name, self._header, stored))

    def _write_json(self, name: str, content: Any) -> None:
        self._write(name, lambda file: write_json(file, name, self._header, content))

    def _write(self, name: str, write: Callable[[IO[bytes]], None]) -> None:
        if name != MANIFEST:
            self._begin()
        temporary = self._path / f".{name}.tmp"
        if _inode(self._path / LOCK) != self._inode:
            raise RuntimeError(
                f"{self._path} was moved, deleted, or made anew while this sweep wrote it, and may "
                "be another sweep's by now: nothing more is written there. Move it back and make "
                "the same call again to go on, or give another path."
            )
        with _explained(
            f"{name} cannot be written to {self._path}; what was there is untouched, and the same "
            "call goes on from it once this is mended"
        ):
            try:
                with open(temporary, "w+b") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self._path / name)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
            if os.name == "posix":  # the new name is on disk, too
                folder = os.open(self._path, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)


def _missing_folders(path: Path) -> list[Path]:
    """Of a path, the folders that are not there, from the outermost."""
    missing = [path, *path.parents]
    return [folder for folder in missing if not folder.exists()][::-1]


def _inode(path: Path) -> tuple[int, int] | None:
    """Which file stands there; None for none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def final_file(place: int, seed: int) -> str:
    """Of a state that is kept."""
    return f"final-{place:06d}_{seed}.npz"


def place_and_seed(name: str) -> tuple[int, int]:
    """Of a state that is kept, by its file."""
    found = NAMES["final"].fullmatch(name)
    assert found is not None
    return int(found[1]), int(found[2])


def state_of(stored: Arrays, spec: StateSpec) -> list[np.ndarray]:
    """The arrays of a file of states; FileError where they are not those of `spec`."""
    arrays = leaves_of(stored)
    got = [(x.shape[1:], x.dtype) for x in arrays]
    if got != [(x.shape, x.dtype) for x in spec.data]:
        raise FileError(f"it holds states of other shapes or dtypes, {got}")
    return arrays


def read(
    path: str | os.PathLike[str],
) -> tuple[ExperimentSpec, TrialData, dict[str, Any], list[AppliedDecision], dict[int, Path], str]:
    """What a folder holds: the plan, what is known of its trials, the objective and the mode of the
    last call, what a scheduler decided, for each trial the file of its state, and the sweep's id.

    Raises:
      ValueError: for a folder that is damaged or no sweep's.
    """
    folder = local_folder(path)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give the path of a sweep.")
    listing = Listing(folder)
    if not (folder / MANIFEST).exists():
        raise ValueError(
            f"{folder} has no {MANIFEST}: it is no sweep's folder, or no trial of it has been "
            "written yet."
        )
    stored = Folder(folder, listing)
    plan = stored.plan
    trials, _ = _read_rounds(stored, plan, np.arange(len(plan.points)), every=False)
    seeds = len(plan.seeds)
    decided = [AppliedDecision.decode(one) for one in stored.decisions()]
    for one in decided:
        for point, why in one.stopped.items():
            trials.stopped[trials.number // seeds == point] = why
    files = {}
    for name in listing.names("final"):
        place, seed = place_and_seed(name)
        if place < len(plan.points) and seed in plan.seeds:
            files[place * seeds + plan.seeds.index(seed)] = folder / name
    aim = {name: stored.manifest[name] for name in ("objective", "mode")}
    return plan, trials, aim, decided, files, stored.header.sweep


def _read_rounds(
    folder: Folder, plan: ExperimentSpec, places: np.ndarray, every: bool
) -> tuple[TrialData, list[str]]:
    """What is known of the plan's trials, whose points have these places in the manifest: of every
    one, or of those that the folder has, in order; no rows where it has none. And the files."""
    point_at = {place: i for i, place in enumerate(places.tolist())}
    seed_at = {seed: i for i, seed in enumerate(plan.seeds)}
    group_of = plan.group_of()
    spans: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)

    def places_in(stored: Arrays) -> np.ndarray:
        wanted = ("point", "seed", *(("start", "steps_completed") if plan.stages else ()))
        points, seeds, *span = map(stored.column, wanted)
        if len({len(points), len(seeds), *map(len, span)}) > 1:
            raise FileError("its arrays have different lengths")
        pairs = zip(points, seeds, strict=True)
        number = np.array([point_at[p] * len(seed_at) + seed_at[s] for p, s in pairs], int)
        for trial, *one in zip(number.tolist(), *span, strict=True):
            spans[trial].append(tuple(one) if plan.stages else (0, 1))
        return number

    numbers = folder.each("round", ROUND, places_in)
    reached = {trial: _without_gap(each) for trial, each in spans.items()}
    found = np.array(sorted(trial for trial, step in reached.items() if step), int)
    if every and len(found):
        found = np.arange(plan.trials)
    with damaged(folder.path / MANIFEST, WHOLE):
        _check_room(plan, len(found))
    rows = {int(trial): i for i, trial in enumerate(found)}
    trials = no_trials(plan, len(rows))
    trials.number[:] = found

    def fill(stored: Arrays) -> None:
        number = numbers[stored.name]
        groups = set(group_of[number // len(plan.seeds)].tolist())
        stops = stored.column("steps_completed") if plan.stages else [1] * len(number)
        on = [stop <= reached[t] for t, stop in zip(number.tolist(), stops, strict=True)]
        of = lambda x: x if all(on) else x[np.array(on, bool)]
        mine = np.array([rows[t] for t in of(number).tolist()], int)
        for metric, into in trials.metrics.items():
            columns, x = _metric(stored, metric, plan, groups, len(number))
            into[mine if columns is None else np.ix_(mine, columns)] = of(x)
        if plan.stages:
            newer = of(stored["steps_completed"]) >= trials.steps_completed[mine]
            for metric, into in trials.newest.items():
                stored.check("newest " + metric, plan.dtype(metric), (len(number),))
                x = of(typed(stored["newest " + metric], plan.dtype(metric)))
                into[mine[newer]] = x[newer]
            stored.check("pruned", np.int8, (len(number),))
            stored.check("steps_asked", np.int64, (len(number),))
            trials.stopped[mine] = np.maximum(trials.stopped[mine], of(stored["pruned"]))
            trials.asked[mine] = np.maximum(trials.asked[mine], of(stored["steps_asked"]))
        else:
            trials.asked[mine] = 1
        trials.steps_completed[mine] = np.maximum(trials.steps_completed[mine], of(np.array(stops)))
        if "feasible" in stored:
            stored.check("feasible", np.bool_, (len(number),))
            trials.feasible[mine] = of(stored["feasible"])
        stored.check("seconds", np.float64, (2,))
        trials.seconds[:] += stored["seconds"]

    folder.each("round", ROUND, fill)
    if not plan.stages:
        ends, points = plan.ends(), trials.number // len(plan.seeds)
        for metric, into in trials.newest.items():
            into[:] = trials.metrics[metric][np.arange(len(points)), ends[metric][points] - 1]
    return trials, list(numbers)


def _check_room(plan: ExperimentSpec, trials: int) -> None:
    """FileError where the metrics of these trials cannot be held: a number in the manifest may be
    wrong, or this machine too small."""
    free, need = free_bytes(), bytes_of(plan, trials)
    if free is not None and need > free:
        raise FileError(
            f"what it names needs {need / 1e9:.3g} GB, and {free / 1e9:.3g} GB of memory are free"
        )


def _without_gap(spans: list[tuple[int, int]]) -> int:
    """How far these spans of steps come from 0: one in the middle may have been moved away."""
    end = 0
    for start, stop in sorted(spans):
        end = max(end, stop) if start <= end else end
    return end


def _metric(
    stored: Arrays, name: str, plan: ExperimentSpec, groups: set[int], count: int
) -> tuple[np.ndarray | None, np.ndarray]:
    """A round's metric and which of the plan's kept steps it has; FileError where it is cut."""
    array, dtype = "metric " + name, plan.dtype(name)
    if not plan.has_steps(name):
        stored.check(array, dtype, (count,))
        return None, typed(stored[array], dtype)
    steps = np.array(stored.column("steps " + name))
    stored.check(array, dtype, (count, len(steps)))
    x = typed(stored[array], dtype)
    own = () if plan.stages else [plan.metrics[group][name].shape[0] for group in groups]
    if not set(own) <= set(steps.tolist()):
        raise FileError(f"{name} has not all its steps")
    here = np.isin(steps, plan.steps(name))  # fewer steps had another last one
    return np.searchsorted(plan.steps(name), steps[here]), x if here.all() else x[:, here]


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror or error}") from error
