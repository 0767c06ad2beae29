"""Hashes of what decides a sweep's numbers: its programs, what they close over, its args."""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from rmsprop_jax._tune.space.static_groups import StaticGroup
from rmsprop_jax._tune.space.values import is_key
from rmsprop_jax._tune.training.trace import Traces, constants

ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in the text of an object without one of its own
MODULE_NAME = re.compile(r"module @\S+")
MOST_BYTES = 64 * 2**20  # of args, that are hashed although no folder asks for it


class Fingerprint:
    """What must be as it was for a folder to go on.

    Args:
      groups, traces: the structures and their programs.
      args: of the sweep; kept as a hash only.
      needed: whether a folder is written, so that large args are hashed, too.

    Attributes:
      dtypes: of the traced hyperparameters, by name.
      args: a hash, or None where they were large and nothing asked for it.
      jax: the version.
    """

    def __init__(
        self, groups: Sequence[StaticGroup], traces: Sequence[Traces], args: Any, needed: bool
    ):
        self.dtypes = {name: str(dtype) for group in groups for name, dtype in group.dtypes.items()}
        size = sum(np.size(x) * np.dtype(np.uint64).itemsize for x in jax.tree.leaves(args))
        self.args = hash_of_arrays(args) if needed or size <= MOST_BYTES else None
        self.jax = jax.__version__
        self._traces: Sequence[Traces] | None = traces
        self._hashes: dict[str, list[str]] = {}

    @classmethod
    def of(
        cls, dtypes: dict[str, str], args: str | None, jax: str, hashes: dict[str, list[str]]
    ) -> "Fingerprint":
        """Return the fingerprint that a folder holds."""
        made = cls.__new__(cls)
        made.dtypes, made.args, made.jax = dtypes, args, jax
        made._traces, made._hashes = None, hashes
        return made

    @property
    def programs(self) -> list[str]:
        """A hash of the lowered programs of each static group."""
        return self._hashed("programs")

    @property
    def constants(self) -> list[str]:
        """A hash of the arrays that each static group closes over."""
        return self._hashed("constants")

    def _hashed(self, what: str) -> list[str]:
        if self._traces is not None:
            pieces = [one.pieces.values() for one in self._traces]
            texts = [[program_text(piece) for piece in some] for some in pieces]
            closed_over = [[x for one in some for x in constants(one.jaxpr)] for some in pieces]
            self._hashes = {
                "programs": [hashlib.sha256("".join(t).encode()).hexdigest() for t in texts],
                "constants": [hash_of_arrays(arrays) for arrays in closed_over],
            }
            self._traces = None
        return self._hashes[what]

    def __getstate__(self) -> dict[str, Any]:
        self._hashed("programs")
        return self.__dict__


def program_text(piece: jax.stages.Traced) -> str:
    """Return the lowered program, without the name of the function that was traced.

    That function is a wrapper of ours: a rename must not keep a folder from being resumed.
    """
    return MODULE_NAME.sub("module @jit__lambda", piece.lower().as_text(), count=1)


def hash_of_arrays(tree: Any) -> str:
    """Return a hash of a tree's key paths, and of its arrays' dtypes, shapes and bytes.

    The text of its structure would add the addresses of functions in static fields, which differ
    from process to process. A program's hash covers what these functions do.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        kind = jax.random.key_impl(leaf) if is_key(leaf) else array.dtype
        name = ADDRESS.sub("", jax.tree_util.keystr(path))
        digest.update(json.dumps([name, str(kind), array.shape]).encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
