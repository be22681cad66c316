"""Stores an index of a folder of photos: for each photo, arrays that a model computed. Updates it if photos change.

    <index>/index.json                     the format, and the model that computed the arrays
    <index>/rows-<id>/photos.json          for each row: [name, bytes, time of change], or null for an outdated row
    <index>/rows-<id>/<array>.npy          the arrays of a few hundred photos, with one row per photo

Each folder `rows-<id>` is called a part. A part is written atomically, so an interrupted update leaves complete parts.
"""

import contextlib
import dataclasses
import itertools
import json
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from aia_jax.data.mapped_rows import map_array
from aia_jax.data.photo_rows import PhotoRow
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import check_room, exclusive_lock, write_bytes

_FORMAT = "aia_jax photo index, version 1"
_PART = re.compile(r"\.?rows-[0-9a-f]{12}")
_PART_SIZE = 256  # largest number of photos whose rows are written to a part at once
_MAX_SMALL_PARTS = 8  # if there are more small parts, they are joined; a small part has at most `_PART_SIZE` / 2 photos

Rows = dict[str, np.ndarray]
ComputeRows = Callable[[Sequence[str]], Iterator[list[PhotoRow]]]
Entry = tuple[str, int, int]  # name of a photo, size in bytes, time of the last change in nanoseconds


class Update(NamedTuple):
    """The numbers of photos that changed, `{name: reason}` of unusable photos, and why an index was rebuilt, or ""."""

    new: int
    changed: int
    gone: int
    problems: dict[str, str]
    rebuilt: str


@dataclasses.dataclass
class _Part:
    """A folder `rows-<id>`. For each row, `photos` has the entry of the photo, or None if the row is outdated."""

    path: Path
    photos: list[Entry | None]
    arrays: Rows

    @property
    def live(self) -> list[int]:
        return [row for row, photo in enumerate(self.photos) if photo]


class PhotoIndex:
    """The index of the photos in `folder`: for each photo, a row of arrays that a model computed.

    Args:
        path: folder of the index. It must be absent or empty, or contain an index.
        folder: folder of the photos, searched recursively.
        model: text that identifies the model. An index of another model is rebuilt.
        arrays: names of the arrays that the model needs. An index that lacks one is rebuilt.
    """

    def __init__(self, path: Path, folder: Path, model: str, arrays: Collection[str] = ()):
        self._path, self._folder, self._model, self._arrays = path, folder, model, set(arrays)
        self._parts: list[_Part] = []

    def update(
        self,
        names: Sequence[str],
        rows: ComputeRows,
        progress: Callable[[int, int], None] | None = None,
    ) -> Update:
        """Adds the rows of new and changed photos, and removes the rows of photos that no longer exist.

        Each update tries unusable photos again. Other processes that update this index wait until the update ends.

        Args:
            names: all photos of the folder; see `photo_names`.
            rows: generator function from names of photos to batches of their rows, in any order; such as `local_rows`.
                Rows of other photos, and a second row of a photo, are ignored.
            progress: called with the numbers of photos that are done and in total, first and after each part; None: a
                bar. An error that it raises ends the update, and the next update continues.

        Raises:
            InputError: `path` contains other files than an index, which may be damaged.
        """
        present = {name: entry for name in names if (entry := _entry(self._folder, name))}
        missing = {name: "no such file" for name in names if name not in present}
        if self._path.is_dir() and not self._is_index():
            raise InputError(f"{self._path} holds other things than an index; --index names an empty or a new folder")
        self._path.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(self._path / "index.lock"):
            rebuilt = self._load()
            entries = [photo for part in self._parts for photo in part.photos if photo]
            known = {photo[0]: photo for photo in entries}
            counts = Counter(photo[0] for photo in entries)  # above 1 if an update was killed while it joined parts
            gone = known.keys() - present.keys()
            fresh = [name for name, entry in present.items() if known.get(name) != entry or counts[name] > 1]
            self._forget(gone.union(fresh))
            remaining = {name: present[name] for name in fresh}
            problems = self._add(remaining, rows, progress)
            self._join_small_parts()
            self._parts = [part for part in self._parts if part.live]
            self._remove_parts(keep={part.path for part in self._parts})
        added = [name for name in fresh if name not in problems and name not in remaining]
        changed = sum(name in known for name in added)
        return Update(len(added) - changed, changed, len(gone), problems | missing, rebuilt)

    @property
    def names(self) -> list[str]:
        """The names of the usable photos, in the order of the usable rows of `parts`."""
        return [part.photos[row][0] for part in self._parts for row in part.live]

    def parts(self) -> list[tuple[Rows, np.ndarray]]:
        """Returns, for each part, its memory-mapped arrays and the indices of its usable rows."""
        return [(part.arrays, np.array(part.live)) for part in self._parts]

    def _is_index(self) -> bool:
        """Returns whether the folder has an index, or only files of an index whose index.json is absent or no JSON."""
        about = self._about()
        if about is not None:
            return isinstance(about, dict) and about.get("format") == _FORMAT
        ours = ("index.lock", ".index.json.")  # temporary files .index.json.* exist while index.json is written
        paths = list(self._path.iterdir())
        others = [path.name for path in paths if not path.name.startswith(ours) and not _is_part(path)]
        return not others or (others == ["index.json"] and len(paths) > 1)  # alone, it may be another program's

    def _about(self) -> Any:
        """Returns the content of index.json; None if the file is absent or damaged."""
        try:
            return json.loads((self._path / "index.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            return None

    def _load(self) -> str:
        """Memory-maps all parts, or starts an empty index. Returns why an earlier index cannot be used, or ""."""
        about, reason = self._about(), ""
        if about is None:
            if (self._path / "index.json").exists() or any(map(_is_part, self._path.iterdir())):
                reason = "it is damaged (index.json is missing or cannot be read)"
        elif about.get("model") != self._model:
            reason = "it was made by another model"
        else:
            try:
                self._parts = [_read_part(path) for path in sorted(self._path.glob("rows-*")) if _is_part(path)]
                if lacking := [part.path.name for part in self._parts if not self._arrays <= part.arrays.keys()]:
                    raise InputError(f"{lacking[0]} is incomplete")
            except (OSError, ValueError, EOFError, TypeError, KeyError, IndexError) as error:
                self._parts, reason = [], f"it is damaged ({error})"
        if reason or not about:
            self._remove_parts()
            write_bytes(self._path / "index.json", json.dumps({"format": _FORMAT, "model": self._model}).encode())
        return reason

    def _forget(self, names: set[str]) -> None:
        for part in self._parts:
            kept = [photo if photo and photo[0] not in names else None for photo in part.photos]
            if kept != part.photos:
                part.photos = kept
                _write_photos(part.path, kept)

    def _add(
        self,
        photos: dict[str, Entry],
        rows: ComputeRows,
        progress: Callable[[int, int], None] | None,
    ) -> dict[str, str]:
        """Writes the rows of photos and removes these from `photos`. Returns `{name: reason}` for unusable photos."""
        problems: dict[str, str] = {}
        kept, total = sum(len(part.live) for part in self._parts), len(photos)
        bar = tqdm(
            total=total, desc="index", unit="img", dynamic_ncols=True, disable=bool(not total or progress) or None
        )
        if progress:
            progress(kept, kept + total)
        with bar, contextlib.closing(rows(list(photos))) as batches:
            for part in _batches(itertools.chain.from_iterable(batches), _PART_SIZE):
                usable: list[tuple[Entry, Rows]] = []
                for name, problem, arrays in part:
                    entry = photos.pop(name, None)
                    if entry and problem:
                        problems[name] = problem
                    elif entry:
                        usable.append((entry, arrays))
                if usable:
                    self._write(usable)
                bar.update(total - len(photos) - bar.n)
                if progress:
                    progress(kept + total - len(photos), kept + total)
        return problems

    def _join_small_parts(self) -> None:
        """Keeps the number of parts small, as each array of a part is an open file."""
        small = [part for part in self._parts if 0 < len(part.live) <= _PART_SIZE // 2]
        for group in _batches(small, _MAX_SMALL_PARTS) if len(small) > _MAX_SMALL_PARTS else ():
            rows = [
                (part.photos[row], {name: array[row] for name, array in part.arrays.items()})
                for part in group
                for row in part.live
            ]
            self._write(rows)
            joined = {part.path for part in group}
            self._parts = [part for part in self._parts if part.path not in joined]

    def _write(self, rows: Sequence[tuple[Entry, Rows]]) -> None:
        """Writes a part of the entries and the arrays of photos."""
        path = self._path / f"rows-{uuid.uuid4().hex[:12]}"
        temporary = path.with_name(f".{path.name}")
        temporary.mkdir()
        try:
            for name in rows[0][1]:
                array = np.stack([arrays[name] for _, arrays in rows])
                check_room(temporary, array.nbytes)  # the error of numpy does not say that the disk is full
                np.save(temporary / f"{name}.npy", array)
            _write_photos(temporary, [entry for entry, _ in rows])
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._parts.append(_read_part(path))

    def _remove_parts(self, keep: Collection[Path] = ()) -> None:
        """Removes all parts except `keep`, and the incomplete parts of interrupted updates."""
        for path in self._path.iterdir():
            if _is_part(path) and path not in keep:
                shutil.rmtree(path, ignore_errors=bool(keep))


def _read_part(path: Path) -> _Part:
    """Memory-maps a part. Raises InputError, or an error of the JSON reader, if the part is incomplete."""
    photos = [photo and (photo[0], photo[1], photo[2]) for photo in json.loads((path / "photos.json").read_bytes())]
    arrays = {file.stem: map_array(file) for file in sorted(path.glob("*.npy"))}
    if not arrays or any(len(array) != len(photos) for array in arrays.values()):
        raise InputError(f"{path.name} is incomplete")
    return _Part(path, photos, arrays)


def _write_photos(path: Path, photos: Sequence[Entry | None]) -> None:
    write_bytes(path / "photos.json", json.dumps(photos).encode())  # ASCII, as some names are not UTF-8


def _is_part(path: Path) -> bool:
    return _PART.fullmatch(path.name) is not None and path.is_dir()


def _entry(folder: Path, name: str) -> Entry | None:
    """Returns name, size and time of a photo; None if the photo has been removed or is a broken link."""
    try:
        status = (folder / name).stat()
    except OSError:
        return None
    return name, status.st_size, status.st_mtime_ns


def _batches(elements: Iterable[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(elements)
    while batch := list(itertools.islice(remaining, size)):
        yield batch
