"""Each recipe of docs/recipes.toml takes the steps of its source, and the page shows the table."""

import inspect
import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmsprop_jax as rj
from tests.support.steps import travel
from tests.support.tables import crossed, few

RECIPES = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "recipes.py"))
ROWS = RECIPES["rows"]()
PAGE = RECIPES["PAGE"].read_text("utf-8")
SHOWN = dict(re.findall(r"^\| \[([^]]+)\].*?\| `[^`]+` \| `([^`]+)` \|", PAGE, re.M))
STEPS = 100
rows_where = lambda has: pytest.mark.parametrize(
    "row", [row for row in ROWS if has(row)], ids=lambda row: row["name"]
)
each_row = rows_where(lambda row: True)


def one_of_each(has):
    """Return the first row of each preset; the other rows are slow tests."""
    table = {row["name"]: row for row in ROWS if has(row)}
    first = {row["preset"]: name for name, row in reversed(table.items())}
    return pytest.mark.parametrize("row", few(table, first.values()))


rate_of = lambda row: next(iter(row["arguments"].values()))


# The sources' optimizers in NumPy's float64, with their own arguments and order of operations. Each
# gets the learning rate of the step, and returns the difference to subtract from θ.


def torch_rmsprop(alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False):
    s = m = b = 0.0

    def step(t, rate, g, p):
        nonlocal s, m, b
        g = g + weight_decay * p
        s = alpha * s + (1 - alpha) * g * g
        m = alpha * m + (1 - alpha) * g
        b = momentum * b + g / (np.sqrt(s - m * m if centered else s) + eps)
        return rate * b

    return step


def tensorflow_rmsprop(decay=0.9, momentum=0.0, epsilon=1e-10, centered=False):
    s, m, b = 1.0, 0.0, 0.0

    def step(t, rate, g, p):
        nonlocal s, m, b
        s = s + (g * g - s) * (1 - decay)
        m = m + (g - m) * (1 - decay)
        b = momentum * b + rate * g / np.sqrt((s - m * m if centered else s) + epsilon)
        return b

    return step


def optax_rmsprop(decay=0.9, eps=1e-8, centered=False):
    s = m = 0.0

    def step(t, rate, g, p):
        nonlocal s, m
        s = (1 - decay) * g**2 + decay * s
        m = (1 - decay) * g + decay * m
        return rate * g / np.sqrt((s - m**2 if centered else s) + eps)

    return step


def torch_adam(betas=(0.9, 0.999), eps=1e-8):
    m = v = 0.0

    def step(t, rate, g, p):
        nonlocal m, v
        m = m + (g - m) * (1 - betas[0])
        v = betas[1] * v + (1 - betas[1]) * g * g
        denominator = np.sqrt(v) / np.sqrt(1 - betas[1] ** (t + 1)) + eps
        return rate / (1 - betas[0] ** (t + 1)) * m / denominator

    return step


def keras_adam(beta_1=0.9, beta_2=0.999, epsilon=1e-7):
    m = v = 0.0

    def step(t, rate, g, p):
        nonlocal m, v
        corrected = rate * np.sqrt(1 - beta_2 ** (t + 1)) / (1 - beta_1 ** (t + 1))
        m = m + (g - m) * (1 - beta_1)
        v = v + (g * g - v) * (1 - beta_2)
        return corrected * m / (np.sqrt(v) + epsilon)

    return step


THERE = {
    "torch.optim.RMSprop": torch_rmsprop,
    "tf.train.RMSPropOptimizer": tensorflow_rmsprop,
    "optax.rmsprop": optax_rmsprop,
    "rmsprop_pytorch_style": torch_rmsprop,  # Cleanba's own, which without momentum is PyTorch's
    "torch.optim.Adam": torch_adam,
    "tf.keras.optimizers.Adam": keras_adam,
}
START = {"w": np.array([[1.0, -2.0], [0.5, 3.0]]), "b": np.array([-1.0])}
flat = lambda tree: np.concatenate([np.ravel(tree[leaf]) for leaf in sorted(tree)], axis=-1)


def stream(row):
    """Return gradients whose norm is below the row's clip in some steps and above it in others."""
    random = np.random.default_rng(0)
    size = row.get("clip", 1.0) * np.exp(random.uniform(-2, 1, STEPS))
    return {
        leaf: random.normal(size=(STEPS, *p.shape)) * size.reshape(-1, *[1] * p.ndim)
        for leaf, p in START.items()
    }


def travel_there(row, rate=None, norm_plus=0.0):
    """Return θ_t − θ_0 of the row's source, with clipping by the global norm."""
    given = dict(row.get("there", row["arguments"]))
    start_rate = given.pop(next(iter(given)))
    rate = rate or (lambda t: start_rate)
    step = THERE[row["by"]](**{name.removeprefix("optim_"): x for name, x in given.items()})
    grads = stream(row)
    start = flat(START)
    ways = [np.zeros_like(start)]
    for t in range(STEPS):
        params = start + ways[-1]
        g = flat({leaf: g[t] for leaf, g in grads.items()}) + row.get("l2", 0.0) * params
        norm = np.sqrt((g * g).sum())
        g = g * min(1.0, row.get("clip", np.inf) / (norm + norm_plus))
        ways.append(ways[-1] - step(t, rate(t), g, params))
    return np.array(ways[1:])


def travel_here(solver, row):
    start, grads = jax.tree.map(jnp.asarray, (START, stream(row)))
    _, updates = travel(solver, grads, start)
    ways = jax.tree.map(lambda u: np.asarray(u).cumsum(axis=0).reshape(STEPS, -1), updates)
    return np.concatenate([ways[leaf] for leaf in sorted(ways)], axis=1)


def assert_same(ours, theirs, tolerance=1e-12):
    assert np.isfinite(theirs).all()
    assert abs(theirs).max() > 0
    assert abs(ours - theirs).max() <= tolerance * abs(theirs).max()


evaluated = lambda code, **names: eval(code, {"rj": rj, "optax": optax, **names})


@pytest.mark.slow
@one_of_each(lambda row: True)
def test_the_call_on_the_page_takes_the_steps_of_its_source(row, x64):
    assert_same(travel_here(evaluated(SHOWN[row["name"]]), row), travel_there(row))


@pytest.mark.slow
@one_of_each(lambda row: not isinstance(rate_of(row), str))
def test_the_call_takes_the_same_steps_with_a_falling_rate(row, x64):
    """A changing η shows whether η is inside the momentum buffer."""
    falling = lambda t: rate_of(row) * (1 - 0.01 * t)
    name = next(iter(row["arguments"]))
    code = RECIPES["call"](row | {"arguments": row["arguments"] | {name: "falling"}})
    ours = travel_here(evaluated(code, falling=falling), row)
    assert_same(ours, travel_there(row, falling))


@rows_where(lambda row: "clip" in row)
def test_the_clip_applies_in_some_steps_and_not_in_others(row):
    grads = [g.reshape(STEPS, -1) for g in stream(row).values()]
    norms = np.linalg.norm(np.concatenate(grads, axis=1), axis=1)
    assert 10 < (norms > row["clip"]).sum() < 90


@one_of_each(lambda row: "clip" in row and "torch" in row["by"])
def test_pytorchs_clipping_differs_by_at_most_the_pages_bound(row, x64):
    ours = travel_here(evaluated(SHOWN[row["name"]]), row)
    assert_same(ours, travel_there(row, norm_plus=1e-6), 1e-6 / row["clip"])


# The table.

KINDS = {
    "name": str, "kind": str, "by": str, "there": dict, "preset": str, "arguments": dict,
    "computed": dict, "l2": float, "clip": float, "schedule": str, "loss": str, "batch": dict,
    "repository": str, "commit": str, "file": str, "line": int, "also": list, "loss_at": str,
    "note": str,
}  # fmt: skip
OPTIONAL = {"there", "computed", "l2", "clip", "schedule", "also", "note"}


@each_row
def test_fields(row):
    assert KINDS.keys() - OPTIONAL <= row.keys() <= KINDS.keys()
    assert {name: type(value) for name, value in row.items()} == {name: KINDS[name] for name in row}
    assert all(value for name, value in row.items() if name not in ("there", "arguments"))
    assert row["kind"] in ("agent", "network", "adam")
    assert row["loss"] in ("sum", "mean")
    assert ("there" in row) == (row["kind"] == "adam")
    assert row["by"] in THERE
    assert all(n == "n" or (isinstance(n, int) and n > 0) for n in row["batch"].values())
    assert re.fullmatch(r"[0-9a-f]{40}", row["commit"])
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", row["repository"])
    for place in [f"{row['file']}:{row['line']}", row["loss_at"], *row.get("also", [])]:
        assert re.fullmatch(r"[\w./-]+\.\w+:[1-9]\d*", place)


@each_row
def test_arguments_exist_in_the_preset_and_computed_values_are_right(row):
    module = rj if row["preset"] == "rmsprop" else rj.presets
    signature = inspect.signature(getattr(module, row["preset"]))
    signature.bind(**row["arguments"])
    assert next(iter(row["arguments"])) == next(iter(signature.parameters))
    for name, rule in row.get("computed", {}).items():
        assert row["arguments"][name] == pytest.approx(eval(rule, {}), rel=1e-15)


def test_names_are_unique():
    assert len({row["name"] for row in ROWS}) == len(ROWS) == len(SHOWN)


def test_the_page_shows_the_table():
    assert RECIPES["filled"](PAGE) == PAGE, "run: python docs/recipes.py"
    assert {kind for _, kind, _ in RECIPES["MARKED"].findall(PAGE)} == {r["kind"] for r in ROWS}


# Adam with β₁ = 0.


@pytest.mark.slow
@pytest.mark.parametrize(("eps", "rho"), crossed([0.0, 1e-8, 1.0], [0.9, 0.99, 0.999]))
def test_adam_without_momentum_is_rmsprop_with_bias_correction(rho, eps, x64):
    adam = optax.adam(1e-3, b1=0.0, b2=rho, eps=eps)
    ours = rj.rmsprop(1e-3, rho, eps, bias_correction=True)
    assert_same(travel_here(ours, {}), travel_here(adam, {}))


@pytest.mark.parametrize("t", [1, 1000])
def test_the_epsilon_of_keras_adam_is_larger_in_the_first_steps(t):
    """By the page's factor: its step is PyTorch's with ε/√(1 − ρᵗ)."""
    fold = (1 - 0.999**t) ** -0.5
    assert fold == pytest.approx({1: 32, 1000: 1.26}[t], rel=0.02)
    keras, torch = keras_adam(0.0, 0.999, 0.1), torch_adam((0.0, 0.999), 0.1 * fold)
    for i, g in enumerate(np.random.default_rng(0).normal(size=t)):
        last = [step(i, 1e-3, g, 0.0) for step in (keras, torch)]
    np.testing.assert_allclose(*last, rtol=1e-12)
