"""Reports as text how many photos each label has. Warns of imbalance and of labels with few photos."""

from collections.abc import Sequence

import numpy as np

from aia_jax.utils.messages import format_count

FEW = 10  # a label with fewer training photos gets a warning, because models predict it badly

_SHOWN, _LISTED = 10, 20  # number of labels at each end of the table, and in a warning
_BAR, _WIDEST = 30, 40  # maximal number of characters of a bar, and of a label


def balance_report(labels: Sequence[str], train: np.ndarray, test: np.ndarray) -> str:
    """Returns `balance_summary` for the test split, with a table of the most and the least frequent labels."""
    counts, others = (train > 0).sum(axis=0), (test > 0).sum(axis=0)
    width = min(max(map(len, labels)), _WIDEST)
    rows = []
    for label in np.lexsort((np.arange(len(labels)), -(counts + others))):
        bar = "#" * int(np.ceil(_BAR * counts[label] / max(counts.max(), 1)))
        rows.append(f"{labels[label][:width]:<{width}}{counts[label]:>10,}{others[label]:>8,}  {bar}".rstrip())
    if len(rows) > 2 * _SHOWN:
        rows[_SHOWN:-_SHOWN] = [f"... {format_count(len(rows) - 2 * _SHOWN, 'more label')}"]
    totals, *warnings = balance_summary(labels, train, test, "test").split("\n")
    return "\n".join([totals, f"{'':<{width}}{'training':>10}{'test':>8}", *rows, *warnings])


def balance_summary(labels: Sequence[str], train: np.ndarray, other: np.ndarray, name: str) -> str:
    """Returns totals, then warnings: imbalance, labels with few training photos, labels without a photo in `other`.

    Args:
        labels: printable names of the C labels.
        train: multi-hot labels `[N, C]` of N training photos. N may be 0.
        other: multi-hot labels `[M, C]` of M photos in another split.
        name: name of the other split.
    """
    counts, targets = (train > 0).sum(axis=0), np.concatenate([train > 0, other > 0])
    lines = [
        f"{format_count(len(targets), 'photo')}, {len(train):,} for training, {len(other):,} for {name}; "
        f"{format_count(len(labels), 'label')}, {targets.sum() / len(targets):.2f} per photo; "
        f"{format_count(int((~targets.any(axis=1)).sum()), 'photo')} without labels"
    ]
    if len(train):
        most, least = counts.argmax(), counts.argmin()
        if counts[most] >= 10 * max(counts[least], 1):
            ratio = f"{counts[most] / counts[least]:,.0f} times as many as" if counts[least] else "and none are of"
            lines.append(f"imbalance: {labels[most]} has {counts[most]:,} training photos, {ratio} {labels[least]}")
        few = np.flatnonzero(counts < FEW)
        few = few[np.argsort(counts[few], kind="stable")]
        names = [f"{labels[label]} ({counts[label]})" for label in few]
        lines += _warning("too few", names, len(labels), f"fewer than {FEW} training photos")
    unseen = np.flatnonzero(~(other > 0).any(axis=0)) if len(other) else []
    lines += _warning("not measured", [labels[label] for label in unseen], len(labels), f"no {name} photo")
    return "\n".join(lines)


def _warning(kind: str, names: Sequence[str], total: int, what: str) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    have = "has" if len(names) == 1 else "have"
    listed = ", ".join(names[:_LISTED])
    return [f"{kind}: {len(names):,} of {format_count(total, 'label')} {have} {what}: {listed}{more}"]
