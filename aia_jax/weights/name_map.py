"""Our arrays and theirs, name by name: (pattern of our path, their name, layout) for every family and head.

`from_torch` and `to_torch` read the same table, so that a way back exists for whatever comes in.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from aia_jax.utils.errors import InputError
from aia_jax.weights import sgraf_name_map
from aia_jax.weights.axis_layouts import CONV, HWIO, LEAVES, LINEAR, POINTWISE, ROW, SAME, Layout
from aia_jax.weights.torch_state import TorchStateDict, wrap

# Our modules, TResNet's stages counted from 1; (pattern, their module, layout of `kernel`).
_BACKBONES = {
    "tresnet": (
        (r"conv1\.(conv|bn)", r"conv1.\1", CONV),
        (r"(layer\d+\.\d+\.conv\d)\.(conv|bn)", r"\1.\2", CONV),
        (r"(layer1\.\d+\.downsample)\.(conv|bn)", r"\1.0.\2", CONV),
        (r"(layer\d+\.\d+\.downsample)\.(conv|bn)", r"\1.1.\2", CONV),  # behind an average pool
        (r"(layer\d+\.\d+\.se\.fc\d)", r"\1", POINTWISE),
    ),
    "efficientnet_lite": (
        (r"stem\.conv", "conv_stem", HWIO),
        (r"stem\.bn", "bn1", SAME),
        (r"stages\.0\.(\d+)\.depthwise\.conv", r"blocks.0.\1.conv_dw", HWIO),
        (r"stages\.0\.(\d+)\.depthwise\.bn", r"blocks.0.\1.bn1", SAME),
        (r"stages\.0\.(\d+)\.project\.conv", r"blocks.0.\1.conv_pw", HWIO),
        (r"stages\.0\.(\d+)\.project\.bn", r"blocks.0.\1.bn2", SAME),
        (r"stages\.(\d+\.\d+)\.expand\.conv", r"blocks.\1.conv_pw", HWIO),
        (r"stages\.(\d+\.\d+)\.expand\.bn", r"blocks.\1.bn1", SAME),
        (r"stages\.(\d+\.\d+)\.depthwise\.conv", r"blocks.\1.conv_dw", HWIO),
        (r"stages\.(\d+\.\d+)\.depthwise\.bn", r"blocks.\1.bn2", SAME),
        (r"stages\.(\d+\.\d+)\.project\.conv", r"blocks.\1.conv_pwl", HWIO),
        (r"stages\.(\d+\.\d+)\.project\.bn", r"blocks.\1.bn3", SAME),
        (r"head\.conv", "conv_head", HWIO),
        (r"head\.bn", "bn2", SAME),
    ),
}
_DECODER = r"transformer.decoder.layers.\1"
_HEADS = {
    "annotator": (
        ("projection", "linear_projection", POINTWISE),
        (r"layers\.(\d+)\.self_attention\.out", rf"{_DECODER}.self_attn.out_proj", LINEAR),
        (r"layers\.(\d+)\.cross_attention\.out", rf"{_DECODER}.multihead_attn.out_proj", LINEAR),
        (r"layers\.(\d+)\.(linear\d|norm\d)", rf"{_DECODER}.\2", LINEAR),
        ("norm", "transformer.decoder.norm", SAME),
    ),
    "classifier": (("linear", "", LINEAR),),
}
_PACKED = {"self": "self_attn", "cross": "multihead_attn"}
_PARAMETERS = {"query_embedding": ("query_emb.weight", SAME), "weight": ("w", ROW), "bias": ("b", ROW)}


class Entry(NamedTuple):
    """Where one of our arrays lies in a state dict.

    Attributes:
        name: theirs, without the wrapping.
        layout: of its axes.
        part: which third of a packed in-projection, if it is one.
    """

    name: str
    layout: Layout
    part: int | None = None


def entry(path: str, *, system: str, family: str) -> Entry:
    """The place of our array `path`, such as "backbone.stages.0.1.conv1.bn.scale"."""
    area, _, inner = path.partition(".")
    if area == "sgraf":
        return Entry(*sgraf_name_map.place(inner))
    if area == "head" and inner in _PARAMETERS:
        return Entry(*_PARAMETERS[inner])
    if area == "backbone" and family == "tresnet":
        inner = re.sub(r"^stages\.(\d+)", lambda match: f"layer{int(match[1]) + 1}", inner)
    module, _, leaf = inner.rpartition(".")
    packed = re.fullmatch(r"layers\.(\d+)\.(self|cross)_attention\.(query|key|value)", module)
    if packed:
        name = f"transformer.decoder.layers.{packed[1]}.{_PACKED[packed[2]]}.in_proj_{LEAVES.get(leaf, leaf)}"
        layout = LINEAR if leaf == "kernel" else SAME
        return Entry(name, layout, ("query", "key", "value").index(packed[3]))
    for pattern, target, layout in _BACKBONES[family] if area == "backbone" else _HEADS[system]:
        match = re.fullmatch(pattern, module)
        if match:
            name = f"{match.expand(target)}.{LEAVES.get(leaf, leaf)}".lstrip(".")
            return Entry(name, layout if leaf == "kernel" else SAME)
    raise ValueError(f"no rule for {path}")


def system_of(paths: Iterable[str]) -> str:
    """The system that a model with our arrays `paths` is."""
    marks = {
        "head.query_embedding": "annotator",
        "head.linear.bias": "classifier",
        "sgraf.score.bias": "retrieval",
    }
    return next((system for path, system in marks.items() if path in paths), "backbone")


def from_torch(torch_state: TorchStateDict, shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, np.ndarray]:
    """A recognised state dict as our arrays, strictly: every array of `shapes` filled, every array of it used.

    Args:
        torch_state: see `identify_state`; arrays outside the areas ("backbone", "head", "sgraf") of `shapes` are not
            looked at.
        shapes: our paths, such as "head.bias", to their shapes.
        where: the file, for messages.

    Returns:
        Path to array.

    Raises:
        InputError: arrays missing, left over, of another shape or type, or variances below 0; all of them are listed.
    """
    areas = {path.partition(".")[0] for path in shapes}
    offered = {(area, name): value for area in sorted(areas) for name, value in getattr(torch_state, area).items()}
    unused, filled, missing, unfit = set(offered), {}, {}, {}
    for path, shape in shapes.items():
        place = entry(path, system=torch_state.system, family=torch_state.family)
        area = path.partition(".")[0]
        found = offered.get((area, place.name))
        if found is None:
            missing[area, place.name] = _their_shape(place, shape)
            continue
        unused.discard((area, place.name))
        problem = _problem(found, _their_shape(place, shape), place.name)
        if problem:
            unfit[area, place.name] = problem
            continue
        value = found if place.part is None else np.split(found, 3)[place.part]
        filled[path] = np.ascontiguousarray(place.layout.to_jax(value))
    if missing or unfit or unused or torch_state.others:
        raise InputError(_report(torch_state, where, missing, unfit, unused))
    return filled


def to_torch(arrays: Mapping[str, np.ndarray], *, system: str, family: str) -> dict[str, np.ndarray]:
    """Our arrays under their names and the system's wrapping; `num_batches_tracked` is 0 wherever torch has one.

    Args:
        arrays: path to array, of the backbone, the head or both, or of SGRAF.
        system: "annotator", "classifier", "backbone" or "retrieval".
        family: "tresnet", "efficientnet_lite" or "sgraf".
    """
    state, packed = {}, {}
    for path, value in arrays.items():
        place = entry(path, system=system, family=family)
        name = wrap(system, family, path.partition(".")[0], place.name)
        theirs = place.layout.to_torch(np.asarray(value))
        if place.part is None:
            state[name] = np.ascontiguousarray(theirs)
        else:
            packed.setdefault(name, {})[place.part] = theirs
    for name, parts in packed.items():
        state[name] = np.ascontiguousarray(np.concatenate([parts[part] for part in range(3)]))
    counted = [name for name in state if name.endswith("running_var")]
    return state | {name.replace("running_var", "num_batches_tracked"): np.zeros((), np.int64) for name in counted}


def _their_shape(place: Entry, shape: tuple[int, ...]) -> tuple[int, ...]:
    theirs = place.layout.to_torch(np.broadcast_to(np.float32(0), shape)).shape
    return theirs if place.part is None else (3 * theirs[0], *theirs[1:])


def _problem(found: np.ndarray, shape: tuple[int, ...], name: str) -> str:
    if found.shape != shape:
        return f"other shape: {list(found.shape)} in the file, {list(shape)} in the model"
    if found.dtype.kind != "f":
        return f"other type: {found.dtype} in the file, floating in the model"
    if name.endswith("running_var") and (found < 0).any():
        return "variances below 0"
    return ""


def _report(
    torch_state: TorchStateDict, where: str, missing: dict, unfit: dict, unused: Iterable[tuple[str, str]]
) -> str:
    def in_file(area: str, name: str) -> str:
        return torch_state.origin.get((area, name)) or wrap(torch_state.system, torch_state.family, area, name)

    left_over = sorted([*(in_file(*key) for key in unused), *torch_state.others])
    lines = [f"{where} does not fit this config; it holds {torch_state.describe()}"]
    for key, shape in missing.items():
        name = in_file(*key)
        near = difflib.get_close_matches(name, left_over, n=1, cutoff=0.8)
        lines.append(f"  missing: {name} {list(shape)}" + (f"; nearest: {near[0]}" if near else ""))
    lines += [f"  {in_file(*key)}: {problem}" for key, problem in unfit.items()]
    lines += [f"  left over: {name}" for name in left_over]
    return "\n".join(lines)
