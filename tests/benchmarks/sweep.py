"""64 points of an LSTM: `rj.sweep` compared with handwritten loops, and with the ideal time.

Every side trains the same points from the same key, and its losses must agree with ours. The table
has the seconds of all points, the ratios to ours, and the largest difference of losses. Sides:

- rebuilt: a Python loop that builds the optimizer and compiles the training for each point;
- Optuna: the same as the objective of a study that gets these points;
- loop: one compiled function with traced hyperparameters, one point after another on one device;
- vmap: one compiled function of all points at once, on one device;
- ours: `rj.sweep` on all devices, with its defaults;
- ideal: the run time of one trial on one core, in a process alone, × trials ÷ cores.

Each round runs every side once, from cold caches. A side that compiles for each point takes every
k-th point per round, another k-th in the next, and its seconds are multiplied by k. Such a side
finds JAX's caches warm, because a cost that is paid once must not be multiplied.

All points share one key. Under `vmap`, the first parameters therefore have no batch axis, nor have
their orthogonal initializers: jax <= 0.11.0 hangs on CPU over batched ones.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rmsprop_jax as rj
from rmsprop_jax._tune.compile import compiled as program
from tests.benchmarks.runner import Goal, goals_missed, header, interleaved, median, row

ROOT = Path(__file__).parents[2]
RATES, FORGETTING = (1e-4, 1e-2), (1e-3, 2e-1)
SPACE = {
    "learning_rate": rj.log_uniform(*RATES),
    "decay": rj.one_minus(rj.log_uniform(*FORGETTING)),
}
TOLERANCES = {"median": 1e-3, "max": 0.1}  # nats per character; points differ by 1 and more


class Work(NamedTuple):
    train: Callable
    points: rj.Points
    args: tuple


class Outcome(NamedTuple):
    points: slice
    losses: np.ndarray
    compile: float
    run: float

    @property
    def total(self):
        return self.compile + self.run


def lstm(trials: int, steps: int, hidden: int) -> Work:
    """Return the character LSTM of the examples, and points of learning rate and decay."""
    sys.path.insert(0, str(ROOT / "examples"))
    from _characters import CharLSTM, evaluate, fit, load

    corpus = load(held_out=4_000)
    model = CharLSTM(len(corpus.characters), hidden)

    def train(hp, key, text, validation):
        optimizer = rj.rmsprop(hp["learning_rate"], decay=hp["decay"], eps=1e-6)
        params, losses = fit(model, optimizer, key, text, steps)
        return {"loss": losses, "validation": evaluate(model, params, validation)}

    args = jnp.asarray(corpus.train), jnp.asarray(corpus.validation)
    return Work(train, rj.sample(SPACE, trials), args)


def compiled(function, *args):
    """Return the compiled function, and the seconds of tracing, lowering, and compiling."""
    start = time.perf_counter()
    lowered = jax.jit(function).lower(*args)
    refuse_batched_lapack(lowered.as_text())
    return lowered.compile(), time.perf_counter() - start


def refuse_batched_lapack(program: str) -> None:
    """Refuse calls that can wait for one another forever, on CPU with jax <= 0.11.0."""
    if batched := re.search(r"@(lapack_\w+)\(.*tensor<\d+x\d+x\d+x", program):
        raise RuntimeError(
            f"the program must call LAPACK without a batch axis, got a batched {batched[1]}, which "
            "may hang on CPU with jax <= 0.11.0. Keep the initialization out of vmap."
        )


def rebuilt_trial(work, point):
    """Train a point of Python numbers, and return its loss and the seconds of its compile."""
    key = jax.random.key(0)
    run, seconds = compiled(lambda key, *args: work.train(point, key, *args), key, *work.args)
    return float(run(key, *work.args)["validation"]), seconds


def rebuilt(work, points):
    losses, seconds = zip(*(rebuilt_trial(work, point) for point in points), strict=True)
    return losses, seconds


def optuna_study(work, points):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for point in points:
        study.enqueue_trial(point)
    seconds = []

    def objective(trial):
        hp = {
            "learning_rate": trial.suggest_float("learning_rate", *RATES, log=True),
            "decay": trial.suggest_float("decay", *(1 - x for x in FORGETTING[::-1])),
        }
        loss, compile_seconds = rebuilt_trial(work, hp)
        seconds.append(compile_seconds)
        return loss

    study.optimize(objective, n_trials=len(points))
    return [trial.value for trial in study.trials], seconds


def loop(work, points):
    key = jax.random.key(0)
    run, seconds = compiled(work.train, points[0], key, *work.args)
    return [float(run(point, key, *work.args)["validation"]) for point in points], seconds


def vmap(work, points):
    key = jax.random.key(0)
    hp = {name: jnp.asarray([p[name] for p in points], jnp.float32) for name in points.names}
    together = jax.vmap(work.train, in_axes=(0, None, *(None for _ in work.args)))
    run, seconds = compiled(together, hp, key, *work.args)
    return np.asarray(run(hp, key, *work.args)["validation"]), seconds


def ours(work, points):
    program.clear_cache()  # so that each round compiles, as on the other sides
    result = rj.sweep(work.train, points, objective="validation", args=work.args, progress=False)
    return result.objective, result.compile_seconds


SIDES = {"rebuilt": rebuilt, "Optuna": optuna_study, "loop": loop, "vmap": vmap, "ours": ours}
TEXTS = {
    "rebuilt": "a loop that builds the optimizer and compiles again for each point;",
    "Optuna": "a study with the same objective;",
    "loop": "one compiled function, one point after another;",
    "vmap": "all points at once on one device;",
    "ours": "`rj.sweep`;",
    "ideal": "the run time of one trial alone on a core × points ÷ cores.",
}


def ideal(sizes: dict, i: int) -> Outcome:
    """Return the run seconds of one trial on one core × trials ÷ cores: a median of 8 points."""
    cores = sorted(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, [{cores[i % len(cores)]}])\n"
        f"from tests.benchmarks.sweep import print_trials; print_trials({sizes})"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True
    )
    seconds, losses = zip(*json.loads(child.stdout), strict=True)
    run = np.median(seconds) * sizes["trials"] / len(cores)
    return Outcome(some(sizes["trials"]), np.asarray(losses), 0.0, run)


def some(trials: int) -> slice:
    return slice(None, None, max(1, trials // 8))


def print_trials(sizes):
    """Print the run seconds and the loss of each trial, after a warm-up, in the pinned process."""
    work, key = lstm(**sizes), jax.random.key(0)
    run, _ = compiled(work.train, work.points[0], key, *work.args)
    trials = []
    for point in (work.points[0], *work.points[some(len(work.points))]):
        start = time.perf_counter()
        loss = float(run(point, key, *work.args)["validation"])
        trials.append((time.perf_counter() - start, loss))
    print(json.dumps(trials[1:]))


def taking_part(side: Callable, work: Work, share: int) -> Callable[[int], Outcome]:
    """Return the side as `interleaved` calls it, timed on `share` points per round."""
    rounds = -(-len(work.points) // share)

    def timed(i):
        part = slice(i % rounds, None, rounds)
        points = work.points[part]
        if rounds == 1:  # otherwise, a cost that is paid once would be scaled up
            jax.clear_caches()
        start = time.perf_counter()
        losses, compiles = side(work, points)
        run = time.perf_counter() - start - np.sum(compiles)
        scale = len(work.points) / len(points)
        compile_ = np.sum(compiles) * (scale if np.ndim(compiles) else 1)
        return Outcome(part, np.asarray(losses), compile_, scale * run)

    return timed


def differences(outcomes, reference) -> np.ndarray:
    """Return the difference of each point's loss from ours, over all rounds."""
    return np.concatenate([np.abs(o.losses - reference[o.points]) for o in outcomes])


def refuse_other_work(name: str, apart: np.ndarray) -> None:
    """Refuse losses that differ from ours.

    Rounding errors grow at a few high learning rates, where training is chaotic. Therefore, the
    median and the maximum have different bounds.
    """
    for kind, bound in TOLERANCES.items():
        if not (value := getattr(np, kind)(apart)) <= bound:
            raise RuntimeError(
                f"the {kind} difference of the losses of {name!r} from ours must be at most "
                f"{bound}, got {value:.2g}: the two sides did not train the same, so their times "
                "cannot be compared. Make the sides equal."
            )


def report(results: dict[str, list[Outcome]]):
    """Yield a row per side: medians and quartiles over the rounds. Ratios are taken per round."""
    yield header(
        "side", "points per round", "compile s", "run s", "total s",
        "run ÷ ours", "total ÷ ours", "difference of losses, median and largest",
    )  # fmt: skip
    us = results["ours"]
    apart = {name: differences(side, us[0].losses) for name, side in results.items()}
    for name, outcomes in results.items():
        yield row(
            name,
            len(outcomes[0].losses),
            median((o.compile for o in outcomes), 1),
            median((o.run for o in outcomes), 1),
            median((o.total for o in outcomes), 1),
            median(o.run / u.run for o, u in zip(outcomes, us, strict=True)),
            median(o.total / u.total for o, u in zip(outcomes, us, strict=True)),
            f"{np.median(apart[name]):.1g}, {apart[name].max():.1g}",
        )
    for name in results:
        refuse_other_work(name, apart[name])


GOALS = {
    ("ours", "ideal", "run"): Goal("≤", 1.15),
    ("vmap", "ours", "run"): Goal("≥", 1.8),
    ("rebuilt", "ours", "total"): Goal("≥", 8),
}


def goals(results: dict[str, list[Outcome]]):
    yield "\n" + header("ratio", "measured", "goal")
    measured = []
    for (over, under, seconds), goal in GOALS.items():
        if {over, under} <= set(results):
            pairs = zip(results[over], results[under], strict=True)
            ratios = [getattr(a, seconds) / getattr(b, seconds) for a, b in pairs]
            name = f"{over} ÷ {under}, {seconds}"
            measured.append((name, float(np.median(ratios)), goal))
            yield row(name, median(ratios), goal)
    yield "\n" + goals_missed(measured)


def compare(sizes: dict, shares: dict[str, int], rounds: int):
    """Compare the named sides, each on its number of points per round; return the outcomes."""
    more = {}
    if "rebuilt" in shares and hasattr(os, "sched_setaffinity"):
        more["ideal"] = lambda i: ideal(sizes, i)
    described = {*shares, *more}
    yield (
        f"\n## {sizes['trials']:,} points of an LSTM of {sizes['hidden']} units, "
        f"{sizes['steps']} steps each\n\nSeconds for all points, as median (quartiles) of {rounds} "
        "interleaved rounds. The seconds of a side that runs fewer points are scaled up.\n\n"
        + "".join(f"- *{name}*: {text}\n" for name, text in TEXTS.items() if name in described)
    )
    return (yield from sides_of(lstm(**sizes), shares, rounds, more))


def sides_of(work: Work, shares: dict[str, int], rounds: int, more: Mapping[str, Callable] = {}):
    """Compare the named sides and `more`, and return the outcomes."""
    sides = {name: taking_part(SIDES[name], work, share) for name, share in shares.items()}
    loop(work, work.points[:1])  # warm-up
    results = interleaved(sides | dict(more), rounds)
    yield from report(results)
    return results


def main(quick: bool):
    def shares(trials, **fewer):
        return dict.fromkeys(SIDES, trials) | fewer

    def sizes(trials, steps, hidden=64):
        return {"trials": trials, "steps": steps, "hidden": hidden}

    if quick:
        each = sizes(2, 3, hidden=8), shares(2, rebuilt=1, Optuna=1), 1
    else:
        each = sizes(64, 50), shares(64, rebuilt=22, Optuna=6), 3
    yield from goals((yield from compare(*each)))
