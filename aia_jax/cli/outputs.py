"""Checks the output folder of a command before its work starts. Writes all files of a command or none."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from aia_jax.cli.exit_codes import exit_on_sigterm
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import check_room, check_writable, os_errors_as_input_errors


def check_output_folder(folder: Path, files: Sequence[str] = (), *, force: bool = False) -> None:
    """Raises InputError if `--output` cannot be a folder, or if it has one of `files` and `--force` is not given."""
    check_writable(folder)
    for path in (folder / name for name in files):
        if path.is_dir():
            raise InputError(f"{path} is a folder; name another --output")
        if path.exists() and not force:
            raise InputError(f"{path} is there already; --force replaces it, --output names another place")


@contextlib.contextmanager
def staged_output(folder: Path, num_bytes: int | None = None) -> Iterator[Path]:
    """Context manager for a temporary folder. At the end of the block, the files in it are moved to `folder`.

    The files are moved in the order in which they were written. After an error or a signal, no file is moved.

    Args:
        num_bytes: approximate number of bytes to write, for a check of the free space. None: unknown.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    with exit_on_sigterm(), os_errors_as_input_errors(folder, num_bytes, "--output names another place"):
        folder.mkdir(parents=True, exist_ok=True)
        check_room(folder, num_bytes or 0)
        with tempfile.TemporaryDirectory(prefix=".aia.", dir=folder) as temporary:
            yield Path(temporary)
            for path in sorted(Path(temporary).iterdir(), key=lambda path: path.lstat().st_mtime_ns):
                path.replace(folder / path.name)
