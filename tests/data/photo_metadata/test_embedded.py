"""XMP packets and IPTC keywords inside photos: what is written is read, and nothing else changes."""

import io
import json
import os
import shutil
import struct
import subprocess
import tracemalloc
import zlib
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from aia_jax.data.photo_metadata import jpeg_segments, tiff_entries
from aia_jax.data.photo_metadata.container import Piece, Source
from aia_jax.data.photo_metadata.embedded import EmbeddedMetadata, read_embedded, write_embedded_xmp
from aia_jax.utils.errors import InputError

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


def _exiftool(folder: Path) -> dict[str, dict[str, object]]:
    """Returns all tags of all photos but those of their XMP and of the file system."""
    command = ["exiftool", "-a", "-G1", "-j", "-u", "-U", folder]
    photos = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    ours = ("File:FileSize", "File:FileType", "System:", "XMP", "SourceFile", "ExifTool:", "Composite:")
    return {
        photo["SourceFile"]: {tag: value for tag, value in photo.items() if not tag.startswith(ours)}
        for photo in photos
    }


def _refused(path: Path, match: str, packet: bytes = b"new packet", also_read: bool = True) -> None:
    """Checks that reading and writing are refused, that the message has the path, and that nothing changes."""
    content, names = path.read_bytes(), os.listdir(path.parent)
    for function in (lambda: read_embedded(path),) * also_read + (lambda: write_embedded_xmp(path, packet),):
        with pytest.raises(InputError, match=match) as error:
            function()
        assert str(path) in str(error.value)
    assert (path.read_bytes(), os.listdir(path.parent)) == (content, names)


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


@pytest.mark.skipif(not shutil.which("exiftool") or not shutil.which("exiv2"), reason="needs exiftool and exiv2")
def test_exiftool_and_exiv2_read_the_packet_and_find_all_other_tags_unchanged(tmp_path: Path) -> None:
    paths = [_write(tmp_path, name) for name in _FILES]
    before = _exiftool(tmp_path)
    for path in paths:
        write_embedded_xmp(path, _packet("dog"))
        write_embedded_xmp(path, _packet("dog", "Ärger"))
    after = _exiftool(tmp_path)
    for path in map(str, paths):
        new = after[path].keys() - before[path].keys()
        assert all(tag.startswith("RIFF:") for tag in new)  # simple WebP: the canvas and the flags
        # exiftool shows the positions of further pictures in the file, and Pillow finds them at these.
        kept = [tag for tag in before[path] if not tag.endswith(":MPImageStart")]
        assert {tag: after[path][tag] for tag in kept} == {tag: before[path][tag] for tag in kept}
    subjects = json.loads(subprocess.run(["exiftool", "-j", "-XMP-dc:Subject", *paths], capture_output=True).stdout)
    assert [photo["Subject"] for photo in subjects] == [["dog", "Ärger"]] * len(paths)
    known = [path for path in paths if "big" not in path.name]  # exiv2 does not read BigTIFF
    output = subprocess.run(["exiv2", "-K", "Xmp.dc.subject", "-Pv", *known], capture_output=True).stdout
    assert output.decode().count("dog, Ärger") == len(known)


def test_iptc_keywords_are_read_in_all_encodings_and_places(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    jpeg = _FILES["progressive.jpg"]
    long = struct.pack(">3BHI", 0x1C, 2, 25, 0x8004, 40_000) + b"y" * 40_000
    for block, expected in {
        _resource(_IPTC): _KEYWORDS,
        _resource(_record(b"caf\xe9") + _record(b"\x80 and\0 ") + _record(b"\x81")): ("café", "€ and", "\x81"),
        _resource(_record(b"cat") + _record(b"place", (2, 90)) + _record(b"") + _record(b"cat")): ("cat",),
        _resource(b"x", 0x0425, b"odd") + _resource(_record(b"1"), name=b"even") + _resource(_record(b"2")): ("1", "2"),
        _resource(long + b"\0\0"): ("y" * 40_000,),
        _resource(b"") + b"\0\0\0": (),
    }.items():
        path.write_bytes(jpeg[:2] + _segment(0xED, b"Photoshop 3.0\0" + block) + jpeg[2:])
        assert read_embedded(path).iptc_keywords == expected
    padded = _IPTC.ljust(-(-len(_IPTC) // 4) * 4, b"\0")
    tiff, count = _FILES["little.tif"], len(padded)
    swapped = b"".join(padded[place : place + 4][::-1] for place in range(0, count, 4))
    as_long = struct.pack("<HHI", 33723, 7, count), struct.pack("<HHI", 33723, 4, count // 4)
    photoshop = struct.pack("<HH", 34377, 7), struct.pack("<HH", 34376, 7)  # hidden
    path.write_bytes(tiff.replace(*as_long).replace(padded, swapped).replace(*photoshop))
    assert swapped in path.read_bytes()
    assert read_embedded(path).iptc_keywords == _KEYWORDS
    for block in (
        _resource(_record(b"cat")[:-1]),
        _resource(_record(b"cat") + b"cat"),
        _resource(b"\x1c\2\x19\xff\xff"),
        _resource(_IPTC)[:-9],
        b"8BIM\4\4",
        b"some other text",
    ):
        path.write_bytes(jpeg[:2] + _segment(0xED, b"Photoshop 3.0\0" + block) + jpeg[2:])
        with pytest.raises(InputError, match="damaged"):
            read_embedded(path)
        write_embedded_xmp(path, b"a packet")  # needs no IPTC
        with pytest.raises(InputError, match="damaged"):
            read_embedded(path)


def test_a_jpeg_keeps_its_segments_and_the_positions_of_its_other_pictures(tmp_path: Path) -> None:
    path, several = _write(tmp_path, "several.jpg"), _FILES["several.jpg"]
    exif, pictures = several.index(b"\xff\xe1"), several.index(b"\xff\xe2")
    new = _segment(0xE1, _HEADER + b"packet")
    write_embedded_xmp(path, b"packet")
    assert path.read_bytes() == several[:pictures] + new + several[pictures:]  # after EXIF
    assert exif < pictures
    after_list = several.index(b"\xff\xdb")
    path.write_bytes(several[:after_list] + new + several[after_list:])
    _refused(path, r"list \(MPF\)", also_read=False)
    write_embedded_xmp(path, b"PACKET")  # of the same length
    assert path.read_bytes() == several[:after_list] + new.replace(b"packet", b"PACKET") + several[after_list:]

    plain = _FILES["progressive.jpg"]
    app0 = plain.index(b"\xff\xdb")
    extended = _segment(0xE1, _EXTENDED) + b"\xff\xff" + _segment(0xFE, b"a comment")
    path.write_bytes(plain[:2] + extended + new + plain[app0:])
    write_embedded_xmp(path, b"longer packet")
    longer = _segment(0xE1, _HEADER + b"longer packet")
    assert path.read_bytes() == plain[:2] + extended + longer + plain[app0:]
    path.write_bytes(plain[:2] + new + extended + new + plain[app0:])
    _refused(path, "2 XMP packets", also_read=False)
    assert read_embedded(path).xmp == b"packet"
    path.write_bytes(plain + b"AXS!" + bytes(8))
    _refused(path, "AFCP", also_read=False)

    path.write_bytes(plain)
    write_embedded_xmp(path, b"x" * 65_502)
    assert read_embedded(path).xmp == b"x" * 65_502
    _refused(path, "65,503 bytes, but a JPEG file has room for 65,502", b"x" * 65_503, also_read=False)


def test_a_png_is_read_compressed_and_written_plain(tmp_path: Path) -> None:
    path, plain = tmp_path / "a.png", _FILES["plain.png"]
    header, end = plain.index(b"IHDR") + 4 + 13 + 4, plain.index(b"IEND") - 4
    texts = {
        "compressed": (b"iTXt", b"XML:com.adobe.xmp\0\1\0de\0titel\0" + zlib.compress(b"packet")),
        "plain": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0packet"),
        "of ImageMagick": (b"tEXt", b"Raw profile type xmp\0\nxmp\n       6\n7061636b\n6574\n"),
    }
    for place in (header, end):
        for kind, content in texts.values():
            path.write_bytes(plain[:place] + _chunk(kind, content) + plain[place:])
            assert read_embedded(path).xmp == b"packet"
            write_embedded_xmp(path, b"new")
            new = _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0new")
            assert path.read_bytes() == plain[:place] + new + plain[place:]
    bomb = zlib.compress(bytes(2**24 + 1))
    for kind, content, match in (
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb, "more than the limit of 16,777,216"),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb[:20], "cut off"),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0no", "cannot be decompressed"),
        (b"zTXt", b"Raw profile type xmp\0\0" + zlib.compress(b"\nxmp\n 7\n7061636b6574\n"), "hexadecimal"),
    ):
        path.write_bytes(plain[:header] + _chunk(kind, content) + plain[header:])
        _refused(path, match)
    damaged = _chunk(*texts["plain"]).replace(b"packet", b"pakket")
    path.write_bytes(plain[:header] + damaged + plain[header:])
    _refused(path, "wrong checksum")


@pytest.mark.parametrize("name", ["lossy.webp", "lossless.webp", "alpha.webp", "exif.webp", "animated.webp"])
def test_a_webp_gets_the_features_that_libwebp_writes(name: str, tmp_path: Path) -> None:
    path = _write(tmp_path, name)
    write_embedded_xmp(path, b"odd")
    content = path.read_bytes()
    with Image.open(path) as image:  # reads the packet only with the flag
        assert image.info["xmp"] == b"odd"
    riff_end = 8 + int.from_bytes(content[4:8], "little")
    assert content[riff_end:] == (b"more" if name == "exif.webp" else b"")
    assert content[riff_end - 12 : riff_end] == b"XMP \3\0\0\0odd\0"
    alpha, exif, icc, animation = (0x10, 0x08, 0x20, 0x02)
    flags = {"lossy.webp": 0, "exif.webp": exif | icc, "animated.webp": animation}.get(name, alpha)
    size = bytes([30, 0, 0, 22, 0, 0])
    assert content[12:30] == b"VP8X\x0a\0\0\0" + bytes([flags | 0x04, 0, 0, 0]) + size
    write_embedded_xmp(path, b"")
    assert path.read_bytes()[20] == flags


def test_a_webp_without_its_last_padding_byte_gets_it(tmp_path: Path) -> None:
    path, content = tmp_path / "a.webp", bytearray(_FILES["alpha.webp"] + b"ABCD\3\0\0\0odd")
    content[4:8] = (len(content) - 8).to_bytes(4, "little")
    path.write_bytes(content)
    write_embedded_xmp(path, b"even")
    assert path.read_bytes().endswith(b"odd\0XMP \4\0\0\0even")
    assert read_embedded(path).xmp == b"even"


def test_a_tiff_keeps_its_directories_and_grows_once(tmp_path: Path) -> None:
    for name in (name for name in _FILES if name.endswith(".tif") and "big" not in name):
        path = _write(tmp_path, name)
        write_embedded_xmp(path, b"a packet")
        with Image.open(path) as after, Image.open(io.BytesIO(_FILES[name])) as before:
            assert after.getexif().get(700) in (b"a packet", None)
            for index in range(getattr(before, "n_frames", 1)):
                before.seek(index)
                after.seek(index)
                kept = {tag: value for tag, value in after.tag_v2.items() if tag != 700}
                assert kept == dict(before.tag_v2)
                assert after.tag_v2.get(700) == (b"a packet" if not index else None)
        content = path.read_bytes()
        order = "<" if content[:2] == b"II" else ">"
        (start,) = struct.unpack_from(f"{order}I", content, 4)
        (count,) = struct.unpack_from(f"{order}H", content, start)
        tags = [struct.unpack_from(f"{order}H", content, start + 2 + 12 * index)[0] for index in range(count)]
        assert 700 in tags
        assert tags == sorted(tags)
        assert start % 8 == content.index(b"a packet") % 8 == 0
        size = path.stat().st_size
        write_embedded_xmp(path, b"a longer packet")
        assert (path.stat().st_size == size + 7) == (name != "pages.tif")
        old = _FILES[name]
        assert path.read_bytes()[8 : len(old)] == old[8:]


def test_every_cut_is_an_error_that_says_so_and_changes_nothing(tmp_path: Path) -> None:
    for name in ("baseline.jpg", "texts.png", "exif.webp", "little.tif", "motorola-big.tif"):
        path = _write(tmp_path, name)
        write_embedded_xmp(path, _packet("dog"))
        whole = path.read_bytes()
        end = whole.index(b"\xff\xda") if name.endswith("jpg") else whole.index(b"IEND") if "png" in name else 0
        for size in range(16, end or len(whole), 37):
            path.write_bytes(whole[:size])
            if name == "exif.webp" and size >= len(whole) - 4:
                continue  # in the bytes after the image
            _refused(path, "cut off|the file ends")


def test_absurd_lengths_are_refused_without_reading_them(tmp_path: Path) -> None:
    path, jpeg, png = tmp_path / "a", _FILES["progressive.jpg"], _FILES["plain.png"]
    header = png.index(b"IHDR") + 4 + 13 + 4
    tiff, big = bytearray(_FILES["little.tif"]), bytearray(_FILES["motorola-big.tif"])
    entry = tiff.index(struct.pack("<HH", 33723, 7))
    tiff[entry + 4 : entry + 8] = b"\xff\xff\xff\x7f"
    unknown = bytearray(_FILES["little.tif"])
    unknown[entry + 2] = 99
    big[16:24] = b"\xff" * 8
    for content in (
        jpeg[:2] + b"\xff\xe1\0\1" + jpeg[2:],
        jpeg[:2] + b"\xff\xe1\xff\xff" + jpeg[2:],
        jpeg[:20] + b"some" + jpeg[20:],
        png[:8] + b"\xff\xff\xff\xffIHDR" + png[8:],
        png[:header] + b"\0\0\0\1a\0\0a" + png[header:],
        b"RIFF\xff\xff\xff\xffWEBPVP8 " + bytes(99),
        b"RIFF\x20\0\0\0WEBPVP8 \xff\xff\xff\xff" + bytes(99),
        b"RIFF\x20\0\0\0WEBPVP8 \x14\0\0\0" + bytes(99),
        bytes(tiff),
        bytes(unknown),
        bytes(big),
    ):
        path.write_bytes(content)
        _refused(path, "cut off|damaged")
    with path.open("wb") as file:  # a TIFF of a gigabyte, whose packet has half of it
        file.write(struct.pack("<2sHIHHHIIII", b"II", 42, 8, 1, 700, 1, 2**29, 26, 0, 0))
        file.truncate(2**30)
    with pytest.raises(InputError, match="536,870,912 bytes, more than the limit of 16,777,216"):
        read_embedded(path)
    with path.open("wb") as file:
        file.write(jpeg)
        file.truncate(2**30)
    tracemalloc.start()
    assert read_embedded(path) == EmbeddedMetadata(b"", ())
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_mutated_files_raise_only_input_errors_and_stay_unchanged(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "photo"
    for content in list(_FILES.values()) * 12:
        mutated = np.frombuffer(content, np.uint8).copy()
        places = rng.integers(0, min(len(mutated), 700), rng.integers(1, 5))
        mutated[places] = rng.choice([0, 1, 127, 128, 255, 28], len(places))
        path.write_bytes(mutated)
        for packet in (None, b"a packet"):
            try:
                if packet is None:
                    read_embedded(path)
                else:
                    write_embedded_xmp(path, packet)
                    assert b"a packet" in path.read_bytes()
            except InputError:
                assert path.read_bytes() == mutated.tobytes()


def test_other_formats_and_what_is_no_photo(tmp_path: Path) -> None:
    gif = tmp_path / "a.jpg"  # the content decides
    gif.write_bytes(_saved(_image("L"), "GIF"))
    assert read_embedded(gif) == EmbeddedMetadata(b"", ())
    _refused(gif, "JPEG, PNG, WebP and TIFF files only", also_read=False)
    empty = tmp_path / "empty.jpg"
    empty.touch()
    assert read_embedded(empty) == EmbeddedMetadata(b"", ())
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    for path, match in ((tmp_path, "not a file"), (pipe, "not a file"), (tmp_path / "none.jpg", "No such file")):
        with pytest.raises(InputError, match=match):
            read_embedded(path)
        with pytest.raises(InputError, match=match):
            write_embedded_xmp(path, b"packet")


def test_a_link_stays_and_read_only_photos_and_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    photo = _write(tmp_path / "photos", "baseline.jpg")
    link = tmp_path / "link.jpg"
    link.symlink_to("photos/baseline.jpg")
    write_embedded_xmp(link, b"packet")
    assert (link.is_symlink(), read_embedded(photo).xmp) == (True, b"packet")
    before = photo.stat()
    write_embedded_xmp(photo, b"packet")  # nothing to do
    assert photo.stat() == before or photo.stat().st_ino == before.st_ino
    for place, mode in ((photo, 0o444), (photo.parent, 0o555)):
        old = place.stat().st_mode
        place.chmod(mode)
        _refused(link, f"{place} is read-only", also_read=False)
        _refused(link, f"{place} is read-only", b"", also_read=False)
        place.chmod(old)


@pytest.mark.parametrize("name", ["baseline.jpg", "little.tif"])
def test_a_photo_that_changes_and_a_wrong_copy_are_not_renamed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path, name)
    module = jpeg_segments if name.endswith("jpg") else tiff_entries
    rewrite = module.rewrite

    def wrong(source: Source, packet: bytes) -> list[Piece]:
        pieces = rewrite(source, packet)
        last = pieces.index(next(piece for piece in reversed(pieces) if isinstance(piece, range)))
        span = pieces[last]
        return [*pieces[:last], range(span.start, span.stop - 9), b"different", *pieces[last + 1 :]]

    with monkeypatch.context() as patch:
        patch.setattr(module, "rewrite", wrong)
        _refused(path, "differ from the photo", also_read=False)
        patch.setattr(module, "rewrite", lambda source, packet: rewrite(source, b"another"))
        _refused(path, "differ from the photo", also_read=False)
        patch.setattr(module, "rewrite", lambda source, packet: [b"nothing"])
        _refused(path, "differ from the photo", also_read=False)
    for error in (OSError(28, "No space left on device"), OSError(5, "Input/output error")):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", Mock(side_effect=error))
            _refused(path, "the photo is unchanged", also_read=False)
    other = _write(tmp_path, "plain.png")
    monkeypatch.setattr(os, "fsync", lambda file: other.replace(path))
    with pytest.raises(InputError, match="another program changed the photo"):
        write_embedded_xmp(path, b"packet")
    assert path.read_bytes() == _FILES["plain.png"]
