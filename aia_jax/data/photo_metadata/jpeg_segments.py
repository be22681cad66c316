"""Finds and replaces the XMP packet in the segments of a JPEG file. Reads nothing after the start of the image data.

XMP Specification Part 3, section 1.1.3, and CIPA DC-007 (Multi-Picture Format).
"""

from collections.abc import Iterator
from typing import NamedTuple

from aia_jax.data.photo_metadata.container import Layout, Piece, Source, outside
from aia_jax.utils.errors import InputError

_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_EXIF = b"Exif\0"
_PHOTOSHOP = b"Photoshop 3.0\0"
_PICTURES = b"MPF\0"
_MOST_PACKET = 65_502  # bytes, by the XMP specification
_ALONE = (0x01, *range(0xD0, 0xD8))  # markers without a length
_APP0, _APP1, _APP2, _APP13 = 0xE0, 0xE1, 0xE2, 0xED
_ENDS = (0xD9, 0xDA)  # end of image, start of scan


class _Segment(NamedTuple):
    marker: int
    start: int  # position of the marker
    stop: int
    name: bytes  # the first bytes of the content

    @property
    def is_xmp(self) -> bool:
        return self.marker == _APP1 and self.name.startswith(_XMP)


def scan(source: Source) -> Layout:
    """Reads the XMP packets and Photoshop's resources of a JPEG file."""
    xmp, spans, photoshop = [], [], []
    for segment in _segments(source):
        if segment.is_xmp:
            spans.append(range(segment.start, segment.stop))
            xmp.append(_content(source, segment, _XMP))
        elif segment.marker == _APP13 and segment.name.startswith(_PHOTOSHOP):
            photoshop.append(_content(source, segment, _PHOTOSHOP))
    # A resource may start in one segment and end in the next.
    return Layout(xmp, [b"".join(photoshop)] if photoshop else [], outside(spans, source.size), [])


def rewrite(source: Source, packet: bytes) -> list[Piece]:
    """Returns the pieces of the file with `packet` as its only XMP packet, or with none if `packet` is empty.

    A new segment stands after the EXIF segment, as other programs write it.

    Raises:
        InputError: the packet is too long, or its new length would break links to other images in the file.
    """
    if len(packet) > _MOST_PACKET:
        raise InputError(
            f"the XMP packet has {len(packet):,} bytes, but a JPEG file has room for {_MOST_PACKET:,}; "
            "write it to an XMP file beside the photo"
        )
    new = b"\xff\xe1" + (len(_XMP) + len(packet) + 2).to_bytes(2, "big") + _XMP + packet if packet else b""
    place, found, pictures = range(2, 2), False, False
    for segment in _segments(source):
        pictures = pictures or (segment.marker == _APP2 and segment.name.startswith(_PICTURES))
        if segment.is_xmp:
            place, found = range(segment.start, segment.stop), True
            break
        exif = segment.marker == _APP1 and segment.name.startswith(_EXIF)
        if (exif or segment.marker == _APP0) and not pictures:
            place = range(segment.stop, segment.stop)
    if len(new) != len(place):
        # Positions in the list of pictures (MPF) count from this list. Those of AFCP count from the start of the file.
        if found and pictures:
            raise InputError(
                "the file holds several pictures, and its XMP packet is between them and their list (MPF), so that "
                "another length would break the list; write an XMP file beside the photo"
            )
        if source.size > 12 and source.read(source.size - 12, 3, "the end of the file") == b"AXS":
            raise InputError("the file ends with AFCP data, whose positions would change; write an XMP file beside it")
    return [range(place.start), new, range(place.stop, source.size)]


def _segments(source: Source) -> Iterator[_Segment]:
    """Yields the segments before the image data."""
    start = 2
    while True:
        head = source.read(start, min(256, max(source.size - start, 4)), "a JPEG segment")
        marker = head[1]
        if head[0] != 0xFF or marker == 0:
            raise InputError(f"no JPEG segment starts at byte {start:,}, before the image data: the file is damaged")
        if marker in _ENDS:
            return
        if marker == 0xFF:  # bytes that fill a gap
            start += max(len(head) - len(head.lstrip(b"\xff")) - 1, 1)
            continue
        length = 0 if marker in _ALONE else int.from_bytes(head[2:4], "big")
        stop = start + 2 + length
        if length < 2 and marker not in _ALONE:
            raise InputError(f"the JPEG segment at byte {start:,} has the length {length}: the file is damaged")
        if stop >= source.size:
            raise InputError(
                f"the JPEG segment at byte {start:,} has {length:,} bytes, but the file ends at byte {source.size:,}: "
                "it is cut off or damaged"
            )
        yield _Segment(marker, start, stop, head[4 : 2 + length])
        start = stop


def _content(source: Source, segment: _Segment, name: bytes) -> bytes:
    start = segment.start + 4 + len(name)
    return source.read(start, segment.stop - start, "a JPEG segment")
