import os
import shutil

import pytest

from aia_jax.data.importing.labelled_photos import read_folders
from aia_jax.utils.errors import InputError
from tests.helpers.photos import make_photo


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
