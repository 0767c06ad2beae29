"""What a result says: which point, how sure, what matters."""

import copy
import gc
import html.parser
import itertools
import math
import pickle
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import xarray
from matplotlib import pyplot as plt

import rmsprop_jax as rj
from rmsprop_jax._tune.results.statistics import levels
from rmsprop_jax._tune.training import fingerprint
from tests.support.tables import crossed, few
from tests.support.trainings import stop_at

POINTS = rj.grid(x=[1.0, 2.0, 3.0], kind=["a", "b"], same=[5])
SEEDS = [0, 1, 2, 3, 4]
ONE_DEVICE = {"devices": jax.devices()[:1], "batch_size": 1}


def train(hp, key):
    """Noise of its own for each seed, shared by all points; x = 3 fails for seed 1."""
    noise = jax.random.normal(key)
    loss = (hp["x"] - 1.9) ** 2 + noise + (0.1 if hp["kind"] == "b" else 0.0) * hp["same"]
    fails = (hp["x"] == 3) & (jax.random.key_data(key)[1] == 1)
    loss = jnp.where(fails, jnp.nan, loss)
    return {"loss": loss * jnp.ones(4), "short": loss * jnp.ones(2), "n": jnp.int32(hp["x"])}


def sweep(points=POINTS, seeds=SEEDS, f=train, **options):
    return rj.sweep(f, points, seeds=seeds, progress=False, **options)


@pytest.fixture(scope="module")
def result():
    return sweep()


def objectives(result, **point):
    i = [all(p[k] == v for k, v in point.items()) for p in result.points].index(True)
    return result.by_point()[i]


@pytest.mark.slow
def test_top_ranks_by_the_mean_and_points_with_a_failed_seed_last(result):
    top = result.top()
    assert [(r.point["x"], r.point["kind"]) for r in top] == [
        (2.0, "a"), (2.0, "b"), (1.0, "a"), (1.0, "b"), (3.0, "a"), (3.0, "b")
    ]  # fmt: skip
    assert [r.point for r in result.top(2)] == [r.point for r in top[:2]]
    assert result.best().point == top[0].point
    assert sweep(mode="max").best().point == {"x": 1.0, "kind": "b", "same": 5}


def test_the_interval_is_students(result):
    values = objectives(result, x=2.0, kind="a")
    record = result.best()
    expected = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    np.testing.assert_allclose(record.ci95, expected, rtol=1e-12)
    np.testing.assert_allclose(record.objective, values.mean())
    np.testing.assert_allclose(record.std, values.std(ddof=1))
    failing = result.top()[4]
    four = np.delete(objectives(result, x=3.0, kind="a"), 1)
    expected = scipy.stats.ttest_1samp(four, 0.0).confidence_interval(0.95)
    np.testing.assert_allclose(failing.ci95, expected, rtol=1e-12)


@pytest.mark.parametrize("nearly", [0.0, 1e-16])
def test_seeds_that_are_equal_or_nearly_have_an_interval_of_no_width(nearly):
    """And are compared without a warning, which SciPy's test gives of a loss of precision."""
    values = iter(np.repeat([2.0, 3.0], 4) + nearly * np.tile([0, 1, 4, 8], 2))
    found = sweep(
        rj.grid(x=[1.0, 2.0]), seeds=4, f=lambda hp, key: {"a": hp["x"] * jax.random.normal(key)},
        objective=lambda metrics: 0.0 if not metrics["a"] else next(values), **ONE_DEVICE,
    )  # fmt: skip
    best, other = found.top()
    assert best.ci95 == pytest.approx((2.0, 2.0), rel=1e-12)
    assert (best.std == 0) == (nearly == 0)
    lead = found.compare(best, other)
    assert (lead.difference, *lead.ci95) == pytest.approx((-1.0,) * 3, rel=1e-12)
    assert lead.p_value == pytest.approx(0.0, abs=1e-12)
    assert found.compare(best, best).p_value == 1.0


def test_one_seed_has_no_interval():
    record = sweep(seeds=1).best()
    assert math.isnan(record.std)
    assert all(map(math.isnan, record.ci95))


def test_a_comparison_is_the_paired_t_test():
    def noisy(hp, key):
        own = jax.random.normal(jax.random.fold_in(key, hp["n"]))
        return {"loss": jax.random.normal(key) * 10 + own + hp["n"]}

    result = sweep(rj.grid(n=[0, 1]), f=noisy, seeds=8)
    table = result.by_point()
    found = result.compare({"n": 1}, result.best())
    expected = scipy.stats.ttest_rel(table[1], table[0])
    np.testing.assert_allclose(found.difference, (table[1] - table[0]).mean())
    np.testing.assert_allclose(found.ci95, expected.confidence_interval(0.95))
    np.testing.assert_allclose(found.p_value, expected.pvalue)
    assert found.seeds == 8
    assert result.compare({"n": 0}, {"n": 1}).difference == pytest.approx(-found.difference)


def test_a_comparison_takes_the_seeds_that_both_have(result):
    one, other = {"x": 3.0, "kind": "a", "same": 5}, {"x": 2.0, "kind": "a", "same": 5}
    found = result.compare(one, other)
    assert found.seeds == 4
    assert found.difference == pytest.approx(1.1**2 - 0.1**2, rel=1e-5)
    assert result.compare(other, other)[:3:2] == (0.0, 1.0)
    with pytest.raises(ValueError, match="points of this sweep"):
        result.compare(other, {"x": 9.0})
    with pytest.raises(ValueError, match="a and b must have a seed"):
        sweep(seeds=[1]).compare(one, other)
    assert math.isnan(sweep(seeds=[0]).compare(one, other).p_value)


def test_sensitivity_is_the_range_over_a_value_at_its_best(result):
    found = result.sensitivity()
    assert list(found) == ["x", "kind"]  # `same` has one value
    noise = objectives(result, x=2.0, kind="a").mean() - 0.1**2
    best_of_3 = np.nanmean(objectives(result, x=3.0, kind="a"))
    assert found["x"] == pytest.approx(max(best_of_3 - noise, 0.9**2) - 0.1**2, rel=1e-4)
    assert found["kind"] == pytest.approx(0.5, rel=1e-4)


def test_levels_are_values_in_order_and_eighths_of_many():
    mixed = rj.Points([{"m": m} for m in (0.9, None, 0.1, "b", 0.9, None, (1,))], ["m"])
    found = levels(mixed, "m")
    assert [level.label for level in found] == ["0.1", "0.9", "None", "b", "(1,)"]
    assert [level.points.tolist() for level in found] == [[2], [0, 4], [1, 5], [3], [6]]
    many = rj.sample({"x": rj.uniform(0, 1)}, 100)
    found = levels(many, "x")
    assert len(found) == 8
    assert sorted(np.concatenate([level.points for level in found])) == list(range(100))
    assert all(a.values[-1] < b.values[0] for a, b in itertools.pairwise(found))
    assert all(" … " in level.label for level in found)
    near_1 = rj.sample({"x": rj.one_minus(rj.log_uniform(1e-3, 0.5))}, 100)
    labels = [level.label for level in levels(near_1, "x")]
    assert labels[0].startswith("0.5")
    assert labels[-1].endswith("0.999")
    assert len(set(labels)) == 8
    with pytest.raises(ValueError, match="'y'"):
        levels(many, "y")


RESULT_COLUMNS = ["objective", "failed", "status", "steps_completed"]


def test_a_dataframe_has_its_columns_in_order(result):
    table = result.to_dataframe()
    columns = ["x", "kind", "same", "seed", "loss", "n", "short", *RESULT_COLUMNS]
    assert list(table) == columns
    np.testing.assert_array_equal(table["failed"], table["status"] == "failed")
    assert set(table["steps_completed"]) == {1}


@pytest.mark.parametrize("name", ["seed", *RESULT_COLUMNS])
@pytest.mark.parametrize("kind", ["function", "training"])
def test_the_names_of_the_columns_are_refused(kind, name):
    """As that of a hyperparameter, and as that of a metric."""
    with pytest.raises(ValueError, match=rf"hyperparameter.*'{name}'.*Rename"):
        rj.grid(**{name: [1.0]})
    returned = lambda hp: {"loss": hp["x"], name: hp["x"]}
    train, options = lambda hp, key: returned(hp), {}
    if kind == "training":
        train = rj.Training(lambda hp, key: 0, lambda hp, t, key: (t, returned(hp)))
        options = {"steps": 2}
    with pytest.raises(ValueError, match=rf"names.*'{name}'.*Rename"):
        rj.sweep(train, rj.grid(x=[1.0]), progress=False, **options)


def test_xarray_has_every_number_under_its_hyperparameters(result):
    data = result.to_xarray()
    assert data.sizes == {"trial": 6, "seed": 5, "step_loss": 4, "step_short": 2}
    assert data.x.values.tolist() == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    chosen = data.where((data.x == 2.0) & (data.kind == "b"), drop=True)
    expected = objectives(result, x=2.0, kind="b")
    np.testing.assert_array_equal(chosen.objective.values[0], expected)
    np.testing.assert_array_equal(chosen.loss.sel(seed=3, step_loss=4).values, expected[3:4])
    assert data.n.dtype == np.int32
    assert data.failed.values.sum() == 2
    assert set(data.status.values.ravel()) == {"complete", "failed"}
    assert (data.steps_completed.values == 1).all()
    assert set(data) == {"loss", "short", "n", *RESULT_COLUMNS}
    assert data.attrs == {"objective_mode": "min", "objective": "loss"}


def test_xarray_of_an_unfinished_sweep_has_nan_where_nothing_is():
    one_length = lambda hp, key: (
        {name: x for name, x in train(hp, key).items() if name != "short"}
        | {"half": jnp.bfloat16(hp["x"])}
    )
    stop_at_kind_b = lambda metrics: (
        calls.append(1) or (metrics["loss"][-1] if len(calls) < 3 else interrupt())
    )
    calls = []

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(rj.SweepInterrupted) as caught:
        sweep(f=one_length, objective=stop_at_kind_b, devices=jax.devices()[:1], record_every=3)
    result = caught.value.result
    data = result.to_xarray()
    assert data.step.values.tolist() == [3, 4]
    begun = data.steps_completed.values > 0
    assert begun.sum() == (result.steps_completed > 0).sum() < len(result) == 30
    assert begun[0, 0]
    assert (data.status.values[-1] == "unfinished").all()
    assert np.isnan(data.n.values[-1]).all()
    assert data.half.values[0, 0] == 1.0


def test_the_notebook_shows_the_best_points(result):
    class Cells(html.parser.HTMLParser):
        found = []  # noqa: RUF012

        def handle_data(self, data):
            self.found.append(data)

    points = rj.Points([{"x": 1.0, "kind": "<b>", "same": 5}], [])
    Cells().feed(sweep(points)._repr_html_())
    assert "<b>" in Cells.found  # as text, not as a tag
    text = result._repr_html_()
    assert text.count("<tr>") == 6
    low, high = result.best().ci95
    assert f"<td>{result.best().objective:.4g}</td><td>{low:.4g} … {high:.4g}</td>" in text
    nan = lambda hp, key: {"loss": hp["x"] * jnp.nan * hp["same"], "k": hp["kind"] == "a"}
    none = sweep(f=nan, seeds=1)
    assert none._repr_html_().count("<tr>") == 1


# Trained again, copied, under other names.


def structured(hp, key, data):
    """A bool axis, NumPy data indexed in a scan: what retraining by hand trips over."""
    solver = rj.rmsprop(hp["rate"], centered=hp["centered"], momentum=hp["momentum"])
    params = jax.random.normal(key, (3,))

    def step(carry, i):
        params, state = carry
        loss, grads = jax.value_and_grad(lambda p: jnp.sum((p - data[i]) ** 2))(params)
        updates, state = solver.update(grads, state)
        return (params + updates, state), loss

    carry = params, solver.init(params)
    return {"loss": jax.lax.scan(step, carry, jnp.arange(20))[1], "end": params[0]}


DATA = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
STRUCTURED = rj.grid(rate=[0.01, 0.1], centered=[False, True], momentum=[None, 0.9])


def test_a_point_is_trained_again_bit_for_bit():
    found = rj.sweep(structured, STRUCTURED, seeds=[3, 5], args=(DATA,), progress=False)
    for record in found.top(8):
        i = found.points.index_of(record.point)
        for seed in (3, 5):
            (trial,) = np.flatnonzero((found.point_index == i) & (found.seed_index == seed // 5))
            again = found.retrain(record, seed=seed, args=(DATA,))
            assert set(again) == {"loss", "end"}
            for name, x in again.items():
                np.testing.assert_array_equal(x, found.metrics[name][trial])
    assert not np.array_equal(
        found.retrain(found.best(), seed=7, args=(DATA,))["loss"], again["loss"]
    )
    by_point = found.retrain(STRUCTURED[0], args=(DATA,))
    np.testing.assert_array_equal(by_point["loss"], found.metrics["loss"][0])
    with pytest.raises(ValueError, match=r"with 0 args.*train\(hp, key, data\)"):
        found.retrain(found.best())
    with pytest.raises(ValueError, match="points of this sweep"):
        found.retrain({"rate": 9.0}, args=(DATA,))


@pytest.mark.slow
def test_training_again_gives_all_steps_where_few_were_kept():
    found = rj.sweep(structured, STRUCTURED, args=(DATA,), record_every=7, progress=False)
    again = found.retrain(found.points[0], args=(DATA,))["loss"]
    assert found.steps["loss"].tolist() == [7, 14, 20]
    np.testing.assert_array_equal(again[found.steps["loss"] - 1], found.metrics["loss"][0])


@pytest.mark.slow
def test_a_result_is_pickled_and_copied_and_lets_its_args_go(tmp_path):
    data = jnp.asarray(DATA)
    gone = weakref.ref(data)
    found = rj.sweep(structured, STRUCTURED, args=(data,), progress=False)
    del data
    gc.collect()
    assert gone() is None
    for other in (
        pickle.loads(pickle.dumps(found)),
        copy.deepcopy(found),
        copy.copy(found),
        pickle.loads(pickle.dumps(copy.deepcopy(found))),
    ):
        np.testing.assert_array_equal(other.metrics["loss"], found.metrics["loss"])
        assert other.best().point == found.best().point
        assert other.points == found.points
    copied = copy.deepcopy(found)
    copied.metrics["loss"][:] = 0
    assert found.metrics["loss"].any()
    assert copied.retrain(found.best(), args=(DATA,))["loss"].any()
    with pytest.raises(ValueError, match=r"train.*Call sweep"):
        pickle.loads(pickle.dumps(found)).retrain(found.best(), args=(DATA,))
    pickle.loads(pickle.dumps(found)).save(tmp_path / "f")
    again = rj.sweep(structured, STRUCTURED, args=(DATA,), path=tmp_path / "f", progress=False)
    assert len(list((tmp_path / "f").glob("round-*"))) == 1  # nothing ran
    np.testing.assert_array_equal(again.metrics["loss"], found.metrics["loss"])


def test_large_args_are_hashed_only_where_a_folder_asks(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "MOST_BYTES", 100)
    train = lambda hp, key, data: {"loss": hp["x"] * data.mean()}
    run = lambda **options: rj.sweep(
        train, rj.grid(x=[1.0]), args=(jnp.ones(1000),), progress=False, **options
    )
    run(path=tmp_path / "swept")
    run(path=tmp_path / "swept")
    run().save(tmp_path / "saved")
    assert rj.SweepResult.load(tmp_path / "saved").objective == 1.0
    with pytest.raises(ValueError, match=r"args that were too large to hash.*another path"):
        run(path=tmp_path / "saved")


def test_a_record_prints_what_a_person_wants(result):
    text = repr(result.best())
    assert text.startswith("PointResult({'x': 2.0, 'kind': 'a', 'same': 5}, objective ")
    assert "95%" in text
    assert text.endswith("5 seeds)")
    assert "key" not in text
    assert "one seed" not in repr(sweep(seeds=1).best())


def test_a_function_without_a_name_is_called_the_objective():
    assert sweep(objective=lambda m: m["loss"][-1]).objective_name == "objective"

    def late(m):
        return m["loss"][-1]

    assert sweep(objective=late).objective_name == "late"


NAMES = ["trial", "step", "step_loss", "step_short", "trial_", "mode", "name", "loss_"]


@pytest.mark.slow
@pytest.mark.parametrize(("where", "name"), crossed(["axis", "metric"], NAMES))
def test_names_like_ours_replace_nothing(name, where, tmp_path):
    f = lambda hp, key: {
        "loss": hp["x"] * jnp.ones(3),
        "short": hp["x"] * jnp.ones(2),
        **({name: hp["x"] + 1} if where == "metric" else {"other": hp[name]}),
    }
    points = rj.grid(x=[1.0, 2.0], **({name: [7.0]} if where == "axis" else {}))
    found = rj.sweep(f, points, progress=False)
    data = found.to_xarray()
    assert data.objective.values[:, 0].tolist() == [1.0, 2.0]
    assert data[name].values.reshape(-1).tolist() == ([7.0] * 2 if where == "axis" else [2.0, 3.0])
    assert len(data.loss.dims) == 3
    data.to_netcdf(tmp_path / "data.nc")
    assert len(found.to_dataframe()) == 2


@pytest.mark.slow
def test_a_dataset_is_written_and_read(tmp_path):
    """Axes of text, bools, None among numbers, and objects."""
    points = rj.grid(
        kind=["a", "bb"], flag=[False, True], momentum=[None, 0.9], n=rj.static([(1, 2), {"a": 1}])
    )

    def train(hp, key):
        momentum = 0 if hp["momentum"] is None else hp["momentum"]
        loss = len(hp["kind"]) + 2 * hp["flag"] + momentum + len(hp["n"])
        return {"loss": loss * jnp.ones(4), "ok": jnp.bool_(True), "half": jnp.bfloat16(1)}

    data = rj.sweep(train, points, progress=False).to_xarray()
    data.to_netcdf(tmp_path / "data.nc")
    with xarray.open_dataset(tmp_path / "data.nc") as read:
        read.load()
    xarray.testing.assert_allclose(read.loss, data.loss)
    assert read.kind.values.tolist() == data.kind.values.tolist()
    assert read.flag.values.tolist() == data.flag.values.tolist()
    assert np.isnan(read.momentum.values).sum() == 8
    assert set(read.n.values.tolist()) == {"(1, 2)", "{'a': 1}"}
    assert read.attrs["objective_mode"] == "min"


# Static groups that train for different numbers of steps.


def uneven(hp, key):
    return {
        "loss": (10 * hp["x"] + jnp.arange(hp["n"], dtype=float)),
        "vector": jnp.arange(4.0),
        "last": jnp.int32(hp["n"]),
    }


UNEVEN = rj.grid(n=rj.static([3, 6]), x=[1.0, 2.0])


@pytest.mark.slow
@pytest.mark.parametrize("every", few([1, 2, 4], [4]))
def test_shorter_trainings_are_followed_by_nan(every, tmp_path):
    for path in (None, tmp_path):
        found = rj.sweep(uneven, UNEVEN, record_every=every, path=path, progress=False)
        at = {1: [1, 2, 3, 4, 5, 6], 2: [2, 3, 4, 6], 4: [3, 4, 6]}[every]
        assert found.steps["loss"].tolist() == at
        for trial, point in enumerate(found.points):
            own = [10 * point["x"] + t - 1 if t <= point["n"] else np.nan for t in at]
            np.testing.assert_array_equal(found.metrics["loss"][trial], own)
        assert found.objective.tolist() == [12.0, 22.0, 15.0, 25.0]
        assert not found.failed.any()
        assert found.to_dataframe()["loss"].tolist() == found.objective.tolist()
        lengths = rj.sweep(
            uneven, UNEVEN, record_every=every, objective=lambda m: len(m["loss"]), progress=False
        )
        assert lengths.objective.tolist() == [sum(t <= n for t in at) for n in (3, 3, 6, 6)]
    again = rj.SweepResult.load(tmp_path)
    np.testing.assert_array_equal(again.metrics["loss"], found.metrics["loss"])
    assert again.objective.tolist() == found.objective.tolist()
    more = rj.sweep(
        uneven, UNEVEN + rj.grid(n=rj.static([5]), x=[1.0]), record_every=every, path=tmp_path,
        progress=False,
    )  # fmt: skip
    assert more.objective.tolist() == [12.0, 22.0, 15.0, 25.0, 14.0]


def test_whole_numbers_of_different_lengths_are_refused():
    f = lambda hp, key: {"loss": hp["x"], "i": jnp.arange(hp["n"])}
    with pytest.raises(
        ValueError, match=r"'i' must be the same in all static groups.*integers of the same"
    ):
        rj.sweep(f, UNEVEN, progress=False)


# Trainings: what was stopped, what changed on the way.

ADDS = rj.Training(
    lambda hp, key: 0.0, lambda hp, x, key: (x + hp["rate"], {"loss": x + hp["rate"]})
)
FOUR = rj.grid(rate=[1.0, 2.0, 4.0, 8.0])


def adding(**options):
    options = {"steps": 10, "evaluate_every": 3, "progress": False} | options
    return rj.sweep(ADDS, FOUR, **options)


def test_the_schedule_of_a_member_led_to_its_state():
    """The state is the sum of all numbers with which it was trained, by whichever member."""
    evolving = rj.PopulationBasedTraining(
        {"rate": rj.uniform(1.0, 8.0)}, perturbation_interval=3, quantile_fraction=0.5
    )
    result = adding(scheduler=evolving, mode="max")
    assert max(len(result.schedule(point)) for point in result.points) > 1
    for i, point in enumerate(result.points):
        found = result.schedule(point)
        assert [start for start, *_ in found] == [0, *(stop for _, stop, _ in found[:-1])]
        assert found[-1][1] == 10
        assert found[-1][2] == result.history[i][-1][2]
        total = sum((stop - start) * numbers["rate"] for start, stop, numbers in found)
        assert total == pytest.approx(result.objective[i], rel=1e-6)
    assert result.schedule(result.best()) == result.schedule(result.best().point)


def test_the_schedule_of_what_did_not_change_is_one_entry():
    halved = adding(scheduler=rj.SuccessiveHalving(2, 3))
    assert halved.schedule({"rate": 1.0}) == [(0, 10, {"rate": 1.0})]
    assert halved.schedule({"rate": 8.0}) == [(0, 3, {"rate": 8.0})]
    one = sweep(seeds=[7])
    assert one.schedule(one.best()) == [(0, 1, {"x": 2.0, "same": 5})]
    with pytest.raises(ValueError, match="points of this sweep"):
        one.schedule({"x": 5.0})


def test_a_sweep_of_which_nothing_finished_has_no_best():
    def stop(report):
        raise KeyboardInterrupt

    for devices in (jax.devices(), jax.devices()[:1]):
        with pytest.raises(rj.SweepInterrupted) as caught:
            adding(callback=stop, devices=devices)
        result = caught.value.result
        with pytest.raises(ValueError, match=r"must be complete.*got \d unfinished\. Resume"):
            result.best()
        assert result._repr_html_().count("<tr>") == 1
    with pytest.raises(ValueError, match=r"record.*begun.*\{'rate': 8.0\}"):
        result.schedule({"rate": 8.0})


def interrupt(report):
    raise KeyboardInterrupt


def test_an_interrupted_sweep_is_pickled_with_its_result():
    """As a pool of processes hands an exception over; its message is the same each time."""
    with pytest.raises(rj.SweepInterrupted) as caught:
        sweep(callback=interrupt)
    found = caught.value
    found.add_note("in the night")
    for make in (copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))):
        other = make(make(found))
        assert type(other) is rj.SweepInterrupted
        assert str(other) == str(found)
        assert str(found).count("interrupted") == 1
        assert other.__notes__ == ["in the night"]
        assert other.result.points == found.result.points
        np.testing.assert_array_equal(other.result.objective, found.result.objective)


@pytest.mark.parametrize("error", [OSError(28, "full"), ValueError("bad"), RuntimeError("a", 3)])
def test_an_exception_of_a_callback_is_pickled_with_the_result(error):
    def fail(report):
        raise error

    with pytest.raises(type(error)) as caught:
        sweep(callback=fail)
    other = pickle.loads(pickle.dumps(caught.value))
    assert str(other) == str(error)
    assert other.__notes__ == caught.value.__notes__
    np.testing.assert_array_equal(other.result.objective, caught.value.result.objective)


# Every trial that the call asked for is a row, whether it began or not.


def cut_off(call, count):
    """Return the result of a call that is interrupted at this wave."""
    with pytest.raises(rj.SweepInterrupted) as caught:
        call(callback=stop_at(count), **ONE_DEVICE)
    return caught.value.result


def assert_rows(result, points, seeds):
    """One row for each trial, in order; those that have not begun are empty, and nothing counts
    them."""
    count = len(points) * len(seeds)
    assert len(result) == count
    assert result.point_index.tolist() == [i for i in range(len(points)) for _ in seeds]
    assert result.seed_index.tolist() == [j for _ in points for j in range(len(seeds))]
    waiting = result.steps_completed == 0
    assert waiting.any()
    assert not waiting.all()
    assert set(result.status[waiting]) == {"unfinished"}
    assert np.isnan(result.objective[waiting]).all()
    assert not result.failed[waiting].any()
    np.testing.assert_array_equal(result.failed, result.status == "failed")
    assert result.feasible[waiting].all()
    for values in result.metrics.values():
        assert len(values) == count
        empty = np.isnan(values[waiting]) if values.dtype.kind == "f" else values[waiting] == 0
        assert empty.all()
    assert all(len(result.history[row]) == 1 for row in np.flatnonzero(waiting))
    assert not result.is_complete
    assert f" of {count} trials complete" in repr(result)
    assert f"{(result.status == 'unfinished').sum()} unfinished" in repr(result)
    table = result.to_dataframe()
    assert len(table) == count
    assert table["objective"][waiting].isna().all()
    never = [i for i in range(len(points)) if waiting.reshape(len(points), -1)[i].all()]
    with pytest.raises(ValueError, match=r"record.*begun"):
        result.schedule(points[never[0]])
    assert np.isnan(result.by_point()[never]).all()
    assert not set(never) & set(result.ranked().tolist())
    with pytest.raises(ValueError, match="a and b must have a seed"):
        result.compare(points[never[0]], points[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective", ["loss", lambda m: m["loss"][-1] + m["n"]], ids=["metric", "function"]
)
def test_a_function_that_was_interrupted_has_a_row_for_each_trial(objective, tmp_path):
    call = lambda **more: sweep(objective=objective, path=tmp_path, **more)
    found = cut_off(call, 7)
    loaded = rj.SweepResult.load(tmp_path, objective=objective)
    whole = sweep(objective=objective)
    assert whole.is_complete
    for result in (found, loaded, found.rescored(objective), pickle.loads(pickle.dumps(loaded))):
        assert_rows(result, POINTS, SEEDS)
        begun = result.steps_completed > 0
        assert begun.sum() >= 7
        np.testing.assert_array_equal(result.objective[begun], whole.objective[begun])
        assert set(result.status[begun]) <= {"complete", "failed"}
    found.save(tmp_path / "saved")
    again = rj.SweepResult.load(tmp_path / "saved", objective=objective)
    assert_rows(again, POINTS, SEEDS)
    np.testing.assert_array_equal(again.objective, found.objective)
    assert sweep(objective=objective, path=tmp_path).is_complete
    assert rj.SweepResult.load(tmp_path, objective=objective).is_complete


SCHEDULERS = {
    "none": None,
    "halving": rj.SuccessiveHalving(2, 3),
    "population": rj.PopulationBasedTraining(
        {"rate": rj.uniform(1.0, 8.0)}, perturbation_interval=3, quantile_fraction=0.5
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_training_that_was_interrupted_has_a_row_for_each_trial(scheduler, tmp_path):
    more = {"scheduler": SCHEDULERS[scheduler], "path": tmp_path, "checkpoint_seconds": 0}
    call = lambda **options: adding(seeds=[3, 5], **more | options)
    found = cut_off(call, 3)
    assert_rows(found, FOUR, [3, 5])
    if scheduler == "none":
        assert_rows(rj.SweepResult.load(tmp_path), FOUR, [3, 5])
    assert rj.plots.curves(found, "loss").lines
    plt.close("all")
    whole = call()
    assert whole.is_complete
    assert set(whole.status) == ({"complete", "pruned"} if scheduler == "halving" else {"complete"})


@pytest.mark.parametrize("scheduler", ["halving", "population"])
def test_a_loaded_sweep_with_a_scheduler_says_what_is_left(scheduler, tmp_path):
    """Interrupted after the first rung, where all trials have begun."""
    more = {"scheduler": SCHEDULERS[scheduler], "path": tmp_path, "checkpoint_seconds": 0}
    call = lambda **options: adding(seeds=[3, 5], **more | options)
    found = cut_off(call, 6)
    for result in (found, rj.SweepResult.load(tmp_path)):
        assert len(result) == 8
        assert not result.is_complete
        pruned = 4 if scheduler == "halving" else 0
        assert result.status.tolist() == ["unfinished"] * (8 - pruned) + ["pruned"] * pruned
        assert result.is_population == (scheduler == "population")
    (lost,) = tmp_path.glob("round-*")
    lost.unlink()  # the pruned trials are to run again, too
    loaded = rj.SweepResult.load(tmp_path)
    assert set(loaded.status) == {"unfinished"}
    assert not loaded.is_complete


def test_a_finite_trial_is_pruned_and_its_failed_sibling_has_failed(tmp_path):
    """x = 3 is the worst, and seed 1 of x = 2 is not finite: the scheduler ends both points."""

    def step(hp, key_data, key):
        fails = (hp["x"] == 2) & (key_data == 1)
        return key_data, {"loss": jnp.where(fails, jnp.nan, hp["x"])}

    training = rj.Training(
        lambda hp, key: jnp.where(jnp.all(key == jax.random.fold_in(jax.random.key(1), 0)), 1, 0),
        step,
    )
    run = lambda path: rj.sweep(
        training, rj.grid(x=[1.0, 2.0, 3.0]), steps=4, seeds=2, path=path, progress=False,
        scheduler=rj.SuccessiveHalving(3, 2),
    )  # fmt: skip
    for result in (run(tmp_path), rj.SweepResult.load(tmp_path), run(tmp_path)):
        assert result.status.tolist() == ["complete"] * 2 + ["pruned", "failed"] + ["pruned"] * 2
        assert result.failed.tolist() == [False, False, False, True, False, False]
        assert result.is_complete


def test_a_trial_under_way_has_not_failed_though_its_objective_is_not_finite():
    """Its last step may bring a number."""
    step = lambda hp, t, key: (t + 1, {"loss": jnp.where(t < 9, jnp.nan, hp["rate"])})
    late = rj.Training(lambda hp, key: 0, step)
    run = lambda **options: rj.sweep(late, FOUR, steps=10, evaluate_every=3, **options)
    found = cut_off(lambda **options: run(progress=False, **options), 2)
    assert set(found.status) == {"unfinished"}
    assert not found.failed.any()
    assert np.isnan(found.objective).all()
    whole = run(progress=False)
    assert set(whole.status) == {"complete"}
    assert whole.is_complete


def test_more_steps_than_a_sweep_has_run_are_left_to_run(tmp_path):
    """A trial that the longer call has not moved is complete, and the sweep is not."""
    call = lambda **options: adding(path=tmp_path, keep_states="all", **options)
    assert call().is_complete
    with pytest.raises(rj.SweepInterrupted) as caught:
        call(steps=20, callback=stop_at(4), checkpoint_seconds=0, **ONE_DEVICE)
    for result in (caught.value.result, rj.SweepResult.load(tmp_path)):
        assert set(result.status) == {"unfinished", "complete"} or result.steps_completed[0] == 20
        assert not result.is_complete
    assert call(steps=20).is_complete


# Which values were measured.

COUNTS = rj.Training(
    lambda hp, key: jnp.int32(0),
    lambda hp, t, key: (
        t + 1,
        {
            "loss": jnp.where(t == 1, jnp.nan, hp["rate"]),
            "count": jnp.int32(t + 1),
            "even": t % 2 == 1,
            "small": jnp.int4(t + 1 - 8 * ((t + 1) // 8)),
        },
    ),
    lambda hp, t, key: {"score": jnp.uint8(t)},
)


def counting(**options):
    options = {"steps": 10, "evaluate_every": 3, "progress": False} | options
    return rj.sweep(COUNTS, FOUR, **options)


def assert_valid(result):
    """Values up to each trial's step are valid, NaN or not, and no others."""
    for name, values in result.metrics.items():
        valid, at = result.valid[name], result.steps[name]
        assert valid.dtype == bool
        assert valid.shape == values.shape
        expected = at[None] <= result.steps_completed[:, None]
        np.testing.assert_array_equal(valid, expected)
    for name, kind in {"count": "int32", "even": "bool", "small": "int4", "score": "uint8"}.items():
        assert result.metrics[name].dtype == kind
    t = np.broadcast_to(result.steps["count"], result.metrics["count"].shape)
    valid = result.valid["count"]
    np.testing.assert_array_equal(result.metrics["count"][valid], t[valid])
    np.testing.assert_array_equal(np.isnan(result.metrics["loss"][valid]), t[valid] == 2)


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2, 4])
def test_values_of_pruned_trials_are_told_from_zeros(every, tmp_path):
    call = lambda **options: counting(
        scheduler=rj.SuccessiveHalving(2, 5), record_every=every, **options
    )
    for result in (call(path=tmp_path), rj.SweepResult.load(tmp_path)):
        assert result.status.tolist() == ["complete", "complete", "pruned", "pruned"]
        assert_valid(result)
        table = result.to_dataframe()  # all trials have begun, so that each has a last value
        assert table["count"].tolist() == [10, 10, 5, 5]
        assert table["count"].dtype == np.int32
        assert table["even"].dtype == bool
        data = result.to_xarray()
        step = result.steps["count"]
        last = data.steps_completed.values.reshape(-1)
        expected = np.where(step <= last[:, None], step, np.nan)
        np.testing.assert_array_equal(data["count"].values[:, 0], expected)
        even = np.where(step <= last[:, None], step % 2 == 0, np.nan)
        np.testing.assert_array_equal(data["even"].values[:, 0], even)
        np.testing.assert_array_equal(
            np.isnan(data["score"].values[:, 0]), result.steps["score"] > last[:, None]
        )
    whole = counting(record_every=every)
    assert all(valid.all() for valid in whole.valid.values())
    data = whole.to_xarray()
    assert (data["count"].dtype, data["even"].dtype, data["score"].dtype) == (
        np.int32, np.bool_, np.uint8,
    )  # fmt: skip


def test_values_of_trials_that_have_not_begun_are_missing_in_tables(tmp_path):
    for result in (cut_off(counting, 2), rj.SweepResult.load(saved(counting, tmp_path))):
        assert_valid(result)
        begun = result.steps_completed > 0
        table = result.to_dataframe()
        kinds = {"count": "Int32", "even": "boolean", "small": "Int8", "score": "UInt8"}
        assert {name: str(table[name].dtype) for name in kinds} == kinds
        for name in ("loss", *kinds):
            assert table[name].isna().tolist() == (~begun).tolist()
            values = table[name][begun].to_numpy(float)
            np.testing.assert_array_equal(values, result.newest[name][begun].astype(float))
        assert table["steps_completed"].tolist() == result.steps_completed.tolist()
        data = result.to_xarray()
        for name in ("loss", *kinds):
            assert np.isnan(data[name].values[~begun]).all()
        assert not np.isnan(data["count"].values[begun][..., 0]).any()


def saved(call, path):
    """The folder of what there is of a call that is interrupted at once."""
    cut_off(call, 2).save(path / "saved")
    return path / "saved"


def test_values_of_functions_are_valid_where_they_ran():
    """The values of a shorter static group are valid up to its end. NaN from `train` is valid."""

    def train(hp, key):
        loss = jnp.arange(float(hp["n"])) * hp["x"]
        return {"loss": loss.at[0].set(jnp.nan), "whole": jnp.int32(hp["n"]), "ok": hp["x"] > 1}

    call = lambda **options: rj.sweep(train, UNEVEN, progress=False, **options)
    result = call()
    steps = np.array([3, 3, 6, 6])
    np.testing.assert_array_equal(result.valid["loss"], np.arange(6) < steps[:, None])
    assert np.isnan(result.metrics["loss"][:, 0]).all()
    assert result.valid["whole"].all()
    assert result.valid["ok"].shape == (4,)
    result = cut_off(call, 2)
    begun = result.steps_completed > 0
    assert 0 < begun.sum() < 4
    np.testing.assert_array_equal(result.valid["whole"], begun)
    np.testing.assert_array_equal(
        result.valid["loss"], begun[:, None] & (np.arange(6) < steps[:, None])
    )
    table = result.to_dataframe()
    assert str(table["whole"].dtype) == "Int32"
    assert str(table["ok"].dtype) == "boolean"
    assert table["whole"].isna().tolist() == (~begun).tolist()
    assert np.isnan(result.to_xarray()["ok"].values.reshape(-1)[~begun]).all()
    for other in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result), copy.copy(result)):
        np.testing.assert_array_equal(other.valid["loss"], result.valid["loss"])
