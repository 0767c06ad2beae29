"""Why a training cannot be traced: what was done to a traced value, where, and what helps.

A guess is checked before it is said: an axis is named only where the error goes away once its
numbers are not traced.
"""

import linecache
import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

# Frames of these are not where somebody's own code went wrong.
LIBRARIES = tuple(
    str(folder) + os.sep
    for folder in (
        Path(jax.__file__).parent,
        Path(np.__file__).parent,
        Path(__file__).parents[1],
    )
)

KINDS: tuple[tuple[type[Exception], str, str], ...] = (
    (
        jax.errors.TracerBoolConversionError,
        "as a bool (if, while, and, or, not)",
        "jnp.where, jax.lax.cond or, for a loop that ends early, jax.lax.while_loop",
    ),
    (
        jax.errors.TracerIntegerConversionError,
        "as an index or a whole number of Python's",
        "jnp indexing, x[i], for a list; jax.lax.fori_loop for range",
    ),
    (
        jax.errors.TracerArrayConversionError,
        "as a NumPy array",
        "the function of that name in jax.numpy (jnp.log10 for np.log10)",
    ),
    (
        jax.errors.NonConcreteBooleanIndexError,
        "as a mask that decides a shape",
        "jnp.where(mask, x, other)",
    ),
    (
        jax.errors.ConcretizationTypeError,
        "as a Python number (float, int, math, a shape, range)",
        "the array itself, not float(x); the function of that name in jax.numpy (jnp.log for "
        "math.log); jax.lax.fori_loop for range",
    ),
    (
        TypeError,
        "as a Python number (a shape, range or format)",
        "jax.lax.fori_loop for range; jax.debug.print for a formatted string",
    ),
)
SHAPE = "as a shape, an index, a bool or a Python number"


def explain(
    error: Exception,
    trace_with: Callable[[Sequence[str]], object],
    names: Sequence[str],
    what: str,
) -> ValueError | None:
    """A better error than this one, or None where nothing better is known.

    Args:
      error: what tracing raised.
      trace_with: traces anew, the named values as Python numbers; raises what that raises.
      names: all that may be named: axes, and numbers among the arguments (`args[0]`).
      what: "train", or whatever was traced.
    """
    culprits = _culprits(trace_with, names)
    kind = next((row for row in KINDS if isinstance(error, row[0])), None)
    traced = isinstance(error, jax.errors.JAXTypeError | jax.errors.JAXIndexError)
    traced |= isinstance(error, TypeError) and "Tracer" in str(error)
    if not culprits and not traced:
        return None
    place = where(error)
    if not culprits:
        assert kind is not None
        return ValueError(
            f"{what} used a traced value {kind[1]}{place}. Everything that depends on hp, the key "
            f"or args is traced. Instead: {kind[2]}."
        )
    axes = [name for name in culprits if not name.startswith("args[")]
    said = " and ".join(map(repr, culprits)) if axes else " and ".join(culprits)
    remedy = f"Instead: {kind[2]}" if kind else "Instead: what works on traced arrays"
    if axes and len(axes) == len(culprits):
        if _is_mathematics(error):
            return ValueError(
                f"{what} used {said} {kind[1] if kind else SHAPE}{place}, but the numbers of an "
                f"axis are traced, so that one program serves all of them. {remedy}."
            )
        return ValueError(
            f"{what} used {said} as a shape, an index, a bool or a Python number{place}, but the "
            "numbers of an axis are traced, so that one program serves all of them. Mark the "
            f"axis as structure, {axes[0]}=rmsprop_jax.static([...]), or use jnp.where or "
            f"jax.lax.cond.{'' if kind else f' It said: {error}'}"
        )
    return ValueError(
        f"{what} used {said} {SHAPE}{place}, but the numbers in args are traced. Let {what} close "
        "over it instead (functools.partial), or make it a static axis."
    )


def _culprits(trace_with: Callable[[Sequence[str]], object], names: Sequence[str]) -> list[str]:
    """The smallest set of names found that, as Python numbers, make the error go away."""

    def works(some: Sequence[str]) -> bool:
        try:
            trace_with(some)
        except Exception:
            return False
        return True

    left = list(names)
    if not left or not works(left):
        return []
    for name in names:
        if works(fewer := [other for other in left if other != name]):
            left = fewer
    return left


def _is_mathematics(error: Exception) -> bool:
    """Whether the number itself was wanted, not a shape or a branch: then a jnp function serves."""
    if isinstance(error, jax.errors.TracerArrayConversionError):
        return True
    text = str(error)
    return "`float` function" in text or "__format__" in text or "`complex` function" in text


def where(error: Exception) -> str:
    """The last line of somebody's own code on the way to an error, with what stands there."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(LIBRARIES)]
    outside = [f for f in own if "site-packages" not in f.filename]
    if not (own := outside or own):
        return ""
    last = own[-1]
    code = (last.line or linecache.getline(last.filename, last.lineno or 0)).strip()
    return f" at {last.filename}:{last.lineno}" + (f", `{code}`" if code else "")
