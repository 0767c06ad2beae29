"""Search: what a study and its database cost, and `search.optimize` beside `study.optimize`.

1. An LSTM under `rj.search.optimize`, each trial reported at six boundaries and the pruner asked,
   with the study in memory, in SQLite and on PostgreSQL (a server of its own, on loopback; left out
   where none is installed). The pruner never prunes here, so that all sides run the same rounds.
   Seconds in the study's calls are counted call by call, and taken against those of the rounds.
2. The same trials by `study.optimize`, whose objective runs one jitted segment after another,
   hyperparameters traced: one compile for all. The proposals are the same, and so must the values
   be, bit for bit.
"""

import collections
import contextlib
import functools
import tempfile
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optuna

import rmsprop_jax as rj
from rmsprop_jax._tune.compile import compiled as program
from rmsprop_jax._tune.search.study_client import StudyClient
from tests.benchmarks.lstm import lstm
from tests.benchmarks.runner import header, interleaved, median, row
from tests.support import postgres

SPACE = {
    "learning_rate": rj.log_uniform(1e-4, 1e-1),
    "decay": rj.one_minus(rj.log_uniform(1e-3, 0.5)),
    "centered": rj.static(rj.choice([False])),
}
CALLS = ("ask", "report", "prunes", "tell")


class Never(optuna.pruners.MedianPruner):
    """Looks at all trials, as any median pruner, and prunes none."""

    def prune(self, study, trial):
        super().prune(study, trial)
        return False


def study_at(url, i, **options):
    storage = optuna.storages.RDBStorage(url) if url else None
    return optuna.create_study(storage=storage, study_name=f"{time.time()} {i}", **options)


@contextlib.contextmanager
def timed(seconds):
    """Count the seconds in each of the study's calls."""
    kept = {name: getattr(StudyClient, name) for name in CALLS}

    def wrapped(name, call):
        @functools.wraps(call)
        def timed_call(*args, **kwargs):
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                seconds[name] += time.perf_counter() - start

        return timed_call

    for name, call in kept.items():
        setattr(StudyClient, name, wrapped(name, call))
    try:
        yield
    finally:
        for name, call in kept.items():
            setattr(StudyClient, name, call)


def overhead(training, args, steps, trials, rounds, urls):
    """A row a side: a storage, and how many trials are under way."""
    slots = jax.device_count()

    def sides(trials):
        return {
            (name, times): functools.partial(one, training, args, steps, trials, url, times * slots)
            for name, url in urls.items()
            for times in (1, 2)
        }

    interleaved(sides(slots), 1)  # compiles
    found = interleaved(sides(trials), rounds)
    yield (
        f"\n## {trials} trials of an LSTM, {steps} steps, 6 reports each: what the study costs\n\n"
        f"TPE proposes; median (quartiles) of {rounds} interleaved rounds; milliseconds a trial, "
        "of all its calls.\n"
    )
    yield header(
        "storage", "under way", *(f"{name}, ms" for name in CALLS), "calls ÷ rounds", "wanted",
        "run s ÷ in memory", "compiles",
    )  # fmt: skip
    base = [run for run, _, _ in found["memory", 1]]
    for (name, times), each in found.items():
        calls = [f"{1e3 * np.median([s[c] for _, s, _ in each]) / trials:.1f}" for c in CALLS]
        share = [sum(s.values()) / (run - sum(s.values())) for run, s, _ in each]
        runs = np.divide([run for run, _, _ in each], base)
        wanted = {"memory": "≤ .01", "PostgreSQL": "≤ .05"}.get(name, "")
        compiles = sum(c for _, _, c in each)
        yield row(name, times * slots, *calls, median(share, 3), wanted, median(runs, 3), compiles)


def one(training, args, steps, trials, url, max_concurrent_trials, i):
    """The seconds of a search, those of the study's calls, and how much compiled."""
    sampler = optuna.samplers.TPESampler(seed=i, constant_liar=True)
    study = study_at(url, i, sampler=sampler, pruner=Never())
    seconds, compiles = collections.Counter(), []

    def listen(event, seconds, fun_name="", **_):
        if event.endswith("backend_compile_duration") and fun_name == "jit(wave)":
            compiles.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    with timed(seconds):
        result = rj.search.optimize(
            training, study, SPACE, n_trials=trials, max_concurrent_trials=max_concurrent_trials,
            args=args, steps=steps, evaluate_every=-(-steps // 6), progress=False,
        )  # fmt: skip
    jax.monitoring.unregister_event_duration_listener(listen)
    assert all(len(trial.intermediate_values) == 6 for trial in study.trials)
    return result.run_seconds, seconds, len(compiles)


def plain(training, args, steps, trials, jobs, i):
    """By `study.optimize`: the seconds in all, and the values."""
    start, each = time.perf_counter(), -(-steps // 6)

    @functools.partial(jax.jit, static_argnames="steps")
    def begin(numbers, key, args, steps):
        return training.run(numbers | {"centered": False}, key, *args, steps=steps)

    @functools.partial(jax.jit, static_argnames="steps")
    def go_on(numbers, key, args, state, start, steps):
        hp = numbers | {"centered": False}
        return training.run(hp, key, *args, steps=steps, state=state, start=start)

    of = rj.search.to_optuna(SPACE)

    def objective(trial):
        rate = trial.suggest_float("learning_rate", 1e-4, of["learning_rate"].high, log=True)
        memory = trial.suggest_float("1 - decay", 1e-3, of["1 - decay"].high, log=True)
        hp = {"learning_rate": jnp.float32(rate), "decay": jnp.float32(1 - memory)}
        key, state = jax.random.key(0), None
        for begun in range(0, steps, each):
            n = min(each, steps - begun)
            if not begun:
                state, metrics = begin(hp, key, args, n)
            else:
                state, metrics = go_on(hp, key, args, state, np.int32(begun), n)
            value = float(metrics["loss"][-1])
            trial.report(value, begun + n)
            trial.should_prune()
        return value

    study = study_at(
        None, i, sampler=optuna.samplers.RandomSampler(seed=i), pruner=Never(n_startup_trials=1)
    )
    study.optimize(objective, n_trials=trials, n_jobs=jobs)
    return time.perf_counter() - start, [trial.value for trial in study.trials]


def ours(training, args, steps, trials, i):
    program.clear_cache()
    start = time.perf_counter()
    study = study_at(
        None, i, sampler=optuna.samplers.RandomSampler(seed=i), pruner=Never(n_startup_trials=1)
    )
    rj.search.optimize(
        training, study, SPACE, n_trials=trials, args=args, steps=steps,
        evaluate_every=-(-steps // 6), progress=False,
    )  # fmt: skip
    return time.perf_counter() - start, [trial.value for trial in study.trials]


def beside(training, args, steps, trials, rounds):
    of = lambda jobs: functools.partial(plain, training, args, steps, trials, jobs)
    sides = {
        "search.optimize": functools.partial(ours, training, args, steps, trials),
        "study.optimize": of(1),
        "study.optimize, n_jobs=2": of(2),
    }
    found = interleaved(sides, rounds)
    for (_, mine), (_, theirs) in zip(
        found["search.optimize"], found["study.optimize"], strict=True
    ):
        assert mine == theirs
    yield (
        f"\n## {trials} trials of an LSTM, {steps} steps, 6 reports each, in memory\n\nThe same "
        "proposals and, of the first two, the same values. Median (quartiles) of "
        f"{rounds} interleaved rounds; each round compiles anew, within the seconds.\n"
    )
    yield header("side", "total s", "÷ search.optimize", "wanted")
    base = [seconds for seconds, _ in found["search.optimize"]]
    for name, each in found.items():
        seconds = [s for s, _ in each]
        wanted = "≥ 1.8" if name == "study.optimize" else ""
        yield row(name, median(seconds), median(np.divide(seconds, base)), wanted)


def main(quick: bool, hidden: int = 64, steps: int = 300, trials: int = 64, rounds: int = 2):
    if quick:
        hidden, steps, trials, rounds = 8, 12, 4, 1
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    training, args = lstm(hidden, evaluated=False, held_out=500)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        urls = {"memory": None, "SQLite": f"sqlite:///{Path(folder, 'study.db')}"}
        if postgres.programs() is None:
            yield f"\n{postgres.MISSING}"
        else:
            urls["PostgreSQL"] = stack.enter_context(postgres.running()).url
        yield from overhead(training, args, steps, trials, rounds, urls)
    yield from beside(training, args, steps, trials // 2, rounds)
