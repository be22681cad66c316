"""Image-text retrieval (system C): a retriever computes the similarity of each pair of an image and a caption."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.data import transforms
from aia_jax.data.annotation.channel_stats import CHANNEL_STATS
from aia_jax.data.image_decoding import decode_image
from aia_jax.data.retrieval.captions import (
    CaptionSplit,
    PairBatches,
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
from aia_jax.tasks.base import BaseTask, RowSource
from aia_jax.tasks.text_encoder import TextEncoder
from aia_jax.utils.errors import InputError

_PHOTO_SIZE = 256


class RetrievalTask(BaseTask):
    """Trains and evaluates a `Retriever`. Implements `training.task.Task`. A training row is a caption and its image.

    Args:
        config: see `configs/sgraf.py`.

    Raises:
        InputError: values in `config` are unknown or do not fit each other.
    """

    def __init__(self, config: ConfigDict):
        super().__init__(config)
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
            raise InputError("config.accumulate_steps: the losses rank each pair among all pairs of the batch; use 1")
        if joint:
            self.channel_stats = backbone_named(config.model.backbone).channel_stats or CHANNEL_STATS["scenes"]

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The words of the captions."""
        return load_vocabulary(self.config.data)

    @functools.cached_property
    def text_encoder(self) -> TextEncoder | None:
        """The frozen text encoder, or None if a GRU encodes the captions."""
        return TextEncoder(self.config.data.get("cache_dir", "")) if self.config.model.get("text") == "minilm" else None

    def describe(self) -> dict[str, Any]:
        text = {"text_encoder": self.text_encoder.digest} if self.text_encoder else {}
        return {"vocabulary": self.vocabulary.facts, **text}

    def summary(self) -> str:
        train, model = self.split("train"), self.config.model
        backbone = f"{model.backbone} + " if model.backbone else ""
        return (
            f"{self.config.data.name}: {len(train.images)} training images, {len(train)} captions, "
            f"{len(self.vocabulary)} words; {backbone}{'MiniLM + ' * bool(self.text_encoder)}{model.reasoning.upper()}"
        )

    def build_model(self, rngs: nnx.Rngs) -> Retriever:
        return build_retriever(self.config.model, len(self.vocabulary), rngs=rngs)

    def row_names(self, index: np.ndarray) -> list[str]:
        """Returns a string for each training caption in `index`: the number and the text of the caption."""
        return [f"{row}: {self.split('train').captions[row]}" for row in index]

    def loss(self, model: Retriever, batch: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, dict]:
        """Returns the total loss, and a dict of its terms: the triplet loss and the configured Visual Semantic Losses.

        `batch` has B pairs of an image and a caption, with these arrays:
        - `image` `[B, ...]`: the images, or their features.
        - `tokens` `[B, L]`, `length` `[B]`: the word ids of the captions, and the number of words in each caption. With
          a text encoder, `tokens` has its outputs, `[B, L, 384]`.
        - `image_similarity` `[B, B]`: only if `config.loss.visual` is set.
        - `caption_similarity` `[B, B]`: only if `config.loss.textual` is set.
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
        """For each set of weights, returns the `similarity` of C captions and I images of a split, float32 `[C, I]`.

        Encodes the images once. Then scores batches of captions of similar length against all images.
        """
        part = self.split(split)
        images = self._batches_in_order({"image": part.images}, len(part.images))
        encoded = predictor(self.encode, weights, images)
        by_length = np.argsort(part.lengths, kind="stable")
        make = PairBatches(part, self.config.data.lengths, order=by_length, images=False)
        scored = predictor(self.score, weights, self._batches_in_order(make, len(part)), shared=encoded)
        # The rows are in the order of the batches; `argsort` restores the order of the split.
        return [{"similarity": outputs["similarity"][np.argsort(outputs["index"])]} for outputs in scored]

    def encode(self, model: Retriever, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Encodes B images. Returns region vectors as `regions` `[B, R, D]`, and image vectors as `whole` `[B, D]`."""
        images = self.normalize(batch["image"]) if self.config.model.backbone else batch["image"]
        regions, whole = model.encode_images(images, train=False)
        return {"regions": regions, "whole": whole}

    def score(
        self, model: Retriever, batch: dict[str, jax.Array], encoded: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Returns `similarity` `[B, I]` of B captions and all I images, and the captions' numbers `index` `[B]`."""
        captions = model.encode_captions(batch["tokens"], batch["length"], train=False)
        images, block = (encoded["regions"], encoded["whole"]), self.config.eval.block
        similarity = model.similarity(images, captions, batch["length"], train=False, block=block)
        return {"similarity": similarity, "index": batch["index"]}

    def evaluate(self, split: str, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        return retrieval_metrics(outputs["similarity"])

    def photos(self, split: str) -> Callable[[int], np.ndarray] | None:
        """Returns a function from an image's number to its photo, uint8 `[S, S, 3]`, or None if there are no photos."""
        part, folder = self.split(split), self.config.data.photos
        if self.config.model.backbone:
            return part.images.__getitem__
        if not folder:
            return None
        names = feature_photo_names(part)

        def read_photo(image: int) -> np.ndarray:
            path = Path(folder) / names[image]
            try:
                return decode_image(path.read_bytes(), _PHOTO_SIZE)
            except (OSError, InputError) as error:
                problem = f"{path}: {error}; set config.data.photos to the folder that aia features read"
                raise InputError(problem) from None

        return read_photo

    def _load_split(self, name: str) -> CaptionSplit:
        loaded = load_captions(self.config.data, name, self.vocabulary)
        expected = (self.config.model.num_regions, self.config.model.num_features)
        if not self.config.model.backbone and loaded.images.shape[1:] != expected:
            raise InputError(
                f"{loaded.images.path} holds {' x '.join(map(str, loaded.images.shape[1:]))} features an image, but "
                f"config.model.num_regions x num_features is {' x '.join(map(str, expected))}"
            )
        if not self.text_encoder:
            return loaded
        outputs = self.text_encoder.encode_tokens(loaded.captions)
        return dataclasses.replace(loaded, tokens=outputs, lengths=outputs.lengths)

    def _train_source(self) -> RowSource:
        split, loss = self.split("train"), self.config.loss
        wanted = tuple(name for name, on in (("image", loss.visual), ("caption", loss.textual)) if on)
        return PairBatches(split, self.config.data.lengths, similarity=semantic_similarity(split, wanted))
