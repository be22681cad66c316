"""Scores a split with a run's checkpoints, or with weights from elsewhere, and leaves numbers and pictures."""

import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from aia_jax import thresholds as label_thresholds
from aia_jax.commands.weights import (
    best_step,
    check_labels,
    check_whole,
    model_shapes,
    open_run,
    read_arrays,
)
from aia_jax.errors import InputError
from aia_jax.published import RESULTS, difference
from aia_jax.report.attention import draw_attention
from aia_jax.report.predictions import draw_predictions
from aia_jax.report.table import Row, metric_table
from aia_jax.tasks import AnnotationTask, make_task
from aia_jax.training import sharding
from aia_jax.training.prediction import predict_split
from aia_jax.training.record import check_same_config, write_bytes, write_json
from aia_jax.training.state import Arrays, abstract_weights, make_predict_step, pick_weights, replace_arrays

_PICTURES = 16
_FITTED = {"mcc": label_thresholds.fit_mcc, "exact": label_thresholds.fit_mcc_exact}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Weights to evaluate.

    Attributes:
        name: of their row in the table.
        weights: `{"params", "stats", "constants"}` on the devices.
        facts: about them, for the results file.
    """

    name: str
    weights: Arrays
    facts: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Scored:
    """A candidate's numbers: at `config.eval.threshold`, and at thresholds of its labels, if they were asked for."""

    candidate: Candidate
    scores: np.ndarray
    plain: dict[str, Any]
    thresholds: np.ndarray | None = None
    by_label: dict[str, Any] | None = None


def evaluate(
    config: ConfigDict,
    workdir: Path | None,
    output: Path,
    *,
    weights: str = "",
    split: str = "test",
    thresholds: str = "",
    task: AnnotationTask | None = None,
) -> dict[str, Any]:
    """Scores `split` with the best checkpoint of `workdir` (the last epoch's row is printed beside) or with `weights`.

    Writes into `output`: `metrics.json`, `scores.npz`, `predictions.png` and, if the head attends, `attention.png`;
    and fitted thresholds as `thresholds.json` into the workdir, or into an `output` that lies elsewhere.

    Args:
        weights: a workdir, a converted checkpoint or a PyTorch file, instead of `workdir`.
        thresholds: "" for `config.eval.threshold` alone; "mcc" or "exact" to fit one for each label on the training
            split; or a file of them.

    Returns:
        The best checkpoint's metrics, as written.

    Raises:
        InputError: no checkpoint, weights of another model or other labels, or thresholds of other labels.
    """
    task = task or make_task(config)
    mesh = sharding.data_mesh()
    sharding.check_batch_size("eval.batch_size", config.eval.batch_size, mesh)
    given = None
    if thresholds not in ("", *_FITTED):
        if not Path(thresholds).exists():
            raise InputError(f"thresholds {thresholds!r}: no such file; known: {', '.join(_FITTED)}, or a file's path")
        given = label_thresholds.load_thresholds(thresholds, task.labels)
    candidates = _elsewhere(config, weights, task, split) if weights else _run(config, workdir, task, split)
    graphdef, _ = abstract_weights(task.build_model, mesh)
    predict_step = make_predict_step(graphdef, task.predict, mesh)

    def score(candidate: Candidate, name: str) -> dict[str, np.ndarray]:
        task.prepare(candidate.weights)
        return predict_split(predict_step, [candidate.weights], task.eval_batches(name), mesh)[0]

    results = [_score(candidate, task, split, score, thresholds, given) for candidate in candidates]
    best = results[-1]
    if jax.process_index() == 0:
        _write_numbers(config, output, task, split, results, thresholds)
        if thresholds in _FITTED:
            folder = workdir if workdir and output.is_relative_to(workdir) else output
            write_json(folder / "thresholds.json", label_thresholds.as_dict(task.labels, best.thresholds))
        _draw(output, task, split, graphdef, best)
        print(_table(config, results, split, thresholds), flush=True)
        print(f"written to {output}: {', '.join(sorted(path.name for path in output.iterdir()))}", flush=True)
    return {**best.plain, **best.candidate.facts, "split": split}


def _run(config: ConfigDict, workdir: Path, task: AnnotationTask, split: str) -> Iterator[Candidate]:
    """The last evaluated epoch of a run, if it is not the best, and the best; of a converted one its weights."""
    with open_run(workdir) as checkpointer:
        check_same_config(workdir, config, free=("init_from", "init_backbone", "model.dtype"))
        best = best_step(checkpointer)
        info = {} if best is None else checkpointer.info(best)
        if "weights" not in info:
            raise InputError(f"{workdir / 'checkpoints'} holds no evaluated epoch yet; let train.py finish one")
        task.split(split)
        evaluated = [step for step in checkpointer.steps() if "weights" in checkpointer.info(step)]
        _, shapes = abstract_weights(task.build_model, sharding.data_mesh())
        for step in dict.fromkeys((max(evaluated), best)):
            info = checkpointer.info(step)
            check_whole(workdir, info)
            check_labels(workdir, info["labels"], task.labels)
            arrays = pick_weights(checkpointer.restore(step, {"weights": shapes})["weights"], info["weights"])
            which = "best" if step == best else "last"
            name = f"{which} epoch ({info['epoch']}, {info['weights']})" if info["epoch"] else "converted"
            yield Candidate(name, arrays, {"weights": info["weights"], "epoch": info["epoch"], "step": step})


def _elsewhere(config: ConfigDict, source: str, task: AnnotationTask, split: str) -> Iterator[Candidate]:
    task.split(split)
    arrays = read_arrays(source, config, model_shapes(task.build_model), task.labels)
    _, shapes = abstract_weights(task.build_model, sharding.data_mesh())
    weights = replace_arrays(pick_weights(shapes, "raw"), arrays)
    yield Candidate(Path(source).name, sharding.put_replicated(weights, sharding.data_mesh()), {"weights": source})


def _score(
    candidate: Candidate,
    task: AnnotationTask,
    split: str,
    score: Callable[[Candidate, str], dict[str, np.ndarray]],
    thresholds: str,
    given: np.ndarray | None,
) -> Scored:
    outputs = score(candidate, split)
    result = Scored(candidate, outputs["scores"], task.evaluate(split, outputs))
    if not thresholds:
        return result
    if thresholds in _FITTED:
        fitted_on = outputs if split == "train" else score(candidate, "train")
        given = _FITTED[thresholds](fitted_on["scores"], task.split("train").targets)
    return dataclasses.replace(result, thresholds=given, by_label=task.evaluate(split, outputs, given))


def _write_numbers(
    config: ConfigDict, output: Path, task: AnnotationTask, split: str, results: list[Scored], thresholds: str
) -> None:
    part, best = task.split(split), results[-1]
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        scores=best.scores.astype(np.float32),
        targets=np.asarray(part.targets, np.uint8),
        image_names=np.array(part.image_names),
        labels=np.array(part.labels),
    )
    write_bytes(output / "scores.npz", buffer.getvalue())
    frozen = ", frozen" if config.model.freeze_backbone else ""
    model = f"{config.model.backbone}{frozen} + {config.model.head} at {config.data.image_size} px"
    rows = []
    for result in results[::-1]:
        for name, metrics, published in _rows(config, result, split, thresholds):
            facts = {"model": model, "dtype": config.model.dtype, "split": split, **result.candidate.facts}
            rows.append({"name": name, "published": published, **facts, **metrics})
    write_json(output / "metrics.json", {**best.plain, **best.candidate.facts, "split": split, "rows": rows})


def _rows(config: ConfigDict, result: Scored, split: str, thresholds: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(name, metrics, key of the published row or "") of each of a result's rows."""
    published = config.published if split == "test" else ""
    yield result.candidate.name, result.plain, published
    if result.by_label is not None:
        key = f"{published}+mcc" if thresholds == "mcc" else ""
        named = {"mcc": "MCC thresholds", "exact": "exact MCC thresholds"}.get(thresholds, Path(thresholds).name)
        yield f"{result.candidate.name}, {named}", result.by_label, key if key in RESULTS else ""


def _draw(output: Path, task: AnnotationTask, split: str, graphdef: nnx.GraphDef, result: Scored) -> None:
    part = task.split(split)
    threshold = task.config.eval.threshold if result.thresholds is None else result.thresholds
    rows = np.unique(np.linspace(0, len(part) - 1, _PICTURES).round().astype(int))
    images = np.asarray(part.arrays["image"][rows])
    explain_step = make_predict_step(graphdef, task.explain, sharding.data_mesh(jax.local_devices()[:1]))
    out = jax.device_get(explain_step(jax.device_get(result.candidate.weights), {"image": images}))
    targets, hits = part.targets[rows] > 0, out["scores"] > threshold
    limit = task.config.eval.threshold if result.thresholds is None else "the label's threshold"
    title = f"{task.config.data.name}, {split} split, score > {limit}"
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


def _table(config: ConfigDict, results: list[Scored], split: str, thresholds: str) -> str:
    """Measured rows, the published ones and the difference of the best to them, as text."""
    best = results[-1].plain
    lines: list[Row | str] = []
    measured = list(zip(*(_rows(config, result, split, thresholds) for result in results[::-1]), strict=True))
    for kind in measured:
        lines += [Row(name, metrics) for name, metrics, _ in kind]
        _, metrics, key = kind[0]
        if key:
            lines += [Row(f"published ({key})", RESULTS[key]), Row("difference", difference(metrics, key), signed=True)]
    if config.eval.split == split == "test" and "epoch" in results[-1].candidate.facts:
        lines.append("best epoch and weights were chosen on the test split, as in the published runs")
    title = f"{best['num_images']} images, {best['num_labels']} labels, score > {best['threshold']}"
    return f"{config.data.name}, {split} split: {title}\n" + metric_table(lines)
