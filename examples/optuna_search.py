"""Compare an adaptive search, random search, and successive halving, for RMSProp on an LSTM.

Optuna's TPE sampler proposes the learning rate, the decay, ε, and centered. Optuna's median pruner
ends trials between the segments of their training. Many trials run at the same time, in one
compiled program for each value of `centered`. Random search and successive halving draw points from
the same space, and get the same total number of steps. Each method has three runs with different
seeds. In each run, the best point is chosen on the validation split, and evaluated on the test
split.

The studies are saved in a file in the output folder, from which the same command resumes, and which
optuna-dashboard can open. With --storage postgresql+psycopg://user@host/name, the studies are in a
database that workers on many machines can share. With --workers 2, two processes of this machine
search.
"""

import argparse
import operator
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optuna
from _characters import evaluate, start
from _training import trainer

import rmsprop_jax as rj

SPACE = {
    "learning_rate": rj.log_uniform(1e-4, 1e-1),
    "decay": rj.one_minus(rj.log_uniform(1e-3, 5e-1)),
    "eps": rj.log_uniform(1e-8, 1e-4),
    "centered": rj.choice([False, True]),
}
ETA, RUNS = 3, 3


def open_study(url, run, worker):
    """Open the study of a run."""
    storage = optuna.storages.RDBStorage(
        url,
        heartbeat_interval=10,  # another worker repeats the trials of a worker that died
        heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
    )
    return optuna.create_study(
        study_name=f"run {run}",
        storage=storage,
        sampler=optuna.samplers.TPESampler(
            seed=100 * worker + run, multivariate=True, constant_liar=True
        ),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
        load_if_exists=True,
    )


def steps_of(study, of_running=0):
    """Return the steps that the study has used. A running trial counts as `of_running` steps."""
    return sum(
        (trial.last_step or 0) if trial.state.is_finished() else of_running
        for trial in study.get_trials(deepcopy=False)
    )


def most_points(budget, steps):
    """Return the largest number of points that successive halving can train with the budget."""
    rungs = [0, *rj.SuccessiveHalving(ETA).rungs(steps), steps]

    def cost(n):
        lengths = map(operator.sub, rungs[1:], rungs)
        return sum(-(-n // ETA**i) * length for i, length in enumerate(lengths))

    return max(n for n in range(1, budget) if cost(n) <= budget)


def main(argv=None):
    more = [
        ("--storage", {"metavar": "URL", "help": "a database; default: a file in the folder"}),
        ("--workers", {"type": int, "default": 1, "help": "number of processes that search"}),
        ("--worker", {"type": int, "default": 0, "help": argparse.SUPPRESS}),
    ]
    args, corpus, model = start(__doc__, "optuna_search_output", argv, more)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    whole, steps = (5, 18) if args.quick else (24, 600)
    runs = 1 if args.quick else RUNS
    every = -(-steps // 9)  # the rungs of halving are evaluation steps
    budget, url = whole * steps, args.storage or f"sqlite:///{args.output / 'studies.db'}"
    text, validation, test = map(jnp.asarray, corpus[1:])
    training = trainer(model, lambda hp: hp["eps"])
    options = {
        "steps": steps,
        "evaluate_every": every,
        "objective": "validation",
        "args": (text, validation),
    }

    def adaptive(run):
        """Run this worker's share of a study until the budget is used. Return the study."""

        def enough(study, trial):
            if steps_of(study, of_running=steps) >= budget:
                study.stop()

        study = open_study(url, run, args.worker)
        if steps_of(study) < budget:
            devices = jax.devices()[args.worker % len(jax.devices()) :: args.workers]
            rj.search.optimize(
                training, study, SPACE, n_trials=budget // every, seeds=[run],
                study_callbacks=[enough], devices=devices, **options,
            )  # fmt: skip
        return study

    def sweep(name, run, points, scheduler=None):
        path = args.output / f"{name} {run}"
        return rj.sweep(training, points, seeds=[run], scheduler=scheduler, path=path, **options)

    if args.worker:
        for run in range(runs):
            adaptive(run)
        return

    print(
        f"{runs} runs of each method, {budget:,} steps per run, the steps of {whole} full trials."
    )
    for run in range(runs):
        open_study(url, run, 0)  # created once, for all workers
    others = [
        subprocess.Popen([sys.executable, __file__, *(argv or sys.argv[1:]), f"--worker={i}"])
        for i in range(1, args.workers)
    ]
    studies = [adaptive(run) for run in range(runs)]
    for other in others:
        if other.wait():
            raise SystemExit(f"A worker process ended with exit code {other.returncode}.")
    halving, count = rj.SuccessiveHalving(ETA), most_points(budget, steps)
    draw = lambda n, run: rj.sample(SPACE, n, seed=run, method="random")
    results = {
        "random": [sweep("random", run, draw(whole, run)) for run in range(runs)],
        "halving": [sweep("halving", run, draw(count, run), halving) for run in range(runs)],
    }

    trained = jax.jit(
        lambda numbers, centered, key: training.run(
            numbers | {"centered": centered}, key, text, validation, steps=steps
        )[0][0],
        static_argnums=1,
    )
    score = jax.jit(evaluate, static_argnums=0)

    def tested(point, run):
        """Train a point again, and return its test loss."""
        numbers = {name: jnp.float32(point[name]) for name in SPACE if name != "centered"}
        params = trained(numbers, point["centered"], jax.random.key(run))
        return float(score(model, params, test))

    rows = []  # (search, run, trials, steps, validation, test)
    for run, study in enumerate(studies):
        point = {"decay": 1 - study.best_params["1 - decay"]} | study.best_params
        spent = steps_of(study)
        rows.append(("TPE", run, len(study.trials), spent, study.best_value, tested(point, run)))
    for name, each in results.items():
        for run, result in enumerate(each):
            best, spent = result.best(), int(result.steps_completed.sum())
            found = best.objective, tested(best.point, run)
            rows.append((name, run, len(result), spent, *found))
    print("\nsearch    run  trials   steps  validation   test  (nats per character)")
    for name, run, trials, spent, chosen, last in rows:
        print(f"{name:8} {run:4} {trials:7} {spent:7,}  {chosen:10.3f}  {last:.3f}")
    names = ("TPE", *results)
    for part, column in (("validation", 4), ("test", 5)):
        means = {n: np.mean([row[column] for row in rows if row[0] == n]) for n in names}
        first, second, *_ = sorted(means, key=means.__getitem__)
        print(
            f"Lowest mean {part} loss: {first}, {means[first]:.3f}. Second: {second}, "
            f"{means[second]:.3f}."
        )
    table = ["search,run,trials,steps,validation,test", *(",".join(map(str, r)) for r in rows)]
    (args.output / "searches.csv").write_text("\n".join(table) + "\n", encoding="utf-8")
    pictures(args.output, studies[0], studies, results)
    print(f"Wrote {args.output / 'searches.csv'}, and pictures to the same folder.")


def pictures(folder, study, studies, results):
    """Draw the best loss so far over the steps used, and Optuna's own plots of the first study."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as optuna_plots

    _, ax = plt.subplots(figsize=(5.5, 4), layout="constrained")
    curves = {"TPE": [so_far(each) for each in studies]}
    for name, each in results.items():
        curves[name] = [best_by_steps(result) for result in each]
    for (name, lines), color in zip(curves.items(), ("#0072b2", "#d55e00", "#009e73"), strict=True):
        for run, (spent, best) in enumerate(lines):
            label, marker = None if run else name, "o" if len(spent) == 1 else ""
            ax.step(spent, best, where="post", color=color, marker=marker, label=label)
    lowest = min(best[-1] for lines in curves.values() for _, best in lines)
    ax.set_ylim(lowest - 0.01, lowest + 0.3)
    ax.set(xlabel="steps in all", ylabel="best validation loss so far, nats a character")
    ax.legend()
    plt.savefig(folder / "searches.png", dpi=110)
    plt.close("all")
    for name in ("param_importances", "slice", "intermediate_values"):
        axes = getattr(optuna_plots, f"plot_{name}")(study)
        plt.gcf().set_size_inches(5.5, 6 if name == "slice" else 3.5)
        if name == "intermediate_values":
            axes.get_legend().remove()  # with one line per trial, it is too long
        if name == "slice":  # two by two instead of four in a row, for phones
            places = plt.gcf().add_gridspec(2, 2, right=0.75, top=0.93, hspace=0.3)
            for ax, place in zip(axes, places, strict=True):
                ax.set_subplotspec(place)
            axes[2].tick_params(labelleft=True)
            axes[2].set_ylabel(axes[0].get_ylabel())
        plt.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
        plt.close("all")


def so_far(study):
    """Return the steps and the best loss so far, over the trials in the order of their end."""
    done = [t for t in study.trials if t.state.is_finished()]
    done.sort(key=lambda trial: trial.datetime_complete)
    values = [t.value if t.state == optuna.trial.TrialState.COMPLETE else np.inf for t in done]
    return np.cumsum([t.last_step or 0 for t in done]), np.minimum.accumulate(values)


def best_by_steps(result):
    """Return the same for a sweep. With halving, all trials count as one."""
    values = np.where(result.status == "complete", result.objective, np.inf)
    if result.rungs:
        return np.array([result.steps_completed.sum()]), np.array([values.min()])
    return np.cumsum(result.steps_completed), np.minimum.accumulate(values)


if __name__ == "__main__":
    main()
