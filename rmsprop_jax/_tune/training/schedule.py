"""How a trial runs in segments: `WholeRun` for a function, `Stepwise` for a `Training`.

The two kinds of `train` differ only in their schedule: the ends of segments, the series that a
trial records, the columns that a segment fills, and the kernels that run. A function has one
segment of one step.
"""

import dataclasses
import functools
from typing import Any, Protocol, TypeAlias, TypeVar

import jax
import numpy as np

from rmsprop_jax._tune.training.checks import Metrics
from rmsprop_jax._tune.training.trace import Traces

Kernel_co = TypeVar("Kernel_co", covariant=True)


class KernelBuilder(Protocol[Kernel_co]):
    """The maker of a static group's kernels (`compile.kernels.GroupKernels`)."""

    def whole_run(self) -> Kernel_co: ...
    def init(self) -> Kernel_co: ...
    def segment(self, length: int) -> Kernel_co: ...
    def evaluate(self) -> Kernel_co | None: ...


@dataclasses.dataclass(frozen=True)
class WholeRun:
    """The schedule of a function: one segment runs the whole trial."""

    end = 1
    """The last step of a trial."""
    longest = 1
    """The number of steps of the longest segment."""
    evaluation_steps = np.ones(1, int)
    """The steps at which a segment ends."""
    rungs = ()
    """The steps at which a scheduler decides, before the end."""
    scheduler = None
    """The settings of the scheduler (`schedulers.settings_of`); None without one."""
    unit = "trial"
    """The unit of the progress bar."""
    is_reported = False
    """Whether the objective is reported to a study at each evaluation step."""
    stored_progress = ()
    """The arrays of a round file about the progress of its trials; none for a function, whose
    trials are complete in each file."""

    def next_stop(self, step: int) -> int:
        """Return the end of the segment that begins after `step`."""
        return 1

    def series(self, traces: Traces) -> Metrics:
        """Return all metrics of a trial as abstract arrays, of rank 1 for a series."""
        return traces.metrics

    def recorded_steps(self, name: str, length: int, every: int) -> np.ndarray:
        """Return the steps of a series, counted from 1, at which its values are recorded."""
        return np.unique(np.append(np.arange(every, length + 1, every), length))

    def reach(self, length: Any, step: Any) -> Any:
        """Return the last step of a series of this length after `step` steps of its trial."""
        return length * np.minimum(step, 1)

    def columns_of(self, recorded: np.ndarray, start: int) -> np.ndarray | slice:
        """Return the columns of a segment's values that belong to these recorded steps.

        The kernel of a function returns the recorded values only.
        """
        return slice(None)

    def newest_column(self, start: int, stop: int) -> int:
        """Return the column of a segment's value at its last step."""
        return -1

    def kernels(self, builder: KernelBuilder[Kernel_co]) -> dict[str, Kernel_co]:
        """Return the kernels that run, by their names in `GroupPrograms`."""
        return {"segment": builder.whole_run()}

    def encode(self) -> dict[str, Any] | None:
        """Return the schedule as JSON for a manifest; None for a function."""
        return None


@dataclasses.dataclass(frozen=True)
class Stepwise:
    """The schedule of a `Training`: segments of steps, each followed by an evaluation.

    Args:
      steps: the number of steps of each trial.
      evaluate_every: the steps between two evaluations.
      rungs: the steps at which a scheduler decides, before the end, in order.
      scheduler: the settings of the scheduler (`schedulers.settings_of`); None without one.
      evaluations: the abstract metrics of `evaluate`.
    """

    steps: int
    evaluate_every: int
    rungs: tuple[int, ...]
    scheduler: dict[str, Any] | None
    evaluations: Metrics

    unit = "step"
    is_reported = True
    stored_progress = ("start", "steps_completed", "steps_asked", "pruned", "newest")

    @property
    def end(self) -> int:
        return self.steps

    @functools.cached_property
    def evaluation_steps(self) -> np.ndarray:
        regular = np.arange(self.evaluate_every, self.steps, self.evaluate_every)
        found = np.unique(np.concatenate([regular, self.rungs, [self.steps]]).astype(int))
        found.flags.writeable = False
        return found

    @property
    def longest(self) -> int:
        return int(np.diff(self.evaluation_steps, prepend=0).max())

    def next_stop(self, step: int) -> int:
        stops = self.evaluation_steps
        return int(stops[np.searchsorted(stops, step, side="right")])

    def series(self, traces: Traces) -> Metrics:
        over = lambda metric, n: jax.ShapeDtypeStruct((n,), metric.dtype)
        evaluations = len(self.evaluation_steps)
        of_steps = {name: over(m, self.steps) for name, m in traces.metrics.items()}
        return of_steps | {name: over(m, evaluations) for name, m in traces.evaluations.items()}

    def recorded_steps(self, name: str, length: int, every: int) -> np.ndarray:
        if name in self.evaluations:
            return self.evaluation_steps
        return WholeRun().recorded_steps(name, length, every)

    def reach(self, length: Any, step: Any) -> Any:
        return step

    def columns_of(self, recorded: np.ndarray, start: int) -> np.ndarray | slice:
        return recorded - start - 1

    def newest_column(self, start: int, stop: int) -> int:
        return stop - start - 1

    def kernels(self, builder: KernelBuilder[Kernel_co]) -> dict[str, Kernel_co]:
        evaluate = builder.evaluate()
        evaluation = {} if evaluate is None else {"evaluate": evaluate}
        return {"init": builder.init(), "segment": builder.segment(self.longest)} | evaluation

    def encode(self) -> dict[str, Any] | None:
        evaluations = [[name, str(m.dtype)] for name, m in self.evaluations.items()]
        return {
            "steps": self.steps,
            "evaluate_every": self.evaluate_every,
            "rungs": list(self.rungs),
            "scheduler": self.scheduler,
            "evaluations": evaluations,
        }


Schedule: TypeAlias = WholeRun | Stepwise


def decoded_schedule(training: dict[str, Any] | None) -> Schedule:
    """Return the schedule in a manifest, the inverse of `encode`."""
    if training is None:
        return WholeRun()
    evaluations = {n: jax.ShapeDtypeStruct((), np.dtype(d)) for n, d in training["evaluations"]}
    steps, every, rungs = (training[name] for name in ("steps", "evaluate_every", "rungs"))
    return Stepwise(steps, every, tuple(rungs), training["scheduler"], evaluations)
