"""Answers that are exported and imported again are the same answers."""

import json
import os

import pytest

from aia_jax.data.importing.label_files import read_labels_of
from aia_jax.inference.review.corrections import Corrections
from aia_jax.inference.review.exchange import FORMATS, export_answers, import_answers
from aia_jax.utils.errors import InputError
from tests.helpers.photos import make_photo

NAMES = [
    "ä|b.jpg",
    "a b,c;d.jpg",
    "🍎.jpg",
    os.fsdecode(b"\xff.jpg"),
    "photos/a.jpg",
    "a.jpg",
    "=1+1.jpg",
    "100%25.jpg",
]
NAMES += ["line\n\r'\"break.jpg", "-1/@.jpg", "e\u0301.jpg", "\u00e9.jpg", "back\\slash.jpg", "a#b?d=c&.jpg"]
LABELS = ("dog", "=2+2", 'a "b", c; d', "'quoted", "Ünïcode 🍎", "<&>")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("review") / "photos"
    for seed, name in enumerate(NAMES):
        make_photo(folder / name, seed)
    return folder


def review(folder):
    """Answers about all photos, one of them with rejected labels only, and one added label."""
    corrections = Corrections(folder)
    for number, label in enumerate(LABELS):
        corrections.answer(NAMES[number::2], label, True)
        corrections.answer(NAMES[number + 1 :: 3], label, False)
    corrections.answer(NAMES[1:3], "fog", False)
    return corrections


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_round_trip_keeps_all_answers(photos, tmp_path, file_format):
    output = tmp_path / "new" / f"answers.{'csv' if file_format == 'csv' else 'json'}"
    with review(tmp_path / "a") as given:
        assert {photo: set(given.answers[photo].values()) for photo in NAMES[:2]} == {
            NAMES[0]: {True},
            NAMES[1]: {True, False},
        }
        given.answer([*NAMES, "gone.jpg"], "dog", False)
        lines = export_answers(given, photos, LABELS, file_format, output)
        expected = {name: given.answers[name] for name in NAMES}
    assert lines[0] == f"answers about {len(NAMES)} photos written to {output}"
    assert lines[-1] == "1 photo left out:\n  gone.jpg: no longer in the folder"
    with Corrections(tmp_path / "b") as empty:
        lines = import_answers(empty, photos, LABELS, output)
        assert empty.answers == expected
        number = sum(map(len, expected.values()))
        assert lines[1] == f"{number} answers stored, 0 were stored before"
        assert lines[2:] == ["1 label added that the run does not have:\n  fog: 2 answers"]
        assert import_answers(empty, photos, LABELS, output)[1] == f"0 answers stored, {number} were stored before"
    with Corrections(tmp_path / "b") as stored:
        assert stored.answers == expected


def test_imported_answers_replace_opposite_answers_and_are_listed(photos, tmp_path):
    path = tmp_path / "answers.csv"
    path.write_text("image,label,answer\na.jpg,dog,rejected\nä|b.jpg,dog,confirmed\nnone.jpg,dog,rejected\n")
    with Corrections(tmp_path) as corrections:
        corrections.answer(["a.jpg", "ä|b.jpg", "🍎.jpg"], "dog", True)
        lines = import_answers(corrections, photos, LABELS, path)
        assert corrections.answers == {"a.jpg": {"dog": False}, "ä|b.jpg": {"dog": True}, "🍎.jpg": {"dog": True}}
        assert lines[1:] == [
            "1 answer stored, 1 were stored before",
            "1 answer of these replaced the opposite answer:\n  a.jpg: dog is rejected, was confirmed",
            f"not used: 1 problem of entries:\n  answers.csv:4: no photo 'none.jpg' in {photos}",
        ]
        path.write_text("image,label,answer\nnone.jpg,dog,rejected\n")
        with pytest.raises(InputError, match="0 confirmed and 0 rejected labels of 0 photos; not used: 1 problem"):
            import_answers(corrections, photos, LABELS, path)


def test_what_a_format_cannot_hold_is_refused(photos, tmp_path):
    with Corrections(tmp_path) as corrections:
        with pytest.raises(InputError, match="has an answer; answer first"):
            export_answers(corrections, photos, LABELS, "csv", tmp_path / "a.csv")
        corrections.answer(["a.jpg"], "'=x", True)
        with pytest.raises(InputError, match=r"cannot hold the label .*; rename it, or use another format"):
            export_answers(corrections, photos, LABELS, "csv", tmp_path / "a.csv")


def test_answers_are_no_labels_for_training(photos, tmp_path):
    """Rejected labels are absent, but labels without an answer are unknown, so no format is a complete list."""
    with review(tmp_path / "review") as corrections:
        export_answers(corrections, photos, LABELS, "csv", tmp_path / "a.csv")
        export_answers(corrections, photos, LABELS, "coco", tmp_path / "a.json")
    with pytest.raises(
        InputError, match="answers of a review, which leave most labels open: `aia review` trains with them"
    ):
        read_labels_of(tmp_path / "review" / "corrections.jsonl")
    with pytest.raises(InputError, match="answer"):
        read_labels_of(tmp_path / "a.csv")
    assert "not used: neg_category_ids" in read_labels_of(tmp_path / "a.json").understood
    assert json.loads((tmp_path / "a.json").read_bytes())["images"][0]["not_exhaustive_category_ids"] == []
