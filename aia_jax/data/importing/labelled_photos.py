"""Reads labels from folder names. Checks labels and photos. `label_files` reads files of labels."""

import dataclasses
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from aia_jax.data.annotation.annotations import add_unknown_label, label_problem
from aia_jax.data.photo_files import PhotoFiles
from aia_jax.data.photo_finder import PhotoFinder
from aia_jax.data.photo_folder import read_photos
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import sha256_of_file

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SIZE = 224  # side of a photo in pixels when its channels are measured; a typical input size of networks
_LEAST_STD = 1 / 255  # smallest standard deviation; avoids a division by zero if all photos have one color


@dataclasses.dataclass(frozen=True)
class LabelRow:
    """One entry of a label list.

    Attributes:
        where: place of the entry, such as "labels.csv:12".
        photo: name of the photo, as written in the entry.
        labels: labels of the photo, possibly none.
        split: a value of `SPLIT_NAMES`; "" if the entry gives no split.
    """

    where: str
    photo: str
    labels: tuple[str, ...]
    split: str = ""


@dataclasses.dataclass(frozen=True)
class LabelList:
    """The content of a file or folder of labels.

    Attributes:
        rows: entries, in the order of the file or folder. Several entries may be for the same photo.
        understood: one line that describes how the file or folder was read.
        problems: one line for each entry that is not in `rows`.
    """

    rows: tuple[LabelRow, ...]
    understood: str
    problems: tuple[str, ...] = ()


def leave_out_different(rows: Sequence[LabelRow], problems: list[str]) -> tuple[LabelRow, ...]:
    """Leaves out the rows of a photo if they have different labels, and appends a line for each to `problems`."""
    answers: dict[str, set[frozenset[str]]] = defaultdict(set)
    for row in rows:
        answers[row.photo].add(frozenset(row.labels))
    different = [row for row in rows if len(answers[row.photo]) > 1]
    advice = "have different labels; keep one of them, or give each photo its own name"
    problems += [f"{row.where}: the entries of {row.photo!r} {advice}" for row in different]
    return tuple(row for row in rows if len(answers[row.photo]) == 1)


def read_folders(folder: Path) -> LabelList:
    """Reads labels from folder names: photos below `folder/sky` have the label sky. Photos in `folder` have no label.

    A photo has several labels if it is in several label folders: as links, or as files with equal name and content.
    If all folders in `folder` have names of splits, such as train and test, these folders contain the label folders.

    Raises:
        InputError: there is no folder with photos.
    """
    files = PhotoFiles()
    tops = files.subfolders(folder)
    has_splits = bool(tops) and all(top.lower() in SPLIT_NAMES for top in tops)
    rows: dict[LabelRow, None] = {}  # without repeats, in order
    all_labels = set()
    # Folders of labels are listed one by one, so that a folder and a link to it give their photos two labels.
    tree = [(top, files.subfolders(folder / top)) for top in tops] if has_splits else [("", tops)]
    names = files.beside(folder) if has_splits else []
    for top, labels in tree:
        names += [os.path.join(top, name) for name in files.beside(folder / top)]
        names += [os.path.join(top, label, name) for label in labels for name in files.names(folder / top / label)]
    for name, first_name in _first_names(folder, names):
        parts = Path(name).parts[:-1]
        split = SPLIT_NAMES[parts[0].lower()] if has_splits and parts else ""
        label = next(iter(parts[1:] if has_splits else parts), "")
        all_labels.add(label)
        rows[LabelRow(repr(first_name), first_name, (label,) * bool(label), split)] = None
    if not all_labels - {""}:
        notes = "".join(f"; {note}" for note in files.notes())
        raise InputError(f"{folder} holds no folders of photos; expected one for each label, such as sky/a.jpg{notes}")
    files.print_notes()
    below = f" below the splits {', '.join(tops)}" if has_splits else ""
    return LabelList(tuple(rows), f"{folder}: {len(all_labels - {''}):,} folders as labels{below}")


def merge_label_rows(
    rows: Sequence[LabelRow], folder: Path, vocabulary: Collection[str] | None, problems: list[str]
) -> list[LabelRow]:
    """Merges the rows of each photo into one row. This row has all labels of the photo, sorted.

    The other fields are from the first row of the photo. The merged rows have the order of these first rows.

    Args:
        folder: folder of the photos. The names in the result are relative to this folder.
        vocabulary: valid labels; None: all labels are valid.
        problems: list to which a line is appended for each skipped item. The skipped items are:
            - rows whose photo name is invalid, leads out of the folder or has no file
            - rows that have an invalid label, or that add no label to their photo
            - photos whose rows have different splits, or names that differ in more than their form
            - labels that are not in the vocabulary
    """
    found: dict[str, LabelRow] = {}
    contradictory = set()
    finder = PhotoFinder(folder)
    for row in rows:
        bad_labels = (f"a label {problem}" for problem in map(label_problem, row.labels) if problem)
        name, problem = finder.find(row.photo)
        known = found.get(name)
        if name and problem:
            contradictory.add(name)
        elif problem := problem or next(bad_labels, ""):
            pass
        elif known and known.split != row.split:
            contradictory.add(name)
            problem = f"{name!r} is in split {row.split or 'none'!r}, at {known.where} in {known.split!r}"
        elif known and set(row.labels) <= set(known.labels):
            problem = f"repeats the labels of {name!r}, first at {known.where}"
        if problem:
            problems.append(f"{row.where}: {problem}")
            continue
        unknown = [label for label in row.labels if vocabulary is not None and label not in vocabulary]
        for label in unknown:
            add_unknown_label(problems, row.where, label, vocabulary)
        labels = tuple(sorted({*row.labels, *(known.labels if known else ())}.difference(unknown)))
        found[name] = LabelRow(known.where if known else row.where, name, labels, row.split)
    finder.print_note()
    return [photo for name, photo in found.items() if name not in contradictory]


def measure_photos(
    photos: Sequence[LabelRow], folder: Path, num_workers: int, problems: list[str]
) -> tuple[list[LabelRow], np.ndarray]:
    """Decodes the photos, and computes the channel statistics of each photo that can be decoded.

    Args:
        num_workers: number of threads that decode photos; 0: one for each core.
        problems: list to which a line is appended for each photo that cannot be decoded.

    Returns:
        The N usable photos, and float64 `[N, 2, 3]`: for each photo, the mean of each channel, and the mean of each
        squared channel. The channels are on the scale 0..1.
    """
    paths = [folder / photo.photo for photo in photos]
    good, moments = [], []
    with tqdm(photos, "reading photos", unit="img", mininterval=0.5, dynamic_ncols=True) as bar:
        for photo, read in zip(bar, read_photos(paths, _SIZE, num_workers=num_workers, upright=True), strict=True):
            if read.problem:
                problems.append(f"{photo.where}: {photo.photo!r}: {read.problem}")
                continue
            channels = np.ascontiguousarray(read.image.reshape(-1, 3).T) / 255
            good.append(photo)
            moments.append((channels.mean(axis=1), np.square(channels).mean(axis=1)))
    return good, np.array(moments).reshape(-1, 2, 3)


def combine_moments(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes mean `[3]` and standard deviation `[3]` of the channels from the array that `measure_photos` returns."""
    mean, squares = moments.mean(axis=0)
    return mean, np.maximum(np.sqrt(np.maximum(squares - np.square(mean), 0)), _LEAST_STD)


def _first_names(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields pairs: each name, and the first name of the same photo.

    Two files are the same photo if one is a link to the other, or if their names and contents are equal.
    """
    found: dict[tuple[int, int], str] = {}
    alike: dict[tuple[str, int], list[str]] = defaultdict(list)  # names of photos by file name and size
    for name in names:
        path = folder / name
        status = path.stat()
        file = status.st_dev, status.st_ino
        if file not in found:
            others = alike[path.name, status.st_size]
            same = (other for other in others if sha256_of_file(folder / other) == sha256_of_file(path))
            found[file] = next(same, name)
            others.append(name)
        yield name, found[file]
