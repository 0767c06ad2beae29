"""A sweep's folder: what was asked in `manifest.json`, what is finished in `round-*.npz`.

Metrics are stored as they were measured, and nothing that can be computed from them.
"""

import collections
import contextlib
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import filelock
import jax
import numpy as np

from rmsprop_jax._sweep.decisions import Decided
from rmsprop_jax._sweep.fingerprint import Fingerprint
from rmsprop_jax._sweep.plan import Plan, Stages, Trials, no_trials
from rmsprop_jax._sweep.points import Points
from rmsprop_jax._sweep.states import Form, Spec, leaves_of
from rmsprop_jax._sweep.tracing import Group, group_points
from rmsprop_jax._sweep.values import decode, encode, typed

FORMAT = 2
MANIFEST = "manifest.json"
# Parts of the manifest that must be as they were for a folder to go on.
SAME = {
    "every": "another every",
    "static": "other static names",
    "args": "other args",
    "metrics": "other metrics",
}


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


class Store:
    """The one writer of a folder, until it is closed.

    Args:
      path: a folder, made where it is not there.
      plan: what is asked. A folder that holds a sweep must have been asked for the same, or for
        fewer points and seeds.
      aim: what is looked for, noted for `load`: the name of the objective, and the mode.

    Attributes:
      finished: of all the plan's trials, what the folder held when it was opened; no
        rows for a new one.
      decisions: those of a scheduler, in order.

    Raises:
      ValueError: for a folder of another sweep, or a damaged one.
      RuntimeError: where another process writes it.
      OSError: where it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], plan: Plan, aim: tuple[str, str]):
        self._path, self._plan = local_folder(path), plan
        manifest = _manifest(plan, aim)
        with _explained(f"the sweep's folder {self._path} cannot be written"):
            self._path.mkdir(parents=True, exist_ok=True)
            self._lock = filelock.FileLock(self._path / ".lock", timeout=0)
            try:
                self._lock.acquire()
            except filelock.Timeout:
                raise RuntimeError(
                    f"another sweep, of this process or another, is writing {self._path}: wait for "
                    "it, stop it, or give another path."
                ) from None
        try:
            for left_over in self._path.glob(".*.tmp"):
                left_over.unlink()
            if (self._path / MANIFEST).exists():
                _extend(manifest, _read_manifest(self._path), plan.points, self._path)
            elif any(file.name != ".lock" for file in self._path.iterdir()):
                raise ValueError(
                    f"{self._path} has files but no {MANIFEST}, so it is no sweep's folder: give "
                    "another path, of a new folder or an empty one."
                )
            stored = _points(manifest)
            place = {key: i for i, key in enumerate(_keys(plan.points, stored))}
            self._places = np.array([place[key] for key in _keys(plan.points, plan.points)])
            self.finished = _read_rounds(self._path, plan, self._places, every=True)
            self.decisions = read_decisions(self._path)
            last = max(map(_round_number, _round_files(self._path)), default=-1)
            self._next = last + 1  # not their count: one may have been moved away
            self._write(MANIFEST, lambda file: file.write(json.dumps(manifest).encode()))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._lock.release()

    def write(self, trials: Trials, columns: Mapping[str, slice], start: int = 0) -> None:
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
            arrays |= {"start": np.full(len(trials.number), start), "reached": trials.reached}
            arrays |= {"stopped": trials.stopped}
            arrays |= {"newest " + name: x for name, x in trials.newest.items()}
        if not trials.feasible.all():  # only a search has constraints
            arrays["feasible"] = trials.feasible
        self._write_arrays(f"round-{self._next:06d}.npz", arrays)
        self._next += 1

    def _places_of(self, trials: np.ndarray) -> dict[str, np.ndarray]:
        points, seeds = np.divmod(trials, len(self._plan.seeds))
        seeds = np.asarray(self._plan.seeds, np.int64)[seeds]
        return {"point": self._places[points], "seed": seeds}

    def _trials_at(self, stored: Mapping[str, np.ndarray]) -> list[int]:
        """The trials of a file; of points and seeds that are not asked for, −1."""
        points = {place: i for i, place in enumerate(self._places.tolist())}
        seeds = {seed: i for i, seed in enumerate(self._plan.seeds)}
        pairs = zip(stored["point"].tolist(), stored["seed"].tolist(), strict=True)
        known = lambda p, s: p in points and s in seeds
        return [points[p] * len(seeds) + seeds[s] if known(p, s) else -1 for p, s in pairs]

    # States.

    def states(self) -> dict[int, tuple[int, str]]:
        """For each trial with a state to go on from the step that it is of, and its file: the
        newest whose metrics are on disk, too (a last state is there before them). With a scheduler
        nobody goes on from a last state."""
        reached = dict(zip(self.finished.number.tolist(), self.finished.reached, strict=True))
        decides = self._plan.stages is not None and bool(self._plan.stages.scheduler)
        found: dict[int, tuple[int, str]] = {}
        for file in [*self._path.glob("states-*.npz"), *self._path.glob("final-*.npz")]:
            with _damaged(file, STATE), zipfile.ZipFile(file) as archive:
                if (broken := archive.testzip()) is not None:
                    raise ValueError(f"{broken} is damaged")
            head = lambda stored: (self._trials_at(stored), stored["step"].tolist())
            for trial, step in zip(*_stored(file, head, STATE), strict=True):
                is_newest = found.get(trial, (-1, ""))[0] < step <= reached.get(trial, -1)
                if is_newest and not (decides and file.name.startswith("final-")):
                    found[trial] = step, file.name
        return found

    def write_states(
        self, trials: np.ndarray, step: int, states: list[np.ndarray], form: Form
    ) -> str:
        """Write the states of trials that are under way; the file's name."""
        numbers = [int(file.stem[7:]) for file in self._path.glob("states-*.npz")]
        name = f"states-{max(numbers, default=-1) + 1:06d}.npz"
        self._write_arrays(name, self._state_arrays(trials, step, states, form))
        return name

    def read_states(self, trials: list[tuple[int, str]], spec: Spec) -> list[np.ndarray]:
        """The states of these trials, from these files, arrays with a leading axis over them."""
        rows: dict[str, tuple[list[int], list[np.ndarray]]] = {}
        for name in dict.fromkeys(name for _, name in trials):
            read = lambda stored: (self._trials_at(stored), state_of(stored, spec))
            rows[name] = _stored(self._path / name, read, STATE)
        each = [[x[rows[n][0].index(t)] for x in rows[n][1]] for t, n in trials]
        return [np.stack(leaves) for leaves in zip(*each, strict=True)] if spec.data else []

    def checkpoints(self) -> set[str]:
        """The files of states of trials under way."""
        return {file.name for file in self._path.glob("states-*.npz")}

    def delete(self, name: str) -> None:
        """Remove a file of states."""
        (self._path / name).unlink(missing_ok=True)

    def keep_state(self, trial: int, step: int, state: list[np.ndarray], form: Form) -> None:
        """Write the last state of one trial, to be kept."""
        arrays = self._state_arrays(np.array([trial]), step, state, form)
        self._write_arrays(final_file(arrays["point"][0], arrays["seed"][0]), arrays)

    def final_files(self) -> dict[int, Path]:
        """For each trial the file of its last state, whether it is there or not."""
        trials = np.arange(self._plan.trials)
        places = self._places_of(trials)
        pairs = zip(trials.tolist(), places["point"], places["seed"], strict=True)
        return {trial: self._path / final_file(p, s) for trial, p, s in pairs}

    def drop_states(self, is_dropped: Callable[[int], bool]) -> None:
        """Remove kept states of these trials."""
        for file in self._path.glob("final-*.npz"):
            place, seed = _place_and_seed(file)
            one = {"point": np.array([place]), "seed": np.array([seed])}
            if is_dropped(self._trials_at(one)[0]):
                file.unlink()

    def _state_arrays(
        self, trials: np.ndarray, step: int, states: list[np.ndarray], form: Form
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
        text = json.dumps(decided).encode()
        self._write(f"decision-{decided['boundary']:012d}.json", lambda file: file.write(text))

    def _write_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        self._write(name, lambda file: np.savez(file, **arrays))

    def _write(self, name: str, write: Any) -> None:
        temporary = self._path / f".{name}.tmp"
        with _explained(
            f"{name} cannot be written to {self._path}; what was there is untouched, and the same "
            "call goes on from it once this is mended"
        ):
            try:
                with open(temporary, "wb") as file:
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


STATE = "the trials whose states it held start again"
ROUND = "the trials that it held run again"


def final_file(place: int, seed: int) -> str:
    """Of a state that is kept."""
    return f"final-{place:06d}_{seed}.npz"


def _place_and_seed(file: Path) -> tuple[int, int]:
    """Of a state that is kept, by its name."""
    place, seed = map(int, file.stem.removeprefix("final-").split("_"))
    return place, seed


def state_of(stored: Mapping[str, np.ndarray], spec: Spec) -> list[np.ndarray]:
    """The arrays of a file of states; ValueError where they are not those of `spec`."""
    arrays = leaves_of(stored)
    got = [(x.shape[1:], x.dtype) for x in arrays]
    if got != [(x.shape, x.dtype) for x in spec.data]:
        raise ValueError(f"it holds states of other shapes or dtypes, {got}")
    return arrays


def read_decisions(path: Path) -> list[dict[str, Any]]:
    """A folder's decisions, in order."""
    found = []
    for file in sorted(path.glob("decision-*.json")):
        try:
            found.append(json.loads(file.read_bytes()))
            Decided.decode(found[-1])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{file} is damaged ({error!r}). What was decided there cannot be decided again, "
                "since trials went on from it: put a copy of it back, or give another path."
            ) from error
    return found


def read(
    path: str | os.PathLike[str],
) -> tuple[Plan, Trials, tuple[str, str], list[Decided], dict[int, Path]]:
    """What a folder holds: the plan, what is known of its trials, the name of the objective and the
    mode of the last call, what a scheduler decided, and for each trial the file of its state.

    Raises:
      ValueError: for a folder that is damaged or no sweep's.
    """
    folder = local_folder(path)
    if not (folder / MANIFEST).exists():
        raise ValueError(f"{folder} has no {MANIFEST}: it is no sweep's folder.")
    manifest = _read_manifest(folder)
    try:
        points = _points(manifest)
        groups = group_points(points)
        texts = [_structure(group) for group in groups]
        per_structure = [manifest["lengths"][text] for text in texts]
        hashes = {name: [manifest[name][t] for t in texts] for name in ("programs", "constants")}
        fingerprint = Fingerprint.of(manifest["dtypes"], manifest["args"], manifest["jax"], hashes)
        metrics = [
            {
                name: jax.ShapeDtypeStruct((lengths[name],) if rank else (), np.dtype(dtype))
                for name, (dtype, rank) in manifest["metrics"].items()
            }
            for lengths in per_structure
        ]
        seeds, stages = tuple(manifest["seeds"]), manifest["stages"]
        if stages is not None:
            of = {name: jax.ShapeDtypeStruct((), np.dtype(d)) for name, d in stages["evaluations"]}
            stages = Stages(**stages | {"rungs": tuple(stages["rungs"]), "evaluations": of})
        plan = Plan(points, seeds, manifest["every"], groups, metrics, fingerprint, stages)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder / MANIFEST} is damaged: {error!r}.") from error
    trials = _read_rounds(folder, plan, np.arange(len(points)), every=False)
    decided = [Decided.decode(one) for one in read_decisions(folder)]
    for one in decided:
        for point, why in one.stopped.items():
            trials.stopped[trials.number // len(seeds) == point] = why
    files = {}
    for file in folder.glob("final-*.npz"):
        place, seed = _place_and_seed(file)
        files[place * len(seeds) + seeds.index(seed)] = file
    return plan, trials, (manifest["objective"], manifest["mode"]), decided, files


def _manifest(plan: Plan, aim: tuple[str, str]) -> dict[str, Any]:
    texts = [_structure(group) for group in plan.groups]
    of = lambda each: dict(zip(texts, each, strict=True))
    lengths = lambda one: {name: m.shape[0] for name, m in one.items() if m.shape}
    return {
        "format": FORMAT,
        "points": [{name: encode(x, name) for name, x in point.items()} for point in plan.points],
        "static": sorted(plan.points.static),
        "seeds": list(plan.seeds),
        "objective": aim[0],
        "mode": aim[1],
        "every": plan.every,
        "stages": None if plan.stages is None else _encoded(plan.stages),
        "metrics": {name: [str(m.dtype), len(m.shape)] for name, m in plan.metrics[0].items()},
        "lengths": of(map(lengths, plan.metrics)),
        "dtypes": plan.fingerprint.dtypes,
        "args": plan.fingerprint.args,
        "programs": of(plan.fingerprint.programs),
        "constants": of(plan.fingerprint.constants),
        "jax": plan.fingerprint.jax,
    }


def _encoded(stages: Stages) -> dict[str, Any]:
    evaluations = [[name, str(m.dtype)] for name, m in stages.evaluations.items()]
    return stages._asdict() | {"rungs": list(stages.rungs), "evaluations": evaluations}


def _structure(group: Group) -> str:
    """A name for a structure."""
    structure = {name: encode(x, name) for name, x in group.structure.items()}
    return json.dumps([structure, sorted(group.dtypes)], sort_keys=True)


def _points(manifest: dict[str, Any]) -> Points:
    decoded = ({name: decode(x) for name, x in point.items()} for point in manifest["points"])
    return Points.of(list(decoded), manifest["static"])


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        if manifest["format"] == 1:
            manifest = _from_format_1(manifest)
        if manifest["format"] == FORMAT:
            return manifest
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path / MANIFEST} is damaged: {error!r}.") from error
    raise ValueError(
        f"{path} was written in format {manifest['format']}, this version reads 1 and {FORMAT}."
    )


def _from_format_1(manifest: dict[str, Any]) -> dict[str, Any]:
    """Format 1 knew one length for all structures, and stored each trial's objective, too."""
    metrics = manifest["metrics"]
    lengths = {name: steps for name, (_, steps) in metrics.items() if steps is not None}
    every = dict.fromkeys(lengths, manifest["every"]) if manifest["every"] > 1 else {}
    return manifest | {
        "format": FORMAT,
        "every": every,
        "metrics": {
            name: [dtype, int(steps is not None)] for name, (dtype, steps) in metrics.items()
        },
        "lengths": dict.fromkeys(manifest["programs"], lengths),
        "constants": dict.fromkeys(manifest["programs"]),  # they were in the programs' text
        "stages": None,
    }


def _extend(asked: dict[str, Any], before: dict[str, Any], points: Points, path: Path) -> None:
    """Add what the folder's manifest has to `asked`; ValueError where they contradict."""

    def refuse(what: str, then: Any, now: Any, remedy: str = ""):
        raise ValueError(
            f"{path} holds a sweep with {what}: {then} there, {now} here. "
            f"{remedy or 'Give another path, or call sweep as it was called.'}"
        )

    if before["jax"] != asked["jax"]:
        refuse(
            "another version of jax",
            before["jax"],
            asked["jax"],
            "Its numbers could differ in the last digits: go on with that version, or give another "
            "path; SweepResult.load reads the folder with any.",
        )
    for name in before["dtypes"].keys() & asked["dtypes"].keys():
        if asked["dtypes"][name] != before["dtypes"][name]:
            refuse(f"{name!r} of another dtype", before["dtypes"][name], asked["dtypes"][name])
    if before["args"] is None:
        raise ValueError(
            f"{path} was saved without a hash of its args, which were large, so that it cannot be "
            "gone on with; SweepResult.load reads it. Give another path."
        )
    for name, what in SAME.items():
        if asked[name] != before[name]:
            refuse(what, before[name], asked[name])
    _check_stages(asked["stages"], before["stages"], path, refuse)
    stored = _points(before)
    known, keys = list(_keys(points, stored)), list(_keys(points, points))
    if missing := set(known) - set(keys):
        one = stored[min(map(known.index, missing))]
        refuse(
            "points that are not among these (points may be added, not left out)",
            f"{len(known)}, {one} for one",
            f"{len(keys)}",
        )
    if set(before["seeds"]) - set(asked["seeds"]):
        refuse("other seeds (seeds may be added)", before["seeds"], asked["seeds"])
    for structure in before["programs"].keys() & asked["programs"].keys():
        for name, what in (
            ("programs", "another train (its code, data that it closes over, or what np.random or "
                "the clock gave while it was traced)"),
            ("constants", "other data that train closes over"),
        ):  # fmt: skip
            then, now = before[name][structure], asked[name][structure]
            if then not in (now, None):
                refuse(f"{what}, for {structure}", then[:12], now[:12])
    same = keys == known and before["seeds"] == asked["seeds"]
    if before["stages"] and before["stages"]["scheduler"] and not same:
        refuse(
            "a scheduler, whose decisions are about its points and seeds",
            f"{len(known)} points × {len(before['seeds'])} seeds",
            f"{len(keys)} × {len(asked['seeds'])}, or another order",
        )
    new = set(keys) - set(known)
    added = [point for key, point in zip(keys, asked["points"], strict=True) if key in new]
    asked["points"] = before["points"] + added
    for name in ("programs", "constants", "lengths", "dtypes"):
        asked[name] = before[name] | asked[name]


def _check_stages(asked: Any, before: Any, path: Path, refuse: Callable[..., None]) -> None:
    """A `Training` goes on with the same stages, or with more steps where it can."""
    if (asked is None) != (before is None):
        kind = lambda stages: "a function" if stages is None else "a Training"
        refuse("another kind of training", kind(before), kind(asked))
    if asked is None:
        return
    for name, what in (
        ("scheduler", "another scheduler"),
        ("evaluate_every", "another evaluate_every"),
        ("evaluations", "other metrics of evaluate"),
    ):
        if asked[name] != before[name]:
            more = asked["steps"] != before["steps"] and name == "evaluate_every"
            remedy = (
                f"To go on with more steps, give evaluate_every={before[name]}." if more else ""
            )
            refuse(what, before[name] or "none", asked[name] or "none", remedy)
    if asked["steps"] < before["steps"]:
        refuse("more steps", before["steps"], asked["steps"])
    if asked["steps"] > before["steps"] and before["scheduler"]:
        refuse(
            "a scheduler and other steps",
            before["steps"],
            asked["steps"],
            "What was stopped cannot go on: sweep the best points anew, or go on with one by "
            "training.run(..., state=result.state(record), start=...).",
        )
    missing = 0
    if asked["steps"] > before["steps"]:
        missing = _finished_without_state(path, before["steps"])
    if missing:
        refuse(
            "fewer steps, and not the state of each trial",
            before["steps"],
            asked["steps"],
            f'{missing} finished trials have none: give keep_states="all" from the start.',
        )


def _finished_without_state(path: Path, steps: int) -> int:
    """How many trials came to the end and left no state."""
    head = lambda stored: [stored[name].tolist() for name in ("point", "seed", "reached")]
    kept = {file.name for file in path.glob("final-*.npz")}
    ended = set()
    for file in _round_files(path):
        each = zip(*_stored(file, head), strict=True)
        ended |= {(point, seed) for point, seed, reached in each if reached >= steps}
    return sum(final_file(*place) not in kept for place in ended)


def _round_files(path: Path) -> list[Path]:
    return sorted(file for file in path.glob("round-*.npz") if file.stem[6:].isdigit())


def _round_number(file: Path) -> int:
    return int(file.stem[6:])


def _read_rounds(path: Path, plan: Plan, places: np.ndarray, every: bool) -> Trials:
    """What is known of the plan's trials, whose points have these places in the manifest: of every
    one, or of those that the folder has, in order; no rows where it has none."""
    point_at = {place: i for i, place in enumerate(places.tolist())}
    seed_at = {seed: i for i, seed in enumerate(plan.seeds)}
    group_of = plan.group_of()
    files = _round_files(path)
    numbers = []
    spans: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
    wanted = ("point", "seed", *(("start", "reached") if plan.stages else ()))
    for file in files:
        points, seeds, *span = _stored(file, lambda stored: [stored[k].tolist() for k in wanted])
        with _damaged(file):
            if len({len(points), len(seeds), *map(len, span)}) > 1:
                raise ValueError("its arrays have different lengths")
        pairs = zip(points, seeds, strict=True)
        numbers.append(np.array([point_at[p] * len(seed_at) + seed_at[s] for p, s in pairs], int))
        for trial, *one in zip(numbers[-1].tolist(), *span, strict=True):
            spans[trial].append(tuple(one) if plan.stages else (0, 1))
    reached = {trial: _without_gap(each) for trial, each in spans.items()}
    found = np.array(sorted(trial for trial, step in reached.items() if step), int)
    if every and len(found):
        found = np.arange(plan.trials)
    rows = {int(trial): i for i, trial in enumerate(found)}
    trials = no_trials(plan, len(rows))
    trials.number[:] = found
    for file, number in zip(files, numbers, strict=True):
        groups = set(group_of[number // len(plan.seeds)].tolist())

        def fill(stored, number=number, groups=groups):
            stops = stored["reached"].tolist() if plan.stages else [1] * len(number)
            on = [stop <= reached[t] for t, stop in zip(number.tolist(), stops, strict=True)]
            of = lambda x: x if all(on) else x[np.array(on, bool)]
            mine = np.array([rows[t] for t in of(number).tolist()], int)
            for name, into in trials.metrics.items():
                columns, x = _metric(stored, name, plan, groups, len(number))
                into[mine if columns is None else np.ix_(mine, columns)] = of(x)
            if plan.stages:
                newer = of(stored["reached"]) >= trials.reached[mine]
                for name, into in trials.newest.items():
                    x = of(typed(stored["newest " + name], plan.dtype(name)))
                    into[mine[newer]] = x[newer]
                trials.stopped[mine] = np.maximum(trials.stopped[mine], of(stored["stopped"]))
            trials.reached[mine] = np.maximum(trials.reached[mine], of(np.array(stops)))
            if "feasible" in stored:
                trials.feasible[mine] = of(stored["feasible"])
            trials.seconds[:] += stored["seconds"]

        _stored(file, fill)
    if not plan.stages:
        ends, points = plan.ends(), trials.number // len(plan.seeds)
        for name, into in trials.newest.items():
            into[:] = trials.metrics[name][np.arange(len(points)), ends[name][points] - 1]
    return trials


def _without_gap(spans: list[tuple[int, int]]) -> int:
    """How far these spans of steps come from 0: one in the middle may have been moved away."""
    end = 0
    for start, stop in sorted(spans):
        end = max(end, stop) if start <= end else end
    return end


def _metric(
    stored: Mapping[str, np.ndarray], name: str, plan: Plan, groups: set[int], count: int
) -> tuple[np.ndarray | None, np.ndarray]:
    """A round's metric and which of the plan's kept steps it has; ValueError where it is cut."""
    x = typed(stored["metric " + name], plan.dtype(name))
    if not plan.has_steps(name):
        if x.shape != (count,):
            raise ValueError(f"{name} has shape {x.shape}")
        return None, x
    if "steps " + name in stored:
        steps = stored["steps " + name]
    else:  # format 1
        steps = plan.kept(min(groups, default=0), name)
    own = () if plan.stages else [plan.metrics[group][name].shape[0] for group in groups]
    if x.shape != (count, len(steps)) or not set(own) <= set(steps.tolist()):
        raise ValueError(f"{name} has shape {x.shape}")
    here = np.isin(steps, plan.steps(name))  # fewer steps had another last one
    return np.searchsorted(plan.steps(name), steps[here]), x if here.all() else x[:, here]


T = TypeVar("T")


def _stored(file: Path, read: Callable[[Mapping[str, np.ndarray]], T], lost: str = ROUND) -> T:
    """What `read` gets of a file's arrays; ValueError where it is damaged."""
    with (
        _damaged(file, lost),
        open(file, "rb") as data,
        np.load(data, allow_pickle=False) as stored,
    ):
        return read(stored)


@contextlib.contextmanager
def _damaged(file: Path, lost: str = ROUND) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{file} is damaged ({error!r}). Nothing was changed; move it away, and {lost}."
        ) from error


def _keys(like: Points, points: Points) -> Iterator[Hashable]:
    """A key for each point, as these are told apart in `like`; equal points differ by a number."""
    seen: collections.Counter[Hashable] = collections.Counter()
    for key in map(like.key, points):
        yield key, seen[key]
        seen[key] += 1


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror or error}") from error
