"""A `Training` in a sweep: what it computes in segments, shows, keeps, stops, goes on with."""

import collections
import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state as train_state_module

import rmsprop_jax as rj
from rmsprop_jax._tune.compile import compiled, group_compiler
from rmsprop_jax._tune.compile.compiled import CompiledKernel
from rmsprop_jax._tune.run.machine import Machine
from tests.support import engine
from tests.support.tables import crossed, few
from tests.support.trainings import POINTS, SCALE, alone, noisy, plain, sweep
from tests.tune.test_sweep import compiles


@pytest.fixture(scope="module")
def expected():
    """Each trial of two seeds by itself: its state and metrics."""
    training = noisy()
    return {
        (i, seed): alone(training, point, seed, 50)
        for i, point in enumerate(POINTS)
        for seed in (3, 1)
    }


def assert_same(result, expected, steps=50):
    """Bit for bit, metrics and states."""
    for trial, (i, s) in enumerate(zip(result.point_index, result.seed_index, strict=True)):
        state, metrics = expected[int(i), result.seeds[s]]
        for name, x in metrics.items():
            np.testing.assert_array_equal(result.metrics[name][trial], x)
        got = result.state(result.points[i], result.seeds[s])
        assert jax.tree.structure(got) == jax.tree.structure(state)
        for x, y in zip(plain(got), plain(state), strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("evaluate_every", "devices"), crossed([1, 7, 20, 50], [1, 2], plain=["7-2"])
)
def test_any_segments_are_bit_for_bit_the_whole_run(expected, evaluate_every, devices):
    """Steps that do not divide; keys, None and empty arrays in the state; two static groups."""
    result = sweep(
        evaluate_every=evaluate_every,
        seeds=[3, 1],
        devices=jax.devices()[:devices],
        keep_states="all",
    )
    assert len(result) == len(POINTS) * 2
    assert_same(result, expected)
    at = [t for t in range(1, 51) if t % evaluate_every == 0 or t == 50]
    assert result.steps["validation"].tolist() == at
    assert result.steps["loss"].tolist() == list(range(1, 51))
    assert result.metrics["seen"].tolist() == [at] * len(result)
    assert set(result.status) == {"complete"}
    assert set(result.steps_completed) == {50}


@pytest.mark.slow
def test_evaluate_gets_the_state_and_a_key_of_its_own(expected):
    points = POINTS[::2]  # of one static group
    result = sweep(points=points, evaluate_every=10, seeds=[3, 1])
    training = noisy()
    for trial in (0, 10):
        point = points[trial // 2]
        state, _ = alone(training, point, 3, 10)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 10), 1)
        now = training.evaluate(point, state, key, SCALE)["validation"]
        np.testing.assert_allclose(result.metrics["validation"][trial, 0], now, rtol=1e-6)


def test_pieces_get_the_keys_that_are_promised():
    """init fold_in(k, 0), step t fold_in(k, t), evaluate fold_in(fold_in(k, t), 1)."""
    bits = lambda key: jax.random.key_data(key)[0]
    training = rj.Training(
        lambda hp, key: bits(key),
        lambda hp, state, key: (state, {"loss": hp["x"], "init": state, "step": bits(key)}),
        lambda hp, state, key: {"evaluate": bits(key)},
    )
    result = rj.sweep(training, rj.grid(x=[1.0]), steps=6, evaluate_every=4, progress=False)
    fold, key = jax.random.fold_in, jax.random.key(0)
    assert result.metrics["init"][0, 0] == bits(fold(key, 0))
    assert result.metrics["step"][0].tolist() == [int(bits(fold(key, t))) for t in range(1, 7)]
    of = lambda t: int(bits(fold(fold(key, t), 1)))
    assert result.metrics["evaluate"][0].tolist() == [of(4), of(6)]


@pytest.mark.slow
def test_each_program_of_a_static_group_compiles_once():
    """Whatever the boundaries; and a second call nothing."""
    training, options = noisy(), {"evaluate_every": 7, "seeds": 2}
    sweep(training, **options)  # the small programs around the rounds
    compiled.clear_cache()
    with compiles() as count:
        sweep(training, **options)
    assert len(count) == 6  # two static groups × init, segment, evaluate
    with compiles() as count:
        sweep(training, **options)
        sweep(training, scheduler=rj.SuccessiveHalving(min_steps=7), **options)
    assert not count


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [5, 100])
def test_a_batch_gives_the_same_within_rounding_and_repeats_itself(batch_size):
    options = {"points": POINTS[::2], "seeds": 2, "evaluate_every": 10}
    one = sweep(**options)
    batched, again = (sweep(batch_size=batch_size, **options) for _ in range(2))
    for name in one.metrics:
        np.testing.assert_allclose(batched.metrics[name], one.metrics[name], rtol=2e-3, atol=1e-5)
        np.testing.assert_array_equal(batched.metrics[name], again.metrics[name])
    best = batched.best()
    assert best.point == one.best().point
    got, wanted = batched.state(best)["params"], one.state(best)["params"]
    np.testing.assert_allclose(got, wanted, rtol=1e-2, atol=1e-5)


@pytest.mark.slow
def test_on_a_device_with_little_memory_the_batch_fits(monkeypatch):
    small = Machine(device_memory=lambda devices: 20_000, buffer_bytes=1)
    made, init = [], group_compiler.GroupPrograms.__new__

    def noted(cls, layout, **programs):
        made.append(layout)
        return init(cls, layout, **programs)

    monkeypatch.setattr(group_compiler.GroupPrograms, "__new__", noted)
    points = rj.grid(rate=np.linspace(0.01, 0.1, 64), decay=[0.9], centered=[False])
    options = {"steps": 50, "objective": "validation", "args": (SCALE,), "evaluate_every": 25}
    result = engine.sweep(noisy(), points, small, **options)
    assert made[0].batch_size == 32 > made[-1].batch_size > 1
    one = sweep(points=points, evaluate_every=25, batch_size=1)
    np.testing.assert_allclose(result.objective, one.objective, rtol=1e-2)


def test_tiny_trainings_share_rounds(monkeypatch):
    sizes, start = [], CompiledKernel.place

    def noted(self, rows, count, *args):
        sizes.append(count)
        return start(self, rows, count, *args)

    monkeypatch.setattr(CompiledKernel, "place", noted)
    training = rj.Training(
        lambda hp, key: jax.random.uniform(key),
        lambda hp, x, key: (x * hp["x"], {"loss": x}),
    )
    points = rj.grid(x=np.linspace(0.1, 0.9, 300))
    result = rj.sweep(training, points, steps=10, progress=False)
    assert sizes[:4] == [2] * 4
    assert max(sizes) > 2
    assert sum(sizes) == 300
    first = jax.random.uniform(jax.random.fold_in(jax.random.key(0), 0))
    wanted = first * np.float32(np.linspace(0.1, 0.9, 300)) ** 9
    np.testing.assert_allclose(result.objective, wanted, rtol=1e-5)


# run.


@pytest.mark.slow
def test_run_in_parts_is_the_whole(expected):
    training, point = noisy(), POINTS[3]
    state, first = alone(training, point, 3, 20)
    go_on = jax.jit(
        lambda numbers, state: training.run(
            point | numbers, jax.random.key(3), SCALE, steps=30, state=state, start=20
        )
    )
    state, rest = go_on({"rate": jnp.float32(point["rate"]), "decay": jnp.float32(0.99)}, state)
    whole_state, whole = expected[3, 3]
    np.testing.assert_array_equal(np.concatenate([first["loss"], rest["loss"]]), whole["loss"])
    for x, y in zip(plain(state), plain(whole_state), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_run_is_differentiable():
    training = noisy()

    def final(rate):
        hp = {"rate": rate, "decay": 0.9, "centered": False}
        return training.run(hp, jax.random.key(0), SCALE, steps=10)[1]["loss"][-1]

    h = 1e-3
    low, slope, high = jax.jit(lambda x: (final(x - h), jax.grad(final)(x), final(x + h)))(1e-2)
    np.testing.assert_allclose(slope, (high - low) / (2 * h), rtol=2e-2)


def test_python_numbers_in_a_state_become_strong_arrays():
    """A weak 1.0 beside bfloat16 passes a scan, and fails from the host."""
    training = rj.Training(
        lambda hp, key: (1.0, 2, True, jnp.full(3, 1.0), np.float32(1)),
        lambda hp, s, key: ((s[0] * 0.5, s[1] + 1, s[2], s[3] * 1.0, s[4]), {"loss": hp["x"]}),
    )
    state, _ = training.run({"x": 1.0}, jax.random.key(0), steps=3)
    assert [x.dtype for x in state] == [jnp.float32, jnp.int32, bool, jnp.float32, jnp.float32]
    assert not any(x.weak_type for x in state)
    result = rj.sweep(training, rj.grid(x=[1.0]), steps=3, progress=False)
    assert [x.dtype for x in result.state(result.best())] == [x.dtype for x in state]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be.*got 0"),
        ({"steps": 2.0}, r"steps must be.*got 2\.0"),
        ({"steps": 3, "start": 5}, "start=5.*state="),
    ],
)
def test_run_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        noisy().run({}, jax.random.key(0), **options)


# What is kept.


@pytest.mark.slow
def test_the_best_states_are_kept():
    options = {"seeds": 2, "evaluate_every": 10}
    result = sweep(keep_states=3, **options)
    for rank, record in enumerate(result.top(12)):
        for seed in (0, 1):
            if rank < 3:
                assert result.state(record, seed)["count"] == 50
            else:
                with pytest.raises(ValueError, match="keep_states"):
                    result.state(record, seed)
    with pytest.raises(ValueError, match=r"seed must be.*got 5"):
        result.state(result.best(), 5)
    none = sweep(keep_states=0, **options)
    with pytest.raises(ValueError, match="keep_states"):
        none.state(none.best())
    most = sweep(mode="max", keep_states=1, **options)
    assert most.state(most.best())["count"] == 50


@pytest.mark.slow
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_whatever_fails_the_kept_states_are_those_of_the_top(mode, on_disk, tmp_path):
    """Points of which some seed failed rank after whole ones, but are there where those are few."""

    def step(hp, state, key, table):
        return state, {"loss": table[jnp.int32(hp["i"]), state]}

    init = lambda hp, key, table: jnp.int32(jax.random.key_data(key)[1] % 3)
    key_data = lambda s: jax.random.key_data(jax.random.fold_in(jax.random.key(s), 0))[1] % 3
    seeds = [next(s for s in range(99) if key_data(s) == j) for j in range(3)]
    training, points = rj.Training(init, step), rj.grid(i=np.arange(6.0))
    rng = np.random.default_rng(on_disk)
    for turn, failing in enumerate((0.0, 0.3, 0.6, 0.9)):
        table = rng.integers(4, size=(6, 3)).astype(np.float32)
        table[rng.random((6, 3)) < failing] = np.nan
        result = rj.sweep(
            training, points, steps=2, seeds=seeds, args=(table,), mode=mode, keep_states=3,
            path=tmp_path / str(turn) if on_disk else None, progress=False,
        )  # fmt: skip
        np.testing.assert_array_equal(result.by_point(), table)
        kept = {record.point["i"] for record in result.top(3)} if np.isfinite(table).any() else ()
        for point in points:
            for j, seed in enumerate(seeds):
                if point["i"] in kept:
                    assert result.state(point, seed) == j
                else:
                    with pytest.raises(ValueError, match="keep_states"):
                        result.state(point, seed)


@pytest.mark.slow
def test_a_kept_state_is_a_copy():
    result = sweep(seeds=2, evaluate_every=10)
    result.state(result.best())["params"][:] = 0
    assert np.asarray(result.state(result.best())["params"]).any()


@pytest.mark.slow
def test_states_on_disk(tmp_path, expected):
    found = sweep(seeds=[3, 1], path=tmp_path, keep_states="all", evaluate_every=10)
    assert_same(found, expected)
    loaded = rj.SweepResult.load(tmp_path)
    for i, point in enumerate(POINTS):
        like = found.state(point)
        state = loaded.state(point, 1, like=jax.eval_shape(lambda like=like: like))
        for x, y in zip(plain(state), plain(expected[i, 1][0]), strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)
    with pytest.raises(ValueError, match="like="):
        loaded.state(POINTS[0])
    with pytest.raises(ValueError, match="like must have"):
        loaded.state(POINTS[0], like={"a": jnp.ones(3)})
    best = sweep(seeds=[3, 1], path=tmp_path / "best", evaluate_every=10)
    assert len(list((tmp_path / "best").glob("final-*"))) == 2  # one point, two seeds
    for x, y in zip(plain(best.state(best.best())), plain(found.state(best.best())), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_state_of_dicts_lists_and_tuples_needs_no_like(tmp_path):
    training = rj.Training(
        lambda hp, key: {"a": [jnp.ones(2), (None, key)], "b": {"c": 3}},
        lambda hp, s, key: (s, {"loss": hp["x"]}),
    )
    result = rj.sweep(training, rj.grid(x=[1.0]), steps=2, path=tmp_path, progress=False)
    for other in (rj.SweepResult.load(tmp_path), pickle.loads(pickle.dumps(result))):
        state = other.state({"x": 1.0})
        assert jax.tree.structure(state) == jax.tree.structure(result.state({"x": 1.0}))
        assert jnp.issubdtype(state["a"][1][1].dtype, jax.dtypes.prng_key)


@pytest.mark.slow
def test_a_result_with_states_is_copied_and_pickled():
    result = sweep(seeds=2, evaluate_every=10)
    like = result.state(result.best())
    for other in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        state = other.state(other.best(), like=like)
        np.testing.assert_array_equal(state["params"], like["params"])


@pytest.mark.slow
def test_a_point_is_trained_again(expected):
    result = sweep(seeds=[3, 1], record_every=7, evaluate_every=10)
    record = result.top(5)[4]
    i = result.points.index_of(record.point)
    for seed in (3, 1):
        state, metrics = result.retrain(record, seed=seed, args=(SCALE,))
        np.testing.assert_array_equal(metrics["loss"], expected[i, seed][1]["loss"])
        for x, y in zip(plain(state), plain(expected[i, seed][0]), strict=True):
            np.testing.assert_array_equal(x, y)
        row = (result.point_index == i) & (np.array(result.seeds)[result.seed_index] == seed)
        np.testing.assert_allclose(
            metrics["validation"], result.metrics["validation"][row][0, -1], rtol=1e-6
        )


# Series.


@pytest.mark.slow
@pytest.mark.parametrize("every", few([1, 7, 50], [7]))
def test_every_thins_what_step_returns(every, expected):
    result = sweep(record_every=every, seeds=[3, 1], evaluate_every=10)
    at = [t for t in range(1, 51) if t % every == 0 or t == 50]
    assert result.steps["loss"].tolist() == at
    assert result.steps["validation"].tolist() == [10, 20, 30, 40, 50]
    for i in range(len(POINTS)):
        np.testing.assert_array_equal(
            result.metrics["loss"][2 * i], expected[i, 3][1]["loss"][np.array(at) - 1]
        )


@pytest.mark.slow
def test_objectives_of_steps_and_of_evaluations_and_functions():
    options = {"points": POINTS[::2], "seeds": 2, "evaluate_every": 10}
    by_step = sweep(objective="loss", record_every=7, **options)
    whole = sweep(objective="loss", **options)
    np.testing.assert_array_equal(by_step.objective, whole.metrics["loss"][:, -1])
    by_function = sweep(objective=lambda m: m["loss"].min() + len(m["validation"]), **options)
    count = len(by_function.steps["validation"])
    np.testing.assert_allclose(
        by_function.objective, by_function.metrics["loss"].min(1) + count, rtol=1e-6
    )


def test_a_sweep_without_evaluate_is_cut_into_twenty():
    training = noisy()
    training = rj.Training(training.init, training.step)
    reports = []
    sweep(training, POINTS[:1], steps=40, objective="loss", callback=reports.append)
    assert sorted({r.step for report in reports for r in report}) == list(range(2, 41, 2))


# What is shown.


def test_the_callback_hears_of_every_round():
    reports = []
    result = sweep(seeds=[3, 1], evaluate_every=10, callback=reports.append)
    heard = collections.Counter((r.number, r.step) for report in reports for r in report.trials)
    assert heard == {(n, t): 1 for n in range(24) for t in (10, 20, 30, 40, 50)}
    for report in reports:
        for trial in report:
            assert trial.point == POINTS[trial.number // 2]
            assert trial.seed == (3, 1)[trial.number % 2]
            row = result.metrics
            assert trial.metrics["loss"] == row["loss"][trial.number, trial.step - 1]
            assert (
                trial.metrics["validation"] == row["validation"][trial.number, trial.step // 10 - 1]
            )


def test_the_callback_of_a_function_hears_of_every_round():
    reports = []
    train = lambda hp, key: {"loss": hp["x"] * jnp.arange(1.0, 4.0), "end": hp["x"]}
    rj.sweep(train, rj.grid(x=[1.0, 2.0, 3.0]), callback=reports.append, progress=False)
    heard = [(r.number, r.step, r.metrics) for report in reports for r in report]
    assert heard == [(i, 3, {"loss": 3.0 * (i + 1), "end": i + 1.0}) for i in range(3)]


@pytest.mark.slow
def test_an_exception_of_the_callback_stops_the_sweep_and_keeps_what_is_finished(tmp_path):
    def stop(report):
        if any(r.number >= 3 and r.step == 50 for r in report):
            raise RuntimeError("enough")

    options = {
        "points": POINTS[1::2],
        "evaluate_every": 10,
        "devices": jax.devices()[:1],
        "seeds": 2,
    }
    with pytest.raises(RuntimeError, match="enough") as caught:
        sweep(callback=stop, path=tmp_path, checkpoint_seconds=0, **options)
    result = caught.value.result
    assert (result.status == "complete").sum() >= 3
    again = sweep(path=tmp_path, checkpoint_seconds=0, **options)
    whole = sweep(**options)
    np.testing.assert_array_equal(again.metrics["loss"], whole.metrics["loss"])


@pytest.mark.slow
def test_the_bar_counts_steps(capsys):
    sweep(progress=True, evaluate_every=10)
    bar = capsys.readouterr().err
    assert f"{12 * 50}/{12 * 50}" in bar
    assert "complete 12, pruned 0, failed 0, best 0." in bar
    assert "/600" in bar
    sweep(
        progress=True,
        evaluate_every=10,
        scheduler=rj.SuccessiveHalving(reduction_factor=3, min_steps=10),
    )
    bar = capsys.readouterr().err
    total = 8 * 10 + 2 * 30 + 2 * 50
    assert f"{total}/{total}" in bar
    assert "complete 2, pruned 10, failed 0" in bar


@pytest.mark.slow
def test_tables_say_how_far_trials_came():
    table = sweep(
        seeds=2, scheduler=rj.SuccessiveHalving(reduction_factor=3, min_steps=10), evaluate_every=10
    ).to_dataframe()
    names = ["rate", "decay", "centered", "seed", "count", "loss", "seen", "validation"]
    assert list(table) == [*names, "objective", "failed", "status", "steps_completed"]
    assert (table["steps_completed"] == table["seen"]).all()
    assert table[table.status == "complete"]["steps_completed"].unique().tolist() == [50]
    assert (table["objective"] == table["validation"]).all()
    assert not table["failed"].any()
    data = sweep(
        seeds=2, scheduler=rj.SuccessiveHalving(reduction_factor=3, min_steps=10), evaluate_every=25
    ).to_xarray()
    assert data.sizes["step_loss"] == 50
    assert data.step_validation.values.tolist() == [10, 25, 30, 50]
    assert np.isnan(data.validation.values[data.steps_completed.values == 10][:, 1:]).all()
    assert np.isfinite(data.validation.values[data.steps_completed.values == 50]).all()
    assert set(data.status.values.reshape(-1).tolist()) == {"complete", "pruned"}


# What is refused, before anything runs.

X = rj.grid(x=[1.0, 2.0])
STEP = lambda hp, s, key: (s, {"loss": hp["x"]})


def made(step=STEP, init=lambda hp, key: jnp.zeros(2), evaluate=None):
    return lambda: rj.Training(init, step, evaluate)


def train_state(hp, key):
    """Return the state that a Flax user writes first: `tx` closes over hp."""
    return train_state_module.TrainState.create(
        apply_fn=jnp.sin, params={"w": jnp.ones(2)}, tx=rj.rmsprop(hp["x"])
    )


def nnx_state(hp, key):
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    return model, nnx.Optimizer(model, rj.rmsprop(hp["x"]), wrt=nnx.Param)


TYPES = (jnp.tanh, "name", object(), np.array(["a"]), optax.sgd(0.1))
REFUSED = {
    "another shape": (made(lambda hp, s, k: (s[:1], {"loss": hp["x"]})),
                      r"state's array: float32\[2\] before, .*float32\[1\] after"),
    "another dtype": (
        made(lambda hp, s, k: ({"a": s["a"] * 1.5}, {"loss": hp["x"]}),
             lambda hp, k: {"a": jnp.zeros(2, int)}),
        r"state's \['a'\]: int32\[2\] before, .*float32\[2\] after.*cast",
    ),
    "another structure": (
        made(lambda hp, s, k: ((s, s), {"loss": hp["x"]})),
        r"step must return a state .*structure",
    ),
    "a vector": (made(lambda hp, s, k: (s, {"loss": s})),
                 r"'loss' of step .*shape \(2,\).*the state"),
    "a vector of evaluate": (made(evaluate=lambda hp, s, k: {"val": s}),
                             r"'val' of evaluate .*shape \(2,\)"),
    "no pair": (made(lambda hp, s, k: s), r"step must return \(state, metrics\), got"),
    "no metrics": (made(lambda hp, s, k: (s, s)), "step must return a dict of named metrics"),
    "no evaluations": (made(evaluate=lambda hp, s, k: None), "evaluate must return a dict"),
    "clash": (made(evaluate=lambda hp, s, k: {"loss": hp["x"]}),
              r"step and evaluate .*\['loss'\].*[Rr]ename"),
    "a word": (made(lambda hp, s, k: (s, {"loss": "low"})), "metric 'loss' .*str"),
    "our name": (made(lambda hp, s, k: (s, {"loss": hp["x"], "status": hp["x"]})),
                 r"'status'.*[Rr]ename it"),
    "a function in the state": (made(init=lambda hp, k: {"f": jnp.sin}),
                                r"init returned a state whose leaf \['f'\].*in step"),
    "a tracer in the structure": (
        lambda: rj.Training(
            train_state, lambda hp, s, k: (s.apply_gradients(grads=s.params), {"loss": hp["x"]})
        ),
        r"^init returned a state.*structure.*TrainState.*inject_hyperparams.*in step",
    ),
    "an nnx.Optimizer made from a number": (
        lambda: rj.Training(nnx_state, lambda hp, s, k: (s, {"loss": hp["x"]})),
        r"^init returned a state.*structure.*nnx.*inject_hyperparams.*in step",
    ),
    "unread": (lambda: rj.Training(lambda hp, k: 0, lambda hp, s, k: (s, {"loss": 1.0})),
               "never reads the axis 'x'"),
    "unknown": (made(lambda hp, s, k: (s, {"loss": hp["y"]})), r"hp\['y'\].*Add the axis"),
    "a bool": (made(lambda hp, s, k: (s, {"loss": 1.0 if hp["x"] > 1 else 0.0})),
               r"step used 'x' as.*static"),
    "a number of the key": (made(lambda hp, s, k: (s, {"loss": float(jax.random.uniform(k))
                                                               + hp["x"]})),
                            r"step used a traced value as a Python number"),
    "an init that fails": (made(init=lambda hp, k: jnp.zeros(hp["x"])),
                           r"traced value as a Python number \(.*a shape"),
    "an evaluate that fails": (made(evaluate=lambda hp, s, k: {"v": np.sin(s[0])}),
                               r"evaluate used a traced value as a NumPy array.*jax\.numpy"),
    "too few arguments": (made(lambda hp, s: (s, {})),
                          r"step\(hp, state, key, \*args\).*signature"),
    "no objective": (made(lambda hp, s, k: (s, {"cost": hp["x"]})), "'loss'.*'cost'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_training_that_does_not_fit_is_refused(case):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        rj.sweep(make(), X, steps=3, progress=False)


@pytest.mark.parametrize("leaf", TYPES, ids=["function", "str", "object", "text", "optimiser"])
def test_a_state_of_something_else_is_refused(leaf):
    with pytest.raises(ValueError, match=r"[Kk]eep arrays only"):
        rj.sweep(made(init=lambda hp, key: (hp["x"], leaf))(), X, steps=3, progress=False)
    later = lambda hp, s, key: ((s, leaf), {"loss": hp["x"]})
    with pytest.raises(ValueError, match="step returned a state whose leaf"):
        rj.sweep(made(later)(), X, steps=3, progress=False)


def test_what_the_refusal_of_a_train_state_advises_works():
    def init(hp, key):
        params = {"w": jnp.ones(2)}
        return params, rj.rmsprop(hp["x"]).init(params)

    def step(hp, state, key):
        state = train_state_module.TrainState(
            step=0, apply_fn=jnp.sin, params=state[0], tx=rj.rmsprop(hp["x"]), opt_state=state[1]
        )
        state = state.apply_gradients(grads=state.params)
        return (state.params, state.opt_state), {"loss": state.params["w"][0]}

    result = rj.sweep(rj.Training(init, step), X, steps=3, progress=False)
    assert not result.failed.any()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["TrainState", "nnx"])
def test_an_injected_optimizer_made_outside_has_the_numbers_of_the_trial(kind):
    """The first cure that the refusal names."""
    tx, x = optax.inject_hyperparams(rj.rmsprop)(learning_rate=1e-3), jnp.ones((4, 2))

    def init(hp, key):
        if kind == "nnx":
            model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
            state = model, nnx.Optimizer(model, tx, wrt=nnx.Param)
            opt_state = state[1].opt_state
        else:
            state = train_state_module.TrainState.create(
                apply_fn=jnp.dot, params={"w": jnp.ones((2, 1))}, tx=tx
            )
            opt_state = state.opt_state
        opt_state.hyperparams["learning_rate"] = hp["x"]
        return state

    def step(hp, state, key):
        if kind == "nnx":
            model, optimizer = state
            loss, grads = nnx.value_and_grad(lambda m: jnp.mean(m(x) ** 2))(model)
            optimizer.update(model, grads)
            return (model, optimizer), {"loss": loss}
        error = lambda params: jnp.mean(state.apply_fn(x, params["w"]) ** 2)
        loss, grads = jax.value_and_grad(error)(state.params)
        return state.apply_gradients(grads=grads), {"loss": loss}

    result = rj.sweep(rj.Training(init, step), rj.grid(x=[0.01, 0.1]), steps=3, progress=False)
    for i, point in enumerate(result.points):
        solver, params = rj.rmsprop(jnp.float32(point["x"])), jnp.ones((2, 1))
        if kind == "nnx":
            params = nnx.Linear(2, 1, rngs=nnx.Rngs(0)).kernel[...]
        bias, losses = jnp.zeros(1), []
        state = solver.init((params, bias))
        for _ in range(3):
            error = lambda p: jnp.mean((x @ p[0] + (p[1] if kind == "nnx" else 0)) ** 2)
            loss, grads = jax.value_and_grad(error)((params, bias))
            updates, state = solver.update(grads, state)
            params, bias = optax.apply_updates((params, bias), updates)
            losses.append(loss)
        np.testing.assert_allclose(result.metrics["loss"][i], losses, rtol=1e-5)


def test_a_train_state_whose_optimiser_is_of_no_trial_is_taken():
    tx = rj.rmsprop(0.1)
    training = rj.Training(
        lambda hp, key: train_state_module.TrainState.create(
            apply_fn=jnp.sin, params={"w": jnp.ones(2) * hp["x"]}, tx=tx
        ),
        lambda hp, s, key: (s.apply_gradients(grads=s.params), {"loss": s.params["w"][0]}),
    )
    result = rj.sweep(training, X, steps=3, evaluate_every=2, progress=False)
    state = result.state(result.best())
    assert isinstance(state, train_state_module.TrainState)
    assert state.step == 3
    alone, _ = jax.jit(lambda x, k: training.run({"x": x}, k, steps=3))(
        jnp.float32(1), jax.random.key(0)
    )
    np.testing.assert_array_equal(state.params["w"], alone.params["w"])


OPTIONS = {
    "no steps": ({}, r"steps must be .* steps=1000"),
    "steps 0": ({"steps": 0}, "steps must be an int of at least 1"),
    "steps 2.5": ({"steps": 2.5}, "steps must be an int"),
    "evaluate_every": ({"steps": 3, "evaluate_every": 0}, "evaluate_every must be an int"),
    "keep_states": ({"steps": 3, "keep_states": 3}, "keep_states must be at most .* 2"),
    "keep_states -1": ({"steps": 3, "keep_states": -1}, 'must be an int of at least 0, or "all"'),
    "keep_states best": ({"steps": 3, "keep_states": "best"}, 'or "all", got'),
    "checkpoint_seconds": ({"steps": 3, "checkpoint_seconds": -1}, "checkpoint_seconds must be"),
    "callback": ({"steps": 3, "callback": 3}, "callback must be a function"),
    "every": ({"steps": 3, "record_every": {"val": 2}}, r"record_every must name .*got \['val'\]"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_do_not_fit_are_refused(case):
    options, message = OPTIONS[case]
    with pytest.raises(ValueError, match=message):
        rj.sweep(made()(), X, progress=False, **options)


@pytest.mark.parametrize(
    "option",
    [
        {"steps": 3},
        {"evaluate_every": 3},
        {"scheduler": rj.SuccessiveHalving()},
        {"keep_states": 2},
        {"keep_states": "all"},
        {"keep_states": 0},
        {"batches": lambda t: t},
    ],
    ids=lambda options: " ".join(options),
)
def test_what_is_for_a_training_is_refused_for_a_function(option):
    (name,) = option
    with pytest.raises(ValueError, match=rf"^{name} must .*rj\.Training\(init, step\)"):
        rj.sweep(lambda hp, key: {"loss": hp["x"]}, X, progress=False, **option)


@pytest.mark.parametrize("bad", [(None, STEP), (3, STEP), (STEP, None), (STEP, STEP, 3)])
def test_a_training_is_made_of_functions(bad):
    with pytest.raises(ValueError, match="must be a function"):
        rj.Training(*bad)


def test_a_jitted_piece_is_told_to_give_the_function():
    points = rj.grid(x=[1.0], flag=[True])
    step = jax.jit(lambda hp, s, key: (s, {"loss": hp["x"] if hp["flag"] else 0.0}))
    with pytest.raises(ValueError, match=r"step .*jit.*step\.__wrapped__"):
        rj.sweep(made(step)(), points, steps=3, progress=False)


def test_failed_trials_run_to_their_end_and_are_marked():
    training = rj.Training(
        lambda hp, key: 1.0,
        lambda hp, s, key: (jnp.where(hp["x"] > 1, jnp.nan, s), {"loss": s}),
    )
    result = rj.sweep(training, X, steps=4, progress=False)
    assert result.status.tolist() == ["complete", "failed"]
    assert result.steps_completed.tolist() == [4, 4]
    assert result.best().point == {"x": 1.0}
    assert result.state({"x": 1.0}) == 1.0


def test_one_step_and_one_segment():
    result = rj.sweep(made()(), X, steps=1, progress=False)
    assert result.objective.tolist() == [1.0, 2.0]
    assert result.metrics["loss"].shape == (2, 1)


def test_lanes_of_a_while_loop_may_differ():
    def step(hp, s, key):
        s = jax.lax.while_loop(lambda c: c < hp["x"], lambda c: c + 1.0, 0.0)
        return s, {"loss": s}

    training = rj.Training(lambda hp, key: 0.0, step)
    for batch_size in (1, 2):
        result = rj.sweep(training, X, steps=3, batch_size=batch_size, progress=False)
        assert result.objective.tolist() == [1.0, 2.0]


def test_a_training_prints_its_functions():
    def init(hp, key):
        return hp["x"]

    class Step:
        def __call__(self, hp, state, key):
            return state, {"loss": state}

        def __repr__(self):
            return "a step"

    where = "test_a_training_prints_its_functions.<locals>"
    assert repr(rj.Training(init, Step())) == f"Training({where}.init, a step)"
    last = rj.Training(init, Step(), lambda hp, state, key: {})
    assert repr(last) == f"Training({where}.init, a step, {where}.<lambda>)"
