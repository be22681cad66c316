"""State dicts with the names of earlier generations of code, made from timm's present models."""

import re
from pathlib import Path

import numpy as np

from aia_jax.weights.load import read_torch_state
from aia_jax.weights.name_map import from_torch
from aia_jax.weights.torch_state import TorchStateDict
from tests.helpers.torch_oracles import randomize, torch

GENERATIONS = ("timm >= 0.9", "timm <= 0.6", "MIIL")


def randomized(model: torch.nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """Sets random weights and statistics, with scales |scale| + 1e-5.

    Returns InPlace-ABN's signed scales by their module's name in `model.body`.
    """
    randomize(model, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    scales = {}
    for name, module in model.body.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            sign = torch.where(torch.rand(module.weight.shape, generator=generator) < 0.5, -1.0, 1.0)
            scales[name] = sign * (0.4 + 0.6 * torch.rand(module.weight.shape, generator=generator))
            module.weight.data = scales[name].abs() + 1e-5
    return scales


def body_state(body: torch.nn.Module, generation: str, scales: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of timm's TResNet body with the names of a generation, including MIIL's `filt` buffer."""
    state = {name: value.clone() for name, value in body.state_dict().items()}
    if generation == "timm >= 0.9":
        return state
    renamed = {}
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        module, leaf = name.rsplit(".", 1)
        if module in scales and leaf == "weight":
            value = scales[module]
        index = {"conv": "0", "bn": "1"}
        parts = module.split(".")
        if parts[-1] in index:
            inner = ".0" if _is_blurred(parts, state) else ""
            module = f"{'.'.join(parts[:-1])}{inner}.{index[parts[-1]]}"
        renamed[f"{module}.{leaf}"] = value
    if generation == "MIIL":
        renamed["layer2.0.conv1.1.filt"] = torch.ones(8, 1, 3, 3) / 16
    return renamed


def _is_blurred(parts: list[str], state: dict) -> bool:
    """Whether a convolution is in a block of stride 2 and is followed by a blur pool."""
    match = re.fullmatch(r"layer([2-4])\.0\.conv(\d)", ".".join(parts[:-1]))
    if not match:
        return False
    is_bottleneck = f"layer{match[1]}.0.conv3.conv.weight" in state
    return match[2] == ("2" if is_bottleneck else "1")


def wrapped(model: torch.nn.Module, generation: str, scales: dict[str, torch.Tensor]) -> dict:
    """The content of a file of system A, system B or a timm network, with the names of a generation."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    prefix = next(name for name in state if name.endswith("conv1.conv.weight")).removesuffix("conv1.conv.weight")
    content = {f"{prefix}{name}": value for name, value in body_state(model.body, generation, scales).items()}
    content |= {name: value for name, value in state.items() if not name.startswith(prefix)}
    if generation == "MIIL":
        return {"state_dict": {f"module.{name}": value for name, value in content.items()}, "epoch": 3}
    return {"model": content} if generation == "timm <= 0.6" and prefix == "body." else content


def convert(path: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[TorchStateDict, dict[str, np.ndarray]]:
    """The identified file and its arrays by our paths."""
    torch_state = read_torch_state(path)
    return torch_state, from_torch(torch_state, shapes, path.name)
