"""A training's state: what may be one, and as flat arrays, on the devices and on the host."""

import functools
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rmsprop_jax._tune.space.values import decode, encode, is_key, refuse_dtype, typed
from rmsprop_jax._tune.training.training import strong

DEPTH = 40  # of closures in closures: an optimiser is a chain of chains
REMEDY = (
    "keep arrays only, (params, opt_state) say: build the optimiser in step, from hp, and "
    "partition a module into its arrays and the rest (eqx.partition, nnx.split)"
)


class StateSpec(NamedTuple):
    """The structure of a state, and its leaves as plain arrays: a PRNG key as its data."""

    treedef: Any
    impls: tuple[str, ...]
    """For each leaf the implementation of a PRNG key, or ""."""
    data: tuple[jax.ShapeDtypeStruct, ...]
    """The arrays."""

    @classmethod
    def of(cls, state: Any) -> "StateSpec":
        """Of a state that is checked already."""
        leaves, treedef = jax.tree.flatten(state)
        impls = tuple(str(jax.random.key_impl(x)) if is_key(x) else "" for x in leaves)
        shaped = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
        return cls(treedef, impls, tuple(map(shaped, _plain(leaves))))

    @classmethod
    def like(cls, state: Any) -> "StateSpec":
        """Of a state that may be abstract."""
        found: list[StateSpec] = []
        jax.eval_shape(lambda state: found.append(cls.of(strong(state))), state)
        return found[0]

    def flat(self, state: Any) -> list[jax.Array]:
        """The state's arrays."""
        return _plain(self.treedef.flatten_up_to(state))

    def tree(self, arrays: Sequence[Any]) -> Any:
        """The state again."""
        leaves = [
            jax.random.wrap_key_data(jnp.asarray(x), impl=impl) if impl else x
            for x, impl in zip(arrays, self.impls, strict=True)
        ]
        return self.treedef.unflatten(leaves)

    @property
    def bytes(self) -> int:
        """Of one trial's state."""
        return sum(x.size * x.dtype.itemsize for x in self.data)

    @property
    def form(self) -> "StateForm":
        """What can be written down of the structure."""
        if not _is_plain_tree(self.treedef):  # a class may look at the leaves that it gets
            return StateForm(self.impls, "")
        try:
            text = json.dumps(encode(self.treedef.unflatten([0] * len(self.data)), "a state"))
        except ValueError:
            text = ""
        return StateForm(self.impls, text)


class StateForm(NamedTuple):
    """What a file says of a state's structure."""

    impls: Sequence[str]
    """For each leaf the implementation of a PRNG key, or ""."""
    skeleton: str
    """The structure as JSON, where it is of dicts, lists and tuples only; else ""."""

    def spec(self, arrays: Sequence[np.ndarray]) -> StateSpec | None:
        """The structure, with the shapes of these arrays; None where there is no skeleton."""
        if not self.skeleton:
            return None
        treedef = jax.tree.structure(decode(json.loads(self.skeleton)))
        shaped = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays)
        return StateSpec(treedef, tuple(self.impls), shaped)


def _is_plain_tree(treedef: Any) -> bool:
    """Whether a structure is of dicts, lists, tuples and `None` only."""
    node = treedef.node_data()
    is_plain = node is None or node[0] in (dict, list, tuple, type(None))
    return is_plain and all(map(_is_plain_tree, treedef.children()))


def _plain(leaves: Sequence[Any]) -> list[Any]:
    return [jax.random.key_data(x) if is_key(x) else x for x in leaves]


def leaves_of(stored: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The arrays of a file of states, each with a leading axis over its trials."""
    dtypes = stored["dtypes"].tolist()
    return [typed(stored[f"leaf {i}"], np.dtype(name)) for i, name in enumerate(dtypes)]


def check_leaves(state: Any, what: str) -> None:
    """ValueError where a state has a leaf that is no array, or a tracer in its own structure."""
    for path, x in jax.tree_util.tree_flatten_with_path(state)[0]:
        known = isinstance(x, jax.Array | bool | int | float | complex)
        if not known and not (isinstance(x, np.ndarray | np.generic) and x.dtype.kind in "biufcV"):
            raise ValueError(
                f"{what} returned a state whose leaf {jax.tree_util.keystr(path) or 'itself'} is "
                f"{x!r}, a {type(x).__name__}, wanted an array: {REMEDY}."
            )
        leaf = jax.tree_util.keystr(path) or "itself"
        refuse_dtype(f"{what} returned a state whose leaf {leaf}", getattr(x, "dtype", None))
    if _has_tracer(jax.tree.structure(state)):
        raise ValueError(
            f"{what} returned a state with a traced value in its own structure, not among its "
            "leaves: an optimiser (the tx of a Flax TrainState, say) that closed over a number of "
            f"hp. It would not outlive its trace: {REMEDY}."
        )


def check_same(spec: StateSpec, state: Any) -> None:
    """ValueError where a step changed the structure, a shape or a dtype."""
    got = jax.tree.structure(state)
    if got != spec.treedef:
        raise ValueError(
            f"step must return a state of the structure that it got: {spec.treedef}; it returned "
            f"{got}."
        )
    paths = jax.tree_util.tree_flatten_with_path(state)[0]
    for (path, _), x, wanted in zip(paths, spec.flat(state), spec.data, strict=True):
        if (x.shape, x.dtype) != (wanted.shape, wanted.dtype):
            raise ValueError(
                f"step changed the state's {jax.tree_util.keystr(path) or 'array'}: "
                f"{wanted.dtype}{list(wanted.shape)} before, {x.dtype}{list(x.shape)} after. Keep "
                "shapes and dtypes, with a cast where numbers of another dtype come in."
            )


def _has_tracer(treedef: Any) -> bool:
    """Whether a tracer is in what a tree's nodes keep beside their children."""
    data = treedef.node_data()
    own = data is not None and any(isinstance(x, Tracer) for x in _reach(data[1], set(), DEPTH))
    return own or any(map(_has_tracer, treedef.children()))


def _reach(x: Any, seen: set[int], depth: int) -> Iterator[Any]:
    """What an object holds: the items of containers, what functions close over, attributes."""
    if id(x) in seen or depth < 0:
        return
    seen.add(id(x))
    yield x
    inside: Sequence[Any] = ()
    if isinstance(x, Tracer | str | bytes | int | float | type | types.ModuleType | np.ndarray):
        return
    if isinstance(x, dict):
        inside = [*x.values()]
    elif isinstance(x, tuple | list | set | frozenset):
        inside = [*x]
    elif isinstance(x, functools.partial):
        inside = [x.func, *x.args, *x.keywords.values()]
    elif isinstance(x, types.MethodType):
        inside = [x.__self__, x.__func__]
    elif isinstance(x, types.FunctionType):
        inside = [*(x.__defaults__ or ())]
        for cell in x.__closure__ or ():
            try:
                inside.append(cell.cell_contents)
            except ValueError:  # empty
                continue
    elif hasattr(x, "__dict__"):
        inside = [*vars(x).values()]
    for one in inside:
        yield from _reach(one, seen, depth - 1)
