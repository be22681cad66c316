"""The two heads of SGRAF, which reduce the alignments of an image and a caption to one vector (arXiv 2101.01368)."""

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
    """SGR: reasoning over a graph whose nodes are the alignments (SGRAF, section 3.3)."""

    def __init__(self, size: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.dtype = dtype
        linear = partial(xavier_linear, size, size, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.query = nnx.List(linear() for _ in range(_GRAPH_STEPS))
        self.key = nnx.List(linear() for _ in range(_GRAPH_STEPS))
        self.value = nnx.List(linear() for _ in range(_GRAPH_STEPS))

    def __call__(self, alignments: Array, mask: Array) -> Array:
        """Reduces `alignments` `[i, c, L + 1, S]` where `mask` `[c, L + 1]` to the global one's last state `[i, c, S]`.

        The global alignment comes first. Query and key are one product: (x Wq + bq)(y Wk + bk)^T equals
        (x Wq + bq) Wk^T y^T plus a term that is the same for all y, which softmax ignores. The last step computes the
        global alignment alone.
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
        return nodes[:, :, 0]


class AttentionFiltration(nnx.Module):
    """SAF: a weighted sum of the alignments, with learned weights (SGRAF, section 3.4).

    The batch norm of the weights takes its statistics from one caption with all images. It updates the running
    statistics caption by caption, in the order of the batch, as the published loop does.
    """

    def __init__(self, size: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.linear = xavier_linear(size, 1, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.norm = BatchNorm(1, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, alignments: Array, mask: Array, train: bool) -> tuple[Array, Array]:
        """Reduces `alignments` `[i, c, L + 1, S]` where `mask` `[c, L + 1]`.

        Returns:
            `[i, c, S]` of length 1; in training also each caption's mean and unbiased variance, float32 `[c, 2]`.
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
        """Updates the running statistics with those of captions `[C, 2]`, one after the other."""
        statistics = jax.lax.stop_gradient(statistics)
        momentum = self.norm.momentum
        remaining = (1 - momentum) ** jnp.arange(len(statistics) - 1, -1, -1)
        mean, var = momentum * (remaining @ statistics)
        kept = (1 - momentum) ** len(statistics)
        self.norm.mean[...] = kept * self.norm.mean[...] + mean
        self.norm.var[...] = kept * self.norm.var[...] + var


REASONINGS = {"sgr": GraphReasoning, "saf": AttentionFiltration}
