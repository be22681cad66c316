"""An index of a folder's photos on disk: what a model computed of each, brought up to date where files have changed.

    <index>/index.json                     what this folder is, and which model made it
    <index>/rows-<number>/photos.json      which photo each row is of: [name, bytes, time of change], or null
    <index>/rows-<number>/<array>.npy      some hundred photos' arrays, row by row

Rows are written whole or not at all: an update that is interrupted keeps those it has written.
"""

import contextlib
import dataclasses
import itertools
import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from aia_jax.data.mapped_rows import map_array
from aia_jax.data.photo_folder import Photo, photo_names
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import exclusive_lock, write_bytes

_FORMAT = "aia_jax photo index, version 1"
_PART = re.compile(r"\.?rows-[0-9a-f]{12}")
_PHOTOS = 256  # whose rows are written together
_MOST_SMALL = 8  # parts of which less than half is left, or ever was

Rows = dict[str, np.ndarray]
State = tuple[int, int]  # bytes, and nanoseconds of the last change


@dataclasses.dataclass(frozen=True)
class Update:
    """What an update found.

    Attributes:
        new, changed, gone: numbers of photos.
        problems: photo to why it cannot be used, of all that cannot.
        rebuilt: why nothing of an earlier index was kept; "": it was, or there was none.
    """

    new: int
    changed: int
    gone: int
    problems: dict[str, str]
    rebuilt: str


@dataclasses.dataclass
class _Part:
    """Rows of some photos: `photos` has a name and state for each of them, or None where it is out of date."""

    path: Path
    photos: list[tuple[str, State] | None]
    arrays: Rows

    @property
    def live(self) -> list[int]:
        return [row for row, photo in enumerate(self.photos) if photo]


class PhotoIndex:
    """The index of the photos in `folder`.

    Args:
        path: where it lies, or is to be: an index, or a place where nothing is.
        folder: of the photos, searched recursively.
        model: tells what computes the rows from other models; an index made by another is made anew.
    """

    def __init__(self, path: Path, folder: Path, model: str):
        self._path, self._folder, self._model = path, folder, model
        self._parts: list[_Part] = []

    def update(
        self, read: Callable[[Sequence[Path]], Iterator[Photo]], compute: Callable[[np.ndarray], Rows], batch_size: int
    ) -> Update:
        """Computes the rows of photos that are new or have changed, and forgets those that are gone.

        Photos that cannot be used are tried again each time. Other processes wait meanwhile.

        Args:
            read: paths to decoded photos, in order.
            compute: uint8 `[b, S, S, 3]`, b at most `batch_size`, to named arrays `[b, ...]`.

        Raises:
            InputError: no such folder, no photos in it, or something else lies where the index is to be.
        """
        names = photo_names(self._folder)
        states = {name: state for name in names if (state := _state(self._folder / name))}
        unread = {name: "no such file" for name in names if name not in states}
        self._claim()
        with exclusive_lock(self._path / "index.lock"):
            rebuilt = self._load()
            known = dict(photo for part in self._parts for photo in part.photos if photo)
            gone = known.keys() - states.keys()
            fresh = [name for name, state in states.items() if known.get(name) != state]
            self._forget(gone.union(fresh))
            problems = self._compute(fresh, states, read, compute, batch_size)
            self._join_small()
            self._sweep()
        changed = sum(name in known for name in fresh if name not in problems)
        return Update(len(fresh) - len(problems) - changed, changed, len(gone), problems | unread, rebuilt)

    @property
    def names(self) -> list[str]:
        """The usable photos, in the order of the rows that `parts` give."""
        return [part.photos[row][0] for part in self._parts for row in part.live]

    def parts(self) -> list[tuple[Rows, np.ndarray]]:
        """Memory-mapped arrays, and which of their rows belong to `names`, part by part."""
        return [(part.arrays, np.array(part.live)) for part in self._parts if part.live]

    def _claim(self) -> None:
        """Makes the folder of the index; refuses one that holds anything else."""
        if self._path.is_dir() and any(self._path.iterdir()) and not self._is_index():
            raise InputError(f"{self._path} holds other things than an index; --index names an empty or a new folder")
        self._path.mkdir(parents=True, exist_ok=True)

    def _is_index(self) -> bool:
        """An index, or one that was hardly begun."""
        ours = ("index.lock", ".index.json.")  # the second while index.json is being written
        others = [path for path in self._path.iterdir() if not path.name.startswith(ours)]
        return not others or self._about().get("format") == _FORMAT

    def _about(self) -> dict[str, Any]:
        try:
            about = json.loads((self._path / "index.json").read_text())
        except (OSError, ValueError):
            return {}
        return about if isinstance(about, dict) else {}

    def _load(self) -> str:
        """Maps what is there; returns why it cannot be used, if so."""
        about, reason = self._about(), ""
        if about and about.get("model") != self._model:
            reason = "it was made by another model"
        elif about:
            try:
                self._parts = [_read_part(path) for path in sorted(self._path.glob("rows-*")) if _is_part(path)]
            except (OSError, ValueError, EOFError, TypeError, KeyError, IndexError) as error:
                self._parts, reason = [], f"it is damaged ({error})"
        if reason or not about:
            for path in self._path.iterdir():
                if _is_part(path):
                    shutil.rmtree(path)
            write_bytes(self._path / "index.json", json.dumps({"format": _FORMAT, "model": self._model}).encode())
        return reason

    def _forget(self, names: set[str]) -> None:
        for part in self._parts:
            kept = [photo if photo and photo[0] not in names else None for photo in part.photos]
            if kept != part.photos:
                part.photos = kept
                _write_photos(part.path, kept)

    def _compute(
        self,
        names: list[str],
        states: dict[str, State],
        read: Callable[[Sequence[Path]], Iterator[Photo]],
        compute: Callable[[np.ndarray], Rows],
        batch_size: int,
    ) -> dict[str, str]:
        """Writes the rows of these photos; returns why some cannot be used."""
        problems: dict[str, str] = {}
        bar = tqdm(total=len(names), desc="index", unit="img", dynamic_ncols=True, disable=not names or None)
        with bar, contextlib.closing(read([self._folder / name for name in names])) as photos:
            for chosen in _batches(zip(names, photos, strict=True), _PHOTOS):
                problems |= {name: photo.problem for name, photo in chosen if photo.problem}
                good = [(name, photo.image) for name, photo in chosen if not photo.problem]
                if good:
                    rows = _rows([image for _, image in good], compute, batch_size)
                    self._write([(name, states[name]) for name, _ in good], rows)
                bar.update(len(chosen))
        return problems

    def _write(self, photos: list[tuple[str, State]], rows: Rows) -> None:
        path = self._path / f"rows-{uuid.uuid4().hex[:12]}"
        temporary = path.with_name(f".{path.name}")
        temporary.mkdir()
        try:
            for name, values in rows.items():
                np.save(temporary / f"{name}.npy", values)
            _write_photos(temporary, photos)
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._parts.append(_read_part(path))

    def _join_small(self) -> None:
        """Joins parts of which little is left, where there are many."""
        small = [part for part in self._parts if len(part.live) <= _PHOTOS // 2]
        if len(small) <= _MOST_SMALL:
            return
        for start in range(0, len(small), _MOST_SMALL):
            chosen = [part for part in small[start : start + _MOST_SMALL] if part.live]
            if chosen:
                names = chosen[0].arrays
                rows = {name: np.concatenate([part.arrays[name][part.live] for part in chosen]) for name in names}
                self._write([part.photos[row] for part in chosen for row in part.live], rows)
            for part in small[start : start + _MOST_SMALL]:
                self._parts.remove(part)
                shutil.rmtree(part.path)

    def _sweep(self) -> None:
        """Removes what an interrupted update left."""
        used = {part.path for part in self._parts}
        for path in self._path.iterdir():
            if _is_part(path) and path not in used:
                shutil.rmtree(path, ignore_errors=True)


def _read_part(path: Path) -> _Part:
    """Raises what JSON's reader does, or InputError, if it is not whole."""
    photos = [photo and (photo[0], (photo[1], photo[2])) for photo in json.loads((path / "photos.json").read_text())]
    arrays = {file.stem: map_array(file) for file in sorted(path.glob("*.npy"))}
    if not arrays or any(len(array) != len(photos) for array in arrays.values()):
        raise InputError(f"{path.name} is not whole")
    return _Part(path, photos, arrays)


def _write_photos(path: Path, photos: Sequence[tuple[str, State] | None]) -> None:
    rows = [photo and [photo[0], *photo[1]] for photo in photos]
    write_bytes(path / "photos.json", json.dumps(rows).encode())  # ASCII: names need not be UTF-8


def _is_part(path: Path) -> bool:
    return _PART.fullmatch(path.name) is not None and path.is_dir()


def _state(path: Path) -> State | None:
    """None: the photo has gone since it was listed, or is a link that leads nowhere."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _batches(elements: Iterable[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(elements)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


def _rows(images: list[np.ndarray], compute: Callable[[np.ndarray], Rows], batch_size: int) -> Rows:
    batches = [compute(np.stack(batch)) for batch in _batches(images, batch_size)]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
