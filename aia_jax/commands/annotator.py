"""An annotator of one's own photos from whatever a user has: a run, a converted checkpoint, a PyTorch file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from aia_jax.commands.cli import read_config
from aia_jax.commands.weights import model_shapes, read_arrays
from aia_jax.data.annotations import read_labels
from aia_jax.data.datasets import read_vocabulary
from aia_jax.errors import InputError
from aia_jax.models.annotator import build_annotator
from aia_jax.tasks.photo_annotator import PhotoAnnotator
from aia_jax.tasks.trained_annotator import TrainedAnnotator
from aia_jax.thresholds import load_thresholds


def load_annotator(
    source: str | Path,
    config: ConfigDict | str | Path | None = None,
    *,
    labels: str | Path | None = None,
    threshold: float | str | Path | None = None,
    top: int | None = None,
    batch_size: int = 32,
) -> PhotoAnnotator:
    """See `aia_jax.load`."""
    if config is None:
        if labels:
            raise InputError("labels are for weights of a file, with its config; a run has its own")
        if not Path(source).is_dir():
            raise InputError(f"{source} is no folder of a run; a file of weights needs its config too")
        annotator = TrainedAnnotator.of_run(source, batch_size)
    else:
        annotator = _from_weights(source, config, labels, batch_size)
    return PhotoAnnotator(annotator, _thresholds(threshold, Path(source), annotator), top)


def _from_weights(
    source: str | Path, config: ConfigDict | str | Path, labels: str | Path | None, batch_size: int
) -> TrainedAnnotator:
    config = config if isinstance(config, ConfigDict) else read_config(str(config))
    if config.get("task") != "annotation":
        raise InputError(f"config.task={config.get('task')!r}: labels are those of an annotation config")
    names = read_labels(Path(labels)) if labels else _vocabulary(config)
    shapes = model_shapes(lambda rngs: build_annotator(config.model, len(names), rngs=rngs))
    arrays = read_arrays(source, config, shapes, {"labels": list(names)})
    return TrainedAnnotator(config, names, arrays, batch_size)


def _vocabulary(config: ConfigDict) -> Sequence[str]:
    try:
        return read_vocabulary(config.data)
    except InputError as error:
        raise InputError(f"{error}; without the data, --labels names a file of the labels") from None


def _thresholds(given: float | str | Path | None, source: Path, annotator: TrainedAnnotator) -> float | np.ndarray:
    own = source / "thresholds.json"
    if given is None and own.is_file():
        given = own
    if given is None:
        return annotator.config.eval.threshold
    if isinstance(given, str | Path):
        return load_thresholds(given, annotator.labels)
    if not 0 <= given <= 1:
        raise InputError(f"the threshold must lie in 0..1, not {given}")
    return given
