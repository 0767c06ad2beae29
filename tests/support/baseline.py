"""Sweeps of every kind and all that they give, to compare one version of the engine with another.

`python -m tests.support.baseline OUT.npz` runs the sweeps on two CPU devices and stores the arrays
of each result, and the order in which its callback was called and its files were written and
deleted. `python -m tests.support.baseline --compare A.npz B.npz` prints each difference, and exits
with 1 if there is any. Two runs of the same code are equal.

No array depends on time. Checkpoints are written at each evaluation step or never. A static group
has at most three waves, because the engine measures the first four, and may put more trials into
those that follow. Seconds are left out.
"""

import contextlib
import difflib
import functools
import itertools
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import rmsprop_jax as rj

NEVER = 10**6  # seconds between checkpoints
SPACE = {
    "rate": rj.log_uniform(1e-3, 1.0),
    "decay": rj.one_minus(rj.log_uniform(1e-2, 0.5)),
    "centered": rj.choice([False, True]),
}


class Recorder:
    """The events of a sweep, in order.

    Args:
      folder: the sweep's; files elsewhere are ignored.
      last: the event at which this process ends, as by a kill; None for no end.
    """

    def __init__(self, folder: Path, last: str | None = None):
        self.folder, self._last = folder, last
        self.events: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.reports: list = []
        self.batches: list[int] = []

    def _add(self, event: str) -> None:
        self.events.append(event)
        if event == self._last:
            os._exit(0)

    @contextlib.contextmanager
    def files(self):
        """Record the files that are written and deleted within."""
        spy = functools.partial(mock.patch.object, os)
        with (
            spy("replace", self._recording("write", os.replace)),
            spy("unlink", self._recording("delete", os.unlink)),
            spy("remove", self._recording("delete", os.remove)),
        ):
            yield

    def _recording(self, what: str, call: Callable) -> Callable:
        def recording(*paths, **options):
            call(*paths, **options)
            path = Path(paths[-1])
            if path.parent == self.folder and not path.name.startswith("."):
                self._add(f"{what} {path.name}")

        return recording

    def callback(self, report) -> None:
        trials = ", ".join(f"{trial.number} at {trial.step}" for trial in report)
        self._add(f"callback: {trials}")
        self.reports.append(report)

    def told(self, study, trial) -> None:
        """A callback of a study."""
        self._add(f"told {trial.number} {trial.state.name}")

    def decided(self, scheduler):
        """The scheduler, recorded where it is asked."""
        recorder = self

        class Recorded(type(scheduler)):  # settings of a subclass are those of the class
            def decide(self, step, view):
                recorder._add(f"decide at {step}")
                return super().decide(step, view)

        return Recorded(**vars(scheduler))

    def requested(self, batches):
        """The batches, recorded where they are asked for."""
        return lambda t: self.batches.append(t) or batches(t)

    def arrays(self) -> dict[str, np.ndarray]:
        """All of that. In which order files are deleted that are deleted together is left open."""
        events = []
        is_deletion = lambda event: event.startswith("delete")
        for sorts, some in itertools.groupby(self.events, is_deletion):
            events += (sorted if sorts else list)(some)
        told = [(i, trial) for i, report in enumerate(self.reports) for trial in report]
        found = {
            "call": [i for i, _ in told],
            "number": [trial.number for _, trial in told],
            "seed": [trial.seed for _, trial in told],
            "step": [trial.step for _, trial in told],
            "point": [plain(trial.point) for _, trial in told],
        }
        for name in told[0][1].metrics if told else ():
            found[f"newest {name}"] = [trial.metrics[name] for _, trial in told]
        found = {f"callback/{name}": np.array(x) for name, x in found.items()}
        texts = {name: np.array(lines, str) for name, lines in self.texts.items()}
        return found | texts | {"events": np.array(events, str), "batches": np.array(self.batches)}


def plain(value) -> str:
    """As text, all digits of a float."""
    return json.dumps(value, sort_keys=True, default=repr)


def arrays_of(result: rj.SweepResult) -> dict[str, np.ndarray]:
    """The arrays of a result, and of the states that it keeps."""
    found = {
        "points": np.array([plain(dict(point)) for point in result.points]),
        "seeds": np.array(result.seeds),
        "rungs": np.array(result.rungs, int),
        "history": np.array([plain(lineage) for lineage in result.history], str),
        "status": np.array(result.status, str),
        "aim": np.array([result.objective_name, result.mode]),
    }
    for name in ("objective", "point_index", "seed_index", "failed", "feasible", "steps_completed"):
        found[name] = getattr(result, name)
    found |= {f"metric {name}": x for name, x in result.metrics.items()}
    found |= {f"steps {name}": x for name, x in result.steps.items()}
    for (i, point), seed in itertools.product(enumerate(result.points), result.seeds):
        with contextlib.suppress(ValueError):  # it is not kept
            leaves = jax.tree.leaves(result.state(point, seed))
            found |= {f"state of {i}, {seed}/{j}": data(x) for j, x in enumerate(leaves)}
    return found


def data(x) -> np.ndarray:
    """A leaf as an array, a key as its data."""
    is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


# What runs.


def train(hp, key):
    """A quadratic under noise. A rate of 1 fails."""
    solver = rj.rmsprop(hp["rate"], decay=hp["decay"], centered=hp["centered"], eps=1e-3)
    params = jax.random.normal(key, (5,))

    def step(carry, t):
        params, state = carry
        noise = jax.random.normal(jax.random.fold_in(key, t), params.shape)
        loss, grads = jax.value_and_grad(lambda p: jnp.sum((p - 0.1 * noise) ** 2))(params)
        updates, state = solver.update(grads, state)
        return (params + updates, state), loss

    (params, _), loss = jax.lax.scan(step, (params, solver.init(params)), jnp.arange(12))
    loss = jnp.where(hp["rate"] > 0.5, jnp.nan, loss)
    mean = params.mean()
    return {"loss": loss, "half": mean.astype(jnp.bfloat16), "above": (params > mean).sum()}


def points(*rates: float, decay: float = 0.9) -> rj.Points:
    return rj.grid(rate=list(rates), decay=[decay], centered=[False, True])


def function(recorder, path):
    return rj.sweep(
        train, points(1e-3, 1e-2, 0.1, 0.3, 1.0), seeds=[5], path=path,
        callback=recorder.callback, progress=False,
    )  # fmt: skip


def batched(recorder, path):
    """Static groups of 8 and 4 trials of other lengths, in waves of 6."""

    def of_length(hp, key):
        metrics = train({"decay": 0.9} | hp, key)
        return metrics | {"loss": metrics["loss"][: hp["length"]]}

    grids = [
        rj.grid(rate=rates, centered=[centered], length=rj.static([length]))
        for rates, centered, length in [
            ([1e-3, 1e-2, 0.1, 1.0], False, 12), ([1e-2, 0.1], True, 12), ([1e-2, 0.1], True, 7)
        ]
    ]  # fmt: skip
    options = {"mode": "max", "record_every": 3, "batch_size": 3, "seeds": [3, 0], "path": path}
    return rj.sweep(
        of_length, grids[0] + grids[1] + grids[2], callback=recorder.callback, progress=False,
        **options,
    )  # fmt: skip


def stepwise(recorder, path, rates=(1e-3, 1e-2, 0.1), scheduler=None, **options):
    from tests.support import trainings  # which begins JAX

    given = {
        "steps": 20, "evaluate_every": 5, "checkpoint_seconds": 0, "seeds": [4, 2], "path": path,
        "callback": recorder.callback,
        "scheduler": scheduler and recorder.decided(scheduler),
    }  # fmt: skip
    return trainings.sweep(points=points(*rates), **given | options)


def training(recorder, path, **options):
    return stepwise(recorder, path, **options)


def halving(recorder, path, **options):
    scheduler = rj.SuccessiveHalving(2, 3)  # at 3, 6, 12
    return stepwise(recorder, path, scheduler=scheduler, **{"keep_states": "all"} | options)


def population(recorder, path, **options):
    scheduler = rj.PopulationBasedTraining({"rate": SPACE["rate"]}, 5, 0.25, 1)
    given = {"keep_states": 2, "batch_size": 2}  # so that 10 trials are 3 waves
    return stepwise(recorder, path, (1e-3, 1e-2, 0.1, 0.3, 0.5), scheduler, **given | options)


def fed(recorder, path, scheduler=None, **options):
    """Steps that read a batch; a rate of 1 fails after the first."""

    def step(hp, state, key, batch):
        w, opt_state = state
        solver = rj.rmsprop(hp["rate"], centered=hp["centered"], eps=1e-3)
        loss, grad = jax.value_and_grad(lambda w: jnp.mean((batch["x"] @ w - batch["y"]) ** 2))(w)
        updates, opt_state = solver.update(grad, opt_state)
        fails = (hp["rate"] > 0.5) & (batch["t"] == 1)
        return (jnp.where(fails, jnp.nan, w + updates), opt_state), {"loss": loss}

    def init(hp, key):
        w = jax.random.normal(key, (3,))
        return w, rj.rmsprop(hp["rate"], centered=hp["centered"], eps=1e-3).init(w)

    def batches(t):
        x = np.random.default_rng(t).normal(size=(4, 3)).astype(np.float32)
        return {"x": x, "y": x.sum(1), "t": np.int32(t)}

    given = {
        "steps": 17, "evaluate_every": 4, "seeds": [1], "batches": recorder.requested(batches),
        "path": path, "keep_states": 1, "callback": recorder.callback, "progress": False,
        "scheduler": scheduler and recorder.decided(scheduler),
    }  # fmt: skip
    grid = rj.grid(rate=[1e-3, 1e-2, 0.1, 0.3, 1.0], centered=[False, True])
    return rj.sweep(rj.Training(init, step), grid, **given | options)


def fed_in_memory(recorder, path):
    return fed(recorder, None)


def fed_halving(recorder, path):
    return fed(recorder, path, rj.SuccessiveHalving(3, 2), checkpoint_seconds=0)


def search(recorder, path, train=train, pruner=None, **options):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner or optuna.pruners.NopPruner()
    )
    options |= {"callback": recorder.callback, "study_callbacks": [recorder.told]}
    result = rj.search.optimize(train, study, SPACE, progress=False, **options)
    recorder.texts["study"] = list(map(study_trial, study.trials))
    return result


def study_trial(trial) -> str:
    """Return a study's record of a trial, without the seconds."""
    attributes = {k: x for k, x in trial.user_attrs.items() if k != "seconds"}
    steps = sorted(trial.intermediate_values.items())
    return plain([trial.number, trial.state.name, trial.values, trial.params, attributes, steps])


def search_of_a_function(recorder, path):
    last = lambda metrics: metrics["loss"][-1]
    return search(recorder, path, n_trials=7, seeds=[7], objective=last)


def search_of_a_training(recorder, path):
    import optuna

    from tests.support import trainings

    return search(
        recorder, path, trainings.noisy(), optuna.pruners.MedianPruner(n_startup_trials=2),
        n_trials=9, max_concurrent_trials=3, seeds=2, steps=20, evaluate_every=5,
        objective="validation", args=(trainings.SCALE,), keep_states=2,
    )  # fmt: skip


def one_device(recorder, path):
    return training(recorder, path, seeds=1, devices=jax.devices()[1:], checkpoint_seconds=NEVER)


def two_processes(recorder, path):
    """Return the events and the arrays of the leader of two processes."""
    from tests.support import cluster

    with tempfile.TemporaryDirectory() as out:
        processes = cluster.start("baseline", out)
        said = cluster.words(processes)
        if any(process.returncode for process in processes):
            raise RuntimeError("\n".join(said))
        recorded = Path(out, "recorded").read_bytes()
        recorder.events, recorder.reports = pickle.loads(recorded)
        return rj.SweepResult.load(f"{out}/process0")


def process_of_two(path) -> rj.SweepResult:
    """One of the processes: a problem of `cluster`."""
    recorder = Recorder(Path(path))
    with recorder.files():
        result = halving(recorder, path, keep_states=2)
    if jax.process_index() == 0:
        recorded = pickle.dumps((recorder.events, recorder.reports))
        Path(path).with_name("recorded").write_bytes(recorded)
    return result


def resumed(name: str, last: str, **options) -> Callable:
    """The sweep of this name, killed at an event and called again."""

    def sweep(recorder, path):
        given = ["--end-at", last, name, str(path), json.dumps(options)]
        subprocess.run([sys.executable, "-m", "tests.support.baseline", *given], check=True)
        names = os.listdir(path)
        recorder.texts["files"] = sorted(name for name in names if not name.startswith("."))
        return SWEEPS[name](recorder, path, **options)

    return sweep


SWEEPS = {
    "function": function,
    "batched": batched,
    "training": training,
    "halving": halving,
    "population": population,
    "fed": fed_in_memory,
    "fed halving": fed_halving,
    "search": search_of_a_function,
    "search of a training": search_of_a_training,
    "one device": one_device,
    "two processes": two_processes,
    "resumed training": resumed("training", "callback: 8 at 10, 9 at 10"),
    # Between two states of pruned trials: nothing is decided yet.
    "resumed halving": resumed("halving", "write final-000003_4.npz"),
    "resumed halving without checkpoints": resumed(
        "halving", "callback: 8 at 10, 9 at 10", checkpoint_seconds=NEVER
    ),
    # Metrics are on disk up to the decision, states up to the one before.
    "resumed population": resumed("population", "write decision-000000000010.json"),
}


def start_jax() -> None:
    """Before JAX is first used."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)


def run(out: str) -> None:
    """Run all and store what they gave."""
    stored: dict[str, np.ndarray] = {}
    for name, sweep in SWEEPS.items():
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder).resolve() / "folder"
            recorder = Recorder(path)
            with recorder.files():
                result = sweep(recorder, path)
            found = recorder.arrays() | {f"result/{k}": x for k, x in arrays_of(result).items()}
            if path.exists():
                loaded = rj.SweepResult.load(path, objective=result.objective_name)
                found |= {f"loaded/{k}": x for k, x in arrays_of(loaded).items()}
        stored |= {f"{name}/{k}": x for k, x in found.items()}
        print(f"{name}: {time.perf_counter() - begin:.1f} s, {len(found)} arrays", flush=True)
    for name, x in list(stored.items()):
        if x.dtype.kind == "V":  # such as bfloat16, which `.npz` does not know
            stored |= {name: x.view(f"V{x.itemsize}"), f"{name}, dtype": np.array(str(x.dtype))}
    np.savez_compressed(out, **stored)


def differences(a: str, b: str) -> list[str]:
    """In words, each difference between two files."""
    with np.load(a) as one, np.load(b) as other:
        found = [f"only in {a}: {name}" for name in one if name not in other]
        found += [f"only in {b}: {name}" for name in other if name not in one]
        for name in one:
            if name in other and (text := difference(one[name], other[name])):
                found.append(f"{name}: {text}")
    return found


def difference(x: np.ndarray, y: np.ndarray) -> str:
    """In words, the difference between two arrays, bit for bit; empty if there is none."""
    if x.dtype.kind == y.dtype.kind == "U" and x.ndim == y.ndim == 1:
        lines = difflib.unified_diff(x.tolist(), y.tolist(), lineterm="", n=2)
        return "".join(f"\n    {line}" for line in lines)
    if (x.dtype, x.shape) != (y.dtype, y.shape):
        return f"{x.dtype}{list(x.shape)} and {y.dtype}{list(y.shape)}"
    if x.tobytes() == y.tobytes():
        return ""
    each = [part.reshape(-1).view(f"V{part.itemsize}") for part in (x, y)]
    unequal = np.flatnonzero(each[0] != each[1])
    first = [part.reshape(-1)[unequal[0]] for part in (x, y)]
    place = list(map(int, np.unravel_index(unequal[0], x.shape)))
    return f"{len(unequal)} of {x.size} differ, the first at {place}: {first[0]} and {first[1]}"


def end_at(last: str, name: str, folder: str, options: str) -> None:
    """Run a sweep that ends this process at an event."""
    recorder = Recorder(Path(folder), last)
    with recorder.files():
        SWEEPS[name](recorder, recorder.folder, **json.loads(options))
    raise RuntimeError(f"{name} ended without {last!r}, after {recorder.events}.")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--compare", a, b]:
            found = differences(a, b)
            print(*found, f"{len(found)} differences", sep="\n")
            sys.exit(bool(found))
        case ["--end-at", last, name, folder, options]:
            start_jax()
            end_at(last, name, folder, options)
        case [out]:
            start_jax()
            run(out)
        case _:
            sys.exit(__doc__)
