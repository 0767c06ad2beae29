"""Tasks on an executor: submitted, lost with their worker, and submitted again.

An executor ends a task in one of three ways:

- Its future has a result. `run_task` raises nothing, so the result is what the worker says.
- Its future has an exception, which is one of the engine: the worker was lost, for example.
- The executor *breaks*: `submit` raises. All its futures then fail. A process pool breaks when any
  of its processes is killed.

No class of an engine is imported. After an exception of a future, `submit` tells the two apart.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import uuid
from collections.abc import Generator, Mapping
from typing import Any

from rmsprop_jax._tune.executors import SUBMITTED_EACH, Executor
from rmsprop_jax._tune.run.batch import TrialBatch
from rmsprop_jax._tune.run.worker import Done, Failure, Missing, Task, Worker, run_task

SETTLE = 5.0  # seconds for the futures of a broken executor to end


@dataclasses.dataclass(eq=False)
class Submission:
    """A task, and the state of its submissions.

    Args:
      task: the task.
      batch: the batch of trials that the task runs.
      sent: the hashes of the contents that the next submission has with it.
      losses: how often the executor failed while it ran only this task.
    """

    task: Task
    batch: TrialBatch
    sent: set[str] = dataclasses.field(default_factory=set)
    losses: int = 0

    @property
    def description(self) -> str:
        """The task in words, for errors."""
        first, last = self.batch.trials[0], self.batch.trials[-1]
        trials = f"trial {first}" if first == last else f"trials {first} to {last}"
        return f"the task of {trials}, steps {self.task.start + 1} to {self.task.stops[-1]},"


class TaskPool:
    """The tasks of one call on an executor, which is made again when it breaks.

    Args:
      options: the executor and its options.
      contents: programs, args, and data by their hashes. It may grow.

    Attributes:
      workers: the number of workers.
      most: the largest number of tasks that are submitted at a time.
    """

    def __init__(self, options: Executor, contents: Mapping[str, bytes]):
        self._options, self._contents = options, contents
        self._executor, self._is_fresh = options.make(), False
        self.workers = options.workers_of(self._executor)
        self.most = SUBMITTED_EACH * self.workers
        self._call, self._count = uuid.uuid4().hex, itertools.count()
        self._waiting: collections.deque[Submission] = collections.deque()
        self._in_flight: dict[concurrent.futures.Future[Any], Submission] = {}
        self._suspects: list[Submission] = []
        """Tasks that run one at a time, because one of them may break the executor."""
        self._breaks = 0  # since a task last finished
        self._has_answer = False  # whether any worker ever answered
        self._abandoned = False  # whether tasks run on that nobody waits for
        self._seen: dict[tuple[str, str], list[Worker]] = {}

    # For the caller.

    def __len__(self) -> int:
        """Return the number of tasks that have not finished."""
        return len(self._waiting) + len(self._in_flight)

    def add(self, submission: Submission) -> None:
        """Add a task."""
        self._waiting.append(submission)

    def wait(self, seconds: float | None = None) -> Generator[tuple[Submission, Done]]:
        """Submit what waits, and yield tasks that finished; none after so many seconds.

        Raises:
          RuntimeError: for a task that failed or was lost too often, or for an executor that broke
            and cannot be made again.
        """
        self._submit_waiting()
        wait = concurrent.futures.wait
        done, _ = wait(self._in_flight, seconds, concurrent.futures.FIRST_COMPLETED)
        yield from self._take(done)

    def stop(self, seconds: float) -> Generator[tuple[Submission, Done]]:
        """Cancel the tasks that do not run yet, and yield those that finish in time.

        Args:
          seconds: how long to wait for the tasks that run.
        """
        self._waiting.clear()
        for future in list(self._in_flight):
            if future.cancel():
                del self._in_flight[future]
        concurrent.futures.wait(self._in_flight, seconds)
        for future, submission in self._in_flight.items():
            outcome = future.result() if future.done() and not _error_of(future) else None
            if isinstance(outcome, Done):
                yield submission, outcome
        self._abandoned = not all(future.done() for future in self._in_flight)
        self._in_flight.clear()

    def close(self) -> None:
        """Shut the executor down, if the sweep made it."""
        if self._options.is_remade:
            _shut_down(self._executor, wait=not (self._abandoned or self._in_flight))

    # Submissions.

    def _submit_waiting(self) -> None:
        """Submit waiting tasks, as many as may be submitted at a time."""
        while self._waiting and len(self._in_flight) < (1 if self._suspects else self.most):
            submission = self._waiting.popleft()
            if (error := self._submit(submission)) is not None:
                self._waiting.appendleft(submission)
                self._replace(None, error)

    def _submit(self, submission: Submission) -> Exception | None:
        """Submit a task. Return the error of an executor that is broken."""
        contents = {name: self._contents[name] for name in submission.sent}
        number = f"{self._call}-{next(self._count)}"
        try:
            future = self._executor.submit(run_task, submission.task, contents, number)
        except Exception as error:
            return error
        if not isinstance(future, concurrent.futures.Future):
            raise ValueError(
                "the executor's submit must return a concurrent.futures.Future, got "
                f"{future!r}. With Dask, pass client.get_executor(); with Ray, .future() of the "
                "object that a remote function returns."
            )
        self._in_flight[future], self._is_fresh = submission, False
        return None

    # Outcomes.

    def _take(self, done: set[Any]) -> Generator[tuple[Submission, Done]]:
        """Yield the tasks that finished, and submit the others again."""
        for future in [future for future in self._in_flight if future in done]:
            if (submission := self._in_flight.pop(future, None)) is None:
                continue  # it was lost with the executor
            if (error := _error_of(future)) is not None:
                self._lost(submission, error)
                continue
            outcome, self._has_answer = future.result(), True
            if isinstance(outcome, Failure):
                raise _failed(submission, outcome)
            self._refuse_shared_device(outcome.worker)
            if isinstance(outcome, Missing):
                submission.sent |= set(outcome.hashes)
                self._waiting.appendleft(submission)
                continue
            self._breaks = 0
            if submission in self._suspects:
                self._suspects.remove(submission)
            yield submission, outcome

    def _lost(self, submission: Submission, error: BaseException) -> None:
        """Submit a task again after its future failed; make the executor again if it broke."""
        was_alone = not self._in_flight
        if self._submit(submission) is None:  # the executor works: this task's worker was lost
            self._count_loss(submission, error)
            return
        if self._has_answer and was_alone:
            self._count_loss(submission, error)
        self._replace(submission, error)

    def _count_loss(self, submission: Submission, error: BaseException) -> None:
        submission.losses += 1
        if submission.losses > self._options.retries:
            raise RuntimeError(
                f"{submission.description} must not end its worker, but the executor lost it "
                f"{submission.losses} times, the last time with {_named(error)}. A worker may have "
                "too little memory. Run these points without an executor, or pass "
                f"executor=rj.Executor(..., retries={self._options.retries + 3})."
            ) from error

    def _replace(self, lost: Submission | None, error: BaseException) -> None:
        """Make a broken executor again, and run its unfinished tasks again.

        From the second break in a row, the unfinished tasks run one at a time, so that the task
        that breaks the executor is known.

        Args:
          lost: a task whose future failed; None if `submit` of a new task raised.
          error: the error of that future, or of `submit`.

        Raises:
          RuntimeError: if no worker has ever answered, or if nothing can make the executor again.
        """
        concurrent.futures.wait(self._in_flight, SETTLE)
        again = [lost] if lost else []
        for future, submission in list(self._in_flight.items()):
            if not future.done() or _error_of(future):  # otherwise `wait` takes its result
                future.cancel()
                del self._in_flight[future]
                again.append(submission)
        self._waiting.extendleft(reversed(again))
        if lost and not self._has_answer:
            raise RuntimeError(
                "the executor must start workers that can run tasks, but it broke before any "
                f"worker answered, with {_named(error)}. Possible causes: the script calls sweep "
                'without if __name__ == "__main__"; the code comes from stdin or a notebook; a '
                "worker cannot import rmsprop_jax, or has too little memory. Put the call into a "
                'file, under if __name__ == "__main__".'
            ) from error
        if not self._options.is_remade or self._is_fresh:
            raise RuntimeError(
                "the executor must accept tasks until the sweep ends, but it broke with "
                f"{_named(error)}. The finished trials are saved. Pass a function that makes an "
                "executor, so that the sweep can make it again: executor=lambda: "
                "ProcessPoolExecutor(2, mp_context=get_context('spawn'))."
            ) from error
        self._breaks += 1
        self._seen.clear()
        _shut_down(self._executor, wait=False)
        self._executor, self._is_fresh = self._options.make(), True
        if self._breaks > 1:
            self._suspects = again + [one for one in self._suspects if one not in again]

    def _refuse_shared_device(self, worker: Worker) -> None:
        """Raise ValueError if two workers have the same accelerator.

        A worker that was lost may be followed by another one on its device. Two workers share a
        device if the first answers again after the second.
        """
        if worker.platform == "cpu":
            return
        for device in worker.devices:
            seen = self._seen.setdefault((worker.host, device), [])
            if worker in seen and seen[-1] != worker:
                raise ValueError(
                    f"each worker must have accelerators of its own, but the processes "
                    f"{seen[-1].process} and {worker.process} of {worker.host} share the device "
                    f"{device}. Start one worker for each device, and set CUDA_VISIBLE_DEVICES "
                    "before it imports JAX."
                )
            if worker not in seen:
                seen.append(worker)


def _shut_down(executor: Any, *, wait: bool) -> None:
    """Shut an executor down, as far as it can be."""
    if (shutdown := getattr(executor, "shutdown", None)) is None:
        return
    with contextlib.suppress(Exception):
        try:
            shutdown(wait=wait, cancel_futures=True)
        except TypeError:  # an executor without `cancel_futures`
            shutdown(wait=wait)


def _failed(submission: Submission, failure: Failure) -> RuntimeError:
    error = RuntimeError(
        f"{submission.description} must run without an error, but its worker raised "
        f"{failure.kind}: {failure.message}"
    )
    error.add_note(f"The traceback of the worker:\n{failure.traceback}")
    return error


def _error_of(future: "concurrent.futures.Future[Any]") -> BaseException | None:
    """Return the exception of a future that is done, or None."""
    return concurrent.futures.CancelledError() if future.cancelled() else future.exception()


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
