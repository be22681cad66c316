"""Automatic image annotation, systems A and B: images in, a score for every label out."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.data import pipeline, transforms
from aia_jax.data.annotation.annotations import CUSTOM
from aia_jax.data.annotation.datasets import (
    DATASETS,
    ChannelStats,
    Split,
    channel_stats,
    load_split,
    read_vocabulary,
    split_validation,
)
from aia_jax.losses.annotation import annotation_loss
from aia_jax.metrics.annotation import annotation_metrics
from aia_jax.metrics.published_results import RESULTS
from aia_jax.models.annotator import Annotator, build_annotator
from aia_jax.models.backbones import backbone_named
from aia_jax.training.sharding import process_kwargs
from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import format_count

SPLITS = ("train", "validation", "test")


class AnnotationTask:
    """Trains and evaluates an `Annotator`; the face that `training.loop.Task` describes.

    Splits are prepared when first asked for. `validation` is a part of the training split, which `train` then lacks,
    when `config.eval.split` is "validation"; otherwise there is none and `train` is whole.

    Args:
        config: see `configs/base.py`.
        stats: mean and standard deviation of the channels of the photos that weights were trained on; None: the data's.

    Attributes:
        channel_stats: mean and standard deviation that images are normalised by, on the scale 0..1.

    Raises:
        InputError: an unknown data set or loss, or an image size that is no multiple of 4.
    """

    def __init__(self, config: ConfigDict, stats: ChannelStats | None = None):
        self.config = config
        data = config.data
        if data.name not in DATASETS:
            raise InputError(f"config.data.name={data.name!r} is unknown; known: {', '.join(DATASETS)}")
        backbone = backbone_named(config.model.backbone)
        if data.image_size < 4 or data.image_size % backbone.multiple:
            raise InputError(
                f"config.data.image_size={data.image_size} is no multiple of {backbone.multiple}, which "
                f"{config.model.backbone} needs"
                if backbone.multiple > 1
                else f"config.data.image_size={data.image_size} is too small"
            )
        self.channel_stats = backbone.channel_stats or stats or channel_stats(data)
        if config.published and config.published not in RESULTS:
            raise InputError(f"config.published={config.published!r} is unknown; known: {', '.join(RESULTS)}")
        given = {name: value for name, value in config.loss.items() if name != "name" and value is not None}
        self._loss = annotation_loss(config.loss.name, **given)

    def split(self, name: str) -> Split:
        """The images and targets of `name`: "train", "validation" or "test"."""
        if name not in SPLITS:
            raise InputError(f"split {name!r} is unknown; known: {', '.join(SPLITS)}")
        if name == "test":
            return self._test
        if self.config.eval.split == "validation":
            train, validation = self._parts
            return train if name == "train" else validation
        if name == "validation":
            raise InputError("this config has no validation part: config.eval.split is 'test'")
        return self._whole_train

    @functools.cached_property
    def _whole_train(self) -> Split:
        return load_split(self.config.data, "train", self.config.data.image_size)

    @functools.cached_property
    def _parts(self) -> tuple[Split, Split]:
        data = self.config.data
        return split_validation(
            self._whole_train, data.validation_fraction, self.config.seed, stratified=data.name == CUSTOM
        )

    @functools.cached_property
    def _test(self) -> Split:
        return load_split(self.config.data, "test", self.config.data.image_size)

    @property
    def labels(self) -> tuple[str, ...]:
        """The vocabulary, in the order of logits, scores and targets.

        Raises:
            InputError: if the loaded splits differ in it.
        """
        loaded = [self.__dict__[name].labels for name in ("_whole_train", "_test") if name in self.__dict__]
        labels = loaded[0] if loaded else self._vocabulary
        if any(others != labels for others in loaded):
            raise InputError(
                f"train and test split of {self.config.data.name} list different labels, or in another order; "
                "give both files the same `labels`"
            )
        return labels

    @functools.cached_property
    def _vocabulary(self) -> tuple[str, ...]:
        return read_vocabulary(self.config.data)

    def describe(self) -> dict[str, Any]:
        """The vocabulary, in the order of the logits; of custom data also the channel statistics."""
        own = {"channel_stats": [list(values) for values in self.channel_stats]}
        return {"labels": list(self.labels), **(own if self.config.data.name == CUSTOM else {})}

    def summary(self) -> str:
        """The data and the model in a line."""
        model, images = self.config.model, format_count(len(self.split("train")), "training image")
        labels = format_count(len(self.labels), "label")
        return f"{self.config.data.name}: {images}, {labels}; {model.backbone} + {model.head}"

    def build_model(self, rngs: nnx.Rngs) -> Annotator:
        """A freshly initialised annotator for this vocabulary."""
        return build_annotator(self.config.model, len(self.labels), rngs=rngs)

    def epoch_end(self, epoch: int) -> int:
        """The step after which `epoch` (1-based) is complete."""
        return pipeline.epoch_end(epoch, len(self.split("train")), self.config.batch_size)

    def resident_arrays(self) -> dict[str, np.ndarray]:
        """The training arrays, if the config places them in device memory."""
        return self.train_arrays() if self.config.data.placement == "device" else {}

    def prepare(self, weights: dict[str, Any], splits: Sequence[str]) -> None:
        """Nothing: images are the same for all weights."""

    def train_arrays(self) -> dict[str, Any]:
        """The row-aligned arrays that a training batch is gathered from."""
        return self.split("train").arrays

    def eval_arrays(self, split: str) -> dict[str, Any]:
        """The row-aligned arrays that `predict` takes batches of."""
        return {"image": self.split(split).images}

    def row_names(self, index: np.ndarray) -> list[str]:
        """The names of training images."""
        return [self.split("train").image_names[row] for row in index]

    def train_batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of the training stream from `start_step` on."""
        return pipeline.train_batches(
            {} if self.config.data.placement == "device" else self.train_arrays(),
            len(self.split("train")),
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            start_step=start_step,
            **process_kwargs(),
        )

    def eval_batches(self, split: str) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of `split`, in order."""
        return pipeline.eval_batches(
            self.eval_arrays(split),
            len(self.split(split)),
            batch_size=self.config.eval.batch_size,
            **process_kwargs(),
        )

    def loss(self, model: Annotator, batch: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, dict]:
        """Mean loss over batch and labels of a flipped (and mixed) batch.

        Args:
            batch: `image` uint8 `[B, S, S, 3]`, `target` uint8 `[B, C]`.
        """
        flip_key, dropout_key = jax.random.split(key)
        images = self.normalize(transforms.random_flips(batch["image"], flip_key, self.config.data.flips))
        targets = batch["target"].astype(jnp.float32)
        if self.config.mixup:
            images, targets = transforms.mixup(images, targets)
        logits, _ = model(images, train=True, key=dropout_key)
        return self.mean_loss(logits, targets), {}

    def mean_loss(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """The configured loss, averaged over batch and labels."""
        with jax.named_scope("loss"):
            return self._loss(logits, targets).mean()

    def predict_split(
        self, predictor: Callable[..., Any], weights: Sequence[dict[str, Any]], split: str
    ) -> list[dict[str, np.ndarray]]:
        """The `scores` `[N, C]` of a split under each of `weights`."""
        return predictor(self.predict, weights, self.eval_batches(split))

    def predict(self, model: Annotator, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """`scores` float32 `[B, C]`."""
        logits, _ = model(self.normalize(batch["image"]), train=False)
        return {"scores": jax.nn.sigmoid(logits)}

    def extract(self, backbone: nnx.Module, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """`features` float32 `[B, h, w, F]`, the last map of a backbone alone."""
        features, _ = backbone(self.normalize(batch["image"]), train=False)
        return {"features": features.astype(jnp.float32)}

    def explain(self, model: Annotator, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """`scores` `[B, C]` and, if the head attends, `attention` `[B, C, h, w]`."""
        logits, out = model(self.normalize(batch["image"]), train=False)
        maps = {"attention": out["attention"]} if "attention" in out else {}
        return {"scores": jax.nn.sigmoid(logits), **maps}

    def illustrate(self, model: Annotator, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """As `explain`, but the maps as a page shows them: uint8 `heat` `[B, C, h, w]`, 255 at each map's peak."""
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
        """The metrics of `metrics.annotation_metrics` at `thresholds` `[C]`, or else at `config.eval.threshold`."""
        threshold = self.config.eval.threshold if thresholds is None else thresholds
        return annotation_metrics(outputs["scores"], self.split(split).targets, threshold)

    def normalize(self, images: jax.Array) -> jax.Array:
        """uint8 images to what the backbone takes, by the dataset's channel statistics."""
        return transforms.normalize(images, *self.channel_stats)
