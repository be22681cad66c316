"""SGR and SAF, which pool the similarity vectors of image and caption to one vector (SGRAF, sections 3.3 and 3.4).

Shapes: i images in a block, c captions in a block, C captions, L words, S similarity size. An image and a caption have
L + 1 similarity vectors: that of the whole caption, then that of each word.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from aia_jax.models.layers.batch_norm import BatchNorm
from aia_jax.models.layers.common import EPSILON, l2norm, xavier_linear

_GRAPH_STEPS = 3


class GraphReasoning(nnx.Module):
    """SGR (SGRAF, section 3.3): reasoning over a graph whose nodes are the similarity vectors of image and caption."""

    def __init__(self, size: int, *, dtype: DTypeLike, **options):
        self.dtype = dtype
        linear = partial(xavier_linear, size, size, dtype=dtype, **options)
        self.query = nnx.List(linear() for _ in range(_GRAPH_STEPS))
        self.key = nnx.List(linear() for _ in range(_GRAPH_STEPS))
        self.value = nnx.List(linear() for _ in range(_GRAPH_STEPS))

    def __call__(self, alignments: Array, mask: Array, train: bool) -> tuple[Array, Array]:
        """Computes the state of the first node after all steps.

        The nodes are `alignments` `[i, c, L + 1, S]`, the similarity vectors. `mask` `[c, L + 1]` is False
        for padding. The last step computes only the first node. Wq and Wk are multiplied before they are applied to
        nodes: (x Wq + bq)(y Wk + bk)^T equals (x Wq + bq) Wk^T y^T plus a term that is equal for all nodes y. Softmax
        ignores this term.

        Returns:
            States `[i, c, S]`, and zeros `[c, 2]`: in contrast to `AttentionFiltration`, there are no statistics.
        """
        nodes = alignments
        for step, (query, key, value) in enumerate(zip(self.query, self.key, self.value, strict=True)):
            updated = nodes[:, :, :1] if step == _GRAPH_STEPS - 1 else nodes
            key_kernel = key.kernel[...].T
            kernel, bias = (query.kernel[...] @ key_kernel), (query.bias[...] @ key_kernel)
            queries = updated @ kernel.astype(self.dtype) + bias.astype(self.dtype)
            edges = jnp.einsum("icxs,icys->icxy", queries, nodes, preferred_element_type=jnp.float32)
            edges = jax.nn.softmax(jnp.where(mask[:, None], edges, -jnp.inf)).astype(self.dtype)
            nodes = jax.nn.relu(value(jnp.einsum("icxy,icys->icxs", edges, nodes)))
        return nodes[:, :, 0], jnp.zeros((alignments.shape[1], 2), jnp.float32)


class AttentionFiltration(nnx.Module):
    """SAF (SGRAF, section 3.4): a weighted sum of the similarity vectors of image and caption, with learned weights.

    Batch norm of the weights computes separate statistics for each caption, over all images. As in the published code,
    the captions update the running statistics one after the other.
    """

    def __init__(self, size: int, *, dtype: DTypeLike, **options):
        self.linear = xavier_linear(size, 1, dtype=dtype, **options)
        self.norm = BatchNorm(1, **options)

    def __call__(self, alignments: Array, mask: Array, train: bool) -> tuple[Array, Array]:
        """Computes weighted sums of `alignments` `[i, c, L + 1, S]`. `mask` `[c, L + 1]` is False for padding.

        Returns:
            The sums, scaled to length 1, `[i, c, S]`, and float32 statistics `[c, 2]`: the mean and unbiased variance
            of each caption's weights before batch norm. In evaluation, the statistics are 0.
        """
        weights = self.linear(alignments)[..., 0].astype(jnp.float32)
        mask = mask.astype(jnp.float32)
        if train:
            count = len(weights) * mask.sum(axis=1)
            mean = (weights * mask).sum(axis=(0, 2)) / count
            var = (jnp.square(weights - mean[:, None]) * mask).sum(axis=(0, 2)) / count
            scale, offset = self.norm.affine(mean, var)
            weights = weights * scale[:, None] + offset[:, None]
            statistics = jnp.stack([mean, var * count / jnp.maximum(count - 1, 1)], axis=-1)
        else:
            scale, offset = self.norm.affine()
            weights = weights * scale + offset
            statistics = jnp.zeros((alignments.shape[1], 2), jnp.float32)
        weights = jax.nn.sigmoid(weights) * mask
        weights = weights / (weights.sum(axis=-1, keepdims=True) + EPSILON)
        pooled = jnp.einsum("icl,icls->ics", weights.astype(alignments.dtype), alignments)
        return l2norm(pooled.astype(jnp.float32)), statistics

    def update(self, statistics: Array) -> None:
        """Updates the running statistics with the `statistics` `[C, 2]` of C captions, one caption after the other."""
        statistics = jax.lax.stop_gradient(statistics)
        momentum = self.norm.momentum
        remaining = (1 - momentum) ** jnp.arange(len(statistics) - 1, -1, -1)
        mean, var = momentum * (remaining @ statistics)
        kept = (1 - momentum) ** len(statistics)
        self.norm.mean[...] = kept * self.norm.mean[...] + mean
        self.norm.var[...] = kept * self.norm.var[...] + var


REASONINGS = {"sgr": GraphReasoning, "saf": AttentionFiltration}
