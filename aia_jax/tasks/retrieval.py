"""Image-text retrieval, system C: images and captions in, a score for every pair out."""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.data import pipeline, transforms
from aia_jax.data.annotation.datasets import CHANNEL_STATS
from aia_jax.data.image_decoding import decode_image
from aia_jax.data.retrieval.captions import (
    CaptionSplit,
    PairBatches,
    by_length,
    feature_photo_names,
    load_captions,
    load_vocabulary,
    semantic_similarity,
)
from aia_jax.data.vocabulary import Vocabulary
from aia_jax.losses.retrieval import triplet, visual_semantic_loss
from aia_jax.metrics.retrieval import retrieval_metrics
from aia_jax.models.backbones import backbone_named
from aia_jax.models.retriever import Retriever, build_retriever
from aia_jax.training.sharding import process_kwargs
from aia_jax.utils.errors import InputError

_PHOTO_SIZE = 256
SPLITS = ("train", "validation", "test")


class RetrievalTask:
    """Trains and evaluates a `Retriever`; the face that `training.loop.Task` describes.

    Args:
        config: see `configs/sgraf.py`.

    Raises:
        InputError: fields that are unknown or do not fit each other.
    """

    def __init__(self, config: ConfigDict):
        self.config = config
        joint = bool(config.model.backbone)
        if config.published not in ("", "vsl/coco", "vsl/f30k"):
            raise InputError(f"config.published={config.published!r} is unknown; known: vsl/coco, vsl/f30k")
        if joint != (config.data.name == "scenes"):
            raise InputError(
                "config.model.backbone is trained on images: set config.data.name to scenes, or the backbone to ''"
                if joint
                else "config.data.name: scenes are images, name a config.model.backbone for them"
            )
        if config.accumulate_steps > 1:
            raise InputError("config.accumulate_steps: the losses rank each pair among those of its whole batch; use 1")
        if joint:
            self._mean, self._std = backbone_named(config.model.backbone).channel_stats or CHANNEL_STATS["scenes"]

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The words that captions are made of."""
        return load_vocabulary(self.config.data)

    def split(self, name: str) -> CaptionSplit:
        """The images and captions of "train", "validation" or "test".

        Raises:
            InputError: another name, or data that are absent or do not fit the config.
        """
        if name not in SPLITS:
            raise InputError(f"split {name!r} is unknown; known: {', '.join(SPLITS)}")
        if name not in self._splits:
            loaded = load_captions(self.config.data, name, self.vocabulary)
            expected = (self.config.model.num_regions, self.config.model.num_features)
            if not self.config.model.backbone and loaded.rows.shape[1:] != expected:
                raise InputError(
                    f"{loaded.rows.path} holds {' x '.join(map(str, loaded.rows.shape[1:]))} features an image, but "
                    f"config.model.num_regions x num_features is {' x '.join(map(str, expected))}"
                )
            self._splits[name] = loaded
        return self._splits[name]

    @functools.cached_property
    def _splits(self) -> dict[str, CaptionSplit]:
        return {}

    def describe(self) -> dict[str, Any]:
        """What tells the vocabulary from others."""
        return {"vocabulary": self.vocabulary.facts}

    def summary(self) -> str:
        """The data and the model in a line."""
        train, model = self.split("train"), self.config.model
        backbone = f"{model.backbone} + " if model.backbone else ""
        return (
            f"{self.config.data.name}: {train.num_images} training images, {len(train)} captions, "
            f"{len(self.vocabulary)} words; {backbone}{model.reasoning.upper()}"
        )

    def build_model(self, rngs: nnx.Rngs) -> Retriever:
        """A freshly initialised model for this vocabulary."""
        return build_retriever(self.config.model, len(self.vocabulary), rngs=rngs)

    def epoch_end(self, epoch: int) -> int:
        """The step after which every training caption was seen `epoch` times."""
        return pipeline.epoch_end(epoch, len(self.split("train")), self.config.batch_size)

    def resident_arrays(self) -> dict[str, np.ndarray]:
        """None: batches are more than rows of arrays."""
        return {}

    def prepare(self, weights: dict[str, Any], splits: Sequence[str]) -> None:
        """Reads the splits."""
        for name in splits:
            self.split(name)

    def row_names(self, index: np.ndarray) -> list[str]:
        """Training captions, each with its number, from 0."""
        return [f"{row}: {self.split('train').captions[row]}" for row in index]

    def train_batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """This process's captions of every batch, each with its image."""
        split, loss = self.split("train"), self.config.loss
        wanted = tuple(name for name, on in (("image", loss.visual), ("caption", loss.textual)) if on)
        make = PairBatches(split, self.config.data.lengths, similarity=semantic_similarity(split, wanted))
        return pipeline.train_batches(
            make,
            len(split),
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            start_step=start_step,
            **process_kwargs(),
        )

    def loss(self, model: Retriever, batch: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, dict]:
        """Triplet loss and, as configured, the disagreements of rankings by score and by meaning.

        Args:
            batch: `image` `[B, ...]`, `tokens` `[B, L]`, `length` `[B]`; `image_similarity`, `caption_similarity`
                `[B, B]`.
        """
        flip_key, image_key, caption_key = jax.random.split(key, 3)
        images = batch["image"]
        if self.config.model.backbone:
            images = self.normalize(transforms.random_flips(images, flip_key, self.config.data.flips))
        images = model.encode_images(images, train=True, key=image_key)
        captions = model.encode_captions(batch["tokens"], batch["length"], train=True, key=caption_key)
        options = {"block": self.config.model.block, "remat": self.config.model.recompute}
        scores = model.similarity(images, captions, batch["length"], train=True, **options).T
        with jax.named_scope("loss"):
            losses = {"triplet": triplet(scores, margin=self.config.loss.margin, hardest=self.config.loss.hardest)}
            for name, field in (("visual", "image_similarity"), ("textual", "caption_similarity")):
                if self.config.loss[name]:
                    losses[name] = visual_semantic_loss(scores, batch[field])
            return sum(losses.values()), losses

    def predict_split(
        self, predictor: Callable[..., Any], weights: Sequence[dict[str, Any]], split: str
    ) -> list[dict[str, np.ndarray]]:
        """`similarity` float32 `[C, I]` of all captions and images of a split under each of `weights`.

        Images are encoded once; captions in batches of alike length, each scored against all images.
        """
        part, size = self.split(split), self.config.eval.batch_size
        images = pipeline.eval_batches({"image": part.images}, part.num_images, batch_size=size, **process_kwargs())
        encoded = predictor(self.encode, weights, images)
        make = PairBatches(part, self.config.data.lengths, order=by_length(part), images=False)
        captions = pipeline.eval_batches(make, len(part), batch_size=size, **process_kwargs())
        scored = predictor(self.score, weights, captions, shared=encoded)
        return [{"similarity": _in_order(outputs)} for outputs in scored]

    def encode(self, model: Retriever, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Images to `regions` `[B, R, D]` and `whole` `[B, D]`."""
        images = self.normalize(batch["image"]) if self.config.model.backbone else batch["image"]
        regions, whole = model.encode_images(images, train=False)
        return {"regions": regions, "whole": whole}

    def score(
        self, model: Retriever, batch: dict[str, jax.Array], encoded: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Captions against all encoded images: `similarity` `[B, I]`, and their numbers `index` `[B]`."""
        captions = model.encode_captions(batch["tokens"], batch["length"], train=False)
        images, block = (encoded["regions"], encoded["whole"]), self.config.eval.block
        similarity = model.similarity(images, captions, batch["length"], train=False, block=block)
        return {"similarity": similarity, "index": batch["index"]}

    def evaluate(self, split: str, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        """The metrics of `retrieval_metrics.retrieval_metrics`."""
        return retrieval_metrics(outputs["similarity"])

    def photos(self, split: str) -> Callable[[int], np.ndarray] | None:
        """What gives image i of a split as uint8 `[S, S, 3]`; None where only features are at hand."""
        part, folder = self.split(split), self.config.data.photos
        if self.config.model.backbone:
            return lambda image: part.images[image]
        if not folder:
            return None
        names = feature_photo_names(part)
        return lambda image: _read_photo(Path(folder) / names[image])

    def normalize(self, images: jax.Array) -> jax.Array:
        """uint8 images to what the backbone takes."""
        return transforms.normalize(images, self._mean, self._std)


def _read_photo(path: Path) -> np.ndarray:
    try:
        return decode_image(path.read_bytes(), _PHOTO_SIZE)
    except (OSError, InputError) as error:
        raise InputError(f"{path}: {error}; config.data.photos names the folder that aia features was given") from None


def _in_order(outputs: dict[str, np.ndarray]) -> np.ndarray:
    similarity = np.empty_like(outputs["similarity"])
    similarity[outputs["index"]] = outputs["similarity"]
    return similarity
