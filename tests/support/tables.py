"""Tables of cases, of which the plain suite runs some and the slow tests all others."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pytest

Table = Mapping[str, Any] | Sequence[Any]


def few(table: Table, plain: Collection[Any], *, unpack: bool = False) -> list[Any]:
    """Return the rows of a table for `parametrize`.

    Args:
      table: values by their ids, or a list of values.
      plain: the ids, of a list the values, of the rows that the plain suite runs.
      unpack: whether a value is a tuple, with an item for each of several arguments.
    """
    rows = _rows(table)
    keys = list(table)
    missing = [key for key in plain if key not in keys]
    assert not missing, f"the table has no {missing}"
    return [
        pytest.param(
            *(value if unpack else [value]),
            id=name,
            marks=() if key in plain else pytest.mark.slow,
        )
        for key, (name, value) in zip(keys, rows, strict=True)
    ]


def crossed(*axes: Table, plain: Collection[str] | None = None) -> list[Any]:
    """Return all combinations of the axes' values for `parametrize`.

    Args:
      *axes: values by their ids, or a list of values.
      plain: the ids of the combinations that the plain suite runs, parts joined by "-". By default
        the diagonal, which has each value of each axis at least once.
    """
    rows = [_rows(axis) for axis in axes]
    diagonal = {tuple(i % len(axis) for axis in rows) for i in range(max(map(len, rows)))}
    cells, names = [], set()
    for places in itertools.product(*(range(len(axis)) for axis in rows)):
        cell = [axis[i] for axis, i in zip(rows, places, strict=True)]
        name = "-".join(name for name, _ in cell)
        names.add(name)
        is_plain = places in diagonal if plain is None else name in plain
        marks = () if is_plain else pytest.mark.slow
        cells.append(pytest.param(*(value for _, value in cell), id=name, marks=marks))
    assert names.issuperset(plain or ()), f"the table has no {set(plain or ()) - names}"
    return cells


def _rows(table: Table) -> list[tuple[str, Any]]:
    """The id and the value of each row."""
    if isinstance(table, Mapping):
        return list(table.items())
    name = lambda i, value: str(value) if isinstance(value, str | int | float | None) else str(i)
    return [(getattr(value, "__name__", name(i, value)), value) for i, value in enumerate(table)]
