"""Annotators: models of a backbone and a head. The head scores every label of the vocabulary."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn import initializers
from ml_collections import ConfigDict

from aia_jax.models.attention_pooling import HEAD_FIELDS, AttentionPooling
from aia_jax.models.backbones import build_backbone, dtypes, look_up
from aia_jax.models.efficientnet_lite import EfficientNetLite
from aia_jax.models.layers.common import Frozen, dropout, dropout_key, uniform
from aia_jax.models.text_head import TextHead
from aia_jax.models.tresnet import TResNet


class ClassifierHead(nnx.Module):
    """Global average pooling, dropout and a linear layer (Salar & Ahmadi 2023)."""

    def __init__(self, num_labels: int, num_features: int, *, dropout: float = 0.3, **options):
        self.dropout = dropout
        self.linear = nnx.Linear(
            num_features,
            num_labels,
            kernel_init=initializers.normal(0.01),
            bias_init=uniform(num_features**-0.5),
            preferred_element_type=jnp.float32,
            **options,
        )

    def __call__(self, features: Array, *, train: bool, key: Array | None = None) -> tuple[Array, dict[str, Array]]:
        """Scores every label; see `AttentionPooling.__call__`. The returned dict is empty."""
        pooled = features.mean(axis=(1, 2), dtype=jnp.float32)
        pooled = dropout(pooled, self.dropout, dropout_key(key, self.dropout, train))
        return self.linear(pooled), {}


SCORES = {"sigmoid": jax.nn.sigmoid, "softmax": jax.nn.softmax}  # values of `config.model.score`
# For each head: its class, and the fields of `config.model` that are arguments of this class.
HEADS = {
    "attention": (AttentionPooling, HEAD_FIELDS),
    "gap": (ClassifierHead, ("dropout",)),
    "text": (TextHead, ("dropout",)),
}


class Annotator(nnx.Module):
    """Applies a head to the features of a backbone. `freeze_backbone` excludes the backbone from training."""

    def __init__(
        self,
        backbone: TResNet | EfficientNetLite,
        head: AttentionPooling | ClassifierHead | TextHead,
        *,
        freeze_backbone: bool = False,
    ):
        self.backbone = backbone
        self.head = head
        self.freeze_backbone = freeze_backbone
        if freeze_backbone:
            freeze(backbone)

    def __call__(self, images: Array, *, train: bool, key: Array | None = None) -> tuple[Array, dict[str, Array]]:
        """Scores every label of every image.

        Args:
            images: normalised images `[B, H, W, 3]`.
            train: whether to use batch statistics, update the running statistics and apply dropout.
            key: random key for dropout, required if `train` is True and the head's dropout rate is above 0.

        Returns:
            Logits of C labels, float32 `[B, C]`, and a dict of intermediate results: the output of each part of the
            backbone, and 'features' `[B, h, w, F]`, the last output. An attention head of hidden size D adds
            'projection' `[B, h, w, D]` and 'attention' float32 `[B, C, h, w]`.
        """
        features, stages = self.backbone(images, train=train and not self.freeze_backbone)
        with jax.named_scope("head"):
            logits, maps = self.head(features, train=train, key=key)
        return logits, {**stages, "features": features, **maps}


def freeze(module: nnx.Module) -> None:
    """Excludes all arrays of `module` from training."""
    for _, part in nnx.iter_modules(module):
        for name, value in vars(part).items():
            if isinstance(value, nnx.Variable):
                setattr(part, name, Frozen(value[...]))


def label_scores(logits: Array, config: ConfigDict) -> Array:
    """Converts the logits `[B, C]` of an annotator to scores from 0 to 1, as `score` in `config.model` says."""
    return SCORES[config.get("score", "sigmoid")](logits)  # runs of earlier versions do not have the field


def build_annotator(config: ConfigDict, num_labels: int, *, rngs: nnx.Rngs) -> Annotator:
    """Builds an `Annotator`. Raises InputError if a field of `config` has an unknown value.

    Args:
        config: `config.model` with the fields `freeze_backbone`, `head` (a key of `HEADS`) and `dropout`, and the
            fields that `build_backbone` needs. The attention head also needs the other fields in `HEAD_FIELDS`.
        rngs: random keys for the initial weights (stream `params`).
    """
    look_up("head", config.head, HEADS)  # before the backbone is built, which takes long
    backbone = build_backbone(config, rngs=rngs)
    head = build_head(config, num_labels, backbone.num_features, rngs=rngs)
    return Annotator(backbone, head, freeze_backbone=config.freeze_backbone)


def build_head(
    config: ConfigDict, num_labels: int, num_features: int, *, rngs: nnx.Rngs
) -> AttentionPooling | ClassifierHead | TextHead:
    """Builds the head for feature maps of `num_features` channels; see `build_annotator`."""
    head_class, fields = look_up("head", config.head, HEADS)
    options = {name: config[name] for name in fields} | dtypes(config)
    return head_class(num_labels, num_features, **options, rngs=rngs)
