"""Trains the head "text" on 70 % of the labels of Corel-5k, and scores the other 30 % as labels added by their names.

    python -m benchmarks.new_labels --full --root datasets --output benchmarks/results/new-labels-corel5k-cpu.json

Each seed is another random choice of the labels. Prints the mAP on the test split of the trained labels and of the new
labels: by the trained bilinear form alone, by ConSE alone, and by both. The last epoch is used, so that no test photo
has an influence. An interrupted benchmark continues with the same `--runs`.
"""

import argparse
import dataclasses
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from aia_jax.cli.flags import Parser
from aia_jax.configs import corel5k_lite
from aia_jax.data.annotation.datasets import Split
from aia_jax.data.words.label_texts import LabelTexts
from aia_jax.metrics.annotation import annotation_metrics, average_precision
from aia_jax.models.conse import class_probabilities, conse_scores
from aia_jax.models.text_head import pool
from aia_jax.tasks.added_labels import AddedLabels
from aia_jax.tasks.frozen_backbone import FrozenBackboneTask
from aia_jax.training.model_arrays import abstract_weights, merge_model, replace_arrays, select_weights
from aia_jax.training.runs import run_arrays
from aia_jax.training.sharding import data_mesh
from aia_jax.training.trainer import Trainer
from aia_jax.utils.files import read_json, write_json
from aia_jax.weights.initialization import initializer
from benchmarks.comparison import add_seed_arguments, chosen_seeds, run_command
from benchmarks.timing import machine, progress, versions

_SEEDS = (0, 1, 2)
_TRAINED = 0.7  # fraction of the labels
_SCORES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)  # bounds of the ranges in which the correct labels are counted


class FewerLabels(FrozenBackboneTask):
    """Annotation with only the labels in `columns` of the data set."""

    def __init__(self, config: ConfigDict, columns: np.ndarray):
        super().__init__(config)
        self._columns = columns

    def _load_split(self, name: str) -> Split:
        split = super()._load_split(name)
        labels = tuple(split.labels[column] for column in self._columns)
        return dataclasses.replace(split, labels=labels, targets=split.targets[:, self._columns])

    @property
    def _vocabulary(self) -> tuple[str, ...]:
        return self.split("train").labels


def choose_columns(num_labels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the columns of the trained labels and of the new labels, in ascending order."""
    order = np.random.default_rng(seed).permutation(num_labels)
    count = round(_TRAINED * num_labels)
    return np.sort(order[:count]), np.sort(order[count:])


def run_once(seed: int, root: str, workdir: Path) -> dict[str, Any]:
    """Trains one run, and evaluates all labels on the test split."""
    config = corel5k_lite.get_config("text")
    config.data.root, config.checkpoint.keep, config.eval.epoch = root, 1, "last"
    whole = FrozenBackboneTask(config).split("test")
    trained, new = choose_columns(len(whole.labels), seed)
    task = FewerLabels(config, trained)
    timing, start = workdir / "seconds.json", time.perf_counter()
    Trainer(config, task, workdir, initialize=initializer(config, task)).fit()
    if not timing.exists():
        write_json(timing, time.perf_counter() - start)
    arrays, _ = run_arrays(workdir)
    added = AddedLabels(config, task.labels, arrays, LabelTexts(whole.labels, whole.labels))
    scores = _score(task, arrays, added)
    targets, both = np.asarray(whole.targets), scores["both"]
    precisions = {name: average_precision(logits, targets) for name, logits in scores.items()}
    ranked = sorted(new, key=lambda column: -precisions["both"][column])
    return {
        "seed": seed,
        "seconds": read_json(timing, "the seconds of training"),
        "trained": {"labels": len(trained), **_metrics(both[:, trained], targets[:, trained])},
        "new": {"labels": len(new), **_metrics(both[:, new], targets[:, new])},
        "new_map": {name: 100 * float(values[new].mean()) for name, values in precisions.items()},
        "new_labels": [
            {
                "label": whole.labels[column],
                "photos": int(targets[:, column].sum()),
                **{name: round(100 * float(values[column]), 1) for name, values in precisions.items()},
            }
            for column in ranked
        ],
    }


def _score(task: FrozenBackboneTask, arrays: dict[str, Any], added: AddedLabels) -> dict[str, np.ndarray]:
    """Returns logits of all labels `[N, M]` on the test split: of the bilinear form, of ConSE, and of both together."""
    graphdef, shapes = abstract_weights(task.build_model, data_mesh())
    weights = replace_arrays(select_weights(shapes, "raw"), arrays)
    task.prepare(weights, ("test",))
    head = added.open_head(merge_model(graphdef, weights).head)
    features = jnp.asarray(task.eval_arrays("test")["features"][:], jnp.float32)
    pooled = pool(features)
    probabilities = class_probabilities(pooled @ head.kernel[...] + head.bias[...])
    return {
        "bilinear": np.asarray(head.head.score(pooled, head.embeddings[...])),
        "conse": np.asarray(conse_scores(probabilities, head.classes[...], head.embeddings[...])),
        "both": np.asarray(head(features, train=False)[0]),
    }


def _metrics(logits: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """Returns the metrics at the threshold 0.5, and the fraction of correct labels in each range of the score."""
    scores = 1 / (1 + np.exp(-logits))
    found = annotation_metrics(scores, targets, 0.5)
    names = ("map", "overall_precision", "overall_recall", "f1", "n_plus")
    ranges = {f"{low}-{high}": targets[(scores > low) & (scores <= high)] for low, high in itertools.pairwise(_SCORES)}
    return {
        **{name: found[name] for name in names},
        "labels_per_photo": float((scores > 0.5).sum(axis=1).mean()),
        "correct": {name: {"labels": len(part), "fraction": float(part.mean())} for name, part in ranges.items()},
    }


def _make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--root", default="datasets", help="folder that holds Corel-5k/")
    parser.add_argument("--runs", type=Path, default=Path("runs/new-labels"), help="folder for the runs")
    add_seed_arguments(parser, _SEEDS)
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the numbers here")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    """Completes the runs, prints a line for each and, with `--output`, writes the numbers as JSON."""
    runs = []
    for seed in chosen_seeds(arguments, _SEEDS):
        progress(f"trains with seed {seed}")
        run = run_once(seed, arguments.root, arguments.runs / f"text-{seed}")
        new = ", ".join(f"{name} {value:.1f}" for name, value in run["new_map"].items())
        print(f"labels {seed}: mAP {run['trained']['map']:.1f} of trained labels; of new labels: {new}", flush=True)
        runs.append(run)
    if arguments.output:
        mean = {name: statistics.mean(run["new_map"][name] for run in runs) for name in runs[0]["new_map"]}
        mean["trained"] = statistics.mean(run["trained"]["map"] for run in runs)
        write_json(arguments.output, {"machine": machine(), "packages": versions(), "mean_map": mean, "runs": runs})


if __name__ == "__main__":
    run_command(_make_parser(), _run)
