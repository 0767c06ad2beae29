"""Bias correction divides by the weight that the averages hold, also after the decay changed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmsprop_jax as rj
from tests.support import reference
from tests.support.steps import stay
from tests.support.tables import crossed, few

get = optax.tree_utils.tree_get


def jump(step):
    """0.9 for 100 steps, then 0.999."""
    return jnp.where(step < 100, 0.9, 0.999)


def updates_of(rmsprop, grads, decays, **settings):
    """The updates under a decay that is injected at each step."""
    schedule = lambda t: jnp.asarray(decays)[t]
    return stay(optax.inject_hyperparams(rmsprop)(decay=schedule, **settings), jnp.asarray(grads))


def test_a_constant_gradient_takes_steps_of_the_learning_rate_after_the_decay_jumps():
    solver = optax.inject_hyperparams(rj.rmsprop)(1.0, decay=jump, eps=0.0, bias_correction=True)
    _, updates = stay(solver, jnp.ones(200))
    np.testing.assert_allclose(updates, -1.0, rtol=1e-5)


def test_optax_takes_a_shorter_step_and_its_preset_keeps_it(x64):
    settings = {"decay": jump, "bias_correction": True}
    grads = jnp.ones(200)
    theirs = stay(optax.inject_hyperparams(optax.rmsprop)(1.0, **settings), grads)[1]
    assert theirs[100] == pytest.approx(-0.31, abs=0.01)
    ours = stay(optax.inject_hyperparams(rj.presets.optax)(1.0, **settings), grads)[1]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


DECAYS = {
    "jump": np.where(np.arange(150) < 100, 0.9, 0.999),
    "down": np.where(np.arange(150) < 100, 0.999, 0.5),
    "adafactor": 1 - (np.arange(150) + 1.0) ** -0.8,
    "random": np.random.default_rng(0).uniform(0.0, 0.999, 150),
    "zeros": np.where(np.arange(150) % 7 == 3, 0.0, 0.9),
}


@pytest.mark.parametrize(
    ("name", "bias_correction", "centered", "initial_scale"),
    crossed(list(DECAYS), [False, True], [True, False], [0.0, 1.0]),
)
def test_a_changing_decay_follows_the_equations(
    x64, name, bias_correction, centered, initial_scale
):
    settings = {"initial_scale": initial_scale, "eps": 1e-3, "eps_in_sqrt": True}
    settings |= {"centered": centered, "bias_correction": bias_correction}
    grads = np.random.default_rng(1).normal(size=(150, 4)) + 0.5
    _, got = updates_of(rj.rmsprop, grads, DECAYS[name], learning_rate=1.0, **settings)
    want = reference.rmsprop(grads, 1.0, DECAYS[name], **settings)
    np.testing.assert_allclose(got, want, rtol=1e-9 if centered else 1e-12)


def test_the_start_does_not_come_back_to_life():
    """Centered, s₀ = 1: its share is the product of the decays, whatever the last decay is."""
    grads = 0.1 * np.random.default_rng(2).normal(size=(120, 3))
    decays = np.where(np.arange(120) < 100, 0.9, 0.9999)
    settings = {"initial_scale": 1.0, "centered": True, "bias_correction": True}
    _, got = updates_of(rj.rmsprop, np.float32(grads), decays, learning_rate=1.0, **settings)
    want = reference.rmsprop(grads, 1.0, decays, **settings)
    np.testing.assert_allclose(got[100:], want[100:], rtol=1e-3)


@pytest.mark.parametrize("steps", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("w", [np.float32(1e-3), np.float32(1e-7)])
def test_the_weight_does_not_drift(w, steps):
    """1 − (1 − w)ᵗ in float32, to 3e-8 at any step, and the product of the decays beside it."""
    w = float(w)
    solver = rj.scale_by_rms(decay=1 - w, bias_correction=True)
    zero = jnp.zeros(())
    body = lambda state, _: (solver.update(zero, state)[1], state.weight)
    state, (high, low) = jax.jit(
        lambda: jax.lax.scan(body, solver.init(zero), length=steps, unroll=8)
    )()
    t = np.arange(steps)
    exact = -np.expm1(t * np.log1p(-w))
    got = np.asarray(high, float) + np.asarray(low, float)
    np.testing.assert_allclose(got, exact, rtol=3e-8, atol=0)
    product = (1 - np.asarray(high, float)) - np.asarray(low, float)
    np.testing.assert_allclose(product[:5000], 1 - exact[:5000], rtol=1e-5)
    assert int(state.step) == steps


@pytest.mark.parametrize(("initial_scale", "decay"), crossed([0.0, 1.0], [0.0, 0.9, 0.999]))
def test_optax_in_float64(x64, decay, initial_scale):
    grads = np.random.default_rng(3).normal(size=(1_000, 5))
    settings = {"decay": decay, "initial_scale": initial_scale, "bias_correction": True}
    ours = stay(rj.rmsprop(1.0, eps_in_sqrt=True, **settings), jnp.asarray(grads))[1]
    theirs = stay(optax.rmsprop(1.0, **settings), jnp.asarray(grads))[1]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("eps_in_sqrt", [False, True])
@pytest.mark.parametrize("make", [rj.rmsprop, rj.presets.optax], ids=["rmsprop", "preset"])
def test_the_first_centered_step_is_that_of_one_gradient(make, eps_in_sqrt, eps):
    """Its variance is 0, and g/ε would be 1e5 times too long."""
    settings = {"eps": eps, "eps_in_sqrt": eps_in_sqrt, "centered": True, "bias_correction": True}
    for g in (1.0, -3.0, 1e-4, 1e10):
        solver = make(1e-3, **settings)
        u, _ = solver.update(jnp.float32(g), solver.init(jnp.float32(0)))
        assert abs(u) <= 1e-3 * (1 + 1e-6)
        assert abs(u) > 0.7e-3 or eps_in_sqrt
        assert np.sign(u) == -np.sign(g)


@pytest.mark.slow
def test_the_first_centered_step_with_momentum_and_in_every_dtype(x64):
    for dtype in ("bfloat16", "float16", "float32", "float64", "complex64"):
        solver = rj.rmsprop(1e-3, centered=True, momentum=0.9, bias_correction=True)
        g = jnp.ones(3, dtype)
        u, _ = solver.update(g, solver.init(g))
        np.testing.assert_allclose(np.asarray(abs(u), float), 1e-3, rtol=2**-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("centered", "decay"),
    crossed([False, True], [0.0, 0.9, 0.9999], plain=["False-0.0", "True-0.9"]),
)
def test_derivatives_in_the_decay(x64, decay, centered):
    """Forward and reverse, first and second, beside those of the sums written out."""
    grads = jnp.asarray(np.random.default_rng(4).normal(size=(4, 3)) + 0.5)
    weights = jnp.asarray(np.random.default_rng(5).normal(size=(4, 3)))
    settings = {"eps": 0.1, "bias_correction": True, "centered": centered, "initial_scale": 0.2}

    def ours(decay):
        return jnp.sum(weights * stay(rj.scale_by_rms(decay, **settings), grads)[1])

    def sums(decay):
        total = 0.0
        for t in range(1, 5):
            w = jnp.stack([(1 - decay) * decay**k for k in range(t - 1, -1, -1)])
            w, rest = w / w.sum(), decay**t / w.sum()
            g = grads[:t]
            v = w @ g**2 - (w @ g) ** 2 if centered and t > 1 else w @ g**2
            total += jnp.sum(weights[t - 1] * g[-1] / (jnp.sqrt(v + 0.2 * rest) + 0.1))
        return total

    if centered and decay == 0:  # the variance is rounding error there: finite is all
        assert np.isfinite([jax.grad(ours)(decay), jax.jvp(ours, (decay,), (1.0,))[1]]).all()
        return
    of = lambda f, x: (jax.grad(f)(x), jax.jvp(f, (x,), (1.0,))[1], jax.grad(jax.grad(f))(x))
    (reverse, forward, second), (want, _, want_second) = jax.jit(
        lambda x: (of(ours, x), of(sums, x))
    )(decay)
    np.testing.assert_allclose([reverse, forward], [want] * 2, rtol=1e-6)
    np.testing.assert_allclose(second, want_second, rtol=1e-5)


def test_a_state_without_its_weight_is_refused_with_the_line_that_converts_it(x64):
    """As it was written before the weight was kept, for a constant decay."""
    decay, solver = 0.95, rj.scale_by_rms(decay=0.95, bias_correction=True)
    grads = jnp.asarray(np.random.default_rng(6).normal(size=(30, 4)))
    state, _ = stay(solver, grads)
    old = rj.ScaleByRmsState(state.step, state.mu, state.nu)
    with pytest.raises(ValueError, match=r"bias_correction=True.*weight") as caught:
        solver.update(grads[0], old)
    line = str(caught.value).split("convert the state: ")[1].removesuffix(".")
    converted = eval(line, {"state": old, "decay": decay, "jnp": jnp})
    for got, want in zip(converted.weight, state.weight, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)
    ours, _ = solver.update(grads[0], converted)
    np.testing.assert_allclose(ours, solver.update(grads[0], state)[0], rtol=1e-6)


def test_the_weight_is_kept_with_bias_correction_only_and_under_no_others_name():
    params = jnp.ones(2)
    assert get(rj.rmsprop().init(params), "weight") is None
    assert get(rj.rmsprop(state_dtype="bfloat16").init(params), "weight") is None
    solver = optax.inject_hyperparams(rj.rmsprop)(1.0, bias_correction=True, weight_decay=0.1)
    state = solver.update(params, solver.init(params), params)[1]
    assert float(get(state, "weight")[0]) == pytest.approx(0.1)
    assert get(state, "count") == 1  # the injection's own
    assert get(state, "decay") == pytest.approx(0.9)
    assert get(state, "step") == 1


def test_a_leaf_without_a_gradient_gathers_less_than_the_weight():
    """Its later steps are longer by √(W/its own weight), as the docstring of the state says."""
    solver = rj.scale_by_rms(0.5, eps=0.0, bias_correction=True)
    state = solver.init({"a": jnp.ones(()), "b": jnp.ones(())})
    one = jnp.ones(())
    _, state = solver.update({"a": one, "b": None}, state)
    u, _ = solver.update({"a": one, "b": one}, state)
    assert float(u["a"]) == pytest.approx(1.0)
    assert float(u["b"]) == pytest.approx((0.75 / 0.5) ** 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bias_correction", "decay"),
    crossed(
        [False, True],
        [1e-45, 1e-38, 1e-30, 1e-20, 1e-10, 2.0**-23, 1e-4],
        plain=["False-1e-45", "True-1e-20", "True-0.0001"],
    ),
)
def test_a_tiny_decay_keeps_the_centered_state_finite(decay, bias_correction):
    """The rounding error of g − m counts ρ⁻¹ times: unbounded, it overflows."""
    rng = np.random.default_rng(7)
    grads = jnp.asarray(10 ** rng.uniform(-38, 38, (100, 40)) * rng.choice([-1, 1], (100, 40)))
    grads = grads.astype(jnp.float32)
    solver = rj.scale_by_rms(decay, eps=0.0, centered=True, bias_correction=bias_correction)
    state, updates = stay(solver, grads)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state, updates)))
    assert (state.nu >= 0).all()


@pytest.mark.parametrize("decay", few([1e-20, 1e-12], [1e-20]))
def test_a_tiny_decay_in_float64_and_beside_a_short_state(x64, decay):
    grads = jnp.asarray(np.random.default_rng(8).normal(size=(50, 5)) * 1e18)
    for state_dtype in (None, "float32", "bfloat16"):
        solver = rj.scale_by_rms(decay, centered=True, state_dtype=state_dtype)
        state, updates = stay(solver, grads)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((state, updates)))
