"""Train a trial again as the sweep trained it: on its device, under its settings of JAX."""

import contextlib
import functools
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from rmsprop_jax._tune.experiment_spec import ExperimentSpec
from rmsprop_jax._tune.jax_settings import entered, own_settings, present_settings
from rmsprop_jax._tune.results.lineage import Stretch
from rmsprop_jax._tune.space.seeds import checked_seeds, key_of
from rmsprop_jax._tune.space.static_groups import StaticGroup
from rmsprop_jax._tune.training.checks import check_call, check_calls
from rmsprop_jax._tune.training.training import Train, Training, evaluation_key, stacked_batches
from rmsprop_jax._tune.trial_mesh import TrialMesh, sharding_of, submesh_of

Numbers = dict[str, np.ndarray]


class Retrainer:
    """The training of single trials of a sweep. Each static group compiles once.

    It reads JAX's settings when it is made. Make it under the settings of the sweep.

    Args:
      train: the function or the `Training` of the sweep.
      groups: the sweep's static groups.
      device: one of the sweep's devices, a `jax.Device` (which type checkers refuse as a type).
      mesh: the mesh of the sweep, or None.
    """

    def __init__(
        self,
        train: Train | Training,
        groups: Sequence[StaticGroup],
        device: Any,
        mesh: TrialMesh | None,
    ):
        self._train, self._groups, self._device, self._mesh = train, groups, device, mesh
        self._settings = present_settings()
        self._programs: dict[int, Callable[..., Any]] = {}
        self._evaluations: dict[int, Callable[..., Any]] = {}

    @contextlib.contextmanager
    def settings(self, submesh: Mesh | None) -> Generator[None]:
        """Enter the settings of the sweep. A failed trial raises no error, as in the sweep.

        Args:
          submesh: the devices of the trial; None for the sweep's device.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(own_settings("retrain"))
            stack.enter_context(entered(self._settings))
            if submesh is None:
                stack.enter_context(jax.default_device(self._device))
            else:
                stack.enter_context(jax.set_mesh(submesh))
            stack.enter_context(jax.debug_nans(False))
            stack.enter_context(jax.debug_infs(False))
            yield

    def run(
        self,
        spec: ExperimentSpec,
        point: int,
        way: Callable[[], Sequence[Stretch]],
        seed: int | None,
        args: tuple[Any, ...],
        batches: Callable[[int], Any] | None,
        mesh: Mesh | None = None,
    ) -> Any:
        """Train a point again.

        Args:
          spec: the experiment of the sweep.
          point: the index of the point.
          way: a function that returns the stretches to the last step of a `Training`.
          seed: the seed of the key; None for the first of the sweep's.
          args: the `args` of the sweep, pytrees of arrays.
          batches: the `batches` of the sweep; a batch is a pytree of arrays.
          mesh: a mesh with the axes of a trial; None for the mesh of the sweep, if it has one.

        Returns:
          The metrics of a function; the last state of a `Training`, which is a user's pytree, and
          the metrics of every step.
        """
        group = int(spec.group_of()[point])
        submesh = self._mesh.submesh() if self._mesh else None
        submesh = submesh if mesh is None else submesh_of(mesh)
        with self.settings(submesh):
            if isinstance(self._train, Training):
                check_calls(self._train, () if batches is None else (None,), args)
            else:
                check_call(self._train, "train", "train(hp, key, *args)", args)
            args = self._placed(args, submesh)
            (seed,) = spec.seeds[:1] if seed is None else checked_seeds((seed,))
            if not isinstance(self._train, Training):  # it runs as a whole
                numbers = self._arrays(group, spec.points.traced(point))
                return self.run_whole(group, numbers, seed, args)
            parts = [(x.start, x.stop, self._arrays(group, x.numbers)) for x in way()]
            return self.run_steps(group, parts, seed, args, batches)

    def _arrays(self, group: int, numbers: dict[str, float]) -> Numbers:
        dtypes = self._groups[group].dtypes
        return {name: np.asarray(numbers[name], dtype) for name, dtype in dtypes.items()}

    def run_whole(
        self, group: int, numbers: Numbers, seed: int, args: tuple[Any, ...]
    ) -> dict[str, np.ndarray]:
        """Return the metrics of a function, as NumPy arrays.

        Args:
          group: the index of the trial's static group.
          numbers: the traced hyperparameters.
          seed: the seed of the trial's key.
          args: the `args` of the sweep, on the devices.
        """
        train = self._train
        assert not isinstance(train, Training)
        if group not in self._programs:
            static = self._groups[group].static
            self._programs[group] = jax.jit(
                lambda numbers, key, args: train(static | numbers, key, *args)
            )
        return jax.device_get(self._programs[group](numbers, key_of(seed), args))

    def run_steps(
        self,
        group: int,
        path: Sequence[tuple[int, int, Numbers]],
        seed: int,
        args: tuple[Any, ...],
        batches: Callable[[int], Any] | None,
    ) -> tuple[Any, dict[str, np.ndarray]]:
        """Return the last state of a `Training`, as JAX arrays, and the metrics of every step.

        Args:
          group, seed, args: as for `run_whole`.
          path: stretches in order: the step after which each begins, its last step, and its traced
            hyperparameters.
          batches: the `batches` of the sweep, or None.
        """
        training = self._train
        assert isinstance(training, Training)
        run, key = self._program(group), key_of(seed)
        state, parts = None, []
        for start, stop, numbers in path:
            data = None if batches is None else stacked_batches(batches, start, stop)
            # `init` runs before step 1, so that a start of 0 is not traced.
            begin = np.int32(start) if start else None
            state, metrics = run(numbers, key, args, state, begin, data, steps=stop - start)
            parts.append(jax.device_get(metrics))
        series = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
        if training.evaluate is not None:
            evaluate, (_, end, numbers) = self._evaluation(group), path[-1]
            series |= jax.device_get(evaluate(numbers, key, args, state, np.int32(end)))
        return state, series

    def _placed(self, args: tuple[Any, ...], submesh: Mesh | None) -> tuple[Any, ...]:
        """Return the args on the devices of the trial; the caller's may be on others."""
        if submesh is None:
            return jax.device_put(args, self._device)
        place = lambda path, x: jax.device_put(
            x,
            NamedSharding(
                submesh, sharding_of(f"args{jax.tree_util.keystr(path)}", x, submesh.axis_names)
            ),
        )
        return jax.tree_util.tree_map_with_path(place, args)

    def _program(self, group: int) -> Callable[..., Any]:
        if group not in self._programs:
            training, static = self._train, self._groups[group].static
            assert isinstance(training, Training)

            @functools.partial(jax.jit, static_argnames="steps")
            def run(
                numbers: Numbers,
                key: jax.Array,
                args: tuple[Any, ...],
                state: Any,
                start: Any,
                batches: Any,
                *,
                steps: int,
            ) -> Any:
                given = {"state": state, "start": 0 if start is None else start}
                hp = static | numbers
                return training.run(hp, key, *args, steps=steps, batches=batches, **given)

            self._programs[group] = run
        return self._programs[group]

    def _evaluation(self, group: int) -> Callable[..., Any]:
        if group not in self._evaluations:
            training, static = self._train, self._groups[group].static
            assert isinstance(training, Training)
            assert training.evaluate is not None
            evaluate = training.evaluate
            self._evaluations[group] = jax.jit(
                lambda numbers, key, args, state, t: evaluate(
                    static | numbers, state, evaluation_key(key, t), *args
                )
            )
        return self._evaluations[group]
