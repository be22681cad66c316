"""Computes grid features for image-text retrieval: the cells of a backbone's last feature map."""

import jax
import numpy as np
from ml_collections import ConfigDict

from aia_jax.data.feature_cache import pad_batch, weights_digest
from aia_jax.models.annotator import build_annotator
from aia_jax.models.backbones import build_backbone
from aia_jax.tasks.annotation import AnnotationTask
from aia_jax.training import sharding
from aia_jax.training.model_arrays import abstract_weights, replace_arrays, select_weights
from aia_jax.training.step import make_predict_step
from aia_jax.utils.errors import InputError
from aia_jax.utils.model_folders import find_model
from aia_jax.utils.storage import is_url
from aia_jax.weights.load import load_arrays, model_shapes


class GridFeatureExtractor:
    """Computes the backbone's features of images; a `PhotoModel`.

    Args:
        config: config of an annotation task.
        weights: a workdir, also as a URL, a weights file, or the name of a backbone such as "efficientnet_lite2".
        batch_size: number of images in a batch. It is rounded up to a multiple of the number of devices.

    Attributes:
        image_size: side S of the images in pixels.
        grid: height h, width w and number of channels F of the feature map.
        facts: the backbone, the weights and the settings that determine the features, as JSON values.
        digest: text that identifies `facts`.

    Raises:
        InputError: the config is for another task, or the weights do not fit the config.
    """

    def __init__(self, config: ConfigDict, weights: str, batch_size: int):
        if config.get("task") != "annotation":
            raise InputError(f"config.task={config.get('task')!r}: features need the config of an annotation task")
        task = AnnotationTask(config)
        shapes = model_shapes(lambda rngs: build_annotator(config.model, 1, rngs=rngs), backbone_only=True)
        source = str(find_model(weights)) if is_url(weights) else weights
        arrays = load_arrays(source, config, shapes, {})
        self._mesh = sharding.data_mesh()
        self.batch_size = -(-batch_size // self._mesh.size) * self._mesh.size
        graphdef, abstract = abstract_weights(lambda rngs: build_backbone(config.model, rngs=rngs), self._mesh)
        own = {path.removeprefix("backbone."): array for path, array in arrays.items()}
        self._weights = sharding.put_replicated(replace_arrays(select_weights(abstract, "raw"), own), self._mesh)
        self._step = make_predict_step(graphdef, task.extract, self._mesh)
        self.image_size = size = config.data.image_size
        images = jax.ShapeDtypeStruct((self.batch_size, size, size, 3), np.uint8)
        self.grid = jax.eval_shape(self._step, self._weights, {"image": images})["features"].shape[1:]
        (height, width, channels), model = self.grid, config.model
        self.facts = {
            "statement": (
                f"These are grid features of {model.backbone}: the {height} x {width} cells of its last map at {size} "
                "px. They are not the region features of the bottom-up-attention detector, which the published results "
                "of SGRAF and VSL use; results with them are not comparable with those results."
            ),
            "backbone": model.backbone,
            "image_size": size,
            "channel_stats": task.channel_stats,
            "native_padding": model.native_padding,
            "computed_in": model.dtype,
            "weights": {"source": weights, "digest": weights_digest(arrays)},
            "grid": [height, width],
            "num_features": channels,
        }

        self.digest = str({**self.facts, "weights": self.facts["weights"]["digest"]})

    def compute(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Returns `features` float32 `[b, h, w, F]` of b images, uint8 `[b, S, S, 3]`."""
        batch = sharding.put_batch({"image": pad_batch(images, self.batch_size)}, self._mesh)
        return {"features": np.asarray(self._step(self._weights, batch)["features"], np.float32)[: len(images)]}
