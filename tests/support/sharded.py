"""Trainings whose parameters are sharded over the axis "model" of a mesh, and their meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

import rmsprop_jax as rj

SHAPES = {
    "8x1": ((8, 1), ("trial", "model")),
    "4x2": ((4, 2), ("trial", "model")),
    "2x4": ((2, 4), ("trial", "model")),
    "1x8": ((1, 8), ("trial", "model")),
    "2x2x2": ((2, 2, 2), ("trial", "data", "model")),
    "1x1": ((1, 1), ("trial", "model")),
    "model first": ((2, 4), ("model", "trial")),
}
AUTOMATIC, EXPLICIT = "automatic", "explicit"
POINTS = rj.grid(rate=[1e-3, 3e-3, 1e-2], decay=[0.9, 0.99])
STEPS = 12
WIDTH = 16


def mesh(name, types=AUTOMATIC):
    """Return a mesh of all devices, or of the first."""
    shape, axes = SHAPES[name]
    kind = AxisType.Auto if types == AUTOMATIC else AxisType.Explicit
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return Mesh(devices, axes, axis_types=(kind,) * len(axes))


class Net:
    """A linear map and back, whose parameters are cut over "model" if `types` is given.

    Args:
      types: "automatic" or "explicit", how the axes are named; None for no axes at all.
      batched: whether `step` gets a batch.
    """

    def __init__(self, types=None, batched=False):
        self.types, self.batched = types, batched

    def cut(self, x, *spec):
        if self.types is None:
            return x
        if self.types == AUTOMATIC:
            return jax.lax.with_sharding_constraint(x, P(*spec))
        return jax.sharding.reshard(x, P(*spec))

    def loss(self, w, x):
        hidden = jnp.tanh(x @ w)
        out = {"out_sharding": P()} if self.types == EXPLICIT else {}
        return jnp.mean((jnp.einsum("ij,kj->ik", hidden, w, **out) - x) ** 2)

    def solver(self, hp):
        return rj.rmsprop(hp["rate"], decay=hp["decay"])

    def init(self, hp, key):
        w = self.cut(0.3 * jax.random.normal(key, (8, WIDTH)), None, "model")
        return {"w": w, "opt": self.solver(hp).init(w), "key": jax.random.fold_in(key, 1)}

    def update(self, hp, state, x):
        value, gradient = jax.value_and_grad(self.loss)(state["w"], x)
        gradient = self.cut(gradient, None, "model")
        updates, opt = self.solver(hp).update(gradient, state["opt"], state["w"])
        w = optax.apply_updates(state["w"], updates)
        return state | {"w": w + 1e-4 * self.rolled(w), "opt": opt}, value

    def rolled(self, w):
        """Roll along the sharded dimension, so that the devices of a trial exchange their edges."""
        if self.types == EXPLICIT:  # JAX cannot slice along an explicit dimension
            return self.cut(jnp.roll(self.cut(w, None, None), 1, axis=1), None, "model")
        return jnp.roll(w, 1, axis=1)

    def step(self, hp, state, key, *batch):
        x = batch[0]["x"] if self.batched else jax.random.normal(state["key"], (4, 8))
        state, value = self.update(hp, state, x)
        key = jax.random.fold_in(state["key"], 1)
        return state | {"key": key}, {"loss": value}

    def evaluate(self, hp, state, key):
        x = jax.random.normal(jax.random.key(3), (16, 8))
        return {"validation": 100 * self.loss(state["w"], x)}

    def training(self):
        return rj.Training(self.init, self.step, self.evaluate)

    def train(self, hp, key):
        """The same as a function."""

        def body(state, t):
            return self.step(hp, state, jax.random.fold_in(key, t))

        state, metrics = jax.lax.scan(body, self.init(hp, key), jnp.arange(STEPS))
        return metrics | self.evaluate(hp, state, key)


def batches(t):
    return {"x": np.random.default_rng(t).normal(size=(4, 8)).astype(np.float32)}


def kinds(types=None):
    """Return for each kind of sweep its `train` and its options."""
    training = {"steps": STEPS, "evaluate_every": 4, "objective": "validation", "seeds": 2}
    population = rj.PopulationBasedTraining(
        {"rate": rj.log_uniform(1e-4, 1e-1)}, perturbation_interval=4, seed=1
    )
    fed = training | {"batches": batches}
    return {
        "function": (Net(types).train, {"objective": "validation", "seeds": 2}),
        "training": (Net(types).training(), training),
        "halving": (Net(types).training(), training | {"scheduler": rj.SuccessiveHalving(2, 4)}),
        "population": (Net(types).training(), training | {"scheduler": population}),
        "batches": (Net(types, batched=True).training(), fed),
    }


def sweep(kind, types=None, **options):
    train, given = kinds(types)[kind]
    kept = {} if kind == "function" else {"keep_states": "all"}
    return rj.sweep(train, POINTS, **{"progress": False} | kept | given | options)


def assert_close(found, wanted, tolerance=1e-5):
    """Two results agree: the same decisions, and the same numbers within rounding."""
    assert (found.status == wanted.status).all()
    assert (found.steps_completed == wanted.steps_completed).all()
    assert [[x[:2] for x in one] for one in found.history] == [
        [x[:2] for x in one] for one in wanted.history
    ]
    for name, values in wanted.metrics.items():
        np.testing.assert_allclose(found.metrics[name], values, rtol=tolerance, atol=tolerance)
