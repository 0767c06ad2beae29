"""Examples in their --quick form, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def quick(script: Path, folder: Path) -> str:
    """Run a script without a warning, with its files in the folder; return what it printed."""
    cache = "ignore:Error reading persistent compilation cache"  # JAX compiles again
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", cache, script, "--quick", "--output", folder],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
