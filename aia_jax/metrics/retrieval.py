"""Exact ranks and recalls of image-text retrieval in both directions.

Similarities are `[C, I]` for C captions and I images. The captions of an image are consecutive. Without `owners`, each
image has `k = C / I` captions, and caption c belongs to image `c // k`. Among equal values, the last one ranks first,
because the published code reverses an ascending sort.
"""

import numpy as np

from aia_jax.utils.errors import InputError

RECALLS = (1, 5, 10)
_FOLD = 1000  # images in a fold of the COCO 1K test


def caption_ranks(similarity: np.ndarray, owners: np.ndarray | None = None) -> np.ndarray:
    """For each image, returns the best rank of the image's own captions, int64 `[I]`. Ranks start at 0."""
    owners = caption_owners(similarity) if owners is None else owners
    ranks = np.empty(similarity.shape[1], np.int64)
    starts = np.searchsorted(owners, np.arange(len(ranks) + 1))
    for image, scores in enumerate(similarity.T):
        own = scores[starts[image] : starts[image + 1]]
        best = starts[image + 1] - 1 - int(np.argmax(own[::-1]))
        ranks[image] = _rank(scores, best)
    return ranks


def image_ranks(similarity: np.ndarray, owners: np.ndarray | None = None) -> np.ndarray:
    """For each caption, returns the rank of the caption's own image, int64 `[C]`. Ranks start at 0."""
    owners = caption_owners(similarity) if owners is None else owners
    return np.array([_rank(scores, image) for image, scores in zip(owners, similarity, strict=True)])


def caption_owners(similarity: np.ndarray) -> np.ndarray:
    """Returns the image of each caption, `[C]`, if all images have equally many captions. Raises InputError if not."""
    captions, images = similarity.shape if similarity.ndim == 2 else (0, 0)
    if not images or not captions or captions % images:
        problem = "must be [captions, images] with equally many captions for each image"
        raise InputError(f"similarities {similarity.shape} {problem}")
    return np.repeat(np.arange(images), captions // images)


def retrieval_metrics(similarity: np.ndarray, owners: np.ndarray | None = None) -> dict[str, float | int]:
    """Computes recalls and ranks in both directions: from images to captions and from captions to images.

    Args:
        similarity: `[C, I]`.
        owners: image of each caption, ascending int `[C]`. Each image has captions. None: each has C / I captions.

    Returns:
        `i2t_r1`, `i2t_r5`, `i2t_r10`: recalls from images to captions in per cent.
        `i2t_median`, `i2t_mean`: median and mean of the ranks of `caption_ranks`. Here, ranks start at 1.
        `t2i_r1`, ..., `t2i_mean`: the same five metrics from captions to images.
        `rsum`: sum of the six recalls.
        `num_images`, `num_captions`: I and C.
        `1k_i2t_r1`, ..., `1k_rsum`: means over folds of 1,000 images, if I is a multiple of 1,000 and above 1,000.

    Raises:
        InputError: the shape is wrong, or a similarity is NaN.
    """
    similarity = np.asarray(similarity)
    owners = caption_owners(similarity) if owners is None else owners
    captions, images = similarity.shape
    if np.isnan(similarity).any():
        raise InputError(f"similarities of {int(np.isnan(similarity).any(axis=1).sum())} captions hold NaN")
    metrics = _recalls(similarity, owners)
    if images > _FOLD and images % _FOLD == 0:
        rows = (owners // _FOLD == k for k in range(images // _FOLD))
        parts = ((similarity[own, _FOLD * k : _FOLD * (k + 1)], owners[own] - _FOLD * k) for k, own in enumerate(rows))
        folds = [_recalls(*part) for part in parts]
        metrics |= {f"1k_{name}": float(np.mean([fold[name] for fold in folds])) for name in folds[0]}
    return {**metrics, "num_images": images, "num_captions": captions}


def _rank(scores: np.ndarray, index: int) -> int:
    own = scores[index]
    return int(np.count_nonzero(scores > own) + np.count_nonzero(scores[index + 1 :] == own))


def _recalls(similarity: np.ndarray, owners: np.ndarray) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for direction, ranks in (("i2t", caption_ranks(similarity, owners)), ("t2i", image_ranks(similarity, owners))):
        metrics |= {f"{direction}_r{k}": 100 * float(np.mean(ranks < k)) for k in RECALLS}
        metrics[f"{direction}_median"] = float(np.floor(np.median(ranks)) + 1)
        metrics[f"{direction}_mean"] = float(np.mean(ranks) + 1)
    metrics["rsum"] = sum(metrics[f"{direction}_r{k}"] for direction in ("i2t", "t2i") for k in RECALLS)
    return metrics
