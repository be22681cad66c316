"""Image-text retrieval: SGRAF on precomputed region features, or on the feature map of a backbone."""

import jax
from flax import nnx
from jax import Array
from ml_collections import ConfigDict

from aia_jax.models.backbones import build_backbone, dtypes
from aia_jax.models.sgraf import SGRAF, SGRAF_FIELDS


class Retriever(nnx.Module):
    """Scores captions against images.

    Args:
        sgraf: the similarity model.
        backbone: network for images. The positions of its last feature map are the regions. None: no backbone.
    """

    def __init__(self, sgraf: SGRAF, backbone: nnx.Module | None = None):
        self.sgraf = sgraf
        self.backbone = backbone

    def encode_images(self, images: Array, *, train: bool, key: Array | None = None) -> tuple[Array, Array]:
        """Encodes images `[B, S, S, 3]`, or features `[B, R, F]` without a backbone. See `SGRAF.encode_images`."""
        if self.backbone is not None:
            features, _ = self.backbone(images, train=train)
            images = features.reshape(len(features), -1, features.shape[-1])
        with jax.named_scope("image"):
            return self.sgraf.encode_images(images, train=train, key=key)

    @jax.named_scope("text")
    def encode_captions(self, tokens: Array, lengths: Array, **options) -> tuple[Array, Array]:
        """Encodes captions; see `SGRAF.encode_captions`."""
        return self.sgraf.encode_captions(tokens, lengths, **options)

    @jax.named_scope("similarity")
    def similarity(self, images: tuple, captions: tuple, lengths: Array, **options) -> Array:
        """Scores every caption against every image; see `SGRAF.similarity`."""
        return self.sgraf.similarity(images, captions, lengths, **options)


def build_retriever(config: ConfigDict, num_words: int, *, rngs: nnx.Rngs) -> Retriever:
    """Builds a `Retriever`. Raises InputError if a field of `config` has an unknown value.

    Args:
        config: `config.model` with the fields in `SGRAF_FIELDS`, `dtype`, `param_dtype` and `backbone`. If `backbone`
            is "", `num_features` is also needed. If not, the fields that `build_backbone` needs are also needed.
        num_words: size of the vocabulary.
        rngs: random keys for the initial weights (stream `params`).
    """
    backbone = build_backbone(config, rngs=rngs) if config.backbone else None
    sgraf = SGRAF(
        num_words,
        backbone.num_features if backbone else config.num_features,
        **{name: config[name] for name in SGRAF_FIELDS},
        text=config.get("text", "gru"),  # runs of earlier versions do not have the field
        **dtypes(config),
        rngs=rngs,
    )
    return Retriever(sgraf, backbone)
