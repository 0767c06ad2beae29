"""Interrupts: the result that an exception of a call carries, and calls that Ctrl-C waits for."""

import contextlib
import signal
import threading
from collections.abc import Generator
from types import FrameType
from typing import Any

from rmsprop_jax._tune.results.result import SweepResult
from rmsprop_jax._tune.session import Session


class SweepInterrupted(KeyboardInterrupt):
    """The exception for Ctrl-C during a sweep. Its `result` holds the finished trials.

    Attributes:
      result: a `SweepResult` of all trials. Trials under way, and trials that have not begun, have
        the status "unfinished".
    """

    def __init__(self, result: SweepResult):
        super().__init__(result)  # `pickle` calls the class with these arguments
        self.result = result

    def __str__(self) -> str:
        return (
            f"the sweep was interrupted, and .result holds the finished trials: {self.result!r}. "
            "This process can only end after JAX has finished the wave or the compilation under "
            "way."
        )


@contextlib.contextmanager
def interruptible(session: Session) -> Generator[None]:
    """Give every exception of a call a `.result` with the finished trials.

    Raises:
      SweepInterrupted: on Ctrl-C. Any other exception is raised unchanged, with a note.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise SweepInterrupted(session.result()) from interrupt
    except BaseException as error:  # also the SystemExit of a handler of SIGTERM
        error.__dict__["result"] = result = session.result()
        error.add_note(f"The finished trials are in this exception's .result: {result!r}")
        raise


@contextlib.contextmanager
def deferred() -> Generator[None]:
    """Let Ctrl-C and SIGTERM wait until the block ends. A second signal does not wait."""
    waiting: list[int] = []
    handlers: dict[int, Any] = {}

    def later(number: int, frame: FrameType | None) -> None:
        if waiting:
            handlers[number](number, frame)
        else:
            waiting.append(number)

    if threading.current_thread() is threading.main_thread():  # no other thread runs handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(handler := signal.getsignal(number)):
                handlers[number] = handler
                signal.signal(number, later)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in waiting:
            signal.raise_signal(number)
