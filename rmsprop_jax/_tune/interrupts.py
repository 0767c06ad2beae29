"""What an exception gives a user: what was finished before it."""

import contextlib
from collections.abc import Generator

from rmsprop_jax._tune.results.result import SweepResult
from rmsprop_jax._tune.session import Session


class SweepInterrupted(KeyboardInterrupt):
    """Ctrl-C during a sweep; `result` holds the trials that were finished.

    Attributes:
      result: a `SweepResult` of them, and of those under way, which are "unfinished".
    """

    def __init__(self, result: SweepResult):
        super().__init__(result)  # as `pickle` makes it again
        self.result = result

    def __str__(self) -> str:
        return (
            f"interrupted; .result holds what is finished: {self.result!r}. What JAX has begun (a "
            "wave, a compile) it brings to its end before this process can end."
        )


@contextlib.contextmanager
def interruptible(session: Session) -> Generator[None]:
    """Give the exception of a call a `.result` with what was finished.

    Raises:
      SweepInterrupted: on Ctrl-C. Any other exception goes on as it is, with a note.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise SweepInterrupted(session.result()) from interrupt
    except BaseException as error:  # SystemExit, too, as a handler of SIGTERM raises it
        error.__dict__["result"] = result = session.result()
        error.add_note(f"What was finished is in this exception's .result: {result!r}")
        raise
