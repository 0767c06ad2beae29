"""The page of all arguments has the frameworks' own, and each preset does what its table says."""

import functools
import inspect
import json
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

PAGE = (Path(__file__).parents[2] / "docs" / "pages" / "arguments.md").read_text("utf-8")
FROZEN = np.load(oracles.FILE)
ABOUT = json.loads(str(FROZEN["about"]))
SECTIONS = {  # for each anchor the classes
    "optax": ["optax.rmsprop"],
    "torch": ["torch.optim.RMSprop"],
    "keras": ["keras.optimizers.RMSprop"],
    "tensorflow": ["tf.compat.v1.train.RMSPropOptimizer"],
    "tf_keras": ["tf_keras.optimizers.RMSprop"],
    "tf_keras_legacy": ["tf_keras.optimizers.legacy.RMSprop"],
    "timm": ["timm.optim.RMSpropTF"],
    "stable_baselines3": ["stable_baselines3 RMSpropTFLike"],
    "mlx": ["mlx.optimizers.RMSprop"],
    "bitsandbytes": [
        "bitsandbytes.optim.RMSprop", "bitsandbytes.optim.RMSprop8bit",
        "bitsandbytes.optim.RMSprop32bit",
    ],
    "heavyball": ["heavyball.RMSprop"],
    "levanter": ["levanter RMSPropMomentumConfig"],
}  # fmt: skip
ROW = re.compile(r"^\| `([*\w]+)` \| (?:`(.*?)`)? ?\| (Yes|No effect|Refused|No)\b(.*) \|$", re.M)
CASES = [(anchor, title) for anchor, titles in SECTIONS.items() for title in titles]


def table(anchor):
    """The rows (argument, default, word, rest) of a section."""
    section = re.search(rf"^## .* {{ #{anchor} }}$(.*?)(?=^## |\Z)", PAGE, re.M | re.S)[1]
    rows = ROW.findall(section)
    assert len(rows) == section.count("\n| `")
    return rows


def listed(anchor, title):
    rows = [(name, default) for name, default, *_ in table(anchor)]
    alone = re.match(r"bitsandbytes\.optim\.RMSprop\d", title)
    return [row for row in rows if row[0] != "optim_bits"] if alone else rows


def test_every_class_has_a_section():
    assert re.findall(r"^## .* { #(\w+) }$", PAGE, re.M) == list(SECTIONS)
    assert {title for titles in SECTIONS.values() for title in titles} == set(oracles.CLASSES)


@pytest.mark.parametrize(("anchor", "title"), CASES)
def test_the_table_has_the_frozen_arguments(anchor, title):
    assert listed(anchor, title) == [tuple(row) for row in ABOUT["arguments"][title]]


@pytest.mark.slow  # so that a new release of a framework fails in CI, and not for a newcomer
@pytest.mark.parametrize(("anchor", "title"), CASES)
@pytest.mark.filterwarnings("default")
def test_the_table_has_the_frameworks_own_arguments(anchor, title):
    """Where the framework installs: Optax always, PyTorch and Keras with the extra `oracles`."""
    try:
        theirs = oracles.arguments(title)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    assert listed(anchor, title) == theirs


# What the presets do with each argument.

PRESETS = {
    "optax": "optax", "torch": "torch", "keras": "keras", "tensorflow": "tensorflow_v1",
    "tf_keras": "keras", "tf_keras_legacy": "tf_keras_legacy", "timm": "timm",
    "stable_baselines3": "stable_baselines3", "mlx": "mlx", "bitsandbytes": "torch",
}  # fmt: skip
RATE = lambda t: 0.1 / (1.0 + t)
VALUES = {  # another than the default, for every argument
    "learning_rate": 0.3, "lr": 0.3, "decay": 0.5, "alpha": 0.5, "rho": 0.5, "eps": 0.3,
    "epsilon": 0.3, "initial_scale": 2.0, "eps_in_sqrt": False, "centered": True,
    "momentum": 0.9, "nesterov": True, "bias_correction": True, "weight_decay": 0.1,
    "maximize": True, "decoupled_decay": True,
    "lr_in_momentum": False, "caution": True, "clipnorm": 0.1, "clipvalue": 0.1,
    "global_clipnorm": 0.1, "capturable": True, "foreach": True, "differentiable": True,
    "use_locking": True, "name": "mine", "ema_momentum": 0.9, "ema_overwrite_frequency": 3,
    "use_ema": True, "loss_scale_factor": 8.0, "gradient_accumulation_steps": 2,
    "corrected_weight_decay": True,
}  # fmt: skip
BESIDE = {  # what an argument needs to matter
    "eps_in_sqrt": {"eps": 0.3}, "nesterov": {"momentum": 0.9}, "caution": {"momentum": 0.9},
    "decoupled_decay": {"weight_decay": 0.1}, "lr_in_momentum": {"momentum": 0.9},
    "clipnorm": {"epsilon": 0.3}, "clipvalue": {"epsilon": 0.3},
    "global_clipnorm": {"epsilon": 0.3},
    "corrected_weight_decay": {"decoupled_decay": True, "weight_decay": 0.1},
}  # fmt: skip
GIVEN = [
    (anchor, name, word) for anchor in PRESETS for name, _, word, _ in table(anchor) if word != "No"
]


def ways(anchor, **settings):
    """The parameters after each of five steps, with a schedule."""
    make = getattr(rj.presets, PRESETS[anchor])
    rate = next(iter(inspect.signature(make).parameters))
    solver = make(**{rate: RATE} | settings)
    params = jnp.array([1.0, -2.0, 0.5])
    state, seen = solver.init(params), []
    for g in ([0.5, -1.0, 0.3], [0.4, 2.0, -0.3], [-0.1, 1.0, 0.2], [0.6, 1.5, 1], [-0.2, -1, -2]):
        updates, state = solver.update(jnp.array(g), state, params)
        params = optax.apply_updates(params, updates)
        seen.append(params)
    return np.array(seen)


def differs(anchor, name):
    beside = BESIDE.get(name, {})
    return (ways(anchor, **beside) != ways(anchor, **beside, **{name: VALUES[name]})).any()


@pytest.mark.parametrize(("anchor", "name", "word"), GIVEN)
def test_a_preset_does_what_its_table_says(anchor, name, word):
    if name == "**kwargs":
        assert anchor == "tf_keras_legacy"
        assert all(differs(anchor, x) for x in ("clipnorm", "clipvalue", "global_clipnorm"))
    elif word == "Refused":
        with pytest.raises(ValueError, match=f"{name} must be"):
            ways(anchor, **BESIDE.get(name, {}), **{name: VALUES[name]})
    else:
        assert differs(anchor, name) == (word == "Yes")


@pytest.mark.parametrize("anchor", PRESETS)
def test_what_a_preset_does_not_have_it_does_not_accept(anchor):
    make = getattr(rj.presets, PRESETS[anchor])
    for name, _, word, _ in table(anchor):
        assert (name in inspect.signature(make).parameters) == (word != "No" and name[0] != "*")


@pytest.mark.parametrize("anchor", PRESETS)
def test_what_may_be_a_schedule(anchor):
    """A schedule that is constant gives the steps of the number, no other argument takes one."""
    named = {name for name, _, word, rest in table(anchor) if "also a schedule" in rest}
    rate = next(iter(inspect.signature(getattr(rj.presets, PRESETS[anchor])).parameters))
    assert named == {rate, *{"decay", "alpha", "rho"} & {name for name, *_ in table(anchor)}}
    for name in named:
        number = ways(anchor, **{name: 0.5})
        np.testing.assert_allclose(ways(anchor, **{name: lambda t: 0.5}), number, rtol=1e-6)


# Frameworks without a preset: what the page writes in their place gives their steps.


OTHERS = {
    "bitsandbytes": lambda **settings: rj.presets.torch(oracles.rate, **settings),
    "heavyball": lambda weight_decay=None: rj.rmsprop(
        oracles.rate, 0.99, 0.0, bias_correction=True,
        weight_decay=weight_decay, decoupled_weight_decay=True,
    ),
    "levanter": lambda weight_decay=0.0: optax.chain(
        optax.clip_by_global_norm(1.0),
        rj.scale_by_rms(0.99, 1e-30, bias_correction=True),
        optax.ema(0.9, debias=True),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(oracles.rate),
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", [x for x in oracles.CASES if x.preset in OTHERS], ids=str)
def test_the_chains_of_the_page_give_the_frameworks_steps(case, x64):
    """bitsandbytes and HeavyBall compute in float32, Levanter in float64."""
    grads, start = oracles.stream(case.stream)
    solver = OTHERS[case.preset](**case.settings)
    _, updates = jax.jit(functools.partial(travel, solver))(jnp.asarray(grads), jnp.asarray(start))
    ours = np.cumsum(updates, axis=0)[oracles.KEPT]
    theirs = FROZEN[case.name]
    tolerance = 1e-12 if case.preset == "levanter" else 2e-5
    assert abs(ours - theirs).max() <= tolerance * abs(theirs).max()
