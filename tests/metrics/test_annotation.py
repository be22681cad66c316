import numpy as np
import pytest

from aia_jax.metrics.annotation import LabelCounts, annotation_metrics, average_precision
from aia_jax.utils.errors import InputError

# Four images, three labels; the third is never true. Predictions above 0.5: label 0 in images 0, 1, 3; label 1 in
# image 2; label 2 in image 0. The 0.5 of image 3 for label 1 is not above the threshold.
SCORES = np.asarray([[0.9, 0.1, 0.7], [0.8, 0.4, 0.2], [0.3, 0.6, 0.1], [0.6, 0.5, 0.3]])
TARGETS = np.asarray([[1, 0, 0], [0, 0, 0], [1, 1, 0], [1, 1, 0]], np.uint8)


def test_counts_per_label():
    counts = LabelCounts.from_scores(SCORES, TARGETS)
    np.testing.assert_array_equal(counts.tp, [2, 1, 0])
    np.testing.assert_array_equal(counts.predicted, [3, 1, 1])
    np.testing.assert_array_equal(counts.true, [3, 2, 0])


def test_metrics_of_a_small_case_by_hand():
    """P = (2/3 + 1 + 0) / 3, R = (2/3 + 1/2 + 0) / 3; pooled 3 hits of 5 predicted and 5 true.

    AP: label 0 falls 1 0 1 1 -> (1 + 2/3 + 3/4) / 3, label 1 falls 1 1 .. -> 1, label 2 has no positive -> 0.
    """
    metrics = annotation_metrics(SCORES, TARGETS)
    precision, recall = 5 / 9, 7 / 18
    expected = {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "n_plus": 2,
        "overall_precision": 0.6,
        "overall_recall": 0.6,
        "overall_f1": 0.6,
        "map": 100 * (29 / 36 + 1) / 3,
        "num_images": 4,
        "num_labels": 3,
        "threshold": 0.5,
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=3e-7), name


def test_the_epsilons_are_the_papers():
    one = np.ones((1, 1))
    counts = LabelCounts.from_scores(one, one).compute()
    assert counts["precision"] == 1 / (1 + 1e-7)
    assert counts["f1"] == 2 * counts["precision"] ** 2 / (2 * counts["precision"] + 1e-7)
    assert average_precision(one, one)[0] == 1 / (1 + 1e-8)


def test_counts_of_parts_add_up_to_those_of_the_whole():
    parts = LabelCounts.from_scores(SCORES[:1], TARGETS[:1]) + LabelCounts.from_scores(SCORES[1:], TARGETS[1:])
    assert parts.compute() == LabelCounts.from_scores(SCORES, TARGETS).compute()


def test_average_precision_equals_sklearns_without_ties():
    sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="the oracle is scikit-learn")
    rng = np.random.default_rng(0)
    targets = (rng.random((200, 12)) < 0.2).astype(np.uint8)
    scores = rng.permuted(np.linspace(0, 1, 200)[:, None].repeat(12, axis=1), axis=0)
    expected = [sklearn_metrics.average_precision_score(targets[:, c], scores[:, c]) for c in range(12)]
    np.testing.assert_allclose(average_precision(scores, targets), expected, rtol=1e-8)


def test_average_precision_is_independent_of_order_without_ties():
    order = np.asarray([2, 0, 3, 1])
    np.testing.assert_allclose(average_precision(SCORES[order], TARGETS[order]), average_precision(SCORES, TARGETS))


def test_ties_keep_the_images_order():
    scores = np.full((3, 2), 0.5, np.float32)
    targets = np.asarray([[1, 0], [0, 0], [0, 1]])
    np.testing.assert_allclose(average_precision(scores, targets), [1, 1 / 3], rtol=1e-7)


def test_a_label_without_positives_counts_zero():
    np.testing.assert_array_equal(average_precision(SCORES, np.zeros_like(TARGETS)), 0)
    assert annotation_metrics(SCORES, np.zeros_like(TARGETS))["map"] == 0


def test_a_threshold_per_call_is_strict():
    assert LabelCounts.from_scores(SCORES, TARGETS, threshold=0.9).predicted.sum() == 0
    assert LabelCounts.from_scores(SCORES, TARGETS, threshold=0.8).predicted.sum() == 1


def test_a_threshold_per_label():
    """Label 0 above 0.7: images 0 and 1; label 1 above 0.4: images 2 and 3; label 2 above 0.2: images 0 and 3."""
    counts = LabelCounts.from_scores(SCORES, TARGETS, np.asarray([0.7, 0.4, 0.2]))
    np.testing.assert_array_equal(counts.tp, [1, 2, 0])
    np.testing.assert_array_equal(counts.predicted, [2, 2, 2])
    metrics = annotation_metrics(SCORES, TARGETS, np.asarray([0.7, 0.4, 0.2]))
    assert metrics["threshold"] == "per label"
    assert metrics["n_plus"] == 2
    assert metrics["precision"] == pytest.approx((1 / 2 + 1) / 3, rel=3e-7)


def test_one_threshold_is_the_same_as_one_for_each():
    every = annotation_metrics(SCORES, TARGETS, np.full(3, 0.4))
    assert every | {"threshold": 0.4} == annotation_metrics(SCORES, TARGETS, 0.4)


@pytest.mark.parametrize("threshold", [0.05, 0.35, 0.7])
def test_scores_are_compared_in_their_own_dtype(threshold):
    """A float32 score equal to the float32 threshold is not above it, though 0.05 in float32 is above 0.05."""
    scores, targets = np.full((1, 2), threshold, np.float32), np.ones((1, 2))
    for given in (threshold, np.full(2, threshold)):
        np.testing.assert_array_equal(LabelCounts.from_scores(scores, targets, given).predicted, [0, 0])
        above = np.nextafter(scores, np.float32(1))
        np.testing.assert_array_equal(LabelCounts.from_scores(above, targets, given).predicted, [1, 1])


def test_thresholds_of_another_number_of_labels_are_refused():
    with pytest.raises(InputError, match=r"thresholds \(2,\) must be one number, or one for each .* \(3,\)"):
        annotation_metrics(SCORES, TARGETS, np.zeros(2))


def test_unusable_scores_are_refused():
    with pytest.raises(InputError, match=r"scores \(4, 3\) and targets \(4, 2\)"):
        annotation_metrics(SCORES, TARGETS[:, :2])
    with pytest.raises(InputError, match="scores of 1 images hold NaN, the first in row 2"):
        average_precision(np.where(SCORES == 0.6, np.where(TARGETS == 1, np.nan, 0), SCORES)[:3], TARGETS[:3])
