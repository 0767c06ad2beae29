"""The page “Play with RMSProp”: its JavaScript equals this library, and its statements are true."""

import functools
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rmsprop_jax as rj
from tests.support import figures
from tests.support.tables import few

PAGES = Path(__file__).parents[2] / "docs" / "pages"
PAGE = (PAGES / "play.md").read_text("utf-8")
SCRIPTS = [PAGES / "javascripts" / name for name in ("rmsprop.js", "play.js")]
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="no node to run the page's JavaScript")

STEPS = 300
RAVINE = {"eta": 0.05, "rho": 0.9, "eps": 1e-8, "noise": 0.1, "degrees": 10}  # the first values


def node(code, given):
    """Return the result of a JavaScript function of (maths, given). JSON keeps all digits."""
    whole = (
        f"const maths = require({json.dumps(str(SCRIPTS[0]))});"
        'const given = JSON.parse(require("fs").readFileSync(0, "utf-8"));'
        f"process.stdout.write(JSON.stringify((({code}))(maths, given)));"
    )
    done = subprocess.run(
        [NODE, "-e", whole], input=json.dumps(given), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


FOLLOW = """(maths, { rule, theta, gradients, settings }) => settings.map((numbers) => {
  let state = { theta, s: theta.map(() => 0) };
  return gradients.map((g) => (state = maths[rule]({ ...state, g, ...numbers })));
})"""


def in_javascript(rule, gradients, settings):
    """Return θ, s, and the steps, for each of the settings, after each gradient."""
    given = {"rule": rule, "theta": START, "gradients": gradients.tolist(), "settings": settings}
    runs = node(FOLLOW, given)
    return [
        np.array([[x[key] for x in run] for run in runs], float) for key in ("theta", "s", "step")
    ]


def in_jax(solver, gradients, settings, second_moment):
    """Return the same from an Optax transformation, which `solver` makes of the settings."""

    def run(numbers):
        def step(carry, g):
            theta, state = carry
            steps, state = made.update(g, state)
            theta = optax.apply_updates(theta, steps)
            return (theta, state), (theta, optax.tree_utils.tree_get(state, second_moment), steps)

        made, theta = solver(**numbers), jnp.asarray(START)
        return jax.lax.scan(step, (theta, made.init(theta)), gradients)[1]

    columns = {name: jnp.asarray([numbers[name] for numbers in settings]) for name in settings[0]}
    return jax.device_get(jax.jit(jax.vmap(run))(columns))


def agree(ours, theirs):
    """Compare each number to 1e-14, and θ to 1e-14 of the length of its path."""
    (theta, s, steps), (their_theta, their_s, their_steps) = ours, theirs
    np.testing.assert_allclose(steps, their_steps, rtol=1e-14, atol=0)
    if their_s is not None:
        np.testing.assert_allclose(s, their_s, rtol=1e-14, atol=0)
    gone = np.abs(START) + np.cumsum(np.abs(their_steps), 1)
    assert (np.abs(theta - their_theta) <= 1e-14 * gone).all()


START = [1.0, -2.0, 3.0]
NORMAL = np.random.default_rng(0).normal(size=(STEPS, 3))
SPARSE = np.where(np.random.default_rng(1).uniform(size=NORMAL.shape) < 0.1, NORMAL, 0)
GRADIENTS = {
    "normal": NORMAL,
    "of three sizes": NORMAL * [1e-3, 1, 1e3],
    "sparse": SPARSE,
    "zero": np.zeros_like(NORMAL),
    "tiny": NORMAL * [1e-12, 1e-60, 1e-140],
    "vanishing squares": NORMAL * 1e-170,
    "large": NORMAL * [1e12, 1e60, 1e140],
    "beyond the largest square": NORMAL * 1e200,
}


@pytest.mark.slow
@needs_node
@pytest.mark.parametrize("gradients", few(GRADIENTS, ["sparse", "tiny", "vanishing squares"]))
@pytest.mark.usefixtures("x64")
def test_rmsprop_in_javascript_is_the_librarys(gradients):
    table = itertools.product([1e-3, 1.0], [0.0, 0.5, 0.9, 0.999], [0.0, 1e-10, 1e-8, 1.0])
    settings = [{"eta": eta, "rho": rho, "eps": eps} for eta, rho, eps in table]
    ours = in_javascript("rmspropStep", gradients, settings)
    solver = lambda eta, rho, eps: rj.rmsprop(eta, rho, eps)
    agree(ours, in_jax(solver, gradients, settings, "nu"))


@pytest.mark.slow
@needs_node
@pytest.mark.parametrize(
    "name",
    few(["normal", "of three sizes", "sparse", "zero", "tiny", "large"], ["normal", "sparse"]),
)
@pytest.mark.usefixtures("x64")
def test_sgd_and_adagrad_in_javascript_are_optaxs(name):
    gradients, settings = GRADIENTS[name], [{"eta": 1e-3}, {"eta": 1.0}]
    ours = in_javascript("sgdStep", gradients, settings)
    agree(ours, in_jax(lambda eta: optax.sgd(eta), gradients, settings, "nothing"))
    ours = in_javascript("adagradStep", gradients, settings)
    adagrad = lambda eta: optax.adagrad(eta, initial_accumulator_value=0.0, eps=0.0)
    agree(ours, in_jax(adagrad, gradients, settings, "sum_of_squares"))


@needs_node
def test_the_ravines_gradient_is_its_derivative():
    given = {"steep": 38, "ratio": 100, "degrees": 30, "points": NORMAL[:20, :2].tolist()}
    code = """(maths, { points, ...shape }) => {
      const { value, gradient } = maths.ravine(shape);
      return points.map((point) => [value(point), gradient(point)]);
    }"""
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    turn = np.array([[cos, sin], [-sin, cos]])
    curvature = turn.T @ np.diag([0.38, 38]) @ turn
    for point, (value, gradient) in zip(given["points"], node(code, given), strict=True):
        np.testing.assert_allclose(value, point @ curvature @ point / 2, rtol=1e-12)
        np.testing.assert_allclose(gradient, curvature @ point, rtol=1e-12, atol=1e-12)


@needs_node
def test_the_noise_is_normal_and_the_same_each_time():
    pairs = np.array(node("(maths, n) => maths.normalPairs(n, 5)", 5000))
    assert pairs.shape == (5000, 2)
    assert np.abs(pairs.mean(0)).max() < 0.05
    np.testing.assert_allclose(np.cov(pairs.T), np.eye(2), atol=0.06)
    assert (pairs == node("(maths, n) => maths.normalPairs(n, 5)", 5000)).all()


def sliders():
    """Return (min, max, value) of each slider of the page, by its name."""
    pattern = r'id="play-(\w+)" min="(\S+)" max="(\S+)" step="\S+" value="(\S+)"'
    return {name: tuple(map(float, numbers)) for name, *numbers in re.findall(pattern, PAGE)}


SCENES = """(maths, settings) => settings.map((setting) => {
  const numbers = {};
  for (const [name, x] of Object.entries(setting)) numbers[name] = maths.meaning[name](x);
  return [numbers, maths.scene(numbers).paths];
})"""


@pytest.mark.slow
@needs_node
def test_no_slider_values_give_nan():
    """All combinations of ends and middles, and 300 places between them."""
    ranges = {name: numbers for name, numbers in sliders().items() if name != "steps"}
    places = list(itertools.product(*([a, (a + b) / 2, b] for a, b, _ in ranges.values())))
    low, high, _ = np.transpose(list(ranges.values()))
    places += np.random.default_rng(0).uniform(low, high, (300, len(ranges))).tolist()
    settings = [dict(zip(ranges, place, strict=True)) for place in places]
    for numbers, paths in node(SCENES, settings):  # JSON has NaN and ∞ as null, here None
        for name, path in paths.items():
            values = [v for state in path for vs in state.values() for v in vs]
            assert None not in values, (name, numbers)
        assert len(paths["RMSProp"]) == len(paths["Adagrad"]) == 101, numbers
        steps = [abs(v) for state in paths["RMSProp"][1:] for v in state["step"]]
        assert max(steps) <= numbers["eta"] / (1 - numbers["rho"]) ** 0.5 * (1 + 1e-12), numbers


@needs_node
def test_sliders_start_at_the_values_of_the_text():
    opened = {name: value for name, (*_, value) in sliders().items()}
    assert opened.pop("steps") == 100
    ((numbers, _),) = node(SCENES, [opened])
    assert numbers == RAVINE
    ends = {name: [low, high] for name, (low, high, _) in sliders().items()}
    meant = node("(maths, ends) => ends.map((x) => maths.meaning.rho(x))", ends["rho"])
    assert meant == [0, 0.999]


def scene(**changes):
    """Return the states of each optimizer, from the first values with these changes."""
    code = "(maths, numbers) => maths.scene(numbers).paths"
    return node(code, RAVINE | changes)


def left(paths):
    return {name: float(np.hypot(*path[-1]["theta"])) for name, path in paths.items()}


def all_of(path, key):
    return np.array([state[key] for state in path[1:]])


def across(path, degrees=RAVINE["degrees"]):
    turn = np.radians(degrees)
    return all_of(path, "theta") @ [-np.sin(turn), np.cos(turn)]


def turns_back(path):
    steps = all_of(path, "step")
    return int(((steps[1:] * steps[:-1]).sum(1) < 0).sum())


def last_rates(path):
    """Return the geometric mean of the rate over the last 50 steps, for each parameter."""
    return np.exp(np.log(all_of(path, "rate")[50:]).mean(0))


says = functools.partial(figures.says, PAGE)


def fixed(x, digits=2):
    return f"{x:.{digits}f}"


@needs_node
def test_at_first_sgd_zigzags_adagrad_slows_down_and_rmsprop_makes_steady_progress():
    paths = scene()
    lengths = {name: np.hypot(*all_of(path, "step").T) for name, path in paths.items()}
    assert says(*(f"{steps.sum():.1f}" for steps in lengths.values()))
    assert turns_back(paths["SGD"]) == 80
    assert turns_back(paths["Adagrad"]) == 0
    assert lengths["Adagrad"][-1] < lengths["Adagrad"][0] / 10
    assert turns_back(paths["RMSProp"]) < 40
    assert left(paths)["RMSProp"] < left(paths)["SGD"] < left(paths)["Adagrad"]
    assert says(fixed(left(paths)["RMSProp"]), f"{left(paths)['Adagrad']:.2f}")


@needs_node
def test_statements_on_the_limit_of_sgd_which_rmsprop_finds_by_itself():
    limit = node("(maths) => maths.ravine({ steep: 38, ratio: 100, degrees: 0 }).limit", None)
    assert limit == 2 / 38
    assert says("38", fixed(limit, 3))
    rate = all_of(scene()["RMSProp"], "rate")[:, 1]
    assert rate[:50].max() < limit / 2
    assert rate.max() > limit > rate[-1] > limit / 2
    assert says(fixed(rate[-1], 3), fixed(all_of(scene(eta=1)["RMSProp"], "rate")[-1, 1], 3))


@needs_node
def test_statements_on_rho():
    paths = scene(rho=0.999)
    first = np.abs(paths["RMSProp"][1]["step"]) / RAVINE["eta"]
    np.testing.assert_allclose(first, 1 / np.sqrt(1 - 0.999), rtol=1e-6)
    assert says(f"{first[0]:.1f}")
    adagrad = scene(eta=RAVINE["eta"] * 1000**0.5)["Adagrad"]
    gaps = all_of(paths["RMSProp"], "theta") - all_of(adagrad, "theta")
    assert 0.003 < np.hypot(*gaps.T).max() < 0.004
    assert says("0.004", f"{0.999**99:.0%}".rstrip("%"))
    paths = scene(rho=0)
    np.testing.assert_allclose(np.abs(all_of(paths["RMSProp"], "step")), RAVINE["eta"], rtol=1e-6)
    assert turns_back(paths["RMSProp"]) > 70
    assert says(fixed(left(paths)["RMSProp"]))


@needs_node
def test_statements_on_eta():
    path = scene(eta=0.06)["SGD"]
    assert len(path) < 101  # the path ends when SGD diverges
    assert np.abs(path[-1]["theta"]).max() > 1000
    paths = scene(eta=1)
    longest = np.abs(all_of(paths["RMSProp"], "step")).max()
    assert longest <= 1 / np.sqrt(1 - 0.9)
    assert says(f"{longest:.2f}", fixed(left(paths)["Adagrad"]))
    assert turns_back(paths["RMSProp"]) > 80


@needs_node
def test_statements_on_eps():
    paths = scene(eps=1)
    assert all_of(paths["RMSProp"], "rate").max() < RAVINE["eta"]
    assert all_of(scene()["RMSProp"], "rate")[-1].max() > RAVINE["eta"]
    assert np.sqrt(all_of(paths["RMSProp"], "s"))[-1].max() < 1
    assert says(fixed(left(paths)["RMSProp"]))


@needs_node
def test_statements_on_the_angle():
    paths = scene(degrees=45)
    rates = last_rates(paths["RMSProp"])
    assert 0.9 < rates[0] / rates[1] < 1.1
    assert left(paths)["RMSProp"] > left(paths)["SGD"]
    assert says(fixed(left(paths)["RMSProp"]), fixed(left(paths)["SGD"]))
    rates = last_rates(scene(degrees=0)["RMSProp"])
    assert says(f"{rates[0] / rates[1]:.1f} to 1")


@needs_node
def test_statements_on_noise():
    paths = scene(noise=1)
    strays = {name: np.sqrt((across(path)[50:] ** 2).mean()) for name, path in paths.items()}
    assert says(f"{strays['SGD'] / strays['RMSProp']:.1f} times")
    assert left(paths)["RMSProp"] > left(paths)["SGD"]
    assert (last_rates(paths["RMSProp"]) < last_rates(scene()["RMSProp"])).all()


@pytest.mark.slow
@needs_node
def test_figures_on_the_page_do_not_depend_on_rounding():
    """Without noise, RMSProp's steps across would grow out of rounding errors. With noise, they are
    equal in all browsers, although sines may differ in the last digit."""
    code = """(maths, { turns, ...numbers }) => turns.map((degrees) => {
      const { Adagrad, RMSProp } = maths.scene({ ...numbers, degrees }).paths;
      return [Adagrad, RMSProp].map((path) => path[path.length - 1].theta);
    })"""
    for changes in ({}, {"eps": 1}, {"eta": 1}, {"noise": 1}, {"rho": 0}, {"rho": 0.999}):
        turns = [RAVINE["degrees"], RAVINE["degrees"] * (1 + 1e-13)]
        one, other = node(code, RAVINE | changes | {"turns": turns})
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_page_fetches_nothing_from_other_servers():
    sources = re.findall(r'<(?:script|link|img|source|iframe)[^>]* (?:src|href)="([^"]+)"', PAGE)
    assert [PAGES / source for source in sources] == SCRIPTS
    for text in (PAGE, *(script.read_text("utf-8") for script in SCRIPTS)):
        asks = r"https?:|//[a-z]+\.|url\(|@import|\bfetch\b|XMLHttpRequest|\bimport\b|WebSocket"
        assert re.findall(asks, text) == []


def test_each_slider_has_a_label_and_shows_its_value():
    names = re.findall(r'<input type="range" id="([^"]+)"', PAGE)
    assert len(names) == len(sliders()) == 6
    for name in names:
        assert re.search(rf'<label for="{name}">[^<]+</label>', PAGE)
        assert re.search(rf'<output for="{name}"></output>', PAGE)
    drawings = re.findall(r"<svg[^>]*>", PAGE)
    assert len(drawings) == 3
    assert all('role="img"' in svg and "aria-label=" in svg for svg in drawings)


def test_the_colors_are_those_of_the_pictures():
    for name in ("SGD", "Adagrad", "RMSProp"):
        assert f"--{name.lower()}: {rj.plots.COLORS[name]}" in PAGE
