"""`rmsprop` and `scale_by_rms` alone: the formula, trees, dtypes, tracing, derivatives, limits."""

import functools
import inspect
import itertools
from typing import Any, NamedTuple

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmsprop_jax as rj
from tests.support import reference
from tests.support.steps import stay, travel
from tests.support.tables import crossed

pytestmark = pytest.mark.usefixtures("strict")

FULL = {"centered": True, "momentum": 0.9, "nesterov": True, "bias_correction": True}
VARIANTS = {"plain": {}, "momentum": {"momentum": 0.9}, "full": FULL}
variants = pytest.mark.parametrize("flags", VARIANTS.values(), ids=VARIANTS)


def stream(*shape, dtype=np.float32):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


# The formula.


def test_defaults_are_the_seed_formula():
    grads = stream(50, 6)
    updates = stay(rj.rmsprop(), grads)[1]
    s = np.zeros(6)
    for g, update in zip(grads.astype(np.float64), updates, strict=True):
        s = 0.9 * s + 0.1 * g**2
        np.testing.assert_allclose(update, -0.001 * g / (np.sqrt(s) + 1e-8), rtol=2e-6)


def test_a_constant_gradient_has_a_closed_form():
    """s_t = g² (1 − ρᵗ) from s₀ = 0; bias-corrected, the step is sign(g)."""
    g, t = np.float32(3.0), np.arange(1, 101)

    def one(decay, corrected):
        solver = rj.scale_by_rms(decay, eps=0.0, bias_correction=corrected)
        step = lambda state, _: (lambda u, s: (s, (u, s.nu)))(*solver.update(g, state))
        return jax.lax.scan(step, solver.init(g), length=100)[1]

    decays = np.float32([0.0, 0.5, 0.9, 0.999])
    for corrected in (False, True):
        updates, nu = jax.vmap(lambda decay, c=corrected: one(decay, c))(decays)
        weight = 1 - decays.astype(np.float64)[:, None] ** t
        np.testing.assert_allclose(nu, 9 * weight, rtol=1e-5)
        root = 1 if corrected else np.sqrt(weight)
        np.testing.assert_allclose(updates * root, np.ones_like(nu), rtol=1e-5)


def test_complex_gradients_have_one_modulus():
    grads = (stream(50, 2, 4)[:, 0] + 1j * stream(50, 2, 4)[:, 1]).astype(np.complex64)
    for flags in VARIANTS.values():
        updates = stay(rj.rmsprop(0.1, **flags), grads)[1]
        expected = reference.rmsprop(grads, 0.1, **flags)
        # `full` starts with 0/ε, 1e7 in size; what follows it is compared by itself
        error = abs(updates[30:] - expected[30:]).max()
        assert error <= 2e-5 * abs(expected[30:]).max()


# Trees and dtypes.


class Pair(NamedTuple):
    weight: Any
    bias: Any


TREES = [
    {},
    jnp.float32(2.0),
    1.5,
    (),
    (jnp.ones(2), [jnp.ones(())]),
    Pair(jnp.ones((2, 3)), 0.5),
    Pair(jnp.ones(2), None),
    {"deep": {"none": None, "empty": jnp.ones((0, 3)), "pair": Pair(1.0, (jnp.ones(1),))}},
]


@pytest.mark.parametrize(("params", "flags"), crossed(TREES, VARIANTS))
def test_any_tree(params, flags):
    """Each leaf is updated as it would be alone, whatever the tree around it."""
    solver = rj.rmsprop(0.1, **flags)
    grads = jax.tree.map(lambda p: 0.5 * p, params)
    state = solver.init(params)
    updates, new_state = solver.update(grads, state)
    chex.assert_trees_all_equal_structs(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
    for g, u in zip(jax.tree.leaves(grads), jax.tree.leaves(updates), strict=True):
        alone, _ = solver.update(jnp.asarray(g), solver.init(jnp.asarray(g)))
        assert jnp.shape(u) == jnp.shape(g)
        np.testing.assert_array_equal(u, alone)
        assert np.all(np.asarray(u) < 0)


REAL = ["bfloat16", "float16", "float32", "float64"]
DTYPES = [*itertools.product(REAL, REAL), ("complex64", "complex64"), ("complex128", "complex64")]


@pytest.mark.parametrize(("dtypes", "flags"), crossed({"-".join(d): d for d in DTYPES}, VARIANTS))
def test_dtypes_of_parameters_and_gradients(x64, dtypes, flags):
    """Updates are as wide as gradient and parameter; the state keeps its dtypes from `init`."""
    param, grad = dtypes
    params, g = jnp.ones(2, param), jnp.ones(2, grad)
    solver = rj.rmsprop(0.1, **flags)
    state = solver.init(params)
    real = jnp.float64 if param in ("float64", "complex128") else jnp.float32
    for leaf in jax.tree.leaves(optax.tree_utils.tree_get(state, "nu")):
        assert leaf.dtype == real
    weight = optax.tree_utils.tree_get(state, "weight")
    assert all(x.dtype == jnp.float64 for x in jax.tree.leaves(weight))  # JAX's default float
    for leaf in jax.tree.leaves(optax.tree_utils.tree_set(state, weight=None)):
        assert leaf.dtype == jnp.int32 or jnp.finfo(leaf.dtype).dtype == real
        assert leaf.dtype == jnp.int32 or leaf.dtype == real or jnp.iscomplexobj(params)

    def train(state, g):
        step = lambda state, _: solver.update(g, state, params)[::-1]
        state, updates = jax.lax.scan(step, state, length=3)
        state = jax.lax.cond(
            updates[0, 0].real > 0, lambda s: solver.update(g, s, params)[1], lambda s: s, state
        )
        return updates, state

    updates, new_state = jax.eval_shape(train, state, g)
    assert updates.dtype == max(g.dtype, params.dtype, key=lambda dtype: jnp.finfo(dtype).bits)
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, jax.eval_shape(lambda: state))


def test_a_gradient_of_another_shape_is_refused():
    """It would broadcast silently, and train something else."""
    solver = rj.rmsprop()
    with pytest.raises(ValueError, match=r"\(3,\).*\(3, 1\)"):
        solver.update(jnp.ones(3), solver.init(jnp.ones((3, 1))))


# Tracing: one compile, vmap, scan, donation.


def test_one_trace_for_all_steps_and_numbers():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(g, state, rate, decay):
        return rj.rmsprop(rate, decay, **FULL).update(g, state)

    g = jnp.ones(3)
    state = rj.rmsprop(**FULL).init(g)
    for rate, decay in [(0.1, 0.9), (0.2, 0.99), (0.0, 0.0)]:
        _, state = step(g, state, jnp.float32(rate), jnp.float32(decay))


@variants
def test_vmap_over_numbers_equals_a_loop_over_python_floats(x64, flags):
    grid = {
        "learning_rate": [0.1, 0.02, 3.0, 0.5],
        "decay": [0.9, 0.0, 0.5, 0.999],
        "eps": [1e-8, 0.1, 1e-3, 1e-2],
        "initial_scale": [0.0, 1.0, 2.5, 0.1],
    }
    if "momentum" in flags:
        grid["momentum"] = [0.9, 0.0, 0.3, 0.99]
    grads = stream(20, 5, dtype=np.float64)
    run = lambda point: stay(rj.rmsprop(**{**flags, **point}), grads)
    states, updates = jax.jit(jax.vmap(run))({k: jnp.asarray(v) for k, v in grid.items()})
    for i, values in enumerate(zip(*grid.values(), strict=True)):
        state, alone = jax.jit(lambda v=values: run(dict(zip(grid, v, strict=True))))()
        np.testing.assert_allclose(updates[i], alone, rtol=1e-12)
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], states), state, rtol=1e-12)


@variants
def test_scan_equals_a_python_loop(flags):
    grads = stream(20, 5)
    solver = rj.rmsprop(0.1, initial_scale=1.0, **flags)
    final, updates = stay(solver, grads)
    state = solver.init(jnp.zeros(5))
    for g, expected in zip(grads, updates, strict=True):
        u, state = solver.update(g, state)
        np.testing.assert_allclose(u, expected, rtol=2e-5, atol=1e-7)
    chex.assert_trees_all_close(final, state, rtol=1e-5, atol=1e-7)


@variants
@pytest.mark.parametrize("initial_scale", [0.0, np.float32(1.0), "array"])
def test_the_state_can_be_donated(flags, initial_scale):
    """Donation refuses a buffer that stands in two leaves, as equal zeros or one s₀ would."""
    s0 = jnp.float32(1.0) if initial_scale == "array" else initial_scale
    solver = rj.rmsprop(initial_scale=s0, **flags)
    params = {"a": jnp.float32(1.0), "b": jnp.float32(1.0), "c": 1.0, "d": jnp.ones(3)}
    state = solver.init(params)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)
    jax.jit(lambda state: solver.update(params, state)[1], donate_argnums=0)(state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


# Learning rate and momentum, weight decay.

DECAYS = {
    "none": {},
    "coupled": {"weight_decay": 0.3},
    "decoupled": {"weight_decay": 0.3, "decoupled_weight_decay": True},
}


@pytest.mark.parametrize(
    ("momentum", "kind", "decay", "lr_in_momentum"),
    crossed(
        [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}],
        ["real", "complex"],
        list(DECAYS),
        [True, False],
    ),
)
def test_learning_rate_and_weight_decay_against_the_equations(
    x64, lr_in_momentum, decay, kind, momentum
):
    """Under a schedule, which tells the two places of the learning rate apart."""
    grads, params = stream(100, 4, dtype=np.float64), np.linspace(-3.0, 4.0, 4)
    if kind == "complex":
        grads, params = grads + 1j * grads[::-1], params * (1 - 2j)
    flags = {"lr_in_momentum": lr_in_momentum, **momentum, **DECAYS[decay]}
    solver = rj.rmsprop(lambda t: 0.01 / (1.0 + t.astype(float)), eps=1e-2, **flags)
    _, updates = jax.jit(functools.partial(travel, solver))(grads, params)
    expected = reference.rmsprop(
        grads, lambda t: 0.01 / (1.0 + t), eps=1e-2, params=params, **flags
    )
    np.testing.assert_allclose(updates, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("decay", ["coupled", "decoupled"])
@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("form", ["tree", "function", "prefix"])
def test_mask_says_which_parameters_decay(decay, momentum, form):
    params = {"w": {"a": jnp.full(3, 2.0), "b": jnp.float32(1.0)}, "bias": jnp.ones(2)}
    tree = {"w": {"a": True, "b": True}, "bias": False}
    mask = {"tree": tree, "function": lambda p: tree, "prefix": {"w": True, "bias": False}}[form]
    grads = jax.tree.map(lambda p: 0.1 * p, params)

    def step(**settings):
        solver = rj.rmsprop(0.1, momentum=momentum, **settings)
        return solver.update(grads, solver.init(params), params)[0]

    masked, whole, none = step(mask=mask, **DECAYS[decay]), step(**DECAYS[decay]), step()
    chex.assert_trees_all_equal(masked["w"], whole["w"])
    chex.assert_trees_all_equal(masked["bias"], none["bias"])
    if decay == "decoupled":
        np.testing.assert_allclose(masked["w"]["a"], none["w"]["a"] - 0.1 * 0.3 * 2, rtol=1e-6)


@pytest.mark.parametrize("decay", ["coupled", "decoupled"])
def test_weight_decay_traces_keeps_one_count_and_is_injected(decay):
    params, grads = jnp.ones(3), jnp.array([0.1, -0.2, 0.3])
    flags = {"momentum": 0.9, **DECAYS[decay]}
    solver = rj.rmsprop(optax.constant_schedule(0.1), **flags)
    updates, state = solver.update(grads, solver.init(params), params)
    assert optax.tree_utils.tree_get(state, "count") == 1

    def step(strength):
        solver = rj.rmsprop(0.1, **{**flags, "weight_decay": strength})
        return solver.update(grads, solver.init(params), params)[0]

    np.testing.assert_allclose(jax.jit(step)(jnp.float32(0.3)), updates, rtol=1e-6)
    with jax.numpy_dtype_promotion("standard"):
        injected = optax.inject_hyperparams(rj.rmsprop)(0.1, mask={"w": True, "v": False}, **flags)
        tree = lambda x: {"w": x, "v": x}
        got, _ = injected.update(tree(grads), injected.init(tree(params)), tree(params))
    np.testing.assert_allclose(got["w"], updates, rtol=1e-6)


def test_weight_decay_in_half_precision_is_computed_in_float32():
    """λθ is below half a last place of g in bfloat16, and still arrives."""
    params, g = jnp.full(2, 1.0, jnp.bfloat16), jnp.full(2, 1.0, jnp.bfloat16)
    solver = rj.rmsprop(0.1, 0.0, weight_decay=2.0**-10, momentum=0.0)
    _, state = solver.update(g, solver.init(params), params)
    np.testing.assert_allclose(optax.tree_utils.tree_get(state, "nu"), (1 + 2.0**-10) ** 2)


def test_weight_decay_needs_params():
    solver = rj.rmsprop(weight_decay=0.1)
    with pytest.raises(ValueError, match="params"):
        solver.update(jnp.ones(2), solver.init(jnp.ones(2)))


# Derivatives.

NUMBERS = {
    "learning_rate": 0.1, "decay": 0.8, "eps": 0.05, "initial_scale": 0.3, "momentum": 0.7,
    "weight_decay": 0.2,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bias_correction", "centered", "eps_in_sqrt"), crossed(*[[False, True]] * 3)
)
def test_derivatives_through_fifty_steps(x64, eps_in_sqrt, centered, bias_correction):
    """Reverse, forward and central differences agree, and where s = 0 all stay finite."""
    flags = {"eps_in_sqrt": eps_in_sqrt, "centered": centered, "bias_correction": bias_correction}
    weights = stream(50, 3, dtype=np.float64)
    grads = weights[::-1] + 0.1
    flags["lr_in_momentum"] = flags["decoupled_weight_decay"] = centered  # each once

    def f(numbers, grads, params):
        return jnp.sum(weights * stay(rj.rmsprop(**numbers, **flags), grads, params)[1])

    @jax.jit
    def all_derivatives(*x):
        return jax.grad(f, (0, 1))(*x), jax.jacfwd(f, (0, 1))(*x)

    x = (jax.tree.map(jnp.float64, NUMBERS), jnp.asarray(grads))
    params = jnp.array([1.0, -2.0, 0.5])
    reverse, forward = all_derivatives(*x, params)
    flat, unflatten = jax.flatten_util.ravel_pytree(x)
    h = 1e-5
    shifted = jax.jit(jax.vmap(lambda v: f(*unflatten(v), params)))
    flat = np.asarray(flat)  # NumPy: no strict ranks there
    up, down = flat + h * np.eye(flat.size), flat - h * np.eye(flat.size)
    numeric = (shifted(up) - shifted(down)) / (2 * h)
    for derivative in (reverse, forward):
        analytic = jax.flatten_util.ravel_pytree(derivative)[0]
        np.testing.assert_allclose(analytic, numeric, rtol=1e-5, atol=1e-5)

    late = np.where(np.arange(50)[:, None] < 3, 0.0, grads)
    for eps, decay, zeros in itertools.product((0.05, 0.0), (0.8, 0.0), (0 * late, late)):
        numbers = {**x[0], "eps": eps, "decay": decay, "initial_scale": 0.0}
        numbers = jax.tree.map(jnp.float64, numbers)
        # From params of 0, so that no weight decay hides that g is 0.
        chex.assert_tree_all_finite(all_derivatives(numbers, jnp.asarray(zeros), 0 * params))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("momentum", "bias_correction", "eps_in_sqrt", "eps"),
    crossed(
        [None, 0.9],
        [False, True],
        [False, True],
        [1e-8, 0.0],
        plain=["None-False-False-1e-08", "None-True-True-0.0"],
    ),
)
def test_derivatives_under_a_constant_gradient(eps, eps_in_sqrt, bias_correction, momentum):
    """Centred, its variance is 0, and with ε = 0 so is the denominator."""
    names = ("learning_rate", "decay", "eps", "initial_scale", "momentum")
    values = (0.1, 0.9, eps, 0.0, momentum)
    numbers = {k: jnp.float32(v) for k, v in zip(names, values, strict=True) if v is not None}

    def f(numbers):
        solver = rj.rmsprop(
            **numbers, centered=True, eps_in_sqrt=eps_in_sqrt, bias_correction=bias_correction
        )
        return jnp.sum(stay(solver, jnp.ones(10))[1])

    chex.assert_tree_all_finite((jax.grad(f)(numbers), jax.jacfwd(f)(numbers)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("centered", "bias_correction", "eps_in_sqrt"),
    crossed([False, True], [True, False], [False, True]),
)
def test_derivatives_through_parameters_that_move(eps_in_sqrt, bias_correction, centered):
    """Down to gradients of 1e-30, as the page on numerics promises: first derivatives for any ε
    (centered: for ε > 0 and ρ > 0), second ones in η and ρ for ε > 0 and ρ > 0."""
    flags = {"eps_in_sqrt": eps_in_sqrt, "bias_correction": bias_correction, "centered": centered}
    kinds = [(1e-30, 1e-30, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0)]
    kinds += [(1e-30, 1e-31, 1.0), (1e-20, 1e-20, 0.0)]
    decays, epsilons = (0.9,) if centered else (0.0, 0.9), (1e-8,) if centered else (0.0, 1e-8)
    lanes = jnp.array([(*x[:2], *x[2]) for x in itertools.product(decays, epsilons, kinds)])

    def f(numbers, params, lane):
        solver = rj.rmsprop(numbers["learning_rate"], numbers["decay"], lane[1], **flags)

        def step(carry, t):
            params, state = carry
            g = lane[2] + lane[3] * params + lane[4] * (t % 2.0) * (1 + 0.1 * params)
            updates, state = solver.update(g, state)
            return (params + updates, state), jnp.sum(params**2)

        start = params, solver.init(params)
        return jax.lax.scan(step, start, jnp.arange(6.0))[1].sum()

    def derivatives(lane):
        numbers = {"learning_rate": jnp.float32(0.1), "decay": lane[0]}
        params = jnp.array([1.0, 0.5])
        first = jax.grad(f, (0, 1))(numbers, params, lane)
        return first, jax.jacfwd(jax.grad(f))(numbers, params, lane)

    first, second = jax.jit(jax.vmap(derivatives))(lanes)
    chex.assert_tree_all_finite(first)
    sure = (lanes[:, 0] > 0) & (lanes[:, 1] > 0)
    chex.assert_tree_all_finite(jax.tree.map(lambda x: x[sure], second))


# JAX's debugging flags: nothing on the way is NaN or infinite either.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("eps_in_sqrt", "centered", "flags"),
    crossed([False, True], [False, True], [{"decay": 0.0}, {"bias_correction": True}, {}]),
)
def test_debug_infs_and_debug_nans_have_nothing_to_say(flags, centered, eps_in_sqrt):
    solver = rj.rmsprop(0.1, eps=0.0, centered=centered, eps_in_sqrt=eps_in_sqrt, **flags)
    with jax.debug_infs(True), jax.debug_nans(True):
        for update in (solver.update, jax.jit(solver.update)):
            for g in (jnp.zeros(2), jnp.array([1.0, -1e19]), jnp.ones(2, jnp.bfloat16)):
                state = solver.init(g)
                for _ in range(2):
                    updates, state = update(g, state)
                    jax.block_until_ready(updates)


# Half precision.


@pytest.mark.slow
@pytest.mark.parametrize(("half", "flags"), crossed([jnp.float16, jnp.bfloat16], VARIANTS))
def test_half_precision_is_the_float32_run_cast_at_the_end(half, flags):
    grads = jnp.asarray(stream(200, 5)).astype(half)
    solver = rj.rmsprop(0.1, decay=0.999, **flags)
    run = jax.jit(lambda grads: stay(solver, grads)[1])
    updates, wide = run(grads), run(grads.astype(jnp.float32))
    largest = float(jnp.finfo(half).max)
    expected = np.clip(wide, -largest, largest).astype(half)
    assert updates.dtype == half
    # Two programs may round float32 otherwise, and so the cast: by one last place at most.
    rounding = float(jnp.finfo(half).eps)
    np.testing.assert_allclose(
        updates.astype(jnp.float32), expected.astype(np.float32), rtol=rounding, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_saturates(dtype):
    """A step ten times too large for the dtype becomes its largest number, not inf."""
    g = jnp.asarray([1.0, -1.0], dtype)
    solver = rj.rmsprop(float(jnp.finfo(dtype).max), decay=0.99)
    updates, _ = solver.update(g, solver.init(g))
    largest = float(jnp.finfo(dtype).max)
    np.testing.assert_array_equal(updates.astype(jnp.float32), np.float32([-largest, largest]))


@variants
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_a_zero_gradient_gives_a_zero_update(dtype, eps, flags):
    g = jnp.zeros(2, dtype)
    for inside in (False, True):
        solver = rj.rmsprop(eps=eps, eps_in_sqrt=inside, **flags)
        updates, state = solver.update(g, solver.init(g))
        assert (updates == 0).all()
        chex.assert_tree_all_finite(state)


# Overflow.


@pytest.mark.parametrize("eps_in_sqrt", [False, True])
@pytest.mark.parametrize("bias_correction", [False, True])
def test_the_step_is_bounded_for_any_gradient(eps_in_sqrt, bias_correction):
    """|u| ≤ 1/√(1 − ρ), with ε = 0 and magnitudes that underflow and overflow when squared."""
    rng = np.random.default_rng(0)
    grads = 10 ** rng.uniform(-38, 38.5, (200, 64)) * rng.choice([-1, 1], (200, 64))
    grads[::50, ::7] = np.inf
    grads = jnp.asarray(grads, jnp.float32)

    def one(decay):
        solver = rj.scale_by_rms(decay, 0.0, 0.0, eps_in_sqrt, bias_correction)
        return stay(solver, grads)

    decays = jnp.float32([0.0, 0.5, 0.9, 0.99, 0.999])
    states, updates = jax.jit(jax.vmap(one))(decays)
    chex.assert_tree_all_finite(states)
    largest = abs(np.asarray(updates)).max(axis=(1, 2))
    assert (largest <= (1 + 1e-5) / np.sqrt(1 - np.asarray(decays))).all()
    assert largest[0] > 0.99  # the bound is tight


number = st.floats(width=32, allow_nan=False, allow_infinity=True)


@jax.jit
def bounded_steps(grads):
    return stay(rj.scale_by_rms(0.9, eps=0.0), grads)


@pytest.mark.slow
@hypothesis.settings(deadline=None, database=None, derandomize=True, max_examples=200)
@hypothesis.given(st.lists(number, min_size=12, max_size=12))
def test_the_step_is_bounded_for_the_worst_stream_found(grads):
    state, updates = bounded_steps(np.float32(grads))
    assert (abs(updates) <= 1.00001 / np.sqrt(0.1)).all()
    chex.assert_tree_all_finite(state)


@pytest.mark.parametrize(
    ("kind", "momentum", "centered"), crossed(["real", "complex"], [None, 0.9], [False, True])
)
def test_huge_gradients_stay_finite_and_pass(centered, momentum, kind):
    """Ones with a spike of each sort; afterwards the steps are again those of the ones alone."""
    spikes = np.float32([3e38, -3e38, np.inf, -np.inf, 1e30, 1e19, 1.0])
    grads = np.ones((1000, len(spikes)), np.float32) + 0.5 * stream(1000, 1)
    grads[20] = spikes
    if kind == "complex":
        grads = jax.lax.complex(grads, -grads)
    solver = rj.rmsprop(0.1, 0.5, eps=1e-3, centered=centered, momentum=momentum)
    state, updates = jax.jit(lambda g: stay(solver, g))(grads)
    chex.assert_tree_all_finite((state, updates))
    np.testing.assert_allclose(updates[:, 2], updates[:, 4], rtol=1e-6)  # inf counts as 1e30
    np.testing.assert_allclose(updates[:, 0], updates[:, 4], rtol=1e-6)
    if momentum is None:
        assert (np.sign(updates[20].real) == -np.sign(spikes)).all()
    np.testing.assert_allclose(
        updates[-100:], np.broadcast_to(updates[-100:, 6:], updates[-100:].shape), rtol=1e-4
    )


def test_what_was_cut_leaves_a_smaller_average_than_the_formulas():
    """Where README says that it departs from the formula: g = 1e25 counts as 1e19."""
    rms = rj.scale_by_rms()
    state = rms.init(jnp.float32(0))
    for g in (1e25, 1e20):
        u, state = rms.update(jnp.float32(g), state)
    assert u == pytest.approx(1e19 / (0.1 * 1e38 + 0.9 * 0.1 * 1e38) ** 0.5, rel=1e-5)  # 2.294
    assert 0 < reference.rmsprop([1e25, 1e20], learning_rate=-1.0)[-1] < 1e-4


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99])
def test_the_first_step(decay):
    """As use.md says of a gradient far above ε."""
    for centered, expected in ((False, (1 - decay) ** -0.5), (True, (decay * (1 - decay)) ** -0.5)):
        rms = rj.scale_by_rms(decay, centered=centered)
        u, _ = rms.update(jnp.float32(3.0), rms.init(jnp.float32(0)))
        assert u == pytest.approx(expected, rel=1e-5)


@variants
def test_only_huge_gradients(flags):
    """All of them at the top, for long: the averages reach their largest value and stay there."""
    for g in (3e38, np.inf):
        state, updates = stay(rj.rmsprop(0.1, **flags), jnp.full((500, 2), g, jnp.float32))
        chex.assert_tree_all_finite((state, updates))


# Any settings in range, one lane each; η up to 10 (a larger one may overflow the step by itself).
SETTINGS = {
    "learning_rate": [1e-3, 10.0, 0.0],
    "decay": [0.0, 0.5, 0.9, 0.999, 1 - 2.0**-24],
    "eps": [0.0, 1e-8, 1e-30, 1e-2, 1e10],
    "initial_scale": [0.0, 1.0, 1e38],
    "momentum": [0.0, 0.9, 1 - 2.0**-24],
}
KINDS = ["bfloat16", "float16", "float32", "float64", "complex64"]
STRUCTURES = [
    {
        "eps_in_sqrt": inside,
        "centered": centered,
        "bias_correction": corrected,
        "nesterov": corrected,
    }
    for inside, centered, corrected in itertools.product([False, True], repeat=3)
]


def lanes(dtype):
    """A spread over all combinations, each value of each axis at least once."""
    rows = list(itertools.product(*SETTINGS.values()))[::7]
    return {k: jnp.asarray(v, dtype) for k, v in zip(SETTINGS, np.array(rows).T, strict=True)}


def adversarial_streams(dtype, steps=300):
    """(steps, kinds): constant, tiny, huge, denormal, alternating, zero, spikes, overflows."""
    info, t = jnp.finfo(dtype), np.arange(steps)
    largest, small = float(info.max), float(info.smallest_subnormal)
    rng = np.random.default_rng(0)
    spread = lambda: rng.uniform(np.log10(small) + 1, np.log10(largest) - 0.01, steps)
    streams = [
        np.full(steps, 3.0),
        np.full(steps, 1e-7 if dtype == "float16" else 1e-30),
        np.full(steps, largest),
        np.full(steps, small),
        largest * (-1.0) ** t,
        np.sqrt(largest) * 2 * (-1.0) ** t,
        np.zeros(steps),
        np.where(t % 50 == 10, largest, 0.0),
        np.where(t % 50 == 10, -largest, small),
        np.where(t < 10, largest, -3.0),
        np.where(t < 200, 0.1, -largest),
        rng.choice([-1, 1], steps) * 10.0 ** spread(),
        10.0 ** spread(),
        np.sqrt(largest) * (1 + 1e-3 * rng.normal(size=steps)),
    ]
    g = np.stack(streams, axis=1).clip(-largest, largest)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jnp.asarray(g + 1j * np.roll(g, 1, axis=1), dtype)
    return jnp.asarray(g, dtype)


@functools.partial(jax.jit, static_argnums=(0, 2))
def holds(flags, grads, kind):
    """For each lane and step: all is finite, and no average of squares is negative."""

    def one(numbers):
        solver = rj.rmsprop(**numbers, **dict(flags))

        def step(state, g):
            updates, state = solver.update(g, state)
            nu = optax.tree_utils.tree_get(state, "nu")
            finite = [jnp.isfinite(x).all() for x in jax.tree.leaves((updates, state))]
            return state, (jnp.stack(finite).all(), (nu >= 0).all())

        return jax.lax.scan(step, solver.init(grads[0]), grads)[1]

    # Under strict promotion Optax' own trace refuses a float32 momentum of a complex64 step.
    with jax.numpy_dtype_promotion("standard" if kind == "complex64" else "strict"):
        return jax.vmap(one)(lanes(jnp.float64 if kind == "float64" else jnp.float32))


structures = {"-".join(k for k in flags if flags[k]) or "plain": flags for flags in STRUCTURES}


ONE_OF_EACH_DTYPE = [
    "bfloat16-centered", "float16-eps_in_sqrt", "float32-plain", "float64-bias_correction-nesterov",
    "complex64-eps_in_sqrt-centered-bias_correction-nesterov",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "flags"), crossed(KINDS, structures, plain=ONE_OF_EACH_DTYPE))
def test_no_finite_gradient_breaks_it(x64, kind, flags):
    finite, positive = holds(tuple(flags.items()), adversarial_streams(kind), kind)
    assert finite.all()
    assert positive.all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "flags"),
    crossed(
        KINDS,
        structures,
        plain=["float32-plain", "float32-eps_in_sqrt-centered-bias_correction-nesterov"],
    ),
)
def test_no_finite_gradient_found_breaks_it(x64, kind, flags):
    """The same by search over any finite numbers of the dtype."""
    largest = float(jnp.finfo(kind).max)
    width = {"float64": 64, "float16": 16}.get(kind, 32)
    finite = st.floats(-largest, largest, width=width)

    @hypothesis.settings(deadline=None, database=None, derandomize=True, max_examples=20)
    @hypothesis.given(st.lists(finite, min_size=24, max_size=24))
    def search(numbers):
        g = np.array(numbers).reshape(6, 4)
        g = g + 1j * g[::-1] if kind == "complex64" else g
        assert all(x.all() for x in holds(tuple(flags.items()), jnp.asarray(g, kind), kind))

    search()


@pytest.mark.parametrize("initial_scale", [3e38, 1e300])
def test_a_huge_initial_scale_is_forgotten_too(initial_scale):
    solver = rj.scale_by_rms(initial_scale=initial_scale, decay=0.5)
    state, updates = stay(solver, jnp.ones((600, 2)))
    chex.assert_tree_all_finite(state)
    np.testing.assert_allclose(updates[-1], 1.0, rtol=1e-5)


@variants
def test_nan_stays_visible_and_alone(flags):
    g = jnp.asarray([jnp.nan, 1.0])
    solver = rj.rmsprop(0.1, **flags)
    updates, _ = solver.update(g, solver.init(g))
    np.testing.assert_array_equal(np.isnan(updates), [True, False])


# What is refused.

BAD = [
    *(("decay", x) for x in (-0.1, 1.0, np.nan, np.inf, np.array([0.9, 0.9]), "x", True, None)),
    *(("eps", x) for x in (-1.0, np.nan, np.inf, np.zeros(1))),
    *(("momentum", x) for x in (1.0, -0.1, np.nan, "x", False)),
    *(("initial_scale", x) for x in (-1.0, np.nan, None)),
    *(("weight_decay", x) for x in (-0.1, np.nan, np.inf, np.zeros(2), "x", True)),
    *(("learning_rate", x) for x in (np.nan, np.inf, np.array([0.1, 0.2]), None, True)),
    *((flag, 1) for flag in ("centered", "bias_correction", "eps_in_sqrt", "nesterov")),
    *((flag, 1) for flag in ("lr_in_momentum", "decoupled_weight_decay")),
    ("nesterov", True),  # without momentum
]


@pytest.mark.parametrize(("argument", "value"), BAD, ids=repr)
def test_a_bad_value_is_refused_by_name(argument, value):
    for make in (rj.rmsprop, rj.scale_by_rms):
        if argument not in inspect.signature(make).parameters:
            continue
        with pytest.raises(ValueError, match=rf"\b{argument}\b"):
            make(**{argument: value})


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.array(0.5), jnp.float32(0.5), 0])
def test_numbers_of_any_kind_are_taken(value):
    g = jnp.ones(2)
    solver = rj.rmsprop(value, value, value, value, momentum=value)
    plain = rj.rmsprop(*[float(value)] * 4, momentum=float(value))
    chex.assert_trees_all_equal(solver.update(g, solver.init(g)), plain.update(g, plain.init(g)))


def test_traced_values_are_not_checked():
    """Their values are not known; a sweep over bad ones has bad trials, not an error."""

    def step(x):
        solver = rj.rmsprop(x, x, x, x, momentum=x)
        return solver.update(jnp.ones(2), solver.init(jnp.ones(2)))[0]

    assert jax.jit(step)(jnp.float32(-2.0)).shape == (2,)
    with pytest.raises(ValueError, match=r"learning_rate.*shape \(2,\)"):  # a shape is known
        jax.jit(step)(jnp.ones(2) * 0.5)


NARROW = ["bfloat16", "float16", "float32"]


@pytest.mark.parametrize(
    ("kind", "dtype", "argument"),
    crossed(["traced", "jax", "numpy"], NARROW, ["decay", "momentum"]),
)
def test_a_one_counts_as_the_largest_number_below_one(argument, dtype, kind):
    """It is what .999 (bfloat16) or .99999999 (float32) was rounded to; jitted or not."""
    one = jnp.asarray(1.0, dtype) if kind != "numpy" else np.ones((), jnp.dtype(dtype))
    below = float(np.nextafter(np.ones((), jnp.dtype(dtype)), np.zeros((), jnp.dtype(dtype))))
    settings = lambda x: {"momentum": 0.5} | {argument: x}
    step = lambda x: stay(rj.rmsprop(0.1, **settings(x)), jnp.ones((200, 2)))[1]
    got = jax.jit(step)(one) if kind == "traced" else step(one)
    np.testing.assert_allclose(got, step(below), rtol=1e-4)
    if argument == "decay":
        assert abs(got[0] / 0.1).max() <= (1 + 1e-4) / np.sqrt(1 - below)
    with pytest.raises(ValueError, match=argument):  # a Python number is what it says
        step(1.0)


def test_a_sweep_of_decays_that_float32_rounds_to_one_stays_bounded():
    def train(hp, key):
        solver = rj.scale_by_rms(hp["decay"])
        return {"loss": jnp.max(abs(stay(solver, jnp.ones((500, 2)))[1]))}

    result = rj.sweep(train, rj.grid(decay=[0.9, 0.99999999]), progress=False)
    assert (result.objective <= np.sqrt(1 / (1 - np.array([0.9, 1 - 2.0**-24]))) * 1.001).all()


@pytest.mark.parametrize("settings", [{"centered": True}, {"momentum": 0.9}], ids=str)
def test_a_complex_gradient_of_a_real_parameter_is_refused(settings):
    solver = rj.rmsprop(**settings)
    with pytest.raises(ValueError, match="complex64"):
        solver.update(jnp.ones(2, jnp.complex64), solver.init(jnp.ones(2)))


@pytest.mark.parametrize("argument", ["eps", "initial_scale"])
def test_numbers_beyond_float32_are_its_largest(argument):
    solver = rj.rmsprop(**{argument: 1e300})
    updates, _ = solver.update(jnp.ones(2), solver.init(jnp.ones(2)))
    assert jnp.isfinite(updates).all()


def test_a_ragged_list_is_refused_by_name():
    with pytest.raises(ValueError, match="decay"):
        rj.rmsprop(decay=[[0.9], [1, 2]])
