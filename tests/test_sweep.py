"""`sweep`: what it computes, what it compiles, what it survives, what it refuses."""

import collections
import contextlib
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmsprop_jax as rj
from rmsprop_jax._sweep import program

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
    structure = {k: v for k, v in point.items() if isinstance(v, bool | str) or v is None}
    numbers = {k: jnp.float32(v) for k, v in point.items() if k not in structure}
    run = jax.jit(lambda hp, key, args: train(structure | hp, key, *args))
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


def test_each_structure_compiles_once_and_a_second_call_nothing():
    traces = collections.Counter()
    points = rj.grid(
        learning_rate=[1e-3, 1e-2], decay=[0.9, 0.99], centered=rj.static([False, True])
    )
    # The small programs around the rounds (keys, hp scalars) compile here and not below.
    rj.sweep(make_train(steps=3), points, seeds=2, progress=False)
    train = make_train(steps=4, traces=traces)
    with compiles() as compiled:
        first = rj.sweep(train, points, seeds=2, progress=False)
    assert len(compiled) == 2  # two structures, 4 points and 2 seeds each
    assert traces == {False: 1, True: 1}
    with compiles() as compiled:
        second = rj.sweep(train, points, seeds=2, progress=False)
        again = rj.sweep(make_train(steps=4), points, seeds=2, progress=False)  # of another name
    assert not compiled
    for result in (second, again):
        np.testing.assert_array_equal(result.metrics["loss"], first.metrics["loss"])


def test_the_compiled_programs_that_are_kept_are_few(monkeypatch):
    monkeypatch.setattr(program, "KEPT_PROGRAMS", 2)
    for i in range(4):
        rj.sweep(lambda hp, key, i=i: {"loss": hp["x"] + i}, rj.grid(x=[1.0]), progress=False)
        assert len(program._KEPT) <= 2


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


def test_closed_over_data_is_part_of_a_kept_program():
    for value in (1.0, 2.0):
        data = jnp.full(1000, value)
        train = lambda hp, key, data=data: {"loss": hp["x"] * data.mean()}
        assert rj.sweep(train, rj.grid(x=[3.0]), progress=False).objective == 3 * value


CACHED = """
import collections, jax, rmsprop_jax as rj
from tests.test_sweep import POINTS, make_train
events = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event.split("/")[-1]]))
rj.sweep(make_train(), POINTS, progress=False)
print(events["cache_hits"], events["cache_misses"])
"""


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

    (_, missed), (hits, missed_again) = run(), run()
    assert hits == missed >= 2
    assert missed_again == 0


def test_tiny_trials_share_rounds_and_stay_bit_for_bit(monkeypatch):
    """Rounds grow, in one program; padding, a NaN and two seeds change no trial's numbers."""
    sizes, start = [], program.Program.start

    def noted(self, jobs, count, args):
        sizes.append(count)
        return start(self, jobs, count, args)

    monkeypatch.setattr(program.Program, "start", noted)
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


def test_best_is_trained_again_by_its_record():
    train = make_train()
    result = rj.sweep(train, POINTS, seeds=3, progress=False)
    best = result.best()
    means = result.objective.reshape(-1, 3).mean(1)
    assert best.point == POINTS[int(means.argmin())]
    assert best.objective == pytest.approx(means.min())
    assert best.spread == pytest.approx(result.objective.reshape(-1, 3)[means.argmin()].std(ddof=1))
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


def test_dataframe_has_a_row_a_trial_in_order():
    frame = rj.sweep(make_train(), POINTS, seeds=2, progress=False).to_dataframe()
    columns = ["learning_rate", "decay", "centered", "seed", "first", "loss", "objective", "failed"]
    assert list(frame) == columns
    assert frame["seed"].tolist() == [0, 1] * len(POINTS)
    assert frame["learning_rate"].tolist() == [p["learning_rate"] for p in POINTS for _ in range(2)]
    assert (frame["objective"] == frame["loss"]).all()


def test_none_in_an_axis_is_structure_of_its_own():
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
    assert 5 <= len(result) < len(whole)
    for trial, point in enumerate(result.point_index):
        assert result.objective[trial] == whole.objective[point]
    assert len(result.to_dataframe()) == len(result)


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
        "'loss' differs",
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
    "metric's name": (lambda hp, k: {"x": hp["x"]}, {"x": [1.0]}, {}, "rename"),
    "seeds 0": (lambda hp, k: {"loss": hp["x"]}, {"x": [1.0]}, {"seeds": 0}, "at least 1"),
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
    with pytest.raises(ValueError, match="at least one point"):
        rj.sweep(lambda hp, key: {"loss": 0.0}, [], progress=False)
