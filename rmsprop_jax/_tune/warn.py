"""Warnings that show the user's line that called this package."""

import inspect
import warnings


def warn_caller(message: str) -> None:
    """Issue a UserWarning that shows the line outside this package that led to this call.

    Args:
      message: the text of the warning.
    """
    level, frame, inner = 1, inspect.currentframe(), ("rmsprop_jax.", "contextlib")
    while frame is not None and frame.f_globals.get("__name__", "").startswith(inner):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
