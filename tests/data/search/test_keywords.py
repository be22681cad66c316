"""Words of keywords, their vocabulary and records, compared with scikit-learn and the published programs."""

import itertools
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer

from aia_jax.data.search.keyword_records import read_keyword_record, write_keyword_records
from aia_jax.data.search.keywords import KeywordVocabulary, analyze, read_keywords
from aia_jax.utils.errors import InputError

READ, LOAD = read_keywords, KeywordVocabulary.load
RECORD = [[4, 2], [4, 0], [4, 2], [1, 1], [2, 3], [2, 0]]
RANGES = [[-1, -1], [3, 3], [4, 5], [-1, -1], [0, 2], [-1, -1]]


@pytest.fixture
def save(tmp_path):
    def save(rows, name="record.npy"):
        np.save(tmp_path / name, np.array(rows, np.int32))
        return tmp_path / name

    return save


@pytest.fixture
def paths(tmp_path):
    return tmp_path / "record.npy", tmp_path / "ranges.npy"


def test_keywords_are_read_and_split_into_words(write):
    document = {"tagging": {"keywords": ["Old man", "café"], "scores": []}, "id": 3}
    assert read_keywords(write(document)) == ["Old man", "café"]
    assert read_keywords(write({"tagging": {"keywords": []}})) == []
    keywords = ["Old Man", "the sea", "x", "T-Shirt", "man", "go-kart", "2 CDs", "", "café"]
    assert analyze(keywords) == ["old", "man", "sea", "shirt", "man", "kart", "cds", "café"]
    assert analyze(["the", "a", "x"]) == analyze([]) == []


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (READ, None, "none cannot be read: No such file or directory"),
        (READ, b"", "file is not JSON: Expecting value"),
        (READ, [], 'file has no tagging.keywords; expected {"tagging": {"keywords": ["a word or more", ...]}}'),
        (READ, {"keywords": []}, "file has no tagging.keywords"),
        (READ, {"tagging": []}, "file has no tagging.keywords"),
        (READ, {"tagging": {}}, "file has no tagging.keywords"),
        (READ, {"tagging": {"keywords": "dog"}}, "file: tagging.keywords must be a list of strings, found 'dog'"),
        (READ, {"tagging": {"keywords": ["dog", 3]}}, "file: tagging.keywords[1] must be a string, found 3"),
        (LOAD, None, "none cannot be read: No such file or directory"),
        (LOAD, b"{", "file is not JSON"),
        (LOAD, [], "file has no words; expected {"),
        (LOAD, {"words": []}, "file has no words"),
        (LOAD, {"words": {"a": 1}}, "file: words must be a list of strings"),
        (LOAD, {"words": ["a", 1]}, "file: words[1] must be a string, found 1"),
        (LOAD, {"words": ["a", "b", "a"]}, "file: 'a' is repeated; every word must have one id"),
    ],
)
def test_unusable_keywords_and_vocabularies_are_refused(write, tmp_path, read, content, message):
    path = tmp_path / "none" if content is None else write(content)
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}/{message}")):
        read(path)


PIECES = "dog", "Dog", "CAT", "the", "a", "x", "t-shirt", "old man", "café", "_", "__", "3D", "", "\n"
IMAGES = st.lists(st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=6), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(images=IMAGES, others=IMAGES, min_count=st.integers(1, 4))
def test_words_and_ids_are_those_of_scikit_learn(images, others, min_count):
    vectorizer = CountVectorizer(min_df=min_count, stop_words="english")
    documents = [analyze(image) for image in images]
    try:
        vectorizer.fit([" ".join(image) for image in images])
    except ValueError:  # no word is left
        with pytest.raises(InputError, match=f"no word is in the keywords of {min_count} images"):
            KeywordVocabulary.fit(documents, min_count)
        return
    vocabulary = KeywordVocabulary.fit(documents, min_count)
    ids = vectorizer.vocabulary_
    assert {word: number for number, word in enumerate(vocabulary.words)} == ids
    analyzer = vectorizer.build_analyzer()
    for image in others:
        encoded = vocabulary.encode(analyze(image))
        assert encoded.dtype == np.int32
        assert encoded.tolist() == [ids[word] for word in analyzer(" ".join(image)) if word in ids]


def test_a_vocabulary_is_saved(tmp_path):
    vocabulary = KeywordVocabulary(["café", "dog"])
    vocabulary.save(tmp_path / "new" / "words.json")
    loaded = KeywordVocabulary.load(tmp_path / "new" / "words.json")
    assert loaded.words == ("café", "dog")
    assert len(loaded) == 2
    assert loaded.name == str(tmp_path / "new" / "words.json")
    assert loaded.encode(["dog", "x", "café", "dog"]).tolist() == [1, 0, 1]


def test_memory_does_not_grow_with_the_images(paths):
    def peak(num_images: int) -> int:
        def documents():
            return ([f"word{(7 * image + place) % 300}" for place in range(20)] for image in range(num_images))

        tracemalloc.start()
        vocabulary = KeywordVocabulary.fit(documents())
        images = zip(itertools.count(), map(vocabulary.encode, documents()))
        write_keyword_records(*paths, images, 10_000)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1000)
    few, many = peak(1000), peak(10_000)
    assert many < 1.1 * few
    assert read_keyword_record(paths[0], np.arange(10_000), 20, 300)[1].sum() == 200_000


def test_records_are_written_and_read(paths):
    images = [(4, [2, 0, 2]), (0, []), (1, [1]), (2, [3, 0]), (5, [])]
    ranges = write_keyword_records(*paths, ((image, np.array(words, np.int32)) for image, words in images), 6)
    assert ranges.tolist() == RANGES
    assert (np.load(paths[0]).tolist(), np.load(paths[0]).dtype) == (RECORD, np.int32)
    assert np.load(paths[1]).tolist() == RANGES
    keywords, counts = read_keyword_record(paths[0], np.array([2, 0, 4, 4, 1]), 2, 4)
    assert (keywords.dtype, counts.dtype) == (np.int32, np.int32)
    assert keywords.tolist() == [[3, 0], [0, 0], [2, 0], [2, 0], [1, 0]]
    assert counts.tolist() == [2, 0, 2, 2, 1]
    assert read_keyword_record(paths[0], np.arange(6), 4, 4)[0].tolist()[4] == [2, 0, 2, 0]
    write_keyword_records(*paths, [(0, np.zeros(0, np.int32))], 2)  # a record without a row
    assert read_keyword_record(paths[0], np.arange(2), 3, 4)[1].tolist() == [0, 0]
    assert [array.shape for array in read_keyword_record(paths[0], np.zeros(0, int), 3, 4)] == [(0, 3), (0,)]


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), min_size=1, max_size=30))
def test_records_in_any_order_are_read(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("published") / "record.npy"
    np.save(path, np.array(rows))
    keywords, counts = read_keyword_record(path, np.arange(11), 30, 6)
    for image, (ids, count) in enumerate(zip(keywords, counts, strict=True)):
        assert ids[:count].tolist() == [word for other, word in rows if other == image]


@pytest.mark.parametrize(
    ("record", "images", "num_words", "message"),
    [
        (RECORD, [1, 2, 3], 4, "row 0 is [4, 2]; it must be [image, word], with an image of the split and a word from"),
        (RECORD, [1, 2, 4], 3, "record.npy: row 4 is [2, 3]; it must be [image, word], with an image of the split"),
        ([*RECORD, [-1, 1]], [1, 2, 4], 4, "row 6 is [-1, 1]; it must be [image, word]"),
        (RANGES, range(6), 6, "row 0 is [-1, -1]; it must be [image, word]"),  # published ranges
    ],
)
def test_records_that_do_not_fit_are_refused(save, record, images, num_words, message):
    with pytest.raises(InputError) as caught:
        read_keyword_record(save(record), np.array(images), 9, num_words)
    assert message in str(caught.value)


def test_files_that_are_no_records_are_refused(save, tmp_path):
    good, bad = save(RECORD), tmp_path / "bad.npy"
    cut = good.read_bytes()

    def refused(match):
        with pytest.raises(InputError, match=rf"{bad} {match}"):
            read_keyword_record(bad, np.arange(6), 9, 4)

    refused("does not exist; `aia keywords` writes it")
    for content in (b"", b"no array", cut[:-3], cut[:50]):
        bad.write_bytes(content)
        refused("is not a .npy file, or is truncated: ")
    for array in (np.zeros((3, 2)), np.zeros((3, 3), int), np.zeros(4, int), np.zeros((2, 2), bool)):
        np.save(bad, array)
        refused(r"must hold integers \[rows, 2\], found ")
