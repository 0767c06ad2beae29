"""Errors for a training that cannot run on a mesh: the cause, the requirement, and the fix.

JAX raises errors of general types for most causes. `explain_mesh` knows them by their texts. An
error whose text it does not know stays as it is.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh, NamedSharding, Sharding

from rmsprop_jax._tune.training.jaxprs import equations
from rmsprop_jax._tune.training.trace_errors import where
from rmsprop_jax._tune.trial_mesh import TRIAL, TrialMesh

if TYPE_CHECKING:
    from jax.extend.core import ClosedJaxpr

UNKNOWN_AXIS = re.compile(
    r"unbound axis name: (?P<axis>[\w-]+)"
    r"|Resource axis: (?P<resource>\S+) of .* is not found in mesh"
    r"|refers to '(?P<spec>[^']+)'"
)
NO_MESH = re.compile(r"non-empty mesh|not under a mesh context|context mesh cannot be empty")
INNER_MESH = re.compile(r"should match the mesh passed to shard_map")
CONSTRAINT_ON_EXPLICIT = re.compile(r"can only refer to Auto axes|acts as an assert when all axes")
OTHER_MESH = re.compile(r"should match the aval mesh")
RESHARD_ON_AUTOMATIC = re.compile(r"cannot contain axis names that are of type Auto")


def explain_mesh(error: Exception, what: str, mesh: TrialMesh | None) -> ValueError | None:
    """Return a clearer error than this one about a mesh, or None if it is about something else.

    Args:
      error: the error of the trace.
      what: the name of the function that was traced, for example "train".
      mesh: the mesh of the trials; None without one.
    """
    text, place = str(error), where(error)
    if mesh is None:
        if not NO_MESH.search(text):
            return None
        return ValueError(
            f"mesh must be given, because {what} names axes of a mesh{place}, got mesh=None. Pass, "
            'for example, mesh=jax.sharding.Mesh(devices.reshape(4, 2), ("trial", "model")). One '
            "device is enough: devices.reshape(1, 1)."
        )
    if found := UNKNOWN_AXIS.search(text):
        name = next(filter(None, found.groups()))
        fix = f"Name one of {list(mesh.axes)}, or add the axis to the mesh."
        if name == TRIAL:
            fix = f"Leave it out, or name one of {list(mesh.axes)}: trials exchange nothing."
        return ValueError(
            f"{what} must name axes of a trial only, which are {list(mesh.axes)}, got "
            f"{name!r}{place}. {fix}"
        )
    if INNER_MESH.search(text):
        return ValueError(
            f"{what} must call shard_map without a mesh, got one{place}. Leave mesh out: the sweep "
            "sets the mesh of the trial."
        )
    if OTHER_MESH.search(text):
        return ValueError(
            f"{what} must use arrays on the mesh of the trial only, got another mesh{place}. "
            "Pass closed-over arrays by args=(x,), and write P(...) instead of a sharding with a "
            "mesh."
        )
    if mesh.explicit and CONSTRAINT_ON_EXPLICIT.search(text):
        return ValueError(
            f"{what} must use jax.sharding.reshard for explicit axes, got with_sharding_constraint"
            f"{place}. Write jax.sharding.reshard(x, P(...)), or pass a mesh with "
            f"axis_types=(jax.sharding.AxisType.Auto,) * {len(mesh.axes) + 1}."
        )
    if RESHARD_ON_AUTOMATIC.search(text):
        return ValueError(
            f"{what} must use with_sharding_constraint for automatic axes, got reshard{place}. "
            "Write jax.lax.with_sharding_constraint(x, P(...)), or pass a mesh with explicit axes, "
            "such as jax.make_mesh((4, 2), ('trial', 'model'))."
        )
    return None


def refuse_on_mesh(jaxpr: "ClosedJaxpr", what: str, mesh: TrialMesh) -> None:
    """Raise ValueError for a traced function that JAX would refuse, or place wrongly, on a mesh.

    Args:
      jaxpr: the traced function.
      what: its name, for example "train".
      mesh: the mesh of the trials.
    """
    for equation in equations(jaxpr):
        name = equation.primitive.name
        is_print = name.startswith("debug_")
        if name in ("pure_callback", "io_callback") or (
            is_print and (mesh.explicit or not equation.invars)
        ):
            call = "jax.debug.print" if is_print else f"jax.{name}"
            fix = "Leave it out. The metrics show numbers of each step"
            if is_print and not mesh.explicit:
                fix = 'Give it an array to print: jax.debug.print("{}", x)'
            raise ValueError(
                f"{what} must not call back into Python on a mesh, which JAX cannot split among "
                f"the devices of a trial, got {call}. {fix}."
            )
        for sharding in _concrete_shardings(list(equation.params.values())):
            raise ValueError(
                f"{what} must name axes only, because the sweep decides on which devices a trial "
                f"runs, got {sharding} in {name}. Write P(...) instead of a sharding with a mesh "
                "or a device, for example jax.lax.with_sharding_constraint(x, P('model'))."
            )


def _concrete_shardings(values: list[Any]) -> Iterator[Any]:
    """Yield the shardings and devices among parameters that belong to certain devices."""
    for value in values:
        if isinstance(value, tuple | list):
            yield from _concrete_shardings(list(value))
        elif isinstance(value, NamedSharding):
            if isinstance(value.mesh, Mesh):
                yield value
        elif isinstance(value, Sharding | jax.Device):
            yield value
