"""What comes in and goes out: whole models, leaves without a gradient, abstract arrays, dtypes."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmsprop_jax as rj
from tests.support.tables import crossed, few

pytestmark = pytest.mark.usefixtures("strict")

PRESETS = {name: functools.partial(getattr(rj.presets, name), 0.1) for name in rj.presets.__all__}
SOLVERS = {
    "plain": lambda: rj.rmsprop(0.1),
    "scale_by_rms": rj.scale_by_rms,
    "full": lambda: rj.rmsprop(
        0.1, centered=True, momentum=0.9, nesterov=True, bias_correction=True
    ),
    "outside": lambda: rj.rmsprop(0.1, momentum=0.9, lr_in_momentum=False),
    "coupled": lambda: rj.rmsprop(0.1, momentum=0.9, weight_decay=0.2),
    "decoupled": lambda: rj.rmsprop(
        0.1, momentum=0.9, weight_decay=0.2, decoupled_weight_decay=True
    ),
    "decoupled outside": lambda: rj.rmsprop(0.1, weight_decay=0.2, decoupled_weight_decay=True),
    "mask function": lambda: rj.rmsprop(
        0.1, weight_decay=0.2, mask=lambda tree: jax.tree.map(lambda x: x.ndim > 0, tree)
    ),
    "schedule": lambda: rj.rmsprop(optax.constant_schedule(0.1), momentum=0.9),
    "torch with decay": lambda: rj.presets.torch(0.1, weight_decay=0.2, momentum=0.9),
    "keras clipped": lambda: rj.presets.keras(0.1, weight_decay=0.2, global_clipnorm=1.0),
    **PRESETS,
}
REPRESENTATIVE = ["plain", "full", "decoupled outside", "mask function", "keras clipped"]
solvers = pytest.mark.parametrize("make", few(SOLVERS, REPRESENTATIVE))


class Model(NamedTuple):
    """As Equinox has it: what is trained lies beside what is not."""

    weight: Any
    scale: Any
    activation: Any
    name: Any
    key: Any
    nothing: Any
    steps: Any


def model(**kept):
    fields = {
        "weight": jnp.array([[1.0, -2.0], [3.0, 0.5]]),
        "scale": jnp.float32(2.0),
        "activation": jnp.tanh,
        "name": "net",
        "key": jax.random.key(0),
        "nothing": None,
        "steps": 3,
    }
    return Model(**{name: kept.get(name, value) for name, value in fields.items()})


ONLY = dict.fromkeys(("activation", "name", "key", "nothing", "steps"))  # None for each
GRADS = model(weight=jnp.array([[0.1, -0.2], [0.3, 0.0]]), scale=jnp.float32(-0.4), **ONLY)


def steps(solver, grads, params, count=3, state=None):
    state = solver.init(params) if state is None else state
    every = []
    for _ in range(count):
        updates, state = solver.update(grads, state, params)
        every.append(updates)
    return every, state


@pytest.mark.slow
@solvers
def test_a_whole_model_may_be_params(make):
    """Its functions, strings and keys have no gradient, and are not looked at."""
    solver = make()
    whole, filtered = model(), model(**ONLY)
    state = solver.init(filtered)
    expected, last = steps(solver, GRADS, filtered, state=state)
    got, same = steps(solver, GRADS, whole, state=state)
    chex.assert_trees_all_equal(got, expected)
    chex.assert_trees_all_equal(same, last)
    jitted = jax.jit(lambda grads, state: solver.update(grads, state, whole))
    chex.assert_trees_all_close(jitted(GRADS, state)[0], expected[0], rtol=1e-5)


@pytest.mark.slow
@solvers
def test_a_leaf_without_a_gradient_keeps_its_state(make):
    """Integer leaves under `eqx.filter_grad`: there is state, and its gradient is None."""
    solver = make()
    params = {"w": jnp.array([1.0, -2.0]), "n": jnp.array([3, 4]), "z": jnp.ones((2, 2))}
    full = {"w": jnp.array([0.5, 0.1]), "n": jnp.array([1.0, 2.0]), "z": 0.3 * jnp.ones((2, 2))}
    _, state = steps(solver, full, params, count=2)
    grads = full | {"n": None}

    @jax.jit
    def scanned(state):
        step = lambda state, _: solver.update(grads, state, params)[::-1]
        return jax.lax.scan(step, state, length=3)

    after, updates = scanned(state)
    assert updates["n"] is None
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    named = lambda tree: {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    before, then = named(state), named(after)
    untouched = {place for place in before if "['n']" in place}
    assert untouched
    for place in untouched:
        np.testing.assert_array_equal(then[place], before[place])

    alone = {name: full[name] for name in ("w", "z")}
    without = lambda tree: {name: tree[name] for name in alone}
    if "global" not in str(make) and make is not SOLVERS["keras clipped"]:
        expected, _ = steps(solver, alone, without(params), count=5)
        for name in alone:
            np.testing.assert_allclose(updates[name][-1], expected[-1][name], rtol=1e-5)


def test_none_for_a_whole_branch():
    """A frozen part of the model, all of it."""
    solver = rj.rmsprop(0.1, momentum=0.9, centered=True, weight_decay=0.1)
    params = {"head": jnp.ones(2), "body": {"a": jnp.ones(3), "f": jnp.sin}}
    state = solver.init({"head": jnp.ones(2), "body": {"a": jnp.ones(3), "f": None}})
    updates, after = solver.update({"head": jnp.ones(2), "body": None}, state, params)
    assert updates["body"] is None
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


@solvers
def test_init_on_abstract_parameters(make):
    solver = make()
    params = {"w": jnp.ones((2, 3)), "half": jnp.ones(2, jnp.bfloat16), "key": jax.random.key(1)}
    abstract = jax.eval_shape(lambda: params)
    state = solver.init(params)
    chex.assert_trees_all_equal(solver.init(abstract), state)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(solver.init, params), state)


def test_abstract_parameters_keep_their_sharding():
    mesh = jax.make_mesh((2,), ("data",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    for dtype in (jnp.float32, jnp.bfloat16):
        struct = jax.ShapeDtypeStruct((4, 2), dtype, sharding=split)
        state = rj.rmsprop(momentum=0.9, centered=True).init(struct)
        for leaf in jax.tree.leaves(state):
            assert leaf.sharding.is_equivalent_to(split, 2)


@pytest.mark.slow
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_the_update_is_as_wide_as_the_parameter(centered, momentum):
    """bfloat16 gradients of float32 parameters: a decay of 1e-6 beside a step of .003 arrives."""
    params, g = jnp.full(3, 1.0), jnp.full(3, 0.7, jnp.bfloat16)
    solver = lambda strength: rj.rmsprop(
        3e-3,
        centered=centered,
        momentum=momentum,
        eps=1.0,
        weight_decay=strength,
        decoupled_weight_decay=True,
    )
    updates = [solver(x).update(g, solver(x).init(params), params)[0] for x in (0.0, 1e-6 / 3e-3)]
    assert updates[0].dtype == jnp.float32
    np.testing.assert_allclose(updates[0] - updates[1], 1e-6, rtol=1e-3)
    without = rj.rmsprop(3e-3)
    assert without.update(g, without.init(params))[0].dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("param", "grad", "update"),
    [
        ("float32", "bfloat16", "float32"),
        ("bfloat16", "float32", "float32"),
        ("float64", "float32", "float64"),
        ("float16", "bfloat16", "bfloat16"),  # neither is wider
        ("complex128", "complex64", "complex128"),
        ("int32", "bfloat16", "bfloat16"),
    ],
)
@pytest.mark.parametrize("kind", ["jax", "numpy"])
def test_the_dtype_of_the_update(x64, param, grad, update, kind):
    params = jnp.ones(2, param) if kind == "jax" else np.ones(2, jnp.dtype(param))
    solver, g = rj.rmsprop(), jnp.ones(2, grad)
    assert solver.update(g, solver.init(params), params)[0].dtype == update


def test_python_numbers_and_weakly_typed_parameters_count_as_float32():
    solver, g = rj.rmsprop(), jnp.bfloat16(1.0)
    step = lambda p: solver.update(g, solver.init(p), p)[0]
    for p in (1.0, jnp.full((), 1.0), jnp.float32(1.0)):
        assert step(p).dtype == jax.jit(step)(p).dtype == jnp.float32


def test_numpy_arrays_are_taken_for_state_gradient_and_parameters():
    """As a checkpoint gives them back."""
    solver = rj.rmsprop(0.1, momentum=0.9, bias_correction=True, weight_decay=0.1)
    params, g = np.ones(3, np.float32), np.full(3, 0.5, np.float32)
    state = solver.init(params)
    expected = solver.update(jnp.asarray(g), state, jnp.asarray(params))
    got = solver.update(g, jax.tree.map(np.asarray, state), params)
    chex.assert_trees_all_equal(got, expected)


# Refused, with the remedy.


@pytest.mark.parametrize(
    ("jitted", "narrow", "field"),
    crossed([False, True], [jnp.bfloat16, jnp.float16], ["nu", "mu", "trace"]),
)
def test_a_state_restored_in_half_precision_is_refused(field, narrow, jitted):
    solver = rj.rmsprop(0.1, momentum=0.9, centered=True)
    params = {"w": jnp.ones(2), "b": jnp.ones(1)}
    state = solver.init(params)
    half = jax.tree_util.tree_map_with_path(
        lambda path, x: x.astype(narrow) if f".{field}['w']" in jax.tree_util.keystr(path) else x,
        state,
    )
    update = jax.jit(solver.update) if jitted else solver.update
    said = rf"{field}\['w'\] is {jnp.dtype(narrow)}, and was made as float32"
    with pytest.raises(ValueError, match=said) as caught:
        update(params, half)
    remedy = str(caught.value).split("state = ")[1]
    mended = eval(remedy, {"jax": jax, "solver": solver, "params": params, "state": half})
    chex.assert_trees_all_equal_shapes_and_dtypes(mended, state)
    update(params, mended)


def test_float0_gradients_are_refused():
    params = {"w": jnp.ones(2), "n": jnp.array([1, 2])}
    f = lambda p: jnp.sum(p["w"] ** 2)
    grads = jax.grad(f, allow_int=True)(params)
    solver = rj.rmsprop()
    with pytest.raises(ValueError, match=r"\['n'\] is float0.*None") as caught:
        solver.update(grads, solver.init(params), params)
    assert "jax.tree.map(lambda g: None if" in str(caught.value)
    mended = jax.tree.map(lambda g: None if g.dtype == jax.dtypes.float0 else g, grads)
    assert solver.update(mended, solver.init(params), params)[0]["n"] is None


@pytest.mark.parametrize("leaf", [jnp.tanh, "name", object()], ids=["function", "str", "object"])
def test_init_on_what_is_no_parameter_is_refused(leaf):
    with pytest.raises(ValueError, match=r"params\['f'\].*eqx\.filter"):
        rj.rmsprop().init({"w": jnp.ones(2), "f": leaf})


def test_a_gradient_that_had_no_parameter_is_refused():
    solver = rj.rmsprop()
    state = solver.init({"a": jnp.ones(2), "b": None})
    with pytest.raises(ValueError, match=r"no state for it, because init got None"):
        solver.update({"a": jnp.ones(2), "b": jnp.ones(3)}, state)


def test_params_of_another_tree_matter_only_where_they_are_read():
    """Optax' rmsprop does not look at them either."""
    g = {"a": jnp.ones(2), "b": jnp.ones(1)}
    other = {"c": jnp.ones(2)}
    plain, decay = rj.rmsprop(), rj.rmsprop(weight_decay=0.1)
    plain.update(g, plain.init(g), other)
    with pytest.raises(ValueError, match="another structure"):
        decay.update(g, decay.init(g), other)
    with pytest.raises(ValueError, match=r"weight decay reads must be an array.*is 'x'"):
        decay.update(g, decay.init(g), {"a": "x", "b": jnp.ones(1)})


@pytest.mark.parametrize("flag", ["centered", "bias_correction"])
def test_the_state_of_another_flag_is_refused(flag):
    """A variance is no raw moment."""
    on, off, g = rj.rmsprop(**{flag: True}), rj.rmsprop(), jnp.ones(2)
    for solver, other in ((on, off), (off, on)):
        with pytest.raises(ValueError, match=f"made with {flag}=.*call init"):
            solver.update(g, other.init(g))


def test_the_state_without_a_buffer_is_refused():
    g = jnp.ones(2)
    with pytest.raises(ValueError, match="no momentum buffer"):
        rj.rmsprop(momentum=0.9).update(g, rj.rmsprop().init(g))


# One bool for a mask.


def test_a_mask_that_is_one_bool_is_refused_for_several_parameters():
    """It is what `inject_hyperparams` makes of a mask function."""
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    kernels = lambda tree: jax.tree.map(lambda x: jnp.ndim(x) > 1, tree)
    inject = lambda **static: optax.inject_hyperparams(rj.rmsprop, **static)(
        0.1, weight_decay=0.1, mask=kernels
    )
    with jax.numpy_dtype_promotion("standard"):
        for call in (lambda tx: tx.init(params), lambda tx: jax.jit(tx.init)(params)):
            with pytest.raises(ValueError, match=r'static_args=\("mask",\)'):
                call(inject())
        solver = inject(static_args=("mask",))
        plain = rj.rmsprop(0.1, weight_decay=0.1, mask=kernels)
        got, _ = solver.update(params, solver.init(params), params)
    expected, _ = plain.update(params, plain.init(params), params)
    chex.assert_trees_all_close(got, expected, rtol=1e-6)
    for mask in (True, np.bool_(False), jnp.array(True)):
        with pytest.raises(ValueError, match="mask is one bool"):
            rj.rmsprop(weight_decay=0.1, mask=mask).init(params)
    one = rj.rmsprop(weight_decay=0.1, mask=True)
    one.update(jnp.ones(2), one.init(jnp.ones(2)), jnp.ones(2))


@pytest.mark.parametrize("place", ["state", "gradient", "params", "init"])
@pytest.mark.parametrize("jitted", [False, True])
def test_the_raw_bytes_of_a_numpy_file_are_refused_with_the_line_that_reads_them(
    place, jitted, tmp_path
):
    """NumPy saves bfloat16 as |V2 and does not know it again."""
    params = {"w": jnp.arange(4.0).astype(jnp.bfloat16)}
    solver = rj.rmsprop(weight_decay=0.1, state_dtype="bfloat16")
    state = solver.init(params)
    expected = solver.update(params, state, params)

    def from_file(tree):
        np.savez(tmp_path / "tree.npz", *jax.tree.leaves(tree))
        with np.load(tmp_path / "tree.npz") as file:
            leaves = [file[name] for name in file.files]
        return jax.tree.unflatten(jax.tree.structure(tree), leaves)

    trees = {"state": state, "gradient": params, "params": params, "init": params}
    raw = from_file(trees[place])
    if place == "init":
        call = lambda tree: solver.init(tree)
    else:
        call = lambda tree: solver.update(
            *(tree if name == place else trees[name] for name in ("gradient", "state", "params"))
        )
    with pytest.raises(ValueError, match=r"\|V2.*x\.view\(jnp\.bfloat16\)"):
        call(raw)
    read = jax.tree.map(lambda x: x.view(jnp.bfloat16) if x.dtype.kind == "V" else x, raw)
    got = (jax.jit(call) if jitted else call)(read)
    chex.assert_trees_all_equal(got, state if place == "init" else expected)
