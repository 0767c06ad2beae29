"""The host's work grows as the number of trials does: lines of this package that run, counted."""

import sys
from pathlib import Path

import jax
import numpy as np
import optuna
import pytest

import rmsprop_jax as rj

TUNE = str(Path(rj.__file__).parent / "_tune")


def lines_of(call):
    """How many lines of the engine a call runs. A comprehension counts each of its items."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if not frame.f_code.co_filename.startswith(TUNE):
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def function(n, path):
    rj.sweep(
        lambda hp, key: {"loss": hp["x"]}, rj.grid(x=np.arange(float(n))), progress=False, path=path
    )


def training(n, path, **options):
    step = lambda hp, x, key: (x * hp["x"], {"loss": x})
    rj.sweep(
        rj.Training(lambda hp, key: 1.0, step), rj.grid(x=np.linspace(0.1, 0.9, n)), steps=4,
        evaluate_every=2, checkpoint_seconds=0, progress=False, path=path, **options,
    )  # fmt: skip


def search(n, path):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    rj.search.optimize(
        lambda hp, key: {"loss": hp["x"]}, study, {"x": rj.uniform(0.0, 1.0)}, n_trials=n,
        progress=False,
    )  # fmt: skip


CALLS = {
    "function": function,
    "training": training,
    "all states kept": lambda n, path: training(n, path, keep_states="all"),
    "halving": lambda n, path: training(n, path, scheduler=rj.SuccessiveHalving(2, 2)),
    "search": search,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CALLS)
def test_work_on_the_host_grows_linearly(kind, tmp_path):
    jax.random.key(0)
    CALLS[kind](8, tmp_path / "first")  # what is imported and compiled once
    n = 24
    once, twice, four = (
        lines_of(lambda n=n: CALLS[kind](n, tmp_path / str(n))) for n in (n, 2 * n, 4 * n)
    )
    # What a call costs beside its trials is in both differences alike, and so drops out.
    assert (four - twice) / (twice - once) < 2.5  # 2 for linear work, 4 for quadratic
