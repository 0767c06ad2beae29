"""Checkpoints of trainings under way: what a stop costs, how a sweep goes on, also for longer."""

import contextlib
import functools
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmsprop_jax as rj
from rmsprop_jax._tune.run.local_devices import LocalDevices
from rmsprop_jax._tune.run.machine import Machine
from rmsprop_jax._tune.storage.writer import FolderWriter
from rmsprop_jax._tune.trials.host_memory import free_bytes
from tests.support import engine, trainings
from tests.support.tables import few
from tests.support.trainings import SCALE, alone, noisy, plain
from tests.tune.storage.test_store import child

POINTS = trainings.POINTS[1::2]  # of one static group; those of `walk` are of two
OPTIONS = {"evaluate_every": 10, "seeds": 2}
sweep = functools.partial(trainings.sweep, points=POINTS)


@pytest.fixture(scope="module")
def whole():
    return sweep(keep_states="all", **OPTIONS)


@pytest.fixture(scope="module")
def logged_whole():
    """The log is part of the program: newer compilers round the steps around it otherwise."""
    return sweep(logged()[0], keep_states="all", **OPTIONS)


def assert_same(result, other):
    for name in other.metrics:
        assert result.metrics[name].tobytes() == other.metrics[name].tobytes()
    np.testing.assert_array_equal(result.objective, other.objective)
    assert result.status.tolist() == other.status.tolist()
    assert result.steps_completed.tolist() == other.steps_completed.tolist()


def stop_at(count):
    """A callback that raises at its so-manieth call."""
    calls = []

    def callback(report):
        calls.append(1)
        if len(calls) == count:
            raise KeyboardInterrupt

    return callback


def logged():
    """The training, and the steps that it takes: (rate, seed's bits, step)."""
    training, log = noisy(), []

    def step(hp, state, key, scale):
        jax.debug.callback(
            lambda *x: log.append(tuple(float(y) for y in x)), hp["rate"], hp["decay"],
            state["count"],
        )  # fmt: skip
        return training.step(hp, state, key, scale)

    return rj.Training(training.init, step, training.evaluate), log


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 17])
def test_a_stop_costs_the_segments_in_flight_and_no_more(count, devices, tmp_path, logged_whole):
    training, log = logged()
    here, there = jax.devices()[:devices], jax.devices()[: 3 - devices]
    run = lambda **more: sweep(
        training, path=tmp_path, checkpoint_seconds=0, keep_states="all", **OPTIONS | more
    )
    with pytest.raises(rj.SweepInterrupted) as caught:
        run(callback=stop_at(count), devices=here)
    jax.effects_barrier()
    before = len(log)
    assert caught.value.result.steps_completed.sum() <= before
    again = run(devices=there)
    jax.effects_barrier()
    assert_same(again, logged_whole)
    twice = len(log) - len(POINTS) * 2 * 50
    assert 0 <= twice <= 2 * devices * 10  # two segments of each device may be in flight
    for point in POINTS:
        for seed in (0, 1):
            for x, y in zip(plain(again.state(point, seed)), plain(logged_whole.state(point, seed)),
                            strict=True):  # fmt: skip
                np.testing.assert_array_equal(x, y)
    log.clear()
    run()
    jax.effects_barrier()
    assert not log
    assert not list(tmp_path.glob("states-*"))


def test_without_checkpoints_only_whole_trials_are_on_disk(tmp_path):
    with pytest.raises(rj.SweepInterrupted):
        sweep(path=tmp_path, callback=stop_at(7), devices=jax.devices()[:1], **OPTIONS)
    assert not list(tmp_path.glob("states-*"))
    loaded = rj.SweepResult.load(tmp_path)
    begun = loaded.steps_completed > 0
    assert begun.any()
    assert loaded.status.tolist() == np.where(begun, "complete", "unfinished").tolist()


def test_what_is_under_way_is_loaded_as_far_as_it_is(tmp_path, whole):
    with pytest.raises(rj.SweepInterrupted):
        sweep(
            path=tmp_path, callback=stop_at(8), checkpoint_seconds=0, devices=jax.devices()[:1],
            **OPTIONS,
        )  # fmt: skip
    loaded = rj.SweepResult.load(tmp_path)
    assert loaded.status.tolist() == ["complete", *["unfinished"] * (2 * len(POINTS) - 1)]
    reached = loaded.steps_completed[1]
    assert not loaded.steps_completed[2:].any()
    assert 10 <= reached < 50
    np.testing.assert_array_equal(
        loaded.metrics["loss"][1, :reached], whole.metrics["loss"][1, :reached]
    )
    assert np.isnan(loaded.metrics["loss"][1, reached:]).all()
    assert np.isnan(loaded.by_point()[0, 1])
    assert loaded.best().point == POINTS[0]


def test_the_older_states_are_deleted_after_the_newer_are_on_disk(tmp_path, monkeypatch):
    events, write, delete = [], FolderWriter.write_states, FolderWriter.delete

    def written(self, *args):
        name = write(self, *args)
        events.append(("write", name))
        return name

    def deleted(self, name):
        assert events[-1][0] == "write" or events[-1][0] == "delete"
        events.append(("delete", name))
        delete(self, name)

    monkeypatch.setattr(FolderWriter, "write_states", written)
    monkeypatch.setattr(FolderWriter, "delete", deleted)
    sweep(points=POINTS[:1], path=tmp_path, checkpoint_seconds=0, evaluate_every=10)
    kinds = [kind for kind, _ in events]
    assert kinds[:3] == ["write", "write", "delete"]
    assert kinds.count("write") == kinds.count("delete") == 4
    assert events[2][1] == events[0][1]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped", "foreign", "cut", "empty"])
def test_a_damaged_state_is_named_and_its_trial_starts_again_once_it_is_moved(
    damage, tmp_path, logged_whole
):
    training, log = logged()
    run = lambda **more: sweep(
        training, path=tmp_path, checkpoint_seconds=0, devices=jax.devices()[:1], **OPTIONS | more
    )
    with pytest.raises(rj.SweepInterrupted):
        run(callback=stop_at(8))
    (file,) = tmp_path.glob("states-*")
    data = file.read_bytes()
    if damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        with np.load(file) as stored:
            at = data.index(stored["leaf 6"].tobytes()) + 2
        file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        np.savez(file.with_suffix(""), point=np.zeros(1, int))
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=rf"{file.name} must .*damaged.*start again"):
        run()
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before
    file.rename(tmp_path.parent / f"{tmp_path.name}-away")
    jax.effects_barrier()
    log.clear()
    assert_same(run(), logged_whole)
    jax.effects_barrier()
    assert len(log) == (len(POINTS) * 2 - 1) * 50  # one was finished


@pytest.mark.slow
def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path):
    """The kernel refuses files beyond 9,000 bytes: those of the second trial's state."""
    code, words = child(
        "import resource\n"
        "from tests.tune.trials.test_checkpoints import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "of_sizes(folder)",
        tmp_path,
    )
    assert code == 1
    assert any(
        "states-000000.npz cannot be written" in w
        and "make the same call again" in w
        and "File too large" in w
        for w in words
    )
    assert any(
        "trials are in this exception's .result: SweepResult(1 of 2 trials complete, 1 unf" in w
        for w in words
    )
    assert not list(tmp_path.glob("states-*"))
    assert not list(tmp_path.glob(".*.tmp"))
    rounds_then = {file: file.read_bytes() for file in tmp_path.glob("round-*")}
    assert_same(of_sizes(tmp_path), of_sizes(None))
    assert {file: file.read_bytes() for file in rounds_then} == rounds_then


def of_sizes(path):
    """Two trials whose states are of different sizes."""
    training = rj.Training(
        lambda hp, key: jnp.ones(4000 if hp["large"] else 4) * hp["x"],
        lambda hp, s, key: (s, {"loss": s[0]}),
    )
    return rj.sweep(
        training, rj.grid(x=[1.0], large=[False, True]), steps=10, evaluate_every=5, path=path,
        checkpoint_seconds=0, progress=False,
    )  # fmt: skip


# A kill between any two files.


WAYS = {
    "steps": {},
    "batches": {"batches": lambda t: np.float32(t)},
    "halving": {"scheduler": lambda rung: rj.SuccessiveHalving(2, rung)},
    "population": {
        "scheduler": lambda rung: rj.PopulationBasedTraining(
            {"rate": rj.uniform(0.1, 0.9)}, perturbation_interval=rung
        )
    },
}


def walk(path, way, steps, rung=None, **options):
    """A random walk, upwards or downwards."""

    def step(hp, x, key, *batch):
        drift = 1.0 if hp["up"] else -1.0
        return x - hp["rate"] * x + drift * jax.random.uniform(key), {"loss": x**2}

    ups = [True] if steps == 4 else [False, True]
    given = WAYS[way] | options
    if "scheduler" in given:
        given["scheduler"] = given["scheduler"](rung or steps - 2)
    return engine.sweep(
        rj.Training(lambda hp, key: jax.random.uniform(key), step),
        rj.grid(rate=[0.4, 0.3, 0.2, 0.1], up=ups),
        Machine(wave_seconds=0),  # several waves of a static group
        steps=steps, evaluate_every=2, path=path, checkpoint_seconds=0, **given,
    )  # fmt: skip


KILLED = {
    "steps": ("steps", 2, 4),
    "halving": ("halving", "all", 4),
    "population": ("population", 2, 4),
    "longer population": ("population", 2, 6),
    "batches": ("batches", 2, 4),
}


@pytest.mark.parametrize(("way", "keep", "steps"), few(KILLED, ["population"], unpack=True))
# Where the trial that beat another is not on disk yet, the other may be the best, for all it knows.
@pytest.mark.filterwarnings("ignore:keep_states=2 may need the states of")
def test_a_kill_between_any_two_files_costs_a_segment_and_no_more(
    way, keep, steps, tmp_path, monkeypatch
):
    """The folder is copied before each file gets its name, and before each is deleted."""
    folder, copies, ran = tmp_path / "run", [], []
    replace, unlink, dispatch = os.replace, Path.unlink, LocalDevices.dispatch

    def copy():
        to = tmp_path / f"copy{len(copies)}"
        shutil.copytree(folder, to, ignore=shutil.ignore_patterns(".lock"))
        copies.append((to, set(ran)))

    def noted(self, batch, until, data=None):
        ran.extend(zip(batch.trials.tolist(), batch.steps_completed.tolist(), strict=True))
        return dispatch(self, batch, until, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalDevices, "dispatch", noted)
        patch.setattr(os, "replace", lambda *names: (copy(), replace(*names)))
        patch.setattr(Path, "unlink", lambda self, **options: (copy(), unlink(self, **options)))
        whole = walk(folder, way, steps, keep_states=keep)
    monkeypatch.setattr(LocalDevices, "dispatch", noted)
    assert len(ran) == len(set(ran))
    files = lambda path: {file.name for file in path.glob("[!r]*-*")}
    kept = [file.name for file in folder.glob("final-*")]
    assert not list(folder.glob("states-*"))
    for i, (path, before) in enumerate(copies):
        ran.clear()
        again = walk(path, way, steps, keep_states=keep, devices=jax.devices()[: 1 + i % 2])
        assert_same(again, whole)
        assert again.history == whole.history
        twice = before & set(ran)
        assert len({start for _, start in twice}) <= 1  # the segment that was in flight
        assert files(path) == files(folder)
        assert len(ran) == len(set(ran))
        for name in kept:
            with np.load(path / name) as one, np.load(folder / name) as other:
                assert {k: x.tobytes() for k, x in one.items()} == {
                    k: x.tobytes() for k, x in other.items()
                }


@pytest.mark.slow
def test_a_member_that_starts_again_has_no_donor_left(tmp_path, monkeypatch):
    """Its donor's state of then is no more: refused, not taken from a later step."""
    whole = walk(None, "population", 6, 2)

    def stop(report):
        if report.trials[0].step == 6:
            raise KeyboardInterrupt

    with pytest.raises(rj.SweepInterrupted):
        walk(tmp_path, "population", 6, 2, callback=stop, devices=jax.devices()[:1])
    starts = [[start for start, *_ in lineage[1:]] for lineage in whole.history]
    taker = starts.index([2])
    for file in tmp_path.glob("states-*"):
        with np.load(file) as stored:
            assert stored["step"] == [4]
            if stored["point"] == [taker]:
                file.unlink()
    with pytest.raises(ValueError, match=r"donors must be at step 2 .*1 of them.*states-\*\.npz"):
        walk(tmp_path, "population", 6, 2)
    for file in [*tmp_path.glob("states-*"), *tmp_path.glob("round-*")]:
        file.unlink()
    assert_same(walk(tmp_path, "population", 6, 2), whole)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["steps", "halving"])
def test_a_round_that_is_moved_away_from_the_middle_is_run_again(way, tmp_path, monkeypatch):
    """Not a hole of NaN in its trials."""
    whole = walk(tmp_path, way, 6, 2, keep_states="all", devices=jax.devices()[:1])
    best = whole.points.index_of(whole.best().point)
    for file in sorted(tmp_path.glob("round-*")):
        with np.load(file) as stored:
            if best in stored["point"] and stored["steps_completed"][0] == 4:
                file.rename(tmp_path.parent / f"{tmp_path.name}-away")
                lost = stored["point"].tolist()
    assert len(lost) == (4 if way == "halving" else 1)
    loaded = rj.SweepResult.load(tmp_path)
    assert (loaded.steps_completed != whole.steps_completed).nonzero()[0].tolist() == lost
    assert (loaded.steps_completed[lost] == 2).all()
    assert np.isnan(loaded.metrics["loss"][lost, 2:]).all()
    assert loaded.status[best] == "unfinished"
    written = {file: file.read_bytes() for file in tmp_path.glob("round-*")}
    again = walk(tmp_path, way, 6, 2, keep_states="all")
    assert_same(again, whole)
    assert_same(rj.SweepResult.load(tmp_path), whole)
    np.testing.assert_array_equal(again.state(again.best()), whole.state(whole.best()))
    for file in set(tmp_path.glob("round-*")) - set(written):
        with np.load(file) as stored:
            assert set(stored["point"].tolist()) <= set(lost)
    assert {file: file.read_bytes() for file in written} == written


# Going on for longer.


def longer(**more):
    return sweep(**{"steps": 80, "evaluate_every": 10, "keep_states": "all", **more})


@pytest.mark.slow
def test_more_steps_go_on(tmp_path):
    training, log = logged()
    longer(training=training, steps=50, path=tmp_path)
    jax.effects_barrier()
    log.clear()
    more = longer(training=training, path=tmp_path)
    jax.effects_barrier()
    assert len(log) == len(POINTS) * 30
    whole = longer(training=logged()[0])
    assert_same(more, whole)
    state, _ = alone(logged()[0], POINTS[2], 0, 80)
    for x, y in zip(plain(more.state(POINTS[2])), plain(state), strict=True):
        np.testing.assert_array_equal(x, y)
    assert_same(rj.SweepResult.load(tmp_path), whole)
    with pytest.raises(ValueError, match=r"more steps: 80 in .* 50 in"):
        longer(steps=50, path=tmp_path)


@pytest.mark.slow
def test_a_final_state_that_does_not_count_is_missing(tmp_path):
    """An older call wrote it, and the last call did not find it."""
    final, away = tmp_path / "run" / "final-000000_0.npz", tmp_path / "away"
    longer(steps=50, path=final.parent)
    final.rename(away)
    with pytest.warns(UserWarning, match="an earlier call did not keep"):
        longer(steps=50, path=final.parent, seeds=3)
    away.rename(final)
    with pytest.raises(ValueError, match=r"final state of each complete trial .* 1 of them"):
        longer(path=final.parent, seeds=3)


@pytest.mark.slow
def test_more_steps_with_every_and_an_odd_end(tmp_path):
    longer(steps=45, path=tmp_path, record_every=7)
    assert_same(longer(path=tmp_path, record_every=7), longer(record_every=7))


HALVING = rj.SuccessiveHalving(3, 10)
REFUSED = {
    "no states": ({"keep_states": 1}, {}, r'state of each complete trial .*keep_states="all"'),
    "other evaluate_every": ({}, {"evaluate_every": 20}, "pass evaluate_every=10"),
    "default evaluate_every": ({"evaluate_every": None}, {"evaluate_every": None},
                               "pass evaluate_every=3"),
    "a scheduler": ({"scheduler": HALVING}, {"scheduler": HALVING},
                    r"Pruned trials cannot resume.*training\.run"),
    "another training": ({}, {"training": noisy(jnp.ones(5))}, "another train"),
    "other args": ({}, {"args": (SCALE * 2,)}, "other args"),
}  # fmt: skip


@pytest.mark.parametrize(
    "case", few(list(REFUSED), ["no states", "other evaluate_every", "a scheduler"])
)
def test_what_cannot_go_on_is_told_what_to_do(case, tmp_path):
    first, second, message = REFUSED[case]
    longer(steps=50, path=tmp_path, **first)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=message):
        longer(path=tmp_path, **second)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_functions_and_trainings_do_not_share_a_folder(tmp_path):
    train = lambda hp, key: {"loss": hp["x"] * jnp.arange(3.0)}
    training = rj.Training(lambda hp, key: 0, lambda hp, s, key: (s, {"loss": hp["x"]}))
    points = rj.grid(x=[1.0])
    rj.sweep(train, points, path=tmp_path / "f", progress=False)
    rj.sweep(training, points, steps=3, path=tmp_path / "t", progress=False)
    with pytest.raises(ValueError, match=r"a function in .* a Training in"):
        rj.sweep(training, points, steps=3, path=tmp_path / "f", progress=False)
    with pytest.raises(ValueError, match=r"a Training in .* a function in"):
        rj.sweep(train, points, path=tmp_path / "t", progress=False)


@pytest.mark.slow
def test_points_and_seeds_may_be_added(tmp_path, whole):
    sweep(points=POINTS[:5], path=tmp_path, evaluate_every=10, keep_states=0)
    assert_same(sweep(path=tmp_path, keep_states=0, **OPTIONS), sweep(**OPTIONS))


# Room.


def machine(root, available, mounts="", cgroups="0::/", **files):
    """A folder that stands for a machine's `/`."""
    texts = {
        "proc/meminfo": f"MemTotal: 99999999 kB\nMemAvailable: {int(available / 1024)} kB\n",
        "proc/self/mountinfo": f"{mounts}\n21 1 0:19 / /proc rw - proc  rw\n".lstrip(),
        "proc/self/cgroup": f"{cgroups}\n".lstrip(),
    }
    for name, text in (texts | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V1 = "35 31 0:32 {} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
V2 = "31 23 0:28 {} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
NO_LIMIT = 2**63 - 4096


def v1(folder, limit, usage, stat=""):
    names = ("limit_in_bytes", "usage_in_bytes", "stat")
    of = zip(names, (limit, usage, stat), strict=True)
    return {f"sys/fs/cgroup/memory/{folder}memory.{name}": f"{x}\n" for name, x in of}


def v2(folder, limit, usage, stat="", high="max"):
    of = {"max": limit, "current": usage, "stat": stat, "high": high}
    return {f"sys/fs/cgroup/{folder}memory.{name}": f"{x}\n" for name, x in of.items()}


CACHED_1 = "inactive_file 7\ntotal_inactive_file 3000000\ntotal_active_file 2000000"
CACHED_2 = "anon 5\ninactive_file 3000000\nactive_file 2000000"
ROOMY = 10**9
LIMITS = {
    "version 2, a container's own view": (V2.format("/"), "0::/", v2("", 30_000_000, 10_000_000)),
    "version 2, a group in groups": (
        V2.format("/"),
        "0::/user/job",
        v2("user/job/", "max", 5_000_000) | v2("user/", 40_000_000, 20_000_000),
    ),
    "version 2, the innermost": (
        V2.format("/"), "0::/user/job", v2("user/job/", 20_000_000, 0) | v2("user/", ROOMY, 0),
    ),
    "version 2, files that the kernel can drop": (
        V2.format("/"), "0::/", v2("", 30_000_000, 15_000_000, CACHED_2),
    ),
    "version 2, where the kernel slows it": (
        V2.format("/"), "0::/", v2("", "max", 10_000_000, high=30_000_000),
    ),
    "version 1": (V1.format("/"), "4:cpu,memory:/job", v1("job/", 30_000_000, 10_000_000)),
    "version 1, a group in groups": (
        V1.format("/"),
        "4:memory:/user/job",
        v1("user/job/", NO_LIMIT, 5) | v1("user/", 30_000_000, 10_000_000) | v1("", NO_LIMIT, 5),
    ),
    "version 1, files that the kernel can drop": (
        V1.format("/"), "4:memory:/job", v1("job/", 30_000_000, 15_000_000, CACHED_1),
    ),
    "version 1, a container that names its group from outside": (
        V1.format("/docker/abc"), "4:memory:/docker/abc", v1("", 30_000_000, 10_000_000),
    ),
    "version 1, a group in a container that names it so": (
        V1.format("/docker/abc"),
        "4:memory:/docker/abc/job",
        v1("job/", 30_000_000, 10_000_000) | v1("", NO_LIMIT, 10_000_000),
    ),
    "version 1, a path that is not mounted here": (
        V1.format("/docker/abc"), "4:memory:/elsewhere", v1("", 30_000_000, 10_000_000),
    ),
    "versions side by side": (
        V1.format("/") + "\n" + V2.format("/").replace("cgroup rw", "cgroup/unified rw"),
        "4:memory:/job\n1:cpu:/\n0::/",
        v1("job/", 30_000_000, 10_000_000),
    ),
}  # fmt: skip


def sweep_of_20_megabytes(root):
    """Sweep one trial with a state of 20 MB on a machine with these system files."""
    init = lambda hp, key: jnp.ones(5_000_000)
    big = rj.Training(init, lambda hp, s, key: (s, {"loss": hp["x"]}))
    free = Machine(host_memory=lambda: free_bytes(root))
    return engine.sweep(big, rj.grid(x=[1.0]), free, steps=1)


@pytest.mark.parametrize("case", LIMITS)
def test_the_limit_of_a_container_counts_as_the_memory_that_is_free(case, tmp_path):
    mounts, cgroups, files = LIMITS[case]
    root = machine(tmp_path, ROOMY, mounts, cgroups, **files)
    with pytest.raises(ValueError, match=r"memory, of which 0\.02 GB are free.*keep_states"):
        sweep_of_20_megabytes(root)


@pytest.mark.parametrize(
    ("mounts", "cgroups", "files"),
    [
        (V2.format("/"), "0::/job", v2("job/", "max", 5)),
        (V1.format("/"), "4:memory:/job", v1("job/", NO_LIMIT, 5)),
        (V2.format("/"), "0::/gone", {}),
        (V2.format("/"), "0::/../job", v2("job/", 5, 0)),  # of another container
        ("", "", {}),
    ],
)
def test_a_machine_without_a_limit_has_what_it_says(mounts, cgroups, files, tmp_path):
    root = machine(tmp_path, 20e6, mounts, cgroups, **files)
    with pytest.raises(ValueError, match=r"memory, of which 0\.02 GB are free.*keep_states"):
        sweep_of_20_megabytes(root)


def test_where_no_file_says_what_is_free_nothing_is_refused(tmp_path):
    assert sweep_of_20_megabytes(tmp_path).objective == [1.0]


@pytest.mark.slow
def test_states_that_do_not_fit_are_refused_before_anything_runs(tmp_path, monkeypatch):
    ran = []
    big = rj.Training(
        lambda hp, key: jnp.ones(1_000_000) * hp["x"],
        lambda hp, s, key: (jax.debug.callback(lambda: ran.append(1)), (s, {"loss": s[0]}))[1],
    )
    root = machine(tmp_path / "root", 270e6)
    run = lambda **more: engine.sweep(
        big, rj.grid(x=[1.0, 2.0, 3.0]), Machine(host_memory=lambda: free_bytes(root)), steps=2,
        keep_states="all", **more,
    )  # fmt: skip
    with pytest.raises(
        ValueError,
        match=r"0\.27 GB are free .*2 running .* 3 kept .* need 0\.221 GB\. Pass .*path=",
    ):
        run()
    run(path=tmp_path / "a")  # kept on disk
    assert ran
    ran.clear()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=25e6))
    with pytest.raises(
        ValueError, match=r"disk .*0\.025 GB are free.* 3 kept .* need 0\.028 GB\. Pass"
    ):
        run(path=tmp_path / "b")
    jax.effects_barrier()
    assert not ran


# States that an earlier call did not keep.

LUCK = np.array([[0.0, 9.0], [1.0, 1.0], [5.0, 8.0]])  # point 0 is best for seed 0, 1 for both
LOTTERY = rj.grid(x=[0.0, 1.0, 2.0])


def lottery(points=LOTTERY, **options):
    """A sweep whose best point changes with the seeds; a state tells its point and its seed."""

    def init(hp, key):
        keys = jax.random.key_data(jnp.stack([jax.random.key(s) for s in (0, 1)]))
        key_0 = lambda k: jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(k), 0))
        seed = jnp.argmax((jax.vmap(key_0)(keys) == jax.random.key_data(key)).all(1))
        return {"x": hp["x"], "seed": seed}

    def step(hp, state, key):
        loss = jnp.asarray(LUCK, jnp.float32)[state["x"].astype(int), state["seed"]]
        return state, {"loss": loss, "other": -loss}

    training = rj.Training(init, step)
    return rj.sweep(training, points, **{"steps": 2, "progress": False} | options)


def assert_has_states(result, record):
    for seed in result.seeds:
        state = result.state(record, seed=seed)
        assert (state["x"], state["seed"]) == (record.point["x"], seed)


def test_more_seeds_say_before_they_run_which_states_are_gone(tmp_path):
    assert lottery(path=tmp_path).best().point == LOTTERY[0]
    ran = []
    with pytest.warns(UserWarning, match=r"states of 2 finished trials.*retrain") as caught:
        result = lottery(path=tmp_path, seeds=2, callback=lambda r: ran.append(len(caught.list)))
    assert ran
    assert set(ran) == {1}  # said before
    assert caught[0].filename == __file__
    best = result.best()
    assert best.point == LOTTERY[1]
    assert result.state(best, seed=1)["x"] == 1.0
    with pytest.raises(ValueError, match=r"keep_states.*seed 0.*result\.retrain"):
        result.state(best)
    assert result.retrain(best)[0]["x"] == 1.0


@pytest.mark.slow
def test_more_seeds_have_each_state_where_all_were_kept(tmp_path):
    lottery(path=tmp_path, keep_states="all")
    result = lottery(path=tmp_path, seeds=2, keep_states=1)
    assert result.best().point == LOTTERY[1]
    assert_has_states(result, result.best())


@pytest.mark.slow
def test_more_points_have_the_state_of_the_best_old_or_new(tmp_path):
    lottery(LOTTERY[2:], path=tmp_path, seeds=2)
    for points, best in ((LOTTERY[1:], 1.0), (LOTTERY, 1.0)):
        result = lottery(points, path=tmp_path, seeds=2)
        assert result.best().point == {"x": best}
        assert_has_states(result, result.best())


AGAIN = {
    "the same": ({}, None),
    "more are wanted": ({"keep_states": 2}, 1),
    "all are wanted": ({"keep_states": "all"}, 2),
    "none is wanted": ({"keep_states": 0}, None),
    "another mode": ({"mode": "max"}, 1),
    "another objective": ({"objective": "other"}, 1),
    "an equal objective": ({"objective": "other", "mode": "max"}, None),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", few(list(AGAIN), ["the same", "more are wanted", "all are wanted", "another mode"])
)
def test_another_call_says_whether_the_states_that_it_wants_are_there(case, tmp_path):
    options, gone = AGAIN[case]
    lottery(path=tmp_path)
    expected = contextlib.nullcontext()
    if gone is not None:
        expected = pytest.warns(UserWarning, match=f"states of {gone} finished trials")
    with expected:
        result = lottery(path=tmp_path, **options)
    if gone is None and options != {"keep_states": 0}:
        assert_has_states(result, result.best())


@pytest.mark.slow
def test_an_interrupted_call_keeps_what_its_resumption_needs(tmp_path):
    with pytest.raises(rj.SweepInterrupted):
        lottery(path=tmp_path, seeds=2, callback=stop_at(4), devices=jax.devices()[0])
    result = lottery(path=tmp_path, seeds=2)
    assert_has_states(result, result.best())
