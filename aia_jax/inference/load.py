"""Loads a trained annotator and its thresholds from a run, a converted checkpoint or a PyTorch file."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from aia_jax.data.annotation.annotations import read_labels
from aia_jax.data.annotation.datasets import read_vocabulary
from aia_jax.metrics.thresholds import load_thresholds
from aia_jax.models.annotator import build_annotator
from aia_jax.tasks.trained_annotator import TrainedAnnotator
from aia_jax.utils.config import read_config
from aia_jax.utils.errors import InputError
from aia_jax.weights.load import load_arrays, model_shapes


def load_trained_annotator(
    source: str | Path,
    config: ConfigDict | str | Path | None = None,
    *,
    labels: str | Path | None = None,
    batch_size: int = 32,
    dtype: str | None = None,
    fold: bool = True,
) -> TrainedAnnotator:
    """Loads the model of `aia_jax.load`.

    Args:
        source, config, labels, batch_size: see `aia_jax.load`.
        dtype: of the computation, instead of `config.model.dtype`.
        fold: see `TrainedAnnotator`.

    Raises:
        InputError: an argument cannot be used.
    """
    source = Path(source)
    if config is None:
        if labels:
            raise InputError("labels are for weights of a file, with its config; a run has its own")
        if not source.exists():
            raise InputError(f"{source} is not there")
        if not source.is_dir():
            raise InputError(f"{source} is no folder of a run; a file of weights needs its config too")
        return TrainedAnnotator.from_run(source, batch_size, dtype, fold=fold)
    config = config.copy_and_resolve_references() if isinstance(config, ConfigDict) else read_config(str(config))
    if config.get("task") != "annotation":
        raise InputError(f"config.task={config.get('task')!r}: labels are those of an annotation config")
    if dtype:
        config.model.dtype = dtype
    try:
        names = read_labels(Path(labels)) if labels else read_vocabulary(config.data)
    except InputError as error:
        advice = "" if labels else "; without the data, --labels names a file of the labels"
        raise InputError(f"{error}{advice}") from None
    shapes = model_shapes(lambda rngs: build_annotator(config.model, len(names), rngs=rngs))
    arrays = load_arrays(source, config, shapes, {"labels": list(names)})
    return TrainedAnnotator(config, names, arrays, batch_size, fold=fold)


def read_thresholds(
    given: float | str | Path | None, source: str | Path, annotator: TrainedAnnotator
) -> float | np.ndarray:
    """Returns one threshold for all labels, or `[C]`; see `threshold` of `aia_jax.load`.

    Raises:
        InputError: the threshold is not in 0..1, or its file cannot be used.
    """
    if given is None and (Path(source) / "thresholds.json").is_file():
        given = Path(source) / "thresholds.json"
    if given is None:
        return annotator.config.eval.threshold
    if isinstance(given, str | Path):
        return load_thresholds(given, annotator.labels)
    if not 0 <= given <= 1:
        raise InputError(f"the threshold must lie in 0..1, not {given}")
    return given
