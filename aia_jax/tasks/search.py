"""Image search, system D: a query in, a score for every image out."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from scipy import sparse

from aia_jax.data import pipeline
from aia_jax.data.annotation.datasets import DATASETS
from aia_jax.data.search.batches import ClickBatches, SearchImages, SearchSplit
from aia_jax.data.search.clicks import LAYOUTS, ClickedImages
from aia_jax.data.search.queries import encode_queries, held_out, is_known
from aia_jax.data.search.word_vectors import read_vectors
from aia_jax.data.vocabulary import Vocabulary
from aia_jax.metrics.search import BETTER_HIGHER, search_metrics
from aia_jax.models.amc import AMC, build_amc
from aia_jax.tasks.search_images import AnnotatedImages
from aia_jax.training.sharding import process_kwargs
from aia_jax.utils.errors import InputError

SPLITS = ("train", "validation", "test")
NEW = "new_"  # metrics over the queries that training did not see


class SearchTask:
    """Trains and evaluates an `AMC`; the face that `training.loop.Task` describes.

    Args:
        config: see `configs/amc.py`.

    Raises:
        InputError: fields that are unknown or do not fit each other.
    """

    def __init__(self, config: ConfigDict):
        self.config = config
        if config.data.name not in (*DATASETS, *LAYOUTS):
            known = ", ".join((*DATASETS, *LAYOUTS))
            raise InputError(f"config.data.name={config.data.name!r} is unknown; known: {known}")
        if config.batch_size < 2:
            raise InputError(f"config.batch_size={config.batch_size} must be at least 2")
        if config.eval.metric.removeprefix(NEW) not in BETTER_HIGHER:
            known = ", ".join(BETTER_HIGHER)
            raise InputError(
                f"config.eval.metric={config.eval.metric!r} cannot choose an epoch; known: {known}, also after {NEW}"
            )
        if config.accumulate_steps > 1:
            raise InputError("config.accumulate_steps: wrong images are drawn from a query's whole batch; use 1")
        self.source = (ClickedImages if config.data.name in LAYOUTS else AnnotatedImages)(config)

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The words of the queries that training sees."""
        queries = self._images("train").queries
        trained = np.flatnonzero(~held_out(queries.texts, self.config.data.held_out))
        return Vocabulary.build(queries.take(trained).texts, min_count=1)

    def split(self, name: str) -> SearchSplit:
        """The images and queries of "train", "validation" or "test"; of the last two all queries with a known word.

        Raises:
            InputError: another name, or data that are absent or do not fit the config.
        """
        if name not in SPLITS:
            raise InputError(f"split {name!r} is unknown; known: {', '.join(SPLITS)}")
        if name not in self._splits:
            self._splits[name] = self._load(name)
        return self._splits[name]

    def _load(self, name: str) -> SearchSplit:
        images = self._images(name)
        known = [row for row, text in enumerate(images.queries.texts) if is_known(text, self.vocabulary)]
        queries = images.queries.take(known)
        there = set(self._images("train").queries.texts)
        trained = np.array([text in there for text in queries.texts]) & ~held_out(
            queries.texts, self.config.data.held_out
        )
        return SearchSplit(images, queries, *encode_queries(queries.texts, self.vocabulary), trained)

    def _images(self, name: str) -> SearchImages:
        if name not in self._loaded:
            self._loaded[name] = self.source.load(name)
        return self._loaded[name]

    @functools.cached_property
    def _splits(self) -> dict[str, SearchSplit]:
        return {}

    @functools.cached_property
    def _loaded(self) -> dict[str, SearchImages]:
        return {}

    def describe(self) -> dict[str, Any]:
        """The keywords, and the words of queries, by id."""
        return {
            "labels": list(self.source.keyword_names),
            "vocabulary": self.vocabulary.facts,
            "words": list(self.vocabulary.words),
            "annotator": self.source.digest,
        }

    def summary(self) -> str:
        """The data and the model in a line."""
        train, quality = self.split("train"), self.source.keyword_quality
        parts = ", ".join(f"{name} {precision:.2f} and {recall:.2f}" for name, (precision, recall) in quality.items())
        quality = f" (precision and recall: {parts})" if parts else ""
        caveat = f"; {self.source.caveat}" if self.source.caveat else ""
        return (
            f"{self.config.data.name}: {len(train.images)} training images, {int(train.trained.sum())} queries, "
            f"{len(self._pairs)} pairs, {train.images.counts.mean():.1f} keywords an image{quality}; "
            f"{describe_model(self.config.model)}{caveat}"
        )

    def build_model(self, rngs: nnx.Rngs) -> AMC:
        """A freshly initialised model for these words and keywords."""
        num_features = self.split("train").images.maps.shape[-1]
        sizes = len(self.vocabulary), len(self.source.keyword_names), num_features
        model = build_amc(self.config.model, *sizes, rngs=rngs)
        if self._vectors is not None:
            ids, vectors = self._vectors
            model.words[...] = model.words[...].at[ids].set(vectors)
        return model

    @functools.cached_property
    def _vectors(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Words, and the vectors that they start from."""
        path = self.config.model.word_vectors
        return read_vectors(path, self.vocabulary, self.config.model.word_size) if path else None

    @functools.cached_property
    def _pairs(self) -> ClickBatches:
        data = self.config.data
        return ClickBatches(
            self.split("train"), data.negatives, self.config.seed, (data.keywords_left_out, data.keywords_added)
        )

    def epoch_end(self, epoch: int) -> int:
        """The step after which every pair of a query and a right image was seen `epoch` times."""
        return pipeline.epoch_end(epoch, len(self._pairs), self.config.batch_size)

    def resident_arrays(self) -> dict[str, np.ndarray]:
        """None: batches are more than rows of arrays."""
        return {}

    def prepare(self, weights: dict[str, Any], splits: Sequence[str]) -> None:
        """Computes maps and keywords of the splits, unless they are kept."""
        for name in splits:
            self.split(name)

    def row_names(self, index: np.ndarray) -> list[str]:
        """Training pairs, each as the query's text and the image's number, from 0."""
        return self._pairs.names(index)

    def train_batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        """This process's pairs of every batch."""
        return pipeline.train_batches(
            self._pairs,
            len(self._pairs),
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            start_step=start_step,
            **process_kwargs(),
        )

    def loss(self, model: AMC, batch: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, dict]:
        """Mean over queries of the hinge losses, summed over the wrong images drawn for each.

        Args:
            batch: `maps` `[B, h, w, F]`, `keywords` `[B, K]`, `counts` `[B]`, `tokens` `[B, L]`, `lengths` `[B]`,
                `negative` bool `[B, B]`, image by query.
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
        """`scores` float32 `[Q, N]` of a split under each of `weights`: queries are encoded once, images stream by."""
        part = self.split(split)
        encoded = predictor(self.encode, weights, self._in_order(part.columns, len(part.queries)))
        scored = predictor(self.score, weights, self._in_order(part.images.columns, len(part.images)), shared=encoded)
        return [{"scores": np.ascontiguousarray(outputs["scores"].T)} for outputs in scored]

    def encode(self, model: AMC, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Queries to what `AMC.encode_queries` gives."""
        return model.encode_queries(batch["tokens"], batch["lengths"])

    def score(self, model: AMC, batch: dict[str, jax.Array], queries: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Images for all encoded queries: `scores` `[B, Q]`."""
        images = model.encode_images(batch["maps"], batch["keywords"], batch["counts"])
        return {"scores": model.similarity(images, queries, block=self.config.eval.block)}

    def attend(self, model: AMC, batch: dict[str, jax.Array], queries: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """As `score`, with all that `AMC.attend` gives."""
        return model.attend(model.encode_images(batch["maps"], batch["keywords"], batch["counts"]), queries)

    def evaluate(self, split: str, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        """The metrics of `search_metrics`, and with `new_` before their names those of queries unseen in training."""
        part, scores = self.split(split), outputs["scores"]
        metrics = search_metrics(scores, part.queries.relevant)
        new = np.flatnonzero(~part.trained)
        if len(new):
            unseen: sparse.csr_matrix = part.queries.relevant[new]
            metrics |= {f"{NEW}{name}": value for name, value in search_metrics(scores[new], unseen).items()}
        return metrics

    def _in_order(self, columns: dict[str, Any], num_rows: int) -> Iterator[dict[str, np.ndarray]]:
        return pipeline.eval_batches(columns, num_rows, batch_size=self.config.eval.batch_size, **process_kwargs())


def describe_model(model: ConfigDict) -> str:
    """The model and what it goes without, in words."""
    name = "AMC" if model.modalities == "both" else f"AMC, {model.modalities} alone"
    switches = [("VAN", model.visual_attention, "visual"), ("LAN", model.keyword_attention, "keywords")]
    switches = [(part, on) for part, on, of in switches if model.modalities in ("both", of)]
    switches += [("MTN", model.modality_attention)] if model.modalities == "both" else []
    missing = [part for part, on in switches if not on]
    return name + (f" without {', '.join(missing)}" if missing else "")
