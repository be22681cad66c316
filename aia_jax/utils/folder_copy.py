"""A local folder that is a copy of a folder in object storage. A journal says what has changed on each side."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from aia_jax.utils.errors import InputError
from aia_jax.utils.files import (
    atomic_path,
    check_room,
    complete_lines,
    os_errors_as_input_errors,
    remove_temporary_files,
    write_bytes,
)
from aia_jax.utils.storage import errors_of_storage, open_storage, write_object

_THREADS = 16  # requests at the same time
_WHOLE = 16 << 20  # bytes; smaller files are read before they are sent, as another thread may append to them
ADVICE = "AIA_JAX_CACHE names another place"
_CHECKPOINT = re.compile(r"(checkpoints/\d+/).")
LAST = "digests.json"  # of a checkpoint: sent last and removed first, so a checkpoint with it is complete
_UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder that Orbax is still writing


class Version(NamedTuple):
    """The size of an object in bytes, and a text that changes whenever the object is written."""

    size: int
    stamp: str


class _Equal(NamedTuple):
    """A line of the journal: size and modification time of a local file, and the stamp of the equal object."""

    size: int
    mtime_ns: int
    stamp: str


_PERHAPS_THERE = _Equal(-1, 0, "")  # of a file that is being sent: it is sent again, or removed when it is gone here


class FolderCopy:
    """A local folder and the folder in object storage of which it is a copy.

    The journal lists the files that are equal on both sides. From it follows what has changed on each side. A line is
    written after each file, so an interrupted copy continues. Hidden files, and checkpoints that Orbax is writing, are
    never copied. One process at a time may use a copy.

    Args:
        url: the folder in object storage.
        folder: the local folder, which need not exist.
        journal: file beside the folder; None: `<folder>.journal`.
    """

    def __init__(self, url: str, folder: Path, journal: Path | None = None):
        self.url, self.folder = url, folder
        self.journal = journal or folder.with_name(f"{folder.name}.journal")
        self._storage, self._root = open_storage(url)
        self._lock = threading.Lock()
        self._equal: dict[str, _Equal] = {}
        with os_errors_as_input_errors(self.journal.parent, None, ADVICE):
            self.journal.parent.mkdir(parents=True, exist_ok=True)
            self._read_journal()

    def _read_journal(self) -> None:
        with self.journal.open("a+b") as file:
            for _, line in complete_lines(file):
                with contextlib.suppress(ValueError):  # a full disk left a part of a line
                    name, *equal = json.loads(line)
                    if equal:
                        self._equal[name] = _Equal(*equal)
                    else:
                        self._equal.pop(name, None)
        lines = (json.dumps([name, *equal]) + "\n" for name, equal in self._equal.items())
        write_bytes(self.journal, "".join(lines).encode())

    def _note(self, name: str, equal: _Equal | None) -> None:
        """Adds a file to the journal, or removes it."""
        with self._lock:
            if equal:
                self._equal[name] = equal
            else:
                self._equal.pop(name, None)
            with self.journal.open("ab") as file:
                file.write((json.dumps([name, *(equal or ())]) + "\n").encode())

    def there(self) -> dict[str, Version]:
        """Lists the objects of the folder, `{relative name: version}`. Raises InputError if the storage refuses it."""
        with errors_of_storage(self.url):
            self._storage.invalidate_cache()
            found = self._storage.find(self._root, detail=True)
        names = {path[len(self._root) + 1 :]: about for path, about in found.items() if path != self._root}
        return {name: _version(about) for name, about in names.items() if _is_copied(name)}

    def here(self) -> dict[str, tuple[int, int]]:
        """Lists the local files, `{relative name: (size, modification time in ns)}`."""
        found = {}
        for directory, folders, files in os.walk(self.folder):
            folders[:] = [name for name in folders if _is_copied(name)]
            for path in (Path(directory, name) for name in files if _is_copied(name)):
                with contextlib.suppress(FileNotFoundError):  # training has just removed it
                    state = path.stat()
                    found[path.relative_to(self.folder).as_posix()] = (state.st_size, state.st_mtime_ns)
        return found

    def changed_here(self) -> tuple[dict[str, tuple[int, int]], list[str]]:
        """Returns the local files that are new or changed since they were copied, and the names of removed ones."""
        here = self.here()
        changed = {name: state for name, state in here.items() if self._equal.get(name, ())[:2] != state}
        return changed, [name for name in self._equal if name not in here]

    def discard_changes(self) -> None:
        """Removes local files that differ from the storage, so that `bring_down` makes an exact copy."""
        changed, removed = self.changed_here()
        for name in changed:
            (self.folder / name).unlink(missing_ok=True)
        for name in (*changed, *removed):
            self._note(name, None)

    def not_sent(self) -> set[str]:
        """Returns the names of the objects that did not come from this copy, or have changed since."""
        own = {name: equal.stamp for name, equal in self._equal.items()}  # "" of a file whose upload was interrupted
        return {name for name, version in self.there().items() if own.get(name) not in (version.stamp, "")}

    def compare(self, *, changed: bool = True) -> None:
        """Removes files from the journal whose objects are gone or `changed`, so that `send_changes` sends them."""
        there = self.there()
        for name, equal in [*self._equal.items()]:
            if name not in there or (changed and there[name].stamp != equal.stamp):
                self._note(name, None)

    def bring_down(self, title: str = "download") -> None:
        """Copies new and changed objects to the folder, and removes local files whose objects are gone.

        Local files that are new or changed stay as they are. Files that were removed here come back: a cleaner of the
        disk may have removed them. Checkpoints that are not complete are not copied.

        Raises:
            InputError: the storage or the disk refuses it, or the disk is too small.
        """
        for attempt in range(3):  # another machine may write at the same time
            there = self.there()
            there = {name: there[name] for name in sorted(there.keys() - incomplete_checkpoints(there))}
            here = self.here()
            for name, equal in [*self._equal.items()]:
                if name not in there:
                    if here.get(name) == equal[:2]:
                        self._remove_here(name)
                    self._note(name, None)
            missing = {name: version for name, version in there.items() if self._is_old(name, version, here)}
            try:
                return self._fetch_all(missing, title)
            except _ChangedError as error:
                if attempt == 2:
                    raise InputError(f"{self.url}/{error} changes while it is copied; try again later") from None

    def _is_old(self, name: str, version: Version, here: dict[str, tuple[int, int]]) -> bool:
        equal = self._equal.get(name)
        return name not in here or (equal is not None and here[name] == equal[:2] and equal.stamp != version.stamp)

    def _remove_here(self, name: str) -> None:
        path = self.folder / name
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a folder with other files stays
            while (path := path.parent) != self.folder:
                path.rmdir()

    def _fetch_all(self, files: dict[str, Version], title: str) -> None:
        total = sum(version.size for version in files.values())
        with os_errors_as_input_errors(self.folder, total, ADVICE):
            self.folder.mkdir(parents=True, exist_ok=True)
            for directory, _, _ in os.walk(self.folder):
                remove_temporary_files(Path(directory))
            check_room(self.folder, total)
            with errors_of_storage(self.url):
                for name in self._in_parallel(lambda name: self._fetch(name, files[name]), files, total, title):
                    files.pop(name)

    def _fetch(self, name: str, version: Version) -> int:
        try:
            with atomic_path(self.folder / name) as temporary:
                self._storage.get_file(f"{self._root}/{name}", str(temporary))
                state = temporary.stat()
                if state.st_size != version.size:
                    raise _ChangedError(name)
        except FileNotFoundError:
            raise _ChangedError(name) from None
        self._note(name, _Equal(state.st_size, state.st_mtime_ns, version.stamp))
        return version.size

    def send_changes(self, *, title: str = "", remove: bool = True) -> None:
        """Sends new and changed local files, and removes the objects of removed ones.

        Args:
            title: of a progress bar; "": no bar.
            remove: whether objects are removed.

        Raises:
            InputError: the storage refuses it. The next call sends what is missing.
        """
        changed, removed = self.changed_here()
        if not changed and not removed:
            return
        with errors_of_storage(self.url):
            for names in _last_ones_apart(changed):
                self._send_all({name: changed[name] for name in names}, title)
            if remove:
                self.remove_there(removed)

    def _send_all(self, files: dict[str, tuple[int, int]], title: str) -> None:
        """Sends files, given as `here` returns them, and compares the sizes that have arrived."""
        if not files:
            return
        total = sum(size for size, _ in files.values())
        for _ in self._in_parallel(lambda name: self._send(name, files[name][0]), files, total, title):
            pass
        there, here, cut = self.there(), self.here(), []
        for name, (size, mtime_ns) in files.items():
            arrived = name in there and there[name].size == size
            if name in there:  # also of a file that changed or went meanwhile: the next call sends or removes it
                self._note(name, _Equal(size, mtime_ns, there[name].stamp) if arrived else _PERHAPS_THERE)
            if not arrived and here.get(name) == files[name]:
                cut.append(name)
        if cut:
            raise InputError(f"{self.url}/{cut[0]} did not arrive completely")

    def remove_there(self, names: Collection[str]) -> None:
        """Removes objects. The digests of a checkpoint go first, as a checkpoint without them is incomplete."""
        for part in reversed(_last_ones_apart(names)):
            for name in self._in_parallel(self._remove, part):
                self._note(name, None)

    def _send(self, name: str, size: int) -> int:
        path, target = self.folder / name, f"{self._root}/{name}"
        if name not in self._equal:
            self._note(name, _PERHAPS_THERE)
        try:
            if size < _WHOLE:
                with path.open("rb") as file:
                    write_object(self._storage, target, file.read(size))
            else:
                self._storage.put_file(str(path), target)
        except FileNotFoundError:
            if path.exists():  # then the storage raised the error
                raise
        return size

    def _remove(self, name: str) -> int:
        with errors_of_storage(self.url), contextlib.suppress(FileNotFoundError):
            self._storage.rm_file(f"{self._root}/{name}")
        return 0

    def _in_parallel(
        self, work: Callable[[str], int], names: Collection[str], total: int = 0, title: str = ""
    ) -> Iterator[str]:
        """Calls `work` for each name, in threads. Yields each name when done. `work` returns bytes for the bar."""
        bar = tqdm(
            desc=title,
            total=total,
            unit="B",
            unit_scale=True,
            dynamic_ncols=True,
            leave=False,
            disable=not title,
            delay=2,
        )
        executor = ThreadPoolExecutor(_THREADS)
        try:
            futures = {executor.submit(work, name): name for name in names}
            for future in as_completed(futures):
                bar.update(future.result())
                yield futures[future]
        finally:
            executor.shutdown(cancel_futures=True)
            bar.close()


class _ChangedError(InputError):
    """An object changed after it was listed. The argument is its name."""


def incomplete_checkpoints(names: Collection[str]) -> set[str]:
    """Returns those of `names`, relative to a run's folder, that belong to checkpoints without digests."""
    of_checkpoints = {name: found[1] for name in names if (found := _CHECKPOINT.match(name))}
    return {name for name, folder in of_checkpoints.items() if folder + LAST not in names}


def _last_ones_apart(names: Collection[str]) -> tuple[Sequence[str], Sequence[str]]:
    last = [name for name in names if _CHECKPOINT.match(name) and name.endswith(f"/{LAST}")]
    return [name for name in names if name not in set(last)], last


def _version(about: dict) -> Version:
    stamps = (about.get(key) for key in ("generation", "ETag", "created", "mtime"))
    return Version(int(about["size"]), str(next(filter(None, stamps), "")))


def _is_copied(name: str) -> bool:
    """Returns whether a file is copied: no hidden one, none of Orbax's unfinished folders, no place outside."""
    return all(part and not part.startswith(".") and _UNFINISHED not in part for part in name.split("/"))
