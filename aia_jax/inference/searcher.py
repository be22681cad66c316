"""Searches photos with a trained AMC model. Fast approximate scores select photos, which the full model then scores."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from aia_jax.data.feature_cache import pad_batch, weights_digest
from aia_jax.data.search.queries import encode_queries, unknown_words
from aia_jax.data.vocabulary import Vocabulary, pad_ids
from aia_jax.models.amc import AMC, Encoded, RoughScores, build_amc, summarize
from aia_jax.tasks.trained_annotator import TrainedAnnotator
from aia_jax.training import sharding
from aia_jax.training.model_arrays import abstract_weights, merge_model, replace_arrays, select_weights
from aia_jax.training.runs import config_errors_as_input_errors, read_run_config, run_arrays
from aia_jax.training.step import make_predict_step
from aia_jax.utils.config_fields import check_fields
from aia_jax.utils.errors import InputError
from aia_jax.utils.half_floats import widen
from aia_jax.utils.messages import format_count

_FULL_BATCH = 128  # photos in a batch of `_full_scores`; larger batches do not fit in the caches of a CPU
Part = tuple[dict[str, np.ndarray], np.ndarray]  # arrays `[rows, ...]` of photos, and the indices of the usable rows


class SearchResult(NamedTuple):
    """The n best photos for a query, in descending order of score.

    Attributes:
        rows: int `[n]`, index of each photo in `PhotoIndex.names`.
        scores: `[n]`, score of each photo.
        weights: `[n, 2]`, weight of the feature map and weight of the keywords.
        attention: `[n, h, w]`, visual attention to each cell of the feature map.
        keywords: for each photo, pairs (keyword, attention to the keyword) in descending order of attention.

    A dual encoder gives no `weights`, no `attention` and no `keywords`: these are None.
    """

    rows: np.ndarray
    scores: np.ndarray
    weights: np.ndarray | None = None
    attention: np.ndarray | None = None
    keywords: tuple[tuple[tuple[str, float], ...], ...] | None = None


class PhotoSearch:
    """Searches photos with the best epoch of a search run, and with the annotator that made this run's training data.

    Args:
        annotator: folder of the annotator's run; "": `config.data.annotator` of the search run.

    Attributes:
        vocabulary: the words that a query may contain.
        digest: text that identifies the weights of both models.
        image_size, batch_size: side of the photos in pixels, and the largest number of photos in a batch.
        arrays: names of the arrays that `compute` returns.

    Raises:
        InputError: a run does not exist or is of another system, or the search run was trained with another annotator.
    """

    arrays = ("cells", "mean", "cross", "gram", "keywords", "counts")

    def __init__(self, workdir: Path, annotator: str = "", batch_size: int = 32):
        self.config = ConfigDict(read_run_config(workdir))
        with config_errors_as_input_errors(workdir):
            check_fields(self.config)
            self._load(workdir, annotator, batch_size)

    def _load(self, workdir: Path, annotator: str, batch_size: int) -> None:
        config = self.config
        if config.get("task") != "search":
            raise InputError(f"{workdir} holds a run of config.task={config.get('task')!r}; name one of image search")
        if not config.data.annotator and not annotator:
            raise InputError(f"{workdir} was trained on maps from files; name an annotator of photos with --annotator")
        arrays, info = run_arrays(workdir)
        self._keyword_names = tuple(info["labels"])
        self.vocabulary = Vocabulary({word: number for number, word in enumerate(info["words"])}, str(workdir))
        num_features = len(arrays["visual.kernel"])
        source = annotator or config.data.annotator
        advice = f"--annotator names the folder of the annotator that {workdir} was trained with"
        try:
            self.annotator = TrainedAnnotator.from_run(source, batch_size)
        except InputError as error:
            raise InputError(f"{error}; {advice}") from None
        if info["annotator"] and self.annotator.digest != info["annotator"]:
            raise InputError(f"{source} is another annotator than {workdir} was trained with; {advice}")
        if self.annotator.num_features != num_features:
            found = f"the maps of {source} have {self.annotator.num_features}"
            raise InputError(f"{workdir} needs maps of {num_features} channels, {found}; name the run's annotator")
        ids = {name: number for number, name in enumerate(self._keyword_names)}
        self._keyword_ids = np.array([ids.get(label, -1) for label in self.annotator.labels], np.int32)
        if (self._keyword_ids < 0).all():
            labels = format_count(len(self._keyword_ids), "label")
            raise InputError(f"none of the annotator's {labels} is a keyword of {workdir}")
        self._mesh = sharding.data_mesh()
        sizes = len(self.vocabulary), len(self._keyword_names), num_features
        graphdef, shapes = abstract_weights(lambda rngs: build_amc(config.model, *sizes, rngs=rngs), self._mesh)
        weights = replace_arrays(select_weights(shapes, "raw"), arrays)
        self._weights = sharding.put_replicated(weights, self._mesh)
        self._model: AMC = merge_model(graphdef, self._weights)
        self._prepare = make_predict_step(graphdef, _prepare, self._mesh)
        self._encode = jax.jit(lambda weights, *inputs: merge_model(graphdef, weights).encode_queries(*inputs))
        self._attend = jax.jit(lambda weights, *inputs: merge_model(graphdef, weights).attend(*inputs))
        self.digest = f"{weights_digest(arrays)} {self.annotator.digest}"
        self.image_size, self.batch_size = self.annotator.image_size, self.annotator.batch_size

    def check(self, query: str) -> str:
        """Returns a note about unknown words of a query, or "". Raises InputError if no word is known."""
        self.encode(query)
        unknown = unknown_words(query, self.vocabulary)
        return f"unknown words: {', '.join(unknown)}" if unknown else ""

    def compute(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Computes the arrays of b photos, uint8 `[b, S, S, 3]`, for a `PhotoIndex`. b <= batch size of the annotator.

        Returns:
            The results of `amc.summarize`, and the encoded feature maps `cells` `[b, h, w, d]`.
            `cells` and `mean` are float16.
        """
        data, count = self.config.data, len(images)
        maps = self.annotator.maps(images).astype(data.feature_dtype)
        ids = [self._keyword_ids[labels] for labels in self.annotator.keywords(maps, data.keyword_threshold)]
        keywords, counts = pad_ids([known[known >= 0] for known in ids], data.max_keywords)
        batch = _pad({"maps": maps, "keywords": keywords, "counts": counts}, self.annotator.batch_size)
        outputs = self._prepare(self._weights, sharding.put_batch(batch, self._mesh))
        rows = {name: np.asarray(values)[:count] for name, values in outputs.items()}
        return rows | {name: rows[name].astype(np.float16) for name in ("cells", "mean")}

    def encode(self, query: str) -> Encoded:
        """Encodes a query for the model.

        Raises InputError if the vocabulary has no word of the query.
        """
        tokens, lengths = encode_queries([query], self.vocabulary)
        return self._encode(self._weights, tokens, lengths)

    def search(self, query: str, parts: Sequence[Part], *, count: int, shortlist: int) -> SearchResult:
        """Finds the best photos for a query.

        Args:
            query: words, separated by spaces.
            parts: the photos; see `PhotoIndex.parts`.
            count: number of photos to return.
            shortlist: number of photos that the full model scores: those with the highest `rough_scores`. 0: all.
                A number below `count` becomes `count`.

        Raises:
            InputError: the vocabulary has no word of the query, or the index is empty.
        """
        encoded, shortlist = self.encode(query), shortlist and max(shortlist, count)
        total = sum(len(rows) for _, rows in parts)
        if not total:
            raise InputError("the index holds no usable photo")
        chosen = np.arange(total)
        if 0 < shortlist < total:
            scores = self.rough_scores(encoded, parts)
            chosen = np.sort(np.argpartition(-scores, shortlist - 1)[:shortlist])
        found = self._full_scores(encoded, parts, chosen)
        best = np.argsort(-found["score"], kind="stable")[:count]
        found = {name: values[best] for name, values in found.items()}
        return SearchResult(
            rows=chosen[best],
            scores=found["score"],
            weights=found["weights"],
            attention=found["visual_attention"],
            keywords=tuple(map(self._name, found["keywords"], found["counts"], found["keyword_attention"])),
        )

    def rough_scores(self, query: Encoded, parts: Sequence[Part]) -> np.ndarray:
        """Returns approximate scores `[N]` of all N photos, without visual attention; see `amc.RoughScores`."""
        rough, products = RoughScores(self._model, query), []
        for arrays, own in parts:
            part = rough.products({**arrays, "mean": widen(arrays["mean"])})
            products.append(part if len(own) == part.shape[1] else part[:, own])
        return rough.score(np.concatenate(products, axis=1))

    def _full_scores(self, query: Encoded, parts: Sequence[Part], chosen: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the outputs of `AMC.attend` and the keywords of the photos with the ascending indices `chosen`."""
        found = []
        for start in range(0, len(chosen), _FULL_BATCH):
            images = gather(parts, chosen[start : start + _FULL_BATCH], ("cells", "keywords", "counts"))
            count = len(images["counts"])
            batch = _pad(images, min(_FULL_BATCH, -(-len(chosen) // 8) * 8))
            outputs = jax.device_get(self._attend(self._weights, batch, query))
            rows = {name: values[:count, 0] for name, values in outputs.items()}
            found.append({**rows, "keywords": images["keywords"], "counts": images["counts"]})
        return {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}

    def _name(self, keywords: np.ndarray, count: int, attention: np.ndarray) -> tuple[tuple[str, float], ...]:
        order = np.argsort(-attention[:count], kind="stable")
        return tuple((self._keyword_names[keywords[place]], float(attention[place])) for place in order)


def _prepare(model: AMC, batch: dict[str, jax.Array]) -> Encoded:
    images = model.encode_images(batch["maps"], batch["keywords"], batch["counts"])
    return {**images, **summarize(model, images)}


def _pad(rows: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """Pads arrays `[b, ...]` with zeros to `[size, ...]`, so that JAX compiles for few shapes."""
    return {name: values if len(values) == size else pad_batch(values, size) for name, values in rows.items()}


def gather(parts: Sequence[Part], chosen: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads the arrays `names` of the photos with the indices `chosen`. `chosen` must be in ascending order."""
    ends = np.cumsum([len(rows) for _, rows in parts])
    edges = pairwise([0, *np.searchsorted(chosen, ends)])
    pieces = []
    for (arrays, rows), end, (low, high) in zip(parts, ends, edges, strict=True):
        if low < high:
            own = rows[chosen[low:high] - (end - len(rows))]
            pieces.append({name: arrays[name][own] for name in names})
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in names}
