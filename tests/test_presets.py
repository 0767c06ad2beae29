"""Each preset follows the framework that it is named after: the real one, and its frozen runs."""

import importlib.util
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmsprop_jax as rj
from tests import oracles

FROZEN = np.load(oracles.FILE)
ABOUT = json.loads(str(FROZEN["about"]))
TOLERANCE = {"float32": 2e-6, "float64": 1e-12}
RATE_NAME = {preset: next(iter(inspect.signature(getattr(rj.presets, preset)).parameters))
             for preset in rj.presets.__all__}  # fmt: skip


def travel(solver, name, dtype):
    """θ_t − θ_0 after every step, by one compiled scan, summed in float64."""
    grads, start = oracles.stream(name)
    kind = jnp.result_type(dtype, jnp.complex64) if np.iscomplexobj(grads) else dtype
    grads, start = jnp.asarray(grads, kind), jnp.asarray(start, kind)

    def step(carry, g):
        params, state = carry
        updates, state = solver.update(g, state, params)
        return (optax.apply_updates(params, updates), state), updates

    run = jax.jit(lambda start, grads: jax.lax.scan(step, (start, solver.init(start)), grads)[1])
    updates = np.asarray(run(start, grads))
    return updates.astype(np.result_type(updates, np.float64)).cumsum(axis=0)


def assert_same(ours, theirs, tolerance):
    assert np.isfinite(theirs).all()
    assert abs(ours - theirs).max() <= tolerance * abs(theirs).max()


def preset(case):
    make = getattr(rj.presets, case.preset)
    return make(**{RATE_NAME[case.preset]: oracles.rate}, **case.settings)


def test_every_preset_has_an_oracle():
    assert set(rj.presets.__all__) == set(oracles.RUNNERS) == set(ABOUT)
    assert {case.name for case in oracles.CASES} == set(FROZEN.files) - {"about"}


@pytest.mark.parametrize("case", oracles.CASES, ids=lambda case: case.name)
def test_follows_the_frozen_run(case, dtype):
    ours = travel(preset(case), case.stream, dtype)
    tolerance = TOLERANCE[str(dtype)]
    if case.name == "stable_baselines3 tiny" and dtype == jnp.float32:
        # s is s₀ρᵗ alone, and the float32 nearest to .99 is 1e-8 off: a thousand times that.
        tolerance = 1e-5
    assert_same(ours[oracles.KEPT], FROZEN[case.name], tolerance)


LIVE = [case for case in oracles.CASES if case.preset in ("torch", "keras", "optax")]


@pytest.mark.parametrize("case", LIVE, ids=lambda case: case.name)
@pytest.mark.filterwarnings("default")  # theirs are not ours to turn into errors
def test_follows_the_framework_itself(case, x64):
    """All 1,000 steps; torch under its own LambdaLR."""
    if importlib.util.find_spec(case.preset) is None:
        pytest.skip(f'needs {case.preset}: pip install -e ".[oracles]"')
    assert_same(travel(preset(case), case.stream, "float64"), oracles.run(case), 1e-12)


@pytest.mark.parametrize("name", [name for name in ABOUT if ABOUT[name]["signature"]])
def test_has_the_frameworks_arguments_order_and_defaults(name):
    theirs = ABOUT[name]["signature"]
    ours = {
        p.name: "required" if p.default is p.empty else p.default
        for p in inspect.signature(getattr(rj.presets, name)).parameters.values()
        if p.kind is not p.KEYWORD_ONLY
    }
    if name == "keras":
        assert ours.pop("name") is theirs.pop("name") is None
    assert list(ours) == list(theirs)
    assert ours == theirs


# The papers' own tables.
PAPERS = {
    "graves2013": {"lr": 1e-4, "alpha": 0.95, "momentum": 0.9, "eps": 1e-4},
    "dqn2015": {
        "learning_rate": 2.5e-4, "gradient_momentum": 0.95,
        "squared_gradient_momentum": 0.95, "min_squared_gradient": 0.01,
    },
    "a3c2016": {"learning_rate": 7e-4, "alpha": 0.99, "epsilon": 0.1},
    "impala2018": {"learning_rate": 4.8e-4, "decay": 0.99, "momentum": 0.0, "epsilon": 0.1},
    "pymarl": {"lr": 5e-4, "optim_alpha": 0.99, "optim_eps": 1e-5},
}  # fmt: skip


@pytest.mark.parametrize("name", PAPERS)
def test_has_the_papers_numbers(name):
    parameters = inspect.signature(getattr(rj.presets, name)).parameters
    assert {p.name: p.default for p in parameters.values()} == PAPERS[name]


@pytest.mark.parametrize("name", rj.presets.__all__)
def test_traces_and_vmaps_over_its_learning_rate(name):
    make, g = getattr(rj.presets, name), jnp.array([0.1, -2.0])

    def step(rate):
        solver = make(rate)
        return solver.update(g, solver.init(g), g)[0]

    rates = jnp.array([0.1, 0.2])
    updates = jax.jit(jax.vmap(step))(rates)
    np.testing.assert_allclose(updates[1], 2 * updates[0], rtol=1e-6)
    np.testing.assert_allclose(updates[0], step(0.1), rtol=1e-6)


@pytest.mark.parametrize("name", ["torch", "keras", "timm", "tensorflow_v1", "tf_keras_legacy"])
def test_a_traced_momentum_of_zero_is_no_momentum(name):
    make, g = getattr(rj.presets, name), jnp.array([0.1, -2.0])

    def step(momentum):
        solver = make(0.1, momentum=momentum)
        return solver.update(g, solver.init(g), g)[0]

    expected = step(0.0)
    if name == "tf_keras_legacy":  # a tensor moves its ε into the root
        expected = -0.1 * g / jnp.sqrt(0.1 * g**2 + 1e-7)
    np.testing.assert_allclose(jax.jit(step)(jnp.float32(0)), expected, rtol=1e-6)


def test_tf_keras_takes_an_epsilon_of_zero_for_its_default():
    g = jnp.full(2, 1e-7)
    steps = [
        solver.update(g, solver.init(g))[0]
        for solver in (rj.presets.tf_keras_legacy(epsilon=eps) for eps in (0, 1e-7, 1e-8))
    ]
    np.testing.assert_array_equal(steps[0], steps[1])
    assert (steps[0] != steps[2]).all()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("keras", {"use_ema": True}, r"use_ema.*optax\.ema"),
        ("keras", {"loss_scale_factor": 128.0}, r"loss_scale_factor=128.*optax\.scale"),
        ("keras", {"gradient_accumulation_steps": 4}, r"steps=4.*MultiSteps"),
        ("keras", {"clipnorm": 1.0, "clipvalue": 1.0}, "one of clipnorm"),
        ("timm", {"caution": True}, "caution=True"),
        (
            "timm",
            {"lr": oracles.rate, "corrected_weight_decay": True, "decoupled_decay": True},
            "corrected_weight_decay",
        ),
        ("dqn2015", {"gradient_momentum": 0.9}, r"equal, got 0\.9 and 0\.95"),
        ("torch", {"weight_decay": -1.0}, "weight_decay"),
        ("torch", {"alpha": 1.0}, "decay"),
    ],
)
def test_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        getattr(rj.presets, name)(**settings)


def test_torch_keeps_half_precision_state_in_float32():
    g = jnp.ones(2, jnp.bfloat16)
    solver = rj.presets.torch(maximize=True)
    updates, state = solver.update(g, solver.init(g))
    assert updates.dtype == jnp.bfloat16
    assert optax.tree_utils.tree_get(state, "nu").dtype == jnp.float32
    assert (updates > 0).all()
