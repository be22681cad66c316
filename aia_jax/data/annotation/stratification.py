"""Iterative stratification: splits multi-label images in two so that each label is split in the same proportion.

Sechidis, Tsoumakas and Vlahavas, On the stratification of multi-label data, ECML PKDD 2011, algorithm 1, for two
subsets. Here the first subset has at least one image of each label.
"""

import numpy as np


def stratified_split(targets: np.ndarray, fraction: float, seed: int, *, in_both: bool) -> np.ndarray:
    """Selects the second part, about `fraction` of the images.

    Args:
        targets: multi-hot `[N, C]`, N at least 2.
        fraction: size of the second part, above 0 and below 1.
        seed: seed of the random order, which breaks ties.
        in_both: whether each label of two or more images should be in both parts, even if its fraction is less than one
            image. This holds unless other labels of the images prevent it. With many rare labels the second part is
            larger than `fraction`.

    Returns:
        bool `[N]`, True for images in the second part. Neither part is empty, and the first has all labels.
    """
    targets = targets > 0
    counts = targets.sum(axis=0)
    wanted_second = np.clip(fraction * counts, 1, counts - 1) if in_both else fraction * counts
    second = np.where(counts > 1, wanted_second, 0)
    wanted = np.stack([counts - second, second])  # [2, C] images per label
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
    _repair(in_second, targets, counts, in_both)
    return in_second


def _place(
    row: int,
    wanted_here: np.ndarray,
    part: np.ndarray,
    targets: np.ndarray,
    wanted: np.ndarray,
    wanted_images: np.ndarray,
) -> None:
    """Puts an image into the part that needs its label most; for a tie, the part that needs images most."""
    difference = wanted_here[1] - wanted_here[0] or wanted_images[1] - wanted_images[0]
    part[row] = int(difference > 0)
    wanted[part[row], targets[row]] -= 1
    wanted_images[part[row]] -= 1


def _repair(in_second: np.ndarray, targets: np.ndarray, counts: np.ndarray, in_both: bool) -> None:
    """Moves images into a part that is empty or lacks a label, preferably without removing a label from the other."""
    present = np.stack([targets[~in_second].sum(axis=0), targets[in_second].sum(axis=0)])  # [2, C] images per label

    def move(row: int, to: int) -> None:
        in_second[row] = bool(to)
        present[to, targets[row]] += 1
        present[1 - to, targets[row]] -= 1

    def least_needed(rows: np.ndarray, part: int) -> int:
        """The row whose removal from `part` removes the fewest labels."""
        return int(rows[(targets[rows] & (present[part] == 1)).sum(axis=1).argmin()])

    for label in np.flatnonzero((counts > 1) & (present[1] == 0)) if in_both else ():
        for row in np.flatnonzero(targets[:, label] & ~in_second):
            if (present[0, targets[row]] > 1).all():
                move(row, 1)
                break
    if not in_second.any():
        move(least_needed(np.arange(len(targets)), 0), 1)
    for label in range(len(counts)):
        if counts[label] and not present[0, label] and in_second.sum() > 1:
            move(least_needed(np.flatnonzero(targets[:, label]), 1), 0)
