import pytest

from aia_jax.metrics.published_results import RESULTS, difference

PAPERS = {
    "attention_pooling/corel5k": (0.453, 0.611, 0.520, 202),
    "attention_pooling/iaprtc12": (0.515, 0.584, 0.547, 287),
    "attention_pooling/espgame": (0.442, 0.500, 0.470, 262),
    "attention_pooling/vg500": (0.409, 0.502, 0.451, 477, 42.515),
    "improved_loss/corel5k": (0.466, 0.554, 0.506, 189),
    "improved_loss/iaprtc12": (0.503, 0.562, 0.531, 285),
    "improved_loss/espgame": (0.423, 0.484, 0.452, 261),
    "improved_loss/corel5k+mcc": (0.484, 0.563, 0.520, 191),
    "improved_loss/iaprtc12+mcc": (0.562, 0.515, 0.537, 277),
    "improved_loss/espgame+mcc": (0.508, 0.421, 0.461, 255),
}


def test_rows_equal_those_of_the_papers():
    names = ("precision", "recall", "f1", "n_plus", "map")
    assert {name: dict(zip(names, row, strict=False)) for name, row in PAPERS.items()} == RESULTS


@pytest.mark.parametrize("row", RESULTS.values(), ids=list(RESULTS))
def test_f1_follows_from_precision_and_recall(row):
    f1 = 2 * row["precision"] * row["recall"] / (row["precision"] + row["recall"])
    assert row["f1"] == pytest.approx(f1, abs=0.001)


def test_difference_is_measured_minus_published():
    metrics = {"precision": 0.5, "n_plus": 190, "map": 40.0, "threshold": "per label", "recall": None}
    assert difference(metrics, "improved_loss/corel5k+mcc") == {"precision": 0.5 - 0.484, "n_plus": -1}
    assert difference({"map": 42.515}, "attention_pooling/vg500") == {"map": 0}
