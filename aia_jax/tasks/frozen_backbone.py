"""Trains only the head of an annotator, on feature maps of images and flipped images that are computed only once."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.data import transforms
from aia_jax.data.annotation.channel_stats import ChannelStats
from aia_jax.data.feature_cache import FLIPS, prepare_features, weights_digest
from aia_jax.data.mapped_rows import MappedRows
from aia_jax.models.annotator import Annotator, label_scores
from aia_jax.models.backbones import DTYPES, build_backbone
from aia_jax.tasks.annotation import AnnotationTask
from aia_jax.utils.errors import InputError


class FrozenMaps:
    """Computes the feature maps of images with a frozen backbone, and caches these maps beside the images.

    Args:
        config: config of a run with `model.backbone`, `data.feature_dtype` and `eval.batch_size`.
        channel_stats: mean and standard deviation of each channel, to normalise images.
    """

    def __init__(self, config: ConfigDict, channel_stats: ChannelStats):
        self._config = config
        graphdef, _ = nnx.split(nnx.eval_shape(lambda: build_backbone(config.model, rngs=nnx.Rngs(0))))

        def compute(weights: dict[str, Any], images: jax.Array) -> jax.Array:
            maps, _ = nnx.merge(graphdef, weights)(transforms.normalize(images, *channel_stats), train=False)
            return maps.astype(jnp.float32)

        self._compute = jax.jit(compute)
        self._weights: dict[str, Any] = {}
        self._digest = ""

    def set_weights(self, backbone: dict[str, Any]) -> None:
        """Sets the weights of the backbone, `weights["constants"]["backbone"]`."""
        backbone = jax.device_get(backbone)
        leaves = jax.tree_util.tree_flatten_with_path(backbone)[0]
        self._weights = jax.device_put(backbone)
        self._digest = weights_digest({jax.tree_util.keystr(path): leaf for path, leaf in leaves})

    def maps(self, images: MappedRows, flip: str = "") -> MappedRows:
        """Returns the maps `[N, h, w, F]` of N images; see `prepare_features`."""
        model = self._config.model
        return prepare_features(
            images,
            lambda rows: self._compute(self._weights, rows),
            backbone=model.backbone,
            settings=f"{self._digest} {model.dtype} {model.native_padding}",
            flip=flip,
            dtype=self._config.data.feature_dtype,
            batch_size=self._config.eval.batch_size,
        )


class FrozenBackboneTask(AnnotationTask):
    """Trains and evaluates the head of an annotator on cached feature maps. Only `explain` runs the backbone.

    In a batch, `features` has the maps of the images. Arrays such as `features_h` have the maps of flipped images.

    Raises:
        InputError: see `AnnotationTask`. Also if `config.mixup` is set, because mixup needs images.
    """

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        if config.mixup:
            raise InputError("config.mixup mixes images; with config.model.freeze_backbone there are only features")
        self._maps = FrozenMaps(config, self.channel_stats)

    def prepare(self, weights: dict[str, Any], splits: Sequence[str]) -> None:
        """Computes the features of `splits` with the backbone in `weights`, unless these features are cached."""
        self._maps.set_weights(weights["constants"]["backbone"])
        for split in splits:
            self.eval_arrays(split)

    def train_arrays(self) -> dict[str, Any]:
        """Returns the training targets and the features of the training images and of their flipped versions."""
        versions = {
            f"features{flip and '_'}{flip}": self._features("train", flip) for flip in FLIPS[self.config.data.flips]
        }
        return {**versions, "target": self.split("train").targets}

    def eval_arrays(self, split: str) -> dict[str, Any]:
        """Returns the features of the images of `split`."""
        return {"features": self._features(split, "")}

    def loss(self, model: Annotator, batch: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, dict]:
        """Returns the mean loss. Uses the map `[h, w, F]` of each image or of a flipped version, chosen at random."""
        flip_key, dropout_key = jax.random.split(key)
        versions = jnp.stack([rows for name, rows in sorted(batch.items()) if name.startswith("features")], axis=1)
        chosen = jax.random.randint(flip_key, (len(versions),), 0, versions.shape[1])
        features = jnp.take_along_axis(versions, chosen[:, None, None, None, None], axis=1)[:, 0]
        logits, _ = model.head(features.astype(DTYPES[self.config.model.dtype]), train=True, key=dropout_key)
        return self.mean_loss(logits, batch["target"].astype(jnp.float32)), {}

    def predict(self, model: Annotator, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the `scores` float32 `[B, C]` that the head computes from `features` `[B, h, w, F]`."""
        logits, _ = model.head(batch["features"].astype(DTYPES[self.config.model.dtype]), train=False)
        return {"scores": label_scores(logits, self.config.model)}

    def _features(self, split: str, flip: str) -> MappedRows:
        return self._maps.maps(self.split(split).images, flip)
