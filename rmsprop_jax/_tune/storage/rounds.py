"""The metrics in the `round-*.npz` of a folder: read, checked, and joined into one table."""

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
    """Return the trials of an experiment that a folder holds, and the names of the files used.

    Args:
      folder: the folder.
      spec: the experiment.
      places: int array, shape (points,): the place of each point in the manifest.
      every: whether to return a row for every trial of the experiment if the folder holds any;
        otherwise only trials that the folder holds have a row.
    """
    reader = _RoundReader(spec, places)
    numbers = folder.each("round", ROUND, reader.find_trials)
    with damaged(folder.path / MANIFEST, WHOLE):
        reader.make_room(every)
    folder.each("round", ROUND, lambda stored: reader.fill(stored, numbers[stored.name]))
    reader.fill_newest()
    return reader.data, list(numbers)


class _RoundReader:
    """A reader of rounds in two passes: the first finds the trials, the second their values.

    Args:
      spec: the experiment.
      places: int array, shape (points,): the place of each point in the manifest.

    Attributes:
      data: the trials, complete after `fill_newest`.
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
        """Return a column about the progress of a file's trials; the default for a function, whose
        files have no such column."""
        if name in self._progress:
            return stored.column(name)
        return [default] * len(stored.column("point"))

    def find_trials(self, stored: Arrays) -> np.ndarray:
        """Return the trials of a file, and note the steps that it has of each trial."""
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
        """Make the rows; FileError if the memory cannot hold them."""
        self._completed = {trial: _without_gap(each) for trial, each in self._spans.items()}
        found = np.array(sorted(trial for trial, step in self._completed.items() if step), int)
        if every and len(found):
            found = np.arange(self._spec.trials)
        _check_room(self._spec, len(found))
        self._row_of = {int(trial): i for i, trial in enumerate(found)}
        self.data = empty_trials(self._spec, len(found))
        self.data.number[:] = found

    def fill(self, stored: Arrays, number: np.ndarray) -> None:
        """Fill in the values of a file for these trials, up to the first gap between files."""
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
        """Fill in the last recorded values as the newest ones, if files have no newest values."""
        if "newest" in self._progress:
            return
        spec, groups = self._spec, self._group_of[self.data.number // len(self._spec.seeds)]
        for metric, into in self.data.newest.items():
            end = spec.schedule.end
            last = [spec.count_recorded(i, metric, end) - 1 for i in range(len(spec.groups))]
            rows = np.arange(len(groups))
            into[:] = self.data.metrics[metric][rows, np.array(last, int)[groups]]


def _check_room(spec: ExperimentSpec, trials: int) -> None:
    """Raise FileError for metrics that the memory cannot hold. The manifest may have a wrong
    number, or this machine too little memory."""
    free, need = free_bytes(), bytes_of(spec, trials)
    if free is not None and need > free:
        raise FileError(
            f"its trials must fit the memory, of which {free / 1e9:.3g} GB are free, but their "
            f"metrics need {need / 1e9:.3g} GB"
        )


def _without_gap(spans: list[tuple[int, int]]) -> int:
    """Return the last step that these spans reach from step 0 without a gap. You may have moved
    a file away."""
    end = 0
    for start, stop in sorted(spans):
        end = max(end, stop) if start <= end else end
    return end


def _metric(
    stored: Arrays, name: str, spec: ExperimentSpec, groups: set[int], count: int
) -> tuple[np.ndarray | None, np.ndarray]:
    """Return the columns and the values of a metric in a file; FileError for missing values.

    The columns are indices of `spec.recorded_steps`, or None for a metric that is not a series.
    """
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
            raise FileError(f"its metric {name!r} lacks some recorded steps")
    # A call with fewer steps also recorded its own last step, which may be no recorded step now.
    here = np.isin(steps, recorded)
    return np.searchsorted(recorded, steps[here]), x if here.all() else x[:, here]
