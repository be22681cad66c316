"""Published results, to hold measured ones against.

`attention_pooling`: Salar & Ahmadi, The Visual Computer 2024, doi 10.1007/s00371-024-03618-6.
`improved_loss`: Salar & Ahmadi, The Visual Computer 2023.
Both keep the weights of the epoch with the best per-class F1 on the test split.
"""

_METRICS = ("precision", "recall", "f1", "n_plus", "map")
_ROWS = {
    "attention_pooling/corel5k": (0.453, 0.611, 0.520, 202, None),
    "attention_pooling/iaprtc12": (0.515, 0.584, 0.547, 287, None),
    "attention_pooling/espgame": (0.442, 0.500, 0.470, 262, None),
    "attention_pooling/vg500": (0.409, 0.502, 0.451, 477, 42.515),
}
RESULTS: dict[str, dict[str, float]] = {
    name: {metric: value for metric, value in zip(_METRICS, row, strict=True) if value is not None}
    for name, row in _ROWS.items()
}
