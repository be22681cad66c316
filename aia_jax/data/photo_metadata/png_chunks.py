"""Finds and replaces the XMP packet in the chunks of a PNG file. PNG specification, third edition, section 11.3.3."""

import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from aia_jax.data.photo_metadata.container import MOST_BYTES, Layout, Piece, Source, outside
from aia_jax.utils.errors import InputError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_XMP = b"XML:com.adobe.xmp"
# ImageMagick writes these as hexadecimal digits.
_XMP_PROFILE = b"Raw profile type xmp"
_IPTC_PROFILES = (b"Raw profile type iptc", b"Raw profile type 8bim")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_LONGEST_KEYWORD = 79


class _Chunk(NamedTuple):
    kind: bytes
    start: int  # position of the chunk's length
    stop: int
    keyword: bytes  # of a text chunk

    @property
    def is_xmp(self) -> bool:
        return self.keyword in (_XMP, _XMP_PROFILE)


def scan(source: Source) -> Layout:
    """Reads the XMP packets and IPTC records of a PNG file."""
    xmp, iptc, spans = [], [], []
    for chunk in _chunks(source):
        if chunk.is_xmp:
            spans.append(range(chunk.start, chunk.stop))
            text = _text(source, chunk)
            xmp.append(_profile(text) if chunk.keyword == _XMP_PROFILE else text)
        elif chunk.keyword in _IPTC_PROFILES:
            iptc.append(_profile(_text(source, chunk)))
    return Layout(xmp, iptc, outside(spans, source.size), [])


def rewrite(source: Source, packet: bytes) -> list[Piece]:
    """Returns the pieces of the file with `packet` as its only XMP packet, or with none if `packet` is empty.

    A new chunk stands after the header, before the image data.
    """
    new = b""
    if packet:
        content = b"iTXt" + _XMP + b"\0\0\0\0\0" + packet  # not compressed, without a language
        new = (len(content) - 4).to_bytes(4, "big") + content + zlib.crc32(content).to_bytes(4, "big")
    place = None
    for chunk in _chunks(source):
        if chunk.is_xmp:
            place = range(chunk.start, chunk.stop)
            break
        if chunk.kind == b"IHDR" and place is None:
            place = range(chunk.stop, chunk.stop)
    if place is None:
        raise InputError("the PNG file has no header chunk: it is damaged")
    return [range(place.start), new, range(place.stop, source.size)]


def _chunks(source: Source) -> Iterator[_Chunk]:
    start, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        head = source.read(start, 8, "a PNG chunk")
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        stop = start + length + 12
        if stop > source.size or not re.fullmatch(rb"[A-Za-z]{4}", kind):
            raise InputError(
                f"the PNG chunk at byte {start:,} has the name {kind!r} and {length:,} bytes of data, and the file "
                f"ends at byte {source.size:,}: it is cut off or damaged"
            )
        count = min(length, _LONGEST_KEYWORD + 1) if kind in _TEXTS else 0
        keyword = source.read(start + 8, count, "a PNG chunk").partition(b"\0")[0]
        yield _Chunk(kind, start, stop, keyword)
        start = stop


def _text(source: Source, chunk: _Chunk) -> bytes:
    """Returns the text of a chunk. Decompresses it if needed."""
    where = f"the PNG text {chunk.keyword.decode('latin-1')!r} at byte {chunk.start:,}"
    content = source.read(chunk.start + 4, chunk.stop - chunk.start - 4, where)
    if zlib.crc32(content[:-4]) != int.from_bytes(content[-4:], "big"):
        raise InputError(f"{where} has a wrong checksum: the file is damaged")
    text, compressed = content[5 + len(chunk.keyword) : -4], chunk.kind == b"zTXt"
    if chunk.kind != b"tEXt":
        count = 1 if compressed else 2  # method; flag and method
        compressed = compressed or text[:1] == b"\1"
        text = text[count:]
    if chunk.kind == b"iTXt":
        text = text.partition(b"\0")[2].partition(b"\0")[2]  # language and translated keyword
    if not compressed:
        return text
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(text, MOST_BYTES + 1)
    except zlib.error as error:
        raise InputError(f"{where} cannot be decompressed: {error}") from None
    source.spend(len(text), where)
    if not inflater.eof:
        raise InputError(f"{where} is compressed, and cut off: the file is damaged")
    return text


def _profile(text: bytes) -> bytes:
    """Decodes a profile of ImageMagick: a line with its name, the number of bytes, and hexadecimal digits."""
    try:
        _, length, digits = text.lstrip().split(b"\n", 2)
        content = bytes.fromhex(digits.decode("ascii"))
        if len(content) == int(length[:9]):
            return content
    except ValueError:
        pass
    raise InputError("a PNG text 'Raw profile' is not its length and hexadecimal digits: the file is damaged")
