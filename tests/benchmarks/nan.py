"""Steps to the first NaN of several RMSProps, under the same streams of finite gradients.

Each cell of the table is a run of 1,000 parameters, each with its own gradient. The steps run
outside `jit`: in a compiled scan, Optax rounds differently, and its NaN comes later. The decay is
0.95, and the learning rate is 0.1 unless a row has another one.
"""

import importlib.metadata
import importlib.util

import jax.numpy as jnp
import numpy as np
import optax

import rmsprop_jax as rj
from tests.benchmarks.runner import header, row

SIZE, DECAY, RATE = 1000, 0.95, 0.1
CENTERED = {"centered": True}
MOMENTUM = {"centered": True, "momentum": 0.9}


def streams(steps):
    """Return (dtype, settings, gradient of step t) by name."""
    rng = np.random.default_rng(0)
    constant = rng.uniform(0.1, 10.0, SIZE)
    noise = rng.normal(size=(steps, SIZE))
    spikes = lambda size: lambda t: np.full(SIZE, size if t == 4 else 1.0) + 0.1 * noise[t]
    spike = spikes(1e20)
    return {
        "constant, centered": ("float32", CENTERED, lambda t: constant),
        "constant, centered, momentum": ("float32", MOMENTUM, lambda t: constant),
        "normal, centered, bias correction": (
            "float32",
            {"centered": True, "bias_correction": True},
            lambda t: noise[t],
        ),
        "a spike of 1e20, centered": ("float32", CENTERED, spike),
        "a spike of 1e21, centered": ("float32", CENTERED, spikes(1e21)),
        "a spike of 1e20": ("float32", {}, spike),
        "zero, float16": ("float16", {}, lambda t: np.zeros(SIZE)),
        "constant, float16, centered, momentum": ("float16", MOMENTUM, lambda t: constant),
        "the same, ε = 0.01, learning rate 1e-4": (
            "float16",
            MOMENTUM | {"eps": 0.01, "rate": 1e-4},
            lambda t: constant,
        ),
        "normal × 1000, float16": ("float16", {}, lambda t: 1000 * noise[t]),
    }


def transformation(rmsprop):
    def start(dtype, rate, settings):
        solver = rmsprop(rate, decay=DECAY, **settings)
        params = jnp.zeros(SIZE, dtype)
        carry = [params, solver.init(params)]

        def step(g):
            updates, carry[1] = solver.update(jnp.asarray(g, dtype), carry[1], carry[0])
            carry[0] = optax.apply_updates(carry[0], updates)
            nu = optax.tree_utils.tree_get(carry[1], "nu")
            return np.asarray(carry[0], np.float64), np.asarray(nu, np.float64)

        return step

    return start


def torch_(dtype, rate, settings):
    import torch

    kind = getattr(torch, dtype)
    parameter = torch.nn.Parameter(torch.zeros(SIZE, dtype=kind))
    optimizer = torch.optim.RMSprop([parameter], lr=rate, alpha=DECAY, **settings)

    def step(g):
        parameter.grad = torch.tensor(g).to(kind)
        optimizer.step()
        nu = optimizer.state[parameter]["square_avg"]
        return parameter.detach().double().numpy(), nu.double().numpy()

    return step


def keras_(dtype, rate, settings):
    from tests.support.oracles import _keras_class

    make = _keras_class()
    import keras

    settings = {"epsilon" if name == "eps" else name: value for name, value in settings.items()}
    variable = keras.Variable(np.zeros(SIZE), dtype=dtype)
    optimizer = make(rate, rho=DECAY, **settings)

    def step(g):
        optimizer.apply([keras.ops.convert_to_tensor(g, dtype=dtype)], [variable])
        nu = optimizer._velocities[0].value
        return np.asarray(variable.value, np.float64), np.asarray(nu, np.float64)

    return step


SIDES = {
    "optax": transformation(optax.rmsprop),
    "torch": torch_,
    "keras": keras_,
    "rmsprop_jax": transformation(rj.rmsprop),
}


def outcome(start, dtype, settings, gradient, steps):
    """Return the step of the first NaN and the share of NaN at the end, in words."""
    settings = dict(settings)
    step = start(dtype, settings.pop("rate", RATE), settings)
    first = None
    with np.errstate(all="ignore"):
        for t in range(steps):
            params, nu = step(gradient(t))
            if first is None and np.isnan(params).any():
                first = t + 1
    if first is not None:
        return f"**step {first}** ({np.isnan(params).mean():.0%} NaN at the end)"
    if not np.isfinite(params).all():
        return f"infinite parameters ({(~np.isfinite(params)).mean():.0%})"
    if not np.isfinite(nu).all():
        return f"stuck: infinite state ({(~np.isfinite(nu)).mean():.0%})"
    return "never"


def main(quick: bool):
    steps = 30 if quick else 1000
    names = {name: name for name in SIDES}
    for name in ("optax", "torch", "keras"):
        if importlib.util.find_spec(name):
            names[name] = f"{name} {importlib.metadata.version(name)}"
    yield f"\n## Steps to the first NaN: {SIZE:,} parameters, {steps:,} steps\n"
    yield (
        "All gradients are finite. Parameters are float32, unless the row names another dtype. "
        "*Never* means that no parameter became NaN or infinite. *Infinite state* means that s is "
        "infinite, so the parameter does not move any more. *Infinite parameters* means that the "
        "steps are finite, but add up beyond 65,504, the range of float16. A larger ε and a "
        "smaller learning rate prevent this, as the row below it shows.\n"
    )
    yield header("gradients", *names.values())
    for title, (dtype, settings, gradient) in streams(steps).items():
        cells = []
        for name, start in SIDES.items():
            if "bias_correction" in settings and name in ("torch", "keras"):
                cells.append("no such option")
            elif importlib.util.find_spec(name) is None:
                cells.append("not installed")
            else:
                cells.append(outcome(start, dtype, settings, gradient, steps))
        yield row(title, *cells)
