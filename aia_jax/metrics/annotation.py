"""Multi-label metrics in float64: precision, recall, F1, average precision, and counts of confused labels.

Scores are `[N, C]`, and targets are `[N, C]` with the values 0 and 1, for N images and C labels. A threshold is one
number for all labels, or `[C]`. The functions raise InputError if the shapes differ, a score is NaN, or a threshold has
another shape. A label is predicted if `score > threshold`, compared in the floating dtype of the scores. Counts are
exact integers. As in the published code, 1e-7 (average precision: 1e-8) is added to each denominator.
"""

import numpy as np

from aia_jax.utils.errors import InputError

_COUNT_EPSILON = 1e-7
_PRECISION_EPSILON = 1e-8


def average_precision(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Computes the average precision of each label, float64 `[C]`: the mean precision at the ranks of the positives.

    Images are sorted by descending score. Among equal scores, the last image ranks first. The result is 0 for a label
    without positives.

    Source: `average_precision` in github.com/Alibaba-MIIL/ASL, src/helper_functions/helper_functions.py. There,
    `scores.argsort()[::-1]` sorts the images. If this sort is not stable, the order of equal scores is undefined.
    """
    scores, targets = check_scores(scores, targets)
    hits = np.take_along_axis(targets, _descending(scores), axis=0)
    ranks = np.arange(1, len(hits) + 1)[:, None]
    precision = np.cumsum(hits, axis=0) / ranks
    return np.sum(precision * hits, axis=0) / (hits.sum(axis=0) + _PRECISION_EPSILON)


def precision_recall_curve(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Computes precision and recall at the rank of each positive, with images sorted as in `average_precision`.

    Scores and targets are `[N]`. For one curve of several labels, concatenate the arrays of these labels. The mean of
    the precisions is the average precision.

    Returns:
        float64 `[K, 2]`: recall and precision at the ranks of the K positives, sorted by increasing recall.
    """
    scores, targets = check_scores(scores[:, None], targets[:, None])
    ranks = np.flatnonzero(targets[_descending(scores)[:, 0], 0]) + 1
    hits = np.arange(1, len(ranks) + 1)
    return np.stack([hits / max(len(ranks), 1), hits / ranks], axis=1)


def annotation_metrics(
    scores: np.ndarray, targets: np.ndarray, threshold: float | np.ndarray = 0.5
) -> dict[str, float | int | str]:
    """Computes all metrics in the tables of the annotation papers.

    Returns:
        `precision`, `recall`: means over the labels.
        `f1`: F1 of these two means.
        `n_plus`: number of labels with at least one true positive.
        `overall_precision`, `overall_recall`, `overall_f1`: computed from counts that are summed over the labels.
        `map`: mean average precision in per cent.
        `num_images`, `num_labels`: N and C.
        `threshold`: the number `threshold`, or "per label" for an array.
    """
    labels = label_metrics(scores, targets, threshold)
    precision, recall = (float(np.mean(labels[name])) for name in ("precision", "recall"))
    tp, predicted, true = (labels[name].sum() for name in ("tp", "predicted", "support"))
    overall_precision, overall_recall = (float(tp / (count + _COUNT_EPSILON)) for count in (predicted, true))
    return {
        "precision": precision,
        "recall": recall,
        "f1": _f1(precision, recall),
        "n_plus": int(np.count_nonzero(labels["tp"])),
        "overall_precision": overall_precision,
        "overall_recall": overall_recall,
        "overall_f1": _f1(overall_precision, overall_recall),
        "map": 100 * float(np.mean(labels["ap"])),
        "num_images": len(scores),
        "num_labels": len(labels["ap"]),
        "threshold": "per label" if np.ndim(threshold) else float(threshold),
    }


def tested_metrics(
    scores: np.ndarray, targets: np.ndarray, threshold: float | np.ndarray
) -> dict[str, float | int | str]:
    """Computes `annotation_metrics` only for the labels that at least one image has."""
    tested = targets.any(axis=0)
    limits = np.asarray(threshold)[tested] if np.ndim(threshold) else threshold
    return annotation_metrics(scores[:, tested], targets[:, tested], limits)


def label_metrics(scores: np.ndarray, targets: np.ndarray, threshold: float | np.ndarray) -> dict[str, np.ndarray]:
    """Computes the metrics of each label.

    Returns:
        Arrays `[C]`:
        `support`: number of images where the label is true.
        `predicted`: number of images where the label is predicted.
        `tp`: number of images where the label is true and predicted.
        `precision`, `recall`, `f1`, `threshold`: metrics and threshold of the label.
        `ap`: average precision from 0 to 1.
    """
    predicted, targets = _predict(scores, targets, threshold)
    tp, num_predicted, support = (images.sum(axis=0) for images in (predicted & targets, predicted, targets))
    precision, recall = tp / (num_predicted + _COUNT_EPSILON), tp / (support + _COUNT_EPSILON)
    return {
        "support": support,
        "predicted": num_predicted,
        "tp": tp,
        "precision": precision,
        "recall": recall,
        "f1": _f1(precision, recall),
        "ap": average_precision(scores, targets),
        "threshold": np.broadcast_to(np.asarray(threshold, np.float64), tp.shape),
    }


def confusion_counts(scores: np.ndarray, targets: np.ndarray, threshold: float | np.ndarray) -> np.ndarray:
    """Counts images where label i is missed and label j is wrongly predicted: element `[i, j]` of int64 `[C, C]`."""
    predicted, targets = _predict(scores, targets, threshold)
    missed, false = targets & ~predicted, predicted & ~targets
    # float32 counts up to 2^24 exactly. Its matrix product is about 100 times faster than one of integers.
    return np.rint(missed.T.astype(np.float32) @ false.astype(np.float32)).astype(np.int64)


def check_scores(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores and targets, both `[N, C]`. Converts scores that are no floats to float64, and targets to bool."""
    scores, targets = np.asarray(scores), np.asarray(targets)
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)
    if scores.ndim != 2 or scores.shape != targets.shape:
        raise InputError(f"scores {scores.shape} and targets {targets.shape} must both be [images, labels]")
    bad = np.flatnonzero(np.isnan(scores).any(axis=1))
    if bad.size:
        raise InputError(f"scores of {bad.size} images hold NaN, the first in row {bad[0]}")
    return scores, targets.astype(bool, copy=False)


def _predict(scores: np.ndarray, targets: np.ndarray, threshold: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns predictions and targets, both bool `[N, C]`."""
    scores, targets = check_scores(scores, targets)
    threshold = np.asarray(threshold, scores.dtype)
    if threshold.ndim and threshold.shape != scores.shape[1:]:
        wanted = f"one number, or one for each of the scores' labels {scores.shape[1:]}"
        raise InputError(f"thresholds {threshold.shape} must be {wanted}")
    return scores > threshold, targets


def _descending(scores: np.ndarray) -> np.ndarray:
    """Returns indices `[N, C]` that sort each column by descending score. The last of equal scores comes first."""
    return np.argsort(scores, axis=0, kind="stable")[::-1]


def _f1(precision: float | np.ndarray, recall: float | np.ndarray) -> float | np.ndarray:
    return 2 * precision * recall / (precision + recall + _COUNT_EPSILON)
