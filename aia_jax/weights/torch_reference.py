"""The systems in PyTorch, on timm's backbones and torch's own attention: what conversions are verified against.

Parameter names are those of the authors' files, in timm's names of today. Importing this needs torch and timm.
"""

import re
from collections import Counter
from typing import Any

import numpy as np
import timm
import torch
from ml_collections import ConfigDict
from timm.layers import Conv2dSame
from timm.models.tresnet import TResNet, checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn import functional

from aia_jax.utils.errors import InputError
from aia_jax.weights.torch_state import TorchStateDict, wrap

ACTIVATIONS = {"relu": functional.relu, "gelu": functional.gelu}


class TorchDecoderLayer(nn.Module):
    """Decoder layer of system A on `torch.nn.MultiheadAttention`."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        feedforward_size: int,
        dropout: float,
        activation: str,
        norm_first: bool,
        self_attention: bool,
    ):
        super().__init__()
        self.norm_first = norm_first
        self.activation = ACTIVATIONS[activation]
        self.self_attn = None
        if self_attention:
            self.self_attn = nn.MultiheadAttention(hidden_size, num_heads, dropout, batch_first=True)
            self.norm1 = nn.LayerNorm(hidden_size)
        self.multihead_attn = nn.MultiheadAttention(hidden_size, num_heads, dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(hidden_size)
        self.linear1 = nn.Linear(hidden_size, feedforward_size)
        self.linear2 = nn.Linear(feedforward_size, hidden_size)
        self.norm3 = nn.LayerNorm(hidden_size)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, positions: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Queries `[B, C, D]`, image features `[B, P, D]`, the queries' positions: to queries, maps `[B, C, P]`."""
        before, after = (lambda norm, y: norm(y), lambda norm, y: y)
        if not self.norm_first:
            before, after = after, before
        if self.self_attn is not None:
            y = before(self.norm1, x)
            x = after(self.norm1, x + self.drop(self.self_attn(y + position, y + position, y)[0]))
        y = before(self.norm2, x)
        pooled, attention = self.multihead_attn(y + position, positions, positions)
        x = after(self.norm2, x + self.drop(pooled))
        hidden = self.drop(self.activation(self.linear1(before(self.norm3, x))))
        return after(self.norm3, x + self.drop(self.linear2(hidden))), attention


class TorchAttentionPooling(nn.Module):
    """The head of system A: features `[B, F, h, w]` to logits `[B, C]` and intermediates.

    The intermediates are "projection" `[B, h*w, D]` and "attention" `[B, C, h*w]`. Options as of
    `aia_jax.models.attention_pooling.AttentionPooling`.
    """

    def __init__(
        self,
        num_labels: int,
        num_features: int,
        *,
        hidden_size: int = 1024,
        num_heads: int = 8,
        num_layers: int = 1,
        feedforward_size: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        norm_first: bool = True,
        self_attention: bool = False,
        keep_query_position: bool = True,
    ):
        super().__init__()
        self.keep_query_position = keep_query_position
        self.linear_projection = nn.Conv2d(num_features, hidden_size, 1)
        self.query_emb = nn.Embedding(num_labels, hidden_size)
        self.query_emb.requires_grad_(self_attention)
        layer = (hidden_size, num_heads, feedforward_size, dropout, activation, norm_first, self_attention)
        layers = nn.ModuleList(TorchDecoderLayer(*layer) for _ in range(num_layers))
        decoder = nn.ModuleDict({"layers": layers, "norm": nn.LayerNorm(hidden_size)})
        self.transformer = nn.ModuleDict({"decoder": decoder})
        self.w = nn.Parameter(torch.randn(1, num_labels, hidden_size) / hidden_size**0.5)
        self.b = nn.Parameter(torch.zeros(1, num_labels))

    def forward(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See the class."""
        positions = functional.relu(self.linear_projection(features)).flatten(2).transpose(1, 2)
        queries = self.query_emb.weight.expand(features.shape[0], -1, -1)  # of len() torch.export makes a constant
        zeros = torch.zeros_like(queries)
        x, position = (zeros, queries) if self.keep_query_position else (queries, zeros)
        decoder = self.transformer["decoder"]
        for layer in decoder["layers"]:
            x, attention = layer(x, positions, position)
        logits = (self.w * decoder["norm"](x)).sum(-1) + self.b
        return logits, {"projection": positions, "attention": attention}


class TorchAnnotator(nn.Module):
    """System A: images `[B, 3, H, W]` to logits `[B, C]` and the head's intermediates.

    Args:
        body: a network that gives features `[B, F, h, w]`.
        num_labels, num_features: labels to score, F.
        head_options: those of `TorchAttentionPooling`.
    """

    def __init__(self, body: nn.Module, num_labels: int, num_features: int, **head_options):
        super().__init__()
        self.backbone = nn.ModuleDict({"features": nn.Sequential(body)})
        self.head = TorchAttentionPooling(num_labels, num_features, **head_options)

    @property
    def body(self) -> nn.Module:
        """The backbone."""
        return self.backbone["features"][0]

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See the class."""
        return self.head(self.body(images))


class TorchClassifier(nn.Module):
    """System B: images `[B, 3, H, W]` to logits `[B, C]` by global mean, dropout and a linear layer."""

    def __init__(self, body: nn.Module, num_labels: int, num_features: int, *, dropout: float = 0.3):
        super().__init__()
        fc = nn.Sequential(nn.Dropout(dropout), nn.Linear(num_features, num_labels))
        self.net = nn.ModuleDict({"body": body, "head": nn.ModuleDict({"fc": fc})})

    @property
    def body(self) -> nn.Module:
        """The backbone."""
        return self.net["body"]

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See the class; there are no intermediates."""
        return self.net["head"]["fc"](self.body(images).mean((2, 3))), {}


def build_body(backbone: str) -> tuple[nn.Module, int]:
    """timm's network for a backbone of `aia_jax.models.backbones.BACKBONES`, and its number of features.

    Raises:
        InputError: timm has no such network.
    """
    name = backbone if backbone.startswith("tresnet") else f"tf_{backbone}"
    if not timm.is_model(name):
        raise InputError(f"timm has no {name} to verify {backbone} against")
    network = timm.create_model(name, num_classes=0, global_pool="")
    return (network.body if backbone.startswith("tresnet") else network), network.num_features


class NativelyPaddedConv(nn.Module):
    """timm's `Conv2dSame` of stride 2 with the padding that it has at one size of its input.

    Args:
        conv: whose weight it takes over, under the same name.
        side: of that input.
    """

    def __init__(self, conv: Conv2dSame, side: int):
        super().__init__()
        self.weight, self.groups = conv.weight, conv.groups
        zeros = (-(-side // 2) - 1) * 2 + conv.kernel_size[0] - side
        self.padding = (zeros // 2, zeros - zeros // 2) * 2

    def forward(self, x: Tensor) -> Tensor:
        """`[B, I, H, W]` to `[B, O, h, w]`."""
        return functional.conv2d(functional.pad(x, self.padding), self.weight, stride=2, groups=self.groups)


def pad_as_at(body: nn.Module, resolution: int) -> None:
    """Makes timm's EfficientNet-Lite pad all images as those of one size: `config.model.native_padding`."""
    side = resolution
    for name, module in list(body.named_modules()):
        if isinstance(module, Conv2dSame):
            body.set_submodule(name, NativelyPaddedConv(module, side))
            side = -(-side // 2)


def load_torch(config: ConfigDict, torch_state: TorchStateDict, state: dict[str, np.ndarray]) -> nn.Module:
    """The model that a recognised file holds, in evaluation mode, loaded with `strict=True`.

    TResNet's names are brought up to date by timm's own filter, not by this project's. EfficientNet-Lite pads as timm
    does, see `pad_as_at`.

    Args:
        config: whose `model` the file is for.
        torch_state: the identified file.
        state: the arrays under the names in the file.
    """
    is_short = torch_state.family == "tresnet" and not any(name.startswith("layer4.") for name in torch_state.backbone)
    body, num_features = _short_tresnet(torch_state.backbone) if is_short else build_body(config.model.backbone)
    if torch_state.system == "backbone":
        model = body
    elif torch_state.system == "classifier":
        model = TorchClassifier(body, len(torch_state.head["bias"]), num_features)
    else:
        options = ("hidden_size", "num_heads", "num_layers", "feedforward_size", "activation", "norm_first")
        options += ("self_attention", "keep_query_position")
        chosen = {name: config.model[name] for name in options}
        model = TorchAnnotator(body, torch_state.head["w"].shape[1], num_features, **chosen)
    loaded = _backbone(torch_state, state)
    if torch_state.system != "backbone":
        parts = (("backbone", loaded), ("head", torch_state.head))
        loaded = {
            wrap(torch_state.system, torch_state.family, area, name): v
            for area, part in parts
            for name, v in part.items()
        }
    tensors = {name: torch.as_tensor(value) for name, value in loaded.items()}
    counters = {name: value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
    model.load_state_dict(counters | tensors, strict=True)
    return model.eval()


def _short_tresnet(arrays: dict[str, np.ndarray]) -> tuple[nn.Module, int]:
    """timm's TResNet without its last stages, as `tresnet_tiny` is, and its number of features."""
    blocks = {match.groups() for name in arrays if (match := re.match(r"layer(\d)\.(\d+)\.", name))}
    counts = [number for _, number in sorted(Counter(stage for stage, _ in blocks).items())]
    width = len(arrays["conv1.conv.weight"])
    network = TResNet([*counts, *[1] * (4 - len(counts))], width_factor=width / 64, num_classes=0)
    for stage in range(len(counts) + 1, 5):
        delattr(network.body, f"layer{stage}")
    return network.body, network.feature_info[len(counts)]["num_chs"]


def _backbone(torch_state: TorchStateDict, state: dict[str, np.ndarray]) -> dict[str, Any]:
    if torch_state.family != "tresnet":
        return torch_state.backbone
    prefix = torch_state.prefix
    body = {
        f"body.{name.removeprefix(prefix)}": torch.as_tensor(value)
        for name, value in state.items()
        if name.startswith(prefix) and not re.search(r"(^|\.)filt$", name)
    }
    return {name.removeprefix("body."): value for name, value in checkpoint_filter_fn(body, None).items()}
