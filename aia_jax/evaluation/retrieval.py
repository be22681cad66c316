"""Evaluates image-text retrieval: computes recalls in both directions, and writes rankings and a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aia_jax.evaluation.evaluator import (
    Candidate,
    Evaluator,
    Scored,
    compared_rows,
    evenly_spaced,
    top_columns,
    write_npz,
)
from aia_jax.metrics.published_results import RETRIEVAL_RESULTS
from aia_jax.metrics.retrieval import caption_ranks, image_ranks
from aia_jax.report.retrieval import draw_retrieval
from aia_jax.report.table import RETRIEVAL_COLUMNS, metric_table

_HITS_SAVED = 10
_HITS_DRAWN = 5
_QUERIES_DRAWN = 6


class RetrievalEvaluator(Evaluator):
    """Evaluates retrieval with the similarities `[C, I]` of C captions and I images.

    Writes `rankings.npz`: the first ten results for each image and each caption, and the rank of the first correct
    result. Writes `retrieval.png` if photos are available.
    """

    def score(self, candidate: Candidate) -> Scored:
        """Computes the metrics. With several thousand images, a second row has the means over folds of 1,000 images."""
        outputs = candidate.outputs(self._split)
        metrics = self._task.evaluate(self._split, outputs)
        published = self._published
        all_images = f"{published}_5k" if published == "vsl/coco" else published
        rows = [self._row(candidate, candidate.name, metrics, all_images)]
        folds = {name.removeprefix("1k_"): value for name, value in metrics.items() if name.startswith("1k_")}
        if folds:
            name = f"{candidate.name}, {metrics['num_images'] // 1000} folds of 1,000 images"
            rows.append(self._row(candidate, name, folds, published and f"{published}_1k"))
        return Scored(candidate, outputs["similarity"], metrics, rows)

    def write(self, output: Path, best: Scored) -> None:
        owners = self._task.split(self._split).owners
        write_npz(
            output / "rankings.npz",
            captions_of_images=top_columns(best.scores.T, _HITS_SAVED),
            images_of_captions=top_columns(best.scores, _HITS_SAVED),
            rank_of_images=caption_ranks(best.scores, owners) + 1,
            rank_of_captions=image_ranks(best.scores, owners) + 1,
        )
        self._draw(output / "retrieval.png", best)

    def table(self, results: Sequence[Scored]) -> str:
        best = results[-1].metrics
        title = f"{self._title}: {best['num_images']} images, {best['num_captions']} captions; recalls in per cent"
        return f"{title}\n{metric_table(compared_rows(results), columns=RETRIEVAL_COLUMNS)}"

    def _row(self, candidate: Candidate, name: str, metrics: dict[str, Any], published: str) -> dict[str, Any]:
        model = self._config.model
        if model.get("name") == "dual_encoder":
            key, text = "", f"{', '.join(model.image_features)} / {', '.join(model.text_features)}"
            described = f"dual encoder, {model.embed_size}, {model.backbone}: {text}"
        else:
            is_ensemble = isinstance(candidate.facts["weights"], list)
            reasoning = "SGRAF" if is_ensemble else candidate.task.config.model.reasoning.upper()
            key = f"{published}/{reasoning.lower()}"
            images = model.backbone or f"{model.num_regions} x {model.num_features} features"
            text = ", MiniLM" * (model.get("text") == "minilm")
            described = f"{reasoning}, {model.embed_size} / {model.similarity_size}, {images}{text}"
        return {
            "name": name,
            "published": key if key in RETRIEVAL_RESULTS and not text else "",
            "model": described,
            "dtype": model.dtype,
            "split": self._split,
            **candidate.facts,
            **metrics,
        }

    def _draw(self, path: Path, best: Scored) -> None:
        split, photos = self._task.split(self._split), self._task.photos(self._split)
        if photos is None:
            return
        images = evenly_spaced(len(split.images), _QUERIES_DRAWN)
        starts, counts = np.searchsorted(split.owners, images), np.bincount(split.owners)[images]
        captions = starts + np.arange(len(images)) % counts
        found_images = top_columns(best.scores[captions], _HITS_DRAWN)
        found_captions = top_columns(best.scores[:, images].T, _HITS_DRAWN)
        draw_retrieval(
            path,
            text_queries=[
                (split.captions[caption], [(photos(hit), hit == split.owners[caption]) for hit in hits])
                for caption, hits in zip(captions, found_images, strict=True)
            ],
            image_queries=[
                (photos(image), [(split.captions[hit], split.owners[hit] == image) for hit in hits])
                for image, hits in zip(images, found_captions, strict=True)
            ],
            title=f"{self._title}: {best.candidate.name}",
        )
