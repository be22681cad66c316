"""Random state dicts of TResNets and annotators, and files of them with the names of earlier generations of code."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from aia_jax.models.annotator import Annotator, ClassifierHead
from aia_jax.models.attention_pooling import AttentionPooling
from aia_jax.models.tresnet import TResNet, Variant
from aia_jax.weights.load import read_torch_state
from aia_jax.weights.name_map import from_torch
from aia_jax.weights.torch_state import TorchStateDict
from tests.helpers.references import random_state

GENERATIONS = ("timm >= 0.9", "timm <= 0.6", "MIIL")
State = dict[str, np.ndarray]


class Backbone(nnx.Module):
    """A network under the name that the tables of array names expect."""

    def __init__(self, network: nnx.Module):
        self.backbone = network


def builder(system: str, variant: str | Variant, num_labels: int, **options) -> Callable[[], nnx.Module]:
    """Returns a function that builds our "annotator", "classifier" or "backbone"; `options` are those of attention."""

    def build() -> nnx.Module:
        rngs = nnx.Rngs(0)
        backbone = TResNet(variant, rngs=rngs)
        if system == "annotator":
            return Annotator(backbone, AttentionPooling(num_labels, backbone.num_features, **options, rngs=rngs))
        if system == "classifier":
            return Annotator(backbone, ClassifierHead(num_labels, backbone.num_features, rngs=rngs))
        return Backbone(backbone)

    return build


def signed_state(build: Callable[[], nnx.Module], num_classes: int = 0, seed: int = 0) -> State:
    """A random state dict whose batch norms have InPlace-ABN's signed scales; see `plain`.

    Args:
        build: function that `builder` returns.
        num_classes: size of the ImageNet classifier of a "backbone", or 0 for none.
    """
    state, rng = random_state(build, "tresnet", seed), np.random.default_rng(seed)
    for name in _scales(state):
        state[name] *= rng.choice(np.float32([-1, 1]), state[name].shape)
    if num_classes:
        num_features = len(state[max(_scales(state))])
        state["head.fc.weight"] = rng.normal(size=(num_classes, num_features)).astype(np.float32)
        state["head.fc.bias"] = rng.normal(size=num_classes).astype(np.float32)
    return state


def plain(state: State) -> State:
    """The same model as timm >= 0.9 has it: with the scales |scale| + 1e-5."""
    return state | {name: np.abs(state[name]) + np.float32(1e-5) for name in _scales(state)}


def wrapped(state: State, generation: str) -> dict[str, Any]:
    """The content of a file with the names of a generation, from a state dict with signed scales."""
    if generation == "timm >= 0.9":
        return plain(state)
    prefix = min((name for name in state if name.endswith("conv1.conv.weight")), key=len)[: -len("conv1.conv.weight")]
    content, third = {}, f"{prefix}layer{{}}.0.conv3.conv.weight"
    for name, value in state.items():
        if not name.startswith(prefix):
            content[name] = value
        elif not name.endswith("num_batches_tracked"):
            content[prefix + _early_name(name.removeprefix(prefix), third, state)] = value
    if generation == "MIIL":
        content[f"{prefix}layer2.0.conv1.1.filt"] = np.ones((8, 1, 3, 3), np.float32) / 16
        return {"state_dict": {f"module.{name}": value for name, value in content.items()}, "epoch": 3}
    return {"model": content} if prefix == "body." else content


def convert(path: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[TorchStateDict, State]:
    """The identified file and its arrays by our paths."""
    torch_state = read_torch_state(path)
    return torch_state, from_torch(torch_state, shapes, path.name)


def digest(state: State) -> np.ndarray:
    """A checksum of the names and shapes of a state dict."""
    lines = sorted(f"{name} {value.shape}\n" for name, value in state.items())
    return np.frombuffer(hashlib.sha256("".join(lines).encode()).digest(), np.uint8)


def assert_same_arrays(found: State, expected: State) -> None:
    """Compares names, shapes, types and all bits."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name, strict=True)


def _scales(state: State) -> list[str]:
    return [name.replace("running_var", "weight") for name in state if name.endswith("running_var")]


def _early_name(name: str, third: str, state: State) -> str:
    module, _, leaf = name.rpartition(".")
    block, _, part = module.rpartition(".")
    if part not in ("conv", "bn"):
        return name
    blurred = re.fullmatch(r"layer([2-4])\.0\.conv(\d)", block)  # in a block of stride 2
    if blurred and blurred[2] == ("2" if third.format(blurred[1]) in state else "1"):
        block += ".0"  # the blur pool follows
    return f"{block}.{int(part == 'bn')}.{leaf}"
