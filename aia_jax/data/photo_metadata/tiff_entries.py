"""Finds and replaces the XMP packet of a TIFF or BigTIFF file. Never moves image data. TIFF 6.0, section 2."""

from typing import Literal, NamedTuple

from aia_jax.data.photo_metadata.container import Layout, Piece, Source, outside
from aia_jax.utils.errors import InputError

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0")
_XMP, _IPTC, _PHOTOSHOP, _SUBDIRECTORIES = 700, 33723, 34377, 330  # tags
_BYTE = 1  # a type
_SIZES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4), 1)) | {16: 8, 17: 8, 18: 8}  # bytes of each type
_MOST_ENTRIES = 65_535


class _Directory(NamedTuple):
    """The first directory of a file: its entries, as bytes, with the tag of each."""

    order: Literal["little", "big"]
    width: int  # bytes of a position in the file: 4, or 8 in BigTIFF
    start: int
    entries: list[tuple[int, bytes]]
    next: bytes  # the position of the next directory

    @property
    def pointer(self) -> range:
        """The bytes of the header that hold the position of this directory."""
        return range(self.width, 2 * self.width)

    @property
    def first_entry(self) -> int:
        return self.start + (8 if self.width == 8 else 2)

    @property
    def span(self) -> range:
        return range(self.start, self.first_entry + len(self.entries) * self.entry_size + self.width)

    @property
    def entry_size(self) -> int:
        return 4 + 2 * self.width

    def packed(self, entries: list[bytes]) -> bytes:
        count = len(entries).to_bytes(self.first_entry - self.start, self.order)
        return count + b"".join(entries) + self.next

    def value(self, index: int) -> tuple[int, int]:
        """Returns the position and the length of an entry's value. Raises InputError for an unknown type."""
        tag, entry = self.entries[index]
        kind = int.from_bytes(entry[2:4], self.order)
        length = int.from_bytes(entry[4 : 4 + self.width], self.order) * _SIZES.get(kind, 0)
        if kind not in _SIZES:
            raise InputError(f"the TIFF tag {tag} has the unknown type {kind}: the file is damaged")
        start = self.first_entry + index * self.entry_size + 4 + self.width
        if length > self.width:
            start = int.from_bytes(entry[4 + self.width :], self.order)
        return start, length


def scan(source: Source) -> Layout:
    """Reads the XMP packets, IPTC records and Photoshop's resources of the first image in a TIFF file."""
    directory = _directory(source)
    found = {_XMP: [], _IPTC: [], _PHOTOSHOP: []}
    changing = [directory.pointer, directory.span]
    for index, (tag, _) in enumerate(directory.entries):
        if tag in found:
            start, length = directory.value(index)
            found[tag].append(source.read(start, length, f"the value of the TIFF tag {tag}"))
            if tag == _XMP:
                changing.append(range(start, start + length))
    rest = [entry for tag, entry in directory.entries if tag != _XMP]
    return Layout(
        found[_XMP], found[_IPTC] + found[_PHOTOSHOP], [*rest, directory.next], outside(changing, source.size)
    )


def rewrite(source: Source, packet: bytes) -> list[Piece]:
    """Returns the pieces of the file with `packet` as its only XMP packet, or with none if `packet` is empty.

    The packet stands at the end of the file. It replaces the old packet if that is at the end and belongs to the only
    directory. Otherwise, the bytes of the old packet stay in the file, without use.
    """
    directory = _directory(source)
    tags = [tag for tag, _ in directory.entries]
    if _XMP in tags:
        return _replaced(source, directory, tags.index(_XMP), packet)
    return _inserted(source, directory, sum(tag < _XMP for tag in tags), packet) if packet else [range(source.size)]


def _replaced(source: Source, directory: _Directory, index: int, packet: bytes) -> list[Piece]:
    """Keeps the directory in its place. Without the entry, it ends with unused bytes."""
    (start, length), end, span = directory.value(index), source.size, directory.span
    shared = any(directory.next) or any(tag == _SUBDIRECTORIES for tag, _ in directory.entries)
    if start + length == end and start >= span.stop and not shared:
        end = start
    entries = [entry for _, entry in directory.entries]
    tail = _padding(end) + packet if len(packet) > directory.width else b""
    entries[index : index + 1] = [_entry(directory, packet, end + len(_padding(end)))] if packet else []
    block = directory.packed(entries).ljust(len(span), b"\0")
    return [range(span.start), block, range(span.stop, end), tail]


def _inserted(source: Source, directory: _Directory, index: int, packet: bytes) -> list[Piece]:
    """Writes a longer directory and the packet at the end of the file. The bytes of the old directory stay."""
    size, pointer = source.size, directory.pointer
    start = size + len(_padding(size))
    after = start + len(directory.span) + directory.entry_size
    entries = [entry for _, entry in directory.entries]
    entries.insert(index, _entry(directory, packet, after + len(_padding(after))))
    tail = _padding(size) + directory.packed(entries)
    tail += _padding(after) + packet if len(packet) > directory.width else b""
    position = start.to_bytes(directory.width, directory.order)
    return [range(pointer.start), position, range(pointer.stop, size), tail]


def _entry(directory: _Directory, packet: bytes, start: int) -> bytes:
    """Returns the entry of a packet at position `start`. The packet itself stands in the entry if it has room there."""
    order, width = directory.order, directory.width
    if start + len(packet) >= 2 ** (8 * width):
        raise InputError("the TIFF file would be longer than 4 GB; write an XMP file beside the photo")
    value = packet.ljust(width, b"\0") if len(packet) <= width else start.to_bytes(width, order)
    return _XMP.to_bytes(2, order) + _BYTE.to_bytes(2, order) + len(packet).to_bytes(width, order) + value


def _padding(position: int) -> bytes:
    """Returns the bytes up to the next multiple of 8. Positions in TIFF are even, those in BigTIFF multiples of 8."""
    return b"\0" * (-position % 8)


def _directory(source: Source) -> _Directory:
    head = source.read(0, 8, "the TIFF header")
    order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
    width = 8 if head in SIGNATURES else 4
    start = int.from_bytes(source.read(width, width, "the TIFF header"), order)
    width_of_count = 8 if width == 8 else 2
    count = int.from_bytes(source.read(start, width_of_count, "the TIFF directory"), order)
    if count > _MOST_ENTRIES:
        raise InputError(f"the TIFF directory has {count:,} entries: the file is damaged")
    size = 4 + 2 * width
    table = source.read(start + width_of_count, count * size + width, "the TIFF directory")
    entries = [table[place : place + size] for place in range(0, count * size, size)]
    return _Directory(
        order, width, start, [(int.from_bytes(entry[:2], order), entry) for entry in entries], table[count * size :]
    )
