import json
import os

import pytest

from aia_jax.utils.files import list_files, write_bytes, write_json


def test_files_are_found_by_their_ends_without_hidden_ones(tmp_path):
    names = ["b.JPG", "a/c.jpg", "a/.hidden.jpg", ".git/d.jpg", "e.png", "f", os.fsdecode(b"\xff.jpg"), "a/.x/g.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "e.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = ["b.JPG", "a/c.jpg", "link.jpg", os.fsdecode(b"\xff.jpg")]
    assert list_files(tmp_path, [".jpg"]) == sorted(found)
    assert list_files(tmp_path, [".jpg"], dangling=True) == sorted([*found, "gone.jpg"])


@pytest.mark.parametrize("name", ["n" * 255, "字" * 85, os.fsdecode(b"\xff" * 255)])
def test_long_names_and_bytes_that_are_no_text_are_written(tmp_path, name):
    write_bytes(tmp_path / name, b"x")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    write_json(tmp_path / "a.json", {"name": name, "é": "字"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": name, "é": "字"}
