"""Statistics over seeds, compared with SciPy's, with rliable's, and with written-out sums."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import rmsprop_jax as rj
from rmsprop_jax._tune.results import statistics

NAN = math.nan
TABLE = np.array(
    [
        [1.0, 2.0, 9.0, 4.0, 3.0],
        [2.5, 2.5, 2.5, 2.5, 2.5],
        [0.0, 0.0, 0.0, 0.0, NAN],
        [3.0, 3.1, 2.9, 3.0, 3.0],
        [NAN] * 5,
    ]
)


def result(table=TABLE, mode="min"):
    """A sweep with these objectives, points × seeds. NaN fails."""
    train = lambda hp, key, x: {"loss": x[hp["point"], jax_seed(key)]}
    points = rj.grid(point=list(range(len(table))))
    seeds = table.shape[1]
    return rj.sweep(
        train, points, seeds=seeds, args=(np.float32(table),), mode=mode, progress=False
    )


def jax_seed(key):
    """The seed of a key of threefry2x32."""
    import jax

    return jax.random.key_data(key)[1]


def scipys(values, statistic, mode):
    return {
        "mean": np.mean,
        "median": np.median,
        "iqm": lambda x: scipy.stats.trim_mean(x, 0.25),  # as in rliable.metrics.aggregate_iqm
        "worst": np.max if mode == "min" else np.min,
    }[statistic](values)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("statistic", statistics.STATISTICS)
def test_points_are_ranked_by_each_statistic(statistic, mode):
    """A point with a failed seed comes after all whole ones."""
    whole = result(TABLE if mode == "min" else -TABLE, mode)
    top = whole.top(statistic=statistic)
    sign = 1 if mode == "min" else -1
    expected = {i: scipys(sign * np.float32(TABLE[i]), statistic, mode) for i in (0, 1, 3)}
    for record in top[:3]:
        assert record.objective == pytest.approx(expected[record.index], rel=1e-6)
    assert [r.index for r in top[:3]] == sorted(expected, key=lambda i: sign * expected[i])
    assert [r.index for r in top[3:]] == [2]  # the point without a complete seed is left out
    assert whole.best(statistic=statistic).index == top[0].index
    assert whole.best(by="loss", mode=mode, statistic=statistic).index == top[0].index


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("statistic", statistics.STATISTICS)
def test_statistics_of_any_number_of_seeds(statistic, mode):
    rng = np.random.default_rng(0)
    for count in range(4, 14):
        table = rng.normal(size=(3, count)).round(1)
        expected = [scipys(row, statistic, mode) for row in table]
        np.testing.assert_allclose(statistics.summaries(table, statistic, mode), expected)


def test_a_statistic_must_have_a_meaning():
    few = result(TABLE[:, :3])
    with pytest.raises(ValueError, match=r'statistic="iqm" must have at least 4 seeds, got 3.*Run'):
        few.best(statistic="iqm")
    with pytest.raises(ValueError, match=r"statistic must be one of .*got 'mode'. Pass"):
        few.top(statistic="mode")


FINITE = st.lists(st.tuples(*[st.integers(-4, 4).map(float)] * 2), min_size=2, max_size=9)


@settings(deadline=None, max_examples=60)
@given(FINITE, st.sampled_from(["min", "max"]))
def test_a_comparison_is_scipys(pairs, mode):
    first, second = np.array(pairs).T
    found = statistics.paired(first, second, mode)
    better = np.less if mode == "min" else np.greater
    wins = better(first, second).sum() + 0.5 * (first == second).sum()
    assert found.wins == pytest.approx(wins / len(first))
    if wins == int(wins):
        wilson = scipy.stats.binomtest(int(wins), len(first)).proportion_ci(method="wilson")
        assert found.wins_ci95 == pytest.approx((wilson.low, wilson.high), abs=1e-12)
    greater = (second, first) if mode == "min" else (first, second)
    u = scipy.stats.mannwhitneyu(*greater, alternative="greater").statistic
    assert found.improvement == pytest.approx(u / len(first) ** 2)
    flips = scipy.stats.permutation_test(
        (first - second,),
        lambda x, axis: np.abs(np.sum(x, axis)),
        permutation_type="samples",
        alternative="greater",
        n_resamples=np.inf,
    )
    assert found.sign_flip_p_value == pytest.approx(flips.pvalue)
    assert found.sign_flip_p_value >= 2 / 2 ** len(first) - 1e-12


def test_the_probability_of_improvement_is_rliables():
    """And so is the interquartile mean."""
    metrics = pytest.importorskip("rliable.metrics")
    rng = np.random.default_rng(0)
    for seeds in (3, 8):
        first, second = rng.normal(size=(2, seeds)).round(1)
        theirs = metrics.probability_of_improvement(first[:, None], second[:, None])
        assert statistics.paired(first, second, "max").improvement == pytest.approx(theirs)
        table = np.stack([first, second])
        iqms = [metrics.aggregate_iqm(row[:, None]) for row in table]
        if seeds >= statistics.FEWEST_FOR_IQM:
            np.testing.assert_allclose(statistics.summaries(table, "iqm", "max"), iqms)


def test_the_sign_flip_test_has_a_least_value_and_a_largest_count():
    ones = lambda n: statistics.paired(np.ones(n), np.zeros(n), "max").sign_flip_p_value
    assert ones(3) == 0.25
    assert ones(12) == 2 / 2**12
    assert math.isnan(ones(13))
    assert statistics.paired(np.zeros(4), np.zeros(4), "min").sign_flip_p_value == 1.0


def test_a_bootstrap_must_have_twenty_seeds():
    rng = np.random.default_rng(1)
    first, second = rng.gamma(1.0, size=(2, 20))
    with pytest.raises(ValueError, match=r'at least 20 seeds, got 19.*Pass interval="t"'):
        statistics.paired(first[:19], second[:19], "min", "bca")
    found = statistics.paired(first, second, "min", "bca")
    theirs = scipy.stats.bootstrap((first - second,), np.mean, rng=np.random.default_rng(2))
    assert found.ci95 == pytest.approx(tuple(theirs.confidence_interval), abs=0.05)
    assert found.p_value == statistics.paired(first, second, "min").p_value
    assert statistics.paired(first, first, "min", "bca").ci95 == (0.0, 0.0)
    with pytest.raises(ValueError, match='interval must be "t" or "bca", got 3'):
        statistics.paired(first, second, "min", 3)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_comparison_turns_round(order):
    table = TABLE[[0, 1, 3]][list(order)]
    whole = result(table)
    there, back = (whole.compare({"point": i}, {"point": j}) for i, j in ((0, 1), (1, 0)))
    assert there.difference == -back.difference
    assert there.wins == pytest.approx(1 - back.wins)
    assert there.improvement == pytest.approx(1 - back.improvement)
    assert there.sign_flip_p_value == back.sign_flip_p_value
