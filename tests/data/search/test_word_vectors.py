import numpy as np
import pytest

from aia_jax.data.search.word_vectors import read_vectors
from aia_jax.data.vocabulary import Vocabulary
from aia_jax.utils.errors import InputError

VOCABULARY = Vocabulary.build(["red boat sea"], min_count=1)


@pytest.mark.parametrize("header", ["", "3 2\n"])
def test_vectors_of_known_words_are_read(tmp_path, header):
    (tmp_path / "v.txt").write_text(f"{header}boat 1 -1\nhouse 9 9\nred 3 3\n", encoding="utf-8")
    ids, vectors = read_vectors(tmp_path / "v.txt", VOCABULARY, 2)
    assert ids.tolist() == [VOCABULARY.ids["boat"], VOCABULARY.ids["red"]]
    np.testing.assert_allclose(vectors, np.array([[1, -1], [3, 3]]) / np.sqrt(5), rtol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"boat 1 2 3\n", r"v.txt:1: a word and 3 numbers, but config.model.word_size is 2"),
        (b"red 1 2\nboat 1 x\n", r"v.txt:2: not all of 1 x ... are numbers"),
        (b"boat 1 nan\n", r"v.txt:1: a number is not finite"),
        (b"house 1 2\n", r"has none of the 7 words of the queries"),
        (b"", r"has none of the 7 words"),
        (b"\xff\xfe 1 2\n", r"is not UTF-8 text"),
        (None, r"config.model.word_vectors: .*v.txt cannot be read"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "v.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_vectors(tmp_path / "v.txt", VOCABULARY, 2)
