"""Files that are written whole or not at all, and which there are."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aia_jax.errors import InputError


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:50]}.{os.getpid()}")  # so that a long name stays possible
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, the whole file or none.

    Bytes of file names that are no UTF-8 become escapes, which JSON's readers turn back.
    """
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


@contextlib.contextmanager
def held(path: Path, refusal: str) -> Iterator[None]:
    """Holds `path`, made if it is not there, while no other process does; the system lets go of it after a kill.

    On file systems without locks it holds nothing.

    Raises:
        InputError: another process holds it; the message is `refusal`.
        OSError: it cannot be written.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(refusal) from None
        except OSError:
            pass
        yield


def shown_files(folder: Path, suffixes: Sequence[str]) -> list[str]:
    """All files below `folder` whose names end so, in whatever case, relative to it and sorted, without hidden ones."""
    found = []
    for directory, folders, files in os.walk(folder):  # holds a fifth of the memory that Path.rglob does
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = os.path.join(directory, name)
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes and os.path.isfile(path):
                found.append(os.path.relpath(path, folder))
    return sorted(found)
