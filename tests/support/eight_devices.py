"""Tests in another process, with 8 CPU devices, where a hang ends after a minute.

The other process runs one test after the other. After a failure, a new process runs the next test.
"""

import atexit
import functools
import importlib
import json
import os
import select
import subprocess
import sys
import tempfile
import traceback

import jax

LIMIT = 60  # seconds; XLA itself aborts a collective that waits for 40
# Compiling takes most of the time of these tests.
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


class Child:
    """A process that runs tests by their names."""

    def __init__(self):
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (as long as the process)
        answers, write = os.pipe()
        self._answers = os.fdopen(answers)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(write)],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            text=True,
            env=os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"},
            pass_fds=[write],
        )
        os.close(write)

    def run(self, request: list, limit: float) -> str:
        """Return the error of a test, or "" if it passed."""
        assert self._process.stdin is not None
        print(json.dumps(request, default=os.fspath), file=self._process.stdin, flush=True)
        ready, _, _ = select.select([self._answers], [], [], limit)
        answer = self._answers.readline() if ready else ""
        if answer:
            return json.loads(answer)
        self._log.seek(0)
        cause = "the process died" if ready else f"the test did not end within {limit} s"
        return f"{cause}:\n{self._log.read()[-20_000:]}"

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


_children: list[Child] = []


@atexit.register
def _stop() -> None:
    while _children:
        _children.pop().stop()


def on_eight_devices(test=None, *, limit=LIMIT):
    """Run a test in a process with 8 CPU devices. Its arguments must be JSON or paths."""
    if test is None:
        return functools.partial(on_eight_devices, limit=limit)

    @functools.wraps(test)
    def run(**arguments):
        if not _children:
            _children.append(Child())
        error = _children[0].run([test.__module__, test.__name__, arguments], limit)
        if error:
            _stop()
            raise AssertionError(error)

    return run


def serve(answers: int) -> None:
    """Run the tests that the standard input names, and write an answer for each."""
    jax.config.update("jax_num_cpu_devices", 8)
    if folder := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    with os.fdopen(answers, "w") as out:
        for line in sys.stdin:
            module, name, arguments = json.loads(line)
            error = ""
            try:
                getattr(importlib.import_module(module), name).__wrapped__(**arguments)
            except BaseException:
                error = traceback.format_exc()
            print(json.dumps(error), file=out, flush=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
