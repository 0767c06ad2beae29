"""The cost of an Optuna study and its database, and `search.optimize` against `study.optimize`.

1. An LSTM under `rj.search.optimize`. Each trial reports at six evaluation steps and asks the
   pruner. The study is in memory, in SQLite, or on a local PostgreSQL server (left out if
   PostgreSQL is not installed). The pruner never prunes, so that all sides train the same steps.
   The benchmark times each call of the study, and compares the sum with the training time.
2. The same trials by `study.optimize`. Its objective runs one jitted segment after another, with
   traced hyperparameters and therefore one compile. The proposals are the same, and the values must
   be the same bit for bit.
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
from tests.benchmarks.runner import Goal, goals_missed, header, interleaved, median, row
from tests.support import postgres

SPACE = {
    "learning_rate": rj.log_uniform(1e-4, 1e-1),
    "decay": rj.one_minus(rj.log_uniform(1e-3, 0.5)),
    "centered": rj.static(rj.choice([False])),
}
CALLS = ("ask", "report", "prunes", "tell")
STORAGE_GOALS = {"memory": Goal("≤", 0.01, 3), "PostgreSQL": Goal("≤", 0.05, 3)}
SIDE_GOALS = {"study.optimize": Goal("≥", 1.8)}


class Never(optuna.pruners.MedianPruner):
    """A median pruner that looks at all trials, and prunes none."""

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
    """Yield a row per storage and number of concurrent trials."""
    slots = jax.device_count()

    def sides(trials):
        return {
            (name, times): functools.partial(
                search, training, args, steps, trials, url, times * slots
            )
            for name, url in urls.items()
            for times in (1, 2)
        }

    interleaved(sides(slots), 1)  # to compile
    found = interleaved(sides(trials), rounds)
    yield (
        f"\n## Cost of a study: {trials} trials of an LSTM, {steps} steps, 6 reports each\n\n"
        "Milliseconds are the sum of all calls of one trial. *Study ÷ training* is the time of all "
        "calls divided by the training time. Optuna's TPE sampler proposes the points. The figures "
        f"are medians (quartiles) of {rounds} interleaved rounds.\n"
    )
    yield header(
        "storage", "concurrent trials", "ask, ms", "report, ms", "should_prune, ms", "tell, ms",
        "study ÷ training", "goal", "run time ÷ in-memory study", "compiles",
    )  # fmt: skip
    base, measured = [run for run, _, _ in found["memory", 1]], []
    for (name, times), each in found.items():
        calls = [f"{1e3 * np.median([s[c] for _, s, _ in each]) / trials:.1f}" for c in CALLS]
        share = [sum(s.values()) / (run - sum(s.values())) for run, s, _ in each]
        runs = np.divide([run for run, _, _ in each], base)
        goal = STORAGE_GOALS.get(name)
        if goal is not None:
            measured.append((f"{name} with {times * slots} trials", float(np.median(share)), goal))
        compiles = sum(c for _, _, c in each)
        cells = median(share, 3), goal or "", median(runs, 3), compiles
        yield row(name, times * slots, *calls, *cells)
    yield "\n" + goals_missed(measured)


def search(training, args, steps, trials, url, max_concurrent_trials, i):
    """Return the seconds of a search, the seconds of the study's calls, and the compiles."""
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
    """Run `study.optimize`, and return its seconds and values."""
    start, each = time.perf_counter(), -(-steps // 6)

    @functools.partial(jax.jit, static_argnames="steps")
    def begin(numbers, key, args, steps):
        return training.run(numbers | {"centered": False}, key, *args, steps=steps)

    @functools.partial(jax.jit, static_argnames="steps")
    def resume(numbers, key, args, state, start, steps):
        hp = numbers | {"centered": False}
        return training.run(hp, key, *args, steps=steps, state=state, start=start)

    distributions = rj.search.to_optuna(SPACE)

    def objective(trial):
        high = [distributions[name].high for name in ("learning_rate", "1 - decay")]
        rate = trial.suggest_float("learning_rate", 1e-4, high[0], log=True)
        forgetting = trial.suggest_float("1 - decay", 1e-3, high[1], log=True)
        hp = {"learning_rate": jnp.float32(rate), "decay": jnp.float32(1 - forgetting)}
        key, state = jax.random.key(0), None
        for begun in range(0, steps, each):
            n = min(each, steps - begun)
            if not begun:
                state, metrics = begin(hp, key, args, n)
            else:
                state, metrics = resume(hp, key, args, state, np.int32(begun), n)
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


def compared(training, args, steps, trials, rounds):
    by_study = lambda jobs: functools.partial(plain, training, args, steps, trials, jobs)
    sides = {
        "search.optimize": functools.partial(ours, training, args, steps, trials),
        "study.optimize": by_study(1),
        "study.optimize, n_jobs=2": by_study(2),
    }
    found = interleaved(sides, rounds)
    for (_, mine), (_, theirs) in zip(
        found["search.optimize"], found["study.optimize"], strict=True
    ):
        assert mine == theirs
    yield (
        f"\n## `search.optimize` and `study.optimize`: {trials} trials of an LSTM, {steps} steps, "
        "6 reports each\n\nAll sides get the same proposals, in a study in memory. The first two "
        "sides give the same values. The figures are medians (quartiles) of "
        f"{rounds} interleaved rounds. Each round compiles again, and the seconds include this.\n"
    )
    yield header("side", "total s", "÷ search.optimize", "goal")
    base, measured = [seconds for seconds, _ in found["search.optimize"]], []
    for name, each in found.items():
        seconds = [s for s, _ in each]
        ratios, goal = np.divide(seconds, base), SIDE_GOALS.get(name)
        if goal is not None:
            measured.append((name, float(np.median(ratios)), goal))
        yield row(name, median(seconds), median(ratios), goal or "")
    yield "\n" + goals_missed(measured)


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
    yield from compared(training, args, steps, trials // 2, rounds)
