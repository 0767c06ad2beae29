"""The state is placed as its parameters are, also under `jax.jit`; on one device this is free.

Plain zeros have no tie to the parameters: with automatic sharding, `jax.jit(optax.rmsprop().init)`
puts the state of sharded parameters on one device.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import rmsprop_jax as rj
from tests.support.tables import crossed, few

SOLVERS = {
    "plain": rj.rmsprop(),
    "centered": rj.rmsprop(centered=True, momentum=0.9, bias_correction=True),
    "bfloat16": rj.rmsprop(state_dtype="bfloat16", initial_scale=1.0),
    "float32": rj.rmsprop(state_dtype="float32", momentum=0.9),
    "decoupled": rj.rmsprop(momentum=0.9, weight_decay=0.1, decoupled_weight_decay=True),
    "scale_by_rms": rj.scale_by_rms(initial_scale=0.5),
    "torch": rj.presets.torch(momentum=0.9, centered=True),
    "keras": rj.presets.keras(momentum=0.9),
    "optax": rj.presets.optax(0.1, momentum=0.9, centered=True, bias_correction=True),
    "chain": optax.chain(optax.clip(1.0), rj.rmsprop(momentum=0.9)),
    "injected": optax.inject_hyperparams(rj.rmsprop)(0.1, momentum=0.9),
}


def mesh_of(kind):
    return jax.make_mesh((2,), ("data",), axis_types=(kind,), devices=jax.devices()[:2])


def parameters(mesh, dtype=jnp.float32):
    place = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))
    return {
        "row": jax.device_put(jnp.ones((4, 6), dtype), place("data")),
        "column": jax.device_put(jnp.ones((4, 6), dtype), place(None, "data")),
        "copy": jax.device_put(jnp.ones(4, dtype), place()),
    }


def assert_placed(state, params):
    """Each buffer that has a parameter's shape lies as the parameter does."""
    checked = 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        name = next((n for n in params if f"'{n}'" in jax.tree_util.keystr(path)), None)
        if name is None:
            assert leaf.sharding.is_fully_replicated
            continue
        assert leaf.sharding.is_equivalent_to(params[name].sharding, leaf.ndim), path
        checked += 1
    assert checked >= len(params)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    crossed(
        list(SOLVERS),
        {"Auto": AxisType.Auto, "Explicit": AxisType.Explicit},
        plain=[
            "plain-Auto",
            "centered-Explicit",
            "bfloat16-Auto",
            "torch-Explicit",
            "injected-Auto",
        ],
    ),
)
def test_a_jitted_init_keeps_the_sharding_of_the_parameters(name, kind):
    params = parameters(mesh_of(kind))
    assert_placed(jax.jit(SOLVERS[name].init)(params), params)
    assert_placed(SOLVERS[name].init(params), params)


def test_optaxs_does_not():
    """Why this page of tests is there."""
    params = parameters(mesh_of(AxisType.Auto))
    state = jax.jit(optax.rmsprop(0.1).init)(params)
    assert optax.tree_utils.tree_get(state, "nu")["row"].sharding.is_fully_replicated


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    crossed(["centered", "bfloat16", "torch"], ["bfloat16", "float16", "complex64"]),
)
def test_of_other_dtypes_too(name, dtype):
    params = parameters(mesh_of(AxisType.Auto), dtype)
    assert_placed(jax.jit(SOLVERS[name].init)(params), params)


def test_under_vmap_and_a_mesh_that_is_manual_in_part():
    solver = SOLVERS["centered"]
    mesh = mesh_of(AxisType.Auto)
    stacked = jax.device_put(jnp.ones((3, 4, 6)), NamedSharding(mesh, PartitionSpec(None, "data")))
    state = jax.jit(jax.vmap(solver.init))({"w": stacked})
    nu = optax.tree_utils.tree_get(state, "nu")["w"]
    assert nu.sharding.is_equivalent_to(stacked.sharding, 3)

    both = jax.make_mesh(
        (1, 2), ("trial", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:2]
    )
    spec = PartitionSpec("trial", "model")
    params = jax.device_put(jnp.ones((2, 8)), NamedSharding(both, spec))
    for check_vma in (True, False):
        init = jax.shard_map(
            lambda p: optax.tree_utils.tree_get(solver.init(p), "nu"),
            mesh=both,
            in_specs=PartitionSpec("trial"),
            out_specs=PartitionSpec("trial"),
            axis_names={"trial"},
            check_vma=check_vma,
        )
        assert jax.jit(init)(params).sharding.is_equivalent_to(NamedSharding(both, spec), 2)


def test_a_whole_training_step_keeps_it():
    """Created, updated, and donated under `jit`."""
    params = parameters(mesh_of(AxisType.Auto))
    solver = SOLVERS["centered"]
    state = jax.jit(solver.init)(params)

    def step(params, state):
        updates, state = solver.update(params, state, params)
        return optax.apply_updates(params, updates), state

    params, state = jax.jit(step, donate_argnums=(0, 1))(params, state)
    assert_placed(state, params)


@pytest.mark.parametrize("name", few(list(SOLVERS), ["plain", "bfloat16", "torch", "injected"]))
def test_any_parameter_gives_the_same_state(name):
    """NaN and infinite parameters too, jitted or not: zeros, and s₀."""
    odd = {"w": jnp.array([np.nan, np.inf, -np.inf, 1.0, 0.0]), "b": jnp.zeros(())}
    plain = jax.tree.map(jnp.ones_like, odd)
    for init in (SOLVERS[name].init, jax.jit(SOLVERS[name].init)):
        for got, want in zip(*(jax.tree.leaves(init(p)) for p in (odd, plain)), strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["plain", "centered", "bfloat16", "torch"])
def test_the_program_of_init_is_the_same_in_two_traces(name):
    params = {"w": jnp.ones((4, 6)), "b": jnp.ones(6)}
    texts = [jax.jit(lambda p: SOLVERS[name].init(p)).lower(params).as_text() for _ in range(2)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ["plain", "centered"])
def test_on_one_device_it_costs_what_plain_zeros_cost(name):
    params = {"w": jnp.ones((512, 512)), "b": jnp.ones(512)}
    theirs = {
        "plain": optax.rmsprop(0.1),
        "centered": optax.rmsprop(0.1, centered=True, momentum=0.9),
    }
    ours, other = (
        jax.jit(solver.init).lower(params).compile() for solver in (SOLVERS[name], theirs[name])
    )
    cost = lambda compiled: compiled.cost_analysis().get("bytes accessed", 0.0)
    assert cost(ours) <= cost(other) + 64  # the scalars of the state
    assert ours.memory_analysis().temp_size_in_bytes <= other.memory_analysis().temp_size_in_bytes


def test_derivatives_do_not_pass_through_the_zeros():
    zeros = lambda p: sum(map(jnp.sum, jax.tree.leaves(SOLVERS["plain"].init(p))))
    assert jax.grad(zeros)(jnp.array(2.0)) == 0.0
    text = str(jax.make_jaxpr(jax.grad(lambda p: p * p + zeros(p)))(2.0))
    assert text.count("mul") <= 3


@pytest.mark.parametrize("name", ["centered", "bfloat16"])
@pytest.mark.parametrize("jitted", [False, True])
def test_abstract_parameters_have_literal_zeros(name, jitted):
    params = {"w": jax.ShapeDtypeStruct((4, 6), jnp.float32)}
    init = lambda: SOLVERS[name].init(params)
    state = jax.jit(init)() if jitted else init()
    concrete = SOLVERS[name].init({"w": jnp.ones((4, 6))})
    for got, want in zip(*map(jax.tree.leaves, (state, concrete)), strict=True):
        np.testing.assert_array_equal(got, want)
