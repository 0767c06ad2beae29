"""What one job runs for one trial, as a pure function of arrays; and the jobs' arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from rmsprop_jax._sweep.plan import Plan
from rmsprop_jax._sweep.program import Piece
from rmsprop_jax._sweep.seeds import key_of
from rmsprop_jax._sweep.tracing import Group, TracedTrain


def whole(train: TracedTrain, plan: Plan, group: int) -> Piece:
    """All of a `train`: from numbers and key to what is kept of its metrics."""
    run = jaxpr_as_fun(train.traced.jaxpr)
    names = sorted(train.metrics)  # as JAX flattens a dict
    kept = {name: plan.kept(group, name) - 1 for name in names if name in plan.every}
    key = key_of(0)  # for its implementation, and the shape of its data
    impl = jax.random.key_impl(key)

    def call(job, args):
        numbers, key_data = job
        key = jax.random.wrap_key_data(key_data, impl=impl)
        values = map(jnp.asarray, run(*jax.tree.leaves((numbers, key, args))))
        return {n: x[kept[n]] if n in kept else x for n, x in zip(names, values, strict=True)}

    dtypes = plan.groups[group].dtypes
    numbers = {name: jax.ShapeDtypeStruct((), dtype) for name, dtype in dtypes.items()}
    return Piece(call, (numbers, jax.eval_shape(jax.random.key_data, key)))


def jobs_of(plan: Plan, group: Group, trials: np.ndarray) -> Any:
    """The numbers and the key data of these trials of a group, NumPy arrays."""
    points, seeds = np.divmod(trials, len(plan.seeds))
    rows = np.searchsorted(group.indices, points)
    numbers = {
        name: np.asarray([plan.points[i][name] for i in group.indices], dtype)[rows]
        for name, dtype in group.dtypes.items()
    }
    keys = jnp.stack([key_of(seed) for seed in plan.seeds])
    return numbers, np.asarray(jax.random.key_data(keys))[seeds]
