"""Converts arrays between PyTorch's names and ours by the tables of `name_tables`, strictly and in both directions."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from aia_jax.utils.errors import InputError
from aia_jax.weights.name_tables import LEAVES, SAME, TABLES, Transform
from aia_jax.weights.torch_state import TorchStateDict, full_name

Key = tuple[str, str]  # area ("backbone", "head" or "sgraf") and PyTorch name in it


class Place(NamedTuple):
    """The place of one of our arrays in a state dict; see `name_tables.Rule` for `part`."""

    key: Key
    transform: Transform
    part: int | None


def find_place(path: str, *, system: str, family: str) -> Place:
    """Looks up our array `path`, such as "backbone.stages.0.1.conv1.bn.scale".

    Raises:
        ValueError: there is no rule for it.
    """
    area, _, inner = path.partition(".")
    if area == "backbone" and family == "tresnet":
        inner = re.sub(r"^stages\.(\d+)", lambda match: f"layer{int(match[1]) + 1}", inner)
    module, _, leaf = inner.rpartition(".")
    for rule in TABLES[area, system if area == "head" else family]:
        if match := re.fullmatch(rule.pattern, inner):
            return Place((area, match.expand(rule.target)), rule.transform, rule.part)
        if match := re.fullmatch(rule.pattern, module):
            separator = "." if rule.part is None else "_"
            name = f"{match.expand(rule.target)}{separator}{LEAVES.get(leaf, leaf)}".lstrip(".")
            return Place((area, name), rule.transform if leaf == "kernel" else SAME, rule.part)
    raise ValueError(f"no rule for {path}")


def system_of(paths: Iterable[str]) -> str:
    """Returns the system of a model with our arrays `paths`: "annotator", "classifier", "retrieval" or "backbone"."""
    marks = {
        "head.query_embedding": "annotator",
        "head.linear.bias": "classifier",
        "sgraf.score.bias": "retrieval",
    }
    return next((system for path, system in marks.items() if path in paths), "backbone")


def from_torch(torch_state: TorchStateDict, shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, np.ndarray]:
    """Converts an identified state dict to our arrays: fills every array of `shapes` and uses every array given.

    Args:
        torch_state: see `identify_state`; arrays outside the areas ("backbone", "head", "sgraf") of `shapes` are
            ignored.
        shapes: our paths, such as "head.bias", to their shapes.
        where: the file's name, for messages.

    Returns:
        Path to array.

    Raises:
        InputError: arrays are missing, left over, or have another shape or type, or variances are below 0; the message
            lists all of them.
    """
    areas = {path.partition(".")[0] for path in shapes}
    given = {(area, name): value for area in sorted(areas) for name, value in getattr(torch_state, area).items()}
    unused, arrays, missing, unfit = set(given), {}, {}, {}
    for path, shape in shapes.items():
        key, transform, part = place = find_place(path, system=torch_state.system, family=torch_state.family)
        expected = _torch_shape(place, shape)
        if key not in given:
            missing[key] = expected
            continue
        unused.discard(key)
        if problem := _problem(given[key], expected, key[1]):
            unfit[key] = problem
            continue
        value = given[key] if part is None else np.split(given[key], 3)[part]
        arrays[path] = np.ascontiguousarray(transform.to_jax(value))
    if missing or unfit or unused or torch_state.others:
        raise InputError(_report(torch_state, where, missing, unfit, unused))
    return arrays


def to_torch(arrays: Mapping[str, np.ndarray], *, system: str, family: str) -> dict[str, np.ndarray]:
    """Converts our arrays to a state dict of `system`; adds `num_batches_tracked` of 0 for each batch norm.

    Args:
        arrays: path to array, of the backbone, the head or both, or of SGRAF.
        system: "annotator", "classifier", "backbone" or "retrieval".
        family: "tresnet", "efficientnet_lite" or "sgraf".
    """
    parts: dict[str, dict[int, np.ndarray]] = {}
    for path, value in arrays.items():
        (area, name), transform, part = find_place(path, system=system, family=family)
        value = transform.to_torch(np.asarray(value))
        parts.setdefault(full_name(system, family, area, name), {})[part or 0] = value
    joined = {name: np.concatenate([found[part] for part in sorted(found)]) for name, found in parts.items()}
    state = {name: np.ascontiguousarray(value) for name, value in joined.items()}
    norms = [name for name in state if name.endswith("running_var")]
    return state | {name.replace("running_var", "num_batches_tracked"): np.zeros((), np.int64) for name in norms}


def _torch_shape(place: Place, shape: tuple[int, ...]) -> tuple[int, ...]:
    shape = place.transform.to_torch(np.broadcast_to(np.float32(0), shape)).shape
    return shape if place.part is None else (3 * shape[0], *shape[1:])


def _problem(value: np.ndarray, shape: tuple[int, ...], name: str) -> str:
    if value.shape != shape:
        return f"other shape: {list(value.shape)} in the file, {list(shape)} in the model"
    if value.dtype.kind != "f":
        return f"other type: {value.dtype} in the file, floating in the model"
    if name.endswith("running_var") and (value < 0).any():
        return "variances below 0"
    return ""


def _report(torch_state: TorchStateDict, where: str, missing: dict, unfit: dict, unused: Iterable[Key]) -> str:
    left_over = sorted([*map(torch_state.name_in_file, unused), *torch_state.others])
    lines = [f"{where} does not fit this config; it holds {torch_state.describe()}"]
    for key, shape in missing.items():
        name = torch_state.name_in_file(key)
        nearest = difflib.get_close_matches(name, left_over, n=1, cutoff=0.8)
        lines.append(f"  missing: {name} {list(shape)}" + (f"; nearest: {nearest[0]}" if nearest else ""))
    lines += [f"  {torch_state.name_in_file(key)}: {problem}" for key, problem in unfit.items()]
    return "\n".join([*lines, *(f"  left over: {name}" for name in left_over)])
