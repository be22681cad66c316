"""Published results, to hold measured ones against.

`attention_pooling`: Salar & Ahmadi, The Visual Computer 2024, doi 10.1007/s00371-024-03618-6.
`improved_loss`: Salar & Ahmadi, The Visual Computer 2023; `+mcc` is the same model with a threshold per label.
Both keep the weights of the epoch with the best per-class F1 on the test split.
"""

from collections.abc import Mapping

_METRICS = ("precision", "recall", "f1", "n_plus", "map")
_ROWS = {
    "attention_pooling/corel5k": (0.453, 0.611, 0.520, 202, None),
    "attention_pooling/iaprtc12": (0.515, 0.584, 0.547, 287, None),
    "attention_pooling/espgame": (0.442, 0.500, 0.470, 262, None),
    "attention_pooling/vg500": (0.409, 0.502, 0.451, 477, 42.515),
    "improved_loss/corel5k": (0.466, 0.554, 0.506, 189, None),
    "improved_loss/corel5k+mcc": (0.484, 0.563, 0.520, 191, None),
    "improved_loss/iaprtc12": (0.503, 0.562, 0.531, 285, None),
    "improved_loss/iaprtc12+mcc": (0.562, 0.515, 0.537, 277, None),
    "improved_loss/espgame": (0.423, 0.484, 0.452, 261, None),
    "improved_loss/espgame+mcc": (0.508, 0.421, 0.461, 255, None),
}
RESULTS: dict[str, dict[str, float]] = {
    name: {metric: value for metric, value in zip(_METRICS, row, strict=True) if value is not None}
    for name, row in _ROWS.items()
}


def difference(metrics: Mapping[str, float], name: str) -> dict[str, float]:
    """Measured minus published, for the metrics that both `metrics` and the row `RESULTS[name]` have."""
    return {
        metric: metrics[metric] - value for metric, value in RESULTS[name].items() if metrics.get(metric) is not None
    }
