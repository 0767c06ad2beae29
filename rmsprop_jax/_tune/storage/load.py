"""A folder as `SweepResult.load` reads it."""

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
    """What a folder holds."""

    spec: ExperimentSpec
    data: TrialData
    """Of the trials that have begun."""
    objective: dict[str, Any]
    """The objective and the mode of the last call that ended well."""
    decisions: list[AppliedDecision]
    final_files: FinalFiles


def load_folder(path: str | os.PathLike[str]) -> LoadedFolder:
    """Return what a folder holds.

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
