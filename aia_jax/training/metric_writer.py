"""The run's records: JSON lines and TensorBoard events."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_bytes


class MetricWriter:
    """Appends to `<workdir>/metrics.jsonl` and `<workdir>/tensorboard`; only process 0 writes.

    Args:
        workdir: the run's folder.
        resume_step: lines of later steps are dropped, for a resumed run writes them again.
    """

    def __init__(self, workdir: Path, resume_step: int = 0):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._path = Path(workdir) / "metrics.jsonl"
        with self._speaking_errors(), contextlib.ExitStack() as opened:
            write_bytes(self._path, "".join(lines_up_to(self._path, resume_step)).encode())
            self._lines = opened.enter_context(self._path.open("a"))
            self._events = _Events(Path(workdir) / "tensorboard", resume_step + 1)
            opened.pop_all()

    def write(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """One line `{"step", "kind", **values}`; the numbers among `values` go to TensorBoard as `kind/name`.

        Raises:
            InputError: the file cannot be written.
        """
        if not self._active:
            return
        with self._speaking_errors():
            self._lines.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
            self._lines.flush()
            self._events.write(step, {f"{kind}/{name}": v for name, v in values.items() if isinstance(v, int | float)})

    def close(self) -> None:
        """Flushes and closes both."""
        if self._active:
            with contextlib.suppress(OSError):  # every line was flushed, or its error told
                self._lines.close()
            with contextlib.suppress(OSError):
                self._events.close()

    @contextlib.contextmanager
    def _speaking_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self._path} cannot be written: {error.strerror}; make that possible and give the same command again"
            ) from error

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_exc) -> None:
        self.close()


class _Events:
    """A TensorBoard file, written at once: tensorboardX's SummaryWriter hangs when the disk is full.

    Its EventsWriter would leave the file open then.
    """

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._file = RecordWriter(str(folder / name))
        self._write(file_version="brain.Event:2")
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))  # hides what came later before

    def write(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._write(step=step, summary=scalar(name, value))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, **fields: Any) -> None:
        self._file.write(Event(wall_time=time.time(), **fields).SerializeToString())


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The records `{"step", "kind", ...}` of a run, steps rising; [] if there are none.

    Of records of one step and kind, which a run that was continued may have written again, the last counts; a line that
    was left half-written does not.
    """
    path = Path(workdir) / "metrics.jsonl"
    found = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            found[int(record["step"]), str(record["kind"])] = record
    return [found[key] for key in sorted(found)]


def lines_up_to(path: Path, step: int) -> list[str]:
    """The lines of a file of records whose `step` is not later; none if it is not there."""
    if not path.exists():
        return []
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a line that a killed run left half-written
            if json.loads(line)["step"] <= step:
                kept.append(line.rstrip("\n") + "\n")
    return kept
