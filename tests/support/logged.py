"""Sweeps for loggers, and trackers to log to, each read by its own reader.

`python -m tests.support.logged FOLDER STORE TRACKER KIND STOP` kills itself after so many reports.
"""

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import rmsprop_jax as rj
from rmsprop_jax.loggers import base

# Tests ask nobody outside this machine.
os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}

# Sweeps.

RATES = [1e-3, 1e-2, 0.1, 0.3]
MEMBERS = rj.grid(rate=RATES)
POPULATION = rj.PopulationBasedTraining(
    {"rate": rj.log_uniform(1e-3, 1.0)}, perturbation_interval=10, seed=3
)


def train(hp, key):
    steps = jnp.arange(1.0, 6.0)
    loss = jnp.where(hp["x"] > 2.5, jnp.nan, hp["x"] * steps)
    return {"loss": loss, "half": steps[:3] / hp["x"], "end": hp["x"], "odd": -jnp.inf * hp["x"]}


def function(**options):
    return rj.sweep(train, rj.grid(x=[1.0, 2.0, 3.0, 4.0]), progress=False, **options)


def step(hp, x, key):
    return x - hp["rate"] * x, {"loss": x**2}


# It compiles in little time.
DESCENT = rj.Training(
    lambda hp, key: 3.0 + jax.random.normal(key), step, lambda hp, x, key: {"validation": x**2}
)


def training(steps=40, scheduler=None, points=MEMBERS, **options):
    return rj.sweep(
        DESCENT, points, steps=steps, evaluate_every=10, objective="validation", progress=False,
        scheduler=scheduler, devices=jax.devices()[:1], **options,
    )  # fmt: skip


def search(path=None, checkpoint_seconds=None, **options):
    """Its study is in memory, so that it cannot be resumed."""
    import optuna

    space = {"rate": rj.log_uniform(1e-3, 1.0)}
    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=10),
    )
    return rj.search.optimize(
        DESCENT, study, space, n_trials=8, steps=40, evaluate_every=10, objective="validation",
        max_concurrent_trials=2, progress=False, **options,
    )  # fmt: skip


KINDS = {
    "function": function,
    "training": lambda **o: training(points=MEMBERS[:2], record_every=3, seeds=2, **o),
    "halving": lambda **o: training(scheduler=rj.SuccessiveHalving(2, 10), **o),
    "population": lambda **o: training(scheduler=POPULATION, **o),
    "search": search,
}
STOP = {"function": 1, "training": 7, "halving": 6, "population": 6, "search": 11}


class Stopping:
    """A logger that stops the sweep after a report, as the machine might.

    Args:
      logger: the logger.
      stop: the number of the report.
      how: a function that stops the sweep.
      is_lost: whether the call has no end.
    """

    def __init__(self, logger, stop, how, is_lost=False):
        self._logger, self._left, self._how, self._is_lost = logger, stop, how, is_lost

    def start(self, sweep, report):
        self._logger.start(sweep, report)

    def __call__(self, report):
        self._logger(report)
        self._count()

    def pruned(self, report):
        self._logger.pruned(report)
        self._count()

    def _count(self):
        self._left -= 1
        if not self._left:
            self._how()

    def close(self):
        if not self._is_lost:
            self._logger.close()


# Trackers.


class Stored(NamedTuple):
    """What a tracker has of a trial."""

    values: list[tuple[str, int, float]]
    status: str | None
    is_open: bool
    hyperparameters: dict[str, Any]


class Memory(base.Logger):
    """A logger whose tracker is a dict of runs by (sweep, trial), which lists what was done."""

    def __init__(self, runs):
        super().__init__()
        self.runs, self.done = runs, []

    def _find(self, sweep):
        of_sweep = {number: run for (s, number), run in self.runs.items() if s == sweep}
        return {number: None if run["open"] else run["end"] for number, run in of_sweep.items()}

    def _create(self, number):
        self.done.append(("create", number))
        key = self._sweep, number
        assert key not in self.runs
        self.runs[key] = {"hp": {}, "values": [], "open": True, "end": None}
        return base.Run(self.runs[key])

    def _reopen(self, number):
        self.done.append(("reopen", number))
        stored = self.runs[self._sweep, number]
        stored["open"], last = True, {}
        for name, step, _ in stored["values"]:
            last[name] = max(step, last.get(name, -1))
        return base.Run(stored, dict(stored["hp"]), last, step=min(last.values(), default=0))

    def _describe(self, run, hyperparameters):
        run.handle["hp"] |= hyperparameters

    def _write(self, run, rows):
        assert run.handle["open"]
        run.handle["values"] += [(k, s, v) for s, row in rows.items() for k, v in row.items()]

    def _end(self, run, end):
        self.done.append(("end", end.status))
        run.handle["open"], run.handle["end"] = False, end


RUNS = defaultdict(dict)  # for each folder, the runs of a tracker in memory


def read_memory(store):
    return {
        number: Stored(run["values"], run["end"] and run["end"].status, run["open"], run["hp"])
        for (_, number), run in RUNS[store].items()
    }


def read_tensorboard(store):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import api_pb2, metadata

    stored = {}
    for folder in store.glob("*/trial-*"):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
        events.Reload()
        values = [(k, x.step, x.value) for k in events.Tags()["scalars"] for x in events.Scalars(k)]
        content = events.PluginTagToContent("hparams")
        start = metadata.parse_session_start_info_plugin_data(
            content["_hparams_/session_start_info"]
        )
        hyperparameters = {k: getattr(v, v.WhichOneof("kind")) for k, v in start.hparams.items()}
        status, state = None, None
        if "trial/status" in events.Tags()["tensors"]:
            (text,) = events.Tensors("trial/status")
            status = text.tensor_proto.string_val[0].decode()
        if "_hparams_/session_end_info" in content:
            end = content["_hparams_/session_end_info"]
            state = metadata.parse_session_end_info_plugin_data(end).status
        assert state == {
            "failed": api_pb2.STATUS_FAILURE, "interrupted": None, None: None,
        }.get(status, api_pb2.STATUS_SUCCESS)  # fmt: skip
        number = int(folder.name.removeprefix("trial-"))
        stored[number] = Stored(values, status, status is None, hyperparameters)
    return stored


@functools.cache
def empty_database():
    """MLflow makes its tables in seconds, so that the tests copy them."""
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory() as folder:
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
        return Path(folder, "mlflow.db").read_bytes()


def mlflow_uri(store):
    path = store / "mlflow.db"
    if not path.exists():
        path.write_bytes(empty_database())
    return f"sqlite:///{path}"


def read_mlflow(store):
    from mlflow import MlflowClient

    client, stored = MlflowClient(mlflow_uri(store)), {}
    experiment = client.get_experiment_by_name("tests")
    runs = list(client.search_runs([experiment.experiment_id]))
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    for run in runs:
        tags = run.data.tags
        if run is parent:
            continue
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        names = run.data.metrics
        values = [
            (name, m.step, m.value)
            for name in names
            for m in client.get_metric_history(run.info.run_id, name)
        ]
        status = tags.get("rmsprop_jax.status")
        assert run.info.status == {
            None: "RUNNING", "failed": "FAILED", "interrupted": "KILLED",
        }.get(status, "FINISHED")  # fmt: skip
        stored[int(tags["rmsprop_jax.trial"])] = Stored(
            values, status, run.info.status == "RUNNING", run.data.params
        )
    assert parent.info.status == (
        "RUNNING" if any(run.is_open for run in stored.values())
        else "KILLED" if any(run.status == "interrupted" for run in stored.values())
        else "FINISHED"
    )  # fmt: skip
    return stored


def read_wandb(store):
    """All files of a run together, as `wandb sync` would upload them; read by `wandb leet`."""
    from wandb.util import get_core_path

    files = defaultdict(list)
    for path in store.glob("wandb/*run-*/*.wandb"):
        command = [get_core_path(), "leet", "inspect", "--no-observability", "--json"]
        command += ["--run-file", path, path.parents[1]]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        records = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        if any("run" in record for record in records):  # else a kill came before W&B wrote
            files[int(path.stem.rpartition("-")[2])].append(records)
    return {number: wandb_run(parts) for number, parts in files.items()}


def wandb_run(parts):
    values, config, summary, is_open = [], {}, {}, True
    began = lambda records: next(r["run"]["start_time"] for r in records if "run" in r)
    for records in sorted(parts, key=began):
        is_open = True
        for record in records:
            row = record.get("history", {}).get("item", {})
            values += [(k, row["_step"], float(v)) for k, v in row.items() if k[0] != "_"]
            for part in (record, record.get("run", {})):
                config |= part.get("config", {}).get("update", {})
            summary |= record.get("summary", {}).get("update", {})
            if "exit" in record:
                is_open, status = False, summary["trial/status"]
                code = {"failed": 1, "interrupted": 255}.get(status, 0)
                assert record["exit"].get("exit_code", 0) == code
    config = {k: v for k, v in config.items() if k != "_wandb"}
    return Stored(values, None if is_open else summary["trial/status"], is_open, config)


class Tracker(NamedTuple):
    """A tracker to log to, which has its data in a folder."""

    module: str | None
    logger: Any
    read: Any


TRACKERS = {
    "memory": Tracker(None, lambda store: Memory(RUNS[store]), read_memory),
    "tensorboard": Tracker("tensorboard", rj.loggers.TensorBoard, read_tensorboard),
    "mlflow": Tracker(
        "mlflow", lambda store: rj.loggers.MLflow(mlflow_uri(store), "tests"), read_mlflow
    ),
    "wandb": Tracker(
        "wandb",
        lambda store: rj.loggers.WandB(project="tests", mode="offline", dir=store),
        read_wandb,
    ),
}


if __name__ == "__main__":
    folder, store, tracker, kind, stop = sys.argv[1:]
    kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
    logger = Stopping(TRACKERS[tracker].logger(Path(store)), int(stop), kill)
    KINDS[kind](path=folder, checkpoint_seconds=0, callback=logger)
