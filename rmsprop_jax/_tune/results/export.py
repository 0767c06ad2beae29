"""A result as tables: a pandas DataFrame and an xarray Dataset."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rmsprop_jax._tune.space.points import Points, dataframe
from rmsprop_jax._tune.space.values import is_extended, is_number, label

if TYPE_CHECKING:
    import pandas
    import xarray

ROW_COLUMNS = ("objective", "failed", "status", "steps_completed")
"""The columns of a table after the hyperparameters, the seed, and the metrics. `Points` and sweeps
refuse hyperparameters and metrics of these names (`space.points.RESERVED`)."""


class ResultRows(Protocol):
    """The attributes of a `SweepResult` that its tables show."""

    points: Points
    seeds: tuple[int, ...]
    point_index: np.ndarray
    seed_index: np.ndarray
    metrics: dict[str, np.ndarray]
    newest: dict[str, np.ndarray]
    steps: dict[str, np.ndarray]
    objective: np.ndarray
    failed: np.ndarray
    status: np.ndarray
    steps_completed: np.ndarray
    objective_name: str
    mode: str

    @property
    def valid(self) -> dict[str, np.ndarray]: ...

    def point_now(self, row: int) -> dict[str, Any]: ...


def to_dataframe(result: ResultRows) -> "pandas.DataFrame":
    """Return a DataFrame with a row for each trial."""
    last = _last_points(result)
    columns: dict[str, Any] = {  # a hyperparameter is any object
        name: [point.get(name) for point in last for _ in result.seeds]
        for name in result.points.names
    }
    columns["seed"] = list(result.seeds) * len(last)
    begun = result.steps_completed > 0
    newest = result.newest
    if not begun.all():
        newest = {name: _plain(values) for name, values in newest.items()}
    columns |= newest | {name: getattr(result, name) for name in ROW_COLUMNS}
    table = dataframe(columns)
    for name in newest if not begun.all() else ():
        if newest[name].dtype.kind != "f":
            table[name] = table[name].convert_dtypes()  # to a dtype that holds pandas.NA
        table[name] = table[name].mask(~begun)
    return table


def to_xarray(result: ResultRows) -> "xarray.Dataset":
    """Return a Dataset with the dimensions `trial` (a point), `seed` and `step`."""
    try:
        import xarray
    except ImportError as error:
        raise ImportError(
            'xarray must be installed for to_xarray. Run: pip install "rmsprop_jax[data]"'
        ) from error
    shape = len(result.points), len(result.seeds)
    taken = {*result.points.names, *result.metrics}
    ours = lambda name: ours(name + "_") if name in taken else name

    def table(values: np.ndarray) -> np.ndarray:
        return values.reshape(*shape, *values.shape[1:]).copy()

    def metric(name: str) -> np.ndarray:
        values, valid = _plain(result.metrics[name]), result.valid[name]
        return table(values if valid.all() else np.where(valid, values, np.nan))

    alike = len({tuple(steps) for steps in result.steps.values()}) == 1
    dims = {name: ours("step" if alike else f"step_{name}") for name in result.steps}
    trial, seed = ours("trial"), "seed"
    coordinates: dict[str, Any] = {trial: np.arange(shape[0]), seed: list(result.seeds)}
    coordinates |= {dims[name]: steps for name, steps in result.steps.items()}
    last = _last_points(result)
    for name in result.points.names:
        coordinates[name] = (trial, _column([point.get(name) for point in last]))
    data = {
        name: ((trial, seed, *([dims[name]] if name in dims else [])), metric(name))
        for name in result.metrics
    }
    data |= {name: ((trial, seed), table(getattr(result, name))) for name in ROW_COLUMNS}
    attributes = {"objective": result.objective_name, "objective_mode": result.mode}
    return xarray.Dataset(data, coordinates, attributes)


def _last_points(result: ResultRows) -> list[dict[str, Any]]:
    """Return each point with its hyperparameters at the last step, which its seeds share."""
    return [result.point_now(row) for row in range(0, len(result.objective), len(result.seeds))]


def _plain(values: np.ndarray) -> np.ndarray:
    """Return values in a dtype of NumPy, because pandas and xarray support few of ml_dtypes."""
    if not is_extended(values.dtype):
        return values
    kind = values.dtype.name.rstrip("0123456789")
    return values.astype({"int": np.int8, "uint": np.uint8}.get(kind, np.float64))


def _column(values: Sequence[Any]) -> np.ndarray:
    """Return a hyperparameter as an array of numbers, bools, or text; None among numbers is NaN."""
    if all(isinstance(x, bool) for x in values):
        return np.array(values)
    if all(x is None or is_number(x) for x in values) and any(x is not None for x in values):
        return np.array([np.nan if x is None else x for x in values])
    return np.array([x if isinstance(x, str) else label(x) for x in values])
