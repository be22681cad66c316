import csv
import json
import os

import pytest

from aia_jax.data.search.keywords import read_keywords
from aia_jax.inference import annotation_output
from aia_jax.inference.annotation_output import AnnotationOutput
from aia_jax.utils.errors import InputError

SETTINGS = {"images": "/photos", "model": {"weights": "a", "stats": (1, 2)}, "thresholds": [0.5], "top": None}
LABELS = (("<script>alert(1)</script>", 0.75), ('a "b", c', 0.1))
NAMES = [
    "plain.jpg",
    "sub/with space.jpg",
    'quo"te,comma.jpg',
    "line\nbreak\r.jpg",
    "separator\u2028\x85.jpg",
    "日本 سیب 🍎.jpg",
    os.fsdecode(b"bytes \xff\xfe.jpg"),
    "=HYPERLINK(1).jpg",
    "-sub/@x.jpg",
    "n" * 246 + ".jpg",
]


def write(folder, names=NAMES, settings=SETTINGS, labels=LABELS, **options):
    """One whole call; the photos whose labels were there."""
    with AnnotationOutput(folder, settings, **options) as written:
        done = set(written.done)
        written.add([(name, labels) for name in names if name not in done], [])
        for _ in written.derive():
            pass
    return done


def images(folder):
    return [json.loads(line)["image"] for line in (folder / "annotations.jsonl").read_bytes().splitlines()]


def test_every_name_and_label_comes_through(tmp_path):
    write(tmp_path)
    assert images(tmp_path) == NAMES
    first = json.loads((tmp_path / "annotations.jsonl").read_text().splitlines()[0])
    assert first["labels"] == [{"label": label, "score": score} for label, score in LABELS]
    with (tmp_path / "annotations.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        header, *rows = csv.reader(file, strict=True)
    assert header == ["image", "label", "score"]
    assert [(os.path.normpath(row[0]), row[1], float(row[2])) for row in rows] == [
        (name, *label) for name in NAMES for label in LABELS
    ]
    for name in NAMES:
        assert read_keywords(tmp_path / "keywords" / f"{name}.json") == [label for label, _ in LABELS]
    assert not list(tmp_path.glob(".*"))


def test_no_cell_of_a_name_is_a_formula(tmp_path):
    write(tmp_path)
    rows = (tmp_path / "annotations.csv").read_bytes().decode(errors="surrogateescape").split("\r\n")
    starts = {row.lstrip('"')[:1] for row in rows}
    assert not starts & set("=+-@\t\r\n")
    assert "./=HYPERLINK(1).jpg" in "".join(rows)


def test_what_is_there_is_not_done_again(tmp_path):
    assert write(tmp_path, NAMES[:4]) == set()
    assert write(tmp_path) == set(NAMES[:4])
    assert images(tmp_path) == NAMES


@pytest.mark.parametrize("torn", [b'{"image": "x', b'{"image": "x.jpg", "labels": []}'])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    write(tmp_path, NAMES[:2])
    with (tmp_path / "annotations.jsonl").open("ab") as file:
        file.write(torn)
    assert write(tmp_path) == set(NAMES[:2])
    assert images(tmp_path) == NAMES


@pytest.mark.parametrize("damage", [b"\0\0\0\n", b"[]\n", b'{"image": "x.jpg"}\n', b"\xff\n"])
def test_damage_within_is_told_with_its_line(tmp_path, damage):
    write(tmp_path, NAMES[:2])
    with (tmp_path / "annotations.jsonl").open("ab") as file:
        file.write(damage)
    with pytest.raises(InputError, match=r"annotations.jsonl:3 is damaged: .*; delete the line, or start anew"):
        write(tmp_path)
    write(tmp_path, force=True)
    assert images(tmp_path) == NAMES


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"top": 3}, "whose top differ"),
        ({"thresholds": [0.4], "model": {}}, "whose model, thresholds differ"),
        ({"new": 1}, "whose new differ"),
    ],
)
def test_results_are_never_mixed(tmp_path, changed, text):
    write(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=f"{text} from these.*--force starts anew, --output names another place"):
        write(tmp_path, settings=SETTINGS | changed)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert write(tmp_path, NAMES[:1], SETTINGS | changed, force=True) == set()
    assert images(tmp_path) == NAMES[:1]
    assert len(list((tmp_path / "keywords").rglob("*.json"))) == 1


def test_damaged_settings_are_told(tmp_path):
    write(tmp_path)
    (tmp_path / "settings.json").write_text("[")
    with pytest.raises(InputError, match=r"settings.json is damaged: .*; --force starts anew"):
        write(tmp_path)


@pytest.mark.parametrize("name", ["annotations.jsonl", "annotations.csv", "problems.jsonl", "keywords"])
@pytest.mark.parametrize("force", [False, True])
def test_files_of_others_are_left_alone(tmp_path, name, force):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("")
    with pytest.raises(InputError, match=f"{name} is there, without the settings.json that says what made it"):
        write(tmp_path, force=force)
    assert (tmp_path / name / "mine").exists()


def test_an_output_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is a file; name a folder"):
        write(tmp_path / "file")


def test_two_at_once_are_refused(tmp_path):
    with (
        AnnotationOutput(tmp_path, SETTINGS),
        pytest.raises(InputError, match="another process is annotating into"),
    ):
        AnnotationOutput(tmp_path, SETTINGS)
    write(tmp_path)


def test_problems_are_those_of_the_last_call(tmp_path):
    with AnnotationOutput(tmp_path, SETTINGS) as written:
        written.add([], [("a\n.jpg", "torn"), ("b.jpg", "empty")])
        assert list(written.problems()) == [("a\n.jpg", "torn"), ("b.jpg", "empty")]
    with AnnotationOutput(tmp_path, SETTINGS) as written:
        assert written.done == set()
        assert list(written.problems()) == []


def test_a_photo_that_cannot_have_a_file_of_keywords_is_told(tmp_path):
    names = ["n" * 251 + ".jpg", "a.jpg", "a.jpg.json/b.jpg"]
    with AnnotationOutput(tmp_path, SETTINGS) as written:
        written.add([(name, LABELS) for name in names], [])
        assert [name for name, _ in written.derive()] == names
        problems = dict(written.problems())
    assert problems == {
        names[0]: "its file of keywords cannot be written: File name too long",
        names[2]: "its file of keywords cannot be written: File exists",
    }
    assert len((tmp_path / "annotations.csv").read_text().splitlines()) == 7


def test_the_table_is_whole_or_absent(tmp_path, monkeypatch):
    write(tmp_path, NAMES[:1])
    before = (tmp_path / "annotations.csv").read_bytes()
    (tmp_path / "keywords" / "plain.jpg.json").unlink()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(annotation_output, "write_bytes", fail)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path)
    assert (tmp_path / "annotations.csv").read_bytes() == before
    monkeypatch.undo()
    assert write(tmp_path) == set(NAMES)
    assert read_keywords(tmp_path / "keywords" / "plain.jpg.json") == [label for label, _ in LABELS]
