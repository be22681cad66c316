"""Writes `report.html`: all photos of a split with their true and predicted labels, and the metrics of each label."""

import contextlib
import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from aia_jax.data.annotation.annotations import CUSTOM
from aia_jax.data.annotation.datasets import Split, photo_paths
from aia_jax.data.feature_cache import pad_batch
from aia_jax.data.image_decoding import decode, encode_webp, small_webp
from aia_jax.evaluation.evaluator import Scored, evenly_spaced
from aia_jax.metrics.annotation import (
    annotation_metrics,
    confusion_counts,
    label_metrics,
    precision_recall_curve,
    tested_metrics,
)
from aia_jax.report.gallery.writer import PageLabel, PagePhoto, announce_size, write_gallery_page
from aia_jax.report.page_parts import folder_url
from aia_jax.tasks.annotation import AnnotationTask
from aia_jax.training import sharding
from aia_jax.training.model_arrays import Arrays, abstract_weights
from aia_jax.training.prediction import fetch_outputs
from aia_jax.training.step import make_predict_step
from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import format_count

_CURVE_POINTS = 100
_MAX_PAIRS = 100
_PICTURE_SIDE = 384  # pixels; small, because a page may have ten thousand photos


def write_page(
    path: Path, split: Split, scored: Scored, threshold: float | np.ndarray, *, title: str, limit: float | str
) -> None:
    """Writes `report.html`, the page with all photos of the split. `limit` is the threshold as text for people."""
    sizes = f"{format_count(len(split), 'photo')}, {format_count(len(split.labels), 'label')}"
    originals = photo_paths(scored.candidate.task.config.data, split.name)
    write_gallery_page(
        path,
        announce_size(_page_photos(split, scored, threshold, originals), len(split), path.name),
        title=title,
        subtitle=f"{sizes}; predicted where the score is above {limit}",
        labels=split.labels,
        evaluation=_evaluation(scored.scores, split.targets, threshold),
        folder=_folder_url(originals, path),
    )


def _folder_url(originals: dict[str, Path], page: Path) -> str:
    """Returns the URL of the folder in which all photos have their names; "" if there is none."""
    name, path = next(iter(originals.items()), ("", page))
    folder = path.parents[max(len(PurePath(name).parts) - 1, 0)]
    same = originals and all(folder / name == path for name, path in originals.items())
    return folder_url(folder, page) if same else ""


def _page_photos(
    split: Split, scored: Scored, threshold: float | np.ndarray, originals: dict[str, Path]
) -> Iterator[PagePhoto]:
    """Yields the photos of the page. Only one batch of pictures and attention maps is in memory at a time."""
    task = scored.candidate.task
    picture = functools.partial(_picture, upright=task.config.data.name == CUSTOM)
    bar = tqdm(desc="page", total=len(split), unit="img", dynamic_ncols=True, mininterval=0.5, leave=False)
    with bar, ThreadPoolExecutor() as pool:
        for rows, heat in _attention_maps(task, scored.candidate.weights, split):
            names = [split.image_names[row] for row in rows]
            pictures = pool.map(picture, [originals.get(name) for name in names], split.images[rows])
            for place, (row, name, webp) in enumerate(zip(rows, names, pictures, strict=True)):
                labels = page_labels(scored.scores[row], split.targets[row], threshold)
                maps = {} if heat is None else {label.label: heat[place, label.label] for label in labels}
                yield PagePhoto(name, labels, webp, maps)
            bar.update(len(rows))


def page_labels(scores: np.ndarray, targets: np.ndarray, threshold: float | np.ndarray) -> list[PageLabel]:
    """Returns a photo's hits (correct labels), then misses, then false alarms, each in descending order of score.

    Args:
        scores, targets: `[C]`, the scores of C labels, and 1 for each true label or 0 for each other label.
        threshold: `[C]`, or one number for all labels.
    """
    predicted, true = scores > np.asarray(threshold, scores.dtype), targets > 0
    found = []
    for kind, chosen in (("hit", predicted & true), ("miss", true & ~predicted), ("false", predicted & ~true)):
        labels = np.flatnonzero(chosen)
        order = labels[np.argsort(-scores[labels], kind="stable")]
        found += [PageLabel(int(label), float(scores[label]), kind) for label in order]
    return found


def _evaluation(scores: np.ndarray, targets: np.ndarray, threshold: float | np.ndarray) -> dict[str, Any]:
    columns = label_metrics(scores, targets, threshold)
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    curves = [precision_recall_curve(*label) for label in zip(scores.T, targets.T, strict=True)]
    micro = precision_recall_curve(scores.ravel(), targets.ravel())
    missed = columns["support"] - columns["tp"]
    return {
        "metrics": annotation_metrics(scores, targets, threshold),
        "with_photos": tested_metrics(scores, targets, threshold),
        "per_label": [dict(zip(columns, row, strict=True)) for row in rows],
        "curves": {
            "micro": _curve_points(micro),
            "micro_ap": float(micro[:, 1].mean()) if len(micro) else 0.0,
            "labels": [_curve_points(curve) for curve in curves],
        },
        "confusions": {
            "pairs": _frequent_pairs(confusion_counts(scores, targets, threshold)),
            "missed": missed.tolist(),
        },
    }


def _curve_points(curve: np.ndarray) -> list[list[float]]:
    return np.round(curve[evenly_spaced(len(curve), _CURVE_POINTS)], 4).tolist()


def _frequent_pairs(counts: np.ndarray) -> list[list[int]]:
    """Returns the most frequent pairs as lists: missed label, false label, number of photos."""
    missed, false = np.nonzero(counts)
    order = np.argsort(-counts[missed, false], kind="stable")[:_MAX_PAIRS]
    return np.stack([missed, false, counts[missed, false]], axis=1)[order].tolist()


def _attention_maps(
    task: AnnotationTask, weights: Arrays, split: Split
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yields the row numbers and attention maps of each batch, uint8 `[b, C, h, w]`; None without an attention head."""
    size = task.config.eval.batch_size
    batches = [np.arange(start, min(start + size, len(split))) for start in range(0, len(split), size)]
    if task.config.model.head != "attention":
        return ((rows, None) for rows in batches)
    graphdef, _ = abstract_weights(task.build_model, sharding.data_mesh())
    mesh = sharding.data_mesh(jax.local_devices()[:1])  # only one process writes the page
    illustrate = make_predict_step(graphdef, task.illustrate, mesh)
    placed = sharding.put_replicated(jax.device_get(weights), mesh)
    images = ((rows, {"image": pad_batch(split.images[rows], size)}) for rows in batches)
    return fetch_outputs((rows, illustrate(placed, batch)["heat"]) for rows, batch in images)


def _picture(path: Path | None, prepared: np.ndarray, upright: bool) -> bytes:
    """Encodes the photo in the file `path` as WebP, or, without a readable file, the resized image `prepared`."""
    side = _PICTURE_SIDE
    if path is not None:
        with contextlib.suppress(InputError, OSError):
            return decode(path.read_bytes(), lambda image, _: small_webp(image, side, upright), side=side)
    return encode_webp(prepared)
