"""The collectives of a compiled program: which devices exchange data, and where in the program.

XLA prints the groups of devices in three forms: a list, `{{0,1},{2,3}}`; an iota, `[4,2]<=[8]`,
with or without a transposition, `T(1,0)`; and the axes of a mesh along which devices exchange data,
`mesh['trial'=4,'model'=2] {'model'}`. A `collective-permute` has pairs,
`source_target_pairs={{0,1},{1,0}}`.
"""

import re
from typing import NamedTuple

import numpy as np

KINDS = "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"
# Others that XLA knows; a program with one of them raises, so that none is overlooked.
OTHERS = "collective-broadcast", "ragged-all-to-all", "send", "recv"
INSTRUCTION = re.compile(rf"= .*?[\s)}}]({'|'.join((*KINDS, *OTHERS))})(?:-start)?\((?P<rest>.*)$")
LIST = re.compile(r"replica_groups=\{(\{[\d,]*\}(?:,\{[\d,]*\})*)?\}")
IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
AXES = re.compile(r"replica_groups=(?:@?mesh)\[([^\]]*)\]\s*\{([^}]*)\}")
PAIRS = re.compile(r"source_target_pairs=\{(\{\d+,\d+\}(?:,\{\d+,\d+\})*)\}")


class Collective(NamedTuple):
    """One instruction that exchanges data."""

    kind: str
    """The name of the instruction."""
    groups: tuple[tuple[int, ...], ...]
    """The devices that exchange data with each other, by their positions in the program."""
    place: str
    """The place in the traced function, JAX's name stack."""


def collectives(text: str, devices: int) -> list[Collective]:
    """Return the collectives of a compiled program.

    Args:
      text: the program, `compiled.as_text()`.
      devices: the number of devices that run it.

    Raises:
      ValueError: for groups in an unknown form.
    """
    found = []
    for line in text.splitlines():
        if match := INSTRUCTION.search(line):
            place = re.search(r'op_name="([^"]*)"', line)
            groups = groups_of(match["rest"], devices)
            found.append(Collective(match[1], groups, place[1] if place else ""))
    return found


def groups_of(attributes: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """Return the groups of devices in the attributes of an instruction."""
    numbers = lambda text: tuple(int(n) for n in text.split(",") if n.strip())
    if match := PAIRS.search(attributes):
        return tuple(numbers(pair) for pair in re.findall(r"\{([\d,]+)\}", match[1]))
    if match := IOTA.search(attributes):
        shape, of, order = numbers(match[1]), numbers(match[2]), match[3]
        array = np.arange(np.prod(of)).reshape(of)
        array = array.transpose(numbers(order)) if order else array
        return tuple(map(tuple, array.reshape(shape).tolist()))
    if match := LIST.search(attributes):
        if match[1] is None:  # all devices
            return (tuple(range(devices)),)
        return tuple(numbers(group) for group in re.findall(r"\{([\d,]*)\}", match[1]))
    if match := AXES.search(attributes):
        sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", match[1])}
        along = re.findall(r"'([^']+)'", match[2])
        array = np.arange(np.prod([*sizes.values()])).reshape([*sizes.values()])
        names = [*(name for name in sizes if name not in along), *along]
        array = array.transpose([list(sizes).index(name) for name in names])
        count = int(np.prod([sizes[name] for name in along]))
        return tuple(map(tuple, array.reshape(-1, count).tolist()))
    raise ValueError(f"groups of devices must have a known form, got {attributes[:300]!r}.")


def crossing(text: str, submeshes: list[list[int]]) -> list[Collective]:
    """Return the collectives that exchange data between submeshes.

    Args:
      text: the compiled program.
      submeshes: the devices of each trial, by their positions in the program.
    """
    of = {device: i for i, devices in enumerate(submeshes) for device in devices}
    return [
        one
        for one in collectives(text, len(of))
        if any(len({of[device] for device in group}) > 1 for group in one.groups)
    ]
