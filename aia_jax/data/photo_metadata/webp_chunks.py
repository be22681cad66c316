"""Finds and replaces the XMP packet in the chunks of a WebP file. RFC 9649, section 2."""

from collections.abc import Iterator
from typing import NamedTuple

from aia_jax.data.photo_metadata.container import Layout, Piece, Source, outside
from aia_jax.utils.errors import InputError

_HAS_XMP, _HAS_ALPHA = 0x04, 0x10  # flags of VP8X
_FIRST = 12  # position of the first chunk
_MOST_RIFF = 2**32 - 10  # bytes after the length


class _Chunk(NamedTuple):
    kind: bytes
    start: int
    data: int  # position of the data
    length: int  # of the data
    stop: int  # with the byte that makes the length even

    @property
    def is_xmp(self) -> bool:
        return self.kind in (b"XMP ", b"XMP\0")  # some programs write a zero byte


def scan(source: Source) -> Layout:
    """Reads the XMP packets of a WebP file."""
    chunks = list(_chunks(source))
    xmp = [source.read(chunk.data, chunk.length, "the XMP packet") for chunk in chunks if chunk.is_xmp]
    spans = [range(chunk.start, chunk.stop) for chunk in chunks if chunk.is_xmp or chunk.kind == b"VP8X"]
    spans += [range(chunk.data + chunk.length, chunk.stop) for chunk in chunks]
    features = _features(source, chunks)
    return Layout(xmp, [], [_flagged(features, False), *outside([range(_FIRST), *spans], source.size)], [])


def rewrite(source: Source, packet: bytes) -> list[Piece]:
    """Returns the pieces of the file with `packet` as its only XMP packet, or with none if `packet` is empty.

    A new chunk stands after the others. A file of the simple format gets the chunk VP8X, which is needed for XMP.
    """
    chunks = list(_chunks(source))
    features = _flagged(_features(source, chunks), bool(packet))
    end = chunks[-1].stop
    after = range(end, source.size)
    place = next((range(chunk.start, chunk.stop) for chunk in chunks if chunk.is_xmp), after[:0])
    body = _FIRST + 18 * (chunks[0].kind == b"VP8X")
    new = b"XMP " + len(packet).to_bytes(4, "little") + packet + b"\0" * (len(packet) % 2) if packet else b""
    if place.start == end and chunks[-1].length % 2 and chunks[-1].stop - chunks[-1].data == chunks[-1].length:
        new = b"\0" + new  # the byte that makes the last length even is missing
    header = b"VP8X" + (10).to_bytes(4, "little") + features
    length = 4 + len(header) + (end - body) - len(place) + len(new)
    if length > _MOST_RIFF:
        raise InputError("the WebP file would be longer than 4 GB")
    start = b"RIFF" + length.to_bytes(4, "little") + b"WEBP" + header
    return [start, range(body, place.start), new, range(place.stop, end), after]


def _chunks(source: Source) -> Iterator[_Chunk]:
    end = 8 + int.from_bytes(source.read(4, 4, "the WebP header"), "little")
    if end > source.size:
        raise InputError(f"the WebP file has {source.size:,} of {end:,} bytes: it is cut off")
    start = _FIRST
    while start < end or start == _FIRST:
        head = source.read(start, 8, "a WebP chunk")
        length = int.from_bytes(head[4:], "little")
        data = start + 8
        if data + length > end:
            raise InputError(
                f"the WebP chunk {head[:4]!r} at byte {start:,} has {length:,} bytes, but the image ends at byte "
                f"{end:,}: the file is damaged"
            )
        stop = min(data + length + length % 2, end)
        yield _Chunk(head[:4], start, data, length, stop)
        start = stop


def _features(source: Source, chunks: list[_Chunk]) -> bytes:
    """Returns the data of the chunk VP8X: flags, three zero bytes, and width and height minus 1 in three bytes each.

    If there is no such chunk, these are the features of the image data.
    """
    first = chunks[0]
    head = source.read(first.data, min(first.length, 10), "the first WebP chunk")
    if first.kind == b"VP8X" and first.length == 10:
        return head
    flags = 0
    if first.kind == b"VP8 " and len(head) == 10 and head[3:6] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(head[place : place + 2], "little") & 0x3FFF for place in (6, 8))
    elif first.kind == b"VP8L" and len(head) >= 5 and head[0] == 0x2F:
        bits = int.from_bytes(head[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        flags = _HAS_ALPHA * (bits >> 28 & 1)
    else:
        raise InputError(f"the first WebP chunk, {first.kind!r}, has no size of the image: the file is damaged")
    if not width or not height:
        raise InputError("the WebP image has no pixels: the file is damaged")
    return bytes([flags, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


def _flagged(features: bytes, has_xmp: bool) -> bytes:
    return bytes([features[0] & ~_HAS_XMP | _HAS_XMP * has_xmp]) + features[1:]
