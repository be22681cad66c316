"""Evaluates image search: NDCG, ranks and ROC curves, for all queries and for queries not seen in training."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from aia_jax.evaluation.evaluator import Candidate, Evaluator, Scored, evenly_spaced, top_columns, write_npz
from aia_jax.metrics.published_results import SEARCH_AREAS
from aia_jax.metrics.search import area_under_roc, first_ranks, roc_curve
from aia_jax.report.search import draw_roc
from aia_jax.report.search_page import SearchHit, write_search_page
from aia_jax.report.table import SEARCH_COLUMNS, Row, metric_table
from aia_jax.tasks.search import NEW, describe_model
from aia_jax.training import sharding
from aia_jax.training.model_arrays import abstract_weights, merge_model

_HITS_SAVED = 25
_HITS_DRAWN = 5
_QUERIES_DRAWN = 6


class SearchEvaluator(Evaluator):
    """Evaluates image search with the scores `[Q, N]` of Q queries and N images.

    Writes `rankings.npz`: the queries, the first 25 images of each query and the rank of the first relevant image.
    Writes `roc.png` and, if photos are available, `search.html`.
    """

    def score(self, candidate: Candidate) -> Scored:
        """Computes the metrics. `Scored.rows` has a second row for queries not seen in training, if there are any."""
        outputs = candidate.outputs(self._split)
        metrics = self._task.evaluate(self._split, outputs)
        facts = {"model": describe_model(self._config.model), "split": self._split, **candidate.facts}
        main = {name: value for name, value in metrics.items() if not name.startswith(NEW)}
        new = {name.removeprefix(NEW): value for name, value in metrics.items() if name.startswith(NEW)}
        rows = [{"name": candidate.name, **facts, **main}]
        if new:
            name = f"{candidate.name}, {new['num_queries']} queries not trained on"
            rows.append({"name": name, **facts, **new})
        return Scored(candidate, outputs["scores"], metrics, rows)

    def write(self, output: Path, best: Scored) -> None:
        split, title = self._task.split(self._split), f"{self._title}: {best.candidate.name}"
        queries = split.queries
        write_npz(
            output / "rankings.npz",
            queries=np.array(queries.texts),
            images_of_queries=top_columns(best.scores, _HITS_SAVED),
            rank_of_right=first_ranks(best.scores, queries.relevant),
        )
        curves, every = {}, np.ones(len(queries), bool)
        for name, rows in (("all queries", every), ("not trained on", ~split.trained)):
            if rows.any():
                scored = best.scores[rows], queries.relevant[rows]
                curves[name] = (*roc_curve(*scored), area_under_roc(*scored))
        draw_roc(output / "roc.png", curves, published=SEARCH_AREAS, title=title)
        if split.images.photos is not None:
            drawn = evenly_spaced(len(queries), _QUERIES_DRAWN)
            found = zip(drawn, top_columns(best.scores[drawn], _HITS_DRAWN), strict=True)
            shown = [(queries.texts[query], self._hits(best, query, images)) for query, images in found]
            write_search_page(output / "search.html", shown, title=title)

    def table(self, results: Sequence[Scored]) -> str:
        best, model = results[-1].metrics, describe_model(self._config.model)
        rows = [Row(row["name"], row) for result in results[::-1] for row in result.rows]
        title = f"{self._title}: {best['num_queries']} queries, {best['num_images']} images; {model}"
        return f"{title}\n{metric_table(rows, columns=SEARCH_COLUMNS)}"

    def _hits(self, best: Scored, query: int, images: np.ndarray) -> list[SearchHit]:
        """Returns the image, attention map and keywords of each image number in `images`."""
        split, task = self._task.split(self._split), self._task
        graphdef, _ = abstract_weights(task.build_model, sharding.data_mesh())
        model = merge_model(graphdef, jax.device_get(best.candidate.weights))
        query_batch = {name: rows[np.array([query])] for name, rows in split.columns.items()}
        image_batch = {name: np.asarray(rows[images]) for name, rows in split.images.columns.items()}
        found = jax.device_get(task.attend(model, image_batch, task.encode(model, query_batch)))
        names = task.source.keyword_names
        relevant = split.queries.relevant[query].toarray()[0] > 0
        hits = []
        for row, image in enumerate(images):
            keywords = split.images.keywords[image][: split.images.counts[image]]
            weighted = sorted(zip(found["keyword_attention"][row, 0], keywords, strict=False), reverse=True)
            hits.append(
                SearchHit(
                    image=split.images.photos[image],
                    name="",
                    score=float(found["score"][row, 0]),
                    correct=bool(relevant[image]),
                    attention=found["visual_attention"][row, 0],
                    weights=tuple(map(float, found["weights"][row, 0])),
                    keywords=[(names[keyword], float(weight)) for weight, keyword in weighted],
                )
            )
        return hits
