"""A sweep's folder: what was asked in `manifest.json`, what is finished in `round-*.npz`."""

import collections
import contextlib
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import jax
import jax.numpy as jnp
import numpy as np

from rmsprop_jax._sweep.points import Points
from rmsprop_jax._sweep.program import kept_steps
from rmsprop_jax._sweep.tracing import Group, TracedTrain

FORMAT = 1
MANIFEST = "manifest.json"
# Parts of the manifest that must be as they were for a folder to go on.
SAME = {
    "objective": "another objective",
    "mode": "another mode",
    "every": "another every",
    "static": "other static names",
    "args": "other args",
    "metrics": "other metrics",
}


class Plan(NamedTuple):
    """What a sweep was asked to do."""

    points: Points
    seeds: tuple[int, ...]
    objective: str
    mode: str
    every: int
    metrics: dict[str, jax.ShapeDtypeStruct]
    """As `train` returns them."""
    fingerprint: Callable[[], dict[str, Any]]
    """Gives what `fingerprint` gives; called only where a folder is written."""

    def steps(self, metric: str) -> np.ndarray:
        """The steps, counted from 1, that are kept of a metric with one value a step."""
        return kept_steps(self.metrics[metric].shape[0], self.every)

    def shape(self, metric: str) -> tuple[int, ...]:
        """Of what is kept of one trial's metric."""
        return (len(self.steps(metric)),) if self.metrics[metric].shape else ()

    def no_trials(self, count: int) -> "Trials":
        """Room for so many."""
        metrics = {
            name: np.zeros((count, *self.shape(name)), m.dtype) for name, m in self.metrics.items()
        }
        return Trials(np.zeros(count, np.int64), metrics, np.full(count, np.nan), np.zeros(2))


class Trials(NamedTuple):
    """Finished trials, in any order, and what they took."""

    number: np.ndarray
    """int array: the place of each in the points × the seeds."""
    metrics: dict[str, np.ndarray]
    objective: np.ndarray
    seconds: np.ndarray
    """(2,): compiling, and the rest."""


def fingerprint(
    groups: Sequence[Group], trains: Sequence[TracedTrain], args: Any
) -> dict[str, Any]:
    """Hashes of what decides the numbers: the lowered `train` of each group, and `args`."""
    digest = hashlib.sha256(str(jax.tree.structure(args)).encode())
    for leaf in jax.tree.leaves(args):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.ascontiguousarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return {
        "dtypes": {name: str(d) for group in groups for name, d in group.dtypes.items()},
        "args": digest.hexdigest(),
        "programs": {
            json.dumps([_encode(group.structure), sorted(group.dtypes)], sort_keys=True): (
                hashlib.sha256(train.traced.lower().as_text().encode()).hexdigest()
            )
            for group, train in zip(groups, trains, strict=True)
        },
        "jax": jax.__version__,
    }


class Store:
    """The one writer of a folder, until it is closed.

    Args:
      path: a folder, made where it is not there.
      plan: what is asked. A folder that holds a sweep must have been asked for the same, or for
        fewer points and seeds.

    Attributes:
      finished: what the folder held of the plan when it was opened.

    Raises:
      ValueError: for a folder of another sweep, or a damaged one.
      RuntimeError: where another process writes it.
      OSError: where it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], plan: Plan):
        self._path, self._plan = Path(path), plan
        manifest = _manifest(plan)
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
                _extend(manifest, _read_manifest(self._path), self._path)
            elif any(file.name != ".lock" for file in self._path.iterdir()):
                raise ValueError(
                    f"{self._path} has files but no {MANIFEST}, so it is no sweep's folder: give "
                    "another path, of a new folder or an empty one."
                )
            place = {key: i for i, key in enumerate(_keys(manifest["points"]))}
            self._places = np.array([place[key] for key in _keys(map(_encode, plan.points))])
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
            "objective": trials.objective,
            "seconds": trials.seconds,
            **{"metric " + name: x for name, x in trials.metrics.items()},
        }
        self._write(f"round-{self._next:06d}.npz", lambda file: np.savez(file, **arrays))
        self._next += 1

    def _write(self, name: str, write: Callable[[Any], Any]) -> None:
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


def read(path: str | os.PathLike[str]) -> tuple[Plan, Trials]:
    """What a folder holds: the plan, and the finished trials.

    Raises:
      ValueError: for a folder that is damaged or no sweep's.
    """
    folder = Path(path)
    if not (folder / MANIFEST).exists():
        raise ValueError(f"{folder} has no {MANIFEST}: it is no sweep's folder.")
    manifest = _read_manifest(folder)
    points = Points(map(_decode, manifest["points"]), manifest["static"])
    metrics = {
        name: jax.ShapeDtypeStruct(() if steps is None else (steps,), np.dtype(dtype))
        for name, (dtype, steps) in manifest["metrics"].items()
    }
    hashes = {name: manifest[name] for name in ("dtypes", "args", "programs", "jax")}
    plan = Plan(
        points,
        tuple(manifest["seeds"]),
        manifest["objective"],
        manifest["mode"],
        manifest["every"],
        metrics,
        lambda: hashes,
    )
    return plan, _read_rounds(folder, plan, np.arange(len(points)))


def _manifest(plan: Plan) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "points": [_encode(point) for point in plan.points],
        "static": sorted(plan.points.static),
        "seeds": list(plan.seeds),
        "objective": plan.objective,
        "mode": plan.mode,
        "every": plan.every,
        "metrics": {
            name: [str(metric.dtype), metric.shape[0] if metric.shape else None]
            for name, metric in plan.metrics.items()
        },
        **plan.fingerprint(),
    }


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        if manifest["format"] == FORMAT:
            return manifest
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path / MANIFEST} is damaged: {error!r}.") from error
    raise ValueError(
        f"{path} was written in format {manifest['format']}, this version reads {FORMAT}."
    )


def _extend(asked: dict[str, Any], before: dict[str, Any], path: Path) -> None:
    """Add what the folder's manifest has to `asked`; ValueError where they contradict."""

    def refuse(what: str, then: Any, now: Any):
        raise ValueError(
            f"{path} holds a sweep with {what}: {then} there, {now} here. Give another path, or "
            "call sweep as it was called."
        )

    for name in before["dtypes"].keys() & asked["dtypes"].keys():
        if asked["dtypes"][name] != before["dtypes"][name]:
            refuse(f"{name!r} of another dtype", before["dtypes"][name], asked["dtypes"][name])
    for name, what in SAME.items():
        if asked[name] != before[name]:
            refuse(what, before[name], asked[name])
    known, keys = list(_keys(before["points"])), list(_keys(asked["points"]))
    if missing := set(known) - set(keys):
        one = before["points"][known.index(min(missing))]
        refuse(
            "points that are not among these (points may be added, not left out)",
            f"{len(known)}, {one} for one",
            f"{len(keys)}",
        )
    if set(before["seeds"]) - set(asked["seeds"]):
        refuse("other seeds (seeds may be added)", before["seeds"], asked["seeds"])
    for structure, program in before["programs"].items():
        if asked["programs"].get(structure, program) != program:
            refuse(
                f"another train for {structure} (its code, or data that it closes over)",
                f"{program[:12]} by jax {before['jax']}",
                f"{asked['programs'][structure][:12]} by jax {asked['jax']}",
            )
    new = set(keys) - set(known)
    added = [point for key, point in zip(keys, asked["points"], strict=True) if key in new]
    asked["points"] = before["points"] + added
    for name in ("programs", "dtypes"):
        asked[name] = before[name] | asked[name]


def _round_files(path: Path) -> list[Path]:
    return sorted(file for file in path.glob("round-*.npz") if file.stem[6:].isdigit())


def _round_number(file: Path) -> int:
    return int(file.stem[6:])


def _read_rounds(path: Path, plan: Plan, places: np.ndarray) -> Trials:
    """The finished trials of the plan, whose points have these places in the manifest."""
    point_at = {place: i for i, place in enumerate(places.tolist())}
    seed_at = {seed: i for i, seed in enumerate(plan.seeds)}
    rounds = [_read_round(file, plan) for file in _round_files(path)]
    index = [
        point_at[p] * len(seed_at) + seed_at[s]
        for arrays in rounds
        for p, s in zip(arrays["point"].tolist(), arrays["seed"].tolist(), strict=True)
    ]
    none = plan.no_trials(0)
    join = lambda name, empty: np.concatenate([empty, *(arrays[name] for arrays in rounds)])
    return Trials(
        np.array(index, np.int64),
        {name: join("metric " + name, empty) for name, empty in none.metrics.items()},
        join("objective", none.objective),
        np.sum([none.seconds, *(arrays["seconds"] for arrays in rounds)], axis=0),
    )


def _read_round(file: Path, plan: Plan) -> dict[str, np.ndarray]:
    try:
        with open(file, "rb") as data, np.load(data, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        trials = len(arrays["point"])
        for name, metric in plan.metrics.items():
            x = arrays["metric " + name]
            x = x if x.dtype == metric.dtype else x.view(metric.dtype)  # bfloat16, stored as bytes
            if x.shape != (trials, *plan.shape(name)):
                raise ValueError(f"{name} has shape {x.shape}")
            arrays["metric " + name] = x
        if not trials == len(arrays["seed"]) == len(arrays["objective"]):
            raise ValueError("its arrays have different lengths")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{file} is damaged ({error!r}). Nothing was changed; move it away, and the trials "
            "that it held run again."
        ) from error
    return arrays


def _keys(points: Iterable[Any]) -> Iterator[str]:
    """A text for each encoded point; equal points differ by a number."""
    seen: collections.Counter[str] = collections.Counter()
    for point in points:
        text = json.dumps(point, sort_keys=True)
        yield f"{text} {seen[text]}"
        seen[text] += 1


def _encode(value: Any, name: str = "") -> Any:
    """As JSON has it; a tuple is marked, so that it comes back as one."""
    if isinstance(value, dict):
        return {key: _encode(x, name or key) for key, x in value.items()}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encode(x, name) for x in value]}
    raise ValueError(
        f"the axis {name!r} has the value {value!r}, a {type(value).__name__}, which a folder "
        "cannot hold, since nothing is pickled: give a string, and look the object up in train."
    )


def _decode(point: dict[str, Any]) -> dict[str, Any]:
    def value(x):
        if isinstance(x, dict):
            ((kind, items),) = x.items()
            return tuple(map(value, items)) if kind == "tuple" else list(map(value, items))
        return x

    return {name: value(x) for name, x in point.items()}


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror or error}") from error
