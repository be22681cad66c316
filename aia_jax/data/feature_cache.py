"""Feature maps of a split under a frozen backbone: computed once and cached beside the images."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from aia_jax.data.cache import cached_directory
from aia_jax.data.mapped_rows import MappedRows, RowWriter
from aia_jax.utils.errors import InputError

# The flipped versions of an image that random flips can produce, for each value of `config.data.flips`.
FLIPS = {"none": ("",), "horizontal": ("", "h"), "both": ("", "h", "v", "hv")}

_VERSION = 1  # of the code below; increase it when the same images and weights give other maps


def weights_digest(arrays: dict[str, np.ndarray]) -> str:
    """Twelve hexadecimal digits that identify the weights."""
    digest = hashlib.sha256()
    for path in sorted(arrays):
        value = np.ascontiguousarray(arrays[path])
        digest.update(f"{path} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()[:12]


def prepare_features(
    images: MappedRows,
    compute: Callable[[np.ndarray], np.ndarray],
    *,
    backbone: str,
    settings: str,
    flip: str,
    dtype: str,
    batch_size: int,
) -> MappedRows:
    """Returns the feature maps of `images`, row by row. On first use it computes them for all images of the file.

    They are cached beside the folder of the images, and replaced when the images change.

    Args:
        images: uint8 `[N, S, S, 3]` of a prepared copy.
        compute: maps uint8 `[batch_size, S, S, 3]` to features `[batch_size, h, w, C]`.
        backbone: name of the backbone, for the name of the folder.
        settings: everything else that determines the features, including the weights.
        flip: flips to apply to the images first: "", "h", "v" or "hv".
        dtype: dtype of the file: "float16" or "float32".

    Raises:
        InputError: the cache has no room, or `dtype` cannot represent the features.
    """
    copy = images.path.parent
    name = copy.name.rpartition("-")[0]
    kind = f"{name}-{backbone}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}{flip and '-'}{flip}-{dtype}"
    fingerprint = hashlib.sha256(f"{_VERSION} {copy.name} {settings}".encode()).hexdigest()[:12]
    whole = MappedRows(images.path)
    shape = jax.eval_shape(compute, jax.ShapeDtypeStruct((batch_size, *whole.shape[1:]), np.uint8)).shape[1:]
    num_bytes = len(whole) * int(np.prod(shape)) * np.dtype(dtype).itemsize

    def write(directory: Path) -> None:
        description = f"{copy.name.partition('-')[0]} features{flip and ', flipped '}{flip}"
        bar = tqdm(total=len(whole), desc=description, unit="img", mininterval=0.5)
        with bar, RowWriter(directory / "features.npy", shape, dtype) as rows:
            for start in range(0, len(whole), batch_size):
                batch = whole[start : start + batch_size]
                features = np.asarray(compute(pad_batch(_flip(batch, flip), batch_size)), np.float32)[: len(batch)]
                rows.extend(cast_features(features, dtype, "config.data.feature_dtype=float32"))
                bar.update(len(batch))

    return MappedRows(cached_directory(copy.parent, kind, fingerprint, num_bytes, write) / "features.npy", images.rows)


def pad_batch(images: np.ndarray, batch_size: int) -> np.ndarray:
    """Pads `[b, ...]` with zeros to `[batch_size, ...]`, so that the last batch needs no second compilation."""
    return np.pad(images, [(0, batch_size - len(images))] + [(0, 0)] * (images.ndim - 1))


def cast_features(features: np.ndarray, dtype: str, remedy: str) -> np.ndarray:
    """Casts features to `dtype`.

    Args:
        remedy: the setting that allows larger values, for the message.

    Raises:
        InputError: a value is too large for `dtype` or not finite.
    """
    largest = np.abs(features).max(initial=0)
    if not largest <= np.finfo(dtype).max:
        raise InputError(f"features of up to {largest:g} do not fit into {dtype}; set {remedy}")
    return features.astype(dtype)


def _flip(images: np.ndarray, flip: str) -> np.ndarray:
    if "h" in flip:
        images = images[:, :, ::-1]
    return images[:, ::-1] if "v" in flip else images
