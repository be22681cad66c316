"""Search of many photos by a trained AMC: what no query changes is computed once, a shortlist then scored whole."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from aia_jax.data.feature_cache import pad_batch, weights_digest
from aia_jax.data.search.queries import encode_queries
from aia_jax.data.vocabulary import Vocabulary, pad_ids
from aia_jax.models.amc import AMC, Encoded, build_amc
from aia_jax.models.amc_shortlist import rough_scores, summarize
from aia_jax.tasks.trained_annotator import TrainedAnnotator
from aia_jax.training import sharding
from aia_jax.training.model_arrays import abstract_weights, merge_model, replace_arrays, select_weights
from aia_jax.training.runs import config_errors_as_input_errors, read_run_config, run_arrays
from aia_jax.training.step import make_predict_step
from aia_jax.utils.config import check_fields
from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import format_count

_ROUGH, _WHOLE = 8192, 1024  # photos that are scored at once for the shortlist, and by the whole model
Part = tuple[dict[str, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """Photos for a query, the best first.

    Attributes:
        rows: int `[n]`, their numbers.
        scores: `[n]`.
        weights: `[n, 2]`, of the map and of the keywords.
        attention: `[n, h, w]`, where the visual attention looks.
        keywords: of each photo (word, attention), the heaviest first.
    """

    rows: np.ndarray
    scores: np.ndarray
    weights: np.ndarray
    attention: np.ndarray
    keywords: tuple[tuple[tuple[str, float], ...], ...]


class PhotoSearch:
    """The best epoch of a search run, with the annotator whose maps and keywords it was trained on.

    Args:
        workdir: of the run.
        annotator: folder of the annotator's run; "": as the run's config has it.
        batch_size: photos computed at once.

    Attributes:
        config: of the run.
        vocabulary: of queries.

    Raises:
        InputError: no such run, one of another system, or another annotator than it was trained with.
    """

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
            raise InputError(f"{workdir} was trained on maps from files; --annotator names what makes such of photos")
        arrays, info = run_arrays(workdir)
        if missing := [name for name in ("labels", "words", "annotator") if name not in info]:
            raise InputError(f"the checkpoint in {workdir} lacks {', '.join(missing)}; train the search anew")
        self._keyword_names = tuple(info["labels"])
        self.vocabulary = Vocabulary({word: number for number, word in enumerate(info["words"])}, str(workdir))
        self.annotator = self._annotator(annotator, workdir, batch_size)
        if info["annotator"] and self.annotator.digest != info["annotator"]:
            raise InputError(
                f"{annotator or config.data.annotator} is another annotator than {workdir} was trained with; "
                "name that one's folder with --annotator, or train the search anew"
            )
        num_features = len(arrays["visual.kernel"])
        if self.annotator.num_features != num_features:
            raise InputError(
                f"{workdir} takes maps of {num_features} channels, the annotator's have others; name its own"
            )
        self._keyword_ids = self._shared_keywords(workdir)
        sizes = len(self.vocabulary), len(self._keyword_names), num_features
        mesh = sharding.data_mesh()
        graphdef, shapes = abstract_weights(lambda rngs: build_amc(config.model, *sizes, rngs=rngs), mesh)
        self._weights = sharding.put_replicated(replace_arrays(select_weights(shapes, "raw"), arrays), mesh)
        self._model: AMC = merge_model(graphdef, self._weights)
        self._prepare = make_predict_step(graphdef, _prepare, mesh)
        self._rough = jax.jit(
            lambda weights, images, query: rough_scores(merge_model(graphdef, weights), images, query)
        )
        self._attend = jax.jit(lambda weights, images, query: merge_model(graphdef, weights).attend(images, query))
        self._mesh = mesh
        self.digest = f"{weights_digest(arrays)} {self.annotator.digest}"

    def _annotator(self, given: str, workdir: Path, batch_size: int) -> TrainedAnnotator:
        try:
            return TrainedAnnotator.from_run(given or self.config.data.annotator, batch_size)
        except InputError as error:
            advice = "" if given else f"; {workdir} was trained with it, --annotator names where it lies now"
            raise InputError(f"{error}{advice}") from None

    def _shared_keywords(self, workdir: Path) -> np.ndarray:
        """For each of the annotator's labels the keyword of that name, int32; -1: there is none."""
        ids = {name: number for number, name in enumerate(self._keyword_names)}
        shared = np.array([ids.get(label, -1) for label in self.annotator.labels], np.int32)
        if (shared < 0).all():
            raise InputError(f"of the annotator's {format_count(len(shared), 'label')} none is a keyword of {workdir}")
        return shared

    def compute(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """What is kept of photos uint8 `[b, S, S, 3]`, at most a batch of them.

        Returns:
            `cells` `[b, h, w, d]`, and the `shortlist.summarize`d rest; cells and means in float16.
        """
        data, number = self.config.data, len(images)
        maps = self.annotator.maps(images).astype(data.feature_dtype)
        chosen = self.annotator.keywords_of(maps, data.keyword_threshold)
        chosen = [(ids := self._keyword_ids[own])[ids >= 0] for own in chosen]
        keywords, counts = pad_ids(chosen, data.max_keywords)
        batch = filled({"maps": maps, "keywords": keywords, "counts": counts}, self.annotator.batch_size)
        found = self._prepare(self._weights, sharding.put_batch(batch, self._mesh))
        rows = {name: np.asarray(values)[:number] for name, values in found.items()}
        return rows | {name: rows[name].astype(np.float16) for name in ("cells", "mean")}

    def encode(self, query: str) -> Encoded:
        """A query as the model takes it.

        Raises:
            InputError: none of its words is known.
        """
        tokens, lengths = encode_queries([query], self.vocabulary)
        return self._model.encode_queries(jnp.asarray(tokens), jnp.asarray(lengths))

    def search(self, query: str, parts: Sequence[Part], *, count: int, shortlist: int) -> SearchResult:
        """The best photos for a query.

        Args:
            parts: of an index, see `PhotoIndex.parts`.
            count: of photos wanted.
            shortlist: how many of the photos, by the scores of a model without visual attention, are scored by the
                whole one, at least `count`; 0: all.

        Raises:
            InputError: no word of the query is known, or the index is empty.
        """
        encoded, shortlist = self.encode(query), shortlist and max(shortlist, count)
        total = sum(len(rows) for _, rows in parts)
        if not total:
            raise InputError("the index holds no usable photo")
        chosen = np.arange(total)
        if 0 < shortlist < total:
            scores = self.rough_scores(encoded, parts)
            chosen = np.sort(np.argpartition(-scores, shortlist - 1)[:shortlist])
        found = self._score(encoded, parts, chosen)
        best = np.argsort(-found["score"], kind="stable")[:count]
        best_found = {name: values[best] for name, values in found.items()}
        return SearchResult(
            rows=chosen[best],
            scores=best_found["score"],
            weights=best_found["weights"],
            attention=best_found["visual_attention"],
            keywords=tuple(map(self._named, *(best_found[k] for k in ("keywords", "counts", "keyword_attention")))),
        )

    def rough_scores(self, query: Encoded, parts: Sequence[Part]) -> np.ndarray:
        """Scores `[N]` of all photos by the model without visual attention; see `shortlist.rough_scores`."""
        names = ("mean", "cross", "gram", "keywords", "counts")
        scores = []
        for chosen in _runs(parts):
            images = {name: np.concatenate([arrays[name][rows] for arrays, rows in chosen]) for name in names}
            number = len(images["counts"])
            images = filled(images, _ROUGH)
            images["mean"] = images["mean"].astype(np.float32)
            scores.append(np.asarray(self._rough(self._weights, images, query))[:number, 0])
        return np.concatenate(scores)

    def _score(self, query: Encoded, parts: Sequence[Part], chosen: np.ndarray) -> dict[str, np.ndarray]:
        """What the whole model gives for the photos `chosen`, rising, with their keywords."""
        found = []
        for start in range(0, len(chosen), _WHOLE):
            images = _gather(parts, chosen[start : start + _WHOLE])
            number = len(images["counts"])
            batch = filled(images, min(_WHOLE, -(-len(chosen) // 8) * 8))
            batch["cells"] = batch["cells"].astype(self._model.dtype)
            outputs = jax.device_get(self._attend(self._weights, batch, query))
            own = {name: values[:number, 0] for name, values in outputs.items()}
            found.append({**own, "keywords": images["keywords"], "counts": images["counts"]})
        return {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}

    def _named(self, words: np.ndarray, count: int, attention: np.ndarray) -> tuple[tuple[str, float], ...]:
        order = np.argsort(-attention[:count], kind="stable")
        return tuple((self._keyword_names[words[place]], float(attention[place])) for place in order)


def filled(rows: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """Rows `[b, ...]` filled up to `size`, so that few programs are compiled."""
    return {name: pad_batch(values, size) for name, values in rows.items()}


def _prepare(model: AMC, batch: dict[str, jax.Array]) -> Encoded:
    images = model.encode_images(batch["maps"], batch["keywords"], batch["counts"])
    return {**images, **summarize(model, images)}


def _runs(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """The parts in order, some `_ROUGH` photos at a time."""
    run: list[Part] = []
    for part in parts:
        if run and sum(len(rows) for _, rows in (*run, part)) > _ROUGH:
            yield run
            run = []
        run.append(part)
    if run:
        yield run


def _gather(parts: Sequence[Part], chosen: np.ndarray) -> Encoded:
    """The encoded images of rising numbers."""
    ends = np.cumsum([len(rows) for _, rows in parts])
    pieces = []
    for (arrays, rows), end in zip(parts, ends, strict=True):
        own = chosen[(chosen >= end - len(rows)) & (chosen < end)] - (end - len(rows))
        if len(own):
            pieces.append({name: arrays[name][rows[own]] for name in ("cells", "keywords", "counts")})
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
