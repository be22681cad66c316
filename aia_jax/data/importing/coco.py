"""Reads labels from COCO's JSON."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aia_jax.data.importing.labelled_photos import LabelList, LabelRow
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json

_COCO = (
    '{"images": [{"id": 1, "file_name": "a.jpg"}, ...], "annotations": [{"image_id": 1, "category_id": 1}, ...], '
    '"categories": [{"id": 1, "name": "sky"}, ...]}'
)
_COCO_FIELDS = {"images": ("id", "file_name"), "annotations": ("image_id", "category_id"), "categories": ("id", "name")}


def read_coco(path: Path) -> LabelList:
    """Reads COCO's JSON. The labels of a photo are the category names of its annotations, without repeats.

    Raises:
        InputError: the file is not JSON in COCO's layout.
    """
    document = read_json(path, f"COCO's {_COCO}")
    for field in _COCO_FIELDS:
        if not isinstance(document, dict) or not isinstance(document.get(field), list):
            raise InputError(f"{path} has no list {field!r}; expected COCO's {_COCO}")
    problems: list[str] = []
    names, files = (_by_id(path, document, field, problems) for field in ("categories", "images"))
    labels: dict[Any, dict[str, None]] = {}
    for where, (image, category) in _fields(path, document, "annotations", problems):
        for field, number, known in (("image_id", image, files), ("category_id", category, names)):
            if number not in known:
                problems.append(f"{where}.{field}: {number!r:.40} is an unknown id")
        if image in files and category in names:
            labels.setdefault(image, {})[names[category][1]] = None
    rows = tuple(LabelRow(where, file, tuple(labels.get(image, ()))) for image, (where, file) in files.items())
    understood = f"{path}: COCO's layout, {len(document['annotations']):,} annotations of {len(names):,} categories"
    return LabelList(rows, understood, tuple(problems))


def _by_id(path: Path, document: dict, field: str, problems: list[str]) -> dict[Any, tuple[str, str]]:
    """Returns `{id: (place in the file, name)}` for the list `document[field]`. Appends lines to `problems`."""
    found: dict[Any, tuple[str, str]] = {}
    for where, (number, text) in _fields(path, document, field, problems):
        if not isinstance(text, str):
            problems.append(f"{where}.{_COCO_FIELDS[field][1]}: must be a string, found {text!r:.40}")
        elif found.setdefault(number, (where, text))[0] != where:
            problems.append(f"{where}.id: {number!r:.40} is already the id of {found[number][0]}")
    return found


def _fields(path: Path, document: dict, field: str, problems: list[str]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yields the place and the two values of `_COCO_FIELDS` of each valid entry in the list `document[field]`."""
    wanted = _COCO_FIELDS[field]
    for index, entry in enumerate(document[field]):
        where = f"{path.name}: {field}[{index}]"
        lacking = [name for name in wanted if not isinstance(entry, dict) or name not in entry]
        if lacking:
            problems.append(f"{where} has no {' and no '.join(lacking)}")
            continue
        bad = [name for name in wanted if name.endswith("id") and not isinstance(entry[name], int | str)]
        if bad:
            problems.append(f"{where}.{bad[0]}: must be a number or a string, found {entry[bad[0]]!r:.40}")
        else:
            yield where, (entry[wanted[0]], entry[wanted[1]])
