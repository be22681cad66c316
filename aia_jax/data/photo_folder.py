"""A user's own photos: which there are, in which order, and their pixels, decoded ahead of use."""

import contextlib
import dataclasses
import gc
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from aia_jax.data.image_decoding import decode_image, decode_with_picture
from aia_jax.data.pipeline import read_ahead
from aia_jax.data.safe_names import name_problem
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import list_files, read_text
from aia_jax.utils.messages import list_problems

SUFFIXES = (
    ".avif",
    ".bmp",
    ".gif",
    ".heic",
    ".heif",
    ".jfif",
    ".jp2",
    ".jpeg",
    ".jpg",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)


@dataclasses.dataclass(frozen=True)
class Photo:
    """A decoded photo.

    Attributes:
        image: uint8 `[S, S, 3]`; zeros if it cannot be used.
        problem: why it cannot be used; "": it can.
        picture: the photo as a WebP, if it was asked for.
    """

    image: np.ndarray
    problem: str
    picture: bytes = b""


def photo_names(folder: Path, listed: Path | None = None) -> tuple[str, ...]:
    """Names of photos relative to `folder`.

    Args:
        listed: text file of one name a line, which gives the order and may repeat names, as SCAN's
            `{split}_images.txt`; None: all files below `folder` whose names end as photos' do, sorted, without hidden
            ones; links that lead nowhere are among them, so that they are told of.

    Raises:
        InputError: no such folder, no photos, or a list that names files which are not there.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is {'no folder' if folder.exists() else 'not there'}; name a folder of photos")
    return _listed(folder, listed) if listed else _found(folder)


def read_photos(
    paths: Sequence[str | Path], size: int, *, num_workers: int, upright: bool = False, picture_side: int = 0
) -> Iterator[Photo]:
    """The photos in order, each resized to `size` x `size` pixels as data preparation does; close it at the end.

    Args:
        num_workers: processes that decode; 0: threads of this one.
        upright: see `decode_image`.
        picture_side: of upright photos, pixels of the longer side of pictures to make beside; 0: none.
    """
    import grain

    dataset = grain.MapDataset.source([str(path) for path in paths]).map(_Decode(size, upright, picture_side))
    ahead = read_ahead(dataset, num_threads=os.cpu_count() or 1, buffer_size=32, num_workers=num_workers)
    try:
        with contextlib.closing(iter(ahead)) as photos:
            for image, problem, picture in photos:
                yield Photo(image, problem, picture)
    finally:
        gc.collect()  # Grain leaves shared memory in a circle of references; found at exit, it brings a warning.


@dataclasses.dataclass(frozen=True)
class _Decode:
    """Picklable, as worker processes need it."""

    size: int
    upright: bool
    picture_side: int

    def __call__(self, path: str) -> tuple[np.ndarray, str, bytes]:
        try:
            data = Path(path).read_bytes()
            if self.picture_side:
                square, picture = decode_with_picture(data, self.size, self.picture_side)
                return square, "", picture
            return decode_image(data, self.size, upright=self.upright), "", b""
        except InputError as error:
            problem = str(error)
        except OSError as error:
            problem = error.strerror or str(error)
        return np.zeros((self.size, self.size, 3), np.uint8), problem, b""


def _found(folder: Path) -> tuple[str, ...]:
    names = list_files(folder, SUFFIXES, dangling=True)
    if not names:
        raise InputError(f"{folder} holds no photos; files that end in {', '.join(SUFFIXES)} are looked for")
    return tuple(names)


def _listed(folder: Path, listed: Path) -> tuple[str, ...]:
    names = [line.strip() for line in read_text(listed).rstrip().splitlines()]
    if not names:
        raise InputError(f"{listed} is empty; it needs the name of a photo on every line")
    with ThreadPoolExecutor(16) as pool:  # A network file system answers many at once.
        found = pool.map(lambda name: _listed_problem(folder, name), names)
        problems = [f"{listed}:{number}: {problem}" for number, problem in enumerate(found, start=1) if problem]
    if problems:
        raise InputError(f"{listed} names {len(problems):,} file(s) that are not there:{list_problems(problems)}")
    return tuple(names)


def _listed_problem(folder: Path, name: str) -> str:
    if not name:
        return "the line is empty"
    return name_problem(name) or ("" if os.path.isfile(folder / name) else f"no file {name} in {folder}")
