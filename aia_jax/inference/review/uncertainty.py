"""Ranks photos and labels by the uncertainty of a model."""

import numpy as np

_EPS = 1e-6  # smallest distance of a score from 0 and 1


def distances(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Computes the distances of scores `[N, C]` to the thresholds `[C]` of their labels, on the scale of logits.

    A small distance is an uncertain label. The distance of NaN is infinite.
    """
    found = np.abs(_logit(scores) - _logit(thresholds))
    return np.where(np.isnan(found), np.inf, found).astype(np.float32)


def rank_photos(found: np.ndarray) -> np.ndarray:
    """Returns the order of the photos with `distances` `[N, C]`: first those with the most uncertain label."""
    return np.argsort(found.min(axis=1), kind="stable")


def _logit(values: np.ndarray) -> np.ndarray:
    clipped = np.clip(np.asarray(values, np.float64), _EPS, 1 - _EPS)
    return np.log(clipped) - np.log1p(-clipped)
