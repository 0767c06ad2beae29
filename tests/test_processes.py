"""The same call in two processes of one JAX cluster."""

import socket
import subprocess
import sys
import time

import pytest

import rmsprop_jax as rj
from tests.support import cluster, killed
from tests.support.trainings import plain
from tests.test_store import contents, same, undisturbed


def start(problem, out, count=2):
    """The processes, both at work."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, "-m", cluster.__name__, *map(str, (i, count, port, problem, out))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]


def words(processes):
    """What each wrote to standard error, once they have ended."""
    try:
        return [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()


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


def test_a_finished_folder_is_read_by_two_processes(tmp_path):
    one = cluster.tiny(tmp_path / "folder")
    words(start("tiny", tmp_path))
    for result in ("process0", "process1"):
        same(rj.SweepResult.load(tmp_path / result), one)
    assert len(list((tmp_path / "folder").glob("round-*"))) > 0


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
    assert "stopped" in one["halving"].status


def test_data_that_fails_on_one_process_stops_the_other(tmp_path):
    first, second = processes = start("fed_apart", tmp_path)
    said = words(processes)
    assert first.returncode
    assert second.returncode
    assert "the disk is away" in said[1]
    assert (rj.SweepResult.load(tmp_path / "folder").reached == 10).all()


@pytest.mark.parametrize(
    ("problem", "victim"),
    [
        ("long", 0),
        pytest.param("long", 1, marks=pytest.mark.slow),
        pytest.param("members", 1, marks=pytest.mark.slow),
    ],
)
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
    assert rj.SweepResult.load(folder).reached.sum() < whole.reached.sum()
    same(killed.sweep(folder, kind=kind), whole)
    assert len(list(folder.glob("round-*"))) > rounds


def test_what_stops_the_first_process_stops_all(tmp_path):
    first, second = words(start("refused", tmp_path))
    assert "no sweep's folder" in first
    assert "process 0 refused to go on" in second


def test_processes_that_ask_for_different_points_are_refused(tmp_path):
    for said in words(start("different", tmp_path)):
        assert "different points, seeds or options" in said


def test_processes_may_sweep_apart(tmp_path):
    processes = start("apart", tmp_path)
    words(processes)
    assert [process.returncode for process in processes] == [0, 0]
