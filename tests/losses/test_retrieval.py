"""Retrieval losses compared with hand computations; `tests/models/test_sgraf_parity.py` compares with PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aia_jax.losses import retrieval
from aia_jax.losses.retrieval import soft_ranks, triplet, visual_semantic_loss

SCORES = np.array([[0.9, 0.5, 0.8], [0.6, 0.7, 0.2], [0.1, 0.95, 0.4]], np.float32)


@pytest.mark.parametrize("hardest", [True, False])
def test_triplet_loss_of_a_small_case_by_hand(hardest):
    """Negatives of images 0, 1, 2: 0.2 + 0.8 - 0.9, 0.2 + 0.6 - 0.7, 0.2 + 0.95 - 0.4; captions alike."""
    assert float(triplet(SCORES, margin=0.2, hardest=hardest)) == pytest.approx(0.1 + 0.1 + 0.75 + 0 + 0.45 + 0.6)


def test_all_negatives_cost_more_than_the_hardest():
    closer = SCORES + np.array([[0, 0.3, 0], [0, 0, 0], [0, 0, 0]], np.float32)
    assert float(triplet(closer, margin=0.2, hardest=False)) > float(triplet(closer, margin=0.2, hardest=True))


def test_only_the_first_of_equal_negatives_gets_a_gradient():
    scores = jnp.array([[0.5, 0.6, 0.6], [0.0, 0.9, 0.0], [0.0, 0.0, 0.9]])
    grad = jax.grad(lambda s: triplet(s, margin=0.2, hardest=True))(scores)
    np.testing.assert_array_equal(grad[0], [-1, 1, 0])


def test_ranks_of_a_symmetric_matrix_are_plain_ranks():
    matrix = np.array([[5, 3, 1], [3, 5, 2], [1, 2, 5]], np.float32)
    np.testing.assert_allclose(soft_ranks(matrix), [[1, 2, 3], [2, 1, 3], [3, 2, 1]], atol=1e-6)


def test_ranks_do_not_depend_on_the_block_size(monkeypatch):
    scores = np.random.default_rng(1).uniform(0, 0.02, (12, 12)).astype(np.float32)
    similarity = scores @ scores.T

    def both():
        return jax.value_and_grad(lambda s: visual_semantic_loss(s, similarity))(scores)

    value, grad = both()
    monkeypatch.setattr(retrieval, "_BLOCK_ELEMENTS", 3 * 12 * 12)
    value_of_blocks, grad_of_blocks = both()
    assert float(value_of_blocks) == pytest.approx(float(value), rel=1e-6)
    np.testing.assert_allclose(grad_of_blocks, grad, rtol=1e-4, atol=1e-5)


def test_the_loss_is_zero_for_equal_rankings_and_large_for_opposite_ones():
    similarity = np.array([[3, 2, 1], [2, 3, 1.5], [1, 1.5, 3]], np.float32)
    assert float(visual_semantic_loss(2 * similarity, similarity)) == pytest.approx(0, abs=1e-5)
    assert float(visual_semantic_loss(-similarity, similarity)) > 3


def test_the_tensor_of_all_triples_is_never_in_memory():
    num = 1024

    def grad(scores):
        return jax.grad(lambda s: visual_semantic_loss(s, scores))(scores)

    memory = jax.jit(grad).lower(jax.ShapeDtypeStruct((num, num), jnp.float32)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1.5e9  # one such tensor is 4.3 GB
