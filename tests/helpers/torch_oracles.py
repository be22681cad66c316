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

from aia_jax.losses.annotation import PRESETS
from aia_jax.models.annotator import Annotator, ClassifierHead
from aia_jax.models.attention_pooling import AttentionPooling
from aia_jax.models.tresnet import TResNet, Variant
from aia_jax.training.model_arrays import split_model
from aia_jax.weights.name_map import find_place
from tests.helpers.small_annotator import HEAD, VARIANT

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[parity]'")


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
    return pytest.importorskip("timm", reason="timm is not installed: pip install -e '.[parity]'")


timm = _import_timm()
timm_tresnet = importlib.import_module("timm.models.tresnet")
torch_models = importlib.import_module("aia_jax.weights.torch_annotator")
TorchAttentionPooling = torch_models.TorchAttentionPooling


def build_torch_model(system: str, tresnet: torch.nn.Module, num_labels: int, **head_options) -> torch.nn.Module:
    """An "annotator" or a "classifier" with the body of timm's TResNet, or the "backbone": `tresnet` itself."""
    if system == "annotator":
        return torch_models.TorchAnnotator(tresnet.body, num_labels, tresnet.num_features, **head_options)
    if system == "classifier":
        return torch_models.TorchClassifier(tresnet.body, num_labels, tresnet.num_features)
    tresnet.reset_classifier(num_labels)
    return tresnet


def abstract_model(system: str, variant: str | Variant, num_labels: int, **head_options) -> tuple[nnx.GraphDef, dict]:
    """The structure and the shapes of our model for `build_torch_model`; a "backbone" has the classifier's head."""

    def build() -> Annotator:
        backbone, rngs = TResNet(variant, rngs=nnx.Rngs(0)), nnx.Rngs(0)
        if system == "annotator":
            return Annotator(backbone, AttentionPooling(num_labels, backbone.num_features, **head_options, rngs=rngs))
        return Annotator(backbone, ClassifierHead(num_labels, backbone.num_features, rngs=rngs))

    return split_model(nnx.eval_shape(build))


def build_timm_body(variant: str):
    """timm's body of a variant of `aia_jax.models.tresnet.VARIANTS`."""
    return getattr(timm_tresnet, f"tresnet_{variant}")(num_classes=0).body


def build_tresnet(variant: str | Variant) -> torch.nn.Module:
    """timm's TResNet without a classifier."""
    if isinstance(variant, str):
        return getattr(timm_tresnet, f"tresnet_{variant}")(num_classes=0)
    options = {"layers": list(variant.blocks), "width_factor": variant.width / 64, "v2": not variant.basic_stages}
    return timm_tresnet.TResNet(**options, num_classes=0)


def load(module: torch.nn.Module, state: dict[str, np.ndarray]) -> torch.nn.Module:
    """Replaces all arrays of a module."""
    module.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in state.items()})
    return module


def gradients_of(module: torch.nn.Module, prefix: str = "") -> dict[str, np.ndarray]:
    """The gradients of the trained weights by name, after `prefix`."""
    weights = module.named_parameters()
    return {prefix + name: weight.grad.numpy() for name, weight in weights if weight.grad is not None}


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


def torch_values(module: torch.nn.Module, paths: Iterable[tuple], area: str = "", *, gradients: bool = False) -> dict:
    """Arrays of a torch module, or gradients of its trained weights, by the paths of ours; each must be used.

    Args:
        module: `TorchAnnotator`, or the part of it that `area` names.
        paths: all paths of our arrays.
        area: "backbone" for timm's body, "head" for `TorchAttentionPooling`.
    """
    if gradients:
        state = {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}
    else:
        state = {name: value for name, value in module.state_dict().items() if "num_batches_tracked" not in name}
    names = {area: ""} if area else {"backbone": "backbone.features.0.", "head": "head."}
    values, used = {}, set()
    for path in paths:
        full = ".".join(map(str, (area, *path) if area else path))
        (kind, name), transform, part = find_place(full, system="annotator", family="tresnet")
        value = state[names[kind] + name].detach().numpy()
        values[path] = transform.to_jax(value if part is None else np.split(value, 3)[part]).copy()
        used.add(names[kind] + name)
    assert used == state.keys(), sorted(used ^ state.keys())
    return values


def copy_weights(module: torch.nn.Module, model: nnx.Module, area: str = "") -> None:
    """Copies all arrays of a torch module into our model; see `torch_values`."""
    state = flat_state(model)
    values = torch_values(module, state, area)
    for path, value in values.items():
        assert value.shape == state[path].shape, (path, value.shape, state[path].shape)
    pure_state = nnx.state(model)
    arrays = {path: jnp.asarray(value) for path, value in values.items()}
    nnx.replace_by_pure_dict(pure_state, traverse_util.unflatten_dict(arrays))
    nnx.update(model, pure_state)


def build_annotator_pair(
    num_labels: int, *, seed: int, dtype: str = "float32", **options
) -> tuple[torch.nn.Module, Annotator]:
    """A small annotator in torch, and ours with the same random weights. `options` are those of our backbone."""
    head = {"hidden_size": 32, "num_heads": 4, "feedforward_size": 64, "dropout": 0.0}
    torch.manual_seed(0)
    tresnet, variant = build_small_tresnet()
    theirs = build_torch_model("annotator", tresnet, num_labels, **head)
    randomize(theirs, seed=seed)
    theirs = theirs.to(getattr(torch, dtype))
    dtypes = {"dtype": jnp.dtype(dtype), "param_dtype": jnp.dtype(dtype), "rngs": nnx.Rngs(0)}
    backbone = TResNet(variant, **options, **dtypes)
    ours = Annotator(backbone, AttentionPooling(num_labels, backbone.num_features, **head, **dtypes))
    copy_weights(theirs, ours)
    return theirs, ours


def small_annotator(state: dict[str, np.ndarray], num_labels: int) -> torch.nn.Module:
    """The annotator of `tests.helpers.small_annotator` in torch, with the arrays of a state dict."""
    tresnet = build_tresnet(VARIANT)
    model = build_torch_model("annotator", tresnet, num_labels, **HEAD)
    return load(model.to(torch.from_numpy(state["head.w"]).dtype), state)


def torch_loss(name: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The formula of the paper in probabilities, or PyTorch's binary cross-entropy, unreduced."""
    if name == "bce":
        return torch.nn.functional.binary_cross_entropy_with_logits(x, y, reduction="none")
    options, eps = PRESETS[name], 1e-8
    pm = (torch.sigmoid(x) - options["neg_margin"]).clamp(min=0)
    negative = -(pm ** options["gamma_neg"]) * (1 - pm).clamp(min=eps).log()
    q = torch.sigmoid(x - options["pos_margin"])
    factor = (1 - q) ** options["gamma_pos"]
    if options["pos_margin"] > 0:
        factor = torch.where(q >= options["threshold"], torch.ones_like(q), factor)
    return y * -factor * q.clamp(min=eps).log() + (1 - y) * negative


def flat_state(model: nnx.Module, *filters) -> dict[tuple, jax.Array]:
    """Values of a module by path; `filters` select variable types."""
    return traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model, *filters)))


def arrays_of(source: torch.nn.Module | dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """A state dict as NumPy arrays."""
    state = source if isinstance(source, dict) else source.state_dict()
    return {name: value.numpy() for name, value in state.items()}


def assert_same_arrays(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Compares names and all bits."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def relative_error(ours, theirs) -> float:
    """The largest difference divided by the largest magnitude."""
    ours = np.asarray(ours, np.float64)
    theirs = np.asarray(theirs.detach() if isinstance(theirs, torch.Tensor) else theirs, np.float64)
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()
