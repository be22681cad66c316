"""What evaluating image search leaves: gains, ranks and ROC curves, of all queries and of those not trained on."""

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aia_jax.evaluation.candidates import Candidate, Outputs
from aia_jax.metrics.published_results import SEARCH_AREAS
from aia_jax.metrics.search import area_under_roc, first_ranks, roc_curve
from aia_jax.report.search import SearchHit, draw_roc, draw_search
from aia_jax.report.table import SEARCH_COLUMNS, Row, metric_table
from aia_jax.tasks.search import NEW, SearchTask, describe_model
from aia_jax.training import sharding
from aia_jax.training.model_arrays import abstract_weights, merge_model
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_bytes, write_json

_KEPT = 25  # hits of each query in rankings.npz
_SHOWN = 5
_QUERIES = 6
_KEYWORDS_SHOWN = 4


@dataclasses.dataclass(frozen=True)
class Scored:
    """A candidate's scores `[Q, N]` and metrics."""

    candidate: Candidate
    scores: np.ndarray
    plain: dict[str, Any]


class SearchEvaluator:
    """Scores candidates and writes `metrics.json`, `rankings.npz` (queries, each one's first 25 images and the rank of
    its first right one), `roc.png` and, where there are photos, `search.png`.

    Args:
        task: whose config says what was trained.
        split: to score.
        thresholds: none.
        num_sources: of weights; one.
        html: none.

    Raises:
        InputError: thresholds or a page were asked for, or several sources.
    """

    def __init__(self, task: SearchTask, split: str, *, thresholds: str, num_sources: int, html: bool):
        if thresholds:
            raise InputError("--thresholds are of annotation; image search ranks and has none")
        if html:
            raise InputError("--html is of annotation; image search has no page of labels")
        if num_sources > 1:
            raise InputError("several --weights make an ensemble, which image search has none of; give one")
        self._task, self._config, self._split = task, task.config, split

    def score(self, candidate: Candidate, outputs: Outputs) -> Scored:
        """The candidate's metrics on the split."""
        found = outputs(self._split)
        return Scored(candidate, found["scores"], self._task.evaluate(self._split, found))

    def write(self, output: Path, workdir: Path | None, results: list[Scored]) -> None:
        """Writes the numbers of all results, the last being the best, and its rankings and pictures."""
        best, rows = results[-1], []
        facts = {"model": describe_model(self._config.model), "split": self._split}
        for result in results[::-1]:
            rows += [
                {"name": name, **facts, **result.candidate.facts, **metrics} for name, metrics in self._rows(result)
            ]
        write_json(output / "metrics.json", {**best.plain, **best.candidate.facts, "split": self._split, "rows": rows})
        queries = self._task.split(self._split).queries
        first = np.stack([np.argsort(-row, kind="stable")[:_KEPT] for row in best.scores]).astype(np.int32)
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            queries=np.array(queries.texts),
            images_of_queries=first,
            rank_of_right=first_ranks(best.scores, queries.relevant),
        )
        write_bytes(output / "rankings.npz", buffer.getvalue())
        self._draw_roc(output, best)
        self._draw_search(output, best)

    def table(self, results: list[Scored]) -> str:
        """Measured rows as text."""
        best = results[-1].plain
        lines = [Row(name, metrics) for result in results[::-1] for name, metrics in self._rows(result)]
        title = f"{best['num_queries']} queries, {best['num_images']} images; {describe_model(self._config.model)}"
        return f"{self._config.data.name}, {self._split} split: {title}\n" + metric_table(lines, columns=SEARCH_COLUMNS)

    def _rows(self, result: Scored) -> Iterator[tuple[str, dict[str, Any]]]:
        name, metrics = result.candidate.name, result.plain
        yield name, {key: value for key, value in metrics.items() if not key.startswith(NEW)}
        new = {key.removeprefix(NEW): value for key, value in metrics.items() if key.startswith(NEW)}
        if new:
            yield f"{name}, {new['num_queries']} queries not trained on", new

    def _draw_roc(self, output: Path, result: Scored) -> None:
        part = self._task.split(self._split)
        chosen = {"all queries": np.arange(len(part.queries)), "not trained on": np.flatnonzero(~part.trained)}
        curves = {}
        for name, rows in chosen.items():
            if len(rows):
                pairs = result.scores[rows], part.queries.relevant[rows]
                curves[name] = (*roc_curve(*pairs), area_under_roc(*pairs))
        title = f"{self._config.data.name}, {self._split} split: {result.candidate.name}"
        draw_roc(output / "roc.png", curves, published=SEARCH_AREAS, title=title)

    def _draw_search(self, output: Path, result: Scored) -> None:
        part = self._task.split(self._split)
        if part.images.photos is None:
            return
        queries = np.unique(np.linspace(0, len(part.queries) - 1, _QUERIES).round().astype(int))
        hits = [np.argsort(-result.scores[query], kind="stable")[:_SHOWN] for query in queries]
        title = f"{self._config.data.name}, {self._split} split: {result.candidate.name}"
        shown = [
            (part.queries.texts[query], self._hits(result, query, images))
            for query, images in zip(queries, hits, strict=True)
        ]
        draw_search(output / "search.png", shown, title=title)

    def _hits(self, result: Scored, query: int, images: np.ndarray) -> list[SearchHit]:
        """What the model attends to in each of a query's images."""
        part, task = self._task.split(self._split), self._task
        graphdef, _ = abstract_weights(task.build_model, sharding.data_mesh())
        model = merge_model(graphdef, jax.device_get(result.candidate.weights))
        columns = {name: rows[np.array([query])] for name, rows in part.columns.items()}
        of_images = {name: np.asarray(rows[images]) for name, rows in part.images.columns.items()}
        found = jax.device_get(task.attend(model, of_images, task.encode(model, columns)))
        names = task.source.keyword_names
        right = part.queries.relevant[query].toarray()[0] > 0
        hits = []
        for row, image in enumerate(images):
            own = part.images.keywords[image][: part.images.counts[image]]
            weighed = sorted(zip(found["keyword_attention"][row, 0], own, strict=False), reverse=True)
            hits.append(
                SearchHit(
                    image=part.images.photos[image],
                    name="",
                    score=float(found["score"][row, 0]),
                    right=bool(right[image]),
                    attention=found["visual_attention"][row, 0],
                    weights=tuple(map(float, found["weights"][row, 0])),
                    keywords=tuple((names[word], float(weight)) for weight, word in weighed[:_KEYWORDS_SHOWN]),
                )
            )
        return hits
