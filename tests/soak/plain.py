"""Simple, independent readers of files, to compare the product with."""

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aia_jax.utils.errors import InputError

NOTHING = object()  # the content of a file that must be refused


class Refused(Exception):
    """The product refused a case as it should."""


@contextlib.contextmanager
def may_refuse(*names: object, right: bool = True) -> Iterator[None]:
    """Turns an InputError into `Refused`. It must mention one of `names`, and be `right`."""
    try:
        yield
    except InputError as error:
        named = str(error) != "" and (not names or any(str(name) in str(error) for name in names))
        if not right or not named:
            raise AssertionError(
                f"refused, not naming {names}: {error}" if right else f"wrongly refused: {error}"
            ) from error
        raise Refused from error


def compare(expected: Any, read: Callable[[], Any], path: Path) -> None:
    """Checks `read`. It must refuse and name `path` if NOTHING is expected, else return `expected`."""
    with may_refuse(path, right=expected is NOTHING):
        found = read()
    assert expected is not NOTHING, f"accepted: {found!r:.500}"
    assert found == expected, (found, expected)


def text_of(data: bytes) -> Any:
    """UTF-8, with or without a byte-order mark, or NOTHING."""
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        return NOTHING


def json_of(data: bytes) -> Any:
    """The content of a JSON file, or NOTHING, also if an object has a field twice."""
    text = text_of(data)
    if text is NOTHING:
        return NOTHING
    twice = []

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice.extend([1] * (len(pairs) - len({name for name, _ in pairs})))
        return dict(pairs)

    try:
        document = json.loads(text, object_pairs_hook=members)
    except (ValueError, RecursionError):
        return NOTHING
    return NOTHING if twice else document


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_label(value: Any) -> bool:
    """Whether a value is a line of text without blanks around it."""
    is_line = isinstance(value, str) and value.splitlines() == [value] == [value.strip()]
    return is_line and not re.search("[\ud800-\udfff]", value)


def photo_of(name: Any) -> Any:
    """The parts of an image name, relative to the folder of the photos, or NOTHING."""
    if not isinstance(name, str) or not name.strip() or re.search("[\0\ud800-\udfff]", name):
        return NOTHING
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")]
    if name[0] in "/\\" or re.match("[A-Za-z]:", name) or ".." in parts or not parts:
        return NOTHING
    return tuple(parts)


def annotations_of(document: Any) -> Any:
    """(labels, names, rows of 0 and 1) in the layout of the reference implementation, or NOTHING."""
    if not isinstance(document, dict):
        return NOTHING
    labels, samples = document.get("labels"), document.get("samples")
    if not isinstance(labels, list) or not isinstance(samples, list) or not labels or not samples:
        return NOTHING
    if not all(map(is_label, labels)) or len(set(labels)) < len(labels):
        return NOTHING
    names, rows, photos = [], [], []
    for sample in samples:
        if not isinstance(sample, dict) or not isinstance(sample.get("image_labels"), list):
            return NOTHING
        if not all(isinstance(label, str) and label in labels for label in sample["image_labels"]):
            return NOTHING
        names.append(sample.get("image_name"))
        photos.append(photo_of(names[-1]))
        rows.append([int(label in sample["image_labels"]) for label in labels])
    if NOTHING in photos or len(set(photos)) < len(photos):
        return NOTHING
    return labels, names, rows
