"""AMC, a model for image search (Chen et al., CVPR 2017, arXiv 1704.00763).

An image has two modalities: its feature map and its keywords. The visual attention network (VAN) weights the cells of
the map, the language attention network (LAN) weights the keywords, and the modality attention network (MTN) weights
both modalities. The authors published no code of the model. `docs/search.md` lists the source of each part.

Shapes: I images, Q queries, L words, K keywords, h x w cells, F channels, d embedding size, r kernel size.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.nn import initializers
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from aia_jax.models.backbones import dtypes, look_up
from aia_jax.models.layers.common import EPSILON, l2norm, relu, xavier_linear
from aia_jax.models.layers.pairwise_blocks import join_rows, num_blocks, replicate, split_rows

MODALITIES = {"both": None, "visual": (1, 0), "keywords": (0, 1)}  # fixed weights of the feature map and the keywords
_FIELDS = (  # the fields of `config.model` that are arguments of `AMC`
    *("word_size", "embed_size", "kernel_size", "modalities"),
    *("visual_attention", "keyword_attention", "modality_attention"),
)

Encoded = dict[str, Array]


class AMC(nnx.Module):
    """Scores images for text queries, from the feature map and the keywords of each image.

    Raises InputError if `modalities` is unknown.

    Args:
        num_words: size of the query vocabulary.
        num_keywords: size of the keyword vocabulary.
        num_features: F, number of channels of the feature maps.
        word_size: size of the word vectors.
        embed_size: d, size of the joint embedding.
        kernel_size: r, side of the convolution kernel that each query generates.
        modalities: "both", "visual" (only the feature map) or "keywords" (only the keywords).
        visual_attention: whether to use the visual attention network (VAN). False gives all cells the same weight.
        keyword_attention: whether to use the language attention network (LAN). False gives all keywords of an image
            the same weight.
        modality_attention: whether to use the modality attention network (MTN). False weights both modalities equally.
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
        look_up("modalities", modalities, MODALITIES)  # checks the name
        self.dtype, self.kernel_size, self.modalities = dtype, kernel_size, modalities
        self.wide = jnp.promote_types(dtype, jnp.float32)  # dtype of sums, softmaxes and cosines
        self.visual_attention, self.keyword_attention = visual_attention, keyword_attention
        self.modality_attention = modality_attention
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
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
        """Encodes queries. The result does not depend on the images.

        Args:
            tokens: int `[Q, L]`, the word ids of each query, padded.
            lengths: `[Q]`, number of words of each query, at least 1.

        Returns:
            Float32 arrays:
            `matched`: `[Q, d]`, query vectors for the score.
            `compared`: `[Q, d]`, query vectors for the weights of the modalities.
            `kernel`: `[Q, r * r, d]`, convolution kernels for the VAN.
            `asked`: `[Q, d]`, query vectors for the LAN, already multiplied by the bilinear matrix.
        """
        mask = (jnp.arange(tokens.shape[1]) < lengths[:, None]).astype(self.wide)
        query = jnp.einsum("ql,qld->qd", mask / lengths[:, None], self.words[...][tokens])
        # The inputs of both softmaxes are sums of n products. Division by sqrt(n) makes the initial sums about 1.
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
        """Encodes images. The result does not depend on the queries.

        Args:
            maps: feature maps `[I, h, w, F]`, or `[I, h * w, F]` if h = w. Each map is scaled to a mean square of 1.
            keywords: int `[I, K]`, ids of each image's keywords, padded.
            counts: `[I]`, number of keywords of each image, at least 0.

        Returns:
            `cells` `[I, h, w, d]`, the vectors of the cells in the model's dtype, and the arguments `keywords` and
            `counts`.
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
            images, queries: results of `encode_images` and `encode_queries`.
            block: maximal number of image-query pairs that a device computes at once. Values below Q are raised to Q.
            remat: whether to compute the attention again in the backward pass instead of storing it.

        Returns:
            Scores from -1 to 1, float32 `[I, Q]`.
        """
        queries = replicate(queries)
        num_images = len(images["counts"])
        count = num_blocks(num_images, len(queries["matched"]), block)

        def score(images: Encoded) -> Array:
            return self.attend(images, queries)["score"]

        blocks = {name: split_rows(rows, count) for name, rows in images.items()}
        return join_rows(jax.lax.map(jax.checkpoint(score) if remat else score, blocks))

    def attend(self, images: Encoded, queries: Encoded) -> dict[str, Array]:
        """Computes the score and the attention weights for all pairs of an image and a query at once.

        Returns:
            Float32 arrays:
            `score`: `[I, Q]`.
            `visual_attention`: `[I, Q, h, w]`, the weights of the cells.
            `keyword_attention`: `[I, Q, K]`, the weights of the keywords. The weights of the padding are 0.
            `weights`: `[I, Q, 2]`, the weight of the feature map and the weight of all keywords together.
        """
        visual, visual_attention = self._attend_to_cells(images["cells"].astype(self.dtype), queries["kernel"])
        keyword_attention = self.attend_to_keywords(queries["asked"], images["keywords"], images["counts"])
        embedded = self.keywords[...].astype(self.dtype)[images["keywords"]]
        keyword = jnp.einsum(
            "iqk,ikd->iqd", keyword_attention.astype(self.dtype), embedded, preferred_element_type=self.wide
        )
        compared = l2norm(queries["compared"])
        cosines = (jnp.einsum("iqd,qd->iq", l2norm(part), compared) for part in (visual, keyword))
        weights = self.weigh(*cosines, images["counts"])
        image = weights[..., :1] * visual + weights[..., 1:] * keyword
        return {
            "score": jnp.einsum("iqd,qd->iq", l2norm(image), l2norm(queries["matched"])),
            "visual_attention": visual_attention,
            "keyword_attention": keyword_attention,
            "weights": weights,
        }

    def _attend_to_cells(self, cells: Array, kernel: Array) -> tuple[Array, Array]:
        """Applies visual attention. Returns weighted sums of cells, `[I, Q, d]`, and cell weights, `[I, Q, h, w]`."""
        shape = (len(cells), len(kernel), *cells.shape[1:3])
        weights = jnp.full(shape, 1 / math.prod(shape[2:]), self.wide)
        if self.visual_attention:
            # A product for all taps and then a shifted sum cost far less than a convolution for each pair.
            taps = jnp.einsum("ihwd,qtd->iqthw", cells, kernel.astype(self.dtype), preferred_element_type=self.wide)
            weights = jax.nn.softmax(_shifted_sum(taps, self.kernel_size).reshape(*shape[:2], -1)).reshape(shape)
        total = jnp.einsum("iqhw,ihwd->iqd", weights.astype(self.dtype), cells, preferred_element_type=self.wide)
        return total, weights

    def attend_to_keywords(self, asked: Array, keywords: Array, counts: Array) -> Array:
        """Applies language attention. Returns the weights `[I, Q, K]` of the keywords, 0 for the padding.

        Args:
            asked: `[Q, d]`, query vectors from `encode_queries`.
            keywords: int `[I, K]`, ids of each image's keywords, padded.
            counts: `[I]`, number of keywords of each image.
        """
        mask = (jnp.arange(keywords.shape[1]) < counts[:, None])[:, None]
        logits = jnp.zeros((len(keywords), len(asked), keywords.shape[1]), self.wide)
        if self.keyword_attention:
            # Multiplies each query by each keyword of the vocabulary only once, not again for each image.
            table = self.keywords[...].astype(self.dtype)
            products = jnp.einsum("qd,vd->vq", asked.astype(self.dtype), table, preferred_element_type=self.wide)
            logits = products[keywords].swapaxes(1, 2)
        # The masked logits are finite. With -inf, images without keywords would have NaN gradients.
        return jnp.where(mask, jax.nn.softmax(jnp.where(mask, logits, -1e9)), 0)

    def weigh(self, visual_cosine: Array, keyword_cosine: Array, counts: Array) -> Array:
        """Returns the weights of feature map and keywords, `[I, Q, 2]`, from their cosines with the query, `[I, Q]`."""
        if self.modalities != "both":
            fixed = jnp.array(MODALITIES[self.modalities], self.wide)
            return jnp.broadcast_to(fixed, (*visual_cosine.shape, 2))
        even = jnp.full_like(visual_cosine, 0.5)
        visual = jax.nn.sigmoid(visual_cosine - keyword_cosine) if self.modality_attention else even
        visual = jnp.where(counts[:, None] > 0, visual, 1)  # 1 for images without keywords
        return jnp.stack([visual, 1 - visual], axis=-1)


def build_amc(model: ConfigDict, num_words: int, num_keywords: int, num_features: int, *, rngs: nnx.Rngs) -> AMC:
    """Builds an `AMC` from the `model` part of a config. Raises InputError if a field has an unknown value."""
    fields = {name: model[name] for name in _FIELDS}
    return AMC(num_words, num_keywords, num_features, **fields, **dtypes(model), rngs=rngs)


def summarize(model: AMC, images: Encoded) -> Encoded:
    """Summarises a result of `encode_images`. From the summary, `RoughScores` scores 100,000 images fast.

    Returns:
        `keywords`, `counts`: `[I, K]` and `[I]`, as in `images`.
        `mean`: float32 `[I, d]`, the mean of the cells of each image.
        `cross`: float32 `[I, K]`, the dot products of `mean` and the vector of each keyword of the image.
        `gram`: float32 `[I, K, K]`, the dot products of all pairs of keyword vectors of the image.
    """
    mean = images["cells"].astype(jnp.float32).mean(axis=(1, 2))
    embedded = model.keywords[...].astype(jnp.float32)[images["keywords"]]
    return {
        "keywords": images["keywords"],
        "counts": images["counts"],
        "mean": mean,
        "cross": jnp.einsum("id,ikd->ik", mean, embedded),
        "gram": jnp.einsum("ikd,ijd->ikj", embedded, embedded),
    }


class RoughScores:
    """Scores images for one query as `AMC.attend` does with equal weights for all cells, in NumPy.

    An image needs so little work that a transfer of its summary to JAX would cost as much. Call `products` for each
    part of the images, and then `score` for all of them.

    Args:
        model: the trained model.
        query: result of `encode_queries` for one query.
    """

    def __init__(self, model: AMC, query: Encoded):
        self._modalities, self._modality_attention = model.modalities, model.modality_attention
        table = np.asarray(model.keywords[...], np.float32)
        self._query = np.stack([l2norm(query["compared"])[0], l2norm(query["matched"])[0]], axis=1)
        self._compared, self._matched = (table @ self._query).T.copy()
        asked = table @ np.asarray(query["asked"][0], np.float64) * model.keyword_attention
        self._attention = np.exp(asked - asked.max())  # before normalisation over the keywords of an image

    def products(self, images: dict[str, np.ndarray]) -> np.ndarray:
        """Computes the dot products of which the scores consist.

        Args:
            images: result of `summarize` for I images.

        Returns:
            Float32 `[8, I]`, the argument of `score`.
        """
        mean, keywords, counts = images["mean"], images["keywords"].astype(np.intp), images["counts"]
        mask = np.arange(keywords.shape[1]) < counts[:, None]
        weights = self._attention.take(keywords) * mask
        total = np.maximum(np.vecdot(weights, mask), np.finfo(np.float64).tiny)
        weights = (weights / total[:, None]).astype(np.float32)
        gram = np.matmul(images["gram"], weights[..., None])[..., 0]
        return np.stack([
            *(mean @ self._query).T,
            np.vecdot(mean, mean),
            np.vecdot(weights, self._compared.take(keywords)),
            np.vecdot(weights, self._matched.take(keywords)),
            np.vecdot(weights, gram),
            np.vecdot(weights, images["cross"]),
            counts,
        ], dtype=np.float32, casting="same_kind")  # fmt: skip

    def score(self, products: np.ndarray) -> np.ndarray:
        """Computes the scores `[I]` of I images from their products `[8, I]`."""
        visual_compared, visual_matched, visual_square, *others, counts = products
        keyword_compared, keyword_matched, keyword_square, cross = others
        cosines = visual_compared / _length(visual_square), keyword_compared / _length(keyword_square)
        visual = self._weigh(*cosines, counts)
        keyword = 1 - visual
        square = visual**2 * visual_square + 2 * visual * keyword * cross + keyword**2 * keyword_square
        return (visual * visual_matched + keyword * keyword_matched) / _length(square)

    def _weigh(self, visual_cosine: np.ndarray, keyword_cosine: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Computes the weights of the feature maps as `AMC.weigh` does."""
        if self._modalities != "both":
            return np.full_like(visual_cosine, MODALITIES[self._modalities][0])
        visual = 1 / (1 + np.exp(keyword_cosine - visual_cosine)) if self._modality_attention else np.float32(0.5)
        return np.where(counts > 0, visual, np.float32(1))


def _shifted_sum(taps: Array, size: int) -> Array:
    """Shifts and adds the products with each kernel element, `[..., size * size, h, w]`. Returns `[..., h, w]`."""
    height, width = taps.shape[-2:]
    before = (size - 1) // 2
    edges = [(0, 0)] * (taps.ndim - 2) + [(before, size - 1 - before)] * 2
    padded = jnp.pad(taps, edges)
    places = enumerate(itertools.product(range(size), repeat=2))
    return sum(padded[..., tap, y : y + height, x : x + width] for tap, (y, x) in places)


def _length(square: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(square, 0)) + np.float32(EPSILON)
