"""Image-text retrieval whole: SGRAF on given region features, or on the grid features of a backbone trained with it."""

import jax
from flax import nnx
from jax import Array
from ml_collections import ConfigDict

from aia_jax.models.backbones import build_backbone, dtypes
from aia_jax.models.sgraf import SGRAF


class Retriever(nnx.Module):
    """Scores captions against images.

    Args:
        sgraf: see there.
        backbone: whose last feature map's cells are the regions; None: regions are given.
    """

    def __init__(self, sgraf: SGRAF, backbone: nnx.Module | None = None):
        self.sgraf = sgraf
        self.backbone = backbone

    def encode_images(self, images: Array, *, train: bool, key: Array | None = None) -> tuple[Array, Array]:
        """Region features `[B, R, F]`, or normalised images `[B, S, S, 3]` of the backbone; see `SGRAF`."""
        if self.backbone is not None:
            features, _ = self.backbone(images, train=train)
            images = features.reshape(len(features), -1, features.shape[-1])
        with jax.named_scope("image"):
            return self.sgraf.encode_images(images, train=train, key=key)

    def encode_captions(
        self, tokens: Array, lengths: Array, *, train: bool, key: Array | None = None
    ) -> tuple[Array, Array]:
        """See `SGRAF`."""
        with jax.named_scope("text"):
            return self.sgraf.encode_captions(tokens, lengths, train=train, key=key)

    def similarity(
        self, images: tuple[Array, Array], captions: tuple[Array, Array], lengths: Array, **options
    ) -> Array:
        """See `SGRAF`."""
        with jax.named_scope("similarity"):
            return self.sgraf.similarity(images, captions, lengths, **options)


def build_retriever(config: ConfigDict, num_words: int, *, rngs: nnx.Rngs) -> Retriever:
    """Builds the model that the `model` part of a config describes.

    Args:
        config: `reasoning, embed_size, word_size, similarity_size, num_regions, dtype, param_dtype`; `backbone` and
            what it needs (see `build_backbone`), or "" and `num_features`.
        num_words: of the vocabulary.
        rngs: where the initial weights come from (stream `params`).

    Raises:
        InputError: a name that is not known.
    """
    backbone = build_backbone(config, rngs=rngs) if config.backbone else None
    sgraf = SGRAF(
        num_words,
        backbone.num_features if backbone else config.num_features,
        num_regions=config.num_regions,
        embed_size=config.embed_size,
        word_size=config.word_size,
        similarity_size=config.similarity_size,
        reasoning=config.reasoning,
        **dtypes(config),
        rngs=rngs,
    )
    return Retriever(sgraf, backbone)
