"""The same call in two processes of one JAX cluster."""

import json
import time

import jax
import numpy as np
import pytest

import rmsprop_jax as rj
from tests.support import cluster, killed, sharded
from tests.support.cluster import start, words
from tests.support.trainings import plain
from tests.tune.storage.test_store import contents, same, undisturbed

pytestmark = pytest.mark.timeout(cluster.LIMIT + 60)


@pytest.mark.parametrize("problem", ["tiny", pytest.param("lstm", marks=pytest.mark.slow)])
def test_two_processes_give_what_one_gives(problem, tmp_path):
    first, second = words(start(problem, tmp_path))
    one = cluster.PROBLEMS[problem](None)
    for result in ("process0", "process1", "folder"):
        same(rj.SweepResult.load(tmp_path / result), one)
    assert "failed" in first  # the bar
    assert "failed" not in second
    before = contents(tmp_path / "folder")
    assert any(name.startswith("round-") for name in before)
    cluster.PROBLEMS[problem](tmp_path / "folder")  # in one process, nothing is left to do
    assert contents(tmp_path / "folder").keys() == before.keys()


@pytest.mark.slow
def test_a_finished_folder_is_read_by_two_processes(tmp_path):
    one = cluster.tiny(tmp_path / "folder")
    words(start("tiny", tmp_path))
    for result in ("process0", "process1"):
        same(rj.SweepResult.load(tmp_path / result), one)
    assert len(list((tmp_path / "folder").glob("round-*"))) > 0


@pytest.mark.slow
def test_trials_on_several_devices_of_two_processes(tmp_path):
    """A trial's devices are in one process, or all devices of both."""
    processes = start("on_mesh", tmp_path)
    said = words(processes)
    assert [process.returncode for process in processes] == [0, 0], said
    for path in (tmp_path / "process0").iterdir():
        result, other = (rj.SweepResult.load(tmp_path / f"process{i}" / path.name) for i in (0, 1))
        same(result, other)
        kind = path.name.split(" ")[0]
        if kind != "args":
            sharded.assert_close(result, sharded.sweep(kind, devices=jax.devices()[:1]))
        else:
            wanted = [x * np.sin(np.arange(32.0)).sum() for x in (1.0, 2.0)]
            np.testing.assert_allclose(result.objective, wanted, rtol=1e-5)


@pytest.mark.slow
def test_trainings_in_two_processes_give_what_one_gives(tmp_path):
    """Metrics, who was stopped, lineages, kept states; after an error, too, which stops both."""
    processes = start("kinds", tmp_path)
    said = words(processes)
    assert [process.returncode for process in processes] == [0, 0], said
    one = cluster.kinds(None)
    names = [*one, "stopped plain", "stopped population"]
    assert {path.name for path in (tmp_path / "process1").iterdir()} == set(names)
    for name in names:
        whole = one[name.removeprefix("stopped ")]
        best = whole.best()
        for place in ("process0", "process1", *(["folder"] if name != "in memory" else [])):
            result = rj.SweepResult.load(tmp_path / place / name)
            same(result, whole)
            for seed in whole.seeds:
                state = whole.state(best, seed)
                for x, y in zip(
                    plain(result.state(best, seed, like=state)), plain(state), strict=True
                ):
                    assert x.dtype == y.dtype
                    assert x.tobytes() == y.tobytes()
    assert any(len(lineage) > 1 for lineage in one["population"].history)
    assert "pruned" in one["halving"].status


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "culprit", "says"),
    [
        ("fed_apart", 1, "left sweep with OSError: the disk is away"),
        ("ends_early", 1, "ended, and sweep needs every process"),
        ("interrupted", 0, "left sweep with SweepInterrupted"),
    ],
)
def test_both_processes_end_where_one_leaves(problem, culprit, says, tmp_path):
    begin = time.monotonic()
    processes = start(problem, tmp_path)
    said = words(processes)
    assert time.monotonic() - begin < 60
    assert all(process.returncode == 1 for process in processes), said
    assert f"process {culprit} {says}" in said[1 - culprit]
    if problem == "fed_apart":
        assert (rj.SweepResult.load(tmp_path / "folder").steps_completed == 10).all()


@pytest.mark.slow
@pytest.mark.parametrize(("problem", "victim"), [("long", 0), ("long", 1), ("members", 1)])
def test_one_killed_ends_the_other_and_the_folder_resumes(problem, victim, tmp_path):
    processes = start(problem, tmp_path)
    folder, enough = tmp_path / "folder", {"long": 3, "members": 15}[problem]
    while len(list(folder.glob("round-*"))) < enough:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    processes[victim].kill()
    begin = time.monotonic()
    words(processes)
    assert time.monotonic() - begin < 60
    assert processes[1 - victim].returncode != 0
    rounds = len(list(folder.glob("round-*")))
    kind = {"long": "function", "members": "halving"}[problem]
    assert rounds >= enough
    whole = undisturbed(kind)
    assert rj.SweepResult.load(folder).steps_completed.sum() < whole.steps_completed.sum()
    same(killed.sweep(folder, kind=kind), whole)
    assert len(list(folder.glob("round-*"))) > rounds


@pytest.mark.slow
def test_what_stops_the_first_process_stops_all(tmp_path):
    first, second = words(start("refused", tmp_path))
    assert "no manifest.json" in first
    assert "process 0 left sweep with ValueError" in second
    assert "no manifest.json" in second


@pytest.fixture(scope="module")
def came_to(tmp_path_factory):
    """Return the outcomes of calls that differ between two processes: by name, for each process."""
    folder = tmp_path_factory.mktemp("differences")
    processes = start("differences", folder)
    said = words(processes)
    assert [process.returncode for process in processes] == [0, 0], said
    each = [json.loads((folder / f"came_to{i}.json").read_text()) for i in range(2)]
    return {name: (each[0][name], each[1][name]) for name in each[0]}


def names_of(cases):
    return pytest.mark.parametrize("name", cases)


@pytest.mark.slow
@names_of(cluster.DIFFERENCES)
def test_processes_that_differ_get_one_error_before_anything_runs(name, came_to):
    first, second = came_to[name]
    assert first["error"] == second["error"] == "ValueError"
    assert first["says"] == second["says"]
    assert first["says"].startswith(name.split(",")[0])
    if name != "batches, later":
        assert first["reached"] is second["reached"] is None


@pytest.mark.slow
@names_of(cluster.EXCEPTIONS)
def test_an_exception_on_one_process_ends_the_other(name, came_to):
    own, others = sorted(came_to[name], key=lambda one: "left sweep" in one["says"])
    culprit = came_to[name].index(own)
    text = own["says"].encode(errors="backslashreplace").decode()
    said = f"process {culprit} left sweep with {own['error']}: {text}"
    assert others["says"].startswith(said)
    assert others["error"] == "OtherProcessError"
    assert max(own["seconds"], others["seconds"]) < 60
    if "trace" in name or "zeros" in name or "argument" in name:  # nothing ran
        assert own["reached"] is others["reached"] is None
    else:
        assert own["reached"] == others["reached"]
        assert max(own["reached"]) > 0


@pytest.mark.slow
@names_of(cluster.WORK)
def test_what_counts_on_process_0_only_may_differ(name, came_to):
    first, second = came_to[name]
    assert first["error"] is second["error"] is None
    assert first["objective"] == second["objective"]


@pytest.mark.slow
def test_processes_may_sweep_apart(tmp_path):
    processes = start("apart", tmp_path)
    words(processes)
    assert [process.returncode for process in processes] == [0, 0]
