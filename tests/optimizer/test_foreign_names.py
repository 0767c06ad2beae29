"""Arguments of other frameworks: an error names ours and the preset."""

import inspect
import re

import optax
import pytest

import rmsprop_jax as rj
from rmsprop_jax._optimizer import foreign_names


@pytest.mark.parametrize("function", [rj.rmsprop, rj.scale_by_rms])
@pytest.mark.parametrize(
    ("name", "ours"),
    [("lr", "learning_rate"), ("alpha", "decay"), ("rho", "decay"), ("epsilon", "eps")],
)
def test_an_argument_under_another_name(function, name, ours):
    has_ours = ours in inspect.signature(function).parameters
    fix = f"{function.__name__ if has_ours else 'rmsprop'}({ours}=0.5)"
    with pytest.raises(TypeError, match=rf"got {name}=0\.5\. Pass {re.escape(fix)}") as caught:
        function(**{name: 0.5})
    presets = re.findall(r"rmsprop_jax\.presets\.(\w+)", str(caught.value))
    has = lambda preset: name in inspect.signature(getattr(rj.presets, preset)).parameters
    assert presets == [preset for preset in rj.presets.__all__ if has(preset)] != []


@pytest.mark.parametrize("name", ["maximize", "global_clipnorm", "optim_alpha"])
def test_an_argument_that_only_a_preset_has(name):
    with pytest.raises(TypeError, match=rf"got {name}=.*rmsprop_jax\.presets\.\w+"):
        rj.rmsprop(0.1, **{name: 0.5})


def test_the_table_has_each_argument_of_the_presets_that_rmsprop_does_not_have():
    ours, found = inspect.signature(rj.rmsprop).parameters, {}
    for preset in rj.presets.__all__:
        for name in inspect.signature(getattr(rj.presets, preset)).parameters:
            if name not in ours:
                found[name] = (*found.get(name, ()), preset)
    assert found == foreign_names.PRESETS


def test_an_argument_that_no_framework_has():
    with pytest.raises(TypeError, match="unexpected keyword argument 'learning_rat'"):
        rj.rmsprop(learning_rat=0.1)


def test_the_signature_is_seen_through():
    parameters = inspect.signature(rj.rmsprop).parameters
    assert list(parameters)[:2] == ["learning_rate", "decay"]
    assert "kwargs" not in parameters
    injected = optax.inject_hyperparams(rj.rmsprop)(learning_rate=0.1, decay=0.9)
    assert set(injected.init({"w": 1.0}).hyperparams) >= {"learning_rate", "decay"}
