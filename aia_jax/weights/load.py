"""Weights from wherever a user has them: a run, a converted checkpoint, a PyTorch file, a package."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from aia_jax.models.backbones import backbone_named
from aia_jax.training import sharding
from aia_jax.training.model_arrays import (
    abstract_weights,
    flat_arrays,
    merge_model,
    replace_arrays,
    select_weights,
    split_model,
)
from aia_jax.training.runs import check_whole, run_arrays, written_config
from aia_jax.training.task import Task
from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import format_count
from aia_jax.weights import name_map
from aia_jax.weights.pretrained import PACKAGES, pretrained_file
from aia_jax.weights.sgraf_name_map import check_sizes
from aia_jax.weights.torch_files import read_torch_file
from aia_jax.weights.torch_state import TorchStateDict, identify_state

_TRACELESS = ("num_heads", "activation", "norm_first", "keep_query_position")
_SYSTEMS = {"attention": "annotator", "gap": "classifier"}  # of config.model.head
Shapes = Mapping[str, tuple[int, ...]]


def model_shapes(build: Callable[..., Any], *, backbone_only: bool = False) -> dict[str, tuple[int, ...]]:
    """Path to shape of every array of the model that `build` makes, or of its backbone."""
    _, abstract = abstract_weights(build, sharding.data_mesh())
    shapes = {path: leaf.shape for path, leaf in flat_arrays(select_weights(abstract, "raw")).items()}
    return {path: shape for path, shape in shapes.items() if not backbone_only or path.startswith("backbone.")}


def model_with_arrays(task: Task, arrays: Mapping[str, np.ndarray]) -> nnx.Module:
    """The task's model with `arrays`, path to array."""
    graphdef, weights = split_model(task.build_model(nnx.Rngs(0)))
    return merge_model(graphdef, replace_arrays(weights, {path: jnp.asarray(array) for path, array in arrays.items()}))


def load_arrays(
    source: str | Path, config: ConfigDict, shapes: Shapes, described: dict[str, Any]
) -> dict[str, np.ndarray]:
    """The arrays of `shapes` out of a workdir (its best epoch), a PyTorch file, or the package of a backbone's weights.

    Args:
        source: a folder, a file or a name such as "efficientnet_lite2".
        config: whose `model` the arrays are for.
        shapes: see `model_shapes`; without paths of the head, the head of the source is dropped and named.
        described: of the data, by the task.

    Raises:
        InputError: there is no such source, or it is not of this model or of these labels.
    """
    path = Path(source)
    if path.is_dir():
        return _from_run(path, config, shapes, described)
    torch_state = read_torch_state(source)
    check_model(torch_state, config, shapes, str(source))
    if not _is_whole(shapes) and torch_state.head:
        print(f"{source}: the backbone is taken, the rest dropped: {torch_state.list_head()}", flush=True)
    return name_map.from_torch(torch_state, shapes, str(source))


def read_torch_state(source: str | Path) -> TorchStateDict:
    """Reads and recognises a PyTorch file, or a package's.

    Raises:
        InputError: it cannot be read, or holds nothing known here.
    """
    state, options = read_torch_file(pretrained_file(source) if source in PACKAGES else source)
    return identify_state(state, str(source), options)


def check_model(torch_state: TorchStateDict, config: ConfigDict, shapes: Shapes, where: str) -> None:
    """Raises InputError if a recognised file is of another system, family, size or number of labels than the config."""
    model, whole, held = config.model, _is_whole(shapes), f"{where} holds {torch_state.describe()}"
    if whole and torch_state.system == "backbone" and model.backbone:
        raise InputError(f"{held} alone; give it as config.init_backbone")
    if (whole or torch_state.system == "retrieval") and (torch_state.system == "retrieval") != (
        config.task == "retrieval"
    ):
        raise InputError(f"{held}, but config.task is {config.task!r}")
    if torch_state.system == "retrieval":
        if model.backbone:
            raise InputError(
                f"{held} on given features, but this config's images go through config.model.backbone={model.backbone}"
            )
        check_sizes(torch_state.sgraf, torch_state.reasoning, model, shapes["sgraf.text.embedding"][0], where)
        return
    if not model.backbone:
        raise InputError(f"{held}, but config.model.backbone is '': features are given")
    if torch_state.family != backbone_named(model.backbone).family:
        raise InputError(f"{held}, but config.model.backbone is {model.backbone}")
    if whole:
        _check_head(torch_state, config, shapes, where)


def _check_head(torch_state: TorchStateDict, config: ConfigDict, shapes: Shapes, where: str) -> None:
    if torch_state.system != _SYSTEMS[config.model.head]:
        raise InputError(f"{where} holds {torch_state.describe()}, but config.model.head is {config.model.head!r}")
    given = count_labels(torch_state)
    expected = _num_labels(shapes)
    if given is not None and given != expected:
        raise InputError(
            f"{where} scores {format_count(given, 'label')}, but the data of this config list {expected}; "
            "give the config of the data set it was trained on (config.data.name, config.data.root); to train, "
            "config.init_labels=by_name takes over what it knows"
        )


def count_labels(torch_state: TorchStateDict) -> int | None:
    """How many labels a recognised file scores; None: it has no head."""
    return _num_labels({f"head.{name}": value.shape for name, value in torch_state.head.items()})


def check_same_data(workdir: Path, info: dict[str, Any], described: dict[str, Any]) -> None:
    """Raises InputError unless a run was trained on what `described`, a task's `describe()`, says of the data."""
    if info.get("labels") != described.get("labels"):
        there, here = (len(facts.get("labels", ())) for facts in (info, described))
        raise InputError(
            f"{workdir} was trained on other labels, or on another order of them, than the data list "
            f"({there} there, {here} here); evaluate it on data with its own `labels`"
        )
    there, here = info.get("channel_stats"), described.get("channel_stats")
    if there and here and there != here:
        raise InputError(
            f"{workdir} was trained on photos of other channel statistics ({there} there, {here} here), by which "
            "photos are normalised; aia import-labels --like takes over those of earlier data"
        )
    if info.get("annotator") != described.get("annotator"):
        raise InputError(
            f"{workdir} was trained on maps and keywords of another annotator; config.data.annotator names that one"
        )
    if info.get("vocabulary") != described.get("vocabulary"):
        there, here = ((facts.get("vocabulary") or {}).get("words", 0) for facts in (info, described))
        raise InputError(
            f"{workdir} was trained with another vocabulary ({there} words there, {here} here); "
            "name its file with config.data.vocabulary"
        )


def config_of(source: str, config: ConfigDict) -> ConfigDict:
    """`config` with the `model.reasoning` of the weights in `source`, a workdir or a PyTorch file.

    Raises:
        InputError: the file cannot be read, or is not of retrieval.
    """
    path = Path(source)
    own = config.copy_and_resolve_references()
    if path.is_dir():
        own.model.reasoning = written_config(path)["model"].get("reasoning", "")
        return own
    torch_state = read_torch_state(source)
    if torch_state.system != "retrieval":
        raise InputError(f"{source} holds {torch_state.describe()}, but config.task is {config.task!r}")
    own.model.reasoning = torch_state.reasoning
    return own


def _from_run(workdir: Path, config: ConfigDict, shapes: Shapes, described: dict[str, Any]) -> dict[str, Any]:
    arrays, info = run_arrays(workdir)
    if _is_whole(shapes):
        check_whole(workdir, info)
        check_same_data(workdir, info, described)
    _check_options(workdir, config, _is_whole(shapes))
    there = {path: tuple(value.shape) for path, value in arrays.items() if _is_whole(shapes) or path in shapes}
    differing = [
        f"  {path}: {there.get(path, 'absent')} there, {shapes.get(path, 'absent')} in the model"
        for path in sorted(there.keys() | shapes.keys())
        if there.get(path) != shapes.get(path)
    ]
    if differing:
        raise InputError("\n".join([f"the weights in {workdir} do not fit this config:", *differing]))
    return {path: arrays[path] for path in shapes}


def _check_options(workdir: Path, config: ConfigDict, whole: bool) -> None:
    """Raises InputError if the run's model differs in what leaves no trace in the arrays' shapes."""
    written = written_config(workdir)["model"]
    fields = ("backbone", *(_TRACELESS if whole and config.model.get("head") == "attention" else ()))
    differing = [
        f"  config.model.{field}: {written.get(field)} there, {config.model[field]} given"
        for field in fields
        if written.get(field) != config.model[field]
    ]
    if differing:
        raise InputError("\n".join([f"{workdir} holds another model than this config:", *differing]))


def _is_whole(shapes: Shapes) -> bool:
    return any(not path.startswith("backbone.") for path in shapes)


def _num_labels(shapes: Shapes) -> int | None:
    """Of our arrays or of theirs: the length of the bias that every label has."""
    biases = ("head.linear.bias", "head.bias", "head.b")
    return next((shapes[path][-1] for path in biases if shapes.get(path)), None)
