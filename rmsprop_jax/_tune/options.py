"""The arguments of `sweep` and of `search.optimize`, validated once.

Each field declares which processes of a cluster must pass the same value, and which entries of a
folder's manifest follow from the value. `agreement.py` and `storage/manifest.py` read these
declarations.
"""

import dataclasses
import enum
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from rmsprop_jax._tune.executors import Executor, copied, require_extra
from rmsprop_jax._tune.schedulers import Scheduler
from rmsprop_jax._tune.space.seeds import checked_seeds
from rmsprop_jax._tune.space.values import PyTree, is_int, is_real
from rmsprop_jax._tune.storage.paths import local_folder
from rmsprop_jax._tune.trial_mesh import TRIAL
from rmsprop_jax._tune.trials.objective import Objective
from rmsprop_jax._tune.trials.progress import Report


class Agreement(enum.Enum):
    """The rule by which several processes of one call agree on an argument."""

    ALL = "every process must pass the same value"
    LEADER = "the leader's value counts, and the other processes need not pass one"
    ONE_PROCESS = "only a call in one process has the argument"


def argument(
    default: Any = dataclasses.MISSING,
    *,
    agree: Agreement,
    remembered: tuple[str, ...] = (),
    stepwise: bool = False,
) -> Any:
    """Declare a field of `Options`.

    Args:
      default: the value if a call does not pass the argument.
      agree: the rule by which several processes agree on the value.
      remembered: the entries of a folder's manifest that follow from the value. `manifest.extended`
        says in which of them a later call may differ.
      stepwise: whether only a `Training` takes the argument.
    """
    declared = {"agree": agree, "remembered": remembered, "stepwise": stepwise}
    return dataclasses.field(default=default, metadata=declared)


ALL, LEADER, ONE_PROCESS = Agreement


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of a call; `sweep` and `search.optimize` document them.

    Raises:
      ValueError: for a value that no call takes.
    """

    train: Any = argument(
        agree=ALL,
        remembered=("training", "metrics", "lengths", "dtypes", "programs", "constants"),
    )
    points: Any = argument((), agree=ALL, remembered=("points", "static", "drawn"))
    seeds: Any = argument(1, agree=ALL, remembered=("seeds",))
    objective: Objective | tuple[Objective, ...] = argument(
        "loss", agree=ALL, remembered=("objective",)
    )
    mode: str | tuple[str, ...] = argument("min", agree=ALL, remembered=("mode",))
    args: tuple[Any, ...] = argument((), agree=ALL, remembered=("args",))
    batch_size: int | str = argument("auto", agree=ALL)
    devices: Sequence[Any] | None = argument(None, agree=ALL)
    mesh: Mesh | None = argument(None, agree=ALL)
    executor: Any = argument(None, agree=ONE_PROCESS)
    path: str | os.PathLike[str] | None = argument(None, agree=ALL)
    progress: bool = argument(True, agree=LEADER)
    record_every: int | Mapping[str, int] = argument(1, agree=ALL, remembered=("record_every",))
    callback: Callable[[Report], Any] | None = argument(None, agree=LEADER)
    steps: int | None = argument(None, agree=ALL, remembered=("training",), stepwise=True)
    evaluate_every: int | None = argument(None, agree=ALL, remembered=("training",), stepwise=True)
    scheduler: Scheduler | None = argument(None, agree=ALL, remembered=("training",), stepwise=True)
    keep_states: int | str = argument(1, agree=ALL, stepwise=True)
    batches: Callable[[int], Any] | None = argument(None, agree=ALL, stepwise=True)
    batch_sharding: PyTree = argument(None, agree=ALL, stepwise=True)
    checkpoint_seconds: float = argument(30, agree=ALL)
    timeout: float | None = argument(None, agree=ALL)
    # Arguments of `search.optimize` only.
    n_trials: int = argument(1, agree=ONE_PROCESS)
    max_concurrent_trials: int | None = argument(None, agree=ONE_PROCESS)
    study_callbacks: Sequence[Callable[..., Any]] = argument((), agree=ONE_PROCESS)
    catch: Any = argument((), agree=ONE_PROCESS)
    attributes: Mapping[str, Objective] | None = argument(None, agree=ONE_PROCESS)

    def __post_init__(self) -> None:
        change = lambda name, value: object.__setattr__(self, name, value)
        if self.path is not None:
            change("path", local_folder(self.path))
        change("seeds", checked_seeds(self.seeds))
        check_args(self.args)
        if self.batch_size != "auto":
            change("batch_size", count("batch_size", self.batch_size, ' or "auto"'))
        if self.callback is not None and not callable(self.callback):
            raise ValueError(
                f"callback must be a function of a report, got {self.callback!r}. Pass "
                "callback=lambda report: print(report[0].metrics)."
            )
        if self.timeout is not None and (not is_real(self.timeout) or not self.timeout > 0):
            raise ValueError(
                f"timeout must be a number of seconds above 0, or None, got {self.timeout!r}. "
                "Pass timeout=3600."
            )
        self._check_training()
        if self.devices is not None:
            change("devices", checked_devices(self.devices))
        if self.mesh is not None:
            self._check_mesh(self.mesh)
        if self.executor is not None:
            self._check_executor(change)
        if self.batch_sharding is not None and (self.mesh is None or self.batches is None):
            raise ValueError(
                "batch_sharding must come with a mesh and batches, got "
                f"mesh={self.mesh} and batches={self.batches}. Leave batch_sharding out."
            )
        self._check_search(change)

    def _check_mesh(self, mesh: Any) -> None:
        example = 'jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("trial", "model"))'
        if not isinstance(mesh, Mesh) or TRIAL not in mesh.axis_names:
            raise ValueError(
                f'mesh must be a jax.sharding.Mesh with an axis named "{TRIAL}", got {mesh!r}. '
                f"Pass, for example, mesh={example}."
            )
        if self.devices is not None:
            raise ValueError(
                "mesh and devices must not be passed together, because a mesh has its devices, got "
                f"{mesh} and {self.devices}. Leave devices out."
            )
        try:
            checked_devices(mesh.devices.flatten().tolist())
        except ValueError as error:
            raise ValueError(f"mesh must be of devices on which trials can run: {error}") from None

    def _check_executor(self, change: Callable[[str, Any], None]) -> None:
        for name in ("mesh", "devices"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"executor and {name} must not be passed together, because the workers of an "
                    f"executor have their own devices, got {getattr(self, name)}. Leave {name} out."
                )
        if not isinstance(self.executor, Executor):
            change("executor", Executor(self.executor))
        require_extra()
        if callable(self.batches):
            copied(self.batches)

    def _check_training(self) -> None:
        seconds, keep, scheduler = self.checkpoint_seconds, self.keep_states, self.scheduler
        if not is_real(seconds) or not seconds >= 0:
            raise ValueError(
                f"checkpoint_seconds must be a number of at least 0, got {seconds!r}. Pass "
                "checkpoint_seconds=30."
            )
        if keep != "all" and (not is_int(keep) or int(keep) < 0):
            raise ValueError(
                f'keep_states must be an int of at least 0, or "all", got {keep!r}. Pass '
                "keep_states=1."
            )
        if scheduler is None:
            return
        if isinstance(scheduler, type) or not callable(getattr(scheduler, "decide", None)):
            raise ValueError(
                f"scheduler must be an object with decide(step, view), got {scheduler!r}. Pass "
                "scheduler=rj.SuccessiveHalving() or rj.PopulationBasedTraining(space)."
            )

    def _check_search(self, change: Callable[[str, Any], None]) -> None:
        change("n_trials", count("n_trials", self.n_trials))
        if self.max_concurrent_trials is not None:
            concurrent = count("max_concurrent_trials", self.max_concurrent_trials)
            change("max_concurrent_trials", concurrent)
        callbacks = self.study_callbacks
        if not isinstance(callbacks, list | tuple) or not all(map(callable, callbacks)):
            raise ValueError(
                "study_callbacks must be a list of functions of a study and a frozen trial, got "
                f"{callbacks!r}. Pass study_callbacks=[callback]."
            )
        catch: Any = self.catch
        catch = tuple(catch) if hasattr(catch, "__iter__") else (catch,)
        if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in catch):
            raise ValueError(
                f"catch must be an exception class, or a tuple of exception classes, got "
                f"{self.catch!r}. Pass catch=(ValueError,)."
            )
        change("catch", catch)

    def schedule_of(self, caller: str) -> tuple[int, int, tuple[int, ...]]:
        """Return the steps of a `Training`, the steps between evaluations, and the rungs.

        Args:
          caller: the call that a user made, for errors.
        """
        if self.steps is None:
            raise ValueError(
                f"steps must be given for a Training, got None. Call {caller}(training, ..., "
                "steps=1000)."
            )
        steps = count("steps", self.steps)
        every = -(-steps // 20)
        if self.evaluate_every is not None:
            every = min(count("evaluate_every", self.evaluate_every), steps)
        rungs: list[int] = []
        if self.scheduler is not None:
            if callable(rungs_of := getattr(self.scheduler, "rungs", None)):
                listed: Any = rungs_of(steps)
                rungs = list(listed)
            else:  # at each evaluation step
                rungs = list(range(every, steps, every))
            if not all(is_int(rung) and 0 < rung < steps for rung in rungs):
                raise ValueError(
                    f"the scheduler's rungs must be whole numbers between 1 and {steps - 1}, got "
                    f"{rungs}. Return such steps from rungs(steps)."
                )
        return steps, every, tuple(sorted(set(map(int, rungs))))

    def refuse_stepwise(self) -> None:
        """Refuse arguments that only a `Training` takes.

        Raises:
          ValueError: if the call passes one of them.
        """
        stepwise = [field for field in dataclasses.fields(self) if field.metadata["stepwise"]]
        given = [field.name for field in stepwise if getattr(self, field.name) != field.default]
        if given:
            raise ValueError(
                f"{', '.join(given)} must be left out if train is a function, which runs as a "
                "whole. Pass a Training, rj.Training(init, step), or leave them out."
            )


def check_args(args: Any) -> None:
    """Raise ValueError unless `args` is a tuple."""
    if not isinstance(args, tuple):
        raise ValueError(f"args must be a tuple, got a {type(args).__name__}. Pass args=(data,).")


def count(name: str, value: Any, alternative: str = "") -> int:
    """Return an int of at least 1; ValueError for anything else."""
    if not is_int(value) or value < 1:
        raise ValueError(
            f"{name} must be an int of at least 1{alternative}, got {value!r}. Pass {name}=1."
        )
    return int(value)


def checked_devices(devices: Any) -> list[Any]:
    """Return the devices as a list; ValueError for devices that cannot run trials."""
    listed = list(devices) if isinstance(devices, Iterable) else [devices]
    if not listed:
        raise ValueError("devices must not be empty, got []. Leave the argument out to use all.")
    if not all(isinstance(device, jax.Device) for device in listed):
        fix = f"jax.devices({devices!r})" if isinstance(devices, str) else "jax.devices()[:1]"
        raise ValueError(f"devices must be JAX devices, got {devices!r}. Pass devices={fix}.")
    if len(set(listed)) < len(listed):
        raise ValueError(
            f"devices must differ from one another, got {listed}. List each device once."
        )
    if away := [device for device in listed if not _is_there(device)]:
        raise ValueError(
            f"devices must exist in this process, got {away}, which are only described, for a "
            "topology to compile for. Pass some of jax.devices()."
        )
    return listed


def _is_there(device: Any) -> bool:
    try:
        return device in jax.devices(device.platform)
    except RuntimeError:  # JAX has no such platform here
        return False
