"""A result as a study: for Optuna's pictures, and for a search that continues from it."""

import json
import pickle
import sys
import threading
import urllib.request
import warnings
from wsgiref.simple_server import make_server

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

import rmsprop_jax as rj

SPACE = {
    "rate": rj.log_uniform(1e-3, 1.0),
    "decay": rj.one_minus(rj.log_uniform(1e-3, 0.5)),
    "size": rj.choice([(1, 2), (3, 4)]),
    "count": rj.static(rj.integers(1, 3)),
    "flag": rj.choice([False, True]),
}


def train(hp, key):
    loss = (jnp.log10(hp["rate"]) + 1) ** 2 + hp["decay"] + sum(hp["size"]) * hp["count"]
    return {"loss": loss + hp["flag"] + 0.1 * jax.random.normal(key)}


def step(hp, state, key):
    return state * hp["x"], {"loss": state, "twice": 2 * state}


TRAINING = rj.Training(lambda hp, key: jnp.float32(1.0), step)
POINTS = rj.grid(x=[0.5, 0.9, 1.1, 2.0])
OPTIONS = {"steps": 8, "evaluate_every": 2, "progress": False}


@pytest.mark.slow
def test_a_sample_gives_the_study_that_its_space_gives():
    result = rj.sweep(train, rj.sample(SPACE, 8), seeds=2, progress=False)
    study = result.to_study()
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    distributions = rj.search.to_optuna(SPACE)
    for point, trial, mean in zip(result.points, study.trials, result.means(), strict=True):
        assert trial.state == TrialState.COMPLETE
        assert trial.value == mean
        assert trial.params == rj.search.to_params(point, SPACE)
        assert trial.distributions == distributions
        assert trial.user_attrs["seeds"] == [0, 1]
        assert trial.user_attrs["std"] > 0
        again = rj.search.to_point(trial.params, SPACE)
        assert again.pop("decay") == pytest.approx(point.pop("decay"))
        assert again == point
    assert study.best_value == result.best().objective
    given = result.to_study(SPACE | {"rate": rj.log_uniform(1e-4, 10.0)})
    low = given.trials[0].distributions["rate"].low
    assert low == pytest.approx(1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["TPESampler", "GPSampler"])
def test_a_search_continues_as_after_optunas_own_trials(sampler):
    if sampler == "GPSampler":
        pytest.importorskip("torch")
    space = {"rate": SPACE["rate"], "decay": SPACE["decay"]}
    loss = lambda hp, key: {"loss": (jnp.log10(hp["rate"]) + 1) ** 2 + hp["decay"]}
    result = rj.sweep(loss, rj.sample(space, 16), progress=False)
    own, distributions = optuna.create_study(), rj.search.to_optuna(space)
    for point, value in zip(result.points, result.objective, strict=True):
        own.enqueue_trial(rj.search.to_params(point, space))
        own.tell(own.ask(distributions), value)
    studies = [result.to_study(), own, optuna.create_study()]
    for study in studies:
        study.sampler = getattr(optuna.samplers, sampler)(seed=0)
    ours, theirs, fresh = (study.ask(distributions).params for study in studies)
    assert ours == pytest.approx(theirs)
    assert ours != pytest.approx(fresh)
    found = rj.search.optimize(loss, studies[0], space, n_trials=4, progress=False)
    assert len(studies[0].trials) == 21
    assert len(found) == 4


@pytest.mark.parametrize("objective", ["loss", lambda m: m["loss"][-1] + m["twice"].sum()])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_pruned_points_keep_their_reports(objective, mode):
    halving = rj.SuccessiveHalving(2, 2)
    result = rj.sweep(
        TRAINING, POINTS, seeds=3, objective=objective, mode=mode, scheduler=halving, **OPTIONS
    )
    study = result.to_study()
    assert study.direction.name.lower().startswith(mode)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    for i, (point, trial) in enumerate(zip(result.points, study.trials, strict=True)):
        ended = result.steps_completed[3 * i]
        assert (trial.state == TrialState.PRUNED) == (ended < 8)
        assert list(trial.intermediate_values) == list(range(2, ended + 1, 2))
        losses = np.cumprod(np.full(8, np.float32(point["x"]), np.float32), dtype=np.float32)
        losses = np.append(np.float32(1), losses)[:8]
        for at, value in trial.intermediate_values.items():
            wanted = losses[at - 1]
            if objective != "loss":
                wanted = losses[at - 1] + 2 * losses[:at].sum()
            assert value == pytest.approx(wanted, rel=1e-5)
        if trial.state == TrialState.COMPLETE:
            assert trial.value == result.means()[i]
    copied = pickle.loads(pickle.dumps(result.rescored("loss"))).to_study()
    assert copied.trials[0].intermediate_values


def test_steps_that_were_not_recorded_are_not_reported(tmp_path):
    result = rj.sweep(TRAINING, POINTS, record_every=4, path=tmp_path, **OPTIONS)
    for one in (result, rj.SweepResult.load(tmp_path)):
        assert [list(t.intermediate_values) for t in one.to_study().trials] == [[4, 8]] * 4


def test_a_failed_seed_fails_the_trial_and_is_named():
    def fails(hp, key):
        seed = jax.random.key_data(key)[-1]
        return {"loss": jnp.where((seed == 5) & (hp["x"] > 1), jnp.nan, hp["x"] + seed)}

    result = rj.sweep(fails, POINTS, seeds=[7, 5], progress=False)
    trials = result.to_study().trials
    states = [TrialState.COMPLETE] * 2 + [TrialState.FAIL] * 2
    assert [trial.state for trial in trials] == states
    assert [trial.user_attrs.get("failed_seeds") for trial in trials] == [None, None, [5], [5]]
    assert trials[3].value is None
    assert trials[0].value == 6.5
    assert trials[0].user_attrs["std"] == pytest.approx(2**0.5)


def test_unfinished_points_are_left_out():
    def stop(report):
        if report[0].number == 2:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError) as caught:
        rj.sweep(
            lambda hp, key: {"loss": hp["x"] + jax.random.normal(key)}, POINTS, seeds=2,
            callback=stop, devices=jax.devices()[:1], batch_size=1, progress=False,
        )  # fmt: skip
    study = caught.value.result.to_study()
    assert [trial.params["x"] for trial in study.trials] == [0.5]


def test_without_a_space_values_have_their_range():
    points = rj.Points(
        [
            {"a": 1e-4, "b": 0.5, "n": 3, "m": 1, "s": "x", "t": (1, 2), "k": 4, "z": None},
            {"a": 1e-1, "b": 0.9, "n": 5, "m": 200, "s": "y", "t": (1, 3), "k": 8, "z": 1.5},
        ],
        static=["k"],
    )
    read = lambda hp: hp["a"] + hp["b"] + hp["n"] + hp["m"] + len(hp["s"]) + hp["k"]
    both = lambda hp, key: {"loss": read(hp) + sum(hp["t"]) + (hp["z"] is None)}
    study = rj.sweep(both, points + points[:1], progress=False).to_study()
    assert study.trials[0].distributions == {
        "a": FloatDistribution(1e-4, 1e-1, log=True),
        "b": FloatDistribution(0.5, 0.9),
        "n": IntDistribution(3, 5),
        "m": IntDistribution(1, 200, log=True),
        "s": CategoricalDistribution(("x", "y")),
        "t": CategoricalDistribution(("(1, 2)", "(1, 3)")),
        "k": CategoricalDistribution((4, 8)),
        "z": CategoricalDistribution((None, 1.5)),
    }
    assert study.trials[1].params["n"] == 5
    assert type(study.trials[1].params["n"]) is int
    assert study.trials[1].params["t"] == "(1, 3)"


@pytest.mark.slow
@pytest.mark.parametrize("low", [10.0**-i for i in range(1, 16)])
def test_the_ends_of_a_space_lie_in_it(low):
    space = {"decay": rj.one_minus(rj.log_uniform(low, 0.5))}
    points = rj.Points([{"decay": 1 - low}, {"decay": 0.5000001}])
    study = rj.sweep(lambda hp, key: {"loss": hp["decay"]}, points, progress=False).to_study(space)
    assert study.trials[0].params == {"1 - decay": low}


def test_points_with_other_names_have_the_parameters_that_they_have():
    points = rj.grid(x=[1.0, 2.0]) + rj.grid(x=[3.0], momentum=[0.9])
    read = lambda hp, key: {"loss": hp["x"] + hp.get("momentum", 0.0)}
    trials = rj.sweep(read, points, progress=False).to_study().trials
    assert [sorted(trial.params) for trial in trials] == [["x"], ["x"], ["momentum", "x"]]


def simple(mode="min"):
    return rj.sweep(
        lambda hp, key: {"loss": hp["rate"]}, rj.grid(rate=[0.01, 0.1]), mode=mode, progress=False
    )


def two_directions():
    study = optuna.create_study(directions=["minimize", "minimize"])
    both = lambda hp, key: {"loss": hp["rate"], "size": 1.0 / hp["rate"]}
    return rj.search.optimize(
        both, study, {"rate": SPACE["rate"]}, n_trials=2, objective=("loss", "size"), progress=False
    )


def population():
    space = {"x": rj.uniform(0.1, 2.0)}
    scheduler = rj.PopulationBasedTraining(space, perturbation_interval=2)
    return rj.sweep(TRAINING, POINTS, scheduler=scheduler, **OPTIONS)


REFUSED = {
    "outside": (
        lambda: simple().to_study({"rate": rj.uniform(0.05, 1.0)}),
        r"0\.01.*'rate' is not",
    ),
    "no choice": (
        lambda: simple().to_study({"rate": rj.choice([0.01, 0.2])}),
        "one of the choices",
    ),
    "another name": (
        lambda: simple().to_study({"r": rj.uniform(0.0, 1.0)}),
        "'rate' must be a hyp",
    ),
    "no space": (lambda: simple().to_study({"rate": 3}), "'rate' must be a distribution"),
    "direction": (lambda: simple("max").to_study(study=optuna.create_study()), 'mode="max"'),
    "directions": (
        lambda: simple().to_study(study=optuna.create_study(directions=["minimize"] * 2)),
        "study must have the direction",
    ),
    "no study": (lambda: simple().to_study(study=3), "study must be an Optuna study"),
    "both": (
        lambda: simple().to_study(study=optuna.create_study(), storage="sqlite:///no.db"),
        "storage must be left out",
    ),
    "several objectives": (lambda: two_directions().to_study(), "result must have one objective"),
    "population": (lambda: population().to_study(), "to_study must get"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()
    assert not list(tmp_path.iterdir())


def test_another_distribution_than_the_studys_is_refused_and_adds_nothing():
    study = simple().to_study()
    with pytest.raises(ValueError, match="space must have the study's distribution of 'rate'"):
        simple().to_study({"rate": rj.choice([0.01, 0.1])}, study=study)
    assert len(study.trials) == 2


@pytest.mark.slow
def test_optunas_pictures_show_a_result(sqlite):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from optuna.visualization import matplotlib as pictures

    points = rj.sample({"x": rj.uniform(0.1, 1.5), "flag": rj.choice([False, True])}, 16)
    use = lambda hp, state, key: (state * hp["x"] + hp["flag"], {"loss": state})
    training = rj.Training(lambda hp, key: jnp.float32(1.0), use)
    result = rj.sweep(training, points, **OPTIONS)
    result.to_study(storage=sqlite())
    study = optuna.load_study(study_name=None, storage=sqlite())  # the only study of the file
    assert [t.value for t in study.trials] == result.means().tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these pictures are called experimental
        for draw in (
            pictures.plot_optimization_history,
            pictures.plot_intermediate_values,
            pictures.plot_parallel_coordinate,
            pictures.plot_slice,
            pictures.plot_param_importances,
            pictures.plot_contour,
            pictures.plot_edf,
        ):
            axes = np.ravel(draw(study))[0]
            assert axes.figure
        lines = pictures.plot_intermediate_values(study).lines
    assert len(lines) == 16
    matplotlib.pyplot.close("all")


def test_without_optuna_the_extra_is_named(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("rmsprop_jax._tune.search.result_study")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"Optuna must be installed.*rmsprop_jax\[search\]"):
        simple().to_study()


@pytest.mark.slow
def test_optunas_dashboard_shows_a_result(sqlite):
    dashboard = pytest.importorskip("optuna_dashboard")
    storage = sqlite()
    halving = rj.SuccessiveHalving(2, 2)
    result = rj.sweep(TRAINING, POINTS, scheduler=halving, **OPTIONS)
    study = result.to_study(storage=storage)
    with make_server("127.0.0.1", 0, dashboard.wsgi(storage)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        read = lambda path: urllib.request.urlopen(
            f"http://127.0.0.1:{server.server_port}{path}", timeout=60
        ).read()
        assert b"<html" in read("/dashboard").lower()
        shown = json.loads(read(f"/api/studies/{study._study_id}?after=0"))
        server.shutdown()
        thread.join()
    states = {"complete": "Complete", "pruned": "Pruned"}
    assert [one["state"] for one in shown["trials"]] == [states[x] for x in result.status.tolist()]
    assert [len(one["intermediate_values"]) for one in shown["trials"]] == [
        t // 2 for t in result.steps_completed.tolist()
    ]
    assert [float(one["params"][0]["param_external_value"]) for one in shown["trials"]] == [
        point["x"] for point in POINTS
    ]
