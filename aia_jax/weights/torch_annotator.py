"""Annotators in PyTorch, built from timm's backbones and torch's attention. Conversion and ONNX export use them.

Parameters of the backbone have timm's present names; all others have the authors' names. This module imports torch and
timm.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import timm
import torch
from ml_collections import ConfigDict
from timm.layers import Conv2dSame
from timm.models.tresnet import TResNet, checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn import functional

from aia_jax.models.attention_pooling import HEAD_FIELDS
from aia_jax.utils.errors import InputError
from aia_jax.weights.torch_state import TorchStateDict


class TorchDecoderLayer(nn.TransformerDecoderLayer):
    """Decoder layer of the attention head: optional self-attention, attention to the image, feed-forward network."""

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int = 8,
        feedforward_size: int = 2048,
        norm_first: bool = True,
        self_attention: bool = False,
        **options,
    ):
        super().__init__(hidden_size, num_heads, feedforward_size, norm_first=norm_first, batch_first=True, **options)
        if not self_attention:
            self.self_attn = self.norm1 = None

    def forward(self, x: Tensor, positions: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Returns updated queries `[B, C, D]` and attention maps `[B, C, P]`, for C labels and P image positions.

        Each attention adds the query embedding `position` `[B, C, D]` to the queries `x` `[B, C, D]`. `positions`
        `[B, P, D]` are the image features.
        """

        def before(norm: nn.Module, y: Tensor) -> Tensor:
            return norm(y) if self.norm_first else y

        def add(norm: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            x = x + self.dropout(y)
            return x if self.norm_first else norm(x)

        if self.self_attn is not None:
            y = before(self.norm1, x)
            x = add(self.norm1, x, self.self_attn(y + position, y + position, y)[0])
        y = before(self.norm2, x)
        pooled, attention = self.multihead_attn(y + position, positions, positions)
        x = add(self.norm2, x, pooled)
        hidden = self.dropout(self.activation(self.linear1(before(self.norm3, x))))
        return add(self.norm3, x, self.linear2(hidden)), attention


class TorchAttentionPooling(nn.Module):
    """Attention head (system A). Maps features `[B, F, h, w]` to logits `[B, C]` and a dict of intermediate results.

    The dict has "projection" `[B, h*w, D]` and "attention" `[B, C, h*w]`. The options are those of
    `aia_jax.models.attention_pooling.AttentionPooling`. `layer_options` are passed to `TorchDecoderLayer`.
    """

    def __init__(
        self,
        num_labels: int,
        num_features: int,
        *,
        hidden_size: int = 1024,
        num_layers: int = 1,
        keep_query_position: bool = True,
        **layer_options,
    ):
        super().__init__()
        self.keep_query_position = keep_query_position
        self.linear_projection = nn.Conv2d(num_features, hidden_size, 1)
        self.query_emb = nn.Embedding(num_labels, hidden_size)
        self.query_emb.requires_grad_(layer_options.get("self_attention", False))
        layers = (TorchDecoderLayer(hidden_size, **layer_options) for _ in range(num_layers))
        decoder = nn.ModuleDict({"layers": nn.ModuleList(layers), "norm": nn.LayerNorm(hidden_size)})
        self.transformer = nn.ModuleDict({"decoder": decoder})
        self.w = nn.Parameter(torch.randn(1, num_labels, hidden_size) / hidden_size**0.5)
        self.b = nn.Parameter(torch.zeros(1, num_labels))

    def forward(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        positions = functional.relu(self.linear_projection(features)).flatten(2).transpose(1, 2)
        queries = self.query_emb.weight.expand(features.shape[0], -1, -1)  # torch.export makes len() constant
        zeros = torch.zeros_like(queries)
        x, position = (zeros, queries) if self.keep_query_position else (queries, zeros)
        decoder = self.transformer["decoder"]
        for layer in decoder["layers"]:
            x, attention = layer(x, positions, position)
        logits = (self.w * decoder["norm"](x)).sum(-1) + self.b
        return logits, {"projection": positions, "attention": attention}


class TorchAnnotator(nn.Module):
    """System A: a backbone and an attention head. Maps images `[B, 3, H, W]` to results of `TorchAttentionPooling`.

    `body` is the backbone, a network that returns features `[B, F, h, w]`.
    """

    def __init__(self, body: nn.Module, num_labels: int, num_features: int, **head_options):
        super().__init__()
        self.backbone = nn.ModuleDict({"features": nn.Sequential(body)})
        self.head = TorchAttentionPooling(num_labels, num_features, **head_options)

    @property
    def body(self) -> nn.Module:
        return self.backbone["features"][0]

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.head(self.body(images))


class TorchClassifier(nn.Module):
    """System B: a backbone, global mean, dropout, and a linear layer. Maps images `[B, 3, H, W]` to logits `[B, C]`."""

    def __init__(self, body: nn.Module, num_labels: int, num_features: int, *, dropout: float = 0.3):
        super().__init__()
        fc = nn.Sequential(nn.Dropout(dropout), nn.Linear(num_features, num_labels))
        self.net = nn.ModuleDict({"body": body, "head": nn.ModuleDict({"fc": fc})})

    @property
    def body(self) -> nn.Module:
        return self.net["body"]

    def head(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.net["head"]["fc"](features.mean((2, 3))), {}

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.head(self.body(images))


def label_scores(logits: Tensor, config: ConfigDict) -> Tensor:
    """Converts logits `[B, C]` to scores as `models.annotator.label_scores` does. `config` is `config.model`."""
    return torch.sigmoid(logits) if config.get("score", "sigmoid") == "sigmoid" else torch.softmax(logits, -1)


class FixedPaddingConv(nn.Module):
    """Replaces timm's `Conv2dSame` of stride 2. Pads inputs of all sizes like an input of height and width `side`.

    The parameter `weight` has the same name as in timm.
    """

    def __init__(self, conv: Conv2dSame, side: int):
        super().__init__()
        self.weight, self.groups = conv.weight, conv.groups
        zeros = (-(-side // 2) - 1) * 2 + conv.kernel_size[0] - side
        self.padding = (zeros // 2, zeros - zeros // 2) * 2

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(functional.pad(x, self.padding), self.weight, stride=2, groups=self.groups)


def fix_padding(body: nn.Module, resolution: int) -> None:
    """Makes timm's EfficientNet-Lite pad images of all sizes like images of height and width `resolution`.

    `config.model.native_padding` has the same effect on the JAX model.
    """
    side = resolution
    for name, module in list(body.named_modules()):
        if isinstance(module, Conv2dSame):
            body.set_submodule(name, FixedPaddingConv(module, side))
            side = -(-side // 2)


def build_body(backbone: str) -> tuple[nn.Module, int]:
    """Returns timm's network for a name in `BACKBONES` and its number of features. Raises InputError if it has none."""
    is_tresnet = backbone.startswith("tresnet")
    name = backbone if is_tresnet else f"tf_{backbone}"
    if not timm.is_model(name):
        raise InputError(f"timm has no {name}, which is needed to verify {backbone}")
    network = timm.create_model(name, num_classes=0, global_pool="")
    return (network.body if is_tresnet else network), network.num_features


def load_torch(config: ConfigDict, torch_state: TorchStateDict) -> nn.Module:
    """Builds the PyTorch model of a weights file in evaluation mode, and loads the weights with `strict=True`.

    timm's `checkpoint_filter_fn` converts the names of TResNet, so that comparisons with this model also test the
    conversion of this project. EfficientNet-Lite pads as in timm; see `fix_padding`.
    """
    head = torch_state.head
    if torch_state.family == "tresnet":
        body, num_features = _build_tresnet(torch_state.backbone)
        original = {f"body.{name}": torch.as_tensor(value) for name, value in torch_state.original.items()}
        arrays = {name.removeprefix("body."): value for name, value in checkpoint_filter_fn(original, None).items()}
    else:
        body, num_features = build_body(config.model.backbone)
        arrays = torch_state.backbone
    _load(body, arrays)
    if torch_state.system == "backbone":
        return body.eval()
    if torch_state.system == "classifier":
        model = TorchClassifier(body, len(head["bias"]), num_features)
        _load(model.net["head"]["fc"][1], head)
    else:
        options = {name: config.model[name] for name in HEAD_FIELDS}
        model = TorchAnnotator(body, head["w"].shape[1], num_features, **options)
        _load(model.head, head)
    return model.eval()


def _load(module: nn.Module, arrays: Mapping[str, Any]) -> None:
    module.load_state_dict({name: torch.as_tensor(value) for name, value in arrays.items()}, strict=True)


def _build_tresnet(arrays: Mapping[str, np.ndarray]) -> tuple[nn.Module, int]:
    """Builds timm's TResNet with the one to four stages in `arrays`. Returns it and its number of features."""
    blocks = {match.groups() for name in arrays if (match := re.match(r"layer(\d)\.(\d+)\.", name))}
    counts = [number for _, number in sorted(Counter(stage for stage, _ in blocks).items())]
    layers, width = [*counts, *[1] * (4 - len(counts))], len(arrays["conv1.conv.weight"])
    is_v2 = "layer1.0.conv3.conv.weight" in arrays
    network = TResNet(layers, width_factor=width / 64, v2=is_v2, num_classes=0)
    return network.body[: 2 + len(counts)], network.feature_info[len(counts)]["num_chs"]
