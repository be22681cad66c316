"""Creates cache directories. A directory is complete or absent, even after interruptions and with several processes."""

import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from aia_jax.utils.files import check_room, exclusive_lock, os_errors_as_input_errors
from aia_jax.utils.paths import cache_root as cache_root

_MANIFEST = "whole.json"  # {file: size}; it is written last, so it shows that a directory is complete
_ABANDONED_AFTER = 24 * 3600  # after so many seconds without a write, a process on another host counts as dead


def cached_directory(parent: Path, kind: str, fingerprint: str, num_bytes: int, write: Callable[[Path], None]) -> Path:
    """Returns the directory `<parent>/<kind>-<fingerprint>`. Calls `write` to create the directory if necessary.

    `write` fills an empty temporary directory, which is then renamed. Other processes wait until then. On file systems
    without locks, they do not wait, and the directory of the first process to finish is kept. Directories of the same
    `kind` with another fingerprint, and incomplete directories of dead processes, are removed.

    Args:
        kind: kind of data, such as "train-448px". It must not contain "~".
        fingerprint: hash of all that determines the content.
        num_bytes: approximate size of the directory, for a check of the free space.

    Raises:
        InputError: the directory cannot be written or the disk is full.
    """
    path = parent / f"{kind}-{fingerprint}"
    if _is_complete(path):
        return path
    with os_errors_as_input_errors(parent, num_bytes, "config.data.cache_dir or $AIA_JAX_CACHE names another place"):
        parent.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(parent / f"{kind}.lock"):
            if not _is_complete(path):
                _sweep(parent, kind, path)
                check_room(parent, num_bytes)
                _write_and_rename(path, write)
    return path


def _write_and_rename(path: Path, write: Callable[[Path], None]) -> None:
    temporary = path.parent / f".{path.name}~{socket.gethostname()}~{os.getpid()}~{uuid.uuid4().hex[:8]}"
    temporary.mkdir()
    try:
        write(temporary)
        (temporary / _MANIFEST).write_text(json.dumps(_file_sizes(temporary)))
        try:
            temporary.rename(path)
        except OSError:
            if not _is_complete(path):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_complete(path: Path) -> bool:
    try:
        return json.loads((path / _MANIFEST).read_bytes()) == _file_sizes(path)
    except (OSError, ValueError):
        return False


def _file_sizes(directory: Path) -> dict[str, int]:
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / _MANIFEST)
    return {file.relative_to(directory).as_posix(): file.stat().st_size for file in files}


def _sweep(parent: Path, kind: str, path: Path) -> None:
    """Removes outdated, damaged and abandoned directories. Processes can still read their memory-mapped files."""
    for directory in parent.glob(f"{kind}-*"):
        shutil.rmtree(directory, ignore_errors=directory != path)
    for directory in filter(_is_abandoned, parent.glob(f".{kind}-*~*~*~*")):
        shutil.rmtree(directory, ignore_errors=True)


def _is_abandoned(directory: Path) -> bool:
    _, host, pid, _ = directory.name.rsplit("~", 3)
    if host != socket.gethostname():
        try:
            newest = max(path.stat().st_mtime for path in (directory, *directory.rglob("*")))
        except FileNotFoundError:
            return False
        return time.time() - newest > _ABANDONED_AFTER
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return False
    except ProcessLookupError:
        return True
    # A directory with the id of this process is from a dead process: this process has not written anything yet.
    return int(pid) == os.getpid()
