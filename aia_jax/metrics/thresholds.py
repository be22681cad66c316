"""For each label, finds the threshold with the highest Matthews correlation coefficient (MCC) on scored images.

Source: Salar and Ahmadi, The Visual Computer 2023. `fit_mcc` tries the thresholds of this paper.
The MCC equals that of scikit-learn. Scores are `[N, C]`, and targets are `[N, C]` with the values 0 and 1, for N images
and C labels. The functions raise InputError if there is no image, the shapes differ, or a score is NaN.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aia_jax.metrics.annotation import check_scores
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import read_json, write_json
from aia_jax.utils.messages import MAX_LISTED, format_count, list_problems, nearest

CANDIDATES = tuple(step / 20 for step in range(1, 15))
_FEWEST_POSITIVES = 2  # of a label whose threshold `refit_mcc` changes


def fit_mcc(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """For each label, finds the threshold in `CANDIDATES` with the highest MCC of `score >= threshold`, float64 `[C]`.

    If several candidates have this MCC, the lowest is chosen. An undefined MCC counts as 0. Scores and candidates are
    compared in the floating dtype of the scores. scikit-learn's `matthews_corrcoef` leads to the same choice.
    """
    scores, targets = _check_images(scores, targets)
    best = _candidate_mccs(scores, targets, np.ones_like(targets)).argmax(axis=0)
    return np.asarray(CANDIDATES)[best]


def refit_mcc(
    scores: np.ndarray, targets: np.ndarray, known: np.ndarray, before: np.ndarray, least: float = 0.3
) -> np.ndarray:
    """Like `fit_mcc`, but for each label only from the images where it is known, bool `[N, C]`.

    A label keeps its threshold `before` `[C]` if fewer than two images are known to have it, if none is known to lack
    it, or if its highest MCC is at most `least`. A threshold with a low MCC would predict the label for many images
    without it; `benchmarks/review.py` compares several values of `least`.
    """
    scores, targets = _check_images(scores, targets)
    known = np.asarray(known, bool)
    mccs = _candidate_mccs(scores, targets, known)
    positives, negatives = (targets & known).sum(axis=0), (~targets & known).sum(axis=0)
    fitted = (positives >= _FEWEST_POSITIVES) & (negatives > 0) & (mccs.max(axis=0) > least)
    return np.where(fitted, np.asarray(CANDIDATES)[mccs.argmax(axis=0)], before)


def fit_mcc_exact(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """For each label, finds the threshold with the highest MCC of all possible thresholds, float64 `[C]`.

    The threshold is the midpoint of two neighbouring distinct scores, so that `>` and `>=` give the same predictions.
    If the floating dtype has no number between these scores, the threshold is the lower score. Then only
    `score > threshold` is correct. The lowest of equally good thresholds is chosen, or 0.5 if no MCC is above 0.
    """
    scores, targets = _check_images(scores, targets)
    thresholds = np.full(scores.shape[1], 0.5)
    for label, (own, hits) in enumerate(zip(scores.T, targets.T, strict=True)):
        order = np.argsort(own)
        ranked, hits = own[order], hits[order]
        true = hits.sum()
        # Element i is the MCC if the images from the i-th lowest score upwards are predicted.
        mcc = _matthews(true - hits.cumsum() + hits, np.arange(len(own), 0, -1), true, len(own))
        mcc[1:][ranked[1:] == ranked[:-1]] = 0  # no threshold separates equal scores
        best = mcc.argmax()
        if mcc[best] > 0:
            lower, upper = ranked[best - 1 : best + 1]
            middle = (float(lower) + float(upper)) / 2
            thresholds[label] = middle if scores.dtype.type(middle) < upper else lower
    return thresholds


def save_thresholds(path: Path, labels: Sequence[str], thresholds: np.ndarray) -> None:
    """Writes `{label: threshold}` to a JSON file. Raises ValueError if `labels` and `thresholds` differ in length."""
    write_json(path, dict(zip(labels, map(float, thresholds), strict=True)))


def load_thresholds(path: str | Path, labels: Sequence[str]) -> np.ndarray:
    """Reads `{label: threshold}` from a JSON file. Returns the thresholds in the order of `labels`, float64 `[C]`.

    Raises:
        InputError: the file is missing or malformed, or has other labels than `labels`. The message lists all problems.
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


def _candidate_mccs(scores: np.ndarray, targets: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Computes the MCC of each candidate for each label from the images where it is known, float64 `[K, C]`."""
    true, total = (targets & known).sum(axis=0), known.sum(axis=0)
    found = []
    for candidate in np.asarray(CANDIDATES, scores.dtype):
        predicted = (scores >= candidate) & known
        found.append(_matthews((predicted & targets).sum(axis=0), predicted.sum(axis=0), true, total))
    return np.array(found)


def _matthews(tp: np.ndarray, predicted: np.ndarray, true: np.ndarray, num_images: int) -> np.ndarray:
    """Computes the MCC from arrays of counts, or 0 if the MCC is undefined. Equals scikit-learn's MCC in every bit.

    All values before `variances` are integers below 2^53, which are exact in float64.
    """
    tp, predicted, true, total = (np.asarray(count, np.float64) for count in (tp, predicted, true, num_images))
    correct = total - true - predicted + 2 * tp
    covariance = correct * total - (true * predicted + (total - true) * (total - predicted))
    variance_predicted = total**2 - (predicted**2 + (total - predicted) ** 2)
    variance_true = total**2 - (true**2 + (total - true) ** 2)
    variances = variance_predicted * variance_true
    return np.divide(covariance, np.sqrt(variances), out=np.zeros_like(covariance), where=variances > 0)
