"""Exact metrics of image search: queries that rank images, some of which are right.

Of equal scores the image that stands first in the data ranks first; the ROC curve counts ties by half.
"""

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from aia_jax.utils.errors import InputError

GAINS_AT = (5, 10, 15, 20, 25)
RECALLS = (1, 5, 10)
BETTER_HIGHER = (*(f"ndcg_{count}" for count in GAINS_AT), "mrr", *(f"r{count}" for count in RECALLS), "auc")
_CURVE_POINTS = 512


def search_metrics(scores: np.ndarray, relevant: sparse.csr_matrix) -> dict[str, float | int]:
    """Means over queries, and the area under the curve of all pairs.

    Args:
        scores: float `[Q, I]`.
        relevant: `[Q, I]`, grades above 0 of the right images: 1 where there is only right and wrong.

    Returns:
        `ndcg_5` to `ndcg_25` (gain 2^grade - 1, discount log2 of 1 + rank; Järvelin and Kekäläinen 2002), `mrr`, `r1`,
        `r5`, `r10` (queries with a right image that high), `median_rank` of the first right one, `auc`, in 0..1 but for
        the rank; `num_queries`, `num_images`.

    Raises:
        InputError: shapes that differ, NaN, or a query without a right image.
    """
    relevant = sparse.csr_matrix(relevant)
    if scores.shape != relevant.shape or not len(scores):
        raise InputError(f"scores {scores.shape} and relevance {relevant.shape} must be of one shape [queries, images]")
    if np.isnan(scores).any():
        raise InputError(f"scores of {int(np.isnan(scores).any(axis=1).sum())} queries hold NaN")
    if (np.diff(relevant.indptr) == 0).any():
        raise InputError(f"{int((np.diff(relevant.indptr) == 0).sum())} queries have no right image")
    firsts = first_ranks(scores, relevant)
    ranked = _ranked(scores, relevant)
    gains = np.mean([[_ndcg(ranks, grades, count) for count in GAINS_AT] for ranks, grades in ranked], axis=0)
    return {
        **{f"ndcg_{count}": float(gain) for count, gain in zip(GAINS_AT, gains, strict=True)},
        "mrr": float(np.mean(1 / firsts)),
        **{f"r{count}": float(np.mean(firsts <= count)) for count in RECALLS},
        "median_rank": float(np.median(firsts)),
        "auc": area_under_roc(scores, relevant),
        "num_queries": len(scores),
        "num_images": scores.shape[1],
    }


def first_ranks(scores: np.ndarray, relevant: sparse.csr_matrix) -> np.ndarray:
    """The rank, from 1, of each query's first right image, int64 `[Q]`."""
    return np.array([ranks.min() for ranks, _ in _ranked(scores, sparse.csr_matrix(relevant))], np.int64)


def area_under_roc(scores: np.ndarray, relevant: sparse.csr_matrix) -> float:
    """The chance that of a right and a wrong pair of query and image the right one scores higher; ties count half."""
    right, wrong = _right_and_wrong(scores, relevant)
    wrong.sort()
    below = np.searchsorted(wrong, right, "left") + np.searchsorted(wrong, right, "right")
    return float(below.mean() / (2 * len(wrong)))


def roc_curve(scores: np.ndarray, relevant: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Shares `[P]` of wrong and of right pairs that score at least as high as falling thresholds; from 0 to 1."""
    right, wrong = _right_and_wrong(scores, relevant)
    thresholds = np.unique(np.concatenate([right, np.quantile(wrong, np.linspace(0, 1, _CURVE_POINTS))]))[::-1]
    thresholds = thresholds[np.unique(np.linspace(0, len(thresholds) - 1, _CURVE_POINTS).round().astype(int))]
    shares = [1 - np.searchsorted(np.sort(part), thresholds, "left") / len(part) for part in (wrong, right)]
    return tuple(np.concatenate([[0.0], share, [1.0]]) for share in shares)


def _ranked(scores: np.ndarray, relevant: sparse.csr_matrix) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each query the ranks (from 1) and grades of its right images."""
    places = np.empty(scores.shape[1], np.int64)
    for row, own in enumerate(scores):
        places[np.argsort(-own, kind="stable")] = np.arange(1, len(own) + 1)
        part = slice(*relevant.indptr[row : row + 2])
        yield places[relevant.indices[part]], relevant.data[part]


def _ndcg(ranks: np.ndarray, grades: np.ndarray, count: int) -> float:
    gains = np.exp2(grades.astype(np.float64)) - 1
    found = (gains / np.log2(1 + ranks))[ranks <= count].sum()
    ideal = np.sort(gains)[::-1][:count]
    return float(found / (ideal / np.log2(np.arange(2, len(ideal) + 2))).sum())


def _right_and_wrong(scores: np.ndarray, relevant: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    right = np.zeros(scores.shape, bool)
    right[relevant.nonzero()] = True
    if right.all():
        raise InputError("every image is right for every query; the ROC curve needs wrong ones")
    return scores[right], scores[~right]
