"""Loads initial weights from `config.init_from` or `config.init_backbone`. The source can have other labels."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from aia_jax.data.annotation.annotations import read_labels
from aia_jax.training.model_arrays import Arrays, flat_arrays, replace_arrays
from aia_jax.training.runs import open_run
from aia_jax.training.task import Task
from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import MAX_LISTED, format_count, printable
from aia_jax.utils.model_folders import LABELS, find_model, model_folder, read_about
from aia_jax.utils.storage import is_url
from aia_jax.weights.load import Shapes, count_labels, is_run, load_arrays, model_shapes, read_torch_state
from aia_jax.weights.packages import PACKAGES, package_parts

# The path of each array that has an entry for each label, and the axis of the labels in this array.
_LABEL_AXES = {
    "head.query_embedding": 0,
    "head.embeddings": 0,
    "head.weight": 0,
    "head.bias": 0,
    "head.linear.kernel": 1,
    "head.linear.bias": 0,
}
_STRICT, _BY_NAME = "strict", "by_name"  # values of config.init_labels


def initializer(config: ConfigDict, task: Task) -> Callable[[Arrays], Arrays] | None:
    """Returns a function that replaces random weights by those of `config.init_from` or `config.init_backbone`.

    Also sets the arrays of `Task.initial_arrays`. Reads the weights immediately, so that an unsuitable source is
    reported before any computation. Returns None if there is nothing to set.

    Raises:
        InputError: the config names two sources, or a source that cannot be used.
    """
    if config.init_from and config.init_backbone:
        raise InputError(
            f"config.init_from={config.init_from} loads a whole model, and config.init_backbone={config.init_backbone} "
            "only a backbone: give one of them; --config.init_backbone= keeps the whole model"
        )
    if config.init_from and config.init_from not in PACKAGES:
        found = find_model(config.init_from)  # raises the error for unknown names
        if is_url(config.init_from):
            config = config.copy_and_resolve_references()
            config.init_from = str(found)
    own, from_source = task.initial_arrays(), _source_weights(config, task)
    if not own:
        return from_source

    def initialize(weights: Arrays) -> Arrays:
        weights = replace_arrays(weights, own)
        return from_source(weights) if from_source else weights

    return initialize


def _source_weights(config: ConfigDict, task: Task) -> Callable[[Arrays], Arrays] | None:
    """Returns the function that sets the weights of the source that `config` names, or None without a source."""
    if not config.init_from and not config.init_backbone:
        return None
    if not config.init_from and not config.model.backbone:
        raise InputError(
            "config.init_backbone: config.model.backbone is '', so the model has no backbone to initialise"
        )
    if config.init_from and config.get("init_labels", _STRICT) != _STRICT:
        return _initializer_by_name(config, task)
    shapes = model_shapes(task.build_model, backbone_only=not config.init_from)
    arrays = load_arrays(config.init_from or config.init_backbone, config, shapes, _facts(task))
    if not config.init_from and "classes" in config.model.get("image_features", ()):
        if config.init_backbone not in PACKAGES:
            raise InputError(
                f"config.init_backbone={config.init_backbone} has no classifier for the feature 'classes' of "
                f"config.model.image_features; name one of {', '.join(PACKAGES)}, or leave the feature out"
            )
        arrays |= package_parts(config.init_backbone)["head"]
    return lambda weights: replace_arrays(weights, arrays)


def _facts(task: Task) -> dict[str, Any]:
    """Returns the facts of `task.describe` that must be equal in `config.init_from`: all but `channel_stats`."""
    return {name: value for name, value in task.describe().items() if name != "channel_stats"}


def _initializer_by_name(config: ConfigDict, task: Task) -> Callable[[Arrays], Arrays]:
    """Returns a function that loads the weights of `config.init_from`. Labels that this source lacks stay random.

    `config.init_labels` is "by_name", or the path of a file that lists the labels of `config.init_from`. A PyTorch file
    does not list its labels. Therefore, with "by_name" and a PyTorch file, all labels stay random.
    """
    source = config.init_from
    names, count = _source_labels(source, config)
    shapes = _with_label_count(model_shapes(task.build_model), count)
    arrays = load_arrays(source, config, shapes, {**_facts(task), "labels": list(names or ())})
    places = {label: place for place, label in enumerate(names or ())}
    rows = np.array([row for row, label in enumerate(task.labels) if label in places], int)
    columns = np.array([places[task.labels[row]] for row in rows], int)
    if jax.process_index() == 0:
        print(_summary(source, task.labels, names, set(rows.tolist())), flush=True)
    return lambda weights: replace_arrays(weights, merge_labels(flat_arrays(weights), arrays, rows, columns))


def _source_labels(source: str, config: ConfigDict) -> tuple[tuple[str, ...] | None, int | None]:
    """Returns the labels of the model in `source` (None if unknown) and their number (None if there is no head)."""
    given = config.init_labels
    if given != _BY_NAME and not Path(given).is_file():
        raise InputError(f"config.init_labels={given!r} is unknown; known: {_STRICT}, {_BY_NAME}, or a file of labels")
    listed = None if given == _BY_NAME else read_labels(Path(given))
    if folder := model_folder(source):
        if LABELS not in read_about(folder)["files"]:
            raise InputError(f"config.init_from={source} is a model without labels; name an annotator")
        names = read_labels(folder / LABELS)
        return listed or names, len(names)
    if is_run(source):
        with open_run(Path(source)) as checkpointer:
            names = checkpointer.best()[1].get("labels")
        if names is None:
            raise InputError(f"{source} does not list its labels; name a run of an annotator, or convert it again")
        return listed or tuple(names), len(names)
    count = count_labels(read_torch_state(source, config))
    if listed and count not in (None, len(listed)):
        scored = format_count(count, "label")
        raise InputError(f"{source} scores {scored}, but config.init_labels={given} lists {len(listed)}")
    return listed, count


def _with_label_count(shapes: Shapes, count: int | None) -> Shapes:
    """Returns `shapes` with the number of labels changed to `count`. If `count` is None, changes nothing."""
    axes = {} if count is None else _LABEL_AXES
    return {
        path: tuple(count if axis == axes.get(path) else size for axis, size in enumerate(shape))
        for path, shape in shapes.items()
    }


def merge_labels(
    random: Mapping[str, jax.Array], arrays: Mapping[str, np.ndarray], rows: np.ndarray, columns: np.ndarray
) -> dict[str, Any]:
    """Returns `arrays`, but with other values for the paths in `_LABEL_AXES`.

    For these paths, takes the array in `random`, and replaces the labels `rows` by the labels `columns` of `arrays`.
    """
    merged = dict(arrays)
    for path in _LABEL_AXES.keys() & arrays.keys():
        axis = _LABEL_AXES[path]
        known = jnp.take(jnp.asarray(arrays[path]), columns, axis=axis)
        merged[path] = jnp.asarray(random[path]).at[(*[slice(None)] * axis, rows)].set(known)
    return merged


def _summary(source: str, labels: Sequence[str], names: Sequence[str] | None, known: set[int]) -> str:
    total = format_count(len(labels), "label")
    if names is None:
        return (
            f"{source} does not list its labels: the queries and scores of all {total} start from random weights; "
            "set config.init_labels to a file that lists them"
        )
    sides = [[printable(label) for row, label in enumerate(labels) if (row in known) == side] for side in (True, False)]
    lists = [f": {', '.join(side[:MAX_LISTED])}{' ...' * (len(side) > MAX_LISTED)}" if side else "" for side in sides]
    return f"{len(sides[0]):,} of {total} known to {source}{lists[0]}; {len(sides[1]):,} new{lists[1]}"
