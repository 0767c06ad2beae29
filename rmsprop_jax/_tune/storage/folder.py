"""A sweep's folder: what was asked in `manifest.json`, what was measured in `round-*.npz`.

    manifest.json            what was asked: points, seeds, the schedule, hashes of the programs
    round-NNNNNN.npz         what some trials measured in some steps: metrics as they were measured
    states-NNNNNN.npz        checkpoints: states of trials under way
    final-POINT_SEED.npz     the final state of a trial that is kept
    decision-STEP.json       what a scheduler decided at a rung
    .lock                    held by the one writer

Nothing is stored that can be computed from the metrics.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rmsprop_jax._tune.storage.arrays import (
    Arrays,
    FileError,
    Header,
    damaged,
    open_arrays,
    read_json,
)
from rmsprop_jax._tune.storage.manifest import spec_of
from rmsprop_jax._tune.trials.decision_log import AppliedDecision

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


class Listing:
    """The files of a folder that this library can have written, by their names."""

    def __init__(self, path: Path):
        self._names = sorted(os.listdir(path))
        self.path = path

    def names(self, kind: str) -> list[str]:
        """Return the files of a kind, in order."""
        return [name for name in self._names if NAMES[kind].fullmatch(name)]

    def next(self, kind: str) -> int:
        """Return a number above those of all files of this kind; some may have been moved away."""
        return max((int(name[len(kind) + 1 : -4]) for name in self.names(kind)), default=-1) + 1

    def written(self) -> list[str]:
        """Return all files except the lock and the half-written files of a killed writer."""
        return [name for name in self._names if name != LOCK and not _is_left_over(name)]

    def left_over(self) -> list[str]:
        """Return the half-written files of a killed writer."""
        return [n for n in self._names if _is_left_over(n) and (self.path / n).is_file()]


def _is_left_over(name: str) -> bool:
    """Return whether a name is that of a half-written file of this library."""
    own = name.removeprefix(".").removesuffix(".tmp")
    is_own = own == MANIFEST or any(kind.fullmatch(own) for kind in NAMES.values())
    return is_own and name == f".{own}.tmp"


def checkpoint_file(number: int) -> str:
    """Return the name of a file of checkpoints."""
    return f"states-{number:06d}.npz"


def checkpoint_number(name: str) -> int:
    """Return the number of a file of checkpoints."""
    return int(name[len("states-") : -len(".npz")])


def final_file(place: int, seed: int) -> str:
    """Return the file name of a final state."""
    return f"final-{place:06d}_{seed}.npz"


def place_and_seed(name: str) -> tuple[int, int]:
    """Return the place of the point and the seed of a final state, by its file name."""
    found = NAMES["final"].fullmatch(name)
    assert found is not None
    return int(found[1]), int(found[2])


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
            self.spec = spec_of(self.manifest)
        self._known = set(self.manifest["files"])

    def counts(self, name: str, header: Header) -> bool:
        if header.owner > self.header.owner:
            raise FileError(f"call {header.owner} wrote it, and the manifest is of an earlier one")
        return header.owner == self.header.owner or name in self._known

    def each(self, kind: str, remedy: str, use: Callable[[Arrays], T]) -> dict[str, T]:
        """Return what `use` returns for each file of a kind that counts, in order."""
        found = {}
        for name in self.listing.names(kind):
            file = self.path / name
            with damaged(file, remedy), open_arrays(file, self.header.sweep) as stored:
                if self.counts(name, stored.header):
                    found[name] = use(stored)
        return found

    def decisions(self) -> list[dict[str, Any]]:
        """Return the decisions, in order."""
        found = []
        for name in self.listing.names("decision"):
            with damaged(self.path / name, DECISION):
                header, decided = read_json(self.path / name, self.header.sweep)
                self.counts(name, header)
                AppliedDecision.decode(decided)
                found.append(decided)
        return found
