"""What evaluating an annotator leaves of its labels and photos: `per_label.csv`, and with `eval.py --html` a page."""

import csv
import dataclasses
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from aia_jax.data.annotation.datasets import Split, photo_paths
from aia_jax.data.feature_cache import pad_batch
from aia_jax.data.image_decoding import encode_webp, webp_thumbnail
from aia_jax.metrics.annotation import Confusions, label_metrics, precision_recall_curve
from aia_jax.report.gallery import GalleryWriter, PageLabel, PagePicture
from aia_jax.tasks.annotation import AnnotationTask
from aia_jax.training import sharding
from aia_jax.training.model_arrays import Arrays, abstract_weights
from aia_jax.training.prediction import fetch_outputs
from aia_jax.training.step import make_predict_step
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_bytes
from aia_jax.utils.messages import format_count

_CURVE_POINTS = 100
_MOST_PAIRS, _MATRIX_SIDE = 100, 16
_PICTURE_SIDE = 384  # pixels; ten thousand test photos are shown


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredSplit:
    """Scores of a split and what they are judged by.

    Attributes:
        part: N images with their targets.
        scores: `[N, C]`.
        threshold: one for all labels, or `[C]`.
        metrics: of the whole split, see `metrics.annotation_metrics`.
    """

    part: Split
    scores: np.ndarray
    threshold: float | np.ndarray
    metrics: dict[str, Any]


def write_label_table(path: Path, judged: ScoredSplit) -> None:
    """A row of `label_metrics` for every label, as CSV with all digits."""
    columns = label_metrics(judged.scores, judged.part.targets, judged.threshold)
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(("label", *columns))
    table.writerows(zip(judged.part.labels, *(column.tolist() for column in columns.values()), strict=True))
    write_bytes(path, text.getvalue().encode(errors="backslashreplace"))


def write_report(path: Path, judged: ScoredSplit, task: AnnotationTask, weights: Arrays, *, title: str) -> None:
    """The page: all photos with true and predicted labels, the labels' numbers and curves, and confusions.

    Memory does not grow with pictures and maps, which are written as they come.

    Args:
        weights: that scored, for the maps of heads that attend.
    """
    part = judged.part
    threshold = "the label's threshold" if np.ndim(judged.threshold) else judged.threshold
    sizes = f"{format_count(len(part), 'photo')}, {format_count(len(part.labels), 'label')}"
    subtitle = f"{sizes}; predicted where the score is above {threshold}"
    bar = tqdm(desc="page", total=len(part), unit="img", dynamic_ncols=True, mininterval=0.5, leave=False)
    with (
        bar,
        ThreadPoolExecutor() as pool,
        GalleryWriter(path, title=title, subtitle=subtitle, labels=part.labels, evaluation=_evaluation(judged)) as page,
    ):
        originals = photo_paths(task.config.data, part.name)
        for rows, heat in _maps(task, weights, part):
            names = [part.image_names[row] for row in rows]
            pictures = pool.map(_picture, [originals.get(name) for name in names], part.images[rows])
            for place, (row, name, webp) in enumerate(zip(rows, names, pictures, strict=True)):
                shown = judged_labels(judged.scores[row], part.targets[row], judged.threshold)
                maps = {} if heat is None else {label.label: heat[place, label.label] for label in shown}
                page.add(name, shown, PagePicture(webp, maps))
            bar.update(len(rows))


def judged_labels(scores: np.ndarray, targets: np.ndarray, threshold: float | np.ndarray) -> list[PageLabel]:
    """A photo's labels: hits, then those missed, then false alarms, each with the highest score first.

    Args:
        scores, targets: `[C]`.
    """
    predicted, true = scores > np.asarray(threshold, scores.dtype), targets > 0
    found = []
    for outcome, chosen in (("hit", predicted & true), ("miss", true & ~predicted), ("false", predicted & ~true)):
        labels = np.flatnonzero(chosen)
        order = labels[np.argsort(-scores[labels], kind="stable")]
        found += [PageLabel(int(label), float(scores[label]), outcome) for label in order]
    return found


def _evaluation(judged: ScoredSplit) -> dict[str, Any]:
    scores, targets = judged.scores, judged.part.targets
    columns = label_metrics(scores, targets, judged.threshold)
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    micro = precision_recall_curve(scores.ravel(), targets.ravel())
    return {
        "metrics": judged.metrics,
        "per_label": [dict(zip(columns, row, strict=True)) for row in rows],
        "curves": {
            "micro": _thinned(micro),
            "micro_ap": float(micro[:, 1].mean()) if len(micro) else 0.0,
            "labels": [_thinned(precision_recall_curve(*pair)) for pair in zip(scores.T, targets.T, strict=True)],
        },
        "confusions": _confusions(Confusions.from_scores(scores, targets, judged.threshold)),
    }


def _confusions(found: Confusions) -> dict[str, Any]:
    """The most frequent pairs, and the counts among the labels that they concern, in order of appearance."""
    pairs = found.top(_MOST_PAIRS)
    missed, false = (list(dict.fromkeys(pair[side] for pair in pairs))[:_MATRIX_SIDE] for side in (0, 1))
    matrix = {"missed": missed, "false": false, "counts": found.counts[np.ix_(missed, false)].tolist()}
    return {"pairs": pairs, "missed": found.missed.tolist(), "matrix": matrix}


def _maps(task: AnnotationTask, weights: Arrays, part: Split) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Rows of a batch of `part`, and where all labels look in them, uint8 `[b, C, h, w]`; None: it does not attend."""
    graphdef, _ = abstract_weights(task.build_model, sharding.data_mesh())
    mesh = sharding.data_mesh(jax.local_devices()[:1])  # other processes have left
    illustrate = make_predict_step(graphdef, task.illustrate, mesh)
    placed = sharding.put_replicated(jax.device_get(weights), mesh)
    size = task.config.eval.batch_size
    batches = [np.arange(start, min(start + size, len(part))) for start in range(0, len(part), size)]
    shapes = jax.eval_shape(illustrate, placed, {"image": part.images[batches[0]]})
    if "heat" not in shapes:
        yield from ((rows, None) for rows in batches)
        return

    def dispatched() -> Iterator[tuple[np.ndarray, Arrays]]:
        for rows in batches:
            yield rows, {"heat": illustrate(placed, {"image": pad_batch(part.images[rows], size)})["heat"]}

    for rows, outputs in fetch_outputs(dispatched()):
        yield rows, outputs["heat"]


def _picture(path: Path | None, square: np.ndarray) -> bytes:
    """The photo at `path`, as the data set has it, or else its prepared copy."""
    if path is not None:
        try:
            return webp_thumbnail(path.read_bytes(), _PICTURE_SIDE)
        except (InputError, OSError):
            pass
    return encode_webp(square)


def _thinned(curve: np.ndarray) -> list[list[float]]:
    """As many points as a drawing shows, at even distances, the first and the last among them."""
    shown = np.linspace(0, len(curve) - 1, min(len(curve), _CURVE_POINTS)).round().astype(int)
    return np.round(curve[shown], 4).tolist()
