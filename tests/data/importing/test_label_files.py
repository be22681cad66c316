import json
import os
import re

import pytest

from aia_jax.data.importing.label_files import read_labels_of
from aia_jax.utils.errors import InputError
from tests.helpers.photos import make_photo


def coco():
    return {
        "images": [{"id": 7, "file_name": "train/a.jpg"}, {"id": 9, "file_name": "b.jpg"}, {"id": 8, "file_name": "c"}],
        "annotations": [
            {"image_id": 7, "category_id": 2, "bbox": [0, 0, 1, 1]},
            {"image_id": 7, "category_id": 2},
            {"image_id": 7, "category_id": 5},
            {"image_id": 9, "category_id": 5},
        ],
        "categories": [{"id": 5, "name": "sea"}, {"id": 2, "name": "sky"}],
    }


def test_coco_is_read(write):
    found = read_labels_of(write(coco(), "instances.json"))
    expected = [("train/a.jpg", ("sky", "sea")), ("b.jpg", ("sea",)), ("c", ())]
    assert [(row.photo, row.labels) for row in found.rows] == expected
    assert found.rows[1].where == "instances.json: images[1]"
    assert found.understood.endswith("COCO's layout, 4 annotations of 2 categories; 1 of 3 images have none")
    assert found.problems == ()


def test_all_problems_of_coco_are_listed(write):
    document = coco()
    document["images"] += [{"id": 7, "file_name": "d.jpg"}, {"file_name": "e.jpg"}, {"id": 3, "file_name": None}]
    document["annotations"] += [{"image_id": 4, "category_id": 5}, {"image_id": 7, "category_id": [1]}, 3]
    document["categories"] += [{"id": 6}]
    assert set(read_labels_of(write(document, "a.json")).problems) == {
        "a.json: images[3].id: 7 is already the id of a.json: images[0]",
        "a.json: images[4] has no id",
        "a.json: images[5].file_name: must be a string, found None",
        "a.json: annotations[4].image_id: 4 is an unknown id",
        "a.json: annotations[5].category_id: must be a number or a string, found [1]",
        "a.json: annotations[6] has no image_id and no category_id",
        "a.json: categories[2] has no name",
    }


def labels_of(found):
    return {row.photo: set(row.labels) for row in found.rows}


def lines(*objects):
    return "".join(json.dumps(one) + "\n" for one in objects).encode()


def test_coco_of_other_tools_is_read(write):
    document = coco()
    document["annotations"] = [
        {"image_id": "7", "category_id": 2.0, "iscrowd": 1},
        {"image_id": 9, "category_id": 5},
        {"image_id": 9, "category_id": "2"},
    ]
    document["categories"] += [{"id": 3, "name": 33, "supercategory": "none"}]
    document["images"][0] = {"id": 7, "coco_url": "http://images/a.jpg", "neg_category_ids": [5]}
    found = read_labels_of(write(document, "a.json"))
    assert labels_of(found) == {"http://images/a.jpg": {"sky"}, "b.jpg": {"sea", "sky"}, "c": set()}
    assert "(1 more are not used)" in found.understood
    document["images"][1]["id"] = "7"  # 7 and "7" are two photos
    found = read_labels_of(write(document, "b.json"))
    assert labels_of(found) == {"http://images/a.jpg": set(), "b.jpg": {"sky"}, "c": set()}


def choices(*names, **fields):
    item = {"type": "choices", "from_name": "kind", "to_name": "photo", "value": {"choices": list(names)}}
    return {"result": [item], "was_cancelled": False, **fields}


def test_label_studio_is_read(write):
    box = {"type": "rectanglelabels", "value": {"x": 1, "rectanglelabels": ["sea"]}}
    tasks = [
        {"id": 1, "data": {"image": "/data/upload/3/1f2e3d4c-a.jpg"}, "annotations": [choices("sky", "sea")]},
        {
            "id": 2,
            "data": {"pic": "s3://x/b.jpg"},
            "annotations": [{"result": [box, {"type": "textarea", "value": {}}]}],
        },
        {"id": 3, "data": {"image": "c.jpg"}, "annotations": [{"result": []}], "predictions": [choices("sky")]},
        {"id": 4, "data": {"image": "d.jpg"}, "annotations": [], "predictions": [choices("sky")]},
        {"id": 5, "data": {"image": "e.jpg"}, "annotations": [choices("sky", was_cancelled=True)]},
        {"id": 6, "data": {"image": "f.jpg"}, "annotations": [choices("sky"), choices("sea")]},
        {"id": 7, "data": {"image": "g.jpg"}, "annotations": [choices("sky"), choices("sea", ground_truth=True)]},
        {"id": 8, "data": {"image": "h.jpg"}, "completions": [choices("sky", "sea"), choices("sea", "sky")]},
        {"id": 9, "data": "i.jpg", "annotations": 3},
    ]
    found = read_labels_of(write(tasks, "ls.json"))
    assert labels_of(found) == {
        "/data/upload/3/1f2e3d4c-a.jpg": {"sky", "sea"},
        "s3://x/b.jpg": {"sea"},
        "c.jpg": set(),
        "g.jpg": {"sea"},
        "h.jpg": {"sky", "sea"},
    }
    problems = [
        "4: is not annot",
        "5: is not annot",
        "6: its annotations differ: ",
        "9: does not have the fields of Lab",
    ]
    for problem, expected in zip(found.problems, problems, strict=True):
        assert problem.startswith(f"ls.json: task {expected}")
    assert (
        "Label Studio's JSON; 9 entries, 1 of them without labels; labels of 'kind' (choices), ''" in found.understood
    )


def test_one_question_of_label_studio_is_chosen(write):
    def item(name, *names):
        return {"type": "choices", "from_name": name, "value": {"choices": list(names)}}

    results = [[item("what", "dog", "park"), item("quality", "good")], [item("quality", "blurred")]]
    tasks = [
        {"id": number, "data": {"text": "x", "pic": f"{number}.jpg"}, "annotations": [{"result": result}]}
        for number, result in enumerate(results)
    ]
    path = write(tasks, "ls.json")
    with pytest.raises(InputError, match="several questions: what, quality; --label_column chooses one"):
        read_labels_of(path, photo_column="pic")
    with pytest.raises(InputError, match="no question 'who'; --label_column"):
        read_labels_of(path, photo_column="pic", label_column="who")
    found = read_labels_of(path, photo_column="pic", label_column="what")
    assert labels_of(found) == {"0.jpg": {"dog", "park"}, "1.jpg": set()}
    with pytest.raises(InputError, match="one annotation of Label Studio's storage: export the project as JSON"):
        read_labels_of(write({"id": 1, "result": results[0], "task": {"id": 0, "data": {}}}, "1"))


def test_labels_of_label_studio_belong_to_the_photo_that_they_name(write):
    def task(number, **names):
        pair = {"left": f"l{number}.jpg", "right": f"r{number}.jpg?X-Amz=1", "text": "x"}
        result = [{"type": "choices", "to_name": at, "value": {"choices": [name]}} for at, name in names.items()]
        return {"id": number, "data": pair, "annotations": [{"result": result}]}

    path = write([task(1, right="dog"), task(2, left="cat", right="sea"), task(3, other="sky")], "ls.json")
    found = read_labels_of(path)
    assert labels_of(found) == {"r1.jpg?X-Amz=1": {"dog"}}
    message = "holds several photos: left, right; --photo_column chooses one"
    assert [problem.endswith(message) for problem in found.problems] == [True, True]
    expected = {"l1.jpg": set(), "l2.jpg": {"cat"}, "l3.jpg": {"sky"}}
    assert labels_of(read_labels_of(path, photo_column="left")) == expected


@pytest.mark.parametrize("content", [coco(), {"classes": ["a"], "labels": {"a.jpg": 0}}, {"a.jpg": ["sea"]}])
def test_columns_are_never_ignored(write, content):
    with pytest.raises(InputError, match="--ignore_columns go with a table or a list of objects"):
        read_labels_of(write(content, "a.json"), label_column="b")


CVAT = b"""<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><meta><task/></meta>
<image id="0" name="a.jpg" subset="Train"><tag label="sea" source="manual"><attribute>1</attribute></tag></image>
<image id="1" name="b"><box label="sky" xtl="1"/><polygon label="sky"/></image></annotations>"""
READ = {
    "CVAT": CVAT,
    "FiftyOne, indices": {"classes": ["sky", "sea"], "labels": {"a.jpg": 1, "b": [0]}},
    "FiftyOne, objects": {
        "classes": None,
        "labels": {"a.jpg": {"label": "sea"}, "b": [{"label": "sky", "confidence": None}]},
    },
    "JSON lines": lines({"file_name": "a.jpg", "labels": ["sea"]}, {"file_name": "b", "labels": ["sky"]}),
    "indented objects": b'{\n"img": {"path": "a.jpg"},\n"label": "sea"\n}\r\n\n{\n"img": "b",\n"label": "sky"\n}',
    "JSON-MIN": [
        {"image": "a.jpg", "id": 1, "choice": {"choices": ["sea"]}, "annotator": 1},
        {"image": "b", "choice": "sky", "annotator": 1},
    ],
    "boxes of JSON-MIN": [
        {"image": "a.jpg", "label": [{"x": 1, "rectanglelabels": ["sea"]}]},
        {"image": "b", "label": [{"x": 1, "polygonlabels": ["sky"]}]},
    ],
    "Google": lines(
        {"imageGcsUri": "a.jpg", "classificationAnnotations": [{"displayName": "sea"}]},
        {"imageGcsUri": "b", "classificationAnnotations": [{"displayName": "sky"}]},
    ),
    "marks": [
        {"image": "a.jpg", "labels": {"sea": True, "sky": False}},
        {"image": "b", "labels": {"sea": 0, "sky": 1}},
    ],
    "names": {"a.jpg": ["sea"], "b": ["sky"]},
    "in a field": {"version": 1, "data": [{"path": "a.jpg", "tags": "sea"}, {"path": "b", "tags": "sky"}]},
}


@pytest.mark.parametrize("content", READ.values(), ids=READ)
def test_exports_are_read_by_their_content(write, content):
    found = read_labels_of(write(content, "labels.txt"))
    assert labels_of(found) == {"a.jpg": {"sea"}, "b": {"sky"}}
    assert not found.problems
    assert "2 entries, 0 of them without labels" in found.understood


COCO_TWICE = {**coco(), "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "a.jpg"}]}
LS_TWICE = [{"data": {"image": "a.jpg"}, "annotations": [choices(name)]} for name in ("sky", "sea")]
MIN_TWICE = [{"image": "a.jpg", "choice": name, "annotator": 1} for name in ("sky", "sea")]


@pytest.mark.parametrize("content", [CVAT.replace(b'"b"', b'"a.jpg"'), COCO_TWICE, LS_TWICE, MIN_TWICE])
def test_entries_of_one_photo_must_have_the_same_labels(write, content):
    found = read_labels_of(write(content, "a.txt"))
    assert found.rows == ()
    for problem in found.problems:
        assert "'a.jpg' have different labels; keep one of them, or give each photo its own name" in problem
    assert len(found.problems) == 2


def test_attributes_that_are_not_used_are_named(write):
    cvat = CVAT.replace(b"<attribute>1<", b'<attribute name="Class">dog<')
    assert "shapes, not used: attribute Class; 2 entries" in read_labels_of(write(cvat, "a.xml")).understood
    document = coco()
    document["annotations"][0]["attributes"] = {"breed": "poodle"}
    document["annotations"][1]["attributes"] = 3
    assert "2 categories, not used: attributes breed; 1 of 3" in read_labels_of(write(document, "b.json")).understood


def test_categories_of_one_name_are_refused_if_both_are_used(write):
    document = coco()
    document["categories"] += [{"id": 1, "name": "sea"}]
    assert "2 categories (1 more are not used)" in read_labels_of(write(document, "a.json")).understood
    document["annotations"] += [{"image_id": 9, "category_id": 1}]
    with pytest.raises(InputError, match="categories 5 and 1 have the same name, 'sea'; rename"):
        read_labels_of(write(document, "a.json"))


@pytest.mark.parametrize(
    ("field", "values", "condition"),
    [
        ("confidence", (1, 0), "confidence = 1"),
        ("is_absent", (False, True), "is_absent = false"),
        ("status", ("done", "rejected"), "status = done"),
        ("answer", ("accept", "reject"), "answer = accept"),
    ],
)
def test_fields_that_say_which_entries_count_are_asked_about(write, field, values, condition):
    entries = [("a.jpg", "sea"), ("a.jpg", "sky")]
    rows = [{"image": name, "label": label, field: value} for (name, label), value in zip(entries, values, strict=True)]
    path = write(lines(*rows), "metadata.jsonl")
    with pytest.raises(InputError, match=f'may say which rows count(?s:.*)--rows "{condition}": reads 1 of 2 rows'):
        read_labels_of(path)
    assert labels_of(read_labels_of(path, rows=[condition])) == {"a.jpg": {"sea"}}
    found = read_labels_of(path, ignore_columns=[field])
    assert [row.labels for row in found.rows] == [("sea",), ("sky",)]
    assert f"not used: {field}" in found.understood


def test_lists_of_scores_beside_labels_are_problems(write):
    path = write([{"image": "a.jpg", "labels": ["cat", "dog"], "scores": [0.1, 0.9]}], "a.json")
    with pytest.raises(InputError, match="have scores; keep those that hold, or give --ignore_columns scores"):
        read_labels_of(path)
    assert labels_of(read_labels_of(path, ignore_columns=["scores"])) == {"a.jpg": {"cat", "dog"}}
    with pytest.raises(InputError, match="has no field 'x'"):
        read_labels_of(path, ignore_columns=["x"])


def test_tasks_of_json_min_without_a_choice_have_no_labels(write):
    rows = [{"image": "a.jpg", "choice": "sea", "annotator": 1}, {"image": "b.jpg", "annotator": 1}]
    assert labels_of(read_labels_of(write(rows, "a.json"))) == {"a.jpg": {"sea"}, "b.jpg": set()}
    del rows[1]["annotator"]
    assert read_labels_of(write(rows, "a.json")).problems == ("a.json: entry 2: has no field 'choice'",)


def test_splits_of_exports_are_kept(write):
    assert [row.split for row in read_labels_of(write(CVAT, "a.xml")).rows] == ["train", ""]
    rows = [{"image": "a.jpg", "label": "sea", "split": part} for part in ("valid", "TEST", "third")]
    found = read_labels_of(write(rows, "a.json"))
    assert [row.split for row in found.rows] == ["validation", "test"]
    assert "split 'third' is unknown" in found.problems[0]


def test_fields_can_be_named(write):
    path = write([{"a": "x.jpg", "b": ["sky"], "labels": ["no"]}], "a.json")
    assert labels_of(read_labels_of(path, photo_column="a", label_column="b")) == {"x.jpg": {"sky"}}
    with pytest.raises(InputError, match=r"--separator goes with a table; .*a\.json is none"):
        read_labels_of(path, separator=";", photo_column="a")


ENTITIES = "".join(f"<!ENTITY e{n + 1} '{f'&e{n};' * 10}'>" for n in range(9))
BOMB = f"<!DOCTYPE a [<!ENTITY e0 '{'x' * 10}'>{ENTITIES}]><annotations>&e9;</annotations>".encode()
BARE = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": [{"id": 1, "name": "sky"}]}
NAMES = [{"id": 0, "name": "sky", "supercategory": "none"}, {"id": 1, "name": "sea"}]
REFUSED = {
    "CVAT leaves tags out of this format: export 'CVAT for images 1.1' ": BARE,
    "has no list 'annotations'": {"images": [], "categories": []},
    "captions are for retrieval": {**BARE, "annotations": [{"image_id": 1, "caption": "a dog"}]},
    "COCO's panoptic segmentation: give": {**BARE, "annotations": [{"image_id": 1, "segments_info": []}]},
    'some annotations say "ignore"': {**BARE, "annotations": [{"image_id": 1, "category_id": 1, "ignore": 1}]},
    "JSON of Datumaro: export 'CVAT for images 1.1'": {"info": {}, "categories": {"label": {}}, "items": []},
    "so they are predictions": {**BARE, "annotations": [{"image_id": 1, "category_id": 1, "score": 0.4}]},
    "no field of the labels among image_id, category_id, score": [{"image_id": 1, "category_id": 1, "score": 0.4}],
    "imported data of this project: train with": {
        "labels": ["sky"],
        "samples": [{"image_name": "a", "image_labels": []}],
    },
    "samples.json of FiftyOne: ": {"samples": [{"filepath": "a.jpg", "tags": ["train"]}]},
    "a project of VGG Image Annotator: ": {"_via_settings": {}, "_via_img_metadata": {}},
    "JSON of VGG Image Annotator: ": {"a.jpg123": {"filename": "a.jpg", "size": 123, "regions": []}},
    "JSON of LabelMe: ": {"version": "5", "flags": {}, "shapes": [], "imagePath": "a.jpg"},
    "of no known tool": {"description": "", "tags": [], "size": {"height": 1}, "objects": []},
    "{} is neither a label nor": {"item": {"name": "a.jpg"}, "annotations": [{"name": "sky", "tag": {}}]},
    "no field of the photo among source-ref, job": lines({"source-ref": "a.jpg", "job": 0}, {"source-ref": "b.jpg"}),
    "Labelbox": lines({"data_row": {"id": 1}, "projects": {}}),
    "the label 3 is a number; the file does not name it": lines({"file_name": "a.jpg", "label": 3}),
    "no field of the labels among file_name, objects; --label_column names it": lines(
        {"file_name": "a.jpg", "objects": {"bbox": [], "categories": [0, 2]}}
    ),
    "can be one label or several; write a list": lines({"file_name": "a.jpg", "labels": "dog, park"}),
    "a label has a confidence; predictions are no labels": {
        "classes": [],
        "labels": {"a": [{"label": "x", "confidence": 0.3}]},
    },
    "several fields of labels: labels, label; --label_column": [{"image": "a.jpg", "labels": [], "label": "sky"}],
    "None is neither a label nor": [{"image": "a.jpg", "label": None}],
    "has the fields images, of no known tool": {"images": []},
    "has the fields 0, 1, of no known tool": {"0": "cat", "1": "dog"},
    "a.json holds no labels; expected": [],
    "a.json is not JSON: ": b'{"a": 1',
    "no field of the photo among none; --photo_column": [3],
    "among none; --photo_column names it": {"": None},
    "the first: a.json: entry 1: does not have the fields of objects": [3, {"image": 3, "label": "x"}],
    "a.xml is not in the format 'CVAT": b"<annotation><filename>a.jpg</filename></annotation>",
    "not in the format 'CVAT for images 1.1'": b"<annotations><track id='0'/></annotations>",
    "is not XML: ": b"<annotations>",
    "a project of VoTT: export CSV": {"name": "x", "assets": {}, "tags": [{"name": "dog"}]},
    'as DataFrame.to_json(orient="records") writes': {"image": {"0": "b.jpg"}, "labels": {"0": ["sea"]}},
    "is no name of a photo; expected an object for each photo": {"image": ["b.jpg"], "labels": [["sea"]]},
    "has the fields 0, of no known tool; expected": {"0": {"image": "b.jpg", "labels": ["sea"]}},
    "has a document type definition (<!DOCTYPE ...>)": BOMB,
    "(<!DOCTYPE ...>), which can be harmful": b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotations/>',
    "has more than 100 elements inside each other": b"<a>" * 101 + b"</a>" * 101,
}


@pytest.mark.parametrize(("message", "content"), REFUSED.items(), ids=[message[:30] for message in REFUSED])
def test_other_exports_are_refused_by_name(write, message, content):
    with pytest.raises(InputError, match=re.escape(message)):
        read_labels_of(write(content, "a.json" if not isinstance(content, bytes) or content[0] != b"<"[0] else "a.xml"))


def test_large_xml_is_refused_before_it_is_read(write):
    path = write(CVAT, "a.xml")
    os.truncate(path, 100_000_001)  # a sparse file
    with pytest.raises(InputError, match="has 100 MB; XML of at most 100 MB is read: export each task"):
        read_labels_of(path)


FOLDERS = {
    "Roboflow, table": ("_classes.csv", "filename, sea, sky\na.jpg, 1, 0\n", "filename, sea, sky\na.jpg, 0, 1\n"),
    "Roboflow, COCO": tuple(
        ["_annotations.coco.json"]
        + [
            json.dumps({**BARE, "annotations": [{"image_id": 1, "category_id": number}], "categories": NAMES})
            for number in (1, 0)
        ]
    ),
    "Hugging Face": (
        "metadata.jsonl",
        *(lines({"file_name": "a.jpg", "label": name}).decode() for name in ("sea", "sky")),
    ),
    "FiftyOne": (
        "labels.json",
        *(json.dumps({"classes": ["sea", "sky"], "labels": {"a": number}}) for number in (0, 1)),
    ),
}


@pytest.fixture
def folder(tmp_path):
    """Makes a folder with photos and text files."""

    def make(files):
        for seed, (name, text) in enumerate(files.items()):
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            make_photo(path, seed) if name.endswith(".jpg") else path.write_text(text)
        return tmp_path / "data"

    return make


@pytest.mark.parametrize(("name", "train", "test"), FOLDERS.values(), ids=FOLDERS)
def test_splits_with_files_of_labels_are_read(folder, name, train, test):
    place = "data/a" if name == "labels.json" else "a.jpg"
    data = folder({f"train/{name}": train, "train/a.jpg": "", f"valid/{name}": test, "valid/a.jpg": ""})
    rows = [(row.photo, *row.labels, row.split) for row in read_labels_of(data).rows]
    assert rows == [(f"train/{place}", "sea", "train"), (f"valid/{place}", "sky", "validation")]
    assert labels_of(read_labels_of(data / "train")) == {place: {"sea"}}
    folder({"test/a.jpg": ""})
    with pytest.raises(
        InputError, match=f"holds train/{name}, valid/{name}; none in test; expected one file of labels"
    ):
        read_labels_of(data)


LAYOUTS = {
    "has a .txt file for each photo, as from YOLO": ("train/images/a.jpg", "train/labels/a.txt"),
    "has a .xml file for each photo, as from Pascal VOC": ("JPEGImages/a.jpg", "Annotations/a.xml"),
    "has a .json file for each photo, as from LabelMe": ("a.jpg", "a.json", "sky/b.jpg", "sky/b.json"),
    "holds data.yaml. If it holds the labels": ("images/train/a.jpg", "data.yaml"),
    "holds train.csv. If it holds the labels, name the file in --labels": ("train.csv", "train_images/a.jpg"),
    "holds annotations. If it holds": ("images/a.jpg", "annotations/instances_default.json"),
}


@pytest.mark.parametrize(("message", "files"), LAYOUTS.items(), ids=[message[:30] for message in LAYOUTS])
def test_folders_of_other_tools_are_no_labels(folder, message, files):
    with pytest.raises(InputError, match=re.escape(message)):
        read_labels_of(folder(dict.fromkeys(files, "0 0.5 0.5 1 1")))
