"""What a callback hears: each trial's status and series, the begin and the end of a call."""

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest

import rmsprop_jax as rj
from tests.support.tables import few
from tests.support.trainings import noisy, sweep


class Ear:
    """A callback that notes what it hears, and raises at its `stop`-th report."""

    def __init__(self, stop=None, error=RuntimeError):
        self.sweeps, self.started, self.reports, self.closed = [], [], [], 0
        self._stop, self._error = stop, error

    def start(self, sweep, report):
        self.sweeps.append(sweep)
        self.started.append(report)

    def __call__(self, report):
        self.reports.append(report)
        if len(self.reports) == self._stop:
            raise self._error("enough")

    def pruned(self, report):
        assert {one.status for one in report} <= {"pruned", "failed"}
        self.reports.append(report)

    def close(self):
        self.closed += 1

    def of(self, number):
        """The reports of a trial, in order."""
        return [one for report in self.reports for one in report if one.number == number]


def failing(hp, key):
    steps = jnp.arange(1.0, 6.0)
    return {"loss": jnp.where(hp["x"] > 2.5, jnp.nan, hp["x"] * steps), "end": hp["x"]}


MEMBERS = rj.grid(rate=[1e-3, 1e-2, 0.1, 0.3], decay=[0.9], centered=[False, True])
POPULATION = rj.PopulationBasedTraining(
    {"rate": rj.log_uniform(1e-3, 1.0)}, perturbation_interval=10, seed=3
)
KINDS = {
    "function": lambda **o: rj.sweep(failing, rj.grid(x=[1.0, 2.0, 3.0]), progress=False, **o),
    "recorded": lambda **o: sweep(points=MEMBERS[:3], record_every=7, evaluate_every=20, **o),
    "halving": lambda **o: sweep(points=MEMBERS, scheduler=rj.SuccessiveHalving(3, 10), **o),
    "population": lambda **o: sweep(points=MEMBERS, scheduler=POPULATION, **o),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_trial_ends_once_with_its_status_and_its_series(kind):
    ear = Ear()
    result = KINDS[kind](callback=ear)
    assert len(ear.started[0]) == 0
    assert ear.closed == 1
    for number in range(len(result)):
        heard = ear.of(number)
        assert [one.status for one in heard[:-1]] == ["unfinished"] * (len(heard) - 1)
        assert heard[-1].status == result.status[number]
        for one in heard:
            for name, steps in result.steps.items():
                at, values = one.series[name]
                valid = result.valid[name][number] & (steps <= one.step)
                np.testing.assert_array_equal(at, steps[valid])
                np.testing.assert_array_equal(values, result.metrics[name][number, valid])
                with pytest.raises(ValueError, match="read-only"):
                    values[:] = 0
    if kind == "function":
        assert result.status.tolist() == ["complete", "complete", "failed"]
    if kind == "halving":
        assert (result.status == "pruned").any()


@pytest.mark.slow
def test_a_function_hears_of_each_step_of_a_trial_once():
    heard = []
    KINDS["halving"](callback=lambda report: heard.extend((one.number, one.step) for one in report))
    assert len(heard) == len(set(heard))


def test_a_search_reports_the_trials_that_its_pruner_ends():
    space = {
        "rate": rj.log_uniform(1e-3, 1.0),
        "decay": rj.choice([0.9]),
        "centered": rj.choice([True]),
    }
    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=10),
    )
    ear = Ear()
    result = rj.search.optimize(
        noisy(), study, space, n_trials=12, steps=50, evaluate_every=10, objective="validation",
        args=(jnp.float32(2.0),), max_concurrent_trials=3, progress=False, callback=ear,
    )  # fmt: skip
    assert (result.status == "pruned").any()
    assert [ear.of(i)[-1].status for i in range(12)] == result.status.tolist()
    assert ear.closed == 1


# The reports until something is on disk, and then some.
STOP = {"function": 2, "recorded": 8, "halving": 13, "population": 12}


RESUMED = {
    f"{kind}-{error.__name__}": (kind, error)
    for kind in KINDS
    for error in (RuntimeError, KeyboardInterrupt)
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "error"),
    few(RESUMED, ["function-KeyboardInterrupt", "halving-RuntimeError"], unpack=True),
)
def test_a_resumed_call_begins_with_the_trials_that_the_folder_has(kind, error, tmp_path):
    options = {"path": tmp_path, "checkpoint_seconds": 0, "devices": jax.devices()[:1]}
    first, second = Ear(STOP[kind], error), Ear()
    with pytest.raises(error):
        KINDS[kind](callback=first, **options)
    result = KINDS[kind](callback=second, **options)
    assert first.closed == second.closed == 1
    assert first.sweeps == second.sweeps
    (begun,) = second.started
    assert begun
    known = {one.number: one for one in begun}
    for number in range(len(result)):
        heard = [known[number]] if number in known else []
        heard += second.of(number)
        assert heard[-1].status == result.status[number]
        if number in known and known[number].status != "unfinished":
            assert not second.of(number)
        for name, (at, values) in heard[0].series.items():
            recorded = np.isin(result.steps[name], at)
            np.testing.assert_array_equal(values, result.metrics[name][number, recorded])


@pytest.mark.slow
def test_a_finished_folder_is_told_whole_and_a_call_without_a_folder_has_an_id_of_its_own(tmp_path):
    KINDS["halving"](path=tmp_path)
    ear = Ear()
    result = KINDS["halving"](path=tmp_path, callback=ear)
    assert not ear.reports
    assert [one.status for one in ear.started[0]] == result.status.tolist()
    others = Ear(), Ear()
    for other in others:
        KINDS["function"](callback=other)
    assert len({*ear.sweeps, *others[0].sweeps, *others[1].sweeps}) == 3


def test_a_call_that_is_refused_tells_nothing(tmp_path):
    KINDS["function"](path=tmp_path)
    ear = Ear()
    with pytest.raises(ValueError, match="leaves out"):
        rj.sweep(failing, rj.grid(x=[1.0]), path=tmp_path, progress=False, callback=ear)
    assert not ear.sweeps
    assert not ear.closed
