"""Finds and changes the XMP of photos, in sidecars and in the photos themselves.

A sidecar of `photo.jpg` is `photo.jpg.xmp` or `photo.xmp`. Programs that read both prefer the first.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from aia_jax.data.photo_metadata.embedded import EmbeddedMetadata, read_embedded, write_embedded_xmp
from aia_jax.data.photo_metadata.keywords import KeywordPath, read_keywords
from aia_jax.data.photo_metadata.rdf_elements import MAX_BYTES
from aia_jax.data.photo_metadata.xmp_packet import EMPTY_PACKET, EMPTY_SIDECAR, XmpPacket, clean_text
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import atomic_path

FORMS = ("photo.jpg.xmp", "photo.xmp")  # names of the sidecar of photo.jpg
SUFFIX = ".xmp"
# A function of a packet, and whether the packet is new. It returns the new packet, or None for no packet.
Change = Callable[[XmpPacket, bool], XmpPacket | None]
_ATTEMPTS = 5  # to change a sidecar that another program writes at the same time


def sidecar_path(photo: Path, form: str) -> Path:
    """Returns the path of the sidecar of a photo in one of `FORMS`. An existing sidecar may have the suffix .XMP."""
    path = photo.with_name(photo.name + SUFFIX) if form == FORMS[0] else photo.with_suffix(SUFFIX)
    upper = path.with_suffix(SUFFIX.upper())
    return upper if not os.path.exists(path) and os.path.exists(upper) else path


def read_sidecar(path: Path) -> bytes:
    """Reads a sidecar. Raises InputError if it cannot be read or is too large."""
    try:
        if not path.is_file():
            raise InputError("it is not a file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"it cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise InputError(f"it has more than {MAX_BYTES / 2**20:.0f} MiB")
    return content


def change_sidecar(path: Path, change: Change) -> bool:
    """Changes a sidecar, creates it or deletes it. The new content replaces the old one in one step.

    If another program writes the sidecar meanwhile, `change` is called again with its content.

    Returns:
        Whether the sidecar was changed.

    Raises:
        InputError: the sidecar cannot be read, is no XMP or cannot be written.
        OSError: the disk is full.
    """
    path = Path(os.path.realpath(path))  # a link stays a link
    for _ in range(_ATTEMPTS):
        with _os_errors_but_full_disk():
            before = _state(path)
        content = read_sidecar(path) if before else EMPTY_SIDECAR
        if not content.strip(b"\0 \t\r\n"):
            raise InputError("it is empty; delete it, or restore it from a backup")
        packet = change(XmpPacket(content), not before)
        if (packet is None and not before) or (packet and packet.content == content):
            return False
        # The permission bits count even for the administrator, who can write all files.
        if before and not (os.access(path, os.W_OK) and path.stat().st_mode & 0o222):
            raise InputError("it is read-only")
        with contextlib.suppress(_Changed), _os_errors_but_full_disk():
            _replace(path, packet, before)
            return True
    raise InputError("another program writes it at the same time; close that program and try again")


def change_embedded(photo: Path, change: Change, *, keep_time: bool = False) -> bool:
    """Changes the XMP in a photo; see `change_sidecar` and `write_embedded_xmp`."""
    content = _embedded(photo).xmp
    packet = change(XmpPacket(content or EMPTY_PACKET), not content)
    if (packet is None and not content) or (packet and packet.content == content):
        return False
    with _without_path(photo), _os_errors_but_full_disk():
        write_embedded_xmp(photo, packet.content if packet else b"", keep_time=keep_time)
    return True


def photo_keywords(photo: Path) -> tuple[list[KeywordPath], str]:
    """Returns the keywords of a photo without automatic ones, and the place that has them, such as "photo.jpg.xmp".

    The first place with keywords decides, as in programs that read both: the sidecar `photo.jpg.xmp`, `photo.xmp`, the
    XMP in the photo, the IPTC in the photo. The place is "" if there is no keyword.

    Raises:
        InputError: a place cannot be read. The message names it.
    """
    for form in FORMS:
        path = sidecar_path(photo, form)
        if os.path.exists(path):
            try:
                found = read_keywords(XmpPacket(read_sidecar(path)))
            except InputError as error:
                raise InputError(f"its sidecar {path.name}: {error}") from None
            if found:
                return found, form
    return embedded_keywords(photo)


def embedded_keywords(photo: Path) -> tuple[list[KeywordPath], str]:
    """Like `photo_keywords`, for the keywords in the photo alone."""
    metadata = _embedded(photo)
    if metadata.xmp and (found := read_keywords(XmpPacket(metadata.xmp))):
        return found, "XMP in the photo"
    found = [(text,) for keyword in metadata.iptc_keywords if (text := clean_text(keyword))]
    return found, "IPTC in the photo" if found else ""


def _embedded(photo: Path) -> EmbeddedMetadata:
    with _without_path(photo):
        return read_embedded(photo)


@contextlib.contextmanager
def _without_path(photo: Path) -> Iterator[None]:
    """Removes the path of the photo, which the caller names, from the message of an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).removeprefix(f"{photo}: ")) from error.__cause__


@contextlib.contextmanager
def _os_errors_but_full_disk() -> Iterator[None]:
    """Turns an OSError into an InputError, except for a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"it cannot be written: {error.strerror}") from None


def _replace(path: Path, packet: XmpPacket | None, before: tuple[int, ...]) -> None:
    if packet is None:
        if _state(path) != before:
            raise _Changed
        return path.unlink()
    with atomic_path(path) as temporary:
        temporary.write_bytes(packet.content)
        if before:
            shutil.copymode(path, temporary)
        if _state(path) != before:
            raise _Changed


class _Changed(Exception):
    """Another program has changed the sidecar."""


def _state(path: Path) -> tuple[int, ...]:
    """Returns facts that change when a file is written; () if it does not exist."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns
