"""What evaluating an annotator leaves: rows at one threshold and at thresholds of the labels, scores, two pictures, the
numbers of every label, and a page."""

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aia_jax.evaluation.annotation_page import ScoredSplit, write_label_table, write_report
from aia_jax.evaluation.candidates import Candidate, Outputs
from aia_jax.metrics import thresholds as label_thresholds
from aia_jax.metrics.published_results import RESULTS, difference
from aia_jax.report.attention import draw_attention
from aia_jax.report.predictions import draw_predictions
from aia_jax.report.table import Row, metric_table
from aia_jax.tasks.annotation import AnnotationTask
from aia_jax.training import sharding
from aia_jax.training.model_arrays import abstract_weights
from aia_jax.training.step import make_predict_step
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_bytes, write_json
from aia_jax.utils.messages import format_count

_PICTURES = 16
_FITTED = {"mcc": label_thresholds.fit_mcc, "exact": label_thresholds.fit_mcc_exact}


@dataclasses.dataclass(frozen=True)
class Scored:
    """A candidate's numbers: at `config.eval.threshold`, and at thresholds of its labels, if they were asked for."""

    candidate: Candidate
    scores: np.ndarray
    plain: dict[str, Any]
    thresholds: np.ndarray | None = None
    by_label: dict[str, Any] | None = None


class AnnotationEvaluator:
    """Scores candidates and writes `metrics.json`, `per_label.csv`, `scores.npz`, `predictions.png`, of heads that
    attend `attention.png`, and `report.html`; fitted thresholds as `thresholds.json` into the workdir, or into an
    output that lies elsewhere.

    Args:
        task: whose config says what to compare with.
        split: to score.
        thresholds: "" for `config.eval.threshold` alone; "mcc" or "exact" to fit one for each label on the training
            split; or a file of them.
        num_sources: of weights; one.
        html: whether `report.html` is written, a page of all photos.

    Raises:
        InputError: unknown thresholds, those of other labels, or several sources.
    """

    def __init__(self, task: AnnotationTask, split: str, *, thresholds: str, num_sources: int, html: bool):
        if num_sources > 1:
            raise InputError("several --weights make an ensemble, which annotators have none of; give one")
        self._task, self._config, self._split, self._kind = task, task.config, split, thresholds
        self._html = html
        self._given = None
        if thresholds not in ("", *_FITTED):
            if not Path(thresholds).exists():
                raise InputError(
                    f"thresholds {thresholds!r}: no such file; known: {', '.join(_FITTED)}, or a file's path"
                )
            self._given = label_thresholds.load_thresholds(thresholds, task.labels)

    def score(self, candidate: Candidate, outputs: Outputs) -> Scored:
        """The candidate's numbers; `outputs` are its scores of a split."""
        task, found = self._task, outputs(self._split)
        result = Scored(candidate, found["scores"], task.evaluate(self._split, found))
        if not self._kind:
            return result
        thresholds = self._given
        if self._kind in _FITTED:
            fitted_on = found if self._split == "train" else outputs("train")
            thresholds = _FITTED[self._kind](fitted_on["scores"], task.split("train").targets)
        by_label = task.evaluate(self._split, found, thresholds)
        return dataclasses.replace(result, thresholds=thresholds, by_label=by_label)

    def write(self, output: Path, workdir: Path | None, results: list[Scored]) -> None:
        """Writes the numbers of all results, the last being the best, and its pictures."""
        self._write_numbers(output, results)
        if self._kind in _FITTED:
            folder = workdir if workdir and output.is_relative_to(workdir) else output
            fitted = label_thresholds.as_dict(self._task.labels, results[-1].thresholds)
            write_json(folder / "thresholds.json", fitted)
        self._draw(output, results[-1])
        self._judge(output, results[-1])

    def _judge(self, output: Path, best: Scored) -> None:
        fitted = best.thresholds is not None
        threshold = best.thresholds if fitted else self._config.eval.threshold
        part = self._task.split(self._split)
        judged = ScoredSplit(part, best.scores, threshold, best.by_label if fitted else best.plain)
        write_label_table(output / "per_label.csv", judged)
        if self._html:
            title = f"{self._config.data.name}, {self._split} split: {best.candidate.name}"
            write_report(output / "report.html", judged, self._task, best.candidate.weights, title=title)

    def _write_numbers(self, output: Path, results: list[Scored]) -> None:
        part, best, config = self._task.split(self._split), results[-1], self._config
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            scores=best.scores.astype(np.float32),
            targets=np.asarray(part.targets, np.uint8),
            image_names=np.array(part.image_names),
            labels=np.array(part.labels),
        )
        write_bytes(output / "scores.npz", buffer.getvalue())
        frozen = ", frozen" if config.model.freeze_backbone else ""
        model = f"{config.model.backbone}{frozen} + {config.model.head} at {config.data.image_size} px"
        rows = []
        for result in results[::-1]:
            for name, metrics, published in self._rows(result):
                facts = {"model": model, "dtype": config.model.dtype, "split": self._split, **result.candidate.facts}
                rows.append({"name": name, "published": published, **facts, **metrics})
        write_json(output / "metrics.json", {**best.plain, **best.candidate.facts, "split": self._split, "rows": rows})

    def _rows(self, result: Scored) -> Iterator[tuple[str, dict[str, Any], str]]:
        """(name, metrics, key of the published row or "") of each of a result's rows."""
        published = self._config.published if self._split == "test" else ""
        yield result.candidate.name, result.plain, published
        if result.by_label is not None:
            key = f"{published}+mcc" if self._kind == "mcc" else ""
            named = {"mcc": "MCC thresholds", "exact": "exact MCC thresholds"}.get(self._kind, Path(self._kind).name)
            yield f"{result.candidate.name}, {named}", result.by_label, key if key in RESULTS else ""

    def _draw(self, output: Path, result: Scored) -> None:
        task, part = self._task, self._task.split(self._split)
        threshold = task.config.eval.threshold if result.thresholds is None else result.thresholds
        rows = np.unique(np.linspace(0, len(part) - 1, _PICTURES).round().astype(int))
        images = np.asarray(part.arrays["image"][rows])
        graphdef, _ = abstract_weights(task.build_model, sharding.data_mesh())
        explain_step = make_predict_step(graphdef, task.explain, sharding.data_mesh(jax.local_devices()[:1]))
        out = jax.device_get(explain_step(jax.device_get(result.candidate.weights), {"image": images}))
        targets, hits = part.targets[rows] > 0, out["scores"] > threshold
        limit = task.config.eval.threshold if result.thresholds is None else "the label's threshold"
        title = f"{task.config.data.name}, {self._split} split, score > {limit}"
        draw_predictions(
            output / "predictions.png",
            images,
            [_names(part.labels, row) for row in targets],
            [_names(part.labels, row) for row in hits],
            title=title,
        )
        if "attention" not in out:
            return
        shown = int(np.argmax((targets & hits).sum(1)))
        order = np.flatnonzero(hits[shown])[np.argsort(-out["scores"][shown][hits[shown]])]
        draw_attention(
            output / "attention.png",
            images[shown],
            out["attention"][shown][order],
            [part.labels[label] for label in order],
            [float(score) for score in out["scores"][shown][order]],
            hits=[bool(hit) for hit in targets[shown][order]],
            title=f"{title}: {part.image_names[rows[shown]]}",
        )

    def table(self, results: list[Scored]) -> str:
        """Measured rows, the published ones and the difference of the best to them, as text."""
        best, config, split = results[-1].plain, self._config, self._split
        lines: list[Row | str] = []
        measured = list(zip(*(self._rows(result) for result in results[::-1]), strict=True))
        for kind in measured:
            lines += [Row(name, metrics) for name, metrics, _ in kind]
            _, metrics, key = kind[0]
            if key:
                lines += [
                    Row(f"published ({key})", RESULTS[key]),
                    Row("difference", difference(metrics, key), signed=True),
                ]
        if config.eval.split == split == "test" and "epoch" in results[-1].candidate.facts:
            lines.append("best epoch and weights were chosen on the test split, as in the published runs")
        images, labels = format_count(best["num_images"], "image"), format_count(best["num_labels"], "label")
        title = f"{images}, {labels}, score > {best['threshold']}"
        return f"{config.data.name}, {split} split: {title}\n" + metric_table(lines)


def _names(labels: tuple[str, ...], chosen: np.ndarray) -> list[str]:
    return [labels[label] for label in np.flatnonzero(chosen)]
