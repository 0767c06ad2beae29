"""How often the 95% intervals that we print contain the truth: `python -m tests.support.coverage`.

The seeds' objectives are drawn from a distribution whose mean is known. The intervals come from the
library's own functions.
"""

import argparse

import numpy as np

import rmsprop_jax as rj
from rmsprop_jax._tune.results.expected_best import expected_best
from rmsprop_jax._tune.results.statistics import FEWEST_FOR_BOOTSTRAP, mean_std_ci95, paired

SEEDS = (3, 5, 8, 24)
POINTS = rj.sample({"x": rj.uniform(0.0, 1.0)}, 64, method="random")
DRAWS = {  # of mean 0 and standard deviation 1
    "normal": lambda rng, *shape: rng.normal(size=shape),
    "uniform": lambda rng, *shape: rng.uniform(-(3**0.5), 3**0.5, size=shape),
    "skewed (exponential)": lambda rng, *shape: rng.exponential(size=shape) - 1,
    "5% outliers of 5 standard deviations": lambda rng, *shape: (
        rng.normal(size=shape) * np.where(rng.random(shape) < 0.05, 5, 1) / 2.2**0.5
    ),
}


def coverage(intervals, truth):
    low, high = np.transpose(intervals)
    return np.mean((low <= truth) & (truth <= high))


def of_differences(draw, seeds, repetitions, interval):
    """Coverage of the interval of a difference of 0, and of the Wilson interval of wins of 1/2."""
    rng = np.random.default_rng(seeds)
    pairs = draw(rng, repetitions, 2, seeds)
    found = [paired(a, b, "min", interval) for a, b in pairs]
    return coverage([one.ci95 for one in found], 0.0), coverage([x.wins_ci95 for x in found], 0.5)


def of_means(draw, seeds, repetitions):
    tables = draw(np.random.default_rng(seeds), repetitions, seeds)
    return coverage([mean_std_ci95(one)[2] for one in tables], 0.0)


def of_held_out(draw, seeds, repetitions):
    """Coverage of the interval of the held-out best of 64 points, whose true objectives vary as
    much as the noise: of its mean, and of the true objective of the chosen point. And the mean
    reported, true, and held-out objectives."""
    rng = np.random.default_rng(seeds)
    true = rng.normal(size=(len(POINTS), 1))
    tables = true + draw(rng, repetitions, len(POINTS), seeds)
    found = [expected_best(POINTS, one, "min", [len(POINTS)]) for one in tables]
    held_out = np.array([one.held_out[0] for one in found])
    reported = np.mean([one.expected[0] for one in found])
    low, high = np.transpose([one.held_out_ci95[0] for one in found])
    covered = np.mean((low <= held_out.mean()) & (held_out.mean() <= high))
    choice = true[tables.mean(2).argmin(1), 0]
    of_choice = np.mean((low <= choice) & (choice <= high))
    return covered, of_choice, reported, choice.mean(), held_out.mean()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=4000)
    repetitions = parser.parse_args(argv).repetitions
    print(f"Coverage of 95% intervals, {repetitions} repetitions (a tenth for the bootstrap).")
    for name, draw in DRAWS.items():
        print(f"\n{name}")
        for seeds in SEEDS:
            difference, wins = of_differences(draw, seeds, repetitions, "t")
            held, own, reported, chosen, left_out = of_held_out(draw, seeds, repetitions // 4)
            text = f"  {seeds:2} seeds: mean {of_means(draw, seeds, repetitions):.3f}, difference "
            text += f"{difference:.3f}, wins (Wilson) {wins:.3f}, held-out best {held:.3f} (of the "
            text += f"choice {own:.3f})"
            if seeds >= FEWEST_FOR_BOOTSTRAP:
                bootstrap, _ = of_differences(draw, seeds, repetitions // 10, "bca")
                text += f", difference (BCa) {bootstrap:.3f}"
            print(text)
            print(
                f"            best of 64: reported {reported:.2f}, true {chosen:.2f}, held out "
                f"{left_out:.2f}"
            )


if __name__ == "__main__":
    main()
