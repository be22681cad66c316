"""XMP packets and IPTC keywords inside photos: what is written is read, and nothing else changes."""

import io
import json
import os
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from aia_jax.data.photo_metadata.embedded import EmbeddedMetadata, read_embedded, write_embedded_xmp

_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
_EXTENDED = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 40 + b"<part/>"
_ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
_KEYWORDS = ("cat", "café", "ski")


def _packet(*keywords: str, padding: int = 100) -> bytes:
    items = "".join(f"<rdf:li>{keyword}</rdf:li>" for keyword in keywords)
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        f'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:subject><rdf:Bag>{items}</rdf:Bag></dc:subject>'
        f'</rdf:Description></rdf:RDF></x:xmpmeta>{" " * padding}<?xpacket end="w"?>'
    ).encode()


def _record(value: bytes, number: tuple[int, int] = (2, 25)) -> bytes:
    return struct.pack(">3BH", 0x1C, *number, len(value)) + value


def _resource(content: bytes, number: int = 0x0404, name: bytes = b"") -> bytes:
    named = bytes([len(name)]) + name + b"\0" * ((len(name) + 1) % 2)
    return (
        b"8BIM"
        + struct.pack(">H", number)
        + named
        + struct.pack(">I", len(content))
        + content
        + b"\0" * (len(content) % 2)
    )


def _segment(marker: int, content: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + (len(content) + 2).to_bytes(2, "big") + content


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


_IPTC = b"".join(_record(keyword.encode()) for keyword in _KEYWORDS)
_PHOTOSHOP = _resource(b"digest", 0x0425) + _resource(_record(b"\x1b%G", (1, 90)) + _IPTC, name=b"ab")


def _image(mode: str = "RGB", seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (23, 31, len(mode)), np.uint8)
    return Image.fromarray(values if mode != "L" else values[..., 0])


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _tiff(image: Image.Image, **options: object) -> bytes:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270] = "a description"
    for tag, value in ((33723, _IPTC + b"\0" * (-len(_IPTC) % 4)), (34377, _PHOTOSHOP)):
        tags[tag], tags.tagtype[tag] = value, 7
    return _saved(image, "TIFF", tiffinfo=tags, **options)


def _big_endian_big_tiff() -> bytes:
    """Pillow can neither write nor read this kind."""
    start = 16 + 8 + 8 * 20 + 8
    entries = ((256, 4), (257, 2), (258, 8), (259, 1), (262, 1), (273, start), (278, 2), (279, 8))
    table = b"".join(struct.pack(">HHQQ", tag, 16, 1, value) for tag, value in entries)
    return b"MM\0+\0\x08\0\0" + struct.pack(">QQ", 16, 8) + table + bytes(8) + b"8 pixels"


def _frames() -> dict[str, object]:
    return {"save_all": True, "append_images": [_image(seed=1), _image(seed=2)]}


def _files() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[270], exif[274] = "a description", 6
    exif.get_ifd(0x8769)[36867] = "2020:01:01 00:00:00"
    common = {"exif": exif, "icc_profile": _ICC}
    baseline = _saved(_image(), "JPEG", comment=b"a comment", **common)
    photoshop = b"".join(_segment(0xED, b"Photoshop 3.0\0" + part) for part in (_PHOTOSHOP[:50], _PHOTOSHOP[50:]))
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "a title")
    text.add_text("Raw profile type iptc", f"\niptc\n{len(_PHOTOSHOP):8}\n{_PHOTOSHOP.hex()}\n", zip=True)
    text.add_itxt("Comment", "ein Gru\u00df", zip=True)
    gray = Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (23, 31)).astype(">u2"))
    return {
        "baseline.jpg": baseline[:2] + baseline[2:].replace(b"\xff\xdb", photoshop + b"\xff\xdb", 1) + b"a video",
        "progressive.jpg": _saved(_image("L"), "JPEG", progressive=True),
        "several.jpg": _saved(_image(), "MPO", **_frames(), exif=exif),
        "texts.png": _saved(_image("RGBA"), "PNG", pnginfo=text, **common),
        "plain.png": _saved(_image("L"), "PNG"),
        "lossy.webp": _saved(_image(), "WEBP"),
        "lossless.webp": _saved(_image("RGBA"), "WEBP", lossless=True),
        "alpha.webp": _saved(_image("RGBA"), "WEBP"),
        "exif.webp": _saved(_image(), "WEBP", **common) + b"more",
        "animated.webp": _saved(_image(), "WEBP", **_frames()),
        "little.tif": _tiff(_image(), icc_profile=_ICC),
        "pages.tif": _tiff(_image(), **_frames()),
        "big.tif": _tiff(_image(), big_tiff=True),
        "motorola.tif": _saved(gray, "TIFF"),
        "motorola-big.tif": _big_endian_big_tiff(),
    }


_FILES = _files()
_WITH_IPTC = ("baseline.jpg", "texts.png", "little.tif", "pages.tif", "big.tif")
_NOT_RESTORED = ("lossy.webp", "lossless.webp", *(name for name in _FILES if name.endswith(".tif")))


def _write(path: Path, name: str) -> Path:
    path = path / name
    path.write_bytes(_FILES[name])
    return path


def _pixels(path: Path) -> list[np.ndarray]:
    frames = []
    if path.name == "motorola-big.tif":
        return frames
    with Image.open(path) as image:
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            frames.append(np.asarray(image))
    return frames


def _exiftool(path: Path) -> dict[str, str]:
    command = ["exiftool", "-a", "-G1", "-j", "-u", "-U", "-ee", path]
    tags = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)[0]
    # The canvas of a simple WebP file has no tag of its own, and the position of a directory is no content.
    ours = ("File:", "System:", "XMP", "SourceFile", "ExifTool:", "Composite:")
    return {tag: value for tag, value in tags.items() if not tag.startswith(ours)}


@pytest.mark.parametrize("name", _FILES)
def test_a_packet_is_written_replaced_and_removed_and_all_else_stays(name: str, tmp_path: Path) -> None:
    path = _write(tmp_path, name)
    path.chmod(0o640)
    os.utime(path, ns=(10**18, 10**18 + 7))
    iptc = _KEYWORDS if name in _WITH_IPTC else ()
    pixels = _pixels(path)
    assert read_embedded(path) == EmbeddedMetadata(b"", iptc)
    for packet in (_packet("dog"), _packet("dog", "Ärger", padding=2001), _packet("a", padding=0), b"odd", b""):
        write_embedded_xmp(path, packet)
        assert read_embedded(path) == EmbeddedMetadata(packet, iptc)
        assert np.array_equal(_pixels(path), pixels)
        assert (path.stat().st_mode & 0o777, path.stat().st_mtime_ns) == (0o640, 10**18 + 7)
        if name.endswith(".tif"):
            assert _FILES[name][:4] + _FILES[name][16:] in path.read_bytes()[:4] + path.read_bytes()[16:] or not packet
    assert path.read_bytes() == _FILES[name] or name in _NOT_RESTORED
    assert os.listdir(tmp_path) == [name]
    write_embedded_xmp(path, b"odd", keep_time=False)
    assert path.stat().st_mtime_ns > 10**18 + 7
