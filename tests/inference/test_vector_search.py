"""A fast search finds what the exact search finds, and both read the arrays in slices."""

import sys
import tracemalloc

import numpy as np
import pytest

from aia_jax.inference import index_parts
from aia_jax.inference.indexed_photos import IndexedPhotos
from aia_jax.inference.searcher import PhotoSearch
from aia_jax.inference.sentence_search import SentenceSearch
from aia_jax.inference.vector_search import SMALL, exact_search, fast_search, small_vectors
from aia_jax.utils.errors import InputError

RNG = np.random.default_rng(0)


def unit(*shape):
    rows = RNG.standard_normal(shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def slices(parts, size):
    return index_parts.slices([(part.map()[0], part.live) for part in parts], size)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Slices of 9,000 photos in three parts. The smallest part has no int8 vectors, and another has outdated rows."""
    folder, found = tmp_path_factory.mktemp("index"), []
    for size in (5000, 3000, 1000):
        arrays = {
            "vectors": unit(size, 64).astype(np.float16),
            "classes": np.argsort(RNG.random((size, 20)), axis=1)[:, :4].astype(np.uint16),
            "probabilities": RNG.dirichlet([0.3] * 4, size).astype(np.float16),
        }
        photos = [(f"{size}-{row}.jpg", 1, 1) for row in range(size)]
        found.append(index_parts.write_part(folder, photos, {name: [rows] for name, rows in arrays.items()}))
    found[1].live[RNG.permutation(3000)[:1400]] = False
    for part in found[:2]:
        index_parts.add_array(part, SMALL, lambda rows: small_vectors(rows["vectors"]))
    return slices(found, 2048)


def values(known):
    return np.where(np.arange(20) == 3, 0.5, 0.01).astype(np.float32) if known else None


@pytest.mark.extras
@pytest.mark.parametrize("known", [False, True], ids=["vectors alone", "with classes"])
@pytest.mark.parametrize("count", [1, 10, 300, 10**5])
def test_a_fast_search_finds_the_best_photos_with_their_exact_scores(parts, known, count):
    pytest.importorskip("usearch")
    for vector in unit(5, 64):
        exact, fast = (search(parts, vector, values(known), count) for search in (exact_search, fast_search))
        assert len(exact.rows) == min(count, 7600)
        np.testing.assert_array_equal(fast.rows[:10], exact.rows[:10])
        assert len(set(fast.rows) & set(exact.rows)) >= 0.99 * len(exact.rows)
        np.testing.assert_allclose(fast.scores[:10], exact.scores[:10], rtol=1e-5)


def test_exact_scores_are_the_cosines_and_agreements_of_the_usable_rows(parts):
    vector = unit(64)
    found = exact_search(parts, vector, values(True), 10**5)
    whole = {name: np.concatenate([arrays[name][rows] for arrays, rows in parts]) for name in parts[-1][0]}
    agreement = (values(True)[whole["classes"]] * whole["probabilities"]).sum(axis=1)
    scores = whole["vectors"].astype(np.float32) @ vector + agreement
    np.testing.assert_allclose(found.scores, np.sort(scores)[::-1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores[found.rows], found.scores, rtol=1e-4, atol=1e-6)


@pytest.mark.extras
def test_a_fast_search_finds_photos_by_their_classes_alone(parts):
    pytest.importorskip("usearch")
    only, vector = np.zeros(20, np.float32), unit(64)
    only[7] = 5  # counts more than any cosine
    exact, fast = (search(parts, vector, only, 20) for search in (exact_search, fast_search))
    assert exact.scores.min() > 1
    np.testing.assert_array_equal(fast.rows, exact.rows)


def test_int8_vectors_keep_directions_and_zeros():
    vectors = np.concatenate([unit(50, 64), np.zeros((1, 64), np.float32)]).astype(np.float16)
    small = small_vectors(vectors).astype(np.float32)
    assert np.abs(small[:50]).max(axis=1).tolist() == [127] * 50
    cosines = (small[:50] * vectors[:50]).sum(axis=1) / np.linalg.norm(small[:50], axis=1)
    assert cosines.min() > 0.9998
    assert not small[50].any()


@pytest.mark.extras
def test_a_search_needs_memory_for_scores_and_one_slice(tmp_path):
    """The vectors need 16 MB."""
    pytest.importorskip("usearch")
    blocks = (unit(4000, 256).astype(np.float16) for _ in range(8))
    photos = [(f"{row}.jpg", 1, 1) for row in range(32_000)]
    part = index_parts.write_part(tmp_path, photos, {"vectors": blocks})
    index_parts.add_array(part, SMALL, lambda rows: small_vectors(rows["vectors"]))
    parts = slices([part], 512)
    for search in (exact_search, fast_search):
        tracemalloc.start()
        search(parts, unit(256), None, 10)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * 2**20


def test_a_fast_search_without_its_package_or_its_vectors_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    search = SentenceSearch.__new__(SentenceSearch)
    search.digest, search.arrays = "a model", ("vectors",)
    with pytest.raises(InputError, match=r"a fast search needs more packages .*usearch.*: pip install"):
        IndexedPhotos(tmp_path, search, tmp_path / "index", fast=True)
    amc = PhotoSearch.__new__(PhotoSearch)
    amc.digest = "a model"
    with pytest.raises(InputError, match="--fast is for a dual encoder; AMC is fast with a small --shortlist"):
        IndexedPhotos(tmp_path, amc, tmp_path / "index", fast=True)
