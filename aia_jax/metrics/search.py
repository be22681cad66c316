"""Exact metrics of image search. Each of Q queries ranks all I images. Some images are relevant to the query.

Among equal scores, the first image of the data ranks first. In the area under the ROC curve, a tie counts as 1/2.
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
    """Computes means over the queries, and the area under the ROC curve over all pairs of a query and an image.

    Args:
        scores: float `[Q, I]`.
        relevant: `[Q, I]`, the grade (above 0) of each relevant image. If relevance is binary, all grades are 1.

    Returns:
        `ndcg_5`, ..., `ndcg_25`: NDCG (Järvelin and Kekäläinen 2002) of the first 5, 10, 15, 20 and 25 images. The
            gain of an image is `2^grade - 1`, and the discount is `log2(1 + rank)`.
        `mrr`: mean reciprocal rank of the first relevant image.
        `r1`, `r5`, `r10`: fraction of queries with a relevant image among the first 1, 5 or 10 images.
        `median_rank`: median rank of the first relevant image. Ranks start at 1.
        `auc`: area under the ROC curve.
        `num_queries`, `num_images`: Q and I.

    Raises:
        InputError: the shapes differ, a score is NaN, or a query has no relevant image.
    """
    relevant = sparse.csr_matrix(relevant)
    if scores.shape != relevant.shape or not len(scores):
        raise InputError(f"scores {scores.shape} and relevance {relevant.shape} must be of one shape [queries, images]")
    if np.isnan(scores).any():
        raise InputError(f"scores of {int(np.isnan(scores).any(axis=1).sum())} queries hold NaN")
    if (np.diff(relevant.indptr) == 0).any():
        raise InputError(f"{int((np.diff(relevant.indptr) == 0).sum())} queries have no relevant image")
    ranked = list(_ranked(scores, relevant))
    firsts = np.array([ranks.min() for ranks, _ in ranked])
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
    """Returns the rank of the first relevant image of each query, int64 `[Q]`. Ranks start at 1."""
    return np.array([ranks.min() for ranks, _ in _ranked(scores, sparse.csr_matrix(relevant))], np.int64)


def area_under_roc(scores: np.ndarray, relevant: sparse.csr_matrix) -> float:
    """Returns the probability that a relevant pair scores higher than an irrelevant pair. A tie counts as 1/2."""
    positive, negative = _split_pairs(scores, relevant)
    negative.sort()
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(below.mean() / (2 * len(negative)))


def roc_curve(scores: np.ndarray, relevant: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Returns the false positive rates `[P]` and true positive rates `[P]` at P points, both from 0 to 1."""
    positive, negative = _split_pairs(scores, relevant)
    thresholds = np.unique(np.concatenate([positive, np.quantile(negative, np.linspace(0, 1, _CURVE_POINTS))]))[::-1]
    thresholds = thresholds[np.unique(np.linspace(0, len(thresholds) - 1, _CURVE_POINTS).round().astype(int))]
    rates = [1 - np.searchsorted(np.sort(pairs), thresholds, "left") / len(pairs) for pairs in (negative, positive)]
    return tuple(np.concatenate([[0.0], rate, [1.0]]) for rate in rates)


def _ranked(scores: np.ndarray, relevant: sparse.csr_matrix) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each query, yields the ranks and the grades of the relevant images. Ranks start at 1."""
    ranks = np.empty(scores.shape[1], np.int64)
    for query, own in enumerate(scores):
        ranks[np.argsort(-own, kind="stable")] = np.arange(1, len(own) + 1)
        columns = slice(*relevant.indptr[query : query + 2])
        yield ranks[relevant.indices[columns]], relevant.data[columns]


def _ndcg(ranks: np.ndarray, grades: np.ndarray, count: int) -> float:
    gains = np.exp2(grades.astype(np.float64)) - 1
    found = (gains / np.log2(1 + ranks))[ranks <= count].sum()
    ideal = np.sort(gains)[::-1][:count]
    return float(found / (ideal / np.log2(np.arange(2, len(ideal) + 2))).sum())


def _split_pairs(scores: np.ndarray, relevant: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores of all relevant query-image pairs, and the scores of all irrelevant pairs."""
    positive = np.zeros(scores.shape, bool)
    positive[relevant.nonzero()] = True
    if positive.all():
        raise InputError("every image is relevant to every query; the ROC curve needs irrelevant images")
    return scores[positive], scores[~positive]
