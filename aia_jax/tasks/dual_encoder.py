"""Image-text retrieval with a dual encoder (system C): the score of a pair is the dot product of two vectors."""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.data import transforms
from aia_jax.data.feature_cache import FLIPS
from aia_jax.data.mapped_rows import MappedRows
from aia_jax.data.retrieval.photo_captions import CaptionedPhotos, load_photo_captions, read_photo_captions
from aia_jax.data.vocabulary import caption_similarity, pad_ids
from aia_jax.losses.retrieval import contrastive, pairwise_sigmoid, visual_semantic_loss
from aia_jax.metrics.retrieval import retrieval_metrics
from aia_jax.models.backbones import backbone_named
from aia_jax.models.dual_encoder import DualEncoder, build_dual_encoder
from aia_jax.tasks.base import BaseTask
from aia_jax.tasks.frozen_backbone import FrozenMaps
from aia_jax.tasks.text_encoder import TextEncoder
from aia_jax.training import sharding
from aia_jax.training.model_arrays import abstract_weights, merge_model
from aia_jax.utils.errors import InputError

_MOST_CAPTIONS = 5  # captions of an image in a batch; one of them is used
_MIN_COUNT = 3  # captions with a word piece of the feature "words"
_FIRST_WORD_PIECE = 999  # smaller ids are special tokens


class DualEncoderTask(BaseTask):
    """Trains and evaluates a `DualEncoder`. Implements `training.task.Task`. A training row is an image.

    Args:
        config: see `configs/dual_encoder.py`.

    Raises:
        InputError: values in `config` are unknown or do not fit each other.
    """

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        model = config.model
        backbone = backbone_named(model.backbone)
        if not backbone.channel_stats:
            raise InputError(f"config.model.backbone={model.backbone}: a dual encoder needs an EfficientNet-Lite")
        if config.loss.name not in ("contrastive", "sigmoid"):
            raise InputError(f"config.loss.name={config.loss.name!r} is unknown; known: contrastive, sigmoid")
        if config.accumulate_steps > 1:
            raise InputError("config.accumulate_steps: the losses compare each pair with all pairs of the batch; use 1")
        self.channel_stats = backbone.channel_stats
        self._pooled: dict[tuple[str, str], np.ndarray] = {}

    @functools.cached_property
    def texts(self) -> TextEncoder:
        """The text encoder. Raises InputError if a package for texts is missing."""
        return TextEncoder(self.config.data.cache_dir)

    @functools.cached_property
    def _maps(self) -> FrozenMaps | None:
        """Only built when maps are needed, because building a backbone takes a second."""
        return FrozenMaps(self.config, self.channel_stats) if self.config.model.freeze_backbone else None

    @functools.cached_property
    def _pieces(self) -> list[int]:
        """The ids of the word pieces for the text feature "words": those in at least three training captions."""
        if "words" not in self.config.model.text_features:
            return []
        photos = read_photo_captions(self.config.data, "train", self.config.seed)
        captions = [caption for captions in photos.values() for caption in captions]
        counts = Counter(piece for ids in self.texts.tokenizer.encode(captions).ids for piece in set(ids.tolist()))
        return sorted(piece for piece, count in counts.items() if count >= _MIN_COUNT and piece >= _FIRST_WORD_PIECE)

    def describe(self) -> dict[str, Any]:
        """Returns the weights of the text encoder, and the word pieces for the text feature "words"."""
        return {"text_encoder": self.texts.digest, "pieces": self._pieces}

    def summary(self) -> str:
        train, model = self.split("train"), self.config.model
        return (
            f"{self.config.data.name}: {len(train):,} training images, {len(train.captions):,} captions; "
            f"{model.backbone} ({', '.join(model.image_features)}) + MiniLM ({', '.join(model.text_features)})"
        )

    def build_model(self, rngs: nnx.Rngs) -> DualEncoder:
        return build_dual_encoder(self.config.model, self._pieces, rngs=rngs)

    def prepare(self, weights: dict[str, Any], splits: Sequence[str]) -> None:
        """Encodes the captions of `splits` with MiniLM and, with a frozen backbone, pools the maps of the images."""
        for name in splits:
            self._captions(name)
        if self._maps is None:
            return
        self._maps.set_weights(weights["constants"]["backbone"])
        graphdef, _ = abstract_weights(self.build_model, sharding.data_mesh())
        pool = jax.jit(lambda weights, maps: merge_model(graphdef, weights).pool(maps))
        for name in splits:
            for flip in FLIPS[self.config.data.flips] if name == "train" else ("",):
                maps = self._maps.maps(self.split(name).images, flip)
                size = self.config.eval.batch_size
                rows = (np.asarray(maps[start : start + size]) for start in range(0, len(maps), size))
                self._pooled[name, flip] = np.concatenate([np.asarray(pool(weights, batch)) for batch in rows])

    def frozen_maps(self, backbone: dict[str, Any], images: MappedRows) -> MappedRows:
        """Returns the cached feature maps of N images, `[N, h, w, F]`, from the weights of a frozen backbone."""
        self._maps.set_weights(backbone)
        return self._maps.maps(images)

    def row_names(self, index: np.ndarray) -> list[str]:
        return [self.split("train").names[row] for row in index]

    def loss(self, model: DualEncoder, batch: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, dict]:
        """Returns the total loss and a dict of its terms. Uses one random caption of each image.

        `batch` has B images, and K captions of each image, of which the first `count` `[B]` are different:
        - `image` `[B, S, S, 3]`, or with a frozen backbone `pooled` `[B, P]` and perhaps `maps` `[B, h, w, F]`, and the
          same of flipped images, such as `pooled_h`.
        - `sentence`, `token_max` `[B, K, 384]` and `pieces` `[B, K, L]`: see `DualEncoder.encode_texts`.
        - `image_similarity` `[B, B]`: only if `config.loss.visual` is set.
        """
        flip_key, text_key, image_key, caption_key = jax.random.split(key, 4)
        chosen = (jax.random.uniform(text_key, batch["count"].shape) * batch["count"]).astype(jnp.int32)
        texts = {name: batch[name][jnp.arange(len(chosen)), chosen] for name in self._text_names}
        if self._maps is None:
            images = self.normalize(transforms.random_flips(batch["image"], flip_key, self.config.data.flips))
            images = model.encode_images(images, train=True, key=image_key)
        else:
            images = [self._choose(batch, name, flip_key) for name in ("pooled", "maps") if name in batch]
            images = model.encode_pooled(*images, train=True, key=image_key)
        captions = model.encode_texts(texts, train=True, key=caption_key)
        scores = images @ captions.T
        with jax.named_scope("loss"):
            logits = scores * jnp.exp(model.log_scale[...])
            if self.config.loss.name == "sigmoid":
                losses = {"sigmoid": pairwise_sigmoid(logits + model.bias[...])}
            else:
                losses = {"contrastive": contrastive(logits)}
            if self.config.loss.visual:
                weight = self.config.loss.visual_weight
                losses["visual"] = weight * visual_semantic_loss(scores, batch["image_similarity"])
            return sum(losses.values()), losses

    def predict_split(
        self, predictor: Callable[..., Any], weights: Sequence[dict[str, Any]], split: str
    ) -> list[dict[str, np.ndarray]]:
        """For each set of weights, returns the `similarity` of C captions and I images of a split, float32 `[C, I]`."""
        part, texts = self.split(split), self._captions(split)
        images = predictor(self.encode_images, weights, self._batches_in_order(self._images(split), len(part)))
        texts = predictor(self.encode_texts, weights, self._batches_in_order(texts, len(part.captions)))
        pairs = zip(texts, images, strict=True)
        return [{"similarity": text["vectors"] @ image["vectors"].T} for text, image in pairs]

    def encode_images(self, model: DualEncoder, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the `vectors` `[B, D]` of the images or features in a batch."""
        if "pooled" in batch:
            return {"vectors": model.encode_pooled(batch["pooled"], batch.get("maps"), train=False)}
        return {"vectors": model.encode_images(self.normalize(batch["image"]), train=False)}

    def encode_texts(self, model: DualEncoder, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the `vectors` `[B, D]` of the texts in a batch; see `DualEncoder.encode_texts`."""
        return {"vectors": model.encode_texts(batch, train=False)}

    def text_arrays(self, texts: Sequence[str], embedded: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Returns the arrays of N texts for `DualEncoder.encode_texts`. For `embedded`, see `TrainedDualEncoder`."""
        arrays = dict(embedded or self.texts.encode(texts))
        if "words" in self.config.model.text_features:
            arrays["pieces"], _ = pad_ids(self.texts.tokenizer.encode(texts).ids)
        return {name: arrays[name] for name in self._text_names}

    def evaluate(self, split: str, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        return retrieval_metrics(outputs["similarity"], self.split(split).owners)

    def photos(self, split: str) -> Callable[[int], np.ndarray]:
        """Returns a function from an image's number to its photo, uint8 `[S, S, 3]`."""
        return self.split(split).images.__getitem__

    @property
    def _text_names(self) -> list[str]:
        return ["pieces" if name == "words" else name for name in self.config.model.text_features]

    def _load_split(self, name: str) -> CaptionedPhotos:
        _ = self.texts  # raises an error before the photos are read, if a package is missing
        return load_photo_captions(self.config.data, name, self.config.data.image_size, self.config.seed)

    @functools.cache  # noqa: B019, the task lives as long as the process
    def _captions(self, split: str) -> dict[str, np.ndarray]:
        return self.text_arrays(self.split(split).captions)

    def _images(self, split: str, flip: str = "") -> dict[str, Any]:
        suffix, images = flip and f"_{flip}", self.split(split).images
        if self._maps is None:
            return {"image": images}
        found: dict[str, Any] = {f"pooled{suffix}": self._pooled[split, flip]}
        if "queries" in self.config.model.image_features:
            found[f"maps{suffix}"] = self._maps.maps(images, flip)
        return found

    @staticmethod
    def _choose(batch: dict[str, jax.Array], name: str, key: jax.Array) -> jax.Array:
        """Chooses one of the arrays of each image and its flipped versions at random."""
        versions = [rows for column, rows in sorted(batch.items()) if column == name or column.startswith(f"{name}_")]
        number = jax.random.randint(key, (len(versions[0]),), 0, len(versions))
        return jnp.stack(versions, axis=1)[jnp.arange(len(number)), number]

    def _train_source(self) -> Callable[[dict[str, np.ndarray], slice], dict[str, np.ndarray]]:
        train, texts = self.split("train"), self._captions("train")
        flips = FLIPS[self.config.data.flips] if self._maps else ("",)
        images = {name: rows for flip in flips for name, rows in self._images("train", flip).items()}
        starts = np.searchsorted(train.owners, np.arange(len(train)))
        counts = np.minimum(np.bincount(train.owners), _MOST_CAPTIONS)
        similarity = caption_similarity(train.captions, train.owners) if self.config.loss.visual else None

        def make(columns: dict[str, np.ndarray], part: slice) -> dict[str, np.ndarray]:
            everywhere = columns["index"]
            own = everywhere[part]
            captions = starts[own][:, None] + np.arange(counts.max()) % counts[own][:, None]
            batch = {"index": own.astype(np.int32), "count": counts[own].astype(np.int32)}
            batch |= {name: rows[own] for name, rows in images.items()}
            batch |= {name: rows[captions] for name, rows in texts.items()}
            if similarity is not None:
                batch["image_similarity"] = (similarity[own] @ similarity[everywhere].T).toarray().astype(np.float32)
            return batch

        return make
