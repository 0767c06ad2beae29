"""A schedule as decay: the ρ of each step, counted by the state's own step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmsprop_jax as rj

GRADS = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
FACTOR = lambda t: 1 - (t + 1.0) ** -0.8


def run(solver, grads=GRADS):
    """The updates of a solver."""
    state, found = solver.init(jnp.zeros(5)), []
    update = jax.jit(solver.update)
    for g in grads:
        updates, state = update(jnp.asarray(g), state)
        found.append(updates)
    return np.array(found), state


SETTINGS = {
    "plain": {},
    "centered": {"centered": True, "eps": 1e-3},
    "corrected": {"bias_correction": True},
    "corrected, centered": {"bias_correction": True, "centered": True, "eps": 1e-3},
    "two bytes": {"state_dtype": "bfloat16"},
    "momentum, inside, s0": {"momentum": 0.9, "eps_in_sqrt": True, "initial_scale": 1.0},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_schedule_equals_injected_decays(name):
    schedule = optax.linear_schedule(0.2, 0.95, 20)
    ours, state = run(rj.rmsprop(0.1, schedule, **SETTINGS[name]))
    injected = optax.inject_hyperparams(
        rj.rmsprop,
        static_args=("state_dtype", "centered", "eps_in_sqrt", "bias_correction", "momentum"),
    )(0.1, decay=schedule, **SETTINGS[name])
    theirs, _ = run(injected)
    np.testing.assert_allclose(ours, theirs, rtol=2e-6)
    counts = [x for x in jax.tree.leaves(state) if x.dtype == jnp.int32]
    assert [int(x) for x in counts] == [30]


def test_adafactors_schedule_equals_optax_and_needs_no_correction():
    theirs = optax.scale_by_factored_rms(factored=False, epsilon=0.0, decay_rate=0.8)
    grads = GRADS.astype(np.float32)
    state, found = theirs.init(jnp.zeros(5)), []
    for g in grads:
        updates, state = theirs.update(jnp.asarray(g), state, jnp.zeros(5))
        found.append(updates)
    plain, _ = run(rj.scale_by_rms(FACTOR, eps=0.0))
    np.testing.assert_allclose(plain, np.array(found), rtol=1e-6)
    corrected, _ = run(rj.scale_by_rms(FACTOR, eps=0.0, bias_correction=True))
    np.testing.assert_allclose(corrected, plain, rtol=1e-6)


def test_values_are_clipped_and_nan_stays_nan():
    high, _ = run(rj.scale_by_rms(lambda t: 5.0 + 0 * t, initial_scale=1.0))
    np.testing.assert_allclose(high, GRADS, rtol=1e-4)  # s stays 1
    low, _ = run(rj.scale_by_rms(lambda t: -3.0 + 0 * t, eps=0.0))
    np.testing.assert_allclose(low, np.sign(GRADS), rtol=1e-6)  # s is g²
    nan = rj.scale_by_rms(lambda t: jnp.where(t == 1, jnp.nan, 0.5))
    found, _ = run(nan, GRADS[:3])
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1:]).all()


@pytest.mark.slow
def test_a_schedule_of_traced_numbers_is_vmapped_and_differentiated():
    def last(end):
        solver = rj.scale_by_rms(lambda t: 0.5 + (end - 0.5) * t / 30)
        state = solver.init(jnp.zeros(5))
        for g in jnp.asarray(GRADS[:5]):
            updates, state = solver.update(g, state)
        return updates.sum()

    ends = jnp.array([0.6, 0.9])
    values, slopes = jax.vmap(jax.value_and_grad(last))(ends)
    step = 1e-2
    wanted = [(last(x + step) - last(x - step)) / (2 * step) for x in ends]
    np.testing.assert_allclose(values, [last(x) for x in ends], rtol=1e-5)
    np.testing.assert_allclose(slopes, wanted, rtol=2e-2)


def test_two_bytes_keep_one_count():
    state = rj.scale_by_rms(FACTOR, state_dtype="bfloat16", bias_correction=True).init(jnp.zeros(3))
    assert [x.dtype for x in jax.tree.leaves(state)].count(jnp.int32) == 1


def test_states_with_and_without_a_schedule_are_not_mixed():
    number, schedule = rj.scale_by_rms(0.9), rj.scale_by_rms(FACTOR)
    zeros = jnp.zeros(5)
    with pytest.raises(ValueError, match=r"decay must be a number .*got a schedule.*init"):
        schedule.update(zeros, number.init(zeros))
    with pytest.raises(ValueError, match=r"with a schedule as decay.*init"):
        number.update(zeros, schedule.init(zeros))


@pytest.mark.parametrize("preset", ["torch", "keras", "timm", "mlx", "optax", "dqn2015"])
def test_presets_take_schedules_too(preset):
    make = getattr(rj.presets, preset)
    if preset == "dqn2015":
        solver = make(0.1, FACTOR, FACTOR)
    else:
        name = {"keras": "rho", "optax": "decay"}.get(preset, "alpha")
        solver = make(0.1, **{name: FACTOR})
    found, _ = run(solver)
    assert np.isfinite(found).all()
