"""How many photos each label has, as text: who trains on own photos should see that before."""

from collections.abc import Sequence

import numpy as np

from aia_jax.utils.messages import format_count

FEW = 10  # training photos, with fewer of which a label is hardly learned

_SHOWN = 10  # of the most and of the least frequent labels
_NAMED = 20
_BAR = 30
_WIDEST = 40


def balance_report(labels: Sequence[str], train: np.ndarray, test: np.ndarray) -> str:
    """Counts, the most and least frequent labels as bars, and what is out of balance.

    Args:
        labels: C names, as a terminal may print them.
        train, test: multi-hot `[N, C]` each; N may be 0.
    """
    lines = [_counts(labels, {"training": train, "test": test})]
    counts, others = (train > 0).sum(axis=0), (test > 0).sum(axis=0)
    order = np.lexsort((np.arange(len(labels)), -(counts + others)))
    width = min(max(map(len, labels)), _WIDEST)
    lines.append(f"{'':<{width}}{'training':>10}{'test':>8}")
    shown = list(order) if len(order) <= 2 * _SHOWN else [*order[:_SHOWN], None, *order[-_SHOWN:]]
    for label in shown:
        if label is None:
            lines.append(f"... {format_count(len(order) - 2 * _SHOWN, 'more label')}")
            continue
        bar = "#" * int(np.ceil(_BAR * counts[label] / max(counts.max(), 1)))
        lines.append(f"{labels[label][:width]:<{width}}{counts[label]:>10,}{others[label]:>8,}  {bar}".rstrip())
    return "\n".join([*lines, *balance_warnings(labels, train, test, "test")])


def balance_summary(labels: Sequence[str], train: np.ndarray, other: np.ndarray, name: str) -> str:
    """The counts and what is out of balance, for the time before training.

    Args:
        labels, train: as of `balance_report`.
        other: multi-hot `[M, C]`, of the part called `name` that chooses the epoch.
    """
    return "\n".join([_counts(labels, {"training": train, name: other}), *balance_warnings(labels, train, other, name)])


def balance_warnings(labels: Sequence[str], train: np.ndarray, other: np.ndarray, name: str) -> list[str]:
    """A line for each thing that training, or the part called `name`, will suffer from."""
    counts, total = (train > 0).sum(axis=0), format_count(len(labels), "label")
    lines = []
    if len(train):
        most, least = counts.argmax(), counts.argmin()
        ratio = f"{counts[most] / counts[least]:,.0f} times as many as" if counts[least] else "and there is none of"
        if counts[most] >= 10 * max(counts[least], 1):
            lines.append(f"imbalance: {labels[most]} has {counts[most]:,} training photos, {ratio} {labels[least]}")
        few = np.flatnonzero(counts < FEW)
        few = few[np.argsort(counts[few], kind="stable")]
        if len(few):
            named = _named([f"{labels[label]} ({counts[label]})" for label in few])
            some = f"{len(few):,} of {total} {_have(len(few))}"
            lines.append(f"too few: {some} fewer than {FEW} training photos: {named}")
    unseen = np.flatnonzero(~(other > 0).any(axis=0)) if len(other) else []
    if len(unseen):
        named = _named([labels[label] for label in unseen])
        lines.append(f"not measured: {len(unseen):,} of {total} {_have(len(unseen))} no {name} photo: {named}")
    return lines


def _counts(labels: Sequence[str], parts: dict[str, np.ndarray]) -> str:
    targets = np.concatenate([part > 0 for part in parts.values()])
    sizes = ", ".join(f"{len(part):,} for {name}" for name, part in parts.items())
    bare = int((~targets.any(axis=1)).sum())
    return (
        f"{format_count(len(targets), 'photo')}, {sizes}; {format_count(len(labels), 'label')}, "
        f"{targets.sum() / len(targets):.2f} a photo; {format_count(bare, 'photo')} without labels"
    )


def _have(number: int) -> str:
    return "has" if number == 1 else "have"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
