"""Trials on several devices: `sweep(mesh=...)`. Most tests run in a process with 8 devices."""

import re
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import rmsprop_jax as rj
from rmsprop_jax._tune.compile.kernels import Inputs
from rmsprop_jax._tune.experiment import Experiment
from rmsprop_jax._tune.options import Options
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.run.machine import Machine
from tests.support import engine, sharded
from tests.support.collectives import collectives, crossing, groups_of
from tests.support.eight_devices import on_eight_devices
from tests.support.sharded import AUTOMATIC, EXPLICIT, POINTS, Net, assert_close, kinds, mesh
from tests.support.tables import crossed, few


def constrained(x, *spec):
    return jax.lax.with_sharding_constraint(x, P(*spec))


def both_types(test):
    """Run a test with automatic axes and, in the slow tests, with explicit ones."""
    slow = pytest.param(EXPLICIT, marks=pytest.mark.slow)
    return pytest.mark.parametrize("types", [AUTOMATIC, slow])(test)


# The same numbers, decisions, and states as on one device.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "types"),
    few(
        {f"{name} {AUTOMATIC}": (name, AUTOMATIC) for name in sharded.SHAPES if name != "1x1"}
        | {f"{name} {EXPLICIT}": (name, EXPLICIT) for name in ("4x2", "2x2x2")},
        plain=["4x2 automatic"],
        unpack=True,
    ),
)
@on_eight_devices(limit=150)
def test_all_kinds_of_sweeps_equal_those_on_one_device(name, types):
    for kind in kinds():
        alone = sharded.sweep(kind, devices=jax.devices()[:1])
        if kind in ("training", "halving", "population", "batches"):  # no tie decides
            for rung in range(3):
                column = alone.metrics["validation"][:, rung].reshape(len(POINTS), 2).mean(1)
                assert not (np.diff(np.sort(column)) < 1e-3).any()
        result = sharded.sweep(kind, types, mesh=mesh(name, types))
        assert_close(result, alone)
        assert result.is_complete
        if kind == "training":
            best = alone.best()
            wanted, found = alone.state(best), result.state(best)
            assert jax.tree.structure(wanted) == jax.tree.structure(found)
            for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
                if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                    assert isinstance(x, np.ndarray)
                    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@on_eight_devices
def test_fewer_trials_than_submeshes():
    """Each rolls along a sharded dimension: on a CPU, all devices must come along."""
    train, options = kinds(AUTOMATIC)["training"]
    plain, _ = kinds()["training"]
    options |= {"seeds": 1, "progress": False}
    found = rj.sweep(train, POINTS[:3], mesh=mesh("4x2"), **options)
    assert_close(found, rj.sweep(plain, POINTS[:3], devices=jax.devices()[:1], **options))


@pytest.mark.slow
@pytest.mark.parametrize("kind", few(["halving", "function", "population"], plain=["halving"]))
@on_eight_devices
def test_trials_that_share_a_vmap(kind):
    wanted = sharded.sweep(kind, batch_size=2, devices=jax.devices()[:1])
    for types in (AUTOMATIC, EXPLICIT):
        found = sharded.sweep(kind, types, batch_size=2, mesh=mesh("4x2", types))
        assert_close(found, wanted)


# A folder: interrupted, and resumed on other devices.


class StopError(Exception):
    """Raised by a callback."""


def stopped(kind, path, after, **options):
    """Sweep until the callback has been called `after` times; return the partial result."""
    calls = []

    def callback(report):
        calls.append(report)
        if len(calls) == after:
            raise StopError

    with pytest.raises(StopError) as caught:
        sharded.sweep(kind, path=path, callback=callback, checkpoint_seconds=0, **options)
    return caught.value.result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "types"),
    crossed(
        ["training", "halving", "batches", "function"],
        [AUTOMATIC, EXPLICIT],
        plain=["training-automatic"],
    ),
)
@on_eight_devices
def test_a_folder_resumes_on_any_split(tmp_path, kind, types):
    alone, path = sharded.sweep(kind, devices=jax.devices()[:1]), f"{tmp_path}/folder"
    after = {"training": 4, "halving": 4, "batches": 5, "function": 1}[kind]
    begun = stopped(kind, path, after, types=types, mesh=mesh("4x2", types))
    assert not begun.is_complete
    if kind == "training":  # one wave is complete, one has begun, one has not
        assert len(set(begun.steps_completed.tolist())) == 3
        begun = stopped(kind, path, 1, types=types, mesh=mesh("2x4", types))
    resumed = sharded.sweep(kind, types, mesh=mesh("1x1", types), path=path)
    assert resumed.is_complete
    assert_close(resumed, alone)


@pytest.mark.slow
@on_eight_devices
def test_trials_of_a_synchronous_sweep_resume_at_two_steps(tmp_path):
    """One of three waves lost its checkpoint, as after a kill between two files."""
    alone = sharded.sweep("batches", devices=jax.devices()[:1])
    path = Path(tmp_path) / "folder"
    stopped("batches", path, 7, types=AUTOMATIC, mesh=mesh("4x2"))
    states = sorted(path.glob("states-*.npz"))
    assert len(states) == 3
    states[1].unlink()
    resumed = sharded.sweep("batches", AUTOMATIC, mesh=mesh("4x2"), path=path)
    assert_close(resumed, alone)


@pytest.mark.slow
@on_eight_devices
def test_a_folder_needs_a_mesh_only_if_train_names_an_axis(tmp_path):
    named, plain = f"{tmp_path}/named", f"{tmp_path}/plain"
    one = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("trial", "model"))
    stopped("training", named, 2, types=AUTOMATIC, mesh=mesh("4x2"))
    before = {file: file.read_bytes() for file in Path(named).iterdir()}
    with pytest.raises(ValueError, match=r"mesh must be given.*sharded\.py.*mesh=None.*Pass"):
        sharded.sweep("training", AUTOMATIC, path=named)
    with pytest.raises(ValueError, match="another train"):
        sharded.sweep("training", None, path=named)
    assert before == {file: file.read_bytes() for file in Path(named).iterdir()}
    sharded.sweep("training", AUTOMATIC, path=named, mesh=one)

    wanted = sharded.sweep("training", devices=jax.devices()[:1])
    stopped("training", plain, 2, types=None, mesh=mesh("4x2"))
    stopped("training", plain, 1, types=None, devices=jax.devices()[:2])
    assert_close(sharded.sweep("training", None, path=plain, mesh=mesh("2x2x2", EXPLICIT)), wanted)


# Shards, and what the devices exchange.


def programs_of(train, points, on, **options):
    """Return the experiment, and the compiled programs of its only static group."""
    options = Options(train=train, points=points, mesh=on, **options)
    experiment = Experiment.prepare(options, Cluster(on), "sweep")
    experiment.shard_states()
    return experiment, experiment.compiler(0, len(points)).compile()


def submeshes(on):
    """Return the positions of each trial's devices among those of a program."""
    place = {device: i for i, device in enumerate(on.devices.flatten().tolist())}
    axis = on.axis_names.index("trial")
    return [[place[x] for x in part.flat] for part in np.moveaxis(on.devices, axis, 0)]


@pytest.mark.slow
@both_types
@on_eight_devices
def test_no_collective_crosses_trials_and_none_moves_a_state_between_segments(types):
    training = Net(types).training()
    for name in ("2x2x2", "model first"):
        on = mesh(name, types)
        _, programs = programs_of(training, POINTS, on, steps=12)
        kinds = set()
        for program in programs.each():
            text = program.executable.as_text()
            assert crossing(text, submeshes(on)) == []
            found = collectives(text, 8)
            kinds |= {one.kind for one in found}
            if program is programs.segment:
                assert found
                for one in found:  # within a step
                    assert re.search(r"while/body/.*while/body/", one.place), one
        assert "all-reduce" in kinds
        assert "collective-permute" in kinds or types == EXPLICIT


@on_eight_devices
def test_the_parser_of_collectives_sees_an_exchange_between_trials():
    on = mesh("4x2")

    def compiled(call):
        spec = P("trial", "model")
        mapped = jax.shard_map(call, mesh=on, in_specs=spec, out_specs=spec, check_vma=False)
        return jax.jit(mapped).lower(jnp.ones((8, 8))).compile().as_text()

    kinds = lambda found: {one.kind for one in found}
    for axes in ("trial", ("trial", "model")):
        text = compiled(lambda x, axes=axes: jax.lax.psum(x, axes))
        assert kinds(crossing(text, submeshes(on))) == {"all-reduce"}
    text = compiled(lambda x: jax.lax.ppermute(x, "trial", [(0, 1), (1, 0)]))
    assert kinds(crossing(text, submeshes(on))) == {"collective-permute"}
    text = compiled(lambda x: jax.lax.psum(x, "model"))
    assert kinds(collectives(text, 8)) == {"all-reduce"}
    assert crossing(text, submeshes(on)) == []


GROUPS = {
    "list": ("replica_groups={{0,1},{2,3}}, x", ((0, 1), (2, 3))),
    "all": ("replica_groups={}, x", ((0, 1, 2, 3),)),
    "iota": ("replica_groups=[2,2]<=[4], x", ((0, 1), (2, 3))),
    "transposed iota": ("replica_groups=[2,2]<=[2,2]T(1,0), x", ((0, 2), (1, 3))),
    "axes": ("replica_groups=mesh['trial'=2,'model'=2] {'model'}, x", ((0, 1), (2, 3))),
    "other axes": ("replica_groups=mesh['trial'=2,'model'=2] {'trial'}, x", ((0, 2), (1, 3))),
    "pairs": ("source_target_pairs={{0,1},{1,0}}, x", ((0, 1), (1, 0))),
}


@pytest.mark.parametrize("form", GROUPS)
def test_the_parser_reads_each_form_of_groups(form):
    text, wanted = GROUPS[form]
    assert groups_of(text, 4) == wanted


def test_the_parser_refuses_an_unknown_form():
    with pytest.raises(ValueError, match="known form"):
        groups_of("replica_groups=<everyone>", 4)


@pytest.mark.slow
@both_types
@on_eight_devices
def test_each_shard_of_a_state_has_its_part_of_the_bytes(types):
    for name, parts in {"4x2": 2, "1x8": 8}.items():
        on = mesh(name, types)
        experiment, programs = programs_of(Net(types).training(), POINTS, on, steps=12)
        count = min(len(POINTS), on.shape["trial"])
        keys = np.zeros((count, 2), np.uint32)
        numbers = {n: np.full(count, 0.5, np.float32) for n in ("rate", "decay")}
        placed = programs.init.place((numbers, keys), count)
        states, _ = programs.init.start([], Inputs(placed), count)
        (spec,) = experiment.state_specs
        for path, x, leaf in zip(spec.paths, states, spec.data, strict=True):
            cut = parts if leaf.shape == (8, sharded.WIDTH) else 1
            bytes_ = leaf.size * leaf.dtype.itemsize
            each = {shard.data.nbytes for shard in x.addressable_shards}
            assert each == {programs.layout.capacity * bytes_ // cut}, path
        assert spec.device_bytes == 2 * 4 * 8 * sharded.WIDTH // parts + 8
        for _ in range(2):  # the states that leave a segment are sharded as those that enter
            start, length = np.zeros(count, np.int32), np.full(count, 3, np.int32)
            before = [x.sharding for x in states]
            states, _ = programs.segment.start(states, Inputs(placed, start, length), count)
            each = zip(states, before, strict=True)
            assert all(x.sharding.is_equivalent_to(y, x.ndim) for x, y in each)


@on_eight_devices
def test_a_state_on_a_mesh_again(tmp_path):
    on, best = mesh("4x2"), POINTS[0]
    result = sharded.sweep("training", AUTOMATIC, mesh=on, path=f"{tmp_path}/folder")
    whole = result.state(best)
    placed = result.state(best, mesh=mesh("2x4"))
    loaded = rj.SweepResult.load(f"{tmp_path}/folder", mesh=on).state(best, like=whole)
    other = Mesh(np.array(jax.devices()[:4]), ("model",))
    for state, parts in ((placed, 4), (loaded, 2), (result.state(best, mesh=other), 4)):
        for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
            if isinstance(y, np.ndarray):
                np.testing.assert_array_equal(x, y)
        assert state["w"].sharding.spec == P(None, "model")
        assert state["opt"][1].nu.sharding.spec == P(None, "model")
        assert state["w"].addressable_shards[0].data.shape == (8, sharded.WIDTH // parts)
    with pytest.raises(ValueError, match=r"mesh must have the axes.*\['model'\]"):
        result.state(best, mesh=Mesh(np.array(jax.devices()[:2]), ("data",)))
    for wrong in ("cpu", Mesh(np.array(jax.devices()), ("trial",))):
        with pytest.raises(ValueError, match=r"mesh must be a jax\.sharding\.Mesh with the"):
            result.state(best, mesh=wrong)


@pytest.mark.slow
@both_types
@on_eight_devices
def test_a_point_trains_again_on_one_submesh_or_another_mesh(types):
    for kind in ("batches", "function"):
        result = sharded.sweep(kind, types, mesh=mesh("4x2", types))
        batches = {"batches": sharded.batches} if kind == "batches" else {}
        for on in (None, mesh("2x4", types), mesh("1x1", types)):
            found = result.retrain(POINTS[2], seed=1, mesh=on, **batches)
            metrics = found if kind == "function" else found[1]
            row = 2 * 2 + 1
            np.testing.assert_allclose(metrics["loss"], result.metrics["loss"][row], rtol=1e-5)
            if kind != "function":
                parts = 2 if on is None else on.shape["model"]
                state, _ = found
                shape = state["w"].addressable_shards[0].data.shape
                assert shape == (8, sharded.WIDTH // parts)


# Data that all trials share.


@pytest.mark.slow
@both_types
@on_eight_devices
def test_args_may_be_sharded_over_the_axes_of_a_trial(types):
    """Two matrices, of which the devices of a trial hold halves, and a key."""
    on = mesh("4x2", types)
    table = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    out = {"out_sharding": P()} if types == EXPLICIT else {}

    def train(hp, key, data, more):
        seen = jnp.einsum("ij,kj->ik", data["table"], data["table"], **out)
        noise = jax.random.normal(more)
        return {"loss": hp["x"] * jnp.sum(seen**2) + noise}

    points = rj.grid(x=[1.0, 2.0, 3.0])
    wanted = rj.sweep(
        lambda hp, key, data, more: {
            "loss": hp["x"] * jnp.sum((data["table"] @ data["table"].T) ** 2)
            + jax.random.normal(more)
        },
        points,
        args=({"table": table}, jax.random.key(3)),
        devices=jax.devices()[:1],
        progress=False,
    )
    for spec in (P(None, "model"), P(), P(None, None)):
        placed = jax.device_put(table, NamedSharding(on, spec))
        args = ({"table": placed}, jax.random.key(3))
        found = rj.sweep(train, points, args=args, mesh=on, progress=False)
        np.testing.assert_allclose(found.objective, wanted.objective, rtol=1e-5)
        again = found.retrain(points[1], args=args)
        np.testing.assert_allclose(again["loss"], wanted.objective[1], rtol=1e-5)
    crossed_trials = jax.device_put(table, NamedSharding(on, P("trial")))
    for call in (
        lambda args: rj.sweep(train, points, args=args, mesh=on, progress=False),
        lambda args: found.retrain(points[0], args=args),
    ):
        with pytest.raises(ValueError, match=r"args\[0\]\['table'\] must be.*\['model'\].*'trial'"):
            call(({"table": crossed_trials}, jax.random.key(3)))


@pytest.mark.slow
@on_eight_devices
def test_batches_may_be_placed_or_get_a_sharding():
    on = mesh("2x2x2")
    wanted = sharded.sweep("batches", devices=jax.devices()[:1])
    placed = lambda t: {"x": jax.device_put(sharded.batches(t)["x"], NamedSharding(on, P("data")))}
    for options in (
        {"batches": placed},
        {"batch_sharding": P("data")},
        {"batch_sharding": {"x": P(("data", "model"))}},
    ):
        assert_close(sharded.sweep("batches", AUTOMATIC, mesh=on, **options), wanted)
    for wrong, says in (
        (P("trial"), r"batch_sharding must name axes of a trial, \['data', 'model'\].*'trial'"),
        (P(None, None, "data"), r"array of shape \(4, 8\)"),
        ({"y": P("data")}, "batch_sharding must be one PartitionSpec or a tree of them"),
        ("data", "batch_sharding must name axes"),
    ):
        with pytest.raises(ValueError, match=says):
            sharded.sweep("batches", AUTOMATIC, mesh=on, batch_sharding=wrong)
    line = Mesh(np.array(jax.devices()), ("trial",))
    with pytest.raises(ValueError, match="batch_sharding must come with a mesh that has axes of"):
        sharded.sweep("batches", mesh=line, batch_sharding=P("data"))
    for options in ({"batches": sharded.batches}, {"mesh": on}):
        with pytest.raises(ValueError, match="batch_sharding must come with a mesh and batches"):
            rj.sweep(Net().training(), POINTS, steps=3, batch_sharding=P("data"), **options)


# What a training may do with its devices.


def inner_shard_map(w, types):
    cut = lambda x: (
        constrained(x, None, "model")
        if types == AUTOMATIC
        else (jax.sharding.reshard(x, P(None, "model")))
    )
    call = jax.shard_map(
        lambda w: jax.lax.psum(jnp.sum(jnp.sin(w)), "model"),
        in_specs=P(None, "model"),
        out_specs=P(),
    )
    return call(cut(w))


def plain_shard_map(w):
    return jnp.sum(jnp.sin(w))


def symmetric(w):
    return w @ w.T + 8 * jnp.eye(8)


OPERATIONS = {
    "qr": lambda w: jnp.sum(jnp.abs(jnp.linalg.qr(w.T)[1])),
    "eigh": lambda w: jnp.linalg.eigvalsh(symmetric(w))[0],
    "cholesky": lambda w: jnp.linalg.cholesky(symmetric(w))[3, 2],
    "sort": lambda w: jnp.sum(jnp.sort(w, axis=1) * jnp.arange(16)),
    "convolution": lambda w: jnp.sum(jnp.sin(jax.vmap(lambda x: jnp.convolve(x, w[0], "same"))(w))),
    "remat": lambda w: jnp.sum(
        jax.grad(jax.checkpoint(lambda w: jnp.sum(jnp.sin(w) ** 2)))(w) ** 3
    ),
    "scan": lambda w: jax.lax.scan(lambda c, x: (jnp.cos(c + x), None), w[:, 0], w.T)[0].sum(),
    "flip": lambda w: jnp.sum(jnp.flip(w, 1) * jnp.arange(16)),
}


@pytest.mark.slow
@on_eight_devices(limit=120)
def test_operations_on_a_sharded_array():
    points = rj.grid(x=[0.5, 1.0, 2.0])

    def train(hp, key, cut):
        w = cut(hp["x"] * jax.random.normal(key, (8, 16)))
        return {name: call(w) for name, call in OPERATIONS.items()}

    options = {"objective": "qr", "progress": False}
    wanted = rj.sweep(lambda hp, key: train(hp, key, lambda w: w), points, **options)
    cut = lambda w: constrained(w, None, "model")
    found = rj.sweep(lambda hp, key: train(hp, key, cut), points, mesh=mesh("4x2"), **options)
    for name, values in wanted.metrics.items():
        np.testing.assert_allclose(found.metrics[name], values, rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.slow
@on_eight_devices
def test_a_shard_map_inside_over_the_axes_of_the_trial():
    points = rj.grid(x=[0.5, 1.0, 2.0])
    draw = lambda hp, key: hp["x"] * jax.random.normal(key, (8, 16))
    wanted = rj.sweep(lambda hp, key: {"loss": plain_shard_map(draw(hp, key))}, points)
    for types in (AUTOMATIC, EXPLICIT):
        train = lambda hp, key, types=types: {"loss": inner_shard_map(draw(hp, key), types)}
        found = rj.sweep(train, points, mesh=mesh("4x2", types), progress=False)
        np.testing.assert_allclose(found.objective, wanted.objective, rtol=1e-5)
    for steps in (1, 5):
        train = rj.Training(
            lambda hp, key: constrained(draw(hp, key), None, "model"),
            lambda hp, w, key: (w * 0.9, {"loss": inner_shard_map(w, AUTOMATIC)}),
        )
        found = rj.sweep(train, points, mesh=mesh("2x4"), steps=steps, progress=False)
        assert np.isfinite(found.metrics["loss"]).all()


@pytest.mark.slow
@on_eight_devices
def test_the_axis_of_trials_may_be_of_any_type():
    on, wanted = mesh("4x2"), sharded.sweep("training", devices=jax.devices()[:1])
    for kind in AxisType:
        typed = Mesh(on.devices, on.axis_names, axis_types=(kind, AxisType.Auto))
        assert_close(sharded.sweep("training", AUTOMATIC, mesh=typed), wanted)


@pytest.mark.slow
@on_eight_devices
def test_leaves_of_every_kind_may_be_sharded(tmp_path):
    """Keys, bfloat16 over two axes, int4, and an array that a training closes over."""
    on = mesh("2x2x2")
    data = np.arange(8, dtype=np.float32)

    def training(cut, data):
        def init(hp, key):
            return {
                "keys": cut(jax.random.split(key, 8), "model"),
                "half": cut(jnp.full((8, 4), hp["rate"], jnp.bfloat16), ("data", "model")),
                "small": cut(jnp.ones(8, jnp.int4), "data"),
            }

        def step(hp, state, key):
            keys = jax.vmap(jax.random.fold_in, (0, None))(state["keys"], 1)
            drawn = jax.vmap(jax.random.normal)(keys)
            loss = jnp.sum(state["half"].astype(jnp.float32)) + jnp.sum(drawn * data)
            return state | {"keys": keys, "half": state["half"] * 0.5}, {"loss": loss}

        return rj.Training(init, step)

    options = {"steps": 4, "keep_states": "all", "progress": False}
    points = rj.grid(rate=[1.0, 2.0, 3.0])
    wanted = rj.sweep(training(lambda x, *_: x, data), points, **options)
    placed = jax.device_put(data, NamedSharding(on, P("model")))
    path = f"{tmp_path}/folder"
    found = rj.sweep(training(constrained, placed), points, mesh=on, path=path, **options)
    assert_close(found, wanted)
    for point in points:
        state, plain = found.state(point, mesh=on), wanted.state(point)
        for name, spec in (
            ("keys", P("model")),
            ("half", P(("data", "model"))),
            ("small", P("data")),
        ):
            assert state[name].sharding.is_equivalent_to(
                NamedSharding(state[name].sharding.mesh, spec), state[name].ndim
            )
            same = state[name] == plain[name]
            assert bool(jnp.all(same)), name


@pytest.mark.slow
@on_eight_devices
def test_static_groups_under_the_callers_mesh_and_x64():
    on = mesh("4x2")
    points = rj.grid(x=[1.0, 2.0, 3.0]) * rj.grid(n=rj.static([4, 6]))
    draw = lambda hp, key: jax.random.normal(key, (hp["n"], 8)) * hp["x"]
    for is_wide in (False, True):
        with jax.enable_x64(is_wide):
            wanted = rj.sweep(lambda hp, key: {"loss": draw(hp, key).sum()}, points, seeds=2)
            with jax.set_mesh(on):
                train = lambda hp, key: {"loss": constrained(draw(hp, key), None, "model").sum()}
                found = rj.sweep(train, points, mesh=on, seeds=2)
            assert_close(found, wanted, 1e-12 if is_wide else 1e-5)


# Refused before anything runs.


def refused_trains(on, other):
    """Return for each mistake a function of an array, and the words of its error."""
    half = NamedSharding(other, P("model"))
    host = lambda x: np.asarray(x) * 2
    shape = jax.ShapeDtypeStruct((8,), np.float32)
    inner = lambda mesh: jax.shard_map(
        lambda x: x, mesh=mesh, in_specs=P("model"), out_specs=P("model")
    )
    return {
        "psum": (lambda x: jax.lax.psum(x, "trial"), r"axes of a trial only.*'trial'"),
        "axis_index": (lambda x: x * jax.lax.axis_index("trial"), r"axes of a trial.*'trial'"),
        "trial": (lambda x: constrained(x, "trial"), r"axes of a trial only.*'trial'.*Leave it"),
        "unknown": (lambda x: constrained(x, "modle"), r"'modle'.*Name one of \['model'\]"),
        "inner trial": (
            lambda x: jax.shard_map(lambda x: x, in_specs=P("trial"), out_specs=P("trial"))(x),
            r"axes of a trial only.*'trial'",
        ),
        "inner mesh": (lambda x: inner(on)(x), r"shard_map without a mesh.*Leave mesh out"),
        "other inner mesh": (lambda x: inner(other)(x), r"shard_map without a mesh"),
        "other mesh": (
            lambda x: jax.lax.with_sharding_constraint(x, half), r"must name axes only.*Write P"
        ),
        "the sweep's mesh": (
            lambda x: jax.lax.with_sharding_constraint(x, NamedSharding(on, P("trial"))),
            r"must name axes only",
        ),
        "device_put": (lambda x: jax.device_put(x, half), r"must name axes only.*device_put"),
        "one device": (lambda x: jax.device_put(x, jax.devices()[0]), r"must name axes only"),
        "pure_callback": (lambda x: jax.pure_callback(host, shape, x), r"got jax\.pure_callback"),
        "io_callback": (
            lambda x: jax.experimental.io_callback(host, shape, x), r"got jax\.io_callback"
        ),
        "print": (lambda x: (jax.debug.print("here"), x)[1], r"jax\.debug\.print.*Give it an ar"),
        "reshard": (
            lambda x: jax.sharding.reshard(x, P("model")), r"with_sharding_constraint for automatic"
        ),
    }  # fmt: skip


@on_eight_devices(limit=120)
def test_mistakes_are_refused_before_anything_runs(tmp_path):
    on, other = mesh("4x2"), Mesh(np.array(jax.devices()[:2]), ("model",))
    ran = []
    for name, (mistake, says) in refused_trains(on, other).items():

        def train(hp, key, mistake=mistake):
            return {"loss": jnp.sum(mistake(hp["x"] * jnp.arange(8.0)))}

        def step(hp, x, key, mistake=mistake):
            return mistake(x), {"loss": jnp.sum(x)}

        training = rj.Training(lambda hp, key: hp["x"] * jnp.arange(8.0), step)
        for one, options in ((train, {}), (training, {"steps": 2})):
            with pytest.raises(ValueError, match=f"(?s){says}") as caught:
                rj.sweep(
                    one,
                    rj.grid(x=[1.0, 2.0]),
                    mesh=on,
                    path=f"{tmp_path}/folder",
                    callback=ran.append,
                    progress=False,
                    **options,
                )
            assert not Path(tmp_path, "folder").exists(), name
            assert (
                "test_mesh.py" in str(caught.value)
                or "must name axes only" in says
                or ("callback" in str(caught.value) or "call back" in str(caught.value))
            ), name
    assert not ran


@on_eight_devices
def test_mistakes_with_explicit_axes():
    on = mesh("4x2", EXPLICIT)
    sweep = lambda train: rj.sweep(train, rj.grid(x=[1.0, 2.0]), mesh=on, progress=False)
    array = lambda hp: hp["x"] * jnp.arange(8.0)
    with pytest.raises(ValueError, match=r"reshard for explicit axes.*AxisType\.Auto"):
        sweep(lambda hp, key: {"loss": constrained(array(hp), "model").sum()})
    with pytest.raises(ValueError, match=r"must not call back.*Leave it out"):
        sweep(lambda hp, key: {"loss": (jax.debug.print("{}", hp["x"]), array(hp).sum())[1]})
    data = jax.device_put(jnp.arange(8.0), NamedSharding(on, P("model")))
    with pytest.raises(ValueError, match=r"arrays on the mesh of the trial only.*args=\(x,\)"):
        sweep(lambda hp, key: {"loss": (data * hp["x"]).sum()})
    training = rj.Training(
        lambda hp, key: jax.sharding.reshard(array(hp), P("model")),
        lambda hp, x, key: (jax.sharding.reshard(x, P()), {"loss": x.sum()}),
    )
    with pytest.raises(ValueError, match=r"must not change the sharding of the state's array"):
        rj.sweep(training, rj.grid(x=[1.0, 2.0]), mesh=on, steps=2, progress=False)


def rolled(w):
    return jnp.roll(w, 1)


UNEVEN = {
    "while_loop": lambda w, x: jax.lax.while_loop(
        lambda c: c[1] < x, lambda c: (rolled(c[0]), c[1] + 1), (w, 0.0)
    )[0],
    "while_loop, its condition": lambda w, x: jax.lax.while_loop(
        lambda c: (c[1] < x) & (rolled(c[0])[0] < 1e9), lambda c: (c[0] * 2, c[1] + 1), (w, 0.0)
    )[0],
    "cond": lambda w, x: jax.lax.cond(x > 1.5, rolled, lambda w: w, w),
    "switch": lambda w, x: jax.lax.switch(x.astype(int), [rolled, lambda w: w, rolled], w),
    "cond in a scan": lambda w, x: jax.lax.scan(
        lambda c, _: (jax.lax.cond(x > 1.5, rolled, lambda w: w, c), None), w, None, length=3
    )[0],
}
EVEN = {
    "scan": lambda w, x: jax.lax.scan(lambda c, _: (rolled(c), None), w, None, length=5)[0],
    "fori_loop": lambda w, x: jax.lax.fori_loop(0, 4, lambda i, c: rolled(c), w),
    "scan in a scan": lambda w, x: jax.lax.scan(
        lambda c, _: (EVEN["scan"](c, x), None), w, None, length=3
    )[0],
    "while_loop without": lambda w, x: jax.lax.while_loop(
        lambda c: c[1] < x, lambda c: (c[0] * 2, c[1] + 1 + 0 * c[0].sum()), (w, 0.0)
    )[0],
    "cond without": lambda w, x: jax.lax.cond(x > 1.5, lambda w: w * w.sum(), lambda w: w, w),
}


@pytest.mark.slow
@on_eight_devices(limit=120)
def test_a_loop_that_could_hang_on_a_cpu_is_refused(tmp_path):
    on = mesh("4x2")
    points = rj.grid(x=[1.0, 2.0, 3.0])

    def both(change, cut):
        value = lambda w: jnp.sum(w * jnp.arange(8.0))
        make = lambda hp: cut(jnp.arange(8.0) * hp["x"])
        train = lambda hp, key: {"loss": value(cut(change(make(hp), hp["x"])))}

        def step(hp, w, key):
            w = cut(change(w, hp["x"]))
            return w, {"loss": value(w)}

        yield train, {}
        yield rj.Training(lambda hp, key: make(hp), step), {"steps": 3}

    options = {"progress": False, "path": f"{tmp_path}/folder"}
    for name, change in UNEVEN.items():
        for train, more in both(change, lambda x: constrained(x, "model")):
            place = "while_loop" if "while" in name else "cond"
            with pytest.raises(ValueError, match=rf"collective-permute.*inside a {place} on a CPU"):
                rj.sweep(train, points, mesh=on, **options, **more)
            assert not Path(tmp_path, "folder").exists()
    for change in EVEN.values():
        pairs = zip(
            both(change, lambda x: constrained(x, "model")), both(change, lambda x: x), strict=True
        )
        for (train, more), (plain, _) in pairs:
            found = rj.sweep(train, points, mesh=on, progress=False, **more)
            wanted = rj.sweep(plain, points, progress=False, **more)
            np.testing.assert_allclose(found.objective, wanted.objective, rtol=1e-5)


def test_arguments_that_are_no_mesh_of_trials():
    sweep = lambda **options: rj.sweep(
        lambda hp, key: {"loss": hp["x"]}, rj.grid(x=[1.0]), **options
    )
    devices = np.array(jax.devices()[:1])
    for wrong in (4, devices, Mesh(devices, ("model",)), Mesh(devices, ("trial",)).abstract_mesh):
        with pytest.raises(ValueError, match=r'mesh must be.*"trial".*Pass, for example, mesh='):
            sweep(mesh=wrong)
    with pytest.raises(ValueError, match="mesh and devices must not be passed together"):
        sweep(mesh=Mesh(devices.reshape(1, 1), ("trial", "model")), devices=jax.devices()[:1])


@pytest.mark.slow
def test_a_mesh_without_axes_of_a_trial_is_the_same_as_its_devices():
    on = Mesh(np.array(jax.devices()[:2]), ("trial",))
    train, options = kinds()["training"]
    results = [
        rj.sweep(train, POINTS, progress=False, **options, **where)
        for where in ({"mesh": on}, {"devices": jax.devices()[:2]})
    ]
    for name, values in results[0].metrics.items():
        np.testing.assert_array_equal(values, results[1].metrics[name])


# Memory, and leaves that every device of a trial holds.


@pytest.mark.slow
@on_eight_devices
def test_a_leaf_that_is_whole_beside_sharded_ones_gives_one_warning():
    """Plain zeros of our own, and those of optax.adam; two static groups warn once."""
    params = lambda hp: constrained(jnp.zeros((8, 16)) + hp["rate"], None, "model")

    def zeros(hp, key):
        more = {"also": jnp.ones((8, 16)), "average": jnp.zeros((8, 16)), "bias": hp["rate"]}
        return {"w": params(hp), **more}

    def adam(hp, key):
        return {"w": params(hp), "adam": optax.adam(1e-3).init(params(hp))}

    step = lambda hp, state, key: (state, {"loss": jnp.sum(state["w"]) + hp["static"]})
    points = rj.grid(rate=[1.0, 2.0], static=rj.static([0, 1]))
    for init, leaf, bytes_ in (
        (zeros, "state['also']", "1,028 bytes"),
        (adam, "state['adam'][0].mu", "1,028 bytes"),
    ):
        training, options = rj.Training(init, step), {"steps": 2, "progress": False}
        with pytest.warns(UserWarning, match="each device of a trial holds the whole") as caught:
            rj.sweep(training, points, mesh=mesh("4x2"), **options)
        (one,) = caught
        for part in (leaf, "512 bytes", bytes_, "with_sharding_constraint(x, P(None, 'model'))"):
            assert part in str(one.message), one.message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sharded.sweep("training", AUTOMATIC, mesh=mesh("4x2"))


@pytest.mark.slow
@on_eight_devices
def test_memory_is_counted_by_device(tmp_path):
    """A state of 1,024 floats in 2 shards; the host has room for the shards, and the leaf whole."""
    machine = lambda free: Machine(host_memory=lambda: free, buffer_bytes=0)
    init = lambda cut: lambda hp, key: cut(jnp.zeros(1024) + hp["x"])
    step = lambda hp, w, key: (w, {"loss": jnp.sum(w)})
    points = rj.grid(x=[1.0, 2.0, 3.0, 4.0])
    on, whole = mesh("4x2"), 4 * 1024

    def sweep(cut, free):
        options = {"mesh": on, "steps": 2, "keep_states": 0}
        return engine.sweep(rj.Training(init(cut), step), points, machine(free), **options)

    waves = 4 * whole * (1 + 6)  # those under way, and `EXTRA_WAVES`
    assert sweep(lambda w: constrained(w, "model"), waves / 0.8 + 1).is_complete
    with pytest.raises(ValueError, match="states must fit the memory"):
        sweep(lambda w: w, waves / 0.8 + 1)  # each device of a trial holds all of it
    assert sweep(lambda w: w, 2 * waves / 0.8 + 1).is_complete


@pytest.mark.slow
@on_eight_devices
def test_an_automatic_batch_counts_the_memory_of_a_device():
    """The same memory on each device holds more trials if each device holds a part of them."""
    step = lambda hp, w, key: (w * hp["x"], {"loss": jnp.sum(w)})
    init = lambda hp, key: constrained(jnp.zeros(65_536) + hp["x"], "model")
    points = rj.grid(x=np.linspace(0.1, 1.0, 64).tolist())
    sizes = {}
    for name in ("4x2", "2x4", "1x8"):
        machine = Machine(device_memory=lambda devices: 8e6)
        options = Options(train=rj.Training(init, step), points=points, mesh=mesh(name), steps=2)
        experiment = Experiment.prepare(options, Cluster(mesh(name), machine), "sweep")
        experiment.shard_states()
        sizes[name] = experiment.compiler(0, len(points)).compile().layout.batch_size
    assert sizes["4x2"] < sizes["2x4"] < sizes["1x8"], sizes


@on_eight_devices
def test_states_that_do_not_fit_the_devices_are_refused(tmp_path):
    """With a scheduler, the devices hold the states of all trials: 2 on each of 4 submeshes."""
    training = rj.Training(
        lambda hp, key: constrained(jnp.zeros(1024) + hp["x"], "model"),
        lambda hp, w, key: (w, {"loss": jnp.sum(w)}),
    )
    whole = rj.Training(lambda hp, key: jnp.zeros(1024) + hp["x"], training.step)
    points = rj.grid(x=[float(i) for i in range(8)])
    machine = Machine(device_memory=lambda devices: 2 * 4 * 1024 - 1.0)
    options = {"steps": 2, "batch_size": 1, "scheduler": rj.SuccessiveHalving(2, 1)}
    assert engine.sweep(training, points, machine, mesh=mesh("4x2"), **options).is_complete
    options |= {"mesh": mesh("4x2"), "path": f"{tmp_path}/folder"}
    with pytest.raises(ValueError, match=r"states must fit the memory of the devices.*mesh="):
        engine.sweep(whole, points, machine, **options)
    assert not Path(tmp_path, "folder").exists()


@on_eight_devices
def test_keys_that_a_batch_would_change():
    """XLA's generator is refused in a `vmap`, and gives trials of one seed equal numbers alone."""
    with jax.default_prng_impl("rbg"):
        train = lambda hp, key: {
            "loss": hp["x"] + constrained(jax.random.normal(key, (8,)), "model").sum()
        }
        points = rj.grid(x=[1.0, 2.0, 3.0])
        with pytest.raises(ValueError, match="batch_size must be 1, got 2"):
            rj.sweep(train, points, mesh=mesh("4x2"), batch_size=2, progress=False)
        found = rj.sweep(train, points, mesh=mesh("4x2"), progress=False)
        np.testing.assert_allclose(np.diff(found.objective), 1.0, rtol=1e-5)
