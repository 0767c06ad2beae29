"""Points drawn from distributions: `sample`, and `rmsprop_space`, a space to start with."""

from collections.abc import Mapping

import numpy as np

from rmsprop_jax._tune.space.distributions import (
    Distribution,
    choice,
    log_uniform,
    one_minus,
)
from rmsprop_jax._tune.space.points import SAMPLED, Points


def sample(
    space: Mapping[str, Distribution], n: int, *, seed: int = 0, method: str = "sobol"
) -> Points:
    """Draw `n` points, each hyperparameter from its distribution.

    Args:
      space: a dict from each hyperparameter's name to its distribution: `uniform`, `log_uniform`,
        `one_minus`, `integers`, or `choice`.
      n: the number of points, at least 1.
      seed: the seed of the draws, an int of at least 0. The same seed gives the same points. With
        "sobol" and "random", a larger n only adds points after those of a smaller n.
      method: "sobol" is a scrambled Sobol sequence. It fills the space evenly for every n, best for
        a power of 2. "latin_hypercube" puts one point into each n-th of every axis. "random" draws
        independently.

    Returns:
      `Points` for `sweep`, which remember `space` and `method`.

    Raises:
      ValueError: for an empty space, a value in it that is not a distribution, or a bad n or
        method.

    Examples:
      >>> import rmsprop_jax as rj
      >>> flags = rj.choice([False, True])
      >>> points = rj.sample({"learning_rate": rj.log_uniform(1e-5, 1e-1), "centered": flags}, n=8)
      >>> len(points), sum(point["centered"] for point in points)
      (8, 4)

    References:
      Bergstra and Bengio, [Random Search for Hyper-Parameter
      Optimization](https://jmlr.org/papers/v13/bergstra12a.html), JMLR 2012. Owen, Scrambling
      Sobol' and Niederreiter-Xing Points, 1998, as implemented by `scipy.stats.qmc`.
    """
    if not isinstance(space, Mapping) or not space:
        raise ValueError(
            f"space must be a dict of at least one distribution, got {space!r}. Pass, for example, "
            "{'learning_rate': rj.log_uniform(1e-5, 1e-1)}."
        )
    for name, distribution in space.items():
        if not isinstance(distribution, Distribution):
            raise ValueError(
                f"{name!r} must be a distribution, got {distribution!r}. Pass uniform(low, high), "
                "log_uniform(low, high), integers(low, high), or choice([...])."
            )
    if not isinstance(n, int | np.integer) or isinstance(n, bool) or n < 1:
        raise ValueError(f"n must be a whole number of at least 1, got {n!r}. Pass n=64.")
    if method not in SAMPLED:
        raise ValueError(f'method must be one of {SAMPLED}, got {method!r}. Pass method="sobol".')
    unit = _unit_cube(int(n), len(space), seed, method)
    rows = [
        {name: space[name].quantile(float(u)) for name, u in zip(space, row, strict=True)}
        for row in unit
    ]
    static = (name for name in space if space[name].is_static)
    return Points(rows, static).drawn(method, space)


def rmsprop_space() -> dict[str, Distribution]:
    """Return a wide space for RMSProp's hyperparameters, to use when nothing is known.

    η is from 1e-5 to 1e-1. 1 − ρ is from 1e-3 to 0.5, a memory of 2 to 1,000 steps. ε is from 1e-10
    (TensorFlow 1) to 0.1 (A3C, IMPALA). The momentum is 0, 0.9, or 0.95. `centered` is False or
    True. Change the dict as you like.

    Examples:
      >>> import rmsprop_jax as rj
      >>> points = rj.sample(rj.rmsprop_space() | {"momentum": rj.choice([0.0])}, n=16)

    References:
      Choi et al., [On Empirical Comparisons of Optimizers for Deep
      Learning](https://arxiv.org/abs/1910.05446), 2019: tune the rarely tuned hyperparameters too,
      such as ε. The bounds of ε are the smallest and the largest default in
      `rmsprop_jax.presets`.
    """
    return {
        "learning_rate": log_uniform(1e-5, 1e-1),
        "decay": one_minus(log_uniform(1e-3, 5e-1)),
        "eps": log_uniform(1e-10, 1e-1),
        "momentum": choice([0.0, 0.9, 0.95]),
        "centered": choice([False, True]),
    }


def _unit_cube(n: int, dimensions: int, seed: int, method: str) -> np.ndarray:
    """Draw n points of the unit cube: shape (n, dimensions), numbers in [0, 1)."""
    if method == "random":
        return np.random.default_rng(seed).random((n, dimensions))
    from scipy.stats import qmc  # imported here because it takes half a second

    if method == "latin_hypercube":
        unit = qmc.LatinHypercube(dimensions, rng=seed).random(n)
    else:  # SciPy warns unless a whole power of 2 is drawn
        unit = qmc.Sobol(dimensions, rng=seed).random_base2((n - 1).bit_length())[:n]
    return np.minimum(unit, np.nextafter(1.0, 0.0))
