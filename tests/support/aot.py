"""The programs that a sweep would run, made for devices that need not be there."""

from unittest import mock

from rmsprop_jax._tune import experiment as experiment_module
from rmsprop_jax._tune.experiment import Experiment
from rmsprop_jax._tune.options import Options
from rmsprop_jax._tune.space.points import Points


def compilers(train, points, cluster, **options):
    """For each static group what makes the programs that `rj.sweep`, called alike, would run."""
    points = points if isinstance(points, Points) else Points(points)
    options = Options(train=train, points=points, **options)
    with mock.patch.object(experiment_module, "check_reads"):  # points may have other axes
        experiment = Experiment.prepare(options, cluster, "sweep")
    experiment.shard_states()
    experiment.fit_batch_size(range(len(experiment.traces)))
    seeds = len(options.seeds)
    return [
        experiment.compiler(i, len(group.points) * seeds)
        for i, group in enumerate(experiment.spec.groups)
    ]
