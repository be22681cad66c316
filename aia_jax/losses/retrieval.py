"""Losses of image-text retrieval, float32 scalars. The input is the score matrix `[N, N]` of N images and N captions.

Row b has the scores of image b. Column b has the scores of the caption of image b. Only pairs on the diagonal match.
"""

import jax
import jax.numpy as jnp
from jax import Array

_TEMPERATURE = 0.001
_MAX_ARGUMENT = 50.0  # larger arguments of the sigmoid are clipped
_BLOCK_ELEMENTS = 2**26  # maximal number of elements that are computed at once


def triplet(scores: Array, *, margin: float, hardest: bool) -> Array:
    """Computes the triplet hinge loss of the scores s in both directions, summed over the batch.

    The loss is `sum_b sum_c max(0, margin - s[b, b] + s[b, c]) + max(0, margin - s[b, b] + s[c, b])` over `c != b`.

    Reference: Faghri et al., "VSE++", 2018, https://arxiv.org/abs/1707.05612

    Args:
        margin: required difference between the score of a matching pair and the score of a negative pair.
        hardest: True uses only the hardest negative of each image and of each caption. False sums over all negatives.
    """

    def hinge(positive: Array) -> Array:
        violation = margin + scores - positive
        return jnp.where(jnp.eye(len(scores), dtype=bool) | (violation < 0), 0, violation)

    captions, images = hinge(jnp.diagonal(scores)[:, None]), hinge(jnp.diagonal(scores)[None])
    if not hardest:
        return captions.sum() + images.sum()
    # As in PyTorch, only the first of several equal negatives gets a gradient.
    worst_caption = jnp.take_along_axis(captions, captions.argmax(axis=1)[:, None], axis=1)
    worst_image = jnp.take_along_axis(images, images.argmax(axis=0)[None], axis=0)
    return worst_caption.sum() + worst_image.sum()


def contrastive(logits: Array) -> Array:
    """Computes the symmetric contrastive loss, the mean of two cross-entropies: over rows and over columns.

    The loss is `-mean_b(log softmax(logits[b])[b] + log softmax(logits[:, b])[b]) / 2`.

    Reference: Radford et al., "CLIP", ICML 2021, https://arxiv.org/abs/2103.00020

    Args:
        logits: the score matrix, divided by the temperature.
    """
    rows, columns = jax.nn.log_softmax(logits, axis=1), jax.nn.log_softmax(logits, axis=0)
    return -(jnp.diagonal(rows) + jnp.diagonal(columns)).mean() / 2


def pairwise_sigmoid(logits: Array) -> Array:
    """Computes the sigmoid loss: each pair is a binary example. It is summed over pairs and divided by N.

    The loss is `-sum_bc log sigmoid(z * logits[b, c]) / N` with z = 1 for `b == c`, else -1.

    Reference: Zhai et al., "SigLIP", ICCV 2023, https://arxiv.org/abs/2303.15343

    Args:
        logits: the score matrix, divided by the temperature, plus a bias.
    """
    signs = 2 * jnp.eye(len(logits)) - 1
    return -jax.nn.log_sigmoid(signs * logits).sum() / len(logits)


def soft_ranks(scores: Array) -> Array:
    """Computes differentiable ranks, `1 + sum_{a != c} sigmoid((scores[a, b] - scores[b, c]) / 0.001)`.

    This is element `[b, c]` of the result `[N, N]`. As in the published code, the formula compares column b with row b.
    If `scores` is symmetric, the result is the rank of each element in its row, and the highest score has rank 1.
    Forward and backward passes compute blocks of rows b, so that an array `[N, N, N]` is never stored.
    """
    num = len(scores)
    block = max(
        count for count in range(1, num + 1) if num % count == 0 and (count == 1 or count * num**2 <= _BLOCK_ELEMENTS)
    )

    @jax.checkpoint
    def block_ranks(block: tuple[Array, Array]) -> Array:
        columns, rows = block
        argument = (columns[:, :, None] - rows[:, None]) / _TEMPERATURE
        above = jax.nn.sigmoid(jnp.clip(argument, -_MAX_ARGUMENT, _MAX_ARGUMENT))
        return 1 + jnp.where(jnp.eye(num, dtype=bool), 0, above).sum(axis=1)

    blocks = (scores.T.reshape(-1, block, num), scores.reshape(-1, block, num))
    return jax.lax.map(block_ranks, blocks).reshape(num, num)


def visual_semantic_loss(scores: Array, similarity: Array) -> Array:
    """Computes the Visual Semantic Loss, which compares the ranking by score with the ranking by semantic similarity.

    The loss is `10 * (1 - mean(min(r, t) / max(r, t)))` with `r = soft_ranks(scores)` and `t = soft_ranks(similarity)`.

    Reference: Zhang et al., ICME 2023, https://arxiv.org/abs/2304.10254

    Args:
        similarity: `[N, N]`, semantic similarities of images. An ablation in the paper uses similarities of captions.
    """
    ranks, target = soft_ranks(scores), soft_ranks(similarity)
    return 10 * (1 - jnp.mean(jnp.minimum(ranks, target) / jnp.maximum(ranks, target)))
