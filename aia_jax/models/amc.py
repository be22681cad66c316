"""AMC: image search by a query's attention within and between an image's regions and its keywords (Chen et al., CVPR
2017, arXiv 1704.00763).

The authors published no model. Of what follows the branches, their products, softmaxes and cosines are in the paper's
framework figure or in a third party's transcription of it. Ours are the sizes, the kernel's width, the queries'
encoder, sums where that transcription takes means, the weights of images without keywords, initial values, and the
scale of the maps.
"""

import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn import initializers
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from aia_jax.models.backbones import dtypes
from aia_jax.models.layers.common import l2norm, relu, xavier_linear
from aia_jax.models.layers.pairwise_blocks import everywhere, join_rows, num_blocks, split_rows
from aia_jax.utils.errors import InputError

MODALITIES = ("both", "visual", "keywords")

Encoded = dict[str, Array]


class AMC(nnx.Module):
    """Scores images, by their feature maps and keywords, for queries.

    Args:
        num_words: of the queries' vocabulary.
        num_keywords: of the keywords' vocabulary.
        num_features: channels of the maps.
        word_size, embed_size: of a query, and d of all that is compared.
        kernel_size: r, of the kernel that a query makes.
        modalities: "both", "visual" or "keywords".
        visual_attention: else the map's mean stands for the image (without VAN).
        keyword_attention: else the keywords' mean (without LAN).
        modality_attention: else both modalities weigh the same (without MTN).

    Raises:
        InputError: other modalities.
    """

    def __init__(
        self,
        num_words: int,
        num_keywords: int,
        num_features: int,
        *,
        word_size: int = 300,
        embed_size: int = 512,
        kernel_size: int = 3,
        modalities: str = "both",
        visual_attention: bool = True,
        keyword_attention: bool = True,
        modality_attention: bool = True,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if modalities not in MODALITIES:
            raise InputError(f"config.model.modalities: unknown {modalities!r}; known: {', '.join(MODALITIES)}")
        self.dtype, self.kernel_size, self.modalities = dtype, kernel_size, modalities
        self.wide = jnp.promote_types(dtype, jnp.float32)  # of sums, softmaxes and cosines
        self.visual_attention, self.keyword_attention = visual_attention, keyword_attention
        self.modality_attention = modality_attention
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        # Values of about 1 everywhere.
        normal = initializers.normal(1.0)
        self.words = nnx.Param(normal(rngs.params(), (num_words, word_size), param_dtype))
        self.keywords = nnx.Param(normal(rngs.params(), (max(num_keywords, 1), embed_size), param_dtype))
        self.visual = xavier_linear(num_features, embed_size, **options)
        self.matched = xavier_linear(word_size, embed_size, **options)  # q_m
        self.compared = xavier_linear(word_size, embed_size, **options)  # q'
        taps = kernel_size**2 * embed_size
        self.kernel = xavier_linear(word_size, taps, **options)  # s_q
        self.asking = nnx.Linear(word_size, embed_size, use_bias=False, **options)  # q W_ql
        bilinear = initializers.normal(1 / math.sqrt(embed_size))
        self.bilinear = nnx.Param(bilinear(rngs.params(), (embed_size, embed_size), param_dtype))

    def encode_queries(self, tokens: Array, lengths: Array) -> Encoded:
        """What of a query does not depend on images.

        Args:
            tokens: int `[Q, L]`, padded.
            lengths: `[Q]`, at least 1.

        Returns:
            float32 `matched` and `compared` `[Q, d]`, `kernel` `[Q, r r, d]`, `asked` `[Q, d]`.
        """
        mask = (jnp.arange(tokens.shape[1]) < lengths[:, None]).astype(self.wide)
        query = jnp.einsum("ql,qld->qd", mask / lengths[:, None], self.words[...][tokens])
        # Both softmaxes take sums of many products: over the root of their number these start out at about 1, and a
        # step of the optimiser does not throw all attention on one place.
        kernel = relu(self.kernel(query)) / math.sqrt(self.kernel.out_features)
        asked = self.asking(query) @ self.bilinear[...].astype(self.dtype) / math.sqrt(len(self.bilinear[...]))
        encoded = {
            "matched": relu(self.matched(query)),
            "compared": relu(self.compared(query)),
            "kernel": kernel.reshape(len(query), self.kernel_size**2, -1),
            "asked": asked,
        }
        return {name: value.astype(self.wide) for name, value in encoded.items()}

    def encode_images(self, maps: Array, keywords: Array, counts: Array) -> Encoded:
        """What of an image does not depend on queries.

        Args:
            maps: `[I, h, w, F]`, or `[I, h w, F]` of a square grid; each is brought to a mean square of 1.
            keywords: int `[I, K]`, padded.
            counts: `[I]`, how many of them there are; 0 is fine.

        Returns:
            `cells` `[I, h, w, d]` in the model's dtype, `keywords` and `counts` as given.
        """
        if maps.ndim == 3:
            side = math.isqrt(maps.shape[1])
            maps = maps.reshape(len(maps), side, side, -1)
        maps = maps.astype(self.wide)
        scale = jax.lax.rsqrt(jnp.square(maps).mean(axis=(1, 2, 3), keepdims=True) + 1e-12)
        return {"cells": self.visual((maps * scale).astype(self.dtype)), "keywords": keywords, "counts": counts}

    def similarity(self, images: Encoded, queries: Encoded, *, block: int, remat: bool = False) -> Array:
        """Scores every image for every query.

        Args:
            images, queries: as encoded.
            block: pairs computed at once, on each device; at least one image with all queries.
            remat: compute the attention again in the backward pass instead of keeping it.

        Returns:
            float32 `[I, Q]`, in -1..1.
        """
        queries = everywhere(queries)
        num_images = len(images["counts"])
        count = num_blocks(num_images, len(queries["matched"]), block)

        def of_block(images: Encoded) -> Array:
            return self.attend(images, queries)["score"]

        blocks = {name: split_rows(rows, count) for name, rows in images.items()}
        return join_rows(jax.lax.map(jax.checkpoint(of_block) if remat else of_block, blocks))

    def attend(self, images: Encoded, queries: Encoded) -> dict[str, Array]:
        """All pairs at once, with what they attend to.

        Returns:
            float32 `score` `[I, Q]`, `visual_attention` `[I, Q, h, w]`, `keyword_attention` `[I, Q, K]` (0 in the
            padding) and `weights` `[I, Q, 2]`, of the map and of the keywords.
        """
        seen, where = self._see(images["cells"], queries["kernel"])
        which = self.keyword_shares(queries["asked"], images["keywords"], images["counts"])
        embedded = self.keywords[...].astype(self.dtype)[images["keywords"]]
        read = jnp.einsum("iqk,ikd->iqd", which.astype(self.dtype), embedded, preferred_element_type=self.wide)
        compared = l2norm(queries["compared"])
        cosines = (jnp.einsum("iqd,qd->iq", l2norm(part), compared) for part in (seen, read))
        weights = self.weigh(*cosines, images["counts"])
        found = weights[..., :1] * seen + weights[..., 1:] * read
        score = jnp.einsum("iqd,qd->iq", l2norm(found), l2norm(queries["matched"]))
        return {"score": score, "visual_attention": where, "keyword_attention": which, "weights": weights}

    def _see(self, cells: Array, kernel: Array) -> tuple[Array, Array]:
        """VAN: the sum of cells `[I, Q, d]` under the softmax of the query's convolution, and that `[I, Q, h, w]`."""
        shape = (len(cells), len(kernel), *cells.shape[1:3])
        where = jnp.full(shape, 1 / math.prod(shape[2:]), self.wide)
        if self.visual_attention:
            # One product for all taps, then their shifted sum: far less work than a convolution for each pair.
            taps = jnp.einsum("ihwd,qtd->iqthw", cells, kernel.astype(self.dtype), preferred_element_type=self.wide)
            where = jax.nn.softmax(_shifted_sum(taps, self.kernel_size).reshape(*shape[:2], -1)).reshape(shape)
        seen = jnp.einsum("iqhw,ihwd->iqd", where.astype(self.dtype), cells, preferred_element_type=self.wide)
        return seen, where

    def keyword_shares(self, asked: Array, keywords: Array, counts: Array) -> Array:
        """LAN: `[I, Q, K]`, the softmax of the query's bilinear form over each image's keywords; 0 in the padding.

        Args:
            asked: `[Q, d]`.
            keywords: int `[I, K]`.
            counts: `[I]`.
        """
        mask = (jnp.arange(keywords.shape[1]) < counts[:, None])[:, None]
        logits = jnp.zeros((len(keywords), len(asked), keywords.shape[1]), self.wide)
        if self.keyword_attention:
            # Of each query with each word once, not with each image's words.
            table = self.keywords[...].astype(self.dtype)
            products = jnp.einsum("qd,vd->vq", asked.astype(self.dtype), table, preferred_element_type=self.wide)
            logits = products[keywords].swapaxes(1, 2)
        # Finite, so that the gradient of a row without keywords is not NaN.
        return jnp.where(mask, jax.nn.softmax(jnp.where(mask, logits, -1e9)), 0)

    def weigh(self, of_cells: Array, of_keywords: Array, counts: Array) -> Array:
        """MTN: `[I, Q, 2]` of both modalities' cosines `[I, Q]`; the keywords of an image without any weigh 0."""
        if self.modalities != "both":
            chosen = jnp.eye(2, dtype=self.wide)[MODALITIES.index(self.modalities) - 1]
            return jnp.broadcast_to(chosen, (*of_cells.shape, 2))
        visual = jax.nn.sigmoid(of_cells - of_keywords) if self.modality_attention else jnp.full_like(of_cells, 0.5)
        visual = jnp.where(counts[:, None] > 0, visual, 1)
        return jnp.stack([visual, 1 - visual], axis=-1)


def build_amc(model: ConfigDict, num_words: int, num_keywords: int, num_features: int, *, rngs: nnx.Rngs) -> AMC:
    """The model that the `model` part of a config describes.

    Raises:
        InputError: a name that is not known.
    """
    return AMC(
        num_words,
        num_keywords,
        num_features,
        word_size=model.word_size,
        embed_size=model.embed_size,
        kernel_size=model.kernel_size,
        modalities=model.modalities,
        visual_attention=model.visual_attention,
        keyword_attention=model.keyword_attention,
        modality_attention=model.modality_attention,
        **dtypes(model),
        rngs=rngs,
    )


def _shifted_sum(taps: Array, size: int) -> Array:
    """`[..., size size, h, w]`, what each tap of a kernel gives at each place, to the correlation `[..., h, w]`.

    The border is padded with zeros as `SAME` is.
    """
    height, width = taps.shape[-2:]
    before = (size - 1) // 2
    edges = [(0, 0)] * (taps.ndim - 2) + [(before, size - 1 - before)] * 2
    padded = jnp.pad(taps, edges)
    places = enumerate(itertools.product(range(size), repeat=2))
    return sum(padded[..., tap, y : y + height, x : x + width] for tap, (y, x) in places)
