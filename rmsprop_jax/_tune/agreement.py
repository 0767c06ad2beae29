"""Compare the arguments that all processes of a cluster must pass alike, before anything runs."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from rmsprop_jax._tune.options import Agreement, Options
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.training.fingerprint import hash_of_arrays

LONGEST = 60  # characters of a value that an error shows; a longer one is compared by its hash


def compared_arguments() -> list[str]:
    """Return the arguments on which all processes must agree; `train` last, since its programs
    follow from others."""
    names = [f.name for f in dataclasses.fields(Options) if f.metadata["agree"] is Agreement.ALL]
    return sorted(names, key=lambda name: name == "train")


def refuse_disagreement(cluster: Cluster, given: Mapping[str, Any], has_callback: bool) -> None:
    """Raise the same ValueError on all processes if their arguments differ.

    Args:
      cluster: the processes that make the call.
      given: for each compared argument the JSON that stands for it, from `Experiment.decisive`.
      has_callback: whether this process has a callback.
    """
    compared = compared_arguments()
    values = {name: _short(given[name]) for name in compared}
    each = cluster.meet("the arguments", [has_callback, values])
    leader_has_callback, first = each[0]
    for i, (one_has_callback, other) in enumerate(each):
        if one_has_callback and not leader_has_callback:
            raise ValueError(
                "callback must be passed on process 0, which alone calls it, got a callback on "
                f"process {i} only. Pass the same callback in every process, or only on process 0."
            )
        if unlike := [name for name in compared if first[name] != other[name]]:
            raise ValueError(
                f"{_listed(unlike)} must be the same on every process, got "
                + "; ".join(_difference(name, first[name], other[name], i) for name in unlike)
                + ". Make the same call in every process, or sweep separately with "
                "devices=jax.local_devices()."
            )


def described(value: Any) -> Any:
    """Return JSON that is equal in two processes for equal values.

    Functions and classes count by their qualified names, dataclasses by their fields, and objects
    of other kinds by their text, or by their type if the text has an address.
    """
    kind = type(value).__qualname__
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | complex | bytes):
        return [kind, repr(value)]
    if isinstance(value, np.ndarray | np.generic | jax.Array) and value.dtype != object:
        return [kind, hash_of_arrays(value)]
    if isinstance(value, Mapping):
        return [kind, *sorted(([described(k), described(x)] for k, x in value.items()), key=str)]
    if isinstance(value, tuple | list):
        return [kind, *map(described, value)]
    if isinstance(value, set | frozenset):
        return [kind, *sorted(map(described, value), key=str)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value)]
        return [kind, *([name, described(getattr(value, name, None))] for name in fields)]
    if (name := getattr(value, "__qualname__", None)) is not None:
        return [kind, getattr(value, "__module__", None), name]
    text = repr(value)
    return [kind] if " at 0x" in text else [kind, text]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST else "#" + hashlib.sha256(text.encode()).hexdigest()


def _difference(name: str, first: str, other: str, process: int) -> str:
    if first.startswith("#") or other.startswith("#"):
        return f"different contents of {name} on process 0 and process {process}"
    return f"{name}={first} on process 0 and {other} on process {process}"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
