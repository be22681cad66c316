"""Reads bytes of a photo's file within limits. The module of each container, such as JPEG, works on these types."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from aia_jax.utils.errors import InputError

MOST_BYTES = 16 * 2**20  # of an XMP packet, and of any other metadata that is read at once
_MOST_TOTAL = 3 * MOST_BYTES  # of all metadata that is read from a file
_LEAST_COST = 256  # of a read, so that a file of millions of tiny parts does not take minutes
_BLOCK = 2**20

# A part of a file: bytes, or a range of the positions of bytes in the source.
Piece = bytes | range


class Source:
    """The bytes of a photo's file.

    Attributes:
        status: the status of the file when it was opened.
        size: number of bytes in the file.
    """

    def __init__(self, file: BinaryIO):
        self.status = os.fstat(file.fileno())
        self.size = self.status.st_size
        self._file = file
        self._left = _MOST_TOTAL

    def read(self, start: int, count: int, what: str) -> bytes:
        """Reads `count` bytes at position `start`. `what` names them in error messages.

        Raises:
            InputError: the file ends before, or there are too many bytes.
        """
        if start + count > self.size:
            raise InputError(
                f"{what} at byte {start:,} needs {count:,} bytes, but the file ends at byte {self.size:,}: "
                "it is cut off or damaged"
            )
        self.spend(count, what)
        self._file.seek(start)
        content = self._file.read(count)
        if len(content) < count:
            raise InputError("the file became shorter while it was read")
        return content

    def spend(self, count: int, what: str) -> None:
        """Counts `count` bytes of metadata. Raises InputError if there are too many."""
        self._left -= max(count, _LEAST_COST)
        if count > MOST_BYTES:
            raise InputError(f"{what} has {count:,} bytes, more than the limit of {MOST_BYTES:,}")
        if self._left < 0:
            raise InputError(f"the file has more than {_MOST_TOTAL:,} bytes of metadata, or too many parts")

    def blocks(self, pieces: Iterable[Piece]) -> Iterator[bytes]:
        """Yields the bytes of `pieces` in blocks of at most a megabyte, or a piece of bytes."""
        for piece in pieces:
            if isinstance(piece, bytes):
                yield piece
                continue
            if piece.stop > self.size:
                raise InputError("the file became shorter while it was read")
            self._file.seek(piece.start)
            for start in range(piece.start, piece.stop, _BLOCK):
                yield self._file.read(min(_BLOCK, piece.stop - start))

    def digest(self, pieces: Iterable[Piece]) -> bytes:
        """Returns a hash of the concatenated bytes of `pieces`."""
        state = hashlib.sha256()
        for block in self.blocks(pieces):
            state.update(block)
        return state.digest()


class Layout(NamedTuple):
    """The metadata of a photo's file, and what a new XMP packet must not change.

    Attributes:
        xmp: the XMP packets. A correct file has at most one.
        iptc: blocks of IPTC records or of Photoshop's resources, which contain IPTC records.
        rest: all other content, in order. Its concatenated bytes do not change.
        fixed: ranges of bytes that may not change and may not move either.
    """

    xmp: list[bytes]
    iptc: list[bytes]
    rest: list[Piece]
    fixed: list[range]


def outside(spans: Iterable[range], size: int) -> list[range]:
    """Returns the ranges of a file of `size` bytes that are in none of `spans`."""
    found, start = [], 0
    for span in sorted(spans, key=lambda span: span.start):
        found.append(range(start, span.start))
        start = max(start, span.stop)
    return [span for span in (*found, range(start, size)) if span]
