"""Computes rows of arrays for photos: reads the photos of a folder, and runs a model on batches of them."""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from aia_jax.data.photo_folder import Photo, read_photos


class PhotoRow(NamedTuple):
    """What a model computed for a photo.

    Attributes:
        name: name of the photo.
        problem: reason why the photo cannot be used; "" if it can be used.
        arrays: `{name: array [...]}`, without an axis for the batch; None if the photo cannot be used.
    """

    name: str
    problem: str
    arrays: dict[str, np.ndarray] | None


class PhotoModel(Protocol):
    """A model that computes arrays of photos.

    Attributes:
        image_size: side S of the photos in pixels.
        batch_size: largest number of photos in a batch.
        digest: text that identifies the model.
    """

    image_size: int
    batch_size: int
    digest: str

    def compute(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Computes arrays `[b, ...]` of b photos, uint8 `[b, S, S, 3]`. b is at most `batch_size`."""


def local_rows(folder: Path, names: Sequence[str], model: PhotoModel, num_workers: int) -> Iterator[list[PhotoRow]]:
    """Yields the rows of the photos in a folder, in batches, in order. Threads decode the next photos in advance.

    Args:
        names: names of the photos, relative to `folder`.
        num_workers: number of threads that decode photos; 0: one for each core.
    """
    paths = [os.path.join(folder, name) for name in names]  # as text, which needs less memory than Path
    photos = read_photos(paths, model.image_size, num_workers=num_workers, upright=True, draft=True)
    return computed_rows(names, photos, model.compute, model.batch_size)


def computed_rows(
    names: Sequence[str],
    photos: Iterator[Photo],
    compute: Callable[[np.ndarray], dict[str, np.ndarray]],
    batch_size: int,
) -> Iterator[list[PhotoRow]]:
    """Yields the rows of decoded photos, in batches, in order. Closes `photos` at the end.

    Args:
        photos: the decoded photos with the names `names`.
        compute: see `PhotoModel.compute`.
    """
    with contextlib.closing(photos):
        named = zip(names, photos, strict=True)
        while batch := list(itertools.islice(named, batch_size)):
            images = [photo.image for _, photo in batch if not photo.problem]
            arrays = compute(np.stack(images)) if images else {}
            rows = itertools.count()
            yield [
                PhotoRow(name, photo.problem, None if photo.problem else _row(arrays, next(rows)))
                for name, photo in batch
            ]


def _row(arrays: dict[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
    return {name: values[row] for name, values in arrays.items()}
