import unicodedata

import pytest

from aia_jax.data.importing.label_checks import sample_lines, unify_labels
from aia_jax.data.importing.labelled_photos import LabelRow

CAFE, CAFE_DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def unify(*labels, vocabulary=None, accept=False):
    """Returns the labels of one photo for each label, the notes, and the problems."""
    problems = []
    rows = [LabelRow(f"l.csv:{line}", f"{line}.jpg", (label,)) for line, label in enumerate(labels, 2)]
    found, notes = unify_labels(rows, vocabulary, problems, accept=accept)
    return [label for row in found for label in row.labels], notes, problems


def test_both_unicode_forms_of_a_label_are_one_label():
    labels, notes, problems = unify(CAFE, CAFE_DECOMPOSED)
    assert (labels, problems) == ([CAFE, CAFE], [])
    assert notes == ["'café' was written in 2 Unicode forms; it is one label"]
    assert unify(CAFE, vocabulary=[CAFE_DECOMPOSED])[0] == [CAFE_DECOMPOSED]


def test_labels_that_differ_in_case_or_spaces_are_told_and_stay_different():
    labels, notes, _ = unify("golden gate", "Golden Gate", "golden\xa0 gate", "t-shirt", "golden gate", "polar bear")
    assert set(labels) == {"golden gate", "Golden Gate", "golden\xa0 gate", "t-shirt", "polar bear"}
    assert len(notes) == 1
    assert notes[0].startswith("'Golden Gate' (1 photo), 'golden gate' (2 photos), 'golden\\xa0 gate' (1 photo) differ")


BROKEN = (
    '{"choices": ["dog"',
    "['cat'",
    "dog]",
    "(dog",
    '"dog',
    "'dog'",
    "“dog”",
    "a\tb",
    "a\u200bb",
    "--",
    "nan",
    "None",
)
BROKEN += (
    "data/upload/3/a",
    "https://a.b/c",
    "/m/01g317",
    "dog.JPG",
    "stra\ufffde",
    "straÃŸe",
    "stra√üe",
    "Tom &amp; Jerry",
)
BROKEN += (
    '"dog": 1',
    "x" * 101,
    ">",
    "+",
    "dog: 0.93",
    "dog (93%)",
    "dog .9",
    "and park",
    '="dog"',
    "#REF!",
    "dog (0,93)",
)


@pytest.mark.parametrize("label", BROKEN)
def test_labels_that_look_broken_are_left_out_and_reported(label):
    labels, _, problems = unify("sky", label)
    assert labels == ["sky"]
    assert problems[0].startswith("l.csv:3: the label ")
    assert unify("sky", label, accept=True)[0] == unify("sky", label, vocabulary=["sky", label])[0] == ["sky", label]


def test_rows_whose_labels_all_look_broken_are_left_out():
    rows = [LabelRow("l:2", "a", ("/m/01g317",)), LabelRow("l:3", "a", ("nan",)), LabelRow("l:4", "b", ())]
    assert unify_labels(rows, None, [], accept=False)[0] == rows[2:]


def test_unusual_labels_are_accepted():
    usual = ["(5) star", '24"', "dog's", "dogs'", "c++", "T-shirt/top", "ring (donut)", "🐶", "سیب\u200cزمینی", "🏳️‍🌈"]
    usual += [
        "rock 'n' roll",
        "5'11\"",
        "New York, NY",
        "é",
        "Ämter",
        "собака",
        "日本",
        "AC/DC",
        "R&B",
        "1",
        "$",
        "f-16",
    ]
    assert unify(*usual)[::2] == (usual, [])


def test_the_sample_prefers_photos_with_several_labels_and_is_spread():
    photos = [LabelRow("", f"{n:02}.jpg", ("sky", "sea") if n % 2 else ("sky",)) for n in range(40)]
    assert [line[2:4] for line in sample_lines(photos, 10)] == [f"{n:02}" for n in range(1, 40, 4)]
    few = [LabelRow("", "a.jpg", ()), LabelRow("", "x" * 50 + ".jpg", ("sky", "sea"))]
    assert sample_lines(few, 10) == ["  ..." + "x" * 33 + ".jpg  sky | sea", "  a.jpg" + " " * 37 + "(no label)"]
    assert sample_lines([], 10) == []
