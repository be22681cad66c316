import numpy as np
import pytest
from scipy import sparse

from aia_jax.data.mapped_rows import MappedRows
from aia_jax.data.search.queries import (
    ClickBatches,
    Queries,
    SearchImages,
    SearchSplit,
    encode_queries,
    held_out,
    label_queries,
)
from aia_jax.data.vocabulary import Vocabulary, pad_ids
from aia_jax.utils.errors import InputError

LABELS = ("sky", "sea", "polar bear")
TARGETS = np.array([[1, 1, 0], [0, 1, 1], [1, 1, 1], [0, 0, 0]])


def test_queries_are_the_sets_of_labels_that_images_have_and_equal_texts_are_merged():
    found = label_queries(TARGETS, LABELS, 2)
    assert found.texts == ("sky", "sea", "polar bear", "sky sea", "sky polar bear", "sea polar bear")
    assert [row.indices.tolist() for row in found.relevant] == [[0, 2], [0, 1, 2], [1, 2], [0, 2], [2], [1, 2]]
    assert label_queries(TARGETS, LABELS, 3).texts[-1] == "sky sea polar bear"
    with pytest.raises(InputError, match="no image has a label"):
        label_queries(TARGETS * 0, LABELS, 2)
    found = label_queries(np.array([[1, 1, 0], [0, 0, 1]]), ("fire", "truck", "fire truck"), 2)
    assert found.texts == ("fire", "truck", "fire truck")
    assert found.relevant.toarray().tolist() == [[1, 0], [1, 0], [1, 1]]


def test_a_fraction_of_the_queries_of_several_words_is_held_out():
    texts = [f"word{k}" for k in range(500)] + [f"red word{k}" for k in range(2000)]
    chosen = held_out(texts, 0.2)
    assert not chosen[:500].any()
    assert 0.17 < chosen[500:].mean() < 0.23
    np.testing.assert_array_equal(held_out(texts[600:700], 0.2), chosen[600:700])  # depends on the text only
    assert not held_out(texts, 0).any()


def test_unknown_words_of_a_query_are_dropped():
    vocabulary = Vocabulary.build(["sky sea"], min_count=1)
    tokens, lengths = encode_queries(["Sea of the sky", "sky"], vocabulary)
    sky, sea = vocabulary.ids["sky"], vocabulary.ids["sea"]
    assert tokens.tolist() == [[sea, sky], [sky, 0]]
    assert lengths.tolist() == [2, 1]
    with pytest.raises(InputError, match="no word of 'red boat' is known to the vocabulary of 2 words, such as s"):
        encode_queries(["sky", "red boat"], vocabulary)


def test_keywords_are_padded_and_cut():
    keywords, counts = pad_ids([np.array([3, 1, 2]), np.array([], int), np.array([5])], 2)
    assert keywords.tolist() == [[3, 1], [0, 0], [5, 0]]
    assert counts.tolist() == [2, 0, 1]


@pytest.fixture
def split(tmp_path):
    """24 images, and queries 2 to 7. An image is relevant to query q if q divides its number."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "maps.npy", rng.normal(size=(24, 2, 2, 3)).astype(np.float32))
    relevant = sparse.csr_matrix([[image % q == 0 for image in range(24)] for q in range(2, 8)], dtype=np.int8)
    queries = Queries(tuple(f"by {q}" for q in range(2, 8)), relevant)
    keywords, counts = pad_ids([np.arange(image % 4) for image in range(24)], 3)
    images = SearchImages(MappedRows(tmp_path / "maps.npy"), keywords, counts, queries)
    tokens = np.arange(6, dtype=np.int32)[:, None]
    return SearchSplit(images, queries, tokens, np.ones(6, np.int32), np.array([1, 1, 0, 1, 1, 1], bool))


def _images(split, batch):
    """The numbers of the images of a batch, found by their maps."""
    maps = split.images.maps[:]
    return [int(np.flatnonzero((maps == one).all(axis=(1, 2, 3)))[0]) for one in batch["maps"]]


def test_an_epoch_has_every_pair_of_a_trained_query(split):
    batches = ClickBatches(split, 0, seed=0)
    index = np.arange(len(batches))
    batch = batches({"index": index}, slice(None))
    right = [(q, i) for q in range(6) for i in range(24) if i % (q + 2) == 0 and q != 2]
    assert sorted(zip(batch["tokens"][:, 0].tolist(), _images(split, batch), strict=True)) == right


@pytest.mark.parametrize("negatives", [0, 2, 100])
def test_only_irrelevant_images_are_negative(split, negatives):
    index = np.array([0, 5, 11, 14, 20, 25, 30, 32])
    batch = ClickBatches(split, negatives, seed=3)({"index": index}, slice(None))
    wrong = np.array([[image % (q + 2) != 0 for q in batch["tokens"][:, 0]] for image in _images(split, batch)])
    assert batch["negative"].shape == (8, 8)  # image by query
    assert not batch["negative"][~wrong].any()
    expected = np.minimum(wrong.sum(axis=0), negatives or 8)
    assert batch["negative"].sum(axis=0).tolist() == expected.tolist()


def test_keywords_are_dropped_and_others_added(split):
    index = np.tile(np.arange(30), 20)
    whole = ClickBatches(split, 0, seed=3)({"index": index}, slice(None))
    part = ClickBatches(split, 0, seed=3, keyword_noise=(0.4, 0.0))({"index": index}, slice(None))
    assert part["counts"].sum() / whole["counts"].sum() == pytest.approx(0.6, abs=0.06)
    for row in range(len(index)):
        kept, given = part["keywords"][row], whole["keywords"][row]
        assert set(kept[: part["counts"][row]]) <= set(given[: whole["counts"][row]])
        assert (np.diff(kept[: part["counts"][row]]) > 0).all()  # as given, in order
        assert not kept[part["counts"][row] :].any()
    alone = ClickBatches(split, 0, seed=3, keyword_noise=(1.0, 1.0))({"index": index}, slice(None))
    np.testing.assert_array_equal(alone["keywords"], np.roll(whole["keywords"], 1, axis=0))
    np.testing.assert_array_equal(alone["counts"], np.roll(whole["counts"], 1, axis=0))


def test_processes_get_parts_of_a_batch(split):
    batches = ClickBatches(split, 2, seed=3, keyword_noise=(0.4, 0.3))
    columns = {"index": np.array([0, 5, 11, 14, 20, 25, 30, 32])}
    whole = batches(columns, slice(None))
    parts = [batches(columns, slice(start, start + 4)) for start in (0, 4)]
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values, err_msg=name)
