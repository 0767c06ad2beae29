"""A space of hyperparameters, as Optuna has it and as `train` gets it."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from rmsprop_jax._sweep.points import Points
from rmsprop_jax._sweep.sampling import (
    Choice,
    Distribution,
    Integers,
    LogUniform,
    OneMinus,
    Uniform,
    choice,
    integers,
    less_from_one,
    log_uniform,
    one_minus,
    uniform,
)
from rmsprop_jax._sweep.values import is_number, label

MOST_STRUCTURES = 32  # that are looked at before anything runs
ONE_MINUS = "1 - "


class Axis(NamedTuple):
    """How one hyperparameter stands in a study."""

    parameter: str
    """Its name there."""
    distribution: BaseDistribution
    value: Callable[[Any], Any]
    """From what the study gives to what `train` gets, of the axis' own type."""
    is_static: bool
    """Whether its numbers are structure."""
    examples: list[Any] | None
    """One value of each structure, as `train` gets them; None where these are too many."""

    def suggest(self, trial: optuna.Trial) -> Any:
        """Ask the study's sampler for it."""
        name, of = self.parameter, self.distribution
        if isinstance(of, FloatDistribution):
            return trial.suggest_float(name, of.low, of.high, step=of.step, log=of.log)
        if isinstance(of, IntDistribution):
            return trial.suggest_int(name, of.low, of.high, step=of.step, log=of.log)
        assert isinstance(of, CategoricalDistribution)
        return trial.suggest_categorical(name, of.choices)


def axes_of(space: Any) -> dict[str, Axis]:
    """A study's axes; ValueError for what is no space."""
    if not isinstance(space, Mapping) or not space:
        raise ValueError(
            f"space must be a dict of at least one distribution, got {space!r}: "
            "{'learning_rate': rj.log_uniform(1e-5, 1e-1)}."
        )
    axes = {name: _axis(name, distribution) for name, distribution in space.items()}
    parameters = [axis.parameter for axis in axes.values()]
    if len(set(parameters)) < len(parameters):
        raise ValueError(f"the study's parameters would share names: {parameters}. Rename one.")
    return axes


def _axis(name: str, of: Any) -> Axis:
    if isinstance(of, Distribution):
        return _of_ours(name, of, of.is_static)
    if isinstance(of, FloatDistribution):
        return Axis(name, of, float, False, [of.low])
    if isinstance(of, IntDistribution):
        return Axis(name, of, int, False, [of.low])
    if isinstance(of, CategoricalDistribution):
        return _of_choices(name, of.choices, False)
    raise ValueError(
        f"{name!r} is {of!r}, wanted a distribution: one of uniform, log_uniform, one_minus, "
        "integers and choice, or one of optuna.distributions."
    )


def _of_ours(name: str, of: Distribution, is_static: bool) -> Axis:
    if isinstance(of, OneMinus):
        inner = _of_ours(name, of.distribution, is_static)
        parameter, of_inner = ONE_MINUS + inner.parameter, inner.value
        examples = None if inner.examples is None else list(map(less_from_one, inner.examples))
        value = lambda x: less_from_one(of_inner(x))
        return inner._replace(parameter=parameter, value=value, examples=examples)
    if isinstance(of, Choice):
        return _of_choices(name, of.values, is_static)
    if isinstance(of, Integers):
        few = of.count <= MOST_STRUCTURES
        every = list(range(of.low, of.high + 1)) if few else None
        integers_ = IntDistribution(of.low, of.high)
        return Axis(name, integers_, int, is_static, every if is_static else [of.low])
    assert isinstance(of, Uniform | LogUniform)
    float_ = FloatDistribution(of.low, of.last, log=isinstance(of, LogUniform))
    return Axis(name, float_, float, is_static, None if is_static else [of.low])


def _of_choices(name: str, choices: Sequence[Any], is_static: bool) -> Axis:
    """A choice. What a database cannot hold, or would confuse, stands there under its label."""
    choices = [x.item() if isinstance(x, np.generic) else x for x in choices]
    plain = [x is None or type(x) in (bool, int, float, str) for x in choices]
    said = [x if is_plain else label(x) for x, is_plain in zip(choices, plain, strict=True)]
    if len(set(said)) < len(said):  # 1, 1.0 and True are one to a database
        said = [f"{type(x).__name__} {label(x)}" for x in choices]
    if len(set(said)) < len(said):
        raise ValueError(
            f"the choices of {name!r} cannot be told apart in a study: they read {said}. Choose "
            "among names, and look them up in train."
        )
    known = dict(zip(said, choices, strict=True))
    numbers = [x for x in choices if is_number(x) and not is_static]
    as_number = int if all(isinstance(x, int) for x in numbers) else float

    def value(x):
        given = known.get(x, x)
        return as_number(given) if is_number(given) and not is_static else given

    traced = [as_number(x) for x in numbers[:1]]
    examples = [x for x in choices if is_static or not is_number(x)] + traced
    return Axis(name, CategoricalDistribution(said), value, is_static, examples)


def examples(axes: Mapping[str, Axis]) -> Points | None:
    """A point of each structure; None where these are too many to look at."""
    each = [axis.examples for axis in axes.values()]
    known = [values for values in each if values is not None]
    if len(known) < len(each) or math.prod(map(len, known)) > MOST_STRUCTURES:
        return None
    rows = [dict(zip(axes, row, strict=True)) for row in itertools.product(*known)]
    return Points.of(rows, static_names(axes))


def static_names(axes: Mapping[str, Axis]) -> list[str]:
    return [name for name, axis in axes.items() if axis.is_static]


def to_optuna(space: Any) -> dict[str, BaseDistribution]:
    """See `rmsprop_jax.search.to_optuna`."""
    return {axis.parameter: axis.distribution for axis in axes_of(space).values()}


def from_optuna(distributions: Any) -> dict[str, Distribution]:
    """See `rmsprop_jax.search.from_optuna`."""
    if not isinstance(distributions, Mapping):
        raise ValueError(
            f"from_optuna needs a dict of Optuna's distributions, got {distributions!r}."
        )
    space = {}
    for name, of in distributions.items():
        made, depth = _ours(name, of), 0
        while name.startswith(ONE_MINUS):
            name, depth = name.removeprefix(ONE_MINUS), depth + 1
        for _ in range(depth):
            made = one_minus(made)
        space[name] = made
    return space


def _ours(name: str, of: Any) -> Distribution:
    if isinstance(of, CategoricalDistribution):
        return choice(list(of.choices))
    if isinstance(of, IntDistribution) and not of.log:
        if of.step == 1:
            return integers(of.low, of.high)
        return choice(list(range(of.low, of.high + 1, of.step)))
    if isinstance(of, FloatDistribution):
        if of.step is not None:
            count = round((of.high - of.low) / of.step) + 1
            return choice([of.low + i * of.step for i in range(count)])
        if of.low == of.high:
            return choice([of.low])
        return log_uniform(of.low, of.high) if of.log else uniform(of.low, of.high)
    raise ValueError(
        f"{name!r} is {of!r}, which has no like here: FloatDistribution, IntDistribution without "
        "log, or CategoricalDistribution."
    )
