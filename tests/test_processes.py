"""The same call in two processes of one JAX cluster."""

import socket
import subprocess
import sys
import time

import pytest

import rmsprop_jax as rj
from tests import cluster, killed
from tests.test_store import contents, same


def start(problem, out, count=2):
    """The processes, both at work."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.cluster", *map(str, (i, count, port, problem, out))],
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


@pytest.mark.parametrize("problem", ["tiny", "lstm"])
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


@pytest.mark.parametrize("victim", [0, 1])
def test_one_killed_ends_the_other_and_the_folder_resumes(victim, tmp_path):
    processes = start("long", tmp_path)
    folder = tmp_path / "folder"
    while len(list(folder.glob("round-*"))) < 3:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    processes[victim].kill()
    begin = time.monotonic()
    words(processes)
    assert time.monotonic() - begin < 60
    assert processes[1 - victim].returncode != 0
    rounds = len(list(folder.glob("round-*")))
    assert 3 <= rounds < 10
    same(killed.sweep(folder), killed.sweep(None))
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
