"""Photos with what a list of labels says of them: gathered by photo, looked for, decoded once and measured."""

import dataclasses
import functools
import os
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from aia_jax.data.annotation.annotations import is_label
from aia_jax.data.importing.label_lists import LabelRow
from aia_jax.data.photo_folder import SUFFIXES, read_photos
from aia_jax.data.safe_names import has_lone_surrogate, leaves_folder
from aia_jax.utils.messages import format_count, nearest

_SIZE = 224  # pixels, at which photos are measured: about what networks see
_HINTED = 20  # problems; looking for what was meant takes long
_LEAST_STD = 1 / 255  # of photos of one colour, by which nothing could be divided


@dataclasses.dataclass(frozen=True)
class LabelledPhoto:
    """A photo and all that is said of it.

    Attributes:
        where: the first place that tells of it.
        name: relative to the folder of the photos.
        labels: each once, sorted.
        split: see `LabelRow`.
    """

    where: str
    name: str
    labels: tuple[str, ...]
    split: str


def merge_label_rows(
    rows: Sequence[LabelRow], folder: Path, vocabulary: Collection[str] | None, problems: list[str]
) -> list[LabelledPhoto]:
    """What the rows say, a photo each, in the order in which they are told of first.

    Args:
        folder: of the photos.
        vocabulary: the labels that may be used; None: any.
        problems: gets a line for each row and photo that is left out: a name that is none, leads out of the folder or
            is of no file, a label that may not be called so, a row that says nothing new, splits that contradict; and
            for each label that is left out, as the vocabulary lacks it.
    """
    found: dict[str, LabelledPhoto] = {}
    contradictory = set()
    find = functools.cache(functools.partial(_find, folder=folder))
    for row in rows:
        problem, name = _name_problem(row, folder) or _label_problem(row), ""
        if not problem and not (name := find(row.photo)):
            problem = f"{row.where}: no photo {row.photo!r} in {folder}"
        known = found.get(name)
        if known and known.split != row.split:
            contradictory.add(name)
            problem = f"{row.where}: {name!r} is of split {row.split or 'none'!r}, at {known.where} of {known.split!r}"
        elif known and set(row.labels) <= set(known.labels):
            problem = f"{row.where}: says nothing of {name!r} that was not said before, first at {known.where}"
        if problem:
            problems.append(problem)
            continue
        unknown = [label for label in row.labels if vocabulary is not None and label not in vocabulary]
        problems += [_unknown(row.where, label, vocabulary, len(problems) < _HINTED) for label in unknown]
        labels = tuple(sorted({*row.labels, *(known.labels if known else ())}.difference(unknown)))
        found[name] = LabelledPhoto(known.where if known else row.where, name, labels, row.split)
    return [photo for name, photo in found.items() if name not in contradictory]


def measure_photos(
    photos: Sequence[LabelledPhoto], folder: Path, num_workers: int, problems: list[str]
) -> tuple[list[LabelledPhoto], np.ndarray]:
    """Decodes the photos, which shows whether they can be used at all.

    Args:
        num_workers: processes that decode; 0: threads of this one.
        problems: gets a line for each photo that cannot be decoded.

    Returns:
        The others, and float64 `[N, 2, 3]`, of each the means of its channels and of their squares, on the scale 0..1.
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
    """Mean and standard deviation `[3]` of the channels over all pixels, from what `measure` gives, `[N, 2, 3]`."""
    mean, squares = moments.mean(axis=0)
    return mean, np.maximum(np.sqrt(np.maximum(squares - np.square(mean), 0)), _LEAST_STD)


def _name_problem(row: LabelRow, folder: Path) -> str:
    if not row.photo.strip() or "\0" in row.photo:
        return f"{row.where}: {row.photo!r} is no name of a photo"
    if leaves_folder(row.photo):
        return f"{row.where}: {row.photo!r} leaves the folder of the photos; it must be relative to {folder}"
    if has_lone_surrogate(row.photo):
        return f"{row.where}: {row.photo!r} cannot be written as UTF-8; rename the file"
    return ""


def _label_problem(row: LabelRow) -> str:
    unfit = [label for label in row.labels if not is_label(label)]
    if not unfit:
        return ""
    return f"{row.where}: a label must be a name of one line without blanks around it, found {unfit[0]!r:.60}"


def _unknown(where: str, label: str, vocabulary: Collection[str], hinted: bool) -> str:
    near = nearest(label, vocabulary) if hinted else []
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{where}: {label!r} is not in the vocabulary of {format_count(len(vocabulary), 'label')}{hint}"


def _find(name: str, folder: Path) -> str:
    """The photo's name as the folder has it: perhaps with slashes for backslashes, or an ending; "": it has none."""
    plain = PurePosixPath(name).as_posix()
    slashed = plain.replace("\\", "/")
    ended = () if PurePosixPath(slashed).suffix else [slashed + end for suffix in SUFFIXES for end in _cases(suffix)]
    return next((found for found in (plain, slashed, *ended) if os.path.isfile(folder / found)), "")


def _cases(suffix: str) -> tuple[str, str]:
    return suffix, suffix.upper()
