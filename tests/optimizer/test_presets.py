"""Each preset follows the framework that it is named after: the real one, and its frozen runs."""

import functools
import importlib.util
import inspect
import itertools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmsprop_jax as rj
from tests.support import oracles
from tests.support.steps import travel
from tests.support.tables import crossed, few

FROZEN = np.load(oracles.FILE)
ABOUT = json.loads(str(FROZEN["about"]))
TOLERANCE = {"float32": 2e-6, "float64": 1e-12}
RATE_NAME = {preset: next(iter(inspect.signature(getattr(rj.presets, preset)).parameters))
             for preset in rj.presets.__all__}  # fmt: skip


def way(solver, name, dtype):
    """θ_t − θ_0 after every step, summed in float64."""
    grads, start = oracles.stream(name)
    kind = jnp.result_type(dtype, jnp.complex64) if np.iscomplexobj(grads) else dtype
    grads, start = jnp.asarray(grads, kind), jnp.asarray(start, kind)

    _, updates = jax.jit(functools.partial(travel, solver))(grads, start)
    updates = np.asarray(updates)
    return updates.astype(np.result_type(updates, np.float64)).cumsum(axis=0)


def assert_same(ours, theirs, tolerance):
    assert np.isfinite(theirs).all()
    assert abs(ours - theirs).max() <= tolerance * abs(theirs).max()


def preset(case):
    make = getattr(rj.presets, case.preset)
    return make(**{RATE_NAME[case.preset]: oracles.rate}, **case.settings)


def test_every_preset_has_an_oracle():
    assert set(rj.presets.__all__) == set(oracles.PRESETS)
    assert set(oracles.RUNNERS) == set(oracles.FRAMEWORKS) == set(ABOUT) - {"arguments"}
    runs = {name for name in FROZEN.files if " | " not in name}
    assert {case.name for case in oracles.CASES} == runs - {"about"}


# The first of each preset, and what is computed otherwise.
CASES = {case.name: case for case in oracles.CASES if case.preset in oracles.PRESETS}
REPRESENTATIVE = {case.preset: case.name for case in reversed(CASES.values())}.values()
WIDTHS = ["float64", "float32"]


@pytest.mark.parametrize(
    ("dtype", "case"),
    crossed(
        WIDTHS,
        CASES,
        plain=[
            *(f"float64-{name}" for name in REPRESENTATIVE),
            "float64-torch complex momentum=0.9 centered=True",
            "float32-torch mixed momentum=0.9 centered=True weight_decay=0.1",
            "float32-keras mixed momentum=0.9 centered=True weight_decay=0.1",
        ],
    ),
    indirect=["dtype"],
)
def test_follows_the_frozen_run(case, dtype):
    ours = way(preset(case), case.stream, dtype)
    tolerance = TOLERANCE[str(dtype)]
    if case.name == "stable_baselines3 tiny" and dtype == jnp.float32:
        # s is s₀ρᵗ alone, and the float32 nearest to .99 is 1e-8 off: a thousand times that.
        tolerance = 1e-5
    assert_same(ours[oracles.KEPT], FROZEN[case.name], tolerance)


LIVE = [case for case in oracles.CASES if case.preset in ("torch", "keras", "optax")]


@pytest.mark.parametrize("case", few({case.name: case for case in LIVE}, ["optax mixed"]))
@pytest.mark.filterwarnings("default")  # theirs are not ours to turn into errors
def test_follows_the_framework_itself(case, x64):
    """All 1,000 steps; torch under its own LambdaLR."""
    if importlib.util.find_spec(case.preset) is None:
        pytest.skip(f'needs {case.preset}: pip install -e ".[oracles]"')
    assert_same(way(preset(case), case.stream, "float64"), oracles.run(case), 1e-12)


@pytest.mark.parametrize("name", [name for name in oracles.PRESETS if ABOUT[name]["signature"]])
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


@pytest.mark.slow
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
        ("keras", {"loss_scale_factor": 128.0}, r"loss_scale_factor.*128.*optax\.scale"),
        ("keras", {"gradient_accumulation_steps": 4}, r"accumulation_steps.*4.*MultiSteps"),
        ("keras", {"clipnorm": 1.0, "clipvalue": 1.0}, "clipnorm"),
        ("tf_keras_legacy", {"clipnorm": 1.0, "global_clipnorm": 2.0}, r"clipnorm=1\.0.*Pass one"),
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


# Under `optax.inject_hyperparams`, which makes arrays of numbers, with no `static_args`.

GRADS = {"w": jnp.array([0.1, -2.0]), "b": jnp.array([[1e-4, 0.0]])}
PARAMS = {"w": jnp.array([1.0, -0.5]), "b": jnp.array([[2.0, 0.3]])}
ZEROS = {
    "torch": {"momentum": 0, "weight_decay": 0}, "keras": {"momentum": 0},
    "tensorflow_v1": {"momentum": 0}, "tf_keras_legacy": {"momentum": 0},
    "timm": {"momentum": 0, "weight_decay": 0}, "impala2018": {"momentum": 0},
    "stable_baselines3": {"momentum": 0, "weight_decay": 0},
}  # fmt: skip


def three_steps(solver, params=PARAMS, init=lambda f: f, update=lambda f: f, give=True):
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), GRADS, params)
    state, take = init(solver.init)(params), update(solver.update)
    for _ in range(3):
        updates, state = take(grads, state, *([params] if give else []))
    return updates, state


def structure(state):
    return jax.tree.structure(state), [x.shape for x in jax.tree.leaves(state)]


JITS = {"no": (lambda f: f,) * 2, "update": (lambda f: f, jax.jit), "both": (jax.jit, jax.jit),
        "init": (jax.jit, lambda f: f)}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "jitted"), crossed(rj.presets.__all__, list(JITS)))
def test_injected_with_its_defaults_it_is_the_plain_call(name, jitted):
    """Numbers, buffers, and whether params are needed."""
    make = getattr(rj.presets, name)
    plain, injected = make(0.1), optax.inject_hyperparams(make)(0.1)
    expected, state = three_steps(plain, give=False)
    got, wrapped = three_steps(injected, init=JITS[jitted][0], update=JITS[jitted][1], give=False)
    for leaf, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-5)
    assert structure(wrapped.inner_state) == structure(state)


@pytest.mark.parametrize(
    ("name", "dtype"), crossed(rj.presets.__all__, [jnp.bfloat16, jnp.float16])
)
def test_injected_in_half_precision_it_differs_by_one_rounding(name, dtype):
    """The numbers are rounded to that dtype, except if the call asks for float32."""
    make = getattr(rj.presets, name)
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    defaults = {
        p.name: p.default
        for p in inspect.signature(make).parameters.values()
        if isinstance(p.default, float)
    } | {RATE_NAME[name]: 0.1}
    round_ = lambda x: float(jnp.asarray(x, dtype))
    rounded = make(**{key: round_(value) for key, value in defaults.items()})
    for injected, plain in (
        (optax.inject_hyperparams(make)(0.1), rounded),
        (optax.inject_hyperparams(make, hyperparam_dtype=jnp.float32)(0.1), make(0.1)),
    ):
        got, expected = three_steps(injected, params)[0], three_steps(plain, params)[0]
        for leaf, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert leaf.dtype == dtype
            leaf, other = leaf.astype(jnp.float32), other.astype(jnp.float32)
            np.testing.assert_allclose(leaf, other, rtol=2 * float(jnp.finfo(dtype).eps), atol=1e-7)


@pytest.mark.parametrize("name", ZEROS)
@pytest.mark.parametrize("zero", [0, 0.0, -0.0, np.float32(0), np.zeros(()), jnp.float32(0)])
def test_a_zero_of_any_kind_is_no_buffer_and_no_term(name, zero):
    make = getattr(rj.presets, name)
    expected, state = three_steps(make(0.1), give=False)
    got, same = three_steps(make(0.1, **dict.fromkeys(ZEROS[name], zero)), give=False)
    chex.assert_trees_all_equal(got, expected)
    assert structure(same) == structure(state)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "jitted"), crossed([*ZEROS, "graves2013"], list(JITS)))
def test_an_injected_momentum_of_zero_says_the_same_jitted_or_not(name, jitted):
    """`init` may see an array of 0 and `update` a traced one, or the other way round."""
    make = getattr(rj.presets, name)
    expected, _ = three_steps(make(0.1, momentum=0.0), give=False)
    injected = optax.inject_hyperparams(make)(0.1, momentum=0.0)
    init, update = JITS[jitted]
    got, _ = three_steps(injected, init=init, update=update, give=False)
    if name == "tf_keras_legacy" and jitted in ("both", "init"):
        # A traced momentum counts as one there, and moves ε.
        expected, _ = three_steps(make(0.1, momentum=1e-30), give=False)
    for leaf, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-5)


@pytest.mark.parametrize("name", few([*ZEROS, "graves2013"], ["torch", "keras", "graves2013"]))
def test_a_momentum_that_came_too_late_does_not_pass_in_silence(name):
    """The state was made without a buffer."""
    injected = optax.inject_hyperparams(getattr(rj.presets, name))(0.1, momentum=0.0)
    _, state = three_steps(injected)
    state.hyperparams["momentum"] = jnp.float32(0.9)
    with pytest.raises(ValueError, match=r"0\.9.*[Cc]all init again"):
        injected.update(GRADS, state, PARAMS)
    updates, _ = jax.jit(injected.update)(GRADS, state, PARAMS)
    assert all(np.isnan(u).all() for u in jax.tree.leaves(updates))


def test_dqn_takes_two_traced_decays_and_shows_where_they_differ():
    both = lambda a, b: rj.presets.dqn2015(0.1, gradient_momentum=a, squared_gradient_momentum=b)
    step = lambda a, b: three_steps(both(a, b))[0]["w"]
    np.testing.assert_allclose(jax.jit(step)(0.9, 0.9), step(0.9, 0.9), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda a: step(a, a))(0.9), step(0.9, 0.9), rtol=1e-6)
    assert np.isnan(jax.jit(step)(0.9, 0.95)).all()
    with pytest.raises(ValueError, match=r"gradient_momentum.*got a traced value and 0\.95.*Pass"):
        jax.jit(lambda a: rj.presets.dqn2015(0.1, a))(0.9)


CLIPS = ["clipnorm", "clipvalue", "global_clipnorm"]


@pytest.mark.parametrize(
    ("limit", "clip", "name"),
    crossed(
        [0.5, 100.0, 0.0, -1.0],
        CLIPS,
        ["keras", "tf_keras_legacy"],
        plain=[
            "0.5-clipnorm-keras", "0.5-clipvalue-tf_keras_legacy", "100.0-global_clipnorm-keras",
            "0.0-clipvalue-keras", "-1.0-clipnorm-tf_keras_legacy",
        ],
    ),
)  # fmt: skip
def test_clipping_traces(name, clip, limit):
    """As the equations have it, with a number, traced, and injected; 0 or less does not clip."""
    make = getattr(rj.presets, name)
    if clip not in inspect.signature(make).parameters:
        return
    leaves = {k: np.asarray(g, np.float64) for k, g in GRADS.items()}
    total = np.sqrt(sum((g**2).sum() for g in leaves.values()))
    clipped = {
        "clipnorm": lambda g: g * min(1, limit / np.sqrt((g**2).sum())),
        "global_clipnorm": lambda g: g * min(1, limit / total),
        "clipvalue": lambda g: np.clip(g, -limit, limit),
    }[clip]
    grads = leaves if limit <= 0 else {k: clipped(g) for k, g in leaves.items()}
    plain = make(0.1, epsilon=1.0)  # so that the size of a gradient shows
    grads = jax.tree.map(jnp.float32, grads)
    expected, _ = plain.update(grads, plain.init(PARAMS), PARAMS)

    def step(limit):
        solver = make(0.1, epsilon=1.0, **{clip: limit})
        return solver.update(GRADS, solver.init(PARAMS), PARAMS)[0]

    injected = optax.inject_hyperparams(make)(0.1, epsilon=1.0, **{clip: limit})
    update = jax.jit(injected.update)
    for got in (step(limit), jax.jit(step)(limit), update(GRADS, injected.init(PARAMS), PARAMS)[0]):
        for leaf, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(leaf, other, rtol=1e-5)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(
    ("dtype", "clip", "name"),
    crossed(["bfloat16", "float16", "float64"], CLIPS, ["keras", "tf_keras_legacy"]),
)
def test_clipping_under_strict_promotion(name, clip, dtype, x64):
    make = getattr(rj.presets, name)
    if clip not in inspect.signature(make).parameters:
        return
    params = {"w": jnp.ones(2, dtype), "wide": jnp.ones(2)}
    solver = make(0.1, **{clip: 0.5})
    updates, _ = jax.jit(solver.update)(params, solver.init(params), params)
    assert updates["w"].dtype == dtype


@pytest.mark.slow
@pytest.mark.parametrize(("clip", "axis_type"), crossed(CLIPS, ["Auto", "Explicit"]))
def test_clipping_of_sharded_gradients_costs_one_reduction(axis_type, clip):
    kind = getattr(jax.sharding.AxisType, axis_type)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    split = jax.NamedSharding(mesh, jax.P(None, "data"))
    g = jax.device_put(jnp.arange(8.0).reshape(4, 2), split)
    solver = rj.presets.keras(0.1, **{clip: 0.5})
    with jax.set_mesh(mesh):
        state = solver.init(g)
        compiled = jax.jit(solver.update).lower(g, state, g).compile()
        updates, _ = compiled(g, state, g)
    whole, _ = solver.update(np.asarray(g), solver.init(np.asarray(g)))
    np.testing.assert_allclose(updates, whole, rtol=1e-6)
    text = compiled.as_text()
    assert text.count(" all-reduce(") + text.count(" all-reduce-start(") == (clip != "clipvalue")
    assert "all-gather" not in text


def test_preset_flags_are_bools():
    for name, flags in {
        "torch": ["maximize"], "keras": ["use_ema"],
        "timm": ["caution", "corrected_weight_decay"],
    }.items():  # fmt: skip
        for flag in flags:
            with pytest.raises(ValueError, match=rf"{flag} must be True or False"):
                getattr(rj.presets, name)(0.1, **{flag: 1})


def test_defaults_of_nothing_print_hash_and_compare_as_zero():
    default = inspect.signature(rj.presets.torch).parameters["momentum"].default
    assert repr(default) == "0"
    assert default == 0.0
    assert {default: "same"}[0] == "same"
    assert not isinstance(default, int | float)


# The scale of the loss: docs/pages/porting.md.


@pytest.mark.slow
@pytest.mark.parametrize("n", few([32.0, 0.25], [32.0]))
def test_what_has_the_gradients_unit_is_divided_with_it(n, x64):
    """ε/n² inside the root, ε/n outside, s₀/n², a clip's threshold /n, a coupled λ /n."""
    plain = {
        "decay": 0.9, "eps": 0.02, "initial_scale": 0.3, "momentum": 0.8, "weight_decay": 0.1,
    }  # fmt: skip
    for inside, centered, decoupled in itertools.product([False, True], repeat=3):
        flags = {"eps_in_sqrt": inside, "centered": centered, "decoupled_weight_decay": decoupled}
        scaled = plain | {
            "eps": 0.02 / (n**2 if inside else n),
            "initial_scale": 0.3 / n**2,
            "weight_decay": 0.1 if decoupled else 0.1 / n,
        }
        chain = lambda clip, settings, f=flags: optax.chain(
            optax.clip_by_global_norm(clip), rj.rmsprop(0.1, **settings, **f)
        )
        same_steps(chain(1.5, plain), chain(1.5 / n, scaled), n)


STARTS_AT_ONE = {"tensorflow_v1", "timm", "stable_baselines3", "impala2018"}  # s₀ is fixed there


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "n"), crossed(sorted(set(rj.presets.__all__) - STARTS_AT_ONE), [32.0, 0.25])
)
def test_a_presets_epsilon_is_divided_with_the_gradient(name, n, x64):
    make = getattr(rj.presets, name)
    names = inspect.signature(make).parameters
    eps = next(e for e in ("eps", "epsilon", "optim_eps", "min_squared_gradient") if e in names)
    inside = name not in ("torch", "mlx", "pymarl", "tf_keras_legacy")
    value = names[eps].default
    same_steps(make(0.1), make(0.1, **{eps: value / (n**2 if inside else n)}), n)


def same_steps(of_sum, of_mean, n):
    grads = jnp.asarray(np.random.default_rng(0).normal(size=(30, 4)))

    _, ours = travel(of_sum, grads, jnp.arange(4.0))
    _, same = travel(of_mean, grads / n, jnp.arange(4.0))
    np.testing.assert_allclose(ours, same, rtol=1e-9)
