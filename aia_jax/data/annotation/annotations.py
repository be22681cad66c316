"""Reads annotation files, which list the labels of each image. Their layout is that of the reference implementation.

    <root>/<Folder>/train.json  test.json  images/...
    {"labels": [name, ...], "samples": [{"image_name": "1000.jpeg", "image_labels": ["city", "sun"]}, ...]}

VG-500 may instead have the layout of SSGRL (github HCPLab-SYSU/SSGRL). A user's own data set has the name "custom"; its
files are in <root> without <Folder>. The reference implementation is github
parham1998/Enhancing-High-Vocabulary-IA-with-a-Novel-Attention-Based-Pooling. This module opens no photos.
"""

import dataclasses
import functools
import os
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from aia_jax.data.safe_names import has_lone_surrogate, name_problem
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json, read_text
from aia_jax.utils.messages import MAX_LISTED, format_count, list_problems, nearest

CUSTOM = "custom"  # a user's own photos, which are read upright; the published data sets were prepared without that
FOLDERS = {"corel5k": "Corel-5k", "espgame": "ESP-Game", "iaprtc12": "IAPR-TC-12", "vg500": "VG-500", CUSTOM: ""}
SPLITS = ("train", "test")

_SSGRL_FOLDERS = ("", "ssgrl", "data/VG")
_SSGRL_INDEX = "vg_category_500_labels_index.json"
_SSGRL_VOCABULARY = "vg500_vocabulary.txt"
_SSGRL = "{file name: [label index, ...]}"
_REFERENCE = '{"labels": [...], "samples": [...]}'
_LABELS = '{"labels": [...]}'
_MOST_TARGETS = 10**9  # bytes


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The images of one split and their labels.

    Attributes:
        labels: the vocabulary, C label names.
        image_names: file names of the N images, in the order of the annotation file.
        image_paths: paths of the N photos. A photo may be missing.
        targets: labels of each image, multi-hot uint8 `[N, C]`. The columns have the order of `labels`.
    """

    labels: tuple[str, ...]
    image_names: tuple[str, ...]
    image_paths: tuple[Path, ...]
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.image_names)

    def take(self, rows: Sequence[int]) -> "Annotations":
        """Returns the annotations of the images at the indices `rows`, in the order of `rows`."""
        names, paths = (tuple(column[row] for row in rows) for column in (self.image_names, self.image_paths))
        return Annotations(self.labels, names, paths, self.targets[list(rows)])


def read_annotations(root: str | Path, dataset: str, split: str) -> Annotations:
    """Reads `<root>/<Folder>/<split>.json`, where <Folder> is `FOLDERS[dataset]`. Photos may be missing.

    Raises:
        InputError: unknown data set or split, or an absent or malformed file. The message lists all problems.
    """
    for field, value, known in (("dataset", dataset, FOLDERS), ("split", split, SPLITS)):
        if value not in known:
            raise InputError(f"{field} {value!r} is unknown; known: {', '.join(known)}")
    folder = Path(root) / FOLDERS[dataset]
    path = folder / f"{split}.json"
    if path.is_file():
        return _read_reference(path, _photo_folders(folder))
    if dataset == "vg500" and (lists := _find_ssgrl(folder, f"{split}_list_500.txt")):
        return _read_ssgrl(folder, lists)
    message = f"{path.absolute()} does not exist. config.data.root={str(root)!r} must be the folder that"
    if dataset == CUSTOM:
        raise InputError(f"{message} aia import-labels wrote, with train.json, test.json and images/")
    alternative = f", or SSGRL's {split}_list_500.txt and {_SSGRL_INDEX}" if dataset == "vg500" else ""
    raise InputError(
        f"{message} holds {FOLDERS[dataset]}/ with {split}.json{alternative}, and the photos in images/;"
        f" `aia prepare {dataset}` downloads them"
    )


def read_labels(source: Path | Sequence[str]) -> tuple[str, ...]:
    """Reads label names from a text file, one per line, or from JSON: a list, or an object with the field `labels`.

    In a text file, lines that begin with # are comments. `source` can also be the labels themselves.

    Raises:
        InputError: the file cannot be read, has no labels, or repeats a label.
    """
    if isinstance(source, Path):
        text = read_text(source)
        document = read_json(source, _LABELS) if text.lstrip().startswith(("{", "[")) else _labels_of(text)
        labels = document.get("labels") if isinstance(document, dict) else document
    else:
        source, labels = "the list of labels", list(source)
    if not isinstance(labels, list) or not labels:
        raise InputError(f"{source} holds no labels; expected one per line, or JSON: {_LABELS} or a list")
    _raise_problems(source, _label_problems(labels))
    return tuple(labels)


def label_problem(value: Any) -> str:
    """Returns the reason why a value is not a valid label; "" if it is valid."""
    if isinstance(value, str) and value.strip().splitlines() == [value] and not has_lone_surrogate(value):
        return ""
    return f"must be one line of text without spaces around it, found {value!r:.80}"


@functools.cache
def label_spelling(label: str) -> str:
    """Returns a form of a label that is the same for all its spellings: with other case, spaces or Unicode form."""
    return "".join(unicodedata.normalize("NFKC", label).split()).casefold()


def add_unknown_label(problems: list[str], where: str, label: str, vocabulary: Collection[str]) -> None:
    """Adds a message about an unknown label to `problems`. The first `MAX_LISTED` messages suggest a similar label."""
    similar = nearest(label, vocabulary) if len(problems) < MAX_LISTED else []  # `nearest` is slow
    hint = f"; did you mean {similar[0]!r}?" if similar else ""
    known = format_count(len(vocabulary), "label")
    problems.append(f"{where}: {label!r} is not in the vocabulary of {known}{hint}")


def multi_hot(image_labels: Sequence[Iterable[str]], labels: Sequence[str]) -> np.ndarray:
    """Converts the label names of N images to multi-hot uint8 `[N, C]`. Column c is 1 if the image has `labels[c]`."""
    columns = {label: column for column, label in enumerate(labels)}
    targets = np.zeros((len(image_labels), len(labels)), np.uint8)
    for row, names in enumerate(image_labels):
        targets[row, [columns[name] for name in names]] = 1
    return targets


def _read_reference(path: Path, photo_folders: Sequence[Path]) -> Annotations:
    document = read_json(path, _REFERENCE)
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected an object {_REFERENCE}, found {_type(document)}")
    for field in ("labels", "samples"):
        if not isinstance(document.get(field), list):
            found = _type(document[field]) if field in document else "nothing"
            raise InputError(f"{path}: field {field!r} must be a list, found {found}")
    samples, problems = [], []
    for index, sample in enumerate(document["samples"]):
        where = f"samples[{index}]"
        if isinstance(sample, dict):
            samples.append((where, sample.get("image_name"), sample.get("image_labels")))
        else:
            problems.append(f"{where}: must be an object, found {_type(sample)}")
    return _assemble(path, document["labels"], samples, photo_folders, problems)


def _read_ssgrl(folder: Path, lists: Path) -> Annotations:
    """Reads SSGRL's three files: image names (the file `lists`), label indices of each image, and label names."""
    found = {name: _find_ssgrl(folder, name) for name in (_SSGRL_INDEX, _SSGRL_VOCABULARY)}
    for name, path in found.items():
        if path is None:
            raise InputError(f"{lists} needs the file {name} beside it")
    labels = _lines(read_text(found[_SSGRL_VOCABULARY]))
    index = read_json(found[_SSGRL_INDEX], _SSGRL)
    if not isinstance(index, dict):
        raise InputError(f"{found[_SSGRL_INDEX]}: expected {_SSGRL}, found {_type(index)}")
    samples, problems, seen = [], [], set()
    for line, name in enumerate(_lines(read_text(lists)), start=1):
        numbers = index.get(name) if name not in seen else []  # `_assemble` reports repeated names.
        seen.add(name)
        known = range(len(labels))
        if isinstance(numbers, list) and all(type(number) is int and number in known for number in numbers):
            samples.append((f"line {line}", name, [labels[number] for number in numbers]))
        else:
            value = f"has {numbers!r:.80} for" if name in index else "has no entry for"
            expected = f"expected indices 0..{len(labels) - 1}"
            problems.append(f"line {line}: {found[_SSGRL_INDEX].name} {value} {name!r}; {expected}")
    folders = [*_photo_folders(folder), *_photo_folders(lists.parent)]
    return _assemble(lists, labels, samples, list(dict.fromkeys(folders)), problems)


def _assemble(
    path: Path, labels: list, samples: list[tuple[str, Any, Any]], photo_folders: Sequence[Path], problems: list[str]
) -> Annotations:
    """Checks `samples`, tuples `(place in the file, image name, labels)`. The error lists all problems of `path`."""
    problems = [*_label_problems(labels), *problems]
    known = {label for label in labels if isinstance(label, str)}
    first_use: dict[str, str] = {}
    for where, name, image_labels in samples:
        if problem := name_problem(name):
            problems.append(f"{where}.image_name: {problem}")
        elif (first := first_use.setdefault(PureWindowsPath(name).as_posix(), where)) != where:
            problems.append(f"{where}.image_name: {name!r} is already the name of {first}")
        if not isinstance(image_labels, list):
            problems.append(f"{where}.image_labels: must be a list of names, found {_type(image_labels)}")
            continue
        for label in image_labels:
            if not isinstance(label, str):
                problems.append(f"{where}.image_labels: {label!r:.80} is not a name")
            elif label not in known:
                add_unknown_label(problems, f"{where}.image_labels", label, known)
    _raise_problems(path, problems)
    if not samples or not labels:
        raise InputError(f"{path}: the split is empty, it needs at least one sample and one label")
    if len(samples) * len(labels) > _MOST_TARGETS:
        size = f"{len(samples):,} images by {len(labels):,} labels"
        raise InputError(f"{path}: {size} are more than {_MOST_TARGETS:,} together")
    _, names, image_labels = zip(*samples, strict=True)
    candidates = ([folder / name for folder in photo_folders] for name in names)
    paths = (next(filter(os.path.exists, some), some[0]) if some[1:] else some[0] for some in candidates)
    return Annotations(tuple(labels), names, tuple(paths), multi_hot(image_labels, labels))


def _raise_problems(path: Path | str, problems: list[str]) -> None:
    if problems:
        raise InputError(f"{path} cannot be used, {len(problems):,} problem(s):{list_problems(problems)}")


def _label_problems(labels: list) -> list[str]:
    problems = []
    first_use: dict[str, int] = {}
    for index, label in enumerate(labels):
        if problem := label_problem(label):
            problems.append(f"labels[{index}]: {problem}")
        elif first_use.setdefault(label, index) != index:
            problems.append(f"labels[{index}]: {label!r} repeats labels[{first_use[label]}]")
    return problems


def _photo_folders(folder: Path) -> list[Path]:
    """Returns the folders that may contain photos: images/, and the folders VG_100K*/ of Visual Genome."""
    return [folder / "images", *sorted(folder.glob("VG_100K*/"))]


def _find_ssgrl(folder: Path, name: str) -> Path | None:
    return next((path for sub in _SSGRL_FOLDERS if (path := folder / sub / name).is_file()), None)


def _labels_of(text: str) -> list[str]:
    return [line for line in _lines(text) if not line.startswith("#")]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
