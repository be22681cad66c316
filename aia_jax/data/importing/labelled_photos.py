"""Photos with their labels: merges the rows of a label list, finds the files, decodes and measures them."""

import dataclasses
import functools
import os
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from aia_jax.data.annotation.annotations import is_label, unknown_label
from aia_jax.data.importing.label_lists import LabelRow
from aia_jax.data.photo_folder import SUFFIXES, read_photos
from aia_jax.data.safe_names import has_lone_surrogate, leaves_folder

_SIZE = 224  # pixels, for measuring: a typical input size
_HINTED = 20  # problems with a similar label; searching takes long
_LEAST_STD = 1 / 255  # for photos of one color, to avoid division by zero


@dataclasses.dataclass(frozen=True)
class LabelledPhoto:
    """A photo and its labels.

    Attributes:
        where: place of the first row for this photo.
        name: relative to the folder of the photos.
        labels: different labels, sorted.
        split: see `LabelRow`.
    """

    where: str
    name: str
    labels: tuple[str, ...]
    split: str


def merge_label_rows(
    rows: Sequence[LabelRow], folder: Path, vocabulary: Collection[str] | None, problems: list[str]
) -> list[LabelledPhoto]:
    """Merges the rows of each photo, in the order of their first rows.

    Args:
        folder: folder of the photos.
        vocabulary: valid labels; None: all.
        problems: gets a line for each skipped row, photo and label: names that are invalid, lead out of the folder or
            have no file, invalid labels, rows without new labels, contradicting splits, labels not in the vocabulary.
    """
    found: dict[str, LabelledPhoto] = {}
    contradictory = set()
    find = functools.cache(functools.partial(_find, folder=folder))
    for row in rows:
        problem, name = _problem(row, folder), ""
        if not problem and not (name := find(row.photo)):
            problem = f"no photo {row.photo!r} in {folder}"
        known = found.get(name)
        if known and known.split != row.split:
            contradictory.add(name)
            problem = f"{name!r} is in split {row.split or 'none'!r}, at {known.where} in {known.split!r}"
        elif known and set(row.labels) <= set(known.labels):
            problem = f"repeats the labels of {name!r}, first at {known.where}"
        if problem:
            problems.append(f"{row.where}: {problem}")
            continue
        unknown = [label for label in row.labels if vocabulary is not None and label not in vocabulary]
        problems += [unknown_label(row.where, label, vocabulary, hint=len(problems) < _HINTED) for label in unknown]
        labels = tuple(sorted({*row.labels, *(known.labels if known else ())}.difference(unknown)))
        found[name] = LabelledPhoto(known.where if known else row.where, name, labels, row.split)
    return [photo for name, photo in found.items() if name not in contradictory]


def measure_photos(
    photos: Sequence[LabelledPhoto], folder: Path, num_workers: int, problems: list[str]
) -> tuple[list[LabelledPhoto], np.ndarray]:
    """Decodes the photos, to find those that cannot be used, and measures their channels.

    Args:
        num_workers: number of processes that decode; 0: threads of this one.
        problems: gets a line for each photo that cannot be decoded.

    Returns:
        The good photos, and float64 `[N, 2, 3]`: for each photo the means of its channels and of their squares, on the
        scale 0..1.
    """
    paths = [folder / photo.name for photo in photos]
    good, moments = [], []
    with tqdm(photos, "reading photos", unit="img", mininterval=0.5, dynamic_ncols=True) as bar:
        for photo, read in zip(bar, read_photos(paths, _SIZE, num_workers=num_workers, upright=True), strict=True):
            if read.problem:
                problems.append(f"{photo.where}: {photo.name!r}: {read.problem}")
                continue
            channels = np.ascontiguousarray(read.image.reshape(-1, 3).T) / 255
            good.append(photo)
            moments.append((channels.mean(axis=1), np.square(channels).mean(axis=1)))
    return good, np.array(moments).reshape(-1, 2, 3)


def combine_moments(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation `[3]` of the channels over all pixels, from `[N, 2, 3]` of `measure_photos`."""
    mean, squares = moments.mean(axis=0)
    return mean, np.maximum(np.sqrt(np.maximum(squares - np.square(mean), 0)), _LEAST_STD)


def _problem(row: LabelRow, folder: Path) -> str:
    """The reason why a row cannot be used; "" if it can."""
    if not row.photo.strip() or "\0" in row.photo:
        return f"{row.photo!r} is not a name of a photo"
    if leaves_folder(row.photo):
        return f"{row.photo!r} leaves the folder of the photos; it must be relative to {folder}"
    if has_lone_surrogate(row.photo):
        return f"{row.photo!r} cannot be written as UTF-8; rename the file"
    bad = next((label for label in row.labels if not is_label(label)), None)
    expected = "a label must be one line of text without spaces around it"
    return "" if bad is None else f"{expected}, found {bad!r:.60}"


def _find(name: str, folder: Path) -> str:
    """The name of the photo in the folder; "" if absent. Also tries slashes for backslashes, and missing suffixes."""
    plain = PurePosixPath(name).as_posix()
    slashed = plain.replace("\\", "/")
    candidates = [plain, slashed]
    if not PurePosixPath(slashed).suffix:
        candidates += [slashed + case for suffix in SUFFIXES for case in (suffix, suffix.upper())]
    return next((found for found in candidates if os.path.isfile(folder / found)), "")
