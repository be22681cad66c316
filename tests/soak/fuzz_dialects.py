"""Tables and files of labels with known content, written as other programs write them.

The product must read the known content, or refuse the input. Nothing else is accepted.
"""

import csv
import io
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from aia_jax.data.importing.label_checks import unify_labels
from aia_jax.data.importing.label_files import read_labels_of
from aia_jax.data.importing.labelled_photos import merge_label_rows
from aia_jax.utils.errors import InputError
from tests.soak import plain
from tests.soak.fuzz_surroundings import JUNK, PHOTOS
from tests.soak.mutation import damaged, write_files

Truth = dict[str, set[str]]
_PLAIN = ("sky", "water", "tree", "dog", "cat", "car", "beach", "straße", "日本", "Zürich")
_HARD = ("teddy bear", "golden gate", "polar bear", "bear", "rock & roll", "Smith, John", "a/b", "it's", "t-shirt")
_HARD += ("2019", "person (sitting)", "black;white", "5x5", "people|family", "C++", "No", "x", "1")
_INDEX, _NUMBERS = ("", "Unnamed: 0", "id", "#"), ("width", "height", "lead_time", "size_kb")
_FILLED = ("created_at", "comment", "author", "url", "md5", "country")
_WEIGHTS = ("Confidence", "confidence", "conf", "score", "probability", "present", "is_present", "verified", "valid")
_WEIGHTS += ("value", "exists", "positive")
_FLAGS = ("flag", "checked", "keep", "ok")
_NEGATIVES = ("IsAbsent", "absent", "negative", "is_negative", "rejected", "is_deleted", "wrong", "skip", "ignore")
_STATES = (("status", "accepted", "rejected"), ("state", "approved", "declined"), ("review", "ok", "bad"))
_STATES += (("verification", "yes", "no"), ("presence", "present", "absent"), ("annotation_status", "done", "deleted"))


def dialects(rng: random.Random, folder: Path) -> None:
    """A table of labels in one of many dialects."""
    truth = _truth(rng, hard=rng.random() < 0.4)
    path = folder / f"labels.{rng.choice(('csv', 'csv', 'tsv', 'txt'))}"
    layout = rng.choice((_separated, _separated, _lists, _one_per_row, _one_per_row, _weighted, _indicators))
    header, rows, options = layout(truth, rng)
    header, rows = _with_other_columns(header, rows, rng)
    truth = {name: labels for name, labels in truth.items() if any(name in row for row in rows)}
    data, options = _encoded(_table_text(header, rows, rng), options, rng)
    write_files({path.name: data}, folder)
    _expect(truth, path, folder, options)


def exports(rng: random.Random, folder: Path) -> None:
    """A file of labels as an annotation tool exports it, sometimes damaged."""
    truth = _truth(rng, hard=rng.random() < 0.4)
    make = rng.choice((_coco, _coco, _label_studio, _label_studio, _cvat, _fiftyone, _records, _mapping))
    name, content = make(truth, rng)
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=rng.random() < 0.5)
    data = text.encode(rng.choice(("utf-8", "utf-8", "utf-8-sig")))
    broken = damaged(data, rng) if rng.random() < 0.3 else data
    write_files({name: broken}, folder)
    _expect(truth if broken == data else None, folder / name, folder, {})


def split_exports(rng: random.Random, folder: Path) -> None:
    """Folders of splits that hold photos and a file of labels (Roboflow, Hugging Face), or folders of labels."""
    truth = _truth(rng, hard=rng.random() < 0.3)
    make = rng.choice((_roboflow_table, _roboflow_coco, _metadata, _metadata, _label_folders))
    photos, files = make(truth, rng)
    write_files(files, folder / "data")
    junk = dict.fromkeys(rng.sample(JUNK, rng.randrange(4)), b"x")
    write_files({f"data/{name}": data for name, data in junk.items()}, folder)
    write_files(dict.fromkeys(photos, b"photo"), folder / "data")
    with plain.may_refuse():
        found = _merged(folder / "data", folder / "data", {})
    assert found == photos, (found, photos)


def _truth(rng: random.Random, hard: bool) -> Truth:
    """Photos and their labels. Most labels have two or more photos."""
    labels = rng.sample(_PLAIN, rng.randrange(3, 6)) + (rng.sample(_HARD, rng.randrange(1, 4)) if hard else [])
    photos = rng.sample(PHOTOS, rng.randrange(4, len(PHOTOS)))
    most = rng.choice((1, 2, 3))
    return {name: set(rng.sample(labels, rng.randrange(rng.random() > 0.1, most + 1))) for name in photos}


def _expect(truth: Truth | None, path: Path, folder: Path, options: dict[str, Any]) -> None:
    """Checks that the labels of a file are the truth, or that the file is refused. None: any labels may be read."""
    write_files(dict.fromkeys(PHOTOS, b"photo"), folder / "photos")
    with plain.may_refuse(path.name, "--"):
        found = _merged(path, folder / "photos", options)
    if truth is None:
        assert all(plain.is_label(label) for labels in found.values() for label in labels), found
    else:
        assert found == truth, (found, truth)


def _merged(path: Path, photos: Path, options: dict[str, Any]) -> Truth:
    """The labels that `aia import-labels` would write."""
    listed = read_labels_of(path, **options)
    problems, rows = list(listed.problems), listed.rows
    rows, _ = unify_labels(rows, None, problems, accept=False)
    merged = merge_label_rows(rows, photos, None, problems)
    if problems or not merged:
        raise InputError(f"{path}: " + "; ".join(problems))
    return {row.photo: set(row.labels) for row in merged}


def _photo_header(rng: random.Random) -> str:
    return rng.choice(("image", "filename", "file_name", "Image", "path", "image_name", "FILE", "image_path"))


def _separated(truth: Truth, rng: random.Random) -> tuple[list[str], list[list[str]], dict[str, Any]]:
    signs = [sign for sign in ("|", ";", ",", ", ", "; ", " | ", " ") if _fits(truth, sign)]  # else there is no truth
    if not signs:
        return _lists(truth, rng)
    sign = rng.choice(signs)
    if all(len(labels) < 2 for labels in truth.values()):
        return _one_per_row(truth, rng)
    names = ("labels", "tags", "keywords", "Labels", "classes", *(("label",) if sign != " " else ()))
    header = [_photo_header(rng), rng.choice(names)]
    quote = '"' if sign.strip() in (",", ";") and rng.random() < 0.1 else ""
    rows = [
        [name, sign.join(f"{quote}{label}{quote}" for label in _shuffled(those, rng))] for name, those in truth.items()
    ]
    chosen = {"separator": sign.strip() or " "} if rng.random() < 0.2 else {}
    return header, rows, chosen


def _plain(truth: Truth, rng: random.Random) -> str:
    """A name for a column of single labels. A plural name would make "|" and ";" separators."""
    several = ("labels", "tags") if _fits(truth, "|") and _fits(truth, ";") else ()
    return rng.choice(("label", "tag", "class", "LabelName", "category", *several))


def _fits(truth: Truth, sign: str) -> bool:
    """Whether no label contains the separator or, with spaces, any separator."""
    return not any(set(label) & set(sign.strip() or " |;,") for labels in truth.values() for label in labels)


def _lists(truth: Truth, rng: random.Random) -> tuple[list[str], list[list[str]], dict[str, Any]]:
    kind = rng.randrange(5)

    def cell(labels: list[str]) -> str:
        if kind == 4:
            return labels[0] if len(labels) == 1 else json.dumps({"choices": labels}) if labels else ""
        single = json.dumps(labels, ensure_ascii=False)
        return (single, repr(labels), json.dumps([{"name": label} for label in labels]), str(np.array(labels)))[kind]

    header = [_photo_header(rng), "choice" if kind == 4 else rng.choice(("labels", "choice", "tags", "label"))]
    return header, [[name, cell(_shuffled(labels, rng))] for name, labels in truth.items()], {}


def _one_per_row(truth: Truth, rng: random.Random) -> tuple[list[str], list[list[str]], dict[str, Any]]:
    header = [_photo_header(rng), _plain(truth, rng)]
    rows = [[name, label] for name, labels in truth.items() for label in _shuffled(labels, rng)]
    rng.shuffle(rows) if rng.random() < 0.3 else None
    return header, rows, {}


def _weighted(truth: Truth, rng: random.Random) -> tuple[list[str], list[list[str]], dict[str, Any]]:
    """Rows of labels that a photo has, and of labels that it does not have, by one more column."""
    header, rows, _ = _one_per_row(truth, rng)
    labels = sorted(set().union(*truth.values()))
    kind = rng.randrange(4)
    if kind == 0:
        name, yes, no = rng.choice(_STATES)
    elif kind == 1:
        name, (yes, no) = rng.choice(_NEGATIVES), rng.choice((("0", "1"), ("False", "True"), ("no", "yes"), ("", "x")))
    else:
        signs = (("1", "0"), ("True", "False"), ("1.0", "0.0"), ("1", "-1"), ("yes", "no"), ("0.93", "0.07"), ("x", ""))
        name, (yes, no) = rng.choice((*_WEIGHTS, *_FLAGS)), rng.choice(signs)
        if name in _FLAGS:
            yes, no = "1", "0"
    absent = [
        [photo, label, no] for photo in truth for label in _shuffled(labels, rng)[:2] if label not in truth[photo]
    ]
    rows = [[*row, yes] for row in rows] + absent
    rng.shuffle(rows)
    for photo in [photo for photo, labels_there in truth.items() if not labels_there]:
        del truth[photo]  # it has only rows that do not count
    options = {"rows": [f"{name} = {yes}" if yes else f"{name} != {no}"]} if absent and rng.random() < 0.2 else {}
    return [*header, name], rows, options


def _indicators(truth: Truth, rng: random.Random) -> tuple[list[str], list[list[str]], dict[str, Any]]:
    labels = _shuffled(set().union(*truth.values()) or {"sky"}, rng)
    marks = (
        ("1", "0"),
        ("1.0", "0.0"),
        ("True", "False"),
        ("yes", "no"),
        ("x", ""),
        ("1", ""),
        ("1", "-1"),
        ("TRUE", "FALSE"),
    )
    yes, no = rng.choice(marks)
    rows = [[name, *(yes if label in those else no for label in labels)] for name, those in truth.items()]
    return [_photo_header(rng), *labels], rows, {}


def _with_other_columns(
    header: list[str], rows: list[list[str]], rng: random.Random
) -> tuple[list[str], list[list[str]]]:
    for _ in range(rng.choice((0, 0, 1, 2))):
        name = rng.choice((*_INDEX, *_NUMBERS, *_FILLED))
        if name in header:
            continue
        place = 0 if name in _INDEX else rng.randrange(1, len(header) + 1)
        texts = (
            [str(n) for n in range(3, len(rows) + 3)]
            if name in _NUMBERS
            else [f"2024-01-{n + 1:02} x" for n in range(len(rows))]
        )
        texts = [str(n) for n in range(len(rows))] if name in _INDEX else texts
        header = [*header[:place], name, *header[place:]]
        rows = [[*row[:place], text, *row[place:]] for row, text in zip(rows, texts, strict=True)]
    return header, rows


def _table_text(header: list[str], rows: list[list[str]], rng: random.Random) -> str:
    delimiter = rng.choice((",", ",", ";", "\t", "|"))
    stream, ending = io.StringIO(newline=""), rng.choice(("\n", "\n", "\r\n", "\r"))
    quoting = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC))
    writer = csv.writer(stream, delimiter=delimiter, lineterminator=ending, quoting=quoting)
    extra, padding = [""] * rng.choice((0, 0, 0, 2)), [""] * len(header)
    blank = rng.choice((0, 0, 2))
    writer.writerows([*extra[:0], [*header, *extra], *([*row, *extra] for row in rows), *[[*padding, *extra]] * blank])
    first = rng.choice(("", "", "", f"sep={delimiter}{ending}", ending))
    return first + stream.getvalue() + ending * rng.choice((0, 0, 1))


def _encoded(text: str, options: dict[str, Any], rng: random.Random) -> tuple[bytes, dict[str, Any]]:
    name = rng.choice(
        ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252", "mac_roman", "shift_jis")
    )
    try:
        data = text.encode(name)
    except UnicodeError:
        return text.encode(), options
    named = rng.random() < 0.4 and name != "utf-16-le"
    return data, {**options, "encoding": name} if named else options


def _shuffled(labels: Iterable[str], rng: random.Random) -> list[str]:
    return rng.sample(sorted(labels), len(labels))


def _written_name(name: str, rng: random.Random, style: int) -> str:
    """The name of a photo, as tools write it."""
    styles = (name, f"./{name}", name.replace("/", "\\"), f"/data/upload/3/{name}", name.replace(" ", "%20"))
    return (*styles, f"C:\\data\\{name}".replace("/", "\\"), f"images/{name}")[style]


def _coco(truth: Truth, rng: random.Random) -> tuple[str, Any]:
    labels = _shuffled(set().union(*truth.values()) | {"unused"}, rng)
    kind, style = rng.randrange(4), rng.choice((0, 0, 1, 2, 3, 4, 5, 6))
    ids = {item: (n + 1, str(n + 1), f"{n:04}", f"id-{n}")[kind] for n, item in enumerate((*truth, *labels))}
    marks = [
        {"id": n, "image_id": ids[name], "category_id": ids[label], "bbox": [0, 0, 1, 1]}
        for n, (name, label) in enumerate((name, label) for name, those in truth.items() for label in those)
    ]
    marks += rng.sample(marks, min(2, len(marks)))
    rng.shuffle(marks)
    images = [{"id": ids[name], "file_name": _written_name(name, rng, style), "width": 1} for name in truth]
    categories = [{"id": ids[label], "name": label, "supercategory": "x"} for label in labels]
    return "instances_default.json", {"info": {}, "images": images, "annotations": marks, "categories": categories}


def _label_studio(truth: Truth, rng: random.Random) -> tuple[str, Any]:
    style, short = rng.choice((0, 0, 3)), rng.random() < 0.4
    tasks = []
    for number, (name, labels) in enumerate(truth.items()):
        photo, choices = _written_name(name, rng, style), _shuffled(labels, rng)
        if short:
            tasks.append({"id": number, "image": photo, "annotator": 1, "annotation_id": number, "lead_time": 1.5})
            if choices:
                tasks[-1]["choice"] = choices[0] if len(choices) == 1 else {"choices": choices}
            continue
        result = {"type": "choices", "from_name": "choice", "to_name": "image", "value": {"choices": choices}}
        made = [{"id": number, "result": [result] if choices else [], "was_cancelled": False}]
        if rng.random() < 0.2:
            made.append({"id": -number, "result": [{**result, "value": {"choices": ["sky"]}}], "was_cancelled": True})
        predictions = [{"result": [{**result, "value": {"choices": ["car"]}}], "score": 0.4}] * (rng.random() < 0.3)
        tasks.append({"id": number, "data": {"image": photo}, "annotations": made, "predictions": predictions})
    if rng.random() < 0.3:
        return "project.jsonl", "\n".join(json.dumps(task) for task in tasks) + "\n"
    return "project.json", tasks


def _cvat(truth: Truth, rng: random.Random) -> tuple[str, Any]:
    from xml.sax.saxutils import escape, quoteattr

    kind, images = rng.choice(("tag", "box")), []
    for number, (name, labels) in enumerate(truth.items()):
        place = ' xtl="0" ytl="0" xbr="1" ybr="1" occluded="0"' if kind == "box" else ""
        tags = "".join(
            f'<{kind} label={quoteattr(label)} source="manual"{place}></{kind}>' for label in _shuffled(labels, rng)
        )
        images.append(f'<image id="{number}" name={quoteattr(name)} width="4" height="4">{tags}</image>')
    known = "".join(f"<label><name>{escape(label)}</name></label>" for label in sorted(set().union(*truth.values())))
    meta = f"<meta><job><labels>{known}</labels></job></meta>"
    return (
        "annotations.xml",
        f'<?xml version="1.0"?>\n<annotations><version>1.1</version>{meta}{"".join(images)}</annotations>',
    )


def _fiftyone(truth: Truth, rng: random.Random) -> tuple[str, Any]:
    labels = _shuffled(set().union(*truth.values()), rng)
    if rng.random() < 0.4:  # the whole data set
        samples = [
            {"filepath": f"data/{name}", "labels": {"classifications": [{"label": label} for label in those]}}
            for name, those in truth.items()
        ]
        return "samples.json", {"samples": samples}
    numbers = rng.random() < 0.6
    found = {name: [labels.index(label) if numbers else label for label in those] for name, those in truth.items()}
    return "labels.json", {"classes": labels if numbers else None, "labels": found}


def _records(truth: Truth, rng: random.Random) -> tuple[str, Any]:
    photo, label = rng.choice(("image", "file_name", "path")), rng.choice(("labels", "tags", "classes"))
    records = [{photo: name, label: _shuffled(labels, rng), "width": 640} for name, labels in truth.items()]
    if rng.random() < 0.5:
        return rng.choice(("a.json", "a.jsonl", "metadata.jsonl")), "\n".join(map(json.dumps, records)) + "\n"
    return "a.json", rng.choice((records, {"data": records}))


def _mapping(truth: Truth, rng: random.Random) -> tuple[str, Any]:
    return "labels.json", {name: _shuffled(labels, rng) for name, labels in truth.items()}


def _in_splits(truth: Truth, rng: random.Random, names: tuple[str, ...]) -> dict[str, Truth]:
    chosen: dict[str, Truth] = {name: {} for name in names}
    for number, photo in enumerate(truth):
        chosen[names[number % len(names)]][photo] = truth[photo]
    return chosen


def _joined(parts: dict[str, Truth]) -> Truth:
    return {f"{split}/{name}": labels for split, part in parts.items() for name, labels in part.items()}


def _files_of(parts: dict[str, Truth], name: str, content: Callable[[Truth], str]) -> dict[str, bytes]:
    return {f"{split}/{name}": content(part).encode() for split, part in parts.items()}


def _rows_text(rows: list[list[str]]) -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(rows)
    return stream.getvalue()


def _roboflow_table(truth: Truth, rng: random.Random) -> tuple[Truth, dict[str, bytes]]:
    parts, labels = _in_splits(truth, rng, ("train", "valid", "test")), sorted(set().union(*truth.values()) or {"sky"})

    def content(part: Truth) -> str:
        sign = rng.choice((",", ", "))
        header = sign.join(["filename", *labels])
        return "\n".join(
            [
                header,
                *(sign.join([name, *(str(int(label in those)) for label in labels)]) for name, those in part.items()),
            ]
        )

    return _joined(parts), _files_of(parts, "_classes.csv", content)


def _roboflow_coco(truth: Truth, rng: random.Random) -> tuple[Truth, dict[str, bytes]]:
    parts = _in_splits(truth, rng, ("train", "valid"))

    def content(part: Truth) -> str:
        document = _coco(part, rng)[1]
        for image, name in zip(document["images"], part, strict=True):
            image["file_name"] = name
        return json.dumps(document)

    return _joined(parts), _files_of(parts, "_annotations.coco.json", content)


def _metadata(truth: Truth, rng: random.Random) -> tuple[Truth, dict[str, bytes]]:
    parts, lines = _in_splits(truth, rng, ("train", "test")), rng.random() < 0.6
    if rng.random() < 0.3:
        parts = {"": truth}

    def content(part: Truth) -> str:
        if lines:
            return "".join(
                json.dumps({"file_name": name, "labels": _shuffled(those, rng)}) + "\n" for name, those in part.items()
            )
        return _rows_text(
            [["file_name", "labels"], *([name, json.dumps(_shuffled(those, rng))] for name, those in part.items())]
        )

    files = _files_of(parts, f"metadata.{'jsonl' if lines else 'csv'}", content)
    return {name.lstrip("/"): those for name, those in _joined(parts).items()}, {
        name.lstrip("/"): data for name, data in files.items()
    }


def _label_folders(truth: Truth, rng: random.Random) -> tuple[Truth, dict[str, bytes]]:
    labels = [label for label in sorted(set().union(*truth.values())) if "/" not in label] or ["sky", "tree"]
    splits = rng.choice((("",), ("train", "test"), ("Train", "val", "test")))
    found = {}
    for number, name in enumerate(truth):
        label = labels[number % len(labels)]
        found["/".join(filter(None, (splits[number % len(splits)], label, name)))] = {label}
    return found, {}
