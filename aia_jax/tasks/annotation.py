"""Automatic image annotation (systems A and B): an annotator computes the score of each label for an image."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.data import transforms
from aia_jax.data.annotation import datasets
from aia_jax.data.annotation.annotations import CUSTOM
from aia_jax.data.annotation.channel_stats import CHANNEL_STATS, ChannelStats, read_channel_stats
from aia_jax.data.annotation.datasets import Split
from aia_jax.losses.annotation import annotation_loss
from aia_jax.metrics.annotation import annotation_metrics
from aia_jax.metrics.published_results import RESULTS
from aia_jax.models.annotator import Annotator, build_annotator, label_scores
from aia_jax.models.backbones import backbone_named
from aia_jax.tasks.base import BaseTask, RowSource
from aia_jax.tasks.text_encoder import TextEncoder
from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import format_count


class AnnotationTask(BaseTask):
    """Trains and evaluates an `Annotator`. Implements `training.task.Task`.

    Shapes: B images of S x S pixels, C labels, feature maps of h x w positions and F channels.

    Args:
        config: see `configs/base.py`.
        stats: mean and standard deviation of each channel of the training photos. None: those of `config.data.name`.

    Raises:
        InputError: unknown data set, loss or `config.published`, or an image size that does not fit the backbone.
    """

    def __init__(self, config: ConfigDict, stats: ChannelStats | None = None):
        super().__init__(config)
        data = config.data
        if data.name not in datasets.DATASETS:
            raise InputError(f"config.data.name={data.name!r} is unknown; known: {', '.join(datasets.DATASETS)}")
        backbone = backbone_named(config.model.backbone)
        if data.image_size < 4 or data.image_size % backbone.multiple:
            need = f"no multiple of {backbone.multiple}, which {config.model.backbone} needs"
            problem = need if backbone.multiple > 1 else "too small"
            raise InputError(f"config.data.image_size={data.image_size} is {problem}")
        stats = backbone.channel_stats or stats or CHANNEL_STATS.get(data.name)
        self.channel_stats = stats or read_channel_stats(data.root)
        if config.published and config.published not in RESULTS:
            raise InputError(f"config.published={config.published!r} is unknown; known: {', '.join(RESULTS)}")
        self._loss = configured_loss(config.loss)
        self._source = AnnotatedSplits(config, data.image_size, config.seed)

    @property
    def labels(self) -> tuple[str, ...]:
        """The C labels, in the order of logits and targets. Raises InputError if two loaded splits differ in labels."""
        loaded = [split.labels for split in self._splits.values()]
        if not loaded or "_vocabulary" in vars(self):  # the model may have been built for these labels
            loaded.append(self._vocabulary)
        labels = loaded[0]
        if any(others != labels for others in loaded):
            raise InputError(
                f"train and test split of {self.config.data.name} list different labels, or in a different order; "
                "give both files the same `labels`"
            )
        return labels

    @functools.cached_property
    def _vocabulary(self) -> tuple[str, ...]:
        return datasets.read_vocabulary(self.config.data)

    def describe(self) -> dict[str, Any]:
        """Returns the vocabulary and, for custom data, the channel statistics."""
        own = {"channel_stats": [list(values) for values in self.channel_stats]}
        return {"labels": list(self.labels), **(own if self.config.data.name == CUSTOM else {})}

    def summary(self) -> str:
        model, images = self.config.model, format_count(len(self.split("train")), "training image")
        labels = format_count(len(self.labels), "label")
        return f"{self.config.data.name}: {images}, {labels}; {model.backbone} + {model.head}"

    def build_model(self, rngs: nnx.Rngs) -> Annotator:
        return build_annotator(self.config.model, len(self.labels), rngs=rngs)

    def initial_arrays(self) -> dict[str, np.ndarray]:
        """Returns the embeddings of the labels for the head "text". Raises InputError if a label is no text."""
        if self.config.model.head != "text":
            return {}
        encoder = TextEncoder(self.config.data.cache_dir)
        encoder.tokenizer.check_words(self.labels, "label")
        return {"head.embeddings": encoder.encode(self.labels)["sentence"]}

    def resident_arrays(self) -> dict[str, np.ndarray]:
        return self.train_arrays() if self.config.data.placement == "device" else {}

    def train_arrays(self) -> dict[str, Any]:
        """Returns the training images and targets, with one row per image."""
        split = self.split("train")
        return {"image": split.images, "target": split.targets}

    def eval_arrays(self, split: str) -> dict[str, Any]:
        """Returns the images of `split` for `predict`, with one row per image."""
        return {"image": self.split(split).images}

    def row_names(self, index: np.ndarray) -> list[str]:
        return [self.split("train").image_names[row] for row in index]

    def eval_batches(self, split: str) -> Iterator[dict[str, np.ndarray]]:
        """Yields the batches of `split` in order. A batch contains only the rows for this process."""
        return self._batches_in_order(self.eval_arrays(split), len(self.split(split)))

    def loss(self, model: Annotator, batch: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, dict]:
        """Returns the mean loss of a batch after random flips and mixup.

        `batch` has `image` uint8 `[B, S, S, 3]` and `target` uint8 `[B, C]`.
        """
        flip_key, dropout_key = jax.random.split(key)
        images = self.normalize(transforms.random_flips(batch["image"], flip_key, self.config.data.flips))
        targets = batch["target"].astype(jnp.float32)
        if self.config.mixup:
            images, targets = transforms.mixup(images, targets)
        logits, _ = model(images, train=True, key=dropout_key)
        return self.mean_loss(logits, targets), {}

    def mean_loss(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """Returns the mean of the configured loss over the batch and the labels.

        Raises InputError if `config.model.score` is not "sigmoid", because all losses are losses of sigmoid scores.
        """
        if self.config.model.get("score", "sigmoid") != "sigmoid":
            raise InputError(f"config.model.score={self.config.model.score!r} cannot be trained; set it to 'sigmoid'")
        with jax.named_scope("loss"):
            return self._loss(logits, targets).mean()

    def predict_split(
        self, predictor: Callable[..., Any], weights: Sequence[dict[str, Any]], split: str
    ) -> list[dict[str, np.ndarray]]:
        """For each set of weights, returns the `scores` `[N, C]` of the N images of a split."""
        return predictor(self.predict, weights, self.eval_batches(split))

    def predict(self, model: Annotator, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the `scores` of a batch, float32 `[B, C]`."""
        logits, _ = model(self.normalize(batch["image"]), train=False)
        return {"scores": label_scores(logits, self.config.model)}

    def extract(self, backbone: nnx.Module, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the backbone's last feature maps of the images as `features`, float32 `[B, h, w, F]`."""
        features, _ = backbone(self.normalize(batch["image"]), train=False)
        return {"features": features.astype(jnp.float32)}

    def explain(self, model: Annotator, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns `scores` `[B, C]` and, if the model has an attention head, `attention` `[B, C, h, w]`."""
        logits, out = model(self.normalize(batch["image"]), train=False)
        maps = {"attention": out["attention"]} if "attention" in out else {}
        return {"scores": label_scores(logits, self.config.model), **maps}

    def illustrate(self, model: Annotator, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the result of `explain` with the attention scaled to 0..255, as `heat` uint8 `[B, C, h, w]`."""
        out = self.explain(model, batch)
        if "attention" not in out:
            return out
        attention = jnp.maximum(out["attention"].astype(jnp.float32), 0)
        peak = attention.max(axis=(-2, -1), keepdims=True)
        heat = jnp.round(255 * attention / jnp.maximum(peak, jnp.finfo(jnp.float32).tiny))
        return {"scores": out["scores"], "heat": heat.astype(jnp.uint8)}

    def evaluate(
        self, split: str, outputs: dict[str, np.ndarray], thresholds: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Returns `annotation_metrics` at `thresholds` `[C]`. If these are None, uses `config.eval.threshold`."""
        threshold = self.config.eval.threshold if thresholds is None else thresholds
        return annotation_metrics(outputs["scores"], self.split(split).targets, threshold)

    def _load_split(self, name: str) -> Split:
        return self._source.load(name)

    def _num_train_rows(self) -> int:
        """Returns the number of training images. If train.json has fewer than a batch, does not prepare them."""
        count = datasets.count_images(self.config.data, "train")
        return count if count < self.config.batch_size else super()._num_train_rows()

    def _train_source(self) -> RowSource:
        return {} if self.config.data.placement == "device" else self.train_arrays()


def configured_loss(config: ConfigDict) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns the loss function that `config.loss` names; see `annotation_loss`."""
    options = {name: value for name, value in config.items() if name != "name" and value is not None}
    return annotation_loss(config.name, **options)


class AnnotatedSplits:
    """Loads the splits of an annotated data set.

    If `config.eval.split` is "validation", the training split is divided at random into the parts "train" and
    "validation". `seed` determines the parts. If `config.eval.split` is "test", there is no validation part.
    """

    def __init__(self, config: ConfigDict, image_size: int, seed: int):
        self._config, self._image_size, self._seed = config, image_size, seed

    def load(self, name: str) -> Split:
        """Loads a split. Raises InputError if there is no validation part, or the data cannot be read."""
        if name == "test":
            return datasets.load_split(self._config.data, "test", self._image_size)
        if self._config.eval.split == "validation":
            return self._parts[("train", "validation").index(name)]
        if name == "validation":
            raise InputError("this config has no validation part: config.eval.split is 'test'")
        return self.whole_train

    @functools.cached_property
    def whole_train(self) -> Split:
        """The complete training split: the images of the parts "train" and "validation"."""
        return datasets.load_split(self._config.data, "train", self._image_size)

    @functools.cached_property
    def _parts(self) -> tuple[Split, Split]:
        data = self._config.data
        stratified, fraction = data.name == CUSTOM, data.validation_fraction
        return datasets.split_validation(self.whole_train, fraction, self._seed, stratified=stratified)
