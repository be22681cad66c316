"""Where an annotator is good and where it errs, label by label: numbers, precision-recall curves, confusions."""

from dataclasses import dataclass

import numpy as np

from aia_jax.metrics.annotation import LabelCounts, average_precision, check_scores


def label_metrics(scores: np.ndarray, targets: np.ndarray, threshold: float | np.ndarray) -> dict[str, np.ndarray]:
    """The numbers of every label, whose means are those of `metrics.annotation_metrics`.

    Args:
        scores, targets, threshold: see `LabelCounts.from_scores`.

    Returns:
        `[C]` each: `support` (images where the label is true), `predicted`, `tp`, `precision`, `recall`, `f1`, `ap`
        (0 to 1; its mean is a hundredth of `map`) and `threshold`.

    Raises:
        InputError: see `LabelCounts.from_scores`.
    """
    counts = LabelCounts.from_scores(scores, targets, threshold)
    return {
        "support": counts.true,
        "predicted": counts.predicted,
        "tp": counts.tp,
        **counts.per_label(),
        "ap": average_precision(scores, targets),
        "threshold": np.broadcast_to(np.asarray(threshold, np.float64), counts.tp.shape),
    }


def precision_recall_curve(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Precision and recall of one label at its positives, images sorted as for `average_precision`.

    The mean of the precisions is the average precision.

    Args:
        scores: `[N]`; those of several labels may follow one another, for a curve pooled over them.
        targets: `[N]`, 0 or 1.

    Returns:
        float64 `[K, 2]`, recall and precision, recall rising; K is 0 without positives.

    Raises:
        InputError: shapes that differ, or a NaN among the scores.
    """
    scores, targets = check_scores(scores[:, None], targets[:, None])
    ranks = np.flatnonzero(targets[np.argsort(-scores[:, 0], kind="stable"), 0]) + 1
    hits = np.arange(1, len(ranks) + 1)
    return np.stack([hits / max(len(ranks), 1), hits / ranks], axis=1)


@dataclass(frozen=True, eq=False)
class Confusions:
    """Images where one label is missed and another falsely given.

    Attributes:
        counts: int `[C, C]`: images where the label of the row is missed and that of the column is a false alarm.
        missed: `[C]` images where the label is missed.
    """

    counts: np.ndarray
    missed: np.ndarray

    @classmethod
    def from_scores(cls, scores: np.ndarray, targets: np.ndarray, threshold: float | np.ndarray) -> "Confusions":
        """Args and errors as of `LabelCounts.from_scores`."""
        scores, targets = check_scores(scores, targets)
        predicted = scores > np.asarray(threshold, scores.dtype)
        missed, false = targets & ~predicted, predicted & ~targets
        # float32 counts exactly to 2^24, and is multiplied in a hundredth of the time of integers.
        counts = missed.T.astype(np.float32) @ false.astype(np.float32)
        return cls(np.rint(counts).astype(np.int64), missed.sum(axis=0))

    def top(self, number: int) -> list[tuple[int, int, int]]:
        """The most frequent pairs (missed label, false label, images), at most `number`, the most frequent first."""
        missed, false = np.nonzero(self.counts)
        counts = self.counts[missed, false]
        order = np.argsort(-counts, kind="stable")[:number]
        return [tuple(map(int, row)) for row in np.stack([missed, false, counts], axis=1)[order]]
