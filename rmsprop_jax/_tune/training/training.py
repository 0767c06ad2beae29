"""`Training`: a training in steps."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from rmsprop_jax._tune.space.values import PyTree, Value, is_int

State: TypeAlias = PyTree
Metrics: TypeAlias = dict[str, jax.Array]
Train: TypeAlias = Callable[..., Metrics]


class Training:
    """A training in steps, which `sweep` can show live, prune, save, resume, and change mid-run.

        init(hp, key, *args) -> state
        step(hp, state, key, *args) -> (state, metrics)
        step(hp, state, key, batch, *args) -> (state, metrics)      if sweep gets batches=
        evaluate(hp, state, key, *args) -> metrics

    All three functions are pure. Steps count from 1. For a trial with the key k, `init` gets
    `fold_in(k, 0)`, step t gets `fold_in(k, t)`, and `evaluate` after step t gets
    `fold_in(fold_in(k, t), 1)`.

    Args:
      init: makes the state, a pytree of arrays, PRNG keys, `None`, and Python numbers (which become
        arrays): parameters, optimizer state, an environment, and anything else that a step changes.
        Functions and strings are refused: keep `(params, opt_state)`, and build the optimizer in
        `step`.
      step: runs one step. The state must keep its structure, shapes, and dtypes. The metrics are a
        dict of scalars. If `step` has a `while_loop`, all trials of a batch wait for the slowest.
      evaluate: returns more metrics, a dict of scalars under other names. It runs every
        `evaluate_every` steps and after the last step. `None`: no evaluation.

    Raises:
      ValueError: for an argument that is not a function.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, rmsprop_jax as rj
      >>> def init(hp, key):
      ...     params = jax.random.normal(key, (3,))
      ...     return params, rj.rmsprop(hp["learning_rate"]).init(params)
      >>> def step(hp, state, key):
      ...     params, opt_state = state
      ...     loss, grads = jax.value_and_grad(lambda p: jnp.sum(p**2))(params)
      ...     updates, opt_state = rj.rmsprop(hp["learning_rate"]).update(grads, opt_state)
      ...     return (optax.apply_updates(params, updates), opt_state), {"loss": loss}
      >>> training = rj.Training(init, step)
      >>> points = rj.grid(learning_rate=[1e-4, 1e-2])
      >>> result = rj.sweep(training, points, steps=100, progress=False)
      >>> result.best().point, result.state(result.best())[0].shape
      ({'learning_rate': 0.01}, (3,))
    """

    def __init__(
        self,
        init: Callable[..., State],
        step: Callable[..., tuple[State, Metrics]],
        evaluate: Callable[..., Metrics] | None = None,
    ):
        for name, function in {"init": init, "step": step, "evaluate": evaluate}.items():
            if not callable(function) and not (name == "evaluate" and function is None):
                raise ValueError(
                    f"{name} must be a function, got {function!r}. Pass rj.Training(init, step)."
                )
        self.init, self.step, self.evaluate = init, step, evaluate

    def __repr__(self) -> str:
        functions = [x for x in (self.init, self.step, self.evaluate) if x is not None]
        return f"Training({', '.join(getattr(x, '__qualname__', repr(x)) for x in functions)})"

    def run(
        self,
        hp: dict[str, Value],
        key: jax.Array,
        *args: PyTree,
        steps: int,
        state: State = None,
        start: int | jax.Array = 0,
        batches: Callable[[int], PyTree] | PyTree = None,
    ) -> tuple[State, Metrics]:
        """Run `steps` steps in one `lax.scan`, which you can jit and differentiate.

        Args:
          hp: a dict of hyperparameters, Python numbers or traced scalars.
          key: the key of the trial, a scalar: `jax.random.key(seed)`.
          *args: the last arguments of `init`, `step`, and `evaluate`.
          steps: the number of steps, an int of at least 1. It cannot be traced.
          state: the state to continue from. `None`: the state that `init` makes.
          start: the number of steps that `state` has already run, an int or a traced scalar.
          batches: a function from the step (`start` + 1, …) to a batch, which runs while JAX
            traces; or a pytree of arrays with a leading axis over the steps.

        Returns:
          The state after the last step, and for each metric an array of shape (steps,). On a CPU,
          for at least 2 steps, `jax.jit` of this function gives bit for bit the numbers of a sweep
          with `batch_size=1`.

        Raises:
          ValueError: for `steps` that is not an int of at least 1, or a `start` without its state.
        """
        if not is_int(steps) or steps < 1:
            raise ValueError(
                f"steps must be a whole number of at least 1, got {steps!r}. Pass steps=100."
            )
        if state is None:
            if is_int(start) and start:
                raise ValueError(
                    f"start must come with the state after that step, got start={start} and "
                    "state=None. Pass state=..., or start=0."
                )
            state = self.init(hp, jax.random.fold_in(key, 0), *args)
        if callable(batches):
            if not is_int(start):
                raise ValueError(
                    f"start must be an int if batches is a function, got {start!r}. Pass "
                    "start=100, or batches as stacked arrays."
                )
            batches = stacked_batches(batches, start, start + steps)

        def scan_step(state: State, inputs: tuple[jax.Array, PyTree]) -> tuple[State, Metrics]:
            t, batch = inputs
            batch_args = () if batches is None else (batch,)
            state, metrics = self.step(hp, state, jax.random.fold_in(key, t), *batch_args, *args)
            return strong(state), metrics

        # int32, as in a sweep, so that `start` needs no promotion under x64.
        numbers = jnp.asarray(start, jnp.int32) + jnp.arange(1, steps + 1, dtype=jnp.int32)
        return jax.lax.scan(scan_step, strong(state), (numbers, batches))


def stacked_batches(batches: Callable[[int], PyTree], start: int, stop: int) -> PyTree:
    """Return the batches of the steps in (start, stop], stacked along a new first axis."""
    # `batches` may write each batch into the same buffer, so each leaf is copied.
    each = [jax.tree.map(np.array, batches(t)) for t in range(start + 1, stop + 1)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


def evaluation_key(key: jax.Array, t: int | jax.Array) -> jax.Array:
    """Return the key that `evaluate` gets after step t."""
    return jax.random.fold_in(jax.random.fold_in(key, t), 1)


def strong(state: State) -> State:
    """Return a state with Python numbers and weakly typed arrays as arrays of their dtype.

    Next to a bfloat16 array, a weakly typed 1.0 would become bfloat16 in a single scan. In
    segments, the value would come back from the host as float32, and the step would fail.
    """

    def leaf(x: jax.Array | np.ndarray | complex) -> jax.Array:
        if isinstance(x, jax.Array):
            is_weak = getattr(x, "weak_type", False)  # a PRNG key has no such attribute
            return jax.lax.convert_element_type(x, x.dtype) if is_weak else x
        return jnp.asarray(x, jnp.result_type(x))

    return jax.tree.map(leaf, state)
