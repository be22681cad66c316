"""SGRAF: image-text similarity by graph reasoning or attention filtration (Diao et al., AAAI 2021, arXiv 2101.01368).

The published code processes the captions one by one. This code processes blocks of captions. It pads the captions and
masks the padding, so that no score depends on the padding. In training, batch norm computes separate statistics for
each caption, so that no score depends on other captions.

Shapes: I or B images, R regions, F features of a region, C captions, L words, D embedding size, S similarity size, i
images in a block, c captions in a block.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from aia_jax.models.backbones import look_up
from aia_jax.models.layers.batch_norm import BatchNorm
from aia_jax.models.layers.common import EPSILON, dropout, dropout_key, l2norm, split_key, uniform, xavier_linear
from aia_jax.models.layers.gru import BidirectionalGRU
from aia_jax.models.layers.pairwise_blocks import join_rows, num_blocks, replicate, split_rows
from aia_jax.models.minilm import WIDTH
from aia_jax.models.sgraf_reasoning import REASONINGS, AttentionFiltration

# The fields of `config.model` that are arguments of `SGRAF`.
SGRAF_FIELDS = ("num_regions", "embed_size", "word_size", "similarity_size", "reasoning")
_DROPOUT = 0.4
_ATTENTION_SCALE = 9.0  # inverse temperature of the attention over regions


class GlobalAttention(nnx.Module):
    """Pools a set of vectors by attention. The query is the mean of the vectors (SGRAF, section 3.1).

    Args:
        size: D, size of the vectors.
        num_regions: R for images, None for captions. Batch norm is used only for images.
    """

    def __init__(self, size: int, num_regions: int | None, *, dtype: DTypeLike, **options):
        self.local = xavier_linear(size, size, dtype=dtype, **options)
        self.mean = xavier_linear(size, size, dtype=dtype, **options)
        self.common = xavier_linear(size, 1, dtype=dtype, **options)
        self.local_norm = BatchNorm(num_regions, **options) if num_regions else None
        self.mean_norm = BatchNorm(size, **options) if num_regions else None

    def __call__(self, x: Array, mask: Array | None, *, train: bool, key: Array | None) -> Array:
        """Pools `x` `[B, N, D]` to unit vectors `[B, D]`. `mask` `[B, N]` selects vectors of `x`. None selects all."""
        key_local, key_mean = split_key(dropout_key(key, _DROPOUT, train), 2)
        weight = jnp.ones(x.shape[:2], jnp.float32) if mask is None else mask.astype(jnp.float32)
        mean = (x * weight[..., None]).sum(axis=1) / weight.sum(axis=1, keepdims=True)
        local, mean = self.local(x).astype(jnp.float32), self.mean(mean).astype(jnp.float32)
        if self.local_norm is not None:
            # Regions are the channels of the first norm. It computes the statistics over images and features.
            local = self.local_norm(local.swapaxes(1, 2)[:, :, None], train=train)[:, :, 0].swapaxes(1, 2)
            mean = self.mean_norm(mean[:, None, None], train=train)[:, 0, 0]
        local = dropout(jnp.tanh(local), _DROPOUT, key_local)
        mean = dropout(jnp.tanh(mean), _DROPOUT, key_mean)
        scores = self.common(local * mean[:, None])[..., 0].astype(jnp.float32)
        attention = jax.nn.softmax(jnp.where(weight > 0, scores, -jnp.inf))
        return l2norm(jnp.einsum("bn,bnd->bd", attention, x))


class TextEncoder(nnx.Module):
    """Encodes words in context as vectors of length 1.

    Attributes:
        embedding: `[W, word_size]`, the vectors of the vocabulary's W words.
    """

    def __init__(
        self, num_words: int, word_size: int, embed_size: int, *, param_dtype: DTypeLike, rngs: nnx.Rngs, **options
    ):
        self.embedding = nnx.Param(uniform(0.1)(rngs.params(), (num_words, word_size), param_dtype))
        self.gru = BidirectionalGRU(word_size, embed_size, param_dtype=param_dtype, rngs=rngs, **options)

    def __call__(self, tokens: Array, lengths: Array, *, train: bool, key: Array | None) -> Array:
        """Encodes int tokens `[C, L]` as float32 `[C, L, D]`. The vectors after the `lengths` `[C]` words are 0."""
        words = dropout(self.embedding[...][tokens], _DROPOUT, dropout_key(key, _DROPOUT, train))
        states = l2norm(self.gru(words, lengths))
        return jnp.where(word_mask(tokens, lengths)[..., None], states, 0)


class TokenProjection(nnx.Module):
    """Projects outputs of the frozen `MiniLM` to vectors of length 1."""

    def __init__(self, embed_size: int, *, dtype: DTypeLike, **options):
        self.dtype = dtype
        self.linear = xavier_linear(WIDTH, embed_size, dtype=dtype, **options)

    def __call__(self, tokens: Array, lengths: Array, *, train: bool, key: Array | None) -> Array:
        """Projects `[C, L, 384]` to float32 `[C, L, D]`. The vectors after the `lengths` `[C]` tokens are 0."""
        tokens = dropout(tokens.astype(self.dtype), _DROPOUT, dropout_key(key, _DROPOUT, train))
        states = l2norm(self.linear(tokens).astype(jnp.float32))
        return jnp.where(word_mask(tokens, lengths)[..., None], states, 0)


class SGRAF(nnx.Module):
    """Computes the similarity of images and captions.

    Args:
        num_words: size of the vocabulary.
        num_features: F, number of features of a region.
        num_regions: R, number of regions of an image.
        embed_size: D, size of the embeddings of images and captions.
        word_size: size of the word vectors.
        similarity_size: S, size of the similarity vectors.
        reasoning: "sgr" or "saf". Other names raise InputError.
        text: "gru", or "minilm" for captions that are outputs of `MiniLM`, not word ids.
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
        text: str = "gru",
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        reasoning_class = look_up("reasoning", reasoning, REASONINGS)
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.dtype = dtype
        self.image = xavier_linear(num_features, embed_size, **options)
        self.text = (
            TokenProjection(embed_size, **options)
            if text == "minilm"
            else TextEncoder(num_words, word_size, embed_size, **options)
        )
        self.image_attention = GlobalAttention(embed_size, num_regions, **options)
        self.text_attention = GlobalAttention(embed_size, None, **options)
        self.local = xavier_linear(embed_size, similarity_size, **options)
        self.whole = xavier_linear(embed_size, similarity_size, **options)
        self.reasoning = reasoning_class(similarity_size, **options)
        self.score = xavier_linear(similarity_size, 1, **options)

    def encode_images(self, features: Array, *, train: bool, key: Array | None = None) -> tuple[Array, Array]:
        """Encodes region features `[B, R, F]` as float32 unit vectors of regions, `[B, R, D]`, and images, `[B, D]`."""
        regions = l2norm(self.image(features.astype(self.dtype)).astype(jnp.float32))
        return regions, self.image_attention(regions, None, train=train, key=key)

    def encode_captions(
        self, tokens: Array, lengths: Array, *, train: bool, key: Array | None = None
    ) -> tuple[Array, Array]:
        """Encodes tokens, `[C, L]` or `[C, L, 384]`, as float32 vectors of length 1.

        Returns:
            Word vectors `[C, L, D]` and caption vectors `[C, D]`. The word vectors after `lengths` `[C]` words are 0.
        """
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

        Args:
            images: result of `encode_images`, `[I, R, D]` and `[I, D]`.
            captions: result of `encode_captions`, `[C, L, D]` and `[C, D]`.
            lengths: `[C]`, number of words of each caption. Captions that are sorted by length need less time, because
                less padding is computed.
            train: whether batch norm uses the statistics of each caption and updates the running statistics.
            block: maximal number of caption-image pairs that a device computes at once. Values below I are raised to I.
            remat: whether to compute the similarity vectors again in the backward pass instead of storing them.

        Returns:
            Scores from 0 to 1, float32 `[C, I]`.
        """
        words, wholes = captions
        count = num_blocks(len(words), len(images[0]), block)
        regions, image_wholes = replicate((images[0].astype(self.dtype), images[1]))
        products = jnp.einsum("ird,iqd->irq", regions, regions, preferred_element_type=jnp.float32)
        longest = words.shape[1]
        widths = sorted({-(-longest // 2), -(-3 * longest // 4), longest})  # only three, because each width is compiled

        def score_words(width: int, words: Array, wholes: Array, lengths: Array) -> tuple[Array, Array]:
            words, mask = words[:, :width], word_mask(words[:, :width], lengths)
            alignments = self._alignments(regions, products, image_wholes, words, wholes, mask)
            mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
            pooled, statistics = self.reasoning(alignments, mask, train)
            return jax.nn.sigmoid(self.score(pooled)[..., 0].astype(jnp.float32)).T, statistics

        def score(block: tuple[Array, ...]) -> tuple[Array, Array]:
            smallest = jnp.searchsorted(jnp.array(widths), block[-1].max())
            return jax.lax.switch(smallest, [partial(score_words, width) for width in widths], *block)

        blocks = tuple(split_rows(rows, count) for rows in (words, wholes, lengths))
        scores, statistics = jax.lax.map(jax.checkpoint(score) if remat else score, blocks)
        if train and isinstance(self.reasoning, AttentionFiltration):
            self.reasoning.update(join_rows(statistics))
        return join_rows(scores)

    def _alignments(
        self, regions: Array, products: Array, image_wholes: Array, words: Array, wholes: Array, mask: Array
    ) -> Array:
        """Returns similarity vectors `[i, c, L + 1, S]`.

        The first vector compares image and caption. Each other vector compares a word with a weighted sum of regions.
        """
        words = words.astype(self.dtype)
        affinity = jnp.einsum("ird,cld->iclr", regions, words, preferred_element_type=jnp.float32)
        affinity = jax.nn.leaky_relu(affinity, 0.1) * mask[..., None]
        attention = jax.nn.softmax(_ATTENTION_SCALE * l2norm(affinity, axis=2))
        # Computes the lengths of the context vectors from products of regions, because the vectors need more memory.
        square = (jnp.einsum("iclr,irq->iclq", attention, products) * attention).sum(axis=-1, keepdims=True)
        attention = (attention / (jnp.sqrt(jnp.maximum(square, EPSILON**2)) + EPSILON)).astype(self.dtype)
        context = jnp.einsum("iclr,ird->icld", attention, regions)
        difference = jnp.square(context - words)
        local = l2norm(self.local(difference.astype(self.dtype)).astype(jnp.float32))
        difference = jnp.square(image_wholes[:, None] - wholes)
        whole = l2norm(self.whole(difference.astype(self.dtype)).astype(jnp.float32))
        return jnp.concatenate([whole[:, :, None], local], axis=2).astype(self.dtype)


def word_mask(tokens: Array, lengths: Array) -> Array:
    """Returns bool `[C, L]`, which is True for words and False for padding. `tokens` is `[C, L]` or `[C, L, D]`."""
    return jnp.arange(tokens.shape[1]) < lengths[:, None]
