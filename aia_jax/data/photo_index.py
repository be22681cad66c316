"""An index of a folder's photos on disk: what a model computed of each, brought up to date where files have changed.

    <index>/index.json               which model, and of every photo its size, time of change and row
    <index>/rows-<number>/<name>.npy   arrays of some photos, row by row

An update that is interrupted keeps the rows that were written whole.
"""

import contextlib
import dataclasses
import itertools
import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from aia_jax.data.photos import Photo, photo_names
from aia_jax.errors import InputError
from aia_jax.files import write_json

_VERSION = 1  # of the layout
_PHOTOS = 512  # whose rows are written together
_MOST_SMALL = 8  # parts of which less than half is left, or ever was
Rows = dict[str, np.ndarray]


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


class PhotoIndex:
    """The index of the photos in `folder`.

    Args:
        path: where it lies, or is to be.
        folder: of the photos, searched recursively.
        model: tells what computes the rows from other models; an index made by another is made anew.
    """

    def __init__(self, path: Path, folder: Path, model: str):
        self._path, self._folder, self._model = path, folder, model
        self._photos: dict[str, list[Any]] = {}  # name to [bytes, nanoseconds, part or "", row or problem]

    def update(
        self, read: Callable[[Sequence[Path]], Iterator[Photo]], compute: Callable[[np.ndarray], Rows], batch_size: int
    ) -> Update:
        """Computes the rows of photos that are new or have changed, and forgets those that are gone.

        Args:
            read: paths to decoded photos, in order.
            compute: uint8 `[b, S, S, 3]`, b at most `batch_size`, to named arrays `[b, ...]`.

        Raises:
            InputError: no such folder, or no photos in it.
        """
        names = photo_names(self._folder)
        rebuilt = self._load()
        states = {name: _state(self._folder / name) for name in names}
        known = self._photos.keys()
        fresh = [name for name in names if name not in known or self._photos[name][:2] != states[name]]
        gone = known - states.keys()
        new = sum(name not in known for name in fresh)
        for name in (*gone, *fresh):
            self._photos.pop(name, None)
        if fresh or gone or rebuilt:
            self._compute(fresh, states, read, compute, batch_size)
            self._save()
            self._sweep()
        problems = {name: entry[3] for name, entry in sorted(self._photos.items()) if not entry[2]}
        return Update(new, len(fresh) - new, len(gone), problems, rebuilt)

    @property
    def names(self) -> list[str]:
        """The usable photos, in the order of the rows that `parts` give."""
        return [name for _, names, _ in self._parts() for name in names]

    def parts(self) -> list[tuple[Rows, np.ndarray]]:
        """Memory-mapped arrays, and which of their rows belong to `names`, part by part."""
        return [(self._mapped(part), rows) for part, _, rows in self._parts()]

    def _parts(self) -> list[tuple[str, list[str], np.ndarray]]:
        entries = sorted((entry[2], entry[3], name) for name, entry in self._photos.items() if entry[2])
        groups = itertools.groupby(entries, key=lambda entry: entry[0])
        return [
            (part, [name for _, _, name in own], np.array([row for _, row, _ in own]))
            for part, own in ((part, list(group)) for part, group in groups)
        ]

    def _mapped(self, part: str) -> Rows:
        try:
            return {path.stem: np.load(path, mmap_mode="r") for path in sorted((self._path / part).glob("*.npy"))}
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{self._path / part} is damaged: {error}; delete {self._path}, it is made anew") from None

    def _load(self) -> str:
        """Reads what is there; returns why it cannot be used, if so."""
        try:
            content = json.loads((self._path / "index.json").read_text())
            if content["version"] == _VERSION and content["model"] == self._model:
                parts = {entry[2] for entry in content["photos"].values()} - {""}
                if all((self._path / part).is_dir() for part in parts):
                    self._photos = content["photos"]
                    return ""
                return "parts of it are missing"
            return "it was made by another model"
        except FileNotFoundError:
            return ""
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"it cannot be read ({error})"

    def _compute(
        self,
        names: list[str],
        states: dict[str, list[int]],
        read: Callable[[Sequence[Path]], Iterator[Photo]],
        compute: Callable[[np.ndarray], Rows],
        batch_size: int,
    ) -> None:
        bar = tqdm(total=len(names), desc="index", unit="img", dynamic_ncols=True, disable=not names or None)
        with bar, contextlib.closing(read([self._folder / name for name in names])) as photos:
            for chosen in _batches(zip(names, photos, strict=True), _PHOTOS):
                good = [(name, photo.image) for name, photo in chosen if not photo.problem]
                part = self._write(_rows([image for _, image in good], compute, batch_size)) if good else ""
                for row, (name, _) in enumerate(good):
                    self._photos[name] = [*states[name], part, row]
                for name, photo in chosen:
                    if photo.problem:
                        self._photos[name] = [*states[name], "", photo.problem]
                self._save()
                bar.update(len(chosen))

    def _write(self, rows: Rows) -> str:
        part = f"rows-{uuid.uuid4().hex[:12]}"
        self._path.mkdir(parents=True, exist_ok=True)
        temporary = self._path / f".{part}"
        temporary.mkdir()
        try:
            for name, values in rows.items():
                np.save(temporary / f"{name}.npy", values)
            temporary.rename(self._path / part)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return part

    def _save(self) -> None:
        write_json(self._path / "index.json", {"version": _VERSION, "model": self._model, "photos": dict(self._photos)})

    def _sweep(self) -> None:
        """Joins parts of which little is left, where there are many, and removes what nothing refers to."""
        small = [part for part in self._parts() if len(part[1]) <= _PHOTOS // 2]
        if len(small) > _MOST_SMALL:
            for start in range(0, len(small), _MOST_SMALL):
                self._join(small[start : start + _MOST_SMALL])
            self._save()
        used = {entry[2] for entry in self._photos.values()}
        for path in self._path.glob("*rows-*"):
            if path.name not in used:
                shutil.rmtree(path, ignore_errors=True)

    def _join(self, parts: list[tuple[str, list[str], np.ndarray]]) -> None:
        mapped = [(self._mapped(part), rows) for part, _, rows in parts]
        joined = {name: np.concatenate([arrays[name][rows] for arrays, rows in mapped]) for name in mapped[0][0]}
        part = self._write(joined)
        for row, name in enumerate(name for _, names, _ in parts for name in names):
            self._photos[name][2:] = [part, row]


def _batches(elements: Iterable[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(elements)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


def _rows(images: list[np.ndarray], compute: Callable[[np.ndarray], Rows], batch_size: int) -> Rows:
    batches = [compute(np.stack(batch)) for batch in _batches(images, batch_size)]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
