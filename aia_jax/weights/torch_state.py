"""Identifies the model in a PyTorch state dict, and the code that wrote it, from the array names.

Early TResNet code (timm <= 0.6, Alibaba MIIL) uses InPlace-ABN, whose scale is |weight| + 1e-5. timm >= 0.9 uses plain
batch norm. EfficientNet-Lite has the names of efficientnet_lite_pytorch or of timm. This module converts the array
names of all backbones to those of timm 0.9.
"""

import bisect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from aia_jax.utils.errors import InputError
from aia_jax.utils.messages import printable
from aia_jax.weights import sgraf_options


class _Prefixes(NamedTuple):
    """The prefixes of a system's backbone and head in the array names of a file."""

    system: str
    backbone: str
    head: str


_PREFIXES = (
    _Prefixes("annotator", "backbone.features.0.", "head."),
    _Prefixes("classifier", "net.body.", "net.head.fc.1."),
    _Prefixes("backbone", "body.", "head.fc."),
    _Prefixes("backbone", "", "classifier."),
    _Prefixes("backbone", "", "_fc."),
)
_FAMILIES = (
    # family, generation, an array name that only backbones of this family and generation have
    ("tresnet", "timm >= 0.9", "conv1.conv.weight"),
    ("tresnet", "InPlace-ABN", "conv1.0.weight"),
    ("efficientnet_lite", "timm", "conv_stem.weight"),
    ("efficientnet_lite", "efficientnet_lite_pytorch", "_conv_stem.weight"),
)
_INNER_BLOCK = re.compile(r"(^|\.)layer\d\.\d+\.$")  # a block of TResNet has names like those of the stem
_NOT_TRAINED = re.compile(r"(.*\.)?(num_batches_tracked|filt)")  # counters, and fixed filters of blur pools
_INPLACE_ABN = (
    (r"(conv\d)\.0\.0\.", r"\1.conv."),  # a convolution followed by a blur pool
    (r"(conv\d)\.0\.1\.", r"\1.bn."),
    (r"(conv\d)\.0\.", r"\1.conv."),
    (r"(conv\d)\.1\.", r"\1.bn."),
    (r"(downsample\.\d)\.0\.", r"\1.conv."),
    (r"(downsample\.\d)\.1\.", r"\1.bn."),
    (r"(\.se\.fc\d\.)", r"\1"),  # all generations use the same names
)
_LITE_PARTS = {
    # name in efficientnet_lite_pytorch: (timm's name in stage 0, which has no expansion; timm's name in other stages)
    "_expand_conv": (None, "conv_pw"),
    "_bn0": (None, "bn1"),
    "_depthwise_conv": ("conv_dw", "conv_dw"),
    "_bn1": ("bn1", "bn2"),
    "_project_conv": ("conv_pw", "conv_pwl"),
    "_bn2": ("bn2", "bn3"),
}
_LITE_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_LITE_REPEATS = {16: (1, 2, 2, 3, 3, 4, 1), 21: (1, 3, 3, 4, 4, 5, 1)}  # number of blocks: blocks in each stage


@dataclass(frozen=True)
class TorchStateDict:
    """The arrays of a PyTorch file, and the model that they belong to.

    Attributes:
        system: "annotator" (system A), "classifier" (system B), "retrieval" (SGRAF), or "backbone" (an ImageNet model).
        family: "tresnet", "efficientnet_lite" or "sgraf".
        generation: the code whose array names the file uses, such as "InPlace-ABN" or "timm >= 0.9".
        backbone, head: `{name: array}`, with timm's names for the backbone. Names have no prefix for backbone or head.
            If `system` is "backbone", `head` is the ImageNet classifier.
        origin: `{(area, name): name in the file}`. The area is "backbone", "head" or "sgraf".
        others: names in the file that belong to no area.
        original: `{name: array}` of the backbone, with the names in the file, without the prefix.
        sgraf: `{name: array}` of SGRAF's three encoders, with the names in the file.
        reasoning: "sgr" or "saf" for SGRAF, or else "".
    """

    system: str
    family: str
    generation: str
    backbone: dict[str, np.ndarray]
    head: dict[str, np.ndarray]
    origin: dict[tuple[str, str], str]
    others: tuple[str, ...]
    original: dict[str, np.ndarray]
    sgraf: dict[str, np.ndarray] = field(default_factory=dict)
    reasoning: str = ""

    def describe(self) -> str:
        """Returns text such as "a whole annotator (TResNet of 3 4 11 3 blocks, InPlace-ABN names)"."""
        if self.system == "retrieval":
            return f"an image-text retriever (SGRAF's {self.reasoning.upper()})"
        what = {"annotator": "a whole annotator", "classifier": "a classifier", "backbone": "a backbone"}[self.system]
        blocks = {
            match.groups() for name in self.backbone if (match := re.match(r"(?:layer|blocks\.)(\d+)\.(\d+)", name))
        }
        stages = sorted(stage for stage, _ in blocks)
        counts = " ".join(str(stages.count(stage)) for stage in dict.fromkeys(stages))
        family = {"tresnet": "TResNet", "efficientnet_lite": "EfficientNet-Lite"}[self.family]
        return f"{what} ({family} of {counts} blocks, {self.generation} names)"

    def list_head(self) -> str:
        """Returns the names and shapes of the head's arrays in the file, or "" if there is no head."""
        return ", ".join(
            f"{printable(self.origin['head', name])} {list(value.shape)}" for name, value in self.head.items()
        )

    def name_in_file(self, key: tuple[str, str]) -> str:
        """Returns the name in the file for a key `(area, name)`. For a missing array, returns the expected name."""
        return self.origin.get(key) or full_name(self.system, self.family, *key)


def full_name(system: str, family: str, area: str, name: str) -> str:
    """Returns an array's full name in a PyTorch file, from `area` and the array's `name` without prefix."""
    if area == "sgraf":
        return name
    prefixes = next(row for row in _PREFIXES if row.system == system)
    if system == "backbone" and family == "efficientnet_lite":
        prefixes = _Prefixes(system, "", "classifier.")
    return (prefixes.head if area == "head" else prefixes.backbone) + name


def model_prefixes(names: Collection[str]) -> list[str]:
    """Returns each prefix after which `names` has the array names of a known model, for example "model." or ""."""
    return list(dict.fromkeys([*(prefix for prefix, *_ in _backbones(names)), *sgraf_options.prefixes(names)]))


def _backbones(names: Collection[str]) -> Iterator[tuple[str, _Prefixes, str, str]]:
    """Yields the prefix before the names of each known backbone, the prefixes after it, family and generation."""
    ordered = sorted(names)

    def has(prefix: str) -> bool:
        place = bisect.bisect_left(ordered, prefix)
        return place < len(ordered) and ordered[place].startswith(prefix)

    for name in names:
        for family, generation, mark in _FAMILIES:
            start = name.removesuffix(mark)
            if not name.endswith(mark) or _INNER_BLOCK.search(start) or not (start == "" or start.endswith(".")):
                continue
            fitting = [row for row in _PREFIXES if f".{start}".endswith(f".{row.backbone}" if row.backbone else ".")]
            best = max(fitting, key=lambda row: has(start.removesuffix(row.backbone) + row.head))
            yield start.removesuffix(best.backbone), best, family, generation


def identify_state(
    state: Mapping[str, np.ndarray], where: str, options: Mapping[str, Any] | None = None
) -> TorchStateDict:
    """Identifies the model in a state dict, and renames the arrays of a backbone to timm's names.

    `state` and `options` are results of `read_torch_file`. Raises InputError if the names belong to no known system, or
    if this project has no model with these options.
    """
    arrays = {name: value for name, value in state.items() if not _NOT_TRAINED.fullmatch(name)}
    if "" in sgraf_options.prefixes(state):
        origin = {("sgraf", name): name for name in arrays}
        reasoning = sgraf_options.reasoning_of(arrays, options, where)
        return TorchStateDict("retrieval", "sgraf", "SGRAF", {}, {}, origin, (), {}, sgraf=arrays, reasoning=reasoning)
    found = next((found for prefix, *found in _backbones(state) if prefix == ""), None)
    if found is None:
        known = ", ".join(repr(row.backbone + mark) for row in _PREFIXES[:3] for *_, mark in _FAMILIES[:2])
        raise InputError(
            f"{where} holds no model that is known here: its {len(state)} arrays do not include {known}, or a name of "
            f"EfficientNet-Lite or SGRAF. The first arrays are {', '.join(list(state)[:3])}"
        )
    return _rename(arrays, *found, where)


def _rename(
    arrays: Mapping[str, np.ndarray], prefixes: _Prefixes, family: str, generation: str, where: str
) -> TorchStateDict:
    areas: dict[str, dict[str, np.ndarray]] = {"backbone": {}, "head": {}}
    origin: dict[tuple[str, str], str] = {}
    others, original = [], {}
    to_timm = _renaming(generation, [name.removeprefix(prefixes.backbone) for name in arrays], where)
    for name, value in arrays.items():
        area = "head" if name.startswith(prefixes.head) else "backbone"
        prefix = prefixes.head if area == "head" else prefixes.backbone
        inner = name.removeprefix(prefix)
        inner = inner if area == "head" else to_timm(inner)
        if not name.startswith(prefix) or inner is None:
            others.append(name)
            continue
        if (area, inner) in origin:
            raise InputError(f"{where}: {origin[area, inner]} and {name} are both names of one array")
        if area == "backbone":
            original[name.removeprefix(prefix)] = value
        if generation == "InPlace-ABN" and area == "backbone" and inner.endswith(".bn.weight"):
            value = np.abs(value) + np.float32(1e-5)
        areas[area][inner] = value
        origin[area, inner] = name
    return TorchStateDict(
        prefixes.system, family, generation, **areas, origin=origin, others=tuple(others), original=original
    )


def _renaming(generation: str, names: Iterable[str], where: str) -> Callable[[str], str | None]:
    """Returns a function from an array name of `generation` to timm's name, or to None if there is no such name."""
    if generation == "InPlace-ABN":
        return _from_inplace_abn
    if generation == "efficientnet_lite_pytorch":
        blocks = {int(match[1]) for name in names if (match := re.match(r"_blocks\.(\d+)\.", name))}
        if len(blocks) not in _LITE_REPEATS:
            raise InputError(f"{where} holds {len(blocks)} blocks; EfficientNet-Lite 0, 1 and 2 have 16, 21 and 21")
        places = [(stage, block) for stage, count in enumerate(_LITE_REPEATS[len(blocks)]) for block in range(count)]
        return lambda name: _from_lite_pytorch(name, places)
    return lambda name: name


def _from_inplace_abn(name: str) -> str | None:
    for pattern, replacement in _INPLACE_ABN:
        name, found = re.subn(pattern, replacement, name)
        if found:
            return name
    return None


def _from_lite_pytorch(name: str, places: list[tuple[int, int]]) -> str:
    match = re.fullmatch(r"_blocks\.(\d+)\.(_\w+)\.(\w+)", name)
    if match and match[2] in _LITE_PARTS and int(match[1]) < len(places):
        stage, block = places[int(match[1])]
        return f"blocks.{stage}.{block}.{_LITE_PARTS[match[2]][stage > 0]}.{match[3]}"
    module, _, leaf = name.rpartition(".")
    return f"{_LITE_ENDS.get(module, module)}.{leaf}"
