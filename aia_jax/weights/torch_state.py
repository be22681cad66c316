"""What a state dict is, told by its names: the system, the backbone's family and the generation of its code.

TResNet was written with InPlace-ABN (timm <= 0.6, Alibaba MIIL), whose scale is |weight| + 1e-5, and is written with
plain batch norm since timm 0.9; EfficientNet-Lite is named one way by efficientnet_lite_pytorch and another by timm.
All are brought to timm's present names here.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aia_jax.utils.errors import InputError
from aia_jax.weights import sgraf_name_map

# (system, what its backbone's names begin with, what its head's names begin with)
_WRAPPINGS = (
    ("annotator", "backbone.features.0.", "head."),
    ("classifier", "net.body.", "net.head.fc.1."),
    ("backbone", "body.", "head.fc."),
    ("backbone", "", "classifier."),
    ("backbone", "", "_fc."),
)
_FAMILIES = (
    # family, generation, a name that only its backbones have
    ("tresnet", "timm >= 0.9", "conv1.conv.weight"),
    ("tresnet", "InPlace-ABN", "conv1.0.weight"),
    ("efficientnet_lite", "timm", "conv_stem.weight"),
    ("efficientnet_lite", "efficientnet_lite_pytorch", "_conv_stem.weight"),
)
_UNTRAINED = re.compile(r"(.*\.)?(num_batches_tracked|filt)")
_SAME_IN_ALL = re.compile(r".*\.se\.fc\d\.\w+")
_INPLACE_ABN = (
    (r"(conv\d)\.0\.0\.", r"\1.conv."),  # of a blur-pooled convolution
    (r"(conv\d)\.0\.1\.", r"\1.bn."),
    (r"(conv\d)\.0\.", r"\1.conv."),
    (r"(conv\d)\.1\.", r"\1.bn."),
    (r"(downsample\.\d)\.0\.", r"\1.conv."),
    (r"(downsample\.\d)\.1\.", r"\1.bn."),
)
_LITE_PARTS = {
    # efficientnet_lite_pytorch's name: timm's in stage 0, which has no expansion, and in the others
    "_expand_conv": (None, "conv_pw"),
    "_bn0": (None, "bn1"),
    "_depthwise_conv": ("conv_dw", "conv_dw"),
    "_bn1": ("bn1", "bn2"),
    "_project_conv": ("conv_pw", "conv_pwl"),
    "_bn2": ("bn2", "bn3"),
}
_LITE_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_LITE_REPEATS = {16: (1, 2, 2, 3, 3, 4, 1), 21: (1, 3, 3, 4, 4, 5, 1)}  # blocks in all: in each stage


@dataclass(frozen=True)
class TorchStateDict:
    """A recognised state dict.

    Attributes:
        system: "annotator" (A), "classifier" (B), "retrieval" (SGRAF), or "backbone": an ImageNet model, classifier
            included.
        family: "tresnet", "efficientnet_lite" or "sgraf".
        generation: of the names it came with.
        backbone, head: arrays under timm's names without the wrapping; of the head of an ImageNet model its classifier.
        origin: ("backbone", "head" or "sgraf", such a name) to the name in the file.
        others: names in the file that belong to none of them.
        prefix: what the backbone's names in the file begin with.
        sgraf: arrays of SGRAF's three encoders, under their names in the file.
        reasoning: of SGRAF "sgr" or "saf", else "".
    """

    system: str
    family: str
    generation: str
    backbone: dict[str, np.ndarray]
    head: dict[str, np.ndarray]
    origin: dict[tuple[str, str], str]
    others: tuple[str, ...]
    prefix: str
    sgraf: dict[str, np.ndarray] = field(default_factory=dict)
    reasoning: str = ""

    def describe(self) -> str:
        """Such as "a whole annotator (TResNet of 3 4 11 3 blocks, InPlace-ABN names)"."""
        if self.system == "retrieval":
            return f"an image-text retriever (SGRAF's {self.reasoning.upper()})"
        what = {"annotator": "a whole annotator", "classifier": "a classifier", "backbone": "a backbone"}[self.system]
        blocks = {match[0] for name in self.backbone if (match := re.match(r"(layer|blocks\.)(\d+)\.(\d+)", name))}
        stages = [re.match(r"(layer\d+|blocks\.\d+)", block)[0] for block in blocks]
        counts = " ".join(str(stages.count(stage)) for stage in sorted(set(stages)))
        family = {"tresnet": "TResNet", "efficientnet_lite": "EfficientNet-Lite"}[self.family]
        return f"{what} ({family} of {counts} blocks, {self.generation} names)"

    def list_head(self) -> str:
        """The head's arrays as the file names them, with their shapes; "" if there is none."""
        return ", ".join(f"{self.origin['head', name]} {list(value.shape)}" for name, value in self.head.items())


def wrap(system: str, family: str, area: str, name: str) -> str:
    """The whole name of an array in a file of `system`, given its area and its name there."""
    if area == "sgraf":
        return name
    _, backbone, head = next(row for row in _WRAPPINGS if row[0] == system)
    if system == "backbone" and family == "efficientnet_lite":
        backbone, head = "", "classifier."
    return (head if area == "head" else backbone) + name


def identify_state(
    state: Mapping[str, np.ndarray], where: str, options: Mapping[str, Any] | None = None
) -> TorchStateDict:
    """Tells what `state` is and renames it.

    Args:
        state, options: as of `files.read_weights`.
        where: the file, for messages.

    Raises:
        InputError: the names are of no system that is known, or the options of a model that this project does not have.
    """
    if sgraf_name_map.is_retrieval(state):
        return _retriever(state, where, options)
    fitting = [(row, family) for row in _WRAPPINGS for family in _FAMILIES if row[1] + family[2] in state]
    if fitting:
        # Without a wrapping the classifier's name tells; a file may also lack it.
        row, family = max(fitting, key=lambda pair: any(name.startswith(pair[0][2]) for name in state))
        return _rename(state, row, family[:2], where)
    known = ", ".join(repr(prefix + mark) for _, prefix, _ in _WRAPPINGS[:3] for *_, mark in _FAMILIES[:2])
    raise InputError(
        f"{where} holds no model that is known here: none of {known}, of EfficientNet-Lite's names or of SGRAF's is "
        f"among its {len(state)} arrays, the first of which are {', '.join(list(state)[:3])}"
    )


def _retriever(state: Mapping[str, np.ndarray], where: str, options: Mapping[str, Any] | None) -> TorchStateDict:
    arrays = {name: value for name, value in state.items() if not _UNTRAINED.fullmatch(name)}
    origin = {("sgraf", name): name for name in arrays}
    reasoning = sgraf_name_map.reasoning_of(arrays, options, where)
    return TorchStateDict("retrieval", "sgraf", "SGRAF", {}, {}, origin, (), "", sgraf=arrays, reasoning=reasoning)


def _rename(
    state: Mapping[str, np.ndarray], system: tuple[str, str, str], family: tuple[str, str], where: str
) -> TorchStateDict:
    (kind, backbone_prefix, head_prefix), (architecture, generation) = system, family
    parts: dict[str, dict[str, np.ndarray]] = {"backbone": {}, "head": {}}
    origin: dict[tuple[str, str], str] = {}
    others = []
    names = [name for name in state if not _UNTRAINED.fullmatch(name)]
    translate = _translator(generation, [name.removeprefix(backbone_prefix) for name in names], where)
    for name in names:
        area = "head" if name.startswith(head_prefix) else "backbone"
        prefix = head_prefix if area == "head" else backbone_prefix
        inner = name.removeprefix(prefix)
        inner = inner if area == "head" else translate(inner)
        if not name.startswith(prefix) or inner is None:
            others.append(name)
            continue
        if (area, inner) in origin:
            raise InputError(f"{where}: {origin[area, inner]} and {name} are both names of one array")
        value = state[name]
        if generation == "InPlace-ABN" and area == "backbone" and inner.endswith(".bn.weight"):
            value = np.abs(value) + np.float32(1e-5)
        parts[area][inner] = value
        origin[area, inner] = name
    return TorchStateDict(
        kind, architecture, generation, parts["backbone"], parts["head"], origin, tuple(others), backbone_prefix
    )


def _translator(generation: str, names: Iterable[str], where: str) -> Callable[[str], str | None]:
    """What gives timm's name of today for one of a generation, None for a name that is not of it."""
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
    return name if _SAME_IN_ALL.fullmatch(name) else None


def _from_lite_pytorch(name: str, places: list[tuple[int, int]]) -> str:
    match = re.fullmatch(r"_blocks\.(\d+)\.(_\w+)\.(\w+)", name)
    if match and match[2] in _LITE_PARTS and int(match[1]) < len(places):
        stage, block = places[int(match[1])]
        return f"blocks.{stage}.{block}.{_LITE_PARTS[match[2]][stage > 0]}.{match[3]}"
    module, _, leaf = name.rpartition(".")
    return f"{_LITE_ENDS.get(module, module)}.{leaf}"
