"""The benchmarks take turns, compare like with like, cannot hang, and write what they print."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.benchmarks.runner import interleaved, median
from tests.benchmarks.sweep import Outcome, differences, refuse_batched_lapack, refuse_other_work


def test_another_side_begins_each_round():
    calls = []
    sides = {name: lambda i, name=name: calls.append(name + str(i)) or i for name in "abc"}
    assert interleaved(sides, 2) == {"a": [0, 1], "b": [0, 1], "c": [0, 1]}
    assert calls == ["a0", "b0", "c0", "b1", "c1", "a1"]


def test_median_and_quartiles():
    assert median([1000.0, 4.0, 2.0, 3.0, 1.0], 1) == "3.0 (2.0–4.0)"


def test_batched_lapack_is_refused():
    qr = lambda x: jnp.linalg.qr(x)[0]
    text = lambda function: jax.jit(function).lower(jnp.ones((3, 4, 4))).as_text()
    one_by_one = text(lambda xs: jax.lax.map(qr, xs))
    assert "lapack" in one_by_one
    refuse_batched_lapack(one_by_one)
    with pytest.raises(RuntimeError, match="lapack_sgeqrf"):
        refuse_batched_lapack(text(jax.vmap(qr)))


def test_losses_are_compared_setting_by_setting():
    every_second = slice(1, None, 2)
    outcomes = [Outcome(every_second, np.array([1.0, 2.001]), 0.0, 0.0)]
    apart = differences(outcomes, np.array([9.0, 1.0, 9.0, 2.0]))
    np.testing.assert_allclose(apart, [0.0, 0.001])


@pytest.mark.parametrize("apart", [[0.0, 0.0, 0.2], [0.0, 0.01, 0.01], [0.0, 0.0, np.nan]])
def test_other_work_is_refused(apart):
    refuse_other_work("loop", np.array([0.0, 0.0, 0.05]))
    with pytest.raises(RuntimeError, match="'loop' from ours"):
        refuse_other_work("loop", np.array(apart))


def test_page_is_what_was_printed(tmp_path):
    page = tmp_path / "page.md"
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", "--quick", "tiny", "--output", page],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "## Tiny trials" in done.stdout
    assert page.read_text("utf-8") == done.stdout
