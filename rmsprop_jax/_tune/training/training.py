"""`Training`: a training in steps, so that it can be seen, stopped, kept, gone on with, changed."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from rmsprop_jax._tune.space.values import is_int

State: TypeAlias = Any
Metrics: TypeAlias = dict[str, jax.Array]
Train: TypeAlias = Callable[..., Metrics]


class Training:
    """A training in steps: what `sweep` can show, stop, keep, go on with and change on the way.

        init(hp, key, *args) -> state
        step(hp, state, key, *args) -> (state, metrics)
        step(hp, state, key, batch, *args) -> (state, metrics)      where sweep gets batches=
        evaluate(hp, state, key, *args) -> metrics

    All three are pure. Steps count from 1. For a trial with the key k, `init` gets `fold_in(k, 0)`,
    step t `fold_in(k, t)`, and `evaluate` after step t `fold_in(fold_in(k, t), 1)`.

    Args:
      init: makes the state: a pytree of arrays, PRNG keys, `None` and Python numbers (which become
        arrays): parameters, optimiser state, an environment, anything that a step changes. A
        function or a string is none: keep `(params, opt_state)` and build the optimiser in `step`.
      step: one step. The state keeps its structure, shapes and dtypes; metrics are a dict of
        scalars. A `while_loop` in it makes the trials that run beside it wait for the slowest.
      evaluate: metrics of other names, a dict of scalars, every `evaluate_every` steps and at the
        end.

    Raises:
      ValueError: for what is no function.

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
                raise ValueError(f"{name} must be a function, got {function!r}.")
        self.init, self.step, self.evaluate = init, step, evaluate

    def run(
        self,
        hp: dict[str, Any],
        key: jax.Array,
        *args: Any,
        steps: int,
        state: State = None,
        start: Any = 0,
        batches: Any = None,
    ) -> tuple[State, Metrics]:
        """Run `steps` steps: one `lax.scan`, to be jitted and differentiated.

        Args:
          hp: a dict of hyperparameters, numbers or traced scalars.
          key: of the trial, a scalar: `jax.random.key(seed)`.
          *args: as `init` and `step` get them.
          steps: how many, at least 1; no traced number.
          state: to go on from; by default that of `init`.
          start: how many steps this state has behind it.
          batches: a function from the step (`start` + 1, …) to a batch, called while JAX traces, or
            a pytree of arrays with a leading axis over the steps.

        Returns:
          The state after the last step, and for each metric an array of shape (steps,). On a CPU,
          for `steps` of at least 2, `jax.jit` of this gives bit for bit what a sweep with a
          `batch_size` of 1 gives.

        Raises:
          ValueError: for `steps` that is no whole number, or a `start` without its state.
        """
        if not is_int(steps) or steps < 1:
            raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}.")
        if state is None:
            if is_int(start) and start:
                raise ValueError(f"start={start} needs the state after that step: state=...")
            state = self.init(hp, jax.random.fold_in(key, 0), *args)
        if callable(batches):
            if not is_int(start):
                raise ValueError("with a function for batches, start must be a number.")
            batches = stacked_batches(batches, start, start + steps)

        def one(state, inputs):
            t, batch = inputs
            given = () if batches is None else (batch,)
            state, metrics = self.step(hp, state, jax.random.fold_in(key, t), *given, *args)
            return strong(state), metrics

        # int32, as in a sweep, so that no promotion is asked of `start` under x64.
        numbers = jnp.asarray(start, jnp.int32) + jnp.arange(1, steps + 1, dtype=jnp.int32)
        return jax.lax.scan(one, strong(state), (numbers, batches))


def stacked_batches(batches: Callable[[int], Any], start: int, stop: int) -> Any:
    """The batches of the steps in (start, stop], each leaf with a leading axis over them."""
    # Copies, because `batches` may write each batch into the same buffer.
    each = [jax.tree.map(np.array, batches(t)) for t in range(start + 1, stop + 1)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


def evaluation_key(key: jax.Array, t: Any) -> jax.Array:
    """What `evaluate` after step t gets."""
    return jax.random.fold_in(jax.random.fold_in(key, t), 1)


def strong(state: State) -> State:
    """Python numbers and weakly typed arrays as arrays of their dtype: a weak 1.0 beside bfloat16
    would pass a scan, and fail from the host."""

    def leaf(x):
        if isinstance(x, jax.Array):
            weak = getattr(x, "weak_type", False)  # a PRNG key has none
            return jax.lax.convert_element_type(x, x.dtype) if weak else x
        return jnp.asarray(x, jnp.result_type(x))

    return jax.tree.map(leaf, state)
