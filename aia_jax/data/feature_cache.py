"""Writes the feature maps of a frozen backbone to a `.npy` file: for the cache, or for image-text retrieval."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from aia_jax.data.cache import cached_directory
from aia_jax.data.mapped_rows import MappedRows, RowWriter
from aia_jax.data.photo_rows import PhotoRow
from aia_jax.utils.errors import InputError

# For each value of `config.data.flips`, the possible flips of an image: "h" is left-right, and "v" is up-down.
FLIPS = {"none": ("",), "horizontal": ("", "h"), "both": ("", "h", "v", "hv")}

_IN_FLIGHT = 2  # batches that are computed while an earlier batch is written
_POOLED_AT_ONCE = 64  # maps
_VERSION = 1  # version of the code below; increase it when a change of the code changes the maps


def weights_digest(arrays: dict[str, np.ndarray]) -> str:
    """Returns a hash of the weights `{path: array}`: twelve hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(arrays):
        value = np.ascontiguousarray(arrays[path])
        digest.update(f"{path} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()[:12]


def prepare_features(
    images: MappedRows,
    compute: Callable[[np.ndarray], jax.Array],
    *,
    backbone: str,
    settings: str,
    flip: str,
    dtype: str,
    batch_size: int,
) -> MappedRows:
    """Returns the feature maps of `images`, one row per image.

    The first call computes the maps of all rows of `images.path`, and caches them in a folder beside the folder of this
    file. The maps are computed again when the images change.

    Args:
        images: N rows of the file images.npy of a split, uint8 `[N, S, S, 3]`; see `annotation.image_cache`.
        compute: function from images, uint8 `[batch_size, S, S, 3]`, to maps of C channels, `[batch_size, h, w, C]`.
        settings: text with all other facts that determine the maps, such as a hash of the weights.
        flip: the flip of the images before `compute`: "" (none), "h" (left-right), "v" (up-down) or "hv" (both).
        dtype: dtype of the file: "float16" or "float32".

    Raises:
        InputError: the disk of the cache is full, a feature is too large for `dtype`, or the images have no file.
    """
    if not isinstance(images, MappedRows):
        problem = "config.data.placement='stream' has no prepared images, beside which feature maps are cached"
        raise InputError(f"{problem}; set config.data.placement='host'")
    copy = images.path.parent
    name = copy.name.rpartition("-")[0]
    kind = f"{name}-{backbone}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}{flip and '-'}{flip}-{dtype}"
    fingerprint = hashlib.sha256(f"{_VERSION} {copy.name} {settings}".encode()).hexdigest()[:12]
    whole = MappedRows(images.path)
    shape = jax.eval_shape(compute, jax.ShapeDtypeStruct((batch_size, *whole.shape[1:]), np.uint8)).shape[1:]
    num_bytes = len(whole) * int(np.prod(shape)) * np.dtype(dtype).itemsize

    def write(directory: Path) -> None:
        description = f"{copy.name.partition('-')[0]} features{flip and ', flipped '}{flip}"
        starts = range(0, len(whole), batch_size)
        rows, columns = (slice(None, None, -1 if side in flip else 1) for side in "vh")
        batches = (whole[start : start + batch_size][:, rows, columns] for start in starts)
        with tqdm(total=len(whole), desc=description, unit="img", mininterval=0.5, dynamic_ncols=True) as bar:
            _write_maps(directory / "features.npy", batches, compute, shape, dtype, batch_size, bar)

    return MappedRows(cached_directory(copy.parent, kind, fingerprint, num_bytes, write) / "features.npy", images.rows)


def prepare_pooled(maps: MappedRows) -> MappedRows:
    """Returns the means over the cells of the maps of `prepare_features`, float32 `[N, 1, 1, F]`.

    The first call computes the means of all rows of `maps.path`, and caches them in a folder beside that of this file.
    """
    folder, whole = maps.path.parent, MappedRows(maps.path)

    def write(directory: Path) -> None:
        with RowWriter(directory / "features.npy", (1, 1, whole.shape[-1]), np.float32) as rows:
            for start in range(0, len(whole), _POOLED_AT_ONCE):
                some = whole[start : start + _POOLED_AT_ONCE].mean(axis=(1, 2), keepdims=True, dtype=np.float32)
                rows.extend(some)

    kind, _, fingerprint = folder.name.rpartition("-")
    num_bytes = len(whole) * whole.shape[-1] * 4
    path = cached_directory(folder.parent, f"{kind}-pooled", fingerprint, num_bytes, write)
    return MappedRows(path / "features.npy", maps.rows)


def write_grid_features(
    path: Path, names: Sequence[str], rows: Iterable[list[PhotoRow]], shape: tuple[int, int], dtype: str
) -> None:
    """Writes the feature maps of N photos as an array `[N, h * w, F]`. This is the layout of SCAN's `{split}_ims.npy`.

    The cells of a map are in row-major order. The memory does not grow with N. After the first unusable photo, nothing
    more is written. The other photos are still read, so that the error lists all problems.

    Args:
        names: names of the photos, of which some may be the same.
        rows: rows of photos with `features`, `[h, w, F]`, in order.
        shape: number of cells h * w, and number of channels F.
        dtype: dtype of the file: "float16" or "float32".

    Raises:
        InputError: photos cannot be used, or a feature is too large for `dtype`.
    """
    problems: dict[str, str] = {}
    with (
        tqdm(total=len(names), desc="features", unit="img", mininterval=0.5, dynamic_ncols=True) as bar,
        RowWriter(path, shape, dtype) as file,
    ):
        for batch in rows:
            problems |= {row.name: row.problem for row in batch if row.problem}
            if not problems:
                features = np.stack([row.arrays["features"] for row in batch])
                file.extend(cast_features(features, dtype).reshape(len(batch), *shape))
            bar.update(len(batch))
    if problems:
        listed = "".join(f"\n  {name}: {problem}" for name, problem in problems.items())
        raise InputError(
            f"{len(problems):,} of {len(set(names)):,} photos cannot be used; nothing was written. Repair or remove "
            f"them together with their captions:{listed}"
        )


def pad_batch(images: np.ndarray, batch_size: int) -> np.ndarray:
    """Pads `[b, ...]` with zeros to `[batch_size, ...]`, so that a smaller last batch causes no second compilation."""
    return np.pad(images, [(0, batch_size - len(images))] + [(0, 0)] * (images.ndim - 1))


def cast_features(features: np.ndarray, dtype: str) -> np.ndarray:
    """Casts features to `dtype`. Raises InputError if a value is too large for `dtype` or not finite."""
    largest = np.abs(features).max(initial=0)
    if not largest <= np.finfo(dtype).max:
        raise InputError(f"features of up to {largest:g} do not fit into {dtype}; set the dtype of features to float32")
    return features.astype(dtype)


def _write_maps(
    path: Path,
    batches: Iterable[np.ndarray],
    compute: Callable[[np.ndarray], jax.Array],
    shape: tuple[int, ...],
    dtype: str,
    batch_size: int,
    bar: tqdm,
) -> None:
    """Computes feature maps and writes them as rows of `shape`, while the device computes the next maps."""
    in_flight: deque[tuple[jax.Array, int]] = deque()
    with RowWriter(path, shape, dtype) as rows:

        def write(maps: jax.Array, count: int) -> None:
            features = np.asarray(maps, np.float32)[:count]
            rows.extend(cast_features(features, dtype).reshape(count, *shape))
            bar.update(count)

        for images in batches:
            in_flight.append((compute(pad_batch(images, batch_size)), len(images)))
            if len(in_flight) > _IN_FLIGHT:
                write(*in_flight.popleft())
        for one in in_flight:
            write(*one)
