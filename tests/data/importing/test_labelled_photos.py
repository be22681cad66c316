import os
import shutil

import pytest

from aia_jax.data.importing.coco import read_coco
from aia_jax.data.importing.labelled_photos import read_folders
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
    found = read_coco(write(coco(), "instances.json"))
    expected = [("train/a.jpg", ("sky", "sea")), ("b.jpg", ("sea",)), ("c", ())]
    assert [(row.photo, row.labels) for row in found.rows] == expected
    assert found.rows[1].where == "instances.json: images[1]"
    assert found.understood.endswith("COCO's layout, 4 annotations of 2 categories")
    assert found.problems == ()


def test_all_problems_of_coco_are_listed(write):
    document = coco()
    document["images"] += [{"id": 7, "file_name": "d.jpg"}, {"file_name": "e.jpg"}, {"id": 3, "file_name": None}]
    document["annotations"] += [{"image_id": 4, "category_id": 5}, {"image_id": 7, "category_id": [1]}, 3]
    document["categories"] += [{"id": 6}]
    assert set(read_coco(write(document, "a.json")).problems) == {
        "a.json: images[3].id: 7 is already the id of a.json: images[0]",
        "a.json: images[4] has no id",
        "a.json: images[5].file_name: must be a string, found None",
        "a.json: annotations[4].image_id: 4 is an unknown id",
        "a.json: annotations[5].category_id: must be a number or a string, found [1]",
        "a.json: annotations[6] has no image_id and no category_id",
        "a.json: categories[2] has no name",
    }


@pytest.mark.parametrize("content", [[], {"images": []}, {"labels": [], "samples": []}, b"{", b'"'])
def test_other_json_is_refused(write, content):
    with pytest.raises(InputError, match=r"a\.json (has no list 'images'|has no list 'annotations'|is not JSON)"):
        read_coco(write(content, "a.json"))


def rows_of(found):
    return sorted((row.photo, *row.labels) for row in found.rows)


def make_photos(folder, *names):
    for seed, name in enumerate(names):
        make_photo(folder / name, seed)


def test_one_folder_per_label_is_read_and_needed(tmp_path):
    make_photos(tmp_path, "without.jpg")
    with pytest.raises(InputError, match=r"holds no folders of photos; expected one for each label"):
        read_folders(tmp_path)
    make_photos(tmp_path, "sky/a.jpg", "sky/2024/b.JPG", "sea/c d.jpg", ".trash/e.jpg")
    (tmp_path / "sea" / "notes.txt").write_text("")
    found = read_folders(tmp_path)
    expected = [("sea/c d.jpg", "sea"), ("sky/2024/b.JPG", "sky"), ("sky/a.jpg", "sky"), ("without.jpg",)]
    assert rows_of(found) == expected
    assert found.understood == f"{tmp_path}: 2 folders as labels"


def test_one_photo_in_several_folders(tmp_path):
    first = make_photo(tmp_path / "sea" / "a.jpg", 1)
    for label in ("sky", "sun", "tree"):
        (tmp_path / label).mkdir()
    shutil.copy(first, tmp_path / "sky" / "a.jpg")  # same name, same content
    os.link(first, tmp_path / "sun" / "hard.jpg")
    (tmp_path / "tree" / "soft.jpg").symlink_to(first)
    make_photo(tmp_path / "wood" / "a.jpg", 2)  # another photo of that name
    shutil.copy(first, tmp_path / "wood" / "b.jpg")  # same content, another name
    (tmp_path / "linked").symlink_to(tmp_path / "sky")
    same = [("linked/a.jpg", label) for label in ("linked", "sea", "sky", "sun", "tree")]
    assert rows_of(read_folders(tmp_path)) == [*same, ("wood/a.jpg", "wood"), ("wood/b.jpg", "wood")]


def test_folders_of_splits_are_read(tmp_path):
    make_photos(tmp_path, "train/sky/a.jpg", "Test/sky/b.jpg", "Test/c.jpg")
    found = read_folders(tmp_path)
    assert [(row.photo, row.labels, row.split) for row in found.rows] == [
        ("Test/c.jpg", (), "test"),
        ("Test/sky/b.jpg", ("sky",), "test"),
        ("train/sky/a.jpg", ("sky",), "train"),
    ]
    assert found.understood.endswith("1 folders as labels below the splits Test, train")
