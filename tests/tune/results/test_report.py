"""The report of a result, read back from its file."""

import html.parser
import re

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest

import rmsprop_jax as rj
from tests.support.tables import few
from tests.support.trainings import POINTS, sweep

pytest.importorskip("matplotlib").use("agg")
VOID = {"meta", "img", "br", "link"}


class Page(html.parser.HTMLParser):
    """A page: its headings, list items, pictures, the rows of its last table; an error for a tag
    that is not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.headings, self.items, self.images, self.rows = [], [], [], [], []
        self.urls, self.text = [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.urls += [attrs[name] for name in ("src", "href") if name in attrs]
        if tag == "img":
            self.images.append(attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in ("h1", "h2", "li", "td", "th", "p"):
            self.text = ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("h1", "h2"):
            self.headings.append(self.text)
        if tag in ("li", "p"):
            self.items.append(self.text)
        if tag in ("td", "th"):
            self.rows[-1].append(self.text)

    def handle_data(self, data):
        self.text += data


def page_of(result, tmp_path):
    result.report(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "<!-- " not in text
    page = Page(text)
    assert page.headings[1:] == [
        "The best point", "How sure", "What to try next", "Pictures", "All points", "Versions",
    ]  # fmt: skip
    assert all(url.startswith("data:image/png;base64,") for url in page.urls)
    assert all(image["alt"] for image in page.images)
    assert not re.search(r"url\(|@import|https?:", text)
    assert "nan" not in " ".join(page.items)
    return page


def table(page):
    """The rows of the table of all points, without its head."""
    start = max(i for i, row in enumerate(page.rows) if row and row[0] == "rank")
    return page.rows[start + 1 :]


def sampled(seeds=5, noise=0.1, mode="min", n=32):
    def train(hp, key):
        key = jax.random.fold_in(key, jax.lax.bitcast_convert_type(hp["rate"], jnp.int32))
        loss = (jnp.log10(hp["rate"]) + 3) ** 2 + hp["rho"] + noise * jax.random.normal(key)
        loss = jnp.where(hp["rate"] > 0.05, jnp.nan, loss)
        sign = 1 if mode == "min" else -1
        return {"loss": sign * loss, "curve": sign * loss * jnp.arange(1.0, 5.0)}

    space = {"rate": rj.log_uniform(1e-5, 1e-1), "rho": rj.one_minus(rj.log_uniform(1e-3, 0.5))}
    return rj.sweep(train, rj.sample(space, n), seeds=seeds, mode=mode, progress=False)


@pytest.mark.parametrize("mode", few(["min", "max"], ["max"]))
def test_a_report_has_the_numbers_of_the_result(mode, tmp_path):
    result = sampled(mode=mode)
    page, best = page_of(result, tmp_path), result.best()
    rows = table(page)
    assert [row[1] for row in rows[:10]] == [f"{x.point['rate']:.4g}" for x in result.top(10)]
    assert [row[3] for row in rows[:10]] == [f"{x.objective:.6g}" for x in result.top(10)]
    assert len(rows) == 32
    failed = int((~np.isfinite(result.by_point())).all(1).sum())
    assert [row[-1] for row in rows] == ["complete"] * (32 - failed) + ["failed"] * failed
    second = result.compare(best, result.top(2)[1])
    text = " ".join(page.items)
    assert f"{abs(second.difference):.3g} {'lower' if mode == 'min' else 'higher'} than" in text
    assert f"{second.ci95[0]:.4g} … {second.ci95[1]:.4g}" in text
    assert f"{second.sign_flip_p_value:.3g}" in text
    assert f"{result.expected_best().held_out[-1]:.6g}" in text
    assert f"Look at the {5 * failed} failed trials" in text
    assert len(page.images) == 5


@pytest.mark.slow
def test_advice_follows_the_numbers(tmp_path):
    quiet = page_of(sampled(noise=1e-6), tmp_path)
    assert any("0 cannot be told from the best" in x for x in quiet.items)
    noisy_x = lambda hp, key: {"loss": hp["x"] + 1e-3 * jax.random.normal(key)}
    edge = rj.sweep(noisy_x, rj.grid(x=[1.0, 2.0, 3.0]), seeds=3, progress=False)
    wanted = "Try lower values of x, if there are any: the best point has the lowest of 3 values."
    assert wanted in page_of(edge, tmp_path).items
    assert "use it" not in " ".join(page_of(edge, tmp_path).items)
    loud = page_of(sampled(noise=10.0), tmp_path)
    assert any("other criteria" in x or "more seeds" in x for x in loud.items)
    assert any(x.startswith("More points may not pay") for x in loud.items)
    assert not any("One seed" in x for x in loud.items)
    one = page_of(sampled(seeds=1), tmp_path)
    assert any(x.startswith("One seed cannot tell") for x in one.items)
    assert any("at least 5 seeds" in x for x in one.items)
    assert not any("more points" in x.lower() for x in one.items)
    inside = rj.sweep(
        lambda hp, key: {"loss": (hp["x"] - 2) ** 2 + 1e-3 * jax.random.normal(key)},
        rj.grid(x=[1.0, 2.0, 3.0]), seeds=5, progress=False,
    )  # fmt: skip
    said = page_of(inside, tmp_path).items
    assert "The best point is clear, and lies inside the ranges: use it." in said


def interrupted():
    def stop(report):
        if report[0].number >= 3:
            raise KeyboardInterrupt

    train = lambda hp, key: {"loss": hp["x"] + jax.random.normal(key)}
    with pytest.raises(rj.SweepInterrupted) as caught:
        rj.sweep(
            train, rj.grid(x=[1.0, 2.0, 3.0]), seeds=2, callback=stop, batch_size=1,
            devices=jax.devices()[:1], progress=False,
        )  # fmt: skip
    return caught.value.result


def searched():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = {"x": rj.uniform(0.0, 1.0), "shape": rj.choice([(1,), (2, 3)])}
    train = lambda hp, key: {"loss": hp["x"] * sum(hp["shape"])}
    return rj.search.optimize(train, study, space, n_trials=4, progress=False)


def partly_failed():
    seed = lambda key: jax.random.key_data(key)[-1]
    train = lambda hp, key: {
        "loss": jnp.where((seed(key) == 1) & (hp["x"] < 2), jnp.nan, hp["x"] + seed(key))
    }
    return rj.sweep(train, rj.grid(x=[1.0, 2.0, 3.0]), seeds=2, progress=False)


MEMBERS = rj.grid(rate=[1e-3, 1e-2, 0.1, 0.3], decay=[0.9], centered=[False, True])
POPULATION = rj.PopulationBasedTraining(
    {"rate": rj.log_uniform(1e-3, 1.0)}, perturbation_interval=10, seed=3
)
ODD = "<b>&\"'<script>"
KINDS = {
    "halving": (lambda: sweep(points=POINTS[:9], scheduler=rj.SuccessiveHalving(3, 10)), "pruned"),
    "population": (lambda: sweep(points=MEMBERS, scheduler=POPULATION, seeds=2), "complete"),
    "interrupted": (interrupted, "unfinished"),
    "search": (searched, "complete"),
    "partly failed": (partly_failed, "complete, failed"),
    "one point": (
        lambda: rj.sweep(lambda hp, key: {"loss": hp["x"]}, rj.grid(x=[1.0]), progress=False),
        "complete",
    ),
    "all failed": (
        lambda: rj.sweep(
            lambda hp, key: {"loss": hp["x"] * jnp.nan}, rj.grid(x=[1.0, 2.0]), progress=False
        ),
        "failed",
    ),
    "a series of flags": (
        lambda: rj.sweep(noisy_flags, rj.grid(x=[1.0, 2.0]), objective="end", progress=False),
        "complete",
    ),
    "odd text": (
        lambda: rj.sweep(
            lambda hp, key: {"loss": len(hp[ODD]) + hp["y"]},
            rj.grid(**{ODD: [ODD, ODD * 2]}, y=[1.0, 2.0]),
            progress=False,
        ),
        "complete",
    ),
    "other names": (
        lambda: rj.sweep(
            lambda hp, key: {"loss": hp["x"] + hp.get("m", 0.0)},
            rj.grid(x=[1.0, 2.0]) + rj.grid(x=[1.5], m=[0.5]),
            progress=False,
        ),
        "complete",
    ),
}


def noisy_flags(hp, key):
    return {"end": hp["x"], "flag": hp["x"] > jnp.arange(3.0)}


PLAIN = ["halving", "search", "interrupted", "all failed", "one point", "partly failed"]


@pytest.mark.parametrize("kind", few(list(KINDS), PLAIN))
def test_every_kind_of_result_has_a_report(kind, tmp_path):
    make, status = KINDS[kind]
    result = make()
    page = page_of(result, tmp_path)
    rows = table(page)
    assert len(rows) == len(result.points)
    assert status in {row[-1] for row in rows}
    if kind == "odd text":
        assert ODD in {row[1] for row in rows}
    if kind == "population":
        assert any(
            "rate over time" in image["alt"] or "rate of" in image["alt"] for image in page.images
        )


@pytest.mark.slow
def test_a_loaded_result_reports_the_same(tmp_path):
    result = sampled()
    result.save(tmp_path / "saved")
    result.report(tmp_path / "one.html")
    rj.SweepResult.load(tmp_path / "saved").report(tmp_path / "two.html")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


@pytest.mark.slow
def test_a_report_of_many_points_has_the_best_thousand(tmp_path):
    points = rj.sample({"x": rj.uniform(0.0, 1.0)}, 2000)
    result = rj.sweep(lambda hp, key: {"loss": hp["x"]}, points, batch_size=500, progress=False)
    page = page_of(result, tmp_path)
    assert len(table(page)) == 1000
    assert "The 1000 worst points are left out." in (tmp_path / "report.html").read_text("utf-8")


def test_a_report_that_is_refused_writes_nothing(tmp_path):
    study = optuna.create_study(directions=["minimize", "minimize"])
    both = lambda hp, key: {"loss": hp["x"], "size": 1.0 - hp["x"]}
    result = rj.search.optimize(
        both, study, {"x": rj.uniform(0.0, 1.0)}, n_trials=2, objective=("loss", "size"),
        progress=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="objective must be one"):
        result.report(tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
    result.rescored("loss").report(tmp_path / "report.html")
