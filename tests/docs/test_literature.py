"""The results from the literature: each script in its --quick form, its numbers, and the page."""

import re
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support import examples

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "literature"
PAGE = (ROOT / "docs" / "pages" / "literature.md").read_text("utf-8")
SCRIPTS = sorted(file.stem for file in FOLDER.glob("*.py"))


def test_each_script_has_a_section_with_its_statement_numbers_and_picture():
    sections = re.split(r"^## ", PAGE, flags=re.M)[1:]
    named = {re.search(r"\{ #(\w+) \}", section)[1]: section for section in sections}
    assert sorted(named) == SCRIPTS
    for name, section in named.items():
        assert f"`python examples/literature/{name}.py`" in section
        assert f'--8<-- "pictures/literature/{name}/{name}.txt"' in section
        assert f"(pictures/literature/{name}/{name}.png)" in section
        for part in ("The paper", "We ran", "What differs.", "What to change in a training."):
            assert section.count(f"**{part}") == 1
        printed = ROOT / "docs" / "pages" / "pictures" / "literature" / name / f"{name}.txt"
        assert printed.read_text("utf-8").startswith("The paper: ")


def drawn(name):
    (table,) = (ROOT / "docs" / "pages" / "pictures" / "literature" / name).glob("*.csv")
    return pd.read_csv(table)


def test_what_the_page_says_is_in_the_tables():
    """Against thresholds that other code found by bisection, and the levels that the text names."""
    shi = drawn("shi2021").set_index(["gradient", "C"])["from"]
    known = {5: 0.191, 8: 0.533, 10: 0.640, 15: 0.774, 20: 0.836, 25: 0.871, 31: 0.898}
    for size, threshold in known.items():
        assert shi["code", size] == pytest.approx(threshold, abs=0.0015)
    assert shi["text", 5] == pytest.approx(0.825, abs=0.0015)
    assert shi["text", 10] == pytest.approx(0.967, abs=0.0015)
    assert shi["text"].loc[20:].isna().all()
    cohen = drawn("cohen2025").set_index(["ρ", "η", "ε"])["sharpness"]
    assert cohen[0.9].min() > 2.15
    assert cohen[0.99].between(2, 2.1).all()
    assert cohen[0.999].between(2, 2.05).all()
    malladi = drawn("malladi2022").set_index(["noise", "ε", "rule"])["above the floor"]
    for eps in (1e-8, 1.0):
        assert malladi[1, eps, "square root"] == pytest.approx(1, abs=0.05)
        assert malladi[1, eps, "linear"] == pytest.approx(4, abs=0.2)
    assert malladi[1, 1.0, "square root, same ε"] < 0.5
    assert not malladi[0].between(0.5, 2).any()
    rows = drawn("kunstner2024").set_index(["inputs", "optimizer"])
    groups = rows[[name for name in rows.columns if name.isdigit()]]
    slow, fast = groups.loc[("uniform", "gradient descent")], groups.loc[("uniform", "RMSProp")]
    assert slow.iloc[1:].is_monotonic_increasing
    assert slow.iloc[-1] > 5
    assert fast.iloc[-1] < 0.01 < fast.iloc[0] < 2
    assert groups.loc["normal"].max(axis=None) < 0.01
    rate = rows.loc["uniform", "η"]  # inside its grid
    assert 0.1 < rate["gradient descent"] < 1
    assert 0.001 < rate["RMSProp"] < 0.1


@pytest.fixture(scope="module", params=SCRIPTS)
def quick(request, tmp_path_factory):
    """The name of a script, what it printed in its --quick form, and its table."""
    folder = tmp_path_factory.mktemp(request.param)
    printed = examples.quick(FOLDER / f"{request.param}.py", folder)
    assert (folder / f"{request.param}.png").is_file()
    (table,) = folder.glob("*.csv")
    return request.param, printed, pd.read_csv(table)


@pytest.mark.slow
def test_the_quick_form_has_the_result(quick):
    name, printed, table = quick
    assert printed.startswith("The paper: ")
    CHECKS[name](printed, table)


def shi2021(printed, table):
    table = table.set_index(["gradient", "C"])
    assert table.loc[("code", 5), "from"] == pytest.approx(0.226)  # of .001, .026, …
    assert table.loc[("code", 10), "from"] == pytest.approx(0.676)
    assert table.loc[("text", 5), "from"] > 0.8
    assert np.isnan(table.loc[("text", 10), "from"])


def cohen2025(printed, table):
    checked = re.findall(r"power iteration (\S+), eigvalsh (\S+)", printed)
    assert len(checked) == 3
    for ours, exact in checked:
        assert float(ours) == pytest.approx(float(exact), abs=2e-3)
    settled = table.set_index(["ρ", "η", "ε"])["sharpness"]
    assert 1.9 < settled[0.9, 1e-4, 1e-8] < 2.4
    assert settled[0.999, 1e-4, 1e-8] < 1  # is still on its way


def malladi2022(printed, table):
    share = table.set_index(["noise", "ε", "rule"])["above the floor"]
    assert share[1, 1e-8, "square root"] == pytest.approx(1, abs=0.15)
    assert share[1, 1.0, "square root"] == pytest.approx(1, abs=0.25)
    assert share[1, 1.0, "square root, same ε"] < 0.5
    assert share[1, 1e-8, "linear"] > 3
    assert share[1, 1e-8, "unchanged"] < 0.5
    assert share[0, 1e-8, "square root"] > 2


def kunstner2024(printed, table):
    rows = table.set_index(["inputs", "optimizer"])
    rarest = str(max(int(name) for name in rows.columns if name.isdigit()))
    assert rows.loc[("uniform", "RMSProp"), rarest] < 0.05
    assert rows.loc[("uniform", "gradient descent"), rarest] > 0.5
    assert rows.loc["normal", rarest].max() < 1e-3


CHECKS = {f.__name__: f for f in (shi2021, cohen2025, malladi2022, kunstner2024)}


@pytest.mark.parametrize("twice", [True, False])
def test_the_counterexample_is_that_of_the_equations(twice, x64):
    """Against a loop in NumPy, at decays where it converges and where it does not."""
    distances = runpy.run_path(str(FOLDER / "shi2021.py"))["distances"]
    size, decays, steps = 5, [0.1, 0.5, 0.9, 0.99], 400
    points = [{"twice": twice, "C": size, "decay": decay} for decay in decays]
    for decay, ours in zip(decays, distances(points, steps), strict=True):
        x, v, seen = 100.0, 100.0 * size, []
        for k in range(1, steps + 1):
            seen.append(np.log10(max(abs(x + 1), 1e-20)))
            g = size if k % size == 1 or (twice and k % size == 0) else -1
            v = decay * v + (1 - decay) * g**2
            x = min(max(x - g / np.sqrt(k * v), -1), 1)
        assert ours == pytest.approx(np.mean(seen[steps // 2 :]), rel=1e-6)
