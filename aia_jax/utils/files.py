"""Functions for files: atomic writes, reads with precise errors, locks, checksums and listings."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import printable

_TEMPORARY = ".aia-temporary"  # suffix that no file of a user has
_ENCODINGS = ("cp1252", "mac_roman", "cp1250", "cp1251", "cp932", "gb18030", "cp949")  # the most frequent first


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Creates the folder of `path` and yields a temporary path. Moves the file to `path` if no error occurs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f".{path.name[:50]}.{threading.get_native_id()}{_TEMPORARY}"  # short, as file systems limit the length
    temporary = path.with_name(name)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary_files(folder: Path) -> None:
    """Removes the temporary files of `atomic_path` in a folder whose process was killed."""
    for name in os.listdir(folder):
        found = re.fullmatch(rf"\..*\.(\d+){re.escape(_TEMPORARY)}", name, re.DOTALL)
        if found and not Path("/proc", found[1]).exists():
            (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def os_errors_as_input_errors(directory: Path, num_bytes: int | None, advice: str) -> Iterator[None]:
    """Turns an OSError into an InputError that says why `directory` cannot be written, and ends with `advice`.

    If the disk is full, the message also says how many bytes are needed, `num_bytes`, if this number is known.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            why = error.strerror if num_bytes is None else f"about {num_bytes / 1e6:,.1f} MB are needed there"
            raise InputError(f"the disk of {directory} is full: {why}; {advice}") from error
        raise InputError(f"{directory} cannot be written: {error.strerror}; {advice}") from error


def disk_error(error: Exception) -> str:
    """Returns the reason, such as "No space left on device", if the disk caused an error of any type; otherwise ""."""
    number = error.errno if isinstance(error, OSError) else None
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
        if number == code or os.strerror(code) in str(error):
            return os.strerror(code)
    return ""


def check_room(directory: Path, num_bytes: int) -> None:
    """Raises the OSError of a full disk if the disk of `directory` has fewer than `num_bytes` free bytes."""
    if shutil.disk_usage(directory).free < num_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def check_writable(folder: Path, flag: str = "--output") -> None:
    """Raises InputError if `folder`, which need not exist, is a file or cannot be written. `flag` names it."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"{flag} {folder}{f': {there}' * (there != folder)} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{flag} {folder}: {there} cannot be written; make it writable, or name another folder")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically. Creates its folder."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically. Bytes of file names that are not UTF-8 become JSON escapes."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


def complete_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yields the byte offset and content of each complete line. Then removes an incomplete last line from the file."""
    end = 0
    file.seek(0)
    for line in file:
        if not line.endswith(b"\n"):
            break
        yield end, line
        end += len(line)
    file.truncate(end)


@contextlib.contextmanager
def exclusive_lock(path: Path, refusal: str = "") -> Iterator[None]:
    """Locks a file or a folder against other processes. The operating system releases the lock when a process dies.

    On file systems without locks, this function does nothing.

    Args:
        path: an existing folder, or a file. A missing file is created.
        refusal: the error message if another process has the lock; "": this function prints a note and waits.

    Raises:
        InputError: another process has the lock, and `refusal` is given.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_WRONLY | os.O_CREAT
    descriptor = os.open(path, flags, 0o666)
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if refusal:
                    raise InputError(refusal) from None
                tqdm.write(f"Another process is preparing {path.with_suffix('')}; waiting for it", file=sys.stderr)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sha256_of_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(folder: Path, suffixes: Sequence[str]) -> list[str]:
    """Returns the sorted relative paths of the files below `folder` with one of the suffixes, such as ".json".

    Ignores the case of a file's suffix. Skips hidden files and folders.
    """
    found = []
    for directory, folders, files in os.walk(folder):  # needs a fifth of the memory of Path.rglob
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = (name for name in files if os.path.splitext(name)[1].lower() in suffixes and not name.startswith("."))
        found += filter(os.path.isfile, (os.path.join(directory, name) for name in names))
    return sorted(os.path.relpath(path, folder) for path in found)


def read_text(path: Path, *, newline: str | None = None, encoding: str | None = None) -> str:
    """Reads a text file in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark.

    Args:
        newline: see Python's `open`.
        encoding: encoding of the file; "": the rule above; None: the same, and the command has no flag `--encoding`.

    Raises:
        InputError: the file cannot be read or has another encoding. The message shows probable encodings.
    """
    advice = "convert it to UTF-8" + (", or name its encoding with --encoding" if encoding is not None else "")
    try:
        if not encoding:
            with path.open("rb") as file:
                start = file.read(4096)
            head = start[:4]
            if head.startswith((b"PK\3\4", b"PAR1", b"\x1f\x8b")) and b"\0" in start:
                raise InputError(f"{path} is a spreadsheet, an archive or a binary file; write it as text, such as CSV")
            encoding = json.detect_encoding(head)  # by a byte-order mark or zero bytes
            if encoding[-2:] in ("le", "be") and not re.fullmatch(rb"(\0[\x01-\x7f]){2}|([\x01-\x7f]\0){2}", head):
                encoding = "utf-8"
        with path.open(encoding=encoding, newline=newline) as file:
            return file.read().removeprefix("\ufeff")
    except UnicodeError as error:
        name = encoding.removesuffix("-sig").upper()
        why = f"{error.reason} at byte {error.start}" if isinstance(error, UnicodeDecodeError) else error
        line = next((line for line in path.read_bytes().splitlines() if not line.isascii()), b"")
        readings = {name: line.decode(name, errors="replace") for name in _ENCODINGS}
        shown = [f"\n  as {name}: {printable(text):.60}" for name, text in readings.items() if "\ufffd" not in text]
        advice += f"; its encoding may be one of these:{''.join(shown)}" if shown else ""
        raise InputError(f"{path} is not {name} text: {why}; {advice}") from None
    except LookupError:
        raise InputError(f"{encoding!r} is no known encoding of text; examples: utf-8, utf-16, cp1252") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def read_json(path: str | Path, expected: str, *, fields: Sequence[str] = (), lines: bool = False) -> Any:
    """Reads a JSON file; see `read_text` for its encoding.

    Args:
        expected: description of the expected content, for error messages.
        fields: names of the fields to keep in each object. An empty sequence keeps all fields.
        lines: whether the file may also be JSON lines, one object in each. They are read as a list.

    Raises:
        InputError: the file cannot be read, is not JSON, is nested too deeply, or an object has a field twice.
    """
    path = Path(path)

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise InputError(f"{path} has the field {twice!r:.80} twice in one object; expected {expected}")
        return {name: found[name] for name in fields if name in found} if fields else found

    try:
        text = read_text(path)
        # In JSON, a comma stands between two objects, so only JSON lines have an object after the end of another.
        text, count = re.subn(r"(?<=\})([ \t\r]*\n\s*)(?=\{)", r",\1", text) if lines else (text, 0)
        return json.loads(f"[{text}]" if count else text, object_pairs_hook=members)
    except InputError:
        raise
    except json.JSONDecodeError as error:
        where = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise InputError(f"{path} is not JSON: {where}; expected {expected}") from None
    except ValueError:  # Python does not parse integers of more than 4,300 digits
        raise InputError(f"{path} holds a number of thousands of digits; expected {expected}") from None
    except RecursionError:
        raise InputError(f"{path} is nested too deeply; expected {expected}") from None
