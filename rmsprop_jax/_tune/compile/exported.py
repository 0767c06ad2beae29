"""Programs that travel: a caller exports the kernels of a static group, a worker loads them.

`jax.export` turns the program of one batch of trials into bytes. The worker builds its waves around
the program, for its own devices, as a local sweep builds them around a kernel (`compiled.wave_of`).
Its numbers are therefore bit for bit those of a local sweep with the same batch size.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.export

from rmsprop_jax._tune.compile.kernels import GroupKernels, Inputs, Kernel, stacked
from rmsprop_jax._tune.compile.xla_deadlock import blocking_calls
from rmsprop_jax._tune.space.values import PyTree, is_key
from rmsprop_jax._tune.training.schedule import Schedule

# Both ends have the same version of JAX (`run/worker.py`), so that no custom call can differ.
ANY_CUSTOM_CALL = jax.export.DisabledSafetyCheck.custom_call("ALL")


class ExportedKernel(NamedTuple):
    """The program of one batch of trials, and its abstract arguments."""

    program: bytes
    """The program, as `jax.export` serializes it."""
    inputs: Inputs
    """The abstract inputs of one trial, as `Kernel.inputs`. The data is a list of arrays, or
    None."""
    states: tuple[jax.ShapeDtypeStruct, ...]
    """The abstract leaves of the state of one trial."""
    blocking: dict[str, int]
    """The calls of linear algebra that could block a CPU (`xla_deadlock.blocking_calls`)."""

    def load(self) -> Kernel:
        """Return the kernel that runs this program."""
        program: Any = jax.export.deserialize(bytearray(self.program))

        def call(states: list[Any], inputs: Inputs) -> tuple[list[Any], Any]:
            return program.call(states, tuple(inputs))

        return Kernel(call, self.inputs, self.states, exported=self.blocking)


class ExportedGroup(NamedTuple):
    """The programs of one static group."""

    kernels: dict[str, ExportedKernel]
    """The programs that run, by their names in `GroupPrograms`."""
    batch_size: int
    """The number of trials in a batch."""
    trial_bytes: int
    """The bytes of one trial in a wave."""
    most_trials: int
    """The largest number of trials in a task."""
    schedule: Schedule
    """The steps at which the segments of a trial end."""
    platforms: tuple[str, ...]
    """The platforms that can run the programs, for example ("cpu", "cuda")."""


def export_group(
    kernels: GroupKernels,
    args: PyTree,
    batch_size: int,
    most_trials: int,
    platforms: Sequence[str],
) -> ExportedGroup:
    """Return the programs of a static group, for a worker.

    Args:
      kernels: the kernels of the group.
      args: the sweep's `args` on a device, or abstract.
      batch_size: the number of trials in a batch.
      most_trials: the largest number of trials in a task.
      platforms: the platforms on which the programs must run.
    """
    schedule, trial_bytes = kernels.spec.schedule, kernels.bytes
    export = lambda kernel: _exported(kernel, args, batch_size, platforms)
    each = {name: export(kernel) for name, kernel in kernels.each().items()}
    return ExportedGroup(each, batch_size, trial_bytes, most_trials, schedule, tuple(platforms))


def _exported(
    kernel: Kernel, args: PyTree, batch_size: int, platforms: Sequence[str]
) -> ExportedKernel:
    """Return the program of one batch of a kernel.

    The data and the args enter as lists of plain arrays, so that a worker need not know the classes
    of their trees.
    """
    batch = kernel.batch(batch_size)
    data, of_data = jax.tree.flatten(kernel.inputs.data)
    placed, of_args = jax.tree.flatten(args)
    impls = [jax.random.key_impl(x) if is_key(x) else None for x in placed]

    def call(states: Any, given: tuple[Any, ...]) -> Any:
        inputs = Inputs(*given)
        each = zip(inputs.args, impls, strict=True)
        keyed = [x if impl is None else jax.random.wrap_key_data(x, impl=impl) for x, impl in each]
        args, data = of_args.unflatten(keyed), of_data.unflatten(inputs.data or [])
        return batch(states, inputs._replace(data=data, args=args))

    inputs = kernel.inputs._replace(data=data or None)
    of_batch = inputs._replace(
        trial=stacked(inputs.trial, batch_size),
        start=stacked(inputs.start, batch_size),
        args=jax.eval_shape(lambda: plain_leaves(args)),
    )
    abstract = stacked(list(kernel.states), batch_size), tuple(of_batch)
    jitted = jax.jit(call, keep_unused=True)
    export = jax.export.export(jitted, platforms=platforms, disabled_checks=[ANY_CUSTOM_CALL])
    blocking = blocking_calls(jitted.trace(*abstract).jaxpr)
    program = bytes(export(*abstract).serialize())
    return ExportedKernel(program, inputs, kernel.states, blocking)


def plain_leaves(tree: PyTree) -> list[Any]:
    """Return the leaves of a tree. A PRNG key becomes its data."""
    return [jax.random.key_data(x) if is_key(x) else x for x in jax.tree.leaves(tree)]
