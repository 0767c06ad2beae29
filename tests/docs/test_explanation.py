"""What the explanation says in figures is what its examples print."""

import re
import runpy
from pathlib import Path

import jax
import pytest

from tests.support.figures import says, without_zero

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "pages"
PICTURES = PAGES / "pictures"
LANGUAGES = ["understand.md", "understand.bn.md"]
ANSWER = re.compile(
    r'^\?\?\? success "`(python examples/[^`]+)`[^\n]*"\n\n    ```text\n(.*?)    ```', re.S | re.M
)


def lines(text):
    """Each with its cells one blank apart: a page may indent them, and leave columns out."""
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("page", LANGUAGES)
def test_the_answers_are_lines_that_the_examples_print(page, tmp_path, capsys):
    answers = ANSWER.findall((PAGES / page).read_text("utf-8"))
    assert len(answers) == 5
    for command, answer in answers:
        name, *arguments = re.findall(r'examples/(\w+)\.py|(--\S+?)(?:="([^"]*)"| (\S+))', command)
        if name[0] == "numerical_example":
            options = [f"{flag}={text or number}" for _, flag, text, number in arguments]
            main = runpy.run_path(str(ROOT / "examples" / "numerical_example.py"))["main"]
            try:
                main([*options, "--output", str(tmp_path)])
            finally:
                jax.config.update("jax_enable_x64", False)  # which it turned on
            printed = capsys.readouterr().out
        else:
            assert not arguments
            printed = (PICTURES / name[0] / f"{name[0]}.txt").read_text("utf-8")
        assert set(lines(answer)) <= set(lines(printed)), command


@pytest.mark.parametrize("page", LANGUAGES)
def test_figures_in_the_text_are_those_of_the_tables(page):
    """Where a sentence has a figure of an example's, this reads it there."""
    text = " ".join((PAGES / page).read_text("utf-8").split())
    printed = lambda name: (PICTURES / name / f"{name}.txt").read_text("utf-8")
    number = lambda pattern, name: re.search(pattern, printed(name))[1]
    shown = lambda x: without_zero(str(float(x)))

    turned, end, falling = re.search(
        r"rosenbrock +RMSProp +\S+ +(\d+ of \d+) +(\S+) +(\S+)", printed("trajectories")
    ).groups()
    behind = number(r"Adam / RMSProp: .*rescaled (\S+)\.\n", "nonstationary")
    kept, adam_keeps = re.search(
        r"what they keep.*\n +(\d) +(\d)", printed("adam_is_momentum_plus_rmsprop")
    ).groups()
    row = (
        r" +\S+ +\d+ ± \d+ +(?:[+-]\d+ ± \d+(?: \*)? +)?\d+ +(\d+) "  # rate, mean, less, end, lost
    )
    lost = lambda name: number(rf"\n{name}{row}", "a2c")
    for figure in (
        turned.split()[0], shown(end), shown(falling), behind, kept, adam_keeps,
        lost("Stable-Baselines3"), lost("Adam"), lost("Adam, ε = √1e-5"),
    ):  # fmt: skip
        assert says(text, figure), figure

    median = [line.split() for line in lines(printed("effective_step"))[2:10]]
    assert all(175 < float(row[1]) < 225 and 9 < float(row[2]) < 13 for row in median[2:])
    off = dict(
        re.findall(r"10°  (\w+) .* (\S+) +\S+\n", printed("trajectories"))
    )  # SGD's is four times RMSProp's
    assert 3.5 < float(off["SGD"]) / float(off["RMSProp"]) < 4.5


def test_each_example_is_on_the_page_of_examples():
    text = (PAGES / "examples.md").read_text("utf-8")
    shown = re.findall(r'^    --8<-- "examples/(\w+)\.py"$', text, re.M)
    assert sorted(shown) == sorted(file.stem for file in (ROOT / "examples").glob("*.py"))
    assert re.findall(r"^### (\w+)\.py \{ #(\w+) \}$", text, re.M) == [(n, n) for n in shown]
