"""Scores a split with a run's checkpoints, or with weights from elsewhere, and leaves numbers and pictures."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from aia_jax.evaluation.annotation import AnnotationEvaluator
from aia_jax.evaluation.candidates import Candidate
from aia_jax.evaluation.retrieval import RetrievalEvaluator
from aia_jax.evaluation.search import SearchEvaluator
from aia_jax.report.curves import draw_curves
from aia_jax.tasks import make_task
from aia_jax.training import sharding
from aia_jax.training.metric_writer import read_metrics
from aia_jax.training.model_arrays import abstract_weights, replace_arrays, select_weights
from aia_jax.training.prediction import Predictor
from aia_jax.training.run_record import check_same_config
from aia_jax.training.runs import best_step, check_complete_model, open_run
from aia_jax.training.task import Task
from aia_jax.utils.errors import InputError
from aia_jax.weights.load import (
    check_same_data,
    load_arrays,
    model_shapes,
    with_reasoning_of,
)

_OUTCOMES = {"annotation": AnnotationEvaluator, "retrieval": RetrievalEvaluator, "search": SearchEvaluator}


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
    """Scores `split` with the best checkpoint of `workdir` (the last epoch's row is printed beside) or with `weights`.

    Writes into `output` `metrics.json`, what the system's outcome adds, scores and pictures, and of a run that was
    trained here `curves.png`.

    Args:
        weights: workdirs, converted checkpoints or PyTorch files, instead of `workdir`; of several, where the system
            allows it, the ensemble is scored too.
        thresholds, html: of annotation, see `AnnotationEvaluator`.

    Returns:
        The best checkpoint's metrics (the ensemble's, if there is one), as written.

    Raises:
        InputError: no checkpoint, weights of another model or other data, or thresholds of other labels.
    """
    task = task or make_task(config)
    sharding.check_batch_size("eval.batch_size", config.eval.batch_size, sharding.data_mesh())
    outcome = _OUTCOMES[config.task](task, split, thresholds=thresholds, num_sources=len(weights) or 1, html=html)
    candidates = _elsewhere(config, weights, task, split) if weights else _run(config, workdir, task, split)
    predictor_of = functools.cache(_predictor)

    def outputs(candidate: Candidate, name: str) -> dict[str, np.ndarray]:
        candidate.task.prepare(candidate.weights, (name,))
        return candidate.task.predict_split(predictor_of(candidate.task), [candidate.weights], name)[0]

    results = [outcome.score(candidate, functools.partial(outputs, candidate)) for candidate in candidates]
    results += outcome.combine(results) if len(weights) > 1 else []
    best = results[-1]
    if jax.process_index() == 0:
        outcome.write(output, workdir, results)
        if workdir:
            _draw_training(output, workdir, config, best)
        print(outcome.table(results), flush=True)
        print(f"written to {output}: {', '.join(sorted(path.name for path in output.iterdir()))}", flush=True)
    return {**best.plain, **best.candidate.facts, "split": split}


def _draw_training(output: Path, workdir: Path, config: ConfigDict, best: Any) -> None:
    records = read_metrics(workdir)
    if records:
        facts, split = best.candidate.facts, config.eval.split
        title = f"{config.data.name}: training, and {config.eval.metric} on the {split} split"
        draw_curves(
            output / "curves.png", records, config.eval.metric, best=(facts["epoch"], facts["weights"]), title=title
        )


def _predictor(task: Task) -> Predictor:
    graphdef, _ = abstract_weights(task.build_model, sharding.data_mesh())
    return Predictor(graphdef, sharding.data_mesh())


def _run(config: ConfigDict, workdir: Path, task: Task, split: str) -> Iterator[Candidate]:
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
            check_complete_model(workdir, info)
            checkpointer.check_undamaged(step)
            check_same_data(workdir, info, task.describe())
            arrays = select_weights(checkpointer.restore(step, {"weights": shapes})["weights"], info["weights"])
            which = "best" if step == best else "last"
            name = f"{which} epoch ({info['epoch']}, {info['weights']})" if info["epoch"] else "converted"
            facts = {"weights": info["weights"], "epoch": info["epoch"], "step": step}
            yield Candidate(name, arrays, facts, task)


def _elsewhere(config: ConfigDict, sources: Sequence[str], task: Task, split: str) -> Iterator[Candidate]:
    for source in sources:
        own = with_reasoning_of(source, config) if len(sources) > 1 else config
        of_source = task if own is config else make_task(own)
        of_source.split(split)
        arrays = load_arrays(source, own, model_shapes(of_source.build_model), of_source.describe())
        _, shapes = abstract_weights(of_source.build_model, sharding.data_mesh())
        weights = replace_arrays(select_weights(shapes, "raw"), arrays)
        placed = sharding.put_replicated(weights, sharding.data_mesh())
        yield Candidate(Path(source).name, placed, {"weights": source}, of_source)
