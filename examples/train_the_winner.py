"""Choose the best point of a saved sweep: compare the best four again, and save the winner's model.

The script reads the sweep that lstm_sweep.py saved, or runs that sweep first. The sweep ranked 40
points with one seed each, so the best point may only be lucky. The four best points therefore train
again with five other seeds. The script also prints the sensitivity to each hyperparameter, saves
the parameters of the winner, loads the parameters, and evaluates the model on the test split.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import lstm_sweep
import numpy as np
from _characters import evaluate, start
from _training import trainer

import rmsprop_jax as rj


def save(path, params):
    """Save parameters as plain arrays, each under its path in the tree, without pickle."""
    named, _ = jax.tree_util.tree_flatten_with_path(params)
    np.savez(path, **{jax.tree_util.keystr(place): leaf for place, leaf in named})


def load(path, like):
    arrays = np.load(path, allow_pickle=False)
    return jax.tree_util.tree_map_with_path(
        lambda place, leaf: jnp.asarray(arrays[jax.tree_util.keystr(place)], leaf.dtype), like
    )


def main(argv=None):
    sweep = {"metavar": "DIR", "type": Path, "help": "default: lstm_sweep_output/sweep"}
    args, corpus, model = start(__doc__, "train_the_winner_output", argv, [("--sweep", sweep)])
    folder = args.sweep or Path("lstm_sweep_output/sweep")
    if not args.sweep and (args.quick or not folder.exists()):
        folder = args.output / "screening" / "sweep"
        text = ["--text", args.text] if args.text else []
        lstm_sweep.main([*["--quick"] * args.quick, *text, "--output", str(folder.parent)])

    screened = rj.SweepResult.load(folder)
    print(f"\n{screened}\nSensitivity (range of the best loss over the values, in nats):")
    for name, nats in screened.sensitivity().items():
        print(f"  {name:14} {nats:.3f}")

    finalists, steps = screened.top(2 if args.quick else 4), int(screened.steps["loss"][-1])
    text, validation, test = map(jnp.asarray, corpus[1:])
    final = rj.sweep(
        trainer(model),
        rj.Points([record.point for record in finalists], screened.points.static),
        steps=steps,
        evaluate_every=-(-steps // 9),
        seeds=range(1, 3 if args.quick else 6),
        objective="validation",
        args=(text, validation),
        path=args.output / "final",
    )
    print("\nThe best points again, with other seeds (validation loss, nats per character):")
    for record in final.top():
        low, high = record.ci95
        point = ", ".join(f"{name} {value}" for name, value in record.point.items())
        print(f"  {record.objective:.3f}  95% {low:.3f} … {high:.3f}  {point}")
    best, second = final.top(2)
    lead = final.compare(second, best)
    low, high = lead.ci95
    print(
        f"The first point is better than the second by {lead.difference:.3f} nats "
        f"(95% {low:.3f} … {high:.3f}, "
        f"p = {lead.p_value:.2g}, paired over {lead.seeds} seeds)."
    )

    params, _ = final.state(best)  # of the first seed, after the last step
    save(args.output / "winner.npz", params)
    again = load(args.output / "winner.npz", params)
    validated, loss = (
        float(jax.jit(evaluate, static_argnums=0)(model, again, part))
        for part in (validation, test)
    )
    print(
        f"\nThe first point's model of seed {final.seeds[0]}: validation {validated:.3f}, test "
        f"{loss:.3f} nats = {loss / np.log(2):.2f} bits per character."
    )

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rc("font", size=11)  # so that the "small" font of a legend has 9 points
    names = list(screened.sensitivity())
    _, axes = plt.subplots(len(names), figsize=(5.5, 3 * len(names)), layout="constrained")
    for name, ax in zip(names, np.atleast_1d(axes), strict=True):
        rj.plots.sensitivity(screened, name, ax=ax)
    plt.savefig(args.output / "sensitivity.png", dpi=110)
    _, ax = plt.subplots(figsize=(5.5, 4), layout="constrained")
    rj.plots.curves(final, "validation", ax=ax)
    ax.set_title("validation loss, nats per character")
    plt.savefig(args.output / "curves.png", dpi=110)
    final.to_dataframe().to_csv(args.output / "final.csv", index=False)
    for name in ("winner.npz", "final.csv", "sensitivity.png", "curves.png"):
        print(f"Wrote {args.output / name}")


if __name__ == "__main__":
    main()
