"""Weights & Biases: a run for each trial, in the group of its sweep."""

import json
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rmsprop_jax.loggers.base import INTERRUPTED, End, Logger, Rows, Run, library

STATUS, STEP = "trial/status", "trial/step"
EXIT_CODES = {"failed": 1, INTERRUPTED: 255}  # W&B's own code for Ctrl-C; all others are 0
OURS = ("id", "group", "name", "resume", "reinit")
MARK, BLOCK, HEADER = b":W&B\xe1\xbe\0", 32768, struct.Struct("<IHB")  # of a log of LevelDB
SECONDS = 30.0  # to wait for W&B to write its local files


class _Stored(NamedTuple):
    """A run that W&B has."""

    end: End | None
    """How it ended; None if it is open."""
    config: dict[str, Any]
    """Its hyperparameters."""
    names: set[str]
    """Its metrics."""
    step: int
    """Its last step."""


class WandB(Logger):
    """A callback that writes a run per trial to Weights & Biases, grouped by sweep.

    A trial's run has the hyperparameters and the seed as its config, and the values of each metric
    by step. When it has ended, its summary has `trial/step` and `trial/status`: "complete",
    "pruned", "failed", or "interrupted". The exit code is 0 for a complete or pruned trial, 1 for a
    failed one, and 255 for an interrupted one.

    With `mode="offline"`, a resumed trial has several local files of the same run. `wandb sync`
    uploads them in order. A run is open while its trial is under way, and takes memory and time to
    open, so TensorBoard and MLflow suit thousands of trials at once better.

    Args:
      **init: arguments of `wandb.init`, such as `project="sweeps"` or `mode="offline"`. The entries
        of `config` are added to each run. The logger sets `id`, `group`, `name`, `resume`, and
        `reinit`. By default, `settings` keeps the runs from printing and from storing the output.

    Raises:
      ImportError: without W&B, which the extra `wandb` installs.
      ValueError: for an argument that the logger sets.
    """

    def __init__(self, **init: Any):
        super().__init__()
        self._wandb = library("wandb", "wandb")
        for name in OURS:
            if name in init:
                raise ValueError(
                    f"init must leave out {name}, which the logger sets for each trial, got "
                    f"{name}={init[name]!r}. Remove it; project, tags, and job_type are free."
                )
        self._init: dict[str, Any] = {"settings": {"console": "off", "silent": True}} | init
        self._stored: dict[int, _Stored] = {}
        self._files: list[Path] = []  # of the offline runs that this call has ended

    def close(self) -> None:
        try:
            super().close()
        finally:  # the next call may read the files at once, but W&B writes them in the background
            record, deadline = self._record(), time.monotonic() + SECONDS
            for path in self._files:
                while not _has_exit(path, record) and time.monotonic() < deadline:
                    time.sleep(0.01)
            self._files.clear()

    def _find(self, sweep: str) -> dict[int, End | None]:
        given = self._init["settings"]
        given = given if isinstance(given, dict) else given.model_dump(exclude_unset=True)
        names = {"mode": "mode", "dir": "root_dir", "project": "project", "entity": "entity"}
        init = {names[k]: v for k, v in self._init.items() if k in names and v is not None}
        settings = self._wandb.setup().settings.model_copy(update=given | init)
        if settings.mode in ("offline", "dryrun"):
            self._stored = self._local(Path(settings.wandb_dir), sweep)
        elif settings.mode == "disabled":
            self._stored = {}
        else:
            self._stored = self._online(settings, sweep)
        return {number: stored.end for number, stored in self._stored.items()}

    def _local(self, folder: Path, sweep: str) -> dict[int, _Stored]:
        """Return the runs of a sweep in W&B's local files."""
        record = self._record()
        files: dict[int, list[tuple[float, _Stored]]] = {}
        for path in folder.glob(f"*run-*/run-{sweep}-*.wandb"):
            number = int(path.stem.rpartition("-")[2])
            files.setdefault(number, []).append(_read(path, record))
        stored = {}
        for number, found in files.items():
            parts = [part for _, part in sorted(found, key=lambda item: item[0])]
            stored[number] = _Stored(
                parts[-1].end,
                {k: v for part in reversed(parts) for k, v in part.config.items()},
                set().union(*(part.names for part in parts)),
                max(part.step for part in parts),
            )
        return stored

    def _record(self) -> Any:
        """Return the class of the records in W&B's local files."""
        return library("wandb.proto.wandb_internal_pb2", "wandb").Record

    def _online(self, settings: Any, sweep: str) -> dict[int, _Stored]:
        """Return the runs of a sweep that the server has."""
        path = "/".join(filter(None, [settings.entity, settings.project or "uncategorized"]))
        api = self._wandb.Api({"base_url": settings.base_url}, api_key=settings.api_key)
        stored = {}
        try:
            runs = list(api.runs(path, {"group": sweep}, per_page=500, lazy=False))
        except (ValueError, self._wandb.CommError):  # there is no such project yet
            runs = []
        for run in runs:
            summary = dict(run.summary)
            step, status = int(summary.get("_step", -1)), summary.get(STATUS, INTERRUPTED)
            is_open = run.state in ("running", "pending", "crashed")
            end = None if is_open else End(status, int(summary.get(STEP, step)))
            number = int(run.id.rpartition("-")[2])
            stored[number] = _Stored(end, dict(run.config), set(summary), step)
        return stored

    def _create(self, number: int) -> Run:
        handle = self._wandb.init(
            **self._init,
            id=f"{self._sweep}-{number}",
            group=self._sweep,
            name=f"trial-{number:05d}",
            reinit="create_new",
            resume="allow",
        )
        return Run(handle, floor=handle.step - 1)

    def _reopen(self, number: int) -> Run:
        run, stored = self._create(number), self._stored.pop(number)
        run.hyperparameters = {k: v for k, v in stored.config.items() if k != "_wandb"}
        # A server keeps the last config that it gets, and each local file has its own.
        run.handle.config.update(run.hyperparameters, allow_val_change=True)
        run.floor = max(run.floor, stored.step)
        run.last = dict.fromkeys(stored.names, run.floor)
        run.step = max(run.floor, 0)
        return run

    def _describe(self, run: Run, hyperparameters: dict[str, Any]) -> None:
        run.handle.config.update(hyperparameters)

    def _write(self, run: Run, rows: Rows) -> None:
        for step, row in rows.items():
            run.handle.log(row, step=step, commit=True)

    def _end(self, run: Run, end: End) -> None:
        run.handle.summary.update({STATUS: end.status, STEP: end.step})
        run.handle.finish(exit_code=EXIT_CODES.get(end.status, 0))
        if run.handle.offline:
            self._files.append(Path(run.handle.sync_dir, f"run-{run.handle.id}.wandb"))


def _read(path: os.PathLike[str], record: Any) -> tuple[float, _Stored]:
    """Return when a run's local file was begun, and what it holds.

    Args:
      path: the file.
      record: the class of W&B's records.
    """
    began, step, has_ended = 0.0, -1, False
    config, summary, names = dict[str, Any](), dict[str, Any](), set[str]()
    pairs = lambda items: {item.key or "/".join(item.nested_key): item.value_json for item in items}
    for data in _records(Path(path).read_bytes()):
        one = record.FromString(data)
        kind = one.WhichOneof("record_type")
        if kind == "run":
            began = one.run.start_time.seconds + one.run.start_time.nanos / 1e9
            config |= pairs(one.run.config.update)
        elif kind == "config":
            config |= pairs(one.config.update)
        elif kind == "history":
            row = pairs(one.history.item)
            names |= row.keys()
            step = max(step, int(json.loads(row.get("_step", "-1"))))
        elif kind == "summary":
            summary |= pairs(one.summary.update)
        elif kind == "exit":
            has_ended = True
    status, at = (json.loads(summary.get(k, "null")) for k in (STATUS, STEP))
    end = End(status or INTERRUPTED, step if at is None else at) if has_ended else None
    return began, _Stored(end, {k: json.loads(v) for k, v in config.items()}, names, step)


def _has_exit(path: Path, record: Any) -> bool:
    """Return whether a local file's last blocks have the end of the run."""
    with path.open("rb") as file:
        first = max(0, path.stat().st_size // BLOCK - 1) * BLOCK
        file.seek(first)
        data = file.read()
    kinds = [record.FromString(part).WhichOneof("record_type") for part in _records(data, first)]
    return "exit" in kinds


def _records(data: bytes, first: int = 0) -> Iterator[bytes]:
    """Yield the records of a log of LevelDB, W&B's local file, until one is not whole.

    Args:
      data: the contents of the file, from the start of a block on.
      first: the place of this block in the file.
    """
    place, record = 0 if first else len(MARK), None
    while place + HEADER.size <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER.size:
            place += left
            continue
        _, length, kind = HEADER.unpack_from(data, place)
        place += HEADER.size
        if kind == 0 or place + length > len(data):
            return
        part = data[place : place + length]
        place += length
        if kind in (1, 2):  # whole, first
            record = part
        elif record is not None:
            record += part
        if kind in (1, 4) and record is not None:  # whole, last
            yield record
