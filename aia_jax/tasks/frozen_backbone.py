"""Trains only the head of an annotator, on feature maps of images and flipped images that are computed only once."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.data.feature_cache import FLIPS, prepare_features, weights_digest
from aia_jax.data.mapped_rows import MappedRows
from aia_jax.models.annotator import Annotator, label_scores
from aia_jax.models.backbones import DTYPES, build_backbone
from aia_jax.tasks.annotation import AnnotationTask
from aia_jax.utils.errors import InputError


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
        graphdef, _ = nnx.split(nnx.eval_shape(lambda: build_backbone(config.model, rngs=nnx.Rngs(0))))

        def compute(weights: dict[str, Any], images: jax.Array) -> jax.Array:
            return self.extract(nnx.merge(graphdef, weights), {"image": images})["features"]

        self._compute = jax.jit(compute)
        self._weights: dict[str, Any] = {}
        self._digest = ""

    def prepare(self, weights: dict[str, Any], splits: Sequence[str]) -> None:
        """Computes the features of `splits` with the backbone in `weights`, unless these features are cached."""
        backbone = jax.device_get(weights["constants"]["backbone"])
        leaves = jax.tree_util.tree_flatten_with_path(backbone)[0]
        self._weights = jax.device_put(backbone)
        self._digest = weights_digest({jax.tree_util.keystr(path): leaf for path, leaf in leaves})
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
        return prepare_features(
            self.split(split).images,
            lambda images: self._compute(self._weights, images),
            backbone=self.config.model.backbone,
            settings=f"{self._digest} {self.config.model.dtype} {self.config.model.native_padding}",
            flip=flip,
            dtype=self.config.data.feature_dtype,
            batch_size=self.config.eval.batch_size,
        )
