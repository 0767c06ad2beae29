"""`rmsprop` against `optax.rmsprop`, and inside Optax's own wrappers."""

import functools
import inspect
import itertools
import operator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmsprop_jax as rj
from tests.support import reference
from tests.support.steps import stay
from tests.support.tables import few

RATE = 0.01
FLAGS = [
    {"eps_in_sqrt": inside, "centered": centered, "bias_correction": corrected, **momentum}
    for inside, centered, corrected, momentum in itertools.product(
        [False, True],
        [False, True],
        [False, True],
        [{"momentum": None}, {"nesterov": False}, {"nesterov": True}],
    )
]


def name(flags):
    on = [key for key, value in flags.items() if value]
    return "-".join(on + (["no_momentum"] if "momentum" in flags else [])) or "momentum"


def gradient_tree(dtype, steps=100):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=(steps, *shape)), dtype)
    return {"matrix": draw(3, 4), "pair": (draw(5), draw()), "none": None, "empty": draw(0, 2)}


def points(flags, dtype):
    """All numbers of one structure, as the lanes of one `vmap`."""
    axes = {"decay": [0.9, 0.99], "initial_scale": [0.0, 1.0], "momentum": [0.0, 0.9]}
    if "momentum" in flags:
        del axes["momentum"]
    lanes = np.array(list(itertools.product(*axes.values()))).T
    return dict(zip(axes, jnp.asarray(lanes, dtype), strict=True))


def run(rmsprop, flags, lanes, grads):
    return jax.vmap(lambda point: stay(rmsprop(RATE, **point, **flags), grads)[1])(lanes)


def assert_same_travel(ours, theirs, tolerance):
    """Positions agree at each step, relative to the largest distance travelled in that leaf."""
    travel = np.cumsum(np.asarray(theirs, np.float64), axis=0)
    error = np.cumsum(np.asarray(ours, np.float64), axis=0) - travel
    assert np.isfinite(travel).all()
    assert abs(error).max(initial=0) <= tolerance * abs(travel).max(initial=0)


REPRESENTATIVE = [
    "no_momentum", "eps_in_sqrt-centered", "eps_in_sqrt-centered-bias_correction-nesterov",
]  # fmt: skip


@pytest.mark.parametrize("flags", few({name(f): f for f in FLAGS}, REPRESENTATIVE))
def test_every_combination_of_optax_arguments(flags, dtype):
    """The equations always; Optax too, except where its EMA(g²) − EMA(g)² cancels.

    It cancels in float32 with centering. With bias correction, its first centered variance is 0.
    """
    tolerance = 2e-6 if dtype == jnp.float32 else 1e-12
    if flags["centered"] and flags["bias_correction"] and dtype == jnp.float32:
        tolerance = 1e-5  # the second variance is of two gradients, which may be close
    lanes, grads = points(flags, dtype), gradient_tree(dtype)

    @jax.jit
    def both(lanes, grads):
        theirs = run(optax.rmsprop, flags, lanes, grads)
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            return run(rj.rmsprop, flags, lanes, grads), theirs

    ours, theirs = jax.device_get(both(lanes, grads))
    assert jax.tree.structure(ours) == jax.tree.structure(grads)
    for lane in range(len(lanes["decay"])):
        point = {key: float(values[lane]) for key, values in lanes.items()}
        unsound = dtype == jnp.float32 or flags["bias_correction"]
        leaves = zip(*map(jax.tree.leaves, (ours, theirs, grads)), strict=True)
        for our, their, g in leaves:
            assert our.dtype == dtype
            assert_same_travel(
                our[lane], reference.rmsprop(np.asarray(g), RATE, **point, **flags), tolerance
            )
            if not (flags["centered"] and unsound):
                assert_same_travel(our[lane], their[lane], tolerance)


def test_arguments_and_defaults_are_optax_own_save_one():
    ours = inspect.signature(rj.rmsprop).parameters
    theirs = inspect.signature(optax.rmsprop).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    differing = {key for key in theirs if ours[key].default != theirs[key].default}
    assert differing == {"learning_rate", "eps_in_sqrt"}  # Optax has no default learning rate
    assert ours["eps_in_sqrt"].default is False


def test_the_default_epsilon_stands_outside_the_root_unlike_optax():
    """At g = 1e-4, ε inside the root counts as 1e-4 and halves (and more) the step."""
    g = jnp.float32(1e-4)
    step = lambda solver: float(solver.update(g, solver.init(g))[0])
    s = 0.1 * 1e-4**2
    np.testing.assert_allclose(step(rj.rmsprop(1.0)), -1e-4 / (np.sqrt(s) + 1e-8), rtol=1e-5)
    np.testing.assert_allclose(step(optax.rmsprop(1.0)), -1e-4 / np.sqrt(s + 1e-8), rtol=1e-5)
    assert step(rj.rmsprop(1.0, eps_in_sqrt=True)) == pytest.approx(step(optax.rmsprop(1.0)))


CONSTANT = {"decay": 0.95, "centered": True}


@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("half", [False, True])
def test_centered_survives_a_constant_gradient(half, momentum):
    """10,000 steps without NaN or a negative variance."""
    g = jnp.full(3, 3.0, jnp.float16 if half else jnp.float32)
    solver = rj.rmsprop(0.1, **CONSTANT, momentum=momentum)

    def step(state, _):
        updates, state = solver.update(g, state)
        return state, (updates, optax.tree_utils.tree_get(state, "nu"))

    scan = jax.jit(lambda g: jax.lax.scan(step, solver.init(g), length=10_000)[1])
    updates, nu = scan(g)
    assert np.isfinite(updates).all()
    assert (nu >= 0).all()
    assert updates.dtype == g.dtype


def test_centered_optax_goes_nan_under_the_same_gradient():
    """The fault that the test above detects. Not jitted, because fused code rounds differently."""
    solver, g = optax.rmsprop(0.1, **CONSTANT), jnp.float32(3.0)
    state = solver.init(g)
    for _ in range(300):
        updates, state = solver.update(g, state)
        if np.isnan(updates):
            return
    pytest.fail("optax.rmsprop stayed finite")


# Inside Optax's wrappers. No strict promotion here: theirs is the code around ours.

GRADS = np.random.default_rng(1).normal(size=(12, 4)).astype(np.float32)


def updates_of(solver, grads=GRADS, params=None):
    return jax.jit(lambda grads: stay(solver, grads, params)[1])(grads)


def assert_follows(updates, grads=GRADS, **settings):
    expected = reference.rmsprop(grads, **settings)
    np.testing.assert_allclose(updates, expected, rtol=1e-6, atol=1e-6 * abs(expected).max())


def test_with_clipping_before():
    solver = optax.chain(optax.clip_by_global_norm(0.5), rj.rmsprop(0.1))
    norms = np.linalg.norm(GRADS.astype(np.float64), axis=1, keepdims=True)
    clipped = GRADS * np.minimum(1, 0.5 / norms)
    assert_follows(updates_of(solver), clipped, learning_rate=0.1)


@pytest.mark.parametrize("flags", [{}, {"bias_correction": True, "momentum": 0.9}])
def test_with_a_schedule(flags):
    schedule = optax.linear_schedule(0.1, 0.01, 10)
    line = lambda t: 0.1 - 0.09 * min(t, 10) / 10
    assert_follows(updates_of(rj.rmsprop(schedule, **flags)), learning_rate=line, **flags)


def test_a_schedule_has_the_only_count():
    """Ours is named `step`: two fields of one name and `tree_get` would raise."""
    solver = rj.rmsprop(optax.constant_schedule(0.1), bias_correction=True, momentum=0.9)
    g = jnp.ones(2)
    _, state = solver.update(g, solver.init(g))
    assert optax.tree_utils.tree_get(state, "count") == 1
    assert optax.tree_utils.tree_get(state, "step") == 1
    np.testing.assert_allclose(optax.tree_utils.tree_get(state, "nu"), 0.1, rtol=1e-6)


def test_inject_hyperparams_rmsprop_without_static_args():
    settings = {"decay": 0.8, "eps": 1e-3, "initial_scale": 0.5, "momentum": 0.7}
    flags = {"centered": True, "nesterov": True, "bias_correction": True, "eps_in_sqrt": True}
    solver = optax.inject_hyperparams(rj.rmsprop)(0.1, **settings, **flags)
    assert_follows(updates_of(solver), learning_rate=0.1, **settings, **flags)

    state = solver.init(jnp.zeros(4))
    state.hyperparams["learning_rate"] = jnp.float32(0.2)
    twice = solver.update(GRADS[0], state)[0]
    np.testing.assert_allclose(twice, 2 * updates_of(solver)[0], rtol=1e-6)


def test_inject_hyperparams_scale_by_rms_without_static_args():
    solver = optax.inject_hyperparams(rj.scale_by_rms)(decay=0.8, eps=1e-3, eps_in_sqrt=True)
    assert_follows(-updates_of(solver), learning_rate=1.0, decay=0.8, eps=1e-3, eps_in_sqrt=True)


def test_inject_hyperparams_takes_a_schedule_for_any_number():
    """A schedule of decay is Optax's to evaluate; we see a traced scalar."""
    solver = optax.inject_hyperparams(rj.rmsprop)(0.1, decay=optax.constant_schedule(0.8))
    assert_follows(updates_of(solver), learning_rate=0.1, decay=0.8)


@pytest.mark.parametrize("init", ["jitted", "not"])
@pytest.mark.parametrize("update", ["jitted", "not"])
def test_inject_hyperparams_in_bfloat16_stays_bounded(init, update):
    """A decay of .999 is rounded to 1 there, which counts as .996, jitted or not."""
    params = jnp.ones(2, jnp.bfloat16)
    steps = {}
    for dtype, decay in ((None, 1 - 2.0**-8), (jnp.float32, 0.999)):
        solver = optax.inject_hyperparams(rj.rmsprop, hyperparam_dtype=dtype)(1.0, decay=0.999)
        start, step = (
            jax.jit(f) if how == "jitted" else f
            for f, how in ((solver.init, init), (solver.update, update))
        )
        steps[dtype] = step(params, start(params), params)[0].astype(jnp.float32)
        np.testing.assert_allclose(steps[dtype], -1 / np.sqrt(1 - decay), rtol=2.0**-7)


def test_apply_if_finite_skips_a_nan():
    grads = GRADS.copy()
    grads[5] = np.nan
    updates = np.asarray(updates_of(optax.apply_if_finite(rj.rmsprop(0.1), 3), grads))
    assert (updates[5] == 0).all()
    others = np.delete(np.arange(len(GRADS)), 5)
    assert_follows(updates[others], GRADS[others], learning_rate=0.1)


def test_masked_and_multi_transform_reach_only_their_leaves():
    grads = {"a": GRADS, "b": 2 * GRADS}
    masked = updates_of(
        optax.masked(rj.rmsprop(0.1, centered=True), {"a": True, "b": False}), grads
    )
    assert_follows(masked["a"], learning_rate=0.1, centered=True)
    np.testing.assert_array_equal(masked["b"], grads["b"])

    solver = optax.multi_transform(
        {"fast": rj.rmsprop(0.1), "slow": rj.rmsprop(0.001, momentum=0.9)},
        {"a": "fast", "b": "slow"},
    )
    updates = updates_of(solver, grads)
    assert_follows(updates["a"], learning_rate=0.1)
    assert_follows(updates["b"], grads["b"], learning_rate=0.001, momentum=0.9)


# From Optax's state to ours and back: the code of docs/pages/porting.md.


MOVED = [
    {"centered": centered, "bias_correction": corrected, **momentum, **rate}
    for centered, corrected, momentum, rate in itertools.product(
        [False, True],
        [False, True],
        [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}],
        [{}, {"learning_rate": optax.linear_schedule(0.1, 0.01, 30)}],
    )
]


moved = {"-".join(k for k, v in flags.items() if v): flags for flags in MOVED}


@pytest.mark.parametrize(
    "flags", few(moved, ["centered-bias_correction-momentum-nesterov-learning_rate"])
)
def test_a_run_moves_between_optax_and_here(x64, flags):
    numbers = {"decay": 0.95, "initial_scale": 0.25}
    settings = {"learning_rate": 0.1, "eps": 1e-3, "eps_in_sqrt": True, **numbers, **flags}
    solvers = {"optax": optax.rmsprop(**settings), "ours": rj.rmsprop(**settings)}
    rng = np.random.default_rng(0)
    grads = {"w": jnp.asarray(rng.normal(size=(40, 3))), "none": None, "b": jnp.ones((40, 1))}
    grads["b"] = grads["b"] + 0.5 * jnp.asarray(rng.normal(size=(40, 1)))

    def run(solver):
        """The updates of all 40 steps, and the state before each."""

        def step(state, g):
            updates, after = solver.update(g, state)
            return after, (updates, state)

        return jax.jit(lambda state, grads: jax.lax.scan(step, state, grads)[1])

    runs = {name: run(solver) for name, solver in solvers.items()}
    first = jax.tree.map(lambda g: g[0], grads)
    fresh = {name: solver.init(first) for name, solver in solvers.items()}
    whole = {name: runs[name](fresh[name], grads) for name in solvers}
    for there, here in (("optax", "ours"), ("ours", "optax")):
        expected, states = whole[there]
        # The first step differs where it is centered and corrected: Optax's variance is s₀ alone.
        for before in (1, 20) if flags["centered"] and flags["bias_correction"] else (0, 1, 20):
            state = jax.tree.map(operator.itemgetter(before), states)
            moved = fresh[here]
            if before:
                found = rj.moments(state, initial_scale=numbers["initial_scale"])
                weighs = flags["bias_correction"] and here == "ours"
                moved = rj.restore_state(
                    solvers[here],
                    first,
                    second_moment=found.second_moment,
                    first_moment=found.first_moment,
                    momentum=found.momentum,
                    weight=1 - numbers["decay"] ** before if weighs else None,
                    step=before,
                )
            chex.assert_trees_all_equal_shapes_and_dtypes(moved, fresh[here])
            # The gradients that were still to come, and behind them any, for the same shape.
            later = jax.tree.map(functools.partial(jnp.roll, shift=-before, axis=0), grads)
            got, _ = runs[here](moved, later)
            for leaf, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
                assert_same_travel(leaf[: 40 - before], other[before:], 1e-12)


def test_copying_optax_raw_moment_as_ours_is_wrong():
    """The test above fails with this fault."""
    settings = {"learning_rate": 0.1, "decay": 0.95, "centered": True, "eps_in_sqrt": True}
    theirs, ours = optax.rmsprop(**settings), rj.rmsprop(**settings)
    g = jnp.array([1.0, -2.0])
    state = theirs.init(g)
    for _ in range(20):
        expected, state = theirs.update(g, state)
    scaled = ours.init(g)[1]._replace(nu=state[0].nu, mu=state[0].mu)
    got, _ = ours.update(g, (optax.EmptyState(), scaled, *state[1:]))
    expected, _ = theirs.update(g, state)
    assert (got / expected < 0.9).all()
