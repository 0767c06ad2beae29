"""A space of hyperparameters, translated between our form, Optuna's, and the `hp` of `train`."""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

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
from rmsprop_jax._tune.space.values import Value, encode, identity, is_key, is_number

Param: TypeAlias = Any  # a parameter's value in a study, of any type that Optuna's storage holds
Space: TypeAlias = Mapping[str, Distribution | BaseDistribution]

MOST_STATIC_GROUPS = 32  # the most static groups that are traced before anything runs
ONE_MINUS = "1 - "
LONGEST_LABEL = 40


class Axis(NamedTuple):
    """One hyperparameter, and the parameter of the study that stands for it."""

    parameter: str
    """The parameter's name in the study."""
    distribution: BaseDistribution
    """The parameter's distribution."""
    value: Callable[[Param], Value]
    """From the parameter's value to the value that `train` gets, in the type of the axis."""
    param: Callable[[Value], Param]
    """From the hyperparameter's value to the parameter's; ValueError for an impossible value."""
    fixed: Callable[[Value], Param]
    """From a value given under the parameter's name to the parameter's; ValueError likewise."""
    is_static: bool
    """Whether its numbers are static."""
    examples: list[Value] | None
    """Values as `train` gets them, one for each static group of the axis; None if too many."""

    def suggest(self, trial: optuna.Trial) -> Param:
        """Return the value that the study's sampler proposes for a study trial."""
        name, distribution = self.parameter, self.distribution
        if isinstance(distribution, FloatDistribution):
            low, high, step = distribution.low, distribution.high, distribution.step
            return trial.suggest_float(name, low, high, step=step, log=distribution.log)
        if isinstance(distribution, IntDistribution):
            low, high, step = distribution.low, distribution.high, distribution.step
            return trial.suggest_int(name, low, high, step=step, log=distribution.log)
        assert isinstance(distribution, CategoricalDistribution)
        return trial.suggest_categorical(name, distribution.choices)


def axes_of(space: Space) -> dict[str, Axis]:
    """Return the axes of a space by name; ValueError for anything that is not a space."""
    if not isinstance(space, Mapping) or not space:
        raise ValueError(
            f"space must be a dict of at least one distribution, got {space!r}. Pass, for example, "
            "{'learning_rate': rj.log_uniform(1e-5, 1e-1)}."
        )
    check_names("space", space)
    axes = {name: _axis(name, distribution) for name, distribution in space.items()}
    parameters = [axis.parameter for axis in axes.values()]
    clash = any(axis.parameter in axes.keys() - {name} for name, axis in axes.items())
    if clash or len(set(parameters)) < len(parameters):
        raise ValueError(
            "space must give the study parameters whose names differ from one another and from "
            f"the other hyperparameters, {list(axes)}, got {parameters}. Rename one."
        )
    return axes


def check_names(argument: str, named: Mapping[Any, object]) -> None:
    """Raise ValueError unless all keys of a dict are strings.

    Args:
      argument: the name of the argument that is the dict.
      named: the dict, whose keys may be anything.
    """
    if others := [name for name in named if not isinstance(name, str)]:
        raise ValueError(
            f"{argument} must have strings as names, got {others[0]!r}. Write {str(others[0])!r}."
        )


def _axis(name: str, distribution: Distribution | BaseDistribution) -> Axis:
    """Return the axis of a distribution, ours or Optuna's."""
    if isinstance(distribution, Distribution):
        return _of_ours(name, distribution, distribution.is_static)
    if isinstance(distribution, FloatDistribution | IntDistribution):
        return _of_numbers(name, distribution, False, [distribution.low])
    if isinstance(distribution, CategoricalDistribution):
        return _of_choices(name, distribution.choices, False)
    raise ValueError(
        f"{name!r} must be a distribution, got {distribution!r}. Pass one of uniform, log_uniform, "
        "one_minus, integers, and choice, or one of optuna.distributions."
    )


def _of_ours(name: str, distribution: Distribution, is_static: bool) -> Axis:
    """Return the axis of one of our distributions."""
    if isinstance(distribution, OneMinus):
        return _less_from_one(name, _of_ours(name, distribution.distribution, is_static))
    if isinstance(distribution, Choice):
        return _of_choices(name, distribution.values, is_static)
    if isinstance(distribution, Integers):
        low, high = distribution.low, distribution.high
        is_short = distribution.count <= MOST_STATIC_GROUPS
        static_examples = list(range(low, high + 1)) if is_short else None
        examples = static_examples if is_static else [low]
        return _of_numbers(name, IntDistribution(low, high), is_static, examples)
    assert isinstance(distribution, Uniform | LogUniform)
    is_log = isinstance(distribution, LogUniform)
    floats = FloatDistribution(distribution.low, distribution.last, log=is_log)
    return _of_numbers(name, floats, is_static, None if is_static else [distribution.low])


def _less_from_one(name: str, inner: Axis) -> Axis:
    """Return the axis of 1 − x, whose parameter in the study is x."""
    inner_value, inner_param, distribution = inner.value, inner.param, inner.distribution
    exact: list[float]
    if isinstance(distribution, CategoricalDistribution):
        exact = [x for x in distribution.choices if is_number(x)]
    else:
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        exact = [distribution.low, distribution.high]

    def param(value: Value) -> Param:
        x = 1 - _number(name, value)
        for number in exact:
            # 1 − 0.9 is a little below 0.1, and 1 − (1 − x) is off by up to 2⁻⁵³ for any x.
            if math.isclose(x, number, rel_tol=1e-9, abs_tol=2**-53):
                x = number
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
    examples: Sequence[Value] | None,
) -> Axis:
    """Return the axis of a distribution over numbers, under its own name in the study."""
    is_float = isinstance(distribution, FloatDistribution)

    def param(value: Value) -> float:
        number = _number(name, value)
        if not is_float and not float(number).is_integer():
            raise ValueError(
                f"{name!r} must be a whole number, got {value!r}. Pass one of {distribution}."
            )
        return number

    kind = float if is_float else int
    examples = None if examples is None else list(examples)
    return Axis(name, distribution, kind, param, param, is_static, examples)


def _number(name: str, value: Value) -> float:
    """Return a hyperparameter's value as a Python number; ValueError if it is not a number."""
    value = plain(name, value, is_static=False)
    if not is_number(value):
        raise ValueError(f"{name!r} must be a number, got {value!r}. Pass a number in its range.")
    return value


def _of_choices(name: str, choices: Sequence[Value], is_static: bool) -> Axis:
    """Return the axis of a choice.

    In the study, a choice that a database cannot hold, or would confuse, has a label instead.
    """
    choices = [x.item() if isinstance(x, np.generic) else x for x in choices]
    is_plain = lambda x: x is None or type(x) in (bool, int, float, str)
    labels = [x if is_plain(x) else _label(x) for x in choices]
    if len(set(labels)) < len(labels):  # a database does not distinguish 1, 1.0, and True
        labels = [f"{type(x).__name__} {_label(x)}" for x in choices]
    pairs = list(zip(labels, choices, strict=True))
    is_other = lambda label, x: any(
        label == y for y in choices if y is not x and isinstance(y, str)
    )
    if len(set(labels)) < len(labels) or any(is_other(label, x) for label, x in pairs):
        raise ValueError(
            f"the choices of {name!r} must have different labels in the study, got {labels}. "
            f"Choose among strings, and look the objects up in train: OBJECTS[hp[{name!r}]]."
        )
    by_label = dict(pairs)
    numbers = [x for x in choices if is_number(x) and not is_static]
    as_number = int if all(isinstance(x, int) for x in numbers) else float

    def value(x: Param) -> Value:
        chosen = by_label.get(x, x)
        return as_number(chosen) if is_number(chosen) and not is_static else chosen

    def param(x: Value) -> Param:
        x = x.item() if isinstance(x, np.generic) else x
        are_equal_numbers = lambda a, b: is_number(a) and is_number(b) and a == b
        tests: tuple[Callable[[Param, Value], bool], ...] = (
            lambda label, choice: identity(choice) == identity(x),
            lambda label, choice: identity(label) == identity(x),
            lambda label, choice: not is_static and are_equal_numbers(choice, x),
            lambda label, choice: _json(choice) == _json(x) != "",
        )
        for is_alike in tests:
            if len(matches := [label for label, choice in pairs if is_alike(label, choice)]) == 1:
                return matches[0]
        raise ValueError(
            f"{name!r} must be one of the choices {choices}, got {x!r}. Pass one of them."
        )

    traced = [as_number(x) for x in numbers[:1]]
    examples = [x for x in choices if is_static or not is_number(x)] + traced
    return Axis(name, CategoricalDistribution(labels), value, param, param, is_static, examples)


def _label(value: Value) -> str:
    """Return a short text for a choice, which differs from the text of other choices."""
    if isinstance(value, np.ndarray | jax.Array) and not is_key(value):
        value = np.asarray(value).tolist()
    text = str(value)
    if len(text) <= LONGEST_LABEL:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
    return f"{text[: LONGEST_LABEL - 9]}…{digest[:8]}"


def _json(value: Value) -> str:
    """Return the JSON that a database holds, where tuples are lists; empty if it cannot."""
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError):
        return ""


def check_storable(space: Space) -> None:
    """Raise ValueError for choices whose labels only this process could look up."""
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
                    f"the choices of {name!r} must be values that the study's storage can hold, "
                    f"got {value!r}, a {type(value).__name__}. Use a string instead, and look the "
                    f"object up in train: OBJECTS[hp[{name!r}]]."
                ) from error


def params_of(point: Mapping[str, Value], axes: Mapping[str, Axis]) -> dict[str, Param]:
    """Return the study's parameters for some hyperparameters.

    Args:
      point: some or all hyperparameters, under our names or the study's.
      axes: the axes of the space.

    Raises:
      ValueError: for a name that no axis has, a hyperparameter that is given twice, or a value that
        its axis cannot have.
    """
    if not isinstance(point, Mapping):
        raise ValueError(
            f"hyperparameters must be a dict, got {point!r}. Pass {{'learning_rate': 1e-3}}."
        )
    params: dict[str, Param] = {}
    parameters = {axis.parameter: axis for axis in axes.values()}
    for name, value in point.items():
        if name not in axes and name not in parameters:
            raise ValueError(
                f"{name!r} must be a hyperparameter of the space, which has {_names(axes)}, got "
                f"{point!r}. Rename it, or leave it out."
            )
        axis = axes.get(name) or parameters[name]
        if axis.parameter in params:
            raise ValueError(
                f"{axis.parameter!r} must be given once, got {point!r}, which gives it under both "
                f"names. Leave {name!r} out."
            )
        params[axis.parameter] = axis.param(value) if name in axes else axis.fixed(value)
    return params


def _names(axes: Mapping[str, Axis]) -> str:
    """Return the names of all hyperparameters for an error, with the study's if they differ."""
    both = lambda name, parameter: f"{name!r} ({parameter!r} in the study)"
    names = [repr(n) if n == a.parameter else both(n, a.parameter) for n, a in axes.items()]
    return ", ".join(names)


def to_params(point: Mapping[str, Value], space: Space) -> dict[str, Param]:
    """See `rmsprop_jax.search.to_params`."""
    return params_of(point, axes_of(space))


def to_point(params: Mapping[str, Param], space: Space) -> dict[str, Value]:
    """See `rmsprop_jax.search.to_point`."""
    axes = axes_of(space)
    fixed = params_of(params, axes)
    return {n: a.value(fixed[a.parameter]) for n, a in axes.items() if a.parameter in fixed}


def examples(axes: Mapping[str, Axis]) -> Points | None:
    """Return one point of each static group; None if there are too many to trace in advance."""
    values = [axis.examples for axis in axes.values() if axis.examples is not None]
    if len(values) < len(axes) or math.prod(map(len, values)) > MOST_STATIC_GROUPS:
        return None
    rows = [dict(zip(axes, row, strict=True)) for row in itertools.product(*values)]
    return Points.of(rows, static_names(axes))


def static_names(axes: Mapping[str, Axis]) -> list[str]:
    """Return the names of the static hyperparameters."""
    return [name for name, axis in axes.items() if axis.is_static]


class Distributions(dict[str, BaseDistribution]):
    """Optuna's distributions of a space, which remember the space.

    Optuna's distributions alone lose the choices behind labels, and the static names.

    Args:
      space: a dict from names to distributions, ours or Optuna's.
    """

    def __init__(self, space: Space):
        super().__init__({axis.parameter: axis.distribution for axis in axes_of(space).values()})
        self.space = dict(space)

    def remembered(self) -> dict[str, tuple[str, Distribution]]:
        """Return the name and distribution in the space for each parameter that did not change."""
        remembered: dict[str, tuple[str, Distribution]] = {}
        for name, axis in axes_of(self.space).items():
            distribution = self.space[name]
            is_ours = isinstance(distribution, Distribution)
            if is_ours and self.get(axis.parameter) == axis.distribution:
                remembered[axis.parameter] = name, distribution
        return remembered


def to_optuna(space: Space) -> dict[str, BaseDistribution]:
    """See `rmsprop_jax.search.to_optuna`."""
    return Distributions(space)


def from_optuna(distributions: Mapping[str, BaseDistribution]) -> dict[str, Distribution]:
    """See `rmsprop_jax.search.from_optuna`."""
    if not isinstance(distributions, Mapping):
        raise ValueError(
            f"distributions must be a dict of Optuna's distributions, got {distributions!r}. Pass, "
            "for example, study.trials[0].distributions."
        )
    check_names("distributions", distributions)
    remembered = distributions.remembered() if isinstance(distributions, Distributions) else {}
    space: dict[str, Distribution] = {}
    for parameter, theirs in distributions.items():
        name, ours = remembered.get(parameter) or _renamed(parameter, _ours(parameter, theirs))
        space[name] = ours
    return space


def _renamed(parameter: str, distribution: Distribution) -> tuple[str, Distribution]:
    """Return the hyperparameter's name and distribution for those of a parameter."""
    while parameter.startswith(ONE_MINUS):
        parameter, distribution = parameter.removeprefix(ONE_MINUS), one_minus(distribution)
    return parameter, distribution


def _ours(name: str, distribution: BaseDistribution) -> Distribution:
    """Return our distribution for one of Optuna's; ValueError if there is none."""
    if isinstance(distribution, CategoricalDistribution):
        return choice(list(distribution.choices))
    if isinstance(distribution, IntDistribution) and not distribution.log:
        low, high, step = distribution.low, distribution.high, distribution.step
        return integers(low, high) if step == 1 else choice(list(range(low, high + 1, step)))
    if isinstance(distribution, FloatDistribution):
        low, high, step = distribution.low, distribution.high, distribution.step
        if step is not None:
            count = round((high - low) / step) + 1
            return choice([low + i * step for i in range(count)])
        return choice([low]) if low == high else up_to(low, high, is_log=distribution.log)
    raise ValueError(
        f"{name!r} must be a distribution that this package has, too, got {distribution!r}. Pass a "
        "FloatDistribution, an IntDistribution without log, or a CategoricalDistribution."
    )
