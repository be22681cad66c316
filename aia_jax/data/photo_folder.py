"""Lists a user's photos. Decodes photos in order and in advance."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from aia_jax.data.image_decoding import Box, decode, resize_image, small_webp
from aia_jax.data.photo_files import SUFFIXES, PhotoFiles
from aia_jax.data.photo_finder import PhotoFinder
from aia_jax.data.pipeline import map_ahead
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_text
from aia_jax.utils.messages import list_problems


class Photo(NamedTuple):
    """A decoded photo.

    Attributes:
        image: uint8 `[S, S, 3]`; zeros if the photo cannot be used.
        problem: reason why the photo cannot be used; "" if it can be used.
        picture: the photo as a WebP file; empty if no picture was requested.
    """

    image: np.ndarray
    problem: str
    picture: bytes = b""


def photo_names(folder: Path, listed: Path | None = None) -> tuple[str, ...]:
    """Returns the names of photos, relative to `folder`. Prints how many other files there are, by kind.

    Args:
        listed: text file with one name per line, such as SCAN's `{split}_images.txt`. Names may be repeated. The result
            has the order of the file, with the names that `PhotoFinder` finds. If None, the result has the names of
            `PhotoFiles`, sorted.

    Raises:
        InputError: the folder does not exist or has no photos, or the list names photos that are not found.
    """
    if not folder.is_dir():
        reason = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {reason}; name a folder of photos")
    if listed:
        return _read_list(folder, listed)
    files = PhotoFiles()
    names, notes = files.names(folder), files.notes()
    if not names:
        reason = (
            f" that can be read; {'; '.join(notes)}" if notes else f"; their names must end in {', '.join(SUFFIXES)}"
        )
        raise InputError(f"{folder} has no photos{reason}")
    files.print_notes()
    return tuple(names)


def read_photos(
    paths: Sequence[str | Path],
    size: int,
    *,
    num_workers: int,
    upright: bool = False,
    picture_side: int = 0,
    draft: bool = False,
) -> Iterator[Photo]:
    """Returns an iterator over the photos, in order, resized by `decode_image`. Close it if you stop early.

    Args:
        num_workers: number of threads that decode photos; 0: one for each core.
        upright, draft: see `decode_image`.
        picture_side: longer side of `Photo.picture` in pixels; 0: no pictures.
    """
    options = {"upright": upright, "picture_side": picture_side, "draft": draft}
    return map_ahead(lambda path: read_photo(Path(path).read_bytes, size, **options), paths, num_workers)


def read_photo(
    read: Callable[[], bytes], size: int, *, upright: bool = False, picture_side: int = 0, draft: bool = False
) -> Photo:
    """Reads and decodes one photo. `read` returns its bytes, or raises OSError. For the rest, see `read_photos`."""

    def convert(image: Image.Image, box: Box) -> Photo:
        square = resize_image(image, size, upright=upright, box=box)
        return Photo(square, "", small_webp(image, picture_side, upright) if picture_side else b"")

    try:
        data = read()
    except OSError as error:
        problem = error.strerror or str(error)
    else:
        try:
            return decode(data, convert, square=size * draft, side=picture_side * draft)
        except InputError as error:
            problem = str(error)
    return Photo(np.zeros((size, size, 3), np.uint8), problem)


def _read_list(folder: Path, listed: Path) -> tuple[str, ...]:
    names = [line.strip() for line in read_text(listed).rstrip().splitlines()]
    if not names:
        raise InputError(f"{listed} is empty; it needs the name of a photo on every line")
    finder = PhotoFinder(folder)
    found = [finder.find(name) if name else ("", "the line is empty") for name in names]
    problems = [f"{listed}:{number}: {text}" for number, (_, text) in enumerate(found, start=1) if text]
    if problems:
        raise InputError(f"{listed} names {len(problems):,} file(s) that do not exist:{list_problems(problems)}")
    finder.print_note()
    return tuple(name for name, _ in found)
