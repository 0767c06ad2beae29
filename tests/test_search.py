"""Search beside Optuna's own loop over the same trainings, and what only search can do wrong."""

import collections
import functools
import itertools
import signal
import subprocess
import sys
import time
import warnings

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
from rmsprop_jax._search import study as study_module
from rmsprop_jax._search.space import axes_of
from tests.support import postgres, searcher
from tests.support.trainings import SCALE, alone, noisy, plain

pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    # Raised where a compiler's thread forks, not by us.
    pytest.mark.filterwarnings("ignore:os.fork"),
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


@pytest.fixture
def sqlite(tmp_path):
    """Makes storages on one file, and closes their connections in the end."""
    opened = []

    def make():
        opened.append(optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/study.db"))
        return opened[-1]

    yield make
    for storage in opened:
        storage.remove_session()
        storage.engine.dispose()


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


def pairs():
    """Each sampler with each pruner; in the plain suite each of both at least once."""
    for sampler, pruner in itertools.product(SAMPLERS, PRUNERS):
        often = sampler == "tpe" or pruner == "median"
        yield pytest.param(sampler, pruner, marks=[] if often else [pytest.mark.slow])


@pytest.mark.parametrize(("sampler", "pruner"), list(pairs()))
def test_proposals_decisions_and_values_are_those_of_optunas_own_loop(sampler, pruner):
    studies = [
        optuna.create_study(sampler=SAMPLERS[sampler](), pruner=PRUNERS[pruner](), study_name="s")
        for _ in range(2)
    ]
    plain_loop(studies[0], 12)
    result = search(studies[1], in_flight=1)
    assert told(studies[0]) == told(studies[1])
    states = collections.Counter(trial.state for trial in studies[1].trials)
    assert states[TrialState.COMPLETE] > 1
    if pruner in ("median", "hyperband", "halving", "threshold"):
        assert states[TrialState.PRUNED] > 0
    ways = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED}
    assert [ways[status] for status in result.status] == [t.state for t in studies[1].trials]
    assert result.reached.tolist() == [trial.last_step for trial in studies[1].trials]
    assert result.best().objective == studies[1].best_value


@pytest.mark.parametrize(
    ("seeds", "in_flight"),
    [
        *(([0], n) for n in (None, 7)),
        *(([3, 1, 2], n) for n in (1, 3, 40)),
        *(pytest.param([0], n, marks=pytest.mark.slow) for n in (1, 2, 3, 40)),
        *(pytest.param([3, 1, 2], n, marks=pytest.mark.slow) for n in (None, 2, 7)),
    ],
)
def test_each_trial_is_the_training_alone_whatever_runs_beside_it(in_flight, seeds):
    pruner = optuna.pruners.PercentilePruner(40.0, n_startup_trials=2)
    study = optuna.create_study(sampler=SAMPLERS["random"](), pruner=pruner)
    result = search(study, in_flight=in_flight, seeds=seeds, keep_states="all")
    other = optuna.create_study(sampler=SAMPLERS["random"]())
    for trial in study.trials:  # as it proposes where nothing is known
        assert other.ask(rj.search.to_optuna(SPACE)).params == trial.params
    assert "finished" in result.status
    assert "stopped" in result.status or in_flight == 40  # no one ends before the others
    for i, (point, seed) in enumerate(zip(result.point_index, result.seed_index, strict=True)):
        reached, hp = int(result.reached[i]), result.points[int(point)]
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
            np.testing.assert_allclose(trial.user_attrs["spread"], np.std(mine, ddof=1))


@pytest.mark.parametrize("batch_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_batches_hold_trials_at_different_steps(batch_size):
    pruner = optuna.pruners.PercentilePruner(40.0, n_startup_trials=2)
    study = optuna.create_study(sampler=SAMPLERS["random"](), pruner=pruner)
    result = search(study, batch_size=batch_size, in_flight=5, seeds=2)
    assert {"finished", "stopped"} <= set(result.status)
    for i, (point, seed) in enumerate(zip(result.point_index, result.seed_index, strict=True)):
        reached = int(result.reached[i])
        _, metrics = alone(training(), result.points[int(point)], int(seed), reached)
        got = result.metrics["loss"][i, :reached]
        np.testing.assert_allclose(got, metrics["loss"], rtol=1e-3, atol=1e-5)


def test_an_accelerators_batch_leaves_the_sampler_something_to_learn(monkeypatch):
    """Its memory alone would have all trials asked at once."""
    for free, at_once in ((1e12, 10), (1.0, 2)):  # of 80: 40 trials of 2 seeds, 2 devices
        known = lambda devices, free=free: free
        monkeypatch.setattr("rmsprop_jax._sweep.processes.free_memory", known)
        seen, study = [], optuna.create_study(sampler=SAMPLERS["random"]())
        space = SPACE | {"centered": rj.choice([False])}
        search(
            study, space=space, n_trials=40, seeds=2, steps=4, evaluate_every=4,
            callback=lambda report, seen=seen: seen.append(len({one.number for one in report})),
        )  # fmt: skip
        assert set(seen) == {at_once}
        assert len(seen) == 80 // at_once


def value_of(hp, key):
    """A training that is a number."""
    rate = hp["rate"] * (2.0 if hp["wide"] else 1.0)
    return {"loss": (rate - 0.3) ** 2 + 0.01 * jax.random.uniform(key), "wider": rate}


VALUES = {"rate": rj.uniform(0.0, 1.0), "wide": rj.choice([False, True])}


def of_values(study, **options):
    given = {"n_trials": 10, "progress": False}
    return rj.search.optimize(value_of, study, VALUES, **given | options)


def test_a_function_runs_whole_each_structure_compiled_once():
    compiled = []

    def listen(event, seconds, fun_name="", **_):
        if event.endswith("backend_compile_duration") and "one_round" in fun_name:
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        study = optuna.create_study(sampler=SAMPLERS["tpe"]())
        result = of_values(study, seeds=3)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compiled) <= 2
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
    assert result.status.tolist() == ["finished"] * 2 + ["failed"] * 2 + ["finished"] * 2
    assert result.reached.tolist() == [12, 12, 6, 6, 12, 12]
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
    with pytest.raises(ValueError, match=r"several objectives.*best_trials"):
        result.best()
    one = result.best(by="validation")
    assert one.objective == min(trial.values[0] for trial in study.trials)
    assert study.best_trials
    assert "several" not in repr(result)
    with pytest.raises(ValueError, match="keep_states=0 or"):
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
    result = of_values(study, n_trials=50, callbacks=[stop_at_four], in_flight=3)
    assert sorted(seen) == list(range(6))  # what was under way went on to its end
    assert len(result) == len(study.trials) == 6
    at_most = optuna.study.MaxTrialsCallback(10, states=[TrialState.COMPLETE])
    of_values(study, n_trials=50, callbacks=[at_most], in_flight=1)
    assert len(study.trials) == 10
    with pytest.raises(RuntimeError, match=r"Study\.stop"):
        study.stop()  # the study is as it was


def test_reports_of_rounds_and_waiting_trials():
    study, seen = optuna.create_study(sampler=SAMPLERS["random"]()), []
    study.enqueue_trial({"rate": 0.5, "wide": True})
    of_values(study, n_trials=3, callback=seen.extend, seeds=2)
    assert study.trials[0].params == {"rate": 0.5, "wide": True}
    assert sorted((one.number, one.seed) for one in seen) == [(i, i % 2) for i in range(6)]


def test_structures_that_fill_no_round_share_the_devices(monkeypatch):
    """One trial of each of two structures on two devices: each has a device of its own."""
    from rmsprop_jax._sweep import rounds

    placed = []
    begin, whole = rounds.Structure.begin, rounds.Structure.run_whole
    monkeypatch.setattr(
        rounds.Structure, "begin",
        lambda self, live, *rest: (placed.append(live.first), begin(self, live, *rest))[1],
    )  # fmt: skip
    monkeypatch.setattr(
        rounds.Structure, "run_whole",
        lambda self, live, *rest: (placed.append(live.first), whole(self, live, *rest))[1],
    )  # fmt: skip
    for run in (search, of_values):
        study = optuna.create_study(sampler=SAMPLERS["random"]())
        for flag in (False, True):
            study.enqueue_trial({"centered": flag, "wide": flag})
        placed.clear()
        result = run(study, n_trials=2)
        assert set(placed) == {0, 1}
        if run is search:
            for point, metrics in zip(result.points, result.metrics["loss"], strict=True):
                _, theirs = alone(training(), point, 0, STEPS)
                np.testing.assert_array_equal(metrics, theirs["loss"])


def test_an_error_while_asking_leaves_no_trial_running():
    study = optuna.create_study(sampler=SAMPLERS["random"]())
    study.tell(study.ask({"wide": CategoricalDistribution(["x", "y"])}), 0.0)
    with pytest.raises(ValueError, match="CategoricalDistribution does not support dynamic"):
        of_values(study)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL"]


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
        search(study, n_trials=40, in_flight=3, callback=interrupt)
    result = caught.value.result
    states = collections.Counter(trial.state for trial in study.trials)
    assert states[TrialState.RUNNING] == 0
    assert states[TrialState.COMPLETE] == (result.status == "finished").sum() > 0
    assert states[TrialState.FAIL] > 0
    told = [trial.value for trial in study.trials if trial.value is not None]
    assert set(told) == set(result.objective[result.status == "finished"])


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
        study, n_trials=4, in_flight=2, callback=take_over,
        callbacks=[lambda study, trial: told.append(trial.number)],
    )  # fmt: skip
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL", "FAIL", "COMPLETE"]
    assert told == [0, 3]
    assert result.reached.tolist() == [STEPS, 10, STEPS, STEPS]


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


def test_a_database_that_is_away_now_and_then_is_told_once(monkeypatch, capsys):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    study = optuna.create_study(sampler=SAMPLERS["random"](), pruner=PRUNERS["median"]())
    study._storage = away = Away(study._storage, np.random.default_rng(0))
    told = []
    result = search(study, callbacks=[lambda study, trial: told.append(trial.number)])
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
    for errors, is_away in ((lost, True), (bad, False)):
        for error in errors:
            wrapped = optuna.exceptions.StorageInternalError("An exception is raised")
            wrapped.__cause__ = error
            assert study_module.is_away(error) == study_module.is_away(wrapped) == is_away


def test_a_database_that_stays_away_ends_the_search_with_what_is_finished(monkeypatch):
    monkeypatch.setattr(study_module, "PATIENCE", 0.3)
    study = optuna.create_study(sampler=SAMPLERS["random"]())
    from sqlalchemy.exc import OperationalError

    def gone(*_, **__):
        raise OperationalError("UPDATE", {}, Exception("no route to host"))

    def go(study, trial):
        if trial.number == 3:
            monkeypatch.setattr(study._storage, "create_new_trial", gone)

    with pytest.raises(OperationalError) as caught:
        of_values(study, callbacks=[go], in_flight=1)
    assert "did not answer for 0.3 s" in "".join(caught.value.__notes__)
    assert len(caught.value.result) == 4


@pytest.mark.parametrize("pruner", ["wilcoxon", "patient"])
def test_wilcoxon_is_refused(pruner):
    wilcoxon = optuna.pruners.WilcoxonPruner()
    of = {"wilcoxon": wilcoxon, "patient": optuna.pruners.PatientPruner(wilcoxon, 1)}
    with pytest.raises(ValueError, match="WilcoxonPruner compares trials on the same"):
        search(optuna.create_study(pruner=of[pruner]))


REFUSED = {
    "no study": ({"study": "study"}, "study must be an Optuna study"),
    "no space": ({"space": {}}, "dict of at least one distribution"),
    "no distribution": ({"space": {"rate": [1.0, 2.0]}}, "'rate' is .*wanted a distribution"),
    "unread": ({"space": SPACE | {"more": rj.uniform(0, 1)}}, "never reads the axis 'more'"),
    "missing": ({"space": {"rate": rj.uniform(0, 1)}}, r"read hp\['decay'\]"),
    "shared name": (
        {"space": SPACE | {"1 - decay": rj.uniform(0, 1)}}, "would share names",
    ),
    "no trials": ({"n_trials": 0}, "n_trials must be an int of at least 1"),
    "in_flight": ({"in_flight": 0}, "in_flight must be an int"),
    "objective": ({"objective": "accuracy"}, "the objective is 'accuracy'"),
    "objectives": ({"objective": ("loss", "validation")}, "1 directions, and objective names 2"),
    "steps": ({"steps": None}, "a Training needs steps"),
    "function": ({"train": value_of}, "is for a Training"),
    "callbacks": ({"callbacks": print}, "callbacks must be a list of functions"),
    "keep": ({"keep_states": 13}, "more than the 12 points"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_before_anything_is_asked(name):
    options, message = REFUSED[name]
    study = optuna.create_study()
    with pytest.raises(ValueError, match=message):
        search(**{"study": study} | options)
    assert not study.trials


def test_an_objective_of_study_optimize_may_not_search():
    study = optuna.create_study()
    with pytest.raises(RuntimeError, match="inside an objective or a callback"):
        study.optimize(lambda trial: of_values(study), n_trials=1)
    with pytest.raises(ValueError, match=r"search\.optimize was called inside jax\.jit"):
        jax.jit(lambda: of_values(study))()


def test_an_asked_value_that_cannot_be_is_named_and_its_trial_fails():
    study = optuna.create_study(sampler=SAMPLERS["random"]())
    study.enqueue_trial({"rate": 0.25, "wide": True})
    study.enqueue_trial({"rate": 1e300, "wide": True})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna says that it is out of range
        with pytest.raises(ValueError, match="'rate' has 1e\\+300") as caught:
            of_values(study, in_flight=1)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL"]
    assert len(caught.value.result) == 1


def test_more_structures_than_are_looked_at_before():
    def train(hp, key):
        return {"loss": jnp.ones(hp["size"]).sum() + hp["x"]}

    space = {"size": rj.static(rj.integers(1, 500)), "x": rj.uniform(0, 1)}
    study = optuna.create_study(sampler=SAMPLERS["random"]())
    result = rj.search.optimize(train, study, space, n_trials=3, in_flight=2, progress=False)
    for trial, point in zip(study.trials, result.points, strict=True):
        np.testing.assert_allclose(trial.value, point["size"] + np.float32(point["x"]))

    def other(hp, key):
        return {"loss": jnp.ones(hp["size"]) * hp["x"]}

    with pytest.raises(ValueError, match=r"the metrics of \{'size'"):
        rj.search.optimize(other, study, space, n_trials=9, progress=False)
    assert not [t for t in study.trials if t.state == TrialState.RUNNING]


def test_structures_of_other_lengths():
    def train(hp, key):
        return {"loss": jnp.arange(8.0 if hp["long"] else 5.0) * hp["x"]}

    space = {"long": rj.choice([False, True]), "x": rj.uniform(0, 1)}
    for long in ([False], [True], [True, False]):
        study = optuna.create_study(sampler=SAMPLERS["random"]())
        for one in long:
            study.enqueue_trial({"long": one})
        result = rj.search.optimize(
            train, study, space, n_trials=len(long), every=3, progress=False
        )
        points = [result.points[i] for i in range(len(long))]
        theirs = rj.sweep(train, points, every=3, progress=False)
        assert result.steps["loss"].tolist() == theirs.steps["loss"].tolist()
        np.testing.assert_array_equal(result.metrics["loss"], theirs.metrics["loss"])
        assert [t.value for t in study.trials] == theirs.objective.tolist()


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
        metrics["loss"], result.metrics["loss"][(result.point_index == best.place)][1]
    )
    table = result.to_dataframe()
    assert len(table) == 24
    assert set(table["status"]) == set(result.status)
    assert set(result.to_xarray().status.values.ravel()) <= {*result.status, ""}
    assert "stopped" in result._repr_html_()
    rj.plots.curves(result, "validation")


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
    if kind == 2 and made.arguments[0].quantile(0.0) < 1:
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
        with pytest.raises(ValueError, match="which has no like here"):
            rj.search.from_optuna({"n": bad})


def test_choices_that_a_database_cannot_hold_stand_there_under_their_labels(sqlite):
    def train(hp, key):
        width, act = hp["widths"][0], hp["act"]
        return {"loss": act(hp["x"]) * width + (1.0 if hp["flag"] is True else 0.0)}

    space = {
        "x": rj.uniform(0, 1),
        "widths": rj.choice([(1, 2), (3, 4)]),
        "act": rj.choice([jnp.sin, jnp.cos]),
        "flag": rj.static(rj.choice([1, True, "1"])),
    }
    study = optuna.create_study(storage=sqlite(), sampler=SAMPLERS["random"]())
    result = rj.search.optimize(train, study, space, n_trials=16, progress=False)
    for trial, point in zip(study.trials, result.points, strict=True):
        assert trial.params["widths"] == str(point["widths"])
        hp = {"x": jnp.float32(point["x"])}
        np.testing.assert_array_equal(trial.value, train(point | hp, None)["loss"])
    kinds = {type(point["flag"]) for point in result.points}
    assert kinds == {int, bool, str}
    with pytest.raises(ValueError, match="cannot be told apart"):
        axes_of({"x": rj.choice([object.__new__(Same), object.__new__(Same)])})


class Same:
    def __repr__(self):
        return "same"


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
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
    ours = [one.objective[one.status == "finished"] for one in (first, *found)]
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


def test_workers_wait_for_a_server_that_is_started_again(server, study, tmp_path):
    restart(server, study, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("again", range(10))
def test_a_killed_workers_trials_are_found_and_tried_again(server, study, tmp_path, again):
    kill_one(server, study, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("again", range(4))
def test_restarted_again(server, study, tmp_path, again):
    restart(server, study, tmp_path)
