"""Peak memory of the host, as a multiple of the size of the metrics: long metrics, many trials.

Each case runs in its own process (except in the quick form). The process first compiles the
programs of the sweep, then notes the memory that it holds, and resets the kernel's record of the
peak (Linux only). The figure is the peak above the noted memory. The returned metrics count as 1.
"""

import ast
import contextlib
import ctypes
import gc
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import rmsprop_jax as rj
from rmsprop_jax._tune.compile import compiled as program
from rmsprop_jax._tune.session import Session
from tests.benchmarks.runner import Goal, goals_missed, header, row

ROOT, CLEAR = Path(__file__).parents[2], Path("/proc/self/clear_refs")
METRICS = ("loss", "gradient", "update", "distance")
GOAL, STATES_GOAL = Goal("≤", 2.0), Goal("≤", 1.2)
KINDS = ("function", "Training")
# The order matters: later cases read the files of earlier cases.
CASES = (
    "sweep",
    "sweep with a function as objective",
    "sweep with a path",
    "the same call again",
    "load",
    "save",
    "load the saved result",
)


def solver(hp):
    return rj.rmsprop(hp["learning_rate"], centered=hp["centered"], eps=1e-3)


def init(hp, key):
    params = jax.random.normal(key, (4,))
    return params, solver(hp).init(params)


def step(hp, state, key):
    """Take one step on a quadratic loss of 4 parameters."""
    params, opt_state = state
    loss, gradient = jax.value_and_grad(lambda p: jnp.sum(p**2))(params)
    update, opt_state = solver(hp).update(gradient, opt_state)
    largest = (jnp.max(jnp.abs(x)) for x in (gradient, update, params))
    return (params + update, opt_state), dict(zip(METRICS, (loss, *largest), strict=True))


def last_tenth(metrics):
    """Return the mean of the last tenth of the losses."""
    loss = metrics["loss"]
    return loss[-max(1, len(loss) // 10) :].mean()


def swept(kind: str, trials: int, steps: int, centered=(False, True), **options: Any):
    """Sweep two static groups, whose points alternate, or one of them."""
    training = rj.Training(init, step)
    points = rj.grid(
        learning_rate=np.geomspace(1e-4, 1e-1, trials // 2), centered=rj.static(centered)
    )
    if kind == "Training":
        return rj.sweep(training, points, steps=steps, progress=False, **options)
    train = lambda hp, key: training.run(hp, key, steps=steps)[1]
    return rj.sweep(train, points, progress=False, **options)


def peak(kind: str, case: str, trials: int, steps: int, folder: str) -> int:
    """Return the peak of this process in one case, in bytes above the noted memory."""
    path = Path(folder, kind)
    saved = path.with_name(f"{kind} saved")
    run = lambda **options: swept(kind, trials, steps, **options)
    compile_all(run)
    compiled = len(program._CACHE)
    held = resident()
    before = rj.SweepResult.load(path) if case == "save" else None
    start_peak()
    after = {
        "sweep": run,
        "sweep with a function as objective": lambda: run(objective=last_tenth),
        "sweep with a path": lambda: run(path=path),
        "the same call again": lambda: run(path=path),
        "load": lambda: rj.SweepResult.load(path),
        "save": lambda: before.save(saved),
        "load the saved result": lambda: rj.SweepResult.load(saved),
    }[case]()
    bytes_ = status("VmHWM") - held
    result = after or before
    assert len(program._CACHE) == compiled
    assert result.metrics["loss"].shape == (trials, steps)
    assert np.isfinite(result.metrics["distance"]).all()
    return bytes_


def of_its_own_process(function: str, *given: Any) -> Any:
    """Call a function of this module in a new process, and return its result."""
    code = (
        f"import jax; jax.config.update('jax_num_cpu_devices', {jax.device_count()})\n"
        f"from tests.benchmarks import memory; print(memory.{function}(*{given}))"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True
    )
    return ast.literal_eval(child.stdout)


def compile_all(run: Callable[..., rj.SweepResult]) -> None:
    """Compile the programs of both static groups, and run one wave of each."""

    def stop(report):
        raise StopIteration

    for centered in (False, True):
        with contextlib.suppress(StopIteration):
            run(centered=[centered], callback=stop)


def start_peak() -> None:
    """Free unused memory, and reset the kernel's record of the peak."""
    resident()
    CLEAR.write_text("5")


def resident() -> int:
    """Free unused memory, and return the bytes that the process holds."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    return status("VmRSS")


def status(name: str) -> int:
    """Return a figure of the kernel about this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}.")


STATES = {
    "no scheduler": {},
    "batches": {"batches": lambda t: np.float32(1.0)},
    "halving": {"scheduler": rj.SuccessiveHalving(2, 2)},
    "population": {"scheduler": rj.PopulationBasedTraining({"x": rj.uniform(0.1, 0.9)}, 2)},
}
"""Options of a training with a large state. Except in the first case, all trials run at once."""


def states_peak(order: str, trials: int, numbers: int) -> tuple[int, int]:
    """Return the bytes of all states: the peak above the noted memory, and the sweep's count."""
    options, counted = STATES[order], []
    points = rj.grid(x=np.linspace(0.1, 0.9, trials))

    def step(hp, x, key, *batch):
        return 0.9 * x + hp["x"], {"loss": x[0]}

    training = rj.Training(lambda hp, key: jnp.full(numbers, hp["x"]), step)
    run = lambda points: rj.sweep(
        training, points, steps=8, evaluate_every=2, progress=False, **options
    )
    run(points[:4])
    count = Session.states_bytes
    noted = lambda *given: counted.append(count(*given)) or counted[-1]
    held = resident()
    start_peak()
    with mock.patch.object(Session, "states_bytes", noted):
        run(points)
    return status("VmHWM") - held, counted[-1]


def states(quick: bool):
    trials, numbers = (8, 10_000) if quick else (48, 1_000_000)
    yield (
        f"\n### States of {trials} trials, {4e-6 * numbers:,.2f} MB each\n\nThe peak above the "
        "memory before the call, compared with the count of the sweep's memory check.\n"
    )
    yield header("options", "peak, MB", "counted by the memory check, MB", "peak ÷ counted", "goal")
    measured = []
    for order in STATES:
        if quick:
            peak_, counted = states_peak(order, trials, numbers)
        else:
            peak_, counted = of_its_own_process("states_peak", order, trials, numbers)
        cells = f"{peak_ / 1e6:,.0f}", f"{counted / 1e6:,.0f}", f"{peak_ / counted:.2f} ×"
        yield row(order, *cells, f"{STATES_GOAL} ×")
        measured.append((order, peak_ / counted, STATES_GOAL))
    yield "\n" + goals_missed(measured)


SHAPES = {False: ((500, 20_000), (8, 1_000_000)), True: ((20, 200), (4, 1_000))}
"""Trials and steps, in the full and in the quick form."""


def main(quick: bool):
    yield "\n## Peak memory"
    if not CLEAR.exists():
        yield "\nNot run: only Linux can reset the record of a peak."
        return
    for trials, steps in SHAPES[quick]:
        yield from series(quick, trials, steps)
    yield from states(quick)


def series(quick: bool, trials: int, steps: int):
    own = trials * steps * len(METRICS) * 4
    yield (
        f"\n### {trials} trials × {steps:,} steps × {len(METRICS)} metrics, "
        f"{own / 1e6:,.2f} MB of float32\n\nThe peak above the memory before the call, as a "
        "multiple of the size of the metrics.\n"
    )
    yield header("case", *KINDS, "goal")
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            cells = []
            for kind in KINDS:
                given = kind, case, trials, steps, folder
                bytes_ = peak(*given) if quick else of_its_own_process("peak", *given)
                cells.append(f"{bytes_ / own:.2f} ×")
                measured.append((f"{case}, {kind}", bytes_ / own, GOAL))
            yield row(case, *cells, f"{GOAL} ×")
    yield "\n" + goals_missed(measured)
