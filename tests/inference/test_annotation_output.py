"""Labels on disk: any name survives, an interrupted call continues, and results of different settings never mix."""

import csv
import json
import os
from unittest.mock import patch

import pytest

from aia_jax.data.search.keywords import read_keywords
from aia_jax.inference import annotation_output
from aia_jax.inference.annotation_output import AnnotationOutput
from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import spreadsheet_text

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


def write(folder, names=NAMES, settings=SETTINGS, **options):
    """Makes one complete call; returns the photos that had labels before."""
    with AnnotationOutput(folder, settings, **options) as output:
        done = set(output.done)
        output.add([(name, LABELS) for name in names if name not in done], [])
        for _ in output.derive():
            pass
    return done


def images(folder):
    return [json.loads(line)["image"] for line in (folder / "annotations.jsonl").read_bytes().splitlines()]


def test_every_name_and_label_is_kept(tmp_path):
    write(tmp_path)
    assert images(tmp_path) == NAMES
    first = json.loads((tmp_path / "annotations.jsonl").read_text().splitlines()[0])
    assert first["labels"] == [{"label": label, "score": score} for label, score in LABELS]
    with (tmp_path / "annotations.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, strict=True)
    assert header == ["image", "label", "score"]
    assert [(os.path.normpath(row[0]), row[1], float(row[2])) for row in rows] == [
        (name.replace(os.fsdecode(b"\xff\xfe"), r"\udcff\udcfe"), *label) for name in NAMES for label in LABELS
    ]
    for name in NAMES:
        assert read_keywords(tmp_path / "keywords" / f"{name}.json") == [label for label, _ in LABELS]
    assert not list(tmp_path.glob(".*"))
    lines = (tmp_path / "annotations.csv").read_bytes().decode().split("\r\n")
    assert not {line.lstrip('"')[:1] for line in lines} & set("=+-@\t\r\n")  # no cell is a formula
    assert "./=HYPERLINK(1).jpg" in "".join(lines)
    assert [spreadsheet_text(text) for text in ("=1+1", "a=b")] == ["'=1+1", "a=b"]


@pytest.mark.parametrize("incomplete", [b"", b'{"image": "x', b'{"image": "x.jpg", "labels": []}'])
def test_a_call_continues_and_drops_an_incomplete_last_line(tmp_path, incomplete):
    assert write(tmp_path, NAMES[:2]) == set()
    with (tmp_path / "annotations.jsonl").open("ab") as file:
        file.write(incomplete)
    assert write(tmp_path) == set(NAMES[:2])
    assert images(tmp_path) == NAMES


@pytest.mark.parametrize("damage", [b"\0\0\0\n", b"[]\n", b'{"image": "x.jpg"}\n', b"\xff\n"])
def test_a_damaged_line_is_reported_with_its_number(tmp_path, damage):
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
def test_results_of_other_settings_are_never_mixed(tmp_path, changed, text):
    write(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=f"{text} from these.*--force starts anew, --output names another place"):
        write(tmp_path, settings=SETTINGS | changed)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert write(tmp_path, NAMES[:1], SETTINGS | changed, force=True) == set()
    assert images(tmp_path) == NAMES[:1]
    assert len(list((tmp_path / "keywords").rglob("*.json"))) == 1


def test_unusable_outputs_are_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file; name a folder"):
        write(tmp_path / "file")
    write(tmp_path / "out")
    with AnnotationOutput(tmp_path / "out", SETTINGS), pytest.raises(InputError, match="process is annotating into"):
        write(tmp_path / "out")
    write(tmp_path / "out")  # the lock is released
    (tmp_path / "out" / "settings.json").write_text("[")
    with pytest.raises(InputError, match=r"settings.json is damaged: .*; --force starts anew"):
        write(tmp_path / "out")


@pytest.mark.parametrize("name", ["annotations.jsonl", "annotations.csv", "problems.jsonl", "keywords"])
@pytest.mark.parametrize("force", [False, True])
def test_files_of_another_origin_are_not_touched(tmp_path, name, force):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("")
    with pytest.raises(InputError, match=f"{name} is there, without the settings.json that says what made it"):
        write(tmp_path, force=force)
    assert (tmp_path / name / "mine").exists()


def test_problems_are_those_of_the_last_call(tmp_path):
    with AnnotationOutput(tmp_path, SETTINGS) as output:
        output.add([], [("a\n.jpg", "torn"), ("b.jpg", "empty")])
        assert list(output.problems()) == [("a\n.jpg", "torn"), ("b.jpg", "empty")]
    with AnnotationOutput(tmp_path, SETTINGS) as output:
        assert output.done == set()
        assert list(output.problems()) == []


def test_a_photo_whose_keywords_file_is_impossible_becomes_a_problem(tmp_path):
    names = ["n" * 251 + ".jpg", "a.jpg", "a.jpg.json/b.jpg"]
    with AnnotationOutput(tmp_path, SETTINGS) as output:
        output.add([(name, LABELS) for name in names], [])
        assert [name for name, _ in output.derive()] == names
        problems = dict(output.problems())
    assert problems == {
        names[0]: "its file of keywords cannot be written: File name too long",
        names[2]: "its file of keywords cannot be written: File exists",
    }
    assert len((tmp_path / "annotations.csv").read_text().splitlines()) == 7


def test_a_full_disk_keeps_the_old_table(tmp_path):
    write(tmp_path, NAMES[:1])
    before = (tmp_path / "annotations.csv").read_bytes()
    (tmp_path / "keywords" / "plain.jpg.json").unlink()
    full = OSError(28, "No space left on device")
    with patch.object(annotation_output, "write_bytes", side_effect=full), pytest.raises(OSError, match="No space"):
        write(tmp_path)
    assert (tmp_path / "annotations.csv").read_bytes() == before
    assert write(tmp_path) == set(NAMES)
    assert read_keywords(tmp_path / "keywords" / "plain.jpg.json") == [label for label, _ in LABELS]
