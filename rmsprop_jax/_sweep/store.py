"""A sweep's folder: what was asked in `manifest.json`, what is finished in `round-*.npz`.

Metrics are stored as they were measured, and nothing that can be computed from them.
"""

import collections
import contextlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import filelock
import jax
import numpy as np

from rmsprop_jax._sweep.fingerprint import Fingerprint
from rmsprop_jax._sweep.plan import Plan, Trials
from rmsprop_jax._sweep.points import Points
from rmsprop_jax._sweep.tracing import Group, group_points
from rmsprop_jax._sweep.values import decode, encode

FORMAT = 2
MANIFEST = "manifest.json"
# Parts of the manifest that must be as they were for a folder to go on.
SAME = {
    "every": "another every",
    "static": "other static names",
    "args": "other args",
    "metrics": "other metrics",
}


class Store:
    """The one writer of a folder, until it is closed.

    Args:
      path: a folder, made where it is not there.
      plan: what is asked. A folder that holds a sweep must have been asked for the same, or for
        fewer points and seeds.
      aim: what is looked for, noted for `load`: the name of the objective, and the mode.

    Attributes:
      finished: what the folder held of the plan when it was opened.

    Raises:
      ValueError: for a folder of another sweep, or a damaged one.
      RuntimeError: where another process writes it.
      OSError: where it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], plan: Plan, aim: tuple[str, str]):
        self._path, self._plan = Path(path).expanduser(), plan
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
            self.finished = _read_rounds(self._path, plan, self._places)
            last = max(map(_round_number, _round_files(self._path)), default=-1)
            self._next = last + 1  # not their count: one may have been moved away
            self._write(MANIFEST, lambda file: file.write(json.dumps(manifest).encode()))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._lock.release()

    def write(self, trials: Trials) -> None:
        """Write one round, whole or not at all."""
        points, seeds = np.divmod(trials.number, len(self._plan.seeds))
        arrays = {
            "point": self._places[points],
            "seed": np.asarray(self._plan.seeds, np.int64)[seeds],
            "seconds": trials.seconds,
            **{"metric " + name: x for name, x in trials.metrics.items()},
            **{
                "steps " + name: self._plan.steps(name)[: x.shape[1]]
                for name, x in trials.metrics.items()
                if x.ndim == 2
            },
        }
        self._write(f"round-{self._next:06d}.npz", lambda file: np.savez(file, **arrays))
        self._next += 1

    def _write(self, name: str, write: Any) -> None:
        temporary = self._path / f".{name}.tmp"
        with _explained(f"{name} cannot be written to {self._path}; what was there is untouched"):
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


def read(path: str | os.PathLike[str]) -> tuple[Plan, Trials, tuple[str, str]]:
    """What a folder holds: the plan, the finished trials, and the name of the objective and the
    mode of the last call.

    Raises:
      ValueError: for a folder that is damaged or no sweep's.
    """
    folder = Path(path).expanduser()
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
        seeds = tuple(manifest["seeds"])
        plan = Plan(points, seeds, manifest["every"], groups, metrics, fingerprint)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder / MANIFEST} is damaged: {error!r}.") from error
    trials = _read_rounds(folder, plan, np.arange(len(points)))
    return plan, trials, (manifest["objective"], manifest["mode"])


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
        "metrics": {name: [str(m.dtype), len(m.shape)] for name, m in plan.metrics[0].items()},
        "lengths": of(map(lengths, plan.metrics)),
        "dtypes": plan.fingerprint.dtypes,
        "args": plan.fingerprint.args,
        "programs": of(plan.fingerprint.programs),
        "constants": of(plan.fingerprint.constants),
        "jax": plan.fingerprint.jax,
    }


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
    new = set(keys) - set(known)
    added = [point for key, point in zip(keys, asked["points"], strict=True) if key in new]
    asked["points"] = before["points"] + added
    for name in ("programs", "constants", "lengths", "dtypes"):
        asked[name] = before[name] | asked[name]


def _round_files(path: Path) -> list[Path]:
    return sorted(file for file in path.glob("round-*.npz") if file.stem[6:].isdigit())


def _round_number(file: Path) -> int:
    return int(file.stem[6:])


def _read_rounds(path: Path, plan: Plan, places: np.ndarray) -> Trials:
    """The finished trials of the plan, whose points have these places in the manifest."""
    point_at = {place: i for i, place in enumerate(places.tolist())}
    seed_at = {seed: i for i, seed in enumerate(plan.seeds)}
    group_of = np.zeros(len(plan.points), int)
    for i, group in enumerate(plan.groups):
        group_of[group.indices] = i
    files = _round_files(path)
    numbers = []
    for file in files:
        points, seeds = (_stored(file, lambda stored, k=k: stored[k]) for k in ("point", "seed"))
        with _damaged(file):
            if len(points) != len(seeds):
                raise ValueError("its arrays have different lengths")
        pairs = zip(points.tolist(), seeds.tolist(), strict=True)
        numbers.append(np.array([point_at[p] * len(seed_at) + seed_at[s] for p, s in pairs], int))
    trials, at = plan.no_trials(sum(map(len, numbers))), 0
    for file, number in zip(files, numbers, strict=True):
        rows = slice(at, at + len(number))
        at, trials.number[rows] = rows.stop, number
        groups, size = set(group_of[number // len(plan.seeds)].tolist()), len(number)

        def fill(stored, rows=rows, groups=groups, count=size):
            for name, into in trials.metrics.items():
                columns, x = _metric(stored, name, plan, groups, count)
                into[rows if columns is None else (rows, columns)] = x
            trials.seconds[:] += stored["seconds"]

        _stored(file, fill)
    return trials


def _metric(
    stored: Mapping[str, np.ndarray], name: str, plan: Plan, groups: set[int], count: int
) -> tuple[np.ndarray | None, np.ndarray]:
    """A round's metric and which of the plan's kept steps it has; ValueError where it is cut."""
    x, dtype = stored["metric " + name], plan.dtype(name)
    x = x if x.dtype == dtype else x.view(dtype)  # bfloat16, stored as bytes
    if not plan.has_steps(name):
        if x.shape != (count,):
            raise ValueError(f"{name} has shape {x.shape}")
        return None, x
    if "steps " + name in stored:
        steps = stored["steps " + name]
    else:  # format 1
        steps = plan.kept(min(groups, default=0), name)
    own = [plan.metrics[group][name].shape[0] for group in groups]
    if x.shape != (count, len(steps)) or not set(own) <= set(steps.tolist()):
        raise ValueError(f"{name} has shape {x.shape}")
    return np.searchsorted(plan.steps(name), steps), x


T = TypeVar("T")


def _stored(file: Path, read: Callable[[Mapping[str, np.ndarray]], T]) -> T:
    """What `read` gets of a round's arrays; ValueError where the file is damaged."""
    with _damaged(file), open(file, "rb") as data, np.load(data, allow_pickle=False) as stored:
        return read(stored)


@contextlib.contextmanager
def _damaged(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{file} is damaged ({error!r}). Nothing was changed; move it away, and the trials "
            "that it held run again."
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
