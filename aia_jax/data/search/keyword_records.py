"""Which image has which keywords: the record, rows of image and word, and the range of rows of each image.

AMC (Chen et al., CVPR 2017; github kanchen-usc/AMC_ATT) announces the record under the name img_keyword_ind_*.npy; its
programs save the ranges under that name, and the record not at all.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from aia_jax.data.mapped_rows import MappedRows, RowWriter
from aia_jax.utils.errors import InputError

LARGEST_ID = 2**27 - 1  # there is a range for every id up to the largest: 2 GB

_CHUNK = 1 << 20  # rows of a record that are looked at together
_RANGES = (
    "{path} holds ranges, the first and last row of each image, but the record is wanted, rows [image, word]. The"
    " published programs save ranges alone, as img_keyword_ind_*.npy, and no word can be had from them: `aia keywords`"
    " makes both of the tagging files"
)


@dataclasses.dataclass(frozen=True)
class KeywordRecords:
    """Which image has which keywords.

    Attributes:
        record: integers `[N, 2]`, rows of image id and word id, memory-mapped; the rows of an image one after the
            other, the images in any order.
        ranges: int64 `[I, 2]`, the first and last row of each image id, inclusive; -1 -1: it has no keywords.
    """

    record: MappedRows
    ranges: np.ndarray

    @classmethod
    def load(
        cls,
        record_path: str | Path,
        ranges_path: str | Path | None = None,
        *,
        num_ids: int | None = None,
        num_words: int | None = None,
    ) -> "KeywordRecords":
        """Reads the record, once through, and checks it.

        Args:
            record_path: `[N, 2]`, which `aia keywords` writes as `keyword_record_{split}.npy`.
            ranges_path: `[I, 2]`, its `keyword_ranges_{split}.npy` or what the published programs call
                `img_keyword_ind_*.npy`, the latter also where it ends before I; None: the record says all.
            num_ids: I; None: as many as there are ranges, or one more than the largest id of the record.
            num_words: size of the vocabulary; None: word ids have no bound.

        Raises:
            InputError: a file is absent, truncated or not of integers, holds the other's content, is out of bounds, or
                the two do not fit each other.
        """
        record = _map_pairs(record_path)
        if ranges_path is None:
            if _are_ranges(record[:]):
                raise InputError(f"{_RANGES.format(path=record_path)}. If it is the record, give its ranges too")
            return cls(record, _find_ranges(record, num_ids, num_words))
        given = _plain_ranges(_map_pairs(ranges_path)[:])
        num_ids = len(given) if num_ids is None else num_ids
        if len(given) > num_ids:
            raise InputError(f"{ranges_path} has ranges of {len(given):,} ids; there are {num_ids:,}")
        try:
            ranges = _find_ranges(record, num_ids, num_words)
            _check_equal(ranges, np.pad(given, [(0, num_ids - len(given)), (0, 0)], constant_values=-1), ranges_path)
        except InputError:
            if _are_ranges(record[:]):
                raise InputError(_RANGES.format(path=record_path)) from None
            if not _are_ranges(given):
                raise InputError(
                    f"{ranges_path} holds no ranges, or not all: they begin at row 0 and follow each other without a"
                    " gap; without this file they are found in the record"
                ) from None
            raise
        return cls(record, ranges)

    def padded(self, indices: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `width` keywords of each image.

        Args:
            indices: ids of images, integers `[B]`.

        Returns:
            ids: int32 `[B, width]`, padded with 0, which is a word too.
            counts: int32 `[B]`, how many of each row are keywords.

        Raises:
            InputError: there is no such id.
        """
        indices = np.asarray(indices)
        outside = indices[(indices < 0) | (indices >= len(self.ranges))]
        if outside.size:
            raise InputError(f"image {outside[0]} is not among the {len(self.ranges):,} ids of {self.record.path}")
        ranges = self.ranges[indices]
        counts = np.where(ranges[:, 0] < 0, 0, np.minimum(ranges[:, 1] - ranges[:, 0] + 1, width))
        held = np.arange(width) < counts[:, None]
        ids = np.zeros(held.shape, np.int32)
        ids[held] = self.record[(ranges[:, :1] + np.arange(width))[held]][:, 1]
        return ids, counts.astype(np.int32)


def write_keyword_records(
    record_path: Path, ranges_path: Path, images: Iterable[tuple[int, np.ndarray]], num_ids: int
) -> np.ndarray:
    """Writes the record and the ranges, see `KeywordRecords`; memory grows with `num_ids` alone.

    Args:
        images: id and word ids of each image, no id twice.

    Returns:
        The ranges, int64 `[num_ids, 2]`.
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


def _map_pairs(path: str | Path) -> MappedRows:
    try:
        pairs = MappedRows(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; `aia keywords` writes record and ranges") from None
    if pairs.dtype.kind not in "iu" or len(pairs.shape) != 2 or pairs.shape[1] != 2:
        raise InputError(f"{path} must hold integers [rows, 2], found {pairs.dtype} {list(pairs.shape)}")
    return pairs


def _find_ranges(record: MappedRows, num_ids: int | None, num_words: int | None) -> np.ndarray:
    """Where each image's rows are, int64 `[I, 2]`, on one way through the record."""
    runs = list(_runs(record, num_words))
    ids, firsts = (np.concatenate(parts) for parts in zip(*runs, strict=True)) if runs else np.zeros((2, 0), np.int64)
    largest = int(ids.max(initial=-1))
    limit = LARGEST_ID + 1 if num_ids is None else num_ids
    if largest >= limit:
        row = firsts[np.argmax(ids)]
        raise InputError(f"{record.path}: row {row:,} is of image {largest}; ids are 0 to {limit - 1}")
    order = np.argsort(ids, kind="stable")
    if (again := np.flatnonzero(np.diff(ids[order]) == 0)).size:
        one, other = firsts[order[again[0] : again[0] + 2]]
        raise InputError(
            f"{record.path}: rows of image {ids[order[again[0]]]} begin at {one:,} and again at {other:,}; an image's"
            " rows must follow each other"
        )
    ranges = np.full((largest + 1 if num_ids is None else num_ids, 2), -1, np.int64)
    ranges[ids] = np.column_stack((firsts, np.append(firsts[1:], len(record)) - 1 if len(ids) else firsts))
    return ranges


def _runs(record: MappedRows, num_words: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Image ids and first rows of the runs of equal ids, chunk by chunk."""
    previous = -1
    for start in range(0, len(record), _CHUNK):
        chunk = record[start : start + _CHUNK].astype(np.int64)
        wrong = (chunk < 0).any(axis=1)
        if num_words is not None:
            wrong |= chunk[:, 1] >= num_words
        if wrong.any():
            row = int(np.argmax(wrong))
            words = "upwards" if num_words is None else f"to {num_words - 1}"
            raise InputError(
                f"{record.path}: row {start + row:,} is {chunk[row].tolist()}; it must be [image, word], both ids from"
                f" 0, words {words}"
            )
        new = np.diff(chunk[:, 0], prepend=previous) != 0
        yield chunk[new, 0], start + np.flatnonzero(new)
        previous = chunk[-1, 0]


def _plain_ranges(ranges: np.ndarray) -> np.ndarray:
    """int64; the published programs write 0 -1 for an id 0 without keywords."""
    ranges = ranges.astype(np.int64)
    ranges[:1][(ranges[:1] == (0, -1)).all(axis=1)] = -1
    return ranges


def _are_ranges(pairs: np.ndarray) -> bool:
    """Whether they cover rows 0 to n, each once; by chance a record's do where no image has two keywords."""
    firsts = _plain_ranges(pairs[:1000])[:, 0]
    if np.any((firsts[1:] == firsts[:-1]) & (firsts[1:] >= 0)):
        return False
    pairs = _plain_ranges(pairs)
    held = pairs[(pairs != -1).any(axis=1)]
    held = held[np.argsort(held[:, 0])]
    follow = np.array_equal(held[:, 0], np.append(0, held[:-1, 1] + 1)[: len(held)])
    return len(pairs) > 0 and follow and bool((held[:, 1] >= held[:, 0]).all())


def _check_equal(ranges: np.ndarray, given: np.ndarray, path: str | Path) -> None:
    if (differ := np.flatnonzero((ranges != given).any(axis=1))).size:
        image = differ[0]
        raise InputError(
            f"{path} does not fit the record: image {image} has rows {given[image].tolist()} in it, first and last, but"
            f" {ranges[image].tolist()} in the record; `aia keywords` makes both anew"
        )
