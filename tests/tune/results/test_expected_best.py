"""The best of k points, against every subset of six points; and points that remember how they were
made."""

import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from scipy import stats

import rmsprop_jax as rj
from rmsprop_jax._tune.results.expected_best import expected_best
from tests.support.folders import content, write_content

SPACE = {
    "x": rj.uniform(0.0, 1.0),
    "y": rj.one_minus(rj.log_uniform(1e-3, 0.5)),
    "n": rj.static(rj.integers(1, 3)),
    "z": rj.choice([0.0, 0.9, None, (1, 2)]),
}
NAN = np.nan
TABLES = {
    "distinct": [[3.0, 4.0], [1.0, 1.5], [2.0, 0.5], [9.0, 7.0], [5.0, 4.5], [6.0, 8.0]],
    "ties": [[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [2.0, 2.0], [5.0, 5.0], [5.0, 5.0]],
    "failed": [[1.0, 3.0], [NAN, 2.0], [3.0, 1.0], [2.0, NAN], [NAN, NAN], [0.0, 9.0]],
    "all failed but one": [[NAN, 1.0], [NAN, NAN], [NAN, 0.0], [4.0, 2.0], [1.0, NAN], [NAN, 2.0]],
    "one seed": [[3.0], [1.0], [NAN], [2.0], [2.0], [0.0]],
    "equal": [[1.0, 2.0, 3.0]] * 6,
}


def swept(table, method="random", mode="min", **options):
    """A sweep over a sample whose objectives are this table."""
    table = np.asarray(table, float)
    points = rj.sample({"x": rj.uniform(0.0, 1.0)}, len(table), method=method)
    values = jnp.asarray(np.where(np.isnan(table), np.inf, table), jnp.float32)
    xs = jnp.asarray([point["x"] for point in points], jnp.float32)

    def train(hp, key):
        row, seed = jnp.argmax(xs == hp["x"]), key_data(key)
        return {"loss": values[row, seed]}

    key_data = lambda key: jax.random.key_data(key)[-1]
    return rj.sweep(train, points, seeds=table.shape[1], mode=mode, progress=False, **options)


def enumerated(table, k, mode):
    """The expected best, chance, and held-out values of k points, over all subsets and ties."""
    sign = 1.0 if mode == "min" else -1.0
    failed = np.isnan(table).any(1)
    costs = np.where(failed[:, None], np.inf, sign * table)
    subsets = [list(one) for one in itertools.combinations(range(len(table)), k)]
    best = np.mean([costs[one].mean(1).min() for one in subsets])
    completes = np.mean([not failed[one].all() for one in subsets])
    folds = []
    for seed in range(table.shape[1]) if table.shape[1] > 1 else ():
        others = np.delete(costs, seed, 1).mean(1)
        read = lambda one: np.mean(
            [costs[i, seed] for i in one if others[i] == others[one].min()]  # noqa: B023
        )
        folds.append(np.mean([read(one) for one in subsets]))
    return sign * best, completes, sign * np.array(folds)


SAMPLE = rj.sample({"x": rj.uniform(0.0, 1.0)}, 4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("name", TABLES)
def test_each_number_is_that_of_all_subsets(name, mode):
    table = np.array(TABLES[name])
    found = swept(table, mode=mode).expected_best()
    assert found.budgets.tolist() == [1, 2, 3, 4, 5, 6]
    for i, k in enumerate(range(1, 7)):
        best, completes, folds = enumerated(table, k, mode)
        np.testing.assert_allclose(found.expected[i], best, rtol=1e-12)
        np.testing.assert_allclose(found.completes[i], completes, atol=1e-12)
        if not len(folds):
            assert np.isnan([found.held_out[i], *found.held_out_ci95[i]]).all()
        elif not np.isfinite(folds).all():
            assert found.held_out[i] == (np.inf if mode == "min" else -np.inf)
            assert np.isnan(found.held_out_ci95[i]).all()
        else:
            np.testing.assert_allclose(found.held_out[i], folds.mean(), rtol=1e-12)
            seeds = len(folds)
            scale = folds.std(ddof=1) * np.sqrt(1 / seeds + 1 / (seeds - 1))
            interval = (folds.mean(),) * 2
            if scale > 0:
                interval = stats.t.interval(0.95, seeds - 1, folds.mean(), scale)
            np.testing.assert_allclose(found.held_out_ci95[i], interval, rtol=1e-7)
    failed = np.isnan(table).any(1).sum()
    assert np.isinf(found.expected).tolist() == [k <= failed for k in range(1, 7)]


def test_the_reported_best_is_optimistic_and_the_held_out_one_is_not():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(200, 64, 1))
    tables = true + rng.normal(size=(200, 64, 3))
    points = rj.sample({"x": rj.uniform(0.0, 1.0)}, 64, method="random")
    found = [expected_best(points, table, "min", [64]) for table in tables]
    chosen = tables.mean(2).argmin(1)
    truth = true[np.arange(200), chosen, 0].mean()
    reported = np.mean([one.expected[0] for one in found])
    held_out = np.mean([one.held_out[0] for one in found])
    assert reported < truth - 0.1
    assert truth - 0.02 < held_out < truth + 0.2  # two seeds choose a little worse than three


def test_many_points_and_failures_keep_their_digits():
    count = 4000
    points = rj.sample({"x": rj.uniform(0.0, 1.0)}, count, method="random")
    table = np.arange(count, dtype=float)[:, None]
    found = expected_best(points, table, "min", [1, 2, 1000, 3999, 4000])
    # The expected least of k of the ranks 0 … n − 1.
    wanted = (count + 1) / (found.budgets + 1) - 1
    np.testing.assert_allclose(found.expected, wanted, rtol=1e-9, atol=1e-9)
    table[2000:] = np.nan
    found = expected_best(points, table, "min", None)
    assert len(found.budgets) <= 64
    assert found.budgets[[0, -1]].tolist() == [1, count]
    assert (np.isinf(found.expected) == (found.budgets <= 2000)).all()


@pytest.mark.parametrize("method", ["sobol", "latin_hypercube", "random"])
def test_it_says_what_k_counts(method):
    found = swept(TABLES["distinct"], method).expected_best([2, 3])
    wanted = "k random points" if method == "random" else "k of these 6 points, at random"
    assert found.draws == wanted
    assert found.budgets.tolist() == [2, 3]


def test_points_remember_their_space_through_slices_saving_and_pickling(tmp_path):
    points = rj.sample(SPACE, 8, method="sobol")[:7]
    assert points.method == "sobol"
    assert points.space == SPACE
    train_all = lambda hp, key: {"loss": hp["x"] * hp["y"] * hp["n"] + (hp["z"] is None)}
    result = rj.sweep(train_all, points, path=tmp_path / "run", progress=False)
    result.save(tmp_path / "saved")
    others = [
        rj.SweepResult.load(tmp_path / "run"),
        rj.SweepResult.load(tmp_path / "saved"),
        pickle.loads(pickle.dumps(result)),
        rj.sweep(train_all, points, path=tmp_path / "run", progress=False),
    ]
    for other in others:
        assert other.points.method == "sobol"
        assert other.points.space == SPACE
        np.testing.assert_array_equal(
            other.expected_best().expected, result.expected_best().expected
        )


def test_a_folder_from_before_points_were_remembered_loads_and_resumes(tmp_path):
    points = rj.sample(SPACE, 4)
    train = lambda hp, key: {"loss": hp["x"] * hp["y"] * hp["n"] + (hp["z"] is None)}
    result = rj.sweep(train, points, path=tmp_path, progress=False)
    manifest = tmp_path / "manifest.json"
    old = content(manifest)
    del old["drawn"]
    write_content(manifest, old)
    loaded = rj.SweepResult.load(tmp_path)
    assert (loaded.points.method, loaded.points.space) == ("list", None)
    again = rj.sweep(train, points, path=tmp_path, progress=False)
    np.testing.assert_array_equal(again.objective, result.objective)
    assert again.points.space == SPACE


WRONG = {
    "method": {"method": "dice", "space": None},
    "no space": {"method": "random"},
    "kind": {"method": "random", "space": {"x": {"kind": "Distribution", "is_static": False}}},
    "bounds": {
        "method": "random",
        "space": {"x": {"kind": "Uniform", "low": 1, "high": 0, "last": 1, "is_static": False}},
    },
    "a list": [],
}


@pytest.mark.parametrize("case", WRONG)
def test_a_manifest_with_another_space_is_one_error(case, tmp_path):
    rj.sweep(lambda hp, key: {"loss": hp["x"]}, SAMPLE, path=tmp_path, progress=False)
    manifest = tmp_path / "manifest.json"
    write_content(manifest, content(manifest) | {"drawn": WRONG[case]})
    with pytest.raises(ValueError, match=r"manifest\.json must .*damaged"):
        rj.SweepResult.load(tmp_path)


def test_a_space_that_a_folder_cannot_hold_leaves_the_method(tmp_path):
    points = rj.sample({"x": rj.uniform(0.0, 1.0), "f": rj.choice(["a", len])}, 64, method="random")
    points = rj.Points([p for p in points if p["f"] == "a"][:4]).drawn("random", points.space)
    rj.sweep(
        lambda hp, key: {"loss": hp["x"] * len(hp["f"])}, points, path=tmp_path, progress=False
    )
    loaded = rj.SweepResult.load(tmp_path)
    assert loaded.points.space is None
    assert len(loaded.expected_best().budgets) == 4


NOT_SAMPLES = {
    "list": rj.Points([{"x": 1.0}]),
    "grid": rj.grid(x=[1.0, 2.0]),
    "a + b": SAMPLE + SAMPLE[:1],
    "a * b": SAMPLE * rj.grid(y=[1.0]),
    "filter": SAMPLE.filter(lambda point: point["x"] < 0.5),
    "listed again": rj.Points(list(SAMPLE)),
}


@pytest.mark.parametrize("name", NOT_SAMPLES)
def test_other_points_are_refused_with_the_reason(name):
    points = NOT_SAMPLES[name]
    train = lambda hp, key: {"loss": hp["x"] + hp.get("y", 0.0)}
    with pytest.raises(ValueError, match=r"result must be a sweep over a sample.*rj\.sample"):
        rj.sweep(train, points, progress=False).expected_best()
    assert points.space is None


def test_a_search_a_scheduler_a_population_and_unfinished_trials_are_refused(tmp_path):
    train = lambda hp, key: {"loss": hp["x"]}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = rj.search.optimize(train, study, SAMPLE.space, n_trials=2, progress=False)
    with pytest.raises(ValueError, match="proposed by a study's sampler"):
        found.expected_best()
    step = lambda hp, state, key: (state * hp["x"], {"loss": state})
    training = rj.Training(lambda hp, key: jnp.float32(1.0), step)
    halving = rj.SuccessiveHalving(2, 2)
    options = {"steps": 4, "evaluate_every": 2, "progress": False}
    with pytest.raises(ValueError, match="without a scheduler"):
        rj.sweep(training, SAMPLE, scheduler=halving, **options).expected_best()
    population = rj.PopulationBasedTraining(SAMPLE.space, perturbation_interval=2)
    changed = rj.sweep(training, SAMPLE, scheduler=population, **options)
    with pytest.raises(ValueError, match="expected_best must get"):
        changed.expected_best()

    def stop(report):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError) as caught:
        rj.sweep(train, SAMPLE, callback=stop, progress=False)
    with pytest.raises(ValueError, match="result must be complete"):
        caught.value.result.expected_best()


@pytest.mark.parametrize("budgets", [[0], [7], [], [1.5], [True], [1, 2, 30]])
def test_budgets_out_of_range_are_refused(budgets):
    with pytest.raises(ValueError, match=r"budgets must be whole numbers between 1 and 6.*Pass"):
        swept(TABLES["distinct"]).expected_best(budgets)
