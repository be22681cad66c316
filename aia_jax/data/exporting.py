"""Writes predicted labels and people's answers for other programs: Label Studio, COCO's JSON, and a table of answers.

    label_studio.json    a list of tasks. `data.image` is the address of the photo on Label Studio's server.
                         `data.proposed` has the labels that a person rejects by not choosing them; Label Studio's
                         export keeps this list, but not the predictions
    label_studio.xml     the labeling interface of these tasks, for the settings of the project
    coco.json            annotations of whole photos, without `bbox`. Predictions have a `score`. Rejected labels are in
                         `neg_category_ids` of the image, as in LVIS
    CSV                  image,label,answer: a row per answer, which is "confirmed" or "rejected"

The JSON is ASCII and keeps any file name. Files are written atomically, photo by photo.
"""

import csv
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from urllib.parse import quote
from xml.etree import ElementTree

from aia_jax.data.image_decoding import image_size
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import atomic_path, write_bytes
from aia_jax.utils.messages import spreadsheet_path, spreadsheet_text

ANSWERS = {True: "confirmed", False: "rejected"}
PROPOSED = "proposed"
_MOST_INLINE = 60  # more choices are in a list with a search field
_NO_CHOICE = re.compile(r"\$[\w{\[]|[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class ExportedPhoto(NamedTuple):
    """A photo, its predicted labels and the answers of a person.

    Attributes:
        name: path relative to the folder of the photos.
        labels: pairs of a predicted label and its score, 0 to 1; None: the photo has no prediction.
        answers: whether each label that a person judged holds; None: the photo was not judged.
    """

    name: str
    labels: Sequence[tuple[str, float]] | None
    answers: Mapping[str, bool] | None = None


def photo_addresses(folder: Path) -> Callable[[str], str]:
    """Returns a function from a photo's name to its address on a server of Label Studio; see `server_settings`."""
    root = folder.resolve().name
    return lambda name: f"/data/local-files/?d={quote(os.fsencode(f'{root}/{name}'))}"


def table_name(name: str) -> str:
    """Returns the form of a photo's name in tables."""
    return spreadsheet_path(name).encode(errors="backslashreplace").decode()


def server_settings(folder: Path) -> str:
    """Returns one line about the settings with which Label Studio's server finds the photos of `folder`."""
    return (
        "Label Studio shows the photos if its server has LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
        f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={shlex.quote(str(folder.resolve().parent))}, and the project has the "
        f"source storage 'Local files' with the path {shlex.quote(str(folder.resolve()))}"
    )


def write_label_studio(
    path: Path, folder: Path, photos: Iterable[ExportedPhoto], labels: Sequence[str], model: str
) -> None:
    """Writes Label Studio's tasks to `path`, and their labeling interface beside it with the suffix .xml.

    The score of a prediction is the lowest score of its labels, since the prediction is right if all labels are.

    Args:
        folder: the folder of the photos.
        labels: all labels that a person can choose.
        model: name of the model that made the predictions.

    Raises:
        InputError: a label has characters that XML or Label Studio does not allow.
    """
    if bad := [label for label in labels if _NO_CHOICE.search(label)]:
        raise InputError(
            f"{path} cannot hold the label {bad[0]!r:.80}: Label Studio allows no control characters, and takes $ and "
            "the word after it for a field of the task; rename the label, or use another format"
        )
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image")
    layout = "inline" if len(labels) <= _MOST_INLINE else "select"
    choices = ElementTree.SubElement(view, "Choices", name="label", toName="image", choice="multiple", layout=layout)
    for label in labels:
        ElementTree.SubElement(choices, "Choice", value=label)
    ElementTree.indent(view)
    with atomic_path(path) as temporary, temporary.open("w", encoding="ascii") as file:
        address = photo_addresses(folder)
        _write_list(file, (_task(address(photo.name), photo, model) for photo in photos))
        file.write("\n")
    write_bytes(path.with_suffix(".xml"), ElementTree.tostring(view, encoding="utf-8") + b"\n")


def write_coco(
    path: Path, folder: Path, photos: Callable[[], Iterable[ExportedPhoto]], labels: Sequence[str]
) -> list[tuple[str, str]]:
    """Writes COCO's JSON to `path`. Widths and heights are those of the upright photos.

    Args:
        folder: the folder of the photos.
        photos: returns the photos, the same at each of two calls.
        labels: the categories.

    Returns:
        The name of each photo that is left out because its size cannot be read, and the reason.
    """
    problems: dict[str, str] = {}
    ids = {label: number for number, label in enumerate(labels, start=1)}

    def annotations() -> Iterator[dict[str, Any]]:
        found = (
            {"image_id": number, **annotation}
            for number, photo in enumerate(photos(), start=1)
            if photo.name not in problems
            for annotation in _coco_annotations(photo, ids)
        )
        for number, annotation in enumerate(found, start=1):
            yield {"id": number, **annotation}

    with atomic_path(path) as temporary, temporary.open("w", encoding="ascii") as file:
        file.write('{"categories": ')
        _write_list(file, ({"id": number, "name": label} for label, number in ids.items()))
        file.write(',\n"images": ')
        _write_list(file, _coco_images(path, folder, photos(), ids, problems))
        file.write(',\n"annotations": ')
        _write_list(file, annotations())
        file.write("}\n")
    return list(problems.items())


def write_answers(path: Path, photos: Iterable[ExportedPhoto]) -> None:
    """Writes a table with a row for each answer. The form of names and labels is that of annotations.csv.

    Raises InputError if this form of a label is also that of another label.
    """
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        table = csv.writer(file)
        table.writerow(("image", "label", "answer"))
        for photo in photos:
            for label, holds in (photo.answers or {}).items():
                if label[:1] == "'" and spreadsheet_text(label[1:]) == label:
                    raise InputError(f"{path} cannot hold the label {label!r:.80}; rename it, or use another format")
                table.writerow((spreadsheet_path(photo.name), spreadsheet_text(label), ANSWERS[holds]))


def _write_list(file: TextIO, items: Iterable[Any]) -> None:
    start = "[\n"
    for item in items:
        file.write(start + json.dumps(item))
        start = ",\n"
    file.write("\n]" if start[0] == "," else "[]")


def _task(address: str, photo: ExportedPhoto, model: str) -> dict[str, Any]:
    predicted, scores = [[*column] for column in zip(*photo.labels or (), strict=True)] or ([], [])
    data = {"image": address, PROPOSED: predicted if photo.answers is None else [*photo.answers]}
    task: dict[str, Any] = {"data": data}
    if photo.labels is not None:
        prediction = {"model_version": model, "result": _choices(predicted)}
        task["predictions"] = [{**prediction, "score": min(scores)} if scores else prediction]
    if photo.answers is not None:
        chosen = _choices([label for label, holds in photo.answers.items() if holds])
        # Without this field, Label Studio marks imported annotations as ground truth, which outvotes later ones.
        task["annotations"] = [{"result": chosen, "ground_truth": False}]
    return task


def _choices(labels: list[str]) -> list[dict[str, Any]]:
    item = {"id": "label", "from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": labels}}
    return [item] if labels else []


def _coco_images(
    path: Path, folder: Path, photos: Iterable[ExportedPhoto], ids: Mapping[str, int], problems: dict[str, str]
) -> Iterator[dict[str, Any]]:
    for number, photo in enumerate(photos, start=1):
        try:
            width, height = image_size(folder / photo.name)
        except (InputError, OSError) as error:
            problems[photo.name] = f"not in {path.name}: {getattr(error, 'strerror', None) or error}"
            continue
        image = {"id": number, "file_name": photo.name, "width": width, "height": height}
        if photo.answers is not None:  # programs that read LVIS expect both lists
            image["neg_category_ids"] = [ids[label] for label, holds in photo.answers.items() if not holds]
            image["not_exhaustive_category_ids"] = []
        yield image


def _coco_annotations(photo: ExportedPhoto, ids: Mapping[str, int]) -> list[dict[str, Any]]:
    if photo.answers is not None:
        return [{"category_id": ids[label]} for label, holds in photo.answers.items() if holds]
    return [{"category_id": ids[label], "score": score} for label, score in photo.labels or ()]
