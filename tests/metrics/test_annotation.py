"""Annotation metrics compared with hand computations, scikit-learn and the reference implementation."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from aia_jax.metrics.annotation import (
    annotation_metrics,
    average_precision,
    confusion_counts,
    label_metrics,
    precision_recall_curve,
)
from aia_jax.utils.errors import InputError

# Four images, three labels; the third is never true. Predictions above 0.5: label 0 in images 0, 1, 3; label 1 in
# image 2; label 2 in image 0. The score 0.5 of image 3 for label 1 is not above the threshold.
SCORES = np.asarray([[0.9, 0.1, 0.7], [0.8, 0.4, 0.2], [0.3, 0.6, 0.1], [0.6, 0.5, 0.3]])
TARGETS = np.asarray([[1, 0, 0], [0, 0, 0], [1, 1, 0], [1, 1, 0]], np.uint8)
N, C = 200, 12


@pytest.fixture
def scored():
    """Scores and targets; the last label is never true. The label before it is never predicted."""
    rng = np.random.default_rng(0)
    targets = rng.random((N, C)) < np.linspace(0.5, 0.05, C)
    targets[:, -1] = False
    scores = (0.4 * targets + 0.6 * rng.random((N, C))).astype(np.float32)
    scores[:, -2] *= 0.1
    return scores, targets.astype(np.uint8)


def test_a_small_case_by_hand():
    """P = (2/3 + 1 + 0) / 3, R = (2/3 + 1/2 + 0) / 3; overall 3 true positives of 5 predicted and 5 true.

    AP of label 0, sorted 1 0 1 1: (1 + 2/3 + 3/4) / 3; of label 1, sorted 1 1 ..: 1; of label 2, no positive: 0.
    """
    labels = label_metrics(SCORES, TARGETS, 0.5)
    counts = [labels["tp"], labels["predicted"], labels["support"]]
    np.testing.assert_array_equal(counts, [[2, 1, 0], [3, 1, 1], [3, 2, 0]])
    f1 = 2 * 5 / 9 * 7 / 18 / (5 / 9 + 7 / 18)
    expected = {"precision": 5 / 9, "recall": 7 / 18, "f1": f1, "n_plus": 2, "map": 100 * (29 / 36 + 1) / 3}
    expected |= dict.fromkeys(["overall_precision", "overall_recall", "overall_f1"], 0.6)
    expected |= {"num_images": 4, "num_labels": 3, "threshold": 0.5}
    assert annotation_metrics(SCORES, TARGETS) == pytest.approx(expected, rel=3e-7)


def test_the_epsilons_are_those_of_the_reference():
    one = np.ones((1, 1))
    metrics = annotation_metrics(one, one)
    assert metrics["precision"] == 1 / (1 + 1e-7)
    assert metrics["f1"] == 2 * metrics["precision"] ** 2 / (2 * metrics["precision"] + 1e-7)
    assert average_precision(one, one)[0] == 1 / (1 + 1e-8)


def reference_average_precision(scores, targets):
    """The reference's formula for one label, with a stable sort in place of NumPy's default."""
    order = scores.argsort(kind="stable")[::-1]
    hit = targets[order] == 1
    precision = np.cumsum(hit) / np.cumsum(np.ones(len(scores)))
    return precision[hit].sum() / (hit.sum() + 1e-8)


def test_the_last_of_equal_scores_ranks_first():
    """Constant scores: from the last image, the positives rank 2 and 5, hence (1/2 + 2/5) / 2, and 1, 2; 3."""
    scores = np.full((5, 3), 0.5, np.float32)
    targets = np.asarray([[1, 0, 0], [0, 0, 0], [0, 0, 1], [1, 1, 0], [0, 1, 0]])
    np.testing.assert_allclose(average_precision(scores, targets), [0.45, 1, 1 / 3], rtol=1e-7)
    np.testing.assert_allclose(precision_recall_curve(scores[:, 0], targets[:, 0]), [[0.5, 0.5], [1, 0.4]])


@pytest.mark.parametrize("levels", [1, 3, 20])
def test_average_precision_of_tied_scores_is_that_of_the_reference(scored, levels):
    scores, targets = np.ceil(scored[0] * levels), scored[1]
    expected = [reference_average_precision(*label) for label in zip(scores.T, targets.T, strict=True)]
    np.testing.assert_allclose(average_precision(scores, targets), expected, rtol=1e-12)
    for label in range(C - 1):
        curve = precision_recall_curve(scores[:, label], targets[:, label])
        assert curve[:, 1].mean() == pytest.approx(expected[label], abs=1e-7)


def test_average_precision_and_curves_are_those_of_scikit_learn(scored):
    scores, targets = scored
    found = label_metrics(scores, targets, 0.5)
    for label in range(C - 1):
        one = targets[:, label], scores[:, label]
        curve = precision_recall_curve(*one[::-1])
        assert found["ap"][label] == pytest.approx(sklearn_metrics.average_precision_score(*one), rel=1e-8)
        assert curve[:, 1].mean() == pytest.approx(found["ap"][label], abs=1e-7)
        precision, recall, _ = sklearn_metrics.precision_recall_curve(*one)
        known = {(round(float(r), 9), round(float(p), 9)) for r, p in zip(recall, precision, strict=True)}
        assert {(round(float(r), 9), round(float(p), 9)) for r, p in curve} <= known
        assert len(curve) == targets[:, label].sum()
        assert (np.diff(curve[:, 0]) > 0).all()
    assert precision_recall_curve(scores[:, -1], targets[:, -1]).shape == (0, 2)
    order = np.random.default_rng(1).permutation(N)
    np.testing.assert_allclose(average_precision(scores[order], targets[order]), found["ap"])


def test_a_threshold_per_label():
    """Label 0 above 0.7: images 0 and 1; label 1 above 0.4: images 2 and 3; label 2 above 0.2: images 0 and 3."""
    thresholds = np.asarray([0.7, 0.4, 0.2])
    labels, metrics = (f(SCORES, TARGETS, thresholds) for f in (label_metrics, annotation_metrics))
    np.testing.assert_array_equal([labels["tp"], labels["predicted"]], [[1, 2, 0], [2, 2, 2]])
    assert (metrics["threshold"], metrics["n_plus"]) == ("per label", 2)
    assert metrics["precision"] == pytest.approx((1 / 2 + 1) / 3, rel=3e-7)
    every = annotation_metrics(SCORES, TARGETS, np.full(3, 0.4))
    assert every | {"threshold": 0.4} == annotation_metrics(SCORES, TARGETS, 0.4)
    with pytest.raises(InputError, match=r"thresholds \(2,\) must be one number, or one for each .* \(3,\)"):
        annotation_metrics(SCORES, TARGETS, np.zeros(2))


@pytest.mark.parametrize("threshold", [0.05, 0.35, 0.7])
def test_scores_are_compared_in_their_own_dtype(threshold):
    """A float32 score equal to the float32 threshold is not above it, though 0.05 in float32 is above 0.05."""
    scores, targets = np.full((1, 2), threshold, np.float32), np.ones((1, 2))
    for given in (threshold, np.full(2, threshold)):
        np.testing.assert_array_equal(label_metrics(scores, targets, given)["predicted"], [0, 0])
        above = np.nextafter(scores, np.float32(1))
        np.testing.assert_array_equal(label_metrics(above, targets, given)["predicted"], [1, 1])


@pytest.mark.parametrize("threshold", [0.5, np.linspace(0.2, 0.7, C)])
def test_label_metrics_have_the_reported_means(scored, threshold):
    found, reported = label_metrics(*scored, threshold), annotation_metrics(*scored, threshold)
    means = [np.mean(found["precision"]), np.mean(found["recall"]), 100 * np.mean(found["ap"])]
    assert means == [reported["precision"], reported["recall"], reported["map"]]
    assert np.count_nonzero(found["tp"]) == reported["n_plus"]
    assert found["tp"].sum() / found["predicted"].sum() == pytest.approx(reported["overall_precision"], abs=1e-6)
    assert found["threshold"].tolist() == np.broadcast_to(threshold, C).tolist()
    harmonic = 2 * found["precision"] * found["recall"] / (found["precision"] + found["recall"] + 1e-7)
    np.testing.assert_array_equal(found["f1"], harmonic)
    assert found["support"].tolist() == scored[1].sum(0).tolist()


def test_confusions_equal_a_count_image_by_image(scored):
    scores, targets = scored
    expected = np.zeros((C, C), int)
    for row, true in zip(scores > 0.5, targets > 0, strict=True):
        for missed in np.flatnonzero(true & ~row):
            expected[missed, row & ~true] += 1
    np.testing.assert_array_equal(confusion_counts(scores, targets, 0.5), expected)
    assert not confusion_counts(targets.astype(np.float32), targets, 0.5).any()


@pytest.mark.parametrize("function", [annotation_metrics, label_metrics, confusion_counts])
def test_unusable_scores_are_refused(function):
    with pytest.raises(InputError, match=r"scores \(4, 3\) and targets \(4, 2\) must both be"):
        function(SCORES, TARGETS[:, :2], 0.5)
    with pytest.raises(InputError, match="scores of 1 images hold NaN, the first in row 2"):
        function(np.where(SCORES == 0.3, [[np.nan, 0, 0]], SCORES)[:3], TARGETS[:3], 0.5)
