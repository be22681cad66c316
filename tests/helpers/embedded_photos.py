"""Small photos of all formats with metadata, for tests of what reads and writes XMP packets and IPTC."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from aia_jax.data.photo_metadata.embedded import read_embedded, write_embedded_xmp
from aia_jax.utils.errors import InputError

_ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
KEYWORDS = ("cat", "café", "ski")


def xmp_packet(*keywords: str, padding: int = 100) -> bytes:
    items = "".join(f"<rdf:li>{keyword}</rdf:li>" for keyword in keywords)
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        f'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:subject><rdf:Bag>{items}</rdf:Bag></dc:subject>'
        f'</rdf:Description></rdf:RDF></x:xmpmeta>{" " * padding}<?xpacket end="w"?>'
    ).encode()


def record(value: bytes, number: tuple[int, int] = (2, 25)) -> bytes:
    return struct.pack(">3BH", 0x1C, *number, len(value)) + value


def resource(content: bytes, number: int = 0x0404, name: bytes = b"") -> bytes:
    named = bytes([len(name)]) + name + b"\0" * ((len(name) + 1) % 2)
    return (
        b"8BIM"
        + struct.pack(">H", number)
        + named
        + struct.pack(">I", len(content))
        + content
        + b"\0" * (len(content) % 2)
    )


def segment(marker: int, content: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + (len(content) + 2).to_bytes(2, "big") + content


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


IPTC = b"".join(record(keyword.encode()) for keyword in KEYWORDS)
PHOTOSHOP = resource(b"digest", 0x0425) + resource(record(b"\x1b%G", (1, 90)) + IPTC, name=b"ab")


def image(mode: str = "RGB", seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (23, 31, len(mode)), np.uint8)
    return Image.fromarray(values if mode != "L" else values[..., 0])


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _tiff(image: Image.Image, **options: object) -> bytes:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270] = "a description"
    for tag, value in ((33723, IPTC + b"\0" * (-len(IPTC) % 4)), (34377, PHOTOSHOP)):
        tags[tag], tags.tagtype[tag] = value, 7
    return saved(image, "TIFF", tiffinfo=tags, **options)


def _big_endian_big_tiff() -> bytes:
    """Pillow can neither write nor read this kind."""
    start = 16 + 8 + 8 * 20 + 8
    entries = ((256, 4), (257, 2), (258, 8), (259, 1), (262, 1), (273, start), (278, 2), (279, 8))
    table = b"".join(struct.pack(">HHQQ", tag, 16, 1, value) for tag, value in entries)
    return b"MM\0+\0\x08\0\0" + struct.pack(">QQ", 16, 8) + table + bytes(8) + b"8 pixels"


def _frames() -> dict[str, object]:
    return {"save_all": True, "append_images": [image(seed=1), image(seed=2)]}


def _files() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[270], exif[274] = "a description", 6
    exif.get_ifd(0x8769)[36867] = "2020:01:01 00:00:00"
    common = {"exif": exif, "icc_profile": _ICC}
    baseline = saved(image(), "JPEG", comment=b"a comment", **common)
    photoshop = b"".join(segment(0xED, b"Photoshop 3.0\0" + part) for part in (PHOTOSHOP[:50], PHOTOSHOP[50:]))
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "a title")
    text.add_text("Raw profile type iptc", f"\nIPTC profile\n{len(PHOTOSHOP):8}\n{PHOTOSHOP.hex()}\n", zip=True)
    text.add_itxt("Comment", "ein Gru\u00df", zip=True)
    gray = Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (23, 31)).astype(">u2"))
    return {
        "baseline.jpg": baseline[:2] + baseline[2:].replace(b"\xff\xdb", photoshop + b"\xff\xdb", 1) + b"a video",
        "progressive.jpg": saved(image("L"), "JPEG", progressive=True),
        "several.jpg": saved(image(), "MPO", **_frames(), exif=exif),
        "texts.png": saved(image("RGBA"), "PNG", pnginfo=text, **common),
        "plain.png": saved(image("L"), "PNG"),
        "lossy.webp": saved(image(), "WEBP"),
        "lossless.webp": saved(image("RGBA"), "WEBP", lossless=True),
        "alpha.webp": saved(image("RGBA"), "WEBP"),
        "exif.webp": saved(image(), "WEBP", **common) + b"more",
        "animated.webp": saved(image(), "WEBP", **_frames()),
        "little.tif": _tiff(image(), icc_profile=_ICC),
        "pages.tif": _tiff(image(), **_frames()),
        "big.tif": _tiff(image(), big_tiff=True),
        "motorola.tif": saved(gray, "TIFF"),
        "motorola-big.tif": _big_endian_big_tiff(),
    }


FILES = _files()


def write(path: Path, name: str) -> Path:
    path = path / name
    path.write_bytes(FILES[name])
    return path


def refused(path: Path, match: str, packet: bytes = b"new packet", also_read: bool = True) -> None:
    """Checks that reading and writing are refused, that the message has the path, and that nothing changes."""
    content, names = path.read_bytes(), os.listdir(path.parent)
    for function in (lambda: read_embedded(path),) * also_read + (lambda: write_embedded_xmp(path, packet),):
        with pytest.raises(InputError, match=match) as error:
            function()
        assert str(path) in str(error.value)
    assert (path.read_bytes(), os.listdir(path.parent)) == (content, names)
