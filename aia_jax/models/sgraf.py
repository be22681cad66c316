"""SGRAF: image-text similarity by graph reasoning or attention filtration (Diao et al., AAAI 2021, arXiv 2101.01368).

The published code goes through the captions one by one. Here all pairs of a block are computed at once, the captions
padded and masked: no score depends on the padding or on the other captions of the batch (in training: but through
dropout, and the batch statistics, which are each caption's own).
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn import initializers
from jax.typing import DTypeLike

from aia_jax.errors import InputError
from aia_jax.models.batch_norm import BatchNorm
from aia_jax.models.gru import BidirectionalGRU
from aia_jax.models.layers import dropout, dropout_key, split_key, uniform

REASONINGS = ("sgr", "saf")
_DROPOUT = 0.4
_EPSILON = 1e-8
_SHARPNESS = 9.0  # of the attention over regions
_GRAPH_STEPS = 3


class GlobalAttention(nnx.Module):
    """One vector for a set of vectors: their mean asks, each of them answers (SGRAF, section 3.1).

    Args:
        size: D.
        num_regions: of images, whose embeddings are batch-normalised; None for captions, which are not.
    """

    def __init__(self, size: int, num_regions: int | None, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.local = _linear(size, size, **options)
        self.mean = _linear(size, size, **options)
        self.common = _linear(size, 1, **options)
        self.local_norm = BatchNorm(num_regions, param_dtype=param_dtype, rngs=rngs) if num_regions else None
        self.mean_norm = BatchNorm(size, param_dtype=param_dtype, rngs=rngs) if num_regions else None

    def __call__(self, x: Array, mask: Array | None, *, train: bool, key: Array | None) -> Array:
        """Pools `x` `[B, N, D]`, of which `mask` `[B, N]` (None: all) counts, to `[B, D]` of length 1, float32."""
        key_local, key_mean = split_key(dropout_key(key, _DROPOUT, train), 2)
        weight = jnp.ones(x.shape[:2], jnp.float32) if mask is None else mask.astype(jnp.float32)
        mean = (x * weight[..., None]).sum(axis=1) / weight.sum(axis=1, keepdims=True)
        local, mean = self.local(x).astype(jnp.float32), self.mean(mean).astype(jnp.float32)
        if self.local_norm is not None:
            # Regions are the channels of the first norm: their statistics are over images and features.
            local = self.local_norm(local.swapaxes(1, 2)[:, :, None], train=train)[:, :, 0].swapaxes(1, 2)
            mean = self.mean_norm(mean[:, None, None], train=train)[:, 0, 0]
        local = dropout(jnp.tanh(local), _DROPOUT, key_local)
        mean = dropout(jnp.tanh(mean), _DROPOUT, key_mean)
        scores = self.common(local * mean[:, None])[..., 0].astype(jnp.float32)
        attention = jax.nn.softmax(jnp.where(weight > 0, scores, -jnp.inf))
        return l2norm(jnp.einsum("bn,bnd->bd", attention, x))


class TextEncoder(nnx.Module):
    """Words to vectors of length 1 that know their neighbours.

    Attributes:
        embedding: `[W, word_size]`.
    """

    def __init__(
        self,
        num_words: int,
        word_size: int,
        embed_size: int,
        *,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.embedding = nnx.Param(uniform(0.1)(rngs.params(), (num_words, word_size), param_dtype))
        self.gru = BidirectionalGRU(word_size, embed_size, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, tokens: Array, lengths: Array, *, train: bool, key: Array | None) -> Array:
        """`tokens` int `[C, L]` to float32 `[C, L, D]`, zeros beyond the lengths `[C]`."""
        words = dropout(self.embedding[...][tokens], _DROPOUT, dropout_key(key, _DROPOUT, train))
        states = l2norm(self.gru(words, lengths))
        return jnp.where(word_mask(tokens, lengths)[..., None], states, 0)


class GraphReasoning(nnx.Module):
    """SGR: alignments reason over a graph of themselves; the global one is read out (SGRAF, section 3.3)."""

    def __init__(self, size: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.dtype = dtype
        linear = partial(_linear, size, size, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.query = nnx.List(linear() for _ in range(_GRAPH_STEPS))
        self.key = nnx.List(linear() for _ in range(_GRAPH_STEPS))
        self.value = nnx.List(linear() for _ in range(_GRAPH_STEPS))

    def __call__(self, alignments: Array, mask: Array) -> Array:
        """`alignments` `[i, c, L + 1, S]`, the global one first, of which `mask` `[c, L + 1]` counts, to `[i, c, S]`.

        Query and key are one product: (x Wq + bq)(y Wk + bk)^T is (x Wq + bq) Wk^T y^T and a term that is the same for
        all y, which softmax does not see. The last step is taken for the global alignment alone.
        """
        nodes = alignments
        for step, (query, key, value) in enumerate(zip(self.query, self.key, self.value, strict=True)):
            asking = nodes[:, :, :1] if step == _GRAPH_STEPS - 1 else nodes
            back = key.kernel[...].T
            asked = asking @ (query.kernel[...] @ back).astype(self.dtype) + (query.bias[...] @ back).astype(self.dtype)
            edges = jnp.einsum("icxs,icys->icxy", asked, nodes, preferred_element_type=jnp.float32)
            edges = jax.nn.softmax(jnp.where(mask[:, None], edges, -jnp.inf)).astype(self.dtype)
            nodes = jax.nn.relu(value(jnp.einsum("icxy,icys->icxs", edges, nodes)))
        return nodes[:, :, 0]


class AttentionFiltration(nnx.Module):
    """SAF: alignments are weighed by how much they tell (SGRAF, section 3.4).

    The batch norm of the weights takes its statistics from one caption against all images at a time, and moves its
    running ones caption by caption, in the order of the batch, as the published loop does.
    """

    def __init__(self, size: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.linear = _linear(size, 1, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.norm = BatchNorm(1, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, alignments: Array, mask: Array, train: bool) -> tuple[Array, Array]:
        """`alignments` `[i, c, L + 1, S]`, of which `mask` `[c, L + 1]` counts.

        Returns:
            `[i, c, S]` of length 1, and in training each caption's mean and unbiased variance, float32 `[c, 2]`.
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
        weights = weights / (weights.sum(axis=-1, keepdims=True) + _EPSILON)
        pooled = jnp.einsum("icl,icls->ics", weights.astype(alignments.dtype), alignments)
        return l2norm(pooled.astype(jnp.float32)), statistics

    def update(self, statistics: Array) -> None:
        """Moves the running statistics towards those of captions `[C, 2]`, one after the other."""
        statistics = jax.lax.stop_gradient(statistics)
        momentum = self.norm.momentum
        remaining = (1 - momentum) ** jnp.arange(len(statistics) - 1, -1, -1)
        mean, var = momentum * (remaining @ statistics)
        kept = (1 - momentum) ** len(statistics)
        self.norm.mean[...] = kept * self.norm.mean[...] + mean
        self.norm.var[...] = kept * self.norm.var[...] + var


class SGRAF(nnx.Module):
    """Similarity of images and captions.

    Args:
        num_words: of the vocabulary.
        num_features, num_regions: channels and number of an image's regions.
        embed_size, word_size, similarity_size: D, of the word vectors, and S.
        reasoning: "sgr" or "saf".

    Raises:
        InputError: another reasoning.
    """

    def __init__(
        self,
        num_words: int,
        num_features: int,
        *,
        num_regions: int = 36,
        embed_size: int = 1024,
        word_size: int = 300,
        similarity_size: int = 256,
        reasoning: str = "saf",
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if reasoning not in REASONINGS:
            raise InputError(f"config.model.reasoning: unknown {reasoning!r}; known: {', '.join(REASONINGS)}")
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.dtype = dtype
        self.image = _linear(num_features, embed_size, **options)
        self.text = TextEncoder(num_words, word_size, embed_size, **options)
        self.image_attention = GlobalAttention(embed_size, num_regions, **options)
        self.text_attention = GlobalAttention(embed_size, None, **options)
        self.local = _linear(embed_size, similarity_size, **options)
        self.whole = _linear(embed_size, similarity_size, **options)
        head = GraphReasoning if reasoning == "sgr" else AttentionFiltration
        self.reasoning = head(similarity_size, **options)
        self.score = _linear(similarity_size, 1, **options)

    def encode_images(self, features: Array, *, train: bool, key: Array | None = None) -> tuple[Array, Array]:
        """Regions `[B, R, F]` to vectors of length 1: `[B, R, D]` of each, `[B, D]` of all, float32."""
        regions = l2norm(self.image(features.astype(self.dtype)).astype(jnp.float32))
        return regions, self.image_attention(regions, None, train=train, key=key)

    def encode_captions(
        self, tokens: Array, lengths: Array, *, train: bool, key: Array | None = None
    ) -> tuple[Array, Array]:
        """Tokens `[C, L]` to vectors of length 1: `[C, L, D]` of each, 0 beyond `lengths` `[C]`, `[C, D]` of all."""
        key_words, key_attention = split_key(key, 2)
        words = self.text(tokens, lengths, train=train, key=key_words)
        mask = word_mask(tokens, lengths)
        return words, self.text_attention(words, mask, train=train, key=key_attention)

    def similarity(
        self,
        images: tuple[Array, Array],
        captions: tuple[Array, Array],
        lengths: Array,
        *,
        train: bool,
        block: int,
        remat: bool = False,
    ) -> Array:
        """Scores every caption against every image.

        Each block of captions is computed at the width of its longest one, so captions of like length should stand
        together.

        Args:
            images, captions: as encoded; `[I, R, D]` and `[I, D]`, `[C, L, D]` and `[C, D]`.
            lengths: `[C]`.
            train: use each caption's own statistics, and move the running ones.
            block: pairs computed at once, on each device; at least one caption against all images.
            remat: compute the alignments again in the backward pass instead of keeping them.

        Returns:
            float32 `[C, I]`, in 0..1.
        """
        words, wholes = captions
        num_blocks = _num_blocks(len(words), len(images[0]), block)
        regions, image_wholes = _everywhere(images)
        regions = regions.astype(self.dtype)
        products = jnp.einsum("ird,iqd->irq", regions, regions, preferred_element_type=jnp.float32)
        widths = _widths(words.shape[1])

        def of_width(width: int, words: Array, wholes: Array, lengths: Array) -> tuple[Array, Array]:
            images = regions, products, image_wholes
            return self._of_block(images, words[:, :width], wholes, lengths, train=train)

        def of_block(block: tuple[Array, ...]) -> tuple[Array, Array]:
            enough = jnp.searchsorted(jnp.array(widths), block[-1].max())
            return jax.lax.switch(enough, [partial(of_width, width) for width in widths], *block)

        blocks = [_split_rows(rows, num_blocks) for rows in (words, wholes, lengths)]
        scores, statistics = jax.lax.map(jax.checkpoint(of_block) if remat else of_block, tuple(blocks))
        if train and isinstance(self.reasoning, AttentionFiltration):
            self.reasoning.update(_join_rows(statistics))
        return _join_rows(scores)

    def _of_block(
        self, images: tuple[Array, Array, Array], words: Array, wholes: Array, lengths: Array, *, train: bool
    ) -> tuple[Array, Array]:
        mask = jnp.arange(words.shape[1]) < lengths[:, None]
        alignments = self._alignments(*images, words, wholes, mask)
        mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        if isinstance(self.reasoning, AttentionFiltration):
            pooled, statistics = self.reasoning(alignments, mask, train)
        else:
            pooled, statistics = self.reasoning(alignments, mask), jnp.zeros((len(words), 2), jnp.float32)
        return jax.nn.sigmoid(self.score(pooled)[..., 0].astype(jnp.float32)).T, statistics

    def _alignments(
        self, regions: Array, products: Array, image_wholes: Array, words: Array, wholes: Array, mask: Array
    ) -> Array:
        """`[i, c, L + 1, S]`: how the whole caption fits the whole image, then each word what it attends to."""
        words = words.astype(self.dtype)
        affinity = jnp.einsum("ird,cld->iclr", regions, words, preferred_element_type=jnp.float32)
        affinity = jax.nn.leaky_relu(affinity, 0.1) * mask[..., None]
        attention = jax.nn.softmax(_SHARPNESS * l2norm(affinity, axis=2))
        # The length of what a word attends to, from the regions' products: far fewer numbers than its vector.
        square = (jnp.einsum("iclr,irq->iclq", attention, products) * attention).sum(axis=-1, keepdims=True)
        attention = (attention / (jnp.sqrt(square) + _EPSILON)).astype(self.dtype)
        context = jnp.einsum("iclr,ird->icld", attention, regions)
        apart = jnp.square(context - words)
        local = l2norm(self.local(apart.astype(self.dtype)).astype(jnp.float32))
        apart = jnp.square(image_wholes[:, None] - wholes)
        whole = l2norm(self.whole(apart.astype(self.dtype)).astype(jnp.float32))
        return jnp.concatenate([whole[:, :, None], local], axis=2).astype(self.dtype)


def l2norm(x: Array, axis: int = -1) -> Array:
    """`x` over its length along `axis` plus 1e-8; gradient 0 where the length is 0."""
    square = jnp.square(x).sum(axis=axis, keepdims=True)
    positive = square > 0
    length = jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
    return x / (length + _EPSILON)


def word_mask(tokens: Array, lengths: Array) -> Array:
    """bool `[C, L]`: which of the padded `tokens` `[C, L]` are words."""
    return jnp.arange(tokens.shape[1]) < lengths[:, None]


def _linear(in_features: int, out_features: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
    xavier = initializers.xavier_uniform()
    return nnx.Linear(in_features, out_features, kernel_init=xavier, dtype=dtype, param_dtype=param_dtype, rngs=rngs)


def _num_blocks(captions: int, images: int, block: int) -> int:
    """The fewest blocks of equally many captions, on each device, of at most `block` pairs (or one caption) each."""
    own = captions // _devices(captions)
    largest = max(block // images, 1)
    return next(count for count in range(math.ceil(own / largest), own + 1) if own % count == 0)


def _split_rows(rows: Array, num_blocks: int) -> Array:
    """`[C, ...]` to `[blocks, C / blocks, ...]`: of each device's rows the next few, which stay there."""
    parts = rows.reshape(_devices(len(rows)), num_blocks, -1, *rows.shape[1:])
    return parts.swapaxes(0, 1).reshape(num_blocks, -1, *rows.shape[1:])


def _join_rows(blocks: Array) -> Array:
    """The inverse of `_split_rows`."""
    devices = _devices(blocks.shape[0] * blocks.shape[1])
    parts = blocks.reshape(len(blocks), devices, -1, *blocks.shape[2:])
    return parts.swapaxes(0, 1).reshape(-1, *blocks.shape[2:])


def _devices(captions: int) -> int:
    """Over how many devices the captions are split."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or captions % mesh.size else mesh.size


def _widths(longest: int) -> list[int]:
    """The numbers of words that programs are made for: few, since each takes its time to compile."""
    return sorted({-(-longest // 2), -(-3 * longest // 4), longest})


def _everywhere(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    """The arrays whole on every device, where a mesh is set."""
    if jax.sharding.get_abstract_mesh().empty:
        return arrays
    return jax.lax.with_sharding_constraint(arrays, jax.sharding.PartitionSpec())
