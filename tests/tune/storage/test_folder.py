"""A sweep's folder under attack: refused calls, two writers, foreign and tampered files."""

import dataclasses
import os
import random
import shutil
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmsprop_jax as rj
from tests.support.folders import content, contents, write_arrays, write_content
from tests.support.tables import few
from tests.support.trainings import stop_at
from tests.tune.storage.test_store import same

X = rj.grid(x=[1.0, 2.0, 3.0])
ONE = {"devices": jax.devices()[:1], "batch_size": 1}


def train(hp, key):
    return {"loss": hp["x"] + jax.random.uniform(key) * jnp.arange(5.0), "n": jnp.int32(7)}


TRAINING = rj.Training(
    lambda hp, key: {"x": hp["x"] + jax.random.uniform(key), "half": jnp.zeros(2, jnp.bfloat16)},
    lambda hp, state, key: (
        state | {"x": 0.9 * state["x"] + 0.1 * hp["x"]},
        {"loss": state["x"] + 0.01 * jax.random.uniform(key)},
    ),
)


def run(path, points=X, f=train, **options):
    return rj.sweep(f, points, path=path, progress=False, **options)


def steps(path, points=X, **options):
    """A `Training` of ten steps, looked at each fifth."""
    given = {"steps": 10, "evaluate_every": 5, "keep_states": "all"}
    return run(path, points, TRAINING, **ONE | given | options)


# A call that is refused, or stopped at once.


SLIPS = {"steps": {"steps": 3000}, "seeds": {"seeds": 50}, "points": {"points": X + X[:1]}}


@pytest.mark.slow
@pytest.mark.parametrize("slip", few(SLIPS, ["steps"]))
def test_a_slip_that_is_interrupted_at_once_changes_nothing(slip, tmp_path):
    whole = steps(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(rj.SweepInterrupted):
        steps(tmp_path, **slip, callback=stop_at(1))
    assert contents(tmp_path) == before
    same(rj.SweepResult.load(tmp_path), whole)
    same(steps(tmp_path), whole)


@pytest.mark.parametrize("made", [False, True])
def test_a_call_that_is_refused_leaves_no_folder_behind(made, tmp_path, monkeypatch):
    folder = tmp_path / "a" / "b"
    if made:
        folder.mkdir(parents=True)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1))
    with pytest.raises(ValueError, match=r"states must fit the disk of .*keep_states"):
        steps(folder)
    assert list(tmp_path.rglob("*")) == ([folder.parent, folder] if made else [])


@pytest.mark.slow
def test_best_compares_trials_of_equal_steps(tmp_path):
    """Interrupted on the way to more steps: before the first has them, and after it."""
    whole = steps(tmp_path)
    with pytest.raises(rj.SweepInterrupted):
        steps(tmp_path, steps=20, callback=stop_at(2), checkpoint_seconds=0)
    result = rj.SweepResult.load(tmp_path)
    assert result.status.tolist() == ["unfinished", "complete", "complete"]
    assert result.steps_completed.tolist() == [15, 10, 10]
    assert result.best().point == {"x": 2.0}
    assert result.by_point()[1:].tolist() == whole.by_point()[1:].tolist()
    same(steps(tmp_path, steps=20), steps(None, steps=20))

    folder = tmp_path / "again"
    steps(folder)
    with pytest.raises(rj.SweepInterrupted) as caught:
        steps(folder, steps=20, callback=stop_at(3))
    loaded = rj.SweepResult.load(folder)
    assert loaded.steps_completed.tolist() == [20, 10, 10]
    for result in (caught.value.result, loaded):
        assert np.isfinite(result.by_point()).ravel().tolist() == [True, False, False]
        assert result.best(mode="max", by="loss").point == {"x": 1.0}


# The rules of a resume.


@dataclasses.dataclass
class Mine:
    """Its repr says all; that of `Plain` says nothing."""

    k: float
    pick: object = min

    def decide(self, step, view):
        return None


class Plain:
    def __init__(self, k, rungs=(5,)):
        self.k, self._rungs = k, list(rungs)

    def rungs(self, steps):
        return self._rungs

    def decide(self, step, view):
        return None


class Said(Plain):
    def fingerprint(self):
        return f"k={self.k}"


def population(high):
    return rj.PopulationBasedTraining({"x": rj.uniform(0.5, high)}, perturbation_interval=5)


FOUR = rj.grid(x=[1.0, 2.0, 3.0, 4.0])
RULES = {
    "field": (
        Mine(5),
        Mine(2),
        r"another scheduler \(Mine with another k\): \{'k': 5\} in the folder, \{'k': 2\}",
    ),
    "function": (Mine(5, min), Mine(5, max), r"another pick.*'min'.*'max'"),
    "small": (
        population(0.9999996),
        population(1.0),
        r"another scheduler \(PopulationBasedTraining with another space\)",
    ),
    "said": (Said(1), Said(2), r"another scheduler: .*k=1.* in the folder, .*k=2.* in this call"),
    "class": (Said(1), Mine(1), "another scheduler: .*Said.*Mine"),
    "rungs": (Said(1), Said(1, (5, 7)), r"rungs of its scheduler: \[5\] in .*, \[5, 7\] in"),
    "numpy": (rj.SuccessiveHalving(np.int64(2), 5), rj.SuccessiveHalving(2, np.int32(5)), None),
    "equal": (Mine(np.float32(0.5), np.arange(3)), Mine(0.5, np.arange(3)), None),
}


@pytest.mark.parametrize("case", few(list(RULES), ["field", "function", "equal"]))
def test_another_scheduler_is_refused_and_an_equal_one_goes_on(case, tmp_path):
    first, second, message = RULES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(tmp_path, FOUR, scheduler=first)
        if message is None:
            steps(tmp_path, FOUR, scheduler=second)
            return
        before = contents(tmp_path)
        with pytest.raises(ValueError, match=message):
            steps(tmp_path, FOUR, scheduler=second)
    assert contents(tmp_path) == before


def test_a_scheduler_whose_settings_cannot_be_compared_says_so(tmp_path):
    with pytest.warns(UserWarning, match=r"Plain.*cannot be compared.*fingerprint\(\) -> str"):
        steps(tmp_path, scheduler=Plain(5))
    with pytest.warns(UserWarning, match="cannot be compared"):
        steps(tmp_path / "field", scheduler=Mine(5, object()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(None, scheduler=Plain(5))
    bad = Said(1)
    bad.fingerprint = lambda: 5
    with pytest.raises(ValueError, match=r"fingerprint\(\) must return a string, got 5"):
        steps(None, scheduler=bad)


def test_a_scheduler_decides_by_one_objective_and_mode(tmp_path):
    """Another is refused while trials are left, and reads the same when none is."""
    given = {"scheduler": rj.SuccessiveHalving(2, 5), "checkpoint_seconds": 0}
    with pytest.raises(rj.SweepInterrupted):
        steps(tmp_path, FOUR, **given, callback=stop_at(5))
    before = contents(tmp_path)
    last = lambda metrics: metrics["loss"][-1]
    for other, said in (
        ({"mode": "max"}, "mode must stay .*got max.* with min"),
        ({"objective": last}, r"objective must stay .*<lambda>.* with metric loss"),
    ):
        with pytest.raises(ValueError, match=said):
            steps(tmp_path, FOUR, **given, **other)
        assert contents(tmp_path) == before
    whole = steps(None, FOUR, **given)
    same(steps(tmp_path, FOUR, **given), whole)
    assert steps(tmp_path, FOUR, **given, mode="max").mode == "max"


def test_a_function_with_a_metrics_name_is_no_metric(tmp_path):
    def loss(metrics):
        return -float(metrics["loss"][-1])

    run(tmp_path, objective=loss)
    with pytest.raises(ValueError, match=r"objective must be.*\(loss\).*load\(path, objective="):
        rj.SweepResult.load(tmp_path)


# Files of others.

FOREIGN = [
    "final-model.npz", "states-mine.npz", "decision-notes.json", "final-000002_0 (1).npz",
    "round-²²².npz", "round-1.npz", ".draft.tmp", ".round-mine.npz.tmp", "notes.txt",
]  # fmt: skip


@pytest.mark.slow
def test_files_of_others_are_neither_read_nor_touched(tmp_path):
    whole = steps(None)
    with pytest.raises(rj.SweepInterrupted):
        steps(tmp_path, callback=stop_at(4), checkpoint_seconds=0)
    for name in FOREIGN:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".cache.tmp").mkdir()
    (tmp_path / ".round-000001.npz.tmp").mkdir()
    rj.SweepResult.load(tmp_path)
    same(steps(tmp_path), whole)
    same(rj.SweepResult.load(tmp_path), whole)
    assert {(tmp_path / name).read_text() for name in FOREIGN} == {"mine"}
    assert (tmp_path / ".cache.tmp").is_dir()


def test_a_folder_that_is_no_sweeps_keeps_its_files(tmp_path):
    for name in FOREIGN:
        (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=r"path must be .*no manifest\.json"):
        run(tmp_path)
    assert contents(tmp_path) == dict.fromkeys(FOREIGN, b"mine")
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("written", [1, 2, 4])
def test_another_format_is_refused_with_one_sentence(written, tmp_path):
    (tmp_path / "manifest.json").write_text(f'{{"format": {written}, "points": []}}')
    for read in (rj.SweepResult.load, run):
        with pytest.raises(ValueError, match=rf"written in format {written}.*another path"):
            read(tmp_path)


# Two writers.


@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_a_writer_that_lost_its_folder_writes_nothing_more(how, tmp_path):
    folder, away = tmp_path / "run", tmp_path / "away"
    other = rj.grid(x=[10.0, 20.0, 30.0])
    found = []

    def callback(report):
        if not found:
            shutil.rmtree(folder) if how == "deleted" else folder.rename(away)
            found.append(run(folder, other, **ONE))
            found.append(contents(folder))

    with pytest.raises(
        RuntimeError, match=r"path must stay .*moved, deleted, or.*nothing more"
    ) as caught:
        run(folder, callback=callback, **ONE)
    assert caught.value.result.status.tolist() == ["complete"] * 2 + ["unfinished"]
    assert contents(folder) == found[1]
    same(rj.SweepResult.load(folder), found[0])
    if how == "moved":
        assert rj.SweepResult.load(away).status.tolist() == ["complete"] + ["unfinished"] * 2
        same(run(away), run(None))


def test_a_file_of_another_sweep_is_refused(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    for folder in (a, b):
        run(folder, **ONE)
    shutil.copy(b / "round-000001.npz", a)
    for read in (run, rj.SweepResult.load):
        with pytest.raises(ValueError, match=r"round-000001\.npz .*belongs to another sweep"):
            read(a)
    shutil.copy(a / "round-000000.npz", a / "round-000001.npz")
    with pytest.raises(ValueError, match=r"round-000001\.npz .*written as round-000000"):
        run(a)


def test_what_an_earlier_writer_adds_to_a_folder_does_not_count(tmp_path):
    """It lost the folder to another, and wrote all the same."""
    old, new = tmp_path / "old", tmp_path / "new"
    copy = lambda report: new.exists() or shutil.copytree(old, new)
    run(old, callback=copy, **ONE)
    whole = run(new, **ONE)
    same(whole, run(None))
    shutil.copy(old / "round-000002.npz", new)  # of the first call; the second has one, too
    assert rj.SweepResult.load(new).status.tolist() == ["complete"] * 2 + ["unfinished"]
    same(run(new, **ONE), whole)
    same(rj.SweepResult.load(new), whole)


def test_a_kept_state_is_that_of_its_own_point(tmp_path):
    steps(tmp_path)
    shutil.copy(tmp_path / "final-000001_0.npz", tmp_path / "final-000000_0.npz")
    loaded = rj.SweepResult.load(tmp_path)
    with pytest.raises(ValueError, match=r"final-000000_0\.npz must .*damaged .*final-000001_0"):
        loaded.state(X[0])
    assert loaded.state(X[1])["x"] == steps(None).state(X[1])["x"]


@pytest.mark.slow
def test_a_folder_is_read_while_it_grows(tmp_path):
    errors, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            try:
                rj.SweepResult.load(tmp_path)
            except Exception as error:
                if "has no manifest" not in str(error):
                    errors.append(error)
                    return

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for count in range(2, 12):
            run(tmp_path, rj.grid(x=list(map(float, range(1, count)))), **ONE)
    finally:
        stop.set()
        thread.join()
    assert errors == []


def test_a_lock_that_is_held_names_its_file(tmp_path):
    def callback(report):
        with pytest.raises(RuntimeError, match=r"is writing .*delete .*\.lock"):
            run(tmp_path)

    run(tmp_path, callback=callback)


# Tampered files.


@pytest.fixture(scope="module")
def tampered(tmp_path_factory):
    """A folder with files of all kinds, and what it holds."""
    folder = tmp_path_factory.mktemp("all") / "run"
    with pytest.raises(rj.SweepInterrupted):
        steps(
            folder, FOUR, steps=30, scheduler=rj.SuccessiveHalving(2, 5), checkpoint_seconds=0,
            callback=stop_at(9),
        )  # fmt: skip
    kinds = {name.split("-")[0] for name in contents(folder)}
    assert kinds >= {"manifest.json", "round", "states", "final", "decision"}
    return folder, held(folder)


def held(folder):
    """All that a folder says to those who load it."""
    result = rj.SweepResult.load(folder)
    states = []
    for file in sorted(folder.glob("final-*")):
        point = result.points[int(file.name[6:12])]
        state = result.state(point)
        states.append({name: x.tobytes() for name, x in state.items()})
    return (
        list(result.points), result.seeds, result.mode, result.history, result.rungs,
        result.objective_name, result.status.tolist(), result.steps_completed.tolist(),
        {name: x.tobytes() for name, x in result.metrics.items()}, states,
        result.compile_seconds, result.run_seconds,
    )  # fmt: skip


def resumed(folder):
    return steps(folder, FOUR, steps=30, scheduler=rj.SuccessiveHalving(2, 5))


@pytest.mark.parametrize("flips", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_no_flipped_bit_is_silent_or_raw(flips, tampered, tmp_path):
    """Each kind of file is refused by its name, or the change does not affect the result."""
    folder, whole = tampered
    moments = random.Random(flips)
    shutil.copytree(folder, tmp_path / "run")
    for kind in ("manifest", "round", "states", "final", "decision"):
        files = sorted((tmp_path / "run").glob(f"{kind}*"))
        for _ in range(flips):
            file = moments.choice(files)
            data = file.read_bytes()
            at = moments.randrange(len(data))
            file.write_bytes(
                data[:at] + bytes([data[at] ^ 1 << moments.randrange(8)]) + data[at + 1 :]
            )
            with pytest.raises(ValueError, match=file.name):
                resumed(tmp_path / "run") if kind == "states" else held(tmp_path / "run")
            file.write_bytes(data)
    assert held(tmp_path / "run") == whole


WRONG = [None, True, -1, 0, 1.5, 10**30, float("nan"), "", "x", [], [[]], {}, {"a": 1}]


def leaves(x, path=()):
    """The way to each value in JSON."""
    yield path
    inside = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ()
    for key, value in inside:
        yield from leaves(value, (*path, key))


def replaced(x, path, value):
    if not path:
        return value
    copy = dict(x) if isinstance(x, dict) else list(x)
    copy[path[0]] = replaced(x[path[0]], path[1:], value)
    return copy


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_a_manifest_with_a_wrong_field_is_one_error(every, tampered, tmp_path):
    """Or the field may be so; then the metrics are the same."""
    folder, whole = tampered
    shutil.copytree(folder, tmp_path / "run")
    manifest = tmp_path / "run" / "manifest.json"
    good = content(manifest)
    cases = [(path, wrong) for path in leaves(good) for wrong in WRONG]
    refused = 0
    for path, wrong in cases[::every]:
        write_content(manifest, replaced(good, path, wrong))
        said = ""
        try:
            result = rj.SweepResult.load(tmp_path / "run")
            kept = {name: x.tobytes() for name, x in result.metrics.items()}
        except ValueError as error:
            said, refused = str(error), refused + 1
        assert str(tmp_path) in said if said else kept == whole[8], (path, wrong, said)
    assert refused > len(cases) / every / 2


def deep(depth):
    x = []
    for _ in range(depth):
        x = [x]
    return x


HUGE = {
    "steps": lambda m: m | {"training": m["training"] | {"steps": 10**12}},
    "deep": lambda m: m | {"static": deep(500)},
}


@pytest.mark.parametrize("case", HUGE)
def test_a_small_manifest_takes_no_large_memory(case, tampered, tmp_path):
    shutil.copytree(tampered[0], tmp_path / "run")
    manifest = tmp_path / "run" / "manifest.json"
    write_content(manifest, HUGE[case](content(manifest)))
    with pytest.raises(ValueError, match=r"manifest\.json must .*damaged"):
        rj.SweepResult.load(tmp_path / "run")


ROUNDS = {
    "byte order": lambda x: x | {"metric loss": x["metric loss"].astype(">f4")},
    "dtype": lambda x: x | {"metric n": x["metric n"].view(np.float32)},
    "shape": lambda x: x | {"metric loss": x["metric loss"][:, :-1]},
    "rows": lambda x: x | {"seed": np.repeat(x["seed"], 2)},
    "point": lambda x: x | {"point": x["point"] + 1000},
    "seconds": lambda x: x | {"seconds": np.zeros(3)},
    "steps": lambda x: x | {"steps loss": x["steps loss"] * 1.0},
    "missing": lambda x: {name: y for name, y in x.items() if name != "metric loss"},
}


@pytest.mark.parametrize("case", [*ROUNDS, "bomb", "pipe", "folder", "gone"])
def test_a_round_of_another_form_is_one_error(case, tmp_path):
    run(tmp_path, **ONE)
    file = tmp_path / "round-000001.npz"
    arrays = dict(np.load(file))
    if case == "pipe":
        file.unlink()
        os.mkfifo(file)
    elif case == "folder":
        file.unlink()
        file.mkdir()
    elif case == "gone":
        file.unlink()
        file.symlink_to(tmp_path / "nowhere")
    elif case == "bomb":
        write_arrays(
            file, arrays | {"metric loss": np.zeros((1, 10**7), np.float32)}, compress=True
        )
    else:
        write_arrays(file, ROUNDS[case](arrays))
    for read in (run, rj.SweepResult.load):
        with pytest.raises(ValueError, match=r"round-000001\.npz must .*damaged .*Move it away"):
            read(tmp_path)
