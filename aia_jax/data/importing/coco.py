"""Reads labels from COCO's JSON."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aia_jax.data.importing.labelled_photos import LabelList, LabelRow, leave_out_different
from aia_jax.utils.errors import InputError

_COCO = (
    '{"images": [{"id": 1, "file_name": "a.jpg"}, ...], "annotations": [{"image_id": 1, "category_id": 1}, ...], '
    '"categories": [{"id": 1, "name": "sky"}, ...]}'
)
_REJECTED = "neg_category_ids"  # field of LVIS: categories that the image does not have
_COCO_FIELDS = {"images": ("id", "file_name"), "annotations": ("image_id", "category_id"), "categories": ("id", "name")}


def read_coco(path: Path, document: dict[str, Any]) -> LabelList:
    """Reads COCO's JSON. The labels of a photo are the category names of its annotations, without repeats.

    Args:
        document: the content of the file `path`.

    Raises:
        InputError: the document is not in COCO's layout, or has no labels.
    """
    problems: list[str] = []
    names, files, found = _read_annotations(path, document, problems)
    if document["images"] and not document["annotations"]:
        count = f"{len(document['images']):,} images, {len(document['categories']):,} categories and no annotations"
        raise InputError(
            f"{path} is COCO's JSON with {count}. CVAT leaves tags out of this format: export 'CVAT for images 1.1' "
            "instead. The files of COCO's test images have no labels"
        )
    labels: dict[Any, dict[str, None]] = {}
    for image, category in found:
        labels.setdefault(image, {})[names[category][1]] = None
    used = {category for _, category in found}
    rows = tuple(LabelRow(where, file, tuple(labels.get(image, ()))) for image, (where, file) in files.items())
    understood = f"{path}: COCO's layout, {len(document['annotations']):,} annotations of {len(used):,} categories"
    understood += f" ({len(names) - len(used):,} more are not used)" * (len(used) < len(names))
    given = (entry.get("attributes") for entry in document["annotations"] if isinstance(entry, dict))
    attributes = dict.fromkeys(name for fields in given if isinstance(fields, dict) for name in fields)
    unused = [f"attributes {', '.join(attributes)}"] if attributes else []
    unused += [_REJECTED] * any(_REJECTED in image for image in document["images"] if isinstance(image, dict))
    understood += f", not used: {', '.join(unused)}" if unused else ""
    understood += f"; {len(files) - len(labels):,} of {len(files):,} images have none"
    return LabelList(leave_out_different(rows, problems), understood, tuple(problems))


def read_coco_answers(
    path: Path, document: dict[str, Any], problems: list[str]
) -> list[tuple[str, str, dict[str, bool]]]:
    """Reads COCO's JSON as answers: annotations confirm labels, and `neg_category_ids` of images reject labels.

    Appends a line to `problems` for each entry that cannot be used.

    Returns:
        For each image with an answer: its place in the file, its file name, and `{label: answer}`.

    Raises:
        InputError: the document is not in COCO's layout.
    """
    names, files, found = _read_annotations(path, document, problems)
    by_text = {str(number): name for number, (_, name) in names.items()}
    answers: dict[Any, dict[str, bool]] = {image: {} for image in files}
    for image, category in found:
        answers[image][names[category][1]] = True
    places = {where: answers[image] for image, (where, _) in files.items()}
    for index, image in enumerate(document["images"]):
        where = f"{path.name}: images[{index}]"
        rejected = image.get(_REJECTED) or () if where in places else ()
        if not isinstance(rejected, list | tuple):
            problems.append(f"{where}.{_REJECTED}: must be a list, found {rejected!r:.40}")
            continue
        for category in rejected:
            label = by_text.get(str(category))
            if label is None:
                problems.append(f"{where}.{_REJECTED}: {category!r:.40} is an unknown id")
            elif places[where].setdefault(label, False):
                problems.append(f"{where}.{_REJECTED}: the image also has an annotation of {label!r:.80}")
                del places[where][label]
    return [(where, name, answers[image]) for image, (where, name) in files.items() if answers[image]]


def _read_annotations(
    path: Path, document: dict[str, Any], problems: list[str]
) -> tuple[dict[Any, tuple[str, str]], dict[Any, tuple[str, str]], list[tuple[Any, Any]]]:
    """Checks the document. Returns categories and images as `_by_id` does, and image and category of each annotation.

    Raises InputError if the document is not in COCO's layout, or its annotations are no labels.
    """
    for field in _COCO_FIELDS:
        if not isinstance(document.get(field), list):
            raise InputError(f"{path} has no list {field!r}; expected COCO's {_COCO}")
    annotations = [entry for entry in document["annotations"] if isinstance(entry, dict)]
    if any(entry.get("score") not in (None, 1) for entry in annotations):
        raise InputError(f"{path}: annotations have a score, so they are predictions; remove wrong ones, and scores")
    if any(entry.get("ignore") for entry in annotations):
        raise InputError(f'{path}: some annotations say "ignore"; remove them or, if they are labels, the field ignore')
    names, files = (_by_id(path, document, field, problems) for field in ("categories", "images"))
    same_names, same_files = ({str(number): number for number in known} for known in (names, files))
    found = []
    used: dict[str, Any] = {}  # from the name of each category with annotations to its id
    for where, (image, category) in _fields(path, document, "annotations", problems):
        image = image if image in files else same_files.get(str(image), image)  # "1" for 1, unless both are ids
        category = category if category in names else same_names.get(str(category), category)
        for field, number, known in (("image_id", image, files), ("category_id", category, names)):
            if number not in known:
                problems.append(f"{where}.{field}: {number!r:.40} is an unknown id")
        if image in files and category in names:
            name = names[category][1]
            if used.setdefault(name, category) != category:
                same = f"categories {used[name]} and {category} have the same name, {name!r}"
                raise InputError(f"{path}: {same}; rename one of them, or use one id")
            found.append((image, category))
    return names, files, found


def _by_id(path: Path, document: dict, field: str, problems: list[str]) -> dict[Any, tuple[str, str]]:
    """Returns `{id: (place in the file, name)}` for the list `document[field]`. Appends lines to `problems`."""
    found: dict[Any, tuple[str, str]] = {}
    for where, (number, text) in _fields(path, document, field, problems):
        text = str(text) if type(text) is int else text  # some tools have categories such as 1, 2, 3
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
        if field == "images" and isinstance(entry, dict) and "coco_url" in entry:  # LVIS has no file_name
            entry = {"file_name": entry["coco_url"], **entry}
        lacking = [name for name in wanted if not isinstance(entry, dict) or name not in entry]
        if lacking:
            problems.append(f"{where} has no {' and no '.join(lacking)}")
            continue
        bad = [name for name in wanted if name.endswith("id") and not isinstance(entry[name], int | float | str)]
        if bad:
            problems.append(f"{where}.{bad[0]}: must be a number or a string, found {entry[bad[0]]!r:.40}")
        else:
            yield where, (entry[wanted[0]], entry[wanted[1]])
