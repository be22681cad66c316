"""Writes and reads the metrics of a run: JSON lines and TensorBoard events."""

import contextlib
import json
import math
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from aia_jax.utils.files import os_errors_as_input_errors, write_bytes

_METRICS = "metrics.jsonl"
_ADVICE = "correct this and give the same command again"


class MetricWriter(contextlib.AbstractContextManager):
    """Appends metrics to `<workdir>/metrics.jsonl` and `<workdir>/tensorboard`. Only process 0 writes.

    Args:
        resume_step: number of steps already done. Removes lines of later steps, because the run repeats these steps.

    Raises:
        InputError: a file cannot be written. `write` also raises this error.
    """

    def __init__(self, workdir: Path, resume_step: int = 0):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        from tensorboardX.proto.event_pb2 import SessionLog  # imports torch where torch is installed
        from tensorboardX.record_writer import RecordWriter

        self._path, folder = Path(workdir) / _METRICS, Path(workdir) / "tensorboard"
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        with os_errors_as_input_errors(self._path, None, _ADVICE), contextlib.ExitStack() as stack:
            write_bytes(self._path, to_lines(read_records(self._path, resume_step)))
            self._lines = stack.enter_context(self._path.open("ab"))
            folder.mkdir(exist_ok=True)
            # Not SummaryWriter, which hangs when the disk is full, and not EventsWriter, which leaves the file open.
            self._events = RecordWriter(str(folder / name))
            self._write_event(file_version="brain.Event:2")
            # TensorBoard then hides the events of this step and of later steps in older files.
            self._write_event(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START))
            stack.pop_all()

    def write(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """Writes the line `{"step", "kind", **values}`. Also writes each number to TensorBoard, as `kind/name`."""
        if not self._active:
            return
        from tensorboardX.summary import scalar

        with os_errors_as_input_errors(self._path, None, _ADVICE):
            self._lines.write(to_lines([{"step": step, "kind": kind, **values}]))
            self._lines.flush()
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._write_event(step=step, summary=scalar(f"{kind}/{name}", value))
            self._events.flush()

    def _write_event(self, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events.write(Event(wall_time=time.time(), **fields).SerializeToString())

    def __exit__(self, *_exc: object) -> None:
        for file in (self._lines, self._events) if self._active else ():
            with contextlib.suppress(OSError):  # `write` already flushed each line, or raised an error
                file.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's `metrics.jsonl` as dicts `{"step", "kind", ...}`, by step, or [] without a file.

    A continued run may write two lines with the same step and kind. Only the later line is returned.
    """
    records = [record for record in read_records(Path(workdir) / _METRICS) if isinstance(record.get("kind"), str)]
    found = {(record["step"], record["kind"]): record for record in records}
    return [found[key] for key in sorted(found)]


def read_records(path: Path, last_step: float = math.inf) -> list[dict[str, Any]]:
    """Returns the lines of a JSON-lines file whose `step` is at most `last_step`, as dicts, or [] without a file."""
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a killed run may leave an incomplete line
            record = json.loads(line)
            if record["step"] <= last_step:
                records.append(record)
    return records


def to_lines(records: Sequence[dict[str, Any]]) -> bytes:
    """Converts dicts to the content of a JSON-lines file; `read_records` reads such a file."""
    return "".join(json.dumps(record) + "\n" for record in records).encode()
