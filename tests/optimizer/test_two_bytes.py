"""A second moment, and parameters, in two bytes: no bias, no stall, the same bits anywhere."""

import functools

import chex
import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from hypothesis import given, settings
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import rmsprop_jax as rj
from rmsprop_jax._optimizer.two_bytes import NU, PARAMETERS, leaf_salt, salt, varying_axes
from rmsprop_jax._optimizer.two_bytes import rounded as round_to_bfloat16
from tests.support.steps import travel
from tests.support.tables import crossed, few

BF16 = jnp.bfloat16
LARGEST = float(jnp.finfo(BF16).max)


def salts(n, buffer=NU, seed=0):
    return jax.vmap(lambda t: leaf_salt(salt(buffer, seed, t), 0))(jnp.arange(1, n + 1))


@functools.partial(jax.jit, static_argnums=1)
def rounded(x, n):
    """The same array, rounded at n steps: float32 of shape (n, ...)."""
    return jax.vmap(lambda s: round_to_bfloat16(x, s))(salts(n)).astype(jnp.float32)


def around(x):
    """The largest bfloat16 of a magnitude not above, and the next."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    low = (bits & 0xFFFF0000).view(np.float32)
    high = ((bits & 0xFFFF0000) + (bits & 0xFFFF != 0) * np.uint32(0x10000)).view(np.float32)
    return low, np.where(np.isinf(high), low, high)


# One rounding.


def test_what_bfloat16_has_stays_what_it_is():
    """All 65,536 of them, NaN and the infinities too, whatever the bits. (XLA on a CPU takes what
    is below the smallest normal number for 0, here as everywhere.)"""
    every = np.arange(2**16, dtype=np.uint32)
    x = (every << 16).view(np.float32)
    flushed = np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(0, x), x)
    for row in np.asarray(rounded(x, 20)):
        np.testing.assert_array_equal(row, np.where(row == 0, flushed, x))
    nan = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF800001], np.uint32).view(np.float32)
    assert np.isnan(rounded(nan, 20)).all()


@given(st.lists(st.integers(0, 2**32 - 1), min_size=8, max_size=8), st.integers(0, 2**31 - 1))
@settings(max_examples=200, deadline=None)
def test_each_number_becomes_one_of_the_two_around_it(bits, step):
    x = np.array(bits, np.uint32).view(np.float32)
    got = np.asarray(_round(x, jnp.int32(step)).astype(jnp.float32))
    low, high = around(x)
    tiny = np.abs(x) < np.finfo(np.float32).tiny
    assert ((got == low) | (got == high) | np.isnan(x) | (tiny & (got == 0))).all()
    assert (np.signbit(got) == np.signbit(x))[~np.isnan(x)].all()
    assert (np.isfinite(got) == np.isfinite(x)).all()
    normal = np.isfinite(x) & (np.abs(x) >= np.finfo(np.float32).tiny) & (np.abs(x) < LARGEST)
    assert (np.abs(got[normal] - x[normal]) <= np.abs(x[normal]) * 2**-7).all()


def test_the_largest_numbers_stay_finite():
    """They lie above all that bfloat16 has, and come down to its largest."""
    x = np.array([np.finfo(np.float32).max, LARGEST, np.nextafter(LARGEST, 1e39)], np.float32)
    for sign in (1, -1):
        np.testing.assert_array_equal(rounded(sign * x, 50), np.full((50, 3), sign * LARGEST))


_round = jax.jit(lambda x, step: round_to_bfloat16(x, salt(NU, 0, step)))


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1.0, 3e38])
def test_the_mean_is_the_number(scale):
    """Within 4 standard errors, over 1,000 steps of 50 numbers of each size, and over all."""
    x = (np.random.default_rng(0).uniform(0.5, 1, 50) * scale).astype(np.float32)
    x = np.concatenate([x, -x])
    got = np.asarray(rounded(x, 1_000), float)
    low, high = (side.astype(float) for side in around(x))
    share = (x - low) / np.where(high == low, 1, high - low)
    error = (got - x).mean(0) / np.abs(high - low)
    deviation = np.sqrt(share * (1 - share) / len(got)) + 1e-9
    assert np.abs(error / deviation).max() < 4.5
    together = np.sqrt((deviation**2).sum()) / len(x)
    assert abs((error * np.sign(x)).mean()) < 4 * together


def test_steps_leaves_elements_buffers_and_seeds_have_bits_of_their_own():
    x = jnp.full((1_000,), 1.0 + 2**-9, jnp.float32)  # a quarter of the way
    up = lambda buffer, seed, step, leaf: np.asarray(
        round_to_bfloat16(x, leaf_salt(salt(buffer, seed, jnp.int32(step)), leaf)) > 1, float
    )
    first = up(NU, 0, 1, 0)
    assert 0.15 < first.mean() < 0.35
    others = [up(NU, 0, 2, 0), up(NU, 0, 1, 1), up(NU, 1, 1, 0), up(PARAMETERS, 0, 1, 0)]
    for other in others:
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.12
    for lag in (1, 2, 16, 500):
        assert abs(np.corrcoef(first[lag:], first[:-lag])[0, 1]) < 0.15


@pytest.mark.slow
def test_derivatives_pass_straight_through():
    x = jnp.float32(1.2345)
    slope = jax.grad(lambda x: 3 * round_to_bfloat16(x, jnp.uint32(7)).astype(jnp.float32))(x)
    assert slope == 3

    def last(decay):
        solver = rj.scale_by_rms(decay, state_dtype="bfloat16", eps=1e-3)
        g, state = jnp.array([0.3, 2.0]), solver.init(jnp.zeros(2))
        for _ in range(3):
            u, state = solver.update(g, state)
        return u.sum()

    with_bits = jax.grad(last)(0.9)
    plain = jax.grad(
        lambda decay: sum(g / (jnp.sqrt((1 - decay**3) * g**2) + 1e-3) for g in (0.3, 2.0))
    )(0.9)
    np.testing.assert_allclose(with_bits, plain, rtol=0.05)


def average_of(g, rho, steps, dtype):
    """The mean of 512 averages of g², after so many steps."""
    solver = rj.scale_by_rms(rho, state_dtype=dtype)
    g = jnp.ones(512) * g
    start = solver.init(g)
    body = lambda state, _: (solver.update(g, state)[1], None)
    return jax.lax.scan(body, start, length=steps)[0].nu.astype(jnp.float32).mean()


def training(rho, dtype):
    """The sum of the losses of a training, whose derivative goes through each step's ν."""
    solver, start = rj.rmsprop(1e-3, rho, 1e-3, state_dtype=dtype), jnp.linspace(0.5, 1.5, 512)

    def step(carry, key):
        params, state = carry
        updates, state = solver.update(params + 0.3 * jax.random.normal(key), state)
        params = params + updates
        return (params, state), jnp.mean(params**2)

    keys = jax.random.split(jax.random.key(0), 600)
    return jax.lax.scan(step, (start, solver.init(start)), keys)[1].sum()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "rho"),
    crossed(["average", "training"], [0.9, 0.99, 0.999], plain=["average-0.999", "training-0.99"]),
)
def test_derivatives_do_not_stall_forward_or_reverse(what, rho):
    """Rounded to nearest, they do: at 0.999, 0.500 forward and 9.998 in reverse, instead of 1.987.

    Means over 512 elements, within 0.5% of float32's.
    """
    f = (
        functools.partial(average_of, rho=rho, steps=int(5 / (1 - rho)))
        if what == "average"
        else training
    )
    x = jnp.float32(1.0 if what == "average" else rho)

    @functools.partial(jax.jit, static_argnums=1)
    def both(x, dtype):
        of = lambda x: f(x, dtype=dtype)
        return jax.jvp(of, (x,), (jnp.ones_like(x),))[1], jax.grad(of)(x)

    (forward, reverse), (_, want) = both(x, "bfloat16"), both(x, None)
    np.testing.assert_allclose([forward, reverse], want, rtol=5e-3)


DERIVATIVES = {
    "vmap": lambda f: jax.vmap(jax.grad(f))(jnp.array([2.0, 3.0]))[0],
    "checkpoint": lambda f: jax.grad(jax.checkpoint(f))(2.0),
    "jacrev": lambda f: jax.jacrev(f)(2.0),
    "jacfwd": lambda f: jax.jacfwd(f)(2.0),
    "linearize": lambda f: jax.linearize(f, 2.0)[1](1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", few(list(DERIVATIVES), ["jacfwd"]))
def test_derivatives_under_jaxs_transformations(name):
    """In reverse they are the same number; forward, rounded otherwise."""
    f = lambda x: average_of(x, 0.9, 30, "bfloat16")
    rtol = 5e-3 if name in ("jacfwd", "linearize") else 1e-7
    np.testing.assert_allclose(DERIVATIVES[name](f), jax.grad(f)(2.0), rtol=rtol)


def test_second_derivatives():
    f = lambda x, dtype="bfloat16": average_of(x, 0.9, 30, dtype)
    twice = lambda f: jax.jit(jax.grad(jax.grad(f)))(2.0)
    np.testing.assert_allclose(twice(f), twice(lambda x: f(x, None)), rtol=0.02)


@pytest.mark.slow
def test_derivatives_under_a_vmap_over_seeds():
    """The salt has an axis of its own."""
    seeds = jnp.arange(3)

    def seeded(seed, x):
        solver = rj.scale_by_rms(0.9, state_dtype="bfloat16", seed=seed)
        state = solver.update(jnp.ones(100) * x, solver.init(jnp.zeros(100)))[1]
        return state.nu.astype(jnp.float32).mean()

    many = jax.vmap(jax.value_and_grad(seeded, 1), (0, None))(seeds, 1.5)
    alone = [jax.value_and_grad(seeded, 1)(seed, 1.5) for seed in seeds]
    chex.assert_trees_all_close(many, jax.tree.map(lambda *x: jnp.stack(x), *alone), rtol=1e-6)


def test_the_start_is_rounded_without_bias_too():
    """To the nearest, 1.003 would be 1 in each element."""
    solver = rj.scale_by_rms(initial_scale=1.003, state_dtype="bfloat16")
    nu = solver.init({"a": jnp.zeros(20_000), "b": jnp.zeros(20_000)}).nu
    for leaf in nu.values():
        leaf = np.asarray(leaf, float)
        assert set(np.unique(leaf)) == {1.0, 1.0078125}
        np.testing.assert_allclose(leaf.mean(), 1.003, atol=4 * leaf.std() / np.sqrt(leaf.size))
    assert (nu["a"] != nu["b"]).any()


# Inside shard_map.


def sharded_averages(spec, seed=0, check_vma=True, steps=10):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])

    def run(g):
        own = jax.lax.axis_index("data") if seed == "axis" else seed
        solver = rj.scale_by_rms(0.9, state_dtype="bfloat16", seed=own)
        body = lambda state, _: (solver.update(g, state)[1], None)
        return jax.lax.scan(body, solver.init(g), length=steps)[0].nu.astype(jnp.float32)

    mapped = jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check_vma)
    return np.asarray(jax.jit(mapped)(jnp.ones(2_000))).reshape(2, -1)


@pytest.mark.slow
def test_shards_of_a_leaf_round_apart_and_copies_alike():
    """With equal bits, the mean over n shards would have √n times the error."""
    first, second = sharded_averages(PartitionSpec("data"))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15
    sharded_averages(PartitionSpec())  # a copy that rounded by itself would not be replicated
    np.testing.assert_array_equal(*sharded_averages(PartitionSpec("data"), check_vma=False))
    first, second = sharded_averages(PartitionSpec("data"), seed="axis", check_vma=False)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15


def test_shards_of_parameters_round_apart_and_copies_alike():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    solver = rj.stochastic_rounding()

    def step(p):
        updates, _ = solver.update(jnp.full(p.shape, 1e-3), solver.init(p), p)
        return updates

    for spec, alike in ((PartitionSpec("data"), False), (PartitionSpec(), True)):
        mapped = jax.shard_map(step, mesh=mesh, in_specs=spec, out_specs=spec)
        updates = jax.jit(mapped)(jnp.ones(2_000, BF16))  # a copy that differs is refused
        first, second = np.asarray(updates, float).reshape(2, -1)
        assert alike or abs(np.corrcoef(first, second)[0, 1]) < 0.15


def test_derivatives_inside_shard_map():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])

    def mean(x, p):
        average = average_of(x * p, 0.9, 30, "bfloat16")
        return jax.lax.pmean(average, "data")

    specs = (PartitionSpec(), PartitionSpec("data"))
    f = jax.shard_map(mean, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    x, p = jnp.float32(2.0), jnp.ones(1_024)
    want = 4 * (1 - 0.9**30)
    np.testing.assert_allclose(jax.jit(jax.grad(f))(x, p), want, rtol=5e-3)
    forward = jax.jit(lambda x: jax.jvp(lambda x: f(x, p), (x,), (jnp.ones_like(x),))[1])
    np.testing.assert_allclose(forward(x), want, rtol=5e-3)


def test_jax_still_says_along_which_axes_an_array_varies():
    """The attribute that `leaf_salt` reads is not documented."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    seen = {}

    def look(x, y):
        seen.update(x=varying_axes(x), y=varying_axes(y))
        return x

    specs = (PartitionSpec("data"), PartitionSpec())
    jax.shard_map(look, mesh=mesh, in_specs=specs, out_specs=specs[0])(jnp.ones(4), jnp.ones(4))
    assert seen == {"x": {"data"}, "y": set()}
    assert varying_axes(jnp.ones(2)) == varying_axes(None) == varying_axes(np.ones(2)) == set()


def test_groups_of_a_partition_share_their_bits_unless_seeded():
    """As the page says: both groups number their leaves from 0."""
    params = {"a": jnp.ones(2_000), "b": jnp.ones(2_000)}

    def averages_of(*seeds):
        make = lambda seed: rj.rmsprop(state_dtype="bfloat16", seed=seed)
        groups = dict(zip("ab", map(make, seeds), strict=True))
        solver = optax.partition(groups, {"a": "a", "b": "b"})
        state = solver.init(params)
        for _ in range(3):
            _, state = solver.update(params, state)
        return [np.asarray(x, float) for x in jax.tree.leaves(state) if x.dtype == BF16]

    np.testing.assert_array_equal(*averages_of(0, 0))
    assert (np.subtract(*averages_of(0, 1)) != 0).any()


# The average.


def averages(rho, gs, **options):
    """ν after each step, float32."""
    solver = rj.scale_by_rms(rho, state_dtype="bfloat16", **options)

    def step(state, g):
        u, state = solver.update(g, state)
        return state, (state.nu.astype(jnp.float32), u)

    return jax.jit(lambda gs: jax.lax.scan(step, solver.init(gs[0]), gs)[1])(gs)


def test_the_average_has_no_bias():
    """1e5 elements of one leaf, 20 steps: the mean over them within 4 standard errors."""
    rng = np.random.default_rng(1)
    gs = np.broadcast_to(rng.normal(size=(20, 1)), (20, 100_000)).astype(np.float32)
    for rho in (0.5, 0.9, 0.99):
        nus, _ = averages(rho, gs)
        true = 0.0
        for g, nu in zip(gs[:, 0].astype(float), np.asarray(nus, float), strict=True):
            true = rho * true + (1 - rho) * g**2
            error = nu.std() / np.sqrt(nu.size)
            assert abs(nu.mean() - true) < 4 * error + 1e-6 * true


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rho", "scale"),
    crossed([0.9, 0.99, 0.999, 0.9999], [1.1, 1.9], plain=["0.9-1.1", "0.999-1.9"]),
)
def test_the_spread_stays_within_its_bound(rho, scale):
    """Over elements that share their gradients, normal ones, so that it holds the roundings only.
    The mean over them is the exact average."""
    n, steps = 2_000, int(6 / (1 - rho))
    short = rj.scale_by_rms(rho, state_dtype="bfloat16", initial_scale=scale)
    full = rj.scale_by_rms(rho, initial_scale=scale)

    @jax.jit
    def run():
        def body(carry, t):
            g = scale**0.5 * jax.random.normal(jax.random.fold_in(jax.random.key(0), t))
            short_state = short.update(jnp.full(n, g), carry[0])[1]
            full_state = full.update(g, carry[1])[1]
            nu, true = short_state.nu.astype(jnp.float32), full_state.nu
            return (short_state, full_state), (nu.std() / true, nu.mean() / true)

        start = short.init(jnp.zeros(n)), full.init(jnp.zeros(()))
        return jax.lax.scan(body, start, jnp.arange(steps))[1]

    spreads, means = (np.asarray(x, float)[steps // 2 :] for x in run())
    bound = min(2**-8 / np.sqrt(1 - rho**2), np.sqrt(2**-6 / (1 + rho)))
    spread = np.sqrt((spreads**2).mean())
    print(f"ρ = {rho}: {spread:.4f}, bound {bound:.4f}")
    assert bound / 10 < spread <= bound
    assert abs(means.mean() - 1) < 4 * spread / np.sqrt(n)


@pytest.mark.parametrize("rho", few([0.999, 0.9999], [0.999]))
def test_where_the_nearest_stalls_this_arrives(rho):
    """From 0 under a constant gradient, and down again after it drops."""
    steps, n = int(6 / (1 - rho)), 500

    def run(update, state, size):
        g = jnp.full(n, size, BF16)
        return jax.jit(lambda s: jax.lax.fori_loop(0, steps, lambda _, s: update(g, s)[1], s))(
            state
        )

    ours = rj.scale_by_rms(rho, state_dtype="bfloat16")
    state = run(ours.update, ours.init(jnp.zeros(n, BF16)), 1.0)
    np.testing.assert_allclose(np.asarray(state.nu, float).mean(), 1 - rho**steps, rtol=0.02)
    state = run(ours.update, state, 1e-2)
    want = rho**steps + 1e-4
    np.testing.assert_allclose(np.asarray(state.nu, float).mean(), want, rtol=0.05)
    theirs = optax.scale_by_rms(rho)
    stalled = run(theirs.update, theirs.init(jnp.zeros(n, BF16)), 1.0)
    assert float(jax.tree.leaves(stalled)[0].astype(jnp.float32).max()) < 0.6


@pytest.mark.parametrize(("centered", "rho"), crossed([False, True], [0.0, 0.9, 0.999]))
def test_the_step_is_bounded(rho, centered):
    """|u| ≤ 1.004/√(1 − ρ), for every size of gradient."""
    rng = np.random.default_rng(2)
    sizes = 10.0 ** rng.uniform(-44, 38, (200, 300)) * rng.choice([-1, 1], (200, 300))
    gs = sizes.astype(np.float32)
    gs[:, :3] = [np.inf, 0.0, np.finfo(np.float32).max]
    nus, us = averages(rho, gs, centered=centered, eps=0.0)
    assert np.isfinite(us).all()
    assert np.isfinite(nus).all()
    assert (np.asarray(nus) >= 0).all()
    if not centered:
        assert np.abs(us).max() <= 1.004 / np.sqrt(1 - rho)
    assert (np.asarray(us)[:, 1] == 0).all()


def test_a_nan_stays_one_and_touches_no_other():
    gs = np.ones((3, 4), np.float32)
    gs[1, 2] = np.nan
    nus, us = averages(0.9, gs)
    assert np.isnan(nus[1:, 2]).all()
    assert np.isfinite(np.delete(us, 2, axis=1)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("momentum", "bias_correction", "centered"),
    crossed([None, 0.9], [False, True], [False, True]),
)
def test_updates_are_those_of_float32_to_the_rounding(centered, bias_correction, momentum):
    flags = {"centered": centered, "bias_correction": bias_correction, "momentum": momentum}
    gs = np.random.default_rng(3).normal(size=(60, 400)).astype(np.float32) + 0.5

    def end(**options):
        solver = rj.rmsprop(1e-2, 0.9, 1e-3, **flags, **options)
        return jax.jit(functools.partial(travel, solver))(gs, jnp.zeros(400))[0]

    (short, state), (full, _) = end(state_dtype="bfloat16"), end()
    np.testing.assert_allclose(short, full, rtol=0, atol=0.03 * np.abs(full).max())
    assert abs(float((short - full).mean())) < 0.002 * float(np.abs(full).mean())
    dtypes = {x.dtype for x in jax.tree.leaves(optax.tree_utils.tree_get(state, "nu"))}
    assert dtypes == {jnp.dtype(BF16)}
    others = [x for x in jax.tree.leaves(state) if x.dtype not in (BF16, jnp.int32)]
    assert all(x.dtype == jnp.float32 for x in others)
    assert len(others) == centered + (momentum is not None) + 2 * bias_correction


# The same bits, wherever it runs.


TREE = {
    "w": jax.ShapeDtypeStruct((16, 6), jnp.float32),
    "half": jax.ShapeDtypeStruct((8,), BF16),
    "scalar": jax.ShapeDtypeStruct((), jnp.float32),
    "empty": jax.ShapeDtypeStruct((0, 3), jnp.float32),
}


def grads(steps, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=(steps, *x.shape)), x.dtype) for name, x in TREE.items()
    }


def run(solver, gs, state=None):
    state = solver.init(TREE) if state is None else state
    return jax.lax.scan(lambda s, g: solver.update(g, s)[::-1], state, gs)


@pytest.mark.slow
def test_the_bits_are_the_same_jitted_scanned_resumed_and_sharded():
    solver, gs = rj.rmsprop(1e-2, state_dtype="bfloat16"), grads(6)
    state, us = run(solver, gs)
    one = solver.init(TREE)
    at = lambda tree, t: jax.tree.map(lambda x: x[t], tree)
    for t in range(6):  # op by op
        u, one = solver.update(at(gs, t), one)
        chex.assert_trees_all_equal(u, at(us, t))
    chex.assert_trees_all_equal(one, state)
    half, _ = run(solver, jax.tree.map(lambda x: x[:3], gs))
    stored = jax.tree.map(np.asarray, half)  # and back, as from a checkpoint
    again, _ = run(solver, jax.tree.map(lambda x: x[3:], gs), jax.tree.map(jnp.asarray, stored))
    chex.assert_trees_all_equal(again, state)

    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    split = {"w": PartitionSpec("data"), "half": PartitionSpec("data")}
    of = lambda name: NamedSharding(mesh, split.get(name, PartitionSpec()))
    place = lambda tree: {name: jax.device_put(x, of(name)) for name, x in tree.items()}
    sharded = jax.tree.map(lambda x: x, solver.init(place(at(gs, 0))))
    step = jax.jit(solver.update)
    for t in range(6):
        g = place(at(gs, t))
        u, sharded = step(g, sharded)
    chex.assert_trees_all_equal(jax.device_get(sharded), jax.device_get(state))
    text = step.lower(g, sharded).compile().as_text()
    assert not any(word in text for word in ("all-gather", "all-reduce", "collective-permute"))


@pytest.mark.slow
def test_trials_of_a_vmap_share_their_bits_unless_seeded():
    gs = grads(5)

    def nus(rate, seed):
        state, _ = run(rj.rmsprop(rate, state_dtype="bfloat16", seed=seed), gs)
        return optax.tree_utils.tree_get(state, "nu")["w"]

    rates = jnp.array([1e-3, 1e-2])
    same = jax.vmap(nus, (0, None))(rates, 0)
    np.testing.assert_array_equal(same[0], same[1])
    np.testing.assert_array_equal(same[0], nus(1.0, 0))
    other = jax.vmap(nus, (None, 0))(1e-3, jnp.arange(3))
    assert (other[0] == same[0]).all()
    assert (other[1] != other[2]).any()
    assert (other[1] != other[0]).any()


def test_the_state_is_half_and_nothing_is_kept_beside_it():
    n = 1 << 20
    solver = rj.rmsprop(1e-3, state_dtype="bfloat16")
    abstract = jax.ShapeDtypeStruct((n,), jnp.float32)
    state = jax.eval_shape(solver.init, abstract)
    assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) == 2 * n + 4

    def step(params, state, g):
        u, state = solver.update(g, state, params)
        return params + u, state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(abstract, state, abstract).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 64
    # θ, ν, g in, θ, ν out; and, in the compiler's own count, ν and g once more.
    assert compiled.cost_analysis()["bytes accessed"] <= 22.001 * n + 1_000
    params, state = jnp.zeros(n), solver.init(jnp.zeros(n))
    for _ in range(2):  # donated buffers are used
        params, state = jax.jit(step, donate_argnums=(0, 1))(params, state, jnp.ones(n))


# What may be asked.


@pytest.mark.parametrize("make", [rj.rmsprop, rj.scale_by_rms])
@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("float16", "65,504"), ("int8", "8 bits"), (jnp.uint8, "8 bits"),
        ("float8_e4m3fn", "8 bits"), ("bf16", ""), (16, ""), (True, ""), ("int32", ""),
        (jnp.zeros((), BF16), "give it as text"),
    ],
)  # fmt: skip
def test_other_dtypes_are_refused(make, given, why):
    with pytest.raises(ValueError, match=f"state_dtype must be None, or one of .*{why}"):
        make(state_dtype=given)


@pytest.mark.parametrize("given", ["bfloat16", jnp.bfloat16, np.dtype("bfloat16")])
def test_text_and_dtypes_name_it(given):
    state = rj.rmsprop(state_dtype=given).init(jnp.zeros(3))
    assert optax.tree_utils.tree_get(state, "nu").dtype == BF16
    assert int(optax.tree_utils.tree_get(state, "step")) == 0


def test_injected_it_is_text_or_refused():
    solver = optax.inject_hyperparams(rj.rmsprop)(learning_rate=0.1, state_dtype="bfloat16")
    plain = rj.rmsprop(0.1, state_dtype="bfloat16")
    params, g = jnp.zeros(50), jnp.linspace(-1.0, 2.0, 50)
    ours, theirs = solver.init(params), plain.init(params)
    for _ in range(3):
        u, ours = solver.update(g, ours, params)
        v, theirs = plain.update(g, theirs, params)
        np.testing.assert_array_equal(u, v)
    with pytest.raises(ValueError, match="give it as text"):
        optax.inject_hyperparams(rj.rmsprop)(0.1, state_dtype=jnp.bfloat16).init(params)


def test_float64_needs_x64():
    with pytest.raises(ValueError, match="needs JAX's x64"):
        rj.rmsprop(state_dtype="float64")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("centered", "given", "kept"),
    crossed(
        [False, True],
        ["float32", "float64", "bfloat16"],
        ["bfloat16", "float32", "float64"],
    ),
)
def test_any_storage_beside_any_parameters(x64, strict, kept, given, centered):
    """Computed in the wider of both; the mean keeps the parameters' precision."""
    solver = rj.rmsprop(1e-2, 0.5, state_dtype=kept, centered=centered, momentum=0.9)
    params = jnp.linspace(-1, 1, 7, dtype=given)
    state = solver.init(params)
    before = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    for i in range(3):
        u, state = solver.update((params + i).astype(given), state, params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == before
    assert u.dtype == params.dtype
    assert optax.tree_utils.tree_get(state, "nu").dtype == kept
    full = rj.rmsprop(1e-2, 0.5, centered=centered, momentum=0.9)
    other = full.init(params)
    for i in range(3):
        v, other = full.update((params + i).astype(given), other, params)
    tolerance = {"float64": 1e-6, "float32": 1e-5, "bfloat16": 0.05}[kept]
    tolerance = max(tolerance, 0.01) if given == "bfloat16" else tolerance
    np.testing.assert_allclose(
        np.asarray(u, float), np.asarray(v, float), rtol=tolerance, atol=tolerance * 1e-2
    )


def test_a_state_of_another_storage_is_refused():
    short, full = rj.rmsprop(state_dtype="bfloat16"), rj.rmsprop()
    params = jnp.zeros(3)
    for made, updated in ((short, full), (full, short)):
        with pytest.raises(ValueError, match="float32"):
            updated.update(params, made.init(params))
    cast = jax.tree.map(
        lambda x: x.astype(BF16) if x.dtype == jnp.float32 else x, rj.rmsprop(
            momentum=0.9, state_dtype="bfloat16").init(params))  # fmt: skip
    with pytest.raises(ValueError, match="trace is bfloat16"):
        rj.rmsprop(momentum=0.9, state_dtype="bfloat16").update(params, cast)


def test_complex_parameters_have_a_real_average_in_two_bytes():
    solver = rj.scale_by_rms(state_dtype="bfloat16", centered=True)
    params = jnp.ones(4, jnp.complex64)
    u, state = solver.update((1 + 2j) * params, solver.init(params))
    assert (u.dtype, state.nu.dtype, state.mu.dtype) == (jnp.complex64, BF16, jnp.complex64)
    assert np.isfinite(np.asarray(u)).all()


# Parameters in two bytes.


def chained(rate=1e-4, seed=0, **options):
    up = optax.stateless(lambda g, _: jax.tree.map(lambda x: x.astype(jnp.float32), g))
    return optax.chain(
        up, rj.rmsprop(rate, state_dtype="bfloat16", **options), rj.stochastic_rounding(seed)
    )


def trained(solver, params, steps):
    @jax.jit
    def run(params, state):
        def step(carry, _):
            params, state = carry
            g = jax.tree.map(jnp.ones_like, params)
            u, state = solver.update(g, state, params)
            return (optax.apply_updates(params, u), state), u

        return jax.lax.scan(step, (params, state), length=steps)

    return run(params, solver.init(params))


@pytest.mark.slow
def test_parameters_arrive_where_the_nearest_stands_still():
    n, steps = 5_000, 400
    params = jnp.ones(n, BF16)
    (short, _), us = trained(chained(), params, steps)
    (full, _), _ = trained(rj.rmsprop(1e-4), jnp.ones((), jnp.float32), steps)
    assert (short.dtype, us.dtype) == (BF16, BF16)
    mean = np.asarray(short, float)
    np.testing.assert_allclose(mean.mean(), full, atol=5 * mean.std() / np.sqrt(n) + 1e-5)
    still = optax.chain(rj.rmsprop(1e-4))
    (stands, _), _ = trained(still, params, steps)
    assert (np.asarray(stands, float) == 1).all()


@pytest.mark.slow
def test_the_update_is_the_difference_of_new_and_old():
    rng = np.random.default_rng(5)
    p = jnp.asarray(rng.normal(size=5_000), BF16)
    u = jnp.asarray(rng.normal(size=5_000) * 10.0 ** rng.uniform(-6, -1, 5_000), jnp.float32)
    solver = rj.stochastic_rounding()
    got, state = solver.update(u, solver.init(p), p)
    new = np.asarray(optax.apply_updates(p, got), float)
    low, high = around(np.asarray(p, np.float32) + np.asarray(u))
    near = np.abs(np.asarray(u, float)) < 0.4 * np.abs(np.asarray(p, float))
    assert ((new == low) | (new == high))[near].all()
    assert int(state.rounding_steps) == 1


@pytest.mark.parametrize(
    ("p", "u"),
    [
        (1.0, -0.9988),  # to 0.0012: the difference lies between −1 and −0.996
        (-1.0, 0.9988),
        (1.0, -0.9),
        (2.0, -2.001),
        (0.4004, -2.2),
        (1.0078125, 2.0),
        (1.0078125, 8.0123),
        (1.0, 5.003),
        (1e-3, 1.0),
        (1.0, 1e-5),
        (3e38, -2.9999e38),
        (1e-30, 1.2345),
    ],
)
def test_a_step_of_any_size_has_no_bias(p, u):
    """Also where the new parameter differs by more than a factor of 2, and no bfloat16 is the
    difference: rounded to nearest, 1 − 0.9988 would be 0 always."""
    n = 100_000
    params = jnp.full(n, p, BF16)
    solver = rj.stochastic_rounding()
    got, _ = solver.update(jnp.full(n, u, jnp.float32), solver.init(params), params)
    new = np.asarray(optax.apply_updates(params, got), float)
    want = float(params[0]) + float(np.float32(u))
    assert abs(new.mean() - want) <= 4.5 * new.std() / np.sqrt(n) + 1e-7 * abs(want)
    assert len(np.unique(new)) <= 3


NO_SEEDS = [0.5, np.float32(1.5), jnp.float32(3.7), True, jnp.bool_(True), "1", None]
NO_SEEDS += [2**31, -(2**31) - 1, jnp.arange(2), np.ones(1, int)]
NO_SEEDS += [jax.random.key(0), jax.random.PRNGKey(0)]


@pytest.mark.parametrize("seed", NO_SEEDS, ids=str)
@pytest.mark.parametrize("make", [rj.rmsprop, rj.scale_by_rms, rj.stochastic_rounding])
def test_a_seed_that_is_no_whole_number_is_refused(make, seed):
    with pytest.raises(ValueError, match=r"seed must be a whole number.*Pass a Python int"):
        make(seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, np.int64(3), np.uint8(3), jnp.int32(3), jnp.float32(3.0)])
def test_whole_numbers_of_any_kind_are_seeds(seed):
    params = jnp.full(500, 1.003, BF16)

    def rounded_by(seed):
        solver = rj.stochastic_rounding(seed)
        return solver.update(jnp.full(500, 1e-3), solver.init(params), params)[0]

    np.testing.assert_array_equal(rounded_by(seed), rounded_by(3))
    np.testing.assert_array_equal(jax.jit(rounded_by)(seed), rounded_by(3))


def test_a_traced_key_or_bool_is_no_seed():
    for seed in (jax.random.key(0), jnp.bool_(True), jnp.ones(2, int)):
        with pytest.raises(ValueError, match="seed must be a whole number"):
            jax.jit(lambda s: rj.rmsprop(seed=s).init(jnp.ones(2)))(seed)


def test_other_leaves_are_left_alone():
    params = {"wide": jnp.ones(3), "short": jnp.ones(3, BF16), "frozen": jnp.ones(2, BF16)}
    updates = {"wide": jnp.full(3, 1e-5), "short": jnp.full(3, 1e-5), "frozen": None}
    solver = rj.stochastic_rounding()
    new, _ = solver.update(updates, solver.init(params), params)
    assert new["wide"] is updates["wide"]
    assert new["frozen"] is None
    assert new["short"].dtype == BF16
    with pytest.raises(ValueError, match=r"params.*[Cc]all update\(updates, state, params\)"):
        solver.update(updates, solver.init(params))
    with pytest.raises(ValueError, match="seed must be a whole number"):
        rj.stochastic_rounding(0.5)


def test_two_counters_and_one_step():
    state = chained().init(jnp.ones(3, BF16))
    assert int(optax.tree_utils.tree_get(state, "step")) == 0
    assert int(optax.tree_utils.tree_get(state, "rounding_steps")) == 0


def test_in_strict_promotion(strict):
    trained(chained(), {"a": jnp.ones(5, BF16), "b": jnp.ones(5)}, 3)


@pytest.mark.slow
@pytest.mark.parametrize("wrap", ["apply_if_finite", "MultiSteps"])
def test_inside_optaxs_wrappers(wrap):
    """They choose between updates of one dtype, and steps of their own."""
    params = jnp.ones(1_000, BF16)
    if wrap == "apply_if_finite":
        solver = optax.apply_if_finite(chained(), 3)
    else:
        solver = optax.MultiSteps(chained(), 2)
    state, seen = solver.init(params), params
    for g in (1.0, 1.0, np.nan, 1.0) if wrap == "apply_if_finite" else (1.0,) * 4:
        u, state = jax.jit(solver.update)(jnp.full(1_000, g, BF16), state, seen)
        assert u.dtype == BF16
        seen = optax.apply_updates(seen, u)
    assert (seen != 1).any()
    assert np.isfinite(np.asarray(seen, float)).all()


@pytest.mark.slow
def test_in_flax():
    params = {"w": jnp.ones((4, 4), BF16)}
    state = TrainState.create(apply_fn=None, params=params, tx=chained(1e-2))
    state = state.apply_gradients(grads={"w": jnp.ones((4, 4), BF16)})
    assert state.params["w"].dtype == BF16
    assert (state.params["w"] != 1).any()


@pytest.mark.slow
def test_in_nnx():
    model = nnx.Linear(4, 4, param_dtype=BF16, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, chained(1e-2), wrt=nnx.Param)
    before = jnp.array(model.kernel[...])
    optimizer.update(model, nnx.grad(lambda m: m(jnp.ones((1, 4), BF16)).sum())(model))
    assert model.kernel[...].dtype == BF16
    assert (model.kernel[...] != before).any()


@pytest.mark.slow
def test_in_equinox():
    linear = eqx.nn.Linear(4, 4, key=jax.random.key(0), dtype=BF16)
    grads = eqx.filter_grad(lambda m: m(jnp.ones(4, BF16)).sum())(linear)
    solver = chained(1e-2)
    u, _ = solver.update(grads, solver.init(eqx.filter(linear, eqx.is_inexact_array)), linear)
    moved = eqx.apply_updates(linear, u)
    assert moved.weight.dtype == BF16
    assert (moved.weight != linear.weight).any()


@pytest.mark.slow
def test_states_of_both_in_a_sweep_are_kept_and_gone_on_with(tmp_path):
    def init(hp, key):
        params = jax.random.normal(key, (20,)).astype(BF16)
        return params, chained(hp["rate"]).init(params)

    def step(hp, state, key):
        params, opt_state = state
        loss, g = jax.value_and_grad(lambda p: jnp.sum(p.astype(jnp.float32) ** 2))(params)
        u, opt_state = chained(hp["rate"]).update(g, opt_state, params)
        return (optax.apply_updates(params, u), opt_state), {"loss": loss}

    training, points = rj.Training(init, step), rj.grid(rate=[1e-3, 1e-2])
    options = {"progress": False, "keep_states": "all", "evaluate_every": 10}
    rj.sweep(training, points, steps=20, path=tmp_path / "a", **options)
    more = rj.sweep(training, points, steps=40, path=tmp_path / "a", **options)
    whole = rj.sweep(training, points, steps=40, **options)
    np.testing.assert_array_equal(more.metrics["loss"], whole.metrics["loss"])
    state, _ = jax.jit(lambda rate, key: training.run({"rate": rate}, key, steps=40))(
        jnp.float32(1e-2), jax.random.key(0)
    )
    chex.assert_trees_all_equal(
        jax.tree.map(np.asarray, whole.state(points[1])), jax.tree.map(np.asarray, state)
    )
