"""`sweep`: what it computes, what it compiles, what it survives, what it refuses."""

import collections
import contextlib
import copy
import math
import operator
import os
import signal
import subprocess
import sys
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmsprop_jax as rj
from rmsprop_jax._tune.compile import compiled as program

POINTS = rj.grid(
    learning_rate=[1e-3, 1e-2, 1e-1], decay=[0.9, 0.99], centered=rj.static([False, True])
)


def make_train(steps=20, traces=None):
    def train(hp, key, scale=1.0):
        if traces is not None:
            traces[hp["centered"]] += 1
        solver = rj.rmsprop(hp["learning_rate"], decay=hp["decay"], centered=hp["centered"])
        params = scale * jax.random.normal(key, (5,))

        def step(carry, _):
            params, state = carry
            loss, grads = jax.value_and_grad(lambda p: jnp.sum(p**2 * jnp.arange(1.0, 6.0)))(params)
            updates, state = solver.update(grads, state)
            return (optax.apply_updates(params, updates), state), loss

        losses = jax.lax.scan(step, (params, solver.init(params)), length=steps)[1]
        return {"loss": losses, "first": losses[0]}

    return train


def alone(train, point, seed, *args):
    """The trial by itself, its numbers traced as a user would."""
    static = {k: v for k, v in point.items() if isinstance(v, bool | str) or v is None}
    numbers = {k: jnp.float32(v) for k, v in point.items() if k not in static}
    run = jax.jit(lambda hp, key, args: train(static | hp, key, *args))
    return run(numbers, jax.random.key(seed), args)


def test_each_trial_is_bit_for_bit_the_training_by_itself():
    assert jax.device_count() >= 2
    train, scale = make_train(), jnp.float32(3.0)
    result = rj.sweep(train, POINTS, seeds=[7, 3], args=(scale,), progress=False)
    assert len(result) == len(POINTS) * 2
    for trial in range(len(result)):
        point, seed = POINTS[trial // 2], (7, 3)[trial % 2]
        one = alone(train, point, seed, scale)
        np.testing.assert_array_equal(result.metrics["loss"][trial], one["loss"])
        assert result.metrics["first"][trial] == one["first"]
        assert result.objective[trial] == float(one["loss"][-1])


def test_any_number_of_devices_gives_the_same():
    one, all_ = (
        rj.sweep(make_train(), POINTS, devices=devices, progress=False)
        for devices in (jax.devices()[:1], jax.devices())
    )
    np.testing.assert_array_equal(one.metrics["loss"], all_.metrics["loss"])


@contextlib.contextmanager
def compiles():
    """The seconds of each compile inside."""
    seen = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_each_static_group_compiles_once_and_a_second_call_nothing():
    traces = collections.Counter()
    points = rj.grid(
        learning_rate=[1e-3, 1e-2], decay=[0.9, 0.99], centered=rj.static([False, True])
    )
    # The small programs around the rounds (keys, hp scalars) compile here and not below.
    rj.sweep(make_train(steps=3), points, seeds=2, progress=False)
    train = make_train(steps=4, traces=traces)
    with compiles() as compiled:
        first = rj.sweep(train, points, seeds=2, progress=False)
    assert len(compiled) == 2  # two static groups, 4 points and 2 seeds each
    assert traces == {False: 1, True: 1}
    with compiles() as compiled:
        second = rj.sweep(train, points, seeds=2, progress=False)
        again = rj.sweep(make_train(steps=4), points, seeds=2, progress=False)  # of another name
    assert not compiled
    for result in (second, again):
        np.testing.assert_array_equal(result.metrics["loss"], first.metrics["loss"])


def test_the_compiled_programs_that_are_kept_are_few(monkeypatch):
    monkeypatch.setattr(program, "CACHED_PROGRAMS", 2)
    for i in range(4):
        rj.sweep(lambda hp, key, i=i: {"loss": hp["x"] + i}, rj.grid(x=[1.0]), progress=False)
        assert len(program._CACHE) <= 2


def test_a_kept_program_calls_the_callback_of_its_own_train():
    """Its text does not say which function is called back."""
    for wanted in ("a", "b"):
        seen = []

        def train(hp, key, seen=seen, wanted=wanted):
            jax.debug.callback(lambda x: seen.append(wanted), hp["x"])
            return {"loss": hp["x"]}

        rj.sweep(train, rj.grid(x=[1.0]), progress=False)
        jax.effects_barrier()
        assert seen == [wanted]


def test_a_kept_program_prints_the_words_of_its_own_train(capfd):
    """Its text does not have the words."""
    for wanted in ("first words", "other words"):

        def train(hp, key, wanted=wanted):
            jax.debug.print(wanted + " {}", hp["x"])
            return {"loss": hp["x"]}

        rj.sweep(train, rj.grid(x=[1.0]), progress=False)
        jax.effects_barrier()
        assert capfd.readouterr().out == f"{wanted} 1.0\n"


def test_a_kept_program_has_the_names_of_its_own_train():
    """Two programs that differ in the names of hyperparameters and metrics have one text."""
    for axis, metric in (("x", "loss"), ("y", "loss"), ("x", "cost"), ("y", "cost")):
        train = lambda hp, key, axis=axis, metric=metric: {metric: 2 * hp[axis]}
        result = rj.sweep(train, rj.grid(**{axis: [3.0]}), objective=metric, progress=False)
        assert result.metrics == {metric: [6.0]}


def test_closed_over_data_is_part_of_a_kept_program():
    for value in (1.0, 2.0):
        data = jnp.full(1000, value)
        train = lambda hp, key, data=data: {"loss": hp["x"] * data.mean()}
        assert rj.sweep(train, rj.grid(x=[3.0]), progress=False).objective == 3 * value


CACHED = """
import collections, jax, rmsprop_jax as rj
from tests.tune.test_sweep import POINTS, make_train
events = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event.split("/")[-1]]))
rj.sweep(make_train(), POINTS, progress=False)
print(events["cache_hits"], events["cache_misses"])
"""


@pytest.mark.slow
def test_the_persistent_compilation_cache_is_used(tmp_path):
    def run():
        done = subprocess.run(
            [sys.executable, "-c", CACHED],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ
            | {
                "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            },
        )
        return tuple(map(int, done.stdout.split()))

    (found, missed), (found_again, missed_again) = run(), run()
    assert missed >= 2
    assert found_again == found + missed
    assert missed_again == 0


@pytest.mark.slow
def test_tiny_trials_share_rounds_and_stay_bit_for_bit(monkeypatch):
    """Rounds grow, in one program; padding, a NaN and two seeds change no trial's numbers."""
    sizes, start = [], program.CompiledKernel.start

    def noted(self, states, inputs, count, *where):
        sizes.append(count)
        return start(self, states, inputs, count, *where)

    monkeypatch.setattr(program.CompiledKernel, "start", noted)
    traces = collections.Counter()
    inner = make_train(steps=3, traces=traces)

    def train(hp, key):
        loss = inner({**hp, "centered": True}, key)["loss"]
        return {"loss": jnp.where(hp["learning_rate"] == 1.0, jnp.nan, loss)}

    rates = [*np.linspace(1e-3, 0.1, 50).tolist(), 1.0]
    points = rj.grid(learning_rate=rates, decay=[0.9])
    with compiles() as compiled:
        result = rj.sweep(train, points, seeds=[5, 2], progress=False)
    assert sizes[:4] == [jax.device_count()] * 4
    assert sizes[-1] > jax.device_count()
    assert sum(sizes) == len(points) * 2
    assert traces == {True: 1}
    assert len(compiled) <= 1
    run = jax.jit(train)
    for trial in range(len(result)):
        hp = {name: jnp.float32(value) for name, value in points[trial // 2].items()}
        one = run(hp, jax.random.key((5, 2)[trial % 2]))
        np.testing.assert_array_equal(result.metrics["loss"][trial], one["loss"])
    assert result.failed.sum() == 2
    assert result.failed[-2:].all()


def test_a_failed_trial_is_marked_and_touches_no_other():
    def train(hp, key):
        metrics = make_train()(hp, key)
        bad = (hp["learning_rate"] == 1e-2) & (hp["decay"] == hp["spoil"])
        return {"loss": jnp.where(bad, jnp.nan, metrics["loss"])}

    axes = {"learning_rate": [1e-3, 1e-2, 1e-1], "decay": [0.9, 0.99], "centered": [False, True]}
    whole, spoilt = (
        rj.sweep(train, rj.grid(**axes, spoil=[spoil]), progress=False) for spoil in (0.5, 0.9)
    )
    bad = np.array([p["learning_rate"] == 1e-2 and p["decay"] == 0.9 for p in spoilt.points])
    assert bad.sum() == 2
    np.testing.assert_array_equal(spoilt.failed, bad)
    assert not whole.failed.any()
    np.testing.assert_array_equal(spoilt.metrics["loss"][~bad], whole.metrics["loss"][~bad])
    assert not spoilt.failed[spoilt.points._points.index(spoilt.best().point)]
    assert spoilt.to_dataframe()["failed"].tolist() == bad.tolist()


def test_points_with_a_failed_seed_rank_after_whole_ones():
    def train(hp, key):
        seed = jax.random.key_data(key)[1]
        fails = (hp["x"] == 1) & (seed == 1)
        return {"loss": jnp.where(fails, jnp.nan, hp["x"])}

    result = rj.sweep(train, rj.grid(x=[1.0, 2.0, 3.0]), seeds=2, progress=False)
    assert result.best().point == {"x": 2.0}
    only = rj.sweep(train, rj.grid(x=[1.0]), seeds=2, progress=False)
    assert only.best().objective == 1.0


def test_best_when_all_failed_says_so():
    result = rj.sweep(lambda hp, key: {"loss": hp["x"] * jnp.nan}, rj.grid(x=[1.0]), progress=False)
    with pytest.raises(ValueError, match="1 failed"):
        result.best()


@pytest.mark.slow
def test_best_is_trained_again_by_its_record():
    train = make_train()
    result = rj.sweep(train, POINTS, seeds=3, progress=False)
    best = result.best()
    means = result.objective.reshape(-1, 3).mean(1)
    assert best.point == POINTS[int(means.argmin())]
    assert best.objective == pytest.approx(means.min())
    assert best.std == pytest.approx(result.objective.reshape(-1, 3)[means.argmin()].std(ddof=1))
    again = [float(train(best.hp, key)["loss"][-1]) for key in best.keys]
    assert np.mean(again) == pytest.approx(best.objective, rel=1e-5)
    assert rj.sweep(train, POINTS, mode="max", progress=False).best().point != best.point


def test_objective_may_be_a_function():
    result = rj.sweep(
        make_train(), POINTS, objective=lambda m: m["loss"].min() + m["first"], progress=False
    )
    np.testing.assert_allclose(
        result.objective, result.metrics["loss"].min(1) + result.metrics["first"], rtol=1e-6
    )


@pytest.mark.slow
def test_dataframe_has_a_row_a_trial_in_order():
    frame = rj.sweep(make_train(), POINTS, seeds=2, progress=False).to_dataframe()
    axes, ends = ["learning_rate", "decay", "centered"], ["status", "steps_completed"]
    assert list(frame) == [*axes, "seed", "first", "loss", "objective", "failed", *ends]
    assert frame["seed"].tolist() == [0, 1] * len(POINTS)
    assert frame["learning_rate"].tolist() == [p["learning_rate"] for p in POINTS for _ in range(2)]
    assert (frame["objective"] == frame["loss"]).all()


def test_none_in_an_axis_is_a_static_group_of_its_own():
    def train(hp, key):
        solver = rj.rmsprop(1e-2, momentum=hp["momentum"])
        state = solver.init(jnp.ones(2))
        return {
            "loss": jnp.sum(solver.update(jnp.ones(2), state)[0]),
            "has": hp["momentum"] is None,
        }

    result = rj.sweep(train, rj.grid(momentum=[None, 0.0, 0.9]), progress=False)
    assert result.metrics["has"].tolist() == [True, False, False]


def test_ctrl_c_keeps_what_is_finished():
    seen = []

    def objective(metrics):
        seen.append(1)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return metrics["loss"][-1]

    devices = jax.devices()[:1]
    with pytest.raises(rj.SweepInterrupted) as caught:
        rj.sweep(make_train(), POINTS, objective=objective, devices=devices, progress=False)
    assert isinstance(caught.value, KeyboardInterrupt)
    result, whole = caught.value.result, rj.sweep(make_train(), POINTS, progress=False)
    done = result.status == "complete"
    assert 5 <= done.sum() < len(result) == len(whole)
    np.testing.assert_array_equal(result.objective[done], whole.objective[done])
    assert len(result.to_dataframe()) == len(result)


def test_an_exit_of_the_handler_of_a_signal_keeps_what_is_finished():
    """A cluster's SIGTERM, say."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    callback = lambda report: report[0].number == 2 and os.kill(os.getpid(), signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as caught:
            rj.sweep(
                make_train(), POINTS, devices=jax.devices()[:1], callback=callback, progress=False
            )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 7
    result = caught.value.result
    assert result.point_index[result.status == "complete"].tolist() == [0, 2]  # of the first group


def test_the_bar_counts(capsys):
    rj.sweep(lambda hp, key: {"loss": hp["x"]}, rj.grid(x=[1.0, np.inf, 0.5]))
    bar = capsys.readouterr().err
    assert "3/3" in bar
    assert "failed 1, best 0.5" in bar


def test_int_axes_are_int32_and_float_axes_float32():
    def train(hp, key):
        assert hp["n"].dtype == jnp.int32
        assert hp["x"].dtype == jnp.float32
        assert hp["k"] == 3
        assert not isinstance(hp["k"], jax.Array)
        return {"loss": hp["x"] * hp["n"]}

    points = rj.grid(n=np.array([1, 2]), x=jnp.array([1.0, 2.0]), k=rj.static([3]))
    assert rj.sweep(train, points, progress=False).objective.tolist() == [1.0, 2.0, 2.0, 4.0]


def test_hp_is_a_tree_like_any_dict():
    def train(hp, key):
        half = jax.tree.map(lambda x: x / 2, hp)
        carried, _ = jax.lax.scan(lambda c, _: (c, None), hp, length=2)
        return {"loss": half["x"] + {**carried}["y"]}

    assert rj.sweep(train, rj.grid(x=[2.0], y=[1.0]), progress=False).objective.tolist() == [2.0]


REFUSED = {
    "unread axis": (
        lambda hp, k: {"loss": hp["x"]},
        {"x": [1.0], "y": [1.0]},
        {},
        "never reads.*'y'",
    ),
    "unread static": (lambda hp, k: {"loss": hp["x"]}, {"x": [1.0], "y": ["a"]}, {}, "never.*'y'"),
    "unknown name": (lambda hp, k: {"loss": hp["z"]}, {"x": [1.0]}, {}, r"hp\['z'\].*\['x'\]"),
    "no objective": (lambda hp, k: {"acc": hp["x"]}, {"x": [1.0]}, {}, "'loss'.*'acc'"),
    "no dict": (lambda hp, k: hp["x"], {"x": [1.0]}, {}, "must return a dict"),
    "shape differs": (
        lambda hp, k: {"loss": jnp.ones(hp["n"], int)},
        {"n": rj.static([2, 3])},
        {},
        "'loss' must be the same",
    ),
    "traced shape": (
        lambda hp, k: {"loss": jnp.zeros(hp["n"]).sum() + hp["x"]},
        {"x": [1.0], "n": [2, 3]},
        {},
        r"train used 'n' as a shape.*static",
    ),
    "traced bool": (
        lambda hp, k: {"loss": hp["y"] if hp["x"] > 0 else -hp["y"]},
        {"x": [1.0], "y": [2.0]},
        {},
        r"train used 'x' as .*static",
    ),
    "rank": (lambda hp, k: {"loss": jnp.ones((2, 2)) * hp["x"]}, {"x": [1.0]}, {}, r"\(2, 2\)"),
    "metric's name": (lambda hp, k: {"x": hp["x"]}, {"x": [1.0]}, {}, "'x'.*[Rr]ename"),
    "seeds 0": (lambda hp, k: {"loss": hp["x"]}, {"x": [1.0]}, {"seeds": 0}, "seeds.*at least 1"),
    "seeds twice": (lambda hp, k: {"loss": hp["x"]}, {"x": [1.0]}, {"seeds": [1, 1]}, "differ"),
    "mode": (lambda hp, k: {"loss": hp["x"]}, {"x": [1.0]}, {"mode": "best"}, "mode"),
    "devices": (lambda hp, k: {"loss": hp["x"]}, {"x": [1.0]}, {"devices": []}, "devices"),
    "args": (lambda hp, k: {"loss": hp["x"]}, {"x": [1.0]}, {"args": jnp.ones(2)}, "tuple"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_runs(case):
    train, axes, options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        rj.sweep(train, rj.grid(**axes), progress=False, **options)


def test_an_empty_list_of_points_is_refused():
    with pytest.raises(ValueError, match=r"points must have at least one point, got none\. Pass"):
        rj.sweep(lambda hp, key: {"loss": 0.0}, [], progress=False)


# Objectives that cannot be had are found before anything runs.

LOSS = lambda hp, key: {"loss": hp["x"] * jnp.arange(1.0, 4.0), "end": hp["x"]}
ONE = rj.grid(x=[1.0, 2.0])

BAD_OBJECTIVES = {
    "typo": (lambda m: m["los"], r"raised KeyError\('los'\).*end scalar, loss \[3\]"),
    "none": (lambda m: None, "must return one number, got None"),
    "array": (lambda m: m["loss"], r"one number, got an array of shape \(3,\)"),
    "text": (lambda m: "low", "must return one number, got 'low'"),
    "method": (lambda m: m["loss"].last(), "raised AttributeError"),
    "index": (lambda m: m["loss"][7], "raised IndexError"),
    "arguments": (lambda m, n: 0.0, "raised TypeError"),
    "number": (3, "metric's name or a function, got int"),
}


@pytest.mark.parametrize("case", BAD_OBJECTIVES)
def test_an_objective_is_tried_on_zeros_before_anything_runs(case):
    objective, message = BAD_OBJECTIVES[case]
    ran = []

    def train(hp, key):
        jax.debug.callback(lambda: ran.append(1))
        return LOSS(hp, key)

    with pytest.raises(ValueError, match=message):
        rj.sweep(train, ONE, objective=objective, progress=False)
    jax.effects_barrier()
    assert not ran


@pytest.mark.parametrize(
    "objective",
    [
        lambda m: 1 / float(m["end"]),
        lambda m: np.log(m["end"]),
        lambda m: math.log(m["end"]),
        lambda m: m["loss"][-1:],
        lambda m: jnp.float32(m["loss"][0]),
        lambda m: bool(m["end"] > 1),
    ],
)
def test_an_objective_that_zeros_are_not_for_is_taken(objective):
    result = rj.sweep(LOSS, ONE, objective=objective, progress=False)
    expected = [float(np.ravel(objective({n: x[i] for n, x in result.metrics.items()}))[0])
                for i in range(2)]  # fmt: skip
    assert result.objective.tolist() == expected


# Names of metrics.

BAD_NAMES = {
    "NumPy's ending": (["loss.npy"], r"'loss' and 'loss\.npy'.*[Rr]ename one"),
    "the ending twice": (["a.npy", "a.npy.npy"], r"'a\.npy' and 'a\.npy\.npy'"),
    "a NUL": (["a\0b"], r"'a\\x00b', of 3 characters"),
    "a lone surrogate": (["a\ud800"], "1 to 200 characters without"),
    "too long": (["a" * 201], "'a{59}, of 201 characters"),
    "empty": ([""], "'', of 0 characters"),
    "a number": ([3, 4], "names.*strings.*3|3; names must be strings"),
}


@pytest.mark.parametrize("where", ["train", "step", "evaluate"])
@pytest.mark.parametrize("case", BAD_NAMES)
def test_a_name_that_a_folder_cannot_hold_is_refused(case, where):
    """With a path or without: a result may be saved later."""
    names, message = BAD_NAMES[case]
    more = lambda x: dict.fromkeys(names, x)
    if where == "train":
        train, options = lambda hp, key: {"loss": hp["x"], **more(hp["x"])}, {}
    else:
        options = {"steps": 2}
        of_step = more if where == "step" else lambda x: {}
        step = lambda hp, s, key: (s, {"loss": s, **of_step(s)})
        evaluate = (lambda hp, s, key: more(s)) if where == "evaluate" else None
        train = rj.Training(lambda hp, key: hp["x"], step, evaluate)
    with pytest.raises(ValueError, match=message):
        rj.sweep(train, ONE, progress=False, **options)


@pytest.mark.slow
def test_other_names_come_back_from_a_folder(tmp_path):
    names = [
        "Loss", "train/loss", "../loss", "/loss", "a\\b", ".", "a.npy", ".npy", "a\nb", "C:", " ",
        "\u00e9", "e\u0301", "\U0001f600", "file", "a" * 200, "\u20ac" * 200,
    ]  # fmt: skip
    train = lambda hp, key: {n: hp["x"] + i * jnp.ones(2) for i, n in enumerate(["loss", *names])}
    result = rj.sweep(train, ONE, path=tmp_path, progress=False)
    loaded = rj.SweepResult.load(tmp_path)
    assert set(loaded.metrics) == {"loss", *names}
    for i, name in enumerate(["loss", *names]):
        np.testing.assert_array_equal(loaded.metrics[name][0], [1.0 + i] * 2)
        np.testing.assert_array_equal(result.metrics[name], loaded.metrics[name])
    assert {*names} <= {*result.to_dataframe()} & {*result.to_xarray()}
    assert result.best(by="a.npy").objective == 8.0


# Seeds and keys.


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([0, 2**32], r"0 and 4294967296.*same key"),
        ([-1, 2**32 - 1], "the same key"),
        ([2**63], "fit 64 bits, got 9223372036854775808"),
        ([-(2**63) - 1], "fit 64 bits"),
        (jax.random.key(0), r"PRNG keys.*jax\.random\.key\(s\)"),
        ("01", "count or a sequence"),
        ([1.5], "count or a sequence"),
        ([True], "count or a sequence"),
        (b"01", "count or a sequence"),
        (np.array([1.0, 2.0]), "count or a sequence"),
        (np.array([True]), "count or a sequence"),
        (np.array([[1, 2]]), "count or a sequence"),
        (np.array(1.0), "count or a sequence"),
        (np.array([], int), "count or a sequence"),
        (np.array([2**63], np.uint64), "fit 64 bits"),
        (np.int64(0), "at least 1, got 0"),
        (jax.random.PRNGKey(5), "PRNG keys"),
        ([jax.random.key(0)], "PRNG keys"),
    ],
)
def test_seeds_that_are_no_seeds_are_refused(seeds, message):
    with pytest.raises(ValueError, match=message):
        rj.sweep(make_train(), POINTS, seeds=seeds, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "seeds",
    [
        np.int64(3),
        np.uint8(3),
        np.array(3),
        jnp.int32(3),
        jnp.asarray(3),
        np.arange(3),
        np.arange(3, dtype=np.uint8),
        np.arange(3).astype(object),
        np.arange(6, dtype=">i4")[::2] // 2,
        jnp.arange(3),
        [np.int64(0), jnp.int32(1), np.array(2)],
        range(3),
        {0: "a", 1: "b", 2: "c"},
    ],
    ids=lambda seeds: f"{type(seeds).__name__} {seeds}",
)
def test_numbers_and_arrays_of_numpy_and_jax_are_seeds(seeds, tmp_path):
    train = lambda hp, key: {"loss": hp["x"] + jax.random.uniform(key)}
    result = rj.sweep(train, ONE, seeds=seeds, path=tmp_path, progress=False)
    assert result.seeds == (0, 1, 2)
    assert set(map(type, result.seeds)) == {int}
    assert rj.SweepResult.load(tmp_path).seeds == (0, 1, 2)
    expected = [1 + jax.random.uniform(jax.random.key(seed)) for seed in range(3)]
    np.testing.assert_array_equal(result.objective[:3], np.array(expected, float))


def test_seeds_of_64_bits_are_their_own_under_x64(x64):
    train = lambda hp, key: {"loss": hp["x"] + jax.random.uniform(key)}
    result = rj.sweep(train, rj.grid(x=[1.0]), seeds=[0, 2**32, -(2**63)], progress=False)
    assert len(set(result.objective.tolist())) == 3


def test_seeds_of_a_train_that_reads_no_key_are_warned_of():
    with pytest.warns(UserWarning, match="never reads its key, so its 3 seeds are 3 times"):
        rj.sweep(LOSS, ONE, seeds=3, progress=False)
    rj.sweep(LOSS, ONE, seeds=[7], progress=False)  # one seed repeats nothing
    partly = lambda hp, key: {"loss": hp["x"] + (jax.random.uniform(key) if hp["noisy"] else 0.0)}
    rj.sweep(partly, rj.grid(x=[1.0], noisy=[False, True]), seeds=2, progress=False)


# `every`.


def test_every_keeps_what_is_no_series_of_steps_whole():
    """Four parameters, a longer vector, five evaluations, beside fifty losses."""
    train = lambda hp, key: {
        "loss": hp["x"] * jnp.arange(50.0),
        "params": jnp.arange(4.0),
        "long": jnp.arange(100.0),
        "evaluations": jnp.arange(5.0),
        "end": hp["x"],
    }
    shapes = lambda result: {name: x.shape[1:] for name, x in result.metrics.items()}
    whole = {"loss": (5,), "params": (4,), "long": (100,), "evaluations": (5,), "end": ()}
    assert shapes(rj.sweep(train, ONE, record_every=10, progress=False)) == whole
    by_name = rj.sweep(train, ONE, record_every={"loss": 25, "long": 50}, progress=False)
    assert shapes(by_name) == whole | {"loss": (2,), "long": (2,)}
    assert by_name.steps["long"].tolist() == [50, 100]
    by_length = rj.sweep(train, ONE, objective="end", record_every=50, progress=False)
    assert shapes(by_length) == whole | {"loss": (50,), "long": (2,)}
    with pytest.raises(ValueError, match=r"record_every must name .*got \['end'\]"):
        rj.sweep(train, ONE, record_every={"end": 2}, progress=False)
    with pytest.raises(ValueError, match=r"every\['loss'\] must be an int of at least 1"):
        rj.sweep(train, ONE, record_every={"loss": 0}, progress=False)


# hp is read in any way that a dict is.

READS = {
    "item": lambda hp: hp["x"] + hp["y"],
    "get": lambda hp: hp.get("x") + hp.get("y", 0),
    "pop": lambda hp: hp.pop("x") + hp.pop("y"),
    "popitem": lambda hp: hp.popitem()[1] + hp.popitem()[1],
    "setdefault": lambda hp: hp.setdefault("x", 9.0) + hp.setdefault("y"),
    "values": lambda hp: sum(hp.values()),
    "items": lambda hp: sum(x for _, x in hp.items()),
    "iteration": lambda hp: sum(hp[name] for name in hp),
    "keys": lambda hp: sum(hp[name] for name in hp.keys()),  # noqa: SIM118
    "or": lambda hp: sum((hp | {}).values()),
    "ror": lambda hp: sum(({"z": 0.0} | hp).values()),
    "copy": lambda hp: sum(hp.copy().values()),
    "copy.copy": lambda hp: sum(copy.copy(hp).values()),
    "copy.deepcopy": lambda hp: sum(copy.deepcopy(hp).values()),
    "dict": lambda hp: sum(dict(hp).values()),
    "unpacked": lambda hp: sum({**hp}.values()),
    "keywords": lambda hp: (lambda x, y: x + y)(**hp),
    "match": lambda hp: read_by_match(hp),
    "itemgetter": lambda hp: sum(operator.itemgetter("x", "y")(hp)),
    "namespace": lambda hp: (lambda n: n.x + n.y)(types.SimpleNamespace(**hp)),
    "tree": lambda hp: sum(jax.tree.leaves(hp)),
    "jit": lambda hp: jax.jit(lambda hp: hp["x"] + hp["y"])(hp),
    "update": lambda hp: (hp.update(z=0.0), sum(hp.values()))[1],
}


def read_by_match(hp):
    match hp:
        case {"x": x, "y": y}:
            return x + y


@pytest.mark.parametrize("way", READS)
def test_every_way_to_read_hp_counts(way):
    train = lambda hp, key: {"loss": READS[way](hp)}
    result = rj.sweep(train, rj.grid(x=[1.0, 2.0], y=[10.0]), progress=False)
    assert result.objective.tolist() == [11.0, 12.0]


def test_hp_as_an_attribute_says_how_to_write_it():
    with pytest.raises(AttributeError, match=r"[Ww]rite hp\['x'\] instead of hp\.x"):
        rj.sweep(lambda hp, key: {"loss": hp.x}, ONE, progress=False)


# Settings and calls around it.

KIND = jax.sharding.AxisType
MESH = lambda kind: jax.make_mesh((2,), ("data",), axis_types=(kind,))
AROUND = {
    "an auto mesh": lambda: jax.set_mesh(MESH(KIND.Auto)),
    "an explicit mesh": lambda: jax.set_mesh(MESH(KIND.Explicit)),
    "disable_jit": lambda: jax.disable_jit(),
    "a transfer guard": lambda: jax.transfer_guard("disallow"),
    "a strict transfer guard": lambda: jax.transfer_guard("disallow_explicit"),
    "debug_nans": lambda: jax.debug_nans(True),
    "strict dtypes": lambda: jax.numpy_dtype_promotion("strict"),
    "strict ranks": lambda: jax.numpy_rank_promotion("raise"),
    "another device": lambda: jax.default_device(jax.devices()[1]),
    "leak checks": lambda: jax.check_tracer_leaks(True),
    "precision": lambda: jax.default_matmul_precision("highest"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", AROUND)
def test_settings_around_a_sweep_change_nothing(name):
    data = jnp.arange(4.0)
    train = lambda hp, key, x: {"loss": hp["x"] * x.sum() + jax.random.uniform(key, dtype=x.dtype)}
    expected = rj.sweep(train, ONE, seeds=2, args=(data,), progress=False)
    with AROUND[name]():
        found = rj.sweep(train, ONE, seeds=2, args=(data,), progress=False)
    np.testing.assert_array_equal(found.objective, expected.objective)


def test_another_implementation_of_keys_has_other_numbers():
    train = lambda hp, key: {"loss": hp["x"] + jax.random.uniform(key)}
    with jax.default_prng_impl("rbg"):
        found = rj.sweep(train, ONE, progress=False)
        alone = jax.jit(train)({"x": jnp.float32(1)}, jax.random.key(0))
    assert found.objective[0] == alone["loss"]
    assert found.objective[0] != rj.sweep(train, ONE, progress=False).objective[0]


SAID = {
    "devices by name": ({"devices": "cpu"}, r"got 'cpu'.*jax\.devices\('cpu'\)"),
    "devices twice": ({"devices": jax.devices()[:1] * 2}, "devices must differ"),
    "a number of devices": ({"devices": [0]}, r"JAX devices, got \[0\].*jax\.devices\(\)"),
    "too many args": ({"args": (1.0,)}, r"with 1 args, but its signature is train\(hp, key\)"),
    "a word in args": ({"args": ({"a": "b"},)}, r"args\[0\]\['a'\] .*'b', a str.*close over it"),
}


@pytest.mark.parametrize("case", SAID)
def test_arguments_that_do_not_fit_are_said_with_a_remedy(case):
    options, message = SAID[case]
    takes_args = lambda hp, key, *args: {"loss": hp["x"]}

    def train(hp, key):
        return {"loss": hp["x"]}

    with pytest.raises(ValueError, match=message):
        rj.sweep(takes_args if "word" in case else train, ONE, progress=False, **options)


def test_one_device_may_be_given_alone():
    assert len(rj.sweep(LOSS, ONE, devices=jax.devices()[1], progress=False)) == 2


@pytest.mark.parametrize("train", [3, None, "train"])
def test_a_train_that_is_no_function_is_refused(train):
    with pytest.raises(ValueError, match="train must be a function"):
        rj.sweep(train, ONE, progress=False)


def test_an_array_instead_of_a_dict_is_called_so():
    with pytest.raises(ValueError, match=r'train must return.*got an array.*{"loss": losses}'):
        rj.sweep(lambda hp, key: hp["x"], ONE, progress=False)


def test_a_long_program_is_warned_of(monkeypatch):
    monkeypatch.setattr("rmsprop_jax._tune.experiment_checks.LONG_PROGRAM", 100)

    def train(hp, key):
        loss = hp["x"]
        for _ in range(60):
            loss = jnp.sin(loss) + 1
        return {"loss": loss}

    with pytest.warns(UserWarning, match=r"1\d\d equations.*jax\.lax\.scan"):
        rj.sweep(train, ONE, progress=False)


IDLE = """
import jax, os, rmsprop_jax as rj
os.sched_getaffinity = lambda _: set(range(8))
jax.config.update("jax_num_cpu_devices", DEVICES)
train = lambda hp, key: {"loss": hp["x"]}
rj.sweep(train, rj.grid(x=[1.0]), progress=PROGRESS)
"""


@pytest.mark.slow
def test_idle_cores_are_said_in_one_line():
    def said(devices, progress):
        code = IDLE.replace("DEVICES", str(devices)).replace("PROGRESS", str(progress))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [line for line in done.stderr.splitlines() if "jax_num_cpu_devices" in line]

    (line,) = said(1, True)
    assert 'jax.config.update("jax_num_cpu_devices", 8)' in line
    assert not said(2, True)


def test_ctrl_c_says_that_the_process_may_live_on():
    def objective(metrics):
        if metrics["end"]:
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(rj.SweepInterrupted, match=r"holds the finished trials.*can only end after"):
        rj.sweep(LOSS, ONE, objective=objective, progress=False)


def test_many_static_groups_compile_side_by_side(monkeypatch):
    """In threads, ahead of their turn; each is compiled once and all numbers are right."""
    threads = set()
    compile_ = program.CompiledKernel.compile

    def noted(self):
        threads.add(threading.current_thread().name)
        return compile_(self)

    monkeypatch.setattr(program.CompiledKernel, "compile", noted)
    train = lambda hp, key: {"loss": hp["x"] * jnp.ones(hp["n"]).sum()}
    points = rj.grid(n=rj.static(list(range(1, 9))), x=[1.0, 2.0])
    with compiles() as compiled:
        result = rj.sweep(train, points, progress=False)
    assert len(compiled) == 8
    assert result.objective.tolist() == [x * n for n in range(1, 9) for x in (1.0, 2.0)]
    assert sum(name.startswith("compile") for name in threads) > 1


def test_a_compile_that_fails_says_so(monkeypatch):
    monkeypatch.setattr(program, "_compiled", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        rj.sweep(LOSS, ONE, progress=False)
    assert set(caught.value.result.status) == {"unfinished"}


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["jax_debug_nans", "jax_debug_infs"])
@pytest.mark.parametrize("form", ["function", "training"])
def test_a_failed_trial_touches_no_other_while_jax_looks_for_nan(flag, form):
    worse = jnp.nan if "nan" in flag else jnp.inf

    def step(hp, state, key):
        state = jnp.where(hp["x"] > 1, state * worse, state * hp["x"])
        return state, {"loss": state}

    def train(hp, key):
        return {"loss": jax.lax.scan(lambda s, _: (step(hp, s, key)[0],) * 2, 1.0, length=4)[1]}

    if form == "training":
        train, options = rj.Training(lambda hp, key: 1.0, step), {"steps": 4}
    else:
        options = {}
    points = rj.grid(x=[0.5, 2.0, 1.0])
    with jax.debug_nans(flag == "jax_debug_nans"), jax.debug_infs(flag == "jax_debug_infs"):
        result = rj.sweep(train, points, progress=False, **options)
        assert result.objective[[0, 2]].tolist() == [0.0625, 1.0]
        assert result.failed.tolist() == [False, True, False]
        again = result.retrain(points[1], seed=0)
        metrics = again[1] if form == "training" else again
        np.testing.assert_array_equal(metrics["loss"], result.metrics["loss"][1])


def writers():
    """Objectives that change their metrics."""

    def item(m):
        m["loss"][0] = 0.0
        return m["loss"].sum()

    def augmented(m):
        loss = m["loss"]
        loss -= loss.min()
        return loss[-1]

    def sorts(m):
        m["loss"].sort()
        return m["loss"][0]

    def out(m):
        return np.clip(m["loss"], 0, 1, out=m["loss"]).sum()

    return {f.__name__: f for f in (item, augmented, sorts, out)}


@pytest.mark.parametrize("name", writers())
def test_an_objective_that_writes_into_the_metrics_is_refused(name, tmp_path):
    """Before anything runs, and wherever a result is ranked anew: it would change the result."""
    objective = writers()[name]
    refused = pytest.raises(ValueError, match=r"must not write.*x = x\.copy\(\)")
    ran = []
    with refused:
        rj.sweep(make_train(), POINTS, objective=objective, progress=False, callback=ran.append)
    assert ran == []
    result = rj.sweep(make_train(), POINTS, progress=False, path=tmp_path)
    before = {n: x.copy() for n, x in result.metrics.items()}
    with refused:
        result.best(by=objective)
    with refused:
        rj.SweepResult.load(tmp_path, objective=objective)
    for metric, values in before.items():
        np.testing.assert_array_equal(result.metrics[metric], values)
    result.metrics["loss"][0] = 0.0  # the result's arrays are the user's


def test_an_objective_may_write_into_copies():
    def objective(m):
        loss = m["loss"].copy()
        loss -= loss.min()
        return loss[-1]

    result = rj.sweep(make_train(), POINTS, objective=objective, progress=False)
    np.testing.assert_allclose(
        result.objective, result.metrics["loss"][:, -1] - result.metrics["loss"].min(1), rtol=1e-6
    )
