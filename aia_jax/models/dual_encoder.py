"""A dual encoder: maps images and texts to vectors. The score of a pair is the dot product of its two vectors.

The image encoder pools the feature map of a backbone. The text encoder uses outputs of MiniLM, which is not trained.
Sources: Zhai et al., "LiT", CVPR 2022, https://arxiv.org/abs/2111.07991 (a frozen encoder, and trained heads), and
Radford et al., "CLIP", ICML 2021, https://arxiv.org/abs/2103.00020 (the contrastive loss).
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn import initializers
from ml_collections import ConfigDict

from aia_jax.models import minilm
from aia_jax.models.annotator import ClassifierHead, freeze
from aia_jax.models.backbones import build_backbone
from aia_jax.models.layers.batch_norm import BatchNorm
from aia_jax.models.layers.common import Frozen, dropout, dropout_key, l2norm, split_key
from aia_jax.utils.errors import InputError

NUM_CLASSES = 1000  # of ImageNet
_TEMPERATURE, _BIAS = 1 / 14, -8.0  # at the start of training


class Head(nnx.Module):
    """Maps features to a normalised vector: batch norm, dropout, a linear layer, and a residual layer."""

    def __init__(self, num_features: int, embed_size: int, *, dropout: float, hidden_dropout: float, rngs: nnx.Rngs):
        self.dropout, self.hidden_dropout = dropout, hidden_dropout
        self.inputs = BatchNorm(num_features, rngs=rngs)
        self.linear = nnx.Linear(num_features, embed_size, rngs=rngs)
        self.norm = nnx.LayerNorm(embed_size, rngs=rngs)
        self.expand = nnx.Linear(embed_size, embed_size, rngs=rngs)
        self.project = nnx.Linear(embed_size, embed_size, rngs=rngs)

    def __call__(self, x: Array, *, train: bool, key: Array | None = None) -> Array:
        """Maps `[B, num_features]` to `[B, embed_size]`."""
        input_key, hidden_key = split_key(key, 2)
        x = self.inputs(x[:, None, None], train=train)[:, 0, 0]
        x = self.linear(dropout(x, self.dropout, dropout_key(input_key, self.dropout, train)))
        hidden = jax.nn.gelu(self.expand(self.norm(x)))
        hidden = dropout(hidden, self.hidden_dropout, dropout_key(hidden_key, self.hidden_dropout, train))
        return l2norm(x + self.project(hidden))


class QueryPooling(nnx.Module):
    """Pools a feature map with attention. Each learned query has its own weights of the cells."""

    def __init__(self, num_features: int, num_queries: int, size: int, *, rngs: nnx.Rngs):
        self.norm = BatchNorm(num_features, rngs=rngs)
        self.project = nnx.Linear(num_features, size, rngs=rngs)
        self.query = nnx.Param(initializers.normal(size**-0.5)(rngs.params(), (size, num_queries)))

    def __call__(self, maps: Array, *, train: bool) -> Array:
        """Maps `[B, h, w, num_features]` to `[B, num_queries * size]`."""
        cells = self.project(self.norm(maps, train=train)).reshape(len(maps), -1, len(self.query))
        weights = jax.nn.softmax(cells @ self.query[...], axis=1)
        return jnp.einsum("brq,brd->bqd", weights, cells).reshape(len(maps), -1)


class WordBag(nnx.Module):
    """Computes the mean of trained vectors of a text's word pieces.

    Args:
        pieces: ids of the word pieces that have a vector. Other word pieces are ignored.
        size: number of elements of a vector.
    """

    def __init__(self, pieces: Sequence[int], size: int, *, rngs: nnx.Rngs):
        rows = (
            jnp.zeros(minilm.WORD_PIECES, jnp.int32)
            .at[jnp.asarray(pieces, jnp.int32)]
            .set(jnp.arange(1, len(pieces) + 1))
        )
        self.rows = Frozen(rows)  # for each word piece, the row of its vector plus 1; 0: it has none
        self.vectors = nnx.Param(initializers.normal(1.0)(rngs.params(), (len(pieces), size)))

    def __call__(self, pieces: Array) -> Array:
        """Maps ids of word pieces `[B, L]`, padded with 0, to `[B, size]`."""
        rows = self.rows[...][pieces]
        known = (rows > 0)[..., None]
        total = (self.vectors[...][jnp.maximum(rows - 1, 0)] * known).sum(axis=1)
        return total / jnp.sqrt(jnp.maximum(known.sum(axis=1), 1))


class DualEncoder(nnx.Module):
    """Scores texts against images.

    Args:
        backbone: network for images.
        config: `config.model`; see `configs/dual_encoder.py`.
        pieces: ids of the word pieces for the text feature "words".

    Attributes:
        head: the ImageNet classifier of the backbone, which is not trained. None without the feature "classes".
    """

    def __init__(self, backbone: nnx.Module, config: ConfigDict, pieces: Sequence[int], *, rngs: nnx.Rngs):
        self.image_features, self.text_features = tuple(config.image_features), tuple(config.text_features)
        width = backbone.num_features
        self.backbone = backbone
        self.head = ClassifierHead(NUM_CLASSES, width, rngs=rngs) if "classes" in self.image_features else None
        sizes = {"mean": width, "max": width, "classes": NUM_CLASSES}
        sizes |= {"sentence": minilm.WIDTH, "token_max": minilm.WIDTH, "words": config.word_size}
        sizes["queries"] = config.num_queries * config.query_size
        has_queries, has_words = "queries" in self.image_features, "words" in self.text_features
        self.queries = QueryPooling(width, config.num_queries, config.query_size, rngs=rngs) if has_queries else None
        self.words = WordBag(pieces, config.word_size, rngs=rngs) if has_words else None
        if self.head is not None:
            freeze(self.head)
        if config.freeze_backbone:
            freeze(backbone)
        heads = {"dropout": config.dropout, "hidden_dropout": config.hidden_dropout, "rngs": rngs}
        self.image = Head(sum(sizes[name] for name in self.image_features), config.embed_size, **heads)
        self.text = Head(sum(sizes[name] for name in self.text_features), config.embed_size, **heads)
        self.log_scale = nnx.Param(jnp.float32(-math.log(_TEMPERATURE)))
        self.bias = nnx.Param(jnp.float32(_BIAS))  # only the sigmoid loss uses it

    def pool(self, maps: Array) -> Array:
        """Returns the features that need no trained weights of feature maps `[B, h, w, F]`, float32 `[B, P]`."""
        maps = maps.astype(jnp.float32)
        found = {
            "mean": lambda: maps.mean(axis=(1, 2)),
            "max": lambda: maps.max(axis=(1, 2)),
            "classes": lambda: self.log_classes(maps),
        }
        return jnp.concatenate([found[name]() for name in self.image_features if name in found], axis=1)

    def log_classes(self, maps: Array) -> Array:
        """Returns the logarithms of the probabilities of ImageNet's classes, `[B, 1000]`, from `[B, h, w, F]`.

        Raises InputError if the model has no classifier.
        """
        if self.head is None:
            raise InputError("this model has no ImageNet classes: config.model.image_features lacks 'classes'")
        return jax.nn.log_softmax(self.head(maps, train=False)[0])

    def encode_pooled(
        self, pooled: Array, maps: Array | None = None, *, train: bool, key: Array | None = None
    ) -> Array:
        """Encodes images from the result of `pool` and, with the feature "queries", their maps. Returns `[B, D]`."""
        if self.queries is not None:
            pooled = jnp.concatenate([pooled, self.queries(maps.astype(jnp.float32), train=train)], axis=1)
        return self.image(pooled, train=train, key=key)

    def encode_images(self, images: Array, *, train: bool, key: Array | None = None) -> Array:
        """Encodes normalised images `[B, S, S, 3]` as `[B, D]`."""
        maps, _ = self.backbone(images, train=train)
        with jax.named_scope("image"):
            return self.encode_pooled(self.pool(maps), maps, train=train, key=key)

    @jax.named_scope("text")
    def encode_texts(self, texts: dict[str, Array], *, train: bool, key: Array | None = None) -> Array:
        """Encodes B texts as `[B, D]`.

        `texts` has the arrays of `TextEncoder.encode`, `sentence` and `token_max`, and `pieces`: ids of word pieces,
        `[B, L]`, padded with 0.
        """
        found = dict(texts)
        if self.words is not None:
            found["words"] = self.words(texts["pieces"])
        features = [found[name].astype(jnp.float32) for name in self.text_features]
        return self.text(jnp.concatenate(features, axis=1), train=train, key=key)


def build_dual_encoder(config: ConfigDict, pieces: Sequence[int], *, rngs: nnx.Rngs) -> DualEncoder:
    """Builds a `DualEncoder`. Raises InputError if a field of `config.model`, `config`, has an unknown value."""
    return DualEncoder(build_backbone(config, rngs=rngs), config, pieces, rngs=rngs)
