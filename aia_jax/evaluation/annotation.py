"""Evaluates annotators with one threshold or with per-label thresholds. Writes scores, pictures and an HTML page."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aia_jax.data.annotation.datasets import Split
from aia_jax.evaluation.annotation_page import write_page
from aia_jax.evaluation.evaluator import Candidate, Evaluator, Scored, compared_rows, evenly_spaced, write_npz
from aia_jax.metrics.annotation import label_metrics, tested_metrics
from aia_jax.metrics.published_results import RESULTS
from aia_jax.metrics.thresholds import fit_mcc, fit_mcc_exact, load_thresholds, save_thresholds
from aia_jax.report.attention import draw_attention
from aia_jax.report.predictions import draw_predictions
from aia_jax.report.table import Row, metric_table
from aia_jax.tasks.annotation import AnnotationTask
from aia_jax.training import sharding
from aia_jax.training.model_arrays import Arrays, abstract_weights
from aia_jax.training.step import make_predict_step
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_bytes
from aia_jax.utils.messages import format_count, spreadsheet_text

_IMAGES_DRAWN = 16
_FITS = {"mcc": ("MCC thresholds", fit_mcc), "exact": ("exact MCC thresholds", fit_mcc_exact)}


class AnnotationEvaluator(Evaluator):
    """Evaluates an annotator with the scores `[N, C]` of N images and C labels.

    Always writes `scores.npz`, `per_label.csv` and `predictions.png`. For an attention head, also writes
    `attention.png`. With `html`, also writes `report.html`. After fitting thresholds, also writes `thresholds.json`.

    Args:
        thresholds: "" to use only `config.eval.threshold`; "mcc" or "exact" to fit a threshold for each label on the
            training split; or the path of a thresholds file.
        html: whether to write `report.html`, a page with all photos of the split and their labels.
        workdir: folder of the run. If the output folder is inside `workdir`, `thresholds.json` is written to `workdir`.

    Raises:
        InputError: `thresholds` is neither a known word nor a file, or the file has thresholds for other labels.
    """

    def __init__(
        self, task: AnnotationTask, split: str, *, thresholds: str = "", html: bool = False, workdir: Path | None = None
    ):
        super().__init__(task, split)
        self._thresholds, self._html, self._workdir = thresholds, html, workdir
        self._loaded = None
        if thresholds and thresholds not in _FITS:
            if not Path(thresholds).exists():
                known = ", ".join(_FITS)
                raise InputError(f"thresholds {thresholds!r}: no such file; known: {known}, or a file's path")
            self._loaded = load_thresholds(thresholds, task.labels)

    def score(self, candidate: Candidate) -> Scored:
        """Computes the metrics. With per-label thresholds, `Scored.rows` has a second row for these thresholds."""
        task = self._task
        check_labelled(task.split(self._split))
        outputs = candidate.outputs(self._split)
        metrics = task.evaluate(self._split, outputs)
        rows = [self._row(candidate, candidate.name, metrics, self._published)]
        if not self._thresholds:
            return Scored(candidate, outputs["scores"], metrics, rows)
        name, fit = _FITS.get(self._thresholds, (Path(self._thresholds).name, None))
        thresholds = fit(candidate.outputs("train")["scores"], task.split("train").targets) if fit else self._loaded
        at_thresholds = task.evaluate(self._split, outputs, thresholds)
        key = f"{self._published}+mcc" if self._thresholds == "mcc" else ""
        rows.append(self._row(candidate, f"{candidate.name}, {name}", at_thresholds, key if key in RESULTS else ""))
        return Scored(candidate, outputs["scores"], metrics, rows, thresholds)

    def write(self, output: Path, best: Scored) -> None:
        split, task = self._task.split(self._split), self._task
        write_npz(
            output / "scores.npz",
            scores=best.scores.astype(np.float32),
            targets=np.asarray(split.targets, np.uint8),
            image_names=np.array(split.image_names),
            labels=np.array(split.labels),
        )
        if self._thresholds in _FITS:
            inside = self._workdir and output.is_relative_to(self._workdir)
            path = (self._workdir if inside else output) / "thresholds.json"
            save_thresholds(path, task.labels, best.thresholds)
            use = "use it from now on" if inside else "use it only with --thresholds"
            print(f"fitted thresholds written to {path}; aia annotate and aia export {use}", flush=True)
        threshold = limit = self._config.eval.threshold
        if best.thresholds is not None:
            threshold, limit = best.thresholds, "the label's threshold"
        _write_label_table(output / "per_label.csv", split, best.scores, threshold)
        _draw(output, split, threshold, task, best.candidate.weights, title=f"{self._title}, score > {limit}")
        if self._html:
            title = f"{self._title}: {best.candidate.name}"
            write_page(output / "report.html", split, best, threshold, title=title, limit=limit)

    def table(self, results: Sequence[Scored]) -> str:
        best, lines = results[-1], compared_rows(results)
        chose = self._config.eval.get("epoch") != "last" and "epoch" in best.candidate.facts
        if chose and self._config.eval.split == self._split == "test":
            lines.append("best epoch and weights were chosen on the test split, as in the published runs")
        threshold = self._config.eval.threshold if best.thresholds is None else best.thresholds
        tested = tested_metrics(best.scores, self._task.split(self._split).targets, threshold)
        metrics = best.metrics
        if untested := metrics["num_labels"] - tested["num_labels"]:
            lines.append(Row(f"without {format_count(untested, 'label')} that no photo here has", tested))
        sizes = f"{format_count(metrics['num_images'], 'image')}, {format_count(metrics['num_labels'], 'label')}"
        return f"{self._title}: {sizes}, score > {metrics['threshold']}\n{metric_table(lines)}"

    def _row(self, candidate: Candidate, name: str, metrics: dict[str, Any], published: str) -> dict[str, Any]:
        model = self._config.model
        frozen = ", frozen" if model.freeze_backbone else ""
        facts = {
            "model": f"{model.backbone}{frozen} + {model.head} at {self._config.data.image_size} px",
            "dtype": model.dtype,
            "split": self._split,
        }
        return {"name": name, "published": published, **facts, **candidate.facts, **metrics}


def check_labelled(split: Split) -> None:
    """Raises InputError if no photo of `split` has a label, because all metrics would be 0."""
    if not split.targets.any():
        raise InputError(f"no photo of the {split.name} split has a label: nothing can be measured; label its photos")


def _write_label_table(path: Path, split: Split, scores: np.ndarray, threshold: float | np.ndarray) -> None:
    """Writes the metrics of each label as CSV, without rounding."""
    columns = label_metrics(scores, split.targets, threshold)
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(("label", *columns))
    table.writerows(
        zip(map(spreadsheet_text, split.labels), *(column.tolist() for column in columns.values()), strict=True)
    )
    write_bytes(path, text.getvalue().encode(errors="backslashreplace"))


def _draw(
    output: Path, split: Split, threshold: float | np.ndarray, task: AnnotationTask, weights: Arrays, *, title: str
) -> None:
    """Draws the predictions for a few images and, for an attention head, the attention maps of one image."""
    rows = evenly_spaced(len(split), _IMAGES_DRAWN)
    images = np.asarray(split.images[rows])
    graphdef, _ = abstract_weights(task.build_model, sharding.data_mesh())
    explain = make_predict_step(graphdef, task.explain, sharding.data_mesh(jax.local_devices()[:1]))
    out = jax.device_get(explain(jax.device_get(weights), {"image": images}))
    targets, predicted = split.targets[rows] > 0, out["scores"] > threshold
    true_names, predicted_names = (
        [[split.labels[label] for label in np.flatnonzero(row)] for row in chosen] for chosen in (targets, predicted)
    )
    draw_predictions(output / "predictions.png", images, true_names, predicted_names, title=title)
    if "attention" not in out:
        return
    shown = int(np.argmax((targets & predicted).sum(1)))
    scores = out["scores"][shown]
    order = np.flatnonzero(predicted[shown])[np.argsort(-scores[predicted[shown]])]
    draw_attention(
        output / "attention.png",
        images[shown],
        out["attention"][shown][order],
        [split.labels[label] for label in order],
        [float(score) for score in scores[order]],
        hits=[bool(hit) for hit in targets[shown][order]],
        title=f"{title}: {split.image_names[rows[shown]]}",
    )
