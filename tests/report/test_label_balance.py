import numpy as np

from aia_jax.report.label_balance import balance_report, balance_summary


def targets_of(counts):
    """Multi-hot targets: label c has `counts[c]` photos, and one more photo has no labels."""
    targets = np.zeros((max(counts) + 1, len(counts)), np.uint8)
    for label, count in enumerate(counts):
        targets[:count, label] = 1
    return targets


def test_the_report_has_counts_bars_and_warnings():
    report = balance_report(["sea", "sky", "yak"], targets_of([12, 60, 3]), targets_of([0, 20, 1]))
    assert report.splitlines() == [
        "82 photos, 61 for training, 21 for test; 3 labels, 1.17 per photo; 2 photos without labels",
        "     training    test",
        f"sky        60      20  {'#' * 30}",
        f"sea        12       0  {'#' * 6}",
        f"yak         3       1  {'#' * 2}",
        "imbalance: sky has 60 training photos, 20 times as many as yak",
        "too few: 1 of 3 labels has fewer than 10 training photos: yak (3)",
        "not measured: 1 of 3 labels has no test photo: sea",
    ]


def test_balanced_labels_give_no_warning():
    summary = balance_summary(["a", "b"], targets_of([20, 10]), targets_of([5, 5]), "validation")
    assert summary == "27 photos, 21 for training, 6 for validation; 2 labels, 1.48 per photo; 2 photos without labels"


def test_a_long_table_has_only_both_ends():
    names = [f"label{number:02}" for number in range(30)]
    report = balance_report(names, targets_of(range(30, 0, -1)), targets_of([1] * 30))
    shown = [line.split()[0] for line in report.splitlines()[2:23]]
    assert shown == [*names[:10], "...", *names[-10:]]
    assert "... 10 more labels" in report
    few = next(line for line in report.splitlines() if line.startswith("too few"))
    assert few.startswith("too few: 9 of 30 labels have fewer than 10 training photos: label29 (1), label28 (2)")


def test_labels_without_training_photos_and_splits_without_photos():
    one = balance_report(["a"], targets_of([1]), np.zeros((0, 1)))
    assert "1 label, 0.50 per photo; 1 photo without labels" in one
    assert "too few: 1 of 1 label has fewer than 10 training photos: a (1)" in one
    report = balance_report(["a", "b"], targets_of([30, 0]), np.zeros((0, 2)))
    assert "imbalance: a has 30 training photos, and none are of b" in report
    assert "not measured" not in report
    alone = balance_report(["a", "b"], np.zeros((0, 2)), targets_of([3, 0]))
    assert "training photos" not in alone
    assert "not measured: 1 of 2 labels has no test photo: b" in alone
