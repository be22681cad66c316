"""Writes and reads model folders: the weights, labels and thresholds of a trained model, and its description.

    config.json         format, task, config of the run, facts of the data, packages, measured results, SHA-256 of files
    model.safetensors   the arrays that no package has
    labels.json         {"labels": [...]}; only for models with labels
    thresholds.json     {label: threshold}; optional
    README.md           a model card for people; it has no digest, so that it may be edited

A folder does not hold the arrays of an installed package of weights. `config.json` names the package and their digest.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from ml_collections import ConfigDict

from aia_jax.data.annotation.annotations import read_labels
from aia_jax.data.feature_cache import weights_digest
from aia_jax.metrics.thresholds import load_thresholds, save_thresholds
from aia_jax.utils.config_fields import FIELDS, flatten
from aia_jax.utils.errors import InputError
from aia_jax.utils.files import sha256_of_file, write_bytes, write_json
from aia_jax.utils.model_folders import CONFIG, FORMAT, LABELS, THRESHOLDS, WEIGHTS, read_about
from aia_jax.version import __version__
from aia_jax.weights.packages import PACKAGES, package_parts

DTYPES = ("float16", "float32")  # of the floating arrays in a weights file


class ModelFolder(NamedTuple):
    """The content of a model folder.

    Attributes:
        path: the folder.
        task: `config.task`, such as "annotation".
        config: the config of the run that trained the model.
        arrays: all arrays of the model, `{path: array}`, floating arrays in float32.
        labels: the C labels, or () for a model without labels.
        facts: facts about the data that the model needs, such as `channel_stats`.
    """

    path: Path
    task: str
    config: ConfigDict
    arrays: dict[str, np.ndarray]
    labels: tuple[str, ...]
    facts: dict[str, Any]


def write_model_folder(
    folder: Path,
    config: ConfigDict,
    arrays: Mapping[str, np.ndarray],
    *,
    about: Mapping[str, Any],
    labels: Sequence[str] = (),
    thresholds: np.ndarray | None = None,
    facts: Mapping[str, Any] | None = None,
    dtype: str = "float16",
) -> dict[str, Any]:
    """Writes all files of a model folder except the card.

    Args:
        folder: an existing folder without files of a model.
        config: config of the run. The paths of its data on this machine are not written.
        arrays: all arrays of the model, `{path: array}`. Those of the package of `config.model.backbone` are left out.
        about: what people read: `name`, `description`, `measured` and others.
        labels, facts: see `ModelFolder`.
        thresholds: a threshold for each label, `[C]`.
        dtype: one of `DTYPES`.

    Returns:
        The content of `config.json`.

    Raises:
        InputError: a number is too large for float16.
    """
    held, packages = _find_packages(config, arrays)
    stored = {path: _convert(path, value, dtype) for path, value in arrays.items() if path not in held}
    if stored:
        write_bytes(folder / WEIGHTS, safetensors.numpy.save(stored))
    if labels:
        write_json(folder / LABELS, {"labels": list(labels)})
    if thresholds is not None:
        save_thresholds(folder / THRESHOLDS, labels, thresholds)
    files = [name for name in (WEIGHTS, LABELS, THRESHOLDS) if (folder / name).exists()]
    content = {
        "format": FORMAT,
        "aia_jax": __version__,
        **about,
        "task": config.task,
        "dtype": dtype,
        "packages": packages,
        "facts": dict(facts or {}),
        "files": {name: sha256_of_file(folder / name) for name in files},
        "config": _without_places(config).to_dict(),
    }
    write_json(folder / CONFIG, content)
    return content


def read_model_folder(folder: Path) -> ModelFolder:
    """Reads a model folder and checks all digests. See `utils.model_folders.find_model` for models with a name.

    Raises:
        InputError: another version of this project wrote the folder, a file is missing or damaged, the thresholds are
            for other labels, or a package of weights is not installed or has other weights.
    """
    about = read_about(folder)
    labels = read_labels(folder / LABELS) if LABELS in about["files"] else ()
    if THRESHOLDS in about["files"]:
        load_thresholds(folder / THRESHOLDS, labels)
    arrays = _read_weights(folder / WEIGHTS) if WEIGHTS in about["files"] else {}
    arrays |= _package_arrays(about["packages"], folder / CONFIG)
    return ModelFolder(folder, about["task"], ConfigDict(about["config"]), arrays, labels, about["facts"])


def _find_packages(config: ConfigDict, arrays: Mapping[str, np.ndarray]) -> tuple[set[str], list[dict[str, str]]]:
    """Returns the paths of the arrays that a package has too, and for each part of the package an entry of `packages`.

    A part may have a prefix in the model: "image.backbone.stem.bn.mean" is "backbone.stem.bn.mean" of the package.
    """
    held, packages, source = set(), [], config.model.get("backbone")
    try:
        parts = package_parts(source) if source in PACKAGES else {}
    except InputError:  # the package is not installed
        parts = {}
    for part, own in parts.items():
        first = next(iter(own))
        for prefix in [path.removesuffix(first) for path in arrays if path.endswith(first)]:
            if all(np.array_equal(arrays.get(prefix + path), value) for path, value in own.items()):
                held.update(prefix + path for path in own)
                entry = {"package": PACKAGES[source], "source": source, "part": part, "prefix": prefix}
                packages.append({**entry, "digest": weights_digest(own)})
    return held, packages


def _read_weights(path: Path) -> dict[str, np.ndarray]:
    try:
        arrays = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} is not a safetensors file: {error}") from None
    return {name: value.astype(np.float32) if value.dtype.kind == "f" else value for name, value in arrays.items()}


def _package_arrays(packages: Sequence[Mapping[str, str]], path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays that `packages` in the file `path` lists. Reads each package once."""
    arrays, known = {}, {}
    for entry in packages:
        source, part, prefix = (entry.get(name) for name in ("source", "part", "prefix"))
        if source not in PACKAGES:
            raise InputError(f"{path} needs arrays of {source!r}, which is unknown; known: {', '.join(PACKAGES)}")
        known[source] = known.get(source) or package_parts(source)
        own = known[source].get(part, {})
        if weights_digest(own) != entry.get("digest"):
            package = PACKAGES[source]
            raise InputError(
                f"{path} needs the {part} of another version of the package {package} than the installed one; install "
                f"the version that it was made with, or make the model again: pip install --force-reinstall {package}"
            )
        arrays |= {f"{prefix}{name}": value for name, value in own.items()}
    return arrays


def _convert(path: str, value: np.ndarray, dtype: str) -> np.ndarray:
    value = np.asarray(value)
    if value.dtype.kind not in "fV":  # V: bfloat16
        return np.asarray(value, order="C")
    value = value.astype(np.float32)
    if dtype == "float16" and np.abs(value).max(initial=0) > np.finfo(np.float16).max:
        raise InputError(f"{path} has numbers that are too large for float16; write the model with --dtype float32")
    return np.asarray(value.astype(dtype), order="C")


def _without_places(config: ConfigDict) -> ConfigDict:
    """Returns a copy of `config` without the paths of data on this machine, which do not change a model."""
    config = config.copy_and_resolve_references()
    places = [name for name, field in FIELDS.items() if field.path and field.resumable]
    config.update_from_flattened_dict({name: "" for name in places if name in flatten(config.to_dict())})
    return config
