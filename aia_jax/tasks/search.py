"""Image search (system D): a model computes the score of each image for a query."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.data.annotation.datasets import DATASETS
from aia_jax.data.search.clicks import LAYOUTS, ClickedImages
from aia_jax.data.search.queries import (
    ClickBatches,
    SearchImages,
    SearchSplit,
    encode_queries,
    held_out,
    known_ids,
    label_queries,
)
from aia_jax.data.vocabulary import Vocabulary, pad_ids, read_vectors
from aia_jax.metrics.search import BETTER_HIGHER, search_metrics
from aia_jax.models.amc import AMC, build_amc
from aia_jax.tasks.annotation import AnnotatedSplits
from aia_jax.tasks.base import BaseTask, RowSource
from aia_jax.tasks.trained_annotator import TrainedAnnotator
from aia_jax.utils.errors import InputError

NEW = "new_"  # prefix of the metrics of queries not seen in training


class SearchTask(BaseTask):
    """Trains and evaluates an `AMC`. Implements `training.task.Task`.

    A training row is a pair of a query and a relevant image. The validation and test splits have all queries with at
    least one word of the vocabulary.

    Args:
        config: see `configs/amc.py`.

    Raises:
        InputError: values in `config` are unknown or do not fit each other.
    """

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        names = (*DATASETS, *LAYOUTS)
        if config.data.name not in names:
            raise InputError(f"config.data.name={config.data.name!r} is unknown; known: {', '.join(names)}")
        if config.batch_size < 2:
            raise InputError(f"config.batch_size={config.batch_size} must be at least 2")
        if config.eval.metric.removeprefix(NEW) not in BETTER_HIGHER:
            known = ", ".join(BETTER_HIGHER)
            raise InputError(
                f"config.eval.metric={config.eval.metric!r} cannot choose an epoch; known: {known}, also after {NEW}"
            )
        if config.accumulate_steps > 1:
            raise InputError("config.accumulate_steps: irrelevant images are sampled from the whole batch; use 1")
        self.source = (ClickedImages if config.data.name in LAYOUTS else AnnotatedImages)(config)
        self._load_images = functools.cache(self.source.load)

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The words of the training queries."""
        queries = self._load_images("train").queries
        trained = np.flatnonzero(~held_out(queries.texts, self.config.data.held_out))
        return Vocabulary.build(queries.take(trained).texts, min_count=1)

    def describe(self) -> dict[str, Any]:
        """Returns facts for checkpoints: keywords and query words by id, and digests of vocabulary and annotator."""
        return {
            "labels": list(self.source.keyword_names),
            "vocabulary": self.vocabulary.facts,
            "words": list(self.vocabulary.words),
            "annotator": self.source.digest,
        }

    def summary(self) -> str:
        train = self.split("train")
        caveat = f"; {self.source.caveat}" if self.source.caveat else ""
        return (
            f"{self.config.data.name}: {len(train.images)} training images, {int(train.trained.sum())} queries, "
            f"{len(self._pairs)} pairs, {train.images.counts.mean():.1f} keywords an image; "
            f"{describe_model(self.config.model)}{caveat}"
        )

    @property
    def build_model(self) -> Callable[[nnx.Rngs], AMC]:
        """Builds the model. Before, loads the data that its sizes depend on, because JAX's tracing cannot load them."""
        return functools.partial(self._build_model, self.split("train").images.maps.shape[-1])

    def _build_model(self, num_features: int, rngs: nnx.Rngs) -> AMC:
        sizes = len(self.vocabulary), len(self.source.keyword_names), num_features
        model = build_amc(self.config.model, *sizes, rngs=rngs)
        if self.config.model.word_vectors:
            ids, vectors = self._vectors
            model.words[...] = model.words[...].at[ids].set(vectors)
        return model

    @functools.cached_property
    def _vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """The ids of the query words that have pretrained vectors, and these vectors."""
        return read_vectors(self.config.model.word_vectors, self.vocabulary, self.config.model.word_size)

    @functools.cached_property
    def _pairs(self) -> ClickBatches:
        data = self.config.data
        return ClickBatches(
            self.split("train"), data.negatives, self.config.seed, (data.keywords_left_out, data.keywords_added)
        )

    def row_names(self, index: np.ndarray) -> list[str]:
        """Returns a string for each training pair in `index`: the query and the number of the image."""
        return self._pairs.names(index)

    def loss(self, model: AMC, batch: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, dict]:
        """Returns the hinge loss, summed over the negative images of each query and averaged over the queries.

        `batch` has B pairs of an image and a query, with these arrays:
        - `maps` `[B, h, w, F]`: the feature maps of the images.
        - `keywords` `[B, K]`, `counts` `[B]`: the keyword ids of the images, and the number of keywords of each image.
        - `tokens` `[B, L]`, `lengths` `[B]`: the word ids of the queries, and the number of words in each query.
        - `negative` bool `[B, B]`: whether an image (row) is a sampled negative image of a query (column).
        """
        images = model.encode_images(batch["maps"], batch["keywords"], batch["counts"])
        queries = model.encode_queries(batch["tokens"], batch["lengths"])
        options = {"block": self.config.model.block, "remat": self.config.model.recompute}
        scores = model.similarity(images, queries, **options)
        with jax.named_scope("loss"):
            violation = jnp.maximum(self.config.loss.margin - jnp.diagonal(scores) + scores, 0)
            return jnp.where(batch["negative"], violation, 0).sum() / len(scores), {}

    def predict_split(
        self, predictor: Callable[..., Any], weights: Sequence[dict[str, Any]], split: str
    ) -> list[dict[str, np.ndarray]]:
        """For each set of weights, returns the `scores` of all Q queries and N images of a split, float32 `[Q, N]`."""
        part = self.split(split)
        queries = self._batches_in_order(part.columns, len(part.queries))
        encoded = predictor(self.encode, weights, queries)
        images = self._batches_in_order(part.images.columns, len(part.images))
        scored = predictor(self.score, weights, images, shared=encoded)
        return [{"scores": np.ascontiguousarray(outputs["scores"].T)} for outputs in scored]

    def encode(self, model: AMC, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Encodes queries; see `AMC.encode_queries`."""
        return model.encode_queries(batch["tokens"], batch["lengths"])

    def score(self, model: AMC, batch: dict[str, jax.Array], queries: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the `scores` `[B, Q]` of B images for all Q encoded queries."""
        images = model.encode_images(batch["maps"], batch["keywords"], batch["counts"])
        return {"scores": model.similarity(images, queries, block=self.config.eval.block)}

    def attend(self, model: AMC, batch: dict[str, jax.Array], queries: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return model.attend(model.encode_images(batch["maps"], batch["keywords"], batch["counts"]), queries)

    def evaluate(self, split: str, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        """Returns `search_metrics` of all queries and, with the prefix `new_`, of the queries not seen in training."""
        part, scores = self.split(split), outputs["scores"]
        metrics = search_metrics(scores, part.queries.relevant)
        new = np.flatnonzero(~part.trained)
        if len(new):
            unseen = search_metrics(scores[new], part.queries.relevant[new])
            metrics |= {f"{NEW}{name}": value for name, value in unseen.items()}
        return metrics

    def _load_split(self, name: str) -> SearchSplit:
        images = self._load_images(name)
        known = [row for row, text in enumerate(images.queries.texts) if known_ids(text, self.vocabulary)]
        queries = images.queries.take(known)
        train_texts = set(self._load_images("train").queries.texts)
        trained = np.array([text in train_texts for text in queries.texts])
        trained &= ~held_out(queries.texts, self.config.data.held_out)
        return SearchSplit(images, queries, *encode_queries(queries.texts, self.vocabulary), trained)

    def _train_source(self) -> RowSource:
        return self._pairs

    def _num_train_rows(self) -> int:
        return len(self._pairs)


def describe_model(model: ConfigDict) -> str:
    """Returns the model's name and its missing attention networks, such as "AMC without VAN". See `AMC`."""
    name = "AMC" if model.modalities == "both" else f"AMC, {model.modalities} alone"
    parts = {
        "VAN": model.visual_attention or model.modalities == "keywords",
        "LAN": model.keyword_attention or model.modalities == "visual",
        "MTN": model.modality_attention or model.modalities != "both",
    }
    missing = ", ".join(part for part, present in parts.items() if not present)
    return f"{name} without {missing}" if missing else name


class AnnotatedImages:
    """Loads the splits of an annotated data set for image search. Raises InputError if the config has no annotator."""

    def __init__(self, config: ConfigDict):
        self._config, self._data = config, config.data
        if not self._data.annotator:
            raise InputError(
                "config.data.annotator: name the folder of an annotation run. Its backbone computes the feature "
                "maps. For the scenes, aia train --config demo creates such a run"
            )

    @functools.cached_property
    def annotator(self) -> TrainedAnnotator:
        """The annotator that computes feature maps and keywords."""
        found = TrainedAnnotator.from_run(self._data.annotator, self._config.eval.batch_size)
        self._check_parts(found.config)
        return found

    @property
    def caveat(self) -> str:
        """A warning about the annotator's training data; "" if there is none."""
        there = self.annotator.config
        shared = there.data.name == self._data.name and self._config.eval.split == "validation"
        return "the annotator was trained on the validation images too" if shared and there.eval.split == "test" else ""

    @property
    def digest(self) -> str:
        """The digest of the annotator's weights and settings."""
        return self.annotator.digest

    @functools.cached_property
    def keyword_names(self) -> tuple[str, ...]:
        """The keywords, in the order of the keyword ids."""
        return self.annotator.labels if self._data.keywords == "annotator" else self._splits.whole_train.labels

    def load(self, name: str) -> SearchImages:
        """Loads the images of a split (see `AnnotatedSplits.load`), and the queries that have a relevant image."""
        images, data = self._splits.load(name), self._data
        maps = self.annotator.cached_maps(images.images, data.feature_dtype)
        if data.keywords == "annotator":
            found = self.annotator.keywords(maps, data.keyword_threshold)
            chosen = [own[: data.max_keywords] for own in found]
        else:
            chosen = [np.flatnonzero(row).astype(np.int32) for row in images.targets]
        queries = label_queries(images.targets, images.labels, data.query_words)
        return SearchImages(maps, *pad_ids(chosen, data.max_keywords), queries, images.images)

    def _check_parts(self, there: ConfigDict) -> None:
        """Raises InputError if the annotator and this config have different validation parts of the same data set."""
        data = self._data
        if there.data.name != data.name or {there.eval.split, self._config.eval.split} != {"validation"}:
            return
        ours = {"split_seed": data.split_seed, "validation_fraction": data.validation_fraction}
        theirs = {"split_seed": there.seed, "validation_fraction": there.data.validation_fraction}
        if ours != theirs:
            wanted = ", ".join(f"config.data.{name}={value}" for name, value in theirs.items())
            raise InputError(f"{data.annotator} was trained on other parts of {data.name}: set {wanted}")

    @functools.cached_property
    def _splits(self) -> AnnotatedSplits:
        return AnnotatedSplits(self._config, self.annotator.image_size, self._data.split_seed)
