"""The arguments of a call: each is declared once, and what follows from the declarations."""

import dataclasses
import inspect
import json

import jax
import pytest

import rmsprop_jax as rj
from rmsprop_jax._tune.agreement import compared_arguments
from rmsprop_jax._tune.experiment import Experiment
from rmsprop_jax._tune.options import Agreement, Options
from rmsprop_jax._tune.run.cluster import Cluster
from rmsprop_jax._tune.storage.manifest import manifest_of, remembered_entries
from tests.support import trainings

FIELDS = {field.name: field for field in dataclasses.fields(Options)}
ONE_PROCESS = {n for n, f in FIELDS.items() if f.metadata.get("agree") is Agreement.ONE_PROCESS}
SEARCH_ONLY = ONE_PROCESS - {"executor"}


@pytest.mark.parametrize("name", FIELDS)
def test_each_argument_says_who_must_agree_and_what_a_folder_remembers(name):
    declared = FIELDS[name].metadata
    assert isinstance(declared["agree"], Agreement)
    assert isinstance(declared["remembered"], tuple)


def arguments(function):
    return set(inspect.signature(function).parameters)


def test_each_argument_of_a_call_is_a_field_and_the_other_way_round():
    assert arguments(rj.sweep) == FIELDS.keys() - SEARCH_ONLY
    of_study = {"study", "space"}
    assert arguments(rj.search.optimize) - of_study <= FIELDS.keys()
    assert arguments(rj.search.optimize) - arguments(rj.sweep) - of_study == SEARCH_ONLY


def test_the_defaults_of_a_call_are_those_of_the_fields():
    for call in (rj.sweep, rj.search.optimize):
        for name, parameter in inspect.signature(call).parameters.items():
            if parameter.default is not inspect.Parameter.empty:
                assert parameter.default == FIELDS[name].default, name


def test_processes_compare_and_folders_remember_what_the_fields_declare():
    """An argument without an entry is an error in the first call that needs it; here for all."""
    options = Options(
        train=trainings.noisy(), points=trainings.POINTS, args=(trainings.SCALE,), steps=4
    )
    experiment = Experiment.prepare(options, Cluster(jax.devices()), "sweep")
    json.dumps(experiment.decisive())
    assert list(experiment.decisive()) == compared_arguments()
    manifest = manifest_of(experiment.spec, experiment.objective.noted)
    assert list(manifest) == [*remembered_entries(), "jax"]
