"""Stores an index of a folder of photos: for each photo, arrays that a model computed. Updates it if photos change.

    <index>/index.json        the format, and the model that computed the arrays
    <index>/rows-<id>/        the names and arrays of some photos; see `index_parts`

An update writes parts of a few hundred photos, so an interrupted update leaves complete parts. It joins small parts to
larger ones, as a log-structured merge tree does: an index of 10 million photos has about 50 parts.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from aia_jax.data.photo_rows import PhotoRow
from aia_jax.data.photo_states import PhotoStates
from aia_jax.inference.index_parts import (
    Part,
    PhotoNames,
    Rows,
    add_array,
    find_parts,
    is_part,
    join_small_parts,
    remove_parts,
    slices,
    write_part,
)
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import exclusive_lock, remove_temporary_files, write_bytes

_FORMATS = ("aia_jax photo index, version 1", "aia_jax photo index, version 2")  # the last one is written
_PART_SIZE = 256  # largest number of photos whose rows are written to a part at once
_SLICE = 4096  # rows that a search reads at once, so that the result of each step fits in the cache of a core
_DERIVED_FROM = 4096  # smallest number of rows of a part with derived arrays

ComputeRows = Callable[[Sequence[str]], Iterator[list[PhotoRow]]]


class Update(NamedTuple):
    """The numbers of photos that changed, `{name: reason}` of unusable photos, and why an index was rebuilt, or ""."""

    new: int
    changed: int
    gone: int
    problems: dict[str, str]
    rebuilt: str


class PhotoIndex:
    """The index of the photos in `folder`: for each photo, a row of arrays that a model computed.

    Args:
        path: folder of the index. It must be absent or empty, or contain an index.
        folder: folder of the photos, searched recursively.
        model: text that identifies the model. An index of another model is rebuilt.
        arrays: names of the arrays that the model needs. An index that lacks one is rebuilt.
        derived: for names of more arrays, functions from rows of the others to their rows. Each update adds them to
            the parts of at least 4096 photos that lack them.
    """

    def __init__(
        self,
        path: Path,
        folder: Path,
        model: str,
        arrays: Collection[str] = (),
        derived: Mapping[str, Callable[[Rows], np.ndarray]] | None = None,
    ):
        self._path, self._folder, self._model = path, folder, model
        self._arrays, self._derived = set(arrays), derived or {}
        self._parts: list[Part] = []
        self._mapped: list[tuple[Rows, np.ndarray]] = []  # arrays and `Part.live` of each part
        self.names = PhotoNames()
        """The names of the usable photos, in the order of the usable rows of `parts`."""

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
                Not called if all rows are current. Rows of other photos, and a second row of a photo, are ignored.
            progress: called with the numbers of photos that are done and in total, first and after each part; None: a
                bar. An error that it raises ends the update, and the next update continues.

        Raises:
            InputError: `path` contains other files than an index, which may be damaged.
        """
        if self._path.is_dir() and not self._is_index():
            raise InputError(f"{self._path} holds other things than an index; --index names an empty or a new folder")
        self._path.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(self._path / "index.lock"):
            rebuilt = self._load()
            photos = PhotoStates(self._folder, names)
            dropped = {name for part in self._parts for name in part.keep_current(photos)}
            gone = sum(bool(photos.is_missing[photos.places.get(name, -1)]) for name in dropped)
            missing = {photos.names[place]: "no such file" for place in np.flatnonzero(photos.is_missing[:-1])}
            new, changed, problems = self._add(photos, dropped, rows, progress)
            self._finish()
        return Update(new, changed, gone, problems | missing, rebuilt)

    def parts(self, size: int = _SLICE) -> list[tuple[Rows, np.ndarray]]:
        """Returns slices of the memory-mapped arrays, of at most `size` rows, and the indices of their usable rows."""
        return slices(self._mapped, size)

    def _is_index(self) -> bool:
        """Returns whether the folder has an index, or only files of an index whose index.json is absent or no JSON."""
        about = self._about()
        if about is not None:
            return isinstance(about, dict) and about.get("format") in _FORMATS
        ours = ("index.lock", ".index.json.")  # temporary files .index.json.* exist while index.json is written
        paths = list(self._path.iterdir())
        others = [path.name for path in paths if not path.name.startswith(ours) and not is_part(path)]
        return not others or (others == ["index.json"] and len(paths) > 1)  # alone, it may be another program's

    def _about(self) -> Any:
        """Returns the content of index.json; None if the file is absent or damaged."""
        try:
            return json.loads((self._path / "index.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            return None

    def _load(self) -> str:
        """Opens all parts, or starts an empty index. Returns why an earlier index cannot be used, or ""."""
        about, reason, current = self._about(), "", {"format": _FORMATS[-1], "model": self._model}
        if about is None:
            if (self._path / "index.json").exists() or any(map(is_part, self._path.iterdir())):
                reason = "it is damaged (index.json is missing or cannot be read)"
        elif about.get("model") != self._model:
            reason = "it was made by another model"
        else:
            try:
                self._parts = find_parts(self._path)
                if lacking := [part.path.name for part in self._parts if not self._arrays <= part.arrays]:
                    raise InputError(f"{lacking[0]} is incomplete")
            except (OSError, ValueError, EOFError, TypeError, KeyError, IndexError) as error:
                self._parts, reason = [], f"it is damaged ({error})"
        if reason or not about:
            remove_parts(self._path)
        if reason or about != current:
            write_bytes(self._path / "index.json", json.dumps(current).encode())
        return reason

    def _add(
        self,
        photos: PhotoStates,
        dropped: Collection[str],
        rows: ComputeRows,
        progress: Callable[[int, int], None] | None,
    ) -> tuple[int, int, dict[str, str]]:
        """Writes the missing rows. Returns the numbers of new and of changed photos, and `{name: problem}`."""
        new, changed, problems = 0, 0, {}
        kept, fresh = sum(map(len, self._parts)), [photos.names[place] for place in np.flatnonzero(~photos.done)]
        total = len(fresh)
        if progress:
            progress(kept, kept + total)
        if not fresh:
            return new, changed, problems
        bar = tqdm(total=total, desc="index", unit="img", dynamic_ncols=True, disable=bool(progress) or None)
        with bar, contextlib.closing(rows(fresh)) as batches:
            for batch in _batches(itertools.chain.from_iterable(batches), _PART_SIZE):
                asked: dict[str, PhotoRow] = {}
                for row in batch:
                    if not photos.done[photos.places.get(row.name, -1)]:
                        asked.setdefault(row.name, row)
                photos.done[[photos.places[name] for name in asked]] = True
                problems |= {name: row.problem for name, row in asked.items() if row.problem}
                usable = [row for row in asked.values() if not row.problem]
                if usable:
                    self._write(usable, photos)
                changed += sum(row.name in dropped for row in usable)
                new += sum(row.name not in dropped for row in usable)
                bar.update(len(asked))
                if progress:
                    progress(kept + new + changed + len(problems), kept + total)
        return new, changed, problems

    def _write(self, rows: Sequence[PhotoRow], photos: PhotoStates) -> None:
        arrays = {name: [np.stack([row.arrays[name] for row in rows])] for name in rows[0].arrays}
        self._parts.append(write_part(self._path, (photos.entry(row.name) for row in rows), arrays))
        self._parts = join_small_parts(self._path, self._parts, _PART_SIZE)

    def _finish(self) -> None:
        """Joins and removes parts, adds derived arrays, and memory-maps the result."""
        self._parts = [part for part in join_small_parts(self._path, self._parts, _PART_SIZE) if len(part)]
        remove_parts(self._path, keep={part.path for part in self._parts})
        for part in self._parts:
            remove_temporary_files(part.path)  # of an update that was killed
            for name in self._derived.keys() - part.arrays if len(part.live) >= _DERIVED_FROM else ():
                add_array(part, name, self._derived[name])
        # Mapped while the index is locked, because another process may join the parts later.
        self.names, self._mapped = PhotoNames(self._parts), [(part.map()[0], part.live) for part in self._parts]


def _batches(elements: Iterable[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(elements)
    while batch := list(itertools.islice(remaining, size)):
        yield batch
