"""Search beside Optuna's own loop over the same trainings, and what only search can do wrong."""

import collections
import contextlib
import functools
import itertools
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

import rmsprop_jax as rj
from rmsprop_jax._tune.run.machine import Machine
from rmsprop_jax._tune.search import runner
from rmsprop_jax._tune.search import study_client as study_module
from rmsprop_jax._tune.search.space import axes_of
from tests.support import postgres, searcher
from tests.support.devices import device
from tests.support.tables import crossed, few
from tests.support.trainings import SCALE, alone, noisy, plain

pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    # Raised where a compiler's thread forks, not by us.
    pytest.mark.filterwarnings("ignore:os.fork"),
    # Optuna 5 wants `Trial.set_constraint`, inside an objective.
    pytest.mark.filterwarnings("ignore:`constraints_func` has been deprecated:FutureWarning"),
]
optuna.logging.set_verbosity(optuna.logging.ERROR)

SPACE = {
    "rate": rj.log_uniform(1e-3, 1.0),
    "decay": rj.one_minus(rj.log_uniform(1e-3, 0.5)),
    "centered": rj.choice([False, True]),
}
STEPS, EVERY = 23, 5
PRUNERS = {
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=3),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=5, max_resource=STEPS),
    "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=5),
    "patient": lambda: optuna.pruners.PatientPruner(optuna.pruners.MedianPruner(2), patience=1),
    "threshold": lambda: optuna.pruners.ThresholdPruner(upper=4.0),
    "none": optuna.pruners.NopPruner,
}
SAMPLERS = {
    "random": lambda: optuna.samplers.RandomSampler(seed=1),
    "tpe": lambda: optuna.samplers.TPESampler(seed=1, n_startup_trials=3),
    "multivariate": lambda: optuna.samplers.TPESampler(
        seed=1, n_startup_trials=3, multivariate=True, constant_liar=True
    ),
    "qmc": lambda: optuna.samplers.QMCSampler(seed=1),
    "nsga": lambda: optuna.samplers.NSGAIISampler(seed=1, population_size=4),
}


@functools.cache
def training():
    return noisy()


def search(study, train=None, space=SPACE, **options):
    given = {
        "n_trials": 12, "steps": STEPS, "evaluate_every": EVERY, "objective": "validation",
        "args": (SCALE,), "progress": False,
    }  # fmt: skip
    return rj.search.optimize(train or training(), study, space, **given | options)


@functools.cache
def plainly():
    """The segments of one trial, jitted."""
    one = training()

    @functools.partial(jax.jit, static_argnames=("centered", "steps"))
    def begin(numbers, centered, key, steps):
        return one.run(numbers | {"centered": centered}, key, SCALE, steps=steps)[0]

    @functools.partial(jax.jit, static_argnames=("centered", "steps"))
    def go_on(numbers, centered, key, state, start, steps):
        hp = numbers | {"centered": centered}
        return one.run(hp, key, SCALE, steps=steps, state=state, start=start)[0]

    @functools.partial(jax.jit, static_argnames="centered")
    def score(numbers, centered, key, state, t):
        key = jax.random.fold_in(jax.random.fold_in(key, t), 1)
        return one.evaluate(numbers | {"centered": centered}, state, key, SCALE)["validation"]

    return begin, go_on, score


def plain_loop(study, n_trials, seeds=(0,)):
    """The same trials by `study.optimize`, as a user writes it, segment by segment."""
    begin, go_on, score = plainly()
    below = lambda x: float(np.nextafter(np.float32(x), np.float32(0.0)))

    def objective(trial):
        rate = trial.suggest_float("rate", 1e-3, below(1.0), log=True)
        decay = 1 - trial.suggest_float("1 - decay", 1e-3, below(0.5), log=True)
        centered = trial.suggest_categorical("centered", [False, True])
        hp = {"rate": jnp.float32(rate), "decay": jnp.float32(decay)}
        keys = [jax.random.key(seed) for seed in seeds]
        for start in range(0, STEPS, EVERY):
            n = min(EVERY, STEPS - start)
            if not start:
                states = [begin(hp, centered, key, n) for key in keys]
            else:
                each = zip(keys, states, strict=True)
                states = [go_on(hp, centered, key, state, start, n) for key, state in each]
            stop, each = start + n, zip(keys, states, strict=True)
            value = float(np.mean([float(score(hp, centered, k, s, stop)) for k, s in each]))
            if not np.isfinite(value):
                return value
            trial.report(value, stop)
            if stop < STEPS and trial.should_prune():
                raise optuna.TrialPruned
        return value

    study.optimize(objective, n_trials=n_trials)


def told(study):
    """All that a study knows of its trials."""
    return [(t.params, t.state, t.values, t.intermediate_values) for t in study.trials]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "pruner"),
    crossed(list(SAMPLERS), list(PRUNERS), plain=["tpe-hyperband", "multivariate-halving"]),
)
def test_proposals_decisions_and_values_are_those_of_optunas_own_loop(sampler, pruner):
    studies = [
        optuna.create_study(sampler=SAMPLERS[sampler](), pruner=PRUNERS[pruner](), study_name="s")
        for _ in range(2)
    ]
    plain_loop(studies[0], 12)
    result = search(studies[1], max_concurrent_trials=1)
    assert told(studies[0]) == told(studies[1])
    states = collections.Counter(trial.state for trial in studies[1].trials)
    assert states[TrialState.COMPLETE] > 1
    if pruner in ("median", "hyperband", "halving", "threshold"):
        assert states[TrialState.PRUNED] > 0
    ways = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
    assert [ways[status] for status in result.status] == [t.state for t in studies[1].trials]
    assert result.steps_completed.tolist() == [trial.last_step for trial in studies[1].trials]
    assert result.best().objective == studies[1].best_value


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [[0], [3, 1, 2]])
@pytest.mark.parametrize("max_concurrent_trials", [None, 1, 2, 3, 7, 40])
def test_each_trial_is_the_training_alone_whatever_runs_beside_it(max_concurrent_trials, seeds):
    pruner = optuna.pruners.PercentilePruner(40.0, n_startup_trials=2)
    study = optuna.create_study(sampler=SAMPLERS["random"](), pruner=pruner)
    result = search(
        study, max_concurrent_trials=max_concurrent_trials, seeds=seeds, keep_states="all"
    )
    other = optuna.create_study(sampler=SAMPLERS["random"]())
    for trial in study.trials:  # as it proposes where nothing is known
        assert other.ask(rj.search.to_optuna(SPACE)).params == trial.params
    assert "complete" in result.status
    assert "pruned" in result.status or max_concurrent_trials == 40  # no one ends before the others
    for i, (point, seed) in enumerate(zip(result.point_index, result.seed_index, strict=True)):
        reached, hp = int(result.steps_completed[i]), result.points[int(point)]
        state, metrics = alone(training(), hp, seeds[seed], reached)
        np.testing.assert_array_equal(result.metrics["loss"][i, :reached], metrics["loss"])
        assert np.isnan(result.metrics["loss"][i, reached:]).all()
        kept = result.state(hp, seeds[seed])
        for ours, theirs in zip(plain(kept), plain(state), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for number, trial in enumerate(study.trials):
        mine = result.objective[result.point_index == number]
        expected = trial.value if trial.value is not None else np.nan
        np.testing.assert_array_equal(np.mean(mine), expected)
        assert trial.user_attrs["seeds"] == seeds
        assert trial.user_attrs["seconds"] > 0
        if len(seeds) > 1:
            np.testing.assert_allclose(trial.user_attrs["std"], np.std(mine, ddof=1))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [2, 3])
def test_batches_hold_trials_at_different_steps(batch_size):
    pruner = optuna.pruners.PercentilePruner(40.0, n_startup_trials=2)
    study = optuna.create_study(sampler=SAMPLERS["random"](), pruner=pruner)
    result = search(study, batch_size=batch_size, max_concurrent_trials=5, seeds=2)
    assert {"complete", "pruned"} <= set(result.status)
    for i, (point, seed) in enumerate(zip(result.point_index, result.seed_index, strict=True)):
        reached = int(result.steps_completed[i])
        _, metrics = alone(training(), result.points[int(point)], int(seed), reached)
        got = result.metrics["loss"][i, :reached]
        np.testing.assert_allclose(got, metrics["loss"], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_an_accelerators_batch_leaves_the_sampler_something_to_learn():
    """Its memory alone would have all trials asked at once."""
    for free, at_once in ((1e12, 10), (4.0, 2)):  # of 80: 40 trials of 2 seeds, 2 devices
        machine = Machine(device_memory=lambda devices, free=free: free)
        seen, study = [], optuna.create_study(sampler=SAMPLERS["random"]())
        train = rj.Training(
            lambda hp, key: jax.random.uniform(key),
            lambda hp, x, key: (x - hp["rate"] * x, {"loss": x}),
        )
        runner.optimize(
            study, {"rate": rj.uniform(0.0, 1.0)}, "loss", machine, machine.clock(), train=train,
            n_trials=40, seeds=2, steps=4, evaluate_every=4, progress=False,
            callback=lambda report, seen=seen: seen.append(len({one.number for one in report})),
        )  # fmt: skip
        assert set(seen) == {at_once}
        assert len(seen) == 80 // at_once


def value_of(hp, key):
    """A training that is a number."""
    rate = hp["rate"] * (2.0 if hp["wide"] else 1.0)
    return {"loss": (rate - 0.3) ** 2 + 0.01 * jax.random.uniform(key), "wider": rate}


VALUES = {"rate": rj.uniform(0.0, 1.0), "wide": rj.choice([False, True])}


def of_values(study, space=VALUES, **options):
    given = {"n_trials": 10, "progress": False}
    return rj.search.optimize(value_of, study, space, **given | options)


def test_a_function_runs_whole_each_static_group_compiled_once():
    compiled = []

    def listen(event, seconds, fun_name="", **_):
        if event.endswith("backend_compile_duration") and fun_name == "jit(wave)":
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        study = optuna.create_study(sampler=SAMPLERS["tpe"]())
        result = of_values(study, seeds=3)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compiled) == 2
    assert {point["wide"] for point in result.points} == {False, True}
    for trial, point in zip(study.trials, result.points, strict=True):
        assert trial.params == point
        hp = {"rate": jnp.float32(point["rate"]), "wide": point["wide"]}
        alone = jax.jit(lambda rate, key, hp=hp: value_of(hp | {"rate": rate}, key)["loss"])
        each = [float(alone(hp["rate"], jax.random.key(seed))) for seed in range(3)]
        assert trial.value == np.mean(each)


def test_a_number_has_the_dtype_of_its_distribution_whatever_is_asked():
    seen = []

    def train(hp, key):
        seen.append({name: getattr(x, "dtype", type(x)) for name, x in hp.items()})
        number = 0.0 if hp["mixed"] is None else hp["mixed"]
        return {"loss": hp["a"] + hp["b"] + hp["c"] + number + hp["n"] + len(hp["name"])}

    space = {
        "a": rj.uniform(0.0, 8.0),
        "b": rj.choice([0, 1, 0.5]),
        "c": FloatDistribution(0, 4, step=1.0),
        "n": IntDistribution(1, 9, log=True),
        "mixed": rj.choice([None, 1, 2.5]),
        "name": CategoricalDistribution(["x", "yy"]),
        "size": rj.static(rj.choice([16, 0.5])),
    }
    study = optuna.create_study(sampler=SAMPLERS["random"]())
    for asked in ({"a": 1, "b": 0, "c": 2, "mixed": 1}, {"a": 2.0, "b": 0.5, "mixed": None}):
        study.enqueue_trial(asked | {"n": 3, "name": "x", "size": 16})
    result = rj.search.optimize(
        lambda hp, key: train({k: hp[k] for k in hp}, key),
        study, space, n_trials=2, progress=False,
    )  # fmt: skip
    for one in seen:
        assert (one["a"], one["b"], one["c"]) == (jnp.float32,) * 3
        assert one["n"] == jnp.int32
        assert one["mixed"] in (type(None), jnp.float32)
        assert one["size"] in (int, float)
    assert result.points[0]["size"] == 16
    assert isinstance(result.points[0]["a"], float)
    assert [trial.params["a"] for trial in study.trials] == [1, 2.0]
    assert study.trials[0].value == 1 + 0 + 2 + 1 + 3 + 1


def test_a_seed_that_is_not_finite_fails_its_trial_alone():
    def step(hp, state, key):
        state = state + hp["x"] + jax.random.uniform(key)
        return state, {"loss": jnp.where((state > 20) & (hp["x"] > 3), jnp.nan, state)}

    training = rj.Training(lambda hp, key: jax.random.uniform(key), step)
    study = optuna.create_study(sampler=SAMPLERS["random"](), pruner=optuna.pruners.NopPruner())
    for x in (1.0, 3.5, 2.0):
        study.enqueue_trial({"x": x})
    result = rj.search.optimize(
        training, study, {"x": rj.uniform(0.0, 4.0)}, n_trials=3, steps=12, evaluate_every=2,
        seeds=[5, 6], progress=False,
    )  # fmt: skip
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert study.trials[1].value is None
    assert set(study.trials[1].intermediate_values) == {2, 4}
    assert result.status.tolist() == ["complete"] * 2 + ["failed"] * 2 + ["complete"] * 2
    assert result.steps_completed.tolist() == [12, 12, 6, 6, 12, 12]
    assert result.best().point == {"x": 1.0}


def test_several_directions_are_told_and_nothing_is_pruned():
    study = optuna.create_study(
        directions=["minimize", "maximize"], sampler=SAMPLERS["nsga"](),
        pruner=optuna.pruners.ThresholdPruner(upper=-1.0),
    )  # fmt: skip
    count = lambda metrics: float(metrics["count"][-1])
    result = search(study, objective=("validation", count), seeds=2)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert not any(trial.intermediate_values for trial in study.trials)
    for i, trial in enumerate(study.trials):
        mine = result.point_index == i
        np.testing.assert_array_equal(
            trial.values, [result.metrics["validation"][mine, -1].mean(dtype=float), STEPS - 1]
        )
    with pytest.raises(ValueError, match=r"objective must be.*rescored.*best_trials"):
        result.best()
    one = result.best(by="validation")
    assert one.objective == min(trial.values[0] for trial in study.trials)
    assert study.best_trials
    assert "several" not in repr(result)
    assert result._repr_html_().count("<tr>") == 1  # and no best point
    with pytest.raises(ValueError, match="keep_states must be 0 or"):
        search(study, objective=("validation", "loss"), keep_states=2)


def test_a_study_that_maximizes_is_maximized():
    study = optuna.create_study(direction="maximize", sampler=SAMPLERS["random"]())
    result = of_values(study)
    assert result.mode == "max"
    assert result.best().objective == study.best_value == result.objective.max()


def test_callbacks_are_called_once_a_trial_and_may_stop_the_study():
    seen = []

    def stop_at_four(study, trial):
        seen.append(trial.number)
        if len(seen) == 4:
            study.stop()

    study = optuna.create_study(sampler=SAMPLERS["random"]())
    result = of_values(study, n_trials=50, study_callbacks=[stop_at_four], max_concurrent_trials=3)
    assert sorted(seen) == list(range(6))  # what was under way went on to its end
    assert len(result) == len(study.trials) == 6
    at_most = optuna.study.MaxTrialsCallback(10, states=[TrialState.COMPLETE])
    of_values(study, n_trials=50, study_callbacks=[at_most], max_concurrent_trials=1)
    assert len(study.trials) == 10
    with pytest.raises(RuntimeError, match=r"Study\.stop"):
        study.stop()  # the study is as it was


@pytest.mark.parametrize("state", ["COMPLETE", "PRUNED", "FAIL"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_a_callback_that_raises_is_called_once_a_trial(state, kind):
    """Also where the trial failed, of which it was told twice."""

    def step(hp, state, key):
        return state, {"loss": jnp.where(hp["x"] > 3, jnp.nan, hp["x"])}

    calls = []

    def fail(study, trial):
        calls.append((trial.number, trial.state.name))
        if trial.state.name == state:
            raise kind("the callback's own")

    pruner = optuna.pruners.ThresholdPruner(upper=1.5)
    study = optuna.create_study(sampler=SAMPLERS["random"](), pruner=pruner)
    ways = {"COMPLETE": 1.0, "PRUNED": 2.0, "FAIL": 3.5}
    for x in sorted(ways.values(), key=lambda x: x == ways[state]):
        study.enqueue_trial({"x": x})
    with pytest.raises((rj.SweepInterrupted, RuntimeError)) as caught:
        rj.search.optimize(
            rj.Training(lambda hp, key: jnp.zeros(()), step), study, {"x": rj.uniform(0.0, 4.0)},
            n_trials=4, steps=4, evaluate_every=2, study_callbacks=[fail], progress=False,
        )  # fmt: skip
    numbers = [number for number, _ in calls]
    assert len(numbers) == len(set(numbers))
    assert (2, state) in calls
    assert not [trial for trial in study.trials if trial.state == TrialState.RUNNING]
    status = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}[state]
    assert caught.value.result.status[2] == status


def test_where_all_are_pruned_the_error_says_so():
    study = optuna.create_study(
        sampler=SAMPLERS["random"](), pruner=optuna.pruners.ThresholdPruner(upper=-1.0)
    )
    result = search(study, n_trials=2)
    assert set(result.status) == {"pruned"}
    with pytest.raises(ValueError, match=r"all 2 trials were pruned.*study\.best_trial"):
        result.best()


def test_reports_of_rounds_and_waiting_trials():
    study, seen = optuna.create_study(sampler=SAMPLERS["random"]()), []
    study.enqueue_trial({"rate": 0.5, "wide": True})
    of_values(study, n_trials=3, callback=seen.extend, seeds=2)
    assert study.trials[0].params == {"rate": 0.5, "wide": True}
    assert sorted((one.number, one.seed) for one in seen) == [(i, i % 2) for i in range(6)]


@pytest.mark.parametrize("form", ["function", "training"])
def test_static_groups_that_fill_no_wave_share_the_devices(form):
    """One trial of each of two static groups on two devices: each has a device of its own."""
    slope = lambda hp: hp["rate"] * (2.0 if hp["wide"] else 1.0)
    step = lambda hp, x, key: (x + slope(hp), {"loss": x, "device": device()})
    train, options = lambda hp, key: {"loss": slope(hp), "device": device()}, {}
    if form == "training":
        train, options = rj.Training(lambda hp, key: 0.0, step), {"steps": 4, "evaluate_every": 2}
    study = optuna.create_study(sampler=SAMPLERS["random"]())
    for wide in (False, True):
        study.enqueue_trial({"rate": 0.5, "wide": wide})
    space = {"rate": rj.uniform(0.0, 1.0), "wide": rj.choice([False, True])}
    result = rj.search.optimize(train, study, space, n_trials=2, progress=False, **options)
    assert result.objective.tolist() == ([1.5, 3.0] if form == "training" else [0.5, 1.0])
    ran_on = result.metrics["device"].reshape(2, -1)
    assert (ran_on == ran_on[:, :1]).all()
    assert set(ran_on[:, 0].tolist()) == {0, 1}


def test_an_error_while_asking_leaves_no_trial_running():
    study = optuna.create_study(sampler=SAMPLERS["random"]())
    study.tell(study.ask({"wide": CategoricalDistribution(["x", "y"])}), 0.0)
    with pytest.raises(ValueError, match="CategoricalDistribution does not support dynamic"):
        of_values(study)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL"]


@pytest.mark.parametrize("method", ["before_trial", "sample_relative", "sample_independent"])
@pytest.mark.parametrize("kind", [KeyError, KeyboardInterrupt])
def test_a_sampler_that_raises_leaves_no_trial_running(method, kind, monkeypatch):
    sampler = SAMPLERS["random"]()

    def fail(study, trial, *_):
        if trial.number == 2:
            raise kind("the sampler's own")
        return original(study, trial, *_)

    original = getattr(sampler, method)
    monkeypatch.setattr(sampler, method, fail)
    study = optuna.create_study(sampler=sampler)
    with pytest.raises((kind, rj.SweepInterrupted)):
        of_values(study, max_concurrent_trials=1)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert study.trials[2].user_attrs["cause"].startswith(kind.__name__)


class StopError(Exception):
    pass


@pytest.mark.parametrize("kind", [KeyboardInterrupt, StopError, SystemExit])
def test_an_interruption_tells_what_is_finished_and_fails_what_is_not(kind):
    study = optuna.create_study(sampler=SAMPLERS["random"](), pruner=optuna.pruners.NopPruner())
    rounds = []

    def interrupt(report):
        rounds.append(report)
        if sum(one.step == STEPS for one in report) and len(rounds) > 8:
            raise kind

    raised = rj.SweepInterrupted if kind is KeyboardInterrupt else kind
    with pytest.raises(raised) as caught:
        search(study, n_trials=40, max_concurrent_trials=3, callback=interrupt)
    result = caught.value.result
    states = collections.Counter(trial.state for trial in study.trials)
    assert states[TrialState.RUNNING] == 0
    assert states[TrialState.COMPLETE] == (result.status == "complete").sum() > 0
    assert states[TrialState.FAIL] > 0
    told = [trial.value for trial in study.trials if trial.value is not None]
    assert set(told) == set(result.objective[result.status == "complete"])


# A static group that does not work.


def broken(where):
    """A training that works with one of its static values."""

    def train(hp, key):
        if hp["kind"] == "bad" and where == "trace":
            raise TypeError("no such kind\nsecond line")
        x = hp["x"]
        if hp["kind"] == "bad" and where == "compile":
            x = jax.ffi.ffi_call("no_such_target", jax.ShapeDtypeStruct((), jnp.float32))(x)
        return {"loss": x, "bad": jnp.float32(hp["kind"] == "bad")}

    return train


def judged(metrics):
    if metrics["bad"]:
        raise ZeroDivisionError("bad metrics")
    return metrics["loss"]


BROKEN = {
    "trace": {"train": broken("trace"), "catch": TypeError},
    "compile": {"train": broken("compile"), "catch": (ValueError, jax.errors.JaxRuntimeError)},
    "objective": {"train": broken(""), "objective": judged, "catch": [ZeroDivisionError]},
    "attribute": {"train": broken(""), "attributes": {"a": judged}, "catch": ArithmeticError},
}
KINDS = {"x": rj.uniform(0.0, 1.0), "kind": rj.choice(["good", "bad"])}


def of_kinds(study, kinds, train, **options):
    for i, kind in enumerate(kinds):
        study.enqueue_trial({"kind": kind, "x": 0.5 / (i + 1)})
    given = {"n_trials": len(kinds), "progress": False, "max_concurrent_trials": 2}
    return rj.search.optimize(train, study, KINDS, **given | options)


@pytest.mark.parametrize("where", BROKEN)
def test_what_is_caught_fails_one_study_trial(where, capsys):
    study, told = optuna.create_study(sampler=SAMPLERS["random"]()), []
    options = BROKEN[where] | {"study_callbacks": [lambda study, trial: told.append(trial.number)]}
    result = of_kinds(study, ["good", "bad", "good", "bad", "good"], **options)
    states = ["COMPLETE", "FAIL", "COMPLETE", "FAIL", "COMPLETE"]
    assert [trial.state.name for trial in study.trials] == states
    assert sorted(told) == [0, 1, 2, 3, 4]
    assert result.best().point["x"] == pytest.approx(0.1)
    assert (result.status == "complete").sum() == 3
    for trial in study.trials:
        assert ("cause" in trial.user_attrs) == (trial.state == TrialState.FAIL)
    assert capsys.readouterr().err.count("search: study trial") == 2
    if where == "trace":
        assert "no such kind" in study.trials[1].user_attrs["cause"]
        assert "second" not in study.trials[1].user_attrs["cause"]


@pytest.mark.parametrize("where", BROKEN)
def test_what_is_not_caught_ends_the_call_and_is_told_with_its_cause(where):
    """A group that does not trace is found before anything is asked, where all are looked at."""
    study = optuna.create_study(sampler=SAMPLERS["random"]())
    options = BROKEN[where] | {"catch": (KeyError,)}
    raised = TypeError if where == "trace" else (Exception,)
    with pytest.raises(raised) as caught:
        of_kinds(study, ["good", "bad", "good"], **options)
    if where == "trace":
        assert [trial.state for trial in study.trials] == [TrialState.WAITING] * 3
    else:
        first, second, third = study.trials
        assert second.state == TrialState.FAIL
        assert third.state == TrialState.WAITING
        if where == "compile":  # the first was under way
            assert first.state == TrialState.FAIL
        for trial in study.trials:
            if trial.state == TrialState.FAIL:
                expected = f"{type(caught.value).__name__}: {str(caught.value).splitlines()[0]}"
                assert trial.user_attrs["cause"] == expected
        assert caught.value.result is not None
    notes = "".join(caught.value.__notes__)
    assert ("static hyperparameters {'kind': 'bad'}" in notes) == (where in ("trace", "compile"))


@pytest.mark.parametrize("is_stepwise", [False, True])
@pytest.mark.parametrize("where", ["trace", "compile"])
def test_a_sweeps_error_names_the_static_group_it_is_of(where, is_stepwise):
    train, options = broken(where), {}
    if is_stepwise:
        options = {"steps": 2}
        run = broken(where)
        train = rj.Training(lambda hp, key: 0.0, lambda hp, state, key: (state, run(hp, key)))
    with pytest.raises((TypeError, ValueError, jax.errors.JaxRuntimeError)) as caught:
        rj.sweep(train, rj.grid(x=[0.5], kind=["good", "bad"]), progress=False, **options)
    notes = caught.value.__notes__
    note = "This happened with the static hyperparameters {'kind': 'bad'}."
    assert notes.count(note) == 1
    assert "'good'" not in "".join(notes)


def test_one_of_many_groups_is_caught_wherever_it_is():
    def train(hp, key):
        if hp["size"] < 250:
            raise TypeError("too small")
        return {"loss": hp["x"] + 0.0 * hp["size"]}

    space = {"x": rj.uniform(0, 1), "size": rj.static(rj.integers(1, 500))}
    study = optuna.create_study(sampler=SAMPLERS["random"]())
    for size in (400, 3, 3, 300):
        study.enqueue_trial({"size": size})
    result = rj.search.optimize(
        train, study, space, n_trials=4, progress=False, catch=TypeError, max_concurrent_trials=1
    )
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL", "FAIL", "COMPLETE"]
    assert [point["size"] for point in result.points] == [400, 300]
    study.enqueue_trial({"size": np.inf})
    with pytest.raises(ValueError, match="'size' must be a whole number, got inf"):
        rj.search.optimize(train, study, space, n_trials=1, progress=False, catch=TypeError)
    with pytest.raises(TypeError, match="too small"):
        rj.search.optimize(train, study, space, n_trials=1, progress=False)


def test_a_waiting_trial_that_cannot_be_is_caught():
    study = optuna.create_study(sampler=SAMPLERS["random"]())
    for asked in ({"rate": 0.5, "wide": "no"}, {"rat": 1.0}, {"rate": 0.25, "wide": True}):
        study.enqueue_trial(asked)
    result = of_values(study, n_trials=3, catch=ValueError)
    assert [t.state.name for t in study.trials] == ["FAIL", "FAIL", "COMPLETE"]
    assert list(result.points) == [{"rate": 0.25, "wide": True}]


@pytest.mark.parametrize("catch", [3, "ValueError", (ValueError, int), KeyboardInterrupt])
def test_catch_must_be_exceptions(catch):
    with pytest.raises(ValueError, match="catch must be an exception class"):
        of_values(optuna.create_study(), catch=catch)


def interrupted(storage, at):
    """Search with Ctrl-C at a query of the database; return how many queries there were."""
    from sqlalchemy import event

    study = optuna.create_study(storage=storage, sampler=SAMPLERS["random"]())
    queries = itertools.count(1)

    def query(*_):
        if next(queries) == at:
            signal.raise_signal(signal.SIGINT)

    moments = ["before_cursor_execute", "after_cursor_execute", "commit"]
    for moment in moments:
        event.listen(storage.engine, moment, query)
    slope = lambda hp, x, key: (x + hp["rate"], {"loss": x})
    try:
        rj.search.optimize(
            rj.Training(lambda hp, key: 0.0, slope), study, {"rate": rj.uniform(0.0, 1.0)},
            n_trials=2, max_concurrent_trials=2, steps=4, evaluate_every=2, progress=False,
        )  # fmt: skip
    finally:
        for moment in moments:
            event.remove(storage.engine, moment, query)
    return next(queries)


@pytest.mark.parametrize("at", few(range(2, 240, 3), range(20, 240, 60)))
def test_ctrl_c_at_any_query_leaves_no_trial_running(at, sqlite, ctrl_c):
    """The query may begin a study trial, or hold the database's lock."""
    try:
        assert interrupted(sqlite(), at) <= at
    except rj.SweepInterrupted:
        (study,) = optuna.get_all_study_names(sqlite())
        trials = optuna.load_study(study_name=study, storage=sqlite()).trials
        assert not [t.number for t in trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]


def test_a_second_ctrl_c_does_not_wait(ctrl_c):
    reached = []

    def interrupt(study, trial):
        if not reached:
            signal.raise_signal(signal.SIGINT)
            reached.append("after the first")
            signal.raise_signal(signal.SIGINT)
            reached.append("after the second")

    study = optuna.create_study(sampler=SAMPLERS["random"]())
    with pytest.raises(rj.SweepInterrupted):
        of_values(study, study_callbacks=[interrupt])
    assert reached == ["after the first"]
    assert TrialState.RUNNING not in {trial.state for trial in study.trials}


@pytest.mark.slow
def test_ctrl_c_from_the_keyboard_leaves_no_trial_running(sqlite, tmp_path):
    script = f"""
import signal, jax, optuna
from tests.support import searcher
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job may ignore it
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.create_study(storage="sqlite:///{tmp_path}/study.db", study_name="s")
searcher.search(study, searcher.SLOW, callback=lambda report: print("round", flush=True))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(6):
        assert process.stdout.readline() == "round\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert "SweepInterrupted" in error
    study = optuna.load_study(study_name="s", storage=sqlite())
    states = {trial.state for trial in study.trials}
    assert states
    assert not states & {TrialState.RUNNING, TrialState.WAITING}


def test_a_trial_that_another_worker_took_over_is_told_once(sqlite):
    study = optuna.create_study(storage=sqlite(), sampler=SAMPLERS["random"]())
    other = optuna.load_study(study_name=study.study_name, storage=sqlite())

    def take_over(report):
        for number, step in ((1, 10), (2, STEPS)):
            if any(one.number == number and one.step == step for one in report):
                other.tell(number, state=TrialState.FAIL)

    told = []
    result = search(
        study, n_trials=4, max_concurrent_trials=2, callback=take_over,
        study_callbacks=[lambda study, trial: told.append(trial.number)],
    )  # fmt: skip
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL", "FAIL", "COMPLETE"]
    assert told == [0, 3]
    assert result.steps_completed.tolist() == [STEPS, 10, STEPS, STEPS]


class Away:
    """A storage whose connection drops now and then, before a call or after it."""

    def __init__(self, storage, rng):
        self._inner, self._rng, self.drops = storage, rng, 0

    def __getattr__(self, name):
        inner = getattr(self._inner, name)
        if not callable(inner) or not name.startswith(("set_trial", "create_new_trial")):
            return inner

        def call(*args, **kwargs):
            from sqlalchemy.exc import OperationalError

            away = OperationalError("SELECT 1", {}, Exception("server closed the connection"))
            chance = self._rng.random()
            self.drops += chance < 0.3
            if chance < 0.15:
                raise optuna.exceptions.StorageInternalError("gone") from away
            found = inner(*args, **kwargs)
            if chance < 0.3:
                raise optuna.exceptions.StorageInternalError("gone") from away
            return found

        return call


@pytest.mark.slow
def test_a_database_that_is_away_now_and_then_is_told_once(monkeypatch, capsys):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    study = optuna.create_study(sampler=SAMPLERS["random"](), pruner=PRUNERS["median"]())
    study._storage = away = Away(study._storage, np.random.default_rng(0))
    told = []
    result = search(study, study_callbacks=[lambda study, trial: told.append(trial.number)])
    assert away.drops > 20
    finished = [t for t in study.trials if t.state != TrialState.RUNNING]
    # An ask that was written and not answered leaves a trial that no one has.
    assert sorted(told) == [trial.number for trial in finished]
    assert len(finished) == 12 == len(result)
    assert "does not answer" in capsys.readouterr().err


def test_what_a_lost_connection_leaves_behind_is_waited_for_and_bad_data_is_not():
    """As PostgreSQL's driver, SQLAlchemy and Optuna say it."""
    from sqlalchemy import exc

    lost = [
        exc.OperationalError("SELECT 1", {}, Exception("server closed the connection")),
        exc.InterfaceError("SELECT 1", {}, Exception("connection already closed")),
        exc.PendingRollbackError("Can't reconnect until invalid transaction is rolled back."),
        exc.DBAPIError("SELECT 1", {}, Exception("gone"), connection_invalidated=True),
    ]
    bad = [exc.DataError("INSERT", {}, Exception("value too long")), ValueError("no"), KeyError(3)]
    codes = [("57P01", True), ("08006", True), ("40001", True), ("53300", True), (None, True)]
    codes += [("53100", False), ("28P01", False), ("3D000", False), ("25006", False)]
    for state, is_away in codes:  # as psycopg has them
        error = type("Of", (Exception,), {"sqlstate": state})("what it says")
        (lost if is_away else bad).append(exc.OperationalError("SELECT 1", {}, error))
    for code, is_away in [(2006, True), (1040, True), (1213, True), (1049, False), (1114, False)]:
        error = Exception(code, "what MySQL says")
        (lost if is_away else bad).append(exc.OperationalError("SELECT 1", {}, error))
    for errors, is_away in ((lost, True), (bad, False)):
        for error in errors:
            wrapped = optuna.exceptions.StorageInternalError("An exception is raised")
            wrapped.__cause__ = error
            assert study_module.is_away(error) == study_module.is_away(wrapped) == is_away


WRONG = {
    "no such table": "DROP TABLE trial_values",
    "readonly database": "PRAGMA query_only = 1",
    "disk is full": "PRAGMA max_page_count = 1",
}


@pytest.mark.parametrize("message", WRONG)
def test_a_database_that_is_wrong_is_not_waited_for(message, sqlite, capsys):
    storage = sqlite()
    study = optuna.create_study(storage=storage, sampler=SAMPLERS["random"]())

    def spoil(study, trial):
        if trial.number == 1:
            with contextlib.closing(storage.engine.raw_connection()) as connection:
                connection.cursor().execute(WRONG[message])
                connection.commit()

    start = time.monotonic()
    with pytest.raises(optuna.exceptions.StorageInternalError) as caught:
        of_values(
            study, study_callbacks=[spoil], max_concurrent_trials=1, n_trials=100,
            attributes={f"{i}{'x' * 500}": "loss" for i in range(4)},  # a database grows by pages
        )  # fmt: skip
    assert time.monotonic() - start < 60
    error = caught.value
    assert message in f"{error} {error.__cause__}"
    assert len(caught.value.result) >= 2
    assert "does not answer" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_database_that_is_locked_is_waited_for_and_the_cause_is_said(tmp_path, capsys):
    file = tmp_path / "study.db"
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{file}", engine_kwargs={"connect_args": {"timeout": 0.1}}
    )
    study = optuna.create_study(storage=storage, sampler=SAMPLERS["random"]())
    other = sqlite3.connect(file, check_same_thread=False, isolation_level=None)

    def lock(study, trial):
        if trial.number == 1:
            other.execute("BEGIN EXCLUSIVE")
            threading.Timer(0.6, other.execute, ["ROLLBACK"]).start()

    result = of_values(study, n_trials=4, max_concurrent_trials=1, study_callbacks=[lock])
    assert len(result) == 4
    said = [line for line in capsys.readouterr().err.splitlines() if "does not answer" in line]
    assert said
    assert all("(OperationalError: database is locked)" in line for line in said)
    other.close()
    storage.remove_session()
    storage.engine.dispose()


def test_a_database_that_stays_away_ends_the_search_with_what_is_finished(monkeypatch, capsys):
    monkeypatch.setattr(study_module, "PATIENCE", 0.3)
    study = optuna.create_study(sampler=SAMPLERS["random"]())
    from sqlalchemy.exc import OperationalError

    def gone(*_, **__):
        raise OperationalError("UPDATE", {}, Exception("no route to host"))

    def go(study, trial):
        if trial.number == 3:
            monkeypatch.setattr(study._storage, "create_new_trial", gone)

    with pytest.raises(OperationalError) as caught:
        of_values(study, study_callbacks=[go], max_concurrent_trials=1)
    assert "no route to host" in capsys.readouterr().err
    assert "did not answer for 0.3 s" in "".join(caught.value.__notes__)
    assert len(caught.value.result) == 4


@pytest.mark.parametrize("pruner", ["wilcoxon", "patient"])
def test_wilcoxon_is_refused(pruner):
    wilcoxon = optuna.pruners.WilcoxonPruner()
    of = {"wilcoxon": wilcoxon, "patient": optuna.pruners.PatientPruner(wilcoxon, 1)}
    with pytest.raises(ValueError, match=r"pruner must .*WilcoxonPruner.*MedianPruner\(\)"):
        search(optuna.create_study(pruner=of[pruner]))


REFUSED = {
    "no study": ({"study": "study"}, "study must be an Optuna study"),
    "no space": ({"space": {}}, "dict of at least one distribution"),
    "no distribution": ({"space": {"rate": [1.0, 2.0]}}, "'rate' .*distribution"),
    "unread": ({"space": SPACE | {"more": rj.uniform(0, 1)}}, "never reads the axis 'more'"),
    "missing": ({"space": {"rate": rj.uniform(0, 1)}}, r"hp\['decay'\].*Add the axis"),
    "shared name": (
        {"space": SPACE | {"1 - decay": rj.uniform(0, 1)}}, "Rename one",
    ),
    "no trials": ({"n_trials": 0}, "n_trials must be an int of at least 1"),
    "max_concurrent_trials": ({"max_concurrent_trials": 0}, "max_concurrent_trials must be an int"),
    "objective": ({"objective": "accuracy"}, "objective must be .*'accuracy'"),
    "objectives": ({"objective": ("loss", "validation")}, r"objective must .* 1, got .*tuple of 1"),
    "steps": ({"steps": None}, r"steps must be .* steps=1000"),
    "function": ({"train": value_of}, r"rj\.Training\(init, step\)"),
    "callbacks": ({"study_callbacks": print}, "study_callbacks must be a list of functions"),
    "keep": ({"keep_states": 13}, "keep_states must be at most .* 12"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_before_anything_is_asked(name):
    options, message = REFUSED[name]
    study = optuna.create_study()
    with pytest.raises(ValueError, match=message):
        search(**{"study": study} | options)
    assert not study.trials


def test_what_is_used_of_optunas_private_names(sqlite, tmp_path):
    """The canary of `study_client.py`, the only module that touches them."""
    study = optuna.create_study(storage=sqlite(), sampler=SAMPLERS["random"]())
    seen = []

    def objective(trial):
        seen.append(study._thread_local.in_optimize_loop)
        study.stop()
        seen.append(study._stop_flag)
        return 0.0

    study.optimize(objective, n_trials=2)
    assert seen == [True, True]
    assert study._thread_local.in_optimize_loop is False
    study._thread_local.in_optimize_loop, study._stop_flag = True, False  # as a search does
    study.stop()
    assert study._stop_flag is True
    study.enqueue_trial({"x": 0.25})
    trial = study.ask()
    assert trial._fixed_params == {"x": 0.25}
    trial._fixed_params = {"x": 0.5}
    assert trial.suggest_float("x", 0.0, 1.0) == 0.5
    assert study._storage.get_trial(trial._trial_id).number == trial.number
    assert study._pop_waiting_trial_id() is None
    study.enqueue_trial({"x": 0.75})
    assert study._pop_waiting_trial_id() == study.trials[-1]._trial_id
    study._thread_local.cached_all_trials = []
    study.ask()
    assert study._thread_local.cached_all_trials is None
    assert study._storage.get_study_name_from_id(study._study_id) == study.study_name
    assert study._storage.get_heartbeat_interval() is None
    assert type(optuna.create_study()._storage) is optuna.storages.InMemoryStorage
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # heartbeats are experimental
        alive = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/study.db", heartbeat_interval=60)
    assert alive.get_heartbeat_interval() == 60
    alive.record_heartbeat(trial._trial_id)
    alive.remove_session()
    alive.engine.dispose()
    base = SAMPLERS["random"]()
    sampler = optuna.samplers.PartialFixedSampler({"x": 0.75}, base)
    assert (sampler._fixed_params, sampler._base_sampler) == ({"x": 0.75}, base)
    sampler._fixed_params = {"x": 0.125}
    study.sampler = sampler
    assert study.ask().suggest_float("x", 0.0, 1.0) == 0.125


def test_an_objective_of_study_optimize_may_not_search():
    study = optuna.create_study()
    with pytest.raises(RuntimeError, match=r"inside an objective.*[Cc]all it outside"):
        study.optimize(lambda trial: of_values(study), n_trials=1)
    with pytest.raises(ValueError, match=r"search\.optimize must be called outside jax\.jit"):
        jax.jit(lambda: of_values(study))()


def test_an_asked_value_that_cannot_be_is_named_and_its_trial_fails():
    study = optuna.create_study(sampler=SAMPLERS["random"]())
    study.enqueue_trial({"rate": 0.25, "wide": True})
    study.enqueue_trial({"rate": 1e300, "wide": True})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna says that it is out of range
        with pytest.raises(ValueError, match=r"'rate'.*1e\+300") as caught:
            of_values(study, max_concurrent_trials=1)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL"]
    assert len(caught.value.result) == 1


def test_more_static_groups_than_are_traced_in_advance():
    def train(hp, key):
        return {"loss": jnp.ones(hp["size"]).sum() + hp["x"]}

    space = {"size": rj.static(rj.integers(1, 500)), "x": rj.uniform(0, 1)}
    study = optuna.create_study(sampler=SAMPLERS["random"]())
    result = rj.search.optimize(
        train, study, space, n_trials=3, max_concurrent_trials=2, progress=False
    )
    for trial, point in zip(study.trials, result.points, strict=True):
        np.testing.assert_allclose(trial.value, point["size"] + np.float32(point["x"]))

    def other(hp, key):
        return {"loss": jnp.ones(hp["size"]) * hp["x"]}

    with pytest.raises(ValueError, match=r"metrics must have the same .*\{'size'"):
        rj.search.optimize(other, study, space, n_trials=9, progress=False)
    assert not [t for t in study.trials if t.state == TrialState.RUNNING]


def test_static_groups_of_other_lengths():
    def train(hp, key):
        return {"loss": jnp.arange(8.0 if hp["long"] else 5.0) * hp["x"]}

    space = {"long": rj.choice([False, True]), "x": rj.uniform(0, 1)}
    for long in ([False], [True], [True, False]):
        study = optuna.create_study(sampler=SAMPLERS["random"]())
        for one in long:
            study.enqueue_trial({"long": one})
        result = rj.search.optimize(
            train, study, space, n_trials=len(long), record_every=3, progress=False
        )
        points = [result.points[i] for i in range(len(long))]
        theirs = rj.sweep(train, points, record_every=3, progress=False)
        assert result.steps["loss"].tolist() == theirs.steps["loss"].tolist()
        np.testing.assert_array_equal(result.metrics["loss"], theirs.metrics["loss"])
        assert [t.value for t in study.trials] == theirs.objective.tolist()


@pytest.mark.slow
def test_what_a_search_found_is_saved_loaded_retrained_and_tabled(tmp_path):
    study = optuna.create_study(sampler=SAMPLERS["random"](), pruner=PRUNERS["median"]())
    result = search(study, seeds=2, keep_states=2)
    result.save(tmp_path / "found")
    loaded = rj.SweepResult.load(tmp_path / "found")
    best = result.best()
    assert loaded.best().point == best.point
    np.testing.assert_array_equal(loaded.status, result.status)
    for name, x in result.metrics.items():
        np.testing.assert_array_equal(loaded.metrics[name], x)
    state, metrics = result.retrain(best, seed=1, args=(SCALE,))
    for one in (result, loaded):
        found = one.state(best, 1, like=state)
        for ours, theirs in zip(plain(found), plain(state), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(
        metrics["loss"], result.metrics["loss"][(result.point_index == best.index)][1]
    )
    table = result.to_dataframe()
    assert len(table) == 24
    assert set(table["status"]) == set(result.status)
    assert set(result.to_xarray().status.values.ravel()) <= {*result.status, ""}
    assert "pruned" in result._repr_html_()
    rj.plots.curves(result, "validation")


@pytest.mark.slow
@given(
    low=st.floats(1e-30, 1e3), factor=st.floats(1.001, 1e6), kind=st.integers(0, 5),
    x=st.floats(0, 1),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_a_distribution_and_optunas_have_the_same_values(low, factor, kind, x):
    high = low * factor
    made = [
        lambda: rj.uniform(-low, high),
        lambda: rj.log_uniform(low, high),
        lambda: rj.one_minus(rj.log_uniform(low / 1e4, high / 1e4)),
        lambda: rj.integers(-int(low), int(high) + 1),
        lambda: rj.choice([low, high, 3]),
        lambda: rj.one_minus(rj.one_minus(rj.uniform(low, high))),
    ][kind]()
    (axis,) = axes_of({"x": made}).values()
    trial = optuna.trial.FixedTrial({axis.parameter: _inside(axis.distribution, x)})
    value = axis.value(axis.suggest(trial))
    if kind != 2 and kind < 4:
        assert -1e-6 <= made.unit(value) <= 1 + 1e-6
    if kind == 2 and made.distribution.quantile(0.0) < 1:
        assert np.float32(value) < 1
    there = rj.search.to_optuna({"x": made})
    back = rj.search.from_optuna(there)
    assert list(back) == ["x"]
    for u in (0.0, 0.3, 0.999):
        got, wanted = back["x"].quantile(u), made.quantile(u)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6 * high)


def _inside(of, x):
    if isinstance(of, CategoricalDistribution):
        return of.choices[min(int(x * len(of.choices)), len(of.choices) - 1)]
    if isinstance(of, IntDistribution):
        return of.low + round(x * (of.high - of.low))
    return min(max(of.low + x * (of.high - of.low), of.low), of.high)


def test_optunas_distributions_as_ours():
    space = rj.search.from_optuna(
        {
            "a": FloatDistribution(0.0, 1.0, step=0.25),
            "b": IntDistribution(2, 10, step=4),
            "c": CategoricalDistribution(["x", None, True]),
            "1 - d": FloatDistribution(1e-3, 0.1, log=True),
        }
    )
    points = rj.sample(space, n=64)
    assert {point["a"] for point in points} == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert {point["b"] for point in points} == {2, 6, 10}
    assert {point["c"] for point in points} == {"x", None, True}
    assert all(0.9 <= point["d"] <= 0.999 for point in points)
    for bad in (IntDistribution(1, 100, log=True), "x"):
        with pytest.raises(ValueError, match=r"'n'.*IntDistribution without log"):
            rj.search.from_optuna({"n": bad})


@pytest.mark.slow
def test_choices_that_a_database_cannot_hold_stand_there_under_their_labels(sqlite):
    def train(hp, key):
        width = hp["widths"][0]
        return {"loss": jnp.sin(hp["x"]) * width + (1.0 if hp["flag"] is True else 0.0)}

    space = {
        "x": rj.uniform(0, 1),
        "widths": rj.choice([(1, 2), (3, 4)]),
        "flag": rj.static(rj.choice([1, True, "1"])),
    }
    study = optuna.create_study(storage=sqlite(), sampler=SAMPLERS["random"]())
    result = rj.search.optimize(train, study, space, n_trials=16, progress=False)
    for trial, point in zip(study.trials, result.points, strict=True):
        assert trial.params["widths"] == str(point["widths"])
        hp = {"x": jnp.float32(point["x"])}
        np.testing.assert_array_equal(trial.value, train(point | hp, None)["loss"])
        assert rj.search.to_params(point, space) == trial.params
        back = rj.search.to_point(trial.params, space)
        assert back == point
        assert type(back["flag"]) is type(point["flag"])
    kinds = {type(point["flag"]) for point in result.points}
    assert kinds == {int, bool, str}


class Same:
    def __repr__(self):
        return "same"


@pytest.mark.parametrize(
    "choices", [[Same(), Same()], [1, True, "int 1"], ["(1,)", (1,), "str (1,)"]]
)
def test_choices_that_a_study_would_confuse_are_refused(choices):
    with pytest.raises(ValueError, match=r"choices of 'x'.*in train"):
        rj.search.to_optuna({"x": rj.choice(choices)})


def test_labels_of_long_choices_are_short_and_differ():
    """Once cut at 40 characters, and refused where these were alike."""
    long = tuple(range(100, 200))
    space = {
        "x": rj.choice([long, (*long, 200), {"of": long}]),
        "y": rj.static(rj.choice([1, True, 0.123451, 0.123452])),
    }
    found = rj.search.to_optuna(space)
    labels = found["x"].choices
    assert len(set(labels)) == 3
    assert all(len(label) <= 40 for label in labels)
    assert len(set(found["y"].choices)) == 4
    for point in ({"x": long, "y": True}, {"x": (*long, 200), "y": 0.123452}):
        assert rj.search.to_point(rj.search.to_params(point, space), space) == point


class Activation:
    """An object that a JSON file cannot hold."""


@pytest.mark.parametrize("kind", ["memory", "sqlite", "journal"])
def test_functions_are_choices_of_a_study_in_memory_alone(kind, sqlite, tmp_path):
    def train(hp, key):
        act = hp["act"] if callable(hp["act"]) else jnp.abs
        return {"loss": act(hp["x"])}

    storage = None
    if kind == "sqlite":
        storage = sqlite()
    elif kind == "journal":
        backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log"))
        storage = optuna.storages.JournalStorage(backend)
    spaces = [
        {"x": rj.uniform(0, 1), "act": choice}
        for choice in (
            rj.choice([jnp.sin, jnp.cos]),
            rj.choice([lambda x: x, lambda x: 2 * x]),
            rj.choice([Activation(), "abs"]),
        )
    ]
    for space in spaces:
        study = optuna.create_study(storage=storage, sampler=SAMPLERS["random"]())
        run = lambda study=study, space=space: rj.search.optimize(
            train, study, space, n_trials=4, progress=False
        )
        if kind == "memory":
            assert len(run()) == 4
        else:
            with pytest.raises(ValueError, match=r"'act' must be values .*in train"):
                run()
            assert not study.trials


# Constraints.


def constrained(study, **options):
    """The loss falls with the rate, and what is above 0.5 is not feasible."""

    def step(hp, state, key):
        state = state + 1.0
        noise = 0.01 * jax.random.uniform(key)
        return state, {"loss": 1.0 - hp["rate"] + noise, "size": hp["rate"] * state}

    given = {
        "n_trials": 8, "steps": 4, "evaluate_every": 2, "seeds": [3, 5], "progress": False,
        "attributes": {"size": lambda metrics: metrics["size"][-1], "last": "loss"},
    }  # fmt: skip
    space = {"rate": rj.uniform(0.0, 1.0)}
    training = rj.Training(lambda hp, key: jnp.float32(0.0), step)
    return rj.search.optimize(training, study, space, **given | options)


def at_most_two(trial):
    return [trial.user_attrs["size"] - 2.0]


def of_constraints(sampler="random", **options):
    samplers = {
        "tpe": lambda: optuna.samplers.TPESampler(
            seed=1, n_startup_trials=3, constraints_func=at_most_two
        ),
        "nsga": lambda: optuna.samplers.NSGAIISampler(
            seed=1, population_size=4, constraints_func=at_most_two
        ),
    }
    return optuna.create_study(sampler=samplers[sampler](), **options)


@pytest.mark.parametrize("sampler", ["tpe", "nsga"])
def test_infeasible_points_rank_after_feasible_ones(sampler, tmp_path):
    study = of_constraints(sampler, pruner=optuna.pruners.NopPruner())
    for rate in (0.9, 0.3, 0.45, 0.7):
        study.enqueue_trial({"rate": rate})
    result = constrained(study)
    rates = np.array([point["rate"] for point in result.points])
    np.testing.assert_array_equal(result.feasible, np.repeat(rates, 2) * 4 <= 2.0)
    assert 0 < result.feasible.sum() < 16
    best = result.best()
    assert best.point["rate"] == rates[rates <= 0.5].max()
    assert best.index == study.best_trial.number
    assert best.objective == study.best_value
    result.state(best)  # the only one that is kept
    with pytest.raises(ValueError, match="keep_states"):
        result.state({"rate": 0.9})
    ranked = [record.point["rate"] for record in result.top(8)]
    assert ranked == [*sorted(rates[rates <= 0.5])[::-1], *sorted(rates[rates > 0.5])[::-1]]
    for trial, point in zip(study.trials, result.points, strict=True):
        assert trial.user_attrs["size"] == pytest.approx(4 * point["rate"])
        mine = result.metrics["loss"][result.point_index == trial.number, -1].astype(float)
        assert trial.user_attrs["last"] == mine.mean() == trial.value
    result.save(tmp_path / "found")
    pickled = pickle.loads(pickle.dumps(result))
    for other in (rj.SweepResult.load(tmp_path / "found"), pickled, result.rescored("loss")):
        np.testing.assert_array_equal(other.feasible, result.feasible)
        assert other.best().point == best.point
    assert result.best(by="size", mode="max").point == best.point


def test_constraints_of_pruned_trials_and_of_several_directions():
    study = of_constraints("tpe", pruner=optuna.pruners.ThresholdPruner(upper=0.2))
    for rate in (0.9, 0.6, 0.99):
        study.enqueue_trial({"rate": rate})
    result = constrained(study, n_trials=3)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert study.trials[1].user_attrs["size"] == pytest.approx(1.2)  # where it was pruned
    assert result.feasible.tolist() == [False] * 2 + [True] * 2 + [False] * 2
    assert result.best().point == {"rate": 0.99}  # no feasible one has ended
    study = of_constraints("nsga", directions=["minimize", "minimize"])
    result = constrained(study, objective=("loss", "size"), n_trials=6)
    assert [trial.number for trial in study.best_trials]
    assert result.best(by="loss").index in {trial.number for trial in study.best_trials}


@pytest.mark.skipif(not hasattr(optuna.Trial, "set_constraint"), reason="needs Optuna 5")
def test_constraints_of_optuna_5_and_what_matters_among_feasible_points():
    class Sampler(optuna.samplers.RandomSampler):
        def after_trial(self, study, trial, state, values):
            live = optuna.Trial(study, trial._trial_id)
            live.set_constraint("rate", trial.params["rate"] - 0.5)
            live.set_constraint("nothing", -1.0)

    train = lambda hp, key: {"loss": 1.0 - hp["rate"] + jnp.float32(hp["wide"])}
    study = optuna.create_study(sampler=Sampler())
    for rate, wide in ((0.9, False), (0.4, False), (0.45, True)):
        study.enqueue_trial({"rate": rate, "wide": wide})
    result = rj.search.optimize(train, study, VALUES, n_trials=3, progress=False)
    assert result.feasible.tolist() == [False, True, True]
    assert result.best().index == study.best_trial.number == 1
    assert result.sensitivity()["wide"] == pytest.approx(0.95)  # each value at its best: 1.55 − 0.6


def test_all_of_a_sweep_is_feasible():
    result = rj.sweep(value_of, rj.grid(rate=[0.1, 0.2], wide=[False]), seeds=2, progress=False)
    assert result.feasible.tolist() == [True] * 4


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (["size"], "attributes must be a dict"),
        ({1: "size"}, "attributes must have strings as names"),
        ({"seeds": "size"}, r"attributes must have other names.*\['seeds'\]"),
        ({"size": "sizes"}, r"attributes\['size'\] must be a valid objective.*'sizes'"),
        ({"size": lambda metrics: metrics["loss"]}, "one number, got an array of shape"),
    ],
)
def test_bad_attributes_are_refused_before_anything_is_asked(attributes, message):
    study = optuna.create_study()
    with pytest.raises(ValueError, match=message):
        constrained(study, attributes=attributes)
    assert not study.trials


# Hyperparameters under our names.

NAMED = {
    "rate": rj.uniform(0.0, 1.0),
    "decay": rj.one_minus(rj.log_uniform(1e-3, 0.5)),
    "keep": rj.one_minus(rj.choice([0.1, 0.5])),
    "sizes": rj.choice([(1, 2), (3, 4), None]),
}


def named(hp, key):
    size = sum(hp["sizes"]) if hp["sizes"] else 0
    return {"loss": hp["rate"] + 0.1 * hp["decay"] + 0.01 * hp["keep"] + size}


def of_names(study, n_trials=1, space=NAMED, **options):
    return rj.search.optimize(named, study, space, n_trials=n_trials, progress=False, **options)


@pytest.mark.slow
@pytest.mark.filterwarnings("error:Fixed parameter")  # 1 − 0.9 is in [0.1, ...], too
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize(
    "asked",
    [
        {"decay": 0.99},
        {"decay": 0.999, "keep": 0.9, "rate": 0},
        {"1 - decay": 0.25, "1 - keep": 0.5, "sizes": "(3, 4)"},
        {"decay": np.float64(0.5000001), "sizes": (1, 2), "keep": 0.5},
        {"rate": 0.5, "sizes": None},
    ],
)
def test_what_is_enqueued_under_our_names_is_tried(kind, asked, sqlite):
    storage = sqlite() if kind == "sqlite" else None
    study = optuna.create_study(storage=storage, sampler=SAMPLERS["random"]())
    plainly = {name: x.item() if isinstance(x, np.generic) else x for name, x in asked.items()}
    study.enqueue_trial(plainly if kind == "sqlite" else asked)
    result = of_names(study)
    (point,), (trial,) = result.points, study.trials
    for name, value in rj.search.to_point(plainly, NAMED).items():
        assert point[name] == value
    if "decay" in asked:
        assert point["decay"] == asked["decay"]
        assert trial.params["1 - decay"] == pytest.approx(1 - asked["decay"])
    assert set(trial.params) == set(rj.search.to_optuna(NAMED))


@pytest.mark.filterwarnings("error:Fixed parameter")
def test_the_best_point_is_enqueued_as_it_is():
    study = optuna.create_study(sampler=SAMPLERS["random"]())
    best = of_names(study, 20).best()
    for enqueued in (best.point, study.best_params, rj.search.to_params(best.point, NAMED)):
        study.enqueue_trial(enqueued)
    again = of_names(study, 3)
    assert list(again.points) == [best.point] * 3
    assert set(again.objective) == {best.objective}
    assert rj.search.to_point(study.best_params, NAMED) == best.point


@pytest.mark.parametrize("nested", [False, True])
def test_a_sampler_that_fixes_hyperparameters_does_so_under_our_names(nested):
    fixed = {"decay": 0.99, "sizes": (3, 4)}
    make = optuna.samplers.PartialFixedSampler
    sampler = make(fixed, SAMPLERS["multivariate"]())
    if nested:
        sampler = make({"sizes": (3, 4)}, make({"decay": 0.99}, SAMPLERS["multivariate"]()))
    study = optuna.create_study(sampler=sampler)
    result = of_names(study, 6)
    assert {(point["decay"], point["sizes"]) for point in result.points} == {(0.99, (3, 4))}
    assert len({point["rate"] for point in result.points}) == 6
    assert study.sampler is sampler
    assert fixed == {"decay": 0.99, "sizes": (3, 4)}
    # As Optuna has it, where names and values are its own.
    other = optuna.create_study(
        sampler=make(rj.search.to_params(fixed, NAMED), SAMPLERS["multivariate"]())
    )
    same = of_names(other, 6)
    assert list(same.points) == list(result.points)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"deacy": 0.99},
            r"'deacy' must be a hyperparameter.*'decay' \('1 - decay' in the study\)",
        ),
        ({"rate": 0.5, "1 - rate": 0.5}, "'1 - rate' must be a hyperparameter"),
        ({"decay": 0.99, "1 - decay": 0.01}, "'1 - decay' must be given once"),
        ({"sizes": (1, 3)}, r"'sizes' must be one of the choices \[\(1, 2\), \(3, 4\), None\]"),
        ({"decay": "high"}, "'decay' must be a number, got 'high'"),
        ({"keep": 0.7}, "'keep' must be one of the choices"),
    ],
)
def test_a_waiting_trial_that_fits_no_axis_is_refused_when_it_is_asked(asked, message):
    study = optuna.create_study(sampler=SAMPLERS["random"]())
    study.enqueue_trial(asked)
    with pytest.raises(ValueError, match=f"study trial 0.*waited in the study: .*{message}"):
        of_names(study)
    assert [trial.state.name for trial in study.trials] == ["FAIL"]
    for translate in (rj.search.to_params, rj.search.to_point):
        with pytest.raises(ValueError, match=message):
            translate(asked, NAMED)
    study.sampler = optuna.samplers.PartialFixedSampler(asked, SAMPLERS["random"]())
    with pytest.raises(ValueError, match=f"PartialFixedSampler: {message}"):
        of_names(study)
    assert len(study.trials) == 1


def test_a_trial_added_with_another_space_is_refused_and_one_tried_again_is_not():
    study = optuna.create_study(sampler=SAMPLERS["random"]())
    of_names(study)
    (first,) = study.trials
    retry = optuna.storages.RetryHeartbeatStaleTrialCallback()
    retry(study, first)
    assert of_names(study).points[0] == rj.search.to_point(first.params, NAMED)
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING, params={"decay": 0.5},
            distributions={"decay": FloatDistribution(0, 1)},
        )
    )  # fmt: skip
    with pytest.raises(ValueError, match="'decay' must be a parameter of this space"):
        of_names(study)


def test_an_int_is_not_cut_from_a_fraction():
    space = {"n": rj.integers(1, 9), "m": rj.one_minus(rj.integers(-3, 0))}
    train = lambda hp, key: {"loss": 1.0 * (hp["n"] + hp["m"])}
    study = optuna.create_study(sampler=SAMPLERS["random"]())
    for asked in ({"n": 3.0, "m": 2}, {"n": 4}):
        study.enqueue_trial(asked)
    result = rj.search.optimize(train, study, space, n_trials=2, progress=False)
    assert result.points[0] == {"n": 3, "m": 2}
    study.enqueue_trial({"n": 3.5})
    with pytest.raises(ValueError, match=r"'n' must be a whole number.*got 3\.5"):
        rj.search.optimize(train, study, space, n_trials=1, progress=False)


SPACES = {
    "floats": {"a": rj.uniform(0, 0.1), "b": rj.log_uniform(1e-5, 1e-1), "c": rj.uniform(-1, 1)},
    "complements": {"decay": rj.one_minus(rj.log_uniform(1e-3, 0.5))},
    "ints": {"n": rj.integers(1, 500)},
}
HELD_BY_OPTUNA_IN_PART = {
    "static": {"n": rj.static(rj.integers(1, 500)), "m": rj.choice(rj.static([1, 2]))},
    "choices": {"x": rj.choice([(1, 2), [3]]), "f": rj.choice([None, np.sin])},
    "narrow": {"x": rj.uniform(0.1, 0.1 + 1e-12), "y": rj.uniform(0.1, 0.123456789)},
    "both": {"x": rj.one_minus(rj.static(rj.choice([1, 2.5])))},
}


@pytest.mark.parametrize("name", [*SPACES, *HELD_BY_OPTUNA_IN_PART])
def test_a_space_comes_back_from_optuna_as_it_was(name):
    space = (SPACES | HELD_BY_OPTUNA_IN_PART)[name]
    there = rj.search.to_optuna(space)
    for _ in range(3):
        back = rj.search.from_optuna(there)
        assert back == space
        there = rj.search.to_optuna(back)
    if name in SPACES:  # as of a study's trial
        assert rj.search.from_optuna(dict(there)) == space
    assert rj.search.from_optuna(pickle.loads(pickle.dumps(there))) == space
    for parameter in there:  # what was changed since counts
        there[parameter] = CategoricalDistribution([2.5])
    changed = rj.search.from_optuna(there)
    assert list(changed) == list(space)
    assert {distribution.quantile(0.5) for distribution in changed.values()} <= {2.5, -1.5}


@given(
    low=st.floats(-1e3, 1e3), width=st.floats(1e-9, 1e6), log=st.booleans(), turns=st.integers(1, 3)
)
@settings(max_examples=200, deadline=None)
def test_optunas_floats_come_back_with_both_ends(low, width, log, turns):
    low = abs(low) + 1e-9 if log else low
    hypothesis.assume(low + width > low)
    theirs = {"x": FloatDistribution(low, low + width, log=log)}
    ours = theirs
    for _ in range(turns):
        space = rj.search.from_optuna(dict(ours))
        ours = rj.search.to_optuna(space)
    assert ours == theirs
    (distribution,) = space.values()
    assert low <= distribution.quantile(0.0) <= distribution.quantile(0.7) <= low + width
    assert distribution.quantile(np.nextafter(1.0, 0.0)) == pytest.approx(low + width, rel=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda space: rj.search.to_optuna(space),
        lambda space: of_values(optuna.create_study(), space=space),
        lambda space: rj.search.from_optuna({1: FloatDistribution(0, 1)}),
        lambda space: rj.search.to_params({}, space),
    ],
)
def test_a_name_that_is_no_string_is_refused(call):
    with pytest.raises(ValueError, match="must have strings as names, got 1"):
        call({"rate": rj.uniform(0, 1), 1: rj.one_minus(rj.uniform(0, 1))})


@pytest.mark.slow
@pytest.mark.parametrize("kind", few(["sqlite", "journal"], ["journal"]))
def test_two_workers_share_a_file(kind, sqlite, tmp_path):
    def storage():
        if kind == "sqlite":
            return sqlite()
        backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log"))
        return optuna.storages.JournalStorage(backend)

    study = optuna.create_study(storage=storage(), sampler=SAMPLERS["random"](), study_name="s")
    other = optuna.load_study(study_name="s", storage=storage(), sampler=SAMPLERS["qmc"]())
    found = []

    def beside(report):  # a whole search in the middle of this one
        if not found:
            found.append(search(other, n_trials=3))

    first = search(study, n_trials=5, callback=beside)
    assert len(first.points) == 5
    assert len(study.trials) == 8
    assert all(trial.state.is_finished() for trial in study.trials)
    values = {trial.value for trial in study.trials if trial.state == TrialState.COMPLETE}
    ours = [one.objective[one.status == "complete"] for one in (first, *found)]
    assert values == set(np.concatenate(ours).tolist())


# A server of its own, and workers that are processes.


@pytest.fixture(scope="module")
def server():
    if postgres.programs() is None:
        pytest.skip(postgres.MISSING)
    with postgres.running() as server:
        yield server


@pytest.fixture
def study(server):
    storage = searcher.storage(server.url, pool_pre_ping=True)  # connections outlive a restart
    study = optuna.create_study(storage=storage, study_name=searcher.STUDY)
    yield study
    optuna.delete_study(study_name=searcher.STUDY, storage=storage)
    storage.engine.dispose()


class Workers:
    """Some workers on the study, each with a log."""

    def __init__(self, server, folder, count, *pruner):
        self.logs = [folder / f"log {i}" for i in range(count)]
        command = [sys.executable, "-m", "tests.support.searcher", server.url]
        self.processes = []
        for log in self.logs:
            with open(f"{log} of errors", "w", encoding="utf-8") as errors:
                self.processes.append(subprocess.Popen([*command, log, *pruner], stderr=errors))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def lines(self, i):
        return self.logs[i].read_text().splitlines() if self.logs[i].exists() else []

    def said(self, i, what):
        return [line.split()[1:] for line in self.lines(i) if line.split()[0] == what]

    def until(self, condition):
        deadline = time.monotonic() + 120
        while not condition():
            for process, log in zip(self.processes, self.logs, strict=True):
                errors = log.with_name(f"{log.name} of errors")
                assert process.poll() in (None, 0, -signal.SIGKILL), errors.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def finish(self, study):
        study.set_user_attr("enough", True)
        self.until(lambda: all(p.poll() is not None for p in self.processes))

    def check(self, study):
        """Each trial was told once, by one worker; and has the numbers of its training alone."""
        told = [number for i in range(len(self.logs)) for number, _ in self.said(i, "told")]
        assert len(told) == len(set(told))
        training, loss = searcher.training(), {}
        run = jax.jit(
            lambda rate, decay, centered, key: training.run(
                {"rate": rate, "decay": decay, "centered": centered}, key, searcher.SLOW,
                steps=searcher.STEPS,
            )[1]["loss"],
            static_argnums=2,
        )  # fmt: skip
        for trial in study.get_trials(deepcopy=False):
            assert (str(trial.number) in told) == (
                trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
            )
            if len(trial.params) < len(searcher.SPACE):  # made as the server went: no one has it
                assert not trial.intermediate_values
                continue
            rate, memory = jnp.float32(trial.params["rate"]), trial.params["1 - decay"]
            decay, centered = jnp.float32(1 - memory), trial.params["centered"]
            keys = map(jax.random.key, searcher.SEEDS)
            loss = np.mean([run(rate, decay, centered, key) for key in keys], 0, dtype=float)
            for step, value in trial.intermediate_values.items():
                assert value == loss[step - 1]


def tried_again(trials):
    """For each trial that was, the last that came of it: on a slow machine it may be taken for dead
    more than once."""
    return {n: t for t in trials for n in t.system_attrs.get("retry_history", [])}


def kill_one(server, study, folder):
    """Four workers, of which one is killed in the middle of a round."""
    with Workers(server, folder, 4, "NopPruner") as workers:
        workers.until(lambda: all(workers.said(i, "told") for i in range(4)))
        for i in range(3):
            workers.until(lambda i=i: workers.lines(i)[-1] == "report 10")  # of 40
            workers.processes[i].kill()
            workers.processes[i].wait()
            if workers.lines(i)[-1].startswith("report"):
                break  # else it was killed between two trials: too late
        told = {int(number) for number, _ in workers.said(i, "told")}

        def retried():
            trials = study.get_trials(deepcopy=False)
            failed = [t.number for t in trials if t.state == TrialState.FAIL]
            again = tried_again(trials)
            return failed and all(n in again and again[n].state.is_finished() for n in failed)

        workers.until(retried)
        workers.finish(study)
        workers.check(study)
    trials = study.get_trials(deepcopy=False)
    failed = [t for t in trials if t.state == TrialState.FAIL]
    assert failed
    assert not {t.number for t in failed} & told
    again = tried_again(trials)
    for trial in failed:
        assert again[trial.number].params == trial.params
        values = again[trial.number].intermediate_values
        assert trial.intermediate_values.items() <= values.items()  # none, if killed just then


def restart(server, study, folder):
    """Two workers, while the server stops and starts again."""
    with Workers(server, folder, 2) as workers:
        workers.until(lambda: all(workers.said(i, "told") for i in range(2)))
        server.stop()
        time.sleep(2)
        server.start()
        before = [len(workers.said(i, "told")) for i in range(2)]
        workers.until(lambda: all(len(workers.said(i, "told")) > before[i] + 1 for i in range(2)))
        workers.finish(study)
        workers.check(study)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("again", range(2))
def test_workers_wait_for_a_server_that_is_started_again(server, study, tmp_path, again):
    restart(server, study, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("again", range(2))
def test_a_killed_workers_trials_are_found_and_tried_again(server, study, tmp_path, again):
    kill_one(server, study, tmp_path)
