"""The hashes of everything that decides a sweep's numbers: its programs, their constants, its args.

They are the hashed part of the entries that must be equal for a folder to resume.
`storage.manifest.extended` has the whole rule.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from rmsprop_jax._tune.space.static_groups import StaticGroup
from rmsprop_jax._tune.space.values import is_key
from rmsprop_jax._tune.training.jaxprs import constants
from rmsprop_jax._tune.training.trace import Traces

ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in the default text of an object
MODULE_NAME = re.compile(r"module @\S+")
MOST_BYTES = 64 * 2**20  # of args that are hashed without a folder, so that `save` can store it


class Fingerprint:
    """The hashes and versions that must be equal for a folder to resume.

    Hashes of programs are computed when they are first read, because lowering takes time.

    Args:
      groups: the static groups.
      traces: the traced functions of each static group.
      args: the sweep's `args`. Only their hash is kept.
      needed: whether to hash large args, too, because a folder or another process compares them.

    Attributes:
      dtypes: the dtype of each traced hyperparameter, as text.
      args: the hash of the args; None for large args if it was not needed.
      jax: the version of JAX.
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
        """Return the fingerprint in a folder's manifest.

        Args:
          dtypes: the dtype of each traced hyperparameter, as text.
          args: the hash of the args, or None.
          jax: the version of JAX.
          hashes: the lists `programs` and `constants`, by name.
        """
        made = cls.__new__(cls)
        made.dtypes, made.args, made.jax = dtypes, args, jax
        made._traces, made._hashes = None, hashes
        return made

    @property
    def programs(self) -> list[str]:
        """The hash of the lowered programs of each static group."""
        return self._hashed("programs")

    @property
    def constants(self) -> list[str]:
        """The hash of the arrays that the functions of each static group close over."""
        return self._hashed("constants")

    def _hashed(self, what: str) -> list[str]:
        """Return "programs" or "constants"; the first call computes both."""
        if self._traces is not None:
            pieces = [one.portable().values() for one in self._traces]
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
    """Return the text of a lowered program, without the name of the traced function.

    The traced function is one of our wrappers. A folder must resume after we rename the wrapper.
    """
    try:
        text = piece.lower().as_text()
    except ValueError:  # a function traced on explicit axes without devices has no platform
        platform = jax.export.default_export_platform()
        text = piece.lower(lowering_platforms=(platform,)).as_text()
    return MODULE_NAME.sub("module @jit__lambda", text, count=1)


def hash_of_arrays(tree: Any) -> str:
    """Return a hash of a tree's key paths, and of its arrays' dtypes, shapes and bytes.

    The tree's structure is left out: its text has the addresses of functions in static fields,
    which differ from process to process. The hash of a program covers these functions.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        kind = jax.random.key_impl(leaf) if is_key(leaf) else array.dtype
        name = ADDRESS.sub("", jax.tree_util.keystr(path))
        digest.update(json.dumps([name, str(kind), array.shape]).encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
