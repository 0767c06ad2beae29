"""The explanation's figures are those that its examples print, in both languages alike."""

import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmsprop_jax as rj
from tests.support.figures import says

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "pages"
PICTURES = PAGES / "pictures"
LANGUAGES = ["understand.md", "understand.bn.md"]
PRINTED = runpy.run_path(str(ROOT / "docs" / "printed.py"))
ANSWER = re.compile(
    r'^\?\?\? success "`(python examples/[^`]+)`[^\n]*"\n\n    ```text\n(.*?)    ```', re.S | re.M
)


def lines(text):
    """Each with its cells one blank apart: a page may indent them, and leave columns out."""
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


@pytest.mark.slow
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
    shown = lambda x: str(float(x))

    turned, end, falling = re.search(
        r"rosenbrock +RMSProp +\S+ +(\d+ of \d+) +(\S+) +(\S+)", printed("trajectories")
    ).groups()
    behind = re.findall(
        r"Adam / RMSProp: .*drifting (\S+), jumping (\S+), rescaled (\S+)\.\n",
        printed("nonstationary"),
    )[0]
    slower = number(r"Fewest steps to .*beale (\S+),", "trajectories")
    kept, adam_keeps = re.search(
        r"state, bytes per parameter.*\n +(\d) +(\d)", printed("adam_is_momentum_plus_rmsprop")
    ).groups()
    score = lambda name: number(rf"\n{name} +(\d+) \[", "a2c")  # the IQM, in front of its interval
    for figure in (
        turned.split()[0], shown(end), shown(falling), *behind, slower, kept, adam_keeps,
        *map(score, ("Stable-Baselines3 +0.0032", "Adam +0.0032", "Adam, ε = √1e-5 +0.0032")),
        score("ε in the root +0.0032"),
    ):  # fmt: skip
        assert says(text, figure), figure

    median = [line.split() for line in lines(printed("effective_step"))[2:10]]
    assert all(175 < float(row[1]) < 225 and 9 < float(row[2]) < 13 for row in median[2:])
    off = dict(
        re.findall(r"10°  (\w+) .* (\S+) +\S+\n", printed("trajectories"))
    )  # SGD's is four times RMSProp's
    assert 3.5 < float(off["SGD"]) / float(off["RMSProp"]) < 4.5


def test_the_ranking_of_the_text_is_that_of_the_table():
    """Which optimizer ends nearest to each target, and that Adagrad falls behind."""
    printed = (PICTURES / "nonstationary" / "nonstationary.txt").read_text("utf-8")
    row = (
        r"^ *(still|drifting|jumping|rescaled) +(\S+(?: β₂ \S+)?) +\S+ +\S+ +\S+ +(\S+) +\S+ +\S+$"
    )
    late = {}
    for target, optimizer, error in re.findall(row, printed, re.M):
        late.setdefault(target, {})[optimizer] = float(error)
    order = {target: sorted(errors, key=errors.get) for target, errors in late.items()}
    assert order["still"][0] == "Adagrad"
    assert order["drifting"][0] == order["rescaled"][0] == "RMSProp"
    assert order["jumping"][:2] == ["Adam", "RMSProp"]
    for target in ("drifting", "jumping", "rescaled"):
        assert order[target].index("Adagrad") > order[target].index("RMSProp")
    text = (PAGES / "understand.md").read_text("utf-8")
    named = re.findall(r"^- \*\*(\w+) (?:target|loss):\*\* (\w+) ends", text, re.M)
    assert named == [(target.capitalize(), names[0]) for target, names in order.items()]


def test_five_lines_of_numpy_are_the_library(x64):
    """The block of the page, and the library on the same loss from the same start."""
    names = {}
    for block in PRINTED["BLOCK"].finditer((PAGES / "understand.md").read_text("utf-8")):
        exec(block["code"], names)
        body = block["code"].split("\n\n")[2]
    assert len(body.splitlines()) == 5
    solver = rj.rmsprop(names["eta"], names["rho"], names["eps"])
    theta = jnp.ones(2)
    state = solver.init(theta)
    for _ in range(names["t"] + 1):
        updates, state = solver.update(jnp.asarray(names["gradient"](theta)), state)
        theta = optax.apply_updates(theta, updates)
    np.testing.assert_allclose(names["theta"], theta, rtol=1e-12)


PARTS = {
    "formulas": r"```math\n.*?```",
    "code": r"```python\n.*?```",
    "pictures": r"\]\((pictures/[^)]+)\)",
    "outputs": r"--8<-- [^\n]*",
    "answers": r"    ```text\n.*?    ```",
    "commands": r"`(python examples/[^`]*)`",
    "links": r"\]\(((?:https:|\w+\.md)[^)]*)\)",
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_both_languages_have_the_same(part):
    english, bengali = (
        sorted(re.findall(part, (PAGES / page).read_text("utf-8"), re.S)) for page in LANGUAGES
    )
    assert english
    assert english == bengali


def test_both_languages_have_the_same_numbers():
    """In the prose: in the Bengali page, the numbers of sections have Bengali digits."""

    def numbers(page):
        text = (PAGES / page).read_text("utf-8").split("{ #labels }")[0]
        text = re.sub(r"```.*?```|\]\([^)]*\)|\{[^}]*\}|<[^>]*>", "", text, flags=re.S)
        text = re.sub(r"^#.*|^\*\*\d\.\*\*|(?<!!)\[(section )?\d+|[Ss]tep \d", "", text, flags=re.M)
        return {x.rstrip(",.") for x in re.findall(r"[0-9][0-9.,]*(?:e-[0-9]+)?", text)}

    english, bengali = (numbers(page) for page in LANGUAGES)
    assert english == bengali


@pytest.mark.parametrize("page", LANGUAGES)
def test_the_sentence_for_an_exam_has_every_element(page):
    text = " ".join((PAGES / page).read_text("utf-8").split())
    start = "RMSProp is an adaptive optimization algorithm "
    sentence = re.search(rf"\*\*{start}([^*.]*)\.\*\*", text)[1]
    for element in (
        "exponentially decaying average of squared gradients",
        "stabilizes learning",
        "prevents the aggressive decay of the learning rate",
    ):
        assert element in sentence


def test_each_example_is_on_the_page_of_examples():
    text = (PAGES / "examples.md").read_text("utf-8")
    shown = re.findall(r'^    --8<-- "examples/([\w/]+)\.py"$', text, re.M)
    files = [str(file.relative_to(ROOT / "examples")) for file in (ROOT / "examples").rglob("*.py")]
    assert sorted(f"{name}.py" for name in shown) == sorted(files)
    headings = re.findall(r"^### ([\w/]+)\.py \{ #(\w+) \}$", text, re.M)
    assert headings == [(name, name.split("/")[-1]) for name in shown]
