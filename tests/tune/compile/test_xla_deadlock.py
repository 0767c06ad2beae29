"""Linear algebra on batches: it hangs an older jaxlib on few cores, which the sweep refuses."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmsprop_jax as rj
from rmsprop_jax._tune.compile import xla_deadlock as deadlock
from tests.support.tables import few

OLD = deadlock.version() < deadlock.FIXED_IN
only_old = pytest.mark.skipif(not OLD, reason="this jaxlib does not hang")

SWEEP = """
import jax, jax.numpy as jnp, rmsprop_jax as rj
jax.config.update("jax_num_cpu_devices", 2)
from rmsprop_jax._tune.compile import xla_deadlock as deadlock
from rmsprop_jax._tune.compile import compiled as program
if UNGUARDED:
    program.refuse_deadlock = lambda *_: None

def train(hp, key):
    '''What a Flax LSTM does when it begins: four orthogonal matrices.'''
    orthogonal = jax.nn.initializers.orthogonal()
    draw = lambda key: jnp.sum(orthogonal(key, (64, 64))[0])
    return {"loss": hp["x"] * sum(draw(k) for k in jax.random.split(key, 4))}

points = rj.grid(x=[float(i) for i in range(1024)])
print("begins", flush=True)
while True:
    rj.sweep(train, points, batch_size=BATCH, progress=False)
    print("a sweep", flush=True)
    if not UNGUARDED:
        break
"""


def start(**values):
    code = SWEEP
    for name, value in values.items():
        code = code.replace(name, str(value))
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def cpu_seconds(process):
    fields = Path(f"/proc/{process.pid}/stat").read_text("utf-8").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@only_old
@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) > 4, reason="seen to hang on 2 to 4 cores")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux to see it idle")
def test_without_the_guard_it_hangs():
    """It would sweep for ever, but uses no more CPU: every thread waits for another."""
    process = start(UNGUARDED=True, BATCH=8)
    try:
        assert process.stdout.readline() == "begins\n"
        idle = False
        for _ in range(30):
            before = cpu_seconds(process)
            time.sleep(3)
            assert process.poll() is None, process.stderr.read()
            if idle := cpu_seconds(process) - before < 0.1:
                break
        assert idle
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@only_old
def test_with_the_guard_it_is_an_error():
    _, err = start(UNGUARDED=False, BATCH=8).communicate(timeout=120)
    assert re.search(r"ValueError: .*4 × qr\)? on 2 CPU devices.*jax\.lax\.map", err)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 8])
def test_no_false_alarm(batch_size):
    if OLD and batch_size > 1:
        pytest.skip("here it would hang")
    out, err = start(UNGUARDED=False, BATCH=batch_size).communicate(timeout=120)
    assert out == "begins\na sweep\n", err


def refused(f, shape, devices=2, **options):
    jaxpr = jax.make_jaxpr(f)(jnp.ones(shape))
    try:
        deadlock.refuse_deadlock(deadlock.blocking_calls(jaxpr), jax.devices()[:devices], **options)
    except ValueError as error:
        return str(error)
    return ""


@pytest.fixture
def old(monkeypatch):
    """As on an older jaxlib and two cores."""
    monkeypatch.setattr(deadlock, "version", lambda: (0, 11, 0))
    monkeypatch.setenv("NPROC", "2")


ALGEBRA = {
    "qr": lambda a: jnp.linalg.qr(a)[0],
    "cholesky": jnp.linalg.cholesky,
    "svd": jnp.linalg.svd,
    "eigh": jnp.linalg.eigh,
    "eig": jnp.linalg.eig,
    "lu": jnp.linalg.det,
    "triangular_solve": lambda a: jax.scipy.linalg.solve_triangular(a, a),
}


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("name", ALGEBRA)
def test_every_batched_routine_is_found(name):
    inside = lambda f: lambda x: jax.lax.scan(lambda c, _: (c, jax.jit(f)(c)), x, length=3)[1]
    assert f" × {name}" in refused(inside(jax.vmap(ALGEBRA[name])), (3, 4, 4))
    assert not refused(inside(lambda x: jax.lax.map(ALGEBRA[name], x)), (3, 4, 4))
    assert not refused(jax.vmap(ALGEBRA[name]), (1, 4, 4))  # one matrix needs no other thread


@pytest.mark.usefixtures("old")
def test_fewer_calls_than_threads_pass(monkeypatch):
    one = jax.vmap(jnp.linalg.cholesky)
    assert refused(one, (3, 4, 4), devices=2)
    assert not refused(one, (3, 4, 4), devices=1)
    monkeypatch.setenv("NPROC", "8")
    assert not refused(one, (3, 4, 4), devices=2)
    assert refused(lambda x: [one(x + i) for i in range(4)], (3, 4, 4), devices=2)


def test_a_newer_jaxlib_passes(monkeypatch):
    monkeypatch.setattr(deadlock, "version", lambda: deadlock.FIXED_IN)
    assert not refused(jax.vmap(jnp.linalg.cholesky), (3, 4, 4))


@pytest.mark.usefixtures("old")
def test_a_vmap_of_trains_own_is_found_and_lax_map_is_not():
    matrices = np.eye(4)[None].repeat(3, 0)

    def train(hp, key, over):
        return {"loss": jnp.sum(over(jnp.linalg.cholesky)(matrices * hp["x"]))}

    points = rj.grid(x=[1.0, 2.0])
    each = lambda f: lambda xs: jax.lax.map(f, xs)
    rj.sweep(lambda hp, key: train(hp, key, each), points, progress=False)
    with pytest.raises(ValueError, match=r"cholesky.*jax\.lax\.map"):
        rj.sweep(lambda hp, key: train(hp, key, jax.vmap), points, progress=False)


@pytest.mark.slow
@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("piece", few(["init", "step", "evaluate"], ["step"]))
def test_every_piece_of_a_training_is_read(piece):
    """Batched by the sweep, or by a `vmap` of the piece's own; by neither there is no alarm."""
    orthogonal = jax.nn.initializers.orthogonal()
    matrices = np.eye(4)[None].repeat(3, 0)
    own = lambda over, key: jnp.sum(over(jnp.linalg.cholesky)(matrices * jax.random.uniform(key)))
    each = lambda f: lambda xs: jax.lax.map(f, xs)
    points = rj.grid(x=[1.0, 2.0, 3.0, 4.0])

    def go(algebra, batch_size):
        draw = lambda name, key: algebra(key) if name == piece else 0.0
        training = rj.Training(
            lambda hp, key: draw("init", key),
            lambda hp, x, key: (x + draw("step", key), {"loss": x * hp["x"]}),
            lambda hp, x, key: {"end": x + draw("evaluate", key)},
        )
        return rj.sweep(training, points, steps=3, batch_size=batch_size, progress=False)

    one_qr = lambda key: orthogonal(key, (3, 3))[0, 0]
    with pytest.raises(ValueError, match=r"1 × qr\)? on 2 CPU devices.*jax\.lax\.map"):
        go(one_qr, 2)
    with pytest.raises(ValueError, match=r"1 × cholesky.*jax\.lax\.map"):
        go(lambda key: own(jax.vmap, key), 1)
    for batch_size in (1, "auto"):
        assert not go(one_qr, batch_size).failed.any()
    assert not go(lambda key: own(each, key), 1).failed.any()
