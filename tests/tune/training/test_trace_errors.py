"""What a sweep says of a train that cannot be traced: what it has checked, where, a remedy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmsprop_jax as rj

GRID = rj.grid(lr=[0.1, 0.2], n=[2, 3], flag=[False, True])


def read(hp):
    """So that no axis is unread."""
    return hp["lr"] + hp["n"] + hp["flag"]


def loop_with_break(hp, key):
    loss = jax.random.uniform(key) + read(hp)
    for _ in range(3):
        if loss < 1e-3:
            break
        loss = loss / 2
    return {"loss": loss}


def both_shapes(hp, key):
    return {"loss": jnp.zeros(hp["n"]).sum() + jnp.ones(hp["k"]).sum()}


def masked(hp, key):
    x = jax.random.uniform(key, (5,))
    return {"loss": x[x > 0.5].sum() + read(hp)}


CASES = {
    # where it is nobody's axis: what was done, and what helps; nothing is said of static
    "float": (
        lambda hp, key: {"loss": float(jax.random.uniform(key)) + read(hp)},
        r"as a Python number.*test_trace_errors\.py:\d+, `.*float\(jax.*the array itself",
        "static",
    ),
    "break": (
        loop_with_break,
        r"traced value as a bool.*`if loss < 1e-3:`.*jax\.lax\.while_loop",
        "static",
    ),
    "numpy of the key": (
        lambda hp, key: {"loss": np.log10(jax.random.uniform(key)) + read(hp)},
        r"traced value as a NumPy array.*`.*np\.log10.*jnp\.log10",
        "static",
    ),
    "mask": (masked, r"as a mask.*`.*x\[x > 0\.5\].*jnp\.where", "static"),
    "format of the key": (
        lambda hp, key: print(f"{jax.random.uniform(key):.2f}") or {"loss": read(hp)},
        r"traced value as a Python number.*`.*\.2f.*jax\.debug\.print",
        "static",
    ),
    # where it is the axis', but a function of jax.numpy serves: no compile for each value
    "numpy": (
        lambda hp, key: {"loss": np.log10(hp["lr"]) + read(hp)},
        r"used 'lr' as a NumPy array.*`.*np\.log10\(hp.*jnp\.log10 for np\.log10",
        "static",
    ),
    "math": (
        lambda hp, key: {"loss": math.log(hp["lr"]) + read(hp)},
        r"used 'lr' as a Python number.*`.*math\.log.*jnp\.log for math\.log",
        "static",
    ),
    "format": (
        lambda hp, key: print(f"{hp['lr']:.3f}") or {"loss": read(hp)},
        r"used 'lr' as a Python number.*jax\.debug\.print",
        "static",
    ),
    # where the axis decides a shape or a branch: static, and only that axis
    "shape": (
        lambda hp, key: {"loss": jnp.zeros(hp["n"]).sum() + read(hp)},
        r"train used 'n' as a shape.*n=rmsprop_jax\.static",
        "'lr'",
    ),
    "range": (
        lambda hp, key: {"loss": sum(hp["lr"] for _ in range(hp["n"])) + read(hp)},
        r"train used 'n' as.*n=rmsprop_jax\.static",
        "'lr'",
    ),
    "branch": (
        lambda hp, key: {"loss": read(hp) if hp["lr"] > 0.1 else -read(hp)},
        r"train used 'lr' as.*lr=rmsprop_jax\.static.*jax\.lax\.cond",
        "'n'",
    ),
    "list index": (
        lambda hp, key: {"loss": [1.0, 2.0, 3.0, 4.0][hp["n"]] + read(hp)},
        r"train used 'n' as.*n=rmsprop_jax\.static",
        "'lr'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_cause_is_named_and_only_that(case):
    train, message, never = CASES[case]
    with pytest.raises(ValueError, match=message) as caught:
        rj.sweep(train, GRID, progress=False)
    assert never not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_two_axes_that_only_together_are_the_cause():
    with pytest.raises(ValueError, match="'n' and 'k' as a shape"):
        rj.sweep(both_shapes, rj.grid(n=[2, 3], k=[2, 3]), progress=False)


def test_the_remedies_help():
    """The code that the messages recommend runs."""
    points = rj.grid(lr=[0.1, 0.2], n=rj.static([2, 3]))

    def train(hp, key):
        x = jax.random.uniform(key, (5,))
        loss = jnp.log10(hp["lr"]) + jnp.zeros(hp["n"]).sum() + jnp.where(x > 0.5, x, 0).sum()
        loss = jax.lax.while_loop(lambda x: x > 1e-3, lambda x: x / 2, loss)
        return {"loss": jax.lax.cond(hp["lr"] > 0.1, lambda: loss, lambda: -loss)}

    assert len(rj.sweep(train, points, progress=False)) == 4


def test_a_number_in_args_that_decides_a_shape_is_named():
    def train(hp, key, data, steps):
        return {"loss": jax.lax.scan(lambda c, _: (c, c), hp["x"], length=steps)[1] + data}

    points = rj.grid(x=[1.0])
    with pytest.raises(ValueError, match=r"used args\[1\] as.*functools\.partial"):
        rj.sweep(train, points, args=(jnp.float32(1), 3), progress=False)
    mended = functools.partial(lambda hp, key, data, steps: train(hp, key, data, steps), steps=3)
    assert rj.sweep(mended, points, args=(jnp.float32(1),), progress=False).objective == 2.0


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("mine"), TypeError("mine")])
def test_what_train_raises_by_itself_stays_what_it_is(error):
    def train(hp, key):
        raise error

    with pytest.raises(type(error)) as caught:
        rj.sweep(train, rj.grid(x=[1.0]), progress=False)
    assert caught.value is error


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x / (1, 2),
        lambda x: x + None,
        lambda x: x < "a",
        lambda x: x(),
        lambda x: "a" + x,
    ],
)
def test_a_mistake_that_no_number_repairs_is_not_called_a_traced_value(mistake):
    """Python names the types: a traced array and, for example, a tuple. That says it all."""

    def train(hp, key):
        return {"loss": mistake(jax.random.uniform(key)) + hp["x"]}

    with pytest.raises(TypeError, match=r"operand|instances of|not callable|concatenate"):
        rj.sweep(train, rj.grid(x=[1.0]), progress=False)


def test_a_jitted_train_with_static_hyperparameters_is_told_to_give_the_function():
    def train(hp, key):
        solver = rj.rmsprop(hp["x"], centered=hp["centered"])
        return {"loss": solver.update(1.0, solver.init(1.0))[0]}

    points = rj.grid(x=[0.1], centered=[False, True])
    with pytest.raises(ValueError, match=r"jit.*train\.__wrapped__") as caught:
        rj.sweep(jax.jit(train), points, progress=False)
    assert "static(" not in str(caught.value)
    assert len(rj.sweep(jax.jit(train).__wrapped__, points, progress=False)) == 2
    inside = lambda hp, key: jax.jit(train)(hp, key)
    with pytest.raises(ValueError, match=r"centered must be True or False.*jax\.jit of your own"):
        rj.sweep(inside, points, progress=False)
    assert len(rj.sweep(jax.jit(lambda hp, key: {"loss": hp["x"]}), rj.grid(x=[1.0]))) == 1


def test_a_sweep_inside_a_trace_is_refused():
    points = rj.grid(x=[1.0])
    inner = lambda hp, key: {"loss": hp["x"]}
    nested = lambda hp, key: {"loss": rj.sweep(inner, points, progress=False).objective + hp["x"]}
    with pytest.raises(
        ValueError, match=r"sweep must be called outside jax\.jit.*Call it from plain"
    ):
        rj.sweep(nested, points, progress=False)
    with pytest.raises(ValueError, match=r"sweep must be called outside jax\.jit"):
        jax.jit(lambda x: rj.sweep(inner, points, progress=False).objective)(1.0)
    arg = lambda hp, key, a: {"loss": hp["x"] * a}
    with pytest.raises(
        ValueError, match=r"sweep must be called outside jax\.jit.*Call it from plain"
    ):
        jax.grad(lambda x: rj.sweep(arg, points, args=(x,), progress=False).objective[0])(1.0)
    with pytest.raises(ValueError, match=r"'x'.*traced value.*outside"):
        jax.vmap(lambda x: rj.grid(x=[x]))(jnp.ones(2))
    made_inside = lambda hp, key: {"loss": hp["x"] * len(rj.grid(y=[hp["x"]]))}
    with pytest.raises(ValueError, match=r"used 'x' as.*'y'.*traced value"):
        rj.sweep(made_inside, points, progress=False)
