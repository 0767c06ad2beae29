"""What the `round-*.npz` of a folder measured: read, checked, and put together."""

import collections

import numpy as np

from rmsprop_jax._tune.experiment_spec import ExperimentSpec
from rmsprop_jax._tune.space.values import typed
from rmsprop_jax._tune.storage.arrays import Arrays, FileError, damaged
from rmsprop_jax._tune.storage.folder import MANIFEST, ROUND, WHOLE, Folder
from rmsprop_jax._tune.storage.manifest import bytes_of
from rmsprop_jax._tune.trials.data import TrialData, empty_trials
from rmsprop_jax._tune.trials.host_memory import free_bytes


def read_rounds(
    folder: Folder, spec: ExperimentSpec, places: np.ndarray, every: bool
) -> tuple[TrialData, list[str]]:
    """Return what is known of an experiment's trials, and the files that said so.

    Args:
      folder: open.
      spec: the experiment.
      places: for each of its points the place in the manifest.
      every: return a row for every trial, where the folder has any; else for those it has.
    """
    reader = _RoundReader(spec, places)
    numbers = folder.each("round", ROUND, reader.find_trials)
    with damaged(folder.path / MANIFEST, WHOLE):
        reader.make_room(every)
    folder.each("round", ROUND, lambda stored: reader.fill(stored, numbers[stored.name]))
    reader.fill_newest()
    return reader.data, list(numbers)


class _RoundReader:
    """Puts the rounds of a folder together: a first pass finds the trials, a second their values.

    Args:
      spec: the experiment.
      places: for each of its points the place in the manifest.

    Attributes:
      data: what is known, once all is filled in.
    """

    data: TrialData

    def __init__(self, spec: ExperimentSpec, places: np.ndarray):
        self._spec, self._progress = spec, spec.schedule.stored_progress
        self._point_at = {place: i for i, place in enumerate(places.tolist())}
        self._seed_at = {seed: i for i, seed in enumerate(spec.seeds)}
        self._group_of = spec.group_of()
        self._spans: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
        self._completed: dict[int, int] = {}
        self._row_of: dict[int, int] = {}

    def _column(self, stored: Arrays, name: str, default: int) -> list[int]:
        """Return numbers about the progress of a file's trials, or what they are without a file."""
        if name in self._progress:
            return stored.column(name)
        return [default] * len(stored.column("point"))

    def find_trials(self, stored: Arrays) -> np.ndarray:
        """Return the trials of a file, and note which steps it has of each."""
        points, seeds = stored.column("point"), stored.column("seed")
        start, stop = self._column(stored, "start", 0), self._column(stored, "steps_completed", 1)
        if len({len(points), len(seeds), len(start), len(stop)}) > 1:
            raise FileError("its arrays have different lengths")
        pairs = zip(points, seeds, strict=True)
        number = [self._point_at[p] * len(self._seed_at) + self._seed_at[s] for p, s in pairs]
        for trial, span in zip(number, zip(start, stop, strict=True), strict=True):
            self._spans[trial].append(span)
        return np.array(number, int)

    def make_room(self, every: bool) -> None:
        """Make the rows; FileError where the memory cannot hold them."""
        self._completed = {trial: _without_gap(each) for trial, each in self._spans.items()}
        found = np.array(sorted(trial for trial, step in self._completed.items() if step), int)
        if every and len(found):
            found = np.arange(self._spec.trials)
        _check_room(self._spec, len(found))
        self._row_of = {int(trial): i for i, trial in enumerate(found)}
        self.data = empty_trials(self._spec, len(found))
        self.data.number[:] = found

    def fill(self, stored: Arrays, number: np.ndarray) -> None:
        """Fill in what a file measured of these trials, up to where their files have no gap."""
        spec, data = self._spec, self.data
        groups = set(self._group_of[number // len(spec.seeds)].tolist())
        stops = self._column(stored, "steps_completed", 1)
        counts = [x <= self._completed[t] for t, x in zip(number.tolist(), stops, strict=True)]
        of = lambda x: x if all(counts) else x[np.array(counts, bool)]
        rows = np.array([self._row_of[t] for t in of(number).tolist()], int)
        for metric, into in data.metrics.items():
            columns, x = _metric(stored, metric, spec, groups, len(number))
            into[rows if columns is None else np.ix_(rows, columns)] = of(x)
        stops = of(np.array(stops))
        if "newest" in self._progress:
            is_newer = stops >= data.steps_completed[rows]
            for metric, into in data.newest.items():
                stored.check("newest " + metric, spec.dtype(metric), (len(number),))
                x = of(typed(stored["newest " + metric], spec.dtype(metric)))
                into[rows[is_newer]] = x[is_newer]
        for name, dtype, into in (
            ("pruned", np.int8, data.pruned),
            ("steps_asked", np.int64, data.steps_asked),
        ):
            if name in self._progress:
                stored.check(name, dtype, (len(number),))
                into[rows] = np.maximum(into[rows], of(stored[name]))
        if "steps_asked" not in self._progress:
            data.steps_asked[rows] = spec.schedule.end
        data.steps_completed[rows] = np.maximum(data.steps_completed[rows], stops)
        if "feasible" in stored:
            stored.check("feasible", np.bool_, (len(number),))
            data.feasible[rows] = of(stored["feasible"])
        stored.check("seconds", np.float64, (2,))
        data.seconds[:] += stored["seconds"]

    def fill_newest(self) -> None:
        """Fill in the newest values where files have none: the last recorded values."""
        if "newest" in self._progress:
            return
        spec, groups = self._spec, self._group_of[self.data.number // len(self._spec.seeds)]
        for metric, into in self.data.newest.items():
            end = spec.schedule.end
            last = [spec.count_recorded(i, metric, end) - 1 for i in range(len(spec.groups))]
            rows = np.arange(len(groups))
            into[:] = self.data.metrics[metric][rows, np.array(last, int)[groups]]


def _check_room(spec: ExperimentSpec, trials: int) -> None:
    """Refuse metrics that the memory cannot hold: a number in the manifest may be wrong, or this
    machine too small."""
    free, need = free_bytes(), bytes_of(spec, trials)
    if free is not None and need > free:
        raise FileError(
            f"what it names needs {need / 1e9:.3g} GB, and {free / 1e9:.3g} GB of memory are free"
        )


def _without_gap(spans: list[tuple[int, int]]) -> int:
    """Return how far these spans of steps come from 0: a file between may have been moved away."""
    end = 0
    for start, stop in sorted(spans):
        end = max(end, stop) if start <= end else end
    return end


def _metric(
    stored: Arrays, name: str, spec: ExperimentSpec, groups: set[int], count: int
) -> tuple[np.ndarray | None, np.ndarray]:
    """Return a metric, and which of the recorded steps it has; FileError where it is cut."""
    array, dtype = "metric " + name, spec.dtype(name)
    if not spec.has_steps(name):
        stored.check(array, dtype, (count,))
        return None, typed(stored[array], dtype)
    steps = np.array(stored.column("steps " + name))
    stored.check(array, dtype, (count, len(steps)))
    x = typed(stored[array], dtype)
    recorded = spec.recorded_steps[name]
    if not spec.schedule.stored_progress:  # complete trials have all their steps
        each = (spec.count_recorded(group, name, spec.schedule.end) for group in groups)
        if not {int(recorded[n - 1]) for n in each} <= set(steps.tolist()):
            raise FileError(f"{name} has not all its steps")
    here = np.isin(steps, recorded)  # fewer steps had another last one
    return np.searchsorted(recorded, steps[here]), x if here.all() else x[:, here]
