"""Refuse a program of several devices per trial that can hang on a CPU.

On a CPU, a `collective-permute` waits for all devices of the program, not only for those that
exchange data. If trials run it a different number of times, the program hangs. Waves run in
lockstep (`DeviceLayout.is_lockstep`), so only a branch or a loop of the user's function can make
this number differ. XLA writes the number of iterations of a `scan` into the program.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = .*?[\s)}\]]([a-z][\w-]*)\(")
CALLED = re.compile(
    r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.-]+)"
    r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
NAME_STACK = re.compile(r'op_name="([^"]*)"')
ENTRY = "ENTRY"


class _Instruction(NamedTuple):
    name: str
    """The name of the operation."""
    called: list[str]
    """The computations that it calls."""
    depth: int
    """The number of loops around it in the traced function, itself included. XLA may have moved it
    out of some of them."""
    is_counted: bool
    """Whether it is a loop with a known number of iterations."""


def refuse_uneven_permutes(text: str, loops: int) -> None:
    """Raise ValueError if trials can run a `collective-permute` a different number of times.

    Args:
      text: the compiled program.
      loops: the number of the sweep's own loops, one inside the other, around a user's function.
    """
    computations = _computations(text)
    if place := _uneven(computations, ENTRY, loops):
        raise ValueError(
            f"train must not exchange data between the devices of a trial by a collective-permute "
            f"inside a {place} on a CPU, because trials may run it a different number of times, "
            "and then wait for each other forever. Use jax.lax.scan instead of while_loop, and "
            "jnp.where instead of cond. Or keep the array in one piece there, because jnp.roll, "
            "jnp.flip, slices, and convolutions along a sharded dimension cause the exchange."
        )


def _computations(text: str) -> dict[str, list[_Instruction]]:
    """Return the instructions of each computation."""
    found: dict[str, list[_Instruction]] = {}
    instructions: list[_Instruction] = []
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            instructions = found[match[1]] = []
            if line.startswith(ENTRY):
                found[ENTRY] = instructions
        elif match := INSTRUCTION.match(line):
            called = [
                name.strip().lstrip("%")
                for groups in CALLED.findall(line)
                for names in groups
                for name in names.split(",")
                if name.strip()
            ]
            stack = NAME_STACK.search(line)
            depth = stack[1].split("/").count("while") if stack else 0
            is_counted = "known_trip_count" in line
            instructions.append(_Instruction(match[1], called, depth, is_counted))
    return found


def _uneven(computations: Mapping[str, list[_Instruction]], name: str, loops: int) -> str | None:
    """Return "while_loop" or "cond", the place of an uneven permute; None without one."""
    for instruction in computations.get(name, ()):
        is_branch = instruction.name == "conditional"
        is_loop = instruction.name == "while" and not instruction.is_counted
        is_uneven = is_branch or (is_loop and instruction.depth > loops)
        for called in instruction.called:
            if is_uneven and _permutes(computations, called):
                return "cond" if is_branch else "while_loop"
            if place := _uneven(computations, called, loops):
                return place
    return None


def _permutes(computations: Mapping[str, list[_Instruction]], name: str) -> bool:
    """Return whether a computation has a `collective-permute`, also in one that it calls."""
    return any(
        instruction.name.startswith("collective-permute")
        or any(_permutes(computations, called) for called in instruction.called)
        for instruction in computations.get(name, ())
    )
