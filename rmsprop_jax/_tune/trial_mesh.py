"""A mesh of trials: the devices of each trial, and the shardings of its arrays.

A mesh has an axis "trial". Its other axes belong to the trial. The devices at one index of "trial"
are a *submesh*: each trial runs on one of them. A `PartitionSpec` of this package names axes of the
trial only.
"""

import contextlib
import json
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from rmsprop_jax._tune.space.values import PyTree

TRIAL = "trial"
SPLIT, WHOLE = PartitionSpec(TRIAL), PartitionSpec()


class TrialMesh:
    """A mesh whose axis "trial" separates the trials.

    Args:
      mesh: a mesh with an axis "trial".

    Attributes:
      mesh: the same devices and axes, all automatic. Kernels alone see the types of a trial's axes.
      axes: the names of the axes that belong to a trial.
      whole: the axes of a trial, for tracing outside a kernel. The axis "trial" is unknown there.
      smallest: the same, with size 1 and in the order of their names: equal for all meshes whose
        axes have these names.
      kernel: all axes, as a user's function sees them in a kernel.
      wave: all axes, as a wave sees them around its kernels.
      explicit: the names of the explicit axes of a trial. Shardings over them belong to the types
        of arrays.
    """

    def __init__(self, mesh: Mesh):
        types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
        self.mesh = Mesh(mesh.devices, mesh.axis_names)
        self.axes: tuple[str, ...] = tuple(name for name in types if name != TRIAL)
        self._types = types

        def abstract(sizes: dict[str, int]) -> AbstractMesh:
            of_axes = tuple(types[name] for name in sizes)
            return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=of_axes)

        self.whole = abstract({name: mesh.shape[name] for name in self.axes})
        self.smallest = abstract(dict.fromkeys(sorted(self.axes), 1))
        self.wave = self.mesh.abstract_mesh.update_axis_types({TRIAL: AxisType.Manual})
        self.kernel = self.wave.update_axis_types({name: types[name] for name in self.axes})
        self.explicit = tuple(name for name in self.axes if types[name] == AxisType.Explicit)

    def submeshes(self) -> list[np.ndarray]:
        """Return the devices of each submesh, as arrays over the axes of a trial."""
        return list(np.moveaxis(self.mesh.devices, self.mesh.axis_names.index(TRIAL), 0))

    def submesh(self) -> Mesh:
        """Return the first submesh that has a device of this process."""
        is_here = lambda devices: any(x.process_index == jax.process_index() for x in devices.flat)
        devices = next(filter(is_here, self.submeshes()))
        return Mesh(devices, self.axes, axis_types=tuple(self._types[name] for name in self.axes))

    def shards(self, spec: PartitionSpec) -> int:
        """Return into how many shards this sharding cuts an array."""
        return math.prod(self.mesh.shape[name] for name in names_of(spec))

    def own_spec(self, sharding: Sharding) -> PartitionSpec:
        """Return the sharding of a leaf of a state, from that of a wave's (D·C, B, leaf…).

        A leaf counts as whole if the compiler cut it in a way that no names of axes describe.
        """
        return PartitionSpec(*sharding.spec[2:]) if isinstance(sharding, NamedSharding) else WHOLE

    def typed(self, tree: PyTree, specs: PyTree, mesh: AbstractMesh | None) -> PyTree:
        """Return abstract arrays with the shardings that belong to their types on a mesh.

        Args:
          tree: abstract arrays.
          specs: a `PartitionSpec` for each of them, or for whole subtrees.
          mesh: `whole`, `smallest`, or `kernel`; None for types without shardings.
        """
        if mesh is None or not self.explicit:
            return tree

        def leaf(spec: PartitionSpec, x: Any) -> jax.ShapeDtypeStruct:
            sharding = NamedSharding(mesh, self._of_type(spec))
            weak_type = getattr(x, "weak_type", False)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding, weak_type=weak_type)

        return map_specs(leaf, specs, tree)

    def _of_type(self, spec: PartitionSpec) -> PartitionSpec:
        """Return a sharding without its automatic axes."""
        is_typed = lambda name: name in self.explicit
        each = (tuple(filter(is_typed, _names(entry))) for entry in spec)
        return PartitionSpec(*(names or None for names in each))


def map_specs(call: Any, specs: PyTree, tree: PyTree) -> PyTree:
    """Return the tree of `call(spec, x)` for each leaf x.

    Args:
      call: a function of a `PartitionSpec` and a leaf.
      specs: a `PartitionSpec` for each leaf, or for whole subtrees.
      tree: the leaves.
    """
    return jax.tree.map(lambda spec, part: jax.tree.map(lambda x: call(spec, x), part), specs, tree)


def tracing(mesh: AbstractMesh | None) -> AbstractContextManager[Any]:
    """Enter a mesh for tracing; None for tracing without one."""
    return contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh)


def type_spec(x: Any) -> PartitionSpec:
    """Return the sharding that belongs to the type of an array; no axes without a mesh."""
    return jax.typeof(x).sharding.spec


def names_of(spec: PartitionSpec) -> list[str]:
    """Return the names of the axes in a sharding."""
    return [name for entry in spec for name in _names(entry)]


def after(spec: PartitionSpec, *first: str | None) -> PartitionSpec:
    """Return the sharding of arrays with further axes in front, such as steps or batches."""
    return PartitionSpec(*first, *spec) if any(first) or len(spec) else WHOLE


def encoded(spec: PartitionSpec) -> str:
    """Return a sharding as JSON: for each dimension the names of its axes."""
    return json.dumps([list(_names(entry)) for entry in spec])


def decoded(text: str) -> PartitionSpec:
    """Return the inverse of `encoded`."""
    return PartitionSpec(*(tuple(names) or None for names in json.loads(text)))


def _names(entry: Any) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def submesh_of(mesh: Any) -> Mesh:
    """Return the devices of one trial of a user's mesh, which has an axis "trial" or not.

    Raises:
      ValueError: for an object that is not a mesh, or a mesh without an axis of a trial.
    """
    if not isinstance(mesh, Mesh) or not set(mesh.axis_names) - {TRIAL}:
        raise ValueError(
            f"mesh must be a jax.sharding.Mesh with the axes of a trial, got {mesh!r}. Pass the "
            'mesh of the sweep, or jax.sharding.Mesh(np.array(jax.devices()[:2]), ("model",)).'
        )
    return TrialMesh(mesh).submesh() if TRIAL in mesh.axis_names else mesh


class Placement(NamedTuple):
    """The mesh of a sweep, and the shardings of the arrays that all trials share."""

    mesh: TrialMesh | None = None
    """The mesh; None for trials on one device each."""
    args: PyTree = WHOLE
    """The shardings of the sweep's `args`."""
    batch: PyTree = WHOLE
    """The shardings of the batch of one step."""


def sharding_of(what: str, x: Any, axes: Sequence[str]) -> PartitionSpec:
    """Return the sharding of an array that a user passed, over the axes of a trial.

    An array without a `NamedSharding` is copied to every device.

    Args:
      what: the place of the array, for errors: "args[0]".
      x: the array.
      axes: the names of the axes that belong to a trial.

    Raises:
      ValueError: for a sharding over another axis.
    """
    sharding = getattr(x, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return WHOLE
    if others := sorted(set(names_of(sharding.spec)).difference(axes)):
        raise ValueError(
            f"{what} must be sharded over axes of a trial only, which are {list(axes)}, got "
            f"{sharding.spec}, which names {others}. Every trial reads the whole array. Pass "
            f"jax.device_put(x, NamedSharding(mesh, P({', '.join(map(repr, axes[:1]))})))."
        )
    return sharding.spec
