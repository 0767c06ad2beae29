"""A space of hyperparameters, as Optuna has it and as `train` gets it."""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from rmsprop_jax._tune.space.distributions import (
    Choice,
    Distribution,
    Integers,
    LogUniform,
    OneMinus,
    Uniform,
    choice,
    integers,
    less_from_one,
    one_minus,
    up_to,
)
from rmsprop_jax._tune.space.points import Points, plain
from rmsprop_jax._tune.space.values import encode, identity, is_key, is_number

MOST_STRUCTURES = 32  # that are looked at before anything runs
ONE_MINUS = "1 - "
LONGEST_LABEL = 40


class Axis(NamedTuple):
    """How one hyperparameter stands in a study."""

    parameter: str
    """Its name there."""
    distribution: BaseDistribution
    value: Callable[[Any], Any]
    """From what the study gives to what `train` gets, of the axis' own type."""
    param: Callable[[Any], Any]
    """From a hyperparameter's value to the study's; ValueError for one that it cannot have."""
    fixed: Callable[[Any], Any]
    """From a value that was given under the study's name to the study's; ValueError likewise."""
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
    check_names("space", space)
    axes = {name: _axis(name, distribution) for name, distribution in space.items()}
    parameters = [axis.parameter for axis in axes.values()]
    clash = any(axis.parameter in axes.keys() - {name} for name, axis in axes.items())
    if clash or len(set(parameters)) < len(parameters):
        raise ValueError(
            f"the study's parameters {parameters} would share names, with one another or with "
            f"hyperparameters of {list(axes)}. Rename one."
        )
    return axes


def check_names(argument: str, named: Mapping[Any, Any]) -> None:
    """ValueError where a dict's keys are not all strings."""
    if others := [name for name in named if not isinstance(name, str)]:
        raise ValueError(
            f"{argument} must have strings as names, got {others[0]!r}. Write {str(others[0])!r}."
        )


def _axis(name: str, of: Any) -> Axis:
    if isinstance(of, Distribution):
        return _of_ours(name, of, of.is_static)
    if isinstance(of, FloatDistribution):
        return _of_numbers(name, of, False, [of.low])
    if isinstance(of, IntDistribution):
        return _of_numbers(name, of, False, [of.low])
    if isinstance(of, CategoricalDistribution):
        return _of_choices(name, of.choices, False)
    raise ValueError(
        f"{name!r} is {of!r}, wanted a distribution: one of uniform, log_uniform, one_minus, "
        "integers and choice, or one of optuna.distributions."
    )


def _of_ours(name: str, of: Distribution, is_static: bool) -> Axis:
    if isinstance(of, OneMinus):
        return _less_from_one(name, _of_ours(name, of.distribution, is_static))
    if isinstance(of, Choice):
        return _of_choices(name, of.values, is_static)
    if isinstance(of, Integers):
        few = of.count <= MOST_STRUCTURES
        every = list(range(of.low, of.high + 1)) if few else None
        integers_ = IntDistribution(of.low, of.high)
        return _of_numbers(name, integers_, is_static, every if is_static else [of.low])
    assert isinstance(of, Uniform | LogUniform)
    float_ = FloatDistribution(of.low, of.last, log=isinstance(of, LogUniform))
    return _of_numbers(name, float_, is_static, None if is_static else [of.low])


def _less_from_one(name: str, inner: Axis) -> Axis:
    """The axis of 1 − x: the study has x."""
    inner_value, inner_param, distribution = inner.value, inner.param, inner.distribution
    exact: list[Any]
    if isinstance(distribution, CategoricalDistribution):
        exact = [x for x in distribution.choices if is_number(x)]
    else:
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        exact = [distribution.low, distribution.high]

    def param(value):
        x = 1 - _number(name, value)
        for known in exact:
            if math.isclose(x, known, rel_tol=1e-9):  # 1 − 0.9 is a little below 0.1
                x = known
        return inner_param(x)

    return inner._replace(
        parameter=ONE_MINUS + inner.parameter,
        value=lambda x: less_from_one(inner_value(x)),
        param=param,
        examples=None if inner.examples is None else list(map(less_from_one, inner.examples)),
    )


def _of_numbers(
    name: str,
    distribution: FloatDistribution | IntDistribution,
    is_static: bool,
    examples: list[Any] | None,
) -> Axis:
    is_float = isinstance(distribution, FloatDistribution)

    def param(value):
        number = _number(name, value)
        if not is_float and not float(number).is_integer():
            raise ValueError(
                f"{name!r} must be a whole number, got {value!r}. Give one of {distribution}."
            )
        return number

    kind = float if is_float else int
    return Axis(name, distribution, kind, param, param, is_static, examples)


def _number(name: str, value: Any) -> float:
    value = plain(name, value, is_static=False)
    if not is_number(value):
        raise ValueError(f"{name!r} must be a number, got {value!r}. Give one of its range.")
    return value


def _of_choices(name: str, choices: Sequence[Any], is_static: bool) -> Axis:
    """A choice. What a database cannot hold, or would confuse, stands there under its label."""
    choices = [x.item() if isinstance(x, np.generic) else x for x in choices]
    is_plain = lambda x: x is None or type(x) in (bool, int, float, str)
    labels = [x if is_plain(x) else _label(x) for x in choices]
    if len(set(labels)) < len(labels):  # 1, 1.0 and True are one to a database
        labels = [f"{type(x).__name__} {_label(x)}" for x in choices]
    pairs = list(zip(labels, choices, strict=True))
    other = lambda label, x: any(label == y for y in choices if y is not x and isinstance(y, str))
    if len(set(labels)) < len(labels) or any(other(label, x) for label, x in pairs):
        raise ValueError(
            f"the choices of {name!r} cannot be told apart in a study: they read {labels}. Choose "
            "among names, and look them up in train."
        )
    by_label = dict(pairs)
    numbers = [x for x in choices if is_number(x) and not is_static]
    as_number = int if all(isinstance(x, int) for x in numbers) else float

    def value(x):
        given = by_label.get(x, x)
        return as_number(given) if is_number(given) and not is_static else given

    def param(x):
        x = x.item() if isinstance(x, np.generic) else x
        are_equal_numbers = lambda a, b: is_number(a) and is_number(b) and a == b
        alike: tuple[Callable[[Any, Any], bool], ...] = (
            lambda label, choice: identity(choice) == identity(x),
            lambda label, choice: identity(label) == identity(x),
            lambda label, choice: not is_static and are_equal_numbers(choice, x),
            lambda label, choice: _json(choice) == _json(x) != "",
        )
        for is_alike in alike:
            if len(found := [label for label, choice in pairs if is_alike(label, choice)]) == 1:
                return found[0]
        raise ValueError(f"{name!r} must be one of the choices {choices}, got {x!r}. Give one.")

    traced = [as_number(x) for x in numbers[:1]]
    examples = [x for x in choices if is_static or not is_number(x)] + traced
    return Axis(name, CategoricalDistribution(labels), value, param, param, is_static, examples)


def _label(value: Any) -> str:
    """What a study shows of a choice: short, and of other text for another."""
    if isinstance(value, np.ndarray | jax.Array) and not is_key(value):
        value = np.asarray(value).tolist()
    text = str(value)
    if len(text) <= LONGEST_LABEL:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
    return f"{text[: LONGEST_LABEL - 9]}…{digest[:8]}"


def _json(value: Any) -> str:
    """As a database keeps it, where tuples are lists; empty for what it cannot keep."""
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError):
        return ""


def check_storable(space: Mapping[str, Any]) -> None:
    """ValueError for choices that a database would have under a name of this process alone."""
    for name, distribution in space.items():
        while isinstance(distribution, OneMinus):
            distribution = distribution.distribution
        if isinstance(distribution, Choice):
            choices = distribution.values
        elif isinstance(distribution, CategoricalDistribution):
            choices = distribution.choices
        else:
            continue
        for value in choices:
            try:
                encode(value, name)
            except ValueError as error:
                raise ValueError(
                    f"the choices of {name!r} must be values that a study's storage can hold, got "
                    f"{value!r}, a {type(value).__name__}. Give a string, and look the object up "
                    "in train."
                ) from error


def params_of(point: Any, axes: Mapping[str, Axis]) -> dict[str, Any]:
    """The study's parameters for hyperparameters that are given under our names or the study's;
    ValueError for a name that no axis has."""
    if not isinstance(point, Mapping):
        raise ValueError(
            f"hyperparameters must be a dict, got {point!r}. Write {{'learning_rate': 1e-3}}."
        )
    params: dict[str, Any] = {}
    parameters = {axis.parameter: axis for axis in axes.values()}
    for name, value in point.items():
        if name not in axes and name not in parameters:
            raise ValueError(
                f"{name!r} must be a hyperparameter of the space, {_names(axes)}, got {point!r}. "
                "Rename it, or leave it out."
            )
        axis = axes.get(name) or parameters[name]
        if axis.parameter in params:
            raise ValueError(
                f"{axis.parameter!r} must be given once, got {point!r}, which names it twice. "
                f"Leave {name!r} out."
            )
        params[axis.parameter] = axis.param(value) if name in axes else axis.fixed(value)
    return params


def _names(axes: Mapping[str, Axis]) -> str:
    said = lambda name, parameter: f"{name!r} ({parameter!r} in the study)"
    names = [repr(n) if n == a.parameter else said(n, a.parameter) for n, a in axes.items()]
    return ", ".join(names)


def to_params(point: Any, space: Any) -> dict[str, Any]:
    """See `rmsprop_jax.search.to_params`."""
    return params_of(point, axes_of(space))


def to_point(params: Any, space: Any) -> dict[str, Any]:
    """See `rmsprop_jax.search.to_point`."""
    axes = axes_of(space)
    fixed = params_of(params, axes)
    return {n: a.value(fixed[a.parameter]) for n, a in axes.items() if a.parameter in fixed}


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


class Distributions(dict[str, BaseDistribution]):
    """Optuna's distributions of a space. It remembers the space, of which Optuna's do not tell
    all: what stands under a label, and what is static."""

    def __init__(self, space: Mapping[str, Any]):
        super().__init__({axis.parameter: axis.distribution for axis in axes_of(space).values()})
        self.space = dict(space)

    def remembered(self) -> dict[str, tuple[str, Distribution]]:
        """For each parameter that is as it was its name and distribution in the space."""
        return {
            axis.parameter: (name, self.space[name])
            for name, axis in axes_of(self.space).items()
            if isinstance(self.space[name], Distribution)
            and self.get(axis.parameter) == axis.distribution
        }


def to_optuna(space: Any) -> dict[str, BaseDistribution]:
    """See `rmsprop_jax.search.to_optuna`."""
    return Distributions(space)


def from_optuna(distributions: Any) -> dict[str, Distribution]:
    """See `rmsprop_jax.search.from_optuna`."""
    if not isinstance(distributions, Mapping):
        raise ValueError(
            f"from_optuna needs a dict of Optuna's distributions, got {distributions!r}."
        )
    check_names("distributions", distributions)
    known = distributions.remembered() if isinstance(distributions, Distributions) else {}
    space = {}
    for parameter, distribution in distributions.items():
        name, made = known.get(parameter) or _named(parameter, _ours(parameter, distribution))
        space[name] = made
    return space


def _named(parameter: str, made: Distribution) -> tuple[str, Distribution]:
    """A hyperparameter's name and distribution, of a parameter's."""
    while parameter.startswith(ONE_MINUS):
        parameter, made = parameter.removeprefix(ONE_MINUS), one_minus(made)
    return parameter, made


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
        return up_to(of.low, of.high, is_log=of.log)
    raise ValueError(
        f"{name!r} is {of!r}, which has no like here: FloatDistribution, IntDistribution without "
        "log, or CategoricalDistribution."
    )
