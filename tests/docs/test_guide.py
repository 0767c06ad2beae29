"""The guide to the engine names files, classes, and functions, and they are there."""

import ast
import re
from pathlib import Path

import pytest

from rmsprop_jax._tune.storage.folder import LOCK, MANIFEST, NAMES

ROOT = Path(__file__).parents[2]
TUNE = ROOT / "rmsprop_jax" / "_tune"
GUIDE = (ROOT / "docs" / "pages" / "how_a_sweep_runs.md").read_text("utf-8")
WORDS = set(re.findall(r"`([^`\n]+)`", GUIDE))


def defined():
    """Every class of the engine, and each function and method under its name."""
    for file in TUNE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                yield node.name
            if isinstance(node, ast.ClassDef):
                inside = [x.name for x in node.body if isinstance(x, ast.FunctionDef)]
                yield from (f"{node.name}.{name}" for name in inside)


@pytest.mark.parametrize(
    "path", sorted(word for word in WORDS if re.fullmatch(r"[\w/]+\.py", word))
)
def test_each_file_is_there(path):
    places = (TUNE / path, ROOT / "rmsprop_jax" / path, ROOT / path)
    assert any(place.is_file() for place in places)


def test_each_class_and_method_is_there():
    known = set(defined())
    heads = (word.split("(")[0] for word in WORDS)
    named = {head for head in heads if re.fullmatch(r"[A-Z]\w+(\.\w+)?", head)}
    outside = {"Training", "WholeRun", "Stepwise"}
    assert named - outside <= known | outside
    assert {"Experiment", "Session", "SequentialRunner", "TrialBatch"} <= named


def test_the_order_of_opening_is_the_codes():
    body = (TUNE / "session.py").read_text("utf-8")
    steps = ["_read_folder(", "_mark_pruned()", "rewind()", "_apply_copies()", "_check_room()"]
    places = [body.index(step, body.index("def open(")) for step in steps]
    assert places == sorted(places)
    words = ["read the folder", "mark trials", "rewind", "set the hyperparameters", "check memory"]
    told = [" ".join(GUIDE.split()).index(word) for word in words]
    assert told == sorted(told)


def test_each_kind_of_file_is_in_the_table():
    rows = re.findall(r"^\| `([^`]+)` \|", GUIDE, re.M)
    names = [row.replace("NNNNNN", "000000").replace("STEP", "0" * 12) for row in rows]
    names = [name.replace("POINT_SEED", "000000_0") for name in names]
    for kind, pattern in NAMES.items():
        assert any(pattern.fullmatch(name) for name in names), kind
    assert {MANIFEST, LOCK} <= set(names)
