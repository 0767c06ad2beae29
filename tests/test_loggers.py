"""Each tracker has each value of each trial once, and how the trial ended, whatever happened."""

import functools
import itertools
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import rmsprop_jax as rj
from tests.support import wandb_server
from tests.support.logged import KINDS, STOP, TRACKERS, Memory, Stopping, Stored, search, training
from tests.support.tables import few

pytestmark = [
    # MLflow with SQLAlchemy 2.1.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]
OURS, *REAL = TRACKERS


@pytest.fixture
def tracker(request, tmp_path):
    """A tracker with a new folder: functions that make a logger, and that read the folder."""
    found = TRACKERS[request.param]
    if found.module is not None:
        pytest.importorskip(found.module)
    store = tmp_path / "store"
    store.mkdir()
    return lambda: found.logger(store), lambda: found.read(store), store, request.param


def cases(*kinds_of_real, kinds=tuple(KINDS)):
    """All kinds of sweeps with the tracker in memory, and some with the real ones."""
    table = [(OURS, kind) for kind in kinds] + [(t, kind) for t in REAL for kind in kinds_of_real]
    ids = [f"{name}-{kind}" for name, kind in table]
    return pytest.mark.parametrize(("tracker", "kind"), table, indirect=["tracker"], ids=ids)


RESUMABLE = tuple(kind for kind in KINDS if kind != "search")


@functools.cache
def changes(kind):
    """Return the rates that a population's members had, from the first that differs on."""
    heard = {}

    def note(report):
        for trial in report:
            heard.setdefault(trial.number, {}).setdefault(trial.step, trial.point.get("rate"))

    KINDS[kind](callback=note)
    expected = {}
    for number, rates in heard.items():
        first, has_changed = rates[min(rates)], False
        for step in sorted(rates):
            has_changed |= rates[step] != first
            if has_changed:
                expected[number, step] = rates[step]
    return expected


def check(stored, result, name, changed=()):
    """Compare the contents of a tracker with a result."""
    begun = np.flatnonzero(result.steps_completed > 0)
    assert sorted(stored) == begun.tolist()
    rates = {}
    for number, run in stored.items():
        if (status := result.status[number]) == "unfinished":
            assert run.status == "interrupted"
        else:
            assert run.status == status
        assert not run.is_open
        expected = {}
        last = max((s[result.valid[k][number]].max() for k, s in result.steps.items()), default=1)
        for metric, values in result.metrics.items():
            if metric not in result.steps:
                expected[metric, int(last)] = values[number]
                continue
            valid = result.valid[metric][number]
            at = result.steps[metric][valid].tolist()
            expected |= {(metric, s): v for s, v in zip(at, values[number, valid], strict=True)}
        found = {(metric, step): value for metric, step, value in run.values}
        assert len(found) == len(run.values)
        rates |= {(number, s): v for (k, s), v in found.items() if k == "hp/rate"}
        found = {key: value for key, value in found.items() if key[0] != "hp/rate"}
        assert found.keys() == expected.keys()
        wanted = [float(expected[key]) for key in found]
        if name == "mlflow":
            wanted = np.nan_to_num(wanted, nan=np.nan)  # ±infinity is the largest float64
        np.testing.assert_array_equal(list(found.values()), wanted)
        point, seed = divmod(number, len(result.seeds))
        assert float(run.hyperparameters["seed"]) == result.seeds[seed]
        for axis, value in result.points[point].items():
            assert run.hyperparameters[axis] in (value, str(value))
    expected = {k: v for k, v in dict(changed).items() if k[0] in stored}
    assert rates.keys() == expected.keys()
    np.testing.assert_allclose([rates[k] for k in expected], list(expected.values()), rtol=1e-7)


@cases("function", "halving")
def test_a_call(tracker, kind):
    make, read, _, name = tracker
    result = KINDS[kind](callback=make())
    check(read(), result, name, changes(kind))
    if kind == "function":
        assert result.status.tolist() == ["complete", "complete", "failed", "failed"]
    if kind in ("halving", "search"):
        assert "pruned" in result.status
    if kind == "population":
        assert changes(kind)


def interrupt():
    raise KeyboardInterrupt


def fail():
    raise RuntimeError("enough")


@pytest.mark.slow
@cases("population", kinds=RESUMABLE)
def test_a_call_after_ctrl_c(tracker, kind, tmp_path):
    """It continues at the newest checkpoint."""
    resumed(tracker, kind, KeyboardInterrupt, interrupt, tmp_path / "sweep", 0)


@pytest.mark.slow
@cases(kinds=RESUMABLE)
def test_a_call_after_an_exception(tracker, kind, tmp_path):
    """Without a checkpoint, all steps of a trial run and are reported again."""
    resumed(tracker, kind, RuntimeError, fail, tmp_path / "sweep", 3600)


def resumed(tracker, kind, error, how, path, checkpoint_seconds):
    """Stop a call, and check the tracker after the call that resumes it."""
    make, read, _, name = tracker
    options = {"path": path, "checkpoint_seconds": checkpoint_seconds}
    if kind == "function":
        del options["checkpoint_seconds"]
    with pytest.raises(error):
        KINDS[kind](callback=Stopping(make(), STOP[kind], how), **options)
    stopped = read()
    assert not any(run.is_open for run in stopped.values())
    assert kind == "function" or any(run.status == "interrupted" for run in stopped.values())
    result = KINDS[kind](callback=make(), **options)
    check(read(), result, name, changes(kind))


@pytest.mark.slow
@cases(kinds=RESUMABLE)
@pytest.mark.parametrize("again", [False, True])
def test_a_call_without_an_end(tracker, kind, again, tmp_path):
    """A run that a kill left open is ended: with its trial, or with the next call."""
    make, read, *_ = tracker
    options = {"path": tmp_path / "sweep"}
    stop = STOP[kind]
    with pytest.raises(RuntimeError):
        KINDS[kind](callback=Stopping(make(), stop, fail, is_lost=True), **options)
    assert kind == "function" or any(run.is_open for run in read().values())
    if again and kind != "function":
        with pytest.raises(RuntimeError):
            KINDS[kind](callback=Stopping(make(), 1, fail), **options)
        assert not any(run.is_open for run in read().values())
    result = KINDS[kind](callback=make(), **options)
    check(read(), result, OURS, changes(kind))


@pytest.mark.parametrize("kind", ["training", "population"])
def test_a_tracker_that_lost_its_newest_values(kind, tmp_path):
    """They are written again, but for the rates that a population had meanwhile."""
    options = {"path": tmp_path / "sweep", "checkpoint_seconds": 0}
    make, read, store = TRACKERS[OURS].logger, TRACKERS[OURS].read, tmp_path
    with pytest.raises(RuntimeError):
        KINDS[kind](callback=Stopping(make(store), STOP[kind], fail, is_lost=True), **options)
    for run in make(store).runs.values():
        if run["open"]:
            run["values"][:] = [value for value in run["values"] if value[1] <= 10]
    result = KINDS[kind](callback=make(store), **options)
    found = {(n, s) for n, run in read(store).items() for k, s, _ in run.values if k == "hp/rate"}
    kept = {key: rate for key, rate in changes(kind).items() if key in found}
    check(read(store), result, OURS, kept)
    assert {key for key in changes(kind) if key[1] > 20} <= found


@pytest.mark.parametrize("tracker", REAL, indirect=True)
def test_a_killed_process(tracker, tmp_path):
    make, read, store, name = tracker
    # W&B's own process loses its newest values, and with them a population's first rates.
    kind = "halving" if name == "wandb" else "population"
    arguments, logger = [tmp_path / "sweep", store, name, kind, STOP[kind]], make()
    # W&B's own process must be the child's, or it would have no end.
    environment = {k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"}
    killed = subprocess.run(
        [sys.executable, "-m", "tests.support.logged", *map(str, arguments)],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert name == "wandb" or any(run.is_open for run in read().values())
    result = KINDS[kind](path=tmp_path / "sweep", checkpoint_seconds=0, callback=logger)
    check(read(), result, name, changes(kind))


@pytest.mark.parametrize("tracker", TRACKERS, indirect=True)
def test_more_steps_later(tracker, tmp_path):
    make, read, _, name = tracker
    for steps in (20, 40):
        result = training(steps, path=tmp_path / "sweep", keep_states="all", callback=make())
        check(read(), result, name)


@pytest.mark.slow
@pytest.mark.parametrize("tracker", TRACKERS, indirect=True)
def test_a_finished_folder(tracker, tmp_path):
    """It is written whole the first time. After that nothing is opened or changed."""
    make, read, store, name = tracker
    call = functools.partial(KINDS["halving"], path=tmp_path / "sweep")
    call()
    result = call(callback=make())
    check(read(), result, name)
    before, files = repr(read()), contents(store)
    call(callback=(logger := make()))
    assert repr(read()) == before
    assert contents(store) == files
    if name == OURS:
        assert not logger.done


def contents(folder):
    """The files of a folder and their bytes."""
    return {
        path: path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "debug" not in path.name and path.suffix not in (".db-shm", ".db-wal")
    }


@pytest.mark.parametrize("tracker", TRACKERS, indirect=True)
def test_two_sweeps_share_no_run(tracker):
    make, _, store, name = tracker
    logger = make()
    for _ in range(2):
        rj.sweep(
            lambda hp, key: {"loss": hp["x"]}, rj.grid(x=[1.0]), progress=False, callback=logger
        )
    if name == OURS:
        runs = logger.runs
    elif name == "mlflow":
        runs = logger._client.search_runs(
            [logger._client.get_experiment_by_name("tests").experiment_id],
            "tags.`rmsprop_jax.trial` = '0'",
        )
    else:
        runs = [*store.glob("*/trial-00000"), *store.glob("wandb/*run-*/*.wandb")]
    assert len(runs) == 2


VALUES = {
    "nothing": (None, "None"),
    "yes": (True, True),
    "text": ("text", "text"),
    "shape": ((8, 8), "(8, 8)"),
    "whole": (3, 3),
    "half": (np.float32(0.5), 0.5),
    "no": (np.bool_(False), False),
    "long": ([1] * 40, str([1] * 40)[:39] + "…"),
    "rate (log)": (0.1, 0.1),
}
METRICS = ["top@5 (%)", "a/b", "größe"]


@pytest.mark.parametrize("tracker", TRACKERS, indirect=True)
def test_hyperparameters_and_names_of_any_kind(tracker, tmp_path):
    make, read, _, name = tracker
    points = rj.grid(**{axis: rj.static([value]) for axis, (value, _) in VALUES.items()})
    train = lambda hp, key: dict.fromkeys(METRICS, float(len([hp[axis] for axis in VALUES])))
    call = functools.partial(rj.sweep, train, points, objective="a/b", progress=False)
    for _ in range(2):
        call(path=tmp_path / "sweep", callback=make())
    (run,) = read().values()
    shown = {axis: text for axis, (_, text) in VALUES.items()} | {"seed": 0}
    metrics = METRICS
    if name == "mlflow":
        shown = {axis.replace("(", "_").replace(")", "_"): str(x) for axis, x in shown.items()}
        metrics = ["top_5 ___", "a/b", "größe"]
    assert run.hyperparameters == shown
    if name != "mlflow":
        assert {axis for axis, x in run.hyperparameters.items() if x is bool(x)} == {"yes", "no"}
    assert sorted(metric for metric, *_ in run.values) == sorted(metrics)


# The rest of the shared work.


def test_a_logger_must_hear_the_start():
    logger = Memory({})
    with pytest.raises(RuntimeError, match=r"Memory got a report before start.*callback=logger"):
        KINDS["function"](callback=lambda report: logger(report))


HOOKS = {f"{OURS}-{hook}": (OURS, hook) for hook in ("_create", "_describe", "_write", "_end")}
HOOKS |= {f"{real}-_create": (real, "_create") for real in REAL}


@pytest.mark.parametrize("is_before", [False, True], ids=["after", "before"])
@pytest.mark.parametrize(
    ("tracker", "hook"), few(HOOKS, [f"{OURS}-_create"], unpack=True), indirect=["tracker"]
)
def test_ctrl_c_inside_a_logger(tracker, hook, is_before, ctrl_c, monkeypatch, tmp_path):
    """A run is open only while the logger knows it, and no value is missing or written twice."""
    make, read, _, name = tracker
    kind, logger = "training", make()
    original, calls = getattr(logger, hook), itertools.count(1)

    def call(*args):
        is_time = next(calls) == 2
        if is_time and is_before:
            signal.raise_signal(signal.SIGINT)
        result = original(*args)
        if is_time and not is_before:
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(logger, hook, call)
    options = {"path": tmp_path / "sweep", "checkpoint_seconds": 0}
    with pytest.raises(rj.SweepInterrupted):
        KINDS[kind](callback=logger, **options)
    assert read()
    assert not [number for number, run in read().items() if run.is_open]
    result = KINDS[kind](callback=make(), **options)
    check(read(), result, name, changes(kind))


def test_an_interrupted_search_leaves_no_run_open():
    logger = Memory({})
    with pytest.raises(KeyboardInterrupt):
        search(callback=Stopping(logger, STOP["search"], interrupt))
    states = {run["end"].status for run in logger.runs.values() if not run["open"]}
    assert len(logger.runs) == len([run for run in logger.runs.values() if not run["open"]])
    assert "interrupted" in states


@pytest.mark.parametrize(
    ("make", "extra"),
    [
        (lambda: rj.loggers.TensorBoard("runs"), "tensorboard"),
        (lambda: rj.loggers.MLflow("sqlite://", "tests"), "mlflow"),
        (lambda: rj.loggers.WandB(), "wandb"),
    ],
)
def test_a_missing_tracker_names_its_extra(make, extra, monkeypatch):
    for module in ("tensorboard", "mlflow", "wandb"):
        for name in [name for name in sys.modules if name.split(".")[0] == module]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'pip install "rmsprop_jax\[{extra}\]"'):
        make()


def test_wandb_refuses_what_the_logger_sets():
    pytest.importorskip("wandb")
    with pytest.raises(ValueError, match=r"leave out group, .* got group='mine'"):
        rj.loggers.WandB(group="mine")


def test_wandb_online(tmp_path):
    """W&B's own process talks to a stand-in for the server."""
    pytest.importorskip("wandb")
    with wandb_server.serving() as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        settings = {"console": "off", "silent": True, "base_url": url, "api_key": "0" * 40}
        make = lambda: rj.loggers.WandB(
            project="tests", entity="me", dir=tmp_path, settings=settings
        )
        options, kind = {"path": tmp_path / "sweep"}, "population"
        with pytest.raises(KeyboardInterrupt):
            KINDS[kind](callback=Stopping(make(), STOP[kind], interrupt), **options)
        assert {run["exit_code"] for run in server.runs.values()} == {255}
        result = KINDS[kind](callback=make(), **options)
        stored = {
            int(name.rpartition("-")[2]): Stored(
                [
                    (k, row["_step"], float(v))
                    for row in run["history"]
                    for k, v in row.items()
                    if k[0] != "_"
                ],
                run["summary"]["trial/status"],
                run["state"] == "running",
                {k: v["value"] for k, v in run["config"].items()},
            )
            for name, run in server.runs.items()
        }
        check(stored, result, "wandb", changes(kind))
        assert server.opened == 8
        KINDS[kind](callback=make(), **options)
        assert server.opened == 8
