"""Numbers of labels: their means are those reported, curves scikit-learn's, confusions those counted one by one."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.metrics import precision_recall_curve as reference_curve

from aia_jax.metrics.annotation import annotation_metrics
from aia_jax.metrics.label_metrics import Confusions, label_metrics, precision_recall_curve
from aia_jax.utils.errors import InputError

N, C = 200, 12


@pytest.fixture
def scored():
    """Scores and targets; the last label is never true, the one before never predicted."""
    rng = np.random.default_rng(0)
    targets = rng.random((N, C)) < np.linspace(0.5, 0.05, C)
    targets[:, -1] = False
    scores = (0.4 * targets + 0.6 * rng.random((N, C))).astype(np.float32)
    scores[:, -2] *= 0.1
    return scores, targets.astype(np.uint8)


@pytest.mark.parametrize("threshold", [0.5, np.linspace(0.2, 0.7, C)])
def test_means_are_the_reported_numbers(scored, threshold):
    found, reported = label_metrics(*scored, threshold), annotation_metrics(*scored, threshold)
    assert np.mean(found["precision"]) == reported["precision"]
    assert np.mean(found["recall"]) == reported["recall"]
    assert 100 * np.mean(found["ap"]) == reported["map"]
    assert np.count_nonzero(found["tp"]) == reported["n_plus"]
    assert found["tp"].sum() / found["predicted"].sum() == pytest.approx(reported["overall_precision"], abs=1e-6)
    assert found["threshold"].tolist() == np.broadcast_to(threshold, C).tolist()
    harmonic = 2 * found["precision"] * found["recall"] / (found["precision"] + found["recall"] + 1e-7)
    np.testing.assert_array_equal(found["f1"], harmonic)
    assert found["support"].tolist() == scored[1].sum(0).tolist()


def test_average_precision_and_curves_are_those_of_scikit_learn(scored):
    scores, targets = scored
    found = label_metrics(scores, targets, 0.5)
    for label in range(C - 1):
        curve = precision_recall_curve(scores[:, label], targets[:, label])
        assert found["ap"][label] == pytest.approx(
            average_precision_score(targets[:, label], scores[:, label]), abs=1e-7
        )
        assert curve[:, 1].mean() == pytest.approx(found["ap"][label], abs=1e-7)
        precision, recall, _ = reference_curve(targets[:, label], scores[:, label])
        known = {(round(float(r), 9), round(float(p), 9)) for r, p in zip(recall, precision, strict=True)}
        assert {(round(float(r), 9), round(float(p), 9)) for r, p in curve} <= known
        assert len(curve) == targets[:, label].sum()
        assert (np.diff(curve[:, 0]) > 0).all()
    assert precision_recall_curve(scores[:, -1], targets[:, -1]).shape == (0, 2)


def test_confusions_are_counted_photo_by_photo(scored):
    scores, targets = scored
    found = Confusions.from_scores(scores, targets, 0.5)
    expected = np.zeros((C, C), int)
    for row, true in zip(scores > 0.5, targets > 0, strict=True):
        for missed in np.flatnonzero(true & ~row):
            expected[missed, row & ~true] += 1
    np.testing.assert_array_equal(found.counts, expected)
    np.testing.assert_array_equal(found.missed, ((targets > 0) & (scores <= 0.5)).sum(0))
    top = found.top(5)
    assert [count for *_, count in top] == np.sort(expected.ravel())[::-1][:5].tolist()
    assert all(expected[missed, false] == count for missed, false, count in top)
    assert Confusions.from_scores(targets.astype(np.float32), targets, 0.5).top(5) == []


def test_scores_that_cannot_be_used():
    for judge in (label_metrics, Confusions.from_scores):
        with pytest.raises(InputError, match="must both be"):
            judge(np.zeros((3, 2)), np.zeros((3, 3)), 0.5)
