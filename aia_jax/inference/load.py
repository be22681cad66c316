"""An annotator of one's own photos from whatever a user has: a run, a converted checkpoint, a PyTorch file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from aia_jax.data.annotation.annotations import read_labels
from aia_jax.data.annotation.datasets import read_vocabulary
from aia_jax.inference.annotator import PhotoAnnotator
from aia_jax.metrics.thresholds import load_thresholds
from aia_jax.models.annotator import build_annotator
from aia_jax.tasks.trained_annotator import TrainedAnnotator
from aia_jax.utils.config import read_config
from aia_jax.utils.errors import InputError
from aia_jax.weights.load import load_arrays, model_shapes


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
    annotator = load_trained_annotator(source, config, labels=labels, batch_size=batch_size)
    return PhotoAnnotator(annotator, read_thresholds(threshold, source, annotator), top)


def load_trained_annotator(
    source: str | Path,
    config: ConfigDict | str | Path | None = None,
    *,
    labels: str | Path | None = None,
    batch_size: int = 32,
    dtype: str | None = None,
    fold: bool = True,
) -> TrainedAnnotator:
    """The scores behind `load_annotator`.

    Args:
        source, config, labels, batch_size: see `aia_jax.load`.
        dtype: of the computation, in place of the config's `model.dtype`.
        fold: see `TrainedAnnotator`.
    """
    if config is not None:
        return _from_weights(source, config, labels, batch_size, dtype, fold)
    if labels:
        raise InputError("labels are for weights of a file, with its config; a run has its own")
    if not Path(source).is_dir():
        what = (
            "is no folder of a run; a file of weights needs its config too" if Path(source).exists() else "is not there"
        )
        raise InputError(f"{source} {what}")
    return TrainedAnnotator.from_run(source, batch_size, dtype, fold=fold)


def read_thresholds(
    given: float | str | Path | None, source: str | Path, annotator: TrainedAnnotator
) -> float | np.ndarray:
    """One threshold for all labels, or `[C]`; see `threshold` of `aia_jax.load`."""
    own = Path(source) / "thresholds.json"
    if given is None and own.is_file():
        given = own
    if given is None:
        return annotator.config.eval.threshold
    if isinstance(given, str | Path):
        return load_thresholds(given, annotator.labels)
    if not 0 <= given <= 1:
        raise InputError(f"the threshold must lie in 0..1, not {given}")
    return given


def _from_weights(
    source: str | Path,
    config: ConfigDict | str | Path,
    labels: str | Path | None,
    batch_size: int,
    dtype: str | None,
    fold: bool,
) -> TrainedAnnotator:
    config = config.copy_and_resolve_references() if isinstance(config, ConfigDict) else read_config(str(config))
    if config.get("task") != "annotation":
        raise InputError(f"config.task={config.get('task')!r}: labels are those of an annotation config")
    if dtype:
        config.model.dtype = dtype
    names = read_labels(Path(labels)) if labels else _vocabulary(config)
    shapes = model_shapes(lambda rngs: build_annotator(config.model, len(names), rngs=rngs))
    arrays = load_arrays(source, config, shapes, {"labels": list(names)})
    return TrainedAnnotator(config, names, arrays, batch_size, fold=fold)


def _vocabulary(config: ConfigDict) -> Sequence[str]:
    try:
        return read_vocabulary(config.data)
    except InputError as error:
        raise InputError(f"{error}; without the data, --labels names a file of the labels") from None
