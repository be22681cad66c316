"""Defines the interface of the evaluators, and the types and functions that they share."""

import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aia_jax.metrics.published_results import PUBLISHED, difference
from aia_jax.report.table import Row
from aia_jax.training.model_arrays import Arrays
from aia_jax.training.task import Task
from aia_jax.utils.files import write_bytes


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """Weights to evaluate.

    Attributes:
        weights: `{"params", "stats", "constants"}` on the devices; empty for an ensemble.
        facts: entries of `metrics.json` that name the origin: `weights` and, for a run, `epoch` and `step`.
        outputs: function from the name of a split to the model outputs for this split (`Task.predict_split`).
    """

    name: str
    task: Task
    weights: Arrays
    facts: dict[str, Any]
    outputs: Callable[[str], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """A candidate with its scores and metrics.

    Attributes:
        scores: `[images, labels]` in annotation, `[captions, images]` in retrieval, `[queries, images]` in search.
        rows: dicts for `metrics.json` and the printed table: name, model, weights, split and metrics. The table adds
            the published results that the key `published` names, unless it is absent or "".
        thresholds: `[C]`, a threshold for each of C labels. None if one threshold is used for all labels.
    """

    candidate: Candidate
    scores: np.ndarray
    metrics: dict[str, Any]
    rows: list[dict[str, Any]]
    thresholds: np.ndarray | None = None


class Evaluator:
    """Evaluates candidates of one system on a split. The subclasses are `{Annotation,Retrieval,Search}Evaluator`."""

    def __init__(self, task: Any, split: str):
        self._task, self._config, self._split = task, task.config, split
        self._title = f"{task.config.data.name}, {split} split"
        self._published = task.config.published if split == "test" else ""

    def score(self, candidate: Candidate) -> Scored:
        """Computes the metrics of a candidate."""

    def write(self, output: Path, best: Scored) -> None:
        """Writes scores and pictures of the best candidate into the folder `output`."""

    def table(self, results: Sequence[Scored]) -> str:
        """Formats `Scored.rows` of all results as text. The last of `results` is the best. Its rows come first."""


def compared_rows(results: Sequence[Scored]) -> list[Row | str]:
    """Returns rows for `metric_table`: the first row of each result, then the second row of each result, if any.

    The best result, the last of `results`, comes first. If it has published results, each of these two groups ends with
    the published row and the best result minus the published one.
    """
    lines: list[Row | str] = []
    for rows in zip(*(result.rows for result in results[::-1]), strict=True):
        lines += [Row(row["name"], row) for row in rows]
        key = rows[0]["published"]
        if key:
            lines += [Row(f"published ({key})", PUBLISHED[key])]
            lines += [Row("difference", difference(rows[0], key), signed=True)]
    return lines


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Writes named arrays to a compressed NumPy archive."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def top_columns(scores: np.ndarray, count: int) -> np.ndarray:
    """Returns int32 `[rows, count]`, the columns of the `count` highest scores of each row, highest score first.

    If scores are equal, the leftmost column comes first.
    """
    return np.stack([np.argsort(-row, kind="stable")[:count] for row in scores]).astype(np.int32)


def evenly_spaced(length: int, count: int) -> np.ndarray:
    """Returns at most `count` evenly spaced indices, from 0 to `length - 1`."""
    return np.linspace(0, length - 1, min(length, count)).round().astype(int)
