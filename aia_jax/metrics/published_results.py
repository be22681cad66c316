"""Published results, for comparison with measured results. Each name in `PUBLISHED` starts with its source:

`attention_pooling`: Salar & Ahmadi, The Visual Computer 2024, doi 10.1007/s00371-024-03618-6.
`improved_loss`: Salar & Ahmadi, The Visual Computer 2023. Results with `+mcc` use a threshold for each label.
Both papers report the results of the epoch with the best per-class F1 on the test split.
`vsl`: Zhang et al., ICME 2023, arXiv 2304.10254, in per cent. "sgraf" is the mean of the SGR and SAF similarities.
Results with `coco_1k` are means over five folds of 1,000 test images.
`clickture`: areas under the ROC curves of Chen et al., CVPR 2017, arXiv 1704.00763, on the dev split of Clickture.
We could not read the tables of this paper, so we measured the areas in a figure. The error is about 0.005.
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

_RECALLS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10")
_RETRIEVAL_ROWS = {
    "vsl/coco_1k/sgr": (78.5, 96.2, 98.6, 63.0, 89.9, 95.3),
    "vsl/coco_1k/saf": (78.3, 96.0, 98.6, 63.0, 89.9, 95.3),
    "vsl/coco_1k/sgraf": (80.1, 96.5, 98.8, 64.8, 90.7, 95.9),
    "vsl/coco_5k/sgr": (57.7, 84.3, 91.0, 41.4, 70.5, 80.8),
    "vsl/coco_5k/saf": (56.2, 84.4, 91.3, 41.4, 70.4, 81.0),
    "vsl/coco_5k/sgraf": (60.2, 86.6, 92.5, 43.3, 72.2, 82.5),
    "vsl/f30k/sgr": (75.7, 93.5, 96.5, 56.5, 80.9, 85.9),
    "vsl/f30k/saf": (75.9, 93.9, 97.5, 57.9, 82.7, 88.9),
    "vsl/f30k/sgraf": (79.5, 95.3, 97.9, 60.2, 84.3, 89.4),
}
RETRIEVAL_RESULTS: dict[str, dict[str, float]] = {
    name: {**dict(zip(_RECALLS, row, strict=True)), "rsum": round(sum(row), 1)} for name, row in _RETRIEVAL_ROWS.items()
}

SEARCH_AREAS = {"AMC": 0.673, "DSSM-image": 0.646, "RCCA": 0.637, "MB": 0.627, "DSSM-keyword": 0.551}
SEARCH_RESULTS = {f"clickture/{name.lower()}": {"auc": area} for name, area in SEARCH_AREAS.items()}

PUBLISHED = {**RESULTS, **RETRIEVAL_RESULTS, **SEARCH_RESULTS}


def difference(metrics: Mapping[str, float], name: str) -> dict[str, float]:
    """Returns the measured minus the published value for each metric in both `metrics` and `PUBLISHED[name]`."""
    row = PUBLISHED[name]
    return {metric: metrics[metric] - value for metric, value in row.items() if metrics.get(metric) is not None}
