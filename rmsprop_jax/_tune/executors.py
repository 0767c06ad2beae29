"""`Executor`: the options of a sweep whose trials run on the workers of an executor."""

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

from rmsprop_jax._tune.space.values import is_int, is_real

SUBMITTED_EACH = 2  # tasks for each worker that are submitted at a time
MOST_STATE_BYTES = 2**26  # of the states of one task
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
EXAMPLE = "executor=lambda: ProcessPoolExecutor(2, mp_context=multiprocessing.get_context('spawn'))"


@dataclasses.dataclass(frozen=True)
class Executor:
    """An executor whose workers run the trials of a sweep, and its options.

    A worker is a process with JAX. It runs one task at a time, on all its devices. A task is some
    trials, from one step to another.

    Args:
      factory: a function without arguments that makes an executor, or an executor: an object with
        `submit(fn, /, *args)`, which returns a `concurrent.futures.Future`. A sweep can replace a
        broken executor only if it has the function. It shuts down the executors that the function
        made, and no other.
      workers: the number of workers. At most twice as many tasks are submitted at a time. `None`:
        the attribute `num_workers` or `max_workers` of the executor if it has one, otherwise the
        number of this machine's cores.
      task_seconds: the time in seconds that a task should take. It is also the longest time for
        which a sweep that was stopped waits for the tasks that run.
      retries: how often a task may run again after an error of the executor, for example after its
        worker was lost while it ran no other task. A break of an executor ends all of its tasks;
        it counts for a task only if the task ran alone.
      platforms: the platforms for which programs are made, of "cpu", "cuda", "rocm", and "tpu".
        `None`: the platform of this process.

    Raises:
      ValueError: for a value out of range.
    """

    factory: Any
    workers: int | None = None
    task_seconds: float = 60
    retries: int = 3
    platforms: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not callable(self.factory) and not is_executor(self.factory):
            raise ValueError(
                "executor must be a function that makes an executor, or an object with submit(fn, "
                f"*args), got {self.factory!r}. Pass {EXAMPLE}."
            )
        if self.workers is not None and (not is_int(self.workers) or self.workers < 1):
            raise ValueError(
                f"workers must be an int of at least 1, or None, got {self.workers!r}. Pass "
                "workers=2."
            )
        seconds = self.task_seconds
        if not is_real(seconds) or not 0 < seconds < float("inf"):
            raise ValueError(
                f"task_seconds must be a number of seconds above 0, got {seconds!r}. Pass "
                "task_seconds=60."
            )
        if not is_int(self.retries) or self.retries < 0:
            raise ValueError(
                f"retries must be an int of at least 0, got {self.retries!r}. Pass retries=3."
            )
        platforms = self.platforms
        if platforms is None:
            return
        known = not isinstance(platforms, str) and len(platforms) > 0
        if not known or not set(platforms) <= set(PLATFORMS):
            raise ValueError(
                f"platforms must be a list with some of {list(PLATFORMS)}, got {platforms!r}. Pass "
                'platforms=["cuda"].'
            )

    def make(self) -> Any:
        """Return an executor.

        Raises:
          ValueError: if the factory returns something else.
        """
        if not self.is_remade:
            return self.factory
        made = self.factory()
        if not is_executor(made):
            raise ValueError(
                "executor must be a function that makes an executor, an object with submit(fn, "
                f"*args), got a function that returned {made!r}. Pass {EXAMPLE}."
            )
        return made

    @property
    def is_remade(self) -> bool:
        """Whether the sweep can make the executor again."""
        return not is_executor(self.factory)

    def under_way(self, state_bytes: int, batch_size: int) -> int:
        """Return the largest number of trials whose states the caller holds, without a scheduler.

        Args:
          state_bytes: the bytes of the state of a trial.
          batch_size: the number of trials in a batch.
        """
        tasks = SUBMITTED_EACH * self.workers_of(self.factory)
        return tasks * max(batch_size, most_trials(state_bytes))

    def workers_of(self, executor: Any) -> int:
        """Return the number of workers of an executor."""
        if self.workers is not None:
            return int(self.workers)
        for name in ("num_workers", "max_workers"):
            count = getattr(executor, name, None)
            if is_int(count) and count > 0:
                return int(count)
        return os.cpu_count() or 1


def most_trials(state_bytes: int) -> int:
    """Return the largest number of trials of a task, whose states travel together."""
    return max(1, MOST_STATE_BYTES // max(state_bytes, 1))


def require_extra() -> None:
    """Raise ValueError unless the packages that an executor needs are installed."""
    for package in ("cloudpickle", "flatbuffers"):  # JAX exports programs by flatbuffers
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"a sweep with an executor must have the package {package}, but it is not "
                'installed. Run: pip install "rmsprop_jax[executor]".'
            )


def copied(function: Any) -> bytes:
    """Return a function as bytes that another process can load.

    Raises:
      ValueError: for a function that cannot be copied.
    """
    import cloudpickle

    try:
        return cloudpickle.dumps(function)
    except Exception as error:
        raise ValueError(
            "batches must be a function that cloudpickle can copy to the workers, but cloudpickle "
            f"raised {type(error).__name__}: {error}. Open files and generators inside batches, "
            "not outside."
        ) from error


def is_executor(value: Any) -> bool:
    """Return whether a value is an executor, and not a class of executors."""
    return not isinstance(value, type) and callable(getattr(value, "submit", None))
