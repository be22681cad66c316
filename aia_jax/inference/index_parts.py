"""The parts of an index of photos. A part is a folder with the rows of up to a million photos.

    rows-<id>/photos.npy     int64 `[rows, 3]`: end of the photo's name in names.npy, size of its file in bytes, and
                             time of its last change in nanoseconds. The size is -1 if the row is outdated
    rows-<id>/names.npy      uint8: the bytes of all names
    rows-<id>/<array>.npy    an array `[rows, ...]` that a model computed

A part is written atomically. Its arrays stay on disk: functions memory-map them, and copy them in blocks.
"""

import bisect
import itertools
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from aia_jax.data.mapped_rows import RowWriter, map_array
from aia_jax.data.photo_states import Entry, PhotoStates
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import atomic_path, check_room

_PART = re.compile(r"\.?rows-[0-9a-f]{12}")
_BLOCK = 2**24  # bytes that are copied at once
_JOINED = 16  # so many parts of one size class are joined. Each class has parts that are up to 16 times as large
_CLASSES = 3  # parts of the last class are not joined: with 256 photos in the first class, they have up to a million
_OWN = ("photos", "names")  # the files of a part that are not arrays of the model

Rows = dict[str, np.ndarray]


class Part:
    """A complete part.

    Attributes:
        path: the folder.
        live: bool `[rows]`, False for outdated rows.
        arrays: names of the arrays of the model.

    Raises:
        InputError, ValueError, TypeError, IndexError: the part is incomplete or damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        if (path / "photos.json").exists():
            _upgrade(path)
        arrays, photos, names = self.map()
        is_complete = arrays and all(len(array) == len(photos) for array in arrays.values())
        if not is_complete or photos.shape[1:] != (3,) or photos[-1, 0] != len(names):
            raise InputError(f"{path.name} is incomplete")
        self.live = photos[:, 1] >= 0
        self.arrays = frozenset(arrays)

    def __len__(self) -> int:
        """Returns the number of rows that are not outdated."""
        return int(np.count_nonzero(self.live))

    def map(self) -> tuple[Rows, np.ndarray, np.ndarray]:
        """Memory-maps the arrays of the model, and the arrays photos and names."""
        arrays = {file.stem: map_array(file) for file in sorted(self.path.glob("*.npy"))}
        photos, names = (arrays.pop(name) if name in arrays else map_array(self.path / f"{name}.npy") for name in _OWN)
        return arrays, photos, names

    def names(self) -> Iterator[str]:
        """Yields the names of all rows, also of outdated ones."""
        _, photos, names = self.map()
        ends = photos[:, 0].tolist()
        content = names.tobytes()
        return (os.fsdecode(content[start:end]) for start, end in itertools.pairwise([0, *ends]))

    def keep_current(self, photos: PhotoStates) -> list[str]:
        """Marks the rows of photos that have changed or no longer exist as outdated, and the second rows of photos.

        Sets `photos.done` for the other photos of this part. Returns the names of the rows that this call marked.
        """
        found = np.fromiter((photos.places.get(name, -1) for name in self.names()), np.int64, len(self.live))
        entries = self.map()[1]
        current = self.live & ~photos.done[found] & (photos.states[found] == entries[:, 1:]).all(axis=1)
        photos.done[found[current]] = True
        dropped = self.live & ~current
        if dropped.any():
            changed = entries.copy()
            changed[dropped, 1] = -1
            with atomic_path(self.path / "photos.npy") as temporary:
                _write_array(temporary, [changed])
            self.live = current
        return list(itertools.compress(self.names(), dropped)) if dropped.any() else []


def write_part(index: Path, photos: Iterable[Entry], arrays: Mapping[str, Iterable[np.ndarray]]) -> Part:
    """Writes a part in the folder `index`.

    Args:
        photos: the photos of the rows.
        arrays: for each array of the model, its rows in blocks `[m, ...]`.

    Raises OSError if the disk is full.
    """
    names, *states = zip(*((os.fsencode(name), size, time) for name, size, time in photos), strict=True)
    ends = np.cumsum([len(name) for name in names])
    entries = np.stack([ends, *(np.array(column, np.int64) for column in states)], axis=1)
    return _write(index, entries, np.frombuffer(b"".join(names), np.uint8), arrays)


def join_parts(index: Path, parts: Sequence[Part]) -> Part:
    """Writes a part with the rows of `parts` that are not outdated, and then removes `parts`.

    If this function is killed, some photos can have a row in two complete parts; `keep_current` drops one of them. An
    array that a part lacks is not kept.
    """
    mapped = [part.map() for part in parts]
    photos = np.concatenate([entries[part.live] for part, (_, entries, _) in zip(parts, mapped, strict=True)])
    lengths, blobs = [], []
    for part, (_, entries, names) in zip(parts, mapped, strict=True):
        every = np.diff(entries[:, 0], prepend=0)
        lengths.append(every[part.live])
        blobs.append(names[np.repeat(part.live, every)])
    photos[:, 0] = np.cumsum(np.concatenate(lengths))

    def blocks(name: str) -> Iterator[np.ndarray]:
        for part, (arrays, _, _) in zip(parts, mapped, strict=True):
            for rows in _blocks(arrays[name]):
                yield arrays[name][rows][part.live[rows]]

    kept = frozenset.intersection(*(part.arrays for part in parts))
    joined = _write(index, photos, np.concatenate(blobs), {name: blocks(name) for name in sorted(kept)})
    for part in parts:
        shutil.rmtree(part.path)
    return joined


def join_small_parts(index: Path, parts: Sequence[Part], part_size: int) -> list[Part]:
    """Joins parts until there are few: each array of a part is an open file, and each part needs one call in a search.

    As in a log-structured merge tree, each row is copied once for each size class. Also copies the usable rows of a
    part with more outdated rows than others.

    Args:
        part_size: largest number of photos of the parts in the first size class.

    Returns:
        All parts: new ones, and those that are not joined.
    """
    while group := _joinable(parts, part_size):
        joined = join_parts(index, group)
        parts = [*(part for part in parts if part not in group), joined]
    return list(parts)


def add_array(part: Part, name: str, compute: Callable[[Rows], np.ndarray]) -> None:
    """Adds the array `compute(rows)` to a part, where `rows` are slices of the arrays that the part has."""
    arrays = part.map()[0]
    largest = max(arrays.values(), key=lambda array: array[0].nbytes)
    blocks = (compute({key: array[rows] for key, array in arrays.items()}) for rows in _blocks(largest))
    with atomic_path(part.path / f"{name}.npy") as temporary:
        _write_array(temporary, blocks, len(part.live))
    part.arrays |= {name}


def slices(mapped: Iterable[tuple[Rows, np.ndarray]], size: int) -> list[tuple[Rows, np.ndarray]]:
    """Slices memory-mapped parts. A search that reads one slice after the other needs memory for its results alone.

    Args:
        mapped: for each part, the arrays `[rows, ...]`, and whether a row can be used, bool `[rows]`.
        size: largest number of rows of a slice.

    Returns:
        For each slice with usable rows, its arrays `[m, ...]` and the indices of the usable rows.
    """
    found = []
    for arrays, live in mapped:
        for start in range(0, len(live), size):
            rows = slice(start, start + size)
            usable = np.flatnonzero(live[rows]).astype(np.int32)
            if len(usable):
                found.append(({name: array[rows] for name, array in arrays.items()}, usable))
    return found


class PhotoNames(Sequence[str]):
    """The names of the usable photos of memory-mapped parts. Indexing reads only the indexed names."""

    def __init__(self, parts: Iterable[Part] = ()):
        self._parts = []
        for part in parts:
            _, photos, names = part.map()
            rows = range(len(photos)) if part.live.all() else np.flatnonzero(part.live)
            self._parts.append((photos[:, 0], names, rows))
        self._ends = list(itertools.accumulate(len(rows) for *_, rows in self._parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int | slice) -> str | list[str]:
        places = range(len(self))[index]  # raises the IndexError
        if isinstance(places, range):
            return [self[place] for place in places]
        number = bisect.bisect_right(self._ends, places)
        ends, names, rows = self._parts[number]
        row = rows[places - self._ends[number]]  # counts from the end of the part
        return os.fsdecode(names[ends[row - 1] if row else 0 : ends[row]].tobytes())


def find_parts(index: Path) -> list[Part]:
    """Opens all parts in a folder, the largest first."""
    return sorted((Part(path) for path in index.glob("rows-*") if is_part(path)), key=lambda part: -len(part.live))


def is_part(path: Path) -> bool:
    """Returns whether a path is the folder of a part, or of an incomplete part of an interrupted update."""
    return _PART.fullmatch(path.name) is not None and path.is_dir()


def remove_parts(index: Path, keep: Collection[Path] = ()) -> None:
    """Removes all parts except `keep`, and the incomplete parts of interrupted updates."""
    for path in index.iterdir():
        if is_part(path) and path not in keep:
            shutil.rmtree(path, ignore_errors=bool(keep))


def _joinable(parts: Iterable[Part], part_size: int) -> list[Part]:
    classes: dict[int, list[Part]] = {}
    for part in filter(len, parts):
        if 2 * len(part) < len(part.live):
            return [part]
        size = next(size for size in itertools.count() if len(part) <= part_size * _JOINED**size)
        classes.setdefault(size, []).append(part)
    found = (parts for size, parts in classes.items() if size < _CLASSES and len(parts) >= _JOINED)
    return next(found, [])[:_JOINED]


def _write(index: Path, photos: np.ndarray, names: np.ndarray, arrays: Mapping[str, Iterable[np.ndarray]]) -> Part:
    path = index / f"rows-{uuid.uuid4().hex[:12]}"
    temporary = path.with_name(f".{path.name}")
    temporary.mkdir()
    try:
        for name, blocks in {"photos": [photos], "names": [names], **arrays}.items():
            _write_array(temporary / f"{name}.npy", blocks, 0 if name in _OWN else len(photos))
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Part(path)


def _write_array(path: Path, blocks: Iterable[np.ndarray], num_rows: int = 0) -> None:
    """Writes blocks `[m, ...]` one after another. Raises OSError before it starts if `num_rows` rows have no room."""
    remaining = iter(blocks)
    first = next(remaining)
    check_room(path.parent, first.dtype.itemsize * num_rows * int(np.prod(first.shape[1:])))
    with RowWriter(path, first.shape[1:], first.dtype) as writer:
        for block in itertools.chain([first], remaining):
            writer.extend(block)


def _blocks(array: np.ndarray) -> Iterator[slice]:
    step = max(1, _BLOCK // max(1, array[0].nbytes))
    return (slice(start, start + step) for start in range(0, len(array), step))


def _upgrade(path: Path) -> None:
    """Replaces photos.json, which version 1 of the format had: for each row [name, size, time], or null if outdated."""
    photos = [photo or ("", -1, 0) for photo in json.loads((path / "photos.json").read_bytes())]
    names = [os.fsencode(name) for name, _, _ in photos]
    entries = np.array([[size, time] for _, size, time in photos], np.int64)
    entries = np.column_stack([np.cumsum([len(name) for name in names]), entries])
    _write_array(path / "names.npy", [np.frombuffer(b"".join(names), np.uint8)])
    _write_array(path / "photos.npy", [entries])
    (path / "photos.json").unlink()
