"""Answers are read from what other programs write; what is no answer, or is contradictory, gets none."""

import os

import pytest

from aia_jax.data.importing.answers import read_answers
from aia_jax.utils.errors import InputError
from tests.helpers.photos import make_photo

LABELS = ("dog", "cat", "sea")


@pytest.fixture
def read(write, tmp_path):
    def run(content, name="a.json", photos=("a.jpg", "b.jpg", "sub/b.jpg")):
        for photo in photos:
            make_photo(tmp_path / "photos" / photo)
        return read_answers(write(content, name), tmp_path / "photos", photos, LABELS)

    return run


def choices(*labels, question="label", kind="choices"):
    return [{"from_name": question, "to_name": "image", "type": kind, "value": {kind: list(labels)}}]


def task(*chosen, image="/data/upload/1/0a1b2c3d-a.jpg", proposed=("dog", "cat"), **fields):
    data = {"image": image} if proposed is None else {"image": image, "proposed": list(proposed)}
    return {"data": data, "annotations": [{"result": choices(*labels)} for labels in chosen], **fields}


def test_proposed_labels_that_a_person_did_not_choose_are_rejected(read):
    found = read([task(["dog", "sea"]), task(image="b.jpg"), task([], image="/data/local-files/?d=photos/sub/b.jpg")])
    assert found.answers == {
        "a.jpg": {"dog": True, "sea": True, "cat": False},
        "sub/b.jpg": {"dog": False, "cat": False},
    }
    assert found.problems == []
    counts = "2 confirmed and 3 rejected labels of 2 photos"
    assert found.understood.endswith(f"Label Studio's JSON, 1 of 3 tasks without an annotation; {counts}")


def test_predictions_propose_labels_if_the_task_does_not_say_which_were_proposed(read):
    prediction = {"id": 3, "result": choices("dog", "cat")}
    numbers = task(["dog"], proposed=None, predictions=[3])
    started = task(["dog"], proposed=None, predictions=[3])
    started["annotations"][0]["prediction"] = prediction
    for given in (task(["dog"], proposed=None, predictions=[prediction]), started):
        assert read([given]).answers == {"a.jpg": {"dog": True, "cat": False}}
    found = read([numbers])
    assert found.answers == {"a.jpg": {"dog": True}}
    assert "; 1 tasks do not say which labels were proposed, so they reject none; 1 confirmed" in found.understood


def test_skipped_and_differing_annotations_give_no_answer(read):
    skipped, truth = task(["dog"], ["cat"]), task(["dog"], ["cat"], image="b.jpg")
    skipped["annotations"][0]["was_cancelled"] = truth["annotations"][1]["ground_truth"] = True
    found = read([skipped, truth, task(["dog", "sea"], ["dog", "cat"], image="sub/b.jpg", proposed=["cat", "bird"])])
    assert found.answers == {
        "a.jpg": {"cat": True, "dog": False},
        "b.jpg": {"cat": True, "dog": False},
        "sub/b.jpg": {"dog": True, "bird": False},
    }
    assert found.problems == ["a.json: task 2: its annotations differ about sea, cat, which get no answer"]


def test_other_questions_of_a_project_are_not_about_labels(read):
    given = task(["dog"])
    given["annotations"][0]["result"] += choices("good", question="quality")
    assert read([given]).answers == {"a.jpg": {"dog": True, "cat": False}}
    given["annotations"][0]["result"] = choices("x", question="objects") + choices("good", question="quality")
    with pytest.raises(InputError, match="has several questions: objects, quality; name the one about labels 'label'"):
        read([given])


def coco(**fields):
    images = [{"id": 1, "file_name": "a.jpg", "neg_category_ids": [2, 3]}, {"id": 2, "file_name": "b.jpg"}]
    categories = [{"id": number, "name": label} for number, label in enumerate(LABELS, start=1)]
    annotations = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}]
    return {"images": images, "categories": categories, "annotations": annotations} | fields


def test_coco_and_lvis_are_read(read):
    assert read(coco()).answers == {"a.jpg": {"dog": True, "cat": False, "sea": False}}
    assert read(coco(annotations=[])).answers == {"a.jpg": {"cat": False, "sea": False}}
    document = coco()
    document["images"][0]["neg_category_ids"] = [1, 2, 9, None]
    document["images"][1]["neg_category_ids"] = 3
    found = read(document)
    assert found.answers == {"a.jpg": {"cat": False}}
    assert found.problems == [
        "a.json: images[0].neg_category_ids: the image also has an annotation of 'dog'",
        "a.json: images[0].neg_category_ids: 9 is an unknown id",
        "a.json: images[0].neg_category_ids: None is an unknown id",
        "a.json: images[1].neg_category_ids: must be a list, found 3",
    ]
    with pytest.raises(InputError, match="annotations have a score, so they are predictions"):
        read(coco(annotations=[{"id": 1, "image_id": 1, "category_id": 1, "score": 0.5}]))


def test_all_problems_of_a_table_are_listed(read, tmp_path):
    same = (os.fsdecode(b"\xff.jpg"), r"\udcff.jpg")
    rows = [
        "Image;answer;label",
        "A.JPG;Confirmed;dog",
        "a.jpg;rejected;cat",
        "b.jpg;confirmed;sea",
        "b.jpg;rejected;sea",
        "a.jpg;maybe;sea",
        "a.jpg;rejected",
        "a.jpg;confirmed;Dog",
        "a.jpg;confirmed; x",
        "c.jpg;confirmed;dog",
        r"\udcff.jpg;confirmed;dog",
    ]
    found = read("\n".join(rows).encode(), "a.csv", ("a.jpg", "b.jpg", *same))
    assert found.answers == {"a.jpg": {"dog": True, "cat": False}}
    assert found.problems == [
        "a.csv:5: 'b.jpg' has both answers about 'sea'; keep one of them",
        "a.csv:6: the answer must be confirmed or rejected, found 'maybe'",
        "a.csv:7: 2 cells, expected 3",
        "a.csv:8: 'Dog' is the label 'dog' in another spelling; write 'dog'",
        "a.csv:9: a label must be one line of text without spaces around it, found ' x'",
        f"a.csv:10: no photo 'c.jpg' in {tmp_path / 'photos'}",
        rf"a.csv:11: '\\udcff.jpg' can be {same[0]!r} or {same[1]!r}; rename one of them",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has the columns none; expected Label Studio's export"),
        (b"image,label\na.jpg,dog\n", "has the columns image, label; expected"),
        ([{"image": "a.jpg", "label": "dog"}], "is in no known format of answers"),
        ({"a.jpg": ["dog"]}, "is in no known format of answers"),
        ({"images": []}, "has no list 'annotations'"),
    ],
)
def test_other_files_are_refused(read, content, message):
    with pytest.raises(InputError, match=message):
        read(content)


@pytest.mark.parametrize("broken", [{"data": 3}, {"data": {"image": "a.jpg"}, "annotations": [3]}, {"data": {}}])
def test_broken_tasks_are_listed(read, broken):
    given = {"annotations": [{"result": choices("dog")}]} | broken
    found = read([given, task(["dog"], proposed=None)])
    assert found.answers == {"a.jpg": {"dog": True}}
    assert len(found.problems) == 1
    assert found.problems[0].startswith("a.json: task 0: ")
