"""A sweep's folder, as it is read.

    manifest.json            the experiment: points, seeds, the schedule, hashes of the programs
    round-NNNNNN.npz         the metrics of some trials in some steps, as they were measured
    states-NNNNNN.npz        checkpoints: the states of trials under way
    final-POINT_SEED.npz     the final state of one trial
    decision-STEP.json       the decision of a scheduler at a rung
    .lock                    the lock of the one writer

Values that can be computed from the metrics are not stored. `storage/writer.py` has the order in
which the files are written.
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
# Fixes for a damaged file, by its kind.
ROUND = "Move it away: the trials that it held run again."
STATE = "Move it away: the trials whose states it held start again."
DECISION = (
    "Put a copy of it back, or pass another path. The scheduler cannot decide again, because "
    "trials have already followed this decision."
)
WHOLE = "Put a copy of it back, or pass another path."


class Listing:
    """The names of a folder's files, listed once.

    Args:
      path: the folder.
    """

    def __init__(self, path: Path):
        self._names = sorted(os.listdir(path))
        self.path = path

    def names(self, kind: str) -> list[str]:
        """Return the names of the files of a kind, sorted."""
        return [name for name in self._names if NAMES[kind].fullmatch(name)]

    def next(self, kind: str) -> int:
        """Return a number above those of all files of this kind. Numbers may be missing, because
        you may move files away."""
        return max((int(name[len(kind) + 1 : -4]) for name in self.names(kind)), default=-1) + 1

    def written(self) -> list[str]:
        """Return the names of all files except the lock and partial files of a killed writer."""
        return [name for name in self._names if name != LOCK and not _is_left_over(name)]

    def left_over(self) -> list[str]:
        """Return the names of the partial files of a killed writer."""
        return [n for n in self._names if _is_left_over(n) and (self.path / n).is_file()]


def _is_left_over(name: str) -> bool:
    """Return whether a name is that of a partial file of this library."""
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
    """A folder that is read: its manifest, and the files that count.

    The manifest's owner is the last call that wrote the folder. A file counts if this call wrote
    it, or if the manifest lists it, because it already counted when this call began. A file that
    an earlier call added later does not count: that call had lost the folder to its successor.

    A decision counts whoever wrote it. It is a pure function of metrics in the folder, and you may
    have put a copy of its file back.

    Args:
      path: the folder, which has a manifest.
      listing: the folder's files, listed before the manifest is read. The manifest is then at
        least as new as each listed file.
    """

    def __init__(self, path: Path, listing: Listing):
        self.path, self.listing = path, listing
        with damaged(path / MANIFEST, WHOLE):
            self.header, self.manifest = read_json(path / MANIFEST)
            self.spec = spec_of(self.manifest)
        self._known = set(self.manifest["files"])

    def _check_owner(self, header: Header) -> None:
        """Raise FileError for a file of a later call than the manifest."""
        if header.owner > self.header.owner:
            raise FileError(
                f"call {header.owner} wrote it, but an earlier call, {self.header.owner}, wrote "
                "the manifest"
            )

    def _counts(self, name: str, header: Header) -> bool:
        """Return whether a file counts."""
        return header.owner == self.header.owner or name in self._known

    def each(self, kind: str, remedy: str, use: Callable[[Arrays], T]) -> dict[str, T]:
        """Return the results of `use` for the files of a kind that count, by file name, in order.

        Args:
          kind: the kind of the files, a key of `NAMES`.
          remedy: the fix for a damaged file.
          use: the function to call with each open file.

        Raises:
          ValueError: for a damaged file.
        """
        found = {}
        for name in self.listing.names(kind):
            file = self.path / name
            with damaged(file, remedy), open_arrays(file, self.header.sweep) as stored:
                self._check_owner(stored.header)
                if self._counts(name, stored.header):
                    found[name] = use(stored)
        return found

    def decisions(self) -> list[dict[str, Any]]:
        """Return the decisions as JSON, in order; ValueError for a damaged file."""
        found = []
        for name in self.listing.names("decision"):
            with damaged(self.path / name, DECISION):
                header, decided = read_json(self.path / name, self.header.sweep)
                self._check_owner(header)
                AppliedDecision.decode(decided)
                found.append(decided)
        return found
