"""Annotated photos in the authors' layout: which image carries which labels.

    <root>/<Folder>/train.json  test.json  images/...
    {"labels": [name, ...], "samples": [{"image_name": "1000.jpeg", "image_labels": ["city", "sun"]}, ...]}

VG-500 may also lie there as SSGRL (github HCPLab-SYSU/SSGRL) lays it out. Of a user's own data, "custom", the root is
the folder itself. Photos are located here, not opened.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from aia_jax.data.safe_names import has_lone_surrogate, name_problem
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json, read_text
from aia_jax.utils.messages import MAX_LISTED, format_count, list_problems, nearest

CUSTOM = "custom"
FOLDERS = {"corel5k": "Corel-5k", "espgame": "ESP-Game", "iaprtc12": "IAPR-TC-12", "vg500": "VG-500", CUSTOM: ""}
SPLITS = ("train", "test")

_SSGRL_FOLDERS = ("", "ssgrl", "data/VG")
_SSGRL_INDEX = "vg_category_500_labels_index.json"
_SSGRL_VOCABULARY = "vg500_vocabulary.txt"
_SSGRL = "{file name: [label index, ...]}"
_AUTHORS = '{"labels": [...], "samples": [...]}'
_LABELS = '{"labels": [...]}'
_MOST_TARGETS = 10**9  # bytes


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The images of one split and their labels.

    Attributes:
        labels: the vocabulary, C names.
        image_names: N names as the annotation file writes them, in its order.
        image_paths: where the N photos are, or would have to be.
        targets: uint8 `[N, C]`, multi-hot in the order of `labels`.
    """

    labels: tuple[str, ...]
    image_names: tuple[str, ...]
    image_paths: tuple[Path, ...]
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.image_names)

    def take(self, rows: Sequence[int]) -> "Annotations":
        """Only the images of these rows, in this order."""
        names, paths = (tuple(column[row] for row in rows) for column in (self.image_names, self.image_paths))
        return Annotations(self.labels, names, paths, self.targets[list(rows)])


def read_annotations(root: str | Path, dataset: str, split: str) -> Annotations:
    """Reads the annotations of `<root>/<Folder>/<split>.json`; whether the photos are there is not asked.

    Args:
        dataset: a key of `FOLDERS`.
        split: "train" or "test".

    Raises:
        InputError: the files are absent or malformed; all problems of a file are listed together.
    """
    for field, value, known in (("dataset", dataset, FOLDERS), ("split", split, SPLITS)):
        if value not in known:
            raise InputError(f"{field} {value!r} is unknown; known: {', '.join(known)}")
    folder = Path(root) / FOLDERS[dataset]
    path = folder / f"{split}.json"
    if path.is_file():
        return _read_authors(path, _photo_folders(folder))
    if dataset == "vg500" and (lists := _find_ssgrl(folder, f"{split}_list_500.txt")):
        return _read_ssgrl(folder, lists)
    if dataset == CUSTOM:
        raise InputError(
            f"{path.absolute()} does not exist. config.data.root={str(root)!r} must be the folder that aia"
            " import-labels wrote, with train.json, test.json and images/"
        )
    alternative = f", or SSGRL's {split}_list_500.txt and {_SSGRL_INDEX}" if dataset == "vg500" else ""
    raise InputError(
        f"{path.absolute()} does not exist. config.data.root={str(root)!r} must be the folder that holds"
        f" {FOLDERS[dataset]}/ with {split}.json{alternative}, and the photos in images/;"
        f" `aia prepare {dataset}` brings them"
    )


def read_labels(path: Path) -> tuple[str, ...]:
    """The names of labels in a file: one a line, or JSON, a list or with a field `labels` such as `<split>.json`.

    Raises:
        InputError: it cannot be read, holds none, or a name stands there twice.
    """
    text = read_text(path)
    labels = [line.strip() for line in text.splitlines() if line.strip()]
    if text.lstrip().startswith(("{", "[")):
        document = read_json(path, _LABELS)
        labels = document.get("labels") if isinstance(document, dict) else document
    if not isinstance(labels, list) or not labels:
        raise InputError(f"{path} holds no labels; expected one a line, or {_LABELS}")
    if problems := _label_problems(labels):
        raise InputError(f"{path} cannot be used, {len(problems):,} problem(s):{list_problems(problems)}")
    return tuple(labels)


def is_label(value: Any) -> bool:
    """Whether a label may be called so: one line, without blanks around it, that UTF-8 can hold."""
    return isinstance(value, str) and value.strip().splitlines() == [value] and not has_lone_surrogate(value)


def _read_authors(path: Path, photo_folders: Sequence[Path]) -> Annotations:
    document = read_json(path, _AUTHORS)
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected an object {_AUTHORS}, found {_type(document)}")
    for field in ("labels", "samples"):
        if not isinstance(document.get(field), list):
            found = _type(document[field]) if field in document else "nothing"
            raise InputError(f"{path}: field {field!r} must be a list, found {found}")
    problems: list[str] = []
    samples = []
    for index, sample in enumerate(document["samples"]):
        where = f"samples[{index}]"
        if isinstance(sample, dict):
            samples.append((where, sample.get("image_name"), sample.get("image_labels")))
        else:
            problems.append(f"{where}: must be an object, found {_type(sample)}")
    return _assemble(path, document["labels"], samples, photo_folders, problems)


def _read_ssgrl(folder: Path, lists: Path) -> Annotations:
    """A list of file names, one a line, and label indices by file name; the names of the labels in index order."""
    found = {name: _find_ssgrl(folder, name) for name in (_SSGRL_INDEX, _SSGRL_VOCABULARY)}
    for name, path in found.items():
        if path is None:
            raise InputError(f"{lists} needs {name} beside it, which is absent")
    labels = _read_lines(found[_SSGRL_VOCABULARY])
    index = read_json(found[_SSGRL_INDEX], _SSGRL)
    if not isinstance(index, dict):
        raise InputError(f"{found[_SSGRL_INDEX]}: expected {_SSGRL}, found {_type(index)}")
    problems: list[str] = []
    samples, seen = [], set()
    for line, name in enumerate(_read_lines(lists), start=1):
        numbers = index.get(name) if name not in seen else []  # `_assemble` tells of it
        seen.add(name)
        valid = isinstance(numbers, list) and all(type(number) is int for number in numbers)
        if not valid or not all(0 <= number < len(labels) for number in numbers):
            held = f"has {numbers!r:.80} for" if name in index else "does not hold"
            problems.append(
                f"line {line}: {found[_SSGRL_INDEX].name} {held} {name!r}; indices 0..{len(labels) - 1} fit"
            )
        else:
            samples.append((f"line {line}", name, [labels[number] for number in numbers]))
    folders = [*_photo_folders(folder), *_photo_folders(lists.parent)]
    return _assemble(lists, labels, samples, list(dict.fromkeys(folders)), problems)


def _assemble(
    path: Path, labels: list, samples: list[tuple[str, Any, Any]], photo_folders: Sequence[Path], problems: list[str]
) -> Annotations:
    """Checks `(where, image name, labels)` of every sample and raises all problems of `path` together."""
    problems = [*_label_problems(labels), *problems]
    columns = {label: column for column, label in enumerate(labels) if isinstance(label, str)}
    first_use: dict[str, str] = {}
    for where, name, image_labels in samples:
        problems += _name_problems(where, name, first_use)
        problems += _image_label_problems(where, image_labels, columns, hint=len(problems) < MAX_LISTED)
    if problems:
        raise InputError(f"{path} cannot be used, {len(problems):,} problem(s):{list_problems(problems)}")
    if not samples or not labels:
        raise InputError(f"{path}: the split is empty, it needs at least one sample and one label")
    if len(samples) * len(labels) > _MOST_TARGETS:
        raise InputError(
            f"{path}: {len(samples):,} images by {len(labels):,} labels are more than {_MOST_TARGETS:,} together"
        )
    targets = np.zeros((len(samples), len(labels)), np.uint8)
    for row, (_, _, image_labels) in enumerate(samples):
        targets[row, [columns[label] for label in image_labels]] = 1
    names = tuple(name for _, name, _ in samples)
    return Annotations(tuple(labels), names, tuple(_locate(name, photo_folders) for name in names), targets)


def _label_problems(labels: list) -> list[str]:
    problems = []
    first_use: dict[str, int] = {}
    for index, label in enumerate(labels):
        if not is_label(label):
            expected = "must be a name of one line without blanks around it"
            problems.append(f"labels[{index}]: {expected}, found {label!r:.80}")
        elif first_use.setdefault(label, index) != index:
            problems.append(f"labels[{index}]: {label!r} stands at labels[{first_use[label]}] already")
    return problems


def _name_problems(where: str, name: Any, first_use: dict[str, str]) -> list[str]:
    if problem := name_problem(name):
        return [f"{where}.image_name: {problem}"]
    first = first_use.setdefault(PureWindowsPath(name).as_posix(), where)
    return [] if first == where else [f"{where}.image_name: {name!r} is the name of {first} already"]


def _image_label_problems(where: str, image_labels: Any, columns: dict[str, int], *, hint: bool) -> list[str]:
    if not isinstance(image_labels, list):
        return [f"{where}.image_labels: must be a list of names, found {_type(image_labels)}"]
    problems = []
    for label in image_labels:
        if not isinstance(label, str):
            problems.append(f"{where}.image_labels: {label!r:.80} is not a name")
        elif label not in columns:
            close = nearest(label, columns) if hint and len(problems) < MAX_LISTED else []
            text = f"; did you mean {close[0]!r}?" if close else ""
            known = format_count(len(columns), "label")
            problems.append(f"{where}.image_labels: {label!r} is not in the vocabulary of {known}{text}")
    return problems


def _photo_folders(folder: Path) -> list[Path]:
    """`images/`, and for Visual Genome as it is distributed VG_100K/ and VG_100K_2/."""
    return [folder / "images", *sorted(folder.glob("VG_100K*/"))]


def _locate(name: str, folders: Sequence[Path]) -> Path:
    if len(folders) == 1:
        return folders[0] / name
    return next((folder / name for folder in folders if os.path.exists(folder / name)), folders[0] / name)


def _find_ssgrl(folder: Path, name: str) -> Path | None:
    return next((path for sub in _SSGRL_FOLDERS if (path := folder / sub / name).is_file()), None)


def _read_lines(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
