"""Images parted in two so that each label is parted alike: iterative stratification.

Sechidis, Tsoumakas and Vlahavas, On the stratification of multi-label data, ECML PKDD 2011, algorithm 1, for two
subsets; here no label is left without images in the first.
"""

import numpy as np


def stratified_split(targets: np.ndarray, fraction: float, seed: int, *, in_both: bool) -> np.ndarray:
    """Draws the second part, about `fraction` of the images.

    Args:
        targets: multi-hot `[N, C]`, N at least 2.
        fraction: of the second part, above 0 and below 1.
        seed: of what is drawn where nothing else decides.
        in_both: whether a label of two or more images is wanted in both parts, however small its share; where the
            images' other labels let it be, it is. Many rare labels make the second part larger than asked for.

    Returns:
        bool `[N]`, which images are in the second part; neither part is empty, and the first has all labels.
    """
    targets = targets > 0
    counts = targets.sum(axis=0)
    share = np.clip(fraction * counts, 1, counts - 1) if in_both else fraction * counts
    second = np.where(counts > 1, share, 0)
    wanted = np.stack([counts - second, second])  # [2, C] of each label
    wanted_images = len(targets) * np.array([1 - fraction, fraction])
    part = np.full(len(targets), -1)
    order = np.random.default_rng(seed).permutation(len(targets))
    remaining = counts.copy()
    while remaining.any():
        label = np.flatnonzero(remaining == remaining[remaining > 0].min())[0]
        for row in order[targets[order, label] & (part[order] < 0)]:
            _place(row, wanted[:, label], part, targets, wanted, wanted_images)
            remaining -= targets[row]
    for row in order[part[order] < 0]:  # without labels
        _place(row, wanted_images, part, targets, wanted, wanted_images)
    in_second = part == 1
    _complete(in_second, targets, counts, in_both)
    return in_second


def _place(
    row: int,
    wanted_here: np.ndarray,
    part: np.ndarray,
    targets: np.ndarray,
    wanted: np.ndarray,
    wanted_images: np.ndarray,
) -> None:
    """Puts an image where its label is wanted most, of equals where images are wanted most."""
    difference = wanted_here[1] - wanted_here[0] or wanted_images[1] - wanted_images[0]
    part[row] = int(difference > 0)
    wanted[part[row], targets[row]] -= 1
    wanted_images[part[row]] -= 1


def _complete(in_second: np.ndarray, targets: np.ndarray, counts: np.ndarray, in_both: bool) -> None:
    """Moves images of labels that a part lacks, at first where no other label is lost by it, and into an empty part."""
    there = np.stack([targets[~in_second].sum(axis=0), targets[in_second].sum(axis=0)])
    for label in np.flatnonzero((counts > 1) & (there[1] == 0)) if in_both else ():
        for row in np.flatnonzero(targets[:, label] & ~in_second):
            if (there[0, targets[row]] > 1).all():
                _move(row, 1, in_second, targets, there)
                break
    if not in_second.any():
        _move(_least_lost(np.arange(len(targets)), 0, targets, there), 1, in_second, targets, there)
    for label in range(len(counts)):
        if counts[label] and not there[0, label] and in_second.sum() > 1:
            rows = np.flatnonzero(targets[:, label])
            _move(_least_lost(rows, 1, targets, there), 0, in_second, targets, there)


def _least_lost(rows: np.ndarray, part: int, targets: np.ndarray, there: np.ndarray) -> int:
    """Of `rows`, all of them in `part`, the one whose labels have the most others there."""
    lost = (targets[rows] & (there[part] == 1)).sum(axis=1)
    return int(rows[lost.argmin()])


def _move(row: int, to: int, in_second: np.ndarray, targets: np.ndarray, there: np.ndarray) -> None:
    in_second[row] = bool(to)
    there[to, targets[row]] += 1
    there[1 - to, targets[row]] -= 1
