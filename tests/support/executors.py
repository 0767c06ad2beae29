"""Executors for tests: process pools, one that runs tasks in this process, and odd ones."""

import concurrent.futures
import multiprocessing
import os
import signal
import time

import jax

from rmsprop_jax._tune.run import worker
from rmsprop_jax._tune.run.worker import Missing


def pool(count=2, **options):
    """Return a pool of processes that know nothing of this one."""
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(count, mp_context=context, **options)


class Inline:
    """An executor that runs each task at once, in this process.

    Args:
      change: a function from a worker's outcome to the one that the caller gets.
    """

    num_workers = 1

    def __init__(self, change=lambda outcome: outcome):
        self.change, self.shut_down = change, 0

    def submit(self, function, /, *args):
        future = concurrent.futures.Future()
        try:
            future.set_result(self.change(function(*args)))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, wait=True, cancel_futures=False):
        self.shut_down += 1


class Counting:
    """An executor around another one that counts what is submitted, and what becomes of it."""

    def __init__(self, inner, counts):
        self.inner, self.counts = inner, counts

    def submit(self, function, /, *args):
        future = self.inner.submit(function, *args)
        self.counts["submitted"] += 1
        future.add_done_callback(self._note)
        return future

    def _note(self, future):
        if future.cancelled() or future.exception() is not None:
            self.counts["lost"] += 1
        else:
            missing = isinstance(future.result(), Missing)
            self.counts["missing" if missing else "done"] += 1

    def shutdown(self, **options):
        self.inner.shutdown(**options)


def kill_a_worker(executor, number=0):
    """Kill one of the processes of a pool."""
    processes = sorted(executor._processes)
    os.kill(processes[number % len(processes)], signal.SIGKILL)


def compiled_groups():
    """Return this process, and how many static groups it has compiled as a worker."""
    time.sleep(0.2)  # so that each worker answers
    return os.getpid(), worker.compiled_groups


def late(path):
    """Begin a worker; all but the first begin ten seconds late."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        time.sleep(10)


def two_devices():
    """Begin a worker with two devices."""
    jax.config.update("jax_num_cpu_devices", 2)


def cannot_start():
    raise OSError("no worker today")
