"""TensorBoard: a folder of event files for each trial, with the data of the HParams dashboard."""

import io
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rmsprop_jax.loggers.base import INTERRUPTED, End, Logger, Rows, Run, library

STATUS = "trial/status"
END = ".trial_end"  # the ending of the file that says how a run ended


class TensorBoard(Logger):
    """A callback that writes event files for TensorBoard and its HParams dashboard.

    Trial 12 of a sweep has the folder `dir/<sweep>/trial-00012`, where `<sweep>` is the start of
    the sweep's id. The folder has the hyperparameters and the seed, the values of each metric, and
    the end state as the text `trial/status`: "complete", "pruned", "failed", or "interrupted". In
    the HParams dashboard, a complete or pruned trial has succeeded, and the status of a trial that
    is under way or interrupted is unknown.

    TensorBoard stores float32.

    Args:
      dir: a local folder. TensorBoard shows it with `tensorboard --logdir dir`.

    Raises:
      ImportError: without TensorBoard, which the extra `tensorboard` installs.

    Examples:
      >>> import tempfile, rmsprop_jax as rj
      >>> train = lambda hp, key: {"loss": hp["x"] ** 2}
      >>> with tempfile.TemporaryDirectory() as runs:  # doctest: +SKIP
      ...     logger = rj.loggers.TensorBoard(runs)
      ...     result = rj.sweep(train, rj.grid(x=[1.0, 2.0]), callback=logger)
    """

    def __init__(self, dir: str | os.PathLike[str]):
        super().__init__()
        tensorboard = lambda module: library(f"tensorboard.{module}", "tensorboard")
        self._event = tensorboard("compat.proto.event_pb2").Event
        self._summary = tensorboard("compat.proto.summary_pb2").Summary
        self._records = tensorboard("summary.writer.record_writer").RecordWriter
        self._load = tensorboard("backend.event_processing.event_file_loader").LegacyEventFileLoader
        self._tensor = tensorboard("util.tensor_util")
        self._text = tensorboard("plugins.text.summary_v2").text_pb
        self._start_info = tensorboard("plugins.hparams.summary_v2").hparams_pb
        self._hparams = tensorboard("plugins.hparams.metadata")
        self._hparams_data = tensorboard("plugins.hparams.plugin_data_pb2")
        self._states = tensorboard("plugins.hparams.api_pb2")
        self._dir, self._root = Path(dir), Path(dir)

    def _find(self, sweep: str) -> dict[int, End | None]:
        self._root = self._dir / sweep[:8]
        folders = [path for path in self._root.glob("trial-*") if any(path.iterdir())]
        return {int(path.name.removeprefix("trial-")): self._end_of(path) for path in folders}

    def _end_of(self, folder: Path) -> End | None:
        """Return how the run in a folder ended."""
        for event, value in self._values(folder, END):
            if value.tag == STATUS:
                (status,) = self._tensor.make_ndarray(value.tensor).ravel().tolist()
                return End(status.decode(), event.step)
        return None

    def _create(self, number: int) -> Run:
        folder = self._root / f"trial-{number:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        return Run(_new_file(folder))

    def _reopen(self, number: int) -> Run:
        run = self._create(number)
        folder = run.handle.parent
        # TensorBoard shows the first end state of a session, so that it must not find the old one.
        # If the file were deleted, a TensorBoard that is at it would not go on to the next.
        for path in folder.glob(f"*{END}"):
            path.write_bytes(b"")
        for event, value in self._values(folder, ""):
            if value.tag == self._hparams.SESSION_START_INFO_TAG:
                start = self._hparams.parse_session_start_info_plugin_data(
                    value.metadata.plugin_data.content
                )
                run.hyperparameters = {
                    name: getattr(number, number.WhichOneof("kind"))
                    for name, number in start.hparams.items()
                }
            elif value.HasField("simple_value"):
                run.last[value.tag] = max(event.step, run.last.get(value.tag, -1))
        run.step = min(run.last.values(), default=0)
        return run

    def _values(self, folder: Path, ending: str) -> Iterator[tuple[Any, Any]]:
        """Yield the events of a folder, and each value in them."""
        for path in sorted(folder.glob(f"*tfevents*{ending}")):
            for event in self._load(str(path)).Load():
                for value in event.summary.value:
                    yield event, value

    def _describe(self, run: Run, hyperparameters: dict[str, Any]) -> None:
        # Each trial is a session group of its own, also with equal hyperparameters.
        trial = str(run.handle.parent.relative_to(self._dir))
        summary = self._start_info(hyperparameters, trial_id=trial)
        self._append(run.handle, [self._event(wall_time=time.time(), summary=summary)])

    def _write(self, run: Run, rows: Rows) -> None:
        now, summary = time.time(), self._summary
        value = lambda name, number: summary.Value(tag=name, simple_value=number)
        self._append(
            run.handle,
            [
                self._event(
                    wall_time=now,
                    step=step,
                    summary=summary(value=[value(*item) for item in row.items()]),
                )
                for step, row in rows.items()
            ],
        )

    def _end(self, run: Run, end: End) -> None:
        status = self._text(STATUS, end.status)
        events = [self._event(wall_time=time.time(), step=end.step, summary=status)]
        if end.status != INTERRUPTED:
            data = self._hparams_data.HParamsPluginData(
                session_end_info=self._hparams_data.SessionEndInfo(
                    status=getattr(
                        self._states,
                        "STATUS_FAILURE" if end.status == "failed" else "STATUS_SUCCESS",
                    ),
                    end_time_secs=time.time(),
                )
            )
            summary = self._summary()
            summary.value.add(
                tag=self._hparams.SESSION_END_INFO_TAG,
                metadata=self._hparams.create_summary_metadata(data),
                tensor=self._hparams.NULL_TENSOR,
            )
            events.append(self._event(wall_time=time.time(), summary=summary))
        path = _new_file(run.handle.parent)
        hidden = path.with_name("end")  # TensorBoard reads the file when it is whole
        hidden.unlink(missing_ok=True)
        self._append(hidden, events)
        os.replace(hidden, path.with_name(path.name + END))

    def _append(self, path: Path, events: list[Any]) -> None:
        """Append events to a file, which is open only meanwhile: a sweep may have many trials."""
        if not path.exists():
            events = [self._event(wall_time=time.time(), file_version="brain.Event:2"), *events]
        data = io.BytesIO()
        records = self._records(data)
        for event in events:
            records.write(event.SerializeToString())
        with open(path, "ab") as file:
            file.write(data.getvalue())


def _new_file(folder: Path) -> Path:
    """Return the path of a new event file. TensorBoard reads files in the order of their names."""
    return folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
