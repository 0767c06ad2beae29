"""A run that begins in one framework and ends in another, switched at any step."""

import functools
import importlib.util
import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmsprop_jax as rj
from tests.support import oracles
from tests.support.steps import travel
from tests.support.tables import crossed, few

RNG = np.random.default_rng(0)
STEPS = 1000
GRADS = {
    "w": RNG.normal(size=(STEPS, 3, 2)) * np.array([0.1, 10.0]) + 0.3,
    "b": np.where(RNG.random((STEPS, 4)) < 0.3, RNG.normal(size=(STEPS, 4)), 0),
}
START = {"w": RNG.normal(size=(3, 2)), "b": RNG.normal(size=4)}
SWITCH = (1, 37, 500)


def continued(solver, params, state, start, stop):
    """Train our solver on the gradients of the steps [start, stop)."""
    update = jax.jit(solver.update)
    for t in range(start, stop):
        grads = {name: jnp.asarray(g[t]) for name, g in GRADS.items()}
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


# Every framework, from its frozen buffers: no framework needs to be installed.

FROZEN = np.load(oracles.FILE)
CASES = {
    case.name: case
    for case in oracles.CASES
    if case.preset in oracles.PRESETS and f"{case.name} | 1 second_moment" in FROZEN.files
}


def test_every_preset_has_frozen_buffers():
    assert {case.preset for case in CASES.values()} == set(rj.presets.__all__)


def frozen(case, at):
    """The parameters and the buffers after a number of steps."""
    start = f"{case.name} | {at} "
    kept = {name.removeprefix(start): FROZEN[name] for name in FROZEN.files if start in name}
    return kept.pop("params"), kept


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    few(
        CASES,
        [
            "tensorflow_v1 mixed momentum=0.9 centered=True",
            "tf_keras_legacy mixed momentum=0.9 centered=True",
            "timm mixed momentum=0.9 centered=True weight_decay=0.1 caution=True",
            "timm mixed momentum=0.9 lr_in_momentum=False",
            "stable_baselines3 mixed momentum=0.9 centered=True",
            "mlx mixed",
            "keras mixed momentum=0.9 centered=True weight_decay=0.1",
            "torch complex momentum=0.9 centered=True",
        ],
    ),
)
def test_every_framework_continues_here_and_back(case, x64):
    """Here: the next 500 steps are the frozen ones. Back: our buffers are the frozen buffers."""
    make, settings = getattr(rj.presets, case.preset), case.settings
    rate_name = next(iter(inspect.signature(make).parameters))
    solver = make(**{rate_name: oracles.rate}, **settings)
    grads, start = map(jnp.asarray, oracles.stream(case.stream))
    path, size = FROZEN[case.name], abs(FROZEN[case.name]).max()

    def states(carry, g):
        updates, state = solver.update(g, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), state

    _, ours = jax.lax.scan(states, (start, solver.init(start)), grads)
    run = jax.jit(functools.partial(travel, solver))
    for at in SWITCH:
        params, kept = frozen(case, at)
        if case.preset in ("tensorflow_v1", "impala2018") and "momentum" not in settings:
            del kept["momentum"]  # TensorFlow keeps a slot in which nothing is added up
        state = rj.restore_state(solver, jnp.asarray(params), step=at, **kept)
        _, updates = run(grads[at : at + 500], jnp.asarray(params), state)
        now = params + np.cumsum(updates, axis=0)
        seen = [(k, t) for k, t in enumerate(oracles.KEPT) if at <= t < at + 500]
        for k, t in seen:
            np.testing.assert_allclose(now[t - at], start + path[k], rtol=0, atol=1e-12 * size)
        state = jax.tree.map(lambda x, at=at: x[at - 1], ours)
        found = rj.moments(state, initial_scale=settings.get("initial_scale", 0.0))._asdict()
        for buffer in NAMES:
            assert (found[buffer] is None) == (buffer not in kept)
            if buffer in kept:
                atol = 1e-12 * abs(kept[buffer]).max()
                np.testing.assert_allclose(found[buffer], kept[buffer], rtol=1e-12, atol=atol)


# PyTorch.

TORCH = {
    "plain": {},
    "centered": {"centered": True},
    "momentum": {"momentum": 0.9},
    "all": {"centered": True, "momentum": 0.9, "weight_decay": 0.01},
}
NAMES = {
    "second_moment": "square_avg", "first_moment": "grad_avg", "momentum": "momentum_buffer",
}  # fmt: skip


def rate(t):
    return 1e-3 * 0.5 ** (t // 100)  # StepLR


def torch_run(settings, params, start, stop, buffers=None):
    """Train torch.optim.RMSprop, from the start or from buffers; return parameters and buffers."""
    import torch

    tensors = {name: torch.nn.Parameter(torch.tensor(np.array(p))) for name, p in params.items()}
    optimizer = torch.optim.RMSprop(tensors.values(), lr=rate(start), alpha=0.99, **settings)
    for name, p in tensors.items() if buffers else ():
        optimizer.state[p] = {"step": torch.tensor(float(start))} | {
            theirs: torch.tensor(np.array(buffers[ours][name]))
            for ours, theirs in NAMES.items()
            if buffers[ours] is not None
        }
    for t in range(start, stop):
        for group in optimizer.param_groups:
            group["lr"] = rate(t)
        for name, p in tensors.items():
            p.grad = torch.tensor(GRADS[name][t])
        optimizer.step()
    found = {name: p.detach().numpy() for name, p in tensors.items()}
    kept = {
        ours: {name: optimizer.state[p][theirs].numpy() for name, p in tensors.items()}
        for ours, theirs in NAMES.items()
        if theirs in optimizer.state[tensors["w"]]
    }
    return found, kept


def schedule(t):
    return 1e-3 * 0.5 ** (t // 100)


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("at", SWITCH)
def test_torch_continues_here_and_back(name, at, x64):
    pytest.importorskip("torch")
    settings, end = TORCH[name], at + 500
    whole, _ = torch_run(settings, START, 0, end)
    params, buffers = torch_run(settings, START, 0, at)
    solver = rj.presets.torch(schedule, alpha=0.99, **settings)
    params = jax.tree.map(jnp.asarray, params)
    state = rj.restore_state(solver, params, step=at, **buffers)
    ours, state = continued(solver, params, state, at, end)
    for leaf in whole:
        np.testing.assert_allclose(ours[leaf], whole[leaf], rtol=0, atol=1e-12)
    # And back: our first steps, then theirs.
    params, state = continued(solver, jax.tree.map(jnp.asarray, START), solver.init(START), 0, at)
    found = rj.moments(state)._asdict()
    theirs, _ = torch_run(settings, params, at, end, found)
    for leaf in whole:
        np.testing.assert_allclose(theirs[leaf], whole[leaf], rtol=0, atol=1e-12)


def test_a_complex_parameter_of_torch(x64):
    torch = pytest.importorskip("torch")
    start = np.array([1 + 2j, -3 + 0.5j])
    grads = RNG.normal(size=(20, 2)) + 1j * RNG.normal(size=(20, 2))
    p = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.RMSprop([p], lr=0.01, momentum=0.9, centered=True)
    seen = []
    for g in grads:
        p.grad = torch.tensor(g)
        optimizer.step()
        seen.append(p.detach().numpy().copy())
        if len(seen) == 7:
            kept = {k: v.numpy().copy() for k, v in optimizer.state[p].items() if k != "step"}
    solver, params = rj.presets.torch(0.01, momentum=0.9, centered=True), jnp.asarray(seen[6])
    buffers = {ours: kept[theirs] for ours, theirs in NAMES.items()}
    state = rj.restore_state(solver, params, step=7, **buffers)
    again = rj.moments(state)
    for name, buffer in buffers.items():
        np.testing.assert_allclose(getattr(again, name), buffer, rtol=1e-12)
    for t in range(7, 20):
        updates, state = solver.update(jnp.asarray(grads[t]), state, params)
        params = params + updates
        np.testing.assert_allclose(params, seen[t], rtol=1e-12)
    with pytest.raises(ValueError, match=r"square|must be complex"):
        rj.restore_state(solver, params, step=7, **buffers | {"momentum": kept["grad_avg"].real})


@functools.cache
def layouts():
    """The functions of the porting page that turn layers of PyTorch into those of Flax."""
    page = Path(__file__).parents[2] / "docs" / "pages" / "porting.md"
    (code,) = re.findall(
        r"^```python\n(import numpy as np\n.*?)^```$", page.read_text("utf-8"), re.M | re.S
    )
    names = {}
    exec(code, names)
    return names


@pytest.mark.slow
def test_layers_of_torch_continue_in_flax(x64):
    """A convolution, an LSTM, and a linear layer, 20 steps there and 20 steps here."""
    torch = pytest.importorskip("torch")
    from flax import linen as nn

    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(2, 3, (3, 2), padding="valid")
            self.lstm = torch.nn.LSTM(9, 5, batch_first=True)
            self.head = torch.nn.Linear(5, 2)

        def forward(self, x):  # (batch, channels, time, width)
            x = self.conv(x).permute(0, 2, 3, 1).flatten(2)
            return self.head(self.lstm(x)[0][:, -1])

    class Ours(nn.Module):
        @nn.compact
        def __call__(self, x):  # (batch, time, width, channels)
            x = nn.Conv(3, (3, 2), padding="VALID", param_dtype=x.dtype)(x)
            x = nn.RNN(nn.LSTMCell(5, param_dtype=x.dtype))(x.reshape(*x.shape[:2], -1))
            return nn.Dense(2, param_dtype=x.dtype)(x[:, -1])

    torch.manual_seed(0)
    model = Theirs().double()
    x, y = torch.randn(8, 2, 7, 4).double(), torch.randn(8, 2).double()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3, momentum=0.9, centered=True)

    def train(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            ((model(x) - y) ** 2).mean().backward()
            optimizer.step()

    def in_flax(read, bias):
        """The model as Flax has it, each tensor read by a function of the parameter."""
        parts = {"conv": {}, "lstm": {}, "head": {}}
        for name, p in model.named_parameters():
            part, name = name.split(".")
            parts[part][name] = read(p).numpy().copy()
        made = layouts()
        return {
            "Conv_0": made["conv2d"](parts["conv"]),
            "LSTMCell_0": made["lstm"](parts["lstm"], bias),
            "Dense_0": made["linear"](parts["head"]),
        }

    train(20)
    params = in_flax(lambda p: p.detach(), lambda a, b: a + b)
    buffers = {
        ours: in_flax(lambda p, theirs=theirs: optimizer.state[p][theirs], lambda a, b: a)
        for ours, theirs in NAMES.items()
    }
    params = jax.tree.map(jnp.asarray, params)
    net, xs = Ours(), jnp.asarray(x.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(
        net.apply({"params": params}, xs), model(x).detach().numpy(), rtol=1e-10
    )
    make = lambda rate: rj.presets.torch(rate, momentum=0.9, centered=True)
    is_bias = lambda path: "LSTMCell_0" in str(path) and "bias" in str(path)
    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: "bias" if is_bias(path) else "rest", params
    )
    solver = optax.partition({"bias": make(2e-3), "rest": make(1e-3)}, labels)
    state = rj.restore_state(solver, params, step=20, **buffers)
    loss = lambda p: ((net.apply({"params": p}, xs) - y.numpy()) ** 2).mean()

    @jax.jit
    def step(params, state):
        updates, state = solver.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(20):
        params, state = step(params, state)
    train(20)
    expected = in_flax(lambda p: p.detach(), lambda a, b: a + b)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9), params, expected)


# Keras, with a rate that float32 has.


@pytest.mark.slow
@pytest.mark.parametrize("at", SWITCH)
@pytest.mark.parametrize("settings", [{}, {"centered": True}, {"centered": True, "momentum": 0.9}])
@pytest.mark.filterwarnings("default")
def test_keras_continues_here(settings, at, x64):
    if importlib.util.find_spec("keras") is None:
        pytest.skip('needs keras: pip install -e ".[oracles]"')
    from tests.support.oracles import _keras_class

    make, end = _keras_class(), at + 200
    import keras

    variables = [keras.Variable(np.array(START[name]), dtype="float64") for name in ("w", "b")]
    optimizer = make(2.0**-10, epsilon=1e-7, **settings)
    optimizer.build(variables)
    for t in range(end):
        grads = [keras.ops.convert_to_tensor(GRADS[name][t]) for name in ("w", "b")]
        optimizer.apply(grads, variables)
        if t == at - 1:
            params = dict(zip("wb", (np.array(v) for v in variables), strict=True))
            slots = {
                "second_moment": optimizer._velocities,
                "first_moment": optimizer._average_gradients if "centered" in settings else None,
                "momentum": optimizer._momentums if "momentum" in settings else None,
            }
            buffers = {
                name: dict(zip("wb", (np.array(v) for v in values), strict=True))
                for name, values in slots.items()
                if values is not None
            }
    solver = rj.presets.keras(2.0**-10, epsilon=1e-7, **settings)
    params = jax.tree.map(jnp.asarray, params)
    state = rj.restore_state(solver, params, step=at, **buffers)
    params, _ = continued(solver, params, state, at, end)
    for name, variable in zip("wb", variables, strict=True):
        np.testing.assert_allclose(params[name], np.array(variable), rtol=0, atol=1e-12)


# Optax, both ways, and our own states: any settings.

OPTAX = {
    "plain": {},
    "centered": {"centered": True, "eps": 1e-4},
    "momentum": {"momentum": 0.9, "nesterov": True},
    "corrected": {"bias_correction": True},
    "corrected, centered, s0": {
        "bias_correction": True, "centered": True, "eps": 1e-4, "initial_scale": 0.5,
    },
    "corrected, centered, momentum": {
        "bias_correction": True, "centered": True, "eps": 1e-4, "momentum": 0.9,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "at"), crossed(list(OPTAX), SWITCH))
def test_optax_continues_here_and_back(name, at, x64):
    settings = {"decay": 0.95, "eps_in_sqrt": True} | OPTAX[name]
    theirs, ours = optax.rmsprop(schedule, **settings), rj.rmsprop(schedule, **settings)
    start, end = jax.tree.map(jnp.asarray, START), at + 100
    whole, _ = continued(theirs, start, theirs.init(start), 0, end)
    params, state = continued(theirs, start, theirs.init(start), 0, at)
    found = rj.moments(state)
    weight = 1 - 0.95**at if "bias_correction" in settings else None
    assert found.weight is None
    buffers = {k: getattr(found, k) for k in NAMES}
    restored = rj.restore_state(ours, params, step=at, weight=weight, **buffers)
    there, _ = continued(ours, params, restored, at, end)
    # With a corrected variance, our first step is shorter than Optax's.
    own, _ = continued(ours, start, ours.init(start), 0, end)
    params, state = continued(ours, start, ours.init(start), 0, at)
    found = rj.moments(state, initial_scale=settings.get("initial_scale", 0.0))
    buffers = {k: getattr(found, k) for k in NAMES}
    restored = rj.restore_state(theirs, params, step=at, **buffers)
    back, _ = continued(theirs, params, restored, at, end)
    for leaf in whole:
        np.testing.assert_allclose(there[leaf], whole[leaf], rtol=0, atol=1e-12)
        np.testing.assert_allclose(back[leaf], own[leaf], rtol=0, atol=1e-12)


WRAPPED = {
    "chain": lambda s: optax.chain(optax.clip_by_global_norm(1.0), s),
    "cautious": rj.cautious,
    "outside": lambda s: rj.rmsprop(schedule, momentum=0.9, lr_in_momentum=False),
    "decoupled": lambda s: rj.rmsprop(
        schedule, momentum=0.9, weight_decay=0.1, decoupled_weight_decay=True
    ),
    "injected": lambda s: optax.inject_hyperparams(rj.rmsprop)(schedule, momentum=0.9),
    "corrected": lambda s: rj.rmsprop(schedule, bias_correction=True, centered=True, eps=1e-4),
    "decay schedule": lambda s: rj.rmsprop(schedule, lambda t: 1 - (t + 2.0) ** -0.8),
    "timm": lambda s: rj.presets.timm(
        schedule, momentum=0.9, weight_decay=0.1, decoupled_decay=True, caution=True
    ),
    "optax's parts": lambda s: optax.chain(
        rj.scale_by_rms(), optax.trace(0.9), optax.scale_by_learning_rate(schedule)
    ),
    "rounding": lambda s: optax.chain(s, rj.stochastic_rounding()),
}


@pytest.mark.parametrize("name", few(list(WRAPPED), ["chain", "corrected", "timm", "rounding"]))
def test_the_way_there_and_back_is_the_same_state(name):
    solver = WRAPPED[name](rj.rmsprop(schedule, momentum=0.9))
    start = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), START)
    params, state = continued(solver, start, solver.init(start), 0, 37)
    found = rj.moments(state)
    buffers = {k: getattr(found, k) for k in NAMES}
    weight = 1 - 0.9**37 if found.weight is not None else None
    restored = rj.restore_state(solver, params, step=37, weight=weight, **buffers)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert one.dtype == other.dtype
        if one.dtype == jnp.int32 and one.ndim == 0:
            assert one == other
        elif name != "injected" or one.ndim:  # its numbers are those of the last step
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)
    after, _ = continued(solver, params, state, 37, 47)
    again, _ = continued(solver, params, restored, 37, 47)
    for leaf in after:
        np.testing.assert_allclose(again[leaf], after[leaf], rtol=1e-5, atol=1e-6)


def test_two_bytes_come_back_as_float32():
    solver = rj.rmsprop(1e-3, state_dtype="bfloat16")
    params = {"w": jnp.ones(3)}
    second = {"w": np.array([0.5, 2.0, 1e-6], np.float32)}
    state = rj.restore_state(solver, params, second_moment=second, step=5)
    (nu,) = jax.tree.leaves(optax.tree_utils.tree_get(state, "nu"))
    assert nu.dtype == jnp.bfloat16
    found = rj.moments(state)
    assert found.second_moment["w"].dtype == jnp.float32
    np.testing.assert_allclose(found.second_moment["w"], second["w"], rtol=2**-8)
    assert found.step == 5


def test_masks_partitions_and_frozen_leaves():
    params = {"a": jnp.ones(2), "b": jnp.ones(3), "none": None}
    second = {"a": np.full(2, 0.25), "b": None, "none": None}
    masked = optax.masked(rj.rmsprop(1e-3), {"a": True, "b": False, "none": False})
    state = rj.restore_state(masked, params, second_moment=second, step=2)
    found = rj.moments(state).second_moment
    np.testing.assert_array_equal(found["a"], 0.25)
    assert found["b"] is None
    both = second | {"b": np.ones(3)}
    with pytest.raises(ValueError, match=r"second_moment\['b'\] must be None"):
        rj.restore_state(masked, params, second_moment=both, step=2)
    parts = {"slow": rj.rmsprop(1e-4), "fast": rj.rmsprop(1e-2, momentum=0.9)}
    split = optax.partition(parts, {"a": "slow", "b": "fast", "none": "slow"})
    second = second | {"b": np.full(3, 4.0)}
    buffer = {"a": None, "b": np.full(3, 0.5), "none": None}
    state = rj.restore_state(split, params, second_moment=second, momentum=buffer, step=2)
    found = rj.moments(state)
    np.testing.assert_array_equal(found.second_moment["b"], 4.0)
    np.testing.assert_array_equal(found.momentum["b"], 0.5)
    assert found.momentum["a"] is None


def test_under_jit_and_abstract_parameters():
    solver = rj.rmsprop(1e-3, momentum=0.9, centered=True)
    params = {"w": jnp.ones(3)}

    @jax.jit
    def restored(second, first, buffer):
        return rj.restore_state(
            solver, params, second_moment=second, first_moment=first, momentum=buffer, step=3
        )

    tree = lambda x: {"w": jnp.full(3, x)}
    one = restored(tree(1.0), tree(0.5), tree(2.0))
    abstract = {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}
    other = rj.restore_state(
        solver, abstract, second_moment=tree(1.0), first_moment=tree(0.5), momentum=tree(2.0),
        step=3,
    )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_arrays_are_copied():
    second = {"w": jnp.ones(3)}
    state = rj.restore_state(rj.rmsprop(1e-3), {"w": jnp.ones(3)}, second_moment=second, step=1)
    jax.tree.map(lambda x: x.delete(), jax.tree.leaves(state))
    np.testing.assert_array_equal(second["w"], 1)


# Mistakes that can be detected.

PARAMS = {"w": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32)}
ONES = {"w": np.ones((2, 3)), "b": np.ones(3)}
HALF = {"w": np.full((2, 3), 0.5), "b": np.full(3, 0.5)}
PLAIN, FULL = rj.rmsprop(1e-3), rj.rmsprop(1e-3, centered=True, momentum=0.9)
CORRECTED = rj.rmsprop(1e-3, bias_correction=True)
GOOD = {"second_moment": ONES, "step": 7}
ALL = {"second_moment": ONES, "first_moment": HALF, "momentum": HALF, "step": 7}
second = lambda **leaves: GOOD | {"second_moment": ONES | leaves}
MISTAKES = {
    "shape": (PLAIN, second(w=np.ones((3, 2))), r"\['w'\] must have the shape"),
    "integers": (PLAIN, second(b=np.ones(3, int)), r"\['b'\] must be an array of floats"),
    "complex": (PLAIN, second(b=np.ones(3) * 1j), r"\['b'\] must be real"),
    "text": (PLAIN, second(b="no"), r"\['b'\] must be an array of floats"),
    "missing leaf": (PLAIN, second(b=None), r"\['b'\] must be an array"),
    "missing name": (
        PLAIN,
        GOOD | {"second_moment": {"w": ONES["w"]}},
        "second_moment must be a tree like params",
    ),
    "missing first": (FULL, ALL | {"first_moment": None}, "first_moment must be given"),
    "missing momentum": (FULL, ALL | {"momentum": None}, "momentum must be given"),
    "superfluous first": (
        PLAIN,
        GOOD | {"first_moment": HALF},
        r"first_moment must be left out.*centered=True",
    ),
    "superfluous momentum": (PLAIN, GOOD | {"momentum": HALF}, "momentum must be left out"),
    "negative": (
        PLAIN,
        second(b=np.array([1.0, -1.0, -2.0])),
        r"\['b'\].*2 negative numbers of 3",
    ),
    "nan": (
        PLAIN,
        second(b=np.array([1.0, np.nan, np.inf])),
        r"\['b'\] must be finite, got 2 numbers of 3",
    ),
    "nan momentum": (
        FULL,
        ALL | {"momentum": HALF | {"w": np.full((2, 3), np.nan)}},
        r"momentum\['w'\] must be finite, got 6",
    ),
    "variance": (
        FULL,
        ALL | {"second_moment": HALF, "first_moment": ONES},
        r"must be at least first_moment².*smaller numbers of",
    ),
    "no weight": (CORRECTED, GOOD, "weight must be given"),
    "superfluous weight": (PLAIN, GOOD | {"weight": 0.5}, "weight must be left out"),
    "weight": (CORRECTED, GOOD | {"weight": 1.5}, r"weight must be a number in \(0, 1\]"),
    "step 0": (PLAIN, GOOD | {"step": 0}, "step must be a whole number"),
    "half a step": (PLAIN, GOOD | {"step": 1.5}, "step must be a whole number"),
    "unknown": (optax.MultiSteps(PLAIN, 4), GOOD, "got a MultiStepsState.*keep_fresh"),
    "ema": (optax.chain(PLAIN, optax.ema(0.9)), GOOD, "got a EmaState"),
    "if finite": (optax.apply_if_finite(PLAIN, 3), GOOD, "got a ApplyIfFiniteState"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_refused(name):
    solver, given, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        rj.restore_state(solver, PARAMS, **given)


def test_fresh_states_may_be_kept():
    solver = optax.chain(PLAIN, optax.ema(0.9))
    state = rj.restore_state(solver, PARAMS, keep_fresh=True, **GOOD)
    jax.tree.map(np.testing.assert_array_equal, state[1], solver.init(PARAMS)[1])
    np.testing.assert_array_equal(rj.moments(state).second_moment["w"], 1)


def test_a_state_without_averages_is_refused():
    with pytest.raises(ValueError, match="state must have the averages of RMSProp"):
        rj.moments(optax.adam(1e-3).init(PARAMS))
