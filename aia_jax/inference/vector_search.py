"""Finds the photos whose vectors are most similar to the vector of a query, exactly, or fast with vectors of int8.

The score of a photo is the cosine of both vectors, plus the agreement: the sum of `values[class] * probability` over
the photo's classes. The query determines `values`.
"""

from collections.abc import Sequence

import numpy as np

from aia_jax.inference.searcher import Part, SearchResult, gather
from aia_jax.utils.half_floats import widen
from aia_jax.utils.packages import import_with_extra

SMALL = "vectors_int8"  # name of the array of `small_vectors` in an index
FAST_SLICE = 65_536  # rows of a slice for `fast_search`: each slice is one call of usearch
_CANDIDATES = 200  # photos that a fast search scores exactly, at least


def small_vectors(vectors: np.ndarray) -> np.ndarray:
    """Rounds vectors `[m, D]` to int8. The largest value of each vector becomes 127 or -127, so lengths change."""
    wide = vectors.astype(np.float32)
    return np.rint(wide * (127 / np.maximum(np.abs(wide).max(axis=1, keepdims=True), 1e-12))).astype(np.int8)


def check_fast_search() -> None:
    """Raises InputError if the package that `fast_search` needs is not installed."""
    import_with_extra("usearch.index", "a fast search", "fast")


def exact_search(parts: Sequence[Part], vector: np.ndarray, values: np.ndarray | None, count: int) -> SearchResult:
    """Finds the best photos by the scores of all photos.

    Args:
        parts: see `PhotoIndex.parts`. The arrays are `vectors` float16 `[m, D]` of length 1 and, with `values`,
            `classes` uint16 `[m, K]` and `probabilities` float16 `[m, K]`.
        vector: float32 `[D]`, the vector of the query, of length 1.
        values: float32, values of all classes; None: no agreement.
        count: number of photos to return.
    """
    scores = np.concatenate([_scores(arrays, vector, values)[own] for arrays, own in parts])
    best = _largest(scores, count)
    return SearchResult(rows=best, scores=scores[best])


def fast_search(parts: Sequence[Part], vector: np.ndarray, values: np.ndarray | None, count: int) -> SearchResult:
    """Finds the best photos like `exact_search`, but reads the int8 vectors of parts that have them.

    The cosines of int8 vectors select 200 photos, or four times `count`. These are scored exactly. The agreement is
    exact in both steps, so it changes nothing about which photos are missed.
    """
    usearch = import_with_extra("usearch.index", "a fast search", "fast")
    num_candidates, query = max(_CANDIDATES, 4 * count), small_vectors(vector[None])[0]
    rows, scores, start = [], [], 0
    for arrays, own in parts:
        if SMALL in arrays:
            small = arrays[SMALL] if len(own) == len(arrays[SMALL]) else arrays[SMALL][own]
            number = len(own) if values is not None else min(num_candidates, len(own))
            found = usearch.search(small, query, number, usearch.MetricKind.Cos, exact=True)
            near = found.keys.astype(np.int64)
            near_scores = 1 - found.distances
            if values is not None:
                near_scores += _agreement(arrays, values)[own[near]]
        else:
            near, near_scores = np.arange(len(own)), _scores(arrays, vector, values)[own]
        rows.append(start + near)
        scores.append(near_scores)
        start += len(own)
    candidates = np.sort(np.concatenate(rows)[_largest(np.concatenate(scores), num_candidates)])
    names = ("vectors", "classes", "probabilities") if values is not None else ("vectors",)
    exact = _scores(gather(parts, candidates, names), vector, values)
    best = _largest(exact, count)
    return SearchResult(rows=candidates[best], scores=exact[best])


def _scores(arrays: dict[str, np.ndarray], vector: np.ndarray, values: np.ndarray | None) -> np.ndarray:
    # Not `@`: the threads that OpenBLAS starts for it wait for each other on a busy machine.
    scores = np.vecdot(widen(arrays["vectors"]), vector)
    return scores if values is None else scores + _agreement(arrays, values)


def _agreement(arrays: dict[str, np.ndarray], values: np.ndarray) -> np.ndarray:
    return (values.take(arrays["classes"]) * widen(arrays["probabilities"])).sum(axis=1)


def _largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Returns the indices of the `count` largest scores, the largest first."""
    count = min(count, len(scores))
    best = np.argpartition(-scores, count - 1)[:count]
    return best[np.argsort(-scores[best], kind="stable")]
