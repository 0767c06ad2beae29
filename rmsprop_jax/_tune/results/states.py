"""The final states that a sweep kept: read for a user, and written to a new folder."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from rmsprop_jax._tune.storage.kept_states import KeptStates
from rmsprop_jax._tune.storage.writer import FolderWriter
from rmsprop_jax._tune.training.state_spec import StateSpec
from rmsprop_jax._tune.trial_mesh import WHOLE, decoded, names_of, submesh_of


def kept_state(
    kept: KeptStates | None, trial: int, group: int, name: str, like: Any, mesh: Mesh | None
) -> Any:
    """Return the final state of a trial as a pytree.

    Args:
      kept: the states that were kept; None for a function.
      trial: the number of the trial.
      group: the number of its static group.
      name: the text that names the trial in errors.
      like: a state of the same structure, or None; a user's pytree.
      mesh: a mesh on which to place the state, sharded as it was; None for NumPy arrays.
    """
    found = None if kept is None else kept.get(trial, group)
    if found is None:
        raise ValueError(
            f"keep_states must include {name} to keep its state; a function has no states. Pass "
            'keep_states="all" to sweep, or train the point again by result.retrain(record, '
            "seed=...)."
        )
    arrays, spec = found.leaves, found.spec
    if like is not None:
        spec = StateSpec.like(like)
        leaves = [(x.shape, x.dtype) for x in arrays]
        if (given := [(x.shape, x.dtype) for x in spec.data]) != leaves:
            raise ValueError(
                f"like must have leaves as the state, {leaves}, got {given}. Pass "
                "like=jax.eval_shape(init, hp, key)."
            )
    if spec is None:
        raise ValueError(
            "like must be given for a state with other nodes than dicts, lists, and tuples, since "
            "its structure was not stored. Pass like=jax.eval_shape(init, hp, key)."
        )
    if mesh is None:
        return spec.tree(arrays)
    submesh = submesh_of(mesh)
    specs = list(map(decoded, found.form.shardings)) or [WHOLE] * len(arrays)
    missing = {name for one in specs for name in names_of(one)}.difference(submesh.axis_names)
    if missing:
        raise ValueError(
            f"mesh must have the axes over which the state was sharded, got {submesh} without "
            f"{sorted(missing)}. Pass a mesh with these axes."
        )
    each = zip(arrays, specs, strict=True)
    return spec.tree([jax.device_put(x, NamedSharding(submesh, one)) for x, one in each])


def save_states(
    kept: KeptStates, folder: FolderWriter, group_of: np.ndarray, steps_completed: np.ndarray
) -> None:
    """Write the states that were kept to a folder.

    Args:
      kept: the states.
      folder: the folder.
      group_of: int array: the static group of each trial.
      steps_completed: int array: the steps that each trial has run.
    """
    for trial in kept.trials():
        found = kept.get(trial, int(group_of[trial]))
        if found is not None:
            step, leaves = int(steps_completed[trial]), [leaf[None] for leaf in found.leaves]
            folder.write_final_state(trial, step, leaves, found.form)
