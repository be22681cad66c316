"""Decodes image files to uint8 arrays of the network's input size, and to thumbnails."""

import contextlib
import functools
import io
import logging
import math
import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from aia_jax.utils.errors import InputError

MOST_PIXELS = 200_000_000  # the largest allowed photo; the largest phone cameras have this resolution

# Other formats are not read, because some readers of Pillow are not safe. For example, its EPS reader runs Ghostscript.
_FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "JXL", "PNG", "PPM", "TIFF", "WEBP")
_LARGE_PIXELS = 70_000_000
_MOST_SCANS = 100  # scans of a JPEG; cameras write about ten, and the decoder visits all pixels in each scan
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_one_large = threading.Lock()  # Only one large photo is decoded at a time: several would fill the memory.
# By default, Pillow warns above 89 million pixels and raises an error above 179 million pixels.
Image.MAX_IMAGE_PIXELS = MOST_PIXELS
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # of damaged metadata, which are not used
logging.getLogger("PIL").setLevel(logging.CRITICAL)  # `InputError` says what is wrong

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_ORIENTATION = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")  # may stand behind the pixels
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # chunks of a PNG that do not change its pixels
_BITS, _PHOTOMETRIC, _PLANES, _SIGNED = 258, 262, 284, 339  # tags of TIFF
_LEAST_WHITE = 1 << 14  # smallest largest value of integers that are taken for 16-bit values
_TURNED = (5, 6, 7, 8)  # values of the EXIF field Orientation that exchange width and height
_BROKEN = "; with it, the file is broken"
_KINDS = {  # regular expression for the start of a file that cannot be read: what it is, and what to do
    rb"....ftyp(?=.{0,24}avi[fs])": "a broken AVIF, or an old Pillow: pip install --upgrade pillow",
    rb"....ftyp(hei[cxms]|hevc|mif1|msf1)": "HEIC and HEIF need one more package: pip install pillow_heif" + _BROKEN,
    rb"\xff\x0a|\0\0\0\x0cJXL ": "JPEG XL needs one more package: pip install pillow-jxl-plugin" + _BROKEN,
    rb"....ftyp": "a video or a raw photo, not an image; export it as JPEG",
    rb"II[*+]\0|MM\0[*+]": "a TIFF or raw photo whose kind of pixels is not supported; export it as JPEG",
    rb"\xff\xd8": "a truncated JPEG, or one of a kind that is not supported; export it again as JPEG",
    rb"(?i)\s*<(!doctype )?html": "a web page, not an image; download the photo again",
    rb"version https://git-lfs": "a pointer of Git LFS, not an image; git lfs pull downloads the photo",
    rb"\0{16}": "the file has no content but zeros; copy the photo again",
    b"": "not an image of a known format",
}
_WEBP_QUALITY = 70
Box = tuple[float, ...] | None  # left, upper, right and lower edge in pixels


def decode_image(data: bytes, size: int, *, upright: bool = False, draft: bool = False) -> np.ndarray:
    """Decodes an image to RGB and resizes it to a square with Pillow's antialiasing bilinear filter.

    The aspect ratio is not kept. Colors are converted by `PIL.Image.convert("RGB")`, as in the reference
    implementation: alpha and palette transparency are dropped, and gray is copied to all channels. Only the first
    frame of an animation is read. HEIC and HEIF need the package pillow_heif, and JPEG XL needs pillow-jxl-plugin. Gray
    with more than 8 bits is scaled to 8 bits, because Pillow would clip the values:

    - integers as they are if all are in 0..255, and by their second byte if the largest is in 16384..65535
    - floating-point numbers by the factor 255 if all are in 0..1

    Other values are refused, because their white is unknown.

    Args:
        size: side S of the result in pixels.
        upright: whether to apply the EXIF orientation. Photos from a camera need it. The published data sets were
            prepared without it.
        draft: whether to save time by an approximation; see `decode`. Prepared training images must be exact.

    Returns:
        uint8 `[S, S, 3]`.

    Raises:
        InputError: the data is empty, not an image, corrupt or truncated, the image has over `MOST_PIXELS` pixels, or
            the range of its values is unknown.
    """
    resize = functools.partial(resize_image, size=size, upright=upright)
    return decode(data, lambda image, box: resize(image, box=box), square=size * draft)


def resize_image(image: Image.Image, size: int, *, upright: bool = False, box: Box = None) -> np.ndarray:
    """Resizes an open image, or its part `box`, as `decode_image` does, and returns uint8 `[S, S, 3]`."""
    image.load()
    orientation = _orientation(image, upright)
    # The image is rotated after resizing, because rotating a small square is faster.
    return _to_array(_to_rgb(image).resize((size, size), Image.Resampling.BILINEAR, box), orientation)


def thumbnail(data: bytes, side: int) -> np.ndarray:
    """Decodes a photo to uint8 `[H, W, 3]`, upright and with its aspect ratio. The longer side is `side` pixels.

    The result is approximate; see `decode`.
    """

    def shrink(image: Image.Image, _: Any) -> np.ndarray:
        orientation, longest = _orientation(image, True), max(image.size)
        size = [max(round(length / longest * side), 1) for length in image.size]
        return _to_array(_to_rgb(image).resize(size, Image.Resampling.BICUBIC), orientation)

    return decode(data, shrink, side=side)


def image_size(path: Path) -> tuple[int, int]:
    """Returns the width and the height of the upright photo in pixels. Decodes it only if its header is not enough.

    Raises:
        InputError: the file is not an image, or is broken.
        OSError: the file cannot be read.
    """
    try:
        with Image.open(path, formats=_formats()) as image:
            if image.format != "PNG":
                return _upright_size(image)
            if not any(mark in path.read_bytes() for mark in _PNG_ORIENTATION):
                return image.size
    except Exception:  # Pillow's readers raise many types of errors; `decode` says what is wrong.
        pass
    return decode(path.read_bytes(), lambda image, _: _upright_size(image))


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if _orientation(image, True) in _TURNED else (width, height)


def encode_webp(image: np.ndarray) -> bytes:
    """Encodes uint8 `[H, W, 3]` as WebP. The file is about a third smaller than a JPEG of the same visual quality."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "WEBP", quality=_WEBP_QUALITY)
    return file.getvalue()


def small_webp(image: Image.Image, side: int, upright: bool) -> bytes:
    """Encodes an open image as a WebP file with at most `side` pixels per side. `upright`: see `decode_image`."""
    orientation = _orientation(image, upright)
    small = _to_rgb(image)  # may be `image` itself, which `thumbnail` then changes; `image` is not used again
    small.thumbnail((side, side))  # never enlarges
    return encode_webp(_to_array(small, orientation))


def decode(data: bytes, convert: Callable[[Image.Image, Box], Any], *, square: int = 0, side: int = 0) -> Any:
    """Opens an image file and returns `convert(image, box)`. Raises the same errors as `decode_image`.

    If `square` or `side` is given, a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, which is faster. Its width
    and height are then at least twice those of the copies, whose pixels differ from those of exact copies by a few of
    255 levels.

    Args:
        convert: function of the open image and of `box`, the part of this image that has the photo, for
            `PIL.Image.resize`. At a fraction of its size, a photo may end within the last pixel. None: the whole image.
        square: side in pixels of a square copy that `convert` makes; 0: none.
        side: longer side in pixels of a copy with the photo's aspect ratio; 0: none.
    """
    if not data:
        raise InputError("the file is empty")
    if _has_many_scans(data):
        raise InputError(f"a JPEG of more than {_MOST_SCANS} scans, which would take very long")
    try:
        try:
            return _open(data, convert, square, side)
        except (ValueError, Image.UnidentifiedImageError):  # large or damaged texts, which are not needed
            if not data.startswith(_PNG):
                raise
            return _open(_without_text(data), convert, square, side)
    except (InputError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise InputError(next(kind for start, kind in _KINDS.items() if re.match(start, data, re.DOTALL))) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"more than {MOST_PIXELS:,} pixels, perhaps a decompression bomb; shrink the photo") from None
    except Exception as error:  # Pillow's decoders raise many types of errors for invalid bytes.
        raise InputError(
            "the file is broken, truncated or of a rare kind; copy the photo again, or export it as JPEG"
        ) from error


def _open(data: bytes, convert: Callable[[Image.Image, Box], Any], square: int, side: int) -> Any:
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
        num_pixels = image.width * image.height
        if num_pixels > MOST_PIXELS:
            raise Image.DecompressionBombError
        with _one_large if num_pixels > _LARGE_PIXELS else contextlib.nullcontext():
            tags = getattr(image, "tag_v2", {})
            bits, raw = tags.get(_BITS, (8,))[0], image.info.get("compression") == "raw"
            if (tags.get(_SIGNED, ())[:1] == (2,) and bits < 32) or (tags.get(_PLANES) == 2 and bits > 8 and raw):
                raise InputError("a TIFF of signed numbers, or with separate colors of 16 bits; export it as JPEG")
            reduced = ";16" in str(getattr(image, "tile", ""))  # Pillow keeps the high byte of colors
            box = _draft(image, square, side) if square or side else None
            image.load()
            if reduced and image.mode[0] not in "IF" and np.max(image.convert("RGB").getextrema()) < _LEAST_WHITE >> 8:
                raise InputError(f"its values are below {_LEAST_WHITE}, whose white is unknown; scale them to 8 bits")
            return convert(image, box)


def _draft(image: Image.Image, square: int, side: int) -> Box:
    """Chooses the fraction for `decode`, and returns `box`. Only JPEG files have fractions."""
    longest = max(image.size)
    drafted = image.draft(None, [math.ceil(2 * max(square, length / longest * side)) for length in image.size])
    return drafted and drafted[1]


def _without_text(png: bytes) -> bytes:
    """Returns the PNG without its texts and its color profile. Does not decompress them."""
    chunks, start = [_PNG], len(_PNG)
    while start < len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4])
        if png[start + 4 : start + 8] not in _PNG_TEXT:
            chunks.append(png[start:end])
        start = end
    return b"".join(chunks)


def _has_many_scans(data: bytes) -> bool:
    """Checks for a JPEG with over `_MOST_SCANS` scans. A few kilobytes of such a JPEG can take minutes to decode."""
    place, scans = 2, 0
    while data[:2] == b"\xff\xd8" and (found := _MARKER.search(data, place)) and found[0][1] != _END_OF_IMAGE:
        scans += found[0][1] == _START_OF_SCAN
        if scans > _MOST_SCANS:
            return True
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    return False


@functools.cache
def _formats() -> tuple[str, ...]:
    """Returns the formats in `_FORMATS` that this installation can read."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with contextlib.suppress(ImportError):
        import pillow_jxl  # noqa: F401  registers itself
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image, upright: bool) -> Any:
    """Returns the value of the EXIF field Orientation; None if there is none, or if `upright` is False."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation) if upright else None
    except Exception:  # The metadata is damaged; the pixels may be fine.
        return None


def _to_array(image: Image.Image, orientation: Any) -> np.ndarray:
    if orientation is None:
        return np.asarray(image)
    plain = Image.fromarray(np.asarray(image))  # without other metadata, which may be damaged
    plain.getexif()[ExifTags.Base.Orientation] = orientation
    return np.asarray(ImageOps.exif_transpose(plain))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode[0] in "IF":
        return Image.fromarray(_to_8_bits(image)).convert("RGB")
    if image.mode == "P":
        image.info.pop("transparency", None)  # Otherwise `convert` drops it with a warning.
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(image: Image.Image) -> np.ndarray:
    """Returns gray of more than 8 bits as uint8 `[H, W]`, by the rules of `decode_image`."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    low, high = values.min(), values.max()
    if tags.get(_BITS) == (12,):
        gray = values >> 4
    elif image.mode == "F" and 0 <= low <= high <= 1:
        gray = np.rint(values * 255)
    elif image.mode[0] == "I" and low >= 0 and (high <= 255 or _LEAST_WHITE <= high < 1 << 16):
        gray = values if high <= 255 else values >> 8
    else:
        advice = "scale them, and save the photo with 8 or 16 bits"
        raise InputError(f"its values are in {low:g}..{high:g}, whose white is unknown; {advice}")
    gray = gray.astype(np.uint8)
    return ~gray if tags.get(_PHOTOMETRIC) == 0 else gray  # 0: white is zero
