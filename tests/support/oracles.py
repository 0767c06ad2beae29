"""The real frameworks' RMSProps, run on fixed streams of gradients.

`python -m tests.support.oracles` runs every framework that is installed, in float64, and writes
what it gave to `tests/data/oracles.npz`: the parameters' travel, the buffers at the steps of
`SWITCHES`, and the arguments of each optimizer of `CLASSES`, with the framework's version. What is
not installed stays as it was. Tests compare the presets with that file, and with torch and Keras
themselves where they are installed. Everything in the file so far was written with:

    pip install torch==2.13.0 keras==3.15.1 stable-baselines3==2.9.2 timm==1.0.31 "mlx[cpu]==0.32.4"
    pip install bitsandbytes==0.50.2 heavyball==3.2.1
    pip install tensorflow-cpu==2.21.0 tf_keras==2.21.0    # in an environment of its own

Levanter's arguments are those of its repository, commit 9263f81e (1.2), because its newest release
has no RMSProp. For the papers' own updates (Graves, DQN, A3C) there is nothing to install: `paper`
is written from the papers' equations.
"""

import importlib.metadata
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FILE = Path(__file__).parents[1] / "data" / "oracles.npz"
STEPS = 1000
KEPT = np.unique([0, 1, 2, 3, 4, *range(9, STEPS, 70), STEPS - 1])
SWITCHES = (1, 37, 500)  # the numbers of steps after which the buffers are kept
BUFFERS = ("second_moment", "first_moment", "momentum")

# What a runner yields after each step: the parameters, and how to read the buffers (by our names,
# without those that do not exist).
Steps = Iterator[tuple[np.ndarray, Callable[[], dict[str, np.ndarray]]]]


def rate(t):
    """The learning-rate schedule of every run; for JAX, NumPy, torch and TensorFlow numbers."""
    return 2e-4 / (1 + t * (1 / 300))


def stream(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Gradients, (STEPS, 6), and the first parameters, in float64 or complex128."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(STEPS, 6))
    t = np.arange(STEPS)
    g = np.stack(
        [
            noise[:, 0],
            3 + noise[:, 1],  # a mean that `centered` removes
            (-1.0) ** t * (1 + 0.1 * noise[:, 2]),  # a sign change at every step
            np.where(t % 40 == 7, noise[:, 3], 0.0),  # sparse
            noise[:, 4] * np.exp(-t / 100),  # from 1 to 5e-5
            noise[:, 5] * np.where(t // 200 % 2, 100.0, 0.01),  # jumps of scale
        ],
        axis=1,
    )
    if name == "tiny":
        return 1e-12 * g, np.zeros(6)
    if name == "complex":
        return g + 1j * g[::-1], np.full(6, 3.0 - 4.0j)
    assert name in ("mixed", "from zero")
    # From zero, float32 parameters are rounded by a share of the way alone.
    return g, (name == "mixed") * np.array([3.0, -4.0, 3.5, -3.0, 4.0, -3.5])


class Case(NamedTuple):
    preset: str
    settings: dict[str, Any]
    stream: str = "mixed"

    @property
    def name(self):
        settings = [f"{key}={value}" for key, value in self.settings.items()]
        return " ".join([self.preset, self.stream, *settings])


def _cases(preset, *settings, streams=("mixed", "tiny")):
    return [Case(preset, s, streams[0]) for s in settings] + [
        Case(preset, {}, other) for other in streams[1:]
    ]


M, C = {"momentum": 0.9}, {"centered": True}
# λ pulls a parameter by λθ: with `tiny` gradients that is all there is.
DECAY = {"weight_decay": 0.1}
CASES = [
    *_cases("optax", {}, M, C, M | C, M | {"nesterov": True}, {"bias_correction": True}, M | C | {
        "initial_scale": 1.0, "eps_in_sqrt": False, "eps": 1e-4, "decay": 0.99,
    }),
    *_cases("torch", {}, M, C, M | C, DECAY, M | DECAY, M | C | DECAY, {"maximize": True} | DECAY,
            M | {"alpha": 0.5, "eps": 1e-2}),
    *[Case("torch", s, "complex") for s in ({}, M | C, DECAY)],
    *_cases("keras", {}, M, C, M | C, DECAY, M | DECAY, M | C | DECAY, {"rho": 0.99, "epsilon": .1},
            {"clipnorm": 1.0}, {"clipvalue": 0.5}, {"global_clipnorm": 1.0}),
    *_cases("tensorflow_v1", {}, M, C, M | C, {"decay": 0.99, "epsilon": 0.1}),
    *_cases("tf_keras_legacy", {}, M, C, M | C, {"rho": 0.99, "epsilon": 1e-2},
            {"rho": 0.99, "epsilon": 1e-2} | M, {"clipnorm": 1.0}, {"clipvalue": 0.5},
            {"clipnorm": 1.0, "clipvalue": 0.5}, {"global_clipnorm": 1.0},
            {"clipvalue": 0.5, "global_clipnorm": 1.0}),
    *_cases("timm", {}, M, C, M | C, DECAY, M | DECAY, M | DECAY | {"decoupled_decay": True},
            M | {"lr_in_momentum": False}, {"alpha": 0.99, "eps": 1e-3},
            M | DECAY | {"lr_in_momentum": False, "decoupled_decay": True}, {"caution": True},
            M | {"caution": True}, M | C | DECAY | {"caution": True},
            M | {"caution": True, "lr_in_momentum": False},
            M | DECAY | {"caution": True, "decoupled_decay": True},
            M | DECAY | {"caution": True, "decoupled_decay": True, "lr_in_momentum": False}),
    *_cases("stable_baselines3", {}, M, C, M | C, DECAY, M | DECAY, {"alpha": 0.9, "eps": 1e-5}),
    *_cases("mlx", {}, {"alpha": 0.9, "eps": 1e-4}),
    *_cases("graves2013", {}, {"alpha": 0.9, "momentum": 0.5, "eps": 1e-3}),
    *_cases("dqn2015", {}, {"min_squared_gradient": 1e-4}),
    *_cases("a3c2016", {}, {"alpha": 0.9, "epsilon": 1e-3}),
    *_cases("impala2018", {}, M),
    *_cases("pymarl", {}, {"optim_alpha": 0.9, "optim_eps": 1e-3}),
    # Those without a preset: docs/pages/arguments.md says what gives their steps.
    *_cases("bitsandbytes", {}, DECAY, {"alpha": 0.9, "eps": 1e-3}, streams=["from zero"]),
    *_cases("heavyball", {}, DECAY, streams=["from zero"]),
    *_cases("levanter", {}, DECAY, streams=["mixed"]),
]  # fmt: skip


def run(case: Case) -> np.ndarray:
    """The travel θ_t − θ_0 after every step, (STEPS, 6)."""
    return travel_and_buffers(case)[0]


def travel_and_buffers(case: Case) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The travel, and the parameters and buffers after the steps of `SWITCHES`, by name."""
    grads, start = stream(case.stream)
    path, found = [], {}
    for t, (theta, read) in enumerate(RUNNERS[case.preset](dict(case.settings), grads, start), 1):
        path.append(np.array(theta))
        if t in SWITCHES:
            kept = {"params": theta} | read()
            found |= {f"{case.name} | {t} {name}": np.array(kept[name]) for name in kept}
    return np.array(path) - start, found


# torch, and what is made for it.

TORCH_NAMES = dict(zip(BUFFERS, ("square_avg", "grad_avg", "momentum_buffer"), strict=True))


def _torch_like(load: Callable[[], Any], settings, grads, start) -> Steps:
    import torch

    parameter = torch.nn.Parameter(torch.tensor(start))
    optimizer = load()([parameter], lr=rate(0), **settings)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: rate(t) / rate(0))

    def read():
        state = optimizer.state[parameter]
        names = {ours: theirs for ours, theirs in TORCH_NAMES.items() if theirs in state}
        return {ours: state[theirs].numpy() for ours, theirs in names.items()}

    for g in grads:
        parameter.grad = torch.tensor(g)
        optimizer.step()
        scheduler.step()
        yield parameter.detach().numpy(), read


def _torch():
    import torch

    return torch.optim.RMSprop


def _timm():
    """From its own file: `import timm` needs a torchvision that fits the torch installed."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'timm'")
    folder = Path(spec.origin).parent / "optim"
    package = importlib.util.module_from_spec(
        importlib.machinery.ModuleSpec("timm_optim", None, is_package=True)
    )
    package.__path__ = [str(folder)]
    sys.modules["timm_optim"] = package
    return importlib.import_module("timm_optim.rmsprop_tf").RMSpropTF


def _stable_baselines3():
    from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

    return RMSpropTFLike


def _pymarl(settings, grads, start):
    """`RMSprop(params=..., lr=args.lr, alpha=args.optim_alpha, eps=args.optim_eps)`."""
    alpha, eps = settings.get("optim_alpha", 0.99), settings.get("optim_eps", 1e-5)
    return _torch_like(_torch, {"alpha": alpha, "eps": eps}, grads, start)


def _bitsandbytes(name):
    import bitsandbytes

    return getattr(bitsandbytes.optim, name)


def _heavyball_class():
    import heavyball

    heavyball.utils.compile_mode = None  # no C++ compiler
    return heavyball.RMSprop


def _in_float32(load, settings, grads, start) -> Steps:
    """Those that compute in float32, whatever they get."""
    return _torch_like(load, settings, np.float32(grads), np.float32(start))


# Keras and TensorFlow.


def _keras_class():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    return keras.optimizers.RMSprop


def _keras(settings, grads, start) -> Steps:
    make = _keras_class()
    import jax
    import keras

    class Rate(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return rate(keras.ops.cast(step, "float64"))

    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    with jax.enable_x64(True):
        variable = keras.Variable(start, dtype="float64")
        optimizer = make(Rate(), **settings)

        def read():
            slots = optimizer._velocities, optimizer._average_gradients, optimizer._momentums
            kept = dict(zip(BUFFERS, slots, strict=True))
            return {name: np.asarray(slot[0].value) for name, slot in kept.items() if slot}

        for g in grads:
            optimizer.apply([keras.ops.convert_to_tensor(g, dtype="float64")], [variable])
            yield np.asarray(variable.value), read
    keras.config.set_floatx(before)


def _tensorflow_v1_class():
    import tensorflow

    return tensorflow.compat.v1.train.RMSPropOptimizer


def _tensorflow_v1(settings, grads, start) -> Steps:
    import tensorflow as tf

    now = tf.Variable(rate(0), dtype=tf.float64)
    variable = tf.Variable(start, dtype=tf.float64)
    optimizer = _tensorflow_v1_class()(lambda: now, **_in_float64("tensorflow_v1", settings))
    return _tensorflow_steps(optimizer, now, variable, grads)


def _in_float64(preset, settings):
    """TensorFlow makes Python numbers float32, even for float64 variables: give it tensors."""
    import tensorflow as tf

    numbers = {k: v for k, v in signature(preset).items() if type(v) is float} | settings
    return {
        k: tf.constant(v, tf.float64) if k in ("decay", "rho", "momentum", "epsilon") else v
        for k, v in numbers.items()
        if k != "learning_rate"
    }


def _tensorflow_steps(optimizer, now, variable, grads) -> Steps:
    def read():
        kept = set(optimizer.get_slot_names())
        slots = zip(BUFFERS, ("rms", "mg", "momentum"), strict=True)
        return {
            ours: optimizer.get_slot(variable, theirs).numpy()
            for ours, theirs in slots
            if theirs in kept
        }

    for t, g in enumerate(grads):
        now.assign(rate(t))
        optimizer.apply_gradients([(g, variable)])
        yield variable.numpy(), read


def _tf_keras_legacy_class():
    import tf_keras

    return tf_keras.optimizers.legacy.RMSprop


def _tf_keras_legacy(settings, grads, start) -> Steps:
    import tensorflow as tf

    now = tf.Variable(rate(0), dtype=tf.float64)
    variable = tf.Variable(start, dtype=tf.float64)
    settings = _in_float64("tf_keras_legacy", settings)
    if "momentum" in settings and settings["momentum"] == 0:
        del settings["momentum"]  # a tensor would be a buffer, and move ε
    optimizer = _tf_keras_legacy_class()(lambda: now, **settings)
    return _tensorflow_steps(optimizer, now, variable, [tf.constant(g) for g in grads])


def _impala(settings, grads, start):
    flags = {"decay": 0.99, "momentum": 0.0, "epsilon": 0.1}  # of its experiment.py
    return _tensorflow_v1(flags | settings, grads, start)


# JAX and MLX.


def _optax_class():
    import optax

    return optax.rmsprop


def _optax(settings, grads, start) -> Steps:
    import jax
    import jax.numpy as jnp
    import optax

    with jax.enable_x64(True):
        solver = optax.rmsprop(rate, **settings)

        def step(carry, g):
            params, state = carry
            updates, state = solver.update(g, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, state)

        params = jnp.asarray(start)
        path, states = jax.lax.scan(step, (params, solver.init(params)), grads)[1]
        found = [optax.tree_utils.tree_get(states, name) for name in ("nu", "mu", "trace")]
        signs = 1, 1, -1  # its trace is what it adds
        kept = {
            ours: sign * np.asarray(x)
            for ours, sign, x in zip(BUFFERS, signs, found, strict=True)
            if x is not None
        }
        for t, theta in enumerate(np.asarray(path)):
            yield theta, lambda t=t: {name: x[t] for name, x in kept.items()}


def _levanter_class():
    import jax
    from levanter.optim.rmsprop import RMSPropMomentumConfig

    if not hasattr(jax, "tree_map"):
        jax.tree_map = jax.tree.map  # which JAX has removed, and Levanter 1.2 calls
    return RMSPropMomentumConfig


def _levanter(settings, grads, start) -> Steps:
    config = _levanter_class()(**{"weight_decay": 0.0} | settings)
    import jax
    import jax.numpy as jnp
    import optax

    object.__setattr__(config, "lr_scheduler", lambda steps: rate)
    object.__setattr__(config, "build_weight_decay_mask", lambda: None)
    with jax.enable_x64(True):
        solver = config.build(STEPS)
        params, update = jnp.asarray(start), jax.jit(solver.update)
        state = solver.init(params)
        for g in grads:
            updates, state = update(jnp.asarray(g), state, params)
            params = optax.apply_updates(params, updates)
            yield np.asarray(params), dict


def _mlx_class():
    import mlx.optimizers

    return mlx.optimizers.RMSprop


def _mlx(settings, grads, start) -> Steps:
    make = _mlx_class()
    import mlx.core as mx

    with mx.stream(mx.cpu):  # where float64 is
        optimizer = make(rate(0), **settings)
        params = {"w": mx.array(start, dtype=mx.float64)}
        for t, g in enumerate(grads):
            # Its own schedule is evaluated in float32.
            optimizer.state["learning_rate"] = mx.array(rate(t), dtype=mx.float64)
            params = optimizer.apply_gradients({"w": mx.array(g, dtype=mx.float64)}, params)
            yield (
                np.array(params["w"]),
                lambda: {"second_moment": np.array(optimizer.state["w"]["v"])},
            )


# The papers, from their equations.


def paper(decay, eps, momentum=None, centered=True):
    def run(grads, start) -> Steps:
        theta, n, m, delta = start.copy(), 0.0, 0.0, 0.0
        for t, g in enumerate(grads):
            n = decay * n + (1 - decay) * g**2
            m = decay * m + (1 - decay) * g if centered else 0.0
            step = -rate(t) * g / np.sqrt(n - m**2 + eps)
            delta = step if momentum is None else momentum * delta + step
            theta = theta + delta
            kept = {"second_moment": n}
            kept |= {"first_moment": m} if centered else {}
            kept |= {} if momentum is None else {"momentum": -delta}
            yield theta, lambda kept=kept: kept

    return run


def _graves(settings, grads, start):
    paper_says = {"alpha": 0.95, "momentum": 0.9, "eps": 1e-4} | settings
    return paper(paper_says["alpha"], paper_says["eps"], paper_says["momentum"])(grads, start)


def _dqn(settings, grads, start):
    return paper(0.95, settings.get("min_squared_gradient", 0.01))(grads, start)


def _a3c(settings, grads, start):
    decay, eps = settings.get("alpha", 0.99), settings.get("epsilon", 0.1)
    return paper(decay, eps, centered=False)(grads, start)


RUNNERS: dict[str, Callable[..., Steps]] = {
    "optax": _optax,
    "torch": lambda *args: _torch_like(_torch, *args),
    "keras": _keras,
    "tensorflow_v1": _tensorflow_v1,
    "tf_keras_legacy": _tf_keras_legacy,
    "timm": lambda *args: _torch_like(_timm, *args),
    "stable_baselines3": lambda *args: _torch_like(_stable_baselines3, *args),
    "mlx": _mlx,
    "graves2013": _graves,
    "dqn2015": _dqn,
    "a3c2016": _a3c,
    "impala2018": _impala,
    "pymarl": _pymarl,
    "bitsandbytes": lambda *args: _in_float32(lambda: _bitsandbytes("RMSprop"), *args),
    "heavyball": lambda *args: _in_float32(_heavyball_class, *args),
    "levanter": _levanter,
}
# Which distribution ran each, and the class whose signature the preset has.
FRAMEWORKS: dict[str, tuple[str, Callable[[], Any] | None]] = {
    "optax": ("optax", _optax_class),
    "torch": ("torch", _torch),
    "keras": ("keras", _keras_class),
    "tensorflow_v1": ("tensorflow-cpu", _tensorflow_v1_class),
    "tf_keras_legacy": ("tf_keras", _tf_keras_legacy_class),
    "timm": ("timm", _timm),
    "stable_baselines3": ("stable-baselines3", _stable_baselines3),
    "mlx": ("mlx", _mlx_class),
    "graves2013": ("numpy", None),
    "dqn2015": ("numpy", None),
    "a3c2016": ("numpy", None),
    "impala2018": ("tensorflow-cpu", None),
    "pymarl": ("torch", None),
    "bitsandbytes": ("bitsandbytes", None),
    "heavyball": ("heavyball", None),
    "levanter": ("levanter", None),
}
PRESETS = list(FRAMEWORKS)[:-3]


def signature(preset: str) -> dict[str, Any] | None:
    """The framework's own argument names and defaults, in order; "required" where none."""
    make = FRAMEWORKS[preset][1]
    if make is None:
        return None
    parameters = inspect.signature(make()).parameters.values()
    return {
        p.name: "required" if p.default is p.empty else p.default
        for p in parameters
        if p.name not in ("params", "self") and p.kind is not p.VAR_KEYWORD
    }


def _tf_keras_class():
    import tf_keras

    return tf_keras.optimizers.RMSprop


# The optimizers whose arguments `docs/pages/arguments.md` lists.
CLASSES: dict[str, Callable[[], Any]] = {
    "optax.rmsprop": _optax_class,
    "torch.optim.RMSprop": _torch,
    "keras.optimizers.RMSprop": _keras_class,
    "tf.compat.v1.train.RMSPropOptimizer": _tensorflow_v1_class,
    "tf_keras.optimizers.RMSprop": _tf_keras_class,
    "tf_keras.optimizers.legacy.RMSprop": _tf_keras_legacy_class,
    "timm.optim.RMSpropTF": _timm,
    "stable_baselines3 RMSpropTFLike": _stable_baselines3,
    "mlx.optimizers.RMSprop": _mlx_class,
    "bitsandbytes.optim.RMSprop": lambda: _bitsandbytes("RMSprop"),
    "bitsandbytes.optim.RMSprop8bit": lambda: _bitsandbytes("RMSprop8bit"),
    "bitsandbytes.optim.RMSprop32bit": lambda: _bitsandbytes("RMSprop32bit"),
    "heavyball.RMSprop": _heavyball_class,
    "levanter RMSPropMomentumConfig": _levanter_class,
}


def arguments(title: str) -> list[tuple[str, str]]:
    """All arguments of an optimizer, in order, each with its default as text, "" where none."""
    found = []
    for p in inspect.signature(CLASSES[title]()).parameters.values():
        plain = isinstance(p.default, str | int | float | tuple | None)
        default = repr(p.default) if plain else "…"  # a mark of the framework's own
        stars = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        found.append((stars + p.name, "" if p.default is p.empty else default))
    return found


def main():
    known = dict(np.load(FILE)) if FILE.exists() else {}
    about = json.loads(str(known.pop("about"))) if known else {}
    for preset, (distribution, _) in FRAMEWORKS.items():
        mine = [case for case in CASES if case.preset == preset]
        try:
            runs = {}
            for case in mine:
                path, kept = travel_and_buffers(case)
                runs |= {case.name: path[KEPT]} | kept
            version = importlib.metadata.version(distribution)
        except ModuleNotFoundError as error:
            print(f"{preset:18} not run: {error}")
            continue
        for name in [name for name in known if name.split()[0] == preset]:
            del known[name]
        known |= runs
        about[preset] = {"version": f"{distribution} {version}", "signature": signature(preset)}
        print(f"{preset:18} {len(mine)} runs with {distribution} {version}")
    listed = about.setdefault("arguments", {})
    for title in CLASSES:
        try:
            listed[title] = arguments(title)
        except ModuleNotFoundError as error:
            print(f"{title}: arguments not read: {error}")
    np.savez_compressed(FILE, about=json.dumps(about, indent=1), **known)


if __name__ == "__main__":
    main()
