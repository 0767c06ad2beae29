"""The request of a call: an `Experiment`, with which `sweep`, `search.optimize`, and AOT begin."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Collection, Generator, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rmsprop_jax._tune.agreement import compared_arguments, described, refuse_disagreement
from rmsprop_jax._tune.compile.batched_random_numbers import fitting_batch_size
from rmsprop_jax._tune.compile.compiled import CompiledKernel
from rmsprop_jax._tune.compile.group_compiler import GroupCompiler, GroupPrograms, compile_ahead
from rmsprop_jax._tune.compile.kernels import GroupKernels
from rmsprop_jax._tune.compile.layout import DeviceLayout
from rmsprop_jax._tune.experiment_checks import (
    check_population,
    check_reads,
    check_same_metrics,
    checked_keep_states,
    checked_record_every,
    note_idle_cores,
    refuse_callbacks,
    warn_of_traces,
    warn_of_whole_leaves,
)
from rmsprop_jax._tune.experiment_spec import ExperimentSpec
from rmsprop_jax._tune.options import Options
from rmsprop_jax._tune.results.retrain import Retrainer
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.run.data import BatchReader
from rmsprop_jax._tune.schedulers import settings_of
from rmsprop_jax._tune.space.points import Points
from rmsprop_jax._tune.space.static_groups import StaticGroup, group_points, naming
from rmsprop_jax._tune.training.checks import Metrics
from rmsprop_jax._tune.training.fingerprint import Fingerprint
from rmsprop_jax._tune.training.jaxprs import equations
from rmsprop_jax._tune.training.schedule import Schedule, Stepwise, WholeRun
from rmsprop_jax._tune.training.state_spec import StateSpec
from rmsprop_jax._tune.training.trace import Traces, trace_train, trace_training
from rmsprop_jax._tune.training.training import Training
from rmsprop_jax._tune.trial_mesh import Placement
from rmsprop_jax._tune.trials.objective import ObjectiveSpec, checked_objective
from rmsprop_jax._tune.warn import warn_caller

Trace = Callable[[StaticGroup, Points], Traces]


class Compiled(NamedTuple):
    """A static group that is ready to run."""

    kernels: GroupKernels
    programs: GroupPrograms
    seconds: float
    """The seconds that the caller waited for the group."""


class Examples(NamedTuple):
    """Example points of a search, whose points come later from its study."""

    points: Points
    is_complete: bool
    """Whether every static group has an example. If not, one group that can be traced is enough."""
    scheduler: dict[str, Any]
    """The settings of the search, as `schedulers.settings_of` returns those of a scheduler."""


class Experiment:
    """The trials of a call: points in static groups, traced functions, metrics, and a schedule.

    Make it with `prepare`. A search adds static groups while it runs (`group_for`).

    Attributes:
      options: the arguments of the call.
      cluster: the processes and devices that run the trials.
      spec: the part of the experiment that a folder holds.
      traces: the traced functions of each static group.
      objectives: the objectives; more than one for a study with several directions.
      data: the reader of `batches`; None without `batches`.
      batch_size: the number of trials that share a `vmap`, or "auto".
      keep_states: the number of best points whose final states are kept, or "all".
    """

    def __init__(
        self,
        options: Options,
        cluster: Cluster,
        spec: ExperimentSpec,
        traces: list[Traces],
        trace: Trace,
        data: BatchReader | None,
        group_numbers: dict[Hashable, int | Exception],
        static: Collection[str],
        placement: Placement,
    ):
        self._placement = placement
        self.options, self.cluster, self.spec, self.traces = options, cluster, spec, traces
        self._trace, self.data = trace, data
        self.batch_size: int | str = options.batch_size
        if options.executor is not None and self.batch_size == "auto":
            self.batch_size = 1  # the memory of the workers is unknown
        self.keep_states: int | str = 0
        self._groups, self._static = group_numbers, static
        self._placed_args: Any = None
        several = isinstance(options.mode, tuple)  # of a study with several directions
        names: Any = options.objective if several else (options.objective,)
        modes = options.mode if several else (options.mode,)
        self.objectives = [
            checked_objective(name, mode, spec) for name, mode in zip(names, modes, strict=True)
        ]

    @classmethod
    def prepare(
        cls, options: Options, cluster: Cluster, caller: str, examples: Examples | None = None
    ) -> "Experiment":
        """Trace every static group, and check the metrics and hyperparameters of the trials.

        Args:
          options: the arguments of the call, with `train` and `points`.
          cluster: the processes and devices that run the trials.
          caller: the name of the function that a user called, for errors.
          examples: the example points of a search, which replace `options.points`.

        Raises:
          ValueError: for functions, points, or metrics that a sweep cannot run.
        """
        points, data = examples.points if examples else options.points, None
        is_sample = examples is not None and not examples.is_complete
        groups = group_points(points)
        arg_specs = cluster.shardings_of("args", options.args)
        placement = Placement(cluster.trial_mesh, arg_specs)
        make_schedule: Callable[[Metrics], Schedule]
        if isinstance(options.train, Training):
            training, (end, every, rungs) = options.train, options.schedule_of(caller)
            settings = examples.scheduler if examples else _settings_of(options)
            if options.batches is not None:
                data = BatchReader(options.batches, cluster, 1, options.batch_sharding)
                placement = placement._replace(batch=data.specs)
            batch = data.abstract if data else None
            trace = lambda group, points: trace_training(
                training, group, points, options.args, batch, placement
            )
            make_schedule = lambda metrics: Stepwise(end, every, rungs, settings, metrics)
        else:
            options.refuse_stepwise()
            trace = lambda group, points: trace_train(
                options.train, group, points, options.args, placement
            )
            make_schedule = lambda metrics: WholeRun()
        traced, failures = _traced(groups, points, trace, options.catch, is_sample)
        groups, traces = [group for group, _ in traced], [one for _, one in traced]
        check_same_metrics(groups, traces, points)
        if not is_sample and not failures:
            check_reads(traces, points)
        check_population(options.scheduler, groups, traces)
        schedule = make_schedule(traces[0].evaluations)
        metrics = [schedule.series(one) for one in traces]
        record_every = checked_record_every(
            options.record_every, metrics, options.objective, schedule, traces[0].evaluations
        )
        is_hashed = options.path is not None or cluster.count > 1
        args = cluster.addressable(options.args)
        fingerprint = Fingerprint(groups, traces, args, needed=is_hashed)
        static = points.static
        known = {group.key(points): i for i, group in enumerate(groups)}
        count = len(points)
        if examples:
            points, count = Points.of([], ()), options.n_trials
            groups = [group._replace(points=[]) for group in groups]
        spec = ExperimentSpec(
            points, options.seeds, record_every, groups, metrics, fingerprint, schedule
        )
        numbers = failures | known
        made = cls(options, cluster, spec, traces, trace, data, numbers, static, placement)
        if made.state_specs:
            made.keep_states = checked_keep_states(options.keep_states, count)
        warn_of_traces(traces, options.seeds)
        if options.executor is not None:
            refuse_callbacks(traces)
        return made

    def fit_batch_size(self, groups: Sequence[int]) -> None:
        """Set an automatic batch size to 1 if a larger one would change random numbers.

        Args:
          groups: the numbers of the static groups to check.

        Raises:
          ValueError: if an explicit batch size would change random numbers.
        """
        kernels = [self.kernels(group) for group in groups]
        self.batch_size = fitting_batch_size(
            self.batch_size, kernels, self.args_on_devices, self.cluster
        )

    def refuse_uneven_permutes(self) -> None:
        """Compile each static group that could hang on a mesh of CPU devices.

        The compilation raises ValueError for a program that could hang. All other static groups
        compile later, while trials run.
        """
        if self.cluster.trial_mesh is None or self.cluster.devices[0].platform != "cpu":
            return
        for group, traces in enumerate(self.traces):
            each = (equations(piece.jaxpr) for piece in traces.pieces.values())
            names = {equation.primitive.name for one in each for equation in one}
            if names & {"cond", "while"}:
                trials = len(self.spec.groups[group].points) * len(self.spec.seeds)
                self.compiler(group, trials).compile()

    @property
    def objective(self) -> ObjectiveSpec:
        """The objective that ranks trials.

        A study with several directions has several objectives. Then a trial has the first one, if
        all of them are finite.
        """
        if len(self.objectives) == 1:
            return self.objectives[0]
        return ObjectiveSpec(
            tuple(one.objective for one in self.objectives),  # type: ignore[misc]
            self.objectives[0].mode,
        )

    @property
    def state_specs(self) -> list[StateSpec]:
        """The structure of the state of each static group; empty for functions."""
        return [one.state for one in self.traces if one.state is not None]

    @property
    def init_only(self) -> list[set[str]]:
        """The hyperparameters that only `init` reads, for each static group."""
        after = lambda one: (names for piece, names in one.reads.items() if piece != "init")
        return [one.reads["init"].difference(*after(one)) for one in self.traces]

    def result_spec(
        self, points: Sequence[Mapping[str, Any]], groups: np.ndarray
    ) -> tuple[ExperimentSpec, list[int]]:
        """Return the spec of these points, and the numbers of the static groups that it has.

        Args:
          points: the points that the call asked for.
          groups: int array: the number of the static group of each point.
        """
        if len(self.spec.points):
            return self.spec, list(range(len(self.traces)))
        used = list(dict.fromkeys(groups.tolist())) or list(range(len(self.traces)))
        of_used = [
            self.spec.groups[i]._replace(points=np.flatnonzero(groups == i).tolist()) for i in used
        ]
        traces = [self.traces[i] for i in used]
        spec = dataclasses.replace(
            self.spec,
            points=Points.of(points, self._static).drawn("search"),
            groups=of_used,
            metrics=[self.spec.metrics[i] for i in used],
            fingerprint=Fingerprint(of_used, traces, self.options.args, needed=False),
        )
        return spec, used

    def retrainer(self, groups: Sequence[StaticGroup]) -> Retrainer:
        """Return the object that trains a trial of these groups again."""
        device = self.cluster.mesh.local_devices[0]
        return Retrainer(self.options.train, groups, device, self.cluster.trial_mesh)

    # Static groups.

    def group_for(self, point: Mapping[str, Any]) -> int:
        """Return the number of a point's static group. A new group is traced.

        Raises:
          Exception: the error of the group's tracing, again for each of its points.
        """
        points = Points.of([point], self._static)
        (group,) = group_points(points)
        key = group.key(points)
        if key not in self._groups:
            try:
                self._groups[key] = self._add_group(group, points)
            except Exception as error:  # raised again for each point of the group
                self._groups[key] = error
        found = self._groups[key]
        if isinstance(found, Exception):
            raise found
        return found

    def _add_group(self, group: StaticGroup, points: Points) -> int:
        """Trace a new static group, and return its number."""
        traces = self._trace(group, points)
        metrics, first = self.spec.schedule.series(traces), self.spec.metrics[0]
        if metrics != first:  # the arrays of the first trials exist already
            raise ValueError(
                "metrics must have the same names, shapes, and dtypes in all static groups of a "
                f"search, got {_listed(metrics)} with {group.static} and {_listed(first)} with "
                f"{self.spec.groups[0].static}. Return the same metrics for all."
            )
        self.traces.append(traces)
        self.spec.groups.append(group._replace(points=[]))
        self.spec.metrics.append(metrics)
        self.fit_batch_size([len(self.traces) - 1])
        return len(self.traces) - 1

    # Compiled groups.

    def kernels(self, group: int) -> GroupKernels:
        data = self.data.abstract if self.data else None
        return GroupKernels(self.traces[group], self.spec, group, data, self._placement)

    def compiler(self, group: int, trials: int, most: int | None = None) -> GroupCompiler:
        """Return the compiler of a static group.

        Args:
          group: the number of the static group.
          trials: the number of trials of this group that may share a call.
          most: a limit of the batch size; None for no limit.
        """
        kernels, args = self.kernels(group), self.args_on_devices()
        return GroupCompiler(kernels, args, self.cluster, self.batch_size, trials, most)

    def args_on_devices(self) -> Any:
        """Return the sweep's `args`, placed on the devices by the first call."""
        if self._placed_args is None:
            self._placed_args = self.cluster.place(self.options.args, self._placement.args)
        return self._placed_args

    def shard_states(self) -> None:
        """Find how the leaves of a trial's state are sharded over its devices, on a mesh.

        The compiler chooses the shardings of the states that leave `init`. The states that enter
        and leave a segment have the same shardings. This method compiles `init` for one trial on
        each submesh, because the layout of a wave depends on the bytes of a trial on each device.

        Warns:
          UserWarning: for a leaf that is not sharded, and has the shape of one that is.
        """
        mesh = self.cluster.trial_mesh
        if mesh is None or not self.state_specs:
            return
        layout = DeviceLayout(self.cluster.submeshes, 1, 1, is_lockstep=True)
        for group, traces in enumerate(self.traces):
            kernel, state = self.kernels(group).init(), traces.state
            assert state is not None
            with naming(self.spec.groups[group]):
                program = CompiledKernel(kernel, self.args_on_devices(), layout, self.cluster)
                placed, _ = program.executable.output_shardings
            specs = tuple(map(mesh.own_spec, placed))
            state = state._replace(shardings=specs, shards=tuple(map(mesh.shards, specs)))
            self.traces[group] = traces._replace(state=state)
        warn_of_whole_leaves(self.state_specs, mesh)

    def compile(self, trials: dict[int, int], most: int | None = None) -> Generator[Compiled]:
        """Yield compiled static groups in order. Later ones compile in threads meanwhile.

        Args:
          trials: the number of trials that are left to run, by static group.
          most: a limit of the batch size; None for no limit.
        """
        compilers = [self.compiler(group, count, most) for group, count in trials.items()]
        with contextlib.closing(compile_ahead(compilers, self.cluster.machine.clock)) as ahead:
            for compiler, (programs, seconds) in zip(compilers, ahead, strict=True):
                yield Compiled(compiler.kernels, programs, seconds)

    # Several processes.

    def refuse_disagreement(self) -> None:
        """Raise ValueError if the processes of a cluster pass different arguments."""
        if self.cluster.count == 1:
            return
        has_callback = self.options.callback is not None
        refuse_disagreement(self.cluster, self.decisive(), has_callback)

    def decisive(self) -> dict[str, Any]:
        """Return the JSON that stands for each argument on which processes must agree.

        For an argument without a rule below, it is the value itself.
        """
        options, spec, hashed = self.options, self.spec, self.spec.fingerprint
        training, objective = spec.schedule.encode() or {}, self.objective
        metrics = {name: str(spec.dtype(name)) for name in sorted(spec.metrics[0])}
        is_metric = isinstance(objective.objective, str)
        rules = {
            "train": [hashed.programs, hashed.constants, metrics, jax.__version__],
            "points": [described(list(spec.points)), sorted(spec.points.static)],
            "objective": objective.name if is_metric else f"function {objective.name}",
            "args": hashed.args,
            "devices": [device.id for device in self.cluster.devices],
            "mesh": self.cluster.trial_mesh and str(self.cluster.trial_mesh.mesh),
            "path": options.path and os.fspath(options.path),
            "record_every": spec.record_every,
            "steps": training.get("steps"),
            "evaluate_every": training.get("evaluate_every"),
            "scheduler": training and [training["scheduler"], *training["rungs"]],
            "keep_states": self.keep_states,
            "batches": self.data and [self.data.shapes, self.data.checksum],
            "batch_sharding": self.data and list(map(str, jax.tree.leaves(self.data.specs))),
            "checkpoint_seconds": float(options.checkpoint_seconds),
        }
        return {
            name: rules[name] if name in rules else getattr(options, name)
            for name in compared_arguments()
        }

    def note_idle_cores(self) -> None:
        """Print how to use all cores, if the call passes no devices and shows a progress bar."""
        options = self.options
        is_default = options.devices is None and options.mesh is None and not options.executor
        if options.progress and self.cluster.is_leader and is_default:
            note_idle_cores(self.cluster)


def _traced(
    groups: Sequence[StaticGroup],
    points: Points,
    trace: Trace,
    catch: tuple[type[Exception], ...],
    is_sample: bool,
) -> tuple[list[tuple[StaticGroup, Traces]], dict[Hashable, int | Exception]]:
    """Trace static groups.

    Args:
      groups: the static groups.
      points: their points.
      trace: the function that traces a group.
      catch: the exceptions that do not end the call.
      is_sample: whether to stop after the first group that can be traced.

    Returns:
      The groups that were traced, and the caught exceptions by the keys of their groups.

    Raises:
      Exception: the first caught exception, if no group can be traced.
    """
    traced: list[tuple[StaticGroup, Traces]] = []
    failures: dict[Hashable, int | Exception] = {}
    for group in groups:
        if traced and is_sample:
            break
        try:
            traced.append((group, trace(group, points)))
        except catch as error:
            failures[group.key(points)] = error
    if not traced:
        raise next(x for x in failures.values() if isinstance(x, Exception))
    return traced, failures


def _settings_of(options: Options) -> dict[str, Any] | None:
    """Return the scheduler's settings; warn if a folder cannot compare all of them."""
    if (scheduler := options.scheduler) is None:
        return None
    settings, is_all = settings_of(scheduler)
    if options.path is not None and not is_all:
        warn_caller(
            f"the settings of the scheduler {scheduler!r} cannot be compared, so that a later call "
            "with this path may resume with other settings, without an error. Make the scheduler a "
            "dataclass of numbers and strings, or give it a method fingerprint() -> str."
        )
    return settings


def _listed(metrics: Metrics) -> str:
    return ", ".join(f"{n} {m.dtype}{list(m.shape)}" for n, m in metrics.items())
