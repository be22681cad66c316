"""Creates the task that a config names."""

from ml_collections import ConfigDict

from aia_jax.tasks.annotation import AnnotationTask
from aia_jax.tasks.frozen_backbone import FrozenBackboneTask
from aia_jax.tasks.retrieval import RetrievalTask
from aia_jax.tasks.search import SearchTask
from aia_jax.utils.config_fields import check_fields
from aia_jax.utils.errors import InputError


def make_task(config: ConfigDict) -> AnnotationTask | RetrievalTask | SearchTask:
    """Creates the task named by `config.task`. Raises InputError if the task is unknown or a field is invalid."""
    check_fields(config)
    if config.task == "annotation":
        return (FrozenBackboneTask if config.model.freeze_backbone else AnnotationTask)(config)
    if config.task == "retrieval":
        return RetrievalTask(config)
    if config.task == "search":
        return SearchTask(config)
    raise InputError(f"config.task={config.task!r} is unknown; known: annotation, retrieval, search")
