"""A study of Optuna's: what is asked of it and told, and that its database may be away."""

import contextlib
import copy
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import optuna
from optuna.exceptions import (
    ExperimentalWarning,
    StorageInternalError,
    UpdateFinishedTrialError,
)
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from rmsprop_jax._tune.search.space import Axis, params_of

T = TypeVar("T")

PATIENCE = 300.0  # seconds for which a database may be away
LONGEST_PAUSE = 5.0  # seconds between two attempts
# https://www.sqlite.org/rescode.html: BUSY, LOCKED, IOERR, CANTOPEN (a network's disk), PROTOCOL.
SQLITE_PASSES = {5, 6, 10, 14, 15}
# https://www.postgresql.org/docs/current/errcodes-appendix.html: read-only, authorization, no such
# database, no such table or right, a full disk.
POSTGRESQL_STAYS = ("25", "28", "3D", "42", "53100")
# https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html: the same.
MYSQL_STAYS = {1021, 1044, 1045, 1049, 1114, 1142, 1146, 1290, 1836}


class LostError(Exception):
    """The study knows this trial as finished: another worker took it for dead."""


class StudyClient:
    """A study, as this worker writes to it.

    Args:
      study: Optuna's.
      axes: what is asked of it.
      callbacks: as `study.optimize` takes them.
    """

    def __init__(
        self,
        study: optuna.Study,
        axes: dict[str, Axis],
        callbacks: Sequence[Callable[[optuna.Study, Any], None]],
    ):
        self._study, self._axes, self._callbacks = study, axes, callbacks
        with_parameters(study.sampler, axes)  # refuses names before anything is asked
        self._storage: Any = study._storage
        # Of the storages only a database's has one.
        interval = getattr(self._storage, "get_heartbeat_interval", lambda: None)
        self._interval: float | None = interval()
        self._alive: set[int] = set()
        self._told: set[int] = set()
        self._patience = PATIENCE
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """While it is open, a callback may stop the study, and trials are said to be alive."""
        loop, over = self._study._thread_local, threading.Event()
        if loop.in_optimize_loop:
            raise RuntimeError(
                "search.optimize was called inside an objective or a callback of study.optimize: "
                "call it outside."
            )
        thread = threading.Thread(target=self._beat, args=(over,), daemon=True)
        loop.in_optimize_loop, self._study._stop_flag = True, False
        if self._interval is not None:
            thread.start()
        try:
            yield
        finally:
            over.set()
            if self._interval is not None:
                thread.join()
            loop.in_optimize_loop = False
            self._storage.remove_session()

    @property
    def is_stopped(self) -> bool:
        """Whether a callback stopped the study."""
        return self._study._stop_flag

    @property
    def may_prune(self) -> bool:
        """Whether the study's pruner can end a trial. Asking it costs a database some queries."""
        return not isinstance(self._study.pruner, optuna.pruners.NopPruner)

    # One trial.

    def ask(self) -> optuna.Trial:
        """A new trial, or one that waits there."""
        if self._interval is not None:
            self._patiently(self._fail_stale_trials)
        with self._sampler_of_parameters():
            trial = self._patiently(self._study.ask)
        try:
            self._live(trial)
        except BaseException as error:
            self.fail(trial, cause_of(error))
            raise
        return trial

    def point(self, trial: optuna.Trial) -> dict[str, Any]:
        """The hyperparameters of a trial that was asked.

        Raises:
          ValueError: where it waited with names that no axis has, or values that cannot be.
        """
        try:
            fixed = params_of(trial._fixed_params, self._axes)
            self._check_parameters(trial.params)
        except ValueError as error:
            raise ValueError(f"study trial {trial.number} waited in the study: {error}") from error
        trial._fixed_params = fixed
        suggest = lambda axis: self._patiently(lambda: axis.suggest(trial))
        with self._sampler_of_parameters():
            return {name: axis.value(suggest(axis)) for name, axis in self._axes.items()}

    def _check_parameters(self, params: Mapping[str, Any]) -> None:
        """Of a trial that is tried again, or was added with what it had elsewhere."""
        parameters = [axis.parameter for axis in self._axes.values()]
        if others := [name for name in params if name not in parameters]:
            raise ValueError(
                f"{others[0]!r} must be a parameter of this space, {parameters}, got {params}. "
                "Enqueue it anew: study.enqueue_trial(search.to_params(point, space))."
            )

    @contextlib.contextmanager
    def _sampler_of_parameters(self) -> Iterator[None]:
        """While it is open, what the study's sampler fixes is under the study's names."""
        sampler = self._study.sampler
        self._study.sampler = with_parameters(sampler, self._axes)
        try:
            yield
        finally:
            self._study.sampler = sampler

    def report(self, trial: optuna.Trial, value: float, step: int) -> None:
        """Report a value; `LostError` where the trial is another's."""
        try:
            self._patiently(lambda: trial.report(value, step))
        except UpdateFinishedTrialError:
            self._over(trial)
            raise LostError from None

    def prunes(self, trial: optuna.Trial) -> bool:
        """Whether the study's pruner would have it end."""
        return self._patiently(trial.should_prune)

    def tell(
        self,
        trial: optuna.Trial,
        state: TrialState,
        values: list[float] | None = None,
        attributes: dict[str, Any] | None = None,
    ) -> FrozenTrial | None:
        """Finish a trial, and give it as it is then; None for one that was told already, before a
        callback raised. `LostError` where it is another's."""
        if trial._trial_id in self._told:
            return None
        self._over(trial)
        try:
            for name, value in (attributes or {}).items():
                self._patiently(lambda name=name, value=value: trial.set_user_attr(name, value))
            # A second attempt may find the first one written.
            tell = lambda: self._study.tell(trial, values, state, skip_if_finished=True)
            told = self._patiently(tell)
        except UpdateFinishedTrialError:
            raise LostError from None
        if told.state != state:
            raise LostError
        self._told.add(trial._trial_id)
        return told

    def call_back(self, told: FrozenTrial | None) -> None:
        """Call the callbacks with what `tell` gave."""
        for callback in self._callbacks if told is not None else ():
            callback(self._study, told)

    def hurry(self) -> None:
        """From now on a database that is away is not waited for."""
        self._patience = 0.0

    def fail(self, trial: optuna.Trial, cause: str) -> None:
        """In an emergency: an error in it is kept silent.

        An interrupt may have left the connection within a transaction: it is made anew.
        """
        self.hurry()
        for attributes in ({"cause": cause}, {"cause": cause}, None):
            try:
                told = self.tell(trial, TrialState.FAIL, None, attributes)
            except LostError:
                return
            except Exception:
                with contextlib.suppress(Exception):
                    self._storage.remove_session()
                time.sleep(0.1)
                continue
            with contextlib.suppress(Exception):
                self.call_back(told)
            return

    # Signs of life.

    def _fail_stale_trials(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # as in study.optimize
            optuna.storages.fail_stale_trials(self._study)

    def _live(self, trial: optuna.Trial) -> None:
        if self._interval is not None:
            with self._lock:
                self._alive.add(trial._trial_id)
            self._patiently(lambda: self._storage.record_heartbeat(trial._trial_id))

    def _over(self, trial: optuna.Trial) -> None:
        with self._lock:
            self._alive.discard(trial._trial_id)

    def _beat(self, over: threading.Event) -> None:
        assert self._interval is not None
        while not over.wait(self._interval):
            with self._lock:
                alive = sorted(self._alive)
            for trial in alive:
                with contextlib.suppress(Exception):  # the database is away: once more next time
                    self._storage.record_heartbeat(trial)
        self._storage.remove_session()

    # A database that is away.

    def _patiently(self, call: Callable[[], T]) -> T:
        """Call, and again while the database is away."""
        start, pause = time.monotonic(), 0.1
        while True:
            try:
                return call()
            except Exception as error:
                if not is_away(error):
                    raise
                if time.monotonic() - start > self._patience:
                    error.add_note(
                        f"The study's database did not answer for {self._patience:g} s. What is "
                        "told there stays; trials under way count as failed once their heartbeat "
                        "is old."
                    )
                    raise
                if pause == 0.1:
                    tqdm.write(
                        f"search: the study's database does not answer ({_first_line(error)}); "
                        f"waiting for up to {self._patience:g} s.",
                        file=sys.stderr,
                    )
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def cause_of(error: BaseException) -> str:
    """What a failed trial is told of an error: its class and the first line of its message."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial keeps its constraints, as Optuna has it: none is above 0.

    A sampler's `constraints_func` leaves them in one attribute, `Trial.set_constraint` (Optuna 5)
    each in one of its own.
    """
    attributes = trial.system_attrs
    each = [x for name, x in attributes.items() if name.startswith("constraints:")]
    return all(x <= 0.0 for x in [*(attributes.get("constraints") or ()), *each])


def with_parameters(sampler: Any, axes: dict[str, Axis]) -> Any:
    """A sampler whose fixed hyperparameters are under the study's names, which Optuna looks for and
    without a word passes over others.

    Raises:
      ValueError: where it fixes a name that no axis has.
    """
    if not isinstance(sampler, optuna.samplers.PartialFixedSampler):
        return sampler
    made = copy.copy(sampler)
    try:
        made._fixed_params = params_of(sampler._fixed_params, axes)
    except ValueError as error:
        raise ValueError(f"the study's PartialFixedSampler: {error}") from error
    made._base_sampler = with_parameters(sampler._base_sampler, axes)
    return made


def is_away(error: BaseException) -> bool:
    """Whether this says that a database could not be reached, or dropped the connection, and may
    come back."""
    cause = _of_database(error)
    try:
        from sqlalchemy import exc
    except ImportError:  # Optuna brings it
        return False
    # This says that an earlier query, whose error Optuna swallowed, has yet to be rolled back: it
    # is now.
    if isinstance(cause, exc.PendingRollbackError):
        return True
    if not isinstance(cause, exc.DBAPIError):
        return False
    kinds = exc.OperationalError | exc.InterfaceError
    return (isinstance(cause, kinds) or cause.connection_invalidated) and not _stays(cause.orig)


def _of_database(error: BaseException) -> BaseException:
    """What Optuna wraps."""
    return (error.__cause__ or error) if isinstance(error, StorageInternalError) else error


def _stays(error: Any) -> bool:
    """Whether a driver's error is there however long one waits: no such table, no permission, a
    full disk. Drivers have no class of their own for these, only codes."""
    if (code := getattr(error, "sqlite_errorcode", None)) is not None:
        return code & 0xFF not in SQLITE_PASSES
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if state is not None:
        return state.startswith(POSTGRESQL_STAYS)
    return bool(error.args) and error.args[0] in MYSQL_STAYS


def _first_line(error: BaseException) -> str:
    """Of the driver's own message, without the SQL."""
    cause = _of_database(error)
    return cause_of(getattr(cause, "orig", None) or cause)
