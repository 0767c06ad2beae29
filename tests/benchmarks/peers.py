"""The same 64 trials by Optuna, Ray Tune, jax-grid-search, hyperoptax, and ours.

An LSTM runs on a grid of 8 learning rates × 8 decays, all from one key, so that every side must
find our losses. Each tool is used as its own documentation shows. If a tool leaves `jax.jit` to the
caller, the training is jitted.

- Optuna: a study that gets the points. Each trial builds its optimizer and compiles.
- Ray Tune: one trial per core, each in its own process, which imports and compiles. The cluster
  starts before the clock.
- jax-grid-search, hyperoptax: a `vmap` of all points on one device.
- vmap: the same by hand. loop: one compiled function, one point after another.
- ours: `rj.sweep`.

Tools that are not installed (extra `peers`) are left out. Seconds include compile time, from cold
caches. A side that compiles for each point takes every k-th point, and its seconds are × k.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import sys
import tempfile

import jax
import numpy as np

import rmsprop_jax as rj
from tests.benchmarks import sweep
from tests.benchmarks.runner import header, interleaved, median, row

MODULES = {"Ray Tune": "ray", "jax-grid-search": "jax_grid_search", "hyperoptax": "hyperoptax"}


def grid(side: int) -> rj.Points:
    rates = np.geomspace(*sweep.RATES, side)
    return rj.grid(learning_rate=rates, decay=1 - np.geomspace(*sweep.FORGETTING, side))


def of_one_key(work: sweep.Work):
    """Return a jitted function from a point to its loss."""
    return jax.jit(lambda hp: work.train(hp, jax.random.key(0), *work.args)["validation"])


def as_ours(rates, decays, losses):
    """Return the losses in the order of our grid."""
    order = np.lexsort([-np.asarray(decays), np.asarray(rates)])
    return np.asarray(losses).reshape(-1)[order], 0.0


def grid_search(work, points):
    from jax_grid_search import DistributedGridSearch

    run = of_one_key(work)
    scalar = lambda hp: jax.tree.map(lambda x: x.reshape(()), hp)  # the tool gives shape (1,)
    space = {name: np.asarray([p[name] for p in points], np.float32) for name in points.names}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        search = DistributedGridSearch(
            lambda **hp: {"value": run(scalar(hp))}, space, batch_size=len(points),
            progress_bar=False, result_dir=folder, strategy="vectorized",
        )  # fmt: skip
        search.run()
        found = search.stack_results(folder)
    return as_ours(found["learning_rate"], found["decay"], found["value"])


def hyperoptax_(work, points):
    from hyperoptax.grid import GridSearch
    from hyperoptax.spaces import DiscreteSpace

    run = of_one_key(work)
    space = {
        name: DiscreteSpace(tuple(np.unique([p[name] for p in points]).tolist()))
        for name in sorted(points.names)
    }
    state, search = GridSearch.init(space, n_parallel=len(points))
    _, (settings, losses) = search.optimize(
        state, jax.random.key(0), lambda key, hp: run(hp), n_iterations=1
    )
    return as_ours(settings[0]["learning_rate"], settings[0]["decay"], losses[0])


def trial(config):
    """Train one point in a process of Ray."""
    from ray import tune

    work = sweep.lstm(**config["sizes"])
    tune.report({"loss": float(of_one_key(work)(config["point"]))})


def ray_tune(sizes: dict):
    import ray
    from ray import tune

    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False)

    def side(work, points):
        with tempfile.TemporaryDirectory() as folder:
            tuner = tune.Tuner(
                tune.with_resources(trial, {"cpu": 1}),
                param_space={"point": tune.grid_search([dict(p) for p in points]), "sizes": sizes},
                run_config=tune.RunConfig(storage_path=folder, verbose=0),
            )
            with contextlib.redirect_stdout(sys.stderr):
                done = tuner.fit()
        losses = {tuple(x.config["point"].values()): x.metrics["loss"] for x in done}
        return [losses[tuple(p.values())] for p in points], 0.0

    return side


def main(quick: bool, rounds: int = 3):
    side, steps, hidden = (2, 3, 8) if quick else (8, 50, 64)
    sizes = {"trials": side * side, "steps": steps, "hidden": hidden}
    work = sweep.lstm(**sizes)._replace(points=grid(side))
    trials, some = len(work.points), 2 if quick else 8
    installed = [name for name, module in MODULES.items() if importlib.util.find_spec(module)]
    sides = {"Optuna": (sweep.optuna_study, some)}
    if "Ray Tune" in installed:
        sides["Ray Tune"] = ray_tune(sizes), some
    for name, function in {"jax-grid-search": grid_search, "hyperoptax": hyperoptax_}.items():
        if name in installed:
            sides[name] = function, trials
    sides |= {name: (sweep.SIDES[name], trials) for name in ("vmap", "loop", "ours")}

    yield (
        f"\n## The same {trials} trials by other tools: an LSTM of {hidden} units, {steps} steps "
        "each\n\nSeconds for all points with compile time, as median (quartiles) of "
        f"{1 if quick else rounds} interleaved rounds. The seconds of a side that runs fewer "
        "points are scaled up."
    )
    if missing := set(MODULES) - set(installed):
        yield f"\nLeft out, because not installed: {', '.join(sorted(missing))}."
    timed = {name: sweep.taking_part(f, work, share) for name, (f, share) in sides.items()}
    sweep.loop(work, work.points[:1])  # warm-up
    results = interleaved(timed, 1 if quick else rounds)
    us = results["ours"]
    yield "\n" + header(
        "side", "points per round", "total s", "÷ ours", "largest difference of losses"
    )
    for name, outcomes in results.items():
        apart = sweep.differences(outcomes, us[0].losses)
        ratios = (o.total / u.total for o, u in zip(outcomes, us, strict=True))
        totals = median((o.total for o in outcomes), 1)
        version = f" {importlib.metadata.version(MODULES[name])}" if name in MODULES else ""
        yield row(
            name + version, len(outcomes[0].losses), totals, median(ratios), f"{apart.max():.1g}"
        )
        sweep.refuse_other_work(name, apart)
