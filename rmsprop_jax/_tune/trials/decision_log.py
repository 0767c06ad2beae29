"""A scheduler's decisions: asked for once, checked, written, sent to every process, replayed.

The order at a rung is in `SynchronousRunner._decide`.
"""

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
    """The effects of a decision."""

    step: int
    """The rung."""
    pruned: dict[int, int]
    """For each point that ends at the rung the reason: `PRUNED` or `PRUNED_AS_FAILED`."""
    copies: dict[int, tuple[int, dict[str, float]]]
    """For each point that copies, its donor, and all traced hyperparameters of the copy."""
    objective: list[list[float | str]]
    """The objective of each point and seed that the scheduler saw, for people who read the file.
    A number that is not finite is a text, such as "nan"."""

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
        """Return the decision that `encode` turned into this JSON."""
        pruned = {int(point): reason for point, reason in stored["prune"].items()}
        copies = {int(point): (copy[0], copy[1]) for point, copy in stored["copy"].items()}
        return cls(stored["step"], pruned, copies, stored["objective"])


class DecisionLog:
    """The decisions of a sweep's scheduler: those of a folder, and those of this call.

    Args:
      scheduler: the scheduler.
      spec: the experiment.
      objective: the name of the objective.
      init_only: for each static group the hyperparameters that only `init` reads.
      stored: the decisions in the folder, as JSON, on the leader.
      write: a function that writes a decision, as JSON; None without a folder.
      cluster: the processes, of which the leader asks the scheduler.

    Attributes:
      decisions: all decisions so far, in order.
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
        """Return the decision at a rung; None if the scheduler has not decided there yet."""
        return next((one for one in self.decisions if one.step == step), None)

    def ask(self, step: int, view: Callable[[], SchedulerView]) -> AppliedDecision:
        """Ask the scheduler, on the leader; return the checked decision on every process.

        Args:
          step: the rung.
          view: a function that returns the scheduler's view. It is called on the leader.

        Raises:
          ValueError: for an answer that cannot be followed.
        """

        def ask() -> dict[str, Any]:
            seen = view()
            if not self._has_warned and not seen.has_objective:
                self._has_warned = True
                warn_caller(
                    f"the objective {self._objective!r} is not finite for any point after step "
                    f"{step}. At this rung, SuccessiveHalving prunes no point, and "
                    "PopulationBasedTraining copies none. If the objective becomes finite later, "
                    "pass a later first rung."
                )
            answer = self._scheduler.decide(step, seen)
            return _Answer(self._scheduler, self._spec, self._init_only, step, seen).check(answer)

        return AppliedDecision.decode(
            self._cluster.tell("a decision", self._cluster.on_leader(ask))
        )

    def write(self, decision: AppliedDecision) -> None:
        """Write a new decision. No trial follows it before."""
        write = self._write
        self._cluster.on_leader(lambda: write and write(decision.encode()))
        self.decisions.append(decision)


class _Answer:
    """The check of a scheduler's answer at a rung."""

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
        """Raise ValueError for an answer.

        Args:
          what: the requirement after "must return", the answer, and the fix.
        """
        raise ValueError(
            f"the scheduler {self._scheduler!r} must return, at step {self._step}, {what}"
        )

    def _is_active(self, point: Any) -> bool:
        known = range(len(self._view.points))
        return is_int(point) and point in known and bool(self._view.active[point])

    def check(self, answer: Any) -> dict[str, Any]:
        """Return the effects of the answer, as JSON; ValueError if it cannot be followed."""
        answer, view = Decision() if answer is None else answer, self._view
        if not isinstance(answer, Decision):
            self._refuse(
                f"a Decision or None, got {answer!r}. Return Decision(prune=[...], copy={{...}})."
            )
        pruned = self._pruned(answer)
        if not isinstance(answer.copy, Mapping):
            self._refuse(
                f"a copy that is a dict, got copy={answer.copy!r}. Return "
                "Decision(copy={point: (donor, numbers)})."
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
            self._refuse(
                f"a prune that is a list of points, got prune={prune!r}. Return "
                "Decision(prune=[0, 1])."
            )
        if others := [x for x in prune if not self._is_active(x)]:
            self._refuse(
                f"a prune of points that still run, got {others}. Choose among "
                "np.flatnonzero(view.active)."
            )
        if len(set(prune)) == self._view.active.sum():
            self._refuse(
                f"a prune that leaves at least one point, got prune={prune!r}. Leave the best one "
                "out, view.ranked()[0]."
            )
        return {int(x) for x in prune}

    def _copy(
        self, point: Any, copy: Any, pruned: set[int], answer: Decision
    ) -> tuple[int, dict[str, float]]:
        """Return the donor of a point, and all traced hyperparameters of the copy."""
        if not isinstance(copy, tuple | list) or len(copy) != 2:
            self._refuse(
                f"(donor, numbers) for each point in copy, got {copy!r} for {point!r}. Return "
                "Decision(copy={point: (donor, {})})."
            )
        donor, new = copy
        go_on = self._is_active(point) and self._is_active(donor)
        if not go_on or {point, donor} & pruned:
            self._refuse(
                f"copies between points that continue, got {point!r} as a copy of {donor!r}. "
                "Choose both among np.flatnonzero(view.active), and neither in prune."
            )
        if donor in answer.copy:
            self._refuse(
                f"donors that do not copy a point, got {donor}, which gives and takes. Leave it "
                "out of copy."
            )
        if self._view.group[point] != self._view.group[donor]:
            self._refuse(
                f"donors of the same static group, got {donor} for {point}, a point of another "
                "static group. Choose a donor with view.group[donor] == view.group[point]."
            )
        return int(donor), self._numbers(int(point), int(donor), new)

    def _numbers(self, point: int, donor: int, new: Any) -> dict[str, float]:
        points, view = self._points, self._view
        traced = list(points.traced(point))
        if not isinstance(new, Mapping) or set(new) - set(traced):
            self._refuse(
                f"numbers as a dict of some of {traced}, got {new!r} for {point}. Leave other "
                "names out."
            )
        if bad := {n: x for n, x in new.items() if not is_real(x) or not math.isfinite(x)}:
            self._refuse(f"finite numbers, got {bad} for {point}. Leave these names out of copy.")
        is_int_axis = lambda name: points.dtype(name).kind == "i"
        if bad := {n: x for n, x in new.items() if is_int_axis(n) and not float(x).is_integer()}:
            name, x = next(iter(bad.items()))
            self._refuse(
                f"whole numbers for the axis {name!r}, which has ints, got {bad} for {point}. "
                f"Write the values of this axis as floats, such as {name}=[{float(x)}]."
            )
        of_donor = self._init_only[view.group[point]]
        present = lambda name: view.points[donor if name in of_donor else point][name]
        typed = lambda name, x: int(x) if is_int_axis(name) else float(x)
        return {name: typed(name, new.get(name, present(name))) for name in traced}
