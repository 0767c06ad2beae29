"""Compare population-based training with the best constant η and ρ, for RMSProp on an LSTM.

In population-based training, 16 members train at the same time. Every 60 steps, the worst quarter
of the members copy the parameters and the optimizer state of better members, and continue with
slightly changed values of their η and ρ. The comparison trains the same 16 points with constant
values, for as many steps, from the same initial parameters and with the same batches. Each method
has three runs with different seeds. In each run, the best member or point is chosen on the
validation split, and evaluated on the test split.
"""

import jax
import jax.numpy as jnp
import numpy as np
from _characters import evaluate, start
from _training import trainer

import rmsprop_jax as rj

SPACE = {
    "learning_rate": rj.log_uniform(1e-3, 1e-1),
    "decay": rj.one_minus(rj.log_uniform(1e-2, 5e-1)),
}


def main(argv=None):
    args, corpus, model = start(__doc__, "population_output", argv)
    members, steps, every, runs = (4, 12, 4, 2) if args.quick else (16, 600, 60, 3)
    text, validation, test = map(jnp.asarray, corpus[1:])
    points = rj.sample(SPACE, members, seed=0) * rj.grid(centered=[False])
    print(f"{runs} runs of each method, {members} members × {steps} steps per run.")

    def sweep(name, seed, scheduler=None):
        return rj.sweep(
            trainer(model),
            points,
            steps=steps,
            evaluate_every=every,
            seeds=[seed],
            scheduler=scheduler,
            objective="validation",
            args=(text, validation),
            path=args.output / f"{name}_{seed}",
        )

    found = {"fixed": [], "population": []}
    for seed in range(runs):
        found["fixed"].append(sweep("fixed", seed))
        scheduler = rj.PopulationBasedTraining(SPACE, perturbation_interval=every, seed=seed)
        found["population"].append(sweep("population", seed, scheduler))

    score = jax.jit(evaluate, static_argnums=0)
    print("\nnats per character  run  validation   test")
    losses = {}
    for name, results in found.items():
        tested = [float(score(model, each.state(each.best())[0], test)) for each in results]
        losses[name] = np.array([[each.best().objective for each in results], tested])
        for run, (chosen, last) in enumerate(losses[name].T):
            print(f"{name:18} {run:4}  {chosen:10.3f}  {last:.3f}")
    for part, gaps in zip(
        ("validation", "test"), losses["fixed"] - losses["population"], strict=True
    ):
        winner = "the population" if gaps.mean() > 0 else "the best fixed point"
        print(
            f"Mean {part} loss: {winner} is better, by {abs(gaps.mean()):.3f} nats. The population "
            f"is better in {(gaps > 0).sum()} of {runs} runs."
        )

    first = found["population"][0]
    print("\nThe schedule of the best member in run 0:\n       steps         η      ρ")
    rows = ["first step,last step,learning rate,decay"]
    for begin, end, numbers in first.schedule(first.best()):
        rate, decay = numbers["learning_rate"], numbers["decay"]
        print(f"{begin + 1:5} to {end:3}  {rate:8.3g}  {decay:5.3f}")
        rows.append(f"{begin + 1},{end},{rate!r},{decay!r}")
    (args.output / "schedule.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rc("font", size=11)  # so that the "small" font of a legend has 9 points
    _, axes = plt.subplots(3, figsize=(5.5, 10), layout="constrained")
    for (name, results), color in zip(found.items(), ("#0072b2", "#d55e00"), strict=True):
        for run, each in enumerate(results):
            lowest = np.nanmin(each.metrics["validation"], axis=0)
            label = f"{name}, {runs} runs" if run == 0 else None
            axes[0].plot(each.steps["validation"], lowest, color=color, label=label)
    axes[0].set(xlabel="step", ylabel="validation loss, nats a character")
    axes[0].set_title(f"the best of the {members} at each step")
    axes[0].legend()
    for ax, name in zip(axes[1:], SPACE, strict=True):
        rj.plots.lineage(first, name, ax=ax)
    plt.savefig(args.output / "population.png", dpi=110)
    for name in ("population.png", "schedule.csv"):
        print(f"Wrote {args.output / name}")


if __name__ == "__main__":
    main()
