"""Mapping files: the keyword of each label, synonyms, and labels to ignore."""

import pytest

from aia_jax.data.photo_metadata.mapping import KeywordMapping, read_mapping, write_mapping
from aia_jax.utils.errors import InputError

MAPPING = """
labels:
  dog: Animals|Mammals|Dog
  no: No
  cat:
    path: Animals|Cat
    synonyms: [kitty, Kitty Cat]
ignore: [outdoor, Places]
"""


@pytest.fixture
def mapping(tmp_path):
    (tmp_path / "keywords.yaml").write_text(MAPPING)
    return read_mapping(tmp_path / "keywords.yaml")


def test_a_label_has_the_keyword_of_the_file_and_else_its_own_name(mapping):
    labels = ("dog", "Dog", "kitty", "no", "tree", "Outdoor", "places")
    expected = [("Animals", "Mammals", "Dog"), ("Animals", "Mammals", "Dog"), ("Animals", "Cat"), ("No",), ("tree",)]
    assert [mapping.path(label) for label in labels] == [*expected, (), ()]
    assert KeywordMapping().path("a|b") == ("a|b",)


def test_a_keyword_has_the_label_of_the_file_and_else_its_last_level(mapping):
    paths = [
        ("animals", "Mammals", "DOG"),
        ("Dog",),
        ("Pets", "kitty-cat"),
        ("Outdoor",),
        ("Places", "Rome"),
        ("X", "Tree"),
    ]
    assert [mapping.label(path) for path in paths] == ["dog", "dog", "cat", "", "", "Tree"]


def test_labels_that_the_model_does_not_have_are_listed_with_the_nearest_one(mapping):
    assert mapping.unknown(["dogs", "kitty", "tree"]) == ["'dog'; did you mean 'dogs'?", "'no'"]


def test_a_first_file_has_the_keywords_of_the_person_and_reads_back(tmp_path):
    labels = ("dog", "no", "a: b", "ü|x", "#1", "2024", "Dog", "ü-x")
    assert write_mapping(tmp_path / "k.yaml", labels, [("dog",), ("Animals", "Dog"), ("x",)]) == 1
    mapping = read_mapping(tmp_path / "k.yaml")
    paths = [("Animals", "Dog"), ("no",), ("a: b",), ("ü-x",), ("#1",), ("2024",), ("Animals", "Dog"), ("ü-x",)]
    assert [mapping.path(label) for label in labels] == paths
    with pytest.raises(InputError, match="is there already"):
        write_mapping(tmp_path / "k.yaml", labels, [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "found none"),
        ("a: 1", "found 'a'"),
        ("labels: [a]", "expected `labels`"),
        ("labels: {dog: a, dog: b}", "found 'dog' twice at line 1"),
        ("labels: {dog: 'a||b', cat: {x: 1}, x: [1], c: {synonyms: [dog]}}", "4 problem"),
        ("labels: {a: X, b: x}", "is the keyword of 'a' and of 'b'"),
        ("labels:\n  - a\n b", "at line 3"),
        ("labels:\n  ? [a]\n  : b", "no text at line 2"),
        ("[" * 1500, "nested too deeply"),
        ('labels: {"two\\nlines": a}', "a label must be one line"),
    ],
)
def test_files_that_cannot_be_used_are_refused(tmp_path, text, problem):
    (tmp_path / "k.yaml").write_text(text)
    with pytest.raises(InputError, match=problem):
        read_mapping(tmp_path / "k.yaml")
