"""The states of trainings: which are allowed, and how they become flat arrays and come back."""

import functools
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import PartitionSpec

from rmsprop_jax._tune.space.values import decode, encode, is_key, refuse_dtype, typed
from rmsprop_jax._tune.training.training import State, strong
from rmsprop_jax._tune.trial_mesh import encoded, type_spec

TreeDef: TypeAlias = Any  # jax.tree_util.PyTreeDef, for which jaxlib brings no types

DEPTH = 40  # of closures in closures: an optimizer is a chain of chains
REMEDY = (
    "Keep arrays only, for example (params, opt_state): build the optimizer in step, from hp, and "
    "partition a module into its arrays and the rest (eqx.partition, nnx.split)"
)


class StateSpec(NamedTuple):
    """The structure of a state, and the shapes of its leaves as plain arrays.

    A PRNG key counts as its key data, a plain array.
    """

    treedef: TreeDef
    impls: tuple[str, ...]
    """For each leaf the implementation of its PRNG key, or "" if it is an array."""
    data: tuple[jax.ShapeDtypeStruct, ...]
    """For each leaf the shape and dtype of its plain array."""
    shardings: tuple[PartitionSpec, ...] | None = None
    """For each leaf its sharding over the axes of a trial. `Experiment.shard_states` sets it; None
    for a trial on one device."""
    shards: tuple[int, ...] = ()
    """For each leaf the number of its shards; empty if each is one array."""

    @classmethod
    def of(cls, state: State) -> "StateSpec":
        """Return the spec of a state that `check_leaves` and `strong` have seen."""
        leaves, treedef = jax.tree.flatten(state)
        impls = tuple(str(jax.random.key_impl(x)) if is_key(x) else "" for x in leaves)
        shapes = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in _plain(leaves))
        return cls(treedef, impls, tuple(shapes))

    @classmethod
    def like(cls, state: State) -> "StateSpec":
        """Return the spec of a state whose leaves may be abstract or Python numbers."""
        specs: list[StateSpec] = []
        jax.eval_shape(lambda state: specs.append(cls.of(strong(state))), state)
        return specs[0]

    def flat(self, state: State) -> list[jax.Array]:
        """Return the leaves of a state as plain arrays."""
        return _plain(self.treedef.flatten_up_to(state))

    def tree(self, arrays: Sequence[jax.Array | np.ndarray]) -> State:
        """Return the state that has these plain arrays: the inverse of `flat`."""
        leaves = [
            jax.random.wrap_key_data(jnp.asarray(x), impl=impl) if impl else x
            for x, impl in zip(arrays, self.impls, strict=True)
        ]
        return self.treedef.unflatten(leaves)

    @property
    def bytes(self) -> int:
        """Return the size of one trial's state in bytes."""
        return sum(x.size * x.dtype.itemsize for x in self.data)

    @property
    def paths(self) -> list[tuple[Any, ...]]:
        """Return the key path of each leaf."""
        leaves = jax.tree_util.tree_flatten_with_path(self.treedef.unflatten(self.data))[0]
        return [path for path, _ in leaves]

    @property
    def device_bytes(self) -> int:
        """Return the bytes of one trial's state on each of its devices."""
        shards = self.shards or (1,) * len(self.data)
        each = zip(self.data, shards, strict=True)
        return sum(x.size * x.dtype.itemsize // n for x, n in each)

    @property
    def form(self) -> "StateForm":
        """Return the part of the structure that a file can hold."""
        shardings = tuple(map(encoded, self.shardings or ()))
        # A class of the user's may reject the zeros that stand for the leaves below.
        if not _is_plain_tree(self.treedef):
            return StateForm(self.impls, "", shardings)
        try:
            text = json.dumps(encode(self.treedef.unflatten([0] * len(self.data)), "a state"))
        except ValueError:
            text = ""
        return StateForm(self.impls, text, shardings)


class StateForm(NamedTuple):
    """The part of a state's structure that a file holds."""

    impls: Sequence[str]
    """For each leaf the implementation of its PRNG key, or "" if it is an array."""
    skeleton: str
    """The structure as JSON if it has only dicts, lists, tuples, and `None`; else ""."""
    shardings: Sequence[str] = ()
    """For each leaf its sharding over the axes of a trial, as `trial_mesh.encoded` writes it; empty
    for a trial on one device."""

    def spec(self, arrays: Sequence[np.ndarray]) -> StateSpec | None:
        """Return the spec of a state with these arrays, or None without a skeleton."""
        if not self.skeleton:
            return None
        treedef = jax.tree.structure(decode(json.loads(self.skeleton)))
        shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays)
        return StateSpec(treedef, tuple(self.impls), shapes)


def _is_plain_tree(treedef: TreeDef) -> bool:
    """Return whether a structure has only dicts, lists, tuples, and `None`."""
    node = treedef.node_data()
    is_plain = node is None or node[0] in (dict, list, tuple, type(None))
    return is_plain and all(map(_is_plain_tree, treedef.children()))


def _plain(leaves: Sequence[jax.Array]) -> list[jax.Array]:
    """Return the leaves with PRNG keys as their key data."""
    return [jax.random.key_data(x) if is_key(x) else x for x in leaves]


def leaves_of(stored: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return the state leaves that a file holds, each with a leading axis over its trials."""
    dtypes = stored["dtypes"].tolist()
    return [typed(stored[f"leaf {i}"], np.dtype(name)) for i, name in enumerate(dtypes)]


class TracedStructureError(ValueError):
    """The error of a state whose structure holds a traced value. Its cause is known."""


def check_leaves(state: State, what: str) -> None:
    """Raise ValueError for a state with a leaf that is not an array, or a tracer in its structure.

    Args:
      state: the state that a function of a `Training` returned.
      what: the function's name, "init" or "step".
    """
    for path, x in jax.tree_util.tree_flatten_with_path(state)[0]:
        leaf = jax.tree_util.keystr(path) or "itself"
        is_array = isinstance(x, jax.Array | bool | int | float | complex)
        if not is_array and not (
            isinstance(x, np.ndarray | np.generic) and x.dtype.kind in "biufcV"
        ):
            raise ValueError(
                f"{what} returned a state whose leaf {leaf} must be an array, got {x!r}, a "
                f"{type(x).__name__}. {REMEDY}."
            )
        dtype = getattr(x, "dtype", None)
        refuse_dtype(f"{what} returned a state whose leaf {leaf}", dtype)
    if _has_tracer(jax.tree.structure(state)):
        raise TracedStructureError(
            f"{what} returned a state whose structure must be free of traced values, but some "
            "object in it holds one. The usual cause is an optimizer that was made from a number "
            "of hp, such as the tx of a Flax TrainState or of an nnx.Optimizer. Make the optimizer "
            "once, outside init: tx = optax.inject_hyperparams(rj.rmsprop)(learning_rate=1e-3). "
            'Then set its numbers in init: opt_state.hyperparams["learning_rate"] = '
            'hp["learning_rate"]. Or keep (params, opt_state) only, and build the optimizer in '
            "step, from hp."
        )


def check_same(spec: StateSpec, state: State) -> None:
    """Raise ValueError if a step changed the state's structure, a shape, or a dtype.

    Args:
      spec: the spec of the state that the step got.
      state: the state that the step returned.
    """
    structure = jax.tree.structure(state)
    if structure != spec.treedef:
        raise ValueError(
            "step must return a state with the structure of the state that it got, "
            f"{spec.treedef}, got {structure}. Return the same containers in the same order."
        )
    paths = jax.tree_util.tree_flatten_with_path(state)[0]
    for (path, _), x, before in zip(paths, spec.flat(state), spec.data, strict=True):
        if (x.shape, x.dtype) != (before.shape, before.dtype):
            raise ValueError(
                f"step must not change the shape or dtype of the state's "
                f"{jax.tree_util.keystr(path) or 'array'}: {before.dtype}{list(before.shape)} "
                f"before, got {x.dtype}{list(x.shape)} after. If another dtype entered, cast: "
                f"x.astype(jnp.{before.dtype})."
            )


def check_same_shardings(spec: StateSpec, state: State, before: Sequence[PartitionSpec]) -> None:
    """Raise ValueError if a step changed a sharding that belongs to the type of an array.

    Args:
      spec: the spec of the state that the step got.
      state: the state that the step returned, with the structure of `spec`.
      before: the sharding of each leaf that the step got.
    """
    paths = jax.tree_util.tree_flatten_with_path(state)[0]
    for (path, _), x, wanted in zip(paths, spec.flat(state), before, strict=True):
        if type_spec(x) != wanted:
            raise ValueError(
                f"step must not change the sharding of the state's "
                f"{jax.tree_util.keystr(path) or 'array'}: {wanted} before, got {type_spec(x)} "
                f"after. Return jax.sharding.reshard(x, {wanted})."
            )


def _has_tracer(treedef: TreeDef) -> bool:
    """Return whether a tracer is in the static data of a tree's nodes."""
    data = treedef.node_data()
    in_node = data is not None and any(isinstance(x, Tracer) for x in _reach(data[1], set(), DEPTH))
    return in_node or any(map(_has_tracer, treedef.children()))


def _reach(x: object, seen: set[int], depth: int) -> Iterator[object]:
    """Yield an object and all objects in it: items of containers, closures, attributes."""
    if id(x) in seen or depth < 0:
        return
    seen.add(id(x))
    yield x
    contents: Sequence[object] = ()
    if isinstance(x, Tracer | str | bytes | int | float | type | types.ModuleType | np.ndarray):
        return
    if isinstance(x, dict):
        contents = [*x.values()]
    elif isinstance(x, tuple | list | set | frozenset):
        contents = [*x]
    elif isinstance(x, functools.partial):
        contents = [x.func, *x.args, *x.keywords.values()]
    elif isinstance(x, types.MethodType):
        contents = [x.__self__, x.__func__]
    elif isinstance(x, types.FunctionType):
        contents = [*(x.__defaults__ or ())]
        for cell in x.__closure__ or ():
            try:
                contents.append(cell.cell_contents)
            except ValueError:  # the cell is empty
                continue
    elif hasattr(x, "__dict__"):
        contents = [*vars(x).values()]
    for item in contents:
        yield from _reach(item, seen, depth - 1)
