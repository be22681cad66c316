"""Runs a trained annotator: computes scores, the backbone's feature maps, and keywords (labels with high scores)."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.data.annotation.channel_stats import ChannelStats
from aia_jax.data.feature_cache import pad_batch, prepare_features, weights_digest
from aia_jax.data.mapped_rows import MappedRows
from aia_jax.data.words.label_texts import LabelTexts
from aia_jax.models.annotator import Annotator, build_annotator, label_scores
from aia_jax.models.backbones import DTYPES, build_backbone, fold_norms
from aia_jax.tasks.added_labels import AddedLabels
from aia_jax.tasks.annotation import AnnotationTask
from aia_jax.training import model_arrays, sharding
from aia_jax.training.model_arrays import Arrays, abstract_weights, merge_model, split_model
from aia_jax.training.runs import check_complete_model, config_errors_as_input_errors, read_run_config, run_arrays
from aia_jax.training.step import make_predict_step
from aia_jax.utils.config_fields import check_fields
from aia_jax.utils.errors import InputError
from aia_jax.utils.model_folders import model_folder
from aia_jax.weights.load import check_shapes, model_shapes
from aia_jax.weights.model_folder import read_model_folder


class TrainedAnnotator:
    """Runs an annotator with given weights on all devices.

    Args:
        config: config of an annotation run.
        labels: the C labels of the vocabulary.
        arrays: all arrays of the model, `{path: array}`.
        batch_size: number of images or maps in a batch. Rounded up to a multiple of the number of devices.
        stats: see `AnnotationTask`.
        fold: whether to fold batch norm into the convolutions now. False: each call folds it again.
        words: the labels to score instead, which may be other labels than `labels`; see `AddedLabels`.

    Attributes:
        labels: the labels that are scored, in the order of the scores.
        trained_labels: the labels of the vocabulary.
        image_size: side S of the images in pixels.
        num_features: number F of channels of the feature maps.
        threshold: `config.eval.threshold`.
        digest: text that identifies the weights and settings.

    Raises:
        InputError: a field of `config` has an unknown value; see `AnnotationTask`. Or see `AddedLabels`.
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
        words: LabelTexts | None = None,
    ):
        self.config, self._process = config, os.getpid()
        self.trained_labels = tuple(labels)
        self.labels, self._texts = words or (self.trained_labels, ())
        added = AddedLabels(config, labels, arrays, words) if words else None
        self.threshold = config.eval.threshold
        self.image_size = config.data.image_size
        self._task = AnnotationTask(config, stats)
        self.channel_stats = self._task.channel_stats
        self._mesh = sharding.data_mesh()
        self.batch_size = -(-batch_size // self._mesh.size) * self._mesh.size
        graphdef, shapes = abstract_weights(
            lambda rngs: build_annotator(config.model, len(labels), rngs=rngs), self._mesh
        )
        given = model_arrays.replace_arrays(model_arrays.select_weights(shapes, "raw"), arrays)
        weights = sharding.put_replicated(given, self._mesh)

        def folded(weights: Arrays) -> tuple[nnx.GraphDef, Arrays]:
            model = merge_model(graphdef, weights)
            fold_norms(model)
            return split_model(model)

        if added:
            model = merge_model(graphdef, weights)
            model.head = added.open_head(model.head)
            graphdef, weights = split_model(model)
            weights = sharding.put_replicated(weights, self._mesh)
        if fold:
            graphdef, weights = jax.jit(folded, out_shardings=sharding.replicated(self._mesh))(weights)
        self._graphdef, self._weights = graphdef, weights
        self.num_features = nnx.eval_shape(lambda: build_backbone(config.model, rngs=nnx.Rngs(0))).num_features
        self._maps = make_predict_step(
            graphdef, lambda model, batch: self._task.extract(model.backbone, batch), self._mesh
        )
        self._map_scores = make_predict_step(graphdef, self._score, self._mesh)
        self._predict = make_predict_step(graphdef, self._task.predict, self._mesh)
        self._explain = make_predict_step(graphdef, self._task.explain, self._mesh)
        self._illustrate = make_predict_step(graphdef, self._task.illustrate, self._mesh)
        model = config.model
        self._settings = f"{weights_digest(arrays)} {model.dtype} {model.native_padding}"
        self.digest = f"{model.backbone} {self.image_size} px {self._settings}"

    @classmethod
    def from_run(
        cls,
        workdir: str | Path,
        batch_size: int,
        dtype: str | None = None,
        *,
        fold: bool = True,
        words: LabelTexts | None = None,
    ) -> "TrainedAnnotator":
        """Loads the best epoch of an annotation run, or the annotator in a model folder.

        Args:
            workdir: the folder of the run, or a model folder, or the name of a shipped model.
            batch_size, fold, words: see `TrainedAnnotator`.
            dtype: dtype of the computation; None: `config.model.dtype` of the run.

        Raises InputError if there is no model in `workdir`, or it is a model of another system.
        """
        if folder := model_folder(workdir):
            return cls._from_folder(folder, batch_size, dtype, fold=fold, words=words)
        workdir = Path(workdir)
        config = ConfigDict(read_run_config(workdir))
        if config.get("task") != "annotation":
            raise InputError(f"{workdir} holds a run of config.task={config.get('task')!r}; name one of annotation")
        if dtype:
            config.model.dtype = dtype
        arrays, info = run_arrays(workdir)
        check_complete_model(workdir, info)
        if "labels" not in info:
            raise InputError(f"the checkpoint in {workdir} does not list its labels; train or convert it again")
        with config_errors_as_input_errors(workdir):
            check_fields(config)
            stats = info.get("channel_stats")
            return cls(config, info["labels"], arrays, batch_size, stats, fold=fold, words=words)

    @classmethod
    def _from_folder(cls, folder: Path, batch_size: int, dtype: str | None, **options: Any) -> "TrainedAnnotator":
        found = read_model_folder(folder)
        config, labels = found.config, found.labels
        if found.task != "annotation":
            raise InputError(f"{folder} holds a model of config.task={found.task!r}; name one of annotation")
        if dtype:
            config.model.dtype = dtype
        with config_errors_as_input_errors(folder):
            check_fields(config)
            shapes = model_shapes(lambda rngs: build_annotator(config.model, len(labels), rngs=rngs))
            check_shapes(folder, found.arrays, shapes)
            return cls(config, labels, found.arrays, batch_size, found.facts.get("channel_stats"), **options)

    @property
    def settings(self) -> dict[str, Any]:
        """All values, other than the images, that determine the scores."""
        texts = {"texts": self._texts} if self._texts else {}
        return {"weights": self.digest, **self.config.model.to_dict(), "channel_stats": self.channel_stats, **texts}

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns NumPy copies of the model's arrays, `{path: array}`. If `fold` is True, batch norm is folded."""
        return {path: np.array(leaf) for path, leaf in model_arrays.flat_arrays(self._weights).items()}

    def function(self, *, explain: bool) -> Callable[[jax.Array], dict[str, jax.Array]]:
        """Returns the computation of `predict` as a function that JAX can trace. The weights are constants."""
        weights = jax.device_get(self._weights)
        predict = self._task.explain if explain else self._task.predict
        return lambda images: predict(merge_model(self._graphdef, weights), {"image": images})

    def predict(self, images: np.ndarray, *, explain: bool = False) -> dict[str, jax.Array]:
        """Starts the computation of a batch on the devices, and does not wait for the results.

        Args:
            images: b images, uint8 `[b, S, S, 3]`. b is at most `batch_size`.
            explain: whether to return the attention of an attention head too.

        Returns:
            `scores` float32 `[batch_size, C]` and, if `explain` is set, `attention` `[batch_size, C, h, w]`. The rows
            after the first b are padding.
        """
        return self._dispatch(self._explain if explain else self._predict, "image", images)

    def illustrate(self, images: np.ndarray) -> dict[str, jax.Array]:
        """Like `predict`, but computes the `scores` and the `heat` of `AnnotationTask.illustrate`."""
        return self._dispatch(self._illustrate, "image", images)

    def maps(self, images: np.ndarray) -> np.ndarray:
        """Returns feature maps float32 `[b, h, w, F]` of images uint8 `[b, S, S, 3]`. b is at most `batch_size`."""
        return np.asarray(self._dispatch(self._maps, "image", images)["features"])[: len(images)]

    def cached_maps(self, images: MappedRows, dtype: str) -> MappedRows:
        """Returns the feature maps `[N, h, w, F]` of N images in a file, and caches these maps beside the file."""
        return prepare_features(
            images,
            lambda rows: self._maps(self._weights, {"image": rows})["features"],
            backbone=self.config.model.backbone,
            settings=self._settings,
            flip="",
            dtype=dtype,
            batch_size=self.batch_size,
        )

    def keywords(self, maps: MappedRows | np.ndarray, threshold: float) -> list[np.ndarray]:
        """Selects, for each feature map, the labels whose score is at least `threshold`.

        Returns:
            An int32 array of label ids for each map, in descending order of score.
        """
        found = []
        for scores in self.score_maps(maps):
            order = np.argsort(-scores, kind="stable")
            found.append(order[scores[order] >= threshold].astype(np.int32))
        return found

    def score_maps(self, maps: MappedRows | np.ndarray) -> np.ndarray:
        """Returns the scores float32 `[N, C]` of N feature maps `[N, h, w, F]`."""
        found = [np.zeros((0, len(self.labels)), np.float32)]
        for start in range(0, len(maps), self.batch_size):
            rows = np.asarray(maps[start : start + self.batch_size], np.float32)
            found.append(np.asarray(self._dispatch(self._map_scores, "maps", rows)["scores"])[: len(rows)])
        return np.concatenate(found)

    def _dispatch(self, step: Any, name: str, rows: np.ndarray) -> dict[str, jax.Array]:
        if os.getpid() != self._process:  # JAX would wait for ever
            raise InputError("the annotator was loaded before this process was forked; load it in each process")
        return step(self._weights, sharding.put_batch({name: pad_batch(rows, self.batch_size)}, self._mesh))

    def _score(self, model: Annotator, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        logits, _ = model.head(batch["maps"].astype(DTYPES[self.config.model.dtype]), train=False)
        return {"scores": label_scores(logits.astype(jnp.float32), self.config.model)}
