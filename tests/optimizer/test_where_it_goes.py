"""Real training steps where people take them, checked against Optax in the same code.

Libraries of models, checkpoints, exports, JAX's own transformations and switches. Where Optax
itself raises, the test says so and shows what mends it: the limits of docs/pages/where.md.
"""

import contextlib
import functools
import importlib.util

import equinox as eqx
import flax.linen
import flax.serialization
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax import export

import rmsprop_jax as rj
from tests.support.tables import crossed, few

STEPS, RATE, STRENGTH = 5, 1e-2, 0.1
EPS = {"eps": 1e-3}  # inside the root, or it would show nowhere
MANY = {"centered": True, "momentum": 0.9, "nesterov": True, **EPS}
PAIRS = {
    "plain": (rj.rmsprop(RATE, eps_in_sqrt=True, **EPS), optax.rmsprop(RATE, **EPS)),
    "all": (
        rj.rmsprop(RATE, eps_in_sqrt=True, weight_decay=STRENGTH, **MANY),
        optax.chain(optax.add_decayed_weights(STRENGTH), optax.rmsprop(RATE, **MANY)),
    ),
}
pairs = pytest.mark.parametrize(("ours", "theirs"), few(PAIRS, ["all"], unpack=True))

rng = np.random.default_rng(0)
X = np.float32(rng.normal(size=(16, 3)))
Y = np.float32(np.sin(X.sum(axis=1, keepdims=True)))
SQUARES = list(np.float32(rng.normal(size=(3, 3, 3))))


def error(prediction):
    return jnp.mean((prediction - Y) ** 2)


def assert_same_training(train, ours, theirs, tolerance=1e-5):
    """`train(solver)` gives the parameters before and after; they moved alike, all of them."""
    before, after = train(ours)
    start, expected = train(theirs)
    for leaf, there, here in zip(*map(jax.tree.leaves, (after, expected, start)), strict=True):
        travel = abs(np.asarray(there) - np.asarray(here))
        assert travel.max() > STEPS * RATE / 2
        np.testing.assert_allclose(leaf, there, rtol=0, atol=tolerance * travel.max())
    jax.tree.map(np.testing.assert_array_equal, before, start)


# Libraries of models.


@pairs
def test_flax_train_state(ours, theirs):
    net = flax.linen.Sequential([flax.linen.Dense(4), jnp.tanh, flax.linen.Dense(1)])
    params = net.init(jax.random.key(0), X)

    @jax.jit
    def step(state):
        grads = jax.grad(lambda params: error(state.apply_fn(params, X)))(state.params)
        return state.apply_gradients(grads=grads)

    def train(solver):
        state = TrainState.create(apply_fn=net.apply, params=params, tx=solver)
        for _ in range(STEPS):
            state = step(state)
        assert state.step == STEPS
        return params, state.params

    assert_same_training(train, ours, theirs)


class Net(nnx.Module):
    """With statistics and a generator beside its parameters, which are not to be trained."""

    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.noise = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.last(self.noise(jnp.tanh(self.norm(self.first(x)))))


@pytest.mark.slow
@pairs
def test_flax_nnx_optimizer(ours, theirs):
    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda model: error(model(X)))(model))

    def train(solver):
        model = Net(nnx.Rngs(0))
        params = lambda: nnx.to_pure_dict(nnx.state(model, nnx.Param))
        optimizer, start = nnx.Optimizer(model, solver, wrt=nnx.Param), params()
        for _ in range(STEPS):
            step(model, optimizer)
        return start, params()

    assert_same_training(train, ours, theirs)


def test_flax_train_state_made_of_a_traced_rate():
    """Its `tx` is structure, of which no tracer comes out of jit; an injected rate is state."""

    def after_a_step(make, rate):
        state = TrainState.create(apply_fn=None, params={"w": jnp.ones(2)}, tx=make(rate))
        return state.apply_gradients(grads=state.params)

    expected = after_a_step(rj.rmsprop, RATE).params
    for make in (rj.rmsprop, optax.rmsprop):
        state = jax.jit(functools.partial(after_a_step, make))(RATE)
        with pytest.raises(jax.errors.UnexpectedTracerError):
            state.apply_gradients(grads=state.params)
    state = jax.jit(functools.partial(after_a_step, optax.inject_hyperparams(rj.rmsprop)))(RATE)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), state.params, expected)


@pytest.mark.slow
@pairs
def test_haiku(ours, theirs):
    net = haiku.without_apply_rng(
        haiku.transform(lambda x: haiku.nets.MLP([4, 1], activation=jnp.tanh)(x))
    )
    start = net.init(jax.random.key(0), X)

    def train(solver):
        @jax.jit
        def step(params, state):
            grads = jax.grad(lambda params: error(net.apply(params, X)))(params)
            updates, state = solver.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        params, state = start, solver.init(start)
        for _ in range(STEPS):
            params, state = step(params, state)
        return start, params

    assert_same_training(train, ours, theirs)


class Counting(eqx.Module):
    """Integers, a function, a string and a key beside what is trained."""

    net: eqx.nn.MLP
    table: jax.Array
    key: jax.Array
    name: str
    size: int

    def __init__(self):
        self.net = eqx.nn.MLP(3, 1, 4, 1, activation=jnp.tanh, key=jax.random.key(0))
        self.table, self.key = jnp.arange(3), jax.random.key(1)
        self.name, self.size = "net", 3

    def __call__(self, x):
        return self.net(x[self.table])


def train_equinox(solver, trained=eqx.is_inexact_array, whole=True):
    model = Counting()
    state = solver.init(eqx.filter(model, trained))

    @eqx.filter_jit
    def step(model, state):
        grads = eqx.filter_grad(lambda model: error(jax.vmap(model)(X)))(model)
        params = model if whole else eqx.filter(model, eqx.is_inexact_array)
        updates, state = solver.update(grads, state, params)
        return eqx.apply_updates(model, updates), state

    start = model
    for _ in range(STEPS):
        model, state = step(model, state)
    assert model.table.dtype == jnp.int32
    return eqx.filter(start, eqx.is_inexact_array), eqx.filter(model, eqx.is_inexact_array)


@pytest.mark.slow
@pairs
def test_equinox_whole_model(ours, theirs):
    assert_same_training(train_equinox, ours, theirs)


@pytest.mark.slow
@pairs
def test_equinox_with_a_state_for_its_integers(ours, theirs):
    """Their gradient is None."""
    assert_same_training(functools.partial(train_equinox, trained=eqx.is_array), ours, theirs)


WRAPPED = {
    "inject_hyperparams": lambda make: optax.inject_hyperparams(make)(RATE, **EPS),
    "MultiSteps": lambda make: optax.MultiSteps(make(RATE, **EPS), 1),
    "schedule_free": lambda make: optax.contrib.schedule_free(make(RATE, **EPS), RATE),
    "masked": lambda make: optax.masked(make(RATE, **EPS), lambda p: jax.tree.map(eqx.is_array, p)),
    "partition": lambda make: optax.partition(
        {"all": make(RATE, **EPS)}, lambda p: jax.tree.map(lambda _: "all", p)
    ),
}
OURS = functools.partial(rj.rmsprop, eps_in_sqrt=True)


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", few(list(WRAPPED), ["inject_hyperparams", "masked"]))
def test_equinox_in_wrappers_that_read_the_parameters(wrapper):
    """Over a whole model they raise, whatever is inside; over its filtered parameters they work."""
    ours, theirs = (WRAPPED[wrapper](make) for make in (OURS, optax.rmsprop))
    for solver in (ours, theirs):
        with pytest.raises((TypeError, ValueError), match=r"not a valid JAX|NoneType"):
            train_equinox(solver)
    assert_same_training(functools.partial(train_equinox, whole=False), ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("make", few({"ours": OURS, "Optax's": optax.rmsprop}, ["ours"]))
def test_equinox_in_what_computes_with_the_parameters(make):
    """As above, for those whose `update` asks for more."""
    model = Counting()
    trained = eqx.filter(model, eqx.is_inexact_array)
    loss = lambda p: error(jax.vmap(eqx.combine(p, model))(X))
    value, grads = eqx.filter_value_and_grad(loss)(trained)
    searched = optax.chain(make(RATE), optax.scale_by_backtracking_linesearch(3))
    extra = {"value": value, "grad": grads, "value_fn": loss}
    lookahead, synced = optax.lookahead(make(RATE), 2, 0.5), optax.LookaheadParams.init_synced
    searched.update(grads, searched.init(trained), trained, **extra)
    lookahead.update(grads, lookahead.init(synced(trained)), synced(trained))
    with pytest.raises(TypeError):
        searched.update(grads, searched.init(trained), model, **extra)
    with pytest.raises(TypeError):
        lookahead.update(grads, lookahead.init(synced(trained)), synced(model))


@pytest.mark.slow
def test_equinox_masks_and_labels():
    """A mask may be a tree like the model; labels may not, for Optax calls what can be called."""
    trained = eqx.filter(Counting(), eqx.is_inexact_array)
    kernels = jax.tree.map(lambda p: p.ndim > 1, trained)
    ours = rj.rmsprop(RATE, eps_in_sqrt=True, weight_decay=STRENGTH, mask=kernels, **MANY)
    theirs = optax.chain(optax.add_decayed_weights(STRENGTH, kernels), optax.rmsprop(RATE, **MANY))
    filtered = functools.partial(train_equinox, whole=False)
    assert_same_training(filtered, ours, theirs)
    jax.tree.map(np.testing.assert_array_equal, train_equinox(ours), filtered(ours))

    labels = jax.tree.map(lambda _: "all", trained)
    for label in (labels, lambda _: labels):
        solver = optax.partition({"all": ours}, label)
        if label is labels:
            with pytest.raises(TypeError):
                filtered(solver)
        else:
            assert_same_training(filtered, solver, ours)


# Kept and fetched again. A loss without a matrix product, so that shards sum nothing.

START = {"w": jnp.linspace(-1.0, 2.0, 8).reshape(4, 2), "b": jnp.array([0.5, -1.0])}
SCHEDULE = optax.linear_schedule(0.1, 0.01, 10)
KEPT = {
    "plain": rj.rmsprop(0.1),
    "all": rj.rmsprop(
        SCHEDULE, centered=True, momentum=0.9, bias_correction=True, weight_decay=STRENGTH
    ),
    "decoupled": rj.rmsprop(
        SCHEDULE, momentum=0.9, weight_decay=STRENGTH, decoupled_weight_decay=True
    ),
    "torch": rj.presets.torch(0.1, momentum=0.9),
    "injected": optax.inject_hyperparams(rj.rmsprop)(0.1, momentum=0.9),
}
kept = pytest.mark.parametrize("solver", few(KEPT, ["all", "injected"]))


@functools.partial(jax.jit, static_argnums=0)
def step(solver, params, state):
    grads = jax.tree.map(lambda p: jnp.sin(3 * p) + p, params)
    updates, state = solver.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def train(solver, params, state=None, count=3):
    state = solver.init(params) if state is None else state
    for _ in range(count):
        params, state = step(solver, params, state)
    return params, state


def assert_same_bits(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert [x.dtype for x in jax.tree.leaves(ours)] == [x.dtype for x in jax.tree.leaves(theirs)]


def assert_goes_on(solver, restored, left):
    """It is what was left, and so is what comes of it."""
    assert_same_bits(restored, left)
    assert_same_bits(train(solver, *restored), train(solver, *left))
    fresh, gone_on = train(solver, left[0])[0], train(solver, *left)[0]
    assert not np.array_equal(fresh["w"], gone_on["w"])  # the state counts


def places(where, solver):
    """Where each array of the parameters and of the state belongs: what is no buffer, on all."""
    if where == "one device":
        one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.tree.map(lambda _: one, (START, solver.init(START)))
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.NamedSharding(mesh, jax.P())
    params = {"w": jax.NamedSharding(mesh, jax.P("x")), "b": everywhere}
    return params, optax.tree_utils.tree_map_params(
        solver,
        lambda _, place: place,
        solver.init(START),
        params,
        transform_non_params=lambda _: everywhere,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "solver"),
    crossed(["one device", "shards"], KEPT, plain=["one device-injected", "shards-all"]),
)
def test_orbax(solver, where, tmp_path):
    left = train(solver, START)
    like = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        left,
        places(where, solver),
    )
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", left)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "run", like)
    as_wanted = lambda x, want: x.sharding.is_equivalent_to(want.sharding, x.ndim)
    assert jax.tree.all(jax.tree.map(as_wanted, restored, like))
    assert_goes_on(solver, restored, left)


@kept
def test_flax_serialization(solver):
    left = train(solver, START)
    written = flax.serialization.to_bytes(left)
    restored = flax.serialization.from_bytes((START, solver.init(START)), written)
    assert_goes_on(solver, restored, left)


@kept
def test_npz(solver, tmp_path):
    left = train(solver, START)
    np.savez(tmp_path / "run.npz", *jax.tree.leaves(left))
    with np.load(tmp_path / "run.npz") as file:
        leaves = [file[name] for name in file.files]
    restored = jax.tree.unflatten(jax.tree.structure((START, solver.init(START))), leaves)
    assert_goes_on(solver, restored, left)


# Exported.


@pytest.mark.slow
@kept
def test_export(solver):
    left = train(solver, START)
    exported = export.export(jax.jit(functools.partial(step, solver)))(*left)
    assert_same_bits(exported.call(*left), step(solver, *left))
    anywhere = export.export(
        jax.jit(functools.partial(step, solver)), platforms=["cpu", "cuda", "tpu"]
    )
    assert_same_bits(anywhere(*left).call(*left), step(solver, *left))


@pytest.mark.skipif(
    importlib.util.find_spec("flatbuffers") is None,
    reason='needs flatbuffers: pip install -e ".[test]"',
)
def test_export_to_bytes():
    """Once the NamedTuples of the state have names; JAX asks for that, of Optax's states too."""
    solver = KEPT["all"]
    left = train(solver, START)
    exported = export.export(jax.jit(functools.partial(step, solver)))(*left)
    states = rj.ScaleByRmsState, optax.TraceState, optax.ScaleByScheduleState, optax.EmptyState
    for kind in states:
        with contextlib.suppress(ValueError):  # it has one
            export.register_namedtuple_serialization(kind, serialized_name=kind.__name__)
    again = export.deserialize(exported.serialize())
    assert_same_bits(again.call(*left), step(solver, *left))


# JAX's own transformations.


@pairs
def test_donation(ours, theirs):
    """Buffers of the parameters and of the whole state are given up, several steps a call."""

    def train(solver):
        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def several(params, state):
            several = lambda carry, _: (step(solver, *carry), None)
            return jax.lax.scan(several, (params, state), length=STEPS)[0]

        params = jax.tree.map(jnp.array, START)
        state = solver.init(params)
        given = jax.tree.leaves((params, state))
        params, state = several(params, state)
        assert all(x.is_deleted() for x in given)
        return START, several(params, state)[0]

    assert_same_training(train, ours, theirs)


@pytest.mark.slow
@pairs
def test_remat_in_the_loss(ours, theirs):
    layer = jax.checkpoint(lambda h, w: jnp.tanh(h @ w))

    def train(solver):
        @jax.jit
        def step(params, state):
            loss = lambda ws: error(functools.reduce(layer, ws, X).sum(axis=1, keepdims=True))
            updates, state = solver.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        params, state = SQUARES, solver.init(SQUARES)
        for _ in range(STEPS):
            params, state = step(params, state)
        return SQUARES, params

    assert_same_training(train, ours, theirs)


def through(make, remat):
    """The loss after some steps, and its derivatives by the hyperparameters."""

    def after(hp):
        solver = make(**hp)

        def step(carry, _):
            params, state = carry
            grads = jax.grad(lambda p: jnp.sum(jnp.cos(p) + p**2))(params)
            updates, state = solver.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        step = jax.checkpoint(step) if remat else step
        params = jnp.array([1.0, -0.5, 2.0])
        params = jax.lax.scan(step, (params, solver.init(params)), length=20)[0][0]
        return jnp.sum(params**2)

    hp = {"learning_rate": 0.01, "decay": 0.9, "eps": 1e-3, "momentum": 0.5}
    return jax.jit(jax.value_and_grad(after))(jax.tree.map(jnp.asarray, hp))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_derivatives_through_the_steps_and_remat():
    theirs, kept, again = through(optax.rmsprop, False), through(OURS, False), through(OURS, True)
    assert all(g != 0 for g in theirs[1].values())
    for ours in (kept, again):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9), ours, theirs)


@pytest.mark.slow
def test_a_population_changes_without_a_compile():
    """Each member has numbers of its own, which change between calls, as the members do."""
    traces = []

    @jax.jit
    @jax.vmap
    def population(hp, params, state):
        traces.append(None)
        return step.__wrapped__(OURS(**hp), params, state)

    hp = {
        "learning_rate": np.float32([0.1, 0.01, 0.03]),
        "decay": np.float32([0.9, 0.5, 0.99]),
        "momentum": np.float32([0.0, 0.9, 0.5]),
        "eps": np.float32([1e-3, 1e-2, 1e-4]),
    }
    start = jax.tree.map(lambda p: jnp.stack([p, 2 * p, -p]), START)
    ours = start, jax.vmap(OURS(0.1, momentum=0.9).init)(start)
    one = lambda i, tree: jax.tree.map(lambda x: x[i], tree)
    theirs = [(one(i, start), optax.rmsprop(0.1, momentum=0.9).init(START)) for i in range(3)]
    for change in range(4):
        ours = population(hp, *ours)
        for i in range(3):
            solver = optax.rmsprop(**{name: float(x[i]) for name, x in hp.items()})
            theirs[i] = step.__wrapped__(solver, *theirs[i])
            for leaf, other in zip(
                *map(jax.tree.leaves, (one(i, ours[0]), theirs[i][0])), strict=True
            ):
                np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-6)
        if change == 0:  # another order
            order = np.array([2, 0, 1])
            hp, ours = one(order, hp), one(order, ours)
            theirs = [theirs[i] for i in order]
        hp = {name: x * np.float32(0.9) for name, x in hp.items()}  # and other numbers
    assert len(traces) == 1


@pytest.mark.slow
@pairs
@pytest.mark.parametrize("kind", few(["Auto", "Explicit"], ["Auto"]))
def test_sharded_training(ours, theirs, kind):
    """Parameters and state on two devices; Optax on one."""
    mesh = jax.make_mesh((2,), ("x",), axis_types=(getattr(jax.sharding.AxisType, kind),))
    put = lambda x, *spec: jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec)))
    start = {"in": jnp.asarray(X[:3, :2]), "out": jnp.ones((2, 1))}

    def train(solver):
        params, x = start, X
        if solver is ours:
            params = {"in": put(start["in"], None, "x"), "out": put(start["out"])}
            x = put(X)

        @jax.jit
        def step(params, state, x):
            loss = lambda p: error(jnp.tanh(x @ p["in"]).mean(axis=1, keepdims=True) * p["out"][0])
            updates, state = solver.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        state = solver.init(params)
        for _ in range(STEPS):
            params, state = step(params, state, x)
        if solver is ours:
            assert params["in"].sharding.spec == jax.P(None, "x")
        return start, params

    with jax.set_mesh(mesh):
        assert_same_training(train, ours, theirs)


# JAX's switches.


@pytest.mark.usefixtures("x64")
@pairs
def test_x64(ours, theirs):
    start = jax.tree.map(lambda p: p.astype(float), START)
    assert_same_training(lambda solver: (start, train(solver, start)[0]), ours, theirs, 1e-12)


@pairs
def test_strict_promotion(ours, theirs):
    """Optax's own parts fail there: its numbers are from without."""

    def training(solver):
        if solver is theirs:
            return START, train(solver, START)[0]
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            return START, train(solver, START)[0]

    assert_same_training(training, ours, theirs)


SWITCHES = {"nans": jax.debug_nans, "infs": jax.debug_infs, "disable_jit": jax.disable_jit}


@pytest.mark.slow
@pytest.mark.parametrize(("eps", "switch"), crossed([1e-3, 0.0], SWITCHES))
def test_debuggers_find_nothing_in_zero_gradients(switch, eps):
    zeros = {"w": jnp.zeros(3), "b": jnp.array([0.0, 1.0])}
    make = functools.partial(rj.rmsprop, RATE, eps=eps, centered=True, momentum=0.9)
    with switch(True):
        for solver in (rj.rmsprop(RATE, eps=eps), make(), make(bias_correction=True)):
            params, state = zeros, solver.init(zeros)
            for _ in range(3):
                updates, state = jax.jit(solver.update)(zeros, state, params)
                params = optax.apply_updates(params, updates)
            assert not np.any(updates["w"])
    with jax.debug_nans(True), pytest.raises(FloatingPointError):  # it is on
        jax.jit(lambda x: x / x)(jnp.zeros(()))


# bfloat16 gradients of float32 parameters.


@pytest.mark.slow
@pairs
def test_apply_if_finite_wants_gradients_as_wide_as_the_updates(ours, theirs):
    """They are as wide as the parameters, and a skipped step as narrow as the gradients."""
    grads = jax.tree.map(lambda p: jnp.sin(p).astype(jnp.bfloat16), START)
    wide = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, START)
    updates = []
    for solver in (ours, theirs):
        careful = optax.apply_if_finite(solver, 3)
        state = careful.init(START)
        with pytest.raises(TypeError, match="cond branches must have equal output types"):
            careful.update(grads, state, START)
        updates.append(careful.update(wide, state, START)[0])
        plain = solver.update(grads, solver.init(START), START)[0]
        for got, leaf in zip(*map(jax.tree.leaves, (updates[-1], plain)), strict=True):
            assert leaf.dtype == jnp.float32
            if solver is ours:  # Optax squares a bfloat16 gradient in bfloat16
                np.testing.assert_allclose(got, leaf, rtol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), *updates)


def test_apply_if_finite_without_parameters_takes_bfloat16():
    grads = jax.tree.map(lambda p: jnp.sin(p).astype(jnp.bfloat16), START)
    careful = optax.apply_if_finite(PAIRS["plain"][0], 3)
    updates, _ = careful.update(grads, careful.init(START))
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
