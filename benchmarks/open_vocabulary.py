"""Scores the labels of Corel-5k with a dual encoder that was trained on none of them.

    python -m benchmarks.open_vocabulary --root datasets --output benchmarks/results/open-corel5k-cpu.json

Uses the photos and the names of the labels of the test split. Prints the mAP, and the results if each photo gets the
five labels with the highest scores: F1, N+ and the fraction of photos with a correct label. `standardised`: the scores
of each label are first standardised over the photos, so that the labels of a photo compete equally.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import aia_jax
from aia_jax.cli.devices import check_devices
from aia_jax.cli.exit_codes import execute
from aia_jax.cli.flags import Parser, local, word
from aia_jax.data.annotation.annotations import read_annotations
from aia_jax.metrics.annotation import annotation_metrics, average_precision
from aia_jax.utils.files import write_json
from benchmarks.timing import machine, progress, versions

_BATCH = 200
_LISTED = 12


def measure(root: Path, model: str) -> dict[str, Any]:
    """Returns the results of a model on the test split of Corel-5k."""
    annotations = read_annotations(root, "corel5k", "test")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "labels.txt"
        file.write_text("\n".join(annotations.labels))
        annotator = aia_jax.load(model, labels=file)
    paths = annotations.image_paths
    found = []
    for row in range(0, len(paths), _BATCH):
        progress(f"{row} of {len(paths)} photos")
        found.append(annotator(paths[row : row + _BATCH]).scores)
    scores = np.concatenate(found)
    logits = np.log(scores) - np.log1p(-scores)
    standardised = (logits - logits.mean(axis=0)) / logits.std(axis=0)
    ranked = np.argsort(-average_precision(scores, annotations.targets), kind="stable")
    used = [label for label in ranked if annotations.targets[:, label].any()]
    return {
        "model": model,
        "photos": len(paths),
        "map": annotation_metrics(scores, annotations.targets, 0.5)["map"],
        "five_labels": _five(scores, annotations.targets),
        "five_labels_standardised": _five(standardised, annotations.targets),
        "best_labels": [annotations.labels[label] for label in used[:_LISTED]],
        "worst_labels": [annotations.labels[label] for label in used[-_LISTED:]],
        "machine": machine(),
        "packages": versions(),
    }


def _five(scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    chosen = np.zeros(scores.shape, np.float32)
    np.put_along_axis(chosen, np.argsort(-scores, axis=1)[:, :5], 1, axis=1)
    metrics = annotation_metrics(chosen, targets, 0.5)
    hits = ((chosen > 0) & (targets > 0)).any(axis=1).mean()
    return {"f1": metrics["f1"], "n_plus": metrics["n_plus"], "photos_with_a_correct_label": float(hits)}


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("--root", type=local, default=Path("datasets"), metavar="DIR", help="folder of Corel-5k")
    parser.add_argument("--model", type=word, default="open", metavar="DIR|NAME", help="default: open")
    parser.add_argument("--output", type=local, metavar="FILE.json", help="also write the results to this file")

    def main(arguments: Any) -> None:
        check_devices()
        results = measure(arguments.root, arguments.model)
        for name, value in results.items():
            print(f"{name}: {value}")
        if arguments.output:
            write_json(arguments.output, results)

    sys.exit(execute(parser, main))
