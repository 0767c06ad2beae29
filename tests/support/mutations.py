"""Faults put into the engine on purpose. The plain tests, green without them, must catch each.

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
        "_sweep/engine.py",
        "if donors or keeper.is_due():",
        "if donors or (changes and keeper.is_due()):",
        "test_schedulers.py",
    ),
    "a decision is written before the states of pruned trials": Mutation(
        "_sweep/decisions.py",
        """\
        before(decided)
        self._processes.on_first(lambda: write and write(encoded))
""",
        """\
        self._processes.on_first(lambda: write and write(encoded))
        before(decided)
""",
        "test_keeping.py",
    ),
    "decisions are replayed before trials are rewound": Mutation(
        "_sweep/sweep.py",
        "            ledger.stop_known(decisions.known)",
        "            ledger.stop_known(decisions.known), ledger.replay(decisions.known)",
        "test_keeping.py",
    ),
    "a copy's hyperparameters are not set on a resume": Mutation(
        "_sweep/ledger.py",
        "self.copy(decided, past.tolist())",
        "pass",
        "test_keeping.py",
    ),
    "the last partial batch of a wave does not run": Mutation(
        "_sweep/program.py",
        "every = -(-count // self.batch_size)",
        "every = max(1, count // self.batch_size)",
        "test_rounds.py",
    ),
    "every trial gets the key of seed 0": Mutation(
        "_sweep/pieces.py",
        "[key_of(seed) for seed in plan.seeds]",
        "[key_of(0) for seed in plan.seeds]",
        "test_sweep.py",
    ),
    "checkpoints of ended trials are kept": Mutation(
        "_sweep/keeping.py",
        "still = {name for t, (_, name) in self._stored.items() if not over[t]}",
        "still = {name for t, (_, name) in self._stored.items()}",
        "test_keeping.py",
    ),
    "partial waves all begin on device 0": Mutation(
        "_search/loop.py",
        "first = -(-taken // batch) % devices",
        "first = 0",
        "test_search.py",
    ),
    "a failed seed does not count in the ranking": Mutation(
        "_sweep/statistics.py",
        "(best_first, ~np.isfinite(table).all(1), ~feasible)",
        "(best_first, ~feasible)",
        "test_sweep.py",
    ),
    "a checkpoint is deleted before the new one is written": Mutation(
        "_sweep/keeping.py",
        "            for trials, reached, states in under_way:\n",
        "            for name in self._store.checkpoints():\n"
        "                self._store.delete(name)\n"
        "            for trials, reached, states in under_way:\n",
        "test_keeping.py",
    ),
}


def caught_by(mutation: Mutation) -> str | None:
    """Return the first test that fails under it, or None."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", "site", "*.egg-info")
        shutil.copytree(ROOT, copy, ignore=ignored)
        file = copy / "rmsprop_jax" / mutation.file
        text = file.read_text()
        if text.count(mutation.old) != 1:
            raise ValueError(f"{mutation.old!r} must be in {mutation.file} once. Change the table.")
        file.write_text(text.replace(mutation.old, mutation.new))
        tests = [f"tests/{name}" for name in mutation.tests.split()]
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", *tests],
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
