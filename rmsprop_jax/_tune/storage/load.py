"""Read a folder for `SweepResult.load`."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rmsprop_jax._tune.experiment_spec import ExperimentSpec
from rmsprop_jax._tune.storage.folder import MANIFEST, Folder, Listing
from rmsprop_jax._tune.storage.kept_states import FinalFiles
from rmsprop_jax._tune.storage.paths import local_folder
from rmsprop_jax._tune.storage.rounds import read_rounds
from rmsprop_jax._tune.trials.data import TrialData
from rmsprop_jax._tune.trials.decision_log import AppliedDecision


class LoadedFolder(NamedTuple):
    """The contents of a folder."""

    spec: ExperimentSpec
    """The experiment of the folder's last call."""
    data: TrialData
    """The trials that have begun."""
    objective: dict[str, Any]
    """The objective and the mode in the manifest, as `ObjectiveSpec.noted` returns them."""
    decisions: list[AppliedDecision]
    """The decisions of the scheduler, in order."""
    final_files: FinalFiles
    """The files of final states."""


def load_folder(path: str | os.PathLike[str]) -> LoadedFolder:
    """Return the contents of a folder.

    Raises:
      ValueError: for a folder that is damaged, or that is not a sweep's.
    """
    folder = local_folder(path)
    if not folder.is_dir():
        raise ValueError(
            f"path must be a sweep's folder, got {folder}, which is not a folder. Pass the path of "
            "a sweep."
        )
    listing = Listing(folder)
    if not (folder / MANIFEST).exists():
        raise ValueError(
            f"path must be a sweep's folder, got {folder}, which has no {MANIFEST}. Pass the path "
            "of a sweep. If a sweep has just begun, wait until it has saved a trial."
        )
    stored = Folder(folder, listing)
    spec = stored.spec
    places = np.arange(len(spec.points))
    data, _ = read_rounds(stored, spec, places, every=False)
    decisions = [AppliedDecision.decode(one) for one in stored.decisions()]
    for decision in decisions:
        for point, reason in decision.pruned.items():
            data.pruned[data.number // len(spec.seeds) == point] = reason
    noted = {name: stored.manifest[name] for name in ("objective", "mode")}
    files = FinalFiles(Path(folder), places, spec.seeds, stored.header.sweep)
    return LoadedFolder(spec, data, noted, decisions, files)
