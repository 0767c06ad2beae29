"""What a scheduler decided: asked once, checked, written down, told to every process, replayed."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmsprop_jax._tune.experiment_spec import FAILED, STOPPED, ExperimentSpec
from rmsprop_jax._tune.options import warn_caller
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.schedulers import Decision, Scheduler, SchedulerView
from rmsprop_jax._tune.space.values import is_int, is_real


class AppliedDecision(NamedTuple):
    """What follows from a decision."""

    boundary: int
    stopped: dict[int, int]
    """For each point that ends here, why."""
    copies: dict[int, tuple[int, dict[str, float]]]
    """For each point that copies, of which, and all numbers with which it goes on."""
    objective: list[list[float | str]]
    """What was decided on, for people to read: of each point and seed; "nan" for none."""

    def encode(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "step": self.boundary,
            "objective": self.objective,
            "prune": {str(point): why for point, why in self.stopped.items()},
            "copy": {str(point): list(copy) for point, copy in self.copies.items()},
        }

    @classmethod
    def decode(cls, stored: dict[str, Any]) -> "AppliedDecision":
        stopped = {int(point): why for point, why in stored["prune"].items()}
        copies = {int(point): (copy[0], copy[1]) for point, copy in stored["copy"].items()}
        return cls(stored["step"], stopped, copies, stored["objective"])


class DecisionLog:
    """A sweep's decisions, those from before and those to come.

    Args:
      scheduler: who decides.
      plan: what is asked.
      objective: its name.
      of_init_only: for each structure the names that only `init` reads.
      known: what was decided before.
      write: writes one down, or None.
      processes: the first of them asks.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        plan: ExperimentSpec,
        objective: str,
        of_init_only: Sequence[set[str]],
        known: Sequence[dict[str, Any]],
        write: Callable[[dict[str, Any]], None] | None,
        processes: Cluster,
    ):
        self._scheduler, self._plan, self._objective = scheduler, plan, objective
        self._of_init_only = of_init_only
        self._write, self._processes, self._has_warned = write, processes, False
        self.known = [
            AppliedDecision.decode(one) for one in processes.tell("decisions", list(known))
        ]

    def at(
        self,
        boundary: int,
        table: Callable[[], SchedulerView],
        before: Callable[[AppliedDecision], None],
    ) -> AppliedDecision:
        """What was, or now is, decided at a boundary.

        Args:
          boundary: a step.
          table: what the scheduler sees.
          before: called with a new decision before it is written down.
        """
        for one in self.known:
            if one.boundary == boundary:
                return one

        def ask() -> dict[str, Any]:
            seen = table()
            if not self._has_warned and not seen.has_objective:
                self._has_warned = True
                warn_caller(
                    f"the objective {self._objective!r} is not finite for any point after step "
                    f"{boundary}, so that halving stops none there and population copies none. If "
                    "it becomes finite later, put the first rung where it is."
                )
            return self._checked(boundary, seen, self._scheduler.decide(boundary, seen)).encode()

        encoded = self._processes.tell("a decision", self._processes.on_first(ask))
        decided, write = AppliedDecision.decode(encoded), self._write
        before(decided)
        self._processes.on_first(lambda: write and write(encoded))
        self.known.append(decided)
        return decided

    def _checked(self, boundary: int, table: SchedulerView, answer: Any) -> AppliedDecision:
        """ValueError for an answer that cannot be followed."""

        def refuse(what: str):
            raise ValueError(
                f"the scheduler {self._scheduler!r} answered, at step {boundary}, {what}"
            )

        answer = Decision() if answer is None else answer
        if not isinstance(answer, Decision):
            refuse(f"{answer!r}, wanted a Decision(prune=... or None.")
        known, active = range(len(table.points)), table.active
        is_point = lambda x: is_int(x) and x in known and active[x]
        if not isinstance(answer.prune, Sequence | np.ndarray) or isinstance(answer.prune, str):
            refuse(f"prune={answer.prune!r}, wanted a list of points.")
        if bad := [x for x in answer.prune if not is_point(x)]:
            refuse(f"prune with {bad}, wanted numbers of points that still run.")
        stop = {int(x) for x in answer.prune}
        if len(stop) == active.sum():
            refuse("that all points are pruned.")
        if not isinstance(answer.copy, Mapping):
            refuse(f"copy={answer.copy!r}, wanted a dict from points to (donor, numbers).")
        copies = {}
        for point, copy in answer.copy.items():
            if not isinstance(copy, tuple | list) or len(copy) != 2:
                refuse(f"copy with {point!r}: {copy!r}, wanted (donor, numbers).")
            donor, new = copy
            if not (is_point(point) and is_point(donor)) or {point, donor} & stop:
                refuse(f"that {point!r} copies {donor!r}, wanted two points that go on.")
            if donor in answer.copy:
                refuse(f"that {donor} gives and takes: a donor copies from no one.")
            if table.group[point] != table.group[donor]:
                refuse(f"that {point} copies {donor}, a point of another static group.")
            copies[int(point)] = (
                int(donor),
                self._numbers(table, int(point), int(donor), new, refuse),
            )
        why = lambda x: STOPPED if np.isfinite(table.objective[x]).all() else FAILED
        plain = lambda x: x if math.isfinite(x) else str(x)
        objective = [list(map(plain, row)) for row in table.objective.tolist()]
        return AppliedDecision(boundary, {x: why(x) for x in sorted(stop)}, copies, objective)

    def _numbers(self, table: SchedulerView, point: int, donor: int, new: Any, refuse: Any) -> dict:
        """All numbers with which a point goes on."""
        points = self._plan.points
        traced = list(points.traced(point))
        if not isinstance(new, Mapping) or set(new) - set(traced):
            refuse(f"the numbers {new!r} for {point}, wanted a dict of some of {traced}.")
        if bad := {n: x for n, x in new.items() if not is_real(x) or not math.isfinite(x)}:
            refuse(f"{bad} for {point}, wanted finite numbers.")
        is_int_axis = lambda name: points.dtype(name).kind == "i"
        if bad := {n: x for n, x in new.items() if is_int_axis(n) and not float(x).is_integer()}:
            name, x = next(iter(bad.items()))
            refuse(
                f"{bad} for {point}, but the axis {name!r} has ints, so that the numbers must be "
                f"whole. Write its values as floats, such as {name}=[{float(x)}]."
            )
        of_donor = self._of_init_only[table.group[point]]
        own = lambda name: table.points[donor if name in of_donor else point][name]
        whole = lambda name, x: int(x) if is_int_axis(name) else float(x)
        return {name: whole(name, new.get(name, own(name))) for name in traced}
