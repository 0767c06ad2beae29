"""A sweep's folder: killed, resumed, grown, refused; nothing finished is lost or run again."""

import collections
import functools
import itertools
import os
import random
import stat
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmsprop_jax as rj
from rmsprop_jax._tune.storage import folder as store
from tests.support import killed
from tests.support.folders import contents
from tests.support.tables import few
from tests.support.trainings import plain

X = rj.grid(x=[1.0, 2.0, 3.0])


def train(hp, key, scale=1.0):
    return {
        "loss": hp["x"] * scale + jax.random.uniform(key) * jnp.arange(5.0),
        "twice": 2 * hp["x"],
    }


def run(path, points=X, f=train, **options):
    return rj.sweep(f, points, path=path, progress=False, **options)


def same(a, b):
    """Bit for bit, in everything but the seconds."""
    assert a.points == b.points
    assert a.seeds == b.seeds
    assert a.metrics.keys() == b.metrics.keys()
    for name in a.metrics:
        assert a.metrics[name].dtype == b.metrics[name].dtype
        assert a.metrics[name].tobytes() == b.metrics[name].tobytes()
    np.testing.assert_array_equal(a.objective, b.objective)
    np.testing.assert_array_equal(a.point_index, b.point_index)
    np.testing.assert_array_equal(a.seed_index, b.seed_index)
    np.testing.assert_array_equal(a.steps_completed, b.steps_completed)
    np.testing.assert_array_equal(a.status, b.status)
    assert a.history == b.history


@functools.cache
def undisturbed(kind):
    return killed.sweep(None, kind=kind)


class Killed:
    """A folder whose sweep is killed and resumed, on 1 or 2 devices."""

    def __init__(self, kind, where, moments):
        self.kind, self.moments, self._log = kind, moments, where / "log"
        self.folder = where / f"folder{len(list(where.iterdir()))}"

    def names(self):
        return os.listdir(self.folder) if self.folder.exists() else []

    def rounds(self):
        return sum(name.startswith("round-") for name in self.names())

    def run(self, aim):
        """Start it, kill it as `aim` says; whether it had ended, and what it ran."""
        self._log.unlink(missing_ok=True)
        devices = str(self.moments.choice([1, 2]))
        about = [self.folder, self._log, devices, self.kind]
        child = subprocess.Popen([sys.executable, "-m", killed.__name__, *about])
        aim(self, child)
        child.kill()
        ended = child.wait() == 0
        said = self._log.read_text().split("\n")[:-1] if self._log.exists() else []
        return ended, collections.Counter(said)


ROUNDS = {"function": 8, "steps": 60, "halving": 20, "population": 25}  # about a third of them


def at_any_moment(run, child):
    enough = run.rounds() + run.moments.randint(0, ROUNDS[run.kind])
    while child.poll() is None and run.rounds() < enough:
        time.sleep(0.002)
    time.sleep(run.moments.uniform(0, 2.0 if run.rounds() == 0 else 0.2))


def while_it_writes(what):
    """A file of this kind; states of all are on disk already."""

    def aim(run, child):
        enough = run.rounds() + run.moments.randint(0, ROUNDS[run.kind])
        is_there = lambda start: any(name.startswith(start) for name in run.names())
        while child.poll() is None and (run.rounds() < enough or not is_there("states-")):
            time.sleep(0.002)
        while child.poll() is None and not is_there(f".{what}-"):
            time.sleep(0.0002)

    return aim


def not_at_all(run, child):
    child.wait()


def aims(kind):
    """In turn."""
    if kind == "function":
        return itertools.repeat(at_any_moment)
    what = ["states", "round", "final", *(["decision"] if kind != "steps" else [])]
    writing = map(while_it_writes, what)
    return itertools.cycle(x for each in writing for x in (at_any_moment, each))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("kind", "kills"), [("function", 2), ("steps", 3), ("halving", 4), ("population", 4)]
)
def test_killed_at_random_moments_and_resumed_it_is_as_if_undisturbed(kind, kills, tmp_path):
    moments, aim = random.Random(kills), aims(kind)
    made = rescued = 0
    while made < kills:
        one, ended, done, ever = Killed(kind, tmp_path, moments), False, {}, set()
        while not ended:
            ended, ran = one.run(next(aim) if made < kills else not_at_all)
            made += not ended
            ever |= ran.keys()
            before, done = done, steps_on_disk(one.folder, kind)
            if kind == "function":
                assert not ran.keys() & before.keys()
            else:
                check_what_ran(ran, before, done, kind)
            rescued += 0 if ended else len(done)
        whole = undisturbed(kind)
        assert ever == (finished(whole) if kind == "function" else all_steps(whole))
        same(rj.SweepResult.load(one.folder), whole)
        assert not list(one.folder.glob(".*.tmp"))
        assert not list(one.folder.glob("states-*"))
    assert rescued
    last = killed.sweep(one.folder, kind=kind)  # it has nothing left to run
    same(last, whole)
    for record in whole.top(2) if kind != "function" else ():
        for seed in killed.SEEDS:
            for x, y in zip(plain(last.state(record, seed)), plain(whole.state(record, seed)),
                            strict=True):  # fmt: skip
                assert x.tobytes() == y.tobytes()


def steps_on_disk(folder, kind):
    """From which step each trial that the log names would go on; infinity: it has ended."""
    if not (folder / store.MANIFEST).exists():
        return {}
    result = rj.SweepResult.load(folder)
    if kind == "function":
        return dict.fromkeys(finished(result), np.inf)
    bits = {seed: bits_of(seed) for seed in killed.SEEDS}
    found = {}
    for file in folder.glob("states-*"):
        with np.load(file) as stored:
            for point, seed, step in zip(stored["point"], stored["seed"], stored["step"],
                                         strict=True):  # fmt: skip
                at = int(point), bits[int(seed)]
                found[at] = max(found.get(at, 0), int(step))
    for trial, status in enumerate(result.status):
        if status == "pruned" or result.steps_completed[trial] == killed.STEPS:
            seed = result.seeds[result.seed_index[trial]]
            found[int(result.point_index[trial]), bits[seed]] = np.inf
    return found


def check_what_ran(ran, before, after, kind):
    """Nothing that is on disk ran again; and of what ran, no more than a segment of the rounds in
    flight is not on disk."""
    lost = collections.defaultdict(set)
    for words, times in ran.items():
        point, bits, step = map(int, words.split())
        assert times == 1
        assert step >= before.get((point, bits), 0)
        if step >= after.get((point, bits), 0):
            lost[point, bits].add(step)
    starts = {after.get(trial, 0) for trial in lost}
    assert len(starts) <= 1  # none of them is past a boundary that another has not come to
    for trial, steps in lost.items():
        assert max(steps) < after.get(trial, 0) + killed.SEGMENT
    if kind == "steps":  # one round after another, of one static group
        assert len({killed.MEMBERS[point]["centered"] for point, _ in lost}) <= 1


def all_steps(result):
    """Return the trials of a `Training`, as the log has them."""
    each = zip(result.point_index, result.seed_index, result.steps_completed, strict=True)
    return {
        f"{p} {bits_of(result.seeds[s])} {step}"
        for p, s, reached in each
        for step in range(0, reached, killed.LOGGED)
    }


def bits_of(seed):
    """Return the bits of the key that `init` gets."""
    return int(jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 0))[-1])


def finished(result):
    """Return the trials of a function, as the log has them."""
    done = result.steps_completed > 0
    return {
        f"{np.float32(result.points[p]['learning_rate'])} {result.points[p]['centered']} "
        f"{result.seeds[s]}"
        for p, s in zip(result.point_index[done], result.seed_index[done], strict=True)
    }


def test_only_what_is_new_runs(tmp_path):
    ran = []
    noted = lambda hp, key: (
        jax.debug.callback(lambda x: ran.append(float(x)), hp["x"]),
        train(hp, key),
    )[1]
    go = lambda points, **options: (run(tmp_path, points, noted, **options), jax.effects_barrier())[
        0
    ]
    go(X[1:2])
    assert set(ran) == {2.0}
    ran.clear()
    grown = go(X)
    assert set(ran) == {1.0, 3.0}
    ran.clear()
    seeds = go(X, seeds=[0, 5], devices=jax.devices()[:1], batch_size=1)
    assert sorted(ran) == [1.0, 2.0, 3.0]
    ran.clear()
    go(X, seeds=[0, 5])
    assert not ran
    same(grown, run(None))
    same(seeds, run(None, seeds=[0, 5]))
    other_order = go(X[::-1], seeds=[5, 0])
    assert not ran
    same(other_order, run(None, X[::-1], seeds=[5, 0]))


def test_equal_points_are_kept_apart(tmp_path):
    same(run(tmp_path, X + X), run(None, X + X))
    assert len(rj.SweepResult.load(tmp_path)) == 6
    same(rj.SweepResult.load(tmp_path), run(None, X + X))


def test_a_new_static_group_may_be_added(tmp_path):
    f = lambda hp, key: {"loss": hp["x"] * (2 if hp["flag"] else 1)}
    one, both = rj.grid(x=[1.0, 2.0], flag=[False]), rj.grid(x=[1.0, 2.0], flag=[False, True])
    run(tmp_path, one, f)
    same(run(tmp_path, both, f), run(None, both, f))


def test_save_and_load_and_go_on(tmp_path):
    points = rj.grid(x=[1.0, float("inf")], n=rj.static([(1, (2,)), [3], None, "a", True, 2]))
    f = lambda hp, key: {
        "loss": hp["x"] + len(str(hp["n"])) * jax.random.uniform(key),
        "c": jnp.bfloat16(hp["x"]),
    }
    result = run(None, points, f, seeds=[4, -2])
    result.save(tmp_path / "a")
    loaded = rj.SweepResult.load(tmp_path / "a")
    same(loaded, result)
    assert loaded.points.static == {"n"}
    assert loaded.points[0]["n"] == (1, (2,))
    assert (loaded.compile_seconds, loaded.run_seconds) == (
        result.compile_seconds,
        result.run_seconds,
    )
    assert loaded.best().hp["x"].dtype == jnp.float32
    loaded.save(tmp_path / "b")
    same(run(tmp_path / "b", points, f, seeds=[4, -2]), result)
    with pytest.raises(FileExistsError, match="path must be"):
        result.save(tmp_path / "a")


def test_ctrl_c_leaves_a_folder_that_goes_on(tmp_path):
    calls = []

    def objective(metrics):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return float(metrics["loss"][-1])

    with pytest.raises(rj.SweepInterrupted) as caught:
        run(tmp_path, objective=objective, devices=jax.devices()[:1])
    assert caught.value.result.status.tolist() == ["complete"] * 2 + ["unfinished"]
    same(rj.SweepResult.load(tmp_path, objective=objective), caught.value.result)
    same(run(tmp_path, objective=objective), run(None, objective=objective))


def test_seconds_add_up_over_the_calls(tmp_path):
    first = run(tmp_path, X[:1])
    second = run(tmp_path)
    assert second.compile_seconds > first.compile_seconds > 0
    assert second.run_seconds > first.run_seconds > 0


OTHERS = {
    "record_every": ({"record_every": 2}, "another record_every"),
    "args": ({"args": (jnp.float32(2.0),)}, "other args"),
    "points": ({"points": X[:2]}, r"leaves out.*such as \{'x': 3\.0\}"),
    "seeds": ({"seeds": [1]}, "other seeds"),
    "dtype": ({"points": rj.grid(x=[1, 2, 3])}, "'x' of another dtype: float32 in .* int32 in"),
    "static": ({"points": rj.grid(x=rj.static([1.0, 2.0, 3.0]))}, "other static names"),
    "metrics": ({"f": lambda hp, key: {"loss": hp["x"]}}, "other metrics"),
    "train": ({"f": lambda hp, key: train(hp, key, 3.0)}, "another train"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_another_sweep_is_refused_and_nothing_changed(case, tmp_path):
    run(tmp_path)
    before = contents(tmp_path)
    options, message = OTHERS[case]
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **options)
    assert contents(tmp_path) == before
    same(run(tmp_path), run(None))


def test_another_objective_or_mode_reads_the_same_folder(tmp_path):
    """Metrics are stored; what is looked for is computed from them."""
    run(tmp_path, mode="max")
    before = contents(tmp_path)
    again = run(tmp_path, objective="twice")
    assert again.objective.tolist() == [2.0, 4.0, 6.0]
    first, last = (lambda m: float(m["loss"][0]), lambda m: float(m["loss"][-1]))
    for objective in (first, last):
        expected = [objective({"loss": x}) for x in again.metrics["loss"]]
        for result in (
            run(tmp_path, objective=objective, mode="max"),
            rj.SweepResult.load(tmp_path, objective=objective, mode="max"),
            again.rescored(objective, "max"),
        ):
            assert result.objective.tolist() == expected
            assert result.mode == "max"
            assert result.best().point == {"x": 3.0}
        assert again.best(by=objective, mode="min").objective == min(expected)
    rounds = lambda files: {n: x for n, x in files.items() if n != store.MANIFEST}
    assert rounds(contents(tmp_path)) == rounds(before)
    with pytest.raises(ValueError, match=r"objective.*\(objective\).*load\(path, objective="):
        rj.SweepResult.load(tmp_path)
    run(tmp_path, objective="twice", mode="max")
    assert rj.SweepResult.load(tmp_path).best().point == {"x": 3.0}
    with pytest.raises(ValueError, match=r"'accuracy'.*'loss', 'twice'"):
        rj.SweepResult.load(tmp_path, objective="accuracy")
    with pytest.raises(ValueError, match=r"mode.*by="):
        again.best(mode="max")


@pytest.mark.slow
@pytest.mark.parametrize("hoisted", few(["0", "1"], ["1"]))
def test_data_that_train_closes_over_is_part_of_it(hoisted, tmp_path):
    """Also where JAX leaves constants out of a program's text."""
    code = """
import numpy as np
closing = lambda data: lambda hp, key: {"loss": hp["x"] * jnp.sum(data)}
run(folder, f=closing(jnp.arange(1000.0)))
run(folder, f=closing(np.arange(1000.0, dtype=np.float32)))
try:
    run(folder, f=closing(jnp.arange(1000.0).at[500].set(0)))
except ValueError as error:
    assert "data that" in str(error) and "closes over" in str(error), error
else:
    raise AssertionError("another data set went on")
"""
    code, words = child(code, tmp_path, JAX_USE_SIMPLIFIED_JAXPR_CONSTANTS=hoisted)
    assert code == 0, words


def test_another_version_of_jax_is_said_first(tmp_path, monkeypatch):
    run(tmp_path)
    monkeypatch.setattr(jax, "__version__", "99.1")
    with pytest.raises(ValueError, match=r"another version of jax: \S+ in .* 99\.1 in .*load"):
        run(tmp_path, f=lambda hp, key: train(hp, key, 3.0))
    same(rj.SweepResult.load(tmp_path), run(None))


def test_what_numpy_draws_while_it_is_traced_is_named_as_a_cause(tmp_path):
    drawn = np.random.default_rng(0)
    f = lambda hp, key: {"loss": hp["x"] * drawn.uniform()}
    run(tmp_path, f=f)
    with pytest.raises(ValueError, match=r"another train.*np\.random"):
        run(tmp_path, f=f)


def test_args_with_keys_and_python_numbers_have_a_fingerprint(tmp_path):
    f = lambda hp, key, tree, n: {"loss": hp["x"] * jax.random.uniform(tree["key"]) * n}
    args = lambda seed, n: ({"key": jax.random.key(seed)}, n)
    run(tmp_path, f=f, args=args(0, 2))
    run(tmp_path, f=f, args=args(0, 2))
    for other in (args(1, 2), args(0, 3)):
        with pytest.raises(ValueError, match="other args"):
            run(tmp_path, f=f, args=other)


def test_where_args_lie_does_not_matter(tmp_path):
    f = lambda hp, key, data: {"loss": hp["x"] * data.sum()}
    data = np.arange(4, dtype=np.float32)
    mesh = jax.make_mesh((2,), ("i",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("i"))
    for place in (None, jax.devices()[1], split):
        same(run(tmp_path, f=f, args=(jax.device_put(data, place),)), run(None, f=f, args=(data,)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", few(["cut", "flipped", "empty", "foreign", "short"], ["cut", "flipped", "short"])
)
def test_a_damaged_round_is_refused_until_it_is_moved_away(damage, tmp_path):
    whole = run(tmp_path)
    file = sorted(tmp_path.glob("round-*"))[-1]
    data = file.read_bytes()
    if damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        at = data.index(whole.metrics["loss"][-1].tobytes()) + 2
        file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "foreign":
        np.savez(file.with_suffix(""), point=np.zeros(1, int))
    else:
        arrays = dict(np.load(file))
        np.savez(file.with_suffix(""), **arrays | {"metric loss": arrays["metric loss"][:, :2]})
    before = contents(tmp_path)
    for read in (lambda: run(tmp_path), lambda: rj.SweepResult.load(tmp_path)):
        with pytest.raises(ValueError, match=rf"{file.name} must .*damaged"):
            read()
    assert contents(tmp_path) == before
    file.rename(tmp_path.parent / f"{tmp_path.name}-away")
    same(run(tmp_path), whole)


def test_a_round_moved_away_from_the_middle_costs_no_other(tmp_path):
    one = {"devices": jax.devices()[:1]}
    whole = run(tmp_path, **one)
    first, *others = sorted(tmp_path.glob("round-*"))
    kept = {file: file.read_bytes() for file in others}
    first.unlink()
    same(run(tmp_path, **one), whole)
    assert {file: file.read_bytes() for file in others} == kept
    same(rj.SweepResult.load(tmp_path), whole)


def test_a_damaged_round_is_found_before_anything_is_written(tmp_path):
    run(tmp_path, X[:1])
    next(tmp_path.glob("round-*")).write_bytes(b"")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"must be as .*damaged"):
        run(tmp_path)  # with more points
    assert contents(tmp_path) == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}'])
def test_a_damaged_manifest_is_refused(text, tmp_path):
    run(tmp_path)
    (tmp_path / store.MANIFEST).write_text(text)
    for read in (lambda: run(tmp_path), lambda: rj.SweepResult.load(tmp_path)):
        with pytest.raises(ValueError, match=r"damaged|format 99"):
            read()


def test_a_round_has_its_name_only_once_it_is_on_disk(tmp_path, monkeypatch):
    fsync, seen = os.fsync, []

    def noted(descriptor):
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            seen.append(len(list(tmp_path.glob("round-*"))))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    run(tmp_path, devices=jax.devices()[:1])
    assert seen == [0, 0, 1, 2]  # the manifest, three rounds


def test_what_a_killed_writer_left_is_cleared_away(tmp_path):
    run(tmp_path, X[:1])
    (tmp_path / ".round-000001.npz.tmp").write_bytes(b"half")
    run(tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_second_writer_is_refused(tmp_path):
    def objective(metrics):
        if metrics["twice"]:  # not when it is tried on zeros
            with pytest.raises(RuntimeError, match=r"another sweep.*is writing"):
                run(tmp_path, objective=lambda m: 0.0)
        return 0.0

    run(tmp_path, objective=objective)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    refused = r"path must be .*no manifest\.json"
    with pytest.raises(ValueError, match=refused):
        run(tmp_path)
    with pytest.raises(ValueError, match=refused):
        rj.SweepResult.load(tmp_path)
    with pytest.raises(OSError, match=r"thesis.txt/a cannot be written"):
        run(tmp_path / "thesis.txt" / "a")


def test_objects_in_an_axis_are_refused_before_anything_is_written(tmp_path):
    f = lambda hp, key: {"loss": hp["f"](1.0)}
    with pytest.raises(ValueError, match=r"axis 'f' .*a string.*in train"):
        run(tmp_path / "new", rj.grid(f=[jnp.sin]), f)
    assert not (tmp_path / "new").exists()


def child(code, folder, **environment):
    """Runs code with `run` and this module at hand; its last words."""
    text = f"from tests.tune.storage.test_store import *\nfolder = {str(folder)!r}\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, env=os.environ | environment
    )
    return done.returncode, done.stderr.strip().split("\n")


@pytest.mark.slow
def test_a_read_only_folder_is_a_clear_error(tmp_path):
    run(tmp_path, X[:1])
    before = contents(tmp_path)
    tmp_path.chmod(0o555)
    try:
        # Root may write anywhere: the child becomes nobody, after its imports.
        drop = "os.setuid(65534)" if os.getuid() == 0 else ""
        code, words = child(f"run(None)\n{drop}\nrun(folder)", tmp_path)
    finally:
        tmp_path.chmod(0o755)
    assert code == 1
    assert any("PermissionError" in w and "folder" in w and "cannot be written" in w for w in words)
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path):
    """The kernel refuses files beyond 4,000 bytes: the manifest is smaller, a round is larger."""
    code, words = child(
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "run(folder, f=lambda hp, key: {'loss': hp['x'] + jnp.arange(2000.0)})",
        tmp_path,
    )
    assert code == 1
    assert any("round-000000.npz cannot be written" in w and "File too large" in w for w in words)
    assert any(
        "finished trials are in this exception's .result: SweepResult(1 of 3" in w for w in words
    )
    assert list(contents(tmp_path)) == [store.MANIFEST]


def test_an_objective_that_raises_loses_nothing():
    def objective(metrics):
        if metrics["twice"] == 4:
            raise ZeroDivisionError
        return 1.0

    with pytest.raises(ZeroDivisionError) as caught:
        run(None, objective=objective, devices=jax.devices()[:1])
    result = caught.value.result
    assert result.status.tolist() == ["complete", "failed", "unfinished"]
    assert result.objective[0] == 1.0
    assert np.isnan(result.objective[1:]).all()
    assert result.metrics["twice"][:2].tolist() == [2.0, 4.0]


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run("~/sweep")
    assert (tmp_path / "sweep" / store.MANIFEST).exists()
    assert not (tmp_path / "~").exists()
    same(rj.SweepResult.load("~/sweep"), run(None))
    run(None).save("~/saved")
    same(rj.SweepResult.load(tmp_path / "saved"), run(None))


@pytest.mark.parametrize(
    "path", ["gs://bucket/run", "s3://bucket/run", "file:///tmp/run", Path("gs://bucket/run")]
)
def test_an_address_is_no_folder(path, tmp_path, monkeypatch):
    """`pathlib` would make a local folder "gs:" of it. Nothing runs, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    traced = []
    refused = pytest.raises(ValueError, match=r"path must be a local folder.*pass a local path")
    with refused:
        run(path, f=lambda hp, key: traced.append(hp) or train(hp, key))
    with refused:
        run(None).save(path)
    with refused:
        rj.SweepResult.load(path)
    assert traced == []
    assert list(tmp_path.iterdir()) == []


def test_etils_paths_are_folders_or_refused(tmp_path):
    epath = pytest.importorskip("etils.epath")
    same(run(epath.Path(tmp_path / "sweep")), run(None))
    same(rj.SweepResult.load(epath.Path(tmp_path / "sweep")), run(None))
    with pytest.raises(ValueError, match="path must be a local folder"):
        run(epath.Path("gs://bucket/run"))
