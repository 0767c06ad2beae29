"""Our programs, compiled by the TPU compiler on a machine without a TPU (extra `tpu`: libtpu).

JAX compiles ahead of time (AOT) for a described topology. The analysis of the compiler has bytes,
temporary bytes, and memory. No program runs, so there are no times. Each part runs in its own
process, because libtpu reads its settings once, before JAX is imported.

1. One step of ours and of `optax.rmsprop`, jitted with donated buffers. Parameters and state are
   sharded over all chips. The benchmark raises a RuntimeError if ours exceeds its guarantee.
2. The programs of a sweep: a segment of an LSTM (a `Training`), and a convolutional network (a
   `train` function). For several batches per chip, and for `batch_size="auto"`, the table shows
   whether the program fits the memory.
3. The programs of a sweep on a mesh: four trials side by side, each on two chips. For `init`, a
   segment, and `evaluate` of an LSTM and a transformer block whose parameters are split, the table
   shows the bytes per chip, and the collectives by the axes that they cross. The benchmark raises a
   RuntimeError for a collective between trials.
"""

import functools
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import rmsprop_jax as rj
from tests.benchmarks.runner import header, row
from tests.benchmarks.step import VARIANTS, train_step

# https://docs.jax.dev/en/latest/aot.html: without these, libtpu asks the cloud for its topology.
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
TOPOLOGIES = "v5e:2x2", "v5e:8x8"
COLLECTIVE = re.compile(
    r" (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)
F32, BF16 = jnp.float32, jnp.bfloat16
MOST = 1.001  # × Optax's bytes


def devices(topology: str) -> list:
    from jax.experimental.topologies import get_topology_desc

    return get_topology_desc(topology, "tpu").devices


def hosts(chips: list) -> int:
    return len({chip.process_index for chip in chips})


# One step.


def rows() -> Iterator[tuple[str, str, jnp.dtype, dict, bool]]:
    """Yield (dtypes, variant, dtype of the parameters, our arguments, whether guaranteed)."""
    for dtype, name in ((F32, "float32"), (BF16, "bfloat16")):
        for state, storage in (("float32", {}), ("bfloat16", {"state_dtype": "bfloat16"})):
            for settings, arguments in VARIANTS.items():
                same = dtype == F32 and state == "float32"
                short = state == "bfloat16" and not arguments.get("centered")
                yield f"{name}, {state}", settings, dtype, arguments | storage, same or short


def compiled(solver, dtype, mesh: Mesh, shape: tuple[int, int]):
    """Return the compiled step, with each array of a parameter's shape sharded over all chips."""
    cut, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("chips",), ()))
    on = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=cut if x.ndim else whole)
    params = jax.ShapeDtypeStruct(shape, dtype)
    state = jax.tree.map(on, jax.eval_shape(solver.init, params))
    return train_step(solver).lower(on(params), state, on(params)).compile()


def steps(quick: bool, side: int) -> Iterator[str]:
    for topology in TOPOLOGIES[:1] if quick else TOPOLOGIES:
        chips = devices(topology)
        mesh, shape = Mesh(chips, ("chips",)), (side * len(chips), side)
        yield (
            f"\n### One step on {topology}: {len(chips)} chips, {hosts(chips)} host(s), an array "
            f"with {side:,} × {side:,} elements on each chip\n"
        )
        yield header(
            "parameters, our state", "variant", "bytes per parameter, ours", "Optax", "ratio",
            "temporary bytes per chip, ours", "Optax", "collectives, ours", "Optax",
        )  # fmt: skip
        for dtypes, name, dtype, arguments, promised in rows():
            theirs = optax.rmsprop(1e-3, **VARIANTS[name])
            pair = [
                compiled(solver, dtype, mesh, shape)
                for solver in (rj.rmsprop(1e-3, eps_in_sqrt=True, **arguments), theirs)
            ]
            bytes_ = [step.cost_analysis()["bytes accessed"] for step in pair]
            temporary = [step.memory_analysis().temp_size_in_bytes for step in pair]
            calls = [len(COLLECTIVE.findall(step.as_text())) for step in pair]
            ratio = bytes_[0] / bytes_[1]
            each = (f"{size / (side * side):.2f}" for size in bytes_)
            yield row(dtypes, name, *each, f"{ratio:.3f}", *temporary, *calls)
            refuse(f"{dtypes}, {name}", ratio if promised else 0.0, temporary[0], calls[0])


def refuse(name: str, ratio: float, temporary: int, collectives: int) -> None:
    """Refuse a step that accesses more bytes than Optax's, or that moves data between chips."""
    if ratio > MOST or temporary or collectives:
        raise RuntimeError(
            f"{name} must access at most {MOST} × Optax's bytes, without temporary bytes and "
            f"collectives, got {ratio:.3f} ×, {temporary} temporary bytes, and {collectives} "
            "collectives. Read the compiled text."
        )


# The programs of a sweep.


def works(quick: bool) -> Iterator[tuple]:
    """Yield (name, train, args, further arguments of `sweep`)."""
    from tests.benchmarks import convolution
    from tests.benchmarks.lstm import lstm

    hidden, steps = (8, 20) if quick else (64, 300)
    training, args = lstm(hidden, held_out=4_000)
    yield f"LSTM of {hidden} units, a segment", training, args, {"steps": steps}
    train = functools.partial(convolution.train, steps=steps)
    yield f"convolutional network, {steps} steps", train, convolution.pictures(), {}


def chip_bytes(chip) -> float:
    """Return the memory of a chip, from the error for a program that needs more."""
    side = 1 << 20
    x = jax.ShapeDtypeStruct((side, side), F32, sharding=SingleDeviceSharding(chip))
    try:
        jax.jit(lambda x: x @ x).lower(x).compile()
    except jax.errors.JaxRuntimeError as error:
        if found := re.search(r"available HBM \(([\d.]+)G\)|of ([\d.]+)G hbm", str(error)):
            return float(found[1] or found[2]) * 2**30
        raise
    raise RuntimeError("a product of 4 TiB must not fit a chip, but the compiler accepted it.")


def rounds(quick: bool) -> Iterator[str]:
    from rmsprop_jax._tune.run.cluster import DescribedDevices
    from tests.support.aot import compilers

    space = {"learning_rate": rj.log_uniform(1e-4, 1e-2), "decay": rj.uniform(0.5, 0.99)}
    for topology in TOPOLOGIES[:1] if quick else TOPOLOGIES:
        chips = devices(topology)
        memory = chip_bytes(chips[0])
        trials = (8 if quick else 1024) * len(chips)
        yield (
            f"\n### Programs of a sweep on {topology}: {len(chips)} chips with "
            f"{memory / 2**30:.2f} GiB, {hosts(chips)} host(s), {trials:,} trials\n"
        )
        yield header(
            "training", "trials per chip", "compile s", "temporary GB per chip",
            "needed GB per chip", "collectives",
        )  # fmt: skip
        for name, train, args, options in works(quick):
            points = rj.sample(space | {"centered": rj.choice([False])}, trials)
            here = DescribedDevices(chips, memory)
            for batch in (1, 4, "auto") if quick else (1, 16, 64, "auto"):
                options |= {"args": args, "batch_size": batch}
                (compiler,) = compilers(train, points, here, **options)
                start = time.perf_counter()
                programs = compiler.compile()
                seconds = time.perf_counter() - start
                yield analyzed(name, batch, programs, seconds, memory)


def analyzed(name, batch, programs, seconds: float, memory: float) -> str:
    """Return a row of the table, or raise a RuntimeError if the chip has too little memory."""
    size, temporary, needed, collectives = programs.layout.batch_size, 0, 0, 0
    for program in programs.each():
        executable = program.compile().executable
        analysis = executable.memory_analysis()
        temporary = max(temporary, analysis.temp_size_in_bytes)
        whole = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
        needed = max(needed, whole - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes)
        collectives += len(COLLECTIVE.findall(executable.as_text()))
    if needed > memory or collectives:
        raise RuntimeError(
            f"{name} with {batch} trials per chip must fit {memory:,.0f} bytes without "
            f"collectives, got {needed:,} bytes and {collectives} collectives."
        )
    batch = size if size == batch else f"{size} ({batch})"
    return row(
        name, batch, f"{seconds:.1f}", f"{temporary / 1e9:.3f}", f"{needed / 1e9:.3f}", collectives
    )


# Trials on several chips.


def split_works(quick: bool) -> Iterator[tuple[str, rj.Training, tuple]]:
    """Yield (name, training, args) of trainings whose parameters are split over "model"."""
    from tests.benchmarks.lstm import lstm

    training, args = lstm(8 if quick else 512, held_out=4_000)

    def split(tree):
        """Cut each matrix with an even number of columns by its columns."""
        is_even = lambda x: x.ndim == 2 and x.shape[-1] % 2 == 0
        cut = lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec(None, "model"))
        return jax.tree.map(lambda x: cut(x) if is_even(x) else x, tree)

    def step(hp, state, key, *args):
        state, metrics = training.step(hp, state, key, *args)
        return split(state), metrics

    init = lambda hp, key, *args: split(training.init(hp, key, *args))
    yield "LSTM", rj.Training(init, step, training.evaluate), args

    import sharded_trials as example  # `lstm` added its folder to the path

    corpus = example.load(held_out=4_000)
    block = example.trainer(len(corpus.characters), 8 if quick else 512, example.split)
    yield "transformer block", block, (jnp.asarray(corpus.train), jnp.asarray(corpus.validation))


def split_trials(quick: bool) -> Iterator[str]:
    from rmsprop_jax._tune.run.cluster import DescribedDevices
    from tests.support.aot import compilers
    from tests.support.collectives import collectives, crossing

    chips = np.array(devices("v5e:2x4")).reshape(4, 2)
    here = DescribedDevices(Mesh(chips, ("trial", "model")), chip_bytes(chips[0, 0]))
    submeshes = np.arange(chips.size).reshape(chips.shape).tolist()
    space = {"learning_rate": rj.log_uniform(1e-4, 1e-2), "decay": rj.uniform(0.5, 0.99)}
    yield "\n### Programs of a sweep on v5e:2x4: 4 trials side by side, each on 2 chips\n"
    yield header(
        "training", "program", "compile s", "state MB per trial", "state MB per chip",
        "temporary MB per chip", 'collectives over "model"', 'over "trial"',
    )  # fmt: skip
    for name, training, args in split_works(quick):
        points = rj.sample(space | {"centered": rj.choice([False])}, 4)
        (compiler,) = compilers(training, points, here, args=args, steps=20, batch_size=1)
        programs, state = compiler.make(1), compiler.kernels.traces.state
        for kind in ("init", "segment", "evaluate"):
            start = time.perf_counter()
            executable = getattr(programs, kind).executable
            seconds = time.perf_counter() - start
            text = executable.as_text()
            if between := crossing(text, submeshes):
                raise RuntimeError(
                    f"{name}, {kind} must not exchange data between trials, got {between}."
                )
            inside = len(collectives(text, chips.size))
            temporary = executable.memory_analysis().temp_size_in_bytes
            yield row(
                name, kind, f"{seconds:.1f}", f"{state.bytes / 1e6:.3f}",
                f"{state.device_bytes / 1e6:.3f}", f"{temporary / 1e6:.3f}",
                inside, len(between),
            )  # fmt: skip


def main(quick: bool, side: int = 4096) -> Iterator[str]:
    yield "\n## TPU programs, compiled on a machine without a TPU"
    if importlib.util.find_spec("libtpu") is None:
        yield "\nNot run: libtpu is not installed (`pip install -e '.[tpu]'`)."
        return
    version = importlib.metadata.version("libtpu")
    yield f"\nlibtpu {version}. The programs are compiled and do not run, so there are no times."
    for part in PARTS:
        command = [sys.executable, "-m", "tests.benchmarks.tpu", part, str(int(quick)), str(side)]
        environment, root = os.environ | ENVIRONMENT, Path(__file__).parents[2]
        child = subprocess.Popen(
            command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        assert child.stdout is not None
        yield from (line.rstrip("\n") for line in child.stdout)
        if child.wait():
            raise RuntimeError(
                f"{' '.join(command)} ended with {child.returncode}. Its error is above."
            )


PARTS = {
    "steps": steps,
    "rounds": lambda quick, side: rounds(quick),
    "split_trials": lambda quick, side: split_trials(quick),
}

if __name__ == "__main__":
    part, quick, side = sys.argv[1], bool(int(sys.argv[2])), int(sys.argv[3])
    for line in PARTS[part](quick, side):
        print(line, flush=True)
