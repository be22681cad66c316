"""Decodes the images of a split when a batch needs them. The photos come from records; see `photo_records`."""

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from aia_jax.data.annotation.annotations import CUSTOM, Annotations
from aia_jax.data.annotation.photo_records import PhotoRecords, open_records
from aia_jax.data.image_decoding import decode_image
from aia_jax.utils.errors import InputError


class StreamedImages:
    """N images of S x S pixels, uint8 `[N, S, S, 3]`. Indexing the first axis reads and decodes the indexed images.

    Has the interface of `MappedRows`. The pixels equal those of the prepared copy; see `image_cache`.

    Args:
        records: the records of all images of the split.
        size: side S in pixels.
        upright: see `decode_image`.
        pool: threads that read and decode.
        rows: indices of the N records, in order; None: all records.

    Raises:
        InputError: (when indexing) a record cannot be read, or is no image.
    """

    def __init__(
        self,
        records: PhotoRecords,
        size: int,
        upright: bool,
        pool: ThreadPoolExecutor,
        rows: np.ndarray | None = None,
    ):
        self._records, self._size, self._upright, self._pool = records, size, upright, pool
        self._rows = np.arange(len(records)) if rows is None else rows
        self.shape = (len(self._rows), size, size, 3)
        self.dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        rows = self._rows[index]
        images = np.empty((rows.size, *self.shape[1:]), self.dtype)
        for place, image in enumerate(self._pool.map(self._decode, rows.ravel().tolist())):
            images[place] = image
        return images.reshape(*rows.shape, *self.shape[1:])

    def __array__(self, dtype: np.typing.DTypeLike = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:], dtype, copy=copy)

    def take(self, rows: np.ndarray) -> "StreamedImages":
        """Selects rows without reading them."""
        return StreamedImages(self._records, self._size, self._upright, self._pool, self._rows[rows])

    def _decode(self, row: int) -> np.ndarray:
        name, photo = self._records[row]
        try:
            return decode_image(photo, self._size, upright=self._upright)
        except InputError as error:
            raise InputError(f"record {row} in {self._records.folder}, {name}: {error}") from None


def stream_images(
    root: str | Path, dataset: str, split: str, annotations: Annotations, size: int, num_workers: int
) -> StreamedImages:
    """Returns the images of a split, which `num_workers` threads decode. 0: one for each core.

    Raises InputError if the records cannot be used; see `open_records`.
    """
    records = open_records(root, dataset, split, annotations)
    # A user's photos need the rotation in their EXIF data; see `image_cache.photo_source`.
    return StreamedImages(records, size, dataset == CUSTOM, _threads(num_workers or os.cpu_count() or 1))


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "decode")
