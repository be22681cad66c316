"""Feature maps of photos as rows of one `.npy` file, in the layout of SCAN's `{split}_ims.npy`."""

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
    """Writes `[N, h * w, F]` to `path`, the cells of each map row by row. Memory does not grow with N.

    After a photo that cannot be used nothing is computed, but all photos are read: the error lists all problems.

    Args:
        names: N names, for messages.
        photos: N photos in the same order.
        compute: maps uint8 `[batch_size, S, S, 3]` to feature maps `[batch_size, h, w, F]`.
        grid: h, w, F.
        dtype: dtype of the file: "float16" or "float32".

    Raises:
        InputError: photos cannot be used, or `dtype` cannot represent the features.
    """
    shape = grid[0] * grid[1], grid[2]
    problems: dict[str, str] = {}
    in_flight: deque[tuple[jax.Array, int]] = deque()
    pairs = zip(names, photos, strict=True)
    bar = tqdm(total=len(names), desc="features", unit="img", mininterval=0.5, dynamic_ncols=True)
    with bar, RowWriter(path, shape, dtype) as rows:

        def write_oldest() -> None:
            maps, count = in_flight.popleft()
            features = np.asarray(maps, np.float32)[:count]
            rows.extend(cast_features(features, dtype, "--dtype float32").reshape(count, *shape))
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
                write_oldest()
        while in_flight and not problems:
            write_oldest()
    _check_problems(problems, len(set(names)))


def _check_problems(problems: dict[str, str], num_photos: int) -> None:
    if problems:
        listed = "".join(f"\n  {name}: {problem}" for name, problem in problems.items())
        raise InputError(
            f"{len(problems):,} of {num_photos:,} photos cannot be used; nothing was written. Repair or "
            f"remove them together with their captions:{listed}"
        )
