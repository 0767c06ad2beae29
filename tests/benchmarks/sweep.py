"""64 settings of an LSTM: `sweep` beside what people write today, and beside the ideal.

Every side trains the same settings from the same key, and its losses must agree with ours. The
rows: the seconds of all settings, the ratios to ours, and how far the losses are from ours. Sides:

- rebuilt: a Python loop that builds the optimiser and jits the training anew for each setting;
- Optuna: the same, as the objective of a study that is given these settings;
- loop: one jit, the hyperparameters traced, one setting after the other on one device;
- vmap: one jit of all settings side by side, on one device;
- ours: `rj.sweep` on all devices, with its defaults.

Each round runs every side once, from cold caches. The sides that compile for each setting take
every k-th setting of k in a round, another k-th in the next, and their seconds count times k; they
find JAX's caches warm, for what is paid once must not count k times. The ideal is the run time
of one trial on one core, in a process that sees no other, × trials ÷ cores.

All settings share one key, so under `vmap` the first parameters are those of one trial and their
orthogonal initialisers stay unbatched: jax <= 0.11.0 hangs on CPU over batched ones.
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
from tests.benchmarks.runner import header, interleaved, median, row

ROOT = Path(__file__).parents[2]
RATES, FORGETTING = (1e-4, 1e-2), (1e-3, 2e-1)
SPACE = {
    "learning_rate": rj.log_uniform(*RATES),
    "decay": rj.one_minus(rj.log_uniform(*FORGETTING)),
}
TOLERANCES = {"median": 1e-3, "max": 0.1}  # nats a character; settings differ by 1 and more


class Work(NamedTuple):
    train: Callable
    points: rj.Points
    args: tuple


class Outcome(NamedTuple):
    settings: slice
    losses: np.ndarray
    compile: float
    run: float

    @property
    def total(self):
        return self.compile + self.run


def lstm(trials: int, steps: int, hidden: int) -> Work:
    """The example's character LSTM; `trials` settings of learning rate and decay."""
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
    """The compiled function, and the seconds of tracing, lowering and compiling it."""
    start = time.perf_counter()
    lowered = jax.jit(function).lower(*args)
    refuse_batched_lapack(lowered.as_text())
    return lowered.compile(), time.perf_counter() - start


def refuse_batched_lapack(program: str) -> None:
    """Such calls can wait for one another for ever, on CPU with jax <= 0.11.0."""
    if batched := re.search(r"@(lapack_\w+)\(.*tensor<\d+x\d+x\d+x", program):
        raise RuntimeError(
            f"the program calls {batched[1]} on a batch of matrices, which may hang on CPU with "
            "jax <= 0.11.0: keep the initialisation out of vmap."
        )


def rebuilt_trial(work, point):
    """One setting as Python numbers: its loss, and the seconds of its own compile."""
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
    program.clear_cache()  # each round compiles, as on the other sides
    result = rj.sweep(work.train, points, objective="validation", args=work.args, progress=False)
    return result.objective, result.compile_seconds


SIDES = {"rebuilt": rebuilt, "Optuna": optuna_study, "loop": loop, "vmap": vmap, "ours": ours}


def ideal(sizes: dict, i: int) -> Outcome:
    """One core's run seconds of one trial, median of about eight settings, × trials ÷ cores."""
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
    """What the pinned process does: run seconds and loss of each trial, after a warm-up."""
    work, key = lstm(**sizes), jax.random.key(0)
    run, _ = compiled(work.train, work.points[0], key, *work.args)
    trials = []
    for point in (work.points[0], *work.points[some(len(work.points))]):
        start = time.perf_counter()
        loss = float(run(point, key, *work.args)["validation"])
        trials.append((time.perf_counter() - start, loss))
    print(json.dumps(trials[1:]))


def taking_part(side: Callable, work: Work, share: int) -> Callable[[int], Outcome]:
    """The side as `interleaved` calls it, timed on `share` settings a round."""
    rounds = -(-len(work.points) // share)

    def timed(i):
        settings = slice(i % rounds, None, rounds)
        points = work.points[settings]
        if rounds == 1:  # else what is paid once would count as often as the part is scaled
            jax.clear_caches()
        start = time.perf_counter()
        losses, compiles = side(work, points)
        run = time.perf_counter() - start - np.sum(compiles)
        scale = len(work.points) / len(points)
        compile_ = np.sum(compiles) * (scale if np.ndim(compiles) else 1)
        return Outcome(settings, np.asarray(losses), compile_, scale * run)

    return timed


def differences(outcomes, reference) -> np.ndarray:
    """How far each setting's loss is from ours, over all rounds."""
    return np.concatenate([np.abs(o.losses - reference[o.settings]) for o in outcomes])


def refuse_other_work(name: str, apart: np.ndarray) -> None:
    """Rounding grows where training is chaotic, at a few high rates: so two bounds."""
    for kind, bound in TOLERANCES.items():
        if not (value := getattr(np, kind)(apart)) <= bound:
            raise RuntimeError(
                f"the {kind} difference of a loss of {name!r} from ours is {value:.2g}, more than "
                f"{bound}: they did not train the same, so their times cannot be compared. Make "
                "the sides alike."
            )


def report(results: dict[str, list[Outcome]]):
    """A row a side: medians over the rounds, and quartiles; the ratios are taken in each round."""
    yield header(
        "side", "settings a round", "compile s", "run s", "total s",
        "run ÷ ours", "total ÷ ours", "loss − ours, median and largest",
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


def goals(results: dict[str, list[Outcome]]):
    def ratio(over, under, seconds):
        pairs = zip(results[over], results[under], strict=True)
        return median(getattr(a, seconds) / getattr(b, seconds) for a, b in pairs)

    yield "\n" + header("goal", "measured", "wanted")
    if "ideal" in results:
        yield row("ours ÷ ideal, run", ratio("ours", "ideal", "run"), "≤ 1.15")
    yield row("vmap ÷ ours, run", ratio("vmap", "ours", "run"), "≥ 1.8")
    yield row("rebuilt ÷ ours, total", ratio("rebuilt", "ours", "total"), "≥ 8")


def compare(sizes: dict, shares: dict[str, int], rounds: int):
    """The named sides side by side, each with so many settings a round; returns what they gave."""
    yield (
        f"\n## {sizes['trials']:,} settings of an LSTM of {sizes['hidden']} units, "
        f"{sizes['steps']} steps each\n\n"
        f"Seconds of all settings, median (quartiles) of {rounds} interleaved rounds. *Rebuilt*: a "
        "loop that builds the optimiser and jits anew for each setting; *Optuna*: a study over the "
        "same; *loop*: one jit, one setting after the other; *vmap*: all side by side on one "
        "device; *ours*: `rj.sweep`; *ideal*: the run time of one trial alone on a core × settings "
        "÷ cores.\n"
    )
    more = {}
    if "rebuilt" in shares and hasattr(os, "sched_setaffinity"):
        more["ideal"] = lambda i: ideal(sizes, i)
    return (yield from sides_of(lstm(**sizes), shares, rounds, more))


def sides_of(work: Work, shares: dict[str, int], rounds: int, more: Mapping[str, Callable] = {}):
    """The named sides and some more, side by side; returns what they gave."""
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
