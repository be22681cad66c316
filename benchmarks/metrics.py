"""Compares the speed of the annotation metrics with a loop over labels around scikit-learn, as in the reference.

python -m benchmarks.metrics --output benchmarks/results/metrics-cpu.json
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from aia_jax.cli.flags import Parser, positive
from aia_jax.metrics.annotation import annotation_metrics
from aia_jax.utils.files import write_json
from benchmarks.comparison import run_command
from benchmarks.thresholds import random_scores
from benchmarks.timing import machine, progress, time_windows, versions

_TOLERANCE = 1e-4  # this project ranks the last of equal scores first and adds an epsilon to every count
_THRESHOLD = 0.5


def metrics_with_sklearn(scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Computes precision, recall and mAP (per cent) of `annotation_metrics` with a loop around scikit-learn."""
    from sklearn.metrics import average_precision_score, precision_score, recall_score

    rows = []
    for label in range(scores.shape[1]):
        true, predicted = targets[:, label], scores[:, label] > _THRESHOLD
        row = [function(true, predicted, zero_division=0) for function in (precision_score, recall_score)]
        rows.append([*row, average_precision_score(true, scores[:, label]) if true.any() else 0.0])
    precision, recall, mean_average = np.mean(rows, axis=0)
    return {"precision": float(precision), "recall": float(recall), "map": 100 * float(mean_average)}


def compare(num_images: int, num_labels: int, *, windows: int = 5, seconds: float = 0.2) -> dict[str, Any]:
    """Times both on random scores; see `timing.time_windows`.

    Raises:
        RuntimeError: the metrics differ.
    """
    started_on = machine()
    scores, targets = random_scores(num_images, num_labels)
    progress("aia_jax")
    ours = annotation_metrics(scores, targets, _THRESHOLD)
    rows = [{"name": "aia_jax", **_measure(annotation_metrics, scores, targets, windows, seconds)}]
    progress("the loop around scikit-learn")
    try:
        theirs = metrics_with_sklearn(scores, targets)
    except ImportError as error:
        rows.append({"name": "sklearn loop", "failed": f"{error}; pip install scikit-learn"})
    else:
        differences = {name: abs(ours[name] - value) for name, value in theirs.items()}
        if max(differences.values()) > _TOLERANCE:
            raise RuntimeError(f"the metrics differ from scikit-learn's by {differences}")
        rows.append({"name": "sklearn loop", **_measure(metrics_with_sklearn, scores, targets, windows, seconds)})
    return {
        "machine": started_on,
        "versions": versions(),
        "num_images": num_images,
        "num_labels": num_labels,
        "dtype": str(scores.dtype),
        "results": rows,
        "ratio_to_peer": _ratio(rows),
    }


def table(document: dict[str, Any]) -> str:
    """Formats the document as text."""
    lines = [f"precision, recall, F1, N+ and mAP of {document['num_images']} images x {document['num_labels']} labels"]
    for row in document["results"]:
        seconds = row.get("seconds")
        text = (
            f"failed: {row['failed']}"
            if seconds is None
            else "".join(f"{seconds[name]:>10.4f} s {name}" for name in ("median", "min", "max"))
        )
        lines.append(f"{row['name']:<14}{text}")
    if document["ratio_to_peer"]:
        lines.append(f"{document['ratio_to_peer']:.0f} times the speed of the loop")
    return "\n".join(lines)


def _make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--images", type=positive, default=18689, help="images to score (ESP-Game's training split)")
    parser.add_argument("--labels", type=positive, default=268, help="labels (ESP-Game's)")
    parser.add_argument("--windows", type=positive, default=5, help="timed windows")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers here")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    document = compare(arguments.images, arguments.labels, windows=arguments.windows)
    print(table(document))
    if arguments.output:
        write_json(arguments.output, document)


def _measure(
    function: Callable[[np.ndarray, np.ndarray], Any],
    scores: np.ndarray,
    targets: np.ndarray,
    windows: int,
    seconds: float,
) -> dict[str, Any]:
    def run(calls: int) -> None:
        for _ in range(calls):
            function(scores, targets)

    return {"seconds": time_windows(run, windows=windows, seconds=seconds)}


def _ratio(rows: list[dict[str, Any]]) -> float | None:
    ours, theirs = rows
    return None if "failed" in theirs else theirs["seconds"]["median"] / ours["seconds"]["median"]


if __name__ == "__main__":
    run_command(_make_parser(), _run)
