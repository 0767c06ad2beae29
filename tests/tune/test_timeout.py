"""`timeout=`: a call that returns what it has, and goes on where the same call is made again."""

import numpy as np
import optuna
import pytest

import rmsprop_jax as rj
from tests.support import trainings
from tests.support.tables import few
from tests.tune.test_sweep import POINTS, make_train

STEPS = {"steps": 8, "evaluate_every": 4}
CALLS = {
    "function": lambda **o: rj.sweep(make_train(), POINTS[:3], progress=False, **o),
    "training": lambda **o: trainings.sweep(points=trainings.POINTS[:3], **STEPS, **o),
    "halving": lambda **o: trainings.sweep(scheduler=rj.SuccessiveHalving(2, 3), **STEPS, **o),
    "population": lambda **o: trainings.sweep(
        points=trainings.POINTS[::2],  # of one static group
        scheduler=rj.PopulationBasedTraining({"rate": rj.uniform(0.1, 0.9)}, 3),
        **STEPS,
        **o,
    ),
    "batches": lambda **o: rj.sweep(
        rj.Training(
            lambda hp, key: 0.0, lambda hp, x, key, batch: (x + batch * hp["a"], {"loss": x})
        ),
        rj.grid(a=[1.0, 2.0, 3.0]),
        progress=False,
        batches=lambda t: np.float32(t),
        **STEPS,
        **o,
    ),
}


@pytest.mark.parametrize("kind", few(list(CALLS), ["function"]))
def test_calls_that_have_no_time_come_to_the_undisturbed_result(kind, tmp_path):
    """Each goes one evaluation step, or wave, further; in the end all is bit for bit."""
    whole, completed, calls = CALLS[kind](), 0, 0
    while True:
        result = CALLS[kind](path=tmp_path, timeout=1e-9, checkpoint_seconds=10**6)
        calls += 1
        assert result.steps_completed.sum() > completed  # it came further
        completed = result.steps_completed.sum()
        if result.steps_completed.sum() == whole.steps_completed.sum():
            break
    assert calls > 1
    for name, metric in whole.metrics.items():
        np.testing.assert_array_equal(result.metrics[name], metric)
    np.testing.assert_array_equal(result.objective, whole.objective)
    assert result.history == whole.history
    assert (result.status == whole.status).all()


def test_without_a_path_it_returns_what_there_is():
    result = trainings.sweep(points=trainings.POINTS[:3:2], timeout=1e-9, **STEPS)
    assert set(result.steps_completed[result.steps_completed > 0]) == {4}
    assert "unfinished" in result.status


def test_with_time_enough_it_is_as_without():
    result = CALLS["batches"](timeout=1e6)
    assert (result.status == "complete").all()


def test_a_search_asks_no_more_and_what_is_under_way_finishes():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    train = lambda hp, key: {"loss": hp["x"]}
    result = rj.search.optimize(
        train, study, {"x": rj.uniform(0.0, 1.0)}, n_trials=50, timeout=1e-9, progress=False
    )
    assert len(study.trials) == 1
    assert study.trials[0].state == optuna.trial.TrialState.COMPLETE
    assert (result.status == "complete").sum() == 1


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), "60", True])
def test_what_is_no_time_is_refused(timeout):
    with pytest.raises(ValueError, match=r"timeout must be .* Pass timeout="):
        trainings.sweep(steps=4, timeout=timeout)
