"""Writes the labels of many photos as Parquet files, in a local folder or in object storage.

    _settings.json             the settings that determine the labels; one set of settings for all photos
    labels-<number>.parquet    name, labels, scores, problem: a row for each photo, at most 10,000 rows
    problems-<number>.parquet  the same columns, for the photos that cannot be read: no labels, and the reason

Each file is written once and atomically, so an interruption leaves complete files. The next call computes only the
photos that are in no `labels` file, and replaces the `problems` files. So each photo has one row.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aia_jax.inference.annotation_output import check_settings
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import check_writable, exclusive_lock, remove_temporary_files, write_bytes
from aia_jax.utils.packages import import_with_extra
from aia_jax.utils.storage import errors_of_storage, is_url, open_storage, write_object

SETTINGS = "_settings.json"  # readers of folders of Parquet files skip names with _
_FILE = re.compile(r"(labels|problems)-(\d{6,})\.parquet")
_ROWS = 10_000  # in a file
_SECONDS = 60  # after which a file is written with fewer rows; an interruption loses at most this time

Row = tuple[str, Sequence[tuple[str, float]], str]  # name, pairs of a label and its score, and a problem or ""


_COLUMNS = ("name", "labels", "scores", "problem")


class ParquetOutput(contextlib.AbstractContextManager):
    """Context manager for the output of `aia annotate --ray`. At exit, writes the rows that are still in memory.

    Args:
        target: folder, or URL of object storage.
        settings: the settings that determine the labels, as JSON values.
        force: whether to delete the files of earlier calls.

    Attributes:
        done: names of the photos whose labels are stored; see `has`. Bytes that are not UTF-8 are escapes as "\\udce9".

    Raises:
        InputError: the folder has labels from other settings, labels without `_settings.json`, or damaged files;
            another process on this machine writes to the folder; or it cannot be written.
    """

    def __init__(self, target: Path | str, settings: dict[str, Any], *, force: bool = False):
        import_with_extra("pyarrow.parquet", "writing Parquet files", "ray")
        self._exit = contextlib.ExitStack()
        self._files = _Bucket(target) if is_url(target) else _Folder(Path(target), self._exit)
        self._rows: dict[str, list[Row]] = {"labels": [], "problems": []}
        self._oldest = 0.0
        with contextlib.ExitStack() as on_error:
            on_error.callback(self._exit.close)
            names = self._files.names()
            ours = sorted(name for name in names if _FILE.fullmatch(name))
            if not force:
                self._check(names, ours, settings)
            old = [name for name in ours if force or name.startswith("problems")]
            if SETTINGS not in names or force:
                self._files.remove([*old, *([SETTINGS] if SETTINGS in names else [])])
                self._files.write(SETTINGS, (json.dumps(settings, indent=1) + "\n").encode())
            else:
                self._files.remove(old)
            kept = [name for name in ours if name not in old]
            self._next = 1 + max((int(_FILE.fullmatch(name)[2]) for name in ours), default=-1)
            self.done = {name for file in kept for name in self._read(file, ["name"])["name"].to_pylist()}
            on_error.pop_all()

    def has(self, name: str) -> bool:
        """Returns whether the labels of a photo are stored."""
        return as_utf8(name) in self.done

    def add(self, rows: Sequence[Row]) -> None:
        """Adds rows of photos that are not in `done`. Writes a file if there are enough rows, or after a minute."""
        self._oldest = self._oldest or time.monotonic()
        for row in rows:
            self._rows["problems" if row[2] else "labels"].append(row)
        if time.monotonic() - self._oldest > _SECONDS or any(len(some) >= _ROWS for some in self._rows.values()):
            self.write()

    def write(self) -> None:
        """Writes the rows that are in memory."""
        import pyarrow
        from pyarrow import parquet

        self._oldest = 0.0
        columns = {"labels": pyarrow.list_(pyarrow.string()), "scores": pyarrow.list_(pyarrow.float32())}
        schema = pyarrow.schema({"name": pyarrow.string(), **columns, "problem": pyarrow.string()})
        for kind, rows in self._rows.items():
            if not rows:
                continue
            values = {
                "name": [as_utf8(name) for name, *_ in rows],
                "labels": [[label for label, _ in labels] for _, labels, _ in rows],
                "scores": [[score for _, score in labels] for _, labels, _ in rows],
                "problem": [problem for *_, problem in rows],
            }
            file = io.BytesIO()
            parquet.write_table(pyarrow.table(values, schema), file, write_page_checksum=True)
            self._files.write(f"{kind}-{self._next:06}.parquet", file.getvalue())
            if kind == "labels":
                self.done.update(values["name"])
            self._next += 1
            rows.clear()

    def read(self) -> Iterator[Row]:
        """Yields all rows of the files: first those with labels, then those with a problem."""
        for file in sorted(name for name in self._files.names() if _FILE.fullmatch(name)):
            table = self._read(file).to_pydict()
            for name, labels, scores, problem in zip(*map(table.get, _COLUMNS), strict=True):
                yield name, list(zip(labels, scores, strict=True)), problem

    def __exit__(self, *_: object) -> None:
        with self._exit:
            self.write()

    def _check(self, names: Sequence[str], ours: Sequence[str], settings: dict[str, Any]) -> None:
        if SETTINGS in names:
            check_settings(f"{self._files}/{SETTINGS}", self._files.read(SETTINGS), settings)
        elif ours:
            problem = f"{self._files} has {ours[0]}, without the {SETTINGS} that says what made it"
            raise InputError(f"{problem}; --force starts anew, --output names another place")

    def _read(self, name: str, columns: Sequence[str] = _COLUMNS) -> Any:
        import pyarrow
        from pyarrow import parquet

        content = io.BytesIO(self._files.read(name))
        try:
            return parquet.read_table(content, columns=list(columns), page_checksum_verification=True)
        except (pyarrow.ArrowException, OSError) as error:  # OSError: of a damaged page
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{self._files}/{name} is damaged ({reason}); delete it, and its photos are read again"
            ) from None


class _Folder:
    """Files in a local folder, locked against other processes."""

    def __init__(self, folder: Path, locks: contextlib.ExitStack):
        check_writable(folder)
        folder.mkdir(parents=True, exist_ok=True)
        refusal = f"another process is annotating into {folder}; wait for it, or name another --output"
        locks.enter_context(exclusive_lock(folder, refusal))
        remove_temporary_files(folder)
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def names(self) -> list[str]:
        return [path.name for path in self._folder.iterdir()]

    def read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        write_bytes(self._folder / name, content)

    def remove(self, names: Sequence[str]) -> None:
        for name in names:
            (self._folder / name).unlink()


class _Bucket:
    """Objects in object storage. There are no locks."""

    def __init__(self, url: str):
        self._url = url.rstrip("/")
        self._storage, self._path = open_storage(url)

    def __str__(self) -> str:
        return self._url

    def names(self) -> list[str]:
        with errors_of_storage(self._url):
            self._storage.invalidate_cache()
            bucket = self._path.partition("/")[0]
            self._storage.ls(bucket)  # raises FileNotFoundError if there is no such bucket
            prefix = f"{self._path}/"
            return [name.removeprefix(prefix) for name in self._storage.find(self._path) if name.startswith(prefix)]

    def read(self, name: str) -> bytes:
        with errors_of_storage(self._url):
            return self._storage.cat_file(f"{self._path}/{name}")

    def write(self, name: str, content: bytes) -> None:
        with errors_of_storage(self._url):
            write_object(self._storage, f"{self._path}/{name}", content)

    def remove(self, names: Sequence[str]) -> None:
        with errors_of_storage(self._url):
            for name in names:
                self._storage.rm_file(f"{self._path}/{name}")


def as_utf8(name: str) -> str:
    """Returns the name of a photo in the files: bytes that are not UTF-8 are escapes."""
    return name.encode(errors="backslashreplace").decode()
