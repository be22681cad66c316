"""Creates the task that a config names."""

import numpy as np
from ml_collections import ConfigDict

from aia_jax.data.remote_data import with_local_data
from aia_jax.metrics.annotation import annotation_metrics
from aia_jax.metrics.retrieval import retrieval_metrics
from aia_jax.tasks.annotation import AnnotationTask
from aia_jax.tasks.dual_encoder import DualEncoderTask
from aia_jax.tasks.frozen_backbone import FrozenBackboneTask
from aia_jax.tasks.retrieval import RetrievalTask
from aia_jax.tasks.search import SearchTask
from aia_jax.utils.config_fields import check_fields
from aia_jax.utils.errors import InputError


def make_task(config: ConfigDict) -> AnnotationTask | RetrievalTask | DualEncoderTask | SearchTask:
    """Creates the task named by `config.task`. Copies data from object storage if `config.data.root` is a URL.

    Raises InputError if the task is unknown, a field is invalid, or the data cannot be copied.
    """
    check_fields(config)
    config = with_local_data(config)
    if config.task == "annotation":
        return (FrozenBackboneTask if config.model.freeze_backbone else AnnotationTask)(config)
    if config.task == "retrieval":
        return (DualEncoderTask if config.model.get("name") == "dual_encoder" else RetrievalTask)(config)
    if config.task == "search":
        return SearchTask(config)
    raise InputError(f"config.task={config.task!r} is unknown; known: annotation, retrieval, search")


def check_metric(config: ConfigDict) -> None:
    """Raises InputError if `config.eval.metric`, which chooses the best epoch, is not a metric of the task."""
    one, metric = np.zeros((1, 1)), config.eval.metric
    metrics = {"annotation": annotation_metrics(one, one, 0.5), "retrieval": retrieval_metrics(one)}
    known = metrics.get(config.task, [metric])  # the task of image search checks the metric itself
    if metric not in known:
        raise InputError(f"config.eval.metric={metric!r} is not a metric of this task; known: {', '.join(known)}")
