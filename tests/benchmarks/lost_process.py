"""How long the loss of a process takes to end the others, in one program over two processes.

Each row starts two processes that sweep together, kills one of them with SIGKILL, and counts the
seconds until the other one has ended.
"""

import os
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp

import rmsprop_jax as rj
from tests.benchmarks.runner import header, row

DEFAULT = "default"  # of jax.distributed.initialize


def main(quick: bool, seconds: int = 10):
    yield (
        "\n## A lost process: one program over two processes\n\n"
        "The seconds from SIGKILL to the end of the other process. The heartbeat is the argument "
        "`heartbeat_timeout_seconds` of `jax.distributed.initialize`. Each row is one run.\n"
    )
    yield header("killed", "heartbeat s", "seconds until the other process ended")
    cases = [(0, DEFAULT), (1, str(seconds)), *([] if quick else [(1, DEFAULT)])]
    for victim, heartbeat in cases:
        yield row(f"process {victim}", heartbeat, f"{until_the_end(victim, heartbeat):.1f}")


def until_the_end(victim: int, heartbeat: str) -> float:
    """Return the seconds from the kill of a process to the end of the other one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", __name__]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    both = [
        subprocess.Popen(
            [*command, str(i), port, heartbeat],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        for i in range(2)
    ]
    try:
        assert both[0].stdout is not None
        both[0].stdout.readline()  # the first report
        both[victim].kill()
        start = time.perf_counter()
        both[1 - victim].communicate(timeout=600)
        return time.perf_counter() - start
    finally:
        for process in both:
            process.kill()
            process.communicate()


def sweep_together(index: int, port: str, heartbeat: str) -> None:
    """Sweep as one of two processes, for longer than any of them lives."""
    options = {} if heartbeat == DEFAULT else {"heartbeat_timeout_seconds": int(heartbeat)}
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, index, **options)
    step = lambda hp, state, key: (state + hp["x"], {"loss": state.sum()})
    rj.sweep(
        rj.Training(lambda hp, key: jnp.zeros(3), step),
        rj.grid(x=[1.0, 2.0]),
        steps=100_000,
        evaluate_every=10,
        callback=(lambda report: print("report", flush=True)) if index == 0 else None,
        progress=False,
    )


if __name__ == "__main__":
    sweep_together(int(sys.argv[1]), *sys.argv[2:])
