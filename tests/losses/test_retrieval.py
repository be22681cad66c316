import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aia_jax.losses import retrieval
from aia_jax.losses.retrieval import rank_disagreement, soft_ranks, triplet

SCORES = np.array([[0.9, 0.5, 0.8], [0.6, 0.7, 0.2], [0.1, 0.95, 0.4]], np.float32)


def test_triplet_of_the_hardest_negatives():
    # Captions of images 0, 1, 2: 0.2 + 0.8 - 0.9, 0.2 + 0.6 - 0.7, 0.2 + 0.95 - 0.4; images of captions likewise.
    assert float(triplet(SCORES, margin=0.2, hardest=True)) == pytest.approx(0.1 + 0.1 + 0.75 + 0 + 0.45 + 0.6)


def test_triplet_of_all_negatives():
    assert float(triplet(SCORES, margin=0.2, hardest=False)) == pytest.approx(0.1 + 0.1 + 0.75 + 0 + 0.45 + 0.6)
    closer = SCORES + np.array([[0, 0.3, 0], [0, 0, 0], [0, 0, 0]], np.float32)
    assert float(triplet(closer, margin=0.2, hardest=False)) > float(triplet(closer, margin=0.2, hardest=True))


def test_of_equally_bad_negatives_one_takes_the_gradient():
    scores = jnp.array([[0.5, 0.6, 0.6], [0.0, 0.9, 0.0], [0.0, 0.0, 0.9]])
    grad = jax.grad(lambda s: triplet(s, margin=0.2, hardest=True))(scores)
    np.testing.assert_array_equal(grad[0], [-1, 1, 0])


def test_ranks_of_a_symmetric_matrix_are_plain_ranks():
    matrix = np.array([[5, 3, 1], [3, 5, 2], [1, 2, 5]], np.float32)
    np.testing.assert_allclose(soft_ranks(matrix), [[1, 2, 3], [2, 1, 3], [3, 2, 1]], atol=1e-6)


def test_ranks_follow_the_formula():
    rng = np.random.default_rng(0)
    matrix = rng.uniform(0, 0.02, (7, 7))
    expected = np.empty_like(matrix)
    for b in range(7):
        for c in range(7):
            arguments = np.array([(matrix[a, b] - matrix[b, c]) / 0.001 for a in range(7) if a != c])
            expected[b, c] = 1 + (1 / (1 + np.exp(-np.clip(arguments, -50, 50)))).sum()
    np.testing.assert_allclose(soft_ranks(matrix.astype(np.float32)), expected, rtol=1e-4)


def test_blocks_of_ranks_give_the_same(monkeypatch):
    scores = np.random.default_rng(1).uniform(0, 0.02, (12, 12)).astype(np.float32)
    meaning = scores @ scores.T

    def both():
        return jax.value_and_grad(lambda s: rank_disagreement(s, meaning))(scores)

    value, grad = both()
    monkeypatch.setattr(retrieval, "_ELEMENTS", 3 * 12 * 12)
    value_in_blocks, grad_in_blocks = both()
    assert float(value_in_blocks) == pytest.approx(float(value), rel=1e-6)
    np.testing.assert_allclose(grad_in_blocks, grad, rtol=1e-4, atol=1e-5)


def test_equal_rankings_do_not_disagree_and_opposite_ones_do():
    meaning = np.array([[3, 2, 1], [2, 3, 1.5], [1, 1.5, 3]], np.float32)
    assert float(rank_disagreement(2 * meaning, meaning)) == pytest.approx(0, abs=1e-5)
    assert float(rank_disagreement(-meaning, meaning)) > 3


def test_no_tensor_of_all_triples_is_kept():
    num = 1024

    def grad(scores):
        return jax.grad(lambda s: rank_disagreement(s, scores))(scores)

    memory = jax.jit(grad).lower(jax.ShapeDtypeStruct((num, num), jnp.float32)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1.5e9  # one such tensor is 4.3 GB
