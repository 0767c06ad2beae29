"""The final states that a result gives: in memory, or each in a file of its own."""

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
    """Where the final states of a sweep are on disk.

    Args:
      folder: of the sweep.
      places: for each point its place in the manifest.
      seeds: of the sweep.
      sweep: the sweep's id.
    """

    folder: Path
    places: np.ndarray
    seeds: tuple[int, ...]
    sweep: str

    def file(self, trial: int) -> Path:
        """Return the file of a trial's final state, whether it is there or not."""
        point, seed = divmod(trial, len(self.seeds))
        return self.folder / final_file(int(self.places[point]), self.seeds[seed])

    def trials(self) -> list[int]:
        """Return the trials whose final state is there."""
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
    form: StateForm
    spec: StateSpec | None
    """Its structure, where that is known."""


@dataclasses.dataclass(frozen=True)
class KeptStates:
    """The final states that a sweep kept.

    Args:
      memory: for each trial its leaves.
      specs: for each static group its state.
      files: where states are on disk.
      forms: for each static group what is known of its state where `specs` are not there.
    """

    memory: Mapping[int, list[np.ndarray]] = dataclasses.field(default_factory=dict)
    specs: Sequence[StateSpec] = ()
    files: FinalFiles | None = None
    forms: Sequence[StateForm] = ()

    def without_structure(self) -> "KeptStates":
        """Return the same, as it can be pickled: a structure may hold functions."""
        forms = [spec.form for spec in self.specs] or self.forms
        return KeptStates(self.memory, (), self.files, forms)

    def trials(self) -> list[int]:
        """Return the trials with a state."""
        return sorted({*self.memory, *(self.files.trials() if self.files else ())})

    def get(self, trial: int, group: int) -> KeptState | None:
        """Return the state of a trial of a static group; None where it was not kept."""
        spec = self.specs[group] if self.specs else None
        if trial in self.memory:
            leaves = [x.copy() for x in self.memory[trial]]
            form = spec.form if spec else self.forms[group]
        elif self.files is not None and (file := self.files.file(trial)).exists():
            remedy = "result.retrain trains it again"
            with damaged(file, remedy), open_arrays(file, self.files.sweep) as stored:
                form = StateForm(stored["impls"].tolist(), str(stored["tree"]))
                leaves = [x[0] for x in leaves_of(stored)]
        else:
            return None
        return KeptState(leaves, form, spec or form.spec(leaves))
