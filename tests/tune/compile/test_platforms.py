"""Beyond this machine: our programs are lowered for other platforms, and made for devices that are
not there. What a TPU's own compiler says of them, `python -m tests.benchmarks tpu` prints."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import rmsprop_jax as rj
from rmsprop_jax._tune.compile import compiled as program
from rmsprop_jax._tune.run.cluster import Cluster, DescribedDevices
from tests.benchmarks import convolution, tpu
from tests.benchmarks.step import VARIANTS, train_step
from tests.support import trainings
from tests.support.aot import compilers
from tests.support.tables import few

PLATFORMS = ["cpu", "cuda", "rocm", "tpu"]


SHORT = {"state_dtype": "bfloat16"}
STEPS = {
    **{name: rj.rmsprop(1e-3, **settings) for name, settings in VARIANTS.items()},
    **{
        f"{n}, two bytes": rj.rmsprop(1e-3, **settings, **SHORT) for n, settings in VARIANTS.items()
    },
    "rounded parameters": optax.chain(rj.rmsprop(1e-3, **SHORT), rj.stochastic_rounding()),
    "decay and schedule": rj.rmsprop(optax.linear_schedule(1e-3, 0.0, 9), weight_decay=1e-4),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver", few(STEPS, ["plain", "centered, two bytes", "decay and schedule"])
)
def test_a_step_is_exported_to_every_platform_and_runs_here(solver):
    params = {"w": jnp.ones((8, 128), jnp.bfloat16), "b": jnp.ones(3)}
    carried = params, solver.init(params), jax.tree.map(lambda p: 0.1 * p, params)
    step = train_step(solver)
    exported = export.export(step, platforms=PLATFORMS)(*carried)
    assert list(exported.platforms) == PLATFORMS
    chex.assert_trees_all_equal(exported.call(*carried), jax.jit(step.__wrapped__)(*carried))


def rounds(train, args, batch_size, **options):
    points = rj.grid(rate=[1e-3, 1e-2], learning_rate=[1e-3], decay=[0.9, 0.99], centered=[False])
    here = Cluster(jax.devices())
    (compiler,) = compilers(train, points, here, args=args, batch_size=batch_size, **options)
    layout = compiler.layout(batch_size)
    placed, kernels = here.place(args), compiler.kernels.each().values()
    return [program.wave_of(kernel, placed, layout, here.mesh) for kernel in kernels]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("kind", ["training", "function"])
def test_rounds_of_a_sweep_are_exported_to_every_platform(kind, batch_size):
    """A `Training` has `init`, a segment, and `evaluate`. A function has one program."""
    if kind == "training":
        training, steps = trainings.noisy(), {"steps": 30}
        found = rounds(training, (trainings.SCALE,), batch_size, **steps)
    else:
        train = functools.partial(convolution.train, steps=3)
        found = rounds(train, convolution.pictures(), batch_size)
    assert len(found) == (3 if kind == "training" else 1)
    for jitted, inputs in found:
        exported = export.export(jitted, platforms=PLATFORMS)(*inputs)
        assert list(exported.platforms) == PLATFORMS
        assert exported.nr_devices == jax.device_count()


# Devices that are not there.


class Chip:
    """As JAX describes one: it has no memory to tell of, and is of some host."""

    platform, device_kind = "tpu", "TPU v5 lite"

    def __init__(self, chip, host):
        self.id, self.process_index = chip, host

    def memory_stats(self):
        raise RuntimeError("MemoryStats is only supported for addressable PjRt devices.")


def test_described_devices_have_the_memory_that_is_said():
    here = DescribedDevices([Chip(0, 0), Chip(1, 1)], memory=1000.0)
    assert here.free_memory() == pytest.approx(900.0)
    assert here.mesh.size == 2
    assert DescribedDevices([Chip(0, 0)]).free_memory() is None


@pytest.mark.slow
def test_auto_fits_the_memory_of_described_devices():
    """Real ones, so that something compiles for them, of which a memory is said."""

    def train(hp, key):
        draws = jax.random.normal(key, (1000,))
        return {"loss": jax.lax.map(lambda x: jnp.sort(draws * x).mean(), hp["a"] * jnp.ones(3))}

    def programs(memory):
        here = DescribedDevices(jax.devices(), memory)
        (compiler,) = compilers(train, rj.grid(a=np.linspace(0.0, 1.0, 128).tolist()), here)
        return compiler.compile()

    whole = programs(1e12)
    assert whole.layout.batch_size == 64
    half = programs(whole.memory / 2 / 0.9)
    assert half.layout.batch_size in (16, 22, 32)  # of 64 in as many full rounds as are needed
    assert half.memory <= whole.memory / 2
    assert programs(1.0).layout.batch_size == programs(None).layout.batch_size == 1


def test_what_is_made_ahead_is_what_a_sweep_runs(monkeypatch):
    """The same text, for the same devices: equal keys."""
    keys, compile_ = [], program._compiled
    noted = lambda key, lowered: keys.append(key) or compile_(key, lowered)
    monkeypatch.setattr(program, "_compiled", noted)
    args, options = (trainings.SCALE,), {"steps": 30, "evaluate_every": 7}
    points, here = trainings.POINTS[::2], DescribedDevices(jax.devices())  # of one static group
    for compiler in compilers(trainings.noisy(), points, here, args=args, **options):
        compiler.make(compiler.size).compile()
    made = set(keys)
    keys.clear()
    trainings.sweep(points=points, **options)
    assert len(made) == 3  # pieces
    assert set(keys) == made


@pytest.mark.parametrize("platforms", ["of its platform", "no such platform"])
def test_a_sweep_runs_on_no_devices_that_are_only_described(platforms, monkeypatch):
    """JAX gives them the same type as those that are there."""
    here = jax.devices()

    def devices(platform=None):
        if platforms == "no such platform" and platform is not None:
            raise RuntimeError(f"Unknown backend {platform}")
        return here[:1]

    monkeypatch.setattr(jax, "devices", devices)
    train = lambda hp, key: {"loss": hp["a"]}
    with pytest.raises(ValueError, match=r"only described.* some of jax\.devices"):
        rj.sweep(train, rj.grid(a=[1.0]), devices=here[1:], progress=False)


def test_what_the_tpu_must_keep_to_is_checked():
    tpu.refuse("plain", 1.0005, 0, 0)
    for ratio, temporary, collectives in ((1.01, 0, 0), (0.5, 0, 1), (0.5, 4, 0)):
        with pytest.raises(RuntimeError, match="Read the compiled text"):
            tpu.refuse("plain", ratio, temporary, collectives)
    text = "x = f32[8] all-reduce(y)\nz = f32[8] all-gather-start(x)\nw = f32[8] all-gather-done(z)"
    assert len(tpu.COLLECTIVE.findall(text)) == 2
