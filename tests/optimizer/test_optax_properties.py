"""Optax's own tests of an alias, for every structure of ours and for every preset.

One table. Its rows are optimisers, each beside the same one made of Optax's own parts; its columns
are the tests below. Through every wrapper of Optax both give the same numbers.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmsprop_jax as rj
from tests.support.steps import travel
from tests.support.tables import few

FAST = {"xla_backend_optimization_level": 0}  # to compile: it is most of what these tests do
RATE, STRENGTH = 5e-3, 3e-3
SCHEDULE = lambda t: RATE * (1 + 0.5 * jnp.cos(t))  # another rate at every step


class Row(NamedTuple):
    make: Callable[..., optax.GradientTransformationExtraArgs]
    settings: dict[str, Any]
    theirs: Callable[[], optax.GradientTransformationExtraArgs]

    def ours(self, **changed):
        return self.make(**self.settings | changed)

    @property
    def rate(self):
        """The learning rate's name, `lr` in some presets."""
        return next(iter(self.settings))


def alias(**settings):
    """Return `optax.rmsprop` with the same arguments."""
    settings = {"learning_rate": RATE} | settings
    return Row(rj.rmsprop, settings | {"eps_in_sqrt": True}, lambda: optax.rmsprop(**settings))


def beyond(settings, *parts):
    """Return the optimizer that needs a chain in Optax."""
    settings = {"learning_rate": RATE, "eps_in_sqrt": True} | settings
    return Row(rj.rmsprop, settings, lambda: optax.chain(*parts))


def preset(name, /, settings=None, *parts, **like):
    """A preset, with `settings` beside its rate; `like` what, by `optax.rmsprop` or by a chain."""
    make = getattr(rj.presets, name)
    rate = next(iter(inspect.signature(make).parameters))
    theirs = optax.chain(*parts) if parts else optax.rmsprop(RATE, **like)
    return Row(make, {rate: RATE} | (settings or {}), lambda: theirs)


def by_scale_by_rms(learning_rate, decay=0.9, eps=1e-8):
    return optax.chain(rj.scale_by_rms(decay, eps), optax.scale_by_learning_rate(learning_rate))


DECOUPLED = optax.add_decayed_weights(-RATE * STRENGTH)
MANY = {
    "decay": 0.95, "eps": 1e-2, "initial_scale": 0.5, "centered": True, "momentum": 0.9,
    "nesterov": True,
}  # fmt: skip
ROWS = {
    "plain": alias(),
    "momentum": alias(momentum=0.9),
    "nesterov": alias(momentum=0.9, nesterov=True),
    "centered": alias(centered=True, eps=1e-4),
    # Centered, the first corrected step is another than Optax's: see test_bias_correction.py.
    "bias_correction": alias(
        bias_correction=True, decay=0.99, initial_scale=0.5, momentum=0.9, nesterov=True
    ),
    "schedule": alias(learning_rate=SCHEDULE, momentum=0.5),
    "coupled": beyond(
        {"momentum": 0.9, "weight_decay": STRENGTH},
        optax.add_decayed_weights(STRENGTH),
        optax.rmsprop(RATE, momentum=0.9),
    ),
    "decoupled": beyond(
        {"momentum": 0.9, "weight_decay": STRENGTH, "decoupled_weight_decay": True},
        optax.rmsprop(RATE, momentum=0.9),
        DECOUPLED,
    ),
    "lr_in_momentum=False": beyond(
        {"learning_rate": SCHEDULE, "momentum": 0.9, "lr_in_momentum": False},
        optax.scale_by_rms(),
        optax.trace(0.9),
        optax.scale_by_learning_rate(SCHEDULE),
    ),
    "all": beyond(
        {**MANY, "weight_decay": STRENGTH, "decoupled_weight_decay": True},
        optax.rmsprop(RATE, **MANY),
        DECOUPLED,
    ),
    "scale_by_rms": Row(
        by_scale_by_rms,
        {"learning_rate": RATE, "eps": 1e-5},
        lambda: optax.chain(optax.scale_by_rms(eps=1e-5, eps_in_sqrt=False), optax.scale(-RATE)),
    ),
    "optax": preset("optax"),
    "torch": preset("torch", decay=0.99, eps_in_sqrt=False),
    "torch, momentum and decay": preset(
        "torch",
        {"momentum": 0.9, "weight_decay": STRENGTH},
        optax.add_decayed_weights(STRENGTH),
        optax.scale_by_rms(0.99, eps_in_sqrt=False),
        optax.trace(0.9),
        optax.scale(-RATE),
    ),
    "keras": preset("keras", eps=1e-7),
    "keras, all terms": preset(
        "keras",
        {"momentum": 0.9, "centered": True, "epsilon": 1e-3, "weight_decay": STRENGTH,
         "clipvalue": 1.0},
        optax.clip(1.0),
        optax.rmsprop(RATE, eps=1e-3, momentum=0.9, centered=True),
        DECOUPLED,
    ),
    "tensorflow_v1": preset("tensorflow_v1", eps=1e-10, initial_scale=1.0),
    "tf_keras_legacy": preset("tf_keras_legacy", eps=1e-7, eps_in_sqrt=False),
    "timm": preset("timm", eps=1e-10, initial_scale=1.0),
    "stable_baselines3": preset("stable_baselines3", decay=0.99, initial_scale=1.0),
    "mlx": preset("mlx", decay=0.99, eps_in_sqrt=False),
    "graves2013": preset("graves2013", decay=0.95, eps=1e-4, centered=True, momentum=0.9),
    "dqn2015": preset("dqn2015", decay=0.95, eps=0.01, centered=True),
    "a3c2016": preset("a3c2016", decay=0.99, eps=0.1),
    "impala2018": preset("impala2018", decay=0.99, eps=0.1, initial_scale=1.0),
    "pymarl": preset("pymarl", decay=0.99, eps=1e-5, eps_in_sqrt=False),
}  # fmt: skip
# Each term once, and a preset: these rows run in the plain suite, all others under `slow`.
REPRESENTATIVE = [
    "plain", "bias_correction", "all", "scale_by_rms", "keras, all terms",
]  # fmt: skip
rows = pytest.mark.parametrize("row", few(ROWS, REPRESENTATIVE))

rng = np.random.default_rng(0)
STEPS = 7
PARAMS = {
    "w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "frozen": jnp.array([2.0, -1.0, 4.0]), "none": None,
}  # fmt: skip
SIZES = {"w": [[1.0, 1e-3], [1e-2, 1.0]], "frozen": [1e-3, 1.0, 0.1]}  # so that every ε shows
GRADS = {
    name: np.float32(rng.normal(0.3, size=(STEPS, *np.shape(size))) * size)
    for name, size in SIZES.items()
} | {"none": None}
VALUES = np.float32([1, 1, 1, 0.5, 0.5, 0.5, 0.5])  # a loss, with plateaus


def at(t, grads=GRADS):
    return jax.tree.map(lambda g: jnp.asarray(g[t]), grads)


def steps(solver, params=PARAMS, grads=GRADS, count=STEPS, **extra):
    """The updates of every step, stacked, and the last state; not jitted."""
    state, every = solver.init(params), []
    for t in range(count):
        updates, state = solver.update(at(t, grads), state, params, **extra)
        params = optax.apply_updates(params, updates)
        every.append(updates)
    return jax.tree.map(lambda *us: np.stack(us), *every), state


def assert_same(ours, theirs, rounding=0.0):
    """Equal but for a few roundings of each number's largest update, and `rounding` of others."""
    ours, theirs = (jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (ours, theirs))
    assert len(ours) == len(theirs)
    for (path, leaf), (_, other) in zip(ours, theirs, strict=True):
        leaf, other = np.asarray(leaf), np.asarray(other)
        assert leaf.dtype == other.dtype
        assert np.isfinite(other).all()
        largest = abs(other).max(axis=0, initial=0) if len(other) == STEPS else abs(other)
        error = abs(leaf - other)
        assert (error <= 4e-6 * largest + rounding).all(), (jax.tree_util.keystr(path), error)


def test_the_table_has_every_preset():
    assert {row.make.__name__ for row in ROWS.values()} >= set(rj.presets.__all__)


@rows
def test_it_is_what_optax_has_for_it(row):
    assert_same(steps(row.ours())[0], steps(row.theirs())[0])


# Optimisation.

GOAL = 1 + 1j
STARTS = {
    "parabola": jnp.array([-1.0, 10.0, 1.0]),
    "parabola, complex": jnp.array([-1.0, 10.0, 1.0], jnp.complex64),
    "Rosenbrock": jnp.zeros(2),
    "Rosenbrock, complex": jnp.zeros(2, jnp.complex64),
}
MINIMA = {
    "parabola": np.array([1.0, -1.0, 1.0]),
    "parabola, complex": GOAL * np.array([1.0, -1.0, 1.0]),
    "Rosenbrock": np.ones(2),
    "Rosenbrock, complex": np.array([GOAL, GOAL**2]),
}


def all_problems(params):
    square = lambda z: jnp.sum(jnp.real(z * jnp.conj(z)))
    rosenbrock = lambda p, goal: square(goal - p[0]) + 100 * square(p[1] - p[0] ** 2)
    return (
        square(params["parabola"] - MINIMA["parabola"].astype(np.float32))
        + square(params["parabola, complex"] - MINIMA["parabola, complex"].astype(np.complex64))
        + rosenbrock(params["Rosenbrock"], 1.0)
        + rosenbrock(params["Rosenbrock, complex"], GOAL)
    )


@pytest.mark.slow
@rows
def test_it_optimises(row):
    """Parabola and Rosenbrock's valley, real and complex, to Optax's own tolerance."""
    solver = row.ours(**({"clipvalue": None} if "clipvalue" in row.settings else {}))

    @jax.jit
    def optimise():
        def step(carry, _):
            params, state = carry
            grads = jax.tree.map(jnp.conj, jax.grad(all_problems)(params))
            updates, state = solver.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (STARTS, solver.init(STARTS)), length=10_000)[0][0]

    found = optimise()
    for name, minimum in MINIMA.items():
        np.testing.assert_allclose(found[name], minimum, rtol=3e-2, atol=3e-2, err_msg=name)


# What goes in, and what comes out.


@rows
@pytest.mark.parametrize("tree", [None, {}, (), {"a": None}, [None, {"b": [None]}]], ids=str)
def test_none_for_every_leaf(row, tree):
    if tree is None and "weight_decay" in row.settings:
        return  # then params=None is no parameters at all: the next test
    solver = row.ours()
    state = solver.init(tree)
    updates, after = solver.update(tree, state, tree)
    assert updates == tree
    assert jax.tree.structure(after) == jax.tree.structure(state)


@rows
def test_none_for_the_parameters(row):
    """Where Optax's parts need them, and nowhere else."""
    ours, theirs = (
        lambda solver=solver: solver.update(at(0), solver.init(PARAMS))[0]
        for solver in (row.ours(), row.theirs())
    )
    if "weight_decay" in row.settings:
        for step in (ours, theirs):
            with pytest.raises(ValueError, match="params"):
                step()
    else:
        assert_same(ours(), theirs())


@rows
def test_arguments_for_others_pass(row):
    expected, _ = steps(row.ours(), count=2)
    got, _ = steps(row.ours(), count=2, value=jnp.ones(()), value_fn=jnp.sum, unheard_of="x")
    assert jax.tree.all(jax.tree.map(np.array_equal, got, expected))


@pytest.mark.slow
@rows
@pytest.mark.parametrize(
    ("dtype", "x64"),
    [
        ("bfloat16", False),
        ("float16", True),
        ("float32", False),
        ("float32", True),
        ("float64", True),
        ("complex64", False),
        ("complex128", True),
    ],
)
def test_dtypes(row, dtype, x64):
    """Updates like the gradients, a state of at least float32, nothing that changes on the way."""
    if "complex" in dtype and "clipvalue" in row.settings:
        return  # complex numbers have no order
    types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)
    with jax.enable_x64(x64):
        params = jax.tree.map(lambda p: jnp.asarray(p, dtype), PARAMS)

        def choose(state, yes, wrap):
            step = lambda: wrap(row.ours()).update(params, state, params)
            return jax.lax.cond(yes, step, lambda: (params, state))

        accumulated = lambda s: optax.MultiSteps(s, 2, accumulator_dtype=dtype)
        for wrap in (lambda s: s, accumulated):
            state = jax.eval_shape(wrap(row.ours()).init, params)
            updates, after = jax.eval_shape(functools.partial(choose, wrap=wrap), state, True)
            assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
            assert types(after) == types(state)
        state = jax.eval_shape(row.ours().init, params)
        for path, x in jax.tree_util.tree_flatten_with_path(state)[0]:
            is_weight = ".weight" in jax.tree_util.keystr(path)  # in JAX's default float
            wide = x64 if is_weight else jnp.finfo(dtype).bits == 64
            assert x.dtype == jnp.int32 or jnp.finfo(x.dtype).bits == (64 if wide else 32)


@rows
def test_tree_map_params_finds_the_same_buffers(row):
    specs = {"w": "as w", "frozen": "as frozen", "none": None}
    found = []
    for solver in (row.ours(), row.theirs()):
        state = solver.init(PARAMS)
        same = optax.tree_utils.tree_map_params(
            solver, lambda x, p: x + 0 * (x.shape == p.shape), state, PARAMS
        )
        assert jax.tree.structure(same) == jax.tree.structure(state)
        named = optax.tree_utils.tree_map_params(
            solver, lambda _, spec: spec, state, specs, transform_non_params=lambda _: None
        )
        found.append(sorted(jax.tree.leaves(named)))
    assert found[0] == found[1]
    assert found[0].count("as w") == found[0].count("as frozen") == len(found[0]) / 2 > 0


@rows
def test_a_constant_schedule_is_its_number(row):
    number, schedule = (
        steps(row.ours(**{row.rate: rate}), count=3)[0]
        for rate in (RATE, optax.constant_schedule(RATE))
    )
    assert_same(schedule, number)


@rows
def test_injected_it_is_the_plain_call(row):
    """With no `static_args`; and a number that is changed in the state is the one that counts."""
    injected = optax.inject_hyperparams(row.make)(**row.settings)
    got, state = steps(injected)
    expected, plain = steps(row.ours())
    assert_same(got, expected)
    if callable(row.settings[row.rate]):  # Optax evaluates a schedule itself
        return
    assert jax.tree.structure(state.inner_state) == jax.tree.structure(plain)
    state.hyperparams[row.rate] = jnp.float32(3 * RATE)
    got, _ = injected.update(at(0), state, PARAMS)
    expected, _ = row.ours(**{row.rate: 3 * RATE}).update(at(0), plain, PARAMS)
    assert_same(got, expected)


# Sharding, on two devices.

COLLECTIVES = [
    "all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter",
    "collective-broadcast",
]  # fmt: skip


def assert_sharded_alike(solver, state, params):
    """Every buffer as its parameter; there are some."""
    seen = []

    def compare(leaf, param):
        assert leaf.sharding.is_equivalent_to(param.sharding, param.ndim)
        seen.append(leaf)
        return leaf

    optax.tree_utils.tree_map_params(solver, compare, state, params)
    assert len(seen) >= len(params)


@pytest.mark.slow
@rows
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_sharded(row, kind):
    """The state lies where its parameter does, a step sends nothing between devices, and one
    compiled step takes what came of it."""
    mesh = jax.make_mesh((2,), ("x",), axis_types=(getattr(jax.sharding.AxisType, kind),))
    split = {"rows": jax.P("x"), "columns": jax.P(None, "x")}
    place = lambda tree: {
        name: jax.device_put(x, jax.NamedSharding(mesh, split[name])) for name, x in tree.items()
    }
    rng = np.random.default_rng(1)
    draw = lambda: {name: np.float32(rng.normal(size=(2, 2))) for name in split}
    grads, params, solver = draw(), draw(), row.ours()
    _, state = solver.update(grads, solver.init(params), params)
    expected, _ = solver.update(grads, state, params)

    grads, params = place(grads), place(params)
    with jax.set_mesh(mesh) if kind == "Explicit" else contextlib.nullcontext():
        state = solver.init(params)
        assert_sharded_alike(solver, state, params)
        abstract = jax.tree.map(
            lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding), params
        )
        assert_sharded_alike(solver, solver.init(abstract), params)
        if kind == "Explicit":  # the sharding is part of the type, so that jit keeps it too
            assert_sharded_alike(solver, jax.jit(solver.init)(params), params)
        compiled = jax.jit(solver.update).lower(grads, state, params).compile(FAST)
        for _ in range(2):
            updates, state = compiled(grads, state, params)
    assert_sharded_alike(solver, state, params)
    assert_sharded_alike(optax.trace(0.9), optax.TraceState(updates), params)
    assert [word for word in COLLECTIVES if word in compiled.as_text()] == []
    assert_same(updates, expected)


# In Optax's wrappers: a chain's other parts and the wrappers round it, for every row.


def once(part):
    """Its control flow is compiled once, for all rows."""
    update = jax.jit(part.update, static_argnames=("value_fn",))
    return optax.GradientTransformationExtraArgs(part.init, update)


ONLY_W = {"w": True, "frozen": False, "none": None}
LABELS = {"w": "trained", "frozen": "frozen", "none": None}
PLATEAU = once(optax.contrib.reduce_on_plateau(factor=0.5, patience=2))
WRAPPERS = {
    "clipping": lambda s: optax.chain(optax.clip_by_global_norm(1.0), s),
    "masked": lambda s: optax.masked(s, ONLY_W),
    "masked by a function": lambda s: optax.masked(s, lambda _: ONLY_W),
    "partition": lambda s: optax.partition({"trained": s, "frozen": optax.set_to_zero()}, LABELS),
    "schedule_free": lambda s: optax.contrib.schedule_free(s, RATE),
    "reduce_on_plateau": lambda s: optax.chain(s, PLATEAU),
}
ROUNDING = {"schedule_free": 1e-6, "lookahead": 1e-6}  # both subtract positions


def with_values(solver):
    """Gives `reduce_on_plateau` its loss."""
    values = iter(VALUES)
    update = lambda *args, **extra: solver.update(*args, value=jnp.asarray(next(values)), **extra)
    return optax.GradientTransformationExtraArgs(solver.init, update)


@pytest.mark.slow
@rows
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_it_is_what_optax_has_wrapped(row, wrapper):
    wrap = lambda solver: with_values(WRAPPERS[wrapper](solver))
    ours, state = steps(wrap(row.ours()))
    theirs, _ = steps(wrap(row.theirs()))
    assert_same(ours, theirs, ROUNDING.get(wrapper, 0.0))
    if wrapper == "partition":
        assert (ours["frozen"] == 0).all()
        assert PARAMS["frozen"].shape not in {jnp.shape(x) for x in jax.tree.leaves(state)}
    if wrapper == "reduce_on_plateau":
        assert state[1].scale == 0.25


@pytest.mark.slow
@rows
@pytest.mark.parametrize("reset_state", [False, True])
def test_lookahead(row, reset_state):
    synced = optax.LookaheadParams.init_synced(PARAMS)
    ours, theirs = (
        steps(optax.lookahead(solver, 3, 0.5, reset_state), synced)[0]
        for solver in (row.ours(), row.theirs())
    )
    assert_same(ours, theirs, ROUNDING["lookahead"])
    assert (ours.slow["w"][[0, 1, 3]] == 0).all()
    assert (ours.slow["w"][2] != 0).any()


NAN_AT = 3
BROKEN = {**GRADS, "w": GRADS["w"].copy()}
BROKEN["w"][NAN_AT, 0, 1] = np.nan
ONE_COMPILE_A_ROW = {
    "MultiSteps": (
        lambda s: optax.MultiSteps(s, 3, should_skip_update_fn=optax.skip_not_finite),
        [2, 6],
    ),
    "apply_if_finite": (lambda s: optax.apply_if_finite(s, 3), [0, 1, 2, 4, 5, 6]),
}


def scanned(solver, grads):
    start = {"w": PARAMS["w"], "none": None}
    grads = {"w": grads["w"], "none": None}
    return travel(solver, grads, start)[1]


@pytest.mark.slow
@rows
@pytest.mark.parametrize("wrapper", ONE_COMPILE_A_ROW)
def test_steps_that_are_put_off_or_skipped(row, wrapper):
    wrap, steps_taken = ONE_COMPILE_A_ROW[wrapper]
    run = lambda: [scanned(wrap(solver), BROKEN) for solver in (row.ours(), row.theirs())]
    ours, theirs = jax.jit(run, compiler_options=FAST)()
    assert_same(ours, theirs)
    moved = (np.asarray(ours["w"]) != 0).all(axis=(1, 2))
    assert np.flatnonzero(moved).tolist() == steps_taken
    assert not np.any(ours["w"][~moved])


TWO_OF_THREE = lambda step, *_, **__: step % 3 != 2
MORE = {
    "named_chain": lambda s: optax.named_chain(("clip", optax.clip(0.5)), ("ours", s)),
    "adaptive_grad_clip": lambda s: optax.chain(optax.adaptive_grad_clip(0.1), s),
    "flatten": optax.flatten,
    "ema": lambda s: optax.chain(s, optax.ema(0.9)),
    "keep_params_nonnegative": lambda s: optax.chain(s, optax.keep_params_nonnegative()),
    "selective_transform": lambda s: optax.selective_transform(
        s, freeze_mask={"w": False, "none": None}
    ),
    "conditionally_transform": lambda s: optax.conditionally_transform(s, TWO_OF_THREE),
    "conditionally_mask": lambda s: optax.conditionally_mask(s, TWO_OF_THREE),
    "sam": lambda s: optax.contrib.sam(s, optax.sgd(0.01), sync_period=2),
    "split_real_and_imaginary": optax.contrib.split_real_and_imaginary,
}


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", MORE)
def test_more_wrappers(wrapper):
    row = ROWS["all"]
    run = lambda: [scanned(MORE[wrapper](solver), GRADS) for solver in (row.ours(), row.theirs())]
    ours, theirs = jax.jit(run, compiler_options=FAST)()
    assert_same(ours, theirs)
    assert np.any(ours["w"])


# Line searches scale the step that ours proposes, and need arguments to pass through it.

STEEP = jnp.array([1.0, 3.0, 0.5])
SEARCHES = {
    "backtracking": once(optax.scale_by_backtracking_linesearch(12, max_learning_rate=40.0)),
    "zoom": once(optax.scale_by_zoom_linesearch(12, initial_guess_strategy="one")),
}


def bowl(params, x):
    return jnp.sum(STEEP * (params - x) ** 2) + 0.1 * jnp.sum((params - x) ** 4)


@pytest.mark.slow
@rows
@pytest.mark.parametrize("search", SEARCHES)
def test_line_searches(row, search):
    travels = []
    x, slope = jnp.zeros(3), jax.jit(jax.value_and_grad(bowl))
    for solver in (row.ours(), row.theirs()):
        solver = optax.chain(solver, SEARCHES[search])
        params = jnp.array([-1.0, 2.0, 1.0])
        state, travel, values, rates = solver.init(params), [], [], []
        for _ in range(STEPS):
            value, grad = slope(params, x)
            updates, state = solver.update(
                grad, state, params, value=value, grad=grad, value_fn=bowl, x=x
            )
            params = optax.apply_updates(params, updates)
            travel.append(updates)
            values.append(value)
            rates.append(state[1].learning_rate)
        travels.append(np.stack(travel))
        assert values[5] < values[1] < values[0]
        assert set(map(float, rates)) != {1.0}
    assert_same(*travels)


# What stays out, with Optax's own inside as with ours: the limits of docs/pages/where.md.

INSIDE = {"ours": rj.rmsprop, "Optax's": optax.rmsprop}
inside = pytest.mark.parametrize("make", INSIDE.values(), ids=INSIDE)


@inside
@pytest.mark.parametrize("wrapper", ["inject_hyperparams", "schedule_free"])
def test_limit_abstract_parameters(make, wrapper):
    """`jax.eval_shape` does it."""
    wrap = {
        "inject_hyperparams": lambda: optax.inject_hyperparams(make)(RATE),
        "schedule_free": lambda: optax.contrib.schedule_free(make(RATE), RATE),
    }[wrapper]
    abstract = jax.eval_shape(lambda: PARAMS)
    with pytest.raises((TypeError, AttributeError)):
        wrap().init(abstract)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), jax.eval_shape(wrap().init, abstract))
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), wrap().init(PARAMS))


@pytest.mark.slow
@inside
def test_limit_complex_gradients_in_multi_steps(make):
    """Its accumulator is float32."""
    params = jnp.array([1 + 1j, 2.0])
    plain = optax.MultiSteps(make(RATE), 1)
    state = plain.init(params)
    with pytest.warns(DeprecationWarning, match="complex to real"):
        plain.update(params, state, params)
    accumulated = optax.MultiSteps(make(RATE), 1, accumulator_dtype="complex64")
    updates, _ = accumulated.update(params, accumulated.init(params), params)
    assert_same(updates, make(RATE).update(params, make(RATE).init(params))[0])


@inside
@pytest.mark.parametrize("wrapper", ["MultiSteps", "reduce_on_plateau"])
def test_limit_strict_promotion(make, wrapper):
    wrap = {
        "MultiSteps": lambda: optax.MultiSteps(make(RATE), 2),
        "reduce_on_plateau": lambda: optax.chain(make(RATE), optax.contrib.reduce_on_plateau()),
    }[wrapper]
    state = wrap().init(PARAMS)
    with jax.numpy_dtype_promotion("strict"), pytest.raises(Exception, match="strict"):
        wrap().update(PARAMS, state, PARAMS, value=jnp.ones(()))


@inside
def test_limit_jitted_init_on_a_mesh_with_auto_axes(make):
    """Nothing of Optax's depends on the parameters, so jit does not see where they are placed."""
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.NamedSharding(mesh, jax.P("x"))
    params, nu = jax.device_put(jnp.ones((2, 2)), split), optax.tree_utils.tree_get
    alike = lambda state: nu(state, "nu").sharding.is_equivalent_to(split, 2)
    solver = make(RATE)
    assert alike(solver.init(params))
    assert alike(jax.jit(solver.init)(params)) == (make is rj.rmsprop)
    told = optax.tree_utils.tree_map_params(
        solver, lambda _, place: place, jax.eval_shape(solver.init, params), split
    )
    assert alike(jax.jit(solver.init, out_shardings=told)(params))


@inside
def test_limit_conditional_steps_of_bfloat16_gradients(make):
    """The update is float32 like the parameters, the skipped one bfloat16 like the gradients."""
    grads = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    for wrap in (optax.conditionally_transform, optax.conditionally_mask):
        solver = wrap(make(RATE), TWO_OF_THREE)
        state = solver.init(PARAMS)
        with pytest.raises(TypeError, match="cond branches"):
            solver.update(grads, state, PARAMS)
        solver.update(jax.tree.map(jnp.float32, grads), state, PARAMS)


@pytest.mark.parametrize("make", [rj.presets.keras, rj.presets.tf_keras_legacy])
def test_limit_clipping_complex_gradients_by_value(make):
    z, solver = jnp.array([3 + 4j]), make(1.0, clipvalue=1.0)
    with pytest.raises(ValueError, match="Complex values have no ordering"):
        solver.update(z, solver.init(z), z)
