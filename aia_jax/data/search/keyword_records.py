"""Stores the keywords of images in two arrays, the record and the ranges; see `KeywordRecords`.

The documentation of AMC (Chen et al., CVPR 2017; github kanchen-usc/AMC_ATT) gives the record the name
img_keyword_ind_*.npy. But AMC's programs save the ranges under this name, and do not save the record.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from aia_jax.data.mapped_rows import MappedRows, RowWriter
from aia_jax.utils.errors import InputError

LARGEST_ID = 2**27 - 1  # The ranges have a row for each possible id. With this largest id, they have 2 GB.


@dataclasses.dataclass(frozen=True)
class KeywordRecords:
    """The keywords of images. All image ids are below I.

    Attributes:
        record: integers `[N, 2]`, memory-mapped. Each of the N rows has an image id and a word id. The rows of an image
            are consecutive. The images are in any order.
        ranges: int64 `[I, 2]`, the first and the last row of each image in `record`; -1 -1 without keywords.
    """

    record: MappedRows
    ranges: np.ndarray

    @classmethod
    def load(cls, path: Path, num_ids: int, num_words: int) -> "KeywordRecords":
        """Reads the record, and finds its ranges. AMC's files of ranges are not needed.

        Args:
            path: file `keyword_record_{split}.npy` of `aia keywords`.
            num_ids: the largest image id plus one.
            num_words: size of the vocabulary.

        Raises:
            InputError: the file is absent or truncated, does not hold integers, or has ids out of bounds; or the rows
                of an image are not consecutive.
        """
        if not path.exists():
            raise InputError(f"{path} does not exist; `aia keywords` writes it")
        record = MappedRows(path)
        if record.dtype.kind not in "iu" or len(record.shape) != 2 or record.shape[1] != 2:
            raise InputError(f"{path} must hold integers [rows, 2], found {record.dtype} {list(record.shape)}")
        return cls(record, _find_ranges(record, num_ids, num_words))

    def padded(self, indices: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the first `width` keywords of each image.

        Args:
            indices: ids of B images, integers `[B]`.

        Returns:
            ids: word ids, int32 `[B, width]`, padded with 0. Because 0 is also the id of a word, `counts` is needed.
            counts: int32 `[B]`, number of keywords in each row.
        """
        ranges = self.ranges[indices]
        counts = np.where(ranges[:, 0] < 0, 0, np.minimum(ranges[:, 1] - ranges[:, 0] + 1, width))
        valid = np.arange(width) < counts[:, None]
        ids = np.zeros(valid.shape, np.int32)
        ids[valid] = self.record[(ranges[:, :1] + np.arange(width))[valid]][:, 1]
        return ids, counts.astype(np.int32)


def write_keyword_records(
    record_path: Path, ranges_path: Path, images: Iterable[tuple[int, np.ndarray]], num_ids: int
) -> np.ndarray:
    """Writes the record and the ranges of `KeywordRecords`, and returns the ranges. Only the ranges are in memory.

    Args:
        images: pairs of an image id below `num_ids` and the word ids of the image. No image id may be repeated.
    """
    ranges = np.full((num_ids, 2), -1, np.int64)
    num_rows = 0
    with RowWriter(record_path, (2,), np.int32) as rows:
        for image, words in images:
            if len(words):
                rows.extend(np.column_stack((np.full_like(words, image), words)))
                ranges[image] = num_rows, num_rows + len(words) - 1
                num_rows += len(words)
    with RowWriter(ranges_path, (2,), ranges.dtype) as rows:
        rows.extend(ranges)
    return ranges


def _find_ranges(record: MappedRows, num_ids: int, num_words: int) -> np.ndarray:
    """Returns the first and the last row of each image, int64 `[I, 2]`."""
    pairs = record[:].astype(np.int64)
    wrong = np.flatnonzero((pairs < 0).any(axis=1) | (pairs >= (num_ids, num_words)).any(axis=1))
    if wrong.size:
        raise InputError(
            f"{record.path}: row {wrong[0]:,} is {pairs[wrong[0]].tolist()}; it must be [image, word], both ids from 0,"
            f" words to {num_words - 1}, images to {num_ids - 1}; `aia keywords` creates record and ranges"
        )
    firsts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
    ids = pairs[firsts, 0]
    order = np.argsort(ids, kind="stable")
    if (again := np.flatnonzero(np.diff(ids[order]) == 0)).size:
        one, other = firsts[order[again[0] : again[0] + 2]]
        raise InputError(
            f"{record.path}: the rows of image {ids[order[again[0]]]} start at {one:,} and again at {other:,}; the rows"
            " of an image must be in sequence"
        )
    ranges = np.full((num_ids, 2), -1, np.int64)
    ranges[ids] = np.column_stack((firsts, np.append(firsts[1:], len(record)) - 1 if len(ids) else firsts))
    return ranges
