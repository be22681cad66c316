"""Reads labels from JSON, JSON lines and XML of annotation tools. Formats that are not read are named and refused."""

import io
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from aia_jax.data.importing.coco import read_coco
from aia_jax.data.importing.label_names import WEIGHTS, label_names
from aia_jax.data.importing.label_tables import select_records
from aia_jax.data.importing.labelled_photos import SPLIT_NAMES, LabelList, LabelRow, leave_out_different
from aia_jax.data.photo_files import SUFFIXES
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json, read_text

_EXPECTED = '[{"image": "a.jpg", "labels": ["sky", "sea"]}, ...] or the export of a known tool'
_PHOTOS = ("image", "file_name", "filename", "image_name", "image_path", "filepath", "file_path", "file", "path")
_PHOTOS += ("photo", "img", "image_url", "imageGcsUri", "url", "name", "image_id")
_ONE = ("label", "tag", "keyword", "class", "category", "choice", "classificationAnnotation")
_SEVERAL = ("labels", "image_labels", "tags", "keywords", "classes", "categories", "choices")
_SEVERAL += ("classificationAnnotations",)
_SPLITS = ("split", "subset", "partition")
_INSTEAD = "export COCO's JSON from the tool, or write a table image,labels"
_ROWS = '; expected an object for each photo, as DataFrame.to_json(orient="records") writes'
_CAPTIONS = "captions: captions are for retrieval, not for labels; see docs/retrieval.md"
_MOST_XML, _DEEPEST_XML = 100_000_000, 100  # bytes of a file, and elements inside each other
_REFUSED = {  # fields by which a format is known: its name, and what to do
    ("labels", "samples"): "imported data of this project: train with --config.data.root set to its folder",
    ("samples",): "samples.json of FiftyOne: export a FiftyOneImageClassificationDataset, and give its labels.json",
    ("_via_img_metadata",): f"a project of VGG Image Annotator: {_INSTEAD}",
    ("filename", "regions"): f"JSON of VGG Image Annotator: {_INSTEAD}",
    ("categories", "items"): "JSON of Datumaro: export 'CVAT for images 1.1' from CVAT",
    ("assets",): "a project of VoTT: export CSV from VoTT",
    ("shapes", "imagePath"): f"JSON of LabelMe: {_INSTEAD}",
    ("data_row",): f"JSON of Labelbox: {_INSTEAD}",
    ("Labeled Data",): f"JSON of Labelbox: {_INSTEAD}",
    ("result", "task"): "one annotation of Label Studio's storage: export the project as JSON",
    (
        "images",
        "label",
        "answer",
    ): "the answers of a review, which leave most labels open: `aia review` trains with them",
    ("segments_info",): "COCO's panoptic segmentation: give COCO's file of instances",
    ("sentences",): _CAPTIONS,
    ("caption",): _CAPTIONS,
}


def read_json_labels(
    path: Path, *, photo_column: str = "", label_column: str = "", rows: Sequence = (), ignore_columns: Sequence = ()
) -> LabelList:
    """Reads JSON of COCO, Label Studio or FiftyOne; objects in a list or in lines; or names to labels.

    Args:
        photo_column, label_column: fields of the objects in a list or in lines, if they have other names.
        rows, ignore_columns: see `read_table`; for objects in a list or in lines.

    Raises:
        InputError: the file is not JSON, is in no known format, or in one that is not read.
    """
    document = read_json(path, _EXPECTED, lines=True)
    if not isinstance(document, dict | list) or not document:
        raise InputError(f"{path} holds no labels; expected {_EXPECTED}")
    if isinstance(document, dict):
        lists = [value for value in document.values() if isinstance(value, list) and value and _is_object(value[0])]
        images = document.get("images") if "categories" in document else None
        _refuse(path, document, *(value[0] for value in lists if value is not images))
        if document.keys() <= {"classes", "labels"} and _is_object(document.get("labels")):
            classes, labels = document.get("classes") or (), document["labels"]
            read, document = partial(_read_pairs, "FiftyOne's labels", classes), labels
        elif len(document.keys() & {"images", "annotations", "categories"}) > 1:
            read = read_coco
        elif any(name in document for name in (*_PHOTOS, photo_column)):
            read, document = None, [document]
        elif len(lists) == 1:
            read, document = None, lists[0]
        else:
            _refuse(path, next(iter(document.values())))
            read = _read_mapping
        if read and (photo_column or label_column or rows or ignore_columns):
            flags = "--photo_column, --label_column, --rows and --ignore_columns"
            raise InputError(f"{flags} go with a table or a list of objects, not with {path}")
        if read:
            return read(path, document)
    first = document[0]
    if _is_object(first) and "data" in first and ("annotations" in first or "completions" in first):
        if rows or ignore_columns:
            raise InputError(f"--rows and --ignore_columns go with a table; {path} is Label Studio's JSON")
        return _read_label_studio(path, document, photo_column, label_column)
    _refuse(path, first)
    return _read_records(path, document, photo_column, label_column, rows, ignore_columns)


def read_xml_labels(path: Path) -> LabelList:
    """Reads "CVAT for images". The labels of a photo are those of its tags and shapes.

    Raises:
        InputError: the file is not XML, is in another format, has a document type definition, or exceeds `_MOST_XML` or
            `_DEEPEST_XML`. The message says what to do.
    """
    root = _parse_xml(path)
    if root.tag != "annotations" or root.find("image") is None:
        raise InputError(f"{path} is not in the format 'CVAT for images 1.1', the only XML that is read; export that")

    def read(image: Element) -> tuple[str, tuple[str, ...], str]:
        labels = (shape.get("label", "") for shape in image if shape.get("label"))
        return image.attrib["name"], tuple(dict.fromkeys(labels)), SPLIT_NAMES.get(image.get("subset", "").lower(), "")

    images = ((f"{path.name}: image {image.get('id')}", image) for image in root.iterfind("image"))
    unused = {f"attribute {found.get('name')}": None for found in root.iterfind("image/*/attribute[@name]")}
    return _collect(path, "CVAT's XML, labels of tags and shapes", images, read, unused=unused)


def _parse_xml(path: Path) -> Element:
    size = path.stat().st_size
    if size > _MOST_XML:
        advice = "export each task or job on its own, and import the files one after the other"
        raise InputError(f"{path} has {size / 1e6:,.0f} MB; XML of at most {_MOST_XML / 1e6:,.0f} MB is read: {advice}")
    try:
        parsed, depth = ElementTree.iterparse(io.StringIO(read_text(path)), ("start", "end"), forbid_dtd=True), 0
        for event, _ in parsed:
            depth += 1 if event == "start" else -1
            if depth > _DEEPEST_XML:
                raise InputError(
                    f"{path} has more than {_DEEPEST_XML} elements inside each other; no known tool does so"
                )
    except ElementTree.ParseError as error:
        raise InputError(f"{path} is not XML: {error}") from None
    except DefusedXmlException:
        raise InputError(
            f"{path} has a document type definition (<!DOCTYPE ...>), which can be harmful; remove it"
        ) from None
    return parsed.root


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _refuse(path: Path, *values: Any) -> None:
    """Raises InputError if a value has the fields of a format that is not read."""
    for value in filter(_is_object, values):
        for fields, advice in _REFUSED.items():
            labelled = advice == _CAPTIONS and value.keys() & {*_ONE, *_SEVERAL, "category_id"}
            if value.keys() >= set(fields) and not labelled:
                raise InputError(f"{path} is {advice}")


def _collect(
    path: Path, layout: str, entries: Iterable, read: Callable, unused: Collection[str] = (), one_each: bool = True
) -> LabelList:
    """Applies `read`, which returns photo, labels and optionally split or raises ValueError, to each entry.

    Args:
        entries: pairs of a place in the file and the argument of `read`.
        unused: fields and attributes that are not read.
        one_each: whether several entries of a photo must have the same labels.
    """
    rows: Sequence[LabelRow] = []
    problems: list[str] = []
    for where, entry in entries:
        try:
            row = LabelRow(where, *read(entry))
            if not isinstance(row.photo, str):
                raise ValueError(f"{row.photo!r:.60} is no name of a photo")
            rows.append(row)
        except ValueError as problem:
            problems.append(f"{where}: {problem}")
        except KeyError as error:
            problems.append(f"{where}: has no field {error}")
        except (AttributeError, IndexError, TypeError):
            problems.append(f"{where}: does not have the fields of {layout.split(',')[0]}")
    if not rows:
        raise InputError(f"{path}: no entry can be read as {layout}; the first: {'; '.join(problems[:1])}")
    bare = sum(not row.labels for row in rows)
    layout += f", not used: {', '.join(unused)}" if unused else ""
    understood = f"{path}: {layout}; {len(rows) + len(problems):,} entries, {bare:,} of them without labels"
    rows = leave_out_different(rows, problems) if one_each else rows
    return LabelList(tuple(rows), understood, tuple(problems))


def _read_mapping(path: Path, document: Mapping[str, Any]) -> LabelList:
    lists = all(isinstance(value, list) for value in document.values()) and any(document.values())
    if not lists and not all(name.lower().endswith(SUFFIXES) for name in document):
        raise InputError(f"{path} has the fields {', '.join(document):.80}, of no known tool; expected {_EXPECTED}")
    return _read_pairs("names of photos and their labels", (), path, document)


def _read_pairs(layout: str, classes: list | tuple, path: Path, labels: Mapping[str, Any]) -> LabelList:
    entries = ((f"{path.name}: {name!r:.60}", name) for name in labels)
    return _collect(path, layout, entries, lambda name: (name, label_names(labels[name], classes)))


def _read_label_studio(path: Path, tasks: list, photo_column: str, label_column: str) -> LabelList:
    controls: dict[tuple[str, str], None] = {}  # names of questions, and their kinds

    def labels_of(result: list, field: str) -> Iterator[str]:
        for item in result:
            kind, question = item.get("type", ""), item.get("from_name", "")
            if label_column not in ("", question) or field not in ("", item.get("to_name")):
                continue
            if kind == "choices" or kind.endswith("labels"):
                controls[question, kind] = None
                yield from label_names(item["value"][kind])
            elif kind == "taxonomy":
                raise ValueError("a taxonomy is not read; export a table and write image,labels")

    def read(task: dict) -> tuple[str, tuple[str, ...]]:
        done = [made for made in task.get("annotations", task.get("completions")) if not made.get("was_cancelled")]
        if not done:
            raise ValueError("is not annotated (predictions and skipped annotations are no labels)")
        done = [made for made in done if made.get("ground_truth")] or done
        data = task["data"]
        texts = {name: value.lower().split("?") for name, value in data.items() if isinstance(value, str)}
        photos = [name for name, parts in texts.items() if any(part.endswith(SUFFIXES) for part in parts)]
        named = {item.get("to_name") for made in done for item in made["result"]}.intersection(photos)
        if not photo_column and len(named or photos) > 1:
            raise ValueError(f"holds several photos: {', '.join(photos)}; --photo_column chooses one")
        usual = [name for name in _PHOTOS if name in data] or list(texts)
        field = photo_column or [*named, *photos, *usual][0]
        answers = {tuple(sorted(set(labels_of(made["result"], field if named else "")))) for made in done}
        if len(answers) > 1:
            listed = " / ".join(sorted(map(", ".join, answers)))
            raise ValueError(f"its annotations differ: {listed:.80}; keep one, or mark one as ground truth")
        return data[field], answers.pop()

    numbers = (task.get("id", index) if _is_object(task) else index for index, task in enumerate(tasks))
    entries = ((f"{path.name}: task {number}", task) for number, task in zip(numbers, tasks, strict=True))
    found = _collect(path, "Label Studio's JSON", entries, read)
    questions = dict.fromkeys(question for question, _ in controls if question)
    if len(questions) > 1 or (label_column and not controls):
        listed = f"several questions: {', '.join(questions)}" if questions else f"no question {label_column!r}"
        raise InputError(f"{path} has {listed}; --label_column chooses one by its name")
    listed = ", ".join(f"{question!r} ({kind})" for question, kind in controls)
    understood = f"{found.understood}; labels of {listed or 'nothing'}"
    return LabelList(found.rows, understood, found.problems)


def _read_records(
    path: Path, records: list, photo_column: str, label_column: str, rows: Sequence[str], ignored: Sequence[str]
) -> LabelList:
    """Reads objects with a field of the photo and a field of its labels, in a list or in lines."""
    fields = dict.fromkeys(field for record in records if _is_object(record) for field in record)
    photo = photo_column or next((field for field in _PHOTOS if field in fields), "")
    known = [label_column] if label_column else [field for field in (*_SEVERAL, *_ONE) if field in fields]
    for name, flag, what in ((photo, "--photo_column", "photo"), ("".join(known[:1]), "--label_column", "labels")):
        if not name or name not in fields:
            listed = ", ".join(fields) or "none"
            raise InputError(
                f"{path}: no field of the {what} among {listed:.200}; {flag} names it; expected {_EXPECTED}"
            )
    if absent := [name for name in ignored if name not in fields]:
        raise InputError(f"{path} has no field {absent[0]!r} (--ignore_columns)")
    if len(known) > 1:
        raise InputError(f"{path} has several fields of labels: {', '.join(known)}; --label_column chooses one")
    split, label = next((field for field in _SPLITS if field in fields), ""), known[0]

    def read(record: dict) -> tuple[str, tuple[str, ...], str]:
        name, value = record[photo], record.get(label, []) if "annotator" in record else record[label]
        name = name.get("path") if _is_object(name) else name
        if not isinstance(name, str):
            raise ValueError(f"{record[photo]!r:.60} is no name of a photo{_ROWS}")
        if isinstance(value, str) and label not in _ONE and any(sign in value for sign in "|;, "):
            raise ValueError(f'{label} {value!r:.60} can be one label or several; write a list such as ["sky", "sea"]')
        for field in unused:
            if isinstance(record.get(field), list) and any(weight in field.lower() for weight in WEIGHTS):
                raise ValueError(f"the labels have {field}; keep those that hold, or give --ignore_columns {field}")
        part = str(record.get(split) or "").lower()
        if part and part not in SPLIT_NAMES:
            raise ValueError(f"split {part!r:.40} is unknown; known: {', '.join(SPLIT_NAMES)}")
        return name, label_names(value), SPLIT_NAMES.get(part, "")

    unused = [field for field in fields if field not in (photo, label, split, *ignored)]
    kept = select_records(path, records, (photo, label, *(field for field in unused if field != "id")), rows)
    layout = f"objects, photos in field {photo!r}, labels in field {label!r}" + (split and f", splits in {split!r}")
    entries = ((f"{path.name}: entry {index}", record) for index, record in kept)
    return _collect(path, layout, entries, read, unused=[*unused, *ignored], one_each="annotator" in fields)
