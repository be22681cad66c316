"""Runs whose workdir is in object storage: they train in a local copy, which is uploaded while they train.

Object storage has no locks, no appends and no renames, and Orbax does not write to `s3://`. So each run has a copy in
the cache. A thread sends what has changed every 30 seconds. The object `.writer.json` says which copy was sent last,
and its time is renewed every 30 seconds. docs/object_storage.md describes the rules.
"""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from tqdm import tqdm

from aia_jax.utils.errors import InputError
from aia_jax.utils.files import exclusive_lock, os_errors_as_input_errors, write_bytes
from aia_jax.utils.folder_copy import ADVICE, FolderCopy, incomplete_checkpoints
from aia_jax.utils.storage import errors_of_storage, open_storage, url_name
from aia_jax.utils.storage_folders import copy_place, locked_copy

INTERVAL = 30  # seconds between two uploads, and between two signs of life of a writer
SILENCE = 75  # seconds without a sign of life after which a writer counts as dead
_ATTEMPTS = (0, 2, 10)  # seconds to wait before each attempt of the last upload
_WRITER = ".writer.json"  # hidden, so it is not copied


class RemoteWorkdir:
    """The local copy of a run in object storage, while this process trains in it.

    Attributes:
        path: the local folder. Process 0 sends it to the storage; each other process has a copy of its own.
    """

    def __init__(self, url: str):
        self.url, self._process = url, jax.process_index()
        suffix = f"-{self._process}" if self._process else ""  # processes on one machine share the cache
        place = copy_place("workdirs", url)
        self.path = place.with_name(place.name + suffix)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Brings the copy up to date. In the block, process 0 uploads changes. At the end, it uploads the rest.

        Raises:
            InputError: another process trains there, or the storage or the disk refuses it. What could not be uploaded
                stays in the copy, and the same command on this machine uploads it.
        """
        if self._process:
            self.share()
            yield
            return
        with _locked(self.path, self.url), _Uploads(self.url, self.path) as uploads:
            self._send = uploads.send
            self.share()
            yield

    def share(self) -> None:
        """Gives every process the files of process 0. Every process must call it at the same time."""
        if jax.process_count() == 1:
            return
        if not self._process:
            self._send()
        multihost_utils.sync_global_devices("the run is uploaded")
        if self._process:
            with locked_copy(self.url, self.path, empty=True):
                pass
        multihost_utils.sync_global_devices("every process has the run")


@contextlib.contextmanager
def run_with_results(url: str) -> Iterator[Path]:
    """Yields a local copy of a run in object storage. At the end, uploads the files that were written in it.

    Raises InputError if there is no such run, or if the storage or the disk refuses it.
    """
    place = copy_place("buckets", url)
    process = jax.process_index()
    with locked_copy(url, place.with_name(f"{place.name}-{process}") if process else place) as copy:
        yield copy.folder
        if not process:
            copy.send_changes(title=f"upload {url_name(url)}", remove=False)


@contextlib.contextmanager
def _locked(folder: Path, url: str) -> Iterator[None]:
    refusal = f"another process of this machine trains in {url}; stop it, wait for it, or give another workdir"
    with os_errors_as_input_errors(folder, None, ADVICE):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder.with_name(f"{folder.name}.lock"), refusal):
        yield


class _Uploads(contextlib.AbstractContextManager):
    """Makes this machine the writer of a run, and sends the changes of its copy in the background."""

    def __init__(self, url: str, folder: Path):
        self._url, self._folder = url, folder
        self._storage, root = open_storage(url)
        self._writer_path = f"{root}/{_WRITER}"
        self._replaced_by = ""
        self._stop, self._busy = threading.Event(), threading.Lock()
        works = (self._renew, self.send)
        self._threads = [threading.Thread(target=self._every, args=(work,), daemon=True) for work in works]

    def __enter__(self) -> _Uploads:
        writer = self._read_writer()
        identity = self._identity()
        if writer and writer["copy"] != identity:
            self._check_silent(writer)
        if not writer or writer["copy"] != identity:
            copy = FolderCopy(self._url, self._folder)
            _set_aside(self._url, copy, there=bool(copy.there()))  # without a bucket, raises the error
            identity = self._identity()
        self._own = {"copy": identity, "host": socket.gethostname(), "process": os.getpid()}
        self._write_writer()
        self._threads[0].start()
        try:
            self._copy = FolderCopy(self._url, self._folder)
            self._copy.bring_down(f"download {url_name(self._url)}")
            there = self._copy.there()
            self._copy.remove_there(incomplete_checkpoints(there) - self._copy.here().keys())
        except BaseException:
            self._end()
            raise
        self._threads[1].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        """Sends the rest. An earlier exception has precedence over a problem here, which is then only printed."""
        try:
            self._end_threads()
            problem = self._replaced_by or self._last_upload()
        except (KeyboardInterrupt, SystemExit):
            print(f"the upload to {self._url} was interrupted\n{self._kept()}", file=sys.stderr)
            raise
        if not self._replaced_by:
            self._end()
        if problem and kind:
            print(f"error: {problem}", file=sys.stderr)
        elif problem:
            raise InputError(problem)

    def send(self) -> None:
        """Sends what has changed. Raises InputError if the storage refuses it."""
        with self._busy:
            changed, removed = self._copy.changed_here()
            if (changed or removed) and self._is_writer():
                self._copy.send_changes()

    def _last_upload(self) -> str:
        """Sends the rest, in several attempts. Returns the problem, or "" without one."""
        problem = ""
        for seconds in _ATTEMPTS:
            time.sleep(seconds)
            try:
                if self._is_writer():
                    self._copy.compare(changed=False)  # somebody may have removed objects
                    self._copy.send_changes(title=f"upload {url_name(self._url)}")
                return self._replaced_by
            except (InputError, OSError) as error:  # OSError: the journal cannot be written
                problem = str(error)
        return f"{problem}\n{self._kept()}"

    def _kept(self) -> str:
        machine = "on this machine, with the same cache"
        return f"what could not be uploaded is kept in {self._folder}; the same command {machine}, uploads it"

    def _every(self, work: Callable[[], None]) -> None:
        """Calls `work` every 30 seconds. Prints a problem once, and tries again."""
        problem = ""
        while not self._stop.wait(INTERVAL):
            try:
                work()
                problem = ""
            except Exception as error:  # the thread must live on; the last upload raises the error
                if str(error) != problem:
                    tqdm.write(f"not uploaded yet, will be tried again: {error}", file=sys.stderr)
                problem = str(error)

    def _renew(self) -> None:
        if self._is_writer():
            self._write_writer()

    def _is_writer(self) -> bool:
        """Returns whether this process is still the writer. If not, stops the training as SIGTERM does."""
        writer = self._read_writer()
        if writer and {**writer, "time": None} != {**self._own, "time": None} and not self._replaced_by:
            self._replaced_by = (
                f"{_described(writer)} now trains in {self._url}, so this process stopped; what it wrote since then is "
                f"not uploaded, and is kept in {self._folder}"
            )
            tqdm.write(self._replaced_by, file=sys.stderr)
            self._stop.set()
            _thread.interrupt_main(signal.SIGTERM)
        if not writer:  # somebody has removed the run in the storage
            self._copy.compare(changed=False)
        return not self._replaced_by

    def _read_writer(self) -> dict[str, Any] | None:
        """Returns the content of `.writer.json`: `{"copy", "host", "process", "time"}`, or None if it is not there."""
        with errors_of_storage(self._url):
            try:
                self._storage.invalidate_cache()
                writer = json.loads(self._storage.cat_file(self._writer_path))
                return {name: writer[name] for name in ("copy", "host", "process", "time")}
            except FileNotFoundError:
                return None
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"{self._url}/{_WRITER} is damaged ({error}); delete it") from None

    def _write_writer(self, *, ended: bool = False) -> None:
        content = {**self._own, "time": None if ended else time.time()}
        with errors_of_storage(self._url):
            self._storage.pipe_file(self._writer_path, json.dumps(content).encode())

    def _check_silent(self, writer: dict[str, Any]) -> None:
        """Waits until the writer counts as dead. Raises InputError if it gives a sign of life."""
        if writer["time"] is None:  # it ended
            return
        name = _described(writer)
        print(f"{name} trained in {self._url}; waiting {SILENCE} s for a sign of life", flush=True)
        end = time.monotonic() + SILENCE
        while time.monotonic() < end:
            time.sleep(min(5, SILENCE / 10))
            if (now := self._read_writer()) != writer:
                if now and now["time"] is None:
                    return
                raise InputError(f"{name} trains in {self._url}; stop it, wait for it, or give another workdir")

    def _identity(self) -> str:
        """Returns the identity of the copy, which is made with the first one and goes with it when it is set aside."""
        path = self._folder.with_name(f"{self._folder.name}.identity")
        if not path.exists():
            write_bytes(path, uuid.uuid4().hex.encode())
        return path.read_text()

    def _end_threads(self) -> None:
        self._stop.set()
        for thread in self._threads:
            if thread.ident:
                thread.join()

    def _end(self) -> None:
        """Notes in `.writer.json` that this process has ended, so that no other has to wait."""
        self._end_threads()
        with contextlib.suppress(InputError):
            self._write_writer(ended=True)


def _set_aside(url: str, copy: FolderCopy, *, there: bool) -> None:
    """Removes a copy that another one has overtaken. Keeps it under another name if it has files that are nowhere else.

    Args:
        there: whether the storage has a run. If not, it was removed there, and the copy may be the only one.
    """
    changed, _ = copy.changed_here()
    kept, folder = changed or (not there and copy.here()), copy.folder
    number = 1
    while (target := folder.with_name(f"{folder.name}.kept-{number}")).exists():
        number += 1
    if kept:
        folder.rename(target)
        why = "another machine has trained there since" if there else "there is no run any more"
        print(f"{url}: {why}; the copy here has files that are not there, and is kept in {target}", flush=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    for ending in ("journal", "identity"):
        folder.with_name(f"{folder.name}.{ending}").unlink(missing_ok=True)


def _described(writer: dict[str, Any]) -> str:
    return f"process {writer['process']} of the machine {writer['host']}"
