"""A folder's `manifest.json`, which describes its experiment: written, read, checked, extended."""

import collections
import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import jax
import numpy as np

from rmsprop_jax._tune.experiment_spec import ExperimentSpec
from rmsprop_jax._tune.options import Options
from rmsprop_jax._tune.space.distributions import decode_distribution, encode_distribution
from rmsprop_jax._tune.space.points import MADE, Points
from rmsprop_jax._tune.space.static_groups import StaticGroup, group_points
from rmsprop_jax._tune.space.values import decode, encode
from rmsprop_jax._tune.storage.arrays import FileError
from rmsprop_jax._tune.training.checks import Metrics
from rmsprop_jax._tune.training.fingerprint import Fingerprint
from rmsprop_jax._tune.training.schedule import Stepwise, decoded_schedule

Manifest: TypeAlias = dict[str, Any]

# Entries that must be equal for a folder to resume. `extended` compares other entries by rules.
SAME = {
    "record_every": "another record_every",
    "static": "other static names",
    "args": "other args",
    "metrics": "other metrics",
}
DEPTH = 300  # nested lists and dicts of a manifest; each level of a value takes two
LAST_STEP = 2**53


ENTRIES: dict[str, Callable[[ExperimentSpec], Any]] = {
    "points": lambda s: [{n: encode(x, n) for n, x in point.items()} for point in s.points],
    "static": lambda s: sorted(s.points.static),
    "drawn": lambda s: _drawn(s.points),
    "seeds": lambda s: list(s.seeds),
    "record_every": lambda s: s.record_every,
    "training": lambda s: s.schedule.encode(),
    "metrics": lambda s: {n: [str(m.dtype), len(m.shape)] for n, m in s.metrics[0].items()},
    "lengths": lambda s: _by_group(s, [_lengths(one) for one in s.metrics]),
    "dtypes": lambda s: s.fingerprint.dtypes,
    "args": lambda s: s.fingerprint.args,
    "programs": lambda s: _by_group(s, s.fingerprint.programs),
    "constants": lambda s: _by_group(s, s.fingerprint.constants),
}
"""For each entry of a manifest, except the objective and the mode, its value for an experiment."""


def remembered_entries() -> list[str]:
    """Return the entries of a manifest that follow from the arguments of a call."""
    each = (field.metadata["remembered"] for field in dataclasses.fields(Options))
    return list(dict.fromkeys(name for names in each for name in names))


def manifest_of(spec: ExperimentSpec, objective: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of an experiment as JSON.

    Args:
      spec: the experiment.
      objective: the entries "objective" and "mode", as `ObjectiveSpec.noted` returns them.
    """
    entries = {
        n: objective[n] if n in objective else ENTRIES[n](spec) for n in remembered_entries()
    }
    return entries | {"jax": spec.fingerprint.jax}


def _by_group(spec: ExperimentSpec, each: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(map(_group_name, spec.groups), each, strict=True))


def _lengths(metrics: Metrics) -> dict[str, int]:
    return {name: m.shape[0] for name, m in metrics.items() if m.shape}


def _group_name(group: StaticGroup) -> str:
    """Return a text that names a static group in a manifest."""
    static = {name: encode(x, name) for name, x in group.static.items()}
    return json.dumps([static, sorted(group.dtypes)], sort_keys=True)


def _drawn(points: Points) -> dict[str, Any]:
    """Return how points were made. The space is None if a folder cannot hold its choices."""
    space = None
    if points.space is not None:
        with contextlib.suppress(ValueError):
            space = {name: encode_distribution(x, name) for name, x in points.space.items()}
    return {"method": points.method, "space": space}


def points_of(manifest: dict[str, Any]) -> Points:
    """Return the points that a manifest names."""
    decoded = ({name: decode(x) for name, x in point.items()} for point in manifest["points"])
    points, drawn = Points.of(list(decoded), manifest["static"]), manifest["drawn"]
    space = drawn["space"] and {n: decode_distribution(x) for n, x in drawn["space"].items()}
    return points.drawn(drawn["method"], space)


def spec_of(manifest: dict[str, Any]) -> ExperimentSpec:
    """Return the experiment that a manifest describes; any exception if it is inconsistent."""
    if isinstance(manifest, dict):  # the first folders did not say how their points were made
        manifest.setdefault("drawn", {"method": "list", "space": None})
    _check(manifest)
    points = points_of(manifest)
    groups = group_points(points)
    texts = [_group_name(group) for group in groups]
    for name in ("lengths", "programs", "constants"):
        _require(set(manifest[name]) == set(texts), name, list(manifest[name]))
    hashes = {name: [manifest[name][t] for t in texts] for name in ("programs", "constants")}
    fingerprint = Fingerprint.of(manifest["dtypes"], manifest["args"], manifest["jax"], hashes)
    metrics = []
    for text in texts:
        lengths, shaped = manifest["lengths"][text], {}
        for name, (dtype, rank) in manifest["metrics"].items():
            shape = (lengths[name],) if rank else ()
            shaped[name] = jax.ShapeDtypeStruct(shape, np.dtype(dtype))
        metrics.append(shaped)
    return ExperimentSpec(
        points,
        tuple(manifest["seeds"]),
        manifest["record_every"],
        groups,
        metrics,
        fingerprint,
        decoded_schedule(manifest["training"]),
    )


def _require(holds: bool, name: str, value: Any) -> None:
    if not holds:
        raise FileError(f"its {name} is {repr(value)[:100]}")


def _check(manifest: dict[str, Any]) -> None:
    """Raise FileError for an entry of another type, or a number out of its range."""
    wanted = {*remembered_entries(), "jax", "files"}
    _require(isinstance(manifest, dict) and set(manifest) == wanted, "fields", list(manifest))
    _require(_depth(manifest) <= DEPTH, "depth", _depth(manifest))
    is_list = lambda x, kind: isinstance(x, list) and all(type(one) is kind for one in x)
    is_dict = lambda x, kinds: isinstance(x, dict) and all(type(one) in kinds for one in x.values())
    is_step = lambda x: type(x) is int and 0 < x <= LAST_STEP
    for name, fits in (
        ("points", lambda x: is_list(x, dict) and x),
        ("static", lambda x: is_list(x, str)),
        ("drawn", lambda x: set(x) == {"method", "space"} and x["method"] in MADE),
        ("seeds", lambda x: is_list(x, int) and x and len(set(x)) == len(x)),
        ("objective", lambda x: is_dict(x, [str]) and len(x) == 1),
        ("mode", lambda x: x in ("min", "max")),
        ("record_every", lambda x: is_dict(x, [int]) and all(map(is_step, x.values()))),
        ("training", lambda x: x is None or isinstance(x, dict)),
        ("metrics", lambda x: is_dict(x, [list]) and x),
        ("lengths", lambda x: is_dict(x, [dict])),
        ("dtypes", lambda x: is_dict(x, [str])),
        ("args", lambda x: x is None or isinstance(x, str)),
        ("programs", lambda x: is_dict(x, [str])),
        ("constants", lambda x: is_dict(x, [str])),
        ("jax", lambda x: isinstance(x, str)),
        ("files", lambda x: is_list(x, str)),
    ):
        _require(bool(fits(manifest[name])), name, manifest[name])
    for name, metric in manifest["metrics"].items():
        fits = len(metric) == 2 and type(metric[0]) is str and metric[1] in (0, 1)
        _require(fits and not np.dtype(metric[0]).hasobject, f"metric {name!r}", metric)
    ((kind, name),) = manifest["objective"].items()
    known = name in manifest["metrics"] if kind == "metric" else kind in ("function", "several")
    _require(known, "objective", manifest["objective"])
    series = {name for name, (_, rank) in manifest["metrics"].items() if rank}
    _require(set(manifest["record_every"]) <= series, "record_every", manifest["record_every"])
    for lengths in manifest["lengths"].values():
        _require(set(lengths) == series and all(map(is_step, lengths.values())), "lengths", lengths)
    if (training := manifest["training"]) is not None:
        _require(
            set(training) == {field.name for field in dataclasses.fields(Stepwise)},
            "training",
            training,
        )
        steps, every, rungs = (training[x] for x in ("steps", "evaluate_every", "rungs"))
        _require(is_step(steps), "steps", steps)
        _require(is_step(every) and every <= steps, "evaluate_every", every)
        fits = is_list(rungs, int) and rungs == sorted(set(rungs))
        _require(fits and all(0 < x < steps for x in rungs), "rungs", rungs)
        scheduler, evaluations = training["scheduler"], training["evaluations"]
        _require(scheduler is None or isinstance(scheduler, dict), "scheduler", scheduler)
        known = [[name, manifest["metrics"][name][0]] for name, _ in evaluations]
        _require(evaluations == known, "evaluations", evaluations)
        for lengths in manifest["lengths"].values():
            own = {n: x for n, x in lengths.items() if n not in dict(evaluations)}
            _require(set(own.values()) <= {steps}, "lengths", lengths)


def _depth(x: Any) -> int:
    """Return the depth to which lists and dicts are nested."""
    depth, level = 0, [x]
    while level:
        nested = [one for one in level if isinstance(one, dict | list)]
        each = [one.values() if isinstance(one, dict) else one for one in nested]
        level, depth = [inside for some in each for inside in some], depth + 1
    return depth


def bytes_of(spec: ExperimentSpec, trials: int) -> int:
    """Return the bytes of the metrics of this many trials, and of the steps of their series."""
    total = 0
    for name in spec.metrics[0]:
        columns = 1
        if spec.has_steps(name):
            every = spec.record_every.get(name, 1)
            columns = sum(math.ceil(one[name].shape[0] / every) + 1 for one in spec.metrics)
        total += columns * (trials * spec.dtype(name).itemsize + np.dtype(np.int64).itemsize)
    return total


# Another call, and the folder of an earlier one.


def extended(
    asked: Manifest, before: Manifest, points: Points, stored: Points, path: Path
) -> tuple[Manifest, list[int]]:
    """Return the manifest of a call joined to the manifest of its folder, and each point's place.

    This is the rule by which a folder resumes. The call must agree with the folder on:

    - the version of JAX;
    - the hash of `args` (which a folder that was saved with very large `args` does not have, so
      that it never resumes), `record_every`, the static names, and the names, dtypes, and ranks of
      the metrics;
    - the dtypes of traced hyperparameters that both have;
    - the programs, and the arrays that they close over, of each static group that both have;
    - the kind of `train`, the scheduler, its rungs, `evaluate_every`, and the metrics of
      `evaluate`.

    The call may have more points and more seeds, but no fewer. It may have more steps, but no
    fewer. With a scheduler the points, their order, the seeds, and the steps must be equal. The
    objective, the mode, and all other arguments may differ.

    `FolderWriter._check_rest` adds two rules that depend on the trials on disk. More steps need
    the final state of each complete trial. A scheduler keeps its objective and mode until all
    trials have ended.

    Args:
      asked: the manifest of the call.
      before: the manifest of the folder.
      points: the points of the call.
      stored: the points of the folder. They keep their places, and new points follow.
      path: the folder.

    Raises:
      ValueError: if the two manifests contradict each other.
    """

    refuse = functools.partial(_refuse, path)
    known, keys = list(_keys(points, stored)), list(_keys(points, points))
    _check_entries(asked, before, refuse)
    _check_training(asked["training"], before["training"], refuse)
    _check_points(asked, before, stored, known, keys, refuse)
    _check_programs(asked, before, refuse)
    new = set(keys) - set(known)
    added = [point for key, point in zip(keys, asked["points"], strict=True) if key in new]
    of_both = {name: before[name] | asked[name] for name in ("programs", "constants", "lengths")}
    of_both["dtypes"] = before["dtypes"] | asked["dtypes"]
    place = {key: i for i, key in enumerate([*known, *(key for key in keys if key in new)])}
    manifest = asked | of_both | {"points": before["points"] + added}
    return manifest, [place[key] for key in keys]


def _refuse(path: Path, what: str, then: Any, now: Any, remedy: str = "") -> NoReturn:
    raise ValueError(
        f"{path} must hold the same sweep to resume, but was written with {what}: {then} in "
        f"the folder, {now} in this call. "
        f"{remedy or 'Pass another path, or make the same call as before.'}"
    )


def _check_entries(asked: Manifest, before: Manifest, refuse: Callable[..., None]) -> None:
    """Refuse a folder with another version of JAX, other dtypes, or another entry of `SAME`."""
    if before["jax"] != asked["jax"]:
        refuse(
            "another version of jax",
            before["jax"],
            asked["jax"],
            "The numbers of another version may differ in the last digits. Install "
            f"jax=={before['jax']}, or pass another path. SweepResult.load reads the folder with "
            "any version.",
        )
    for name in before["dtypes"].keys() & asked["dtypes"].keys():
        if asked["dtypes"][name] != before["dtypes"][name]:
            refuse(f"{name!r} of another dtype", before["dtypes"][name], asked["dtypes"][name])
    if before["args"] is None:
        refuse(
            "args that were too large to hash",
            "no hash",
            asked["args"],
            "Pass another path. SweepResult.load reads this folder.",
        )
    for name, what in SAME.items():
        if asked[name] != before[name]:
            refuse(what, before[name], asked[name])


def _check_points(
    asked: Manifest,
    before: Manifest,
    stored: Points,
    known: Sequence[Hashable],
    keys: Sequence[Hashable],
    refuse: Callable[..., None],
) -> None:
    """Refuse a call with fewer points or seeds, or under a scheduler with others.

    Args:
      asked: the manifest of the call.
      before: the manifest of the folder.
      stored: the points of the folder.
      known: the keys of the points of the folder.
      keys: the keys of the points of the call.
      refuse: raises the error.
    """
    if missing := set(known) - set(keys):
        one = next(point for point, key in zip(stored, known, strict=True) if key in missing)
        refuse(
            "points that this call leaves out (a call may only add points)",
            f"{len(known)} points, such as {one},",
            f"{len(keys)} points",
        )
    if set(before["seeds"]) - set(asked["seeds"]):
        refuse("other seeds (a call may only add seeds)", before["seeds"], asked["seeds"])
    same = keys == known and before["seeds"] == asked["seeds"]
    if before["training"] and before["training"]["scheduler"] and not same:
        refuse(
            "a scheduler, whose decisions are about its points and seeds",
            f"{len(known)} points × {len(before['seeds'])} seeds",
            f"{len(keys)} points × {len(asked['seeds'])} seeds, or another order,",
        )


def _check_programs(asked: Manifest, before: Manifest, refuse: Callable[..., None]) -> None:
    """Refuse a call whose programs, or the arrays that they close over, differ in a group."""
    for group in before["programs"].keys() & asked["programs"].keys():
        for name, what in (
            ("programs", "another train (its code, data that it closes over, or what np.random or "
                "the clock returned while it was traced)"),
            ("constants", "other data that train closes over"),
        ):  # fmt: skip
            then, now = before[name][group], asked[name][group]
            if then != now:
                refuse(f"{what} in the static group {group}", then[:12], now[:12])


def _check_training(asked: Any, before: Any, refuse: Callable[..., None]) -> None:
    """Refuse a folder that was written with another schedule, except for more steps."""
    if (asked is None) != (before is None):
        kind = lambda stages: "a function" if stages is None else "a Training"
        refuse("another kind of training", kind(before), kind(asked))
    if asked is None:
        return
    if asked["scheduler"] != before["scheduler"]:
        refuse(*_difference(before["scheduler"], asked["scheduler"]))
    for name, what in (
        ("evaluate_every", "another evaluate_every"),
        ("evaluations", "other metrics of evaluate"),
    ):
        if asked[name] != before[name]:
            more = asked["steps"] != before["steps"] and name == "evaluate_every"
            remedy = f"To run more steps, pass evaluate_every={before[name]}." if more else ""
            refuse(what, before[name] or "none", asked[name] or "none", remedy)
    if asked["steps"] < before["steps"]:
        refuse("more steps", before["steps"], asked["steps"])
    if asked["steps"] > before["steps"] and before["scheduler"]:
        refuse(
            "a scheduler and other steps",
            before["steps"],
            asked["steps"],
            "Pruned trials cannot resume. Sweep the best points again with another path, or run "
            "one of them on: training.run(..., state=result.state(record), start=...).",
        )
    if asked["rungs"] != before["rungs"]:
        refuse("other rungs of its scheduler", before["rungs"], asked["rungs"])


def _difference(before: Any, asked: Any) -> tuple[str, Any, Any]:
    """Return the difference between two schedulers: its name, its value before, and its value now.

    Args:
      before: the settings of the folder's scheduler, or None.
      asked: the settings of the call's scheduler, or None.
    """
    fields = lambda one: one.get("fields") if one else None
    then, now = fields(before), fields(asked)
    if not then or not now or before["class"] != asked["class"]:
        plain = lambda one: one if one is None or len(one) > 1 else one["class"]
        said = lambda one: "none" if one is None else plain(one)
        return "another scheduler", said(before), said(asked)
    other = [name for name in then if then[name] != now.get(name)]
    some = lambda fields: {name: fields.get(name) for name in other}
    what = f"another scheduler ({asked['class']} with another {' and '.join(other)})"
    return what, some(then), some(now)


def _keys(like: Points, points: Points) -> Iterator[Hashable]:
    """Yield a key for each point, by the dtypes of `like`. Equal points get numbered keys."""
    seen: collections.Counter[Hashable] = collections.Counter()
    for key in map(like.key, points):
        yield key, seen[key]
        seen[key] += 1
