"""Reads keywords in IPTC records. IPTC Information Interchange Model 4.2, and Photoshop's image resources."""

from collections.abc import Iterator

from aia_jax.utils.errors import InputError

_MARKER = 0x1C
_KEYWORD = (2, 25)  # record and data set
_RESOURCES = (b"8BIM", b"PHUT", b"AgHg", b"DCSR", b"MeSa")  # signatures
_IPTC_RESOURCE = 0x0404


def iptc_keywords(block: bytes) -> list[str]:
    """Returns the keywords in a block of IPTC records, or in a block of Photoshop's resources.

    Keywords that are valid UTF-8 are read as such, and others as Windows-1252 or Latin-1. The record 1:90, which may
    name the encoding, is not needed: other encodings are practically never valid UTF-8.

    Raises:
        InputError: the block is damaged.
    """
    if block[:4] in _RESOURCES:
        return [keyword for records in _resources(block) for keyword in iptc_keywords(records)]
    if block[:1] != b"\x1c" and block[3:4] == b"\x1c":  # written as 32-bit numbers in the other byte order
        block = block.ljust(-(-len(block) // 4) * 4, b"\0")
        block = b"".join(block[place : place + 4][::-1] for place in range(0, len(block), 4))
    decoded = (_decoded(value).strip("\0 \t\r\n") for number, value in _records(block) if number == _KEYWORD)
    return [keyword for keyword in decoded if keyword]


def _resources(block: bytes) -> Iterator[bytes]:
    """Yields the content of each resource with IPTC records."""
    place = 0
    while block[place : place + 4] in _RESOURCES:
        name = place + 6
        number = int.from_bytes(block[place + 4 : name], "big")
        start = name + (block[name] // 2 * 2 + 2 if name < len(block) else 0)  # the name has an even number of bytes
        size = int.from_bytes(block[start : start + 4], "big")
        if start + 4 + size > len(block):
            raise InputError(
                f"Photoshop's resource {number:#06x} needs {size:,} bytes, but {max(len(block) - start - 4, 0):,} are "
                "left: it is cut off or damaged"
            )
        if number == _IPTC_RESOURCE:
            yield block[start + 4 : start + 4 + size]
        place = start + 4 + size + size % 2


def _records(block: bytes) -> Iterator[tuple[tuple[int, int], bytes]]:
    """Yields the number and the value of each data set."""
    place = 0
    while place < len(block) and block[place] == _MARKER:
        length, start = int.from_bytes(block[place + 3 : place + 5], "big"), place + 5
        if length & 0x8000:  # the length of the length
            start += length & 0x7FFF
            length = int.from_bytes(block[place + 5 : start], "big")
        if start + length > len(block):
            raise InputError(f"the IPTC record at byte {place:,} of {len(block):,} is cut off or damaged")
        yield (block[place + 1], block[place + 2]), block[start : start + length]
        place = start + length
    if block[place:].strip(b"\0"):
        raise InputError(f"no IPTC record starts at byte {place:,} of {len(block):,}: the IPTC block is damaged")


def _decoded(value: bytes) -> str:
    for encoding in ("utf-8", "cp1252"):  # Latin-1 has control characters where Windows-1252 has letters
        try:
            return value.decode(encoding)
        except UnicodeDecodeError:
            pass
    return value.decode("latin-1")
