"""MLflow: a parent run for each sweep, with a child run for each trial."""

import contextlib
import io
import re
import time
from collections.abc import Sequence
from typing import Any

from rmsprop_jax.loggers.base import INTERRUPTED, End, Logger, Rows, Run, library

SWEEP, TRIAL = "rmsprop_jax.sweep", "rmsprop_jax.trial"
STATUS, STEP = "rmsprop_jax.status", "rmsprop_jax.step"
STATES = {"failed": "FAILED", INTERRUPTED: "KILLED"}  # all others are FINISHED
METRICS, PARAMS = 1000, 100  # the most that MLflow takes in one call


class MLflow(Logger):
    """A callback that writes a run per trial to MLflow, as children of a run for the sweep.

    A trial's run has the hyperparameters and the seed as parameters, and the values of each metric
    by step. Its tags are `rmsprop_jax.sweep` (the id of the sweep), `rmsprop_jax.trial` (the
    number of the trial), and, when it has ended, `rmsprop_jax.step` and `rmsprop_jax.status`:
    "complete", "pruned", "failed", or "interrupted". MLflow's own status is FINISHED for a complete
    or pruned trial, FAILED for a failed one, and KILLED for an interrupted one.

    MLflow stores NaN as NaN. A database holds ±infinity as ±1.8e308, the largest float64. In names,
    each character that MLflow does not allow becomes "_".

    Args:
      uri: the tracking server, "http://...", or a database, "sqlite:///mlflow.db".
      experiment: the name of the experiment. It is made if it does not exist.

    Raises:
      ImportError: without MLflow, which the extra `mlflow` installs.
    """

    def __init__(self, uri: str, experiment: str):
        super().__init__()
        self._entities = library("mlflow.entities", "mlflow")
        self._uri, self._experiment = uri, experiment
        self._client = library("mlflow", "mlflow").MlflowClient(uri)
        self._experiment_id = ""
        self._ids: dict[int | None, str] = {}  # of the trials' runs, and of the parent at None
        self._is_parent_open = False

    def close(self) -> None:
        are_interrupted = bool(self._open)
        super().close()
        if self._is_parent_open:
            state = STATES[INTERRUPTED] if are_interrupted else "FINISHED"
            self._terminate(self._ids[None], state)
            self._is_parent_open = False

    def _find(self, sweep: str) -> dict[int, End | None]:
        experiment = self._client.get_experiment_by_name(self._experiment)
        self._experiment_id = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(self._experiment)
        )
        self._ids, self._is_parent_open, token = {}, False, None
        found: dict[int, End | None] = {}
        while True:
            page = self._client.search_runs(
                [self._experiment_id], f"tags.`{SWEEP}` = '{sweep}'", page_token=token
            )
            for run in page:
                tags, is_open = run.data.tags, run.info.status == "RUNNING"
                if TRIAL not in tags:
                    self._ids[None], self._is_parent_open = run.info.run_id, is_open
                    continue
                number = int(tags[TRIAL])
                self._ids[number] = run.info.run_id
                has_end = not is_open and STATUS in tags
                found[number] = End(tags[STATUS], int(tags[STEP])) if has_end else None
            token = page.token
            if not token:
                return found

    def _create(self, number: int) -> Run:
        parent = self._parent()
        self._ids[number] = self._new(f"trial-{number:05d}", number, parent)
        return Run(self._ids[number])

    def _new(self, name: str, number: int | None, parent: str | None) -> str:
        """Make a run, and return its id."""
        tags = {SWEEP: str(self._sweep)}
        if parent is not None:
            tags |= {TRIAL: str(number), "mlflow.parentRunId": parent}
        return self._client.create_run(self._experiment_id, tags=tags, run_name=name).info.run_id

    def _parent(self) -> str:
        """Return the id of the sweep's run, which is open from now on."""
        if None not in self._ids:
            self._ids[None] = self._new(f"sweep-{str(self._sweep)[:8]}", None, None)
        elif not self._is_parent_open:
            self._client.update_run(self._ids[None], status="RUNNING")
        self._is_parent_open = True
        return self._ids[None]

    def _reopen(self, number: int) -> Run:
        self._parent()
        run_id = self._ids[number]
        self._client.update_run(run_id, status="RUNNING")
        data = self._client.get_run(run_id).data
        if STATUS in data.tags:
            self._client.delete_tag(run_id, STATUS)
        history = lambda name: self._client.get_metric_history(run_id, name)
        last = {name: max(metric.step for metric in history(name)) for name in data.metrics}
        return Run(run_id, dict(data.params), last, step=min(last.values(), default=0))

    def _describe(self, run: Run, hyperparameters: dict[str, Any]) -> None:
        params = [self._entities.Param(k, str(v)) for k, v in hyperparameters.items()]
        for part in _parts(params, PARAMS):
            self._client.log_batch(run.handle, params=part)

    def _write(self, run: Run, rows: Rows) -> None:
        now, metric = int(time.time() * 1000), self._entities.Metric
        metrics = [metric(k, v, now, step) for step, row in rows.items() for k, v in row.items()]
        for part in _parts(metrics, METRICS):
            self._client.log_batch(run.handle, metrics=part)

    def _end(self, run: Run, end: End) -> None:
        tag = self._entities.RunTag
        self._client.log_batch(run.handle, tags=[tag(STATUS, end.status), tag(STEP, str(end.step))])
        self._terminate(run.handle, STATES.get(end.status, "FINISHED"))

    def _terminate(self, run_id: str, state: str) -> None:
        """Close a run. With a server, MLflow prints the address of each run, which is left out."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._client.set_terminated(run_id, state)

    def _name(self, name: str) -> str:
        return re.sub(r"[^\w\-. :/]", "_", name)


def _parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Return the items in parts of at most this size."""
    return [items[i : i + size] for i in range(0, len(items), size)]
