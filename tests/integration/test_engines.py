"""One call on every engine: process pools, Dask, and Ray.

`tests/tune/run/test_executors.py` tests the rules on process pools. Here each engine runs the same
table of cases, and each result must equal that of a local sweep bit for bit.
"""

import concurrent.futures
import contextlib
import os
import random
import signal
import sys
import threading

import jax.numpy as jnp
import numpy as np
import pytest

import rmsprop_jax as rj
from tests.support import executors
from tests.support.trainings import SCALE, noisy
from tests.tune.storage.test_store import same

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # Of the engines themselves: sockets and processes that they close later, and their own advice.
    pytest.mark.filterwarnings("ignore"),
]

POINTS = rj.grid(rate=[1e-3, 1e-2, 3e-2, 1e-1], decay=[0.9, 0.99], centered=[False])
OPTIONS = {"objective": "validation", "args": (SCALE,), "steps": 40, "seeds": 2}


class Processes:
    """A process pool, made again by its function."""

    task_seconds = 0.05

    def __init__(self):
        self._made = []

    def make(self):
        self._made.append(executors.pool())
        return self._made[-1]

    def workers(self):
        return list(self._made[-1]._processes or ())

    def late(self, path):
        """Return a pool whose second worker begins ten seconds after the first."""
        return executors.pool(initializer=executors.late, initargs=(str(path),))

    def close(self):
        pass


class Dask:
    """Dask with two workers on this machine."""

    task_seconds = 0.05

    def __init__(self):
        distributed = pytest.importorskip("distributed")
        import dask

        # By default, LocalCluster removes a worker that is absent 15 s after it was lost, also if
        # the worker came back in the meantime and was lost again.
        dask.config.set({"distributed.deploy.lost-worker-timeout": 600})
        options = {"threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
        self._cluster = distributed.LocalCluster(n_workers=2, **options)
        self._client = distributed.Client(self._cluster)

    def make(self):
        return self._client.get_executor()

    def workers(self):
        """Return the workers that have begun, because Dask does not replace others that die."""
        processes = [nanny.process for nanny in self._cluster.workers.values()]
        return [one.pid for one in processes if one is not None and one.status.name == "running"]

    def late(self, path):
        """Return an executor with one worker; the second one begins while tasks run."""
        self._cluster.scale(1)
        threading.Timer(3, self._cluster.scale, (2,)).start()
        return self._client.get_executor()

    def close(self):
        self._client.close()
        self._cluster.close()


class RayExecutor:
    """Ray as an executor."""

    def submit(self, function, /, *args):
        import ray

        return ray.remote(function).remote(*args).future()


class Ray:
    """Ray with two workers on this machine."""

    task_seconds = 0.05

    def __init__(self):
        self._ray = pytest.importorskip("ray")
        self._ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)

    def make(self):
        return RayExecutor()

    def workers(self):
        process = self._ray.remote(lambda: os.getpid())  # Ray refuses a function in C
        return self._ray.get([process.remote() for _ in range(4)])

    late = None  # n/a: a machine joins by `ray start`, a command of its own

    def close(self):
        self._ray.shutdown()


@pytest.fixture(scope="module", params=[Processes, Dask, Ray], ids=["processes", "dask", "ray"])
def using(request):
    engine = request.param()
    yield engine
    engine.close()


def sweep(using, training=None, make=None, **options):
    executor = make or (using.make if using else None)
    if executor is not None:
        executor = rj.Executor(executor, workers=2, task_seconds=using.task_seconds, retries=10)
    given = OPTIONS | {"executor": executor, "progress": False} | options
    return rj.sweep(training or noisy(), POINTS, **given)


def function(hp, key):
    """Training whose trials with a decay of 0.99 fail."""
    loss = jnp.where(hp["decay"] > 0.95, jnp.nan, hp["rate"])
    return {"loss": loss * jnp.arange(5.0) + 0 * jnp.float32(hp["centered"])}


def plain(using):
    options = dict.fromkeys(("steps", "args"), None) | {"steps": None, "args": ()}
    return sweep(using, function, **options, objective="loss", seeds=1)


SCHEDULERS = {
    "training": None,
    "halving": rj.SuccessiveHalving(min_steps=5),
    "population": rj.PopulationBasedTraining({"rate": rj.log_uniform(1e-3, 1e-1)}, 10),
}


@pytest.fixture(scope="module")
def local():
    return {name: sweep(None, scheduler=scheduler) for name, scheduler in SCHEDULERS.items()}


def test_a_function_with_failing_trials(using):
    result = plain(using)
    same(result, plain(None))
    assert set(result.status) == {"complete", "failed"}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_training(name, using, local, tmp_path):
    same(sweep(using, scheduler=SCHEDULERS[name], path=tmp_path / "a"), local[name])
    same(sweep(None, scheduler=SCHEDULERS[name], path=tmp_path / "a"), local[name])  # nothing left


def test_a_folder_is_continued(using, local, tmp_path):
    """By an executor after a local call that stopped early, and the other way round."""
    for first, last in ((None, using), (using, None)):
        path = tmp_path / ("executor last" if last else "executor first")
        reports = []

        def stops(report, reports=reports):
            reports.append(report)
            if len(reports) == 5:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            sweep(first, callback=stops, path=path, checkpoint_seconds=0)
        same(sweep(last, path=path), local["training"])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_lost_worker(name, using, local):
    reports = []

    def kills(report):
        reports.append(report)
        if len(reports) == 4:
            os.kill(using.workers()[0], signal.SIGKILL)

    same(sweep(using, scheduler=SCHEDULERS[name], callback=kills), local[name])
    assert len(reports) > 4


def test_a_late_worker(using, local, tmp_path):
    if using.late is None:
        pytest.skip("n/a: a machine joins Ray by a command of its own")
    same(sweep(using, make=lambda: using.late(tmp_path / "first")), local["training"])


class UnpicklableError(Exception):
    def __init__(self, first, second):
        super().__init__(first)


def ends(t):
    sys.exit("out")


def raises(t):
    raise UnpicklableError("odd", lambda: 0)


@pytest.mark.parametrize(("end", "says"), [(ends, "SystemExit: out"), (raises, "Unpicklable")])
def test_an_error_of_the_data(end, says, using, local):
    """The error names the trial, and the workers are as well as before."""
    zeros = np.zeros(1, np.float32)
    batches = lambda t: end(t) if t == 20 else zeros
    training = noisy()
    step = lambda hp, state, key, batch, *args: training.step(hp, state, key, *args)
    fed = rj.Training(training.init, step, training.evaluate)
    with pytest.raises(RuntimeError, match=f"the task of trial.*{says}"):
        sweep(using, fed, batches=batches)
    same(sweep(using), local["training"])


@pytest.mark.parametrize("seed", range(4))
def test_workers_killed_at_random_moments(seed, using, local):
    """Five in each sweep: twenty of a process pool, ten of Dask."""
    if isinstance(using, Ray) or (isinstance(using, Dask) and seed > 1):
        pytest.skip("n/a: process pools are killed twenty times, Dask's workers ten times")
    moments, begun, over, killed = random.Random(seed), threading.Event(), threading.Event(), []

    def kill():
        """Kill workers while a sweep runs, after its first report."""
        while len(killed) < 5 and not over.wait(moments.uniform(0.3, 3)):
            begun.wait()
            if workers := using.workers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(moments.choice(sorted(workers)), signal.SIGKILL)
                    killed.append(workers)

    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        done = threads.submit(kill)
        try:
            while len(killed) < 5:  # a sweep is short: several, one after the other
                assert not done.done()
                result = sweep(using, callback=lambda report: begun.set())
                begun.clear()
                same(result, local["training"])
        finally:
            over.set()
            begun.set()
    done.result()
