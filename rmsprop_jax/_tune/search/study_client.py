# pyright: reportPrivateUsage=false
"""The Optuna study of a search: asked, reported to, and told, while its database may be away.

Optuna has no public names for some of what a search needs, so this module alone touches its private
ones. The test `test_what_is_used_of_optunas_private_names` holds what is used here.
"""

import contextlib
import copy
import functools
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar

import optuna
from optuna.exceptions import (
    ExperimentalWarning,
    StorageInternalError,
    UpdateFinishedTrialError,
)
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from rmsprop_jax._tune.interrupts import deferred
from rmsprop_jax._tune.search.space import Axis, Param, params_of
from rmsprop_jax._tune.space.values import Value

T = TypeVar("T")

PATIENCE = 300.0  # seconds for which a database may be away
LONGEST_PAUSE = 5.0  # seconds between two attempts
# Codes of errors that can pass: BUSY, LOCKED, IOERR, CANTOPEN (a network disk), PROTOCOL.
# https://www.sqlite.org/rescode.html
SQLITE_PASSES = {5, 6, 10, 14, 15}
# Codes of errors that stay: read-only, authorization, no such database, no such table or right, a
# full disk. https://www.postgresql.org/docs/current/errcodes-appendix.html
POSTGRESQL_STAYS = ("25", "28", "3D", "42", "53100")
# The same: https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html
MYSQL_STAYS = {1021, 1044, 1045, 1049, 1114, 1142, 1146, 1290, 1836}


class LostError(Exception):
    """The error for a study trial that another worker has finished, because it seemed dead."""


class StudyClient:
    """The connection of one search to its study.

    Args:
      study: the Optuna study.
      axes: the axes of the search's space, by name.
      callbacks: functions to call with the study and each frozen study trial that was told.
    """

    def __init__(
        self,
        study: optuna.Study,
        axes: dict[str, Axis],
        callbacks: Sequence[Callable[[optuna.Study, FrozenTrial], object]],
    ):
        self._study, self._axes, self._callbacks = study, axes, callbacks
        with_parameters(study.sampler, axes)  # wrong names are refused before anything is asked
        # Any: only some storages have heartbeats.
        self._storage: Any = study._storage
        interval = getattr(self._storage, "get_heartbeat_interval", lambda: None)
        self._interval: float | None = interval()
        self._open: set[int] = set()
        """The ids of the study trials that this search has claimed and that no one has told."""
        self._patience = PATIENCE

    @contextlib.contextmanager
    def open(self) -> Generator[None]:
        """Record heartbeats of study trials, and let callbacks call `study.stop()`.

        Raises:
          RuntimeError: inside `study.optimize`.
        """
        loop, is_closed = self._study._thread_local, threading.Event()
        if loop.in_optimize_loop:
            raise RuntimeError(
                "search.optimize must not be called inside an objective or a callback of "
                "study.optimize. Call it outside."
            )
        thread = threading.Thread(target=self._beat, args=(is_closed,), daemon=True)
        loop.in_optimize_loop, self._study._stop_flag = True, False
        if self._interval is not None:
            thread.start()
        try:
            yield
        finally:
            is_closed.set()
            if self._interval is not None:
                thread.join()
            loop.in_optimize_loop = False
            self._storage.remove_session()

    @property
    def is_stopped(self) -> bool:
        """Return whether a callback stopped the study."""
        return self._study._stop_flag

    @property
    def may_prune(self) -> bool:
        """Return whether the study's pruner can end a study trial.

        A pruner that never does so need not be asked, which saves some queries to a database.
        """
        return not isinstance(self._study.pruner, optuna.pruners.NopPruner)

    # One study trial.

    def ask(self) -> optuna.Trial:
        """Return a study trial that waits in the study, or else a new one."""
        if self._interval is not None:
            self._patiently(self._fail_stale_trials)
        trial_id = self._patiently(self._claim)
        if self._interval is not None:
            self._patiently(lambda: self._storage.record_heartbeat(trial_id))
        with self._sampler_of_parameters():
            return self._patiently(lambda: optuna.Trial(self._study, trial_id))

    def _claim(self) -> int:
        """Claim a study trial, and return its id.

        `Study.ask` does the same, and then calls the sampler. If the sampler raises, or the
        database goes away, `Study.ask` does not return the id of the study trial that it began.
        """
        self._study._thread_local.cached_all_trials = None  # what `Study.ask` begins with
        trial_id = self._study._pop_waiting_trial_id()
        if trial_id is None:
            trial_id = self._storage.create_new_trial(self._study._study_id)
        self._open.add(trial_id)
        return trial_id

    def point(self, trial: optuna.Trial) -> dict[str, Value]:
        """Return the hyperparameters of a study trial that was asked.

        Raises:
          ValueError: for a study trial that waited in the study with names that no axis has, or
            values that its axis cannot have.
        """
        try:
            fixed = params_of(trial._fixed_params, self._axes)
            self._check_parameters(trial.params)
        except ValueError as error:
            raise ValueError(
                f"study trial {trial.number}, which waited in the study: {error}"
            ) from error
        trial._fixed_params = fixed
        suggest = lambda axis: self._patiently(lambda: axis.suggest(trial))
        with self._sampler_of_parameters():
            return {name: axis.value(suggest(axis)) for name, axis in self._axes.items()}

    def _check_parameters(self, params: Mapping[str, Param]) -> None:
        """Raise ValueError unless all parameters of a waiting study trial are in the space.

        A study trial has parameters before it runs if it is retried, or if it was added with the
        parameters of another study.
        """
        parameters = [axis.parameter for axis in self._axes.values()]
        if others := [name for name in params if name not in parameters]:
            raise ValueError(
                f"{others[0]!r} must be a parameter of this space, which has {parameters}, got "
                f"{params}. Enqueue the point again: "
                "study.enqueue_trial(search.to_params(point, space))."
            )

    @contextlib.contextmanager
    def _sampler_of_parameters(self) -> Generator[None]:
        """Let the study have the sampler that `with_parameters` returns."""
        sampler = self._study.sampler
        self._study.sampler = with_parameters(sampler, self._axes)
        try:
            yield
        finally:
            self._study.sampler = sampler

    def report(self, trial: optuna.Trial, value: float, step: int) -> None:
        """Report the objective of a study trial at a step.

        Raises:
          LostError: if another worker has finished it.
        """
        try:
            self._patiently(lambda: trial.report(value, step))
        except UpdateFinishedTrialError:
            self._open.remove(trial._trial_id)
            raise LostError from None

    def prunes(self, trial: optuna.Trial) -> bool:
        """Return whether the study's pruner ends a study trial."""
        return self._patiently(trial.should_prune)

    def tell(
        self,
        trial: optuna.Trial,
        state: TrialState,
        values: list[float] | None = None,
        attributes: Mapping[str, Value] | None = None,
    ) -> FrozenTrial | None:
        """Tell the study the end of a study trial.

        Args:
          trial: the study trial.
          state: how it ended.
          values: its objectives, if it is complete.
          attributes: user attributes to set before.

        Returns:
          The frozen study trial. None if it was told before (and then a callback raised).

        Raises:
          LostError: if another worker has finished it.
        """
        return self._tell(trial._trial_id, state, values, attributes)

    def _tell(
        self,
        trial_id: int,
        state: TrialState,
        values: list[float] | None,
        attributes: Mapping[str, Value] | None,
    ) -> FrozenTrial | None:
        if trial_id not in self._open:
            return None
        number = self._patiently(lambda: self._storage.get_trial_number_from_id(trial_id))
        set_attribute = functools.partial(self._storage.set_trial_user_attr, trial_id)
        try:
            for name, value in (attributes or {}).items():
                self._patiently(functools.partial(set_attribute, name, value))
            # The first attempt may have been written although it raised.
            tell = lambda: self._study.tell(number, values, state, skip_if_finished=True)
            frozen = self._patiently(tell)
        except UpdateFinishedTrialError:
            self._open.remove(trial_id)
            raise LostError from None
        self._open.remove(trial_id)
        if frozen.state != state:
            raise LostError
        return frozen

    def call_back(self, told: FrozenTrial | None) -> None:
        """Call the callbacks with a result of `tell`; do nothing for None."""
        if told is not None:
            for callback in self._callbacks:
                with deferred():  # the callback may read the database
                    callback(self._study, told)

    def hurry(self) -> None:
        """Stop waiting for a database that is away, from now on."""
        self._patience = 0.0

    def fail_open(self, cause: str) -> None:
        """Tell the study that all open study trials failed. Errors are suppressed.

        Args:
          cause: the text of their user attribute `cause`.
        """
        self.hurry()
        for trial_id in sorted(self._open):
            self._fail(trial_id, cause)

    def _fail(self, trial_id: int, cause: str) -> None:
        """Tell the study that a study trial failed.

        A second Ctrl-C may have left the connection inside a transaction, so each failed attempt
        opens a new connection.
        """
        for attributes in ({"cause": cause}, {"cause": cause}, None):
            try:
                frozen = self._tell(trial_id, TrialState.FAIL, None, attributes)
            except LostError:
                return
            except Exception:
                with contextlib.suppress(Exception):
                    self._storage.remove_session()
                time.sleep(0.1)
                continue
            with contextlib.suppress(Exception):
                self.call_back(frozen)
            return

    # Heartbeats.

    def _fail_stale_trials(self) -> None:
        """Fail the study trials of workers whose heartbeats have stopped."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # as in study.optimize
            optuna.storages.fail_stale_trials(self._study)

    def _beat(self, is_closed: threading.Event) -> None:
        """Record a heartbeat of each open study trial at each interval, in a thread."""
        assert self._interval is not None
        while not is_closed.wait(self._interval):
            for trial_id in list(self._open):
                with contextlib.suppress(Exception):  # the database is away: try next time
                    self._storage.record_heartbeat(trial_id)
        self._storage.remove_session()

    # A database that is away.

    def _patiently(self, call: Callable[[], T]) -> T:
        """Return the result of a call, which is repeated while the database is away.

        Ctrl-C waits for the call. Otherwise its traceback would hold a cursor inside a query, and
        with it SQLite's lock.
        """
        start, pause = time.monotonic(), 0.1
        while True:
            try:
                with deferred():
                    return call()
            except Exception as error:
                if not is_away(error):
                    raise
                if time.monotonic() - start > self._patience:
                    error.add_note(
                        f"The study's database did not answer for {self._patience:g} s. Study "
                        "trials that were told stay. Running ones count as failed as soon as their "
                        "heartbeats are old."
                    )
                    raise
                if pause == 0.1:
                    tqdm.write(
                        f"search: the study's database does not answer ({_first_line(error)}). "
                        f"Waiting for up to {self._patience:g} s.",
                        file=sys.stderr,
                    )
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def cause_of(error: BaseException) -> str:
    """Return the class and the first line of an error, for the attribute `cause`."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])


def is_feasible(trial: FrozenTrial) -> bool:
    """Return whether a study trial meets its constraints: none is above 0, as Optuna defines it.

    A sampler's `constraints_func` stores them in one attribute. `Trial.set_constraint` (Optuna 5)
    stores each in an attribute of its own.
    """
    attributes = trial.system_attrs
    each = [x for name, x in attributes.items() if name.startswith("constraints:")]
    return all(x <= 0.0 for x in [*(attributes.get("constraints") or ()), *each])


def is_in_memory(study: optuna.Study) -> bool:
    """Return whether a study is stored in this process's memory only."""
    return isinstance(study._storage, optuna.storages.InMemoryStorage)


def with_parameters(
    sampler: optuna.samplers.BaseSampler, axes: dict[str, Axis]
) -> optuna.samplers.BaseSampler:
    """Return a sampler that fixes parameters under the study's names.

    A `PartialFixedSampler` may name hyperparameters as our space does. Optuna would ignore these
    names without a warning. Other samplers are returned unchanged.

    Raises:
      ValueError: if the sampler fixes a name that no axis has.
    """
    if not isinstance(sampler, optuna.samplers.PartialFixedSampler):
        return sampler
    renamed = copy.copy(sampler)
    try:
        renamed._fixed_params = params_of(sampler._fixed_params, axes)
    except ValueError as error:
        raise ValueError(f"the study's PartialFixedSampler: {error}") from error
    renamed._base_sampler = with_parameters(sampler._base_sampler, axes)
    return renamed


def is_away(error: BaseException) -> bool:
    """Return whether an error means that a database is away and may come back.

    It is away if it could not be reached, or dropped the connection.
    """
    cause = _database_error(error)
    try:
        from sqlalchemy import exc
    except ImportError:  # without SQLAlchemy, which Optuna installs, there is no database
        return False
    # Optuna suppressed the error of an earlier query, which had to be rolled back first. Now it is.
    if isinstance(cause, exc.PendingRollbackError):
        return True
    if not isinstance(cause, exc.DBAPIError):
        return False
    kinds = exc.OperationalError | exc.InterfaceError
    return (isinstance(cause, kinds) or cause.connection_invalidated) and not _stays(cause.orig)


def _database_error(error: BaseException) -> BaseException:
    """Return SQLAlchemy's error that Optuna wrapped, or the error itself."""
    return (error.__cause__ or error) if isinstance(error, StorageInternalError) else error


def _stays(error: BaseException | None) -> bool:
    """Return whether a driver's error would stay however long a search waits.

    Such errors are a missing table, no permission, or a full disk. Drivers have only codes for
    them, no classes.
    """
    if (code := getattr(error, "sqlite_errorcode", None)) is not None:
        return code & 0xFF not in SQLITE_PASSES
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if state is not None:
        return state.startswith(POSTGRESQL_STAYS)
    return error is not None and bool(error.args) and error.args[0] in MYSQL_STAYS


def _first_line(error: BaseException) -> str:
    """Return the first line of the driver's own message, without the SQL."""
    cause = _database_error(error)
    return cause_of(getattr(cause, "orig", None) or cause)
