"""What a folder, and a process, know a sweep by: its programs, and the contents of its args."""

import dataclasses
import os
import pickle
import subprocess
import sys

import equinox as eqx
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import rmsprop_jax as rj
from rmsprop_jax._tune.training.fingerprint import program_text

POINTS = rj.grid(x=[1.0, 2.0])
ONE = jnp.array([1.0, -2.0])


def sweep(path, train, *args, points=POINTS, **options):
    return rj.sweep(train, points, args=args, path=path, progress=False, **options)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Net:
    w: jax.Array
    activation: object = dataclasses.field(metadata={"static": True})


@flax.struct.dataclass
class FlaxNet:
    w: jax.Array
    activation: object = flax.struct.field(pytree_node=False)


class Module(eqx.Module):
    w: jax.Array
    activation: object = eqx.field(static=True)


class OfItsOwn:
    """With keys in its paths that print their address."""

    def __init__(self, w, activation):
        self.w, self.activation = w, activation


jax.tree_util.register_pytree_with_keys(
    OfItsOwn,
    lambda net: (((type("Key", (), {})(), net.w),), net.activation),
    lambda activation, children: OfItsOwn(children[0], activation),
)


def train_state(w, activation):
    solver = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    state = TrainState.create(apply_fn=activation, params={"w": w}, tx=solver)
    return Net(state, activation)


NETS = {
    "a dataclass": Net,
    "Flax's dataclass": FlaxNet,
    "Equinox's module": Module,
    "a node of its own": OfItsOwn,
    "a key of a dict": lambda w, activation: {"net": Net({activation: w}, activation)},
    "a TrainState": train_state,
    "a partial function": lambda w, activation: jax.tree_util.Partial(activation, w),
}


def loss(hp, key, net):
    x = net["net"] if isinstance(net, dict) else net
    activation = x.func if isinstance(x, jax.tree_util.Partial) else x.activation
    return {"loss": hp["x"] * sum(activation(leaf).sum() for leaf in jax.tree.leaves(net))}


def nets(activation):
    """Each is made anew, and so is its activation, as in another process."""
    return {name: make(ONE, lambda x: activation(x)) for name, make in NETS.items()}


def go_on(folder):
    for name, net in nets(jnp.tanh).items():
        sweep(f"{folder}/{name}", loss, net)


def counted(folder):
    return {name: len(os.listdir(f"{folder}/{name}")) for name in NETS}


@pytest.mark.slow
def test_a_sweep_goes_on_in_another_process_with_functions_in_the_structure_of_args(tmp_path):
    go_on(tmp_path)
    before = counted(tmp_path)
    code = f"from tests.tune.training.test_fingerprint import go_on; go_on({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert counted(tmp_path) == before  # nothing ran again


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_another_function_in_the_structure_of_args_is_another_train(name, tmp_path):
    sweep(tmp_path, loss, nets(jnp.tanh)[name])
    sweep(tmp_path, loss, nets(jnp.tanh)[name])
    with pytest.raises(ValueError, match="another train"):
        sweep(tmp_path, loss, nets(jnp.sin)[name])


def test_a_function_in_the_structure_of_args_that_closes_over_other_data_is_noticed(tmp_path):
    scaled = lambda data: nets(lambda x: x * data)["a dataclass"]
    sweep(tmp_path, loss, scaled(np.array([1.0, 2.0], np.float32)))
    sweep(tmp_path, loss, scaled(np.array([1.0, 2.0], np.float32)))
    with pytest.raises(ValueError, match=r"other data that train closes over|another train"):
        sweep(tmp_path, loss, scaled(np.array([1.0, 3.0], np.float32)))


ARGS = {
    "a value": ({"a": jnp.float32(1)}, {"a": jnp.float32(2)}),
    "a name": ({"a": jnp.float32(1)}, {"b": jnp.float32(1)}),
    "a shape": ({"a": jnp.ones(())}, {"a": jnp.ones((1,))}),
    "a dtype": ({"a": jnp.zeros((), "int32")}, {"a": jnp.zeros((), "float32")}),
    "an implementation of keys": tuple(
        {"a": jax.random.wrap_key_data(jnp.ones(4, "uint32"), impl=impl)}
        for impl in ("rbg", "unsafe_rbg")
    ),
    "where one array ends": tuple({"a": np.ones(n), "b": np.ones(3 - n)} for n in (1, 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", ARGS)
def test_other_args_are_noticed_where_the_program_is_the_same(what, tmp_path):
    """`train` does not look at them, so that nothing else can tell them apart."""
    train = lambda hp, key, tree: {"loss": hp["x"]}
    then, now = ARGS[what]
    sweep(tmp_path, train, then)
    sweep(tmp_path, train, then)
    with pytest.raises(ValueError, match="other args"):
        sweep(tmp_path, train, now)


SIDES = {"first": lambda pair: pair[0], "second": lambda pair: pair[1]}


def of_args(side):
    return (lambda hp, key, *args: {"loss": hp["x"] * SIDES[side](args)}), {"args": (3.0, 4.0)}


def of_hyperparameters(side):
    points = rj.grid(x=[1.0], y=[2.0])
    return (lambda hp, key: {"loss": 2 * SIDES[side]((hp["x"], hp["y"]))}), {"points": points}


def of_a_state(side):
    init = lambda hp, key: (hp["x"], hp["x"] + 1)
    step = lambda hp, state, key: (state, {"loss": 2 * SIDES[side](state)})
    return rj.Training(init, step), {"steps": 2}


def of_the_evaluated_state(side):
    init = lambda hp, key: (hp["x"], hp["x"] + 1)
    evaluate = lambda hp, state, key: {"loss": 2 * SIDES[side](state)}
    return rj.Training(init, lambda hp, state, key: (state, {}), evaluate), {"steps": 2}


def of_batches(side):
    init = lambda hp, key: hp["x"]
    step = lambda hp, state, key, batch: (state, {"loss": state * SIDES[side](batch)})
    batches = lambda t: (np.float32(3), np.float32(4))
    return rj.Training(init, step), {"steps": 2, "batches": batches}


READERS = [of_args, of_hyperparameters, of_a_state, of_the_evaluated_state, of_batches]


@pytest.mark.slow
@pytest.mark.parametrize("make", READERS)
def test_programs_that_differ_in_what_they_read_only_are_told_apart(make, tmp_path):
    """Unused arguments leave a program's text, so that two texts can be one. Each trains by itself
    in one process, and a folder of one refuses the other."""
    losses = {}
    for side in SIDES:
        train, options = make(side)
        options = {"points": POINTS, "progress": False} | options
        losses[side] = rj.sweep(train, path=tmp_path / side, **options).objective
        other = make("second" if side == "first" else "first")[0]
        with pytest.raises(ValueError, match="another train"):
            rj.sweep(other, path=tmp_path / side, **options)
    assert (losses["first"] < losses["second"]).all()


@dataclasses.dataclass(frozen=True)
class Silent:
    """Two that differ print alike."""

    number: int

    def __repr__(self):
        return "Silent"


def test_static_fields_that_print_alike_are_told_apart_in_one_process():
    for number in (1, 2):
        train = lambda hp, key, net: {"loss": hp["x"] * net.w.sum()}
        result = sweep(None, train, Net(ONE, Silent(number)))
        assert result.objective.tolist() == [-1.0, -2.0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Careful:
    """Looks at its arrays, which may be abstract."""

    w: jax.Array
    activation: object = dataclasses.field(metadata={"static": True})

    def __post_init__(self):
        assert self.w.shape == (2,)


def of_a_careful_state():
    init = lambda hp, key: Careful(hp["x"] * ONE, lambda x: jnp.tanh(x))

    def step(hp, state, key):
        w = state.w - 0.1 * state.activation(state.w)
        return dataclasses.replace(state, w=w), {"loss": w.sum()}

    return rj.Training(init, step)


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_training_goes_on_with_functions_in_the_structure_of_its_state(on_disk, tmp_path):
    def fail(report):
        if report[0].step == 4:
            raise ZeroDivisionError

    path = tmp_path if on_disk else None
    options = {"steps": 6, "evaluate_every": 2, "checkpoint_seconds": 0}
    with pytest.raises(ZeroDivisionError):
        sweep(path, of_a_careful_state(), callback=fail, **options)
    found = sweep(path, of_a_careful_state(), **options)
    expected = sweep(None, of_a_careful_state(), **options)
    np.testing.assert_array_equal(found.metrics["loss"], expected.metrics["loss"])
    state, like = (result.state(result.best()) for result in (found, expected))
    assert state.w.tolist() == like.w.tolist()
    pickled = pickle.loads(pickle.dumps(found))
    with pytest.raises(ValueError, match="like="):
        pickled.state(found.best())
    assert pickled.state(found.best(), like=state).w.tolist() == state.w.tolist()


def test_the_name_of_our_wrapper_is_no_part_of_a_programs_text():
    """Else a rename in this package would keep every folder from being resumed."""

    def double(x):
        return 2 * x

    renamed, other = lambda x: 2 * x, lambda x: 3 * x
    texts = [program_text(jax.jit(f).trace(1.0)) for f in (double, renamed, other)]
    assert texts[0] == texts[1] != texts[2]
