"""Settings drawn from distributions: `sample`."""

from collections.abc import Mapping

import numpy as np

from rmsprop_jax._tune.space.distributions import (
    Distribution,
    choice,
    log_uniform,
    one_minus,
)
from rmsprop_jax._tune.space.points import Points

METHODS = ("sobol", "latin_hypercube", "random")


def sample(
    space: Mapping[str, Distribution], n: int, *, seed: int = 0, method: str = "sobol"
) -> Points:
    """Draw `n` settings, each hyperparameter from its distribution.

    Args:
      space: for each hyperparameter a `uniform`, `log_uniform`, `one_minus`, `integers` or
        `choice`.
      n: how many, at least 1.
      seed: a whole number, at least 0. The same seed gives the same points, and with "sobol" and
        "random" the first points of a larger n are those of a smaller.
      method: "sobol", a scrambled Sobol sequence, which fills the space evenly for every n (and
        best for a power of 2); "latin_hypercube", one point in each n-th of every axis; "random",
        independent.

    Returns:
      `Points`, for `sweep`.

    Raises:
      ValueError: for an empty space, something else than a distribution in it, a bad n or method.

    Examples:
      >>> import rmsprop_jax as rj
      >>> flags = rj.choice([False, True])
      >>> points = rj.sample({"learning_rate": rj.log_uniform(1e-5, 1e-1), "centered": flags}, n=8)
      >>> len(points), sum(point["centered"] for point in points)
      (8, 4)

    References:
      Bergstra and Bengio, [Random Search for Hyper-Parameter
      Optimization](https://jmlr.org/papers/v13/bergstra12a.html), JMLR 2012. Owen, Scrambling
      Sobol' and Niederreiter-Xing Points, 1998; here by `scipy.stats.qmc`.
    """
    if not isinstance(space, Mapping) or not space:
        raise ValueError(f"sample needs a dict of at least one distribution, got {space!r}.")
    for name, distribution in space.items():
        if not isinstance(distribution, Distribution):
            raise ValueError(
                f"{name!r} is {distribution!r}, wanted a distribution: uniform(low, high), "
                "log_uniform(low, high), integers(low, high) or choice([...])."
            )
    if not isinstance(n, int | np.integer) or isinstance(n, bool) or n < 1:
        raise ValueError(f"n must be a whole number of at least 1, got {n!r}.")
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}.")
    unit = _unit_cube(int(n), len(space), seed, method)
    rows = [
        {name: space[name].quantile(float(u)) for name, u in zip(space, row, strict=True)}
        for row in unit
    ]
    return Points(rows, (name for name in space if space[name].is_static))


def rmsprop_space() -> dict[str, Distribution]:
    """Where to look for RMSProp's hyperparameters when nothing is known; a dict, to be changed.

    η from 1e-5 to 1e-1; 1 − ρ from 1e-3 to .5 (a memory of 2 to 1,000 steps); ε from 1e-10 (TF1) to
    .1 (A3C, IMPALA); momentum 0, .9 or .95; centered or not.

    Examples:
      >>> import rmsprop_jax as rj
      >>> points = rj.sample(rj.rmsprop_space() | {"momentum": rj.choice([0.0])}, n=16)

    References:
      Choi et al., [On Empirical Comparisons of Optimizers for Deep
      Learning](https://arxiv.org/abs/1910.05446), 2019: rarely tuned ones, as ε is, belong in the
      space.
      The bounds of ε and ρ are those of the defaults in `rmsprop_jax.presets`.
    """
    return {
        "learning_rate": log_uniform(1e-5, 1e-1),
        "decay": one_minus(log_uniform(1e-3, 5e-1)),
        "eps": log_uniform(1e-10, 1e-1),
        "momentum": choice([0.0, 0.9, 0.95]),
        "centered": choice([False, True]),
    }


def _unit_cube(n: int, dimensions: int, seed: int, method: str) -> np.ndarray:
    """(n, dimensions) numbers in [0, 1)."""
    if method == "random":
        return np.random.default_rng(seed).random((n, dimensions))
    from scipy.stats import qmc  # takes half a second to import

    if method == "latin_hypercube":
        unit = qmc.LatinHypercube(dimensions, rng=seed).random(n)
    else:  # the whole power of 2, of which the first n
        unit = qmc.Sobol(dimensions, rng=seed).random_base2((n - 1).bit_length())[:n]
    return np.minimum(unit, np.nextafter(1.0, 0.0))
