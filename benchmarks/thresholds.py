"""Compares the search for MCC thresholds with the reference's loop over labels and candidates around scikit-learn.

python -m benchmarks.thresholds --output benchmarks/results/mcc-thresholds-cpu.json
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from aia_jax.cli.flags import Parser, positive
from aia_jax.metrics.thresholds import CANDIDATES, fit_mcc, fit_mcc_exact
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import write_json
from benchmarks.comparison import run_command
from benchmarks.timing import machine, progress, versions

_WINDOWS = 7
_LABELS_PER_IMAGE = 5


def random_scores(num_images: int, num_labels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns random scores float32 and targets uint8, both `[N, C]`, with about 5 labels per image.

    The scores of an image's labels are higher than the others on average.
    """
    rng = np.random.default_rng(seed)
    targets = rng.random((num_images, num_labels), np.float32) < _LABELS_PER_IMAGE / num_labels
    logits = rng.standard_normal((num_images, num_labels), np.float32) - 3 + 3 * targets.astype(np.float32)
    return 1 / (1 + np.exp(-logits)), targets.astype(np.uint8)


def fit_with_sklearn(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Computes the thresholds of `fit_mcc` with two loops around scikit-learn; same arguments and result."""
    from sklearn.metrics import matthews_corrcoef

    best = np.empty(scores.shape[1])
    cuts = np.asarray(CANDIDATES, scores.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A single label was found", category=UserWarning)
        for label in range(scores.shape[1]):
            mcc = [matthews_corrcoef(targets[:, label], scores[:, label] >= cut) for cut in cuts]
            best[label] = CANDIDATES[int(np.argmax(mcc))]
    return best


def benchmark(num_images: int, num_labels: int) -> dict[str, Any]:
    """Times the three searches on random scores.

    Raises:
        RuntimeError: `fit_mcc` and the loop around scikit-learn chose different thresholds.
    """
    scores, targets = random_scores(num_images, num_labels)
    progress("aia_jax")
    grid, ours = _measure(fit_mcc, scores, targets, _WINDOWS)
    _, exact = _measure(fit_mcc_exact, scores, targets, _WINDOWS)
    progress("the loop around scikit-learn, once")
    expected, loop = _measure(fit_with_sklearn, scores, targets, 1)
    if not np.array_equal(grid, expected):
        raise RuntimeError(f"thresholds of {np.count_nonzero(grid != expected)} labels differ from scikit-learn's")
    return {
        "machine": machine(),
        "packages": versions(),
        "num_images": num_images,
        "num_labels": num_labels,
        "num_candidates": len(CANDIDATES),
        "dtype": str(scores.dtype),
        "thresholds_equal": True,
        "seconds": {"fit_mcc": ours, "fit_mcc_exact": exact, "sklearn_loop": loop},
        "speedup_of_fit_mcc": loop["median"] / ours["median"],
    }


def _make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--images", type=positive, default=18689, help="images to score (ESP-Game's training split)")
    parser.add_argument("--labels", type=positive, default=268, help="labels (ESP-Game's)")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers here")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    """Prints a table and, with `--output`, writes the numbers as JSON."""
    try:
        measured = benchmark(arguments.images, arguments.labels)
    except ImportError as error:
        raise InputError(f"{error}; pip install scikit-learn") from None
    print(f"{arguments.images} images x {arguments.labels} labels, {len(CANDIDATES)} candidates, equal thresholds")
    for name, seconds in measured["seconds"].items():
        print(f"{name:<16}{seconds['median']:>10.4f} s   median of {seconds['windows']}")
    print(f"fit_mcc is {measured['speedup_of_fit_mcc']:.0f} times the speed of the loop")
    if arguments.output:
        write_json(arguments.output, measured)


def _measure(
    fit: Callable[[np.ndarray, np.ndarray], np.ndarray], scores: np.ndarray, targets: np.ndarray, windows: int
) -> tuple[np.ndarray, dict[str, float | int]]:
    fit(scores[:, :1], targets[:, :1])  # imports are not timed
    times = []
    for _ in range(windows):
        start = time.perf_counter()
        thresholds = fit(scores, targets)
        times.append(time.perf_counter() - start)
    spread = {"median": statistics.median(times), "min": min(times), "max": max(times), "windows": windows}
    return thresholds, spread


if __name__ == "__main__":
    run_command(_make_parser(), _run)
