"""Sides take turns and do equal work, no benchmark hangs, and the page has the printed lines."""

import subprocess
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmsprop_jax as rj
from tests.benchmarks import halving, memory, page, population, segments
from tests.benchmarks.__main__ import NAMES
from tests.benchmarks.__main__ import main as benchmarks
from tests.benchmarks.runner import Goal, goals_missed, interleaved, median
from tests.benchmarks.sweep import Outcome, differences, refuse_batched_lapack, refuse_other_work


def test_each_round_starts_with_another_side():
    calls = []
    sides = {name: lambda i, name=name: calls.append(name + str(i)) or i for name in "abc"}
    assert interleaved(sides, 2) == {"a": [0, 1], "b": [0, 1], "c": [0, 1]}
    assert calls == ["a0", "b0", "c0", "b1", "c1", "a1"]


def test_median_and_quartiles():
    assert median([1000.0, 4.0, 2.0, 3.0, 1.0], 1) == "3.0 (2.0–4.0)"


def test_missed_goals_are_named():
    measured = [("a", 1.054, Goal("≤", 1.03, 3)), ("b", 1, Goal("≤", 1.03)), ("c", 2, Goal("≥", 2))]
    assert goals_missed(measured) == "Goals missed: a (1.054, goal ≤ 1.03)."
    two = goals_missed([*measured, ("d", 1.64, Goal("≥", 1.8))])
    assert two == "Goals missed: a (1.054, goal ≤ 1.03); d (1.64, goal ≥ 1.8)."
    assert goals_missed(measured[1:]) == "All goals are met."


def test_batched_lapack_is_refused():
    qr = lambda x: jnp.linalg.qr(x)[0]
    text = lambda function: jax.jit(function).lower(jnp.ones((3, 4, 4))).as_text()
    one_by_one = text(lambda xs: jax.lax.map(qr, xs))
    assert "lapack" in one_by_one
    refuse_batched_lapack(one_by_one)
    with pytest.raises(RuntimeError, match="lapack_sgeqrf"):
        refuse_batched_lapack(text(jax.vmap(qr)))


def test_losses_are_compared_point_by_point():
    every_second = slice(1, None, 2)
    outcomes = [Outcome(every_second, np.array([1.0, 2.001]), 0.0, 0.0)]
    apart = differences(outcomes, np.array([9.0, 1.0, 9.0, 2.0]))
    np.testing.assert_allclose(apart, [0.0, 0.001])


@pytest.mark.parametrize("apart", [[0.0, 0.0, 0.2], [0.0, 0.01, 0.01], [0.0, 0.0, np.nan]])
def test_other_work_is_refused(apart):
    refuse_other_work("loop", np.array([0.0, 0.0, 0.05]))
    with pytest.raises(RuntimeError, match="'loop' from ours"):
        refuse_other_work("loop", np.array(apart))


@pytest.mark.slow
def test_the_page_has_the_printed_lines_and_keeps_other_sections(tmp_path):
    file = tmp_path / "page.md"
    old = page.written("", NAMES, {"step": "## One step\n\n| a | row |\n"})
    file.write_text(old, "utf-8")
    command = "-m", "tests.benchmarks", "--quick", "tiny", "--output", file
    done = subprocess.run(
        [sys.executable, *command], cwd=page.ROOT, capture_output=True, text=True, check=True
    )
    found = page.sections(file.read_text("utf-8"))
    assert list(found) == list(NAMES)
    title, body = found["tiny"]
    assert f"## {title}" in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 4 + 3 * 2 + 11 + 3 + 5  # operations of three loads, each with a header
    assert all(row in body for row in rows)
    assert "`python -m tests.benchmarks tiny --quick`" in body
    assert f"jax {jax.__version__}" in body
    assert {name: x for name, x in found.items() if name != "tiny"} == {
        name: x for name, x in page.sections(old).items() if name != "tiny"
    }
    assert "Not run yet" in found["sweep"][1]


def test_further_headings_of_a_section_are_one_level_lower():
    lines = ["\n## One\n\n| a |", "\n## Two\n", "### Three"]
    text = "\n".join(page.section(lines, "command", "machine"))
    assert text == "## One\n\n`command`; machine\n\n| a |\n\n### Two\n\n### Three\n"


def test_readmes_benchmarks_are_those_of_the_page():
    readme, text = page.README.read_text("utf-8"), page.PAGE.read_text("utf-8")
    assert readme == page.quoted(readme, text), "run: python -m tests.benchmarks.page"
    other = text.replace("**step 253** (17% NaN at the end)", "**step 7** (17% NaN at the end)", 1)
    assert page.quoted(readme, other) == readme.replace("Optax step 253", "Optax step 7") != readme


def test_a_size_that_a_benchmark_does_not_take_is_refused():
    with pytest.raises(SystemExit):
        benchmarks(["tiny", "--size", "hidden=8"])


@pytest.mark.slow
def test_quick_forms_of_segments_halving_and_population():
    """Run in one process, where sides with equal programs share their compiles."""
    text = "\n".join(line for each in (segments, halving, population) for line in each.main(True))
    assert "| whole | 1 | 0 |" in text
    assert "| one segment | 2 | 0 |" in text
    assert "| segments | 1 | 0 |" in text  # `init` is that of one segment
    assert "| segments, on disk | 0 | 0 |" in text
    for row in ("| best point pruned |", "| population |", "| random search, falling rate |"):
        assert row in text


@pytest.mark.slow
def test_quick_form_of_memory():
    lines = list(memory.main(True))
    rows = [line for line in lines if line.startswith("|") and "×" in line]
    expected = len(memory.SHAPES[True]) * len(memory.CASES) + len(memory.STATES)
    assert len(rows) == expected or not memory.CLEAR.exists()


@pytest.mark.slow
def test_long_metrics_are_copied_less_than_once(tmp_path):
    """As in the benchmark of memory, but for NumPy arrays instead of whole processes."""
    points = rj.grid(a=np.linspace(0.0, 1.0, 32), b=rj.static([False, True]))  # groups alternate
    names, steps = "wxyz", 20_000
    own = len(points) * len(names) * steps * 4

    def train(hp, key):
        series = hp["a"] + hp["b"] * jnp.arange(steps, dtype=jnp.float32)
        return dict.fromkeys(names, series)

    def peak(action):
        tracemalloc.start()
        try:
            result = action()
            return tracemalloc.get_traced_memory()[1] / own, result
        finally:
            tracemalloc.stop()

    sweep = lambda **options: rj.sweep(
        train, points, path=tmp_path / "sweep", progress=False, **{"objective": "w"} | options
    )
    load = lambda: rj.SweepResult.load(tmp_path / "sweep", objective=lambda m: m["w"][-9:].mean())
    sweep()
    for action in (sweep, load):
        share, result = peak(action)
        assert len(result) == len(points)
        assert share < 1.6
    assert peak(lambda: result.save(tmp_path / "saved"))[0] < 0.5  # without the result itself
