"""Evaluates a run's checkpoints, or weights from other files, on a split."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from aia_jax.evaluation.annotation import AnnotationEvaluator
from aia_jax.evaluation.evaluator import Candidate, Evaluator
from aia_jax.evaluation.retrieval import RetrievalEvaluator
from aia_jax.evaluation.search import SearchEvaluator
from aia_jax.report.curves import draw_curves
from aia_jax.tasks.registry import make_task
from aia_jax.training import sharding
from aia_jax.training.metric_writer import read_metrics
from aia_jax.training.model_arrays import Arrays, abstract_weights, replace_arrays, select_weights
from aia_jax.training.prediction import Predictor
from aia_jax.training.runs import check_complete_model, check_same_config, check_same_data, open_run
from aia_jax.training.task import Task
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import check_writable, write_json
from aia_jax.weights.load import load_arrays, model_shapes, with_reasoning_of


def evaluate(
    config: ConfigDict,
    workdir: Path | None,
    output: Path,
    *,
    weights: Sequence[str] = (),
    split: str = "test",
    thresholds: str = "",
    html: bool = False,
    task: Task | None = None,
) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run, or `weights`, on a split.

    Writes `metrics.json` and the files of the system's `Evaluator` into `output`. Also writes `curves.png` if the run
    has a `metrics.jsonl`. Prints a table. If the last epoch of a run is not the best, the table shows both epochs.

    Args:
        config: `config.model.dtype` is the dtype of the computation.
        weights: workdirs, converted checkpoints or PyTorch files to evaluate instead of `workdir`. For retrieval,
            several weights are also evaluated together as an ensemble: the mean of their similarities.
        thresholds, html: options for annotation only; see `AnnotationEvaluator`.

    Returns:
        The metrics of the best checkpoint, or of the ensemble, as written to `metrics.json`.

    Raises:
        InputError: the system does not support an option, `workdir` has no checkpoint, the weights are for another
            model or for other data, or the thresholds are for other labels.
    """
    check_writable(output)
    task = task or make_task(config)
    sharding.check_batch_size("eval.batch_size", config.eval.batch_size, sharding.data_mesh())
    evaluator = _make_evaluator(task, split, workdir, thresholds=thresholds, html=html, num_weights=len(weights))
    candidates = _from_weights(config, weights, task, split) if weights else _from_run(config, workdir, task, split)
    results = [evaluator.score(candidate) for candidate in candidates]
    best = results[-1]
    metrics = {**best.metrics, **best.candidate.facts, "split": split}
    if jax.process_index() == 0:
        rows = [row for result in results[::-1] for row in result.rows]
        write_json(output / "metrics.json", {**metrics, "rows": rows})
        evaluator.write(output, best)
        if workdir and (records := read_metrics(workdir)):
            title = f"{config.data.name}: training, and {config.eval.metric} on the {config.eval.split} split"
            facts = best.candidate.facts
            chosen = None if config.eval.get("epoch") == "last" else (facts["epoch"], facts["weights"])
            draw_curves(output / "curves.png", records, config.eval.metric, best=chosen, title=title)
        print(evaluator.table(results), flush=True)
        print(f"written to {output}: {', '.join(sorted(path.name for path in output.iterdir()))}", flush=True)
    return metrics


def _make_evaluator(
    task: Any, split: str, workdir: Path | None, *, thresholds: str, html: bool, num_weights: int
) -> Evaluator:
    """Creates the evaluator of a task. Raises InputError for an option that the task does not support."""
    system = task.config.task
    name = "image search" if system == "search" else system
    if thresholds and system != "annotation":
        raise InputError(f"--thresholds is an option of annotation; {name} ranks and has no thresholds")
    if html and system != "annotation":
        raise InputError(f"--html is an option of annotation; {name} has no page of labels")
    if num_weights > 1 and system != "retrieval":
        raise InputError(f"several --weights make an ensemble, which {name} does not support; give one")
    if system == "annotation":
        return AnnotationEvaluator(task, split, thresholds=thresholds, html=html, workdir=workdir)
    return RetrievalEvaluator(task, split) if system == "retrieval" else SearchEvaluator(task, split)


def _from_run(config: ConfigDict, workdir: Path, task: Task, split: str) -> Iterator[Candidate]:
    """Yields the last evaluated epoch of a run, if this is not the best epoch. Then yields the best epoch."""
    with open_run(workdir) as checkpointer:
        check_same_config(workdir, config, free=("init_from", "init_backbone", "model.dtype"))
        best, _ = checkpointer.best()
        evaluated = [step for step in checkpointer.steps() if "weights" in checkpointer.info(step)]
        steps = dict.fromkeys((max(evaluated), best))
        for step in steps:
            check_complete_model(workdir, checkpointer.info(step))
            checkpointer.check_undamaged(step)
            check_same_data(workdir, checkpointer.info(step), task.describe())
        task.split(split)
        graphdef, shapes = abstract_weights(task.build_model, sharding.data_mesh())
        predictor = Predictor(graphdef, sharding.data_mesh())
        for step in steps:
            info = checkpointer.info(step)
            arrays = select_weights(checkpointer.restore(step, {"weights": shapes})["weights"], info["weights"])
            which = "best" if step == best and config.eval.get("epoch") != "last" else "last"
            name = f"{which} epoch ({info['epoch']}, {info['weights']})" if info["epoch"] else "converted"
            facts = {"weights": info["weights"], "epoch": info["epoch"], "step": step}
            yield _candidate(name, task, arrays, facts, predictor)


def _from_weights(config: ConfigDict, sources: Sequence[str], task: Task, split: str) -> list[Candidate]:
    """Returns a candidate for each file or workdir in `sources` and, if there are several, one for their ensemble."""
    mesh, candidates = sharding.data_mesh(), []
    for source in sources:
        own = with_reasoning_of(source, config) if len(sources) > 1 else config
        own_task = task if own is config else make_task(own)
        arrays = load_arrays(source, own, model_shapes(own_task.build_model), own_task.describe())
        own_task.split(split)
        graphdef, shapes = abstract_weights(own_task.build_model, mesh)
        weights = sharding.put_replicated(replace_arrays(select_weights(shapes, "raw"), arrays), mesh)
        predictor = Predictor(graphdef, mesh)
        candidates.append(_candidate(Path(source).name, own_task, weights, {"weights": source}, predictor))
    return candidates if len(candidates) == 1 else [*candidates, _ensemble(candidates, task)]


def _candidate(name: str, task: Task, weights: Arrays, facts: dict[str, Any], predictor: Predictor) -> Candidate:
    @functools.cache
    def outputs(split: str) -> dict[str, np.ndarray]:
        task.prepare(weights, (split,))
        return task.predict_split(predictor, [weights], split)[0]

    return Candidate(name, task, weights, facts, outputs)


def _ensemble(members: Sequence[Candidate], task: Task) -> Candidate:
    """Returns a candidate whose outputs are the mean of the outputs of `members`."""

    def outputs(split: str) -> dict[str, np.ndarray]:
        found = [member.outputs(split) for member in members]
        return {name: sum(each[name] for each in found) / len(found) for name in found[0]}

    name = " + ".join(member.name for member in members)
    return Candidate(name, task, {}, {"weights": [member.facts["weights"] for member in members]}, outputs)
