"""Trainings under way side by side, each at a step of its own: any may leave, any may come."""

from collections.abc import Iterable, Iterator

import numpy as np

from rmsprop_jax._tune.experiment_spec import Stages
from rmsprop_jax._tune.run.batch import CompiledGroup, Dispatched, States, TrialBatch, rows_of


class Flight:
    """The trials of one structure that are under way.

    Args:
      structure: compiled.
      stages: where segments end.

    Attributes:
      lives: the rounds in which they are seated.
    """

    def __init__(self, structure: CompiledGroup, stages: Stages):
        self.structure, self._stages = structure, stages
        self.lives: list[TrialBatch] = []

    def start(self) -> Iterator[Dispatched]:
        """Start a segment of every round, one as often as one is asked for."""
        for live in self.lives:
            yield self.structure.advance(live, self._stops(live.steps_completed), None)

    def _stops(self, reached: np.ndarray) -> np.ndarray:
        return np.array([self._stages.after(step) for step in reached.tolist()])

    @property
    def loose(self) -> int:
        """How many trials are in rounds that are not full."""
        room = self.structure.layout.room(1)
        return sum(len(live.trials) % room for live in self.lives)

    def seat(
        self,
        leaving: Iterable[int],
        coming: np.ndarray,
        numbers: dict[str, np.ndarray],
        first: int,
    ) -> None:
        """Some trials leave, and others begin: a round that either concerns is formed anew, the
        states of those that stay going through the host. The others keep theirs on the devices. A
        round is a batch on each device, so that there are several, of which one runs while what
        another gave is looked at.

        Args:
          leaving: trials that are under way.
          coming: trials that are not.
          numbers: of every trial.
          first: the device of the first trial of a new round.
        """
        room = self.structure.layout.room(1)
        gone, kept, loose = list(leaving), [], []
        for live in self.lives:
            stays = ~np.isin(live.trials, gone)
            has_seats = len(live.trials) < room and len(coming)
            if stays.all() and not has_seats and self._may_share(live.steps_completed):
                kept.append(live)
            elif stays.any():
                states = rows_of(self.structure.states(live), np.flatnonzero(stays))
                loose.append((live.trials[stays], live.steps_completed[stays], states))
        if len(coming):
            loose.append(self._begun(coming, room, numbers))
        self.lives = kept
        if loose:
            trials, reached, states = zip(*loose, strict=True)
            states = [np.concatenate(leaf) for leaf in zip(*states, strict=True)]
            which = np.concatenate(trials), np.concatenate(reached)
            for live, own in self._formed(*which, states, room, first):
                self.structure.begin(live, numbers, own)
                self.lives.append(live)

    def _may_share(self, reached: np.ndarray) -> bool:
        """Whether trials that stand there may share batches: these run equally many steps."""
        lengths = self._stops(reached) - reached
        return self.structure.layout.batch_size == 1 or len(np.unique(lengths)) == 1

    def _begun(
        self, trials: np.ndarray, room: int, numbers: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, States]:
        """Trials, the steps behind them, and their first states."""
        made = []
        for at in range(0, len(trials), room):
            live = TrialBatch(trials[at : at + room], 0)
            self.structure.begin(live, numbers, None)
            made.append(self.structure.states(live))
        states = [np.concatenate(leaf) for leaf in zip(*made, strict=True)]
        return trials, np.zeros(len(trials), int), states

    def _formed(
        self, trials: np.ndarray, reached: np.ndarray, states: States, room: int, first: int
    ) -> Iterator[tuple[TrialBatch, States]]:
        """Rounds of these trials, and the states of each."""
        groups = [np.arange(len(trials))]
        if not self._may_share(reached):
            lengths = self._stops(reached) - reached
            groups = [np.flatnonzero(lengths == n) for n in np.unique(lengths)]
        for rows in groups:
            for at in range(0, len(rows), room):
                some = rows[at : at + room]
                yield TrialBatch(trials[some], reached[some], first), rows_of(states, some)
