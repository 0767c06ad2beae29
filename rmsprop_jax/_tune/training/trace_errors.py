"""Errors for a training that cannot be traced: the traced value, its use, the line, and the fix.

An error names an offending axis only after a check: with the numbers of this axis as Python
numbers, the training must trace.
"""

import linecache
import os
import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

# Frames of these packages are skipped: the line to show is in the user's own code.
LIBRARIES = tuple(
    str(folder) + os.sep
    for folder in (
        Path(jax.__file__).parent,
        Path(np.__file__).parent,
        Path(__file__).parents[1],
    )
)

# For each exception of JAX: the use of a traced value, and the alternative.
KINDS: tuple[tuple[type[Exception], str, str], ...] = (
    (
        jax.errors.TracerBoolConversionError,
        "as a bool (if, while, and, or, not)",
        "jnp.where or jax.lax.cond; for a loop that ends early, jax.lax.while_loop",
    ),
    (
        jax.errors.TracerIntegerConversionError,
        "as an index or a Python integer",
        "jnp indexing, x[i], for a list; jax.lax.fori_loop for range",
    ),
    (
        jax.errors.TracerArrayConversionError,
        "as a NumPy array",
        "the function of the same name in jax.numpy (jnp.log10 for np.log10)",
    ),
    (
        jax.errors.NonConcreteBooleanIndexError,
        "as a mask that decides a shape",
        "jnp.where(mask, x, other)",
    ),
    (
        jax.errors.ConcretizationTypeError,
        "as a Python number (float, int, math, a shape, range)",
        "the array itself instead of float(x); the function of the same name in jax.numpy (jnp.log "
        "for math.log); jax.lax.fori_loop for range",
    ),
    (
        TypeError,
        "as a Python number (a shape, range or format)",
        "jax.lax.fori_loop for range; jax.debug.print for a formatted string",
    ),
)
# A mistake with types, which a Python number would not repair: x / (1, 2), x < "a", x().
OF_TYPES = re.compile(
    r"unsupported operand type\(s\) for (?!\*)|not supported between|is not callable|concatenate"
)
SHAPE = "as a shape, an index, a bool, or a Python number"


def explain(
    error: Exception,
    trace_with: Callable[[Sequence[str]], object],
    names: Sequence[str],
    what: str,
) -> ValueError | None:
    """Return a clearer error than this one, or None if there is none.

    Args:
      error: the error of the trace.
      trace_with: a function that traces again with the named values as Python numbers.
      names: all values that may be the cause: axes, and numbers among the arguments (`args[0]`).
      what: the name of the function that was traced, for example "train".
    """
    offending = _offending(trace_with, names)
    kind = next((row for row in KINDS if isinstance(error, row[0])), None)
    is_of_tracer = isinstance(error, jax.errors.JAXTypeError | jax.errors.JAXIndexError)
    is_of_tracer |= (
        isinstance(error, TypeError) and "Tracer" in str(error) and not OF_TYPES.search(str(error))
    )
    if not offending and not is_of_tracer:
        return None
    place = where(error)
    if not offending:
        assert kind is not None
        return ValueError(
            f"{what} used a traced value {kind[1]}{place}. Everything that depends on hp, the key, "
            f"or args must stay a traced array. Use {kind[2]}."
        )
    axes = [name for name in offending if not name.startswith("args[")]
    values = " and ".join(map(repr, offending)) if axes else " and ".join(offending)
    use = kind[2] if kind else "functions that work on traced arrays"
    if axes and len(axes) == len(offending):
        if _is_mathematics(error):
            return ValueError(
                f"{what} used {values} {kind[1] if kind else SHAPE}{place}. The numbers of an axis "
                f"must stay traced arrays, because one program serves all of them. Use {use}."
            )
        return ValueError(
            f"{what} used {values} {SHAPE}{place}. The numbers of an axis must stay traced arrays, "
            "because one program serves all of them. Make the axis static, "
            f"{axes[0]}=rmsprop_jax.static([...]), or use jnp.where or jax.lax.cond."
            f"{'' if kind else f' The original error was: {error}'}"
        )
    return ValueError(
        f"{what} used {values} {SHAPE}{place}. The numbers in args must stay traced arrays. Close "
        f"over the number instead, functools.partial({what}, ...), or make it a static axis."
    )


def _offending(trace_with: Callable[[Sequence[str]], object], names: Sequence[str]) -> list[str]:
    """Return a smallest set of values that, as Python numbers, make the error go away."""

    def works(candidates: Sequence[str]) -> bool:
        try:
            trace_with(candidates)
        except Exception:
            return False
        return True

    remaining = list(names)
    if not remaining or not works(remaining):
        return []
    for name in names:
        if works(fewer := [other for other in remaining if other != name]):
            remaining = fewer
    return remaining


def _is_mathematics(error: Exception) -> bool:
    """Return whether a function of jax.numpy can replace the one that failed.

    It can if the failing function needed the number itself, not a shape or a branch.
    """
    if isinstance(error, jax.errors.TracerArrayConversionError):
        return True
    text = str(error)
    return "`float` function" in text or "__format__" in text or "`complex` function" in text


def where(error: Exception) -> str:
    """Return the innermost line of the user's own code in a traceback: " at file:line, `code`"."""
    frames = traceback.extract_tb(error.__traceback__)
    users = [f for f in frames if not f.filename.startswith(LIBRARIES)]
    outside = [f for f in users if "site-packages" not in f.filename]
    if not (users := outside or users):
        return ""
    last = users[-1]
    code = (last.line or linecache.getline(last.filename, last.lineno or 0)).strip()
    return f" at {last.filename}:{last.lineno}" + (f", `{code}`" if code else "")
