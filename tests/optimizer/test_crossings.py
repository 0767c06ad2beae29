"""Where features cross: stored dtype × parameters' dtype × form × stream, updates and derivatives.

Each cell is compared with the equations in float64 (`reference`), within its dtypes' error. Some
cells run in the plain suite, all of them under `slow`.
"""

import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import rmsprop_jax as rj
from tests.support import reference
from tests.support.steps import stay
from tests.support.tables import crossed

STEPS = 40
FORMS = {
    "plain": {},
    "centered": {"centered": True},
    "momentum": {"momentum": 0.5},
    "bias_correction": {"bias_correction": True},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True, "momentum": 0.5},
    "all": {"centered": True, "momentum": 0.5, "bias_correction": True, "initial_scale": 0.5},
}
STORED = [None, "float32", "float64", "bfloat16"]
PARAMS = ["bfloat16", "float16", "float32", "float64", "complex64", "complex128"]
CELLS = list(itertools.product(STORED, PARAMS, FORMS))
# Each dtype, each form, and each stored dtype; one of derivatives.
FEW = {
    (None, "float32", "plain"),
    (None, "complex64", "centered"),
    ("float32", "float64", "momentum"),
    ("float64", "bfloat16", "bias_correction"),
    ("bfloat16", "float16", "decoupled"),
    ("bfloat16", "complex128", "all"),
    ("bfloat16", "float32", "all"),
}
FEWER = {("float32", "float64", "all")}
WIDE = {"float64": 64, "complex128": 64}


def cells(few=FEW, without=(), each=1):
    """Parametrize by each so-manieth cell, but for some dtypes; those that are not among the few
    are slow."""
    mark = lambda cell: [] if cell in few else pytest.mark.slow
    rows = [
        pytest.param(*cell, marks=mark(cell), id="-".join(map(str, cell)))
        for i, cell in enumerate(CELLS)
        if cell[1] not in without and (i % each == 0 or cell in few)
    ]
    return pytest.mark.parametrize(("stored", "dtype", "form"), rows)


def streams(dtype):
    """Gradients (steps, streams) in this dtype, and a decay for each step of each stream."""
    t, rng = np.arange(STEPS), np.random.default_rng(0)
    largest = float(jnp.finfo(dtype).max)
    noise = rng.normal(size=STEPS)
    g = {
        "spike": np.where(t == 10, min(1e20, largest), 1 + 0.5 * noise),
        "spikes": np.where(t % 15 == 5, -min(1e30, largest), 1 + 0.5 * noise),
        "tiny": 1e-30 * noise if largest > 1e5 else 1e-7 * noise,
        "constant": np.full(STEPS, 0.75),
        "changing": 1 + 0.5 * noise,
    }
    decays = np.full((STEPS, len(g)), 0.9)
    decays[:, -1] = np.where(t < 20, 0.5, 0.99)
    g = np.stack(list(g.values()), axis=1)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        g = g - 0.5j * g
    return jnp.asarray(g, dtype), decays


def limit_of(stored, dtype, form):
    """The largest component of a gradient that counts, as the docstring of `rmsprop` has it."""
    bits = jnp.finfo(dtype).bits
    if stored is not None:
        bits = min(bits, {"float64": 64}.get(stored, 32))
    limit = (1e308 if bits == 64 else 1e38) ** 0.5
    limit /= 2**0.5 if jnp.issubdtype(dtype, jnp.complexfloating) else 1
    return limit / 2 if FORMS[form].get("centered") else limit


def solver_of(stored, form, rate, decay, eps):
    return rj.rmsprop(rate, decay, eps, state_dtype=stored, **FORMS[form])


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(stored, form, rate, decays, eps, grads):
    """Updates (steps, streams) and the states at the end, one lane per stream."""

    def lane(decays, grads):
        init = solver_of(stored, form, rate, decays[0], eps).init(jnp.zeros_like(grads[0]))

        def step(carry, x):
            params, state = carry
            decay, g = x
            u, state = solver_of(stored, form, rate, decay, eps).update(g, state, params)
            return (params, state), u  # the parameters stay, so that no cell is chaotic

        return jax.lax.scan(step, (jnp.ones_like(grads[0]), init), (decays, grads))

    (_, state), updates = jax.vmap(lane, 1, (0, 1))(decays, grads)
    return updates, state


def expected(stored, dtype, form, rate, decays, eps, grads):
    """The same by the equations in float64; the parameters stay at 1."""
    limit = limit_of(stored, dtype, form)
    g = np.asarray(grads.astype("complex128" if grads.dtype.kind == "c" else "float64"))
    g = g.real.clip(-limit, limit) + (1j * g.imag.clip(-limit, limit) if g.dtype.kind == "c" else 0)
    settings = {k: v for k, v in FORMS[form].items() if "decay" not in k}
    columns = [
        reference.rmsprop(g[:, i], rate, decays[:, i], eps, **settings) for i in range(g.shape[1])
    ]
    return np.stack(columns, 1) - rate * FORMS[form].get("weight_decay", 0.0)


def error_of(stored, dtype, form):
    """The relative error that the dtypes allow, of a step beside the largest step of its stream."""
    error = {"bfloat16": 2**-8, "float16": 2**-10}.get(dtype, 4e-6)
    if dtype in WIDE and stored in (None, "float64"):
        error = 1e-9
    if "centered" in FORMS[form] and error < 1e-8:
        error = 1e-8
    return error + (0.05 if stored == "bfloat16" else 0)


@cells()
def test_updates_are_those_of_the_equations(x64, stored, dtype, form):
    grads, decays = streams(dtype)
    updates, state = run(stored, form, 0.5, jnp.asarray(decays), 1e-3, grads)
    assert updates.dtype == jnp.dtype(dtype)
    assert all(np.isfinite(np.asarray(x, complex)).all() for x in jax.tree.leaves(state))
    want = expected(stored, dtype, form, 0.5, decays, 1e-3, grads)
    got = np.asarray(updates.astype("complex128"))
    assert np.isfinite(got).all()
    scale = np.abs(want).max(axis=0)
    least = float(jnp.finfo(dtype).smallest_subnormal)  # float16's tiny steps are its last digits
    assert (np.abs(got - want) <= error_of(stored, dtype, form) * scale + least).all()


@cells()
def test_without_eps_all_is_finite_and_bounded(x64, stored, dtype, form):
    grads, decays = streams(dtype)
    updates, state = run(stored, form, 0.5, jnp.asarray(decays), 0.0, grads)
    assert all(np.isfinite(np.asarray(x, complex)).all() for x in jax.tree.leaves((updates, state)))
    assert (np.asarray(optax.tree_utils.tree_get(state, "nu"), float) >= 0).all()
    if "centered" not in FORMS[form]:
        bound = 0.5 * 1.01 / np.sqrt(1 - decays.max(axis=0))
        bound /= 1 - FORMS[form].get("momentum", 0.0)
        weights = 0.5 * FORMS[form].get("weight_decay", 0.0)
        assert (np.abs(np.asarray(updates, complex)) <= bound + weights).all()


@pytest.mark.slow
@cells(few=FEWER, without=("float16", "complex128"), each=5)  # each dtype and form many times
def test_derivatives_forward_and_reverse(x64, stored, dtype, form):
    """In η, ε, and the decay, beside central differences of the equations."""
    grads, decays = streams(dtype)
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(STEPS, 3))
    keep = [0, 3, 4]  # a spike, the constant one, the changing decay
    grads, decays = grads[:, np.array(keep)], decays[:, keep]

    def loss(numbers):
        rate, eps, shift = numbers
        updates, _ = run(stored, form, rate, jnp.asarray(decays) - shift, eps, grads)
        return jnp.sum(jnp.asarray(weights) * updates.real.astype(jnp.float64))

    def exact(numbers):
        rate, eps, shift = numbers
        return np.sum(
            weights * expected(stored, dtype, form, rate, decays - shift, eps, grads).real
        )

    numbers = jnp.array([0.5, 0.1, 0.0])
    both = jax.jit(lambda numbers: (jax.grad(loss)(numbers), jax.jacfwd(loss)(numbers)))
    reverse, forward = both(numbers)
    h = 1e-5 * np.eye(3)
    want = np.array([exact(numbers + row) - exact(numbers - row) for row in h]) / 2e-5
    assert np.isfinite(reverse).all()
    assert np.isfinite(forward).all()
    tolerance = {"bfloat16": 0.1, "float16": 0.02}.get(dtype, 2e-3)
    tolerance += 0.15 if stored == "bfloat16" else 0  # one element: a rounding is not averaged out
    scale = np.abs(want).max() + np.abs(weights).sum() * 0.01
    np.testing.assert_allclose(reverse, want, rtol=tolerance, atol=tolerance * scale)
    np.testing.assert_allclose(forward, want, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.slow
@pytest.mark.parametrize(("stored", "form"), crossed(STORED, list(FORMS)))
def test_a_jitted_init_is_placed_and_typed_in_each_cell(x64, stored, form):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    place = NamedSharding(mesh, PartitionSpec("d"))
    solver = solver_of(stored, form, 0.1, 0.9, 1e-8)
    params = {dtype: jax.device_put(jnp.ones(8, dtype), place) for dtype in PARAMS}
    state = jax.jit(solver.init)(params)
    eager = solver.init(params)
    step = jax.jit(lambda s: solver.update(params, s, params)[1])
    for dtype in PARAMS:
        for s in (state, step(state)):
            nu = optax.tree_utils.tree_get(s, "nu")[dtype]
            assert nu.sharding.is_equivalent_to(place, 1)
            kept = "float64" if dtype in WIDE else "float32"
            assert nu.dtype == (stored or kept)
    types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert types(state) == types(eager) == types(step(state))


NUMBERS = st.one_of(
    st.floats(width=64, allow_nan=False, allow_infinity=True),
    st.sampled_from([0.0, 1e20, -1e20, 1e-30, 1e-20, 1.0, 3e38, 1e300, 5e-324]),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "stored"), crossed(["float32", "float64"], STORED, plain=["float32-bfloat16"])
)
def test_no_stream_found_breaks_a_cell(x64, stored, dtype):
    """Any numbers, and any decay at each step; all forms side by side."""

    @jax.jit
    def states(grads, decays):
        decays = jnp.broadcast_to(decays[:, None], grads.shape)
        return [run(stored, form, 0.5, decays, 0.0, grads) for form in FORMS]

    @hypothesis.settings(deadline=None, database=None, derandomize=True, max_examples=60)
    @hypothesis.given(
        st.lists(NUMBERS, min_size=24, max_size=24),
        st.lists(st.sampled_from([0.0, 1e-20, 0.5, 0.9, 0.999, 1 - 1e-7]), min_size=8, max_size=8),
    )
    def search(numbers, decays):
        largest = float(jnp.finfo(dtype).max)
        grads = jnp.asarray(np.clip(numbers, -largest, largest).reshape(8, 3), dtype)
        for updates, state in states(grads, jnp.asarray(decays)):
            for leaf in jax.tree.leaves((updates, state)):
                assert np.isfinite(np.asarray(leaf, float)).all()
            assert (np.asarray(optax.tree_utils.tree_get(state, "nu"), float) >= 0).all()

    search()


@pytest.mark.parametrize(
    ("centered", "dtype", "stored"),
    crossed([False, True], ["float64", "complex128"], ["float32", "bfloat16"]),
)
def test_a_float64_spike_passes_through_a_narrower_state(x64, stored, dtype, centered):
    """A spike of 1e20 squared is beyond float32: the average would be infinite for good."""
    grads = np.ones((400, 2)).astype(dtype)
    grads[5] = 1e20 if dtype == "float64" else 1e20 + 1e20j
    grads[6] = -1e300
    solver = rj.rmsprop(0.1, 0.5, 1e-3, centered=centered, momentum=0.5, state_dtype=stored)
    state, out = solver.init(jnp.zeros(2, dtype)), []
    update = jax.jit(solver.update)
    for g in grads:
        u, state = update(jnp.asarray(g), state)
        out.append(np.abs(np.asarray(u)))
    assert all(np.isfinite(np.asarray(x, complex)).all() for x in jax.tree.leaves(state))
    nu = np.asarray(optax.tree_utils.tree_get(state, "nu"), float)
    np.testing.assert_allclose(nu, 0.0 if centered else 1.0, atol=0.02)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("grads", ["constant", "spike", "tiny", "signs"])
def test_float32_parameters_beside_a_float64_state(x64, grads):
    """Centered with ε = 0: a floor from float64 would let the update reach −∞ in float32."""
    t = np.arange(2_000)
    g = {
        "constant": np.full(2_000, 3.0),
        "spike": np.where(t == 10, 3e38, 1.0),
        "tiny": np.full(2_000, 1e-38),
        "signs": 1e19 * (-1.0) ** t,
    }[grads]
    for momentum in (None, 0.9):
        solver = rj.rmsprop(0.1, 0.5, 0.0, centered=True, momentum=momentum, state_dtype="float64")
        state, updates = stay(solver, jnp.asarray(g, jnp.float32))
        assert updates.dtype == jnp.float32
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((state, updates)))
