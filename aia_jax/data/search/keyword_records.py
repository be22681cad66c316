"""Stores the keywords of images in two arrays. Word ids are those of a vocabulary.

The record, integers `[N, 2]`, has an image id and a word id in each row. The ranges, integers `[I, 2]`, have the first
and the last row of each image id below I in the record; -1 -1 without keywords. The documentation of AMC (Chen et al.,
CVPR 2017; github kanchen-usc/AMC_ATT) gives the record the name img_keyword_ind_*.npy. But AMC's programs save the
ranges under this name, and do not save the record.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from aia_jax.data.mapped_rows import MappedRows, RowWriter
from aia_jax.utils.errors import InputError

LARGEST_ID = 2**27 - 1  # The ranges have a row for each possible id. With this largest id, they have 2 GB.


def read_keyword_record(path: Path, images: np.ndarray, width: int, num_words: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads the first `width` keywords of each image from a record. The ranges are not needed.

    Args:
        path: file `keyword_record_{split}.npy` of `aia keywords`.
        images: ids of B images, integers `[B]`. They include all images of the record.
        num_words: size of the vocabulary.

    Returns:
        ids: word ids, int32 `[B, width]`, padded with 0. Because 0 is also the id of a word, `counts` is needed.
        counts: int32 `[B]`, number of keywords in each row.

    Raises:
        InputError: the file is absent or truncated, does not hold integers, or has ids of other images or words.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; `aia keywords` writes it")
    record = MappedRows(path)
    if record.dtype.kind not in "iu" or len(record.shape) != 2 or record.shape[1] != 2:
        raise InputError(f"{path} must hold integers [rows, 2], found {record.dtype} {list(record.shape)}")
    pairs = record[:].astype(np.int64)
    known = np.isin(pairs[:, 0], images) & (pairs[:, 1] >= 0) & (pairs[:, 1] < num_words)
    if not known.all():
        row = int(np.argmin(known))
        raise InputError(
            f"{path}: row {row:,} is {pairs[row].tolist()}; it must be [image, word], with an image of the split and a"
            f" word from 0 to {num_words - 1}. `aia keywords` creates the record again"
        )
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    first, end = (np.searchsorted(pairs[:, 0], images, side) for side in ("left", "right"))
    counts = np.minimum(end - first, width)
    valid = np.arange(width) < counts[:, None]
    ids = np.zeros(valid.shape, np.int32)
    ids[valid] = pairs[(first[:, None] + np.arange(width))[valid], 1]
    return ids, counts.astype(np.int32)


def write_keyword_records(
    record_path: Path, ranges_path: Path, images: Iterable[tuple[int, np.ndarray]], num_ids: int
) -> np.ndarray:
    """Writes the record and the ranges, and returns the ranges. Only the ranges are in memory.

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
