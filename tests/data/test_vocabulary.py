"""Words, vocabularies, ids and tf-idf of captions, compared with nltk and scikit-learn."""

import json
import re
import socket
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tokenize import word_tokenize
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from aia_jax.data import vocabulary as text
from aia_jax.data.vocabulary import (
    Vocabulary,
    encode_captions,
    image_means,
    read_captions,
    read_vectors,
    tf_idf,
    tokenize,
    word_counts,
)
from aia_jax.utils.errors import InputError
from tests.conftest import SHARED_DATASETS

CAPTIONS = (
    "A dog runs on the beach .",
    "The dog is running",
    "A brown dog, wet and happy, runs.",
    "a DOG",
    "Running dog on sand",
    "Two men surf a wave .",
    "Surfers ride the wave",
    "a man rides a big wave",
    "Men surf",
    "A surfer on a wave .",
)
QUERY_WORDS = Vocabulary.build(["red boat sea"], min_count=1)
LOAD, VECTORS = Vocabulary.load, partial(read_vectors, vocabulary=QUERY_WORDS, size=2)
WORDS = {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "a": 4, "dog": 5, ".": 6}
VOCABULARY = Vocabulary(WORDS)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("Two dogs play .", ["two", "dogs", "play", "."]),
        ("A man in a T-shirt, smiling.", ["a", "man", "in", "a", "t-shirt", ",", "smiling", "."]),
        ("A wave. The man's board", ["a", "wave", ".", "the", "man", "'s", "board"]),
        (
            "On Ave. B. with Mrs. X, the U.S. flag",
            ["on", "ave.", "b.", "with", "mrs.", "x", ",", "the", "u.s.", "flag"],
        ),
        ('A sign says "stop"', ["a", "sign", "says", "``", "stop", "''"]),
        ("They cannot; they're 10,000", ["they", "can", "not", ";", "they", "'re", "10,000"]),
        ("Café -- $5", ["café", "--", "$", "5"]),
        (" a\u2028b\r", ["a", "b"]),
        ("", []),
    ],
)
def test_captions_are_split_into_words_and_marks(caption, words):
    assert tokenize(caption) == words


PIECES = st.sampled_from(
    ["a", "to", "dog", "cannot", "gonna", "wanna", "more", "'n", "s", "t-shirt", "-", "--", ",", ".", "..", " ", "  "]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(PIECES, max_size=8).map("".join))
def test_words_are_those_of_nltk(caption):
    sentences = text._INNER_STOP.sub(" .", caption.strip())
    assert tokenize(caption) == word_tokenize(sentences, preserve_line=True)


def test_nothing_is_downloaded(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    assert tokenize("The dog's ball. It (red)") == ["the", "dog", "'s", "ball", ".", "it", "(", "red", ")"]


def test_a_vocabulary_has_the_order_of_first_occurrence():
    assert list(word_counts(["b a .", "a c"]).items()) == [("b", 1), ("a", 2), (".", 1), ("c", 1)]
    captions = ["the dog .", "a dog .", "A DOG ran ."]
    assert Vocabulary.build(captions, 2) == Vocabulary(
        {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "dog": 4, ".": 5, "a": 6}
    )
    assert len(Vocabulary.build(captions, 1)) == 9
    with pytest.raises(InputError, match="no word occurs 4 times; give more captions or a lower min_count"):
        Vocabulary.build(captions)


def test_a_vocabulary_is_saved_in_scans_format(tmp_path):
    path = tmp_path / "new" / "vocab.json"
    VOCABULARY.save(path)
    words = {"0": "<pad>", "1": "<start>", "2": "<end>", "3": "<unk>", "4": "a", "5": "dog", "6": "."}
    assert json.loads(path.read_text()) == {"word2idx": WORDS, "idx2word": words, "idx": 7}
    loaded = Vocabulary.load(path)
    assert (loaded, len(loaded)) == (VOCABULARY, 7)
    assert ("dog" in loaded, "cat" in loaded) == (True, False)


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (LOAD, None, "~/none cannot be read: No such file or directory"),
        (LOAD, b"{", "~/file is not JSON: Expecting property name"),
        (LOAD, [], "~/file has no object word2idx; expected SCAN's {word2idx, idx2word, idx}; `aia vocab` writes one"),
        (LOAD, {"word2idx": ["a"]}, "~/file has no object word2idx"),
        (LOAD, {"word2idx": {"a": 0, "<start>": 1, "<pad>": 2}}, "~/file lacks <end>, <unk>; expected SCAN's"),
        (
            LOAD,
            {"word2idx": {"<unk>": 0, "<start>": 1, "<end>": 2, "<pad>": 3}},
            "~/file: <pad> must be 0, which pads captions, found 3",
        ),
        (LOAD, {"word2idx": WORDS | {"a": 7}}, "~/file: 'a' has id 7; ids are 0 to 6"),
        (LOAD, {"word2idx": WORDS | {"a": -1}}, "~/file: 'a' has id -1; ids are 0 to 6"),
        (LOAD, {"word2idx": WORDS | {"a": "4"}}, "~/file: 'a' has id '4'; ids are 0 to 6"),
        (LOAD, {"word2idx": WORDS | {"<start>": True}}, "~/file: '<start>' has id True; ids are 0 to 6"),
        (LOAD, {"word2idx": WORDS | {"\ud800": 6}}, r"~/file: '\ud800' is not a word, it contains half of a character"),
        (LOAD, {"word2idx": WORDS | {"a": 5}}, "~/file: 'a' and 'dog' both have id 5; ids must be unique"),
        (read_captions, None, "~/none cannot be read: No such file or directory"),
        (read_captions, b"", "~/file is empty; it must have one caption per line"),
        (read_captions, b"\n", "~/file is empty; it must have one caption per line"),
        (read_captions, b"a\n \r\nb\n", "~/file: line 2 is empty; every line must have a caption"),
        (read_captions, b"a\n\nb\n\n\n", "~/file: line 2 is empty, as are 2 others; every line must have a caption"),
        (read_captions, b"a\n\xe9t\xe9\n", "~/file is not UTF-8 text: invalid continuation byte at byte 2; convert it"),
        *(
            (read_captions, content, f"~/file holds {problem}")
            for content, problem in (
                (b"1000.jpg#0\tA child\n1000.jpg#1\tA girl\n", "the name or number of an image in each line, such as"),
                (b'image,caption\n1 0.jpg,A child\n10.jpg,A girl\n12.jpg,"A, b"\n', "the name or number of an image"),
                (b"image_name| comment_number| comment\n10.jpg| 0| A man\n10.jpg| 1| Two\n", "the name or number of"),
                (b"17,a red dog\n18,a blue dog\n", "the name or number of an image in each line, such as '18,a blue"),
                (b"a16\ta red dog\nb7\ta dog\n", "columns separated by tabs, such as 'b7\\ta dog', not captions alone"),
                (b'{"images": [{"id": 3}]}', "JSON, not captions alone"),
                (b'[\n{"image": "a.jpg", "caption": ["a dog"]}\n]', "JSON"),
            )
        ),
        (VECTORS, b"boat 1 2 3\n", "~/file:1: a word and 3 numbers, but config.model.word_size is 2"),
        (VECTORS, b"red 1 2\nboat 1 x\n", "~/file:2: not all of 1 x ... are numbers"),
        (VECTORS, b"boat 1 nan\n", "~/file:1: a number is not finite"),
        (VECTORS, b"house 1 2\n", "~/file has none of the 7 words of the queries"),
        (VECTORS, b"", "~/file has none of the 7 words"),
        (VECTORS, b"\xff\xfe 1 2\n", "~/file is not UTF-8 text"),
        (VECTORS, None, "config.model.word_vectors: ~/none cannot be read"),
    ],
)
def test_unusable_files_are_refused(write, tmp_path, read, content, message):
    path = tmp_path / "none" if content is None else write(content)
    with pytest.raises(InputError, match=re.escape(message.replace("~", str(tmp_path)))):
        read(path)


def test_captions_are_lines_without_blanks_around_them(write):
    path = write("\ufeffa dog \r\nan\u2028old\rcat\x0b!\n caf\u00e9\n".encode())
    assert read_captions(path) == ("a dog", "an\u2028old\rcat\x0b!", "café")
    assert read_captions(write(b"a dog")) == ("a dog",)
    odd = ("2 dogs, 1 cat", "photo.jpg shows a dog", "[a dog]", "{a} dog", "a\tdog")
    assert read_captions(write("\r\n".join(odd).encode())) == odd


def test_captions_are_encoded_as_padded_ids_and_need_a_vocabulary_with_most_words():
    assert VOCABULARY.encode("A big dog .") == [1, 4, 3, 5, 6, 2]
    ids, lengths = encode_captions(["A big dog .", "dog", "a dog"], VOCABULARY)
    np.testing.assert_array_equal(ids, [[1, 4, 3, 5, 6, 2], [1, 5, 2, 0, 0, 0], [1, 4, 5, 2, 0, 0]])
    np.testing.assert_array_equal(lengths, [6, 3, 4])
    assert (ids.dtype, lengths.dtype) == (np.int32, np.int32)
    assert encode_captions([], VOCABULARY)[0].shape == (0, 0)
    encode_captions(["a dog eats food"], VOCABULARY)
    with pytest.raises(InputError) as caught:
        encode_captions(["ein hund .", "ein ball"], VOCABULARY, name="train_caps.txt")
    assert str(caught.value) == (
        "4 of 5 words of train_caps.txt are not in the vocabulary (7 words), such as 'ein', 'hund', 'ball';"
        " give the vocabulary of these captions, `aia vocab` makes one"
    )


def test_tf_idf_is_that_of_scikit_learn_and_products_of_means_are_mean_cosines():
    rows = tf_idf(["dog dog", "dog cat", "a ."])
    cat, dog = 1 + np.log(4 / 2), 1 + np.log(4 / 3)
    length = np.hypot(cat, dog)
    np.testing.assert_allclose(rows.toarray(), [[0, 1], [cat / length, dog / length], [0, 0]], rtol=1e-15)
    with pytest.raises(InputError, match="no caption has a word of two letters or more"):
        tf_idf(["a .", "b"])
    rows = tf_idf(CAPTIONS)
    assert isinstance(rows, sparse.csr_matrix)
    assert rows.dtype == np.float64
    np.testing.assert_array_equal(rows.toarray(), TfidfVectorizer().fit_transform(CAPTIONS).toarray())
    np.testing.assert_allclose(np.linalg.norm(rows.toarray(), axis=1), 1, rtol=1e-15)
    means = image_means(rows, 5)
    assert isinstance(means, sparse.csr_matrix)
    assert means.shape == (2, rows.shape[1])
    cosines = (rows @ rows.T).toarray().reshape(2, 5, 2, 5)
    np.testing.assert_allclose((means @ means.T).toarray(), cosines.mean(axis=(1, 3)), rtol=1e-14)
    np.testing.assert_array_equal(image_means(rows, 1).toarray(), rows.toarray())


@pytest.mark.parametrize("header", ["", "3 2\n"])
def test_vectors_of_known_words_are_read(write, header):
    ids, vectors = VECTORS(write(f"{header}boat 1 -1\nhouse 9 9\nred 3 3\n".encode()))
    assert ids.tolist() == [QUERY_WORDS.ids["boat"], QUERY_WORDS.ids["red"]]
    np.testing.assert_allclose(vectors, np.array([[1, -1], [3, 3]]) / np.sqrt(5), rtol=1e-6)


@pytest.mark.parametrize(
    ("captions", "vocabulary", "sizes"),  # numbers of captions, words, tokens and unknown tokens
    [
        ("f30k_precomp/dev_caps.txt", "f30k", (5_070, 8_481, 69_230, 569)),
        ("f30k_precomp/test_caps.txt", "f30k", (5_000, 8_481, 67_710, 657)),
        ("flickr8k/test_caps.txt", "f30k", (5_000, 8_481, 59_179, 476)),
        ("flickr8k/test_caps.txt", "coco", (5_000, 11_353, 59_179, 575)),
    ],
)
def test_real_captions_in_published_vocabularies(captions, vocabulary, sizes):
    if not (SHARED_DATASETS / captions).is_file() or not (SHARED_DATASETS / "vocab").is_dir():
        pytest.skip("the real captions are not on this machine")
    words = Vocabulary.load(SHARED_DATASETS / "vocab" / f"{vocabulary}_precomp_vocab.json")
    lines = read_captions(SHARED_DATASETS / captions)
    ids, lengths = encode_captions(lines, words)
    num_unknown = np.sum(ids == words.ids["<unk>"])
    assert (len(lines), len(words), lengths.sum() - 2 * len(lines), num_unknown) == sizes
    assert [row[:length].tolist() for row, length in zip(ids[:9], lengths[:9], strict=True)] == [
        words.encode(line) for line in lines[:9]
    ]
    for line in lines:
        assert tokenize(line) == word_tokenize(line.lower(), preserve_line=True)
