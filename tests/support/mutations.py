"""Faults put into the engine on purpose. The tests, green without them, must catch each.

`python -m tests.support.mutations [NAME ...]` applies one at a time to a copy of this checkout,
runs the test files that should catch it, and exits with 1 if one survives.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Mutation(NamedTuple):
    """A fault of the engine."""

    file: str
    """Below `rmsprop_jax`."""
    old: str
    """A snippet that is there once."""
    new: str
    tests: str
    """Files below `tests`, separated by spaces."""


MUTATIONS = {
    "no checkpoint is due after an empty decision": Mutation(
        "_tune/run/synchronous.py",
        "if has_copied or is_time_up or self._session.checkpoints.is_due():",
        "if has_copied or is_time_up or (\n"
        "                step not in schedule.rungs and self._session.checkpoints.is_due()\n"
        "            ):",
        "tune/test_schedulers.py",
    ),
    "a decision is written before the states of pruned trials": Mutation(
        "_tune/run/synchronous.py",
        """\
            self._keep_pruned(decision)
            log.write(decision)
""",
        """\
            log.write(decision)
            self._keep_pruned(decision)
""",
        "tune/trials/test_checkpoints.py",
    ),
    "decisions are replayed before trials are rewound": Mutation(
        "_tune/session.py",
        """\
            session.checkpoints.rewind()
            session._apply_copies()
""",
        """\
            session._apply_copies()
            session.checkpoints.rewind()
""",
        "tune/trials/test_checkpoints.py",
    ),
    "a copy's hyperparameters are not set on a resume": Mutation(
        "_tune/trials/table.py",
        "self.copy(decision, past.tolist())",
        "pass",
        "tune/trials/test_checkpoints.py",
    ),
    "the last partial batch of a wave does not run": Mutation(
        "_tune/compile/layout.py",
        "batches = -(-count // self.batch_size)",
        "batches = max(1, count // self.batch_size)",
        "tune/run/test_runners.py",
    ),
    "every trial gets the key of seed 0": Mutation(
        "_tune/trials/table.py",
        "key_data_of(spec.seeds)",
        "key_data_of(0 for _ in spec.seeds)",
        "tune/test_sweep.py",
    ),
    "checkpoints of ended trials are kept": Mutation(
        "_tune/trials/checkpoints.py",
        "{x.file for trial, x in self._newest.items() if not written[trial]}",
        "{x.file for trial, x in self._newest.items()}",
        "tune/trials/test_checkpoints.py",
    ),
    "partial waves all begin on device 0": Mutation(
        "_tune/search/runner.py",
        "first = -(-loose // self._backend.layout(group).batch_size) % submeshes",
        "first = 0",
        "tune/search/test_search.py",
    ),
    "a failed seed does not count in the ranking": Mutation(
        "_tune/results/statistics.py",
        "(best_first, ~np.isfinite(table).all(1), ~feasible)",
        "(best_first, ~feasible)",
        "tune/test_sweep.py",
    ),
    "a checkpoint is deleted before the new one is written": Mutation(
        "_tune/trials/checkpoints.py",
        "            states = batch.fetch()\n",
        "            for name in self._folder.checkpoint_files() if self._folder else ():\n"
        "                self._folder.delete(name)\n"
        "            states = batch.fetch()\n",
        "tune/trials/test_checkpoints.py",
    ),
}


def caught_by(mutation: Mutation) -> str | None:
    """Return the first test that fails under it, or None."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", "site", "*.egg-info")
        shutil.copytree(ROOT, copy, ignore=ignored)
        file = copy / "rmsprop_jax" / mutation.file
        text = file.read_text("utf-8")
        if text.count(mutation.old) != 1:
            raise ValueError(f"{mutation.file} must have {mutation.old!r} once. Change the table.")
        file.write_text(text.replace(mutation.old, mutation.new))
        tests = [f"tests/{name}" for name in mutation.tests.split()]
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-m", "", *tests],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
        )
    if run.returncode not in (0, 1):  # the tests did not run
        raise RuntimeError(f"pytest ended with {run.returncode}:\n{run.stdout}{run.stderr}")
    failed = [line for line in run.stdout.splitlines() if line.startswith("FAILED")]
    return failed[0].split()[1] if failed else None


def main(names: list[str]) -> int:
    """Run the mutations of these names, or all; the exit status."""
    survivors = 0
    for name in names or MUTATIONS:
        begin = time.perf_counter()
        test = caught_by(MUTATIONS[name])
        seconds = time.perf_counter() - begin
        outcome = f"caught by {test}" if test else "SURVIVED"
        print(f"{name}: {outcome}, in {seconds:.0f} s", flush=True)
        survivors += test is None
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
