"""Successive halving compared with the full sweep: time saved and loss added.

36 points of an LSTM run under `rj.SuccessiveHalving(reduction_factor=3)`, and all 36 to their end,
with one seed after another. A trial that halving completes must give the loss of the full sweep bit
for bit. Halving can only prune the best point. The benchmark prints how much better that point is
than the best completed one, in nats per character.
"""

import numpy as np

import rmsprop_jax as rj
from tests.benchmarks.lstm import lstm
from tests.benchmarks.runner import header, interleaved, median, row


def main(quick: bool, hidden: int = 32, steps: int = 450, seeds: int = 5):
    if quick:
        hidden, steps, seeds = 8, 9, 1
    points = rj.grid(
        learning_rate=[1e-3, 3e-3, 1e-2, 3e-2] if quick else [1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1],
        decay=[0.5] if quick else [0.5, 0.9, 0.99],
        centered=rj.static([False] if quick else [False, True]),
    )
    training, args = lstm(hidden, held_out=500 if quick else None)

    def side(scheduler):
        return lambda seed: rj.sweep(
            training,
            points,
            seeds=[seed],
            steps=steps,
            evaluate_every=-(-steps // 3),
            scheduler=scheduler,
            objective="validation",
            args=args,
            progress=False,
        )

    halving = rj.SuccessiveHalving(reduction_factor=3)
    results = interleaved({"full": side(None), "halving": side(halving)}, seeds)
    pairs = list(zip(results["full"], results["halving"], strict=True))
    extra = []
    rungs = " and ".join(map(str, halving.rungs(steps)))
    yield (
        f"\n## Successive halving: {len(points)} points of an LSTM of {hidden} units, {steps} "
        f"steps, {seeds} seeds\n\nA *rung* is a step at which the scheduler decides which trials "
        f"continue. The rungs are the steps {rungs}. Losses are validation losses in nats (natural "
        "logarithms) per character.\n"
    )
    yield header(
        "seed", "best point, full sweep", "loss", "best point, halving", "loss", "difference"
    )
    for seed, (full, halved) in enumerate(pairs):
        done = halved.status == "complete"
        np.testing.assert_array_equal(halved.objective[done], full.objective[done])
        best, found = full.best(), halved.best()
        extra.append(found.objective - best.objective)
        each = [x for r in (best, found) for x in (words(r.point), f"{r.objective:.4f}")]
        yield row(seed, *each, f"{extra[-1]:.4f}")
    yield "\n" + header("halving compared with the full sweep", "measured")
    of_steps = [halved.steps_completed.sum() / full.steps_completed.sum() for full, halved in pairs]
    of_time = [halved.run_seconds / full.run_seconds for full, halved in pairs]
    yield row("steps, ratio", median(of_steps, 3))
    yield row("run time, ratio", median(of_time, 3))
    missed = sum(x > 0 for x in extra)
    yield row("best point pruned", f"{missed} of {seeds} seeds")
    yield row("extra loss, mean and largest", f"{np.mean(extra):.4f}, {np.max(extra):.4f}")


def words(point) -> str:
    return ", ".join(f"{name} {value}" for name, value in point.items())
