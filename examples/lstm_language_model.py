"""Compare RMSProp, SGD, Adagrad, and Adam on a character language model, one LSTM.

Every optimizer gets four learning rates, and the same steps, batches, and initial parameters. The
learning rate is chosen on the validation split, and the result is reported on the test split.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _characters import evaluate, fit, start, unigram

import rmsprop_jax as rj

OPTIMIZERS = {
    "RMSProp": (rj.rmsprop, [3e-3, 1e-2, 3e-2, 1e-1]),
    "SGD": (optax.sgd, [1.0, 3.0, 10.0, 30.0]),
    "Adagrad": (optax.adagrad, [0.3, 1.0, 3.0, 10.0]),
    "Adam": (optax.adam, [3e-3, 1e-2, 3e-2, 1e-1]),
}


def main(argv=None):
    args, corpus, model = start(__doc__, "lstm_language_model_output", argv)
    steps, tried = (10, slice(1, 3)) if args.quick else (300, slice(None))
    optimizers = list(OPTIMIZERS)[: 2 if args.quick else None]

    def train(hp, key, text, validation, test):
        optimizer = OPTIMIZERS[hp["optimizer"]][0](hp["learning_rate"])
        params, losses = fit(model, optimizer, key, text, steps)
        score = functools.partial(evaluate, model, params)
        return {"loss": losses, "validation": score(validation), "test": score(test)}

    grid = lambda name: rj.grid(optimizer=[name], learning_rate=OPTIMIZERS[name][1][tried])
    points = functools.reduce(operator.add, map(grid, optimizers))
    print(f"Sweep: {len(points)} trials of {steps} steps: {', '.join(optimizers)}.")
    data = jax.tree.map(jnp.asarray, corpus[1:])
    result = rj.sweep(train, points, objective="validation", args=data)
    print(f"Compiled in {result.compile_seconds:.1f} s, ran in {result.run_seconds:.1f} s.\n")
    table = result.to_dataframe()
    table.to_csv(args.output / "trials.csv", index=False)

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(5.5, 4), layout="constrained")
    window = max(1, steps // 15)
    row = "{:10} {:>6} {:>11.3f} {:>7.3f} {:>10.2f}  {}".format
    print(
        "optimizer    rate  validation    test  test bits  (the rest: nats per character; one seed)"
    )
    best = table[~table.failed].sort_values("objective").drop_duplicates("optimizer")
    for i, trial in best.iterrows():
        name, rate = trial.optimizer, f"{trial.learning_rate:.3g}"
        rates = table[table.optimizer == name].learning_rate
        edge = (
            "at the edge of its rates" if trial.learning_rate in (rates.min(), rates.max()) else ""
        )
        print(row(name, rate, trial.validation, trial.test, trial.test / np.log(2), edge))
        losses = np.convolve(result.metrics["loss"][i], np.ones(window) / window, "valid")
        look = {"color": rj.plots.COLORS[name], "label": f"{name}, learning rate {rate}"}
        ax.plot(np.arange(window, steps + 1), losses, **look)
    base = unigram(corpus, corpus.test)
    print(row("unigram", "", unigram(corpus, corpus.validation), base, base / np.log(2), ""))
    ax.set_title(f"each at the best of {len(points) // len(optimizers)} learning rates")
    ax.set(xlabel="step", ylabel=f"training loss, nats a character (mean of {window} steps)")
    ax.legend()
    plt.savefig(args.output / "curves.png", dpi=110)
    print(f"\nWrote {args.output / 'trials.csv'} and {args.output / 'curves.png'}.")


if __name__ == "__main__":
    main()
