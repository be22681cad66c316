"""The PyTorch side of the parity tests: timm's TResNet, our PyTorch models, and copies of their weights.

Importing this module skips the importing test file if torch or timm is not installed.
"""

import importlib
import sys
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from aia_jax.models.tresnet import Variant

torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch and timm: pip install '.[test]'")


def _import_timm():
    """Imports timm, with stubs for torchvision's compiled operators if torchvision lacks them."""
    try:
        importlib.import_module("torchvision")
    except ImportError:
        pass  # importing timm fails, which skips the test
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _import_timm.library = library  # the operators live as long as this object
    return pytest.importorskip("timm", reason="parity with PyTorch needs timm: pip install '.[test]'")


timm = _import_timm()
timm_tresnet = importlib.import_module("timm.models.tresnet")
torch_models = importlib.import_module("aia_jax.weights.torch_annotator")
TorchAttentionPooling = torch_models.TorchAttentionPooling


def build_torch_annotator(tresnet: torch.nn.Module, num_labels: int, **head_options) -> torch.nn.Module:
    """System A in torch with the body of one of timm's TResNets; see `TorchAttentionPooling` for the options."""
    return torch_models.TorchAnnotator(tresnet.body, num_labels, tresnet.num_features, **head_options)


def build_timm_body(variant: str):
    """timm's body of a variant of `aia_jax.models.tresnet.VARIANTS`."""
    return getattr(timm_tresnet, f"tresnet_{variant}")(num_classes=0).body


def build_small_tresnet(*, v2: bool = False) -> tuple[torch.nn.Module, Variant]:
    """A small model of timm's TResNet class, and our description of it."""
    blocks = (1, 1, 2, 1)
    tresnet = timm_tresnet.TResNet(layers=list(blocks), width_factor=0.25, v2=v2, num_classes=0)
    return tresnet, Variant(blocks=blocks, width=16, basic_stages=0 if v2 else 2)


def randomize(module: torch.nn.Module, seed: int) -> None:
    """Sets random weights, biases and batch-norm statistics, so that activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, mean, std):
        tensor.data.normal_(mean, std, generator=generator)

    for part in module.modules():
        if isinstance(part, torch.nn.Conv2d | torch.nn.Linear):
            normal(part.weight, 0, (2 / part.weight[0].numel()) ** 0.5)
            if part.bias is not None:
                normal(part.bias, 0, 0.2)
        elif isinstance(part, torch.nn.BatchNorm2d):
            part.weight.data.uniform_(0.4, 1.0, generator=generator)
            normal(part.bias, 0, 0.2)
            normal(part.running_mean, 0, 0.3)
            part.running_var.data.uniform_(0.6, 1.6, generator=generator)
        elif isinstance(part, torch.nn.LayerNorm):
            normal(part.weight, 1, 0.2)
            normal(part.bias, 0, 0.2)
        elif isinstance(part, torch.nn.MultiheadAttention):
            normal(part.in_proj_weight, 0, part.embed_dim**-0.5)
            normal(part.in_proj_bias, 0, 0.2)


def copy_tresnet(body: torch.nn.Module, model: nnx.Module) -> None:
    """Copies weights and BN statistics of timm's body into our `TResNet`."""
    _copy(model, _tresnet_entries(body.state_dict()))


def copy_attention_pooling(head: torch.nn.Module, model: nnx.Module) -> None:
    """Copies the weights of the torch head into our `AttentionPooling`."""
    _copy(model, _head_entries(head.state_dict()))


def copy_annotator(torch_model: torch.nn.Module, nnx_model: nnx.Module) -> None:
    """Copies weights and BN statistics of system A in torch into our `Annotator` with the attention head."""
    _copy(nnx_model.backbone, _tresnet_entries(torch_model.body.state_dict()))
    _copy(nnx_model.head, _head_entries(torch_model.head.state_dict()))


def annotator_values(torch_model: torch.nn.Module, *, gradients: bool = False) -> dict[tuple, np.ndarray]:
    """Weights and BN statistics, or gradients of the trained weights, by the paths of our `Annotator`."""
    body, head = _values(torch_model.body, gradients), _values(torch_model.head, gradients)
    flat = {("backbone", *path): value for path, value in _tresnet_entries(body)}
    return flat | {("head", *path): value for path, value in _head_entries(head)}


def head_values(head: torch.nn.Module, *, gradients: bool = False) -> dict[tuple, np.ndarray]:
    """Weights of the torch head, or their gradients, by the paths of our `AttentionPooling`."""
    return dict(_head_entries(_values(head, gradients)))


def flat_state(model: nnx.Module, *filters) -> dict[tuple, jax.Array]:
    """Values of a module by path; `filters` select variable types."""
    return traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model, *filters)))


def relative_error(ours, theirs) -> float:
    """The largest difference divided by the largest magnitude."""
    ours = np.asarray(ours, np.float64)
    theirs = np.asarray(theirs.detach() if isinstance(theirs, torch.Tensor) else theirs, np.float64)
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def _values(module: torch.nn.Module, gradients: bool) -> dict[str, torch.Tensor]:
    if gradients:
        return {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}
    return module.state_dict()


def _copy(model: nnx.Module, entries: Iterable[tuple[tuple, np.ndarray]]) -> None:
    entries, state = dict(entries), flat_state(model)
    assert entries.keys() == state.keys(), sorted(map(str, entries.keys() ^ state.keys()))
    for path, value in entries.items():
        assert value.shape == state[path].shape, (path, value.shape, state[path].shape)
    values = traverse_util.unflatten_dict({path: jnp.asarray(value) for path, value in entries.items()})
    pure_state = nnx.state(model)
    nnx.replace_by_pure_dict(pure_state, values)
    nnx.update(model, pure_state)


def _tresnet_entries(state: dict[str, torch.Tensor]) -> Iterable[tuple[tuple, np.ndarray]]:
    leaves = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    for name, tensor in state.items():
        *path, leaf = name.split(".")
        if leaf == "num_batches_tracked":
            continue
        value = tensor.detach().numpy().copy()
        if path[0].startswith("layer"):
            # layer3.0.downsample.1.bn: in torch the pooling before the convolution counts as a part.
            path = ["stages", int(path[0].removeprefix("layer")) - 1, int(path[1]), *path[2:]]
            path = [part for part in path if part not in ("0", "1")]
        if value.ndim == 4:
            in_se = "se" in path
            value, leaf = (value[:, :, 0, 0].T, "kernel") if in_se else (value.transpose(0, 2, 3, 1), "kernel")
        elif "se" not in path:
            leaf = leaves[leaf]
        yield (*path, leaf), value


def _head_entries(state: dict[str, torch.Tensor]) -> Iterable[tuple[tuple, np.ndarray]]:
    whole = {"w": ("weight",), "b": ("bias",), "query_emb.weight": ("query_embedding",)}
    modules = {"self_attn": "self_attention", "multihead_attn": "cross_attention", "out_proj": "out"}
    for name, tensor in state.items():
        value = tensor.detach().numpy().copy()
        *path, leaf = name.removeprefix("transformer.decoder.").split(".")
        path = [int(part) if part.isdigit() else modules.get(part, part) for part in path]
        if name in whole:
            yield whole[name], value[0] if name in ("w", "b") else value
        elif leaf in ("in_proj_weight", "in_proj_bias"):
            for part, rows in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                yield (*path, part, "kernel" if rows.ndim == 2 else "bias"), rows.T
        elif path[0] == "linear_projection":
            yield ("projection", "kernel" if value.ndim == 4 else "bias"), value.reshape(len(value), -1).squeeze().T
        elif "norm" in str(path[-1]):
            yield (*path, "scale" if leaf == "weight" else "bias"), value
        else:
            yield (*path, "kernel" if leaf == "weight" else "bias"), value.T
