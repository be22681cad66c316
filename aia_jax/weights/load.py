"""Loads weights from a workdir, a model folder, a PyTorch file or a package. Checks that they fit the config."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from aia_jax.models.backbones import backbone_named
from aia_jax.training import sharding
from aia_jax.training.model_arrays import abstract_weights, flat_arrays, select_weights
from aia_jax.training.runs import check_complete_model, check_same_data, read_run_config, run_arrays
from aia_jax.training.task import Task
from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import differences, format_count
from aia_jax.utils.model_folders import model_folder, read_about
from aia_jax.weights import name_map
from aia_jax.weights.model_folder import read_model_folder
from aia_jax.weights.packages import PACKAGES, pretrained_file
from aia_jax.weights.torch_files import find_weights_file, read_torch_file
from aia_jax.weights.torch_state import TorchStateDict, identify_state

_TRACELESS = ("num_heads", "activation", "norm_first", "keep_query_position")  # change no shape of an array
_SIZES = ("image_features", "text_features", "embed_size", "word_size")  # clearer in a message than the shapes
_SYSTEMS = {"attention": "annotator", "gap": "classifier", "text": ""}  # system for each config.model.head
Shapes = Mapping[str, tuple[int, ...]]
_print_once = functools.cache(functools.partial(print, flush=True))


def model_shapes(build: Callable[..., Any], *, backbone_only: bool = False) -> dict[str, tuple[int, ...]]:
    """Returns `{path: shape}` for all arrays of the model that `build` returns, or only for those of its backbone."""
    _, abstract = abstract_weights(build, sharding.data_mesh())
    shapes = {path: leaf.shape for path, leaf in flat_arrays(select_weights(abstract, "raw")).items()}
    return {path: shape for path, shape in shapes.items() if not backbone_only or path.startswith("backbone.")}


def load_arrays(
    source: str | Path, config: ConfigDict, shapes: Shapes, described: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Loads a model's arrays, `{path: array}`.

    Args:
        source: a workdir (its best epoch is loaded), a model folder or its name, a PyTorch file, or a key of
            `PACKAGES`.
        config: a config whose `model` part describes the model.
        shapes: `{path: shape}` of the arrays to load; see `model_shapes`. If `shapes` has only the backbone's arrays,
            the head in the source is ignored, and a message lists the ignored arrays.
        described: the task's facts about the data (`Task.describe`). A workdir or a model folder must have the same.

    Raises:
        InputError: the source does not exist, or it holds another model or other labels.
    """
    if folder := model_folder(source):
        found = read_model_folder(folder)
        info = {**found.facts, **({"labels": list(found.labels)} if found.labels else {})}
        # A packaged dual encoder also has arrays for the calibration of its scores.
        arrays = {path: value for path, value in found.arrays.items() if not path.startswith("open_vocabulary.")}
        return _fitting(folder, found.config.to_dict(), arrays, info, config, shapes, described)
    if is_run(source):
        arrays, info = run_arrays(Path(source))
        return _fitting(Path(source), read_run_config(Path(source)), arrays, info, config, shapes, described)
    torch_state = read_torch_state(source, config)
    check_model(torch_state, config, shapes, str(source))
    if not _is_whole(shapes) and torch_state.head:
        print(f"{source}: the backbone is loaded, and these arrays are ignored: {torch_state.list_head()}", flush=True)
    return name_map.from_torch(torch_state, shapes, str(source))


def is_run(source: str | Path) -> bool:
    """Returns whether `source` is the folder of a run, and neither a weights file nor a folder with such a file."""
    return Path(source).is_dir() and find_weights_file(source) is None


def read_torch_state(source: str | Path, config: Mapping[str, Any] | None = None) -> TorchStateDict:
    """Reads a PyTorch file or a package of `PACKAGES`. Prints which of several weights are read.

    Raises InputError for an unreadable file or an unknown model.
    """
    path = pretrained_file(str(source)) if str(source) in PACKAGES else source
    state, options, notes = read_torch_file(path, (config or {}).get("weights_key", ""))
    for note in notes:
        _print_once(note)
    return identify_state(state, str(source), options)


def load_torch_file(source: str | Path, task: Task) -> tuple[TorchStateDict, dict[str, np.ndarray]]:
    """Converts the arrays of a PyTorch file or a package of backbone weights for the task's model.

    Returns a `TorchStateDict` and the model's arrays, `{path: array}`. If the file has only a backbone, returns only
    the backbone's arrays. Raises InputError if the file cannot be read or has another model.
    """
    torch_state = read_torch_state(source, task.config)
    shapes = model_shapes(task.build_model, backbone_only=torch_state.system == "backbone")
    check_model(torch_state, task.config, shapes, str(source))
    return torch_state, name_map.from_torch(torch_state, shapes, str(source))


def check_model(torch_state: TorchStateDict, config: ConfigDict, shapes: Shapes, where: str) -> None:
    """Raises InputError if a file and `config` differ in system, backbone family, reasoning, vocabulary or labels."""
    model, whole, found = config.model, _is_whole(shapes), f"{where} holds {torch_state.describe()}"
    is_retrieval = torch_state.system == "retrieval"
    classifies = bool(torch_state.head) and model.get("head") == "gap" and model.get("score") == "softmax"
    if whole and torch_state.system == "backbone" and model.backbone and not classifies:
        raise InputError(f"{found} alone; give it as config.init_backbone")
    if (whole or is_retrieval) and is_retrieval != (config.task == "retrieval"):
        raise InputError(f"{found}, but config.task is {config.task!r}")
    if is_retrieval and model.backbone:
        raise InputError(
            f"{found} on given features, but this config computes features with config.model.backbone={model.backbone}"
        )
    if is_retrieval and torch_state.reasoning != model.reasoning:
        raise InputError(f"{found}, but config.model.reasoning is {model.reasoning!r}")
    if is_retrieval and config.model.get("text", "gru") != "gru":
        raise InputError(f"{found} with a GRU, but config.model.text is {config.model.text!r}")
    if is_retrieval:
        embedding, words = torch_state.sgraf.get("1.embed.weight"), shapes["sgraf.text.embedding"][0]
        if embedding is not None and embedding.ndim and len(embedding) != words:
            raise InputError(
                f"{where} was trained with a vocabulary of {len(embedding)} words, but config.data.vocabulary has "
                f"{words}; name the vocabulary of the data it was trained on"
            )
        return
    if not model.backbone:
        raise InputError(f"{found}, but config.model.backbone is '', which means that features are given")
    if torch_state.family != backbone_named(model.backbone).family:
        raise InputError(f"{found}, but config.model.backbone is {model.backbone}")
    if not whole:
        return
    if torch_state.system != _SYSTEMS[model.head] and not classifies:
        raise InputError(f"{found}, but config.model.head is {model.head!r}")
    given, expected = count_labels(torch_state), _count_labels(shapes)
    if given is not None and given != expected:
        raise InputError(
            f"{where} scores {format_count(given, 'label')}, but the data of this config, or --labels, list {expected}"
            "; give the config of the data set that it was trained on (config.data.name, config.data.root). For "
            "training, config.init_labels=by_name keeps the weights of labels in both vocabularies"
        )


def count_labels(torch_state: TorchStateDict) -> int | None:
    """Returns the number of labels that the model in a file scores, or None if the model has no head."""
    return _count_labels({f"head.{name}": value.shape for name, value in torch_state.head.items()})


def with_reasoning_of(source: str, config: ConfigDict) -> ConfigDict:
    """Returns a copy of `config` with the `model.reasoning` ("sgr" or "saf") of a workdir or a PyTorch file.

    Raises InputError if `source` cannot be read, or if the PyTorch file has no retrieval model.
    """
    if "reasoning" not in config.model:  # a dual encoder
        return config
    config = config.copy_and_resolve_references()
    folder = model_folder(source)
    if folder or is_run(source):
        written = read_about(folder)["config"] if folder else read_run_config(Path(source))
        config.model.reasoning = written["model"].get("reasoning", "")
        return config
    torch_state = read_torch_state(source, config)
    if torch_state.system != "retrieval":
        raise InputError(f"{source} holds {torch_state.describe()}, but config.task is {config.task!r}")
    config.model.reasoning = torch_state.reasoning
    return config


def check_shapes(where: Path, arrays: Mapping[str, Any], shapes: Shapes) -> None:
    """Raises InputError if `arrays`, the weights in `where`, do not have exactly the paths and shapes in `shapes`."""
    found = {path: tuple(value.shape) for path, value in arrays.items()}
    scored, listed = _count_labels(found), _count_labels(shapes)
    if None not in (scored, listed) and scored != listed:
        raise InputError(f"the weights in {where} score {format_count(scored, 'label')}, but its labels are {listed}")
    _check_equal(f"the weights in {where} do not fit this config:", found, shapes, "in the model")


def _fitting(
    where: Path,
    written: Mapping[str, Any],
    arrays: dict[str, Any],
    info: dict[str, Any],
    config: ConfigDict,
    shapes: Shapes,
    described: dict[str, Any],
) -> dict[str, Any]:
    """Returns the arrays of a workdir or a model folder for `shapes`. `written` is its config, and `info` its facts."""
    whole = _is_whole(shapes)
    problem = f"{where} holds another model than this config:"
    if whole:
        name, task = written["model"].get("name", "none"), written.get("task", config.task)
        there = {"config.task": task, "config.model.name": name}
        here = {"config.task": config.task, "config.model.name": config.model.get("name", "none")}
        _check_equal(problem, there, here, "given")
        check_complete_model(where, info)
        check_same_data(where, info, described)
    fields = ["backbone"]
    if whole and config.model.get("head") == "attention":
        fields += _TRACELESS
    if whole and config.model.get("name") == "dual_encoder":
        fields += _SIZES
    there, here = (
        {f"config.model.{field}": _without_lists(model.get(field)) for field in fields}
        for model in (written["model"], config.model)
    )
    _check_equal(problem, there, here, "given")
    check_shapes(where, {path: value for path, value in arrays.items() if whole or path in shapes}, shapes)
    return {path: arrays[path] for path in shapes}


def _without_lists(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # a tuple of a config is a list in its JSON


def _check_equal(problem: str, there: Mapping[str, Any], here: Mapping[str, Any], where: str) -> None:
    """Compares two mappings. Raises InputError with a list of the names whose values differ."""
    if differing := differences(there, here, where):
        raise InputError("\n  ".join([problem, *differing]))


def _is_whole(shapes: Shapes) -> bool:
    return any(not path.startswith("backbone.") for path in shapes)


def _count_labels(shapes: Shapes) -> int | None:
    """Returns the size of the head's bias or of a table of labels, else None. Accepts our paths and PyTorch's names."""
    if embeddings := shapes.get("head.embeddings"):
        return embeddings[0]
    biases = ("head.linear.bias", "head.bias", "head.b")
    return next((shapes[path][-1] for path in biases if shapes.get(path)), None)
