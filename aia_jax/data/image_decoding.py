"""One image file's bytes to one uint8 array of the size the network takes."""

import contextlib
import functools
import io
import re
import threading
import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image

from aia_jax.utils.errors import InputError

MOST_PIXELS = 200_000_000  # as the largest cameras of phones have

# Of all that Pillow reads, photos alone: its reader of EPS, for one, starts Ghostscript.
_FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_LARGE_PIXELS = 70_000_000
_MOST_SCANS = 100  # of a JPEG; cameras write up to some ten, and each goes over all pixels
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_one_large = threading.Lock()  # Decoded side by side they would fill the memory.
# Pillow's own limit would warn at 89 million pixels and refuse at 179.
Image.MAX_IMAGE_PIXELS = MOST_PIXELS
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)

_UPRIGHT = {  # by the value of EXIF's field Orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_WEBP_QUALITY = 70
Shrunk = TypeVar("Shrunk")


def decode_image(data: bytes, size: int, *, upright: bool = False) -> np.ndarray:
    """Decodes to RGB and resizes with Pillow's (antialiasing) bilinear filter, ignoring the aspect ratio.

    Colours are those of `PIL.Image.convert("RGB")`, as in the reference: alpha and palette transparency are dropped,
    CMYK is converted, grey is repeated, of an animation the first frame counts. 16-bit grey is scaled to 8 bits, which
    Pillow would clip. HEIC and HEIF need the package pillow_heif.

    Args:
        data: the bytes of the file, whole.
        size: side S of the result in pixels.
        upright: whether a photo is turned as its EXIF orientation says. The published data sets were prepared
            without; photos from a camera need it.

    Returns:
        uint8 `[S, S, 3]`.

    Raises:
        InputError: empty, not an image, corrupt, truncated, or of more than `MOST_PIXELS`.
    """
    return _decoded(data, lambda image: resize_image(image, size, upright=upright))


def resize_image(image: Image.Image, size: int, *, upright: bool = False) -> np.ndarray:
    """An open image as `decode_image` would give it: uint8 `[S, S, 3]`."""
    image.load()
    turn = _UPRIGHT.get(_orientation(image)) if upright else None
    square = _to_rgb(image).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(square if turn is None else square.transpose(turn))  # a small square is turned faster


def thumbnail(data: bytes, side: int) -> np.ndarray:
    """As `decode_image`, upright, but of the photo's own shape: uint8 `[H, W, 3]`, neither longer than `side`."""

    def shrink(image: Image.Image) -> np.ndarray:
        turn, longest = _UPRIGHT.get(_orientation(image)), max(image.size)
        size = [max(round(length / longest * side), 1) for length in image.size]
        small = _to_rgb(image).resize(size, Image.Resampling.BICUBIC)
        return np.asarray(small if turn is None else small.transpose(turn))

    return _decoded(data, shrink)


def decode_with_picture(data: bytes, size: int, side: int) -> tuple[np.ndarray, bytes]:
    """The image as `decode_image` gives it, upright, and as a picture for a page, decoded once.

    Returns:
        uint8 `[S, S, 3]`, and a WebP of the photo's own shape, neither side longer than `side`, without metadata.
    """

    def shrink(image: Image.Image) -> tuple[np.ndarray, bytes]:
        turn = _UPRIGHT.get(_orientation(image))
        return resize_image(image, size, upright=True), _small_webp(image, side, turn)

    return _decoded(data, shrink)


def webp_thumbnail(data: bytes, side: int) -> bytes:
    """The picture of `decode_with_picture` alone, not turned, as in the published data sets."""
    return _decoded(data, lambda image: _small_webp(image, side, None))


def encode_webp(image: np.ndarray) -> bytes:
    """uint8 `[H, W, 3]` as a WebP file, about a third smaller than a JPEG that looks the same."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "WEBP", quality=_WEBP_QUALITY)
    return file.getvalue()


def _small_webp(image: Image.Image, side: int, turn: Image.Transpose | None) -> bytes:
    small = _to_rgb(image)  # which may be `image` itself, of no use afterwards
    small.thumbnail((side, side))  # which enlarges nothing
    return encode_webp(np.asarray(small if turn is None else small.transpose(turn)))


def _decoded(data: bytes, shrink: Callable[[Image.Image], Shrunk]) -> Shrunk:
    if not data:
        raise InputError("the file is empty")
    if _has_many_scans(data):
        raise InputError(f"a JPEG of more than {_MOST_SCANS} scans, which would take very long")
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            num_pixels = image.width * image.height
            if num_pixels > MOST_PIXELS:
                raise Image.DecompressionBombError
            with _one_large if num_pixels > _LARGE_PIXELS else contextlib.nullcontext():
                image.load()
                return shrink(image)
    except Image.UnidentifiedImageError:
        if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
            raise InputError("HEIC and HEIF need one more package: pip install pillow_heif") from None
        raise InputError("not an image of a known format") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"more than {MOST_PIXELS:,} pixels, perhaps a decompression bomb; shrink the photo") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything for bytes that are no valid image.
        raise InputError(f"{error or type(error).__name__}") from None


def _has_many_scans(data: bytes) -> bool:
    """Whether a JPEG of some kilobytes would keep its decoder busy for minutes."""
    place, scans = 2, 0
    while data[:2] == b"\xff\xd8" and (found := _MARKER.search(data, place)) and found[0][1] != _END_OF_IMAGE:
        scans += found[0][1] == _START_OF_SCAN
        if scans > _MOST_SCANS:
            return True
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    return False


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `_FORMATS` that can be read here."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # of damaged metadata, which say nothing about the pixels
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P":
        image.info.pop("transparency", None)  # `convert` drops it too, but not without a warning.
    return image if image.mode == "RGB" else image.convert("RGB")
