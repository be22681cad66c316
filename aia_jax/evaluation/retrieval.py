"""What evaluating retrieval leaves: recalls both ways, the ensemble of several weights, rankings and a picture."""

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from aia_jax.evaluation.candidates import Candidate, Outputs
from aia_jax.metrics.published_results import RETRIEVAL_RESULTS, difference
from aia_jax.metrics.retrieval import CAPTIONS_PER_IMAGE, caption_ranks, image_ranks
from aia_jax.report.retrieval import draw_retrieval
from aia_jax.report.table import RETRIEVAL_COLUMNS, Row, metric_table
from aia_jax.tasks.retrieval import RetrievalTask
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_bytes, write_json

_KEPT = 10  # hits of each query in rankings.npz
_SHOWN = 5
_QUERIES = 6


@dataclasses.dataclass(frozen=True)
class Scored:
    """A candidate's similarities `[C, I]` and metrics."""

    candidate: Candidate
    similarity: np.ndarray
    plain: dict[str, Any]


class RetrievalEvaluator:
    """Scores candidates and writes `metrics.json`, `rankings.npz` (each query's first ten hits and the rank of its true
    one) and, where there are photos, `retrieval.png`.

    Args:
        task: whose config says what to compare with.
        split: to score.
        thresholds: none.
        num_sources: of weights.
        html: none.

    Raises:
        InputError: thresholds or a page were asked for.
    """

    def __init__(self, task: RetrievalTask, split: str, *, thresholds: str, num_sources: int, html: bool):
        if thresholds:
            raise InputError("--thresholds are of annotation; retrieval ranks and has none")
        if html:
            raise InputError("--html is of annotation; retrieval has no page of labels")
        self._task, self._config, self._split = task, task.config, split

    def score(self, candidate: Candidate, outputs: Outputs) -> Scored:
        """The candidate's recalls on the split."""
        found = outputs(self._split)
        return Scored(candidate, found["similarity"], candidate.task.evaluate(self._split, found))

    def combine(self, results: list[Scored]) -> list[Scored]:
        """The ensemble: the mean of all similarities."""
        similarity = sum(result.similarity for result in results) / len(results)
        names = [result.candidate.name for result in results]
        facts = {"weights": [result.candidate.facts["weights"] for result in results]}
        ensemble = Candidate(" + ".join(names), {}, facts, self._task)
        return [Scored(ensemble, similarity, self._task.evaluate(self._split, {"similarity": similarity}))]

    def write(self, output: Path, workdir: Path | None, results: list[Scored]) -> None:
        """Writes the numbers of all results, the last being the best, and its rankings and picture."""
        best, model, rows = results[-1], self._config.model, []
        for result in results[::-1]:
            for name, metrics, published in self._rows(result):
                described = f"{_reasoning(result)}, {model.embed_size} / {model.similarity_size}, {self._features()}"
                facts = {"model": described, "dtype": model.dtype, "split": self._split, **result.candidate.facts}
                rows.append({"name": name, "published": published, **facts, **metrics})
        write_json(output / "metrics.json", {**best.plain, **best.candidate.facts, "split": self._split, "rows": rows})
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            captions_of_images=_first(best.similarity.T, _KEPT),
            images_of_captions=_first(best.similarity, _KEPT),
            rank_of_images=caption_ranks(best.similarity) + 1,
            rank_of_captions=image_ranks(best.similarity) + 1,
        )
        write_bytes(output / "rankings.npz", buffer.getvalue())
        self._draw(output, best)

    def table(self, results: list[Scored]) -> str:
        """Measured rows, the published ones and the difference of the best to them, as text."""
        lines: list[Row | str] = []
        for kind in zip(*(self._rows(result) for result in results[::-1]), strict=True):
            lines += [Row(name, metrics) for name, metrics, _ in kind]
            _, metrics, key = kind[0]
            if key:
                lines += [Row(f"published ({key})", RETRIEVAL_RESULTS[key])]
                lines += [Row("difference", difference(metrics, key), signed=True)]
        best = results[-1].plain
        title = f"{best['num_images']} images, {best['num_captions']} captions; recalls in per cent"
        return f"{self._config.data.name}, {self._split} split: {title}\n" + metric_table(
            lines, columns=RETRIEVAL_COLUMNS
        )

    def _rows(self, result: Scored) -> Iterator[tuple[str, dict[str, Any], str]]:
        """(name, metrics, key of the published row or "") of each of a result's rows."""
        name, metrics = result.candidate.name, result.plain
        folds = {key.removeprefix("1k_"): value for key, value in metrics.items() if key.startswith("1k_")}
        published = self._config.published if self._split == "test" else ""
        whole = f"{published}_5k" if published == "vsl/coco" else published
        yield name, metrics, self._key(whole, result)
        if folds:
            num_folds = metrics["num_images"] // 1000
            key = self._key(f"{published}_1k" if published else "", result)
            yield f"{name}, {num_folds} folds of 1,000 images", folds, key

    def _key(self, published: str, result: Scored) -> str:
        key = f"{published}/{_reasoning(result).lower()}"
        return key if published and key in RETRIEVAL_RESULTS else ""

    def _features(self) -> str:
        model = self._config.model
        return model.backbone or f"{model.num_regions} x {model.num_features} features"

    def _draw(self, output: Path, result: Scored) -> None:
        part = self._task.split(self._split)
        photos = self._task.photos(self._split)
        if photos is None:
            return
        images = np.unique(np.linspace(0, part.num_images - 1, _QUERIES).round().astype(int))
        captions = CAPTIONS_PER_IMAGE * images + np.arange(len(images)) % CAPTIONS_PER_IMAGE
        to_images = _first(result.similarity[captions], _SHOWN)
        to_captions = _first(result.similarity[:, images].T, _SHOWN)
        draw_retrieval(
            output / "retrieval.png",
            text_queries=[
                (part.captions[caption], [(photos(hit), hit == caption // CAPTIONS_PER_IMAGE) for hit in hits])
                for caption, hits in zip(captions, to_images, strict=True)
            ],
            image_queries=[
                (photos(image), [(part.captions[hit], hit // CAPTIONS_PER_IMAGE == image) for hit in hits])
                for image, hits in zip(images, to_captions, strict=True)
            ],
            title=f"{self._config.data.name}, {self._split} split: {result.candidate.name}",
        )


def _reasoning(result: Scored) -> str:
    several = isinstance(result.candidate.facts["weights"], list)
    return "SGRAF" if several else result.candidate.task.config.model.reasoning.upper()


def _first(scores: np.ndarray, count: int) -> np.ndarray:
    """The places of the `count` highest scores of each row, int32, the highest first."""
    count = min(count, scores.shape[1])
    return np.stack([np.argsort(-row, kind="stable")[:count] for row in scores]).astype(np.int32)
