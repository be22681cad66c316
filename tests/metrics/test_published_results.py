import pytest

from aia_jax.metrics.published_results import RESULTS, difference


@pytest.mark.parametrize("row", RESULTS.values(), ids=list(RESULTS))
def test_f1_follows_from_precision_and_recall(row):
    f1 = 2 * row["precision"] * row["recall"] / (row["precision"] + row["recall"])
    assert row["f1"] == pytest.approx(f1, abs=0.001)


def test_difference_is_measured_minus_published():
    metrics = {"precision": 0.5, "n_plus": 190, "map": 40.0, "threshold": "per label", "recall": None}
    assert difference(metrics, "improved_loss/corel5k+mcc") == {"precision": 0.5 - 0.484, "n_plus": -1}
    assert difference({"map": 42.515}, "attention_pooling/vg500") == {"map": 0}
