"""Tune RMSProp on an LSTM: a grid of learning rate × decay × centered, in one call.

The sweep has 40 trials of a character model (_training.py in this folder), and compiles one program
for each value of `centered`. The validation loss is evaluated during training. With --halving,
successive halving prunes the worse two thirds of the trials after a ninth and after a third of the
steps. Finished trials and checkpoints are saved: stop the script at any time, and run it again to
resume. The best point on the validation split is evaluated on the test split, and writes a sample
text. report.html has all of this on one page. Each point has only one seed, so a small difference
may be luck. train_the_winner.py compares the best points on more seeds.
"""

import jax
import jax.numpy as jnp
import numpy as np
from _characters import encode, evaluate, sample, start, unigram
from _training import trainer

import rmsprop_jax as rj


def at_an_edge(points, best):
    """Return the axes on which the best point is at an edge, with a better point maybe beyond."""
    edges = []
    for name in ("learning_rate", "decay"):
        tried = [point[name] for point in points]
        low, high = min(tried), max(tried)
        if best[name] in (low, high):
            edges.append(f"{name} {best[name]:g} (tried {low:g} to {high:g})")
    if not edges:
        return "The best point is inside the grid on each axis."
    return f"The best point is at an edge of the grid: {', '.join(edges)}. Widen the grid there."


def main(argv=None):
    halving = {"action": "store_true", "help": "prune the worse two thirds, twice"}
    args, corpus, model = start(__doc__, "lstm_sweep_output", argv, [("--halving", halving)])
    steps = 18 if args.quick else 600
    points = rj.grid(
        learning_rate=[1e-3, 3e-2] if args.quick else [1e-3, 3e-3, 1e-2, 3e-2, 1e-1],
        decay=[0.5, 0.9] if args.quick else [0.3, 0.5, 0.9, 0.99],
        centered=rj.static([False, True]),
    )
    text, validation, test = map(jnp.asarray, corpus[1:])
    print(
        f"Sweep: {len(points)} points, an LSTM of {model.hidden} units, {steps} steps per trial, "
        f"on {len(jax.devices())} {jax.default_backend()} devices."
    )
    folder = args.output / ("halving" if args.halving else "sweep")
    try:
        result = rj.sweep(
            trainer(model),
            points,
            steps=steps,
            evaluate_every=-(-steps // 9),  # the rungs of --halving are evaluation steps
            scheduler=rj.SuccessiveHalving(reduction_factor=3) if args.halving else None,
            objective="validation",
            args=(text, validation),
            path=folder,
        )
    except rj.SweepInterrupted as interrupt:
        print(f"\nInterrupted: {interrupt.result!r}.\nThe same command resumes from {folder}.")
        raise SystemExit(130) from None
    print(f"Compiled in {result.compile_seconds:.1f} s, ran in {result.run_seconds:.1f} s.")

    csv = args.output / "trials.csv"
    table = result.to_dataframe()
    table.to_csv(csv, index=False)
    ranked = table[table.status == "complete"].sort_values("objective")
    print("\n    learning rate  decay  centered  validation loss (nats per character)")
    for i, (_, trial) in enumerate(ranked.iterrows(), start=1):
        if i <= 10 or i == len(ranked):
            print(
                f"{i:3} {trial.learning_rate:13.3g} {trial.decay:6.3g} {trial.centered!s:>9} "
                f"{trial.validation:11.3f}{'  worst' if 1 < i == len(ranked) else ''}"
            )
    best = result.best()
    print(at_an_edge(points, best.point))
    ended = table.status.value_counts()
    print(
        f"Of {len(table)} trials, {ended.get('pruned', 0)} were pruned, and "
        f"{ended.get('failed', 0)} failed (the loss was not finite).\n"
        f"Baseline without context (unigram): {unigram(corpus, corpus.validation):.3f}."
    )

    point = ", ".join(f"{name} {value}" for name, value in best.point.items())
    params, _ = result.state(best)  # after the last step
    loss = float(jax.jit(evaluate, static_argnums=0)(model, params, test))
    base = unigram(corpus, corpus.test)
    print(
        f"\nBest point: {point}; validation loss {best.objective:.3f}.\n"
        f"Test loss {loss:.3f} nats = {loss / np.log(2):.2f} bits per character "
        f"(unigram: {base:.3f} nats = {base / np.log(2):.2f} bits)."
    )
    prompt = "The "
    draw = jax.jit(sample, static_argnums=(0, 4))
    written = draw(model, params, jax.random.key(1), encode(corpus.characters, prompt), 300)
    written = prompt + "".join(corpus.characters[i] for i in written.tolist())
    print(f"\nSample text after the prompt {prompt!r}:\n{written}\n")
    (args.output / "sample.txt").write_text(written, encoding="utf-8")

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rc("font", size=11)  # so that the "small" font of a legend has 9 points
    ends = result.objective[result.status == "complete"]
    limits = (ends.min(), ends.max()) if len(ends) > 1 else None  # the same colors in both
    _, axes = plt.subplots(2, figsize=(5.5, 6.5), layout="constrained", height_ratios=[4, 3])
    rj.plots.heatmap(result, "learning_rate", "decay", limits=limits, ax=axes[0])
    rj.plots.heatmap(result, "learning_rate", "centered", limits=limits, ax=axes[1])
    plt.savefig(args.output / "heatmap.png", dpi=110)
    _, axes = plt.subplots(2, figsize=(5.5, 7.5), layout="constrained")
    rj.plots.curves(result, "loss", smooth=steps // 18, ax=axes[0])
    axes[0].set_title("training loss, nats a character")
    rj.plots.curves(result, "validation", ax=axes[1])
    axes[1].set_title("validation loss, nats a character")
    plt.savefig(args.output / "curves.png", dpi=110)
    result.report(args.output / "report.html")
    for name in (folder.name, csv.name, "sample.txt", "heatmap.png", "curves.png", "report.html"):
        print(f"Wrote {args.output / name}")


if __name__ == "__main__":
    main()
