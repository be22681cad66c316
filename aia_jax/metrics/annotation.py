"""Exact multi-label metrics in float64: per label, pooled over labels, and mean average precision."""

from dataclasses import dataclass

import numpy as np

from aia_jax.utils.errors import InputError

_COUNT_EPSILON = 1e-7
_PRECISION_EPSILON = 1e-8


@dataclass(frozen=True)
class LabelCounts:
    """Counts per label over some images; those of two sets of images merge by `+`.

    Attributes:
        tp: `[C]` images where the label is predicted and true.
        predicted: `[C]` images where it is predicted.
        true: `[C]` images where it is true.
    """

    tp: np.ndarray
    predicted: np.ndarray
    true: np.ndarray

    @classmethod
    def from_scores(cls, scores: np.ndarray, targets: np.ndarray, threshold: float | np.ndarray = 0.5) -> "LabelCounts":
        """Counts with `score > threshold` as prediction, compared in the scores' own floating dtype.

        Args:
            scores: `[N, C]`.
            targets: `[N, C]`, 0 or 1.
            threshold: one for all labels, or `[C]`.

        Raises:
            InputError: shapes that differ, a NaN among the scores, or thresholds of another number than C.
        """
        scores, targets = check_scores(scores, targets)
        threshold = np.asarray(threshold, scores.dtype)
        if threshold.ndim and threshold.shape != scores.shape[1:]:
            raise InputError(
                f"thresholds {threshold.shape} must be one number, or one for each of the scores' labels "
                f"{scores.shape[1:]}"
            )
        predicted = scores > threshold
        return cls((predicted & targets).sum(axis=0), predicted.sum(axis=0), targets.sum(axis=0))

    def __add__(self, other: "LabelCounts") -> "LabelCounts":
        return LabelCounts(self.tp + other.tp, self.predicted + other.predicted, self.true + other.true)

    def per_label(self) -> dict[str, np.ndarray]:
        """float64 `[C]` each: `precision, recall, f1` of every label."""
        precision = self.tp / (self.predicted + _COUNT_EPSILON)
        recall = self.tp / (self.true + _COUNT_EPSILON)
        return {"precision": precision, "recall": recall, "f1": _f1(precision, recall)}

    def compute(self) -> dict[str, float | int]:
        """Precision and recall as means over all labels, their F1, N+ (labels with a hit), and the pooled three."""
        of_labels = self.per_label()
        precision, recall = float(np.mean(of_labels["precision"])), float(np.mean(of_labels["recall"]))
        overall_precision = float(self.tp.sum() / (self.predicted.sum() + _COUNT_EPSILON))
        overall_recall = float(self.tp.sum() / (self.true.sum() + _COUNT_EPSILON))
        return {
            "precision": precision,
            "recall": recall,
            "f1": _f1(precision, recall),
            "n_plus": int(np.count_nonzero(self.tp)),
            "overall_precision": overall_precision,
            "overall_recall": overall_recall,
            "overall_f1": _f1(overall_precision, overall_recall),
        }


def average_precision(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Mean of the precision at each positive, images sorted by falling score; ties keep the images' order.

    Args:
        scores: `[N, C]`.
        targets: `[N, C]`, 0 or 1.

    Returns:
        float64 `[C]`; 0 for a label without positives.

    Raises:
        InputError: shapes that differ, or a NaN among the scores.
    """
    scores, targets = check_scores(scores, targets)
    order = np.argsort(-scores, axis=0, kind="stable")
    hits = np.take_along_axis(targets, order, axis=0)
    ranks = np.arange(1, len(hits) + 1)[:, None]
    precision = np.cumsum(hits, axis=0) / ranks
    return np.sum(precision * hits, axis=0) / (hits.sum(axis=0) + _PRECISION_EPSILON)


def annotation_metrics(
    scores: np.ndarray, targets: np.ndarray, threshold: float | np.ndarray = 0.5
) -> dict[str, float | int | str]:
    """All metrics of the papers' tables.

    Args:
        scores: `[N, C]`.
        targets: `[N, C]`, 0 or 1.
        threshold: a label is predicted where its score is above it; one for all labels, or `[C]`.

    Returns:
        `precision, recall, f1, n_plus, overall_precision, overall_recall, overall_f1` (see `LabelCounts`), `map` in
        per cent, `num_images, num_labels, threshold`, the last "per label" where there are several.

    Raises:
        InputError: see `LabelCounts.from_scores`.
    """
    return {
        **LabelCounts.from_scores(scores, targets, threshold).compute(),
        "map": 100 * float(np.mean(average_precision(scores, targets))),
        "num_images": len(scores),
        "num_labels": np.shape(scores)[1],
        "threshold": "per label" if np.ndim(threshold) else float(threshold),
    }


def check_scores(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores as they are, or as float64 if not floating, and targets as bool, both `[N, C]`.

    Raises:
        InputError: shapes that differ, or a NaN among the scores.
    """
    scores, targets = np.asarray(scores), np.asarray(targets)
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)
    if scores.ndim != 2 or scores.shape != targets.shape:
        raise InputError(f"scores {scores.shape} and targets {targets.shape} must both be [images, labels]")
    bad = np.flatnonzero(np.isnan(scores).any(axis=1))
    if bad.size:
        raise InputError(f"scores of {bad.size} images hold NaN, the first in row {bad[0]}")
    return scores, targets.astype(bool, copy=False)


def _f1(precision: float | np.ndarray, recall: float | np.ndarray) -> float | np.ndarray:
    return 2 * precision * recall / (precision + recall + _COUNT_EPSILON)
