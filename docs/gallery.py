"""Draw the pictures of the pages: `python docs/gallery.py [NAME ...]`.

The program runs the examples below, and saves their pictures, tables, and printed output in
`docs/pages/pictures`. `drawn.json` has the hash of the code that drew each picture. A test compares
this hash with the hash of the present code.
"""

import argparse
import ast
import hashlib
import io
import json
import platform
import shutil
import subprocess
import sys
import time
import tokenize
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pages" / "pictures"
DRAWN = PICTURES / "drawn.json"
KEPT = {".png", ".gif", ".csv"}
EXAMPLES = (
    *("trajectories", "effective_step", "nonstationary", "adam_is_momentum_plus_rmsprop"),
    *("numerical_example", "learned_hyperparameters", "lstm_language_model", "two_byte_state"),
    *("lstm_sweep", "population", "optuna_search", "sharded_trials", "a2c", "dqn"),
    *("literature/shi2021", "literature/cohen2025"),
    *("literature/malladi2022", "literature/kunstner2024"),
)


def code_hash(name):
    text = "".join(drawing_code(file.read_text("utf-8")) for file in code_of(name))
    return hashlib.sha256(text.encode()).hexdigest()


def code_of(name):
    """Return the files of an example, of its imports in the folder, the plots, and the optimizer.

    The sweep is left out. The sweep's tests check that each trial equals `jax.jit(train)` bit for
    bit, so no change of the sweep changes a picture.
    """
    package, examples = ROOT / "rmsprop_jax", ROOT / "examples"
    files = {package / "presets.py", *package.glob("plots/*.py"), *package.glob("_optimizer/*.py")}
    files.remove(package / "plots" / "report.py")  # only puts pictures on a page
    todo = [name]
    while todo:
        file = examples / f"{todo.pop()}.py"
        if file.is_file() and file not in files:
            files.add(file)
            todo += imported(file.read_text("utf-8"))
    return sorted(files)


def imported(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def drawing_code(code):
    """Return the code without docstrings, comments, `raise` statements, and blank lines.

    These parts change no picture. You can edit their text without drawing the pictures again.
    """
    lines = code.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip() + "\n"
    for node in ast.walk(ast.parse(code)):
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_docstring or isinstance(node, ast.Raise):
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return "".join(line for line in lines if line.strip())


def draw(name):
    """Run one example, and return its entry for `drawn.json`."""
    folder = PICTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, f"examples/{name}.py", "--output", folder.relative_to(ROOT)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    for file in folder.iterdir():
        if file.is_dir():  # a sweep's folder
            shutil.rmtree(file)
        elif file.suffix not in KEPT:
            file.unlink()
    lines = [line for line in done.stdout.splitlines() if not line.startswith("Wrote ")]
    (folder / f"{Path(name).name}.txt").write_text("\n".join(lines).strip() + "\n", "utf-8")
    packages = ("jax", "optax", "numpy", "matplotlib")
    return {
        "code": code_hash(name),
        "files": sorted(file.name for file in folder.iterdir()),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"one of {', '.join(EXAMPLES)}; default: all"
    )
    names = parser.parse_args(argv).names or EXAMPLES
    if unknown := set(names) - set(EXAMPLES):
        parser.error(f"NAME must be one of {', '.join(EXAMPLES)}, got {', '.join(unknown)}.")
    for name in names:
        start = time.perf_counter()
        drawn = json.loads(DRAWN.read_text("utf-8")) if DRAWN.exists() else {}
        drawn[name] = draw(name)
        DRAWN.write_text(json.dumps(drawn, indent=2, sort_keys=True) + "\n", "utf-8")
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
