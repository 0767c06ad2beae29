"""Halving, populations, schedulers of somebody's own: who goes on, with what, from where."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rmsprop_jax as rj
from rmsprop_jax._tune.schedulers import SchedulerView, explored
from tests.support.folders import content
from tests.support.tables import crossed, few
from tests.support.trainings import POINTS, SCALE, plain, sweep

OPTIONS = {"seeds": 2, "evaluate_every": 10}


@pytest.fixture(scope="module")
def full():
    """Nothing stopped: what each trial comes to at each evaluation."""
    return sweep(keep_states="all", **OPTIONS)


def survivors(full, rungs, eta):
    """Successive halving by the book: which points reach which step."""
    alive, reached = list(range(len(POINTS))), np.full(len(POINTS), 50)
    values = full.metrics["validation"].reshape(len(POINTS), 2, -1).astype(float)
    for rung in rungs:
        column = full.steps["validation"].tolist().index(rung)
        ranked = sorted(alive, key=lambda p: (values[p, :, column].mean(), p))
        alive = ranked[: max(1, -(-len(alive) // eta))]
        for point in ranked[len(alive) :]:
            reached[point] = rung
    return reached


RUNGS = {"eta 3": (3, 10, [10, 30]), "eta 2": (2, 10, [10, 20, 40])}


@pytest.mark.parametrize(("devices", "case"), crossed([1, 2], list(RUNGS), plain=["2-eta 2"]))
def test_halving_is_by_the_book(full, case, devices):
    eta, first, rungs = RUNGS[case]
    result = sweep(
        scheduler=HALVING(eta, first), devices=jax.devices()[:devices], keep_states="all",
        **OPTIONS,
    )  # fmt: skip
    reached = np.repeat(survivors(full, rungs, eta), 2)
    assert result.steps_completed.tolist() == reached.tolist()
    assert result.status.tolist() == ["complete" if t == 50 else "pruned" for t in reached]
    for trial, t in enumerate(reached):
        np.testing.assert_array_equal(
            result.metrics["loss"][trial, :t], full.metrics["loss"][trial, :t]
        )
        assert np.isnan(result.metrics["loss"][trial, t:]).all()
        assert (result.metrics["count"][trial, t:] == 0).all()
        at = full.steps["validation"].tolist().index(t)
        assert result.objective[trial] == full.metrics["validation"][trial, at]
        state = result.state(POINTS[trial // 2], trial % 2)
        assert state["count"] == t
    whole = result.by_point()
    assert np.isfinite(whole).all(1).tolist() == (reached[::2] == 50).tolist()
    best = result.best()
    assert reached[2 * result.points.index_of(best.point)] == 50
    for x, y in zip(plain(result.state(best)), plain(full.state(best)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_halving_of_a_maximum_and_its_default_rungs():
    result = sweep(scheduler=rj.SuccessiveHalving(), mode="max", **OPTIONS)
    assert result.status.tolist().count("complete") == 2 * 2  # 12, 4, 2 points
    assert sorted(set(result.steps_completed.tolist())) == [6, 18, 50]
    assert rj.SuccessiveHalving().rungs(600) == [67, 201]
    assert rj.SuccessiveHalving(2).rungs(100) == [25, 50]
    assert rj.SuccessiveHalving(4, 1).rungs(100) == [1, 4, 16, 64]


def failing(at=lambda hp, t: False):
    """loss x/t; NaN for some."""
    return rj.Training(
        lambda hp, key: 0,
        lambda hp, t, key: (
            t + 1,
            {"loss": jnp.where(at(hp, t + 1) & (jax.random.key_data(key)[0] >= 0), jnp.nan,
                               hp["x"] / (t + 1.0))},
        ),
    )  # fmt: skip


def test_points_with_a_failed_seed_rank_last_and_have_failed():
    """x = 1 would be best, and is NaN from step 3 on."""
    training = failing(lambda hp, t: (hp["x"] == 1) & (t >= 3))
    points = rj.grid(x=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    result = rj.sweep(
        training,
        points,
        steps=12,
        scheduler=rj.SuccessiveHalving(3, 4),
        progress=False,
        evaluate_every=4,
    )
    assert result.status.tolist() == ["failed", *["complete"] * 2, *["pruned"] * 3]
    assert result.steps_completed.tolist() == [4, 12, 12, 4, 4, 4]
    assert result.best().point == {"x": 2.0}
    assert np.isnan(result.objective[0])


def test_a_failed_point_survives_only_where_too_few_are_whole():
    training = failing(lambda hp, t: hp["x"] > 1)
    points = rj.grid(x=[1.0, 2.0, 3.0, 4.0])
    result = rj.sweep(
        training,
        points,
        steps=8,
        scheduler=rj.SuccessiveHalving(2, 4),
        progress=False,
        evaluate_every=4,
    )
    assert result.steps_completed.tolist() == [8, 8, 4, 4]
    assert result.status.tolist() == ["complete", "failed", "failed", "failed"]


KINDS_OF_NONE = {
    "NaN": lambda hp, t: jnp.nan,
    "infinite": lambda hp, t: jnp.inf,
    "either": lambda hp, t: jnp.where(hp["x"] > 2, jnp.nan, -jnp.inf),
}


def late(value, start):
    """An objective that is there from a step on, such as a mean of 100 episodes."""
    step = lambda hp, t, key: (t + 1, {"loss": jnp.where(t < start, value(hp, t), hp["x"])})
    return rj.Training(lambda hp, key: jnp.int32(0), step)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS_OF_NONE)
def test_where_no_objective_is_finite_nobody_is_stopped(kind, tmp_path):
    """At the rungs of 2 and 4 steps; those of 8 and 16 have numbers."""
    run = lambda path: rj.sweep(
        late(KINDS_OF_NONE[kind], 5), rj.grid(x=[4.0, 3.0, 2.0, 1.0]), steps=20, seeds=2, path=path,
        scheduler=rj.SuccessiveHalving(2, 2), progress=False,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="is not finite for any point after step 2") as caught:
        result = run(tmp_path)
    assert [one.filename for one in caught] == [__file__]
    assert result.steps_completed[::2].tolist() == [8, 8, 16, 20]
    assert result.status[::2].tolist() == ["pruned", "pruned", "pruned", "complete"]
    again = run(tmp_path)  # what was decided is not asked again, and so not warned of
    assert again.status.tolist() == result.status.tolist()


def test_where_every_point_fails_for_good_all_go_to_the_end():
    with pytest.warns(UserWarning, match="not finite for any point after step 2"):
        result = rj.sweep(
            late(KINDS_OF_NONE["NaN"], 99), rj.grid(x=[1.0, 2.0, 3.0]), steps=8,
            scheduler=rj.SuccessiveHalving(2, 2), progress=False,
        )  # fmt: skip
    assert result.status.tolist() == ["failed"] * 3
    assert result.steps_completed.tolist() == [8] * 3


def test_one_seed_that_is_finite_is_enough_to_decide():
    """Seed 1 fails in each point, seed 0 in the first."""

    def step(hp, number, key):
        fails = (number > 0) | (hp["x"] == 1)
        return number, {"loss": jnp.where(fails, jnp.nan, hp["x"])}

    training = rj.Training(
        lambda hp, key: jnp.where(jnp.all(key == jax.random.fold_in(jax.random.key(1), 0)), 1, 0),
        step,
    )
    result = rj.sweep(
        training, rj.grid(x=[1.0, 2.0, 3.0]), steps=4, seeds=2, scheduler=HALVING(3, 2),
        progress=False,
    )  # fmt: skip
    assert result.steps_completed.tolist() == [2, 2, 4, 4, 2, 2]


@pytest.mark.parametrize("ask", ["population", "own"])
def test_other_schedulers_are_asked_and_the_warning_is_the_same(ask):
    seen = []

    class Own:
        def __repr__(self):
            return "Own()"

        def rungs(self, steps):
            return [2, 4]

        def decide(self, step, view):
            seen.append(step)
            return rj.Decision(prune=[0]) if step == 4 else None

    space = {"x": rj.uniform(1.0, 9.0)}
    scheduler = (
        rj.PopulationBasedTraining(space, perturbation_interval=2) if ask == "population" else Own()
    )
    with pytest.warns(UserWarning, match="not finite for any point") as caught:
        result = rj.sweep(
            late(KINDS_OF_NONE["NaN"], 99), rj.grid(x=[1.0, 2.0, 3.0, 4.0]), steps=6,
            scheduler=scheduler, progress=False,
        )  # fmt: skip
    assert len(caught) == 1
    assert not result.is_population
    assert result.steps_completed.tolist() == [4 if seen else 6, 6, 6, 6]
    assert seen == ([2, 4] if ask == "own" else [])


def test_ties_go_to_the_lower_number():
    training = rj.Training(lambda hp, key: 0, lambda hp, s, key: (s, {"loss": 0 * hp["x"]}))
    points = rj.grid(x=[5.0, 1.0, 3.0, 2.0])
    result = rj.sweep(
        training, points, steps=8, scheduler=rj.SuccessiveHalving(2, 4), progress=False
    )
    assert result.steps_completed.tolist() == [8, 8, 4, 4]


@pytest.mark.slow
def test_nothing_compiles_whatever_the_rungs(full):
    from tests.tune.test_sweep import compiles

    sweep(scheduler=rj.SuccessiveHalving(3, 10), **OPTIONS)
    with compiles() as compiled:
        sweep(scheduler=rj.SuccessiveHalving(2, 10), **OPTIONS)
        sweep(scheduler=rj.SuccessiveHalving(5, 10), **OPTIONS)
    assert not compiled


# Populations.

HALVING, PBT_OF = rj.SuccessiveHalving, rj.PopulationBasedTraining
SPACE = {"rate": rj.log_uniform(1e-3, 1.0)}
MEMBERS = rj.grid(rate=[1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3], decay=[0.9], centered=[False, True])
PBT = rj.PopulationBasedTraining(SPACE, perturbation_interval=10, seed=3)


@pytest.fixture(scope="module")
def evolved():
    return sweep(points=MEMBERS, scheduler=PBT, keep_states="all", **OPTIONS)


def test_the_worst_copy_from_the_best_of_their_static_group(evolved):
    copies = 0
    for trial, lineage in enumerate(evolved.history):
        assert lineage[0] == (0, None, {"rate": MEMBERS[trial // 2]["rate"], "decay": 0.9})
        for start, donor, numbers in lineage[1:]:
            copies += 1
            assert start in (10, 20, 30, 40)
            assert donor % 2 == trial % 2  # seed by seed
            of = lambda t: MEMBERS[t // 2]["centered"]
            assert of(donor) == of(trial)
            column = evolved.steps["validation"].tolist().index(start)
            at = evolved.metrics["validation"].reshape(12, 2, -1)[:, :, column].mean(1)
            peers = [p for p in range(12) if of(2 * p) == of(trial)]
            ranked = sorted(peers, key=lambda p: at[p])
            assert trial // 2 == ranked[-1]
            assert donor // 2 == ranked[0]
            assert 1e-3 <= numbers["rate"] <= 1.0
            assert numbers["decay"] == 0.9
    assert copies == 4 * 2 * 2  # rungs × static groups × seeds, one of six each
    assert set(evolved.status) == {"complete"}


@pytest.mark.slow
def test_a_seed_gives_the_same_population_and_another_another(evolved):
    again = sweep(points=MEMBERS, scheduler=PBT, **OPTIONS, devices=jax.devices()[:1])
    np.testing.assert_array_equal(again.metrics["loss"], evolved.metrics["loss"])
    assert again.history == evolved.history
    other = sweep(points=MEMBERS, scheduler=dataclasses.replace(PBT, seed=4), **OPTIONS)
    assert other.history != evolved.history


def test_a_member_is_trained_again_along_its_lineage(evolved):
    """Numbers, donors and keys: the state at the end, bit for bit."""
    deepest = max(range(24), key=lambda trial: len(evolved.history[trial]))
    for trial in (deepest,):
        point, seed = MEMBERS[trial // 2], trial % 2
        state, metrics = evolved.retrain(point, seed=seed, args=(SCALE,))
        for x, y in zip(plain(state), plain(evolved.state(point, seed)), strict=True):
            np.testing.assert_array_equal(x, y)
        start = evolved.history[trial][-1][0]
        np.testing.assert_array_equal(
            metrics["loss"][start:], evolved.metrics["loss"][trial, start:]
        )
        assert metrics["loss"].shape == (50,)
        np.testing.assert_allclose(
            metrics["validation"], evolved.metrics["validation"][trial, -1], rtol=1e-6
        )


def test_tables_have_the_last_numbers(evolved):
    table = evolved.to_dataframe()
    last = [lineage[-1][2]["rate"] for lineage in evolved.history]
    assert table["rate"].tolist() == last
    assert evolved.to_xarray()["rate"].values.tolist() == last[::2]
    for refused in (evolved.sensitivity, lambda: evolved.compare(MEMBERS[0], MEMBERS[1])):
        with pytest.raises(ValueError, match=r"population.*Use"):
            refused()


@pytest.mark.slow
def test_members_that_began_equal_are_told_apart():
    """By their place: a record is of one of them."""
    result = sweep(
        points=rj.Points([dict(MEMBERS[0])] * 12), keep_states="all", seeds=[0],
        scheduler=PBT_OF(PBT.space, perturbation_interval=10), evaluate_every=10,
    )  # fmt: skip
    for record in result.top(12)[::11]:
        params = np.asarray(result.state(record)["params"])
        np.testing.assert_allclose(np.sum(params**2), record.objective, atol=5e-3)
        again, _ = result.retrain(record, args=(SCALE,))
        np.testing.assert_array_equal(np.asarray(again["params"]), params)
        assert result.schedule(record)[-1][1] == 50


def test_what_only_init_reads_is_the_donors():
    def init(hp, key):
        return hp["start"]

    def step(hp, x, key):
        return x - hp["rate"] * x - 0 * hp["own"], {"loss": x}

    points = rj.Points([{"start": s, "rate": 0.5, "own": 10.0 * s} for s in (1.0, 2.0, 3.0, 4.0)])
    scheduler = rj.PopulationBasedTraining({"rate": rj.uniform(0.1, 0.9)}, perturbation_interval=5)
    result = rj.sweep(rj.Training(init, step), points, steps=10, scheduler=scheduler,
                      progress=False)  # fmt: skip
    ((_, _, first), (start, donor, numbers)) = result.history[3]
    assert (first["start"], start, donor) == (4.0, 5, 0)
    assert numbers["start"] == 1.0
    assert numbers["own"] == 40.0
    assert numbers["rate"] != 0.5


@pytest.mark.parametrize(
    "name",
    ["uniform", "log_uniform", "one_minus", "integers", "choice", "narrow"],
)
def test_numbers_are_explored_in_their_own_coordinate(name):
    distribution = {
        "uniform": rj.uniform(-1.0, 3.0),
        "log_uniform": rj.log_uniform(1e-5, 1e-1),
        "one_minus": rj.one_minus(rj.log_uniform(1e-3, 0.5)),
        "integers": rj.integers(2, 40),
        "choice": rj.choice([0.0, 0.9, 0.95]),
        "narrow": rj.log_uniform(1.0, 1.1),
    }[name]
    rng, seen = np.random.default_rng(0), []
    value = distribution.quantile(0.3)
    for _ in range(2000):
        seen.append(explored(distribution, value, rng))
        value = seen[-1]
    low, high = distribution.quantile(0.0), distribution.quantile(1 - 1e-12)
    assert all(min(low, high) <= x <= max(low, high) for x in seen)
    assert np.ptp([distribution.unit(x) for x in seen]) > 0.6  # it goes everywhere
    if name == "log_uniform":
        near = {round(np.log(explored(distribution, 1e-3, rng) / 1e-3), 6) for _ in range(200)}
        assert {round(np.log(1.25), 6), round(-np.log(1.25), 6)} <= near
    if name == "one_minus":
        near = {round((1 - explored(distribution, 0.99, rng)) / 0.01, 6) for _ in range(200)}
        assert {1.25, 0.8} <= near
    for u in (0.0, 0.25, 0.5, 0.75, 0.999):
        assert distribution.quantile(
            min(max(distribution.unit(distribution.quantile(u)), 0), 1 - 1e-9)
        ) == pytest.approx(distribution.quantile(u), rel=1e-6)


# On disk.


def without_seconds(result):
    return {name: x.tobytes() for name, x in result.metrics.items()}, result.status.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["halving", "population"])
def test_decisions_are_on_disk_and_replayed(kind, tmp_path, full, evolved):
    """From the folder as it was after each decision, and after each file that followed it."""
    scheduler, points = (
        (PBT, MEMBERS) if kind == "population" else (rj.SuccessiveHalving(3, 10), POINTS)
    )
    whole = evolved if kind == "population" else sweep(scheduler=scheduler, **OPTIONS)
    snapshots = []

    def snapshot(report):
        snapshots.append(tmp_path / f"copy{len(snapshots)}")
        shutil.copytree(tmp_path / "run", snapshots[-1])

    run = lambda path, **more: sweep(
        points=points, scheduler=scheduler, path=path, checkpoint_seconds=0, keep_states="all",
        **OPTIONS | more,
    )  # fmt: skip
    done = run(tmp_path / "run", callback=snapshot)
    assert without_seconds(done) == without_seconds(whole)
    decisions = sorted((tmp_path / "run").glob("decision-*"))
    assert [content(f)["step"] for f in decisions] == (
        [10, 20, 30, 40] if kind == "population" else [10, 30]
    )
    assert len(snapshots) > 6
    for i, copy in enumerate(snapshots[1 :: max(1, len(snapshots) // 2)]):
        asked = []

        class Noted(type(scheduler)):
            def decide(self, step, view, asked=asked):
                asked.append(step)
                return super().decide(step, view)

            __repr__ = lambda self: repr(scheduler)

        known = [content(f)["step"] for f in copy.glob("decision-*")]
        again = sweep(
            points=points, scheduler=Noted(**vars(scheduler)), path=copy, checkpoint_seconds=0,
            keep_states="all", devices=jax.devices()[: 1 + i % 2], **OPTIONS,
        )  # fmt: skip
        assert without_seconds(again) == without_seconds(whole)
        assert again.history == done.history
        assert not set(asked) & set(known)
        for trial in (0, 5, 23):
            point, seed = points[trial // 2], trial % 2
            for x, y in zip(
                plain(again.state(point, seed)), plain(done.state(point, seed)), strict=True
            ):
                np.testing.assert_array_equal(x, y)
    loaded = rj.SweepResult.load(tmp_path / "run")
    assert without_seconds(loaded) == without_seconds(whole)
    assert loaded.history == done.history
    assert loaded.steps_completed.tolist() == done.steps_completed.tolist()
    done.save(tmp_path / "saved")
    saved = rj.SweepResult.load(tmp_path / "saved")
    for other in (saved, run(tmp_path / "saved")):
        assert without_seconds(other) == without_seconds(whole)
        assert other.history == done.history
    for x, y in zip(
        plain(saved.state(points[1], 1, like=done.state(points[1], 1))),
        plain(done.state(points[1], 1)),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_a_lost_or_damaged_decision_is_not_decided_anew(tmp_path, full):
    """Its trials went on from it, so that what it was decided on is no more."""

    def stop(report):
        if report.trials[0].step > 30:
            raise RuntimeError("enough")

    go = lambda callback=None: sweep(
        scheduler=HALVING(3, 10), path=tmp_path, checkpoint_seconds=0, callback=callback,
        **OPTIONS,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="enough"):
        go(stop)
    first, second = sorted(tmp_path.glob("decision-*"))
    for step, file in {10: first, 30: second}.items():
        text = file.read_text()
        file.write_text(text[:40])
        with pytest.raises(ValueError, match=rf"{file.name} must .*damaged.*Put a copy"):
            go()
        file.unlink()
        with pytest.raises(ValueError, match=rf"after step {step}.*missing.*Put a copy"):
            go()
        file.write_text(text)
    assert go().steps_completed.tolist() == np.repeat(survivors(full, [10, 30], 3), 2).tolist()


@pytest.mark.slow
def test_points_and_seeds_cannot_join_a_folder_with_a_scheduler(tmp_path):
    given = {"path": tmp_path, "scheduler": rj.SuccessiveHalving(3, 10), **OPTIONS}
    run = lambda **more: sweep(**given | more)
    run()
    more_points = POINTS + rj.grid(rate=[0.5], decay=[0.9], centered=[False])
    for more in ({"seeds": 3}, {"points": more_points}, {"points": POINTS[::-1]}):
        with pytest.raises(ValueError, match="decisions are about its points and seeds"):
            run(**more)
    with pytest.raises(ValueError, match="another scheduler"):
        run(scheduler=rj.SuccessiveHalving(2, 10))
    with pytest.raises(ValueError, match="another scheduler"):
        run(scheduler=None)
    with pytest.raises(ValueError, match=r"other steps.*Pruned trials cannot resume"):
        run(steps=100)


# Schedulers of somebody's own.


class Median:
    """Stops what is worse than the median; asked wherever there is something new."""

    def __init__(self):
        self.seen = []

    def decide(self, step, view):
        self.seen.append((step, view))
        worse = view.objective.mean(1) > np.nanmedian(view.objective[view.active].mean(1))
        return rj.Decision(prune=np.flatnonzero(view.active & worse).tolist())


@pytest.mark.slow
def test_a_scheduler_of_ones_own():
    scheduler = Median()
    result = sweep(scheduler=scheduler, **OPTIONS)
    assert [step for step, _ in scheduler.seen] == [10, 20, 30, 40]
    view = scheduler.seen[1][1]
    assert isinstance(view, SchedulerView)
    assert view.objective.shape == (12, 2)
    assert view.points == list(POINTS)
    assert view.mode == "min"
    assert view.active.sum() == 6
    assert np.isnan(view.objective[~view.active]).all()
    assert len(set(view.group.tolist())) == 2
    assert (result.status == "complete").sum() == 2
    assert result.best().point == sweep(**OPTIONS).best().point


def answer(what):
    class Own:
        rungs = staticmethod(lambda steps: [10])
        decide = staticmethod(lambda step, view: what)
        __repr__ = lambda self: "Own()"

    return Own()


OTHER = next(i for i, p in enumerate(POINTS) if p["centered"] != POINTS[0]["centered"])
SAME = next(i for i, p in enumerate(POINTS) if i and p["centered"] == POINTS[0]["centered"])
NONSENSE = {
    "no decision": ("stop", r"a Decision or None, got 'stop'.*Return Decision\("),
    "a number": (3, "a Decision or None, got 3"),
    "no list": (rj.Decision(prune="all"), "prune that is a list of points, got prune='all'"),
    "unknown point": (rj.Decision(prune=[99]), r"still run, got \[99\]"),
    "negative": (rj.Decision(prune=[-1]), r"still run, got \[-1\]"),
    "no number": (rj.Decision(prune=["a"]), r"still run, got \['a'\]"),
    "all": (rj.Decision(prune=list(range(12))), "leaves at least one point"),
    "no dict": (rj.Decision(copy=[1]), "copy that is a dict"),
    "no pair": (
        rj.Decision(copy={0: 1}),
        r"\(donor, numbers\) for each point in copy, got 1 for 0",
    ),
    "unknown donor": (rj.Decision(copy={0: (99, {})}), "points that continue"),
    "stopped donor": (rj.Decision(prune=[SAME], copy={0: (SAME, {})}), "points that continue"),
    "itself": (rj.Decision(copy={0: (0, {})}), "gives and takes"),
    "a chain": (rj.Decision(copy={0: (SAME, {}), SAME: (0, {})}), "gives and takes"),
    "static group": (rj.Decision(copy={0: (OTHER, {})}), "another static group"),
    "unknown number": (rj.Decision(copy={0: (SAME, {"lr": 1.0})}), r"some of \['rate', 'decay'\]"),
    "a flag": (rj.Decision(copy={0: (SAME, {"centered": True})}), "some of"),
    "no float": (rj.Decision(copy={0: (SAME, {"rate": "x"})}), "finite numbers, got"),
    "nan": (rj.Decision(copy={0: (SAME, {"rate": float("nan")})}), "finite numbers, got"),
}


ONE_OF_EACH_KIND = [
    "no decision",
    "unknown point",
    "all",
    "stopped donor",
    "a chain",
    "static group",
    "nan",
]


@pytest.mark.parametrize("case", few(list(NONSENSE), ONE_OF_EACH_KIND))
def test_nonsense_is_refused_and_what_is_finished_kept(case):
    what, message = NONSENSE[case]
    with pytest.raises(ValueError, match=message) as caught:
        sweep(scheduler=answer(what), **OPTIONS)
    assert "Own()" in str(caught.value)
    assert "at step 10" in str(caught.value)
    assert set(caught.value.result.steps_completed) == {10}


@pytest.mark.slow
def test_a_scheduler_may_stop_and_copy_at_once(full):
    decision = rj.Decision(prune=[OTHER], copy={0: (SAME, {"rate": 0.05})})
    result = sweep(scheduler=answer(decision), **OPTIONS)
    assert result.steps_completed.tolist() == [10 if t // 2 == OTHER else 50 for t in range(24)]
    assert result.history[0][1] == (10, 2 * SAME, {"rate": 0.05, "decay": POINTS[0]["decay"]})
    others = [t for t in range(24) if t // 2 not in (0, OTHER)]
    np.testing.assert_array_equal(result.metrics["loss"][others], full.metrics["loss"][others])


@pytest.mark.slow
def test_none_is_nothing(full):
    result = sweep(scheduler=answer(None), **OPTIONS)
    np.testing.assert_array_equal(result.metrics["loss"], full.metrics["loss"])


BAD = {
    "a class": (lambda: sweep(scheduler=rj.SuccessiveHalving), "an object with decide"),
    "a word": (lambda: sweep(scheduler="halving"), "an object with decide"),
    "eta": (lambda: HALVING(1), "reduction_factor must be a whole number of at least 2, got 1"),
    "first": (lambda: rj.SuccessiveHalving(min_steps=0), "min_steps must be"),
    "first rung": (lambda: sweep(scheduler=HALVING(min_steps=50)), r"first rung.*50.*min_steps="),
    "no space": (lambda: rj.PopulationBasedTraining({}), "at least one distribution"),
    "no distribution": (lambda: rj.PopulationBasedTraining({"rate": [1]}), r"'rate' .*\[1\]"),
    "static": (lambda: PBT_OF({"n": rj.static(rj.integers(1, 2))}), "'n' .*cannot change"),
    "words": (lambda: rj.PopulationBasedTraining({"n": rj.choice(["a"])}), "'n' .*cannot change"),
    "every": (lambda: PBT_OF(SPACE, perturbation_interval=0), "perturbation_interval must be"),
    "fraction": (lambda: PBT_OF(SPACE, quantile_fraction=0.6), "quantile_fraction must be"),
    "late": (lambda: sweep(scheduler=PBT_OF(SPACE, perturbation_interval=50)), "smaller pert"),
    "unread": (
        lambda: rj.sweep(
            rj.Training(lambda hp, k: hp["x"], lambda hp, s, k: (s, {"loss": s + hp["y"]})),
            rj.grid(x=[1.0, 2.0, 3.0, 4.0], y=[1.0]), steps=10, progress=False,
            scheduler=rj.PopulationBasedTraining({"x": rj.uniform(0, 1)}),
        ),
        "space of .*'x', but step never reads it",
    ),
    "unknown": (
        lambda: sweep(scheduler=rj.PopulationBasedTraining({"lr": rj.uniform(0, 1)})),
        r"space of .*got 'lr'\. Rename it",
    ),
    "few": (lambda: sweep(points=POINTS[:6], scheduler=PBT), "at least 4 points of each"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_schedulers_are_refused(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_schedulers_print_their_settings_in_full():
    assert repr(rj.SuccessiveHalving()) == "SuccessiveHalving(reduction_factor=3, min_steps=None)"
    assert "log_uniform(0.001, 1.0)" in repr(PBT)
    assert repr(PBT) == repr(dataclasses.replace(PBT))


class Patient:
    """A scheduler that is asked at each evaluation step, and decides nothing until `when`."""

    def __init__(self, when=None):
        self.when = when

    def fingerprint(self):
        return f"Patient({self.when})"

    def decide(self, step, view):
        return rj.Decision(prune=[1]) if step == self.when else None


@pytest.mark.parametrize(("interrupted", "when"), crossed([10, 20], [None, 15]))
def test_a_checkpoint_is_written_whatever_was_decided(when, interrupted, tmp_path):
    """After a kill at an evaluation step, at most the steps since the one before run again."""
    asked = []

    def batches(t):
        asked.append(t)
        return np.float32(t)

    def step(hp, state, key, batch):
        return state + hp["rate"] * batch, {"loss": state}

    points, training = rj.grid(rate=[0.1, 0.2]), rj.Training(lambda hp, key: 0.0, step)
    options = {"steps": 30, "evaluate_every": 5, "batches": batches, "progress": False}
    options |= {"scheduler": Patient(when)}

    def stop(report):
        if any(trial.step >= interrupted for trial in report):
            raise KeyboardInterrupt

    on_disk = {"path": tmp_path, "checkpoint_seconds": 0}
    with pytest.raises(rj.SweepInterrupted):
        rj.sweep(training, points, callback=stop, **on_disk, **options)
    asked.clear()
    again = rj.sweep(training, points, **on_disk, **options)
    assert min(set(asked) - {1}) == interrupted - 4  # the first is asked for its shape
    whole = rj.sweep(training, points, **options)
    np.testing.assert_array_equal(again.metrics["loss"], whole.metrics["loss"])


def test_a_population_does_not_cut_its_numbers_to_ints():
    """On an axis of ints 0.3 would be 0, for ever and in silence."""
    ran = []
    training = rj.Training(lambda hp, key: 1.0, lambda hp, s, key: (s - hp["wd"] * s, {"loss": s}))
    run = lambda values, scheduler: rj.sweep(
        training, rj.grid(wd=values), steps=10, scheduler=scheduler, progress=False,
        callback=ran.append,
    )  # fmt: skip
    spread = rj.PopulationBasedTraining({"wd": rj.uniform(0.0, 0.5)}, perturbation_interval=5)
    with pytest.raises(ValueError, match=r"'wd' must be an axis of floats.*wd=\[0\.0\]"):
        run([0, 0, 0, 0], spread)
    assert ran == []
    result = run([0.0, 0.0, 0.0, 0.0], spread)
    assert any(len(lineage) > 1 for lineage in result.history)
    whole = run(
        [1, 2, 3, 4], rj.PopulationBasedTraining({"wd": rj.integers(1, 9)}, perturbation_interval=5)
    )
    assert {type(part[2]["wd"]) for lineage in whole.history for part in lineage} == {int}


@pytest.mark.parametrize("answer", [1.9, np.float32(0.5)])
def test_an_answer_that_is_not_whole_is_refused_on_an_axis_of_ints(answer):
    class Own:
        def __repr__(self):
            return "Own()"

        def decide(self, step, view):
            return rj.Decision(copy={1: (0, {"wd": answer})})

    training = rj.Training(lambda hp, key: 1.0, lambda hp, s, key: (s * hp["wd"], {"loss": s}))
    with pytest.raises(ValueError, match=r"whole numbers.*'wd'.*ints.*as floats, such as wd="):
        rj.sweep(training, rj.grid(wd=[1, 2]), steps=4, scheduler=Own(), progress=False)


def test_numpy_numbers_are_numbers(tmp_path):
    """In a scheduler's answer, in `checkpoint_seconds`, and in `fraction`."""
    assert (
        rj.PopulationBasedTraining(
            {"rate": rj.uniform(0.1, 1.0)}, quantile_fraction=np.float32(0.5)
        ).quantile_fraction
        == 0.5
    )

    class Own:
        def __repr__(self):
            return "Own()"

        def decide(self, step, view):
            return rj.Decision(copy={np.int64(1): (np.int32(0), {"rate": np.float32(0.5)})})

    training = rj.Training(lambda hp, key: 1.0, lambda hp, s, key: (s * hp["rate"], {"loss": s}))
    result = rj.sweep(
        training, rj.grid(rate=[0.25, 1.0]), steps=4, evaluate_every=2, scheduler=Own(),
        progress=False, path=tmp_path, checkpoint_seconds=np.float64(0),
    )  # fmt: skip
    assert result.history[1][-1][2] == {"rate": 0.5}
