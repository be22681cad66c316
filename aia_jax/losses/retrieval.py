"""Losses of image-text retrieval on the scores of a batch's pairs, float32; row b is image b, column b its caption."""

import jax
import jax.numpy as jnp
from jax import Array

_TEMPERATURE = 0.001
_STEEPEST = 50.0  # argument from which the sigmoid is taken as flat
_ELEMENTS = 2**26  # of a rank tensor that are computed at once


def triplet(scores: Array, *, margin: float, hardest: bool) -> Array:
    """Hinge loss of all pairs against their negatives, both ways, summed (VSE++, arXiv 1707.05612).

    Args:
        scores: `[N, N]`, true pairs on the diagonal.
        margin: by which a true pair should lead.
        hardest: of each image's captions and each caption's images count the worst one, not all.
    """
    positive = jnp.diagonal(scores)
    true = jnp.eye(len(scores), dtype=bool)
    captions = _hinge(margin + scores - positive[:, None], true)
    images = _hinge(margin + scores - positive[None], true)
    if not hardest:
        return captions.sum() + images.sum()
    # Of equal ones the first alone takes the gradient, as in torch.
    worst_caption = jnp.take_along_axis(captions, captions.argmax(axis=1)[:, None], axis=1)
    worst_image = jnp.take_along_axis(images, images.argmax(axis=0)[None], axis=0)
    return worst_caption.sum() + worst_image.sum()


def soft_ranks(scores: Array) -> Array:
    """Differentiable ranks, `1 + sum_{a != c} sigmoid((scores[a, b] - scores[b, c]) / 0.001)` for all b and c.

    Column b is held against row b, as the published code does; for a symmetric matrix these are each row's plain
    ranks. Computed in blocks of b: the N x N x N tensor is never whole, in the backward pass neither.

    Args:
        scores: `[N, N]`.

    Returns:
        `[N, N]`, 1 for the highest.
    """
    num = len(scores)
    block = max(
        count for count in range(1, num + 1) if num % count == 0 and (count == 1 or count * num**2 <= _ELEMENTS)
    )

    @jax.checkpoint
    def of_block(block: tuple[Array, Array]) -> Array:
        columns, rows = block
        argument = (columns[:, :, None] - rows[:, None]) / _TEMPERATURE
        above = jax.nn.sigmoid(jnp.clip(argument, -_STEEPEST, _STEEPEST))
        return 1 + jnp.where(jnp.eye(num, dtype=bool), 0, above).sum(axis=1)

    blocks = (scores.T.reshape(-1, block, num), scores.reshape(-1, block, num))
    return jax.lax.map(of_block, blocks).reshape(num, num)


def rank_disagreement(scores: Array, meaning: Array) -> Array:
    """Visual Semantic Loss: how far the rankings by score and by meaning are apart (Zhang et al., arXiv 2304.10254).

    `10 * (1 - mean(min(rank(scores), rank(meaning)) / max(rank(scores), rank(meaning))))`. With the meaning of captions
    instead of images it is the paper's textual ablation.

    Args:
        scores, meaning: `[N, N]`.
    """
    by_score, by_meaning = soft_ranks(scores), soft_ranks(meaning)
    return 10 * (1 - jnp.mean(jnp.minimum(by_score, by_meaning) / jnp.maximum(by_score, by_meaning)))


def _hinge(violation: Array, true: Array) -> Array:
    return jnp.where(true | (violation < 0), 0, violation)
