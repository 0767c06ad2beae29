"""A scheduler's decisions: asked once, checked, written, told to every process, replayed."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from rmsprop_jax._tune.experiment_spec import ExperimentSpec
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.schedulers import Decision, Scheduler, SchedulerView
from rmsprop_jax._tune.space.values import is_int, is_real
from rmsprop_jax._tune.trials.data import PRUNED, PRUNED_AS_FAILED
from rmsprop_jax._tune.warn import warn_caller


class AppliedDecision(NamedTuple):
    """What follows from a decision."""

    step: int
    pruned: dict[int, int]
    """For each point that ends at the step, why: `PRUNED` or `PRUNED_AS_FAILED`."""
    copies: dict[int, tuple[int, dict[str, float]]]
    """For each point that copies, which point, and all numbers with which it goes on."""
    objective: list[list[float | str]]
    """What the scheduler saw of each point and seed, for people to read; "nan" for none."""

    def encode(self) -> dict[str, Any]:
        """Return the decision as JSON."""
        return {
            "step": self.step,
            "objective": self.objective,
            "prune": {str(point): reason for point, reason in self.pruned.items()},
            "copy": {str(point): list(copy) for point, copy in self.copies.items()},
        }

    @classmethod
    def decode(cls, stored: dict[str, Any]) -> "AppliedDecision":
        pruned = {int(point): reason for point, reason in stored["prune"].items()}
        copies = {int(point): (copy[0], copy[1]) for point, copy in stored["copy"].items()}
        return cls(stored["step"], pruned, copies, stored["objective"])


class DecisionLog:
    """The decisions of a sweep's scheduler, earlier ones and new ones.

    Args:
      scheduler: decides.
      spec: the experiment.
      objective: the name of the objective.
      init_only: for each static group the hyperparameters that only `init` reads.
      stored: the decisions that a folder has, as JSON, on the leader.
      write: writes a decision, as JSON; None without a folder.
      cluster: whose leader asks the scheduler.

    Attributes:
      decisions: all so far, in order.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        spec: ExperimentSpec,
        objective: str,
        init_only: Sequence[set[str]],
        stored: Sequence[dict[str, Any]],
        write: Callable[[dict[str, Any]], None] | None,
        cluster: Cluster,
    ):
        self._scheduler, self._spec, self._objective = scheduler, spec, objective
        self._init_only = init_only
        self._write, self._cluster, self._has_warned = write, cluster, False
        told = cluster.tell("decisions", list(stored))
        self.decisions = list(map(AppliedDecision.decode, told))

    def find(self, step: int) -> AppliedDecision | None:
        """Return an earlier decision."""
        return next((one for one in self.decisions if one.step == step), None)

    def ask(self, step: int, view: Callable[[], SchedulerView]) -> AppliedDecision:
        """Ask the scheduler, on the leader; return the checked decision on every process.

        Args:
          step: the rung.
          view: returns what the scheduler sees; called on the leader.
        """

        def ask() -> dict[str, Any]:
            seen = view()
            if not self._has_warned and not seen.has_objective:
                self._has_warned = True
                warn_caller(
                    f"the objective {self._objective!r} is not finite for any point after step "
                    f"{step}, so that SuccessiveHalving prunes none there and "
                    "PopulationBasedTraining copies none. If it becomes finite later, put the "
                    "first rung where it is."
                )
            answer = self._scheduler.decide(step, seen)
            return _Answer(self._scheduler, self._spec, self._init_only, step, seen).check(answer)

        return AppliedDecision.decode(
            self._cluster.tell("a decision", self._cluster.on_leader(ask))
        )

    def write(self, decision: AppliedDecision) -> None:
        """Write a new decision, before any trial follows it."""
        write = self._write
        self._cluster.on_leader(lambda: write and write(decision.encode()))
        self.decisions.append(decision)


class _Answer:
    """The check of a scheduler's answer; ValueError for one that cannot be followed."""

    def __init__(
        self,
        scheduler: Scheduler,
        spec: ExperimentSpec,
        init_only: Sequence[set[str]],
        step: int,
        view: SchedulerView,
    ):
        self._scheduler, self._points, self._init_only = scheduler, spec.points, init_only
        self._step, self._view = step, view

    def _refuse(self, what: str) -> NoReturn:
        raise ValueError(
            f"the scheduler {self._scheduler!r} answered, at step {self._step}, {what}"
        )

    def _is_active(self, point: Any) -> bool:
        known = range(len(self._view.points))
        return is_int(point) and point in known and bool(self._view.active[point])

    def check(self, answer: Any) -> dict[str, Any]:
        """Return what follows from the answer, as JSON."""
        answer, view = Decision() if answer is None else answer, self._view
        if not isinstance(answer, Decision):
            self._refuse(f"{answer!r}, which must be a Decision(prune=..., copy=...) or None.")
        pruned = self._pruned(answer)
        if not isinstance(answer.copy, Mapping):
            self._refuse(
                f"copy={answer.copy!r}, which must be a dict from points to (donor, numbers)."
            )
        copies = {
            int(point): self._copy(point, copy, pruned, answer)
            for point, copy in answer.copy.items()
        }
        is_finite = lambda point: np.isfinite(view.objective[point]).all()
        reasons = {p: PRUNED if is_finite(p) else PRUNED_AS_FAILED for p in sorted(pruned)}
        plain = lambda x: x if math.isfinite(x) else str(x)
        objective = [list(map(plain, row)) for row in view.objective.tolist()]
        return AppliedDecision(self._step, reasons, copies, objective).encode()

    def _pruned(self, answer: Decision) -> set[int]:
        prune = answer.prune
        if not isinstance(prune, Sequence | np.ndarray) or isinstance(prune, str):
            self._refuse(f"prune={prune!r}, which must be a list of points.")
        if others := [x for x in prune if not self._is_active(x)]:
            self._refuse(f"prune with {others}, which must be numbers of points that still run.")
        if len(set(prune)) == self._view.active.sum():
            self._refuse("that all points are pruned. At least one must go on.")
        return {int(x) for x in prune}

    def _copy(
        self, point: Any, copy: Any, pruned: set[int], answer: Decision
    ) -> tuple[int, dict[str, float]]:
        """Return the donor of a point, and all numbers with which the point goes on."""
        if not isinstance(copy, tuple | list) or len(copy) != 2:
            self._refuse(f"copy with {point!r}: {copy!r}, which must be (donor, numbers).")
        donor, new = copy
        go_on = self._is_active(point) and self._is_active(donor)
        if not go_on or {point, donor} & pruned:
            self._refuse(f"that {point!r} copies {donor!r}, which must be two points that go on.")
        if donor in answer.copy:
            self._refuse(f"that {donor} gives and takes: a donor must not copy another.")
        if self._view.group[point] != self._view.group[donor]:
            self._refuse(f"that {point} copies {donor}, a point of another static group.")
        return int(donor), self._numbers(int(point), int(donor), new)

    def _numbers(self, point: int, donor: int, new: Any) -> dict[str, float]:
        points, view = self._points, self._view
        traced = list(points.traced(point))
        if not isinstance(new, Mapping) or set(new) - set(traced):
            self._refuse(
                f"the numbers {new!r} for {point}, which must be a dict of some of {traced}."
            )
        if bad := {n: x for n, x in new.items() if not is_real(x) or not math.isfinite(x)}:
            self._refuse(f"{bad} for {point}, which must be finite numbers.")
        is_int_axis = lambda name: points.dtype(name).kind == "i"
        if bad := {n: x for n, x in new.items() if is_int_axis(n) and not float(x).is_integer()}:
            name, x = next(iter(bad.items()))
            self._refuse(
                f"{bad} for {point}, but the axis {name!r} has ints, so that the numbers must be "
                f"whole. Write its values as floats, such as {name}=[{float(x)}]."
            )
        of_donor = self._init_only[view.group[point]]
        present = lambda name: view.points[donor if name in of_donor else point][name]
        typed = lambda name, x: int(x) if is_int_axis(name) else float(x)
        return {name: typed(name, new.get(name, present(name))) for name in traced}
