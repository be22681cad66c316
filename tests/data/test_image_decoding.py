import io
import struct
import sys
import time
import types
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from aia_jax.data import image_decoding
from aia_jax.data.image_decoding import decode_image
from aia_jax.data.photo_folder import read_photos
from aia_jax.utils.errors import InputError
from tests.soak import bombs


def _encode(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _noise(*shape: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def _tiff(values: np.ndarray, *, planes: bool = False, signed: bool = False) -> bytes:
    """Encodes 16-bit values `[H, W, C]` without compression."""
    height, width, channels = values.shape
    data = values.transpose(2, 0, 1).tobytes() if planes else values.tobytes()
    strips = channels if planes else 1
    tags = {256: [width], 257: [height], 258: [16] * channels, 259: [1], 262: [2 if channels == 3 else 1]}
    tags |= {273: range(400, 400 + len(data), len(data) // strips), 277: [channels], 278: [height]}
    tags |= {279: [len(data) // strips] * strips, 284: [1 + planes], 339: [1 + signed] * channels}
    head, more = struct.pack("<2sHIH", b"II", 42, 8, len(tags)), b""
    for tag, numbers in tags.items():
        packed = struct.pack(f"<{len(numbers)}H", *numbers)
        place = struct.pack("<I", 200 + len(more)) if len(packed) > 4 else packed.ljust(4, b"\0")
        more += packed * (len(packed) > 4)
        head += struct.pack("<HHI", tag, 3, len(numbers)) + place
    return (head + bytes(4)).ljust(200, b"\0") + more.ljust(200, b"\0") + data


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
PALETTE = Image.fromarray(_noise(20, 30, 3)).quantize(16)
MODES = {
    "jpeg": _encode(Image.fromarray(_noise(20, 30, 3)), "JPEG"),
    "large jpeg": _encode(Image.fromarray(_noise(400, 300, 3)), "JPEG"),
    "grey jpeg": _encode(Image.fromarray(_noise(20, 30)), "JPEG"),
    "cmyk jpeg": _encode(Image.fromarray(_noise(20, 30, 4), "CMYK"), "JPEG"),
    "rgba": _encode(Image.fromarray(_noise(20, 30, 4)), "PNG"),
    "grey and alpha": _encode(Image.fromarray(_noise(20, 30, 2)), "PNG"),
    "bilevel": _encode(Image.fromarray(_noise(20, 30)).convert("1"), "PNG"),
    "palette": _encode(PALETTE, "PNG"),
    "palette, one transparent": _encode(PALETTE, "PNG", transparency=3),
    "palette, all transparencies": _encode(PALETTE, "PNG", transparency=bytes(range(16))),
    "gif": _encode(Image.fromarray(_noise(20, 30)), "GIF"),
    "1 pixel": _encode(Image.fromarray(_noise(1, 1, 3)), "PNG"),
}


@pytest.mark.parametrize("data", MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize("size", [16, 33])
def test_every_mode_equals_pillows_rgb_and_bilinear_filter(data, size):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's advice on palettes with transparency
        expected = Image.open(io.BytesIO(data)).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    pixels = decode_image(data, size)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(expected))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
    values = _noise(8, 8, dtype=np.uint16)
    pixels = decode_image(_encode(Image.fromarray(values), kind), 8)
    np.testing.assert_array_equal(pixels, np.repeat((values >> 8)[..., None], 3, axis=2))


def test_16_bit_colors_of_a_tiff_are_scaled():
    values = _noise(8, 8, 3, dtype=np.uint16)
    np.testing.assert_array_equal(decode_image(_tiff(values), 8), values >> 8)


def test_gray_of_more_than_8_bits_keeps_black_and_white():
    def gray(image, kind="TIFF", **options):
        return decode_image(_encode(image, kind, **options), 4)[0, :, 0].tolist()

    ramp, expected = np.tile(np.arange(4), (4, 1)), [0, 85, 170, 255]
    assert gray(Image.fromarray(ramp.astype(np.float32) / 3)) == expected
    assert gray(Image.fromarray(ramp.astype(np.int32) * 85)) == expected
    assert gray(Image.fromarray(ramp.astype(np.int32) * 21845)) == expected
    wide = Image.fromarray(ramp.astype(np.uint16) * 21845)
    data = _encode(wide, "TIFF")
    assert gray(wide) == expected
    place = data.index(struct.pack("<HHI", 262, 3, 1)) + 8  # PhotometricInterpretation
    inverted = data[:place] + bytes(2) + data[place + 2 :]
    assert decode_image(inverted, 4)[0, :, 0].tolist() == expected[::-1]
    assert gray(Image.fromarray(ramp.astype(np.uint16) * 85), "PNG") == expected
    lab = Image.merge("LAB", [Image.new("L", (4, 4), value) for value in (200, 128, 128)])
    np.testing.assert_allclose(decode_image(_encode(lab, "TIFF"), 4), 194, atol=1)


def test_what_viewers_show_is_read_alike():
    """Every file holds the same photo, or its gray."""
    image = Image.fromarray(_noise(6, 5, 3)).resize((120, 144), Image.Resampling.BICUBIC)
    gray = image.convert("L")
    turned, orientation = image.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    orientation[ExifTags.Base.Orientation] = 6
    text, frames = PngImagePlugin.PngInfo(), {"save_all": True, "append_images": [Image.new("RGB", image.size)]}
    text.add_itxt("XML:com.adobe.xmp", " " * 3_000_000, zip=True)
    jpeg = _encode(image, "JPEG", quality=95)
    wide = np.asarray(gray).astype(np.uint16) * 257
    files = {
        "JPEG with other data after it": jpeg + b"MotionPhoto_Data" + bytes(2000),
        "MPO": _encode(image, "MPO", **frames, quality=95),
        "orientation": _encode(turned, "JPEG", quality=95, exif=orientation),
        "orientation, PNG with large texts": _encode(turned, "PNG", pnginfo=text, exif=orientation),
        "large color profile": _encode(image, "PNG", icc_profile=bytes(3_000_000)),
        "CMYK": _encode(image.convert("CMYK"), "JPEG", quality=95),
        "palette": _encode(image.quantize(256), "PNG", transparency=0),
        **{kind: _encode(image, kind, **frames) for kind in ("GIF", "WEBP", "PNG")},
        "alpha": _encode(image.convert("RGBA"), "PNG"),
        "YCbCr": _encode(image.convert("YCbCr"), "TIFF"),
        "16-bit": _encode(Image.fromarray(wide), "PNG"),
        "float": _encode(Image.fromarray(np.float32(wide / 65535)), "TIFF"),
        "32-bit": _encode(Image.fromarray(wide.astype(np.int32)), "TIFF"),
    }
    pixels = {name: decode_image(data, 64, upright=True) for name, data in files.items()}
    plain = [np.asarray(one.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR), float) for one in (image, gray)]
    differ = {name: abs(found - plain["bit" in name or name == "float"]).mean() for name, found in pixels.items()}
    assert max(differ.values()) < 7, differ
    many = bombs.png(4, 4, extra=bombs.text_chunk(2_000_000) * 50)
    wrong_checksum = bombs.png(4, 4, extra=bombs.text_chunk(9)[:-1] + b"!")
    for data in (many, wrong_checksum):
        np.testing.assert_array_equal(decode_image(data, 8), np.zeros((8, 8, 3)))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "empty"),
        (b"<html>404</html>", "a web page, not an image"),
        (MODES["jpeg"][:10], "(?i)truncated|known format"),
        (MODES["rgba"][:200], "truncated"),
        (MODES["rgba"][:60] + bytes(40) + MODES["rgba"][100:], "broken"),
        (bombs.png(60_000, 60_000, rows=1), "more than 200,000,000 pixels, perhaps a decompression bomb"),
        (bombs.png(14_143, 14_143, rows=1), "more than 200,000,000 pixels"),
        (bombs.jpeg(8, 8, progressive=True, scans=100), "a JPEG of more than 100 scans"),
        (bombs.claiming(MODES["jpeg"], 65_500, 65_500), "more than 200,000,000 pixels"),
        (HEIC[:4] + b"ftypcrx isom", "a raw photo, not an image; export it as JPEG"),
        (b"\xff\x0a" + bytes(20), "JPEG XL needs one more package: pip install pillow-jxl-plugin"),
        (b"II*\0\x08" + bytes(60), "a TIFF or raw photo whose kind of pixels is not supported; export it as JPEG"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (bytes(500), "no content but zeros"),
        (_encode(Image.fromarray(np.float32([[0, 300]])), "TIFF"), "its values are in 0..300, whose white is unknown"),
        (_encode(Image.fromarray(np.float32([[0, np.nan]])), "TIFF"), "its values are in nan..nan"),
        (_encode(Image.fromarray(np.int32([[0, 4095]])), "TIFF"), r"save the photo with 8 or 16 bits"),
        (_encode(Image.fromarray(np.int32([[-1, 255]])), "TIFF"), r"its values are in -1..255"),
        (_encode(Image.fromarray(np.uint16([[0, 4095]])), "PNG"), r"its values are in 0..4095, whose white is unknown"),
        (_tiff(_noise(4, 4, 3, dtype=np.uint16) >> 4), "its values are below 16384, whose white is unknown"),
        (_tiff(_noise(4, 4, 3, dtype=np.uint16), planes=True), "a TIFF of signed numbers, or with separate colors"),
        (_tiff(_noise(4, 4, 1, dtype=np.uint16) >> 1, signed=True), "a TIFF of signed numbers"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n", "not an image of a known format"),
    ],
)
def test_invalid_images_are_refused(data, text):
    with pytest.raises(InputError, match=text):
        decode_image(data, 8)


@pytest.mark.parametrize("name", ["jpeg", "large jpeg", "cmyk jpeg"])
def test_a_truncated_jpeg_is_refused_or_complete(name):
    whole = MODES[name]
    expected = decode_image(whole, 32)
    refused = 0
    for length in [*range(0, len(whole), max(1, len(whole) // 40)), *range(len(whole) - 40, len(whole))]:
        try:
            np.testing.assert_array_equal(decode_image(whole[:length], 32), expected, f"cut at {length}")
        except InputError:
            refused += 1
    assert refused > 60


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright_on_request(kind, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = _encode(Image.fromarray(np.kron(_noise(2, 3, 3), np.ones((8, 8, 1), np.uint8))), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB").resize((12, 12), Image.Resampling.BILINEAR)
        stored = image.convert("RGB").resize((12, 12), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(decode_image(data, 12, upright=True).astype(int), np.asarray(expected, int), atol=2)
    np.testing.assert_array_equal(decode_image(data, 12), np.asarray(stored))
    assert kind == "TIFF" or orientation == 1 or not np.array_equal(expected, stored)


@pytest.mark.parametrize("exif", [b"Exif\0\0" + b"\xff" * 40, b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_metadata_are_ignored(exif):
    data = _encode(Image.fromarray(_noise(20, 30, 3)), "JPEG", exif=exif)
    np.testing.assert_array_equal(decode_image(data, 12, upright=True), decode_image(data, 12))


def test_heic_is_read_with_its_package_and_refused_without_it(monkeypatch):
    def register_heif_opener():
        Image.register_open(
            "HEIF", lambda file, name=None: Image.new("RGB", (4, 4), (9, 8, 7)), lambda start: b"heic" in start
        )

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register_heif_opener))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    image_decoding._formats.cache_clear()
    assert decode_image(HEIC, 8).tolist() == [[[9, 8, 7]] * 8] * 8
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    image_decoding._formats.cache_clear()
    with pytest.raises(InputError, match="HEIC and HEIF need one more package: pip install pillow_heif"):
        decode_image(HEIC, 8)
    image_decoding._formats.cache_clear()


def test_large_photos_are_decoded_one_at_a_time(monkeypatch):
    data, at_once, most = _encode(Image.new("L", (64, 64)), "JPEG"), [], []

    def resize(image, size, **_):
        at_once.append(image)
        most.append(len(at_once))
        time.sleep(0.02)
        at_once.pop()
        return np.zeros((size, size, 3), np.uint8)

    monkeypatch.setattr(image_decoding, "resize_image", resize)
    for large_pixels, one_at_a_time in ((1000, True), (10_000, False)):
        monkeypatch.setattr(image_decoding, "_LARGE_PIXELS", large_pixels)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda data: decode_image(data, 8), [data] * 6))
        assert (max(most) == 1) == one_at_a_time


def test_a_photo_of_a_hundred_megapixels_is_read_without_a_warning():
    assert decode_image(bombs.png(12_000, 9_000, colours=0), 8).shape == (8, 8, 3)  # The tests run with -W error.


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size_only_for_small_copies(tmp_path):
    smooth = Image.fromarray(_noise(12, 9, 3)).resize((901, 1203), Image.Resampling.BICUBIC)
    orientation = Image.Exif()
    orientation[ExifTags.Base.Orientation] = 6
    files = {kind: _encode(smooth, kind, exif=orientation) for kind in ("JPEG", "PNG", "MPO")}

    def decoded(kind, **copies):
        return image_decoding.decode(files[kind], lambda image, box: (image.size, box), **copies)

    assert decoded("JPEG") == ((901, 1203), None)
    assert decoded("JPEG", square=64) == ((226, 301), (0, 0, 901 / 4, 1203 / 4))  # at 1/8, less than 2 * 64 wide
    assert decoded("JPEG", square=64, side=200) == ((451, 602), (0, 0, 901 / 2, 1203 / 2))
    assert decoded("MPO", side=100)[0] == (226, 301)
    assert decoded("PNG", square=64)[0] == (901, 1203)
    assert image_decoding.thumbnail(files["JPEG"], 100).shape == (75, 100, 3)
    for kind, data in files.items():
        exact, draft = (decode_image(data, 64, upright=True, draft=draft) for draft in (False, True))
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)).resize((64, 64), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(exact, expected)
        np.testing.assert_allclose(draft.astype(int), exact, atol=0 if kind == "PNG" else 2)
    (tmp_path / "a.jpg").write_bytes(files["JPEG"])
    for draft in (False, True):
        photo = next(read_photos([tmp_path / "a.jpg"], 64, num_workers=1, draft=draft))
        np.testing.assert_array_equal(photo.image, decode_image(files["JPEG"], 64, draft=draft))


@pytest.mark.parametrize(("shape", "small"), [((4, 900), (1, 32)), ((900, 4), (32, 1)), ((9, 6), (32, 21))])
def test_a_thumbnail_is_never_empty(shape, small):
    assert image_decoding.thumbnail(_encode(Image.fromarray(_noise(*shape)), "PNG"), 32).shape == (*small, 3)


def test_further_frames_and_scans_and_a_video_after_a_jpeg_are_ignored():
    np.testing.assert_array_equal(decode_image(bombs.gif(20_000), 8), decode_image(bombs.gif(1), 8))
    scans = bombs.jpeg(8, 8, progressive=True, scans=60)
    np.testing.assert_array_equal(decode_image(scans, 8), decode_image(bombs.jpeg(8, 8, progressive=True), 8))
    video = MODES["large jpeg"] + b"\xff\xda\0\0" * 1000
    np.testing.assert_array_equal(decode_image(video, 8), decode_image(MODES["large jpeg"], 8))
