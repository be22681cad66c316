"""An annotator that was trained before: scores of images, maps of its backbone, its labels as keywords."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.data.annotation.datasets import ChannelStats
from aia_jax.data.feature_cache import pad_batch, prepare_features, weights_digest
from aia_jax.data.mapped_rows import MappedRows
from aia_jax.models.annotator import Annotator, build_annotator
from aia_jax.models.backbones import DTYPES, build_backbone, fold_norms
from aia_jax.tasks.annotation import AnnotationTask
from aia_jax.training import sharding
from aia_jax.training.model_arrays import (
    abstract_weights,
    change_model,
    flat_arrays,
    merge_model,
    replace_arrays,
    select_weights,
)
from aia_jax.training.runs import check_complete_model, config_errors_as_input_errors, read_run_config, run_arrays
from aia_jax.training.step import make_predict_step
from aia_jax.utils.config import check_fields
from aia_jax.utils.errors import InputError


class TrainedAnnotator:
    """An annotator's weights on the devices.

    Args:
        config: of annotation.
        labels: its vocabulary, C names.
        arrays: path to array of the whole model.
        batch_size: images, or maps, computed at once; rounded up to a multiple of the devices.
        stats: see `AnnotationTask`.
        fold: whether batch norm is folded into the convolutions, once and for good, and not in each call.

    Attributes:
        labels: its vocabulary.
        image_size: S, in pixels.
        channel_stats: see `AnnotationTask`.
        num_features: F, channels of its maps.
        digest: tells its weights and settings from others.

    Raises:
        InputError: a config that cannot be used.
    """

    def __init__(
        self,
        config: ConfigDict,
        labels: Sequence[str],
        arrays: dict[str, Any],
        batch_size: int,
        stats: ChannelStats | None = None,
        *,
        fold: bool = True,
    ):
        self.config = config
        self.labels = tuple(labels)
        self.image_size = config.data.image_size
        self._task = AnnotationTask(config, stats)
        self.channel_stats = self._task.channel_stats
        self._mesh = sharding.data_mesh()
        self.batch_size = -(-batch_size // self._mesh.size) * self._mesh.size
        graphdef, shapes = abstract_weights(
            lambda rngs: build_annotator(config.model, len(self.labels), rngs=rngs), self._mesh
        )
        weights = sharding.put_replicated(replace_arrays(select_weights(shapes, "raw"), arrays), self._mesh)
        if fold:
            graphdef, weights = change_model(graphdef, weights, fold_norms, self._mesh)
        self._graphdef, self._weights = graphdef, weights
        self.num_features = nnx.eval_shape(lambda: build_backbone(config.model, rngs=nnx.Rngs(0))).num_features
        self._maps = make_predict_step(graphdef, self._extract, self._mesh)
        self._scores = make_predict_step(graphdef, self._score, self._mesh)
        self._predict = make_predict_step(graphdef, self._task.predict, self._mesh)
        self._explain = make_predict_step(graphdef, self._task.explain, self._mesh)
        self._illustrate = make_predict_step(graphdef, self._task.illustrate, self._mesh)
        model = config.model
        self._settings = f"{weights_digest(arrays)} {model.dtype} {model.native_padding}"
        self.digest = f"{model.backbone} {self.image_size} px {self._settings}"

    @classmethod
    def from_run(
        cls, workdir: str | Path, batch_size: int, dtype: str | None = None, *, fold: bool = True
    ) -> "TrainedAnnotator":
        """The best epoch of an annotation run.

        Args:
            dtype: of the computation, in place of the run's `config.model.dtype`.
            fold: see `TrainedAnnotator`.

        Raises:
            InputError: no such run, or one of another system.
        """
        workdir = Path(workdir)
        config = ConfigDict(read_run_config(workdir))
        if config.get("task") != "annotation":
            raise InputError(f"{workdir} holds a run of config.task={config.get('task')!r}; name one of annotation")
        if dtype:
            config.model.dtype = dtype
        arrays, info = run_arrays(workdir)
        check_complete_model(workdir, info)
        if "labels" not in info:
            raise InputError(f"the checkpoint in {workdir} does not say its labels; train or convert it anew")
        with config_errors_as_input_errors(workdir):
            check_fields(config)
            return cls(config, info["labels"], arrays, batch_size, info.get("channel_stats"), fold=fold)

    @property
    def settings(self) -> dict[str, Any]:
        """All that scores depend on beside the images."""
        return {"weights": self.digest, **self.config.model.to_dict(), "channel_stats": self.channel_stats}

    def arrays(self) -> dict[str, np.ndarray]:
        """Path to array of the whole model, copied to the host; folded, they are not those that were trained."""
        return {path: np.array(leaf) for path, leaf in flat_arrays(self._weights).items()}

    def function(self, *, explain: bool) -> Callable[[jax.Array], dict[str, jax.Array]]:
        """What `predict` computes of images `[b, S, S, 3]`, to be traced: the weights are constants in it."""
        weights = jax.device_get(self._weights)
        predict = self._task.explain if explain else self._task.predict
        return lambda images: predict(merge_model(self._graphdef, weights), {"image": images})

    def predict(self, images: np.ndarray, *, explain: bool = False) -> dict[str, jax.Array]:
        """Dispatches uint8 `[b, S, S, 3]`, b at most `batch_size`; the caller does not wait for the devices.

        Returns:
            `scores` float32 `[batch_size, C]` and, if asked to `explain` and the head attends, `attention`
            `[batch_size, C, h, w]`; rows from b on are padding.
        """
        return self._dispatch(self._explain if explain else self._predict, images)

    def illustrate(self, images: np.ndarray) -> dict[str, jax.Array]:
        """As `predict`, with `heat` uint8 `[batch_size, C, h, w]` if the head attends; see `AnnotationTask`."""
        return self._dispatch(self._illustrate, images)

    def maps(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[b, S, S, 3]`, at most `batch_size` of them, to the backbone's maps float32 `[b, h, w, F]`."""
        return self._run(self._maps, "image", images)

    def scores(self, maps: np.ndarray) -> np.ndarray:
        """Maps `[b, h, w, F]`, at most `batch_size` of them, to a score of every label float32 `[b, C]`."""
        return self._run(self._scores, "maps", maps)

    def maps_of(self, images: MappedRows, dtype: str) -> MappedRows:
        """The maps `[N, h, w, F]` of the images of a prepared copy, computed on first use and kept beside it."""

        def compute(rows: np.ndarray) -> jax.Array:
            return self._maps(self._weights, {"image": rows})["maps"]

        return prepare_features(
            images,
            compute,
            backbone=self.config.model.backbone,
            settings=self._settings,
            flip="",
            dtype=dtype,
            batch_size=self.batch_size,
        )

    def keywords_of(self, maps: MappedRows | np.ndarray, threshold: float) -> list[np.ndarray]:
        """For each of `maps` the labels that score at least `threshold`, the highest first."""
        found = []
        for start in range(0, len(maps), self.batch_size):
            for scores in self.scores(np.asarray(maps[start : start + self.batch_size], np.float32)):
                order = np.argsort(-scores, kind="stable")
                found.append(order[scores[order] >= threshold].astype(np.int32))
        return found

    def _dispatch(self, step: Any, images: np.ndarray) -> dict[str, jax.Array]:
        return step(self._weights, sharding.put_batch({"image": pad_batch(images, self.batch_size)}, self._mesh))

    def _extract(self, model: Annotator, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {"maps": self._task.extract(model.backbone, batch)["features"]}

    def _score(self, model: Annotator, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        logits, _ = model.head(batch["maps"].astype(DTYPES[self.config.model.dtype]), train=False)
        return {"scores": jax.nn.sigmoid(logits.astype(jnp.float32))}

    def _run(self, step: Any, name: str, rows: np.ndarray) -> np.ndarray:
        batch = sharding.put_batch({name: pad_batch(rows, self.batch_size)}, self._mesh)
        (found,) = step(self._weights, batch).values()
        return np.asarray(found)[: len(rows)]
