"""`rj.sweep` on a machine with another clock, other memory, or other limits of a wave."""

from rmsprop_jax._tune.api import run_sweep
from rmsprop_jax._tune.jax_settings import own_settings
from rmsprop_jax._tune.options import Options
from rmsprop_jax._tune.run.machine import Machine
from rmsprop_jax._tune.space.points import Points


def sweep(train, points, machine: Machine, **options):
    """Run a sweep as `rj.sweep` does, on this machine and without a bar."""
    points = points if isinstance(points, Points) else Points(points)
    options = {"progress": False} | options
    start = machine.clock()
    with own_settings("sweep"):
        return run_sweep(Options(train=train, points=points, **options), machine, start)
