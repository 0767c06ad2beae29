"""Walks over traced programs: their equations, and the arrays that they close over."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import jax
import numpy as np

if TYPE_CHECKING:
    from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def equations(jaxpr: "Jaxpr | ClosedJaxpr") -> Iterator["JaxprEqn"]:
    """Yield every equation of a program, those of its inner programs included."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for inner in inner_programs(equation):
            yield from equations(inner)


def is_callback(equation: "JaxprEqn") -> bool:
    """Return whether an equation calls back into Python."""
    name = equation.primitive.name
    return "callback" in name or name.startswith("debug_")


def inner_programs(equation: "JaxprEqn") -> Iterator["Jaxpr | ClosedJaxpr"]:
    """Yield the programs that an equation runs: a scan's body, a branch, a jitted function."""
    for value in equation.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            if hasattr(getattr(inner, "jaxpr", inner), "eqns"):
                yield inner


def constants(jaxpr: "Jaxpr | ClosedJaxpr") -> Iterator[jax.Array | np.ndarray]:
    """Yield the arrays that a program closes over, those of its inner programs included."""
    yield from getattr(jaxpr, "consts", ())
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        literals = (getattr(v, "val", None) for v in equation.invars)  # a variable has no `val`
        yield from (x for x in literals if x is not None and np.ndim(x))
        for inner in inner_programs(equation):
            yield from constants(inner)
