"""Exact ranks and recalls of image-text retrieval, both ways."""

import numpy as np

from aia_jax.utils.errors import InputError

CAPTIONS_PER_IMAGE = 5
RECALLS = (1, 5, 10)
_FOLD = 1000  # images of a fold of COCO's 1K test


def caption_ranks(similarity: np.ndarray) -> np.ndarray:
    """For each image the rank of the best of its captions among all, 0 the first; int64 `[I]`.

    Of equal scores the later caption stands first, as in the published code's reversed sort.

    Args:
        similarity: `[C, I]`, caption c being one of image c // 5.
    """
    ranks = np.empty(similarity.shape[1], np.int64)
    for image, scores in enumerate(similarity.T):
        start = CAPTIONS_PER_IMAGE * image
        own = scores[start : start + CAPTIONS_PER_IMAGE]
        best = start + CAPTIONS_PER_IMAGE - 1 - int(np.argmax(own[::-1]))
        ranks[image] = _rank(scores, best)
    return ranks


def image_ranks(similarity: np.ndarray) -> np.ndarray:
    """For each caption the rank of its image among all, 0 the first; int64 `[C]`. As `caption_ranks` otherwise."""
    return np.array([_rank(scores, caption // CAPTIONS_PER_IMAGE) for caption, scores in enumerate(similarity)])


def retrieval_metrics(similarity: np.ndarray) -> dict[str, float | int]:
    """Recalls in per cent, median and mean rank (1 the best) both ways, and the sum of recalls.

    Args:
        similarity: `[C, I]`, caption c being one of image c // 5.

    Returns:
        `i2t_r1, i2t_r5, i2t_r10, i2t_median, i2t_mean`, the same with `t2i_`, `rsum`, `num_images`, `num_captions`.
        Where there are several whole thousands of images, also the means over each thousand, as `1k_i2t_r1`.

    Raises:
        InputError: another shape, or NaN.
    """
    similarity = np.asarray(similarity)
    captions, images = similarity.shape if similarity.ndim == 2 else (0, 0)
    if not images or captions != CAPTIONS_PER_IMAGE * images:
        raise InputError(f"similarities {similarity.shape} must be [captions, images] with five captions an image")
    if np.isnan(similarity).any():
        raise InputError(f"similarities of {int(np.isnan(similarity).any(axis=1).sum())} captions hold NaN")
    metrics = _of_fold(similarity)
    if images > _FOLD and images % _FOLD == 0:
        folds = [_of_fold(_fold(similarity, start)) for start in range(0, images, _FOLD)]
        metrics |= {f"1k_{name}": float(np.mean([fold[name] for fold in folds])) for name in folds[0]}
    return {**metrics, "num_images": images, "num_captions": captions}


def _rank(scores: np.ndarray, place: int) -> int:
    own = scores[place]
    return int(np.count_nonzero(scores > own) + np.count_nonzero(scores[place + 1 :] == own))


def _fold(similarity: np.ndarray, start: int) -> np.ndarray:
    captions = slice(CAPTIONS_PER_IMAGE * start, CAPTIONS_PER_IMAGE * (start + _FOLD))
    return similarity[captions, start : start + _FOLD]


def _of_fold(similarity: np.ndarray) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for way, ranks in (("i2t", caption_ranks(similarity)), ("t2i", image_ranks(similarity))):
        metrics |= {f"{way}_r{k}": 100 * float(np.mean(ranks < k)) for k in RECALLS}
        metrics |= {f"{way}_median": float(np.floor(np.median(ranks)) + 1), f"{way}_mean": float(np.mean(ranks) + 1)}
    metrics["rsum"] = sum(metrics[f"{way}_r{k}"] for way in ("i2t", "t2i") for k in RECALLS)
    return metrics
