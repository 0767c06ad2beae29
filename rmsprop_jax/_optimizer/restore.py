# pyright: standard
"""`restore_state` and `moments`: an optimizer's state from the buffers of another framework, and
back."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from rmsprop_jax._optimizer.precision import is_none
from rmsprop_jax._optimizer.state import ScaleByRmsState
from rmsprop_jax._optimizer.stochastic_rounding import StochasticRoundingState

# Optax's states by name, because some of their classes are not public: see `_kind`.
OPTAX = {
    "ScaleByRmsState": "optax rms",
    "ScaleByRmsWithCountState": "optax rms",
    "ScaleByRStdDevState": "optax rms",
    "ScaleByRStdDevWithCountState": "optax rms",
    "TraceState": "trace",
    "ScaleByScheduleState": "count",
    "WrappedScheduleState": "count",
    "InjectHyperparamsState": "around",
    "InjectStatefulHyperparamsState": "around",
    "MaskedState": "around",
    "PartitionState": "around",
    "SplitRealAndImaginaryState": "around",
    "EmptyState": "nothing",
}
SLACK = 1e-5  # EMA(g)² may exceed EMA(g²) by this much, by rounding


class Moments(NamedTuple):
    """The buffers of RMSProp as PyTorch, Keras, TensorFlow, and Optax have them."""

    second_moment: Any
    """The average of g², a tree like the parameters: `square_avg`, or the slot `rms`."""
    first_moment: Any = None
    """The average of g: `grad_avg`, or the slot `mg`. `None` without `centered`."""
    momentum: Any = None
    """The momentum buffer b, with θ ← θ − b, or θ ← θ − η b. `None` without momentum."""
    weight: Any = None
    """W, the weight of the gradients in the averages: 1 − ρᵗ for a constant ρ. `None` without
    `bias_correction`."""
    step: Any = None
    """The number of steps taken; `None` if nothing in the state counts them."""


def restore_state(
    solver: optax.GradientTransformation,
    params: optax.Params,
    *,
    second_moment: Any,
    first_moment: Any = None,
    momentum: Any = None,
    weight: Any = None,
    step: int,
    keep_fresh: bool = False,
) -> optax.OptState:
    """Return the state of an optimizer from the buffers of another framework, in the middle of a
    run.

    The buffers are trees of arrays like `params`, with `None` where `solver` trains nothing.

    | framework | second_moment | first_moment | momentum |
    |---|---|---|---|
    | PyTorch, timm, Stable-Baselines3 | `square_avg` | `grad_avg` | `momentum_buffer` |
    | Keras | `_velocities` | `_average_gradients` | `_momentums` |
    | TensorFlow | slot `rms` | slot `mg` | slot `momentum` |
    | MLX | `v` | | |
    | Optax | `nu` | `mu` | −`trace` (`trace` if the rate comes after it) |

    Some mistakes cannot be detected: leaves of equal shape that are exchanged, a square matrix that
    is transposed, a variance in place of `second_moment` where it exceeds the squared mean, and a
    momentum buffer of the other convention.

    Args:
      solver: `rmsprop`, a preset, or Optax's `rmsprop`, perhaps inside `optax.chain`,
        `inject_hyperparams`, `masked`, or `partition`.
      params: the parameters.
      second_moment: the average of g², not the variance. `solver` with `centered` gets the variance
        from it and `first_moment`.
      first_moment: the average of g, with `centered` only.
      momentum: the buffer b of θ ← θ − b or, with `lr_in_momentum=False` as in PyTorch, of
        θ ← θ − η b. With momentum only. In a chain of your own, it is the second kind if
        `optax.trace` comes directly after the scaling, else the first.
      weight: with `bias_correction`, the weight of the gradients in the averages: 1 − ρᵗ for a
        constant ρ.
      step: the number of steps taken, at least 1. It sets every count: of schedules, of
        `inject_hyperparams`, and of the rounding. A schedule counts steps, not epochs.
      keep_fresh: whether states of transformations that this function does not know stay as
        `solver.init` makes them. By default they are an error.

    Returns:
      The state, with the structure and dtypes of `solver.init(params)`. Arrays are copied.

    Raises:
      ValueError: for a buffer that is missing, superfluous, or of another structure, shape, or
        kind; for numbers that are not finite, a negative second moment, or first_moment² above
        second_moment; for a missing or superfluous weight; for a step below 1; and for a state that
        this function does not know.

    Examples:
      >>> import jax.numpy as jnp, rmsprop_jax as rj
      >>> params = {"w": jnp.array([1.0, -2.0])}
      >>> solver = rj.presets.torch(lr=0.01, momentum=0.9)
      >>> square_avg = {"w": jnp.array([0.04, 0.01])}  # optimizer.state[p]["square_avg"]
      >>> buffer = {"w": jnp.array([0.5, -0.1])}  # optimizer.state[p]["momentum_buffer"]
      >>> state = rj.restore_state(
      ...     solver, params, second_moment=square_avg, momentum=buffer, step=100
      ... )
      >>> updates, state = solver.update({"w": jnp.array([0.1, 0.2])}, state, params)
    """
    if isinstance(step, bool) or not isinstance(step, int | np.integer) or step < 1:
        raise ValueError(
            f"step must be a whole number of at least 1, got {step!r}. For a run that has not "
            "begun, use solver.init(params)."
        )
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_none)
    paths = [jax.tree_util.keystr(path) for path, _ in with_paths]
    given = {
        name: _Buffer(name, _leaves(name, tree, treedef), paths)
        for name, tree in (
            ("second_moment", second_moment),
            ("first_moment", first_moment),
            ("momentum", momentum),
        )
    }
    _check_numbers(given["first_moment"], given["second_moment"])
    restored = _Restored(treedef, given, _checked_weight(weight), int(step), keep_fresh)
    state = restored.of(solver.init(params))
    restored.refuse_superfluous()
    return state


def moments(state: optax.OptState, *, initial_scale: float = 0.0) -> Moments:
    """Return the buffers in an optimizer's state, as other frameworks have them.

    The inverse of `restore_state`. The second moment is the average of g², also with `centered`,
    and in float32 also for a state of two bytes. The momentum is the buffer b of θ ← θ − b or, with
    `lr_in_momentum=False`, of θ ← θ − η b.

    Args:
      state: the state of `rmsprop`, of a preset, or of Optax's `rmsprop`, perhaps inside
        `optax.chain`, `inject_hyperparams`, `masked`, or `partition`.
      initial_scale: s₀, which the state does not hold with `centered` and `bias_correction`, and
        which the average of g² holds. In all other states it is part of the average.

    Raises:
      ValueError: for a state without the averages of RMSProp.

    Examples:
      >>> import jax.numpy as jnp, rmsprop_jax as rj
      >>> solver = rj.presets.torch(lr=0.01)
      >>> _, state = solver.update(jnp.array([1.0, 2.0]), solver.init(jnp.zeros(2)))
      >>> print(rj.moments(state).second_moment)
      [0.01 0.04]
    """
    found = _Found(initial_scale)
    found.read(state)
    if not found.second:
        raise ValueError(
            f"state must have the averages of RMSProp, got {type(state).__name__} without them. "
            "Pass the state of rj.rmsprop, a preset, or optax.rmsprop."
        )
    merged = lambda trees: _merged(trees) if trees else None
    second, first, momentum = map(merged, (found.second, found.first, found.momentum))
    return Moments(second, first, momentum, found.weight, found.step)


# The parts of a state.


def _kind(node: Any) -> str:
    """Return what a part of a state is: "rms", "optax rms", "trace", "count", "rounding", "around"
    for a wrapper, "nothing", or "" for another."""
    if isinstance(node, ScaleByRmsState):
        return "rms"
    if isinstance(node, StochasticRoundingState):
        return "rounding"
    if node is None:
        return "nothing"
    if type(node).__module__.split(".")[0] == "optax":
        return OPTAX.get(type(node).__name__, "")
    return "around" if type(node) in (tuple, list, dict) else ""


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _is_split(x: Any) -> bool:
    """Return whether this is a complex array as two real ones."""
    return getattr(x, "_fields", None) == ("real", "imaginary")


# From buffers to a state.


class _Buffer(NamedTuple):
    """A buffer that the caller gave, leaf by leaf."""

    name: str
    leaves: list[Any] | None
    """One entry for each parameter; None if the buffer was not given."""
    paths: list[str]

    def place(self, i: int) -> str:
        return f"{self.name}{self.paths[i]}"


def _leaves(name: str, tree: Any, treedef: Any) -> list[Any] | None:
    """Return the leaves of a buffer, in the order of the parameters."""
    if tree is None:
        return None
    try:
        return treedef.flatten_up_to(tree)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name} must be a tree like params, got another structure: {error}. Give one array "
            "for each parameter, or None where the solver trains nothing."
        ) from error


def _wide(x: Any) -> np.ndarray:
    """Return a concrete array as float64 or complex128."""
    array = np.asarray(x)
    is_complex = np.iscomplexobj(array)
    return array.astype(np.complex128 if is_complex else np.float64)


def _numbers(x: Any) -> np.ndarray | None:
    """Return a concrete array for checks; None for a traced one, or what is not a number."""
    if x is None or isinstance(x, Tracer) or not hasattr(x, "dtype"):
        return None
    return _wide(x) if jnp.issubdtype(x.dtype, jnp.inexact) else None


def _check_numbers(first: _Buffer, second: _Buffer) -> None:
    """Refuse a negative second moment, and a squared mean that exceeds it."""
    for i, x in enumerate(second.leaves or ()):
        s = _numbers(x)
        if s is None:
            continue
        parts = [np.real(s), np.imag(s)] if np.iscomplexobj(s) else [s]
        negative = sum(int((part < 0).sum()) for part in parts)
        if negative:
            raise ValueError(
                f"{second.place(i)} must be an average of squares, at least 0, got {negative} "
                f"negative numbers of {s.size}. Pass square_avg, not the variance."
            )
        m = _numbers(first.leaves[i]) if first.leaves else None
        if m is None or m.shape != s.shape:
            continue
        pairs = [(np.abs(m), s)]
        if np.iscomplexobj(s):
            pairs = [(np.real(m), np.real(s)), (np.imag(m), np.imag(s))]
        above = sum(int((mean**2 > square * (1 + SLACK)).sum()) for mean, square in pairs)
        if above:
            raise ValueError(
                f"{second.place(i)} must be at least first_moment², as an average of squares is, "
                f"got {above} smaller numbers of {s.size}. Pass the raw average of g², not the "
                "variance, and the first moment of the same step."
            )


def _checked_weight(weight: Any) -> Any:
    if weight is None or isinstance(weight, Tracer):
        return weight
    number = float(weight)
    if not 0 < number <= 1:
        raise ValueError(
            f"weight must be a number in (0, 1], got {number}. Pass 1 − ρᵗ after t steps with a "
            "constant decay ρ."
        )
    return number


@dataclasses.dataclass
class _Restored:
    """A state with the buffers of the caller in place of fresh ones.

    Attributes:
      used: the buffers and leaves that a part of the state has taken.
      after_rms: whether the part before the present one scaled the gradient, so that a momentum
        buffer here holds b and not −b.
    """

    treedef: Any
    given: dict[str, _Buffer]
    weight: Any
    step: int
    keep_fresh: bool
    used: set[tuple[str, int]] = dataclasses.field(default_factory=set)
    used_weight: bool = False
    after_rms: bool = False

    def of(self, node: Any) -> Any:
        """Return a part of the state, restored."""
        kind, before = _kind(node), self.after_rms
        if kind != "around":
            self.after_rms = kind in ("rms", "optax rms")
        if kind == "rms":
            return self._rms(node)
        if kind == "optax rms":
            return self._optax_rms(node)
        if kind == "trace":
            sign = 1 if before else -1
            parts = self._parts("momentum", node.trace)
            signed = [[sign * x for x in leaf] for leaf in parts]
            return node._replace(trace=self._rebuilt(node.trace, signed))
        if kind == "count":
            return node._replace(count=self._count(node.count))
        if kind == "rounding":
            return type(node)(*map(self._count, node))
        if kind == "around":
            return self._around(node)
        if kind == "" and not self.keep_fresh:
            raise ValueError(
                f"solver must have states that can be restored, got a {type(node).__name__}. Pass "
                "keep_fresh=True to leave it as solver.init makes it, or restore it yourself."
            )
        return node

    def _around(self, node: Any) -> Any:
        if isinstance(node, dict):
            return {name: self.of(x) for name, x in node.items()}
        if type(node) in (tuple, list):
            return type(node)(map(self.of, node))
        fields = node._asdict()
        if "count" in fields:
            fields["count"] = self._count(fields["count"])
        for name in ("hyperparams_states", "inner_state", "inner_states"):
            if name in fields:
                fields[name] = self.of(fields[name])
        return type(node)(**fields)

    def _count(self, old: Any) -> Any:
        return jnp.full_like(old, self.step)

    def _rms(self, node: ScaleByRmsState) -> ScaleByRmsState:
        weighs = node.weight is not None
        # `presets.optax` with bias_correction counts steps, and has no weight in its state.
        normalized = node.mu is not None and (weighs or self.weight is not None)
        if weighs and self.weight is None:
            raise ValueError(
                "weight must be given for a solver with bias_correction=True, got None. Pass "
                "weight=1 - decay**step for a constant decay."
            )
        self.used_weight |= weighs or (node.step is not None and node.mu is not None)
        w: Any = self.weight if normalized else 1.0
        nus, mu = self._parts("second_moment", node.nu), node.mu
        if node.mu is not None:
            means = [[m / w for m in leaf] for leaf in self._parts("first_moment", node.mu)]
            starts = _flat(self.treedef, node.nu) if normalized else None
            for i, leaf in enumerate(nus):
                for k, s in enumerate(leaf):
                    start = np.asarray(starts[i][k], s.dtype) * (1 - w) if starts else 0
                    leaf[k] = _non_negative((s - start) / w - abs(means[i][k]) ** 2)
            mu = self._rebuilt(node.mu, means)
        nu = self._rebuilt(node.nu, nus)
        step = None if node.step is None else self._count(node.step)
        weight = None if node.weight is None else _two_parts(self.weight, node.weight[0].dtype)
        return ScaleByRmsState(step, mu, nu, weight)

    def _optax_rms(self, node: Any) -> Any:
        fields = {"nu": self._rebuilt(node.nu, self._parts("second_moment", node.nu))}
        if "mu" in node._fields:
            fields["mu"] = self._rebuilt(node.mu, self._parts("first_moment", node.mu))
        if "count" in node._fields:
            fields["count"], self.used_weight = self._count(node.count), True
        return node._replace(**fields)

    def _parts(self, name: str, tree: Any) -> list[list[Any]]:
        """Return the arrays of a buffer for each leaf of the parameters, as `_flat` has those of
        the state's tree."""
        buffer = self.given[name]
        if buffer.leaves is None:
            raise ValueError(
                f"{name} must be given, because the solver keeps it, got None. Pass a tree like "
                "params."
            )
        found: list[list[Any]] = []
        for i, olds in enumerate(_flat(self.treedef, tree)):
            x = buffer.leaves[i]
            if olds:
                self.used.add((name, i))
            if len(olds) == 2 and (x is None or not jnp.iscomplexobj(x)):
                raise ValueError(
                    f"{buffer.place(i)} must be complex, because the solver splits its parameter "
                    f"into two reals, got {_kind_of(x)}. Pass real + 1j * imaginary, from the "
                    "buffers of both parts."
                )
            numpy = jnp if isinstance(x, Tracer) else np
            xs = [numpy.real(x), numpy.imag(x)] if len(olds) == 2 else [x] * len(olds)
            found.append([self._array(buffer, i, *both) for both in zip(xs, olds, strict=True)])
        return found

    def _rebuilt(self, tree: Any, parts: list[list[Any]]) -> Any:
        """Return a tree of the state with these arrays, as `_flat` lists them."""
        new = []
        for old, xs in zip(self.treedef.flatten_up_to(tree), parts, strict=True):
            if _is_split(old):
                new.append(type(old)(*map(_placed, xs, old)))
            else:
                new.append(_placed(xs[0], old) if xs else old)
        return self.treedef.unflatten(new)

    def _array(self, buffer: _Buffer, i: int, x: Any, old: Any) -> Any:
        """Return one array of a buffer, checked, in float64 unless it is traced."""
        place = buffer.place(i)
        if x is None:
            raise ValueError(
                f"{place} must be an array, because the solver trains this parameter, got None. "
                "Pass its buffer."
            )
        is_array = isinstance(x, jax.Array | np.ndarray | np.generic | float)
        dtype = x.dtype if hasattr(x, "dtype") else np.dtype(type(x)) if is_array else None
        if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
            raise ValueError(
                f"{place} must be an array of floats, got {_kind_of(x)}. Convert it: np.asarray(x, "
                "np.float32), for a torch tensor x.detach().numpy()."
            )
        if jnp.issubdtype(dtype, jnp.complexfloating) and not jnp.iscomplexobj(old):
            raise ValueError(
                f"{place} must be real for this solver, got {dtype}. For a complex parameter, |g|² "
                "is the average over both parts."
            )
        if np.shape(x) != old.shape:
            raise ValueError(
                f"{place} must have the shape of its parameter, {old.shape}, got {np.shape(x)}. "
                "Transpose or reshape it as its parameter was."
            )
        if not isinstance(x, Tracer) and not np.isfinite(numbers := np.asarray(x)).all():
            count = int((~np.isfinite(numbers)).sum())
            raise ValueError(
                f"{place} must be finite, got {count} numbers of {numbers.size} that are not. Take "
                "the buffers from an earlier checkpoint."
            )
        # NumPy keeps float64 while the values are combined, whatever JAX's settings are.
        return x if isinstance(x, Tracer) else _wide(x)

    def refuse_superfluous(self) -> None:
        """Raise ValueError for a buffer, a leaf, or a weight that no part of the state takes."""
        for name, buffer in self.given.items():
            if buffer.leaves is None:
                continue
            if not any((name, i) in self.used for i in range(len(buffer.leaves))):
                raise ValueError(
                    f"{name} must be left out, because the solver keeps no such buffer. Pass a "
                    f"solver with {_NEEDED[name]}, or leave {name} out."
                )
            for i, x in enumerate(buffer.leaves):
                if x is not None and (name, i) not in self.used:
                    raise ValueError(
                        f"{buffer.place(i)} must be None, because the solver does not train this "
                        f"parameter, got {_kind_of(x)}. Leave it out."
                    )
        if self.weight is not None and not self.used_weight:
            raise ValueError(
                "weight must be left out without bias_correction, got a number. Pass a solver with "
                "bias_correction=True, or leave weight out."
            )


_NEEDED = {
    "second_moment": "RMSProp's average",
    "first_moment": "centered=True",
    "momentum": "momentum",
}


def _two_parts(weight: Any, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Return a weight as a rounded number and its rounding error."""
    high = jnp.asarray(weight, dtype)
    rest = weight - (high if isinstance(weight, Tracer) else float(high))
    return high, jnp.asarray(rest, dtype)


def _non_negative(x: Any) -> Any:
    return jnp.maximum(x, 0) if isinstance(x, Tracer) else np.maximum(x, 0)


def _flat(treedef: Any, tree: Any) -> list[list[Any]]:
    """Return the arrays of each leaf of the parameters: one, two for a split one, or none."""
    leaves: list[Any] = treedef.flatten_up_to(tree)
    is_nothing = lambda x: x is None or _is_masked(x)
    return [[] if is_nothing(x) else list(x) if _is_split(x) else [x] for x in leaves]


def _placed(x: Any, old: Any) -> jax.Array:
    """Return a new array in the dtype of `old` and, if that is known, on its devices."""
    new = jnp.array(x, old.dtype)
    sharding = None if isinstance(old, Tracer) else getattr(old, "sharding", None)
    return new if sharding is None or isinstance(new, Tracer) else jax.device_put(new, sharding)


def _kind_of(x: Any) -> str:
    """Return a short description of a value for an error."""
    if x is None:
        return "None"
    dtype = getattr(x, "dtype", None)
    return f"an array of {dtype}" if dtype is not None else f"a {type(x).__name__}"


# From a state to buffers.


@dataclasses.dataclass
class _Found:
    """The buffers in a state: for each kind one tree per group of parameters."""

    initial_scale: Any
    second: list[Any] = dataclasses.field(default_factory=list)
    first: list[Any] = dataclasses.field(default_factory=list)
    momentum: list[Any] = dataclasses.field(default_factory=list)
    weight: Any = None
    step: Any = None
    after_rms: bool = False

    def read(self, node: Any) -> None:
        kind, before = _kind(node), self.after_rms
        if kind != "around":
            self.after_rms = kind in ("rms", "optax rms")
        if kind == "rms":
            self._read_rms(node)
        elif kind == "optax rms":
            self.second.append(_joined(node.nu))
            if "mu" in node._fields:
                self.first.append(_joined(node.mu))
            self._note_step(getattr(node, "count", None))
        elif kind == "trace":
            self.momentum.append(_joined(node.trace, lambda x: x if before else -x))
        elif kind == "count":
            self._note_step(node.count)
        elif kind == "around":
            fields = node if isinstance(node, dict) else getattr(node, "_asdict", dict)()
            each: Any = fields.values() if fields else node
            for inner in each:
                if not isinstance(inner, jax.Array | np.ndarray):
                    self.read(inner)

    def _read_rms(self, node: ScaleByRmsState) -> None:
        self._note_step(node.step)
        w = 1.0
        if node.weight is not None:
            w = self.weight = node.weight[0] + node.weight[1]
        wide = lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if node.mu is None:
            self.second.append(_joined(node.nu, wide))
            return
        self.first.append(_joined(node.mu, lambda m: m * w))
        start = self.initial_scale * (1 - w)
        raw = lambda v, m: (wide(v) + jnp.abs(m) ** 2) * w + start
        self.second.append(_joined(jax.tree.map(raw, node.nu, node.mu)))

    def _note_step(self, step: Any) -> None:
        self.step = step if step is not None else self.step


def _joined(tree: Any, make: Callable[[Any], Any] = lambda x: x) -> Any:
    """Return a tree of the state like the parameters: complex where split, None where masked."""

    def join(x: Any) -> Any:
        if _is_masked(x):
            return None
        return jax.lax.complex(*map(make, x)) if _is_split(x) else make(x)

    return jax.tree.map(join, tree, is_leaf=lambda x: _is_masked(x) or _is_split(x))


def _merged(trees: list[Any]) -> Any:
    """Return one tree with the arrays of all groups of parameters."""
    first = lambda *xs: next((x for x in xs if x is not None), None)
    return jax.tree.map(first, *trees, is_leaf=is_none)
