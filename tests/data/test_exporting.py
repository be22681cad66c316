"""Files for other programs: any photo name, all scores, and the labels that a person confirmed and rejected."""

import json
import os
from pathlib import PurePosixPath
from urllib.parse import unquote_to_bytes
from xml.etree import ElementTree

import pytest
from PIL import Image

from aia_jax.data.exporting import ExportedPhoto, write_coco, write_label_studio
from aia_jax.data.image_decoding import image_size
from aia_jax.utils.errors import InputError
from tests.helpers.photos import TURNED, make_photo

NAMES = ["ä|b.jpg", "sub/a b, c.jpg", "100%25 #?&+.jpg", "🍎.jpg", os.fsdecode(b"\xff.jpg"), "in/in/a.jpg"]
LABELS = ['a "b" & <c>', "=1+1", "\u00e9té", "$ 5"]
PHOTOS = [
    ExportedPhoto(NAMES[0], [(LABELS[0], 0.75), (LABELS[2], 0.25)]),
    ExportedPhoto(NAMES[1], []),
    *(ExportedPhoto(name, None, {LABELS[1]: True, LABELS[3]: False}) for name in NAMES[2:5]),
    ExportedPhoto(NAMES[5], [(LABELS[1], 0.5)], {LABELS[2]: False}),
]


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate(NAMES):
        make_photo(tmp_path / "in" / name, seed, (40 + seed, 30))
    return tmp_path / "in"


def test_tasks_of_label_studio_name_each_photo_and_its_labels(folder, tmp_path):
    write_label_studio(tmp_path / "new" / "tasks.json", folder, iter(PHOTOS), LABELS, "open")
    tasks = json.loads((tmp_path / "new" / "tasks.json").read_bytes())
    for task, photo in zip(tasks, PHOTOS, strict=True):
        place = os.fsdecode(unquote_to_bytes(task["data"]["image"].removeprefix("/data/local-files/?d=")))
        assert (tmp_path / place).samefile(folder / photo.name)
        assert place == str(PurePosixPath("in", photo.name))
    item = {"id": "label", "from_name": "label", "to_name": "image", "type": "choices"}

    def chosen(*labels):
        return [{**item, "value": {"choices": list(labels)}}]

    assert tasks[0]["predictions"] == [{"model_version": "open", "result": chosen(LABELS[0], LABELS[2]), "score": 0.25}]
    assert tasks[0]["data"]["proposed"] == [LABELS[0], LABELS[2]]
    assert "annotations" not in tasks[0]
    assert tasks[1]["predictions"] == [{"model_version": "open", "result": []}]
    assert tasks[2]["annotations"] == [{"result": chosen(LABELS[1]), "ground_truth": False}]
    assert "predictions" not in tasks[2]
    assert tasks[5]["annotations"] == [{"result": [], "ground_truth": False}]
    assert tasks[5]["data"]["proposed"] == [LABELS[2]]
    view = ElementTree.parse(tmp_path / "new" / "tasks.xml").getroot()
    choices = view.find("Choices")
    assert [choice.get("value") for choice in choices] == LABELS
    assert {name: choices.get(name) for name in ("name", "toName")} == {"name": "label", "toName": "image"}
    assert [view.find("Image").get(name) for name in ("name", "value")] == ["image", "$image"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["tasks.json", "tasks.xml"]


@pytest.mark.parametrize("label", ["$image", "a\x01b", "\ufffe"])
def test_labels_that_label_studio_would_change_are_refused(folder, tmp_path, label):
    with pytest.raises(InputError, match=r"cannot hold the label .*rename the label, or use another format"):
        write_label_studio(tmp_path / "tasks.json", folder, PHOTOS, [*LABELS, label], "open")
    assert not (tmp_path / "tasks.json").exists()


def test_coco_has_scores_of_predictions_and_rejected_labels_of_answers(folder, tmp_path):
    (folder / NAMES[3]).write_bytes(b"no photo")
    (folder / NAMES[4]).unlink()
    problems = write_coco(tmp_path / "coco.json", folder, lambda: iter(PHOTOS), LABELS)
    assert [name for name, _ in problems] == NAMES[3:5]
    assert [problem for _, problem in problems] == [
        "not in coco.json: not an image of a known format",
        "not in coco.json: No such file or directory",
    ]
    found = json.loads((tmp_path / "coco.json").read_bytes())
    assert found["categories"] == [{"id": number, "name": label} for number, label in enumerate(LABELS, start=1)]
    files = {image.pop("file_name"): image for image in found["images"]}
    lists = {"not_exhaustive_category_ids": []}
    assert files == {
        NAMES[0]: {"id": 1, "width": 40, "height": 30},
        NAMES[1]: {"id": 2, "width": 41, "height": 30},
        NAMES[2]: {"id": 3, "width": 42, "height": 30, "neg_category_ids": [4], **lists},
        NAMES[5]: {"id": 6, "width": 45, "height": 30, "neg_category_ids": [3], **lists},
    }
    assert found["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 1, "score": 0.75},
        {"id": 2, "image_id": 1, "category_id": 3, "score": 0.25},
        {"id": 3, "image_id": 3, "category_id": 2},
    ]


def test_sizes_are_those_of_the_upright_photo(tmp_path):
    with Image.open(make_photo(tmp_path / "a.jpg")) as photo:
        for name in ("turned.jpg", "turned.png", "turned.webp"):
            photo.save(tmp_path / name, exif=TURNED)
        photo.save(tmp_path / "plain.png")
    png = (tmp_path / "turned.png").read_bytes()
    start = png.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(png[start : start + 4])
    (tmp_path / "late.png").write_bytes(png[:start] + png[end:-12] + png[start:end] + png[-12:])
    sizes = {path.name: image_size(path) for path in tmp_path.iterdir()}
    turned = dict.fromkeys(("turned.jpg", "turned.png", "turned.webp", "late.png"), (30, 40))
    assert sizes == {"a.jpg": (40, 30), "plain.png": (40, 30), **turned}
