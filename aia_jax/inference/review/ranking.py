"""Ranks photos and labels by how much the answer of a person is expected to improve the model.

Pairs of a photo and a label whose score is nearest to the threshold are mostly wrong labels, which teach little. A
confirmed label of which few photos are known teaches most. `benchmarks/review.py` compares both orders.
"""

import numpy as np

_EPS = 1e-6  # smallest distance of a score from 0 and 1
_MEAN_OF = 5  # labels of a photo whose gains count for its rank


def expected_gains(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Computes the expected gain of asking about each label of each photo: `score / sqrt(1 + count)`, `[N, C]`.

    Args:
        scores: float `[N, C]`, 0 to 1. NaN: the model does not know the label. The gain is then -infinity.
        counts: number of photos that are known to have each label, `[C]`.
    """
    gains = scores / np.sqrt(1 + np.asarray(counts, np.float32))
    return np.where(np.isnan(gains), -np.inf, gains)


def uncertainties(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Computes the negative distances of scores `[N, C]` to the thresholds `[C]` of their labels, as logits.

    NaN: the model does not know the label. The uncertainty is then -infinity.
    """
    distances = np.abs(_logit(scores) - _logit(thresholds))
    return np.where(np.isnan(distances), -np.inf, -distances)


def rank_photos(gains: np.ndarray) -> np.ndarray:
    """Returns the order of the photos with `gains` `[N, C]`: by the mean of the five largest gains of each photo.

    Photos with fewer finite gains come later. Photos without any come last.
    """
    largest = -np.sort(-gains, axis=1)[:, :_MEAN_OF]
    means = np.where(np.isfinite(largest), largest, 0).sum(axis=1) / largest.shape[1]
    return np.argsort(-np.where(np.isfinite(largest[:, 0]), means, -np.inf), kind="stable")


def _logit(values: np.ndarray) -> np.ndarray:
    clipped = np.clip(np.asarray(values, np.float64), _EPS, 1 - _EPS)
    return np.log(clipped) - np.log1p(-clipped)
