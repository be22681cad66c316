"""Restores a run's checkpoints, scores a split and leaves numbers and pictures."""

import io
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.errors import InputError
from aia_jax.published import RESULTS
from aia_jax.report.attention import draw_attention
from aia_jax.report.predictions import draw_predictions
from aia_jax.tasks import AnnotationTask, make_task
from aia_jax.training import sharding
from aia_jax.training.checkpoint import Checkpointer
from aia_jax.training.loop import predict_split
from aia_jax.training.record import check_same_config, write_bytes, write_json
from aia_jax.training.state import Arrays, abstract_weights, make_predict_step, pick_weights

_COLUMNS = {"precision": "P", "recall": "R", "f1": "F1", "n_plus": "N+", "map": "mAP"}
_PICTURES = 16


def evaluate(
    config: ConfigDict, workdir: Path, output: Path, *, split: str = "test", task: AnnotationTask | None = None
) -> dict[str, Any]:
    """Scores `split` with the best checkpoint of `workdir`; the last epoch's row is printed beside it.

    Writes into `output`: `metrics.json`, `scores.npz`, `predictions.png` and, if the head attends, `attention.png`.

    Returns:
        The best checkpoint's metrics, as written.

    Raises:
        InputError: no evaluated checkpoint in `workdir`, or one of another model.
    """
    task = task or make_task(config)
    mesh = sharding.data_mesh()
    sharding.check_batch_size("eval.batch_size", config.eval.batch_size, mesh)
    if not (workdir / "checkpoints").is_dir():
        raise InputError(f"{workdir} holds no checkpoints; train first, or name the folder given to train.py")
    check_same_config(workdir, config)
    task.split(split)
    graphdef, shapes = abstract_weights(task.build_model, mesh)
    predict_step = make_predict_step(graphdef, task.predict, mesh)
    rows, scores, weights = [], None, None
    with Checkpointer(workdir) as checkpointer:
        best, last = _best_and_last(checkpointer, workdir)
        for step in dict.fromkeys((last, best)):
            info = checkpointer.info(step)
            _check_labels(workdir, info["labels"], task)
            weights = pick_weights(checkpointer.restore(step, {"weights": shapes})["weights"], info["weights"])
            scores = predict_split(predict_step, weights, task.eval_batches(split), mesh)["scores"]
            measured = task.evaluate(split, {"scores": scores})
            rows.append({**measured, "weights": info["weights"], "split": split, "epoch": info["epoch"], "step": step})
    if jax.process_index() == 0:
        _write_numbers(output, task, split, rows[-1], scores)
        _draw(output, task, split, graphdef, weights)
        print(_table(config, rows), flush=True)
        print(f"written to {output}: {', '.join(sorted(path.name for path in output.iterdir()))}", flush=True)
    return rows[-1]


def _best_and_last(checkpointer: Checkpointer, workdir: Path) -> tuple[int, int]:
    metrics = {step: info["metric"] for step in checkpointer.steps() if "metric" in (info := checkpointer.info(step))}
    if not metrics:
        raise InputError(f"{workdir / 'checkpoints'} holds no evaluated epoch yet; let train.py finish one")
    return max(metrics, key=lambda step: (metrics[step], -step)), max(metrics)


def _check_labels(workdir: Path, trained: list[str], task: AnnotationTask) -> None:
    if tuple(trained) != task.labels:
        raise InputError(
            f"{workdir} was trained on other labels, or on another order of them, than the data list "
            f"({len(trained)} there, {len(task.labels)} here); evaluate it on data with its own `labels`"
        )


def _write_numbers(output: Path, task: AnnotationTask, split: str, metrics: dict[str, Any], scores: np.ndarray) -> None:
    part = task.split(split)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        scores=scores.astype(np.float32),
        targets=np.asarray(part.targets, np.uint8),
        image_names=np.array(part.image_names),
        labels=np.array(part.labels),
    )
    write_bytes(output / "scores.npz", buffer.getvalue())
    write_json(output / "metrics.json", metrics)


def _draw(output: Path, task: AnnotationTask, split: str, graphdef: nnx.GraphDef, weights: Arrays) -> None:
    part, threshold = task.split(split), task.config.eval.threshold
    rows = np.unique(np.linspace(0, len(part) - 1, _PICTURES).round().astype(int))
    images = np.asarray(part.arrays["image"][rows])
    explain_step = make_predict_step(graphdef, task.explain, sharding.data_mesh(jax.local_devices()[:1]))
    out = jax.device_get(explain_step(jax.device_get(weights), {"image": images}))
    targets, hits = part.targets[rows] > 0, out["scores"] > threshold
    title = f"{task.config.data.name}, {split} split, score > {threshold}"
    draw_predictions(
        output / "predictions.png",
        images,
        [_names(part.labels, row) for row in targets],
        [_names(part.labels, row) for row in hits],
        title=title,
    )
    if "attention" not in out:
        return
    shown = int(np.argmax((targets & hits).sum(1)))
    order = np.flatnonzero(hits[shown])[np.argsort(-out["scores"][shown][hits[shown]])]
    draw_attention(
        output / "attention.png",
        images[shown],
        out["attention"][shown][order],
        [part.labels[label] for label in order],
        [float(score) for score in out["scores"][shown][order]],
        hits=[bool(hit) for hit in targets[shown][order]],
        title=f"{title}: {part.image_names[rows[shown]]}",
    )


def _names(labels: tuple[str, ...], chosen: np.ndarray) -> list[str]:
    return [labels[label] for label in np.flatnonzero(chosen)]


def _table(config: ConfigDict, rows: list[dict[str, Any]]) -> str:
    """Measured rows, the published one and the difference of the best to it, as text."""
    last, best = rows[0], rows[-1]
    lines = [
        f"{config.data.name}, {best['split']} split: {best['num_images']} images, {best['num_labels']} labels, "
        f"score > {best['threshold']}",
        " " * 40 + "".join(f"{name:>9}" for name in _COLUMNS.values()),
        _line(f"best epoch ({best['epoch']}, {best['weights']})", best),
        _line(f"last epoch ({last['epoch']}, {last['weights']})", last),
    ]
    if config.published and best["split"] == "test":
        published = RESULTS[config.published]
        difference = {name: best[name] - value for name, value in published.items()}
        lines += [_line(f"published ({config.published})", published), _line("difference", difference, sign="+")]
    if config.eval.split == best["split"] == "test":
        lines.append("best epoch and weights were chosen on the test split, as in the published runs")
    return "\n".join(lines)


def _line(name: str, row: dict[str, Any], sign: str = "") -> str:
    cells = []
    for metric in _COLUMNS:
        spec = f"{sign}9{'.0f' if metric == 'n_plus' else '.2f' if metric == 'map' else '.4f'}"
        cells.append(f"{row[metric]:{spec}}" if metric in row else " " * 9)
    return f"{name:<40}" + "".join(cells)
