"""Finds the threshold of each label with the highest Matthews correlation coefficient (MCC) on scored images.

Source: Salar and Ahmadi, The Visual Computer 2023. `fit_mcc` searches their grid. The MCC equals that of scikit-learn.
For N images and C labels, thresholds are fitted to scores `[N, C]` and targets `[N, C]` of 0 or 1. The functions raise
InputError if there is no image, the shapes differ, or a score is NaN.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from aia_jax.metrics.annotation import check_scores
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json, write_json
from aia_jax.utils.messages import MAX_LISTED, format_count, list_problems, nearest

CANDIDATES = tuple(step / 20 for step in range(1, 15))

_BLOCK = 1 << 16  # scores processed at once, so that temporary arrays stay in the CPU cache


def fit_mcc(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Finds the threshold of `CANDIDATES` with the highest MCC of `score >= candidate` for each label, float64 `[C]`.

    Among equal MCCs, the first candidate is chosen. An undefined MCC counts as 0. Scores and candidates are compared in
    the floating dtype of the scores. scikit-learn's `matthews_corrcoef` gives the same choice.
    """
    scores, targets = _check_images(scores, targets)
    values = np.asarray(CANDIDATES)
    counts = _count_by_bin(scores, targets, values.astype(scores.dtype))
    from_bin_up = counts[:, ::-1].cumsum(axis=1)[:, ::-1]
    predicted, true = from_bin_up[:, 1:], from_bin_up[:, :1, 1]
    mcc = _matthews(predicted[:, :, 1], predicted.sum(axis=2), true, len(scores))
    return values[mcc.argmax(axis=1)]


def fit_mcc_exact(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Finds the best of all possible thresholds for each label by MCC, float64 `[C]`. Chooses the lowest of equals.

    The threshold is the midpoint of two neighbouring distinct scores, so that `>` and `>=` give the same predictions.
    If the floating dtype has no number between these scores, the threshold is the lower score, which is correct for
    `score > threshold`. If no threshold of a label has an MCC above 0, the label gets 0.5.
    """
    scores, targets = _check_images(scores, targets)
    num_images, num_labels = scores.shape
    thresholds = np.empty(num_labels)
    for labels in _blocks(num_labels, num_images):
        order = np.argsort(scores[:, labels].T, axis=1)
        ranked = np.take_along_axis(scores[:, labels].T, order, axis=1)
        hits = np.take_along_axis(targets[:, labels].T, order, axis=1)
        true = hits.sum(axis=1, keepdims=True)
        # The cut at i predicts the images from the i-th lowest score upwards.
        tp = true - hits.cumsum(axis=1) + hits
        mcc = _matthews(tp, np.arange(num_images, 0, -1), true, num_images)
        mcc[:, 1:][ranked[:, 1:] == ranked[:, :-1]] = 0  # no threshold separates equal scores
        rows, best = np.arange(len(ranked)), mcc.argmax(axis=1)
        lower, upper = ranked[rows, np.maximum(best - 1, 0)], ranked[rows, best]
        middle = (lower.astype(np.float64) + upper) / 2
        separating = np.where(middle.astype(scores.dtype) < upper, middle, lower)
        thresholds[labels] = np.where(mcc[rows, best] > 0, separating, 0.5)
    return thresholds


def save_thresholds(path: Path, labels: Sequence[str], thresholds: np.ndarray) -> None:
    """Writes `{label: threshold}` as JSON. Raises ValueError if the lengths of labels and thresholds differ."""
    write_json(path, dict(zip(labels, map(float, thresholds), strict=True)))


def load_thresholds(path: str | Path, labels: Sequence[str]) -> np.ndarray:
    """Reads `{label: threshold}` from JSON. Returns thresholds in the order of `labels`, float64 `[C]`.

    Raises:
        InputError: the file is missing or malformed, or its labels are not exactly `labels`. Lists all problems.
    """
    document = read_json(path, "{label: threshold}")
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected an object {{label: threshold}}, found a {type(document).__name__}")
    known = set(labels)
    problems = [f"no threshold for the label {label!r}" for label in labels if label not in document]
    for label, value in document.items():
        if label not in known:
            near = nearest(label, labels, 3) if len(problems) < MAX_LISTED else []
            problems.append(f"unknown label {label!r}" + (f"; nearest: {', '.join(near)}" if near else ""))
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            found = f"{json.dumps(value):.80}"
            problems.append(f"label {label!r}: a threshold must be a number from 0 to 1, found {found}")
    if problems:
        known = format_count(len(labels), "label")
        raise InputError(f"{path} does not fit the {known} of the data:{list_problems(problems)}")
    return np.asarray([document[label] for label in labels], np.float64)


def _check_images(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, targets = check_scores(scores, targets)
    if not len(scores):
        raise InputError("thresholds cannot be fitted to no images")
    return scores, targets


def _blocks(length: int, width: int) -> Iterator[slice]:
    """Yields slices of the numbers 0 to `length - 1`. A slice of rows with `width` scores has about `_BLOCK` scores."""
    rows = max(1, _BLOCK // max(1, width))
    return (slice(start, start + rows) for start in range(0, length, rows))


def _count_by_bin(scores: np.ndarray, targets: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Counts the images of each label by target and by how many of the K `cuts` the score reaches.

    Returns int64 `[C, K + 1, 2]`.
    """
    num_images, num_labels = scores.shape
    shape = (num_labels, len(cuts) + 1, 2)
    counts = np.zeros(np.prod(shape), np.int64)
    first_cell = np.arange(num_labels) * (2 * shape[1])
    for rows in _blocks(num_images, num_labels):
        cells = np.searchsorted(cuts, scores[rows], side="right")
        cells *= 2
        cells += targets[rows]
        cells += first_cell
        counts += np.bincount(cells.ravel(), minlength=counts.size)
    return counts.reshape(shape)


def _matthews(tp: np.ndarray, predicted: np.ndarray, true: np.ndarray, num_images: int) -> np.ndarray:
    """Computes the MCC from counts that broadcast. An undefined MCC is 0. The bits equal those of scikit-learn.

    All numbers before the product of the variances are integers below 2^53, so the order of the sums does not matter.
    """
    tp, predicted, true, total = (np.asarray(count, np.float64) for count in (tp, predicted, true, num_images))
    correct = total - true - predicted + 2 * tp
    covariance = correct * total - (true * predicted + (total - true) * (total - predicted))
    variance_predicted = total**2 - (predicted**2 + (total - predicted) ** 2)
    variance_true = total**2 - (true**2 + (total - true) ** 2)
    variances = variance_predicted * variance_true
    return np.divide(covariance, np.sqrt(variances), out=np.zeros_like(covariance), where=variances > 0)
