"""The final states that a result returns: in memory, or one per file of the sweep's folder."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rmsprop_jax._tune.storage.arrays import damaged, open_arrays
from rmsprop_jax._tune.storage.folder import Listing, final_file, place_and_seed
from rmsprop_jax._tune.training.state_spec import StateForm, StateSpec, leaves_of


@dataclasses.dataclass(frozen=True)
class FinalFiles:
    """The files of a sweep's final states.

    Args:
      folder: the folder of the sweep.
      places: int array, shape (points,): the place of each point in the manifest.
      seeds: the seeds of the sweep.
      sweep: the id of the sweep.
    """

    folder: Path
    places: np.ndarray
    seeds: tuple[int, ...]
    sweep: str

    def file(self, trial: int) -> Path:
        """Return the path of a trial's final state. The file may not exist."""
        point, seed = divmod(trial, len(self.seeds))
        return self.folder / final_file(int(self.places[point]), self.seeds[seed])

    def trials(self) -> list[int]:
        """Return the trials whose final state is on disk."""
        if not self.folder.is_dir():
            return []
        found = map(place_and_seed, Listing(self.folder).names("final"))
        point_at = {place: i for i, place in enumerate(self.places.tolist())}
        seed_at = {seed: i for i, seed in enumerate(self.seeds)}
        return [
            point_at[place] * len(seed_at) + seed_at[seed]
            for place, seed in found
            if place in point_at and seed in seed_at
        ]


class KeptState(NamedTuple):
    """A trial's final state."""

    leaves: list[np.ndarray]
    """The leaves, as plain arrays."""
    form: StateForm
    """The part of its structure that a file holds."""
    spec: StateSpec | None
    """Its structure, if it is known."""


@dataclasses.dataclass(frozen=True)
class KeptStates:
    """The final states that a sweep kept.

    Args:
      memory: the leaves of each trial's state in memory.
      specs: the structure of the state of each static group; empty for a loaded result.
      files: the files of states on disk; None without a folder.
      forms: for each static group the part of the structure that can be pickled; used without
        `specs`.
    """

    memory: Mapping[int, list[np.ndarray]] = dataclasses.field(default_factory=dict)
    specs: Sequence[StateSpec] = ()
    files: FinalFiles | None = None
    forms: Sequence[StateForm] = ()

    def without_structure(self) -> "KeptStates":
        """Return the same states for a pickle, without `specs`, which may hold functions."""
        forms = [spec.form for spec in self.specs] or self.forms
        return KeptStates(self.memory, (), self.files, forms)

    def trials(self) -> list[int]:
        """Return the trials whose state was kept."""
        return sorted({*self.memory, *(self.files.trials() if self.files else ())})

    def get(self, trial: int, group: int) -> KeptState | None:
        """Return the state of a trial; None if it was not kept.

        Args:
          trial: the number of the trial.
          group: the number of its static group.
        """
        spec = self.specs[group] if self.specs else None
        if trial in self.memory:
            leaves = [x.copy() for x in self.memory[trial]]
            form = spec.form if spec else self.forms[group]
        elif self.files is not None and (file := self.files.file(trial)).exists():
            remedy = "Train the trial again with result.retrain."
            with damaged(file, remedy), open_arrays(file, self.files.sweep) as stored:
                form = StateForm(
                    stored["impls"].tolist(), str(stored["tree"]), stored["shardings"].tolist()
                )
                leaves = [x[0] for x in leaves_of(stored)]
        else:
            return None
        return KeptState(leaves, form, spec or form.spec(leaves))
