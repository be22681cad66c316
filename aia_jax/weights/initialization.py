"""Weights that training starts from: a backbone's, a whole model's, or those of a model of other labels."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from aia_jax.data.annotation.annotations import read_labels
from aia_jax.training.model_arrays import Arrays, flat_arrays, replace_arrays
from aia_jax.training.runs import best_step, open_run
from aia_jax.training.task import Task
from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import format_count, printable
from aia_jax.weights.load import Shapes, count_labels, load_arrays, model_shapes, read_torch_state

# Arrays with an entry for each label, and on which axis.
_LABEL_AXES = {
    "head.query_embedding": 0,
    "head.weight": 0,
    "head.bias": 0,
    "head.linear.kernel": 1,
    "head.linear.bias": 0,
}
_STRICT, _BY_NAME = "strict", "by_name"  # of config.init_labels
_LISTED = 20


def initializer(config: ConfigDict, task: Task) -> Callable[[Arrays], Arrays] | None:
    """What puts the weights of `config.init_from` or `config.init_backbone` in place of drawn ones; None: neither.

    They are read now, so that a file that does not fit is told before anything is computed.

    Raises:
        InputError: both are given, or what they name cannot be used.
    """
    if config.init_from and config.init_backbone:
        raise InputError("config.init_from brings a whole model, config.init_backbone a backbone: give one of them")
    if not config.init_from and not config.init_backbone:
        return None
    if not config.init_from and not config.model.backbone:
        raise InputError("config.init_backbone: config.model.backbone is '', so that there is none to start from it")
    if config.init_from and config.get("init_labels", _STRICT) != _STRICT:
        return _by_name(config, task)
    shapes = model_shapes(task.build_model, backbone_only=not config.init_from)
    arrays = load_arrays(config.init_from or config.init_backbone, config, shapes, _described(config, task))
    return lambda weights: replace_arrays(weights, arrays)


def _described(config: ConfigDict, task: Task) -> dict[str, Any]:
    """What a whole model's run must have been trained on; not the photos' statistics, as it is trained on new ones."""
    described = task.describe() if config.init_from else {}
    return {name: value for name, value in described.items() if name != "channel_stats"}


def _by_name(config: ConfigDict, task: Task) -> Callable[[Arrays], Arrays]:
    """Of a model of other labels: what belongs to labels that the task has too is kept, the rest stays drawn.

    `config.init_labels` is "by_name", or a file of the labels that a PyTorch file was trained on, which does not say
    them itself: without, all that belongs to labels stays drawn.
    """
    source, shapes = config.init_from, model_shapes(task.build_model)
    names, count = _labels_of(source, config)
    described = {**_described(config, task), "labels": list(names or ())}
    arrays = load_arrays(source, config, _of_labels(shapes, count), described)
    columns = {label: column for column, label in enumerate(names or ())}
    kept = [(row, columns[label]) for row, label in enumerate(task.labels) if label in columns]
    if jax.process_index() == 0:
        print(_summary(source, task.labels, names, [row for row, _ in kept]), flush=True)
    rows, theirs = (np.array(side, int) for side in (zip(*kept, strict=True) if kept else ((), ())))
    return lambda weights: replace_arrays(weights, _merged(flat_arrays(weights), arrays, rows, theirs))


def _labels_of(source: str, config: ConfigDict) -> tuple[tuple[str, ...] | None, int | None]:
    """The labels of a model, None if nothing tells them, and their number, None if it has none."""
    given = config.init_labels
    if given != _BY_NAME and not Path(given).is_file():
        raise InputError(f"config.init_labels={given!r} is unknown; known: {_STRICT}, {_BY_NAME}, or a file of labels")
    listed = None if given == _BY_NAME else read_labels(Path(given))
    if Path(source).is_dir():
        with open_run(Path(source)) as checkpointer:
            step = best_step(checkpointer)
            names = None if step is None else checkpointer.info(step).get("labels")
        if names is None:
            raise InputError(f"the checkpoint in {source} does not say its labels; train or convert it anew")
        return listed or tuple(names), len(names)
    count = count_labels(read_torch_state(source))
    if listed and count not in (None, len(listed)):
        scored = format_count(count, "label")
        raise InputError(f"{source} scores {scored}, but config.init_labels={given} lists {len(listed)}")
    return listed, count


def _of_labels(shapes: Shapes, count: int | None) -> Shapes:
    """The shapes of the same model for `count` labels."""
    if count is None:
        return shapes
    axes = {path: _LABEL_AXES.get(path) for path in shapes}
    return {
        path: shape if axes[path] is None else (*shape[: axes[path]], count, *shape[axes[path] + 1 :])
        for path, shape in shapes.items()
    }


def _merged(
    drawn: Mapping[str, jax.Array], arrays: Mapping[str, np.ndarray], rows: np.ndarray, theirs: np.ndarray
) -> dict[str, Any]:
    """`arrays`, of those with labels the drawn ones with entries `theirs` of the given ones at `rows`."""
    merged = dict(arrays)
    for path in _LABEL_AXES.keys() & arrays.keys():
        axis = _LABEL_AXES[path]
        at = (slice(None),) * axis
        merged[path] = drawn[path].at[(*at, rows)].set(jnp.take(jnp.asarray(arrays[path]), theirs, axis=axis))
    return merged


def _summary(source: str, labels: Sequence[str], names: Sequence[str] | None, known: Sequence[int]) -> str:
    total = format_count(len(labels), "label")
    if names is None:
        return (
            f"{source} does not say its labels: the queries and scores of all {total} are drawn anew; "
            "config.init_labels may name a file that lists them"
        )
    kept = set(known)
    sides = [[printable(label) for row, label in enumerate(labels) if (row in kept) == side] for side in (True, False)]
    told = [f": {', '.join(side[:_LISTED])}{' ...' * (len(side) > _LISTED)}" if side else "" for side in sides]
    return f"{len(sides[0]):,} of {total} known to {source}{told[0]}; {len(sides[1]):,} new{told[1]}"
