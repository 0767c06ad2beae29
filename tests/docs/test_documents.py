"""What README, docstrings and examples show, runs; what the design says of imports, holds."""

import ast
import doctest
import graphlib
import importlib
import inspect
import json
import math
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import rmsprop_jax
from tests.optimizer.test_presets import TOLERANCE
from tests.support import examples, mutations
from tests.support.steps import travel
from tests.support.tables import few

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "rmsprop_jax").rglob("*.py")
    if path.name != "__init__.py"
)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").glob("*.md"))]


PRINTED = runpy.run_path(str(ROOT / "docs" / "printed.py"))


def code_blocks(page):
    return [block["code"] for block in PRINTED["BLOCK"].finditer(page.read_text("utf-8"))]


NUMBER = re.compile(r"-?\d[\d_]*\.?\d*(?:e[+-]?\d+)?")
BOOL = re.compile("True|False")


WITH_CODE = {page.name: page for page in PAGES if code_blocks(page)}


@pytest.mark.slow
@pytest.mark.parametrize("page", few(WITH_CODE, ["README.md", "rl.md"]))
def test_code_on_pages_runs(page):
    """The blocks of a page in order, each with what those before it have made.

    What they print stands below them, but for seconds and the last digits; where a training is
    shown, whose end another processor's rounding moves, but for all numbers and bools.
    """
    for block, printed in PRINTED["run"](page.read_text("utf-8"), page.name):
        both = [re.sub(r"(compiled in|ran) \S+ s", "", x) for x in (block["said"] or "", printed)]
        said, printed = (
            ["".join(NUMBER.sub("#", x).split()) for x in text.splitlines()] for text in both
        )
        if page.name in ("sweep.md", "search.md", "use.md"):
            said, printed = ({BOOL.sub("#", line) for line in lines} for lines in (said, printed))
        else:
            theirs, ours = ([float(x) for x in NUMBER.findall(text)] for text in both)
            np.testing.assert_allclose(ours, theirs, rtol=0.03, atol=1e-6)
        assert said == printed, "run: python docs/printed.py"


README = (ROOT / "README.md").read_text("utf-8")


def test_readmes_hyperparameters_have_their_defaults_and_half_lives():
    parameters = inspect.signature(rmsprop_jax.rmsprop).parameters
    rows = re.findall(r"^\| `(\w+)` \| ?\S* \| (\S+) \| (.*) \|$", README, re.M)
    defaults = {name: ast.literal_eval(default) for name, default, _ in rows}
    assert defaults == {name: parameters[name].default for name in defaults}
    assert {"learning_rate", "decay", "eps", "centered", "momentum"} <= set(defaults)
    decay = next(advice for name, _, advice in rows if name == "decay")
    half_lives = re.findall(r"(\d+)(?: steps)? for (0\.\d+)", decay)
    assert len(half_lives) == 2
    for steps, rho in half_lives:
        assert round(math.log(2) / -math.log(float(rho))) == int(steps)


def test_readme_names_the_presets_and_their_tolerances():
    listed = re.search(r"^`rj.presets` has (.*?)\. ", README, re.M | re.S)[1]
    assert sorted(re.findall(r"`(\w+)`", listed)) == sorted(rmsprop_jax.presets.__all__)
    allowed = re.search(r"difference of (\S+) in float64 and (\S+) in float32", README)
    assert [float(x) for x in allowed.groups()] == [TOLERANCE["float64"], TOLERANCE["float32"]]


def test_readme_and_home_page_send_the_same_readers_to_the_same_pages():
    home = (ROOT / "docs" / "pages" / "index.md").read_text("utf-8")
    rows = [
        re.findall(r"^\| (train|use|come|learn|tune) (.*)$", text.replace("docs/pages/", ""), re.M)
        for text in (README, home)
    ]
    assert len(rows[0]) == 5
    assert rows[0] == rows[1]


def test_pages_have_code():
    assert {page.name for page in PAGES if code_blocks(page)} >= {"README.md", "index.md", "use.md"}


def test_pictures_on_pages_exist():
    """And each says in words what it shows."""
    shown = [
        (page.parent / picture, words)
        for page in PAGES
        for words, picture in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text("utf-8"))
    ]
    assert shown
    assert [picture for picture, words in shown if not (words and picture.is_file())] == []


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def porting_rows():
    table = (ROOT / "docs" / "pages" / "porting.md").read_text("utf-8")
    return re.findall(r"^\| (.+?) \| `(rj\.presets.+?)` \| `(rj\.rmsprop.+?)` \|$", table, re.M)


@pytest.mark.parametrize("row", porting_rows(), ids=lambda row: row[0].strip("`"))
def test_porting_table(row):
    """Same arguments in the first two columns, same steps from the last two."""
    there, here, spelt_out = row
    if there.startswith("`"):
        arguments = [
            there.strip("`").split("(", 1)[1].replace("params, ", ""),
            here.split("(", 1)[1],
        ]
        assert arguments[0] == arguments[1]

    grads = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32) + 0.5
    solvers = (eval(code, {"rj": rmsprop_jax}) for code in (here, spelt_out))
    ours, same = (travel(solver, grads, jnp.linspace(-2.0, 3.0, 5))[1] for solver in solvers)
    np.testing.assert_allclose(ours, same, rtol=1e-6)


def test_porting_table_has_every_preset():
    named = {here.split(".")[2].split("(")[0] for _, here, _ in porting_rows()}
    assert named == set(rmsprop_jax.presets.__all__)


def test_public_names_are_there():
    assert all(hasattr(rmsprop_jax, name) for name in rmsprop_jax.__all__)


def file_of(module):
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def package_imports(module):
    """The modules of this package that a module imports."""
    tree = ast.parse(file_of(module).read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in inside]
        else:
            continue
        yield from {name for name in names if name in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_optimizer_and_tuning_do_not_import_each_other(module):
    imported = set(package_imports(module))
    if "._tune" in module or module.endswith(".search"):
        assert all("._tune" in name for name in imported)
    elif ".loggers." in module:
        assert all("._tune" in name or ".loggers" in name for name in imported)
    elif ".plots." not in module:
        assert not any("._tune" in name or "plots" in name for name in imported)


def test_imports_run_one_way():
    """Also from folder to folder: no module is imported by what it imports."""
    order = graphlib.TopologicalSorter({name: set(package_imports(name)) for name in MODULES})
    assert set(order.static_order()) >= set(MODULES) - {"rmsprop_jax"}  # CycleError for a cycle


def test_heavy_packages_are_imported_only_when_used():
    code = (
        "import sys, rmsprop_jax\n"
        "heavy = {'matplotlib', 'pandas', 'flax', 'scipy.stats', 'optuna'}\n"
        "print((heavy | {'tensorboard', 'mlflow', 'wandb'}) & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


TELLS = {
    "a2c.py": "probability of improvement over the first row",
    "adam_is_momentum_plus_rmsprop.py": "closed form",
    "dqn.py": "probability of improvement over the first row",
    "lstm_language_model.py": "test bits",
    "lstm_sweep.py": "at an edge of the grid: learning_rate 0.03 (tried 0.001 to 0.03)",
    "learned_hyperparameters.py": "learned",
    "population.py": "The schedule of the best member",
    "sharded_trials.py": "the devices of a trial exchange data by",
    "two_byte_state.py": "bfloat16, stochastically",
    "numerical_example.py": "units of the last place",
    "trajectories.py": "Fewest steps to 0.1",
    "effective_step.py": "exponent of t",
    "nonstationary.py": "Late error, Adagrad / RMSProp",
    "optuna_search.py": "Lowest mean test loss",
    "train_the_winner.py": "The first point is better than the second by",
}


SCRIPTS = sorted((ROOT / "examples").glob("[a-z]*.py"))  # the others, _*.py, they import


@pytest.mark.slow
@pytest.mark.parametrize("example", SCRIPTS, ids=lambda path: path.name)
def test_examples_run(example, tmp_path):
    printed = examples.quick(example, tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} >= {".png", ".csv"}
    assert TELLS[example.name] in printed


@pytest.mark.parametrize(
    ("rate", "decay", "said"),
    [
        (0.01, 0.9, "The best point is inside the grid on each axis."),
        (0.01, 0.5, "The best point is at an edge of the grid: decay 0.5 (tried 0.5 to 0.99). "
         "Widen the grid there."),
        (0.1, 0.99, "The best point is at an edge of the grid: learning_rate 0.1 (tried 0.001 to "
         "0.1), decay 0.99 (tried 0.5 to 0.99). Widen the grid there."),
    ],
)  # fmt: skip
def test_lstm_sweep_says_where_its_grid_is_too_narrow(rate, decay, said, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")  # for what it imports
    example = runpy.run_path(str(ROOT / "examples" / "lstm_sweep.py"))
    points = rmsprop_jax.grid(learning_rate=[0.001, 0.01, 0.1], decay=[0.5, 0.9, 0.99])
    assert example["at_an_edge"](points, {"learning_rate": rate, "decay": decay}) == said


BY_HAND = runpy.run_path(str(ROOT / "examples" / "numerical_example.py"))


@pytest.mark.parametrize(
    ("gradients", "message"),
    [
        ("1,a", "must be numbers separated by commas, got '1,a' for a step"),
        ("1,2;3", "step 1 has 2 numbers and step 2 has 1"),
        ("1;nan", "got a gradient of nan"),
        ("1;1e200", "between 1e-140 and 1e150"),
        ("", "got '' for a step"),
    ],
)
def test_numerical_example_refuses(gradients, message, capsys):
    with pytest.raises(SystemExit):
        BY_HAND["main"]([f"--gradients={gradients}"])
    assert message in capsys.readouterr().err


def test_numerical_example_by_hand():
    """The sum that its recurrence stands for: s₂ = (1−ρ)(ρ g₁² + g₂²)."""
    rows = BY_HAND["by_hand"]([[3.0, 0.0], [-4.0, 0.0]], 0.1, 0.9, 0.0)
    s = 0.1 * (0.9 * 9 + 16)
    np.testing.assert_allclose(
        rows[2][6:], [s, s**0.5, -0.4 / s**0.5, 1 - 0.1 / 0.1**0.5 + 0.4 / s**0.5]
    )
    assert rows[3] == [2, 2, 0, 0, 0, 0, 0, 0, 0, 1]


GALLERY = runpy.run_path(str(ROOT / "docs" / "gallery.py"))


def test_the_hash_of_an_example_is_of_what_it_imports_too():
    files = {file.name for file in GALLERY["code_of"]("lstm_sweep")}
    assert files >= {"lstm_sweep.py", "_training.py", "_characters.py", "sweeps.py", "equations.py"}


@pytest.mark.slow
@pytest.mark.parametrize("name", GALLERY["EXAMPLES"])
def test_pictures_are_not_older_than_the_code_that_draws_them(name):
    drawn = json.loads(GALLERY["DRAWN"].read_text("utf-8")).get(name, {"code": None, "files": []})
    assert drawn["code"] == GALLERY["code_hash"](name), (
        f"docs/pages/pictures/{name} was drawn by other code; run: python docs/gallery.py {name}"
    )
    assert all((GALLERY["PICTURES"] / name / file).is_file() for file in drawn["files"])


@pytest.mark.parametrize("name", mutations.MUTATIONS)
def test_the_table_of_mutations_fits_the_engine(name):
    mutation = mutations.MUTATIONS[name]
    text = (ROOT / "rmsprop_jax" / mutation.file).read_text("utf-8")
    assert text.count(mutation.old) == 1
