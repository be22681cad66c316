"""Feature maps of photos as the rows of one `.npy` file, in the layout of SCAN's `{split}_ims.npy`."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from aia_jax.data.feature_cache import cast_features, pad_batch
from aia_jax.data.mapped_rows import RowWriter
from aia_jax.data.photo_folder import Photo
from aia_jax.utils.errors import InputError

_IN_FLIGHT = 2  # batches dispatched ahead of the one that is written


def write_grid_features(
    path: Path,
    names: Sequence[str],
    photos: Iterable[Photo],
    compute: Callable[[np.ndarray], jax.Array],
    *,
    grid: tuple[int, int, int],
    dtype: str,
    batch_size: int,
) -> None:
    """Writes `[N, h * w, F]`, the cells of a map row by row, as fast as the photos come; memory does not grow with N.

    A photo that cannot be used ends the computation, not the reading: the error names all such photos.

    Args:
        path: of the file.
        names: N names, for messages.
        photos: N photos in the same order.
        compute: uint8 `[batch_size, S, S, 3]` to maps `[batch_size, h, w, F]`.
        grid: h, w, F.
        dtype: of the file: "float16" or "float32".

    Raises:
        InputError: photos that cannot be used, or features that `dtype` cannot hold.
    """
    height, width, channels = grid
    problems: dict[str, str] = {}
    in_flight: deque[tuple[jax.Array, int]] = deque()
    pairs = zip(names, photos, strict=True)
    bar = tqdm(total=len(names), desc="features", unit="img", mininterval=0.5, dynamic_ncols=True)
    with bar, RowWriter(path, (height * width, channels), dtype) as rows:

        def retire() -> None:
            maps, count = in_flight.popleft()
            features = np.asarray(maps, np.float32)[:count]
            for row in cast_features(features, dtype, "--dtype float32"):
                rows.append(row.reshape(height * width, channels))
            bar.update(count)

        while batch := list(itertools.islice(pairs, batch_size)):
            problems |= {name: photo.problem for name, photo in batch if photo.problem}
            if problems:
                bar.set_description("looking for others that cannot be used")
                bar.update(len(batch))
                continue
            images = pad_batch(np.stack([photo.image for _, photo in batch]), batch_size)
            in_flight.append((compute(images), len(batch)))
            if len(in_flight) > _IN_FLIGHT:
                retire()
        while in_flight and not problems:
            retire()
    if problems:
        listed = "".join(f"\n  {name}: {problem}" for name, problem in problems.items())
        raise InputError(
            f"{len(problems):,} of {len(set(names)):,} photos cannot be used; nothing was written. Mend them, or take "
            f"them out together with their captions:{listed}"
        )
