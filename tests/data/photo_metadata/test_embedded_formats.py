"""Where each format keeps its XMP packet and IPTC keywords, byte by byte."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
from PIL import Image

from aia_jax.data.photo_metadata.embedded import EmbeddedMetadata, read_embedded, write_embedded_xmp
from aia_jax.utils.errors import InputError
from tests.helpers.embedded_photos import (
    FILES,
    IPTC,
    KEYWORDS,
    chunk,
    record,
    refused,
    resource,
    segment,
    write,
)

_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
_EXTENDED = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 40 + b"<part/>"


def test_iptc_keywords_are_read_in_all_encodings_and_places(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    jpeg = FILES["progressive.jpg"]
    long = struct.pack(">3BHI", 0x1C, 2, 25, 0x8004, 40_000) + b"y" * 40_000
    for block, expected in {
        resource(IPTC): KEYWORDS,
        resource(record(b"caf\xe9") + record(b"\x80 and\0 ") + record(b"\x81")): ("café", "€ and", "\x81"),
        resource(record(b"cat") + record(b"place", (2, 90)) + record(b"") + record(b"cat")): ("cat",),
        resource(b"x", 0x0425, b"odd") + resource(record(b"1"), name=b"even") + resource(record(b"2")): ("1", "2"),
        resource(long + b"\0\0"): ("y" * 40_000,),
        resource(b"") + b"\0\0\0": (),
    }.items():
        path.write_bytes(jpeg[:2] + segment(0xED, b"Photoshop 3.0\0" + block) + jpeg[2:])
        assert read_embedded(path).iptc_keywords == expected
    padded = IPTC.ljust(-(-len(IPTC) // 4) * 4, b"\0")
    tiff, count = FILES["little.tif"], len(padded)
    swapped = b"".join(padded[place : place + 4][::-1] for place in range(0, count, 4))
    as_long = struct.pack("<HHI", 33723, 7, count), struct.pack("<HHI", 33723, 4, count // 4)
    photoshop = struct.pack("<HH", 34377, 7), struct.pack("<HH", 34376, 7)  # hidden
    path.write_bytes(tiff.replace(*as_long).replace(padded, swapped).replace(*photoshop))
    assert swapped in path.read_bytes()
    assert read_embedded(path).iptc_keywords == KEYWORDS
    for block in (
        resource(record(b"cat")[:-1]),
        resource(record(b"cat") + b"cat"),
        resource(b"\x1c\2\x19\xff\xff"),
        resource(IPTC)[:-9],
        b"8BIM\4\4",
        b"some other text",
    ):
        path.write_bytes(jpeg[:2] + segment(0xED, b"Photoshop 3.0\0" + block) + jpeg[2:])
        with pytest.raises(InputError, match="damaged"):
            read_embedded(path)
        write_embedded_xmp(path, b"a packet")  # needs no IPTC
        with pytest.raises(InputError, match="damaged"):
            read_embedded(path)


def test_a_jpeg_keeps_its_segments_and_the_positions_of_its_other_pictures(tmp_path: Path) -> None:
    path, several = write(tmp_path, "several.jpg"), FILES["several.jpg"]
    exif, pictures = several.index(b"\xff\xe1"), several.index(b"\xff\xe2")
    new = segment(0xE1, _HEADER + b"packet")
    write_embedded_xmp(path, b"packet")
    assert path.read_bytes() == several[:pictures] + new + several[pictures:]  # after EXIF
    assert exif < pictures
    after_list = several.index(b"\xff\xdb")
    path.write_bytes(several[:after_list] + new + several[after_list:])
    refused(path, r"list \(MPF\)", also_read=False)
    write_embedded_xmp(path, b"PACKET")  # of the same length
    assert path.read_bytes() == several[:after_list] + new.replace(b"packet", b"PACKET") + several[after_list:]

    plain = FILES["progressive.jpg"]
    app0 = plain.index(b"\xff\xdb")
    extended = segment(0xE1, _EXTENDED) + b"\xff\xff" + segment(0xFE, b"a comment")
    path.write_bytes(plain[:2] + extended + new + plain[app0:])
    write_embedded_xmp(path, b"longer packet")
    longer = segment(0xE1, _HEADER + b"longer packet")
    assert path.read_bytes() == plain[:2] + extended + longer + plain[app0:]
    path.write_bytes(plain[:2] + new + extended + new + plain[app0:])
    refused(path, "2 XMP packets", also_read=False)
    assert read_embedded(path).xmp == b"packet"
    path.write_bytes(plain + b"AXS!" + bytes(8))
    refused(path, "AFCP", also_read=False)

    path.write_bytes(plain)
    write_embedded_xmp(path, b"x" * 65_502)
    assert read_embedded(path).xmp == b"x" * 65_502
    refused(path, "65,503 bytes, but a JPEG file has room for 65,502", b"x" * 65_503, also_read=False)


def test_a_png_is_read_compressed_and_written_plain(tmp_path: Path) -> None:
    path, plain = tmp_path / "a.png", FILES["plain.png"]
    header, end = plain.index(b"IHDR") + 4 + 13 + 4, plain.index(b"IEND") - 4
    texts = {
        "compressed": (b"iTXt", b"XML:com.adobe.xmp\0\1\0de\0titel\0" + zlib.compress(b"packet")),
        "of another type": (b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(b"packet")),
        "plain": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0packet"),
        "of ImageMagick": (b"tEXt", b"Raw profile type xmp\0\nxmp\n       6\n7061636b\n6574\n"),
    }
    for place in (header, end):
        for kind, content in texts.values():
            path.write_bytes(plain[:place] + chunk(kind, content) + plain[place:])
            assert read_embedded(path).xmp == b"packet"
            write_embedded_xmp(path, b"new")
            new = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0new")
            assert path.read_bytes() == plain[:place] + new + plain[place:]
    bomb = zlib.compress(bytes(2**24 + 1))
    for kind, content, match in (
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb, "more than the limit of 16,777,216"),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb[:20], "cut off"),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0no", "cannot be decompressed"),
        (b"zTXt", b"Raw profile type xmp\0\0" + zlib.compress(b"\nxmp\n 7\n7061636b6574\n"), "hexadecimal"),
    ):
        path.write_bytes(plain[:header] + chunk(kind, content) + plain[header:])
        refused(path, match)
    damaged = chunk(*texts["plain"]).replace(b"packet", b"pakket")
    path.write_bytes(plain[:header] + damaged + plain[header:])
    refused(path, "wrong checksum")


@pytest.mark.parametrize("name", ["lossy.webp", "lossless.webp", "alpha.webp", "exif.webp", "animated.webp"])
def test_a_webp_gets_the_features_that_libwebp_writes(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, name)
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
    path, content = tmp_path / "a.webp", bytearray(FILES["alpha.webp"] + b"ABCD\3\0\0\0odd")
    content[4:8] = (len(content) - 8).to_bytes(4, "little")
    path.write_bytes(content)
    write_embedded_xmp(path, b"even")
    assert path.read_bytes().endswith(b"odd\0XMP \4\0\0\0even")
    path.write_bytes(path.read_bytes().replace(b"XMP ", b"XMP\0"))  # as some programs write it
    assert read_embedded(path).xmp == b"even"
    write_embedded_xmp(path, b"odd")
    assert path.read_bytes().endswith(b"odd\0XMP \3\0\0\0odd\0")


def test_a_tiff_keeps_its_directories_and_grows_once(tmp_path: Path) -> None:
    for name in (name for name in FILES if name.endswith(".tif") and "big" not in name):
        path = write(tmp_path, name)
        write_embedded_xmp(path, b"a packet")
        with Image.open(path) as after, Image.open(io.BytesIO(FILES[name])) as before:
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
        old = FILES[name]
        assert path.read_bytes()[8 : len(old)] == old[8:]


def test_absurd_lengths_are_refused_without_reading_them(tmp_path: Path) -> None:
    path, jpeg, png = tmp_path / "a", FILES["progressive.jpg"], FILES["plain.png"]
    header = png.index(b"IHDR") + 4 + 13 + 4
    tiff, big = bytearray(FILES["little.tif"]), bytearray(FILES["motorola-big.tif"])
    entry = tiff.index(struct.pack("<HH", 33723, 7))
    tiff[entry + 4 : entry + 8] = b"\xff\xff\xff\x7f"
    unknown = bytearray(FILES["little.tif"])
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
        refused(path, "cut off|damaged")
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
