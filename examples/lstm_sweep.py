"""Tune RMSProp on an LSTM: a grid of learning rate × decay × centered, in one call.

36 trainings of a character model (lstm_language_model.py, in this folder), one compile for each
value of `centered`. Finished trials are on disk: stop it when you like, and call it again. The best
setting on validation topics is trained again, tested on topics that nothing was chosen by, and
writes a little text. With one seed a lead may be luck: train_the_winner.py looks closer.
"""

import jax
import jax.numpy as jnp
import numpy as np
from lstm_language_model import encode, evaluate, fit, sample, start, unigram

import rmsprop_jax as rj

# With `centered` the denominator is √variance + ε, and the variance of a nearly constant gradient
# goes to 0: the step is then g/ε, huge with the default 1e-8. Graves 2013 and DQN take 1e-4 and
# 0.01 (inside the root) for that. 1e-6 is below this model's usual gradients (seen: median |g| 3e-5
# at the start, 2e-4 after 300 steps), so it does not slow the learning down.
EPS = 1e-6


def trainer(model, steps):
    def train(hp, key, text, validation):
        """The metrics, and the trained parameters."""
        optimizer = rj.rmsprop(
            hp["learning_rate"], decay=hp["decay"], eps=EPS, centered=hp["centered"]
        )
        params, losses = fit(model, optimizer, key, text, steps)
        return {"loss": losses, "validation": evaluate(model, params, validation)}, params

    return train


def main(argv=None):
    args, corpus, model = start(__doc__, "lstm_sweep_output", argv)
    steps = 10 if args.quick else 600
    points = rj.grid(
        learning_rate=[1e-3, 3e-2] if args.quick else [1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1],
        decay=[0.5, 0.9] if args.quick else [0.5, 0.9, 0.99],
        centered=rj.static([False, True]),
    )
    text, validation, test = map(jnp.asarray, corpus[1:])
    train = trainer(model, steps)
    print(
        f"Sweep: {len(points)} RMSProp settings, an LSTM of {model.hidden} units, {steps} steps "
        f"each, on {len(jax.devices())} {jax.default_backend()} devices."
    )
    folder = args.output / "sweep"
    try:
        result = rj.sweep(
            lambda hp, key, *data: train(hp, key, *data)[0],
            points,
            objective="validation",
            args=(text, validation),
            path=folder,
        )
    except rj.SweepInterrupted as interrupt:
        print(
            f"\nInterrupted: {len(interrupt.result)} finished trials are in {folder}; the same "
            "command goes on from there."
        )
        raise SystemExit(130) from None
    print(f"Compiled in {result.compile_seconds:.1f} s, ran in {result.run_seconds:.1f} s.")

    csv = args.output / "trials.csv"
    table = result.to_dataframe()
    table.to_csv(csv, index=False)
    ranked = table[~table.failed].sort_values("objective")
    print("\n    learning rate  decay  centered  validation loss (nats a character)")
    for i, (_, trial) in enumerate(ranked.iterrows(), start=1):
        if i <= 10 or i == len(ranked):
            print(
                f"{i:3} {trial.learning_rate:13.3g} {trial.decay:6.3g} {trial.centered!s:>9} "
                f"{trial.validation:11.3f}{'  the worst' if i == len(ranked) else ''}"
            )
    print(
        f"{int(table.failed.sum())} of {len(table)} trials failed (a loss that is not finite). "
        f"No context at all (unigram): {unigram(corpus, corpus.validation):.3f}."
    )

    best = result.best()
    setting = ", ".join(f"{name} {value}" for name, value in best.point.items())
    print(f"\nTraining the best again: {setting}.")
    metrics, params = jax.jit(lambda key: train(best.hp, key, text, validation))(best.keys[0])
    loss = float(jax.jit(evaluate, static_argnums=0)(model, params, test))
    base = unigram(corpus, corpus.test)
    print(
        f"Validation loss {metrics['validation']:.3f} (in the sweep: {best.objective:.3f}).\n"
        f"Test loss {loss:.3f} nats = {loss / np.log(2):.2f} bits a character "
        f"(unigram: {base:.3f} nats = {base / np.log(2):.2f} bits)."
    )
    prompt = "The "
    draw = jax.jit(sample, static_argnums=(0, 4))
    written = draw(model, params, jax.random.key(1), encode(corpus.characters, prompt), 300)
    written = prompt + "".join(corpus.characters[i] for i in written.tolist())
    print(f"\nIt writes, after {prompt!r}:\n{written}\n")
    (args.output / "sample.txt").write_text(written, encoding="utf-8")

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _, (left, right) = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
    rj.plots.heatmap(result, "learning_rate", "decay", ax=left)
    rj.plots.heatmap(result, "learning_rate", "centered", ax=right)
    plt.savefig(args.output / "heatmap.png", dpi=120)
    ax = rj.plots.curves(result, "loss", smooth=max(1, steps // 15))
    ax.set_title("training loss, nats a character")
    ax.figure.savefig(args.output / "curves.png", dpi=120)
    for name in (folder.name, csv.name, "sample.txt", "heatmap.png", "curves.png"):
        print(f"Wrote {args.output / name}")


if __name__ == "__main__":
    main()
