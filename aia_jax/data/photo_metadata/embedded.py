"""Reads XMP packets and IPTC keywords inside photos, and writes XMP packets: JPEG, PNG, WebP, TIFF and BigTIFF."""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from aia_jax.data.photo_metadata import jpeg_segments, png_chunks, tiff_entries, webp_chunks
from aia_jax.data.photo_metadata.container import MOST_BYTES, Layout, Piece, Source
from aia_jax.data.photo_metadata.iptc import iptc_keywords
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import atomic_path, check_room, os_errors_as_input_errors


class EmbeddedMetadata(NamedTuple):
    """Metadata inside a photo.

    Attributes:
        xmp: the XMP packet; b"" if there is none.
        iptc_keywords: the keywords in IPTC records, each once.
    """

    xmp: bytes
    iptc_keywords: tuple[str, ...]


def read_embedded(path: Path) -> EmbeddedMetadata:
    """Reads the metadata inside a photo. The content decides its format, not its name.

    Reads only the parts of the file that hold metadata. A file of another format has none.

    Raises:
        InputError: the file cannot be read, is damaged or cut off, or has an XMP packet of more than 16 MiB.
    """
    with _opened(path) as source:
        container = _container(source)
        if container is None:
            return EmbeddedMetadata(b"", ())
        layout = container.scan(source)
        keywords = dict.fromkeys(keyword for block in layout.iptc for keyword in iptc_keywords(block))
        return EmbeddedMetadata(next(iter(layout.xmp), b""), tuple(keywords))


def write_embedded_xmp(path: Path, packet: bytes, *, keep_time: bool = True) -> None:
    """Replaces the XMP packet inside a photo, or adds one. All other bytes of the file stay as they are.

    Writes a new file beside the photo, compares it with the photo, and renames it. The photo keeps its permissions and
    extended attributes, and its owner where the system allows. A link to the photo stays a link. Other hard links to
    the same file keep the old content. If the photo has this packet already, nothing is written. Signatures over the
    whole file, such as those of C2PA, do not hold afterwards.

    Args:
        packet: the complete packet, with its padding; b"" removes the packet of the photo.
        keep_time: whether the photo keeps the time of its last modification.

    Raises:
        InputError: the photo cannot be written, is read-only or damaged, its format is another one, it has several
            packets, or the packet is too long for it: 65,502 bytes in JPEG, and otherwise 16 MiB. The photo is
            unchanged.
    """
    with _opened(path) as source:
        container = _container(source)
        if container is None:
            raise InputError("XMP can be written into JPEG, PNG, WebP and TIFF files only; write an XMP file beside it")
        layout = container.scan(source)
        if len(layout.xmp) > 1:
            raise InputError(
                f"the file has {len(layout.xmp)} XMP packets, but programs read only one; write an XMP file beside it"
            )
        if packet == next(iter(layout.xmp), b""):
            return
        if len(packet) > MOST_BYTES:
            raise InputError(f"the XMP packet has {len(packet):,} bytes, more than the limit of {MOST_BYTES:,}")
        pieces = container.rewrite(source, packet)
        _replace(Path(os.path.realpath(path)), source, layout, pieces, packet, keep_time)


def _replace(target: Path, source: Source, layout: Layout, pieces: list[Piece], packet: bytes, keep_time: bool) -> None:
    """Writes `pieces` beside `target`, compares the result with `source`, and renames it to `target`."""
    for place in (target, target.parent):
        # The permission bits count even for the administrator, who can write all files.
        if not (os.access(place, os.W_OK) and place.stat().st_mode & 0o222):
            raise InputError(f"{place} is read-only; change its permissions to write XMP into the photo")
    before = source.status
    with os_errors_as_input_errors(target.parent, source.size + len(packet), "the photo is unchanged"):
        check_room(target.parent, source.size + len(packet))
        with atomic_path(target) as temporary:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # perhaps a private photo
            with os.fdopen(descriptor, "wb") as file:
                file.writelines(source.blocks(pieces))
                file.flush()
                os.fsync(file.fileno())
            with temporary.open("rb") as file:
                _check(source, layout, Source(file), packet)
            with contextlib.suppress(PermissionError):
                os.chown(temporary, before.st_uid, before.st_gid)
            shutil.copystat(target, temporary)
            if not keep_time:
                os.utime(temporary)
            now = target.stat()
            if (now.st_mtime_ns, now.st_size, now.st_ino) != (before.st_mtime_ns, before.st_size, before.st_ino):
                raise InputError("another program changed the photo; repeat the command")


def _check(source: Source, layout: Layout, written: Source, packet: bytes) -> None:
    """Raises InputError unless the written file has the packet, and all other content of the source."""
    container = _container(written)
    found = container.scan(written) if container is not None else None
    if (
        found is None
        or found.xmp != [packet] * bool(packet)
        or written.digest(found.rest) != source.digest(layout.rest)
        or written.digest(layout.fixed) != source.digest(layout.fixed)
    ):
        raise InputError("the new file would differ from the photo in more than its XMP; the photo is unchanged")


def _container(source: Source) -> ModuleType | None:
    """Returns the module for the format of a file; None if there is none."""
    head = source.read(0, min(source.size, 12), "the file")
    if head.startswith(b"\xff\xd8\xff"):
        return jpeg_segments
    if head.startswith(png_chunks.SIGNATURE):
        return png_chunks
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return webp_chunks
    return tiff_entries if head.startswith(tiff_entries.SIGNATURES) else None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Source]:
    """Opens a photo. Error messages start with its path."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait
            raise InputError("it is not a file")
        with path.open("rb") as file:
            yield Source(file)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error.__cause__
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
