import json
import os
import re
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aia_jax.utils.errors import InputError
from aia_jax.utils.files import (
    atomic_path,
    list_files,
    read_json,
    read_text,
    remove_temporary_files,
    write_bytes,
    write_json,
)

TEXTS = st.text(st.characters(exclude_categories=()), max_size=8)
NUMBERS = st.integers() | st.floats() | st.integers(min_value=10**4000, max_value=10**4001)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(VALUES, st.booleans())
def test_written_json_is_read(tmp_path_factory, value, as_ascii):
    path = tmp_path_factory.getbasetemp() / "value.json"
    path.write_bytes(json.dumps(value, ensure_ascii=as_ascii).encode("utf-8", "surrogatepass"))
    if not as_ascii and re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False)):
        with pytest.raises(InputError, match=r"value\.json is not UTF-8 text"):
            read_json(path, "")
    else:
        assert repr(read_json(path, "")) == repr(value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1,\n "b": [}', "is not JSON: Expecting value at line 2, column 8; expected a thing"),
        ('{"x": [{"sky": 1, "a": 0, "sky": 2}]}', "has the field 'sky' twice in one object; expected a thing"),
        ("[" * 100_000, "is nested too deeply; expected a thing"),
        ('{"a":' * 100_000, "is nested too deeply; expected a thing"),
        ("9" * 5000, "holds a number of thousands of digits; expected a thing"),
    ],
)
def test_invalid_json_is_refused(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=re.escape(f"a.json {message}")):
        read_json(tmp_path / "a.json", "a thing")


@pytest.mark.parametrize("head", [b"PK\3\4", b"PAR1", b"\x1f\x8b\x08"])
def test_binary_files_are_named(tmp_path, head):
    (tmp_path / "a.csv").write_bytes(head + b"image,labels\0")
    with pytest.raises(InputError, match=r"a\.csv is a spreadsheet, an archive or a binary file; write it as text"):
        read_text(tmp_path / "a.csv")


def test_a_zero_byte_alone_shows_no_encoding(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\0bc\n")
    assert read_text(tmp_path / "a.txt") == "a\0bc\n"


def test_only_the_given_fields_are_kept(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [{"b": 1, "c": {"a": 2}}], "d": 3}')
    assert read_json(tmp_path / "a.json", "", fields=("a", "b")) == {"a": [{"b": 1}]}


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    def fail(path, content):
        raise OSError("no space left on device")

    def interrupted():
        with atomic_path(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    monkeypatch.setattr("aia_jax.utils.files.Path.write_bytes", fail)
    with pytest.raises(OSError, match="no space"):
        write_bytes(tmp_path / "a", b"new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "old")]


@pytest.mark.parametrize("name", ["n" * 255, "字" * 85, os.fsdecode(b"\xff" * 255)])
def test_long_names_and_names_that_are_not_utf8_are_written(tmp_path, name):
    write_bytes(tmp_path / name, b"x")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    write_json(tmp_path / "a.json", {"name": name, "é": "字"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": name, "é": "字"}


def test_files_are_listed_by_suffix_without_hidden_ones(tmp_path):
    names = ["b.JPG", "a/c.jpg", "a/.hidden.jpg", ".git/d.jpg", "e.png", "f", os.fsdecode(b"\xff.jpg"), "a/.x/g.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "e.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert list_files(tmp_path, [".jpg"]) == sorted(["b.JPG", "a/c.jpg", "link.jpg", os.fsdecode(b"\xff.jpg")])


def test_temporary_files_of_killed_processes_are_removed_and_no_others(tmp_path):
    for name in (".photo.2023", ".photo.jpg.1", "photo.jpg"):
        (tmp_path / name).write_bytes(b"of the user")
    with atomic_path(tmp_path / "photo.jpg") as own:
        own.write_bytes(b"running")
        dead = own.with_name(own.name.replace(f".{threading.get_native_id()}.", ".99999999."))
        dead.write_bytes(b"killed")
        remove_temporary_files(tmp_path)
        assert own.exists()
    assert sorted(os.listdir(tmp_path)) == [".photo.2023", ".photo.jpg.1", "photo.jpg"]
    assert (tmp_path / "photo.jpg").read_bytes() == b"running"
