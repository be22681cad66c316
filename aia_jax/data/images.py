"""One image file's bytes to one uint8 array of the size the network takes."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from aia_jax.errors import InputError


def decode_image(data: bytes, size: int) -> np.ndarray:
    """Decodes to RGB and resizes with Pillow's (antialiasing) bilinear filter, ignoring the aspect ratio.

    Colours are those of `PIL.Image.convert("RGB")`, as in the reference: alpha and palette transparency are dropped,
    CMYK is converted, grey is repeated, of an animation the first frame counts. 16-bit grey is scaled to 8 bits, which
    Pillow would clip. EXIF rotation is not applied.

    Args:
        data: the bytes of the file, whole.
        size: side S of the result in pixels.

    Returns:
        uint8 `[S, S, 3]`.

    Raises:
        InputError: empty, not an image, corrupt, truncated, or too large to be decoded safely.
    """
    return np.asarray(_decoded(data, lambda image: image.resize((size, size), Image.Resampling.BILINEAR)))


def thumbnail(data: bytes, side: int) -> np.ndarray:
    """As `decode_image`, but of the photo's own shape: uint8 `[H, W, 3]`, neither longer than `side`."""
    return np.asarray(_decoded(data, lambda image: ImageOps.contain(image, (side, side))))


def _decoded(data: bytes, shrink: Callable[[Image.Image], Image.Image]) -> Image.Image:
    if not data:
        raise InputError("the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return shrink(_to_rgb(image))
    except Image.UnidentifiedImageError:
        raise InputError("not an image of a known format") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything for bytes that are no valid image.
        raise InputError(f"{error or type(error).__name__}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P":
        image.info.pop("transparency", None)  # `convert` drops it too, but not without a warning.
    return image.convert("RGB")
