"""`cautious`, against the equations of the paper in NumPy, and timm's runs in `test_presets.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmsprop_jax as rj

RNG = np.random.default_rng(0)
GRADS = RNG.normal(size=(40, 2, 3)) * np.where(RNG.random((40, 2, 3)) < 0.2, 0, 1)


def masked(u, g):
    """The mask in float64: timm's lines, with signs."""
    mask = (np.sign(-u) * np.sign(g) > 0).astype(np.float64)
    return u * mask / max(mask.mean(), 1e-3)


def both(make, dtype=jnp.float32, grads=GRADS):
    """The updates of an optimizer, plain and cautious, and the last states of both."""
    plain, careful = make(), rj.cautious(make())
    params = jnp.zeros(grads.shape[1:], dtype)
    states, found = [plain.init(params), careful.init(params)], []
    for g in grads:
        g = jnp.asarray(g, dtype)
        one, states[0] = plain.update(g, states[0], params)
        other, states[1] = careful.update(g, states[1], params)
        found.append((g, one, other))
    return found, states


MAKE = {
    "rmsprop": lambda: rj.rmsprop(0.1, momentum=0.9),
    "rmsprop, outside": lambda: rj.rmsprop(0.1, momentum=0.9, lr_in_momentum=False),
    "adam": lambda: optax.adam(0.1),
    "sgd": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "no momentum": lambda: rj.rmsprop(0.1),
}


@pytest.mark.parametrize("name", MAKE)
def test_equals_the_equations_and_keeps_the_state(name):
    found, (plain, careful) = both(MAKE[name])
    for g, one, other in found:
        wanted = masked(np.asarray(one, np.float64), np.asarray(g, np.float64))
        np.testing.assert_allclose(other, wanted, rtol=1e-6)
        assert (np.asarray(other) * np.asarray(g) <= 0).all()
    jax.tree.map(np.testing.assert_array_equal, plain, careful)


def test_a_part_of_zero_is_masked_and_the_others_become_longer():
    solver = rj.cautious(optax.sgd(1.0))
    g = jnp.array([0.0, 1.0, -2.0, 0.0])
    updates, _ = solver.update(g, solver.init(g))
    np.testing.assert_allclose(updates, [0, -2, 4, 0])


@pytest.mark.slow
def test_the_share_is_at_least_a_thousandth():
    solver = rj.cautious(optax.sgd(1.0))
    g = jnp.zeros(10_000).at[3].set(1.0)
    updates, _ = solver.update(g, solver.init(g))
    assert updates[3] == pytest.approx(-1000, rel=1e-6)
    nothing, _ = solver.update(jnp.zeros(3), solver.init(jnp.zeros(3)))
    np.testing.assert_array_equal(nothing, 0)


def test_tiny_numbers_keep_their_sign_and_nan_is_not_hidden():
    solver = rj.cautious(optax.sgd(1e-30))
    g = jnp.array([1e-30, -1e-30])  # a product would be 0 in float32
    updates, _ = rj.cautious(optax.sgd(1.0)).update(g, solver.init(g))
    np.testing.assert_array_equal(updates, -g)
    g = jnp.array([jnp.nan, 1.0])
    updates, _ = solver.update(g, solver.init(g))
    assert np.isnan(updates[0])
    assert np.isfinite(updates[1])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_narrow_updates_are_scaled_in_float32(dtype):
    found, _ = both(lambda: rj.rmsprop(0.1, momentum=0.9), dtype)
    for g, one, other in found:
        assert other.dtype == dtype
        wanted = masked(np.asarray(one, np.float64), np.asarray(g, np.float64))
        wanted = np.asarray(jnp.asarray(wanted, dtype), np.float64)
        np.testing.assert_allclose(np.asarray(other, np.float64), wanted, rtol=2e-7)


def test_trees_with_none_empty_and_complex_leaves():
    params = {"a": jnp.ones(2), "none": None, "empty": jnp.zeros((0, 3)), "z": jnp.ones(2) * 1j}
    solver = rj.cautious(rj.rmsprop(0.1, momentum=0.9))
    state = solver.init(params)
    with jax.debug_nans(True):
        for sign in (1.0, -0.1):
            grads = jax.tree.map(lambda p, s=sign: s * jnp.ones_like(p) * (1 + 0 * p), params)
            updates, state = solver.update(grads, state)
    assert updates["none"] is None
    assert updates["empty"].shape == (0, 3)
    assert jnp.iscomplexobj(updates["z"])
    np.testing.assert_array_equal(updates["a"], 0)  # the buffer points uphill
    np.testing.assert_array_equal(updates["z"], 0)


def test_works_under_jit_vmap_scan_and_passes_extra_args():
    def run(rate):
        solver = rj.cautious(rj.rmsprop(rate, momentum=0.9))

        def step(state, g):
            updates, state = solver.update(g, state)
            return state, updates

        return jax.lax.scan(step, solver.init(jnp.zeros((2, 3))), jnp.asarray(GRADS, jnp.float32))[
            1
        ]

    rates = jnp.array([0.1, 0.2])
    found = jax.jit(jax.vmap(run))(rates)
    np.testing.assert_allclose(found[1], 2 * found[0], rtol=1e-5)
    search = optax.chain(rj.cautious(optax.sgd(1.0)), optax.scale_by_backtracking_linesearch(10))
    params = jnp.array([1.0, -2.0])
    loss = lambda p: jnp.sum(p**2)
    value, grad = jax.value_and_grad(loss)(params)
    updates, _ = search.update(
        grad, search.init(params), params, value=value, grad=grad, value_fn=loss
    )
    assert loss(params + updates) < value


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_the_presets_order_is_that_of_the_docstring(decoupled, inside):
    """Coupled decay before, decoupled decay after; the schedule has the same η in both places."""
    schedule = optax.linear_schedule(0.1, 0.01, 20)
    settings = {"lr_in_momentum": inside, "weight_decay": 0.3, "decoupled_decay": decoupled}
    ours = rj.presets.timm(schedule, momentum=0.9, caution=True, **settings)
    careful = rj.cautious(rj.presets.timm(schedule, momentum=0.9, lr_in_momentum=inside))
    params = jnp.array([3.0, -4.0, 0.5])
    one, other = params, params
    states = ours.init(params), careful.init(params)
    for t, g in enumerate(jnp.asarray(GRADS[:, 0], jnp.float32)):
        updates, first = ours.update(g, states[0], one)
        coupled = g if decoupled else g + 0.3 * other
        theirs, second = careful.update(coupled, states[1])
        theirs = theirs - schedule(t) * 0.3 * other if decoupled else theirs
        one, other, states = one + updates, other + theirs, (first, second)
        np.testing.assert_allclose(one, other, rtol=1e-5)
    whole = rj.cautious(rj.presets.timm(schedule, momentum=0.9, **settings))
    state, third = whole.init(params), params
    for g in jnp.asarray(GRADS[:, 0], jnp.float32):
        updates, state = whole.update(g, state, third)
        third = third + updates
    assert np.abs(third - one).max() > 1e-3  # around the whole preset it is another optimizer


def test_caution_without_momentum_changes_nothing():
    g = jnp.array([0.0, 1.0, -2.0])
    ours, plain = rj.presets.timm(caution=True), rj.presets.timm()
    updates = [solver.update(g, solver.init(g))[0] for solver in (ours, plain)]
    np.testing.assert_array_equal(*updates)
