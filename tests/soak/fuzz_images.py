"""Damaged photos, compared with Pillow."""

import contextlib
import functools
import io
import random
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from aia_jax.data.image_decoding import MOST_PIXELS, decode_image, thumbnail
from tests.soak import plain
from tests.soak.mutation import in_memory, write_damaged

SIZE = 24
KINDS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")


def images(rng: random.Random, folder: Path) -> None:
    """One photo: its resized image, the upright image, and its thumbnail."""
    data = write_damaged(folder / "photo", rng.choice(seeds()), rng)
    expected, many_scans = _pillows(data), data.count(b"\xff\xda") > 100
    with plain.may_refuse("" if expected is None else "scans", right=expected is None or many_scans):
        found, small = [decode_image(data, SIZE, upright=upright) for upright in (False, True)], thumbnail(data, SIZE)
    assert expected is not None, "accepted, but Pillow refuses it"
    np.testing.assert_array_equal(found, expected)
    assert small.dtype == np.uint8
    assert min(small.shape[:2]) >= 1
    assert (max(small.shape[:2]), small.shape[2]) == (SIZE, 3)


def _pillows(data: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """The pixels without orientation, and upright; None: Pillow refuses, or it is not a photo format."""
    with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as image:
        if image.width * image.height > MOST_PIXELS or image.format not in KINDS:
            return None
        image.load()
        wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
        rgb = Image.fromarray((np.asarray(image) // 256).astype(np.uint8)) if wide else image
        square = np.asarray(rgb.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        upright = Image.fromarray(square)
        with contextlib.suppress(Exception):  # only metadata are damaged
            upright.getexif()[ExifTags.Base.Orientation] = image.getexif()[ExifTags.Base.Orientation]
        return square, np.asarray(ImageOps.exif_transpose(upright))
    return None


@functools.cache
def seeds() -> tuple[bytes, ...]:
    """Small valid photos of every format and mode."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize((40, 30), Image.Resampling.BICUBIC)
    grey, wide = rgb.convert("L"), Image.fromarray(rng.integers(0, 2**16, (30, 40), np.uint16))
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    frames = {"save_all": True, "append_images": [rgb.rotate(90)] * 2}
    jpegs = [
        in_memory(rgb.save, "JPEG", exif=turned),
        in_memory(rgb.save, "JPEG", progressive=True, quality=95, subsampling=0, comment=b"a comment"),
        in_memory(rgb.convert("CMYK").save, "JPEG"),
        in_memory(grey.save, "JPEG", optimize=True, restart_marker_blocks=1),
        in_memory(rgb.resize((300, 200)).save, "JPEG", exif=turned, icc_profile=bytes(200)),
        in_memory(rgb.save, "MPO", save_all=True, append_images=[rgb]),
    ]
    pngs = [
        in_memory(rgb.save, "PNG", exif=turned),
        in_memory(wide.save, "PNG"),
        in_memory(rgb.quantize(16).save, "PNG", transparency=3),
        in_memory(rgb.convert("RGBA").save, "PNG"),
        in_memory(grey.convert("1").save, "PNG"),
        in_memory(grey.convert("LA").save, "PNG", **frames),
        in_memory(rgb.save, "PNG", **frames),
    ]
    others = [
        in_memory(rgb.save, "WEBP", exif=turned),
        in_memory(rgb.convert("RGBA").save, "WEBP", lossless=True),
        in_memory(rgb.quantize(4).save, "GIF", transparency=1),
        *(in_memory(rgb.save, kind, **frames) for kind in ("WEBP", "GIF")),
        *(in_memory(rgb.save, "TIFF", compression=name) for name in ("tiff_lzw", "jpeg")),
        *(in_memory(wide.save, kind) for kind in ("TIFF", "PPM")),
        *(in_memory(rgb.save, kind) for kind in ("BMP", "JPEG2000", "AVIF") if kind in Image.SAVE),
    ]
    return (*jpegs * 3, *pngs * 3, *others)  # most photos are JPEG and PNG
